"""Signals that wait while something is done that must be done wholly or not at all."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

_HELD = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Lets SIGINT, SIGTERM and SIGHUP wait until the end; nothing is lost.

    A mask would not do: what one thread blocks the system delivers to another, and Python runs the handler
    in the main thread at once. So the handlers themselves are put aside. Other threads are never disturbed
    by a handler, so there nothing is done.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    noted: list[int] = []
    with contextlib.ExitStack() as stack:
        # Run last: what waited is delivered when every handler is back.
        stack.callback(_deliver, noted)
        for number in _HELD:
            previous = signal.getsignal(number)
            if previous is not None:
                stack.callback(signal.signal, number, previous)
                signal.signal(number, lambda received, _frame: noted.append(received))
        yield


def _deliver(noted: list[Any]) -> None:
    for number in dict.fromkeys(noted):
        signal.raise_signal(number)
