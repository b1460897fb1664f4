"""Feeds damaged models to the package, in this process, and reports what breaks its contract.

    python scripts/fuzz.py MODEL... --count 20000 --seed 0 --jobs 2
    python scripts/fuzz.py --minutes 2

The contract: any bytes give FormatError, UnsupportedError, or a model that every command can show and
rewrite;
within 10 seconds of processor time for a file under 1 MB, and within 32 times its size and 64 MB of memory.
What is written can be read again. One mutant in fifty is a shard manifest, and must not touch other files.

Mutant number N depends on the seed, on N, and on the list of models alone, so ``--first N --count 1`` repeats
it. Without models, those under fixtures/ are used. Nothing is run in an interpreter: see mutate.py for that.
Prints what became of the mutants; exits 1 if there was a breach.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import faulthandler
import multiprocessing
import resource
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from random import Random

from hostile.bytewise import Spans, mutated_bytes
from hostile.contract import ORDERS, Breach, bounded, exercise
from hostile.manifests import Manifests
from hostile.structured import mutated_fields

from tfl_rewrite.errors import TflRewriteError
from tfl_rewrite.flatbuf.reader import read
from tfl_rewrite.model.ir import schema

ROOT = Path(__file__).resolve().parent.parent
MANIFEST_EVERY = 50
_MEMORY = 4 << 30
_OFTEN_NBYTES = 12_000
_PIECE = 20
_DEAD_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Seed:
    """A model to damage, with what offsets reach in it, weights aside."""

    name: str
    data: bytes
    spans: Spans


def seed_of(path: Path) -> Seed:
    """Reads a model; one that is damaged already has no spans."""
    data = path.read_bytes()
    spans: Spans = ()
    with contextlib.suppress(TflRewriteError):
        spans = [span for span in read(memoryview(data), schema()).spans if span[1] - span[0] <= 1024]
    return Seed(f"{path.parent.name}/{path.name}", data, spans)


def mutant(seeds: Sequence[Seed], seed: int, number: int) -> tuple[Seed, bytes]:
    """Makes a mutant."""
    random = Random(f"{seed}/{number}")
    # Large models take longer and show no more, so they come less often.
    source = random.choices(seeds, [1 / (_OFTEN_NBYTES + len(item.data)) for item in seeds])[0]
    kind = random.random()
    data = source.data
    if kind < 0.5:
        data = mutated_fields(data, random)
    if kind >= 0.45:
        data = mutated_bytes(data, random, source.spans)
    return source, data


@dataclass(slots=True)
class Tally:
    """What became of some mutants: counts, and for each breach its number and what was wrong."""

    outcomes: collections.Counter[str] = field(default_factory=collections.Counter)
    breaches: list[tuple[int, str]] = field(default_factory=list)


class Trial:
    """Tries mutants one after the other."""

    def __init__(self, models: Sequence[Path], seed: int, folder: Path) -> None:
        self.seeds = [seed_of(path) for path in models]
        self.seed = seed
        self.folder = folder
        self.manifests = Manifests(ROOT / "fixtures" / "lstm.tflite", folder)
        # Only from the second time on is all code loaded, and memory what the file costs.
        exercise((ROOT / "fixtures" / "dense.tflite").read_bytes(), folder=folder)

    def run(self, number: int) -> tuple[str, str]:
        """Returns what became of a mutant and, for a breach, what was wrong."""
        random = Random(f"{self.seed}/{number}/use")
        name = "a mutant or manifest"
        try:
            if number % MANIFEST_EVERY == MANIFEST_EVERY - 1:
                with bounded(b""):
                    return f"manifest, {self.manifests.try_one(random)}", ""
            source, data = mutant(self.seeds, self.seed, number)
            name = source.name
            with bounded(data):
                orders = 1 << random.randrange(len(ORDERS))
                folder = self.folder if random.random() < 0.1 else None
                return exercise(data, orders=orders, folder=folder), ""
        except Breach as error:
            what = str(error)
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(last.filename).name}:{last.lineno}"
            what = f"{type(error).__name__} at {where}: {error}"
        return "BREACH", f"{name}: {what}"


def work(
    connection: Connection, models: Sequence[Path], seed: int, numbers: Sequence[int], deadline: float
) -> None:
    """Tries some mutants in a process of its own and tells after each few how far it is."""
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    with tempfile.TemporaryDirectory(prefix="tfl-rewrite-fuzz-", dir=_memory_folder()) as name:
        trial = Trial(models, seed, Path(name))
        for start in range(0, len(numbers), _PIECE):
            piece = numbers[start : start + _PIECE]
            if time.monotonic() > deadline:
                break
            tally = Tally()
            for number in piece:
                outcome, what = trial.run(number)
                tally.outcomes[outcome] += 1
                if what:
                    tally.breaches.append((number, what))
            connection.send((len(piece), tally))
    connection.send(None)


def _memory_folder() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


class Worker:
    """A process that may die of what it is fed; another goes on behind the piece that killed it."""

    def __init__(self, models: Sequence[Path], seed: int, numbers: Sequence[int], deadline: float) -> None:
        self._models, self._seed, self._deadline = models, seed, deadline
        self._numbers = numbers
        self._done = 0
        self._start()

    def _start(self) -> None:
        self.connection, other = multiprocessing.Pipe(duplex=False)
        rows = (other, self._models, self._seed, self._numbers[self._done :], self._deadline)
        self._process: BaseProcess = multiprocessing.get_context("spawn").Process(target=work, args=rows)
        self._process.start()
        other.close()
        self.heard = time.monotonic()

    def take(self) -> Tally | None:
        """Returns what the process tells, or None at its end."""
        try:
            message = self.connection.recv()
        except EOFError:
            return self._died("died")
        self.heard = time.monotonic()
        if message is None:
            self._process.join()
            return None
        self._done += message[0]
        tally: Tally = message[1]
        return tally

    def stuck(self) -> Tally:
        """Ends a process that does not answer."""
        self._process.kill()
        return self._died("does not answer")

    def _died(self, how: str) -> Tally:
        self._process.join()
        piece = self._numbers[self._done : self._done + _PIECE]
        self._done += len(piece)
        what = f"a process {how} (exit code {self._process.exitcode}) at one of {list(piece)}"
        self._start()
        return Tally(collections.Counter({"DIED": len(piece)}), [(piece[0] if piece else -1, what)])


def run(models: Sequence[Path], arguments: argparse.Namespace) -> Tally:
    """Tries all mutants in several processes."""
    deadline = time.monotonic() + (60 * arguments.minutes if arguments.minutes else 1e9)
    numbers = range(arguments.first, arguments.first + arguments.count)
    workers = [
        Worker(models, arguments.seed, numbers[job :: arguments.jobs], deadline)
        for job in range(arguments.jobs)
    ]
    total = Tally()
    for tally in _tallies(workers):
        total.outcomes += tally.outcomes
        total.breaches += tally.breaches
        if arguments.progress:
            done = total.outcomes.total()
            for row in tally.breaches:
                print(_shown(row), file=sys.stderr)
            print(f"{done} done, {len(total.breaches)} breaches", file=sys.stderr, flush=True)
    return total


def _tallies(workers: list[Worker]) -> Iterator[Tally]:
    while workers:
        ready = wait([worker.connection for worker in workers], timeout=5)
        for worker in list(workers):
            if worker.connection in ready:
                tally = worker.take()
                if tally is None:
                    workers.remove(worker)
                else:
                    yield tally
            elif time.monotonic() - worker.heard > _DEAD_SECONDS:
                yield worker.stuck()


def save_crashers(
    folder: Path, models: Sequence[Path], seed: int, breaches: Sequence[tuple[int, str]]
) -> None:
    """Writes the mutants that broke the contract, named by their number."""
    folder.mkdir(parents=True, exist_ok=True)
    seeds = [seed_of(path) for path in models]
    for number, what in breaches:
        if number >= 0 and number % MANIFEST_EVERY != MANIFEST_EVERY - 1:
            (folder / f"{seed}-{number}.tflite").write_bytes(mutant(seeds, seed, number)[1])
        (folder / f"{seed}-{number}.txt").write_text(what + "\n", encoding="utf-8", errors="backslashreplace")


def default_models() -> list[Path]:
    """The committed models, sound ones and others."""
    fixtures = ROOT / "fixtures"
    found = [*fixtures.glob("*.tflite"), *(fixtures / "malformed").glob("*.tflite")]
    return sorted(path for path in found if path.stat().st_size < 120_000)


def _shown(breach: tuple[int, str]) -> str:
    return f"  #{breach[0]} {breach[1]}".encode("ascii", "backslashreplace").decode()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", type=Path, help="models to damage; fixtures/ without any")
    parser.add_argument("--generated", type=int, metavar="N", default=0, help="damage N generated models too")
    parser.add_argument("--count", type=int, help="how many mutants")
    parser.add_argument("--minutes", type=float, help="stop after so long, whatever the count")
    parser.add_argument("--first", type=int, default=0, help="number of the first mutant, to repeat one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument(
        "--save-crashers", type=Path, metavar="DIR", help="write what broke the contract there"
    )
    parser.add_argument("--progress", action="store_true", help="say after each few mutants how far it is")
    arguments = parser.parse_args()
    if arguments.count is None:
        arguments.count = 1_000_000 if arguments.minutes else 2000
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tfl-rewrite-generated-") as name:
        models = list(arguments.models)
        if arguments.generated:
            from hostile.models import write_models

            models += write_models(Path(name), arguments.generated, arguments.seed)
        models = models or default_models()
        total = run(models, arguments)
        if arguments.save_crashers is not None and total.breaches:
            save_crashers(arguments.save_crashers, models, arguments.seed, total.breaches)
    for outcome, count in total.outcomes.most_common():
        print(f"{count:7d}  {outcome}")
    seconds, done = time.monotonic() - started, total.outcomes.total()
    print(f"{len(total.breaches)} breach(es) of the contract in {done} mutants of {len(models)} models")
    print(f"{seconds:.0f} s, {done / seconds:.0f} mutants a second", file=sys.stderr)
    for row in sorted(total.breaches)[:100]:
        print(_shown(row))
    return 1 if total.breaches else 0


if __name__ == "__main__":
    sys.exit(main())
