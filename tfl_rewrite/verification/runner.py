"""The parent's side of the child processes: start, ask, wait, kill, and name what went wrong.

An interpreter may abort, crash or never return on a file that it does not like. Each of those is a `Failure`
with a sentence; none is an exception here.
"""

from __future__ import annotations

import re
import shutil
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import UsageError
from .child import load_array
from .cleanup import unwritable
from .interface import Interface, printable
from .memory import REFUSED, MemoryWatch, amount
from .process import START_SECONDS, Child
from .samples import Array

RESOLVERS = {
    "default": "default delegates (XNNPACK)",
    "builtin": "built-in kernels without default delegates",
    "reference": "reference kernels",
}
STAGES = {"opening": "opening the model", "allocating": "allocating its tensors", "running": "running it"}
# Lines of the runtime that say nothing about a failure.
NOISE = re.compile(r"^\s*$|^INFO|^I0000|^WARNING|^W0000|^\*\*\*|^E0000.*(cuda|computation_placer|register)")


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeChoice:
    """Which interpreter judges: the Python to start, and what to import there."""

    python: str
    wanted: str
    given: str

    @classmethod
    def parse(cls, runtime: str) -> RuntimeChoice:
        """From ``litert``, ``tensorflow`` or ``python:PATH``.

        Raises:
            UsageError: Another word, or PATH is not an executable file.
        """
        if runtime in ("litert", "tensorflow"):
            if not sys.executable:
                raise UsageError(
                    "this program does not know its own Python", remedy="name one with runtime 'python:PATH'"
                )
            return cls(python=sys.executable, wanted=runtime, given=runtime)
        kind, _, path = runtime.partition(":")
        if kind != "python" or not path:
            raise UsageError(
                f"unknown runtime {printable(runtime)!r}", remedy="use litert, tensorflow or python:PATH"
            )
        found = shutil.which(Path(path).expanduser())
        if found is None:
            raise UsageError("not an executable file", file=path, remedy="name a Python with an interpreter")
        return cls(python=found, wanted="any", given=runtime)

    @property
    def remedy(self) -> str:
        """What to do when nothing can be imported."""
        if self.wanted == "any":
            return f"install ai-edge-litert (or tflite-runtime, or tensorflow) for {self.python}"
        package = "ai-edge-litert" if self.wanted == "litert" else "tensorflow"
        return f"install it with: pip install {package}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a model did not run to its end.

    Attributes:
        kind: ``error`` (the runtime refused), ``crash`` (the process died), ``timeout`` or ``memory``.
        stage: ``opening``, ``allocating`` or ``running``.
        step: Number of the call that was running.
        message: The whole as a sentence, printable.
        crowded: It was too much memory only with what another process took at the same time.
    """

    kind: str
    stage: str
    step: int | None
    message: str
    crowded: bool = False


@dataclass(slots=True, kw_only=True)
class Execution:
    """What one request left: the outputs of the calls that ended, in ``folder``.

    Attributes:
        ran: For each call that ended, why an output could not be read (None where it could).
        dropped: The optional call that was refused, and the reason.
    """

    folder: Path
    interface: Interface | None = None
    ran: list[list[str | None]] = field(default_factory=list)
    dropped: tuple[int, str] | None = None
    failure: Failure | None = None
    seconds: float = 0.0

    def output(self, step: int, position: int) -> Array:
        """One output: large ones are mapped, so the folder must still exist."""
        array: Array = load_array(self.folder / f"{step}.{position}")
        return array


class Worker:
    """One child process, started when first asked and started again after it died.

    Args:
        runtime: What to start.
        folder: Where its standard error is kept.
        watch: Of its memory.
    """

    script = Path(__file__).with_name("child.py")
    """What is started; others speak the same protocol."""

    def __init__(self, runtime: RuntimeChoice, folder: Path, watch: MemoryWatch | None = None) -> None:
        self._runtime = runtime
        self._watch = watch or MemoryWatch(None)
        self._stderr_path = folder / "stderr"
        self._child: Child | None = None
        self._stderr_start = 0
        self._began = 0.0
        self._execution: Execution | None = None
        self.hello: dict[str, Any] = {}

    @property
    def busy(self) -> bool:
        """Whether something was begun and not finished."""
        return self._execution is not None

    @property
    def given(self) -> str:
        """The runtime as it was asked for."""
        return self._runtime.given

    def begin(self, request: dict[str, Any], folder: Path) -> None:
        """Sends a request; `finish` must follow.

        Raises:
            UsageError: The runtime cannot be started.
        """
        if self._child is None or self._child.has_ended:
            self.kill()
            self._start()
        assert self._child is not None
        self._stderr_start = self._stderr_path.stat().st_size
        self._began = time.monotonic()
        self._execution = Execution(folder=folder)
        self._child.ask({**request, "out": str(folder)})

    def finish(self, timeout: float) -> Execution:
        """Waits for the answer to what was begun, at most ``timeout`` seconds from then on.

        A process that crashed or did not answer in time is gone afterwards.
        """
        execution, child = self._execution, self._child
        if execution is None or child is None:
            raise RuntimeError("nothing was begun")
        self._execution = None
        stage: dict[str, Any] = {"stage": "opening"}
        deadline = self._began + timeout
        while True:
            try:
                message = child.message(deadline - time.monotonic())
            except TimeoutError:
                self.kill()
                text = f"was stopped after {timeout:g} s, {_doing(stage)}"
                execution.failure = _failure("timeout", stage, text)
                break
            if message is None:
                execution.failure = self._died(child, stage)
                self.kill()
                break
            if "unwritable" in message:
                self.kill()
                raise unwritable(str(message["unwritable"]))
            if "error" in message:
                kind = "memory" if REFUSED.search(message["error"]) else "error"
                execution.failure = _failure(kind, message, f"{_refused(message)}: {message['error']}")
                break
            if "done" in message:
                break
            if "stage" in message:
                stage = message
            elif "facts" in message:
                execution.interface = Interface.from_dict(message["facts"])
            elif "dropped" in message:
                execution.dropped = (message["dropped"], printable(message["reason"]))
            elif "ran" in message:
                texts = message["unreadable"]
                execution.ran.append([None if text is None else printable(text) for text in texts])
        execution.seconds = time.monotonic() - self._began
        return execution

    def kill(self) -> None:
        """Ends the process and whatever it started."""
        child, self._child = self._child, None
        self._execution = None
        if child is not None:
            child.kill()

    def _start(self) -> None:
        try:
            child = self._child = Child(
                [self._runtime.python, str(self.script), self._runtime.wanted], self._stderr_path, self._watch
            )
        except OSError as error:
            raise UsageError(
                f"cannot be started: {error.strerror}", file=self._runtime.python, remedy=self._runtime.remedy
            ) from error
        self._greet(child)
        # Not before: what loads a runtime is no model.
        child.watch_memory()

    def _greet(self, child: Child) -> None:
        try:
            hello = child.message(START_SECONDS)
        except TimeoutError:
            hello = {"missing": f"no answer within {START_SECONDS:g} s"}
        if hello is not None and "hello" in hello:
            self.hello = hello
            return
        self._stderr_start = 0
        why = (hello or {}).get("missing") or f"{_death(child)}{self._last_words()}"
        self.kill()
        raise UsageError(
            f"runtime {printable(self._runtime.given)} cannot be used: {printable(why)}",
            remedy=self._runtime.remedy,
        )

    def _died(self, child: Child, stage: dict[str, Any]) -> Failure:
        """What the end of the process means."""
        limit = self._watch.limit
        own = self._watch.ended(child.pid)
        if own is not None and limit is not None:
            text = f"took more memory than {amount(limit)} {_doing(stage)}"
            return _failure("memory", stage, text, crowded=not own)
        text = f"{_death(child)} {_doing(stage)}{self._last_words()}"
        if REFUSED.search(text):
            bound = "" if limit is None else f" (limit: {amount(limit)})"
            return _failure("memory", stage, f"got no more memory{bound}: {text}")
        return _failure("crash", stage, text)

    def _last_words(self) -> str:
        """The last line of standard error since the request that means something, after a colon."""
        with open(self._stderr_path, "rb") as stream:
            stream.seek(max(self._stderr_start, self._stderr_path.stat().st_size - 65536))
            lines = stream.read().decode("utf-8", "replace").splitlines()
        telling = [line for line in lines if not NOISE.match(line)]
        return f": {printable(telling[-1])}" if telling else ""


def _death(child: Child) -> str:
    code = child.wait(10)
    if code is None:
        return "the interpreter process closed its channel"
    if code >= 0:
        return f"the interpreter process ended with exit code {code}"
    hint = " (out of memory, perhaps)" if code == -9 else ""
    try:
        return f"the interpreter process died of {signal.Signals(-code).name}{hint}"
    except ValueError:
        return f"the interpreter process died of signal {-code}"


def _doing(stage: dict[str, Any]) -> str:
    text = f"while {STAGES[stage['stage']]}"
    return f"{text} (call {stage['step'] + 1})" if "step" in stage else text


def _refused(stage: dict[str, Any]) -> str:
    text = f"the runtime failed {STAGES[stage['stage']]}"
    return f"{text} (call {stage['step'] + 1})" if "step" in stage else text


def _failure(kind: str, stage: dict[str, Any], message: str, *, crowded: bool = False) -> Failure:
    # Runtimes break their messages into lines.
    text = printable(" ".join(message.split()))
    return Failure(kind=kind, stage=stage["stage"], step=stage.get("step"), message=text, crowded=crowded)
