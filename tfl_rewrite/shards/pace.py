"""How slow a source of parts may be: a least rate, and a limit on the whole.

A limit on the silence between two bytes does not do: a server that sends a byte a second is never silent.
What counts is how long somebody waited, not how long parts took to be unpacked and written. All connections
of a source are counted together, for they share a line.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

from tfl_rewrite.errors import FileAccessError

ANSWER_SECONDS = 30.0
"""From a request until its answer begins, redirects included."""
LEAST_RATE = 1000
"""Bytes a second."""
RATE_SECONDS = 15.0
"""Of waiting, over which the rate is taken."""
LONGEST_SECONDS = 6 * 3600.0
"""For all that comes from one source."""
_LOOK_SECONDS = 0.2
_LONGEST_LOOK = 1.0


class TooSlow(FileAccessError):
    """A source does not send what it has in bearable time; asking again does not help."""


class Request:
    """One request: its connections are shut down when it takes too long, whatever it is doing then.

    Attributes:
        reason: Why it was ended, or None.
    """

    def __init__(self, deadline: float) -> None:
        self.reason: str | None = None
        self._deadline: float | None = deadline
        self._sockets: list[socket.socket] = []

    def watch(self, connection: socket.socket) -> None:
        """Takes a connection; a copy of it, since encryption takes the original over."""
        self._sockets.append(connection.dup())

    def answered(self) -> None:
        """From now on the rate counts."""
        self._deadline = None

    def is_late(self, now: float) -> bool:
        """Whether its answer should have begun."""
        return self._deadline is not None and now > self._deadline

    def end(self, reason: str) -> None:
        """Shuts its connections down: who waits for them gets no more."""
        self.reason = self.reason or reason
        for connection in self._sockets:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Gives the copies back."""
        while self._sockets:
            self._sockets.pop().close()


class Pace:
    """Looks at all requests to one source."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: set[Request] = set()
        self._began: float | None = None
        self._waiting = 0
        self._waited = 0.0
        self._nbytes = 0
        self._looking = False

    def begin(self) -> Request:
        """Begins a request; `finish` must follow."""
        now = time.monotonic()
        request = Request(now + ANSWER_SECONDS)
        with self._lock:
            self._began = now if self._began is None else self._began
            self._requests.add(request)
            if not self._looking:
                self._looking = True
                threading.Thread(target=self._look, daemon=True).start()
        return request

    def finish(self, request: Request) -> None:
        """Ends a request, in whatever way."""
        with self._lock:
            self._requests.discard(request)
            request.close()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Somebody waits for bytes."""
        with self._lock:
            self._waiting += 1
        try:
            yield
        finally:
            with self._lock:
                self._waiting -= 1

    def arrived(self, nbytes: int) -> None:
        """Counts bytes."""
        with self._lock:
            self._nbytes += nbytes

    def _look(self) -> None:
        before = time.monotonic()
        while True:
            time.sleep(_LOOK_SECONDS)
            now = time.monotonic()
            with self._lock:
                if not self._requests:
                    self._looking = False
                    return
                if self._waiting:
                    # A machine that slept waited for nobody.
                    self._waited += min(now - before, _LONGEST_LOOK)
                reason = self._reason(now)
                for request in self._requests:
                    if reason is not None:
                        request.end(reason)
                    elif request.is_late(now):
                        request.end(f"gave no answer within {ANSWER_SECONDS:g} s")
            before = now

    def _reason(self, now: float) -> str | None:
        if self._began is not None and now - self._began > LONGEST_SECONDS:
            return f"took more than {LONGEST_SECONDS:g} s"
        if self._waited < RATE_SECONDS:
            return None
        rate = self._nbytes / self._waited
        self._waited, self._nbytes = 0.0, 0
        return f"sends less than {LEAST_RATE} bytes a second" if rate < LEAST_RATE else None
