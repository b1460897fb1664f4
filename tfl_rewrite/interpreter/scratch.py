"""What must not be left behind: temporary folders, and children of a process that is told to stop."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import signal
import stat
import tempfile
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path

from tfl_rewrite.errors import FileAccessError
from tfl_rewrite.work import held_back, leads_to, lock, opened_folder

PREFIX = "tfl-rewrite-"
_NAME_NBYTES = 16
_MARKER = ".tfl-rewrite"
_MARK = "temporary folder of tfl-rewrite, 1"
_MARK_NBYTES = 4096
_DEEPEST = 100
"""Folders in folders that are emptied: none of ours goes past five."""


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

    Its name cannot be guessed, nobody else may enter it, and it holds a marker that is locked while its
    process lives. What a process that was killed left behind is removed by the next one that makes such a
    folder in the same place (`sweep`).

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
            if hasattr(self, "_finish"):
                self.close()
            raise

    def _make_it(self, parent: Path | None, prefix: str) -> None:
        # Processes that run elsewhere read it; where TMPDIR is ".", Python leaves that as it is.
        where = Path(tempfile.gettempdir()).absolute() if parent is None else parent
        sweep(where, prefix)
        made = None
        while made is None:
            self.path = where / f"{prefix}{secrets.token_hex(_NAME_NBYTES)}"
            made = _marked(self.path)
        self._count = 0
        self._finish = weakref.finalize(self, _remove, self.path, *made, os.getpid())
        _live.add(self)

    def __enter__(self) -> Scratch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def folder(self, within: Path | None = None) -> Path:
        """A new empty folder, directly or in one of them."""
        path = self.unmade(within)
        path.mkdir()
        return path

    def unmade(self, within: Path | None = None) -> Path:
        """The same, for somebody else to make where there is a need for it."""
        self._count += 1
        return (within or self.path) / str(self._count)

    def discard(self, folder: Path) -> None:
        """Removes one folder early."""
        shutil.rmtree(folder, ignore_errors=True)

    def close(self) -> None:
        """Removes everything."""
        _live.discard(self)
        try:
            with held_back():
                self._finish()
        except BaseException:
            # A signal came before it could be held back.
            with held_back():
                self._finish()
            raise


def _marked(path: Path) -> tuple[int, int] | None:
    """Makes a folder, locks its marker and fills it in.

    Returns:
        Descriptors of the folder and of its marker; None if somebody who sweeps was faster.

    Raises:
        OSError: The folder or the marker cannot be made.
    """
    path.mkdir(0o700)
    folder = marker = -1
    try:
        with contextlib.suppress(FileNotFoundError):
            folder = opened_folder(path)
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            marker = os.open(_MARKER, flags, 0o600, dir_fd=folder)
            if (
                lock(marker, without=True)
                and leads_to(_MARKER, marker, folder=folder)
                and leads_to(path, folder)
            ):
                text = _mark(path.name).encode("utf-8", "replace")
                if os.write(marker, text) < len(text):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                return folder, marker
    except BaseException:
        _remove(path, folder, marker, os.getpid())
        raise
    _remove(path, folder, marker, os.getpid())
    return None


def _remove(path: Path, folder: int, marker: int, pid: int) -> None:
    """Removes a folder that this process made; the marker goes last, so that what is left can be found."""
    if os.getpid() == pid:
        # Not in a process that was forked: the folder is still in use where it was made.
        if folder >= 0:
            _empty(folder, but=_MARKER)
            with contextlib.suppress(OSError):
                os.unlink(_MARKER, dir_fd=folder)
        with contextlib.suppress(OSError):
            path.rmdir()
    for descriptor in (folder, marker):
        if descriptor >= 0:
            os.close(descriptor)


def _empty(folder: int, *, but: str = "", depth: int = 0) -> None:
    """Removes what is in an open folder; no link is followed, and what cannot be removed stays."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for name, is_folder in [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]:
            with contextlib.suppress(OSError):
                if not is_folder:
                    if name != but:
                        os.unlink(name, dir_fd=folder)
                    continue
                if depth < _DEEPEST:
                    inner = opened_folder(name, folder=folder)
                    try:
                        _empty(inner, depth=depth + 1)
                    finally:
                        os.close(inner)
                os.rmdir(name, dir_fd=folder)


