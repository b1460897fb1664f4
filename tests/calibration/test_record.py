"""An interpreter for a program's own loop, and the ranges that it leaves."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.nets import Net
from tfl_rewrite import Judging, UnsupportedError, UsageError, load, record, rewrite, save
from tfl_rewrite.calibration import ranges
from tfl_rewrite.calibration.ranges import Ranges
from tfl_rewrite.integers.ranges import GivenModel, TensorRanges
from tfl_rewrite.passes import Quantize

pytestmark = pytest.mark.runtime


def litert(path: Path) -> Any:
    made = importlib.import_module("ai_edge_litert.interpreter").Interpreter(str(path))
    made.allocate_tensors()
    return made


def loop(interpreter: Any, samples: Sequence[Any]) -> list[Any]:
    """What a program does that evaluates a model of one input and one output."""
    (taken,), (given,) = interpreter.get_input_details(), interpreter.get_output_details()
    found = []
    for sample in samples:
        interpreter.set_tensor(taken["index"], sample)
        interpreter.invoke()
        found.append(interpreter.get_tensor(given["index"]))
    return found


def same(one: object, other: object) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        # Newer runtimes tell more.
        return all(key in other and same(value, other[key]) for key, value in one.items())
    return bool(np.array_equal(np.asarray(one), np.asarray(other)))


def test_a_loop_gets_what_litert_gives_and_leaves_what_inputs_would(
    fixtures: Path, few: Path, tmp_path: Path
) -> None:
    path = fixtures / "digits_cnn.tflite"
    (images,) = np.load(few).values()
    samples = images[:6, None]
    reference = litert(path)
    with record(path) as interpreter:
        interpreter.allocate_tensors()
        for mine, theirs in (
            (interpreter.get_input_details(), reference.get_input_details()),
            (interpreter.get_output_details(), reference.get_output_details()),
        ):
            assert all(same(one, other) for one, other in zip(mine, theirs, strict=True))
        assert interpreter.get_signature_list() == reference.get_signature_list()
        outputs = loop(interpreter, samples)
    assert np.allclose(outputs, loop(reference, samples), atol=1e-6)
    np.savez(tmp_path / "six.npz", **{reference.get_input_details()[0]["name"]: images[:6]})
    model = load(path)
    given = GivenModel.of(model)
    wanted = TensorRanges.of(given, Ranges(Judging(inputs=(tmp_path / "six.npz",))).of(model))
    assert interpreter.ranges == wanted
    quantize = [Quantize(ranges=interpreter.ranges, effort="fast")]
    report = rewrite(path, None, quantize, judging=Judging(holdout=(few,)))
    assert report.verdict is not None and report.verdict.passed and report.nbytes_after < 40_000


def test_tensors_that_do_not_fit_into_memory_at_once(
    fixtures: Path, few: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (images,) = np.load(few).values()
    found = []
    for nbytes in (1 << 20, 1 << 12):
        monkeypatch.setattr(ranges, "HELD_NBYTES", nbytes)
        with record(fixtures / "digits_cnn.tflite") as interpreter:
            outputs = loop(interpreter, images[:2, None])
        found.append((interpreter.ranges, np.array(outputs)))
    assert found[0][0] == found[1][0] and np.allclose(found[0][1], found[1][1], atol=1e-6)


def test_signatures_are_called_by_name(fixtures: Path) -> None:
    path = fixtures / "two_signatures_shared_weights.tflite"
    reference = litert(path)
    with record(path) as interpreter:
        for key in ("encode", "score"):
            mine, theirs = (each.get_signature_runner(key) for each in (interpreter, reference))
            (name,) = mine.get_input_details()
            assert same(mine.get_output_details(), theirs.get_output_details())
            sample = np.linspace(-1, 1, 40, dtype=np.float32)[None]
            one, other = mine(**{name: sample}), theirs(**{name: sample})
            assert one.keys() == other.keys()
            assert all(np.allclose(one[each], other[each], atol=1e-6) for each in one)
            with pytest.raises(UsageError, match=f"takes {name}"):
                mine(other=sample)
        assert len(interpreter.ranges.subgraphs) == 2 and all(interpreter.ranges.subgraphs)
        with pytest.raises(UsageError, match="'encode', 'score'"):
            interpreter.get_signature_runner("none")
        with pytest.raises(UsageError, match="'encode', 'score'"):
            interpreter.get_signature_runner()


@pytest.mark.parametrize("name", ["resource_variables", "lstm"])
def test_what_a_model_keeps_carries_over(name: str, fixtures: Path) -> None:
    path = fixtures / f"{name}.tflite"
    reference = litert(path)
    shape = reference.get_input_details()[0]["shape"]
    samples = [np.full(shape, value, np.float32) for value in (0.5, 0.5, 0.5)]
    with record(path) as interpreter:
        first = loop(interpreter, samples)
        assert np.allclose(first, loop(reference, samples), atol=1e-5)
        interpreter.reset_all_variables()
        assert np.allclose(loop(interpreter, samples), first, atol=1e-6)
    assert name == "lstm" or not np.allclose(first[0], first[1])


def test_inputs_of_another_shape(fixtures: Path) -> None:
    path = fixtures / "dynamic_shapes.tflite"
    reference = litert(path)
    with record(path) as interpreter:
        for shape in ((1, 3, 40), (1, 1, 40)):
            sample = np.ones(shape, np.float32)
            for each in (interpreter, reference):
                (taken,) = each.get_input_details()
                each.resize_tensor_input(taken["index"], list(shape))
                each.allocate_tensors()
            assert interpreter.get_input_details()[0]["shape"].tolist() == list(shape)
            assert np.allclose(loop(interpreter, [sample]), loop(reference, [sample]), atol=1e-6)
        index = interpreter.get_input_details()[0]["index"]
        with pytest.raises(UsageError, match="-1"):
            interpreter.resize_tensor_input(index, [1, 1, 41], strict=True)


def test_outputs_that_no_operator_makes(tmp_path: Path) -> None:
    net = Net()
    source = net.input("in", (1, 2))
    net.output(net.add("RELU", [source], "out", (1, 2)))
    net.output(source)
    net.output(net.constant("fixed", np.array([7.0], np.float32)))
    save(net.model, tmp_path / "net.tflite")
    with record(tmp_path / "net.tflite") as interpreter:
        interpreter.set_tensor(0, np.array([[-1, 2]], np.float32))
        interpreter.invoke()
        found = [interpreter.get_tensor(item["index"]).tolist() for item in interpreter.get_output_details()]
    assert found == [[[0, 2]], [[-1, 2]], [7]]
    assert [row[3:] for row in interpreter.ranges.subgraphs[0]] == [(-1, 2), (0, 2)]


def test_nothing_runs_after_the_block_and_ranges_stay(fixtures: Path) -> None:
    with record(fixtures / "dense.tflite") as interpreter:
        interpreter.invoke()
    assert interpreter.ranges.count
    with pytest.raises(UsageError, match="after the with block"):
        interpreter.invoke()


def test_what_does_not_fit_is_said(fixtures: Path, tmp_path: Path) -> None:
    with record(fixtures / "digits_cnn.tflite") as interpreter:
        with pytest.raises(UsageError, match="nothing was run"):
            _ = interpreter.ranges
        (taken,), (given,) = interpreter.get_input_details(), interpreter.get_output_details()
        with pytest.raises(UsageError, match="float64, the input float32"):
            interpreter.set_tensor(taken["index"], np.zeros((1, 8, 8, 1)))
        with pytest.raises(UsageError, match="resize_tensor_input"):
            interpreter.set_tensor(taken["index"], np.zeros((2, 8, 8, 1), np.float32))
        with pytest.raises(UsageError, match="no input of the model"):
            interpreter.set_tensor(given["index"], np.zeros((1, 10), np.float32))
        with pytest.raises(UsageError, match="get_output_details"):
            interpreter.get_tensor(given["index"])
        interpreter.invoke()
        assert interpreter.get_tensor(taken["index"]).sum() == 0, "inputs that were not set are zeros"
    net = Net()
    net.output(net.add("CONV_2D", [net.input("in", (1, 4))] * 3, "out", (1, 4)))
    save(net.model, tmp_path / "net.tflite")
    with (
        record(tmp_path / "net.tflite") as interpreter,
        pytest.raises(UnsupportedError, match="does not run"),
    ):
        interpreter.invoke()
