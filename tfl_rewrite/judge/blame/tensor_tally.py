"""How far one operator output is apart in two models, summed up over samples."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from tfl_rewrite.interpreter.interface import Array, TensorFacts

# Small enough for the processor's cache, and for sums that no threads are started for.
_PIECE = 1 << 16


class TensorTally:
    """Sums over the samples of one operator output.

    Quantized integers count as the real numbers that they stand for, so that a float and a quantized tensor
    compare. Elements that are not finite on both sides are counted, not measured.
    """

    def __init__(self, before: TensorFacts, after: TensorFacts) -> None:
        self._facts = before, after
        self.power = self.power_after = self.noise = self.dot = self.peak_error = 0.0
        self.elements = self.equal = self.measured = self.nonfinite = 0
        self.shape: tuple[int, ...] | None = None
        self.problem: str | None = None

    @property
    def has_distance(self) -> bool:
        """Whether both sides hold real numbers."""
        return all(is_real(facts) for facts in self._facts)

    def add(self, before: Array, after: Array) -> None:
        """Takes in one sample."""
        self.shape = self.shape or before.shape
        if before.shape != after.shape:
            if _without_ones(before.shape) != _without_ones(after.shape):
                self.problem = f"shape {list(after.shape)} instead of {list(before.shape)}"
                return
            after = after.reshape(before.shape)
        if self.has_distance:
            pieces = zip(real_pieces(before, self._facts[0]), real_pieces(after, self._facts[1]), strict=True)
            for first, second in pieces:
                self._measure(first, second)
        elif before.dtype.kind == after.dtype.kind or {before.dtype.kind, after.dtype.kind} <= set("biu"):
            self.elements += before.size
            self.equal += int(np.count_nonzero(before == after))
        else:
            self.problem = f"{self._facts[1].dtype} instead of {self._facts[0].dtype}"

    def _measure(self, first: Array, second: Array) -> None:
        self.elements += first.size
        finite = np.isfinite(first) & np.isfinite(second)
        if not finite.all():
            same = (np.isnan(first) & np.isnan(second)) | (np.isinf(first) & (first == second))
            self.nonfinite += int(np.count_nonzero(~finite & ~same))
            first, second = first[finite], second[finite]
        if first.size == 0:
            return
        error = first - second
        self.measured += first.size
        with np.errstate(over="ignore", invalid="ignore"):
            self.power += _dot(first, first)
            self.power_after += _dot(second, second)
            self.dot += _dot(first, second)
            self.noise += _dot(error, error)
        self.peak_error = max(self.peak_error, float(np.abs(error).max()))

    @property
    def ratio(self) -> float | None:
        """Noise to signal, in power; None where nothing was measured."""
        if not self.measured:
            return None
        if self.noise == 0:
            return 0.0
        return self.noise / self.power if self.power > 0 else math.inf

    @property
    def cosine(self) -> float | None:
        """Between all values before and after."""
        norms = math.sqrt(self.power) * math.sqrt(self.power_after)
        return self.dot / norms if 0 < norms < math.inf else None


def _dot(one: Array, other: Array) -> float:
    # Not np.dot: its threads wait for each other on a busy machine.
    return float(np.einsum("i,i->", one, other))


def is_real(facts: TensorFacts) -> bool:
    """Whether a tensor holds real numbers, as they are or quantized."""
    return facts.is_quantized or facts.dtype.startswith(("float", "bfloat", "complex"))


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)


def real_pieces(values: Array, facts: TensorFacts) -> Iterator[Array]:
    """The values as float64, flat, some at a time."""
    if values.dtype.kind == "c":
        values = np.ascontiguousarray(values).view(np.dtype(f"f{values.dtype.itemsize // 2}"))
    scales = np.asarray(facts.scales or (1.0,), dtype=np.float64)
    zeros = np.asarray(facts.zero_points or (0,), dtype=np.float64)
    if facts.is_quantized and scales.size > 1 and values.ndim:
        along = [-1 if axis == facts.quantized_dimension else 1 for axis in range(values.ndim)]
        zeros = np.broadcast_to(zeros, scales.shape)
        values = (values.astype(np.float64) - zeros.reshape(along)) * scales.reshape(along)
        scales, zeros = np.ones(1), np.zeros(1)
    elif not facts.is_quantized:
        scales, zeros = np.ones(1), np.zeros(1)
    flat = np.reshape(values, -1)
    for start in range(0, flat.size, _PIECE):
        yield (flat[start : start + _PIECE].astype(np.float64) - zeros[0]) * scales[0]
