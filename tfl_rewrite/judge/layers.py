"""Which operator output of one model is which of another, and where the error enters and grows: as data."""

from __future__ import annotations

import functools
import math
from collections import Counter
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from typing import Any

from tfl_rewrite.interpreter.interface import Interface, TensorFacts
from tfl_rewrite.interpreter.worker import understood
from tfl_rewrite.judge.tally import TensorTally, without_ones
from tfl_rewrite.judge.verdict import JudgeInfo
from tfl_rewrite.options.frozen import frozen
from tfl_rewrite.options.json_data import JsonData

# Operators that make a weight of a stored constant, not an activation.
_UNPACKING = frozenset(["CAST", "DENSIFY", "DEQUANTIZE", "QUANTIZE", "RESHAPE", "TRANSPOSE"])
# What they give is a handle: reading its value yields rubbish, or ends the process.
HANDLES = frozenset(["VAR_HANDLE", "HASHTABLE"])
# Aligning takes time that grows with the square of the repetitions; longer lists are matched by count alone.
_ALIGN_UP_TO = 4000


@frozen(kw_only=True)
class Node:
    """One operator of the primary subgraph.

    Attributes:
        index: Its place in the file, which is the order of execution.
        operator: Its type, or the name of a custom operator.
        inputs: Tensors by number; -1 for an input that is left out.
        outputs: Tensors by number.
    """

    index: int
    operator: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Trace:
    """The primary subgraph of one opened model.

    Attributes:
        tensors: What its operators read and give, by number.
    """

    interface: Interface
    nodes: tuple[Node, ...]
    tensors: dict[int, TensorFacts]

    @classmethod
    def of(cls, interface: Interface, answer: dict[str, Any]) -> Trace:
        """From what the child process tells of a model that it traces.

        Raises:
            ModelFailed: It is no such answer.
        """
        with understood():
            return cls(
                interface=interface,
                nodes=tuple(
                    Node(index=index, operator=operator, inputs=tuple(inputs), outputs=tuple(outputs))
                    for index, (operator, inputs, outputs) in enumerate(answer["operators"])
                ),
                tensors={int(key): TensorFacts.from_dict(facts) for key, facts in answer["tensors"].items()},
            )

    @property
    def inputs(self) -> tuple[int, ...]:
        """Its inputs by number."""
        return tuple(facts.index for facts in self.interface.primary.inputs)

    @property
    def outputs(self) -> tuple[int, ...]:
        """Its outputs by number."""
        return tuple(facts.index for facts in self.interface.primary.outputs)

    @functools.cached_property
    def producers(self) -> dict[int, Node]:
        """For each tensor that an operator gives: that operator."""
        return {tensor: node for node in self.nodes for tensor in node.outputs}

    @functools.cached_property
    def unpacked(self) -> set[int]:
        """Tensors that operators only unpack from constants: weights."""
        given = {*self.inputs, *self.producers}
        found: set[int] = set()
        for node in self.nodes:
            if node.operator in _UNPACKING and node.inputs:
                used = {tensor for tensor in node.inputs if tensor >= 0}
                if all(tensor in found or tensor not in given for tensor in used):
                    found.update(node.outputs)
        return found


@frozen
class Match:
    """An operator output before and after: which of the outputs of each it is.

    Attributes:
        by: ``name`` or ``place``.
    """

    before: Node
    after: Node
    position: int
    after_position: int
    by: str

    @property
    def before_tensor(self) -> int:
        """Of the original, by number."""
        return self.before.outputs[self.position]

    @property
    def after_tensor(self) -> int:
        """Of the rewritten model."""
        return self.after.outputs[self.after_position]


def match_outputs(before: Trace, after: Trace) -> list[Match]:
    """Pairs the operator outputs of two models, in the order in which the first computes them.

    Names that are unique on both sides decide. What has no such name is aligned by the order of the
    operators, their types and the shapes of what they give, between those that names have settled.
    """
    found = _by_name(before, after)
    found += _by_place(before, after, found)
    return sorted(found, key=lambda match: (match.before.index, match.position))


