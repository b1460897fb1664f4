"""What stands for one operator each: the same numbers from others; see ``substitutes.py`` for when.

Each function fills a draft with operators, and returns False where the operator is not of the kind that it
knows; what is in the draft is forgotten then.
"""

from __future__ import annotations

import math
import struct
from dataclasses import replace

import numpy as np

from tfl_rewrite.editing.drafts import Draft
from tfl_rewrite.kernels import table
from tfl_rewrite.kernels.copies import copy_of
from tfl_rewrite.kernels.operands import constant_values, scales_of
from tfl_rewrite.kernels.operators import OperatorRow
from tfl_rewrite.kernels.table import ADD, CONCATENATION, DEQUANTIZE, MUL, SUB, TRANSPOSE_CONV, row_of
from tfl_rewrite.model import dtypes
from tfl_rewrite.model.ir import Quantization, Tensor

_JOINED = 10
"""Inputs that a CONCATENATION of TFLite Micro takes."""
_LARGEST_POWER = 8
_MOST_LARGEST = 10
_MOST_FACTORS = 16
"""Of a product, and of the largest: each takes operators of its own."""
_BROADCAST_RANK = 4
"""Axes that comparisons of TFLite Micro broadcast over."""
_LSTM_INPUTS = 24
_STRUCT = struct.Struct("<iii")
"""``TfLiteTransposeConvParams``: padding (SAME is 1, VALID is 2), and the strides."""

# -- the same under another name, or in another type --------------------------------------------------------


def renamed(draft: Draft, row: OperatorRow) -> bool:
    """Operands of one shape: the two differ in how they broadcast.

    They change places: where one is NaN, or both are 0, the greater one of StableHLO is the first
    (``std::max`` in ``stablehlo_elementwise.cc``), and the other's the second (``maximum_minimum.cc``).
    """
    one, other = map(draft.shape, draft.operator.inputs)
    draft.give(row, draft.operator.inputs[::-1])
    return one is not None and one == other


def by_way_of(draft: Draft, row: OperatorRow, given: str, taken: str) -> bool:
    """Computes in another type that holds all values of the one that is missing."""
    inputs: list[Tensor | None] = []
    found = False
    for position, tensor in enumerate(draft.operator.inputs):
        if tensor is not None and tensor.dtype_name == given:
            if scales_of(tensor):
                return False
            found, tensor = True, draft.cast(tensor, taken, f"in{position}")
        inputs.append(tensor)
    if not found:
        return False
    operator, output = draft.operator, draft.output
    converted = output.dtype_name == given
    made = draft.step(row, inputs, output.shape, "wide", taken) if converted else output
    if not converted:
        draft.give(row, inputs)
    step = draft.steps[-1]
    step.options, step.options2 = operator.options, operator.options2
    step.rest = operator.rest
    if converted:
        draft.give_cast(made)
    return True


def narrow_indices(draft: Draft, row: OperatorRow, first: int = 1) -> bool:
    """Reads constant indices of 64 bits, from an operand on, as 32; others by a CAST."""
    inputs: list[Tensor | None] = list(draft.operator.inputs)
    for position, tensor in enumerate(inputs):
        if tensor is None or position < first or tensor.dtype_name != "INT64":
            continue
        values = constant_values(tensor, "INT64")
        if values is None:
            inputs[position] = draft.cast(tensor, "INT32", f"in{position}")
        else:
            narrow = values.astype(np.int32)
            if not np.array_equal(narrow, values):
                return False
            inputs[position] = draft.constant(narrow.reshape(tensor.shape or ()), f"in{position}")
    if all(one is other for one, other in zip(inputs, draft.operator.inputs, strict=True)):
        return False
    draft.give(row, inputs)
    step = draft.steps[-1]
    step.options, step.rest = draft.operator.options, draft.operator.rest
    return True


