"""A constant that is stored smaller: what was done to it, and how its new bytes are made."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from tfl_rewrite.flatbuf.record import Sink
from tfl_rewrite.kernels.operators import Reading
from tfl_rewrite.kernels.table import row_of
from tfl_rewrite.model.blob import ComputedBlob
from tfl_rewrite.numerics import symmetric
from tfl_rewrite.numerics.grids import Rows
from tfl_rewrite.numerics.packing import Packer, packed_nbytes
from tfl_rewrite.numerics.silenced import Silenced
from tfl_rewrite.numerics.symmetric import Error
from tfl_rewrite.options.json_data import LEFT_OUT, JsonData, computed, finite, shown
from tfl_rewrite.weights.activations import Calibrating
from tfl_rewrite.weights.forms.float16 import HalfError
from tfl_rewrite.weights.forms.split import parts
from tfl_rewrite.weights.rounders import Rounder, Work


class Payload(Protocol):
    """The new bytes of a constant, and how far they are off."""

    def blob(self) -> ComputedBlob:
        """Returns the bytes, which are made while they are written."""

    def error(self) -> Error:
        """Returns the squared signal and error; makes the bytes now if nothing was written yet."""


class QuantizedPayload:
    """Makes the integers of one constant, and remembers how far they are off.

    Args:
        work: The constant.
        rounder: Makes its integers.
        scale: Float32 ``[channels]``, as the file holds them.

    Attributes:
        silenced: Channels of its operator that are all zero now and were not, once it was rounded.
    """

    def __init__(self, work: Work, rounder: Rounder, scale: symmetric.Float32) -> None:
        self.work = work
        self.scale = scale
        self.rounder = rounder
        self._error: Error | None = None
        self.silenced: tuple[int, ...] = ()

    def write_to(self, sink: Sink, offset: int) -> None:
        """Writes the integers (their first part), block by block; needs no memory but a few blocks."""
        self._write_to(0, sink, offset)

    def error(self) -> Error:
        """Returns the squared signal and error; rounds now if nothing was written yet."""
        if self._error is None:
            self._run(lambda _start, _block: None)
        assert self._error is not None
        return self._error

    def blob(self) -> ComputedBlob:
        """Returns the integers (their first part) as bytes that are made while they are written."""
        return self.blobs()[0]

    def blobs(self) -> list[ComputedBlob]:
        """Returns the parts of the integers; one for most types."""
        elements = self.work.channels.elements
        return [
            ComputedBlob(packed_nbytes(elements, part.bits), functools.partial(self._write_to, number))
            for number, part in enumerate(self.work.dtype.parts)
        ]

    def _write_to(self, number: int, sink: Sink, offset: int) -> None:
        kinds = self.work.dtype.parts
        packer = Packer(kinds[number].bits, lambda start, data: sink.write_at(data, offset + start))
        if len(kinds) == 1:
            self._run(packer)
        else:
            self._run(lambda start, block: packer(start, parts(block)[number]))
        packer.finish()

    def _run(self, emit: Callable[[int, symmetric.Int8], None]) -> None:
        watched = _watched(self.work)
        if watched is None:
            self._error = self.rounder.round(self.work, self.scale, emit)
        else:
            self._error = self.rounder.round(self.work, self.scale, watched.beside(emit))
            self.silenced = watched.among(self.work.values())
        self.work.release()


def _watched(work: Work) -> Silenced | None:
    """Returns what watches channels that share a scale with others; None where each has its own."""
    axes = {row_of(use.operator).output_axis(use.position, len(work.shape)) for use in work.uses}
    axis = axes.pop() if len(axes) == 1 else None
    if axis is None or axis == work.axis or work.block is not None:
        return None
    return Silenced(Rows.along(work.shape, axis))


def _decibels(gains: dict[str, float] | None) -> dict[str, float]:
    return {name: round(each, 2) for name, each in (gains or {}).items()}


@dataclass(slots=True, kw_only=True)
class WeightChange(JsonData):
    """A constant that is stored smaller now.

    Attributes:
        where: Name of the tensor.
        buffer: Position in the model of the buffer that held it.
        readings: How its readers get at it: hybrid, lookup, dequantize.
        axis: Channel axis of its scales; None for one scale.
        channels: How many scales.
        saved: Bytes saved, with scales, operators and tensors counted. Negative for a tensor that shares
            its bytes with an earlier one.
        rounding: How far the new values are off; shared by tensors that share the bytes.
        shared: Whether its bytes are those of an earlier tensor.
        block: Elements that share a scale, where scales are by block; may be shorter than what was asked for.
        stored: Type of the elements: ``int8``, ``int6``, ``int4``, ``int2``, ``float16``.
        renewed: Whether it was integers before, in a form that the oldest runtime does not know.
    """

    where: str = field(metadata=shown("tensor"))
    buffer: int = field(metadata=LEFT_OUT)
    dtype: str
    shape: tuple[int, ...]
    readers: tuple[str, ...]
    readings: tuple[Reading, ...] = field(metadata=LEFT_OUT)
    axis: int | None
    block: int | None = None
    channels: int = field(metadata=shown("scales"))
    nbytes_before: int
    nbytes_after: int
    saved: int
    rounding: Payload = field(metadata=LEFT_OUT)
    shared: bool = False
    stored: str = field(default="int8", metadata=LEFT_OUT)
    renewed: bool = False

    @property
    @computed(after="where")
    def outcome(self) -> str:
        """What was done."""
        return "quantized"

    @property
    @computed("snr_db", made=finite(2))
    def snr(self) -> float:
        """Signal-to-noise ratio of the weight itself in dB; computed now if it was not written yet."""
        return self.rounding.error().snr

    @property
    @computed(after="readers")
    def scheme(self) -> str:
        """The readings, joined."""
        return "+".join(reading.value for reading in self.readings)

    @property
    @computed(after="readers")
    def encoding(self) -> str:
        """How it is stored, as an encoding is written."""
        if self.stored == "float16":
            return self.stored
        block = f":{self.block}" if self.block is not None else ""
        return f"{self.stored}:{self.granularity}{block}"

    @property
    @computed(after="readers")
    def granularity(self) -> str:
        """``tensor``, ``channel`` or ``block``; ``none`` for a float type."""
        if self.stored == "float16":
            return "none"
        if self.block is not None:
            return "block"
        return "tensor" if self.axis is None else "channel"

    @property
    def silenced(self) -> tuple[int, ...]:
        """Channels of its operator that held numbers and are all zero now."""
        self.rounding.error()
        return self.rounding.silenced if isinstance(self.rounding, QuantizedPayload) else ()

    @property
    @computed(merged=True)
    def lost(self) -> dict[str, int]:
        """How many elements did not fit in float16, or how many channels of integers are all zero now."""
        error = self.rounding.error()
        if isinstance(self.rounding, QuantizedPayload):
            return {"silenced": len(self.silenced)} if self.silenced else {}
        if not isinstance(error, HalfError):
            return {}
        return {"clamped": error.clamped, "flushed": error.flushed, "subnormal": error.subnormal}

    @property
    @computed("gains_db", made=_decibels, optional=True)
    def gains(self) -> dict[str, float] | None:
        """What each step of rounding won on the calibration inputs, in dB; None without calibration."""
        rounder = self.rounding.rounder if isinstance(self.rounding, QuantizedPayload) else None
        if isinstance(self.rounding, QuantizedPayload) and isinstance(rounder, Calibrating):
            return rounder.gains(self.rounding.work)
        return None
