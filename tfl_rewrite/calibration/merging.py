"""One verdict from those on parts of the samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from tfl_rewrite.verification import Verdict
from tfl_rewrite.verification.report import OutputComparison


def merged(verdicts: Sequence[Verdict], min_snr: float | None) -> Verdict:
    """Returns what the verdicts on parts of the samples say together.

    Squared errors and signals add up, so the ratios are those that one run of all samples would have.

    Args:
        verdicts: Of the same files' outputs, on different samples.
        min_snr: What each output was judged by, in dB.
    """
    if len(verdicts) == 1:
        return verdicts[0]
    broken = next((verdict for verdict in verdicts if not _complete(verdict)), None)
    if broken is not None or len({len(verdict.outputs) for verdict in verdicts}) > 1:
        return broken or verdicts[0]
    rows = zip(*(verdict.outputs for verdict in verdicts), strict=True)
    outputs = tuple(_together(list(items), min_snr) for items in rows)
    reasons = tuple(f"{item.label}: {item.reason}" for item in outputs if not item.passed)
    return replace(
        verdicts[0],
        status="fail" if reasons else "pass",
        cause="outputs" if reasons else "",
        reasons=reasons,
        sample_count=sum(verdict.sample_count for verdict in verdicts),
        outputs=outputs,
        notes=tuple(dict.fromkeys(note for verdict in verdicts for note in verdict.notes)),
        seconds=sum(verdict.seconds for verdict in verdicts),
    )


def _complete(verdict: Verdict) -> bool:
    return verdict.status != "unverified" and verdict.cause in ("", "outputs")


def _together(items: list[OutputComparison], min_snr: float | None) -> OutputComparison:
    first = items[0]
    elements = sum(item.elements for item in items)
    noise = sum((item.rmse or 0.0) ** 2 * item.elements for item in items)
    snr = _ratio(items)
    agreed = [(item.argmax_agreement, item.samples) for item in items if item.argmax_agreement is not None]
    samples = sum(count for _, count in agreed)
    failed = [item for item in items if not item.passed]
    rule = failed[0].rule if failed else first.rule
    reason = failed[0].reason if failed else None
    passed = not failed
    # One half may fall short of a ratio that both together keep; other rules hold for every sample.
    by_ratio = {item.rule for item in items} == {"snr"} and min_snr is not None
    bounded = any("largest error" in (item.reason or "") for item in failed)
    if by_ratio and not bounded:
        assert min_snr is not None
        passed = snr is None or snr >= min_snr
        reason = None if passed else f"SNR {snr:.1f} dB is less than {min_snr:g} dB"
    return replace(
        first,
        samples=sum(item.samples for item in items),
        elements=elements,
        rule=rule,
        passed=passed,
        reason=reason,
        bit_exact=all(item.bit_exact for item in items),
        max_abs_error=_over(max, [item.max_abs_error for item in items]),
        rmse=math.sqrt(noise / elements) if elements and first.rmse is not None else None,
        snr_db=snr,
        cosine=_over(min, [item.cosine for item in items]),
        equal_share=_over(min, [item.equal_share for item in items]),
        argmax_agreement=sum(share * count for share, count in agreed) / samples if samples else None,
        nonfinite_mismatches=sum(item.nonfinite_mismatches for item in items),
        reference_peak=_over(max, [item.reference_peak for item in items]),
        notes=tuple(dict.fromkeys(note for item in items for note in item.notes)),
        energies=tuple(pair for item in items for pair in item.energies),
    )


def _ratio(items: list[OutputComparison]) -> float | None:
    """Returns the ratio over all parts, in dB."""
    if not any(item.snr_db is not None for item in items):
        return None
    signal = math.fsum(power for item in items for power, _ in item.energies)
    noise = math.fsum(off for item in items for _, off in item.energies)
    if noise == 0:
        return math.inf
    return 10.0 * math.log10(signal / noise) if 0 < signal / noise < math.inf else -math.inf


def _over(pick: Callable[[list[float]], float], values: Sequence[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return pick(found) if found else None
