"""What must not be left behind: temporary folders, and children of a process that is told to stop."""

from __future__ import annotations

import shutil
import signal
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path


class Scratch:
    """A temporary folder with numbered subfolders, removed by `close`, at garbage collection or at exit."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="tfl-rewrite-verify-", ignore_cleanup_errors=True)
        self._count = 0

    def folder(self) -> Path:
        """A new empty folder."""
        self._count += 1
        path = Path(self._folder.name) / str(self._count)
        path.mkdir()
        return path

    def discard(self, folder: Path) -> None:
        """Removes one folder early."""
        shutil.rmtree(folder, ignore_errors=True)

    def close(self) -> None:
        """Removes everything."""
        self._folder.cleanup()


class Terminated(BaseException):
    """SIGTERM arrived: unwinds like KeyboardInterrupt, so that children and files are cleaned up."""


class TerminationGuard:
    """Turns SIGTERM into `Terminated` while it is active, and delivers the signal again afterwards.

    Only where nobody else has taken the signal, and only in the main thread: elsewhere Python does not let
    handlers be set.
    """

    _active = False

    def __init__(self) -> None:
        self._previous: Callable[..., object] | int | None = None
        self._owner = False

    def __enter__(self) -> TerminationGuard:
        main = threading.current_thread() is threading.main_thread()
        if main and not TerminationGuard._active and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            self._previous = signal.signal(signal.SIGTERM, _raise_terminated)
            self._owner = TerminationGuard._active = True
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if not self._owner:
            return
        self._owner = TerminationGuard._active = False
        signal.signal(signal.SIGTERM, self._previous)
        if isinstance(error, Terminated):
            signal.raise_signal(signal.SIGTERM)


def _raise_terminated(number: int, frame: object) -> None:
    raise Terminated
