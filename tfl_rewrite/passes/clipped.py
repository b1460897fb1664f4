"""A rounder that chooses scales for the least squared error of the weights."""

from __future__ import annotations

from dataclasses import dataclass

from tfl_rewrite.passes.rounders import Emit, Work
from tfl_rewrite.quant import clipping, symmetric
from tfl_rewrite.quant.layer_rounding import by_channel
from tfl_rewrite.quant.symmetric import Error, Float32

_SLICE_ELEMENTS = 1 << 22


@dataclass(frozen=True, slots=True)
class Clipped:
    """Scales that leave the least squared error (:mod:`tfl_rewrite.quant.clipping`), nearest integers."""

    def scales(self, work: Work) -> Float32:
        """Searches the scale of each channel or block."""
        result = symmetric.scales(work.largest, work.levels.high)
        values, channels = work.values(), work.channels
        if channels.outer == 1 and channels.inner > 1:
            step = max(1, _SLICE_ELEMENTS // channels.inner)
            for first in range(0, channels.channels, step):
                rows = min(step, channels.channels - first)
                part = values[first * channels.inner : (first + rows) * channels.inner].reshape(rows, -1)
                result[first : first + rows] = clipping.best(part, work.levels)
        else:
            result = clipping.best(by_channel(values, channels), work.levels)
        del values
        work.release()
        return result

    def round(self, work: Work, scale: Float32, emit: Emit) -> Error:
        """Rounds block by block."""
        return symmetric.quantize(work.values(), scale, work.channels, emit, work.levels)
