"""Encodings other than int8, blocks, mixed precision, and rounders that plug in."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tfl_rewrite import UsageError, load, save
from tfl_rewrite.editing.base import PassResult, run_passes
from tfl_rewrite.kernels import runtimes
from tfl_rewrite.model.invariants import problems
from tfl_rewrite.model.ir import Model, Tensor
from tfl_rewrite.model.values import unpack
from tfl_rewrite.numerics.symmetric import Error, Float32
from tfl_rewrite.passes.dequantize import Dequantize
from tfl_rewrite.passes.quantize_weights import QuantizeWeights
from tfl_rewrite.weights.candidates import Candidate
from tfl_rewrite.weights.encoding import Encoding
from tfl_rewrite.weights.rounders import Emit, Rounder, Work

from ..nets import Array, Net, codes, decibels, named, run


def written(net: Net, path: Path) -> Path:
    save(net.model, path)
    return path


def passed(source: Path, target: Path, item: QuantizeWeights) -> tuple[Model, PassResult]:
    model = load(source)
    result = run_passes(model, [item])[0]
    save(model, target, force=True)
    return load(target), result


def quantized(source: Path, target: Path, **options: Any) -> tuple[Model, PassResult]:
    return passed(source, target, QuantizeWeights(**options))


def encodings(result: PassResult) -> dict[str, str]:
    return {change.where: f"{change.encoding} {change.scheme}" for change in result.changes}


def integers(tensor: Tensor) -> Array:
    bits = {"INT8": 8, "INT4": 4, "INT2": 2}[tensor.dtype_name]
    assert tensor.buffer.blob is not None
    return unpack(tensor.buffer.blob.view(), bits, tensor.elements)


def expanded(path: Path) -> Path:
    """The same file with the float32 values that its integers mean."""
    model = load(path)
    assert run_passes(model, [Dequantize()])[0].modified
    target = path.with_suffix(".expanded.tflite")
    save(model, target)
    return target


def agrees(path: Path, inputs: dict[str, Array], least: float) -> None:
    """The file computes what its integers mean, with both sets of kernels."""
    floats = expanded(path)
    for reference in (False, True):
        one, two = run(floats, inputs, reference=reference), run(path, inputs, reference=reference)
        for key, expected in one.items():
            assert decibels(expected, two[key]) >= least, (key, reference)


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A convolution, a dense layer, a table that is multiplied, one of odd size, and an embedding."""
    net = Net()
    image = net.input("x", (1, 6, 6, 8))
    bias = net.constant("bias", np.linspace(-1, 1, 16).astype(np.float32))
    kernel = net.weights("kernel", (16, 3, 3, 8))
    done = net.add("CONV_2D", [image, kernel, bias], "a", (1, 6, 6, 16), stride_w=1, stride_h=1)
    shape = net.constant("shape", np.array([9, 64], np.int32))
    flat = net.add("RESHAPE", [done, shape], "b", (9, 64))
    dense = net.dense(flat, net.weights("dense", (48, 64)), "c")
    scaled = net.add("MUL", [dense, net.weights("table", (40, 9, 48))], "d", (40, 9, 48))
    net.output(scaled)
    odd = net.add("ADD", [net.input("y", (1, 41)), net.weights("odd", (37, 41))], "e", (37, 41))
    net.output(odd)
    ids = net.input("ids", (5,), np.int32)
    net.output(net.add("EMBEDDING_LOOKUP", [ids, net.weights("rows", (50, 64))], "f", (5, 64)))
    return written(net, tmp_path / "mixed.tflite")


@pytest.fixture
def inputs() -> dict[str, Array]:
    random = np.random.default_rng(1)
    return {
        "x": random.standard_normal((1, 6, 6, 8)).astype(np.float32),
        "y": random.standard_normal((1, 41)).astype(np.float32),
        "ids": np.array([3, 0, 49, 7, 7], np.int32),
    }


