"""Which tensor of one model is which of another that was rewritten from it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from difflib import SequenceMatcher

from tfl_rewrite.interpreter.interface import TensorFacts
from tfl_rewrite.interpreter.tracing import Node, Trace

# Operators that make a weight of a stored constant, not an activation.
_UNPACKING = frozenset(["CAST", "DENSIFY", "DEQUANTIZE", "QUANTIZE", "RESHAPE", "TRANSPOSE"])
# What they give is a handle: reading its value yields rubbish, or ends the process.
HANDLES = frozenset(["VAR_HANDLE", "HASHTABLE"])
# Aligning takes time that grows with the square of the repetitions; longer lists are matched by count alone.
_ALIGN_UP_TO = 4000


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """An operator output before and after.

    Attributes:
        position: Which of the outputs of ``before`` it is.
        by: ``name`` or ``place``.
    """

    before: Node
    after: Node
    position: int
    before_tensor: int
    after_tensor: int
    by: str


def match_outputs(before: Trace, after: Trace) -> list[Match]:
    """Pairs the operator outputs of two models, in the order in which the first computes them.

    Names that are unique on both sides decide. What has no such name is aligned by the order of the
    operators, their types and the shapes of what they give, between those that names have settled.
    """
    found = _by_name(before, after)
    found += _by_place(before, after, found)
    found.sort(key=lambda match: (match.before.index, match.position))
    return found


def _by_name(before: Trace, after: Trace) -> list[Match]:
    names_after = _unique_names(after)
    # An output that is converted back keeps its name on the conversion, the operator gets another.
    result = []
    for name, (node, position, tensor) in _unique_names(before).items():
        if name not in names_after:
            continue
        other, _, counterpart = names_after[name]
        if not _may_be_same(before.tensors[tensor], after.tensors[counterpart]):
            continue
        result.append(
            Match(
                before=node,
                after=other,
                position=position,
                before_tensor=tensor,
                after_tensor=counterpart,
                by="name",
            )
        )
    return result


def _may_be_same(one: TensorFacts, other: TensorFacts) -> bool:
    """Whether the sizes agree, but for axes of one element; free sizes are known only when it runs."""
    if -1 in one.shape_signature or -1 in other.shape_signature or 0 in (*one.shape, *other.shape):
        return True
    return [size for size in one.shape if size != 1] == [size for size in other.shape if size != 1]


def weight_tensors(trace: Trace) -> set[int]:
    """Tensors that operators only unpack from constants."""
    given = set(trace.inputs) | set(trace.producers())
    found: set[int] = set()
    for node in trace.nodes:
        if node.operator in _UNPACKING and node.inputs:
            used = {tensor for tensor in node.inputs if tensor >= 0}
            if all(tensor in found or tensor not in given for tensor in used):
                found.update(node.outputs)
    return found


def _unique_names(trace: Trace) -> dict[str, tuple[Node, int, int]]:
    weights = weight_tensors(trace)
    given = [
        (trace.tensors[tensor].tensor, node, position, tensor)
        for node in trace.nodes
        for position, tensor in enumerate(node.outputs)
        if tensor in trace.tensors and tensor not in weights and node.operator not in HANDLES
    ]
    count = Counter(name for name, *_ in given)
    return {
        name: (node, position, tensor) for name, node, position, tensor in given if name and count[name] == 1
    }


def _by_place(before: Trace, after: Trace, settled: list[Match]) -> list[Match]:
    # Operators with the same key align; one that a name has settled has the same key on both sides only.
    anchors_before = {match.before.index: number for number, match in enumerate(settled)}
    anchors_after = {match.after.index: number for number, match in enumerate(settled)}
    done_before = {match.before_tensor for match in settled}
    done_after = {match.after_tensor for match in settled}
    first = _candidates(before, anchors_before)
    second = _candidates(after, anchors_after)
    result = []
    for node, other in _aligned(first, second):
        if node.operator in HANDLES:
            continue
        for position, (tensor, counterpart) in enumerate(zip(node.outputs, other.outputs, strict=False)):
            if tensor in done_before or counterpart in done_after:
                continue
            if tensor not in before.tensors or counterpart not in after.tensors:
                continue
            result.append(
                Match(
                    before=node,
                    after=other,
                    position=position,
                    before_tensor=tensor,
                    after_tensor=counterpart,
                    by="place",
                )
            )
    return result


Key = tuple[object, ...]


def _candidates(trace: Trace, anchors: dict[int, int]) -> list[tuple[Key, Node]]:
    rows: list[tuple[Key, Node]] = []
    for node in trace.nodes:
        if node.index in anchors:
            rows.append((("settled", anchors[node.index]), node))
            continue
        shapes = tuple(trace.tensors[tensor].shape for tensor in node.outputs if tensor in trace.tensors)
        rows.append(((node.operator, *shapes), node))
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
    sides: tuple[dict[Key, list[Node]], dict[Key, list[Node]]] = ({}, {})
    for rows, side in zip((first, second), sides, strict=True):
        for key, node in rows:
            side.setdefault(key, []).append(node)
    return [
        pair
        for key, nodes in sides[0].items()
        if len(nodes) == len(sides[1].get(key, ()))
        for pair in zip(nodes, sides[1][key], strict=True)
    ]
