"""A line on the terminal for work whose end nobody knows: what is being done, and for how long."""

from __future__ import annotations

import sys
import threading
import time

AFTER_SECONDS = 1.0


class Waiting:
    """Shows a line on standard error while something takes longer than a second; `close` removes it.

    Args:
        enabled: Whether there is a terminal to show it on.
    """

    def __init__(self, *, enabled: bool) -> None:
        self._enabled = enabled
        self._what = ""
        self._stop: threading.Event | None = None
        self._thread: threading.Thread | None = None

    def __call__(self, what: str) -> None:
        """From now on this is what is being done."""
        self._what = what
        if not self._enabled or self._thread is not None:
            return
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._show, args=(self._stop,), daemon=True)
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

    def _show(self, stop: threading.Event) -> None:
        started = time.monotonic()
        if stop.wait(AFTER_SECONDS):
            return
        while True:
            seconds = time.monotonic() - started
            print(f"\r{self._what} ({seconds:.0f} s)\x1b[K", end="", file=sys.stderr, flush=True)
            if stop.wait(0.5):
                break
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)