EXPECTED = {
    ("int4", "channel"): {
        "kernel": "int4:channel hybrid",
        "dense": "int4:channel hybrid",
        "table": "int4:channel dequantize",
        "odd": "int4:channel dequantize",
        "rows": "int4:channel hybrid",
    },
    ("int4", "tensor"): {
        "kernel": "int4:tensor hybrid",
        "dense": "int4:tensor hybrid",
        "table": "int4:tensor dequantize",
        "odd": "int4:tensor dequantize",
        "rows": "int4:tensor hybrid",
    },
    ("int2", "channel"): {
        "kernel": "int2:channel dequantize",
        "dense": "int2:channel hybrid",
        "table": "int2:channel dequantize",
        "odd": "int2:channel dequantize",
        "rows": "int2:channel hybrid",
    },
    ("int6", "channel"): dict.fromkeys(
        ("kernel", "dense", "table", "odd", "rows"), "int6:channel dequantize"
    ),
    ("int10", "channel"): dict.fromkeys(
        ("kernel", "dense", "table", "odd", "rows"), "int10:channel dequantize"
    ),
    ("int12", "tensor"): dict.fromkeys(
        ("kernel", "dense", "table", "odd", "rows"), "int12:tensor dequantize"
    ),
    ("int6", "tensor"): dict.fromkeys(("kernel", "dense", "table", "odd", "rows"), "int6:tensor dequantize"),
    ("int4", "block:32"): {
        "kernel": "int4:block:24 dequantize",
        "dense": "int4:block:32 dequantize",
        "table": "int4:block:27 dequantize",
        "odd": "int4:channel dequantize",
        "rows": "int4:block:32 hybrid",
    },
    ("int8", "block:64"): {
        "kernel": "int8:block:36 dequantize",
        "dense": "int8:block:64 dequantize",
        "table": "int8:block:54 dequantize",
        "odd": "int8:block:41 dequantize",
        "rows": "int8:block:64 dequantize",
    },
    ("int4", "block"): {
        # With so few rows scales of float32 cost less than what multiplies.
        "kernel": "int4:channel hybrid",
        "dense": "int4:channel hybrid",
        "table": "int4:channel dequantize",
        "odd": "int4:channel dequantize",
        "rows": "int4:block:64 hybrid",
    },
    # Whole rows of four, two and three dimensions, and parts of some.
    ("int6", "block:128"): {
        "kernel": "int6:block:72 dequantize",
        "dense": "int6:block:64 dequantize",
        "table": "int6:block:108 dequantize",
        "odd": "int6:block:41 dequantize",
        "rows": "int6:block:64 dequantize",
    },
    ("float16", "channel"): dict.fromkeys(("kernel", "dense", "table", "odd", "rows"), "float16 dequantize"),
}


@pytest.mark.runtime
@pytest.mark.parametrize(("dtype", "granularity"), EXPECTED, ids=str)
def test_each_encoding(
    mixed: Path, inputs: dict[str, Array], tmp_path: Path, dtype: str, granularity: str
) -> None:
    target = tmp_path / "out.tflite"
    after, result = quantized(mixed, target, dtype=dtype, granularity=granularity, finer_few=False)
    wanted = EXPECTED[dtype, granularity]
    found = encodings(result)
    assert {name: found[name].split() for name in found}.keys() == wanted.keys()
    for name, text in wanted.items():
        # Which axis pays depends on the values; how many scales there are does not.
        if not (name in ("table", "odd") and "channel" in text):
            assert found[name] == text, name
    assert target.stat().st_size < mixed.stat().st_size
    again = QuantizeWeights(dtype=dtype, granularity=granularity, finer_few=False)
    assert not run_passes(load(target), [again])[0].modified
    agrees(target, inputs, 30)
    del after


def test_packed_kernels_get_their_versions_and_levels(mixed: Path, tmp_path: Path) -> None:
    after, _ = quantized(mixed, tmp_path / "out.tflite", dtype="int4")
    found = set(codes(after))
    assert {
        ("CONV_2D", 8),
        ("FULLY_CONNECTED", 12),
        ("EMBEDDING_LOOKUP", 4),
        ("DEQUANTIZE", 6),
    } <= found
    for name in ("kernel", "dense"):
        # -8 overflows in the kernel of FULLY_CONNECTED without XNNPACK.
        assert integers(named(after, name)).min() == -7 and integers(named(after, name)).max() == 7


