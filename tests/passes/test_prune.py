"""Pruned weights: what goes, what stays, what later passes make of the zeros, and the search."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tfl_rewrite import Judging, UsageError, load, rewrite, save, verify
from tfl_rewrite.cli.main import main
from tfl_rewrite.editing.base import Context, run_passes
from tfl_rewrite.files.source import is_changed
from tfl_rewrite.model.ir import Model
from tfl_rewrite.numerics.grids import Float64
from tfl_rewrite.numerics.symmetric import Error
from tfl_rewrite.passes import Prune, QuantizeWeights
from tfl_rewrite.passes.prune import PrunedChange
from tfl_rewrite.weights.payloads import PrunedPayload

from ..nets import Net, codes, data_of, named, run


def small(*, twice: bool = False) -> Net:
    net = Net()
    x = net.input("x", (1, 40))
    net.output(net.dense(x, net.weights("w", (32, 40)), "y"))
    if twice:
        net.output(net.dense(x, net.weights("v", (32, 40), named(net.model, "w").buffer), "z"))
    return net


def written(model: Model, tmp_path: Path) -> Model:
    save(model, tmp_path / "made.tflite", force=True)
    return load(tmp_path / "made.tflite")


def zeros(model: Model, name: str) -> float:
    return float(np.mean(data_of(named(model, name)) == 0))


def test_the_smallest_go_and_a_second_run_changes_nothing(tmp_path: Path) -> None:
    model = small().model
    before = data_of(named(model, "w")).copy()
    (result,) = run_passes(model, [Prune(sparsity=0.75)])
    (change,) = result.changes
    assert isinstance(change, PrunedChange) and change.to_dict()["outcome"] == "pruned"
    made = written(model, tmp_path)
    after = data_of(named(made, "w"))
    assert np.mean(after == 0) == 0.75
    assert (after[after != 0] == before[after != 0]).all()
    assert np.abs(before[after == 0]).max() <= np.abs(before[after != 0]).min()
    (again,) = run_passes(made, [Prune(sparsity=0.75)])
    assert not again.modified and again.idle and not is_changed(made)
    assert [skip.rule for skip in again.skips] == ["pruned"]


def test_what_is_no_weight_stays() -> None:
    net = small()
    other = net.constant("other", np.ones((1, 32), np.float32) * np.arange(32, dtype=np.float32))
    net.output(net.add("ADD", [net.model.subgraphs[0].outputs[0], other], "sum", (1, 32)))
    net.weights("unread", (8, 40))
    (result,) = run_passes(net.model, [Prune(min_elements=16)])
    assert [change.where for change in result.changes] == ["w"]
    assert {skip.where: skip.rule for skip in result.skips}["other"] == "no-weight"
    (result,) = run_passes(small().model, [Prune(exclude=("^w$",))])
    assert not result.modified and result.skips[0].rule == "excluded"
    (result,) = run_passes(small().model, [Prune(include=("CONV",))])
    assert not result.modified and result.skips[0].rule == "not-included"


@pytest.mark.runtime
@pytest.mark.parametrize("block", ["1x1", "1x4"])
@pytest.mark.parametrize("kind", ["float32", "float16"])
def test_sparse_files_are_smaller_and_give_the_same(block: str, kind: str, tmp_path: Path) -> None:
    net = Net()
    x = net.input("x", (1, 64))
    values = np.random.default_rng(0).standard_normal((96, 64)).astype(np.float32)
    weight = net.constant("w", values) if kind == "float32" else net.half("w", values)
    net.output(net.dense(x, weight, "y"))
    save(net.model, tmp_path / "in.tflite")
    feeds = {"x": np.random.default_rng(1).standard_normal((1, 64)).astype(np.float32)}
    outputs, sizes = [], []
    for encode in ("dense", "sparse"):
        model = load(tmp_path / "in.tflite")
        run_passes(model, [Prune(sparsity=0.8, block=block, encode=encode)])
        written(model, tmp_path)
        outputs.append(run(tmp_path / "made.tflite", feeds)["y"])
        sizes.append((tmp_path / "made.tflite").stat().st_size)
    assert ("DENSIFY", 1) in codes(model)
    assert np.array_equal(*outputs)
    assert sizes[1] < (0.45 if kind == "float32" else 0.6) * sizes[0]


def test_a_sparse_form_that_is_no_smaller_is_not_taken() -> None:
    model = small().model
    (result,) = run_passes(model, [Prune(sparsity=0.05, encode="sparse")])
    assert isinstance(result.changes[0], PrunedChange)
    assert (result.changes[0].encode, result.changes[0].saved) == ("dense", 0)
    assert ("DENSIFY", 1) not in codes(model)


def test_weights_that_share_bytes_stay_one(tmp_path: Path) -> None:
    model = small(twice=True).model
    run_passes(model, [Prune(sparsity=0.8, encode="sparse")])
    made = written(model, tmp_path)
    assert zeros(made, "w") == zeros(made, "v") == 0.8
    assert named(made, "w").buffer is named(made, "v").buffer


class Known:
    """Gives values that were made up."""

    def __init__(self) -> None:
        self.asked: list[tuple[float, int]] = []

    def prepare(self, model: Model, items: Any, share: float | None = None) -> None:
        assert len(items) == 1 and share == 0.25

    def fit(self, item: Any, values: Any, steps: Any) -> None:
        raise AssertionError

    def costs(self, item: Any, values: Any) -> Float64:
        return np.ones(values.size)

    def prune(self, item: Any, values: Any, share: float, block: int) -> tuple[Float64, Error]:
        self.asked.append((share, block))
        return np.full(values.size, 2.0), Error(100.0, 1.0)

    def notes(self) -> list[str]:
        return ["looked at inputs"]


def test_what_inputs_say_is_taken(tmp_path: Path) -> None:
    model, known = small().model, Known()
    (result,) = run_passes(model, [Prune(sparsity=0.25, block="1x4", fitting=known)])
    assert (data_of(named(written(model, tmp_path), "w")) == 2.0).all()
    assert set(known.asked) == {(0.25, 4)} and "looked at inputs" in result.notes
    assert isinstance(result.changes[0], PrunedChange)
    assert isinstance(result.changes[0].payload, PrunedPayload) and result.changes[0].snr == 20.0


@pytest.mark.runtime
def test_inputs_win_and_quantization_keeps_the_zeros(fixtures: Path, tmp_path: Path) -> None:
    inputs, source = fixtures / "inputs" / "mtcnn_rnet.npz", fixtures / "mtcnn_rnet.tflite"
    found = {}
    for effort in ("fast", "balanced"):
        target = tmp_path / f"{effort}.tflite"
        rewrite(source, target, [Prune(effort=effort)], judging=Judging(mode="off", inputs=(inputs,)))
        found[effort] = verify(source, target, Judging(inputs=(inputs,))).worst_snr() or 0.0
    assert found["balanced"] > found["fast"] + 6
    judging = Judging(mode="off", inputs=(inputs,))
    passes = [QuantizeWeights(scheme="dequantize")]
    rewrite(tmp_path / "balanced.tflite", tmp_path / "int8.tflite", passes, judging=judging)
    before, after = load(tmp_path / "balanced.tflite"), load(tmp_path / "int8.tflite")
    big = max(before.subgraphs[0].tensors, key=lambda tensor: tensor.buffer.nbytes)
    codes_of = data_of(named(after, f"{big.name}_int8"))
    assert np.mean(data_of(big) == 0) >= 0.49
    assert not codes_of[data_of(big) == 0].any()


def test_a_ratio_needs_the_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has to run the file"):
        Prune(min_snr=20.0).run(small().model, Context())
    with pytest.raises(UsageError):
        Prune(sparsity=1.5)


@pytest.mark.slow
@pytest.mark.runtime
def test_a_ratio_is_searched_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = small()
    net.output(net.dense(net.model.subgraphs[0].outputs[0], net.weights("v", (24, 32)), "z"))
    source, target = tmp_path / "in.tflite", tmp_path / "out.tflite"
    save(net.model, source)
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).standard_normal((12, 1, 40)).astype(np.float32))
    words = ["prune", source, target, "--min-snr", "15", "--inputs", tmp_path / "x.npz"]
    assert main([*map(str, words)]) == 0
    said = capsys.readouterr().out
    assert "pruned now" in said and "PASS" in said
    assert zeros(load(target), "w") > 0.1
    # Where no weight may lose much, small shares are left.
    words[4] = "28"
    assert main([*map(str, words), "--force"]) == 0
    assert "PASS" in capsys.readouterr().out
    assert 0.04 < zeros(load(target), "w") < 0.15
