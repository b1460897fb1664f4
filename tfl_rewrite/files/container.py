"""One file on disk: mapped for reading, accounted for byte by byte, and published atomically.

Order in a ``.tflite`` file: the FlatBuffer, then buffers that are addressed by file offset, then a ZIP with
label files (TFLite Metadata). What no offset reaches is zero padding, that ZIP, or unexplained.
"""

from __future__ import annotations

import mmap
import os
import stat
import struct
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import BinaryIO

from tfl_rewrite.errors import FileAccessError, FormatError, UnsupportedError, UsageError, shell_path
from tfl_rewrite.options.frozen import frozen

_PIECE = 4 << 20
# Gaps that are looked at before the pages around them are given back.
_RELEASE_AFTER = 256
_READ = 512 << 10
_MAX_TABLE_NBYTES = 256
_FAULT_AROUND = 64 << 10
"""Linux maps up to this much around a fault (``fault_around_bytes``)."""
_ALL_AFTER = 64 << 20
_EMPTY, _AGAIN = "the file is empty", "fetch it again; the download may not have begun"


class Container:
    """A mapped input file, or one that was read whole.

    The map, and every view on it, stays valid after the file is replaced on disk; not after it is cut short
    in its place: the system ends whoever reads on.

    Attributes:
        path: As given.
        data: All bytes, read-only, not copied.
    """

    __slots__ = ("__weakref__", "_map", "_spent", "_state", "data", "path")

    def __init__(
        self,
        path: str,
        data: memoryview,
        mapped: mmap.mmap | None,
        opened: tuple[int, tuple[int, int]] | None = None,
    ) -> None:
        self.path = path
        self.data = data
        self._map = mapped
        self._spent = 0
        self._state: tuple[int, tuple[int, int]] | None = None
        if opened is not None:
            kept = os.dup(opened[0])
            weakref.finalize(self, os.close, kept)
            self._state = kept, opened[1]

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, most_read: int = 0) -> Container:
        """Maps a file; one of at most ``most_read`` bytes is read, so that nobody who writes into it matters.

        Raises:
            FileAccessError: It cannot be opened.
            FormatError: It is empty.
        """
        name = os.fspath(path)
        try:
            # Before it is opened: opening a pipe waits for somebody to write into it.
            mode = os.stat(name).st_mode  # noqa: PTH116
            if stat.S_ISDIR(mode):
                from tfl_rewrite.files.foreign import recognize_folder

                found = recognize_folder(name)
                remedy = found.remedy.replace("FILE", shell_path(name))
                raise FileAccessError(f"is {found.what}", file=name, remedy=remedy)
            if not stat.S_ISREG(mode):
                raise FileAccessError("is not a regular file", file=name)
            with open(name, "rb") as file:
                # Before anything is mapped, or a change just after that would pass for the file as it was.
                state = _state(file.fileno())
                if not state[0]:
                    raise FormatError(_EMPTY, file=name, remedy=_AGAIN)
                small = state[0] <= most_read
                mapped = None if small else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                data = memoryview(file.read() if mapped is None else mapped)
                return cls(name, data, mapped, (file.fileno(), state))
        except OSError as error:
            raise FileAccessError(f"cannot read: {error.strerror or error}", file=name) from error

    @classmethod
    def of_bytes(cls, data: bytes, name: str = "<bytes>") -> Container:
        """Wraps bytes that are in memory already."""
        if not data:
            raise FormatError(_EMPTY, file=name, remedy=_AGAIN)
        return cls(name, memoryview(data), None)

    @classmethod
    def of(cls, source: str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO) -> Container:
        """Maps the file of a path, and takes bytes or what is left to read of an open file as they are.

        Raises:
            FileAccessError: It cannot be read.
            FormatError: It is empty.
            UsageError: It is none of these.
        """
        if isinstance(source, (str, os.PathLike)):
            return cls.open(source)
        if isinstance(source, (bytes, bytearray, memoryview)):
            return cls.of_bytes(bytes(source))
        read = getattr(source, "read", None)
        name = str(getattr(source, "name", "<file>"))
        try:
            data = read() if read is not None else None
        except OSError as error:
            raise FileAccessError(f"cannot read: {error.strerror or error}", file=name) from error
        if not isinstance(data, bytes):
            raise UsageError(
                f"{type(source).__name__} is not a model",
                remedy="give a path, bytes, a file that is open for reading bytes, or a Model",
            )
        return cls.of_bytes(data, name)

    def is_at(self, path: str | os.PathLike[str]) -> bool:
        """Whether a path still leads to the file that was opened."""
        try:
            return self._state is not None and os.path.samestat(os.stat(path), os.fstat(self._state[0]))  # noqa: PTH116
        except OSError:
            return False

    @property
    def on_disk(self) -> bool:
        """Whether it is a file that was opened by its path."""
        return self._state is not None

    @property
    def nbytes(self) -> int:
        """Size of the file."""
        return len(self.data)

    def ensure_unchanged(self, *, as_read: bool = False) -> None:
        """Checks that nobody wrote into the file since it was opened; that it was replaced is no matter.

        Nor is anything, with ``as_read``, of a file that was read whole.

        Raises:
            FileAccessError: Its size or the time of its last change is another one.
        """
        kept = None if as_read and self._map is None else self._state
        if kept is not None and _state(kept[0]) != kept[1]:
            raise FileAccessError(
                "was changed while it was being read",
                file=self.path,
                remedy="run it again when nobody writes into it",
            )

    def pieces(self, offset: int = 0, nbytes: int | None = None) -> Iterator[memoryview]:
        """Yields a stretch, by default all; each piece is given back when the next one is asked for."""
        stop = self.nbytes if nbytes is None else offset + nbytes
        for start in range(offset, stop, _READ):
            piece = self.data[start : min(start + _READ, stop)]
            yield piece
            self.release(start, len(piece))

    def release_all(self) -> None:
        """Tells the system that nothing is needed in memory for now. All stays readable."""
        if self._map is not None and hasattr(self._map, "madvise"):
            self._map.madvise(mmap.MADV_DONTNEED)

    def release(self, offset: int, nbytes: int) -> None:
        """Tells the system that these bytes are not needed in memory for now. They stay readable."""
        if self._map is None or nbytes <= 0 or not hasattr(self._map, "madvise"):
            return
        self._spent += nbytes
        if self._spent >= _ALL_AFTER:
            # What others left, who look at a few bytes and do not tell.
            self._spent = 0
            self._map.madvise(mmap.MADV_DONTNEED)
            return
        # Outward, by what one page fault may have brought in: dropped pages are read again where needed,
        # pages left at the ends of thousands of constants add up.
        start = max(0, offset - _FAULT_AROUND) // mmap.PAGESIZE * mmap.PAGESIZE
        stop = min(offset + nbytes + _FAULT_AROUND, len(self.data))
        self._map.madvise(mmap.MADV_DONTNEED, start, stop - start)