def bytes_by_steps(draft: Draft) -> bool:
    """Reads 0 to 255 as steps of 1: a RESHAPE says that they are, for the tensor may be an input."""
    source, output = draft.input(0), draft.output
    shape = draft.shape(source)
    if source is None or not shape or source.dtype_name != "UINT8":
        return False
    if output.dtype_name not in ("FLOAT32", "INT32"):
        return False
    steps = draft.reshaped(source, shape, "steps")
    steps.quantization = Quantization.single(1.0, 0)
    if output.dtype_name == "FLOAT32":
        draft.give(DEQUANTIZE, [steps])
    else:
        draft.give_cast(draft.step(DEQUANTIZE, [steps], shape, "numbers", "FLOAT32"))
    return True


def floor(draft: Draft, rest: bool = False) -> bool:
    """What DIV gives, which cuts off towards 0, less 1 where something below 0 is left.

    Args:
        draft: Of FLOOR_DIV, or of FLOOR_MOD: of int32, by constants above 0.
        rest: Whether what is left over is asked for.
    """
    source, divisor = draft.operator.inputs
    by, shape = draft.integers(1), draft.shape(draft.output)
    if source is None or divisor is None or by is None or shape is None or not len(by) or by.min() < 1:
        return False
    if {source.dtype_name, divisor.dtype_name} != {"INT32"}:
        return False
    quotient = draft.step(table.DIV, [source, divisor], shape, "quotient")
    left = draft.step(SUB, [source, draft.step(MUL, [quotient, divisor], shape, "whole")], shape, "left")
    zero = draft.constant(np.array(0, np.int32), "zero")
    below = draft.cast(draft.step(table.LESS, [left, zero], shape, "below", "BOOL"), "INT32", "one")
    if rest:
        draft.give(ADD, [left, draft.step(MUL, [below, divisor], shape, "turn")])
    else:
        draft.give(SUB, [quotient, below])
    return True


def as_reshape(draft: Draft) -> bool:
    """What leaves the elements in their order is a RESHAPE, where the shape is known."""
    copy = copy_of(row_of(draft.operator).copies, draft.given(draft.operator))
    source, shape = draft.input(0), draft.shape(draft.output)
    if copy is None or source is None or shape is None or draft.shape(source) is None:
        return False
    draft.give_reshaped(source, shape)
    return True


# -- choices ------------------------------------------------------------------------------------------------


def select(draft: Draft) -> bool:
    """With a condition of fewer axes the two differ: the older one chooses rows."""
    condition, one, other = draft.operator.inputs
    assert condition is not None and one is not None and other is not None
    shape, chosen = draft.shape(condition), draft.shape(one)
    if chosen is None or draft.shape(other) != chosen:
        return False
    if shape != chosen:
        rank = len(chosen)
        if shape is None or len(shape) != 1 or rank < 2:
            return False
        condition = draft.reshaped(condition, (*shape, *[1] * (rank - 1)), "rows")
    draft.give(table.SELECT_V2, [condition, one, other])
    return True


def select_numbers(draft: Draft) -> bool:
    """Chooses whole numbers by products with 0 and 1."""
    condition, one, other = draft.operator.inputs
    assert condition is not None and one is not None and other is not None
    shape = draft.shape(draft.output)
    if draft.output.dtype_name != "INT32" or shape is None:
        return False
    yes = draft.cast(condition, "INT32", "yes")
    no = draft.step(SUB, [draft.constant(np.array(1, np.int32), "one"), yes], yes.shape, "no")
    first = draft.step(MUL, [one, yes], shape, "first")
    second = draft.step(MUL, [other, no], shape, "second")
    draft.give(ADD, [first, second])
    return True


def any_of(draft: Draft) -> bool:
    """A greatest number of 0 and 1."""
    source, axes = draft.operator.inputs[:2]
    if source is None or source.dtype_name != "BOOL":
        return False
    numbers = draft.cast(source, "FLOAT32", "numbers")
    keep = bool(draft.operator.option("keep_dims"))
    most = draft.step(
        table.REDUCE_MAX, [numbers, axes], draft.output.shape, "most", "FLOAT32", keep_dims=keep
    )
    draft.give_cast(most)
    return True


