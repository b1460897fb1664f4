"""What long work is allowed and whom it tells: a number of threads, and a hook for progress.

Whoever starts the work says so once, around it; passes and layers below ask for :func:`current`.

Where many small matrices are multiplied, threads of our own over layers do more than those of BLAS within one
product, and both together are in each other's way: measured on two busy processors, 12 to 14 s with two BLAS
threads and 5 s with one. The command line asks BLAS for one thread before numpy is loaded; a program that
uses this package keeps its own, but for :func:`one_blas_thread`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar, cast

Item = TypeVar("Item")
Made = TypeVar("Made")
Progress = Callable[[str, int, int], None]
"""Called with what is going on, and how many of how many bytes are done."""


THREADS_FROM_NBYTES = 1 << 20
"""What goes through fewer bytes takes less time than to start threads for it."""


@dataclass(frozen=True, slots=True)
class Work:
    """The conditions of some work.

    Attributes:
        wanted_threads: 0 for one per processor.
        progress: None where nobody wants to know.
    """

    wanted_threads: int = 0
    progress: Progress | None = None

    @property
    def threads(self) -> int:
        """How many threads may run at once; at least 1."""
        return self.wanted_threads or os.cpu_count() or 1

    def each(self, function: Callable[[Item], Made], items: Sequence[Item], *, nbytes: int) -> list[Made]:
        """Calls a function with each of some items, several at a time; returns what it returns, in order.

        The calling thread takes its share. Plain threads: to load ``concurrent.futures`` takes longer than
        what they do in a file of some megabytes.

        Args:
            function: What to do with one. After one that fails no other is begun, and the error of the first
                in order is raised.
            items: Any number.
            nbytes: That all of them go through together.
        """
        count = min(self.threads, len(items))
        if count < 2 or nbytes < THREADS_FROM_NBYTES:
            return [function(item) for item in items]
        made: dict[int, Made] = {}
        failed: dict[int, BaseException] = {}
        left = enumerate(items)
        lock = threading.Lock()

        def take() -> None:
            place = -1
            try:
                while not failed:
                    with lock:
                        place, item = next(left, (-1, None))
                    if place < 0:
                        return
                    made[place] = function(cast(Item, item))
            except BaseException as error:
                # What ends the program comes before all else.
                failed[place if isinstance(error, Exception) else -1] = error

        threads = [threading.Thread(target=take) for _ in range(count - 1)]
        try:
            for thread in threads:
                thread.start()
        except RuntimeError:
            # The system has no more of them: those that run do the rest.
            pass
        except BaseException as error:
            failed[-1] = error
        take()
        # None may go on with what the caller closes.
        running = [thread for thread in threads if thread.ident is not None]
        while running:
            try:
                running[-1].join()
                running.pop()
            except BaseException as error:
                failed[-1] = error
        if failed:
            raise failed[min(failed)]
        return [made[place] for place in range(len(items))]

    def say(self, what: str) -> None:
        """Tells what is going on, where that is not counted in bytes."""
        if self.progress is not None:
            self.progress(what, 0, 0)

    def stage(self, what: str, total: int) -> Stage:
        """Begins a part of the work.

        Args:
            what: Its name, for people.
            total: Bytes to go through.
        """
        return Stage(what, total, self.progress)


class Stage:
    """Counts the bytes of one part of the work, from any thread.

    Args:
        what: Its name, for people.
        total: Bytes to go through.
        progress: Called after each step, by one thread at a time.
    """

    __slots__ = ("_done", "_lock", "_progress", "total", "what")

    def __init__(self, what: str, total: int, progress: Progress | None) -> None:
        self.what = what
        self.total = total
        self._progress = progress
        self._done = 0
        self._lock = threading.Lock()

    def tick(self, nbytes: int) -> None:
        """Counts bytes that are done."""
        if self._progress is None:
            return
        with self._lock:
            self._done += nbytes
            self._progress(self.what, self._done, self.total)


BLAS_THREADS = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
"""Environment variables that BLAS libraries read when they are loaded."""


@contextlib.contextmanager
def blas_environment() -> Iterator[None]:
    """Asks BLAS for one thread, in this process if numpy is not loaded yet, and in those that it starts.

    What the user has set stays.
    """
    added = [name for name in BLAS_THREADS if name not in os.environ]
    os.environ.update(dict.fromkeys(added, "1"))
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


_limit_lock = threading.Lock()
_limited: list[Any] = []


@contextlib.contextmanager
def one_blas_thread() -> Iterator[None]:
    """Keeps BLAS to one thread while something is computed; the whole process, and any number at a time.

    So results do not depend on how many threads BLAS would take, and what the process had before comes back
    when the last one leaves.
    """
    from threadpoolctl import threadpool_limits

    with _limit_lock:
        if not _limited:
            _limited.append(threadpool_limits(limits=1, user_api="blas"))
        _limited.append(None)
    try:
        yield
    finally:
        with _limit_lock:
            _limited.pop()
            if len(_limited) == 1:
                _limited.pop().restore_original_limits()


_CURRENT: ContextVar[Work] = ContextVar("work", default=Work())  # noqa: B039 - it cannot be changed


def current() -> Work:
    """Returns the conditions of the work that is going on; to be asked before threads are started."""
    return _CURRENT.get()


@contextlib.contextmanager
def working(*, threads: int = 0, progress: Progress | None = None) -> Iterator[Work]:
    """Sets the conditions for what is done inside of it."""
    made = Work(threads, progress)
    token = _CURRENT.set(made)
    try:
        yield made
    finally:
        _CURRENT.reset(token)


# Locks on files that a process holds for as long as it lives.
#
# A lock is on a file, not on its name: whoever opens a file and then locks it may hold what another process
# has removed meanwhile. So a lock counts only if, once it is taken, the name still leads to that very file.

_TAKEN = (errno.EWOULDBLOCK, errno.EACCES)


def lock(descriptor: int, *, without: bool = False) -> bool:
    """Locks an open file for this process alone, without waiting.

    Args:
        descriptor: The open file. The system lets go of it when the last copy of the descriptor is closed,
            however the process ends.
        without: What to return on a file system that has no locks.

    Returns:
        Whether it is locked; False if another process holds it.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return without and error.errno not in _TAKEN
    return True