def test_blocks_cost_two_bytes_each(mixed: Path, tmp_path: Path) -> None:
    after, result = quantized(mixed, tmp_path / "out.tflite", dtype="int4", granularity="block:32")
    dense = next(change for change in result.changes if change.where == "dense")
    stored, scales = named(after, "dense_int4"), named(after, "dense_scales")
    assert stored.shape == (96, 32) and stored.buffer.nbytes == 96 * 16 == dense.nbytes_after
    assert scales.dtype_name == "FLOAT16" and scales.buffer.nbytes == 2 * 96
    assert stored.quantization is not None and len(stored.quantization.scale or ()) == 1
    assert [name for name, _ in codes(after)].count("MUL") == 4
    assert any("one scale per channel" in note and "odd" in note for note in result.notes)
    assert any(note.startswith("blocks of 24") and "kernel" in note for note in result.notes)


def test_a_lookup_reads_blocks_itself(mixed: Path, tmp_path: Path) -> None:
    after, _ = quantized(mixed, tmp_path / "out.tflite", dtype="int4", granularity="block:32")
    rows = named(after, "rows")
    assert rows.dtype_name == "INT4" and rows.quantization is not None
    scales = rows.quantization.scales_tensor
    assert scales is not None and scales.shape == (50, 2) and scales.dtype_name == "FLOAT16"
    assert ("EMBEDDING_LOOKUP", 5) in codes(after)


@pytest.mark.runtime
def test_scales_below_float16_are_found_before_writing(tmp_path: Path) -> None:
    net = Net()
    values = np.random.default_rng(3).standard_normal((50, 64)).astype(np.float32) * np.float32(1e-6)
    ids = net.input("ids", (5,), np.int32)
    net.output(net.add("EMBEDDING_LOOKUP", [ids, net.constant("rows", values)], "f", (5, 64)))
    source, target = written(net, tmp_path / "in.tflite"), tmp_path / "out.tflite"
    _, result = quantized(source, target, dtype="int4", granularity="block:32")
    assert encodings(result) == {"rows": "int4:block:32 dequantize"}
    given = {"ids": np.array([3, 0, 49, 7, 7], np.int32)}
    one, two = run(source, given)["f"], run(target, given)["f"]
    assert decibels(one, two) > 15


@pytest.mark.runtime
def test_the_kernel_for_blocks_is_taken_when_asked_for(
    mixed: Path, inputs: dict[str, Array], tmp_path: Path
) -> None:
    target = tmp_path / "out.tflite"
    after, result = quantized(mixed, target, map="^dense$=int4:block:32:hybrid,.*=float32")
    assert encodings(result) == {"dense": "int4:block:32 hybrid"}
    assert any("Right with XNNPACK only" in note for note in result.notes)
    assert ("FULLY_CONNECTED", 14) in codes(after)
    one, two = run(expanded(target), inputs), run(target, inputs)
    assert all(decibels(one[key], two[key]) > 30 for key in one)
    # Not by default: the reference kernel takes the blocks for one scale.
    _, result = quantized(mixed, target.with_name("b.tflite"), map="^dense$=int4:block:32,.*=float32")
    assert encodings(result) == {"dense": "int4:block:32 dequantize"}


@pytest.mark.runtime
@pytest.mark.parametrize("dtype", ["int4", "int2"])
def test_rows_that_begin_inside_a_byte(tmp_path: Path, dtype: str) -> None:
    net = Net()
    ids = net.input("ids", (3,), np.int32)
    net.output(net.add("EMBEDDING_LOOKUP", [ids, net.weights("rows", (81, 33))], "f", (3, 33)))
    source, target = written(net, tmp_path / "in.tflite"), tmp_path / "out.tflite"
    _, result = quantized(source, target, dtype=dtype)
    # The kernel goes from row to row in bytes.
    assert [change.scheme for change in result.changes] == ["dequantize"]
    agrees(target, {"ids": np.array([0, 1, 80], np.int32)}, 100)


@pytest.mark.runtime
def test_one_dimension(tmp_path: Path) -> None:
    net = Net()
    vector = net.constant("vector", np.random.default_rng(0).standard_normal(4003).astype(np.float32))
    net.output(net.add("ADD", [net.input("x", (1, 4003)), vector], "y", (1, 4003)))
    source, given = written(net, tmp_path / "in.tflite"), {"x": np.zeros((1, 4003), np.float32)}
    for number, (options, wanted) in enumerate(
        [
            ({"dtype": "int4"}, "int4:tensor dequantize"),
            # 4003 is a prime number.
            ({"dtype": "int4", "granularity": "block:32"}, "int4:tensor dequantize"),
            ({"dtype": "float16"}, "float16 dequantize"),
        ]
    ):
        target = tmp_path / f"{number}.tflite"
        _, result = quantized(source, target, **options)
        assert encodings(result) == {"vector": wanted}
        agrees(target, given, 100)


