"""The program is killed or told to stop at random moments of a rewrite.

``TFL_REWRITE_KILLS`` says at how many (20 by default); tests of ``join`` take it too.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from .place import Place

KILLS = int(os.environ.get("TFL_REWRITE_KILLS", "20"))
OLD = b"the old one"

# Forks instead of starting anew: what is killed is the work, not the imports.
_STARTER = """
import os, sys
import numpy, tfl_rewrite.cli.commands.rewrite, tfl_rewrite.judge.judge, tfl_rewrite.files.source
from tfl_rewrite.cli import main
for line in sys.stdin:
    child = os.fork()
    if not child:
        with open(os.devnull, "r+b") as nothing:
            for number in (0, 1):
                os.dup2(nothing.fileno(), number)
        os.dup2(os.open(os.environ["SAID"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), 2)
        os._exit(main(line.rstrip("\\n").split("\\t")))
    print(child, flush=True)
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
"""


class Starter:
    """Runs the program in children of a process that has imported it."""

    def __init__(self, place: Place) -> None:
        self.said = place.root / "said"
        self._process = subprocess.Popen(
            [sys.executable, "-c", _STARTER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=place.environment(SAID=str(self.said)),
        )

    def run(self, *arguments: str | Path, number: int | None = None, after: float = 0.0) -> int:
        """Runs the program, sends it a signal after some seconds, and returns its exit code."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        stdin.write("\t".join(map(str, arguments)) + "\n")
        stdin.flush()
        child = int(stdout.readline())
        if number is not None:
            time.sleep(after)
            with contextlib.suppress(ProcessLookupError):
                # Its parent has not waited for it yet, or did a moment ago.
                os.kill(child, number)
        return int(stdout.readline())

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        assert self._process.wait(timeout=30) == 0


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture
def starter(place: Place) -> Iterator[Starter]:
    made = Starter(place)
    yield made
    made.close()


def timed(starter: Starter, *arguments: str | Path) -> float:
    """The shorter of two runs, in seconds: the first one has to warm up."""
    found = []
    for _ in range(2):
        started = time.monotonic()
        assert starter.run(*arguments) == 0
        found.append(time.monotonic() - started)
    return min(found)


@pytest.mark.slow
@pytest.mark.parametrize("force", [False, True], ids=["new", "replace"])
def test_killed_at_any_moment(place: Place, starter: Starter, force: bool) -> None:
    dice = random.Random(force)
    call = ["quantize-weights", str(place.source), str(place.target), "--samples", "1", "--force"]
    longest = timed(starter, *call)
    good = place.target.read_bytes()
    killed = published = 0
    for _ in range(KILLS // 2):
        place.target.unlink(missing_ok=True)
        place.before = OLD if force else None
        if force:
            place.target.write_bytes(OLD)
        code = starter.run(*call, number=signal.SIGKILL, after=dice.uniform(0, longest))
        assert code in (0, -signal.SIGKILL)
        killed += code != 0
        content = place.target.read_bytes() if place.target.exists() else None
        published += content == good
        assert content in (place.before, good) and place.source.read_bytes() == place.kept
        # In the folder of the output there is the output; in that for temporary files maybe more.
        assert [path for path in place.outputs.iterdir() if path != place.target] == []
    assert killed >= KILLS // 8
    # The next run removes what the dead ones left; their children need a moment to notice.
    deadline = time.monotonic() + 60
    while True:
        assert starter.run(*call) == 0
        if place.left() == [] or time.monotonic() > deadline:
            break
        time.sleep(0.2)
    place.before = None
    place.check(None, 0, whole=good)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_told_to_stop_at_any_moment(place: Place, starter: Starter, number: signal.Signals) -> None:
    dice = random.Random(int(number))
    call = ["quantize-weights", str(place.source), str(place.target), "--samples", "1", "--force"]
    longest = timed(starter, *call)
    good = place.target.read_bytes()
    documented = 130 if number is signal.SIGINT else 143
    stopped = 0
    for _ in range(max(4, KILLS // 4)):
        place.target.unlink()
        code = starter.run(*call, number=number, after=dice.uniform(0.02, longest))
        stopped += code == documented
        said = starter.said.read_text()
        # Before the program listens, the signal ends it as it ends any other.
        assert code in (0, documented, -int(number)), said
        assert "Traceback" not in said
        if code == documented:
            # On a busy machine a line before it says what is being done.
            lines = said.splitlines()
            assert "nothing was written" in lines[-1] and "error" not in "".join(lines[:-1]), said
        place.check(None, 0, whole=good)
        assert place.target.exists() == (code == 0)
        place.target.write_bytes(good)
    assert stopped


def test_a_file_without_a_name_is_not_needed(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system has no nameless files, what is left is removed by the next that writes there."""
    from tfl_rewrite.files import atomic

    monkeypatch.delattr(os, "O_TMPFILE")
    with atomic.nameless_file(place.outputs, nbytes=10) as mine:
        assert [mine.path] == list(place.outputs.iterdir())
        dead = place.outputs / ".tfl-rewrite-0123456789abcdef.tmp"
        dead.write_bytes(b"of a process that was killed")
        foreign = place.outputs / ".other.tmp"
        foreign.write_bytes(b"of somebody else")
        with atomic.nameless_file(place.outputs) as other:
            # The one that is being written is left alone, and so is what is not ours.
            assert sorted(place.outputs.iterdir()) == sorted([mine.path, other.path, foreign])
        mine.sink.write_at(b"0123456789", 0)
        mine.publish(place.target, force=False)
    foreign.unlink()
    assert place.target.read_bytes() == b"0123456789" and place.left() == []
