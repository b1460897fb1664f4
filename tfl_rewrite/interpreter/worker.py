"""The parent's side of the child processes: start, ask, wait, kill, and name what went wrong.

An interpreter may abort, crash or never return on a file that it does not like. Each of those is a `Failure`
with a sentence; here alone it is said how a child ended. For a `Worker` it is no exception.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any

from tfl_rewrite.errors import UsageError
from tfl_rewrite.interpreter.child import load_array
from tfl_rewrite.interpreter.forks import START_SECONDS, Forking, prepare
from tfl_rewrite.interpreter.interface import Array, Interface, printable
from tfl_rewrite.interpreter.memory import REFUSED, SCRATCH_NBYTES, MemoryWatch, amount
from tfl_rewrite.interpreter.process import (
    CPU_REQUESTS,
    Child,
    RuntimeChoice,
    Walls,
    cpu_seconds,
    death_of,
)
from tfl_rewrite.interpreter.scratch import Scratch, is_scratch, unwritable
from tfl_rewrite.options.frozen import frozen, slotted

RESOLVERS = {
    "default": "default delegates (XNNPACK)",
    "builtin": "built-in kernels without default delegates",
    "reference": "reference kernels",
}
STAGES = {"opening": "opening the model", "allocating": "allocating its tensors", "running": "running it"}
KEPT_NBYTES = 64 << 20
"""Outputs of one run that stay on disk once they have been looked at, to be compared again."""
MOST_CALLS = 1 << 18
# Lines of the runtime that say nothing about a failure.
NOISE = re.compile(r"^\s*$|^INFO|^I0000|^WARNING|^W0000|^\*\*\*|^E0000.*(cuda|computation_placer|register)")


_SCRIPT = Path(__file__).with_name("child.py")


@frozen(kw_only=True)
class Failure:
    """Why a model did not run to its end.

    Attributes:
        kind: ``error`` (the runtime refused), ``crash`` (the process died), ``timeout``, ``memory``, or
            ``disk`` (outputs or temporary files take too much room).
        stage: ``opening``, ``allocating`` or ``running``.
        step: Number of the call that was running.
        message: The whole as a sentence, printable.
        crowded: It was too much memory only with what another process took at the same time.
        refused: The samples of the user were refused, and made ones are not.
    """

    kind: str
    stage: str
    step: int | None
    message: str
    crowded: bool = False
    refused: bool = False

    @property
    def told(self) -> str:
        """What is to be said of the model: that it does not run, or not with what it was given."""
        if self.refused:
            return f"does not run with these inputs, only with made ones (check --inputs): {self.message}"
        return f"does not run: {self.message}"


class ModelFailed(Exception):
    """A model does not run; the text says why.

    Attributes:
        failure: The same, where the child process told it.
    """

    def __init__(self, why: Failure | str) -> None:
        super().__init__(why if isinstance(why, str) else why.message)
        self.failure = None if isinstance(why, str) else why


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


@slotted(kw_only=True)
class Execution:
    """What one request left: the outputs of the calls that ended, or tensors, in ``folder``.

    A context manager that removes them.

    Attributes:
        keeps: Bytes of outputs that stay there; later ones go once they have been looked at.
        keeps_all: Whether more than that is a failure.
        on_ran: Called whenever a call has ended: its outputs can be read now.
        held: Those of them that are not in the folder, by name.
        ran: For each call that ended, why an output could not be read (None where it could).
        nbytes: For each call that ended, the bytes of its outputs; of one that was too much as well.
        cpu: For each call that ended, the processor time that it took, in seconds.
        kept: The calls whose outputs stayed; ``kept_nbytes`` of them.
        dropped: The optional call that was refused, and the reason.
        left_out: How many samples were not run, since their outputs would not have been kept.
        answer: What the verb that was asked for tells.
        unreadable: Of tensors that were fetched: why some cannot be read, by number.
        stage: What the process said last of where it is.
    """

    folder: Path
    keeps: int = KEPT_NBYTES
    keeps_all: bool = False
    on_ran: OnRan | None = None
    interface: Interface | None = None
    held: dict[str, Array] = field(default_factory=dict)
    ran: list[list[str | None]] = field(default_factory=list)
    nbytes: list[int] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    kept: set[int] = field(default_factory=set)
    kept_nbytes: int = 0
    dropped: tuple[int, str] | None = None
    failure: Failure | None = None
    left_out: int = 0
    answer: dict[str, Any] = field(default_factory=dict)
    unreadable: dict[int, str] = field(default_factory=dict)
    stage: dict[str, Any] = field(default_factory=lambda: {"stage": "opening"})
    ended: bool = False
    began: float = field(default_factory=time.monotonic)
    seconds: float = 0.0

    def __enter__(self) -> Execution:
        return self

    def __exit__(self, *_: object) -> None:
        self.discard()

    def discard(self) -> None:
        """Removes what lies in the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def tensor(self, number: int) -> Array:
        """A tensor that was fetched; mapped when large, so the folder must still exist."""
        return self._array(str(number))

    def output(self, step: int, position: int) -> Array:
        """One output, likewise; only of a call that was `kept`, or that is being looked at."""
        return self._array(f"{step}.{position}")

    def _array(self, name: str) -> Array:
        found = self.held.get(name)
        array: Array = load_array(self.folder / name) if found is None else found
        return array

    def settle(self, step: int) -> None:
        """Keeps what a call gave, or removes it."""
        if self.kept_nbytes + self.nbytes[step] <= self.keeps:
            self.kept.add(step)
            self.kept_nbytes += self.nbytes[step]
            return
        for position in range(len(self.ran[step])):
            if self.held.pop(f"{step}.{position}", None) is not None:
                continue
            for path in self.folder.glob(f"{step}.{position}.*"):
                path.unlink(missing_ok=True)