@pytest.mark.runtime
def test_float16_is_clamped_and_said(tmp_path: Path) -> None:
    net = Net()
    values = np.random.default_rng(0).standard_normal((40, 40)).astype(np.float32)
    values[0, :3] = [1e6, -1e9, 1e-12]
    net.output(net.dense(net.input("x", (2, 40)), net.constant("w", values), "y"))
    source, target = written(net, tmp_path / "in.tflite"), tmp_path / "out.tflite"
    after, result = quantized(source, target, dtype="float16", min_runtime="2.14")
    assert [codes(after)[0], named(after, "w_float16").dtype_name] == [("DEQUANTIZE", 3), "FLOAT16"]
    change = result.changes[0].to_dict()
    assert (change["clamped"], change["flushed"], change["encoding"]) == (2, 1, "float16")
    assert np.isfinite(run(target, {"x": np.ones((2, 40), np.float32)})["y"]).all()
    # Infinite values are no weights.
    values[0, 0] = np.inf
    net = Net()
    net.output(net.dense(net.input("x", (2, 40)), net.constant("w", values), "y"))
    _, result = quantized(written(net, tmp_path / "b.tflite"), target.with_name("c"), dtype="float16")
    assert [skip.rule for skip in result.skips] == ["not-finite"]


def test_by_call_and_by_name(mixed: Path, tmp_path: Path) -> None:
    def chosen(item: Candidate) -> Encoding | None:
        return Encoding.parse("int4") if "CONV_2D" in item.readers else None

    base = QuantizeWeights(dtype="float32")
    by_call = replace(base, assignment=chosen)
    by_name = replace(base, assignment={"kernel": Encoding.parse("int4")})
    outputs = []
    for number, item in enumerate((by_call, by_name)):
        _, result = passed(mixed, tmp_path / f"{number}.tflite", item)
        assert encodings(result) == {"kernel": "int4:channel hybrid"}
        assert {skip.rule for skip in result.skips} >= {"float32"}
        outputs.append((tmp_path / f"{number}.tflite").read_bytes())
    assert outputs[0] == outputs[1]


def test_int8_by_any_name_is_the_same_file(mixed: Path, tmp_path: Path) -> None:
    files = []
    for number, options in enumerate([{}, {"dtype": "int8"}, {"map": ".*=int8:channel", "dtype": "int4"}]):
        quantized(mixed, tmp_path / f"{number}.tflite", **options)
        files.append((tmp_path / f"{number}.tflite").read_bytes())
    assert files[0] == files[1] == files[2]


