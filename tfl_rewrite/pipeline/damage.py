"""Which constants did the damage when a rewritten model was refused, and what would be accepted.

Each constant is rewritten alone and the file is run against the same reference; then the worst are stored
finer, more and more of them, until the rest passes. All of it is measured.
"""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from tfl_rewrite.editing.base import Context, Pass, PassResult, last_packing, run_passes
from tfl_rewrite.errors import TflRewriteError
from tfl_rewrite.files.source import Source, save
from tfl_rewrite.judge.judge import Judge
from tfl_rewrite.judge.verdict import Verdict
from tfl_rewrite.pipeline.report import Culprit, Damage, Finer, Place, RewriteFailed
from tfl_rewrite.weights.candidates import UNNAMED
from tfl_rewrite.work import current, working

Levels = Mapping[Place, int]
"""How much finer constants are stored than was asked for; see :attr:`Pass.finer`."""
T = TypeVar("T")


def refiners(passes: Sequence[Pass]) -> list[int]:
    """Returns the numbers of the passes that can store single constants finer."""
    return [number for number, item in enumerate(passes) if item.finer]


def refined(passes: Sequence[Pass], levels: Levels) -> list[Pass]:
    """Returns the passes with some constants stored finer."""
    made = list(passes)
    for number in refiners(passes):
        # What an earlier pass leaves alone, a later one must not take up.
        own = {position: level for (owner, position), level in levels.items() if owner <= number and level}
        made[number] = made[number].refined(own)
    return made


class Trials:
    """Files with some constants stored finer, judged by one judge that has run the original already.

    Args:
        source: The original.
        passes: What was refused.
        results: What they did.
        judge: Judges what is made.
        path: Where the files are made, one after the other.
        context: What the passes may use.

    Attributes:
        names: Of the constants that were changed; those that lost most themselves first.
        nbytes: Of the last file.
        nbytes_before: Of the original.
    """

    def __init__(
        self,
        source: Source,
        passes: Sequence[Pass],
        results: Sequence[PassResult],
        judge: Judge,
        path: Path,
        context: Context,
    ) -> None:
        self._source = source
        self.passes = passes
        self._results = results
        self._judge = judge
        self._path = path
        self._context = context
        self.nbytes = 0
        self.nbytes_before = source.nbytes
        found: list[tuple[float, Place, str]] = []
        for number in refiners(passes):
            for change in results[number].changes:
                position = getattr(change, "buffer", None)
                if position is not None:
                    found.append((getattr(change, "snr", math.inf), (number, position), change.where))
        self.names: dict[Place, str] = {}
        for _, place, name in sorted(found):
            self.names.setdefault(place, name)

    def top(self, place: Place) -> int:
        """The level at which a constant is as it was."""
        return len(self.passes[place[0]].finer)

    def form(self, place: Place, level: int) -> str:
        """What a constant is stored as at a level above 0."""
        return self.passes[place[0]].finer[min(level, self.top(place)) - 1]

    def finer(
        self, levels: Levels, culprits: Sequence[Culprit], results: Sequence[PassResult]
    ) -> tuple[Finer, ...]:
        """Returns what is stored finer at some levels.

        Args:
            culprits: What was measured.
            results: What the passes did at these levels.
        """
        stored = [_nbytes_stored(made, self.names) for made in (self._results, results)]
        costs = {item.place: item.snr for item in culprits}
        return tuple(
            Finer(
                self.names[place],
                self.form(place, level),
                stored[1].get(place, 0) - stored[0].get(place, 0),
                costs.get(place),
            )
            for place, level in levels.items()
            if level
        )

    def at(self, level: int, places: Iterable[Place]) -> dict[Place, int]:
        """The levels with some constants at one of them; all others are as was asked for."""
        return {place: min(level, self.top(place)) for place in places}

    def judge(self, levels: Levels) -> Verdict | None:
        """Makes a file and runs it; None if that changes nothing, or cannot be made."""
        model = self._source.model()
        # What the trials are for has been said; how far each of them is says nothing about that.
        with working(threads=current().threads):
            try:
                results = run_passes(model, refined(self.passes, levels), self._context)
            except TflRewriteError:
                return None
            if not any(result.modified for result in results):
                return None
            self.nbytes = save(model, self._path, force=True, packing=last_packing(results))
        return self._judge.compare(self._path)


