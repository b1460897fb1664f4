"""Which constants did the damage when a rewritten model was refused.

Each constant is rewritten alone and the file is run against the same reference; then the worst are left
out, more and more of them, until the rest passes. Both are measurements, bounded in time.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tfl_rewrite.errors import TflRewriteError
from tfl_rewrite.passes.base import PassResult, run_passes
from tfl_rewrite.passes.candidates import UNNAMED, Candidate
from tfl_rewrite.passes.quantize_weights import QuantizeWeights, Scheme, WeightChange
from tfl_rewrite.storage import load, save
from tfl_rewrite.verification import Judge, Verdict
from tfl_rewrite.verification.cleanup import Scratch


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
        expanded: Lowest SNR, and size, with every constant behind a DEQUANTIZE instead of in a hybrid kernel,
            if that passes.
    """

    culprits: tuple[Culprit, ...]
    unmeasured: int
    spare: tuple[str, ...] = ()
    nbytes: int = 0
    snr: float | None = None
    expanded: tuple[float | None, int] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns it as JSON data."""
        return {
            "expanded": [_finite(self.expanded[0]), self.expanded[1]] if self.expanded else None,
            "culprits": [{"tensor": item.tensor, "snr_db": _finite(item.snr)} for item in self.culprits],
            "unmeasured": self.unmeasured,
            "spare": list(self.spare),
            "nbytes": self.nbytes,
            "snr_db": _finite(self.snr),
        }

    def remedy(self) -> str | None:
        """Returns what the user can do, as measured."""
        if self.expanded is not None:
            ratio = "" if self.expanded[0] is None else f", {self.expanded[0]:.1f} dB"
            return (
                f"use --scheme dequantize ({self.expanded[1]} bytes{ratio}; then only weights are rounded, "
                "not activations); or accept the loss (--min-snr)"
            )
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
    clock = _Clock(seconds)
    names: dict[int, str] = {}
    changes = [change for change in result.changes if isinstance(change, WeightChange)]
    # The constants that lost most themselves come first, in case time runs out.
    for change in sorted(changes, key=lambda item: item.snr):
        names.setdefault(change.buffer, change.where)
    culprits: list[Culprit] = []
    found = Damage((), len(names))
    with Scratch() as scratch:
        trial = scratch.path / "trial.tflite"

        def attempt(pass_: QuantizeWeights, buffers: set[int]) -> Verdict | None:
            with clock:
                return _try(source, pass_, buffers, judge, trial)

        if settings.scheme is Scheme.AUTO and clock.allows(1.0):
            verdict = attempt(replace(settings, scheme=Scheme.DEQUANTIZE), set(names))
            if verdict is not None and verdict.passed:
                found = replace(found, expanded=(verdict.worst_snr(), trial.stat().st_size))
        for buffer, name in names.items():
            if not clock.allows(0.6):
                break
            verdict = attempt(settings, {buffer})
            if verdict is not None:
                culprits.append(Culprit(name, buffer, verdict.worst_snr()))
        culprits.sort(key=lambda item: item.severity)
        found = replace(found, culprits=tuple(culprits), unmeasured=len(names) - len(culprits))
        count = 1
        while count < len(culprits) and clock.allows(1.0):
            verdict = attempt(settings, set(names) - {item.buffer for item in culprits[:count]})
            if verdict is not None and verdict.passed:
                spare = tuple(item.tensor for item in culprits[:count])
                if any(name == UNNAMED for name in spare):
                    # No pattern can leave it out.
                    break
                return replace(found, spare=spare, nbytes=trial.stat().st_size, snr=verdict.worst_snr())
            count = count + 1 if count < 4 else count * 2
    return found


class _Clock:
    """Tells whether another trial fits: one takes as long as the longest before it."""

    def __init__(self, seconds: float) -> None:
        self._started = time.monotonic()
        self._seconds = seconds
        self._longest = 0.0
        self._begun = 0.0

    def allows(self, share: float) -> bool:
        """Whether a trial begun now is likely to end within a share of the time."""
        return time.monotonic() - self._started + self._longest <= self._seconds * share

    def __enter__(self) -> None:
        self._begun = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._longest = max(self._longest, time.monotonic() - self._begun)


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
