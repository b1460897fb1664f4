"""Processes that are forked from one that has loaded a runtime."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tfl_rewrite.interpreter import forks
from tfl_rewrite.interpreter.forks import Forking, Process, prepare
from tfl_rewrite.interpreter.process import RuntimeChoice, Walls, environment, warm

pytestmark = [
    pytest.mark.runtime,
    pytest.mark.skipif(not forks._can_fork(), reason="the system tells only of one's own children"),
]

# What a process is asked is a piece of Python; it answers with its value.
SCRIPT = """
import json, os, sys
def main(sandbox, *arguments):
    for line in sys.stdin:
        print(json.dumps(eval(line)), flush=True)
    sys.exit(7)
"""


@pytest.fixture(autouse=True)
def _none_before() -> Iterator[None]:
    forks._close_all()
    yield
    forks._close_all()


def kind(*modules: str) -> Forking:
    return Forking(python=sys.executable, modules=modules, environment=environment())


class Made:
    """A process, and questions to it; started anew without modules."""

    def __init__(
        self, folder: Path, *modules: str, command: str = "", inherited: tuple[int, ...] = ()
    ) -> None:
        script = folder / "script.py"
        script.write_text(SCRIPT)
        scratch = folder / f"scratch{len(list(folder.iterdir()))}"
        scratch.mkdir()
        walls = Walls(scratch=scratch, readable=(folder,), cpu_seconds=60)
        with open(folder / "stderr", "ab") as stderr:
            self.process = Process(
                [command] if command else walls.command(sys.executable, script),
                stderr=stderr,
                environment=environment(scratch),
                folder=scratch,
                inherited=inherited,
                forked=walls.forked(kind(*modules), script) if modules else None,
            )

    def ask(self, text: str) -> object:
        self.process.stdin.write(text.encode() + b"\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def end(self) -> int:
        self.process.stdin.close()
        return self.process.wait(20.0)


def is_there(pid: int) -> bool:
    """Whether a process runs."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def wait_for_end(pid: int) -> None:
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    assert poller.poll(20_000)
    os.close(descriptor)


def test_a_fork_finds_loaded_what_it_runs(tmp_path: Path) -> None:
    for runtime in ("litert", "python:/no/such", "nonsense"):
        warm(runtime)
    (server,) = forks._servers.values()
    forking = RuntimeChoice.parse("litert").forking()
    assert forking is not None
    made = Made(tmp_path, *forking.modules)
    loaded = "[name in sys.modules for name in ('_tfl_rewrite_child', '_tfl_rewrite_interface', 'email')]"
    assert made.ask(loaded) == [True] * 3 and made.ask("os.getppid()") == server.pid
    assert made.end() == 7


def test_modules_are_imported_once(tmp_path: Path) -> None:
    first, second = Made(tmp_path, "decimal"), Made(tmp_path, "decimal")
    for made in (first, second):
        assert made.ask("'decimal' in sys.modules") is True
    assert first.ask("os.getppid()") == second.ask("os.getppid()") != os.getpid()
    assert first.process.pid != second.process.pid
    for made in (first, second):
        assert made.process.poll() is None
        assert made.end() == made.process.returncode == made.process.poll() == 7


def test_it_is_as_if_it_were_started(tmp_path: Path) -> None:
    with open(tmp_path / "some", "wb") as some:
        number = some.fileno()
        anew, forked = (
            Made(tmp_path, *modules, inherited=(number,))
            for modules in ((), ("decimal", "resource", "signal"))
        )
        for text in (
            "sorted(int(name) for name in os.listdir('/proc/self/fd'))[:4]",
            "os.getsid(0) == os.getpid() == os.getpgid(0)",
            "{key: value for key, value in os.environ.items() if key not in ('HOME', 'TMPDIR')}",
            "os.getcwd() == os.environ['HOME'] == os.environ['TMPDIR']",
            "__import__('resource').getrlimit(0)",
            "str(__import__('signal').getsignal(2))",
            "open('/proc/self/status').read().count('NoNewPrivs:\\t1')",
        ):
            assert anew.ask(text) == forked.ask(text), text
        # Nothing of the one that forks: three pipes, what was given, and the folder that is listed.
        assert len(forked.ask("os.listdir('/proc/self/fd')")) == 5  # type: ignore[arg-type]
        assert forked.ask("open('mine', 'w').write('x')") == 1
        for made in (anew, forked):
            made.process.kill_group()
            assert made.process.wait(20.0) == -signal.SIGKILL


