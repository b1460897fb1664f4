"""Compares ``round-weights`` with the rounding of graph_transforms on a folder of float models.

    python scripts/bench_round.py [MODELS] [--inputs FOLDER] [--only WORD ...] [--json FILE]

MODELS (or the environment variable ``TFL_REWRITE_CORPUS``) holds ``NAME.tflite``; the folder of inputs
(``../inputs`` beside it) holds ``NAME.calib.npz``, which the search measures with, and ``NAME.eval.npz``,
which alone counts below. The reference is ``round_weights(num_steps=256)``: per tensor, linear buckets from
the smallest to the largest value, the value becomes the centre of its bucket, tensors of fewer than 16
elements stay. Ours must have the lowest SNR over the outputs that the reference has, and 30 dB where the
reference breaks the model (cosine under 0.9). It is the smaller file of ``--steps N`` and of a search. What
holds on the inputs of the search need not hold on others, so its target is moved until ours is just no worse
than the reference on ``eval``; the column "how" says which it was, and how far the target was moved.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import tempfile
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tfl_rewrite import load, save
from tfl_rewrite.model.blob import OwnedBlob
from tfl_rewrite.passes.round_weights import RoundWeights
from tfl_rewrite.rewriting import Verification
from tfl_rewrite.rounding_search import RoundingSearch
from tfl_rewrite.verification import Judge, Tolerance, Verdict

STEPS = 256
LEAST_ELEMENTS = 16
BROKEN_COSINE = 0.9
BROKEN_TARGET = 30.0
GOAL = 0.85
# Beyond this an output is as good as equal, and no ratio is worth raising a target for.
EXACT = 100.0
ATTEMPTS = 9


@dataclass
class Row:
    """One model: deflated sizes, and lowest SNR over the outputs on ``eval``."""

    name: str
    nbytes: int
    plain: int
    reference: int
    reference_snr: float
    cosine: float
    ours: int = 1 << 62
    ours_snr: float = -math.inf
    how: str = ""
    seconds: float = 0.0
    files: int = 0

    @property
    def ratio(self) -> float:
        return self.ours / self.reference

    @property
    def broken(self) -> bool:
        return self.cosine < BROKEN_COSINE

    @property
    def target(self) -> float:
        return BROKEN_TARGET if self.broken else self.reference_snr

    @property
    def held(self) -> bool:
        return self.ours_snr >= min(self.target, EXACT)


def round_linear(values: np.ndarray, steps: int) -> np.ndarray:
    """Replaces each value by the centre of its bucket."""
    low, high = float(values.min()), float(values.max())
    if high <= low:
        return values
    width = (high - low) / steps
    bucket = np.clip(np.floor((values.astype(np.float64) - low) / width), 0, steps - 1)
    return (low + (bucket + 0.5) * width).astype(values.dtype)


def write_reference(source: Path, target: Path) -> bool:
    """Writes the file that graph_transforms would; returns whether most constant bytes are floats."""
    model = load(source)
    done: set[int] = set()
    floats = 0
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            blob = tensor.buffer.blob
            numpy_type = {"FLOAT32": "<f4", "FLOAT16": "<f2"}.get(tensor.dtype_name)
            if blob is None or numpy_type is None or not tensor.is_constant or id(tensor.buffer) in done:
                continue
            values = np.frombuffer(blob.view(), numpy_type)
            if values.size >= LEAST_ELEMENTS and np.isfinite(values).all():
                tensor.buffer.blob = OwnedBlob(round_linear(values, STEPS).tobytes())
                done.add(id(tensor.buffer))
                floats += values.nbytes
    save(model, target, force=True)
    return floats > sum(buffer.nbytes for buffer in model.buffers) / 2


def deflated(path: Path) -> int:
    return len(zlib.compress(path.read_bytes(), 9))


def lowest(verdict: Verdict) -> float:
    found = verdict.worst_snr()
    return math.inf if found is None else found


def measure(path: Path, inputs: Path, folder: Path) -> Row | None:
    """Makes both files of a model and judges them; None where there is nothing to compare."""
    reference, ours = folder / "reference.tflite", folder / "ours.tflite"
    calib, evaluation = inputs / f"{path.stem}.calib.npz", inputs / f"{path.stem}.eval.npz"
    if not write_reference(path, reference) or not calib.exists() or not evaluation.exists():
        return None
    anything = Tolerance(min_snr=None)
    started = time.monotonic()
    with (
        Judge(path, inputs=[calib], tolerance=anything) as near,
        Judge(path, inputs=[evaluation], tolerance=anything) as judge,
    ):
        verdict = judge.compare(reference)
        if verdict.status == "unverified":
            return None
        row = Row(
            name=path.stem,
            nbytes=path.stat().st_size,
            plain=deflated(path),
            reference=deflated(reference),
            reference_snr=lowest(verdict),
            cosine=min((item.cosine for item in verdict.outputs if item.cosine is not None), default=1.0),
        )
        wanted = min(row.target, EXACT)

        def judged(settings: RoundWeights, how: str) -> float:
            model = load(path)
            settings.run(model)
            save(model, ours, force=True)
            snr = lowest(judge.compare(ours))
            if snr >= wanted or not row.held:
                size = deflated(ours)
                if (snr >= wanted, -size) > (row.held, -row.ours) or (snr > row.ours_snr and not row.held):
                    row.ours, row.ours_snr, row.how = size, snr, how
            return snr

        for steps in (512, 256, 128, 64, 32):
            if judged(RoundWeights(steps=steps), f"--steps {steps}") < wanted:
                break
        # Where both are worse or better on the inputs of the search, so is what to search for.
        begin = wanted if row.broken else min(lowest(near.compare(reference)), EXACT)
        target, spent = begin + 0.1, set()
        low, high = -math.inf, math.inf
        with RoundingSearch(path, RoundWeights(), Verification(inputs=(calib,)), aim=begin) as search:
            for _ in range(ATTEMPTS):
                found = search.find(target)
                snr = judged(found.settings, f"{target - begin:+.1f} dB")
                if snr >= wanted:
                    high = min(high, target)
                    if snr - wanted < 0.3:
                        break
                    target -= max(0.5, min(10.0, 0.8 * (snr - wanted)))
                else:
                    low = max(low, target)
                    target += max(0.5, min(10.0, wanted - snr + 0.2))
                if not low < target < high:
                    target = (low + high) / 2
                if round(target, 1) in spent or high - low < 0.2:
                    break
                spent.add(round(target, 1))
            row.files = found.files
    row.seconds = time.monotonic() - started
    return row


def line(row: Row) -> str:
    marks = ("" if row.held else " SNR LOWER") + (" LARGER" if row.ratio > 1 else "")
    return (
        f"{row.name[-52:]:52s} {row.nbytes:9,d} {row.plain:9,d} {row.reference:9,d} {row.reference_snr:6.1f} "
        f"{row.cosine:5.3f} {row.ours:9,d} {row.ours_snr:6.1f} {row.how:>11s} {row.ratio:6.3f} "
        f"{row.files:5d} {row.seconds:6.1f}{marks}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="?", default=os.environ.get("TFL_REWRITE_CORPUS"), type=Path)
    parser.add_argument("--inputs", type=Path, default=None, help="default: ../inputs beside MODELS")
    parser.add_argument("--only", nargs="*", default=[], help="models whose name holds one of these")
    parser.add_argument("--json", type=Path, default=None, help="write the rows")
    arguments = parser.parse_args()
    if arguments.models is None:
        parser.error("give a folder of models, or set TFL_REWRITE_CORPUS")
    inputs = arguments.inputs or arguments.models.parent / "inputs"
    print(
        f"{'model':52s} {'bytes':>9s} {'deflated':>9s} {'ref':>9s} {'SNR':>6s} {'cos':>5s} {'ours':>9s} "
        f"{'SNR':>6s} {'how':>11s} {'ratio':>6s} {'files':>5s} {'s':>6s}",
        flush=True,
    )
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="tfl-rewrite-bench-") as folder:
        for path in sorted(arguments.models.glob("*.tflite")):
            if arguments.only and not any(word in path.stem for word in arguments.only):
                continue
            row = measure(path, inputs, Path(folder))
            if row is not None:
                rows.append(row)
                print(line(row), flush=True)
                if arguments.json is not None:
                    arguments.json.write_text(json.dumps([vars(item) for item in rows], indent=1))
    if not rows:
        print("no model with float constants and inputs")
        return
    print(
        f"{len(rows)} models; geometric mean of ours / reference {mean(rows):.3f} (goal {GOAL}); larger on "
        f"{sum(row.ratio > 1 for row in rows)}; SNR lower on {sum(not row.held for row in rows)}"
    )
    noisy = [row for row in rows if math.isfinite(row.reference_snr)]
    print(f"of these, {len(noisy)} whose outputs the reference changes: {mean(noisy):.3f}")
    broken = [row for row in rows if row.broken]
    if broken:
        lowest_of_ours = min(row.ours_snr for row in broken)
        print(
            f"of these, {len(broken)} that the reference breaks: {mean(broken):.3f}, and ours has at least "
            f"{lowest_of_ours:.1f} dB there"
        )


def mean(rows: Sequence[Row]) -> float:
    """Returns the geometric mean of the ratios."""
    return math.exp(sum(math.log(row.ratio) for row in rows) / max(1, len(rows)))


if __name__ == "__main__":
    main()
