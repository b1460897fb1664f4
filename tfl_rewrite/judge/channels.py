"""Sums over the samples for each channel of an output, whatever axis counts them."""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tfl_rewrite.interpreter.interface import Array
from tfl_rewrite.options.frozen import slotted

Float64 = npt.NDArray[np.float64]

MOST_CLASSES = 100_000
"""A longer last axis is no choice among classes, nor are there so many channels."""
PIECE = 1 << 16
"""Elements that are looked at at a time, in float64: what is made of them stays in the cache."""
_MOVING = 1 << 20
"""Elements of an output that tell whether it moves."""
_SHORT = 32
"""Of shorter rows numpy sums columns faster: of two channels in a tenth of the time, of 32 in the same."""


@slotted
class ChannelSums:
    """Sums over samples and positions for each channel of one axis.

    Values are counted from a pivot, so that a large common offset does not eat the digits of what varies.

    Attributes:
        axis: The axis of the output that counts the channels.
        pivot: Mean of the first piece of a sample; ``[channels]``.
        sums: ``[8, channels]``: of the first to fourth power of the original's values, of the rewritten
            file's values and their squares, of the differences and their squares.
        count: Values a channel.
    """

    axis: int
    pivot: Float64
    sums: Float64
    count: int = 0

    @classmethod
    def of(cls, axis: int, rows: Float64) -> ChannelSums:
        """Empty sums, with the pivot from ``[positions, channels]``."""
        return cls(axis, rows.mean(axis=0), np.zeros((8, rows.shape[1])))

    def add(self, first: Float64, second: Float64) -> None:
        """Takes in ``[positions, channels]`` of both."""
        one, two, axis = long_rows(first, second)
        pivot = self.pivot[:, None] if axis == 0 else self.pivot
        # One sum a channel, so over the other axis.
        positions, dots = 1 - axis, "ij,ij->i" if axis == 0 else "ij,ij->j"
        error = two - one
        one = one - pivot
        two = two - pivot
        square = one * one
        self.count += len(first)
        pairs = (one, square), (square, square), (two, two), (error, error)
        third, fourth, after, noise = (np.einsum(dots, *pair) for pair in pairs)
        sums = (each.sum(axis=positions) for each in (one, square, two, error))
        mean, squares, mean_after, off = sums
        self.sums += [mean, squares, third, fourth, mean_after, after, off, noise]

    def joined(self, other: ChannelSums) -> ChannelSums | None:
        """The sums over the samples of both; None where the channels are others."""
        if self.axis != other.axis or self.pivot.shape != other.pivot.shape:
            return None
        moved = other._from(self.pivot)
        return ChannelSums(self.axis, self.pivot, self.sums + moved, self.count + other.count)

    def _from(self, pivot: Float64) -> Float64:
        """The same sums counted from another pivot (binomial theorem)."""
        by, count = self.pivot - pivot, self.count
        one, two, three, four, after, squares, *error = self.sums
        return np.stack(
            [
                one + count * by,
                two + 2 * by * one + count * by**2,
                three + 3 * by * two + 3 * by**2 * one + count * by**3,
                four + 4 * by * three + 6 * by**2 * two + 4 * by**3 * one + count * by**4,
                after + count * by,
                squares + 2 * by * after + count * by**2,
                *error,
            ]
        )

    @property
    def signal(self) -> Float64:
        """Variation of the original: sum of squares about the mean over samples and positions."""
        return self._about_mean(0)

    @property
    def signal_after(self) -> Float64:
        """Variation of the rewritten file."""
        return self._about_mean(4)

    @property
    def noise(self) -> Float64:
        """Variation of the differences."""
        return self._about_mean(6)

    def _about_mean(self, row: int) -> Float64:
        with np.errstate(over="ignore", invalid="ignore"):
            about = self.sums[row + 1] - self.sums[row] ** 2 / max(self.count, 1)
        return np.asarray(np.maximum(about, 0.0))

    @property
    def spread(self) -> Float64:
        """How many values share in the variation of the original: 1 where a single one makes it.

        The participation ratio, (sum of squares)^2 over the sum of fourth powers about the mean.
        """
        count = max(self.count, 1)
        one, two, three, four = self.sums[:4]
        mean = one / count
        fourth = four - 4 * mean * three + 6 * mean**2 * two - 4 * mean**3 * one + count * mean**4
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = self.signal**2 / fourth
        return np.where(np.isfinite(ratio), ratio, 0.0)


