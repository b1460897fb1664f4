"""How much memory and scratch space the child processes may take, and who is ended when it is more."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path

SHARE_OF_MACHINE = 0.8
"""Of the memory of the machine, or of its container: what is left keeps the machine alive."""
LOOK_SECONDS = 0.02
"""Writing to new pages goes at a few GB/s: a child is some 100 MB over the limit when that is seen."""
SCRATCH_NBYTES = 256 << 20
"""Of one child's own folder. Runtimes need none; those who write temporary files write small ones."""
SCRATCH_FILES = 1000
LOOKS_A_FOLDER = 5
"""Folders and files in memory are looked at every so many times."""
# What is printed where an allocation was refused, by the C++ library, Python and the runtimes.
REFUSED = re.compile(
    r"bad_alloc|MemoryError|[Oo]ut of memory|[Cc]annot allocate memory|[Ff]ailed to allocate memory"
)


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

    Counted is what a process alone holds (anonymous memory, shared or not, and files in memory), not the
    mapped model. Where the system does not tell, nothing is watched; the limit that each child sets for
    itself remains. A process whose own folder grows too large is ended as well.

    Args:
        limit: Bytes of all of them together; None to watch folders only.
    """

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self._lock = threading.Lock()
        self._watched: dict[int, Callable[[], None]] = {}
        self._folders: dict[int, Path] = {}
        self._ended: dict[int, bool] = {}
        self._overflowed: set[int] = set()
        self._in_memory: dict[int, int] = {}
        self._running = False

    def add(self, pid: int, kill: Callable[[], None], scratch: Path | None = None) -> None:
        """Begins to watch a process, which is ended so, and its folder."""
        if (self.limit is None and scratch is None) or _held(pid) is None:
            return
        with self._lock:
            self._watched[pid] = kill
            if scratch is not None:
                self._folders[pid] = scratch
            self._ended.pop(pid, None)
            self._overflowed.discard(pid)
            # At once: a short run may be over before the thread gets its turn.
            self._end_largest()
            if not self._running:
                self._running = True
                threading.Thread(target=self._look, daemon=True).start()

    def remove(self, pid: int) -> None:
        """Forgets a process; must come before it is waited for, since its number is free then."""
        with self._lock:
            self._watched.pop(pid, None)
            self._folders.pop(pid, None)
            self._in_memory.pop(pid, None)

    def ended(self, pid: int) -> bool | None:
        """Whether a process was ended for its memory alone (True), or with what others took (False)."""
        return self._ended.get(pid)

    def overflowed(self, pid: int) -> bool:
        """Whether a process was ended for what it wrote to its folder."""
        return pid in self._overflowed

    def _look(self) -> None:
        looks = 0
        while True:
            with self._lock:
                if not self._watched:
                    self._running = False
                    return
                if looks % LOOKS_A_FOLDER == 0:
                    self._in_memory = {pid: _files_in_memory(pid) for pid in self._watched}
                    for pid in [pid for pid, folder in self._folders.items() if _is_full(folder)]:
                        self._overflowed.add(pid)
                        self._end(pid)
                looks += 1
                self._end_largest()
            time.sleep(LOOK_SECONDS)

    def _end_largest(self) -> None:
        """Ends the largest process where all of them together take more than the limit."""
        if self.limit is None:
            return
        held = {}
        for pid in self._watched:
            alone, shared = _held(pid) or (0, 0)
            # Of files in memory, what is mapped is among what is shared.
            held[pid] = alone + max(shared, self._in_memory.get(pid, 0))
        if sum(held.values()) > self.limit:
            largest = max(held, key=lambda pid: held[pid])
            self._ended[largest] = held[largest] > self.limit
            self._end(largest)

    def _end(self, pid: int) -> None:
        kill = self._watched.pop(pid)
        self._folders.pop(pid, None)
        self._in_memory.pop(pid, None)
        kill()


_HELD = re.compile(rb"^RssAnon:\s*(\d+) kB$.*^RssShmem:\s*(\d+) kB$", re.MULTILINE | re.DOTALL)


def _held(pid: int) -> tuple[int, int] | None:
    """Bytes of anonymous and of shared memory of a process; None where the system does not tell."""
    # As cheap as can be: this is asked fifty times a second of each process.
    try:
        with open(f"/proc/{pid}/status", "rb", buffering=0) as file:
            found = _HELD.search(file.read())
    except OSError:
        return None
    return None if found is None else (1024 * int(found[1]), 1024 * int(found[2]))


def _files_in_memory(pid: int) -> int:
    """Bytes of the files without a name that a process has open: no memory of its own, says the system."""
    nbytes = 0
    try:
        with os.scandir(f"/proc/{pid}/fd") as entries:
            for entry in entries:
                if str(Path(entry.path).readlink()).startswith("/memfd:"):
                    nbytes += entry.stat().st_blocks * 512
    except OSError:
        pass
    return nbytes


def _is_full(folder: Path) -> bool:
    nbytes = count = 0
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                count += 1
                nbytes += entry.stat(follow_symlinks=False).st_blocks * 512
                if nbytes > SCRATCH_NBYTES or count > SCRATCH_FILES:
                    return True
    except OSError:
        pass
    return False
