"""Files of other types at the border are compared in real values, and to the bit where that is asked for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.nets import Net
from tfl_rewrite import Judging, Tolerance, save, verify
from tfl_rewrite.cli import main
from tfl_rewrite.flatbuf.record import FLOAT32, INT64, ScalarVector
from tfl_rewrite.interpreter.child import load_array
from tfl_rewrite.interpreter.interface import EntryPoint, Interface, TensorFacts
from tfl_rewrite.judge.judge import interface_differences
from tfl_rewrite.judge.retyped import between_steps, compared_as, converted, on_steps, write_converted
from tfl_rewrite.model.ir import Quantization, Tensor
from tfl_rewrite.samples.made import Step, write_steps

EXACT = Judging(retyped=True, tolerance=Tolerance(exact=True))
NEAR = Judging(retyped=True)


def facts(dtype: str, scale: float = 0.0, zero: int = 0, name: str = "x") -> TensorFacts:
    many = {"scales": (scale,), "zero_points": (zero,)} if scale else {}
    return TensorFacts(name=name, tensor=name, dtype=dtype, shape=(4,), shape_signature=(4,), **many)


FLOAT, INT8, UINT8 = facts("float32"), facts("int8", 0.5, -2), facts("uint8", 0.5, 126)


def interface(given: TensorFacts, gives: TensorFacts) -> Interface:
    return Interface(EntryPoint(None, (given,), (gives,)), ())


def test_values_are_those_of_the_other_type() -> None:
    integers = np.array([-128, -2, 0, 127], np.int8)
    assert converted(integers, INT8, FLOAT).tolist() == [-63.0, 0.0, 1.0, 64.5]
    assert converted(integers, INT8, UINT8).tolist() == [0, 126, 128, 255]
    floats = np.array([-1e9, 0.26, 0.24, 1e9], np.float32)
    assert converted(floats, FLOAT, INT8).tolist() == [-128, -1, -2, 127]
    indices = facts("int32")
    assert converted(integers, INT8, indices) is integers, "those hold no real values"


def test_outputs_are_compared_as_integers_only_where_they_must_be_equal() -> None:
    assert compared_as(FLOAT, INT8, exact=False) is FLOAT
    assert compared_as(INT8, FLOAT, exact=False) == FLOAT, "or 1000 would pass for the largest integer"
    assert compared_as(FLOAT, replace(INT8, name="other"), exact=True) == INT8
    assert compared_as(INT8, FLOAT, exact=True) is INT8
    assert between_steps(np.array([0.5, 0.6, np.nan], np.float32), FLOAT, INT8) == 2
    assert between_steps(np.array([1, 2], np.int8), INT8, FLOAT) == 0


def test_samples_lie_on_the_steps_of_the_coarser_side(tmp_path: Path) -> None:
    ours, theirs = interface(FLOAT, FLOAT), interface(INT8, INT8)
    step = Step(signature=None, values=(("x", np.array([0.3, -0.7, 1.0, 99.0], np.float32)),))
    (made,) = on_steps([step], ours, theirs)
    assert made.values[0][1].tolist() == [0.5, -0.5, 1.0, 64.5]
    (same,) = on_steps([step], ours, ours)
    assert same.values[0][1] is step.values[0][1]
    listed = write_steps([made], tmp_path)
    assert write_converted(listed, ours, ours) == listed
    ((call,)) = json.loads(write_converted(listed, ours, theirs).read_text())
    assert load_array(Path(call["inputs"][0][1])).tolist() == [-1, -3, 0, 127]


def test_only_the_types_of_real_values_may_differ() -> None:
    ours = interface(FLOAT, FLOAT)
    assert interface_differences(ours, interface(INT8, UINT8), retyped=True) == ([], [])
    assert len(interface_differences(ours, interface(INT8, UINT8))[0]) == 4
    (broken,), _ = interface_differences(
        ours, interface(INT8, replace(INT8, shape_signature=(5,))), retyped=True
    )
    assert "[5]" in broken
    assert "is int8[5] instead of float32[4]" in broken, "the type that the file has"
    (broken,), _ = interface_differences(ours, interface(facts("int32"), FLOAT), retyped=True)
    assert "int32" in broken


def quantized(net: Net, tensor: Tensor, scale: float, zero: int) -> Tensor:
    tensor.quantization = Quantization(ScalarVector.of(FLOAT32, [scale]), ScalarVector.of(INT64, [zero]), 0)
    return tensor


def squashing(path: Path, *, border: bool, scale: float = 0.05, doubled: bool = False) -> Path:
    """LOGISTIC in int8, with or without conversions from and to floats around it."""
    net = Net()
    if border:
        source = net.add("QUANTIZE", [net.input("in", (1, 64))], "inside", (1, 64), dtype=np.int8)
    else:
        source = net.input("in", (1, 64), np.int8)
    quantized(net, source, scale, 4)
    made = net.add("LOGISTIC", [source], "made" if border else "out", (1, 64), dtype=np.int8, version=2)
    quantized(net, made, 1 / 256, -128)
    if doubled:
        made = quantized(net, net.add("QUANTIZE", [made], "out", (1, 64), dtype=np.int8), 1 / 128, -128)
    net.output(net.add("DEQUANTIZE", [made], "out", (1, 64), version=2) if border else made)
    save(net.model, path)
    return path


@pytest.mark.runtime
@pytest.mark.parametrize("kernels", ["default", "builtin", "reference"])
def test_the_same_integers_inside_are_equal_to_the_bit(kernels: str, tmp_path: Path) -> None:
    one = squashing(tmp_path / "one.tflite", border=True)
    other = squashing(tmp_path / "other.tflite", border=False)
    for before, after in ((one, other), (other, one)):
        verdict = verify(before, after, replace(EXACT, resolver=(kernels,)))
        assert verdict.passed and verdict.outputs[0].bit_exact, verdict.reasons
        assert verdict.outputs[0].dtype == "int8" and verdict.outputs[0].silence is None
        assert verdict.repeated, "the rewritten file is asked again, too"
    assert not verify(one, other).passed, "nobody asked for other types"


@pytest.mark.runtime
def test_other_integers_inside_fail(tmp_path: Path) -> None:
    one = squashing(tmp_path / "one.tflite", border=True)
    scaled = squashing(tmp_path / "scaled.tflite", border=False, scale=0.08)
    coarse = squashing(tmp_path / "coarse.tflite", border=False, doubled=True)
    for after in (scaled, coarse):
        verdict = verify(one, after, EXACT)
        assert verdict.status == "fail" and verdict.cause == "outputs", verdict.reasons
    verdict = verify(one, scaled, NEAR)
    assert verdict.passed and verdict.outputs[0].dtype == "float32"
    assert 20 < verdict.worst_snr() < 100


def narrow(path: Path, dtype: type[np.generic]) -> Path:
    """LOGISTIC of floats, or of an int8 input that holds 0 to 1 alone."""
    net = Net()
    source = net.input("in", (1, 64), dtype)
    made = net.add("LOGISTIC", [source], "out", (1, 64), dtype=dtype, version=2)
    if dtype is np.int8:
        quantized(net, source, 1 / 255, -128)
        quantized(net, made, 1 / 256, -128)
    net.output(made)
    save(net.model, path)
    return path


@pytest.mark.runtime
def test_made_samples_lie_in_what_both_files_hold(tmp_path: Path) -> None:
    one, other = narrow(tmp_path / "one.tflite", np.float32), narrow(tmp_path / "other.tflite", np.int8)
    for before, after in ((one, other), (other, one)):
        verdict = verify(before, after, NEAR)
        assert verdict.passed and verdict.worst_snr() > 50, verdict.reasons
        assert not verdict.notes, "nothing is clipped"


@pytest.mark.runtime
def test_a_note_counts_the_real_values_that_are_clipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = narrow(tmp_path / "one.tflite", np.float32), narrow(tmp_path / "other.tflite", np.int8)
    values = np.linspace(0, 1, 4 * 64, dtype=np.float32).reshape(4, 1, 64)
    values[0, 0, :32] = 5
    np.savez(tmp_path / "in.npz", **{"in": values})
    verdict = verify(one, other, replace(NEAR, inputs=(tmp_path / "in.npz",)))
    said = "12 % of the values of input 'in' of the model lie beyond what int8 holds"
    assert verdict.notes[0] == f"{said} in the rewritten file (0 to 1)"
    # The command says so without -v.
    main(["verify", str(one), str(other), "--retyped", "--inputs", str(tmp_path / "in.npz")])
    assert f"note: {said}" in capsys.readouterr().out


@pytest.mark.runtime
def test_calls_of_another_interface_are_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tfl_rewrite.judge.judge.cost_of", lambda *_: 6.2)
    one, other = narrow(tmp_path / "one.tflite", np.float32), narrow(tmp_path / "other.tflite", np.int8)
    verdict = verify(one, other)
    assert verdict.cause == "interface" and verdict.cost is None
    assert verify(one, other, NEAR).cost == 6.2
