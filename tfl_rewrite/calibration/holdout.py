"""Sets samples aside that a search never sees, and deals the others out so that none measures its own fit.

Rounding that looks at activations fits the samples that it sees: measured on those, four samples promised 10
dB more than others kept. So the samples of a search come in two halves, and each half measures weights that
were rounded for the other (cross-fitting). The file itself is rounded for both, so it is at least as good.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tfl_rewrite.model.ir import Model
from tfl_rewrite.storage import load
from tfl_rewrite.verification.inputs import MOST_SAMPLES, expand_paths
from tfl_rewrite.verification.media import Media
from tfl_rewrite.verification.npz import read_npz, write_npz
from tfl_rewrite.verification.samples import Array

LEAST_SAMPLES = 4
_LEAST_HALVED = 2

Paths = tuple[str | os.PathLike[str], ...]


@dataclass(frozen=True, slots=True)
class Split:
    """What inputs serve for.

    Attributes:
        folds: Inputs to search with: the two halves, or one part that nothing is rounded for.
        everything: The inputs of all folds.
        judge: The rest.
        text: What was done, for the report.
        dealt: The part of it that is about the folds.
        held_out: Whether the search never sees those that judge.
    """

    folds: tuple[Paths, ...]
    everything: Paths
    judge: Paths
    text: str
    held_out: bool
    dealt: str = ""

    @property
    def crossed(self) -> bool:
        """Whether weights can be rounded for one half and measured on the other."""
        return len(self.folds) > 1

    def others(self, fold: int) -> Paths:
        """Returns the inputs that are not of a fold."""
        return tuple(path for index, part in enumerate(self.folds) if index != fold for path in part)


def divide(
    source: str | os.PathLike[str],
    inputs: Sequence[str | os.PathLike[str]],
    holdout: Sequence[str | os.PathLike[str]],
    folder: Path,
    *,
    halves: bool,
) -> Split:
    """Divides the user's inputs of a model; in order where it keeps something from call to call.

    Args:
        source: The model.
        inputs: See :func:`split`, as for the others.

    Raises:
        UsageError: A file cannot be read.
    """
    model = load(source)
    in_order = any(tensor.is_variable for graph in model.subgraphs for tensor in graph.tensors) or any(
        code.name == "VAR_HANDLE" for code in model.operator_codes
    )
    entries = [len(model.subgraphs[0].inputs), *(len(signature.inputs) for signature in model.signatures)]
    return split(
        inputs,
        holdout,
        folder,
        in_order=in_order,
        whole=first_sizes(model),
        halves=halves,
        media=set(entries) == {1},
    )


def split(
    inputs: Sequence[str | os.PathLike[str]],
    holdout: Sequence[str | os.PathLike[str]],
    folder: Path,
    *,
    in_order: bool,
    whole: frozenset[int] = frozenset(),
    halves: bool = True,
    media: bool = True,
) -> Split:
    """Divides the user's inputs.

    Args:
        inputs: ``.npz`` files or folders of them.
        holdout: The same, if the user set samples aside; they alone judge then.
        folder: For the parts of files.
        in_order: Whether samples follow each other in time, and so do the parts then.
        whole: First dimensions of the model's inputs that are no count of samples.
        media: Whether a picture or a sound file is a sample: the model has one input.
        halves: Whether weights are rounded for inputs; otherwise one part does to search with.

    Raises:
        UsageError: A file cannot be read.
    """
    given = tuple(inputs)
    files = [file for found in expand_paths(inputs) for file in _each(found)]
    if not media and any(isinstance(file, Media) for file in files):
        return _undivided(given, holdout, "several inputs, so a file is no sample")
    parts: list[list[Path | Media]] = [[], [], []]
    least = _LEAST_HALVED if holdout else LEAST_SAMPLES
    if len(files) >= least:
        for part, picked in zip(parts, _shares(len(files), in_order, bool(holdout)), strict=True):
            part += [files[index] for index in picked]
        counts, what = [len(part) for part in parts], "files"
    else:
        counts, what = [0, 0, 0], "samples"
        for number, path in enumerate(files):
            if isinstance(path, Media):
                return _undivided(given, holdout, f"{len(files)} files are too few to divide")
            arrays = read_npz(path)
            total = _samples(arrays, whole)
            if total < least:
                return _undivided(given, holdout, f"{path.name} holds too few samples to divide")
            for index, rows in enumerate(_shares(total, in_order, bool(holdout))):
                if rows:
                    target = folder / f"{index}-{number}-{path.name}"
                    write_npz(target, {key: array[rows] for key, array in arrays.items()})
                    parts[index].append(target)
                counts[index] += len(rows)
    kept = "the files of --holdout" if holdout else str(counts[2])
    dealt = f"{counts[0]} + {counts[1]} {what}, each half with weights rounded for the other"
    first, second, rest = (tuple(part) for part in parts)
    if not halves:
        text = f"{counts[0] + counts[1]} {what}; {kept} held out"
        return Split(((*first, *second),), (*first, *second), tuple(holdout) or rest, text, True)
    text = f"{dealt}; {kept} held out"
    return Split((first, second), (*first, *second), tuple(holdout) or rest, text, True, dealt)


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
    return Split((given,), given, tuple(holdout) or given, text, bool(holdout))


def _samples(arrays: Mapping[str, Array], whole: frozenset[int]) -> int:
    """Returns how many samples the arrays of a file hold, or 0 if that is not plain."""
    found = {array.shape[0] if array.ndim else 0 for array in arrays.values()}
    total = found.pop() if len(found) == 1 else 0
    return 0 if total in whole or total > MOST_SAMPLES else total


def _shares(total: int, in_order: bool, judged: bool) -> list[list[int]]:
    """Returns which samples serve for what; none are held out if the user did that."""
    order = list(range(total))
    if in_order:
        rest = total if judged else total - max(1, total // 4)
        half = (rest + 1) // 2
        return [order[:half], order[half:rest], order[rest:]]
    # Neighbours are often alike: deal them out like cards.
    held = [] if judged else order[3::4]
    rows = [index for index in order if index not in held]
    return [rows[0::2], rows[1::2], held]


def first_sizes(model: Model) -> frozenset[int]:
    """Returns the first dimensions of a model's inputs but 1: an array of that length may be one sample."""
    shapes = [tensor.shape for graph in model.subgraphs for tensor in graph.inputs]
    return frozenset(shape[0] for shape in shapes if shape and shape[0] > 1)
