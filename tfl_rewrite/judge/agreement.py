"""What the runs that judge a file say beside its outputs: if kernels agree, if errors grow, what calls cost.

What is right with some kernels and wrong with others is not published.

Kernels of integers round in different ways, so ratios differ by chance. A kernel that reads an operand as
what it is not, or accumulates wrongly, loses far more than that, and a lenient tolerance lets it pass.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from tfl_rewrite.judge.verdict import OutputComparison, Verdict

AGREED_DB = 40.0
"""An output that keeps as much with all kernels is right with each."""

APART_DB = 3.0
"""By how much the ratio of an output may be lower with some kernels than with others."""


def agreed(verdict: Verdict, own: Sequence[Mapping[int, float]]) -> Verdict:
    """Returns a verdict of several judges; as a failure, where they passed a file and yet disagree.

    The ratio of an output with one kernel is too low where it is below `AGREED_DB` and more than `APART_DB`
    below that with another, and more than the chance of few samples explains
    (:attr:`tfl_rewrite.judge.verdict.OutputComparison.doubt_db`). Each judge measures against the original
    with its own kernels: where those differ, as hybrid ones do, the file may differ by as much more.

    Args:
        verdict: Of all judges.
        own: Of each judge, by the position of an output, the ratio in dB of the original's to that with the
            kernels of the first; what is missing is equal.
    """
    if not verdict.passed or len(verdict.verdicts) < 2:
        return verdict
    reasons = [
        said
        for position in range(len(verdict.outputs))
        if (said := _apart(verdict.verdicts, position, [one.get(position, math.inf) for one in own]))
    ]
    if not reasons:
        return verdict
    return replace(verdict, status="fail", cause="outputs", reasons=tuple(reasons))


def _apart(verdicts: Sequence[Verdict], position: int, own: Sequence[float]) -> str:
    """Returns how far ratios of one output lie apart; empty where they agree."""
    found = [
        (output.snr_db, output, verdict, ratio)
        for verdict, ratio in zip(verdicts, own, strict=True)
        if (output := _output(verdict, position)) is not None and output.snr_db is not None
    ]
    if len(found) < 2:
        return ""
    least, output, low, of_low = min(found, key=lambda item: item[0])
    most, other, high, of_high = max(found, key=lambda item: item[0])
    # Of what is missed, the difference of the originals is a part that the file cannot help.
    missed = sum(10 ** (-ratio / 10) for ratio in (most, of_low, of_high))
    expected = -10 * math.log10(missed) if missed else math.inf
    # What was measured on fewer samples differs by their chance, too.
    doubt = max(item.doubt_db for item in (output, other) if item.samples <= output.samples)
    if least >= AGREED_DB or expected - least <= APART_DB + doubt:
        return ""
    return (
        f"{output.label}: kernels disagree: {least:.1f} dB with {_kernels(low)}, {most:.1f} dB with"
        f" {_kernels(high)}"
    )


def _output(verdict: Verdict, position: int) -> OutputComparison | None:
    """Returns an output that says something; judges of one file see the same outputs in the same order."""
    output = verdict.outputs[position] if position < len(verdict.outputs) else None
    return None if output is None or output.silence is not None else output


def _kernels(verdict: Verdict) -> str:
    return f"{verdict.judge.kernels} kernels" if verdict.judge is not None else "others"


GROWN_DB, LEAST_GROWN = 6.0, 4
"""By how much the ratio of the last third of the calls is lower than that of the first, falling all the way,
where an error is said to grow: twice in amplitude. Of fewer calls nothing is said."""
_MOST_CALLS = 1e6


def growth_of(output: OutputComparison, least: float | None) -> str:
    """Says how the error of an output grows from call to call; nothing, where it does not.

    A state that leaks by a hundredth a call, or is off by a little more each time, keeps any ratio over few
    calls and none over many. How the ratio goes on is a guess: as it fell, over the logarithm of the calls.

    Args:
        output: Its calls follow each other.
        least: The ratio that it must keep, in dB.
    """
    count = len(output.energies)
    if count < LEAST_GROWN or output.silence is not None:
        return ""
    cuts = [round(count * third / 3) for third in range(4)]
    ratios = []
    for start, end in itertools.pairwise(cuts):
        signal, noise = (math.fsum(part) for part in zip(*output.energies[start:end], strict=True))
        ratios.append(10 * math.log10(signal / noise) if signal > 0 and noise > 0 else math.inf)
    first, middle, last = ratios
    if not (first > middle > last and first - last >= GROWN_DB):
        return ""
    told = "no error" if first == math.inf else f"{first:.0f} dB"
    text = f"{output.label}: {told} in the first calls, {last:.0f} dB in the last of {count}"
    if least is None or first == math.inf or last <= least:
        return text
    # The middles of the first and the last third are five times as many calls apart.
    calls = count * 5 / 6 * 5 ** ((last - least) / (first - last))
    if calls > _MOST_CALLS:
        return text
    return f"{text}; growing so, it misses {least:g} dB after some {float(f'{calls:.1g}'):,.0f}"


REFERENCE_TIMES = 5.0
"""How much longer a call takes with the reference kernels than with the built-in ones: 3.0 and 0.59 s,
measured with a float classifier of 4 MB and 256 pixels."""
FEW_SAMPLES, SLOW_SECONDS = 3, 1.0
"""So many samples are run with kernels that take longer than that for each: they are there to see whether
kernels agree, and what disagrees does so on every sample."""


def is_slow(cpu: Sequence[float]) -> bool:
    """Whether the reference kernels are too slow for all samples.

    Args:
        cpu: Processor time of each call with the built-in kernels, in seconds.
    """
    return bool(cpu) and REFERENCE_TIMES * min(cpu) > SLOW_SECONDS


LEAST_CALLS = 3
"""Fewer calls, each beside that of the original, tell nothing."""

TELLING, CERTAIN, LEAST_SECONDS = 1.5, 1.3, 0.0005
"""By which factor the fastest calls differ where anything is said, each single one, and by which time.

