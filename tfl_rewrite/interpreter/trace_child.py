"""The process that runs a model with every tensor kept and hands out what its operators gave.

Like its neighbour ``child.py``, whose protocol it speaks, this is a script for whatever Python holds the
interpreter: it imports nothing of its package and keeps to what Python 3.9 and numpy 1.x offer. Only the
answers differ: the interpreter is made without delegates, which would compute several operators as one, and
stays open from one request to the next, so that tensors can be fetched in batches.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

Answer = tuple[dict[str, Any], list[Any]]
"""What is told of a request that was carried out, and arrays that were made ready to be sent."""


class TraceService:
    """Answers the requests of one parent about one model.

    ``open`` describes the model, its operators and their tensors; ``invoke`` runs one sample; ``read`` sends
    the values of some tensors.

    Args:
        files: The script of verification.
        runtime: The interpreter's.
        channel: To the parent.
    """

    def __init__(self, files: Any, runtime: Any, channel: Any) -> None:
        self._files = files
        self._runtime = runtime
        self._emit = channel.send
        self._interpreter: Any = None
        self._facts: dict[str, Any] = {}
        self._nodes: list[tuple[str, list[int], list[int]]] = []
        self._where: dict[str, Any] = {}

    def answer(self, request: dict[str, Any]) -> None:
        """Carries out one request; its last message has either ``done`` or ``error``."""
        started = time.monotonic()
        self._where = {"stage": "opening"}
        actions = {"open": self._open, "invoke": self._invoke, "read": self._read}
        try:
            answer, arrays = actions[request["do"]](request)
            self._emit({"done": True, "answer": answer, "seconds": time.monotonic() - started}, arrays)
        except Exception as error:
            self._emit({**self._where, "error": str(error) or type(error).__name__})

    def _enter(self, stage: str, **where: Any) -> None:
        self._where = {"stage": stage, **where}
        self._emit(self._where)

    def _open(self, request: dict[str, Any]) -> Answer:
        self._enter("opening")
        interpreter = self._runtime.interpreter(
            model_path=request["model"],
            num_threads=request["threads"],
            experimental_op_resolver_type=self._runtime.resolvers.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
            experimental_preserve_all_tensors=True,
        )
        self._facts = self._files.describe(interpreter)
        self._emit({"facts": self._facts})
        self._nodes = self._files._nodes(interpreter)
        self._enter("allocating")
        interpreter.allocate_tensors()
        self._interpreter = interpreter
        used = {tensor for _, inputs, outputs in self._nodes for tensor in (*inputs, *outputs)}
        tensors = {
            int(detail["index"]): self._files.tensor_facts(detail, detail["name"], {})
            for detail in interpreter.get_tensor_details()
            if int(detail["index"]) in used
        }
        answer = {
            "nodes": self._nodes,
            "tensors": tensors,
            "inputs": [facts["index"] for facts in self._facts["inputs"]],
            "outputs": [facts["index"] for facts in self._facts["outputs"]],
            "subgraphs": _subgraph_count(interpreter),
            "primary": [
                entry["key"] for entry in self._facts["signatures"] if self._is_primary(entry, interpreter)
            ],
        }
        return answer, []

    def _is_primary(self, entry: dict[str, Any], interpreter: Any) -> bool:
        """Whether a signature calls the primary subgraph; the oldest runtimes tell only by its tensors."""
        number = self._files._subgraph_of(interpreter, entry["key"])
        if number >= 0:
            return bool(number == 0)
        own = {(facts["index"], facts["tensor"]) for facts in self._facts["inputs"]}
        return bool({(facts["index"], facts["tensor"]) for facts in entry["inputs"]} == own)

    def _invoke(self, request: dict[str, Any]) -> Answer:
        self._enter("running", step=request["step"])
        interpreter = self._interpreter
        targets = self._facts["inputs"]
        if request["signature"] is not None:
            entries = {entry["key"]: entry["inputs"] for entry in self._facts["signatures"]}
            if request["signature"] in entries:
                targets = entries[request["signature"]]
        values = [(name, self._files.load_array(Path(stem))) for name, stem in request["inputs"]]
        if len(values) != len(targets):
            raise ValueError(f"the model has {len(targets)} inputs, the samples {len(values)}")
        given = dict(values)
        by_name = request["signature"] is not None and set(given) == {facts["name"] for facts in targets}
        placed = {
            facts["index"]: given[facts["name"]] if by_name else values[position][1]
            for position, facts in enumerate(targets)
        }
        shapes = {int(detail["index"]): list(detail["shape"]) for detail in interpreter.get_input_details()}
        resized = [index for index, value in placed.items() if shapes.get(index) != list(value.shape)]
        for index in resized:
            interpreter.resize_tensor_input(index, list(placed[index].shape))
        if resized:
            interpreter.allocate_tensors()
        try:
            interpreter.reset_all_variables()
        except (AttributeError, RuntimeError):
            pass  # It has none that can be reset.
        for index, value in placed.items():
            interpreter.set_tensor(index, value)
        interpreter.invoke()
        produced = {tensor for _, _, outputs in self._nodes for tensor in outputs}
        sizes = {}
        for detail in interpreter.get_tensor_details():
            index, dtype = int(detail["index"]), np.dtype(detail["dtype"])
            if index in produced:
                elements = int(np.prod([int(size) for size in detail["shape"]], dtype=np.int64))
                sizes[index] = elements * max(1, dtype.itemsize)
        return {"sizes": sizes}, []

    def _read(self, request: dict[str, Any]) -> Answer:
        self._enter("running", step=request["step"])
        unreadable, arrays = {}, []
        for index in request["tensors"]:
            try:
                # A resource has no value, and comes as an object that is none.
                arrays.append(self._files.packed(str(index), self._interpreter.get_tensor(index)))
            except Exception as error:
                unreadable[index] = str(error) or type(error).__name__
        return {"unreadable": unreadable}, arrays


def _subgraph_count(interpreter: Any) -> int | None:
    try:
        return int(interpreter._interpreter.NumSubgraphs())
    except Exception:
        return None


def main(sandbox: Any, wanted: str) -> None:
    """Answers the requests of one parent; see ``child.py``."""
    files = sandbox.script("interpreter/child.py")
    files.main(sandbox, wanted, lambda runtime, channel: TraceService(files, runtime, channel))
