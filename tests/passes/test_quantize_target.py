"""Integers for tflite-runtime 2.14: what it computes wrong or refuses is not in the file.

``TFL_REWRITE_OLD_RUNTIME_PYTHON`` names the Python of an environment with it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.nets import Net, codes
from tfl_rewrite import Judging, PassResult, Quantize, Tolerance, save, verify
from tfl_rewrite.editing.base import run_passes
from tfl_rewrite.integers.ranges import GivenModel, TensorRanges
from tfl_rewrite.kernels.integer import Target
from tfl_rewrite.kernels.table import ROWS
from tfl_rewrite.model.ir import Model

OLD = os.environ.get("TFL_REWRITE_OLD_RUNTIME_PYTHON")


def net() -> Model:
    """In 16 bits, 2.14 has no PRELU, and an ADD."""
    made = Net()
    source = made.input("in", (1, 2, 2, 4))
    slopes = made.constant("slopes", np.array([[[0.1, 0.2, 0.3, 0.4]]], np.float32))
    bent = made.add("PRELU", [source, slopes], "bent", (1, 2, 2, 4))
    made.output(made.add("ADD", [bent, source], "summed", (1, 2, 2, 4)))
    return made.model


def quantized(model: Model, target: str, **options: Any) -> PassResult:
    sizes = {"in": 1.0, "bent": 1.0, "summed": 2.0}
    found = {
        id(item): (-sizes[item.name], sizes[item.name])
        for item in model.subgraphs[0].tensors
        if item.name in sizes
    }
    ranges = TensorRanges.of(GivenModel.of(model), found)
    (result,) = run_passes(model, [Quantize(ranges=ranges, effort="fast", target=target, **options)])
    return result


def test_int8_becomes_int16_by_way_of_floats() -> None:
    model = net()
    result = quantized(model, "2.14", activations="int16")
    names = [name for name, _ in codes(model)]
    assert names == ["QUANTIZE", "PRELU", "DEQUANTIZE", "QUANTIZE", "QUANTIZE", "ADD", "DEQUANTIZE"]
    widths = {change.operator: change.activations for change in result.changes}  # type: ignore[attr-defined]
    assert widths == {"PRELU": "int8", "ADD": "int16"} and not result.skips


def test_what_has_no_right_kernel_stays_float() -> None:
    for target, reasons in (("litert", []), ("2.14", ["runtime 2.14 has no integer kernel of DIV"])):
        made = Net()
        bent = made.add("RELU", [made.input("in", (1, 4))], "bent", (1, 4))
        divisor = made.constant("divisor", np.array([1, 2, 2, 1], np.float32))
        made.output(made.add("DIV", [bent, divisor], "summed", (1, 4)))
        assert [skip.reason for skip in quantized(made.model, target).skips] == reasons


def test_the_newest_runtime_needs_none_of_that() -> None:
    model = net()
    result = quantized(model, "litert", activations="int16")
    widths = {change.activations for change in result.changes}  # type: ignore[attr-defined]
    assert widths == {"int16"} and not result.skips
    assert [name for name, _ in codes(model)] == ["QUANTIZE", "PRELU", "ADD", "DEQUANTIZE"]


def test_targets_have_no_kernel_that_the_rows_do_not_state() -> None:
    kernels = [row.integer for row in ROWS.values() if row.integer is not None]
    for kernel in kernels:
        newest, old = (target.widths(kernel) for target in (Target.LITERT, Target.OLD))
        assert newest and set(old) == set(newest) & set(kernel.old)
    assert any(Target.OLD.widths(kernel) == () for kernel in kernels)


@pytest.mark.runtime
@pytest.mark.skipif(not OLD, reason="TFL_REWRITE_OLD_RUNTIME_PYTHON names no Python")
def test_the_old_runtime_computes_it(tmp_path: Path) -> None:
    values = np.random.default_rng(0).uniform(-1, 1, (4, 1, 2, 2, 4)).astype(np.float32)
    np.savez(tmp_path / "in.npz", **{"in": values})
    judging = Judging(
        inputs=(tmp_path / "in.npz",), runtime=("litert", f"python:{OLD}"), tolerance=Tolerance(min_snr=30)
    )
    save(net(), tmp_path / "net.tflite")
    for target, passes in (("2.14", True), ("litert", False)):
        model = net()
        quantized(model, target, activations="int16")
        save(model, tmp_path / f"{target}.tflite")
        verdict = verify(tmp_path / "net.tflite", tmp_path / f"{target}.tflite", judging)
        assert verdict.passed == passes, verdict.reasons
