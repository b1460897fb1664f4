"""Rounding that looks at what the weight is multiplied with: error feedback, descent, and fitted scales.

What counts is not the error of the weights but that of the products: ``e H e'`` for each row, with ``e`` the
error of its weights and ``H`` the second moments of the vectors that it meets. Rounding goes column by
column and lets each later column make up for the errors before it (GPTQ, Frantar et al. 2022,
arXiv:2210.17323; as successive rounding with a triangular factor of ``H``, which needs no inverse).
Then each integer in turn is set to the best one given all others, and each scale to the best one given its
integers; neither can make ``e H e'`` larger.

Arrays: weights ``[groups, rows, length]``, moments ``[groups, length, length]``, scales ``[groups, rows,
blocks]`` with ``blocks`` equal blocks along a row. All are float64 while being worked on.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from tfl_rewrite.numerics.clipping import bounded
from tfl_rewrite.numerics.symmetric import Levels

Float64 = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Item = TypeVar("Item", bound=np.generic)

_DAMPINGS = (0.0, 1e-6, 1e-4, 1e-2, 1.0, 1e2)
"""Of the mean diagonal, added where moments are not positive definite."""

_WEAKEST = 0.8
"""What lacks more strength than this is not a matter of rounding."""

_LEAST_PRUNED = 0.25
"""Of zeros in a weight, from which on they count as put there: dense weights hold next to none."""

_COLUMNS = 32
"""Columns that are gone through one by one before the others hear of their errors."""
_PIECE = 256
"""Columns that are improved before those of the rest of the row hear of it."""


@dataclass(frozen=True, slots=True)
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

    def dense(self) -> Ties:
        """Returns the same with numbers from 0 on without gaps."""
        _, scale = np.unique(self.scale, return_inverse=True)
        _, unit = np.unique(self.unit, return_inverse=True)
        return Ties(scale.reshape(self.scale.shape), unit.reshape(self.unit.shape), self.digits, self.fitted)


@dataclass(frozen=True, slots=True)
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


@dataclass(slots=True)
class Rounded:
    """The outcome.

    Attributes:
        integers: ``[groups, rows, length]``.
        scale: ``[groups, rows, blocks]``, each a float32 number.
        before: ``e H e'`` of rounding to the nearest with the scales given, summed.
        after: The same of the outcome.
    """

    integers: npt.NDArray[np.int8]
    scale: Float64
    before: float
    after: float

    def values(self) -> Float64:
        """Returns what the integers stand for."""
        return self.integers * spread(self.scale, self.integers.shape[2])


class Factored(Protocol):
    """What error feedback needs of moments; see :class:`Metric`."""

    @property
    def order(self) -> Labels:
        """``[groups, length]``: the columns in the order in which they are rounded."""

    @property
    def factor(self) -> npt.NDArray[np.floating]:
        """``[groups, length, length]``, upper triangular."""


@dataclass(frozen=True, slots=True)
class Metric:
    """Moments, and what follows from them alone.

    Attributes:
        moments: ``[groups, length, length]``, positive definite.
        order: ``[groups, length]``: the columns in the order in which they are rounded, largest first.
        factor: See :func:`_factor`.
        strength: ``[groups, length]``: the diagonal that belongs to it.
    """

    moments: Float64
    order: Labels
    factor: Float64
    strength: Float64

    @classmethod
    def of(cls, moments: Float64) -> Metric:
        """Orders and factors them; what is not positive definite is raised until it is."""
        order = np.argsort(-np.einsum("gii->gi", moments), axis=1, kind="stable")
        index = np.arange(moments.shape[1])
        mean = np.abs(np.einsum("gii->gi", moments)).mean(axis=1, keepdims=True)
        for damping in _DAMPINGS:
            raised = moments if damping == 0 else moments.copy()
            raised[:, index, index] += damping * np.where(mean > 0, mean, 1.0)
            try:
                return cls(raised, order, *_factor(raised, order))
            except np.linalg.LinAlgError:
                continue
        only = np.zeros_like(moments)
        only[:, index, index] = np.where(mean > 0, mean, 1.0)
        return cls(only, order, *_factor(only, order))

    def cost(self, off: Float64) -> Float64:
        """Returns ``e H e'`` of each row of ``[groups, rows, length]``."""
        found: Float64 = np.einsum("grk,grk->gr", off @ self.moments, off)
        return found


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
    target = np.asarray(weight, np.float64)
    start = ties.stored(np.asarray(scale, np.float64))
    length = target.shape[2]
    search = _Search(target, metric, levels, ties, zero)
    search.offer(nearest(target, spread(start, length), levels), start)
    before = float(search.cost.sum())
    for share in effort.shares:
        tried = ties.stored(start * share)
        search.offer(feedback(target, spread(tried, length), metric, levels, search.zero), tried)
    for _ in range(effort.rounds):
        if ties.fitted:
            search.fit()
        for _ in range(effort.sweeps):
            search.descend()
    search.settle()
    return Rounded(search.integers.astype(np.int8), search.scale, before, float(search.cost.sum()))


