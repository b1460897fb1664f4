"""How far the outputs of two runs are apart, and whether that is tolerated."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..errors import UsageError
from .interface import TensorFacts
from .report import OutputComparison
from .samples import Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerance:
    """What counts as equal enough. Every rule is applied to each output on its own, over all samples.

    Attributes:
        exact: Every byte equal; the other rules are not consulted. For rewrites that change no number.
        min_snr: Least signal-to-noise ratio in dB, ``10 log10(sum ref^2 / sum (ref - new)^2)``: the SQNR by
            which Lin, Talathi and Annapureddy (Fixed Point Quantization of Deep Convolutional Networks, ICML
            2016) relate bit widths to accuracy. 10 dB is an error of a tenth of the signal's power, a
            cosine of about 0.95; below it rankings change. None: not judged.
        max_abs_error: Largest error of any element, in the unit of the output (a quantized output counts in
            real values, not steps). In addition to the other rules.
        min_agreement: Least share of equal elements of integer and bool outputs without quantization, where
            a distance means nothing (class numbers, masks).
        near_zero_abs: An output whose values are all within this of zero has no signal to compare noise
            with: it passes when no element is off by more than this, even if the ratio is poor. 1e-4 is a
            hundredth of a percentage point for a probability.
        near_zero_steps: The same for quantized outputs, in steps: one step is the rounding of the format.
        noticeable_snr: A pass below this many dB carries a note; 20 dB is an error of a tenth in amplitude.
    """

    exact: bool = False
    min_snr: float | None = 10.0
    max_abs_error: float | None = None
    min_agreement: float = 0.9
    near_zero_abs: float = 1e-4
    near_zero_steps: int = 1
    noticeable_snr: float = 20.0

    def __post_init__(self) -> None:
        """Refuses values that would let everything or nothing pass by accident.

        Raises:
            UsageError: A bound is NaN, negative where it cannot be, or a share outside [0, 1].
        """
        if self.min_snr is not None and math.isnan(self.min_snr):
            raise UsageError("min_snr is not a number", remedy="give decibels, such as 10")
        for name in ("max_abs_error", "near_zero_abs", "near_zero_steps"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise UsageError(f"{name} is {value}", remedy="give zero or a positive number")
        if not 0 <= self.min_agreement <= 1:
            raise UsageError(f"min_agreement is {self.min_agreement}", remedy="give a share from 0 to 1")


class OutputTally:
    """Sums over the samples of one output; `comparison` judges them.

    Floats are compared in float64, integers as integers (a difference of 1 at 2**53 is a difference),
    quantized outputs as integers less their zero point, strings by equality.
    """

    def __init__(self, facts: TensorFacts, *, signature: str | None, position: int) -> None:
        self._facts = facts
        self._signature = signature
        self._position = position
        self._problems: list[str] = []
        self._samples = self._elements = self._equal = self._nonfinite = self._all_nan = 0
        self._rows = self._rows_agreeing = 0
        self._bit_exact = True
        self._finite = 0
        self._power = self._noise = self._dot = self._power_after = self._sum = 0.0
        self._energies: list[tuple[float, float]] = []
        self._peak = self._max_error = 0.0
        self._max_integer_error = 0

    def add(self, before: Array, after: Array) -> None:
        """Takes in one sample."""
        self._samples += 1
        if before.shape != after.shape or before.dtype != after.dtype:
            self._bit_exact = False
            self._problem(
                f"is {after.dtype.name}{list(after.shape)} instead of {before.dtype.name}{list(before.shape)}"
            )
            return
        self._elements += before.size
        if before.dtype.kind == "O":
            self._count_equal(before == after)
        elif before.dtype.kind in "biu":
            self._add_integers(before, after)
        elif before.dtype.kind in "fc":
            self._add_floats(before, after)
        else:
            same = before.tobytes() == after.tobytes()
            self._count_equal(np.full(before.shape, same))

    def unreadable(self, before: str | None, after: str | None) -> None:
        """Takes in a sample whose output could not be read on one side; both sides need not be told."""
        self._bit_exact = False
        if before is None:
            self._problem(f"cannot be read after the rewrite: {after}")
        else:
            self._problem(f"can be read only after the rewrite; before: {before}")

    def _problem(self, text: str) -> None:
        if text not in self._problems:
            self._problems.append(text)

    def _count_equal(self, equal: Array) -> None:
        count = int(np.count_nonzero(equal))
        self._equal += count
        self._bit_exact &= count == equal.size

    def _add_integers(self, before: Array, after: Array) -> None:
        self._count_equal(before == after)
        if before.size == 0 or before.dtype.kind == "b":
            return
        high, low = np.maximum(before, after), np.minimum(before, after)
        # Unsigned subtraction wraps to the true distance, which the signed type may not hold.
        distance = high.astype(np.uint64) - low.astype(np.uint64)
        self._max_integer_error = max(self._max_integer_error, int(distance.max()))
        if self._facts.is_quantized:
            zero = _zero_points(self._facts, before.ndim)
            self._add_values(before.astype(np.float64) - zero, after.astype(np.float64) - zero)

    def _add_floats(self, before: Array, after: Array) -> None:
        before, after = np.ascontiguousarray(before), np.ascontiguousarray(after)
        if before.dtype.kind == "c":
            part = np.dtype(f"f{before.dtype.itemsize // 2}")
            before, after = before.reshape(-1).view(part), after.reshape(-1).view(part)
        if before.tobytes() != after.tobytes():
            self._bit_exact = False
        if before.size and np.isnan(before).all():
            self._all_nan += 1
        if np.isfinite(before).all() and np.isfinite(after).all():
            self._add_values(before.astype(np.float64), after.astype(np.float64))
            return
        finite = np.isfinite(before) & np.isfinite(after)
        same = (np.isnan(before) & np.isnan(after)) | (np.isinf(before) & (before == after))
        self._nonfinite += int(np.count_nonzero(~finite & ~same))
        self._add_values(before[finite].astype(np.float64), after[finite].astype(np.float64))

    def _add_values(self, before: Array, after: Array) -> None:
        if before.size == 0:
            return
        flat, other = before.reshape(-1), after.reshape(-1)
        error = flat - other
        self._finite += flat.size
        # float64 overflows past 1e154 squared; the ratio is then taken of infinities and judged as unequal.
        with np.errstate(over="ignore", invalid="ignore"):
            power, noise = float(np.dot(flat, flat)), float(np.dot(error, error))
            self._power += power
            self._power_after += float(np.dot(other, other))
            self._dot += float(np.dot(flat, other))
            self._noise += noise
            self._energies.append((power, noise))
            self._sum += float(flat.sum())
        self._peak = max(self._peak, float(np.abs(flat).max()))
        self._max_error = max(self._max_error, float(np.abs(error).max()))
        if _looks_like_scores(before, self._facts):
            self._add_argmax(before.reshape(-1, before.shape[-1]), after.reshape(-1, before.shape[-1]))

    def _add_argmax(self, before: Array, after: Array) -> None:
        rows = np.arange(before.shape[0])
        first, second = before.argmax(axis=-1), after.argmax(axis=-1)
        # Ties, frequent among quantized scores, do not depend on which of the equals comes first.
        agree = (after[rows, first] == after[rows, second]) | (before[rows, second] == before[rows, first])
        self._rows += int(agree.size)
        self._rows_agreeing += int(np.count_nonzero(agree))

    def comparison(self, tolerance: Tolerance) -> OutputComparison:
        """The metrics over all samples, judged."""
        facts = self._facts
        numeric = facts.is_quantized or self._finite > 0 or self._nonfinite > 0
        rule, passed, reason, notes = self._judge(tolerance)
        if self._samples and self._all_nan == self._samples and not self._nonfinite:
            notes.append("all values are NaN on both sides: nothing was compared")
        integers = facts.dtype.startswith(("int", "uint")) and self._elements > 0
        largest: float | None = self._max_integer_error if integers else self._max_error
        return OutputComparison(
            signature=self._signature,
            name=facts.name,
            position=self._position,
            dtype=facts.dtype,
            unit="steps" if facts.is_quantized else "values",
            samples=self._samples,
            elements=self._elements,
            rule=rule,
            passed=passed,
            reason=reason,
            bit_exact=self._bit_exact and not self._problems,
            max_abs_error=largest if integers or self._finite else None,
            rmse=math.sqrt(self._noise / self._finite) if self._finite else None,
            snr_db=self._snr() if numeric and self._finite else None,
            cosine=self._cosine(),
            equal_share=None if numeric or not self._elements else self._equal / self._elements,
            argmax_agreement=self._rows_agreeing / self._rows if self._rows else None,
            nonfinite_mismatches=self._nonfinite,
            reference_peak=self._peak if self._finite else None,
            notes=tuple(notes),
            energies=tuple(self._energies),
        )

    def _judge(self, tolerance: Tolerance) -> tuple[str, bool, str | None, list[str]]:
        """Rule applied, whether it is met, why not, and notes."""
        facts = self._facts
        if self._problems:
            return "interface", False, "; ".join(self._problems), []
        if not self._elements:
            return "empty", True, None, ["no elements: only the shape was compared"]
        if tolerance.exact:
            return "exact", self._bit_exact, None if self._bit_exact else "differs from the original", []
        if self._nonfinite:
            text = f"{self._nonfinite} of {self._elements} elements are NaN or infinite on one side only"
            return "finite", False, text, []
        countable = facts.dtype in ("bool", "string") or facts.dtype.startswith(("int", "uint"))
        if countable and not facts.is_quantized:
            return self._judge_shares(tolerance)
        rule, passed, reason, notes = self._judge_ratio(tolerance)
        bound = tolerance.max_abs_error
        error = self._max_error * (max(facts.scales) if facts.is_quantized else 1.0)
        if bound is not None and error > bound:
            text = f"largest error {error:.4g} is more than {bound:g}"
            return rule, False, f"{reason}; {text}" if reason else text, notes
        return rule, passed, reason, notes

    def _judge_shares(self, tolerance: Tolerance) -> tuple[str, bool, str | None, list[str]]:
        share = self._equal / self._elements
        least = 1.0 if self._facts.dtype == "string" else tolerance.min_agreement
        bound = tolerance.max_abs_error
        reasons = []
        if share < least:
            reasons.append(f"{self._elements - self._equal} of {self._elements} elements differ")
        if bound is not None and self._max_integer_error > bound:
            reasons.append(f"largest error {self._max_integer_error} is more than {bound:g}")
        notes = [] if share == 1 or reasons else [f"{1 - share:.2%} of the elements differ"]
        return "equal share", not reasons, "; ".join(reasons) or None, notes

    def _judge_ratio(self, tolerance: Tolerance) -> tuple[str, bool, str | None, list[str]]:
        least = tolerance.min_snr
        if not self._finite or self._noise == 0:
            return "snr", True, None, []
        if least is None:
            return "none", True, None, []
        snr = self._snr()
        quantized = self._facts.is_quantized
        near_zero = float(tolerance.near_zero_steps) if quantized else tolerance.near_zero_abs
        unit = " steps" if quantized else ""
        # Written so that a ratio of infinities (NaN) fails.
        if snr >= least:
            return "snr", True, None, self._loss_notes(snr, tolerance)
        if self._peak <= near_zero:
            text = f"no value of the original exceeds {near_zero:g}{unit}: judged by its absolute error"
            if self._max_error <= near_zero:
                return "near zero", True, None, [text]
            return "near zero", False, f"largest error {self._max_error:.4g}{unit} is more than that", [text]
        return "snr", False, f"SNR {snr:.1f} dB is less than {least:g} dB", self._loss_notes(snr, tolerance)

    def _loss_notes(self, snr: float, tolerance: Tolerance) -> list[str]:
        notes = []
        if tolerance.min_snr is not None and tolerance.min_snr <= snr < tolerance.noticeable_snr:
            notes.append(f"the loss is noticeable (less than {tolerance.noticeable_snr:g} dB)")
        mean = self._sum / self._finite
        variation = self._power - self._finite * mean * mean
        # A large constant part flatters the ratio: the interesting part of the signal is what varies.
        if self._finite > 1 and 0 < variation < self._noise and variation > 1e-9 * self._power:
            notes.append("the error is larger than the variation of the original's values")
        return notes

    def _snr(self) -> float:
        if self._noise == 0:
            return math.inf
        if self._power == 0:
            return -math.inf
        ratio = self._power / self._noise
        return 10 * math.log10(ratio) if 0 < ratio < math.inf else (math.nan if ratio else -math.inf)

    def _cosine(self) -> float | None:
        norms = math.sqrt(self._power) * math.sqrt(self._power_after)
        return self._dot / norms if 0 < norms < math.inf else None


def _zero_points(facts: TensorFacts, rank: int) -> Array:
    zeros = np.array(facts.zero_points or (0,), dtype=np.float64)
    if zeros.size == 1 or rank == 0:
        return zeros[:1].reshape(())
    return zeros.reshape([-1 if axis == facts.quantized_dimension else 1 for axis in range(rank)])


def _looks_like_scores(values: Array, facts: TensorFacts) -> bool:
    """One vector a sample, or probabilities along the last axis: there the largest element is a choice."""
    if values.ndim == 0 or values.shape[-1] < 2 or values.ndim != len(facts.shape):
        return False
    if values.ndim <= 2:
        return True
    if facts.is_quantized or float(values.min()) < 0 or float(values.max()) > 1:
        return False
    return bool(np.abs(values.sum(axis=-1) - 1).max() < 0.01)