def _by_name(before: Trace, after: Trace) -> list[Match]:
    names_after = _unique_names(after)
    # An output that is converted back keeps its name on the conversion, the operator gets another.
    result = []
    for name, (node, position) in _unique_names(before).items():
        if name in names_after:
            match = Match(node, names_after[name][0], position, names_after[name][1], "name")
            if _may_be_same(before.tensors[match.before_tensor], after.tensors[match.after_tensor]):
                result.append(match)
    return result


def _may_be_same(one: TensorFacts, other: TensorFacts) -> bool:
    """Whether the sizes agree, but for axes of one element; free sizes are known only when it runs."""
    if -1 in one.shape_signature or -1 in other.shape_signature or 0 in (*one.shape, *other.shape):
        return True
    return without_ones(one.shape) == without_ones(other.shape)


def _unique_names(trace: Trace) -> dict[str, tuple[Node, int]]:
    given = [
        (trace.tensors[tensor].tensor, node, position)
        for node in trace.nodes
        for position, tensor in enumerate(node.outputs)
        if tensor in trace.tensors and tensor not in trace.unpacked and node.operator not in HANDLES
    ]
    count = Counter(name for name, *_ in given)
    return {name: (node, position) for name, node, position in given if name and count[name] == 1}


def _by_place(before: Trace, after: Trace, settled: list[Match]) -> list[Match]:
    # Operators with the same key align; one that a name has settled has the same key on both sides only.
    first = _candidates(before, {match.before.index: number for number, match in enumerate(settled)})
    second = _candidates(after, {match.after.index: number for number, match in enumerate(settled)})
    # What is left to be paired: tensors whose value can be read.
    left = before.tensors.keys() - {match.before_tensor for match in settled}
    left_after = after.tensors.keys() - {match.after_tensor for match in settled}
    return [
        Match(node, other, position, position, "place")
        for node, other in _aligned(first, second)
        if node.operator not in HANDLES
        for position, (tensor, counterpart) in enumerate(zip(node.outputs, other.outputs, strict=False))
        if tensor in left and counterpart in left_after
    ]


Key = tuple[object, ...]


def _candidates(trace: Trace, anchors: dict[int, int]) -> list[tuple[Key, Node]]:
    rows: list[tuple[Key, Node]] = []
    for node in trace.nodes:
        shapes = tuple(trace.tensors[tensor].shape for tensor in node.outputs if tensor in trace.tensors)
        settled = node.index in anchors
        rows.append((("settled", anchors[node.index]) if settled else (node.operator, *shapes), node))
    return rows


def _aligned(first: list[tuple[Key, Node]], second: list[tuple[Key, Node]]) -> list[tuple[Node, Node]]:
    keys = [key for key, _ in first], [key for key, _ in second]
    if max(len(first), len(second)) > _ALIGN_UP_TO:
        return _counted(first, second)
    matcher = SequenceMatcher(None, *keys, autojunk=False)
    return [
        (first[block.a + step][1], second[block.b + step][1])
        for block in matcher.get_matching_blocks()
        for step in range(block.size)
    ]


def _counted(first: list[tuple[Key, Node]], second: list[tuple[Key, Node]]) -> list[tuple[Node, Node]]:
    """The n-th of a key with the n-th of the same key, where both sides have as many."""
    ours: dict[Key, list[Node]] = {}
    theirs: dict[Key, list[Node]] = {}
    for rows, side in ((first, ours), (second, theirs)):
        for key, node in rows:
            side.setdefault(key, []).append(node)
    both = [(nodes, theirs.get(key, [])) for key, nodes in ours.items()]
    return [pair for one, other in both if len(one) == len(other) for pair in zip(one, other, strict=True)]


