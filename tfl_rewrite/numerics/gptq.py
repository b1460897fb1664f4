"""Rounding that looks at what the weight is multiplied with: error feedback, descent, and fitted scales.

What counts is not the error of the weights but that of the products: ``e H e'`` for each row, with ``e`` the
error of its weights and ``H`` the second moments of the vectors that it meets. Rounding goes column by
column and lets each later column make up for the errors before it (GPTQ, Frantar et al. 2022,
arXiv:2210.17323; as successive rounding with a triangular factor of ``H``, which needs no inverse).
Then each integer in turn is set to the best one given all others, and each scale to the best one given its
integers; neither can make ``e H e'`` larger.

Arrays: weights ``[groups, rows, length]``, moments ``[groups, length, length]``, scales ``[groups, rows,
blocks]`` with ``blocks`` equal blocks along a row. Scales and sums are float64; what is worked on is float32,
twice as fast, which loses far less than samples differ by.
"""

from __future__ import annotations

from dataclasses import field, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from tfl_rewrite.numerics.clipping import bounded
from tfl_rewrite.numerics.entropy import Rate
from tfl_rewrite.numerics.metric import Factored, Labels, Metric
from tfl_rewrite.numerics.symmetric import Float32, Levels
from tfl_rewrite.options.frozen import frozen, slotted

Float64 = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Floating = TypeVar("Floating", np.float32, np.float64)
Item = TypeVar("Item", bound=np.generic)

_WEAKEST = 0.8
"""What lacks more strength than this is not a matter of rounding."""

_LEAST_PRUNED = 0.25
"""Of zeros in a weight, from which on they count as put there: dense weights hold next to none."""

_COLUMNS = 32
"""Columns that are rounded one by one before their errors are passed on to the others."""
_AHEAD_ELEMENTS = 1 << 12
"""Of columns that are looked at together for the first that is to be improved."""
_PIECE = 256
"""Columns that are improved before the change is passed on to the rest of the row."""


@frozen
class Ties:
    """Which scales are one and the same, and which rows can be decided on by themselves.

    Attributes:
        scale: ``[groups, rows, blocks]``: number of the scale of each block.
        unit: ``[groups, rows]``: number of the unit of each row. Rows that share a scale are in one unit.
        digits: Bits that a scale may have: 24 of a float32, 11 of a float16 times a power of two.
        fitted: Whether scales may be fitted; not where they change along rows and serve several.
    """

    scale: Labels
    unit: Labels
    digits: int = 24
    fitted: bool = True

    def stored(self, scale: Float64) -> Float64:
        """Returns scales as a file can hold them."""
        fraction, power = np.frexp(bounded(scale))
        return np.asarray(np.ldexp(np.rint(np.ldexp(fraction, self.digits)), power - self.digits), np.float64)

    @classmethod
    def of(cls, labels: npt.NDArray[Any], *, digits: int = 24) -> Ties:
        """Finds the ties from the number of each element's scale.

        Args:
            labels: ``[groups, rows, length]``.
            digits: See the class.
        """
        groups, rows, length = labels.shape
        changes = np.flatnonzero((labels[:, :, 1:] != labels[:, :, :-1]).any(axis=(0, 1)))
        width = int(changes[0]) + 1 if len(changes) else length
        if length % width or ((changes + 1) % width).any():
            width = 1
        scale = np.ascontiguousarray(labels[:, :, ::width]).astype(np.int64)
        if width == length:
            return cls(scale, scale[:, :, 0], digits)
        if len(np.unique(scale)) != scale.size:
            return cls(scale, np.zeros((groups, rows), np.int64), digits, fitted=False)
        return cls(scale, np.arange(groups * rows).reshape(groups, rows), digits)

    def part(self, rows: slice) -> Ties:
        """Returns those of some rows, dense."""
        return replace(self, scale=self.scale[:, rows], unit=self.unit[:, rows]).dense()

    def dense(self) -> Ties:
        """Returns the same with numbers from 0 on without gaps."""
        _, scale = np.unique(self.scale, return_inverse=True)
        _, unit = np.unique(self.unit, return_inverse=True)
        return Ties(scale.reshape(self.scale.shape), unit.reshape(self.unit.shape), self.digits, self.fitted)


@frozen
class GptqEffort:
    """How much work rounding is worth.

    Attributes:
        shares: Of the scales given, to try.
        rounds: How often scales are fitted and integers improved in turn.
        sweeps: How often each round goes through the integers.
    """

    shares: tuple[float, ...] = (1.0,)
    rounds: int = 2
    sweeps: int = 1


@slotted
class Rounded:
    """The outcome.

    Attributes:
        integers: ``[groups, rows, length]``.
        scale: ``[groups, rows, blocks]``, each a float32 number.
    """

    integers: Float32
    scale: Float64

    def values(self) -> Float32:
        """Returns what the integers stand for."""
        return self.integers * spread(self.scale.astype(np.float32), self.integers.shape[2])


