"""Integer activations beside floats in one search: each kind makes a file, the best that holds is taken.

Ranges are seen once, and weights are rounded once for equal grids, on all inputs of the search; what they
lose on the held-out ones decides, on all kernels, as ``quantize`` has it. What stays float among integers
gets the encodings that the search finds for it.
"""

from __future__ import annotations

import contextlib
import math
import shlex
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

from tfl_rewrite.calibration.fitter import InputActivations
from tfl_rewrite.editing.base import Context, Effect, Pass, PassResult
from tfl_rewrite.errors import UnsupportedError, UsageError
from tfl_rewrite.files.source import Source
from tfl_rewrite.integers.mixture import Computes
from tfl_rewrite.kernels.integer import Target
from tfl_rewrite.kernels.operands import operators_of
from tfl_rewrite.kernels.runtimes import NEWEST_RUNTIME
from tfl_rewrite.model.graph import Graph
from tfl_rewrite.model.ir import Model
from tfl_rewrite.options.json_data import LEFT_OUT, JsonData, finite, shown
from tfl_rewrite.options.patterns import exact
from tfl_rewrite.passes.quantize import MIXED, OperatorChange, Quantize
from tfl_rewrite.pipeline.verify import FullPanel
from tfl_rewrite.search.clock import TimeIsUp
from tfl_rewrite.search.goals import ANY, FLOATS, INTEGERS, Goal, Objective, ram_nbytes
from tfl_rewrite.search.holdout_judge import Figures, HoldoutJudge
from tfl_rewrite.search.search import Search, snr_of
from tfl_rewrite.search.session import Session, Stopwatch, in_hundredths
from tfl_rewrite.search.settle import settle
from tfl_rewrite.search.standing import Found, Step
from tfl_rewrite.search.trials import Measured, packed_nbytes
from tfl_rewrite.weights.candidates import find_candidates

FLOAT_SHARE = 0.7
"""Of the time limit: what encodings of float operators may take where integers are tried after them."""
_SAME_TIME = 0.02
"""Times of files that are apart by less of them are equal."""


@dataclass(frozen=True, slots=True)
class Integers(Pass):
    """The pass that makes integers of activations, with what it looks at; the same again gives the same."""

    name: ClassVar[str] = Quantize.name
    effect: ClassVar[Effect] = Effect.TOLERANCE
    resolvers: ClassVar[tuple[str, ...]] = Quantize.resolvers
    calibrated: ClassVar[bool] = True

    settings: Quantize
    context: Context
    results: list[PassResult] = field(default_factory=list)
    widths: dict[str, str] = field(default_factory=dict)

    @property
    def release(self) -> str:
        """That of the target."""
        return self.settings.release

    def run(self, model: Model, context: Context) -> PassResult:
        """Rewrites the model in place."""
        names = {place: item.outputs[0] for _, item, place in operators_of(model) if item.outputs}
        made = self.settings.run(model, self.context)
        self.results[:] = [made]
        for change in made.changes:
            tensor = names.get(change.where)
            if isinstance(change, OperatorChange) and tensor is not None:
                self.widths[tensor.name] = change.activations
        return made

    @property
    def recipe(self) -> list[str]:
        """What does the same without a search: words of a command line."""
        item = self.settings
        wide = [name for name, width in self.widths.items() if width == Computes.INT16.value and name]
        mixed = item.activations == MIXED
        words = ["--activations", Computes.INT8.value if mixed else item.activations]
        words += ["--effort", item.effort.value, "--target", item.target.value]
        words += [f"--exclude {shlex.quote(text)}" for text in item.exclude]
        words += [f"--map {shlex.quote(f'{exact(name)}=int16')}" for name in wide if mixed]
        return words


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried(JsonData):
    """What came of one kind of activations.

    Attributes:
        activations: ``float``, ``int8``, ``int16`` or ``mixed``.
        nbytes: Of its file; None where there is none.
        cost: What the objective counts, of the whole file: bytes, or seconds of a call, timed in turn with
            the other files.
        snr: Lowest SNR on held-out inputs, in dB.
        chosen: Whether it is the one.
        reason: Why not; empty for the chosen one.
        found: The file, where it keeps the budget.
        passes: What made integers before the encodings of the search.
        search: Among constants.
        curve: Every whole file of its kind that was measured.
        path: A copy of the file, for as long as the search is open.
    """

    activations: str
    nbytes: int | None = None
    cost: float | None = field(default=None, metadata=shown(made=finite()))
    snr: float | None = field(default=None, metadata=shown("snr_db", made=finite(3)))
    chosen: bool = False
    reason: str = ""
    found: Found = field(default=Found(), metadata=LEFT_OUT)
    passes: tuple[Pass, ...] = field(default=(), metadata=LEFT_OUT)
    search: Search | None = field(default=None, metadata=LEFT_OUT)
    curve: tuple[Measured, ...] = field(default=(), metadata=LEFT_OUT)
    path: Path | None = field(default=None, metadata=LEFT_OUT)

    @property
    def keeps(self) -> bool:
        """Whether its file keeps the budget."""
        return self.path is not None


