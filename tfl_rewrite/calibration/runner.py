"""The parent's side of the process that runs a model for its activations."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tfl_rewrite.verification.child import save_array
from tfl_rewrite.verification.cleanup import Scratch
from tfl_rewrite.verification.memory import MemoryWatch, amount
from tfl_rewrite.verification.process import START_SECONDS, Child
from tfl_rewrite.verification.runner import RuntimeChoice


class CalibrationError(Exception):
    """The model cannot be run for its activations; the text says why."""


class Runner:
    """One child process that runs one model at a time, started when first asked; a context manager.

    Args:
        runtime: Which interpreter.
        timeout: Seconds for each request.
        threads: Of the interpreter.
        watch: Of its memory.
    """

    def __init__(
        self,
        runtime: RuntimeChoice,
        *,
        timeout: float = 600.0,
        threads: int = 1,
        watch: MemoryWatch | None = None,
    ) -> None:
        self._runtime = runtime
        self._watch = watch or MemoryWatch(None)
        self._timeout = timeout
        self._threads = threads
        self._scratch = Scratch()
        self._path = self._scratch.path
        self._child: Child | None = None
        self._stored: dict[int, tuple[object, str]] = {}

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def folder(self) -> Path:
        """A temporary folder that lives as long as this."""
        return self._path

    def open(self, model: Path, *, delegates: bool = True) -> None:
        """Opens a model.

        Args:
            model: The file.
            delegates: Whether the default delegates may run it.

        Raises:
            CalibrationError: The runtime refuses it.
        """
        resolver = "default" if delegates else "plain"
        self._ask({"do": "open", "model": str(model), "threads": self._threads, "resolver": resolver})

    def run(self, values: Sequence[npt.NDArray[Any]]) -> None:
        """Runs the primary subgraph on its inputs, in order.

        Raises:
            CalibrationError: It fails.
        """
        self._ask({"do": "run", "inputs": [self._store(value) for value in values]})

    def output(self, position: int) -> npt.NDArray[Any]:
        """Returns an output of the last run.

        Raises:
            CalibrationError: It cannot be read.
        """
        path = self._path / "output.npy"
        self._ask({"do": "get", "output": position, "to": str(path)})
        array: npt.NDArray[Any] = np.load(path, allow_pickle=False)
        path.unlink()
        return array

    def close(self) -> None:
        """Ends the process and removes the folder."""
        self._kill()
        self._scratch.close()

    def _kill(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.kill()

    def _store(self, value: npt.NDArray[Any]) -> str:
        known = self._stored.get(id(value))
        if known is None:
            stem = str(self._path / f"input{len(self._stored)}")
            save_array(Path(stem), value)
            # The array is held, so that no other gets its id.
            known = self._stored[id(value)] = (value, stem)
        return known[1]

    def _start(self) -> Child:
        script = str(Path(__file__).with_name("child.py"))
        command = [self._runtime.python, script, self._runtime.wanted]
        try:
            child = self._child = Child(command, self._path / "stderr", self._watch)
        except OSError as error:
            raise CalibrationError(f"{self._runtime.python} cannot be started: {error.strerror}") from error
        child.watch_memory()
        self._answer(child, START_SECONDS)
        return child

    def _ask(self, request: dict[str, Any]) -> None:
        child = self._child
        if child is None or child.has_ended:
            self._kill()
            child = self._start()
        child.ask(request)
        self._answer(child, self._timeout)

    def _answer(self, child: Child, timeout: float) -> None:
        began = time.monotonic()
        try:
            message = child.message(timeout)
        except TimeoutError:
            self._kill()
            raise CalibrationError(f"was stopped after {time.monotonic() - began:.0f} s") from None
        if message is None:
            # Its end may be known before the system says so; it must not be asked again.
            self._kill()
            limit = self._watch.limit
            if limit is not None and self._watch.ended(child.pid) is not None:
                raise CalibrationError(f"took more memory than {amount(limit)}")
            raise CalibrationError("the interpreter process died")
        if "error" in message:
            raise CalibrationError(str(message["error"]).strip().splitlines()[0][:300])
