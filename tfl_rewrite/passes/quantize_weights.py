"""Stores large float constants smaller: as integers of 12 to 2 bits, or float16.

Promise: float weights become symmetric integers (zero point 0) with a scale for the tensor, a channel or a
block, or float16; they are read by a kernel that takes them so, or expanded by a DEQUANTIZE operator.
Activations, biases, small constants, the interface, and everything that is quantized already stay as they
are, but for weights in a form that the oldest runtime does not know: they are stored anew in one that it does
(:mod:`tfl_rewrite.weights.expansion`). Outputs may differ within the tolerance of verification. No constant
is changed whose new form is not smaller; a second run changes nothing. Every float constant is reported, with
what became of it or why it stayed; where it is stored otherwise than asked for, a note says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import field, replace
from typing import ClassVar

from tfl_rewrite.editing.base import Context, Effect, Pass, PassResult
from tfl_rewrite.editing.editor import Editor
from tfl_rewrite.errors import UnsupportedError, UsageError
from tfl_rewrite.kernels import runtimes
from tfl_rewrite.kernels.operators import Reading
from tfl_rewrite.kernels.table import row_of
from tfl_rewrite.model.graph import Graph
from tfl_rewrite.model.ir import Model, Quantization, Tensor
from tfl_rewrite.options.frozen import frozen
from tfl_rewrite.options.option import TEXT, Kind, Role, Taken, check_options, option
from tfl_rewrite.options.patterns import REGEXES, compile_all
from tfl_rewrite.passes.simplify import SIMPLIFY, after_simplify
from tfl_rewrite.weights.biases import correct
from tfl_rewrite.weights.candidates import EXCLUDE, INCLUDE, UNNAMED, Candidate, Selection
from tfl_rewrite.weights.encoding import Encoding, Recipe, Rule, Scheme, unmatched_notes
from tfl_rewrite.weights.expansion import renew
from tfl_rewrite.weights.payloads import Payload, WeightChange
from tfl_rewrite.weights.plan import WeightPlan
from tfl_rewrite.weights.rounders import Clipped, Effort, Rounder, activations_of
from tfl_rewrite.weights.scales import Magnitudes
from tfl_rewrite.weights.state import lower_for, nothing_to_quantize, still_late
from tfl_rewrite.weights.storage import Decision, Stored, forms

FINER = ("int8:channel:dequantize", "float16", "float32")
"""What a constant is stored as where the outputs lose too much by what was asked for, one after the other."""


Assignment = Callable[[Candidate], Encoding | None] | Mapping[str, Encoding]
"""Which constant is stored how; None, or a name that is not there, leaves it to the default."""

RUNTIME = Kind(runtimes.parse_runtime, runtimes.taken_runtime)


def _check_map(text: str) -> None:
    # A file is read once, later.
    if not text.endswith(".toml"):
        Recipe.parse(text)


@frozen(kw_only=True)
class QuantizeWeights(Pass):
    """Stores float weights as integers of 12 to 2 bits, or float16.

    Stores float weights smaller, with float activations: as int8 (default), or as --dtype and --map say.
    Runs the model before and after, and writes OUT only if every output keeps --min-snr. LOSSY: outputs
    change a little. Biases, small constants and what is quantized already stay as they are.

    Attributes:
        encoding: How constants are stored that ``assignment`` says nothing about; None for what ``dtype`` and
            ``granularity`` say.
        assignment: How each constant is stored, by a call or by the name of the tensor; None for what ``map``
            says.
        rounder: Makes scales and integers from values; None for what ``effort`` says.
        levels: Constants that are stored finer, by position of the buffer; see :meth:`refined`.
        finer_few: Whether constants of few elements take int8 where all are asked to take fewer bits.
        scale_axes: Along which axis scales lie where only DEQUANTIZE reads them, by position of the buffer.
        may_be_sparse: Whether int8 behind DEQUANTIZE may be stored without its zeros.
        compacted: Whether the file is laid out compactly afterwards; see :class:`WeightPlan`.
        magnitudes: What was read of the constants of a file, for many passes over it; see
            :class:`Magnitudes`.
        selection: Which constants, of what the options say.

    Example:
        >>> from tfl_rewrite.passes import QuantizeWeights
        >>> passes = [QuantizeWeights(dtype="int4", granularity="block:32", exclude=("^logits",))]
        >>> model = tfl_rewrite.load("model.tflite")
        >>> tfl_rewrite.run(model, passes)[0].modified
        True
    """

    name: ClassVar[str] = "quantize-weights"
    effect: ClassVar[Effect] = Effect.TOLERANCE
    place: ClassVar[str] = "after the graph is clean, before it is packed"

    dtype: str = option(
        "int8",
        "what weights become: int8 (default), int6 (an int4 and an int2 that add up), int4, int2, "
        "int10 or int12 (an int8 and an int2 or int4), float16, or float32 to keep all but what --map names",
        choices=forms(),
    )
    map: str | None = option(
        None,
        "mixed precision by hand: rules between commas, such as 'conv.*=int4:block:32,logits=float32', "
        "or a TOML file. A rule matches names and operator types; the first that matches decides, --dtype "
        "the rest",
        kind=TEXT.checked_by(_check_map),
        metavar="REGEX=ENCODING,...|FILE.toml",
        role=Role.READ_MAP,
    )
    scheme: Taken[Scheme, str] = option(
        Scheme.AUTO,
        "hybrid: the runtime's dynamic-range kernels read the integers (smaller and faster). "
        "dequantize: integer constant, DEQUANTIZE, float kernel (smaller file, same memory as float; same "
        "speed with int8 and float16). auto (default): hybrid where a kernel takes it, dequantize elsewhere",
        choices=Scheme,
    )
    granularity: str = option(
        "channel",
        "one scale per channel where the kernel takes it (default), per tensor, or per block: of so many "
        "elements (block:32, block:64, block:128, block:256), or as many as suit each constant (block)",
        metavar="channel|tensor|block[:N]",
    )
    min_elements: int | None = option(
        None,
        "keep smaller constants as they are (default: 1024; in a small model fewer for weights of "
        "hybrid kernels: a 400th of all constant elements, at least 64)",
        metavar="N",
        bounds=(1, 1 << 40),
    )
    include: tuple[str, ...] = option((), INCLUDE, kind=REGEXES, metavar="REGEX")
    exclude: tuple[str, ...] = option((), EXCLUDE, kind=REGEXES, metavar="REGEX")
    keep_first_last: bool = option(False, "keep the weights of the first and the last weighted operator")
    effort: Taken[Effort, str] = option(
        Effort.BALANCED,
        "fast: scales that cover the largest value, nearest integers. balanced (default): scales of "
        "least squared error; with --inputs, integers chosen for what the weights are multiplied with. best: "
        "with --inputs, weight by weight, each for what it meets behind those before it (runs parts of the "
        "model for every weight)",
        choices=Effort,
    )
    bias_correction: bool = option(
        True,
        "with --inputs: leave biases as they are, instead of letting them take back what rounding does "
        "to mean outputs",
    )
    min_runtime: Taken[runtimes.Runtime, str] = option(
        runtimes.NEWEST_RUNTIME,
        "oldest TensorFlow Lite release that must compute OUT, such as 2.14 (default: the newest)",
        kind=RUNTIME,
        metavar="VERSION",
    )
    encoding: Encoding | None = None
    assignment: Assignment | None = None
    rounder: Rounder | None = None
    levels: Mapping[int, int] = field(default_factory=dict)
    finer_few: bool = True
    scale_axes: Mapping[int, int] = field(default_factory=dict)
    may_be_sparse: bool = True
    compacted: bool = False
    magnitudes: Magnitudes | None = field(default=None, compare=False, repr=False)
    selection: Selection = field(init=False)
    simplify: bool = option(False, SIMPLIFY)

    def __post_init__(self) -> None:
        """Reads the rules and patterns.

        Raises:
            UsageError: A value is not one that exists, or no constant could be stored so on the runtime.
            FileAccessError, FormatError: The rules lie in a file that cannot be read.
        """
        check_options(self)
        patterns = compile_all([*self.include, *self.exclude])
        count = len(self.include)
        chosen = Selection(self.min_elements, patterns[:count], patterns[count:], self.keep_first_last)
        object.__setattr__(self, "selection", chosen)
        default = self.default
        rules: tuple[Rule, ...] = ()
        if self.assignment is None and self.map is not None:
            recipe = Recipe.parse(self.map, default=replace(default, form=Encoding().form))
            object.__setattr__(self, "assignment", recipe)
            rules = recipe.rules
        for wanted in (default, *(rule.encoding for rule in rules)):
            _check_encoding(wanted, self.min_runtime)

    @property
    def finer(self) -> tuple[str, ...]:
        """The forms that a constant takes where the outputs lose too much, one after the other."""
        # Who asked for hybrid kernels alone wants no DEQUANTIZE.
        return FINER[-1:] if self.scheme is Scheme.HYBRID else FINER

    def parts(self) -> Sequence[Pass]:
        """Returns this, and what simplifies the graph before it where that is asked for."""
        return after_simplify(self)

    @property
    def is_fitted(self) -> bool:
        """Whether weights are rounded for what they meet on the user's inputs."""
        return self.rounder is None and self.effort is not Effort.FAST

    @property
    def expanding(self) -> str:
        """The option that keeps all constants out of hybrid kernels."""
        return "--scheme dequantize" if self.scheme is Scheme.AUTO else ""

    @property
    def excluding(self) -> str:
        """The option that leaves constants as they are."""
        return "--exclude"

    def refined(self, levels: Mapping[int, int]) -> QuantizeWeights:
        """Returns the pass with some constants stored finer, at these levels of :attr:`finer`."""
        return replace(self, levels=dict(levels))

    @property
    def default(self) -> Encoding:
        """How constants are stored that are not assigned."""
        return self.encoding if self.encoding is not None else Encoding.of(self.dtype, self.granularity)

    def plan(self, model: Model) -> WeightPlan:
        """Returns what decides what becomes of the constants of a model."""
        recipe = self.assignment if isinstance(self.assignment, Recipe) else None
        few, chosen = self.finer_few and self.assignment is None, (self.selection, self.min_runtime)
        made = WeightPlan(model, *chosen, self._encoding, recipe, self.levels, self.magnitudes, few)
        made.scale_axes, made.may_be_sparse = self.scale_axes, self.may_be_sparse
        made.compacted = self.compacted
        return made

    def _encoding(self, item: Candidate, position: int) -> Encoding:
        """Returns what a constant is to become: as it was assigned, or as all are; or finer."""
        found: Encoding | None = None
        if isinstance(self.assignment, Mapping):
            found = self.assignment.get(item.value.name)
        elif self.assignment is not None:
            found = self.assignment(item)
        wanted = found or self.default
        if wanted.scheme is Scheme.AUTO:
            wanted = replace(wanted, scheme=self.scheme)
        finer = [Encoding.parse(text) for text in self.finer[: self.levels.get(position, 0)]]
        # Never coarser: what was asked for may be finer than the first forms are.
        return next((form for form in reversed(finer) if form.form.bits >= wanted.form.bits), wanted)

    def run(self, model: Model, context: Context) -> PassResult:
        """Rewrites the model in place.

        Constants are read for their scales now; the integers are made when the file is written.
        """
        renewed, said = renew(model, self.min_runtime, self._may_renew)
        plan = self.plan(model)
        decisions, skips = plan.decide()
        idle_patterns = unmatched_notes(self.selection, model, plan.graph)
        balanced: tuple[str, ...] = ()
        if self.effort is Effort.BEST and any(made.form.is_integer for made in decisions):
            balanced = _balance(model, context)
            if balanced:
                plan = self.plan(model)
                decisions, skips = plan.decide()
        changes, notes = _Application(model, plan, self._rounder(context)).apply(decisions)
        if self.min_runtime < runtimes.NEWEST_RUNTIME:
            notes += self._settle(model)
        for index, change in enumerate(changes):
            if change.where in renewed:
                taken = renewed[change.where]
                saved = change.saved + taken - change.nbytes_before
                changes[index] = replace(change, nbytes_before=taken, saved=saved, renewed=True)
        told = (*said, *idle_patterns, *balanced, *plan.notes, *notes)
        idle = "" if changes else nothing_to_quantize(model)
        return PassResult(self.name, tuple(changes), tuple(skips), told, grows=bool(renewed), idle=idle)

    def _rounder(self, context: Context) -> Rounder:
        if self.rounder is not None:
            return self.rounder
        if self.effort is Effort.FAST:
            return Rounder()
        activations = activations_of(context)
        if activations is None:
            return Clipped()
        return activations.rounder(context.number, self.effort, correct_bias=self.bias_correction)

    def _may_renew(self, tensor: Tensor, graph: Graph) -> bool:
        """Whether a weight may be stored in another form: not where the user wants it to stay."""
        item = Candidate(graph.uses_of(tensor)[0].subgraph, tensor, tensor, None, graph.uses_of(tensor))
        return self.selection.refuses(item, (0, 0), set()) is None

    def _settle(self, model: Model) -> list[str]:
        """Lowers versions that alone keep the oldest runtime away, and says what it does not run anyway.

        Raises:
            UnsupportedError: It would load the file and misread a weight.
        """
        text, notes = runtimes.runtime_text(self.min_runtime), []
        for name, old, needed in lower_for(model, self.min_runtime):
            notes.append(f"{name}: version {old} lowered to {needed}, which is all that is used")
        weights, missing = still_late(model, self.min_runtime)
        if weights:
            item = weights[0]
            first = max(weight.first for weight in weights)
            raise UnsupportedError(
                f"runtime {text} misreads a {item.form} of {item.operator}, which cannot be stored otherwise",
                where=f"{item.place} {item.tensor.name}".rstrip(),
                remedy=f"use --min-runtime {first[0]}.{first[1]}, or quantize the float model for {text}",
            )
        if missing:
            notes.append(f"runtime {text} refuses the file all the same: {'; '.join(missing)}")
        return notes


