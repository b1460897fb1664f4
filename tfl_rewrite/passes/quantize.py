"""Makes operators compute in integers, activations and weights alike, from what they hold on real inputs.

Promise: what has an integer kernel on every resolver, and whose tensors were seen on the inputs, computes in
int8 (weights int8 with a scale per channel, biases int32) or beside int16 activations (biases int64); what
has none, or what integers would ruin, stays float, and is named with the reason. Inputs and outputs stay as
they were, with QUANTIZE and DEQUANTIZE at the border, unless other types are asked for. Float16 and integer
weights are made float first, but for those that only float operators read: they stay as they are stored. What
computes in uint8, as old converters made it, computes in int8 then, on the scales that the file has, and
needs no inputs. Changes outputs. What computes in int8 or int16 already is left as it is. Where other types
are asked for at the border of a model that computes in integers, nothing else is changed, and no number where
that needs no rounding.
"""

from __future__ import annotations

import functools
import itertools
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from tfl_rewrite.editing.base import Change, Context, Effect, Pass, PassResult, Skip
from tfl_rewrite.editing.editor import Editor
from tfl_rewrite.errors import UnsupportedError, UsageError
from tfl_rewrite.integers.border import TYPES, border_grids, computed_kinds, retype
from tfl_rewrite.integers.mixture import Choice, Computes, Mixture, parse_rules
from tfl_rewrite.integers.modes import Range, computes_in_floats, could_compute
from tfl_rewrite.integers.plan import IntegerPlan, Wanted, check_target
from tfl_rewrite.integers.ranges import RANGES, Calibration, TensorRanges
from tfl_rewrite.integers.recipe import STEPS, Recipe, improved
from tfl_rewrite.integers.rewrites import prepare
from tfl_rewrite.integers.signed import READING, convert_copies, make_signed
from tfl_rewrite.integers.wish import MARGIN_DB, MOST_MARGIN_DB, Known, Search
from tfl_rewrite.kernels.integer import Target
from tfl_rewrite.kernels.operands import operators_of, stored_constant, uncomputed_memory, weights_of
from tfl_rewrite.kernels.table import CONVERSIONS, row_of
from tfl_rewrite.model.graph import Graph
from tfl_rewrite.model.ir import Model, Operator
from tfl_rewrite.options.json_data import JsonData
from tfl_rewrite.options.option import TEXTS, Role, Taken, check_options, option
from tfl_rewrite.options.patterns import REGEXES
from tfl_rewrite.passes.drop_channels import idle_channels
from tfl_rewrite.passes.quantize_weights import QuantizeWeights
from tfl_rewrite.passes.simplify import SIMPLIFY, after_simplify
from tfl_rewrite.weights.candidates import Candidate
from tfl_rewrite.weights.encoding import Encoding
from tfl_rewrite.weights.rounders import (
    Clipped,
    Effort,
    Measure,
    Rounder,
    activations_of,
    measures_of,
)

MIXED = "mixed"
_FLOATS_STEP_DB = 5.0
"""By so much more at most do outputs keep at the next attempt, where floats are what keeps it."""
_MOST_FLOATS = 0.5
"""Of the operators: a model with more of them in floats is none that computes in integers."""
_NO_HYBRID = "no kernel of it reads int8 weights beside float activations"


