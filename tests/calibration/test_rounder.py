"""The command with real inputs: what it wins, what it reports, and what it leaves alone."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tfl_rewrite import load, run
from tfl_rewrite.calibration import collect
from tfl_rewrite.calibration.fitter import InputActivations
from tfl_rewrite.calibration.probe import Runner
from tfl_rewrite.calibration.rounder import Calibrated, Ordered
from tfl_rewrite.cli import main
from tfl_rewrite.editing.base import Context
from tfl_rewrite.interpreter.process import Child
from tfl_rewrite.judge.judge import Judge
from tfl_rewrite.judge.settings import Judging, Tolerance
from tfl_rewrite.model.ir import Model
from tfl_rewrite.passes import Quantize
from tfl_rewrite.passes.quantize_weights import QuantizeWeights
from tfl_rewrite.pipeline.verify import verify
from tfl_rewrite.weights.encoding import Encoding
from tfl_rewrite.weights.payloads import WeightChange
from tfl_rewrite.weights.rounders import Effort

pytestmark = pytest.mark.runtime


def quantize(source: Path, out: Path, *options: str | Path) -> dict[str, Any]:
    """Runs the command and returns its report."""
    report = out.with_suffix(".json")
    words = ["quantize-weights", str(source), str(out), "--force", "-q", "--report", str(report)]
    code = main([*words, "--verify", "off", *map(str, options)])
    assert code == 0
    found: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
    return found


def ratio(before: Path, after: Path, inputs: Path) -> float:
    verdict = verify(before, after, Judging(inputs=[inputs], tolerance=Tolerance(min_snr=None)))
    return min(output.snr_db for output in verdict.outputs if output.snr_db is not None)


def biases(model: Model) -> list[bytes]:
    found = []
    for _, operator in model.operators():
        bias = operator.inputs[2] if operator.code.name in ("CONV_2D", "FULLY_CONNECTED") else None
        if bias is not None and bias.buffer.blob is not None:
            found.append(bytes(bias.buffer.blob.view()))
    return found


@pytest.mark.parametrize(("scheme", "best"), [("dequantize", "best"), ("auto", "balanced")])
def test_calibrated_int4_is_better_on_inputs_that_it_never_saw(
    fixtures: Path, tmp_path: Path, few: Path, scheme: str, best: str
) -> None:
    source = fixtures / "digits_cnn.tflite"
    won, sizes = {}, {}
    for effort in ("fast", best):
        out = tmp_path / f"{effort}.tflite"
        judge = fixtures / "inputs" / "digits_eval.npz"
        form = ("--dtype", "int4", "--scheme", scheme, "--effort", effort)
        report = quantize(source, out, *form, "--inputs", few, "--holdout", judge)
        won[effort], sizes[effort] = ratio(source, out, judge), out.stat().st_size
        changes = report["passes"][0]["changes"]
        assert changes and all(("gains_db" in change) is (effort != "fast") for change in changes)
        notes = report["passes"][0]["notes"]
        assert any("each behind those before it" in note for note in notes) is (effort == "best")
    assert sizes["fast"] == sizes[best]
    assert won[best] > won["fast"] + 3


def test_whole_command_on_a_real_net(fixtures: Path, tmp_path: Path) -> None:
    source, inputs = fixtures / "mtcnn_rnet.tflite", fixtures / "inputs" / "mtcnn_rnet.npz"
    base = ("--dtype", "int4", "--scheme", "dequantize", "--inputs", inputs)
    quantize(source, tmp_path / "fast.tflite", *base, "--effort", "fast")
    report = quantize(source, tmp_path / "one.tflite", *base)
    quantize(source, tmp_path / "two.tflite", *base)
    assert (tmp_path / "one.tflite").read_bytes() == (tmp_path / "two.tflite").read_bytes()
    notes = report["passes"][0]["notes"]
    # Three of twelve are held out.
    assert any("calibrated" in note and "on 9 sample(s)" in note for note in notes)
    for change in report["passes"][0]["changes"]:
        assert set(change["gains_db"]) == {"rounding", "rounding and bias"}
    fast, one = (ratio(source, tmp_path / f"{name}.tflite", inputs) for name in ("fast", "one"))
    assert one > fast + 3


def test_biases_move_unless_told_not_to(fixtures: Path, tmp_path: Path) -> None:
    source, inputs = fixtures / "mtcnn_rnet.tflite", fixtures / "inputs" / "mtcnn_rnet.npz"
    before = biases(load(source))
    quantize(source, tmp_path / "a.tflite", "--inputs", inputs)
    quantize(source, tmp_path / "b.tflite", "--inputs", inputs, "--no-bias-correction")
    assert biases(load(tmp_path / "b.tflite")) == before
    moved = biases(load(tmp_path / "a.tflite"))
    assert len(moved) == len(before) and any(a != b for a, b in zip(moved, before, strict=True))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("bidirectional_lstm", "read by BIDIRECTIONAL_SEQUENCE_LSTM"),
        ("text_embedding", "read by GATHER"),
        ("two_signatures_shared_weights", "several operators read them"),
        ("while_loop", "no sample to fit to enters their subgraph"),
    ],
)
def test_what_cannot_be_calibrated_is_rounded_plainly_and_named(
    fixtures: Path, tmp_path: Path, name: str, reason: str
) -> None:
    inputs = fixtures / "inputs" / f"{name}.npz"
    source, out = fixtures / f"{name}.tflite", tmp_path / "out.tflite"
    effort = "balanced" if name == "bidirectional_lstm" else "best"
    report = quantize(source, out, "--inputs", inputs, "--effort", effort, "--min-elements", "64")
    assert any(reason in note for note in report["passes"][0]["notes"]), report["passes"][0]["notes"]
    assert ratio(source, out, inputs) > 20


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mtcnn_rnet", ("--granularity", "block:32")),
        ("digits_cnn_float16", ("--scheme", "hybrid")),
        ("batch_matmul", ()),
    ],
)
def test_blocks_and_weights_behind_float16(
    fixtures: Path, tmp_path: Path, few: Path, name: str, options: tuple[str, ...]
) -> None:
    source = fixtures / f"{name}.tflite"
    real = few if "digits" in name else fixtures / "inputs" / f"{name}.npz"
    won = {}
    for effort in ("fast", "balanced"):
        out = tmp_path / f"{effort}.tflite"
        words = ("--dtype", "int4", "--inputs", real, "--holdout", real, "--effort", effort)
        report = quantize(source, out, *words, *options)
        won[effort] = ratio(source, out, real)
    assert any("calibrated" in note for note in report["passes"][0]["notes"])
    assert won["balanced"] > won["fast"] + 1


def test_inputs_that_do_not_fit_are_a_usage_error(
    fixtures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = tmp_path / "wrong.npz"
    np.savez(wrong, other=np.zeros((2, 3), np.float32))
    out = tmp_path / "out.tflite"
    code = main(["quantize-weights", str(fixtures / "dense.tflite"), str(out), "--inputs", str(wrong), "-q"])
    assert code == 2 and not out.exists()
    assert "wrong.npz" in capsys.readouterr().err


@pytest.mark.parametrize("in_order", [False, True])
def test_what_there_is_no_time_for_is_rounded_plainly(fixtures: Path, few: Path, in_order: bool) -> None:
    """Time is up after two weights: those are calibrated, and stay so when asked again."""
    asked = 0

    def time_is_up() -> bool:
        nonlocal asked
        asked += 1
        return asked > 3

    rounder = Calibrated(
        Judging(inputs=(few,)), ordered=Ordered() if in_order else None, time_is_up=time_is_up
    )
    settings = QuantizeWeights(encoding=Encoding.parse("int4:channel:dequantize"), rounder=rounder)
    for _ in range(2):
        model = load(fixtures / "digits_cnn.tflite")
        changes = [
            change for change in settings.run(model, Context()).changes if isinstance(change, WeightChange)
        ]
        calibrated = [change for change in changes if change.gains is not None]
        assert len(changes) > 3 and len(calibrated) == (3 if in_order else 2)
        assert any("there was no time left" in note for note in rounder.notes()) and rounder.ran_out_of_time
    rounder.prepare(model, [])
    assert not rounder.ran_out_of_time


@pytest.mark.parametrize("in_order", [False, True])
def test_the_processes_of_a_judge_do_as_well(
    fixtures: Path, few: Path, monkeypatch: pytest.MonkeyPatch, in_order: bool
) -> None:
    started = []
    start = Child.__init__

    def counted(self: Child, *arguments: Any, **options: Any) -> None:
        started.append(self)
        start(self, *arguments, **options)

    monkeypatch.setattr(Child, "__init__", counted)
    path, judging = fixtures / "digits_cnn.tflite", Judging(inputs=(few,))

    def made(beside: Judge | None) -> bytes:
        rounder = Calibrated(judging, ordered=Ordered() if in_order else None, beside=beside)
        settings = QuantizeWeights(encoding=Encoding.parse("int4:channel:dequantize"), rounder=rounder)
        model = load(path)
        settings.run(model, Context())
        assert rounder.found
        return model.to_bytes()

    alone = made(None)
    started.clear()
    with Judge(path, judging) as judge:
        for _ in range(2):
            assert made(judge) == alone
            assert judge.compare(path).status == "pass"
        assert len(started) == 2


def files_opened(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that are opened to be run, as they are."""
    opened: list[Path] = []
    start = Runner.open

    def counted(self: Runner, model: Path, *, delegates: bool = True) -> None:
        opened.append(model)
        start(self, model, delegates=delegates)

    monkeypatch.setattr(Runner, "open", counted)
    return opened


