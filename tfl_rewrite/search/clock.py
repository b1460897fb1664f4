"""The time limit of a search."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field


class TimeIsUp(Exception):
    """The time limit was reached."""


_MORE_SECONDS, _MORE_WORK = 240.0, 60.0
"""What must not be left out may take so long beyond the time limit, and so many seconds of this processor."""
_BEGUN = 2.0
"""So much of both has what began in them: given up, it was for nothing.

A face model of 4 MB takes 13 to 43 seconds of processor time for each file that is fitted, and the third is
the first to keep its bounds, after 90.
"""


@dataclass(slots=True, eq=False)
class Clock:
    """Ends a search that takes too long. What a search does, and in which order, depends on no clock.

    Attributes:
        limit: Seconds, or None.
        share: Of them, what the search at hand may take.
        reserved: Seconds of the limit that are left for what comes after all searches.
        now: Tells the time, in seconds.
        work: Tells the processor time of this process, in seconds: it does not grow while others are busy.
    """

    limit: float | None = None
    share: float = 1.0
    reserved: float = 0.0
    now: Callable[[], float] = time.monotonic
    work: Callable[[], float] = time.process_time
    started: float = field(init=False)
    _extended: bool = field(init=False, default=False)
    _begun: bool = field(init=False, default=False)
    _interrupts: bool = field(init=False, default=False)
    _worked: float | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.started = self.now()

    @property
    def spent(self) -> float:
        """Seconds since the search began."""
        return self.now() - self.started

    @property
    def overrun(self) -> float:
        """Seconds that the search took beyond its limit."""
        return 0.0 if self.limit is None else max(0.0, self.spent - self.limit)

    @property
    def used(self) -> float:
        """How much of its time the search at hand has used, from 0 to 1 and beyond; 0 without a limit."""
        return 0.0 if self.limit is None else self.spent / ((self.limit - self.reserved) * self.share)

    @property
    def left(self) -> float:
        """Seconds until the search is to end; infinite without a limit, and less than 0 beyond it."""
        return math.inf if self.limit is None else (self.limit - self.reserved) * self.share - self.spent

    def reserve(self) -> None:
        """Leaves time for the last verdict, which opens the original as the search did, on fewer samples.

        To be called once the search has opened it. On five models the verdict took a third to three quarters
        as long.
        """
        if self.limit is not None:
            self.reserved = min(self.spent / 2, self.limit / 4)

    def check(self, *, spare: float = 0.0) -> None:
        """Raises :class:`TimeIsUp` when all of the time but ``spare`` seconds is used up."""
        if self.is_past(spare=spare):
            raise TimeIsUp

    def is_past(self, *, spare: float = 0.0) -> bool:
        """Whether all of the time but ``spare`` seconds is used up."""
        late = spare - self.left
        if late <= 0 or not self._extended:
            return late > 0
        if self._worked is None:
            self._worked = self.work()
        share = _BEGUN if self._begun else 1.0
        return late > _MORE_SECONDS * share or self.work() - self._worked > _MORE_WORK * share

    def interrupt(self) -> None:
        """Raises :class:`TimeIsUp` in the middle of what is :meth:`interruptible`, like :meth:`check`."""
        if self._interrupts:
            self.check()

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Lets the end of the time end one file, too; elsewhere what was decided on is made."""
        before, self._interrupts = self._interrupts, True
        try:
            yield
        finally:
            self._interrupts = before

    @contextlib.contextmanager
    def extended(self, *, begun: bool = False) -> Iterator[None]:
        """Lets what must not be left out go on beyond the limit, for a while.

        Args:
            begun: Whether it is under way, and for nothing unless it comes to its end.
        """
        before = self._extended, self._begun
        self._extended, self._begun = True, begun or self._begun
        try:
            yield
        finally:
            self._extended, self._begun = before
