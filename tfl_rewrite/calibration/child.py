"""The process that runs a model and hands its outputs out one by one.

This file is a script, started by ``interpreter/sandbox.py`` with whatever Python holds the interpreter. It
imports nothing of its package but the neighbouring script of verification, which knows the interpreters, and
that by path. It speaks JSON lines: requests on standard input, messages on what was standard output when it
started.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


class Service:
    """Holds one interpreter and answers requests about it.

    Args:
        files: The script of verification.
        runtime: The interpreter's.
    """

    def __init__(self, files: Any, runtime: Any) -> None:
        self._files = files
        self._runtime = runtime
        self._interpreter: Any = None

    def open(self, request: dict[str, Any]) -> list[Any]:
        """Opens a model, with the default delegates or, where those fail, without."""
        self._interpreter = None
        self._interpreter = self._runtime.build(request["model"], request["resolver"], request["threads"])
        self._interpreter.allocate_tensors()
        return []

    def run(self, request: dict[str, Any]) -> list[Any]:
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
        return []

    def get(self, request: dict[str, Any]) -> list[Any]:
        """Sends one output of the last run."""
        detail = self._interpreter.get_output_details()[request["output"]]
        return [self._files.packed("output", self._interpreter.get_tensor(detail["index"]))]


def main(sandbox: Any, wanted: str) -> None:
    """Says hello, then answers requests until standard input closes."""
    files = sandbox.script("interpreter/child.py")
    channel = files.Channel()
    try:
        service = Service(files, files.find_runtime(wanted))
    except ImportError as error:
        channel.send({"error": str(error)})
        return
    sandbox.seal()
    channel.send({})
    for line in sys.stdin:
        request = json.loads(line)
        try:
            actions = {"open": service.open, "run": service.run, "get": service.get}
            arrays = actions[request["do"]](request)
        except Exception as error:
            channel.send({"error": str(error) or type(error).__name__})
        else:
            channel.send({}, arrays)
