"""What changes of a model do to its outputs on real inputs: one at a time, and all its activations rounded.

For activations (`Trials`) no file is written: a copy of the model rounds them by QUANTIZE and DEQUANTIZE, and
weights stay as they are. The samples are dealt into parts; each part is run on grids that the others gave, so
that all of them judge. What single changes do (`Noises`) is measured likewise, where samples are enough.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from tfl_rewrite.calibration.collect import Observer
from tfl_rewrite.calibration.holdout import keeps_state
from tfl_rewrite.calibration.probe import Array, Call, Place, Probe, places_of
from tfl_rewrite.calibration.ranges import Ranges
from tfl_rewrite.errors import UnsupportedError
from tfl_rewrite.files.source import Source
from tfl_rewrite.interpreter.interface import TensorFacts
from tfl_rewrite.interpreter.worker import ModelFailed
from tfl_rewrite.judge.channels import thinned
from tfl_rewrite.judge.compare import compared
from tfl_rewrite.judge.settings import CHANNEL_SLACK_DB, Judging, Tolerance
from tfl_rewrite.judge.tally import OutputTally
from tfl_rewrite.kernels.operators import Squash
from tfl_rewrite.kernels.table import row_of
from tfl_rewrite.model import dtypes
from tfl_rewrite.model.graph import Graph
from tfl_rewrite.model.ir import Model, Tensor
from tfl_rewrite.options.frozen import frozen
from tfl_rewrite.weights.rounders import Measure, Simulate, Simulated
from tfl_rewrite.work import Progress, Stage

MOST_CALLS = 16
"""Of each entry point; more cost time and hardly change what is better."""

SMALL_NBYTES = 4 << 20
"""Of a model whose samples come in four parts; those of a larger one, which take longer, in two."""

_MOST_DB = 150.0


@frozen
class Output:
    """A float output of a subgraph.

    Attributes:
        subgraph: Its position.
        position: Among the outputs.
        scores: The operator that makes it of scores, where one does: the samples that it is undecided about
            settle its error, and there are few of those; the error of the scores tells of all.
    """

    subgraph: int
    position: int
    scores: Place | None


_Sums = tuple[float, float]
"""Squares of what is wanted, and of what is missed."""


class Trials(Observer[float]):
    """Measures simulated models; see :meth:`tfl_rewrite.weights.rounders.Activations.measured`."""

    def of(self, model: Model, ranges: Ranges, use: Callable[[Measure], None]) -> None:
        """Gives somebody what measures; does nothing where samples are too few, or the model does not run."""

        def look(source: Source, probe: Callable[[Simulate | None], Probe]) -> None:
            first = probe(None)
            outputs = outputs_of(first.model)
            calls = _thinned(model, list(enumerate(first.calls(self.steps))))
            parts = _parts(model, calls, 4 if source.nbytes < SMALL_NBYTES else 2)
            if len(parts) < 2 or not outputs:
                return
            wanted = [_run(first, outputs, part) for part in parts]

            def measure(simulated: Simulated) -> float:
                sums: dict[tuple[int, int, int], _Sums] = {}
                for part, expected in zip(parts, wanted, strict=True):
                    held = {number for number, _ in part}
                    copy = first.again(simulated(ranges.of(model, without=held)))
                    try:
                        found = _run(copy, outputs, part)
                    except ModelFailed:
                        return -math.inf
                    _add(sums, expected, found)
                return _lowest(sums)

            use(measure)

        self.observe(model, [0], look)


def kept_db(probe: Probe, copy: Probe, calls: Sequence[Call]) -> float:
    """Returns what a copy of a model keeps of its lowest output, in dB; least where it does not run.

    Args:
        probe: The model.
        copy: Run by another process.
        calls: Some of many are looked at.
    """
    outputs, part = outputs_of(probe.model), list(enumerate(calls))[:: -(-len(calls) // MOST_CALLS)]
    sums: dict[tuple[int, int, int], _Sums] = {}
    try:
        _add(sums, _run(probe, outputs, part), _run(copy, outputs, part))
    except ModelFailed:
        return -math.inf
    return _lowest(sums)


_Values = dict[tuple[int, int, int], list[Array]]
"""By output (:class:`Output`) and 0 for itself, 1 for the scores: what each call gives."""


def outputs_of(model: Model) -> list[Output]:
    """Returns the float outputs of all subgraphs, with the scores that they are made of."""
    graph, places = Graph.of(model), places_of(model)
    found = []
    for number, subgraph in enumerate(model.subgraphs):
        for position, tensor in enumerate(subgraph.outputs):
            if tensor.dtype != dtypes.FLOAT32.value:
                continue
            maker = graph.maker_of(tensor)
            while maker is not None and row_of(maker).reshapes and maker.inputs[0] is not None:
                maker = graph.maker_of(maker.inputs[0])
            decided = maker is not None and row_of(maker).squashes is Squash.ROWS
            found.append(Output(number, position, places[id(maker)] if decided else None))
    return found


_Numbered = Sequence[tuple[int, Call]]
"""Calls with their numbers among all."""


def _thinned(model: Model, calls: _Numbered) -> list[tuple[int, Call]]:
    """Returns some of many calls of each subgraph: the first where they follow each other."""
    kept: list[tuple[int, Call]] = []
    for entered in sorted({call.subgraph for _, call in calls}):
        mine = [item for item in calls if item[1].subgraph == entered]
        kept += mine[:MOST_CALLS] if keeps_state(model) else mine[:: -(-len(mine) // MOST_CALLS)]
    return kept


def _parts(model: Model, calls: _Numbered, count: int, least: int = 2) -> list[list[tuple[int, Call]]]:
    """Deals the calls of each subgraph that has so many; in order where they follow each other."""
    in_order = keeps_state(model)
    parts: list[list[tuple[int, Call]]] = [[] for _ in range(count)]
    for entered in sorted({call.subgraph for _, call in calls}):
        mine = [item for item in calls if item[1].subgraph == entered]
        for position, item in enumerate(mine if len(mine) >= least else ()):
            parts[position * count // len(mine) if in_order else position % count].append(item)
    return [part for part in parts if part]


def _run(probe: Probe, outputs: Sequence[Output], part: Sequence[tuple[int, Call]]) -> _Values:
    """Returns the outputs, and the scores behind them, of some calls."""
    found: _Values = {}
    for entered in sorted({call.subgraph for _, call in part}):
        tensors: dict[tuple[int, int, int], Tensor] = {}
        for item in outputs:
            if item.subgraph == entered:
                tensors[item.subgraph, item.position, 0] = probe.model.subgraphs[entered].outputs[
                    item.position
                ]
                scores = None if item.scores is None else probe.operator(item.scores).inputs[0]
                tensors |= {(item.subgraph, item.position, 1): scores} if scores is not None else {}
        calls = [call for _, call in part]
        for _, values in probe.values_of(entered, list(tensors.values()), calls):
            for key, array in zip(tensors, values, strict=True):
                found.setdefault(key, []).append(array)
    return found


def _add(sums: dict[tuple[int, int, int], _Sums], expected: _Values, found: _Values) -> None:
    for key, arrays in expected.items():
        for one, other in zip(arrays, found[key], strict=True):
            wanted, got = one.astype(np.float64), other.astype(np.float64)
            if key[2]:
                # A softmax goes by differences.
                wanted, got = (each - each.mean(axis=-1, keepdims=True) for each in (wanted, got))
            signal, noise = sums.get(key, (0.0, 0.0))
            sums[key] = signal + float(np.sum(wanted**2)), noise + float(np.sum((wanted - got) ** 2))


def _lowest(sums: dict[tuple[int, int, int], _Sums]) -> float:
    """Returns the ratio of the worst output, in dB; the mean of both, where it is made of scores."""
    ratios: dict[tuple[int, int], list[float]] = {}
    for (subgraph, position, _), (signal, noise) in sums.items():
        if signal > 0:
            ratio = -math.inf if not math.isfinite(noise) else _MOST_DB
            if 0 < noise < math.inf:
                ratio = min(_MOST_DB, 10 * math.log10(signal / noise))
            ratios.setdefault((subgraph, position), []).append(ratio)
    return min((sum(found) / len(found) for found in ratios.values()), default=_MOST_DB)


MEASURING = "measuring what rounding does to outputs"

LEAST_CALLS = 2
"""Of which the outputs are compared, and :data:`MOST_CALLS` at most; they lie evenly among all."""

LEAST_DEALT = 5
"""Calls of a subgraph; fewer are measured on grids that they gave themselves, for what one or two others show
is far less than all of them do."""

FEW_CHANGES = 4
"""So many are measured on :data:`MOST_PARTS` parts of the calls; more, or those of a large model, on two."""
MOST_PARTS = 4

MOST_ELEMENTS = 25e9
"""That all calls of all changes give: about a minute. Beyond that, fewer calls are compared. Measured: 0.1 s
for a call of 45 million elements, of a model with nearly 500 operators."""

Float64 = npt.NDArray[np.float64]


class Noises(Observer[Float64]):
    """Compares outputs of changed copies of a model with its own, calls in sequence as for the judge.

    Args:
        judging, progress: See :class:`Observer`.
        inside: Whether what goes into a last SOFTMAX counts as one more output, less its mean.
    """

    in_sequence = True

    def __init__(self, judging: Judging, progress: Progress | None = None, *, inside: bool = False) -> None:
        super().__init__(judging, progress)
        self._inside = inside

    def of(
        self, model: Model, ranges: Ranges, changes: Sequence[Simulated], *, apart: bool = True
    ) -> Float64:
        """Returns the noise of each output over its signal, sums over samples, as the judge counts it.

        The channel of an output that keeps least counts where it misses its own bound by more.

        Args:
            model: With float weights.
            ranges: Of its tensors.
            changes: What makes the copies.
            apart: Where there are samples enough, each is measured on ranges that it is not among: what fits
                the samples at hand need not fit others.

        Returns:
            Float64 ``[changes, outputs]``; infinite where the copy does not run, or gives no number.

        Raises:
            UnsupportedError: The model does not run.
        """
        found: list[list[float]] = []

        def look(source: Source, probe: Callable[[Simulate | None], Probe]) -> None:
            first = probe(None)
            in_sequence = first.in_sequence and keeps_state(model)
            inside = [item for item in outputs_of(first.model) if item.scores and self._inside]
            given = sum(tensor.elements for _, tensor in first.model.tensors() if not tensor.is_constant)
            most = int(MOST_ELEMENTS / max(1, given * len(changes)))
            numbered = list(enumerate(first.calls(self.steps)))
            calls = _some(model, numbered, min(max(most, LEAST_CALLS), MOST_CALLS))
            kept: dict[int, list[Array]] = {}
            for number in sorted({call.subgraph for _, call in calls}):
                values = _values(first, number, _told(first, number, inside), calls)
                kept |= {at: [thinned(array).copy() for array in arrays] for at, arrays in values}
            is_quick = len(changes) <= FEW_CHANGES and source.nbytes < SMALL_NBYTES
            count = (MOST_PARTS if is_quick else 2) if apart else 0
            dealt = _dealt(model, numbered, calls, count)
            parts = [
                (ranges.of(model, without={number for number, _ in part} if held else ()), part)
                for held, part in dealt
            ]
            stage = Stage(MEASURING, len(changes), self.progress)
            for change in changes:
                tallies = _Tallies(first, inside, calls)
                for seen, part in parts:
                    # What a sequence keeps in variables comes from all calls before.
                    before = [item for item in calls if item[0] <= part[-1][0]] if in_sequence else part
                    tallies.add(first.again(change(seen)), before, part, kept)
                found.append([_noise(tally, self.judging.tolerance) for tally in tallies.all])
                stage.tick(1)

        self.reasons.clear()
        self.observe(model, [0], look)
        if len(found) < len(changes):
            raise UnsupportedError(
                self.reasons[0],
                remedy="check --inputs; 'tfl-rewrite doctor' tells what is wrong with a model",
            )
        return np.array(found).reshape(len(changes), -1)


def _some(model: Model, calls: _Numbered, most: int) -> _Numbered:
    """Returns so many calls: the first where they follow each other, else evenly among all."""
    if keeps_state(model):
        return calls[:most]
    count = min(len(calls), most)
    return [calls[number * len(calls) // count] for number in range(count)]


def _dealt(
    model: Model, every: _Numbered, some: _Numbered, count: int
) -> list[tuple[bool, list[tuple[int, Call]]]]:
    """Deals some of the calls; returns of each part whether its calls have grids that others gave.

    Args:
        every: All calls.
        some: Those to deal.
        count: Into so many parts; 0 for one whose calls have grids that all gave.
    """
    if not count:
        return [(False, list(some))]
    totals = Counter(call.subgraph for _, call in every)
    many = [item for item in some if totals[item[1].subgraph] >= LEAST_DEALT]
    few = [item for item in some if totals[item[1].subgraph] < LEAST_DEALT]
    return [*((True, part) for part in _parts(model, many, count, 1)), *([(False, few)] if few else [])]


def _values(
    probe: Probe, number: int, tensors: Sequence[Tensor], calls: _Numbered
) -> Iterator[tuple[int, list[Array]]]:
    """Yields what tensors of a subgraph hold, with the number of the call among all."""
    for at, arrays in probe.values_of(number, tensors, [call for _, call in calls]):
        yield calls[at][0], arrays


def _told(probe: Probe, number: int, inside: Sequence[Output]) -> list[Tensor]:
    """Returns the outputs of a subgraph, and behind them the scores that some are made of."""
    places = [item.scores for item in inside if item.subgraph == number]
    scores = [probe.operator(place).inputs[0] for place in places if place is not None]
    return [*probe.model.subgraphs[number].outputs, *(tensor for tensor in scores if tensor is not None)]


class _Tallies:
    """The sums of each output of the subgraphs that calls enter, and of scores behind them."""

    def __init__(self, first: Probe, inside: Sequence[Output], calls: _Numbered) -> None:
        self._inside = inside
        self._found: dict[int, list[OutputTally | None]] = {
            number: [
                OutputTally(_facts(tensor), signature=None, position=position)
                for position, tensor in enumerate(_told(first, number, inside))
            ]
            for number in sorted({call.subgraph for _, call in calls})
        }

    @property
    def all(self) -> Iterator[OutputTally | None]:
        """Each, None where a copy did not run."""
        return itertools.chain.from_iterable(self._found.values())

    def add(self, changed: Probe, calls: _Numbered, wanted: _Numbered, kept: dict[int, list[Array]]) -> None:
        """Compares what a copy gives with what is kept of the model.

        Args:
            changed: The copy.
            calls: What to run.
            wanted: Those of them that are compared.
            kept: What the model gives, by number of the call.
        """
        compared = {number for number, _ in wanted}
        for number in sorted({call.subgraph for _, call in calls}):
            tallies, count = self._found[number], len(changed.model.subgraphs[number].outputs)
            try:
                for at, arrays in _values(changed, number, _told(changed, number, self._inside), calls):
                    for tally, before, now in zip(tallies, kept[at], map(thinned, arrays), strict=True):
                        if tally is None or at not in compared:
                            continue
                        if tally.position >= count:
                            # A softmax goes by differences.
                            before, now = (each - each.mean(axis=-1, keepdims=True) for each in (before, now))
                        tally.add(before, now)
            except ModelFailed:
                self._found[number] = [None] * len(tallies)


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
