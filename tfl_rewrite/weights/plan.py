"""Decides of each float constant what it becomes, with which scales, and how operators read it.

Nothing is changed here; :mod:`tfl_rewrite.passes.quantize_weights` carries the decisions out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field, replace

import numpy as np

from tfl_rewrite.editing.base import Skip
from tfl_rewrite.kernels.operators import Form, Granularity, Reading
from tfl_rewrite.kernels.runtimes import Runtime, runtime_text
from tfl_rewrite.kernels.table import BLOCKS_IN_CALLED_SUBGRAPHS, DENSIFY_IS_EXPANDED, dequantize_form, row_of
from tfl_rewrite.model.blob import Blob, MappedBlob
from tfl_rewrite.model.graph import Graph
from tfl_rewrite.model.ir import Model, Tensor
from tfl_rewrite.numerics import symmetric
from tfl_rewrite.numerics.blocks import FITTING, block_lengths, direct
from tfl_rewrite.numerics.symmetric import Channels
from tfl_rewrite.options.frozen import slotted
from tfl_rewrite.weights.candidates import (
    BIAS,
    LEAST_ELEMENTS,
    Candidate,
    Selection,
    find_candidates,
    first_and_last,
    scale_constants,
    skip,
    stored_already,
)
from tfl_rewrite.weights.encoding import Encoding, Recipe, Scheme, fallback_notes, finer_where_few
from tfl_rewrite.weights.forms.blocks import Blocks, block_channels
from tfl_rewrite.weights.forms.integers import SparseInteger
from tfl_rewrite.weights.readers import WeightForms, agree, scales_axis, settle_scales
from tfl_rewrite.weights.rounders import Work
from tfl_rewrite.weights.scales import Magnitudes, ScaleAxes
from tfl_rewrite.weights.sparse import OVERHEAD_NBYTES
from tfl_rewrite.weights.storage import (
    COMPACT,
    Decision,
    StorageForm,
    block_hybrid_biases,
    block_useless,
)
from tfl_rewrite.work import current

_LEAST_BIAS = 256
"""Of shorter biases float16 with its DEQUANTIZE saves next to nothing, unless the file is compact."""

_SPARSE_SHARE = 0.75
"""Of the bytes of all integers, what those that are not zero may take: as many as int6, which costs as much
time. For less than that saved, layers would leave XNNPACK."""


@slotted
class WeightPlan:
    """The decisions for one model.

    Attributes:
        model: Looked at, not changed.
        selection: Which constants the user wants changed.
        min_runtime: The oldest runtime that must compute the file correctly.
        encode: How a constant is to be stored, by it and the position of its buffer.
        recipe: Rules that ``encode`` follows, each of which must match something.
        levels: Constants that are stored finer than was asked for, by position of the buffer.
        known: What was read of the constants of the file before, by other plans.
        finer_few: Whether constants of few elements take 8 bits instead of fewer.
        scale_axes: Along which axis scales lie where only DEQUANTIZE reads them, by position of the buffer.
        may_be_sparse: Whether int8 behind DEQUANTIZE may be stored without its zeros.
        compacted: Whether the file is laid out compactly, so that tensors and operators take less.
        blocked: Id of each candidate that stays, with ``(rule, reason)``.
        magnitudes: What was read of the constants.
        by_value: Candidates by the id of the tensor that operators read; without biases.
        forms: How operators can read them.
        axes: Chooses their scales where that leaves it open.
        sharers: How many candidates hold the same bytes, by the id of the buffer.
        least: How many elements a constant must have, and how many a hybrid kernel's weight.
        encodings: What each candidate is to become, by its id.
        positions: Of buffers in the model, by id.
        fallbacks: Where another encoding is used than was asked for, by candidate, in words.
    """

    model: Model
    selection: Selection
    min_runtime: Runtime
    encode: Callable[[Candidate, int], Encoding]
    recipe: Recipe | None = None
    levels: Mapping[int, int] = field(default_factory=dict)
    known: Magnitudes | None = None
    finer_few: bool = False
    scale_axes: Mapping[int, int] = field(default_factory=dict)
    may_be_sparse: bool = True
    compacted: bool = False
    graph: Graph = field(init=False)
    blocked: dict[int, tuple[str, str]] = field(default_factory=dict)
    magnitudes: Magnitudes = field(default_factory=Magnitudes)
    by_value: dict[int, Candidate] = field(default_factory=dict)
    forms: WeightForms = field(init=False)
    axes: ScaleAxes = field(init=False)
    sharers: Counter[int] = field(default_factory=Counter)
    least: tuple[int, int] = (0, 0)
    encodings: dict[int, Encoding] = field(default_factory=dict)
    fallbacks: dict[int, str] = field(default_factory=dict)
    positions: dict[int, int] = field(default_factory=dict)

    def decide(self) -> tuple[list[Decision], list[Skip]]:
        """Decides for the whole model.

        Returns:
            What is to become of the constants that change, and why each other one stays.
        """
        self.graph = Graph.of(self.model)
        self.positions = {id(buffer): index for index, buffer in enumerate(self.model.buffers)}
        items, skips = find_candidates(self.model, self.graph)
        weights = [item for item in items if not item.is_bias]
        self.by_value = {id(item.value): item for item in weights}
        # What a pass made lives no longer than its model, and is not met again.
        if all(isinstance(item.stored.buffer.blob, MappedBlob) for item in items):
            self.magnitudes = self.known or self.magnitudes
        self.sharers = Counter(id(item.stored.buffer) for item in items)
        if self.recipe is not None:
            self.recipe.check(self.model, items)
        self.encodings = {id(item): self._encoding(item) for item in items}
        if self.finer_few:
            finer = finer_where_few(weights, self.encodings)
            self.encodings |= finer
            self.fallbacks |= dict.fromkeys(finer, "int8, since so few elements take next to nothing")
        self._select(items, weights)
        if self.finer_few:
            for item in weights:
                # No kernel reads one alone, so that all of them have to be int8 before any is decided.
                if item.together and item.elements < self.least[0]:
                    self._make_int8(item)
        decisions = self._settle(items)
        for item in items:
            reason = self.blocked.get(id(item))
            if reason is not None:
                skips.append(skip(item, *reason))
        return decisions, [*skips, *self._already()]

    @property
    def notes(self) -> list[str]:
        """Where another encoding is used than was asked for; those of a kind are one."""
        return fallback_notes(
            {
                item: self.fallbacks.get(id(item))
                for item in self.by_value.values()
                if id(item) not in self.blocked
            }
        )

    def work(self, made: Decision, blob: Blob, position: int) -> Work:
        """Returns what a rounder is told of a constant that was decided on.

        Args:
            made: The decision.
            blob: The bytes of the constant; its buffer may hold others by now.
            position: Of its buffer in the model.
        """
        item, key = made.item, (blob.identity, made.channels)
        return Work(
            item.value.name,
            position,
            item.shape,
            made.form.bits,
            made.axis,
            made.form.block,
            made.channels,
            made.levels,
            tuple(item.uses),
            tuple(reading.value for reading in made.readings),
            self.magnitudes.known[key],
            blob,
            made.stored_dtype,
            self.magnitudes.energy.get(key),
            self.magnitudes.clipped,
        )

    def works(self, decisions: Sequence[Decision]) -> list[Work]:
        """Returns what a rounder is told of what becomes integers, while the model is as it was."""
        works: dict[tuple[object, ...], Work] = {}
        for made in decisions:
            buffer = made.item.stored.buffer
            if made.form.is_integer:
                key = (id(buffer), made.content)
                if key in works:
                    # Read through another tensor as well: what all of them do is not one product.
                    works[key] = replace(works[key], uses=(*works[key].uses, *made.item.uses))
                else:
                    works[key] = self.work(made, made.item.blob, self.positions[id(buffer)])
        return list(works.values())

    def _already(self) -> list[Skip]:
        """Returns the constants that are integers already, but not those that were asked for."""
        found = []
        for item, reason in stored_already(self.model, self.graph):
            wanted = self._encoding(item).form
            large = item.elements >= self.least[1] and not wanted.keeps
            # What is int8 is as small as the default asks for.
            if large and not wanted.is_int8 and wanted.parts[0] != item.stored.dtype_name:
                found.append(reason)
        return found

    def _encoding(self, item: Candidate) -> Encoding:
        return self.encode(item, self._position(item))

    def _position(self, item: Candidate) -> int:
        return self.positions[id(item.stored.buffer)]

    def _select(self, items: list[Candidate], weights: list[Candidate]) -> None:
        selection = self.selection
        least = self.least = selection.least(self.model, scale_constants(self.graph, self.model))
        ends = first_and_last(weights, least) if selection.keep_first_last else set()
        for item in items:
            short = item.elements < (LEAST_ELEMENTS if self.compacted else _LEAST_BIAS)
            rounded = item.is_bias and (short or self.encodings[id(item)].form.is_integer)
            reason = BIAS if rounded else selection.refuses(item, least, ends)
            if reason is not None:
                self.blocked[id(item)] = reason

    def _settle(self, items: list[Candidate]) -> list[Decision]:
        """Decides until nothing more drops out: a constant that stays may change what its readers can do."""
        self.axes = ScaleAxes(self.by_value, self.magnitudes)
        self._read_ahead(items)
        while True:
            self.forms = WeightForms(
                self.min_runtime, self.by_value, self._can_be_int8, self.magnitudes, self.axes
            )
            decisions = {}
            before = len(self.blocked), dict(self.encodings)
            for item in items:
                if id(item) not in self.blocked:
                    made = self._rather_int8(item, self._decide(item))
                    if isinstance(made, Decision):
                        decisions[id(item)] = made
                    else:
                        self.blocked[id(item)] = made
            self._measure(list(decisions.values()))
            for each in decisions.values():
                # A hybrid kernel errs more, for it rounds activations too: what it saves has to be plain.
                if Reading.HYBRID not in each.readings:
                    each.sharing = self.axes.shared(each.item, each.channels.channels)
            share = COMPACT if self.compacted else 1.0
            block_useless(self.model, list(decisions.values()), self.blocked, share)
            block_hybrid_biases(list(decisions.values()), self.blocked)
            if (len(self.blocked), self.encodings) == before:
                return [decisions[id(item)] for item in items if id(item) in decisions]

    def _decide(self, item: Candidate) -> Decision | tuple[str, str]:
        """Returns the decision for one constant, or ``(rule, reason)`` why it stays."""
        encoding = self.encodings[id(item)]
        if encoding.form.keeps:
            if self.levels.get(self._position(item)):
                return "needed", "the outputs lose too much without it as it is"
            return "float32", "asked for float32"
        if not encoding.form.is_integer:
            return self._decide_cast(item, encoding)
        if encoding.block is None:
            return self._decide_channels(item, encoding)
        asked, lengths = encoding.block, block_lengths(item.shape, encoding.block)
        old = self.min_runtime < BLOCKS_IN_CALLED_SUBGRAPHS
        called = old and id(item.subgraph) in self.model.called
        if lengths and not called:
            if asked not in (FITTING, lengths[0]):
                self.fallbacks[id(item)] = f"blocks of {lengths[0]}, since {asked} does not divide it"
            made = self._best_blocks(item, encoding, lengths)
            if not isinstance(made, Decision) or made.form.native:
                return made
            return self._rather_channels(made, encoding)
        why = f"no blocks of up to {asked} fit" if asked else "its rows are too short for blocks"
        if called:
            old_runtime = runtime_text(self.min_runtime)
            why = f"runtime {old_runtime} expands no blocks in subgraphs that operators call"
        self.fallbacks[id(item)] = f"one scale per channel or tensor, since {why}"
        return self._decide_channels(item, replace(encoding, granularity=Granularity.CHANNEL, block=None))

    def _best_blocks(
        self, item: Candidate, encoding: Encoding, lengths: Sequence[int]
    ) -> Decision | tuple[str, str]:
        """Returns the decision for blocks of the best of some lengths, or why there is none."""
        found = [self._decide_blocks(item, encoding, length) for length in lengths]
        made = [each for each in found if isinstance(each, Decision)]
        if len(made) < 2:
            return made[0] if made else found[0]
        # What kernels read themselves takes no memory for floats, so that they come first.
        made = [each for each in made if each.form.native] or made
        scales = {each.channels: each for each in made}
        sizes = {channels: self._nbytes_of(each) for channels, each in scales.items()}
        return scales[self.axes.best_rate(item, encoding.form, sizes)]

    def _rather_int8(self, item: Candidate, made: Decision | tuple[str, str]) -> Decision | tuple[str, str]:
        """Returns the decision, or one for int8 where fewer bits take no fewer bytes, or as many as floats.

        What holds the parts of int6 together, or a DEQUANTIZE, takes more than so few elements save.
        """
        wanted = self.encodings[id(item)]
        if not self.finer_few or not _is_plainly_less(wanted):
            return made
        if isinstance(made, tuple) and made[0] != "small":
            return made
        stored = self._nbytes_of(made) if isinstance(made, Decision) else item.nbytes - 1
        other = self._decide_channels(item, wanted.as_int8())
        if not isinstance(other, Decision) or self._nbytes_of(other) > stored:
            return made
        self._make_int8(item)
        return other

    def _make_int8(self, item: Candidate) -> None:
        wanted = self.encodings[id(item)]
        if _is_plainly_less(wanted):
            self.encodings[id(item)] = wanted.as_int8()
            self.fallbacks[id(item)] = "int8, which takes no more bytes for so few elements"

    def _decide_cast(self, item: Candidate, encoding: Encoding) -> Decision | tuple[str, str]:
        form = encoding.form
        if item.expand is not None:
            return form.name, f"it is {form.name} already"
        if item.elements < self.least[0] and not item.is_weight:
            return "small", f"{item.elements} elements, fewer than {self.least[0]}"
        dequantize = self.forms.dequantize(form, None)
        if dequantize is None:
            return self.forms.no_dequantize(form)
        return Decision(item, [Reading.DEQUANTIZE] * len(item.uses), [dequantize], None, form)

    def _decide_blocks(self, item: Candidate, encoding: Encoding, length: int) -> Decision | tuple[str, str]:
        """Decides for scales by block: a kernel that reads them itself, or what DEQUANTIZE and MUL make."""
        found = [self.forms.of(use.operator, use.position, encoding, length) for use in item.uses]
        reasons = [forms for forms in found if isinstance(forms, str)]
        channels = block_channels(item.shape, length)
        if not reasons and encoding.block in (length, FITTING):
            forms = [choices[0] for choices in found if not isinstance(choices, str)]
            native = Blocks.of(encoding.form, length, in_kernel=True)
            made = Decision(item, [Reading.HYBRID] * len(forms), forms, None, native)
            largest = self.magnitudes.of(item, channels)
            if not np.isfinite(largest).all():
                return "not-finite", "it holds NaN or infinite values"
            if direct(symmetric.scales(largest, made.levels.high), largest == 0) is not None:
                return made
            reasons.append("its smallest scale is below what float16 holds")
        if encoding.scheme is Scheme.HYBRID:
            return "no-hybrid-kernel", reasons[
                0
            ] if reasons else f"its rows are not blocks of {encoding.block}"
        form = self.forms.dequantize(encoding.form, None)
        half = dequantize_form("FLOAT16", None, self.min_runtime)
        if form is None or half is None:
            return self.forms.no_dequantize(encoding.form)
        if item.elements < self.least[0] and not item.is_weight:
            return "small", f"{item.elements} elements, fewer than {self.least[0]}"
        readings = [Reading.DEQUANTIZE] * len(item.uses)
        return Decision(item, readings, [form], None, Blocks.of(encoding.form, length))

    def _rather_channels(self, made: Decision, encoding: Encoding) -> Decision:
        """Returns the decision for blocks, or one for channels where those err less for their bytes.

        A block of a depthwise filter holds a weight of each of many channels, and takes four operators.
        """
        item = made.item
        other = self._decide_channels(item, replace(encoding, granularity=Granularity.CHANNEL, block=None))
        if not isinstance(other, Decision) or other.axis is None:
            return made
        if other.channels == made.channels:
            # The same scales: as float16 with what multiplies, which was asked for, or as float32.
            return min(other, made, key=self._nbytes_of) if encoding.block == FITTING else made
        options = {each.channels: self._nbytes_of(each) for each in (made, other)}
        smaller = {key: nbytes for key, nbytes in options.items() if nbytes < item.nbytes}
        if self.axes.best(item, encoding.form, smaller or options) == made.channels:
            return made
        self.fallbacks[id(item)] = "one scale per channel, which err less for their bytes than blocks"
        return other

    def _decide_channels(self, item: Candidate, encoding: Encoding) -> Decision | tuple[str, str]:
        readings: list[Reading] = []
        forms: list[Form] = []
        found = [self.forms.of(use.operator, use.position, encoding) for use in item.uses]
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
            readings.append(form.reading)
            forms.append(form)
        axis = settled[0] if settled is not None else None
        if Reading.DEQUANTIZE in readings:
            if encoding.scheme is Scheme.HYBRID:
                return "no-hybrid-kernel", reasons[0]
            if settled is None and item.elements < self.least[0]:
                return "small", f"{item.elements} elements, fewer than {self.least[0]}"
            if settled is None:
                return self._decide_expanded(item, encoding)
            dequantize = self.forms.dequantize(encoding.form, axis)
            if dequantize is None:
                return self.forms.no_dequantize(encoding.form)
            forms.append(dequantize)
        return Decision(item, readings, forms, axis, encoding.form)

    def _decide_expanded(self, item: Candidate, encoding: Encoding) -> Decision | tuple[str, str]:
        """Decides for a constant that only DEQUANTIZE reads, so that its scales may lie along any axis."""
        readings = [Reading.DEQUANTIZE] * len(item.uses)
        made: dict[Channels, Decision] = {}
        stored_as = self._sparse(item, encoding) or encoding.form
        fixed = self.scale_axes.get(self._position(item))
        for axis in self.forms.expanded_axes(item, encoding) if fixed is None else [fixed]:
            form = self.forms.dequantize(encoding.form, axis)
            if form is None:
                return self.forms.no_dequantize(encoding.form)
            each = Decision(item, readings, [form], axis, stored_as)
            each.sharing = self.axes.shared(item, each.channels.channels)
            made[each.channels] = each
        options = {channels: self._nbytes_of(each) for channels, each in made.items()}
        stored = item.nbytes
        # More scales than that, and nothing would be saved.
        smaller = {channels: nbytes for channels, nbytes in options.items() if nbytes < stored}
        best = self.axes.best(item, encoding.form, smaller or options)
        if self.axes.rather_kept(item, encoding.form, best, options):
            return "noise", "one scale errs more than its bytes are worth, and more scales save nothing"
        return made[best]

    def _sparse(self, item: Candidate, encoding: Encoding) -> StorageForm | None:
        """Returns the form that stores only what is not zero, where that is asked for and far smaller.

        What is left to choose is not stored so: XNNPACK takes no layer whose weights come from it.
        """
        form, readers = encoding.form, [row_of(use.operator) for use in item.uses]
        if not form.is_int8 or encoding.scheme is not Scheme.DEQUANTIZE or not self.may_be_sparse:
            return None
        if self.min_runtime < DENSIFY_IS_EXPANDED or not all(row.is_layer for row in readers):
            return None
        nbytes = self.magnitudes.sparse_nbytes(item)
        far_less = nbytes + OVERHEAD_NBYTES < _SPARSE_SHARE * item.elements
        return SparseInteger.of(form, nbytes) if far_less else None

    def _nbytes_of(self, made: Decision) -> int:
        """Returns what a constant takes then, with others that hold the same bytes: an overhead each."""
        return made.nbytes + self.sharers[id(made.item.stored.buffer)] * made.overhead

    def _can_be_int8(self, tensor: Tensor) -> bool:
        item = self.by_value.get(id(tensor))
        if item is None or id(item) in self.blocked:
            return False
        encoding = self.encodings[id(item)]
        return encoding.form.is_int8 and encoding.block is None and encoding.scheme is not Scheme.DEQUANTIZE

    def _read_ahead(self, items: list[Candidate]) -> None:
        """Reads weights along the axis that their scales are likely to lie, several at a time.

        Readers are asked one after the other, and some look at the values.
        """
        wanted: dict[tuple[object, Channels], tuple[Candidate, Channels]] = {}
        for item in items:
            encoding = self.encodings[id(item)]
            if id(item) in self.blocked or not encoding.form.is_integer or encoding.block is not None:
                continue
            if item.is_weight and (axes := self.axes.axes(item)):
                channels = Channels.along(item.shape, axes[0])
                if not self.magnitudes.knows(item, channels):
                    wanted.setdefault((item.blob.identity, channels), (item, channels))
        rows = list(wanted.values())
        nbytes = sum(item.blob.nbytes for item, _ in rows)
        current().each(lambda row: self.magnitudes.of(*row), rows, nbytes=nbytes)

    def _measure(self, decisions: list[Decision]) -> None:
        """Reads the constants for their scales, several at a time; drops those that are not finite."""
        work, total = current(), sum(made.item.blob.nbytes for made in decisions)
        stage = work.stage("measuring", total)

        def measure(made: Decision) -> symmetric.Float32:
            largest = self.magnitudes.of(made.item, made.channels)
            stage.tick(made.item.blob.nbytes)
            return largest

        # Threads take longer to start than to look up what was read before.
        new = [made for made in decisions if not self.magnitudes.knows(made.item, made.channels)]
        nbytes = sum(made.item.blob.nbytes for made in new)
        with np.errstate(invalid="ignore"):
            for made, largest in zip(decisions, work.each(measure, decisions, nbytes=nbytes), strict=True):
                if not np.isfinite(largest).all():
                    self.blocked[id(made.item)] = ("not-finite", "it holds NaN or infinite values")


def _is_plainly_less(wanted: Encoding) -> bool:
    """Whether it is integers of fewer bits than int8, not in blocks: who asks for those means them."""
    return wanted.form.is_integer and wanted.block is None and wanted.form.bits < wanted.as_int8().form.bits
