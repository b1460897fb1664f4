"""The walls around a process that runs a stranger's model: each deed is stopped, and by each wall alone."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tfl_rewrite import UsageError, verify
from tfl_rewrite.cli.render_judge import verdict_lines
from tfl_rewrite.interpreter import sandbox as sandbox_module
from tfl_rewrite.interpreter.process import INHERITED, Walls, environment
from tfl_rewrite.judge.judge import Judge, RunResult, run_model
from tfl_rewrite.judge.settings import Judging

from .. import tiny_models
from . import deeds, fake_runtime

SANDBOX = Path(sandbox_module.__file__)
VERSION = sandbox_module.landlock_version()
HAS_SECCOMP = "Seccomp:" in Path("/proc/self/status").read_text()

NO_LANDLOCK = "this kernel has no Landlock"
NO_SECCOMP = "this kernel has no seccomp filters, or not on this machine's processor"

# What Landlock alone stops, with the version that first did; and what only the filter does.
BY_LANDLOCK = {
    "read a key": 1,
    "list a folder": 1,
    "read the other side": 1,
    "write to the other side": 1,
    "write beside the model": 1,
    "write to the model": 1,
    "cut the model by name": 3,
    "cut a file that is only read": 3,
    "rename the model": 1,
    "remove a file": 1,
    "make a folder": 1,
    "write to shared memory": 1,
    "link in scratch": 1,
    "hard link in scratch": 1,
    "pipe in scratch": 1,
    "folder in scratch": 1,
    "connect TCP": 4,
    "bind TCP": 4,
    "connect abstract": 6,
    "execute": 1,
    "signal the parent": 6,
    "signal a thread of the parent": 6,
    "trace the parent": 1,
    "read the parent's memory": 1,
    "open the parent's memory": 1,
    "read the parent's environment": 1,
}
READING = ("read a key", "list a folder", "read the other side")
PROC = ("open the parent's memory", "read the parent's environment")
NOT_BY_SECCOMP = (*READING, *PROC)

LAUNCHER = """
import importlib.util, sys, threading
spec = importlib.util.spec_from_file_location("walls", sys.argv[2])
walls = importlib.util.module_from_spec(spec)
spec.loader.exec_module(walls)
exec(sys.argv[1])
walls.main(sys.argv[3:])
"""
# What is done to the walls before they are put up.
LEFT_OUT = {
    "landlock": "walls._confine = lambda *_: False",
    "seccomp": "walls._filter = lambda **_: False",
    "capabilities": "walls._drop_capabilities = lambda: None",
}


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """Sockets of all kinds that somebody might connect to."""
    with (
        socket.socket() as tcp,
        socket.socket(socket.AF_UNIX) as named,
        socket.socket(socket.AF_UNIX) as free,
    ):
        tcp.bind(("127.0.0.1", 0))
        abstract = f"tfl-rewrite-deed-{os.getpid()}"
        named.bind(str(tmp_path / "socket"))
        free.bind("\0" + abstract)
        for one in (tcp, named, free):
            one.listen()
        yield {"port": tcp.getsockname()[1], "socket": str(tmp_path / "socket"), "abstract": abstract}


def places(tmp_path: Path, listening: dict[str, Any]) -> dict[str, Any]:
    """Where deeds are done."""
    keys, other = tmp_path / "home" / ".ssh", tmp_path / "other"
    for folder in (keys, other, tmp_path / "scratch"):
        folder.mkdir(parents=True)
    for path in (
        keys / "id_rsa",
        other / "0.0.npy",
        tmp_path / "removable",
        tmp_path / "cut",
        tmp_path / "model",
    ):
        path.write_text("somebody's")
    return {
        **listening,
        "key": str(keys / "id_rsa"),
        "folder": str(keys),
        "other": str(other / "0.0.npy"),
        "removable": str(tmp_path / "removable"),
        "cut": str(tmp_path / "cut"),
        "model": str(tmp_path / "model"),
        "scratch": str(tmp_path / "scratch"),
        "parent": os.getpid(),
    }


def run_deeds(tmp_path: Path, listening: dict[str, Any], *left_out: str, prepare: str = "") -> dict[str, Any]:
    """Runs all deeds with some walls left out."""
    given = places(tmp_path, listening)
    statements = [*(LEFT_OUT[name] for name in left_out), prepare]
    walls = Walls(
        scratch=tmp_path / "scratch",
        readable=(tmp_path / "model", tmp_path / "cut", Path(deeds.__file__)),
        cpu_seconds=600,
    )
    _, _, *rest = walls.command(sys.executable, Path(deeds.__file__), json.dumps(given))
    command = [sys.executable, "-c", LAUNCHER, "\n".join(statements), str(SANDBOX), *rest]
    done = subprocess.run(
        command,
        capture_output=True,
        env=environment(walls.scratch),
        cwd=walls.scratch,
        start_new_session=True,
    )
    assert done.returncode == 0, done.stderr.decode()
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def done(told: dict[str, Any]) -> set[str]:
    return {name for name, outcome in told["deeds"].items() if outcome == "done"}


@pytest.mark.slow
def test_without_walls_all_is_done(tmp_path, listening):
    # So that a deed that the other tests find stopped was stopped by the wall.
    told = run_deeds(tmp_path, listening, *LEFT_OUT)
    left = set(told["deeds"]) - done(told)
    # A kernel or a container may refuse these to everybody, or to all but root.
    may = {"use io_uring", "use userfaultfd", "use perf events", "use a keyring", "trace the parent"}
    may |= {"read the parent's memory", "open the parent's memory", "change an attribute", "start a session"}
    assert left <= may, {name: told["deeds"][name] for name in left}
    assert told["walls"] == [] and told["ordinary"] == ""
    if os.getuid() == 0 and VERSION:
        assert left <= {"start a session", "change an attribute", "use userfaultfd", "use a keyring"}


@pytest.mark.slow
@pytest.mark.skipif(not VERSION, reason=NO_LANDLOCK)
@pytest.mark.skipif(not HAS_SECCOMP, reason=NO_SECCOMP)
def test_with_all_walls_nothing_is_done(tmp_path, listening):
    told = run_deeds(tmp_path, listening)
    assert done(told) == set()
    assert set(told["early"].values()) <= {"EPERM", "EACCES"}
    assert told["walls"] == ["landlock", "seccomp", "no network"]
    assert told["ordinary"] == ""
    assert (tmp_path / "model").read_text() == (tmp_path / "cut").read_text() == "somebody's"
    assert list((tmp_path / "scratch").iterdir()) == []


@pytest.mark.slow
@pytest.mark.skipif(not VERSION, reason=NO_LANDLOCK)
def test_landlock_alone(tmp_path, listening):
    told = run_deeds(tmp_path, listening, "seccomp", "capabilities")
    expected = {name for name, since in BY_LANDLOCK.items() if since <= VERSION}
    assert expected & done(told) == set()
    assert told["walls"] == (["landlock", "no TCP"] if VERSION >= 4 else ["landlock"])
    assert told["ordinary"] == ""


@pytest.mark.slow
@pytest.mark.skipif(not HAS_SECCOMP, reason=NO_SECCOMP)
def test_seccomp_alone_lets_nothing_be_written(tmp_path, listening):
    told = run_deeds(tmp_path, listening, "landlock", "capabilities")
    assert done(told) - set(NOT_BY_SECCOMP) == set()
    assert set(READING) <= done(told)
    assert told["walls"] == ["seccomp", "no network"]
    # Nor to its own folder, of which the kernel cannot tell the others.
    assert "PermissionError" in told["ordinary"]


@pytest.mark.slow
@pytest.mark.skipif(not VERSION, reason=NO_LANDLOCK)
@pytest.mark.skipif(not HAS_SECCOMP, reason=NO_SECCOMP)
@pytest.mark.parametrize("version", [1, 3, 5])
def test_older_versions_of_landlock_with_the_filter(tmp_path, listening, version):
    if version > VERSION:
        pytest.skip(NO_LANDLOCK)
    told = run_deeds(tmp_path, listening, prepare=f"walls.landlock_version = lambda: {version}")
    assert done(told) == set()
    assert told["walls"] == ["landlock", "seccomp", "no network"]
    assert told["ordinary"] == ""


@pytest.mark.slow
@pytest.mark.skipif(not VERSION, reason=NO_LANDLOCK)
@pytest.mark.skipif(not HAS_SECCOMP, reason=NO_SECCOMP)
def test_a_kernel_that_refuses_is_not_said_to_keep_anything(tmp_path, listening):
    told = run_deeds(
        tmp_path / "a", listening, prepare="walls._SECCOMP = dict.fromkeys(walls._SECCOMP, 9999)"
    )
    assert told["walls"][0] == "landlock" and "seccomp" not in told["walls"]
    told = run_deeds(tmp_path / "b", listening, prepare="walls._RESTRICT_SELF = 9999")
    assert told["walls"] == ["seccomp", "no network"]


@pytest.mark.slow
@pytest.mark.skipif(not HAS_SECCOMP, reason=NO_SECCOMP)
def test_a_thread_that_is_there_already_would_not_be_kept_by_landlock(tmp_path, listening):
    start = "threading.Thread(target=threading.Event().wait, daemon=True).start()"
    assert run_deeds(tmp_path, listening, prepare=start)["walls"] == ["seccomp", "no network"]


# -- Through the judge ---------------------------------------------------------------------------------------

DEEDS = """
import json, os, sys
import deeds
import numpy as np
from ai_edge_litert.plain import *
from ai_edge_litert import plain

