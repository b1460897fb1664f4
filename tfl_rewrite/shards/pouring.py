"""One part from a stream into its places, with every size and hash checked on the way."""

from __future__ import annotations

import bisect
import hashlib
import threading
import zlib
from collections.abc import Callable, Iterator
from typing import Protocol

from tfl_rewrite.errors import FormatError
from tfl_rewrite.files.container import Container
from tfl_rewrite.flatbuf.record import Sink
from tfl_rewrite.model.likeness import equal_pieces
from tfl_rewrite.shards.manifest import Part

_PIECE = 1 << 20


class Stream(Protocol):
    """Bytes to read."""

    def read(self, size: int, /) -> bytes:
        """Returns at most ``size`` bytes, none at the end."""


class Stopped(Exception):
    """Another part failed; this one need not be finished."""


class Hashing:
    """Reads the stored bytes of parts and unpacks them; stops early when told.

    Args:
        stop: Set when somebody else failed.
    """

    def __init__(self, stop: threading.Event | None = None) -> None:
        self._stop = stop

    def stored(self, part: Part, stream: Stream) -> Iterator[bytes]:
        """Yields the bytes of a stored part; the last of them only after size and hash were found right.

        Raises:
            FormatError: They are not those of the manifest; it names the part.
        """
        digest = hashlib.sha256()
        left = part.stored_nbytes
        held = b""
        while True:
            if self._stop is not None and self._stop.is_set():
                raise Stopped
            piece = stream.read(min(_PIECE, left) or 1)
            if not piece:
                break
            left -= len(piece)
            if left < 0:
                raise wrong(part, f"is longer than {part.stored_nbytes} bytes")
            digest.update(piece)
            if held:
                yield held
            held = piece
        if left:
            raise wrong(part, f"ends after {part.stored_nbytes - left} of {part.stored_nbytes} bytes")
        if digest.hexdigest() != part.stored_sha256:
            raise wrong(part, "has the wrong SHA-256")
        if held:
            yield held

    def unpacked(self, part: Part, stream: Stream) -> Iterator[bytes]:
        """Yields the unpacked bytes in pieces, never more than the part declares.

        Raises:
            FormatError: The part is not what the manifest says.
        """
        if part.compression == "none":
            yield from self.stored(part, stream)
            return
        digest = hashlib.sha256()
        left = part.nbytes
        unpacker = zlib.decompressobj(wbits=31)
        for packed in self.stored(part, stream):
            if unpacker.eof:
                raise wrong(part, "has bytes after its gzip stream")
            data = packed
            while not unpacker.eof:
                # One byte more than there may be tells a stream that is too long.
                most = min(_PIECE, left + 1)
                try:
                    piece = unpacker.decompress(data, most)
                except zlib.error:
                    raise wrong(part, "is not gzip") from None
                left -= len(piece)
                if left < 0:
                    raise wrong(part, f"unpacks to more than {part.nbytes} bytes")
                digest.update(piece)
                if piece:
                    yield piece
                data = unpacker.unconsumed_tail
                # Output may be pending although all input is taken.
                if not data and len(piece) < most:
                    break
            if unpacker.unused_data:
                raise wrong(part, "has bytes after its gzip stream")
        if not unpacker.eof or left:
            raise wrong(part, f"unpacks to {part.nbytes - left} of {part.nbytes} bytes")
        if digest.hexdigest() != part.sha256:
            raise wrong(part, "has the wrong SHA-256 when unpacked")


def pour_part(
    part: Part,
    slices: list[tuple[int, int, int]],
    stream: Stream,
    sink: Sink,
    hashing: Hashing,
    *,
    tick: Callable[[int], None] | None = None,
) -> None:
    """Writes a part to all its places.

    Args:
        part: What it must be.
        slices: ``(offset in the part, nbytes, offset in the model)``, ascending.
        stream: Its stored bytes.
        sink: Of the model.
        hashing: Checks.
        tick: Called with the bytes that went to their places.

    Raises:
        FormatError: The part is not what the manifest says; some of it may have been written.
    """
    starts = [offset for offset, _, _ in slices]
    longest = max(nbytes for _, nbytes, _ in slices)
    position = 0
    for piece in hashing.unpacked(part, stream):
        end = position + len(piece)
        view = memoryview(piece)
        # Those that may reach into [position, end): none starts more than the longest before it.
        first = bisect.bisect_right(starts, position - longest)
        for offset, nbytes, target in slices[first : bisect.bisect_left(starts, end)]:
            low, high = max(offset, position), min(offset + nbytes, end)
            if low < high:
                sink.write_at(view[low - position : high - position], target + low - offset)
                if tick is not None:
                    tick(high - low)
        position = end


def wrong(part: Part, what: str) -> FormatError:
    """An error that names a part."""
    return FormatError(what, where=f"part {part.name}", remedy="it is damaged; fetch or make it again")


class BytesCheck:
    """A sink that compares instead of writing."""

    def __init__(self, container: Container) -> None:
        self._container = container
        self.different = False

    def write_at(self, data: bytes | memoryview, offset: int) -> None:
        """Looks whether the same bytes are there."""
        self.different |= not equal_pieces(self._container.data[offset : offset + len(data)], data)
        self._container.release(offset, len(data))
