"""Small models that run: random graphs of many operator types, with loops, shared and variable parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from tfl_rewrite.flatbuf.record import Record, ScalarVector
from tfl_rewrite.flatbuf.schema import INT32
from tfl_rewrite.model import dtypes
from tfl_rewrite.model.blob import MemorySink, OwnedBlob
from tfl_rewrite.model.ir import (
    Buffer,
    Metadata,
    Model,
    Operator,
    OperatorCode,
    Signature,
    SubGraph,
    Tensor,
    new_record,
    operator_number,
    schema,
)
from tfl_rewrite.storage import layout

Array = np.ndarray[Any, Any]
_TYPES = {np.dtype(row.numpy): row.value for row in dtypes.BY_VALUE.values() if row.numpy}
_MOST_ELEMENTS = 512
_SAME, _VALID = 0, 1
_TANH = 4


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
        self._numbers = np.random.default_rng(random.getrandbits(32))
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
        values = (self._numbers.standard_normal(shape) / np.sqrt(fan)).astype(np.float32)
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
            Operator(self._code(kind, version), list(inputs), list(outputs), [], record, rest=rest)
        )
        return outputs

    def _code(self, kind: str, version: int) -> OperatorCode:
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


def _shape(value: Tensor) -> tuple[int, ...]:
    return value.shape or ()


def _plain(kind: str, table: str | None = None, **options: Any) -> Step:
    """An operator of one input whose output has its shape."""
    return lambda net, x: net.add(kind, [x], _shape(x), table=table, **options)


def _of_positive(kind: str) -> Step:
    """The same, where the input must be positive."""

    def step(net: Net, x: Tensor) -> Tensor:
        square = net.add("SQUARE", [x], _shape(x), table="SquareOptions")
        one = net.constant(np.ones(1, np.float32))
        more = net.add("ADD", [square, one], _shape(x), table="AddOptions")
        return net.add(kind, [more], _shape(x))

    return step


def _with_constant(kind: str, table: str | None) -> Step:
    """An operator of the value and a constant: one number, one for each channel, or a whole tensor."""

    def step(net: Net, x: Tensor) -> Tensor:
        shape = _shape(x)
        chosen = net.random.choice(((1,), shape[-1:], shape))
        values = net._numbers.uniform(0.5, 1.5, chosen).astype(np.float32)
        if net.random.random() < 0.4:
            values = np.full(chosen, net.random.choice((0.5, 2.0)), np.float32)
        return net.add(kind, [x, net.constant(values)], shape, table=table)

    return step


def _with_itself(kind: str, table: str | None) -> Step:
    """An operator of the value and another operator's result of the same shape."""

    def step(net: Net, x: Tensor) -> Tensor:
        same = [item for op in net.graph.operators for item in op.outputs if item and item.shape == x.shape]
        floats = [item for item in same if item.dtype == x.dtype]
        return net.add(kind, [x, net.random.choice(floats or [x])], _shape(x), table=table)

    return step


def _reduced(kind: str) -> Step:
    def step(net: Net, x: Tensor) -> Tensor:
        shape = _shape(x)
        axis = net.random.randrange(1, len(shape)) if len(shape) > 1 else 0
        kept = (*shape[:axis], 1, *shape[axis + 1 :])
        return net.add(kind, [x, net.ints(axis)], kept, table="ReducerOptions", keep_dims=True)

    return step


def _image(step: Step) -> Step:
    """Makes the value an image first."""

    def made(net: Net, x: Tensor) -> Tensor:
        shape = _shape(x)
        if len(shape) == 4 and shape[0] == 1 and min(shape[1:3]) >= 2:
            return step(net, x)
        resized = _sized(net, x, 64)
        return step(net, _reshaped(net, resized, (1, 4, 4, 4)))

    return made


def _matrix(step: Step) -> Step:
    """Makes the value a matrix first."""

    def made(net: Net, x: Tensor) -> Tensor:
        if len(_shape(x)) == 2:
            return step(net, x)
        return step(net, _reshaped(net, _sized(net, x, 32), (2, 16)))

    return made


