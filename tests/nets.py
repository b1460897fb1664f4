"""Small models built from the typed classes, and the interpreter to run them in this process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfl_rewrite.files.source import save
from tfl_rewrite.flatbuf.record import FLOAT32, INT64, UINT8, Record, ScalarVector
from tfl_rewrite.integers.convert import IntegerWeight
from tfl_rewrite.kernels.table import row_of
from tfl_rewrite.model import dtypes
from tfl_rewrite.model.blob import ComputedBlob, OwnedBlob
from tfl_rewrite.model.graph import Graph
from tfl_rewrite.model.ir import (
    Buffer,
    Metadata,
    Model,
    Operator,
    OperatorCode,
    Quantization,
    Signature,
    SubGraph,
    Tensor,
    new_record,
    operator_number,
    schema,
)

Array = np.ndarray[Any, Any]

_TYPES = {np.dtype(row.numpy): row.value for row in dtypes.BY_VALUE.values() if row.numpy}
_TABLES = {
    "ADD": "AddOptions",
    "ARG_MAX": "ArgMaxOptions",
    "AVERAGE_POOL_2D": "Pool2DOptions",
    "BATCH_MATMUL": "BatchMatMulOptions",
    "CONCATENATION": "ConcatenationOptions",
    "CONV_2D": "Conv2DOptions",
    "CONV_3D": "Conv3DOptions",
    "DEPTHWISE_CONV_2D": "DepthwiseConv2DOptions",
    "DEPTH_TO_SPACE": "DepthToSpaceOptions",
    "DEQUANTIZE": "DequantizeOptions",
    "DIV": "DivOptions",
    "FULLY_CONNECTED": "FullyConnectedOptions",
    "GATHER": "GatherOptions",
    "GATHER_ND": "GatherNdOptions",
    "GELU": "GeluOptions",
    "IF": "IfOptions",
    "L2_POOL_2D": "Pool2DOptions",
    "LEAKY_RELU": "LeakyReluOptions",
    "LSTM": "LSTMOptions",
    "MAX_POOL_2D": "Pool2DOptions",
    **dict.fromkeys(
        ("MEAN", "REDUCE_ANY", "REDUCE_MAX", "REDUCE_MIN", "REDUCE_PROD", "SUM"), "ReducerOptions"
    ),
    "MIRROR_PAD": "MirrorPadOptions",
    "MUL": "MulOptions",
    "ONE_HOT": "OneHotOptions",
    "PACK": "PackOptions",
    "RESHAPE": "ReshapeOptions",
    "RESIZE_BILINEAR": "ResizeBilinearOptions",
    "RESIZE_NEAREST_NEIGHBOR": "ResizeNearestNeighborOptions",
    "SHAPE": "ShapeOptions",
    "SOFTMAX": "SoftmaxOptions",
    "SPACE_TO_DEPTH": "SpaceToDepthOptions",
    "SPLIT": "SplitOptions",
    "SPLIT_V": "SplitVOptions",
    "SQUEEZE": "SqueezeOptions",
    "STRIDED_SLICE": "StridedSliceOptions",
    "SUB": "SubOptions",
    "SVDF": "SVDFOptions",
    "TRANSPOSE_CONV": "TransposeConvOptions",
    "UNIDIRECTIONAL_SEQUENCE_LSTM": "UnidirectionalSequenceLSTMOptions",
    "UNIDIRECTIONAL_SEQUENCE_RNN": "SequenceRNNOptions",
    "UNPACK": "UnpackOptions",
    "WHILE": "WhileOptions",
}


class Net:
    """A model under construction; each method adds one thing to the current subgraph."""

    def __init__(self, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self.graph = SubGraph([], [], [], [], "main")
        self.model = Model([], [self.graph], [Buffer()])

    def next_subgraph(self, name: str) -> SubGraph:
        """Goes on in a new subgraph."""
        self.graph = SubGraph([], [], [], [], name)
        self.model.subgraphs.append(self.graph)
        return self.graph

    def buffer(self, data: bytes) -> Buffer:
        made = Buffer(OwnedBlob(data))
        self.model.buffers.append(made)
        return made

    def tensor(
        self, name: str, shape: Sequence[int], dtype: Any = np.float32, buffer: Buffer | None = None
    ) -> Tensor:
        made = Tensor(name, tuple(shape), _TYPES[np.dtype(dtype)], buffer or self.model.buffers[0])
        self.graph.tensors.append(made)
        return made

    def input(self, name: str, shape: Sequence[int], dtype: Any = np.float32) -> Tensor:
        made = self.tensor(name, shape, dtype)
        self.graph.inputs.append(made)
        return made

    def constant(self, name: str, values: Array, buffer: Buffer | None = None) -> Tensor:
        """A constant, in a buffer of its own or in a given one."""
        return self.tensor(name, values.shape, values.dtype, buffer or self.buffer(values.tobytes()))

    def variable(self, name: str, shape: Sequence[int]) -> Tensor:
        made = self.tensor(name, shape)
        made.is_variable = True
        return made

    def weights(self, name: str, shape: Sequence[int], buffer: Buffer | None = None) -> Tensor:
        """Seeded float32 weights whose channels differ in size."""
        values = self.random.standard_normal(tuple(shape)) * self.random.uniform(
            0.2, 1.0, (shape[0], *[1] * (len(shape) - 1))
        )
        return self.constant(name, values.astype(np.float32), buffer)

    def half(self, name: str, values: Array) -> Tensor:
        """A float16 constant; returns what its DEQUANTIZE gives."""
        stored = self.constant(f"{name}_half", values.astype(np.float16))
        return self.add("DEQUANTIZE", [stored], name, values.shape, version=3)

    def code(self, kind: str, version: int) -> OperatorCode:
        number = operator_number(kind)
        for code in self.model.operator_codes:
            if (code.builtin, code.version) == (number, version):
                return code
        code = OperatorCode(number, None, version)
        self.model.operator_codes.append(code)
        return code

    def add(
        self,
        kind: str,
        inputs: Sequence[Tensor | None],
        name: str,
        shape: Sequence[int],
        *,
        dtype: Any = np.float32,
        version: int = 1,
        **options: object,
    ) -> Tensor:
        """Adds an operator with one output."""
        output = self.tensor(name, shape, dtype)
        rest, record = new_record("Operator"), None
        table = _TABLES.get(kind)
        if table is not None:
            rest = rest.replace(builtin_options_type=schema().enums["BuiltinOptions"].values[table])
            record = Record(schema().tables[table], dict(options))
        self.graph.operators.append(
            Operator(self.code(kind, version), [*inputs], [output], [], record, rest=rest)
        )
        return output

    def dense(self, source: Tensor, weight: Tensor, name: str, bias: Tensor | None = None) -> Tensor:
        """FULLY_CONNECTED without an activation function."""
        shape = (*(source.shape or ())[:-1], (weight.shape or ())[0])
        flat = (int(np.prod(shape[:-1])), shape[-1])
        return self.add("FULLY_CONNECTED", [source, weight, bias], name, flat)

    def deconvolution(self, source: Tensor, name: str, padding: int = 1) -> Tensor:
        """MediaPipe's custom operator: twice as high and wide, of 2 channels."""
        batch, high, wide, channels = source.shape or ()
        weight, bias = self.weights(f"{name}_w", (2, 2, 2, channels)), self.weights(f"{name}_b", (2,))
        output = self.tensor(name, (batch, 2 * high, 2 * wide, 2))
        code = OperatorCode(operator_number("CUSTOM"), "Convolution2DTransposeBias", 1)
        self.model.operator_codes.append(code)
        options = ScalarVector(UINT8, np.array([padding, 2, 2], "<i4").tobytes())
        rest = new_record("Operator").replace(custom_options=options)
        self.graph.operators.append(Operator(code, [source, weight, bias], [output], rest=rest))
        return output

    def output(self, tensor: Tensor) -> None:
        self.graph.outputs.append(tensor)

    def sign(self, key: str) -> None:
        """Gives the current subgraph a signature."""

        def rows(tensors: Sequence[Tensor]) -> list[tuple[Record, Tensor]]:
            return [(new_record("TensorMap").replace(name=item.name), item) for item in tensors]

        self.model.signatures.append(
            Signature(key, self.graph, rows(self.graph.inputs), rows(self.graph.outputs))
        )

    def metadata(self, name: str, data: bytes) -> None:
        self.model.metadata.append(Metadata(name, self.buffer(data)))