OnRan = Callable[[Execution, int], None]
"""Called with a run that goes on and the number of a call that has ended."""


class Worker:
    """One child process in a sandbox, started when first asked and started again after it died.

    It may read the files that it was told to (`admit`), those that are temporary ones of this process, and
    nothing else of the user's. It is started again when it is asked for another file.

    Args:
        runtime: What to start; once it is another one, the next request starts that.
        scratch: For its standard error, what it may write, and what it sends.
        watch: Of its memory.
        timeout: Seconds that a request takes at most; bounds its processor time.
        readable: What it may read beside models: files and folders.
        modules: What it imports beside the runtime, by name.
    """

    def __init__(
        self,
        runtime: RuntimeChoice,
        scratch: Scratch,
        watch: MemoryWatch | None = None,
        *,
        timeout: float = 600.0,
        readable: Iterable[Path] = (),
        modules: Iterable[str] = (),
    ) -> None:
        self.runtime = runtime
        self._scratch = scratch
        self._folder = scratch.folder()
        self._watch = watch or MemoryWatch(None)
        self._stderr_path = self._folder / "stderr"
        self._timeout = timeout
        self._readable = tuple(readable)
        self._modules = tuple(modules)
        self._admitted: dict[Path, _Identity] = {}
        self._walls: Walls | None = None
        self._unnamed: dict[Path, int] = {}
        self._starts = 0
        self._forks = True
        self._child: Child | None = None
        self._greeted = False
        self._stderr_start = 0
        self._execution: Execution | None = None
        self._started = ""
        self.hello: dict[str, Any] = {}

    @property
    def busy(self) -> bool:
        """Whether something was begun and not finished."""
        return self._execution is not None

    @property
    def given(self) -> str:
        """The runtime as it was asked for."""
        return self.runtime.given

    @property
    def walls(self) -> tuple[str, ...]:
        """What of the sandbox is in force, as the process said before it met a model."""
        return tuple(printable(str(wall)) for wall in self.hello.get("sandbox", ()))

    def admit(self, *paths: Path) -> None:
        """Lets the process read some models; it is ended if it was started without."""
        for path in paths:
            if any(folder in path.parents for folder in self._readable):
                continue
            place = path.parent if is_scratch(path.parent) else path
            identity = _identity(place)
            if self._admitted.get(place) != identity:
                self._admitted[place] = identity
                if self._child is not None and not self.busy:
                    self.kill()

    def warm(self) -> None:
        """Starts the process without waiting for it, so that it loads the runtime while others work.

        What is wrong with it, `begin` tells.
        """
        if self._child is not None:
            return
        server = self._forking()
        if server is None or prepare(server) is None:
            with contextlib.suppress(UsageError):
                self._spawn()

    def _forking(self) -> Forking | None:
        return self.runtime.forking() if self._forks and not self._modules else None

    def begin(
        self,
        request: dict[str, Any],
        *,
        on_ran: OnRan | None = None,
        keeps: int = KEPT_NBYTES,
        keeps_all: bool = False,
    ) -> Execution:
        """Sends a request; `finish` must follow. What it returns grows until then, see there.

        Raises:
            UsageError: The runtime cannot be started.
        """
        model = Path(request["model"]) if "model" in request else None
        if model is not None:
            self.admit(model)
        child, other = self._child, self._started != self.runtime.wanted
        # What is asked of a model that is open can only be answered where it is.
        spent = child is not None and model is not None and self._is_spent(child)
        if child is None or child.has_ended or other or spent:
            self.kill()
            self._start()
        elif not self._greeted:
            self._greet(child)
        assert self._child is not None
        self._stderr_start = self._stderr_path.stat().st_size
        # The process does not see the folder.
        folder = self._scratch.unmade()
        self._execution = Execution(folder=folder, keeps=keeps, keeps_all=keeps_all, on_ran=on_ran)
        if model is not None:
            request = {**request, "model": str(self._as_seen(model))}
        self._child.ask(request, folder)
        return self._execution

    def advance(self, calls: int) -> None:
        """Looks at what has come in so far, until so many calls have ended; does not wait."""
        execution = self._execution
        while execution is not None and not execution.ended and len(execution.ran) < calls:
            try:
                self._take(execution, 0.0)
            except TimeoutError:
                return

    def finish(self, timeout: float | None = None) -> Execution:
        """Waits for the answer to what was begun, at most ``timeout`` seconds from then on.

        A process that crashed or did not answer in time is gone afterwards. Time that `on_ran` takes does not
        count, nor that for which what the process sent had to wait, since others were looked at.
        """
        timeout = self._timeout if timeout is None else timeout
        execution = self._execution
        if execution is None:
            raise RuntimeError("nothing was begun")
        while not execution.ended:
            assert self._child is not None
            try:
                self._take(execution, execution.began + self._child.waited + timeout - time.monotonic())
            except TimeoutError:
                self._fail(
                    execution, "timeout", f"was stopped after {timeout:g} s, {_doing(execution.stage)}"
                )
        self._execution = None
        execution.seconds = time.monotonic() - execution.began
        return execution

    def ask(self, request: dict[str, Any]) -> Execution:
        """Sends a request and waits.

        Raises:
            UsageError: The runtime cannot be started.
            ModelFailed: The model does not run.
        """
        self.begin(request)
        return self.answer()

    def answer(self) -> Execution:
        """Waits for what was begun.

        Raises:
            ModelFailed: The model does not run.
        """
        execution = self.finish()
        if execution.failure is not None:
            execution.discard()
            raise ModelFailed(execution.failure)
        return execution

    def open(self, verb: str, model: Path, resolver: str, threads: int) -> tuple[Interface, dict[str, Any]]:
        """Opens a model, again if it is open, for `call` and `get`.

        Args:
            verb: ``open``, or ``trace`` to fetch what operators inside give.
            model: The file.
            resolver: Which kernels.
            threads: Of the interpreter.

        Returns:
            What it takes and gives, and the answer of the verb.

        Raises:
            UsageError, ModelFailed: See `ask`.
        """
        with self.ask({"do": verb, "model": str(model), "resolver": resolver, "threads": threads}) as opened:
            if opened.interface is None:
                raise ModelFailed("the interpreter process does not describe the model")
            return opened.interface, opened.answer

    def call(
        self,
        step: int,
        signature: str | None,
        inputs: Sequence[Sequence[str]],
        *,
        sizes: bool = False,
        carries_over: bool = False,
    ) -> None:
        """Starts to run one call of the open model; `ended` must follow.

        Args:
            step: Its number, for messages.
            signature: That it enters; None for the primary subgraph.
            inputs: Names, and where their arrays are stored.
            sizes: Whether `ended` returns them.
            carries_over: Whether it meets its variables as the call before left them.
        """
        request = {"do": "call", "step": step, "signature": signature, "inputs": inputs, "sizes": sizes}
        self.begin({**request, "carries_over": carries_over})

    def ended(self) -> dict[int, int]:
        """Waits for the call that was begun; returns the size in bytes of what each operator gave.

        Raises:
            ModelFailed: See `ask`.
        """
        with self.answer() as execution, understood():
            return {int(key): int(nbytes) for key, nbytes in execution.answer.get("sizes", {}).items()}

    def get(self, step: int, tensors: Sequence[int]) -> Execution:
        """Fetches some tensors of the call that was run last.

        Raises:
            UsageError, ModelFailed: See `ask`.
        """
        execution = self.ask({"do": "get", "step": step, "tensors": list(tensors)})
        with understood():
            told = execution.answer["unreadable"].items()
            execution.unreadable = {int(key): printable(why) for key, why in told}
        for tensor in tensors:
            if str(tensor) not in execution.held and not list(execution.folder.glob(f"{tensor}.*")):
                execution.unreadable.setdefault(tensor, "it was not sent")
        return execution

    def fall_back(self) -> bool:
        """Goes on with the next runtime that the Python has; False, with all as it was, where there is none.

        Whoever shares the `RuntimeChoice` goes along when it next begins something.
        """
        before = self.runtime.wanted
        if not self.runtime.drop(str(self.hello.get("hello"))):
            return False
        self.kill()
        try:
            self._start()
        except UsageError:
            self.runtime.wanted = before
            return False
        return True

    def kill(self, *, forks: bool = True) -> None:
        """Ends the process and whatever it started, and forgets what was begun.

        Args:
            forks: Whether the next one may be a fork. Those of one process have the same layout of memory.
        """
        self._execution = None
        self._forks = forks
        self._end()

    def _end(self) -> None:
        for descriptor in self._unnamed.values():
            os.close(descriptor)
        self._unnamed = {}
        child, self._child = self._child, None
        if child is not None:
            child.kill()
        if self._walls is not None:
            shutil.rmtree(self._walls.scratch, ignore_errors=True)
            self._walls = None

    def _fail(self, execution: Execution, kind: str, message: str) -> None:
        """The run is over, and so is the process."""
        execution.failure = _failure(kind, execution.stage, message)
        execution.ended = True
        self._end()

    def _take(self, execution: Execution, seconds: float) -> None:
        """Waits for one message and takes it in.

        Raises:
            TimeoutError: There was none in time.
            FileAccessError: Outputs cannot be stored.
        """
        child = self._child
        assert child is not None
        message = child.message(seconds)
        if message is None:
            execution.failure = self._died(child, execution.stage)
            execution.ended = True
            self._end()
            return
        if "unwritable" in message:
            self.kill()
            raise unwritable(str(message["unwritable"]))
        try:
            if "broken" in message:
                raise ValueError(message["broken"])
            ran = self._understand(execution, message)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            # The protocol is ours: a process that does not keep to it is not itself any more.
            text = f"the interpreter process sent what is no answer {_doing(execution.stage)}: {error}"
            self._fail(execution, "crash", text)
            return
        if not ran:
            return
        began, waited = time.monotonic(), child.waited
        step = len(execution.ran) - 1
        if execution.on_ran is not None:
            execution.on_ran(execution, step)
        execution.settle(step)
        child.release(execution.nbytes[step])
        # What it waited for meanwhile is left out already.
        execution.began += max(0.0, time.monotonic() - began - (child.waited - waited))
        if execution.keeps_all and step not in execution.kept:
            execution.ran.pop()
            text = f"its outputs take more than {amount(execution.keeps)} {_doing(execution.stage)}"
            self._fail(execution, "disk", text)

    def _understand(self, execution: Execution, message: dict[str, Any]) -> bool:
        """Takes one message of the process in; whether a call has ended."""
        execution.held.update(message.get("held", {}))
        if "error" in message:
            kind = "memory" if REFUSED.search(message["error"]) else "error"
            execution.failure = _failure(kind, message, f"{_refused(message)}: {message['error']}")
            execution.ended = True
        elif "done" in message:
            execution.answer = message.get("answer", {})
            execution.ended = True
        elif "stage" in message:
            _doing(message)
            execution.stage = message
        elif "facts" in message:
            execution.interface = Interface.from_dict(message["facts"])
        elif "dropped" in message:
            execution.dropped = (len(execution.ran), printable(message["reason"]))
        elif "ran" in message:
            texts = [None if text is None else printable(text) for text in message["unreadable"]]
            step = len(execution.ran)
            expected = {f"{step}.{position}" for position, text in enumerate(texts) if text is None}
            if message["ran"] != step or set(message.get("stored", ())) != expected or step >= MOST_CALLS:
                raise ValueError(f"other outputs than those of call {step + 1}")
            execution.ran.append(texts)
            execution.nbytes.append(message.get("nbytes", 0))
            seconds = message.get("cpu", 0.0)
            if type(seconds) is not float or not 0 <= seconds < math.inf:
                raise ValueError("a time that is not a number of seconds")
            execution.cpu.append(seconds)
            return True
        return False

    def _is_spent(self, child: Child) -> bool:
        """Whether another request might take the process beyond its processor time."""
        return child.used_seconds() > (CPU_REQUESTS - 1) * cpu_seconds(self._timeout)

    def _as_seen(self, path: Path) -> Path:
        """Where the process finds a file: one that has no name, among its own descriptors."""
        descriptor = self._unnamed.get(path)
        return path if descriptor is None else Path(f"/proc/self/fd/{descriptor}")

    def _start(self) -> None:
        self._greet(self._spawn())

    def _spawn(self) -> Child:
        self._greeted = False
        self._started = self.runtime.wanted
        # Another one each time: what an older process left there is none of its business.
        self._starts += 1
        scratch = self._folder / f"scratch{self._starts}"
        scratch.mkdir(mode=0o700)
        # A file without a name is gone once it is closed, and its number may be that of another one now.
        self._admitted = {
            place: identity
            for place, identity in self._admitted.items()
            if not _is_unnamed(place) or _identity(place) == identity
        }
        self._unnamed = {
            place: os.open(place, os.O_RDONLY | os.O_CLOEXEC)
            for place in self._admitted
            if _is_unnamed(place)
        }
        readable = [self._as_seen(place) for place in self._admitted]
        walls = self._walls = Walls(
            scratch=scratch,
            readable=(*self._readable, *readable),
            cpu_seconds=CPU_REQUESTS * cpu_seconds(self._timeout),
        )
        arguments = (self.runtime.wanted, *self._modules)
        try:
            child = self._child = Child(
                walls.command(self.runtime.python, _SCRIPT, *arguments),
                self._stderr_path,
                self._watch,
                scratch=scratch,
                inherited=self._unnamed.values(),
                forked=walls.forked(self._forking(), _SCRIPT, *arguments),
            )
        except OSError as error:
            scarce = error.errno in (errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM)
            remedy = "end other programs, or raise the limits (ulimit)" if scarce else self.runtime.remedy
            what = f"cannot be started: {error.strerror}"
            raise UsageError(what, file=self.runtime.python, remedy=remedy) from error
        return child

    def _greet(self, child: Child) -> None:
        try:
            hello = child.message(START_SECONDS)
        except TimeoutError:
            hello = {"missing": f"no answer within {START_SECONDS:g} s"}
        if hello is not None and "hello" in hello:
            self.hello = hello
            self._greeted = True
            # Not before: what loads a runtime is no model.
            child.watch_memory()
            return
        self._stderr_start = 0
        why = (hello or {}).get("missing") or f"{_death(child)}{self._last_words()}"
        self.kill()
        remedy = self.runtime.remedy
        if "Permission denied" in why:
            remedy = "it lies where the sandbox does not read: install it into a virtual environment"
        raise UsageError(
            f"runtime {printable(self.runtime.given)} cannot be used: {printable(why)}", remedy=remedy
        )

    def _died(self, child: Child, stage: dict[str, Any]) -> Failure:
        """What the end of the process means."""
        limit = self._watch.limit
        own = self._watch.ended(child.pid)
        if own is not None and limit is not None:
            text = f"took more memory than {amount(limit)} {_doing(stage)}"
            return _failure("memory", stage, text, crowded=not own)
        if self._watch.overflowed(child.pid):
            text = f"wrote more than {amount(SCRATCH_NBYTES)} to its temporary folder {_doing(stage)}"
            return _failure("disk", stage, text)
        text = f"{_death(child)} {_doing(stage)}{self._last_words()}"
        if child.wait(0) == -signal.SIGXCPU:
            return _failure("timeout", stage, text)
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


