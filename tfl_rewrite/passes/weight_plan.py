"""Decides of each float constant whether it becomes int8, with which scales, and how operators read it.

Nothing is changed here; :mod:`tfl_rewrite.passes.quantize_weights` carries the decisions out.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from tfl_rewrite import kernels
from tfl_rewrite.model import dtypes
from tfl_rewrite.model.blob import Blob
from tfl_rewrite.model.graph import Graph
from tfl_rewrite.model.ir import Model, Operator, Tensor
from tfl_rewrite.passes import needs
from tfl_rewrite.passes.base import Skip
from tfl_rewrite.passes.candidates import Candidate, find_candidates, first_and_last, skip, weights_of
from tfl_rewrite.passes.weight_changes import Reading
from tfl_rewrite.quant import symmetric
from tfl_rewrite.quant.symmetric import Channels
from tfl_rewrite.work import current

if TYPE_CHECKING:
    from tfl_rewrite.passes.quantize_weights import QuantizeWeights

# What a rewrite adds to the file beside the integers, in bytes: upper estimates, so that "smaller" holds.
_QUANTIZATION_NBYTES = 64
_TENSOR_NBYTES = 96
_OPERATOR_NBYTES = 56

# A scale per row of a table is worth its bytes from this many elements a row, if it takes away 3 dB of noise.
_LEAST_ROW = 8
_ROW_GAIN = 0.5


class Scheme(str, enum.Enum):
    """How operators get at int8 weights."""

    AUTO = "auto"
    HYBRID = "hybrid"
    DEQUANTIZE = "dequantize"


@dataclass(slots=True, eq=False)
class Decision:
    """What is to become of one candidate."""

    item: Candidate
    readings: list[Reading]
    forms: list[kernels.Form | kernels.TableLookup | kernels.DequantizeForm]
    axis: int | None

    @property
    def channels(self) -> Channels:
        """How it falls into channels, each with a scale."""
        return Channels.along(self.item.shape, self.axis)

    @property
    def kinds(self) -> tuple[Reading, ...]:
        """The readings, each once."""
        return tuple(dict.fromkeys(self.readings))

    @property
    def overhead(self) -> int:
        """Bytes beside integers and scales."""
        total = _QUANTIZATION_NBYTES
        name = len(self.item.value.name)
        if Reading.DEQUANTIZE in self.kinds and self.item.expand is None:
            total += _OPERATOR_NBYTES + _TENSOR_NBYTES + name
        # A lookup by rows takes three operators with an output each, and the tensor of scales.
        each = 4 if self.rows else 1
        total += self.readings.count(Reading.LOOKUP) * each * (_OPERATOR_NBYTES + _TENSOR_NBYTES + name)
        return total

    @property
    def rows(self) -> bool:
        """Whether it is looked up with one scale per row."""
        return any(
            isinstance(form, kernels.TableLookup) and form.granularity is kernels.Granularity.CHANNEL
            for form in self.forms
        )


@dataclass(slots=True)
class WeightPlan:
    """The decisions for one model.

    Attributes:
        settings: What the user asked for.
        model: Looked at, not changed.
        blocked: Id of each candidate that stays, with ``(rule, reason)``.
        largest: Largest magnitudes per channel, by constant and channels.
        by_value: Candidates by the id of the tensor that operators read.
        hybrid_forms: What each operator's hybrid kernel takes, or why nothing.
        least: How many elements a constant must have, and how many a hybrid kernel's weight.
    """

    settings: QuantizeWeights
    model: Model
    graph: Graph = field(init=False)
    blocked: dict[int, tuple[str, str]] = field(default_factory=dict)
    largest: dict[tuple[object, Channels], symmetric.Float32] = field(default_factory=dict)
    by_value: dict[int, Candidate] = field(default_factory=dict)
    hybrid_forms: dict[int, list[kernels.Form] | str] = field(default_factory=dict)
    least: tuple[int, int] = (0, 0)

    def decide(self) -> tuple[list[Decision], list[Skip]]:
        """Decides for the whole model.

        Constants are read for their scales, several at a time.

        Returns:
            What is to become of the constants that change, and why each other one stays.
        """
        self.graph = Graph.of(self.model)
        items, skips = find_candidates(self.model, self.graph)
        self.by_value = {id(item.value): item for item in items}
        self._select(items)
        decisions = self._settle(items)
        for item in items:
            reason = self.blocked.get(id(item))
            if reason is not None:
                skips.append(skip(item, *reason))
        return decisions, skips

    def scales(self, made: Decision, blob: Blob) -> symmetric.Float32:
        """Returns the scales of a constant that was decided on.

        Args:
            made: The decision.
            blob: The bytes of the constant; its buffer may hold others by now.
        """
        return symmetric.scales(self.largest[(blob.identity, made.channels)])

    def _select(self, items: list[Candidate]) -> None:
        selection = self.settings.selection
        least = self.least = selection.least(self.model)
        ends = first_and_last(items, least) if selection.keep_first_last else set()
        for item in items:
            reason = selection.refuses(item, least, ends)
            if reason is None and self.settings.only is not None and not self.settings.only(item):
                reason = ("not-included", "not chosen")
            if reason is not None:
                self.blocked[id(item)] = reason

    def _settle(self, items: list[Candidate]) -> list[Decision]:
        """Decides until nothing more drops out: a constant that stays may change what its readers can do."""
        while True:
            self.hybrid_forms.clear()
            decisions = {}
            before = len(self.blocked)
            for item in items:
                if id(item) not in self.blocked:
                    made = self._decide(item)
                    if isinstance(made, Decision):
                        decisions[id(item)] = made
                    else:
                        self.blocked[id(item)] = made
            self._measure(list(decisions.values()))
            self._check_buffers(items, decisions)
            if len(self.blocked) == before:
                return [decisions[id(item)] for item in items if id(item) in decisions]

    def _decide(self, item: Candidate) -> Decision | tuple[str, str]:
        readings: list[Reading] = []
        forms: list[kernels.Form | kernels.TableLookup | kernels.DequantizeForm] = []
        found = [self._forms(use.operator, use.position) for use in item.uses]
        reasons = [forms for forms in found if isinstance(forms, str)]
        wanted = [
            []
            if isinstance(forms, str)
            else [(_scales_axis(form, use.operator, len(item.shape)), form) for form in forms]
            for use, forms in zip(item.uses, found, strict=True)
        ]
        settled = _settle_scales(wanted)
        for choices in wanted:
            # All readers share one set of integers; who cannot read it reads what DEQUANTIZE makes of it.
            form = next((form for scales, form in choices if _agree(scales, settled)), None)
            if form is None:
                readings.append(Reading.DEQUANTIZE)
                reasons += ["its readers want different scales"] if choices else []
                continue
            readings.append(Reading.LOOKUP if isinstance(form, kernels.TableLookup) else Reading.HYBRID)
            forms.append(form)
        axis = settled[0] if settled is not None else None
        if Reading.DEQUANTIZE in readings:
            if self.settings.scheme is Scheme.HYBRID:
                return "no-hybrid-kernel", reasons[0]
            if settled is None and item.elements < self.least[0]:
                return "small", f"{item.elements} elements, fewer than {self.least[0]}"
            if settled is None:
                axis = self._expanded_axis(item)
            dequantize = self._dequantize_form(axis)
            if dequantize is None:
                old = _text(self.settings.min_runtime)
                return "runtime", f"runtime {old} has no DEQUANTIZE for its scales"
            forms.append(dequantize)
        return Decision(item, readings, forms, axis)

    def _forms(self, operator: Operator, position: int) -> Sequence[kernels.Form | kernels.TableLookup] | str:
        """Returns how an operator can read int8 at an input, best first, or why it cannot."""
        name = operator.code.name
        if self.settings.scheme is Scheme.DEQUANTIZE:
            return "asked for dequantize"
        lookup = kernels.table_lookup(name)
        if lookup is not None and lookup.input == position:
            rows = self._row_lookup(operator, position)
            if lookup.first_runtime > self.settings.min_runtime:
                return f"{name} of runtime {_text(self.settings.min_runtime)} takes no int8 table"
            return [lookup] if rows is None else [rows, lookup]
        row = kernels.hybrid_row(name)
        if row is None or position not in row.inputs:
            known = kernels.no_hybrid(name)
            return known.reason if known is not None else f"{name} has no hybrid kernel for input {position}"
        found = self.hybrid_forms.get(id(operator))
        if found is None:
            found = self.hybrid_forms[id(operator)] = self._hybrid_forms(operator, row)
        return found

    def _row_lookup(self, operator: Operator, position: int) -> kernels.TableLookup | None:
        """Returns the form with one scale per row where a table gains by it, else None."""
        table = operator.inputs[position]
        item = self.by_value.get(id(table)) if table is not None else None
        form = kernels.table_lookup(operator.code.name, kernels.Granularity.CHANNEL)
        if item is None or form is None or form.first_runtime > self.settings.min_runtime:
            return None
        if self.settings.granularity is kernels.Granularity.TENSOR or len(item.shape) < 2:
            return None
        if operator.option("axis") or operator.option("batch_dims"):
            return None
        if item.elements < _LEAST_ROW * item.shape[0] or not needs.same_rank_output(operator):
            return None
        gains = self._noise(item, 0) < _ROW_GAIN * self._noise(item, None)
        return form if gains else None

    def _hybrid_forms(self, operator: Operator, row: kernels.HybridRow) -> list[kernels.Form] | str:
        """Returns the forms whose needs the operator meets, best first, or why there is none."""
        runtime = self.settings.min_runtime
        reason = f"no hybrid form of {row.operator} runs on {_text(runtime)} with the granularity asked for"
        for need in row.needs:
            unmet = needs.unmet(need, operator, row, self._can_be_int8)
            if unmet is not None:
                return unmet
        found = []
        for form in row.forms_for(runtime):
            if form.granularity is not self.settings.granularity and (
                self.settings.granularity is kernels.Granularity.TENSOR
            ):
                continue
            missing = self._form_unmet(form, operator, row)
            if missing is None:
                found.append(form)
            else:
                reason = missing
        return found or reason

    def _form_unmet(self, form: kernels.Form, operator: Operator, row: kernels.HybridRow) -> str | None:
        weights = weights_of(operator, row)
        if form.granularity is kernels.Granularity.CHANNEL:
            for tensor in weights:
                axis = _axis(row, operator, len(tensor.shape or ()))
                if axis is None or not 0 <= axis < len(tensor.shape or ()):
                    return f"the weight's shape {list(tensor.shape or ())} has no channel axis"
        for need in form.needs:
            if need is kernels.Need.SCALES_DIFFER:
                if not needs.grouped(operator) and any(self._equal_scales(item, row) for item in weights):
                    return "all of its scales are equal"
                continue
            unmet = needs.unmet(need, operator, row, self._can_be_int8)
            if unmet is not None:
                return unmet
        return None

    def _equal_scales(self, tensor: Tensor, row: kernels.HybridRow) -> bool:
        item = self.by_value.get(id(tensor))
        if item is None:
            return False
        channels = Channels.along(item.shape, row.axis())
        if channels.channels <= 1:
            return False
        scale = symmetric.scales(self._absmax(item, channels))
        return bool((scale == scale[0]).all())

    def _can_be_int8(self, tensor: Tensor) -> bool:
        item = self.by_value.get(id(tensor))
        return item is not None and id(item) not in self.blocked

    def _expanded_axis(self, item: Candidate) -> int | None:
        """Chooses the scales of a constant that only DEQUANTIZE reads: where rounding loses least."""
        if self.settings.granularity is kernels.Granularity.TENSOR or self._dequantize_form(0) is None:
            return None
        rank = len(item.shape)
        for use in item.uses:
            row = kernels.hybrid_row(use.operator.code.name)
            axis = _axis(row, use.operator, rank) if row is not None and use.position in row.inputs else None
            if axis is not None and 0 <= axis < rank and self._worth(item, axis):
                return axis
        best, least = None, self._noise(item, None)
        for axis in dict.fromkeys((0, rank - 1)):
            if 0 <= axis < rank and self._worth(item, axis):
                noise = self._noise(item, axis)
                # 0.5 dB pays for the scales.
                if noise < 0.89 * least:
                    best, least = axis, noise
        return best

    def _worth(self, item: Candidate, axis: int) -> bool:
        """Whether scales along an axis take less than a tenth of what int8 saves."""
        return item.shape[axis] > 1 and 12 * item.shape[axis] * 10 < item.elements * 3

    def _noise(self, item: Candidate, axis: int | None) -> float:
        channels = Channels.along(item.shape, axis)
        return symmetric.expected_noise(symmetric.scales(self._absmax(item, channels)), channels)

    def _dequantize_form(self, axis: int | None) -> kernels.DequantizeForm | None:
        granularity = kernels.Granularity.TENSOR if axis is None else kernels.Granularity.CHANNEL
        return kernels.dequantize_form("INT8", granularity, self.settings.min_runtime)

    def _absmax(self, item: Candidate, channels: Channels) -> symmetric.Float32:
        blob = item.stored.buffer.blob
        assert blob is not None
        key = (blob.identity, channels)
        known = self.largest.get(key)
        if known is None:
            known = symmetric.absmax(_values(item, blob), channels, spent=blob.release)
            self.largest[key] = known
        return known

    def _measure(self, decisions: list[Decision]) -> None:
        """Reads the constants for their scales, several at a time; drops those that are not finite."""
        work = current()
        stage = work.stage("measuring", sum(made.item.stored.buffer.nbytes for made in decisions))

        def measure(made: Decision) -> symmetric.Float32:
            largest = self._absmax(made.item, made.channels)
            stage.tick(made.item.stored.buffer.nbytes)
            return largest

        with ThreadPoolExecutor(work.threads) as pool, np.errstate(invalid="ignore"):
            results = pool.map(measure, decisions)
            for made, largest in zip(decisions, results, strict=True):
                if not np.isfinite(largest).all():
                    self.blocked[id(made.item)] = ("not-finite", "it holds NaN or infinite values")

    def _check_buffers(self, items: list[Candidate], decisions: dict[int, Decision]) -> None:
        """Drops constants whose bytes would have to stay, or whose new form is not smaller."""
        sharing: dict[int, list[Tensor]] = {}
        for subgraph in self.model.subgraphs:
            for tensor in subgraph.tensors:
                sharing.setdefault(id(tensor.buffer), []).append(tensor)
        kept = {id(entry.buffer) for entry in self.model.metadata} | set(map(id, self.model.metadata_buffers))
        groups: dict[int, list[Decision]] = {}
        for made in decisions.values():
            groups.setdefault(id(made.item.stored.buffer), []).append(made)
        for key, group in groups.items():
            changing = {id(made.item.stored) for made in group if id(made.item) not in self.blocked}
            other = next((item for item in sharing[key] if id(item) not in changing), None)
            reason: tuple[str, str] | None = None
            if other is not None:
                reason = ("shared", f"shares its bytes with {other.name!r}, which stays {other.dtype_name}")
            elif key in kept:
                reason = ("shared", "metadata refers to its bytes")
            elif not any(map(_together, group)):
                saved = group[0].item.stored.buffer.nbytes - _group_nbytes(group)
                if saved <= 0:
                    reason = ("not-smaller", f"int8 with its scales and operators takes {-saved} bytes more")
            if reason is not None:
                for made in group:
                    self.blocked.setdefault(id(made.item), reason)
        self._check_together(groups)

    def _check_together(self, groups: dict[int, list[Decision]]) -> None:
        """Drops the weights of operators that take all or none, where all of them are not smaller."""
        operators: dict[int, dict[int, list[Decision]]] = {}
        for key, group in groups.items():
            for made in group:
                if _together(made) and id(made.item) not in self.blocked:
                    for use in made.item.uses:
                        operators.setdefault(id(use.operator), {})[key] = group
        for buffers in operators.values():
            saved = sum(
                group[0].item.stored.buffer.nbytes - _group_nbytes(group) for group in buffers.values()
            )
            if saved <= 0:
                reason = ("not-smaller", f"int8 takes {-saved} bytes more for all weights of its operator")
                for made in (made for group in buffers.values() for made in group):
                    self.blocked.setdefault(id(made.item), reason)


def _together(made: Decision) -> bool:
    """Whether its size is judged with the other weights of its operator."""
    return made.item.together > 0 and Reading.HYBRID in made.readings


def _group_nbytes(group: list[Decision]) -> int:
    distinct = {made.channels for made in group}
    return sum(item.elements + 12 * item.channels for item in distinct) + sum(made.overhead for made in group)


def _axis(row: kernels.HybridRow, operator: Operator, rank: int) -> int | None:
    axis = row.axis(adj_y=bool(operator.option("adj_y")))
    return axis + rank if axis is not None and axis < 0 else axis


# The axis of the scales (None for one scale), and the axis over which a kernel would spread a single one
# (None where it does not).
_Scales = tuple[int | None, int | None]


def _settle_scales(
    wanted: Sequence[Sequence[tuple[_Scales, kernels.Form | kernels.TableLookup]]],
) -> _Scales | None:
    """Chooses the scales with which most readers read the integers as they are; the better ones at a tie."""
    choices = list(dict.fromkeys(scales for forms in wanted for scales, _ in forms))
    if not choices:
        return None

    def readers(settled: _Scales) -> int:
        return sum(any(_agree(scales, settled) for scales, _ in forms) for forms in wanted)

    # max() keeps the first of equals; forms come best first, so finer scales stand before coarser ones.
    return max(sorted(choices, key=lambda scales: scales[0] is None), key=readers)


def _agree(scales: _Scales, settled: _Scales | None) -> bool:
    """Whether a reader that wants some scales can read settled ones (kernels.Need.SAME_CHANNEL_AXIS)."""
    if settled is None or scales[0] != settled[0]:
        return False
    return scales[1] == settled[1] or scales[1] is None or settled[1] is None


def _scales_axis(form: kernels.Form | kernels.TableLookup, operator: Operator, rank: int) -> _Scales:
    """Returns the scales that a form wants."""
    row = kernels.hybrid_row(operator.code.name)
    if isinstance(form, kernels.TableLookup):
        return (0, 0) if form.granularity is kernels.Granularity.CHANNEL else (None, None)
    if row is None:
        return None, None
    axis = _axis(row, operator, rank)
    return (axis if form.granularity is kernels.Granularity.CHANNEL else None), axis


def _values(item: Candidate, blob: Blob) -> np.ndarray[Any, Any]:
    return np.frombuffer(blob.view(), dtypes.BY_VALUE[item.stored.dtype].numpy)


def _text(runtime: kernels.Runtime) -> str:
    return f"{runtime[0]}.{runtime[1]}"
