"""Whether the outputs of two runs are close enough: the rules, each applied to every output on its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from tfl_rewrite.judge.channels import ChannelSums, Float64
from tfl_rewrite.judge.settings import Tolerance
from tfl_rewrite.judge.tally import OutputTally, joined
from tfl_rewrite.judge.verdict import ChannelComparison, OutputComparison, Verdict
from tfl_rewrite.options.frozen import frozen

REPEATED_DB = 10.0
"""By how much better than the tolerance other kernels must repeat the original's channel for it to count."""
SHARED_BY = 2.05
"""Of a channel's values, so many at least must share in its variation (`ChannelSums.spread`) for its ratio to
count. Two or three values about their mean always make exactly 2, whatever they are: of many channels, one
comes out the same by chance."""
_TOO_FEW = 3
LEAST_SHARE = 0.005
"""By how much a probability must vary to count: behind a SOFTMAX, what all classes but a few get is next to
nothing, and depends on the few."""
DEAD_DB = -20.0
"""A channel that keeps less than this share of its variation is dead."""
NOTICEABLE_DB = 20.0
"""A pass below carries a note: an error of a tenth in amplitude."""
STEP_DB = 1.0
"""What a share of samples is short of counts as, where something is searched for by dB."""


_FEW_PLACES = 16
"""An axis as short as this may as well count channels."""

Bools = npt.NDArray[np.bool_]
Kernels = Callable[[], "OutputTally | None"]
"""The original against itself in other kernels; None where no others run it. Asked only when it matters."""


@frozen
class _Finding:
    """What one rule says.

    Attributes:
        rule: Its name in the report.
        reason: Why it is not met, or None.
        short: By how many dB it is missed; `STEP_DB` where it is not about dB.
        notes: What a reader should know besides.
    """

    rule: str
    reason: str | None = None
    short: float = 0.0
    notes: tuple[str, ...] = ()


def compared(tally: OutputTally, tolerance: Tolerance, kernels: Kernels | None = None) -> OutputComparison:
    """The metrics over all samples, judged.

    Args:
        tally: Of both files.
        tolerance: What is accepted.
        kernels: See `Kernels`. Without it, every channel counts whose variation several values share.
    """
    facts = tally.facts
    findings = _findings(tally, tolerance)
    ruled = findings[0]
    channel, untold = None, None
    if ruled.rule in ("snr", "none", "equal share"):
        frozen = _frozen(tally, tolerance, kernels)
        untold = frozen.untold
        channel = _worst_channel(tally, tolerance, kernels, frozen)
        if channel is not None:
            findings.append(_Finding("channel", channel.reason, channel.short_db))
    broken = [finding for finding in findings if finding.reason is not None]
    reasons = [finding.reason for finding in broken if finding.reason is not None]
    numeric = facts.is_quantized or tally.finite > 0 or tally.nonfinite > 0
    integers = facts.dtype.startswith(("int", "uint")) and tally.elements > 0
    largest: float | None = tally.max_integer_error if integers else tally.max_error
    return OutputComparison(
        signature=tally.signature,
        name=facts.name,
        position=tally.position,
        dtype=facts.dtype,
        unit="steps" if facts.is_quantized else "values",
        samples=tally.samples,
        elements=tally.elements,
        rule=broken[0].rule if broken else ruled.rule,
        passed=not broken,
        reason="; ".join(reasons) or None,
        bit_exact=tally.bit_exact,
        max_abs_error=largest if integers or tally.finite else None,
        rmse=math.sqrt(tally.noise / tally.finite) if tally.finite else None,
        snr_db=tally.snr_db if numeric and tally.finite else None,
        cosine=tally.cosine,
        equal_share=None if numeric or not tally.elements else tally.equal / tally.elements,
        argmax_agreement=tally.rows.agreement,
        channel=channel,
        silence=tally.silence,
        untold=untold,
        short_db=max((finding.short for finding in broken), default=0.0),
        nonfinite_mismatches=tally.nonfinite,
        reference_peak=tally.peak if tally.finite else None,
        notes=tuple(note for finding in findings for note in finding.notes),
        energies=tuple(tally.energies),
        tally=tally,
    )