def leads_to(name: str | os.PathLike[str], descriptor: int, *, folder: int | None = None) -> bool:
    """Whether a name is still that of an open file or folder, and no symbolic link.

    Args:
        name: A path, or a name in ``folder``.
        descriptor: The open file.
        folder: Descriptor of the folder that ``name`` counts from.
    """
    try:
        found = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except OSError:
        return False
    own = os.fstat(descriptor)
    return (found.st_dev, found.st_ino) == (own.st_dev, own.st_ino)


def opened_folder(path: str | os.PathLike[str], *, folder: int | None = None) -> int:
    """Opens a folder that is no symbolic link; the descriptor is the caller's to close.

    Args:
        path: A path, or a name in ``folder``.
        folder: Descriptor of the folder that ``path`` counts from.

    Raises:
        NotADirectoryError: It is something else.
        OSError: There is none, or it cannot be read.
    """
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path) from None
        raise


def aside(call: Callable[[], Made]) -> Made:
    """Returns what a call returns that stays long in somebody else's code, which no signal can end.

    Python answers signals in the main thread, between two steps of its own. So such a call runs in another
    one; if a signal ends the wait, nobody reads what it comes to, and it does not keep the process.

    Args:
        call: Lets other threads run meanwhile, and writes nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        return call()
    made: list[Made] = []
    failed: list[BaseException] = []

    def take() -> None:
        try:
            made.append(call())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=take, daemon=True)
    try:
        thread.start()
    except RuntimeError:
        # The system has no more of them.
        take()
    else:
        thread.join()
    if failed:
        raise failed[0]
    return made[0]


# Signals that wait while something is done that must be done wholly or not at all.

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


def signal_of(stop: BaseException | None) -> signal.Signals:
    """Returns the signal that an interrupt came of: its first argument; without any, that of Ctrl-C."""
    number: signal.Signals = next(iter(getattr(stop, "args", ())), signal.SIGINT)
    return number


def _deliver(noted: list[Any]) -> None:
    for number in dict.fromkeys(noted):
        signal.raise_signal(number)
