"""The files that TFLite Metadata names: ``AssociatedFile`` tables of ``metadata_schema.fbs``.

The tables are followed by hand: the slots below are all that is needed of that schema.
"""

from __future__ import annotations

import struct

# Slots of ``metadata_schema.fbs`` (tflite-support).
_MODEL_SUBGRAPHS, _MODEL_FILES = 3, 6
_SUBGRAPH_TENSORS, _SUBGRAPH_FILES = (2, 3), 4
_TENSOR_FILES = 6
_FILE_NAME = 0
_MOST = 4096
"""Tables followed at most; a real file names a handful."""


def associated_files(data: bytes) -> list[str]:
    """Returns the names of the files that the metadata of a model speaks of, each once.

    Files of process units (tokenizers) repeat those of the tensor, and are not followed.

    Raises:
        ValueError: The metadata is damaged.
    """
    try:
        reader = _Reader(data)
        root = reader.u32(0)
        tables = [(root, _MODEL_FILES)]
        for subgraph in reader.tables(root, _MODEL_SUBGRAPHS):
            tables.append((subgraph, _SUBGRAPH_FILES))
            for slot in _SUBGRAPH_TENSORS:
                tables += [(tensor, _TENSOR_FILES) for tensor in reader.tables(subgraph, slot)]
        names = [
            reader.string(file, _FILE_NAME) for table, slot in tables for file in reader.tables(table, slot)
        ]
    except (struct.error, IndexError) as error:
        raise ValueError(str(error)) from error
    return list(dict.fromkeys(name for name in names if name))


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._left = _MOST

    def u32(self, position: int) -> int:
        return int(struct.unpack_from("<I", self._data, position)[0])

    def field(self, table: int, slot: int) -> int:
        """Returns where a field lies, or 0."""
        vtable = table - int(struct.unpack_from("<i", self._data, table)[0])
        if vtable < 0:
            raise ValueError("a vtable lies before the metadata")
        size = int(struct.unpack_from("<H", self._data, vtable)[0])
        if 6 + 2 * slot > size:
            return 0
        offset = int(struct.unpack_from("<H", self._data, vtable + 4 + 2 * slot)[0])
        return table + offset if offset else 0

    def tables(self, table: int, slot: int) -> list[int]:
        """Returns the tables of a vector."""
        position = self.field(table, slot)
        if not position:
            return []
        vector = position + self.u32(position)
        count = self.u32(vector)
        self._left -= count
        if self._left < 0:
            raise ValueError(f"over {_MOST} tables")
        starts = [vector + 4 + 4 * index for index in range(count)]
        return [start + self.u32(start) for start in starts]

    def string(self, table: int, slot: int) -> str:
        """Returns a text, empty where it is absent."""
        position = self.field(table, slot)
        if not position:
            return ""
        start = position + self.u32(position)
        length = self.u32(start)
        if start + 4 + length > len(self._data):
            raise ValueError("a text reaches past the end")
        return self._data[start + 4 : start + 4 + length].decode("utf-8", "backslashreplace")
