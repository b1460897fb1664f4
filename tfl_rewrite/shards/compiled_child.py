"""The process that runs a model in LiteRT's CompiledModel, the only runtime that reads external buffers.

This file is a script: it imports nothing of its package, because a model may crash the process. Arguments: a
file with the request, as JSON. Outputs go to ``.npy`` files, one JSON line a call to standard output.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    # The folder of this script would otherwise come first, and its neighbours shadow foreign modules.
    del sys.path[0]

import json
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np


def as_known(array: Any) -> Any:
    """Bytes in a type that the runtime's buffers take: they know few types, but only move bytes."""
    if array.dtype in (np.float32, np.int32, np.int8, np.uint8, np.bool_):
        return array
    return np.ascontiguousarray(array).reshape(-1).view(np.int8)


def run_step(model: Any, step: dict[str, Any], stem: str) -> list[list[int]]:
    """Runs one call; returns the shapes of the outputs, which it wrote to ``stem.N.npy``."""
    key = step["signature"]
    if key is None:
        # A model without signatures has one that the runtime made.
        key = model.get_signature_by_index(0)["key"]
    names = model.get_signature_list()[key]
    details = model.get_input_tensor_details(key)
    given = [(name, np.load(f"{path}.npy", allow_pickle=False)) for name, path in step["inputs"]]
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
    shapes = []
    for position, name in enumerate(wanted):
        facts = outputs[name].get_tensor_details()
        shape = [int(size) for size in facts["shape"]]
        dtype = np.dtype(str(facts["dtype"]))
        known = as_known(np.empty(shape, dtype))
        array = outputs[name].read(known.size, known.dtype).view(dtype)
        np.save(f"{stem}.{position}.npy", array.reshape(shape), allow_pickle=False)
        shapes.append(shape)
    return shapes


def main(path: str) -> None:
    """Carries out one request."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        import resource

        # A model that aborts its process is a normal finding: no core files of it.
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (ImportError, OSError, ValueError):
        pass

    def emit(message: dict[str, Any]) -> None:
        channel.write(json.dumps(message) + "\n")
        channel.flush()

    def watch() -> None:
        sys.stdin.read()
        os._exit(0)

    # Standard input closes when the parent is gone, however it went.
    threading.Thread(target=watch, daemon=True).start()
    request = json.loads(Path(path).read_text(encoding="utf-8"))
    try:
        from ai_edge_litert.compiled_model import CompiledModel

        model = CompiledModel.from_file(request["model"])
        for number, step in enumerate(request["steps"]):
            emit({"ran": run_step(model, step, f"{request['out']}/{number}")})
        emit({"done": True})
    except Exception as error:
        emit({"error": f"{type(error).__name__}: {error}"})
    # The runtime's own clean-up has been seen to crash after all was said.
    channel.close()
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1])