@dataclass(slots=True)
class Rivals:
    """Makes files with integer activations.

    Args:
        opened: The search in floats.
        judge: Judges by the inputs that were held out.
        panel: Judges by the same, with all kernels that have to agree.
    """

    opened: Session
    judge: HoldoutJudge
    panel: FullPanel
    context: Context = field(init=False)
    steps: list[Step] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        opened = self.opened
        judging = replace(
            opened.wanted.judging,
            inputs=opened.split.everything,
            holdout=(),
            tolerance=opened.wanted.goal.tolerance,
        )
        activations = InputActivations(
            judging,
            in_hundredths(opened.progress),
            inside=opened.trials.inside is not None,
            time_is_up=opened.clock.is_past,
        )
        self.context = Context(activations=activations)

    def tried(self) -> list[Tried]:
        """Returns what came of each kind that was asked for, in the order of :data:`INTEGERS`.

        Raises:
            UnsupportedError, UsageError: The only kind that was asked for cannot be made.
        """
        goal = self.opened.wanted.goal
        wanted = [kind for kind in INTEGERS if goal.activations in (kind, ANY)]
        found: list[Tried] = []
        for kind in wanted:
            if any(item.keeps for item in found) and goal.bounds_error and found[0].keeps:
                told = f"not tried: {found[0].activations} keeps the budget with fewer bits"
                found.append(Tried(activations=kind, reason=told))
                continue
            if self.opened.clock.is_past():
                found.append(Tried(activations=kind, reason="not tried: no time was left"))
            else:
                try:
                    found.append(self._best(kind))
                except (UnsupportedError, UsageError) as error:
                    if len(wanted) == 1:
                        raise
                    found.append(Tried(activations=kind, reason=error.what))
            clock, files = self.opened.clock, self.opened.trials.files
            best, done = found[-1].found.promised, not clock.is_past()
            self.steps.append(Step.of(f"{kind} activations", clock, files, best, finished=done))
        return found

    def _best(self, kind: str) -> Tried:
        """Returns what came of one kind; mixed ones are told to keep more until held-out inputs agree."""
        goal = self.opened.wanted.goal
        old = goal.weights.min_runtime < NEWEST_RUNTIME
        item: Quantize | None = Quantize(
            activations=kind,
            effort=goal.weights.effort,
            exclude=self._excluded(),
            target=Target.OLD if old else Target.LITERT,
            bias_correction=goal.weights.bias_correction,
        )
        made = Tried(activations=kind)
        while item is not None:
            layer = Integers(item, self.context)
            made, short = self._made(kind, layer)
            done = made.keeps or self.opened.clock.is_past() or layer.results[-1].strictest
            item = item.stricter(short) if kind == MIXED and not done else None
        return made

    def _excluded(self) -> tuple[str, ...]:
        """Returns the operators that stay float since constants of theirs are to stay as they are."""
        goal = self.opened.wanted.goal
        selection = goal.weights.selection
        if not (selection.include or selection.exclude):
            return ()
        model = self.opened.trials.fresh()
        items, _ = find_candidates(model, Graph.of(model))
        kept = [
            item for item in items if not item.is_bias and selection.refuses(item, (0, 0), set()) is not None
        ]
        readers = [use.operator for item in kept for use in item.uses]
        names = (tensor.name for item in readers for tensor in item.outputs if tensor is not None)
        return tuple(dict.fromkeys(exact(name) for name in names if name))

    def _made(self, kind: str, layer: Integers) -> tuple[Tried, float]:
        """Makes a file; returns what came of it, and by how many dB it misses the budget."""
        goal = self.opened.wanted.goal
        with self.opened.behind((layer,), kind) as behind:
            if not layer.results[-1].modified:
                told = layer.results[-1].idle or "nothing can compute in integers"
                remedy = f"leave out --activations {goal.activations}"
                raise UnsupportedError(told, file=self.opened.wanted.frame.source, remedy=remedy)
            trials = behind.trials
            promised = trials.measure({})
            promised = replace(promised, nbytes=trials.finish(promised))
            proven = self.judge.evaluate(trials.path)
            try:
                search = behind.encodings()
            except TimeIsUp:
                # As it is, it may do all the same.
                search = replace(behind.unmeasured(), units=[])
            short = max(promised.missing(goal), proven.missing(goal))
            made = Tried(
                activations=kind,
                nbytes=promised.nbytes,
                snr=proven.snr,
                passes=(layer,),
                search=search,
                curve=(promised,),
            )
            if short > 0:
                return replace(made, reason=_missed(goal, promised, proven, self.judge.inputs)), short
            plain, refused = Found(promised, proven), ""
            finer = settle(search, trials, goal, self.judge) if search.units else plain
            made = replace(made, curve=(promised, *search.curve))
            self.opened.trials.files += trials.files
            for found in (finer, plain):
                if found.promised is None or found.proven is None:
                    continue
                nbytes = trials.finish(found.promised)
                if goal.max_nbytes is not None and nbytes > goal.max_nbytes:
                    refused = f"{nbytes:,} bytes are too many"
                    continue
                verdict = self.panel.compare(trials.path)
                if verdict.passed:
                    path = self.opened.folder / f"{kind}.tflite"
                    shutil.copyfile(trials.path, path)
                    lossy = (
                        trials.passes(found.promised.choice, found.promised.rounding)
                        if found.promised.choice
                        else ()
                    )
                    made = replace(made, nbytes=nbytes, snr=found.proven.snr, passes=(layer, *lossy))
                    return replace(made, found=found, path=path), short
                refused, short = "; ".join(verdict.reasons), max(1.0, verdict.short_db())
        return replace(made, reason=refused), short


