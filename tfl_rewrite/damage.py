"""Which constants did the damage when a rewritten model was refused.

Each constant is rewritten alone and the file is run against the same reference; then the worst are left
out, more and more of them, until the rest passes. Both are measurements, bounded in time.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tfl_rewrite.errors import TflRewriteError
from tfl_rewrite.passes.base import PassResult, run_passes
from tfl_rewrite.passes.candidates import Candidate
from tfl_rewrite.passes.quantize_weights import QuantizeWeights, WeightChange
from tfl_rewrite.storage import load, save
from tfl_rewrite.verify import Judge, Verdict


@dataclass(frozen=True, slots=True)
class Culprit:
    """One constant, rewritten alone.

    Attributes:
        snr: The lowest SNR over the outputs in dB; None if the model did not run or had none.
    """

    tensor: str
    buffer: int
    snr: float | None

    @property
    def severity(self) -> float:
        """For sorting: lower is worse."""
        return -math.inf if self.snr is None else self.snr


@dataclass(frozen=True, slots=True)
class Damage:
    """What was found in the time given.

    Attributes:
        culprits: Worst first.
        unmeasured: How many constants there was no time for.
        spare: Names that, left as they are, let the rest pass; empty if no such set was found.
        nbytes: Size of the file then.
        snr: Its lowest SNR.
    """

    culprits: tuple[Culprit, ...]
    unmeasured: int
    spare: tuple[str, ...] = ()
    nbytes: int = 0
    snr: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns it as JSON data."""
        return {
            "culprits": [{"tensor": item.tensor, "snr_db": _finite(item.snr)} for item in self.culprits],
            "unmeasured": self.unmeasured,
            "spare": list(self.spare),
            "nbytes": self.nbytes,
            "snr_db": _finite(self.snr),
        }

    def remedy(self) -> str | None:
        """Returns what the user can do, as measured."""
        if not self.spare:
            return "see which tensors did it; exclude them (--exclude), or accept the loss (--min-snr)"
        ratio = f", {self.snr:.1f} dB" if self.snr is not None else ""
        return (
            f"keep the {len(self.spare)} worst tensor(s) as they are (--exclude, see below): "
            f"{self.nbytes} bytes{ratio}; or accept the loss (--min-snr)"
        )


def _finite(value: float | None) -> float | None:
    """JSON has no infinity; a tensor that costs nothing has no ratio."""
    return value if value is not None and math.isfinite(value) else None


def measure_damage(
    source: str | os.PathLike[str],
    settings: QuantizeWeights,
    result: PassResult,
    judge: Judge,
    *,
    seconds: float,
) -> Damage:
    """Finds the constants whose new form costs most.

    Args:
        source: The original file.
        settings: The pass that was refused.
        result: What it did.
        judge: Has run the original already.
        seconds: How long to search; half for the constants, half for a set to spare.
    """
    started = time.monotonic()
    names: dict[int, str] = {}
    changes = [change for change in result.changes if isinstance(change, WeightChange)]
    # The constants that lost most themselves come first, in case time runs out.
    for change in sorted(changes, key=lambda item: item.snr):
        names.setdefault(change.buffer, change.where)
    culprits = []
    with tempfile.TemporaryDirectory(prefix="tfl-rewrite-") as folder:
        trial = Path(folder) / "trial.tflite"
        for buffer, name in names.items():
            if time.monotonic() - started > seconds / 2:
                break
            verdict = _try(source, settings, {buffer}, judge, trial)
            if verdict is not None:
                culprits.append(Culprit(name, buffer, verdict.worst_snr()))
        culprits.sort(key=lambda item: item.severity)
        unmeasured = len(names) - len(culprits)
        count = 1
        while count < len(culprits) and time.monotonic() - started < seconds:
            spared = {item.buffer for item in culprits[:count]}
            rest = set(names) - spared
            verdict = _try(source, settings, rest, judge, trial)
            if verdict is not None and verdict.passed:
                return Damage(
                    tuple(culprits),
                    unmeasured,
                    tuple(item.tensor for item in culprits[:count]),
                    trial.stat().st_size,
                    verdict.worst_snr(),
                )
            count = count + 1 if count < 4 else count * 2
    return Damage(tuple(culprits), unmeasured)


def _try(
    source: str | os.PathLike[str], settings: QuantizeWeights, buffers: set[int], judge: Judge, trial: Path
) -> Verdict | None:
    """Rewrites only some buffers and judges the file; None if that changes nothing."""
    model = load(source)
    chosen = {id(model.buffers[index]) for index in buffers}

    def only(item: Candidate) -> bool:
        return id(item.stored.buffer) in chosen

    try:
        results: Sequence[PassResult] = run_passes(model, [replace(settings, only=only)])
    except TflRewriteError:
        return None
    if not results[0].modified:
        return None
    save(model, trial, force=True)
    return judge.compare(trial)
