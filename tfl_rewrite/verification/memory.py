"""How much memory the child processes may take together, and who is ended when it is more."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from pathlib import Path

from ..errors import UsageError
from .interface import printable

SHARE_OF_MACHINE = 0.8
"""Of the memory of the machine, or of its container: what is left keeps the machine alive."""
LOOK_SECONDS = 0.02
"""Writing to new pages goes at a few GB/s: a child is some 100 MB over the limit when that is seen."""
LEAST_NBYTES = 64 << 20
"""Python, numpy and an interpreter without any model take nearly that."""
# What is printed where an allocation was refused, by the C++ library, Python and the runtimes.
REFUSED = re.compile(
    r"bad_alloc|MemoryError|[Oo]ut of memory|[Cc]annot allocate memory|[Ff]ailed to allocate memory"
)

_UNITS = {"": 1, "B": 1, **{f"{prefix}B": 1000**power for power, prefix in enumerate("KMGT", 1)}}
_UNITS |= {f"{prefix}IB": 1024**power for power, prefix in enumerate("KMGT", 1)}


def parse_memory(text: int | str) -> int:
    """Reads an amount of memory: bytes, or text such as ``4GB`` (decimal) or ``512MiB`` (binary).

    Raises:
        UsageError: It is no amount, or too little for an interpreter without any model.
    """
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,6})?)\s*([A-Za-z]*)", str(text).strip())
    unit = _UNITS.get(match[2].upper()) if match else None
    if match is None or unit is None:
        raise UsageError(
            f"{printable(str(text), limit=40)!r} is not an amount of memory",
            remedy="give such as 4GB or 512MiB",
        )
    nbytes = int(float(match[1]) * unit)
    if nbytes < LEAST_NBYTES:
        raise UsageError(
            f"an interpreter needs more than {nbytes} bytes of memory",
            remedy=f"give {LEAST_NBYTES >> 20}MiB or more",
        )
    return nbytes


def default_limit() -> int | None:
    """Bytes that all children of one judge may take when nothing was asked; None if nothing is known."""
    amounts = []
    try:
        amounts.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):
        pass
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            amounts.append(int(Path(path).read_text(encoding="ascii")))
        except (OSError, ValueError):
            continue
    return int(min(amounts) * SHARE_OF_MACHINE) if amounts else None


def amount(nbytes: int) -> str:
    """Formats bytes for a sentence."""
    return f"{nbytes / 1e9:.1f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:.0f} MB"


class MemoryWatch:
    """Looks at the memory of some processes while they run and ends the largest when it is too much.

    Counted is what a process alone holds (anonymous memory), not the mapped model. Where the system does
    not tell, nothing is watched; the limit that each child sets for itself remains.

    Args:
        limit: Bytes of all of them together; None to watch nothing.
    """

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self._lock = threading.Lock()
        self._watched: set[int] = set()
        self._ended: dict[int, bool] = {}
        self._running = False

    def add(self, pid: int) -> None:
        """Begins to watch a process; it must lead a group of its own."""
        if self.limit is None or _held(pid) is None:
            return
        with self._lock:
            self._watched.add(pid)
            self._ended.pop(pid, None)
            if not self._running:
                self._running = True
                threading.Thread(target=self._look, daemon=True).start()

    def remove(self, pid: int) -> None:
        """Forgets a process; must come before it is waited for, since its number is free then."""
        with self._lock:
            self._watched.discard(pid)

    def ended(self, pid: int) -> bool | None:
        """Whether a process was ended for its memory alone (True), or with what others took (False)."""
        return self._ended.get(pid)

    def _look(self) -> None:
        page = os.sysconf("SC_PAGE_SIZE")
        while True:
            with self._lock:
                if not self._watched:
                    self._running = False
                    return
                held = {pid: page * (_held(pid) or 0) for pid in self._watched}
                assert self.limit is not None
                if sum(held.values()) > self.limit:
                    largest = max(held, key=lambda pid: held[pid])
                    self._ended[largest] = held[largest] > self.limit
                    self._watched.discard(largest)
                    try:
                        os.killpg(largest, signal.SIGKILL)
                    except (ProcessLookupError, PermissionError):
                        pass
            time.sleep(LOOK_SECONDS)


def _held(pid: int) -> int | None:
    """Pages of anonymous memory of a process; None where the system does not tell."""
    try:
        fields = Path(f"/proc/{pid}/statm").read_bytes().split()
        return int(fields[1]) - int(fields[2])
    except (OSError, ValueError, IndexError):
        return None
