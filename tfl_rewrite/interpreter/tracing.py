"""One model run operator by operator: what its operators are, and what each of them gave on a sample."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfl_rewrite.interpreter.child import load_array
from tfl_rewrite.interpreter.interface import Array, Interface, TensorFacts, printable
from tfl_rewrite.interpreter.runner import Failure, RuntimeChoice, Worker
from tfl_rewrite.interpreter.scratch import Scratch


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One operator of the primary subgraph.

    Attributes:
        index: Its place in the file, which is the order of execution.
        operator: Its type, or the name of a custom operator.
        inputs: Tensors by number; -1 for an input that is left out.
        outputs: Tensors by number.
    """

    index: int
    operator: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """The primary subgraph of one opened model.

    Attributes:
        tensors: What its operators read and give, by number.
        subgraphs: How many the model has; None where the runtime does not tell.
        primary_keys: Signatures that call the primary subgraph.
    """

    interface: Interface
    nodes: tuple[Node, ...]
    tensors: dict[int, TensorFacts]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    subgraphs: int | None
    primary_keys: frozenset[str]

    def producers(self) -> dict[int, Node]:
        """For each tensor that an operator gives: that operator."""
        return {tensor: node for node in self.nodes for tensor in node.outputs}


class TraceFailed(Exception):
    """A model does not run with all tensors kept."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class _TraceWorker(Worker):
    script = Path(__file__).with_name("trace_child.py")


class Tracer:
    """A child process that holds one model open.

    Args:
        path: The model.
        choice: What to start.
        scratch: For what comes back.
        inputs: The folder that arrays of calls are below.
        timeout: Seconds for each request.
        threads: Of the interpreter.

    Raises:
        UsageError: From every method: the runtime cannot be started.
        TraceFailed: From every method: the model does not run.
    """

    def __init__(
        self,
        path: Path,
        choice: RuntimeChoice,
        scratch: Scratch,
        *,
        inputs: Path,
        timeout: float,
        threads: int,
    ) -> None:
        self._path = path
        self._scratch = scratch
        self._timeout = timeout
        self._threads = threads
        self._worker = _TraceWorker(choice, scratch.folder(), timeout=timeout, readable=[path, inputs])

    @property
    def hello(self) -> dict[str, Any]:
        """Which runtime it is: ``hello`` its name, ``version``, ``python``."""
        return self._worker.hello

    @property
    def walls(self) -> tuple[str, ...]:
        """What of the sandbox is in force."""
        return self._worker.walls

    def open(self) -> Trace:
        """Loads the model, again if it was loaded before."""
        folder = self._scratch.folder()
        request = {"do": "open", "model": str(self._path), "threads": self._threads}
        self._worker.begin(request, folder)
        execution = self._worker.finish(self._timeout)
        if execution.failure is not None:
            raise TraceFailed(execution.failure)
        self._scratch.discard(folder)
        with _understood():
            return _trace(execution.interface, execution.answer)

    def begin(self, step: int, call: dict[str, Any]) -> None:
        """Starts to run one sample; `finish` must follow.

        Args:
            step: Its number, for messages.
            call: An entry of the list that ``write_steps`` wrote.
        """
        request = {"do": "invoke", "step": step, "signature": call["signature"], "inputs": call["inputs"]}
        self._worker.begin(request, self._scratch.folder())

    def finish(self) -> dict[int, int]:
        """Waits for the sample that was begun; returns the size in bytes of what each operator gave."""
        execution = self._worker.finish(self._timeout)
        if execution.failure is not None:
            raise TraceFailed(execution.failure)
        self._scratch.discard(execution.folder)
        with _understood():
            return {int(key): int(nbytes) for key, nbytes in execution.answer["sizes"].items()}

    def read(self, step: int, tensors: Sequence[int]) -> Reading:
        """Fetches some tensors of the sample that was run last."""
        folder = self._scratch.folder()
        self._worker.begin({"do": "read", "step": step, "tensors": list(tensors)}, folder)
        execution = self._worker.finish(self._timeout)
        if execution.failure is not None:
            self._scratch.discard(folder)
            raise TraceFailed(execution.failure)
        with _understood():
            unreadable = {int(key): printable(why) for key, why in execution.answer["unreadable"].items()}
        for tensor in tensors:
            if not list(folder.glob(f"{tensor}.*")):
                unreadable.setdefault(tensor, "it was not sent")
        return Reading(folder=folder, unreadable=unreadable, scratch=self._scratch)

    def close(self) -> None:
        """Ends the process."""
        self._worker.kill()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """Tensors of one sample on disk; a context manager that removes them."""

    folder: Path
    unreadable: dict[int, str]
    scratch: Scratch

    def __enter__(self) -> Reading:
        return self

    def __exit__(self, *_: object) -> None:
        self.scratch.discard(self.folder)

    def array(self, tensor: int) -> Array:
        """One of them, mapped when large."""
        found: Array = load_array(self.folder / str(tensor))
        return found


def _trace(interface: Interface | None, answer: dict[str, Any]) -> Trace:
    if interface is None:
        raise ValueError("no interface")
    return Trace(
        interface=interface,
        nodes=tuple(
            Node(index=index, operator=operator, inputs=tuple(inputs), outputs=tuple(outputs))
            for index, (operator, inputs, outputs) in enumerate(answer["nodes"])
        ),
        tensors={int(key): TensorFacts.from_dict(facts) for key, facts in answer["tensors"].items()},
        inputs=tuple(answer["inputs"]),
        outputs=tuple(answer["outputs"]),
        subgraphs=answer["subgraphs"],
        primary_keys=frozenset(answer["primary"]),
    )


@contextlib.contextmanager
def _understood() -> Iterator[None]:
    """The protocol is ours: a process that does not keep to it is not itself any more.

    Raises:
        TraceFailed: Instead of what an answer of another form raises.
    """
    try:
        yield
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        text = f"the interpreter process sent what is no answer: {printable(str(error))}"
        raise TraceFailed(Failure(kind="crash", stage="running", step=None, message=text)) from error
