"""Channels that somebody put out of balance are balanced again, and no output changes by a bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tfl_rewrite import load, save
from tfl_rewrite.editing.base import Context, run_passes
from tfl_rewrite.judge.settings import Judging, Tolerance
from tfl_rewrite.model.blob import OwnedBlob
from tfl_rewrite.model.ir import Model, Tensor
from tfl_rewrite.passes.equalize import Equalize, _pairs
from tfl_rewrite.passes.quantize_weights import QuantizeWeights
from tfl_rewrite.pipeline.verify import verify


def values(tensor: Tensor | None) -> np.ndarray:
    assert tensor is not None and tensor.buffer.blob is not None
    return np.frombuffer(tensor.buffer.blob.view(), "<f4").reshape(tensor.shape or ())


def scale(tensor: Tensor | None, factor: np.ndarray, axis: int) -> None:
    old = values(tensor)
    wide = factor.reshape([-1 if other == axis else 1 for other in range(old.ndim)])
    assert tensor is not None
    tensor.buffer.blob = OwnedBlob((old * wide).astype("<f4").tobytes())


def unbalanced(fixtures: Path) -> tuple[Model, int]:
    """The digits net with RELU, and channels that are as far apart as training leaves those of such nets."""
    model = load(fixtures / "digits_cnn.tflite")
    for _, operator in model.operators():
        if operator.option("fused_activation_function") == 3:
            assert operator.options is not None
            operator.options = operator.options.replace(fused_activation_function=1)
    pairs = list(_pairs(model))
    for number, (maker, reader) in enumerate(pairs):
        weight = reader.inputs[1]
        assert weight is not None and weight.shape is not None
        factor = np.exp(np.random.default_rng(number).normal(0, 2, weight.shape[-1]))
        scale(maker.inputs[1], factor, 3 if maker.code.name == "DEPTHWISE_CONV_2D" else 0)
        scale(maker.inputs[2], factor, 0)
        scale(weight, 1 / factor, len(weight.shape) - 1)
    return model, len(pairs)


@pytest.fixture
def source(fixtures: Path, tmp_path: Path) -> Path:
    model, count = unbalanced(fixtures)
    assert count >= 2
    path = tmp_path / "unbalanced.tflite"
    save(model, path)
    return path


@pytest.mark.runtime
def test_outputs_stay_equal_to_the_bit_and_rounding_gains(
    fixtures: Path, tmp_path: Path, source: Path
) -> None:
    inputs = fixtures / "inputs" / "digits_calib.npz"
    model = load(source)
    result = run_passes(model, [Equalize()])[0]
    assert len(result.changes) >= 2 and all(change.to_dict()["gain_db"] > 3 for change in result.changes)
    balanced = tmp_path / "balanced.tflite"
    save(model, balanced)
    assert verify(source, balanced, Judging(inputs=[inputs], tolerance=Tolerance(exact=True))).passed
    ratios = []
    for path in (source, balanced):
        rounded = load(path)
        run_passes(rounded, [QuantizeWeights(dtype="int4", scheme="dequantize", effort="fast")])[0]
        out = tmp_path / "rounded.tflite"
        save(rounded, out, force=True)
        verdict = verify(source, out, Judging(inputs=[inputs], tolerance=Tolerance(min_snr=None)))
        ratios.append(verdict.outputs[0].snr_db)
    assert ratios[1] > ratios[0] + 3


def test_a_second_run_changes_nothing(source: Path) -> None:
    model = load(source)
    assert run_passes(model, [Equalize()])[0].modified
    assert not run_passes(model, [Equalize()])[0].modified


def test_best_effort_does_it_first(source: Path) -> None:
    model = load(source)
    notes = run_passes(model, [QuantizeWeights(dtype="int4", effort="best")])[0].notes
    assert any("balanced" in note for note in notes)
    assert not any(
        "balanced" in note for note in run_passes(load(source), [QuantizeWeights(dtype="int4")])[0].notes
    )


def test_what_another_operator_sees_stays(source: Path) -> None:
    for change in ("exposed", "read twice", "shared", "relu6", "tiny"):
        model = load(source)
        maker, reader = next(iter(_pairs(model)))
        before = values(maker.inputs[1]).copy()
        between, weight = maker.outputs[0], reader.inputs[1]
        assert between is not None and weight is not None
        if change == "exposed":
            model.subgraphs[0].outputs.append(between)
        elif change == "read twice":
            reader.inputs.append(between)
        elif change == "shared":
            model.subgraphs[0].tensors.append(Tensor("other", weight.shape, weight.dtype, weight.buffer))
        elif change == "relu6":
            assert maker.options is not None
            maker.options = maker.options.replace(fused_activation_function=3)
        else:
            # No smaller factor fits, and none is taken that would not be exact.
            scale(maker.inputs[1], np.full(1, 1e-37), 0)
            scale(maker.inputs[2], np.full(1, 1e-37), 0)
        small = values(maker.inputs[1]).copy()
        Equalize().run(model, Context())
        after = values(maker.inputs[1])
        if change == "tiny":
            ratio = after[small != 0] / small[small != 0]
            assert (np.exp2(np.rint(np.log2(ratio))) == ratio).all()
        else:
            assert (after == before).all(), change


@pytest.mark.parametrize("side", ["maker", "reader"])
@pytest.mark.parametrize("value", [3e38, 1.5e-38, 1e-44], ids=["huge", "tiny", "subnormal"])
def test_no_weight_leaves_the_normal_numbers(source: Path, side: str, value: float) -> None:
    """One weight in each channel lies at an end of their range: it stays unless a factor is exact."""
    model = load(source)
    maker, reader = next(iter(_pairs(model)))
    tensor = (maker if side == "maker" else reader).inputs[1]
    assert tensor is not None
    depthwise = maker.code.name == "DEPTHWISE_CONV_2D"
    axis = (3 if depthwise else 0) if side == "maker" else len(tensor.shape or ()) - 1
    spoiled = np.moveaxis(values(tensor).copy(), axis, 0)
    flat = spoiled.reshape(len(spoiled), -1)
    flat[:, 0] = value
    tensor.buffer.blob = OwnedBlob(
        np.ascontiguousarray(np.moveaxis(flat.reshape(spoiled.shape), 0, axis), "<f4").tobytes()
    )
    before = {id(item): values(item).copy() for item in (maker.inputs[1], maker.inputs[2], reader.inputs[1])}
    Equalize().run(model, Context())
    for item in (maker.inputs[1], maker.inputs[2], reader.inputs[1]):
        old, new = before[id(item)].astype(np.float64), values(item).astype(np.float64)
        assert np.isfinite(new).all()
        moved = old != new
        mantissas = np.frexp(old[moved])[0], np.frexp(new[moved])[0]
        assert (mantissas[0] == mantissas[1]).all(), "a power of two changes the exponent only"
        assert (np.abs(new[moved]) >= np.finfo(np.float32).tiny).all()


def test_an_operator_without_outputs_is_left_alone(fixtures: Path) -> None:
    """A damaged file, as fuzzing made it."""
    model = load(fixtures / "dense.tflite")
    for operator in model.subgraphs[0].operators:
        operator.outputs.clear()
    assert not Equalize().run(model, Context()).changes
