"""Runs many small models in child processes and compares their outputs with references."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from tfl_rewrite.kernels import runtimes

TIMEOUT = 300
CHILD = Path(__file__).with_name("child.py")
RESOLVERS = ("AUTO", "BUILTIN_WITHOUT_DEFAULT_DELEGATES", "BUILTIN_REF")
OLD_PYTHON = os.environ.get("TFL_REWRITE_OLD_RUNTIME_PYTHON")
XNNPACK, BUILTIN, REFERENCE = RESOLVERS
MICRO = "MICRO"
"""TFLite Micro, in the place of a resolver."""
INSTALLED = runtimes.version_key(importlib.metadata.version(runtimes.LITERT))[:3]
NEWEST = max(map(runtimes.version_key, runtimes.LITERT_RUNTIME))
HYBRID_SNR = 30.0
"""What int8 activations leave; the measured variants have 37 dB and more."""
EXACT_SNR = 100.0
"""Float operators that differ between kernels in their last bit, over some hundred terms."""

# What a newer runtime does in another way fails: `conftest.py` says that it is newer.
needs_new = pytest.mark.skipif(
    INSTALLED < NEWEST, reason=f"the rows were measured on LiteRT {NEWEST}, this is {INSTALLED}"
)
needs_old = pytest.mark.skipif(
    OLD_PYTHON is None, reason="TFL_REWRITE_OLD_RUNTIME_PYTHON names no Python with tflite-runtime 2.14.0"
)
NO_MICRO = "" if importlib.util.find_spec("tflite_micro") else "TFLite Micro is not installed (extra: micro)"
needs_micro = pytest.mark.skipif(bool(NO_MICRO), reason=NO_MICRO)


@dataclass
class Case:
    """One model, its inputs, and the model that says what it should compute."""

    name: str
    model: bytes
    inputs: list[np.ndarray]
    reference: bytes | None = None


@dataclass
class Outcome:
    """What became of one case with one resolver."""

    error: str | None = None
    outputs: dict[str, np.ndarray] = field(default_factory=dict)
    snr: float = float("nan")
    reference_error: str | None = None

    def ok(self, least_snr: float) -> bool:
        return self.error is None and self.snr >= least_snr

    def __str__(self) -> str:
        if self.error is not None:
            return "ERR " + " ".join(self.error.split())[:160]
        return f"{self.snr:.1f}"


def snr(reference: dict[str, np.ndarray], outputs: dict[str, np.ndarray]) -> float:
    """Returns the lowest SNR over the outputs in dB; inf where all are equal, -inf for NaN or wrong shape."""
    lowest = np.inf
    for key, wanted in reference.items():
        got = outputs.get(key)
        if got is None or got.shape != wanted.shape or not np.array_equal(np.isnan(got), np.isnan(wanted)):
            return -np.inf
        noise = float(np.sum((wanted.astype(np.float64) - got) ** 2))
        signal = float(np.sum(wanted.astype(np.float64) ** 2))
        if noise > 0:
            lowest = min(lowest, 10 * (np.log10(signal) - np.log10(noise)) if signal > 0 else -np.inf)
    return float(lowest)


def _run_all(python: str, folder: Path, resolver: str, names: list[str]) -> dict[str, Outcome]:
    outcomes: dict[str, Outcome] = {}
    left = list(names)
    while left:
        process = subprocess.run(
            [python, "-W", "ignore", str(CHILD), str(folder), resolver, *left],
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
        )
        started = None
        for line in process.stdout.splitlines():
            if not line.startswith("{"):
                continue
            said = json.loads(line)
            if "start" in said:
                started = said["start"]
                continue
            outcome = Outcome(said.get("error"))
            if outcome.error is None:
                with np.load(folder / f"{started}.{resolver}.out.npz") as saved:
                    outcome.outputs = {key: saved[key] for key in saved.files}
            outcomes[said["done"]] = outcome
            left.remove(said["done"])
        if left:
            if started != left[0]:
                raise RuntimeError(process.stderr)
            outcomes[left.pop(0)] = Outcome(f"process ended with {process.returncode}")
    return outcomes


def measure(
    cases: list[Case], folder: Path, *, resolvers: tuple[str, ...] = RESOLVERS, python: str = sys.executable
) -> dict[str, dict[str, Outcome]]:
    """Returns case name -> resolver -> outcome, judged against the reference models run here.

    The references run in this Python's runtime, without delegates where that is possible, whatever
    ``python`` runs the cases.
    """
    references = {}
    for case in cases:
        arrays = {f"in{i:02d}": array for i, array in enumerate(case.inputs)}
        for name, model in ((case.name, case.model), (f"{case.name}.ref", case.reference)):
            if model is not None:
                (folder / f"{name}.tflite").write_bytes(model)
                np.savez(folder / f"{name}.npz", **arrays)  # type: ignore[arg-type]
    with_reference = [f"{case.name}.ref" for case in cases if case.reference is not None]
    if with_reference:
        references = _run_all(sys.executable, folder, "BUILTIN_WITHOUT_DEFAULT_DELEGATES", with_reference)
        # Some float models run with the delegate only: a convolution without a bias, for one.
        refused = [name for name, outcome in references.items() if outcome.error is not None]
        if refused:
            references |= _run_all(sys.executable, folder, "AUTO", refused)
    table: dict[str, dict[str, Outcome]] = {case.name: {} for case in cases}
    for resolver in resolvers:
        for name, outcome in _run_all(python, folder, resolver, [case.name for case in cases]).items():
            reference = references.get(f"{name}.ref")
            if reference is not None and reference.error is not None:
                outcome.reference_error = reference.error
            elif reference is not None and outcome.error is None:
                outcome.snr = snr(reference.outputs, outcome.outputs)
            table[name][resolver] = outcome
    return table


def is_unregistered(outcome: Outcome) -> bool:
    return outcome.error is not None and "Didn't find op" in outcome.error
