"""Which tensor of one model is which of another that was rewritten from it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

import numpy as np

from tfl_rewrite.interpreter.interface import Array, Interface, TensorFacts
from tfl_rewrite.interpreter.worker import understood

# Operators that make a weight of a stored constant, not an activation.
_UNPACKING = frozenset(["CAST", "DENSIFY", "DEQUANTIZE", "QUANTIZE", "RESHAPE", "TRANSPOSE"])
# What they give is a handle: reading its value yields rubbish, or ends the process.
HANDLES = frozenset(["VAR_HANDLE", "HASHTABLE"])
# Aligning takes time that grows with the square of the repetitions; longer lists are matched by count alone.
_ALIGN_UP_TO = 4000


@dataclass(frozen=True, slots=True, kw_only=True)
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


@dataclass(frozen=True, slots=True, kw_only=True)
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

    def producers(self) -> dict[int, Node]:
        """For each tensor that an operator gives: that operator."""
        return {tensor: node for node in self.nodes for tensor in node.outputs}


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


# Small enough for the processor's cache, and for sums that no threads are started for.
_PIECE = 1 << 16


class TensorTally:
    """Sums over the samples of one operator output.

    Quantized integers count as the real numbers that they stand for, so that a float and a quantized tensor
    compare. Elements that are not finite on both sides are counted, not measured.
    """

    def __init__(self, before: TensorFacts, after: TensorFacts) -> None:
        self._facts = before, after
        self.power = self.power_after = self.noise = self.dot = self.peak_error = 0.0
        self.elements = self.equal = self.measured = self.nonfinite = 0
        self.shape: tuple[int, ...] | None = None
        self.problem: str | None = None

    @property
    def has_distance(self) -> bool:
        """Whether both sides hold real numbers."""
        return all(is_real(facts) for facts in self._facts)

    def add(self, before: Array, after: Array) -> None:
        """Takes in one sample."""
        self.shape = self.shape or before.shape
        if before.shape != after.shape:
            if _without_ones(before.shape) != _without_ones(after.shape):
                self.problem = f"shape {list(after.shape)} instead of {list(before.shape)}"
                return
            after = after.reshape(before.shape)
        if self.has_distance:
            pieces = zip(real_pieces(before, self._facts[0]), real_pieces(after, self._facts[1]), strict=True)
            for first, second in pieces:
                self._measure(first, second)
        elif before.dtype.kind == after.dtype.kind or {before.dtype.kind, after.dtype.kind} <= set("biu"):
            self.elements += before.size
            self.equal += int(np.count_nonzero(before == after))
        else:
            self.problem = f"{self._facts[1].dtype} instead of {self._facts[0].dtype}"

    def _measure(self, first: Array, second: Array) -> None:
        self.elements += first.size
        finite = np.isfinite(first) & np.isfinite(second)
        if not finite.all():
            same = (np.isnan(first) & np.isnan(second)) | (np.isinf(first) & (first == second))
            self.nonfinite += int(np.count_nonzero(~finite & ~same))
            first, second = first[finite], second[finite]
        if first.size == 0:
            return
        error = first - second
        self.measured += first.size
        with np.errstate(over="ignore", invalid="ignore"):
            self.power += _dot(first, first)
            self.power_after += _dot(second, second)
            self.dot += _dot(first, second)
            self.noise += _dot(error, error)
        self.peak_error = max(self.peak_error, float(np.abs(error).max()))

    @property
    def ratio(self) -> float | None:
        """Noise to signal, in power; None where nothing was measured."""
        if not self.measured:
            return None
        if self.noise == 0:
            return 0.0
        return self.noise / self.power if self.power > 0 else math.inf

    @property
    def cosine(self) -> float | None:
        """Between all values before and after."""
        norms = math.sqrt(self.power) * math.sqrt(self.power_after)
        return self.dot / norms if 0 < norms < math.inf else None


def _dot(one: Array, other: Array) -> float:
    # Not np.dot: its threads wait for each other on a busy machine.
    return float(np.einsum("i,i->", one, other))


def is_real(facts: TensorFacts) -> bool:
    """Whether a tensor holds real numbers, as they are or quantized."""
    return facts.is_quantized or facts.dtype.startswith(("float", "bfloat", "complex"))


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)


def real_pieces(values: Array, facts: TensorFacts) -> Iterator[Array]:
    """The values as float64, flat, some at a time."""
    if values.dtype.kind == "c":
        values = np.ascontiguousarray(values).view(np.dtype(f"f{values.dtype.itemsize // 2}"))
    scales = np.asarray(facts.scales or (1.0,), dtype=np.float64)
    zeros = np.asarray(facts.zero_points or (0,), dtype=np.float64)
    if facts.is_quantized and scales.size > 1 and values.ndim:
        along = [-1 if axis == facts.quantized_dimension else 1 for axis in range(values.ndim)]
        zeros = np.broadcast_to(zeros, scales.shape)
        values = (values.astype(np.float64) - zeros.reshape(along)) * scales.reshape(along)
        scales, zeros = np.ones(1), np.zeros(1)
    elif not facts.is_quantized:
        scales, zeros = np.ones(1), np.zeros(1)
    flat = np.reshape(values, -1)
    for start in range(0, flat.size, _PIECE):
        yield (flat[start : start + _PIECE].astype(np.float64) - zeros[0]) * scales[0]
