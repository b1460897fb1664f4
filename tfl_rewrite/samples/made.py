"""The inputs that both models get: made from what the model declares, or taken from the user's files.

Samples are made once, from the original, and written to files that both sides read, so that nothing about
the rewritten model or its runtime can change what it is asked.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfl_rewrite.interpreter.child import save_array
from tfl_rewrite.interpreter.interface import Array, EntryPoint, TensorFacts
from tfl_rewrite.interpreter.memory import amount
from tfl_rewrite.options.frozen import frozen

# Integers without a known bound: small enough for most tables, large enough to be different.
SMALL_INTEGERS_BELOW = 10
# Of the stages of making inputs gentler, this one serves models that take a sample rate.
COMMON_SAMPLE_RATE = 16000
MADE_NBYTES = 64 << 20
"""Made inputs of one entry point, all samples together: of larger ones there are fewer, but one at least."""
SAMPLE_NBYTES = 128 << 20
"""A single sample that is larger is not made: a few bytes of a model can declare any size."""
MADE_AT_ONCE = 1 << 22
"""Elements that are drawn; larger inputs repeat them. Drawing takes five times the memory of float32."""
WORDS = ("lorem", "ipsum", "dolor", "sit", "amet", "naïve", "x", "", "The quick brown fox", "42")


@frozen(kw_only=True)
class Step:
    """One call of one entry point.

    Attributes:
        signature: Its key, or None for the primary subgraph.
        values: The inputs in order of the entry point, each with its name.
        optional: The original may refuse it without consequences.
        real: Taken from a file of the user.
        shapes: A note on its shapes when they are not the declared ones.
    """

    signature: str | None
    values: tuple[tuple[str, Array], ...]
    optional: bool = False
    real: bool = False
    shapes: str | None = None


@frozen(kw_only=True)
class Recipe:
    """How inputs are made; the first is used unless the original fails on it, or gives always the same.

    Attributes:
        name: As a note tells it, when it is not the first.
        integer: Value of all integers of 32 bits and more; None makes different ones.
        smallest: Free sizes are 1 instead of the declared default.
        scale: Real numbers are multiplied with it.
    """

    name: str
    integer: int | None = None
    smallest: bool = False
    scale: float = 1.0


VARIED = Recipe(name="varied values")
GENTLER = (
    Recipe(name="all integer inputs 1", integer=1),
    Recipe(name="all integer inputs 0", integer=0),
    Recipe(name=f"all integer inputs {COMMON_SAMPLE_RATE}", integer=COMMON_SAMPLE_RATE),
    Recipe(name="all integer inputs 1, free sizes 1", integer=1, smallest=True),
)
"""Tried one after the other where the original fails."""
LOUDER = (Recipe(name="values up to 255", scale=255.0),)
"""Tried one after the other where the outputs are the same for all samples."""


def gentler_recipes(entry: EntryPoint) -> tuple[Recipe, ...]:
    """Those of `GENTLER` that make a difference for this entry point."""
    wide = any(facts.dtype in ("int32", "int64", "uint32", "uint64") for facts in entry.inputs)
    free = any(-1 in facts.shape_signature for facts in entry.inputs)
    return tuple(recipe for recipe in GENTLER if (wide or recipe.smallest) and (free or not recipe.smallest))


def louder_recipes(entry: EntryPoint) -> tuple[Recipe, ...]:
    """Those of `LOUDER` that make a difference for this entry point."""
    return LOUDER if any(facts.dtype.startswith("float") for facts in entry.inputs) else ()


def made_steps(entry: EntryPoint, *, count: int, seed: int, recipe: Recipe = VARIED) -> list[Step]:
    """Samples for one entry point at its default shapes.

    Args:
        entry: The entry point.
        count: How many; fewer where they would be larger than `MADE_NBYTES`, one for a model without inputs.
        seed: Of what is drawn.
        recipe: How values are made.

    Raises:
        ValueError: No values can be made for the dtype of an input, or a single sample would be larger than
            `SAMPLE_NBYTES`.
    """
    nbytes = _sample_nbytes(entry, larger=False, smallest=recipe.smallest)
    if nbytes > SAMPLE_NBYTES:
        raise ValueError(
            f"the inputs of {entry.label} take {amount(nbytes)}, more than are made ({amount(SAMPLE_NBYTES)})"
        )
    count = max(1, min(count, MADE_NBYTES // max(1, nbytes))) if entry.inputs else 1
    return [
        Step(signature=entry.key, values=_made_values(entry, number, seed=seed, recipe=recipe))
        for number in range(count)
    ]


def larger_step(entry: EntryPoint, *, seed: int) -> Step | None:
    """One optional sample with every free size larger than declared.

    None when no size is free, or when it would be larger than `MADE_NBYTES`.
    """
    if all(-1 not in facts.shape_signature for facts in entry.inputs):
        return None
    if _sample_nbytes(entry, larger=True, smallest=False) > MADE_NBYTES:
        return None
    values = _made_values(entry, 0, seed=seed, recipe=VARIED, larger=True)
    return Step(
        signature=entry.key,
        values=values,
        optional=True,
        shapes=", ".join(f"{name} {list(value.shape)}" for name, value in values),
    )


def _made_values(
    entry: EntryPoint, number: int, *, seed: int, recipe: Recipe, larger: bool = False
) -> tuple[tuple[str, Array], ...]:
    values = []
    for position, facts in enumerate(entry.inputs):
        # Own stream for each input of each sample: one more input or sample leaves the others as they were.
        key = zlib.crc32((entry.key or "").encode("utf-8", "surrogatepass"))
        stream = np.random.default_rng([seed, key, position, number])
        shape = _shape(facts, larger=larger, smallest=recipe.smallest)
        values.append((facts.name, made_array(facts, shape, number, stream, recipe=recipe)))
    return tuple(values)


def _sample_nbytes(entry: EntryPoint, *, larger: bool, smallest: bool) -> int:
    return sum(
        facts.itemsize * math.prod(_shape(facts, larger=larger, smallest=smallest)) for facts in entry.inputs
    )


def _shape(facts: TensorFacts, *, larger: bool, smallest: bool) -> tuple[int, ...]:
    sizes = []
    for size, declared in zip(facts.shape, facts.shape_signature, strict=True):
        if declared != -1:
            sizes.append(size)
        elif smallest or size < 1:
            sizes.append(1)
        elif larger:
            sizes.append(2 if size == 1 else size + max(1, size // 4))
        else:
            sizes.append(size)
    return tuple(sizes)


def made_array(
    facts: TensorFacts,
    shape: tuple[int, ...],
    number: int,
    stream: np.random.Generator,
    *,
    recipe: Recipe = VARIED,
) -> Array:
    """One input of sample ``number``.

    Real numbers alternate between [0, 1], a standard normal, [-1, 1] and smooth patterns in [0, 1], because a
    model does not say which range it was trained on. 8- and 16-bit integers use their full range, others
    stay below ``facts.below`` or are small.

    Raises:
        ValueError: No values can be made for this dtype.
    """
    if math.prod(shape) > MADE_AT_ONCE:
        drawn = made_array(facts, (MADE_AT_ONCE,), number, stream, recipe=recipe)
        return np.asarray(np.resize(drawn, shape))
    if facts.dtype == "string":
        words = np.empty(shape, dtype=object)
        words.reshape(-1)[:] = [WORDS[pick].encode() for pick in stream.integers(0, len(WORDS), words.size)]
        return words
    dtype = np.dtype(facts.dtype)
    if dtype.kind == "b":
        return np.asarray(stream.random(shape) < (0.5, 0.1, 0.9)[number % 3])
    if dtype.kind in "iu":
        return _made_integers(facts, dtype, shape, number, stream, integer=recipe.integer)
    if facts.below is not None and recipe.integer is None:
        return np.asarray(stream.integers(0, facts.below, shape)).astype(dtype)
    if dtype.kind == "c":
        return np.asarray(stream.standard_normal(shape) + 1j * stream.standard_normal(shape)).astype(dtype)
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            return (_made_reals(shape, number, stream) * recipe.scale).astype(dtype)
    raise ValueError(f"no values can be made for dtype {facts.dtype}")


def _made_integers(
    facts: TensorFacts,
    dtype: np.dtype[Any],
    shape: tuple[int, ...],
    number: int,
    stream: np.random.Generator,
    *,
    integer: int | None,
) -> Array:
    if facts.below is not None:
        top = facts.below - 1 if integer is None else min(integer, facts.below - 1)
        top = min(top, int(np.iinfo(dtype).max))
        low = 0 if integer is None else top
        return np.asarray(stream.integers(low, top + 1, shape)).astype(dtype)
    if dtype.itemsize > 2:
        if integer is not None:
            return np.full(shape, integer, dtype=dtype)
        return np.asarray(stream.integers(0, SMALL_INTEGERS_BELOW, shape)).astype(dtype)
    limits = np.iinfo(dtype)
    if number % 4 == 3:
        smooth = _smooth(shape, stream) * (int(limits.max) - int(limits.min)) + int(limits.min)
        return np.asarray(np.clip(np.rint(smooth), limits.min, limits.max)).astype(dtype)
    return np.asarray(stream.integers(limits.min, limits.max, shape, dtype=dtype, endpoint=True))


def _made_reals(shape: tuple[int, ...], number: int, stream: np.random.Generator) -> Array:
    kind = number % 4
    if kind == 0:
        return np.asarray(stream.random(shape))
    if kind == 1:
        return np.asarray(stream.standard_normal(shape))
    if kind == 2:
        return np.asarray(stream.random(shape) * 2 - 1)
    return _smooth(shape, stream)


def _smooth(shape: tuple[int, ...], stream: np.random.Generator) -> Array:
    """Slow waves in [0, 1] with a little noise: nearer to pictures and sound than white noise is."""
    waves = np.zeros(shape)
    for axis, size in enumerate(shape):
        turns, phase = stream.uniform(0.5, 3), stream.uniform(0, 2 * np.pi)
        along = np.cos(2 * np.pi * turns * np.arange(size) / max(size, 1) + phase)
        waves = waves + along.reshape([-1 if other == axis else 1 for other in range(len(shape))])
    waves = waves / max(len(shape), 1) * 0.45 + 0.5
    return np.asarray(np.clip(waves + stream.normal(0, 0.03, shape), 0, 1))


def write_steps(steps: Sequence[Step], folder: Path) -> Path:
    """Writes the arrays and the list of calls for the child processes; returns the list's path."""
    stored: dict[int, str] = {}
    calls: list[Mapping[str, object]] = []
    for number, step in enumerate(steps):
        inputs = []
        for position, (name, value) in enumerate(step.values):
            if id(value) not in stored:
                stored[id(value)] = str(folder / f"{number}.{position}")
                save_array(Path(stored[id(value)]), value)
            inputs.append([name, stored[id(value)]])
        calls.append({"signature": step.signature, "optional": step.optional, "inputs": inputs})
    path = folder / "steps.json"
    path.write_text(json.dumps(calls), encoding="utf-8")
    return path