def _nbytes_stored(results: Sequence[PassResult], places: Iterable[Place]) -> dict[Place, int]:
    """Returns how many bytes constants saved less."""
    found = dict.fromkeys(places, 0)
    for number, result in enumerate(results):
        for change in result.changes:
            place = number, getattr(change, "buffer", -1)
            if place in found:
                found[place] -= getattr(change, "saved", 0)
    return found


def measure_damage(trials: Trials, *, seconds: float) -> Damage:
    """Finds the constants whose new form costs most.

    Args:
        trials: Of the rewrite that was refused.
        seconds: How long to search; half for the constants, half for a set to spare. What is found depends
            on the machine, so it is told and no file is made of it.
    """
    clock = _Clock(seconds)
    names = trials.names
    found = Damage((), len(names))
    only = trials.passes[0] if len(trials.passes) == 1 else None
    if only is not None and only.expanding and clock.allows(1.0):
        with clock:
            verdict = trials.judge(trials.at(1, names))
        if verdict is not None and verdict.passed:
            found = replace(found, expanded=(verdict.worst_snr(), trials.nbytes))
    culprits: list[Culprit] = []
    for place in names:
        if not clock.allows(0.6):
            break
        with clock:
            culprits += measured_alone(trials, place)
    culprits.sort(key=lambda item: item.severity)
    found = replace(found, culprits=tuple(culprits), unmeasured=len(names) - len(culprits))
    count = 1
    while count < len(culprits) and clock.allows(1.0):
        with clock:
            verdict = trials.judge(trials.at(_TOP, (item.place for item in culprits[:count])))
        if verdict is not None and verdict.passed:
            spare = tuple(item.tensor for item in culprits[:count])
            if any(name == UNNAMED for name in spare):
                # No pattern can leave it out.
                break
            return replace(found, spare=spare, nbytes=trials.nbytes, snr=verdict.worst_snr())
        count = count + 1 if count < 4 else count * 2
    return found


def with_damage(failed: RewriteFailed, trials: Trials, *, seconds: float) -> RewriteFailed:
    """Adds to a refusal what did it, and what would be accepted; see :func:`measure_damage`."""
    damage = measure_damage(trials, seconds=seconds)
    failed.report = replace(failed.report, damage=damage)
    if len(trials.passes) == 1 and trials.passes[0].excluding:
        failed.remedy = damage.remedy(trials.passes[0])
    return failed


def measured_alone(trials: Trials, place: Place) -> list[Culprit]:
    """Rewrites one constant and leaves all others as they are; returns nothing where that is no file."""
    verdict = _alone(trials, [place])
    if verdict is None:
        return []
    return [Culprit(trials.names[place], place, verdict.worst_snr(), verdict.short_db())]


def _alone(trials: Trials, places: Collection[Place]) -> Verdict | None:
    """Rewrites some constants and leaves all others as they are."""
    return trials.judge(trials.at(_TOP, (other for other in trials.names if other not in places)))


def _noise(snr: float | None, short: float) -> float:
    """Returns noise over signal of the worst output; infinite where anything fails that is asked for."""
    return math.inf if snr is None or short > 0 else 10.0 ** (-snr / 10.0)


_TOP = 99
"""A level that no pass has: the constant as it was."""

MOST_MEASURED, MEASURED_NBYTES = 64, 512 << 20
"""So many files are made for a rescue to find the worst constants, and no more than have so many bytes.

Counted, not timed: what is written must not depend on how busy the machine is.
"""


