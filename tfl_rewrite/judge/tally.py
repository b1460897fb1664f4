"""Sums over the samples of one output, before and after: what every rule of `compare` looks at."""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from tfl_rewrite.interpreter.interface import Array, TensorFacts

Float64 = npt.NDArray[np.float64]

MOST_CLASSES = 100_000
"""A longer last axis is no choice among classes, nor are there so many channels."""
PIECE = 1 << 20
"""Elements that are looked at at a time, in float64: an output may be larger than what memory should hold."""


@dataclass(slots=True)
class ChannelSums:
    """Sums over samples and positions for each channel of one axis.

    Values are counted from a pivot, so that a large common offset does not eat the digits of what varies.

    Attributes:
        axis: The axis of the output that counts the channels.
        pivot: Mean of the first piece of a sample; ``[channels]``, as all that follow.
        count: Values a channel.
        powers: Sums of the first to fourth power of the original's values.
        after: Sum, and sum of squares, of the rewritten file's values.
        error: Sum, and sum of squares, of the differences.
    """

    axis: int
    pivot: Float64
    count: int = 0
    powers: list[Float64] = field(default_factory=list)
    after: list[Float64] = field(default_factory=list)
    error: list[Float64] = field(default_factory=list)

    @classmethod
    def of(cls, axis: int, rows: Float64) -> ChannelSums:
        """Empty sums, with the pivot from ``[positions, channels]``."""
        zero = np.zeros(rows.shape[1])
        return cls(axis, rows.mean(axis=0), 0, [zero] * 4, [zero] * 2, [zero] * 2)

    def add(self, first: Float64, second: Float64) -> None:
        """Takes in ``[positions, channels]`` of both."""
        error = second - first
        first = first - self.pivot
        second = second - self.pivot
        square = first * first
        self.count += len(first)
        sums = [first.sum(axis=0), square.sum(axis=0), _dots(first, square), _dots(square, square)]
        self.powers = [old + new for old, new in zip(self.powers, sums, strict=True)]
        self.after = [self.after[0] + second.sum(axis=0), self.after[1] + _dots(second, second)]
        self.error = [self.error[0] + error.sum(axis=0), self.error[1] + _dots(error, error)]

    def joined(self, other: ChannelSums) -> ChannelSums | None:
        """The sums over the samples of both; None where the channels are others."""
        if self.axis != other.axis or self.pivot.shape != other.pivot.shape:
            return None
        moved = other._from(self.pivot)
        return ChannelSums(
            self.axis,
            self.pivot,
            self.count + other.count,
            [one + two for one, two in zip(self.powers, moved.powers, strict=True)],
            [one + two for one, two in zip(self.after, moved.after, strict=True)],
            [one + two for one, two in zip(self.error, moved.error, strict=True)],
        )

    def _from(self, pivot: Float64) -> ChannelSums:
        """The same sums counted from another pivot (binomial theorem)."""
        by, count = self.pivot - pivot, self.count
        one, two, three, four = self.powers
        powers = [
            one + count * by,
            two + 2 * by * one + count * by**2,
            three + 3 * by * two + 3 * by**2 * one + count * by**3,
            four + 4 * by * three + 6 * by**2 * two + 4 * by**3 * one + count * by**4,
        ]
        after = [self.after[0] + count * by, self.after[1] + 2 * by * self.after[0] + count * by**2]
        return ChannelSums(self.axis, pivot, count, powers, after, self.error)

    @property
    def signal(self) -> Float64:
        """Variation of the original: sum of squares about the mean over samples and positions."""
        return self._about_mean(self.powers[0], self.powers[1])

    @property
    def signal_after(self) -> Float64:
        """Variation of the rewritten file."""
        return self._about_mean(*self.after)

    @property
    def noise(self) -> Float64:
        """Variation of the differences."""
        return self._about_mean(*self.error)

    def _about_mean(self, total: Float64, squares: Float64) -> Float64:
        with np.errstate(over="ignore", invalid="ignore"):
            return np.maximum(squares - total**2 / max(self.count, 1), 0.0)

    @property
    def spread(self) -> Float64:
        """How many values share in the variation of the original: 1 where a single one makes it.

        The participation ratio, (sum of squares)^2 over the sum of fourth powers about the mean.
        """
        count = max(self.count, 1)
        mean = self.powers[0] / count
        one, two, three, four = self.powers
        fourth = four - 4 * mean * three + 6 * mean**2 * two - 4 * mean**3 * one + count * mean**4
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = self.signal**2 / fourth
        return np.where(np.isfinite(ratio), ratio, 0.0)


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
            _forget(before)
            _forget(after)

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


