"""Files that take more memory than they may."""

from __future__ import annotations

import sys

import pytest

from tfl_rewrite.interpreter.memory import MemoryWatch, amount, default_limit
from tfl_rewrite.judge.settings import Judging
from tfl_rewrite.pipeline.verify import verify

from .. import tiny_models
from . import fake_runtime

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
MB = 10**6


@pytest.fixture
def runtime(tmp_path):
    return fake_runtime.install(tmp_path)


@pytest.mark.runtime
def test_bomb_is_named_as_input_and_as_output(tmp_path):
    bomb = tiny_models.hungry(tmp_path / "a.tflite", size=15_000)
    tame = tiny_models.hungry(tmp_path / "b.tflite", size=20)
    verdict = verify(bomb, bomb, Judging(memory_limit=400 * MB))
    assert verdict.status == "unverified" and verdict.cause == "memory"
    assert "took more memory than 400 MB while running it (call 1)" in verdict.reasons[0]
    assert verify(tame, tame, Judging(memory_limit=400 * MB)).status == "pass"


@pytest.mark.slow
def test_rewritten_that_eats_memory_fails(tmp_path, runtime):
    before = fake_runtime.model(tmp_path / "a")
    after = fake_runtime.model(tmp_path / "b", allocating=[{"eat": 700 * MB, "sleep": 5}])
    verdict = verify(before, after, Judging(runtime=runtime, memory_limit=300 * MB))
    assert verdict.status == "fail" and verdict.cause == "memory"
    assert "took more memory than 300 MB while allocating its tensors" in verdict.reasons[0]
    assert verdict.seconds < 20


@pytest.mark.runtime
def test_refused_allocation_is_named_too(tmp_path, runtime):
    # More at once than the child lets itself have: nothing of it is ever touched. The real runtime gives no
    # reason then.
    bomb = tiny_models.hungry(tmp_path / "huge.tflite", size=20_000)
    verdict = verify(bomb, bomb, Judging(memory_limit=400 * MB))
    assert verdict.status == "unverified" and verdict.cause == "memory"
    assert "it reserves much more than it may (RuntimeError)" in verdict.reasons[0]
    before = fake_runtime.model(tmp_path / "a")
    after = fake_runtime.model(tmp_path / "b", running=[{"eat": 60_000 * MB}])
    verdict = verify(before, after, Judging(runtime=runtime, memory_limit=300 * MB))
    assert verdict.status == "fail" and verdict.cause == "memory"
    assert "MemoryError" in verdict.reasons[0]


@pytest.mark.slow
def test_two_that_fit_one_after_the_other_are_run_so(tmp_path, runtime):
    file = fake_runtime.model(tmp_path / "a", allocating=[{"eat": 250 * MB, "sleep": 0.5}])
    verdict = verify(file, file, Judging(runtime=runtime, memory_limit=420 * MB))
    assert verdict.status == "pass", verdict.reasons
    assert verdict.notes == ()


def test_watch_sees_no_process_that_is_gone():
    watch = MemoryWatch(100)
    watch.add(2**22 + 1, lambda: None)
    assert watch.ended(2**22 + 1) is None


def test_default_is_a_share_of_the_machine():
    limit = default_limit()
    assert limit is not None and 10**8 < limit < 10**14


def test_amounts_print():
    assert [amount(value) for value in (4 * 10**9, 300 * MB)] == ["4.0 GB", "300 MB"]
