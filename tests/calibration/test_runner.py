"""The process that runs a model for its activations: what happens when it dies."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from tfl_rewrite.calibration.probe import Runner
from tfl_rewrite.interpreter.memory import MemoryWatch
from tfl_rewrite.interpreter.process import RuntimeChoice
from tfl_rewrite.interpreter.worker import ModelFailed


@pytest.mark.runtime
def test_a_process_that_died_is_started_again(fixtures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Runner(RuntimeChoice.parse("litert"), timeout=20) as runner:
        runner.open(fixtures / "dense.tflite")
        child: Any = runner.worker._child
        child._process.kill_group()
        child._process.wait()
        # The pipe ends before the system says that the process did.
        monkeypatch.setattr(child._process, "poll", lambda: None)
        with pytest.raises(ModelFailed, match="died"):
            runner.open(fixtures / "dense.tflite")
        runner.open(fixtures / "dense.tflite")
        assert runner.worker._child is not child


@pytest.mark.runtime
def test_a_process_that_takes_too_much_memory_is_ended(fixtures: Path) -> None:
    runner = Runner(RuntimeChoice.parse("litert"), timeout=20, watch=MemoryWatch(1 << 20))
    with runner, pytest.raises(ModelFailed, match="took more memory than 1 MB"):
        # One request of a small model may be over before anybody looks.
        for _ in range(1000):
            runner.open(fixtures / "dense.tflite")


@pytest.mark.runtime
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
def test_a_process_that_died_between_two_requests_is_watched_no_more(fixtures: Path) -> None:
    watch = MemoryWatch(1 << 40)
    with Runner(RuntimeChoice.parse("litert"), timeout=20, watch=watch) as runner:
        runner.open(fixtures / "dense.tflite")
        old: Any = runner.worker._child
        old._process.kill_group()
        old._process.wait()
        runner.open(fixtures / "dense.tflite")
        # Its number may be somebody else's by now.
        new: Any = runner.worker._child
        assert set(watch._watched) == {new.pid} != {old.pid}
