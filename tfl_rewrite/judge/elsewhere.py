"""Judges a file in a runtime that its original need not run in: by its own outputs in this one.

A file that was made for an older or a smaller runtime is compared twice: with its original here, as any file,
and with itself, here and there. What both give for the same inputs must agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tfl_rewrite.interpreter.process import RuntimeChoice
from tfl_rewrite.interpreter.worker import Failure
from tfl_rewrite.judge.judge import Judge
from tfl_rewrite.judge.reference import PathLike, existing, judge_info
from tfl_rewrite.judge.repeats import Tallying
from tfl_rewrite.judge.settings import Judging
from tfl_rewrite.judge.verdict import OutputComparison, Verdict, with_entries

MOST_STEPS = 3
"""By how many steps of its scale an integer may differ between two runtimes, whose kernels round differently.

Measured on 157 files in TFLite Micro beside the reference kernels of LiteRT: equal, but for 1 step of a
ResNet and 3 of an LSTM. Over more samples that ResNet, as it was, came to 5 steps behind its SOFTMAX.
"""
ALIKE_DB = 30.0
"""So much an output must keep that is further off in a few elements; that ResNet keeps 39.9 dB."""


def judged_elsewhere(path: PathLike, judging: Judging, runtime: str, *, micro: bool = False) -> Verdict:
    """Runs a file here and in another runtime on the same inputs, and compares what it gives.

    Args:
        path: The file.
        judging: How it is run here, and what is tolerated.
        runtime: The other one, as in :attr:`Judging.runtime`.
        micro: Whether that is TFLite Micro: it takes the recorded sizes only, so that larger ones prove
            nothing, and its integers are those of the reference kernels, within :data:`MOST_STEPS`.

    Raises:
        UsageError: A runtime is not installed, or an input does not fit.
    """
    with Judge(path, judging) as judge:
        found = judge.reference()
        reference = judge.settled
        if found.failure is not None or reference is None:
            why = found.failure.message if found.failure is not None else "it does not run"
            return Verdict(
                status="unverified",
                reasons=(f"the new file does not run here: {why}",),
                cause=found.failure.kind if found.failure is not None else "error",
            )
        worker, _ = judge.lend(1)
        worker.runtime = RuntimeChoice.parse(runtime)
        tallying = Tallying(reference)
        request = judge.request(existing(path), reference)
        worker.begin(request, on_ran=tallying.take)
        with worker.finish() as execution:
            if micro:
                execution.dropped = None
            made = judge.judged(reference, execution, tallying, judging.tolerance)
            # The time of two runtimes says nothing of the file.
            made = replace(made, judge=judge_info(worker, reference.resolver, judging.threads), cost=None)
            failure = execution.failure
    if failure is not None:
        return _refused(made, failure)
    return _within_steps(made) if micro else made


def _refused(verdict: Verdict, failure: Failure) -> Verdict:
    reasons = (f"the new file does not run there: {failure.message}",)
    return replace(verdict, status="fail", cause=failure.kind, reasons=reasons)


def _within_steps(verdict: Verdict) -> Verdict:
    """Refuses integers that differ by more than rounding does."""

    def checked(item: OutputComparison) -> OutputComparison:
        off = item.max_abs_error or 0
        alike = item.snr_db is not None and item.snr_db >= ALIKE_DB
        if item.unit != "steps" or off <= MOST_STEPS or alike or not item.passed:
            return item
        return replace(item, passed=False, reason=f"{off:g} steps apart, more than {MOST_STEPS}")

    outputs = tuple(map(checked, verdict.outputs))
    if all(one is other for one, other in zip(outputs, verdict.outputs, strict=True)):
        return verdict
    entries = [
        replace(entry, status="fail", cause="outputs", reasons=told)
        if (told := _told(outputs, entry.signature))
        else entry
        for entry in verdict.entries
    ]
    return with_entries(replace(verdict, outputs=outputs), entries)


def _told(outputs: Sequence[OutputComparison], signature: str | None) -> tuple[str, ...]:
    failed = [item for item in outputs if item.signature == signature and not item.passed]
    return tuple(f"{item.label}: {item.reason}" for item in failed)
