"""Files that have no name until they are complete: a process that is killed leaves nothing of them.

Where the system has nameless files (``O_TMPFILE``, Linux) nothing can be left behind. Elsewhere, and for the
blink in which an existing file is replaced, the file has a name of its own and is locked while its process
lives; the next process that writes into the same folder removes those that nobody holds any more.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from tfl_rewrite.errors import FileAccessError, UsageError
from tfl_rewrite.options.frozen import slotted
from tfl_rewrite.work import held_back, leads_to, lock

PLAIN = 0o666
"""Access to a file that is made of nothing in particular; the system takes the umask off."""

_READERS = 0o444
_PIECE = 4 << 20
_READ = 1 << 20
_NAME_NBYTES = 8
_SPARE = re.compile(rf"\.tfl-rewrite-[0-9a-f]{{{2 * _NAME_NBYTES}}}\.tmp")
_NO_REPLACE = 1
"""``RENAME_NOREPLACE`` of renameat2(2)."""
_RANGE_WRITE = 2
"""``SYNC_FILE_RANGE_WRITE`` of sync_file_range(2)."""


published: list[Path] = []
"""Files that got their names in this process: what a signal comes too late for."""


class FileSink:
    """Positioned writes into an open file, from any thread.

    Args:
        descriptor: The open file.
        early: Whether what is written shall go to the disk at once, since somebody will wait for it there.
    """

    __slots__ = ("_early", "_waiting", "descriptor")

    def __init__(self, descriptor: int, *, early: bool = False) -> None:
        self.descriptor = descriptor
        self._early = early
        self._waiting = 0

    def write_at(self, data: bytes | memoryview, offset: int) -> None:
        """Writes all of ``data``, in pieces that bound what the kernel holds at once."""
        view = memoryview(data).cast("B")
        done = 0
        while done < len(view):
            done += os.pwrite(self.descriptor, view[done : done + _PIECE], offset + done)
        if self._early:
            # Of two threads that count at once one may go uncounted: what is late is waited for at the end.
            self._waiting += len(view)
            if self._waiting >= _PIECE:
                self._waiting = 0
                _start_writing(self.descriptor)


def _start_writing(descriptor: int) -> None:
    """Has the system begin to write what it holds of a file to the disk; where it cannot, that is later."""
    with contextlib.suppress(OSError, AttributeError):
        # From the start to the end of the file.
        ctypes.CDLL(None).sync_file_range(descriptor, ctypes.c_int64(0), ctypes.c_int64(0), _RANGE_WRITE)


def access_of(path: str | os.PathLike[str]) -> int:
    """Returns who may read, write and run what is made of a file; never setuid and the like.

    Whoever may read the file may read what is made of it, and nobody else. That it must not be written to
    says nothing of what is made of it: there, the umask says who may write.

    Args:
        path: The file. Of what is no file, or not there, access is :data:`PLAIN`.
    """
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116
    except (OSError, ValueError):
        return PLAIN
    return mode & 0o777 | (mode & _READERS) >> 1 if stat.S_ISREG(mode) else PLAIN


def check_target(target: str | os.PathLike[str], *, force: bool) -> Path:
    """Returns the path that will be written, symbolic links followed.

    Raises:
        UsageError: It is empty, a directory, a device or a pipe, its folder is missing, or it exists and
            ``force`` is off.
        FileAccessError: The system refuses to look or to write: a name that is too long, a folder without
            permission, a file system that is read-only.
    """
    if not os.fspath(target):
        # To the system it is the folder at hand.
        raise UsageError("the name is empty", file=target, remedy="name a file")
    try:
        path = Path(os.path.realpath(target))
        kind = _kind(target)
        if kind is not None and not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):
            raise UsageError("is a device or a pipe", file=target, remedy="name a file")
        if path.is_symlink():
            raise UsageError("is a symbolic link that leads in a circle", file=target, remedy="name a file")
        if path.is_dir():
            raise UsageError("is a directory", file=target, remedy="name a file")
        if not path.parent.is_dir():
            raise UsageError("its folder does not exist", file=target, remedy=f"create {path.parent} first")
        if path.exists() and not force:
            raise UsageError("exists already", file=target, remedy="use --force to overwrite it")
        if not os.access(path.parent, os.W_OK | os.X_OK):
            number = errno.EROFS if os.statvfs(path.parent).f_flag & os.ST_RDONLY else errno.EACCES
            raise OSError(number, os.strerror(number))
    except OSError as error:
        raise FileAccessError.of_writing(error, target) from error
    except ValueError as error:
        # A name with a NUL in it.
        raise UsageError(f"is not a file name: {error}", file=repr(target), remedy="name a file") from error
    return path


def _kind(path: str | os.PathLike[str]) -> int | None:
    try:
        return os.stat(path).st_mode  # noqa: PTH116
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return None
        raise


class NamelessFile:
    """An open file in the folder where it will get its name.

    Attributes:
        descriptor: Open for reading and writing.
        path: Where any process of the same user can read it while it is open.
    """

    __slots__ = ("_access", "_folder", "_named", "descriptor", "path")

    def __init__(self, descriptor: int, folder: int, path: Path, named: str | None, access: int) -> None:
        self.descriptor = descriptor
        self.path = path
        self._folder = folder
        self._named = named
        self._access = access

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
        name = target.name
        replaced = _mode(name, self._folder) if force else None
        # Open to nobody that what it replaces was closed to. Its owner reads it, and wrote it until now.
        access = self._access if replaced is None else self._access & replaced
        mode = stat.S_IMODE(os.fstat(self.descriptor).st_mode)
        os.fchmod(self.descriptor, mode & (access | stat.S_IRUSR))
        if not force:
            self._link(name)
            return
        if replaced is not None:
            # Content must be on disk before it replaces the only other copy.
            os.fsync(self.descriptor)
        spare = self._named
        if spare is None:
            spare = _spare()
            self._link(spare)
        try:
            os.replace(spare, name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(spare, dir_fd=self._folder)
            raise

    def _link(self, name: str) -> None:
        if self._named is None:
            # With a folder given, Python calls linkat, which is what follows the link in /proc.
            os.link(self.path, name, dst_dir_fd=self._folder, follow_symlinks=True)
            return
        try:
            os.link(self._named, name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
        except FileExistsError:
            raise
        except OSError:
            # A file system without hard links.
            _rename(self._folder, self._named, name)


def _mode(name: str, folder: int) -> int | None:
    """Returns the mode of what has a name in an open folder; None if nothing has it."""
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return None


def _rename(folder: int, old: str, new: str) -> None:
    """Renames a file in a folder, to a name that nothing has."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        rename = None
    if rename is not None:
        if not rename(folder, os.fsencode(old), folder, os.fsencode(new), _NO_REPLACE):
            return
        number = ctypes.get_errno()
        if number not in (errno.ENOSYS, errno.EINVAL):
            raise OSError(number, os.strerror(number), old, None, new)
    if _mode(new, folder) is not None:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), old, None, new)
    os.rename(old, new, src_dir_fd=folder, dst_dir_fd=folder)


