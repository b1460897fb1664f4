"""A file that has no name until it is complete: a process that is killed leaves nothing of it."""

from __future__ import annotations

import contextlib
import mmap
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from tfl_rewrite.container import FileSink
from tfl_rewrite.errors import FileAccessError, UsageError


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
        self.path = named or Path(f"/proc/{os.getpid()}/fd/{descriptor}")

    @property
    def sink(self) -> FileSink:
        """For positioned writes."""
        return FileSink(self.descriptor)

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
        spare = target.with_name(f".{target.name[:80]}.{os.urandom(6).hex()}.tmp")
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
            os.link(self._named, name)
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
        try:
            descriptor = os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o666)
        except (AttributeError, IsADirectoryError, OSError) as error:
            if isinstance(error, PermissionError):
                raise
            # Not Linux, or a file system without nameless files: a killed process leaves this one.
            named = folder / f".{os.urandom(8).hex()}.tmp"
            descriptor = os.open(named, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
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


def _reserve(descriptor: int, nbytes: int, folder: Path) -> None:
    """Sets the size, after a look at the room that there is: a hostile size must not fill the disk."""
    room = os.fstatvfs(descriptor)
    if nbytes > room.f_bavail * room.f_frsize:
        raise FileAccessError(f"{nbytes} bytes do not fit on the disk", file=folder)
    os.ftruncate(descriptor, nbytes)
