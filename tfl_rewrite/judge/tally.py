"""Sums over the samples of one output, before and after: what every rule of `compare` looks at."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tfl_rewrite.interpreter.interface import Array, TensorFacts
from tfl_rewrite.judge.channels import (
    MOST_CLASSES,
    ChannelSums,
    Float64,
    Movement,
    Stillness,
    channel_axes,
    channel_pieces,
    long_rows,
    pieces,
)


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
        are_shares: All rows of the original are probabilities: none below 0, and they sum up to 1 (of many
            integers to less: those that round to 0 are missing).

    Args:
        unit: What values are counted in: the scale of integers, and 1 of floats.
    """

    def __init__(self, unit: float = 1.0) -> None:
        self.unit = unit
        self.are_shares = True
        self.rows = self.agreeing = self.values = self.classes = 0
        self.spread = 0.0
        self.margins: list[Float64] = []

    def add(self, before: Float64, after: Float64) -> None:
        """Takes in ``[rows, classes]``, all of it finite."""
        if not before.size:
            return
        one, two, axis = long_rows(before, after)
        chosen = two == two.max(axis=axis, keepdims=True)
        margin = one.max(axis=axis) - np.where(chosen, one, np.inf).min(axis=axis)
        off = (one - one.mean(axis=axis, keepdims=True)).reshape(-1)
        apart = np.abs(one.sum(axis=axis) * self.unit - 1.0)
        rounded = before.shape[-1] * self.unit / 2 if self.unit < 1 else 0.0
        slack = max(_SUM_SLACK, min(rounded, _MOST_SLACK))
        self.are_shares = self.are_shares and bool(before.min() >= 0 and apart.max() < slack)
        self.classes = before.shape[-1]
        self.rows += len(margin)
        self.agreeing += int(np.count_nonzero(margin == 0))
        self.margins.append(margin[margin > 0])
        self.spread += float(np.einsum("i,i->", off, off))
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


_QUIET: Any = {"over": "ignore", "invalid": "ignore", "divide": "ignore"}
"""float64 overflows past 1e154 squared: ratios are then taken of infinities, and judged as unequal."""
_SUM_SLACK = 0.02
"""Of 1: what rounding to 8 bits may make of the sum of a row of probabilities."""
_MOST_SLACK = 0.25
"""Likewise of many: 1,001 classes in uint8 sum up to 0.85 where most are next to nothing (measured)."""


def unlike(before: Array, after: Array, finite: Array) -> int:
    """How many of the elements that are not finite on both sides are not the same."""
    same = (np.isnan(before) & np.isnan(after)) | (np.isinf(before) & (before == after))
    return int(np.count_nonzero(~finite & ~same))


class ErrorSums:
    """Sums over elements that are finite on both sides, in float64."""

    def __init__(self) -> None:
        self.power = self.power_after = self.noise = self.dot = 0.0
        self.peak = self.max_error = 0.0
        self.elements = self.equal = self.finite = self.nonfinite = 0

    def measure(self, before: Float64, after: Float64) -> tuple[float, float]:
        """Takes in flat values, one at least; returns the power of the original and of the error."""
        error = before - after
        self.finite += before.size
        power, noise = self._dot(before, before), self._dot(error, error)
        self.power += power
        self.power_after += self._dot(after, after)
        self.dot += self._dot(before, after)
        self.noise += noise
        self.peak = max(self.peak, float(np.abs(before).max()))
        self.max_error = max(self.max_error, float(np.abs(error).max()))
        return power, noise

    def _dot(self, one: Float64, other: Float64) -> float:
        # Not by BLAS, whose threads wait for one another where processors are busy.
        return float(np.einsum("i,i->", one, other))

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


MANY_DECISIONS = 100
"""Made at each call, of which the outputs themselves tell how noise changes those that are not sure."""


