"""What each option means, and the rules that no committed model shows."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tfl_rewrite import UsageError, load, save
from tfl_rewrite.editing.base import PassResult, run_passes
from tfl_rewrite.kernels import runtimes
from tfl_rewrite.kernels.runtimes import parse_runtime
from tfl_rewrite.model import dtypes
from tfl_rewrite.model.blob import OwnedBlob
from tfl_rewrite.model.ir import Model, OperatorCode, operator_number
from tfl_rewrite.model.lower import lower
from tfl_rewrite.passes.quantize_weights import QuantizeWeights

from ..nets import Array, Net, codes, data_of, decibels, dequantized, named, readers, run


def written(net: Net, path: Path) -> Path:
    save(net.model, path)
    return path


def quantized(source: Path, target: Path, **options: Any) -> tuple[Model, PassResult]:
    model = load(source)
    result = run_passes(model, [QuantizeWeights(**options)])[0]
    save(model, target)
    return load(target), result


def rules(result: PassResult) -> dict[str, str]:
    return {skip.where: skip.rule for skip in result.skips}


def schemes(result: PassResult) -> dict[str, str]:
    return {change.where: change.scheme for change in result.changes}


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    """Three dense layers, a table that MUL reads, and a convolution-free rest."""
    net = Net()
    source = net.input("x", (4, 40))
    first = net.dense(source, net.weights("first", (50, 40)), "a")
    second = net.dense(first, net.weights("second", (40, 50)), "b")
    scaled = net.add("MUL", [second, net.weights("table", (4, 40))], "c", (4, 40))
    wide = net.add("MUL", [scaled, net.weights("wide", (40, 1, 40))], "d", (40, 4, 40))
    flat = net.add("RESHAPE", [wide], "e", (160, 40), new_shape=_ints((160, 40)))
    net.output(net.dense(flat, net.weights("last", (33, 40)), "y"))
    net.sign("serving_default")
    return written(net, tmp_path / "chain.tflite")


def _ints(values: tuple[int, ...]) -> Any:
    from tfl_rewrite.flatbuf.record import INT32, ScalarVector

    return ScalarVector.of(INT32, values)


# -- Scheme, granularity, selection -------------------------------------------------------------------------


def test_auto(chain: Path, tmp_path: Path) -> None:
    _, result = quantized(chain, tmp_path / "out.tflite")
    assert schemes(result) == {"first": "hybrid", "second": "hybrid", "last": "hybrid", "wide": "dequantize"}
    assert rules(result) == {"table": "small"}


def test_hybrid_only(chain: Path, tmp_path: Path) -> None:
    after, result = quantized(chain, tmp_path / "out.tflite", scheme="hybrid")
    assert schemes(result) == {"first": "hybrid", "second": "hybrid", "last": "hybrid"}
    assert rules(result) == {"table": "small", "wide": "no-hybrid-kernel"}
    assert "DEQUANTIZE" not in {name for name, _ in codes(after)}


def test_dequantize_only(chain: Path, tmp_path: Path) -> None:
    after, result = quantized(chain, tmp_path / "out.tflite", scheme="dequantize")
    assert set(schemes(result).values()) == {"dequantize"} and len(result.changes) == 4
    assert codes(after).count(("FULLY_CONNECTED", 1)) == 3
    for change in result.changes:
        assert readers(after, named(after, f"{change.where}_int8")) == ["DEQUANTIZE"]


def test_one_scale_per_tensor(chain: Path, tmp_path: Path) -> None:
    after, result = quantized(chain, tmp_path / "out.tflite", granularity="tensor")
    assert all(change.axis is None and change.channels == 1 for change in result.changes)
    assert ("FULLY_CONNECTED", 9) in codes(after) and ("DEQUANTIZE", 2) in codes(after)


@pytest.mark.parametrize(
    ("options", "changed"),
    [
        ({"include": ["^first$"]}, {"first"}),
        ({"include": ["first", "last"]}, {"first", "last"}),
        ({"include": ["^MUL$"]}, {"wide"}),
        ({"exclude": ["FULLY"]}, {"wide"}),
        ({"exclude": ["^s"]}, {"first", "last", "wide"}),
        ({"include": ["t"], "exclude": ["MUL", "first"]}, {"last"}),
        ({"include": ["nothing is called so"]}, set()),
        ({"min_elements": 160}, {"first", "second", "last", "wide", "table"}),
        ({"min_elements": 1601}, {"first", "second"}),
        ({"min_elements": 2001}, set()),
        ({"keep_first_last": True}, {"second", "wide"}),
        ({"keep_first_last": True, "exclude": ["first"]}, {"second", "wide"}),
    ],
)
def test_selection(chain: Path, tmp_path: Path, options: dict[str, Any], changed: set[str]) -> None:
    _, result = quantized(chain, tmp_path / "out.tflite", **options)
    expected = changed - {"table"} if result.modified and "min_elements" not in options else changed
    assert set(schemes(result)) == expected


def test_reasons_of_selection(chain: Path, tmp_path: Path) -> None:
    _, result = quantized(chain, tmp_path / "a.tflite", include=["first", "second"], exclude=["second"])
    found = {skip.where: (skip.rule, skip.reason) for skip in result.skips}
    assert found["second"] == ("excluded", "excluded by 'second'")
    assert found["wide"][0] == found["last"][0] == "not-included"
    _, result = quantized(chain, tmp_path / "b.tflite", keep_first_last=True)
    assert rules(result)["first"] == rules(result)["last"] == "first-or-last"
    for skip in result.skips:
        assert skip.to_dict()["outcome"] == "kept" and skip.to_dict()["reason"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"scheme": "best"}, "auto, hybrid, dequantize"),
        ({"granularity": "blocks"}, "channel"),
        ({"min_elements": 0}, "1 or more"),
        ({"include": ["("]}, "regular expression"),
        ({"exclude": ["*"]}, "regular expression"),
        ({"min_runtime": "new"}, "2.14"),
        ({"min_runtime": "2"}, "2.14"),
        ({"min_runtime": "litert-0.1"}, "litert-"),
        ({"min_runtime": "litert-"}, "litert-"),
        ({"min_runtime": "litert-99.0"}, "newer than litert-2.3.0, the newest that is known"),
        ({"min_runtime": "21.4"}, "newer than 2.23, the newest that is known"),
    ],
)
def test_wrong_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=re.escape(words)):
        QuantizeWeights(**options)


def test_runtimes_by_name() -> None:
    assert parse_runtime(None) == runtimes.NEWEST_RUNTIME == parse_runtime("litert-2.3.0")
    assert parse_runtime("2.14") == parse_runtime("2.14.0") == (2, 14)
    assert parse_runtime("litert-1.3") == runtimes.LITERT_RUNTIME["1.1.0"]
    assert parse_runtime("litert-2.3") == parse_runtime("litert-2.3.9") == runtimes.NEWEST_RUNTIME


# -- Runtimes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("runtime", "version", "axis"),
    [("2.16", 9, None), ("2.17", 12, 0), ("2.3", 9, None), ("2.14", 9, None), (None, 12, 0)],
)
def test_dense_by_runtime(
    chain: Path, tmp_path: Path, runtime: str | None, version: int, axis: int | None
) -> None:
    after, result = quantized(chain, tmp_path / "out.tflite", scheme="hybrid", min_runtime=runtime)
    assert codes(after).count(("FULLY_CONNECTED", version)) == 3
    assert {change.axis for change in result.changes} == {axis}


def test_too_old_for_anything(chain: Path, tmp_path: Path) -> None:
    _, result = quantized(chain, tmp_path / "out.tflite", min_runtime="1.13")
    assert result.changes == () and set(rules(result).values()) == {"runtime", "small"}


def test_2_2_has_dequantize_only(chain: Path, tmp_path: Path) -> None:
    after, result = quantized(chain, tmp_path / "out.tflite", min_runtime="2.2")
    assert set(schemes(result).values()) == {"dequantize"}
    assert {change.axis for change in result.changes} == {None}
    assert ("DEQUANTIZE", 2) in codes(after) and ("FULLY_CONNECTED", 1) in codes(after)


@pytest.mark.parametrize("runtime", ["1.14", "2.3", "2.7", "2.14", "2.17", "2.19", None])
def test_stamps_are_of_the_runtime_asked_for(fixtures: Path, tmp_path: Path, runtime: str | None) -> None:
    """No operator of the output is newer than asked for, unless it was so in the input."""
    limit = parse_runtime(runtime)
    for path in sorted(fixtures.glob("*.tflite")):
        before = set(codes(load(path)))
        after, _ = quantized(path, tmp_path / "out.tflite", min_runtime=runtime)
        (tmp_path / "out.tflite").unlink()
        for pair in set(codes(after)) - before:
            text = runtimes.version_text(*pair)
            assert text is not None
            assert tuple(map(int, text.split(".")))[:2] <= limit, (path.stem, pair)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("1.5.0", "2.17.0"),
        ("2.17.0", "2.17.0"),
        ("2.18.0", "2.18.0"),
        ("", "2.17.0"),
        ("3.0", "3.0"),
        ("2.9.0", "2.17.0"),
    ],
)
def test_minimum_runtime_is_raised_and_never_lowered(tmp_path: Path, said: str, expected: str) -> None:
    net = Net()
    net.output(net.dense(net.input("x", (1, 64)), net.weights("w", (64, 64)), "y"))
    net.metadata("other", b"kept")
    net.metadata("min_runtime_version", said.encode().ljust(16, b"\0"))
    source = written(net, tmp_path / "in.tflite")
    after, result = quantized(source, tmp_path / "out.tflite")
    entry = after.metadata_named("min_runtime_version")
    assert entry is not None and entry.buffer.blob is not None
    assert bytes(entry.buffer.blob.view()) == expected.encode().ljust(16, b"\0")
    assert len(result.notes) == (said != expected)
    other = after.metadata_named("other")
    assert other is not None and other.buffer.blob is not None and bytes(other.buffer.blob.view()) == b"kept"


def test_minimum_runtime_in_a_shared_buffer(tmp_path: Path) -> None:
    net = Net()
    net.output(net.dense(net.input("x", (1, 64)), net.weights("w", (64, 64)), "y"))
    net.metadata("min_runtime_version", b"1.5.0".ljust(16, b"\0"))
    net.metadata("twin", b"")
    net.model.metadata[1].buffer = net.model.metadata[0].buffer
    after, _ = quantized(written(net, tmp_path / "in.tflite"), tmp_path / "out.tflite")
    twin, entry = after.metadata_named("twin"), after.metadata_named("min_runtime_version")
    assert (
        twin is not None
        and twin.buffer.blob is not None
        and entry is not None
        and entry.buffer.blob is not None
    )
    assert bytes(twin.buffer.blob.view()).startswith(b"1.5.0")
    assert bytes(entry.buffer.blob.view()).startswith(b"2.17.0")


def test_a_plan_of_tensors_by_position_goes_when_tensors_come(chain: Path, tmp_path: Path) -> None:
    model = load(chain)
    from tfl_rewrite.model.ir import Buffer, Metadata

    model.buffers.append(Buffer(OwnedBlob(b"\1" * 64)))
    model.metadata.append(Metadata("OfflineMemoryAllocation", model.buffers[-1]))
    save(model, tmp_path / "in.tflite")
    kept, _ = quantized(tmp_path / "in.tflite", tmp_path / "a.tflite", scheme="hybrid")
    assert kept.metadata_named("OfflineMemoryAllocation") is not None
    dropped, result = quantized(tmp_path / "in.tflite", tmp_path / "b.tflite")
    assert dropped.metadata_named("OfflineMemoryAllocation") is None
    assert any("OfflineMemoryAllocation" in note for note in result.notes)


# -- Operator codes -----------------------------------------------------------------------------------------


def test_code_is_cloned_only_when_needed(chain: Path, tmp_path: Path) -> None:
    """All three operators change: one code. One of them changes: a second code beside the first."""
    all_, _ = quantized(chain, tmp_path / "a.tflite", scheme="hybrid")
    assert [(c.name, c.version) for c in all_.operator_codes] == [
        ("FULLY_CONNECTED", 12),
        ("MUL", 1),
        ("RESHAPE", 1),
    ]
    one, _ = quantized(chain, tmp_path / "b.tflite", include=["^second$"])
    assert [(c.name, c.version) for c in one.operator_codes] == [
        ("FULLY_CONNECTED", 1),
        ("MUL", 1),
        ("RESHAPE", 1),
        ("FULLY_CONNECTED", 12),
    ]
    assert [version for name, version in codes(one) if name == "FULLY_CONNECTED"] == [1, 12, 1]


def test_a_higher_version_stays(tmp_path: Path) -> None:
    net = Net()
    source = net.input("x", (1, 64))
    net.output(
        net.add("FULLY_CONNECTED", [source, net.weights("w", (64, 64)), None], "y", (1, 64), version=13)
    )
    after, _ = quantized(written(net, tmp_path / "in.tflite"), tmp_path / "out.tflite")
    assert codes(after) == [("FULLY_CONNECTED", 13)]


def test_unused_codes_stay(tmp_path: Path) -> None:
    net = Net()
    net.model.operator_codes.append(OperatorCode(operator_number("SOFTMAX"), None, 2))
    net.output(net.dense(net.input("x", (1, 64)), net.weights("w", (64, 64)), "y"))
    after, _ = quantized(written(net, tmp_path / "in.tflite"), tmp_path / "out.tflite")
    assert [(c.name, c.version) for c in after.operator_codes] == [("SOFTMAX", 2), ("FULLY_CONNECTED", 12)]


def test_codes_that_lost_their_last_operator_go(tmp_path: Path) -> None:
    net = Net()
    weight = net.half("w", np.random.default_rng(0).standard_normal((64, 64)))
    net.output(net.dense(net.input("x", (1, 64)), weight, "y"))
    after, result = quantized(written(net, tmp_path / "in.tflite"), tmp_path / "out.tflite")
    assert schemes(result) == {"w": "hybrid"}
    assert [(c.name, c.version) for c in after.operator_codes] == [("FULLY_CONNECTED", 12)]


def test_new_codes_carry_both_fields(tmp_path: Path) -> None:
    net = Net()
    source = net.input("x", (40, 40))
    net.output(net.add("MUL", [source, net.weights("w", (40, 40))], "y", (40, 40)))
    path = written(net, tmp_path / "in.tflite")
    model = load(path)
    for code in model.operator_codes:
        code.rest = code.rest.replace(builtin_code=None)
    model.origin = None
    save(model, tmp_path / "old.tflite")
    after, _ = quantized(tmp_path / "old.tflite", tmp_path / "out.tflite")
    rows = {
        code.name: row for code, row in zip(after.operator_codes, lower(after)["operator_codes"], strict=True)
    }
    assert "builtin_code" not in rows["MUL"] and rows["MUL"]["deprecated_builtin_code"] == operator_number(
        "MUL"
    )
    assert rows["DEQUANTIZE"]["builtin_code"] == rows["DEQUANTIZE"]["deprecated_builtin_code"] == 6


# -- Constants that several read ----------------------------------------------------------------------------


@pytest.mark.runtime
def test_channel_axes_that_disagree(tmp_path: Path) -> None:
    """FULLY_CONNECTED wants rows, BATCH_MATMUL one scale: never two meanings for one set of integers."""
    net = Net()
    source = net.input("x", (40, 40))
    shared = net.weights("shared", (40, 40))
    dense = net.dense(source, shared, "dense")
    product = net.add("BATCH_MATMUL", [source, shared], "product", (40, 40))
    net.output(dense)
    net.output(product)
    source_path = written(net, tmp_path / "in.tflite")
    for options in ({}, {"granularity": "tensor"}, {"min_runtime": "2.14"}, {"scheme": "hybrid"}):
        (tmp_path / "out.tflite").unlink(missing_ok=True)
        after, result = quantized(source_path, tmp_path / "out.tflite", **options)
        hybrid = [
            operator.code.name
            for _, operator in after.operators()
            if operator.code.name != "DEQUANTIZE"
            and any(t is not None and t.dtype == dtypes.INT8.value for t in operator.inputs)
        ]
        assert len(hybrid) <= 1
        inputs = {"x": np.random.default_rng(1).standard_normal((40, 40)).astype(np.float32)}
        before, now = run(source_path, inputs), run(tmp_path / "out.tflite", inputs)
        for name, values in before.items():
            assert decibels(values, now[name]) > 25
        assert result.changes or options == {"scheme": "hybrid"}


@pytest.mark.runtime
def test_embedding_that_a_dense_layer_reads_too(tmp_path: Path) -> None:
    net = Net()
    positions = net.input("ids", (6,), np.int32)
    table = net.weights("table", (80, 40))
    found = net.add("GATHER", [table, positions], "found", (6, 40), axis=0)
    net.output(net.dense(found, table, "scores"))
    source = written(net, tmp_path / "in.tflite")
    inputs = {"ids": np.array([0, 79, 3, 3, 41, 7], np.int32)}
    expected = run(source, inputs)
    for options in ({}, {"granularity": "tensor"}, {"min_runtime": "2.14"}, {"scheme": "dequantize"}):
        (tmp_path / "out.tflite").unlink(missing_ok=True)
        after, result = quantized(source, tmp_path / "out.tflite", **options)
        assert [change.where for change in result.changes] == ["table"]
        buffers = {
            id(t.buffer) for t in after.subgraphs[0].tensors if t.dtype == dtypes.INT8.value and t.is_constant
        }
        assert len(buffers) == 1
        assert decibels(expected["scores"], run(tmp_path / "out.tflite", inputs)["scores"]) > 30


@pytest.mark.runtime
def test_columns_that_are_looked_up(tmp_path: Path) -> None:
    """A dense weight then has one scale for all; a depthwise filter cannot, so the lookup reads floats."""
    for kind, scheme in (("dense", "hybrid+lookup"), ("depthwise", "hybrid+dequantize")):
        net = Net()
        positions = net.input("ids", (6,), np.int32)
        if kind == "dense":
            weight = net.weights("w", (80, 40))
            net.output(net.dense(net.input("x", (1, 40)), weight, "y"))
            net.output(net.add("GATHER", [weight, positions], "found", (80, 6), axis=1))
        else:
            values = net.random.standard_normal((1, 3, 3, 128)) * np.geomspace(0.5, 1, 128)
            weight = net.constant("w", values.astype(np.float32))
            bias = net.constant("b", np.zeros(128, np.float32))
            image = net.input("x", (1, 5, 5, 128))
            options = {"stride_w": 1, "stride_h": 1, "depth_multiplier": 1}
            net.output(net.add("DEPTHWISE_CONV_2D", [image, weight, bias], "y", (1, 5, 5, 128), **options))
            net.output(net.add("GATHER", [weight, positions], "found", (1, 3, 3, 6), axis=3))
        source, target = written(net, tmp_path / f"{kind}.tflite"), tmp_path / f"{kind}.out.tflite"
        _, result = quantized(source, target)
        assert schemes(result) == {"w": scheme}
        shape = load(source).subgraphs[0].inputs[1].shape or ()
        inputs = {
            "ids": np.arange(6, dtype=np.int32),
            "x": net.random.standard_normal(shape).astype(np.float32),
        }
        before, now = run(source, inputs), run(target, inputs)
        assert all(decibels(before[name], now[name]) > 30 for name in before)


def test_bytes_shared_with_what_stays(tmp_path: Path) -> None:
    """A float32 constant whose bytes another tensor reads as integers, or that metadata names, stays."""
    net = Net()
    weight = net.weights("w", (64, 64))
    alias = net.tensor("alias", (64, 64), np.int32, weight.buffer)
    source = net.input("x", (1, 64))
    net.output(net.dense(source, weight, "y"))
    net.output(
        net.add(
            "GATHER", [alias, net.constant("at", np.array([3], np.int32))], "row", (1, 64), dtype=np.int32
        )
    )
    _, result = quantized(written(net, tmp_path / "in.tflite"), tmp_path / "out.tflite")
    assert result.changes == () and rules(result)["w"] == "shared"
    reason = next(skip.reason for skip in result.skips if skip.where == "w")
    assert "alias" in reason and "INT32" in reason

    other = Net()
    weight = other.weights("w", (64, 64))
    other.output(other.dense(other.input("x", (1, 64)), weight, "y"))
    other.metadata("points-at-it", b"")
    other.model.metadata[0].buffer = weight.buffer
    _, result = quantized(written(other, tmp_path / "in2.tflite"), tmp_path / "out2.tflite")
    assert result.changes == () and rules(result)["w"] == "shared"


def test_what_a_caller_sees_stays(tmp_path: Path) -> None:
    net = Net()
    weight = net.weights("w", (64, 64))
    net.output(net.dense(net.input("x", (1, 64)), weight, "y"))
    net.output(weight)
    net.weights("nobody", (64, 64))
    _, result = quantized(written(net, tmp_path / "in.tflite"), tmp_path / "out.tflite")
    assert result.changes == () and rules(result) == {"w": "interface", "nobody": "unused"}


def test_custom_operators_keep_their_constants(tmp_path: Path) -> None:
    net = Net()
    net.output(net.dense(net.input("x", (1, 64)), net.weights("w", (64, 64)), "y"))
    net.model.operator_codes[0].builtin = operator_number("CUSTOM")
    net.model.operator_codes[0].custom = "MyOp"
    net.graph.operators[0].options = None
    net.graph.operators[0].rest = net.graph.operators[0].rest.replace(builtin_options_type=None)
    _, result = quantized(written(net, tmp_path / "in.tflite"), tmp_path / "out.tflite")
    assert rules(result) == {"w": "custom"} and "MyOp" in result.skips[0].reason


@pytest.mark.parametrize("size", [63, 64, 1023, 1024])
def test_thresholds_of_a_small_model(tmp_path: Path, size: int) -> None:
    """Weights of hybrid kernels: 64 elements in a small model; what only DEQUANTIZE reads: 1,024."""
    net = Net()
    source = net.input("x", (1, size))
    dense = net.dense(source, net.weights("w", (1, size)), "y")
    net.output(dense)
    net.output(net.add("MUL", [source, net.weights("m", (1, size))], "z", (1, size)))
    _, result = quantized(written(net, tmp_path / "in.tflite"), tmp_path / "out.tflite")
    assert ("w" in schemes(result)) == (size >= 64)
    assert ("m" in schemes(result)) == (size >= 1024)


def test_threshold_grows_with_the_model(tmp_path: Path) -> None:
    net = Net()
    source = net.input("x", (1, 400))
    net.output(net.dense(source, net.weights("big", (400, 400)), "y"))
    net.output(net.dense(source, net.weights("part", (1, 400)), "z"))
    source_path = written(net, tmp_path / "in.tflite")
    _, result = quantized(source_path, tmp_path / "out.tflite")
    # A four-hundredth of 160,400 is 401.
    assert schemes(result) == {"big": "hybrid"} and rules(result) == {"part": "small"}


def _recurrent(net: Net, units: int, inputs: int) -> None:
    source = net.input("x", (1, 3, inputs))
    state = net.tensor("state", (1, units))
    state.is_variable = True
    weights = [net.weights("w", (units, inputs)), net.weights("r", (units, units))]
    bias = net.constant("b", np.zeros(units, np.float32))
    net.output(
        net.add(
            "UNIDIRECTIONAL_SEQUENCE_RNN",
            [source, *weights, bias, state],
            "y",
            (1, 3, units),
            fused_activation_function=4,
        )
    )


def test_all_weights_of_a_cell_or_none(tmp_path: Path) -> None:
    """The kernel refuses a mixture or returns garbage: one excluded weight keeps the others from it."""
    net = Net()
    _recurrent(net, 40, 40)
    source = written(net, tmp_path / "in.tflite")
    after, result = quantized(source, tmp_path / "a.tflite")
    assert schemes(result) == {"w": "hybrid", "r": "hybrid"} and named(after, "state").is_variable
    after, result = quantized(source, tmp_path / "b.tflite", exclude=["^r$"])
    assert schemes(result) == {"w": "dequantize"}
    assert codes(after)[-1] == ("UNIDIRECTIONAL_SEQUENCE_RNN", 1)
    _, result = quantized(source, tmp_path / "c.tflite", exclude=["^r$"], scheme="hybrid")
    assert result.changes == () and rules(result)["w"] == "no-hybrid-kernel"
    reason = next(skip.reason for skip in result.skips if skip.where == "w")
    assert "'r'" in reason
    bad = data_of(named(load(source), "r")).copy()
    bad[0, 0] = np.nan
    model = load(source)
    named(model, "r").buffer.blob = OwnedBlob(bad.tobytes())
    save(model, tmp_path / "nan.tflite")
    _, result = quantized(tmp_path / "nan.tflite", tmp_path / "d.tflite")
    assert schemes(result) == {"w": "dequantize"} and rules(result)["r"] == "not-finite"


def test_small_weights_of_a_cell_go_with_the_large_ones(tmp_path: Path) -> None:
    net = Net()
    _recurrent(net, 8, 200)
    _, result = quantized(written(net, tmp_path / "in.tflite"), tmp_path / "out.tflite", min_elements=1000)
    assert schemes(result) == {"w": "hybrid", "r": "hybrid"}
    assert sum(change.saved for change in result.changes) > 0


def test_a_cell_too_small_to_gain(tmp_path: Path) -> None:
    """Weights that are judged together must gain together; the rest of the model still gains."""
    net = Net()
    _recurrent(net, 4, 4)
    other = net.input("z", (1, 64))
    net.output(net.dense(other, net.weights("dense", (64, 64)), "q"))
    _, result = quantized(written(net, tmp_path / "in.tflite"), tmp_path / "out.tflite", min_elements=16)
    assert schemes(result) == {"dense": "hybrid"}
    assert rules(result)["w"] == rules(result)["r"] == "not-smaller"


def test_equal_scales_are_one_scale(tmp_path: Path) -> None:
    """2.14 returns zeros for a convolution whose scales are all equal."""
    net = Net()
    values = np.random.default_rng(0).uniform(-1, 1, (16, 3, 3, 8)).astype(np.float32)
    values[:, 0, 0, 0] = 1
    source = net.input("x", (1, 9, 9, 8))
    weight, bias = net.constant("w", values), net.constant("b", np.zeros(16, np.float32))
    net.output(net.add("CONV_2D", [source, weight, bias], "y", (1, 9, 9, 16), stride_w=1, stride_h=1))
    after, result = quantized(written(net, tmp_path / "in.tflite"), tmp_path / "out.tflite")
    assert result.changes[0].axis is None and ("CONV_2D", 2) in codes(after)


# -- Edits that hybrid kernels need -------------------------------------------------------------------------


@pytest.mark.runtime
def test_convolution_gets_a_bias(fixtures: Path, tmp_path: Path) -> None:
    after, _ = quantized(fixtures / "conv_without_bias.tflite", tmp_path / "out.tflite")
    (operator,) = [operator for _, operator in after.operators()]
    assert len(operator.inputs) == 3 and operator.inputs[2] is not None
    assert np.array_equal(data_of(operator.inputs[2]), np.zeros(12, np.float32))
    inputs = {
        "x": np.random.default_rng(0).standard_normal(after.subgraphs[0].inputs[0].shape).astype(np.float32)
    }
    inputs = {after.subgraphs[0].inputs[0].name: inputs["x"]}
    assert all(np.isfinite(value).all() for value in run(tmp_path / "out.tflite", inputs).values())


@pytest.mark.parametrize("expected", [("FULLY_CONNECTED", True), ("SVDF", True), ("BATCH_MATMUL", True)])
def test_inputs_are_quantized_asymmetrically(
    fixtures: Path, tmp_path: Path, expected: tuple[str, bool]
) -> None:
    found = {}
    for name in ("dense", "svdf", "batch_matmul"):
        after, _ = quantized(fixtures / f"{name}.tflite", tmp_path / f"{name}.tflite")
        for _, operator in after.operators():
            found[operator.code.name] = operator.option("asymmetric_quantize_inputs")
    assert found[expected[0]] is expected[1]


# -- Lookups ------------------------------------------------------------------------------------------------


def _lookup_expected(path: Path, after: Model, target: Path) -> None:
    """Writes the float model whose table is what the int8 table means."""
    model = load(path)
    table = named(model, "table")
    details = named(after, "table").quantization if _has(after, "table") else None
    if details is not None:
        values = dequantized(named(after, "table"))
    else:
        integers = next(
            t for t in after.subgraphs[0].tensors if t.dtype == dtypes.INT8.value and t.is_constant
        )
        scale = next(t for t in after.subgraphs[0].tensors if t.is_constant and t.name.endswith("_scales"))
        values = data_of(integers).astype(np.float32) * data_of(scale)
    table.buffer.blob = OwnedBlob(values.astype(np.float32).tobytes())
    save(model, target, force=True)


def _has(model: Model, name: str) -> bool:
    return any(tensor.name == name for tensor in model.subgraphs[0].tensors)


@pytest.mark.runtime
@pytest.mark.parametrize("reference", [False, True], ids=["default", "reference"])
@pytest.mark.parametrize("options", [{}, {"granularity": "tensor"}, {"min_runtime": "2.14"}], ids=str)
@pytest.mark.parametrize(
    ("shape", "indices", "axis"),
    [
        ((200, 16), (7,), 0),
        ((200, 16), (), 0),
        ((200, 16), (2, 3), 0),
        ((200, 4, 8), (2, 3), 0),
        ((200, 4, 8), (2, 1, 3), 0),
        ((4, 500), (5,), 1),
        ((3000,), (5,), 0),
        ((50, 30, 2), (4,), 1),
    ],
)
def test_lookup_is_exact(
    tmp_path: Path,
    shape: tuple[int, ...],
    indices: tuple[int, ...],
    axis: int,
    options: dict[str, Any],
    reference: bool,
) -> None:
    """Nothing but the table is rounded: outputs are those of the float model with the rounded table."""
    net = Net(3)
    positions = net.input("ids", indices, np.int32)
    output = (*shape[:axis], *indices, *shape[axis + 1 :])
    net.output(net.add("GATHER", [net.weights("table", shape), positions], "found", output, axis=axis))
    source = written(net, tmp_path / "in.tflite")
    after, result = quantized(source, tmp_path / "out.tflite", **options)
    assert schemes(result) == {"table": "lookup"}
    _lookup_expected(source, after, tmp_path / "float.tflite")
    ids: Array = np.random.default_rng(5).integers(0, shape[axis], indices).astype(np.int32)
    got = run(tmp_path / "out.tflite", {"ids": ids}, reference=reference)
    expected = run(tmp_path / "float.tflite", {"ids": ids}, reference=reference)
    assert np.array_equal(got["found"], expected["found"])
    assert not np.array_equal(got["found"], run(source, {"ids": ids})["found"])


@pytest.mark.runtime
def test_lookup_of_a_number_of_rows_that_is_known_later(tmp_path: Path) -> None:
    from ai_edge_litert.interpreter import Interpreter

    net = Net(3)
    positions = net.input("ids", (1, 1), np.int32)
    positions.signature = (1, -1)
    found = net.add("GATHER", [net.weights("table", (200, 16)), positions], "found", (1, 1, 16), axis=0)
    found.signature = (1, -1, 16)
    net.output(found)
    source = written(net, tmp_path / "in.tflite")
    after, result = quantized(source, tmp_path / "out.tflite")
    assert schemes(result) == {"table": "lookup"}
    _lookup_expected(source, after, tmp_path / "float.tflite")
    ids = np.random.default_rng(5).integers(0, 200, (1, 9)).astype(np.int32)
    made = []
    for name in ("out", "float"):
        interpreter = Interpreter(str(tmp_path / f"{name}.tflite"))
        interpreter.resize_tensor_input(interpreter.get_input_details()[0]["index"], (1, 9))
        interpreter.allocate_tensors()
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], ids)
        interpreter.invoke()
        made.append(interpreter.get_tensor(interpreter.get_output_details()[0]["index"]))
    assert made[0].shape == (1, 9, 16) and np.array_equal(made[0], made[1])


@pytest.mark.runtime
def test_two_lookups_of_one_table(tmp_path: Path) -> None:
    net = Net(3)
    table = net.weights("table", (300, 16))
    for name in ("a", "b"):
        positions = net.input(f"ids_{name}", (4,), np.int32)
        net.output(net.add("GATHER", [table, positions], name, (4, 16), axis=0))
    source = written(net, tmp_path / "in.tflite")
    after, _ = quantized(source, tmp_path / "out.tflite")
    integers = [t for t in after.subgraphs[0].tensors if t.dtype == dtypes.INT8.value and t.is_constant]
    assert len({id(t.buffer) for t in integers}) == 1
    inputs = {"ids_a": np.arange(4, dtype=np.int32), "ids_b": np.arange(296, 300, dtype=np.int32)}
    before, now = run(source, inputs), run(tmp_path / "out.tflite", inputs)
    assert all(decibels(before[name], now[name]) > 35 for name in before)


@pytest.mark.runtime
def test_lookup_of_a_float16_table(tmp_path: Path) -> None:
    net = Net(3)
    positions = net.input("ids", (7,), np.int32)
    values = np.random.default_rng(1).standard_normal((300, 64))
    net.output(net.add("GATHER", [net.half("table", values), positions], "found", (7, 64), axis=0))
    source = written(net, tmp_path / "in.tflite")
    after, result = quantized(source, tmp_path / "out.tflite")
    assert schemes(result) == {"table": "lookup"}
    ids = {"ids": np.array([0, 299, 5, 5, 17, 2, 1], np.int32)}
    assert decibels(run(source, ids)["found"], run(tmp_path / "out.tflite", ids)["found"]) > 35
    assert not any(t.dtype == dtypes.FLOAT16.value for t in after.subgraphs[0].tensors)


def test_a_lookup_that_gives_out_a_result_keeps_its_output(tmp_path: Path) -> None:
    net = Net(3)
    positions = net.input("ids", (7,), np.int32)
    net.output(net.add("GATHER", [net.weights("table", (300, 16)), positions], "found", (7, 16), axis=0))
    net.sign("serving_default")
    after, _ = quantized(written(net, tmp_path / "in.tflite"), tmp_path / "out.tflite")
    (output,) = after.subgraphs[0].outputs
    assert (output.name, output.dtype, output.shape) == ("found", dtypes.FLOAT32.value, (7, 16))
    assert after.signatures[0].outputs[0][1] is output


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"include": ["w", "nosuch"]}, ["include 'nosuch' matches no constant; near it are "]),
        (
            {"exclude": ["dense/weigts"]},
            ["exclude 'dense/weigts' matches no constant; near it are dense/"],
        ),
        ({"exclude": ["^y$"]}, ["exclude '^y$' matches no constant"]),
        ({"exclude": ["FULLY_CONNECTED", "bias"]}, []),
        ({"exclude": ["dense/weights"]}, []),
    ],
)
def test_a_pattern_that_matches_no_constant_is_named(
    fixtures: Path, options: dict[str, list[str]], said: list[str]
) -> None:
    """It is no error: what is given for many models need not match in each."""
    result = run_passes(load(fixtures / "dense.tflite"), [QuantizeWeights(**options)])[0]
    notes = [note for note in result.notes if "matches no" in note]
    assert len(notes) == len(said) and all(map(str.startswith, notes, said)), notes
    assert not said or notes[0] in result.to_dict()["notes"]


@pytest.mark.parametrize("dtype", ["int8", "int6", "int4", "int2", "float16"])
@pytest.mark.parametrize("granularity", ["channel", "block:32"])
def test_a_second_run_finds_the_names_of_the_first(
    fixtures: Path, tmp_path: Path, dtype: str, granularity: str
) -> None:
    if dtype in ("int6", "float16") and granularity != "channel":
        pytest.skip("there are no such blocks")
    model = load(fixtures / "dense.tflite")
    options: dict[str, Any] = {"dtype": dtype, "granularity": granularity, "include": ["^dense/weights$"]}
    assert run_passes(model, [QuantizeWeights(scheme="dequantize", **options)])[0].changes
    save(model, tmp_path / "out.tflite")
    again = run_passes(load(tmp_path / "out.tflite"), [QuantizeWeights(**options)])[0]
    assert not any("matches no" in note for note in again.notes)
