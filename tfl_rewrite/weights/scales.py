"""How many scales a constant gets where its readers leave that open: by error per byte.

Rounding a model's weights takes bytes away and puts an error on what they are multiplied with: so much error
for each byte saved. Scales of its own for each channel cost bytes and take error away. They are worth it
where they take away more for a byte than rounding puts on for one. Both are measured on the values, in the
encoding at hand: a filter of nine weights a channel beside a wide layer gains tens of decibels for bytes
that nobody notices; in a table that is the whole model the same share of it has to win as much as it costs.

The error of a weight is that of its operator's products: the noise of each output channel over its own
signal, in the mean over channels, as far as values alone can tell it. A channel whose weights all vanish
counts as lost, no more, however small it was.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Any

import numpy as np
import numpy.typing as npt

from tfl_rewrite.kernels.operators import OperatorRow
from tfl_rewrite.kernels.table import row_of
from tfl_rewrite.model import dtypes
from tfl_rewrite.model.blob import Blob
from tfl_rewrite.model.ir import Operator
from tfl_rewrite.numerics import symmetric
from tfl_rewrite.numerics.symmetric import Channels, Float32, Float64, Levels
from tfl_rewrite.options.frozen import slotted
from tfl_rewrite.weights.candidates import Candidate
from tfl_rewrite.weights.sparse import compressed_axis
from tfl_rewrite.weights.storage import StorageForm, zero_points_nbytes
from tfl_rewrite.work import current

_LOOKED_AT = 1 << 12
"""Elements of a constant that are rounded to see how far they are off."""

_LEAST_LINES = 16
"""Channels among them, where it has as many."""

_SHARES = (1.0, 0.8, 0.64, 0.5)
"""Of the scale that covers the largest value, those that few levels are tried with: rounders cut it off."""

_FEW_LEVELS = 8

_FAR_LESS = 4.0
"""So many times the error, 6 dB or a bit, is what scales of its own make of a constant worth keeping."""

_LEAST_SHARED = 4
"""Of what has a scale for so few elements no error is to be expected at all."""

_LONG_CHANNEL = 64
"""Elements of a channel from which on its squares are summed while it is read."""

_LEAST_NOISE = 1e-12
"""Below that, no error counts."""


def weight_axis(row: OperatorRow, operator: Operator, rank: int) -> int | None:
    """Returns the channel axis of an operator's weight, counted from the front."""
    axis = row.scales_axis(adj_y=bool(operator.option("adj_y")))
    return axis + rank if axis is not None and axis < 0 else axis


@slotted
class Magnitudes:
    """What was read of the constants of one model; several threads may ask at a time.

    Whoever plans many rewrites of one file gives all of them the same, so that its constants are read once.

    Attributes:
        known: Float32 ``[channels]``: the largest magnitude of each, by constant and channels.
        energy: Float64 ``[channels]``: the sum of the squares of each, likewise, where they are long; see
            :func:`tfl_rewrite.numerics.symmetric.absmax`.
        noise: The error that rounding to the nearest leaves; see :meth:`ScaleAxes.noise`.
        clipped: Scales of least squared error, by :attr:`Work.content`.
        prices: What a byte is worth in error; see :class:`ScaleAxes`.
        sparse: See :meth:`sparse_nbytes`.
    """

    known: dict[tuple[object, Channels], Float32] = field(default_factory=dict)
    energy: dict[tuple[object, Channels], Float64] = field(default_factory=dict)
    noise: dict[tuple[object, ...], float] = field(default_factory=dict)
    clipped: dict[object, Float32] = field(default_factory=dict)
    prices: dict[object, float] = field(default_factory=dict)
    sparse: dict[object, int] = field(default_factory=dict)
    _finer: dict[object, tuple[Float32, Float64 | None]] = field(default_factory=dict)
    _held: dict[object, Blob] = field(default_factory=dict)

    def knows(self, item: Candidate, channels: Channels) -> bool:
        """Whether they were read before."""
        return (item.blob.identity, channels) in self.known

    def sparse_nbytes(self, item: Candidate) -> int:
        """Returns what a constant takes in bytes of which only what is not zero is stored, as int8."""
        blob, key = item.blob, (item.blob.identity, item.shape)
        if key not in self.sparse:
            stored = _values(item, blob).reshape(item.shape) != 0
            blob.release()
            self.sparse[key] = int(np.count_nonzero(stored)) + compressed_axis(stored)[1]
            self._held[blob.identity] = blob
        return self.sparse[key]

    def of(self, item: Candidate, channels: Channels) -> Float32:
        """Returns the largest magnitude of each channel, float32 ``[channels]``."""
        blob = item.blob
        key = (blob.identity, channels)
        known = self.known.get(key)
        if known is None:
            finer = self._finer.get(blob.identity) if channels.channels == 1 else None
            energy: Float64 | None = None
            if finer is not None:
                known, each = finer
                known, energy = known.max(keepdims=True), None if each is None else each.sum(keepdims=True)
            else:
                # Of blocks it would take half the memory of their integers, and few levels need none.
                if channels.elements >= _LONG_CHANNEL * channels.channels:
                    energy = np.zeros(channels.channels)
                known = symmetric.absmax(_values(item, blob), channels, spent=blob.release, energy=energy)
            # A blob that is gone would leave its identity to another one.
            self._held[blob.identity] = blob
            self._finer[blob.identity] = known, energy
            if energy is not None:
                self.energy[key] = energy
            self.known[key] = known
        return known


