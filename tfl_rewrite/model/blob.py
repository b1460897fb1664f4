"""The bytes of one buffer: mapped from the input, owned, or computed while being written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from tfl_rewrite.flatbuf.record import Sink

_PIECE = 1 << 20


class Source(Protocol):
    """What a mapped blob lies in; a :class:`tfl_rewrite.files.container.Container` is one."""

    @property
    def data(self) -> memoryview:
        """All bytes."""

    def release(self, offset: int, nbytes: int) -> None:
        """Tells that these bytes are not needed in memory for now."""


class Blob(Protocol):
    """Bytes of known number that can be looked at or written out."""

    @property
    def nbytes(self) -> int:
        """Their number."""

    @property
    def identity(self) -> object:
        """Hashable; equal for blobs that hold the same bytes by construction."""

    def view(self) -> memoryview:
        """Returns the bytes; a computed blob computes them now."""

    def write_to(self, sink: Sink, offset: int) -> None:
        """Writes them at ``offset`` of the sink."""

    def release(self, start: int = 0, nbytes: int | None = None) -> None:
        """Gives pages back to the system, those of a part or all; the bytes stay available."""


class MappedBlob:
    """A range of an input file; never copied until it is written."""

    __slots__ = ("nbytes", "offset", "source")

    def __init__(self, source: Source, offset: int, nbytes: int) -> None:
        self.source = source
        self.offset = offset
        self.nbytes = nbytes

    @property
    def identity(self) -> object:
        """The range: two buffers may share it, and share it again in the output."""
        return ("mapped", id(self.source), self.offset, self.nbytes)

    def view(self) -> memoryview:
        """Returns a view on the map."""
        return self.source.data[self.offset : self.offset + self.nbytes]

    def write_to(self, sink: Sink, offset: int) -> None:
        """Writes piece by piece and gives each piece's pages back."""
        for start in range(0, self.nbytes, _PIECE):
            length = min(_PIECE, self.nbytes - start)
            begin = self.offset + start
            sink.write_at(self.source.data[begin : begin + length], offset + start)
            self.source.release(begin, length)

    def release(self, start: int = 0, nbytes: int | None = None) -> None:
        """Gives the pages back."""
        self.source.release(self.offset + start, self.nbytes - start if nbytes is None else nbytes)


class OwnedBlob:
    """Bytes in memory, usually few."""

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data

    @property
    def nbytes(self) -> int:
        """Their number."""
        return len(self.data)

    @property
    def identity(self) -> object:
        """The content itself."""
        return ("owned", self.data)

    def view(self) -> memoryview:
        """Returns them."""
        return memoryview(self.data)

    def write_to(self, sink: Sink, offset: int) -> None:
        """Writes them."""
        sink.write_at(self.data, offset)

    def release(self, start: int = 0, nbytes: int | None = None) -> None:
        """Does nothing: the bytes have no other home."""


class ComputedBlob:
    """Bytes that are made while they are written, so that memory stays flat.

    Args:
        nbytes: Their number.
        compute: Writes all of them at an offset of a sink; called again for each use, with equal results.
    """

    __slots__ = ("compute", "nbytes")

    def __init__(self, nbytes: int, compute: Callable[[Sink, int], None]) -> None:
        self.nbytes = nbytes
        self.compute = compute

    @property
    def identity(self) -> object:
        """This object."""
        return ("computed", id(self))

    def view(self) -> memoryview:
        """Computes them into memory."""
        sink = MemorySink(self.nbytes)
        self.compute(sink, 0)
        return memoryview(sink.data)

    def write_to(self, sink: Sink, offset: int) -> None:
        """Computes them into the sink."""
        self.compute(sink, offset)

    def release(self, start: int = 0, nbytes: int | None = None) -> None:
        """Does nothing: nothing is held."""


class MemorySink:
    """A sink in memory."""

    __slots__ = ("data",)

    def __init__(self, nbytes: int) -> None:
        self.data = bytearray(nbytes)

    def write_at(self, data: bytes | memoryview, offset: int) -> None:
        """Copies ``data`` to ``offset``."""
        view = memoryview(data).cast("B")
        self.data[offset : offset + len(view)] = view
