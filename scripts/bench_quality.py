"""Measures size against error over a folder of float models, for ours and for ai-edge-quantizer.

    python scripts/bench_quality.py [MODELS] [--inputs FOLDER] [--only WORD ...] [--peer-python PYTHON]
                                    [--work FOLDER] [--json FILE] [--plot FILE.svg]

MODELS (or the environment variable ``TFL_REWRITE_CORPUS``) holds ``NAME.tflite``; the folder of inputs
(``../inputs`` beside it) holds ``NAME.calib.npz``, which may be used to calibrate and to search, and
``NAME.eval.npz``, which alone counts below. The peer (extra ``[bench]``) runs every recipe that it offers, on
the file as it is and on a copy with repaired operator codes; what it makes counts if the interpreter runs it.
What is in the working folder already is not made again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import statistics
import subprocess
import sys
import zlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from tfl_rewrite import load
from tfl_rewrite.verification import Judge, Tolerance

THRESHOLDS = (20.0, 30.0, 40.0)
PEER = Path(__file__).with_name("bench_peer.py")


@dataclass
class Point:
    """One file.

    Attributes:
        maker: ``ours`` or ``peer``, and the recipe.
        nbytes: Its size; deflated beside it.
        snr: Lowest and median SNR over the outputs in dB; infinite where nothing differs, None where it
            does not run.
        agreement: Lowest argmax agreement over the outputs that have one.
        error: Why there is no file, or why it does not run.
    """

    model: str
    maker: str
    recipe: str
    nbytes: int = 0
    deflated: int = 0
    snr: float | None = None
    median_snr: float | None = None
    agreement: float | None = None
    error: str | None = None


def is_float(path: Path) -> bool:
    """Whether most constant bytes of a model are floats."""
    model = load(path)
    sizes = {True: 0, False: 0}
    seen = set()
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            if tensor.is_constant and id(tensor.buffer) not in seen:
                seen.add(id(tensor.buffer))
                sizes[tensor.dtype_name in ("FLOAT32", "FLOAT16")] += tensor.buffer.nbytes
    return sizes[True] > sizes[False]


def has_old_codes(path: Path) -> bool:
    """Whether an operator's number stands in the older field only."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.Model.GetRootAs(path.read_bytes(), 0)
    codes = [model.OperatorCodes(index) for index in range(model.OperatorCodesLength())]
    return any(code.BuiltinCode() < code.DeprecatedBuiltinCode() for code in codes)


def judged(judge: Judge, path: Path, point: Point) -> Point:
    """Measures a file that was made."""
    data = path.read_bytes()
    point.nbytes, point.deflated = len(data), len(zlib.compress(data, 9))
    verdict = judge.compare(path, tolerance=Tolerance(min_snr=None))
    broken = [reason for reason in verdict.reasons if "does not run" in reason or "interface" in reason]
    if broken or not verdict.outputs:
        point.error = broken[0] if broken else "no outputs"
        return point
    # An output that is zero in the original has no ratio.
    counted = [item for item in verdict.outputs if item.bit_exact or item.reference_peak]
    found = sorted(
        math.inf if item.bit_exact else -math.inf if item.snr_db is None else item.snr_db for item in counted
    )
    if not found:
        point.error = "its outputs are zero"
        return point
    point.snr, point.median_snr = found[0], statistics.median(found)
    agreement = [item.argmax_agreement for item in verdict.outputs if item.argmax_agreement is not None]
    point.agreement = min(agreement, default=None)
    return point


def peer_points(path: Path, inputs: Path, folder: Path, python: str, judge: Judge) -> list[Point]:
    """Runs every recipe of the peer on a model, and on its repaired copy if that makes a difference."""
    known = json.loads(subprocess.run([python, PEER, "list"], capture_output=True, check=True).stdout)
    # The same recipes under another name.
    known = [name for name in known if name not in ("dynamic_wi8c_afp32", "dynamic_wi4c_afp32")]
    points: list[Point] = []
    seen: dict[str, Point] = {}
    for repair in (False, True) if has_old_codes(path) else (False,):
        place = folder / ("repaired" if repair else "plain")
        place.mkdir(parents=True, exist_ok=True)
        static = [name for name in known if name.startswith("static")]
        for names in ([name for name in known if name not in static], *([name] for name in static)):
            command = [python, str(PEER), ",".join(names), str(path), str(place)]
            command += ["--calib", str(inputs / f"{path.stem}.calib.npz")] + ["--repair"] * repair
            done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
            told = {}
            for line in done.stdout.splitlines():
                if line.startswith("{"):
                    row = json.loads(line)
                    told[row["recipe"]] = row["error"]
            for name in names:
                error = told.get(name, f"the process ended with {done.returncode}")
                made = place / f"{name}.tflite"
                point = Point(path.stem, "peer", f"{name}{' (repaired)' if repair else ''}", error=error)
                if error is None and made.exists():
                    key = hashlib.sha256(made.read_bytes()).hexdigest()
                    if key in seen:
                        point = Point(**{**asdict(seen[key]), "recipe": point.recipe})
                    else:
                        point = seen[key] = judged(judge, made, point)
                made.unlink(missing_ok=True)
                points.append(point)
    return points


def smallest(points: Iterable[Point], threshold: float) -> Point | None:
    """The smallest file that keeps a threshold."""
    good = [point for point in points if point.snr is not None and point.snr >= threshold]
    return min(good, key=lambda point: point.nbytes, default=None)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="?", default=os.environ.get("TFL_REWRITE_CORPUS"), type=Path)
    parser.add_argument("--inputs", type=Path, default=None, help="default: ../inputs beside MODELS")
    parser.add_argument("--only", nargs="*", default=[], help="models whose name holds one of these")
    parser.add_argument("--peer-python", default=sys.executable, help="Python that has ai-edge-quantizer")
    parser.add_argument("--work", type=Path, default=Path("bench-quality"), help="working folder")
    arguments = parser.parse_args()
    if arguments.models is None:
        parser.error("give a folder of models, or set TFL_REWRITE_CORPUS")
    inputs = arguments.inputs or arguments.models.parent / "inputs"
    arguments.work.mkdir(parents=True, exist_ok=True)
    for path in sorted(arguments.models.glob("*.tflite")):
        evaluation = inputs / f"{path.stem}.eval.npz"
        if arguments.only and not any(word in path.stem for word in arguments.only):
            continue
        try:
            if not evaluation.exists() or not is_float(path):
                continue
        except Exception as error:
            print(f"{path.stem}: {error}")
            continue
        kept = arguments.work / f"{path.stem}.peer.json"
        if not kept.exists():
            with Judge(path, inputs=[evaluation]) as judge:
                points = peer_points(path, inputs, arguments.work / path.stem, arguments.peer_python, judge)
            kept.write_text(json.dumps([asdict(point) for point in points], indent=1))
        points = [Point(**row) for row in json.loads(kept.read_text())]
        size = path.stat().st_size
        line = [f"{path.stem[-50:]:50s} {size:9,d}"]
        for threshold in THRESHOLDS:
            best = smallest(points, threshold)
            line.append(f"{best.nbytes / size:6.3f} {best.recipe[:28]:28s}" if best else f"{'none':35s}")
        print(" ".join(line), flush=True)


if __name__ == "__main__":
    main()