def largest(draft: Draft) -> bool:
    """The first of the largest, then that of those that are left; what was taken is -inf from then on."""
    values, places = draft.outputs
    source, shape, count = draft.input(0), draft.shape(draft.input(0)), draft.integers(1)
    if source is None or not shape or count is None or not 1 <= count[0] <= min(shape[-1], _MOST_LARGEST):
        return False
    if (source.dtype_name, places.dtype_name) != ("FLOAT32", "INT32") or len(shape) > _BROADCAST_RANK:
        return False
    last, one = len(shape) - 1, (*shape[:-1], 1)
    axis = draft.constant(np.array([last], np.int32), "axis")
    numbers = draft.constant(np.arange(shape[-1], dtype=np.int32), "places")
    taken = draft.constant(np.full(1, -np.inf, np.float32), "taken")
    found: list[tuple[Tensor, Tensor]] = []
    for at in range(int(count[0])):
        if found:
            equal = draft.step(table.EQUAL, [found[-1][1], numbers], shape, f"is_taken{at}", "BOOL")
            source = draft.step(table.SELECT_V2, [equal, taken, source], shape, f"left{at}")
        most = draft.step(table.REDUCE_MAX, [source, axis], one, f"most{at}", keep_dims=True)
        place = draft.step(table.ARG_MAX, [source, axis], shape[:-1], f"at{at}", "INT32", output_type=2)
        found.append((most, draft.reshaped(place, one, f"place{at}")))
    for to, parts in zip((values, places), zip(*found, strict=True), strict=True):
        draft.give(CONCATENATION, parts, to, axis=last)
    return True


def product(draft: Draft) -> bool:
    """One part after the other, as its kernel multiplies."""
    source, axes, shape = draft.input(0), draft.integers(1), draft.shape(draft.input(0))
    result = draft.shape(draft.output)
    if source is None or axes is None or not shape or result is None:
        return False
    along = sorted({int(axis) % len(shape) for axis in axes if -len(shape) <= axis < len(shape)})
    if not along or along != list(range(along[0], along[-1] + 1)) or scales_of(source):
        return False
    before, count, behind = (
        math.prod(sizes)
        for sizes in (shape[: along[0]], shape[along[0] : along[-1] + 1], shape[along[-1] + 1 :])
    )
    if not 1 <= count <= _MOST_FACTORS:
        return False
    rows = draft.reshaped(source, (before, count, behind), "rows")
    sizes = draft.constant(np.array([before, 1, behind], np.int32), "sizes")
    made: Tensor | None = None
    for at in range(count):
        start = draft.constant(np.array([0, at, 0], np.int32), f"start{at}")
        part = draft.step(table.SLICE, [rows, start, sizes], (before, 1, behind), f"part{at}")
        made = part if made is None else draft.step(MUL, [made, part], part.shape, f"product{at}")
    assert made is not None
    draft.give_reshaped(made, result)
    return True


def rows_apart(draft: Draft) -> bool:
    """Gives rows, and a RESHAPE the axes that they were laid out on."""
    operator, shape = draft.operator, draft.shape(draft.output)
    if not operator.option("keep_num_dims") or operator.options is None or not shape:
        return False
    rows = draft.step(row_of(operator), operator.inputs, (math.prod(shape[:-1]), shape[-1]), "rows")
    draft.steps[-1].options = operator.options.replace(keep_num_dims=False)
    draft.give_reshaped(rows, shape)
    return True


def one_hot(draft: Draft) -> bool:
    """Compares indices with 0, 1, 2 ...; where the values are constants 1 and 0."""
    indices, shape = draft.input(0), draft.shape(draft.output)
    depth, on, off = (draft.input(position) for position in (1, 2, 3))
    kinds = "FLOAT32", "INT32"
    ends = [None if item is None else constant_values(item, *kinds) for item in (on, off)]
    count, axis = draft.integers(1), draft.operator.option("axis") or 0
    if indices is None or depth is None or shape is None or count is None or indices.dtype_name != "INT32":
        return False
    if (
        ends[0] is None
        or ends[1] is None
        or (*ends[0], *ends[1]) != (1, 0)
        or axis not in (-1, len(shape) - 1)
    ):
        return False
    places = draft.constant(np.arange(int(count[0]), dtype=np.int32), "places")
    column = draft.reshaped(indices, (*shape[:-1], 1), "column")
    equal = draft.step(table.EQUAL, [column, places], shape, "equal", "BOOL")
    draft.give_cast(equal)
    return True