def _check_encoding(encoding: Encoding, runtime: runtimes.Runtime) -> None:
    """Refuses an encoding that no constant could have on a runtime.

    Raises:
        UsageError: Names the first runtime that has it.
    """
    first = encoding.form.first_runtime
    if runtime < first:
        raise UsageError(
            f"{encoding.text} needs runtime {first[0]}.{first[1]} or newer, and {runtime[0]}.{runtime[1]} "
            "is asked for",
            remedy="use int8, or a newer --min-runtime",
        )


def _balance(model: Model, context: Context) -> tuple[str, ...]:
    """Balances channels between operators before their weights are rounded; returns a note of it."""
    from tfl_rewrite.passes.equalize import Equalize

    edits = Equalize().run(model, context).changes
    if not edits:
        return ()
    names = ", ".join(edit.where for edit in edits[:3]) + (", ..." if len(edits) > 3 else "")
    return (f"input channels of {len(edits)} weight(s) balanced by powers of two, which is exact: {names}",)


def prepare(model: Model, passes: Sequence[QuantizeWeights], rounder: Rounder) -> None:
    """Tells a rounder of all constants that some passes would store otherwise, each on its own.

    So that what it has to know of the model is collected once for all of them. The model is not changed.
    """
    plans = [settings.plan(model) for settings in passes]
    rounder.prepare(model, [work for plan in plans for work in plan.works(plan.decide()[0])])


