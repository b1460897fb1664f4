"""How the program ends."""

from __future__ import annotations

import signal

INTERRUPTED = 130

EXIT_CODES = (
    "Exit codes: 0 done, or nothing to do; 2 usage, or a file cannot be read or written; 3 refused as "
    "unsupported; 4 a judgement failed: outputs differ beyond the tolerance, no file keeps the budget, or "
    "doctor found an error; 5 the input is damaged or unsound; 130 interrupted (143 by SIGTERM, 129 by "
    "SIGHUP). No model is written unless it is 0; batch keeps the files that are done."
)
"""What each means; 1 is never meant."""


class Terminated(BaseException):
    """One of those: unwinds like an interrupt, so that files and children are cleaned up."""

    def __init__(self, number: signal.Signals) -> None:
        self.number = number
