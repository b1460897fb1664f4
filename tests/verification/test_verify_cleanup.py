"""Nothing stays behind: no folder, no process, whatever ends the run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import fake_runtime
import pytest
import tiny_models

from tfl_rewrite.errors import UsageError
from tfl_rewrite.judging import verify
from tfl_rewrite.verification import Judge
from tfl_rewrite.verification.cleanup import PREFIX, Scratch, sweep

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """A temporary folder of its own for this process and its children."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def children_in(folder: Path) -> list[int]:
    """Processes that were started with that temporary folder."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            environment = (entry / "environ").read_bytes()
        except OSError:
            continue
        state = (entry / "stat").read_text().rsplit(")", 1)[1].split()[0]
        if f"TMPDIR={folder}".encode() in environment and state != "Z" and entry.name != str(os.getpid()):
            found.append(int(entry.name))
    return found


def wait_until(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def test_after_every_kind_of_end(tmp_path, temporary):
    good = tiny_models.add_constant(tmp_path / "a.tflite", [1.0])
    verify(good, good)
    verify(good, tiny_models.crashing(tmp_path / "crash.tflite"))
    hanging = tiny_models.hanging(tmp_path / "hang.tflite")
    verify(hanging, hanging, timeout=1)
    with pytest.raises(UsageError):
        verify(good, good, inputs=[tmp_path / "a.tflite"])
    judge = Judge(good)
    judge.compare(good)
    judge.close()
    assert list(temporary.iterdir()) == []
    wait_until(lambda: not children_in(temporary))


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_run(tmp_path, temporary, number):
    hanging = tiny_models.hanging(tmp_path / "hang.tflite")
    code = "import sys; from tfl_rewrite.judging import verify; verify(sys.argv[1], sys.argv[1])"
    process = subprocess.Popen([sys.executable, "-c", code, str(hanging)], cwd=ROOT, stderr=subprocess.PIPE)
    try:
        # The program itself, and one child for each side.
        wait_until(lambda: len(children_in(temporary)) == 3 and len(list(temporary.glob("*/*/0.0.npy"))) > 0)
        time.sleep(0.3)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == -number, stderr.decode()
    assert list(temporary.iterdir()) == []
    wait_until(lambda: not children_in(temporary))


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")
def test_children_end_when_the_parent_is_killed(tmp_path, temporary):
    hanging = tiny_models.hanging(tmp_path / "hang.tflite")
    code = "import sys; from tfl_rewrite.judging import verify; verify(sys.argv[1], sys.argv[1])"
    process = subprocess.Popen([sys.executable, "-c", code, str(hanging)], cwd=ROOT)
    try:
        wait_until(lambda: len(children_in(temporary)) == 3)
        time.sleep(0.3)
    finally:
        process.kill()
        process.wait()
    wait_until(lambda: not children_in(temporary))


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")
def test_whole_process_group_is_killed(tmp_path, temporary):
    fake_runtime.install(tmp_path)
    wrapper = tmp_path / "wrapper"
    # The interpreter is a grandchild, and another one would never end by itself.
    wrapper.write_text(f'#!/bin/sh\nsleep 120 &\n"{tmp_path}/python" "$@"\n')
    wrapper.chmod(0o755)
    before = fake_runtime.model(tmp_path / "a", running=[{"sleep": 60}])
    verdict = verify(before, before, runtime=f"python:{wrapper}", timeout=1)
    assert "stopped after 1 s" in verdict.reasons[0]
    wait_until(lambda: not children_in(temporary), seconds=5)


def test_signal_handler_is_put_back(tmp_path):
    good = tiny_models.add_constant(tmp_path / "a.tflite", [1.0])
    before = signal.getsignal(signal.SIGTERM)
    with Judge(good) as judge:
        judge.compare(good)
    assert signal.getsignal(signal.SIGTERM) is before


def test_folders_that_a_kill_left_half_made_or_half_removed(temporary):
    begun = Path(tempfile.mkdtemp(prefix=PREFIX, dir=temporary))
    named = temporary / f"{PREFIX}results"
    named.mkdir()
    filled = Path(tempfile.mkdtemp(prefix=PREFIX, dir=temporary))
    (filled / "mine").write_text("kept: nobody knows whose it is")
    with Scratch() as scratch:
        # Its own lock goes last, so that what is left of it is found.
        (scratch.path / "part").mkdir()
        (scratch.path / "file").write_text("x")
        assert not begun.exists() and named.exists() and filled.exists()
    assert sorted(temporary.iterdir()) == sorted([named, filled])


def test_the_lock_of_a_folder_goes_last(temporary, monkeypatch):
    scratch = Scratch()
    (scratch.path / "file").write_text("x")
    seen = []

    def stopped(path, *_, **__):
        seen.append(sorted(entry.name for entry in Path(path).iterdir()))
        raise KeyboardInterrupt

    monkeypatch.setattr(scratch._folder, "cleanup", lambda: stopped(scratch.path))
    with pytest.raises(KeyboardInterrupt):
        scratch.close()
    assert seen[0] == [".lock"]
    # As after a kill: nobody holds the lock any more.
    os.close(scratch._lock)
    scratch._lock = -1
    assert sweep(temporary) == [scratch.path] and not scratch.path.exists()


def test_somebody_takes_the_folder_away_while_it_is_made(temporary, monkeypatch):
    plain, taken = os.open, []

    def late(path, *rest, **more):
        if not taken and str(path).endswith(".lock") and rest[0] & os.O_CREAT:
            taken.append(Path(path).parent)
            taken[0].rmdir()
        return plain(path, *rest, **more)

    monkeypatch.setattr(os, "open", late)
    with Scratch() as scratch:
        assert taken and scratch.path.exists() and scratch.path != taken[0]
    assert list(temporary.iterdir()) == []