@dataclass(frozen=True, slots=True)
class OperatorChange(JsonData):
    """One operator that computes in integers now.

    Attributes:
        where: Its place in the file that was read.
        operator: Its type.
        activations: The type of what it reads and gives, such as ``int8``; ``hybrid`` where its weights alone
            are integers.
    """

    where: str
    operator: str
    activations: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantize(Pass):
    """Makes operators compute in integers: int8 or int16 activations, int8 weights; needs real inputs.

    Full-integer quantization for a model without its source: the ranges of all tensors come from --inputs,
    and weights are rounded for what they meet behind quantized activations. Inputs and outputs stay float,
    so that the file is a drop-in, unless --io asks for other types. What has no integer kernel stays float
    and is named. A uint8 model becomes an int8 one, with weights per channel, without inputs.

    Attributes:
        share: With mixed activations: of the operators, how many have 16 bits, whatever ``--min-snr`` says;
            those that are worth most. None for as many as it needs.
        margin: By how many dB more than ``--min-snr`` is kept on the samples at hand, by mixed activations or
            with ``islands``.
        islands: By how many dB integers alone missed the tolerance, so that what costs most stays float; None
            where they are not known to miss it.
        whole: Whether grids hold what the samples show that judge, too, once they have; what was chosen and
            rounded for the others is kept.

    Example:
        >>> from tfl_rewrite.passes import Quantize
        >>> judging = tfl_rewrite.Judging(inputs=("inputs.npz",))
        >>> passes = [Quantize()]
        >>> report = tfl_rewrite.rewrite("model.tflite", "integers.tflite", passes, judging=judging)
        >>> report.nbytes_after < report.nbytes_before / 2
        True
    """

    name: ClassVar[str] = "quantize"
    effect: ClassVar[Effect] = Effect.TOLERANCE
    place: ClassVar[str] = "in the place of quantize-weights: what computes in integers has integer weights"
    resolvers: ClassVar[tuple[str, ...]] = ("default", "builtin", "reference")
    calibrated: ClassVar[bool] = True

    activations: str = option(
        "int8",
        "int8 (default), or int16: twice the memory for activations and less error; weights are int8 beside "
        "both. mixed: 16 bits for as few of them as --min-snr needs",
        choices=(Computes.INT8.value, Computes.INT16.value, MIXED),
    )
    io: str | None = option(
        None,
        "type of the inputs and outputs: float (a drop-in), int8, uint8 or int16. Without it, a float model "
        "keeps its floats, and one that computes in integers already keeps what it has; what holds no real "
        "numbers, such as indices, keeps its type",
        choices=tuple(TYPES),
    )
    io_input: str | None = option(None, "the same of the inputs alone; wins over --io", choices=tuple(TYPES))
    io_output: str | None = option(
        None, "the same of the outputs alone; wins over --io", choices=tuple(TYPES)
    )
    float_islands: str = option(
        "allow",
        "allow (default): what has no integer kernel stays float, and where outputs lose too much, so does "
        "what costs them most (not with --no-rescue). refuse: end with exit code 3 and name it",
        choices=("allow", "refuse"),
    )
    include: tuple[str, ...] = option(
        (),
        "only operators whose type, or the name of one of whose outputs, matches compute in integers; "
        "repeatable",
        kind=REGEXES,
        metavar="REGEX",
    )
    exclude: tuple[str, ...] = option(
        (),
        "operators whose type, or the name of one of whose outputs, matches stay float; wins over "
        "--include; repeatable",
        kind=REGEXES,
        metavar="REGEX",
    )
    map: tuple[str, ...] = option(
        (),
        "what operators compute in whose type, or the name of one of whose outputs, matches: int8 or int16 "
        "activations, hybrid (int8 weights, float activations) or float; repeatable, the last that matches "
        "decides; of those that --include and --exclude leave",
        kind=TEXTS.checked_by(parse_rules),
        metavar="REGEX=int8|int16|hybrid|float",
    )
    effort: Taken[Effort, str] = option(
        Effort.BALANCED,
        "fast: weights rounded to the nearest on scales of least squared error. balanced (default): "
        "weight by weight, each for what it meets behind quantized activations and the weights before it. "
        "best: the same with more work for each",
        choices=Effort,
    )
    target: Taken[Target, str] = option(
        Target.LITERT,
        "what is to run the file. litert (default), or 2.14: what tflite-runtime 2.14 does not compute "
        "right stays float or has 8 bits, and int8 becomes int16 by way of floats. tflm: likewise for "
        "TFLite Micro; weights beside floats are floats, and where it has no kernel, exit code 3",
        choices=Target,
    )
    ranges: TensorRanges | str | os.PathLike[str] | None = option(
        None,
        "keep the ranges of tensors: write them to this file where --inputs are given, and read them "
        "otherwise, so that another run needs no inputs; weights are then rounded as by --effort fast",
        kind=RANGES,
        metavar="FILE.json",
        role=Role.CALIBRATED,
    )
    bias_correction: bool = option(
        True, "leave biases as they are, instead of letting them take back what rounding does to mean outputs"
    )
    share: float | None = None
    margin: float = MARGIN_DB
    islands: float | None = None
    whole: bool = False
    simplify: bool = option(False, SIMPLIFY)

    def __post_init__(self) -> None:
        """Refuses options that are none.

        Raises:
            UsageError: A value is none of the choices, or a pattern is no regular expression.
        """
        check_options(self)
        rules = self._choice().rules
        if self.target is Target.MICRO and any(rule.computes is Computes.HYBRID for rule in rules):
            raise UsageError(
                f"{self.target.spoken} has no kernels that read int8 weights beside float activations",
                remedy="--map REGEX=float for those operators",
            )

    def parts(self) -> Sequence[Pass]:
        """Returns this, and what simplifies the graph before it where that is asked for."""
        return after_simplify(self)

    @property
    def is_fitted(self) -> bool:
        """It looks at the user's inputs."""
        return True

    @property
    def release(self) -> str:
        """That of the target, where it is an old one."""
        return self.target.value if self.target is Target.OLD else ""

    @property
    def elsewhere(self) -> str:
        """That of the target, where it need not run the original."""
        return self.target.value if self.target is Target.MICRO else ""

    @property
    def milder(self) -> str:
        """16 bits where they are needed, or some operators as floats."""
        wider = "--activations mixed, " if self.activations == "int8" else ""
        wider += "--float-islands allow, " if self.float_islands == "refuse" else ""
        # What integers lose at the border is lost whatever computes inside.
        wider += "--io float, " if {*self._asked} - {None, "float"} else ""
        return f"give {wider}more samples, --exclude for single operators, or a lower --min-snr"

    def stricter(self, short_db: float) -> Quantize | None:
        """Returns the pass that keeps what was missed and more: by 16 bits where mixed, else by floats."""
        is_mixed = self.activations == MIXED
        most = MOST_MARGIN_DB if is_mixed else 2 * MOST_MARGIN_DB
        is_last = self.margin >= most
        if self.share is not None or (not is_mixed and (is_last or self.float_islands == "refuse")):
            return None
        if is_mixed and is_last:
            return replace(self, share=1.0)
        if not is_mixed and self.islands is None:
            return replace(self, islands=short_db)
        # What was missed by far, such as by one channel, is often kept by a few groups more; floats are dear.
        step = min(1.5 * max(short_db, 1.0), math.inf if is_mixed else _FLOATS_STEP_DB)
        return replace(self, margin=min(self.margin + step, most))

    @property
    def widened(self) -> Quantize | None:
        """The pass whose grids hold all samples, unless they do, or their ranges were recorded."""
        return None if self.whole or isinstance(self.ranges, TensorRanges) else replace(self, whole=True)

    def run(self, model: Model, context: Context) -> PassResult:
        """Rewrites the model in place.

        Raises:
            UsageError: There are neither inputs nor ranges, or of another model; or a rule matches nothing.
            FileAccessError, FormatError: The ranges cannot be read, or are none.
            UnsupportedError: No operator can compute in integers, or one has to stay float and may not; or
                the target has no kernel of one.
        """
        made = self._integers(model, context)
        check_target(model, self.target)
        return made

    def _integers(self, model: Model, context: Context) -> PassResult:
        """Makes what computes in uint8 or in floats compute in integers, and the border what is asked for."""
        self._choice().check(model)
        signed = self._signed(model)
        is_border = self._asked != (None, None) and self._is_integer(model, context)
        is_done = not any(could_compute(operator) for _, operator in model.operators())
        is_bare = signed.modified and self.ranges is None and activations_of(context) is None
        if is_border or is_done or is_bare:
            self._refuse(model)
            if self.ranges is not None:
                told = "nothing is calibrated: no file of ranges is read or written"
                signed = replace(signed, notes=(*signed.notes, told))
        if is_border:
            return replace(self._joined(signed, self._retyped(model)), milder=signed.milder)
        if is_done:
            return signed if signed.modified else self._idle(model, signed)
        if is_bare:
            told = "what computes in floats stays so without --inputs"
            return replace(signed, notes=(*signed.notes, told))
        idle = idle_channels(model)
        made = self._quantized(model, context, Calibration(model, self.ranges, context))
        if idle and made.modified:
            told = f"{idle} channel(s) hold one number whatever the input: --simplify drops them first"
            made = replace(made, notes=(told, *made.notes))
        return self._joined(signed, made)

    def _idle(self, model: Model, result: PassResult) -> PassResult:
        """Says why nothing is to be done."""
        skips = [
            Skip(place, why, "float-island")
            for _, operator, place in operators_of(model)
            if computes_in_floats(operator) and (why := uncomputed_memory(operator))
        ]
        told = "no operator computes in floats that has an integer kernel"
        idle = _counted("what computes in floats stays so", skips) if skips else told
        kinds = {kind.lower() for kind in computed_kinds(model)}
        more = f"; what computes in {', '.join(sorted(kinds))} stays so" if kinds - {self.activations} else ""
        return replace(result, skips=tuple(skips), idle=idle + more)

    def _joined(self, signed: PassResult, made: PassResult) -> PassResult:
        """Returns the result of both, of which the first makes int8 of uint8."""
        if not signed.modified:
            return replace(made, notes=(*signed.notes, *made.notes))
        return replace(
            made,
            changes=(*signed.changes, *made.changes),
            skips=(*signed.skips, *made.skips),
            notes=(*signed.notes, *made.notes),
            grows=True,
            reading=signed.reading,
            exact=False,
            idle="",
        )

    def define(self, model: Model, context: Context) -> None:
        """Reads uint8 kernels that copy integers between unequal scales as XNNPACK and int8 ones want it."""
        editor = Editor(model)
        convert_copies(model, editor)
        editor.finish()

    def _refuse(self, model: Model) -> None:
        """Refuses a model of which nothing that is float becomes integers, where no islands may be left."""
        kept = {item.code.name: None for _, item in model.operators() if computes_in_floats(item)}
        if kept and self.float_islands == "refuse":
            told = ", ".join(kept)
            raise UnsupportedError(
                f"{len(kept)} type(s) of operators would stay float: {told}",
                remedy="allow --float-islands",
            )

    def _signed(self, model: Model) -> PassResult:
        """Makes what computes in uint8 compute in int8."""
        places = {id(operator): place for _, operator, place in operators_of(model)}
        choice, editor = self._choice(), Editor(model)
        done = make_signed(model, lambda item: choice.of(item) is Computes.FLOAT, editor, self.target)
        editor.finish()
        if not done.operators:
            return PassResult(self.name)
        notes = [*done.notes(), *editor.notes]
        asked = {self.activations, *(choice.of(item).value for item in done.operators)}
        if other := sorted(asked - {Computes.INT8.value}):
            notes.insert(0, f"{', '.join(other)} asked for: what was uint8 is int8 all the same")
        return PassResult(
            self.name,
            tuple(OperatorChange(places[id(item)], item.code.name, "int8") for item in done.operators),
            tuple(Skip(places[key], why, "uint8-island") for key, why in done.reasons.items()),
            tuple(notes),
            grows=True,
            reading=READING if done.unequal else "",
            # The scales are those of the file: neither samples nor widths change them.
            milder="give --exclude for single operators, or a lower --min-snr: its own kernels may differ as "
            "much, which more --inputs tell",
        )

    def _quantized(self, model: Model, context: Context, calibration: Calibration) -> PassResult:
        """Makes what computes in floats compute in integers."""
        places = {id(operator): place for _, operator, place in operators_of(model)}
        choice = self._choice()

        def keeps(item: Operator) -> bool:
            # What is named stays what it is called.
            return choice.of(item).width is None or bool(choice.include or choice.ruled(item))

        packed = _with_packed_weights(model)
        prepared = prepare(model, lambda item: choice.of(item) is not Computes.FLOAT, keeps, self.target)
        packed -= _with_packed_weights(model)
        for was, made in itertools.chain.from_iterable(prepared.replaced.values()):
            places[id(made)] = places[id(was)]
        # What computes in integers already is no less done where nothing else can.
        is_done = bool(computed_kinds(model)) and not prepared.modified
        check_target(model, self.target, typed=False)
        ranges = calibration.ranges(model)
        recipe = self._recipe(model, choice, ranges, calibration, context)
        bits, strictest, notes = self._bits(model, choice, ranges, recipe, calibration, context)
        planned = functools.partial(IntegerPlan, model, bits, recipe=recipe, target=self.target)
        fitted, ranges = planned(ranges), calibration.ranges(model, whole=True) if self.whole else ranges
        plan = planned(ranges) if self.whole else fitted
        operators = [operator for _, operator in model.operators()]
        hybrid = [item for item in operators if choice.of(item) is Computes.HYBRID]
        reasons = {key: why for key, why in plan.modes.reasons.items() if key not in set(map(id, hybrid))}
        reasons |= {id(item): self._lossy for item in operators if choice.width(item) and bits(item) is None}
        skips = self._check(plan, operators, reasons, places, is_done=is_done)
        if not plan.modes.widths:
            idle = _counted("of what computes in floats, none can compute in integers", skips)
            return PassResult(self.name, (), tuple(skips), idle=idle)
        if self.effort is not Effort.FAST and calibration.activations is None:
            notes.insert(0, f"weights are rounded as by --effort fast: {self.effort.value} needs --inputs")
        notes += calibration.notes
        rounder = self._rounder(fitted, calibration, context)
        computes = {key: f"int{width}" for key, width in plan.modes.widths.items()}
        editor = Editor(model)
        plan.convert(editor, plan.weights(rounder))
        border = retype(model, editor, *self._asked, ranges, recipe, self.target)
        editor.finish()
        told = recipe.notes(), prepared.notes(), border.notes, editor.notes, rounder.notes()
        notes += itertools.chain(_conversions(model, operators), *told)
        if self.target is not Target.MICRO:
            # What was made floats and stays so becomes integers again: the file would grow.
            hybrid += [item for item in operators if id(item) in packed & reasons.keys()]
            # Floats were asked for their activations: integer weights cost them little.
            rescued = {key for key, why in reasons.items() if why == self._lossy}.difference(map(id, hybrid))
            self._store(model, rescued, "int8:channel:dequantize", context)
        for operator in self._hybrid(model, hybrid, context):
            computes[id(operator)] = Computes.HYBRID.value
        stay = {id(item): _NO_HYBRID for item in hybrid} | reasons
        reasons = {key: why for key, why in stay.items() if key not in computes}
        done = (item for item in operators if id(item) in computes)
        edits: list[Change] = [
            OperatorChange(places.get(id(item), "(new)"), item.code.name, computes[id(item)]) for item in done
        ]
        skips = self._check(plan, operators, reasons, places, is_done=is_done)
        came = (*edits, *border.edits), (*skips, *border.skips), tuple(notes)
        result = PassResult(self.name, *came, grows=True, files=calibration.files, retyped=bool(border.edits))
        return replace(result, strictest=strictest)

    @property
    def _lossy(self) -> str:
        return f"outputs lose too much with it in {self.activations}"

    @property
    def _fixed(self) -> Recipe:
        """The recipe where no sample says anything else."""
        whole = self.float_islands == "refuse" or bool({*self._asked} - {None, "float"})
        return Recipe(parts=math.inf) if whole else Recipe()

    @property
    def _asked(self) -> tuple[str | None, str | None]:
        """What inputs and outputs are to be."""
        return self.io_input or self.io, self.io_output or self.io

    def _is_integer(self, model: Model, context: Context) -> bool:
        """Whether nothing is left that could become integers, or some are and nothing tells of the others."""
        if not any(could_compute(operator) for _, operator in model.operators()):
            return True
        calibrated = activations_of(context) is not None or self.ranges is not None
        return not calibrated and bool(computed_kinds(model))

    def _retyped(self, model: Model) -> PassResult:
        """Changes nothing but the types of inputs and outputs."""
        editor = Editor(model)
        border = retype(model, editor, *self._asked, target=self.target)
        editor.finish()
        notes = (*border.notes, *editor.notes)
        if not border.edits:
            idle = "inputs and outputs have the types that were asked for, or hold no real numbers"
            return PassResult(self.name, (), tuple(border.skips), notes, idle=idle)
        return PassResult(
            self.name,
            tuple(border.edits),
            tuple(border.skips),
            notes,
            grows=True,
            retyped=True,
            exact=border.exact,
        )

    def _recipe(
        self,
        model: Model,
        choice: Choice,
        ranges: Mapping[int, Range],
        calibration: Calibration,
        context: Context,
    ) -> Recipe:
        """Returns how wide grids are to be, as samples say that their ranges do not come from."""
        steps, found = STEPS[self.effort], self._fixed
        first = IntegerPlan(model, choice.width, ranges, found, target=self.target).grids()
        settled: dict[object, Recipe] = _kept(context, "recipes")
        asked = self.effort, found, first
        if asked in settled:
            return settled[asked]
        # Most models have nothing for some of the steps: what comes to the same plan is measured once.
        known: dict[object, float] = {}

        def settle(measure: Measure) -> None:
            nonlocal found

            def score(tried: Recipe) -> float:
                plan = functools.partial(IntegerPlan, model, choice.width, recipe=tried, target=self.target)
                key = plan(ranges=ranges).grids()
                if key not in known:
                    known[key] = measure(lambda seen: plan(ranges=seen).simulate)
                return known[key]

            found = improved(found, steps, score)

        if steps and calibration.activations is not None:
            calibration.activations.measured(context.number, model, settle)
        settled[asked] = found
        return found

    def _choice(self) -> Choice:
        default = Computes.INT8 if self.activations == MIXED else Computes(self.activations)
        return Choice.parse(default, self.map, self.include, self.exclude)

    def _rounder(self, plan: IntegerPlan, calibration: Calibration, context: Context) -> Rounder:
        if self.effort is Effort.FAST or calibration.activations is None:
            return Clipped()
        # What comes to the same grids is rounded once, whatever was asked for.
        rounders: dict[object, Rounder] = _kept(context, "rounders")
        asked = self.effort, self.bias_correction, plan.grids()
        if asked not in rounders:
            rounders[asked] = calibration.activations.integer_rounder(
                context.number, self.effort, plan.simulate, correct_bias=self.bias_correction
            )
        return rounders[asked]

    def _bits(
        self,
        model: Model,
        choice: Choice,
        ranges: Mapping[int, Range],
        recipe: Recipe,
        calibration: Calibration,
        context: Context,
    ) -> tuple[Wanted, bool, list[str]]:
        """Returns the bits of operators, whether nothing would lose less, and what to say of it.

        Raises:
            UsageError: There are no inputs to measure with.
        """
        measures, is_mixed = measures_of(context), self.activations == MIXED
        if measures is None:
            if is_mixed:
                raise UsageError("which groups need 16 bits is measured", remedy="give --inputs, too")
            return choice.width, True, []
        wish = measures.min_snr
        if not is_mixed and (self.islands is None or wish is None):
            # Without a ratio to keep, nothing says what has to stay float.
            return choice.width, wish is None, []
        wide = 16 if is_mixed else None
        mixture = Mixture(model, choice, ranges, recipe, target=self.target, wide=wide)
        search = Search(
            mixture,
            lambda plan: plan.weights(self._rounder(plan, calibration, context)),
            functools.partial(measures.noises, context.number, model),
            measures.memory(context.number).setdefault(f"wide {wide}", Known()),
            functools.partial(border_grids, model, *self._asked, recipe),
        )
        if self.islands is not None and wish is not None:
            found = search.settle_refused(wish, self.islands, self.margin)
        elif self.share is None:
            found = search.settle(wish, self.margin)
        else:
            found = search.widest_share(self.share)
        if not is_mixed and mixture.share(found.wide) > _MOST_FLOATS:
            # Little but floats would keep it: it is refused as it was.
            return choice.width, True, []
        told = f"{len(found.wide)} of {len(mixture.units)} scale groups "
        kept = f"{found.snr:.1f} dB on the samples at hand, {mixture.narrow} bits keep {found.narrowest:.1f}"
        if is_mixed:
            told += f"have 16 bits: {kept} and 16 bits {found.widest:.1f}"
        else:
            other = "; --activations mixed has 16 bits for such" if self.activations == "int8" else ""
            told += f"stay float, since {self.activations} alone was refused (see --no-rescue{other}): {kept}"
        return mixture.wanted(found.wide), is_mixed and search.is_widest(found), [told]

    def _hybrid(self, model: Model, operators: list[Operator], context: Context) -> list[Operator]:
        """Stores the weights of operators for hybrid kernels; returns those that have one."""
        self._store(model, set(map(id, operators)), "int8:channel:hybrid", context, min_elements=1)
        return [
            item
            for item in operators
            if any(weight.is_constant and weight.dtype_name == "INT8" for weight in weights_of(item))
        ]

    def _store(self, model: Model, wanted: set[int], stored: str, context: Context, **options: Any) -> None:
        """Stores the weights that only these operators read, given by id, smaller."""
        if not wanted:
            return

        def encoding(item: Candidate) -> Encoding:
            mine = all(id(use.operator) in wanted for use in item.uses)
            return Encoding.parse(stored if mine else "float32")

        # The best effort balances channels between operators, which have their grids by now.
        effort = Effort.FAST if self.effort is Effort.FAST else Effort.BALANCED
        QuantizeWeights(
            assignment=encoding,
            effort=effort,
            bias_correction=self.bias_correction,
            min_runtime=self.target.runtime,
            **options,
        ).run(model, context)

    def _check(
        self,
        plan: IntegerPlan,
        operators: list[Operator],
        reasons: dict[int, str],
        places: dict[int, str],
        *,
        is_done: bool,
    ) -> list[Skip]:
        """Returns what stays float.

        Raises:
            UnsupportedError: That is all, in a model that computes in floats; or may not be.
        """
        skips = [
            Skip(places.get(id(operator), operator.code.name), reasons[id(operator)], "float-island")
            for operator in operators
            if id(operator) in reasons
        ]
        if not plan.modes.widths and not is_done:
            raise UnsupportedError(_counted("no operator can compute in integers", skips))
        if skips and self.float_islands == "refuse":
            named = "; ".join(f"{skip.where}: {skip.reason}" for skip in skips[:5])
            more = f"; and {len(skips) - 5} more" if len(skips) > 5 else ""
            raise UnsupportedError(
                f"{len(skips)} operator(s) would stay float: {named}{more}", remedy="allow --float-islands"
            )
        return skips


