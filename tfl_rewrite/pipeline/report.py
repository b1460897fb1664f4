"""What a rewrite did, and the error that holds the same."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from tfl_rewrite.editing.base import PassResult
from tfl_rewrite.errors import VerificationError
from tfl_rewrite.options.json_data import JsonData, computed, shown, spread

# Verification is loaded when something is verified: it takes longer to import than a small file to rewrite.
if TYPE_CHECKING:
    from tfl_rewrite.judge.layers import Blame
    from tfl_rewrite.judge.verdict import Verdict
    from tfl_rewrite.pipeline.damage import Damage, Finer


@dataclass(frozen=True, slots=True, kw_only=True)
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
        estimated: Whether those are estimated from pieces of the file.

    Example:
        >>> report = tfl_rewrite.rewrite("model.tflite", "report.tflite", [tfl_rewrite.QuantizeWeights()])
        >>> report.verdict.status, report.results[0].name
        ('pass', 'quantize-weights')
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

    @property
    @computed(after="verdict")
    def verdicts(self) -> tuple[Verdict, ...]:
        """Of all judges; empty where nothing was run."""
        return self.verdict.each if self.verdict is not None else ()


class RewriteFailed(VerificationError):
    """Verification refused the result; ``report`` has all figures.

    Example:
        >>> strict = tfl_rewrite.Judging(tolerance=tfl_rewrite.Tolerance(exact=True), rescue=False)
        >>> try:
        ...     passes = [tfl_rewrite.QuantizeWeights()]
        ...     tfl_rewrite.rewrite("model.tflite", "exact.tflite", passes, judging=strict)
        ... except tfl_rewrite.RewriteFailed as error:
        ...     print(error.report.outcome, error.report.verdict.status)
        failed fail
    """

    def __init__(self, what: str, report: Report, remedy: str | None = None) -> None:
        super().__init__(what, file=report.source, remedy=remedy)
        self.report = report