class Interpreter(plain.Interpreter):
    def misbehave(self, stage):
        for name in self.model.get(stage, []):
            getattr(self, name)()

    def try_all(self):
        places = {**self.model["places"], "scratch": os.environ["TMPDIR"], "parent": os.getppid()}
        root = os.path.dirname(os.path.dirname(places["scratch"]))
        outcomes = deeds.attempt(places)
        for folder in range(1, 12):
            for mode in (os.O_RDONLY | os.O_DIRECTORY, os.O_WRONLY | os.O_CREAT):
                name = f"{root}/{folder}" + ("" if mode & os.O_DIRECTORY else "/forged")
                try:
                    os.close(os.open(name, mode))
                except OSError:
                    continue
                outcomes[f"{folder} {'listed' if mode & os.O_DIRECTORY else 'written'}"] = "done"
        deeds.ordinary(places["scratch"])
        environment = sorted(set(os.environ) - set(self.model["environment"]))
        done = [name for name, outcome in outcomes.items() if outcome == "done"]
        raise RuntimeError(f"done: {done}; environment: {environment}")

    def fill_many(self):
        for number in range(10000):
            with open(f"{number}", "wb") as file:
                file.write(bytes(16 << 20))

    def fill_one(self):
        with open("large", "wb") as file:
            for _ in range(1000):
                file.write(bytes(16 << 20))

    def fill_with_files(self):
        for number in range(10**7):
            open(f"{number}", "wb").close()

    def chatter(self):
        for _ in range(10**6):
            os.write(2, bytes(1 << 20))

    def fill_memory_files(self):
        kept = []
        for _ in range(900):
            kept.append(os.memfd_create("bomb"))
            os.write(kept[-1], bytes(8 << 20))

    def fill_shared_memory(self):
        import mmap
        shared = mmap.mmap(-1, 4 << 30)
        for start in range(0, 4 << 30, 4096):
            shared[start] = 1

    def spin(self):
        import resource
        soft, hard = resource.getrlimit(resource.RLIMIT_CPU)
        raise RuntimeError(f"limits: {soft} {hard} {resource.getrlimit(resource.RLIMIT_CORE)}")

    def hold_up(self):
        # With the lock of the interpreter held, so that none of its threads goes on.
        import ctypes
        ctypes.PyDLL(None).sleep(60)

    def nonsense(self):
        self.announce("../../x", 1)

    def endless(self):
        os.write(self.pipe(), b"[" * 1000)
        while True:
            os.write(self.pipe(), b"[" * (1 << 20))

    def bomb(self):
        self.announce("0.0", 4000000000)

    def hollow(self):
        self.announce("0.0", 0, 1 << 70)

    def clock(self):
        message = {"ran": 0, "unreadable": ["no"], "cpu": 10 ** 400}
        os.write(self.pipe(), json.dumps(message).encode() + b"\\n")

    def announce(self, name, *shape):
        array = {"name": name, "dtype": "<f4", "shape": shape}
        message = {"ran": 0, "unreadable": [None], "arrays": [array]}
        os.write(self.pipe(), json.dumps(message).encode() + b"\\n")

    def pipe(self):
        # The channel is the only pipe that this process writes to.
        for number in range(3, 64):
            try:
                name = os.readlink(f"/proc/self/fd/{number}")
            except OSError:
                continue
            if name.startswith("pipe:"):
                return number
