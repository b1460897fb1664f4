"""One weight rounded for the activations that it meets: scales, integers, and what the bias takes back.

What is fitted to few samples may be worse on others than rounding to the nearest, and a bias that takes a
mean error back may be far off where it is added. So each of the two steps is tried on each half of the
samples and measured on the other; a weight takes the one whose products err least there (two-fold
cross-validation), and is then fitted to all samples. To choose, some rows tell enough, and their first
integers: what fitting scales and improving integers wins after those, all ways win alike.
"""

from __future__ import annotations

import enum
import math
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from tfl_rewrite.numerics import clipping
from tfl_rewrite.numerics.gptq import (
    GptqEffort,
    Rounded,
    Ties,
    feedback,
    mean_error,
    nearest,
    pruned,
    quantize,
    restore,
    spread,
)
from tfl_rewrite.numerics.metric import Metric
from tfl_rewrite.numerics.moments import Covariances, Drift, Moments
from tfl_rewrite.numerics.products import Product
from tfl_rewrite.numerics.symmetric import Channels, Float32, Integers, Levels
from tfl_rewrite.options.frozen import frozen

Float64 = npt.NDArray[np.float64]
Run = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]

_SLICE_ELEMENTS = 1 << 21
"""Rounded at a time: 8 MB an array of float32, of which about ten are held."""

_TRIED_ROWS = 256
"""Of a weight, at least, that tell which way errs least. By 64 rows others seem to: 1.3 and 1.9 dB less on
inputs that were not seen for two of seven models (iris landmarks, visual wake words), measured."""

_STACKED_NBYTES = 8 << 20
"""Of factors of trials that are gone through together, so that each step of Python serves all of them."""

_KEPT_METRICS = 5
"""Of one weight, at most: about the mean or not, of each half; and one of those of all samples."""

_KEPT_NBYTES = 128 << 20
"""Of metrics of one weight."""


@frozen
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


@frozen
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


