"""Integer activations beside floats in one search."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tfl_rewrite
from tfl_rewrite import Goal, Judging, UsageError, load, save
from tfl_rewrite.calibration.fitter import InputActivations
from tfl_rewrite.editing.base import Context
from tfl_rewrite.passes import Quantize
from tfl_rewrite.search.goals import ram_nbytes
from tfl_rewrite.search.report import ShrinkFailed, ShrinkReport

from ..nets import Net

FEW = ("int8:channel:dequantize", "int4:channel:dequantize")


@pytest.fixture(scope="module")
def digits(fixtures: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Judging]:
    folder = tmp_path_factory.mktemp("digits")
    with np.load(fixtures / "inputs" / "digits_calib.npz") as file:
        np.savez(folder / "some.npz", **{key: file[key][:8] for key in file.files})
    return fixtures / "digits_cnn.tflite", Judging(inputs=(folder / "some.npz",), resolver=("builtin",))


def search(digits: tuple[Path, Judging], target: Path, **more: Any) -> ShrinkReport:
    settings: dict[str, Any] = {"effort": "fast", "encodings": FEW, "activations": "any", **more}
    return tfl_rewrite.shrink(digits[0], target, Goal(**settings), judging=digits[1])


def outcomes(report: ShrinkReport) -> dict[str, str]:
    return {item.activations: item.reason for item in report.tried}


@pytest.mark.runtime
def test_memory_is_least_with_integers(digits: tuple[Path, Judging], tmp_path: Path) -> None:
    source, judging = digits
    every = source, replace(judging, resolver=())
    report = search(every, tmp_path / "out.tflite", min_snr=20.0, objective="ram")
    told = outcomes(report)
    assert told["int8"] == "" and "bytes of memory" in told["float"] and told["int16"].startswith("not tried")
    made = {tensor.dtype_name for _, tensor in load(tmp_path / "out.tflite").tensors()}
    assert "INT8" in made and report.promised is not None and report.promised.activations == "int8"
    assert report.report is not None
    assert [verdict.judge.kernels for verdict in report.report.verdicts if verdict.judge is not None] == [
        "default",
        "builtin",
        "reference",
    ]
    data = json.loads(json.dumps(report.to_dict()))
    assert [row["chosen"] for row in data["activations"]] == [False, True, False, False]
    assert data["activations"][0]["cost"] > 1.5 * data["activations"][1]["cost"]
    assert "# tfl-rewrite quantize IN OUT --inputs PATH\n" in report.recipe()


@pytest.mark.runtime
def test_the_smallest_file_is_what_floats_alone_give(digits: tuple[Path, Judging], tmp_path: Path) -> None:
    reports = [
        search(digits, tmp_path / f"{kind}.tflite", min_snr=20.0, activations=kind, encodings=FEW[:1])
        for kind in ("float", "any")
    ]
    assert (tmp_path / "float.tflite").read_bytes() == (tmp_path / "any.tflite").read_bytes()
    assert not reports[0].tried and "activations" not in reports[0].to_dict()
    told = outcomes(reports[1])
    assert told["float"] == "" and "bytes, " in told["int8"] and "with float" in told["int8"]


@pytest.mark.runtime
def test_sixteen_bits_where_eight_miss_the_budget(digits: tuple[Path, Judging], tmp_path: Path) -> None:
    report = search(digits, tmp_path / "out.tflite", min_snr=40.0, activations="any", objective="ram")
    told = outcomes(report)
    assert "misses SNR of 40 dB" in told["int8"]
    assert "" in (told["mixed"], told["int16"]), told
    words = next(item for item in report.tried if item.chosen).passes[0].recipe
    again = tmp_path / "again.tflite"
    maps = [shlex.split(word)[1] for word in words if word.startswith("--map")]
    same = Quantize(
        activations=words[1], effort="fast", map=tuple(maps), float_islands="allow", target="litert"
    )
    tfl_rewrite.rewrite(digits[0], again, [same], judging=replace(digits[1], mode="off"))
    kinds = [
        {tensor.dtype_name for _, tensor in load(path).tensors() if not tensor.is_constant}
        for path in (again, tmp_path / "out.tflite")
    ]
    assert kinds[0] == kinds[1] and "INT16" in kinds[0]


@pytest.mark.runtime
def test_a_kind_that_misses_the_budget_is_told(digits: tuple[Path, Judging], tmp_path: Path) -> None:
    report = search(digits, tmp_path / "out.tflite", min_snr=60.0, activations="int8")
    assert "on held-out inputs" in outcomes(report)["int8"]
    # The original keeps it.
    assert outcomes(report)["float"] == "" and report.promised is not None and not report.promised.choice
    assert (tmp_path / "out.tflite").stat().st_size == report.promised.nbytes
    with pytest.raises(ShrinkFailed) as failure:
        search(digits, tmp_path / "no.tflite", min_snr=60.0, max_nbytes=20_000, activations="int8")
    assert failure.value.exit_code == 4 and not (tmp_path / "no.tflite").exists()
    # What hindered integers may not be the budget.
    assert f"; int8: {outcomes(failure.value.report)['int8']}; nothing was written" in str(failure.value)


@pytest.mark.runtime
@pytest.mark.parametrize("kind", ["int8", "any"])
def test_made_inputs_calibrate_nothing(fixtures: Path, tmp_path: Path, kind: str) -> None:
    goal = Goal(min_snr=20.0, effort="fast", encodings=FEW, activations=kind)
    if kind == "any":
        report = tfl_rewrite.shrink(fixtures / "dense.tflite", tmp_path / "out.tflite", goal)
        assert "the ranges of made inputs mean nothing" in outcomes(report)["int8"]
        return
    with pytest.raises(UsageError, match="integer activations need real inputs") as failure:
        tfl_rewrite.shrink(fixtures / "dense.tflite", tmp_path / "out.tflite", goal)
    assert failure.value.exit_code == 2 and not list(tmp_path.iterdir())


@pytest.mark.runtime
def test_what_is_excluded_stays_float(digits: tuple[Path, Judging], tmp_path: Path) -> None:
    source = load(digits[0])
    reader = next(item for _, item in source.operators() if item.code.name == "FULLY_CONNECTED")
    weight = reader.inputs[1]
    assert weight is not None
    search(digits, tmp_path / "out.tflite", min_snr=15.0, activations="int8", exclude=(weight.name,))
    kept = {tensor.name: tensor.dtype_name for _, tensor in load(tmp_path / "out.tflite").tensors()}
    assert kept[weight.name] == "FLOAT32" and "INT8" in kept.values()


@pytest.mark.runtime
def test_no_time_is_told(digits: tuple[Path, Judging], tmp_path: Path) -> None:
    report = search(digits, tmp_path / "out.tflite", min_snr=20.0, time_limit=0.01)
    assert outcomes(report)["int8"] == "not tried: no time was left" and outcomes(report)["float"] == ""


@pytest.mark.runtime
def test_the_same_again_rounds_nothing(digits: tuple[Path, Judging], tmp_path: Path) -> None:
    """What is published is made once more than what was judged."""
    activations = InputActivations(digits[1])
    context = Context(activations=activations)
    files = []
    for number in range(2):
        model = load(digits[0])
        Quantize().run(model, context)
        save(model, tmp_path / f"{number}.tflite")
        files.append((tmp_path / f"{number}.tflite").read_bytes())
        memory = activations.memory(0)
        assert len(memory["rounders"]) == len(memory["recipes"]) == 1
    assert files[0] == files[1]


def test_memory_counts_what_is_held_at_once() -> None:
    net = Net()
    given = net.input("x", (1, 100))
    for number in range(3):
        given = net.add("RELU", [given], f"made{number}", (1, 100))
    net.output(given)
    # Of a chain, two at a time; nothing is constant.
    assert ram_nbytes(net.model) == 2 * 400
    net.output(net.dense(given, net.weights("w", (10, 100)), "last"))
    assert ram_nbytes(net.model) == 4 * 10 * 100 + 2 * 400