@dataclass(slots=True)
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


def _dots(one: Float64, other: Float64) -> Float64:
    return np.asarray(np.einsum("ij,ij->j", one, other))


class RowSums:
    """Which element of each row of the last axis is the largest, before and after.

    Attributes:
        classes: How many elements a row has.
        rows: How many rows were compared.
        agreeing: Rows in which all that is largest after was among the largest before. A tie that the
            original did not have is no agreement.
        margins: For each other row, by how much less than its largest the original gives what is largest
            after (of several, the one that it gives least).
        spread: Sum of squares of the original about the mean of each row; ``values`` of them.
        are_shares: All rows of the original are probabilities: none below 0, and they sum up to 1.

    Args:
        unit: What values are counted in.
    """

    def __init__(self, unit: float = 1.0) -> None:
        self.unit = unit
        self.are_shares = True
        self.rows = self.agreeing = self.values = self.classes = 0
        self.spread = 0.0
        self.margins: list[Float64] = []

    def add(self, before: Float64, after: Float64) -> None:
        """Takes in ``[rows, classes]``."""
        finite = np.isfinite(before).all(axis=-1) & np.isfinite(after).all(axis=-1)
        if not finite.all():
            before, after = before[finite], after[finite]
        if not before.size:
            return
        chosen = after == after.max(axis=-1, keepdims=True)
        margin = before.max(axis=-1) - np.where(chosen, before, np.inf).min(axis=-1)
        off = before - before.mean(axis=-1, keepdims=True)
        with np.errstate(over="ignore", invalid="ignore"):
            apart = np.abs(before.sum(axis=-1) * self.unit - 1.0)
        self.are_shares = self.are_shares and bool(before.min() >= 0 and apart.max() < _SUM_SLACK)
        self.classes = before.shape[-1]
        self.rows += len(margin)
        self.agreeing += int(np.count_nonzero(margin == 0))
        self.margins.append(margin[margin > 0])
        with np.errstate(over="ignore"):
            self.spread += float(np.einsum("ij,ij->", off, off))
        self.values += before.size

    def joined(self, other: RowSums) -> RowSums:
        """The sums over the samples of both."""
        both = RowSums(self.unit)
        both.are_shares = self.are_shares and other.are_shares
        for name in ("rows", "agreeing", "values", "spread"):
            setattr(both, name, getattr(self, name) + getattr(other, name))
        both.classes = max(self.classes, other.classes)
        both.margins = self.margins + other.margins
        return both

    @property
    def agreement(self) -> float | None:
        """Share of rows that agree; None without rows."""
        return self.agreeing / self.rows if self.rows else None

    def flips(self, near: float) -> int:
        """Rows that disagree by more than ``near``, in the unit of the values."""
        return sum(int(np.count_nonzero(margin > near)) for margin in self.margins)


