"""Builds models of one or a few operators, to ask a runtime what its kernels accept.

The generated object API writes them: it shares no code with the package under test.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

_DTYPES = {
    "float32": schema.TensorType.FLOAT32,
    "float16": schema.TensorType.FLOAT16,
    "int8": schema.TensorType.INT8,
    "int32": schema.TensorType.INT32,
    "int64": schema.TensorType.INT64,
    "uint8": schema.TensorType.UINT8,
    "bool": schema.TensorType.BOOL,
    "int4": schema.TensorType.INT4,
    "int2": schema.TensorType.INT2,
    "resource": schema.TensorType.RESOURCE,
}


@dataclass(frozen=True)
class Scales:
    """Affine quantization: one scale, or one for each index along ``axis``."""

    scale: np.ndarray
    axis: int = 0


def quantize(weights: np.ndarray, axis: int | None) -> tuple[np.ndarray, Scales]:
    """Returns int8 values in [-127, 127] and their scales; an all-zero channel gets scale 1."""
    if axis is None:
        peak = np.abs(weights).max(keepdims=True).reshape(1)
        shape = [1] * weights.ndim
    else:
        axis %= weights.ndim
        peak = np.abs(weights).max(axis=tuple(a for a in range(weights.ndim) if a != axis))
        shape = [1] * weights.ndim
        shape[axis] = -1
    scale = np.where(peak > 0, peak / 127, 1).astype(np.float32)
    values = np.clip(np.round(weights / scale.reshape(shape)), -127, 127).astype(np.int8)
    return values, Scales(scale, axis or 0)


def dequantized(values: np.ndarray, scales: Scales) -> np.ndarray:
    """Returns the floats that the int8 values stand for."""
    shape = [1] * values.ndim
    if scales.scale.size > 1:
        shape[scales.axis] = -1
    floats: np.ndarray = values.astype(np.float32) * scales.scale.reshape(shape)
    return floats


@dataclass
class Graph:
    """One subgraph in the making; tensors are named by the position that each method returns."""

    tensors: list[Any] = field(default_factory=list)
    buffers: list[Any] = field(default_factory=list)
    operators: list[Any] = field(default_factory=list)
    codes: list[tuple[Any, int, str | None]] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.buffers.append(schema.BufferT())

    def tensor(
        self,
        shape: tuple[int, ...],
        dtype: str = "float32",
        *,
        data: np.ndarray | None = None,
        scales: Scales | None = None,
        variable: bool = False,
        dynamic: tuple[int, ...] = (),
    ) -> int:
        """Adds a tensor; ``dynamic`` names the axes whose size the signature leaves open."""
        made = schema.TensorT()
        made.name = f"t{len(self.tensors)}"
        made.shape = [int(size) for size in shape]
        made.type = _DTYPES[dtype]
        made.isVariable = variable
        if dynamic:
            made.shapeSignature = [-1 if axis in dynamic else size for axis, size in enumerate(shape)]
        if data is not None:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(np.ascontiguousarray(data).tobytes(), np.uint8)
            made.buffer = len(self.buffers)
            self.buffers.append(buffer)
        if scales is not None:
            made.quantization = schema.QuantizationParametersT()
            made.quantization.scale = scales.scale.astype(np.float32)
            made.quantization.zeroPoint = np.zeros(scales.scale.size, np.int64)
            made.quantization.quantizedDimension = scales.axis
        self.tensors.append(made)
        return len(self.tensors) - 1

    def const(self, data: np.ndarray, scales: Scales | None = None) -> int:
        """Adds a constant."""
        return self.tensor(data.shape, data.dtype.name, data=data, scales=scales)

    def input(self, shape: tuple[int, ...], dtype: str = "float32", **more: Any) -> int:
        """Adds an input of the model."""
        self.inputs.append(self.tensor(shape, dtype, **more))
        return self.inputs[-1]

    def output(self, tensor: int) -> int:
        """Makes a tensor an output of the model."""
        self.outputs.append(tensor)
        return tensor

    def op(
        self,
        operator: str,
        inputs: list[int],
        outputs: list[int],
        options: Any = None,
        *,
        version: int = 1,
        custom: str | None = None,
        custom_options: bytes = b"",
        intermediates: list[int] | None = None,
    ) -> None:
        """Adds an operator by its name in ``BuiltinOperator``."""
        builtin = getattr(schema.BuiltinOperator, operator)
        made = schema.OperatorT()
        key = (builtin, version, custom)
        if key not in self.codes:
            self.codes.append(key)
        made.opcodeIndex = self.codes.index(key)
        made.inputs = list(inputs)
        made.outputs = list(outputs)
        if intermediates is not None:
            made.intermediates = intermediates
        if options is not None:
            kind = type(options).__name__.removesuffix("T")
            if hasattr(schema.BuiltinOptions, kind):
                made.builtinOptionsType = getattr(schema.BuiltinOptions, kind)
                made.builtinOptions = options
            else:
                made.builtinOptions2Type = getattr(schema.BuiltinOptions2, kind)
                made.builtinOptions2 = options
        if custom_options:
            made.customOptions = np.frombuffer(custom_options, np.uint8)
        self.operators.append(made)

    def dequantize(self, values: np.ndarray, scales: Scales, version: int) -> int:
        """Adds an int8 constant and the DEQUANTIZE that turns it into floats; returns the float tensor."""
        result = self.tensor(values.shape)
        self.op(
            "DEQUANTIZE", [self.const(values, scales)], [result], schema.DequantizeOptionsT(), version=version
        )
        return result

    def subgraph(self, name: str = "main") -> Any:
        """Returns the subgraph object, for models with several of them."""
        made = schema.SubGraphT()
        made.name = name
        made.tensors, made.operators = self.tensors, self.operators
        made.inputs, made.outputs = self.inputs, self.outputs
        return made

    def pack(self, *others: Graph) -> bytes:
        """Returns the file; ``others`` are further subgraphs made with :meth:`sibling`."""
        model = schema.ModelT()
        model.version = 3
        model.description = "single operator"
        model.buffers = self.buffers
        model.operatorCodes = []
        for builtin, version, custom in self.codes:
            code = schema.OperatorCodeT()
            code.builtinCode = builtin
            code.deprecatedBuiltinCode = min(builtin, 127)
            code.version = version
            code.customCode = custom
            model.operatorCodes.append(code)
        model.subgraphs = [self.subgraph()] + [o.subgraph(f"body{i}") for i, o in enumerate(others)]
        builder = flatbuffers.Builder(4096)
        builder.Finish(model.Pack(builder), b"TFL3")
        return bytes(builder.Output())

    def sibling(self) -> Graph:
        """Returns a second subgraph that shares this one's buffers and operator codes."""
        made = Graph()
        made.buffers, made.codes = self.buffers, self.codes
        return made
