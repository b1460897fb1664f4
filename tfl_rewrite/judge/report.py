"""What is said of one output: as data, as JSON and as a line of text."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tfl_rewrite.interpreter.interface import printable
from tfl_rewrite.options.json_data import LEFT_OUT, JsonData

if TYPE_CHECKING:
    from tfl_rewrite.judge.tally import OutputTally

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


@dataclass(frozen=True, slots=True, kw_only=True)
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


@dataclass(frozen=True, slots=True, kw_only=True)
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
            if self.channel is not None:
                parts.append(f"lowest channel {self.channel.number}: {self.channel.snr_db:.1f} dB")
        text = f"{self.label}: {', '.join(parts) or 'not comparable'}"
        if not self.passed:
            text += "; FAILED"
        if self.silence:
            text += f"; says nothing: {self.silence}"
        return text + "".join(f"; {note}" for note in self.notes)