@pytest.mark.parametrize("module", ["no_such_module", "thread_of_mine"])
def test_what_cannot_be_forked_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    (tmp_path / "thread_of_mine.py").write_text(
        "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    made = Made(tmp_path, module)
    assert made.ask("os.getppid()") == os.getpid()
    assert made.end() == 7
    counts = []
    for _ in range(2):
        with pytest.raises(OSError, match="No such file"):
            Made(tmp_path, module, command=str(tmp_path / "missing"))
        counts.append(len(list(Path("/proc/self/fd").iterdir())))
    assert counts[0] == counts[1]


def test_another_environment_is_another_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = Made(tmp_path, "decimal")
    parents = {one.ask("os.getppid()")}
    for number in range(forks._MOST + 1):
        monkeypatch.setenv("TZ", f"UTC+{number}")
        made = Made(tmp_path, "decimal")
        assert made.ask("os.environ['TZ']") == f"UTC+{number}"
        parents.add(made.ask("os.getppid()"))
        made.end()
    assert len(parents) == forks._MOST + 2
    # No more are kept than that, but for those whose forks live.
    assert len(forks._servers) == forks._MOST and one.ask("1") == 1


def test_with_the_server_its_forks_end_and_the_next_has_another(tmp_path: Path) -> None:
    made = Made(tmp_path, "decimal")
    server = made.ask("os.getppid()")
    assert isinstance(server, int)
    os.kill(server, signal.SIGKILL)
    assert made.process.wait(20.0) == -signal.SIGKILL
    other = Made(tmp_path, "decimal")
    assert other.ask("os.getppid()") not in (server, os.getpid())
    assert other.end() == 7


@pytest.mark.parametrize("ending", ["", "import os; os._exit(0)", "import os; os.kill(os.getpid(), 9)"])
def test_no_server_outlives_who_started_it(fixtures: Path, ending: str) -> None:
    code = (
        "import sys, tfl_rewrite; from pathlib import Path; from tfl_rewrite.interpreter import forks\n"
        "path = Path(sys.argv[1]); assert tfl_rewrite.verify(path, path).passed\n"
        "print(*(server.pid for server in forks._servers.values()), flush=True)\n"
    )
    words = [sys.executable, "-c", code + ending, str(fixtures / "dense.tflite")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    (pid,) = map(int, done.stdout.split())
    wait_for_end(pid)
    assert not is_there(pid) and done.stderr == ""


def test_descriptors_come_under_their_numbers(tmp_path: Path) -> None:
    """Whatever the numbers under which they arrive, which are small ones."""
    held, spare = [], os.open(os.devnull, os.O_RDONLY)
    try:
        while len(held) < 2 or held[-1] < 20:
            held.append(os.open(tmp_path / str(len(held)), os.O_CREAT | os.O_RDWR))
        for number in held:
            os.pwrite(number, str(number).encode(), 0)
        for given in [(number,) for number in held] + [(held[0], held[-1]), (held[-1], held[0]), tuple(held)]:
            made = Made(tmp_path, "decimal", inherited=given)
            assert made.ask(f"[os.pread(number, 9, 0).decode() for number in {given}]") == list(
                map(str, given)
            )
            assert made.end() == 7
    finally:
        for number in [*held, spare]:
            os.close(number)


def test_a_module_that_loads_too_slowly_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "slow_of_mine.py").write_text("import time\ntime.sleep(1.5)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(forks, "START_SECONDS", 0.3)
    server = prepare(kind("slow_of_mine"))
    assert server is not None
    made = Made(tmp_path, "slow_of_mine")
    # No second process reads what this one is asked.
    wait_for_end(server.pid)
    assert made.ask("os.getppid()") == os.getpid() and made.end() == 7
    # It is not tried again.
    assert prepare(kind("slow_of_mine")) is None


@pytest.mark.parametrize("when", ["always", "later"])
def test_where_nothing_tells_of_its_end_it_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    forks._can_fork.cache_clear()
    if when == "later":
        assert forks._can_fork()

    def refused(pid: int, flags: int = 0) -> int:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr(os, "pidfd_open", refused)
        made = Made(tmp_path, "decimal")
        assert made.ask("os.getppid()") == os.getpid() and made.end() == 7
    for server in forks._servers.values():
        # What was forked is gone, and waited for.
        assert not Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text()
    forks._can_fork.cache_clear()


def test_who_ignores_the_end_of_children_is_told_it(fixtures: Path) -> None:
    code = (
        "import signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"
        "import sys, tfl_rewrite; from pathlib import Path; from tfl_rewrite.interpreter import forks\n"
        "path = Path(sys.argv[1]); first = tfl_rewrite.verify(path, path)\n"
        "(one,) = forks._servers.values(); second = tfl_rewrite.verify(path, path)\n"
        "print(first.passed, second.passed, one.has_ended)\n"
    )
    words = [sys.executable, "-c", code, str(fixtures / "dense.tflite")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("True True False\n", "")


def test_what_a_process_would_inherit_tells_servers_apart() -> None:
    resource = pytest.importorskip("resource")
    before, (soft, hard) = kind("decimal").key(), resource.getrlimit(resource.RLIMIT_CORE)
    assert before == kind("decimal").key() != kind("json").key()
    resource.setrlimit(resource.RLIMIT_CORE, (0 if soft else min(1 << 20, hard) if hard > 0 else 0, hard))
    try:
        changed = resource.getrlimit(resource.RLIMIT_CORE) != (soft, hard)
        assert (kind("decimal").key() != before) is changed
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, (soft, hard))


def test_no_server_lives_on_in_a_fork_of_the_user(tmp_path: Path) -> None:
    """It ends with who started it, though a copy of that one goes on."""
    code = (
        "import os, sys, time; from tfl_rewrite.interpreter import forks\n"
        "from tfl_rewrite.interpreter.process import environment\n"
        "one = forks.Forking(python=sys.executable, modules=('decimal',), environment=environment())\n"
        "server = forks.prepare(one)\n"
        "child = os.fork()\n"
        "if not child: time.sleep(60)\n"
        "print(server.pid, child, flush=True); os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert done.stdout is not None
    server, child = map(int, done.stdout.readline().split())
    try:
        wait_for_end(server)
    finally:
        os.kill(child, signal.SIGKILL)
        done.wait()
        done.stdout.close()


def test_a_fork_of_the_user_has_its_own(tmp_path: Path) -> None:
    made = Made(tmp_path, "decimal")
    server = made.ask("os.getppid()")
    child = os.fork()
    if not child:
        code = 1
        try:
            own = Made(tmp_path, "decimal")
            code = 0 if own.ask("os.getppid()") != server and own.end() == 7 else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert made.ask("os.getppid()") == server and made.end() == 7
