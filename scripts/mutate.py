"""Feeds damaged copies of models to commands that run them, and checks how each run ends.

    python scripts/mutate.py --count 2000 --seed 0 MODEL... [--jobs 2] [--limit 10] [--commands NAME ...]

Each mutant is a truncation, some random bytes, or wild offsets and counts in the tables. Every run is a
whole process and must end with a documented exit code within the limit, without a traceback, and without a
file left behind unless the code is 0. Prints the counts; exits 1 and lists the
mutants that broke the contract.
"""

from __future__ import annotations

import argparse
import collections
import random
import struct
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

CODES = (0, 2, 3, 4, 5)
COMMANDS = {
    "quantize-weights": (),
    "fold-constants": (),
    "simplify": (),
    "reshape": ("--batch", "2"),
    "chain": ("--append", "argmax"),
}
"""What is done, in turn: most ask the runtime of shapes or values before it verifies."""
INTERESTING = (0, 1, 2, 4, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFFFFFC)


def mutate(data: bytes, random_source: random.Random) -> bytes:
    """Returns a damaged copy."""
    made = bytearray(data)
    kind = random_source.choice(("cut", "bytes", "bytes", "words", "words", "tables", "tables", "insert"))
    # Tables lie at both ends of real files, so half of all hits go there.
    edge = min(len(made), 16384)

    def position() -> int:
        where = random_source.random()
        if where < 0.35:
            return random_source.randrange(edge)
        if where < 0.7:
            return len(made) - 1 - random_source.randrange(edge)
        return random_source.randrange(len(made))

    if kind == "cut":
        return bytes(made[: random_source.randrange(len(made))])
    if kind == "insert":
        at = position()
        made[at:at] = random_source.randbytes(random_source.randrange(1, 9))
        return bytes(made)
    for _ in range(random_source.randrange(1, 9)):
        at = position()
        if kind == "bytes":
            made[at] = random_source.randrange(256)
        else:
            at = min(at // 4 * 4, len(made) - 4)
            value = random_source.choice(INTERESTING)
            if kind == "tables" and random_source.random() < 0.5:
                old = struct.unpack_from("<I", made, at)[0]
                value = (old + random_source.choice((-8, -4, -1, 1, 4, 8, 256, len(made)))) & 0xFFFFFFFF
            struct.pack_into("<I", made, at, value)
    return bytes(made)


def run(
    number: int, seed: int, sources: list[Path], commands: list[str], folder: Path, limit: float
) -> tuple[str, str]:
    """Runs one mutant; returns how it ended and, if that is a breach, what was wrong."""
    chooser = random.Random(f"{seed}/{number}")
    command = commands[number // len(sources) % len(commands)]
    source = sources[number % len(sources)]
    mutant, target = folder / f"{number}.tflite", folder / f"{number}.out.tflite"
    mutant.write_bytes(mutate(source.read_bytes(), chooser))
    tool = [sys.executable, "-m", "tfl_rewrite", command, *COMMANDS[command]]
    started = time.monotonic()
    try:
        done = subprocess.run(
            # A damaged shape may make a model compute for minutes; --timeout is what bounds that.
            [*tool, str(mutant), str(target), "--samples", "1", "--timeout", "3"],
            capture_output=True,
            timeout=limit * 6,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        return "hang", f"{source.name} #{number}: {command} still running after {limit * 6} s"
    seconds = time.monotonic() - started
    text = (done.stdout + done.stderr).decode(errors="replace")
    breach = ""
    if done.returncode not in CODES:
        breach = f"exit {done.returncode}: {text[-300:]}"
    elif "Traceback" in text:
        breach = f"traceback: {text[-300:]}"
    elif target.exists() != (done.returncode == 0):
        breach = f"exit {done.returncode}, output {'left behind' if target.exists() else 'missing'}"
    elif seconds > limit:
        breach = f"took {seconds:.1f} s"
    left = [path.name for path in folder.glob(f".{number}.*")]
    breach = breach or (f"left {left}" if left else "")
    for path in (mutant, target):
        path.unlink(missing_ok=True)
    outcome = f"exit {done.returncode}"
    if done.returncode == 0:
        words = ("UNVERIFIED", "nothing to do", "verified: PASS")
        outcome += ", " + next((word for word in words if word in text), "?")
    return outcome, f"{source.name} #{number}: {command}: {breach}" if breach else ""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0, help="number of the first mutant, to repeat one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--limit", type=float, default=10.0, help="seconds for each run")
    parser.add_argument("--commands", nargs="+", choices=COMMANDS, default=list(COMMANDS), metavar="NAME")
    arguments = parser.parse_args()
    numbers = range(arguments.first, arguments.first + arguments.count)
    with (
        tempfile.TemporaryDirectory(prefix="tfl-rewrite-mutants-") as name,
        ThreadPoolExecutor(arguments.jobs) as pool,
    ):

        def one(number: int) -> tuple[str, str]:
            given = arguments.seed, arguments.models, arguments.commands
            return run(number, *given, Path(name), arguments.limit)

        results = list(pool.map(one, numbers))
    for outcome, count in sorted(collections.Counter(outcome for outcome, _ in results).items()):
        print(f"{count:6d}  {outcome}")
    breaches = [breach for _, breach in results if breach]
    print(f"{len(breaches)} breach(es) of the contract in {len(results)} mutants")
    for breach in breaches:
        print(f"  {breach}")
    return 1 if breaches else 0


if __name__ == "__main__":
    sys.exit(main())
