"""Nothing stays behind: no folder, no process, whatever ends the run."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tfl_rewrite.errors import UsageError
from tfl_rewrite.interpreter import scratch as cleanup
from tfl_rewrite.interpreter.scratch import PREFIX, Scratch, sweep
from tfl_rewrite.judge.judge import Judge
from tfl_rewrite.judge.settings import Judging
from tfl_rewrite.pipeline.verify import verify

from .. import tiny_models
from ..helpers import ROOT
from . import fake_runtime


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """A temporary folder of its own for this process and its children."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def children_in(folder: Path) -> list[int]:
    """Processes that were started with that temporary folder, or in it."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            environment = (entry / "environ").read_bytes()
            where = (entry / "cwd").readlink()
        except OSError:
            continue
        mine = f"TMPDIR={folder}".encode() in environment or folder in where.parents
        state = (entry / "stat").read_text().rsplit(")", 1)[1].split()[0]
        if mine and state != "Z" and entry.name != str(os.getpid()):
            found.append(int(entry.name))
    return found


def wait_until(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


@pytest.mark.runtime
def test_after_every_kind_of_end(tmp_path, temporary):
    good = tiny_models.add_constant(tmp_path / "a.tflite", [1.0])
    verify(good, good)
    verify(good, tiny_models.crashing(tmp_path / "crash.tflite"))
    hanging = tiny_models.hanging(tmp_path / "hang.tflite")
    verify(hanging, hanging, Judging(timeout=1))
    with pytest.raises(UsageError):
        verify(good, good, Judging(inputs=[tmp_path / "a.tflite"]))
    judge = Judge(good)
    judge.compare(good)
    judge.close()
    assert list(temporary.iterdir()) == []
    wait_until(lambda: not children_in(temporary))


@pytest.mark.runtime
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupted_run(tmp_path, temporary, number):
    hanging = tiny_models.hanging(tmp_path / "hang.tflite")
    code = "import sys; from tfl_rewrite.pipeline.verify import verify; verify(sys.argv[1], sys.argv[1])"
    process = subprocess.Popen([sys.executable, "-c", code, str(hanging)], cwd=ROOT, stderr=subprocess.PIPE)
    try:
        # The program itself, and one child for each side.
        wait_until(lambda: len(children_in(temporary)) == 3 and len(list(temporary.rglob("0.0.npy"))) > 0)
        time.sleep(0.3)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == -number, stderr.decode()
    assert list(temporary.iterdir()) == []
    wait_until(lambda: not children_in(temporary))


@pytest.mark.runtime
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")
def test_children_end_when_the_parent_is_killed(tmp_path, temporary):
    hanging = tiny_models.hanging(tmp_path / "hang.tflite")
    code = "import sys; from tfl_rewrite.pipeline.verify import verify; verify(sys.argv[1], sys.argv[1])"
    process = subprocess.Popen([sys.executable, "-c", code, str(hanging)], cwd=ROOT)
    try:
        wait_until(lambda: len(children_in(temporary)) == 3)
        time.sleep(0.3)
    finally:
        process.kill()
        process.wait()
    wait_until(lambda: not children_in(temporary))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")
def test_whole_process_group_is_killed(tmp_path, temporary):
    fake_runtime.install(tmp_path)
    wrapper = tmp_path / "wrapper"
    # The interpreter is a grandchild, and another one would never end by itself.
    wrapper.write_text(f'#!/bin/sh\nsleep 120 &\n"{tmp_path}/python" "$@"\n')
    wrapper.chmod(0o755)
    before = fake_runtime.model(tmp_path / "a", running=[{"sleep": 60}])
    verdict = verify(before, before, Judging(runtime=f"python:{wrapper}", timeout=1))
    assert "stopped after 1 s" in verdict.reasons[0]
    wait_until(lambda: not children_in(temporary), seconds=5)


def test_the_current_folder_as_the_temporary_one(temporary, monkeypatch):
    """Python leaves "." as it is, and other processes have other current folders."""
    monkeypatch.chdir(temporary)
    monkeypatch.setattr("tempfile.tempdir", ".")
    with Scratch() as made:
        assert made.path.is_absolute() and made.path.parent.samefile(temporary)


@pytest.mark.runtime
def test_signal_handler_is_put_back(tmp_path):
    good = tiny_models.add_constant(tmp_path / "a.tflite", [1.0])
    before = signal.getsignal(signal.SIGTERM)
    with Judge(good) as judge:
        judge.compare(good)
    assert signal.getsignal(signal.SIGTERM) is before


def named(folder: Path, prefix: str = PREFIX) -> Path:
    """A folder as one of ours is named and protected."""
    path = folder / f"{prefix}{secrets.token_hex(16)}"
    path.mkdir(mode=0o700)
    return path


def left_behind(folder: Path) -> Path:
    """A folder of a process that was killed."""
    child = os.fork()
    if not child:
        try:
            scratch = Scratch(folder)
            (scratch.folder() / "output.npy").write_text("x")
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    (found,) = folder.glob(f"{PREFIX}*")
    return found


@pytest.mark.slow
def test_what_a_killed_process_left_goes(temporary):
    left = left_behind(temporary)
    assert stat.S_IMODE(left.stat().st_mode) == 0o700 and (left / "1" / "output.npy").exists()
    assert sweep(temporary) == [left] and list(temporary.iterdir()) == []


def test_folders_that_a_kill_left_half_made_or_half_removed(temporary):
    named(temporary)
    (named(temporary) / ".tfl-rewrite").touch(0o600)
    with Scratch() as scratch:
        assert list(temporary.iterdir()) == [scratch.path]


@pytest.mark.slow
def test_the_marker_of_a_folder_goes_last(temporary):
    """A folder that is removed in part is found by the next one who sweeps."""
    left = left_behind(temporary)
    (left / "1" / "output.npy").unlink()
    (left / "1").rmdir()
    assert [entry.name for entry in left.iterdir()] == [".tfl-rewrite"]
    assert sweep(temporary) == [left]


def looks_like_ours(folder: Path) -> Path:
    """All but the marker."""
    path = named(folder)
    (path / ".lock").touch()
    return path


def with_another_marker(folder: Path) -> Path:
    path = named(folder)
    (path / ".tfl-rewrite").write_text("something else\n" * 8)
    return path


def with_the_marker_of_another(folder: Path) -> Path:
    """A copy under another name is not what the program made."""
    left = left_behind(folder)
    path = named(folder)
    shutil.copy(left / ".tfl-rewrite", path)
    shutil.rmtree(left)
    return path


def with_an_empty_marker(folder: Path) -> Path:
    path = named(folder)
    (path / ".tfl-rewrite").touch(0o600)
    return path


def open_to_others(folder: Path) -> Path:
    left = left_behind(folder)
    left.chmod(0o755)
    return left


def with_a_marker_that_is_a_link(folder: Path) -> Path:
    left = left_behind(folder)
    (left / ".tfl-rewrite").rename(folder / "marker")
    (left / ".tfl-rewrite").symlink_to(folder / "marker")
    return left


def with_a_marker_that_is_a_pipe(folder: Path) -> Path:
    path = named(folder)
    os.mkfifo(path / ".tfl-rewrite", 0o600)
    return path


def of_a_process_that_lives(folder: Path) -> Path:
    """Where locks do not work, the process tells."""
    scratch = Scratch(folder)
    scratch._finish.detach()
    path = scratch.path
    for entry in Path("/proc/self/fd").iterdir():
        # As if the file system had no locks.
        if entry.is_symlink() and str(entry.readlink()).startswith(str(path)):
            os.close(int(entry.name))
    return path


def of_another_machine(folder: Path) -> Path:
    left = left_behind(folder)
    marker = left / ".tfl-rewrite"
    lines = marker.read_text().split("\n")
    lines[2:4] = ["elsewhere", "another-start"]
    marker.write_text("\n".join(lines))
    return left


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [
        looks_like_ours,
        with_another_marker,
        with_the_marker_of_another,
        with_an_empty_marker,
        open_to_others,
        with_a_marker_that_is_a_link,
        with_a_marker_that_is_a_pipe,
        of_a_process_that_lives,
        of_another_machine,
    ],
)
def test_what_the_program_did_not_make_stays(temporary, make):
    path = make(temporary)
    (path / "mine").write_text("kept")
    with Scratch():
        assert sweep(temporary) == []
    assert (path / "mine").read_text() == "kept"


@pytest.mark.slow
@pytest.mark.parametrize("name", [f"{PREFIX}zzzzzzzz", f"{PREFIX}{'0' * 32}"])
def test_links_are_not_followed(temporary, tmp_path, name):
    """Neither to what somebody else keeps, nor to a folder that was left behind elsewhere."""
    (tmp_path / "elsewhere").mkdir()
    target = left_behind(tmp_path / "elsewhere")
    (target / ".lock").touch()
    (temporary / name).symlink_to(target)
    with Scratch():
        assert sweep(temporary) == []
    assert (target / "1" / "output.npy").exists() and (temporary / name).is_symlink()


@pytest.mark.parametrize("name", ["model.tflite.parts", "results", "0" * 8, "0" * 31, "0" * 33, "A" * 32])
def test_other_names_are_not_ours(temporary, name):
    """Such as the folder that a join keeps parts in, beside an OUT in the folder for temporary files."""
    path = temporary / f"{PREFIX}{name}"
    path.mkdir(mode=0o700)
    (path / ".lock").touch()
    (path / ".tfl-rewrite").touch(0o600)
    (path / "part").touch()
    with Scratch():
        assert sweep(temporary) == []
    assert len(list(path.iterdir())) == 3


@pytest.mark.slow
def test_nothing_outside_is_removed(temporary, tmp_path):
    """What a model's process may have put into its folder: links, deep folders, pipes."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file").write_text("kept")
    left = left_behind(temporary)
    (left / "1" / "link").symlink_to(tmp_path / "outside")
    (left / "file").symlink_to(tmp_path / "outside" / "file")
    os.mkfifo(left / "pipe")
    (left / "/".join("d" * 50)).mkdir(parents=True)
    assert sweep(temporary) == [left] and not left.exists()
    assert (tmp_path / "outside" / "file").read_text() == "kept"


