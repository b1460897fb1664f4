"""The verdict as data, as JSON and as lines of text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from .interface import printable

_STUDENT = (math.nan, 1.84, 1.32, 1.20, 1.14, 1.11, 1.09, 1.08, 1.07, 1.06, 1.05, 1.05, 1.04, 1.0)
"""84.13 % quantiles of Student's distribution for so many samples, less one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeInfo:
    """Which interpreter ran both files.

    Attributes:
        runtime: Name of its distribution, such as ``ai-edge-litert``.
        resolver: Which of its kernels computed, in words.
        python: Version of the Python that holds it.
        kernels: The resolver as an option names it: ``default``, ``builtin`` or ``reference``.
        asked: The runtime as it was asked for, such as ``python:/opt/vendor/bin/python``.
    """

    runtime: str
    version: str
    resolver: str
    threads: int
    python: str = ""
    kernels: str = "default"
    asked: str = ""

    def __str__(self) -> str:
        plural = "" if self.threads == 1 else "s"
        return f"{self.runtime} {self.version}, {self.resolver}, {self.threads} thread{plural}"


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputComparison:
    """One output of one entry point over all samples.

    Attributes:
        signature: Key of its signature; None for the primary subgraph.
        unit: ``steps`` of the quantization or ``values``: what errors are counted in.
        rule: Which rule decided: ``exact``, ``snr``, ``near zero``, ``equal share``, ``finite``, ``empty``,
            ``interface`` or ``none``.
        snr_db: Infinite without any error; None where nothing finite was compared.
        equal_share: Share of equal elements of what is not judged by distance.
        argmax_agreement: Share of rows with the same largest element, for outputs that look like scores.
        nonfinite_mismatches: Elements that are NaN or infinite on one side only.
        reference_peak: Largest absolute value of the original.
        energies: Sums of squares of the original and of the error, for each sample; not part of the JSON.
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
    notes: tuple[str, ...] = ()
    energies: tuple[tuple[float, float], ...] = ()

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
    def label(self) -> str:
        """``signature/name``, safe to print."""
        name = printable(self.name) or f"output {self.position}"
        return name if self.signature is None else f"{printable(self.signature)}/{name}"

    def summary(self) -> str:
        """One line."""
        parts = []
        if self.bit_exact:
            parts.append("bit-exact")
        else:
            if self.snr_db is not None:
                parts.append(f"SNR {self.snr_db:.1f} dB")
            if self.max_abs_error is not None:
                steps = " steps" if self.unit == "steps" else ""
                parts.append(f"max error {self.max_abs_error:.4g}{steps}")
            if self.equal_share is not None:
                parts.append(f"{self.equal_share:.2%} equal")
            if self.argmax_agreement is not None:
                parts.append(f"argmax {self.argmax_agreement:.1%}")
        text = f"{self.label}: {', '.join(parts) or 'not comparable'}"
        if self.reason:
            text += f"; FAILED: {self.reason}"
        return text + "".join(f"; {note}" for note in self.notes)


# The worst first: one judge that saw a failure is enough, and one that could not judge is no pass.
STATUSES = ("fail", "unverified", "pass")


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What running both files showed.

    Attributes:
        status: ``pass``, ``fail``, or ``unverified`` when the original itself cannot be run or compared.
        reasons: Why it is not a pass; empty otherwise.
        cause: The kind of the first reason, or empty. Of the original (``unverified``) or of the rewritten
            file (``fail``): ``error`` (the runtime refused it), ``crash``, ``timeout``, ``memory``, or
            ``unrepeatable`` outputs. ``interface``, ``outputs``: they differ. ``kernels``: the original
            differs as much from itself between kernels. ``nothing``: there is no output to compare.
        judge: The interpreter; None when none came to run.
        sample_source: ``real``, ``made``, or ``mixed`` when files cover only some signatures.
        sample_count: Calls that were compared, over all entry points.
        outputs: In order of entry points and outputs.
        notes: What a reader should know besides.
        repeated: How many calls both files were asked a second time, in another process, for the same
            outputs; 0 where that was not asked for, or not possible.
        verdicts: Of several judges, all of them in their order; this one is then the worst of them. Empty
            for one judge.
    """

    status: str
    reasons: tuple[str, ...] = ()
    judge: JudgeInfo | None = None
    sample_source: str = "made"
    sample_count: int = 0
    outputs: tuple[OutputComparison, ...] = ()
    notes: tuple[str, ...] = field(default=())
    seconds: float = 0.0
    cause: str = ""
    repeated: int = 0
    verdicts: tuple[Verdict, ...] = ()

    @property
    def each(self) -> tuple[Verdict, ...]:
        """The verdicts of all judges: one or more."""
        return self.verdicts or (self,)

    @property
    def passed(self) -> bool:
        """Whether both ran and every output is within the tolerance."""
        return self.status == "pass"

    def worst_snr(self) -> float | None:
        """Least SNR over the outputs that have one, in dB."""
        ratios = [output.snr_db for output in self.outputs if output.snr_db is not None]
        return min(ratios, default=None)

    def to_dict(self) -> dict[str, Any]:
        """For JSON, without `verdicts`: what JSON cannot say (infinite, NaN) becomes a string as ``inf``."""
        # Not of itself: that would walk through all others as well.
        result: dict[str, Any] = plain(asdict(replace(self, verdicts=())))
        del result["verdicts"]
        for output in result["outputs"]:
            del output["energies"]
        return result

    def summary_lines(self) -> list[str]:
        """For people: the status, the outputs, the notes; with several judges, those of each."""
        if len(self.verdicts) < 2:
            return self._own_lines()
        counts = [(status, sum(one.status == status for one in self.verdicts)) for status in STATUSES]
        told = ", ".join(f"{count} {status}" for status, count in counts if count)
        lines = [f"{self.status.upper()}: the worst of {len(self.verdicts)} judges ({told})"]
        for verdict in self.verdicts:
            lines += [f"  {line}" for line in verdict._own_lines()]
        shown = {note for verdict in self.verdicts for note in verdict.notes}
        return lines + [f"  note: {note}" for note in self.notes if note not in shown]

    def _own_lines(self) -> list[str]:
        head = f"{self.status.upper()}"
        if self.reasons:
            head += f": {'; '.join(self.reasons)}"
        lines = [head]
        if self.judge is not None:
            plural = "" if self.sample_count == 1 else "s"
            lines.append(
                f"  judged by {self.judge} on {self.sample_count} {self.sample_source} sample{plural}"
                f" in {self.seconds:.1f} s"
            )
        lines += [f"  {output.summary()}" for output in self.outputs]
        lines += [f"  note: {note}" for note in self.notes]
        return lines


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
        notes=(*worst.notes, *notes),
        seconds=sum(verdict.seconds for verdict in verdicts),
        verdicts=tuple(verdicts),
    )


def plain(value: Any) -> Any:
    """As JSON can say it: infinite and NaN as text, tuples as lists."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value
