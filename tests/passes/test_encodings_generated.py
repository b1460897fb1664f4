"""Generated models with an encoding drawn for each constant."""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from tfl_rewrite import load, save
from tfl_rewrite.editing.base import run_passes
from tfl_rewrite.model import dtypes
from tfl_rewrite.model.invariants import broken, problems
from tfl_rewrite.passes.dequantize import Dequantize
from tfl_rewrite.passes.quantize_weights import QuantizeWeights
from tfl_rewrite.weights.candidates import Candidate
from tfl_rewrite.weights.encoding import Encoding

from ..nets import Array, decibels, run
from .generated import ROWS, WIDTH, Recipe, build, recipes

EXAMPLES = int(os.environ.get("TFL_REWRITE_EXAMPLES", "40"))
TEXTS = [
    "int8",
    "int8:tensor",
    "int8:dequantize",
    "int8:block:32",
    "int12",
    "int10:tensor",
    "int6",
    "int6:tensor",
    "int6:block:64",
    "int8:block",
    "int4:block",
    "int4",
    "int4:tensor",
    "int4:dequantize",
    "int4:block:32",
    "int4:block:128",
    "int2",
    "int2:block:64",
    "float16",
    "float32",
]

choices = st.lists(st.sampled_from(TEXTS), min_size=1, max_size=6)
common = st.fixed_dictionaries(
    {},
    optional={
        "min_elements": st.sampled_from([1, 64, 500]),
        "min_runtime": st.sampled_from(["2.14", "2.18", "2.20", "2.23"]),
        "scheme": st.sampled_from(["auto", "dequantize"]),
    },
)


def drawn(texts: list[str], **options: Any) -> QuantizeWeights:
    """The pass with encodings given out by the length of names, which does not change."""

    def assignment(item: Candidate) -> Encoding:
        return Encoding.parse(texts[sum(map(ord, item.value.name)) % len(texts)])

    return replace(QuantizeWeights(**options), assignment=assignment)


@pytest.mark.runtime
@given(recipes, choices, common, st.booleans())
@settings(deadline=None, max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
def test_files_compute_what_their_integers_mean(
    recipe: Recipe, texts: list[str], options: dict[str, Any], reference: bool
) -> None:
    item = drawn(texts, **options)
    with tempfile.TemporaryDirectory() as name:
        before, after, large = (Path(name) / f"{part}.tflite" for part in ("before", "after", "large"))
        save(build(recipe), before)
        model = load(before)
        result = run_passes(model, [item])[0]
        note("; ".join(f"{change.where} {change.encoding} {change.scheme}" for change in result.changes))
        assert not broken(model)
        save(model, after)
        written = load(after)
        assert not problems(written)
        if not result.modified:
            assert after.read_bytes() == before.read_bytes()
            return
        assert after.stat().st_size < before.stat().st_size
        assert not run_passes(load(after), [item])[0].modified
        model = load(after)
        run_passes(model, [Dequantize()])[0]
        assert not broken(model)
        save(model, large)
        expanded = load(large)
        assert not problems(expanded)
        for graph in expanded.subgraphs:
            used = {id(tensor) for operator in graph.operators for tensor in operator.inputs}
            assert all(id(tensor) in used for tensor in graph.tensors if tensor.is_constant)
            stored = {tensor.dtype for tensor in graph.tensors if tensor.is_constant}
            # Lookups with a scale for each row keep their int8 rows.
            assert not stored - {dtypes.FLOAT32.value, dtypes.INT32.value, dtypes.INT8.value}
        random = np.random.default_rng(7)
        for number, signature in enumerate(written.signatures):
            values: Array = random.standard_normal((ROWS, WIDTH)).astype(np.float32)
            inputs = {f"x{number}": values}
            one = run(large, inputs, reference=reference, signature=signature.key)
            two = run(after, inputs, reference=reference, signature=signature.key)
            for key, expected in one.items():
                assert np.isfinite(two[key]).all()
                ratio = decibels(expected, two[key])
                # Hybrid kernels round activations, layer after layer.
                assert ratio >= 20, f"{key}: {ratio:.1f} dB"
