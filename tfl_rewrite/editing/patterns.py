"""Small graphs of operators as data, matched from the last operator back.

A pattern is made of :class:`Op`, :class:`Value`, :class:`Constant` and :class:`Either`. It matches where the
operators inside it are nobody else's: each of their outputs is read by operators of the match alone, is no
output or argument of a signature, keeps no state, and is made once. What two operands commute to is found by
trying both orders (:attr:`OperatorRow.commutes`).

What takes the place of what matches is said in :mod:`tfl_rewrite.editing.replacements`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from tfl_rewrite.editing.shapes import Shapes
from tfl_rewrite.kernels.operands import constant_values, stored_constant
from tfl_rewrite.kernels.operators import OperatorRow
from tfl_rewrite.kernels.table import row_of
from tfl_rewrite.model.graph import Graph
from tfl_rewrite.model.ir import Model, Operator, SubGraph, Tensor

Array = npt.NDArray[Any]

CLOSE = 1e-6
"""How far, relative to it, a constant may be from the number that a pattern asks for: float32 and no less."""

FLOATS, _HALF = ("FLOAT32",), "FLOAT16"
INTEGERS = ("INT32", "INT64")


@dataclass(frozen=True, slots=True)
class Value:
    """Any tensor, captured by its name; wherever the name stands in a pattern, it is the same tensor."""

    name: str


@dataclass(frozen=True, slots=True)
class Constant:
    """A constant, captured by its name if it has one; float16 is expanded.

    Attributes:
        name: Of the capture; empty for none.
        near: The one number that it must hold, whatever its rank; None for any content.
        types: Names in ``TensorType`` that it may have: floats, or :data:`INTEGERS` for axes, indices, pads.
    """

    name: str = ""
    near: float | None = None
    types: tuple[str, ...] = FLOATS


@dataclass(frozen=True, slots=True)
class Op:
    """An operator with one output.

    Attributes:
        kinds: Rows of the operators that it may be; a text is the name of a custom operator.
        inputs: What its operands are, in order; those that commute in any.
        name: Of the capture; empty for none.
        options: What its options must be.
        types: Names in ``TensorType`` that its output may have; empty for any.
        activates: Whether it may have a fused activation.
        more: Whether it may have more inputs.
    """

    kinds: tuple[OperatorRow | str, ...]
    inputs: tuple[Part, ...]
    name: str = ""
    options: Mapping[str, object] = field(default_factory=dict)
    types: tuple[str, ...] = ("FLOAT32",)
    activates: bool = False
    more: bool = False


@dataclass(frozen=True, slots=True)
class Either:
    """The first of some patterns that leads to a match."""

    choices: tuple[Part, ...]


Part = Value | Constant | Op | Either


def op(kind: OperatorRow | str, *inputs: Part, **facts: Any) -> Op:
    """Returns an operator of one kind; ``facts`` are further fields of :class:`Op`.

    Example:
        >>> from tfl_rewrite.editing.patterns import Value, op
        >>> from tfl_rewrite.kernels.table import NEG, RELU
        >>> negative_part = op(NEG, op(RELU, op(NEG, Value("x"))))
    """
    return Op((kind,), inputs, **facts)


@dataclass(frozen=True, slots=True)
class Match:
    """Operators of a model that a pattern matches.

    Attributes:
        subgraph: Theirs.
        operators: All of them in the order of execution; the last one gives out what the match computes.
        tensors: What values and constants of the pattern are, by name.
        nodes: What operators of the pattern are, by name.
        arrays: What constants hold, of their shape, by name.
        numbers: What all constants of floats hold, with a name or without one.
        shapes: What is known of shapes, and of who makes and reads what, as it was.
    """

    subgraph: SubGraph
    operators: tuple[Operator, ...]
    tensors: Mapping[str, Tensor]
    nodes: Mapping[str, Operator]
    arrays: Mapping[str, Array]
    numbers: tuple[Array, ...]
    shapes: Shapes

    @property
    def output(self) -> Tensor:
        """What it computes."""
        output = self.operators[-1].outputs[0]
        assert output is not None
        return output

    @property
    def graph(self) -> Graph:
        """Who makes and reads what, as it was."""
        return self.shapes.graph


@dataclass(frozen=True, slots=True)
class _Found:
    """What has been matched so far."""

    operators: Mapping[int, Operator] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    nodes: Mapping[str, Operator] = field(default_factory=dict)
    arrays: Mapping[str, Array] = field(default_factory=dict)
    numbers: tuple[Array, ...] = ()


class Matcher:
    """Looks for patterns in a model as it is.

    Example:
        >>> from tfl_rewrite.editing.patterns import Matcher, Value, op
        >>> from tfl_rewrite.kernels.table import RESHAPE
        >>> model = tfl_rewrite.load("model.tflite")
        >>> pattern = op(RESHAPE, Value("x"), more=True)
        >>> matcher = Matcher(model)
        >>> subgraph = model.subgraphs[0]
        >>> found = [matcher.match(pattern, subgraph, item) for item in subgraph.operators]
        >>> [item.tensors["x"].shape for item in found if item is not None]
        [(1, 4, 4, 64)]
    """

    def __init__(self, model: Model) -> None:
        self.shapes = Shapes.of(model)
        self.graph = self.shapes.graph

    def match(self, pattern: Op, subgraph: SubGraph, operator: Operator) -> Match | None:
        """Returns how a pattern ends in an operator, or None where it does not."""
        for found in self._operator(pattern, operator, _Found()):
            if self._is_closed(found, operator):
                rest = set(found.operators)
                ordered = tuple(item for item in subgraph.operators if id(item) in rest)
                captured = found.tensors, found.nodes, found.arrays, found.numbers
                return Match(subgraph, ordered, *captured, self.shapes)
        return None

    def values(self, tensor: Tensor, types: tuple[str, ...] = FLOATS) -> Array | None:
        """Returns what a constant of some types holds, of its shape; None for others.

        Float16 behind DEQUANTIZE is one of floats.
        """
        stored = stored_constant(tensor, self.graph) if tensor.dtype_name in types else None
        found = None if stored is None else constant_values(stored, *types, _HALF)
        if stored is None or found is None:
            return None
        return (found if stored is tensor else found.astype(np.float32)).reshape(stored.shape or ())

    def _operator(self, pattern: Op, operator: Operator, found: _Found) -> Iterator[_Found]:
        if not _fits(pattern, operator):
            return
        known = found.nodes.get(pattern.name) if pattern.name else None
        if known is not None and known is not operator:
            return
        nodes = {**found.nodes, pattern.name: operator} if pattern.name else found.nodes
        found = replace(found, operators={**found.operators, id(operator): operator}, nodes=nodes)
        orders = [operator.inputs]
        if row_of(operator).commutes and len(operator.inputs) == 2:
            orders.append(operator.inputs[::-1])
        for order in orders:
            yield from self._inputs(list(zip(pattern.inputs, order, strict=False)), found)

    def _inputs(self, pairs: Sequence[tuple[Part, Tensor | None]], found: _Found) -> Iterator[_Found]:
        if not pairs:
            yield found
            return
        (part, tensor), *rest = pairs
        if tensor is not None:
            for each in self._tensor(part, tensor, found):
                yield from self._inputs(rest, each)

    def _tensor(self, part: Part, tensor: Tensor, found: _Found) -> Iterator[_Found]:
        if isinstance(part, Either):
            for choice in part.choices:
                yield from self._tensor(choice, tensor, found)
        elif isinstance(part, Op):
            maker = self.graph.maker_of(tensor)
            if maker is not None:
                yield from self._operator(part, maker, found)
        else:
            known = found.tensors.get(part.name) if part.name else None
            if known is not None and known is not tensor:
                return
            if isinstance(part, Constant):
                values = self.values(tensor, part.types)
                if values is None or not _is_near(values, part.near):
                    return
                if part.types == FLOATS:
                    found = replace(found, numbers=(*found.numbers, values))
                if not part.name:
                    yield found
                    return
                found = replace(found, arrays={**found.arrays, part.name: values})
            yield replace(found, tensors={**found.tensors, part.name: tensor})

    def _is_closed(self, found: _Found, last: Operator) -> bool:
        """Whether what lies inside is nobody else's."""
        for operator in found.operators.values():
            operands = [*operator.inputs, *operator.outputs, *operator.intermediates]
            if any(item is not None and item.is_variable for item in operands):
                return False
            (output,) = operator.outputs
            assert output is not None
            if not self.shapes.is_settled(output):
                return False
            if operator is last:
                continue
            if id(output) in self.graph.exposed or id(output) in self.graph.given:
                return False
            if any(id(use.operator) not in found.operators for use in self.graph.uses_of(output)):
                return False
        return True


def _fits(pattern: Op, operator: Operator) -> bool:
    kind = row_of(operator) if operator.code.custom is None else operator.code.custom
    if not any(kind is item if isinstance(item, OperatorRow) else kind == item for item in pattern.kinds):
        return False
    missing = len(pattern.inputs) - len(operator.inputs)
    if len(operator.outputs) != 1 or missing > 0 or (missing and not pattern.more):
        return False
    output = operator.outputs[0]
    if output is None or (pattern.types and output.dtype_name not in pattern.types):
        return False
    if not pattern.activates and operator.option("fused_activation_function"):
        return False
    return all(operator.option(name) == value for name, value in pattern.options.items())


def _is_near(values: Array, near: float | None) -> bool:
    if near is None:
        return True
    return values.size == 1 and bool(abs(float(values.flat[0]) - near) <= CLOSE * abs(near))