Of two runs of one file beside ten times the work that a machine has processors for, single calls of over a
millisecond differed by up to 2.3, those of 0.1 ms by up to 6; the fastest of three never by 1.5 and 0.5 ms.
"""


def cost_of(before: Sequence[float], after: Sequence[float]) -> float | None:
    """Returns the processor time of a call as a multiple of the original's; None where noise explains it.

    The first call of each does not count: it finds memory and caches cold.

    Args:
        before: Of the calls of the original, in seconds, in order.
        after: Of the same calls of the rewritten file; fewer where it did not come to the end.
    """
    pairs = [(old, new) for old, new in zip(before[1:], after[1:], strict=False) if old > 0 and new > 0]
    if len(pairs) < LEAST_CALLS:
        return None
    was, now = (min(times) for times in zip(*pairs, strict=True))
    if abs(now - was) < LEAST_SECONDS or 1 / TELLING < now / was < TELLING:
        return None
    # Each call says the same.
    singles = [new / old if now > was else old / new for old, new in pairs]
    return now / was if min(singles) >= CERTAIN else None


def with_cost_of(verdict: Verdict, other: Verdict) -> Verdict:
    """Returns a verdict with what calls cost by another one of the same judge, where its own were too few."""
    verdicts = tuple(with_cost_of(one, other) for one in verdict.verdicts)
    is_same = verdict.cost is None and verdict.judge == other.judge
    return replace(verdict, cost=other.cost if is_same else verdict.cost, verdicts=verdicts)


_HIDES_DB = 20.0
"""Outputs that keep so much more than what goes into their last operator tell of these samples alone; others
may keep as much less than that (19 dB, measured once)."""
SURE = "for samples as sure as these"
"""What a verdict rests on that says nothing of samples of which the model is less sure."""


_SQUASHED = 1.01
"""No SOFTMAX, LOGISTIC or TANH gives more, rounding aside."""


def _hides(output: OutputComparison, inside_db: float, min_snr: float) -> bool:
    """Whether an output keeps more than others would that are less sure; so if nobody knows (NaN)."""
    if not inside_db >= min_snr:
        return True
    far = output.bit_exact or output.snr_db is None or output.snr_db > inside_db + _HIDES_DB
    return inside_db < min_snr + _HIDES_DB and far


def may_hide(verdict: Verdict, min_snr: float) -> bool:
    """Whether what goes into last operators has to be looked at, for `with_hidden` to tell.

    Outputs themselves show it, unless a model is so sure that they reach 0 or 1.
    """
    return any(
        item.silence is None
        and item.tally is not None
        and item.tally.peak * item.tally.rows.unit <= _SQUASHED
        and _hides(item, item.tally.inside_db, min_snr)
        for item in verdict.outputs
    )


def with_hidden(verdict: Verdict, inside: Verdict, min_snr: float) -> Verdict:
    """Returns the verdict on outputs that hide noise as one for samples as sure, where others would show it.

    Behind a last SOFTMAX, LOGISTIC or TANH next to nothing is left of noise where the model is sure.

    Args:
        verdict: On them.
        inside: On the same outputs of both files as they are opened before it.
        min_snr: What each output is to keep, in dB.
    """
    loud = {(item.signature, item.position): item for item in verdict.outputs if item.silence is None}
    told, notes = list[str](), list[str]()
    for item in inside.outputs:
        output = loud.get((item.signature, item.position))
        if output is None or item.silence is not None or item.snr_db is None:
            continue
        if not _hides(output, item.snr_db, min_snr):
            continue
        what = f"before its last operator {output.label} keeps {item.snr_db:.1f} dB"
        if item.snr_db < min_snr:
            told.append(what)
        else:
            notes.append(f"{what}: samples of which the model is less sure keep nearer to that")
    verdict = replace(verdict, notes=(*notes, *verdict.notes))
    if not told:
        return verdict
    unseen = (*verdict.unseen, f"less sure samples ({', '.join(told)})")
    return replace(verdict, assumed=(*verdict.assumed, SURE), unseen=unseen)


def unsure_db(verdict: Verdict, min_snr: float | None) -> float:
    """Returns by how much the samples of a pass are too few to say that others keep a ratio, in dB; or 0.

    That is what an output keeps, less :attr:`OutputComparison.unsure_db`.

    Args:
        verdict: On files whose outputs were compared.
        min_snr: What each output is to keep; None where no ratio is judged.
    """
    sure = [
        item.snr_db - item.unsure_db
        for one in verdict.each
        for item in one.outputs
        if item.silence is None and item.snr_db is not None
    ]
    return 0.0 if min_snr is None or not verdict.passed or not sure else max(0.0, min_snr - min(sure))
