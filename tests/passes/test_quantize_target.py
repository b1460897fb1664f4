"""Integers for tflite-runtime 2.14 and TFLite Micro: what they compute wrong or refuse is not in the file.

``TFL_REWRITE_OLD_RUNTIME_PYTHON`` names the Python of an environment with it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.kernels.measure import MICRO, NO_MICRO, REFERENCE, Case, measure
from tests.nets import Net, codes, parameters
from tfl_rewrite import (
    Judging,
    Report,
    RewriteFailed,
    Tolerance,
    UnsupportedError,
    UsageError,
    load,
    rewrite,
    save,
    verify,
)
from tfl_rewrite.editing import PassResult
from tfl_rewrite.editing.base import run_passes
from tfl_rewrite.integers.ranges import GivenModel, TensorRanges
from tfl_rewrite.kernels.integer import Target
from tfl_rewrite.kernels.operands import scales_of
from tfl_rewrite.kernels.reads import micro_obstacles
from tfl_rewrite.kernels.table import ROWS
from tfl_rewrite.model.ir import Model
from tfl_rewrite.passes import Quantize

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


@pytest.mark.parametrize(("target", "scales"), [("litert", 4), ("2.14", 1)])
def test_channels_share_a_scale_where_the_output_has_more_than_two_axes(target: str, scales: int) -> None:
    for keeps, wanted in ((True, scales), (False, 4)):
        made = Net()
        source = made.input("in", (1, 3, 4))
        operands = [source, made.weights("w", (4, 4)), made.constant("b", np.ones(4, np.float32))]
        shape = (1, 3, 4) if keeps else (3, 4)
        made.output(made.add("FULLY_CONNECTED", operands, "summed", shape, keep_num_dims=keeps))
        quantized(made.model, target)
        (operator,) = [item for _, item in made.model.operators() if item.code.name == "FULLY_CONNECTED"]
        _, weight, bias = operator.inputs
        assert weight is not None and bias is not None
        assert len(scales_of(weight)) == len(scales_of(bias)) == wanted and bias.shape == (4,)


def test_the_newest_runtime_needs_none_of_that() -> None:
    model = net()
    result = quantized(model, "litert", activations="int16")
    widths = {change.activations for change in result.changes}  # type: ignore[attr-defined]
    assert widths == {"int16"} and not result.skips
    assert [name for name, _ in codes(model)] == ["QUANTIZE", "PRELU", "ADD", "DEQUANTIZE"]


def test_targets_have_no_kernel_that_the_rows_do_not_state() -> None:
    rows = [row for row in ROWS.values() if row.integer is not None]
    for row in rows:
        newest, old, micro = (row.widths(target) for target in Target)
        assert newest and set(old) == set(newest) & set(row.integer.old)  # type: ignore[union-attr]
        assert set(micro) <= set(newest)
    assert any(row.widths(Target.OLD) == () for row in rows)
    assert any(row.widths(Target.MICRO) == () for row in rows)
    assert any(row.widths(Target.MICRO) == (8,) != row.widths(Target.LITERT) for row in rows)


# -- TFLite Micro ------------------------------------------------------------------------------------------


def chain(*kinds: str) -> Net:
    """One operator after another, over the same four numbers."""
    made = Net()
    tensor = made.input("in", (1, 4))
    for kind, name in zip(kinds, ("bent", "summed"), strict=False):
        tensor = made.add(kind, [tensor], name, (1, 4))
    made.output(tensor)
    return made


def computed_kinds(made: Net) -> list[str]:
    return [item.dtype_name for operator in made.graph.operators for item in operator.outputs if item]


def test_micro_has_float_kernels_where_it_has_no_integer_ones() -> None:
    made = chain("RELU", "EXP")
    result = quantized(made.model, "tflm")
    assert [skip.reason for skip in result.skips] == ["TFLite Micro has no integer kernel of EXP"]
    assert [name for name, _ in codes(made.model)] == ["QUANTIZE", "RELU", "DEQUANTIZE", "EXP"]
    assert not list(micro_obstacles(made.model))


def test_micro_has_8_bits_where_it_has_no_16() -> None:
    made = Net()
    source = made.add("RELU", [made.input("in", (1, 4, 4, 4))], "bent", (1, 4, 4, 4))
    pads = made.constant("pads", np.array([[0, 0], [1, 1], [1, 1], [0, 0]], np.int32))
    made.output(made.add("MIRROR_PAD", [source, pads], "summed", (1, 6, 6, 4)))
    result = quantized(made.model, "tflm", activations="int16")
    widths = {change.operator: change.activations for change in result.changes}  # type: ignore[attr-defined]
    assert widths == {"RELU": "int16", "MIRROR_PAD": "int8"}
    assert not list(micro_obstacles(made.model))


def test_relu6_has_one_grid_on_both_sides() -> None:
    for target, count in (("litert", 2), ("tflm", 1)):
        made = chain("ABS", "RELU6")
        quantized(made.model, target)
        (operator,) = (item for item in made.graph.operators if item.code.name == "RELU6")
        ends = [item for item in (*operator.inputs, *operator.outputs) if item is not None]
        assert len({parameters(item) for item in ends}) == count, target


def test_what_micro_pads_with_the_wrong_number_stays_float() -> None:
    for pad, reasons in (
        (0, []),
        (1, ["TFLite Micro has no SPACE_TO_BATCH_ND whose input 0 is int8 and that pads"]),
    ):
        made = Net()
        bent = made.add("RELU", [made.input("in", (1, 2, 2, 1))], "bent", (1, 2, 2, 1))
        ones = made.constant("ones", np.array([1, 1], np.int32))
        pads = made.constant("pads", np.array([[0, pad], [0, pad]], np.int32))
        shape = (1, 2 + pad, 2 + pad, 1)
        made.output(made.add("SPACE_TO_BATCH_ND", [bent, ones, pads], "summed", shape))
        assert [skip.reason for skip in quantized(made.model, "tflm").skips] == reasons
        assert not list(micro_obstacles(made.model))


def test_what_micro_has_no_kernel_of_is_refused() -> None:
    made = chain("RELU", "GELU")
    with pytest.raises(UnsupportedError, match=r"TFLite Micro has no GELU \(subgraphs\[0\]") as caught:
        quantized(made.model, "tflm")
    assert caught.value.exit_code == 3 and "leave --target out" in str(caught.value)


def test_a_custom_operator_that_micro_has_not_is_refused() -> None:
    for name, refused in (("mine", True), ("TFLite_Detection_PostProcess", False)):
        made = chain("RELU", "ABS")
        made.graph.operators[1].code.custom = name
        if refused:
            with pytest.raises(UnsupportedError, match=f"no custom operator {name}"):
                quantized(made.model, "tflm")
        else:
            quantized(made.model, "tflm")


def test_weights_beside_floats_are_floats_for_micro() -> None:
    for target, types in (("litert", {"FLOAT16"}), ("tflm", {"FLOAT32"})):
        made = Net()
        bent = made.add("RELU", [made.input("in", (1, 4))], "bent", (1, 4))
        half = made.half("half", np.ones((1, 4)))
        made.output(made.add("FLOOR_DIV", [bent, half], "summed", (1, 4)))
        quantized(made.model, target)
        assert {item.dtype_name for item in made.graph.tensors if item.is_constant} == types
        assert bool(list(micro_obstacles(made.model))) is (target == "litert")


def test_micro_has_no_hybrid_kernels() -> None:
    with pytest.raises(UsageError, match="no kernels that read int8 weights beside float"):
        Quantize(target=Target.MICRO, map=("CONV_2D=hybrid",))


def test_the_border_goes_by_way_of_int8_where_micro_has_no_one_step() -> None:
    made = chain("RELU")
    quantized(made.model, "tflm", activations="int16", io="int16", io_input="uint8")
    assert [name for name, _ in codes(made.model)] == ["QUANTIZE", "QUANTIZE", "RELU"]
    assert computed_kinds(made) == ["INT8", "INT16", "INT16"]
    assert not list(micro_obstacles(made.model))
    made = chain("RELU", "EXP")
    quantized(made.model, "tflm", io="uint8")
    assert computed_kinds(made) == ["INT8", "INT8", "FLOAT32", "FLOAT32", "INT8", "UINT8"]
    assert not list(micro_obstacles(made.model))


def test_the_old_runtime_goes_by_way_of_floats_at_the_border() -> None:
    made = chain("RELU")
    quantized(made.model, "2.14", io="int16")
    assert computed_kinds(made) == ["INT8", "INT8", "FLOAT32", "INT16"]


@pytest.mark.runtime
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "activations"), [("digits_cnn", "int8"), ("digits_cnn", "int16"), ("lstm", "int8")]
)
def test_small_models_run_there_as_with_the_reference_kernels(
    name: str, activations: str, few: Path, fixtures: Path, tmp_path: Path
) -> None:
    inputs = few if name == "digits_cnn" else fixtures / "inputs" / f"{name}.npz"
    passes = [Quantize(effort="fast", target="tflm", activations=activations)]
    judging = Judging(inputs=(inputs,), tolerance=Tolerance(min_snr=10))
    made = tmp_path / "made.tflite"
    report = rewrite(fixtures / f"{name}.tflite", made, passes, judging=judging)
    assert report.verdict is not None and report.verdict.passed
    model = load(made)
    assert list(micro_obstacles(model)) == []
    if NO_MICRO:
        pytest.skip(NO_MICRO)
    graph = model.subgraphs[0]
    with np.load(inputs) as held:
        (values,) = (held[key] for key in held.files)
    case = Case("made", made.read_bytes(), [values[0].reshape(graph.inputs[0].shape or ())])
    found = measure([case], tmp_path, resolvers=(REFERENCE, MICRO))["made"]
    assert found[MICRO].error is None, str(found[MICRO])
    (maker,) = (item for item in graph.operators if item.outputs == graph.outputs)
    assert maker.code.name == "DEQUANTIZE" and maker.inputs[0] is not None
    off = np.abs(found[MICRO].outputs["turn0_0"] - found[REFERENCE].outputs["turn0_0"]).max()
    assert off <= 3.01 * parameters(maker.inputs[0])[0]


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


def rewritten(folder: Path, mode: str = "auto") -> Report:
    values = np.random.default_rng(0).uniform(-1, 1, (8, 1, 2, 2, 4)).astype(np.float32)
    np.savez(folder / "in.npz", **{"in": values})
    save(net(), folder / "net.tflite")
    passes = [Quantize(activations="int16", effort="fast", target="2.14")]
    judging = Judging(inputs=(folder / "in.npz",), tolerance=Tolerance(min_snr=30), mode=mode)
    return rewrite(folder / "net.tflite", folder / "out.tflite", passes, judging=judging)


@pytest.mark.runtime
@pytest.mark.skipif(not OLD, reason="TFL_REWRITE_OLD_RUNTIME_PYTHON names no Python")
def test_the_old_runtime_of_the_environment_judges_what_is_made_for_it(tmp_path: Path) -> None:
    report = rewritten(tmp_path)
    assert report.verdict is not None and report.verdict.passed
    judges = {(one.judge.version, one.judge.kernels) for one in report.verdict.each if one.judge is not None}
    assert {kernels for version, kernels in judges if version.startswith("2.14.")} == {
        "default",
        "builtin",
        "reference",
    }
    assert len(judges) == 6 and not any("2.14" in note for note in report.notes)


@pytest.mark.runtime
def test_what_did_not_run_on_its_target_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TFL_REWRITE_OLD_RUNTIME_PYTHON", raising=False)
    with pytest.raises(
        RewriteFailed, match=r"could not be verified.*not run on tflite-runtime 2\.14"
    ) as caught:
        rewritten(tmp_path, mode="require")
    report = caught.value.report
    assert report.verdict is not None and report.verdict.passed and len(report.verdict.each) == 3
    (told,) = (note for note in report.notes if "not run on tflite-runtime 2.14" in note)
    assert "--runtime python:PATH" in told and "TFL_REWRITE_OLD_RUNTIME_PYTHON" in told
    assert "tflite-runtime 2.14, which it was made for" in report.verdict.not_judged


def test_a_runtime_that_is_named_by_its_path_stays_the_only_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TFL_REWRITE_OLD_RUNTIME_PYTHON", "/old/python")
    assert Judging().on_old_runtime.runtime == ("litert", "python:/old/python")
    named = Judging(runtime=("litert", "python:/other/python"))
    assert named.on_old_runtime is named


def for_micro(folder: Path, io: str = "float") -> Report:
    values = np.random.default_rng(0).uniform(-1, 1, (8, 1, 2, 2, 4)).astype(np.float32)
    np.savez(folder / "in.npz", **{"in": values})
    save(net(), folder / "net.tflite")
    judging = Judging(inputs=(folder / "in.npz",), tolerance=Tolerance(min_snr=15))
    passes = [Quantize(effort="fast", target="tflm", io=io)]
    return rewrite(folder / "net.tflite", folder / "out.tflite", passes, judging=judging)


@pytest.mark.runtime
@pytest.mark.skipif(bool(NO_MICRO), reason=NO_MICRO)
@pytest.mark.parametrize("io", ["float", "int8", "uint8"])
def test_micro_judges_what_is_made_for_it(tmp_path: Path, io: str) -> None:
    """The same samples in the types that the file takes."""
    report = for_micro(tmp_path, io)
    assert report.verdict is not None and report.verdict.passed
    judges = [one.judge.runtime for one in report.verdict.each if one.judge is not None]
    assert judges == ["ai-edge-litert"] * 3 + ["tflite-micro"]
    assert not any("TFLite Micro" in text for text in report.verdict.not_judged)


@pytest.mark.runtime
def test_micro_is_named_where_it_is_not_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tfl_rewrite.pipeline.judges._runtimes", lambda platform, settings: ())
    report = for_micro(tmp_path)
    assert report.verdict is not None and report.verdict.passed
    assert report.verdict.not_judged[-1] == "TFLite Micro, which it was made for"
