"""Checks of what operators read against what their kernels take."""

from __future__ import annotations

from collections.abc import Iterator

from tfl_rewrite.kernels import runtimes
from tfl_rewrite.kernels.operands import (
    input_of,
    is_blockwise,
    lacks_shape,
    operators_of,
    recorded_shape,
    scales_of,
    weights_of,
    wrong_operands,
    zero_points_of,
)
from tfl_rewrite.kernels.operators import Need
from tfl_rewrite.kernels.reads import INTEGER_WEIGHTS, WeightRead, lacks_bias, scales_equal, weight_reads
from tfl_rewrite.kernels.table import row_of
from tfl_rewrite.model import customs
from tfl_rewrite.model.ir import Model, Operator, Tensor
from tfl_rewrite.reading.doctor.kinds import Finding
from tfl_rewrite.weights.repairs import undefined_depthwise


def check(model: Model) -> Iterator[Finding]:
    """Yields operators whose kernels will refuse or misread what they are given."""
    undefined = {id(read.operator) for read in undefined_depthwise(model)}
    for read in weight_reads(model):
        where = f"{read.place} {read.name}"
        if id(read.operator) in undefined:
            count, axis = len(read.scales), _axis(read)
            channels = (read.weight.shape or (0,))[-1]
            known = count in (1, channels) and not any(zero_points_of(read.weight))
            detail = f"{count} scales on axis {axis} for {channels} channels"
            yield Finding("depthwise-scales", where, detail, repairable=known)
        else:
            yield from _version(read, where)
        yield from _weight(read, where)
    for _, operator, place in operators_of(model):
        where = f"{place} {operator.code.name}"
        yield from _custom(operator, where)
        if operator.code.custom is None:
            yield from _counts(operator, where)
            yield from _types(operator, where)
            yield from _shapes(operator, where)


def _axis(read: WeightRead) -> int:
    details = read.weight.quantization
    return details.dimension if details is not None else 0


def _version(read: WeightRead, where: str) -> Iterator[Finding]:
    needed, found = read.needed_version(), read.operator.code.version
    if needed > found:
        text = runtimes.version_text(read.name, needed)
        detail = f"version {found}; a {read.form} needs version {needed}, first in {text}"
        yield Finding("hybrid-version", where, detail, repairable=True)
        return
    forms = read.whole_forms
    if forms and not read.blockwise and not any(form.version_tells for form in forms):
        first = ".".join(map(str, forms[0].first_runtime))
        yield Finding("hybrid-untold", where, f"{read.form}: right from {first} on. {forms[0].note}")


def _weight(read: WeightRead, where: str) -> Iterator[Finding]:
    if scales_equal(read):
        yield Finding("equal-scales", where, f"{len(read.scales)} scales of {read.scales[0]:g}")
    if read.weight.dtype_name in read.row.refused:
        yield Finding("hybrid-unsupported", where, f"its kernel takes no {read.form} beside floats")
    points = zero_points_of(read.weight)
    if read.weight.dtype_name == "INT8" and any(points):
        yield Finding("hybrid-zero-point", where, f"zero points up to {max(points, key=abs)}")
    if Need.ALL_OR_NOTHING in read.row.needs:
        weights = weights_of(read.operator)
        floats = sum(tensor.dtype_name == "FLOAT32" for tensor in weights)
        first = next(tensor for tensor in weights if tensor.dtype_name in INTEGER_WEIGHTS)
        if floats and first is read.weight:
            yield Finding("hybrid-mixed", where, f"{floats} of {len(weights)} weights are float32")
    if Need.INPUT_RANK_RECORDED in read.row.needs:
        activation = input_of(read.operator, read.row.activation)
        if activation is not None and not activation.shape:
            yield Finding("hybrid-input-rank", where, f"input {activation.name!r} has no recorded shape")


def _custom(operator: Operator, where: str) -> Iterator[Finding]:
    name = operator.code.custom
    if name is None or name in customs.BUILT_IN_CUSTOM:
        return
    if name in customs.DELEGATE_CUSTOM:
        yield Finding("delegate-operator", where, "custom operator")
    elif name.startswith("Flex"):
        yield Finding("custom-operator", where, "a TensorFlow operator: needs the select-ops (Flex) library")
    else:
        yield Finding("custom-operator", where, "custom operator")


def _counts(operator: Operator, where: str) -> Iterator[Finding]:
    wrong = wrong_operands(operator)
    if wrong is not None:
        yield Finding("operands", where, wrong)
    elif lacks_shape(operator):
        known = recorded_shape(operator.outputs[0] if operator.outputs else None)
        yield Finding(
            "operands", where, "neither input 1 nor new_shape gives a shape", repairable=bool(known)
        )


def _types(operator: Operator, where: str) -> Iterator[Finding]:
    row = row_of(operator)
    inputs = [tensor for tensor in operator.inputs if tensor is not None]
    types = list(dict.fromkeys(tensor.dtype_name for tensor in inputs))
    constants = [tensor for tensor in inputs if tensor.is_constant]
    blocks = [tensor for tensor in inputs if is_blockwise(tensor)]
    if blocks and not row.reads_blocks:
        yield Finding("blockwise-read", where, f"reads {blocks[0].name!r}")
    if row.elementwise and len(types) > 1:
        yield Finding("mixed-types", where, " and ".join(types))
    elif (row.multiplies or row.elementwise) and _gives_float(operator):
        half = [tensor for tensor in constants if tensor.dtype_name == "FLOAT16"]
        if half:
            yield Finding("float16-read", where, f"reads {half[0].name!r}")
    integers = [tensor for tensor in constants if tensor.dtype_name in INTEGER_WEIGHTS and scales_of(tensor)]
    if row.refusal and integers and _gives_float(operator):
        yield Finding("hybrid-unsupported", where, row.refusal)
    if lacks_bias(operator):
        output = operator.outputs[0]
        known = output is not None and bool(output.shape)
        yield Finding("missing-bias", where, "no bias", repairable=known)


def _shapes(operator: Operator, where: str) -> Iterator[Finding]:
    source = input_of(operator, 0)
    target = operator.outputs[0] if operator.outputs else None
    if not row_of(operator).same_scales or source is None or target is None:
        return
    if source.dtype_name not in ("INT8", "UINT8") or source.dtype != target.dtype:
        return
    before, after = _parameters(source), _parameters(target)
    if before != after:
        yield Finding("resize-scales", where, f"{_shown(before)} in, {_shown(after)} out")


def _parameters(tensor: Tensor) -> tuple[list[float], list[int]]:
    return scales_of(tensor), zero_points_of(tensor)


def _shown(parameters: tuple[list[float], list[int]]) -> str:
    scales, points = parameters
    return f"scale {scales[0]:.6g}, zero point {points[0] if points else 0}" if scales else "no scale"


def _gives_float(operator: Operator) -> bool:
    return any(tensor is not None and tensor.dtype_name == "FLOAT32" for tensor in operator.outputs)
