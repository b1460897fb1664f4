"""Divides real inputs: some to fit to, in two halves, and some that nothing is fitted to, which judge.

Whatever looks at activations fits the samples that it sees: measured on those, four samples promised 10 dB
more than others kept, and an audio classifier that had lost 18 dB passed. So a quarter of the samples is held
out, two at least, and judges the file. The others come in two halves, and what was fitted to one half is
measured on the other: by a search, whole files; by a rounder, the products of each weight. The file itself is
fitted to both.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import field, replace
from pathlib import Path
from typing import Any

import numpy as np

from tfl_rewrite.errors import UsageError
from tfl_rewrite.flatbuf.record import Record
from tfl_rewrite.interpreter.interface import Array, EntryPoint, Interface, TensorFacts
from tfl_rewrite.judge.settings import Judging
from tfl_rewrite.kernels.table import VAR_HANDLE
from tfl_rewrite.model import dtypes
from tfl_rewrite.model.ir import Model, SubGraph, Tensor
from tfl_rewrite.options.frozen import frozen, slotted
from tfl_rewrite.options.option import PICTURES
from tfl_rewrite.samples.inputs import expand_paths, media_steps, real_inputs, sample_counts
from tfl_rewrite.samples.media import Media
from tfl_rewrite.samples.npz import read_npz, write_npz

LEAST_FITTED = 2
"""One for each half."""

LEAST_HELD_OUT = 2

LEAST_SAMPLES = LEAST_FITTED + LEAST_HELD_OUT

Paths = tuple[str | os.PathLike[str], ...]
_Rows = list[tuple[str, Tensor]]


@frozen
class Split:
    """What inputs serve for.

    Attributes:
        folds: Inputs to search with: the two halves, or one part that nothing is fitted to.
        judge: The rest.
        text: What was done, for the report.
        held_out: Whether a search never sees those that judge.
        dealt: The part of ``text`` that is about the folds.
        reason: Why they were not divided; empty if they were.
    """

    folds: tuple[Paths, ...]
    judge: Paths
    text: str
    held_out: bool
    dealt: str = ""
    reason: str = ""

    @property
    def judges(self) -> str:
        """What judges a file, in words."""
        return "held-out inputs" if self.held_out else "the same inputs"

    @property
    def everything(self) -> Paths:
        """The inputs of all folds."""
        return tuple(path for fold in self.folds for path in fold)

    @property
    def crossed(self) -> bool:
        """Whether weights can be fitted to one half and measured on the other."""
        return len(self.folds) > 1

    def others(self, fold: int) -> Paths:
        """Returns the inputs that are not of a fold."""
        return tuple(path for index, part in enumerate(self.folds) if index != fold for path in part)


def divide(
    model: Model,
    inputs: Sequence[str | os.PathLike[str]],
    holdout: Sequence[str | os.PathLike[str]],
    folder: Path,
    *,
    halves: bool = True,
) -> Split:
    """Divides the user's inputs of a model; in order where it keeps something from call to call.

    Args:
        model: That they are for.
        inputs: See :func:`split`, as for the others.

    Raises:
        UsageError: A file cannot be read, or does not fit the model.
    """
    in_order = keeps_state(model)
    return split(inputs, holdout, folder, in_order=in_order, interface=interface_of(model), halves=halves)


def keeps_state(model: Model) -> bool:
    """Whether a model keeps something from one call to the next."""
    return any(tensor.is_variable for _, tensor in model.tensors()) or any(
        code.custom is None and code.name == VAR_HANDLE.name for code in model.operator_codes
    )


def set_aside(model: Model, judging: Judging, folder: Path) -> tuple[Judging, Split]:
    """Sets samples aside that judge, where weights are to be fitted to the user's inputs.

    Args:
        model: That the inputs are for.
        judging: Has them.
        folder: For the parts of files.

    Returns:
        How to verify, with what may be fitted to as its inputs; and how they were divided.

    Raises:
        UsageError: See :func:`divide`.
    """
    parted = divide(model, judging.inputs, judging.holdout, folder)
    if parted.crossed:
        return replace(judging, inputs=parted.everything, holdout=parted.judge), parted
    return replace(judging, inputs=(), holdout=parted.judge), parted


def split(
    inputs: Sequence[str | os.PathLike[str]],
    holdout: Sequence[str | os.PathLike[str]],
    folder: Path,
    *,
    interface: Interface,
    in_order: bool,
    halves: bool = True,
) -> Split:
    """Divides the user's inputs.

    Four files or more are dealt whole; the samples of fewer are dealt by entry point. An entry point with too
    few samples is judged with all of them.

    Args:
        inputs: ``.npz`` files, pictures, sound, or folders of them.
        holdout: The same, if the user set samples aside; they alone judge then.
        folder: For the parts of files.
        interface: What the model takes.
        in_order: Whether samples follow each other in time, and so do the parts then: no sequence is torn.
        halves: Whether something is fitted to inputs; otherwise one part does to search with.

    Raises:
        UsageError: A file cannot be read, or does not fit.
    """
    given = tuple(inputs)
    files = _all(inputs)
    # What does not fit is said before anything is fitted, not once all is done.
    for path in expand_paths(holdout):
        if not isinstance(path, Media):
            real_inputs(interface, [path])
    single = {len(entry.inputs) for entry in interface.entry_points} == {1}
    if not single and any(isinstance(file, Media) for file in files):
        return _undivided(
            given, holdout, "the model takes several inputs, so a picture or sound is no sample"
        )
    guess = _guess(files, interface)
    if guess:
        return _undivided(given, holdout, f"{guess} (give it with --input-range)")
    least = LEAST_FITTED if holdout else LEAST_SAMPLES
    if len(files) >= least:
        shares = _shares(len(files), in_order, bool(holdout))
        dealt = [_Part([files[index] for index in picked], len(picked)) for picked in shares]
        what = "files"
    else:
        dealt, seen = _samples_dealt(files, interface, folder, in_order=in_order, judged=bool(holdout))
        if not dealt[0].files:
            return _undivided(given, holdout, _too_few(seen, least))
        what = "samples"
    first, second, rest = dealt
    apart = not holdout or not _samples_in(_all(holdout), interface) & _samples_in(files, interface)
    kept = "the files of --holdout" if holdout else str(rest.count)
    kept = f"{kept} held out" if apart else f"{kept} judge, of which some are among these"
    judge = tuple(holdout) or tuple(rest.files)
    if not halves:
        text = f"{first.count + second.count} {what}; {kept}"
        return Split(((*first.files, *second.files),), judge, text, apart)
    told = f"{first.count} + {second.count} {what}, each half with weights rounded for the other"
    return Split((tuple(first.files), tuple(second.files)), judge, f"{told}; {kept}", apart, told)


def _too_few(seen: int, least: int) -> str:
    """Says what to do about too few samples."""
    text = "1 sample is" if seen == 1 else f"{seen} samples are"
    instead = ", or name samples that judge with --holdout" if seen >= LEAST_FITTED else ""
    return f"{text} too few: give {least} or more{instead}"


def _samples_in(files: Sequence[Path | Media], interface: Interface) -> set[bytes]:
    """Returns what tells samples apart, whatever file they are in: a hash of each, of all its inputs."""
    found: set[bytes] = set()
    for file in files:
        if isinstance(file, Media):
            found.add(hashlib.sha256(file.path.read_bytes()).digest())
            continue
        for step in real_inputs(interface, [file]).steps:
            digest = hashlib.sha256(repr(step.signature).encode())
            for name, array in step.values:
                digest.update(repr((name, array.dtype.str, array.shape)).encode() + array.tobytes())
            found.add(digest.digest())
    return found


@slotted
class _Part:
    """Some of the inputs: files, and how many samples or files are counted in them."""

    files: list[Path | Media] = field(default_factory=list)
    count: int = 0


def _samples_dealt(
    files: Sequence[Path | Media], interface: Interface, folder: Path, *, in_order: bool, judged: bool
) -> tuple[list[_Part], int]:
    """Deals the samples of few files; a picture or sound is one, and judges unless others do.

    Returns:
        Two halves to fit to and what is held out; and how many samples there are in all.

    Raises:
        UsageError: A file does not fit.
    """
    parts, seen = [_Part(), _Part(), _Part()], 0
    for number, path in enumerate(files):
        if isinstance(path, Media):
            seen += 1
            parts[2].files += [] if judged else [path]
            continue
        cut, total = _cut(path, interface, number, folder, in_order, judged)
        seen += total
        for part, (made, count) in zip(parts, cut, strict=True):
            part.count += count
            part.files += [] if made is None else [made]
    return parts, seen


def _guess(files: Sequence[Path | Media], interface: Interface) -> str:
    """Returns what would be assumed of pictures and sound: what is fitted to a guess may fit nothing else."""
    unsaid = [file for file in files if isinstance(file, Media) and file.value_range is None]
    # What is assumed belongs to the model and the kind of file, so one of each kind tells.
    for media in {file.path.suffix.lower() in PICTURES: file for file in unsaid}.values():
        try:
            assumed = media_steps(interface, media)[2]
        except UsageError:
            # Whoever runs the model says what does not fit.
            continue
        if assumed:
            return assumed[0]
    return ""


def _cut(
    path: Path, interface: Interface, number: int, folder: Path, in_order: bool, judged: bool
) -> tuple[list[tuple[Path | None, int]], int]:
    """Cuts an ``.npz``.

    Returns:
        Three files with the number of samples in each, None where there would be none; and how many samples
        there are in all.

    Raises:
        UsageError: It does not fit.
    """
    real_inputs(interface, [path])  # So that what does not fit is said before anything is done.
    arrays = read_npz(path)
    counts = sample_counts(interface, path, arrays)
    least = LEAST_FITTED if judged else LEAST_SAMPLES
    shares = {total: _shares(total, in_order, judged) for total in counts.values() if total >= least}
    made: list[tuple[Path | None, int]] = []
    for index in range(3):
        held: dict[str, Array] = {}
        for name, array in arrays.items():
            total = counts.get(name)
            if total is None:
                # Given once for all samples, or no input.
                held[name] = array
            elif total in shares:
                held[name] = array[shares[total][index]]
            elif index == 2:
                held[name] = array
        taken = [name for name in held if name in counts and len(held[name])]
        if not taken:
            made.append((None, 0))
            continue
        # Under its own name, which notes tell.
        target = folder / f"{index}-{number}" / path.name
        target.parent.mkdir(exist_ok=True)
        write_npz(target, {name: held[name] for name in held if name not in counts or name in taken})
        made.append((target, max(len(held[name]) for name in taken)))
    return made, max(counts.values(), default=0)


def _all(paths: Sequence[str | os.PathLike[str]]) -> list[Path | Media]:
    """Returns the files that paths stand for, with those of folders one by one."""
    return [file for found in expand_paths(paths) for file in _each(found)]


def _each(found: Path | Media) -> list[Path | Media]:
    """Returns the pictures or sound files of a folder; another file as it is."""
    if not isinstance(found, Media) or not found.path.is_dir():
        return [found]
    return [replace(found, path=path) for path in found.files()]


def _undivided(given: Paths, holdout: Sequence[str | os.PathLike[str]], why: str) -> Split:
    """Returns a division of what cannot be divided."""
    text = f"the inputs, not rounding for them: {why}"
    if not holdout:
        text += "; none are held out (give --holdout)"
    return Split((given,), tuple(holdout) or given, text, bool(holdout), reason=why)


def _shares(total: int, in_order: bool, judged: bool) -> list[list[int]]:
    """Returns which samples serve for what; none are held out if the user did that."""
    order = list(range(total))
    aside = 0 if judged else max(LEAST_HELD_OUT, total // 4)
    if in_order:
        rest = total - aside
        half = (rest + 1) // 2
        return [order[:half], order[half:rest], order[rest:]]
    # Neighbours are often alike: deal them out like cards.
    held = [(number + 1) * total // aside - 1 for number in range(aside)]
    rows = [index for index in order if index not in held]
    return [rows[0::2], rows[1::2], held]


def interface_of(model: Model) -> Interface:
    """Returns what a model takes and gives, as a runtime would tell it; nothing is run."""

    def facts(graph: SubGraph, inputs: _Rows, outputs: _Rows) -> dict[str, Any]:
        at = {id(tensor): position for position, tensor in enumerate(graph.tensors)}

        def told(rows: _Rows) -> list[dict[str, Any]]:
            return [vars(_facts(tensor, name, at[id(tensor)])) for name, tensor in rows]

        return {
            "subgraph": model.subgraphs.index(graph),
            "inputs": told(inputs),
            "outputs": told(outputs),
            "signatures": [],
        }

    def named(rows: Sequence[tuple[Record, Tensor]]) -> _Rows:
        # By name, as the runtime's runner of a signature has them.
        return sorted(((record.get("name") or "", tensor) for record, tensor in rows), key=lambda row: row[0])

    if not model.subgraphs:
        return Interface(EntryPoint(None, (), ()), ())
    graph = model.subgraphs[0]
    made = facts(graph, *([(item.name, item) for item in rows] for rows in (graph.inputs, graph.outputs)))
    made["signatures"] = [
        {"key": item.key, **facts(item.subgraph, named(item.inputs), named(item.outputs))}
        for item in model.signatures
    ]
    state = {"keeps_state": True, "carries_state": False}
    return Interface.from_dict({**made, **state, "subgraphs": len(model.subgraphs)})


def _facts(tensor: Tensor, name: str, index: int) -> TensorFacts:
    row, details = dtypes.BY_VALUE.get(tensor.dtype), tensor.quantization
    shape = tensor.shape or ()
    known = row is not None and bool(row.numpy)
    return TensorFacts(
        name=name,
        tensor=tensor.name,
        dtype=np.dtype(row.numpy).name if known and row is not None else "string",
        shape=shape,
        shape_signature=tensor.signature or shape,
        scales=tuple(details.scale or ()) if details is not None else (),
        zero_points=tuple(details.zero_point or ()) if details is not None else (),
        index=index,
    )