def _missed(goal: Goal, promised: Measured, proven: Figures, inputs: str) -> str:
    """Says what a file keeps of a budget that it misses."""
    if not promised.runs or not proven.runs:
        return "; ".join((*promised.verdict.reasons, *proven.verdict.reasons))
    # Not only the ratio: a channel, a class or a row may be lost where the whole is kept.
    failed = [
        f"{output.label}: {output.reason}, {where}"
        for item, where in ((promised, "on the samples of the search"), (proven, f"on {inputs}"))
        for output in item.verdict.outputs
        if not output.passed
    ]
    if failed:
        return "; ".join(failed)
    told = [
        f"{'exact' if item.snr is None else f'{item.snr:.1f} dB'} {where}"
        for item, where in ((promised, "on the samples of the search"), (proven, f"on {inputs}"))
    ]
    chance = proven.snr is not None and proven.sure is not None and proven.snr - proven.sure >= 0.05
    less = f" less {proven.snr - proven.sure:.1f} that may be chance" if chance else ""  # type: ignore[operator]
    return f"{', '.join(told)}{less}: misses {goal.text()}"


def of_floats(opened: Session, search: Search | None, found: Found) -> Tried:
    """Returns what came of floats; without a search, the original."""
    curve = tuple(search.curve) if search is not None else ()
    if found.promised is None or found.proven is None:
        told = f"no file was found within the budget ({opened.wanted.goal.text()})"
        return Tried(activations=FLOATS, reason=told, search=search, curve=curve)
    made = Tried(
        activations=FLOATS,
        nbytes=found.promised.nbytes,
        snr=found.proven.snr,
        found=found,
        passes=tuple(opened.trials.passes(found.promised.choice, found.promised.rounding)),
        search=search,
        curve=curve,
    )
    if opened.wanted.goal.activations == FLOATS:
        return replace(made, chosen=True)
    path = opened.folder / f"{FLOATS}.tflite"
    nbytes = opened.trials.finish(found.promised)
    shutil.copyfile(opened.trials.path, path)
    return replace(made, nbytes=nbytes, path=path)


