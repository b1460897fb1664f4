"""Checks of the numbers in float constants."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tfl_rewrite.model import dtypes
from tfl_rewrite.model.ir import Model
from tfl_rewrite.reading.doctor.kinds import Finding
from tfl_rewrite.weights.repairs import tensors_of

_PIECE = 1 << 22


def check(model: Model) -> Iterator[Finding]:
    """Yields float constants that hold NaN or infinities; each range of bytes is looked at once."""
    seen: set[object] = set()
    for place, tensor in tensors_of(model):
        blob, row = tensor.buffer.blob, dtypes.BY_VALUE.get(tensor.dtype)
        if blob is None or row is None or row.name not in ("FLOAT32", "FLOAT16", "FLOAT64"):
            continue
        if blob.identity in seen or not tensor.is_constant or blob.nbytes % (row.bits // 8):
            continue
        seen.add(blob.identity)
        values = np.frombuffer(blob.view(), row.numpy)
        nans = infinities = 0
        for start in range(0, values.size, _PIECE):
            piece = values[start : start + _PIECE]
            if not np.isfinite(piece).all():
                nans += int(np.isnan(piece).sum())
                infinities += int(np.isinf(piece).sum())
        blob.release()
        where = f"{place} {tensor.name}".rstrip()
        if nans:
            yield Finding("nan", where, f"{nans} of {values.size} elements")
        if infinities:
            kind = "float16-infinity" if row.name == "FLOAT16" else "infinity"
            yield Finding(kind, where, f"{infinities} of {values.size} elements")
