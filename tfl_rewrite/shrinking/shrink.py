"""The smallest file within a budget: search, prove it on inputs that the search never saw, publish."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from tfl_rewrite.errors import UsageError, VerificationError
from tfl_rewrite.landing import check_target
from tfl_rewrite.model.ir import Model
from tfl_rewrite.passes.base import Pass, PassResult
from tfl_rewrite.passes.quantize_weights import QuantizeWeights
from tfl_rewrite.quant.encoding import Effort
from tfl_rewrite.rewriting import Report, Verification, rewrite
from tfl_rewrite.shrinking.goals import Goal, Objective
from tfl_rewrite.shrinking.holdout import Split, split
from tfl_rewrite.shrinking.metric import MetricProcess
from tfl_rewrite.shrinking.search import Clock, Progress, Search, State
from tfl_rewrite.shrinking.timing import Stopwatch
from tfl_rewrite.shrinking.trials import Measured, Trials
from tfl_rewrite.shrinking.units import ENCODINGS, Choice, Unit, assigned, base_pass, find_units
from tfl_rewrite.storage import load
from tfl_rewrite.verification import Judge, Verdict
from tfl_rewrite.verification.cleanup import Scratch

TIGHTENINGS = 3
"""How often the search is told to leave more room when held-out inputs show more noise than its own did."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """The weight pass with an encoding for each buffer, by position."""

    name: ClassVar[str] = QuantizeWeights.name
    lossy: ClassVar[bool] = True
    grows: ClassVar[bool] = False

    base: QuantizeWeights
    choice: Choice

    def run(self, model: Model) -> PassResult:
        """Rewrites the model in place."""
        return assigned(self.base, self.choice, model).run(model)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShrinkReport:
    """What a search came to.

    Attributes:
        goal: The budget.
        report: Of the rewrite; None if nothing was found or published.
        promised: The file on the inputs of the search; None if none keeps the bounds.
        proven: The same file on inputs that were held out.
        curve: Every whole file that was measured; see :meth:`pareto`.
        units: The constants and their options.
        split: Which inputs were used for what.
        files: How many files were run.
    """

    goal: Goal
    source: str
    target: str
    nbytes_before: int
    report: Report | None
    promised: Measured | None
    proven: Verdict | None
    curve: tuple[Measured, ...]
    units: tuple[Unit, ...]
    split: Split
    files: int
    notes: tuple[str, ...] = ()

    def pareto(self) -> list[Measured]:
        """Returns the files than which none is both smaller and better, smallest first."""
        best: list[Measured] = []
        for item in sorted(self.curve, key=lambda item: (item.nbytes, -_snr(item))):
            if not best or _snr(item) > _snr(best[-1]):
                best.append(item)
        return best

    def to_dict(self) -> dict[str, Any]:
        """Returns it as JSON data."""
        return {
            "schema": 1,
            "source": self.source,
            "target": self.target,
            "nbytes_before": self.nbytes_before,
            "goal": {
                "min_snr": self.goal.min_snr,
                "max_error": self.goal.max_error,
                "min_agreement": self.goal.min_agreement,
                "min_metric": self.goal.min_metric,
                "max_nbytes": self.goal.max_nbytes,
                "objective": self.goal.objective.value,
            },
            "promised": _row(self.promised) if self.promised is not None else None,
            "proven": self.proven.to_dict() if self.proven is not None else None,
            "held_out": self.split.held_out,
            "inputs": self.split.text,
            "files": self.files,
            "pareto": [_row(item) for item in self.pareto()],
            "constants": [
                {
                    "tensor": unit.name,
                    "buffer": unit.position,
                    "readers": list(unit.readers),
                    "nbytes": unit.nbytes,
                    "encoding": self._encoding(unit),
                }
                for unit in self.units
            ],
            "notes": list(self.notes),
            "rewrite": self.report.to_dict() if self.report is not None else None,
        }

    def _encoding(self, unit: Unit) -> str:
        chosen = self.promised.choice.get(unit.position) if self.promised is not None else None
        return chosen.text if chosen is not None else "kept"

    def recipe(self) -> str:
        """Returns the assignment as a recipe for ``quantize-weights --map``, in TOML.

        Constants without a name, or with that of another, cannot be told apart there: they are left out.
        """
        from tfl_rewrite.shrinking.recipes import recipe_text

        return recipe_text(self.units, self.promised.choice if self.promised is not None else {})


class ShrinkFailed(VerificationError):
    """No file keeps the budget; ``report`` has the trade-offs that were found."""

    def __init__(self, what: str, report: ShrinkReport, remedy: str | None = None) -> None:
        super().__init__(what, file=report.source, remedy=remedy)
        self.report = report


def shrink(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    goal: Goal,
    *,
    settings: QuantizeWeights,
    before: Sequence[Pass],
    after: Sequence[Pass],
    verification: Verification | None = None,
    holdout: Sequence[str | os.PathLike[str]] = (),
    metric: str | None = None,
    encodings: Sequence[str] = ENCODINGS,
    time_limit: float | None = None,
    state: str | os.PathLike[str] | None = None,
    force: bool = False,
    dry_run: bool = False,
    threads: int = 0,
    progress: Progress | None = None,
) -> ShrinkReport:
    """Finds the smallest file that keeps a budget, and publishes it; see :func:`tfl_rewrite.shrink`.

    Args:
        source: The file to read.
        target: The file to make.
        goal: The budget.
        settings: Which constants, how much effort, and the oldest runtime; its encodings are not used.
        before: Passes that lose nothing, run first.
        after: The same, run last.
        verification: What to measure with; its tolerance is not used.
        holdout: Inputs that only the end result is judged with; without any, a part of the others.
        metric: ``module:function`` for ``goal.min_metric``.
        encodings: What is tried for each constant.
        time_limit: Seconds after which the search ends with the best that it has.
        state: A file that measurements are kept in, so that a search can be continued.
        force: Whether the target may exist.
        dry_run: Do everything but the publishing.
        threads: For rounding and writing.
        progress: Called with what is going on, and how many of how many steps are done.

    Raises:
        ShrinkFailed: No file keeps the bounds.
        UnsupportedError: The original cannot be run, so nothing can be measured.
        UsageError: The target cannot be written, or an input does not fit.
    """
    check_target(target, force=force)
    if str(source) == str(target) and not force:
        raise UsageError("is both input and output", file=source, remedy="use --force to replace it")
    if (goal.min_metric is None) != (metric is None):
        raise UsageError("a metric and its bound go together", remedy="give both --metric and --min-metric")
    checked = verification or Verification()
    if checked.mode == "off":
        raise UsageError("a search has to run the files", remedy="leave out --verify off")
    talk = progress or (lambda _what, _done, _total: None)
    with Scratch() as scratch:
        parted = _split(source, checked, holdout, scratch)
        near = replace(checked, inputs=parted.search)
        far = replace(checked, inputs=parted.judge, seed=checked.seed if parted.search else checked.seed + 1)
        base = _equipped(base_pass(settings), replace(checked, inputs=parted.calibrate), talk)
        measure = MetricProcess(metric, source, near, scratch.folder()) if metric is not None else None
        far_metric = MetricProcess(metric, source, far, scratch.folder()) if metric is not None else None
        with near.judge(source, exact=False) as judge, far.judge(source, exact=False) as jury:
            trials = Trials(
                source,
                before=before,
                base=base,
                after=after,
                judge=judge,
                folder=scratch.folder(),
                goal=goal,
                metric=measure,
            )
            found = find_units(trials.fresh, base, encodings, goal.objective)
            key = _key(source, near, base, encodings)
            search = Search(
                trials,
                found,
                state=State(Path(state) if state is not None else None, key),
                clock=Clock(time_limit),
                progress=talk,
            )
            search.measure()
            if goal.objective is Objective.LATENCY:
                Stopwatch(trials, scratch.folder()).price(search.units, talk)
            promised, proven = _settled(search, trials, goal, jury, far_metric)
            made = ShrinkReport(
                goal=goal,
                source=os.fspath(source),
                target=os.fspath(target),
                nbytes_before=Path(source).stat().st_size,
                report=None,
                promised=promised,
                proven=proven,
                curve=tuple(search.curve),
                units=tuple(found),
                split=parted,
                files=trials.files,
                notes=tuple(search.notes),
            )
        if promised is None or proven is None:
            raise ShrinkFailed(
                f"no file was found that keeps {goal.text()}",
                made,
                "choose a point of the table, or another budget",
            )
        passes: list[Pass] = [*before, Chosen(base, promised.choice), *after]
        final = replace(far, tolerance=goal.tolerance)
        report = rewrite(
            source, target, passes, verification=final, force=force, dry_run=dry_run, threads=threads
        )
    return replace(made, report=report)


def _settled(
    search: Search, trials: Trials, goal: Goal, jury: Judge, metric: Callable[[Path], float] | None
) -> tuple[Measured | None, Verdict | None]:
    """Searches until the file holds on the inputs that were held out, too."""
    margin = 0.0
    for _ in range(TIGHTENINGS + 1):
        if goal.bounds_error:
            found = search.find(goal, margin=margin)
        else:
            found = search.largest_within(goal)
        if found is None:
            break
        if not search.curve_traced:
            search.trace(found.snr)
        if goal.max_nbytes is not None and found.nbytes > goal.max_nbytes:
            break
        again = trials.measure(found.choice)
        assert again.nbytes == found.nbytes
        verdict = jury.compare(trials.path, tolerance=goal.tolerance)
        figure = metric(trials.path) if metric is not None else None
        missing = goal.shortfall(verdict, figure) if goal.bounds_error else -1.0
        import os as _os

        if _os.environ.get("DBG"):
            print("DBG", found.nbytes, found.snr, verdict.worst_snr(), missing, margin, flush=True)
        if missing <= 0:
            return found, verdict
        if not math.isfinite(missing) or (goal.min_snr is None and goal.max_error is None):
            break
        margin += missing + 0.1
    return None, None


def _split(
    source: str | os.PathLike[str],
    verification: Verification,
    holdout: Sequence[str | os.PathLike[str]],
    scratch: Scratch,
) -> Split:
    if not verification.inputs:
        return Split((), (), (), "made inputs; other ones held out", True)
    model = load(source)
    in_order = any(tensor.is_variable for graph in model.subgraphs for tensor in graph.tensors) or any(
        code.name == "VAR_HANDLE" for code in model.operator_codes
    )
    return split(verification.inputs, holdout, scratch.folder(), in_order=in_order)


def _equipped(base: QuantizeWeights, verification: Verification, progress: Progress) -> QuantizeWeights:
    """Gives the pass a rounder that looks at the inputs; one for all trials, so that nothing is done twice."""
    from tfl_rewrite.calibration.rounder import PAINS, Calibrated, Settings

    if not verification.inputs or base.effort is Effort.FAST:
        return base
    calibration = Settings(
        inputs=verification.inputs,
        runtime=verification.runtime,
        timeout=verification.timeout,
        pains=PAINS[base.effort],
        correct_bias=base.correct_bias,
    )
    return replace(base, rounder=Calibrated(calibration, progress))


def _key(
    source: str | os.PathLike[str],
    verification: Verification,
    base: QuantizeWeights,
    encodings: Sequence[str],
) -> str:
    """Returns what measurements belong to: the file, the inputs and the settings."""
    digest = hashlib.sha256()
    for path in (source, *verification.inputs):
        for file in sorted(Path(path).rglob("*")) if Path(path).is_dir() else [Path(path)]:
            with open(file, "rb") as opened:
                digest.update(
                    hashlib.file_digest(opened, "sha256").digest()
                    if hasattr(hashlib, "file_digest")
                    else opened.read()
                )
    words = (verification.samples, verification.seed, verification.runtime, base.effort, base.min_runtime)
    digest.update(repr((*words, base.correct_bias, tuple(encodings))).encode())
    return digest.hexdigest()


def _snr(item: Measured) -> float:
    return math.inf if item.snr is None else item.snr


def _row(item: Measured) -> dict[str, Any]:
    snr = _snr(item)
    return {
        "nbytes": item.nbytes,
        "deflated": item.deflated or None,
        "cost": item.cost,
        "snr_db": round(snr, 3) if math.isfinite(snr) else None,
        "metric": item.metric,
        "encodings": {str(position): encoding.text for position, encoding in sorted(item.choice.items())},
    }
