"""What a rewrite is told, what it did, and the error that holds the same."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import field, replace
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from tfl_rewrite.editing.base import Pass, PassResult, expanded
from tfl_rewrite.errors import UnsupportedError, VerificationError
from tfl_rewrite.judge.settings import Judging
from tfl_rewrite.kernels.runtimes import unmeasured
from tfl_rewrite.model.ir import Model
from tfl_rewrite.options.frozen import frozen
from tfl_rewrite.options.json_data import LEFT_OUT, JsonData, computed, finite, shown, spread

# Verification is loaded when something is verified: it takes longer to import than a small file to rewrite.
if TYPE_CHECKING:
    from tfl_rewrite.files.source import Source
    from tfl_rewrite.judge.layers import Blame
    from tfl_rewrite.judge.verdict import Verdict


Judge = Callable[["Source", "Source", Judging], "Verdict"]
"""Says what a file is worth: the source, the file that was made, how to verify."""
Place = tuple[int, int]
"""A constant: the number of the pass that changes it, and the position of its buffer."""


@frozen(kw_only=True)
class Plan:
    """All that a rewrite is told before anything is opened.

    Attributes:
        source: The file to read, or one that was opened already.
        target: The file to make; None for a model in memory.
        passes: In order, those that consist of others in parts.
        settings: How to verify.
        force: Whether the target may exist.
        dry_run: Do everything but the publishing.
        ready: Called with the report just before the file gets its name; what it raises keeps that from
            happening.
        judge: Called with the source, the file that was made, and how to verify, where no plain comparison of
            both tells whether it is right.
    """

    source: str | os.PathLike[str]
    target: str | os.PathLike[str] | None
    passes: tuple[Pass, ...]
    settings: Judging
    force: bool = False
    dry_run: bool = False
    ready: Callable[[Report], None] = lambda _report: None
    judge: Judge | None = None

    def __post_init__(self) -> None:
        """Takes passes apart that consist of others."""
        object.__setattr__(self, "passes", tuple(expanded(self.passes)))


@frozen
class Culprit(JsonData):
    """One constant, rewritten alone.

    Attributes:
        snr: The lowest SNR over the outputs in dB; None if the model did not run or had none.
        short: By how many dB it alone misses the tolerance; 0 if it does not.
    """

    tensor: str
    place: Place = field(metadata=LEFT_OUT)
    snr: float | None = field(metadata=shown("snr_db", made=finite()))
    short: float = field(default=0.0, metadata=shown("short_db", made=finite()))

    @property
    def severity(self) -> tuple[float, float]:
        """For sorting: lower is worse."""
        return -self.short, -math.inf if self.snr is None else self.snr


def _expanded(value: tuple[float | None, int] | None) -> tuple[float | None, int] | None:
    return None if value is None else (finite()(value[0]), value[1])


@frozen
class Damage(JsonData):
    """What was found in the time given.

    Attributes:
        culprits: Worst first.
        unmeasured: How many constants there was no time for.
        spare: Names that, left as they are, let the rest pass; empty if no such set was found.
        nbytes: Size of the file then.
        snr: Its lowest SNR.
        expanded: Lowest SNR, and size, with every constant behind a DEQUANTIZE instead of in a hybrid kernel,
            if that passes.
    """

    culprits: tuple[Culprit, ...]
    unmeasured: int
    spare: tuple[str, ...] = ()
    nbytes: int = 0
    snr: float | None = field(default=None, metadata=shown("snr_db", made=finite()))
    expanded: tuple[float | None, int] | None = field(default=None, metadata=shown(made=_expanded))

    def remedy(self, item: Pass) -> str:
        """Returns what the user can do, as measured.

        Args:
            item: The pass that did it.
        """
        if self.expanded is not None:
            ratio = "" if self.expanded[0] is None else f", {self.expanded[0]:.1f} dB"
            return (
                f"use {item.expanding} ({self.expanded[1]} bytes{ratio}; then only weights are rounded, "
                "not activations); or accept the loss (--min-snr)"
            )
        if not self.spare:
            return (
                f"see which tensors did it; exclude them ({item.excluding}), or accept the loss (--min-snr)"
            )
        ratio = f", {self.snr:.1f} dB" if self.snr is not None else ""
        return (
            f"keep the {len(self.spare)} worst tensor(s) as they are ({item.excluding}, see below): "
            f"{self.nbytes} bytes{ratio}; or accept the loss (--min-snr)"
        )


@frozen
class Finer(JsonData):
    """A constant that is stored finer than was asked for, so that the file passes.

    Attributes:
        form: What it is stored as.
        added: Bytes that it takes more.
        snr: Lowest SNR of the outputs with it alone stored as asked; None where that was not measured.
    """

    tensor: str
    form: str
    added: int
    snr: float | None = field(default=None, metadata=shown("snr_db", made=finite()))


@frozen(kw_only=True)
class Report(JsonData):
    """What a rewrite did.

    Attributes:
        outcome: ``rewritten``; ``unchanged`` (a verbatim copy); ``failed`` (nothing was published).
        verdict: Of the interpreter, or the worst of several (``verdict.verdicts`` has all); None where
            nothing was run.
        unverified: Why nothing could be run, or None.
        damage: After a failure, which constants did it.
        finer: Constants that are stored finer than was asked for, so that the outputs pass.
        refused: What was said of the file without that.
        blame: Where the error enters and grows; None where that was not asked for, or nothing was run.
        deflated: Size before and after as a store or a server compresses the file (zlib, level 9); only where
            a pass is about that.
        model: What was made, where it was not written to a file; else None.
        estimated: Whether those are estimated from pieces of the file.

    Example:
        >>> from tfl_rewrite.passes import Compact, QuantizeWeights
        >>> report = tfl_rewrite.rewrite("model.tflite", "report.tflite", [QuantizeWeights()])
        >>> report.verdict.status, report.results[0].name
        ('pass', 'quantize-weights')
        >>> tfl_rewrite.rewrite("model.tflite", passes=[Compact()]).model
        <Model: 1 subgraphs, 19 tensors, 7 operators, 97,440 bytes of constants>
    """

    schema: ClassVar[int] = 1
    source: str
    target: str
    outcome: str
    dry_run: bool = False
    nbytes_before: int
    nbytes_after: int
    results: tuple[PassResult, ...] = field(default=(), metadata=shown("passes"))
    verdict: Verdict | None = None
    unverified: str | None = None
    damage: Damage | None = None
    finer: tuple[Finer, ...] = ()
    refused: Verdict | None = None
    blame: Blame | None = None
    deflated: tuple[int, int] | None = field(
        default=None, metadata=shown(merged=True, made=spread("deflated_before", "deflated_after"))
    )
    estimated: bool = field(default=False, metadata=shown("deflated_is_estimated"))
    notes: tuple[str, ...] = ()
    model: Model | None = field(default=None, metadata=LEFT_OUT)

    def __repr__(self) -> str:
        judged = "not run" if self.verdict is None else repr(self.verdict)
        return f"<Report: {self.outcome}, {self.nbytes_before:,} -> {self.nbytes_after:,} bytes, {judged}>"

    @property
    @computed(after="verdict")
    def verdicts(self) -> tuple[Verdict, ...]:
        """Of all judges; empty where nothing was run."""
        return self.verdict.each if self.verdict is not None else ()


class RewriteFailed(VerificationError):
    """Verification refused the result; ``report`` has all figures.

    Example:
        >>> from tfl_rewrite.passes import QuantizeWeights
        >>> strict = tfl_rewrite.Judging(tolerance=tfl_rewrite.Tolerance(exact=True), rescue=False)
        >>> try:
        ...     passes = [QuantizeWeights()]
        ...     tfl_rewrite.rewrite("model.tflite", "exact.tflite", passes, judging=strict)
        ... except tfl_rewrite.RewriteFailed as error:
        ...     print(error.report.outcome, error.report.verdict.status)
        failed fail
    """

    def __init__(self, what: str, report: Report, remedy: str | None = None) -> None:
        super().__init__(what, file=report.source, remedy=remedy)
        self.report = report


def with_newer(verdict: Verdict) -> Verdict:
    """Returns a verdict with notes on judges that are newer than what is known of runtimes."""
    judges = [one.judge for one in verdict.each if one.judge is not None]
    found = dict.fromkeys(unmeasured(judge.runtime, judge.version) for judge in judges)
    told = [note for note in found if note and note not in verdict.notes]
    return replace(verdict, notes=(*told, *verdict.notes)) if told else verdict


R = TypeVar("R", bound=JsonData)


def unverified(
    report: R, reason: str, judging: Judging, failed: Callable[[str, R, str], VerificationError]
) -> R:
    """Returns a report that says why nothing could be compared.

    Args:
        report: A dataclass with ``unverified`` and ``outcome``.
        reason: Why.
        judging: How it was to be verified.
        failed: Makes the error that holds the report: what, the report, the remedy.

    Raises:
        VerificationError: Mode is ``require``.
    """
    told: Any = report
    told = replace(told, unverified=reason)
    if judging.mode == "require":
        what = f"could not be verified, nothing was written: {reason}"
        error = failed(what, replace(told, outcome="failed"), "use --verify auto to write it")
        # Nothing differs; the file is one that cannot be judged here.
        error.exit_code = UnsupportedError.exit_code
        raise error
    made: R = told
    return made