class InsideSums(ErrorSums):
    """Sums over what goes into a last SOFTMAX or LOGISTIC, as far as what comes out shows it.

    Of rows that sum up to 1, logarithms less their mean; of other values, ``log(y / (1 - y))``. What reached
    0 or 1 shows nothing, and makes the ratio NaN.
    """

    def add(self, before: Float64, after: Float64, unit: float) -> None:
        """Takes in ``[rows, classes]`` in units of ``unit``, unless that is many decisions."""
        if not before.size or len(before) >= MANY_DECISIONS:
            return
        one, two = before * unit, after * unit
        are_shares = one.shape[1] > 1 and bool((abs(one.sum(axis=1) - 1) < _SUM_SLACK).all())
        if not are_shares and one.size >= MANY_DECISIONS:
            return
        if are_shares:
            one, two = (np.log(each) for each in (one, two))
            one, two = (each - each.mean(axis=1, keepdims=True) for each in (one, two))
        else:
            one, two = (np.log(each / (1 - each)) for each in (one, two))
        self.measure(one.reshape(-1), two.reshape(-1))


class OutputTally(ErrorSums):
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
        super().__init__()
        self.facts, self.signature, self.position, self.fixed = facts, signature, position, fixed
        self.problems: list[str] = []
        self.samples = self.all_nan = self.max_integer_error = 0
        self.same_bytes = True
        self.energies: list[tuple[float, float]] = []
        self._summed = False
        self.movement = Movement()
        self.rows = RowSums(max(facts.scales) if facts.is_quantized else 1.0)
        self.channels: dict[int, ChannelSums | None] = {}
        self.stillness = Stillness()
        self.inside = InsideSums()

    def joined(self, other: OutputTally) -> OutputTally:
        """The sums over the samples of both."""
        both = OutputTally(
            self.facts, signature=self.signature, position=self.position, fixed=self.fixed and other.fixed
        )
        both.problems = list(dict.fromkeys([*self.problems, *other.problems]))
        for name in (
            *("samples", "elements", "equal", "nonfinite", "all_nan", "finite"),
            *("power", "noise", "dot", "power_after"),
        ):
            setattr(both, name, getattr(self, name) + getattr(other, name))
        for name in ("max_integer_error", "peak", "max_error"):
            setattr(both, name, max(getattr(self, name), getattr(other, name)))
        for name in ("power", "noise", "finite"):
            setattr(both.inside, name, getattr(self.inside, name) + getattr(other.inside, name))
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
        with np.errstate(**_QUIET):
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
        for one, two in pieces(before, after):
            self._count_equal(one == two)
            if one.size and one.dtype.kind != "b":
                high, low = np.maximum(one, two), np.minimum(one, two)
                # Unsigned subtraction wraps to the true distance, which the signed type may not hold.
                distance = high.astype(np.uint64) - low.astype(np.uint64)
                self.max_integer_error = max(self.max_integer_error, int(distance.max()))
        if before.dtype.kind == "b":
            # A flag is a channel, too.
            for one, two in pieces(before, after):
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
        for one, two in pieces(before, after):
            self.same_bytes = self.same_bytes and one.tobytes() == two.tobytes()
            is_finite = bool(np.isfinite(one).all())
            all_nan = all_nan and not is_finite and bool(np.isnan(one).all())
            all_finite = all_finite and is_finite and bool(np.isfinite(two).all())
        self.all_nan += all_nan
        real = self.facts.dtype.startswith(("float", "bfloat"))
        if real and all_finite:
            self._add_values(before, after)
            return
        energy = [0.0, 0.0]
        for one, two in pieces(before, after):
            finite = np.isfinite(one) & np.isfinite(two)
            self.nonfinite += unlike(one, two, finite)
            self._add_sums(one[finite].astype(np.float64), two[finite].astype(np.float64), energy)
            if real:
                whole = finite.all(axis=-1)
                self._add_rows(one[whole].astype(np.float64), two[whole].astype(np.float64), before.shape)
        self._end_sample(energy)

    def _add_values(self, before: Array, after: Array, zero: float = 0.0) -> None:
        """Takes in one sample, all of it finite, whose values count from ``zero``."""
        energy = [0.0, 0.0]
        axes = channel_axes(before.shape)
        for one, two in pieces(before, after):
            first, second = one.astype(np.float64), two.astype(np.float64)
            if zero:
                first, second = first - zero, second - zero
            self._add_sums(first.reshape(-1), second.reshape(-1), energy)
            self._add_rows(first, second, before.shape)
            self.inside.add(first, second, self.rows.unit)
            if before.ndim - 1 in axes and one.size:
                self._add_channels(before.ndim - 1, first, second)
        for axis in axes:
            if axis == before.ndim - 1:
                continue
            for one, two in channel_pieces(before, after, axis):
                self._add_channels(axis, one.astype(np.float64) - zero, two.astype(np.float64) - zero)
        self._end_sample(energy)

    def _add_sums(self, before: Float64, after: Float64, energy: list[float]) -> None:
        if before.size == 0:
            return
        power, noise = self.measure(before, after)
        energy[0] += power
        energy[1] += noise
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
        sums.add(before, after)

    @property
    def inside_db(self) -> float:
        """The ratio of what goes into a last SOFTMAX or LOGISTIC; NaN where the output does not show it."""
        return self.inside.snr_db if self.inside.finite == self.finite else math.nan

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


