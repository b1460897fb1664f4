"""Reading and writing models with the runtime's generated object API.

The fixtures must not depend on the code that they test, hence the generated classes here and nowhere
else. They are lossy on foreign files; on files made here they are good enough.
"""

from __future__ import annotations

from pathlib import Path

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

FILE_IDENTIFIER = b"TFL3"
BLOB_ALIGNMENT = 16


class AlignedBufferT(schema.BufferT):
    """A Buffer whose data starts at a multiple of 16, which the generated `Pack` does not care for."""

    def Pack(self, builder: flatbuffers.Builder) -> int:
        """Writes the table after its aligned data; returns the table's offset."""
        data = None if self.data is None else np.asarray(self.data, np.uint8).tobytes()
        if data is not None:
            builder.StartVector(1, len(data), BLOB_ALIGNMENT)
            builder.head = builder.head - len(data)
            builder.Bytes[builder.head : builder.head + len(data)] = data
            vector = builder.EndVector()
        schema.BufferStart(builder)
        if data is not None:
            schema.BufferAddData(builder, vector)
        schema.BufferAddOffset(builder, self.offset)
        schema.BufferAddSize(builder, self.size)
        return int(schema.BufferEnd(builder))


def buffer_of(data: bytes | np.ndarray | None = None) -> AlignedBufferT:
    """Wraps bytes (or an array's bytes) as a Buffer; None gives the empty sentinel."""
    buffer = AlignedBufferT()
    if data is not None:
        buffer.data = np.frombuffer(data if isinstance(data, bytes) else data.tobytes(), np.uint8)
    return buffer


def unpack(data: bytes) -> schema.ModelT:
    """Decodes a whole file into objects."""
    model = schema.ModelT.InitFromPackedBuf(data, 0)
    for buffer in model.buffers:
        buffer.__class__ = AlignedBufferT
    return model


def read(path: Path) -> schema.ModelT:
    """Decodes the file at `path` into objects."""
    return unpack(path.read_bytes())


def pack(model: schema.ModelT, *, force_defaults: bool = False) -> bytes:
    """Encodes objects as a .tflite file; `force_defaults` also writes scalars that equal their default."""
    builder = flatbuffers.Builder(1 << 16)
    builder.ForceDefaults(force_defaults)
    builder.Finish(model.Pack(builder), FILE_IDENTIFIER)
    return bytes(builder.Output())
