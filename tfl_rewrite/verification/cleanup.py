"""What must not be left behind: temporary folders, and children of a process that is told to stop."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import signal
import stat
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

from ..errors import FileAccessError
from ..signals import held_back

PREFIX = "tfl-rewrite-"
_LOCK = ".lock"


def unwritable(reason: str) -> FileAccessError:
    """An error about the folder for temporary files."""
    if "requested and" in reason:
        # numpy's words for a file that could not be written to its end.
        reason = f"no space left on the device ({reason})"
    return FileAccessError(
        f"cannot keep temporary files: {reason}",
        file=_place(),
        remedy="make room there, or set TMPDIR to another folder",
    )


@contextlib.contextmanager
def scratch_errors() -> Iterator[None]:
    """Turns what the system says about temporary files into an error that tells so.

    Raises:
        FileAccessError: Instead of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise unwritable(error.strerror or str(error)) from error


def _place() -> str:
    try:
        return tempfile.gettempdir()
    except OSError:
        return os.environ.get("TMPDIR", "/tmp")


_live: weakref.WeakSet[Scratch] = weakref.WeakSet()


def is_scratch(folder: Path) -> bool:
    """Whether a folder is a temporary one of this process, or lies in one: files in it are ours alone."""
    return any(scratch.path in (folder, *folder.parents) for scratch in list(_live))


class Scratch:
    """A temporary folder with numbered subfolders, removed by `close`, at garbage collection or at exit.

    It is locked while its process lives. What a process that was killed left behind is removed by the next
    one that makes such a folder in the same place.

    Args:
        parent: Where to make it; by default where the system keeps temporary files.
        prefix: How its name begins.

    Raises:
        FileAccessError: There is no room.
    """

    def __init__(self, parent: Path | None = None, prefix: str = PREFIX) -> None:
        with scratch_errors():
            self._make(parent, prefix)

    def _make(self, parent: Path | None, prefix: str) -> None:
        # Half a folder made or removed would be left behind.
        try:
            with held_back():
                self._make_it(parent, prefix)
        except BaseException:
            # A signal that waited: nobody is going to have this object, to close it.
            if hasattr(self, "_folder"):
                self.close()
            raise

    def _make_it(self, parent: Path | None, prefix: str) -> None:
        where = Path(tempfile.gettempdir()) if parent is None else parent
        sweep(where, prefix)
        while True:
            self._folder = tempfile.TemporaryDirectory(prefix=prefix, dir=where, ignore_cleanup_errors=True)
            self.path = Path(self._folder.name)
            self._lock = -1
            with contextlib.suppress(FileNotFoundError):
                self._lock = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            if self._lock >= 0 and _locked(self._lock):
                break
            # Somebody who sweeps was faster.
            self._remove()
        self._count = 0
        _live.add(self)

    def __enter__(self) -> Scratch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def folder(self, within: Path | None = None) -> Path:
        """A new empty folder, directly or in one of them."""
        self._count += 1
        path = (within or self.path) / str(self._count)
        path.mkdir()
        return path

    def discard(self, folder: Path) -> None:
        """Removes one folder early."""
        shutil.rmtree(folder, ignore_errors=True)

    def close(self) -> None:
        """Removes everything."""
        try:
            with held_back():
                self._remove()
        except BaseException:
            # A signal came before it could be held back.
            with held_back():
                self._remove()
            raise

    def _remove(self) -> None:
        _live.discard(self)
        _empty(self.path)
        self._folder.cleanup()
        lock, self._lock = self._lock, -1
        if lock >= 0:
            os.close(lock)


def _empty(folder: Path) -> None:
    """Removes all but the lock, which goes last: a folder with a lock is found by the next one who sweeps."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in list(entries):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            elif entry.name != _LOCK:
                with contextlib.suppress(OSError):
                    Path(entry.path).unlink()


def sweep(parent: Path, prefix: str = PREFIX) -> list[Path]:
    """Removes the folders in ``parent`` that killed processes left: those that nobody has locked.

    Returns:
        What was removed.
    """
    removed = []
    with contextlib.suppress(OSError), os.scandir(parent) as entries:
        marked = [entry.path for entry in entries if entry.name.startswith(prefix)]
        for name in marked:
            with contextlib.suppress(OSError):
                try:
                    descriptor = os.open(Path(name) / _LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
                except FileNotFoundError:
                    # Begun, or all but gone, when its process was killed. One who is making it makes another.
                    if _is_ours(Path(name), prefix):
                        Path(name).rmdir()
                        removed.append(Path(name))
                    continue
                try:
                    if os.fstat(descriptor).st_uid == os.getuid() and _locked(descriptor):
                        _empty(Path(name))
                        shutil.rmtree(name, ignore_errors=True)
                        removed.append(Path(name))
                finally:
                    os.close(descriptor)
    return removed


def _is_ours(folder: Path, prefix: str) -> bool:
    """Whether a folder is named and protected as those of :mod:`tempfile` are, and belongs to us."""
    facts = folder.lstat()
    named = re.fullmatch(r"[a-z0-9_]{8}", folder.name.removeprefix(prefix)) is not None
    return named and stat.S_IMODE(facts.st_mode) == 0o700 and facts.st_uid == os.getuid()


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


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
