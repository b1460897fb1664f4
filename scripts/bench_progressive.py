"""Shards a folder of float models with ``--progressive``: sizes, what the base is worth, and what comes back.

    python scripts/bench_progressive.py [MODELS] [--inputs FOLDER] [--only WORD ...] [--kills N]

For each model: its size, and what deflate makes of it (zlib 9); then in percent of that size what is stored
of the base and of the rest, and of both together with the manifest. The base is fitted to ``NAME.calib.npz``
where the folder of inputs has that, and gated as ``quantize-weights`` gates it; the SNR is the lowest of its
outputs on ``NAME.eval.npz``. The whole and the base are joined again, and the whole is compared.

``--kills`` ends ``shard`` and ``join`` of the smallest model that has a base with SIGKILL, that often before
they end by themselves, at random moments, and looks whether anything half-made has a name then, and whether
a file that ``join`` was to replace is whole.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

from bench_models import bench_parser, inputs_of, is_float

import tfl_rewrite
from tfl_rewrite import JoinOptions, Judging, ShardOptions
from tfl_rewrite.errors import TflRewriteError

OPTIONS = ShardOptions(progressive=True)
HEAD = ("model", "bytes", "deflated", "base", "rest", "together", "gate", "eval SNR", "CPU s")
_MINE = b"what was there before"
LINE = "{:46.46} {:>10} {:>8} {:>6} {:>6} {:>8}  {:10} {:>8} {:>6}"


def models_of(arguments: argparse.Namespace) -> Iterator[Path]:
    """Yields the float models, the small ones first."""
    for path in sorted(arguments.models.glob("*.tflite"), key=lambda path: path.stat().st_size):
        if not arguments.only or any(word in path.stem for word in arguments.only):
            try:
                if is_float(path):
                    yield path
            except TflRewriteError as error:
                print(f"{path.stem}: {error}")


def measured(path: Path, inputs: Path, folder: Path) -> tuple[float, ...] | None:
    """Shards and joins one model, and prints its line; None where it has no base."""
    fitted, judged = (inputs / f"{path.stem}.{use}.npz" for use in ("calib", "eval"))
    judging = Judging(inputs=(fitted,)) if fitted.exists() else Judging()
    started = time.process_time()
    try:
        report = tfl_rewrite.shard(path, folder / "parts", OPTIONS, judging=judging)
    except TflRewriteError as error:
        print(f"{path.stem}: {error}")
        return None
    spent = time.process_time() - started
    base, whole = folder / "base.tflite", folder / "whole.tflite"
    tfl_rewrite.join(report.entry, base, JoinOptions(base=True))
    tfl_rewrite.join(report.entry, whole)
    if whole.read_bytes() != path.read_bytes():
        raise SystemExit(f"{path.stem}: the whole is another file")
    assert report.base is not None
    snr = ""
    if judged.exists():
        verdict = tfl_rewrite.verify(path, base, judging=Judging(inputs=(judged,)))
        worst = verdict.worst_snr()
        snr = f"{worst:.1f}" if worst is not None else "-"
    total = sum(file.stat().st_size for file in (folder / "parts").iterdir())
    first, size = report.base.stored_nbytes, report.nbytes
    rest = sum(item.stored_nbytes for item in report.files) - first
    sizes = len(zlib.compress(path.read_bytes(), 9)), first, rest, total
    shares = tuple(100 * part / size for part in sizes)
    gate = report.verdict.status if report.verdict is not None else "unverified"
    told = [f"{share:.1f} %" for share in shares]
    print(LINE.format(path.stem, f"{size:,}", *told, gate, snr, f"{spent:.1f}"), flush=True)
    for note in report.notes:
        print(f"    {note}")
    return shares


def has_base(path: Path) -> bool:
    """Whether ``shard --progressive`` makes something of a model; nothing is run."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            tfl_rewrite.shard(path, Path(folder) / "parts", OPTIONS, judging=Judging(mode="off"))
        except TflRewriteError:
            return False
    return True


def killed(path: Path, folder: Path, count: int) -> None:
    """Kills ``shard`` and ``join`` at random moments; raises where something half-made has a name."""
    dice, program = random.Random(0), [sys.executable, "-P", "-m", "tfl_rewrite"]
    parts, out = folder / "parts", folder / "out.tflite"
    manifest = parts / "manifest.json"
    options = ["--progressive", "--max-size", "64KiB", "--verify", "off"]
    calls = (
        [*program, "shard", str(path), str(parts), *options],
        [*program, "join", str(manifest), str(out)],
        [*program, "join", "--base", str(manifest), str(out)],
    )
    good: dict[str, bytes] = {}
    seconds = []
    for call in calls:
        started = time.monotonic()
        subprocess.run(call, check=True, capture_output=True)
        seconds.append(time.monotonic() - started)
        good |= {file.name: file.read_bytes() for file in parts.iterdir()}
        good |= {f"{len(seconds)}": out.read_bytes()} if out.exists() else {}
        out.unlink(missing_ok=True)
    ended = number = 0
    while ended < count:
        which = number % len(calls)
        number += 1
        if which == 0:
            shutil.rmtree(parts)
        elif not manifest.exists():
            subprocess.run(calls[0], check=True, capture_output=True)
        call = calls[which]
        if which and dice.random() < 0.5:
            out.write_bytes(_MINE)
            call = [*call, "--force"]
        with subprocess.Popen(call, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            # Imports come first, and write nothing.
            started, wait = time.monotonic(), dice.uniform(0.3, 1.1) * seconds[which]
            # How busy the machine is changes.
            try:
                process.wait(wait)
                seconds[which] = time.monotonic() - started
            except subprocess.TimeoutExpired:
                seconds[which] = max(seconds[which], wait)
            process.kill()
        ended += process.returncode == -signal.SIGKILL
        for file in parts.glob("*") if parts.exists() else ():
            if good.get(file.name) != file.read_bytes():
                raise SystemExit(f"{file} is half-made")
        if out.exists() and out.read_bytes() not in (good["2"], good["3"], _MINE):
            raise SystemExit(f"{out} is half-made")
        out.unlink(missing_ok=True)
        if left := [file.name for file in folder.iterdir() if file != parts]:
            raise SystemExit(f"left behind: {left}")
    print(f"{ended} of {number} calls were killed before their end: nothing half-made had a name")


def main() -> None:
    """Prints the table."""
    parser = bench_parser(__doc__)
    parser.add_argument("--kills", type=int, default=0)
    arguments = parser.parse_args()
    inputs = inputs_of(parser, arguments)
    paths = list(models_of(arguments))
    if arguments.kills:
        with tempfile.TemporaryDirectory() as folder:
            killed(next(filter(has_base, paths)), Path(folder), arguments.kills)
        return
    print(LINE.format(*HEAD))
    found = []
    for path in paths:
        with tempfile.TemporaryDirectory() as folder:
            shares = measured(path, inputs, Path(folder))
        if shares is not None:
            found.append(shares)
    middle = (f"{statistics.median(column):.1f} %" for column in zip(*found, strict=True))
    print(LINE.format(f"median of {len(found)}", "", *middle, "", "", ""))


if __name__ == "__main__":
    main()