def quantize(
    weight: npt.NDArray[Any],
    metric: Metric,
    scale: npt.NDArray[Any],
    levels: Levels,
    ties: Ties,
    *,
    effort: GptqEffort | None = None,
    zero: Mask | None = None,
) -> Rounded:
    """Rounds a weight for the vectors that it meets.

    The outcome is never worse, in ``e H e'``, than rounding to the nearest with the scales given.

    Args:
        weight: ``[groups, rows, length]``, finite.
        metric: The moments of the vectors.
        scale: ``[groups, rows, blocks]`` to start from.
        levels: The integers.
        ties: Which scales are one.
        effort: How much work it is worth.
        zero: ``[groups, rows, length]``: where the weight is zero and stays so; see :func:`pruned`.
    """
    effort = effort or GptqEffort()
    target = np.asarray(weight, np.float32)
    start = ties.stored(np.asarray(scale, np.float64))
    search = _Search(target, metric, levels, ties, zero)
    search.offer(nearest(target, search.wide(start), levels), start)
    for share in effort.shares:
        tried = ties.stored(start * share)
        search.offer(feedback(target, search.wide(tried), metric, levels, zero), tried)
    for _ in range(effort.rounds):
        if ties.fitted:
            search.fit()
        for _ in range(effort.sweeps):
            search.descend()
    return Rounded(search.integers, search.scale)


def restore(done: Rounded, weight: npt.NDArray[np.floating], moments: Float32, ties: Ties) -> None:
    """Gives products half of the strength back that rounding for the least error took from them.

    What is nearest in the mean square is too weak: with ``t`` the target and ``v`` what it became, ``t H v'``
    falls short of ``t H t'`` by about the squared error. Random errors cancel in the layers behind, but this
    one has the same sign in all of them and adds up. All of it given back costs more than it wins in nets of
    few layers, so scales grow by the square root of what is lacking.

    Args:
        done: Changed in place.
        weight: What was rounded.
        moments: It was rounded for.
        ties: Of its scales; rows of a unit change alike.
    """
    target = np.asarray(weight, np.float32)
    seen = target @ moments
    count = int(ties.unit.max()) + 1
    wanted = _sum_by(np.einsum("grk,grk->gr", seen, target), ties.unit, count)
    found = _sum_by(np.einsum("grk,grk->gr", seen, done.values()), ties.unit, count)
    change = np.ones(count)
    known = (wanted > 0) & (found > 0)
    change[known] = np.sqrt(np.clip(wanted[known] / found[known], _WEAKEST, 1 / _WEAKEST))
    done.scale = ties.stored(done.scale * change[ties.unit][:, :, None])


def nearest(
    weight: npt.NDArray[Floating], step: npt.NDArray[Floating], levels: Levels
) -> npt.NDArray[Floating]:
    """Rounds to the nearest integers."""
    found = np.divide(weight, step)
    np.rint(found, out=found)
    return np.clip(found, levels.low, levels.high, out=found)


def pruned(weight: npt.NDArray[np.floating]) -> Mask | None:
    """Returns where a weight holds zeros that somebody put there, so that they are to stay; None for none.

    Args:
        weight: Of any shape.
    """
    zero = weight == 0
    return zero if zero.mean() >= _LEAST_PRUNED else None


def feedback(
    weight: npt.NDArray[Floating],
    step: npt.NDArray[Floating],
    metric: Factored,
    levels: Levels,
    zero: Mask | None = None,
    rate: Rate | None = None,
) -> npt.NDArray[Floating]:
    """Rounds column by column, each making up for the errors of those before it.

    Args:
        weight: ``[groups, rows, length]``.
        step: Scales that broadcast to it.
        metric: The moments of the vectors.
        levels: The integers.
        zero: Where a zero stays.
        rate: What integers cost; the nearest are taken without it.

    Returns:
        The integers, of the type of the weight.
    """
    order, factor = metric.order, metric.factor
    groups, rows, length = weight.shape
    ordered = _columns(weight, order)
    width = 1 if step.shape[2] == 1 else length
    wide = _columns(np.broadcast_to(step, (groups, rows, width)), None if width == 1 else order)
    steps = np.broadcast_to(wide, ordered.shape)
    held = None if zero is None else _columns(zero, order)
    errors, integers = np.empty_like(ordered), np.empty_like(ordered)
    diagonal = np.einsum("gii->gi", factor)
    made, pulls, passed = (np.empty_like(ordered[:size]) for size in (1, _COLUMNS, _COLUMNS))
    low, high = np.asarray(levels, ordered.dtype)
    for end in range(length, 0, -_COLUMNS):
        begin = max(0, end - _COLUMNS)
        own = _pairs(factor[:, begin:end, begin:end] / diagonal[:, None, begin:end])
        pull = pulls[: end - begin]
        behind = factor[:, end:, begin:end].swapaxes(1, 2)
        np.matmul(behind, errors[end:].swapaxes(0, 1), out=pull.swapaxes(0, 1))
        pull /= diagonal[:, begin:end].T[:, :, None]
        pull += ordered[begin:end]
        for column in range(end - 1, begin - 1, -1):
            at, found, off = column - begin, integers[column], errors[column]
            np.divide(pull[at], steps[column], out=found)
            ideal = None if rate is None else found.copy()
            np.rint(found, out=found)
            np.maximum(found, low, out=found)
            np.minimum(found, high, out=found)
            if rate is not None and ideal is not None:
                counts = np.square(diagonal[:, column, None] * steps[column])
                found[:] = rate.pick(ideal, found, counts)
            if held is not None:
                found[held[column]] = 0.0
            np.multiply(found, steps[column], out=made[0])
            np.subtract(ordered[column], made[0], out=off)
            if at:
                np.multiply(own[at, :at], off, out=passed[:at])
                pull[:at] += passed[:at]
    return _in_rows(integers, order)


