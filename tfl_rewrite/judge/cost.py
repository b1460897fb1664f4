"""What a call of a rewritten file costs beside one of the original, as the runs that judge it show."""

from __future__ import annotations

from collections.abc import Sequence

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
