"""Folders, names, links, streams and environments that are not as they should be."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import tfl_rewrite

from .place import JUDGED, PROGRAM, QUICK, Place

OLD = b"the old one"


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What the rewrite of the model gives."""
    place = Place(tmp_path_factory.mktemp("good"))
    assert place.rewrite().returncode == 0
    return place.target.read_bytes()


@contextlib.contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    """A file system of its own on a folder; skips where we may not mount one."""
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


# -- The disk is full ----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kilobytes", [0, 4, 64, 100, 112, 500])
@pytest.mark.parametrize("force", [False, True])
def test_no_room_for_the_output(place: Place, good: bytes, kilobytes: int, force: bool) -> None:
    # A tmpfs has no size 0, which means no limit: one page, and that one taken.
    with mounted(place.outputs, f"size={max(4, kilobytes)}k"):
        if kilobytes == 0:
            (place.outputs / "page").write_bytes(bytes(4096))
        if force and kilobytes:
            place.before = OLD
            place.target.write_bytes(OLD)
        fits = kilobytes * 1024 >= len(good) + 8192 * force
        done = place.rewrite("--force")
        (place.outputs / "page").unlink(missing_ok=True)
        place.check(done, 0 if fits else 2, "" if fits else "fit", whole=good if fits else None)
        assert place.target.exists() == (fits or (force and kilobytes > 0))


@pytest.mark.slow
@pytest.mark.parametrize("kilobytes", [4, 16, 64, 256, 1024])
def test_no_room_for_temporary_files(place: Place, good: bytes, kilobytes: int) -> None:
    with mounted(place.scratch, f"size={kilobytes}k"):
        done = place.run(*JUDGED, place.source, place.target, "--samples", "2")
        # Either all goes well in so little room, or it is an error that says so.
        words = "" if done.returncode == 0 else "temporary files" if b"temporary" in done.stderr else "fit"
        place.check(done, (0, 2), words, whole=good)
        assert place.target.exists() == (done.returncode == 0)


@pytest.mark.slow
def test_no_room_for_the_report(place: Place, good: bytes) -> None:
    folder = place.root / "reports"
    folder.mkdir()
    with mounted(folder, "size=4k"):
        (folder / "page").write_bytes(bytes(4096))
        done = place.rewrite("--report", folder / "report.json")
        place.check(done, 2, "report", whole=good)


@pytest.mark.slow
@pytest.mark.parametrize("kilobytes", [4, 64, 300])
def test_no_room_for_parts(place: Place, kilobytes: int) -> None:
    parts = place.outputs / "parts"
    with mounted(place.outputs, f"size={kilobytes}k"):
        done = place.run("shard", place.source, parts, "--max-size", "100000")
        assert done.returncode == 2 and b"Traceback" not in done.stderr, done.stderr
        assert not parts.exists() or list(parts.iterdir()) == []
    assert place.source.read_bytes() == place.kept


@pytest.mark.runtime
@pytest.mark.parametrize("kilobytes", [4, 300])
def test_no_room_for_what_is_joined(place: Place, kilobytes: int) -> None:
    parts = place.root / "parts"
    assert place.run("shard", place.source, parts, "--max-size", "100000").returncode == 0
    with mounted(place.outputs, f"size={kilobytes}k"):
        done = place.run("join", parts / "manifest.json", place.target)
        place.check(done, 2, "fit")


# -- Folders -------------------------------------------------------------------------------------------------


@pytest.mark.runtime
@pytest.mark.parametrize("command", ["rewrite", "join"])
def test_a_read_only_folder(place: Place, command: str) -> None:
    parts = place.root / "parts"
    assert place.run("shard", place.source, parts).returncode == 0
    with mounted(place.outputs, "ro,size=4m"):
        if command == "rewrite":
            done = place.rewrite()
        else:
            done = place.run("join", parts / "manifest.json", place.target)
        place.check(done, 2, "ead-only")


@pytest.mark.slow
def test_a_missing_folder(place: Place) -> None:
    done = place.run(*QUICK, place.source, place.outputs / "none" / "made.tflite")
    place.check(done, 2, "create")


@pytest.mark.runtime
def test_a_folder_that_goes_away(place: Place) -> None:
    other = place.root / "other"
    other.mkdir()
    with place.start(*JUDGED, place.source, other / "made.tflite") as process:
        wait_for_children(process, place)
        other.rmdir()
        stdout, stderr = process.communicate(timeout=60)
    done = subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)
    place.check(done, 2, "cannot write")


@pytest.mark.slow
def test_no_folder_for_temporary_files(place: Place, good: bytes) -> None:
    """Python looks for another one; where there is none, it is an error of one line."""
    place.scratch.rmdir()
    done = place.run(*JUDGED, place.source, place.target, "--samples", "2")
    place.scratch.mkdir()
    place.check(done, (0, 2), whole=good)


# -- What has the name of the output ------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("force", [(), ("--force",)])
def test_the_output_is_a_folder(place: Place, force: tuple[str, ...]) -> None:
    done = place.run(*QUICK, place.source, place.outputs, *force)
    place.check(done, 2, "is a directory")


