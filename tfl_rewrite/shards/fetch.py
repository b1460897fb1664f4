"""A working folder of fetched parts, so that a join which was stopped goes on where it was."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from tfl_rewrite.errors import FileAccessError, FormatError, UsageError
from tfl_rewrite.files.atomic import landing
from tfl_rewrite.shards.manifest import Part
from tfl_rewrite.shards.pace import TooSlow
from tfl_rewrite.shards.pouring import Hashing
from tfl_rewrite.shards.sources import FolderSource, Source
from tfl_rewrite.work import leads_to, lock, opened_folder

_MARKER = ".tfl-rewrite-join"
_ATTEMPTS = 2


class WorkFolder:
    """Parts that were fetched and found right, beside the file that is made of them.

    Args:
        folder: Its path.
        opened: A descriptor of it.
    """

    def __init__(self, folder: Path, opened: int) -> None:
        self.folder = folder
        self.local = FolderSource(folder)
        self._opened = opened

    def take(self, part: Part, source: Source, hashing: Hashing) -> bool:
        """Makes sure that a part is here and right; returns whether it had to be fetched.

        Raises:
            FormatError: What the source has is not what the manifest says.
            FileAccessError: The source does not have it, or the disk refuses.
        """
        if self._is_right(part, hashing):
            return False
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part.name, dir_fd=self._opened)
        for attempt in range(_ATTEMPTS):
            try:
                with landing(self.folder, nbytes=part.stored_nbytes, opened=self._opened) as file:
                    position = 0
                    with source.open(part.name) as stream:
                        for piece in hashing.stored(part, stream):
                            file.sink.write_at(piece, position)
                            position += len(piece)
                    file.publish(self.folder / part.name, force=True)
                return True
            except (FormatError, FileAccessError) as error:
                # A connection that breaks looks like a part that is too short.
                if attempt == _ATTEMPTS - 1 or isinstance(error, TooSlow):
                    raise
        raise AssertionError("unreachable")

    def _is_right(self, part: Part, hashing: Hashing) -> bool:
        try:
            status = os.stat(part.name, dir_fd=self._opened, follow_symlinks=False)
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

    def remove(self, names: Iterator[str]) -> None:
        """Removes parts, and the folder unless something else is in it.

        Args:
            names: The parts that are no longer needed. Parts of another version of the model go too.
        """
        with os.scandir(self._opened) as entries:
            others = [entry.name for entry in entries if entry.name.endswith(".part")]
        for name in {*names, *others}:
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=self._opened)


@contextlib.contextmanager
def work_folder(target: Path) -> Iterator[WorkFolder]:
    """Opens the working folder of a file to be made, new or left by a join that was stopped.

    It stays while there are parts in it: what is there a next run need not fetch. Only a folder that a join
    made is used: one that was empty, or has our marker in it.

    Raises:
        UsageError: Another process works in it, or something else has its name.
        FileAccessError: It cannot be made.
    """
    path = target.with_name(f"{target.name}.parts")
    folder, marker = _marked(path)
    try:
        for stale in _stale(folder):
            with contextlib.suppress(OSError):
                os.unlink(stale, dir_fd=folder)
        try:
            yield WorkFolder(path, folder)
        finally:
            # Without parts there is nothing to resume.
            with contextlib.suppress(OSError):
                if os.listdir(folder) == [_MARKER]:  # noqa: PTH208
                    os.unlink(_MARKER, dir_fd=folder)
                    path.rmdir()
    finally:
        os.close(marker)
        os.close(folder)


def _marked(path: Path) -> tuple[int, int]:
    """Makes the folder if it is missing, and locks the marker in it; returns descriptors of both."""
    try:
        while True:
            with contextlib.suppress(FileExistsError):
                path.mkdir(0o700)
            with contextlib.suppress(FileNotFoundError), contextlib.ExitStack() as stack:
                folder = opened_folder(path)
                stack.callback(os.close, folder)
                held = os.listdir(folder)  # noqa: PTH208
                if held and _MARKER not in held:
                    raise NotADirectoryError
                flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
                marker = os.open(_MARKER, flags, 0o600, dir_fd=folder)
                stack.callback(os.close, marker)
                if not lock(marker, without=True):
                    raise UsageError("another join works in it", file=path, remedy="wait for it to end")
                if leads_to(_MARKER, marker, folder=folder) and leads_to(path, folder):
                    stack.pop_all()
                    return folder, marker
            # A join that ended a moment ago took it away.
    except NotADirectoryError:
        raise UsageError("is in the way", file=path, remedy="remove it, or name another OUT") from None
    except OSError as error:
        raise FileAccessError(f"cannot write: {error.strerror or error}", file=path) from error


def _stale(folder: int) -> list[str]:
    """Names of half-made files that older joins left."""
    with os.scandir(folder) as entries:
        return [entry.name for entry in entries if entry.name.startswith(".") and entry.name.endswith(".tmp")]
