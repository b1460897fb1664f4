"""Checks of quantization parameters."""

from __future__ import annotations

import math
from collections.abc import Iterator

from tfl_rewrite import kernels
from tfl_rewrite.diagnosis.kinds import Finding
from tfl_rewrite.model.graph import Graph
from tfl_rewrite.model.ir import Model, Operator, Tensor
from tfl_rewrite.passes.repair_scales import (
    right_dimension,
    scale_values,
    tensors_of,
    wrong_dimension,
    zero_scales,
)
from tfl_rewrite.passes.weight_reads import (
    input_of,
    operators_of,
    scales_of,
    weight_reads,
    zero_points_of,
)

_INTEGERS = ("INT8", "UINT8", "INT16", "INT4", "INT2")
_WITH_BIAS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV")
_ALLOWED = 0.02
"""Of an output step; see the row ``bias-scale``."""
_RELATIVE = 0.01
"""Below it, the difference is what rounding a product of float32 scales several times leaves."""


def check(model: Model, graph: Graph) -> Iterator[Finding]:
    """Yields what is wrong with scales, zero points and axes."""
    hybrid = {id(read.weight) for read in weight_reads(model)}
    for place, tensor in tensors_of(model):
        where = f"{place} {tensor.name}".rstrip()
        yield from _parameters(tensor, where)
        if tensor.is_constant and (tensor.dtype_name in _INTEGERS or zero_scales(tensor)):
            expanded = bool(graph.uses_of(tensor)) and all(
                use.operator.code.name == "DEQUANTIZE" for use in graph.uses_of(tensor)
            )
            yield from _scales(tensor, where, repairable=id(tensor) in hybrid or expanded)
    for _, operator, place in operators_of(model):
        if operator.code.custom is None and operator.code.name in _WITH_BIAS:
            yield from _bias(operator, place)


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
    odd = [scale for scale in scales if scale != 0 and not kernels.SMALLEST_SCALE <= scale < math.inf]
    if odd:
        yield Finding("odd-scale", where, f"{len(odd)} of {len(scales)} scales, such as {odd[0]:g}")


def _bias(operator: Operator, place: str) -> Iterator[Finding]:
    name = operator.code.name
    positions = (2, 1, 3) if name == "TRANSPOSE_CONV" else (0, 1, 2)
    activation, weight, bias = (input_of(operator, position) for position in positions)
    output = operator.outputs[0] if operator.outputs else None
    if activation is None or weight is None or bias is None or output is None:
        return
    if bias.dtype_name not in ("INT32", "INT64") or activation.dtype_name not in _INTEGERS:
        return
    inputs, weights, biases = scales_of(activation), scales_of(weight), scales_of(bias)
    if len(inputs) != 1 or not weights or not biases or len(biases) not in (1, len(weights)):
        return
    products = [inputs[0] * scale for scale in weights]
    stated = biases if len(biases) == len(products) else biases * len(products)
    off = [
        (abs(one - other) / max(abs(one), abs(other)), one, other)
        for one, other in zip(products, stated, strict=True)
        if one != other
    ]
    worst = max(off, default=(0.0, 0.0, 0.0))
    if worst[0] <= _RELATIVE:
        return
    detail = f"{name}: the bias says {worst[2]:.4g}, input times weight is {worst[1]:.4g}"
    results = scales_of(output)
    if len(weights) == 1 and len(results) == 1 and results[0] > 0:
        steps = abs(worst[1] - worst[2]) / results[0]
        refused = "; more than 0.02 output steps: refused" if steps > _ALLOWED else ""
        detail += f" ({steps:.3g} output steps{refused})"
    else:
        wrong = sum(share > _RELATIVE for share, _, _ in off)
        detail += f" ({wrong} of {len(products)} channels)"
    yield Finding("bias-scale", f"{place} {bias.name}".rstrip(), detail)