def _findings(tally: OutputTally, tolerance: Tolerance) -> list[_Finding]:
    """What every rule but that of channels says; the first tells what the output is judged by."""
    if tally.problems:
        return [_Finding("interface", "; ".join(tally.problems), math.inf)]
    if not tally.elements:
        return [_Finding("empty", notes=("no elements: only the shape was compared",))]
    if tolerance.exact:
        return [_Finding("exact", None if tally.bit_exact else "differs from the original", math.inf)]
    if tally.nonfinite:
        text = f"{tally.nonfinite} of {tally.elements} elements are NaN or infinite on one side only"
        return [_Finding("finite", text, math.inf)]
    if tally.is_countable:
        return [_equal_share(tally, tolerance), *_largest_error(tolerance, tally.max_integer_error)]
    scale = max(tally.facts.scales) if tally.facts.is_quantized else 1.0
    return [
        _ratio(tally, tolerance),
        *_largest_error(tolerance, tally.max_error * scale),
        *_classes(tally, tolerance),
    ]


def _largest_error(tolerance: Tolerance, error: float) -> list[_Finding]:
    bound = tolerance.max_abs_error
    if bound is None or error <= bound:
        return []
    short = 20 * math.log10(error / bound) if bound > 0 else math.inf
    return [_Finding("largest error", f"largest error {error:.4g} is more than {bound:g}", short)]


def _equal_share(tally: OutputTally, tolerance: Tolerance) -> _Finding:
    share = tally.equal / tally.elements
    differing = tally.elements - tally.equal
    allowed = 0 if tally.facts.dtype == "string" else tolerance.may_differ(tally.elements)
    if differing > allowed:
        return _Finding("equal share", f"{differing} of {tally.elements} elements differ", STEP_DB)
    return _Finding("equal share", notes=(f"{1 - share:.2%} of the elements differ",) if differing else ())


def _ratio(tally: OutputTally, tolerance: Tolerance) -> _Finding:
    least = tolerance.min_snr
    if least is None:
        return _Finding("none")
    snr = tally.snr_db if tally.finite else math.inf
    # Written so that a ratio of infinities (NaN) fails.
    if snr >= least:
        told = f"the loss is noticeable (less than {NOTICEABLE_DB:g} dB)"
        return _Finding("snr", notes=(told,) if snr < NOTICEABLE_DB else ())
    return _Finding(
        "snr", f"SNR {snr:.1f} dB is less than {least:g} dB", least - snr if snr == snr else math.inf
    )


def _flips(tally: OutputTally, tolerance: Tolerance) -> int:
    rows, least = tally.rows, tolerance.min_snr
    spread = math.sqrt(rows.spread / rows.values)
    near = spread * 10 ** (-(20.0 if least is None else max(least, 0.0)) / 20) if spread < math.inf else 0.0
    return rows.flips(max(near, 1.0) if tally.facts.is_quantized else near)


def _classes(tally: OutputTally, tolerance: Tolerance) -> list[_Finding]:
    """Whether what is largest of each row stays it.

    Where the original gives two elements nearly the same, noise that the ratio tolerates may swap them; that
    counts as a near tie: 10 % of the spread about the mean of a row at 20 dB, and one step of the
    quantization.
    """
    rows = tally.rows
    if not rows.rows:
        return []
    flips = _flips(tally, tolerance)
    if flips <= tolerance.may_differ(rows.rows):
        if rows.rows - rows.agreeing <= tolerance.may_differ(rows.rows):
            return []
        told = f"argmax {1 - flips / rows.rows:.1%} where it is no near tie"
        return [_Finding("classes", notes=(told,))]
    text = (
        f"the largest of {rows.classes} is another in {flips} of {rows.rows} rows"
        f" (agreement {1 - flips / rows.rows:.1%}, at least {tolerance.min_agreement:.1%})"
    )
    return [_Finding("classes", text, STEP_DB)]


@frozen
class _Frozen:
    """Slices of an output that are constant after the rewrite and were not before.

    Attributes:
        axes: Which, by axis.
        untold: Those of which too little is seen to say that they are dead, in words.
    """

    axes: dict[int, Bools]
    untold: str | None = None


