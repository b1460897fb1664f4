"""What a search came to: its figures, and the recipe of what was chosen."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from tfl_rewrite.calibration.holdout import Split
from tfl_rewrite.errors import VerificationError
from tfl_rewrite.files.source import Source
from tfl_rewrite.judge.verdict import Verdict
from tfl_rewrite.model.graph import Graph
from tfl_rewrite.options.json_data import LEFT_OUT, JsonData, computed, finite, shown
from tfl_rewrite.options.patterns import MOST_CHARACTERS, exact
from tfl_rewrite.passes.simplify import Simplify
from tfl_rewrite.pipeline.report import Plan, Report
from tfl_rewrite.search.goals import FLOATS, Goal, Objective
from tfl_rewrite.search.holdout_judge import figure
from tfl_rewrite.search.integers import Integers, Tried
from tfl_rewrite.search.search import snr_of
from tfl_rewrite.search.session import Session
from tfl_rewrite.search.settle import caveats, names_note
from tfl_rewrite.search.standing import Step, metric_of_original
from tfl_rewrite.search.trials import Measured, packed_nbytes
from tfl_rewrite.search.units import Unit, encodings_of
from tfl_rewrite.weights.candidates import LEAST_ELEMENTS
from tfl_rewrite.weights.codes import Code
from tfl_rewrite.weights.encoding import VERSION, Encoding, unmatched_notes


@dataclass(frozen=True, slots=True, kw_only=True)
class ShrinkReport(JsonData):
    """What a search came to.

    Attributes:
        goal: The budget.
        report: Of the rewrite; None if nothing was found or published.
        promised: The file on the inputs of the search, each half measured with weights rounded for the
            other; None if no file keeps the bounds.
        proven: The published file on inputs that were held out.
        proven_snr: Lowest SNR of it there in dB, before a last SOFTMAX and the like as well.
        proven_sure: The same less what may be chance.
        proven_metric: The user's own figure there, if there is one; that of the search is in ``promised``.
        original_metric: That of the original against itself, on the inputs of the search; where no file
            keeps the budget the lower one, of those and of what judges.
        compressed_before: Size of the original as ``goal.codec`` compresses it, where downloads are to be
            small; that of the file is in ``promised``.
        curve: Every whole file that was measured; see :attr:`pareto`.
        units: The constants and their options.
        split: Which inputs were used for what.
        files: How many files were run.
        steps: How far the search got, and what the best file was at each step.
        overrun: Seconds that it took beyond its time limit.
        tried: What came of each kind of activations, where integers were allowed.
    """

    schema: ClassVar[int] = 1
    source: str
    target: str
    nbytes_before: int
    goal: Goal
    promised: Measured | None
    proven: Verdict | None
    proven_snr: float | None = field(metadata=shown("proven_snr_db", made=finite(3)))
    proven_sure: float | None = field(metadata=shown("proven_sure_snr_db", made=finite(3)))
    proven_metric: float | None = None
    original_metric: float | None = None
    compressed_before: int | None = None
    split: Split = field(
        metadata=shown(merged=True, made=lambda split: {"held_out": split.held_out, "inputs": split.text})
    )
    files: int
    overrun: float = field(default=0.0, metadata=shown("overrun_seconds", made=finite(1)))
    steps: tuple[Step, ...] = ()
    curve: tuple[Measured, ...] = field(metadata=LEFT_OUT)
    units: tuple[Unit, ...] = field(metadata=LEFT_OUT)
    notes: tuple[str, ...] = ()
    tried: tuple[Tried, ...] = field(default=(), metadata=shown("activations", optional=True))
    report: Report | None = field(metadata=shown("rewrite"))

    @property
    def missed(self) -> str:
        """That no file keeps the budget, and what hindered those with integers: it may be something else."""
        if self._is_beyond:
            least, found = self.goal.min_metric, figure(self.original_metric)
            return f"the original itself has {found} by metric {self.goal.metric}, not {least:g} or more"
        why = [f"; {item.activations}: {item.reason}" for item in self.tried if item.activations != FLOATS]
        return f"no file was found within the budget ({self.goal.text()}){''.join(why)}"

    @property
    def remedy(self) -> str:
        """What may help where no file keeps the budget."""
        if self._is_beyond:
            return "lower --min-metric, or mend the metric: larger is to be better"
        ways = ["give more time with --time-limit"] if self.ended_in is not None else []
        if any(item.choice or item.activations for item in self.pareto):
            ways.append("choose a point of the table")
        return ", ".join([*ways, "or another budget"]) if ways else "choose another budget"

    @property
    def _is_beyond(self) -> bool:
        """Whether not even the original keeps the bound on the user's own figure."""
        found, least = self.original_metric, self.goal.min_metric
        return found is not None and least is not None and not found >= least

    @property
    @computed("expected_snr_db", made=finite(3), after="goal")
    def expected_snr(self) -> float | None:
        """What other inputs of the kind are likely to show, in dB.

        The lower of what the search measured and of what held-out inputs showed, each less what chance among
        so few samples may have added; before a last SOFTMAX and the like as well. None where no output says
        anything: encodings were chosen by size alone then.
        """
        if self.promised is None or self.proven is None:
            return None
        found = [item for item in (self.promised.sure, self.proven_sure) if item is not None]
        return None if self.proven.cause == "nothing" else min(found, default=None)

    @property
    @computed("promised_snr_db", made=finite(3), after="goal")
    def promised_snr(self) -> float | None:
        """What other inputs of the kind are to keep, in dB: what was asked for, if that is less.

        Infinite where nothing differs.
        """
        if self.expected_snr is None or self.expected_snr == math.inf or self.goal.min_snr is None:
            return self.expected_snr
        return min(self.expected_snr, self.goal.min_snr)

    @property
    @computed(after="overrun")
    def ended_in(self) -> str | None:
        """The step that the time limit ended; None if it ended none."""
        return next((step.step for step in self.steps if not step.finished), None)

    @property
    @computed(after="files")
    def pareto(self) -> list[Measured]:
        """The files than which none is both smaller and better, smallest first."""
        return self._front(self.curve)

    @property
    def table(self) -> list[Measured]:
        """The same with the file that was chosen: on inputs held out a smaller one may keep less."""
        if self.promised is None:
            return self.pareto
        others = [item for item in self.curve if not self.is_chosen(item)]
        best = [item for item in self._front([*others, self.promised]) if item is not self.promised]
        return sorted([*best, self.promised], key=self._size)

    def _front(self, items: Sequence[Measured]) -> list[Measured]:
        best: list[Measured] = []
        # Files on the way to a download that were not laid out have the size of others.
        known = [item for item in items if item.deflated or not self.is_download]
        for item in sorted(known, key=lambda item: (self._size(item), -snr_of(item))):
            if not best or snr_of(item) > snr_of(best[-1]):
                best.append(item)
        return best

    @property
    def is_download(self) -> bool:
        """Whether compressed bytes are what was to be small."""
        return self.goal.objective is Objective.DOWNLOAD

    def _size(self, item: Measured) -> int:
        return item.deflated if self.is_download else item.nbytes

    def is_chosen(self, item: Measured) -> bool:
        """Whether a file that was measured is the one."""
        found = self.promised
        return found is not None and _way(item) == _way(found)

    @property
    @computed(after="files")
    def constants(self) -> list[dict[str, Any]]:
        """The constants, each with the encoding that was chosen."""
        return [
            {
                "tensor": unit.name,
                "buffer": unit.position,
                "readers": unit.readers,
                "nbytes": unit.nbytes,
                "encoding": self.stored(unit) or "kept",
            }
            for unit in self.units
        ]

    @property
    def encodings(self) -> dict[int, Encoding]:
        """How constants are stored, by the position of the buffer; what is not there stays as it is."""
        return encodings_of(self.promised.choice) if self.promised is not None else {}

    def stored(self, unit: Unit) -> str:
        """Returns how a constant is stored; empty for one that stays as it is."""
        form = None if self.promised is None else self.promised.choice.get(unit.position)
        if isinstance(form, Encoding | Code):
            return form.text
        return "" if form is None else "float, of few values"

    def recipe(self) -> str:
        """Returns the assignment as a recipe for ``quantize-weights --map``, in TOML.

        Constants without a name, or with that of another, cannot be told apart there: they are left out.
        """
        return self._quantized() + recipe_text(self.units, self.encodings)

    def _quantized(self) -> str:
        """Returns what is to be done before constants are stored otherwise, as a comment."""
        layers = [item for tried in self.tried if tried.chosen for item in tried.passes]
        words = [word for item in layers if isinstance(item, Integers) for word in item.recipe]
        results = () if self.report is None else self.report.results
        lines = []
        if any(result.name == Simplify.name and result.modified for result in results):
            lines += [f"tfl-rewrite {Simplify.name} IN OUT", "comes first: constants are others then."]
        if words:
            lines += ["tfl-rewrite quantize IN OUT --inputs PATH", *words, "comes next: it makes integers."]
        return "".join(f"# {line}\n" for line in lines) + "\n" * bool(lines)


