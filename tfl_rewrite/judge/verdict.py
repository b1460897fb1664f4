"""The verdict on a file and on each of its outputs: as data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from typing import TYPE_CHECKING

from tfl_rewrite.interpreter.interface import printable
from tfl_rewrite.options.frozen import frozen
from tfl_rewrite.options.json_data import LEFT_OUT, JsonData, computed

if TYPE_CHECKING:
    from tfl_rewrite.judge.tally import OutputTally

_STUDENT = (math.nan, 1.84, 1.32, 1.20, 1.14, 1.11, 1.09, 1.08, 1.07, 1.06, 1.05, 1.05, 1.04, 1.0)
"""84.13 % quantiles of Student's distribution for so many samples, less one."""


@frozen(kw_only=True)
class JudgeInfo:
    """Which interpreter ran both files.

    Attributes:
        runtime: Name of its distribution, such as ``ai-edge-litert``.
        resolver: Which of its kernels computed, in words.
        python: Version of the Python that holds it.
        kernels: The resolver as an option names it: ``default``, ``builtin`` or ``reference``.
        asked: The runtime as it was asked for, such as ``python:/opt/vendor/bin/python``.
        sandbox: What kept the process from the rest of the machine: ``landlock``, ``seccomp``, ``no network``
            (or ``no TCP``), as far as the kernel offers it; limits are always there.
    """

    runtime: str
    version: str
    resolver: str
    threads: int
    python: str = ""
    kernels: str = "default"
    asked: str = ""
    sandbox: tuple[str, ...] = ()

    def __str__(self) -> str:
        plural = "" if self.threads == 1 else "s"
        return f"{self.runtime} {self.version}, {self.resolver}, {self.threads} thread{plural}"

    @property
    def enclosure(self) -> str:
        """In what it ran."""
        return f"in a sandbox ({', '.join(self.sandbox)})" if self.sandbox else "without a sandbox"


@frozen(kw_only=True)
class ChannelComparison:
    """The channel of an output that keeps least of its variation: the mean over samples and positions is off.

    Attributes:
        axis: The axis of the output that counts the channels.
        number: Of the channel, from 0.
        snr_db: Variation of the original over that of the error.
        dead: The rewritten file's channel does not vary any more.
        reason: Why it is refused, or None.
        short_db: By how much it misses the tolerance.
    """

    axis: int
    number: int
    snr_db: float
    dead: bool = False
    reason: str | None = None
    short_db: float = 0.0


_HIDDEN_DB = 1.5 * math.sqrt(8)
"""Of one sample. Measured on 14 models: what eight samples keep is off by 1.5 dB, one way or the other."""


@frozen(kw_only=True)
class OutputComparison(JsonData):
    """One output of one entry point over all samples.

    Attributes:
        signature: Key of its signature; None for the primary subgraph.
        unit: ``steps`` of the quantization or ``values``: what errors are counted in.
        rule: What it is judged by, or the first rule that it breaks: ``exact``, ``snr``, ``equal share``,
            ``largest error``, ``classes``, ``channel``, ``finite``, ``empty``, ``interface`` or ``none``.
        snr_db: Infinite without any error; None where nothing finite was compared.
        equal_share: Share of equal elements of what is not judged by distance.
        argmax_agreement: Share of rows of the last axis with the same largest element.
        channel: The one that keeps least of its variation; None where none counts.
        silence: Why the output says nothing about the rewrite (NaN, constant, saturated ...); None where it
            does.
        untold: What of its channels the samples show too little of, such as that one is dead; None where they
            tell enough.
        short_db: By how much it misses the tolerance, in dB; 0 where it passes.
        nonfinite_mismatches: Elements that are NaN or infinite on one side only.
        reference_peak: Largest absolute value of the original.
        energies: Sums of squares of the original and of the error, for each sample.
        tally: All sums.
    """

    signature: str | None
    name: str
    position: int
    dtype: str
    unit: str
    samples: int
    elements: int
    rule: str
    passed: bool
    reason: str | None
    bit_exact: bool
    max_abs_error: float | None
    rmse: float | None
    snr_db: float | None
    cosine: float | None
    equal_share: float | None
    argmax_agreement: float | None
    nonfinite_mismatches: int
    reference_peak: float | None
    channel: ChannelComparison | None = None
    silence: str | None = None
    untold: str | None = None
    short_db: float = 0.0
    notes: tuple[str, ...] = ()
    energies: tuple[tuple[float, float], ...] = field(default=(), metadata=LEFT_OUT)
    tally: OutputTally | None = field(default=None, compare=False, repr=False, metadata=LEFT_OUT)

    @property
    def doubt_db(self) -> float:
        """By how many dB the ratio of as many other samples may well be lower.

        One standard error of the ratio of two sums over samples (Cochran, Sampling Techniques, 1977, section
        6.4), here noise over signal; more where so few samples tell little about that error itself (as much
        as Student's distribution has in five of six cases). At most 3 dB for many samples and 4.5 dB for two.
        One alone says nothing of others: 3 dB.
        """
        count = len(self.energies)
        signal = math.fsum(each for each, _ in self.energies)
        noise = math.fsum(each for _, each in self.energies)
        if not noise or not 0 < signal < math.inf:
            return 0.0
        if count < 2:
            return 10 * math.log10(2)
        # Shares, so that squares of large numbers do not overflow.
        off = math.fsum((mine / noise - whole / signal) ** 2 for whole, mine in self.energies)
        error = math.sqrt(count / (count - 1) * off) * _STUDENT[min(count, len(_STUDENT)) - 1]
        return 10 * math.log10(1 + error) if math.isfinite(error) else math.inf

    @property
    def unsure_db(self) -> float:
        """The same, of samples that nothing was fitted to; no less than what so many are known to hide.

        Two that happen to agree say nothing of a third.
        """
        return max(self.doubt_db, _HIDDEN_DB / math.sqrt(max(1, self.samples)))

    @property
    def label(self) -> str:
        """``signature/name``, safe to print."""
        name = printable(self.name) or f"output {self.position}"
        return name if self.signature is None else f"{printable(self.signature)}/{name}"


