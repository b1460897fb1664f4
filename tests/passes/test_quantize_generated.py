"""Generated models: chains of layers over shared constants, float16 constants and several subgraphs."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from tfl_rewrite import load, save
from tfl_rewrite.editing.base import PassResult, run_passes
from tfl_rewrite.files.source import is_changed, origin_of
from tfl_rewrite.model import dtypes
from tfl_rewrite.model.invariants import broken, problems
from tfl_rewrite.model.ir import Model
from tfl_rewrite.passes.quantize_weights import QuantizeWeights

from ..nets import Array, decibels, run
from .generated import ROWS, WIDTH, Recipe, build, recipes

options = st.fixed_dictionaries(
    {},
    optional={
        "scheme": st.sampled_from(["auto", "hybrid", "dequantize"]),
        "granularity": st.sampled_from(["channel", "tensor"]),
        "min_elements": st.sampled_from([1, 64, 500, 1601]),
        "min_runtime": st.sampled_from(["1.14", "2.3", "2.14", "2.17", "2.23"]),
        "exclude": st.sampled_from([["FULLY"], ["GATHER"], ["1$"], ["BATCH"]]),
        "keep_first_last": st.booleans(),
    },
)


def rewritten(model: Model, folder: Path, **options: Any) -> tuple[Path, Path, PassResult]:
    """Writes a model, rewrites the file, and checks what holds of every rewrite."""
    before, after = folder / "before.tflite", folder / "after.tflite"
    save(model, before)
    loaded = load(before)
    assert not problems(loaded)
    result = run_passes(loaded, [QuantizeWeights(**options)])[0]
    assert not broken(loaded)
    assert is_changed(loaded) == result.modified
    save(loaded, after)
    return before, after, result


def check(before: Path, after: Path, result: PassResult, **options: Any) -> None:
    """What holds of every rewrite, without running it."""
    model = load(after)
    assert not problems(model)
    origin = origin_of(model)
    # The records come back as they were planned, and nothing in the file is unexplained.
    assert origin is not None and not origin.refusals and not is_changed(model)
    by_buffer: dict[int, int] = {}
    for change in result.changes:
        by_buffer[change.buffer] = by_buffer.get(change.buffer, 0) + change.saved
    assert all(saved > 0 for saved in by_buffer.values())
    if not result.modified:
        assert after.read_bytes() == before.read_bytes()
    else:
        assert after.stat().st_size < before.stat().st_size
    original = load(before)
    for one, two in zip(original.subgraphs, model.subgraphs, strict=True):
        for ours, theirs in ((one.inputs, two.inputs), (one.outputs, two.outputs)):
            assert [(t.name, t.dtype, t.shape) for t in ours] == [(t.name, t.dtype, t.shape) for t in theirs]
    for graph in model.subgraphs:
        used = {id(t) for operator in graph.operators for t in operator.inputs}
        for tensor in graph.tensors:
            if tensor.is_constant:
                assert id(tensor) in used, f"nothing reads {tensor.name}"
            if tensor.dtype == dtypes.INT8.value and tensor.quantization is not None:
                assert set(tensor.quantization.zero_point or ()) == {0}
    again = load(after)
    assert not run_passes(again, [QuantizeWeights(**options)])[0].modified


@pytest.mark.slow
@given(recipes, options)
@settings(deadline=None, max_examples=75, suppress_health_check=list(HealthCheck))
def test_invariants(recipe: Recipe, chosen: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as name:
        before, after, result = rewritten(build(recipe), Path(name), **chosen)
        note("; ".join(f"{change.where} {change.scheme} {change.axis}" for change in result.changes))
        check(before, after, result, **chosen)


@pytest.mark.runtime
@given(recipes, options, st.booleans())
@settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
def test_outputs(recipe: Recipe, chosen: dict[str, Any], reference: bool) -> None:
    """Both files run, with both sets of kernels, and lose little."""
    with tempfile.TemporaryDirectory() as name:
        before, after, result = rewritten(build(recipe), Path(name), **chosen)
        note("; ".join(f"{change.where} {change.scheme} {change.axis}" for change in result.changes))
        random = np.random.default_rng(7)
        for number, signature in enumerate(load(before).signatures):
            values: Array = random.standard_normal((ROWS, WIDTH)).astype(np.float32)
            inputs = {f"x{number}": values}
            one = run(before, inputs, reference=reference, signature=signature.key)
            two = run(after, inputs, reference=reference, signature=signature.key)
            for key, expected in one.items():
                assert np.isfinite(two[key]).all()
                ratio = decibels(expected, two[key])
                assert ratio >= 20, f"{key}: {ratio:.1f} dB"
                if not result.modified:
                    assert np.array_equal(expected, two[key])
