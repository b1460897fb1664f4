"""Files made to run on older and smaller runtimes: versions, weights, refusals, and how they are judged."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest
from flatbuffers import flexbuffers

from tests.nets import Net, UnsignedNet, codes, data_of, dequantized, named
from tfl_rewrite import Judging, Report, RewriteFailed, UnsupportedError, UsageError, load, rewrite, save
from tfl_rewrite.editing import Context, PassResult, Skip
from tfl_rewrite.editing.base import Change, run_passes
from tfl_rewrite.files.source import layout
from tfl_rewrite.flatbuf.record import FLOAT32, INT64, UINT8, ScalarVector
from tfl_rewrite.kernels.platforms import Platform
from tfl_rewrite.model import dtypes
from tfl_rewrite.model.blob import OwnedBlob
from tfl_rewrite.model.ir import Model, OperatorCode, Quantization, Tensor, new_record, operator_number
from tfl_rewrite.model.values import pack
from tfl_rewrite.passes import Retarget
from tfl_rewrite.pipeline.report import Plan
from tfl_rewrite.weights import recoding

OLD = os.environ.get("TFL_REWRITE_OLD_RUNTIME_PYTHON")
needs_old = pytest.mark.skipif(OLD is None, reason="no Python with tflite-runtime 2.14.0 is named")
needs_micro = pytest.mark.skipif(
    importlib.util.find_spec("tflite_micro") is None, reason="TFLite Micro is not installed (extra: micro)"
)


def integers(net: Net, name: str, values: np.ndarray, scales: list[float], kind: str = "INT8") -> Tensor:
    """A constant of integers with a scale for each row, or one for all."""
    made = net.constant(name, values.astype(np.int8))
    points = ScalarVector(INT64, bytes(8 * len(scales)))
    made.quantization = Quantization(ScalarVector.of(FLOAT32, scales), points)
    if kind != "INT8":
        made.dtype = dtypes.BY_NAME[kind].value
        made.buffer = net.buffer(
            pack(values.astype(np.int8).reshape(-1), dtypes.BY_NAME[kind].bits).tobytes()
        )
    return made


def dense(kind: str = "INT8", version: int = 12, scales: int = 4) -> Model:
    """A FULLY_CONNECTED that reads integer weights beside floats."""
    net = Net(3)
    source = net.input("in", (1, 30))
    most = 127 if kind == "INT8" else 7
    values = net.random.integers(-most, most + 1, (4, 30))
    values[:, 0] = most
    weight = integers(net, "w", values, [0.01 * (at + 1) for at in range(scales)], kind)
    options = {"asymmetric_quantize_inputs": True}
    net.output(net.add("FULLY_CONNECTED", [source, weight, None], "out", (1, 4), version=version, **options))
    net.metadata("min_runtime_version", b"2.17.0".ljust(16, b"\0"))
    return net.model


def table(scales: int = 5) -> Model:
    """An EMBEDDING_LOOKUP in a table with a scale for each row."""
    net = Net(3)
    source = net.input("ids", (3,), np.int32)
    values = net.random.integers(-127, 128, (5, 8))
    rows = integers(net, "w", values, [0.01 * (at + 1) for at in range(scales)])
    net.output(net.add("EMBEDDING_LOOKUP", [source, rows], "out", (3, 8), version=4))
    return net.model


def retargeted(model: Model, target: str = "2.14", **options: bool) -> list[PassResult]:
    return run_passes(model, [Retarget(target=target, **options)])


def said(results: list[PassResult]) -> list[str]:
    changes: list[Change] = [change for result in results for change in result.changes]
    return [f"{change.where}: {change.to_dict()['what']}" for change in changes]


def test_scales_that_come_too_late_stand_behind_dequantize() -> None:
    model = dense()
    before = dequantized(named(model, "w"))
    results = retargeted(model)
    assert codes(model) == [("DEQUANTIZE", 5), ("FULLY_CONNECTED", 6)]
    assert np.array_equal(dequantized(named(model, "w")), before)
    assert not model.subgraphs[0].operators[1].option("asymmetric_quantize_inputs")
    assert "w: int8 -> behind DEQUANTIZE" in said(results)
    assert "metadata min_runtime_version: 2.17.0 -> 2.7.0" in said(results)
    assert retargeted(model)[0].changes == retargeted(model)[1].changes == retargeted(model)[2].changes == ()


def test_what_the_runtime_knows_stays() -> None:
    model = dense()
    results = retargeted(model, "2.17")
    assert codes(model) == [("FULLY_CONNECTED", 12)] and said(results) == []
    assert results[-1].idle == "all that is in it runs on runtime 2.17 already"


def test_scales_are_joined_by_rounding_where_that_is_asked_for() -> None:
    model = dense()
    before = dequantized(named(model, "w"))
    results = retargeted(model, hybrid=True)
    assert codes(model) == [("FULLY_CONNECTED", 9)]
    after = dequantized(named(model, "w"))
    assert 0 < np.abs(after - before).max() <= np.abs(before).max() / 127 / 2 * 1.0001
    assert "w: int8 -> int8 with one scale, rounded anew" in said(results)


def test_equal_scales_are_one() -> None:
    model = dense()
    weight = named(model, "w")
    raw = np.full(4, 0.5, np.float32).tobytes()
    weight.quantization = Quantization(ScalarVector(FLOAT32, raw), ScalarVector(INT64, bytes(32)))
    before = dequantized(weight)
    retargeted(model)
    assert codes(model) == [("FULLY_CONNECTED", 9)]
    assert np.array_equal(dequantized(named(model, "w")), before)


@pytest.mark.parametrize("kind", ["INT4", "INT2"])
def test_packed_integers_become_bytes(kind: str) -> None:
    model = dense(kind, 14 if kind == "INT2" else 12)
    if kind == "INT2":
        weight = named(model, "w")
        values = np.resize(np.array([-2, -1, 0, 1], np.int8), 120)
        weight.buffer.blob = Net().buffer(pack(values, 2).tobytes()).blob
    before = named(model, "w").values
    retargeted(model)
    assert codes(model) == [("DEQUANTIZE", 5), ("FULLY_CONNECTED", 6)]
    assert named(model, "w").dtype_name == "INT8" and np.array_equal(data_of(named(model, "w")), before)


def test_lookups_move_the_integers_of_their_rows() -> None:
    model = table()
    retargeted(model)
    assert codes(model) == [("GATHER", 2), ("CAST", 3), ("GATHER", 1), ("MUL", 1)]
    assert not any(item.name == "w" for item in model.subgraphs[0].tensors)


def test_blocks_are_expanded(fixtures: Path) -> None:
    model = load(fixtures / "blockwise_int4.tflite")
    retargeted(model)
    assert [name for name, _ in codes(model)][:4] == ["DEQUANTIZE", "DEQUANTIZE", "MUL", "RESHAPE"]
    assert retargeted(model)[1].changes == ()


def test_micro_reads_floats_beside_floats() -> None:
    for model in (dense(), dense("INT4", 12), table()):
        values = named(model, "w").values
        before = values * (0.01 * np.arange(1, len(values) + 1, dtype=np.float32))[:, None]
        retargeted(model, "tflm")
        assert "DEQUANTIZE" not in dict(codes(model))
        assert named(model, "w").dtype_name == "FLOAT32"
        assert np.allclose(data_of(named(model, "w")), before, rtol=1e-6)


def test_versions_are_lowered_to_what_features_need() -> None:
    net = Net()
    source = net.input("in", (1, 4))
    net.output(net.add("RELU", [net.add("ADD", [source, source], "sum", (1, 4), version=5)], "out", (1, 4)))
    results = retargeted(net.model)
    assert codes(net.model) == [("ADD", 1), ("RELU", 1)]
    assert said(results) == ["subgraphs[0].operators[0] ADD: version 5 -> 1 (first in 1.5.0)"]
    # Later, since it is an int64; the runtime has it.
    net = Net()
    source = net.input("in", (1, 4), np.int64)
    net.output(net.add("ADD", [source, source], "out", (1, 4), dtype=np.int64, version=5))
    retargeted(net.model)
    assert codes(net.model) == [("ADD", 4)]


def test_codes_that_nothing_uses_are_dropped_where_they_keep_the_runtime_away() -> None:
    model = dense()
    model.operator_codes.append(OperatorCode(operator_number("STABLEHLO_SORT"), None, 1))
    model.operator_codes.append(OperatorCode(operator_number("RELU"), None, 1))
    model = load(layout(model).to_bytes())
    results = retargeted(model)
    assert "STABLEHLO_SORT version 1: code removed: nothing uses it" in said(results)
    assert "RELU" in [code.name for code in model.operator_codes]


def test_what_cannot_run_there_is_named() -> None:
    net = Net()
    source = net.input("in", (4,))
    net.output(net.add("DILATE", [source, source, source], "out", (4,)))
    with pytest.raises(UnsupportedError) as caught:
        retargeted(net.model)
    text = str(caught.value)
    assert "runtime 2.14 has no DILATE (first in 2.15.0) (subgraphs[0].operators[0] out)" in text
    assert caught.value.exit_code == 3 and "--allow-missing" in text
    results = retargeted(net.model, allow_missing=True)
    assert [type(skip) for skip in results[-1].skips] == [Skip]
    with pytest.raises(UnsupportedError, match="TFLite Micro has no DILATE"):
        retargeted(net.model, "tflm")


def test_a_refusal_says_where_free_sizes_stand_in_the_way() -> None:
    net = Net()
    source, counts = net.input("in", (1, 4)), net.constant("n", np.array([1, 3], np.int32))
    source.signature = (-1, 4)
    net.output(net.add("TILE", [source, counts], "out", (1, 12)))
    with pytest.raises(UnsupportedError, match=r"no TILE.*for TILE once its sizes are settled: tfl-rewrite"):
        retargeted(net.model, "tflm")
    source.signature = None
    assert retargeted(net.model, "tflm")[-1].skips == ()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("21.4", "target '21.4' is newer than 2.23"),
        ("old", "target 'old' is not a version"),
        ("", "not a version"),
    ],
)
def test_a_target_that_is_none(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        Retarget(target=text)
    assert "tflm" in str(caught.value)


def test_names_of_platforms() -> None:
    assert [Platform.parse(text).spoken for text in ("2.14", "litert-2.1", "tflm")] == [
        "runtime 2.14",
        "LiteRT 2.1",
        "TFLite Micro",
    ]
    assert Platform.parse("litert-1.1.0").runtime == (2, 19)


def test_the_pass_by_itself_takes_all_steps() -> None:
    model = dense()
    result = Retarget().run(model, Context())
    assert result.name == "retarget" and len(result.changes) == 2 and not result.exact


def test_steps_are_judged_by_what_they_did() -> None:
    plan = Plan(source=b"", target=None, passes=(Retarget(),), settings=Judging())
    assert [item.effect.value for item in plan.passes] == ["folding", "folding", "tolerance", "exact"]
    assert {item.elsewhere for item in plan.passes} == {"2.14"}


def composite(deep: bool = False) -> Model:
    """x * 2 + x in a composite, which may be within another one."""
    net = Net()
    source = net.input("in", (1, 4))
    calls = []
    for subgraph in range(1 + deep):
        inner = net.graph.inputs[0]
        calls.append((net.graph, inner))
        output = net.add("STABLEHLO_COMPOSITE", [inner], f"out{subgraph}", (1, 4))
        net.output(output)
        net.next_subgraph(f"body{subgraph}")
        net.input(f"x{subgraph}", (1, 4))
    x = net.graph.inputs[0]
    two = net.constant("two", np.array([2.0], np.float32))
    net.output(net.add("ADD", [net.add("MUL", [x, two], "twice", (1, 4)), x], "sum", (1, 4)))
    for position in range(1 + deep):
        operator = net.model.subgraphs[position].operators[0]
        attributes = ScalarVector(UINT8, flexbuffers.Dumps({}))
        options = new_record("StableHLOCompositeOptions").replace(
            name=f"our.sum{position}", composite_attributes=attributes
        )
        options.values["decomposition_subgraph_index"] = net.model.subgraphs[position + 1]
        operator.options2 = options
        operator.rest = operator.rest.replace(builtin_options_2_type=21)
    assert source is net.model.subgraphs[0].inputs[0]
    return net.model


@pytest.mark.parametrize("deep", [False, True])
def test_composites_are_written_out(deep: bool) -> None:
    model = composite(deep)
    results = retargeted(model)
    assert codes(model) == [("MUL", 1), ("ADD", 1)] and len(model.subgraphs) == 1
    assert any("our.sum0 written out: 2 operator(s)" in line for line in said(results))
    (output,) = model.subgraphs[0].outputs
    assert output.name == "out0" and model.subgraphs[0].operators[-1].outputs == [output]


def test_a_composite_that_cannot_be_written_out_is_named() -> None:
    model = composite()
    model.subgraphs[1].outputs = list(model.subgraphs[1].inputs)
    with pytest.raises(UnsupportedError, match=r"no STABLEHLO_COMPOSITE \(first in 2.17"):
        retargeted(model)


def test_a_flawed_composite_is_not_written_out_again_and_again() -> None:
    model = composite()
    main, body = model.subgraphs
    body.operators.reverse()
    main.operators *= 2
    with pytest.raises(UnsupportedError, match=r"no STABLEHLO_COMPOSITE \(first in 2.17"):
        retargeted(model)


def test_a_flawed_operator_is_not_replaced_by_several() -> None:
    net = Net()
    source = net.input("in", (1, 4))
    output = net.add("GELU", [source], "out", (1, 4))
    net.output(output)
    net.model.subgraphs[0].operators[0].inputs = [output]
    with pytest.raises(UnsupportedError, match="no GELU"):
        retargeted(net.model, "tflm")


def judged(model: Model, folder: Path, target: str, **judging: object) -> Report:
    source = folder / "in.tflite"
    save(model, source, force=True)
    settings = Judging(samples=2, **judging)  # type: ignore[arg-type]
    return rewrite(source, passes=[Retarget(target=target)], judging=settings)


@needs_old
@pytest.mark.runtime
@pytest.mark.parametrize("make", [dense, table, composite])
def test_the_old_runtime_judges(make: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert callable(make)
    report = judged(make(), tmp_path, "2.14", runtime=("litert", f"python:{OLD}"))
    assert report.verdict is not None and report.verdict.passed
    assert [one.judge.version[:4] for one in report.verdict.each if one.judge] == ["2.3.", "2.14"]
    assert not any("not run on" in note for note in report.notes)


@needs_micro
@pytest.mark.runtime
def test_micro_judges(tmp_path: Path) -> None:
    report = judged(dense(), tmp_path, "tflm")
    assert report.verdict is not None and report.verdict.passed
    assert [one.judge.runtime for one in report.verdict.each if one.judge] == [
        "ai-edge-litert",
        "tflite-micro",
    ]
    assert report.verdict.each[1].judge is not None
    assert report.verdict.each[1].judge.resolver == "its own kernels"


@needs_micro
@pytest.mark.runtime
def test_what_fails_there_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As if the table of kernels were wrong.
    monkeypatch.setattr("tfl_rewrite.kernels.platforms.micro_obstacle", lambda operator: "")
    monkeypatch.setattr("tfl_rewrite.passes.retarget.micro_obstacles", lambda model: ())
    with pytest.raises(
        RewriteFailed, match=r"does not run there: .*FLOAT32 with filter type: INT8"
    ) as caught:
        judged(dense(), tmp_path, "tflm")
    assert caught.value.report.outcome == "failed"


@pytest.mark.runtime
@pytest.mark.parametrize(
    ("target", "name", "remedy"),
    [
        ("2.14", "runtime 2.14", "python:PATH"),
        ("tflm", "TFLite Micro", "pip install tflite-micro"),
    ],
)
def test_a_runtime_that_is_not_here_is_what_was_not_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, name: str, remedy: str
) -> None:
    monkeypatch.delenv("TFL_REWRITE_OLD_RUNTIME_PYTHON", raising=False)
    monkeypatch.setattr("tfl_rewrite.pipeline.judges.importlib.util.find_spec", lambda name: None)
    report = judged(dense(), tmp_path, target)
    assert report.verdict is not None and report.verdict.passed
    assert report.verdict.not_judged[0] == f"{name}, which it was made for"
    (note,) = (note for note in report.notes if note.startswith(f"not run on {name}, which it was made for"))
    assert remedy in note
    with pytest.raises(RewriteFailed, match=f"could not be verified.*not run on {name}") as caught:
        judged(dense(), tmp_path, target, mode="require")
    assert caught.value.exit_code == 3 and caught.value.report.outcome == "failed"
    # What needs no change was not judged by anything.
    ready = report.model
    assert ready is not None
    report = judged(ready, tmp_path, target)
    assert report.outcome == "unchanged" and report.verdict is None
    assert (report.unverified or "").startswith(f"not run on {name}")
    with pytest.raises(RewriteFailed, match=f"could not be verified.*not run on {name}"):
        judged(ready, tmp_path, target, mode="require")
    assert judged(ready, tmp_path, target, mode="off").unverified is None


def test_micro_is_told_the_shapes_that_tensors_have() -> None:
    net = Net()
    source = net.input("in", (2, 3))
    inner = net.add("RELU", [source], "inner", ())
    inner.shape = None
    net.output(net.add("ABS", [inner], "out", (2, 3)))
    results = retargeted(net.model, "tflm")
    assert inner.shape == (2, 3)
    assert said(results) == ["inner: 1 shape(s) written down as they are at run time"]
    assert said(retargeted(net.model, "tflm")) == []
    net.graph.outputs[0].shape = None
    assert said(retargeted(net.model, "tflm")) == ["out: 1 shape(s) written down as they are at run time"]
    assert net.graph.outputs[0].shape == (2, 3)
    # Callers would see another shape.
    net.graph.outputs[0].shape = (3, 2)
    with pytest.raises(UnsupportedError, match=r"output 'out' has the shape \[2, 3\]"):
        retargeted(net.model, "tflm")


@pytest.mark.runtime
def test_micro_wants_constants_of_shapes() -> None:
    net = Net()
    source = net.input("in", (1, 2, 2, 3))
    shape = net.add("SHAPE", [source], "shape", (4,), dtype=np.int32)
    bounds = [net.constant(name, np.array(at, np.int32)) for name, at in (("a", [1]), ("b", [3]), ("c", [1]))]
    sizes = net.add("STRIDED_SLICE", [shape, *bounds], "sizes", (2,), dtype=np.int32)
    twice = net.add(
        "MUL", [sizes, net.constant("two", np.array([2], np.int32))], "twice", (2,), dtype=np.int32
    )
    net.output(net.add("RESIZE_NEAREST_NEIGHBOR", [source, twice], "out", (1, 4, 4, 3)))
    retargeted(net.model, "tflm")
    assert [name for name, _ in codes(net.model)] == ["RESIZE_NEAREST_NEIGHBOR"]


def test_micro_computes_in_int8_what_was_uint8() -> None:
    net = UnsignedNet(7)
    net.output(net.convolution(net.source(), net.random.integers(90, 216, (4, 1, 1, 2)), 90))
    model = net.model
    results = retargeted(model, "tflm")
    assert next(result.name for result in results if result.modified) == "retarget-types"
    kinds = {item.dtype_name for _, operator in model.operators() for item in operator.inputs if item}
    assert "INT8" in kinds and [item.dtype_name for item in model.subgraphs[0].inputs] == ["UINT8"]


def deconvolution(padding: int = 1) -> Model:
    net = Net()
    net.output(net.deconvolution(net.input("in", (1, 4, 4, 3)), "out", padding))
    return net.model


@needs_micro
@pytest.mark.runtime
@pytest.mark.parametrize("padding", [1, 2])
def test_a_custom_deconvolution_is_a_builtin_one(padding: int, tmp_path: Path) -> None:
    model = deconvolution(padding)
    report = judged(model, tmp_path, "tflm")
    assert report.verdict is not None and report.verdict.passed and len(report.verdict.each) == 2
    retargeted(model)
    assert codes(model) == [("TRANSPOSE_CONV", 3)]


def test_a_custom_operator_of_unknown_options_stays() -> None:
    with pytest.raises(UnsupportedError, match="no Convolution2DTransposeBias that it computes"):
        retargeted(deconvolution(7))


@needs_micro
@pytest.mark.runtime
def test_micro_runs_the_main_subgraph_alone(tmp_path: Path) -> None:
    model = dense()
    net = Net()
    net.model = model
    net.graph = model.subgraphs[0]
    net.sign("main")
    net.next_subgraph("other")
    source = net.input("x", (1, 3))
    net.output(net.add("ABS", [source], "y", (1, 3)))
    net.sign("other")
    report = judged(model, tmp_path, "tflm")
    assert report.verdict is not None and report.verdict.passed
    assert "signatures 'other': TFLite Micro runs the main subgraph alone" in report.verdict.not_judged
    # Its kernel asks for memory that nobody plans there.
    net.output(net.add("SUM", [source, net.constant("axis", np.array([1], np.int32))], "z", (1,)))
    with pytest.raises(UnsupportedError, match=r"ends on SUM in a subgraph.*signatures --extract KEY"):
        judged(model, tmp_path, "tflm")
    save(model, tmp_path / "sum.tflite")
    allowed = Retarget(target="tflm", allow_missing=True)
    with pytest.raises(RewriteFailed, match=r"does not run there.*'other'.*signatures --extract KEY"):
        rewrite(tmp_path / "sum.tflite", tmp_path / "no.tflite", [allowed])


@needs_old
@pytest.mark.runtime
def test_what_does_not_run_here_is_run_there_alone(tmp_path: Path) -> None:
    model = deconvolution()
    model.operator_codes[0].custom = "TheirOwn"
    report = judged(model, tmp_path, "2.14", runtime=("litert", f"python:{OLD}"))
    assert report.outcome == "unchanged" and report.unverified is not None
    assert any(note.startswith("it does not run there either: ") for note in report.notes)


def test_the_shape_of_a_constant_is_never_written_anew() -> None:
    net = Net()
    source = net.input("in", (2, 3))
    inner = net.add("RELU", [source], "inner", (2, 2))
    inner.buffer = net.buffer(bytes(16))
    net.output(net.add("ABS", [inner], "out", (2, 2)))
    run_passes(net.model, [Retarget(target="tflm", allow_missing=True)])
    assert inner.shape == (2, 2)


def coarse(scales: int = 1) -> Model:
    """A hybrid FULLY_CONNECTED whose activations are small beside one that it gives no weight."""
    net = Net(3)
    source = net.input("in", (1, 30))
    spread = net.constant("spread", np.array([[60.0] + [1.0] * 29], np.float32))
    values = net.random.integers(-127, 128, (8, 30))
    values[:, 0], values[0, 1] = 0, 127
    weight = integers(net, "w", values, [0.01 * (at + 1) for at in range(scales)])
    wide = net.add("MUL", [source, spread], "wide", (1, 30))
    net.output(net.add("FULLY_CONNECTED", [wide, weight, None], "out", (1, 8), version=12))
    return net.model


@needs_old
@pytest.mark.runtime
def test_kernels_that_round_activations_may_round_them_otherwise_there(tmp_path: Path) -> None:
    report = judged(coarse(), tmp_path, "2.14", runtime=("litert", f"python:{OLD}"), resolver=("default",))
    assert report.verdict is not None and report.verdict.passed
    (note,) = (item for item in report.verdict.each[1].notes if "hybrid kernels round activations" in item)
    assert "beside the same weights as floats it keeps" in note and "is less than 20 dB" in note


@needs_old
@pytest.mark.runtime
def test_kernels_that_lose_more_there_than_rounding_does_are_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tfl_rewrite.pipeline.judges._SIGN_DB", -60.0)
    with pytest.raises(RewriteFailed, match="not right in the runtime that it is for"):
        judged(coarse(), tmp_path, "2.14", runtime=("litert", f"python:{OLD}"), resolver=("default",))


@pytest.mark.runtime
def test_kernels_of_sparse_weights_add_in_another_order(
    fixtures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tfl_rewrite.pipeline.judges._runtimes", lambda platform, settings: ())
    judging = Judging(samples=2)
    report = rewrite(fixtures / "sparse.tflite", passes=[Retarget(target="tflm")], judging=judging)
    assert "sparse constants: 1 made dense" in said(list(report.results))
    assert report.verdict is not None and report.verdict.passed
    assert 120 < report.verdict.worst_snr() < np.inf


@pytest.mark.runtime
@pytest.mark.parametrize("target", ["2.14", "tflm"])
def test_float_kernels_are_right_where_hybrid_ones_lose_much(
    tmp_path: Path, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tfl_rewrite.pipeline.judges._runtimes", lambda platform, settings: ())
    report = judged(coarse(scales=8), tmp_path, target)
    assert report.verdict is not None and report.verdict.passed
    assert "with floats for weights of hybrid kernels" in report.verdict.notes[0]
    assert "is less than 20 dB" in report.verdict.notes[0]
    assert report.verdict.worst_snr() > 100


@pytest.mark.runtime
def test_other_weights_are_wrong_however_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = coarse(scales=8)

    def spoiled(*arguments: object, **options: object) -> object:
        done = recoding.recode(*arguments, **options)  # type: ignore[arg-type]
        weight = named(arguments[0], "w")  # type: ignore[arg-type]
        weight.buffer.blob = OwnedBlob((data_of(weight) // 2).tobytes())
        return done

    monkeypatch.setattr("tfl_rewrite.passes.retarget.recode", spoiled)
    with pytest.raises(RewriteFailed, match="differs too much"):
        judged(model, tmp_path, "2.14")