def _frozen(tally: OutputTally, tolerance: Tolerance, kernels: Kernels | None) -> _Frozen:
    """Finds what does not vary any more, whatever its share of the output, along every axis.

    A value that rests most of the time and moves once, such as one that a RELU lets through, is lost to any
    rounding. So two values at least must be others than the constant that is left; along an axis that may
    count places instead of channels, a tenth of them. Where it counts nothing else, they must be apart by
    more than the error that any place may have: the background of a mask, or an anchor where nothing is,
    rests on a grid of 8 bits.
    """
    if tolerance.min_channel_snr is None:
        return _Frozen({})
    channels = set(tally.channels) or {max(tally.stillness.axes, default=0)}
    axes: dict[int, Bools] = {}
    lonely = {
        axis: _lonely(sums, tally, tolerance) for axis, sums in tally.channels.items() if sums is not None
    }
    for axis, slices in tally.stillness.axes.items():
        if slices is None:
            continue
        moved = slices.still & (slices.span > 0) & (slices.moved > 0)
        sums = tally.channels.get(axis)
        if tolerance.few_channels and sums is not None and sums.count <= _TOO_FEW:
            continue
        if tally.rows.rows and tally.rows.are_shares:
            moved &= tally.rows.unit * slices.span >= 4 * LEAST_SHARE
        if axis not in channels and slices.still.size > _FEW_PLACES:
            spared = moved & (slices.span < _tolerated(tally, tolerance))
            # Where more rest than move, it is no background.
            if np.count_nonzero(spared) <= np.count_nonzero(~slices.still):
                moved &= ~spared
        if not moved.any():
            continue
        needed = 2 if axis in channels else np.maximum(2, slices.count // 10)
        dead = moved & (slices.moved >= needed)
        rare = moved & (slices.moved < needed)
        if dead.any() and kernels is not None:
            # Where channels are told apart, a sensitive one excuses no other.
            if sums is not None:
                dead &= ~_unreal(axis, sums, tolerance, kernels())
            else:
                dead &= ~_unlike(slices.span, tally, tolerance, kernels())
        if dead.any():
            axes[axis] = dead
        if axis in channels:
            lonely[axis] = lonely.get(axis, rare) | rare
    untold = [_one_value_moves(found, axis) for axis, found in lonely.items() if found.any()]
    few = [sums for sums in tally.channels.values() if sums is not None and sums.count <= _TOO_FEW]
    if few and not tally.bit_exact:
        values = "1 value" if few[0].count == 1 else f"{few[0].count} values"
        untold.append(f"channels: {values} of each tell too little")
    return _Frozen(axes, "; ".join(untold) or None)


def _tolerated(tally: OutputTally, tolerance: Tolerance) -> float:
    """The error that a channel may have, where all values are of one channel, told by a last axis of 1.

    A share of how far values are from their mean. 0 where other axes may count channels.
    """
    sums, snr = next(iter(tally.channels.values()), None), tolerance.min_channel_snr
    if sums is None or sums.signal.size > 1 or not sums.count or snr is None:
        return 0.0
    least = float(np.sqrt(sums.signal[0] / sums.count)) * 10 ** (-snr / 20)
    return least if np.isfinite(least) else 0.0


def _lonely(sums: ChannelSums, tally: OutputTally, tolerance: Tolerance) -> Bools:
    """Channels that are lost and vary by one value alone, such as a class that one sample is of."""
    least = tolerance.min_channel_snr
    counts = _telling(sums, tally) & (sums.spread < SHARED_BY) & (sums.count > _TOO_FEW)
    return counts & ~(_ratios(sums) >= (-math.inf if least is None else least))


def _telling(sums: ChannelSums, tally: OutputTally) -> Bools:
    """Channels whose variation is worth looking at."""
    if not (tally.rows.rows and tally.rows.are_shares):
        return np.asarray(sums.signal > 0)
    return np.asarray(tally.rows.unit * np.sqrt(sums.signal / sums.count) >= LEAST_SHARE)


def _ratios(sums: ChannelSums) -> Float64:
    """What each channel keeps of its variation, in dB."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(sums.noise > 0, 10 * np.log10(sums.signal / sums.noise), np.inf)
    return np.where(np.isfinite(sums.signal) & np.isfinite(sums.noise), ratio, -np.inf)


def _one_value_moves(moved: Bools, axis: int) -> str:
    count, first = int(moved.sum()), int(np.argmax(moved))
    which = f"channel {first}" if count == 1 else f"{count} channels, such as {first},"
    return f"{which} of axis {axis}: one value alone moves"


def _unlike(span: Float64, tally: OutputTally, tolerance: Tolerance, other: OutputTally | None) -> Bools:
    """Slices whose variation is within what other kernels make of the original."""
    if other is None:
        return np.zeros(span.shape, np.bool_)
    if tally.is_countable:
        return np.full(span.shape, not other.bit_exact)
    return np.asarray(span < other.max_error * 10 ** (_repeated_db(tolerance) / 20))


def _repeated_db(tolerance: Tolerance) -> float:
    """How well other kernels must repeat what counts; no slice is looked at where no ratio is asked for."""
    return (tolerance.min_snr or 0.0) + REPEATED_DB


def _worst_channel(
    tally: OutputTally, tolerance: Tolerance, kernels: Kernels | None, frozen: _Frozen
) -> ChannelComparison | None:
    """The channel that keeps least of its variation; one that is dead before all others."""
    found = [
        worst
        for axis, sums in tally.channels.items()
        if sums is not None
        and (worst := _worst_of_axis(axis, sums, tally, tolerance, kernels, frozen)) is not None
    ]
    found += [
        _dead(axis, dead, STEP_DB) for axis, dead in frozen.axes.items() if tally.channels.get(axis) is None
    ]
    return min(found, key=lambda one: (not one.dead, one.snr_db), default=None)


def _dead(
    axis: int, dead: Bools, short: float, worst: int | None = None, snr: float = 0.0
) -> ChannelComparison:
    """Of a channel that does not vary any more; a constant is as far off as what it replaces varied."""
    worst = int(np.argmax(dead)) if worst is None else worst
    count = int(dead.sum())
    reason = f"channel {worst} of axis {axis} does not vary any more"
    if dead.size == 1:
        reason = "it does not vary any more"
    elif count > 1:
        reason = f"{count} of {dead.size} channels of axis {axis} do not vary any more, such as {worst}"
    return ChannelComparison(axis=axis, number=worst, snr_db=snr, dead=True, reason=reason, short_db=short)


def _worst_of_axis(
    axis: int,
    sums: ChannelSums,
    tally: OutputTally,
    tolerance: Tolerance,
    kernels: Kernels | None,
    frozen: _Frozen,
) -> ChannelComparison | None:
    with np.errstate(divide="ignore", invalid="ignore"):
        kept = 10 * np.log10(sums.signal_after / sums.signal)
    ratio = _ratios(sums)
    counts = _telling(sums, tally) & (sums.spread >= SHARED_BY)
    least = tolerance.min_channel_snr
    if least is not None and tally.facts.dtype == "bool":
        # A flag of which a quarter is wrong, where it is as often on as off.
        least = 0.0
    dead = counts & (kept < DEAD_DB) if least is not None else np.zeros_like(counts)
    dead |= frozen.axes.get(axis, np.zeros_like(dead))
    counts |= dead
    bad = dead if least is None else dead | (counts & ~(ratio >= least))
    if bad.any() and kernels is not None:
        # Only now: running the original in other kernels costs as much as the verdict.
        unreal = _unreal(axis, sums, tolerance, kernels())
        counts, dead, bad = counts & ~unreal, dead & ~unreal, bad & ~unreal
    if not counts.any():
        return None
    worst = int(np.argmin(np.where(dead if dead.any() else counts, ratio, np.inf)))
    snr, alone = float(ratio[worst]), ratio.size == 1
    if dead[worst]:
        return _dead(axis, dead, max(STEP_DB, (least or 0.0) - snr), worst, snr)
    reason, short = None, 0.0
    if bad[worst] and least is not None:
        what = "what varies of it" if alone else f"channel {worst} of axis {axis}"
        reason, short = f"{what} keeps {snr:.1f} dB, less than {least:g} dB", least - snr
    return ChannelComparison(axis=axis, number=worst, snr_db=snr, reason=reason, short_db=short)


def _unreal(axis: int, sums: ChannelSums, tolerance: Tolerance, other: OutputTally | None) -> Bools:
    """Channels whose variation other kernels do not repeat: it is noise of the arithmetic."""
    none = np.zeros(sums.pivot.shape, dtype=np.bool_)
    repeated = None if other is None else other.channels.get(axis)
    if repeated is None or repeated.pivot.shape != sums.pivot.shape:
        return none
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = 10 * np.log10(repeated.signal / repeated.noise)
    return np.asarray((repeated.noise > 0) & ~(ratio >= _repeated_db(tolerance)))


def merged(verdicts: Sequence[Verdict], tolerance: Tolerance) -> Verdict:
    """Returns what the verdicts on parts of the samples say together, as one run of all samples would.

    Args:
        verdicts: Of the same files' outputs, on different samples.
        tolerance: What each output was judged by.
    """
    if len(verdicts) == 1:
        return verdicts[0]
    broken = next((verdict for verdict in verdicts if not verdict.measured), None)
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
