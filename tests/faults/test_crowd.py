"""Many runs at once in one folder for temporary files, on a machine that has more to do than it can.

``TFL_REWRITE_CROWD`` says how many at once and how often, such as ``50x10``; ``6x1`` by default.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from .place import FIXTURES, PROGRAM

RUNS, TIMES = map(int, os.environ.get("TFL_REWRITE_CROWD", "6x1").split("x"))


@contextlib.contextmanager
def load(processes: int) -> Iterator[None]:
    """Keeps the processors busy."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("turn", range(TIMES))
def test_none_takes_the_folder_of_another(tmp_path: Path, turn: int) -> None:
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    environment = {**os.environ, "TMPDIR": str(scratch)}
    with load(2 * (os.cpu_count() or 1)):
        runs = []
        for number in range(RUNS):
            command = [*PROGRAM, "quantize-weights", FIXTURES / "dense.tflite", tmp_path / f"{number}.tflite"]
            runs.append(
                subprocess.Popen(
                    [*command, "--samples", "1", "--min-elements", "16"],
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    env=environment,
                )
            )
        ends = [(process.communicate(timeout=1800)[0], process.returncode) for process in runs]
    failed = [said.decode()[-500:] for said, code in ends if code or b"PASS" not in said]
    assert not failed, f"{len(failed)} of {RUNS}: {failed[0]}"
    assert len({(tmp_path / f"{number}.tflite").read_bytes() for number in range(RUNS)}) == 1
    assert list(scratch.iterdir()) == []
    assert len(list(tmp_path.iterdir())) == RUNS + 1
