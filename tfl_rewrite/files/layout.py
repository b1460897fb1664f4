"""A planned file: where every byte of a model goes, before any is written, and the files in its ZIP.

A model that was not changed is planned as the bytes that it was loaded from. A changed one is refused when
the file holds something that cannot be carried over.
"""

from __future__ import annotations

import io
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import field, replace
from typing import TYPE_CHECKING, Protocol

from tfl_rewrite.errors import UnsupportedError
from tfl_rewrite.files.container import Container, ZipTail, find_zip
from tfl_rewrite.flatbuf.record import Record, ScalarVector, Sink, Writable
from tfl_rewrite.model.blob import Blob, ComputedBlob, MappedBlob, MemorySink, OwnedBlob
from tfl_rewrite.model.ir import Model, schema
from tfl_rewrite.options.frozen import frozen, slotted
from tfl_rewrite.work import Work

# The writer is loaded when something is written: it takes longer to import than a small file to read.
if TYPE_CHECKING:
    # zipfile is loaded where there is a ZIP: with all that it can unpack it takes a while.
    from zipfile import ZipFile, ZipInfo

    from tfl_rewrite.flatbuf.writer import Packing, Plan

    Members = list[tuple[ZipInfo, bytes]]


_OUTSIDE_FROM = 1024
_INLINE_LIMIT = (1 << 31) - (64 << 20)
_TAIL_ALIGN = 16

# Tables, and their fields, that refer to bytes after the FlatBuffer.
_OUTSIDE = (
    ("Buffer", "offset", "size"),
    ("Operator", "large_custom_options_offset", "large_custom_options_size"),
)


class Origin(Protocol):
    """What a model was loaded from; a :class:`tfl_rewrite.files.source.Source` is one."""

    container: Container
    root: Record
    tail: ZipTail | None
    refusals: tuple[UnsupportedError, ...]
    dead: tuple[tuple[int, int], ...]
    shared: tuple[tuple[int, int], ...]


def differs(model: Model, origin: Origin) -> bool:
    """Whether a model differs, in any field or byte, from what it was loaded from.

    Bytes that still lie in the input are not compared: a buffer either is the same range or is new.
    """
    from tfl_rewrite.model.lower import lower

    return model.tail is not None or not _same(lower(model), origin.root)