"""


@pytest.fixture
def stranger(tmp_path: Path) -> str:
    """A runtime that does what its models say, in the place of a real one."""
    folder = tmp_path / "runtime"
    folder.mkdir()
    runtime = fake_runtime.install(folder)
    package = folder / "ai_edge_litert"
    (package / "interpreter.py").rename(package / "plain.py")
    (package / "interpreter.py").write_text(DEEDS)
    shutil.copy(deeds.__file__, folder)
    return runtime


def run(tmp_path: Path, runtime: str, *todo: str, **more: Any) -> RunResult:
    model = fake_runtime.model(tmp_path / "bad", running=list(todo), **more.pop("model", {}))
    return run_model(model, Judging(runtime=runtime, timeout=60, **more))


@pytest.mark.slow
@pytest.mark.skipif(not VERSION, reason=NO_LANDLOCK)
@pytest.mark.skipif(not HAS_SECCOMP, reason=NO_SECCOMP)
def test_a_model_that_takes_its_process_over(tmp_path, stranger, listening, monkeypatch):
    monkeypatch.setenv("A_SECRET", "token")
    given = places(tmp_path / "places", listening)
    # Both are told: what the wrapper sets, and what Python sets by itself.
    more = ["CUDA_VISIBLE_DEVICES", "TF_CPP_MIN_LOG_LEVEL", "OPENBLAS_NUM_THREADS", "PYTHONDONTWRITEBYTECODE"]
    more += ["HOME", "TMPDIR", "FAKE_PROCESS", "PWD", "OLDPWD", "SHLVL", "_", "LC_CTYPE"]
    result = run(tmp_path, stranger, "try_all", model={"places": given, "environment": [*INHERITED, *more]})
    assert result.failure is not None
    # The folder of inputs is the first one: it may be read.
    assert result.failure.message.endswith(": done: ['1 listed']; environment: []"), result.failure.message
    assert result.judge is not None and result.judge.sandbox == ("landlock", "seccomp", "no network")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("deed", "kind", "text"),
    [
        ("fill_many", "disk", "wrote more than 268 MB to its temporary folder"),
        ("fill_with_files", "disk", "wrote more than"),
        ("fill_one", "error", "File too large"),
        ("chatter", "error", "File too large"),
        ("fill_memory_files", "memory", "took more memory than 700 MB"),
        ("fill_shared_memory", "memory", "took more memory than 700 MB"),
        ("nonsense", "crash", "sent what is no answer"),
        ("bomb", "crash", "arrays of 16000000000 bytes at once"),
        ("hollow", "crash", "with such a shape"),
        ("clock", "crash", "sent what is no answer"),
        ("endless", "crash", "a line of more than"),
    ],
)
@pytest.mark.skipif(not VERSION, reason=NO_LANDLOCK)
def test_floods(tmp_path, stranger, monkeypatch, deed, kind, text):
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    largest, ended = [0], threading.Event()

    def look() -> None:
        while not ended.wait(0.05):
            largest.append(nbytes_in(folder))

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        result = run(tmp_path, stranger, deed, memory_limit=700_000_000)
    finally:
        ended.set()
        watcher.join()
    assert result.failure is not None and result.failure.kind == kind, result.failure
    assert text in result.failure.message
    # It is looked at every tenth of a second, and written to at a few GB/s.
    assert max(largest) < 1500 << 20
    assert list(folder.iterdir()) == []


def nbytes_in(folder: Path) -> int:
    nbytes = 0
    for root, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                nbytes += Path(root, name).stat().st_blocks * 512
    return nbytes


@pytest.mark.slow
def test_limits(tmp_path, stranger):
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
    try:
        result = run(tmp_path, stranger, "spin")
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, (soft, hard))
    assert result.failure is not None
    seconds = 20 * 60 * (os.cpu_count() or 1)
    assert f"limits: {seconds} {seconds + 5} (0, 0)" in result.failure.message


@pytest.mark.runtime
def test_the_report_says_in_what_it_ran(tmp_path):
    file = tiny_models.add_constant(tmp_path / "a.tflite", [1.0])
    verdict = verify(file, file)
    assert verdict.judge is not None
    known = {"landlock": bool(VERSION), "seccomp": HAS_SECCOMP, "no network": HAS_SECCOMP}
    assert [wall for wall, there in known.items() if there] == [*verdict.judge.sandbox]
    assert verdict.to_dict()["judge"]["sandbox"] == list(verdict.judge.sandbox)
    told = "\n".join(verdict_lines(verdict))
    assert f"in a sandbox ({', '.join(verdict.judge.sandbox)})" in told


@pytest.mark.runtime
def test_a_model_that_another_program_can_read_only_through_the_parent(tmp_path):
    # As what is written before it is published: a file without a name.
    file = tiny_models.add_constant(tmp_path / "a.tflite", [1.0])
    with open(file, "r+b") as opened:
        path = f"/proc/{os.getpid()}/fd/{opened.fileno()}"
        file.unlink()
        assert verify(path, path).status == "pass"


@pytest.mark.runtime
def test_files_without_a_name_one_after_the_other(tmp_path):
    """As candidates of a search: each is closed when the next one comes."""
    file = tiny_models.add_constant(tmp_path / "a.tflite", [1.0])
    with Judge(file, Judging(samples=2)) as judge, open(file, "rb") as opened:
        for number in (200, 201, 202):
            os.dup2(opened.fileno(), number)
            try:
                assert judge.compare(Path(f"/proc/{os.getpid()}/fd/{number}")).status == "pass"
            finally:
                os.close(number)


# -- The filter, instruction by instruction ------------------------------------------------------------------


def verdict_of(
    program: list[tuple[int, int, int, int]], architecture: int, number: int, *arguments: int
) -> int:
    """Carries a filter out, as the kernel does; returns the error number, 0 to allow."""
    words = [number, architecture, 0, 0]
    for argument in (*arguments, *[0] * (6 - len(arguments))):
        words += [argument & 0xFFFFFFFF, (argument >> 32) & 0xFFFFFFFF]
    held, at = 0, 0
    while True:
        code, true, false, operand = program[at]
        at += 1
        if code == 0x20:
            held = words[operand // 4]
        elif code == 0x54:
            held &= operand
        elif code == 0x06:
            return 0 if operand == 0x7FFF0000 else operand & 0xFFFF
        else:
            holds = {0x15: held == operand, 0x35: held >= operand, 0x45: bool(held & operand)}[code]
            at += true if holds else false


@pytest.mark.parametrize("machine", sandbox_module.ARCHITECTURES)
@pytest.mark.parametrize("writes", [True, False])
def test_filter(machine: str, writes: bool) -> None:
    pid, other = 4242, 4243
    made = sandbox_module.program(machine, pid, writes=writes)
    architecture = sandbox_module.ARCHITECTURES[machine]
    column = list(sandbox_module.ARCHITECTURES).index(machine)

    def ask(call: str | tuple[int | None, int | None], *arguments: int) -> int | None:
        tables = (sandbox_module.CALLS, sandbox_module.WRITES, sandbox_module.ABSENT, sandbox_module.OWN)
        known = {name: number for table in tables for name, number in table.items()}
        number = (known[call] if isinstance(call, str) else call)[column]
        return None if number is None else verdict_of(made, architecture, number, *arguments)

    eperm, enosys = 1, 38
    assert {ask(name) for name in sandbox_module.CALLS} - {None} == {eperm}
    assert {ask(name) for name in sandbox_module.WRITES} - {None} == {0 if writes else eperm}
    assert {ask(name) for name in sandbox_module.ABSENT} == {enosys}
    for name in sandbox_module.OWN:
        assert ask(name, pid) == 0
        for target in (other, 0, 1, (1 << 64) - 1, (1 << 64) - pid):
            assert ask(name, target) == eperm
    assert ask(sandbox_module.CLONE, 0x3D0F00) == 0
    assert ask(sandbox_module.CLONE, 0x1200011) == eperm
    assert ask(sandbox_module.AFFINITY, 0) == ask(sandbox_module.AFFINITY, pid) == 0
    assert ask(sandbox_module.AFFINITY, other) == eperm
    for who in (0, pid):
        assert ask(sandbox_module.PRLIMIT, who, 1, 0) == 0
        assert ask(sandbox_module.PRLIMIT, who, 2, 1 << 40) == 0
        assert ask(sandbox_module.PRLIMIT, who, 1, 1 << 40) == eperm
        assert ask(sandbox_module.PRLIMIT, who, 1, 16) == eperm
    assert ask(sandbox_module.PRLIMIT, other, 1, 0) == ask(sandbox_module.PRLIMIT, other, 2, 16) == eperm
    assert ask(sandbox_module.SETRLIMIT, 2) == 0 and ask(sandbox_module.SETRLIMIT, 1) == eperm
    for option, answer in ((1, eperm), (35, eperm), (0x59616D61, eperm), (38, 0), (15, 0)):
        assert ask(sandbox_module.PRCTL, option) == answer
    for command, answer in ((8, eperm), (15, eperm), (1, 0), (3, 0)):
        assert ask(sandbox_module.FCNTL, 5, command) == answer
    for command, answer in ((0x5412, eperm), (0x541C, eperm), (0x8901, eperm), (0x5401, 0)):
        assert ask(sandbox_module.IOCTL, 0, command) == answer
    for call, place in sandbox_module.OPEN:
        for flags, answer in (
            (os.O_RDONLY, 0),
            (os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY, 0),
            (os.O_RDONLY | os.O_TRUNC, eperm),
            (os.O_WRONLY, 0 if writes else eperm),
            (os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0 if writes else eperm),
        ):
            assert ask(call, *[0] * place, flags) in (answer, None)
    # Reading, mapping, threads waiting for each other: of what is not named, all.
    assert ask((0, 63)) == ask((9, 222)) == ask((202, 98)) == 0
    # Another architecture's numbers, the x32 interface, and what the kernel has learned since.
    wrong = sandbox_module.ARCHITECTURES["aarch64" if machine == "x86_64" else "x86_64"]
    assert verdict_of(made, wrong, 0) == verdict_of(made, 0x40000003, 0) == eperm
    assert verdict_of(made, architecture, 0x40000000) == verdict_of(made, architecture, 470) == enosys


def test_numbers_of_calls() -> None:
    """Compared with the system's own lists, where they are."""
    known: dict[int, dict[str, int]] = {0: {}, 1: {}}
    for column, path in (
        (0, "/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
        (1, "/usr/include/asm-generic/unistd.h"),
    ):
        if not Path(path).exists():
            continue
        for line in Path(path).read_text().splitlines():
            words = line.split()
            if len(words) == 3 and words[0] == "#define" and words[2].isdigit():
                name = words[1].removeprefix("__NR3264_").removeprefix("__NR_")
                known[column][name] = int(words[2])
    if not known[0] and not known[1]:
        pytest.skip("the headers of the kernel are not installed")
    single = {
        name: getattr(sandbox_module, name) for name in ("CLONE", "PRCTL", "FCNTL", "IOCTL", "SETRLIMIT")
    }
    tables = (sandbox_module.CALLS, sandbox_module.WRITES, sandbox_module.ABSENT, sandbox_module.OWN)
    for table in (*tables, {name.lower(): numbers for name, numbers in single.items()}):
        for name, numbers in table.items():
            for column, number in enumerate(numbers):
                if number is not None and name in known[column]:
                    assert number == known[column][name], name


@pytest.mark.runtime
@pytest.mark.skipif(not HAS_SECCOMP, reason=NO_SECCOMP)
def test_a_process_that_holds_everything_up_ends_with_its_parent(tmp_path, stranger):
    # It does not hear that its input has closed: the system ends it.
    model = fake_runtime.model(tmp_path / "a", running=["hold_up"])
    code = "import sys, tfl_rewrite.judge.judge as v; from tfl_rewrite import Judging as J; "
    code += "v.run_model(sys.argv[1], J(runtime=(sys.argv[2],)))"
    process = subprocess.Popen([sys.executable, "-c", code, str(model), stranger])
    try:
        children = wait_for(lambda: [pid for pid in children_of(process.pid) if is_sealed(pid)])
        time.sleep(1)
        assert Path(f"/proc/{children[0]}").exists()
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    wait_for(lambda: not Path(f"/proc/{children[0]}").exists() or state(children[0]) == "Z")


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]


