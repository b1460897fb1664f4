"""Progress bars: on a terminal, for work that takes longer than a second, and nowhere else."""

from __future__ import annotations

import io
import os
import pty
import select
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tfl_rewrite.cli import progress

pytestmark = pytest.mark.slow

# The command, with each step of its work slowed, or of one part of it, so that it takes over a second.
SLOWED = """
import sys, time
from tfl_rewrite import work
from tfl_rewrite.cli import main
from tfl_rewrite.cli import progress
assert progress.AFTER_SECONDS == 1.0
progress.AFTER_SECONDS = float(sys.argv[2])
tick = work.Stage.tick
def slow(stage, nbytes):
    if stage.what.startswith(sys.argv[3]):
        time.sleep(float(sys.argv[1]))
    tick(stage, nbytes)
work.Stage.tick = slow
sys.exit(main(sys.argv[4:]))
"""


def run(*arguments: str | Path, pause: float, after: float = 1.0, slowed: str = "") -> tuple[str, str]:
    """Runs a command with its errors on a terminal; returns its output and what was on the terminal."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", SLOWED, str(pause), str(after), slowed, *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, stdin=subprocess.DEVNULL)
    seen = b""
    # Our own end of the terminal stays open meanwhile, or the last bytes may be lost with it.
    while process.poll() is None or select.select([ours], [], [], 0)[0]:
        if select.select([ours], [], [], 0.05)[0]:
            seen += os.read(ours, 4096)
    os.close(theirs)
    os.close(ours)
    assert process.stdout is not None
    output = process.stdout.read().decode()
    assert process.wait(60) == 0, seen
    return output, seen.decode()


def is_gone(seen: str) -> bool:
    """Whether what is left on the terminal is an empty line, and a cursor."""
    hidden, shown = seen.rfind("\x1b[?25l"), seen.rfind("\x1b[?25h")
    return seen.endswith("\x1b[1A\x1b[2K") and hidden < shown


def writing(model: Path, folder: Path) -> list[str | Path]:
    return ["quantize-weights", model, folder / "out.tflite", "--verify", "off", "--threads", "1"]


def test_rewriting_shows_what_it_does(fixtures: Path, tmp_path: Path) -> None:
    _, seen = run(*writing(fixtures / "digits_cnn.tflite", tmp_path), pause=0.1)
    for part in ("writing:", "━", "%", "<"):
        assert part in seen, seen
    assert is_gone(seen)


def test_sharding_and_joining_show_what_they_do(fixtures: Path, tmp_path: Path) -> None:
    model, parts = fixtures / "digits_cnn.tflite", tmp_path / "parts"
    _, seen = run("shard", model, parts, "--max-size", "8KB", "--threads", "1", pause=0.1)
    assert "sharding:" in seen and "━" in seen
    _, seen = run("join", parts / "manifest.json", tmp_path / "out.tflite", "--threads", "1", pause=0.1)
    assert "joining:" in seen and "━" in seen
    assert (tmp_path / "out.tflite").read_bytes() == model.read_bytes()


def test_activations_are_counted_while_they_are_collected(fixtures: Path, tmp_path: Path) -> None:
    inputs = fixtures / "inputs" / "mtcnn_rnet.npz"
    words = writing(fixtures / "mtcnn_rnet.tflite", tmp_path)
    _, seen = run(*words, "--inputs", inputs, pause=0.1, after=0.0, slowed="collecting")
    counted = seen.split("collecting activations: ")
    assert "━" in counted[1] and len(counted) > 5, seen
    assert is_gone(seen)


def test_a_bar_ends_the_line_that_counts_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(progress, "AFTER_SECONDS", 0.0)
    with progress.Bar() as bar:
        bar("thinking", 0, 0)
        time.sleep(0.05)
        bar("counting", 1, 10)
        counted = len(terminal.getvalue())
        time.sleep(0.7)
        bar("counting", 2, 10)
    seen = terminal.getvalue()
    assert "thinking (" in seen and "counting" in seen
    assert "thinking" not in seen[counted:]


@pytest.mark.parametrize("total", [0, 10])
def test_a_stopped_terminal_does_not_keep_the_program(monkeypatch: pytest.MonkeyPatch, total: int) -> None:
    """As by Ctrl-S: whoever writes to it waits, and may hold what drawing needs."""
    stuck, go_on = threading.Event(), threading.Event()

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

        def write(self, text: str) -> int:
            stuck.set()
            go_on.wait(60)
            return len(text)

    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(progress, "AFTER_SECONDS", 0.0)
    try:
        bar = progress.Bar()
        bar("counting", 1, total)
        assert stuck.wait(30)
        started = time.monotonic()
        bar("counting", 2, total)
        bar.close()
        bar.close()
        assert time.monotonic() - started < 5
    finally:
        go_on.set()


def test_work_that_is_done_before_its_time_shows_nothing(fixtures: Path, tmp_path: Path) -> None:
    _, seen = run(*writing(fixtures / "digits_cnn.tflite", tmp_path), pause=0.0, after=100.0)
    assert seen == ""


def test_the_quiet_see_none_of_it(fixtures: Path, tmp_path: Path) -> None:
    _, seen = run(*writing(fixtures / "digits_cnn.tflite", tmp_path), "-q", pause=0.1)
    # Only what -q always says.
    assert "writing" not in seen and "\r" not in seen.replace("\r\n", "")


@pytest.mark.parametrize("pause", ["0.1", "0"])
def test_a_log_gets_one_line_for_each_part_that_takes_long(
    fixtures: Path, tmp_path: Path, pause: str
) -> None:
    arguments = writing(fixtures / "digits_cnn.tflite", tmp_path)
    # Without a pause it is over before its time, however slow the machine is.
    after = "1" if pause != "0" else "100"
    command = [sys.executable, "-c", SLOWED, pause, after, "", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, check=True, text=True, timeout=60)
    assert "writing" not in done.stdout and "\r" not in done.stdout + done.stderr
    assert done.stderr.count("tfl-rewrite: writing ...\n") == (pause != "0"), done.stderr


def test_runs_of_a_search_are_counted_on_a_terminal(fixtures: Path, tmp_path: Path) -> None:
    arguments: list[str | Path] = ["shrink", fixtures / "text_embedding.tflite", tmp_path / "out.tflite"]
    arguments += ["--min-snr", "30", "--samples", "4", "--effort", "fast"]
    _, seen = run(*arguments, pause=0.25, after=0.0, slowed="measuring")
    measuring = seen.split("measuring encodings:")
    assert len(measuring) > 2 and "━" in measuring[-1], seen
    assert is_gone(seen)