def report_of(
    plan: Plan,
    opened: Session,
    best: Tried,
    tried: Sequence[Tried],
    steps: Sequence[Step],
    refused: Sequence[str],
) -> ShrinkReport:
    """Returns what the search came to, before anything is published.

    Args:
        plan: The files.
        opened: The search.
        best: What is to be published.
        tried: What came of each kind of activations.
        steps: What was done, in order.
        refused: What is to be said of files that were to be published before it.
    """
    goal, source, found = opened.wanted.goal, Source.of(opened.wanted.frame.source), best.found
    curve = [made for item in tried for made in item.curve]
    own = [note for item in tried if item.search is not None for note in item.search.notes]
    model = source.model()
    unmatched = unmatched_notes(goal.weights.selection, model, Graph.of(model))
    is_download = goal.objective is Objective.DOWNLOAD
    kept = found.promised is not None and not (found.promised.choice or found.promised.activations)
    is_done = all(step.finished for step in steps)
    doubts = caveats(goal, found, best.curve, is_done=is_done, held_out=opened.split.held_out)
    # What the inputs of the search hold; the verdict tells it of those that judge.
    given = opened.trials.measure({}).verdict.notes
    if kept and goal.bounds_error and best.search is not None and best.search.units:
        text = f"nothing smaller was found that keeps {goal.text()}: the original, but for what loses nothing"
        own.append(text)
    if goal.state is not None and not Path(goal.state).exists():
        own.append(f"{os.fspath(goal.state)} was not written: no constant was measured alone, in floats")
    # What was given and asked for comes first.
    notes = [*given, *unmatched, *refused, *doubts, *own, *found.notes]
    notes += names_note(model, goal, found.promised)
    return ShrinkReport(
        goal=goal,
        source=source.path,
        target="" if plan.target is None else os.fspath(plan.target),
        nbytes_before=source.nbytes,
        compressed_before=packed_nbytes(Path(source.path), goal.codec) if is_download else None,
        report=None,
        promised=found.promised,
        proven=found.proven.verdict if found.proven is not None else None,
        proven_snr=found.proven.snr if found.proven is not None else None,
        proven_sure=found.proven.sure if found.proven is not None else None,
        proven_metric=found.proven.metric if found.proven is not None else None,
        original_metric=metric_of_original(opened.trials, opened.judge, found),
        curve=tuple(curve),
        units=() if best.search is None else tuple(best.search.units),
        split=opened.split,
        files=opened.trials.files,
        overrun=opened.clock.overrun,
        steps=tuple(steps),
        tried=() if goal.activations == FLOATS else tuple(tried),
        notes=tuple(dict.fromkeys(notes)),
    )


