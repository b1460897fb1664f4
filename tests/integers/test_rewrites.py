"""Rewrites that make room for better integers compute what was computed before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.nets import Net, codes, run
from tfl_rewrite import save
from tfl_rewrite.integers.rewrites import negations_to_products, pools_to_means, selects_to_broadcasts
from tfl_rewrite.model.invariants import broken


def pool(
    shape: tuple[int, ...] = (1, 5, 3, 4), result: tuple[int, ...] = (1, 1, 1, 4), **options: Any
) -> Net:
    known: dict[str, Any] = {"filter_height": shape[1], "filter_width": shape[2]}
    known |= {"stride_h": 1, "stride_w": 1, "padding": 1} | options
    net = Net()
    made = net.add("AVERAGE_POOL_2D", [net.input("in", shape)], "pooled", result, **known)
    net.output(net.add("RELU", [made], "out", result))
    return net


@pytest.mark.runtime
def test_a_pool_over_the_plane_becomes_a_mean(tmp_path: Path) -> None:
    net = pool()
    sample = np.random.default_rng(0).standard_normal((1, 5, 3, 4)).astype(np.float32)
    save(net.model, tmp_path / "pool.tflite")
    ((before, after),) = pools_to_means(net.model, lambda _: False)
    assert (before.code.name, after.code.name) == ("AVERAGE_POOL_2D", "MEAN")
    assert broken(net.model) == []
    assert [name for name, _ in codes(net.model)] == ["MEAN", "RELU"]
    save(net.model, tmp_path / "mean.tflite")
    one, other = (run(tmp_path / f"{name}.tflite", {"in": sample})["out"] for name in ("pool", "mean"))
    assert one.shape == other.shape
    np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize(
    "net",
    [
        pool(filter_width=2, result=(1, 1, 2, 4)),
        pool(fused_activation_function=1),
        pool(filter_height=9, filter_width=9, padding=0, result=(1, 5, 3, 4)),
    ],
    ids=["a part of the plane", "with an activation function", "at each place of it"],
)
def test_other_pools_stay(net: Net) -> None:
    assert pools_to_means(net.model, lambda _: False) == []


def test_a_pool_that_somebody_keeps_stays() -> None:
    net = pool()
    assert pools_to_means(net.model, lambda operator: operator.code.name == "AVERAGE_POOL_2D") == []
    assert [name for name, _ in codes(net.model)] == ["AVERAGE_POOL_2D", "RELU"]


def negated() -> Net:
    net = Net()
    net.output(net.add("NEG", [net.input("in", (2, 3))], "out", (2, 3)))
    return net


@pytest.mark.runtime
def test_negations_become_products_and_stay_exact(tmp_path: Path) -> None:
    net = negated()
    save(net.model, tmp_path / "before.tflite")
    ((before, after),) = negations_to_products(net.model, lambda _: False)
    assert before.code.name == "NEG" and codes(net.model) == [("MUL", 1)]
    assert net.model.subgraphs[0].operators == [after] and broken(net.model) == []
    save(net.model, tmp_path / "after.tflite")
    values = {"in": np.random.default_rng(3).standard_normal((2, 3)).astype(np.float32)}
    made = [run(tmp_path / f"{name}.tflite", values)["out"] for name in ("before", "after")]
    assert np.array_equal(*made)


def test_what_is_to_stay_or_negates_integers_is_left() -> None:
    net = negated()
    assert negations_to_products(net.model, lambda _: True) == []
    net = Net()
    net.output(net.add("NEG", [net.input("in", (2,), np.int32)], "out", (2,), dtype=np.int32))
    assert negations_to_products(net.model, lambda _: False) == []
    assert codes(net.model) == [("NEG", 1)]


def choosing(condition: tuple[int, ...], dtype: Any = np.float32) -> Net:
    net = Net()
    chosen = net.input("chosen", condition, np.bool_)
    inputs = [chosen, *(net.input(name, (2, 3), dtype) for name in ("one", "other"))]
    net.output(net.add("SELECT", inputs, "out", (2, 3), dtype=dtype))
    return net


@pytest.mark.runtime
def test_a_select_of_one_shape_becomes_one_that_broadcasts(tmp_path: Path) -> None:
    net, random = choosing((2, 3)), np.random.default_rng(0)
    samples = {"chosen": random.uniform(0, 1, (2, 3)) > 0.5}
    samples |= {name: random.standard_normal((2, 3)).astype(np.float32) for name in ("one", "other")}
    save(net.model, tmp_path / "before.tflite")
    assert len(selects_to_broadcasts(net.model)) == 1
    assert broken(net.model) == []
    assert [name for name, _ in codes(net.model)] == ["SELECT_V2"]
    save(net.model, tmp_path / "after.tflite")
    one, other = (run(tmp_path / f"{name}.tflite", samples)["out"] for name in ("before", "after"))
    assert np.array_equal(one, other)


@pytest.mark.parametrize("net", [choosing((2,)), choosing((2, 3), np.int32)], ids=["rows", "int32"])
def test_another_select_stays(net: Net) -> None:
    assert selects_to_broadcasts(net.model) == []
    assert [name for name, _ in codes(net.model)] == ["SELECT"]
