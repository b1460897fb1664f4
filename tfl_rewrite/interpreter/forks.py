"""Processes that are copies of one that has loaded the runtime (``forkserver.py``), or started anew.

Loading numpy and a runtime takes most of the time of a small model's run. Where the system can tell of the
end of a process that is nobody's child (Linux 5.3), one process loads them, and each child is a fork of it.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

START_SECONDS = 180.0
"""Importing the runtime; TensorFlow on a busy machine takes half a minute."""
_SCRIPT = Path(__file__).with_name("forkserver.py")
_MOST = 2
"""Servers that are kept for others of their kind; with another environment it is another kind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Forked:
    """How a process is forked.

    Attributes:
        python, environment, modules: Of the process that forks: what it runs, finds and imports.
        walls: See ``sandbox.py``.
        script, arguments: What runs behind them.
    """

    python: str
    environment: Mapping[str, str]
    modules: tuple[str, ...]
    walls: Mapping[str, Any]
    script: str
    arguments: tuple[str, ...]


class Unable(Exception):
    """There is no process to be forked."""


class Server:
    """A process that forks.

    Args:
        python: The Python that it is.
        modules: That it imports.
        environment: That it has.

    Attributes:
        owner: The process that started it.
        living: How many of its forks have not been waited for.
        is_silent: Whether it did not answer.

    Raises:
        OSError: It cannot be started.
    """

    def __init__(self, python: str, modules: Sequence[str], environment: Mapping[str, str]) -> None:
        self.owner = os.getpid()
        self.living = 0
        self.is_silent = False
        self._numbers = 0
        self._answers: dict[int, dict[str, Any]] = {}
        self._asking, self._hearing = threading.Lock(), threading.Lock()
        self._control, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [python, str(_SCRIPT), *modules],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=dict(environment),
                cwd="/",
                start_new_session=True,
            )
        # A runtime that does not load is for those to tell who are started anew.
        self._control.settimeout(START_SECONDS)
        self._heard = self._control.makefile("rb")

    def ask(self, request: dict[str, Any], descriptors: Sequence[int] = ()) -> int:
        """Sends a request; returns the number under which its answer is asked for.

        Raises:
            Unable: It has ended.
        """
        with self._asking:
            self._numbers += 1
            data = json.dumps({**request, "number": self._numbers}).encode() + b"\n"
            try:
                sent = socket.send_fds(self._control, [data], list(descriptors)) if descriptors else 0
                self._control.sendall(data[sent:])
            except OSError:
                raise Unable from None
            return self._numbers

    def answer(self, number: int) -> dict[str, Any]:
        """Waits for an answer.

        Raises:
            Unable: It has ended.
        """
        with self._hearing:
            while number not in self._answers:
                try:
                    line = self._heard.readline()
                except OSError:
                    line = b""
                if not line.endswith(b"\n"):
                    self.is_silent = True
                    raise Unable
                answer = json.loads(line)
                self._answers[answer["number"]] = answer
            return self._answers.pop(number)

    @property
    def has_ended(self) -> bool:
        """Whether it can fork no more."""
        return self.is_silent or self._process.poll() is not None

    def close(self) -> None:
        """Ends it, and what it forked."""
        if self.owner != os.getpid():
            # A fork of this process does not end what is not its own.
            return
        # What reads it reads its end.
        with contextlib.suppress(OSError):
            self._control.shutdown(socket.SHUT_RDWR)
        self._process.kill()
        self._process.wait()
        self._heard.close()
        self._control.close()


_servers: dict[tuple[Any, ...], Server] = {}
_lock = threading.Lock()


@atexit.register
def _close_all() -> None:
    while _servers:
        _servers.popitem()[1].close()


