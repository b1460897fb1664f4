"""Processes that are copies of one that has loaded the runtime (``forkserver.py``), or started anew.

Loading numpy and a runtime takes most of the time of a small model's run. Where the system can tell of the
end of a process that is nobody's child (Linux 5.3), one process loads them, and each child is a fork of it.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import select
import signal
import socket
import subprocess
import threading
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from tfl_rewrite.options.frozen import frozen

START_SECONDS = 180.0
"""Importing the runtime; TensorFlow on a busy machine takes half a minute."""
_SANDBOX, _SCRIPT = (Path(__file__).with_name(f"{name}.py") for name in ("sandbox", "forkserver"))
_MOST = 2
"""Servers that are kept for others of their kind; with another environment it is another kind."""


@frozen(kw_only=True)
class Forking:
    """What a process that forks is: which Python, what it imports, and what it finds in its environment."""

    python: str
    modules: tuple[str, ...]
    environment: Mapping[str, str]

    def key(self) -> Hashable:
        """Tells it from others: with what else a process that is started now would inherit."""
        import resource

        limits = (getattr(resource, name) for name in sorted(dir(resource)) if name.startswith("RLIMIT_"))
        return (
            *(self.python, self.modules, tuple(sorted(self.environment.items()))),
            *(os.getresuid(), os.getresgid(), tuple(os.getgroups()), frozenset(os.sched_getaffinity(0))),
            tuple(map(resource.getrlimit, limits)),
        )


@frozen(kw_only=True)
class Forked:
    """How a process is forked.

    Attributes:
        server: What it is a copy of.
        walls: See ``sandbox.py``.
        script, arguments: What runs behind them.
    """

    server: Forking
    walls: Mapping[str, Any]
    script: str
    arguments: tuple[str, ...]


class Unable(Exception):
    """There is no process to be forked."""


class Server:
    """A process that forks.

    Args:
        kind: Which.

    Attributes:
        living: How many of its forks have not been waited for.
        has_ended: Whether it can fork no more.
        has_forked: Whether it ever did.

    Raises:
        OSError: It cannot be started.
    """

    def __init__(self, kind: Forking) -> None:
        self.living = 0
        self.has_ended = self.has_forked = False
        self._turn = threading.Lock()
        self._control, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [kind.python, str(_SANDBOX), "", str(_SCRIPT), *kind.modules],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=dict(kind.environment),
                cwd="/",
                start_new_session=True,
            )
        # A runtime that does not load is for those to tell who are started anew.
        self._control.settimeout(START_SECONDS)
        self._answers = self._control.makefile("rb")

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._process.pid

    def ask(self, request: Mapping[str, Any], descriptors: Sequence[int] = ()) -> int:
        """Sends a request and waits for its answer; see ``forkserver.py``.

        Raises:
            Unable: It has ended, or it could not be done.
        """
        data = json.dumps(request).encode() + b"\n"
        with self._turn:
            try:
                sent = socket.send_fds(self._control, [data], list(descriptors)) if descriptors else 0
                self._control.sendall(data[sent:])
                answer = json.loads(self._answers.readline())
            except BaseException as error:
                # Whoever asks next would read what is left of this, and a process forked late would meet
                # one that was started anew.
                self.end()
                if isinstance(error, (OSError, ValueError)):
                    raise Unable from None
                raise
        if not answer:
            raise Unable
        (value,) = answer.values()
        return int(value)

    def end(self) -> None:
        """Ends it, and what it forked."""
        self.has_ended = True
        # Where this process has given up the right to send signals, the end of what it reads is left.
        with contextlib.suppress(OSError):
            self._control.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError):
            self._process.kill()

    def close(self) -> None:
        """Ends it, and gives its descriptors back."""
        self.end()
        self._process.wait()
        self.leave()

    def leave(self) -> None:
        """Gives the descriptors back alone: in a fork of the user, whose it is not."""
        with contextlib.suppress(OSError):
            self._answers.close()
            self._control.close()


_servers: dict[Hashable, Server] = {}
_useless: set[Hashable] = set()
"""Kinds that have never forked: they have threads, or cannot be imported."""
_lock = threading.Lock()


@atexit.register
def _close_all() -> None:
    while _servers:
        _servers.popitem()[1].close()


def _leave_all() -> None:
    global _lock
    _lock = threading.Lock()
    while _servers:
        _servers.popitem()[1].leave()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_all)


@functools.cache
def _can_fork() -> bool:
    """Whether the system tells of the end of processes that are not its caller's children."""
    try:
        os.close(os.pidfd_open(os.getpid()))
        return hasattr(socket, "send_fds") and Path("/proc/self/task").is_dir()
    except (AttributeError, OSError):
        return False


