"""Repairs: what is corrected, what stays, and that the result computes what the original means."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tfl_rewrite import Judging, UnsupportedError, UsageError, diagnose, load, rewrite, save
from tfl_rewrite.editing.base import run_passes
from tfl_rewrite.flatbuf.reader import misaligned as askew
from tfl_rewrite.flatbuf.record import INT64, Record, ScalarVector
from tfl_rewrite.judge.judge import run_model
from tfl_rewrite.kernels.operands import scales_of, zero_points_of
from tfl_rewrite.kernels.reads import weight_reads
from tfl_rewrite.model import dtypes
from tfl_rewrite.model.blob import OwnedBlob
from tfl_rewrite.model.ir import Model, schema
from tfl_rewrite.passes import passes_of
from tfl_rewrite.passes.repair import NAMES, Repair
from tfl_rewrite.reading.check import examine
from tfl_rewrite.reading.findings import UNASKED
from tfl_rewrite.weights.repairs import integers, scale_values

from ..faulty_models import (
    REPAIRABLE,
    SIXTEEN,
    SOUND,
    Fault,
    blockwise,
    convolution,
    dense,
    depthwise,
    full_integer,
    full_integer_zero,
    scaled,
    sixteen,
    too_high,
    zero_scale,
)
from ..nets import Net, codes, data_of, dequantized, misaligned, named, run, stored_apart

OFF = Judging(mode="off")
OLD = os.environ.get("TFL_REWRITE_OLD_RUNTIME_PYTHON")


def repaired(model: Model, *only: str) -> list[str]:
    """Repairs in place; what was done, a line each."""
    result = run_passes(model, [Repair(only=only)])[0]
    return [change.to_dict()["what"] for change in result.changes]


@pytest.mark.runtime
@pytest.mark.parametrize("fault", REPAIRABLE, ids=lambda fault: f"{fault}-{REPAIRABLE.index(fault)}")
def test_each_fault_is_gone_and_the_result_runs(fault: Fault, tmp_path: Path) -> None:
    source, target = tmp_path / "in.tflite", tmp_path / "out.tflite"
    save(fault.model(), source)
    report = rewrite(source, target, [Repair()], judging=Judging(samples=2))
    assert report.outcome == "rewritten"
    assert not [item for item in diagnose(target).findings if item.repairable and item.kind in UNASKED]
    alone = run_model(target, Judging(samples=1))
    assert alone.failure is None and alone.judge is not None
    assert alone.judge.resolver.startswith("default")
    if fault.taken == "refused":
        assert report.unverified is not None and "does not run" in report.unverified
        assert any("the repaired file runs" in note for note in report.notes)
    else:
        assert report.verdict is not None and report.verdict.passed
    if fault.taken == "plain":
        assert any("XNNPACK" in note and "the original:" in note for note in report.notes)
    again = rewrite(target, tmp_path / "again.tflite", [Repair()], judging=OFF)
    assert again.outcome == "unchanged"


@pytest.mark.parametrize("number", range(len(SOUND)))
def test_sound_models_are_copied(number: int, tmp_path: Path) -> None:
    source, target = tmp_path / "in.tflite", tmp_path / "out.tflite"
    save(SOUND[number](), source)
    report = rewrite(source, target, [Repair()], judging=OFF)
    assert report.outcome == "unchanged" and target.read_bytes() == source.read_bytes()
    assert report.results[0].idle.startswith("nothing to repair")


NOT_SOUND = ("conv_without_bias", "offset_buffers", "digits_cnn_full_int8")


def test_fixtures_without_a_fault_are_copied(sound: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.tflite"
    report = rewrite(sound, target, [Repair()], judging=OFF)
    assert (report.outcome == "unchanged") is (sound.stem not in NOT_SOUND)
    if report.outcome == "unchanged":
        assert target.read_bytes() == sound.read_bytes()


def test_an_axis_that_could_be_two_is_left() -> None:
    model = dense(values=np.ones((16, 16), np.int8), axis=7)
    result = run_passes(model, [Repair()])[0]
    assert not result.changes and result.skips[0].rule == "unknown-axis"


def test_zero_points_that_differ_are_left() -> None:
    result = run_passes(dense(points=[0, 1]), [Repair()])[0]
    assert not result.changes and result.skips[0].rule == "unknown-zero-points"


def test_a_scale_of_zero_keeps_the_values() -> None:
    model, before = zero_scale(), zero_scale()
    assert repaired(model) == ["zero-scale: 1 scales 0 -> 1, their elements are 0"]
    weight, old = named(model, "w"), named(before, "w")
    assert scales_of(weight)[3] == 1 and not data_of(weight)[3].any() and data_of(old)[3].any()
    assert np.array_equal(dequantized(weight), dequantized(old))


def test_a_block_of_scale_zero_keeps_the_values() -> None:
    model = blockwise()
    old = integers(named(model, "w"))
    assert old is not None and old[2, 32:].any()
    assert repaired(model) == ["zero-scale: 1 of 16 block scales 0 -> 1, their elements are 0"]
    new, scales = integers(named(model, "w")), scale_values(named(model, "scales"))
    assert new is not None and scales is not None
    assert scales[5] == 1 and not new[2, 32:].any()
    assert np.array_equal(np.delete(new.reshape(-1, 32), 5, 0), np.delete(old.reshape(-1, 32), 5, 0))


def test_a_scale_of_zero_in_integer_arithmetic_is_left() -> None:
    model = full_integer(bias_scale=0.0002)
    scaled(named(model, "w"), [0.0])
    result = run_passes(model, [Repair()])[0]
    assert not result.changes and result.skips[0].rule == "integer-reader"


def test_bytes_that_another_tensor_reads_stay(tmp_path: Path) -> None:
    model = zero_scale()
    weight = named(model, "w")
    net = Net()
    net.model, net.graph = model, model.subgraphs[0]
    other = scaled(net.tensor("other", (16, 8), np.int8, weight.buffer), [0.5])
    before = data_of(other).copy()
    net.output(net.add("DEQUANTIZE", [other], "floats", (16, 8), version=2))
    repaired(model)
    assert np.array_equal(data_of(other), before) and not data_of(weight)[3].any()


@pytest.mark.runtime
@pytest.mark.parametrize("scales", [[0.01], np.linspace(0.01, 0.02, 6)], ids=["one", "axis 0"])
def test_depthwise_scales_are_spread_and_right(scales: list[float], tmp_path: Path) -> None:
    source, target = tmp_path / "in.tflite", tmp_path / "out.tflite"
    model = depthwise(scales=scales, axis=0)
    floats = data_of(named(model, "w")).astype(np.float32) * np.asarray(scales, np.float32)
    save(model, source)
    report = rewrite(source, target, [Repair()])
    made = load(target)
    weight = named(made, "w")
    assert weight.quantization is not None and weight.quantization.dimension == 3
    assert np.array_equal(dequantized(weight), floats)
    # Six scales on an axis of length one are refused; one scale is read, and read past.
    assert (report.unverified is not None) is (len(scales) == 6)
    expected = depthwise(scales=scales, axis=0)
    reference = named(expected, "w")
    reference.dtype, reference.quantization = dtypes.FLOAT32.value, None
    reference.buffer.blob = OwnedBlob(floats.tobytes())
    save(expected, tmp_path / "float.tflite")
    image = np.random.default_rng(0).standard_normal((1, 5, 5, 6)).astype(np.float32)
    wanted = run(tmp_path / "float.tflite", {"x": image})["y"]
    got = run(target, {"x": image})["y"]
    assert 10 * np.log10(np.square(wanted).sum() / np.square(wanted - got).sum()) > 30


@pytest.mark.runtime
def test_what_is_undefined_is_compared_with_floats(tmp_path: Path) -> None:
    source, target = tmp_path / "in.tflite", tmp_path / "out.tflite"
    save(depthwise(), source)
    report = rewrite(source, target, [Repair()])
    assert any("as float32" in note for note in report.notes)


def test_only_what_is_named_is_repaired() -> None:
    model = dense(version=9, scales=[0, *[0.01] * 14, 0.02])
    assert [text.split(":")[0] for text in repaired(model, "hybrid-version")] == ["hybrid-version"]
    assert codes(model) == [("FULLY_CONNECTED", 12)] and scales_of(named(model, "w"))[0] == 0
    with pytest.raises(UsageError, match="hybrid-version"):
        Repair(only=["everything"])


def test_versions_that_were_stamped_count_for_the_minimum_runtime() -> None:
    model = dense(version=9)
    net = Net()
    net.model = model
    net.metadata("min_runtime_version", b"2.3.0".ljust(16, b"\0"))
    repaired(model)
    entry = model.metadata_named("min_runtime_version")
    assert entry is not None and entry.buffer.blob is not None
    assert bytes(entry.buffer.blob.view()) == b"2.17.0".ljust(16, b"\0")


def test_a_bias_of_zeros() -> None:
    model = convolution(bias=False)
    assert repaired(model) == ["missing-bias: a bias of 4 zeros"]
    bias = model.subgraphs[0].operators[0].inputs[2]
    assert bias is not None and bias.dtype == dtypes.FLOAT32.value and not data_of(bias).any()
    assert (bias.shape, data_of(bias).size) == ((4,), 4)


@pytest.mark.parametrize(
    ("shape", "done"), [((1, 5, 5, 1), True), ((1, 5, 5, 0), False), ((), False), (None, False)]
)
def test_a_bias_has_as_many_zeros_as_the_output_has_channels(
    shape: tuple[int, ...] | None, done: bool
) -> None:
    model = convolution(bias=False)
    output = model.subgraphs[0].operators[0].outputs[0]
    assert output is not None
    output.shape = shape
    (result,) = run_passes(model, [Repair(only=("missing-bias",))])
    assert [item.to_dict()["what"] for item in result.changes] == ["missing-bias: a bias of 1 zeros"] * done
    assert [item.rule for item in result.skips] == ["unknown-channels"] * (not done)


@pytest.mark.parametrize(("only", "versions"), [("version-high", (99, 5)), ("operator-version", (5, 99))])
def test_versions_that_some_runtime_has_and_others_are_lowered_apart(
    only: str, versions: tuple[int, int]
) -> None:
    model = too_high(*versions)
    (told,) = repaired(model, only)
    assert told.startswith(f"{only}: version {versions[1]} -> 1 (first in")
    assert codes(model) == [("ADD", versions[0]), ("ADD", 1)]


@pytest.mark.parametrize(("offsets", "said"), [([12], "1 vector starts"), ([12, 28], "2 vectors start")])
def test_how_many_vectors_lie_askew(offsets: list[int], said: str) -> None:
    model = Net().model
    tables = schema().tables
    rows = [
        Record(tables["QuantizationParameters"], {"zero_point": ScalarVector(INT64, bytes(8), offset)})
        for offset in offsets
    ]
    tensors = [Record(tables["Tensor"], {"quantization": row}) for row in rows]
    graph = Record(tables["SubGraph"], {"tensors": tensors})
    model.rest = model.rest.replace(subgraphs=[graph])
    assert repaired(model, "misaligned") == [f"misaligned: {said} on a multiple of 8 now"]


@pytest.mark.runtime
def test_buffers_outside_are_taken_in(fixtures: Path, tmp_path: Path) -> None:
    source, target = fixtures / "offset_buffers.tflite", tmp_path / "out.tflite"
    report = rewrite(source, target, [Repair()])
    assert report.verdict is not None and report.verdict.passed
    before, after = load(source), load(target)
    assert any(buffer.outside for buffer in before.buffers)
    assert not any(buffer.outside for buffer in after.buffers)
    assert [bytes(b.blob.view()) if b.blob else b"" for b in before.buffers] == [
        bytes(b.blob.view()) if b.blob else b"" for b in after.buffers
    ]


@pytest.mark.runtime
def test_constants_are_aligned_when_asked(tmp_path: Path) -> None:
    path, target = tmp_path / "in.tflite", tmp_path / "out.tflite"
    save(dense(), path)
    # The generated object API does not align.
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    for pad in range(4):
        model = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
        model.description = "x" * (4 * pad)
        builder = flatbuffers.Builder(64)
        builder.Finish(model.Pack(builder), b"TFL3")
        path.write_bytes(bytes(builder.Output()))
        if "unaligned" in {item.kind for item in diagnose(path).findings}:
            break
    else:
        pytest.fail("all four happen to be aligned")
    assert rewrite(path, tmp_path / "copy.tflite", [Repair()]).outcome == "unchanged"
    report = rewrite(path, target, [Repair(only=["unaligned"])])
    assert report.verdict is not None and report.verdict.passed
    assert "unaligned" not in {item.kind for item in diagnose(target).findings}


@pytest.mark.runtime
@pytest.mark.parametrize("name", ["digits_cnn_full_int8", "already_int8", "digits_cnn_dynamic_range"])
def test_vectors_of_8_byte_numbers_are_aligned(fixtures: Path, tmp_path: Path, name: str) -> None:
    source, target = tmp_path / "in.tflite", tmp_path / "out.tflite"
    source.write_bytes(misaligned((fixtures / f"{name}.tflite").read_bytes()))
    (place, offset), *_ = askew(load(source).rest)
    assert offset % 8 == 4
    problems, notes = examine(source)
    assert not problems and any(place in note and f"offset {offset}" in note for note in notes)
    found = {item.kind: item for item in diagnose(source).findings}
    assert found["misaligned"].repairable and found["misaligned"].where == place
    report = rewrite(source, target, [Repair()])
    assert report.verdict is not None and report.verdict.passed
    assert not askew(load(target).rest) and "misaligned" not in {
        item.kind for item in diagnose(target).findings
    }
    assert rewrite(target, tmp_path / "again.tflite", [Repair()], judging=OFF).outcome == "unchanged"


def test_any_rewrite_aligns_vectors_and_a_copy_leaves_them(fixtures: Path, tmp_path: Path) -> None:
    source, target = tmp_path / "in.tflite", tmp_path / "out.tflite"
    source.write_bytes(misaligned((fixtures / "digits_cnn_full_int8.tflite").read_bytes()))
    model = load(source)
    save(model, target)
    assert target.read_bytes() == source.read_bytes()
    model.description = "changed"
    save(model, target, force=True)
    assert not askew(load(target).rest)


def test_vectors_in_options_count_too() -> None:
    vector = ScalarVector(INT64, bytes(16), 12)
    inner = Record(schema().tables["StablehloGatherOptions"], {"slice_sizes": vector})
    operator = Record(schema().tables["Operator"], {"builtin_options_2": inner})
    root = Record(schema().tables["SubGraph"], {"operators": [operator, operator]})
    assert askew(root) == [("operators[0].builtin_options_2.slice_sizes", 12)] or askew(root) == [
        ("operators[1].builtin_options_2.slice_sizes", 12)
    ]


def test_zero_points_are_repeated() -> None:
    model = dense(points=[0])
    assert repaired(model) == ["zero-points: 1 zero points -> 16"]
    assert zero_points_of(named(model, "w")) == [0] * 16


def test_needed_versions() -> None:
    for model, wanted in (
        (dense(), 12),
        (dense(scales=[0.01]), 3),
        (convolution(), 5),
        (blockwise(), 12),
        (depthwise(), 0),  # there is no such form
    ):
        assert [read.needed_version() for read in weight_reads(model)] == [wanted]


def test_names_are_those_of_findings() -> None:
    assert len(set(NAMES)) == len(NAMES)


# -- Biases --------------------------------------------------------------------------------------------------


def outputs(path: Path, *, resolver: str = "", runtime: str = "litert") -> np.ndarray[Any, Any]:
    asked = (resolver,) if resolver else ()
    result = run_model(path, Judging(samples=1, resolver=asked, runtime=runtime))
    assert result.failure is None, result.failure
    (value,) = result.outputs[0].values
    assert value is not None
    return value


@pytest.mark.runtime
@pytest.mark.parametrize("kind", SIXTEEN)
def test_biases_beside_int16_become_int64(kind: str, tmp_path: Path) -> None:
    source, target, told = tmp_path / "in.tflite", tmp_path / "out.tflite", tmp_path / "told.tflite"
    save(sixteen(kind), source)
    rewrite(source, target, [Repair()])
    bias = named(load(target), "b")
    assert bias.dtype_name == "INT64" and data_of(bias).tolist() == [1000, -2000, 3000, 70000]
    got = [outputs(target, resolver=resolver) for resolver in ("default", "builtin", "reference")]
    assert all(np.array_equal(one, got[0]) for one in got)
    save(sixteen(kind, bias="int64"), told)
    assert np.array_equal(outputs(told), got[0])
    if OLD:
        # What it was made for goes by the type, so it was right there, but for DEPTHWISE_CONV_2D.
        assert np.array_equal(outputs(target, runtime=f"python:{OLD}"), got[0])
        if kind != "DEPTHWISE_CONV_2D":
            was = outputs(source, runtime=f"python:{OLD}").astype(int)
            assert np.abs(was - got[0]).max() <= 1


def test_a_bias_that_is_computed_is_told() -> None:
    model = sixteen("CONV_2D", computed=True)
    assert repaired(model) == ["int16-bias: quantized_bias_type says int32; version 8"]
    assert codes(model)[1] == ("CONV_2D", 8)
    result = run_passes(sixteen("DEPTHWISE_CONV_2D", computed=True), [Repair()])[0]
    assert not result.changes and result.skips[0].rule == "computed-bias"


def test_an_option_that_contradicts_its_bias_goes() -> None:
    model = sixteen("CONV_2D", bias="int64", told="int32")
    assert repaired(model) == ["int16-bias: quantized_bias_type taken away: the bias is int64"]
    assert not model.subgraphs[0].operators[0].option("quantized_bias_type")


def test_a_bias_that_others_read_stays_for_them(tmp_path: Path) -> None:
    model = sixteen("CONV_2D")
    net = Net()
    net.model, net.graph = model, model.subgraphs[0]
    bias = named(model, "b")
    net.output(net.add("CAST", [bias], "floats", (4,)))
    repaired(model)
    assert bias.dtype_name == "INT32" and named(model, "b_int64").dtype_name == "INT64"
    assert model.subgraphs[0].operators[0].inputs[2] is named(model, "b_int64")


def test_two_operators_share_the_bias_that_became_int64() -> None:
    model = sixteen("CONV_2D")
    first = model.subgraphs[0].operators[0]
    net = Net()
    net.model, net.graph = model, model.subgraphs[0]
    net.output(net.add("CONV_2D", list(first.inputs), "z", (1, 5, 5, 4), dtype=np.int16, version=4))
    assert len(repaired(model)) == 2
    one, two = (operator.inputs[2] for operator in model.subgraphs[0].operators)
    assert one is two and one is named(model, "b") and one.dtype_name == "INT64"


def undefined() -> list[Model]:
    return [sixteen("CONV_2D"), depthwise()]


@pytest.mark.runtime
@pytest.mark.parametrize("number", range(2))
@pytest.mark.parametrize("name", ["compact", "dedup", "quantize-weights"])
def test_no_rewrite_is_judged_by_what_kernels_read_past(number: int, name: str, tmp_path: Path) -> None:
    source, target = tmp_path / "in.tflite", tmp_path / "out.tflite"
    model = undefined()[number]
    net = Net()
    net.model, net.graph = model, model.subgraphs[0]
    # Something to do for each of the passes, before what is wrong.
    extra = net.input("more", (2, 64))
    values = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    for other in range(2):
        weight = net.constant(f"m{other}", values)
        stored_apart(weight)
        net.output(net.dense(extra, weight, f"z{other}"))
    net.graph.operators.insert(0, net.graph.operators.pop())
    save(model, source)
    with pytest.raises(UnsupportedError, match="repair it first: tfl-rewrite repair") as caught:
        rewrite(source, target, passes_of([name]), judging=Judging(samples=1))
    kind = ("CONV_2D", "DEPTHWISE_CONV_2D")[number]
    assert caught.value.where == f"subgraphs[0].operators[1] {kind}" and caught.value.exit_code == 3
    assert not target.exists()
    assert rewrite(source, target, passes_of([name]), judging=OFF).outcome == "rewritten"
    both = rewrite(source, target, passes_of(["repair", name]), judging=Judging(samples=1), force=True)
    assert both.verdict is not None and both.verdict.passed


def test_zero_biases_get_the_scale_of_their_products(tmp_path: Path) -> None:
    model = full_integer_zero(channels=True, bias_scale=1e-5, shared=True)
    assert [text.split(":")[0] for text in repaired(model)] == ["zero-bias-scale"] * 2
    for operator in model.subgraphs[0].operators:
        _, weight, bias = operator.inputs
        assert weight is not None and bias is not None
        expected = np.float32(0.02) * np.array(scales_of(weight), np.float32)
        assert np.allclose(scales_of(bias), expected, rtol=1e-6) and zero_points_of(bias) == [0] * 16
    one, two = (operator.inputs[2] for operator in model.subgraphs[0].operators)
    assert one is not two and one is not None and two is not None and one.buffer is two.buffer


def test_a_bias_with_values_is_not_touched() -> None:
    model = full_integer(bias_scale=0.0004)
    assert not run_passes(model, [Repair()])[0].changes
    assert np.float32(scales_of(named(model, "b"))[0]) == np.float32(0.0004)
