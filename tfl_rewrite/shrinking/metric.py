"""The user's own figure of merit, computed in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from tfl_rewrite.errors import UsageError
from tfl_rewrite.rewriting import Verification
from tfl_rewrite.verification import RunResult, run_model

_CHILD = """
import importlib, json, os, sys
import numpy as np

sys.path.insert(0, os.getcwd())
module, _, name = sys.argv[1].partition(":")
function = getattr(importlib.import_module(module), name)

def outputs(path):
    with np.load(path, allow_pickle=False) as archive:
        return {key: archive[key] for key in archive.files}

value = float(function(outputs(sys.argv[2]), outputs(sys.argv[3])))
print("\\n" + json.dumps({"value": value if np.isfinite(value) else None}))
"""


class MetricProcess:
    """Calls ``function(outputs, reference)`` for a file.

    Both arguments are dicts of arrays ``[samples, ...]`` by output name (``signature/name`` for signatures);
    larger results are better.

    Args:
        what: ``module:function``, importable from the folder that the program is run in.
        source: The original.
        verification: Which inputs, and the runtime.
        folder: For the outputs.

    Raises:
        UsageError: It is not of that form.
    """

    def __init__(
        self, what: str, source: str | os.PathLike[str], verification: Verification, folder: Path
    ) -> None:
        module, _, name = what.partition(":")
        if not module or not name.isidentifier():
            raise UsageError(f"metric {what!r}", remedy="write module:function")
        self._what = what
        self._source = source
        self._verification = verification
        self._folder = folder
        self._reference: Path | None = None

    def __call__(self, path: Path) -> float:
        """Returns the figure of a file.

        Raises:
            UsageError: The function cannot be imported, or fails.
        """
        if self._reference is None:
            self._reference = self._outputs(Path(self._source), "reference")
        made = self._outputs(path, "made")
        done = subprocess.run(
            [sys.executable, "-c", _CHILD, self._what, str(made), str(self._reference)],
            capture_output=True,
            text=True,
            timeout=self._verification.timeout,
        )
        lines = done.stdout.strip().splitlines()
        if done.returncode or not lines:
            last = (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
            raise UsageError(f"metric {self._what}: {last}", remedy="call it as function(outputs, reference)")
        value = json.loads(lines[-1])["value"]
        return float("nan") if value is None else float(value)

    def _outputs(self, path: Path, name: str) -> Path:
        settings = self._verification
        result = run_model(
            path,
            inputs=settings.inputs,
            samples=settings.samples,
            seed=settings.seed,
            runtime=settings.runtime,
            timeout=settings.timeout,
        )
        target = self._folder / f"{name}.npz"
        np.savez(target, **_by_name(result))
        return target


def _by_name(result: RunResult) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
    collected: dict[str, list[np.ndarray]] = {}  # type: ignore[type-arg]
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
