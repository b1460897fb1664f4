"""Folders below the output folder of a batch: none of them is a link, so nothing is written elsewhere."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path, PurePath

from tfl_rewrite.errors import UsageError
from tfl_rewrite.files.atomic import PLAIN, nameless_file
from tfl_rewrite.work import opened_folder


@contextlib.contextmanager
def folder_below(out: Path, below: str | PurePath) -> Iterator[int]:
    """Opens a folder below the output folder; what is missing of it is made.

    Args:
        out: The output folder, which the user named; it may be a link.
        below: Its path from there.

    Yields:
        A descriptor. What is done by it is done in that folder, whatever has its name meanwhile.

    Raises:
        UsageError: A part of the path is a link, or no folder.
        OSError: The system refuses.
    """
    folder = os.open(out, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        path = out
        for part in PurePath(below).parts:
            path = path / part
            with contextlib.suppress(FileExistsError):
                os.mkdir(part, dir_fd=folder)
            try:
                inner = opened_folder(part, folder=folder)
            except NotADirectoryError:
                raise UsageError(
                    "is a link or no folder, and nothing is written through links",
                    file=path,
                    remedy="remove it, or use another --out",
                ) from None
            os.close(folder)
            folder = inner
        yield folder
    finally:
        os.close(folder)


def write_below(out: Path, below: str | PurePath, data: bytes, *, access: int = PLAIN) -> None:
    """Writes a file below the output folder, whole and in one step; one that is there is replaced.

    Args:
        out: As for :func:`folder_below`.
        below: The file's path from there.
        data: All of it.
        access: As for :func:`tfl_rewrite.files.atomic.nameless_file`.

    Raises:
        UsageError: See :func:`folder_below`.
        FileAccessError, OSError: It cannot be written.
    """
    path = PurePath(below)
    with folder_below(out, path.parent) as folder:
        place = out / path.parent
        with nameless_file(place, nbytes=len(data), access=access, opened=folder) as file:
            file.sink.write_at(data, 0)
            file.publish(out / path, force=True)