# Small enough for the processor's cache, and for sums that no threads are started for.
_PIECE = 1 << 16


class TensorTally(ErrorSums):
    """Sums over the samples of one operator output.

    Quantized integers count as the real numbers that they stand for, so that a float and a quantized tensor
    compare. Elements that are not finite on both sides are counted, not measured.
    """

    def __init__(self, before: TensorFacts, after: TensorFacts) -> None:
        super().__init__()
        self._facts = before, after
        self.shape: tuple[int, ...] | None = None
        self.problem: str | None = None

    @property
    def has_distance(self) -> bool:
        """Whether both sides hold real numbers."""
        return all(is_real(facts) for facts in self._facts)

    def add(self, before: Array, after: Array) -> None:
        """Takes in one sample."""
        self.shape = self.shape or before.shape
        if before.shape != after.shape:
            if without_ones(before.shape) != without_ones(after.shape):
                self.problem = f"shape {list(after.shape)} instead of {list(before.shape)}"
                return
            after = after.reshape(before.shape)
        if self.has_distance:
            pieces = zip(real_pieces(before, self._facts[0]), real_pieces(after, self._facts[1]), strict=True)
            with np.errstate(**_QUIET):
                for first, second in pieces:
                    self._measure_finite(first, second)
        elif before.dtype.kind == after.dtype.kind or {before.dtype.kind, after.dtype.kind} <= set("biu"):
            self.elements += before.size
            self.equal += int(np.count_nonzero(before == after))
        else:
            self.problem = f"{self._facts[1].dtype} instead of {self._facts[0].dtype}"

    def _measure_finite(self, first: Array, second: Array) -> None:
        self.elements += first.size
        finite = np.isfinite(first) & np.isfinite(second)
        if not finite.all():
            self.nonfinite += unlike(first, second, finite)
            first, second = first[finite], second[finite]
        if first.size:
            self.measure(first, second)

    @property
    def ratio(self) -> float | None:
        """Noise to signal, in power; None where nothing was measured."""
        if not self.finite:
            return None
        if self.noise == 0:
            return 0.0
        return self.noise / self.power if self.power > 0 else math.inf


def is_real(facts: TensorFacts) -> bool:
    """Whether a tensor holds real numbers, as they are or quantized."""
    return facts.is_quantized or facts.dtype.startswith(("float", "bfloat", "complex"))


def without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The sizes of all axes but those of one element."""
    return tuple(size for size in shape if size != 1)


def real_pieces(values: Array, facts: TensorFacts) -> Iterator[Array]:
    """The values as float64, flat, some at a time."""
    if values.dtype.kind == "c":
        values = np.ascontiguousarray(values).view(np.dtype(f"f{values.dtype.itemsize // 2}"))
    scales = np.asarray(facts.scales or (1.0,), dtype=np.float64)
    zeros = np.asarray(facts.zero_points or (0,), dtype=np.float64)
    if facts.is_quantized and scales.size > 1 and values.ndim:
        along = [-1 if axis == facts.quantized_dimension else 1 for axis in range(values.ndim)]
        zeros = np.broadcast_to(zeros, scales.shape)
        values = (values.astype(np.float64) - zeros.reshape(along)) * scales.reshape(along)
        scales, zeros = np.ones(1), np.zeros(1)
    elif not facts.is_quantized:
        scales, zeros = np.ones(1), np.zeros(1)
    flat = np.reshape(values, -1)
    for start in range(0, flat.size, _PIECE):
        yield (flat[start : start + _PIECE].astype(np.float64) - zeros[0]) * scales[0]
