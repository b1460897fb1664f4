"""How long a model takes on this machine, measured in a process of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from tfl_rewrite.errors import UnsupportedError
from tfl_rewrite.interpreter.memory import MemoryWatch, default_limit
from tfl_rewrite.interpreter.scratch import Scratch
from tfl_rewrite.interpreter.worker import RuntimeChoice, Worker
from tfl_rewrite.search.sensitivity import Progress
from tfl_rewrite.search.trials import Trials
from tfl_rewrite.search.units import Unit

_TIMEOUT = 600.0


class Stopwatch:
    """Times files.

    Args:
        trials: Makes them.
        folder: For them.
        runtime: That runs them.
    """

    def __init__(self, trials: Trials, folder: Path, runtime: str) -> None:
        self._trials = trials
        self._folder = folder
        self._runtime = runtime

    def price(self, units: Sequence[Unit], progress: Progress) -> None:
        """Puts into each option what it adds to the time of the model, in seconds; bytes settle a tie."""
        original = self._folder / "original.tflite"
        self._trials.write({}, original)
        for number, unit in enumerate(units):
            progress("timing encodings", number, len(units))
            paths = []
            for index, option in enumerate(unit.options[1:]):
                path = self._folder / f"{index}.tflite"
                self._trials.write({unit.position: option.form}, path)
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
        with contextlib.closing(Scratch()) as scratch:
            choice, watch = RuntimeChoice.parse(self._runtime), MemoryWatch(default_limit())
            worker = Worker(choice, scratch.folder(), watch, timeout=_TIMEOUT)
            try:
                worker.admit(*paths)
                request = {"do": "time", "models": [str(path) for path in paths], "threads": 1}
                worker.begin(request, scratch.folder())
                done = worker.finish(_TIMEOUT)
            finally:
                worker.kill()
        if done.failure is not None:
            raise UnsupportedError(
                f"cannot be timed: {done.failure.message}", remedy="use another --objective"
            )
        return [float(item) for item in done.answer["seconds"]]
