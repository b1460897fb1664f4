"""Measures full-integer quantization over a folder of float and hybrid models: ours, and what others make.

    python scripts/bench_integer.py [MODELS] [--inputs FOLDER] [--only WORD ...] [--peer-python PYTHON]
                                    [--activations int8 int16] [--effort NAME] [--all-samples]
                                    [--limit SECONDS] [--work FOLDER] [--time]

MODELS (or the environment variable ``TFL_REWRITE_CORPUS``) holds ``NAME.tflite``; the folder of inputs
(``../inputs`` beside it) holds ``NAME.calib.npz``, which alone calibrates, and ``NAME.eval.npz``, which alone
judges. Each file is made by a whole process with a time limit:

- ours: ``tfl-rewrite quantize``, which holds a quarter of the samples out to judge by; with
  ``--all-samples`` it calibrates on all, as the others do, and judges by the same ones. What it refuses to
  write because outputs differ too much is made once more with ``--verify off``, is measured all the same, and
  is marked with a star.
- cal: the calibrator inside TensorFlow (``bench_calibrator.py``).
- LQ: the static recipe of litert-quantizer (``bench_peer.py``), on a copy with
  repaired operator codes and, where there is none, a signature.

A figure is the lowest SNR over the outputs, on XNNPACK / built-in / reference kernels. What is in the working
folder already is not made again. ``--time`` measures inference instead: the float file, hybrid weights, and
what is in the working folder; one thread, XNNPACK, processor time, medians of calls in turn. The peers are in
the extra ``[bench]``.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from bench_models import bench_parser, could_be_integer, float_models, inputs_of
from bench_shrink import lowest

from tfl_rewrite import Judging, load
from tfl_rewrite.errors import TflRewriteError
from tfl_rewrite.judge.judge import Judge
from tfl_rewrite.judge.settings import Tolerance

RESOLVERS = {"default": "XNNPACK", "builtin": "built-in", "reference": "reference"}
TOOLS = ("ours", "cal", "LQ")
WIDTHS = {"int8": "8", "int16": "16"}
RECIPES = {"int8": "static_wi8_ai8", "int16": "static_wi8_ai16"}
HERE = Path(__file__).parent
FAILS, NO_ORIGINAL = "the rewritten file does not run", "the original does not run"
CONVERSIONS = ("QUANTIZE", "DEQUANTIZE")
SECONDS_TIMED, CALLS_TIMED = 5.0, 30
"""How long and how often at least each set of files is called."""
SLACK_DB = 1.0
"""By so much a file of ours may be below a peer's before it is named."""


@dataclass
class Row:
    """What one tool made of one model.

    Attributes:
        outcome: ``written``, or how the tool failed: ``refused``, ``raised``, ``aborted`` or ``stopped``; and
            ``starred`` for a file that is only written with ``--verify off``.
        told: The tool's last line.
        figures: By resolver, the lowest SNR in dB, or why there is none.
        floats: Operators that still compute in floats.
    """

    model: str
    tool: str
    activations: str
    outcome: str = ""
    told: str = ""
    seconds: float = 0.0
    nbytes: int = 0
    figures: dict[str, float | str] = field(default_factory=dict)
    floats: int = 0

    @property
    def snr(self) -> float | None:
        """Mean of XNNPACK and the built-in kernels; None where one of them gives none."""
        found = [self.figures.get(name) for name in ("default", "builtin")]
        known = [value for value in found if isinstance(value, float)]
        return statistics.fmean(known) if len(known) == len(found) else None


