"""Runs ``shrink`` on a folder of float models as whole processes: time, size, and whether promises hold.

    python scripts/bench_shrink.py [MODELS] [--inputs FOLDER] [--only WORD ...] [--min-snr DB] [--json FILE]
                                   [--limits S ...] [--busy]

With ``--limits`` each model is searched once for each time limit (``none`` for none), and the table holds the
sizes beside the smallest file of one encoding that keeps the ratio as the search judges it. With ``--busy``
two processes that only count go on beside that.

MODELS (or the environment variable ``TFL_REWRITE_CORPUS``) holds ``NAME.tflite``; the folder of inputs
(``../inputs`` beside it) holds ``NAME.calib.npz``, which the search divides and holds a part of out, and
``NAME.eval.npz``, which it never sees and which judges the file in the end.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench_models import bench_parser, float_models, inputs_of

from tfl_rewrite import Goal, verify
from tfl_rewrite.judge.settings import Judging, Tolerance
from tfl_rewrite.pipeline.report import Plan
from tfl_rewrite.search.anytime import ESTIMATED
from tfl_rewrite.search.shrink import opened_for, wanted_of
from tfl_rewrite.search.standing import Standing
from tfl_rewrite.search.trials import UNMADE, Rounding
from tfl_rewrite.search.uniform import uniform_files


def run(*words: str) -> subprocess.CompletedProcess[str]:
    """Runs the command."""
    command = [sys.executable, "-m", "tfl_rewrite", *words, "-q"]
    return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)


def evaluated(path: Path, made: Path, inputs: Path) -> float | None:
    """Returns what a file keeps on the inputs that judge, in dB."""
    judging = Judging(inputs=(inputs / f"{path.stem}.eval.npz",), tolerance=Tolerance(min_snr=None))
    return lowest(verify(path, made, judging).to_dict()["outputs"])


def uniform(path: Path, inputs: Path, min_snr: float) -> dict[str, Any]:
    """Makes all files of one encoding, rounded plainly and fitted; returns the smallest that a search takes.

    It is judged as the search judges, by the samples that it divides and those that it holds out, however
    long that takes.
    """
    settings = Judging(inputs=(str(inputs / f"{path.stem}.calib.npz"),))
    best, recipe = path.stat().st_size, "the original"
    with contextlib.ExitStack() as stack:
        target = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "made.tflite"
        plan = Plan(source=str(path), target=target, passes=(), settings=settings)
        wanted = wanted_of(plan, Goal(min_snr=min_snr, time_limit=None))
        opened = stack.enter_context(opened_for(wanted))
        judge = stack.enter_context(opened.judge())
        trials, search = opened.trials, opened.unmeasured()
        original = search.whole({}, Rounding.FITTED)
        for item in sorted(uniform_files(opened, search, original), key=lambda item: item.nbytes):
            fits = item.encoding.form.is_integer and trials.can_fit
            for rounding in (Rounding.PLAIN, *([Rounding.FITTED] if fits else [])):
                if item.nbytes > best * ESTIMATED:
                    continue
                with contextlib.suppress(UNMADE):
                    standing = Standing(trials, opened.wanted.goal, judge, opened.clock, original)
                    standing.offer(search.whole(item.choice, rounding, item.expected))
                    made = standing.found.promised
                    if made is not None and made.choice and made.nbytes < best:
                        best, recipe = made.nbytes, f"{item.encoding.text}, {rounding.value}"
    return {"nbytes": best, "recipe": recipe}


@contextlib.contextmanager
def busy(count: int) -> Iterator[None]:
    """Lets processes count that do nothing else."""
    counting = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in counting:
            process.kill()
            process.wait()


def limited(
    path: Path, inputs: Path, min_snr: float, limits: list[str], options: list[str]
) -> dict[str, Any]:
    """Shrinks one model once for each time limit, and shows the sizes beside those of one encoding."""
    best = uniform(path, inputs, min_snr)
    row: dict[str, Any] = {"model": path.stem, "nbytes": path.stat().st_size, "uniform": best, "limits": {}}
    cells = [f"{row['model']} | {row['nbytes']:,} | {best['nbytes']:,} ({best['recipe']})"]
    for limit in limits:
        made = shrunk(path, inputs, min_snr, [*options, "--time-limit", limit])
        row["limits"][limit] = made
        if made["exit_code"]:
            cells.append(f"exit {made['exit_code']}: {made['error']}")
        else:
            cells.append(f"{made['made']:,} ({told(made['evaluated'])}; {made['seconds']:.0f} s)")
    print(f"| {' | '.join(cells)} |", flush=True)
    return row


def told(value: float | None) -> str:
    """Shows a ratio."""
    return "exact" if value is None or math.isinf(value) else f"{value:.1f}"


def shrunk(path: Path, inputs: Path, min_snr: float, options: list[str]) -> dict[str, Any]:
    """Shrinks one model; returns what was promised, what was kept, and how long it took."""
    row: dict[str, Any] = {"model": path.stem, "nbytes": path.stat().st_size}
    with tempfile.TemporaryDirectory() as folder:
        made, told = Path(folder) / "made.tflite", Path(folder) / "report.json"
        words = ["--min-snr", str(min_snr), "--inputs", str(inputs / f"{path.stem}.calib.npz"), *options]
        began = time.monotonic()
        done = run("shrink", str(path), str(made), "--report", str(told), *words)
        row |= {"seconds": round(time.monotonic() - began, 1), "exit_code": done.returncode}
        if done.returncode:
            row["error"] = (done.stderr.strip().splitlines() or [""])[-1]
            return row
        report = json.loads(told.read_text(encoding="utf-8"))
        row |= {"made": made.stat().st_size, "files": report["files"]}
        row |= {"promised": report["promised_snr_db"], "likely": report["expected_snr_db"]}
        row["held_out"] = report["proven_snr_db"]
        row["evaluated"] = evaluated(path, made, inputs)
        row["ended_in"], row["steps"] = report["ended_in"], report["steps"]
    return row


def lowest(outputs: list[dict[str, Any]]) -> float | None:
    """Returns the lowest SNR over the outputs that have one; infinite where nothing differs."""
    found = [
        math.inf if item["bit_exact"] else float(item["snr_db"])
        for item in outputs
        if item["bit_exact"] or (item["snr_db"] is not None and item["reference_peak"])
    ]
    return min(found, default=None)


def line(row: dict[str, Any]) -> str:
    """Shows a row of the table."""
    if row["exit_code"]:
        return (
            f"| {row['model']} | {row['seconds']:.0f} | exit {row['exit_code']}: {row['error']} | | | | | |"
        )

    kept = " | ".join(told(row[key]) for key in ("promised", "likely", "held_out", "evaluated"))
    size = row["made"] / row["nbytes"]
    return f"| {row['model']} | {row['seconds']:.0f} | {row['files']} | {size:.3f} | {kept} |"


def benched(arguments: argparse.Namespace, inputs: Path, options: list[str]) -> Iterator[dict[str, Any]]:
    """Yields a row for each model; prints the table."""
    limits: list[str] = arguments.limits
    if limits:
        print(f"| model | bytes | one encoding | {' | '.join(limits)} |\n|---|{'---:|' * (2 + len(limits))}")
    else:
        print(
            "| model | seconds | files run | size | promised dB | likely dB | held out dB | other inputs dB |"
        )
        print("|---|---:|---:|---:|---:|---:|---:|---:|", flush=True)
    for path in float_models(arguments, inputs):
        if limits:
            row = limited(path, inputs, arguments.min_snr, limits, options)
        else:
            row = shrunk(path, inputs, arguments.min_snr, options)
            print(line(row), flush=True)
        if arguments.json is not None:
            with open(arguments.json, "a", encoding="ascii") as file:
                file.write(json.dumps(row) + "\n")
        yield row


def main() -> None:
    parser = bench_parser(__doc__)
    parser.add_argument("--min-snr", type=float, default=30.0)
    parser.add_argument("--limits", nargs="*", default=[], help="time limits in seconds, or none")
    parser.add_argument("--busy", action="store_true", help="beside two processes that only count")
    parser.add_argument("--json", type=Path, default=None, help="add rows to this file, a line each")
    arguments, options = parser.parse_known_args()
    inputs = inputs_of(parser, arguments)
    with busy(2 if arguments.busy else 0):
        rows = list(benched(arguments, inputs, options))
    good = [row for row in rows if row.get("exit_code") == 0]
    if good:
        longest = max(row["seconds"] for row in rows)
        sizes = statistics.geometric_mean(row["made"] / row["nbytes"] for row in good)
        print(f"{len(good)} of {len(rows)} within {longest:.0f} s; size {sizes:.3f}")


if __name__ == "__main__":
    main()