@contextlib.contextmanager
def nameless_file(
    folder: Path, *, nbytes: int = 0, access: int = PLAIN, opened: int | None = None
) -> Iterator[NamelessFile]:
    """Opens a file without a name in a folder; it is gone at the end unless it was published.

    Args:
        folder: Exists and can be written.
        nbytes: Its size to be, so that a full disk shows before work is done.
        access: Who may do what with it, less the umask; see :func:`access_of`.
        opened: A descriptor of the folder, where ``folder`` is only what it is called.

    Raises:
        UsageError: What it was to be published as exists already.
        FileAccessError: The folder cannot be written, or has too little room.
    """
    named: str | None = None
    descriptor = place = -1
    try:
        place = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC) if opened is None else opened
        sweep(folder, place)
        try:
            flags = os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC
            descriptor = os.open(".", flags, access | 0o600, dir_fd=place)
            if not os.access(_nameless(descriptor), os.R_OK):
                os.close(descriptor)
                descriptor = -1
                raise FileNotFoundError
            lock(descriptor)
        except (AttributeError, OSError) as error:
            if isinstance(error, PermissionError):
                raise
            # Not Linux, no /proc, or a file system without nameless files.
            named, descriptor = _locked_spare(place, access)
        if nbytes:
            _reserve(descriptor, nbytes, folder)
        path = folder / named if named is not None else _nameless(descriptor)
        yield NamelessFile(descriptor, place, path, named, access)
    except FileExistsError as error:
        raise UsageError(
            "exists already", file=folder / str(error.filename2 or ""), remedy="use --force to overwrite it"
        ) from None
    except OSError as error:
        raise FileAccessError.of_writing(error, folder) from error
    finally:
        if descriptor >= 0:
            os.close(descriptor)
        if named is not None:
            with contextlib.suppress(OSError):
                os.unlink(named, dir_fd=place)
        if place >= 0 and opened is None:
            os.close(place)


