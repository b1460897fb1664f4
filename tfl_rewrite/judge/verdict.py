"""The verdict as data, as JSON and as lines of text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from tfl_rewrite.judge.report import JudgeInfo, OutputComparison
from tfl_rewrite.options.json_data import LEFT_OUT, JsonData, computed

Key = tuple[str | None, int]
"""Signature (None for the primary subgraph) and position of an output."""

# The worst first: one judge that saw a failure is enough, and one that could not judge is no pass.
STATUSES = ("fail", "unverified", "pass")


@dataclass(frozen=True, slots=True, kw_only=True)
class EntryVerdict:
    """What is said of one way to call a model.

    Attributes:
        signature: Its key; None for the primary subgraph.
        label: As a report names it.
        status: As of a `Verdict`.
        reasons: Why it is not a pass; empty otherwise.
        cause: The kind of the first reason, as of a `Verdict`.
    """

    signature: str | None
    label: str
    status: str
    reasons: tuple[str, ...] = ()
    cause: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict(JsonData):
    """What running both files showed.

    Attributes:
        status: ``pass``, ``fail``, or ``unverified`` when the original itself cannot be run or compared. Of
            several entry points the worst counts.
        reasons: Why it is not a pass; empty otherwise.
        cause: The kind of the first reason, or empty. Of the original (``unverified``) or of the rewritten
            file (``fail``): ``error`` (the runtime refused it), ``crash``, ``timeout``, ``memory``, ``disk``
            (outputs or temporary files took too much of it), or ``unrepeatable`` outputs. ``interface``,
            ``outputs``: they differ. ``kernels``: the original differs as much from itself between kernels.
            ``nothing``: there is no output that says anything. ``unreached``: constants that changed were
            not read on any sample.
        judge: The interpreter; None when none came to run.
        sample_source: ``real``, ``made``, or ``mixed`` when files cover only some signatures.
        sample_count: Calls that were compared, over all entry points.
        unfitted: Whether these were kept apart from others that the rewritten file was fitted to.
        outputs: In order of entry points and outputs.
        entries: What is said of each entry point.
        assumed: What the verdict rests on that nobody said, such as ``made samples``.
        unseen: What was not judged beside the entry points and outputs that say nothing, each a phrase.
        notes: What a reader should know besides.
        repeated: How many calls both files were asked a second time, in another process, for the same
            outputs; 0 where that was not asked for, or not possible.
        verdicts: Of several judges, all of them in their order; this one is then the worst of them. Empty
            for one judge.
    """

    status: str
    reasons: tuple[str, ...] = ()
    sample_source: str = "made"
    sample_count: int = 0
    unfitted: bool = False
    assumed: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    cause: str = ""
    repeated: int = 0
    judge: JudgeInfo | None = None
    entries: tuple[EntryVerdict, ...] = ()
    outputs: tuple[OutputComparison, ...] = ()
    verdicts: tuple[Verdict, ...] = field(default=(), metadata=LEFT_OUT)

    @property
    def each(self) -> tuple[Verdict, ...]:
        """The verdicts of all judges: one or more."""
        return self.verdicts or (self,)

    @property
    def passed(self) -> bool:
        """Whether both ran and every output is within the tolerance."""
        return self.status == "pass"

    @property
    def measured(self) -> bool:
        """Whether outputs of both files were compared, so that the figures mean something."""
        if self.cause in ("", "outputs", "nothing"):
            return True
        return self.status == "unverified" and any(entry.status != "unverified" for entry in self.entries)

    @property
    @computed(after="repeated")
    def headline(self) -> str:
        """The status with what it rests on, such as ``PASS (made samples)``."""
        return self.status.upper() + (f" ({', '.join(self.assumed)})" if self.assumed else "")

    @property
    @computed(after="headline")
    def not_judged(self) -> tuple[str, ...]:
        """What the verdict does not speak of, and why, each a phrase."""
        lost = [
            f"{entry.label} ({_LOST.get(entry.cause, 'the original does not run')})"
            for entry in self.entries
            if entry.status == "unverified" and entry.cause not in _JUDGED
        ]
        silent = [f"{item.label} ({item.silence})" for item in self.outputs if item.silence is not None]
        untold = [f"{item.label} ({item.untold})" for item in self.outputs if item.untold is not None]
        if not self.measured and not lost:
            return ("everything",)
        return (*lost, *silent, *untold, *self.unseen)

    def of_unfitted(self) -> Verdict:
        """The same, as one on samples that were kept apart from those that the file was fitted to."""
        return replace(self, unfitted=True, verdicts=tuple(one.of_unfitted() for one in self.verdicts))

    def worst_snr(self) -> float | None:
        """Least SNR over the outputs that have one, in dB."""
        ratios = [output.snr_db for output in self.outputs if output.snr_db is not None]
        return min(ratios, default=None)

    def short_db(self) -> float:
        """By how much the output that is furthest off misses the tolerance, in dB; 0 where all pass.

        Infinite where nothing was measured, or it is no matter of degree.
        """
        found = (output.short_db for output in self.outputs)
        return max(found, default=0.0) if self.measured else math.inf

    def summary_lines(self) -> list[str]:
        """For people: the status, the outputs, the notes; with several judges, those of each."""
        if len(self.verdicts) < 2:
            return self._own_lines()
        counts = [(status, sum(one.status == status for one in self.verdicts)) for status in STATUSES]
        told = ", ".join(f"{count} {status}" for status, count in counts if count)
        lines = [f"{self.headline}: the worst of {len(self.verdicts)} judges ({told})"]
        for verdict in self.verdicts:
            lines += [f"  {line}" for line in verdict._own_lines()]
        shown = {note for verdict in self.verdicts for note in verdict.notes}
        lines += self._entry_lines()
        return lines + [f"  note: {note}" for note in self.notes if note not in shown]

    def _entry_lines(self) -> list[str]:
        """What is said of each entry point, where that is not the same for all."""
        if len({entry.status for entry in self.entries}) < 2:
            return []
        return ["  " + "; ".join(f"{entry.label} {entry.status.upper()}" for entry in self.entries)]

    def _own_lines(self) -> list[str]:
        head = self.headline
        if self.reasons:
            head += f": {'; '.join(self.reasons)}"
        lines = [head]
        lines += self._entry_lines()
        if self.judge is not None:
            plural = "" if self.sample_count == 1 else "s"
            apart = " that nothing was fitted to" if self.unfitted else ""
            lines.append(
                f"  judged by {self.judge}, {self.judge.enclosure}, on {self.sample_count}"
                f" {self.sample_source} sample{plural}{apart} in {self.seconds:.1f} s"
            )
        lines += [f"  {output.summary()}" for output in self.outputs]
        lines.append(f"  not judged: {'; '.join(self.not_judged) or 'nothing'}")
        lines += [f"  note: {note}" for note in dict.fromkeys(self.notes)]
        return lines


_LOST = {"unreached": "no sample entered it, and it cannot be judged by itself"}
# Its outputs were compared; which of them say nothing is told output by output.
_JUDGED = ("nothing", "kernels", "unrepeatable")


def entry_verdict(
    signature: str | None,
    label: str,
    outputs: Sequence[OutputComparison],
    excuses: Mapping[Key, tuple[str, str]] | None = None,
) -> EntryVerdict:
    """What the outputs of one entry point come to: one that is refused fails it, and some must say something.

    Args:
        signature: Its key.
        label: As a report names it.
        outputs: All of them.
        excuses: Outputs whose differences prove nothing, by signature and position, with the cause and what
            to say.
    """
    found: dict[str, list[str]] = {}
    for output in outputs:
        if not output.passed:
            cause, said = (excuses or {}).get((output.signature, output.position), ("outputs", ""))
            text = f"{output.label}: {output.reason}"
            found.setdefault(cause, []).append(f"{said}: {text}" if said else text)
    if not found and all(output.silence is not None for output in outputs):
        what = "" if signature is None else f"{label}: "
        told = "; ".join(f"{output.label}: {output.silence}" for output in outputs)
        found["nothing"] = [
            f"{what}no output says anything ({told})" if outputs else f"{what}it has no outputs"
        ]
    cause = "outputs" if "outputs" in found else next(iter(found), "")
    return EntryVerdict(
        signature=signature,
        label=label,
        status="fail" if cause == "outputs" else "unverified" if cause else "pass",
        reasons=tuple(found.get(cause, ())),
        cause=cause,
    )


def weighed(entries: Sequence[EntryVerdict]) -> tuple[str, str, tuple[str, ...]]:
    """Status, cause and reasons of a verdict over these entry points: those of the worst."""
    status = min((entry.status for entry in entries), key=STATUSES.index, default="unverified")
    found = [entry for entry in entries if entry.status == status]
    reasons = tuple(dict.fromkeys(reason for entry in found for reason in entry.reasons))
    return status, next((entry.cause for entry in found), ""), reasons


def combined(verdicts: Sequence[Verdict], notes: Sequence[str] = ()) -> Verdict:
    """The worst of several verdicts, with all of them in it; the only one as it is.

    ``fail`` is worse than ``unverified``, which is worse than ``pass``; among equals the first counts.
    """
    worst = min(verdicts, key=lambda verdict: STATUSES.index(verdict.status))
    if len(verdicts) == 1:
        return replace(worst, notes=(*worst.notes, *notes))
    who = f"{worst.judge.runtime} {worst.judge.version}, {worst.judge.resolver}: " if worst.judge else ""
    return replace(
        worst,
        reasons=tuple(f"{who}{reason}" for reason in worst.reasons),
        assumed=tuple(dict.fromkeys(text for verdict in verdicts for text in verdict.assumed)),
        unseen=tuple(dict.fromkeys(text for verdict in verdicts for text in verdict.unseen)),
        notes=(*worst.notes, *notes),
        seconds=sum(verdict.seconds for verdict in verdicts),
        verdicts=tuple(verdicts),
    )
