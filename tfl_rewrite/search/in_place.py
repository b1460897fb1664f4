"""Runs a file with some of its constants rounded, and reads the noise off the verdicts."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from tfl_rewrite.errors import UnsupportedError
from tfl_rewrite.files.store import load
from tfl_rewrite.judge.compare import merged
from tfl_rewrite.judge.judge import Judge
from tfl_rewrite.judge.settings import Judging, Tolerance
from tfl_rewrite.judge.verdict import Verdict
from tfl_rewrite.model.blob import MappedBlob
from tfl_rewrite.numerics.grids import Float64
from tfl_rewrite.weights.grids import Choice, Constant
from tfl_rewrite.weights.payloads import GridPayload
from tfl_rewrite.weights.rounders import Fitting


class Trial:
    """A copy of a file in which constants are replaced in place, and its judge.

    Args:
        path: The copy.
        judge: Of files rewritten from the original.
        offsets: Where the constants lie, by position of their buffers.
        fitting: Chooses levels by other inputs than those that the judge has.
    """

    def __init__(
        self, path: Path, judge: Judge, offsets: Mapping[int, int], fitting: Fitting | None = None
    ) -> None:
        self._path = path
        self._fitting = fitting
        self._judge = judge
        self._offsets = offsets
        self._dirty: dict[int, tuple[Constant, Choice]] = {}
        self.files = 0

    @classmethod
    def of(
        cls,
        source: str | os.PathLike[str],
        name: str,
        folder: Path,
        judging: Judging,
        fitting: Fitting | None = None,
    ) -> Trial:
        """Copies a file."""
        path = folder / f"{name}.tflite"
        shutil.copyfile(source, path)
        path.chmod(0o600)
        offsets = {
            position: buffer.blob.offset
            for position, buffer in enumerate(load(source).buffers)
            if isinstance(buffer.blob, MappedBlob)
        }
        return cls(path, Judge(source, judging), offsets, fitting)

    def close(self) -> None:
        """Ends the processes."""
        self._judge.close()

    def judge(self, chosen: Mapping[int, tuple[Constant, Choice]], tolerance: Tolerance) -> Verdict:
        """Judges the file with these constants rounded and all others as they were.

        Raises:
            UnsupportedError: Nothing can be run.
        """
        with open(self._path, "r+b") as file:
            for position, (item, _) in self._dirty.items():
                if position not in chosen:
                    self._write(file.fileno(), item, item.blob.view())
            for position, made in chosen.items():
                if self._dirty.get(position) != made:
                    self._write(file.fileno(), made[0], GridPayload.of(*made, self._fitting).data())
        self._dirty = dict(chosen)
        self.files += 1
        verdict = self._judge.compare(self._path, tolerance=tolerance)
        if not verdict.measured and verdict.status == "unverified":
            raise UnsupportedError(
                f"cannot search, since nothing can be measured: {'; '.join(verdict.reasons)}",
                remedy="use --steps instead of --min-snr",
            )
        return verdict

    def _write(self, descriptor: int, item: Constant, data: bytes | bytearray | memoryview) -> None:
        os.pwrite(descriptor, data, self._offsets[item.position])


class Trials:
    """Several trials of one file, each on a part of the inputs, judged as one.

    Args:
        each: The trials.
    """

    def __init__(self, each: Sequence[Trial]) -> None:
        self._each = each

    @property
    def files(self) -> int:
        """How many files were run."""
        return sum(trial.files for trial in self._each)

    def close(self) -> None:
        """Ends the processes."""
        for trial in self._each:
            trial.close()

    def judge(self, chosen: Mapping[int, tuple[Constant, Choice]], tolerance: Tolerance) -> Verdict:
        """Judges the file with these constants rounded; see :meth:`Trial.judge`.

        Raises:
            UnsupportedError: Nothing can be run.
        """
        return merged([trial.judge(chosen, tolerance) for trial in self._each], tolerance)


def _judged(verdict: Verdict) -> list[float | None]:
    """Returns the ratio of each output, None where it has none."""
    return [output.snr_db for output in verdict.outputs]


def worst_ratio(verdict: Verdict) -> float:
    """Returns the lowest ratio, between -100 and 200 dB."""
    ratios = [ratio for ratio in _judged(verdict) if ratio is not None]
    return max(-100.0, min([200.0, *ratios]))


def noise_of(verdict: Verdict) -> Float64:
    """Returns the noise of each output relative to its signal."""
    return np.array(
        [
            0.0 if ratio is None else 10.0 ** (-max(-100.0, min(ratio, 200.0)) / 10.0)
            for ratio in _judged(verdict)
        ]
    )
