"""One verdict from those on parts of the samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tfl_rewrite.judge.compare import Tolerance, compared
from tfl_rewrite.judge.tally import joined
from tfl_rewrite.judge.verdict import Verdict


def merged(verdicts: Sequence[Verdict], tolerance: Tolerance) -> Verdict:
    """Returns what the verdicts on parts of the samples say together, as one run of all samples would.

    Args:
        verdicts: Of the same files' outputs, on different samples.
        tolerance: What each output was judged by.
    """
    if len(verdicts) == 1:
        return verdicts[0]
    broken = next((verdict for verdict in verdicts if not _complete(verdict)), None)
    if broken is not None or len({len(verdict.outputs) for verdict in verdicts}) > 1:
        return broken or verdicts[0]
    outputs = []
    for items in zip(*(verdict.outputs for verdict in verdicts), strict=True):
        together = compared(joined([item.tally for item in items if item.tally is not None]), tolerance)
        notes = dict.fromkeys(note for item in (together, *items) for note in item.notes)
        outputs.append(replace(together, notes=tuple(notes)))
    reasons = tuple(f"{item.label}: {item.reason}" for item in outputs if not item.passed)
    return replace(
        verdicts[0],
        status="fail" if reasons else "pass",
        cause="outputs" if reasons else "",
        reasons=reasons,
        sample_count=sum(verdict.sample_count for verdict in verdicts),
        outputs=tuple(outputs),
        notes=tuple(dict.fromkeys(note for verdict in verdicts for note in verdict.notes)),
        seconds=sum(verdict.seconds for verdict in verdicts),
    )


def _complete(verdict: Verdict) -> bool:
    return verdict.measured