def test_a_run_of_the_float_model_serves_as_many_weights_as_fit(
    fixtures: Path, few: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = files_opened(monkeypatch)
    made = {}
    for nbytes in (0, 64 << 20):
        monkeypatch.setattr(collect, "AHEAD_NBYTES", nbytes)
        opened.clear()
        settings = QuantizeWeights(
            encoding=Encoding.parse("int4:channel:dequantize"),
            rounder=Calibrated(Judging(inputs=(few,)), ordered=Ordered()),
        )
        model = load(fixtures / "digits_cnn.tflite")
        settings.run(model, Context())
        made[nbytes] = model.to_bytes(), len(opened)
    assert made[0][0] == made[64 << 20][0]
    # Where shapes of the file say less than there is, no more is held than may be.
    monkeypatch.setattr(collect, "AHEAD_NBYTES", 1000)
    monkeypatch.setattr(collect, "activation_of", lambda *_: None)
    opened.clear()
    model = load(fixtures / "digits_cnn.tflite")
    replace(settings, rounder=Calibrated(Judging(inputs=(few,)), ordered=Ordered())).run(model, Context())
    assert model.to_bytes() == made[0][0] and len(opened) == made[0][1] + 1
    weights = made[0][1] // 2
    assert weights > 2 and made[0][1] == 2 * weights and made[64 << 20][1] == weights + 1


def test_what_weights_meet_is_kept_for_their_other_encodings(
    fixtures: Path, few: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = files_opened(monkeypatch)

    def made(keeps: int) -> list[tuple[bytes, int]]:
        rounder, found = Calibrated(Judging(inputs=(few,))), []
        rounder.keeps = keeps
        for text in ("int8:channel:dequantize", "int4:channel:dequantize"):
            opened.clear()
            model = load(fixtures / "digits_cnn.tflite")
            QuantizeWeights(encoding=Encoding.parse(text), rounder=rounder).run(model, Context())
            found.append((model.to_bytes(), len(opened)))
        return found

    alone, kept, some = made(0), made(64 << 20), made(20_000)
    assert [data for data, _ in alone] == [data for data, _ in kept] == [data for data, _ in some]
    assert alone[1][1] == some[1][1] == kept[0][1] > 0 == kept[1][1]


def test_what_was_rounded_in_order_before_is_not_rounded_again(
    fixtures: Path, few: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to the first weight that is to have another form; and it is what it would be without."""
    opened = files_opened(monkeypatch)

    def made(ordered: Ordered, text: str, exclude: tuple[str, ...] = ()) -> tuple[bytes, int]:
        opened.clear()
        rounder = Calibrated(Judging(inputs=(few,)), ordered=ordered)
        model = load(fixtures / "digits_cnn.tflite")
        encoding = Encoding.parse(f"{text}:channel:dequantize")
        QuantizeWeights(encoding=encoding, exclude=exclude, rounder=rounder).run(model, Context())
        assert rounder.found
        return model.to_bytes(), len(opened)

    model = load(fixtures / "digits_cnn.tflite")
    last = [item.inputs[1] for _, item in model.operators() if item.code.name == "FULLY_CONNECTED"][-1]
    assert last is not None
    ways = ("int4", ()), ("int4", (f"^{re.escape(last.name)}$",)), ("int8", ()), ("int4", ())
    alone = [made(Ordered(), *way) for way in ways]
    known = Ordered(64 << 20)
    again = [made(known, *way) for way in ways]
    assert [model for model, _ in alone] == [model for model, _ in again]
    assert all(runs > 2 for _, runs in alone)
    # Without the last weight nothing before it changes, and with other forms everything does.
    assert [runs for _, runs in again] == [alone[0][1], 0, alone[2][1], 0]


@pytest.mark.parametrize(("name", "weights"), [("lstm", 8), ("rnn", 4)])
def test_weights_of_recurrent_operators_meet_the_input_and_the_output(
    fixtures: Path, tmp_path: Path, name: str, weights: int
) -> None:
    """Calibrated on one half of the samples and better on the other."""
    source = fixtures / f"{name}.tflite"
    halves = []
    with np.load(fixtures / "inputs" / f"{name}.npz") as held:
        for number in range(2):
            halves.append(tmp_path / f"{number}.npz")
            np.savez(halves[-1], **{key: held[key][number::2] for key in held.files})
    won = {}
    for effort in ("fast", "balanced"):
        out = tmp_path / f"{effort}.tflite"
        report = quantize(source, out, "--inputs", halves[0], "--effort", effort, "--min-elements", "64")
        won[effort] = ratio(source, out, halves[1])
    changes = report["passes"][0]["changes"]
    calibrated = [change for change in changes if "gains_db" in change]
    recurrent = [item for item in calibrated if any(name.upper() in kind for kind in item["readers"])]
    assert len(recurrent) == weights
    assert won["balanced"] > won["fast"] + 0.5, won


@pytest.mark.parametrize("plain", [9.0, 10.0, 11.0])
def test_weights_are_fitted_where_the_whole_model_gains(
    fixtures: Path, few: Path, monkeypatch: pytest.MonkeyPatch, plain: float
) -> None:
    """What the outputs keep with fitted weights, asked for first, and with those to the nearest."""
    kept: list[float] = []

    def kept_db(*_: object) -> float:
        kept.append(10.0 if len(kept) % 2 == 0 else plain)
        return kept[-1]

    monkeypatch.setattr("tfl_rewrite.calibration.rounder.kept_db", kept_db)

    def made(effort: str) -> tuple[list[bytes], list[str]]:
        model = load(fixtures / "digits_cnn.tflite")
        activations = InputActivations(Judging(inputs=(few,)))
        (result,) = run(model, [Quantize(effort=Effort(effort))], Context(activations=activations))
        weights = [
            bytes(item.buffer.blob.view())
            for _, item in model.tensors()
            if item.dtype_name == "INT8" and item.buffer.blob is not None
        ]
        return weights, [note for note in result.notes if "weight(s)" in note]

    nearest, _ = made("fast")
    weights, (note,) = made("balanced")
    assert kept == [10.0, plain]
    assert (weights == nearest) is (plain > 10.0)
    told = "to the nearest, not for what they meet: 11.0 dB of the outputs are kept then, 10.0 otherwise"
    assert (told in note) is (plain > 10.0) and note.startswith("calibrated") is (plain <= 10.0)
