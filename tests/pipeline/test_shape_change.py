"""Other input shapes: constants follow, each sample is that of the original, or the operator is named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tfl_rewrite import (
    Judging,
    Model,
    Reshaping,
    RewriteFailed,
    UnsupportedError,
    UsageError,
    load,
    reshape,
    save,
)
from tfl_rewrite.editing.base import Context, Edit
from tfl_rewrite.files.source import Source
from tfl_rewrite.model.ir import Tensor
from tfl_rewrite.pipeline.shape_change import Proof, Reshape

from ..nets import Net

pytestmark = pytest.mark.runtime
QUICK = Judging(samples=1)
UNJUDGED = Judging(mode="off")


def numbers(values: list[int]) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    return np.array(values, np.int32)


def flat(net: Net, target: list[int]) -> Tensor:
    """A convolution over 4 x 4 places, flattened by a RESHAPE to a constant."""
    source = net.input("image", (1, 4, 4, 3))
    filters = net.weights("filters", (8, 1, 1, 3))
    options = {"stride_w": 1, "stride_h": 1, "dilation_w_factor": 1, "dilation_h_factor": 1}
    bias = net.constant("bias", np.zeros(8, np.float32))
    made = net.add("CONV_2D", [source, filters, bias], "conv", (1, 4, 4, 8), **options)
    return net.add("RESHAPE", [made, net.constant("shape", numbers(target))], "flat", (1, 16, 8))


def fixed(net: Net) -> None:
    net.output(flat(net, [1, 16, 8]))


def misshaping(net: Net) -> None:
    """What the runtime's own resizing gives without a word: the batch in another axis.

    Behind it, slices that begin and end where the batch did, and an output without an axis for a batch.
    """
    begin, end, steps = (
        net.constant(name, numbers(row))
        for name, row in (("begin", [0, 0, 0]), ("end", [1, 4, 8]), ("steps", [1, 1, 1]))
    )
    made = net.add("STRIDED_SLICE", [flat(net, [1, -1, 8]), begin, end, steps], "part", (1, 4, 8))
    start, size = net.constant("start", numbers([0, 1, 0])), net.constant("size", numbers([1, 2, 8]))
    made = net.add("SLICE", [made, start, size], "slice", (1, 2, 8))
    net.output(made)
    net.output(net.add("RESHAPE", [made, net.constant("last", numbers([16]))], "scores", (16,)))


def joined(net: Net) -> None:
    beside = net.constant("beside", np.arange(16, dtype=np.float32).reshape(1, 2, 8))
    half = net.half("token", np.ones((1, 1, 8)))
    net.output(net.add("CONCATENATION", [flat(net, [1, 16, 8]), beside, half], "both", (1, 19, 8), axis=1))


def remembering(net: Net) -> None:
    source = net.input("x", (1, 3))
    feature, time = net.weights("feature", (2, 3)), net.weights("time", (2, 4))
    bias, state = net.constant("bias", np.zeros(2, np.float32)), net.variable("state", (1, 8))
    net.output(net.add("SVDF", [source, feature, time, bias, state], "y", (1, 2), rank=1))


def unrolled(net: Net) -> None:
    """One step of a recurrent net, whose converter took the time for the axis in front, both being 1 long."""
    source = net.input("x", (1, 1, 4))
    step = net.add("UNPACK", [source], "step", (1, 4), num=1, axis=0)
    inner = net.dense(step, net.weights("w", (4, 4)), "inner")
    net.output(net.add("PACK", [inner], "steps", (1, 1, 4), values_count=1, axis=0))


def alone(net: Net) -> None:
    """An output that is what stands first in the batch, without an axis for it."""
    begin, end, steps = (
        net.constant(name, numbers([value])) for name, value in (("b", 0), ("e", 1), ("s", 1))
    )
    source = net.input("x", (1, 4))
    net.output(net.add("STRIDED_SLICE", [source, begin, end, steps], "y", (4,), shrink_axis_mask=1))


def delegated(net: Net) -> None:
    """What only a delegate computes, twice, with what reads it: it has the samples that the file declares."""
    made = net.deconvolution(net.input("x", (1, 2, 2, 3)), "inner")
    made = net.deconvolution(net.add("RELU", [made], "bent", (1, 4, 4, 2)), "outer")
    net.output(net.add("RESHAPE", [made, net.constant("shape", numbers([1, 128]))], "y", (1, 128)))


def made(path: Path, build: Callable[[Net], None]) -> Path:
    net = Net()
    build(net)
    save(net.model, path / "in.tflite")
    return path / "in.tflite"


def constants(model: Model) -> dict[str, list[int]]:
    tensors = model.subgraphs[0].tensors
    return {
        item.name: item.values.tolist() for item in tensors if item.is_constant and item.dtype_name == "INT32"
    }


@pytest.mark.parametrize("build", [misshaping, joined, remembering, unrolled, alone, delegated])
def test_each_sample_of_a_batch_is_that_of_the_original(tmp_path: Path, build: Callable[[Net], None]) -> None:
    report = reshape(made(tmp_path, build), tmp_path / "out.tflite", Reshaping(batch=3), judging=QUICK)
    assert report.verdict is not None and report.verdict.passed
    graph = load(tmp_path / "out.tflite").subgraphs[0]
    assert {tensor.shape[0] for tensor in (*graph.inputs, *graph.outputs) if tensor.shape} == {3}
    again = reshape(tmp_path / "out.tflite", None, Reshaping(batch=3), judging=UNJUDGED)
    assert again.outcome == "unchanged"


def test_the_batch_stays_in_front_and_slices_take_all_of_it(tmp_path: Path) -> None:
    path = made(tmp_path, misshaping)
    reshape(path, tmp_path / "out.tflite", Reshaping(batch=3), judging=UNJUDGED)
    found = constants(load(tmp_path / "out.tflite"))
    assert (found["shape"], found["end"], found["size"]) == ([3, -1, 8], [3, 4, 8], [3, 2, 8])
    assert found["last"] == [3, 16]


def test_a_free_batch_takes_any_number(tmp_path: Path) -> None:
    wish, path = Reshaping(dynamic_batch=True), made(tmp_path, misshaping)
    report = reshape(path, tmp_path / "out.tflite", wish, judging=QUICK)
    assert report.verdict is not None and report.verdict.passed
    model = load(tmp_path / "out.tflite")
    (source,) = model.subgraphs[0].inputs
    assert (source.shape, source.signature) == ((1, 4, 4, 3), (-1, 4, 4, 3))
    assert {tensor.signature for tensor in model.subgraphs[0].outputs} == {(-1, 2, 8), (-1, 16)}
    found = constants(model)
    assert (found["shape"], found["size"], found["last"]) == ([-1, 16, 8], [-1, 2, 8], [-1, 16])


def test_a_free_batch_is_run_in_the_file_that_gets_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wish, model = Reshaping(dynamic_batch=True), load(made(tmp_path, fixed))
    item = Reshape(wish, QUICK)
    item.run(model, Context())
    save(model, tmp_path / "sound.tflite")
    wrong = load(tmp_path / "sound.tflite")
    (bias,) = (tensor for tensor in wrong.subgraphs[0].tensors if tensor.name == "bias")
    bias.set_values(np.ones(8, np.float32))
    save(wrong, tmp_path / "wrong.tflite")
    source, sound, other = (Source.open(tmp_path / f"{name}.tflite") for name in ("in", "sound", "wrong"))
    # As if something were wrong with free sizes alone: copies with sizes declared show nothing of it.
    save_fixed = Proof._save_fixed

    def of_sound(proof: Proof, path: Path, *, is_trial: bool) -> None:
        save_fixed(replace(proof, made=sound), path, is_trial=is_trial)

    monkeypatch.setattr(Proof, "_save_fixed", of_sound)
    verdict = item.verify(source, other, QUICK)
    assert verdict.status == "fail" and "resized to more samples: " in verdict.reasons[0]


def test_sizes_that_a_delegate_takes_from_the_file_are_named(tmp_path: Path) -> None:
    path = made(tmp_path, delegated)
    for wish in (Reshaping(dynamic_batch=True), Reshaping(input=("1,4,4,3",))):
        with pytest.raises(UnsupportedError, match="'inner' has the shape that the file declares"):
            reshape(path, None, wish, judging=QUICK)
    many = reshape(path, tmp_path / "many.tflite", Reshaping(batch=3), judging=UNJUDGED)
    assert len([edit for edit in many.results[0].changes if "Convolution2DTransposeBias" in edit.where]) == 2
    back = reshape(tmp_path / "many.tflite", tmp_path / "back.tflite", Reshaping(batch=1), judging=QUICK)
    assert back.verdict is not None and back.verdict.passed
    inside = [tensor.shape for tensor in load(path).subgraphs[0].tensors]
    assert [tensor.shape for tensor in load(tmp_path / "back.tflite").subgraphs[0].tensors] == inside


@pytest.mark.parametrize("build", [joined, remembering])
def test_a_constant_that_cannot_say_any_number_is_named(tmp_path: Path, build: Callable[[Net], None]) -> None:
    with pytest.raises(UnsupportedError, match=r"'both'|'y'"):
        reshape(made(tmp_path, build), tmp_path / "out.tflite", Reshaping(dynamic_batch=True), judging=QUICK)
    assert not (tmp_path / "out.tflite").exists()


def test_states_without_names_are_told_apart(tmp_path: Path) -> None:
    """Each waits for what the one before it gives, and all change in the same words."""

    def build(net: Net) -> None:
        value = net.input("x", (1, 3))
        for at in range(3):
            feature, time = net.weights(f"f{at}", (2, (value.shape or ())[-1])), net.weights(f"t{at}", (2, 4))
            bias, state = net.constant(f"b{at}", np.zeros(2, np.float32)), net.variable("", (1, 8))
            value = net.add("SVDF", [value, feature, time, bias, state], "", (1, 2), rank=1)
        net.output(value)

    report = reshape(made(tmp_path, build), tmp_path / "out.tflite", Reshaping(batch=4), judging=QUICK)
    assert report.verdict is not None and report.verdict.passed
    states = [item.inputs[4] for item in load(tmp_path / "out.tflite").subgraphs[0].operators]
    assert [item.shape for item in states if item is not None] == [(4, 8)] * 3


def test_constants_that_change_in_the_same_way_again_end_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds = []

    def again(*_: object, **__: object) -> tuple[list[Edit], list[object], None]:
        rounds.append(len(rounds))
        return [Edit("RESHAPE -> flat", "[1, 16, 8] is now [3, 16, 8]")], [], None

    # As in a damaged file, whose kernels never read what is written.
    monkeypatch.setattr("tfl_rewrite.pipeline.input_shapes._round", again)
    with pytest.raises(UnsupportedError, match=r"RESHAPE -> flat does not follow: \[1, 16, 8\] is now"):
        reshape(made(tmp_path, fixed), None, Reshaping(batch=3), judging=UNJUDGED)
    assert rounds == [0, 1]


def test_a_resolution_that_nothing_fixed_is_compared(tmp_path: Path) -> None:
    def build(net: Net) -> None:
        net.output(flat(net, [1, -1, 8]))

    wish = Reshaping(input=("1,8,6,3",))
    report = reshape(made(tmp_path, build), tmp_path / "out.tflite", wish, judging=QUICK)
    assert report.verdict is not None and report.verdict.passed
    assert load(tmp_path / "out.tflite").subgraphs[0].outputs[0].shape == (1, 48, 8)


def resizing(net: Net, *, loose: bool) -> None:
    """Half the size and back, added to what it was, and the mean of all places; or enlarged at the end."""
    source = net.input("image", (1, 4, 4, 3))
    by_two = {"stride_h": 2, "stride_w": 2, "filter_height": 2, "filter_width": 2}
    half = net.add("AVERAGE_POOL_2D", [source], "half", (1, 2, 2, 3), **by_two)
    shape = net.constant("again", numbers([4, 4]))
    back = net.add("RESIZE_NEAREST_NEIGHBOR", [half, shape], "back", (1, 4, 4, 3))
    added = net.add("ADD", [source, back], "added", (1, 4, 4, 3))
    plane = {"stride_h": 4, "stride_w": 4, "filter_height": 4, "filter_width": 4, "padding": 1}
    net.output(net.add("AVERAGE_POOL_2D", [added], "mean", (1, 1, 1, 3), **plane))
    if loose:
        twice = net.constant("twice", numbers([8, 8]))
        net.output(net.add("RESIZE_NEAREST_NEIGHBOR", [added, twice], "large", (1, 8, 8, 3)))


@pytest.mark.parametrize("build", [fixed, lambda net: resizing(net, loose=False)])
def test_a_resolution_is_compared_where_constants_can_say_nothing_else(
    tmp_path: Path, build: Callable[[Net], None]
) -> None:
    wish = Reshaping(input=("image=1,8,6,3",))
    report = reshape(made(tmp_path, build), tmp_path / "out.tflite", wish, judging=QUICK)
    assert report.verdict is not None and report.verdict.passed
    assert any("can say nothing else" in note for note in report.verdict.notes)
    said = constants(load(tmp_path / "out.tflite"))
    assert said.get("shape", [1, 48, 8]) == [1, 48, 8] and said.get("again", [8, 6]) == [8, 6]


def test_a_resolution_that_a_constant_fixed_otherwise_is_not_judged(tmp_path: Path) -> None:
    wish, path = Reshaping(input=("image=1,8,6,3",)), made(tmp_path, lambda net: resizing(net, loose=True))
    report = reshape(path, tmp_path / "out.tflite", wish, judging=QUICK)
    assert report.unverified is not None and "RESIZE_NEAREST_NEIGHBOR -> large follow" in report.unverified
    assert constants(load(tmp_path / "out.tflite"))["twice"] == [16, 12]


def test_weights_for_so_many_places_are_named(tmp_path: Path) -> None:
    """FULLY_CONNECTED would make several rows of a larger one, without a word."""

    def build(net: Net) -> None:
        made = net.add(
            "RESHAPE", [flat(net, [1, 16, 8]), net.constant("last", numbers([1, 128]))], "row", (1, 128)
        )
        net.output(net.dense(made, net.weights("w", (5, 128)), "y"))

    with pytest.raises(UnsupportedError, match=r"weights for 128 elements a row, and a row has 512 now"):
        reshape(made(tmp_path, build), None, Reshaping(input=("1,8,8,3",)), judging=QUICK)


@pytest.mark.parametrize(
    ("wish", "says"),
    [
        ({}, "no shape to change"),
        ({"batch": 0}, "batch is 0"),
        ({"batch": -1}, "batch is -1"),
        ({"batch": 2, "dynamic_batch": True}, "a fixed and a free batch"),
        ({"input": ("images=1,4,4,3",)}, "did you mean 'image'"),
        ({"input": ("image=1,4,4",)}, "has 4 axes"),
        ({"input": ("image=1,4,0,3",)}, "is not a shape"),
        ({"input": ("image=1,x,4,3",)}, "is not a shape"),
        ({"input": ("",)}, "has 4 axes"),
        ({"input": ("1,4,4,3", "image=2,4,4,3")}, r"shape \[1, 4, 4, 3\], too"),
    ],
)
def test_a_wish_that_does_not_fit_is_told(tmp_path: Path, wish: dict[str, Any], says: str) -> None:
    path = made(tmp_path, fixed)
    with pytest.raises(UsageError, match=says):
        reshape(path, None, Reshaping(**wish), judging=QUICK)


def test_a_kernel_that_computes_one_sample_right_is_named(fixtures: Path, tmp_path: Path) -> None:
    source = fixtures / "bidirectional_lstm.tflite"
    for wish in (Reshaping(batch=2), Reshaping(dynamic_batch=True)):
        with pytest.raises(UnsupportedError, match="BIDIRECTIONAL_SEQUENCE_LSTM that gives 'merged'"):
            reshape(source, tmp_path / "out.tflite", wish)


def test_sizes_that_are_free_and_stay_so_are_no_hindrance(fixtures: Path, tmp_path: Path) -> None:
    report = reshape(fixtures / "dynamic_shapes.tflite", tmp_path / "out.tflite", Reshaping(batch=2))
    assert report.verdict is not None and report.verdict.passed


def test_an_output_without_room_for_the_samples_does_not_pass(fixtures: Path, tmp_path: Path) -> None:
    """It is read from a variable, which holds one sample."""
    source, target = fixtures / "resource_variables.tflite", tmp_path / "out.tflite"
    with pytest.raises(RewriteFailed):
        reshape(source, target, Reshaping(batch=3))
    assert not target.exists()
