"""One file on disk: mapped for reading, accounted for byte by byte, and published atomically.

Order in a ``.tflite`` file: the FlatBuffer, then buffers that are addressed by file offset, then a ZIP with
label files (TFLite Metadata). What no offset reaches is zero padding, that ZIP, or unexplained.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import stat
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tfl_rewrite.errors import FileAccessError, FormatError, UnsupportedError, UsageError

_PIECE = 4 << 20


class Container:
    """A mapped input file.

    The map, and every view on it, stays valid after the file is replaced on disk.

    Attributes:
        path: As given.
        data: All bytes, read-only, not copied.
    """

    __slots__ = ("_map", "data", "path")

    def __init__(self, path: str, data: memoryview, mapped: mmap.mmap | None) -> None:
        self.path = path
        self.data = data
        self._map = mapped

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Container:
        """Maps a file.

        Raises:
            FileAccessError: It cannot be opened.
            FormatError: It is empty.
        """
        name = os.fspath(path)
        try:
            # Before it is opened: opening a pipe waits for somebody to write into it.
            mode = os.stat(name).st_mode  # noqa: PTH116
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                raise FileAccessError("is not a regular file", file=name)
            with open(name, "rb") as file:
                if os.fstat(file.fileno()).st_size == 0:
                    raise FormatError("the file is empty", file=name)
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise FileAccessError(f"cannot read: {error.strerror or error}", file=name) from error
        return cls(name, memoryview(mapped), mapped)

    @classmethod
    def of_bytes(cls, data: bytes, name: str = "<bytes>") -> Container:
        """Wraps bytes that are in memory already."""
        if not data:
            raise FormatError("the file is empty", file=name)
        return cls(name, memoryview(data), None)

    @property
    def nbytes(self) -> int:
        """Size of the file."""
        return len(self.data)

    def release(self, offset: int, nbytes: int) -> None:
        """Tells the system that these bytes are not needed in memory for now. They stay readable."""
        if self._map is None or nbytes < _PIECE or not hasattr(self._map, "madvise"):
            return
        page = mmap.PAGESIZE
        start = -(-offset // page) * page
        length = (offset + nbytes) // page * page - start
        if length > 0:
            self._map.madvise(mmap.MADV_DONTNEED, start, length)


@dataclass(frozen=True, slots=True)
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


def unexplained(data: memoryview, spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Returns the byte ranges that lie in no span and are not zero, as ``(start, end)``."""
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
        position = max(position, end)
    return found


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
    published: bool = False

    def publish(self) -> None:
        """Gives the file its name in one step.

        Raises:
            UsageError: Another process made the target meanwhile, and it may not be overwritten.
        """
        if self.force:
            if self.target.exists():
                self.path.chmod(stat.S_IMODE(self.target.stat().st_mode))
                # Content must be on disk before it replaces the only other copy.
                os.fsync(self.sink.descriptor)
            self.path.replace(self.target)
        else:
            try:
                os.link(self.path, self.target)
            except FileExistsError:
                raise UsageError(
                    "appeared while it was being made", file=self.target, remedy="use --force to overwrite it"
                ) from None
            except OSError:
                # A file system without hard links.
                self.path.rename(self.target)
            else:
                self.path.unlink()
        self.published = True


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
    # Cut in bytes, so that the longest legal name still leaves room for the mark.
    name = os.fsdecode(b"." + os.fsencode(path.name)[:200])
    aside = path.parent / f"{name}.{os.urandom(6).hex()}.tmp"
    descriptor = -1
    state: Aside | None = None
    try:
        descriptor = os.open(aside, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o666)
        os.ftruncate(descriptor, nbytes)
        state = Aside(aside, path, force, FileSink(descriptor))
        yield state
    except OSError as error:
        raise FileAccessError(f"cannot write: {error.strerror or error}", file=target) from error
    finally:
        if descriptor >= 0:
            os.close(descriptor)
        if state is None or not state.published:
            with contextlib.suppress(OSError):
                aside.unlink()
