"""Measures mixed activations: size, time and SNR where more and more operators have 16 bits.

    python scripts/bench_mixed.py [MODELS] [--inputs FOLDER] [--only WORD ...] [--shares S ...]
                                  [--min-snr DB ...] [--effort NAME] [--work FOLDER]

MODELS and the folder of inputs are those of ``bench_integer.py``: ``NAME.calib.npz``, which alone
calibrates, and ``NAME.eval.npz``, which alone judges. For each share the scale groups that are worth most
have 16 bits; for each ratio of ``--min-snr`` as few as keep it on the samples that calibrate. Prints, for
each file, the share of operators with 16 bits, its bytes, the time of a call (the least of many, in turn with
the others; one thread, XNNPACK), and the lowest SNR over the outputs on XNNPACK / built-in / reference
kernels.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from bench_integer import RESOLVERS, calls, figure
from bench_models import bench_parser, could_be_integer, float_models, inputs_of

from tfl_rewrite import Judging, Tolerance, load, run, save
from tfl_rewrite.calibration.fitter import InputActivations
from tfl_rewrite.editing.base import Context
from tfl_rewrite.judge.judge import Judge
from tfl_rewrite.passes import Quantize

SHARES = (0.0, 0.1, 0.25, 0.5, 1.0)


def made(path: Path, inputs: Path, arguments: argparse.Namespace) -> dict[str, tuple[Path, float]]:
    """Makes the files of a model; returns their places and shares of 16 bits, by what was asked for."""
    wanted = [(f"{share:.0%}", None, share) for share in arguments.shares]
    wanted += [(f"{ratio:g} dB", ratio, None) for ratio in arguments.min_snr]
    calibrating = inputs / f"{path.stem}.calib.npz"
    # What is measured of single groups serves all files.
    activations = InputActivations(Judging(inputs=(calibrating,)))
    found = {}
    for name, ratio, share in wanted:
        settings = Judging(
            inputs=(calibrating,), tolerance=Tolerance(min_snr=20.0 if ratio is None else ratio)
        )
        activations.judging = settings
        item = Quantize(activations="mixed", effort=arguments.effort, share=share)
        model = load(path)
        (result,) = run(model, [item], Context(activations=activations))
        target = arguments.work / f"{path.stem}.mixed.{name.replace(' ', '')}.tflite"
        save(model, target, force=True)
        widths = [change.activations for change in result.changes]
        found[name] = target, widths.count("int16") / max(1, len(widths))
    return found


def main() -> None:
    parser = bench_parser(__doc__)
    parser.add_argument("--shares", nargs="*", type=float, default=list(SHARES))
    parser.add_argument("--min-snr", nargs="*", type=float, default=[], metavar="DB")
    parser.add_argument("--effort", default="balanced")
    parser.add_argument("--work", type=Path, default=Path("bench-integer"), help="working folder")
    arguments = parser.parse_args()
    inputs = inputs_of(parser, arguments)
    arguments.work.mkdir(parents=True, exist_ok=True)
    print("| model | asked for | operators with 16 bits | bytes | ms | dB |")
    print("|---|---:|---:|---:|---:|---|", flush=True)
    for path in float_models(arguments, inputs, could_be_integer):
        evaluation = inputs / f"{path.stem}.eval.npz"
        files = made(path, inputs, arguments)
        with np.load(evaluation) as given:
            sample = {key: given[key][0] for key in given}
        times = calls([path, *(target for target, _ in files.values())], sample)
        print(f"| {path.stem} | float | - | {path.stat().st_size:,} | {min(times[path]) * 1e3:.3f} | - |")
        figures: dict[str, list[str]] = {name: [] for name in files}
        for resolver in RESOLVERS:
            with Judge(path, Judging(inputs=[evaluation], resolver=(resolver,))) as judge:
                for name, (target, _) in files.items():
                    ratio = figure(judge, target)
                    figures[name].append(ratio if isinstance(ratio, str) else f"{ratio:.1f}")
        for name, (target, share) in files.items():
            told = f"{share:.0%} | {target.stat().st_size:,} | {min(times[target]) * 1e3:.3f}"
            print(f"| {path.stem} | {name} | {told} | {' / '.join(figures[name])} |", flush=True)


if __name__ == "__main__":
    main()
