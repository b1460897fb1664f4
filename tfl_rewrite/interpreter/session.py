"""A model that a child process holds open, to be called and asked for its tensors."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfl_rewrite.interpreter.child import load_array
from tfl_rewrite.interpreter.interface import Array, Interface, printable
from tfl_rewrite.interpreter.scratch import Scratch
from tfl_rewrite.interpreter.worker import Execution, Failure, Worker


class ModelFailed(Exception):
    """A model does not run; the text says why.

    Attributes:
        failure: The same, where the child process told it.
    """

    def __init__(self, why: Failure | str) -> None:
        super().__init__(why if isinstance(why, str) else why.message)
        self.failure = None if isinstance(why, str) else why


class Session:
    """One model at a time that a child process holds open: called, and asked for tensors.

    Args:
        worker: The process.
        scratch: For what comes back.
        timeout: Seconds for each request.

    Raises:
        UsageError: From every method: the runtime cannot be started.
        ModelFailed: From every method: the model does not run.
    """

    def __init__(self, worker: Worker, scratch: Scratch, timeout: float) -> None:
        self.worker = worker
        self._scratch = scratch
        self._timeout = timeout

    def open(self, verb: str, model: Path, resolver: str, threads: int) -> tuple[Interface, dict[str, Any]]:
        """Opens a model, again if it is open.

        Args:
            verb: ``open``, or ``trace`` to fetch what operators inside give.
            model: The file.
            resolver: Which kernels.
            threads: Of the interpreter.

        Returns:
            What it takes and gives, and the answer of the verb.
        """
        request = {"do": verb, "model": str(model), "resolver": resolver, "threads": threads}
        execution = self._asked(request)
        self._scratch.discard(execution.folder)
        if execution.interface is None:
            raise ModelFailed("the interpreter process does not describe the model")
        return execution.interface, execution.answer

    def begin(
        self, step: int, signature: str | None, inputs: Sequence[Sequence[str]], *, sizes: bool = False
    ) -> None:
        """Starts to run one call; `finish` must follow.

        Args:
            step: Its number, for messages.
            signature: That it enters; None for the primary subgraph.
            inputs: Names, and where their arrays are stored.
            sizes: Whether `finish` returns them.
        """
        request = {"do": "call", "step": step, "signature": signature, "inputs": inputs, "sizes": sizes}
        self.worker.begin(request, self._scratch.folder())

    def finish(self) -> dict[int, int]:
        """Waits for the call that was begun; returns the size in bytes of what each operator gave."""
        execution = self._finished()
        self._scratch.discard(execution.folder)
        with understood():
            return {int(key): int(nbytes) for key, nbytes in execution.answer.get("sizes", {}).items()}

    def get(self, step: int, tensors: Sequence[int]) -> Tensors:
        """Fetches some tensors of the call that was run last."""
        execution = self._asked({"do": "get", "step": step, "tensors": list(tensors)})
        with understood():
            unreadable = {int(key): printable(why) for key, why in execution.answer["unreadable"].items()}
        for tensor in tensors:
            if not list(execution.folder.glob(f"{tensor}.*")):
                unreadable.setdefault(tensor, "it was not sent")
        return Tensors(folder=execution.folder, unreadable=unreadable, scratch=self._scratch)

    def _asked(self, request: dict[str, Any]) -> Execution:
        self.worker.begin(request, self._scratch.folder())
        return self._finished()

    def _finished(self) -> Execution:
        execution = self.worker.finish(self._timeout)
        if execution.failure is not None:
            self._scratch.discard(execution.folder)
            raise ModelFailed(execution.failure)
        return execution


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensors:
    """Tensors of one call on disk; a context manager that removes them.

    Attributes:
        unreadable: Why some of them cannot be read, by number.
    """

    folder: Path
    unreadable: dict[int, str]
    scratch: Scratch

    def __enter__(self) -> Tensors:
        return self

    def __exit__(self, *_: object) -> None:
        self.scratch.discard(self.folder)

    def array(self, tensor: int) -> Array:
        """One of them, mapped when large."""
        found: Array = load_array(self.folder / str(tensor))
        return found


@contextlib.contextmanager
def understood() -> Iterator[None]:
    """The protocol is ours: a process that does not keep to it is not itself any more.

    Raises:
        ModelFailed: Instead of what an answer of another form raises.
    """
    try:
        yield
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        text = f"the interpreter process sent what is no answer: {printable(str(error))}"
        raise ModelFailed(Failure(kind="crash", stage="running", step=None, message=text)) from error
