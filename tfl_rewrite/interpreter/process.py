"""A child process that is asked in lines of JSON, and answers in such, with arrays behind them.

Who asks knows what the answers mean; here is how it starts, is heard, and ends with all that it started.
What it says is a stranger's: lines, arrays and their number are bounded, and it writes no file that is read
here. Arrays come through its pipe and are stored by this side, under names that it cannot choose freely.
"""

from __future__ import annotations

import collections
import contextlib
import fcntl
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from tfl_rewrite.errors import UsageError
from tfl_rewrite.interpreter.child import RUNTIMES
from tfl_rewrite.interpreter.forks import Forked, Forking, Process, prepare
from tfl_rewrite.interpreter.interface import printable
from tfl_rewrite.interpreter.memory import MemoryWatch
from tfl_rewrite.options.frozen import frozen, slotted

LINE_NBYTES = 64 << 20
"""A description of 100,000 tensors takes a third of that."""
MESSAGES = 1000
"""That wait to be read; who sends more has to wait."""
WINDOW_NBYTES = 64 << 20
"""Arrays on disk that nobody has looked at yet; who sends more has to wait, unless it is a single message."""
REQUEST_NBYTES = 1 << 30
"""Arrays of one message. No output of that size is worth comparing on the machine that edits a file."""
SMALL_NBYTES = 64 << 10
HELD_NBYTES = 16 << 20
"""An array of so many bytes is held in memory, and of one request so much; what is more lies on disk."""
CPU_REQUESTS = 20
"""Requests that use all their time and all processors; then another process goes on."""

# What a child inherits. Its own temporary folder stands for HOME and TMPDIR.
INHERITED = (
    *("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ"),
    *("LD_LIBRARY_PATH", "LD_PRELOAD", "GLIBC_TUNABLES", "OMP_NUM_THREADS"),
    *("PYTHONHOME", "PYTHONPATH", "PYTHONUSERBASE"),
)
_PATHS = ("LD_LIBRARY_PATH", "PYTHONPATH")
_SANDBOX = Path(__file__).with_name("sandbox.py")
_PACKAGE = Path(__file__).parents[1]
_LOADED = ("importlib.metadata", *(str(_SANDBOX.with_name(f"{name}.py")) for name in ("child", "interface")))
"""What the process that is forked loads beside a runtime: what each fork would load again."""
_NAME = re.compile(r"\d{1,9}(\.\d{1,9})?")
_DTYPE = re.compile(r"[<>|=]?[biufcV]\d{1,3}")
_CHUNK = 1 << 20
_NAMES = {name: kind for kind, row in RUNTIMES.items() for name in (kind, row.distribution, row.package)}
"""What a runtime may be called, and its kind."""


@slotted(kw_only=True)
class RuntimeChoice:
    """Which interpreter judges: the Python to start, and what to import there.

    Those who share one fall back to the next runtime together (`fall_back`).

    Attributes:
        wanted: Kinds of runtimes between commas; the first that can be imported judges.
    """

    python: str
    wanted: str
    given: str

    @classmethod
    def parse(cls, runtime: str) -> RuntimeChoice:
        """From ``litert``, ``tensorflow``, ``python:PATH`` or ``python:PATH:RUNTIME``.

        Raises:
            UsageError: Another word, or PATH is not an executable file.
        """
        own = [kind for kind, row in RUNTIMES.items() if row.own]
        if runtime in own:
            if not sys.executable:
                raise UsageError(
                    "this program does not know its own Python", remedy="name one with runtime 'python:PATH'"
                )
            return cls(python=sys.executable, wanted=runtime, given=runtime)
        kind, _, path = runtime.partition(":")
        if kind != "python" or not path:
            raise UsageError(
                f"unknown runtime {printable(runtime)!r}",
                remedy=f"use {', '.join(own)}, python:PATH or python:PATH:RUNTIME",
            )
        wanted = ",".join(kind for kind, row in RUNTIMES.items() if not row.adapter)
        found = shutil.which(Path(path).expanduser())
        if found is None and ":" in path:
            path, _, name = path.rpartition(":")
            found = shutil.which(Path(path).expanduser())
            if found is not None and name not in _NAMES:
                raise UsageError(
                    f"unknown runtime {printable(name)!r} of {printable(path)}",
                    remedy=f"use one of {', '.join(RUNTIMES)}, or leave it out for the first that it has",
                )
            wanted = _NAMES.get(name, wanted)
        if found is None:
            raise UsageError("not an executable file", file=path, remedy="name a Python with an interpreter")
        return cls(python=found, wanted=wanted, given=runtime)

    def forking(self) -> Forking | None:
        """What may load it once and be forked for each model; nothing for a foreign Python."""
        row = RUNTIMES.get(self.given)
        if row is None or not row.forks or self.wanted != self.given:
            return None
        return Forking(
            python=str(Path(self.python).absolute()),
            modules=(row.module, *_LOADED),
            environment=environment(),
        )

    @property
    def remedy(self) -> str:
        """What to do when nothing can be imported."""
        packages = [RUNTIMES[kind].distribution for kind in self.wanted.split(",")]
        if self.given in RUNTIMES:
            return f"install it with: pip install {packages[0]}"
        others = f" (or {', or '.join(packages[1:])})" if packages[1:] else ""
        return f"install {packages[0]}{others} for {self.python}"

    def drop(self, package: str) -> bool:
        """Goes on to the runtimes after one; returns False, and stays, where there is none."""
        kinds = self.wanted.split(",")
        left = kinds[kinds.index(_NAMES[package]) + 1 :] if _NAMES.get(package) in kinds else []
        if left:
            self.wanted = ",".join(left)
        return bool(left)


