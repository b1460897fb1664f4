"""How far work is, on standard error, for what takes longer than a second."""

from __future__ import annotations

import argparse
import os
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from tfl_rewrite.cli.text import warn

if TYPE_CHECKING:
    from rich.progress import Progress

AFTER_SECONDS = 1.0
_COLUMNS, _WIDE = 80, 60
"""Columns of a terminal that does not say how many it has, and from how many on the time left is shown."""
_EVERY_SECONDS, _CLOSING_SECONDS = 0.1, 1.0


class Bar:
    """One bar after the other, each with the time left.

    Nothing is printed within the first second, or if not wanted. On a terminal, work whose end nobody knows
    has a line that counts seconds. What is no terminal (a log of a build) gets one line for each part of the
    work that takes over a second. All of it is shown by a thread: who works says only how far it is.

    Args:
        wanted: Whether the user wants any talk.
    """

    def __init__(self, *, wanted: bool = True) -> None:
        self._enabled = wanted and sys.stderr is not None
        self._now = ("", 0.0, 0, 0)
        # One is taken by the call that starts the thread, the other released to end it. No conditions and no
        # events: what a signal raises within those leaves them locked.
        self._first_call = threading.Lock()
        self._stop = threading.Lock()
        self._stop.acquire()
        self._thread: threading.Thread | None = None
        # What follows belongs to the thread alone.
        self._line = ""
        self._bar: Progress | None = None

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> Bar:
        """Returns the one that the options ask for."""
        return cls(wanted=not getattr(arguments, "quiet", False))

    def __call__(self, what: str, done: int = 0, total: int = 0) -> None:
        """Takes how far some work is; from any thread.

        Args:
            what: The part of the work; another one begins another bar.
            done: Bytes, runs, or what else is counted, that are done.
            total: Of so many; 0 for work whose end nobody knows.
        """
        if not self._enabled:
            return
        before, began, _, end = self._now
        if what != before or bool(total) != bool(end):
            began = time.monotonic()
        self._now = (what, began, min(done, total), total)
        if self._first_call.acquire(blocking=False):
            self._thread = threading.Thread(target=self._show, daemon=True)
            self._thread.start()

    def _show(self) -> None:
        draw = self._draw if sys.stderr.isatty() else self._log
        started, pause = time.monotonic(), AFTER_SECONDS
        while not self._stop.acquire(timeout=pause):
            pause = _EVERY_SECONDS
            draw(time.monotonic() - started)
        self._clear()

    def _log(self, _seconds: float) -> None:
        what, began, _, _ = self._now
        if what != self._line and time.monotonic() - began >= AFTER_SECONDS:
            self._line = what
            warn(f"tfl-rewrite: {what} ...")

    def _draw(self, seconds: float) -> None:
        what, _, done, total = self._now
        if self._bar is not None and (self._bar.tasks[0].description != what or not total):
            self._clear()
        if not total:
            line = f"{what} ({seconds:.0f} s)"
            if line != self._line:
                print(f"\r{line}\x1b[K", end="", file=sys.stderr, flush=True)
            self._line = line
            return
        if self._bar is None:
            self._clear()
            self._bar = _begin(what, total)
        task = self._bar.tasks[0]
        # Of threads that count together, the last one to come here may know least.
        self._bar.update(task.id, completed=max(int(task.completed), done))
        self._bar.refresh()

    def _clear(self) -> None:
        """Removes the bar, or the line."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        elif self._line and sys.stderr.isatty():
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
        self._line = ""

    def close(self) -> None:
        """Shows nothing any more."""
        self._enabled = False
        if self._stop.locked():
            self._stop.release()
        if self._thread is not None and self._thread.is_alive():
            # One whose terminal is stopped ends with the program.
            self._thread.join(_CLOSING_SECONDS)

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _begin(what: str, total: int) -> Progress:
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
        columns += [TextColumn("<"), TimeRemainingColumn()]
    bar = Progress(*columns, console=console, transient=True, auto_refresh=False, expand=True)
    bar.add_task(what, total=total)
    bar.start()
    return bar


def _knows_its_size() -> bool:
    try:
        return bool(os.get_terminal_size(sys.stderr.fileno()).columns)
    except (OSError, ValueError):
        return False
