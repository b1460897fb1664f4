"""TFLite Micro behind the interface that the other runtimes have; meant for the child process.

The child loads this file by path: it imports nothing of its package. TFLite Micro knows the inputs and
outputs of the main subgraph by position, and no names, signatures or other sizes; those are read from the
file here.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

ARENA_NBYTES = 256 << 20
"""What a model may take beside its constants; only what is used is touched."""
_SCHEMA = "tflite_micro.tensorflow.lite.micro.python.schema_py_generated"


class OpResolverType:
    """It has no other kernels than its own."""


class Interpreter:
    """A model in TFLite Micro.

    Args:
        model_path: The file.
        num_threads: Not heeded: there is one.
        experimental_preserve_all_tensors: Whether what operators give can be read afterwards.
    """

    def __init__(
        self, model_path: str, num_threads: int = 1, experimental_preserve_all_tensors: bool = False
    ) -> None:
        self._data = Path(model_path).read_bytes()
        self._keeps = experimental_preserve_all_tensors
        self._work: Any = None
        schema = importlib.import_module(_SCHEMA)
        self._types = {
            value: name.lower() for name, value in vars(schema.TensorType).items() if not name.startswith("_")
        }
        self._model = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(self._data, 0))
        if not self._model.subgraphs:
            raise ValueError("the model has no subgraph")
        self._main = self._model.subgraphs[0]
        self._inputs = _list(self._main.inputs)
        self._outputs = _list(self._main.outputs)

    def allocate_tensors(self) -> None:
        """Makes the arena and prepares the kernels."""
        runtime = importlib.import_module("tflite_micro.python.tflite_micro.runtime")
        config = runtime.InterpreterConfig
        wanted = config.kPreserveAllTensors if self._keeps else config.kAllocationRecording
        with _explained():
            self._work = runtime.Interpreter.from_bytes(
                self._data, arena_size=ARENA_NBYTES, intrepreter_config=wanted
            )

    def get_input_details(self) -> list[dict[str, Any]]:
        """What the main subgraph takes."""
        return [self._detail(index) for index in self._inputs]

    def get_output_details(self) -> list[dict[str, Any]]:
        """What it gives."""
        return [self._detail(index) for index in self._outputs]

    def get_tensor_details(self) -> list[dict[str, Any]]:
        """All tensors of the main subgraph."""
        return [self._detail(index) for index in range(len(_list(self._main.tensors)))]

    def get_signature_list(self) -> dict[str, Any]:
        """The signatures of the main subgraph; it runs no others."""
        return {
            _text(item.signatureKey): item
            for item in _list(self._model.signatureDefs)
            if item.subgraphIndex == 0
        }

    def get_signature_runner(self, key: str) -> Runner:
        """A signature."""
        item = self.get_signature_list()[key]
        return Runner(self, _list(item.inputs), _list(item.outputs))

    def resize_tensor_input(self, index: int, shape: list[int]) -> None:
        """Refuses: shapes are those of the file."""
        raise ValueError(f"TFLite Micro takes inputs of the recorded shape only, not {shape}")

    def set_tensor(self, index: int, value: Any) -> None:
        """Sets an input, by number of the tensor."""
        for position, tensor in enumerate(self._inputs):
            if tensor == index:
                shape = _list(self._main.tensors[tensor].shape)
                # A number may come as a vector of one: not every file records its shape.
                fits = int(np.prod(shape, dtype=np.int64)) == np.size(value)
                given = np.reshape(value, shape) if fits else value
                self._work.set_input(np.ascontiguousarray(given).reshape(np.shape(given)), position)

    def invoke(self) -> None:
        """Runs the main subgraph."""
        with _explained():
            self._work.invoke()

    def get_tensor(self, index: int) -> Any:
        """What a tensor holds, by its number."""
        if index in self._outputs:
            return np.array(self._work.get_output(self._outputs.index(index)))
        return np.array(self._work.GetTensor(index, 0))

    def _detail(self, index: int) -> dict[str, Any]:
        tensor = self._main.tensors[index]
        details = tensor.quantization
        shape = np.array(_list(tensor.shape), np.int32)
        signature = _list(tensor.shapeSignature)
        kind = self._types[tensor.type]
        return {
            "index": index,
            "name": _text(tensor.name),
            "shape": shape,
            "shape_signature": np.array(signature, np.int32) if signature else shape,
            "dtype": np.dtype("O") if kind == "string" else np.dtype(kind if kind != "int4" else "int8"),
            "quantization_parameters": {
                "scales": _list(details.scale if details is not None else None),
                "zero_points": _list(details.zeroPoint if details is not None else None),
                "quantized_dimension": details.quantizedDimension if details is not None else 0,
            },
        }


class Runner:
    """A signature of the main subgraph.

    Args:
        owner: The model.
        inputs: Names and tensors.
        outputs: Likewise.
    """

    def __init__(self, owner: Interpreter, inputs: list[Any], outputs: list[Any]) -> None:
        self._owner = owner
        self._inputs = {_text(item.name): int(item.tensorIndex) for item in inputs}
        self._outputs = {_text(item.name): int(item.tensorIndex) for item in outputs}

    def get_input_details(self) -> dict[str, Any]:
        """What it takes, by name."""
        return {name: self._owner._detail(index) for name, index in self._inputs.items()}

    def get_output_details(self) -> dict[str, Any]:
        """What it gives, by name."""
        return {name: self._owner._detail(index) for name, index in self._outputs.items()}

    def __call__(self, **values: Any) -> dict[str, Any]:
        """Runs it."""
        for name, index in self._inputs.items():
            self._owner.set_tensor(index, values[name])
        self._owner.invoke()
        return {name: self._owner.get_tensor(index) for name, index in self._outputs.items()}


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Says of a failure what was printed before it: the exception itself gives no reason."""
    try:
        kept, told = os.dup(2), os.memfd_create("told")
    except (OSError, AttributeError):
        yield
        return
    os.dup2(told, 2)
    try:
        yield
    except RuntimeError as error:
        os.lseek(told, 0, os.SEEK_SET)
        lines = os.read(told, 1 << 16).decode("utf-8", "replace").split("\n")
        said = [line.strip() for line in lines if line.strip() and not line.startswith(("Traceback", " "))]
        raise RuntimeError("; ".join([*said[-2:], str(error)])) from None
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(told)


def _list(values: Any) -> list[Any]:
    return [] if values is None else list(values)


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value or "")
