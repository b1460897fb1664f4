"""The process that runs a model and hands its outputs out one by one.

This file is a script, started by path with whatever Python holds the interpreter. It imports nothing of its
package but the neighbouring script of verification, which knows the interpreters, and that by path too. It
speaks JSON lines: requests on standard input, messages on what was standard output when it started.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    # The folder of this script would otherwise come first, and its neighbours shadow foreign modules.
    del sys.path[0]

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import numpy as np


def _neighbour() -> Any:
    path = Path(__file__).parents[1] / "verification" / "child.py"
    spec = importlib.util.spec_from_file_location("_interpreters", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Service:
    """Holds one interpreter and answers requests about it."""

    def __init__(self, wanted: str) -> None:
        self._files = _neighbour()
        self._runtime = self._files.find_runtime(wanted)
        self._interpreter: Any = None

    def open(self, request: dict[str, Any]) -> None:
        """Opens a model, with the default delegates or, where those fail, without."""
        self._interpreter = None
        self._interpreter = self._runtime.build(request["model"], request["resolver"], request["threads"])
        self._interpreter.allocate_tensors()

    def run(self, request: dict[str, Any]) -> None:
        """Runs the primary subgraph on inputs by position."""
        values = [self._files.load_array(Path(stem)) for stem in request["inputs"]]
        details = self._interpreter.get_input_details()
        if [[int(size) for size in detail["shape"]] for detail in details] != [list(v.shape) for v in values]:
            for position, value in enumerate(values):
                self._interpreter.resize_tensor_input(details[position]["index"], list(value.shape))
            self._interpreter.allocate_tensors()
        try:
            self._interpreter.reset_all_variables()
        except Exception:
            # Variable tensors of a subgraph that was never allocated; allocation clears them.
            pass
        for position, value in enumerate(values):
            self._interpreter.set_tensor(details[position]["index"], value)
        self._interpreter.invoke()

    def get(self, request: dict[str, Any]) -> None:
        """Saves one output of the last run."""
        detail = self._interpreter.get_output_details()[request["output"]]
        array = np.asarray(self._interpreter.get_tensor(detail["index"]))
        np.save(request["to"], array, allow_pickle=False)


def main(wanted: str) -> None:
    """Says hello, then answers requests until standard input closes."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def emit(message: dict[str, Any]) -> None:
        channel.write(json.dumps(message) + "\n")
        channel.flush()

    try:
        service = Service(wanted)
    except ImportError as error:
        emit({"error": str(error)})
        return
    emit({})
    for line in sys.stdin:
        request = json.loads(line)
        try:
            {"open": service.open, "run": service.run, "get": service.get}[request["do"]](request)
        except Exception as error:
            emit({"error": str(error) or type(error).__name__})
        else:
            emit({})


if __name__ == "__main__":
    main(sys.argv[1])