def _locked_spare(folder: int, access: int) -> tuple[str, int]:
    """Makes a file with a name of its own, locked: who sweeps leaves it alone then."""
    while True:
        name = _spare()
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(name, flags, access | 0o600, dir_fd=folder)
        if lock(descriptor, without=True) and leads_to(name, descriptor, folder=folder):
            return name, descriptor
        # Somebody who sweeps was faster.
        os.close(descriptor)


def sweep(folder: Path, opened: int | None = None) -> list[Path]:
    """Removes files that a killed process left in a folder, and nothing else.

    Removed is a file that this program made: its name is of the exact form, it is a file and no link, it
    belongs to this user, and nobody has locked it.

    Args:
        folder: The folder.
        opened: A descriptor of it, if it is open already.

    Returns:
        What was removed.
    """
    removed = []
    with contextlib.suppress(OSError):
        place = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC) if opened is None else opened
        try:
            with os.scandir(place) as entries:
                names = [entry.name for entry in entries if _SPARE.fullmatch(entry.name)]
            removed = [folder / name for name in names if _swept(name, place)]
        finally:
            if opened is None:
                os.close(place)
    return removed


def _swept(name: str, folder: int) -> bool:
    """Removes one file if it was left behind."""
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except OSError:
        return False
    try:
        facts = os.fstat(descriptor)
        ours = stat.S_ISREG(facts.st_mode) and facts.st_uid == os.geteuid()
        if not ours or not lock(descriptor) or not leads_to(name, descriptor, folder=folder):
            return False
        os.unlink(name, dir_fd=folder)
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)


@slotted
class AtomicFile:
    """A file being written beside its target, not yet named so.

    Attributes:
        path: Where it lies for now; readable, so that it can be verified.
        target: What it becomes.
    """

    path: Path
    target: Path
    force: bool
    sink: FileSink
    _file: NamelessFile

    def publish(self) -> None:
        """Gives the file its name in one step.

        Raises:
            UsageError: Another process made the target meanwhile, and it may not be overwritten.
        """
        try:
            # What is done and what is said of it must agree.
            with held_back():
                self._file.publish(self.target, force=self.force)
                published.append(self.target)
        except FileExistsError:
            raise UsageError(
                "appeared while it was being made", file=self.target, remedy="use --force to overwrite it"
            ) from None


@contextlib.contextmanager
def atomic_write(
    target: str | os.PathLike[str], *, force: bool, nbytes: int, access: int = PLAIN
) -> Iterator[AtomicFile]:
    """Opens a file beside the target; removes it unless it was published.

    Args:
        target: The file to make or replace.
        force: Whether it may exist.
        nbytes: Its size to be, so that a full disk shows before work is done.
        access: Who may do what with it, less the umask; see :func:`access_of`.

    Raises:
        UsageError: See :func:`check_target`.
        FileAccessError: The folder cannot be written, or the disk is full.
    """
    path = check_target(target, force=force)
    try:
        with nameless_file(path.parent, nbytes=nbytes, access=access) as file:
            # What replaces another file is on disk first, see publish: that is waited for.
            sink = FileSink(file.descriptor, early=force and path.exists())
            yield AtomicFile(file.path, path, force, sink, file)
    except FileAccessError as error:
        if error.file == os.fspath(path.parent):
            error.file = os.fspath(target)
        raise


def write_whole(target: str | os.PathLike[str], data: bytes, *, force: bool, access: int = PLAIN) -> None:
    """Writes a file that appears at once and complete.

    Args:
        target: The file to make or replace.
        data: All of it.
        force: Whether it may exist.
        access: As for :func:`atomic_write`.

    Raises:
        UsageError: See :func:`check_target`.
        FileAccessError: The folder cannot be written, or the disk is full.
    """
    with atomic_write(target, force=force, nbytes=len(data), access=access) as output:
        output.sink.write_at(data, 0)
        output.publish()


def _nameless(descriptor: int) -> Path:
    return Path(f"/proc/{os.getpid()}/fd/{descriptor}")


def _spare() -> str:
    return f".tfl-rewrite-{os.urandom(_NAME_NBYTES).hex()}.tmp"


def _reserve(descriptor: int, nbytes: int, folder: Path) -> None:
    """Sets the size, after a look at the room that there is: a hostile size must not fill the disk."""
    room = os.fstatvfs(descriptor)
    if nbytes > room.f_bavail * room.f_frsize:
        raise FileAccessError(f"{nbytes} bytes do not fit on the disk", file=folder)
    os.ftruncate(descriptor, nbytes)
