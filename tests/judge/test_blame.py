"""Where two models part, operator by operator."""

from __future__ import annotations

import dataclasses
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tfl_rewrite.cli.render_judge import blame_lines
from tfl_rewrite.errors import UsageError
from tfl_rewrite.interpreter.interface import EntryPoint, TensorFacts
from tfl_rewrite.judge import blame as blame_module
from tfl_rewrite.judge.blame import blame
from tfl_rewrite.judge.layers import EQUAL_DB, Layer, _ranked
from tfl_rewrite.judge.settings import Judging
from tfl_rewrite.judge.tally import TensorTally
from tfl_rewrite.pipeline.verify import verify
from tfl_rewrite.samples.made import Step

from .. import tiny_models


def chain(path: Path, factors: list[float], *, names: bool = True, rounded: int | None = None) -> Path:
    """``x`` times one factor after the other; the output of number ``rounded`` goes through int8 and back."""
    model = tiny_models.TinyModel()
    graph = model.graph()
    value = graph.input("x", "float32", [1, 64])
    for number, factor in enumerate(factors):
        constant = graph.tensor(f"c{number}", "float32", [1], data=[factor])
        given = graph.tensor(f"step{number}" if names else "", "float32", [1, 64])
        graph.op("MUL", [value, constant], [given])
        value = given
        if number == rounded:
            small = graph.tensor("small", "int8", [1, 64], scale=0.05)
            back = graph.tensor("back" if names else "", "float32", [1, 64])
            graph.op("QUANTIZE", [given], [small])
            graph.op("DEQUANTIZE", [small], [back])
            value = back
    graph.outputs = [value]
    return model.write(path)


@pytest.mark.runtime
@pytest.mark.parametrize("names", [True, False], ids=["named", "unnamed"])
def test_the_guilty_operator_is_marked(tmp_path, names):
    before = chain(tmp_path / "a.tflite", [2, 3, 4, 5, 6], names=names)
    after = chain(tmp_path / "b.tflite", [2, 3, 4.4, 5, 6], names=names)
    found = blame(before, after, Judging(samples=2))
    assert found.failure is None and found.sample_count == 2
    assert [layer.role for layer in found.layers] == ["equal", "equal", "enters", "carried", "carried"]
    assert [layer.index for layer in found.marked()] == [2]
    assert {layer.matched_by for layer in found.layers} == {"name" if names else "place"}
    # 10 % off: an SNR of 20 dB, from there to the output.
    assert [round(layer.snr_db, 3) for layer in found.layers[2:]] == [20.0] * 3
    assert found.layers[2].added == pytest.approx(0.01, rel=1e-3) and found.layers[3].added < 1e-6
    assert found.layers[2].input_snr_db is None and found.layers[3].drop_db == pytest.approx(0, abs=1e-3)
    assert [layer.is_output for layer in found.layers] == [False] * 4 + [True]


@pytest.mark.runtime
@pytest.mark.parametrize("names", [True, False], ids=["named", "unnamed"])
def test_inserted_conversions_are_skipped(tmp_path, names):
    before = chain(tmp_path / "a.tflite", [2, 3, 4], names=names)
    after = chain(tmp_path / "b.tflite", [2, 3, 4], names=names, rounded=1)
    found = blame(before, after, Judging(samples=1))
    assert found.inserted == {"QUANTIZE": 1, "DEQUANTIZE": 1}
    assert [(layer.index, layer.after_index) for layer in found.layers] == [(0, 0), (1, 1), (2, 4)]
    assert [layer.role for layer in found.layers] == ["equal", "equal", "enters"]


@pytest.mark.runtime
def test_equal_models(tmp_path):
    path = chain(tmp_path / "a.tflite", [2, 3])
    found = blame(path, path, Judging(samples=1))
    assert found.marked() == [] and {layer.snr_db for layer in found.layers} == {math.inf}
    assert "  all of them are equal" in blame_lines(found)


@pytest.mark.runtime
def test_quantized_and_float_compare_as_real_numbers(fixtures, tmp_path):
    # Pixels in the range that the int8 model was made for.
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "in.npz", rng.random((2, 1, 8, 8, 1), dtype=np.float32))
    inputs = [tmp_path / "in.npz"]
    full, whole = fixtures / "digits_cnn_full_int8.tflite", fixtures / "digits_cnn.tflite"
    found = blame(whole, full, Judging(inputs=inputs))
    assert (found.sample_source, len(found.layers), found.unmatched) == ("real", 7, ())
    assert all(15 < layer.snr_db < 60 for layer in found.layers)
    assert found.layers[0].role == "enters" and "float32 -> int8" in found.layers[0].weights
    reverse = blame(full, whole, Judging(samples=1))
    assert len(reverse.layers) == 7 and all(layer.snr_db > 15 for layer in reverse.layers)


@pytest.mark.runtime
def test_samples_are_those_of_the_verdict(fixtures):
    before, after = fixtures / "digits_cnn.tflite", fixtures / "digits_cnn_float16.tflite"
    found = blame(before, after, Judging(samples=2))
    verdict = verify(before, after, Judging(samples=2))
    # Kernels of the same kind, so nearly to the bit; other samples are several decibels off.
    assert found.layers[-1].is_output
    assert found.layers[-1].snr_db == pytest.approx(verdict.outputs[0].snr_db, abs=0.5)