def _state(descriptor: int) -> tuple[int, int]:
    found = os.fstat(descriptor)
    return found.st_size, found.st_mtime_ns


@frozen
class ZipTail:
    """A ZIP after the model, with what is needed to move it.

    Attributes:
        offset: Its first byte in the file.
        data: Its bytes, shared with the map.
        directory: Position of the central directory inside ``data``.
        records: Number of its entries.
        base: Where its offsets count from: the start of the file, as the format wants it, or its own start,
        or     elsewhere in a file that grew after the ZIP was appended.
    """

    offset: int
    data: memoryview
    directory: int
    records: int
    base: int

    @property
    def absolute(self) -> bool:
        """Whether its offsets count from the start of the file."""
        return self.base == 0

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return len(self.data)

    def moved(self, offset: int) -> bytes:
        """Returns the ZIP as it must read when it starts at ``offset`` of a file.

        Local headers' positions in the central directory, and that of the directory itself, count from
        the start of the file (APPNOTE.TXT 4.4.16, 4.4.24), so they move with it. Those that count from the
        ZIP's own start stay; those that count from elsewhere are set right.

        Raises:
            UnsupportedError: It would lie past what its 32-bit offsets reach.
        """
        result = bytearray(self.data)
        if self.base == self.offset:
            return bytes(result)
        if offset + len(result) > 0xFFFFFFFF:
            raise UnsupportedError(
                f"the appended ZIP would start at {offset}, past what its offsets reach",
                remedy="remove the ZIP first; labels can stay in a file of their own",
            )
        delta = offset - self.offset + self.base
        position = self.directory
        for _ in range(self.records):
            name, extra, comment = struct.unpack_from("<HHH", result, position + 28)
            value = struct.unpack_from("<I", result, position + 42)[0]
            struct.pack_into("<I", result, position + 42, value + delta)
            position += 46 + name + extra + comment
        value = struct.unpack_from("<I", result, position + 16)[0]
        struct.pack_into("<I", result, position + 16, value + delta)
        return bytes(result)


def find_zip(data: memoryview, start: int) -> ZipTail | None:
    """Finds a ZIP that ends at the end of the file and begins at or after ``start``.

    Raises:
        FormatError: An end record is there, but its directory does not hold together.
        UnsupportedError: A ZIP64 archive.
    """
    floor = max(start, len(data) - 22 - 0xFFFF)
    window = bytes(data[floor:])
    index = len(window)
    while True:
        index = window.rfind(b"PK\x05\x06", 0, index)
        if index < 0:
            return None
        end = floor + index
        if end + 22 <= len(data):
            records, size, offset, comment = struct.unpack_from("<HIIH", data, end + 10)
            if end + 22 + comment == len(data):
                return _zip_at(data, start, end, records, size, offset)


