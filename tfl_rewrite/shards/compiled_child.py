"""The process that runs a model in LiteRT's CompiledModel, the only runtime that reads external buffers.

This file is a script, started by ``interpreter/sandbox.py``. It imports nothing of its package but the
neighbouring script of verification, whose protocol it speaks, and that by path.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np


def as_known(array: Any) -> Any:
    """Bytes in a type that the runtime's buffers take: they know few types, but only move bytes."""
    if array.dtype in (np.float32, np.int32, np.int8, np.uint8, np.bool_):
        return array
    return np.ascontiguousarray(array).reshape(-1).view(np.int8)


def run_step(files: Any, model: Any, step: dict[str, Any]) -> list[Any]:
    """Runs one call; returns the outputs."""
    key = step["signature"]
    if key is None:
        # A model without signatures has one that the runtime made.
        key = model.get_signature_by_index(0)["key"]
    names = model.get_signature_list()[key]
    details = model.get_input_tensor_details(key)
    given = [(name, files.load_array(Path(stem))) for name, stem in step["inputs"]]
    if len(given) != len(names["inputs"]):
        raise ValueError(f"the model has {len(names['inputs'])} inputs, the samples {len(given)}")
    if {name for name, _ in given} != set(names["inputs"]):
        given = [(name, array) for name, (_, array) in zip(names["inputs"], given)]  # noqa: B905
    for name, array in given:
        if list(details[name]["shape"]) != list(array.shape):
            model.resize_input_tensor_by_name(key, name, list(array.shape), strict=False)
    inputs = {}
    for name, array in given:
        inputs[name] = model.create_input_buffer_by_name(key, name)
        inputs[name].write(as_known(array))
    wanted = step["outputs"]
    if set(wanted) != set(names["outputs"]):
        wanted = names["outputs"]
    outputs = {name: model.create_output_buffer_by_name(key, name) for name in wanted}
    model.run_by_name(key, inputs, outputs)
    results = []
    for name in wanted:
        facts = outputs[name].get_tensor_details()
        shape = [int(size) for size in facts["shape"]]
        dtype = np.dtype(str(facts["dtype"]))
        known = as_known(np.empty(shape, dtype))
        results.append(outputs[name].read(known.size, known.dtype).view(dtype).reshape(shape))
    return results


class Service:
    """Answers the requests of one parent: one model each.

    Args:
        files: The script of verification.
        channel: To the parent.
    """

    def __init__(self, files: Any, channel: Any) -> None:
        from ai_edge_litert.compiled_model import CompiledModel

        self._open = CompiledModel.from_file
        self._files = files
        self._send = channel.send
        # The runtime's own clean-up has been seen to crash after all was said.
        self._held: list[Any] = []

    def answer(self, request: dict[str, Any]) -> None:
        """Carries out one request; its last message has either ``done`` or ``error``."""
        started = time.monotonic()
        where: dict[str, Any] = {"stage": "opening"}
        try:
            self._send(where)
            model = self._open(request["model"])
            self._held.append(model)
            for number, step in enumerate(request["steps"]):
                where = {"stage": "running", "step": number}
                self._send(where)
                results = run_step(self._files, model, step)
                arrays = [
                    self._files.packed(f"{number}.{place}", result) for place, result in enumerate(results)
                ]
                self._send({"ran": number, "unreadable": [None] * len(arrays)}, arrays)
            self._send({"done": True, "seconds": time.monotonic() - started})
        except Exception as error:
            self._send({**where, "error": f"{type(error).__name__}: {error}"})


def main(sandbox: Any, wanted: str) -> None:
    """Answers the requests of one parent; see ``child.py``."""
    files = sandbox.script("interpreter/child.py")
    files.main(sandbox, wanted, lambda _, channel: Service(files, channel))