_SUM_SLACK = 0.02
"""Of 1: what rounding to 8 bits may make of the sum of a row of probabilities."""


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
        """Takes in one sample."""
        self.samples += 1
        # Of large outputs some values, evenly spread, tell enough.
        kept = np.array(values.reshape(-1)[:: max(1, values.size // _MOST_KEPT)])
        _forget(values)
        if self._first is None:
            self._first, self._shape = kept, values.shape
        elif values.shape != self._shape:
            self.span = math.inf
        else:
            self.span = max(self.span, _distance(self._first, kept))
        if kept.size and kept.dtype.kind in "biufc":
            lowest = np.full(kept.shape, kept[np.isfinite(kept)].min()) if np.isfinite(kept).any() else kept
            self.inner = max(self.inner, _distance(lowest, kept))

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


_MOST_KEPT = 1 << 20


def _distance(one: Array, other: Array) -> float:
    """Largest absolute difference; infinite where that is not a number and the values are not equal."""
    if one.dtype.kind not in "biufc":
        return 0.0 if np.array_equal(one, other) else math.inf
    if one.size == 0:
        return 0.0
    wide = np.complex128 if one.dtype.kind == "c" else np.float64
    with np.errstate(invalid="ignore", over="ignore"):
        apart = np.abs(one.astype(wide) - other.astype(wide))
    unlike = ~np.isfinite(apart)
    if unlike.any():
        same = (one == other) | (np.isnan(one) & np.isnan(other))
        if not same[unlike].all():
            return math.inf
        apart = apart[~unlike]
    return float(apart.max()) if apart.size else 0.0


class OutputTally:
    """Sums over the samples of one output.

    Floats are compared in float64, integers as integers (a difference of 1 at 2**53 is a difference),
    quantized outputs as integers less their zero point, strings by equality.

    Args:
        facts: The output.
        signature: Key of its signature; None for the primary subgraph.
        position: Of the output in its entry point.
        fixed: The entry point has no inputs, so that its outputs cannot differ from sample to sample.
    """

    def __init__(
        self, facts: TensorFacts, *, signature: str | None, position: int, fixed: bool = False
    ) -> None:
        self.facts, self.signature, self.position, self.fixed = facts, signature, position, fixed
        self.problems: list[str] = []
        self.samples = self.elements = self.equal = self.nonfinite = self.all_nan = 0
        self.finite = self.max_integer_error = 0
        self.same_bytes = True
        self.power = self.noise = self.dot = self.power_after = self.total = 0.0
        self.energies: list[tuple[float, float]] = []
        self._summed = False
        self.peak = self.max_error = 0.0
        self.movement = Movement()
        self.rows = RowSums(max(facts.scales) if facts.is_quantized else 1.0)
        self.channels: dict[int, ChannelSums | None] = {}
        self.stillness = Stillness()

    def joined(self, other: OutputTally) -> OutputTally:
        """The sums over the samples of both."""
        both = OutputTally(
            self.facts, signature=self.signature, position=self.position, fixed=self.fixed and other.fixed
        )
        both.problems = list(dict.fromkeys([*self.problems, *other.problems]))
        for name in (
            *("samples", "elements", "equal", "nonfinite", "all_nan", "finite"),
            *("power", "noise", "dot", "power_after", "total"),
        ):
            setattr(both, name, getattr(self, name) + getattr(other, name))
        for name in ("max_integer_error", "peak", "max_error"):
            setattr(both, name, max(getattr(self, name), getattr(other, name)))
        both.same_bytes = self.same_bytes and other.same_bytes
        both.energies = self.energies + other.energies
        both.movement = self.movement.joined(other.movement)
        both.rows = self.rows.joined(other.rows)
        both.stillness = self.stillness.joined(other.stillness)
        for axis in self.channels.keys() & other.channels.keys():
            one, two = self.channels[axis], other.channels[axis]
            both.channels[axis] = None if one is None or two is None else one.joined(two)
        return both

    @property
    def bit_exact(self) -> bool:
        """Whether all bytes of all samples are equal."""
        return self.same_bytes and not self.problems

    @property
    def has_distance(self) -> bool:
        """Whether errors are counted as distances between real numbers."""
        return self.facts.is_quantized or not self.is_countable

    @property
    def is_countable(self) -> bool:
        """Whether elements are things to be counted: class numbers, flags, strings."""
        named = self.facts.dtype in ("bool", "string") or self.facts.dtype.startswith(("int", "uint"))
        return named and not self.facts.is_quantized

    def add(self, before: Array, after: Array) -> None:
        """Takes in one sample."""
        self.samples += 1
        if before.shape != after.shape or before.dtype != after.dtype:
            self.same_bytes = False
            self._problem(
                f"is {after.dtype.name}{list(after.shape)} instead of {before.dtype.name}{list(before.shape)}"
            )
            return
        self.elements += before.size
        self.movement.add(before)
        if before.size and before.dtype.kind in "biuf":
            self.stillness.add(before, after)
        if before.dtype.kind == "O":
            self._count_equal(before == after)
        elif before.dtype.kind in "biu":
            self._add_integers(before, after)
        elif before.dtype.kind in "fc":
            self._add_floats(before, after)
        else:
            same = before.tobytes() == after.tobytes()
            self._count_equal(np.full(before.shape, same))

    def unreadable(self, before: str | None, after: str | None) -> None:
        """Takes in a sample whose output could not be read on one side; both sides need not be told."""
        self.same_bytes = False
        if before is None:
            self._problem(f"cannot be read after the rewrite: {after}")
        else:
            self._problem(f"can be read only after the rewrite; before: {before}")

    def _problem(self, text: str) -> None:
        if text not in self.problems:
            self.problems.append(text)

    def _count_equal(self, equal: Array) -> None:
        count = int(np.count_nonzero(equal))
        self.equal += count
        self.same_bytes &= count == equal.size

    def _add_integers(self, before: Array, after: Array) -> None:
        for one, two in _pieces(before, after):
            self._count_equal(one == two)
            if one.size and one.dtype.kind != "b":
                high, low = np.maximum(one, two), np.minimum(one, two)
                # Unsigned subtraction wraps to the true distance, which the signed type may not hold.
                distance = high.astype(np.uint64) - low.astype(np.uint64)
                self.max_integer_error = max(self.max_integer_error, int(distance.max()))
        if before.dtype.kind == "b":
            # A flag is a channel, too.
            for one, two in _pieces(before, after):
                if one.size and one.shape[-1] <= MOST_CLASSES:
                    self._add_channels(
                        max(0, before.ndim - 1), one.astype(np.float64), two.astype(np.float64)
                    )
            return
        if not self.facts.is_quantized or not before.size:
            return
        if len(self.facts.zero_points) > 1:
            zero = _zero_points(self.facts, before.ndim)
            self._add_values(before.astype(np.float64) - zero, after.astype(np.float64) - zero)
        else:
            self._add_values(before, after, float(sum(self.facts.zero_points)))

    def _add_floats(self, before: Array, after: Array) -> None:
        before, after = np.ascontiguousarray(before), np.ascontiguousarray(after)
        if before.dtype.kind == "c":
            part = np.dtype(f"f{before.dtype.itemsize // 2}")
            before, after = before.reshape(-1).view(part), after.reshape(-1).view(part)
        all_finite, all_nan = True, before.size > 0
        for one, two in _pieces(before, after):
            if one.tobytes() != two.tobytes():
                self.same_bytes = False
            all_nan = all_nan and bool(np.isnan(one).all())
            all_finite = all_finite and bool(np.isfinite(one).all() and np.isfinite(two).all())
        self.all_nan += all_nan
        real = self.facts.dtype.startswith(("float", "bfloat"))
        if real and all_finite:
            self._add_values(before, after)
            return
        energy = [0.0, 0.0]
        for one, two in _pieces(before, after):
            finite = np.isfinite(one) & np.isfinite(two)
            same = (np.isnan(one) & np.isnan(two)) | (np.isinf(one) & (one == two))
            self.nonfinite += int(np.count_nonzero(~finite & ~same))
            self._add_sums(one[finite].astype(np.float64), two[finite].astype(np.float64), energy)
            if real:
                self._add_rows(one.astype(np.float64), two.astype(np.float64), before.shape)
        self._end_sample(energy)

    def _add_values(self, before: Array, after: Array, zero: float = 0.0) -> None:
        """Takes in one sample, all of it finite, whose values count from ``zero``."""
        energy = [0.0, 0.0]
        axes = channel_axes(before.shape)
        for one, two in _pieces(before, after):
            first, second = one.astype(np.float64) - zero, two.astype(np.float64) - zero
            self._add_sums(first.reshape(-1), second.reshape(-1), energy)
            self._add_rows(first, second, before.shape)
            if before.ndim - 1 in axes and one.size:
                self._add_channels(before.ndim - 1, first, second)
        for axis in axes:
            if axis == before.ndim - 1:
                continue
            for one, two in _channel_pieces(before, after, axis):
                self._add_channels(axis, one.astype(np.float64) - zero, two.astype(np.float64) - zero)
        self._end_sample(energy)

    def _add_sums(self, before: Float64, after: Float64, energy: list[float]) -> None:
        if before.size == 0:
            return
        error = before - after
        self.finite += before.size
        # float64 overflows past 1e154 squared; the ratio is then taken of infinities and judged as unequal.
        with np.errstate(over="ignore", invalid="ignore"):
            power, noise = float(np.dot(before, before)), float(np.dot(error, error))
            self.power += power
            self.power_after += float(np.dot(after, after))
            self.dot += float(np.dot(before, after))
            self.noise += noise
            energy[0] += power
            energy[1] += noise
            self.total += float(before.sum())
        self.peak = max(self.peak, float(np.abs(before).max()))
        self.max_error = max(self.max_error, float(np.abs(error).max()))
        self._summed = True

    def _end_sample(self, energy: list[float]) -> None:
        if self._summed:
            self.energies.append((energy[0], energy[1]))
        self._summed = False

    def _add_rows(self, before: Float64, after: Float64, shape: Sequence[int]) -> None:
        classes = shape[-1] if shape else 0
        if before.size and 2 <= classes <= MOST_CLASSES and not self.facts.consumed:
            self.rows.add(before.reshape(-1, classes), after.reshape(-1, classes))

    def _add_channels(self, axis: int, before: Float64, after: Float64) -> None:
        sums = self.channels.get(axis)
        if axis not in self.channels:
            sums = self.channels[axis] = ChannelSums.of(axis, before)
        if sums is None or sums.pivot.size != before.shape[-1]:
            # Another number of channels from sample to sample: no channel means the same in all of them.
            self.channels[axis] = None
            return
        with np.errstate(over="ignore", invalid="ignore"):
            sums.add(before, after)

    @property
    def snr_db(self) -> float:
        """Signal-to-noise ratio over all samples; infinite without noise."""
        if self.noise == 0:
            return math.inf
        if self.power == 0:
            return -math.inf
        ratio = self.power / self.noise
        return 10 * math.log10(ratio) if 0 < ratio < math.inf else (math.nan if ratio else -math.inf)

    @property
    def cosine(self) -> float | None:
        """Between all values before and after."""
        norms = math.sqrt(self.power) * math.sqrt(self.power_after)
        return self.dot / norms if 0 < norms < math.inf else None

    @property
    def silence(self) -> str | None:
        """Why the output says nothing about a rewrite; None where it does."""
        if not self.elements:
            return None if self.problems else "it has no elements"
        if self.all_nan == self.samples and not self.nonfinite:
            return "all its values are NaN"
        if self.fixed:
            return None
        moved, alone = self.movement, self.movement.samples == 1
        # What one sample holds tells at least whether it is more than a constant.
        span = moved.inner if alone else moved.span
        if span == 0:
            return "one sample shows one value only" if alone else "it is the same for all samples"
        if self.has_distance and not self.facts.is_quantized and span <= FLOAT32_TELLS * self.peak:
            return "it is saturated: it moves by less than float32 can tell"
        return None


FLOAT32_TELLS = 8 * 2.0**-23
"""Of the largest value of an output: what is less is the rounding of a few operations in float32."""


def channel_axes(shape: Sequence[int]) -> tuple[int, ...]:
    """Which axes of an output count channels: the last, and axis 1 where all behind it are longer (NCHW)."""
    axes = [len(shape) - 1] if shape else []
    if len(shape) >= 3 and 2 <= shape[1] < min(shape[2:]):
        axes.append(1)
    return tuple(axis for axis in axes if shape[axis] <= MOST_CLASSES)


def _pieces(before: Array, after: Array) -> Iterator[tuple[Array, Array]]:
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


def _channel_pieces(before: Array, after: Array, axis: int) -> Iterator[tuple[Array, Array]]:
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
            _forget(values)


def _forget(values: Array) -> None:
    held: Any = values
    while held is not None and not isinstance(held, mmap.mmap):
        held = getattr(held, "base", None)
    if held is not None:
        held.madvise(mmap.MADV_DONTNEED)


def joined(tallies: Sequence[OutputTally]) -> OutputTally:
    """The sums over the samples of all, which are of the same output."""
    whole = tallies[0]
    for tally in tallies[1:]:
        whole = whole.joined(tally)
    return whole


def _zero_points(facts: TensorFacts, rank: int) -> Array:
    zeros = np.array(facts.zero_points or (0,), dtype=np.float64)
    if zeros.size == 1 or rank == 0:
        return zeros[:1].reshape(())
    return zeros.reshape([-1 if axis == facts.quantized_dimension else 1 for axis in range(rank)])
