"""A working folder of fetched parts, so that a join which was stopped goes on where it was."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from tfl_rewrite.errors import FileAccessError, FormatError, UsageError
from tfl_rewrite.landing import landing
from tfl_rewrite.shards.manifest import Part
from tfl_rewrite.shards.pouring import Hashing
from tfl_rewrite.shards.sources import FolderSource, Source

_LOCK = ".lock"
_ATTEMPTS = 2


class WorkFolder:
    """Parts that were fetched and found right, beside the file that is made of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.local = FolderSource(folder)

    def take(self, part: Part, source: Source, hashing: Hashing) -> bool:
        """Makes sure that a part is here and right; returns whether it had to be fetched.

        Raises:
            FormatError: What the source has is not what the manifest says.
            FileAccessError: The source does not have it, or the disk refuses.
        """
        if self._is_right(part, hashing):
            return False
        path = self.folder / part.name
        path.unlink(missing_ok=True)
        for attempt in range(_ATTEMPTS):
            try:
                with landing(self.folder, nbytes=part.stored_nbytes) as file:
                    position = 0
                    with source.open(part.name) as stream:
                        for piece in hashing.stored(part, stream):
                            file.sink.write_at(piece, position)
                            position += len(piece)
                    file.publish(path, force=True)
                return True
            except (FormatError, FileAccessError):
                # A connection that breaks looks like a part that is too short.
                if attempt == _ATTEMPTS - 1:
                    raise
        raise AssertionError("unreachable")

    def _is_right(self, part: Part, hashing: Hashing) -> bool:
        path = self.folder / part.name
        try:
            status = path.lstat()
        except FileNotFoundError:
            return False
        if not stat.S_ISREG(status.st_mode) or status.st_size != part.stored_nbytes:
            return False
        digest = hashlib.sha256()
        try:
            with self.local.open(part.name) as stream:
                for piece in hashing.stored(part, stream):
                    digest.update(piece)
        except (FormatError, FileAccessError):
            return False
        return True

    def remove(self) -> None:
        """Removes the folder with all that is in it."""
        shutil.rmtree(self.folder, ignore_errors=True)


@contextlib.contextmanager
def work_folder(target: Path) -> Iterator[WorkFolder]:
    """Opens the working folder of a file to be made, new or left by a join that was stopped.

    It stays unless it is removed or nothing was fetched: what is in it is what a next run need not fetch.

    Raises:
        UsageError: Another process works in it, or something else has its name.
        FileAccessError: It cannot be made.
    """
    folder = target.with_name(f"{target.name}.parts")
    try:
        folder.mkdir(exist_ok=True)
        if folder.is_symlink():
            raise FileExistsError
        lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o600)
    except FileExistsError:
        raise UsageError("is in the way", file=folder, remedy="remove it, or name another OUT") from None
    except OSError as error:
        raise FileAccessError(f"cannot write: {error.strerror}", file=folder) from error
    try:
        if not _locked(lock):
            raise UsageError("another join works in it", file=folder, remedy="wait for it to end")
        for stale in folder.glob(".*.tmp"):
            stale.unlink(missing_ok=True)
        try:
            yield WorkFolder(folder)
        finally:
            # Without parts there is nothing to resume.
            with contextlib.suppress(OSError):
                if {path.name for path in folder.iterdir()} <= {_LOCK}:
                    shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)


def _locked(descriptor: int) -> bool:
    try:
        import fcntl
    except ImportError:
        return True
    try:
        # The system lets go of it when the process ends, however it ends.
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