def prepare(kind: Forking) -> Server | None:
    """Starts a server of a kind, unless there is one; does not wait until it has loaded.

    Returns:
        It, or None where processes have to be started anew.
    """
    if not _can_fork():
        return None
    key = kind.key()
    with _lock:
        for other, server in list(_servers.items()):
            if server.has_ended and not server.has_forked:
                _useless.add(other)
            if server.has_ended or (other != key and not server.living and len(_servers) >= _MOST):
                _servers.pop(other).close()
        if key in _useless:
            return None
        if key not in _servers:
            try:
                _servers[key] = Server(kind)
            except OSError:
                return None
        return _servers[key]


class Process:
    """A process that is forked, or started anew where that cannot be; used like ``Popen``.

    Args:
        command: To start it anew.
        stderr: Where its standard error goes.
        environment: What it finds.
        folder: Where it starts.
        inherited: Descriptors that it gets under the same numbers.
        forked: How it is forked; None to start it anew.

    Attributes:
        pid: Its number, and that of its group.
        stdin, stdout: The ends of its pipes.
        returncode: As that of ``Popen``.

    Raises:
        OSError: It cannot be started.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        stderr: IO[bytes],
        environment: Mapping[str, str],
        folder: Path | None,
        inherited: Sequence[int],
        forked: Forked | None,
    ) -> None:
        self.returncode: int | None = None
        self._command = list(command)
        self._anew: subprocess.Popen[bytes] | None = None
        self._reaping = threading.Lock()
        with contextlib.ExitStack() as given, contextlib.ExitStack() as kept:
            ends = []
            for theirs in (0, 1):
                pipe = os.pipe()
                given.callback(os.close, pipe[theirs])
                kept.callback(os.close, pipe[1 - theirs])
                ends.append(pipe)
            streams = (ends[0][0], ends[1][1], stderr.fileno())
            try:
                self._fork(forked, streams, environment, inherited)
            except (OSError, Unable):
                self._anew = subprocess.Popen(
                    self._command,
                    stdin=streams[0],
                    stdout=streams[1],
                    stderr=streams[2],
                    env=dict(environment),
                    cwd=folder,
                    start_new_session=True,
                    pass_fds=tuple(inherited),
                )
                self.pid = self._anew.pid
            kept.pop_all()
        self.stdin: IO[bytes] = os.fdopen(ends[0][1], "wb")
        self.stdout: IO[bytes] = os.fdopen(ends[1][0], "rb")

    def _fork(
        self,
        forked: Forked | None,
        streams: Sequence[int],
        environment: Mapping[str, str],
        inherited: Sequence[int],
    ) -> None:
        """Has it forked."""
        server = None if forked is None else prepare(forked.server)
        if forked is None or server is None:
            raise Unable
        request = {
            "walls": forked.walls,
            "script": forked.script,
            "arguments": forked.arguments,
            "environment": dict(environment),
            "descriptors": [0, 1, 2, *inherited],
        }
        with _lock:
            server.living += 1
        try:
            pid = server.ask(request, [*streams, *inherited])
            try:
                self._pidfd = os.pidfd_open(pid)
            except BaseException:
                server.ask({"drop": pid})
                raise
        except BaseException:
            with _lock:
                server.living -= 1
            raise
        server.has_forked = True
        self._server, self.pid = server, pid

    def poll(self) -> int | None:
        """Returns the exit code; None while it runs."""
        return self._ended(0.0)

    def wait(self, timeout: float | None = None) -> int:
        """Waits for its end.

        Raises:
            subprocess.TimeoutExpired: It has not ended in time.
        """
        code = self._ended(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(self._command, timeout or 0.0)
        return code

    def kill_group(self) -> None:
        """Ends it and what it started, unless it has ended: its number may be somebody else's then."""
        with self._reaping:
            if self.returncode is None and (self._anew is not None or not self._is_over(0.0)):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(self.pid, signal.SIGKILL)
                # It may have left its group, where nothing keeps it from that.
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(self.pid, signal.SIGKILL)

    def _ended(self, timeout: float | None) -> int | None:
        if self._anew is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.returncode = self._anew.wait(timeout) if timeout != 0.0 else self._anew.poll()
            return self.returncode
        if self.returncode is None and self._is_over(timeout):
            with self._reaping:
                if self.returncode is None:
                    self._reap()
        return self.returncode

    def _is_over(self, timeout: float | None) -> bool:
        poller = select.poll()
        poller.register(self._pidfd, select.POLLIN)
        # More than this the system does not take.
        return bool(poller.poll(None if timeout is None else min(timeout * 1000, 2**31 - 1)))

    def _reap(self) -> None:
        try:
            self.returncode = os.waitstatus_to_exitcode(self._server.ask({"reap": self.pid}))
        except Unable:
            # With the server all ended that it forked.
            self.returncode = -signal.SIGKILL
        os.close(self._pidfd)
        with _lock:
            self._server.living -= 1
