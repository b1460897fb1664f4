"""Which blobs hold the same bytes: a few bytes propose, hashes sort, all bytes decide.

Everything is read in pieces whose pages are given back, so that memory stays flat whatever the size; blobs
that differ at their ends or in their middle are told apart without reading the rest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import TypeVar

from tfl_rewrite.model.blob import Blob

T = TypeVar("T")

_PIECE = 512 << 10
_TASTE = 1024
_COPY = 64 << 10


def pieces(blob: Blob) -> Iterator[memoryview]:
    """Yields all bytes in pieces; each is given back when the next one is asked for."""
    view = blob.view()
    for start in range(0, blob.nbytes, _PIECE):
        part = view[start : start + _PIECE]
        yield part
        blob.release(start, len(part))


def digest(blob: Blob, tick: Callable[[int], None] | None = None) -> bytes:
    """Returns a hash of all bytes (BLAKE2b, 16 bytes).

    Args:
        blob: Read in pieces.
        tick: Called with the bytes done.
    """
    made = hashlib.blake2b(digest_size=16)
    for piece in pieces(blob):
        made.update(piece)
        if tick is not None:
            tick(len(piece))
    return made.digest()


def same_bytes(one: Blob, two: Blob, tick: Callable[[int], None] | None = None) -> bool:
    """Compares all bytes, up to the first difference."""
    if one.nbytes != two.nbytes:
        return False
    if one.identity == two.identity:
        return True
    for left, right in zip(pieces(one), pieces(two), strict=True):
        if not equal_pieces(left, right):
            return False
        if tick is not None:
            tick(len(left))
    return True


def equal_pieces(left: bytes | memoryview, right: bytes | memoryview) -> bool:
    """Whether two stretches are equal.

    Copies that fit in a cache are compared: ``==`` of memoryviews goes element by element and takes twenty
    times as long.
    """
    return len(left) == len(right) and all(
        bytes(left[start : start + _COPY]) == bytes(right[start : start + _COPY])
        for start in range(0, len(left), _COPY)
    )


def equal_items(
    items: Sequence[T], blob_of: Callable[[T], Blob], tick: Callable[[int], None] | None = None
) -> Iterator[tuple[T, T]]:
    """Yields each item whose blob holds the same bytes as an earlier one's, with the first of those.

    Args:
        items: In the order that counts; those without bytes should not be among them.
        blob_of: Gives an item's blob.
        tick: Called with the bytes of blobs that are settled; they add up to those of all items.
    """
    told = tick or (lambda _nbytes: None)
    sizes: dict[int, list[T]] = {}
    for item in items:
        sizes.setdefault(blob_of(item).nbytes, []).append(item)
    for nbytes, alike in sizes.items():
        groups: dict[Hashable, list[T]] = {}
        for item in alike:
            groups.setdefault(_taste(blob_of(item)) if len(alike) > 1 else None, []).append(item)
        for group in groups.values():
            if len(group) > 1:
                yield from _equal_in_group(group, blob_of, told)
            else:
                told(nbytes)


def _equal_in_group(
    group: list[T], blob_of: Callable[[T], Blob], tick: Callable[[int], None]
) -> Iterator[tuple[T, T]]:
    """Goes through items whose blobs look alike at first; most often they are equal or there is but one."""
    identities: dict[object, T] = {}
    first = group[0]
    hashes: dict[bytes, list[T]] | None = None
    for item in group:
        blob = blob_of(item)
        known = identities.get(blob.identity)
        if known is None and identities and same_bytes(blob_of(first), blob):
            known = first
        if known is None and identities:
            if hashes is None:
                # A second kind of bytes: from now on hashes say with which ones a comparison is worth it.
                hashes = {}
            alike = hashes.setdefault(digest(blob), [])
            known = next((other for other in alike if same_bytes(blob_of(other), blob)), None)
            if known is None:
                alike.append(item)
        identities.setdefault(blob.identity, item if known is None else known)
        tick(blob.nbytes)
        if known is not None and known is not item:
            yield known, item


def _taste(blob: Blob) -> Hashable:
    """Returns some bytes of the start, the middle and the end."""
    view = blob.view()
    nbytes = blob.nbytes
    if nbytes <= 3 * _TASTE:
        taste = bytes(view)
    else:
        middle = nbytes // 2
        taste = b"".join((view[:_TASTE], view[middle : middle + _TASTE], view[-_TASTE:]))
    blob.release()
    return hashlib.blake2b(taste, digest_size=16).digest()