@frozen
class Layout:
    """A planned output file: tables and blobs, then the ZIP; or the input with other bytes in some places.

    Attributes:
        verbatim: The input, where nothing changed.
        base: The input, where only the ``patches`` differ: pairs of an offset and what lies there now.
        notes: What of the input is not in it.
    """

    plan: Plan | None
    verbatim: Container | None
    tail: ZipTail | None
    tail_offset: int
    nbytes: int
    base: Container | None = None
    patches: tuple[tuple[int, Blob], ...] = ()
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, source: Origin) -> Layout:
        """The source as it is."""
        return cls(None, source.container, None, 0, source.container.nbytes)

    def followed_by(self, tail: ZipTail | None) -> Layout:
        """The same, of a new file, with a ZIP behind it."""
        if tail is None:
            return self
        offset = -(-self.nbytes // _TAIL_ALIGN) * _TAIL_ALIGN
        return replace(self, tail=tail, tail_offset=offset, nbytes=offset + tail.nbytes)

    def write_to(self, sink: Sink, work: Work | None = None) -> None:
        """Writes the file, several blobs at a time.

        Args:
            sink: The open file.
            work: Says how many at once, and is told of the progress.
        """
        work = work or Work()
        counted = _Ticking(sink, work.stage("writing", self.nbytes).tick)
        if self.verbatim is not None:
            MappedBlob(self.verbatim, 0, self.nbytes).write_to(counted, 0)
            return
        writes: Sequence[tuple[int, Writable]]
        if self.base is not None:
            writes = [*self._between(self.base), *self.patches]
        else:
            assert self.plan is not None
            sink.write_at(self.plan.head, 0)
            writes = self.plan.writes
        work.each(lambda write: write[1].write_to(counted, write[0]), writes, nbytes=self.nbytes)
        if self.tail is not None:
            sink.write_at(self.tail.moved(self.tail_offset), self.tail_offset)

    def to_bytes(self) -> bytes:
        """Returns the file."""
        sink = MemorySink(self.nbytes)
        self.write_to(sink)
        return bytes(sink.data)

    def _between(self, base: Container) -> list[tuple[int, MappedBlob]]:
        """Returns what is kept of the input: the ranges between the patches."""
        kept, position = [], 0
        for offset, blob in self.patches:
            kept.append((position, MappedBlob(base, position, offset - position)))
            position = offset + blob.nbytes
        return [*kept, (position, MappedBlob(base, position, self.nbytes - position))]


@frozen
class _Ticking:
    sink: Sink
    tick: Callable[[int], None]

    def write_at(self, data: bytes | memoryview, offset: int) -> None:
        self.sink.write_at(data, offset)
        self.tick(len(data))


def planned(model: Model, origin: Origin | None, *, packing: Packing | None = None) -> Layout:
    """Plans the file of a model; nothing is written yet.

    Args:
        model: Not changed.
        origin: What it was loaded from; None for one made in memory.
        packing: Lay the file out anew in this way, even if no field of the model changed. A file that is
            laid out so already is verbatim.

    Raises:
        UnsupportedError: The model was changed, or is to be packed, and its file holds something that cannot
            be carried over.
    """
    from tfl_rewrite.flatbuf.writer import plan
    from tfl_rewrite.model.lower import lower

    root = lower(model)
    if origin is not None and packing is None and model.tail is None:
        # Where no field and no size changed, nothing needs to move: not even what nobody can explain.
        patches = _patches(root, origin.root, origin.shared)
        if patches == ():
            return Layout.of(origin)
        if patches is not None:
            nbytes = origin.container.nbytes
            return Layout(None, None, None, 0, nbytes, base=origin.container, patches=patches)
    if origin is not None and origin.refusals:
        raise origin.refusals[0]
    inline = sum(buffer.nbytes for buffer in model.buffers)
    if inline > _INLINE_LIMIT:
        root = lower(model, outside_from=_OUTSIDE_FROM)
    made = plan(root, schema(), packing=packing)
    tail = origin.tail if origin is not None else None
    if model.tail is not None:
        tail = tail_of(model.tail)
    elif origin is not None and packing is not None and _lies_so(made, tail, origin.container):
        return Layout.of(origin)
    notes = _left_out(origin)
    return Layout(made, None, None, 0, made.nbytes, notes=notes).followed_by(tail)


def _left_out(origin: Origin | None) -> tuple[str, ...]:
    if origin is None or not origin.dead:
        return ()
    why = "no offset of the model reaches them, and nothing addresses them"
    return (f"{bytes_text(origin.dead)} left out: {why}",)


def bytes_text(ranges: Sequence[tuple[int, int]]) -> str:
    """Says how many bytes lie between where."""
    count = sum(stop - start for start, stop in ranges)
    return f"{count:,} byte{'' if count == 1 else 's'} between {ranges[0][0]} and {ranges[-1][1]}"


def _lies_so(made: Plan, tail: ZipTail | None, container: Container) -> bool:
    """Whether a file is byte for byte what is planned; blobs are compared by where they lie."""
    end = made.nbytes if tail is None else -(-made.nbytes // _TAIL_ALIGN) * _TAIL_ALIGN
    if container.nbytes != end + (tail.nbytes if tail is not None else 0):
        return False
    if tail is not None and tail.offset != end:
        return False
    if container.data[: len(made.head)] != made.head:
        return False
    for start, blob in made.blobs():
        if isinstance(blob, MappedBlob) and blob.source is container:
            if blob.offset != start:
                return False
        elif not isinstance(blob, ScalarVector) or container.data[start : start + blob.nbytes] != blob.raw:
            return False
    return True


@slotted
class _Patches:
    """Other bytes in place of constants, by where those lie, and how many buffers lie there."""

    blobs: dict[int, Blob] = field(default_factory=dict)
    uses: Counter[tuple[int, int]] = field(default_factory=Counter)

    def take(self, offset: int, blob: Blob) -> bool:
        """Notes what a buffer holds now; False where another one is to hold other bytes at that place."""
        if blob.nbytes:
            self.uses[offset, blob.nbytes] += 1
        return offset >= 0 and self.blobs.setdefault(offset, blob) is blob


def _patches(
    new: Record, old: Record, shared: Sequence[tuple[int, int]]
) -> tuple[tuple[int, Blob], ...] | None:
    """Returns the constants that differ, by offset, or None if anything else does or would by patching.

    What is stored once may be meant by several: a patch is for all of them or not possible. Nor is it where
    a constant lies over a part of something else, as in no file that a converter writes.
    """
    found = _Patches()
    if not _same(new, old, found):
        return None
    ordered = sorted(found.blobs.items())
    ends = [0, *(offset + blob.nbytes for offset, blob in ordered)]
    if any(end > offset for end, (offset, _) in zip(ends, ordered, strict=False)):
        return None
    starts = [offset for offset, _ in ordered]
    for start, stop in shared:
        index = bisect_left(starts, stop)
        if index and ends[index] > start:
            return None
    uses: Counter[tuple[int, int]] = Counter()
    for offset, nbytes in _runs(old):
        index = bisect_left(starts, offset + nbytes)
        if index and nbytes and ends[index] > offset:
            uses[offset, nbytes] += 1
    return tuple(ordered) if uses == found.uses else None


def _runs(item: object) -> Iterator[tuple[int, int]]:
    """Yields offset and size of all bytes that fields below a record as read refer to, once per field."""
    if isinstance(item, ScalarVector):
        yield item.offset, item.nbytes
    elif isinstance(item, list):
        for part in item:
            yield from _runs(part)
    elif isinstance(item, Record):
        for table, position, size in _OUTSIDE:
            if item.spec.name == table and item.get(position) > 1:
                yield item.get(position), item.get(size)
        for value in item.values.values():
            yield from _runs(value)


def _same(new: object, old: object, patches: _Patches | None = None) -> bool:
    """Compares lowered records with those read; blobs that still lie in the file by their range.

    Args:
        new: As lowered.
        old: As read.
        patches: If given, other bytes of the same number in place of a constant's are no difference; they
            are put here.
    """
    from tfl_rewrite.flatbuf.writer import FilePosition

    if new is old:
        return True
    if isinstance(new, Record) and isinstance(old, Record):
        if new.spec is not old.spec:
            return False
        names = new.values.keys()
        if old.spec.name == "Buffer" and old.get("offset") > 1 and "data" in new:
            # The output may hold inline what the input held outside; only other bytes are a change.
            blob = new["data"]
            return _same_bytes(blob, old.get("offset"), old.get("size"), patches)
        return names == old.values.keys() and all(_same(new[name], old[name], patches) for name in names)
    if isinstance(new, list) and isinstance(old, list):
        return len(new) == len(old) and all(
            _same(one, other, patches) for one, other in zip(new, old, strict=True)
        )
    if isinstance(new, (MappedBlob, OwnedBlob, ComputedBlob)) and isinstance(old, ScalarVector):
        return _same_bytes(new, old.offset, old.nbytes, patches)
    if isinstance(new, FilePosition):
        return isinstance(new.blob, MappedBlob) and new.blob.offset == old
    if isinstance(new, float) and isinstance(old, float):
        return new == old or (new != new and old != old)
    return bool(new == old)


def _same_bytes(new: object, offset: int, nbytes: int, patches: _Patches | None) -> bool:
    """Whether a blob is the range of the input that it was; see :func:`_same`."""
    if isinstance(new, MappedBlob):
        return (new.offset, new.nbytes) == (offset, nbytes)
    if patches is None or not isinstance(new, (OwnedBlob, ComputedBlob)) or new.nbytes != nbytes:
        return False
    return patches.take(offset, new)


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