def _columns(values: npt.NDArray[Item], order: Labels | None = None) -> npt.NDArray[Item]:
    """Returns ``[groups, rows, length]`` as ``[length, groups, rows]``, so that a column lies in one piece.

    Python goes from column to column: what numpy does to one of them then is a single loop for it. Always a
    copy, of one row, too: what is worked on here must not be what it came from.

    Args:
        values: Any.
        order: ``[groups, length]``: the columns in another order.
    """
    if order is None:
        return np.array(values.transpose(2, 0, 1), order="C", copy=True)
    groups, rows, length = values.shape
    found = np.empty((length, groups, rows), values.dtype)
    for group, place in enumerate(order):
        # Transposed first: rows of what is gathered are in one piece then.
        found[:, group] = np.ascontiguousarray(values[group].T)[place]
    return found


def _in_rows(values: npt.NDArray[Item], order: Labels) -> npt.NDArray[Item]:
    """Undoes :func:`_columns`."""
    length, groups, rows = values.shape
    found = np.empty((groups, length, rows), values.dtype)
    for group, place in enumerate(order):
        found[group, place] = values[:, group]
    return np.ascontiguousarray(found.swapaxes(1, 2))


def _pairs(values: npt.NDArray[Item]) -> npt.NDArray[Item]:
    """Returns ``[groups, columns, columns]`` as ``[columns, columns, groups, 1]``, for :func:`_columns`."""
    return np.ascontiguousarray(values.transpose(1, 2, 0))[..., None]


