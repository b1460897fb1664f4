"""Progress bars on the terminal, for work that takes longer than a second."""

from __future__ import annotations

import argparse
import os
import sys
import threading
import time
from types import TracebackType
from typing import Any

from tfl_rewrite.cli.waiting import Waiting

AFTER_SECONDS = 1.0
_EVERY_SECONDS = 0.1


class Bar:
    """One bar after the other, each with its rate and the time left.

    Nothing is printed within the first second, or if not wanted. What is no terminal gets one line for each
    part of the work that takes over a second.

    Args:
        wanted: Whether the user wants any talk.
        unit: What is counted: bytes, unless it is the name of something else.
    """

    def __init__(self, *, wanted: bool = True, unit: str = "B") -> None:
        self._enabled = wanted and sys.stderr is not None
        self._terminal = self._enabled and sys.stderr.isatty()
        self._unit = unit
        self._started = time.monotonic()
        self._shown = 0.0
        self._bar: Any = None
        self._what = ""
        self._lock = threading.Lock()
        self._waiting = Waiting(enabled=self._enabled)

    @classmethod
    def of(cls, arguments: argparse.Namespace, *, unit: str = "B") -> Bar:
        """Returns the one that the options ask for."""
        return cls(wanted=not getattr(arguments, "quiet", False), unit=unit)

    def __call__(self, what: str, done: int, total: int) -> None:
        """Shows how far some work is; from any thread.

        Args:
            what: The part of the work; another one begins another bar.
            done: Bytes, or what else is counted, that are done.
            total: Of so many; 0 for work whose end nobody knows, which gets a line that counts seconds.
        """
        if not self._enabled:
            return
        if not self._terminal:
            self._waiting(what)
            return
        if not total:
            self.close()
            self._waiting(what)
            return
        with self._lock:
            # Any thread may be the first that counts.
            self._waiting.close()
        now = time.monotonic()
        if now - self._started < AFTER_SECONDS:
            return
        with self._lock:
            if what != self._what:
                self._close()
            elif now - self._shown < _EVERY_SECONDS and done < total:
                return
            self._shown = now
            if self._bar is None:
                from tqdm import tqdm

                # Its rate counts from here on: what was done before took an unknown time.
                self._bar = tqdm(
                    total=total,
                    initial=min(done, total),
                    desc=what,
                    unit=self._unit,
                    unit_scale=self._unit == "B" or total > 9999,
                    leave=False,
                    mininterval=0,
                    **_size(),
                    file=sys.stderr,
                )
                self._what = what
            self._bar.update(max(0, min(done, total) - self._bar.n))

    def close(self) -> None:
        """Removes the bar, or the line."""
        self._waiting.close()
        with self._lock:
            self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
            self._what = ""

    def __enter__(self) -> Bar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _size() -> dict[str, Any]:
    """Returns a size for terminals that do not know theirs (serial lines, some containers)."""
    try:
        known = bool(os.get_terminal_size(sys.stderr.fileno()).columns)
    except (OSError, ValueError):
        known = False
    return {} if known else {"ncols": 80, "nrows": 24}