@pytest.mark.runtime
def test_weights_behind_dequantize_are_no_layers(fixtures):
    found = blame(fixtures / "digits_cnn.tflite", fixtures / "digits_cnn_float16.tflite", Judging(samples=1))
    assert [layer.index for layer in found.layers] == list(range(7))
    assert found.inserted == {"DEQUANTIZE": 10} and found.unmatched == ()
    assert found.layers[1].weights == "float32 -> float16 via DEQUANTIZE"


@pytest.mark.runtime
def test_subgraphs_that_are_not_seen_are_named(fixtures):
    found = blame(fixtures / "while_loop.tflite", fixtures / "while_loop.tflite", Judging(samples=1))
    assert any("2 more" in note and "not seen" in note for note in found.notes)


@pytest.mark.runtime
def test_resources_have_no_value(fixtures):
    path = fixtures / "resource_variables.tflite"
    found = blame(path, path, Judging(samples=1))
    assert found.failure is None and len(found.layers) >= 3
    assert "VAR_HANDLE" not in {layer.operator for layer in found.layers}
    assert (found.unmatched, found.inserted) == ((), {})


@pytest.mark.runtime
def test_signatures_of_other_subgraphs_do_not_run_in_the_primary(tmp_path):
    model = tiny_models.two_signatures(tmp_path / "m.tflite")
    np.savez(tmp_path / "in.npz", **{"mul/x": np.ones((5, 4), np.float32)})
    found = blame(model, model, Judging(inputs=[tmp_path / "in.npz"]))
    assert found.sample_source == "made"
    assert "no input file covers the primary subgraph: made samples" in found.notes
    np.savez(tmp_path / "in.npz", **{"add/x": np.ones((9, 4), np.float32)})
    found = blame(model, model, Judging(inputs=[tmp_path / "in.npz"]))
    assert (found.sample_source, found.sample_count) == ("real", 4)
    assert "4 of 9 samples, spread evenly" in found.notes


@pytest.mark.runtime
def test_one_tensor_at_a_time_gives_the_same(tmp_path, monkeypatch):
    before, after = chain(tmp_path / "a.tflite", [2, 3, 4]), chain(tmp_path / "b.tflite", [2, 3.1, 4])
    whole = blame(before, after, Judging(samples=2))
    batches = []
    original = blame_module._batches
    monkeypatch.setattr(
        blame_module, "_batches", lambda need: batches.append(list(original(need))) or batches[-1]
    )
    monkeypatch.setattr(blame_module, "BATCH_NBYTES", 1)
    assert blame(before, after, Judging(samples=2)).layers == whole.layers
    assert batches == [[[0], [1], [2]]] * 2


@pytest.mark.runtime
def test_nothing_is_left_behind(tmp_path, monkeypatch):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    before, after = chain(tmp_path / "a.tflite", [2]), tiny_models.custom_op(tmp_path / "b.tflite")
    assert "the rewritten file: " in str(blame(before, after).failure)
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.runtime
def test_models_that_do_not_run(tmp_path):
    good, bad = chain(tmp_path / "a.tflite", [2]), tiny_models.custom_op(tmp_path / "b.tflite")
    found = blame(bad, good)
    assert found.failure is not None and found.failure.startswith("the original: ") and found.layers == ()
    assert blame_lines(found) == [f"blame: not possible: {found.failure}"]
    crashed = blame(good, tiny_models.crashing(tmp_path / "c.tflite"))
    assert "died" in str(crashed.failure)
    endless = tiny_models.hanging(tmp_path / "d.tflite")
    assert "the original: was stopped after 3 s" in str(blame(endless, endless, Judging(timeout=3)).failure)
    with pytest.raises(UsageError, match="no such file"):
        blame(good, tmp_path / "missing.tflite")


@pytest.mark.runtime
def test_made_samples_become_gentler(tmp_path, monkeypatch):
    # As for a verdict: an index without a known bound that is out of range ends the first try.
    path = tiny_models.lookup(tmp_path / "m.tflite", rows=3, through="RESHAPE")
    made = blame_module.made_steps

    def unbounded(entry: EntryPoint, **options: Any) -> list[Step]:
        inputs = tuple(dataclasses.replace(facts, below=None) for facts in entry.inputs)
        return made(dataclasses.replace(entry, inputs=inputs), **options)

    monkeypatch.setattr(blame_module, "made_steps", unbounded)
    found = blame(path, path, Judging(samples=1))
    assert found.failure is None and len(found.layers) == 2
    assert "the original fails on varied made samples; used instead: all integer inputs 1" in found.notes

    def impossible(*_: object, **__: object) -> list[Step]:
        raise ValueError("no values can be made for dtype odd")

    monkeypatch.setattr(blame_module, "made_steps", impossible)
    assert blame(path, path).failure == "no values can be made for dtype odd"


