"""Where the error enters and grows: a row for each operator, as data."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

from tfl_rewrite.judge.matching import HANDLES, Match, Node, TensorTally, Trace, weight_tensors
from tfl_rewrite.judge.verdict import JudgeInfo
from tfl_rewrite.options.json_data import JsonData

MARKED = 5
"""How many operators are named as those where the ratio falls most."""
EQUAL_DB = 150.0
"""What stands for "equal" where a number is needed: float32 resolves 144 dB."""
# Model Explorer colours a node by the first bound that its value does not exceed.
_COLOURS = ((10.0, "#d73027"), (20.0, "#fc8d59"), (30.0, "#fee08b"), (50.0, "#d9ef8b"), (EQUAL_DB, "#91cf60"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One operator output of the original, beside its counterpart.

    Attributes:
        operator: Type of the operator in the original.
        index: Its place in the original; ``after_index`` in the rewritten file.
        position: Which of its outputs.
        matched_by: ``name``, or ``place``: order, type and shape.
        snr_db: Of all error up to here, over all samples; None where values are not compared by distance.
        input_snr_db: The least of its inputs; None where none carries an error that was measured.
        added: Noise that the operator adds, as a share of the power of its output: noise-to-signal ratio
            less that of its worst input.
        drop_db: How far the SNR is below that of its worst input; None when that is exact.
        role: ``enters``: the inputs are exact; ``grows``: the ratio is at least 1.5 times as bad (1.8 dB) as
            that of the worst input; ``adds`` less than that; ``carried``: it adds nothing; ``equal``;
            ``differs`` for what has no distance.
        fall_db: The same with both ratios capped 20 dB above that of the worst output: an operator with exact
            inputs falls from there, and what is too little to be heard at the outputs does not count.
        rank: 1 for the one that falls most, up to `MARKED`; else None.
        weights: Types of its constants where they changed, such as ``float32 -> int8``.
        is_output: Of the model.
    """

    index: int
    after_index: int
    operator: str
    position: int
    tensor: str
    after_tensor: str
    matched_by: str
    shape: tuple[int, ...]
    snr_db: float | None
    input_snr_db: float | None
    added: float | None
    drop_db: float | None
    max_abs_error: float | None
    cosine: float | None
    equal_share: float | None
    nonfinite_mismatches: int
    role: str
    weights: str | None = None
    is_output: bool = False
    fall_db: float | None = None
    rank: int | None = None
    note: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Blame(JsonData):
    """What running both models with all tensors kept showed.

    Attributes:
        failure: Why there is nothing to show, or None.
        layers: In the order in which the original computes them.
        unmatched: Operator outputs of the original that were not compared, as ``index TYPE name``, or with
            the reason; without one, they have no counterpart.
        inserted: Operators of the rewritten file without a counterpart, by type.
        graph: The name under which Model Explorer knows the primary subgraph.

    Example:
        >>> found = tfl_rewrite.blame("model.tflite", "new.tflite")
        >>> worst = found.marked()[0]
        >>> worst.role, worst.weights
        ('enters', 'float32 -> int8')
    """

    judge: JudgeInfo | None
    sample_source: str = "made"
    sample_count: int = 0
    failure: str | None = None
    layers: tuple[Layer, ...] = ()
    unmatched: tuple[str, ...] = ()
    inserted: dict[str, int] | None = None
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    graph: str = "main"

    def marked(self) -> list[Layer]:
        """Those where the ratio falls most, the worst first."""
        return sorted((layer for layer in self.layers if layer.rank), key=lambda layer: layer.rank or 0)

    def node_data(self) -> dict[str, Any]:
        """As Model Explorer reads node data: for each operator of the rewritten file the SNR of its output.

        Its adapter for this format numbers nodes as the file does, and calls a graph by the name of its
        subgraph. Of several outputs, the worst counts. Equal outputs have `EQUAL_DB`.
        """
        worst: dict[str, float] = {}
        for layer in self.layers:
            if layer.snr_db is None:
                continue
            value = min(max(layer.snr_db, -EQUAL_DB), EQUAL_DB) if not math.isnan(layer.snr_db) else -EQUAL_DB
            node = str(layer.after_index)
            worst[node] = min(worst.get(node, EQUAL_DB), round(value, 2))
        return {
            self.graph: {
                "name": f"SNR in dB ({EQUAL_DB:g}: equal)",
                "results": {node: {"value": value} for node, value in worst.items()},
                "thresholds": [{"value": bound, "bgColor": colour} for bound, colour in _COLOURS],
            }
        }