def ran(command: Sequence[str | Path], limit: float) -> tuple[str, str, float]:
    """Runs a process and all that it starts; returns how it ended, its last line, and seconds."""
    began = time.monotonic()
    process = subprocess.Popen(
        list(map(str, command)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    outcome = ""
    try:
        noise = process.communicate(timeout=limit)[1]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        noise, outcome = process.communicate()[1], "stopped"
    lines = [line.strip() for line in noise.splitlines() if line.strip()]
    code = process.returncode
    outcome = outcome or ("aborted" if code < 0 else "raised" if code else "written")
    told = f"after {limit:.0f} s" if outcome == "stopped" else f"signal {-code}" if code < 0 else ""
    return outcome, told or (lines[-1] if code and lines else ""), time.monotonic() - began


def made(row: Row, path: Path, target: Path, calib: Path, arguments: argparse.Namespace) -> None:
    """Lets one tool write its file, and notes how that went."""
    if row.tool == "ours":
        command: list[str | Path] = [sys.executable, "-m", "tfl_rewrite", "quantize", path, target, "-q"]
        command += ["--inputs", calib, "--activations", row.activations, "--effort", arguments.effort]
        command += ["--holdout", calib] if arguments.all_samples else []
        row.outcome, row.told, row.seconds = ran(command, arguments.limit)
        row.told = row.told.removeprefix("tfl-rewrite: error: ").removeprefix(f"{path}: ")
        if row.outcome == "raised":
            row.outcome = "refused"
            if ran([*command, "--verify", "off"], arguments.limit)[0] == "written":
                row.outcome = "starred"
    elif row.tool == "cal":
        command = [arguments.peer_python, HERE / "bench_calibrator.py", WIDTHS[row.activations]]
        row.outcome, row.told, row.seconds = ran([*command, path, target, calib], arguments.limit)
    else:
        recipe = RECIPES[row.activations]
        with tempfile.TemporaryDirectory() as folder:
            command = [
                arguments.peer_python,
                HERE / "bench_peer.py",
                recipe,
                path,
                folder,
                "--repair",
                "--float-io",
            ]
            row.outcome, row.told, row.seconds = ran([*command, "--calib", calib], arguments.limit)
            if (file := Path(folder, f"{recipe}.tflite")).exists():
                target.write_bytes(file.read_bytes())
                repaired(target).write_bytes(Path(folder, "repaired.model").read_bytes())


def repaired(target: Path) -> Path:
    """Where the copy lies that a file of LQ was made from."""
    return target.with_suffix(".repaired")


def measured(row: Row, path: Path, target: Path, evaluation: Path, limit: float) -> None:
    """Judges a file with each of the three resolvers."""
    row.nbytes, row.floats = target.stat().st_size, float_operators(target)
    for resolver in RESOLVERS:
        settings = Judging(inputs=[evaluation], resolver=(resolver,), timeout=limit)
        with Judge(repaired(target) if row.tool == "LQ" else path, settings) as judge:
            row.figures[resolver] = figure(judge, target)


def figure(judge: Judge, target: Path) -> float | str:
    """Returns the lowest SNR over the outputs, infinite where all are equal; or why there is none."""
    verdict = judge.compare(target, tolerance=Tolerance(min_snr=None))
    reason = verdict.reasons[0] if verdict.reasons else ""
    if FAILS in reason or NO_ORIGINAL in reason:
        return reason[:200]
    found = lowest(verdict.to_dict()["outputs"])
    return f"no ratio; {reason[:200]}" if found is None or math.isnan(found) else found


def float_operators(path: Path) -> int:
    """Counts the operators that give floats, conversions apart."""
    return sum(
        operator.code.name not in CONVERSIONS
        and any(tensor is not None and tensor.dtype_name == "FLOAT32" for tensor in operator.outputs)
        for _, operator in load(path).operators()
    )


def rows_of(path: Path, inputs: Path, arguments: argparse.Namespace) -> list[Row]:
    """Makes and judges all files of one model; what is known already is read."""
    rows = []
    for activations in arguments.activations:
        for tool in TOOLS:
            stem = f"{path.stem}.{tool}.{activations}"
            if tool == "ours":
                stem += f".{arguments.effort}" + ".all" * arguments.all_samples
            kept, target = (arguments.work / f"{stem}.{end}" for end in ("json", "tflite"))
            if not kept.exists():
                target.unlink(missing_ok=True)
                row = Row(path.stem, tool, activations)
                made(row, path, target, inputs / f"{path.stem}.calib.npz", arguments)
                if target.exists():
                    measured(row, path, target, inputs / f"{path.stem}.eval.npz", arguments.limit)
                kept.write_text(json.dumps(asdict(row)))
            rows.append(Row(**json.loads(kept.read_text())))
    return rows


def cell(row: Row, nbytes: int) -> str:
    """Shows one file: its size over the original's, and its figures."""
    if not row.nbytes:
        return row.outcome
    figures = " / ".join(
        f"{value:.1f}" if isinstance(value, float) else "fails" if FAILS in value else "n.d."
        for value in row.figures.values()
    )
    return f"{row.nbytes / nbytes:.3f}: {figures}{' *' if row.outcome == 'starred' else ''}"


def line(name: str, nbytes: int, rows: Iterable[Row]) -> str:
    """Shows what all tools made of one model at one width."""
    own = {row.tool: row for row in rows}
    told = " | ".join(cell(own[tool], nbytes) for tool in TOOLS)
    return f"| {name} | {nbytes:,} | {told} | {own['ours'].floats} | {own['ours'].seconds:.0f} |"


def failures(row: Row) -> list[str]:
    """How a tool failed on a model, in words that can be counted."""
    if row.outcome == "starred":
        return ["written only with --verify off"]
    bad = [RESOLVERS[name] for name, value in row.figures.items() if FAILS in str(value)]
    return [row.outcome] if not row.nbytes else [f"does not run on {', '.join(bad)}"] if bad else []


def summary(rows: Sequence[Row]) -> list[str]:
    """The differences between ours and each peer, and what failed."""
    lines = []
    for activations in dict.fromkeys(row.activations for row in rows):
        own = {(row.model, row.tool): row for row in rows if row.activations == activations}
        names = list(dict.fromkeys(model for model, _ in own))
        for peer in TOOLS[1:]:
            won = {}
            for name in names:
                mine, theirs = own[name, "ours"].snr, own[name, peer].snr
                if mine is not None and theirs is not None:
                    won[name] = bounded(mine) - bounded(theirs)
            if not won:
                continue
            low = [f"{name} {gain:+.1f}" for name, gain in won.items() if gain < -SLACK_DB]
            larger = sum(own[name, "ours"].nbytes > own[name, peer].nbytes for name in won)
            lines.append(
                f"- {activations}, ours over {peer}: median {statistics.median(won.values()):+.1f} dB on"
                f" {len(won)} models, more than {SLACK_DB:g} dB below on {len(low)}"
                f" ({', '.join(low) or 'none'}), larger on {larger}"
            )
        for tool in TOOLS:
            counts = Counter(text for name in names for text in failures(own[name, tool]))
            told = ", ".join(f"{count} x {text}" for text, count in counts.most_common())
            lines.append(f"- {activations}, {tool}, of {len(names)} models: {told or 'none failed'}")
    return lines


def bounded(snr: float) -> float:
    """An SNR, or what counts as exact."""
    return max(-100.0, min(snr, 100.0))


def why(rows: Iterable[Row]) -> list[str]:
    """The words of the tools and of the judges on what failed."""
    lines = []
    for row in rows:
        told = [row.told[:300]] if row.told else []
        told += [
            f"{RESOLVERS[name]}: {value}" for name, value in row.figures.items() if isinstance(value, str)
        ]
        if told:
            lines.append(f"- {row.model}, {row.tool} {row.activations}, {row.outcome}: {'; '.join(told)}")
    return lines


def timed(arguments: argparse.Namespace, inputs: Path) -> None:
    """Prints the time of one call of the float file, and that of each smaller form over it.

    Medians of processor time: on a busy machine a long call is interrupted, a short one is not.
    """
    print("| model | float ms | hybrid | int8 | int16 |")
    print("|---|---:|---:|---:|---:|", flush=True)
    for path in float_models(arguments, inputs, could_be_integer):
        hybrid = arguments.work / f"{path.stem}.hybrid.tflite"
        if not hybrid.exists():
            command = [sys.executable, "-m", "tfl_rewrite", "quantize-weights", path, hybrid, "-q"]
            ran([*command, "--effort", "fast", "--verify", "off"], arguments.limit)
        files = [path, hybrid]
        end = f"{arguments.effort}{'.all' * arguments.all_samples}.tflite"
        files += [arguments.work / f"{path.stem}.ours.{width}.{end}" for width in WIDTHS]
        with np.load(inputs / f"{path.stem}.eval.npz") as given:
            times = calls({file for file in files if file.exists()}, {key: given[key][0] for key in given})
        if path not in times:
            continue
        taken = {file: statistics.median(each) for file, each in times.items()}
        cells = [f"{taken[file] / taken[path]:.2f}" if file in taken else "-" for file in files[1:]]
        print(f"| {path.stem} | {taken[path] * 1e3:.2f} | {' | '.join(cells)} |", flush=True)


def calls(files: Iterable[Path], sample: dict[str, np.ndarray]) -> dict[Path, list[float]]:
    """Processor seconds of calls of some models with one sample, in turn, one thread, XNNPACK."""
    from ai_edge_litert.interpreter import Interpreter

    works = {}
    for file in files:
        work = Interpreter(str(file), num_threads=1)
        work.allocate_tensors()
        for detail in work.get_input_details():
            work.set_tensor(detail["index"], sample[detail["name"]].reshape(detail["shape"]))
        work.invoke()
        works[file] = work
    times: dict[Path, list[float]] = {file: [] for file in works}
    ends = time.perf_counter() + SECONDS_TIMED
    while time.perf_counter() < ends or len(next(iter(times.values()))) < CALLS_TIMED:
        for file, work in works.items():
            began = time.process_time()
            work.invoke()
            times[file].append(time.process_time() - began)
    return times


def main() -> None:
    parser = bench_parser(__doc__)
    parser.add_argument("--peer-python", default=sys.executable, help="Python that has the peers")
    parser.add_argument("--activations", nargs="+", default=list(WIDTHS), choices=list(WIDTHS))
    parser.add_argument("--effort", default="balanced")
    parser.add_argument("--all-samples", action="store_true", help="ours holds none out, like the others")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds for each process")
    parser.add_argument("--work", type=Path, default=Path("bench-integer"), help="working folder")
    parser.add_argument("--time", action="store_true", help="measure inference of what is there")
    arguments = parser.parse_args()
    inputs = inputs_of(parser, arguments)
    arguments.work.mkdir(parents=True, exist_ok=True)
    if arguments.time:
        timed(arguments, inputs)
        return
    rows = []
    heads = " | ".join(f"{tool}: size, dB" for tool in TOOLS)
    print(f"| model | float bytes | {heads} | float operators | seconds |")
    print("|---|---:|---|---|---|---:|---:|", flush=True)
    for path in float_models(arguments, inputs, could_be_integer):
        try:
            found = rows_of(path, inputs, arguments)
        except TflRewriteError as error:
            print(f"{path.stem}: {error}", file=sys.stderr, flush=True)
            continue
        rows += found
        for activations in arguments.activations:
            own = [row for row in found if row.activations == activations]
            print(line(f"{path.stem}, {activations}", path.stat().st_size, own), flush=True)
    print("\n".join(["", *summary(rows), "", *why(rows)]))


if __name__ == "__main__":
    main()
