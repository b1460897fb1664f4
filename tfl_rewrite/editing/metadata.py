"""Metadata buffers that refer to the model by position: fixed, dropped, or a reason to refuse.

* ``OfflineMemoryAllocation`` refers to every tensor of a subgraph, in order. Dropped: it is only a plan, and
  the interpreter makes its own without it.
* ``COMPRESSION_METADATA`` refers to tensors and buffers by index. Refused: constants are decoded by it.
* ``TFLITE_METADATA`` describes the inputs and outputs of the main subgraph, in order. Descriptions are moved
  with them; dropped where there are new ones.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Any

from tfl_rewrite.errors import UnsupportedError
from tfl_rewrite.kernels import runtimes
from tfl_rewrite.kernels.reads import late_releases
from tfl_rewrite.model.blob import OwnedBlob
from tfl_rewrite.model.ir import Metadata, Model, Tensor

COMPRESSION = "COMPRESSION_METADATA"
_MEMORY_PLAN = "OfflineMemoryAllocation"
DESCRIPTIONS = "TFLITE_METADATA"
MIN_RUNTIME = "min_runtime_version"
_MIN_RUNTIME_NBYTES = 16

# Slots of ``metadata_schema.fbs`` (tflite-support).
SUBGRAPHS = 3  # ModelMetadata
INPUTS, OUTPUTS = 2, 3  # SubGraphMetadata
_INPUT_GROUPS, _OUTPUT_GROUPS = 7, 8
_MOST = 4096
"""Tables, and elements of a vector, that are followed at most; a real file has a handful."""


def positions_moved(model: Model) -> list[str]:
    """Settles what refers to tensors or buffers by position, after some were removed.

    Returns:
        What was dropped, a line each.

    Raises:
        UnsupportedError: The model's constants are compressed by a table of positions.
    """
    if model.metadata_named(COMPRESSION) is not None:
        raise UnsupportedError(
            f"metadata {COMPRESSION} refers to tensors and buffers by position, which would move",
            remedy="rewrite the model before it is compressed",
        )
    notes = []
    while (entry := model.metadata_named(_MEMORY_PLAN)) is not None:
        drop(model, entry)
        notes.append(f"metadata {_MEMORY_PLAN} dropped: it lists tensors that moved")
    return notes


def drop(model: Model, entry: Metadata) -> int:
    """Removes an entry, and its buffer where nothing else refers to it.

    Returns:
        How many bytes of content are gone.
    """
    model.metadata = [item for item in model.metadata if item is not entry]
    buffer = entry.buffer
    if is_shared(model, entry):
        return 0
    model.metadata_buffers = [item for item in model.metadata_buffers if item is not buffer]
    model.buffers = [item for item in model.buffers if item is not buffer]
    return buffer.nbytes


def is_shared(model: Model, entry: Metadata) -> bool:
    """Whether anything but this entry refers to its buffer, such as a tensor or another entry.

    The old list ``metadata_buffer`` does not count: it names no entry, and repeats what entries refer to.
    """
    buffer = entry.buffer
    if any(item.buffer is buffer for item in model.metadata if item is not entry):
        return True
    if any(tensor.buffer is buffer for _, tensor in model.tensors()):
        return True
    return buffer is model.buffers[0]


def set_content(model: Model, entry: Metadata, data: bytes) -> None:
    """Gives an entry other bytes; whatever else refers to its buffer keeps the old ones."""
    if is_shared(model, entry):
        entry.buffer = model.add_buffer()
    entry.buffer.blob = OwnedBlob(data)


def said_runtime(model: Model) -> str | None:
    """Returns what the ``min_runtime_version`` metadata says, or None where there is none."""
    entry = model.metadata_named(MIN_RUNTIME)
    if entry is None or entry.buffer.blob is None:
        return None
    return bytes(entry.buffer.blob.view()).split(b"\0")[0].decode("utf-8", "replace")


def raise_min_runtime(model: Model, pairs: Iterable[tuple[str, int]]) -> tuple[str, str] | None:
    """Makes ``min_runtime_version`` say no less than what some operators in some versions need.

    Returns:
        What it said and what it says now, or None where it stays.
    """
    entry, said = model.metadata_named(MIN_RUNTIME), said_runtime(model)
    needed = runtimes.min_runtime_text(pairs, late_releases(model))
    if entry is None or said is None or runtimes.version_key(needed) <= runtimes.version_key(said):
        return None
    size = max(_MIN_RUNTIME_NBYTES, entry.buffer.nbytes, len(needed) + 1)
    set_content(model, entry, needed.encode("ascii").ljust(size, b"\0"))
    return said or "nothing", needed


def set_min_runtime(model: Model, pairs: Iterable[tuple[str, int]]) -> tuple[str, str] | None:
    """Makes ``min_runtime_version``, where there is one, say what the operators of a model need.

    Args:
        model: Changed in place.
        pairs: (operator name, version) of all of them.

    Returns:
        What it said and what it says now, or None where it stays.
    """
    entry, said = model.metadata_named(MIN_RUNTIME), said_runtime(model)
    needed = runtimes.min_runtime_text(pairs, late_releases(model))
    if entry is None or said is None or not needed or said == needed:
        return None
    size = max(_MIN_RUNTIME_NBYTES, entry.buffer.nbytes, len(needed) + 1)
    set_content(model, entry, needed.encode("ascii").ljust(size, b"\0"))
    return said or "nothing", needed


def interface_changed(
    model: Model,
    before: tuple[Sequence[Tensor], Sequence[Tensor]],
    after: tuple[Sequence[Tensor], Sequence[Tensor]],
    position: int = 0,
) -> list[str]:
    """Reorders the descriptions of a subgraph's inputs and outputs.

    Args:
        model: Its metadata is changed.
        before: Inputs and outputs as described.
        after: Inputs and outputs as they are now.
        position: Of the subgraph; descriptions are usually of the main one only.

    Returns:
        What was done, a line each.
    """
    entry = model.metadata_named(DESCRIPTIONS)
    if entry is None or entry.buffer.blob is None:
        return []
    data = bytearray(entry.buffer.blob.view())
    try:
        for slot, groups, old, new in zip(
            (INPUTS, OUTPUTS), (_INPUT_GROUPS, _OUTPUT_GROUPS), before, after, strict=True
        ):
            if list(map(id, old)) != list(map(id, new)):
                _reorder(data, (position, slot, groups), old, new)
    except (struct.error, ValueError, IndexError) as error:
        drop(model, entry)
        return [
            f"metadata {DESCRIPTIONS} dropped: {error or 'it cannot be read'}; label files that are "
            "appended to the model stay"
        ]
    if data == entry.buffer.blob.view():
        return []
    set_content(model, entry, bytes(data))
    return [f"metadata {DESCRIPTIONS}: descriptions follow the inputs and outputs"]


def _reorder(
    data: bytearray, place: tuple[int, int, int], before: Sequence[Tensor], after: Sequence[Tensor]
) -> None:
    """Points the vector of descriptions at those of ``after``; there is room, since none is new.

    Args:
        data: The metadata.
        place: Position of the subgraph, slot of the vector in its description, and that of groups of them.
        before: As described.
        after: As they are now.
    """
    subgraph, slot, groups = place
    metadata = MetadataTables(data)
    described = metadata.target(metadata.root(), SUBGRAPHS)
    if described is None or metadata.count(described) <= subgraph:
        return
    places = {id(tensor): index for index, tensor in enumerate(before)}
    if any(id(tensor) not in places for tensor in after) or len(after) > len(before):
        raise ValueError("it describes inputs and outputs, and there are new ones")
    table = metadata.followed(described + 4 + 4 * subgraph)
    if metadata.field(table, groups):
        raise ValueError("it groups inputs or outputs that are gone")
    vector = metadata.target(table, slot)
    if vector is None:
        return
    count = metadata.count(vector)
    if count != len(before):
        raise ValueError(f"it describes {count} inputs or outputs, but there are {len(before)}")
    targets = [metadata.followed(vector + 4 + 4 * index) for index in range(count)]
    struct.pack_into("<I", data, vector, len(after))
    for index, tensor in enumerate(after):
        position, target = vector + 4 + 4 * index, targets[places[id(tensor)]]
        if target <= position:
            raise ValueError("its descriptions lie before the list of them")
        struct.pack_into("<I", data, position, target - position)
    rest = len(before) - len(after)
    struct.pack_into(f"<{rest}I", data, vector + 4 + 4 * len(after), *[0] * rest)


class MetadataTables:
    """Follows offsets through the metadata, by slots: they are all that is needed of its schema.

    Anything out of place is a ValueError.
    """

    def __init__(self, data: bytes | bytearray) -> None:
        self._data = data
        self._left = _MOST

    def root(self) -> int:
        """Position of the root table."""
        return self.u32(0)

    def tables(self, table: int, slot: int) -> list[int]:
        """Positions of the tables of a vector; none where it is absent."""
        vector = self.target(table, slot)
        if vector is None:
            return []
        count = self.count(vector)
        self._left -= count
        if self._left < 0:
            raise ValueError(f"over {_MOST} tables")
        return [self.followed(vector + 4 + 4 * index) for index in range(count)]

    def text(self, table: int, slot: int) -> str:
        """A text, empty where it is absent."""
        start = self.target(table, slot)
        if start is None:
            return ""
        stop = start + 4 + self.u32(start)
        if stop > len(self._data):
            raise ValueError("a text reaches past the end")
        return self._data[start + 4 : stop].decode("utf-8", "backslashreplace")

    def u32(self, place: int) -> int:
        """A number that counts or leads somewhere."""
        return int(self._unpack("<I", place))

    def member(self, table: int, wanted: int) -> int | None:
        """The table of a union, whose type stands before it, if it is of the wanted type."""
        place = self.field(table, 0)
        if not place or self._data[place] != wanted:
            return None
        return self.target(table, 1)

    def floats(self, table: int, slot: int) -> tuple[float, ...]:
        """A vector of numbers, empty where it is absent."""
        vector = self.target(table, slot)
        if vector is None:
            return ()
        return tuple(self._unpack("<f", vector + 4 + 4 * index) for index in range(self.count(vector)))

    def count(self, vector: int) -> int:
        """How many elements a vector has."""
        count = self.u32(vector)
        if count > _MOST:
            raise ValueError(f"{count} elements")
        return count

    def target(self, table: int, slot: int) -> int | None:
        """Where a field leads that refers to something; None where it is absent."""
        place = self.field(table, slot)
        return self.followed(place) if place else None

    def followed(self, place: int) -> int:
        """Where the offset at a place leads."""
        return place + self.u32(place)

    def field(self, table: int, slot: int) -> int:
        """Position of a field of a table, or 0."""
        vtable = table - self._unpack("<i", table)
        if 6 + 2 * slot > self._unpack("<H", vtable):
            return 0
        offset = self._unpack("<H", vtable + 4 + 2 * slot)
        place = table + offset if offset else 0
        if place >= len(self._data):
            raise ValueError("a field lies outside")
        return place

    def _unpack(self, code: str, place: int) -> Any:
        if place < 0:
            raise ValueError("an offset points before the beginning")
        try:
            return struct.unpack_from(code, self._data, place)[0]
        except struct.error as error:
            raise ValueError(str(error)) from error
