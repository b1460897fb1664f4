"""What changes of a model do to its outputs on real inputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tfl_rewrite.calibration.collect import Observer
from tfl_rewrite.calibration.probe import Call, Probe
from tfl_rewrite.calibration.trials import Output, outputs_of
from tfl_rewrite.errors import UnsupportedError
from tfl_rewrite.files.source import Source
from tfl_rewrite.interpreter.interface import TensorFacts
from tfl_rewrite.interpreter.worker import ModelFailed
from tfl_rewrite.judge.compare import compared
from tfl_rewrite.judge.settings import CHANNEL_SLACK_DB, Judging, Tolerance
from tfl_rewrite.judge.tally import OutputTally
from tfl_rewrite.model import dtypes
from tfl_rewrite.model.ir import Model, Tensor
from tfl_rewrite.weights.rounders import Simulate
from tfl_rewrite.work import Progress, Stage

MEASURING = "measuring what rounding does to outputs"

MOST_CALLS = 16
"""Of which the outputs are compared; they lie evenly among all."""

Float64 = npt.NDArray[np.float64]
Array = npt.NDArray[Any]


class Noises(Observer[Float64]):
    """Compares outputs of changed copies of a model with its own.

    Args:
        judging, progress: See :class:`Observer`.
        inside: Whether what goes into a last SOFTMAX counts as one more output, less its mean.
    """

    def __init__(self, judging: Judging, progress: Progress | None = None, *, inside: bool = False) -> None:
        super().__init__(judging, progress)
        self._inside = inside

    def of(self, model: Model, changes: Sequence[Simulate]) -> Float64:
        """Returns the noise of each output over its signal, sums over samples, as the judge counts it.

        The channel of an output that keeps least counts where it misses its own bound by more.

        Args:
            model: With float weights.
            changes: What makes the copies.

        Returns:
            Float64 ``[changes, outputs]``; infinite where the copy does not run, or gives no number.

        Raises:
            UnsupportedError: The model does not run.
        """
        found: list[list[float]] = []

        def look(_: Source, probe: Callable[[Simulate | None], Probe]) -> None:
            first = probe(None)
            inside = [item for item in outputs_of(first.model) if item.scores and self._inside]
            calls = _spread(first.calls(self.steps))
            kept: dict[int, list[Array]] = {}
            for number in sorted({call.subgraph for call in calls}):
                kept.update(first.values_of(number, _told(first, number, inside), calls))
            stage = Stage(MEASURING, len(changes), self.progress)
            for change in changes:
                tallies = _tallied(first, first.again(change), calls, kept, inside)
                found.append([_noise(tally, self.judging.tolerance) for tally in tallies])
                stage.tick(1)

        self.reasons.clear()
        self.observe(model, [0], look)
        if len(found) < len(changes):
            raise UnsupportedError(
                self.reasons[0],
                remedy="check --inputs; 'tfl-rewrite doctor' tells what is wrong with a model",
            )
        return np.array(found).reshape(len(changes), -1)


def _spread(calls: Sequence[Call]) -> list[Call]:
    count = min(len(calls), MOST_CALLS)
    return [calls[number * len(calls) // count] for number in range(count)]


def _told(probe: Probe, number: int, inside: Sequence[Output]) -> list[Tensor]:
    """Returns the outputs of a subgraph, and behind them the scores that some are made of."""
    places = [item.scores for item in inside if item.subgraph == number]
    scores = [probe.operator(place).inputs[0] for place in places if place is not None]
    return [*probe.model.subgraphs[number].outputs, *(tensor for tensor in scores if tensor is not None)]


def _tallied(
    first: Probe,
    changed: Probe,
    calls: Sequence[Call],
    kept: dict[int, list[Array]],
    inside: Sequence[Output],
) -> Iterator[OutputTally | None]:
    """Yields the sums of each output, and of scores behind them; None where the copy does not run."""
    for number in sorted({call.subgraph for call in calls}):
        outputs, after = (_told(probe, number, inside) for probe in (first, changed))
        count = len(first.model.subgraphs[number].outputs)
        tallies = [
            OutputTally(_facts(tensor), signature=None, position=position)
            for position, tensor in enumerate(outputs)
        ]
        try:
            for at, arrays in changed.values_of(number, after, calls):
                for tally, before, now in zip(tallies, kept[at], arrays, strict=True):
                    if tally.position >= count:
                        # A softmax goes by differences.
                        before, now = (each - each.mean(axis=-1, keepdims=True) for each in (before, now))
                    tally.add(before, now)
        except ModelFailed:
            yield from [None] * len(tallies)
            continue
        yield from tallies


def _facts(tensor: Tensor) -> TensorFacts:
    kind = np.dtype(dtypes.BY_VALUE[tensor.dtype].numpy).name
    shape = tensor.shape or ()
    return TensorFacts(tensor.name, tensor.name, kind, shape, tensor.signature or shape)


def _noise(tally: OutputTally | None, tolerance: Tolerance) -> float:
    """Returns noise over signal of an output, or of its worst channel less the slack that this has."""
    if tally is None:
        return math.inf
    judged = compared(tally, tolerance)
    if judged.snr_db is None:
        return 0.0 if judged.passed else math.inf
    if judged.nonfinite_mismatches:
        return math.inf
    worst = judged.snr_db
    if judged.channel is not None and tolerance.min_channel_snr is not None:
        worst = min(worst, judged.channel.snr_db + CHANNEL_SLACK_DB)
    return float(10.0 ** (-worst / 10.0))
