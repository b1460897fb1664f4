"""Signals that have to wait; work for threads."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from tfl_rewrite.work import THREADS_FROM_NBYTES, Work, held_back


class Ended(BaseException):
    pass


@pytest.fixture
def ending():
    """SIGTERM unwinds, as in the program."""

    def end(_number, _frame):
        raise Ended

    before = signal.signal(signal.SIGTERM, end)
    yield end
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Ended)])
def test_they_come_afterwards(ending, number, error):
    before = signal.getsignal(number)
    done = []
    # Another thread, so that the system has somebody to give the signal to.
    idle = threading.Event()
    thread = threading.Thread(target=idle.wait)
    thread.start()
    try:
        with pytest.raises(error), held_back():
            os.kill(os.getpid(), number)
            for _ in range(20):
                time.sleep(0.005)
            done.append("all of it")
    finally:
        idle.set()
        thread.join()
    assert done == ["all of it"] and signal.getsignal(number) is before


def test_none_came(ending):
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with held_back():
        pass
    with pytest.raises(ValueError, match="own"), held_back():
        raise ValueError("own")
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_a_hang_up_waits_too():
    before = signal.signal(signal.SIGHUP, lambda _number, _frame: done.append("hung up"))
    done = []
    try:
        with held_back():
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.02)
            done.append("all of it")
    finally:
        signal.signal(signal.SIGHUP, before)
    assert done == ["all of it", "hung up"]


def test_one_inside_another(ending):
    done = []
    with pytest.raises(Ended), held_back():
        with held_back():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.02)
        done.append("outer")
    assert done == ["outer"]


def test_what_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with held_back():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.02)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_another_thread_is_left_alone():
    found = []

    def inside():
        with held_back():
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert found == [signal.getsignal(signal.SIGINT)]


@pytest.mark.parametrize(
    ("threads", "items", "nbytes", "others"),
    [
        (2, 6, THREADS_FROM_NBYTES, True),
        (2, 6, THREADS_FROM_NBYTES - 1, False),
        (1, 6, THREADS_FROM_NBYTES, False),
        (2, 1, THREADS_FROM_NBYTES, False),
    ],
)
def test_only_what_is_worth_them_is_done_by_threads(threads, items, nbytes, others):
    met = []

    def double(item):
        met.append(threading.get_ident())
        time.sleep(0.01)
        return 2 * item

    made = Work(wanted_threads=threads).each(double, range(items), nbytes=nbytes)
    assert made == [2 * item for item in range(items)]
    assert threading.get_ident() in met and len(set(met)) == (threads if others else 1)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_no_thread_goes_on_where_another_does_not_start(error, monkeypatch):
    start, done = threading.Thread.start, []

    def second_fails(thread):
        if threading.active_count() > before:
            raise error("no more threads")
        start(thread)

    def slow(item):
        time.sleep(0.01)
        done.append(item)
        return item

    before = threading.active_count()
    monkeypatch.setattr(threading.Thread, "start", second_fails)
    each = Work(wanted_threads=3).each
    if error is RuntimeError:
        assert each(slow, range(6), nbytes=THREADS_FROM_NBYTES) == list(range(6))
    else:
        with pytest.raises(error):
            each(slow, range(6), nbytes=THREADS_FROM_NBYTES)
    assert threading.active_count() == before


@pytest.mark.parametrize("nbytes", [0, THREADS_FROM_NBYTES])
def test_what_one_of_them_raises_comes_out(nbytes):
    def fail(item):
        raise KeyError(item)

    with pytest.raises(KeyError, match="1"):
        Work(wanted_threads=2).each(fail, [1, 2, 3], nbytes=nbytes)


def test_after_one_that_fails_no_other_is_begun():
    begun = []

    def fail(item):
        begun.append(item)
        time.sleep(0.01 if item else 0)
        raise KeyError(item) if item else KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Work(wanted_threads=2).each(fail, range(9), nbytes=THREADS_FROM_NBYTES)
    assert len(begun) <= 2
