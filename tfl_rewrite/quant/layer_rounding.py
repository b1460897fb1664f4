"""One weight rounded for the activations that it meets: scales, integers, and what the bias takes back."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from tfl_rewrite.quant import clipping
from tfl_rewrite.quant.calibrated import Metric, Pains, Ties, mean_error, nearest, quantize, restore
from tfl_rewrite.quant.encoding import Levels
from tfl_rewrite.quant.moments import Drift, Moments
from tfl_rewrite.quant.symmetric import Channels, Float32

Float64 = npt.NDArray[np.float64]

_SLICE_ELEMENTS = 1 << 22
"""Rounded at a time: 32 MB an array of float64, of which about ten are held."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How one weight is to be rounded.

    Attributes:
        shape: Of the weight.
        channels: How the flat weight falls into groups with a scale each.
        levels: The integers.
        centred: Whether a bias takes the mean error back.
        digits: Bits that a scale may have (see :class:`Ties`).
    """

    shape: tuple[int, ...]
    channels: Channels
    levels: Levels
    centred: bool
    digits: int = 24


@dataclass(frozen=True, slots=True)
class Gains:
    """Squared error of the products on the calibration inputs, summed over rows, as each step left it.

    Attributes:
        covering: Nearest integers, scales that cover the largest value.
        clipped: Nearest integers, scales of least squared error.
        corrected: The same with the mean error taken back.
        rounded: The outcome.
        signal: Of the float products.
    """

    covering: float
    clipped: float
    corrected: float
    rounded: float
    signal: float

    def decibels(self) -> dict[str, float]:
        """Returns what each step won, in dB."""
        steps = {
            "scales": (self.covering, self.clipped),
            "bias": (self.clipped, self.corrected),
            "rounding": (self.corrected, self.rounded),
        }
        return {name: _ratio(*pair) for name, pair in steps.items()}


def _ratio(before: float, after: float) -> float:
    return 10 * math.log10(before / after) if before > 0 and after > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Layer:
    """The outcome for one weight.

    Attributes:
        integers: Int8, in the shape of the weight.
        scale: Float32 ``[channels]``.
        bias: Float64 ``[rows of all groups]``: to be added to the bias; None where nothing takes it.
        gains: What each step won.
    """

    integers: npt.NDArray[np.int8]
    scale: Float32
    bias: Float64 | None
    gains: Gains


def ties_of(plan: Plan, moments: Moments) -> Ties:
    """Returns the ties of a weight's scales."""
    channels = plan.channels
    number = np.arange(channels.channels, dtype=np.int32)[None, :, None]
    whole = np.broadcast_to(number, (channels.outer, channels.channels, channels.inner))
    labels = moments.product.matrix(whole.reshape(plan.shape))
    return Ties.of(moments.split(labels), digits=plan.digits)


def round_layer(
    weight: Float32, plan: Plan, moments: Moments, pains: Pains, metric: Metric | None = None
) -> Layer:
    """Rounds a weight for what it meets.

    Args:
        weight: In its shape, finite.
        plan: How.
        moments: Of what it meets; a :class:`Drift` also tells what the float model meets there.
        pains: How much work it is worth.
        metric: What follows from the moments alone, if that is known already.
    """
    ties = ties_of(plan, moments)
    own = moments.split(np.ascontiguousarray(moments.product.matrix(weight), np.float32))
    if metric is None:
        metric = Metric.of(moments.covariance(centred=plan.centred))
    drift = moments if isinstance(moments, Drift) else None
    target = own if drift is None else drift.target(own, metric.moments, centred=plan.centred)
    start = _clipped(target, plan, moments, metric)
    integers, scale = np.empty(own.shape, np.int8), np.empty(ties.scale.shape)
    groups = moments.product.groups
    bias = np.zeros((groups, own.shape[1])) if drift is None else drift.mean_change(own)
    gains = None
    for rows in _slices(own.shape, ties):
        part = replace(ties, scale=ties.scale[:, rows], unit=ties.unit[:, rows]).dense()
        first = start[ties.scale[:, rows]]
        done = quantize(target[:, rows], metric, first, plan.levels, part, pains=pains)
        if drift is not None:
            restore(done, target[:, rows], metric, part)
        integers[:, rows], scale[:, rows] = done.integers, done.scale
        values = done.values()
        bias[:, rows] += mean_error(own[:, rows], values, moments.mean, moments.parts)
        if gains is None:
            # What little the first rows tell is enough for a report.
            labels = ties.scale[:, rows]
            gains = _gains(own[:, rows], target[:, rows] - values, labels, start, plan, moments, metric)
    assert gains is not None
    found = np.ones(plan.channels.channels, np.float32)
    found[ties.scale.reshape(-1)] = scale.reshape(-1)
    shaped = moments.product.weight(moments.joined(integers)).reshape(plan.shape)
    return Layer(np.ascontiguousarray(shaped), found, bias.reshape(-1) if plan.centred else None, gains)