# -- copies -------------------------------------------------------------------------------------------------


def tile_by_broadcast(draft: Draft) -> bool:
    """A new axis of length 1 before each that is repeated, broadcast, and joined with it."""
    source, shape, counts = draft.input(0), draft.shape(draft.input(0)), draft.integers(1)
    if source is None or not shape or counts is None or len(counts) != len(shape):
        return False
    if counts.min() < 1:
        return False
    # What is read and what is given, axis by axis; axes that are not repeated are one.
    axes: list[tuple[int, int]] = []
    for size, count in zip(shape, counts.tolist(), strict=True):
        if count > 1:
            axes.append((1, count))
        if size > 1 or count == 1:
            kept = count == 1 and axes and axes[-1][0] == axes[-1][1]
            last = axes.pop()[0] if kept else 1
            axes.append((last * size, last * size))
    wide, long = (tuple(sizes) for sizes in zip(*axes, strict=True))
    result = tuple(size * count for size, count in zip(shape, counts.tolist(), strict=True))
    start = source if wide == shape else draft.reshaped(source, wide, "apart")
    target = draft.constant(np.array(long, np.int32), "repeats")
    if long == result:
        draft.give(table.BROADCAST_TO, [start, target])
    else:
        made = draft.step(table.BROADCAST_TO, [start, target], long, "repeated")
        draft.give_reshaped(made, result)
    return True


def tile_by_joining(draft: Draft) -> bool:
    """A CONCATENATION of the same tensor along each axis that is repeated."""
    source, shape, counts = draft.input(0), draft.shape(draft.input(0)), draft.integers(1)
    if source is None or not shape or counts is None or len(counts) != len(shape) or counts.min() < 1:
        return False
    left = [axis for axis, count in enumerate(counts.tolist()) if count > 1]
    if not left:
        draft.give_reshaped(source, shape)
        return True
    sizes = list(shape)
    for axis in left:
        count = int(counts[axis])
        sizes[axis] *= count
        parts = [source] * count
        if axis == left[-1]:
            draft.give(CONCATENATION, parts, axis=axis)
        else:
            source = draft.step(CONCATENATION, parts, tuple(sizes), f"repeated{axis}", axis=axis)
    return True


def join_in_groups(draft: Draft) -> bool:
    """Joins ten at a time, and what comes of that."""
    operator, parts = draft.operator, list(draft.operator.inputs)
    axis = int(operator.option("axis") or 0)
    if len(parts) <= _JOINED or len(parts) > _JOINED**3 or draft.shape(draft.output) is None:
        return False
    if operator.option("fused_activation_function"):
        return False
    level = 0
    while len(parts) > _JOINED:
        joined: list[Tensor | None] = []
        for start in range(0, len(parts), _JOINED):
            group = parts[start : start + _JOINED]
            if len(group) == 1:
                joined += group
                continue
            sizes = list(draft.shape(group[0]) or ())
            sizes[axis] = sum((draft.shape(item) or ())[axis] for item in group)
            name = f"part{level}_{start // _JOINED}"
            joined.append(draft.step(CONCATENATION, group, tuple(sizes), name, axis=axis))
        parts, level = joined, level + 1
    draft.give(CONCATENATION, parts, axis=axis)
    return True


def broadcast_by_ones(draft: Draft) -> bool:
    """A product with ones where the source is of length 1."""
    source, shape, target = draft.input(0), draft.shape(draft.input(0)), draft.integers(1)
    if source is None or shape is None or target is None or source.dtype_name not in ("FLOAT32", "INT32"):
        return False
    padded = (*[1] * (len(target) - len(shape)), *shape)
    ones = [int(size) if one == 1 else 1 for one, size in zip(padded, target, strict=True)]
    if len(ones) > 4 or any(one not in (1, size) for one, size in zip(padded, target, strict=True)):
        return False
    kind = np.float32 if source.dtype_name == "FLOAT32" else np.int32
    draft.give(MUL, [source, draft.constant(np.ones(ones, kind), "ones")])
    return True