def _with_packed_weights(model: Model) -> set[int]:
    """Returns the operators, by id, whose weights are stored as integers."""
    graph = Graph.of(model)
    stored = {
        id(operator): [stored_constant(weight, graph) for weight in weights_of(operator)]
        for _, operator in model.operators()
    }
    return {
        key
        for key, items in stored.items()
        if any(item and item.dtype_name.startswith("INT") for item in items)
    }


def _kept(context: Context, name: str) -> dict[Any, Any]:
    """Returns what was found on an equal model before, by what was asked; it is kept where samples are."""
    measures = measures_of(context)
    return {} if measures is None else measures.memory(context.number).setdefault(name, {})


def _conversions(model: Model, before: Iterable[Operator]) -> list[str]:
    """Says how many there are that were not before."""
    known = set(map(id, before))
    count = sum(row_of(item) in CONVERSIONS for _, item in model.operators() if id(item) not in known)
    return [f"{count} conversion(s) between floats and integers, or between integers"] if count else []


def _counted(what: str, skips: Sequence[Skip]) -> str:
    """Says of how many operators for which reasons something holds."""
    counts = Counter(skip.reason for skip in skips).most_common()
    why = "; ".join(f"{count} x {reason}" for reason, count in counts[:5]) or "no sample reaches one"
    return f"{what}: {why}" + (f"; and {len(counts) - 5} more reasons" if len(counts) > 5 else "")
