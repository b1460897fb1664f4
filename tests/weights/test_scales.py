"""How many scales a constant gets behind DEQUANTIZE, and along which axis: by error per byte."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tfl_rewrite import load, save
from tfl_rewrite.editing.base import PassResult, run_passes
from tfl_rewrite.files.source import Source
from tfl_rewrite.model.ir import Model
from tfl_rewrite.numerics import clipping, symmetric
from tfl_rewrite.passes.dequantize import Dequantize
from tfl_rewrite.passes.quantize_weights import QuantizeWeights
from tfl_rewrite.weights import scales
from tfl_rewrite.weights.encoding import Scheme
from tfl_rewrite.weights.payloads import WeightChange
from tfl_rewrite.weights.rounders import Effort
from tfl_rewrite.weights.scales import Magnitudes, ScaleAxes

from ..nets import Array, Net, codes, decibels, named, run

CHANNELS = 24


def spread(random: np.random.Generator, shape: tuple[int, ...], axis: int) -> Array:
    """Weights whose channels differ by some decades, as those of trained nets with folded scales do."""
    sizes = [1] * len(shape)
    sizes[axis] = shape[axis]
    powers = 10.0 ** -random.uniform(0, 2.5, sizes)
    return (random.standard_normal(shape) * powers).astype(np.float32)


def alike(random: np.random.Generator, shape: tuple[int, ...], axis: int) -> Array:
    """Weights of one distribution whose largest values are equal in all channels."""
    values = np.clip(random.standard_normal(shape), -2, 2)
    by_channel = np.moveaxis(values, axis, -1).reshape(-1, shape[axis])
    by_channel[0] = 2.0
    sides = [size for place, size in enumerate(shape) if place != axis]
    return np.moveaxis(by_channel.reshape(*sides, shape[axis]), -1, axis).astype(np.float32)


def convolutional(make: Any = spread, seed: int = 0) -> Net:
    """A depthwise filter, a first kernel and a dense layer, all with fewer than 40 weights a channel."""
    random, net = np.random.default_rng(seed), Net(seed)
    source = net.input("x", (1, 8, 8, 3))
    bias = net.constant("bias", np.zeros(CHANNELS, np.float32))
    same = {"padding": 0, "stride_h": 1, "stride_w": 1}
    first = net.constant("first", make(random, (CHANNELS, 3, 3, 3), 0))
    wide = net.add("CONV_2D", [source, first, bias], "a", (1, 8, 8, CHANNELS), **same)
    depthwise = net.constant("depthwise", make(random, (1, 3, 3, CHANNELS), 3))
    found = net.add(
        "DEPTHWISE_CONV_2D", [wide, depthwise, bias], "b", (1, 8, 8, CHANNELS), depth_multiplier=1, **same
    )
    # What a batch normalization does: channels behind it are alike, whatever the size of their weights.
    strength = np.abs(depthwise_strength(net)).astype(np.float32)
    even = net.add("MUL", [found, net.constant("norm", 1.0 / strength)], "c", (1, 8, 8, CHANNELS))
    point = net.constant("point", make(random, (64, 1, 1, CHANNELS), 0))
    wider = net.constant("wide_bias", np.zeros(64, np.float32))
    net.output(net.add("CONV_2D", [even, point, wider], "y", (1, 8, 8, 64), **same))
    return net


def depthwise_strength(net: Net) -> Array:
    def data(name: str) -> Array:
        blob = named(net.model, name).buffer.blob
        assert blob is not None
        return np.frombuffer(bytes(blob.view()), np.float32)

    first = np.sqrt(np.square(data("first")).reshape(CHANNELS, -1).sum(axis=1))
    depthwise = np.sqrt(np.square(data("depthwise")).reshape(-1, CHANNELS).sum(axis=0))
    found: Array = first * depthwise
    return found


def quantized(net: Net, target: Path, **options: Any) -> tuple[Model, PassResult]:
    source = target.with_suffix(".in.tflite")
    save(net.model, source, force=True)
    model = load(source)
    result = run_passes(
        model, [QuantizeWeights(**{"scheme": "dequantize", "min_elements": 64, "effort": "fast", **options})]
    )[0]
    save(model, target, force=True)
    return load(target), result


def axes(result: PassResult) -> dict[str, tuple[int | None, int]]:
    changes = [change for change in result.changes if isinstance(change, WeightChange)]
    return {change.where: (change.axis, change.channels) for change in changes}


@pytest.mark.parametrize("dtype", ["int8", "int4", "int2"])
def test_small_filters_get_a_scale_for_each_output_channel(tmp_path: Path, dtype: str) -> None:
    _, result = quantized(convolutional(), tmp_path / "out.tflite", dtype=dtype)
    assert axes(result) == {"first": (0, CHANNELS), "depthwise": (3, CHANNELS), "point": (0, 64)}


def test_int6_too_where_its_parts_are_worth_it(tmp_path: Path) -> None:
    _, result = quantized(convolutional(), tmp_path / "out.tflite", dtype="int6")
    assert axes(result)["first"] == (0, CHANNELS) and axes(result)["point"] == (0, 64)


def test_a_depthwise_filter_in_blocks_has_scales_along_its_channels_instead(tmp_path: Path) -> None:
    _, result = quantized(convolutional(), tmp_path / "out.tflite", dtype="int4", granularity="block:32")
    found = {change.where: change.encoding for change in result.changes if isinstance(change, WeightChange)}
    assert found["depthwise"] == "int4:channel" and found["first"].startswith("int4:block")
    assert any("err less for their bytes than blocks: depthwise" in note for note in result.notes)


@pytest.mark.runtime
def test_what_it_wins_at_the_output(tmp_path: Path) -> None:
    given = {"x": np.random.default_rng(1).uniform(-1, 1, (1, 8, 8, 3)).astype(np.float32)}
    found = {}
    for granularity in ("channel", "tensor"):
        target = tmp_path / f"{granularity}.tflite"
        quantized(convolutional(), target, granularity=granularity)
        before = run(target.with_suffix(".in.tflite"), given)["y"]
        found[granularity] = decibels(before, run(target, given)["y"])
    # What one scale for all leaves is no use: channels that are hundreds of times smaller vanish.
    assert found["channel"] > 40 and found["tensor"] < 20


def test_one_scale_where_channels_are_alike(tmp_path: Path) -> None:
    _, result = quantized(convolutional(alike), tmp_path / "out.tflite")
    assert set(axes(result).values()) == {(None, 1)}


def test_a_table_is_weighed_as_well(tmp_path: Path) -> None:
    """Of a table of short rows scales would be half of the bytes: it depends on what they win."""
    found = {}
    for name, make in (("spread", spread), ("alike", alike)):
        net = Net()
        table = net.constant("table", make(np.random.default_rng(0), (2000, 16), 0))
        rows = net.add("GATHER", [table, net.input("x", (1, 5), np.int32)], "rows", (1, 5, 16), axis=0)
        net.output(net.dense(rows, net.weights("dense", (64, 16)), "y"))
        for scheme in ("dequantize", "auto"):
            _, result = quantized(net, tmp_path / f"{name}.tflite", scheme=scheme)
            found[name, scheme] = axes(result)["table"]
    assert found["spread", "dequantize"] == found["spread", "auto"] == (0, 2000)
    assert found["alike", "dequantize"] == found["alike", "auto"] == (None, 1)


def test_no_scales_along_inputs(tmp_path: Path) -> None:
    """A dense layer of few inputs, whose inputs differ in size: scales belong to outputs."""
    net = Net()
    weight = net.constant("w", spread(np.random.default_rng(0), (256, 16), 1))
    net.output(net.dense(net.input("x", (1, 16)), weight, "y"))
    _, result = quantized(net, tmp_path / "out.tflite")
    assert axes(result)["w"][0] in (None, 0)


@pytest.mark.parametrize("make", [spread, alike])
def test_one_scale_that_loses_channels_is_not_worth_its_bytes(tmp_path: Path, make: Any) -> None:
    """Scales for each channel of int6 would take more than a short filter has, beside a large layer."""
    net = Net()
    random, same = np.random.default_rng(3), {"padding": 0, "stride_h": 1, "stride_w": 1}
    name = "depthwise" + 150 * "_"
    filters = net.constant(name, make(random, (1, 3, 3, 64), 3))
    bias, source = net.constant("bias", np.zeros(64, np.float32)), net.input("x", (1, 4, 4, 64))
    found = net.add(
        "DEPTHWISE_CONV_2D", [source, filters, bias], "a", (1, 4, 4, 64), depth_multiplier=1, **same
    )
    dense = net.constant("dense", make(random, (128, 1024), 0))
    flat = net.add("RESHAPE", [found, net.constant("shape", np.array([1, 1024], np.int32))], "b", (1, 1024))
    net.output(net.dense(flat, dense, "y"))
    _, result = quantized(net, tmp_path / "out.tflite", dtype="int6")
    assert "dense" in axes(result) and axes(result).get(name) == ((None, 1) if make is alike else None)
    assert (name, "noise") in [(skip.where, skip.rule) for skip in result.skips] or make is alike


def test_no_more_scales_than_leave_a_gain(tmp_path: Path) -> None:
    """A vector would have a scale for each element: exact, and larger than it was."""
    net = Net()
    vector = net.constant("vector", spread(np.random.default_rng(0), (3000,), 0))
    net.output(net.add("ADD", [net.input("x", (1, 3000)), vector], "y", (1, 3000)))
    _, result = quantized(net, tmp_path / "out.tflite")
    assert axes(result) == {"vector": (None, 1)}


def test_older_runtimes_expand_one_scale_only(tmp_path: Path) -> None:
    after, result = quantized(convolutional(), tmp_path / "old.tflite", min_runtime="2.6")
    assert set(axes(result).values()) == {(None, 1)} and ("DEQUANTIZE", 2) in codes(after)
    after, result = quantized(convolutional(), tmp_path / "newer.tflite", min_runtime="2.7")
    assert axes(result)["depthwise"] == (3, CHANNELS) and ("DEQUANTIZE", 5) in codes(after)


def test_what_stays_does_not_change_what_others_get(tmp_path: Path) -> None:
    """Whoever stores one constant at a time, to measure it, finds it stored as in the whole."""
    whole = axes(quantized(convolutional(), tmp_path / "whole.tflite")[1])
    for name, wanted in whole.items():
        _, result = quantized(convolutional(), tmp_path / "one.tflite", include=[f"^{name}$"])
        assert axes(result) == {name: wanted}


def test_a_second_run_changes_nothing(tmp_path: Path) -> None:
    after, _ = quantized(convolutional(), tmp_path / "out.tflite")
    again = run_passes(after, [QuantizeWeights(scheme="dequantize", min_elements=64, effort="fast")])[0]
    assert not again.modified


def test_what_is_counted_as_saved_is_saved(tmp_path: Path) -> None:
    for dtype in ("int8", "int4"):
        target = tmp_path / f"{dtype}.tflite"
        _, result = quantized(convolutional(), target, dtype=dtype)
        source = target.with_suffix(".in.tflite")
        told = sum(change.saved for change in result.changes if isinstance(change, WeightChange))
        assert 0 < told <= source.stat().st_size - target.stat().st_size


def test_filters_of_float16_are_weighed_with_what_they_take_now(tmp_path: Path) -> None:
    net = convolutional()
    model = net.model
    save(model, tmp_path / "plain.tflite")
    half = load(tmp_path / "plain.tflite")
    assert run_passes(half, [QuantizeWeights(dtype="float16", min_elements=64)])[0].modified
    save(half, tmp_path / "half.tflite")
    again = load(tmp_path / "half.tflite")
    result = run_passes(again, [QuantizeWeights(scheme="dequantize", min_elements=64, effort="fast")])[0]
    save(again, tmp_path / "int8.tflite")
    assert axes(result)["first"] == (0, CHANNELS)
    assert (tmp_path / "int8.tflite").stat().st_size < (tmp_path / "half.tflite").stat().st_size
    # Exact behind DEQUANTIZE: the same integers come back.
    back = load(tmp_path / "int8.tflite")
    assert run_passes(back, [Dequantize()])[0].modified


def test_what_passes_share_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = convolutional()
    save(net.model, tmp_path / "net.tflite")
    source = Source.open(tmp_path / "net.tflite")
    read: list[str] = []
    measured, absmax = ScaleAxes._measured, symmetric.absmax

    def counted(*arguments: Any) -> float:
        read.append("rounded")
        return measured(*arguments)

    def largest(*arguments: Any, **more: Any) -> Any:
        read.append("largest")
        return absmax(*arguments, **more)

    monkeypatch.setattr(ScaleAxes, "_measured", counted)
    monkeypatch.setattr(symmetric, "absmax", largest)
    plain = QuantizeWeights(dtype="int4", scheme=Scheme.DEQUANTIZE, min_elements=64, effort=Effort.FAST)
    shared = replace(plain, magnitudes=Magnitudes())
    found, counts = [], []
    for settings in (plain, shared, shared, plain):
        (result,) = run_passes(source.model(), [settings])
        found.append(axes(result))
        counts.append(len(read))
        read.clear()
    assert found[0] == found[1] == found[2] == found[3] and found[0]
    assert counts[0] == counts[1] == counts[3] > 0 == counts[2]


def test_a_weight_is_read_once_for_its_scales(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    absmax, energy = symmetric.absmax, clipping._energy

    def counted(values: Any, *arguments: Any, **more: Any) -> Any:
        read.append(values.ctypes.data)
        return absmax(values, *arguments, **more)

    def again(values: Any) -> Any:
        read.append(values.ctypes.data)
        return energy(values)

    monkeypatch.setattr(symmetric, "absmax", counted)
    monkeypatch.setattr(clipping, "_energy", again)
    # Short channels, such as blocks, are not kept in mind.
    monkeypatch.setattr(scales, "_LONG_CHANNEL", 1)
    result = run_passes(convolutional().model, [QuantizeWeights(min_elements=64)])[0]
    assert len(result.changes) == len(read) == len(set(read)) > 1
