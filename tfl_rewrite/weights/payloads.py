"""The new bytes of a constant: how they are made, how far they are off, and what is reported of them."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import field
from typing import Any

import numpy as np
import numpy.typing as npt

from tfl_rewrite.flatbuf.record import Sink
from tfl_rewrite.kernels.table import row_of
from tfl_rewrite.model.blob import ComputedBlob, MemorySink
from tfl_rewrite.model.values import Packer, packed_nbytes
from tfl_rewrite.numerics import grids
from tfl_rewrite.numerics.grids import Rows, deflated
from tfl_rewrite.numerics.pruning import kept
from tfl_rewrite.numerics.symmetric import Channels, Error, Float32, Int8, Integers, Silenced
from tfl_rewrite.options.frozen import slotted
from tfl_rewrite.options.json_data import LEFT_OUT, JsonData, computed, finite, shown
from tfl_rewrite.weights.grids import Choice, Constant
from tfl_rewrite.weights.rounders import Fitting, Rounder, Work

Emit = Callable[[int, npt.NDArray[Any]], None]
"""Takes the position of the first of some new values, and them."""


class Payload(ABC):
    """The new values of a constant, made block by block while they are written.

    Attributes:
        silenced: Channels of its operator that are all zero now and were not, once they were made.
    """

    silenced: tuple[int, ...] = ()
    _error: Error | None = None

    @abstractmethod
    def make(self, emit: Emit) -> Error:
        """Makes the values; called again for each use of them, with equal results.

        Args:
            emit: Takes them in order and without gaps.

        Returns:
            The squared signal and error.
        """

    @abstractmethod
    def values(self) -> npt.NDArray[Any]:
        """Returns the flat values as they were; a view of the file, not a copy."""

    @abstractmethod
    def release(self) -> None:
        """Gives the memory of those back."""

    def watched(self) -> Silenced | None:
        """Returns what watches channels that share a scale or step with others; None where none does."""
        return None

    def run(self, emit: Emit) -> None:
        """Makes the values, and remembers how far they are off and which channels are gone."""
        watched = self.watched()
        self._error = self.make(emit if watched is None else watched.beside(emit))
        if watched is not None:
            self.silenced = watched.among(self.values())
        self.release()

    def error(self) -> Error:
        """Returns the squared signal and error; makes the values now if nothing was written yet."""
        if self._error is None:
            self.run(lambda _start, _block: None)
        assert self._error is not None
        return self._error

    def lost(self) -> dict[str, int]:
        """Returns what did not survive: how many elements or channels, by what became of them."""
        self.error()
        return {"silenced": len(self.silenced)} if self.silenced else {}

    def gains(self) -> dict[str, float] | None:
        """Returns what each step of rounding won on the calibration inputs, in dB; None without those."""
        return None


class WorkPayload(Payload):
    """One that is made of a constant as a rounder gets it.

    Args:
        work: The constant.
    """

    def __init__(self, work: Work) -> None:
        self.work = work

    def values(self) -> npt.NDArray[Any]:
        """Those of the constant."""
        return self.work.values()

    def release(self) -> None:
        """Those of the constant."""
        self.work.release()

    def expanded(self) -> Float32:
        """Returns the flat values that readers get from DEQUANTIZE."""
        made = np.empty(self.work.channels.elements, np.float32)

        def put(start: int, block: npt.NDArray[Any]) -> None:
            made[start : start + block.size] = block

        self.make(put)
        self.release()
        return made


class QuantizedPayload(WorkPayload):
    """Makes the integers of one constant.

    Args:
        work: The constant.
        rounder: Makes its integers.
        scale: Float32 ``[channels]``, as the file holds them.
    """

    def __init__(self, work: Work, rounder: Rounder, scale: Float32) -> None:
        super().__init__(work)
        self.scale = scale
        self.rounder = rounder

    def blob(self, bits: int, part: Callable[[Integers], Int8] | None = None) -> ComputedBlob:
        """Returns the integers as bytes that are made while they are written.

        Args:
            bits: Of one of them in the file.
            part: Takes from integers what is to be stored; all of them without it.
        """
        nbytes = packed_nbytes(self.work.channels.elements, bits)
        return ComputedBlob(nbytes, functools.partial(self._write, bits, part))

    def _write(self, bits: int, part: Callable[[Integers], Int8] | None, sink: Sink, offset: int) -> None:
        packer = Packer(bits, lambda start, data: sink.write_at(data, offset + start))
        self.run(packer if part is None else lambda start, block: packer(start, part(block)))
        packer.finish()

    def make(self, emit: Emit) -> Error:
        """Rounds."""
        return self.rounder.round(self.work, self.scale, emit)

    def expanded(self) -> Float32:
        """The integers times their scales."""
        channels = self.work.channels
        made = super().expanded()
        made.reshape(channels.outer, channels.channels, channels.inner)[:] *= self.scale[:, np.newaxis]
        return made

    def watched(self) -> Silenced | None:
        """Channels of the operator's outputs, unless each has a scale of its own."""
        work = self.work
        axes = {row_of(use.operator).output_axis(use.position, len(work.shape)) for use in work.uses}
        axis = axes.pop() if len(axes) == 1 else None
        if axis is None or axis == work.axis or work.block is not None:
            return None
        return Silenced(Channels.along(work.shape, axis))

    def gains(self) -> dict[str, float] | None:
        """Returns what each step of rounding won on the calibration inputs, in dB."""
        return self.rounder.gains(self.work)