Parameters = tuple[float, int]
"""A scale and a zero point."""


def with_grid(tensor: Tensor, scale: float, zero: int) -> Tensor:
    """The tensor, with this scale and zero point."""
    tensor.quantization = Quantization(ScalarVector.of(FLOAT32, [scale]), ScalarVector.of(INT64, [zero]))
    return tensor


def parameters(tensor: Tensor | None) -> Parameters:
    """The scale and the zero point of a tensor."""
    assert tensor is not None and tensor.quantization is not None
    details = tensor.quantization
    assert details.scale is not None and details.zero_point is not None
    (scale,), (zero,) = details.scale, details.zero_point
    return float(scale), int(zero)


class UnsignedNet(Net):
    """Adds uint8 tensors with a scale and a zero point."""

    def source(self, shape: tuple[int, ...] = (1, 4, 4, 2), scale: float = 0.5, zero: int = 128) -> Tensor:
        return with_grid(self.input("in", shape, np.uint8), scale, zero)

    def gives(
        self, kind: str, inputs: list[Tensor | None], name: str, grid: Parameters = (0.5, 128), **more: Any
    ) -> Tensor:
        """Adds an operator; its output has the shape of its first input unless ``shape`` is given."""
        first = next(item for item in inputs if item is not None)
        shape = more.pop("shape", first.shape or ())
        return with_grid(self.add(kind, inputs, name, shape, dtype=np.uint8, **more), *grid)

    def convolution(
        self, source: Tensor, weights: Array, zero: int, bias: bool = True, name: str = "out"
    ) -> Tensor:
        weight = with_grid(self.constant("w", weights.astype(np.uint8)), 0.25, zero)
        channels = len(weights)
        added = None
        if bias:
            added = self.constant("b", np.arange(10, 10 + channels, dtype=np.int32))
            with_grid(added, 0.25 * parameters(source)[0], 0)
        shape = (*(source.shape or ())[:3], channels)
        options = {"stride_w": 1, "stride_h": 1}
        return self.gives("CONV_2D", [source, weight, added], name, (1.0, 100), shape=shape, **options)