def spread(scale: npt.NDArray[Floating], length: int) -> npt.NDArray[Floating]:
    """Returns scales of blocks so that they broadcast to ``[groups, rows, length]``."""
    blocks = scale.shape[2]
    wide: npt.NDArray[Floating] = scale if blocks == 1 else scale.repeat(length // blocks, axis=2)
    return wide


@slotted
class _Search:
    """The best integers and scales so far."""

    weight: Float32
    metric: Metric
    levels: Levels
    ties: Ties
    zero: Mask | None
    integers: Float32 = field(init=False)
    scale: Float64 = field(init=False)
    cost: Float64 = field(init=False)
    """``e H e'`` of each unit, as of the last offer."""
    pull: Float32 = field(init=False)
    """``e H`` of the integers and scales at hand."""

    def wide(self, scale: Float64) -> Float32:
        """Returns scales so that they broadcast to the weight."""
        return spread(scale.astype(np.float32), self.weight.shape[2])

    def offer(self, integers: Float32, scale: Float64) -> None:
        """Takes other integers and scales over for each unit where they are better."""
        off = self.weight - integers * self.wide(scale)
        pull = off @ self.metric.moments
        each = np.einsum("grk,grk->gr", pull, off)
        cost = _sum_by(each, self.ties.unit, int(self.ties.unit.max()) + 1)
        if not hasattr(self, "cost"):
            self.integers, self.scale, self.pull, self.cost = integers, scale.copy(), pull, cost
            return
        better = (cost < self.cost)[self.ties.unit]
        if better.all():
            self.integers, self.scale, self.pull = integers, scale.copy(), pull
        else:
            self.integers[better] = integers[better]
            self.scale[better] = scale[better]
            self.pull[better] = pull[better]
        self.cost = np.minimum(cost, self.cost)

    def fit(self) -> None:
        """Sets each scale to the best one for the integers, block by block: blocks of a row interact."""
        length = self.weight.shape[2]
        blocks = self.scale.shape[2]
        pull = self.pull
        width = length // blocks
        for block in range(blocks):
            part = slice(block * width, (block + 1) * width)
            integers = self.integers[:, :, part]
            seen = integers @ self.metric.moments[:, part, :]
            labels = self.ties.scale[:, :, block]
            least = int(self.ties.scale.max()) + 1
            dot = _sum_by(np.einsum("grk,grk->gr", pull[:, :, part], integers), labels, least)
            norm = _sum_by(np.einsum("grk,grk->gr", seen[:, :, part], integers), labels, least)
            with np.errstate(divide="ignore", invalid="ignore"):
                change = np.where(norm > 0, dot / norm, 0.0)[labels]
            old = self.scale[:, :, block]
            new = self.ties.stored(np.maximum(old + change, 0.25 * old))
            # Rounded to what can be stored, it is the best no more; the old one may have been better.
            off = np.abs(new - (old + change)) < np.abs(change)
            new = np.where(off, new, old)
            seen *= (new - old).astype(np.float32)[:, :, None]
            pull -= seen
            self.scale[:, :, block] = new

    def descend(self) -> None:
        """Sets each integer, column by column, to the best one given all others."""
        length = self.weight.shape[2]
        pull, moments = self.pull, self.metric.moments
        wide = self.wide(self.scale)
        for begin in range(0, length, _PIECE):
            part = slice(begin, min(length, begin + _PIECE))
            own, integers = _columns(pull[:, :, part]), _columns(self.integers[:, :, part])
            steps = np.broadcast_to(_columns(wide[:, :, part if wide.shape[2] > 1 else slice(1)]), own.shape)
            held = None if self.zero is None else _columns(self.zero[:, :, part])
            change = self._improve(own, integers, steps, moments[:, part, part], held)
            if change.any():
                self.integers[:, :, part] = integers.transpose(1, 2, 0)
                pull -= change.transpose(1, 2, 0) @ moments[:, part, :]

    def _improve(
        self, own: Float32, integers: Float32, steps: Float32, moments: Float32, held: Mask | None
    ) -> Float32:
        """Sets integers of some columns to the best ones, each given all others; returns how values changed.

        Args:
            own: What pulls at them, ``[columns, groups, rows]``; used up.
            integers: Changed in place.
            steps: Their scales.
            moments: Of these columns.
            held: Where a zero stays.
        """
        change = np.zeros_like(own)
        columns = len(own)
        # By how many integers each pull is worth to move, and how far it may.
        worth = 1.0 / (np.einsum("gii->ig", moments)[:, :, None] * steps)
        least, most = self.levels.low - integers, self.levels.high - integers
        if held is not None:
            least[held] = most[held] = 0.0
        width = max(1, _AHEAD_ELEMENTS // own[0].size)
        moves, passed = np.empty_like(own[:width]), np.empty_like(own[:_COLUMNS])
        for first in range(0, columns, _COLUMNS):
            last = min(columns, first + _COLUMNS)
            near, column = _pairs(moments[:, first:last, first:last]), first
            while column < last:
                ahead = slice(column, min(last, column + width))
                move = np.multiply(own[ahead], worth[ahead], out=moves[: ahead.stop - column])
                np.rint(move, out=move)
                np.maximum(move, least[ahead], out=move)
                np.minimum(move, most[ahead], out=move)
                # Most integers are the best ones already: what follows them is as it was.
                moving = move != 0
                at = int(moving.argmax()) // move[0].size
                if not moving[at].any():
                    column += len(move)
                    continue
                column += at
                np.multiply(move[at], steps[column], out=change[column])
                integers[column] += move[at]
                column += 1
                part = passed[: last - column]
                np.multiply(near[column - 1 - first, column - first :], change[column - 1], out=part)
                own[column:last] -= part
            if last < columns and change[first:last].any():
                behind = moments[:, first:last, last:].transpose(0, 2, 1)
                own[last:] -= (behind @ change[first:last].swapaxes(0, 1)).swapaxes(0, 1)
        return change


def _sum_by(values: Float64, labels: Labels, count: int) -> Float64:
    return np.asarray(np.bincount(labels.reshape(-1), values.reshape(-1), minlength=count), np.float64)


def mean_error(weight: Float32, rounded: Float32, mean: Float64, parts: int) -> Float64:
    """Returns by how much each row's products come out too small in the mean, ``[groups, rows]``.

    That is what the bias has to make up for.

    Args:
        weight: ``[groups * parts, rows, length]``.
        rounded: What it was rounded to, likewise.
        mean: The mean vectors, ``[groups * parts, length]``.
        parts: Into how many parts each vector was cut.
    """
    off = weight - rounded
    each = np.matmul(off, mean.astype(np.float32)[:, :, None])[:, :, 0].astype(np.float64)
    groups = each.shape[0] // parts
    total: Float64 = each.reshape(groups, parts, -1).sum(axis=1)
    return total