class _Application:
    """Carries decisions out."""

    def __init__(self, model: Model, plan: WeightPlan, rounder: Rounder) -> None:
        self._model = model
        self._plan = plan
        self._rounder = rounder
        self._editor = Editor(model)
        self._stored: dict[tuple[object, ...], Stored] = {}
        self._quantizations: dict[tuple[object, ...], Quantization] = {}

    def apply(self, decisions: list[Decision]) -> tuple[list[WeightChange], list[str]]:
        """Changes the model; returns the changes and notes."""
        # While the model is as it was.
        self._rounder.prepare(self._model, self._plan.works(decisions))
        changes: list[WeightChange] = []
        known: set[int] = set()
        # Rewiring replaces the blob and the type of what other decisions still refer to as their source.
        sources = {id(made.item.stored.buffer): (made.item.blob, made.item.nbytes) for made in decisions}
        for made in decisions:
            key = id(made.item.stored.buffer)
            blob, nbytes = sources[key]
            first = key not in known
            known.add(key)
            stored = self._stored.get((key, made.content))
            shared = stored is not None
            saved = (nbytes if first else 0) - made.overhead
            if stored is None:
                saved -= made.nbytes
                buffer = made.item.stored.buffer if first else self._editor.add_buffer(None)
                work = self._plan.work(made, blob, self._plan.positions[key])
                stored = made.form.store(self._editor, made, work, self._rounder, buffer)
                self._stored[(key, made.content)] = stored
            change = _change(made, self._plan.positions[key], nbytes, saved, stored.payload, shared=shared)
            changes.append(change)
            quantization = made.form.quantization(made, stored)
            if quantization is not None:
                # Equal ones are one object, so that they are written once.
                same = (blob.identity, made.content, made.axis)
                quantization = self._quantizations.setdefault(same, quantization)
            made.item.make_dense(self._editor)
            made.form.rewire(self._editor, made, stored, quantization)
        for made in decisions:
            for use, reading in zip(made.item.uses, made.readings, strict=True):
                # XNNPACK keeps a bias behind a DEQUANTIZE of float16 in float16 if only layers read it
                # (xnnpack_delegate.cc, "skipped" nodes), and then refuses the whole file (measured on 2.3
                # with CONV_2D), or gives whatever lies in memory to a layer that it does not take, since the
                # weights come from a DENSIFY. A DEQUANTIZE of int8 is not affected.
                apart = reading is Reading.HYBRID or made.form.is_sparse
                if apart and row_of(use.operator).is_layer:
                    self._editor.store_bias_as_float32(use.subgraph, use.operator)
        correct(self._editor, self._rounder.corrections())
        self._editor.finish()
        return changes, [*self._rounder.notes(), *self._editor.notes]


def _change(
    made: Decision, position: int, nbytes: int, saved: int, payload: Payload, *, shared: bool
) -> WeightChange:
    item, form = made.item, made.form
    return WeightChange(
        where=item.value.name or item.stored.name or UNNAMED,
        buffer=position,
        dtype=item.stored.dtype_name,
        shape=item.shape,
        readers=tuple(item.readers),
        scheme="+".join(reading.value for reading in made.kinds),
        axis=made.axis,
        channels=made.channels.channels if form.is_integer else 0,
        nbytes_before=nbytes,
        nbytes_after=form.data_nbytes(item.elements),
        saved=saved,
        payload=payload,
        shared=shared,
        block=form.block,
        granularity=form.granularity(made.axis),
        encoding=form.text(made.axis),
    )
