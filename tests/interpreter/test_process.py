"""The child process that speaks JSON lines: what is heard of it, and what is left when it ends."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from tfl_rewrite.errors import UsageError
from tfl_rewrite.interpreter.memory import MemoryWatch
from tfl_rewrite.interpreter.process import Child, RuntimeChoice
from tfl_rewrite.interpreter.scratch import Scratch
from tfl_rewrite.interpreter.worker import Worker

from . import fake_runtime

pytestmark = pytest.mark.slow

ECHO = """
import sys
print("no JSON", "[1]", '{"hello": 1}', sep="\\n", flush=True)
print("some words", file=sys.stderr, flush=True)
for line in sys.stdin:
    print(line, end="", flush=True)
"""
SECONDS = 60.0


@pytest.fixture
def child(tmp_path: Path) -> Iterator[Child]:
    made = Child([sys.executable, "-c", ECHO], tmp_path / "stderr", MemoryWatch(None))
    yield made
    made.kill()


def test_what_is_asked_is_answered_and_what_is_no_object_is_passed_over(child: Child, tmp_path: Path) -> None:
    assert child.message(SECONDS) == {"hello": 1}
    child.ask({"do": "nothing"})
    assert child.message(SECONDS) == {"do": "nothing"}
    assert (tmp_path / "stderr").read_text() == "some words\n"


def test_no_message_in_time(child: Child) -> None:
    assert child.message(SECONDS) == {"hello": 1}
    with pytest.raises(TimeoutError):
        child.message(0.01)
    with pytest.raises(TimeoutError):
        child.message(-1.0)
    assert not child.has_ended


def test_the_end_of_a_process_is_the_end_of_its_messages(child: Child) -> None:
    assert child.message(SECONDS) == {"hello": 1}
    assert child.wait(0.01) is None
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait(SECONDS) == -signal.SIGKILL
    assert child.has_ended
    # Who asks is told by the end of the messages, not by an error.
    child.ask({"do": "nothing"})
    assert child.message(SECONDS) is None


def test_whoever_is_killed_may_be_killed_again(child: Child) -> None:
    child.kill()
    assert child.has_ended
    child.kill()


def test_what_cannot_be_started(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Child([str(tmp_path / "missing")], tmp_path / "stderr", MemoryWatch(None))


def test_a_process_that_was_started_early_is_the_one_that_answers(tmp_path: Path) -> None:
    model, choice = fake_runtime.model(tmp_path / "a"), RuntimeChoice.parse(fake_runtime.install(tmp_path))
    with Scratch() as scratch:
        worker = Worker(choice, scratch)
        try:
            worker.admit(model)
            worker.warm()
            worker.warm()
            interface, _ = worker.open("open", model, "default", 1)
            assert [facts.name for facts in interface.primary.inputs] == ["x"]
            assert (scratch.path / "starts").read_text() == "\n"
        finally:
            worker.kill()


def test_what_is_wrong_with_a_process_that_was_started_early_is_told_when_it_is_asked(tmp_path: Path) -> None:
    model = fake_runtime.model(tmp_path / "a")
    choice = RuntimeChoice(python=shutil.which("false") or "", wanted="litert", given="python:false")
    with Scratch() as scratch:
        worker = Worker(choice, scratch)
        try:
            worker.warm()
            with pytest.raises(UsageError):
                worker.begin({"do": "open", "model": str(model), "resolver": "default", "threads": 1})
        finally:
            worker.kill()


def test_what_had_to_wait_is_given_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While another process is listened to, what this one sends may not be taken in."""
    patience: list[float] = []
    messages = iter([{"hello": 1}, {"stage": "running", "step": 0}, {"done": 1}])

    def message(seconds: float) -> dict[str, object]:
        patience.append(seconds)
        return next(messages)

    def nothing(*_: object) -> None:
        pass

    child = SimpleNamespace(
        has_ended=False, waited=500.0, message=message, ask=nothing, watch_memory=nothing, kill=nothing
    )

    def started(_command: object, stderr: Path, *_: object, **__: object) -> SimpleNamespace:
        stderr.touch()
        return child

    monkeypatch.setattr("tfl_rewrite.interpreter.worker.Child", started)
    with Scratch() as scratch:
        worker = Worker(RuntimeChoice.parse("litert"), scratch, timeout=10.0)
        worker.begin({"do": "nothing"})
        assert worker.finish().failure is None
    assert min(patience[1:]) > 500.0 and max(patience[1:]) <= 510.0
