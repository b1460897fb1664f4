"""Whether two installed versions of tfl-rewrite do the same: equal bytes, exit codes and reports.

    python scripts/same_bytes.py OLD/bin/tfl-rewrite NEW/bin/tfl-rewrite [--jobs 2] [--only REGEX]
    python scripts/same_bytes.py OLD/bin/tfl-rewrite --record old.json
    python scripts/same_bytes.py old.json NEW/bin/tfl-rewrite

Runs both, or one and compares with what was recorded of the other, over the fixtures and, where
TFL_REWRITE_CORPUS names them, public models; for a change of the structure that is to change nothing else.
What may differ in reports is named with --ignore (fields at any depth); times, places and numbers of trials
are never compared. Exits with 1 if anything differs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FIXTURES = ROOT / "fixtures"
COMMANDS: dict[str, tuple[str, ...]] = {
    "quantize-weights": ("quantize-weights", "IN", "OUT"),
    "dequantize scheme": ("quantize-weights", "IN", "OUT", "--scheme", "dequantize"),
    "int4 blocks": ("quantize-weights", "IN", "OUT", "--dtype", "int4", "--granularity", "block:32"),
    "float16": ("quantize-weights", "IN", "OUT", "--dtype", "float16"),
    "calibrated": ("quantize-weights", "IN", "OUT", "--inputs", "INPUTS"),
    "compact": ("compact", "IN", "OUT"),
    "dedup": ("dedup", "IN", "OUT"),
    "remove-dead": ("remove-dead", "IN", "OUT"),
    "round-weights": ("round-weights", "IN", "OUT"),
    "repair": ("repair", "IN", "OUT"),
    "shard": ("shard", "IN", "OUT", "--max-size", "100kB"),
    "shrink": ("shrink", "IN", "OUT", "--min-snr", "30", "--time-limit", "none", "--inputs", "INPUTS"),
}
SHRUNK = ("mtcnn_rnet", "digits_cnn", "lstm", "svdf", "text_embedding")
NEVER = frozenset(["seconds", "source", "target", "entry", "file", "files", "report", "repeated", "version"])
PLACES = re.compile(r"/\S*?(?=[\s:;,)'\"]|$)|\d+(\.\d+)? ?s\b")
TIMEOUT = 1800.0


@dataclass(frozen=True)
class Done:
    """What one run left."""

    code: int
    files: dict[str, str]
    report: Any
    said: str


def models(corpus: Path | None) -> Iterator[tuple[Path, Path | None]]:
    """Yields each model with real inputs, where there are some."""
    for path in sorted([*FIXTURES.glob("*.tflite"), *FIXTURES.glob("malformed/*.tflite")]):
        inputs = FIXTURES / "inputs" / f"{path.stem}.npz"
        yield path, inputs if inputs.exists() else None
    for path in sorted(corpus.glob("*.tflite")) if corpus is not None else ():
        inputs = corpus.parent / "inputs" / f"{path.stem}.calib.npz"
        yield path, inputs if inputs.exists() else None


def tasks(corpus: Path | None, only: str) -> Iterator[tuple[str, Path, Path | None]]:
    """Yields the name of a command, a model and its inputs."""
    for path, inputs in models(corpus):
        for name, words in COMMANDS.items():
            needs_inputs = "INPUTS" in words
            if (needs_inputs and inputs is None) or (name == "shrink" and path.stem not in SHRUNK):
                continue
            if re.search(only, f"{name} {path.stem}"):
                yield name, path, inputs


def run(program: str, words: Sequence[str], path: Path, inputs: Path | None) -> Done:
    """Runs one version in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "out").mkdir()
        target = place / "out" / ("parts" if words[0] == "shard" else "out.tflite")
        given = {"IN": str(path), "OUT": str(target), "INPUTS": str(inputs)}
        report = place / "report.json"
        command = [program, *(given.get(word, word) for word in words), "--report", str(report)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
        files = {
            str(file.relative_to(place / "out")): hashlib.sha256(file.read_bytes()).hexdigest()
            for file in sorted((place / "out").rglob("*"))
            if file.is_file()
        }
        facts = json.loads(report.read_text()) if report.exists() else None
        return Done(done.returncode, files, facts, PLACES.sub("", done.stderr))


def differences(one: Any, two: Any, ignored: frozenset[str], where: str = "") -> Iterator[str]:
    """Yields what differs in two reports, with its place."""
    if isinstance(one, dict) and isinstance(two, dict):
        for key in sorted((one.keys() | two.keys()) - ignored):
            if key not in one or key not in two:
                yield f"{where}.{key} is only in {'the old' if key in one else 'the new'} report"
            else:
                yield from differences(one[key], two[key], ignored, f"{where}.{key}")
    elif isinstance(one, list) and isinstance(two, list) and len(one) == len(two):
        for number, (left, right) in enumerate(zip(one, two, strict=True)):
            yield from differences(left, right, ignored, f"{where}[{number}]")
    else:
        left, right = (PLACES.sub("", item) if isinstance(item, str) else item for item in (one, two))
        if left != right:
            yield f"{where} is {str(right)[:80]!r} instead of {str(left)[:80]!r}"


def compared(old: Done, new: Done, ignored: frozenset[str]) -> list[str]:
    """Says what two runs did otherwise."""
    found = []
    if old.code != new.code:
        found.append(f"exit code {new.code} instead of {old.code}")
    if old.files != new.files:
        changed = [
            name
            for name in sorted(old.files.keys() | new.files.keys())
            if old.files.get(name) != new.files.get(name)
        ]
        found.append(f"other bytes: {', '.join(changed[:5])}")
    if old.code and new.code and old.said != new.said:
        found.append(f"says {new.said.strip()[:120]!r} instead of {old.said.strip()[:120]!r}")
    return found + list(differences(old.report, new.report, ignored))[:10]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("old", help="the tfl-rewrite command of the version before, or a recorded FILE.json")
    parser.add_argument("new", nargs="?", help="that of the version after")
    parser.add_argument("--record", type=Path, metavar="FILE.json", help="write what the first one does")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", default="", metavar="REGEX", help="of 'COMMAND MODEL'")
    parser.add_argument("--ignore", action="append", default=[], metavar="FIELD", help="of reports")
    arguments = parser.parse_args()
    if (arguments.new is None) == (arguments.record is None):
        parser.error("give either a second command or --record")
    recorded = json.loads(Path(arguments.old).read_text()) if arguments.old.endswith(".json") else None
    programs = [program for program in (arguments.old, arguments.new) if program is not None]
    if any(shutil.which(program) is None for program in programs[recorded is not None :]):
        parser.error("no such command")
    corpus = os.environ.get("TFL_REWRITE_CORPUS")
    ignored = NEVER | frozenset(arguments.ignore)
    everything = list(tasks(Path(corpus) if corpus else None, arguments.only))

    def done_by(program: str, task: tuple[str, Path, Path | None]) -> Done:
        name, path, inputs = task
        return run(program, COMMANDS[name], path, inputs)

    def both(task: tuple[str, Path, Path | None]) -> list[str]:
        key = f"{task[0]}, {task[1].stem}"
        if recorded is not None and key not in recorded:
            return ["nothing is recorded of it"]
        old = Done(**recorded[key]) if recorded is not None else done_by(arguments.old, task)
        return compared(old, done_by(arguments.new, task), ignored)

    with ThreadPoolExecutor(arguments.jobs) as pool:
        if arguments.record is not None:
            found = pool.map(lambda task: asdict(done_by(arguments.old, task)), everything)
            done = {
                f"{name}, {path.stem}": one for (name, path, _), one in zip(everything, found, strict=True)
            }
            arguments.record.write_text(json.dumps(done))
            print(f"{len(done)} runs recorded")
            return 0
        counts: Counter[str] = Counter()
        for task, texts in zip(everything, pool.map(both, everything), strict=True):
            counts["different" if texts else "same"] += 1
            for text in texts:
                print(f"{task[0]}, {task[1].stem}: {text}", flush=True)
    print(f"{len(everything)} runs of each: {counts['same']} the same, {counts['different']} not")
    return 1 if counts["different"] else 0


if __name__ == "__main__":
    sys.exit(main())
