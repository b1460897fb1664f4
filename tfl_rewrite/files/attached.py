"""The files in the ZIP that lies behind a model: read, and written anew with others among them."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from tfl_rewrite.errors import UnsupportedError
from tfl_rewrite.files.container import ZipTail, find_zip

# zipfile is loaded where there is a ZIP: with all that it can unpack it takes a while.
if TYPE_CHECKING:
    from zipfile import ZipFile, ZipInfo

    Members = list[tuple[ZipInfo, bytes]]

MOST_NBYTES = 1 << 28
"""Of all files together, unpacked; labels and vocabularies are a few megabytes at most."""
_HEAD = bytes(16)
_DATE = (1980, 1, 1, 0, 0, 0)
"""Of what is added: the same files give the same bytes."""


def read_members(data: bytes | memoryview | None) -> Members:
    """Returns the files of a ZIP with what it says of them, in order; none where there is no ZIP.

    Args:
        data: The ZIP, its offsets counted from its own start or from anywhere before it.

    Raises:
        UnsupportedError: Its files cannot be read: they are damaged, encrypted, packed in an unknown way, or
            take over :data:`MOST_NBYTES`.
    """
    if data is None:
        return []
    from zipfile import ZipFile

    try:
        with ZipFile(io.BytesIO(data)) as archive:
            rows = archive.infolist()
            if sum(row.file_size for row in rows) > MOST_NBYTES:
                raise ValueError(f"its files take over {MOST_NBYTES:,} bytes unpacked")
            return [(row, _read(archive, row)) for row in rows]
    except Exception as error:
        # Also what a damaged stream makes zlib, lzma or bz2 raise.
        raise _unreadable(error) from error


def _read(archive: ZipFile, row: ZipInfo) -> bytes:
    with archive.open(row) as member:
        # One that says less than it holds unpacks to no more than it says.
        return member.read(row.file_size + 1)[: row.file_size]


def _unreadable(error: Exception) -> UnsupportedError:
    return UnsupportedError(
        f"its files cannot be read: {error or type(error).__name__}",
        where="the appended ZIP",
        remedy="remove the ZIP first",
    )


def packed(members: Sequence[tuple[ZipInfo, bytes]], added: Mapping[str, bytes]) -> bytes:
    """Returns a ZIP behind 16 zero bytes, from whose start its offsets count; see :attr:`Model.tail`.

    Args:
        members: Files that stay, but for those of a name that is added.
        added: Files by name; stored as they are, so that programs map them.
    """
    from zipfile import ZIP_STORED, ZipFile, ZipInfo

    made = io.BytesIO(_HEAD)
    made.seek(0, io.SEEK_END)
    with ZipFile(made, "a") as archive:
        for row, data in members:
            if row.filename not in added:
                archive.writestr(row, data, compress_type=row.compress_type)
        for name, data in added.items():
            fresh = ZipInfo(name, _DATE)
            fresh.external_attr = 0o644 << 16
            archive.writestr(fresh, data, compress_type=ZIP_STORED)
    return made.getvalue()


def tail_of(data: bytes) -> ZipTail | None:
    """Returns what :func:`packed` made, ready to be moved behind a model."""
    return find_zip(memoryview(data), len(_HEAD))