# Noise that lies this far below that of the worst output is a hundredth of it: no matter who adds it.
_MARGIN = 20.0
# An output better than this is taken for this good: a saturated SOFTMAX hides noise on the samples at hand.
_CEILING = 40.0
_NOTABLE = 0.5
_GROWS = 1.5


@dataclass(frozen=True, slots=True, kw_only=True)
class _View:
    """A model and what follows from it alone."""

    trace: Trace
    producers: dict[int, Node]
    unpacked: set[int]

    @classmethod
    def of(cls, trace: Trace) -> _View:
        return cls(trace=trace, producers=trace.producers(), unpacked=weight_tensors(trace))


def unmatched_outputs(trace: Trace, matches: list[Match], tallies: list[TensorTally]) -> list[str]:
    """Operator outputs of the original that were not compared, as ``index TYPE name`` or with the reason."""
    paired = {match.before_tensor for match in matches}
    unpacked = weight_tensors(trace)
    texts = [
        f"{node.index} {node.operator} {trace.tensors[tensor].tensor!a}"
        for node in trace.nodes
        for tensor in node.outputs
        if tensor in trace.tensors and tensor not in paired and tensor not in unpacked
        if node.operator not in HANDLES
    ]
    return texts + [
        f"{match.before.index} {match.before.operator} ({tally.problem})"
        for match, tally in zip(matches, tallies, strict=True)
        if tally.problem is not None
    ]


def inserted_operators(trace: Trace, matches: list[Match]) -> dict[str, int]:
    """Operators of the rewritten model that give something and are the counterpart of none, by type."""
    paired = {match.after.index for match in matches}
    lone = (
        node
        for node in trace.nodes
        if node.index not in paired and node.outputs and node.operator not in HANDLES
    )
    return dict(Counter(node.operator for node in lone))


def layers_of(first: Trace, second: Trace, matches: list[Match], tallies: list[TensorTally]) -> list[Layer]:
    """The rows, those that add most marked.

    Args:
        first: The original.
        second: The rewritten model.
        matches: Pairs of operator outputs, in the order in which the original computes them.
        tallies: What was measured of each.
    """
    views = _View.of(first), _View.of(second)
    unpacked = views[0].unpacked
    measured = {
        match.before_tensor: tally.ratio
        for match, tally in zip(matches, tallies, strict=True)
        if tally.ratio is not None and tally.problem is None and match.before_tensor not in unpacked
    }
    carried = _carried(first, measured)
    layers = []
    for match, tally in zip(matches, tallies, strict=True):
        if match.before_tensor in unpacked or tally.problem is not None or not tally.elements:
            continue
        known = [carried[tensor] for tensor in match.before.inputs if tensor in carried]
        layers.append(_layer(views, match, tally, max(known, default=0.0)))
    return _ranked(layers)


def _ranked(layers: list[Layer]) -> list[Layer]:
    """With the fall of each, and the rank of those that fall most."""
    ratios = [layer.snr_db for layer in layers if layer.snr_db is not None and math.isfinite(layer.snr_db)]
    outputs = [
        layer.snr_db
        for layer in layers
        if layer.is_output and layer.snr_db is not None and math.isfinite(layer.snr_db)
    ]
    reference = min(outputs or ratios, default=_CEILING)
    cap = min(reference, _CEILING) + _MARGIN
    fallen = [replace(layer, fall_db=_fall(layer, cap)) for layer in layers]
    order = sorted(
        (at for at, layer in enumerate(fallen) if (layer.fall_db or 0.0) >= _NOTABLE),
        key=lambda at: (-(fallen[at].fall_db or 0.0), at),
    )
    ranks = {at: rank for rank, at in enumerate(order[:MARKED], 1)}
    return [replace(layer, rank=ranks.get(at)) for at, layer in enumerate(fallen)]