def unsigned_layers() -> UnsignedNet:
    """A model of all kinds of layers that old converters made, with unequal scales and a wide channel."""
    net = UnsignedNet(7)
    shape = (1, 8, 8, 4)
    source = net.source(shape, 1 / 64, 120)
    one = net.convolution(source, net.random.integers(90, 216, (4, 1, 1, 4)), 90, name="one")
    filters = net.random.integers(20, 140, (1, 3, 3, 4))
    filters[..., 2] += 110
    two = with_grid(net.constant("dw", filters.astype(np.uint8)), 0.01, 77)
    options = {"stride_w": 1, "stride_h": 1, "depth_multiplier": 1, "fused_activation_function": 1}
    bias = with_grid(net.constant("db", np.array([5, -9, 40, 0], np.int32)), 0.01, 0)
    deep = net.gives("DEPTHWISE_CONV_2D", [one, two, bias], "deep", (0.04, 0), **options)
    both = net.gives("CONCATENATION", [deep, one], "both", (1.0, 90), shape=(1, 8, 8, 8))
    axes = net.constant("axes", np.array([1, 2], np.int32))
    mean = net.gives("MEAN", [both, axes], "mean", (0.3, 90), shape=(1, 8))
    net.output(both)
    net.output(net.gives("SOFTMAX", [mean], "out", (1 / 256, 0), beta=0.1))
    return net


def growing_cell() -> Net:
    """Returns an LSTM of one cell, all gates open: each call adds the tanh of what comes in to it."""
    net = Net()
    weights = np.zeros((1, 1), np.float32)
    full, none = np.full(1, 20, np.float32), np.zeros(1, np.float32)
    source = net.input("in", (1, 1, 1))
    gates = [net.constant(f"w{at}", weights + (at == 2)) for at in range(4)]
    # All gates are open, and what comes in says by how much the cell grows.
    gates += [net.constant(f"r{at}", weights) for at in range(4)] + [None] * 3
    gates += [net.constant(f"b{at}", none if at == 2 else full) for at in range(4)] + [None] * 2
    states = [net.variable("last", (1, 1)), net.variable("cell", (1, 1)), *[None] * 4]
    kind = "UNIDIRECTIONAL_SEQUENCE_LSTM"
    net.output(net.add(kind, [source, *gates, *states], "out", (1, 1, 1), fused_activation_function=4))
    return net


def classifier(path: Path, factor: float, rows: int = 1) -> Path:
    """Writes a layer of 8 classes, which multiplies by a factor, and the SOFTMAX behind it."""
    net, shape = Net(), (rows, 8)
    weight = net.constant("w", np.float32(factor) * np.eye(8, dtype=np.float32))
    inside = net.dense(net.input("x", shape), weight, "h")
    net.output(net.add("SOFTMAX", [inside], "y", shape, beta=1.0))
    save(net.model, path)
    return path


def named(model: Model, name: str) -> Tensor:
    """The first tensor of that name."""
    return next(item for graph in model.subgraphs for item in graph.tensors if item.name == name)


def stored_apart(tensor: Tensor) -> None:
    """Makes the bytes of a constant ones that the writer does not know to be equal to others."""
    assert tensor.buffer.blob is not None
    data = bytes(tensor.buffer.blob.view())
    tensor.buffer.blob = ComputedBlob(len(data), lambda sink, offset: sink.write_at(data, offset))