@pytest.mark.parametrize("moment", ["mkdir", "opened", "marker", "lock"])
def test_somebody_sweeps_while_a_folder_is_made(temporary, monkeypatch, moment):
    """Between each two steps of it: what is not yet locked may go, but then another one is made."""
    swept = []

    def between(*_, **__):
        if not swept:
            swept.append(None)
            swept[:] = [sweep(temporary)]

    plain_mkdir, plain_open, plain_lock = Path.mkdir, os.open, cleanup.lock

    def mkdir(path, *rest, **more):
        plain_mkdir(path, *rest, **more)
        if moment == "mkdir" and path.name.startswith(PREFIX):
            between()

    def opened(path, flags, *rest, **more):
        if moment == "opened" and path == ".tfl-rewrite" and flags & os.O_CREAT:
            between()
        descriptor = plain_open(path, flags, *rest, **more)
        if moment == "marker" and path == ".tfl-rewrite" and flags & os.O_CREAT:
            between()
        return descriptor

    def lock(descriptor, **more):
        if moment == "lock" and more:
            between()
        return plain_lock(descriptor, **more)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr(cleanup, "lock", lock)
    with Scratch() as scratch:
        assert len(swept) == 1 and len(swept[0]) == 1 and scratch.path not in swept[0]
        (scratch.folder() / "file").write_text("x")
        assert sweep(temporary) == []
        assert list(temporary.iterdir()) == [scratch.path]
    assert list(temporary.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["lock", "removed"])
