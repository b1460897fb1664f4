"""One part on its way: checked while it is read, unpacked, and written to its places."""

from __future__ import annotations

import bisect
import hashlib
import threading
import zlib
from collections.abc import Callable, Iterator

from tfl_rewrite.errors import FormatError
from tfl_rewrite.flatbuf.record import Sink
from tfl_rewrite.shards.manifest import Part
from tfl_rewrite.shards.sources import Stream

_PIECE = 1 << 20


class Stopped(Exception):
    """Another part failed; this one need not be finished."""


def stored_pieces(part: Part, stream: Stream, stop: threading.Event | None = None) -> Iterator[bytes]:
    """Yields the bytes of a stored part; the last of them only after size and hash were found right.

    Args:
        part: What it must be.
        stream: Its stored bytes.
        stop: Set when somebody else failed.

    Raises:
        FormatError: They are not those of the manifest; it names the part.
    """
    digest = hashlib.sha256()
    left = part.stored_nbytes
    held = b""
    while True:
        if stop is not None and stop.is_set():
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


def unpacked_pieces(part: Part, stream: Stream, stop: threading.Event | None = None) -> Iterator[bytes]:
    """Yields the unpacked bytes of a part, never more than it declares; see :func:`stored_pieces`.

    Raises:
        FormatError: The part is not what the manifest says.
    """
    if part.compression == "none":
        yield from stored_pieces(part, stream, stop)
        return
    digest = hashlib.sha256()
    left = part.nbytes
    unpacker = zlib.decompressobj(wbits=31)
    for packed in stored_pieces(part, stream, stop):
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


def write_part(
    part: Part,
    slices: list[tuple[int, int, int]],
    stream: Stream,
    sink: Sink,
    *,
    stop: threading.Event | None = None,
    tick: Callable[[int], None] | None = None,
) -> None:
    """Writes a part to all its places.

    Args:
        part: What it must be.
        slices: ``(offset in the part, nbytes, offset in the model)``, ascending.
        stream: Its stored bytes.
        sink: Of the model.
        stop: Set when somebody else failed.
        tick: Called with the bytes that went to their places.

    Raises:
        FormatError: The part is not what the manifest says; some of it may have been written.
    """
    starts = [offset for offset, _, _ in slices]
    longest = max(nbytes for _, nbytes, _ in slices)
    position = 0
    for piece in unpacked_pieces(part, stream, stop):
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
