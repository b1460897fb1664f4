"""The ranges of tensors on real inputs."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.kernels.integer_cases import WITH_STATE
from tests.nets import Net, growing_cell
from tfl_rewrite import Judging, UnsupportedError, load, save
from tfl_rewrite.calibration import ranges
from tfl_rewrite.calibration.ranges import Memories, Ranges
from tfl_rewrite.model.ir import Model


def net_of_two() -> Net:
    net = Net()
    made = net.add("RELU", [net.input("in", (1, 4))], "made", (1, 4))
    other = net.constant("other", np.array([-3, 0, 0, 2], np.float32))
    net.output(net.add("MUL", [made, other], "out", (1, 4)))
    return net


def seen(tmp_path: Path, samples: Any) -> dict[str, tuple[float, float]]:
    save(net_of_two().model, tmp_path / "net.tflite")
    np.savez(tmp_path / "in.npz", **{"in": np.asarray(samples, np.float32)})
    model = load(tmp_path / "net.tflite")
    found = Ranges(Judging(inputs=(tmp_path / "in.npz",))).of(model)
    return {item.name: found[id(item)] for item in model.subgraphs[0].tensors if id(item) in found}


SAMPLES = [[[-1, 0, 0, 4]], [[-2, 1, 0, 3]]]
WANTED = {"in": (-2, 4), "made": (0, 4), "other": (-3, 2), "out": (0, 8)}


@pytest.mark.runtime
def test_ranges_are_those_of_all_samples(tmp_path: Path) -> None:
    assert seen(tmp_path, SAMPLES) == WANTED


@pytest.mark.runtime
def test_what_does_not_fit_into_memory_takes_more_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranges, "HELD_NBYTES", 16)
    assert seen(tmp_path, SAMPLES) == WANTED


@pytest.mark.runtime
@pytest.mark.parametrize("first", [0, 1])
def test_a_value_that_is_no_number_is_not_lost_among_others(tmp_path: Path, first: int) -> None:
    samples = [[[math.nan, 1, 1, 1]], [[1, 1, 1, 1]]]
    low, high = seen(tmp_path, samples if not first else samples[::-1])["in"]
    assert math.isnan(low) and math.isnan(high)


@pytest.mark.runtime
def test_a_model_that_does_not_run_is_said(tmp_path: Path) -> None:
    net = Net()
    net.output(net.add("CONV_2D", [net.input("in", (1, 4))] * 3, "out", (1, 4)))
    save(net.model, tmp_path / "net.tflite")
    np.savez(tmp_path / "in.npz", **{"in": np.zeros((2, 1, 4), np.float32)})
    model: Model = load(tmp_path / "net.tflite")
    with pytest.raises(UnsupportedError, match="could not be run"):
        Ranges(Judging(inputs=(tmp_path / "in.npz",))).of(model)


@pytest.mark.runtime
@pytest.mark.parametrize("label", WITH_STATE)
def test_states_are_followed_as_the_kernels_compute_them(label: str, tmp_path: Path) -> None:
    model, (given,) = WITH_STATE[label]()
    save(model, tmp_path / "net.tflite")
    opened = importlib.import_module("ai_edge_litert.interpreter").Interpreter(str(tmp_path / "net.tflite"))
    opened.allocate_tensors()
    (taken,) = opened.get_input_details()
    graph = load(tmp_path / "net.tflite").subgraphs[0]
    memories = Memories(graph)
    for turn in range(3):
        opened.set_tensor(taken["index"], given)
        opened.invoke()
        ((at, held),) = memories.run(taken["index"], given, first=not turn)
        wanted = opened.get_tensor(at)
        if "SVDF" in label:
            # What came last is at the end of what each filter keeps.
            filters = held.shape[1]
            assert np.allclose(wanted.reshape(len(given), filters, -1)[:, :, -1], held, atol=1e-5)
        else:
            assert np.allclose(wanted, held[-1], atol=1e-4), turn


@pytest.mark.runtime
@pytest.mark.parametrize("independent", [False, True])
def test_samples_are_one_sequence_unless_they_are_independent(independent: bool, tmp_path: Path) -> None:
    net = growing_cell()
    save(net.model, tmp_path / "net.tflite")
    np.savez(tmp_path / "in.npz", **{"in": np.full((3, 1, 1, 1), 20, np.float32)})
    model = load(tmp_path / "net.tflite")
    found = Ranges(Judging(inputs=(tmp_path / "in.npz",), independent=independent)).of(model)
    high = {item.name: found[id(item)][1] for item in model.subgraphs[0].tensors if id(item) in found}
    steps = 1 if independent else 3
    assert high["cell"] == pytest.approx(steps, abs=1e-5)
    assert high["out"] == pytest.approx(math.tanh(steps), abs=1e-5)