def _zip_at(data: memoryview, start: int, end: int, records: int, size: int, offset: int) -> ZipTail:
    if 0xFFFF in (records,) or 0xFFFFFFFF in (size, offset):
        raise UnsupportedError(
            "the appended ZIP is a ZIP64 archive", offset=end, remedy="append a plain ZIP of under 4 GiB"
        )
    directory = end - size
    if directory < start:
        raise FormatError("the appended ZIP's directory reaches into the model", where="ZIP", offset=end)
    locals_, position = [], directory
    for number in range(records):
        if position + 46 > end or bytes(data[position : position + 4]) != b"PK\x01\x02":
            raise FormatError(
                f"the appended ZIP's directory entry {number} is missing", where="ZIP", offset=position
            )
        name, extra, comment = struct.unpack_from("<HHH", data, position + 28)
        locals_.append(struct.unpack_from("<I", data, position + 42)[0])
        position += 46 + name + extra + comment
    if position != end:
        raise FormatError("the appended ZIP's directory has the wrong size", where="ZIP", offset=directory)
    # Offsets count from the start of the file; some tools write them from the start of the ZIP.
    base = directory - offset
    first = base + min(locals_, default=offset)
    if base < 0 or first < start or first > directory:
        raise FormatError(
            f"the appended ZIP's directory is at {directory} but says {offset}", where="ZIP", offset=end
        )
    for local in locals_:
        if base + local + 30 > directory or bytes(data[base + local : base + local + 4]) != b"PK\x03\x04":
            raise FormatError("the appended ZIP's local header is missing", where="ZIP", offset=base + local)
    return ZipTail(first, data[first:], directory - first, records, base)


def unexplained(
    data: memoryview,
    spans: Iterable[tuple[int, int]],
    *,
    release: Callable[[], None] | None = None,
) -> list[tuple[int, int]]:
    """Returns the byte ranges that lie in no span and are not zero, as ``(start, end)``.

    Args:
        data: The file.
        spans: What is accounted for.
        release: Gives back the pages of mapped bytes; a look at a gap brings in all that is around it.
    """
    gaps = 0
    found: list[tuple[int, int]] = []
    position = 0
    for start, end in [*sorted(spans), (len(data), len(data))]:
        while position < start:
            stop = min(start, position + _PIECE)
            gap = bytes(data[position:stop])
            if gap.strip(b"\0"):
                first = position + len(gap) - len(gap.lstrip(b"\0"))
                last = position + len(gap.rstrip(b"\0"))
                if found and found[-1][1] == first:
                    found[-1] = (found[-1][0], last)
                else:
                    found.append((first, last))
            position = stop
            gaps += 1
            if release is not None and gaps % _RELEASE_AFTER == 0:
                release()
        position = max(position, end)
    return found


def explain_orphans(
    data: memoryview, gaps: Iterable[tuple[int, int]], vtables: Mapping[int, tuple[int, int]]
) -> list[tuple[int, int]]:
    """Finds tables that a builder wrote and then did not use, in regions that no offset reaches.

    Converters of 2018 wrote one operator code per operator and referred to the distinct ones only; the others
    still lie in the file. They are recognised as what they are: every byte of the region must belong to a
    table whose vtable is valid, or to such a vtable. Anything else stays unexplained.

    Args:
        data: The file.
        gaps: The regions, as ``(start, end)``; bytes outside of them are not looked at, except vtables.
        vtables: Those in use: ``{offset: (length, nbytes of the table)}``.

    Returns:
        The spans of unused tables and their vtables, as ``(start, end)``.
    """
    regions = list(gaps)
    found: list[tuple[int, int]] = []
    for start, end in regions:
        position = -(-start // 4) * 4
        while position + 4 <= min(end + 3, len(data)):
            spans = _table(data, position, end, regions, vtables)
            found += spans
            # A region ends at its last byte that is not zero, which may lie inside of the table.
            position = spans[0][1] if spans else position + 4
            position = -(-position // 4) * 4
    return found


def _table(
    data: memoryview,
    position: int,
    end: int,
    regions: list[tuple[int, int]],
    vtables: Mapping[int, tuple[int, int]],
) -> list[tuple[int, int]]:
    """Returns the spans of the table at ``position`` and of its own vtable, or nothing."""
    vtable = position - struct.unpack_from("<i", data, position)[0]
    if vtable == position or vtable < 0 or vtable % 2:
        return []
    known = vtables.get(vtable)
    if known is not None:
        length, nbytes = known
        own = []
    elif any(a <= vtable < b for a, b in regions) and vtable + 4 <= len(data):
        length, nbytes = struct.unpack_from("<HH", data, vtable)
        if length < 4 or length % 2 or vtable + length > len(data) or nbytes > _MAX_TABLE_NBYTES:
            return []
        entries = struct.unpack_from(f"<{length // 2 - 2}H", data, vtable + 4)
        if any(entry and not 4 <= entry < nbytes for entry in entries):
            return []
        own = [(vtable, vtable + length)]
    else:
        return []
    stop = position + nbytes
    if nbytes < 4 or stop > end + 3 or stop > len(data):
        return []
    return [(position, stop), *own]
