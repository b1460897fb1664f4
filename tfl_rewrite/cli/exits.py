"""How the program ends when a signal comes."""

from __future__ import annotations

import signal

INTERRUPTED = 130


class Terminated(BaseException):
    """One of those: unwinds like an interrupt, so that files and children are cleaned up."""

    def __init__(self, number: signal.Signals) -> None:
        self.number = number
