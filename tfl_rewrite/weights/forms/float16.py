"""Float constants as float16: clamped to its finite range, with a count of what did not fit.

A value beyond 65504 would become infinite, and one below 2^-25 becomes zero; both are counted. What lies
between 2^-25 and 2^-14 is kept as a subnormal of fewer bits, which DEQUANTIZE reads (measured).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tfl_rewrite.editing.editor import Editor
from tfl_rewrite.flatbuf.record import Sink
from tfl_rewrite.model.blob import ComputedBlob
from tfl_rewrite.model.ir import Buffer, Quantization, Tensor
from tfl_rewrite.numerics.symmetric import BLOCK_ELEMENTS, Error, Floats, halves
from tfl_rewrite.weights.payloads import Emit, WorkPayload
from tfl_rewrite.weights.rounders import Rounder, Work
from tfl_rewrite.weights.storage import Decision, StorageForm, Stored

LARGEST = float(np.finfo(np.float16).max)
SMALLEST_NORMAL = float(np.finfo(np.float16).tiny)


@dataclass(slots=True)
class Float16Error(Error):
    """What was lost by float16.

    Attributes:
        clamped: Elements beyond 65504, which became 65504.
        flushed: Elements that became zero.
        subnormal: Elements that lost bits because they are below 2^-14.
    """

    clamped: int = 0
    flushed: int = 0
    subnormal: int = 0


def to_half(values: npt.NDArray[Any], emit: Emit) -> Float16Error:
    """Rounds to float16, block by block.

    Args:
        values: Flat finite float32 constants; not copied.
        emit: Called with the position of a block's first element and its values, in order.
    """
    error = Float16Error()
    for start in range(0, values.size, BLOCK_ELEMENTS):
        block = np.asarray(values[start : start + BLOCK_ELEMENTS], np.float32)
        size = np.abs(block)
        # Rounding takes all below half a step beyond the largest to the largest; clipping does the rest.
        half = np.clip(block, -LARGEST, LARGEST).astype(np.float16)
        error.clamped += int(np.count_nonzero(size > LARGEST))
        zero = half == 0
        error.flushed += int(np.count_nonzero(zero & (size > 0)))
        error.subnormal += int(np.count_nonzero((size < SMALLEST_NORMAL) & ~zero & (half != block)))
        wide = block.astype(np.float64)
        error.signal += float(np.dot(wide, wide))
        wide -= half
        error.noise += float(np.dot(wide, wide))
        emit(start, half)
    return error


class Float16Cast(WorkPayload):
    """Makes the float16 values of one float32 constant, and remembers what did not fit."""

    def blob(self) -> ComputedBlob:
        """Returns the values as bytes that are made while they are written."""
        return ComputedBlob(2 * self.work.channels.elements, self._write)

    def _write(self, sink: Sink, offset: int) -> None:
        self.run(lambda start, block: sink.write_at(block.data, offset + 2 * start))

    def make(self, emit: Emit) -> Float16Error:
        """Rounds."""
        return to_half(self.values(), emit)

    def lost(self) -> dict[str, int]:
        """Elements that were clamped, became zero, or lost bits."""
        error = self.error()
        assert isinstance(error, Float16Error)
        return {"clamped": error.clamped, "flushed": error.flushed, "subnormal": error.subnormal}


class Float16(StorageForm):
    """Float16 values behind DEQUANTIZE."""

    def overhead(self, made: Decision) -> int:
        """No scales."""
        return made.dequantize_nbytes

    def store(
        self, _editor: Editor, _made: Decision, work: Work, _rounder: Rounder, buffer: Buffer
    ) -> Stored:
        """Rounds to the nearest."""
        payload = Float16Cast(work)
        buffer.blob = payload.blob()
        return Stored(payload, (buffer,))

    def rewire(
        self, editor: Editor, made: Decision, stored: Stored, quantization: Quantization | None
    ) -> None:
        """Every operator reads what DEQUANTIZE makes of it."""
        item = made.item
        halves = editor.add_beside(item.subgraph, item.value, self.parts[0], stored.buffers[0], quantization)
        editor.expand(item.subgraph, halves, item.value, item.expand, made.kernels[-1].version)

    def read(self, tensor: Tensor) -> Floats | None:
        """Each value is a float32 too."""
        if tensor.dtype_name not in self.parts or tensor.buffer.blob is None:
            return None
        return halves(tensor.shape or (), tensor.buffer.blob)


class Float32(Float16):
    """The constant as it is: what keeps one from being changed."""

    def read(self, _tensor: Tensor) -> Floats | None:
        """There is nothing to expand."""
        return None


FORMS = (Float16("float16", ("FLOAT16",), tried=("float16",)), Float32("float32", ("FLOAT32",)))
