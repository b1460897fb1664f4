"""Weights in a form that an older runtime does not know: stored anew for it, or refused."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tfl_rewrite import UnsupportedError, diagnose, load, rewrite, save
from tfl_rewrite.cli import main
from tfl_rewrite.cli.render import report_lines
from tfl_rewrite.editing.base import run_passes
from tfl_rewrite.judge.judge import run_model
from tfl_rewrite.judge.settings import Judging
from tfl_rewrite.kernels.operands import scales_of
from tfl_rewrite.model.ir import Model
from tfl_rewrite.passes.quantize_weights import QuantizeWeights
from tfl_rewrite.weights.state import late_forms

from ..faulty_models import batch_matmul, blockwise, convolution, dense, full_integer, ints, scaled
from ..nets import Net, codes, decibels, named

OLD = os.environ.get("TFL_REWRITE_OLD_RUNTIME_PYTHON")
OLDEST = (2, 14)


def expanded(dtype: str, *, granularity: str = "channel") -> Model:
    """A float matrix, stored as packed integers behind DEQUANTIZE, by what this program makes itself."""
    net = Net(21)
    source = net.input("x", (2, 64))
    net.output(net.dense(source, net.weights("w", (64, 64)), "y"))
    run_passes(
        net.model,
        [QuantizeWeights(dtype=dtype, scheme="dequantize", granularity=granularity, min_elements=1)],
    )[0]
    return net.model


def four_bits() -> Model:
    """A hybrid CONV_2D over int4 weights."""
    net = Net(22)
    source = net.input("x", (1, 5, 5, 4))
    values = net.random.integers(-7, 7, (4, 3, 3, 4), endpoint=True).astype(np.uint8).reshape(-1) & 15
    weight = net.constant("w", np.zeros((4, 3, 3, 4), np.int8))
    weight.dtype = 17
    weight.buffer = net.buffer((values[0::2] | (values[1::2] << 4)).astype(np.uint8).tobytes())
    scaled(weight, [0.01, 0.02, 0.03, 0.04])
    inputs = [source, weight, net.constant("b", np.ones(4, np.float32))]
    net.output(net.add("CONV_2D", inputs, "y", (1, 5, 5, 4), version=8, stride_w=1, stride_h=1))
    return net.model


LATE: dict[str, Callable[[], Model]] = {
    "dense per channel": dense,
    "dense per channel, stamped too low": lambda: dense(version=9),
    "dense in blocks": lambda: blockwise(zero=False),
    "convolution, equal scales": lambda: convolution(equal=True),
    "convolution int4": four_bits,
    "batch matmul per channel": batch_matmul,
    "int4 behind DEQUANTIZE": lambda: expanded("int4"),
    "int2 behind DEQUANTIZE": lambda: expanded("int2"),
    "int6": lambda: expanded("int6"),
    "int6 in blocks": lambda: expanded("int6", granularity="block:32"),
    "int4 in blocks behind DEQUANTIZE": lambda: expanded("int4", granularity="block:32"),
}


@pytest.mark.runtime
@pytest.mark.parametrize("make", LATE.values(), ids=LATE)
@pytest.mark.parametrize("scheme", ["auto", "dequantize"])
def test_late_forms_become_older_ones(make: Callable[[], Model], scheme: str, tmp_path: Path) -> None:
    source, target = tmp_path / "in.tflite", tmp_path / "out.tflite"
    save(make(), source)
    assert list(late_forms(load(source), OLDEST))
    report = rewrite(source, target, [QuantizeWeights(min_runtime="2.14", scheme=scheme, min_elements=1)])
    assert report.outcome == "rewritten" and report.verdict is not None and report.verdict.passed
    assert any("stored anew" in note for note in report.results[0].notes)
    said = "\n".join(report_lines(report, verbose=0))
    assert re.search(
        r"^quantize-weights: \d integer constants? stored anew as int8 \(", said, re.MULTILINE
    ), said
    assert "float constants are" not in said
    assert all(change.to_dict()["renewed"] for change in report.results[0].changes)
    made = load(target)
    assert not list(late_forms(made, OLDEST))
    found = diagnose(target, min_runtime="2.14").findings
    assert not [item for item in found if item.severity.value != "note"]
    again = rewrite(target, tmp_path / "again.tflite", [QuantizeWeights(min_runtime="2.14", min_elements=1)])
    assert again.outcome == "unchanged"
    if OLD:
        wanted = run_model(source, Judging(samples=2))
        got = run_model(target, Judging(samples=2, runtime=f"python:{OLD}"))
        assert wanted.failure is None and got.failure is None, got.failure
        for one, two in zip(wanted.outputs, got.outputs, strict=True):
            assert decibels(one.values[0], two.values[0]) > 25  # type: ignore[arg-type]


def test_what_a_runtime_knows_stays() -> None:
    for runtime, renewed in (("2.14", True), ("2.16", True), ("2.17", False)):
        model = dense()
        result = run_passes(model, [QuantizeWeights(min_runtime=runtime, min_elements=1)])[0]
        assert result.modified is renewed
        assert (len(scales_of(named(model, "w"))) == 1) is renewed


@pytest.mark.runtime
def test_sizes_are_those_of_the_file(tmp_path: Path) -> None:
    source, target = tmp_path / "in.tflite", tmp_path / "out.tflite"
    save(dense(), source)
    report = rewrite(source, target, [QuantizeWeights(min_runtime="2.14", min_elements=1)])
    (change,) = report.results[0].changes
    assert change.to_dict()["nbytes_before"] == 128 and change.to_dict()["saved"] < 0


def test_what_the_user_keeps_is_refused_where_it_would_be_misread() -> None:
    with pytest.raises(UnsupportedError, match=r"2\.14 misreads a per-channel int8 weight") as caught:
        run_passes(dense(), [QuantizeWeights(min_runtime="2.14", exclude=["^w$"])])[0]
    assert caught.value.remedy is not None and "2.17" in caught.value.remedy


def test_operators_that_a_runtime_does_not_have_are_named(fixtures: Path) -> None:
    model = load(fixtures / "composite.tflite")
    result = run_passes(model, [QuantizeWeights(min_runtime="2.14")])[0]
    assert any("STABLEHLO_COMPOSITE version 1, first in 2.17" in note for note in result.notes)


def test_versions_are_lowered_for_the_runtime() -> None:
    net = Net(23)
    source = net.input("x", (2, 64))
    half = net.add("ADD", [source, source], "m", (2, 64), version=6)
    net.output(net.dense(half, net.weights("w", (64, 64)), "y"))
    result = run_passes(net.model, [QuantizeWeights(min_runtime="2.14")])[0]
    assert ("ADD", 1) in codes(net.model) and any(
        "ADD: version 6 lowered to 1" in note for note in result.notes
    )


def test_integer_arithmetic_is_no_late_form() -> None:
    """Scales per channel of a full-integer operator have been right since int8."""
    net = Net(24)
    source = scaled(net.input("x", (2, 8), np.int8), [0.02])
    weight = scaled(net.constant("w", ints(net, (16, 8))), np.linspace(0.01, 0.02, 16))
    out = net.add("FULLY_CONNECTED", [source, weight, None], "y", (2, 16), dtype=np.int8, version=6)
    net.output(scaled(out, [0.05]))
    assert not list(late_forms(net.model, OLDEST))
    assert not list(late_forms(full_integer(bias_scale=0.0002), OLDEST))


@pytest.mark.runtime
def test_the_doctor_recommends_what_does_something(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = tmp_path / "in.tflite", tmp_path / "out.tflite"
    save(dense(), source)
    found = [item for item in diagnose(source, min_runtime="2.14").findings if item.kind == "too-new"]
    assert {item.remedy for item in found} == {"tfl-rewrite quantize-weights IN OUT --min-runtime 2.14"}
    words = found[0].remedy.split()[1:]
    code = main([{"IN": str(source), "OUT": str(target)}.get(word, word) for word in words])
    assert code == 0 and "nothing to do" not in capsys.readouterr().out
    assert not diagnose(target, min_runtime="2.14").reaches(found[0].severity)
