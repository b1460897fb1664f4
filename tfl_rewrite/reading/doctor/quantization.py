"""Checks of quantization parameters."""

from __future__ import annotations

import math
from collections.abc import Iterator

from tfl_rewrite.kernels.operands import scales_of, zero_points_of
from tfl_rewrite.kernels.operators import SMALLEST_SCALE
from tfl_rewrite.kernels.reads import weight_reads
from tfl_rewrite.kernels.table import DEQUANTIZE, row_of
from tfl_rewrite.model.graph import Graph
from tfl_rewrite.model.ir import Model, Tensor
from tfl_rewrite.reading.doctor.kinds import Finding
from tfl_rewrite.weights.repairs import (
    Reading,
    right_dimension,
    scale_values,
    tensors_of,
    wrong_dimension,
    wrong_scales,
    wrong_types,
    zero_scales,
)

_INTEGERS = ("INT8", "UINT8", "INT16", "INT4", "INT2")


def check(model: Model, graph: Graph) -> Iterator[Finding]:
    """Yields what is wrong with scales, zero points and axes."""
    hybrid = {id(read.weight) for read in weight_reads(model)}
    for place, tensor in tensors_of(model):
        where = f"{place} {tensor.name}".rstrip()
        yield from _parameters(tensor, where)
        if tensor.is_constant and (tensor.dtype_name in _INTEGERS or zero_scales(tensor)):
            expanded = bool(graph.uses_of(tensor)) and all(
                row_of(use.operator) is DEQUANTIZE for use in graph.uses_of(tensor)
            )
            yield from _scales(tensor, where, repairable=id(tensor) in hybrid or expanded)
    for read in wrong_types(model):
        computed = read.reading is Reading.REFUSED and not read.bias.is_constant
        where = f"{read.place} {read.operator.code.name}"
        yield Finding("int16-bias", where, read.reading.value, repairable=not computed)
    for scale in wrong_scales(model):
        kind = "zero-bias-scale" if scale.zero and not scale.refused else "bias-scale"
        where = f"{scale.place} {scale.bias.name}".rstrip()
        detail = f"{scale.detail}; all of its values are zero" if scale.zero else scale.detail
        yield Finding(kind, where, detail, repairable=scale.zero)


def _parameters(tensor: Tensor, where: str) -> Iterator[Finding]:
    wrong = wrong_dimension(tensor)
    if wrong is not None:
        known = right_dimension(tensor) is not None
        yield Finding("quantized-dimension", where, wrong, repairable=known)
    scales, points = scales_of(tensor), zero_points_of(tensor)
    if scales and len(points) != len(scales):
        detail = f"{len(scales)} scales, {len(points)} zero points"
        yield Finding("zero-points", where, detail, repairable=len(set(points)) == 1)


def _scales(tensor: Tensor, where: str, *, repairable: bool) -> Iterator[Finding]:
    details = tensor.quantization
    scales = scales_of(tensor)
    if details is not None and details.scales_tensor is not None:
        values = scale_values(details.scales_tensor)
        scales = [] if values is None else [float(value) for value in values]
    zero = sum(scale == 0 for scale in scales)
    if zero:
        yield Finding("zero-scale", where, f"{zero} of {len(scales)} scales", repairable=repairable)
    odd = [scale for scale in scales if scale != 0 and not SMALLEST_SCALE <= scale < math.inf]
    if odd:
        yield Finding("odd-scale", where, f"{len(odd)} of {len(scales)} scales, such as {odd[0]:g}")
