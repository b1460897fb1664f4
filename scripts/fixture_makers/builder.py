"""Building a model from nothing, one tensor and one operator at a time.

For what no converter produces on request: rare operators, tensors shared on purpose, newer schema parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from .object_api import buffer_of, pack

SCHEMA_VERSION = 3
ABSENT = -1

DTYPES = {
    "float32": schema.TensorType.FLOAT32,
    "float16": schema.TensorType.FLOAT16,
    "int32": schema.TensorType.INT32,
    "int64": schema.TensorType.INT64,
    "int8": schema.TensorType.INT8,
    "bool": schema.TensorType.BOOL,
    "string": schema.TensorType.STRING,
}


class ModelBuilder:
    """Collects subgraphs, operator codes and buffers, then packs them."""

    def __init__(self, description: str) -> None:
        self.model = schema.ModelT()
        self.model.version = SCHEMA_VERSION
        self.model.description = description
        self.model.subgraphs = []
        self.model.operatorCodes = []
        self.model.buffers = [buffer_of()]

    def graph(self, name: str) -> GraphBuilder:
        """Starts the next subgraph."""
        graph = GraphBuilder(self, name)
        self.model.subgraphs.append(graph.subgraph)
        return graph

    def buffer(self, data: bytes | np.ndarray) -> int:
        """Adds a buffer; returns its index."""
        self.model.buffers.append(buffer_of(data))
        return len(self.model.buffers) - 1

    def operator_code(self, name: str, version: int) -> int:
        """Index of the operator code; a name that is no builtin operator is a custom one."""
        code = schema.OperatorCodeT()
        code.version = version
        builtin = getattr(schema.BuiltinOperator, name, None)
        if builtin is None:
            code.customCode = name.encode()
            builtin = schema.BuiltinOperator.CUSTOM
        code.builtinCode = builtin
        code.deprecatedBuiltinCode = min(builtin, schema.BuiltinOperator.PLACEHOLDER_FOR_GREATER_OP_CODES)
        for index, known in enumerate(self.model.operatorCodes):
            if vars(known) == vars(code):
                return index
        self.model.operatorCodes.append(code)
        return len(self.model.operatorCodes) - 1

    def signature(self, key: str, graph: int, inputs: dict[str, int], outputs: dict[str, int]) -> None:
        """Names the inputs and outputs of a subgraph for callers."""
        definition = schema.SignatureDefT()
        definition.signatureKey = key
        definition.subgraphIndex = graph
        definition.inputs, definition.outputs = (
            [self._tensor_map(name, index) for name, index in side.items()] for side in (inputs, outputs)
        )
        self.model.signatureDefs = [*(self.model.signatureDefs or []), definition]

    @staticmethod
    def _tensor_map(name: str, index: int) -> schema.TensorMapT:
        entry = schema.TensorMapT()
        entry.name = name
        entry.tensorIndex = index
        return entry

    def pack(self) -> bytes:
        """The finished file."""
        return pack(self.model)


class GraphBuilder:
    """One subgraph under construction; tensors are named by the index that each method returns."""

    def __init__(self, model: ModelBuilder, name: str) -> None:
        self.model = model
        self.subgraph = schema.SubGraphT()
        self.subgraph.name = name
        self.subgraph.tensors = []
        self.subgraph.operators = []
        self.subgraph.inputs = []
        self.subgraph.outputs = []

    def tensor(self, name: str, shape: Sequence[int], dtype: int, *, buffer: int = 0) -> schema.TensorT:
        """Adds a tensor of any TensorType; it becomes the last of the graph."""
        tensor = schema.TensorT()
        tensor.name = name
        tensor.shape = list(shape)
        tensor.type = dtype
        tensor.buffer = buffer
        tensor.hasRank = True
        self.subgraph.tensors.append(tensor)
        return tensor

    @property
    def last(self) -> int:
        """Index of the tensor added last."""
        return len(self.subgraph.tensors) - 1

    def value(self, name: str, shape: Sequence[int], dtype: str = "float32") -> int:
        """Adds an intermediate result."""
        self.tensor(name, shape, DTYPES[dtype])
        return self.last

    def input(self, name: str, shape: Sequence[int], dtype: str = "float32") -> int:
        """Adds an input of the graph."""
        self.subgraph.inputs.append(self.value(name, shape, dtype))
        return self.last

    def variable(self, name: str, shape: Sequence[int]) -> int:
        """Adds state that an operator keeps between runs."""
        self.tensor(name, shape, DTYPES["float32"]).isVariable = True
        return self.last

    def constant(self, name: str, array: np.ndarray) -> int:
        """Adds a constant with a buffer of its own."""
        array = np.ascontiguousarray(array)
        self.tensor(name, array.shape, DTYPES[array.dtype.name], buffer=self.model.buffer(array))
        return self.last

    def operator(
        self,
        name: str,
        inputs: Sequence[int],
        outputs: Sequence[int],
        options: Any = None,
        *,
        version: int = 1,
    ) -> schema.OperatorT:
        """Adds an operator with its options table, whichever of the two unions that belongs to."""
        operator = schema.OperatorT()
        operator.opcodeIndex = self.model.operator_code(name, version)
        operator.inputs = list(inputs)
        operator.outputs = list(outputs)
        if options is not None:
            kind = type(options).__name__.removesuffix("T")
            if hasattr(schema.BuiltinOptions, kind):
                operator.builtinOptionsType = getattr(schema.BuiltinOptions, kind)
                operator.builtinOptions = options
            else:
                operator.builtinOptions2Type = getattr(schema.BuiltinOptions2, kind)
                operator.builtinOptions2 = options
        self.subgraph.operators.append(operator)
        return operator

    def fully_connected(self, x: int, weights: np.ndarray, bias: np.ndarray | None, *, name: str) -> int:
        """Adds `x @ weights.T + bias` for weights `[out, in]` and x `[1, in]`; returns the result."""
        inputs = [x, self.constant(f"{name}/weights", weights)]
        inputs.append(ABSENT if bias is None else self.constant(f"{name}/bias", bias))
        result = self.value(name, [1, weights.shape[0]])
        self.operator("FULLY_CONNECTED", inputs, [result], schema.FullyConnectedOptionsT())
        return result

    def finish(self, *outputs: int) -> None:
        """Declares the outputs of the graph."""
        self.subgraph.outputs = list(outputs)


def weights(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Gaussian weights that keep activations near one: fan-in is all but the first axis."""
    fan_in = int(np.prod(shape[1:])) or 1
    return (rng.normal(size=shape) / np.sqrt(fan_in)).astype(np.float32)