Key = tuple[str | None, int]
"""Signature (None for the primary subgraph) and position of an output."""

# The worst first: one judge that saw a failure is enough, and one that could not judge is no pass.
STATUSES = ("fail", "unverified", "pass")


@frozen(kw_only=True)
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


@frozen(kw_only=True)
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
            ``nothing``: there is no output that says anything. ``unreached``: no sample shows that
            constants changed. ``unlike``: outputs differ on samples that the file was not made for.
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
        cost: Processor time of a call of the rewritten file, as a multiple of the original's, measured as
            both ran; None where that is within noise.
        verdicts: Of several judges, all of them in their order; this one is then the worst of them. Empty
            for one judge.

    Example:
        >>> verdict = tfl_rewrite.verify("model.tflite", "new.tflite")
        >>> verdict.headline
        'PASS (made samples)'
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
    cost: float | None = None
    judge: JudgeInfo | None = None
    entries: tuple[EntryVerdict, ...] = ()
    outputs: tuple[OutputComparison, ...] = ()
    verdicts: tuple[Verdict, ...] = field(default=(), metadata=LEFT_OUT)

    def __repr__(self) -> str:
        return f"<Verdict: {self.headline}, {len(self.outputs)} outputs{self._worst_output()}>"

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
        return (*lost, *silent, *self.unseen, *untold)

    def of_unfitted(self) -> Verdict:
        """The same, as one on samples that were kept apart from those that the file was fitted to."""
        return replace(self, unfitted=True, verdicts=tuple(one.of_unfitted() for one in self.verdicts))

    def of_unlike(self, why: str) -> Verdict:
        """The same, as one on samples of a kind (``why``) that the file was not made for."""
        entries = tuple(
            replace(
                item,
                status="unverified",
                cause="unlike",
                reasons=tuple(f"{why}: {one}" for one in item.reasons),
            )
            if item.cause == "outputs" and self.cause == "outputs" and self._is_of_degree(item)
            else item
            for item in self.entries
        )
        made = self if entries == self.entries else with_entries(self, entries)
        verdicts = tuple(one.of_unlike(why) for one in self.verdicts)
        worst = min((made, *verdicts), key=lambda one: STATUSES.index(one.status))
        told = {name: getattr(worst, name) for name in ("status", "cause", "reasons")}
        return replace(made, verdicts=verdicts, **told)

    def _is_of_degree(self, entry: EntryVerdict) -> bool:
        """Whether outputs of an entry point differ too much, and no worse: NaN is no matter of degree."""
        failed = [one for one in self.outputs if one.signature == entry.signature and not one.passed]
        return all(math.isfinite(one.short_db) for one in failed)

    def worst_snr(self) -> float | None:
        """Least SNR over the outputs that have one, in dB."""
        ratios = [output.snr_db for output in self.outputs if output.snr_db is not None]
        return min(ratios, default=None)

    def _worst_output(self) -> str:
        """The output that misses the tolerance most, or else has the least SNR, behind a comma."""
        found = [output for output in self.outputs if output.snr_db is not None]
        if not found:
            return ""
        worst = min(found, key=lambda output: (output.passed, -output.short_db, output.snr_db))
        return f", worst {worst.label} with SNR {worst.snr_db:.1f} dB"

    def short_db(self) -> float:
        """By how much the output that is furthest off misses the tolerance, in dB; 0 where all pass.

        Infinite where nothing was measured, or it is no matter of degree.
        """
        found = (output.short_db for output in self.outputs)
        return max(found, default=0.0) if self.measured else math.inf


_LOST = {"unreached": "no sample shows what changed in it, and it cannot be judged by itself"}
# Its outputs were compared; which of them say nothing is told output by output.
_JUDGED = ("nothing", "kernels", "unrepeatable", "unlike")


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
        says = f"no output says anything ({told})" if outputs else "it has no outputs"
        found["nothing"] = [f"{what}{says}"]
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


def with_entries(verdict: Verdict, entries: Sequence[EntryVerdict]) -> Verdict:
    """Returns a verdict that says of its entry points something else, with what that comes to."""
    status, cause, reasons = weighed(entries)
    if STATUSES.index(verdict.status) < STATUSES.index(weighed(verdict.entries)[0]):
        # Worse than its entry points were: for what none of them tells, such as kernels that disagree.
        more = reasons if status == "fail" else ()
        status, cause, reasons = verdict.status, verdict.cause, (*verdict.reasons, *more)
    return replace(verdict, status=status, cause=cause, reasons=reasons, entries=tuple(entries))


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