def warm(runtime: str) -> None:
    """Has a runtime loaded, where processes are forked, while others work; what is wrong shows later.

    Args:
        runtime: As it is asked for.
    """
    with contextlib.suppress(UsageError):
        kind = RuntimeChoice.parse(runtime).forking()
        if kind is not None:
            prepare(kind)


@frozen(kw_only=True)
class Walls:
    """What one child may do; see ``sandbox.py``.

    Attributes:
        scratch: The folder that it may write to, and that it starts in.
        readable: Files and folders beside the Python installation.
        cpu_seconds: Processor time of the whole process.
    """

    scratch: Path
    readable: tuple[Path, ...]
    cpu_seconds: int

    @property
    def rules(self) -> dict[str, Any]:
        """What ``sandbox.py`` is told."""
        return {
            "read": [str(path) for path in (_PACKAGE, *self.readable)],
            "packages": ["numpy", *(row.package for row in RUNTIMES.values())],
            "scratch": str(self.scratch),
            "cpu": self.cpu_seconds,
            # The system takes the end of the thread that starts a process for that of the parent.
            "dies": threading.current_thread() is threading.main_thread(),
        }

    def command(self, python: str, script: Path, *arguments: str) -> list[str]:
        """How to start a script inside."""
        # Relative to the folder that this process is in, not to the child's.
        own = str(Path(python).absolute())
        return [own, str(_SANDBOX), json.dumps(self.rules), str(script), *arguments]

    def forked(self, server: Forking | None, script: Path, *arguments: str) -> Forked | None:
        """How to fork the same; None where there is nothing to fork it from."""
        if server is None:
            return None
        return Forked(server=server, walls=self.rules, script=str(script), arguments=arguments)


def cpu_seconds(timeout: float) -> int:
    """Processor time for one request of that many seconds."""
    return math.ceil(min(timeout, 1e7)) * (os.cpu_count() or 1)


