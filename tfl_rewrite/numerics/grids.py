"""Rounds constants to grids that compress well, in blocks; the type and the size stay.

A grid is the multiples of a step of few significant bits: a float on it has low bytes of zero and few
different high ones, which is what deflate can use. Two things make such a grid lose less than its width
says. Where a kernel sums products over a row of a weight, the errors of the row are balanced: of the
elements that lie nearly in the middle between two levels, some take the other level, so that the errors of
each row (and of each kernel window of a convolution) add up to nearly zero. Inputs behind a ReLU have a mean
far from zero and neighbouring pixels are alike, so this takes away most of the error of the sums (data-free,
after Guo et al., SQuant, ICLR 2022). And zero stays exactly zero.

A constant of any size is gone through in blocks, so memory stays flat.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tfl_rewrite.numerics.symmetric import Channels, Error
from tfl_rewrite.options.frozen import frozen

BLOCK_ELEMENTS = 1 << 16
"""Elements per block, as far as whole rows allow."""

_COLUMN_BLOCK = 1 << 20

Array = npt.NDArray[Any]
Float64 = npt.NDArray[np.float64]


@frozen
class Kind:
    """What the numbers of one type can hold.

    Attributes:
        numpy: Their type.
        levels: Largest magnitude, in units of the grid's finest power of two, of what counts as rounded.
            Constants as they come from training have more significant bits.
        largest: Largest magnitude of a value.
        least: Exponent of the smallest positive value.
        bits: Bits of an exact integer multiple of a power of two.
    """

    numpy: str
    levels: int
    largest: float
    least: int
    bits: int


KINDS = {
    "FLOAT32": Kind("<f4", 1 << 20, float(np.finfo(np.float32).max), -149, 24),
    "FLOAT16": Kind("<f2", 1 << 11, 65504.0, -24, 11),
    "INT8": Kind("|i1", 1 << 8, 128.0, 0, 8),
}


@frozen
class Rows(Channels):
    """How a row-major constant falls into channels, and what a kernel sums: a row is all of one channel.

    Attributes:
        taps: Of a convolution's weight, positions of its window: ``inner`` is ``[taps, depth]``. 1 elsewhere.
        balanced: Whether kernels sum products over a row, so that its errors are worth balancing.
    """

    taps: int = 1
    balanced: bool = False

    @classmethod
    def flat(cls, elements: int) -> Rows:
        """One channel, nothing balanced."""
        return cls(1, 1, elements)

    @classmethod
    def along(cls, shape: Sequence[int], axis: int | None, *, taps: int = 1, balanced: bool = False) -> Rows:
        """Splits a shape at a channel axis; balanced where the elements of a channel lie so."""
        found = Channels.along(shape, axis)
        outer, inner = found.outer, found.inner
        return cls(outer, found.channels, inner, taps, balanced and 1 in (outer, inner))

    @property
    def each(self) -> int:
        """Elements per channel."""
        return self.outer * self.inner


@frozen
class Block:
    """Some rows, or parts of one where nothing is balanced.

    Attributes:
        start: Position of the first element.
        rows, columns: Of the block as it lies in the constant.
        stride: Elements from one of its rows to the next.
        channel: Channel of the first row, or of the first column.
        by_column: Whether columns are channels.
    """

    start: int
    rows: int
    columns: int
    stride: int
    channel: int
    by_column: bool


def blocks(rows: Rows) -> Iterator[Block]:
    """Yields blocks that cover a constant; each holds whole rows where they are balanced."""
    outer, count, inner = rows.outer, rows.channels, rows.inner
    if rows.elements == 0:
        return
    if inner == 1 and outer > 1:
        if rows.balanced:
            step = max(1, _COLUMN_BLOCK // outer)
            for channel in range(0, count, step):
                yield Block(channel, outer, min(step, count - channel), count, channel, True)
        else:
            step = max(1, BLOCK_ELEMENTS // count)
            for row in range(0, outer, step):
                yield Block(row * count, min(step, outer - row), count, count, 0, True)
        return
    for index in range(outer):
        base = index * count * inner
        if inner > BLOCK_ELEMENTS and not rows.balanced:
            for channel in range(count):
                for column in range(0, inner, BLOCK_ELEMENTS):
                    width = min(BLOCK_ELEMENTS, inner - column)
                    yield Block(base + channel * inner + column, 1, width, inner, channel, False)
            continue
        step = max(1, BLOCK_ELEMENTS // inner)
        for channel in range(0, count, step):
            yield Block(base + channel * inner, min(step, count - channel), inner, inner, channel, False)


def _cut(values: Array, block: Block) -> Array:
    """Returns a block as a view ``[channels, elements]`` (``[elements, channels]`` by column)."""
    if block.stride == block.columns:
        size = block.rows * block.columns
        return values[block.start : block.start + size].reshape(block.rows, block.columns)
    whole = values.reshape(-1, block.stride)
    return whole[:, block.start : block.start + block.columns]


@frozen
class Profile:
    """What a grid is chosen from, one number per channel.

    Attributes:
        low, high: Smallest and largest value.
        power: Sum of squares.
        grain: Exponent of the largest power of two that divides every value; large where all are zero.
        finite: Whether there is no NaN and no infinity.
    """

    low: Float64
    high: Float64
    power: Float64
    grain: npt.NDArray[np.int64]
    finite: bool

    @property
    def largest(self) -> Float64:
        """Largest magnitude."""
        return np.asarray(np.maximum(self.high, -self.low))

    def merged(self) -> Profile:
        """The same for the whole constant as one channel."""
        if not self.low.size:
            return self
        return Profile(
            self.low.min(keepdims=True),
            self.high.max(keepdims=True),
            self.power.sum(keepdims=True),
            self.grain.min(keepdims=True),
            self.finite,
        )


_NO_GRAIN = 1 << 20
_LEAST_RANGE = 1 / 64


def profile(values: Array, rows: Rows, zero: float = 0.0) -> Profile:
    """Goes through a constant once.

    Args:
        values: Flat, row-major; not copied.
        rows: How they fall into channels.
        zero: What stands for zero (the zero point of integers).
    """
    count = rows.channels
    low, high = np.full(count, np.inf), np.full(count, -np.inf)
    power, grain = np.zeros(count), np.full(count, _NO_GRAIN, np.int64)
    finite = True
    for block in blocks(rows):
        with np.errstate(invalid="ignore"):  # a signalling NaN
            part = _cut(values, block).astype(np.float64)
        if zero:
            part -= zero
        axis = 0 if block.by_column else 1
        if not np.isfinite(part).all():
            finite = False
            part = np.where(np.isfinite(part), part, 0.0)
        size = block.columns if block.by_column else block.rows
        target = slice(block.channel, block.channel + size)
        low[target] = np.minimum(low[target], part.min(axis=axis))
        high[target] = np.maximum(high[target], part.max(axis=axis))
        power[target] += np.square(part).sum(axis=axis)
        grain[target] = np.minimum(grain[target], _grain(part).min(axis=axis))
    return Profile(low, high, power, grain, finite)


def _grain(part: Float64) -> npt.NDArray[np.int64]:
    """Returns the exponent of the lowest bit that is set in each value."""
    mantissa, exponent = np.frexp(part)
    # Float32 values have 24 significant bits.
    whole = np.ldexp(mantissa, 24).astype(np.int64)
    lowest = whole & -whole
    _, places = np.frexp(lowest.astype(np.float64))
    found = exponent.astype(np.int64) - 24 + places - 1
    return np.asarray(np.where(whole == 0, _NO_GRAIN, found), np.int64)


def is_rounded(found: Profile, levels: float) -> bool:
    """Whether no channel has more than so many multiples of a power of two up to its largest value."""
    with np.errstate(over="ignore"):
        size = np.ldexp(found.largest, -np.minimum(found.grain, 1 << 12).astype(np.int32))
    return bool((size <= levels).all())


def has_steps(found: Profile, steps: int) -> bool:
    """Whether every channel already has a power-of-two grid of about so many steps or fewer."""
    with np.errstate(over="ignore"):
        size = np.ldexp(found.high - found.low, -np.minimum(found.grain, 1 << 12).astype(np.int32))
    # Both ends round outward by up to half a step, and balancing may move them by one more.
    return bool((size <= steps + 3).all())


def steps_of_range(found: Profile, steps: int, kind: Kind) -> Float64:
    """Returns per channel the least power of two of which at most ``steps`` fit into its range.

    Channels whose range is tiny beside the widest share the step that a 64th of the widest would get:
    training leaves channels of noise far below what any sum would show.
    """
    width = (found.high - found.low) / steps
    width = np.where(width > 0, np.maximum(width, width.max(initial=0.0) * _LEAST_RANGE), width)
    mantissa, exponent = np.frexp(width)
    exponent = exponent - (mantissa == 0.5)
    return _bounded(np.ldexp(1.0, np.where(width > 0, exponent, 0)), found, kind)


def spread_steps(found: Profile, step: float, each: int, spread: float, kind: Kind) -> Float64:
    """Returns a step per channel around a common one.

    Args:
        found: Per channel.
        step: For a channel of the (geometric) mean size; a power of two, or one and a half.
        each: Elements per channel.
        spread: 0: all channels alike. 1: in proportion to the channel's root mean square, to a power of two.
        kind: Of the numbers.
    """
    made = np.full(found.low.size, step)
    if spread:
        size = np.sqrt(found.power / max(1, each))
        live = size > size.max(initial=0.0) * 1e-6
        if live.any():
            ratio = np.log2(size[live])
            made[live] = step * np.exp2(np.rint(spread * (ratio - ratio.mean())))
    return _bounded(made, found, kind)


def finest(found: Profile, kind: Kind) -> float:
    """Returns the finest common step: with it a constant still counts as rounded."""
    largest = float(found.largest.max(initial=0.0))
    if largest == 0.0 or kind is KINDS["INT8"]:
        return 1.0
    _, exponent = math.frexp(largest)
    # An eighth of the levels: one and three quarters of a step are seven quarters.
    return math.ldexp(1.0, max(kind.least + 1, exponent - kind.levels.bit_length() + 4))


def _bounded(steps: Float64, found: Profile, kind: Kind) -> Float64:
    """Keeps steps so coarse that every multiple up to the largest value is a number of the type, exactly."""
    if kind is KINDS["INT8"]:
        return np.asarray(np.exp2(np.maximum(0.0, np.rint(np.log2(steps)))))
    _, exponent = np.frexp(found.largest)
    floor = np.ldexp(1.0, np.maximum(kind.least + 1, exponent - kind.levels.bit_length() + 4))
    return np.asarray(np.where(found.largest > 0, np.maximum(steps, floor), steps), np.float64)


def round_values(
    values: Array,
    steps: Float64,
    rows: Rows,
    kind: Kind,
    emit: Callable[[int, Array], None],
    zero: float = 0.0,
    *,
    bits: int = 24,
) -> Error:
    """Rounds a constant, block by block.

    Args:
        values: Flat, row-major, finite; not copied.
        steps: Float64 ``[channels]``, or one for all.
        rows: How they fall into channels, and whether errors are balanced.
        kind: Of the numbers.
        emit: Called with the position of a run of elements and their new values.
        zero: What stands for zero (the zero point of integers).
        bits: Significant bits that a value may keep, beside being on the grid of its step.

    Returns:
        The squared signal and error.
    """
    error = Error()
    numpy_type = np.dtype(kind.numpy)
    lowest, highest = -kind.largest - zero, kind.largest - zero
    if numpy_type.kind == "i":
        highest -= 1
    for block in blocks(rows):
        part = _cut(values, block).astype(np.float64)
        if zero:
            part -= zero
        if block.by_column:
            part = np.ascontiguousarray(part.T)
        size = part.shape[0]
        step = (steps if steps.size == 1 else steps[block.channel : block.channel + size])[:, None]
        ratio = part / step
        level = np.rint(ratio)
        if rows.balanced:
            _balance(ratio, level, rows.taps if not block.by_column else 1)
        np.clip(level, np.ceil(lowest / step), np.floor(highest / step), out=level)
        made = level * step
        if bits < kind.bits:
            made = shortened(made, bits)
        error.signal += float(np.vdot(part, part))
        part -= made
        error.noise += float(np.vdot(part, part))
        if zero:
            made += zero
        if block.by_column:
            made = made.T
        # Adding zero turns the negative zeros, which are other bytes, into positive ones.
        result = np.ascontiguousarray(made + 0.0, numpy_type)
        if block.stride == block.columns:
            emit(block.start, result.reshape(-1))
        else:
            for row in range(block.rows):
                emit(block.start + row * block.stride, result[row])
    return error


def shortened(values: Float64, bits: int) -> Float64:
    """Rounds values to so many significant bits."""
    mantissa, exponent = np.frexp(values)
    return np.asarray(np.ldexp(np.rint(np.ldexp(mantissa, bits)), exponent - bits), np.float64)


def _balance(ratio: Float64, level: Float64, taps: int) -> None:
    """Moves some levels up or down by one, so that errors add up to at most a half; in place.

    Args:
        ratio: ``[rows, elements]``, the values in steps.
        level: The same, rounded to nearest.
        taps: Over the windows of ``elements = [taps, depth]`` first, then over the row.
    """
    count, width = ratio.shape
    if taps > 1:
        depth = width // taps
        windows = ratio.reshape(count, taps, depth).transpose(0, 2, 1).reshape(count * depth, taps)
        rounded = level.reshape(count, taps, depth).transpose(0, 2, 1).reshape(count * depth, taps)
        _move(windows - rounded, rounded)
        left = windows - rounded
        # What is left of a window is at most a half; the windows with most of it give one more.
        sums = left.sum(axis=1).reshape(count, depth)
        moves = np.zeros_like(sums)
        _move(sums, moves)
        row, column = np.nonzero(moves)
        flat = row * depth + column
        sign = moves[row, column]
        place = np.argmax(left[flat] * sign[:, None], axis=1)
        rounded[flat, place] += sign
        level[:] = rounded.reshape(count, depth, taps).transpose(0, 2, 1).reshape(count, width)
        return
    _move(ratio - level, level)


def _move(error: Float64, level: Float64) -> None:
    """Adds one to the levels with the largest errors of a row, or takes one from those with the smallest."""
    total = np.rint(error.sum(axis=1)).astype(np.int64)
    busy = np.nonzero(total)[0]
    if busy.size == 0:
        return
    part = error[busy]
    order = np.argsort(part, axis=1, kind="stable")
    place = np.arange(part.shape[1])[None, :]
    wanted = total[busy][:, None]
    move = np.where(place >= part.shape[1] - wanted, 1.0, 0.0) * (wanted > 0)
    move -= np.where(place < -wanted, 1.0, 0.0) * (wanted < 0)
    change = np.empty_like(part)
    np.put_along_axis(change, order, move, axis=1)
    level[busy] += change


EXACT_NBYTES = 8 << 20
"""What is larger is estimated."""

_SAMPLED_NBYTES = 4 << 20
_PIECE = 1 << 16
_WINDOW = 1 << 15
_RAW = -15


def deflated(data: bytes | bytearray | memoryview, *, level: int = 9) -> int:
    """Returns how many bytes a store or a server makes of some, with zlib."""
    packer, view, step = zlib.compressobj(level), memoryview(data).cast("B"), 1 << 20
    pieces = (view[start : start + step] for start in range(0, len(view), step))
    return sum(len(packer.compress(piece)) for piece in pieces) + len(packer.flush())


def estimated(data: bytes | bytearray | memoryview, nbytes: int = _SAMPLED_NBYTES) -> int:
    """Returns about the deflated size.

    On rounded floats zlib finds matches everywhere and chooses among thousands, at well under a megabyte a
    second. So of large data pieces are compressed, each with what lies before it as far as deflate looks
    back.

    Args:
        data: What would be compressed; no more than that is not sampled.
        nbytes: How much of it is compressed, in pieces of 64 KiB that lie evenly.
    """
    view = memoryview(data).cast("B")
    count = max(1, nbytes // _PIECE)
    if len(view) <= count * _PIECE:
        return deflated(view)
    room = len(view) - _PIECE
    starts = [room * number // max(1, count - 1) for number in range(count)]
    made = 0
    for start in starts:
        packer = zlib.compressobj(9, zlib.DEFLATED, _RAW, zdict=bytes(view[max(0, start - _WINDOW) : start]))
        made += len(packer.compress(view[start : start + _PIECE])) + len(packer.flush())
    return round(made * len(view) / (count * _PIECE))


def deflated_or_estimated(data: memoryview) -> int:
    """Returns the deflated size, estimated where there is more than :data:`EXACT_NBYTES`."""
    return deflated(data) if len(data) <= EXACT_NBYTES else estimated(data)
