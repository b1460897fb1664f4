"""Builds models of a few bytes with the generated object API: the writer under test has no part in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

TYPES = {
    "float32": schema.TensorType.FLOAT32,
    "float64": schema.TensorType.FLOAT64,
    "int8": schema.TensorType.INT8,
    "uint8": schema.TensorType.UINT8,
    "int16": schema.TensorType.INT16,
    "int32": schema.TensorType.INT32,
    "int64": schema.TensorType.INT64,
    "bool": schema.TensorType.BOOL,
    "string": schema.TensorType.STRING,
    "resource": schema.TensorType.RESOURCE,
}


def string_bytes(words: Sequence[bytes]) -> bytes:
    """The layout of a string tensor: count, offsets, bytes."""
    head = 4 * (len(words) + 2)
    offsets = [head]
    for word in words:
        offsets.append(offsets[-1] + len(word))
    return np.array([len(words), *offsets], dtype="<i4").tobytes() + b"".join(words)


@dataclass
class Graph:
    """One subgraph under construction; tensors are referred to by their number."""

    model: TinyModel
    tensors: list[Any] = field(default_factory=list)
    operators: list[Any] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)

    def tensor(
        self,
        name: str,
        dtype: str,
        shape: Sequence[int],
        *,
        data: Any = None,
        signature: Sequence[int] | None = None,
        scale: float | None = None,
        zero_point: int = 0,
        variable: bool = False,
    ) -> int:
        tensor = schema.TensorT()
        tensor.name, tensor.type, tensor.shape = name, TYPES[dtype], list(shape)
        tensor.shapeSignature = None if signature is None else list(signature)
        tensor.isVariable = variable
        tensor.buffer = 0
        if data is not None:
            blob = data if isinstance(data, bytes) else np.asarray(data, dtype=dtype).tobytes()
            tensor.buffer = self.model.buffer(blob)
        if scale is not None:
            tensor.quantization = schema.QuantizationParametersT()
            tensor.quantization.scale, tensor.quantization.zeroPoint = [scale], [zero_point]
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def input(self, name: str, dtype: str, shape: Sequence[int], **more: Any) -> int:
        self.inputs.append(self.tensor(name, dtype, shape, **more))
        return self.inputs[-1]

    def op(
        self, name: str, inputs: Sequence[int], outputs: Sequence[int], *, version: int = 1, **options: Any
    ) -> None:
        operator = schema.OperatorT()
        operator.opcodeIndex = self.model.code(name, version)
        operator.inputs, operator.outputs = list(inputs), list(outputs)
        kind = {
            "ADD": "Add",
            "MUL": "Mul",
            "DIV": "Div",
            "GATHER": "Gather",
            "WHILE": "While",
            "CAST": "Cast",
        }.get(name) or {
            "GREATER_EQUAL": "GreaterEqual",
            "EMBEDDING_LOOKUP": None,
            "CUSTOM": None,
            "ASSIGN_VARIABLE": "AssignVariable",
            "CALL_ONCE": "CallOnce",
            "READ_VARIABLE": "ReadVariable",
            "VAR_HANDLE": "VarHandle",
            "RANDOM_UNIFORM": "Random",
            "RESHAPE": "Reshape",
            "FULLY_CONNECTED": "FullyConnected",
            "SVDF": "SVDF",
            "DEPTHWISE_CONV_2D": "DepthwiseConv2D",
            "SUM": "Reducer",
            "GREATER": "Greater",
            "LOG": None,
            "MINIMUM": "MaximumMinimum",
            "IF": "If",
            "SOFTMAX": "Softmax",
        }.get(name)
        if kind is not None:
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, f"{kind}Options")
            operator.builtinOptions = getattr(schema, f"{kind}OptionsT")()
            for key, value in options.items():
                setattr(operator.builtinOptions, key, value)
        self.operators.append(operator)


class TinyModel:
    """A model under construction."""

    def __init__(self) -> None:
        self._buffers: list[bytes] = [b""]
        self._codes: list[tuple[str, int]] = []
        self._graphs: list[Graph] = []
        self._signatures: list[Any] = []

    def buffer(self, blob: bytes) -> int:
        self._buffers.append(blob)
        return len(self._buffers) - 1

    def code(self, name: str, version: int) -> int:
        if (name, version) not in self._codes:
            self._codes.append((name, version))
        return self._codes.index((name, version))

    def graph(self) -> Graph:
        self._graphs.append(Graph(self))
        return self._graphs[-1]

    def signature(self, key: str, graph: Graph, inputs: dict[str, int], outputs: dict[str, int]) -> None:
        entry = schema.SignatureDefT()
        entry.signatureKey, entry.subgraphIndex = key, self._graphs.index(graph)
        entry.inputs, entry.outputs = (
            [_map(*item) for item in inputs.items()],
            [_map(*item) for item in outputs.items()],
        )
        self._signatures.append(entry)

    def write(self, path: Path) -> Path:
        model = schema.ModelT()
        model.version, model.description = 3, "tiny"
        model.buffers = []
        for blob in self._buffers:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(blob, dtype=np.uint8) if blob else None
            model.buffers.append(buffer)
        model.operatorCodes = []
        for name, version in self._codes:
            code = schema.OperatorCodeT()
            code.builtinCode = getattr(schema.BuiltinOperator, name)
            code.deprecatedBuiltinCode = min(code.builtinCode, 127)
            code.version = version
            code.customCode = "NobodyKnowsThis" if name == "CUSTOM" else None
            model.operatorCodes.append(code)
        model.subgraphs = []
        for graph in self._graphs:
            subgraph = schema.SubGraphT()
            subgraph.tensors, subgraph.operators = graph.tensors, graph.operators
            subgraph.inputs, subgraph.outputs = graph.inputs, graph.outputs
            model.subgraphs.append(subgraph)
        model.signatureDefs = self._signatures or None
        builder = flatbuffers.Builder(0)
        builder.Finish(model.Pack(builder), b"TFL3")
        path.write_bytes(bytes(builder.Output()))
        return path


def _map(name: str, tensor: int) -> Any:
    entry = schema.TensorMapT()
    entry.name, entry.tensorIndex = name, tensor
    return entry


def add_constant(
    path: Path,
    constant: Any,
    *,
    dtype: str = "float32",
    shape: Sequence[int] = (1, 4),
    signature: Sequence[int] | None = None,
    names: tuple[str, str] = ("x", "y"),
    op: str = "ADD",
) -> Path:
    """``y = x + constant`` (or another operator)."""
    model = TinyModel()
    graph = model.graph()
    x = graph.input(names[0], dtype, shape, signature=signature)
    value = np.asarray(constant)
    c = graph.tensor("c", dtype, value.shape, data=value)
    y = graph.tensor(names[1], dtype, shape, signature=signature)
    graph.op(op, [x, c], [y])
    graph.outputs = [y]
    return model.write(path)


def constant_output(path: Path, values: Any, *, dtype: str, **tensor: Any) -> Path:
    """Two outputs: the input as it is and a constant, whatever the input."""
    model = TinyModel()
    graph = model.graph()
    x = graph.input("x", "float32", [1])
    data = string_bytes(values) if dtype == "string" else np.asarray(values, dtype=dtype)
    shape = [len(values)] if dtype == "string" else list(np.asarray(values).shape)
    c = graph.tensor("c", dtype, shape, data=data)
    indices = graph.tensor("i", "int32", [shape[0]], data=list(range(shape[0])))
    y = graph.tensor("y", dtype, shape, **tensor)
    # Not the constant itself: whether the runtime shows those as outputs differs between versions.
    if tensor.get("scale") is not None:
        graph.tensors[c].quantization = graph.tensors[y].quantization
    graph.op("GATHER", [c, indices], [y], version=2 if dtype == "string" else 1, axis=0)
    graph.outputs = [x, y]
    return model.write(path)


def depthwise(path: Path, *, per_tensor: bool = False) -> Path:
    """A depthwise convolution with float weights; or int8 ones with one scale, which its kernel misreads.

    The hybrid kernel wants a scale for each channel and reads beyond the one that is there.
    """
    model = TinyModel()
    graph = model.graph()
    values = np.arange(-72, 72).reshape(1, 3, 3, 16)
    x = graph.input("x", "float32", [1, 8, 8, 16])
    if per_tensor:
        weights = graph.tensor("w", "int8", values.shape, data=values, scale=0.02)
    else:
        weights = graph.tensor("w", "float32", values.shape, data=values * 0.02)
    bias = graph.tensor("b", "float32", [16], data=[0.0] * 16)
    y = graph.tensor("y", "float32", [1, 8, 8, 16])
    options = {"strideW": 1, "strideH": 1, "depthMultiplier": 1}
    options |= {"dilationWFactor": 1, "dilationHFactor": 1}
    graph.op("DEPTHWISE_CONV_2D", [x, weights, bias], [y], version=6 if per_tensor else 1, **options)
    graph.outputs = [y]
    return model.write(path)


def hungry(path: Path, *, size: int = 20_000) -> Path:
    """A small file that needs ``4 * size ** 2`` bytes: all sums of two vectors, of which one row is taken."""
    model = TinyModel()
    graph = model.graph()
    x = graph.input("x", "float32", [1, size])
    column = graph.tensor("c", "float32", [size, 1], data=np.ones(size))
    sums = graph.tensor("sums", "float32", [size, size])
    first = graph.tensor("i", "int32", [1], data=[0])
    y = graph.tensor("y", "float32", [1, size])
    graph.op("ADD", [x, column], [sums])
    graph.op("GATHER", [sums, first], [y], axis=0)
    graph.outputs = [y]
    return model.write(path)


def summing(path: Path) -> Path:
    """An SVDF with all weights 1: the sum of its inputs over four calls."""
    model = TinyModel()
    graph = model.graph()
    x = graph.input("x", "float32", [1, 3])
    feature = graph.tensor("f", "float32", [2, 3], data=np.ones((2, 3)))
    time = graph.tensor("t", "float32", [2, 4], data=np.ones((2, 4)))
    bias = graph.tensor("b", "float32", [2], data=[0, 0])
    state = graph.tensor("state", "float32", [1, 8], variable=True)
    y = graph.tensor("y", "float32", [1, 2])
    graph.op("SVDF", [x, feature, time, bias, state], [y], rank=1)
    graph.outputs = [y]
    return model.write(path)


def accumulating(path: Path, *, keeps: float = 1.0) -> Path:
    """An RNN without activation: the sum of its inputs over all calls, of which each call keeps a share."""
    model = TinyModel()
    graph = model.graph()
    x = graph.input("x", "float32", [1, 4])
    taken = graph.tensor("w", "float32", [4, 4], data=np.eye(4))
    kept = graph.tensor("r", "float32", [4, 4], data=keeps * np.eye(4))
    bias = graph.tensor("b", "float32", [4], data=np.zeros(4))
    state = graph.tensor("state", "float32", [1, 4], variable=True)
    y = graph.tensor("y", "float32", [1, 4])
    graph.op("RNN", [x, taken, kept, bias, state], [y])
    graph.outputs = [y]
    return model.write(path)


def remembering(path: Path, *, factor: float = 2.0) -> Path:
    """Signature ``get`` adds what ``set``, which stands behind it, left last: its input times a factor."""
    model = TinyModel()
    get, start, put = model.graph(), model.graph(), model.graph()

    def variable(graph: Graph) -> int:
        handle = graph.tensor("handle", "resource", [])
        graph.op("VAR_HANDLE", [], [handle], containerName="", sharedName="kept")
        return handle

    x = get.input("x", "float32", [1, 4])
    get.op("CALL_ONCE", [], [], initSubgraphIndex=1)
    kept, y = (get.tensor(name, "float32", [1, 4]) for name in ("kept", "y"))
    get.op("READ_VARIABLE", [variable(get)], [kept])
    get.op("ADD", [x, kept], [y])
    get.outputs = [y]
    zeros = start.tensor("zeros", "float32", [1, 4], data=np.zeros((1, 4)))
    start.op("ASSIGN_VARIABLE", [variable(start), zeros], [])
    given = put.input("x", "float32", [1, 4])
    by, one = (put.tensor(name, "float32", [1], data=[value]) for name, value in (("by", factor), ("one", 1)))
    scaled, said = (put.tensor(name, "float32", [1, 4]) for name in ("scaled", "said"))
    put.op("MUL", [given, by], [scaled])
    put.op("ASSIGN_VARIABLE", [variable(put), scaled], [])
    put.op("ADD", [given, one], [said])
    put.outputs = [said]
    model.signature("get", get, {"x": x}, {"y": y})
    model.signature("set", put, {"x": given}, {"said": said})
    return model.write(path)


def crashing(path: Path) -> Path:
    """A WHILE whose body is its own subgraph: preparing it recurses until the stack ends."""
    return _loop(path, body=0)


def hanging(path: Path) -> Path:
    """A WHILE whose condition ``x >= x`` holds forever."""
    return _loop(path, body=2)


def _loop(path: Path, *, body: int) -> Path:
    model = TinyModel()
    main, condition, step = model.graph(), model.graph(), model.graph()
    x = main.input("x", "float32", [1])
    y = main.tensor("y", "float32", [1])
    main.op("WHILE", [x], [y], condSubgraphIndex=1, bodySubgraphIndex=body)
    main.outputs = [y]
    value = condition.input("x", "float32", [1])
    truth = condition.tensor("t", "bool", [1])
    condition.op("GREATER_EQUAL", [value, value], [truth])
    condition.outputs = [truth]
    step.outputs = [step.input("x", "float32", [1])]
    return model.write(path)


def custom_op(path: Path) -> Path:
    """An operator that no runtime knows."""
    model = TinyModel()
    graph = model.graph()
    x = graph.input("x", "float32", [1, 4])
    y = graph.tensor("y", "float32", [1, 4])
    graph.op("CUSTOM", [x], [y])
    graph.outputs = [y]
    return model.write(path)


def two_signatures(path: Path, *, added: float = 1.0, factor: float = 2.0, name: str = "out") -> Path:
    """``add``: x + added; ``mul``: x * factor, in another subgraph."""
    model = TinyModel()
    for key, op, constant in (("add", "ADD", added), ("mul", "MUL", factor)):
        graph = model.graph()
        x = graph.input(f"{key}_x:0", "float32", [1, 4])
        c = graph.tensor("c", "float32", [1], data=[constant])
        y = graph.tensor("y:0", "float32", [1, 4])
        graph.op(op, [x, c], [y])
        graph.outputs = [y]
        model.signature(key, graph, {"x": x}, {name: y})
    return model.write(path)


def lookup(path: Path, *, rows: int = 3, op: str = "GATHER", through: str | None = None) -> Path:
    """Rows of a table; the indices come straight from an int32 input or through a CAST or RESHAPE."""
    model = TinyModel()
    graph = model.graph()
    source = graph.input("ids", "float32" if through == "CAST" else "int32", [64])
    table = graph.tensor("table", "float32", [rows, 200], data=np.arange(rows * 200).reshape(rows, 200))
    ids = source
    if through is not None:
        ids = graph.tensor("cast", "int32", [64])
        if through == "CAST":
            graph.op("CAST", [source], [ids])
        else:
            shape = graph.tensor("shape", "int32", [1], data=[64])
            graph.op("RESHAPE", [source, shape], [ids], newShape=[64])
    y = graph.tensor("y", "float32", [64, 200])
    graph.op(op, [table, ids] if op == "GATHER" else [ids, table], [y])
    graph.outputs = [y]
    return model.write(path)


def bomb(path: Path, *, times: int, declared: int | None = None) -> Path:
    """A small file whose output is its input of 256 bytes, so many times over.

    The file may declare another size: what the kernel makes of it is what counts.
    """
    model = TinyModel()
    graph = model.graph()
    x = graph.input("x", "float32", [1, 64])
    multiples = graph.tensor("m", "int32", [2], data=[times, 1])
    y = graph.tensor("y", "float32", [times if declared is None else declared, 64])
    graph.op("TILE", [x, multiples], [y])
    graph.outputs = [y]
    return model.write(path)
