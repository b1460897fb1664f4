"""Measures pruning: size against SNR, beside rounding and searches at the same SNR.

    python scripts/bench_prune.py [MODELS] [--inputs FOLDER] [--only WORD ...] [--shares S ...]
                                  [--min-snr DB ...] [--work FOLDER]

``NAME.calib.npz`` alone is fitted to, ``NAME.eval.npz`` alone judges. Prints, for each file that was made,
its bytes and its deflated bytes (zlib, level 9) over those of the original, and the lowest SNR over the
outputs. For each share: pruned by size alone, for what weights meet, stored sparse, and int8 behind it. For
each ratio: what the searches of prune, of round-weights and of shrink for a download make of it.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench_models import bench_parser, float_models, inputs_of

from tfl_rewrite import Goal, Judging, TflRewriteError, rewrite, shrink, verify
from tfl_rewrite.editing import Pass
from tfl_rewrite.passes import Prune, QuantizeWeights, RoundWeights

SHARES = (0.3, 0.5, 0.7, 0.9)
RATIOS = (20.0, 30.0)


def sizes(path: Path) -> tuple[int, int]:
    """Bytes of a file, and of what deflate makes of it."""
    data = path.read_bytes()
    return len(data), len(zlib.compress(data, 9))


def pruned(share: float) -> Iterator[tuple[str, Sequence[Pass]]]:
    """The ways of making a share of weights zero."""
    yield f"{share:.0%} by size", [Prune(sparsity=share, effort="fast")]
    yield f"{share:.0%}", [Prune(sparsity=share)]
    yield f"{share:.0%} sparse", [Prune(sparsity=share, encode="sparse")]
    yield f"{share:.0%}, int8", [Prune(sparsity=share), QuantizeWeights(scheme="dequantize")]


def told(name: str, path: Path, target: Path, judging: Judging) -> None:
    """Prints what a file that was made of another takes and keeps."""
    ratios = [after / before for after, before in zip(sizes(target), sizes(path), strict=True)]
    snr = verify(path, target, judging).worst_snr()
    print(
        f"  {name:24} {ratios[0]:6.3f} {ratios[1]:6.3f}  {'-' if snr is None else f'{snr:6.1f}'} dB",
        flush=True,
    )


def main() -> None:
    parser = bench_parser(__doc__)
    parser.add_argument("--shares", nargs="*", type=float, default=list(SHARES))
    parser.add_argument("--min-snr", nargs="*", type=float, default=list(RATIOS), metavar="DB")
    parser.add_argument("--work", type=Path, default=Path("bench-prune"), help="working folder")
    arguments = parser.parse_args()
    inputs = inputs_of(parser, arguments)
    arguments.work.mkdir(parents=True, exist_ok=True)
    target = arguments.work / "made.tflite"
    for path in float_models(arguments, inputs):
        given = Judging(inputs=(inputs / f"{path.stem}.calib.npz",))
        judging = Judging(inputs=(inputs / f"{path.stem}.eval.npz",))
        print("{}: {:,} bytes, {:,} deflated".format(path.stem, *sizes(path)), flush=True)

        for share in arguments.shares:
            for name, passes in pruned(share):
                quiet = Judging(mode="off", inputs=given.inputs)
                rewrite(path, target, passes, judging=quiet, force=True)
                told(name, path, target, judging)
        for ratio in arguments.min_snr:
            searched: list[tuple[str, Sequence[Pass]]] = [
                ("prune", [Prune(min_snr=ratio)]),
                ("round-weights", [RoundWeights(min_snr=ratio)]),
            ]
            for name, passes in searched:
                try:
                    rewrite(path, target, passes, judging=given, force=True)
                    told(f"{name} {ratio:g} dB", path, target, judging)
                except TflRewriteError as error:
                    print(f"  {name} {ratio:g} dB: {error}")
            try:
                shrink(path, target, Goal(min_snr=ratio, objective="download"), judging=given, force=True)
                told(f"shrink {ratio:g} dB", path, target, judging)
            except TflRewriteError as error:
                print(f"  shrink {ratio:g} dB: {error}")


if __name__ == "__main__":
    main()
