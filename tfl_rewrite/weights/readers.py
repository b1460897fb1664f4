"""How operators can read a weight that is stored smaller, and with which scales.

Nothing is chosen for good here; :mod:`tfl_rewrite.weights.plan` weighs what is found.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field

from tfl_rewrite.kernels import operands, runtimes
from tfl_rewrite.kernels.operands import weights_of
from tfl_rewrite.kernels.operators import Form, Granularity, Need, OperatorRow, Reading, Shape
from tfl_rewrite.kernels.runtimes import runtime_text
from tfl_rewrite.kernels.table import dequantize_form, row_of
from tfl_rewrite.model.ir import Operator, Tensor
from tfl_rewrite.numerics import symmetric
from tfl_rewrite.numerics.symmetric import Channels
from tfl_rewrite.options.frozen import slotted
from tfl_rewrite.weights.candidates import Candidate
from tfl_rewrite.weights.encoding import Encoding, Scheme
from tfl_rewrite.weights.scales import Magnitudes, ScaleAxes, weight_axis
from tfl_rewrite.weights.storage import StorageForm

KERNEL_BLOCK = 32
"""Of what length, or a multiple of it, kernels take blocks: XNNPACK refuses others."""

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


@slotted
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
    _hybrid: dict[tuple[int, Encoding, int | None], Sequence[Form] | str] = field(default_factory=dict)

    def of(
        self, operator: Operator, position: int, encoding: Encoding, block: int | None = None
    ) -> Sequence[Form] | str:
        """Returns how an operator can read integers at an input, best first, or why it cannot.

        Args:
            operator: The operator.
            position: Of the input.
            encoding: What is asked for.
            block: Elements of a block, where they are.
        """
        name = operator.code.name
        if encoding.scheme is Scheme.DEQUANTIZE:
            return "asked for dequantize"
        if not encoding.form.is_plain:
            return f"no kernel reads {encoding.form.name} weights itself"
        row = row_of(operator)
        if row.table == position:
            lookup = row.form("INT8", Granularity.TENSOR, runtimes.NEWEST_RUNTIME)
            assert lookup is not None
            if not encoding.form.is_int8 or encoding.block is not None:
                return f"{name} moves int8 with one scale a row or for all, not {encoding.text}"
            rows = self._row_lookup(operator, position, encoding)
            if lookup.first_runtime > self.min_runtime:
                return f"{name} of runtime {runtime_text(self.min_runtime)} takes no int8 table"
            return [lookup] if rows is None else [rows, lookup]
        if position not in row.weights:
            return row.refusal or f"{name} has no hybrid kernel for input {position}"
        key = (id(operator), encoding, block)
        found = self._hybrid.get(key)
        if found is None:
            found = self._hybrid[key] = self._hybrid_forms(operator, row, encoding, block)
        return found

    def dequantize(self, form: StorageForm, axis: int | None) -> Form | None:
        """Returns the DEQUANTIZE that expands integers with scales along an axis (None: one scale)."""
        granularity = Granularity.TENSOR if axis is None else Granularity.CHANNEL
        forms = [
            dequantize_form(part, granularity if form.is_integer else None, self.min_runtime)
            for part in form.parts
        ]
        return None if None in forms else forms[0]

    def no_dequantize(self, form: StorageForm) -> tuple[str, str]:
        """Returns ``(rule, reason)`` for a constant that stays for want of it."""
        old = runtime_text(self.min_runtime)
        what = "its scales" if form.is_int8 else form.name
        return "runtime", f"runtime {old} has no DEQUANTIZE for {what}"

    def expanded_axes(self, item: Candidate, encoding: Encoding) -> list[int | None]:
        """Returns the axes along which the scales of a constant that only DEQUANTIZE reads may lie.

        None, for one scale, is always among them.
        """
        if encoding.granularity is Granularity.TENSOR or self.dequantize(encoding.form, 0) is None:
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
        options = {each: encoding.form.scales_nbytes(each.channels) for each in (one, rows)}
        return form if self.axes.best(item, encoding.form, options) == rows else None

    def _hybrid_forms(
        self, operator: Operator, row: OperatorRow, encoding: Encoding, block: int | None
    ) -> Sequence[Form] | str:
        """Returns the forms whose needs the operator meets, best first, or why there is none."""
        runtime, granularity = self.min_runtime, encoding.granularity
        old = runtime_text(runtime)
        reason = f"no hybrid form of {row.name} runs on {old} with the granularity asked for"
        if not encoding.form.is_int8:
            reason = f"no kernel of {row.name} on {old} reads {encoding.text}"
        for need in row.needs:
            unmet = operands.unmet(need, operator, self.can_be_int8)
            if unmet is not None:
                return unmet
        asked = not encoding.form.is_int8 and encoding.scheme is Scheme.HYBRID
        found = []
        for form in row.forms_for(runtime, encoding.form.parts[0], by_default=not asked):
            is_block = form.granularity is Granularity.BLOCK
            if is_block != (granularity is Granularity.BLOCK):
                continue
            if form.granularity is not granularity and granularity is Granularity.TENSOR:
                continue
            missing = self._form_unmet(form, operator, row, (encoding.form, block))
            if missing is None:
                found.append(form)
            else:
                reason = missing
        return found or reason

    def _form_unmet(
        self, form: Form, operator: Operator, row: OperatorRow, stored: tuple[StorageForm, int | None]
    ) -> str | None:
        weights = weights_of(operator)
        if form.granularity is Granularity.CHANNEL:
            for tensor in weights:
                axis = weight_axis(row, operator, len(tensor.shape or ()))
                if axis is None or not 0 <= axis < len(tensor.shape or ()):
                    return f"the weight's shape {list(tensor.shape or ())} has no channel axis"
        for tensor in weights:
            unfit = _unfit(form, tensor.shape or (), *stored)
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


def _unfit(form: Form, shape: Sequence[int], stored: StorageForm, block: int | None) -> str | None:
    """Returns why a weight's shape does not suit a form, or None."""
    row = math.prod(shape[1:])
    if form.shape is Shape.WHOLE_BYTES and row * stored.bits % 8:
        return f"rows of {row} elements do not fill whole bytes"
    if form.shape is Shape.WHOLE_BLOCKS:
        length = block or 1
        if len(shape) != 2 or row % length:
            return f"the shape {list(shape)} is no matrix of whole blocks of {length}"
        if length % KERNEL_BLOCK:
            return f"its kernel takes blocks of {KERNEL_BLOCK} or a multiple, not {length}"
    return None
