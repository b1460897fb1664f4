"""What operators read against what their kernels take, and their versions against runtimes."""

from __future__ import annotations

from collections.abc import Iterator

from tfl_rewrite.editing.metadata import said_runtime
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
from tfl_rewrite.kernels.reads import (
    INTEGER_WEIGHTS,
    WeightRead,
    lacks_bias,
    late_releases,
    scales_equal,
    too_high,
    version_counts,
    weight_reads,
)
from tfl_rewrite.kernels.runtimes import Runtime
from tfl_rewrite.kernels.table import row_of
from tfl_rewrite.model.ir import Model, Operator, Tensor
from tfl_rewrite.model.lift import BUILT_IN_CUSTOM, DELEGATE_CUSTOM
from tfl_rewrite.reading.findings import Finding
from tfl_rewrite.weights.repairs import undefined_depthwise
from tfl_rewrite.weights.state import LateForm, late_forms


def check_operators(model: Model) -> Iterator[Finding]:
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
            yield from _form_version(read, where)
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


def _form_version(read: WeightRead, where: str) -> Iterator[Finding]:
    needed, found = read.needed_version(), read.operator.code.version
    if needed > found:
        text = runtimes.version_text(read.name, needed)
        detail = f"version {found}; a {read.form} needs version {needed}, first in {text}"
        yield Finding("hybrid-version", where, detail, repairable=True)
        return
    forms = read.whole_forms
    if forms and not read.blockwise and not any(form.version_tells for form in forms):
        first = runtimes.runtime_text(forms[0].first_runtime)
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
    if name is None or name in BUILT_IN_CUSTOM:
        return
    if name in DELEGATE_CUSTOM:
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
        yield Finding("resize-scales", where, f"{_parameters_text(before)} in, {_parameters_text(after)} out")


def _parameters(tensor: Tensor) -> tuple[list[float], list[int]]:
    return scales_of(tensor), zero_points_of(tensor)


def _parameters_text(parameters: tuple[list[float], list[int]]) -> str:
    scales, points = parameters
    return f"scale {scales[0]:.6g}, zero point {points[0] if points else 0}" if scales else "no scale"


def _gives_float(operator: Operator) -> bool:
    return any(tensor is not None and tensor.dtype_name == "FLOAT32" for tensor in operator.outputs)


def check_versions(model: Model, wanted: Runtime | None) -> Iterator[Finding]:
    """Yields operators that are newer than the file says, than any runtime, or than one that is asked for.

    Args:
        model: The model.
        wanted: The oldest runtime that is to run it, or None for no particular one.
    """
    pairs = version_counts(model)
    yield from _said(model, list(pairs))
    high = _high(model)
    for pair, count in pairs.items():
        yield from _version(pair, count, high.get(pair))
    if wanted is not None:
        late = list(late_forms(model, wanted))
        for pair, count in pairs.items():
            yield from _too_new(pair, count, wanted, high.get(pair), late)
        for item in late:
            first, asked = map(runtimes.runtime_text, (item.first, wanted))
            detail = f"{item.form}: right from {first} on; asked for {asked}"
            yield Finding("too-new", f"{item.place} {item.operator}", detail, advice=_requantize(wanted))


def _high(model: Model) -> dict[tuple[str, int], int]:
    """Returns what operator versions that are too high could be, where that is so of all that have them."""
    found: dict[tuple[str, int], int] = {}
    codes: dict[tuple[str, int], int] = {}
    for item in too_high(model):
        pair = (item.code.name, item.code.version)
        found[pair] = max(found.get(pair, 1), item.needed)
        codes[pair] = codes.get(pair, 0) + 1
    used = {id(operator.code): operator.code for _, operator in model.operators()}
    for code in used.values():
        pair = (code.name, code.version)
        codes[pair] = codes.get(pair, 0) - 1
    return {pair: needed for pair, needed in found.items() if codes[pair] == 0}


def _version(pair: tuple[str, int], count: int, needed: int | None) -> Iterator[Finding]:
    name, version = pair
    newest = runtimes.max_version(name, runtimes.NEWEST_RUNTIME)
    uses = ""
    if needed is not None:
        uses = f"; what they use needs {needed}, first in {runtimes.version_text(name, needed)}"
    if newest and version > newest:
        detail = f"{count} x version {version}; the newest that is known is {newest}{uses}"
        yield Finding("operator-version", f"operator {name}", detail, repairable=needed is not None)
    elif needed is not None:
        text = runtimes.version_text(name, version)
        detail = f"{count} x version {version}, first in {text}{uses}"
        yield Finding("version-high", f"operator {name}", detail, repairable=True)


def _too_new(
    pair: tuple[str, int], count: int, wanted: Runtime, needed: int | None, late: list[LateForm]
) -> Iterator[Finding]:
    name, version = pair
    text = runtimes.version_text(name, version)
    if text is None or runtimes.runtime_of(text) <= wanted:
        return
    first = runtimes.runtime_text(runtimes.runtime_of(text))
    advice = f"use a runtime of {first} or newer: no older form of it is known"
    lower = runtimes.version_text(name, needed) if needed is not None else None
    if lower is not None and runtimes.runtime_of(lower) <= wanted:
        advice = "tfl-rewrite repair IN OUT --only version-high"
    elif any(item.operator == name for item in late):
        advice = _requantize(wanted)
    detail = f"{count} x version {version}, first in {text}; asked for {runtimes.runtime_text(wanted)}"
    yield Finding("too-new", f"operator {name}", detail, advice=advice)


def _requantize(wanted: Runtime) -> str:
    return f"tfl-rewrite quantize-weights IN OUT --min-runtime {runtimes.runtime_text(wanted)}"


def _said(model: Model, pairs: list[tuple[str, int]]) -> Iterator[Finding]:
    said, needed = said_runtime(model), runtimes.min_runtime_text(pairs, late_releases(model))
    if said is None or not needed or runtimes.version_key(needed) <= runtimes.version_key(said):
        return
    owner = next((pair for pair in pairs if runtimes.version_text(*pair) == needed), None)
    what = "what an operator computes with" if owner is None else f"{owner[0]} version {owner[1]}"
    detail = f"it says {said or 'nothing'}; {what} needs {needed}"
    yield Finding("min-runtime", "metadata min_runtime_version", detail, repairable=True)