@frozen
class Layer:
    """The outcome for one weight.

    Attributes:
        integers: In the shape of the weight.
        scale: Float32 ``[channels]``.
        bias: Float64 ``[rows of all groups]``: to be added to the bias; None where nothing takes it.
    """

    integers: Integers
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

    Attributes:
        moments: As given.
    """

    def __init__(self, moments: Moments, *, keep: bool = False) -> None:
        self.moments = moments
        self._covariances = Covariances(moments)
        self._keep = keep and _KEPT_METRICS * 2 * moments.square[0].nbytes <= _KEPT_NBYTES
        self._known: dict[tuple[bool, int | None], Metric] = {}
        self._lock = threading.Lock()

    @staticmethod
    def nbytes_of(moments: Moments) -> int:
        """Returns about how much memory moments and all that is kept take."""
        sums, one = int(moments.square.nbytes), int(moments.square[0].nbytes)
        return sums + min(_KEPT_METRICS * 2 * one, _KEPT_NBYTES)

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
        self._zero = pruned(self._own)

    def tried(self, nearest_scale: Float32, run: Run = map) -> Trial:
        """Fits to each half of the samples and measures on the other; needs both (:attr:`Moments.halved`).

        Args:
            nearest_scale: Float32 ``[channels]``: the scales with which values are rounded to the nearest.
            run: Runs the trials; such as ``map`` of a pool of threads.
        """
        own = self._own[:, self._tried_rows]
        ties = self._ties.scale[:, self._tried_rows]
        wide = spread(nearest_scale[ties], own.shape[2])
        values = nearest(own, wide, self._plan.levels) * wide
        errors = {Fit.NEAREST: sum(self._moments.error(own, values, None, half) for half in (0, 1))}
        fits = [Fit.ROUNDING, *([Fit.BIAS] if self._plan.centred else [])]
        trials = [(fit, half) for fit in fits for half in (0, 1)]
        at_once = max(1, _STACKED_NBYTES // self._moments.square[0].nbytes)
        stacks = [trials[begin : begin + at_once] for begin in range(0, len(trials), at_once)]
        start = self._start(self._own, self._moments.powers)[ties]
        found = [error for stack in run(partial(self._errors, start), stacks) for error in stack]
        for (fit, _), error in zip(trials, found, strict=True):
            errors[fit] = errors.get(fit, 0.0) + error
        return Trial(errors)

    @property
    def _tried_rows(self) -> slice:
        return slice(None, None, max(1, self._own.shape[1] // _TRIED_ROWS))

    def _errors(self, start: Float64, trials: Sequence[tuple[Fit, int]]) -> list[float]:
        """Returns the error, on the other half of the samples, of what is fitted to one, for some trials.

        Args:
            start: Scales of the rows that are tried.
            trials: What is fitted, and to which half.
        """
        aims = [self._aim(centred=fit is Fit.BIAS, half=half) for fit, half in trials]
        rows, moments = self._tried_rows, self._moments
        own = self._own[:, rows]
        step = spread(start.astype(np.float32), own.shape[2])
        integers = feedback(
            np.concatenate([aim.target[:, rows] for aim in aims]),
            np.concatenate([step] * len(aims)),
            _Stack.of([aim.metric for aim in aims]),
            self._plan.levels,
            None if self._zero is None else np.concatenate([self._zero[:, rows]] * len(aims)),
        )
        ties = self._ties.part(rows)
        found = []
        for (fit, half), aim, mine in zip(trials, aims, np.split(integers, len(aims)), strict=True):
            done = self._restored(Rounded(mine, start), aim, rows, ties)
            bias = self._mean_error(done, rows, half) if fit is Fit.BIAS else None
            found.append(moments.error(own, done.values(), bias, 1 - half))
        return found

    def layer(self, *, bias: bool) -> Layer:
        """Rounds for all samples.

        Args:
            bias: Whether the bias is to take the mean error back; only where the plan allows.
        """
        plan, product, own = self._plan, self._moments.product, self._own
        integers = np.empty(own.shape, plan.levels.dtype)
        scale, given = np.empty(self._ties.scale.shape), np.empty((product.groups, own.shape[1]))
        aim = self._aim(centred=bias, half=None)
        start = self._start(aim.target, np.einsum("gii->gi", aim.metric.moments))
        for rows in _slices(own.shape, self._ties):
            ties = self._ties.part(rows)
            first = start[self._ties.scale[:, rows]]
            zero = None if self._zero is None else self._zero[:, rows]
            done = quantize(
                aim.target[:, rows], aim.metric, first, plan.levels, ties, effort=self._effort, zero=zero
            )
            done = self._restored(done, aim, rows, ties)
            integers[:, rows], scale[:, rows] = done.integers, done.scale
            if bias:
                given[:, rows] = self._mean_error(done, rows, None)
        found = np.ones(plan.channels.channels, np.float32)
        found[self._ties.scale.reshape(-1)] = scale.reshape(-1)
        shaped = product.weight(self._moments.joined(integers)).reshape(plan.shape)
        return Layer(np.ascontiguousarray(shaped), found, given.reshape(-1) if bias else None)

    def _aim(self, *, centred: bool, half: int | None) -> _Aim:
        """Returns what is rounded for one half of the samples, or all."""
        moments, target = self._moments, self._own
        metric = self._metrics.of(centred=centred, half=half)
        if isinstance(moments, Drift):
            target = moments.target(target, metric.moments, centred=centred, half=half).astype(np.float32)
            if self._zero is not None:
                target = np.where(self._zero, np.float32(0.0), target)
        return _Aim(target, metric)

    def _start(self, target: Float32, powers: npt.NDArray[np.floating]) -> Float64:
        """Returns a scale for each channel: least squared error, weighted by how much each element counts.

        Args:
            target: What is rounded.
            powers: Of what it meets, ``[groups * parts, length]``.
        """
        product, channels = self._moments.product, self._plan.channels

        def flat(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
            whole = self._moments.joined(np.ascontiguousarray(array, np.float32))
            return by_channel(product.weight(whole), channels)

        weights = flat(np.broadcast_to(powers[:, None, :], target.shape))
        return clipping.best(flat(target), self._plan.levels, weights).astype(np.float64)

    def _restored(self, done: Rounded, aim: _Aim, rows: slice, ties: Ties) -> Rounded:
        """Gives strength back behind what is rounded already."""
        if isinstance(self._moments, Drift):
            restore(done, aim.target[:, rows], aim.metric.moments, ties)
        return done

    def _mean_error(self, done: Rounded, rows: slice, half: int | None) -> Float64:
        """Returns what the bias of some rows is to take back."""
        moments, own = self._moments, self._own[:, rows]
        found = mean_error(own, done.values(), moments.mean(half), moments.parts)
        if isinstance(moments, Drift):
            found += moments.mean_change(own, half)
        return found


def rounding_nbytes(product: Product, elements: int, *, keep: bool) -> int:
    """Returns about how much memory rounding a weight takes, with the moments of what it meets.

    Args:
        product: How it is multiplied.
        elements: Of the weight.
        keep: Whether what follows from the moments is kept for other encodings.
    """
    moments = Moments.nbytes_of(product)
    # A metric takes as much as the sums of two halves; it is made in half of that.
    metrics = moments + (min(_KEPT_METRICS * moments, _KEPT_NBYTES) if keep else moments // 2)
    return moments + metrics + 40 * min(elements, _SLICE_ELEMENTS) + 8 * elements


@frozen
class _Aim:
    """What one weight is rounded to.

    Attributes:
        target: Float weights, ``[groups * parts, rows, length]``.
        metric: What their products are weighed by.
    """

    target: Float32
    metric: Metric


@frozen
class _Stack:
    """Several metrics as one of more groups; see :class:`tfl_rewrite.numerics.gptq.Factored`."""

    order: npt.NDArray[np.int64]
    factor: Float32

    @classmethod
    def of(cls, metrics: Sequence[Metric]) -> _Stack:
        if len(metrics) == 1:
            return cls(metrics[0].order, metrics[0].factor)
        return cls(
            np.concatenate([metric.order for metric in metrics]),
            np.concatenate([metric.factor for metric in metrics]),
        )


def by_channel(values: npt.NDArray[Any], channels: Channels) -> npt.NDArray[Any]:
    """Returns ``[channels, elements]`` of a flat array; a copy where channels are not in one piece."""
    whole = values.reshape(channels.outer, channels.channels, channels.inner)
    found: npt.NDArray[Any] = whole.transpose(1, 0, 2).reshape(channels.channels, -1)
    return found


def _slices(shape: tuple[int, ...], ties: Ties) -> list[slice]:
    groups, rows, length = shape
    step = max(1, _SLICE_ELEMENTS // max(1, groups * length))
    # Rows that share a scale stay together.
    first = ties.unit[:, :1]
    tied = rows > 1 and bool((ties.unit[:, 1:] == first).any())
    if tied or step >= rows:
        return [slice(0, rows)]
    return [slice(begin, min(rows, begin + step)) for begin in range(0, rows, step)]
