"""A line for work whose end nobody knows: on a terminal how long it takes, in a log what is being done."""

from __future__ import annotations

import sys
import threading
import time

from tfl_rewrite.cli.text import warn

AFTER_SECONDS = 1.0


class Waiting:
    """Says on standard error what is being done once that takes longer than a second.

    On a terminal, a line that counts seconds and that `close` removes. Elsewhere (a log of a build), one line
    for each thing that is done, and nothing after it.

    Args:
        enabled: Whether anybody wants to know.
    """

    def __init__(self, *, enabled: bool) -> None:
        self._enabled = enabled and sys.stderr is not None
        self._what = ""
        self._since = 0.0
        self._stop: threading.Event | None = None
        self._thread: threading.Thread | None = None

    def __call__(self, what: str) -> None:
        """From now on this is what is being done."""
        if what != self._what:
            self._what, self._since = what, time.monotonic()
        if not self._enabled or self._thread is not None:
            return
        self._stop = threading.Event()
        show = self._count if sys.stderr.isatty() else self._log
        self._thread = threading.Thread(target=show, args=(self._stop,), daemon=True)
        self._thread.start()

    def __enter__(self) -> Waiting:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Removes the line."""
        if self._stop is not None and self._thread is not None:
            self._stop.set()
            self._thread.join()
        self._stop = self._thread = None
        self._what = ""

    def _count(self, stop: threading.Event) -> None:
        started = time.monotonic()
        if stop.wait(AFTER_SECONDS):
            return
        while True:
            seconds = time.monotonic() - started
            print(f"\r{self._what} ({seconds:.0f} s)\x1b[K", end="", file=sys.stderr, flush=True)
            if stop.wait(0.5):
                break
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def _log(self, stop: threading.Event) -> None:
        said = ""
        while not stop.wait(0.1):
            what, since = self._what, self._since
            if what and what != said and time.monotonic() - since >= AFTER_SECONDS:
                warn(f"tfl-rewrite: {what} ...")
                said = what
