"""Progress bars on the terminal, for work that takes longer than a second."""

from __future__ import annotations

import argparse
import os
import sys
import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

from tfl_rewrite.cli.waiting import Waiting

if TYPE_CHECKING:
    from rich.progress import Progress

AFTER_SECONDS = 1.0
_COLUMNS, _WIDE = 80, 60
"""Columns of a terminal that does not say how many it has, and from how many on the time left is shown."""
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
        self._bar: Progress | None = None
        self._first = 0
        self._since = 0.0
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
                self._bar, self._what = _begin(what, total, self._unit), what
                self._first = min(done, total)
            # Its rate counts from here on: what was done before took an unknown time.
            task = self._bar.tasks[0]
            done = max(int(task.completed), min(done, total))
            self._bar.update(task.id, completed=done, rate=self._rate(now, done))
            self._bar.refresh()

    def _rate(self, now: float, done: int) -> str:
        if done <= self._first:
            self._since = now
            return ""
        rate = (done - self._first) / max(now - self._since, 1e-6)
        return f"{_scaled(rate, self._unit)}/s"

    def close(self) -> None:
        """Removes the bar, or the line."""
        self._waiting.close()
        with self._lock:
            self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
            self._what = ""

    def __enter__(self) -> Bar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _begin(what: str, total: int, unit: str) -> Progress:
    """Shows a bar; it goes when it is stopped."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    # A terminal that does not know its size (a serial line, some containers) has 80 columns.
    console = Console(file=sys.stderr, width=None if _knows_its_size() else _COLUMNS)
    columns: list[Any] = [
        TextColumn("{task.description}:", markup=False),
        BarColumn(bar_width=None),
        TaskProgressColumn(),
    ]
    if console.width >= _WIDE:
        columns += [TextColumn("{task.fields[rate]}"), TextColumn("<"), TimeRemainingColumn()]
    bar = Progress(*columns, console=console, transient=True, auto_refresh=False, expand=True)
    bar.add_task(what, total=total, rate="")
    bar.start()
    return bar


def _scaled(number: float, unit: str) -> str:
    """Returns such as ``3.2 MB``."""
    for prefix in ("", "k", "M", "G"):
        if number < 1000 or prefix == "G":
            break
        number /= 1000
    return f"{number:.3g} {prefix}{unit}"


def _knows_its_size() -> bool:
    try:
        return bool(os.get_terminal_size(sys.stderr.fileno()).columns)
    except (OSError, ValueError):
        return False
