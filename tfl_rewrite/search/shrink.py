"""The smallest file within a budget: search, prove it on inputs that the search never saw, publish."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tfl_rewrite.calibration.holdout import Split
from tfl_rewrite.editing.base import Pass
from tfl_rewrite.errors import UsageError, VerificationError, check_number
from tfl_rewrite.files.claims import OUTPUT, Claim, check_claims
from tfl_rewrite.files.store import load
from tfl_rewrite.judge.verdict import Verdict
from tfl_rewrite.model.graph import Graph
from tfl_rewrite.passes.quantize_weights import QuantizeWeights
from tfl_rewrite.pipeline.rewrite import Report, check_present, claims_of, rewrite
from tfl_rewrite.pipeline.verification import Verification
from tfl_rewrite.search.downloads import rounded_instead
from tfl_rewrite.search.goals import Goal
from tfl_rewrite.search.holdout_judge import Jury
from tfl_rewrite.search.order import TRIES, in_order
from tfl_rewrite.search.search import snr_of
from tfl_rewrite.search.sensitivity import Progress
from tfl_rewrite.search.session import Wanted, session
from tfl_rewrite.search.settle import Chosen, doubts, settle
from tfl_rewrite.search.trials import Measured
from tfl_rewrite.search.units import ENCODINGS, Unit
from tfl_rewrite.weights.recipe import unmatched_notes


@dataclass(frozen=True, slots=True, kw_only=True)
class ShrinkReport:
    """What a search came to.

    Attributes:
        goal: The budget.
        report: Of the rewrite; None if nothing was found or published.
        promised: The file on the inputs of the search, each half measured with weights rounded for the
            other; None if no file keeps the bounds.
        proven: The published file on inputs that were held out.
        proven_snr: Lowest SNR of it there in dB, before a last SOFTMAX and the like as well.
        proven_sure: The same less what may be chance.
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
    proven_snr: float | None
    proven_sure: float | None
    curve: tuple[Measured, ...]
    units: tuple[Unit, ...]
    split: Split
    files: int
    notes: tuple[str, ...] = ()

    @property
    def expected_snr(self) -> float | None:
        """What other inputs of the kind are likely to show, in dB.

        The lower of what the search measured and of what held-out inputs showed, each less what chance among
        so few samples may have added; before a last SOFTMAX and the like as well.
        """
        if self.promised is None or self.proven is None:
            return None
        found = [item for item in (self.promised.sure, self.proven_sure) if item is not None]
        return min(found, default=None)

    @property
    def promised_snr(self) -> float | None:
        """What other inputs of the kind are to keep, in dB: what was asked for, if that is less.

        Infinite where nothing differs.
        """
        if self.expected_snr is None or self.expected_snr == math.inf or self.goal.min_snr is None:
            return self.expected_snr
        return min(self.expected_snr, self.goal.min_snr)

    def pareto(self) -> list[Measured]:
        """Returns the files than which none is both smaller and better, smallest first."""
        best: list[Measured] = []
        for item in sorted(self.curve, key=lambda item: (item.nbytes, -snr_of(item))):
            if not best or snr_of(item) > snr_of(best[-1]):
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
            "promised_snr_db": _finite(self.promised_snr),
            "expected_snr_db": _finite(self.expected_snr),
            "promised": _row(self.promised) if self.promised is not None else None,
            "proven": self.proven.to_dict() if self.proven is not None else None,
            "proven_snr_db": _finite(self.proven_snr),
            "proven_sure_snr_db": _finite(self.proven_sure),
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
        from tfl_rewrite.search.recipes import recipe_text

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
    ready: Callable[[ShrinkReport], None] | None = None,
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
        state: A file that measurements are kept in, so that a search can be continued. It is read and
            written.
        force: Whether the target may exist, and ``state`` hold the measurements of another search.
        dry_run: Do everything but the publishing.
        threads: For rounding and writing.
        progress: Called with what is going on, and how many of how many steps are done.
        ready: Called with the report just before the file gets its name; what it raises keeps that from
            happening.

    Raises:
        ShrinkFailed: No file keeps the bounds.
        UnsupportedError: The original cannot be run, so nothing can be measured.
        UsageError: The target cannot be written, or an input does not fit.
    """
    checked = verification or Verification()
    if time_limit is not None:
        check_number("time_limit", time_limit)
    reads = [*claims_of(source, checked), *(Claim("holdout", os.fspath(path)) for path in holdout)]
    writes = [Claim(OUTPUT, os.fspath(target))]
    if state is not None:
        writes.append(Claim("state", os.fspath(state), mine=True))
    check_claims(reads, writes, force=force)
    check_present(*checked.inputs, *checked.holdout, *holdout)
    if (goal.min_metric is None) != (metric is None):
        raise UsageError("a metric and its bound go together", remedy="give both --metric and --min-metric")
    if checked.mode == "off":
        raise UsageError("a search has to run the files", remedy="leave out --verify off")
    talk = progress or (lambda _what, _done, _total: None)
    wanted = Wanted(
        goal=goal,
        settings=settings,
        before=before,
        after=after,
        verification=checked,
        holdout=holdout,
        metric=metric,
        encodings=encodings,
        time_limit=time_limit,
        state=state,
        force=force,
    )
    with session(source, wanted, talk) as opened:
        with Jury(source, opened.trials, opened.far, goal, opened.far_figure) as jury:
            settled = settle(opened.search, opened.trials, goal, jury)
            settled = in_order(opened.search, opened.trials, goal, jury, settled, TRIES[settings.effort])
            settled = rounded_instead(source, wanted, opened, settled, jury, talk)
        made = ShrinkReport(
            goal=goal,
            source=os.fspath(source),
            target=os.fspath(target),
            nbytes_before=Path(source).stat().st_size,
            report=None,
            promised=settled.promised,
            proven=settled.proven.verdict if settled.proven is not None else None,
            proven_snr=settled.proven.snr if settled.proven is not None else None,
            proven_sure=settled.proven.sure if settled.proven is not None else None,
            curve=tuple(opened.search.curve),
            units=tuple(opened.search.units),
            split=opened.parted,
            files=opened.trials.files,
            notes=(
                *_unmatched(source, settings),
                *opened.search.notes,
                *settled.notes,
                *doubts(goal, settled, opened.search.curve),
            ),
        )
        if settled.promised is None or settled.proven is None:
            raise ShrinkFailed(
                f"no file was found that keeps {goal.text()}, nothing was written",
                made,
                "choose a point of the table, or another budget",
            )
        weights = opened.trials.final(ordered=settled.promised.ordered)
        lossy = settled.rounding or Chosen(weights, settled.promised.choice)
        # Nothing is fitted any more: these judge only.
        last = replace(opened.far, inputs=(), holdout=opened.far.inputs, tolerance=goal.tolerance)
        report = rewrite(
            source,
            target,
            [*before, lossy, *after],
            verification=last,
            force=force,
            dry_run=dry_run,
            threads=threads,
            ready=None if ready is None else lambda report: ready(replace(made, report=report)),
        )
    return replace(made, report=report)


def _finite(snr: float | None) -> float | None:
    return round(snr, 3) if snr is not None and math.isfinite(snr) else None


def _row(item: Measured) -> dict[str, Any]:
    return {
        "nbytes": item.nbytes,
        "deflated": item.deflated or None,
        "cost": item.cost,
        "snr_db": _finite(item.snr),
        "hidden_snr_db": _finite(item.hidden),
        "sure_snr_db": _finite(item.sure),
        "in_order": item.ordered,
        "metric": item.metric,
        "encodings": {str(position): encoding.text for position, encoding in sorted(item.choice.items())},
    }


def _unmatched(source: str | os.PathLike[str], settings: QuantizeWeights) -> list[str]:
    model = load(source)
    return unmatched_notes(settings.selection, model, Graph.of(model))