class Movement:
    """Whether an output of the original is the same for all samples.

    Attributes:
        samples: How many there were.
        span: Largest distance of any value from that of the first sample; infinite where the shapes differ.
        inner: Largest distance between two values of one sample.
    """

    def __init__(self) -> None:
        self.samples = 0
        self.span = self.inner = 0.0
        self._shape: tuple[int, ...] = ()
        self._first: Array | None = None

    def add(self, values: Array) -> None:
        """Takes in one sample; of large outputs some values, evenly spread, tell enough."""
        self.samples += 1
        kept = np.array(values.reshape(-1)[:: max(1, values.size // _MOVING)])
        forget(values)
        if self._first is None:
            self._first, self._shape = kept, values.shape
        elif values.shape != self._shape:
            self.span = math.inf
        else:
            self.span = max(self.span, _distance(self._first, kept))
        if kept.size and kept.dtype.kind in "biufc":
            finite = kept[np.isfinite(kept)]
            self.inner = max(self.inner, _distance(finite.min(keepdims=True) if finite.size else kept, kept))

    def joined(self, other: Movement) -> Movement:
        """What the samples of both show."""
        both = Movement()
        both._first, both._shape = self._first, self._shape
        both.samples = self.samples + other.samples
        both.span, both.inner = max(self.span, other.span), max(self.inner, other.inner)
        if self._first is not None and other._first is not None:
            apart = math.inf if self._shape != other._shape else _distance(self._first, other._first)
            both.span = max(both.span, apart)
        return both


def _distance(one: Array, other: Array) -> float:
    """Largest absolute difference of flat values; infinite where that is no number and they are not equal."""
    if one.dtype.kind not in "biufc":
        return 0.0 if np.array_equal(one, other) else math.inf
    wide = np.complex128 if one.dtype.kind == "c" else np.float64
    found = 0.0
    for start in range(0, other.size, PIECE):
        # One value is that of all places.
        first = one if one.size == 1 else one[start : start + PIECE]
        second = other[start : start + PIECE]
        with np.errstate(invalid="ignore", over="ignore"):
            apart = np.abs(first.astype(wide) - second.astype(wide))
        largest = float(apart.max())
        if not math.isfinite(largest):
            unlike = ~np.isfinite(apart)
            same = (first == second) | (np.isnan(first) & np.isnan(second))
            if not same[unlike].all():
                return math.inf
            largest = float(apart[~unlike].max(initial=0.0))
        found = max(found, largest)
    return found


class Stillness:
    """Which slices of an output along each axis are one constant after the rewrite and were not before.

    Layouts are not known: a channel may be any axis (NCHW, boxes by detections, steps of a sequence), and one
    that is strong beside others hides behind none of them here. Costs little: a slice that has shown two
    values after the rewrite is out, as most are with the first sample.

    Attributes:
        axes: By axis, what is known of its slices; None where their number is another from sample to sample.
    """

    def __init__(self) -> None:
        self.axes: dict[int, _Slices | None] = {}

    def add(self, before: Array, after: Array) -> None:
        """Takes in one sample, neither of it empty."""
        if not before.ndim:
            before, after = before.reshape(1), after.reshape(1)
        shape = before.shape
        axes = [axis for axis in _slicing_axes(shape) if self._expects(axis, shape[axis])]
        # Of a large output parts at a time, along its first axis that has any.
        along = next((axis for axis, size in enumerate(shape) if size > 1), 0)
        step = max(1, PIECE // (before.size // shape[along]))
        for start in range(0, shape[along], step):
            part = (slice(None),) * along + (slice(start, start + step),)
            for axis in axes:
                self._add(axis, before[part], after[part], start if axis == along else 0)
            forget(before)
            forget(after)

    def _expects(self, axis: int, size: int) -> bool:
        """Whether an axis still counts the same slices, any of which is still."""
        known = self.axes.setdefault(axis, _Slices.none_yet(size))
        if known is None or known.still.size != size:
            self.axes[axis] = None
            return False
        return bool(known.still.any())

    def _add(self, axis: int, before: Array, after: Array, start: int) -> None:
        known = self.axes[axis]
        if known is None:
            return
        size = before.shape[axis]
        found = np.flatnonzero(known.still[start : start + size])
        if not found.size:
            return
        if found.size < size:
            before, after = before.take(found, axis=axis), after.take(found, axis=axis)
        known.add(found + start, before, after, tuple(item for item in range(before.ndim) if item != axis))

    def joined(self, other: Stillness) -> Stillness:
        """What the samples of both show."""
        both = Stillness()
        for axis in self.axes.keys() & other.axes.keys():
            one, two = self.axes[axis], other.axes[axis]
            fits = one is not None and two is not None and one.still.size == two.still.size
            both.axes[axis] = one.joined(two) if fits and one is not None and two is not None else None
        return both


@slotted
class _Slices:
    """Of each slice along one axis.

    Attributes:
        still: It is one constant after the rewrite, so far.
        low, high: Least and largest value before.
        rest: The value after.
        count: Values so far.
        moved: Values before that are another than the one after.
    """

    still: npt.NDArray[np.bool_]
    low: Float64
    high: Float64
    rest: Float64
    count: npt.NDArray[np.int64]
    moved: npt.NDArray[np.int64]

    @classmethod
    def none_yet(cls, size: int) -> _Slices:
        return cls(
            np.ones(size, np.bool_),
            np.full(size, np.inf),
            np.full(size, -np.inf),
            np.full(size, np.nan),
            np.zeros(size, np.int64),
            np.zeros(size, np.int64),
        )

    @property
    def span(self) -> Float64:
        """From the least to the largest value before."""
        with np.errstate(invalid="ignore"):
            return np.where(self.high > self.low, self.high - self.low, 0.0)

    def add(self, where: npt.NDArray[np.intp], one: Array, two: Array, over: tuple[int, ...]) -> None:
        """Takes in the slices ``where`` of both files, of which all axes ``over`` are gone through."""
        least, most = two.min(axis=over), two.max(axis=over)
        value = least.astype(np.float64)
        fresh = np.isnan(self.rest[where])
        same = (least == most) & (fresh | (self.rest[where] == value))
        self.still[where] = same
        kept = where[same]
        if not kept.size:
            return
        self.rest[kept] = value[same]
        if not same.all():
            axis = next(item for item in range(one.ndim) if item not in over)
            one, two = one.compress(same, axis=axis), two.compress(same, axis=axis)
        self.low[kept] = np.minimum(self.low[kept], one.min(axis=over))
        self.high[kept] = np.maximum(self.high[kept], one.max(axis=over))
        self.count[kept] += one.size // kept.size
        self.moved[kept] += np.count_nonzero(one != two, axis=over)

    def joined(self, other: _Slices) -> _Slices:
        return _Slices(
            self.still & other.still & (self.rest == other.rest),
            np.minimum(self.low, other.low),
            np.maximum(self.high, other.high),
            self.rest,
            self.count + other.count,
            self.moved + other.moved,
        )


def _slicing_axes(shape: Sequence[int]) -> tuple[int, ...]:
    """The last axis whatever its size, and all others of several slices."""
    last = len(shape) - 1
    others = (axis for axis in range(last) if shape[axis] > 1)
    return tuple(axis for axis in (*others, last) if shape[axis] <= MOST_CLASSES)


def long_rows(one: Float64, other: Float64) -> tuple[Float64, Float64, int]:
    """Returns ``[positions, channels]`` of both as they are summed fastest, and the axis of the channels."""
    if one.shape[1] >= min(_SHORT, len(one)):
        return one, other, 1
    return np.ascontiguousarray(one.T), np.ascontiguousarray(other.T), 0


def channel_axes(shape: Sequence[int]) -> tuple[int, ...]:
    """Which axes of an output count channels: the last, and axis 1 where all behind it are longer (NCHW)."""
    axes = [len(shape) - 1] if shape else []
    if len(shape) >= 3 and 2 <= shape[1] < min(shape[2:]):
        axes.append(1)
    return tuple(axis for axis in axes if shape[axis] <= MOST_CLASSES)


MOST_COMPARED = 1 << 16
"""Elements of an output in a call; of more, those at some places tell enough. Comparing masks of 512 x 512
took five times as long as running their model."""


def thinned(array: Array) -> Array:
    """Returns the values of an output at some of its places, with all channels; a view."""
    channels = channel_axes(array.shape)
    while array.size > MOST_COMPARED:
        sizes = [0 if axis in channels else size for axis, size in enumerate(array.shape)]
        longest = max(range(array.ndim), key=sizes.__getitem__)
        if sizes[longest] < 3:
            break
        # Every third: patterns of what is enlarged repeat after two or four.
        array = array[(slice(None),) * longest + (slice(None, None, 3),)]
    return array


def pieces(before: Array, after: Array) -> Iterator[tuple[Array, Array]]:
    """Both as ``[rows, last axis]``, so many rows at a time; of rows that are longer than that, parts."""
    last = before.shape[-1] if before.ndim else 1
    if before.size <= PIECE:
        rows = before.size // last if last else 0
        yield before.reshape(rows, last), after.reshape(rows, last)
        return
    whole = last <= max(PIECE, MOST_CLASSES)
    if whole:
        one, two, step = before.reshape(-1, last), after.reshape(-1, last), max(1, PIECE // last)
    else:
        one, two, step = before.reshape(1, -1), after.reshape(1, -1), PIECE
    yield from _forgetting(one, two, step, 0 if whole else 1, before, after)


def channel_pieces(before: Array, after: Array, axis: int) -> Iterator[tuple[Array, Array]]:
    """Both as ``[positions, channels]`` of an axis, so many positions at a time."""
    channels = before.shape[axis]
    outer = math.prod(before.shape[:axis])
    ones, twos = before.reshape(outer, channels, -1), after.reshape(outer, channels, -1)
    for one, two in zip(ones, twos, strict=True):
        for first, second in _forgetting(one, two, max(1, PIECE // channels), 1, before, after):
            yield first.T, second.T


def _forgetting(
    one: Array, two: Array, step: int, axis: int, *mapped: Array
) -> Iterator[tuple[Array, Array]]:
    """Slices of both along an axis; what has been read of mapped files counts as memory no longer."""
    for start in range(0, one.shape[axis], step):
        where = (slice(None),) * axis + (slice(start, start + step),)
        yield one[where], two[where]
        for values in mapped:
            forget(values)


def forget(values: Array) -> None:
    """Lets go of what has been read of a mapped file: it counts as memory no longer."""
    held: Any = values
    while held is not None and not isinstance(held, mmap.mmap):
        held = getattr(held, "base", None)
    if held is not None:
        held.madvise(mmap.MADV_DONTNEED)
