"""Compares downloads of ``shrink`` with ``round-weights`` and with another version of the package.

    python scripts/bench_download.py [MODELS] [--inputs FOLDER] [--only WORD ...] [--min-snr DB ...]
                                     [--beside FOLDER] [--keep FOLDER] [--time-limit S] [--json FILE]

MODELS (or the environment variable ``TFL_REWRITE_CORPUS``) holds ``NAME.tflite``; the folder of inputs
(``../inputs`` beside it) holds ``NAME.calib.npz``, which searches look at, and ``NAME.eval.npz``, which
judges. Each file is made by a whole process, and compressed whole: by zlib (level 9), and by zstd (19) and
brotli (11) where their libraries are installed. ``--beside`` names the source of another version, whose files
are made too. Files in the folder that ``--keep`` names are not made again. ``round256`` is the rounding of
graph_transforms: 256 linear steps for each tensor, whatever the ratio.

Bits are those of the deflated file for each float weight of the original; the limit is Shannon's for
independent Gaussian weights with the error that those of the file have, channel by channel of the outputs.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from bench_models import bench_parser, float_models, inputs_of
from bench_round import write_reference

from tfl_rewrite import load
from tfl_rewrite.editing.base import Context
from tfl_rewrite.errors import UsageError
from tfl_rewrite.judge.judge import Judge
from tfl_rewrite.judge.settings import Judging, Tolerance
from tfl_rewrite.numerics.codecs import Codec
from tfl_rewrite.passes.dequantize import Dequantize
from tfl_rewrite.passes.simplify import Simplify
from tfl_rewrite.weights.grids import find_constants

HERE = Path(__file__).resolve().parent.parent


def made(words: list[str], target: Path, package: Path) -> bool:
    """Runs the command of a version of the package; returns whether there is a file."""
    if not target.exists():
        environment = {**os.environ, "PYTHONPATH": str(package), "OPENBLAS_NUM_THREADS": "1"}
        command = [sys.executable, "-P", "-m", "tfl_rewrite", words[0], words[1], str(target), *words[2:]]
        subprocess.run(command, env=environment, capture_output=True, check=False)
    return target.exists()


def floats_of(path: Path, *, simplified: bool = False) -> dict[str, np.ndarray]:
    """Returns the weights that a file computes with, by name, each ``[channels, elements]``.

    Args:
        path: The file.
        simplified: Whether its channels that hold one number are left out.
    """
    model = load(path)
    for item in (Simplify(), Dequantize()) if simplified else (Dequantize(),):
        item.run(model, Context())
    found, _ = find_constants(model, int8=False, min_elements=16)
    weights = {}
    for item in found:
        rows = item.rows
        whole = item.values().astype(np.float64).reshape(rows.outer, rows.channels, rows.inner)
        weights[item.where] = whole.transpose(1, 0, 2).reshape(rows.channels, -1)
    return weights


def rate_limit(power: np.ndarray, strength: np.ndarray, noise: float) -> float:
    """Returns the least bits with which independent Gaussian weights err by so much: their Shannon limit.

    Args:
        power: Mean square of the weights of each column, ``[columns]``.
        strength: What a squared error of each counts, ``[columns]``: the diagonal of the triangular factor
            of what they meet.
        noise: Mean over rows of the error, as counted.

    Returns:
        Bits for a row of one weight a column: ``sum max(0, log2(power * strength / level) / 2)``, with the
        level at which ``sum min(power * strength, level)`` is the noise.
    """
    whole = np.sort((power * strength).reshape(-1))
    if noise <= 0 or not whole.any():
        return 0.0 if not whole.any() else math.inf
    if noise >= whole.sum():
        return 0.0
    below = np.concatenate([[0.0], np.cumsum(whole)[:-1]])
    # Of these levels, each drowns the columns before its own: the one that fits lies under the next column.
    levels = (noise - below) / np.arange(whole.size, 0, -1)
    level = float(levels[int(np.argmax(levels <= whole))])
    return float(0.5 * np.log2(np.maximum(whole / level, 1.0)).sum())


def limit_of(originals: list[dict[str, np.ndarray]], path: Path) -> float:
    """Returns the least bits a weight with which Gaussian ones would be off as far as those of a file.

    Channel by channel: the error is spread over them as is best.

    Args:
        originals: The weights of the original, and of the same simplified: of those the file has most.
        path: The file.
    """
    stored = floats_of(path)
    shapes = {name: each.shape for name, each in stored.items()}
    original = max(originals, key=lambda each: sum(shapes.get(n) == own.shape for n, own in each.items()))
    bits = 0.0
    for name, wanted in original.items():
        own = stored.get(name)
        if own is None or own.shape != wanted.shape:
            bits += 32.0 * wanted.size
            continue
        noise = float(np.square(wanted - own).mean(axis=1).sum())
        power = np.square(wanted).mean(axis=1)
        each = rate_limit(power, np.ones(len(power)), noise) if noise else 32.0 * len(power)
        bits += each * wanted.shape[1]
    return bits / sum(wanted.size for wanted in originals[0].values())


def codecs() -> list[Codec]:
    """Returns those whose libraries are installed."""
    found = []
    for codec in Codec:
        try:
            codec.sized()
        except UsageError:
            continue
        found.append(codec)
    return found


def main() -> None:
    """Prints a line for each file."""
    parser = bench_parser(__doc__)
    parser.add_argument("--min-snr", type=float, nargs="+", default=[20.0, 30.0, 40.0])
    parser.add_argument("--beside", type=Path, help="source of another version")
    parser.add_argument("--keep", type=Path, help="where files are, and stay")
    parser.add_argument("--time-limit", type=float, default=240.0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    inputs, known = inputs_of(parser, arguments), codecs()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.keep or Path(scratch)
        folder.mkdir(exist_ok=True)
        for path in float_models(arguments, inputs):
            calib, evaluation = (inputs / f"{path.stem}.{kind}.npz" for kind in ("calib", "eval"))
            originals = [floats_of(path), floats_of(path, simplified=True)]
            elements = sum(wanted.size for wanted in originals[0].values())
            settings = Judging(inputs=[evaluation], tolerance=Tolerance(min_snr=None))
            with Judge(path, settings) as judge:
                for snr in arguments.min_snr:
                    budget = ["--min-snr", f"{snr:g}", "--inputs", str(calib)]
                    shrink = [*budget, "--objective", "download", "--time-limit", f"{arguments.time_limit:g}"]
                    ways = {
                        "shrink": (["shrink", str(path), *shrink], HERE),
                        "round-weights": (["round-weights", str(path), *budget], HERE),
                    }
                    if arguments.beside is not None:
                        ways["beside"] = (["shrink", str(path), *shrink], arguments.beside)
                    files = {
                        name: folder / f"{path.stem}.{name}.{snr:g}.tflite"
                        for name, (words, package) in ways.items()
                        if made(words, folder / f"{path.stem}.{name}.{snr:g}.tflite", package)
                    }
                    files["round256"] = folder / f"{path.stem}.round256.tflite"
                    write_reference(path, files["round256"])
                    for name, file in files.items():
                        data, verdict = file.read_bytes(), judge.compare(file)
                        row = {"model": path.stem, "asked": snr, "file": name, "snr": verdict.worst_snr()}
                        row |= {codec.value: codec.sized()(data) for codec in known}
                        row |= {"bits": 8 * row["deflate"] / elements, "limit": limit_of(originals, file)}
                        rows.append(row)
                        text = "  ".join(f"{row[codec.value]:9,d}" for codec in known)
                        told = f"{row['snr'] or np.inf:6.1f}"
                        print(
                            f"{path.stem[-32:]:32s} {snr:4g} {name:14s} {told} {text}  "
                            f"{row['bits']:6.2f} {row['limit']:6.2f}",
                            flush=True,
                        )
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
