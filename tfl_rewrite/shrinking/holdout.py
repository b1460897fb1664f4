"""Sets samples aside that a search never sees, to judge what it found."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tfl_rewrite.verification.inputs import expand_paths, read_npz

LEAST_SAMPLES = 4


@dataclass(frozen=True, slots=True)
class Split:
    """Inputs to round with, to search with, and to judge with.

    Rounding that looks at activations fits the samples that it sees, and measures too well on them; so what
    the search measures with is not what weights were rounded for.

    Attributes:
        calibrate: Half of the samples.
        search: A quarter.
        judge: The rest.
        text: What was done, for the report.
        held_out: Whether the three are different.
    """

    calibrate: tuple[str | os.PathLike[str], ...]
    search: tuple[str | os.PathLike[str], ...]
    judge: tuple[str | os.PathLike[str], ...]
    text: str
    held_out: bool


def split(
    inputs: Sequence[str | os.PathLike[str]],
    holdout: Sequence[str | os.PathLike[str]],
    folder: Path,
    *,
    in_order: bool,
) -> Split:
    """Divides the user's inputs.

    Args:
        inputs: ``.npz`` files or folders of them.
        holdout: The same, if the user set samples aside; they alone judge then.
        folder: For the parts of files.
        in_order: Whether samples follow each other in time, and so do the parts then.

    Raises:
        UsageError: A file cannot be read.
    """
    given = tuple(inputs)
    same = Split(given, given, tuple(holdout) or given, "the inputs of the search", bool(holdout))
    if any(Path(item).is_dir() and not any(Path(item).glob("*.npz")) for item in given):
        # Pictures or sound: whoever reads them says what is wrong with them.
        return replace(same, text=f"{same.text} (give --holdout)") if not holdout else same
    files = expand_paths(inputs)
    parts: tuple[list[Path], list[Path], list[Path]] = ([], [], [])
    if len(files) >= LEAST_SAMPLES:
        for part, picked in zip(parts, _shares(len(files), in_order, bool(holdout)), strict=True):
            part += [files[index] for index in picked]
        counts, what = [len(part) for part in parts], "files"
    else:
        counts, what = [0, 0, 0], "samples"
        for number, path in enumerate(files):
            arrays = read_npz(path)
            samples = {array.shape[0] if array.ndim else 0 for array in arrays.values()}
            if len(samples) != 1 or min(samples) < LEAST_SAMPLES:
                return replace(same, text=f"{same.text}: too few samples to hold some out")
            for index, rows in enumerate(_shares(samples.pop(), in_order, bool(holdout))):
                if rows:
                    target = folder / f"{index}-{number}-{path.name}"
                    np.savez(target, **{key: array[rows] for key, array in arrays.items()})
                    parts[index].append(target)
                counts[index] += len(rows)
    text = f"{counts[0]} {what} to round with, {counts[1]} to search with, {counts[2]} held out"
    if holdout:
        text = f"{counts[0]} {what} to round with, {counts[1]} to search with, others held out"
    return Split(tuple(parts[0]), tuple(parts[1]), tuple(holdout) or tuple(parts[2]), text, True)


def _shares(total: int, in_order: bool, judged: bool) -> tuple[list[int], list[int], list[int]]:
    """Returns which samples serve for what; none are held out if the user did that."""
    order = list(range(total))
    if not in_order:
        # Neighbours are often alike: deal them out like cards.
        order = [*order[0::4], *order[2::4], *order[1::4], *order[3::4]]
    half = max(1, total // 2)
    quarter = total if judged else half + max(1, (total - half) // 2)
    return sorted(order[:half]), sorted(order[half:quarter]), sorted(order[quarter:])