def most_measured(nbytes: int) -> int:
    """Returns how many files are made of a model of so many bytes, to find its worst constants."""
    return min(MOST_MEASURED, MEASURED_NBYTES // max(1, nbytes))


def rescue(order: Sequence[T], top: int, passes: Callable[[Mapping[T, int]], bool]) -> dict[T, int]:
    """Finds how few constants have to be stored how much finer for a file to pass.

    The lowest level at which all together pass is found first; then how few of the worst have to be at it;
    then how few of those, if the others are at the level below. About 2 log2(n) files are made.

    Args:
        order: The constants, the worst first.
        top: The level at which all are as they were, which passes.
        passes: Whether a file passes with some of them at these levels and all others at 0.
    """
    level = next((number for number in range(1, top) if passes(dict.fromkeys(order, number))), top)
    count = _fewest(len(order), lambda few: passes(dict.fromkeys(order[:few], level)))
    found = dict.fromkeys(order[:count], level)
    if level > 1:
        below = dict.fromkeys(order[:count], level - 1)
        few = _fewest(count, lambda some: passes(below | dict.fromkeys(order[:some], level)))
        found = below | dict.fromkeys(order[:few], level)
    return found


def _fewest(most: int, passes: Callable[[int], bool]) -> int:
    """Returns the least count from 1 to ``most`` that passes; ``most`` itself does."""
    low, high = 1, most
    while low < high:
        middle = (low + high) // 2
        if passes(middle):
            high = middle
        else:
            low = middle + 1
    return high


_LEFT = 0.5
"""Of the noise that is allowed: what all constants make together that are not looked for any more."""


def most_costly(trials: Trials, refused: Verdict) -> list[Culprit]:
    """Measures the constants that may cost most alone; returns them, the worst first.

    Noises add up, so a group with a loud one in it is loud: the loudest is cut in halves, each rewritten
    without all else, until those that were not singled out are not too loud together. Constants that lost
    much themselves are neighbours. How many files are made follows from the size of one
    (:func:`most_measured`).

    Args:
        trials: Of the rewrite that was refused.
        refused: What was said of it.
    """
    places, files = list(trials.names), most_measured(trials.nbytes_before)
    if len(places) == 1:
        return measured_alone(trials, places[0])
    short, snr = refused.short_db(), refused.worst_snr()
    allowed = 0.0
    if snr is not None and math.isfinite(short):
        allowed = _LEFT * 10.0 ** (-(snr + short) / 10.0)
    culprits: list[Culprit] = []
    # Neighbours in the list of places, the loudest first: less the noise, begin and end.
    groups = [(-math.inf, 0, len(places))]
    while groups and files > 0 and -sum(group[0] for group in groups) > allowed:
        _, begin, end = heapq.heappop(groups)
        middle = (begin + end) // 2
        for first, last in ((begin, middle), (middle, end)) if end - begin > 1 else ():
            if last - first == 1:
                found = measured_alone(trials, places[first])
                culprits += found
                noise = max((_noise(item.snr, item.short) for item in found), default=0.0)
            else:
                verdict = _alone(trials, places[first:last])
                noise = math.inf if verdict is None else _noise(verdict.worst_snr(), verdict.short_db())
            heapq.heappush(groups, (-noise, first, last))
            files -= 1
    return sorted(culprits, key=lambda item: item.severity)


def rescues(trials: Trials, culprits: Sequence[Culprit]) -> Iterator[dict[Place, int]]:
    """Yields levels at which the file passes, as far as was measured, then finer and finer ones.

    The search saw one judge only, and each file once.

    Args:
        culprits: As for :func:`find_rescue`.
    """
    levels = find_rescue(trials, culprits)
    yield levels
    while any(levels.get(place, 0) < trials.top(place) for place in trials.names):
        levels = {place: min(levels.get(place, 0) + 1, trials.top(place)) for place in trials.names}
        yield levels


def find_rescue(trials: Trials, culprits: Sequence[Culprit]) -> dict[Place, int]:
    """Finds how finely constants have to be stored for the file to pass; see :func:`rescue`.

    Args:
        culprits: Those that were measured alone, the worst first; others follow as :attr:`Trials.names` has
            them.
    """
    measured = dict.fromkeys(item.place for item in culprits)
    order = list(measured | dict.fromkeys(trials.names))
    top = max(trials.top(place) for place in order)

    def passes(levels: Mapping[Place, int]) -> bool:
        verdict = trials.judge({place: min(level, trials.top(place)) for place, level in levels.items()})
        return verdict is not None and verdict.passed

    found = rescue(order, top, passes)
    return {place: min(level, trials.top(place)) for place, level in found.items()}


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
