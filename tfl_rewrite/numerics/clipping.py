"""Scales that leave the least squared error, instead of covering the largest value.

The error ``sum h (w - s q)^2`` with ``q = clip(round(w / s))`` is piecewise quadratic in the scale ``s``: for
given integers its least value over ``s`` is ``sum h w^2 - (sum h w q)^2 / sum h q^2``. The integers change at
``s = |w| / (k - 1/2)`` only, so sorting these positions and summing up gives the best scale of all
(:func:`exact`). Where that takes too many positions, a grid of scales is refined by the alternation of
rounding and least squares (:func:`refined`), which never makes the error larger. To clip for the squared
error is the idea of OCTAV (Sakr et al. 2022, arXiv:2206.06501); the search here is over the rounded values
themselves, so it assumes nothing about their distribution.

All functions take matrices ``[channels, elements]``, a row for each scale, and optional weights ``h`` of the
same shape or ``[1, elements]``: the mean squares of what each element is multiplied with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tfl_rewrite.numerics.symmetric import LARGEST_SCALE, LEVELS, SMALLEST_SCALE, Float32, Int8, Levels

Float64 = npt.NDArray[np.float64]

EXACT_ELEMENTS = 1 << 18
"""Of a constant whose every position is sorted: a fifth of a second for 8 levels on either side."""

EXACT_LEVELS = 8
"""Largest magnitude for which every position is sorted; with more levels a grid comes as near."""

# Shares of the largest value that a grid tries as the clipping point, for few and for many levels.
_COARSE = np.linspace(0.25, 1.0, 13)
_FINE = np.linspace(0.4, 1.0, 13)
_ROUNDS = 3

OUTLYING = 5.0
"""With many levels, cutting wins little where the largest value is no more than so many times the root mean
square: a normal distribution in 8 bits is best cut at four times."""

_NEARLY = 1.05
_LARGEST_SQUARED = 1e15

_WORK_ELEMENTS = 1 << 16


def covering(values: npt.NDArray[Any], levels: Levels) -> Float64:
    """Returns the scale of each row that covers its largest magnitude; 1 for rows of zeros.

    The narrower side of the range must hold the largest magnitude, so nothing is clipped.
    """
    largest = np.abs(values).max(axis=1, initial=0.0).astype(np.float64)
    return np.where(largest == 0, 1.0, bounded(largest / min(-levels.low, levels.high)))


def bounded(scale: Float64) -> Float64:
    """Returns scales within what the runtime takes: normal, and finite when multiplied with a level."""
    return np.clip(scale, SMALLEST_SCALE, float(LARGEST_SCALE))


def error(
    values: npt.NDArray[Any], scale: npt.NDArray[Any], levels: Levels, weights: npt.NDArray[Any] | None = None
) -> Float64:
    """Returns ``sum h (w - s q)^2`` of each row."""
    step = np.asarray(scale[:, None], values.dtype)
    off = values / step
    np.rint(off, out=off)
    np.clip(off, levels.low, levels.high, out=off)
    off *= step
    np.subtract(values, off, out=off)
    if weights is None:
        return np.asarray(np.einsum("ij,ij->i", off, off), np.float64)
    np.square(off, out=off)
    off *= weights
    return np.asarray(off.sum(axis=1), np.float64)


def best(
    values: npt.NDArray[Any],
    levels: Levels,
    weights: npt.NDArray[Any] | None = None,
    *,
    largest: Float64 | None = None,
    energy: Float64 | None = None,
) -> Float32:
    """Returns the scale of each row with the least weighted squared error, or very nearly so.

    Never worse than the scale that covers the largest value.

    Args:
        values: ``[channels, elements]``, finite.
        levels: The integers.
        weights: ``[channels, elements]`` or ``[1, elements]``, not negative; None for ones.
        largest: The largest magnitude of each row, where it is known.
        energy: The sum of the squares of each row, where it is known; in float32 or better. With many levels,
            only rows whose largest value lies far out are read then.

    Returns:
        Float32 ``[channels]``; 1 for rows of zeros.
    """
    rows, columns = values.shape
    small = values.size <= EXACT_ELEMENTS
    search = exact if small and _magnitude(levels) <= EXACT_LEVELS else refined
    result, left = np.ones(rows), np.arange(rows)
    if _magnitude(levels) > EXACT_LEVELS:
        if largest is None:
            # Two reductions make no copy.
            low, high = values.min(axis=1, initial=0.0), values.max(axis=1, initial=0.0)
            largest = np.maximum(high, -low).astype(np.float64)
        energy = _energy(values) if energy is None else energy
        left = np.flatnonzero(_outlying(energy, largest, columns))
        result = np.where(largest > 0, covering(np.ones((1, 1)), levels) * largest, 1.0)
    held = columns * (_magnitude(levels) if search is exact else 1)
    step = max(1, _WORK_ELEMENTS // max(1, held))
    for start in range(0, left.size, step):
        chunk = left[start : start + step]
        part = np.array(values[chunk], np.float64 if small else np.float32)
        # Relative to the largest, so that no square leaves the range.
        unit = np.abs(part).max(axis=1, initial=0.0).astype(np.float64)
        unit[unit == 0] = 1.0
        part /= unit[:, None].astype(part.dtype)
        own = weights if weights is None or len(weights) == 1 else weights[chunk]
        base = covering(part, levels)
        found = base.copy()
        chosen = np.ones(len(part), np.bool_)
        if _magnitude(levels) > EXACT_LEVELS:
            # Values are relative to the largest, which therefore is 1.
            chosen = np.square(part).sum(axis=1) * OUTLYING**2 < columns
        if chosen.any():
            some = own if own is None or len(own) == 1 else own[chosen]
            found[chosen] = search(part[chosen], levels, some)
            better = error(part, found, levels, own) < error(part, base, levels, own)
            found = np.where(better, found, base)
        result[chunk] = np.where(part.any(axis=1), found * unit, 1.0)
    return np.where(result == 1.0, 1.0, bounded(result)).astype(np.float32)


def _outlying(energy: Float64, largest: Float64, columns: int) -> npt.NDArray[np.bool_]:
    """Tells which rows have a largest value that may be :data:`OUTLYING`.

    Sums of float32 may be off by some percent, so rows near that limit count among them.
    """
    # What leaves the range when it is squared tells nothing.
    plain = (energy * OUTLYING**2 > _NEARLY * columns * largest**2) & (largest <= _LARGEST_SQUARED)
    found: npt.NDArray[np.bool_] = ~plain
    return found


def _energy(values: npt.NDArray[Any]) -> Float64:
    """Returns the sum of the squares of each row, in one pass and without copies."""
    rows, columns = values.shape
    energy = np.zeros(rows)
    step = max(1, _WORK_ELEMENTS // max(1, columns))
    for start in range(0, rows if columns else 0, step):
        part = np.asarray(values[start : start + step], np.result_type(values.dtype, np.float32))
        with np.errstate(over="ignore"):
            energy[start : start + step] = np.einsum("ij,ij->i", part, part)
    return energy


def exact(values: Float64, levels: Levels, weights: npt.NDArray[Any] | None = None) -> Float64:
    """Returns the best scale of each row, by going through every position where an integer changes."""
    rows, columns = values.shape
    size = np.abs(values)
    counts = np.arange(1, _magnitude(levels) + 1, dtype=np.float64)
    # [rows, levels, columns]: where the integer of an element grows from k - 1 to k; negative, so that what
    # is sorted starts at the largest scale.
    position = size[:, None, :] / (0.5 - counts[:, None])
    limit = np.where(values < 0, -levels.low, levels.high)
    for count in range(min(-levels.low, levels.high), len(counts)):
        position[:, count][limit <= count] = 0.0
    h = np.ones((1, columns)) if weights is None else np.asarray(weights, np.float64)
    cross = np.broadcast_to((h * size)[:, None, :], position.shape)
    square = np.broadcast_to(h[:, None, :] * (2 * counts[:, None] - 1), position.shape)
    flat = position.reshape(rows, -1)
    order = np.argsort(flat, axis=1)
    order += np.arange(rows)[:, None] * flat.shape[1]
    # What no integer is reached at is zero, and comes last.
    valid = np.arange(flat.shape[1]) < np.count_nonzero(flat, axis=1)[:, None]
    dot, norm = cross.reshape(-1).take(order), square.reshape(-1).take(order)
    for sums in (dot, norm):
        sums *= valid
        np.cumsum(sums, axis=1, out=sums)
    with np.errstate(divide="ignore", invalid="ignore"):
        gain = np.where(norm > 0, dot * dot / norm, 0.0)
        pick = np.arange(rows), gain.argmax(axis=1)
        scale = np.where(norm[pick] > 0, dot[pick] / norm[pick], 1.0)
    return np.where(scale > 0, scale, 1.0)


def refined(
    values: npt.NDArray[Any],
    levels: Levels,
    weights: npt.NDArray[Any] | None = None,
    shares: Sequence[float] | Float64 | None = None,
) -> Float64:
    """Returns a good scale of each row: the best of a grid, then refined.

    Args:
        values: ``[channels, elements]``.
        levels: The integers.
        weights: As for :func:`best`.
        shares: Of the covering scale, to try; by default from half (few levels: a fifth) to all of it.
    """
    if shares is None:
        shares = _COARSE if _magnitude(levels) <= EXACT_LEVELS else _FINE
    base = covering(values, levels)
    scale, least = base, error(values, base, levels, weights)
    for share in shares:
        tried = base * share
        found = error(values, tried, levels, weights)
        scale = np.where(found < least, tried, scale)
        least = np.minimum(least, found)
    for _ in range(_ROUNDS):
        scale = least_squares(values, scale, levels, weights)
    return scale


def least_squares(
    values: npt.NDArray[Any], scale: Float64, levels: Levels, weights: npt.NDArray[Any] | None = None
) -> Float64:
    """Returns the best scales for the integers that given scales lead to; never worse than those."""
    step = np.asarray(scale[:, None], values.dtype)
    integers = np.clip(np.rint(values / step), levels.low, levels.high)
    weighted = integers if weights is None else integers * weights
    dot = np.einsum("ij,ij->i", weighted, values).astype(np.float64)
    norm = np.einsum("ij,ij->i", weighted, integers).astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = dot / norm
    return np.where((norm > 0) & (found > 0), found, scale)


def _magnitude(levels: Levels) -> int:
    return max(-levels.low, levels.high)


_ALIKE = 0.8
"""Which part of the squares of what a channel meets is the same for all elements."""
_CANDIDATES = np.linspace(1.0, 1.08, 41)
"""Scales that are tried, as multiples of the one that covers the channel."""


def recentred(levels: npt.NDArray[np.int32]) -> tuple[Int8, Float64]:
    """Brings integers within -127 to 127, channel by channel, without any data.

    A uint8 weight less its zero point lies within -255 to 255. Channels within -127 to 127 stay to the bit.
    The others get a scale of their own and are rounded again, so that the errors of a channel add up to
    nearly nothing: what a channel is multiplied with is mostly alike from element to element (neighbours in a
    picture, activations behind a RELU), and errors that cancel cost little there. Measured on three uint8
    models on real pictures, before the last operators, on three kernels each: 0.1 dB worse to 2.3 dB better
    than the nearest integers on scales of least squared error.

    Args:
        levels: ``[channels, ...]``: integers less their zero point.

    Returns:
        Int8 of the same shape, and ``[channels]``: by what these are to be multiplied to be what they were;
        1 for channels that are equal to what they were.
    """
    rows = levels.reshape(len(levels), -1)
    factors = np.ones(len(rows))
    made = np.clip(rows, -LEVELS, LEVELS).astype(np.int8)
    largest = np.abs(rows).max(axis=1, initial=0)
    for channel in np.flatnonzero(largest > LEVELS):
        row, least = rows[channel].astype(np.float64), np.inf
        for factor in largest[channel] / LEVELS * _CANDIDATES:
            integers = _balanced(row, factor)
            error = integers * factor - row
            cost = (1 - _ALIKE) * np.dot(error, error) + _ALIKE * error.sum() ** 2
            if cost < least:
                least, factors[channel], made[channel] = cost, factor, integers
    return made.reshape(levels.shape), factors


def _balanced(row: Float64, factor: float) -> Float64:
    """Rounds to multiples of a factor; a few go the other way, so that the errors add up to half a step."""
    integers = np.clip(np.rint(row / factor), -LEVELS, LEVELS)
    error = integers * factor - row
    steps = int(np.rint(error.sum() / factor))
    if steps:
        farthest = np.argsort(-error * np.sign(steps), kind="stable")[: abs(steps)]
        integers[farthest] -= np.sign(steps)
    balanced: Float64 = np.clip(integers, -LEVELS, LEVELS)
    return balanced
