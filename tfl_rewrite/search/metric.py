"""The user's own figure of merit, computed in a process of its own.

That process is not shut into the sandbox that models are run in: what it runs is the user's program, which
may need whatever the user has, and what it gets are numbers, read without pickle, not a model.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tfl_rewrite.errors import UsageError
from tfl_rewrite.interpreter.interface import Array
from tfl_rewrite.interpreter.process import death_of
from tfl_rewrite.judge.judge import RunResult, run_model
from tfl_rewrite.judge.settings import Judging

_SCRIPT = Path(__file__).with_name("metric_child.py")


class MetricProcess:
    """Calls ``function(outputs, reference)`` for a file.

    Both arguments are dicts of arrays ``[samples, ...]`` by output name (``signature/name`` for signatures);
    larger results are better.

    Args:
        what: ``module:function``, importable from the folder that the program is run in.
        source: The original.
        parts: Which inputs, and the runtime; of several parts, the samples follow each other.
        folder: For the outputs.

    Raises:
        UsageError: It is not of that form.
    """

    def __init__(
        self, what: str, source: str | os.PathLike[str], parts: Sequence[Judging], folder: Path
    ) -> None:
        module, _, name = what.partition(":")
        if not module or not name.isidentifier():
            raise UsageError(f"metric {what!r}", remedy="write module:function")
        self._what = what
        self._source = source
        self._parts = tuple(parts)
        self._folder = folder
        self._reference: Path | None = None

    def check(self) -> None:
        """Looks whether there is such a function; before anything is run, which may take long.

        Raises:
            UsageError: It cannot be imported.
        """
        self._value()

    def __call__(self, paths: Sequence[Path]) -> float:
        """Returns the figure of a file.

        Args:
            paths: The file, or one for each part of the inputs.

        Raises:
            UsageError: The function cannot be imported, or fails.
        """
        if self._reference is None:
            self._reference = self._outputs([Path(self._source)] * len(self._parts), "reference")
        made = self._outputs(paths, "made")
        return self._value(made, self._reference)

    def _value(self, *files: Path) -> float:
        """Runs the process."""
        seconds = self._parts[0].timeout
        try:
            done = subprocess.run(
                [sys.executable, str(_SCRIPT), self._what, *map(str, files)],
                capture_output=True,
                text=True,
                timeout=seconds,
            )
        except subprocess.TimeoutExpired:
            raise UsageError(
                f"metric {self._what}: was stopped after {seconds:g} s", remedy="give more with --timeout"
            ) from None
        try:
            value = json.loads(done.stdout.strip().splitlines()[-1])["value"]
        except (IndexError, ValueError, KeyError, TypeError):
            last = (done.stderr.strip().splitlines() or [f"its process {death_of(done.returncode)}"])[-1]
            raise UsageError(
                f"metric {self._what}: {last}", remedy="call it as function(outputs, reference)"
            ) from None
        return float("nan") if value is None else float(value)

    def _outputs(self, paths: Sequence[Path], name: str) -> Path:
        results = [run_model(path, settings) for path, settings in zip(paths, self._parts, strict=True)]
        target = self._folder / f"{name}.npz"
        arrays = _by_name(results)
        # By number: a name comes from the model, and may be none that a file of arrays can hold.
        np.savez(target, *arrays.values())
        Path(f"{target}.json").write_text(json.dumps(list(arrays)), encoding="utf-8")
        return target


def _by_name(results: Sequence[RunResult]) -> dict[str, Array]:
    collected: dict[str, list[Array]] = {}
    for result in results:
        for call in result.outputs:
            for name, value in zip(call.names, call.values, strict=True):
                if value is not None and value.dtype != object:
                    key = name if call.signature is None else f"{call.signature}/{name}"
                    collected.setdefault(key, []).append(value)
    return {
        key: np.stack(values)
        if len({value.shape for value in values}) == 1
        else np.concatenate([value.reshape(-1) for value in values])
        for key, values in collected.items()
    }