def _flat(step: Step) -> Step:
    def made(net: Net, x: Tensor) -> Tensor:
        count = x.elements
        return step(net, _reshaped(net, x, (count,)))

    return made


def _reshaped(net: Net, x: Tensor, shape: Sequence[int]) -> Tensor:
    if net.random.random() < 0.5:
        return net.add("RESHAPE", [x, net.ints(*shape)], shape)
    wanted = ScalarVector.of(INT32, shape)
    return net.add("RESHAPE", [x], shape, table="ReshapeOptions", new_shape=wanted)


def _sized(net: Net, x: Tensor, count: int) -> Tensor:
    """Gives a vector of so many elements: a part of the value, or the value again and again."""
    have = x.elements
    flat = _reshaped(net, x, (have,))
    if have < count:
        times = -(-count // have)
        flat, have = net.add("TILE", [flat, net.ints(times)], (times * have,)), times * have
    if have == count:
        return flat
    return net.add("SLICE", [flat, net.ints(0), net.ints(count)], (count,))


# -- Layers with weights -------------------------------------------------------------------------------------


def _conv(net: Net, x: Tensor) -> Tensor:
    _, high, wide, channels = _shape(x)
    out = net.random.choice((4, 8))
    size = net.random.choice((1, 2))
    weights = net.weights(out, size, size, channels, fan=size * size * channels)
    bias = net.weights(out, fan=4) if net.random.random() < 0.9 else None
    bias = bias or net.constant(np.zeros(out, np.float32))
    return net.add(
        "CONV_2D",
        [x, weights, bias],
        (1, high, wide, out),
        table="Conv2DOptions",
        padding=_SAME,
        stride_w=1,
        stride_h=1,
        fused_activation_function=net.random.choice((0, 1, 3)),
    )


def _depthwise(net: Net, x: Tensor) -> Tensor:
    shape = _shape(x)
    weights = net.weights(1, 2, 2, shape[3], fan=4)
    return net.add(
        "DEPTHWISE_CONV_2D",
        [x, weights, net.weights(shape[3], fan=4)],
        shape,
        table="DepthwiseConv2DOptions",
        padding=_SAME,
        stride_w=1,
        stride_h=1,
        depth_multiplier=1,
    )


def _transpose_conv(net: Net, x: Tensor) -> Tensor:
    _, high, wide, channels = _shape(x)
    weights = net.weights(4, 2, 2, channels, fan=2 * channels)
    return net.add(
        "TRANSPOSE_CONV",
        [net.ints(1, high, wide, 4), weights, x],
        (1, high, wide, 4),
        table="TransposeConvOptions",
        padding=_SAME,
        stride_w=1,
        stride_h=1,
    )


def _dense(net: Net, x: Tensor) -> Tensor:
    rows, wide = _shape(x)
    out = net.random.choice((8, 16, 24))
    bias = net.weights(out, fan=4) if net.random.random() < 0.7 else None
    return net.add(
        "FULLY_CONNECTED",
        [x, net.weights(out, wide, fan=wide), bias],
        (rows, out),
        table="FullyConnectedOptions",
        fused_activation_function=net.random.choice((0, 1)),
    )


def _matmul(net: Net, x: Tensor) -> Tensor:
    rows, wide = _shape(x)
    adjoint = net.random.random() < 0.5
    weights = net.weights(*((12, wide) if adjoint else (wide, 12)), fan=wide)
    return net.add("BATCH_MATMUL", [x, weights], (rows, 12), table="BatchMatMulOptions", adj_y=adjoint)


def _svdf(net: Net, x: Tensor) -> Tensor:
    rows, wide = _shape(x)
    units, memory = 8, 4
    state = net.tensor((rows, units * memory), variable=True)
    inputs = [x, net.weights(units, wide, fan=wide), net.weights(units, memory, fan=memory), None, state]
    return net.add("SVDF", inputs, (rows, units), table="SVDFOptions", rank=1)


def _rnn(net: Net, x: Tensor) -> Tensor:
    rows, wide = _shape(x)
    state = net.tensor((rows, 8), variable=True)
    inputs = [x, net.weights(8, wide, fan=wide), net.weights(8, 8, fan=8), net.weights(8, fan=8), state]
    return net.add("RNN", inputs, (rows, 8), table="RNNOptions", fused_activation_function=_TANH)


def _lstm(net: Net, x: Tensor) -> Tensor:
    rows, wide = _shape(x)
    sequence = _reshaped(net, x, (1, rows, wide))
    gates = [net.weights(8, wide, fan=wide) for _ in range(4)]
    again = [net.weights(8, 8, fan=8) for _ in range(4)]
    biases = [net.weights(8, fan=8) for _ in range(4)]
    states = [net.tensor((1, 8), variable=True) for _ in range(2)]
    inputs: list[Tensor | None] = [sequence, *gates, *again, None, None, None, *biases, None, None, *states]
    inputs += [None] * 4
    return net.add(
        "UNIDIRECTIONAL_SEQUENCE_LSTM",
        inputs,
        (1, rows, 8),
        table="UnidirectionalSequenceLSTMOptions",
        fused_activation_function=_TANH,
    )


def _embedding(net: Net, x: Tensor) -> Tensor:
    rows = net.ints(*[net.random.randrange(24) for _ in range(3)])
    found = net.add("EMBEDDING_LOOKUP", [rows, net.weights(24, 8, fan=4)], (3, 8))
    mean = net.add("SUM", [_reshaped(net, x, (x.elements,)), net.ints(0)], (), table="ReducerOptions")
    return net.add("ADD", [found, net.add("TANH", [mean], ())], (3, 8), table="AddOptions")


# -- Shapes --------------------------------------------------------------------------------------------------


def _transpose(net: Net, x: Tensor) -> Tensor:
    shape = _shape(x)
    order = list(range(len(shape)))
    net.random.shuffle(order)
    return net.add(
        "TRANSPOSE", [x, net.ints(*order)], [shape[axis] for axis in order], table="TransposeOptions"
    )


def _padded(kind: str) -> Step:
    def step(net: Net, x: Tensor) -> Tensor:
        shape = _shape(x)
        axis = net.random.randrange(len(shape))
        widths = np.zeros((len(shape), 2), np.int32)
        widths[axis] = (1, 0) if shape[axis] > 1 else (0, 0)
        inputs = [x, net.constant(widths)]
        inputs += [net.constant(np.full(1, 0.5, np.float32))] if kind == "PADV2" else []
        table = {"PAD": "PadOptions", "PADV2": "PadV2Options", "MIRROR_PAD": "MirrorPadOptions"}[kind]
        return net.add(
            kind, inputs, [n + int(row.sum()) for n, row in zip(shape, widths, strict=True)], table=table
        )

    return step


def _strided(net: Net, x: Tensor) -> Tensor:
    shape = _shape(x)
    steps = [net.random.choice((1, 2)) for _ in shape]
    made = [-(-size // step) for size, step in zip(shape, steps, strict=True)]
    inputs = [x, net.ints(*[0] * len(shape)), net.ints(*shape), net.ints(*steps)]
    return net.add("STRIDED_SLICE", inputs, made, table="StridedSliceOptions")


def _split(net: Net, x: Tensor) -> Tensor:
    shape = _shape(x)
    axis = next((axis for axis, size in enumerate(shape) if size % 2 == 0), None)
    if axis is None:
        return net.add("ABS", [x], shape)
    half = (*shape[:axis], shape[axis] // 2, *shape[axis + 1 :])
    if net.random.random() < 0.5:
        inputs = [net.constant(np.asarray(axis, np.int32)), x]
        made = net.many("SPLIT", inputs, [half, half], table="SplitOptions", num_splits=2)
    else:
        inputs = [x, net.ints(half[axis], half[axis]), net.constant(np.asarray(axis, np.int32))]
        made = net.many("SPLIT_V", inputs, [half, half], table="SplitVOptions", num_splits=2)
    if net.random.random() < 0.5:
        return net.random.choice(made)
    made.reverse()
    return net.add("CONCATENATION", made, shape, table="ConcatenationOptions", axis=axis)


def _packed(net: Net, x: Tensor) -> Tensor:
    shape = _shape(x)
    other = net.add("NEG", [x], shape, table="NegOptions")
    made = net.add("PACK", [x, other], (2, *shape), table="PackOptions", values_count=2, axis=0)
    if len(shape) >= 4 or net.random.random() < 0.5:
        return net.many("UNPACK", [made], [shape, shape], table="UnpackOptions", num=2, axis=0)[1]
    return made


def _squeezed(net: Net, x: Tensor) -> Tensor:
    shape = _shape(x)
    axis = net.constant(np.asarray(0, np.int32))
    longer = net.add("EXPAND_DIMS", [x, axis], (1, *shape), table="ExpandDimsOptions")
    dims = ScalarVector.of(INT32, [0])
    return net.add("SQUEEZE", [longer], shape, table="SqueezeOptions", squeeze_dims=dims)


def _gathered(net: Net, x: Tensor) -> Tensor:
    shape = _shape(x)
    rows = [net.random.randrange(shape[0]) for _ in range(2)]
    if net.random.random() < 0.3:
        where = net.constant(np.asarray([[row] for row in rows], np.int32))
        return net.add("GATHER_ND", [x, where], (2, *shape[1:]), table="GatherNdOptions")
    return net.add("GATHER", [x, net.ints(*rows)], (2, *shape[1:]), table="GatherOptions", axis=0)


def _looked_up(net: Net, x: Tensor) -> Tensor:
    """Rows of a constant table, at positions that the shape of the value gives."""
    table = net.weights(20, len(_shape(x)) + 3)
    sizes = net.add("SHAPE", [x], (len(_shape(x)),), dtype=np.int32, table="ShapeOptions", out_type=2)
    rows = net.add("MINIMUM", [sizes, net.ints(19)], (len(_shape(x)),), dtype=np.int32)
    return net.add("GATHER", [table, rows], (len(_shape(x)), _shape(table)[1]), table="GatherOptions", axis=0)


def _blocks(net: Net, x: Tensor) -> Tensor:
    _, high, wide, channels = _shape(x)
    if high % 2 or wide % 2:
        return net.add("ABS", [x], _shape(x))
    deep = (1, high // 2, wide // 2, channels * 4)
    made = net.add("SPACE_TO_DEPTH", [x], deep, table="SpaceToDepthOptions", block_size=2)
    return net.add("DEPTH_TO_SPACE", [made], _shape(x), table="DepthToSpaceOptions", block_size=2)


def _batches(net: Net, x: Tensor) -> Tensor:
    _, high, wide, channels = _shape(x)
    if high % 2 or wide % 2:
        return net.add("ABS", [x], _shape(x))
    none = net.constant(np.zeros((2, 2), np.int32))
    small = (4, high // 2, wide // 2, channels)
    made = net.add("SPACE_TO_BATCH_ND", [x, net.ints(2, 2), none], small)
    return net.add("BATCH_TO_SPACE_ND", [made, net.ints(2, 2), none], _shape(x))


def _resized(net: Net, x: Tensor) -> Tensor:
    channels = _shape(x)[3]
    kind, table = net.random.choice(
        (
            ("RESIZE_BILINEAR", "ResizeBilinearOptions"),
            ("RESIZE_NEAREST_NEIGHBOR", "ResizeNearestNeighborOptions"),
        )
    )
    return net.add(kind, [x, net.ints(4, 4)], (1, 4, 4, channels), table=table)


def _pooled(kind: str) -> Step:
    def step(net: Net, x: Tensor) -> Tensor:
        _, high, wide, channels = _shape(x)
        made = (1, -(-high // 2), -(-wide // 2), channels)
        sizes = {"stride_w": 2, "stride_h": 2, "filter_width": 2, "filter_height": 2}
        return net.add(kind, [x], made, table="Pool2DOptions", padding=_SAME, **sizes)

    return step


def _filled(net: Net, x: Tensor) -> Tensor:
    shape = _shape(x)
    sizes = net.add("SHAPE", [x], (len(shape),), dtype=np.int32, table="ShapeOptions", out_type=2)
    number = net.constant(np.asarray(0.25, np.float32))
    made = net.add("FILL", [sizes, number], shape, table="FillOptions")
    zeros = net.add("ZEROS_LIKE", [x], shape, table="ZerosLikeOptions")
    both = net.add("ADD", [made, zeros], shape, table="AddOptions")
    return net.add("ADD", [x, both], shape, table="AddOptions")


def _broadcast(net: Net, x: Tensor) -> Tensor:
    small = net.weights(_shape(x)[-1], fan=4)
    made = net.add(
        "BROADCAST_TO", [small, net.ints(*_shape(x))], _shape(x), table="BroadcastToOptions", version=2
    )
    return net.add("MUL", [x, made], _shape(x), table="MulOptions")


def _reversed(net: Net, x: Tensor) -> Tensor:
    axis = net.random.randrange(len(_shape(x)))
    return net.add("REVERSE_V2", [x, net.ints(axis)], _shape(x), table="ReverseV2Options")


def _summed_up(net: Net, x: Tensor) -> Tensor:
    axis = net.constant(np.asarray(len(_shape(x)) - 1, np.int32))
    return net.add("CUMSUM", [x, axis], _shape(x), table="CumsumOptions")


def _prelu(net: Net, x: Tensor) -> Tensor:
    return net.add("PRELU", [x, net.weights(*[1] * (len(_shape(x)) - 2), _shape(x)[-1], fan=9)], _shape(x))


def _selected(net: Net, x: Tensor) -> Tensor:
    chosen = net.constant(net._numbers.integers(0, 2, _shape(x)).astype(bool))
    flipped = net.add("LOGICAL_NOT", [chosen], _shape(x), dtype=bool, table="LogicalNotOptions")
    return net.add(
        "SELECT_V2", [flipped, x, net.add("NEG", [x], _shape(x))], _shape(x), table="SelectV2Options"
    )


# -- Where a small error may become a large one --------------------------------------------------------------


def _compared(net: Net, x: Tensor) -> Tensor:
    kind = net.random.choice(("GREATER", "LESS", "GREATER_EQUAL", "LESS_EQUAL", "NOT_EQUAL"))
    zero = net.constant(np.zeros(1, np.float32))
    found = net.add(kind, [x, zero], _shape(x), dtype=bool)
    if net.random.random() < 0.5:
        other = net.add("LESS", [x, net.constant(np.ones(1, np.float32))], _shape(x), dtype=bool)
        both = net.random.choice(("LOGICAL_AND", "LOGICAL_OR"))
        found = net.add(both, [found, other], _shape(x), dtype=bool)
    return net.add("CAST", [found], _shape(x), table="CastOptions", in_data_type=6, out_data_type=0)


def _cast(net: Net, x: Tensor) -> Tensor:
    whole = net.add(
        "CAST", [x], _shape(x), dtype=np.int32, table="CastOptions", in_data_type=0, out_data_type=2
    )
    return net.add("CAST", [whole], _shape(x), table="CastOptions", in_data_type=2, out_data_type=0)


def _top(net: Net, x: Tensor) -> Tensor:
    shape = _shape(x)
    outputs = [net.tensor((*shape[:-1], 2)), net.tensor((*shape[:-1], 2), np.int32)]
    two = net.constant(np.asarray(2, np.int32))
    net.graph.operators.append(Operator(net._code("TOPK_V2", 1), [x, two], list(outputs)))
    return outputs[0]


def _largest(net: Net, x: Tensor) -> Tensor:
    shape = _shape(x)
    axis = net.constant(np.asarray(len(shape) - 1, np.int32))
    found = net.add("ARG_MAX", [x, axis], shape[:-1], dtype=np.int32, table="ArgMaxOptions", output_type=2)
    depth, on, off = (
        net.constant(np.asarray(v, t)) for v, t in ((4, np.int32), (1, np.float32), (0, np.float32))
    )
    return net.add("ONE_HOT", [found, depth, on, off], (*shape[:-1], 4), table="OneHotOptions", axis=-1)


# -- Several subgraphs ---------------------------------------------------------------------------------------


def _loop(net: Net, x: Tensor) -> Tensor:
    """WHILE: a few rounds of a small layer."""
    outer, shape = net.graph, _shape(x)
    kinds = [((), np.int32), (shape, np.float32)]
    cond, (count, _) = net.inside("cond", kinds)
    cond.outputs = [net.add("LESS", [count, net.constant(np.asarray(2, np.int32))], (), dtype=bool)]
    body, (count, value) = net.inside("body", kinds)
    one = net.constant(np.asarray(1, np.int32))
    more = net.add("ADD", [count, one], (), dtype=np.int32, table="AddOptions")
    for _ in range(net.random.randrange(1, 3)):
        value = net.random.choice(_INNER)(net, value)
    body.outputs = [more, value]
    net.graph = outer
    first = net.constant(np.asarray(0, np.int32))
    options = {"cond_subgraph_index": cond, "body_subgraph_index": body}
    return _two_results(net, "WHILE", [first, x], shape, "WhileOptions", options)


def _two_results(
    net: Net,
    kind: str,
    inputs: list[Tensor | None],
    shape: Sequence[int],
    table: str,
    options: dict[str, Any],
) -> Tensor:
    outputs: list[Tensor | None] = [net.tensor((), np.int32), net.tensor(shape)]
    rest = new_record("Operator").replace(builtin_options_type=schema().enums["BuiltinOptions"].values[table])
    record = Record(schema().tables[table], dict(options))
    net.graph.operators.append(Operator(net._code(kind, 1), inputs, outputs, [], record, rest=rest))
    made = outputs[1]
    assert made is not None
    return made


def _branch(net: Net, x: Tensor) -> Tensor:
    """IF: one of two small layers."""
    outer, shape = net.graph, _shape(x)
    branches = []
    for name in ("then", "else"):
        graph, (value,) = net.inside(name, [(shape, np.float32)])
        graph.outputs = [net.random.choice(_INNER)(net, value)]
        branches.append(graph)
    net.graph = outer
    chosen = net.constant(np.asarray(net.random.random() < 0.5, bool))
    indices = {"then_subgraph_index": branches[0], "else_subgraph_index": branches[1]}
    return net.add("IF", [chosen, x], shape, table="IfOptions", **indices)


_INNER: tuple[Step, ...] = (
    _plain("TANH"),
    _plain("LOGISTIC"),
    _with_constant("MUL", "MulOptions"),
    _with_constant("ADD", "AddOptions"),
    _with_itself("MAXIMUM", "MaximumMinimumOptions"),
)

STEPS: tuple[Step, ...] = (
    *(_plain(kind) for kind in ("TANH", "LOGISTIC", "RELU", "RELU6", "RELU_N1_TO_1", "ELU", "SIN", "COS")),
    _plain("ABS", "AbsOptions"),
    _plain("NEG", "NegOptions"),
    _plain("HARD_SWISH", "HardSwishOptions"),
    _plain("LEAKY_RELU", "LeakyReluOptions", alpha=0.2),
    _plain("GELU", "GeluOptions"),
    _plain("SOFTMAX", "SoftmaxOptions", beta=1.0),
    _plain("LOG_SOFTMAX", "LogSoftmaxOptions"),
    _of_positive("SQRT"),
    _of_positive("RSQRT"),
    _of_positive("LOG"),
    _with_constant("ADD", "AddOptions"),
    _with_constant("SUB", "SubOptions"),
    _with_constant("MUL", "MulOptions"),
    _with_constant("DIV", "DivOptions"),
    _with_constant("SQUARED_DIFFERENCE", "SquaredDifferenceOptions"),
    _with_itself("ADD", "AddOptions"),
    _with_itself("SUB", "SubOptions"),
    _with_itself("MAXIMUM", "MaximumMinimumOptions"),
    _with_itself("MINIMUM", "MaximumMinimumOptions"),
    *(_reduced(kind) for kind in ("MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN")),
    *(_image(step) for step in (_conv, _conv, _depthwise, _transpose_conv, _blocks, _batches, _resized)),
    *(_image(_pooled(kind)) for kind in ("AVERAGE_POOL_2D", "MAX_POOL_2D", "L2_POOL_2D")),
    *(_matrix(step) for step in (_dense, _dense, _dense, _matmul, _svdf, _rnn, _lstm)),
    _embedding,
    _looked_up,
    _transpose,
    *(_padded(kind) for kind in ("PAD", "PADV2", "MIRROR_PAD")),
    _strided,
    _split,
    _packed,
    _squeezed,
    _gathered,
    _filled,
    _broadcast,
    _reversed,
    _summed_up,
    _matrix(_prelu),
    _selected,
    _loop,
    _branch,
    _flat(_plain("TANH")),
)
ROUGH: tuple[Step, ...] = (
    *(_plain(kind) for kind in ("FLOOR", "CEIL", "ROUND")),
    _plain("SIGN"),
    _compared,
    _cast,
    _matrix(_top),
    _largest,
    _with_constant("FLOOR_DIV", "FloorDivOptions"),
    _with_constant("FLOOR_MOD", "FloorModOptions"),
)


def make(random: Random, *, smooth: bool = False, most_steps: int = 8) -> Model:
    """Makes a model that the interpreter runs.

    Some of it is dead, some is there twice, some is shared; it may have a signature, and metadata.

    Args:
        random: Decides everything: an equal one makes an equal model.
        smooth: See :class:`Net`.
        most_steps: How many layers it has at most.
    """
    net = Net(random, smooth=smooth)
    shapes = ((1, 4, 4, 4), (2, 16), (1, 6, 4, 2))
    values = []
    for name in ("x", "y")[: random.randrange(1, 3)]:
        values.append(net.tensor(random.choice(shapes)))
        values[-1].name = name
        net.graph.inputs.append(values[-1])
    made: list[Tensor] = []
    steps = STEPS if smooth else STEPS + ROUGH
    for _ in range(random.randrange(1, most_steps + 1)):
        step, source = random.choice(steps), random.choice(values[-3:])
        for _ in range(random.choice((1, 1, 1, 2))):
            found = step(net, source)
            if 0 < found.elements <= _MOST_ELEMENTS and len(_shape(found)) <= 4:
                values.append(found)
                made.append(found)
    if not made:
        made.append(net.add("ABS", [values[0]], _shape(values[0])))
    chosen = list({id(item): item for item in random.choices(made, k=random.randrange(1, 4))}.values())
    if made[-1] not in chosen:
        chosen.append(made[-1])
    for position, tensor in enumerate(chosen):
        tensor.name = f"out{position}"
        net.graph.outputs.append(tensor)
    _furnish(net)
    return net.model


def _furnish(net: Net) -> None:
    """Adds what is beside the graph: names, a signature, metadata, buffers that nobody uses."""
    model, random = net.model, net.random
    main = model.subgraphs[0]
    if random.random() < 0.4:
        rows = [
            [(new_record("TensorMap").replace(name=item.name), item) for item in tensors]
            for tensors in (main.inputs, main.outputs)
        ]
        model.signatures.append(Signature("serving_default", main, rows[0], rows[1]))
    if random.random() < 0.4:
        entry = Metadata("min_runtime_version", Buffer(OwnedBlob(b"1.5.0".ljust(16, b"\0"))))
        model.buffers.append(entry.buffer)
        model.metadata.append(entry)
    for _ in range(random.randrange(3)):
        model.buffers.append(Buffer(OwnedBlob(b"read by nobody" * random.randrange(1, 9))))
    if random.random() < 0.5:
        model.description = "made at random"


def packed(model: Model) -> bytes:
    """Returns the file of a model."""
    made = layout(model)
    sink = MemorySink(made.nbytes)
    made.pour(sink, threads=1)  # type: ignore[arg-type]
    return bytes(sink.data)


def write_models(folder: Path, count: int, seed: int) -> list[Path]:
    """Writes generated models; returns their paths."""
    paths = []
    for number in range(count):
        paths.append(folder / f"generated{number}.tflite")
        paths[-1].write_bytes(packed(make(Random(f"{seed}/model/{number}"))))
    return paths
