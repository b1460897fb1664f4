"""retarget: a file is made one that an older or a smaller runtime loads and computes right.

In three steps, each reported and judged for itself (:meth:`Retarget.parts`). Operators that the runtime lacks
are replaced by others that compute the same: composites by what they stand for, others as the rows of
:mod:`tfl_rewrite.editing.substitutes` say. Weights in forms that it does not know are stored in others that
mean the same (:mod:`tfl_rewrite.weights.recoding`). Then operator versions are lowered to what the features
in use need, never below, and raised nowhere; metadata and where buffers lie follow.
What cannot run there all the same is named, and no file is written. What runs there already is left as it is,
so a second run changes nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from tfl_rewrite.editing import metadata
from tfl_rewrite.editing.base import Context, Edit, Effect, Pass, PassResult, Skip
from tfl_rewrite.editing.editor import Editor
from tfl_rewrite.editing.shapes import Shapes, record_shapes
from tfl_rewrite.editing.substitutes import inline_composites, replace_missing, waiting_for_sizes
from tfl_rewrite.errors import UnsupportedError
from tfl_rewrite.flatbuf.writer import Packing
from tfl_rewrite.integers.signed import READING, convert_copies, make_signed
from tfl_rewrite.kernels.integer import Target
from tfl_rewrite.kernels.operands import operators_of
from tfl_rewrite.kernels.platforms import FLEX, Platform, missing
from tfl_rewrite.kernels.reads import micro_obstacles, version_counts
from tfl_rewrite.kernels.runtimes import runtime_text
from tfl_rewrite.kernels.table import COMPOSITE, row_of
from tfl_rewrite.model.ir import Model, Operator
from tfl_rewrite.options.option import TEXT, option
from tfl_rewrite.passes.fold_constants import FoldConstants
from tfl_rewrite.weights.recoding import read_as_floats, recode
from tfl_rewrite.weights.sparse import make_dense
from tfl_rewrite.weights.state import late_forms, lower_versions

_NAMED = 8
_INLINE_LIMIT = (1 << 31) - (64 << 20)


@dataclass(frozen=True, kw_only=True, slots=True)
class Retarget(Pass):
    """Makes a file load and compute right on an older or smaller runtime.

    Makes an existing file one that an older release, or TFLite Micro, loads and computes right: operator
    versions become those that its features need, weights are stored in forms that the runtime reads, as the
    same numbers, and operators that it lacks are replaced where that is exact or within float rounding. What
    is left is named with its place and the reason, with exit code 3.

    Example:
        >>> from tfl_rewrite.passes import Retarget
        >>> report = tfl_rewrite.rewrite("model.tflite", "old.tflite", [Retarget(target="2.14")])
        >>> tfl_rewrite.diagnose("old.tflite", min_runtime="2.14").counts["error"]
        0
    """

    name: ClassVar[str] = "retarget"
    effect: ClassVar[Effect] = Effect.TOLERANCE
    place: ClassVar[str] = "after all that stores weights: it changes no more than the runtime asks for"

    target: str = option(
        "2.14",
        "what is to run the file: a release of TensorFlow Lite (2.14), of LiteRT (litert-2.1), or tflm for "
        "TFLite Micro",
        kind=TEXT.checked_by(Platform.parse),
        metavar="RUNTIME",
        flags=("--target", "--runtime"),
    )
    hybrid: bool = option(
        False,
        "round weights to one scale where the runtime reads no scale per channel, so that they are still "
        "read as integers: faster and smaller in memory, less exact. Without it the same numbers stand "
        "behind DEQUANTIZE, and a float kernel computes with them",
    )
    allow_missing: bool = option(
        False,
        "write the file although the runtime lacks operators, such as those that a program brings itself",
    )

    @property
    def platform(self) -> Platform:
        """What is to run the file."""
        return Platform.parse(self.target)

    @property
    def elsewhere(self) -> str:
        """The runtime that is to run what it makes."""
        return self.target

    def parts(self) -> Sequence[Pass]:
        """Returns the steps."""
        platform = self.platform
        return (
            *((FoldShapes(platform), MakeSigned(platform)) if platform.is_micro else ()),
            ReplaceOperators(platform),
            MakeDense(platform),
            RecodeWeights(platform, self.hybrid),
            FitVersions(platform, self.allow_missing),
        )

    def run(self, model: Model, context: Context) -> PassResult:
        """Takes all steps.

        Raises:
            UnsupportedError: The runtime lacks something all the same.
        """
        made = [item.run(model, context) for item in self.parts()]
        return PassResult(
            self.name,
            tuple(change for result in made for change in result.changes),
            tuple(skip for result in made for skip in result.skips),
            tuple(note for result in made for note in result.notes),
            made[-1].packing,
            grows=True,
            exact=all(result.exact for result in made[:-1] if result.modified),
            idle=made[-1].idle,
        )


class _Step(Pass):
    """A step towards a platform."""

    command: ClassVar[bool] = False

    def __init__(self, platform: Platform) -> None:
        self._platform = platform

    @property
    def elsewhere(self) -> str:
        """The runtime that is to run what it makes."""
        return self._platform.text


class FoldShapes(_Step):
    """Writes down the shapes that TFLite Micro believes, and computes once what it wants constant."""

    name: ClassVar[str] = "retarget-shapes"
    effect: ClassVar[Effect] = Effect.EXACT

    def run(self, model: Model, context: Context) -> PassResult:
        """Records shapes; folds them, and what hangs on them, where an operator is refused."""
        edits = _recorded(model)
        if not any(self._platform.lacks(operator) for _, operator in model.operators()):
            return PassResult(self.name, tuple(edits), grows=True)
        made = FoldConstants().run(model, context)
        changes = (*made.changes, *edits, *_recorded(model))
        return replace(made, name=self.name, changes=changes, grows=True, idle="")


class MakeSigned(_Step):
    """Makes what computes in uint8 compute in int8: TFLite Micro has no kernels of uint8."""

    name: ClassVar[str] = "retarget-types"
    effect: ClassVar[Effect] = Effect.TOLERANCE

    def run(self, model: Model, context: Context) -> PassResult:
        """Converts it, on the scales that the file has; inputs and outputs stay what they are."""
        editor, places = Editor(model), {id(item): place for _, item, place in operators_of(model)}
        done = make_signed(model, lambda operator: False, editor, Target.MICRO)
        editor.finish()
        if not done.operators:
            return PassResult(self.name)
        edits = [Edit(f"{places[id(item)]} {item.code.name}", "uint8 -> int8") for item in done.operators]
        notes = (*done.notes(), *editor.notes)
        reading = READING if done.unequal else ""
        return PassResult(self.name, tuple(edits), (), notes, grows=True, reading=reading)

    def define(self, model: Model, context: Context) -> None:
        """Reads kernels that copy integers between unequal scales as int8 ones want it."""
        editor = Editor(model)
        convert_copies(model, editor)
        editor.finish()


class ReplaceOperators(_Step):
    """Replaces operators that a platform lacks by others that compute the same."""

    name: ClassVar[str] = "retarget-operators"
    effect: ClassVar[Effect] = Effect.FOLDING

    def run(self, model: Model, context: Context) -> PassResult:
        """Writes composites out, then looks at each operator."""
        editor = Editor(model)
        places = {id(operator): place for _, operator, place in operators_of(model)}
        edits: list[Edit] = []
        inlined = any(
            row_of(operator) is COMPOSITE and self._platform.lacks(operator)
            for _, operator in model.operators()
        )
        if inlined:
            made = inline_composites(model, editor)
            for name, operator, copies in made.done:
                what = f"{name} written out: {len(copies)} operator(s)"
                edits.append(Edit(f"{places[id(operator)]} {operator.code.name}", what))
        replaced = replace_missing(model, self._platform, editor)
        for operator, reason, what in replaced.done:
            where = f"{places.get(id(operator), 'a composite')} {operator.code.name}"
            edits.append(Edit(where, f"{what} in its place: {reason}"))
        editor.finish()
        exact = replaced.exact and not edits[: len(edits) - len(replaced.done)]
        return PassResult(self.name, tuple(edits), (), tuple(editor.notes), grows=True, exact=exact)


class MakeDense(_Step):
    """Makes sparse constants dense that a platform does not read.

    The same numbers, multiplied by other kernels: those of sparse weights add in another order.
    """

    name: ClassVar[str] = "retarget-sparse"
    effect: ClassVar[Effect] = Effect.FOLDING

    def run(self, model: Model, context: Context) -> PassResult:
        """Looks for what the platform lacks among all that reads sparse constants."""
        sparse = (
            item for _, item in model.operators() if any(t is not None and t.is_sparse for t in item.inputs)
        )
        count = make_dense(model) if any(map(self._platform.lacks, sparse)) else 0
        edits = [Edit("sparse constants", f"{count} made dense")] if count else []
        return PassResult(self.name, tuple(edits), grows=True)


class RecodeWeights(_Step):
    """Stores weights in forms that a platform reads.

    Args:
        platform: What is to read them.
        hybrid: Whether to round to one scale where it reads no more.
    """

    name: ClassVar[str] = "retarget-weights"
    effect: ClassVar[Effect] = Effect.TOLERANCE

    def __init__(self, platform: Platform, hybrid: bool) -> None:
        super().__init__(platform)
        self._hybrid = hybrid

    @property
    def milder(self) -> str:
        """Float kernels round no activations, as hybrid ones did; int8 kernels round otherwise than uint8."""
        return "give more samples, or a lower --min-snr: other kernels compute than did before"

    def run(self, model: Model, context: Context) -> PassResult:
        """Stores what is in no form that the platform reads."""
        done = recode(model, self._platform, hybrid=self._hybrid)
        return PassResult(
            self.name,
            tuple(done.edits),
            tuple(done.skips),
            tuple(done.notes),
            grows=True,
            exact=done.exact,
            otherwise="with floats for weights of hybrid kernels, which round activations"
            if done.unrounded
            else "",
        )

    def define(self, model: Model, context: Context) -> None:
        """Has float kernels read what they read afterwards."""
        read_as_floats(model, self._platform)


class FitVersions(_Step):
    """Lowers operator versions to what their features need, and refuses what a platform lacks all the same.

    Args:
        platform: What is to load the file.
        allowed: Whether it may lack something.
    """

    name: ClassVar[str] = "retarget-versions"
    effect: ClassVar[Effect] = Effect.EXACT

    def __init__(self, platform: Platform, allowed: bool) -> None:
        super().__init__(platform)
        self._allowed = allowed

    def run(self, model: Model, context: Context) -> PassResult:
        """Settles what is about the whole file.

        Raises:
            UnsupportedError: The platform lacks something; all of it is named.
        """
        edits = [*lower_versions(model), *self._drop_codes(model)]
        if self._platform.is_micro:
            # What was expanded or written out tells more.
            edits += _recorded(model)
        notes, skips = list[str](), list[Skip]()
        reasons = self._missing(model)
        if reasons and not self._allowed:
            raise UnsupportedError(
                f"the file cannot run on {self._platform.spoken}: {_listed(reasons)}",
                remedy=self._remedy(model),
            )
        skips += [Skip(place, why, "missing") for why, places in reasons.items() for place in places]
        notes += self._customs(model)
        packing = None
        outside = [buffer for buffer in model.buffers if buffer.outside and buffer.nbytes]
        if outside:
            packing = Packing(defaults=True)
            edits.append(Edit("buffers", f"{len(outside)} buffers taken into the FlatBuffer"))
        said = metadata.set_min_runtime(model, version_counts(model))
        if said is not None:
            edits.append(Edit("metadata min_runtime_version", f"{said[0]} -> {said[1]}"))
        idle = "" if edits else f"all that is in it runs on {self._platform.spoken} already"
        return PassResult(self.name, tuple(edits), tuple(skips), tuple(notes), packing, grows=True, idle=idle)

    def _missing(self, model: Model) -> dict[str, list[str]]:
        """Returns what the platform lacks: the places, by reason."""
        found: dict[str, list[str]] = {}
        if self._platform.is_micro:
            for item in micro_obstacles(model):
                found.setdefault(item.reason, []).append(item.place)
            shapes = Shapes.of(model)
            for tensor in model.subgraphs[0].outputs:
                full = shapes.full(tensor)
                if full is not None and full != (tensor.shape or ()):
                    why = f"output {tensor.name!r} has the shape {list(full)}, and the file records another"
                    found.setdefault(why, []).append("subgraphs[0]")
        else:
            for place, operator, why in missing(model, self._platform):
                found.setdefault(why, []).append(f"{place} {_named(operator)}".rstrip())
            for late in late_forms(model, self._platform.runtime):
                why = f"{late.form} of {late.operator} (right from {runtime_text(late.first)} on)"
                found.setdefault(why, []).append(f"{late.place} {late.tensor.name}".rstrip())
        if model.external_buffers:
            why = "weights lie in files beside the model: tfl-rewrite join takes them in"
            found.setdefault(why, []).append("external_buffers")
        if sum(buffer.nbytes for buffer in model.buffers) > _INLINE_LIMIT:
            found.setdefault("the constants take over 2 GiB, which one FlatBuffer cannot hold", []).append(
                "buffers"
            )
        return found

    def _remedy(self, model: Model) -> str:
        """What to do about what the platform lacks."""
        always = "write it all the same with --allow-missing"
        if names := waiting_for_sizes(model, self._platform):
            return (
                f"others may stand for {names[0]} once its sizes are settled: tfl-rewrite reshape IN FIXED "
                f"--batch 1 (or --input NAME=SHAPE) does that; or {always}"
            )
        if not any(True for _ in missing(model, self._platform)):
            return f"correct that first, or {always}"
        return f"cut the model before them (tfl-rewrite remove-dead --outputs NAME), or {always}"

    def _drop_codes(self, model: Model) -> list[Edit]:
        """Drops codes that no operator uses and that the platform refuses at load."""
        used = {id(operator.code) for _, operator in model.operators()}
        gone = [
            code
            for code in model.operator_codes
            if id(code) not in used
            and code.custom is None
            and not self._platform.has(code.name, code.version)
        ]
        model.operator_codes = [code for code in model.operator_codes if code not in gone]
        return [Edit(f"{code.name} version {code.version}", "code removed: nothing uses it") for code in gone]

    def _customs(self, model: Model) -> list[str]:
        """Says which custom operators a program must register."""
        names = Counter(operator.code.custom for _, operator in model.operators() if operator.code.custom)
        if not names or self._platform.is_micro:
            return []
        flex = any(name.startswith(FLEX) for name in names)
        told = ", ".join(names)
        return [
            f"custom operators must be known there as well: {told}" + (" (Flex delegate)" if flex else "")
        ]


def _recorded(model: Model) -> list[Edit]:
    found = record_shapes(model)
    return (
        [Edit(found[0].name, f"{len(found)} shape(s) written down as they are at run time")] if found else []
    )


def _named(operator: Operator) -> str:
    output = next((item for item in operator.outputs if item is not None), None)
    return output.name if output is not None else ""


def _listed(reasons: dict[str, list[str]]) -> str:
    told = [
        f"{why} ({places[0]}{f' and {len(places) - 1} more' if len(places) > 1 else ''})"
        for why, places in reasons.items()
    ]
    more = f"; and {len(told) - _NAMED} other reasons" if len(told) > _NAMED else ""
    return "; ".join(told[:_NAMED]) + more
