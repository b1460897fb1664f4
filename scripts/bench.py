"""Times whole commands on a ResNet-50-sized float model (about 100 MB, seeded weights).

    python scripts/bench.py [--runs N] [--peer-python PYTHON]
    python scripts/bench.py --sizes 1,4,8 [--folder FOLDER]

Prints medians of paired runs: ``tfl-rewrite quantize-weights --verify off`` against litert-quantizer's
``dynamic_wi8_afp32`` recipe and against ``cp``, and the start-up time of ``tfl-rewrite --version``. The peer
is in the extra ``[bench]``; without it only the other lines are printed. ``--sizes`` prints what each command
costs for models of so many GiB instead (``scripts/bench_sizes.py``).
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import bench_sizes
from bench_sizes import PEER


@dataclass(frozen=True)
class Run:
    """One finished process: wall and processor seconds, and the peak of its resident memory in MiB."""

    wall: float
    cpu: float
    memory: float


def run(command: Sequence[str]) -> Run:
    """Runs a command to its end, with the system's account of it; a last word OUT.tflite is made anew."""
    if command[-1].endswith(".tflite"):
        Path(command[-1]).unlink(missing_ok=True)
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    noise = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{noise.decode(errors='replace')[-2000:]}")
    return Run(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def compare(
    name: str, ours: Sequence[str], other: Sequence[str], runs: int, report: Callable[[str], None]
) -> None:
    """Runs both commands in turn, A B A B, and prints medians and the median of the paired ratios."""
    pairs = [(run(ours), run(other)) for _ in range(runs + 1)][1:]
    a = [pair[0] for pair in pairs]
    b = [pair[1] for pair in pairs]
    wall = statistics.median(one.wall / two.wall for one, two in pairs)
    memory = statistics.median(one.memory / two.memory for one, two in pairs)
    report(
        f"  {name:34s} wall {median(a, 'wall'):6.2f} s vs {median(b, 'wall'):6.2f} s  ratio {wall:5.2f}   "
        f"peak memory {median(a, 'memory'):6.0f} MiB vs {median(b, 'memory'):6.0f} MiB  ratio {memory:5.2f}"
    )


def median(runs: Sequence[Run], what: str) -> float:
    """Returns the median of one figure."""
    return statistics.median(getattr(item, what) for item in runs)


def _sizes(text: str) -> list[float]:
    sizes = [float(part) for part in text.split(",")]
    if not all(0 < size <= 64 for size in sizes):
        raise ValueError(text)
    return sizes


def _has_peer(python: str) -> bool:
    probe = [python, "-c", "import litert_quantizer"]
    if shutil.which(python) is None:
        return False
    return subprocess.run(probe, capture_output=True, check=False).returncode == 0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=None, help="paired runs (default: 7, with --sizes 3)")
    parser.add_argument("--seed", type=int, default=50, help="seed of the weights")
    parser.add_argument("--peer-python", default=sys.executable, help="Python that has litert-quantizer")
    parser.add_argument(
        "--sizes", type=_sizes, help="GiB of generated models, such as 1,4,8", metavar="GIB,..."
    )
    parser.add_argument("--sparse", action="store_true", help="with --sizes: models of zeros, mostly holes")
    parser.add_argument(
        "--folder",
        type=Path,
        default=None,
        help="where models and outputs go (default: the temporary folder)",
    )
    arguments = parser.parse_args()
    if arguments.sizes:
        found = _has_peer(arguments.peer_python)
        with tempfile.TemporaryDirectory(prefix="tfl-rewrite-bench-", dir=arguments.folder) as folder:
            bench_sizes.table(
                arguments.sizes,
                runs=arguments.runs or 3,
                folder=Path(folder),
                peer_python=arguments.peer_python if found else None,
                sparse=arguments.sparse,
            )
        return
    arguments.runs = arguments.runs or 7
    tool = str(Path(sys.executable).parent / "tfl-rewrite")
    with tempfile.TemporaryDirectory(prefix="tfl-rewrite-bench-", dir=arguments.folder) as folder:
        model = Path(folder) / "resnet50.tflite"
        maker = Path(__file__).with_name("bench_model.py")
        subprocess.run([sys.executable, str(maker), str(model), str(arguments.seed)], check=True)
        ours_file, peer_file = Path(folder) / "ours.tflite", Path(folder) / "peer.tflite"
        ours = [tool, "quantize-weights", "--verify", "off", str(model), str(ours_file)]
        print(
            f"model: {model.stat().st_size:,} bytes; {arguments.runs} paired runs, medians, whole processes"
        )
        compare("quantize-weights vs cp", ours, ["cp", str(model), str(peer_file)], arguments.runs, print)
        if not _has_peer(arguments.peer_python):
            print("  litert-quantizer is not installed; skipped (pip install 'tfl-rewrite[bench]')")
        else:
            peer = [arguments.peer_python, "-c", PEER, str(model), str(peer_file)]
            compare("quantize-weights vs litert-quantizer", ours, peer, arguments.runs, print)
            print(
                f"  sizes: ours {ours_file.stat().st_size:,} bytes, peer {peer_file.stat().st_size:,} bytes"
            )
        starts = [run([tool, "--version"]) for _ in range(arguments.runs + 1)][1:]
        print(f"  tfl-rewrite --version: {median(starts, 'wall'):.3f} s")


if __name__ == "__main__":
    main()
