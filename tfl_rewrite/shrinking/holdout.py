"""Sets samples aside that a search never sees, to judge what it found."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tfl_rewrite.verification.inputs import expand_paths, read_npz

LEAST_SAMPLES = 4
EVERY = 4
"""One sample in four is held out."""


@dataclass(frozen=True, slots=True)
class Split:
    """Inputs to search with, and inputs to judge with.

    Attributes:
        text: What was done, for the report.
        held_out: Whether the two are different.
    """

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
        holdout: The same, if the user set samples aside; nothing is divided then.
        folder: For the halves of files.
        in_order: Whether samples follow each other in time; the last ones are held out then, not each fourth.

    Raises:
        UsageError: A file cannot be read.
    """
    if holdout:
        return Split(tuple(inputs), tuple(holdout), "held-out inputs as given", True)
    try:
        files = expand_paths(inputs)
    except Exception:
        if any(Path(item).suffix == ".npz" for item in inputs):
            raise
        # Pictures or sound: whoever reads them says what is wrong with them.
        return Split(tuple(inputs), tuple(inputs), "the inputs of the search (give --holdout)", False)
    if any(path.suffix != ".npz" for path in files):
        return Split(tuple(inputs), tuple(inputs), "the inputs of the search (give --holdout)", False)
    if len(files) >= LEAST_SAMPLES:
        picked = _picked(len(files), in_order)
        search = [path for number, path in enumerate(files) if number not in picked]
        return Split(
            tuple(search), tuple(files[n] for n in sorted(picked)), f"{len(picked)} files held out", True
        )
    first, second, count = [], [], 0
    for number, path in enumerate(files):
        arrays = read_npz(path)
        samples = {array.shape[0] if array.ndim else 0 for array in arrays.values()}
        if len(samples) != 1 or min(samples) < LEAST_SAMPLES:
            return Split(
                tuple(inputs),
                tuple(inputs),
                "the inputs of the search: too few samples to hold some out",
                False,
            )
        total = samples.pop()
        picked = _picked(total, in_order)
        count += len(picked)
        for name, wanted, collected in (("search", False, first), ("judge", True, second)):
            target = folder / f"{name}-{number}-{path.name}"
            rows = [index for index in range(total) if (index in picked) is wanted]
            np.savez(target, **{key: array[rows] for key, array in arrays.items()})
            collected.append(target)
    return Split(tuple(first), tuple(second), f"{count} samples held out", True)


def _picked(total: int, in_order: bool) -> set[int]:
    count = max(1, total // EVERY)
    if in_order:
        return set(range(total - count, total))
    return set(range(EVERY - 1, total, EVERY)) or {total - 1}
