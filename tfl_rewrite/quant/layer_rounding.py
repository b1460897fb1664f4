"""One weight rounded for the activations that it meets: scales, integers, and what the bias takes back."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from tfl_rewrite.quant import clipping
from tfl_rewrite.quant.calibrated import Metric, Pains, Ties, mean_error, nearest, quantize
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
    target = (
        np.asarray(own, np.float64)
        if drift is None
        else drift.target(own, metric.moments, centred=plan.centred)
    )
    start = _clipped(target, plan, moments, metric)
    integers, scale = np.empty(own.shape, np.int8), np.empty(ties.scale.shape)
    for rows in _slices(own.shape, ties):
        part = replace(ties, scale=ties.scale[:, rows], unit=ties.unit[:, rows]).dense()
        first = start[ties.scale[:, rows]]
        done = quantize(target[:, rows], metric, first, plan.levels, part, pains=pains)
        integers[:, rows], scale[:, rows] = done.integers, done.scale
    found = np.ones(plan.channels.channels, np.float32)
    found[ties.scale.reshape(-1)] = scale.reshape(-1)
    values = integers * _wide(scale, own.shape[2])
    bias = None
    if plan.centred:
        met = moments.mean
        if drift is None:
            bias = mean_error(own, values, met, moments.parts).reshape(-1)
        else:
            wanted = mean_error(own, np.zeros_like(values), drift.wanted_mean, moments.parts)
            bias = (wanted + mean_error(np.zeros_like(values), values, met, moments.parts)).reshape(-1)
    gains = _gains(own, target, values, ties, start, plan, moments, metric)
    shaped = moments.product.weight(moments.joined(integers)).reshape(plan.shape)
    return Layer(np.ascontiguousarray(shaped), found, bias, gains)


def by_channel(values: npt.NDArray[Any], channels: Channels) -> npt.NDArray[Any]:
    """Returns ``[channels, elements]`` of a flat array; a copy where channels are not in one piece."""
    whole = values.reshape(channels.outer, channels.channels, channels.inner)
    found: npt.NDArray[Any] = whole.transpose(1, 0, 2).reshape(channels.channels, -1)
    return found


def _clipped(target: Float64, plan: Plan, moments: Moments, metric: Metric) -> Float64:
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
    target: Float64,
    values: Float64,
    ties: Ties,
    start: Float64,
    plan: Plan,
    moments: Moments,
    metric: Metric,
) -> Gains:
    """Measures the steps on at most so many rows as take little time."""
    length = own.shape[2]
    rows = slice(0, max(1, _SLICE_ELEMENTS // max(1, own.shape[0] * length)))
    weight = np.asarray(own[:, rows], np.float64)
    mean = moments.mean

    def cost(off: Float64, *, centred: bool) -> float:
        total = float(metric.cost(off).sum())
        if plan.centred and not centred:
            total += float((np.einsum("grk,gk->gr", off, mean) ** 2).sum())
        return total

    whole = moments.product.weight(moments.joined(own))
    covering = clipping.covering(by_channel(whole, plan.channels), plan.levels)
    labels = ties.scale[:, rows]
    step = _wide(covering[labels], length)
    plain = weight - nearest(weight, step, plan.levels) * step
    wide = _wide(start[labels], length)
    clipped = weight - nearest(weight, wide, plan.levels) * wide
    return Gains(
        cost(plain, centred=False),
        cost(clipped, centred=False),
        cost(clipped, centred=True),
        cost(target[:, rows] - values[:, rows], centred=True),
        cost(weight, centred=False),
    )