class ConstantPayload(Payload):
    """One of a constant that keeps its type.

    Args:
        item: The constant.
    """

    def __init__(self, item: Constant) -> None:
        self._item = item
        self._source = item.blob

    def blob(self) -> ComputedBlob:
        """Returns the values as bytes that are made while they are written."""
        return ComputedBlob(self._source.nbytes, self._write_to)

    def data(self) -> bytearray:
        """Returns the values as bytes."""
        sink = MemorySink(self._source.nbytes)
        self._write_to(sink, 0)
        return sink.data

    def _write_to(self, sink: Sink, offset: int) -> None:
        width = np.dtype(self._item.kind.numpy).itemsize
        self.run(lambda start, block: sink.write_at(block.data, offset + start * width))

    def original(self, measure: Callable[[memoryview], int] = deflated) -> int:
        """Returns the deflated size of the original."""
        try:
            return measure(self._source.view())
        finally:
            self._source.release()

    def values(self) -> npt.NDArray[Any]:
        """As they were when this was made; the constant may hold the new bytes by now."""
        return np.frombuffer(self._source.view(), self._item.kind.numpy)

    def release(self) -> None:
        """Those of the source."""
        self._source.release()


class GridPayload(ConstantPayload):
    """Makes the values of one constant on a grid.

    Args:
        item: The constant.
        steps: Of each channel, or one.
        bits: Significant bits that a value may keep.
        fitting: Chooses the levels, where it knows what the constant meets.
    """

    def __init__(
        self, item: Constant, steps: grids.Float64, *, bits: int = 24, fitting: Fitting | None = None
    ) -> None:
        super().__init__(item)
        self._bits = bits
        self._rows = item.rows
        if item.table and steps.size == item.table:
            self._rows = Rows(1, item.table, item.elements // item.table)
        self.steps = steps
        self._fitting = fitting

    @classmethod
    def of(cls, item: Constant, choice: Choice, fitting: Fitting | None = None) -> GridPayload:
        """Takes the grid that was chosen."""
        return cls(item, item.steps(choice), bits=choice.bits, fitting=fitting)

    def watched(self) -> Silenced | None:
        """Rows that share their step with others."""
        rows = self._item.rows
        own = rows.channels <= 1 or self.steps.size == rows.channels
        return None if own else Silenced(rows, self._item.zero)

    def make(self, emit: Emit) -> Error:
        """Rounds to the nearest, or to what was fitted."""
        item, values = self._item, self.values()
        fitted = self._fitting.fit(item, values, self.steps) if self._fitting is not None else None
        if fitted is None:
            return grids.round_values(
                values, self.steps, self._rows, item.kind, emit, item.zero, bits=self._bits
            )
        # Adding zero turns the negative zeros, which are other bytes, into positive ones.
        made = (grids.shortened(fitted, self._bits) + 0.0).astype(item.kind.numpy)
        emit(0, made)
        wide = values.astype(np.float64)
        return Error(float(np.square(wide).sum()), float(np.square(wide - made).sum()))


class PrunedPayload(ConstantPayload):
    """Makes one constant with a share of its values zero.

    Args:
        item: The constant.
        share: Of its values, that is to be zero.
        block: So many neighbours along the last axis are zero together.
        fitting: Chooses them, and what the others become, where it knows what the constant meets; else the
            smallest go, and the others stay.
    """

    def __init__(self, item: Constant, share: float, block: int, fitting: Fitting | None) -> None:
        super().__init__(item)
        self._fitting = fitting
        self.share = share
        self.block = block

    def made(self) -> npt.NDArray[Any]:
        """Returns the new values, flat."""
        found: list[npt.NDArray[Any]] = []
        self.run(lambda _start, block: found.append(block))
        return found[0]

    def make(self, emit: Emit) -> Error:
        """Prunes; the error is that of what the constant gives, where that is known, else of its values."""
        item, values = self._item, self.values()
        fitted = None
        if self._fitting is not None:
            fitted = self._fitting.prune(item, values, self.share, self.block)
        if fitted is not None:
            made, error = fitted
            emit(0, made.astype(values.dtype))
            return error
        wide = values.astype(np.float64)
        stays = kept(np.square(wide).reshape(item.tensors[0].shape or (-1,)), self.share, self.block)
        left = np.where(stays.reshape(-1), values, values.dtype.type(0))
        emit(0, left)
        return Error(float(np.square(wide).sum()), float(np.square(wide - left).sum()))


def _decibels(gains: dict[str, float] | None) -> dict[str, float]:
    return {name: round(each, 2) for name, each in (gains or {}).items()}


@slotted(kw_only=True)
class WeightChange(JsonData):
    """A constant that is stored smaller now.

    Attributes:
        where: Name of the tensor.
        buffer: Position in the model of the buffer that held it.
        scheme: How its readers get at it: hybrid, lookup, dequantize, joined by ``+``.
        axis: Channel axis of its scales; None for one scale.
        channels: How many scales.
        saved: Bytes saved, with scales, operators and tensors counted. Negative for a tensor that shares
            its bytes with an earlier one.
        payload: Makes the new values, and knows how far they are off; one for tensors that share the bytes.
        shared: Whether its bytes are those of an earlier tensor.
        block: Elements that share a scale, where scales are by block; may be shorter than what was asked for.
        granularity: ``tensor``, ``channel`` or ``block``; ``none`` for a float type.
        encoding: How it is stored, as an encoding is written.
        renewed: Whether it was integers before, in a form that the oldest runtime does not know.
    """

    where: str = field(metadata=shown("tensor"))
    buffer: int = field(metadata=LEFT_OUT)
    dtype: str
    shape: tuple[int, ...]
    readers: tuple[str, ...]
    scheme: str
    encoding: str
    granularity: str
    axis: int | None
    block: int | None
    channels: int = field(metadata=shown("scales"))
    nbytes_before: int
    nbytes_after: int
    saved: int
    payload: Payload = field(metadata=LEFT_OUT)
    shared: bool
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
        return self.payload.error().snr

    @property
    def stored(self) -> str:
        """What its elements are now: the first word of the encoding."""
        return self.encoding.partition(":")[0]

    @property
    def silenced(self) -> tuple[int, ...]:
        """Channels of its operator that held numbers and are all zero now."""
        self.payload.error()
        return self.payload.silenced

    @property
    @computed(merged=True)
    def lost(self) -> dict[str, int]:
        """How many elements did not fit in float16, or how many channels of integers are all zero now."""
        return self.payload.lost()

    @property
    @computed("gains_db", made=_decibels, optional=True)
    def gains(self) -> dict[str, float] | None:
        """What each step of rounding won on the calibration inputs, in dB; None without calibration."""
        return self.payload.gains()
