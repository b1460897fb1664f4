"""The table of ``bench.py --sizes``: what whole commands cost for models of several GiB.

Commands run one after the other with ``--verify off`` where they would verify, the smallest model first; each
output is removed before the next run. ``cp`` stands beside them for what the disk takes. Peak memory is that
of the whole process, mapped pages of files included. The first command that reads a model finds it in the
page cache as far as the cache had room for what was just written.
"""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

GIB = 1 << 30
PEER_MEMORY = 12 * GIB
PEER_SECONDS = 1800.0

PEER = """
import sys
from litert_quantizer import quantizer, recipe
work = quantizer.Quantizer(sys.argv[1])
work.load_quantization_recipe(recipe.dynamic_wi8_afp32())
work.quantize().export_model(sys.argv[2], overwrite=True)
"""


@dataclass(frozen=True)
class Cost:
    """One finished process: wall and processor seconds, peak memory in MiB, and why it failed, if it did."""

    wall: float
    cpu: float
    memory: float
    failure: str = ""


def measure(command: Sequence[str], *, memory: int = 0, seconds: float = 7200.0) -> Cost:
    """Runs a command to its end, with the system's account of it.

    Args:
        command: Program and arguments.
        memory: Bound on its private memory in bytes (``RLIMIT_DATA``: mapped files do not count); 0 for none.
        seconds: When it is stopped.
    """

    def bound() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))

    with tempfile.TemporaryFile() as noise:
        started = time.perf_counter()
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=noise, preexec_fn=bound if memory else None
        )
        try:
            while True:
                done, status, usage = os.wait4(process.pid, os.WNOHANG)
                if done:
                    break
                if time.perf_counter() - started > seconds:
                    process.kill()
                time.sleep(0.02)
        except BaseException:
            process.kill()
            raise
        wall = time.perf_counter() - started
        process.returncode = code = os.waitstatus_to_exitcode(status)
        noise.seek(0)
        lines = noise.read().decode(errors="replace").strip().splitlines()
    failure = ""
    if code:
        failure = f"exit code {code}" if code > 0 else f"signal {-code}"
        if wall > seconds:
            failure = f"stopped after {seconds:.0f} s"
        failure += f": {lines[-1][:120]}" if lines else ""
    return Cost(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, failure)


@contextlib.contextmanager
def _without(path: Path) -> Iterator[None]:
    """Removes a file before and after."""
    path.unlink(missing_ok=True)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def table(sizes: Sequence[float], *, runs: int, folder: Path, peer_python: str | None, sparse: bool) -> None:
    """Makes the models and prints the table, a line as soon as it is known.

    Args:
        sizes: GiB of each model.
        runs: Of each command; medians are printed.
        folder: For models and outputs; takes three times the largest size.
        peer_python: Python that has litert-quantizer, or None.
        sparse: As for ``large_model.py``.
    """
    tool = str(Path(sys.executable).parent / "tfl-rewrite")
    print("| command | GiB | wall s | wall s/GiB | CPU s/GiB | peak MiB |")
    print("|---|---:|---:|---:|---:|---:|", flush=True)
    for size in sizes:
        model, out, shards = folder / "model.tflite", folder / "out.tflite", folder / "shards"
        with _without(model):
            maker = [sys.executable, str(Path(__file__).with_name("large_model.py")), str(model), str(size)]
            subprocess.run([*maker, "--sparse"] if sparse else maker, check=True)
            gib = model.stat().st_size / GIB
            writes = ["--verify", "off", str(model), str(out)]
            for name, command in (
                ("check", [tool, "check", str(model)]),
                ("inspect", [tool, "inspect", str(model)]),
                ("quantize-weights", [tool, "quantize-weights", *writes]),
                ("dedup", [tool, "dedup", *writes]),
                ("cp", ["cp", "--reflink=never", "--sparse=never", str(model), str(out)]),
                ("shard", [tool, "shard", "--max-size", "64MB", str(model), str(shards)]),
                # Of the parts that the last run before it left.
                ("join", [tool, "join", str(shards / "manifest.json"), str(out)]),
            ):
                costs = []
                for _ in range(runs):
                    with _without(out):
                        if name == "shard" and shards.exists():
                            shutil.rmtree(shards)
                        costs.append(measure(command))
                _line(name, gib, costs)
            shutil.rmtree(shards, ignore_errors=True)
            if peer_python is not None:
                with _without(out):
                    peer = [peer_python, "-c", PEER, str(model), str(out)]
                    _line("litert-quantizer", gib, [measure(peer, memory=PEER_MEMORY, seconds=PEER_SECONDS)])


def _line(name: str, gib: float, costs: Sequence[Cost]) -> None:
    failure = next((cost.failure for cost in costs if cost.failure), "")
    wall = statistics.median(cost.wall for cost in costs)
    cpu = statistics.median(cost.cpu for cost in costs)
    memory = max(cost.memory for cost in costs)
    figures = f"{wall:.1f} | {wall / gib:.2f} | {cpu / gib:.2f} | {memory:.0f}"
    if failure:
        figures = f"fails after {wall:.0f} s: {failure} | | | {memory:.0f}"
    print(f"| {name} | {gib:.1f} | {figures} |", flush=True)
