"""Archives of arrays (``.npz``), whoever made them: sizes are read, and bounded, before anything is unpacked.

A ZIP may unpack to a thousand times its size, and an array may say that it is larger than what is there.
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from tfl_rewrite.errors import UsageError
from tfl_rewrite.interpreter.interface import Array, printable, quoted
from tfl_rewrite.interpreter.memory import amount, default_limit
from tfl_rewrite.options.frozen import frozen

REMEDY = (
    "give a .npz with one array per input, named as the tensor, as the input of the signature, as"
    " 'signature/input', or arr_0, arr_1, ... in their order; its first axis counts the samples"
)
FREE_NBYTES = 256 << 20
"""Arrays may take so much in any case."""
MOST_RATIO = 32
"""Else at most so many times the bytes of the file: pictures, sound and text do not pack better."""
MOST_DIRECTORY_NBYTES = 1 << 20
"""Of the list of members: some ten thousand. Each takes a kilobyte of memory when it is read."""
_MOST_HEADER_NBYTES = 10_000
"""As numpy itself has it."""
_KINDS = "?biufcSU"
_SUFFIX = ".npy"
# What zipfile and numpy raise on damaged archives; RuntimeError where a password is wanted.
_DAMAGED = (
    *(OSError, EOFError, ValueError, KeyError, TypeError, RuntimeError, NotImplementedError),
    *(struct.error, zlib.error, zipfile.BadZipFile, zipfile.LargeZipFile),
)


@frozen
class _Member:
    """An array of an archive, as its header says."""

    name: str
    info: zipfile.ZipInfo
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


def read_npz(path: Path) -> dict[str, Array]:
    """All arrays of one file. Pickled objects are never loaded.

    Raises:
        UsageError: The file is not a readable ``.npz``, holds Python objects, or unpacks to more than it may.
    """
    try:
        with open(path, "rb") as file:
            return _read(file, path)
    except UsageError as error:
        error.file = error.file or str(path)
        raise
    except MemoryError:
        raise UsageError(
            "its arrays do not fit into memory", file=path, remedy="give smaller files"
        ) from None
    except _DAMAGED as error:
        why = printable(str(error)) or type(error).__name__
        raise UsageError(f"cannot be read as an .npz: {why}", file=path, remedy=REMEDY) from error


def write_npz(path: Path, arrays: Mapping[str, Array]) -> None:
    """Writes arrays under any names; ``numpy.savez`` does not take some, such as ``file``."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}{_SUFFIX}", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)


def _read(file: IO[bytes], path: Path) -> dict[str, Array]:
    head = file.read(6)
    if head == b"\x93NUMPY":
        raise UsageError("this is one array, not an .npz with named arrays", remedy=REMEDY)
    nbytes = file.seek(0, io.SEEK_END)
    listed = _directory_nbytes(file, nbytes)
    if listed > MOST_DIRECTORY_NBYTES:
        raise UsageError(f"its list of members takes {amount(listed)}", remedy="give several files")
    file.seek(0)
    with zipfile.ZipFile(file) as archive:
        members = [_member(archive, info) for info in archive.infolist()]
        names = [member.name for member in members]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise UsageError(f"two arrays are named {quoted(twice)}", remedy=REMEDY)
        _check_total(members, nbytes)
        return {member.name: _unpacked(archive, member) for member in members}


def _directory_nbytes(file: IO[bytes], nbytes: int) -> int:
    """Size of the list of members, as :mod:`zipfile` is going to read it; 0 where that finds none."""
    start = max(0, nbytes - 22 - 0xFFFF - 20)
    file.seek(start)
    tail = file.read()
    end = tail.rfind(b"PK\x05\x06")
    if end < 0 or end + 22 > len(tail):
        return 0
    locator = end - 20
    if locator >= 0 and tail[locator : locator + 4] == b"PK\x06\x07" and start + locator >= 56:
        file.seek(start + locator - 56)
        record = file.read(56)
        if record[:4] == b"PK\x06\x06":
            return int(struct.unpack_from("<Q", record, 40)[0])
    return int(struct.unpack_from("<I", tail, end + 12)[0])


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Member:
    """Reads the header of an array, and no more.

    Raises:
        UsageError: It is no array of numbers or texts, or not of the size that it says.
    """
    name = info.filename
    if not name.endswith(_SUFFIX):
        raise UsageError(f"its member {quoted(name)} is no array", remedy=REMEDY)
    name = name.removesuffix(_SUFFIX)
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise UsageError(f"array {quoted(name)} is packed in an unusual way", remedy="save it with numpy")
    with archive.open(info) as member:
        head = io.BytesIO(member.read(12 + _MOST_HEADER_NBYTES))
    version = np.lib.format.read_magic(head)
    size = {(1, 0): "<H", (2, 0): "<I"}.get(version)
    if size is None:
        raise UsageError(f"array {quoted(name)} is of another version", remedy="save it with numpy")
    (header,) = struct.unpack(size, head.read(struct.calcsize(size)))
    start = head.tell() + header
    if header > _MOST_HEADER_NBYTES:
        raise UsageError(f"array {quoted(name)} has a header of {header} bytes", remedy="save it with numpy")
    head.seek(8)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    try:
        shape, _, dtype = read(head)
    except Exception as error:
        # It is read as a literal of Python, which can go wrong in many ways.
        raise UsageError(f"array {quoted(name)} has a damaged header", remedy=REMEDY) from error
    if dtype.hasobject:
        raise UsageError(
            f"array {quoted(name)} holds Python objects, which are never loaded",
            remedy="save numbers or texts",
        )
    if dtype.kind not in _KINDS:
        raise UsageError(f"array {quoted(name)} holds neither numbers nor texts", remedy=REMEDY)
    if any(axis < 0 for axis in shape):
        raise UsageError(f"array {quoted(name)} has a negative size", remedy=REMEDY)
    said, held = math.prod(shape) * dtype.itemsize, info.file_size - start
    if said != held:
        raise UsageError(
            f"array {quoted(name)} says that it takes {said} bytes, and holds {held}", remedy="save it again"
        )
    return _Member(name, info, shape, dtype)


def _check_total(members: list[_Member], nbytes: int) -> None:
    """Bounds what all arrays take together.

    Raises:
        UsageError: It is too much.
    """
    # One that is empty counts by its other axes: somebody goes along them.
    total = sum(
        math.prod(max(1, size) for size in (*member.shape, member.dtype.itemsize)) for member in members
    )
    most = max(FREE_NBYTES, MOST_RATIO * nbytes)
    if total > most:
        raise UsageError(
            f"its {amount(nbytes)} unpack to {amount(total)}, more than {amount(most)}",
            remedy="save it without compression, if that is meant",
        )
    memory = default_limit()
    if memory is not None and total > memory // 2:
        raise UsageError(
            f"its arrays take {amount(total)}, too much for the memory of this machine",
            remedy="give fewer samples",
        )


def _unpacked(archive: zipfile.ZipFile, member: _Member) -> Array:
    with archive.open(member.info) as stream:
        array: Array = np.lib.format.read_array(stream, allow_pickle=False)
        # The checksum is looked at where the member ends.
        stream.read(1)
    # Whoever runs a model is given the bytes as they are.
    return array.astype(array.dtype.newbyteorder("="), copy=False)
