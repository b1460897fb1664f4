"""Makes files with some constants stored otherwise, and measures them."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tfl_rewrite.errors import TflRewriteError, UnsupportedError
from tfl_rewrite.model.ir import Model
from tfl_rewrite.passes.base import Pass, PassResult, run_passes
from tfl_rewrite.passes.quantize_weights import QuantizeWeights
from tfl_rewrite.passes.weight_changes import WeightChange
from tfl_rewrite.shrinking.goals import Goal, Objective
from tfl_rewrite.shrinking.units import Choice, Float64, assigned, ratio
from tfl_rewrite.storage import load, save
from tfl_rewrite.verification import Judge, Verdict

QUIET = 1e-16
"""Noise that counts as none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A whole file that was made and run.

    Attributes:
        nbytes: Its size; ``deflated`` as a store compresses it, 0 if that was not asked for.
        cost: What the objective counts.
        verdict: Against the original, on the inputs of the search.
        metric: The user's own figure, if there is one.
        shortfall: See :meth:`Goal.shortfall`.
    """

    choice: Choice
    nbytes: int
    deflated: int
    cost: float
    verdict: Verdict
    metric: float | None
    shortfall: float

    @property
    def snr(self) -> float | None:
        """Lowest SNR over the outputs, in dB."""
        return self.verdict.worst_snr()


Metric = Callable[[Path], float]
"""The user's own figure of a file."""


class Trials:
    """Files made from one original, one at a time in the same place.

    Args:
        source: The original.
        before: Passes that lose nothing, run before constants are stored otherwise.
        base: The weight pass, with its rounder.
        after: Passes that lose nothing, run last.
        judge: Of files rewritten from the original.
        folder: For the file.
    """

    def __init__(
        self,
        source: str | os.PathLike[str],
        *,
        before: Sequence[Pass],
        base: QuantizeWeights,
        after: Sequence[Pass],
        judge: Judge,
        folder: Path,
        goal: Goal,
        metric: Metric | None = None,
    ) -> None:
        self._source = source
        self._before = before
        self._base = base
        self._after = after
        self._judge = judge
        self.path = folder / "trial.tflite"
        self._goal = goal
        self._metric = metric
        self.files = 0

    def fresh(self) -> Model:
        """Loads the original and runs the passes that come first."""
        model = load(self._source)
        run_passes(model, self._before)
        return model

    def rounded(self, choice: Choice) -> dict[int, float]:
        """Stores constants otherwise, without writing a file.

        Returns:
            The noise of each buffer's values over their energy, by its position.
        """
        model = self.fresh()
        result = assigned(self._base, choice, model).run(model)
        return {
            change.buffer: ratio(change.snr) for change in result.changes if isinstance(change, WeightChange)
        }

    def noise(self, choice: Choice) -> Float64 | None:
        """Returns the noise over signal of each output with some constants stored otherwise.

        None where such a file cannot be made or does not run.
        """
        model = self.fresh()
        try:
            assigned(self._base, choice, model).run(model)
            save(model, self.path, force=True)
        except TflRewriteError:
            return None
        self.files += 1
        verdict = self._judge.compare(self.path, tolerance=self._goal.tolerance)
        if verdict.status == "unverified":
            raise UnsupportedError(
                f"cannot search, since nothing can be measured: {'; '.join(verdict.reasons)}",
                remedy="use quantize-weights with --dtype or --map instead",
            )
        if any("not run" in reason for reason in verdict.reasons):
            return None
        return noise_of(verdict)

    def write(self, choice: Choice, path: Path) -> None:
        """Makes a file, without running it."""
        model = self.fresh()
        assigned(self._base, choice, model).run(model)
        save(model, path, force=True)

    def measure(self, choice: Choice) -> Measured:
        """Makes the whole file and runs it."""
        model = self.fresh()
        assigned(self._base, choice, model).run(model)
        packing = _last_packing(run_passes(model, self._after))
        nbytes = save(model, self.path, force=True, packing=packing)
        self.files += 1
        verdict = self._judge.compare(self.path, tolerance=self._goal.tolerance)
        metric = self._metric(self.path) if self._metric is not None else None
        deflated = 0
        cost = float(nbytes)
        if self._goal.objective is Objective.DOWNLOAD:
            deflated = len(zlib.compress(self.path.read_bytes(), 9))
            cost = float(deflated)
        return Measured(
            choice=dict(choice),
            nbytes=nbytes,
            deflated=deflated,
            cost=cost,
            verdict=verdict,
            metric=metric,
            shortfall=self._goal.shortfall(verdict, metric),
        )


def noise_of(verdict: Verdict) -> Float64:
    """Returns noise over signal of each output; outputs that are zero in the original count as quiet."""
    found = []
    for item in verdict.outputs:
        if item.nonfinite_mismatches:
            found.append(np.inf)
        elif item.bit_exact or item.snr_db is None or not item.reference_peak:
            found.append(0.0)
        else:
            found.append(ratio(item.snr_db))
    return np.maximum(np.array(found, np.float64), QUIET)


def _last_packing(results: Sequence[PassResult]):  # type: ignore[no-untyped-def]
    return next((result.packing for result in reversed(results) if result.packing is not None), None)
