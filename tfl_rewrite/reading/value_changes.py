"""How the values of a constant differ between two models."""

from __future__ import annotations

import numpy as np

from tfl_rewrite.model import dtypes
from tfl_rewrite.model.blob import Blob
from tfl_rewrite.model.ir import Tensor
from tfl_rewrite.model.likeness import pieces, same_bytes


def other_values(one: Tensor, two: Tensor) -> str | None:
    """Says how many values differ and by how much, in words; None where all bytes are equal.

    Args:
        one: A constant.
        two: Another of the same type.
    """
    left, right = one.buffer.blob, two.buffer.blob
    if left is None or right is None or not (left.nbytes or right.nbytes):
        return None
    if left.nbytes != right.nbytes:
        return "other values"
    if same_bytes(left, right):
        return None
    row = dtypes.BY_VALUE.get(one.dtype)
    size = np.dtype(row.numpy).itemsize if row is not None and row.numpy else 0
    if row is None or not size or left.nbytes % size or one.is_sparse or two.is_sparse:
        return "other values"
    count, largest = _compared(left, right, np.dtype(row.numpy))
    total = left.nbytes // size
    return f"{count:,} of {total:,} values differ, by up to {largest:.4g}"


def _compared(one: Blob, two: Blob, kind: np.dtype[np.generic]) -> tuple[int, float]:
    """Returns how many values differ in their bits, and the largest finite difference."""
    count, largest = 0, 0.0
    for left, right in zip(pieces(one), pieces(two), strict=True):
        bits = [np.frombuffer(piece, np.uint8).reshape(-1, kind.itemsize) for piece in (left, right)]
        differ = (bits[0] != bits[1]).any(axis=1)
        count += int(differ.sum())
        wide = np.complex128 if kind.kind == "c" else np.float64
        values = [np.frombuffer(piece, kind)[differ].astype(wide) for piece in (left, right)]
        with np.errstate(invalid="ignore", over="ignore"):
            distance = np.abs(values[0] - values[1])
        largest = max(largest, float(distance[np.isfinite(distance)].max(initial=0.0)))
    return count, largest


__all__ = ["other_values"]