MARKED = 5
"""How many operators are named as those where the ratio falls most."""
EQUAL_DB = 150.0
"""What stands for "equal" where a number is needed: float32 resolves 144 dB."""
# Model Explorer colours a node by the first bound that its value does not exceed.
_COLOURS = ((10.0, "#d73027"), (20.0, "#fc8d59"), (30.0, "#fee08b"), (50.0, "#d9ef8b"), (EQUAL_DB, "#91cf60"))


@frozen(kw_only=True)
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


@frozen(kw_only=True)
class Blame(JsonData):
    """What running both models with all tensors kept showed.

    Attributes:
        failure: Why there is nothing to show, or None.
        layers: In the order in which the original computes them.
        unmatched: Operator outputs of the original that were not compared, as ``index TYPE name``, or with
            the reason; without one, they have no counterpart.
        inserted: Operators of the rewritten file without a counterpart, by type.
        graph: The name under which Model Explorer knows the primary subgraph.
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


def layers_of(first: Trace, second: Trace, matches: list[Match], tallies: list[TensorTally]) -> list[Layer]:
    """The rows, those that add most marked.

    Args:
        first: The original.
        second: The rewritten model.
        matches: Pairs of operator outputs, in the order in which the original computes them.
        tallies: What was measured of each.
    """
    measured = {
        match.before_tensor: tally.ratio
        for match, tally in zip(matches, tallies, strict=True)
        if tally.ratio is not None and tally.problem is None and match.before_tensor not in first.unpacked
    }
    # Noise to signal of what every operator gives; through what was not measured, the worst of what goes in.
    carried: dict[int, float] = {}
    for node in first.nodes:
        worst = max((carried[tensor] for tensor in node.inputs if tensor in carried), default=0.0)
        carried.update({tensor: measured.get(tensor, worst) for tensor in node.outputs})
    layers = []
    for match, tally in zip(matches, tallies, strict=True):
        if match.before_tensor in first.unpacked or tally.problem is not None or not tally.elements:
            continue
        known = [carried[tensor] for tensor in match.before.inputs if tensor in carried]
        layers.append(_layer((first, second), match, tally, max(known, default=0.0)))
    return _ranked(layers)


def _ranked(layers: list[Layer]) -> list[Layer]:
    """With the fall of each, and the rank of those that fall most."""
    ratios = [
        (layer.is_output, layer.snr_db)
        for layer in layers
        if layer.snr_db is not None and math.isfinite(layer.snr_db)
    ]
    outputs = [snr for is_output, snr in ratios if is_output]
    cap = min([*(outputs or [snr for _, snr in ratios]), _CEILING]) + _MARGIN
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


def _layer(traces: tuple[Trace, Trace], match: Match, tally: TensorTally, worst_input: float) -> Layer:
    facts = traces[0].tensors[match.before_tensor]
    other = traces[1].tensors[match.after_tensor]
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
        max_abs_error=tally.max_error if tally.finite else None,
        cosine=tally.cosine,
        equal_share=share,
        nonfinite_mismatches=tally.nonfinite,
        role=role,
        weights=_weights(traces, match),
        is_output=match.before_tensor in traces[0].outputs,
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


def _weights(traces: tuple[Trace, Trace], match: Match) -> str | None:
    """How the types of an operator's constants changed."""
    before, after = _constant_types(traces[0], match.before), _constant_types(traces[1], match.after)
    changed = [
        f"{old} -> {new}"
        for old, new in zip(before, after, strict=False)
        if old is not None and new is not None and new != old
    ]
    return ", ".join(dict.fromkeys(changed)) or None


def _constant_types(trace: Trace, node: Node) -> list[str | None]:
    """For each input its stored type when it is a constant, directly or unpacked by operators."""
    types: list[str | None] = []
    for given in node.inputs:
        tensor, through = given, ""
        while tensor in trace.unpacked:
            through = f" via {trace.producers[tensor].operator}"
            tensor = trace.producers[tensor].inputs[0]
        stored = tensor >= 0 and tensor not in trace.producers and tensor not in trace.inputs
        facts = trace.tensors.get(tensor)
        types.append(f"{facts.dtype}{through}" if stored and facts is not None else None)
    return types