def _fall(layer: Layer, cap: float) -> float | None:
    if layer.snr_db is None or math.isnan(layer.snr_db):
        return None
    start = cap if layer.input_snr_db is None else min(cap, layer.input_snr_db)
    return max(0.0, start - min(cap, layer.snr_db))


def _carried(trace: Trace, measured: dict[int, float]) -> dict[int, float]:
    """Noise-to-signal ratio of every tensor that an operator gives; through what was not measured, the worst
    of what goes in."""
    carried: dict[int, float] = {}
    for node in trace.nodes:
        known = [carried[tensor] for tensor in node.inputs if tensor in carried]
        for tensor in node.outputs:
            carried[tensor] = measured.get(tensor, max(known, default=0.0))
    return carried


def _layer(views: tuple[_View, _View], match: Match, tally: TensorTally, worst_input: float) -> Layer:
    facts = views[0].trace.tensors[match.before_tensor]
    other = views[1].trace.tensors[match.after_tensor]
    ratio = tally.ratio
    share = None if tally.has_distance else tally.equal / tally.elements
    if share is not None or ratio is None:
        same = (share is None or share == 1) and not tally.nonfinite
        added, role = None, "equal" if same else "differs"
    else:
        added = max(0.0, ratio - worst_input) if math.isfinite(ratio) else ratio
        role = _role(ratio, worst_input, tally)
    snr = None if ratio is None else _snr(ratio)
    input_snr = None if worst_input == 0 else _snr(worst_input)
    return Layer(
        index=match.before.index,
        after_index=match.after.index,
        operator=match.before.operator,
        position=match.position,
        tensor=facts.tensor,
        after_tensor=other.tensor,
        matched_by=match.by,
        shape=tally.shape or facts.shape,
        snr_db=snr,
        input_snr_db=input_snr,
        added=added,
        drop_db=None if snr is None or input_snr is None else input_snr - snr,
        max_abs_error=tally.peak_error if tally.measured else None,
        cosine=tally.cosine,
        equal_share=share,
        nonfinite_mismatches=tally.nonfinite,
        role=role,
        weights=_weights(views, match),
        is_output=match.before_tensor in views[0].trace.outputs,
        note=None if match.before.operator == match.after.operator else f"by {match.after.operator}",
    )


def _role(ratio: float, worst_input: float, tally: TensorTally) -> str:
    if ratio == 0:
        return "differs" if tally.nonfinite else "equal"
    if worst_input == 0:
        return "enters"
    if ratio >= _GROWS * worst_input:
        return "grows"
    return "adds" if ratio > worst_input else "carried"


def _snr(ratio: float) -> float:
    if ratio == 0:
        return math.inf
    return -10 * math.log10(ratio) if ratio < math.inf else -math.inf


def _weights(views: tuple[_View, _View], match: Match) -> str | None:
    """How the types of an operator's constants changed."""
    before, after = _constant_types(views[0], match.before), _constant_types(views[1], match.after)
    changed = [
        f"{old} -> {new}"
        for old, new in zip(before, after, strict=False)
        if old is not None and new is not None and new != old
    ]
    return ", ".join(dict.fromkeys(changed)) or None


def _constant_types(view: _View, node: Node) -> list[str | None]:
    """For each input its stored type when it is a constant, directly or unpacked by operators."""
    types: list[str | None] = []
    for given in node.inputs:
        tensor, through = given, ""
        while tensor in view.unpacked:
            through = f" via {view.producers[tensor].operator}"
            tensor = view.producers[tensor].inputs[0]
        stored = tensor >= 0 and tensor not in view.producers and tensor not in view.trace.inputs
        facts = view.trace.tensors.get(tensor)
        types.append(f"{facts.dtype}{through}" if stored and facts is not None else None)
    return types
