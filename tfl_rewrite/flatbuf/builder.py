"""Tables and vectors of a FlatBuffer as bytes, laid out as ``flatbuffers.Builder`` does it.

They are written from the end of the file to its start: what is referred to comes before what refers to it,
and an offset is a distance from the end. Equal strings, vectors, tables of fields (vtables) are stored once.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from tfl_rewrite.flatbuf.record import Scalar

Placed = tuple[int, int, object]
"""A field of a table: its width with the other sign, its slot, and what goes there."""


class Builder:
    """Builds one FlatBuffer.

    Attributes:
        nbytes: Of all that was written; the offset of what was written last.
        unset: Offsets of fields that were left zero, with what was given for them.
    """

    __slots__ = ("_align", "_parts", "_strings", "_vectors", "_vtables", "nbytes", "unset")

    def __init__(self) -> None:
        self.nbytes = 0
        self.unset: list[tuple[int, object]] = []
        self._align = 4
        self._parts: list[bytes] = []
        self._strings: dict[str, int] = {}
        self._vectors: dict[object, int] = {}
        self._vtables: dict[tuple[int, ...], int] = {}

    def _prepare(self, align: int, nbytes: int) -> None:
        """Puts zeros where what follows would not start on a multiple once it is that long."""
        if align > self._align:
            self._align = align
        gap = -(self.nbytes + nbytes) % align
        if gap:
            self._put(bytes(gap))

    def _put(self, data: bytes) -> int:
        """Puts bytes in front of all others; returns their offset."""
        self._parts.append(data)
        self.nbytes += len(data)
        return self.nbytes

    def string(self, text: str) -> int:
        """Writes a string; surrogate escapes become the bytes that they stand for."""
        offset = self._strings.get(text)
        if offset is None:
            raw = text.encode("utf-8", "surrogateescape")
            self._prepare(4, len(raw) + 1)
            self._put(raw + b"\0")
            offset = self._strings[text] = self._put(struct.pack("<I", len(raw)))
        return offset

    def scalars(self, scalar: Scalar, raw: bytes, align: int) -> int:
        """Writes a vector of numbers.

        Args:
            scalar: Their type.
            raw: Little-endian.
            align: Of the first one; at least 4.
        """
        key = (raw, scalar.nbytes, align)
        offset = self._vectors.get(key)
        if offset is None:
            self._prepare(align, len(raw))
            self._put(raw)
            offset = self._vectors[key] = self._put(struct.pack("<I", len(raw) // scalar.nbytes))
        return offset

    def offsets(self, items: Sequence[int]) -> int:
        """Writes a vector of strings or tables that were written."""
        key = tuple(items)
        offset = self._vectors.get(key)
        if offset is None:
            self._prepare(4, 4 * len(items))
            end = self.nbytes + 4 * len(items)
            relative = (end - 4 * index - item for index, item in enumerate(items))
            self._put(struct.pack(f"<{len(items)}I", *relative))
            offset = self._vectors[key] = self._put(struct.pack("<I", len(items)))
        return offset

    def table(self, fields: Sequence[Placed]) -> int:
        """Writes a table.

        Args:
            fields: By slot. What goes there are little-endian bytes, the offset of what was written, or
                something else, which is put into :attr:`unset`.
        """
        end = self.nbytes
        slots = [0] * (fields[-1][1] + 1 if fields else 0)
        # Wide fields first, so that little is lost to padding.
        for width, slot, value in sorted(fields):
            self._prepare(-width, -width)
            if isinstance(value, bytes):
                slots[slot] = self._put(value)
            elif isinstance(value, int):
                slots[slot] = self._put(struct.pack("<I", self.nbytes + 4 - value))
            else:
                slots[slot] = self._put(bytes(-width))
                self.unset.append((self.nbytes, value))
        self._prepare(4, 4)
        offset = self.nbytes + 4
        entries = (2 * len(slots) + 4, offset - end, *(slot and offset - slot for slot in slots))
        known = self._vtables.get(entries)
        if known is not None:
            return self._put(struct.pack("<i", known - offset))
        self._put(struct.pack("<i", 2 * len(entries)))
        self._vtables[entries] = self._put(struct.pack(f"<{len(entries)}H", *entries))
        return offset

    def finish(self, root: int, identifier: bytes) -> bytearray:
        """Returns all bytes: where the root is, the identifier of the schema, and what was written."""
        self._prepare(self._align, 4 + len(identifier))
        if identifier:
            self._put(identifier)
        self._put(struct.pack("<I", self.nbytes + 4 - root))
        return bytearray().join(reversed(self._parts))