@pytest.mark.slow
def test_the_output_is_a_link(place: Place, good: bytes) -> None:
    real = place.root / "real.tflite"
    place.target.symlink_to(real)
    done = place.rewrite()
    assert done.returncode == 0 and real.read_bytes() == good and place.target.is_symlink()
    place.check(done, 0, whole=good)


@pytest.mark.slow
def test_the_output_is_a_link_to_the_input(place: Place) -> None:
    place.target.symlink_to(place.source)
    for force in ((), ("--force",)):
        done = place.rewrite(*force)
        assert done.returncode == 2 and b"is another name of" in done.stderr
        assert place.source.read_bytes() == place.kept and place.target.is_symlink()
    assert place.left() == []


@pytest.mark.slow
def test_the_output_is_a_link_that_turns_in_a_circle(place: Place) -> None:
    place.target.symlink_to(place.target)
    done = place.rewrite("--force")
    assert done.returncode == 2 and b"Traceback" not in done.stderr and place.target.is_symlink()
    assert place.left() == []


@pytest.mark.slow
def test_the_output_is_the_input(place: Place, good: bytes) -> None:
    done = place.run(*QUICK, place.source, place.source)
    place.check(done, 2, "--force")
    done = place.run(*QUICK, place.source, place.source, "--force")
    assert done.returncode == 0 and place.source.read_bytes() == good and place.left() == []


@pytest.mark.slow
def test_the_output_is_another_link_to_the_input(place: Place) -> None:
    os.link(place.source, place.target)
    for force in ((), ("--force",)):
        done = place.rewrite(*force)
        assert done.returncode == 2 and b"is another name of" in done.stderr
        assert place.target.samefile(place.source) and place.source.read_bytes() == place.kept


@pytest.mark.slow
def test_two_programs_write_the_same_file(place: Place, good: bytes) -> None:
    runs = [place.start(*QUICK, place.source, place.target) for _ in range(4)]
    ends = [(*process.communicate(timeout=120), process.returncode) for process in runs]
    codes = sorted(code for *_, code in ends)
    assert codes == [0, 2, 2, 2]
    assert all(b"exists already" in err or b"appeared" in err for _, err, code in ends if code)
    place.check(None, 0, whole=good)
    assert place.target.exists()


@pytest.mark.slow
def test_somebody_writes_into_the_output_all_the_time(place: Place, good: bytes) -> None:
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            place.target.write_bytes(OLD)
            time.sleep(0.001)

    place.before = OLD
    place.target.write_bytes(OLD)
    thread = threading.Thread(target=write)
    thread.start()
    try:
        done = place.rewrite("--force")
    finally:
        stop.set()
        thread.join()
    assert done.returncode == 0 and b"Traceback" not in done.stderr
    assert place.source.read_bytes() == place.kept and place.left() == []
    # Theirs, after ours: whole either way, were it not for how the other one writes.
    assert place.rewrite("--force").returncode == 0 and place.target.read_bytes() == good


# -- The input changes while it is read ----------------------------------------------------------------------


def wait_for_map(process: subprocess.Popen[bytes], path: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError):
            if str(path) in Path(f"/proc/{process.pid}/maps").read_text():
                return
    raise AssertionError(f"never mapped: {process.poll()}")


def wait_for_children(process: subprocess.Popen[bytes], place: Place) -> None:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if list(place.scratch.iterdir()) and (not children.exists() or children.read_text().strip()):
            return
        time.sleep(0.005)
    raise AssertionError(f"never began: {process.poll()}")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["truncate", "empty", "write"])
@pytest.mark.parametrize("verify", ["off", "auto"])
def test_the_input_changes_while_it_is_mapped(place: Place, good: bytes, how: str, verify: str) -> None:
    with place.start(*JUDGED, "--verify", verify, place.source, place.target) as process:
        wait_for_map(process, place.source)
        if how == "write":
            with open(place.source, "r+b") as file:
                file.seek(200_000)
                file.write(bytes(1000))
        else:
            os.truncate(place.source, 0 if how == "empty" else 150_000)
        stdout, stderr = process.communicate(timeout=120)
    done = subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)
    place.source.write_bytes(place.kept)
    # It may have been fast enough to be done with it.
    place.check(done, (0, 2), "" if done.returncode == 0 else "while it was being read", whole=good)


_TRUNCATED = """
import os, sys
from tfl_rewrite.cli import main
from tfl_rewrite.numerics import symmetric

before = symmetric.absmax
def absmax(*arguments, **more):
    os.truncate(sys.argv[1], 100_000)
    return before(*arguments, **more)
symmetric.absmax = absmax
sys.exit(main(["quantize-weights", sys.argv[1], sys.argv[2], "--verify", "off"]))
"""


@pytest.mark.slow
def test_the_input_is_truncated_under_our_hands(place: Place) -> None:
    """At the one moment at which reading on is a fault of the processor."""
    done = subprocess.run(
        [sys.executable, "-c", _TRUNCATED, place.source, place.target],
        capture_output=True,
        env=place.environment(),
    )
    place.source.write_bytes(place.kept)
    place.check(done, 2, "was truncated while it was being read; nothing was written")
    assert str(place.source).encode() in done.stderr


