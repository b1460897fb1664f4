"""What a file must keep, and what is to be small."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass, field

from tfl_rewrite.errors import UsageError, check_number
from tfl_rewrite.judge.settings import ERROR_BOUNDS, SNR_BOUNDS, Tolerance
from tfl_rewrite.judge.verdict import Verdict
from tfl_rewrite.options.json_data import LEFT_OUT, JsonData

_STEP = 1.0
"""By how many dB a search moves on where what is bounded is not counted in dB."""


_BOUNDS = {"min_snr": SNR_BOUNDS, "max_error": ERROR_BOUNDS, "min_metric": (-1e300, 1e300)}


class Objective(str, enum.Enum):
    """What is to be small."""

    FILE = "file"
    DOWNLOAD = "download"
    RAM = "ram"
    LATENCY = "latency"


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal(JsonData):
    """The budget.

    Attributes:
        min_snr: Least signal-to-noise ratio of every output, in dB.
        max_error: Largest error of any element of an output.
        min_agreement: Least share of samples with the same largest element, of each output of scores.
        min_metric: Least value of the user's own figure.
        max_nbytes: Largest file; with nothing else, the error is to be as small as it can be.
        objective: What is to be small.
        sure: Whether ratios are to hold on as many other samples, most likely; see
            :attr:`OutputComparison.doubt_db`. Otherwise on those at hand.
    """

    min_snr: float | None = None
    max_error: float | None = None
    min_agreement: float | None = None
    min_metric: float | None = None
    max_nbytes: int | None = None
    objective: Objective = Objective.FILE
    sure: bool = field(default=True, metadata=LEFT_OUT)

    def __post_init__(self) -> None:
        """Refuses budgets that cannot be.

        Raises:
            UsageError: Nothing is given, or a number is out of its range.
        """
        if not self.bounds_error and self.max_nbytes is None:
            raise UsageError(
                "no budget", remedy="give --min-snr, --max-error, --min-agreement, --metric or --max-size"
            )
        if self.min_agreement is not None and not 0 < self.min_agreement <= 1:
            raise UsageError(f"min_agreement is {self.min_agreement}", remedy="give a share, such as 0.99")
        for name, bounds in _BOUNDS.items():
            value = getattr(self, name)
            if value is not None:
                check_number(name, value, bounds)
        if self.max_nbytes is not None and self.max_nbytes < 1:
            raise UsageError(f"max_nbytes is {self.max_nbytes}", remedy="give 1 or more")

    @property
    def bounds_error(self) -> bool:
        """Whether there is a bound on the error."""
        return any(
            bound is not None for bound in (self.min_snr, self.max_error, self.min_agreement, self.min_metric)
        )

    @property
    def in_db(self) -> bool:
        """Whether all that is missing can be told in dB."""
        return self.min_agreement is None and self.min_metric is None

    @property
    def tolerance(self) -> Tolerance:
        """What the judge measures with.

        Without a ratio the user's own figure counts, or nothing does but the size: classes are not judged.
        """
        share = Tolerance().min_agreement if self.min_snr is not None else 0.0
        return Tolerance(min_snr=self.min_snr, max_abs_error=self.max_error, min_agreement=share)

    def shortfall(self, verdict: Verdict, metric: float | None = None, *, chance: bool = True) -> float:
        """Returns by how much as many other samples may miss the bounds on the error; at most 0 if not.

        In dB where dB are what is bounded; any positive number elsewhere.

        Args:
            verdict: On some samples.
            metric: The user's own figure on those.
            chance: Whether what may be chance is taken off a ratio, see :attr:`OutputComparison.doubt_db`.
        """
        if not verdict.measured:
            return math.inf
        if any(item.nonfinite_mismatches or item.rule == "interface" for item in verdict.outputs):
            return math.inf
        missing = [-math.inf, *(item.short_db for item in verdict.outputs if not item.passed)]
        if self.min_snr is not None:
            # What is judged by another rule is no worse than it may be.
            kept = [
                item.snr_db - (item.doubt_db if chance and self.sure else 0.0)
                for item in verdict.outputs
                if item.snr_db is not None and item.rule == "snr"
            ]
            missing.append(self.min_snr - min(kept, default=math.inf))
        if self.max_error is not None:
            largest = max((item.max_abs_error or 0.0 for item in verdict.outputs), default=0.0)
            missing.append(_ratio_db(largest, self.max_error))
        if self.min_agreement is not None:
            shares = [item.argmax_agreement for item in verdict.outputs if item.argmax_agreement is not None]
            lowest = min(shares, default=1.0)
            missing.append(_STEP if lowest < self.min_agreement else -_STEP)
        if self.min_metric is not None:
            missing.append(_STEP if metric is None or not metric >= self.min_metric else -_STEP)
        return max(missing)

    def text(self) -> str:
        """The bounds, for people."""
        words = []
        if self.min_snr is not None:
            words.append(f"SNR of {self.min_snr:g} dB")
        if self.max_error is not None:
            words.append(f"error of at most {self.max_error:g}")
        if self.min_agreement is not None:
            words.append(f"argmax agreement of {self.min_agreement:.2%}")
        if self.min_metric is not None:
            words.append(f"metric of {self.min_metric:g}")
        if self.max_nbytes is not None:
            words.append(f"at most {self.max_nbytes:,} bytes")
        return ", ".join(words)


def _ratio_db(found: float, allowed: float) -> float:
    """Returns by how many dB an error is larger than it may be."""
    if found <= allowed:
        return -20.0 * math.log10(allowed / found) if found > 0 and allowed > 0 else -100.0
    return 20.0 * math.log10(found / allowed) if allowed > 0 else 100.0
