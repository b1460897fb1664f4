"""A rounder that chooses scales for the least squared error of the weights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tfl_rewrite.numerics import clipping, symmetric
from tfl_rewrite.numerics.symmetric import Error, Float32
from tfl_rewrite.weights.rounders import Emit, Work

_SLICE_ELEMENTS = 1 << 19
"""Looked at together."""

_SAMPLED_ELEMENTS = 1 << 22
"""Of a channel with more, a part is looked at."""


@dataclass(frozen=True, slots=True)
class Clipped:
    """Scales that leave the least squared error (:mod:`tfl_rewrite.numerics.clipping`), nearest integers.

    Of channels of many million elements every so-manieth is looked at, and the largest.
    """

    def scales(self, work: Work) -> Float32:
        """Searches the scale of each channel or block."""
        result = symmetric.scales(work.largest, work.levels.high)
        values, channels = work.values(), work.channels
        whole = values.reshape(channels.outer, channels.channels, channels.inner)
        per_channel = max(1, channels.outer * channels.inner)
        step = max(1, _SLICE_ELEMENTS // per_channel)
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
            result[first : first + step] = clipping.best(rows, work.levels)
            if channels.outer == 1:
                width = channels.inner * values.itemsize
                work.release(first * width, min(step, channels.channels - first) * width)
        del values, whole, part, rows
        work.release()
        return result

    def round(self, work: Work, scale: Float32, emit: Emit) -> Error:
        """Rounds block by block."""
        return symmetric.quantize(work.values(), scale, work.channels, emit, work.levels, spent=work.release)
