"""One weight rounded for the activations that it meets: scales, integers, and what the bias takes back.

What is fitted to few samples may be worse on others than rounding to the nearest, and a bias that takes a
mean error back may be far off where it is added. So each of the two steps is tried on each half of the
samples and measured on the other; a weight takes the one whose products err least there (two-fold
cross-validation), and is then fitted to all samples.
"""

from __future__ import annotations

import enum
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from tfl_rewrite.numerics import clipping
from tfl_rewrite.numerics.gptq import (
    GptqEffort,
    Metric,
    Rounded,
    Ties,
    mean_error,
    nearest,
    pruned,
    quantize,
    restore,
    spread,
)
from tfl_rewrite.numerics.moments import Covariances, Drift, Moments
from tfl_rewrite.numerics.symmetric import Channels, Float32, Levels

Float64 = npt.NDArray[np.float64]
Run = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]

_SLICE_ELEMENTS = 1 << 22
"""Rounded at a time: 32 MB an array of float64, of which about ten are held."""

_KEPT_NBYTES = 128 << 20
"""Of metrics of one weight."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How one weight is to be rounded.

    Attributes:
        shape: Of the weight.
        channels: How the flat weight falls into groups with a scale each.
        levels: The integers.
        centred: Whether a bias may take the mean error back.
        digits: Bits that a scale may have (see :class:`Ties`).
    """

    shape: tuple[int, ...]
    channels: Channels
    levels: Levels
    centred: bool
    digits: int = 24


class Fit(str, enum.Enum):
    """What a weight is rounded for."""

    NEAREST = "nearest"
    ROUNDING = "rounding"
    BIAS = "rounding and bias"


@dataclass(frozen=True, slots=True)
class Trial:
    """Squared error of the products, each half of the samples measured with what was fitted to the other.

    Attributes:
        errors: Of each way that was tried; :attr:`Fit.NEAREST` is fitted to nothing.
    """

    errors: Mapping[Fit, float]

    @property
    def best(self) -> Fit:
        """The way of the least error; the simplest of equals."""
        return min(self.errors, key=lambda fit: self.errors[fit])

    def decibels(self) -> dict[str, float]:
        """Returns what each way won over rounding to the nearest, in dB."""
        return {
            fit.value: _ratio(self.errors[Fit.NEAREST], error)
            for fit, error in self.errors.items()
            if fit is not Fit.NEAREST
        }


def _ratio(before: float, after: float) -> float:
    return 10 * math.log10(before / after) if before > 0 and after > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Layer:
    """The outcome for one weight.

    Attributes:
        integers: Int8, in the shape of the weight.
        scale: Float32 ``[channels]``.
        bias: Float64 ``[rows of all groups]``: to be added to the bias; None where nothing takes it.
    """

    integers: npt.NDArray[np.int8]
    scale: Float32
    bias: Float64 | None


def ties_of(plan: Plan, moments: Moments) -> Ties:
    """Returns the ties of a weight's scales."""
    channels = plan.channels
    number = np.arange(channels.channels, dtype=np.int32)[None, :, None]
    whole = np.broadcast_to(number, (channels.outer, channels.channels, channels.inner))
    labels = moments.product.matrix(whole.reshape(plan.shape))
    return Ties.of(moments.split(labels), digits=plan.digits)


class Metrics:
    """What rounding needs of moments, for all samples or a half of them, about the mean or not.

    Args:
        moments: Of what a weight meets.
        keep: Whether each is kept, for it is asked for again: by other encodings of the same weight.
    """

    def __init__(self, moments: Moments, *, keep: bool = False) -> None:
        self._covariances = Covariances(moments)
        self._keep = keep and 16 * moments.square[0].size * len(Fit) * 2 <= _KEPT_NBYTES
        self._known: dict[tuple[bool, int | None], Metric] = {}
        self._lock = threading.Lock()

    def of(self, *, centred: bool, half: int | None) -> Metric:
        """Returns one; see :meth:`Covariances.of`."""
        found = self._known.get((centred, half))
        if found is None:
            found = Metric.of(self._covariances.of(centred=centred, half=half))
            if self._keep:
                with self._lock:
                    found = self._known.setdefault((centred, half), found)
        return found