def by_channel(values: npt.NDArray[Any], channels: Channels) -> npt.NDArray[Any]:
    """Returns ``[channels, elements]`` of a flat array; a copy where channels are not in one piece."""
    whole = values.reshape(channels.outer, channels.channels, channels.inner)
    found: npt.NDArray[Any] = whole.transpose(1, 0, 2).reshape(channels.channels, -1)
    return found


def _clipped(target: npt.NDArray[Any], plan: Plan, moments: Moments, metric: Metric) -> Float64:
    """Returns a scale for each channel: least squared error, weighted by how much each element counts."""
    product = moments.product

    def flat(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        whole = moments.joined(np.ascontiguousarray(array, np.float32))
        return by_channel(product.weight(whole), plan.channels)

    diagonal = np.einsum("gii->gi", metric.moments)[:, None, :]
    weights = flat(np.broadcast_to(diagonal, target.shape))
    return clipping.best(flat(target), plan.levels, weights).astype(np.float64)


def _slices(shape: tuple[int, ...], ties: Ties) -> list[slice]:
    groups, rows, length = shape
    step = max(1, _SLICE_ELEMENTS // max(1, groups * length))
    # Rows that share a scale stay together.
    first = ties.unit[:, :1]
    tied = rows > 1 and bool((ties.unit[:, 1:] == first).any())
    if tied or step >= rows:
        return [slice(0, rows)]
    return [slice(begin, min(rows, begin + step)) for begin in range(0, rows, step)]


def _wide(scale: Float64, length: int) -> Float64:
    wide: Float64 = scale if scale.shape[2] == 1 else scale.repeat(length // scale.shape[2], axis=2)
    return wide


def _gains(
    own: Float32,
    off: Float64,
    labels: npt.NDArray[np.int64],
    start: Float64,
    plan: Plan,
    moments: Moments,
    metric: Metric,
) -> Gains:
    """Measures what each step won on some rows.

    Args:
        own: Their float weights.
        off: How far the outcome is off.
        labels: Numbers of their scales.
        start: The scales of least squared error, by number.
        plan: Of the weight.
        moments: Of what it meets.
        metric: Of those.
    """
    length = own.shape[2]
    weight = np.asarray(own, np.float64)
    mean = moments.mean

    def cost(error: Float64, *, centred: bool) -> float:
        total = float(metric.cost(error).sum())
        if plan.centred and not centred:
            total += float((np.einsum("grk,gk->gr", error, mean) ** 2).sum())
        return total

    def left(scale: Float64) -> Float64:
        step = _wide(scale[labels], length)
        return weight - nearest(weight, step, plan.levels) * step

    sizes = np.abs(weight).reshape(*labels.shape, -1).max(axis=3)
    largest = np.zeros(len(start))
    np.maximum.at(largest, labels.reshape(-1), sizes.reshape(-1))
    plain = left(clipping.covering(largest[:, None], plan.levels))
    clipped = left(start)
    return Gains(
        cost(plain, centred=False),
        cost(clipped, centred=False),
        cost(clipped, centred=True),
        cost(off, centred=True),
        cost(weight, centred=False),
    )
