"""Runs ``shrink`` on a folder of float models as whole processes: time, size, and whether promises hold.

    python scripts/bench_shrink.py [MODELS] [--inputs FOLDER] [--only WORD ...] [--min-snr DB] [--json FILE]

MODELS (or the environment variable ``TFL_REWRITE_CORPUS``) holds ``NAME.tflite``; the folder of inputs
(``../inputs`` beside it) holds ``NAME.calib.npz``, which the search divides and holds a part of out, and
``NAME.eval.npz``, which it never sees and which judges the file in the end.
"""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench_models import bench_parser, float_models, inputs_of

from tfl_rewrite import verify
from tfl_rewrite.judge.settings import Judging, Tolerance


def shrunk(path: Path, inputs: Path, min_snr: float, options: list[str]) -> dict[str, Any]:
    """Shrinks one model; returns what was promised, what was kept, and how long it took."""
    row: dict[str, Any] = {"model": path.stem, "nbytes": path.stat().st_size}
    with tempfile.TemporaryDirectory() as folder:
        made, told = Path(folder) / "made.tflite", Path(folder) / "report.json"
        command = [sys.executable, "-m", "tfl_rewrite", "shrink", str(path), str(made), "--report", str(told)]
        command += ["-q"]
        command += ["--min-snr", str(min_snr), "--inputs", str(inputs / f"{path.stem}.calib.npz"), *options]
        began = time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        row |= {"seconds": round(time.monotonic() - began, 1), "exit_code": done.returncode}
        if done.returncode:
            row["error"] = (done.stderr.strip().splitlines() or [""])[-1]
            return row
        report = json.loads(told.read_text(encoding="utf-8"))
        row |= {"made": made.stat().st_size, "files": report["files"]}
        row |= {"promised": report["promised_snr_db"], "likely": report["expected_snr_db"]}
        row["held_out"] = report["proven_snr_db"]
        verdict = verify(
            path, made, Judging(inputs=[inputs / f"{path.stem}.eval.npz"], tolerance=Tolerance(min_snr=None))
        )
        row["evaluated"] = lowest(verdict.to_dict()["outputs"])
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

    def told(value: float | None) -> str:
        return "exact" if value is None or math.isinf(value) else f"{value:.1f}"

    kept = " | ".join(told(row[key]) for key in ("promised", "likely", "held_out", "evaluated"))
    size = row["made"] / row["nbytes"]
    return f"| {row['model']} | {row['seconds']:.0f} | {row['files']} | {size:.3f} | {kept} |"


def main() -> None:
    parser = bench_parser(__doc__)
    parser.add_argument("--min-snr", type=float, default=30.0)
    parser.add_argument("--json", type=Path, default=None, help="add rows to this file, a line each")
    arguments, options = parser.parse_known_args()
    inputs = inputs_of(parser, arguments)
    print("| model | seconds | files run | size | promised dB | likely dB | held out dB | other inputs dB |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|", flush=True)
    rows = []
    for path in float_models(arguments, inputs):
        rows.append(shrunk(path, inputs, arguments.min_snr, options))
        print(line(rows[-1]), flush=True)
        if arguments.json is not None:
            with open(arguments.json, "a", encoding="ascii") as file:
                file.write(json.dumps(rows[-1]) + "\n")
    good = [row for row in rows if not row["exit_code"]]
    if good:
        longest = max(row["seconds"] for row in rows)
        sizes = statistics.geometric_mean(row["made"] / row["nbytes"] for row in good)
        print(f"{len(good)} of {len(rows)} within {longest:.0f} s; size {sizes:.3f}")


if __name__ == "__main__":
    main()