@pytest.mark.runtime
def test_weights_that_go_together_are_all_int8_or_none(tmp_path: Path) -> None:
    net = Net()
    parts = [net.input("x", (1, 3, 24))]
    weights = [net.weights(f"w{number}", (40, 24 if number < 4 else 40)) for number in range(8)]
    biases = [net.constant(f"b{number}", np.zeros(40, np.float32)) for number in range(4)]
    states = [net.tensor(name, (1, 40)) for name in ("state", "cell")]
    for state in states:
        state.is_variable = True
    inputs = [*parts, *weights, None, None, None, *biases, None, None, *states]
    activation = {"fused_activation_function": 4, "time_major": False}
    net.output(net.add("UNIDIRECTIONAL_SEQUENCE_LSTM", inputs, "y", (1, 3, 40), **activation))
    source, target = written(net, tmp_path / "in.tflite"), tmp_path / "out.tflite"
    _, result = quantized(source, target, min_elements=64)
    assert set(encodings(result).values()) == {"int8:tensor hybrid"}
    # One of them as int4: no kernel takes a mixture, so all are expanded.
    after, result = quantized(source, tmp_path / "b.tflite", min_elements=64, map="^w1$=int4,.*=int8")
    assert {change.scheme for change in result.changes} == {"dequantize"}
    assert ("UNIDIRECTIONAL_SEQUENCE_LSTM", 1) in codes(after)
    agrees(tmp_path / "b.tflite", {"x": np.ones((1, 3, 24), np.float32)}, 80)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dtype": "int4", "min_runtime": "2.14"}, "needs runtime 2.18"),
        ({"map": "a=int8,b=int2", "min_runtime": "2.20"}, "needs runtime 2.21"),
        ({"map": "a=int8,b=int6", "min_runtime": "2.20"}, "needs runtime 2.21"),
        ({"dtype": "int3"}, "int8, int6, int4, int2"),
        ({"granularity": "block:7"}, "block:32"),
        ({"granularity": "blocks"}, "block:32"),
    ],
)
def test_what_cannot_be(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        QuantizeWeights(**options)


def test_an_older_runtime_gets_what_it_takes(mixed: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.tflite"
    after, result = quantized(mixed, target, granularity="block:32", min_runtime="2.14")
    assert {change.encoding for change in result.changes} >= {"int8:block:32", "int8:block:24"}
    assert max(version for name, version in codes(after) if name == "DEQUANTIZE") <= 5
    # 2.18 has int4, but no lookup in blocks and no convolution that works.
    after, result = quantized(
        mixed, tmp_path / "b.tflite", map="rows=int4:block:32,.*=int4", min_runtime="2.18"
    )
    found = encodings(result)
    assert found["rows"] == "int4:block:32 dequantize" and found["kernel"] == "int4:channel dequantize"
    assert found["dense"] == "int4:channel hybrid"
    assigned = replace(
        QuantizeWeights(min_runtime="2.14"), assignment=lambda _: Encoding.parse("int4:channel")
    )
    _, result = passed(mixed, tmp_path / "c.tflite", assigned)
    assert not result.modified
    assert {skip.reason for skip in result.skips if skip.rule == "runtime"} == {
        "runtime 2.14 has no DEQUANTIZE for int4"
    }
    assert runtimes.OLDEST_MEASURED_RUNTIME == (2, 14)


@pytest.mark.parametrize("runtime", ["2.14", "2.18", "2.20"])
def test_no_blocks_where_an_old_runtime_loses_them(fixtures: Path, tmp_path: Path, runtime: str) -> None:
    _, result = quantized(
        fixtures / "if_branches.tflite", tmp_path / "out.tflite", granularity="block:32", min_runtime=runtime
    )
    blocks = {change.encoding for change in result.changes if change.block}
    assert blocks == ({"int8:block:20"} if runtime == "2.20" else set())
    assert bool(blocks) != any("in subgraphs that operators call" in note for note in result.notes)


def test_what_is_stored_in_integers_already_is_said(mixed: Path, tmp_path: Path) -> None:
    first = tmp_path / "first.tflite"
    quantized(mixed, first)
    _, result = quantized(first, tmp_path / "second.tflite", dtype="int4")
    assert not result.modified
    said = {skip.where: skip.reason for skip in result.skips if skip.rule == "quantized"}
    assert set(said) == {"kernel", "dense", "rows", "table_int8", "odd_int8"}
    assert "dequantize" in said["dense"]


# -- Rounders -----------------------------------------------------------------------------------------------


class Coarse(Rounder):
    """A rounder with scales twice too large, that remembers what it was told."""

    def __init__(self) -> None:
        self.seen: list[Work] = []

    def scales(self, work: Work) -> Float32:
        self.seen.append(work)
        made: Float32 = (work.largest / np.float32(work.levels.high) * 2).astype(np.float32)
        return made

    def round(self, work: Work, scale: Float32, emit: Emit) -> Error:
        values = work.values().astype(np.float32)
        channels = work.channels
        steps = np.repeat(scale, channels.inner)
        made = np.rint(values / np.tile(steps, channels.outer)).astype(np.int8)
        # In pieces that fill no byte.
        for start in range(0, made.size, 77):
            emit(start, made[start : start + 77])
        return Error(1.0, 0.25)


@pytest.mark.parametrize("encoding", ["int8", "int4", "int4:block:32"])
def test_a_rounder_plugs_in(mixed: Path, tmp_path: Path, encoding: str) -> None:
    coarse = Coarse()
    item = replace(
        QuantizeWeights(dtype="float32"),
        assignment={"dense": Encoding.parse(encoding)},
        rounder=coarse,
    )
    after, result = passed(mixed, tmp_path / "out.tflite", item)
    (work,) = coarse.seen
    assert (work.name, work.shape, work.readings) == ("dense", (48, 64), (result.changes[0].scheme,))
    assert [(use.operator.code.name, use.position) for use in work.uses] == [("FULLY_CONNECTED", 1)]
    assert work.levels.high == {"int8": 127}.get(encoding, 7)
    assert (work.axis, work.block) == ((None, 32) if "block" in encoding else (0, None))
    assert work.largest.size == work.channels.channels == (96 if work.block else 48)
    assert result.changes[0].snr == pytest.approx(6.02, abs=0.01)
    suffix = "" if result.changes[0].scheme == "hybrid" else "_int4"
    stored = integers(named(after, f"dense{suffix}"))
    # Twice too large a scale leaves half of the levels.
    assert abs(int(np.abs(stored).max()) - work.levels.high / 2) <= 1


def test_six_bits_are_an_int4_and_an_int2(mixed: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.tflite"
    after, result = quantized(mixed, target, dtype="int6", finer_few=False)
    coarse, fine = named(after, "dense_int4"), named(after, "dense_int2")
    change = next(change for change in result.changes if change.where == "dense")
    assert coarse.buffer.nbytes + fine.buffer.nbytes == change.nbytes_after == 48 * 64 * 6 // 8
    assert coarse.quantization is not None and fine.quantization is not None
    scale = [np.frombuffer(bytes(part.quantization.scale.raw), "<f4") for part in (coarse, fine)]
    assert scale[0].size == 48
    np.testing.assert_array_equal(scale[0], 4 * scale[1])
    whole = 4 * integers(coarse).astype(int) + integers(fine)
    assert whole.min() >= -34 and whole.max() <= 29 and np.abs(whole).max() > 20
    # They stand for the weights, to half a step where nothing is clipped.
    blob = named(load(mixed), "dense").buffer.blob
    assert blob is not None
    weights = np.frombuffer(blob.view(), "<f4").reshape(48, 64)
    off = np.abs(whole.reshape(48, 64) * scale[1][:, None] - weights)
    inside = np.abs(weights) < 29 * scale[1][:, None]
    assert (off[inside] <= 0.5001 * np.broadcast_to(scale[1][:, None], off.shape)[inside]).all()
    # dequantize adds them up, and leaves no ADD behind.
    model = load(target)
    run_passes(model, [Dequantize()])[0]
    adds = [[name for name, _ in codes(each)].count("ADD") for each in (model, load(mixed), after)]
    assert adds == [1, 1, 6]
    assert not any(tensor.dtype_name in ("INT4", "INT2") for tensor in model.subgraphs[0].tensors)
    found = np.frombuffer(bytes(bytes_of(model, "dense")), "<f4").reshape(48, 64)
    coarse_floats = integers(coarse).reshape(48, 64).astype(np.float32) * scale[0][:, None]
    fine_floats = integers(fine).reshape(48, 64).astype(np.float32) * scale[1][:, None]
    np.testing.assert_array_equal(found, coarse_floats + fine_floats)


@pytest.mark.parametrize("dtype", ["int6", "int4"])
@pytest.mark.parametrize("name", ["digits_cnn", "lstm", "dense"])
def test_fewer_bits_make_no_file_larger_than_int8(
    fixtures: Path, tmp_path: Path, name: str, dtype: str
) -> None:
    """What puts an int6 together takes more than few elements save; an LSTM has all as int8 or none."""
    source, target = fixtures / f"{name}.tflite", tmp_path / "out.tflite"
    quantized(source, tmp_path / "int8.tflite")
    _, result = quantized(source, target, dtype=dtype)
    assert target.stat().st_size <= (tmp_path / "int8.tflite").stat().st_size
    assert not run_passes(load(target), [QuantizeWeights(dtype=dtype)])[0].modified
    finer = {change.where for change in result.changes if change.encoding.startswith("int8")}
    told = [note for note in result.notes if note.startswith("int8, which takes no more bytes")]
    assert bool(told) is (dtype == "int6") and (finer or dtype == "int4")
    # A search, which says of each what it becomes, is not corrected.
    asked = replace(QuantizeWeights(), assignment=lambda _: Encoding.parse(dtype))
    found = run_passes(load(source), [asked])[0].changes
    assert all(change.encoding.startswith(dtype) for change in found)


def test_six_bits_where_a_dequantize_claims_another_shape(fixtures: Path, tmp_path: Path) -> None:
    model = load(fixtures / "digits_cnn_float16.tflite")
    made = next(
        operator.outputs[0]
        for _, operator in model.operators()
        if operator.code.name == "DEQUANTIZE" and (operator.outputs[0].elements or 0) > 5000  # type: ignore[union-attr]
    )
    assert made is not None
    made.shape = (2, 3)
    source, target = tmp_path / "in.tflite", tmp_path / "out.tflite"
    save(model, source, force=True)
    _, result = quantized(source, target, dtype="int6", min_elements=1)
    assert any("int6" in change.encoding for change in result.changes)
    assert not [problem for problem in problems(load(target)) if "takes" in problem.what]


def bytes_of(model: Model, name: str) -> bytes:
    folder = model.subgraphs[0]
    blob = next(tensor for tensor in folder.tensors if tensor.name == name).buffer.blob
    assert blob is not None
    return bytes(blob.view())


@pytest.fixture
def uneven(tmp_path: Path) -> Path:
    """A depthwise filter of 576 weights before a dense layer of a quarter of a million, with a long bias."""
    net = Net()
    same = {"padding": 0, "stride_h": 1, "stride_w": 1}
    short = net.constant("short", np.linspace(-1, 1, 64).astype(np.float32))
    image, few = net.input("x", (1, 4, 4, 64)), net.weights("few", (1, 3, 3, 64))
    found = net.add("DEPTHWISE_CONV_2D", [image, few, short], "a", (1, 4, 4, 64), depth_multiplier=1, **same)
    flat = net.add("RESHAPE", [found, net.constant("shape", np.array([1, 1024], np.int32))], "b", (1, 1024))
    bias = net.constant("bias", np.random.default_rng(2).standard_normal(256).astype(np.float32))
    net.output(net.add("FULLY_CONNECTED", [flat, net.weights("many", (256, 1024)), bias], "y", (1, 256)))
    return written(net, tmp_path / "uneven.tflite")


def test_few_weights_take_eight_bits_unless_a_rule_names_them(uneven: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.tflite"
    _, result = quantized(uneven, target, dtype="int4", scheme="dequantize", min_elements=64)
    assert (
        encodings(result)["few"].startswith("int8") and encodings(result)["many"] == "int4:channel dequantize"
    )
    assert any(note.startswith("int8, since so few") and note.endswith("few") for note in result.notes)
    _, result = quantized(uneven, target, map=".*=int4", scheme="dequantize", min_elements=64)
    assert encodings(result)["few"].startswith("int4")


@pytest.mark.runtime
def test_a_long_bias_may_be_float16(uneven: Path, tmp_path: Path) -> None:
    target, back = tmp_path / "out.tflite", tmp_path / "back.tflite"
    given = {"x": np.random.default_rng(1).standard_normal((1, 4, 4, 64)).astype(np.float32)}
    rules_of = (".*=float16", "bias=float16,.*=int8:dequantize", "bias=float16,.*=float32")
    for number, rules in enumerate(rules_of):
        target = tmp_path / f"{number}.tflite"
        _, result = quantized(uneven, target, map=rules, min_elements=64)
        assert encodings(result)["bias"] == "float16 dequantize"
        # A short one would save nothing.
        assert ("short", "bias") in [(skip.where, skip.rule) for skip in result.skips]
        agrees(target, given, 100)
        model = load(target)
        run_passes(model, [Dequantize()])
        save(model, back, force=True)
        assert named(load(back), "bias").dtype_name == "FLOAT32"
    # XNNPACK refuses a file whose kernel reads integers beside a bias that it keeps in float16.
    _, result = quantized(uneven, target, map="bias=float16,.*=int8", min_elements=64)
    assert ("bias", "hybrid") in [(skip.where, skip.rule) for skip in result.skips]
    _, result = quantized(target, back, map="bias=float16,.*=int8", min_elements=64)
    assert not result.modified
    _, result = quantized(uneven, target, dtype="int4", min_elements=64)
    assert ("bias", "bias") in [(skip.where, skip.rule) for skip in result.skips]
