"""A graph of random operators in the making, and values brought into the shapes that operators take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import numpy as np

from tfl_rewrite.flatbuf.record import INT32, Record, ScalarVector
from tfl_rewrite.model import dtypes
from tfl_rewrite.model.blob import OwnedBlob
from tfl_rewrite.model.ir import (
    Buffer,
    Model,
    Operator,
    OperatorCode,
    SubGraph,
    Tensor,
    new_record,
    operator_number,
    schema,
)

Array = np.ndarray[Any, Any]
_TYPES = {np.dtype(row.numpy): row.value for row in dtypes.BY_VALUE.values() if row.numpy}
SAME = 0
"""Padding that keeps the size."""


class Net:
    """A model in the making. Every choice is the given random source's.

    Args:
        random: The source.
        smooth: Leave out what turns a small error into a large one: comparisons and roundings.
    """

    def __init__(self, random: Random, *, smooth: bool = False) -> None:
        self.random = random
        self.smooth = smooth
        self.graph = SubGraph([], [], [], [], "main")
        self.model = Model([], [self.graph], [Buffer()])
        self.numbers = np.random.default_rng(random.getrandbits(32))
        self._constants: dict[int, list[tuple[Array, Tensor]]] = {}

    def tensor(self, shape: Sequence[int], dtype: Any = np.float32, *, variable: bool = False) -> Tensor:
        """Adds a tensor without bytes."""
        name = self.random.choice((f"t{len(self.graph.tensors)}", f"t{len(self.graph.tensors)}", "same", ""))
        made = Tensor(
            name, tuple(shape), _TYPES[np.dtype(dtype)], self.model.buffers[0], is_variable=variable
        )
        if variable or self.random.random() < 0.2:
            made.buffer = Buffer()
            self.model.buffers.append(made.buffer)
        self.graph.tensors.append(made)
        return made

    def constant(self, values: Array) -> Tensor:
        """Adds a constant; one that is there already is often used, or its buffer is, or its bytes are."""
        here = self._constants.setdefault(id(self.graph), [])
        equal = [
            tensor for known, tensor in here if known.dtype == values.dtype and np.array_equal(known, values)
        ]
        choice = self.random.random()
        if equal and choice < 0.5:
            return equal[0]
        made = self.tensor(values.shape, values.dtype)
        made.name = f"c{len(self.graph.tensors)}"
        if equal and choice < 0.75:
            made.buffer = equal[0].buffer
        else:
            made.buffer = Buffer(OwnedBlob(values.tobytes()))
            self.model.buffers.append(made.buffer)
        here.append((values, made))
        return made

    def ints(self, *values: int) -> Tensor:
        """Adds a vector of int32."""
        return self.constant(np.asarray(values, np.int32))

    def weights(self, *shape: int, fan: int = 1) -> Tensor:
        """Adds float weights, sometimes those of an earlier layer of this shape, sometimes as float16."""
        here = self._constants.get(id(self.graph), [])
        again = [tensor for known, tensor in here if known.shape == shape and known.dtype == np.float32]
        if again and self.random.random() < 0.3:
            return self.random.choice(again)
        values = (self.numbers.standard_normal(shape) / np.sqrt(fan)).astype(np.float32)
        if self.random.random() < 0.15:
            half = self.constant(values.astype(np.float16))
            return self.add("DEQUANTIZE", [half], shape, version=3)
        return self.constant(values)

    def add(
        self,
        kind: str,
        inputs: Sequence[Tensor | None],
        shape: Sequence[int],
        *,
        dtype: Any = np.float32,
        table: str | None = None,
        version: int = 1,
        **options: Any,
    ) -> Tensor:
        """Adds an operator with one output."""
        return self.many(kind, inputs, [shape], dtype=dtype, table=table, version=version, **options)[0]

    def many(
        self,
        kind: str,
        inputs: Sequence[Tensor | None],
        shapes: Sequence[Sequence[int]],
        *,
        dtype: Any = np.float32,
        table: str | None = None,
        version: int = 1,
        **options: Any,
    ) -> list[Tensor]:
        """Adds an operator with an output of each shape."""
        outputs = [self.tensor(shape, dtype) for shape in shapes]
        rest, record = new_record("Operator"), None
        if table is not None:
            rest = rest.replace(builtin_options_type=schema().enums["BuiltinOptions"].values[table])
            record = Record(schema().tables[table], dict(options))
        self.graph.operators.append(
            Operator(self.code(kind, version), list(inputs), list(outputs), [], record, rest=rest)
        )
        return outputs

    def code(self, kind: str, version: int) -> OperatorCode:
        """Returns the operator code of a type; added if it is new."""
        number = operator_number(kind)
        for code in self.model.operator_codes:
            if (code.builtin, code.version) == (number, version):
                return code
        self.model.operator_codes.append(OperatorCode(number, None, version))
        return self.model.operator_codes[-1]

    def inside(self, name: str, shapes: Sequence[tuple[Sequence[int], Any]]) -> tuple[SubGraph, list[Tensor]]:
        """Goes on in a new subgraph with such inputs; the caller goes back by setting ``graph``."""
        self.graph = SubGraph([], [], [], [], name)
        self.model.subgraphs.append(self.graph)
        self.graph.inputs = [self.tensor(shape, dtype) for shape, dtype in shapes]
        return self.graph, list(self.graph.inputs)


Step = Callable[[Net, Tensor], Tensor]


def shape_of(value: Tensor) -> tuple[int, ...]:
    """Returns the shape; ``()`` for none."""
    return value.shape or ()


def on_image(step: Step) -> Step:
    """Makes the value an image first."""

    def made(net: Net, x: Tensor) -> Tensor:
        shape = shape_of(x)
        if len(shape) == 4 and shape[0] == 1 and min(shape[1:3]) >= 2:
            return step(net, x)
        resized = sized(net, x, 64)
        return step(net, reshaped(net, resized, (1, 4, 4, 4)))

    return made


def on_matrix(step: Step) -> Step:
    """Makes the value a matrix first."""

    def made(net: Net, x: Tensor) -> Tensor:
        if len(shape_of(x)) == 2:
            return step(net, x)
        return step(net, reshaped(net, sized(net, x, 32), (2, 16)))

    return made


def on_vector(step: Step) -> Step:
    """Makes the value a vector first."""

    def made(net: Net, x: Tensor) -> Tensor:
        count = x.elements
        return step(net, reshaped(net, x, (count,)))

    return made


def reshaped(net: Net, x: Tensor, shape: Sequence[int]) -> Tensor:
    """Gives the value another shape, which the operator reads from a constant or from its options."""
    if net.random.random() < 0.5:
        return net.add("RESHAPE", [x, net.ints(*shape)], shape)
    wanted = ScalarVector.of(INT32, shape)
    return net.add("RESHAPE", [x], shape, table="ReshapeOptions", new_shape=wanted)


def sized(net: Net, x: Tensor, count: int) -> Tensor:
    """Gives a vector of so many elements: a part of the value, or the value again and again."""
    have = x.elements
    flat = reshaped(net, x, (have,))
    if have < count:
        times = -(-count // have)
        flat, have = net.add("TILE", [flat, net.ints(times)], (times * have,)), times * have
    if have == count:
        return flat
    return net.add("SLICE", [flat, net.ints(0), net.ints(count)], (count,))
