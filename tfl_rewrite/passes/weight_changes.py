"""A constant that became integers: what was done to it, and how its integers are made."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfl_rewrite.flatbuf.record import Sink
from tfl_rewrite.model.blob import Blob, ComputedBlob
from tfl_rewrite.quant import symmetric
from tfl_rewrite.quant.symmetric import Channels, Error


class Reading(str, enum.Enum):
    """How one operator reads one weight."""

    HYBRID = "hybrid"
    LOOKUP = "lookup"
    DEQUANTIZE = "dequantize"


class Rounding:
    """Makes the integers of one constant, and remembers how far they are off.

    Args:
        source: The float constant.
        dtype: Its numpy type.
        scale: Float32 ``[channels]``.
        channels: How it falls into channels.
    """

    def __init__(self, source: Blob, dtype: str, scale: symmetric.Float32, channels: Channels) -> None:
        self._source = source
        self._dtype = dtype
        self._scale = scale
        self._channels = channels
        self._error: Error | None = None

    def pour(self, sink: Sink, offset: int) -> None:
        """Writes the integers, block by block; needs no memory but a few blocks."""
        self._run(lambda start, block: sink.write_at(block.data, offset + start))

    def error(self) -> Error:
        """Returns the squared signal and error; rounds now if nothing was written yet."""
        if self._error is None:
            self._run(lambda _start, _block: None)
        assert self._error is not None
        return self._error

    def blob(self) -> ComputedBlob:
        """Returns the integers as bytes that are made while they are written."""
        return ComputedBlob(self._channels.elements, self.pour)

    def _run(self, emit: Callable[[int, symmetric.Int8], None]) -> None:
        values = np.frombuffer(self._source.view(), self._dtype)
        self._error = symmetric.quantize(
            values, self._scale, self._channels, emit, spent=self._source.release
        )


@dataclass(slots=True)
class WeightChange:
    """A constant that is int8 now.

    Attributes:
        where: Name of the tensor.
        buffer: Position in the model of the buffer that held it.
        readings: How its readers get at it: hybrid, lookup, dequantize.
        axis: Channel axis of its scales; None for one scale.
        saved: Bytes saved, with scales, operators and tensors counted. Negative for a tensor that shares
            its bytes with an earlier one.
        rounding: How far the integers are off; shared by tensors that share the bytes.
    """

    where: str
    buffer: int
    dtype: str
    shape: tuple[int, ...]
    readers: tuple[str, ...]
    readings: tuple[Reading, ...]
    axis: int | None
    channels: int
    nbytes_before: int
    nbytes_after: int
    saved: int
    rounding: Rounding
    shared: bool = False
    """Whether its integers are those of an earlier tensor."""

    @property
    def snr(self) -> float:
        """Signal-to-noise ratio of the weight itself in dB; computed now if it was not written yet."""
        return self.rounding.error().snr

    @property
    def scheme(self) -> str:
        """The readings, joined."""
        return "+".join(reading.value for reading in self.readings)

    @property
    def granularity(self) -> str:
        """``tensor`` or ``channel``."""
        return "tensor" if self.axis is None else "channel"

    def to_dict(self) -> dict[str, Any]:
        """Returns it as JSON data."""
        snr = self.snr
        return {
            "tensor": self.where,
            "outcome": "quantized",
            "dtype": self.dtype,
            "shape": list(self.shape),
            "readers": list(self.readers),
            "scheme": self.scheme,
            "granularity": self.granularity,
            "axis": self.axis,
            "scales": self.channels,
            "nbytes_before": self.nbytes_before,
            "nbytes_after": self.nbytes_after,
            "saved": self.saved,
            "shared": self.shared,
            "snr_db": round(snr, 2) if np.isfinite(snr) else None,
        }