_FLEX = "Select TensorFlow op(s)"
_HAS_FLEX = "the runtime 'tensorflow' runs them, where it is installed (--runtime tensorflow)"
_Identity = tuple[int, int] | None


def _identity(path: Path) -> _Identity:
    """Which file or folder is of that name now; None for none."""
    try:
        facts = path.stat()
    except OSError:
        return None
    return facts.st_dev, facts.st_ino


def _is_unnamed(path: Path) -> bool:
    """Whether a path is that of a descriptor of this process, which no other one may follow."""
    return path.parts[:2] == ("/", "proc")


def _death(child: Child) -> str:
    code = child.wait(10)
    if code is None:
        return "the interpreter process closed its channel"
    return f"the interpreter process {death_of(code)}"


def _doing(stage: dict[str, Any]) -> str:
    text = f"while {STAGES[stage['stage']]}"
    return f"{text} (call {stage['step'] + 1})" if "step" in stage else text


def _refused(stage: dict[str, Any]) -> str:
    text = f"the runtime failed {STAGES[stage['stage']]}"
    return f"{text} (call {stage['step'] + 1})" if "step" in stage else text


def _failure(kind: str, stage: dict[str, Any], message: str, *, crowded: bool = False) -> Failure:
    # Runtimes break their messages into lines.
    text = printable(" ".join(message.split()))
    before, found, _ = text.partition(_FLEX)
    if found:
        # What follows is for those who build an Android app.
        text = f"{before}it has operators of TensorFlow (Flex); {_HAS_FLEX}"
    return Failure(kind=kind, stage=stage["stage"], step=stage.get("step"), message=text, crowded=crowded)
