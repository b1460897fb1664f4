"""Runs models that a stranger might send, and looks at what became of the machine.

    python scripts/strangers.py --count 500 --seed 0 [--jobs 2] [--limit 60]

Each model is verified against itself by a whole process. It must end with a documented exit code within the
limit, without a traceback, and leave nothing behind: no process, nothing in the folder for temporary files,
no change of any file beside it, in the home folder, where it was started, or of the program itself.
The process must not take 300 MB; the interpreters, which are others, may take a GB.

Model number N depends on the seed and on N alone, so ``--first N --count 1`` repeats it. Prints what became
of them; exits 1 if there was a breach.
"""

from __future__ import annotations

import argparse
import collections
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

from hostile.strangers import stranger

ROOT = Path(__file__).resolve().parent.parent
CODES = (0, 2, 3, 4, 5)
MOST_MEMORY = 300 * 10**6
SECONDS = 3.0
"""That one run of a model may take."""
_MAIN = """
import atexit, sys
def tell():
    with open("/proc/self/status") as status, open(sys.argv.pop(1), "w") as told:
        told.write(next(line for line in status if line.startswith("VmHWM")).split()[1])
arguments = sys.argv[2:]
atexit.register(tell)
from tfl_rewrite.cli import main
sys.exit(main(arguments))
"""
_OUTCOMES = ("SIGSEGV", "SIGABRT", "SIGFPE", "SIGBUS", "SIGILL", "stopped after", "memory", "outputs take")


def state(folder: Path) -> dict[str, tuple[int, ...]]:
    """What would tell that a file was touched: size, mode, owner, times, for everything below a folder."""
    return {str(path): _facts(path) for path in _below(folder)}


def _below(folder: Path) -> Iterator[Path]:
    for root, folders, names in os.walk(folder):
        yield from (Path(root, name) for name in (*folders, *names))


def _facts(path: Path) -> tuple[int, ...]:
    facts = path.lstat()
    return facts.st_ino, facts.st_size, facts.st_mode, facts.st_uid, facts.st_mtime_ns, facts.st_ctime_ns


def left_over(place: Path) -> list[int]:
    """Processes that were started with a temporary folder below a place."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            environment = (entry / "environ").read_bytes()
            dead = (entry / "stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
        except OSError:
            continue
        if f"TMPDIR={place}".encode() in environment and not dead:
            found.append(int(entry.name))
    return found


class Playground:
    """A home with what is worth stealing, a folder to work in, and one for temporary files."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.home, self.work, self.temporary = (place / name for name in ("home", "work", "temporary"))
        for folder in (self.home / ".ssh", self.work, self.temporary):
            folder.mkdir(parents=True)
        for path in (self.home / ".ssh" / "id_ed25519", self.home / ".bashrc", self.work / "thesis.txt"):
            path.write_text("somebody's\n")
        self.model = self.work / "model.tflite"

    def run(self, data: bytes, limit: float) -> tuple[str, list[str], int]:
        """Verifies a model against itself; returns how that ended, what was wrong, and the memory it took."""
        self.model.write_bytes(data)
        told = self.place / "memory"
        before = state(self.home) | state(self.work)
        command = [sys.executable, "-c", _MAIN, str(told), str(self.model), str(self.model)]
        command[4:4] = ["verify"]
        command += ["--samples", "2", "--timeout", str(SECONDS), "--memory-limit", "1GB"]
        environment = {**os.environ, "HOME": str(self.home), "TMPDIR": str(self.temporary)}
        environment["PYTHONPATH"] = str(ROOT)
        wrong = []
        process = subprocess.Popen(
            command,
            cwd=self.work,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            output = process.communicate(timeout=limit)[0].decode(errors="replace")
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output = process.communicate()[0].decode(errors="replace")
            wrong.append(f"did not end in {limit:g} s")
        if process.returncode not in CODES:
            wrong.append(f"exit code {process.returncode}: {output[-300:]}")
        if "Traceback" in output:
            wrong.append(f"a traceback: {output[-500:]}")
        if state(self.home) | state(self.work) != before:
            wrong.append("files were touched")
        if left := self._waited_for():
            wrong.append(f"processes were left: {left}")
        if names := [path.name for path in self.temporary.iterdir()]:
            wrong.append(f"temporary files were left: {names}")
            shutil.rmtree(self.temporary)
            self.temporary.mkdir()
        memory = int(told.read_text()) * 1024 if told.exists() else 0
        if memory > MOST_MEMORY:
            wrong.append(f"took {memory / 1e6:.0f} MB of memory")
        words = output.split()
        outcome = (words[0].rstrip(":") if words else "silence") + f", exit code {process.returncode}"
        outcome += "".join(f", {word}" for word in _OUTCOMES if word in output)
        return outcome, wrong, memory

    def _waited_for(self) -> list[int]:
        """Processes that are there half a second after the end."""
        for _ in range(10):
            if not (left := left_over(self.temporary)):
                return []
            time.sleep(0.05)
        return left


def run(
    count: int, *, first: int, seed: int, jobs: int, limit: float, place: Path
) -> tuple[collections.Counter[str], list[str], int]:
    """Runs some models; returns what became of them, what was wrong, and the most memory that one took."""
    outcomes: collections.Counter[str] = collections.Counter()
    breaches: list[str] = []
    most = 0
    program = state(ROOT / "tfl_rewrite")

    def work(job: int) -> list[tuple[int, str, list[str], int]]:
        playground = Playground(place / str(job))
        rows = []
        for number in range(first + job, first + count, jobs):
            rows.append((number, *playground.run(stranger(Random(f"{seed}/{number}")), limit)))
        return rows

    with ThreadPoolExecutor(jobs) as pool:
        for rows in pool.map(work, range(jobs)):
            for number, outcome, wrong, memory in rows:
                outcomes[outcome] += 1
                breaches += [f"#{number}: {text}" for text in wrong]
                most = max(most, memory)
    if state(ROOT / "tfl_rewrite") != program:
        breaches.append("the program was touched")
    return outcomes, breaches, most


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--first", type=int, default=0, help="number of the first model, to repeat one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--limit", type=float, default=60.0, help="seconds for each whole process")
    parser.add_argument("--save", type=Path, metavar="DIR", help="write models instead of running them")
    arguments = parser.parse_args()
    if arguments.save is not None:
        arguments.save.mkdir(parents=True, exist_ok=True)
        for number in range(arguments.first, arguments.first + arguments.count):
            data = stranger(Random(f"{arguments.seed}/{number}"))
            (arguments.save / f"{arguments.seed}-{number}.tflite").write_bytes(data)
        return 0
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tfl-rewrite-strangers-") as name:
        outcomes, breaches, most = run(
            arguments.count,
            first=arguments.first,
            seed=arguments.seed,
            jobs=arguments.jobs,
            limit=arguments.limit,
            place=Path(name),
        )
    for outcome, count in outcomes.most_common():
        print(f"{count:6d}  {outcome}")
    print(f"{len(breaches)} breach(es) in {sum(outcomes.values())} models; at most {most / 1e6:.0f} MB each")
    print(f"{time.monotonic() - started:.0f} s", file=sys.stderr)
    for breach in breaches:
        print(f"  {breach}".encode("ascii", "backslashreplace").decode())
    return 1 if breaches else 0


if __name__ == "__main__":
    sys.exit(main())