def _way(item: Measured) -> tuple[object, ...]:
    """How a file was made."""
    return item.activations, item.rounding, dict(item.choice)


class ShrinkFailed(VerificationError):
    """No file keeps the budget: none is as small as it asks for, or not even the original keeps it.

    ``report`` has the trade-offs that were found.

    Example:
        >>> from tfl_rewrite.search.report import ShrinkFailed
        >>> goal = tfl_rewrite.Goal(min_snr=30, max_nbytes=1000, effort="fast")
        >>> try:
        ...     report = tfl_rewrite.shrink("model.tflite", "tiny.tflite", goal)
        ... except ShrinkFailed as error:
        ...     report = error.report
    """

    def __init__(self, what: str, report: ShrinkReport, remedy: str | None = None) -> None:
        super().__init__(what, file=report.source, remedy=remedy)
        self.report = report


def recipe_text(units: Sequence[Unit], choice: Mapping[int, Encoding]) -> str:
    """Returns a recipe: a rule for each constant that is stored otherwise, and one that keeps the rest."""
    counts = Counter(unit.name for unit in units)
    lines = [
        "# tfl-rewrite quantize-weights IN OUT --map FILE.toml "
        f"--min-elements {LEAST_ELEMENTS} applies this without a search.",
        "# Rounding looks at --inputs, and shrink lays the file out anew (compact): bytes may differ.",
        f"version = {VERSION}",
        "",
    ]
    for unit in units:
        encoding = choice.get(unit.position)
        if encoding is None:
            continue
        if not unit.name or counts[unit.name] > 1 or not _is_text(unit.name):
            named = json.dumps(unit.name[:200])
            lines.append(f"# left out, for a rule cannot say its name: {named} as {encoding}")
            continue
        lines += [
            "[[rule]]",
            f"# {', '.join(unit.readers)}: {unit.nbytes:,} bytes",
            f"match = {_quoted(exact(unit.name))}",
            f'encoding = "{encoding}"',
            "",
        ]
    lines += ["[[rule]]", 'match = ""', 'encoding = "float32"', ""]
    return "\n".join(lines)


def _is_text(name: str) -> bool:
    """Whether a name can stand in a file of text, and in a pattern."""
    broken = any(0xD800 <= ord(char) <= 0xDFFF for char in name)
    return not broken and len(exact(name)) <= MOST_CHARACTERS


def _quoted(text: str) -> str:
    """Returns a basic string of TOML, whose escapes are those of JSON but for DEL."""
    return json.dumps(text).replace("\x7f", "\\u007f")
