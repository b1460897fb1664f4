"""How operators can read a weight that is stored smaller, and with which scales.

Nothing is chosen for good here; :mod:`tfl_rewrite.weights.plan` weighs what is found.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from tfl_rewrite.kernels import hybrid, needs, runtimes
from tfl_rewrite.kernels.needs import weights_of
from tfl_rewrite.kernels.packed import PackedForm, Shape, packed_forms
from tfl_rewrite.model.ir import Operator, Tensor
from tfl_rewrite.numerics import symmetric
from tfl_rewrite.numerics.levels import Dtype, scales_nbytes
from tfl_rewrite.numerics.symmetric import Channels
from tfl_rewrite.weights.candidates import Candidate
from tfl_rewrite.weights.decisions import AnyForm, HybridForm, weight_axis
from tfl_rewrite.weights.encoding import Encoding, Scheme
from tfl_rewrite.weights.magnitudes import Magnitudes
from tfl_rewrite.weights.scale_axes import ScaleAxes


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
    _hybrid: dict[tuple[int, Encoding], Sequence[HybridForm] | str] = field(default_factory=dict)

    def of(self, operator: Operator, position: int, encoding: Encoding) -> Sequence[AnyForm] | str:
        """Returns how an operator can read integers at an input, best first, or why it cannot."""
        name = operator.code.name
        if encoding.scheme is Scheme.DEQUANTIZE:
            return "asked for dequantize"
        if len(encoding.dtype.parts) > 1:
            return f"no kernel reads {encoding.dtype.value} itself"
        lookup = hybrid.table_lookup(name)
        if lookup is not None and lookup.input == position:
            if encoding.dtype is not Dtype.INT8 or encoding.block is not None:
                return f"{name} moves int8 with one scale a row or for all, not {encoding.text}"
            rows = self._row_lookup(operator, position, encoding)
            if lookup.first_runtime > self.min_runtime:
                return f"{name} of runtime {runtime_text(self.min_runtime)} takes no int8 table"
            return [lookup] if rows is None else [rows, lookup]
        row = hybrid.hybrid_row(name)
        if row is None or position not in row.inputs:
            known = hybrid.no_hybrid(name)
            return known.reason if known is not None else f"{name} has no hybrid kernel for input {position}"
        key = (id(operator), encoding)
        found = self._hybrid.get(key)
        if found is None:
            found = self._hybrid[key] = self._hybrid_forms(operator, row, encoding)
        return found

    def dequantize(self, dtype: Dtype, axis: int | None) -> hybrid.DequantizeForm | None:
        """Returns the DEQUANTIZE that expands integers with scales along an axis (None: one scale)."""
        granularity = hybrid.Granularity.TENSOR if axis is None else hybrid.Granularity.CHANNEL
        forms = [
            hybrid.dequantize_form(part.tensor_type, granularity, self.min_runtime) for part in dtype.parts
        ]
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
        if encoding.granularity is hybrid.Granularity.TENSOR or self.dequantize(encoding.dtype, 0) is None:
            return [None]
        return [None, *self.axes.axes(item)]

    def _row_lookup(self, operator: Operator, position: int, encoding: Encoding) -> hybrid.TableLookup | None:
        """Returns the form with one scale per row where a table gains by it, else None."""
        table = operator.inputs[position]
        item = self.candidates.get(id(table)) if table is not None else None
        form = hybrid.table_lookup(operator.code.name, hybrid.Granularity.CHANNEL)
        if item is None or form is None or form.first_runtime > self.min_runtime:
            return None
        if encoding.granularity is hybrid.Granularity.TENSOR or len(item.shape) < 2:
            return None
        if operator.option("axis") or operator.option("batch_dims"):
            return None
        if not needs.same_rank_output(operator):
            return None
        one, rows = (Channels.along(item.shape, axis) for axis in (None, 0))
        options = {one: scales_nbytes(1), rows: scales_nbytes(rows.channels)}
        return form if self.axes.best(item, encoding.dtype, options) == rows else None

    def _hybrid_forms(
        self, operator: Operator, row: hybrid.HybridRow, encoding: Encoding
    ) -> Sequence[HybridForm] | str:
        """Returns the forms whose needs the operator meets, best first, or why there is none."""
        runtime, granularity = self.min_runtime, encoding.granularity
        old = runtime_text(runtime)
        reason = f"no hybrid form of {row.operator} runs on {old} with the granularity asked for"
        if encoding.dtype is not Dtype.INT8:
            reason = f"no kernel of {row.operator} on {old} reads {encoding.text}"
        for need in row.needs:
            unmet = needs.unmet(need, operator, row, self.can_be_int8)
            if unmet is not None:
                return unmet
        known: Sequence[HybridForm] = row.forms_for(runtime)
        if encoding.dtype is not Dtype.INT8:
            asked = encoding.scheme is Scheme.HYBRID
            tensor_type = encoding.dtype.tensor_type
            known = packed_forms(row.operator, tensor_type, runtime, by_default=not asked)
        found = []
        for form in known:
            is_block = form.granularity is hybrid.Granularity.BLOCK
            if is_block != (granularity is hybrid.Granularity.BLOCK):
                continue
            if form.granularity is not granularity and granularity is hybrid.Granularity.TENSOR:
                continue
            missing = self._form_unmet(form, operator, row, encoding)
            if missing is None:
                found.append(form)
            else:
                reason = missing
        return found or reason

    def _form_unmet(
        self, form: HybridForm, operator: Operator, row: hybrid.HybridRow, encoding: Encoding
    ) -> str | None:
        weights = weights_of(operator, row)
        if form.granularity is hybrid.Granularity.CHANNEL:
            for tensor in weights:
                axis = weight_axis(row, operator, len(tensor.shape or ()))
                if axis is None or not 0 <= axis < len(tensor.shape or ()):
                    return f"the weight's shape {list(tensor.shape or ())} has no channel axis"
        if isinstance(form, PackedForm):
            for tensor in weights:
                unfit = _unfit(form, tensor.shape or (), encoding)
                if unfit is not None:
                    return f"{row.operator}: {unfit}"
        for need in form.needs:
            if need is hybrid.Need.SCALES_DIFFER:
                if not needs.grouped(operator) and any(self._equal_scales(item, row) for item in weights):
                    return "all of its scales are equal"
                continue
            unmet = needs.unmet(need, operator, row, self.can_be_int8)
            if unmet is not None:
                return unmet
        return None

    def _equal_scales(self, tensor: Tensor, row: hybrid.HybridRow) -> bool:
        item = self.candidates.get(id(tensor))
        if item is None:
            return False
        channels = Channels.along(item.shape, row.axis())
        if channels.channels <= 1:
            return False
        scale = symmetric.scales(self.magnitudes.of(item, channels))
        return bool((scale == scale[0]).all())


def _unfit(form: PackedForm, shape: Sequence[int], encoding: Encoding) -> str | None:
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