# -- functions ----------------------------------------------------------------------------------------------


def _floats(draft: Draft) -> Tensor | None:
    """The first input, where it and the output are floats."""
    source, kind = draft.input(0), dtypes.FLOAT32.value
    return source if source is not None and source.dtype == draft.output.dtype == kind else None


def _number(draft: Draft, value: float, suffix: str) -> Tensor:
    return draft.constant(np.array(value, np.float32), suffix)


def clamp(draft: Draft, low: float, high: float) -> bool:
    """The larger one with the lower end, and the smaller one with the upper end.

    The ends come first: where neither is larger, as with NaN, the kernels give the second.
    """
    source = _floats(draft)
    if source is None:
        return False
    least = draft.step(table.MAXIMUM, [_number(draft, low, "low"), source], source.shape, "least")
    draft.give(table.MINIMUM, [_number(draft, high, "high"), least])
    return True


def sign(draft: Draft) -> bool:
    """Whether it is above 0, less whether it is below; NaN, which does not equal itself, stays."""
    source = _floats(draft)
    if source is None:
        return False
    zero = _number(draft, 0.0, "zero")
    above = draft.step(table.GREATER, [source, zero], source.shape, "above", "BOOL")
    below = draft.step(table.LESS, [source, zero], source.shape, "below", "BOOL")
    parts = draft.cast(above, "FLOAT32", "plus"), draft.cast(below, "FLOAT32", "minus")
    known = draft.step(table.EQUAL, [source, source], source.shape, "known", "BOOL")
    draft.give(table.SELECT_V2, [known, draft.step(SUB, parts, source.shape, "side"), source])
    return True


def power(draft: Draft) -> bool:
    """Products for whole exponents, roots for halves, which make NaN of -inf and -0.0 of -0.0."""
    source, exponent = draft.operator.inputs
    values = None if exponent is None else constant_values(exponent, "FLOAT32", "INT32")
    if source is None or values is None or not values.size or len(set(values.tolist())) > 1:
        return False
    power = float(values[0])
    if draft.shape(source) is None or draft.shape(source) != draft.shape(draft.output):
        return False
    if source.dtype_name == "FLOAT32" and power in (0.5, -0.5):
        draft.give(table.SQRT if power > 0 else table.RSQRT, [source])
        return True
    if power == -1 and source.dtype_name == "FLOAT32":
        draft.give(table.DIV, [_number(draft, 1.0, "one"), source])
        return True
    if not power.is_integer() or not 2 <= power <= _LARGEST_POWER:
        return False
    # As few products as the binary digits of the exponent take.
    product, square, left, count = None, source, int(power), 0
    while left:
        if left & 1:
            last = left == 1
            if product is None:
                product = square
            elif last:
                draft.give(MUL, [product, square])
                return True
            else:
                product = draft.step(MUL, [product, square], source.shape, f"product{count}")
        left >>= 1
        count += 1
        if left == 1 and product is None:
            draft.give(MUL, [square, square])
            return True
        square = draft.step(MUL, [square, square], source.shape, f"square{count}")
    return False


_ERF = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)
_ERF_SLOPE = 0.3275911
"""Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26: the error is at most 1.5e-7."""


