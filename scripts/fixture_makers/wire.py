"""Finding the bytes of one field in a FlatBuffer, to damage exactly that field."""

from __future__ import annotations

import struct
from dataclasses import dataclass

# Slots of the fields that the malformed files patch, in the order of the schema's tables.
MODEL_VERSION, MODEL_SUBGRAPHS, MODEL_DESCRIPTION, MODEL_BUFFERS, MODEL_SIGNATURES = 0, 2, 3, 4, 7
GRAPH_TENSORS, GRAPH_OPERATORS = 0, 3
TENSOR_SHAPE, TENSOR_BUFFER = 0, 2
OPERATOR_CODE, OPERATOR_INPUTS, OPERATOR_OPTIONS_TYPE, OPERATOR_OPTIONS = 0, 1, 3, 4
WHILE_COND = 0
BUFFER_OFFSET = 1
SIGNATURE_INPUTS = 0
TENSOR_MAP_INDEX = 1


def u32(data: bytes, position: int) -> int:
    """Reads an unsigned 32-bit number."""
    return int(struct.unpack_from("<I", data, position)[0])


@dataclass(frozen=True)
class Table:
    """A table at `position` of `data`."""

    data: bytes
    position: int

    @property
    def vtable(self) -> int:
        """Where the table's vtable lies."""
        return self.position - int(struct.unpack_from("<i", self.data, self.position)[0])

    def has(self, slot: int) -> bool:
        """Tells whether the field is present."""
        (size,) = struct.unpack_from("<H", self.data, self.vtable)
        entry = 4 + 2 * slot
        return entry < size and struct.unpack_from("<H", self.data, self.vtable + entry)[0] != 0

    def field(self, slot: int) -> int:
        """Position of the field's bytes.

        Raises:
            LookupError: the field is absent.
        """
        if not self.has(slot):
            raise LookupError(f"slot {slot} of the table at {self.position} is absent")
        return self.position + int(struct.unpack_from("<H", self.data, self.vtable + 4 + 2 * slot)[0])

    def table(self, slot: int) -> Table:
        """The table that the field refers to."""
        return Table(self.data, follow(self.data, self.field(slot)))

    def vector(self, slot: int) -> Vector:
        """The vector (or string) that the field refers to."""
        return Vector(self.data, follow(self.data, self.field(slot)))


@dataclass(frozen=True)
class Vector:
    """A vector whose 32-bit count lies at `position` of `data`."""

    data: bytes
    position: int

    @property
    def count(self) -> int:
        """Number of elements."""
        return u32(self.data, self.position)

    def item(self, index: int, nbytes: int = 4) -> int:
        """Position of an element of `nbytes` bytes."""
        return self.position + 4 + nbytes * index

    def table(self, index: int) -> Table:
        """The table that an element refers to."""
        return Table(self.data, follow(self.data, self.item(index)))


def follow(data: bytes, position: int) -> int:
    """Where the offset stored at `position` points."""
    return position + u32(data, position)


def root(data: bytes) -> Table:
    """The root table of a file."""
    return Table(data, follow(data, 0))


def patched(data: bytes, position: int, layout: str, value: int) -> bytes:
    """A copy with one number replaced; `layout` as in `struct`, little-endian."""
    copy = bytearray(data)
    struct.pack_into("<" + layout, copy, position, value)
    return bytes(copy)