def chosen(opened: Session, tried: Sequence[Tried]) -> list[Tried]:
    """Weighs what keeps the budget; the best is marked, and the others have a reason why they are not it."""
    goal, keeping = opened.wanted.goal, [item for item in tried if item.path is not None]
    if not keeping:
        return list(tried)
    costs = _costs(opened, [item.path for item in keeping if item.path is not None])
    known = {item.activations: replace(item, cost=cost) for item, cost in zip(keeping, costs, strict=True)}

    def rank(item: Tried) -> tuple[float, ...]:
        assert item.cost is not None and item.nbytes is not None
        if not goal.bounds_error:
            snr = -math.inf if item.found.proven is None else snr_of(item.found.proven)
            return -snr, item.cost
        if goal.objective is Objective.LATENCY and item.cost <= min(costs) * (1 + _SAME_TIME):
            return 0.0, item.nbytes
        return item.cost, item.nbytes

    best = min(known.values(), key=rank)
    return [
        item
        if (weighed := known.get(item.activations)) is None
        else replace(weighed, chosen=True)
        if weighed is best
        else replace(weighed, reason=_lost(opened, weighed, best))
        for item in tried
    ]


def _lost(opened: Session, item: Tried, best: Tried) -> str:
    if not opened.wanted.goal.bounds_error:
        kept = ["exact" if each.snr is None else f"{each.snr:.1f} dB" for each in (item, best)]
        return f"{kept[0]} on {opened.split.judges}, {kept[1]} with {best.activations}"
    told = [_told(opened.wanted.goal, each) for each in (item, best)]
    return f"{told[0]}, {told[1]} with {best.activations}"


def _told(goal: Goal, item: Tried) -> str:
    assert item.cost is not None
    if goal.objective is Objective.LATENCY:
        return f"{1e3 * item.cost:.3f} ms a call and {item.nbytes:,} bytes"
    what = {Objective.DOWNLOAD: " compressed", Objective.RAM: " of memory"}.get(goal.objective, "")
    return f"{item.cost:,.0f} bytes{what}"


def _costs(opened: Session, paths: Sequence[Path]) -> list[float]:
    """Returns what the objective counts of whole files."""
    objective = opened.wanted.goal.objective
    if objective is Objective.LATENCY:
        watch = Stopwatch(opened.trials, opened.folder, opened.wanted.judging.runtime[0])
        return watch.seconds(paths)
    if objective is Objective.RAM:
        return [float(ram_nbytes(Source.open(path).model())) for path in paths]
    if objective is Objective.DOWNLOAD:
        return [float(packed_nbytes(path, opened.wanted.goal.codec)) for path in paths]
    return [float(path.stat().st_size) for path in paths]


@contextlib.contextmanager
def rivals(opened: Session, judge: HoldoutJudge) -> Iterator[Rivals]:
    """Opens what makes files with integer activations."""
    judging = replace(
        opened.far,
        inputs=(),
        holdout=opened.far.inputs,
        tolerance=opened.wanted.goal.tolerance,
        implied=Quantize.resolvers,
        agreeing=not opened.wanted.goal.bounds_error,
    )
    if opened.wanted.goal.weights.min_runtime < NEWEST_RUNTIME:
        judging = judging.on_old_runtime
    with FullPanel(opened.wanted.frame.source, judging) as panel:
        yield Rivals(opened, judge, panel)


def why_not(opened: Session) -> str:
    """Returns why integers cannot be tried; empty where they can."""
    if not opened.wanted.judging.inputs:
        return "the ranges of made inputs mean nothing"
    return opened.split.reason