@pytest.mark.runtime
def test_json_and_node_data(tmp_path):
    before = chain(tmp_path / "a.tflite", [2, 3, 4])
    after = chain(tmp_path / "b.tflite", [2, 3, 4], rounded=1)
    found = blame(before, after, Judging(samples=1))
    data = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert [row["snr_db"] for row in data["layers"]][:2] == ["inf", "inf"]
    graph = json.loads(json.dumps(found.node_data(), allow_nan=False))["main"]
    # Keys are operators of the rewritten file: its fifth multiplies last.
    assert set(graph["results"]) == {"0", "1", "4"}
    assert graph["results"]["0"] == {"value": EQUAL_DB} and 0 < graph["results"]["4"]["value"] < EQUAL_DB
    bounds = [item["value"] for item in graph["thresholds"]]
    assert bounds == sorted(bounds) and bounds[-1] == EQUAL_DB
    assert all(item["bgColor"].startswith("#") for item in graph["thresholds"])


@pytest.mark.runtime
def test_the_short_table_keeps_what_tells(tmp_path):
    factors = [1.0 + number / 100 for number in range(60)]
    before = chain(tmp_path / "a.tflite", factors)
    factors[50] *= 1.2
    found = blame(before, chain(tmp_path / "b.tflite", factors), Judging(samples=1))
    short, long = blame_lines(found), blame_lines(found, verbose=True)
    assert len(long) - len(short) == 60 - 40 - 1
    assert sum("step50" in line and "#1 enters" in line for line in short) == 1
    assert sum(line.endswith("output") for line in short) == 1
    assert any("and 20 more" in line for line in short)


def layer(index: int, snr: float | None, inputs: float | None, *, output: bool = False) -> Layer:
    return Layer(
        index=index,
        after_index=index,
        operator="CONV_2D",
        position=0,
        tensor=f"t{index}",
        after_tensor=f"t{index}",
        matched_by="name",
        shape=(1,),
        snr_db=snr,
        input_snr_db=inputs,
        added=None,
        drop_db=None,
        max_abs_error=None,
        cosine=None,
        equal_share=None,
        nonfinite_mismatches=0,
        role="grows",
        is_output=output,
    )


def test_ranks_count_what_is_heard_at_the_outputs():
    rows = [
        layer(0, 80.0, None),
        layer(1, 45.0, 80.0),
        layer(2, 25.0, 45.0),
        layer(3, None, 25.0),
        layer(4, 20.0, 25.0, output=True),
        layer(5, 19.8, 20.0),
        layer(6, math.inf, None, output=True),
    ]
    found = _ranked(rows)
    # Ratios above 40 dB are a hundredth of the noise at the worst output: the fall from 80 to 45 is none.
    assert [row.fall_db for row in found] == pytest.approx([0, 0, 15, None, 5, 0.2, 0], abs=1e-9)
    assert [row.rank for row in found] == [None, None, 1, None, 2, None, None]
    # A saturated output does not make everything before it matter.
    hidden = _ranked([layer(0, 70.0, None), layer(1, 50.0, 70.0), layer(2, 120.0, 50.0, output=True)])
    assert [row.fall_db for row in hidden] == [0, 10, 0]


def facts(dtype: str, **more: object) -> TensorFacts:
    return TensorFacts(name="t", tensor="t", dtype=dtype, shape=(2,), shape_signature=(2,), **more)


def test_tally_of_floats_and_quantized_integers():
    tally = TensorTally(facts("float32"), facts("int8", scales=(0.5,), zero_points=(2,)))
    tally.add(np.array([1.0, 3.0], np.float32), np.array([4, 6], np.int8))
    assert (tally.power, tally.noise, tally.max_error) == (10.0, 1.0, 1.0)
    assert tally.ratio == pytest.approx(0.1)
    per_channel = facts("int8", scales=(0.5, 2.0), zero_points=(0, 0), quantized_dimension=1)
    tally = TensorTally(facts("float32"), per_channel)
    tally.add(np.array([[1.0, 4.0], [2.0, 6.0]], np.float32), np.array([[2, 2], [4, 3]], np.int8))
    assert tally.ratio == 0


def test_tally_counts_what_is_not_finite():
    tally = TensorTally(facts("float32"), facts("float32"))
    tally.add(np.array([np.nan, 1, np.inf, -np.inf]), np.array([np.nan, 1, 5, -np.inf]))
    assert (tally.nonfinite, tally.finite, tally.ratio) == (1, 1, 0.0)


def test_tally_of_shapes_and_shares():
    tally = TensorTally(facts("float32"), facts("float32"))
    tally.add(np.ones((1, 4, 1)), np.ones((4,)))
    assert tally.problem is None and tally.ratio == 0
    tally.add(np.ones((2, 3)), np.ones((3, 2)))
    assert tally.problem == "shape [3, 2] instead of [2, 3]"
    tally = TensorTally(facts("int32"), facts("int64"))
    tally.add(np.array([1, 2, 3, 4]), np.array([1, 2, 3, 5]))
    assert (tally.has_distance, tally.equal / tally.elements) == (False, 0.75)
    silent = TensorTally(facts("float32"), facts("float32"))
    silent.add(np.zeros(4), np.full(4, 0.1))
    assert silent.ratio == math.inf