class LayerRounding:
    """Rounds one weight for what it meets.

    Args:
        weight: In its shape, finite.
        plan: How.
        moments: Of what it meets; a :class:`Drift` also tells what the float model meets there.
        effort: How much work it is worth.
        metrics: What follows from the moments alone, if that is known already.
    """

    def __init__(
        self,
        weight: Float32,
        plan: Plan,
        moments: Moments,
        effort: GptqEffort,
        metrics: Metrics | None = None,
    ) -> None:
        self._plan = plan
        self._moments = moments
        self._effort = effort
        self._metrics = metrics or Metrics(moments)
        self._ties = ties_of(plan, moments)
        matrix = np.ascontiguousarray(moments.product.matrix(weight), np.float32)
        self._own = moments.split(matrix)

    def tried(self, nearest_scale: Float32, run: Run = map) -> Trial:
        """Fits to each half of the samples and measures on the other; needs both (:attr:`Moments.halved`).

        Args:
            nearest_scale: Float32 ``[channels]``: the scales with which values are rounded to the nearest.
            run: Runs the trials; such as ``map`` of a pool of threads.
        """
        fits = [Fit.NEAREST, Fit.ROUNDING, *([Fit.BIAS] if self._plan.centred else [])]
        each = [(fit, half) for fit in fits for half in (0, 1)]

        def measured(trial: tuple[Fit, int]) -> float:
            return self._error(trial[0], trial[1], nearest_scale)

        found = run(measured, each)
        errors = dict.fromkeys(fits, 0.0)
        for (fit, _), error in zip(each, found, strict=True):
            errors[fit] += error
        return Trial(errors)

    def _error(self, fit: Fit, half: int, nearest_scale: Float32) -> float:
        """Returns the error, on one half of the samples, of what was fitted to the other."""
        total = 0.0
        if fit is Fit.NEAREST:
            step = nearest_scale.astype(np.float64)[self._ties.scale]
            for rows in _slices(self._own.shape, self._ties):
                own = self._own[:, rows]
                wide = spread(step[:, rows], own.shape[2])
                values = nearest(np.asarray(own, np.float64), wide, self._plan.levels) * wide
                total += self._moments.error(own, values, None, half)
            return total
        for rows, done, bias in self._rounded(centred=fit is Fit.BIAS, half=1 - half):
            given = bias if fit is Fit.BIAS else None
            total += self._moments.error(self._own[:, rows], done.values(), given, half)
        return total

    def layer(self, *, bias: bool) -> Layer:
        """Rounds for all samples.

        Args:
            bias: Whether the bias is to take the mean error back; only where the plan allows.
        """
        integers = np.empty(self._own.shape, np.int8)
        scale, given = np.empty(self._ties.scale.shape), np.empty((self._groups, self._own.shape[1]))
        for rows, done, change in self._rounded(centred=bias, half=None):
            integers[:, rows], scale[:, rows], given[:, rows] = done.integers, done.scale, change
        plan, product = self._plan, self._moments.product
        found = np.ones(plan.channels.channels, np.float32)
        found[self._ties.scale.reshape(-1)] = scale.reshape(-1)
        shaped = product.weight(self._moments.joined(integers)).reshape(plan.shape)
        return Layer(np.ascontiguousarray(shaped), found, given.reshape(-1) if bias else None)

    @property
    def _groups(self) -> int:
        return self._moments.product.groups

    def _rounded(self, *, centred: bool, half: int | None) -> Iterator[tuple[slice, Rounded, Float64]]:
        """Yields some rows at a time, what they became, and what their bias is to take back."""
        moments, plan, own = self._moments, self._plan, self._own
        metric = self._metrics.of(centred=centred, half=half)
        drift = moments if isinstance(moments, Drift) else None
        target = own if drift is None else drift.target(own, metric.moments, centred=centred, half=half)
        zero = pruned(own)
        if zero is not None:
            target = np.where(zero, 0.0, target)
        start = _clipped(target, plan, moments, metric)
        bias = np.zeros((self._groups, own.shape[1])) if drift is None else drift.mean_change(own, half)
        mean = moments.mean(half)
        for rows in _slices(own.shape, self._ties):
            ties = self._ties
            part = replace(ties, scale=ties.scale[:, rows], unit=ties.unit[:, rows]).dense()
            first = start[ties.scale[:, rows]]
            held = None if zero is None else zero[:, rows]
            done = quantize(target[:, rows], metric, first, plan.levels, part, effort=self._effort, zero=held)
            if drift is not None:
                restore(done, target[:, rows], metric, part)
            yield rows, done, bias[:, rows] + mean_error(own[:, rows], done.values(), mean, moments.parts)


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