def data_of(tensor: Tensor) -> Array:
    """The constant as an array."""
    assert tensor.buffer.blob is not None
    flat = np.frombuffer(bytes(tensor.buffer.blob.view()), dtypes.BY_VALUE[tensor.dtype].numpy)
    return flat.reshape(tensor.shape or ())


def dequantized(tensor: Tensor) -> Array:
    """What the integers of a constant mean, as float32."""
    details = tensor.quantization
    assert details is not None and details.scale is not None and details.zero_point is not None
    assert set(details.zero_point) == {0}
    scale = np.frombuffer(bytes(details.scale.raw), "<f4")
    shape = [1] * len(tensor.shape or ())
    if scale.size > 1:
        shape[details.dimension] = scale.size
    return data_of(tensor).astype(np.float32) * scale.reshape(shape)


def nearest(operator: Operator, position: int) -> IntegerWeight:
    """The weight of an operator in int8, each value the nearest."""
    row, tensor = row_of(operator), operator.inputs[position]
    axis = row.channel_axis
    assert tensor is not None and isinstance(axis, int) and row.integer is not None
    values = data_of(tensor)
    if row.integer.memory is not None:
        one = np.maximum(np.abs(values).max(keepdims=True) / 127, 1e-30).astype(np.float32)
        return IntegerWeight(np.rint(values / one).astype(np.int8), one.reshape(1), None)
    over = tuple(at for at in range(values.ndim) if at != axis)
    scale = np.maximum(np.abs(values).max(axis=over) / 127, 1e-30).astype(np.float32)
    shape = [1] * values.ndim
    shape[axis] = -1
    return IntegerWeight(np.rint(values / scale.reshape(shape)).astype(np.int8), scale, axis)


def codes(model: Model) -> list[tuple[str, int]]:
    """Name and version of the code of each operator, in order."""
    return [(operator.code.name, operator.code.version) for _, operator in model.operators()]


def readers(model: Model, tensor: Tensor) -> list[str]:
    """Types of the operators that read a tensor."""
    return [use.operator.code.name for use in Graph.of(model).uses_of(tensor)]


def run(
    path: Path, inputs: Mapping[str, Array], *, reference: bool = False, signature: str | None = None
) -> dict[str, Array]:
    """Runs a model of ours once in this process.

    Args:
        path: The file.
        inputs: By tensor name; by argument name where a signature is given.
        reference: With the reference kernels instead of the default ones.
        signature: Which one to call; the main subgraph without it.
    """
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    kind = OpResolverType.BUILTIN_REF if reference else OpResolverType.AUTO
    interpreter = Interpreter(str(path), experimental_op_resolver_type=kind, num_threads=1)
    if signature is not None:
        made: dict[str, Array] = interpreter.get_signature_runner(signature)(**inputs)
        return made
    interpreter.allocate_tensors()
    for row in interpreter.get_input_details():
        interpreter.set_tensor(row["index"], inputs[row["name"]])
    interpreter.invoke()
    return {row["name"]: interpreter.get_tensor(row["index"]) for row in interpreter.get_output_details()}


def decibels(before: Array, after: Array) -> float:
    """Signal-to-noise ratio."""
    signal = float(np.square(before.astype(np.float64)).sum())
    noise = float(np.square(before.astype(np.float64) - after).sum())
    return float("inf") if noise == 0 else 10 * float(np.log10(max(signal, 1e-300) / noise))


def misaligned(data: bytes) -> bytes:
    """The same model with every vector of 8-byte numbers at an offset that 8 does not divide."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as generated

    class Builder(flatbuffers.Builder):
        def StartVector(self, elemSize: int, numElems: int, alignment: int) -> int:
            if elemSize != 8 or not numElems:
                made: int = super().StartVector(elemSize, numElems, alignment)
                return made
            # The whole is padded to a multiple of 8, so this one is off by half of it.
            self.Prep(8, 0)
            self.Prep(1, 8 * numElems + 16)
            self.Pad(4)
            self.assertNotNested()
            self.nested = True
            self.vectorNumElems = numElems
            return int(self.Offset())

        def PrependInt64(self, x: int) -> None:
            if not self.nested or self.current_vtable is not None:
                super().PrependInt64(x)
                return
            self.head -= 8
            self.Bytes[self.head : self.head + 8] = x.to_bytes(8, "little", signed=True)

    model = generated.ModelT.InitFromPackedBuf(data, 0)
    builder = Builder(64)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())
