"""How integers and their scales are made from the values of a constant: the one place to plug in another way.

The plan decides what a constant becomes and who reads it how; a :class:`Rounder` then says which scales it
gets and which integers. It is told all that was decided (:class:`Work`), so that one that knows more than the
values (what the reader's activations are, which axis is summed over) can use it.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from tfl_rewrite.editing.base import Context
from tfl_rewrite.model import dtypes
from tfl_rewrite.model.blob import Blob
from tfl_rewrite.model.graph import Use
from tfl_rewrite.model.ir import Model, Operator
from tfl_rewrite.numerics import clipping, symmetric
from tfl_rewrite.numerics.grids import Array, Float64
from tfl_rewrite.numerics.symmetric import Channels, Error, Float32, Integers, Levels
from tfl_rewrite.options.frozen import frozen
from tfl_rewrite.weights.biases import Correction
from tfl_rewrite.weights.grids import Constant
from tfl_rewrite.work import current

Emit = Callable[[int, Integers], None]


class Effort(str, enum.Enum):
    """How much work rounding is worth."""

    FAST = "fast"
    BALANCED = "balanced"
    BEST = "best"


@frozen(eq=False)
class Work:
    """One constant that is to become integers.

    Attributes:
        name: Of the float tensor that operators read.
        position: Of its buffer in the model.
        shape: Dimensions of the constant, such as ``[out, height, width, in]`` of a convolution.
        bits: Of an element, as it is to be stored.
        axis: Channel axis of the scales; None for one scale, and for blocks.
        block: Elements of a block, which lie row-major in ``shape``; None where scales are not by block.
        channels: How the flat values fall into groups with a scale each: along ``axis``, or in blocks.
        levels: The smallest and largest integer that every reader reads right.
        uses: Who reads it, and at which input.
        readings: How each of them does: ``hybrid``, ``lookup``, ``dequantize``.
        largest: Float32 ``[channels]``: the largest magnitude of each.
        energy: Float64 ``[channels]``: the sum of the squares of each, where it is known.
        clipped: Scales of least squared error that were found before, of this constant and others.
    """

    name: str
    position: int
    shape: tuple[int, ...]
    bits: int
    axis: int | None
    block: int | None
    channels: Channels
    levels: Levels
    uses: tuple[Use, ...]
    readings: tuple[str, ...]
    largest: Float32
    _blob: Blob = field(repr=False)
    _stored: int
    energy: Float64 | None = None
    clipped: dict[object, Float32] = field(default_factory=dict, repr=False)

    @property
    def content(self) -> object:
        """What such scales depend on."""
        return self._blob.identity, self.channels, self.levels

    def values(self) -> np.ndarray[Any, Any]:
        """Returns the flat values, float32 or float16; a view of the file, not a copy."""
        return np.frombuffer(self._blob.view(), dtypes.BY_VALUE[self._stored].numpy)

    def release(self, start: int = 0, nbytes: int | None = None) -> None:
        """Gives the memory of the values, or of some of their bytes, back; call it when done with a view."""
        self._blob.release(start, nbytes)


class Rounder:
    """Makes scales and integers: the largest magnitude becomes the highest level, each value the nearest."""

    def prepare(self, model: Model, works: Sequence[Work]) -> None:
        """Is told of all constants before any of them is changed.

        Args:
            model: As it was before the pass changes it; not changed.
            works: All constants that are to become integers, each once.
        """

    def scales(self, work: Work) -> Float32:
        """Returns one scale for each channel or block.

        Returns:
            Float32 ``[channels]``: finite, at least ``symmetric.SMALLEST_SCALE``. They may be stored in fewer
            bits; :meth:`round` is given those that the file holds.
        """
        return symmetric.scales(work.largest, work.levels.high)

    def round(self, work: Work, scale: Float32, emit: Emit) -> Error:
        """Makes the integers; called again for each use of them, with equal results, from any thread.

        Args:
            work: The constant.
            scale: Float32 ``[channels]``, as they are in the file.
            emit: Takes the position of the first of some integers, and them (within ``work.levels``), in
                order and without gaps.

        Returns:
            The squared signal and error.
        """
        # Measured at once: what holds the values may be another file when somebody reads a report.
        symmetric.quantize(
            work.values(),
            scale,
            work.channels,
            emit,
            work.levels,
            largest=work.largest,
            spent=work.release,
            error=(error := Error()),
        )
        return error

    @property
    def ran_out_of_time(self) -> bool:
        """Whether some of the constants prepared last are rounded otherwise than they were to be."""
        return False

    def corrections(self) -> Sequence[Correction]:
        """Returns what biases are to take back, for the constants that were prepared last."""
        return ()

    def gains(self, _work: Work) -> dict[str, float] | None:
        """Returns what each step won for one constant, in dB; None where it was not calibrated."""
        return None

    def notes(self) -> Sequence[str]:
        """Returns what to tell the user of the last preparation."""
        return ()


_EMITTED = 1 << 20
_SLICE_ELEMENTS = 1 << 19  # Looked at together.

_SAMPLED_ELEMENTS = 1 << 22
"""Of a channel with more, a part is looked at."""


def emitted(
    integers: npt.NDArray[np.integer[Any]], work: Work, scale: Float32, emit: Emit, error: Error | None = None
) -> Error:
    """Gives out integers that are known already.

    Args:
        integers: Flat, as many as the constant has elements.
        work: The constant.
        scale: Of each channel.
        emit: Called with positions and integers, in order.
        error: What they are off by; measured where it is not known.
    """
    if error is not None:
        for start in range(0, integers.size, _EMITTED):
            emit(start, np.array(integers[start : start + _EMITTED]))
        return error
    values, channels, error = work.values(), work.channels, Error()
    for start in range(0, integers.size, _EMITTED):
        part = np.array(integers[start : start + _EMITTED])
        own = channels.by_element(scale, start, start + part.size)
        wanted = np.asarray(values[start : start + part.size], np.float64)
        off = wanted - part * own.astype(np.float64)
        error.signal += float(np.dot(wanted, wanted))
        error.noise += float(np.dot(off, off))
        emit(start, part)
    return error


class Clipped(Rounder):
    """Scales that leave the least squared error (:mod:`tfl_rewrite.numerics.clipping`), nearest integers.

    Of channels of many million elements values at even distances are looked at, and the largest.
    """

    def prepare(self, model: Model, works: Sequence[Work]) -> None:
        """Searches the scales of all constants, several at a time."""
        left = [work for work in works if work.content not in work.clipped]
        current().each(self.scales, left, nbytes=sum(4 * work.channels.elements for work in left))

    def scales(self, work: Work) -> Float32:
        """Returns the scale of each channel or block."""
        if work.content not in work.clipped:
            work.clipped[work.content] = self._searched(work)
        return work.clipped[work.content]

    def _searched(self, work: Work) -> Float32:
        result = symmetric.scales(work.largest, work.levels.high)
        values, channels = work.values(), work.channels
        whole = values.reshape(channels.outer, channels.channels, channels.inner)
        per_channel = max(1, channels.outer * channels.inner)
        step = max(1, _SLICE_ELEMENTS // per_channel)
        energy = work.energy if per_channel <= _SAMPLED_ELEMENTS else None
        for first in range(0, channels.channels, step):
            part = whole[:, first : first + step]
            if per_channel > _SAMPLED_ELEMENTS:
                # A part of so many tells as much, and takes less memory.
                share = -(-per_channel // _SAMPLED_ELEMENTS)
                part = part[::share] if channels.outer > channels.inner else part[:, :, ::share]
            rows = part.transpose(1, 0, 2).reshape(part.shape[1], -1)
            if rows.shape[1] < per_channel:
                ends = work.largest[first : first + step, None].astype(rows.dtype)
                rows = np.concatenate([rows, ends], axis=1)
            largest = work.largest[first : first + step].astype(np.float64)
            known = None if energy is None else energy[first : first + step]
            result[first : first + step] = clipping.best(rows, work.levels, largest=largest, energy=known)
            if channels.outer == 1:
                width = channels.inner * values.itemsize
                work.release(first * width, min(step, channels.channels - first) * width)
        del values, whole, part, rows
        work.release()
        return result


class Fitting(Protocol):
    """Chooses values on grids, and which become zero, by what they are multiplied with."""

    def prepare(self, model: Model, items: Sequence[Constant], share: float | None = None) -> None:
        """Looks at what constants meet.

        Args:
            model: As it was before any of them is changed; not changed.
            items: The constants.
            share: Of zeros, where they are to be pruned: with it, what half of the samples leads to is
                measured on the other.
        """

    def fit(self, item: Constant, values: Array, steps: Float64) -> Float64 | None:
        """Returns values of a constant on the grids of its channels.

        Args:
            item: The constant.
            values: Its numbers as they were, flat.
            steps: ``[channels]``, or one for all.

        Returns:
            Flat, row-major; every one a multiple of its step, and none further out than a step beyond what
            rounding to the nearest gives the channel. None where nothing is known of it.
        """

    def costs(self, item: Constant, values: Array) -> Float64 | None:
        """Returns what losing each value of a constant costs, as a share of what it gives; in any order.

        Args:
            item: The constant.
            values: Its numbers as they were, flat.

        Returns:
            None where nothing is known of it.
        """

    def prune(self, item: Constant, values: Array, share: float, block: int) -> tuple[Float64, Error] | None:
        """Returns a constant with a share of its values zero, and how far what it gives is off.

        Args:
            item: The constant.
            values: Its numbers as they were, flat.
            share: Of them, that is to be zero.
            block: So many neighbours along the last axis are zero together.

        Returns:
            Flat, row-major, those that stay changed so that they make up for the others; None where nothing
            is known of it, or what is known leads to more error than going by size.
        """

    def notes(self) -> Sequence[str]:
        """Returns what to tell the user of the last preparation."""


Simulate = Callable[[Model], Mapping[tuple[int, int], Operator]]
"""Makes a copy of a model round its activations as integer kernels do; returns the operators of the copy by
where they were: positions of the subgraph and in it."""

Simulated = Callable[[Mapping[int, tuple[float, float]]], Simulate]
"""Tells of ranges, by id of the tensors of a model, how to make a copy round its activations."""

Measure = Callable[[Simulated], float]
"""Tells what a simulated model keeps of its lowest output, in dB, on samples that its ranges do not come
from."""


@runtime_checkable
class Activations(Protocol):
    """Knows what weights meet.

    The same pass (:attr:`Context.number`) gets the same object each time, with what that has found.
    """

    def rounder(self, number: int, effort: Effort, *, correct_bias: bool) -> Rounder:
        """Returns what rounds weights to integers for what they meet.

        Args:
            number: Of the pass.
            effort: How much work a weight is worth; ``best`` goes weight by weight.
            correct_bias: Whether biases take mean errors back.
        """

    def ranges(self, number: int, model: Model, *, whole: bool = False) -> Mapping[int, tuple[float, float]]:
        """Returns the least and the greatest value of float tensors, constants among them, by id.

        Args:
            number: Of the pass.
            model: As it is now, with float weights. What no input reaches is missing.
            whole: Whether on the samples that judge as well.
        """

    def measured(self, number: int, model: Model, use: Callable[[Measure], None]) -> None:
        """Gives somebody what measures a model whose activations are rounded; nothing without samples for it.

        Args:
            number: Of the pass.
            model: As :meth:`ranges` was asked about.
            use: Called once, if at all.
        """

    def integer_rounder(
        self, number: int, effort: Effort, simulate: Simulate, *, correct_bias: bool
    ) -> Rounder:
        """Returns what rounds the weights of a model that computes in integers, weight by weight.

        Args:
            number: Of the pass.
            effort: How much work a weight is worth.
            simulate: Makes a copy of the model round its activations.
            correct_bias: Whether biases take mean errors back.
        """

    def fitting(self, number: int) -> Fitting:
        """Returns what chooses values on grids for what they meet, for the pass of a number."""


@runtime_checkable
class Measures(Protocol):
    """Knows what changes of a model do to its outputs."""

    @property
    def min_snr(self) -> float | None:
        """The ratio in dB that every output must keep; None where others are judged."""

    def memory(self, number: int) -> dict[str, Any]:
        """Returns what a pass left there when it ran before, on an equal model.

        Args:
            number: Of the pass.
        """

    def noises(
        self, number: int, model: Model, changes: Sequence[Simulated], *, apart: bool = True
    ) -> Float64:
        """Returns noise over signal of each output of changed copies, ``[changes, outputs]``.

        Args:
            number: Of the pass.
            model: As it is now, with float weights.
            changes: What makes the copies.
            apart: Whether samples are measured on ranges that they are not among, where there are enough.
        """


def fitting_of(own: Fitting | None, effort: Effort, context: Context) -> Fitting | None:
    """Returns what fits the values of a pass, to be prepared: its own, else that of the inputs."""
    activations = activations_of(context)
    if own is None and effort is not Effort.FAST and activations is not None:
        return activations.fitting(context.number)
    return own


def activations_of(context: Context) -> Activations | None:
    """Returns what a pass was given, where it was."""
    found = context.activations
    return found if isinstance(found, Activations) else None


def measures_of(context: Context) -> Measures | None:
    """Returns what measures for a pass, where it was given such a thing."""
    found = context.activations
    return found if isinstance(found, Measures) else None
