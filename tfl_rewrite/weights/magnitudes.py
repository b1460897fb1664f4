"""The largest magnitudes of constants, each read once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tfl_rewrite.model import dtypes
from tfl_rewrite.model.blob import Blob
from tfl_rewrite.numerics import symmetric
from tfl_rewrite.numerics.symmetric import Channels, Float32
from tfl_rewrite.weights.candidates import Candidate


@dataclass(slots=True)
class Magnitudes:
    """What was read of the constants of one model; several threads may ask at a time.

    Attributes:
        known: Float32 ``[channels]``: the largest magnitude of each, by constant and channels.
    """

    known: dict[tuple[object, Channels], Float32] = field(default_factory=dict)
    _finer: dict[object, Float32] = field(default_factory=dict)

    def of(self, item: Candidate, channels: Channels) -> Float32:
        """Returns the largest magnitude of each channel, float32 ``[channels]``."""
        blob = item.stored.buffer.blob
        assert blob is not None
        key = (blob.identity, channels)
        known = self.known.get(key)
        if known is None:
            finer = self._finer.get(blob.identity) if channels.channels == 1 else None
            if finer is not None:
                known = finer.max(keepdims=True)
            else:
                known = symmetric.absmax(_values(item, blob), channels, spent=blob.release)
            self.known[key] = self._finer[blob.identity] = known
        return known


def _values(item: Candidate, blob: Blob) -> np.ndarray[Any, Any]:
    return np.frombuffer(blob.view(), dtypes.BY_VALUE[item.stored.dtype].numpy)