def test_somebody_removes_the_folder_that_is_being_swept(temporary, monkeypatch, moment):
    """A lock on a file that has lost its name, or whose name another file has now, counts for nothing."""
    left = left_behind(temporary)
    plain = cleanup.lock

    def lock(descriptor, **more):
        if moment == "lock" and not more:
            (left / ".tfl-rewrite").rename(left / "before")
            (left / ".tfl-rewrite").write_bytes((left / "before").read_bytes())
        elif not more:
            shutil.rmtree(left)
            left.mkdir(mode=0o700)
            (left / "mine").write_text("kept")
        return plain(descriptor, **more)

    monkeypatch.setattr(cleanup, "lock", lock)
    assert sweep(temporary) == []
    assert (left / ("1" if moment == "lock" else "mine")).exists()


@pytest.mark.slow
def test_a_process_that_was_forked_removes_nothing(temporary):
    with Scratch() as scratch:
        child = os.fork()
        if not child:
            scratch.close()
            os._exit(0)
        os.waitpid(child, 0)
        assert (scratch.path / ".tfl-rewrite").exists() and sweep(temporary) == []


_MAKES = """
import sys, time
from pathlib import Path
from tfl_rewrite.interpreter.scratch import Scratch
ends = time.monotonic() + float(sys.argv[1])
made = 0
while time.monotonic() < ends:
    with Scratch() as scratch:
        (scratch.folder() / "file").write_text("x")
        (scratch.path / "1" / "file").read_text()
    made += 1
print(made)
"""


@pytest.mark.slow
def test_many_at_once_leave_each_other_alone(temporary):
    """Folders made and removed as fast as it goes, by more processes than there are processors."""
    runs = [
        subprocess.Popen([sys.executable, "-c", _MAKES, "2"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(8)
    ]
    ends = [(*process.communicate(timeout=120), process.returncode) for process in runs]
    assert all(code == 0 for *_, code in ends), [err.decode()[-300:] for _, err, code in ends if code]
    assert sum(int(out) for out, *_ in ends) > 100
    assert list(temporary.iterdir()) == []
