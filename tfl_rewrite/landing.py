"""Files that have no name until they are complete: a process that is killed leaves nothing of them.

Where the system has nameless files (``O_TMPFILE``, Linux) nothing can be left behind. Elsewhere, and for the
blink in which an existing file is replaced, the file has a name of its own and is locked while its process
lives; the next process that writes into the same folder removes those that nobody holds any more.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tfl_rewrite.errors import FileAccessError, UsageError
from tfl_rewrite.signals import held_back

_PIECE = 4 << 20
_READ = 1 << 20
_PREFIX, _SUFFIX = ".tfl-rewrite-", ".tmp"


published: list[Path] = []
"""Files that got their names in this process: what a signal comes too late for."""


class FileSink:
    """Positioned writes into an open file, from any thread."""

    __slots__ = ("descriptor",)

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def write_at(self, data: bytes | memoryview, offset: int) -> None:
        """Writes all of ``data``, in pieces that bound what the kernel holds at once."""
        view = memoryview(data).cast("B")
        done = 0
        while done < len(view):
            done += os.pwrite(self.descriptor, view[done : done + _PIECE], offset + done)


def check_target(target: str | os.PathLike[str], *, force: bool) -> Path:
    """Returns the path that will be written, symbolic links followed.

    Raises:
        UsageError: It is a directory, its folder is missing, or it exists and ``force`` is off.
        FileAccessError: The system refuses to look: a name that is too long, a folder without permission.
    """
    path = Path(os.path.realpath(target))
    try:
        if path.is_symlink():
            raise UsageError("is a symbolic link that leads in a circle", file=target, remedy="name a file")
        if path.is_dir():
            raise UsageError("is a directory", file=target, remedy="name a file")
        if not path.parent.is_dir():
            raise UsageError("its folder does not exist", file=target, remedy=f"create {path.parent} first")
        if path.exists() and not path.is_file():
            raise UsageError("is a device or a pipe", file=target, remedy="name a file")
        if path.exists() and not force:
            raise UsageError("exists already", file=target, remedy="use --force to overwrite it")
    except OSError as error:
        raise FileAccessError(f"cannot write: {error.strerror or error}", file=target) from error
    return path


class Landing:
    """An open file in the folder where it will get its name.

    Attributes:
        descriptor: Open for reading and writing.
        path: Where any process of the same user can read it while it is open.
    """

    __slots__ = ("_folder", "_named", "descriptor", "path")

    def __init__(self, descriptor: int, folder: Path, named: Path | None) -> None:
        self.descriptor = descriptor
        self._folder = folder
        self._named = named
        self.path = named or _nameless(descriptor)

    @property
    def sink(self) -> FileSink:
        """For positioned writes."""
        return FileSink(self.descriptor)

    def pieces(self) -> Iterator[bytes]:
        """Reads what was written, from the start."""
        offset = 0
        while piece := os.pread(self.descriptor, _READ, offset):
            yield piece
            offset += len(piece)

    def view(self) -> memoryview:
        """Maps what was written, read-only."""
        size = os.fstat(self.descriptor).st_size
        return memoryview(mmap.mmap(self.descriptor, size, access=mmap.ACCESS_READ) if size else b"")

    def publish(self, target: Path, *, force: bool) -> None:
        """Gives the file its name in one step.

        Args:
            target: In the folder that the file was opened in.
            force: Whether something may have that name already; it is replaced then.

        Raises:
            FileExistsError: The name is taken, and ``force`` is off.
        """
        if not force:
            self._link(target)
            return
        spare = _spare(self._folder)
        if target.exists():
            os.fchmod(self.descriptor, stat.S_IMODE(target.stat().st_mode))
            # Content must be on disk before it replaces the only other copy.
            os.fsync(self.descriptor)
        self._link(spare)
        try:
            spare.replace(target)
        except OSError:
            spare.unlink(missing_ok=True)
            raise

    def _link(self, name: Path) -> None:
        if self._named is not None:
            try:
                os.link(self._named, name)
            except FileExistsError:
                raise
            except OSError:
                # A file system without hard links; that nothing has the name was checked a moment ago.
                self._named.rename(name)
            return
        folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            # With a folder given, Python calls linkat, which is what follows the link in /proc.
            os.link(self.path, name, src_dir_fd=folder, follow_symlinks=True)
        finally:
            os.close(folder)


@contextlib.contextmanager
def landing(folder: Path, *, nbytes: int = 0) -> Iterator[Landing]:
    """Opens a file without a name in a folder; it is gone at the end unless it was published.

    Args:
        folder: Exists and can be written.
        nbytes: Its size to be, so that a full disk shows before work is done.

    Raises:
        FileAccessError: The folder cannot be written, or has too little room.
    """
    named: Path | None = None
    descriptor = -1
    try:
        sweep(folder)
        try:
            descriptor = os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o666)
            if not os.access(_nameless(descriptor), os.R_OK):
                os.close(descriptor)
                descriptor = -1
                raise FileNotFoundError
        except (AttributeError, OSError) as error:
            if isinstance(error, PermissionError):
                raise
            # Not Linux, no /proc, or a file system without nameless files.
            named = _spare(folder)
            descriptor = os.open(named, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        with contextlib.suppress(OSError):
            # Says that somebody is at work on it; see sweep().
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if nbytes:
            _reserve(descriptor, nbytes, folder)
        yield Landing(descriptor, folder, named)
    except FileExistsError as error:
        raise UsageError(
            "exists already", file=error.filename2 or folder, remedy="use --force to overwrite it"
        ) from None
    except OSError as error:
        raise FileAccessError(f"cannot write: {error.strerror or error}", file=folder) from error
    finally:
        if descriptor >= 0:
            os.close(descriptor)
        if named is not None:
            with contextlib.suppress(OSError):
                named.unlink()


def sweep(folder: Path) -> list[Path]:
    """Removes files that a killed process left in a folder: those with our mark that nobody has locked.

    Returns:
        What was removed.
    """
    removed = []
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        marked = [entry.path for entry in entries if entry.name.startswith(_PREFIX)]
        for name in marked:
            if not name.endswith(_SUFFIX):
                continue
            with contextlib.suppress(OSError):
                descriptor = os.open(name, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    Path(name).unlink()
                    removed.append(Path(name))
                finally:
                    os.close(descriptor)
    return removed


@dataclass(slots=True)
class Aside:
    """A file being written beside its target, not yet named so.

    Attributes:
        path: Where it lies for now; readable, so that it can be verified.
        target: What it becomes.
    """

    path: Path
    target: Path
    force: bool
    sink: FileSink
    _landing: Landing

    def publish(self) -> None:
        """Gives the file its name in one step.

        Raises:
            UsageError: Another process made the target meanwhile, and it may not be overwritten.
        """
        try:
            # What is done and what is said of it must agree.
            with held_back():
                self._landing.publish(self.target, force=self.force)
                published.append(self.target)
        except FileExistsError:
            raise UsageError(
                "appeared while it was being made", file=self.target, remedy="use --force to overwrite it"
            ) from None


@contextlib.contextmanager
def write_aside(target: str | os.PathLike[str], *, force: bool, nbytes: int) -> Iterator[Aside]:
    """Opens a file beside the target; removes it unless it was published.

    Args:
        target: The file to make or replace.
        force: Whether it may exist.
        nbytes: Its size to be, so that a full disk shows before work is done.

    Raises:
        UsageError: See :func:`check_target`.
        FileAccessError: The folder cannot be written, or the disk is full.
    """
    path = check_target(target, force=force)
    try:
        with landing(path.parent, nbytes=nbytes) as file:
            yield Aside(file.path, path, force, file.sink, file)
    except FileAccessError as error:
        if error.file == os.fspath(path.parent):
            error.file = os.fspath(target)
        raise


def _nameless(descriptor: int) -> Path:
    return Path(f"/proc/{os.getpid()}/fd/{descriptor}")


def _spare(folder: Path) -> Path:
    return folder / f"{_PREFIX}{os.urandom(8).hex()}{_SUFFIX}"


def _reserve(descriptor: int, nbytes: int, folder: Path) -> None:
    """Sets the size, after a look at the room that there is: a hostile size must not fill the disk."""
    room = os.fstatvfs(descriptor)
    if nbytes > room.f_bavail * room.f_frsize:
        raise FileAccessError(f"{nbytes} bytes do not fit on the disk", file=folder)
    os.ftruncate(descriptor, nbytes)
