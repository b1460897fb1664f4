"""How long a model takes on this machine, measured in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tfl_rewrite.errors import UnsupportedError
from tfl_rewrite.shrinking.sensitivity import Progress
from tfl_rewrite.shrinking.trials import Trials
from tfl_rewrite.shrinking.units import Unit

_CHILD = """
import json, sys, time
import numpy as np
from ai_edge_litert.interpreter import Interpreter

models = sys.argv[1:]
runs = []
for path in models:
    work = Interpreter(path, num_threads=1)
    work.allocate_tensors()
    random = np.random.default_rng(0)
    for detail in work.get_input_details():
        if np.issubdtype(detail["dtype"], np.floating):
            work.set_tensor(detail["index"], random.random(detail["shape"]).astype(detail["dtype"]))
    work.invoke()
    runs.append((work, []))
# In turn, so that whatever else goes on meets all of them.
ends = time.perf_counter() + 0.15 * len(models)
while time.perf_counter() < ends or len(runs[0][1]) < 5:
    for work, times in runs:
        started = time.perf_counter()
        work.invoke()
        times.append(time.perf_counter() - started)
print("\\n" + json.dumps([sorted(times)[len(times) // 4] for _, times in runs]))
"""


class Stopwatch:
    """Times files.

    Args:
        trials: Makes them.
        folder: For them.
    """

    def __init__(self, trials: Trials, folder: Path) -> None:
        self._trials = trials
        self._folder = folder

    def price(self, units: Sequence[Unit], progress: Progress) -> None:
        """Puts into each option what it adds to the time of the model, in seconds; bytes settle a tie."""
        original = self._folder / "original.tflite"
        self._trials.write({}, original)
        for number, unit in enumerate(units):
            progress("timing encodings", number, len(units))
            paths = []
            for index, option in enumerate(unit.options[1:]):
                path = self._folder / f"{index}.tflite"
                self._trials.write({unit.position: option.encoding}, path)
                paths.append(path)
            base, *times = self.seconds([original, *paths])
            unit.kept.cost = unit.nbytes * 1e-13
            for option, taken in zip(unit.options[1:], times, strict=True):
                # Differences within the jitter of the clock are none.
                difference = taken - base
                option.cost = (difference if abs(difference) > 0.02 * base else 0.0) + option.nbytes * 1e-13

    def seconds(self, paths: Sequence[Path]) -> list[float]:
        """Returns the lower quartile of one call of each file, with made inputs and one thread.

        Raises:
            UnsupportedError: One of them does not run.
        """
        done = subprocess.run(
            [sys.executable, "-c", _CHILD, *map(str, paths)], capture_output=True, text=True, timeout=600
        )
        lines = done.stdout.strip().splitlines()
        if done.returncode or not lines:
            last = (done.stderr.strip().splitlines() or ["it died"])[-1]
            raise UnsupportedError(f"cannot be timed: {last}", remedy="use another --objective")
        return [float(value) for value in np.array(json.loads(lines[-1]))]