def restore(done: Rounded, weight: npt.NDArray[Any], metric: Metric, ties: Ties) -> None:
    """Gives products half of the strength back that rounding for the least error took from them.

    What is nearest in the mean square is too weak: with ``t`` the target and ``v`` what it became, ``t H v'``
    falls short of ``t H t'`` by about the squared error. Random errors cancel in the layers behind, but this
    one has the same sign in all of them and adds up. All of it given back costs more than it wins in nets of
    few layers, so scales grow by the square root of what is lacking.

    Args:
        done: Changed in place.
        weight: What was rounded.
        metric: It was rounded for.
        ties: Of its scales; rows of a unit change alike.
    """
    target = np.asarray(weight, np.float64)
    seen = target @ metric.moments
    count = int(ties.unit.max()) + 1
    wanted = _sum_by(np.einsum("grk,grk->gr", seen, target), ties.unit, count)
    found = _sum_by(np.einsum("grk,grk->gr", seen, done.values()), ties.unit, count)
    change = np.ones(count)
    known = (wanted > 0) & (found > 0)
    change[known] = np.sqrt(np.clip(wanted[known] / found[known], _WEAKEST, 1 / _WEAKEST))
    done.scale = ties.stored(done.scale * change[ties.unit][:, :, None])
    done.after = float(metric.cost(target - done.values()).sum())


def nearest(weight: Float64, step: Float64, levels: Levels) -> Float64:
    """Rounds to the nearest integers."""
    return np.clip(np.rint(weight / step), levels.low, levels.high)


def pruned(weight: Float64) -> Mask | None:
    """Returns where a weight holds zeros that somebody put there, so that they are to stay; None for none.

    Args:
        weight: Of any shape.
    """
    zero = weight == 0
    return zero if zero.mean() >= _LEAST_PRUNED else None


def feedback(
    weight: Float64, step: Float64, metric: Factored, levels: Levels, zero: Mask | None = None
) -> Float64:
    """Rounds column by column, each making up for the errors of those before it.

    Args:
        weight: ``[groups, rows, length]``.
        step: Scales that broadcast to it.
        metric: The moments of the vectors.
        levels: The integers.
        zero: Where a zero stays.
    """
    order, factor = metric.order, metric.factor
    groups, rows, length = weight.shape
    # Columns in one piece each: [groups, length, rows].
    ordered = _columns(np.take_along_axis(weight, order[:, None, :], axis=2))
    spread = np.broadcast_to(step, (groups, rows, step.shape[2]))
    if step.shape[2] > 1:
        spread = np.take_along_axis(np.broadcast_to(step, weight.shape), order[:, None, :], axis=2)
    steps = np.broadcast_to(_columns(spread), ordered.shape)
    held = None if zero is None else _columns(np.take_along_axis(zero, order[:, None, :], axis=2))
    errors, integers = np.empty_like(ordered), np.empty_like(ordered)
    for begin in range(0, length, _COLUMNS):
        end = min(length, begin + _COLUMNS)
        pull = factor[:, :begin, begin:end].transpose(0, 2, 1) @ errors[:, :begin]
        for column in range(begin, end):
            at = column - begin
            found = np.rint((ordered[:, column] + pull[:, at]) / steps[:, column])
            np.minimum(np.maximum(found, levels.low, out=found), levels.high, out=found)
            if held is not None:
                found[held[:, column]] = 0.0
            off = ordered[:, column] - found * steps[:, column]
            integers[:, column] = found
            errors[:, column] = off
            pull[:, at + 1 :] += factor[:, column, column + 1 : end, None] * off[:, None, :]
    result = np.empty_like(integers)
    np.put_along_axis(result, np.broadcast_to(order[:, :, None], integers.shape), integers, axis=1)
    return _columns(result)


def _columns(values: npt.NDArray[Item]) -> npt.NDArray[Item]:
    """Returns ``[groups, rows, length]`` as ``[groups, length, rows]`` in one piece, or the reverse; a copy.

    Of one row, too, which lies in one piece either way: what is worked on here must not be what it came from.
    """
    return np.array(values.transpose(0, 2, 1), order="C", copy=True)


def _factor(moments: Float64, order: Labels) -> tuple[Float64, Float64]:
    """Returns the upper triangular ``M`` with ``M D M' = H``, unit diagonal, columns in order, and ``D``.

    ``e H e' = sum_j D_j (e_j + sum_{i<j} e_i M_ij)^2``, so column ``j`` makes up for those before it.
    """
    groups = np.arange(len(order))[:, None, None]
    back = order[:, ::-1]
    turned = moments[groups, back[:, :, None], back[:, None, :]]
    lower = np.asarray(np.linalg.cholesky(turned), np.float64)
    upper = lower[:, ::-1, ::-1]
    diagonal = np.einsum("gii->gi", upper)
    return np.ascontiguousarray(upper / diagonal[:, None, :]), np.square(diagonal)


