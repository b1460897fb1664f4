"""The parent's side of the process that runs a model for its activations."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tfl_rewrite.interpreter.child import load_array, save_array
from tfl_rewrite.interpreter.interface import printable
from tfl_rewrite.interpreter.memory import MemoryWatch, amount
from tfl_rewrite.interpreter.process import CPU_REQUESTS, START_SECONDS, Child, Walls, cpu_seconds
from tfl_rewrite.interpreter.runner import RuntimeChoice
from tfl_rewrite.interpreter.scratch import Scratch, unwritable


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
        self._models: list[Path] = []
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
        if self._path not in model.parents and model not in self._models:
            # The process was started without: it may read what it was told to and no more.
            self._models.append(model)
            self._kill()
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
        folder = self._scratch.folder()
        self._ask({"do": "get", "output": position}, folder)
        array: npt.NDArray[Any] = np.array(load_array(folder / "output"))
        self._scratch.discard(folder)
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
        script = Path(__file__).with_name("child.py")
        # Parts and inputs are made while it runs.
        walls = Walls(
            scratch=self._scratch.folder(),
            readable=(self._path, *self._models),
            cpu_seconds=CPU_REQUESTS * cpu_seconds(self._timeout),
        )
        command = walls.command(self._runtime.python, script, self._runtime.wanted)
        try:
            child = self._child = Child(command, self._path / "stderr", self._watch, scratch=walls.scratch)
        except OSError as error:
            raise CalibrationError(f"{self._runtime.python} cannot be started: {error.strerror}") from error
        child.watch_memory()
        self._answer(child, START_SECONDS)
        return child

    def _ask(self, request: dict[str, Any], folder: Path | None = None) -> None:
        child = self._child
        if child is None or child.has_ended:
            self._kill()
            child = self._start()
        child.ask(request, folder)
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
        if "unwritable" in message:
            self._kill()
            raise unwritable(message["unwritable"])
        if "broken" in message:
            self._kill()
            raise CalibrationError(f"the interpreter process sent {printable(message['broken'])}")
        if "error" in message:
            raise CalibrationError(printable(str(message["error"]).strip().partition("\n")[0]))