def _server(python: str, modules: tuple[str, ...], environment: Mapping[str, str]) -> Server:
    """Returns a server of a kind, a new one if need be."""
    key = os.getpid(), python, modules, tuple(sorted(environment.items()))
    with _lock:
        for other in list(_servers):
            server = _servers[other]
            spare = other != key and not server.living and len(_servers) >= _MOST
            if server.owner != os.getpid() or server.has_ended or spare:
                _servers.pop(other).close()
        if key not in _servers:
            _servers[key] = Server(python, modules, environment)
        _servers[key].living += 1
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
        self._command, self._environment = list(command), dict(environment)
        self._folder, self._inherited = folder, tuple(inherited)
        self._anew: subprocess.Popen[bytes] | None = None
        self._server: Server | None = None
        self._pid = self._pidfd = -1
        self._settling = threading.RLock()
        read, write = os.pipe(), os.pipe()
        self.stdin: IO[bytes] = os.fdopen(read[1], "wb")
        self.stdout: IO[bytes] = os.fdopen(write[0], "rb")
        # Open here until it has them.
        self._given: tuple[int, ...] = (read[0], write[1], os.dup(stderr.fileno()))
        try:
            self._number = self._fork(forked)
        except (OSError, Unable):
            self._start_anew()

    def _fork(self, forked: Forked | None) -> int:
        """Asks a server; what it says is read by `settle`, so that it may load meanwhile."""
        if forked is None or not hasattr(os, "pidfd_open") or not hasattr(socket, "send_fds"):
            raise Unable
        self._server = _server(forked.python, forked.modules, forked.environment)
        request = {
            # The thread that forks it lives as long as the server.
            "walls": {**forked.walls, "dies": True},
            "script": forked.script,
            "arguments": forked.arguments,
            "environment": self._environment,
            "descriptors": [0, 1, 2, *self._inherited],
        }
        return self._server.ask(request, [*self._given, *self._inherited])

    def _start_anew(self) -> None:
        """Starts it without a server."""
        self._let_go()
        stdin, stdout, stderr = self._given
        try:
            self._anew = subprocess.Popen(
                self._command,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                env=self._environment,
                cwd=self._folder,
                start_new_session=True,
                pass_fds=self._inherited,
            )
        except BaseException:
            self.stdin.close()
            self.stdout.close()
            raise
        finally:
            self._close_given()
        self._pid = self._anew.pid

    def _close_given(self) -> None:
        for descriptor in self._given:
            os.close(descriptor)
        self._given = ()

    def _let_go(self) -> None:
        if self._server is not None:
            with _lock:
                self._server.living -= 1
            self._server = None

    def settle(self) -> None:
        """Waits until it has started.

        Raises:
            OSError: It cannot be started.
        """
        with self._settling:
            if self._pid >= 0:
                return
            assert self._server is not None
            try:
                self._pid = self._server.answer(self._number)["pid"]
                self._pidfd = os.pidfd_open(self._pid)
            except (Unable, KeyError, OSError):
                if self._pid >= 0:
                    # Where the system cannot tell of its end, nobody waits for it.
                    os.kill(self._pid, signal.SIGKILL)
                self._start_anew()
            else:
                self._close_given()

    @property
    def pid(self) -> int:
        """Number of the process."""
        self.settle()
        return self._pid

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

    def kill(self) -> None:
        """Ends it."""
        self.settle()
        if self._anew is not None:
            self._anew.kill()
        elif self.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def _ended(self, timeout: float | None) -> int | None:
        self.settle()
        if self._anew is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.returncode = self._anew.wait(timeout) if timeout != 0.0 else self._anew.poll()
            return self.returncode
        with self._settling:
            if self.returncode is None and self._has_ended(timeout):
                assert self._server is not None
                try:
                    number = self._server.ask({"reap": self._pid})
                    self.returncode = os.waitstatus_to_exitcode(self._server.answer(number)["status"])
                except Unable:
                    # With the server all ended that it forked.
                    self.returncode = -signal.SIGKILL
                os.close(self._pidfd)
                self._let_go()
        return self.returncode

    def _has_ended(self, timeout: float | None) -> bool:
        poller = select.poll()
        poller.register(self._pidfd, select.POLLIN)
        # More than this the system does not take.
        return bool(poller.poll(None if timeout is None else min(timeout * 1000, 2**31 - 1)))