def is_sealed(pid: int) -> bool:
    return "Seccomp:\t2" in Path(f"/proc/{pid}/status").read_text()


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait_for(condition: Any, seconds: float = 60.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
    return found


@pytest.mark.runtime
def test_crashes_and_endless_loops_are_named_in_the_sandbox(tmp_path):
    for file, text, cause in (
        (tiny_models.crashing(tmp_path / "a.tflite"), "died of SIGSEGV while allocating", "crash"),
        (tiny_models.hanging(tmp_path / "b.tflite"), "was stopped after 1 s, while running it", "timeout"),
    ):
        verdict = verify(file, file, Judging(timeout=1))
        assert (verdict.status, verdict.cause) == ("unverified", cause) and text in verdict.reasons[0]
        assert verdict.judge is not None and bool(verdict.judge.sandbox) is bool(VERSION or HAS_SECCOMP)


@pytest.mark.slow
@pytest.mark.skipif(not VERSION, reason=NO_LANDLOCK)
def test_a_runtime_where_the_sandbox_does_not_read(tmp_path, monkeypatch):
    # What its module reads beside itself is no part of an installation.
    runtime = fake_runtime.install(tmp_path)
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "table").write_text("x")
    module = tmp_path / "ai_edge_litert" / "interpreter.py"
    program = tmp_path / "python"
    program.write_text(
        program.read_text().replace(f'PYTHONPATH="{tmp_path}"', f'PYTHONPATH="{tmp_path}/here"')
    )
    (tmp_path / "here").mkdir()
    shutil.move(module.parent, tmp_path / "here")
    module = tmp_path / "here" / "ai_edge_litert" / "interpreter.py"
    module.write_text(f"open({str(tmp_path / 'kept' / 'table')!r}).read()\n" + module.read_text())
    file = fake_runtime.model(tmp_path / "a")
    with pytest.raises(UsageError, match="Permission denied") as caught:
        verify(file, file, Judging(runtime=runtime))
    assert "virtual environment" in caught.value.remedy
