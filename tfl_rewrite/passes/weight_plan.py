"""Decides of each float constant what it becomes, with which scales, and how operators read it.

Nothing is changed here; :mod:`tfl_rewrite.passes.quantize_weights` carries the decisions out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tfl_rewrite import kernels
from tfl_rewrite.model import dtypes
from tfl_rewrite.model.blob import Blob
from tfl_rewrite.model.graph import Graph
from tfl_rewrite.model.ir import Model, Operator, Tensor
from tfl_rewrite.packed_kernels import BLOCKS_IN_CALLED_SUBGRAPHS, PackedForm, Shape, packed_forms
from tfl_rewrite.passes import needs
from tfl_rewrite.passes.base import Skip
from tfl_rewrite.passes.candidates import (
    UNNAMED,
    Candidate,
    find_candidates,
    first_and_last,
    scale_constants,
    skip,
    stored_already,
    weights_of,
)
from tfl_rewrite.passes.decisions import (
    AnyForm,
    Decision,
    HybridForm,
    agree,
    group_nbytes,
    scales_axis,
    settle_scales,
    together,
    weight_axis,
)
from tfl_rewrite.passes.recipe import Recipe
from tfl_rewrite.passes.rounders import Work
from tfl_rewrite.passes.weight_changes import Reading
from tfl_rewrite.quant import blocks, symmetric
from tfl_rewrite.quant.encoding import Dtype, Encoding, Scheme, block_length
from tfl_rewrite.quant.symmetric import Channels
from tfl_rewrite.work import current

if TYPE_CHECKING:
    from tfl_rewrite.passes.quantize_weights import QuantizeWeights

# A scale per row of a table is worth its bytes from this many elements a row, if it takes away 3 dB of noise.
_LEAST_ROW = 8
_ROW_GAIN = 0.5
# Names in a note.
_NAMED = 5


@dataclass(slots=True)
class WeightPlan:
    """The decisions for one model.

    Attributes:
        settings: What the user asked for.
        model: Looked at, not changed.
        blocked: Id of each candidate that stays, with ``(rule, reason)``.
        largest: Largest magnitudes per channel, by constant and channels.
        by_value: Candidates by the id of the tensor that operators read.
        hybrid_forms: What each operator's hybrid kernel takes of an encoding, or why nothing.
        least: How many elements a constant must have, and how many a hybrid kernel's weight.
        encodings: What each candidate is to become, by its id.
        called: Ids of the subgraphs that operators run.
        fallbacks: Where another encoding is used than was asked for, by candidate, in words.
    """

    settings: QuantizeWeights
    model: Model
    graph: Graph = field(init=False)
    blocked: dict[int, tuple[str, str]] = field(default_factory=dict)
    largest: dict[tuple[object, Channels], symmetric.Float32] = field(default_factory=dict)
    by_value: dict[int, Candidate] = field(default_factory=dict)
    hybrid_forms: dict[tuple[int, Encoding], Sequence[HybridForm] | str] = field(default_factory=dict)
    least: tuple[int, int] = (0, 0)
    encodings: dict[int, Encoding] = field(default_factory=dict)
    fallbacks: dict[int, str] = field(default_factory=dict)
    called: set[int] = field(default_factory=set)

    def decide(self) -> tuple[list[Decision], list[Skip]]:
        """Decides for the whole model.

        Constants are read for their scales, several at a time.

        Returns:
            What is to become of the constants that change, and why each other one stays.
        """
        self.graph = Graph.of(self.model)
        items, skips = find_candidates(self.model, self.graph)
        self.by_value = {id(item.value): item for item in items}
        if isinstance(self.settings.assignment, Recipe):
            self.settings.assignment.check(self.model, items)
        self.called = {id(inner) for _, operator in self.model.operators() for inner in operator.subgraphs()}
        self.encodings = {id(item): self._encoding(item) for item in items}
        self._select(items)
        decisions = self._settle(items)
        for item in items:
            reason = self.blocked.get(id(item))
            if reason is not None:
                skips.append(skip(item, *reason))
        return decisions, [*skips, *self._already()]

    @property
    def notes(self) -> list[str]:
        """Where another encoding is used than was asked for; those of a kind are one."""
        kinds: dict[str, list[str]] = {}
        for item in self.by_value.values():
            kind = self.fallbacks.get(id(item))
            if kind is not None and id(item) not in self.blocked:
                kinds.setdefault(kind, []).append(item.value.name or UNNAMED)
        return [f"{kind}: {_list(names)}" for kind, names in kinds.items()]

    def work(self, made: Decision, blob: Blob, position: int) -> Work:
        """Returns what a rounder is told of a constant that was decided on.

        Args:
            made: The decision.
            blob: The bytes of the constant; its buffer may hold others by now.
            position: Of its buffer in the model.
        """
        item = made.item
        return Work(
            item.value.name,
            position,
            item.shape,
            made.dtype,
            made.axis,
            made.block,
            made.channels,
            made.levels,
            tuple(item.uses),
            tuple(reading.value for reading in made.readings),
            self.largest[(blob.identity, made.channels)],
            blob,
            made.stored_dtype,
        )

    def _already(self) -> list[Skip]:
        """Returns the constants that are integers already, but not those that were asked for."""
        found = []
        for item, reason in stored_already(self.model, self.graph):
            wanted = self._encoding(item).dtype
            large = item.elements >= self.least[1] and wanted is not Dtype.FLOAT32
            # What is int8 is as small as the default asks for.
            if large and wanted is not Dtype.INT8 and wanted.tensor_type != item.stored.dtype_name:
                found.append(reason)
        return found

    def _encoding(self, item: Candidate) -> Encoding:
        """Returns what a constant is to become: as it was assigned, or as all are."""
        settings = self.settings
        found: Encoding | None = None
        if isinstance(settings.assignment, Mapping):
            found = settings.assignment.get(item.value.name)
        elif settings.assignment is not None:
            found = settings.assignment(item)
        found = found or settings.default
        return replace(found, scheme=settings.scheme) if found.scheme is Scheme.AUTO else found

    def _select(self, items: list[Candidate]) -> None:
        selection = self.settings.selection
        least = self.least = selection.least(self.model, scale_constants(self.graph, self.model))
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
        """Returns the decision for one constant, or ``(rule, reason)`` why it stays."""
        encoding = self.encodings[id(item)]
        if encoding.dtype is Dtype.FLOAT32:
            return "float32", "asked for float32"
        if encoding.dtype is Dtype.FLOAT16:
            return self._decide_half(item, encoding)
        if encoding.block is not None:
            length = block_length(item.shape, encoding.block)
            old = self.settings.min_runtime < BLOCKS_IN_CALLED_SUBGRAPHS
            called = old and id(item.subgraph) in self.called
            if length is not None and not called:
                if length != encoding.block:
                    self.fallbacks[id(item)] = (
                        f"blocks of {length}, since {encoding.block} does not divide it"
                    )
                return self._decide_blocks(item, encoding, length)
            encoding = replace(encoding, granularity=kernels.Granularity.CHANNEL, block=None)
            asked = self.encodings[id(item)].block
            why = f"no blocks of up to {asked} fit"
            if called:
                old_runtime = _text(self.settings.min_runtime)
                why = f"runtime {old_runtime} expands no blocks in subgraphs that operators call"
            self.fallbacks[id(item)] = f"one scale per channel or tensor, since {why}"
        return self._decide_channels(item, encoding)

    def _decide_half(self, item: Candidate, encoding: Encoding) -> Decision | tuple[str, str]:
        if item.expand is not None:
            return "float16", "it is float16 already"
        if encoding.scheme is Scheme.HYBRID:
            return "no-hybrid-kernel", "no kernel reads float16 weights itself"
        if item.elements < self.least[0] and not item.is_weight:
            return "small", f"{item.elements} elements, fewer than {self.least[0]}"
        form = kernels.dequantize_form("FLOAT16", None, self.settings.min_runtime)
        if form is None:
            return "runtime", f"runtime {_text(self.settings.min_runtime)} has no DEQUANTIZE for float16"
        return Decision(item, [Reading.DEQUANTIZE] * len(item.uses), [form], None, Dtype.FLOAT16)

    def _decide_blocks(self, item: Candidate, encoding: Encoding, length: int) -> Decision | tuple[str, str]:
        """Decides for scales by block: a kernel that reads them itself, or what DEQUANTIZE and MUL make."""
        found = [self._forms(use.operator, use.position, encoding) for use in item.uses]
        reasons = [forms for forms in found if isinstance(forms, str)]
        channels = Channels(1, item.elements // length, length)
        if not reasons and length == encoding.block:
            forms = [choices[0] for choices in found if not isinstance(choices, str)]
            made = Decision(
                item, [Reading.HYBRID] * len(forms), forms, None, encoding.dtype, length, native=True
            )
            largest = self._absmax(item, channels)
            if not np.isfinite(largest).all():
                return "not-finite", "it holds NaN or infinite values"
            if blocks.direct(symmetric.scales(largest, made.levels.high), largest == 0) is not None:
                return made
            reasons.append("its smallest scale is below what float16 holds")
        if encoding.scheme is Scheme.HYBRID:
            return "no-hybrid-kernel", reasons[
                0
            ] if reasons else f"its rows are not blocks of {encoding.block}"
        form = self._dequantize_form(encoding.dtype, None)
        half = kernels.dequantize_form("FLOAT16", None, self.settings.min_runtime)
        if form is None or half is None:
            return self._no_dequantize(encoding.dtype)
        if item.elements < self.least[0] and not item.is_weight:
            return "small", f"{item.elements} elements, fewer than {self.least[0]}"
        readings = [Reading.DEQUANTIZE] * len(item.uses)
        return Decision(item, readings, [form], None, encoding.dtype, length)

    def _decide_channels(self, item: Candidate, encoding: Encoding) -> Decision | tuple[str, str]:
        readings: list[Reading] = []
        forms: list[AnyForm] = []
        found = [self._forms(use.operator, use.position, encoding) for use in item.uses]
        reasons = [forms for forms in found if isinstance(forms, str)]
        wanted = [
            []
            if isinstance(forms, str)
            else [(scales_axis(form, use.operator, len(item.shape)), form) for form in forms]
            for use, forms in zip(item.uses, found, strict=True)
        ]
        settled = settle_scales(wanted)
        for choices in wanted:
            # All readers share one set of integers; who cannot read it reads what DEQUANTIZE makes of it.
            form = next((form for scales, form in choices if agree(scales, settled)), None)
            if form is None:
                readings.append(Reading.DEQUANTIZE)
                reasons += ["its readers want different scales"] if choices else []
                continue
            readings.append(Reading.LOOKUP if isinstance(form, kernels.TableLookup) else Reading.HYBRID)
            forms.append(form)
        axis = settled[0] if settled is not None else None
        if Reading.DEQUANTIZE in readings:
            if encoding.scheme is Scheme.HYBRID:
                return "no-hybrid-kernel", reasons[0]
            if settled is None and item.elements < self.least[0]:
                return "small", f"{item.elements} elements, fewer than {self.least[0]}"
            if settled is None:
                axis = self._expanded_axis(item, encoding)
            dequantize = self._dequantize_form(encoding.dtype, axis)
            if dequantize is None:
                return self._no_dequantize(encoding.dtype)
            forms.append(dequantize)
        return Decision(item, readings, forms, axis, encoding.dtype)

    def _no_dequantize(self, dtype: Dtype) -> tuple[str, str]:
        old = _text(self.settings.min_runtime)
        what = "its scales" if dtype is Dtype.INT8 else dtype.value
        return "runtime", f"runtime {old} has no DEQUANTIZE for {what}"

    def _forms(self, operator: Operator, position: int, encoding: Encoding) -> Sequence[AnyForm] | str:
        """Returns how an operator can read integers at an input, best first, or why it cannot."""
        name = operator.code.name
        if encoding.scheme is Scheme.DEQUANTIZE:
            return "asked for dequantize"
        if len(encoding.dtype.parts) > 1:
            return f"no kernel reads {encoding.dtype.value} itself"
        lookup = kernels.table_lookup(name)
        if lookup is not None and lookup.input == position:
            if encoding.dtype is not Dtype.INT8 or encoding.block is not None:
                return f"{name} moves int8 with one scale a row or for all, not {encoding.text}"
            rows = self._row_lookup(operator, position, encoding)
            if lookup.first_runtime > self.settings.min_runtime:
                return f"{name} of runtime {_text(self.settings.min_runtime)} takes no int8 table"
            return [lookup] if rows is None else [rows, lookup]
        row = kernels.hybrid_row(name)
        if row is None or position not in row.inputs:
            known = kernels.no_hybrid(name)
            return known.reason if known is not None else f"{name} has no hybrid kernel for input {position}"
        key = (id(operator), encoding)
        found = self.hybrid_forms.get(key)
        if found is None:
            found = self.hybrid_forms[key] = self._hybrid_forms(operator, row, encoding)
        return found

    def _row_lookup(
        self, operator: Operator, position: int, encoding: Encoding
    ) -> kernels.TableLookup | None:
        """Returns the form with one scale per row where a table gains by it, else None."""
        table = operator.inputs[position]
        item = self.by_value.get(id(table)) if table is not None else None
        form = kernels.table_lookup(operator.code.name, kernels.Granularity.CHANNEL)
        if item is None or form is None or form.first_runtime > self.settings.min_runtime:
            return None
        if encoding.granularity is kernels.Granularity.TENSOR or len(item.shape) < 2:
            return None
        if operator.option("axis") or operator.option("batch_dims"):
            return None
        if item.elements < _LEAST_ROW * item.shape[0] or not needs.same_rank_output(operator):
            return None
        gains = self._noise(item, 0) < _ROW_GAIN * self._noise(item, None)
        return form if gains else None

    def _hybrid_forms(
        self, operator: Operator, row: kernels.HybridRow, encoding: Encoding
    ) -> Sequence[HybridForm] | str:
        """Returns the forms whose needs the operator meets, best first, or why there is none."""
        runtime, granularity = self.settings.min_runtime, encoding.granularity
        reason = f"no hybrid form of {row.operator} runs on {_text(runtime)} with the granularity asked for"
        if encoding.dtype is not Dtype.INT8:
            reason = f"no kernel of {row.operator} on {_text(runtime)} reads {encoding.text}"
        for need in row.needs:
            unmet = needs.unmet(need, operator, row, self._can_be_int8)
            if unmet is not None:
                return unmet
        known: Sequence[HybridForm] = row.forms_for(runtime)
        if encoding.dtype is not Dtype.INT8:
            asked = encoding.scheme is Scheme.HYBRID
            tensor_type = encoding.dtype.tensor_type
            known = packed_forms(row.operator, tensor_type, runtime, by_default=not asked)
        found = []
        for form in known:
            is_block = form.granularity is kernels.Granularity.BLOCK
            if is_block != (granularity is kernels.Granularity.BLOCK):
                continue
            if form.granularity is not granularity and granularity is kernels.Granularity.TENSOR:
                continue
            missing = self._form_unmet(form, operator, row, encoding)
            if missing is None:
                found.append(form)
            else:
                reason = missing
        return found or reason

    def _form_unmet(
        self, form: HybridForm, operator: Operator, row: kernels.HybridRow, encoding: Encoding
    ) -> str | None:
        weights = weights_of(operator, row)
        if form.granularity is kernels.Granularity.CHANNEL:
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
        if item is None or id(item) in self.blocked:
            return False
        encoding = self.encodings[id(item)]
        return (
            encoding.dtype is Dtype.INT8
            and encoding.block is None
            and encoding.scheme is not Scheme.DEQUANTIZE
        )

    def _expanded_axis(self, item: Candidate, encoding: Encoding) -> int | None:
        """Chooses the scales of a constant that only DEQUANTIZE reads: where rounding loses least."""
        if encoding.granularity is kernels.Granularity.TENSOR:
            return None
        if self._dequantize_form(encoding.dtype, 0) is None:
            return None
        rank = len(item.shape)
        for use in item.uses:
            row = kernels.hybrid_row(use.operator.code.name)
            axis = (
                weight_axis(row, use.operator, rank)
                if row is not None and use.position in row.inputs
                else None
            )
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

    def _dequantize_form(self, dtype: Dtype, axis: int | None) -> kernels.DequantizeForm | None:
        granularity = kernels.Granularity.TENSOR if axis is None else kernels.Granularity.CHANNEL
        runtime = self.settings.min_runtime
        forms = [kernels.dequantize_form(part.tensor_type, granularity, runtime) for part in dtype.parts]
        return None if None in forms else forms[0]

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
            elif not any(map(together, group)):
                saved = group[0].item.stored.buffer.nbytes - group_nbytes(group)
                if saved <= 0:
                    kind = group[0].dtype.value
                    reason = (
                        "not-smaller",
                        f"{kind} with its scales and operators takes {-saved} bytes more",
                    )
            if reason is not None:
                for made in group:
                    self.blocked.setdefault(id(made.item), reason)
        self._check_together(groups)

    def _check_together(self, groups: dict[int, list[Decision]]) -> None:
        """Drops the weights of operators that take all or none, where all of them are not smaller."""
        operators: dict[int, dict[int, list[Decision]]] = {}
        for key, group in groups.items():
            for made in group:
                if together(made) and id(made.item) not in self.blocked:
                    for use in made.item.uses:
                        operators.setdefault(id(use.operator), {})[key] = group
        for buffers in operators.values():
            saved = sum(
                group[0].item.stored.buffer.nbytes - group_nbytes(group) for group in buffers.values()
            )
            if saved <= 0:
                reason = ("not-smaller", f"int8 takes {-saved} bytes more for all weights of its operator")
                for made in (made for group in buffers.values() for made in group):
                    self.blocked.setdefault(id(made.item), reason)


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


def _values(item: Candidate, blob: Blob) -> np.ndarray[Any, Any]:
    return np.frombuffer(blob.view(), dtypes.BY_VALUE[item.stored.dtype].numpy)


def _list(names: Sequence[str]) -> str:
    rest = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + rest


def _text(runtime: kernels.Runtime) -> str:
    return f"{runtime[0]}.{runtime[1]}"