def spread(scale: Float64, length: int) -> Float64:
    """Returns scales of blocks so that they broadcast to ``[groups, rows, length]``."""
    blocks = scale.shape[2]
    wide: Float64 = scale if blocks == 1 else scale.repeat(length // blocks, axis=2)
    return wide


@dataclass(slots=True)
class _Search:
    """The best integers and scales so far."""

    weight: Float64
    metric: Metric
    levels: Levels
    ties: Ties
    zero: Mask | None
    integers: Float64 = field(init=False)
    scale: Float64 = field(init=False)
    cost: Float64 = field(init=False)
    """``e H e'`` of each unit."""
    pull: Float64 = field(init=False)
    """``e H`` of the integers and scales at hand."""

    def offer(self, integers: Float64, scale: Float64) -> None:
        """Takes other integers and scales over for each unit where they are better."""
        pull, cost = self._weighed(integers, scale)
        if not hasattr(self, "cost"):
            self.integers, self.scale, self.pull, self.cost = integers, scale.copy(), pull, cost
            return
        better = (cost < self.cost)[self.ties.unit]
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
            pull -= (new - old)[:, :, None] * seen
            self.scale[:, :, block] = new

    def descend(self) -> None:
        """Sets each integer, column by column, to the best one given all others."""
        length = self.weight.shape[2]
        pull = self.pull
        wide = spread(self.scale, length)
        for begin in range(0, length, _PIECE):
            part = slice(begin, min(length, begin + _PIECE))
            # Columns in one piece each: [groups, columns, rows].
            own, integers = _columns(pull[:, :, part]), _columns(self.integers[:, :, part])
            steps = np.broadcast_to(_columns(wide[:, :, part if wide.shape[2] > 1 else slice(1)]), own.shape)
            held = None if self.zero is None else _columns(self.zero[:, :, part])
            change = self._improve(own, integers, steps, self.metric.moments[:, part, part], held)
            if change.any():
                self.integers[:, :, part] = integers.transpose(0, 2, 1)
                pull += change.transpose(0, 2, 1) @ self.metric.moments[:, part, :]

    def _improve(
        self, own: Float64, integers: Float64, steps: Float64, moments: Float64, held: Mask | None
    ) -> Float64:
        """Sets integers of some columns to the best ones, each given all others; returns by how much.

        Args:
            own: What pulls at them, ``[groups, columns, rows]``; used up.
            integers: Changed in place.
            steps: Their scales.
            moments: Of these columns.
            held: Where a zero stays.
        """
        change = np.empty_like(own)
        columns = own.shape[1]
        for first in range(0, columns, _COLUMNS):
            last = min(columns, first + _COLUMNS)
            for column in range(first, last):
                now, size = integers[:, column], steps[:, column]
                best = np.rint(now + own[:, column] / (moments[:, column, column, None] * size))
                np.minimum(np.maximum(best, self.levels.low, out=best), self.levels.high, out=best)
                if held is not None:
                    best[held[:, column]] = 0.0
                moved = change[:, column] = (now - best) * size
                integers[:, column] = best
                own[:, column + 1 : last] += moments[:, column, column + 1 : last, None] * moved[:, None, :]
            if last < columns:
                own[:, last:] += moments[:, first:last, last:].transpose(0, 2, 1) @ change[:, first:last]
        return change

    def settle(self) -> None:
        """Makes the scales float32 numbers and sums the cost up anew."""
        self.scale = self.ties.stored(self.scale)
        _, self.cost = self._weighed(self.integers, self.scale)

    def _weighed(self, integers: Float64, scale: Float64) -> tuple[Float64, Float64]:
        """Returns ``e H`` of each row, and ``e H e'`` of each unit."""
        off = self.weight - integers * spread(scale, self.weight.shape[2])
        pull: Float64 = off @ self.metric.moments
        each = np.einsum("grk,grk->gr", pull, off)
        return pull, _sum_by(each, self.ties.unit, int(self.ties.unit.max()) + 1)


def _sum_by(values: Float64, labels: Labels, count: int) -> Float64:
    return np.asarray(np.bincount(labels.reshape(-1), values.reshape(-1), minlength=count), np.float64)


def mean_error(weight: npt.NDArray[Any], rounded: Float64, mean: Float64, parts: int) -> Float64:
    """Returns by how much each row's products come out too small in the mean, ``[groups, rows]``.

    That is what the bias has to make up for.

    Args:
        weight: ``[groups * parts, rows, length]``.
        rounded: What it was rounded to, likewise.
        mean: The mean vectors, ``[groups * parts, length]``.
        parts: Into how many parts each vector was cut.
    """
    each = np.einsum("grk,gk->gr", np.asarray(weight, np.float64) - rounded, mean)
    groups = each.shape[0] // parts
    total: Float64 = each.reshape(groups, parts, -1).sum(axis=1)
    return total
