"""Two files that take or give the same real values in other types: what one has, in the types of the other.

A rewrite may be asked for another type at the border: floats become int8, say. Both files are compared in
real values then. The rewritten file gets the samples of the original, quantized as its own inputs declare.
Made samples, and all where outputs must be equal, lie on the steps of the coarser side, so that neither
rounding nor clipping them decides anything; real ones are what they are, and those that the rewritten file
clips are counted. Where outputs must be equal, integers are compared as integers: the last bit of a float
depends on the kernel that made it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from tfl_rewrite.errors import percent
from tfl_rewrite.interpreter.child import load_array, save_array
from tfl_rewrite.interpreter.interface import Array, EntryPoint, Interface, TensorFacts, quoted
from tfl_rewrite.judge.tally import is_real, real_pieces
from tfl_rewrite.samples.made import Step
from tfl_rewrite.samples.media import to_input

_ON_A_STEP = 0.01
"""Of a step, by how much a float may be off one: float32 rounds a step of 16 bits by less."""


def is_retyped(one: TensorFacts, other: TensorFacts) -> bool:
    """Whether two tensors hold real values in different ways, so that one can be had as the other."""
    return not _is_alike(one, other) and is_real(one) and is_real(other)


def as_type_of(one: TensorFacts, other: TensorFacts) -> TensorFacts:
    """The second tensor, declared in the type of the first where it holds real values in another way."""
    if not is_retyped(one, other):
        return other
    return replace(other, dtype=one.dtype, scales=one.scales, zero_points=one.zero_points)


def converted(values: Array, one: TensorFacts, other: TensorFacts) -> Array:
    """Values of one tensor as another holds them, to the nearest; as they are where nothing real differs."""
    if not is_retyped(one, other):
        return values
    found = list(real_pieces(values, one))
    flat = np.concatenate(found) if found else np.empty(0)
    with np.errstate(invalid="ignore"):
        return to_input(flat.reshape(values.shape), other)


def compared_as(ours: TensorFacts, theirs: TensorFacts, *, exact: bool) -> TensorFacts:
    """What both outputs are compared as: integers where equality is asked for, else floats where one is.

    Rounded to integers, and clipped to those there are, a float that is far off would look right.
    """
    if is_retyped(ours, theirs) and theirs.is_quantized is exact and ours.is_quantized is not exact:
        return replace(theirs, name=ours.name, tensor=ours.tensor, consumed=ours.consumed)
    return ours


def between_steps(values: Array, one: TensorFacts, other: TensorFacts) -> int:
    """How many values of a tensor are none that the integers of another one can hold."""
    if not is_retyped(one, other) or not other.is_quantized:
        return 0
    zero, limits = other.zero_points[0] if other.zero_points else 0, np.iinfo(other.dtype)
    count = 0
    for piece in real_pieces(values, one):
        with np.errstate(invalid="ignore"):
            steps = piece / other.scales[0] + zero
            held = (np.abs(steps - np.rint(steps)) <= _ON_A_STEP) & (np.rint(steps) >= limits.min)
            count += int(np.count_nonzero(~(held & (np.rint(steps) <= limits.max))))
    return count


def on_steps(steps: Sequence[Step], ours: Interface, theirs: Interface) -> list[Step]:
    """The samples of the original, each on the nearest step of what the other file takes."""
    return as_taken(as_taken(steps, ours, theirs), theirs, ours)


def as_taken(steps: Sequence[Step], ours: Interface, theirs: Interface) -> list[Step]:
    """The samples of one file in the types of another; as they are where that takes no such inputs."""
    return [_as_taken(step, ours.find(step.signature), theirs.find(step.signature)) for step in steps]


def _as_taken(step: Step, ours: EntryPoint | None, theirs: EntryPoint | None) -> Step:
    if ours is None or theirs is None or len(ours.inputs) != len(theirs.inputs):
        return step
    values = [
        (other.name, converted(value, one, other))
        for (_, value), one, other in zip(step.values, ours.inputs, theirs.inputs, strict=True)
    ]
    return replace(step, values=tuple(values))


def beyond(listed: Path, ours: Interface, theirs: Interface) -> list[str]:
    """What the integers of another file clip of the calls of the original, as `write_steps` wrote them.

    Returns:
        A note for each input with values further beyond the first or the last step than rounding reaches.
    """
    outside: dict[tuple[str | None, int], list[int]] = {}
    for call in json.loads(listed.read_text(encoding="utf-8")):
        one, other = ours.find(call["signature"]), theirs.find(call["signature"])
        if one is None or other is None or len(one.inputs) != len(other.inputs):
            continue
        for position, (mine, its) in enumerate(zip(one.inputs, other.inputs, strict=True)):
            if not is_retyped(mine, its) or not its.is_quantized:
                continue
            low, high = _held(its)
            count = outside.setdefault((one.key, position), [0, 0])
            for piece in real_pieces(load_array(Path(call["inputs"][position][1])), mine):
                off = np.maximum(piece - high, low - piece) > its.scales[0] / 2
                count[0] += int(np.count_nonzero(off))
                count[1] += off.size
    notes = []
    for (key, position), (clipped, total) in outside.items():
        entry, other = ours.find(key), theirs.find(key)
        if not clipped or entry is None or other is None:
            continue
        low, high = _held(other.inputs[position])
        what = f"{quoted(entry.inputs[position].name)} of {entry.label}"
        notes.append(
            f"{percent(clipped / total)} of the values of input {what} lie beyond what"
            f" {other.inputs[position].dtype} holds in the rewritten file ({low:.4g} to {high:.4g})"
        )
    return notes


def _held(facts: TensorFacts) -> tuple[float, float]:
    """The lowest and the highest real value that a quantized tensor holds."""
    limits = np.iinfo(facts.dtype)
    zero = facts.zero_points[0] if facts.zero_points else 0
    return (limits.min - zero) * facts.scales[0], (limits.max - zero) * facts.scales[0]


def write_converted(listed: Path, ours: Interface, theirs: Interface) -> Path:
    """Writes the calls of the original with the inputs that another file takes.

    Args:
        listed: The calls, as `write_steps` wrote them.
        ours: What the original takes.
        theirs: What the other file takes.

    Returns:
        Their list, beside that of the original; the same where no input differs.
    """
    calls = json.loads(listed.read_text(encoding="utf-8"))
    differs = False
    for number, call in enumerate(calls):
        one, other = ours.find(call["signature"]), theirs.find(call["signature"])
        if one is None or other is None or len(one.inputs) != len(other.inputs):
            continue
        for position, (mine, its) in enumerate(zip(one.inputs, other.inputs, strict=True)):
            if not is_retyped(mine, its):
                continue
            stem = listed.parent / f"theirs-{number}.{position}"
            save_array(stem, converted(load_array(Path(call["inputs"][position][1])), mine, its))
            call["inputs"][position][1] = str(stem)
            differs = True
    if not differs:
        return listed
    path = listed.with_name("theirs.json")
    path.write_text(json.dumps(calls), encoding="utf-8")
    return path


def _is_alike(one: TensorFacts, other: TensorFacts) -> bool:
    return (one.dtype, one.scales, one.zero_points) == (other.dtype, other.scales, other.zero_points)
