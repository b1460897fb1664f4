"""What a model loses by rounding its activations, on samples that the ranges do not come from.

No file is written: a copy of the model rounds its activations by QUANTIZE and DEQUANTIZE, and weights stay as
they are. The samples are dealt into parts; each part is run on grids that the others gave, so that all of
them judge.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tfl_rewrite.calibration.collect import Observer
from tfl_rewrite.calibration.probe import Array, Call, Place, Probe, places_of
from tfl_rewrite.calibration.ranges import Ranges
from tfl_rewrite.files.source import Source
from tfl_rewrite.interpreter.worker import ModelFailed
from tfl_rewrite.kernels.operators import Squash
from tfl_rewrite.kernels.table import row_of
from tfl_rewrite.model import dtypes
from tfl_rewrite.model.graph import Graph
from tfl_rewrite.model.ir import Model, Tensor
from tfl_rewrite.weights.rounders import Measure, Simulate, Simulated

MOST_CALLS = 16
"""Of each entry point; more cost time and hardly change what is better."""

SMALL_NBYTES = 4 << 20
"""Of a model whose samples come in four parts; those of a larger one, which take longer, in two."""

_MOST_DB = 150.0


@dataclass(frozen=True, slots=True)
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
            parts = _parts(model, first.calls(self.steps), 4 if source.nbytes < SMALL_NBYTES else 2)
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


def _parts(model: Model, calls: Sequence[Call], count: int) -> list[list[tuple[int, Call]]]:
    """Deals the calls; in order where the model keeps something from one to the next."""
    in_order = any(tensor.is_variable for _, tensor in model.tensors())
    parts: list[list[tuple[int, Call]]] = [[] for _ in range(count)]
    for entered in sorted({call.subgraph for call in calls}):
        mine = [(number, call) for number, call in enumerate(calls) if call.subgraph == entered]
        mine = mine[:MOST_CALLS] if in_order else mine[:: -(-len(mine) // MOST_CALLS)]
        if len(mine) < 2:
            continue
        for position, item in enumerate(mine):
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