def sweep(parent: Path, prefix: str = PREFIX) -> list[Path]:
    """Removes the folders in ``parent`` that killed processes left, and nothing else.

    Removed is a folder that this program made: its name is of the exact form, it is no link, it belongs to
    this user and nobody else may enter it, its marker says the same name, and the process that the marker
    names has ended. What was killed before the marker was written holds nothing else, and goes too.

    Returns:
        What was removed.
    """
    removed = []
    with contextlib.suppress(OSError), os.scandir(parent) as entries:
        form = re.compile(re.escape(prefix) + f"[0-9a-f]{{{2 * _NAME_NBYTES}}}")
        for path in [Path(entry.path) for entry in entries if form.fullmatch(entry.name)]:
            with contextlib.suppress(OSError):
                folder = opened_folder(path)
                try:
                    if _swept(path, folder):
                        removed.append(path)
                finally:
                    os.close(folder)
    return removed


def _swept(path: Path, folder: int) -> bool:
    """Removes one folder if it was left behind."""
    facts = os.fstat(folder)
    if facts.st_uid != os.geteuid() or stat.S_IMODE(facts.st_mode) != 0o700:
        return False
    try:
        marker = os.open(_MARKER, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except FileNotFoundError:
        # Begun, or all but gone, when its process was killed. One who is making it makes another.
        path.rmdir()
        return True
    try:
        facts = os.fstat(marker)
        if facts.st_uid != os.geteuid() or not stat.S_ISREG(facts.st_mode) or not lock(marker):
            return False
        if not leads_to(_MARKER, marker, folder=folder) or not leads_to(path, folder):
            return False
        text = os.pread(marker, _MARK_NBYTES, 0)
        if not text:
            # Killed before the marker was written: of use only if there is nothing beside it.
            if os.listdir(folder) != [_MARKER]:
                return False
        elif not _is_left(text.decode("utf-8", "replace"), path.name):
            return False
        _empty(folder, but=_MARKER)
        os.unlink(_MARKER, dir_fd=folder)
        path.rmdir()
        return True
    finally:
        os.close(marker)


def _mark(name: str) -> str:
    """What a marker says: whose folder it is."""
    return "\n".join([_MARK, name, *_here(), str(os.getpid()), _started(os.getpid()), ""])


def _is_left(text: str, name: str) -> bool:
    """Whether a marker is ours, of a folder of that name, and its process has ended."""
    words = text.split("\n")
    if len(words) != 8 or words[0] != _MARK or words[1] != name:
        return False
    machine, boot, pids = _here()
    if words[3] != boot:
        # The machine was started anew since; or it is another one, which shares the folder over a network.
        return words[2] == machine
    # Of a container we cannot see the processes; the lock, which we hold, is of the whole system.
    return words[4] != pids or not words[6] or _started(words[5]) != words[6]


def _here() -> tuple[str, str, str]:
    """The machine, when it was started, and which of its processes we see."""
    boot = pids = ""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        pids = str(Path("/proc/self/ns/pid").readlink())
    return os.uname().nodename, boot, pids


def _started(pid: int | str) -> str:
    """When a process was started, in the system's own count; nothing if there is none of that number."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        # The name of the program, in parentheses, may hold anything.
        return text.rsplit(")", 1)[1].split()[19]
    except (OSError, IndexError):
        return ""


ENDING = (signal.SIGTERM, signal.SIGHUP)
"""Signals that end a program that does not listen to them."""


class Terminated(BaseException):
    """One of `ENDING` arrived: unwinds like KeyboardInterrupt, so that children and files are cleaned up."""

    def __init__(self, number: signal.Signals) -> None:
        self.number = number


class TerminationGuard:
    """Turns `ENDING` into `Terminated` while it is active, and delivers the signal again afterwards.

    Only where nobody else has taken the signal, and only in the main thread: elsewhere Python does not let
    handlers be set.
    """

    _active = False

    def __init__(self) -> None:
        self._taken: list[signal.Signals] = []

    def __enter__(self) -> TerminationGuard:
        if threading.current_thread() is threading.main_thread() and not TerminationGuard._active:
            self._taken = [number for number in ENDING if signal.getsignal(number) is signal.SIG_DFL]
            TerminationGuard._active = bool(self._taken)
            for number in self._taken:
                signal.signal(number, _raise_terminated)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if not self._taken:
            return
        TerminationGuard._active = False
        for number in self._taken:
            signal.signal(number, signal.SIG_DFL)
        self._taken = []
        if isinstance(error, Terminated):
            signal.raise_signal(error.number)


def _raise_terminated(number: int, frame: object) -> None:
    raise Terminated(signal.Signals(number))
