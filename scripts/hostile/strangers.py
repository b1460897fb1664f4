"""Models that a stranger might send: well formed for a reader, and ill for the kernels that run them."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from fixture_makers.builder import ModelBuilder
from fixture_makers.object_api import pack, unpack

from hostile.models import make, packed

SIZES = (0, -1, 1, 3, 7, 255, 65536, 1 << 20, (1 << 31) - 1)
INTEGERS = (0, -1, 1, 5, 100, -100, 1 << 16, 1 << 24, (1 << 31) - 1, -(1 << 31))
FLOATS = (0.0, -0.0, 1e-45, 3.4e38, float("inf"), float("-inf"), float("nan"))
_CALLS = ("condSubgraphIndex", "bodySubgraphIndex", "thenSubgraphIndex", "elseSubgraphIndex", "subgraph")

Spoiler = Callable[[Any, Random], None]


def stranger(random: Random) -> bytes:
    """Returns one; an equal source makes an equal one."""
    if random.random() < 0.3:
        return random.choice(KERNELS)(random)
    while True:
        model = unpack(packed(make(random)))
        for _ in range(random.choice((1, 1, 2, 3))):
            random.choice(SPOILERS)(model, random)
        with contextlib.suppress(TypeError, ValueError, OverflowError, struct.error):
            # A number that its field does not hold.
            return pack(model)


# -- Graphs that run, spoilt ---------------------------------------------------------------------------------


def _any_of(model: Any, random: Random, what: str) -> Any:
    found = [item for graph in model.subgraphs for item in getattr(graph, what)]
    return random.choice(found)


def _size(model: Any, random: Random) -> None:
    tensor = _any_of(model, random, "tensors")
    shape = list(tensor.shape if tensor.shape is not None else [])
    if not shape or random.random() < 0.2:
        shape.append(random.choice(SIZES))
    else:
        shape[random.randrange(len(shape))] = random.choice(SIZES)
    tensor.shape = shape


def _large_input(model: Any, random: Random) -> None:
    graph = model.subgraphs[0]
    tensor = graph.tensors[random.choice(list(graph.inputs))]
    tensor.shape = [random.choice((1, 64, 4096, 1 << 20)) for _ in range(len(tensor.shape))]


def _integers(model: Any, random: Random) -> None:
    """Indices, axes, paddings, sizes and permutations that constants hold."""
    kinds = {schema.TensorType.INT32: "<i", schema.TensorType.INT64: "<q"}
    tensors = [
        tensor
        for graph in model.subgraphs
        for tensor in graph.tensors
        if tensor.type in kinds and model.buffers[tensor.buffer].data is not None
    ]
    if not tensors:
        _operand(model, random)
        return
    tensor = random.choice(tensors)
    buffer, layout = model.buffers[tensor.buffer], kinds[tensor.type]
    data = bytearray(bytes(bytearray(buffer.data)))
    for at in range(0, len(data) - struct.calcsize(layout) + 1, struct.calcsize(layout)):
        if random.random() < 0.5:
            struct.pack_into(layout, data, at, random.choice(INTEGERS))
    buffer.data = np.frombuffer(bytes(data), np.uint8)


def _call(model: Any, random: Random) -> None:
    """Subgraphs that call each other, or themselves."""
    callers = [
        operator
        for graph in model.subgraphs
        for operator in graph.operators
        if any(hasattr(operator.builtinOptions, name) for name in _CALLS)
    ]
    if callers:
        options = random.choice(callers).builtinOptions
        for name in _CALLS:
            if hasattr(options, name):
                setattr(options, name, random.randrange(len(model.subgraphs)))
        return
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.WHILE
    code.version = 1
    model.operatorCodes.append(code)
    graph = model.subgraphs[0]
    operator = schema.OperatorT()
    operator.opcodeIndex = len(model.operatorCodes) - 1
    operator.inputs, operator.outputs = list(graph.inputs), list(graph.outputs)
    operator.builtinOptionsType = schema.BuiltinOptions.WhileOptions
    operator.builtinOptions = schema.WhileOptionsT()
    graph.operators.insert(random.randrange(len(graph.operators) + 1), operator)


def _buffer(model: Any, random: Random) -> None:
    """Constants of another one's bytes, of half their bytes, or of none."""
    tensor = _any_of(model, random, "tensors")
    data = model.buffers[tensor.buffer].data
    how = random.randrange(3)
    if how == 0:
        tensor.buffer = random.randrange(len(model.buffers))
    elif how == 1 and data is not None:
        model.buffers[tensor.buffer].data = np.frombuffer(bytes(bytearray(data))[: len(data) // 2], np.uint8)
    else:
        model.buffers[tensor.buffer].data = None


def _type(model: Any, random: Random) -> None:
    _any_of(model, random, "tensors").type = random.randrange(20)


def _operand(model: Any, random: Random) -> None:
    graph = random.choice(model.subgraphs)
    if not graph.operators:
        return
    operator = random.choice(graph.operators)
    side = list(operator.inputs if random.random() < 0.6 else operator.outputs)
    if not side:
        return
    is_input = len(side) == len(operator.inputs) and list(operator.inputs) == side
    side[random.randrange(len(side))] = random.randrange(-1, len(graph.tensors))
    if is_input:
        operator.inputs = side
    else:
        operator.outputs = side


def _code(model: Any, random: Random) -> None:
    code = random.choice(model.operatorCodes)
    code.builtinCode = random.randrange(206)
    code.deprecatedBuiltinCode = min(code.builtinCode, 127)
    code.version = random.choice((1, 1, 2, 3, 5, 12, 99))


def _options(model: Any, random: Random) -> None:
    options = _any_of(model, random, "operators").builtinOptions
    names = (
        [name for name, value in vars(options).items() if isinstance(value, (int, float))] if options else []
    )
    if not names:
        _code(model, random)
        return
    name = random.choice(names)
    is_float = isinstance(getattr(options, name), float)
    # What a field of few bits does not hold cannot be written.
    small = type(getattr(options, name)) is int and getattr(options, name) in (0, 1)
    setattr(options, name, random.choice(FLOATS if is_float else (0, 1, 2, 3, 100) if small else INTEGERS))


def _quantization(model: Any, random: Random) -> None:
    tensor = _any_of(model, random, "tensors")
    made = schema.QuantizationParametersT()
    count = random.choice((0, 1, 2, 5))
    made.scale = [random.choice((*FLOATS, 0.1)) for _ in range(count)]
    made.zeroPoint = [
        random.choice((0, -1, 300, 1 << 40)) for _ in range(random.choice((count, count, 0, 3)))
    ]
    made.quantizedDimension = random.choice((0, 1, 7, -1))
    tensor.quantization = made
    if random.random() < 0.7:
        tensor.type = random.choice(
            (schema.TensorType.INT8, schema.TensorType.UINT8, schema.TensorType.INT16)
        )


SPOILERS: Sequence[Spoiler] = (
    *(_size, _size, _large_input, _integers, _integers, _integers),
    *(_call, _buffer, _type, _operand, _operand, _code, _options, _quantization),
)


# -- Kernels that go where integers send them ----------------------------------------------------------------


def _kernel(name: str, options: str | None, inputs: Sequence[Any], shape: Sequence[int], kind: str) -> bytes:
    """A model of one operator: ``None`` among its inputs stands for the model's own input."""
    builder = ModelBuilder(f"{name} of numbers that lead elsewhere")
    graph = builder.graph("main")
    operands = [
        graph.input("x", [4, 6]) if given is None else graph.constant(f"c{number}", given)
        for number, given in enumerate(inputs)
    ]
    if all(given is not None for given in inputs):
        graph.input("unused", [1])
    result = graph.value("y", shape, kind)
    graph.operator(name, operands, [result], None if options is None else getattr(schema, f"{options}T")())
    graph.finish(result)
    return builder.pack()


def _wild(random: Random, *shape: int, kind: Any = np.int32) -> Any:
    choices = [value for value in INTEGERS if kind is not np.int64 or abs(value) < 1 << 31]
    return np.array([random.choice(choices) for _ in range(int(np.prod(shape)))], kind).reshape(shape)


def _shape(random: Random) -> list[int]:
    return [random.choice((1, 2, 4, 6, 24)) for _ in range(random.randrange(1, 4))]


_VALUES = np.arange(24, dtype=np.float32).reshape(4, 6)
Kernel = Callable[[Random], bytes]


def _row(name: str, options: str | None, *inputs: Any, kind: str = "float32") -> Kernel:
    """Inputs that are functions are called with the source."""

    def made(random: Random) -> bytes:
        given = [item(random) if callable(item) else item for item in inputs]
        return _kernel(name, options, given, _shape(random), kind)

    return made


def _wilds(*shape: int, kind: Any = np.int32) -> Callable[[Random], Any]:
    return lambda random: _wild(random, *shape, kind=kind)


KERNELS: Sequence[Kernel] = (
    _row("GATHER", "GatherOptions", None, _wilds(5)),
    _row("GATHER_ND", "GatherNdOptions", None, _wilds(3, 2)),
    _row("SCATTER_ND", "ScatterNdOptions", _wilds(3, 1), _VALUES[:3], _wilds(2)),
    _row("SLICE", "SliceOptions", None, _wilds(2), _wilds(2)),
    _row("STRIDED_SLICE", "StridedSliceOptions", None, _wilds(2), _wilds(2), _wilds(2)),
    _row("TILE", "TileOptions", None, _wilds(2)),
    _row("FILL", "FillOptions", _wilds(3), _VALUES[0, 1]),
    _row("BROADCAST_TO", "BroadcastToOptions", None, _wilds(2)),
    _row("RESHAPE", "ReshapeOptions", None, _wilds(3)),
    _row("PAD", "PadOptions", None, _wilds(2, 2)),
    _row("MIRROR_PAD", "MirrorPadOptions", None, _wilds(2, 2)),
    _row("TRANSPOSE", "TransposeOptions", None, _wilds(2)),
    _row("SPLIT_V", "SplitVOptions", None, _wilds(1), _wilds(1)),
    _row("REVERSE_V2", "ReverseV2Options", None, _wilds(1)),
    _row("REVERSE_SEQUENCE", "ReverseSequenceOptions", None, _wilds(4)),
    _row(
        "ONE_HOT", "OneHotOptions", _wilds(3), _wilds(), np.float32(1).reshape(()), np.float32(0).reshape(())
    ),
    _row("SPARSE_TO_DENSE", "SparseToDenseOptions", _wilds(3, 2), _wilds(2), _VALUES[0, :3], _VALUES[0, 0]),
    _row("SEGMENT_SUM", "SegmentSumOptions", None, _wilds(4)),
    _row("UNSORTED_SEGMENT_SUM", "UnsortedSegmentSumOptions", None, _wilds(4), _wilds()),
    _row("DYNAMIC_UPDATE_SLICE", "DynamicUpdateSliceOptions", None, _VALUES[:2, :2], _wilds(2)),
    _row("EMBEDDING_LOOKUP", None, _wilds(5), _VALUES),
    _row("CUMSUM", "CumsumOptions", None, _wilds()),
    _row("TOPK_V2", "TopKV2Options", None, _wilds()),
    _row("ARG_MAX", "ArgMaxOptions", None, _wilds(), kind="int64"),
    _row("EXPAND_DIMS", "ExpandDimsOptions", None, _wilds()),
    _row("RANGE", "RangeOptions", _wilds(), _wilds(), _wilds(), kind="int32"),
    _row("RESIZE_BILINEAR", "ResizeBilinearOptions", None, _wilds(2)),
    _row("BATCH_TO_SPACE_ND", "BatchToSpaceNDOptions", None, _wilds(2), _wilds(2, 2)),
    _row("SPACE_TO_BATCH_ND", "SpaceToBatchNDOptions", None, _wilds(2), _wilds(2, 2)),
    _row("MATRIX_SET_DIAG", "MatrixSetDiagOptions", None, _VALUES[0]),
    _row("SUM", "ReducerOptions", None, _wilds(3)),
)