def environment(scratch: Path | None = None) -> dict[str, str]:
    """What a child finds in its environment: a few names, none of them a secret."""
    made = {name: os.environ[name] for name in INHERITED if name in os.environ}
    for name in _PATHS:
        if name in made:
            # An empty entry is the current folder, which the child's is not.
            entries = [str(Path(entry).absolute()) for entry in made[name].split(os.pathsep) if entry]
            made[name] = os.pathsep.join(entries)
    made.setdefault("PYTHONUSERBASE", str(Path("~/.local").expanduser()))
    if scratch is not None:
        made |= {"HOME": str(scratch), "TMPDIR": str(scratch)}
    return {
        **made,
        "CUDA_VISIBLE_DEVICES": "-1",
        "TF_CPP_MIN_LOG_LEVEL": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


class Child:
    """A process that leads a group of its own.

    Args:
        command: What to start.
        stderr: The file that its standard error is added to.
        watch: Of its memory; it begins with `watch_memory`.
        scratch: Its own folder, which `watch_memory` watches too.
        inherited: Descriptors that it gets under the same numbers.
        forked: How the same is forked from a process that has loaded the runtime.

    Raises:
        OSError: It cannot be started.
    """

    def __init__(
        self,
        command: Sequence[str],
        stderr: Path,
        watch: MemoryWatch,
        *,
        scratch: Path | None = None,
        inherited: Iterable[int] = (),
        forked: Forked | None = None,
    ) -> None:
        self._watch = watch
        self._scratch = scratch
        with open(stderr, "ab") as stream:
            self._process = Process(
                command,
                stderr=stream,
                environment=environment(scratch),
                folder=scratch,
                inherited=tuple(inherited),
                forked=forked,
            )
        # A mailbox for each process: what a killed one still had to say must not pass for an answer.
        self._messages = _Mailbox()
        try:
            threading.Thread(target=_read, args=(self._process.stdout, self._messages), daemon=True).start()
        except BaseException:
            self.kill()
            raise

    @property
    def pid(self) -> int:
        """Number of the process, and of its group."""
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        """Whether the system says so; the end of its messages may be known before."""
        return self._process.poll() is not None

    def watch_memory(self) -> None:
        """Begins to watch its memory and its folder."""
        self._watch.add(self.pid, self._process.kill_group, self._scratch)

    def ask(self, request: dict[str, Any], folder: Path | None = None) -> None:
        """Sends a request. If the process has died meanwhile, the end of its messages says so.

        Args:
            request: What to do.
            folder: Where arrays of the answers are stored; without one there may be none.
        """
        self._messages.expect(folder)
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            pass

    def message(self, seconds: float) -> dict[str, Any] | None:
        """Waits for the next message; None is the end of them.

        In it ``nbytes`` says how many bytes of arrays came with it, ``stored`` under which names; ``held``
        has those that are not on disk. ``broken`` alone says that what the process sent is no message,
        ``unwritable`` that there is no room.

        Raises:
            TimeoutError: There was none in time.
        """
        return self._messages.take(seconds)

    def release(self, nbytes: int) -> None:
        """Arrays of so many bytes have been looked at: there is room for others."""
        self._messages.release(nbytes)

    @property
    def waited(self) -> float:
        """Seconds since the last request for which it could not go on, since nobody looked at its arrays."""
        return self._messages.waited

    def wait(self, seconds: float) -> int | None:
        """Returns the exit code; None if it has not ended in time. Its memory is no longer watched."""
        self._watch.remove(self.pid)
        try:
            return self._process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            return None

    def used_seconds(self) -> float:
        """Processor time that it has taken so far; 0 where the system does not tell."""
        try:
            fields = Path(f"/proc/{self.pid}/stat").read_text("ascii", "replace").rsplit(")", 1)[1].split()
            return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        except (OSError, ValueError, IndexError):
            return 0.0

    def kill(self) -> None:
        """Ends the process and whatever it started."""
        self._watch.remove(self.pid)
        self._messages.close()
        self._process.kill_group()
        self._process.wait()
        try:
            self._process.stdin.close()
        except OSError:
            pass


def death_of(code: int) -> str:
    """Says how a process ended, to go behind its name.

    Args:
        code: Its exit code; the negative of a signal's number where one ended it.
    """
    if code >= 0:
        return f"ended with exit code {code}"
    hint = " (out of memory, perhaps)" if code == -signal.SIGKILL else ""
    try:
        return f"died of {signal.Signals(-code).name}{hint}"
    except ValueError:
        return f"died of signal {-code}"


class _Mailbox:
    """Messages of one process between the thread that reads them and the one that wants them."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: collections.deque[dict[str, Any] | None] = collections.deque()
        self._folder: Path | None = None
        self._held = 0
        self.in_memory = 0
        self.names: set[str] = set()
        self.closed = False
        self._waited = 0.0
        self._waits_since: float | None = None

    @property
    def waited(self) -> float:
        """Seconds since the last request for which nothing was read, since there was no room for it."""
        with self._changed:
            now = time.monotonic()
            return self._waited + (now - self._waits_since if self._waits_since is not None else 0.0)

    def put(self, message: dict[str, Any] | None) -> None:
        with self._changed:
            self._wait_until(lambda: self.closed or len(self._waiting) < MESSAGES)
            self._waiting.append(message)
            self._changed.notify_all()

    def _wait_until(self, is_room: Callable[[], bool]) -> None:
        if not is_room():
            self._waits_since = time.monotonic()
            self._changed.wait_for(is_room)
            self._waited += time.monotonic() - self._waits_since
            self._waits_since = None

    def take(self, seconds: float) -> dict[str, Any] | None:
        with self._changed:
            patience = max(0.0, min(seconds, threading.TIMEOUT_MAX))
            if not self._changed.wait_for(lambda: bool(self._waiting), patience):
                raise TimeoutError
            message = self._waiting.popleft()
            self._changed.notify_all()
            return message

    def expect(self, folder: Path | None) -> None:
        with self._changed:
            self._folder, self._held = folder, 0
            self.in_memory, self.names = 0, set()
            self._waited = 0.0
            self._changed.notify_all()

    def room(self, nbytes: int) -> Path | None:
        """Waits until arrays of so many bytes may be stored, and says where; None for nowhere."""
        with self._changed:
            self._wait_until(lambda: self.closed or not self._held or self._held + nbytes <= WINDOW_NBYTES)
            self._held += nbytes
            return None if self.closed else self._folder

    def release(self, nbytes: int) -> None:
        with self._changed:
            self._held -= nbytes
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self.closed = True
            self._changed.notify_all()


class _Broken(Exception):
    """What was read is no message."""


@frozen
class _Part:
    """A file that an array is stored in: so many bytes, behind the header of numpy or without one."""

    name: str
    nbytes: int
    header: dict[str, Any] | None


def _read(stream: IO[bytes], messages: _Mailbox) -> None:
    with stream:
        _widen(stream)
        try:
            while not messages.closed and (line := stream.readline(LINE_NBYTES)):
                if len(line) == LINE_NBYTES:
                    raise _Broken(f"a line of more than {LINE_NBYTES} bytes")
                try:
                    message = json.loads(line)
                except (ValueError, RecursionError):
                    continue
                if isinstance(message, dict):
                    # What lies here is not for the process to say.
                    message.pop("held", None)
                    if "arrays" in message:
                        stored = message.pop("arrays")
                        message["nbytes"], message["held"] = _store(stream, stored, messages)
                        message["stored"] = [facts["name"] for facts in stored]
                    messages.put(message)
        except EOFError:
            # It died while it was sending; that is told by whoever knows how.
            pass
        except _Broken as error:
            messages.put({"broken": str(error)})
        except OSError as error:
            messages.put({"unwritable": error.strerror or str(error)})
    messages.put(None)


def _widen(stream: IO[bytes]) -> None:
    """Lets the pipe hold more, so that an array takes fewer turns."""
    with contextlib.suppress(OSError, AttributeError):
        fcntl.fcntl(stream.fileno(), fcntl.F_SETPIPE_SZ, _CHUNK)


def _store(stream: IO[bytes], arrays: Any, messages: _Mailbox) -> tuple[int, dict[str, Any]]:
    """Reads the arrays behind a message, large ones into files; returns their bytes, and the small ones."""
    try:
        parts = {facts["name"]: list(_parts(facts)) for facts in arrays}
    except (TypeError, ValueError, KeyError, OverflowError) as error:
        raise _Broken(f"an array that is none: {error}") from error
    nbytes = sum(part.nbytes for files in parts.values() for part in files)
    if nbytes > REQUEST_NBYTES:
        raise _Broken(f"arrays of {nbytes} bytes at once; {REQUEST_NBYTES} are the most")
    folder = messages.room(nbytes)
    if folder is None:
        raise _Broken("arrays that nobody asked for")
    if len(parts) < len(arrays) or not messages.names.isdisjoint(parts):
        # It has perhaps been looked at, and is mapped.
        raise _Broken("an array twice")
    messages.names.update(parts)
    held = {}
    for name, files in parts.items():
        small = sum(part.nbytes for part in files)
        if len(files) == 1 and small <= SMALL_NBYTES and messages.in_memory + small <= HELD_NBYTES:
            messages.in_memory += small
            held[name] = _received(stream, files[0])
            continue
        folder.mkdir(exist_ok=True)
        for part in files:
            _receive(stream, folder, part)
    return nbytes, held


def _received(stream: IO[bytes], part: _Part) -> Any:
    assert part.header is not None
    data = stream.read(part.nbytes)
    if len(data) < part.nbytes:
        raise EOFError
    made = np.empty(part.header["shape"], np.lib.format.descr_to_dtype(part.header["descr"]))
    made.reshape(-1).view(np.uint8)[:] = np.frombuffer(data, np.uint8) if data else 0
    return made


def _parts(facts: dict[str, Any]) -> Iterable[_Part]:
    name, shape, dtype = facts["name"], facts["shape"], facts["dtype"]
    if not _NAME.fullmatch(name):
        raise ValueError(f"named {name[:50]!r}")
    if not all(type(size) is int and size >= 0 for size in shape) or len(shape) > 32:
        raise ValueError("with such a shape")
    count = math.prod(shape)
    # Beside a size of zero others are bounded by nothing else.
    if math.prod(max(size, 1) for size in shape) > 1 << 48:
        raise ValueError("with such a shape")
    if dtype == "string":
        nbytes = facts["nbytes"]
        if type(nbytes) is not int or nbytes < 0:
            raise ValueError("with such a size")
        header = {"descr": "<i8", "fortran_order": False, "shape": tuple(shape)}
        yield _Part(f"{name}.lengths.npy", 8 * count, header)
        yield _Part(f"{name}.bytes", nbytes, None)
        return
    if not _DTYPE.fullmatch(dtype):
        raise ValueError(f"of type {dtype[:50]!r}")
    known = np.dtype(dtype)
    header = {"descr": np.lib.format.dtype_to_descr(known), "fortran_order": False, "shape": tuple(shape)}
    yield _Part(f"{name}.npy", known.itemsize * count, header)


def _receive(stream: IO[bytes], folder: Path, part: _Part) -> None:
    with open(folder / part.name, "xb") as file:
        if part.header is not None:
            np.lib.format.write_array_header_1_0(file, part.header)
        left = part.nbytes
        while left:
            piece = stream.read(min(left, _CHUNK))
            if not piece:
                raise EOFError
            file.write(piece)
            left -= len(piece)