# -- Streams -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_standard_streams(place: Place, good: bytes) -> None:
    done = place.run(*QUICK, "-", "-", input=place.kept)
    assert done.stdout == good and b"<stdin> -> <stdout>" in done.stderr
    place.check(done, 0)
    done = place.run(*QUICK, "-", place.target, input=place.kept)
    assert b"<stdin>" in done.stdout
    place.check(done, 0, whole=good)
    done = place.run(*QUICK, place.source, "-", "-q")
    assert done.stdout == good and b"error" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("data", [b"", b"no model", None])
def test_standard_input_that_is_no_model(place: Place, data: bytes | None) -> None:
    data = place.kept[:1000] if data is None else data
    done = place.run(*QUICK, "-", "-", input=data)
    assert done.stdout == b""
    place.check(done, 5, "<stdin>")


@pytest.mark.runtime
def test_standard_input_twice(place: Place) -> None:
    place.check(place.run("verify", "-", "-", input=place.kept), 2, "once")


@pytest.mark.slow
def test_nobody_takes_standard_output(place: Place) -> None:
    with place.start(*QUICK, place.source, "-") as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        stderr = process.stderr.read()
    place.check(subprocess.CompletedProcess([], process.returncode, b"", stderr), 2, "standard output")


@pytest.mark.slow
def test_standard_output_is_full(place: Place) -> None:
    with open("/dev/full", "wb") as full:
        done = place.run(*QUICK, place.source, "-", stdout=full)
    place.check(done, 2, "standard output")


@pytest.mark.slow
def test_a_model_is_nothing_for_a_terminal(place: Place) -> None:
    code, said = on_terminal(place, *QUICK, str(place.source), "-")
    assert code == 2 and b"a model is binary" in said
    place.check(None, 2)


@pytest.mark.slow
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams(place: Place, good: bytes, closed: str) -> None:
    words = [*PROGRAM, *QUICK, str(place.source), str(place.target)]
    command = " ".join(f"'{word}'" for word in words)
    done = subprocess.run(["sh", "-c", f"{command} {closed}"], capture_output=True, env=place.environment())
    place.check(done, 0, whole=good)
    assert place.target.exists()


# -- Environments --------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"LANG": "C", "LC_ALL": "C"},
        {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"HOME": "/nonexistent"},
        {"COLUMNS": "1"},
        {"TERM": "dumb", "NO_COLOR": "1"},
    ],
    ids=["nothing", "C", "POSIX", "no-home", "narrow", "dumb"],
)
def test_environments(place: Place, good: bytes, environment: dict[str, str]) -> None:
    done = place.rewrite(env={"TMPDIR": str(place.scratch), **environment})
    place.check(done, 0, whole=good)
    assert place.target.exists() and b"bytes" in done.stdout


def on_terminal(place: Place, *arguments: str, columns: int = 40) -> tuple[int, bytes]:
    """Runs the program on a terminal, and returns its exit code and what the terminal got."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    with place.start(*arguments, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        said = b""
        with contextlib.suppress(OSError):
            while piece := os.read(ours, 65536):
                said += piece
    os.close(ours)
    return process.returncode, said


@pytest.mark.slow
@pytest.mark.parametrize("columns", [0, 1, 40, 200])
def test_a_narrow_terminal(place: Place, good: bytes, columns: int) -> None:
    code, said = on_terminal(
        place, *JUDGED, str(place.source), str(place.target), "--samples", "1", columns=columns
    )
    assert code == 0 and b"Traceback" not in said and b"PASS" in said
    place.check(None, 0, whole=good)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        b"with spaces.tflite",
        b"two\nlines.tflite",
        b"\xff\xfe not unicode.tflite",
        b"-q",
        "größer 模型.tflite".encode(),
        b"escape \x1b[31m.tflite",
        b"x" * 200 + b".tflite",
        b"quote'\".tflite",
    ],
    ids=["spaces", "newline", "bytes", "dash", "unicode", "escape", "long", "quotes"],
)
@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_file_names(place: Place, good: bytes, name: bytes, locale: str) -> None:
    source = os.fsencode(place.inputs) + b"/" + name
    target = os.fsencode(place.outputs) + b"/" + name
    with open(source, "wb") as file:
        file.write(place.kept)
    environment = {**place.environment(), "LC_ALL": locale}
    done = place.run(*QUICK, b"--", source, target, env=environment)
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr and b"\x1b" not in done.stdout
    # The name stands on the first line, whatever it holds.
    assert re.match(rb"[^\n]* -> [^\n]*bytes", done.stdout)
    with open(target, "rb") as file:
        assert file.read() == good
    again = place.run(*QUICK, b"--", source, target, env=environment)
    assert again.returncode == 2 and again.stderr.count(b"\n") == 1 and b"exists already" in again.stderr
    assert len(list(place.outputs.iterdir())) == 1 and list(place.scratch.iterdir()) == []
    assert tfl_rewrite.check(os.fsdecode(target)) == []