def _values(item: Candidate, blob: Blob) -> np.ndarray[Any, Any]:
    return np.frombuffer(blob.view(), dtypes.BY_VALUE[item.stored.dtype].numpy)


@slotted
class ScaleAxes:
    """Chooses among scales for the constants of one model.

    Attributes:
        candidates: All constants that may be stored otherwise, whether or not they will be: what a byte is
            worth must not depend on how many are.
        magnitudes: Their largest magnitudes.
    """

    candidates: Mapping[int, Candidate]
    magnitudes: Magnitudes
    _prices: dict[StorageForm, float] = field(default_factory=dict)
    _counts: Counter[int] = field(default_factory=Counter)
    _outputs: dict[int, list[int]] = field(default_factory=dict)

    def best(self, item: Candidate, form: StorageForm, options: Mapping[Channels, int]) -> Channels:
        """Returns the option of which error, and bytes at what they are worth, are least together.

        Args:
            item: The constant.
            form: How it is to be stored.
            options: The ways in which its elements may share scales, and the bytes that each takes.
        """
        if len(options) == 1:
            return next(iter(options))
        price = self._price(form)
        return min(options, key=lambda channels: self.noise(item, channels, form) + price * options[channels])

    def rather_kept(
        self, item: Candidate, form: StorageForm, best: Channels, options: Mapping[Channels, int]
    ) -> bool:
        """Whether the best of the options that save bytes errs more than those bytes are worth.

        Only where another one, with more scales, would err by far less: that some bits err is asked for.
        """
        noise = self.noise(item, best, form)
        sensible = [each for each in options if each.elements >= _LEAST_SHARED * each.channels]
        least = min((self.noise(item, channels, form) for channels in sensible), default=noise)
        saved = item.nbytes - options[best]
        return noise > _FAR_LESS * least and noise > self._price(form) * saved

    def best_rate(self, item: Candidate, form: StorageForm, options: Mapping[Channels, int]) -> Channels:
        """Returns the option with the least error for its bytes, where another bit an element takes 6 dB off.

        That is what finer integers would win for those bytes.

        Args:
            item: The constant.
            form: How it is to be stored.
            options: The ways in which its elements may share scales, and the bytes that each takes.
        """

        def expected(channels: Channels) -> float:
            bits = 8.0 * options[channels] / max(1, item.elements)
            return math.log2(max(self.noise(item, channels, form), _LEAST_NOISE)) + 2.0 * bits

        return min(options, key=expected)

    def sharing(self, count: int) -> int:
        """Returns how many weights have so many output channels, and are likely to have as many scales.

        Whether or not they will be changed: whoever changes one at a time, to measure it, must find the same.
        At least 1.
        """
        if not self._counts:
            self._counts.update(
                count
                for item in self.candidates.values()
                for count in {item.shape[axis] for axis in self._output_axes(item)}
            )
        return max(1, self._counts[count])

    def shared(self, item: Candidate, count: int) -> int:
        """Returns among how many constants the zero points of one are divided, with so many scales."""
        return self.sharing(count) if self._output_axes(item) else 1

    def axes(self, item: Candidate) -> list[int]:
        """Returns the axes along which scales make sense: those of outputs, or the outer ones of others."""
        rank = len(item.shape)
        found = self._output_axes(item) or list(dict.fromkeys((0, rank - 1)))
        return [axis for axis in found if 0 <= axis < rank and item.shape[axis] > 1]

    def noise(self, item: Candidate, channels: Channels, form: StorageForm) -> float:
        """Returns the error that rounding to the nearest leaves, relative to the signal; at most 1.

        0 for what holds NaN or infinite values: it cannot be rounded.
        """
        blob = item.blob
        axis = next(iter(self._output_axes(item)), None)
        key = (blob.identity, item.shape, axis, channels, form.levels)
        found = self.magnitudes.noise.get(key)
        if found is None:
            finite = bool(np.isfinite(self.magnitudes.of(item, channels)).all())
            found = self._measured(item, axis, channels, form.levels) if finite else 0.0
            self.magnitudes.noise[key] = found
        return found

    def _output_axes(self, item: Candidate) -> list[int]:
        """Returns the axes of a weight whose slices each add to an output; none for other constants."""
        found = self._outputs.get(id(item))
        if found is None:
            found = self._outputs[id(item)] = _output_axes(item)
        return found

    def _price(self, form: StorageForm) -> float:
        """Returns how much error rounding all constants puts on for each byte that it saves."""
        found = self._prices.get(form)
        if found is None:
            items = list(self.candidates.values())
            key = (form, *(self._told(item) for item in items))
            found = self.magnitudes.prices.get(key)
            if found is None:
                nbytes = sum(item.blob.nbytes for item in items)
                error = sum(current().each(lambda item: self._least(item, form), items, nbytes=nbytes))
                saved = nbytes - sum(form.data_nbytes(item.elements) for item in items)
                found = self.magnitudes.prices[key] = error / max(1, saved)
            self._prices[form] = found
        return found

    def _told(self, item: Candidate) -> object:
        """Returns what the error of a constant depends on besides its encoding."""
        return item.blob.identity, item.shape, tuple(self._output_axes(item))

    def _least(self, item: Candidate, form: StorageForm) -> float:
        """Returns the error with as many scales as make sense and still save bytes."""
        room = item.blob.nbytes - form.data_nbytes(item.elements)
        # Along an axis first: the largest of all follows from the largest of each.
        ways = [Channels.along(item.shape, axis) for axis in (*self.axes(item), None)]
        ways = [way for way in ways if way.channels == 1 or self._scales_nbytes(item, way, form) < room]
        return min(self.noise(item, channels, form) for channels in ways)

    def _scales_nbytes(self, item: Candidate, channels: Channels, form: StorageForm) -> int:
        count = channels.channels
        return form.scales_nbytes(count) + zero_points_nbytes(count, self.shared(item, count))

    def _measured(self, item: Candidate, axis: int | None, channels: Channels, levels: Levels) -> float:
        blob = item.blob
        lines = Channels.along(item.shape, 0 if axis is None and len(item.shape) > 1 else axis)
        flat = _looked_at(lines)
        every = np.frombuffer(blob.view(), dtypes.BY_VALUE[item.stored.dtype].numpy)
        values = every[flat].astype(np.float64)
        del every
        blob.release()
        group = (flat // channels.inner) % channels.channels
        scale = symmetric.scales(self.magnitudes.of(item, channels), levels.high).astype(np.float64)
        off = _squared_error(values, scale, group, levels)
        line = (flat // lines.inner) % lines.channels if axis is not None else np.zeros(flat.size, np.int64)
        signal = np.bincount(line, np.square(values))
        noise = np.bincount(line, off)
        live = signal > 0
        if not live.any():
            return 0.0
        return float(np.minimum(noise[live] / signal[live], 1.0).mean())


def _output_axes(item: Candidate) -> list[int]:
    """Returns the axes of a weight whose slices each add to an output; none for other constants."""
    found: dict[int, None] = {}
    rank = len(item.shape)
    for use in item.uses:
        row = row_of(use.operator)
        axis = None
        if use.position in row.weights:
            axis = weight_axis(row, use.operator, rank)
        if axis is None:
            axis = row.output_axis(use.position, rank)
        if axis is not None and 0 <= axis < rank:
            found[axis] = None
    return list(found)


def _looked_at(lines: Channels) -> npt.NDArray[np.int64]:
    """Returns the flat positions of elements to look at: some lines evenly, and evenly in each."""
    if lines.elements <= _LOOKED_AT:
        return np.arange(lines.elements, dtype=np.int64)
    each = lines.outer * lines.inner
    count = min(lines.channels, max(_LEAST_LINES, _LOOKED_AT // each))
    chosen = _evenly(lines.channels, count)
    outer, inner = np.divmod(_evenly(each, min(each, max(1, _LOOKED_AT // count))), lines.inner)
    flat = (outer[None, :] * lines.channels + chosen[:, None]) * lines.inner + inner[None, :]
    return np.asarray(flat.reshape(-1), np.int64)


def _evenly(total: int, count: int) -> npt.NDArray[np.int64]:
    return np.arange(count, dtype=np.int64) * total // count


def _squared_error(
    values: Float64, scale: Float64, group: npt.NDArray[np.int64], levels: Levels
) -> npt.NDArray[Any]:
    """Returns the squared error of each value, with the best of some shares of each group's scale."""
    shares: Sequence[float] = _SHARES if max(-levels.low, levels.high) <= _FEW_LEVELS else (1.0,)
    best = least = None
    for share in shares:
        step = scale[group] * share
        off = np.square(values - np.clip(np.rint(values / step), levels.low, levels.high) * step)
        total = np.bincount(group, off, minlength=scale.size)
        if best is None or least is None:
            best, least = off, total
            continue
        best = np.where((total < least)[group], off, best)
        least = np.minimum(least, total)
    assert best is not None
    return best