def gelu(draft: Draft) -> bool:
    """What it is made of: 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))), or with erf in place of tanh."""
    source = _floats(draft)
    if source is None:
        return False
    shape = source.shape

    def step(row: OperatorRow, one: Tensor, other: Tensor | float | None, name: str) -> Tensor:
        second = _number(draft, other, f"{name}_by") if isinstance(other, float) else other
        return draft.step(row, [one] if second is None else [one, second], shape, name)

    half = step(MUL, source, 0.5, "half")
    if draft.operator.option("approximate"):
        square = step(MUL, source, source, "square")
        bent = step(ADD, step(MUL, square, 0.044715, "cubic"), 1.0, "bent")
        inner = step(MUL, step(MUL, bent, source, "sum"), math.sqrt(2 / math.pi), "inner")
        share = step(ADD, step(table.TANH, inner, None, "tanh"), 1.0, "share")
        draft.give(MUL, [half, share])
        return True
    size = step(table.ABS, source, None, "size")
    inner = step(MUL, size, math.sqrt(0.5), "inner")
    slope = step(ADD, step(MUL, inner, _ERF_SLOPE, "slope"), 1.0, "slope1")
    turned = draft.step(table.DIV, [_number(draft, 1.0, "one"), slope], shape, "turned")
    sums = step(MUL, turned, _ERF[0], "sum0")
    for place, number in enumerate(_ERF[1:], 1):
        sums = step(MUL, step(ADD, sums, number, f"part{place}"), turned, f"sum{place}")
    falls = step(table.EXP, step(MUL, step(MUL, inner, inner, "square"), -1.0, "down"), None, "falls")
    rest = step(MUL, sums, falls, "rest")
    # x erf(x / sqrt 2) is |x| erf(|x| / sqrt 2).
    erf = draft.step(SUB, [_number(draft, 1.0, "whole"), rest], shape, "erf")
    bent = draft.step(MUL, [step(MUL, size, 0.5, "half_size"), erf], shape, "bent")
    draft.give(ADD, [half, bent])
    return True


def pad_by_value(draft: Draft) -> bool:
    """A padding of StableHLO that adds and takes nothing in between."""
    source, value = draft.operator.inputs
    options, shape = draft.operator.options2, draft.shape(draft.input(0))
    if source is None or value is None or options is None or not shape:
        # The kernel of a scalar refuses it.
        return False
    low, high, inner = (
        list(options.get(name) or ())
        for name in ("edge_padding_low", "edge_padding_high", "interior_padding")
    )
    if any(inner) or len(low) != len(shape) or len(high) != len(shape) or min(*low, *high) < 0:
        return False
    pads = draft.constant(np.array([*zip(low, high, strict=True)], np.int32), "pads")
    draft.give(table.PADV2, [source, pads, value])
    return True


def with_all_operands(draft: Draft) -> bool:
    """The operands of layer normalization, absent."""
    inputs = [*draft.operator.inputs]
    if len(inputs) >= _LSTM_INPUTS:
        return False
    draft.give(row_of(draft.operator), [*inputs, *[None] * (_LSTM_INPUTS - len(inputs))])
    step, operator = draft.steps[-1], draft.operator
    step.options, step.rest, step.intermediates = operator.options, operator.rest, operator.intermediates
    return True


def floats_first(draft: Draft) -> bool:
    """Reads floats in the place of integers; it makes them of those itself."""
    inputs = [
        tensor
        if tensor is None or tensor.dtype_name == "FLOAT32" or len(scales_of(tensor)) != 1
        else draft.step(DEQUANTIZE, [tensor], tensor.shape, f"in{position}", "FLOAT32")
        for position, tensor in enumerate(draft.operator.inputs)
    ]
    found = bool(draft.steps)
    draft.steps.append(replace(draft.operator, inputs=inputs))
    return found


def deconvolution(draft: Draft) -> bool:
    """The custom operator of MediaPipe has the options of TRANSPOSE_CONV as a struct of three numbers."""
    operator, shape = draft.operator, draft.output.shape
    given = operator.rest.get("custom_options")
    if given is None or len(given) < _STRUCT.size or len(operator.inputs) != 3:
        return False
    source, weight, bias = operator.inputs
    padding, wide, high = _STRUCT.unpack_from(bytes(given.raw))
    known = draft.shape(source)
    if known is None or shape is None or (len(known), len(shape)) != (4, 4):
        return False
    if weight is None or padding not in (1, 2) or min(wide, high) < 1:
        return False
    if padding == 1 and (shape[1], shape[2]) != (known[1] * high, known[2] * wide):
        return False
    sizes = draft.constant(np.array(shape, np.int32), "shape")
    # As a file numbers them: SAME is 0, and VALID 1.
    options = {"padding": padding - 1, "stride_w": wide, "stride_h": high}
    draft.give(TRANSPOSE_CONV, [sizes, weight, source, bias], **options)
    return True
