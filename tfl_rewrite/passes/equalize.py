"""Balances the channels between two weighted operators, so that rounding their weights costs less.

Promise: a channel that one operator makes and one other reads is divided by a power of two where it is made
and multiplied by it where it is read. RELU and its leaky kin, pooling and padding with zeros let such a
factor through, and floats take it without rounding, so every output stays equal to the bit; a channel whose
weights would leave the range of normal numbers stays. Nothing grows. It goes round until nothing is left to
win, at most eight times.

The idea is cross-layer equalization (Nagel et al. 2019, arXiv:1906.04721). With a scale for every output of a
weight, only the operator that reads the channels gains: each of its rows has one step for weights on strong
and on weak channels alike. For the error that its rounding leaves,
``sum_r max_i (w_ri s_i)^2 * sum_i m_i / s_i^2``, the factors ``s_i = m_i^(a/2) / u_i^(1-a)`` are tried, with
``m_i`` the power that the maker gives channel ``i`` on inputs of unit power and ``u_i`` the largest weight on
it. Operators whose channels do not get 5 % better are left alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from tfl_rewrite.editing.base import Context, Edit, Effect, Pass, PassResult
from tfl_rewrite.kernels.operators import ProductKind
from tfl_rewrite.kernels.table import row_of
from tfl_rewrite.model import dtypes
from tfl_rewrite.model.blob import OwnedBlob
from tfl_rewrite.model.graph import Graph
from tfl_rewrite.model.ir import Model, Operator, Tensor

Float64 = npt.NDArray[np.float64]

_READERS = (ProductKind.CONVOLUTION, ProductKind.DENSE)
_ACTIVATIONS = (0, 1)  # none and RELU
_POWERS = (0.25, 0.5, 0.75, 1.0)
_LARGEST_EXPONENT = 8
_LEAST_GAIN = 0.95
_ROUNDS = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Equalize(Pass):
    """Balances channels between operators by powers of two, so that rounding costs less.

    Example:
        >>> from tfl_rewrite.passes import Equalize, QuantizeWeights
        >>> model = tfl_rewrite.load("model.tflite")
        >>> results = tfl_rewrite.run(model, [Equalize(), QuantizeWeights()])
    """

    name: ClassVar[str] = "equalize"
    effect: ClassVar[Effect] = Effect.EXACT
    command: ClassVar[bool] = False
    place: ClassVar[str] = "before quantize-weights, which does it itself with effort=best"

    def run(self, model: Model, context: Context) -> PassResult:
        """Rewrites the model in place."""
        pairs = list(_pairs(model))
        gains: dict[int, float] = {}
        channels: dict[int, int] = {}
        # What is balanced before an operator changes what comes after it, and the other way round.
        for _ in range(_ROUNDS):
            moving = False
            for index, (maker, reader) in enumerate(pairs):
                before, after, moved = _balance(maker, reader)
                if moved:
                    moving = True
                    gains[index] = gains.get(index, 0.0) + 10 * float(np.log10(before / after))
                    channels[index] = max(channels.get(index, 0), moved)
            if not moving:
                break
        return PassResult(self.name, tuple(_edit(pairs[i][1], channels[i], gains[i]) for i in sorted(gains)))


def _edit(reader: Operator, channels: int, decibels: float) -> Edit:
    weight = reader.inputs[1]
    name = (weight.name if weight is not None else "") or "(unnamed)"
    what = f"{channels} input channel(s) scaled by powers of two; expected gain {decibels:.1f} dB"
    return Edit(name, what, 0, {"channels": channels, "gain_db": round(decibels, 2)})


def _pairs(model: Model) -> Iterator[tuple[Operator, Operator]]:
    """Yields operators whose channels lead to one other only."""
    graph = Graph.of(model)
    owners, pinned = model.holders(), model.pinned

    def own(tensor: Tensor | None) -> bool:
        return (
            tensor is not None
            and tensor.is_constant
            and tensor.elements > 0
            and tensor.dtype == dtypes.FLOAT32.value
            and not tensor.is_sparse
            and tensor.external is None
            and tensor.buffer.nbytes == 4 * tensor.elements
            and len(owners[id(tensor.buffer)]) == 1
            and id(tensor.buffer) not in pinned
            and id(tensor) not in graph.exposed
            and len(graph.uses_of(tensor)) == 1
        )

    for _, maker in model.operators():
        if (
            not row_of(maker).is_layer
            or not maker.outputs
            or (maker.option("fused_activation_function") or 0) not in _ACTIVATIONS
        ):
            continue
        bias = maker.inputs[2] if len(maker.inputs) > 2 else None
        if len(maker.inputs) < 2 or not own(maker.inputs[1]) or not (bias is None or own(bias)):
            continue
        reader = _reader(maker, graph)
        if reader is not None and own(reader.inputs[1]) and _fits(maker, reader):
            yield maker, reader


def _reader(maker: Operator, graph: Graph) -> Operator | None:
    """Returns the one weighted operator that reads what another makes, if nothing else does."""
    tensor = maker.outputs[0]
    # Damaged models may go in circles.
    seen: set[int] = set()
    while tensor is not None and id(tensor) not in graph.exposed and tensor.dtype == dtypes.FLOAT32.value:
        uses = graph.uses_of(tensor)
        if len(uses) != 1 or uses[0].position != 0 or uses[0].operator.code.custom is not None:
            return None
        operator = uses[0].operator
        if id(operator) in seen:
            return None
        seen.add(id(operator))
        if row_of(operator).product in _READERS and len(operator.inputs) > 1:
            return operator
        if not row_of(operator).homogeneous or not operator.outputs:
            return None
        if (operator.option("fused_activation_function") or 0) not in _ACTIVATIONS:
            return None
        tensor = operator.outputs[0]
    return None


def _fits(maker: Operator, reader: Operator) -> bool:
    """Whether the last axis of what lies between is the channel axis of both."""
    made, read = maker.inputs[1], reader.inputs[1]
    assert made is not None and read is not None
    first, second = made.shape or (), read.shape or ()
    if len(first) != _rank(maker) or len(second) != _rank(reader):
        return False
    if reader.option("weights_format") or maker.option("weights_format"):
        return False
    axis = row_of(maker).output_axis(1, len(first))
    channels = first[axis or 0]
    output = maker.outputs[0]
    between = reader.inputs[0]
    bias = maker.inputs[2] if len(maker.inputs) > 2 else None
    if maker is reader or (bias is not None and bias.elements != channels):
        return False
    # A FULLY_CONNECTED may read a picture as one row: its inputs then are not the channels.
    same = between is not None and (between.shape or (0,))[-1] == channels
    return same and second[-1] == channels and output is not None and (output.shape or (0,))[-1] == channels


def _rank(operator: Operator) -> int:
    return 2 if row_of(operator).product is ProductKind.DENSE else 4


def _balance(maker: Operator, reader: Operator) -> tuple[float, float, int]:
    """Scales the channels between two operators if that is worth it.

    Returns:
        The expected error before and after, and how many channels were scaled.
    """
    first, second = maker.inputs[1], reader.inputs[1]
    bias = maker.inputs[2] if len(maker.inputs) > 2 else None
    assert first is not None and second is not None
    axis = row_of(maker).output_axis(1, len(first.shape or ())) or 0
    made = np.moveaxis(_values(first), axis, 0)
    rows = made.reshape(len(made), -1)
    offset = np.zeros(len(rows), np.float32) if bias is None else _values(bias)
    read = _values(second)
    if not (np.isfinite(made).all() and np.isfinite(offset).all() and np.isfinite(read).all()):
        return 0.0, 0.0, 0
    power = np.square(rows, dtype=np.float64).sum(axis=1) + np.square(offset, dtype=np.float64)
    weights = np.abs(read.reshape(len(read), -1, read.shape[-1])).max(axis=1).astype(np.float64)
    exponents, before, _ = _factors(power, weights)
    for index in np.flatnonzero(exponents):
        down = np.append(rows[index], offset[index])
        if not (_exact(down, -int(exponents[index])) and _exact(read[..., index], int(exponents[index]))):
            exponents[index] = 0
    moved = int(np.count_nonzero(exponents))
    if not moved:
        return before, before, 0
    factor = np.ldexp(np.float32(1), exponents)
    made = made / factor.reshape(-1, *(1,) * (made.ndim - 1))
    _store(first, np.moveaxis(made, 0, axis))
    _store(second, read * factor)
    if bias is not None:
        _store(bias, offset / factor)
    return before, _error(power, weights, factor.astype(np.float64)), moved


def _factors(power: Float64, weights: Float64) -> tuple[npt.NDArray[np.int64], float, float]:
    """Returns the best exponents that were tried, and the expected error without and with them."""
    largest = weights.max(axis=0)
    used = (power > 0) & (largest > 0)
    none = np.zeros(len(power), np.int64)
    before = _error(power, weights, np.ones(len(power)))
    best, least = none, before
    if used.sum() < 2 or before == 0:
        return none, before, before
    for share in _POWERS:
        logs = 0.5 * share * np.log2(power[used]) - (1 - share) * np.log2(largest[used])
        # Those without a weight or a signal stay, and so does the middle of the others.
        exponents = none.copy()
        exponents[used] = np.clip(np.rint(logs - np.median(logs)), -_LARGEST_EXPONENT, _LARGEST_EXPONENT)
        found = _error(power, weights, np.ldexp(1.0, exponents))
        if found < least:
            best, least = exponents, found
    return (best, before, least) if least < _LEAST_GAIN * before else (none, before, before)


def _error(power: Float64, weights: Float64, factor: Float64) -> float:
    steps = np.square((weights * factor).max(axis=1)).sum()
    return float(steps * (power / factor**2).sum())


def _exact(values: npt.NDArray[Any], exponent: int) -> bool:
    """Whether values take a power of two without leaving the normal numbers."""
    with np.errstate(over="ignore"):
        moved = np.ldexp(values, exponent)
    return bool((np.ldexp(moved, -exponent) == values).all() and _normal(values) and _normal(moved))


def _normal(values: npt.NDArray[Any]) -> bool:
    size = np.abs(values[values != 0])
    return bool(np.isfinite(size).all() and (size >= np.finfo(np.float32).tiny).all())


def _values(tensor: Tensor) -> npt.NDArray[np.float32]:
    blob = tensor.buffer.blob
    assert blob is not None
    return np.frombuffer(blob.view(), "<f4").reshape(tensor.shape or ())


def _store(tensor: Tensor, values: npt.NDArray[Any]) -> None:
    tensor.buffer.blob = OwnedBlob(np.ascontiguousarray(values, "<f4").tobytes())
