"""How operators can read a weight that is stored smaller, what is decided of it, and what it costs in bytes.

Nothing is chosen for good here; :mod:`tfl_rewrite.weights.plan` weighs what is found.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from tfl_rewrite.kernels import operands, runtimes
from tfl_rewrite.kernels.operands import weights_of
from tfl_rewrite.kernels.operators import Form, Granularity, Need, OperatorRow, Reading, Shape
from tfl_rewrite.kernels.table import dequantize_form, row_of
from tfl_rewrite.model.ir import Operator, Tensor
from tfl_rewrite.numerics import symmetric
from tfl_rewrite.numerics.packing import packed_nbytes
from tfl_rewrite.numerics.symmetric import Channels, Levels
from tfl_rewrite.weights.candidates import Candidate
from tfl_rewrite.weights.encoding import Dtype, Encoding, Scheme
from tfl_rewrite.weights.scales import (
    Magnitudes,
    ScaleAxes,
    block_scales_nbytes,
    scales_nbytes,
    weight_axis,
    zero_points_nbytes,
)

# What a rewrite adds to the file beside the integers, in bytes: upper estimates, so that "smaller" holds.
_QUANTIZATION_NBYTES = 64
_TENSOR_NBYTES = 96
_OPERATOR_NBYTES = 56
# Blocks that are expanded: DEQUANTIZE twice, MUL and RESHAPE; and the tensors of them, with a shape.
_BLOCK_OPERATORS = 4
_BLOCK_TENSORS = 6
_BUFFER_NBYTES = 32
_ROW_SCALE_NBYTES = 4


@dataclass(slots=True, eq=False)
class Decision:
    """What is to become of one candidate.

    Attributes:
        item: The constant.
        readings: How each use gets at it, in the order of ``item.uses``.
        forms: What each use that reads integers takes, and last what DEQUANTIZE does, if any use needs it.
        axis: Channel axis of the scales; None for one scale, for blocks and for float16.
        dtype: What the elements become.
        block: Elements of a block; None where scales are not by block.
        native: Whether a kernel reads the blocks itself.
        sharing: How many constants are likely to have as many scales, and so the same zero points.
    """

    item: Candidate
    readings: list[Reading]
    forms: list[Form]
    axis: int | None
    dtype: Dtype = Dtype.INT8
    block: int | None = None
    native: bool = False
    sharing: int = 1
    stored_dtype: int = field(init=False)
    """Number of the type that the constant has in the input; rewiring changes the tensor's."""

    def __post_init__(self) -> None:
        self.stored_dtype = self.item.stored.dtype

    @property
    def channels(self) -> Channels:
        """How it falls into channels, each with a scale."""
        if self.block is not None:
            return Channels(1, self.item.elements // self.block, self.block)
        return Channels.along(self.item.shape, self.axis)

    @property
    def levels(self) -> Levels:
        """The integers that all of its readers read right."""
        bits = self.dtype.bits
        if len(self.dtype.parts) > 1:
            return self.dtype.levels
        full = all(form.full_range for form in self.forms if form.reading is Reading.HYBRID)
        return Levels.full(bits) if self.dtype is not Dtype.INT8 and full else Levels.narrow(bits)

    @property
    def kinds(self) -> tuple[Reading, ...]:
        """The readings, each once."""
        return tuple(dict.fromkeys(self.readings))

    @property
    def content(self) -> tuple[Channels | None, Dtype, Levels | None, bool]:
        """Equal for decisions of one constant that can share the new bytes."""
        if not self.dtype.is_integer:
            return None, self.dtype, None, False
        return self.channels, self.dtype, self.levels, self.native

    @property
    def data_nbytes(self) -> int:
        """Bytes of the new elements."""
        return sum(packed_nbytes(self.item.elements, part.bits) for part in self.dtype.parts)

    @property
    def content_nbytes(self) -> int:
        """Bytes of the new elements and their scales."""
        if not self.dtype.is_integer:
            return self.data_nbytes
        count = self.channels.channels
        if self.block is not None:
            return self.data_nbytes + block_scales_nbytes(count)
        scales = scales_nbytes(count, len(self.dtype.parts)) + self.zero_points_nbytes
        if self.rows:
            # They lie in a constant that is looked up too; who else reads the integers has them beside those.
            scales = _ROW_SCALE_NBYTES * count + (scales if self.zero_points_nbytes else 0)
        return self.data_nbytes + scales

    @property
    def zero_points_nbytes(self) -> int:
        """Bytes of zero points, as far as it does not share them with other constants."""
        only_rows = self.rows and self.kinds == (Reading.LOOKUP,)
        if not self.dtype.is_integer or self.block is not None or only_rows:
            return 0
        return zero_points_nbytes(self.channels.channels, self.sharing)

    @property
    def overhead(self) -> int:
        """Bytes beside integers and scales."""
        total = _QUANTIZATION_NBYTES
        name = len(self.item.value.name)
        if self.block is not None:
            if self.native:
                return total + _TENSOR_NBYTES + _BUFFER_NBYTES + name
            shape = 4 * len(self.item.shape)
            return (
                total
                + shape
                + _BLOCK_OPERATORS * _OPERATOR_NBYTES
                + _BLOCK_TENSORS * (_TENSOR_NBYTES + name)
                + 2 * _BUFFER_NBYTES
            )
        # DEQUANTIZE and ADD of another part, and what they give; the constant itself, and its buffer.
        more = 2 * (_OPERATOR_NBYTES + _TENSOR_NBYTES + name) + _TENSOR_NBYTES + name + _BUFFER_NBYTES
        total += (len(self.dtype.parts) - 1) * (more + _QUANTIZATION_NBYTES)
        if Reading.DEQUANTIZE in self.kinds:
            # An operator more; where there is one for float16 already, one of another version.
            total += _OPERATOR_NBYTES + (_TENSOR_NBYTES + name if self.item.expand is None else 0)
        # A lookup by rows takes three operators with an output each, and the tensor of scales.
        each = 4 if self.rows else 1
        total += self.readings.count(Reading.LOOKUP) * each * (_OPERATOR_NBYTES + _TENSOR_NBYTES + name)
        return total

    @property
    def rows(self) -> bool:
        """Whether it is looked up with one scale per row."""
        return any(
            form.reading is Reading.LOOKUP and form.granularity is Granularity.CHANNEL for form in self.forms
        )


def together(made: Decision) -> bool:
    """Whether its size is judged with the other weights of its operator."""
    return made.item.together > 0 and Reading.HYBRID in made.readings


def group_nbytes(group: Sequence[Decision]) -> int:
    """Returns the bytes that the decisions of one buffer take."""
    distinct = {made.content: made.content_nbytes for made in group}
    return sum(distinct.values()) + sum(made.overhead for made in group)


# The axis of the scales (None for one scale), and the axis over which a kernel would spread a single one
# (None where it does not).
Scales = tuple[int | None, int | None]


def settle_scales(wanted: Sequence[Sequence[tuple[Scales, Form]]]) -> Scales | None:
    """Chooses the scales with which most readers read the integers as they are; the better ones at a tie."""
    choices = list(dict.fromkeys(scales for forms in wanted for scales, _ in forms))
    if not choices:
        return None

    def readers(settled: Scales) -> int:
        return sum(any(agree(scales, settled) for scales, _ in forms) for forms in wanted)

    # max() keeps the first of equals; forms come best first, so finer scales stand before coarser ones.
    return max(sorted(choices, key=lambda scales: scales[0] is None), key=readers)


def agree(scales: Scales, settled: Scales | None) -> bool:
    """Whether a reader that wants some scales can read settled ones (Need.SAME_CHANNEL_AXIS)."""
    if settled is None or scales[0] != settled[0]:
        return False
    return scales[1] == settled[1] or scales[1] is None or settled[1] is None


def scales_axis(form: Form, operator: Operator, rank: int) -> Scales:
    """Returns the scales that a form wants."""
    if form.reading is Reading.LOOKUP:
        return (0, 0) if form.granularity is Granularity.CHANNEL else (None, None)
    axis = weight_axis(row_of(operator), operator, rank)
    return (axis if form.granularity is Granularity.CHANNEL else None), axis


@dataclass(slots=True)
class WeightForms:
    """The forms in which the operators of one model can read its constants.

    What was found of an operator is kept: make another one when other constants stay as they are.

    Attributes:
        min_runtime: The oldest runtime that must read them.
        candidates: The constants, by the id of the tensor that operators read.
        can_be_int8: Whether a weight is going to be int8, as far as is known.
        magnitudes: The largest magnitudes of the constants.
        axes: Chooses scales where readers leave that open.
    """

    min_runtime: runtimes.Runtime
    candidates: Mapping[int, Candidate]
    can_be_int8: Callable[[Tensor], bool]
    magnitudes: Magnitudes
    axes: ScaleAxes
    # What each operator's hybrid kernel takes of an encoding, or why nothing.
    _hybrid: dict[tuple[int, Encoding], Sequence[Form] | str] = field(default_factory=dict)

    def of(self, operator: Operator, position: int, encoding: Encoding) -> Sequence[Form] | str:
        """Returns how an operator can read integers at an input, best first, or why it cannot."""
        name = operator.code.name
        if encoding.scheme is Scheme.DEQUANTIZE:
            return "asked for dequantize"
        if len(encoding.dtype.parts) > 1:
            return f"no kernel reads {encoding.dtype.value} itself"
        row = row_of(operator)
        if row.table == position:
            lookup = row.form("INT8", Granularity.TENSOR, runtimes.NEWEST_RUNTIME)
            assert lookup is not None
            if encoding.dtype is not Dtype.INT8 or encoding.block is not None:
                return f"{name} moves int8 with one scale a row or for all, not {encoding.text}"
            rows = self._row_lookup(operator, position, encoding)
            if lookup.first_runtime > self.min_runtime:
                return f"{name} of runtime {runtime_text(self.min_runtime)} takes no int8 table"
            return [lookup] if rows is None else [rows, lookup]
        if position not in row.weights:
            return row.refusal or f"{name} has no hybrid kernel for input {position}"
        key = (id(operator), encoding)
        found = self._hybrid.get(key)
        if found is None:
            found = self._hybrid[key] = self._hybrid_forms(operator, row, encoding)
        return found

    def dequantize(self, dtype: Dtype, axis: int | None) -> Form | None:
        """Returns the DEQUANTIZE that expands integers with scales along an axis (None: one scale)."""
        granularity = Granularity.TENSOR if axis is None else Granularity.CHANNEL
        forms = [dequantize_form(part.tensor_type, granularity, self.min_runtime) for part in dtype.parts]
        return None if None in forms else forms[0]

    def no_dequantize(self, dtype: Dtype) -> tuple[str, str]:
        """Returns ``(rule, reason)`` for a constant that stays for want of it."""
        old = runtime_text(self.min_runtime)
        what = "its scales" if dtype is Dtype.INT8 else dtype.value
        return "runtime", f"runtime {old} has no DEQUANTIZE for {what}"

    def expanded_axes(self, item: Candidate, encoding: Encoding) -> list[int | None]:
        """Returns the axes along which the scales of a constant that only DEQUANTIZE reads may lie.

        None, for one scale, is always among them.
        """
        if encoding.granularity is Granularity.TENSOR or self.dequantize(encoding.dtype, 0) is None:
            return [None]
        return [None, *self.axes.axes(item)]

    def _row_lookup(self, operator: Operator, position: int, encoding: Encoding) -> Form | None:
        """Returns the form with one scale per row where a table gains by it, else None."""
        table = operator.inputs[position]
        item = self.candidates.get(id(table)) if table is not None else None
        form = row_of(operator).form("INT8", Granularity.CHANNEL, self.min_runtime)
        if item is None or form is None:
            return None
        if encoding.granularity is Granularity.TENSOR or len(item.shape) < 2:
            return None
        if operator.option("axis") or operator.option("batch_dims"):
            return None
        if not operands.same_rank_output(operator):
            return None
        one, rows = (Channels.along(item.shape, axis) for axis in (None, 0))
        options = {one: scales_nbytes(1), rows: scales_nbytes(rows.channels)}
        return form if self.axes.best(item, encoding.dtype, options) == rows else None

    def _hybrid_forms(self, operator: Operator, row: OperatorRow, encoding: Encoding) -> Sequence[Form] | str:
        """Returns the forms whose needs the operator meets, best first, or why there is none."""
        runtime, granularity = self.min_runtime, encoding.granularity
        old = runtime_text(runtime)
        reason = f"no hybrid form of {row.name} runs on {old} with the granularity asked for"
        if encoding.dtype is not Dtype.INT8:
            reason = f"no kernel of {row.name} on {old} reads {encoding.text}"
        for need in row.needs:
            unmet = operands.unmet(need, operator, self.can_be_int8)
            if unmet is not None:
                return unmet
        asked = encoding.dtype is not Dtype.INT8 and encoding.scheme is Scheme.HYBRID
        found = []
        for form in row.forms_for(runtime, encoding.dtype.tensor_type, by_default=not asked):
            is_block = form.granularity is Granularity.BLOCK
            if is_block != (granularity is Granularity.BLOCK):
                continue
            if form.granularity is not granularity and granularity is Granularity.TENSOR:
                continue
            missing = self._form_unmet(form, operator, row, encoding)
            if missing is None:
                found.append(form)
            else:
                reason = missing
        return found or reason

    def _form_unmet(self, form: Form, operator: Operator, row: OperatorRow, encoding: Encoding) -> str | None:
        weights = weights_of(operator)
        if form.granularity is Granularity.CHANNEL:
            for tensor in weights:
                axis = weight_axis(row, operator, len(tensor.shape or ()))
                if axis is None or not 0 <= axis < len(tensor.shape or ()):
                    return f"the weight's shape {list(tensor.shape or ())} has no channel axis"
        for tensor in weights:
            unfit = _unfit(form, tensor.shape or (), encoding)
            if unfit is not None:
                return f"{row.name}: {unfit}"
        for need in form.needs:
            if need is Need.SCALES_DIFFER:
                if not operands.grouped(operator) and any(self._equal_scales(item, row) for item in weights):
                    return "all of its scales are equal"
                continue
            unmet = operands.unmet(need, operator, self.can_be_int8)
            if unmet is not None:
                return unmet
        return None

    def _equal_scales(self, tensor: Tensor, row: OperatorRow) -> bool:
        item = self.candidates.get(id(tensor))
        if item is None:
            return False
        channels = Channels.along(item.shape, row.scales_axis())
        if channels.channels <= 1:
            return False
        scale = symmetric.scales(self.magnitudes.of(item, channels))
        return bool((scale == scale[0]).all())


def _unfit(form: Form, shape: Sequence[int], encoding: Encoding) -> str | None:
    """Returns why a weight's shape does not suit a form, or None."""
    row = math.prod(shape[1:])
    if form.shape is Shape.WHOLE_BYTES and row * encoding.dtype.bits % 8:
        return f"rows of {row} elements do not fill whole bytes"
    if form.shape is Shape.WHOLE_BLOCKS:
        block = encoding.block or 1
        if len(shape) != 2 or row % block:
            return f"the shape {list(shape)} is no matrix of whole blocks of {block}"
    return None


def runtime_text(runtime: runtimes.Runtime) -> str:
    """Returns a runtime as users write it, such as ``2.14``."""
    return f"{runtime[0]}.{runtime[1]}"
