"""The whole command on the committed models: what computes in integers, what stays, and how it ends."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.nets import Net, UnsignedNet, codes, parameters, unsigned_layers, with_grid
from tfl_rewrite import (
    Judging,
    Report,
    RewriteFailed,
    Tolerance,
    UnsupportedError,
    UsageError,
    load,
    rewrite,
    run,
    save,
    verify,
)
from tfl_rewrite.calibration.fitter import InputActivations
from tfl_rewrite.cli.main import main
from tfl_rewrite.editing import Context
from tfl_rewrite.integers.border import TYPES, Form
from tfl_rewrite.judge.verdict import Verdict
from tfl_rewrite.model import dtypes
from tfl_rewrite.passes import Quantize, QuantizeWeights
from tfl_rewrite.passes.quantize import OperatorChange
from tfl_rewrite.pipeline.verify import FullPanel

from ..helpers import script

FAST: dict[str, Any] = {"effort": "fast"}


def judging(fixtures: Path, name: str = "digits_calib") -> Judging:
    return Judging(inputs=(str(fixtures / "inputs" / f"{name}.npz"),))


def made(source: Path, target: Path, inputs: Judging, **options: Any) -> Report:
    return rewrite(source, target, [Quantize(**{**FAST, **options})], judging=inputs)


def types_of(path: Path) -> set[int]:
    return {
        tensor.dtype
        for subgraph in load(path).subgraphs
        for operator in subgraph.operators
        for tensor in operator.outputs
        if tensor is not None
    }


@pytest.mark.runtime
@pytest.mark.parametrize("activations", ["int8", "int16"])
def test_a_float_model_computes_in_integers(activations: str, fixtures: Path, tmp_path: Path) -> None:
    source, target = fixtures / "digits_cnn.tflite", tmp_path / "out.tflite"
    report = made(source, target, judging(fixtures), activations=activations)
    assert report.verdict is not None and report.verdict.passed
    assert len(report.verdict.verdicts) == 3, "each resolver judges"
    worst = [item.worst_snr() for item in report.verdict.verdicts]
    assert max(worst) - min(worst) < 3
    assert {change.activations for change in report.results[0].changes} == {activations}  # type: ignore[attr-defined]
    assert target.stat().st_size < 0.5 * source.stat().st_size
    before, after = load(source).subgraphs[0], load(target).subgraphs[0]
    assert [item.dtype for item in after.inputs] == [item.dtype for item in before.inputs]
    assert [item.dtype for item in after.outputs] == [item.dtype for item in before.outputs]
    assert [item.name for item in after.outputs] == [item.name for item in before.outputs]


@pytest.mark.runtime
def test_two_runs_give_the_same_bytes_and_a_second_pass_changes_nothing(
    fixtures: Path, tmp_path: Path
) -> None:
    source, inputs = fixtures / "digits_cnn.tflite", judging(fixtures)
    one, other, again = (tmp_path / f"{name}.tflite" for name in ("one", "other", "again"))
    for target in (one, other):
        made(source, target, replace(inputs, mode="off"))
    assert one.read_bytes() == other.read_bytes()
    assert made(one, again, inputs).outcome == "unchanged"
    assert again.read_bytes() == one.read_bytes()


def test_an_integer_model_has_nothing_to_do(fixtures: Path, tmp_path: Path) -> None:
    source, target = fixtures / "digits_cnn_full_int8.tflite", tmp_path / "out.tflite"
    report = rewrite(source, target, [Quantize()], judging=Judging(mode="off"))
    assert report.outcome == "unchanged"
    assert "no operator computes in floats" in report.results[0].idle
    assert target.read_bytes() == source.read_bytes()


IO = ("float", "int8", "uint8", "int16")


def border_of(path: Path) -> list[str]:
    graph = load(path).subgraphs[0]
    return [item.dtype_name for item in (*graph.inputs, *graph.outputs)]


@pytest.mark.runtime
@pytest.mark.parametrize("io", IO)
def test_a_float_model_gets_the_border_that_is_asked_for(io: str, fixtures: Path, tmp_path: Path) -> None:
    source, target = fixtures / "digits_cnn.tflite", tmp_path / "out.tflite"
    report = made(source, target, judging(fixtures), io=io)
    assert border_of(target) == [TYPES[io]] * 2
    conversions = sum(item.code.name in ("QUANTIZE", "DEQUANTIZE") for _, item in load(target).operators())
    told = f"{conversions} conversion(s) between" in " ".join(report.results[0].notes)
    assert told == (conversions > 0)
    assert report.verdict is not None and report.verdict.passed
    assert len(report.verdict.verdicts) == 3
    assert {item.outputs[0].dtype for item in report.verdict.verdicts} == {"float32"}, "real values"
    assert min(item.worst_snr() for item in report.verdict.verdicts) > 30
    before, after = load(source), load(target)
    assert [item.name for item in after.subgraphs[0].inputs] == [
        item.name for item in before.subgraphs[0].inputs
    ]
    assert [item.key for item in after.signatures] == [item.key for item in before.signatures]
    made(target, tmp_path / "again.tflite", Judging(mode="off"), io=io)
    assert (tmp_path / "again.tflite").read_bytes() == target.read_bytes()


@pytest.mark.runtime
@pytest.mark.parametrize("io", IO)
def test_an_integer_model_takes_another_border_without_inputs_and_exactly(
    io: str, fixtures: Path, tmp_path: Path
) -> None:
    source, target = fixtures / "digits_cnn_full_int8.tflite", tmp_path / "out.tflite"
    report = rewrite(source, target, [Quantize(io=io)])
    assert border_of(target) == [TYPES[io]] * 2
    if io == "int8":
        assert report.outcome == "unchanged" and "have the types" in report.results[0].idle
        return
    assert report.verdict is not None and report.verdict.passed and len(report.verdict.verdicts) == 3
    assert all(output.bit_exact for item in report.verdict.verdicts for output in item.outputs)
    back = rewrite(target, tmp_path / "back.tflite", [Quantize(io="int8")])
    assert back.verdict is not None and back.verdict.outputs[0].bit_exact
    assert [code.builtin for code in load(tmp_path / "back.tflite").operator_codes] == [
        code.builtin for code in load(source).operator_codes
    ]


@pytest.mark.runtime
def test_a_border_that_means_something_else_is_not_published(
    fixtures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = tmp_path / "float.tflite", tmp_path / "out.tflite"
    rewrite(fixtures / "digits_cnn_full_int8.tflite", source, [Quantize(io="float")])
    give = Form.give
    monkeypatch.setattr(
        Form, "give", lambda form, tensor: give(replace(form, scale=1.02 * form.scale), tensor)
    )
    with pytest.raises(RewriteFailed, match="differs from the original"):
        rewrite(source, target, [Quantize(io_input="int8")])
    assert not target.exists()


def test_a_border_that_cannot_be_is_refused(
    fixtures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = str(fixtures / "digits_cnn.tflite"), tmp_path / "out.tflite"
    assert main(["quantize", source, str(target), "--io", "int8"]) == 2
    assert "--inputs" in capsys.readouterr().err, "a float model needs them, whatever its border"
    assert main(["quantize", source, str(target), "--io", "int32"]) == 2
    assert "argument --io: 'int32' is unknown" in capsys.readouterr().err
    assert not target.exists()


def test_inputs_are_needed(fixtures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = fixtures / "digits_cnn.tflite", tmp_path / "out.tflite"
    with pytest.raises(UsageError, match="needs real inputs"):
        rewrite(source, target, [Quantize()], judging=Judging(mode="off"))
    assert main(["quantize", str(source), str(target)]) == 2
    assert "--inputs" in capsys.readouterr().err
    assert not target.exists()


def test_too_few_samples_are_told_apart_from_none(fixtures: Path, tmp_path: Path) -> None:
    few = tmp_path / "few.npz"
    with np.load(fixtures / "inputs" / "digits_calib.npz") as given:
        np.savez(few, **{name: array[:3] for name, array in given.items()})
    with pytest.raises(
        UsageError, match=r"needs real inputs: 3 samples are too few: give 4 or more, or.*--holdout"
    ):
        made(fixtures / "digits_cnn.tflite", tmp_path / "out.tflite", Judging(inputs=(str(few),)))


@pytest.mark.runtime
def test_a_refusal_counts_its_reasons(fixtures: Path, tmp_path: Path) -> None:
    source, target = fixtures / "composite.tflite", tmp_path / "out.tflite"
    told = "1 x STABLEHLO_COMPOSITE has no integer kernel; 1 x it is in a subgraph that STABLEHLO_COMPOSITE"
    with pytest.raises(UnsupportedError, match=told):
        made(source, target, judging(fixtures, "composite"))


@pytest.mark.runtime
def test_a_signature_without_samples_is_named(fixtures: Path, tmp_path: Path) -> None:
    source, given = fixtures / "two_signatures_shared_weights.tflite", tmp_path / "one.npz"
    with np.load(fixtures / "inputs" / "two_signatures_shared_weights.npz") as arrays:
        name = sorted(arrays)[0]
        np.savez(given, **{name: np.concatenate([arrays[name]] * 2)})
    report = made(source, tmp_path / "out.tflite", Judging(inputs=(str(given),), mode="off"))
    (reason,) = {skip.reason for skip in report.results[0].skips}
    assert reason.startswith("no sample runs signature '")


@pytest.mark.runtime
def test_weights_of_float_islands_stay_as_they_are_stored(fixtures: Path, tmp_path: Path) -> None:
    """The RNN has no integer kernel: its int8 weights would only grow to floats."""
    source, target = tmp_path / "hybrid.tflite", tmp_path / "out.tflite"
    rewrite(fixtures / "rnn.tflite", source, [QuantizeWeights()], judging=Judging(mode="off"))
    report = made(source, target, judging(fixtures, "rnn"))
    assert report.verdict is not None and report.verdict.passed
    reasons = {skip.reason for skip in report.results[0].skips}
    assert reasons == {"RNN has no integer kernel", "UNIDIRECTIONAL_SEQUENCE_RNN has no integer kernel"}
    assert report.nbytes_after < 1.1 * report.nbytes_before < 0.5 * (fixtures / "rnn.tflite").stat().st_size


@pytest.mark.runtime
def test_an_lstm_computes_in_integers(fixtures: Path, tmp_path: Path) -> None:
    source, target = fixtures / "lstm.tflite", tmp_path / "out.tflite"
    report = made(source, target, judging(fixtures, "lstm"), float_islands="refuse")
    assert report.verdict is not None and report.verdict.passed
    (operator,) = [item for _, item in load(target).operators() if item.intermediates]
    assert operator.code.name == "UNIDIRECTIONAL_SEQUENCE_LSTM" and len(operator.intermediates) == 5
    assert report.nbytes_after < 0.35 * report.nbytes_before


@pytest.mark.slow
@pytest.mark.runtime
@pytest.mark.parametrize(("activations", "lost"), [("int8", 2), ("int16", 1)])
def test_held_out_images_are_still_told_apart(
    activations: str, lost: int, fixtures: Path, tmp_path: Path
) -> None:
    """446 of 450 are, in floats; so many fewer at most."""
    accuracy, target = script("digits_accuracy").accuracy, tmp_path / "out.tflite"
    source = fixtures / "digits_cnn.tflite"
    unjudged = replace(judging(fixtures), mode="off")
    made(source, target, unjudged, activations=activations, effort="balanced")
    assert accuracy(source) * 450 - accuracy(target) * 450 < lost + 0.5


@pytest.mark.runtime
def test_what_is_excluded_stays_float_and_is_named(fixtures: Path, tmp_path: Path) -> None:
    source, target = fixtures / "digits_cnn.tflite", tmp_path / "out.tflite"
    unjudged = replace(judging(fixtures), mode="off")
    report = made(source, target, unjudged, exclude=("FULLY_CONNECTED",))
    reasons = {skip.reason for skip in report.results[0].skips}
    assert reasons == {"kept, as asked"}
    assert "FULLY_CONNECTED" not in {change.operator for change in report.results[0].changes}  # type: ignore[attr-defined]
    with pytest.raises(UnsupportedError, match="no operator can compute in integers"):
        made(source, tmp_path / "none.tflite", judging(fixtures), exclude=(".",))
    assert not (tmp_path / "none.tflite").exists()


@pytest.mark.runtime
def test_rules_say_what_operators_compute_in(fixtures: Path, tmp_path: Path) -> None:
    source, target = fixtures / "digits_cnn.tflite", tmp_path / "out.tflite"
    rules = ("CONV=int16", "FULLY_CONNECTED=hybrid", "SOFTMAX=hybrid")
    report = made(source, target, judging(fixtures), map=rules)
    assert report.verdict is not None and report.verdict.passed
    done = {change.operator: change.activations for change in report.results[0].changes}  # type: ignore[attr-defined]
    assert done["CONV_2D"] == "int16" and done["FULLY_CONNECTED"] == "hybrid"
    assert done["RESHAPE"] == "int8", "of which no rule says anything"
    assert [skip.reason for skip in report.results[0].skips] == [
        "no kernel of it reads int8 weights beside float activations"
    ]
    for _, operator in load(target).operators():
        types = [item.dtype_name for item in (*operator.inputs, *operator.outputs) if item is not None]
        if operator.code.name == "CONV_2D":
            assert types == ["INT16", "INT8", "INT64", "INT16"]
        if operator.code.name == "FULLY_CONNECTED":
            assert types == ["FLOAT32", "INT8", "FLOAT32", "FLOAT32"]
    with pytest.raises(UnsupportedError, match="1 operator"):
        made(source, tmp_path / "none.tflite", judging(fixtures), map=rules, float_islands="refuse")
    with pytest.raises(UsageError, match="matches no operator type"):
        made(source, tmp_path / "none.tflite", judging(fixtures), map=("CONV_9=int16",))
    assert not (tmp_path / "none.tflite").exists()


@pytest.mark.runtime
def test_unlike_parts_are_floats_beside_floats_alone(tmp_path: Path) -> None:
    net = Net()
    state, parts = net.input("state", (2, 4)), [net.tensor(name, (1, 4)) for name in ("small", "large")]
    axis = net.constant("axis", np.array(0, np.int32))
    net.add("SPLIT", [axis, state], "unused", (1, 4), num_splits=2)
    net.graph.operators[-1].outputs[:] = parts
    for part in parts:
        net.output(net.add("ABS", [part], f"{part.name}_size", (1, 4)))
    source = tmp_path / "net.tflite"
    save(net.model, source)
    values = np.random.default_rng(0).standard_normal((8, 2, 4)) * [[0.1], [100.0]]
    np.savez(tmp_path / "in.npz", state=values.astype(np.float32))
    cases: list[tuple[dict[str, Any], list[str]]] = [
        ({}, ["SPLIT"]),
        ({"float_islands": "refuse"}, []),
        ({"io": "int8"}, []),
        ({"io": "float"}, ["SPLIT"]),
    ]
    for options, kept in cases:
        model = load(source)
        activations = InputActivations(Judging(inputs=(tmp_path / "in.npz",)))
        (result,) = run(model, [Quantize(**FAST, **options)], Context(activations=activations))
        changed = {change.operator for change in result.changes if isinstance(change, OperatorChange)}
        assert changed == {"ABS", "SPLIT"} - set(kept), options
        assert len(result.skips) == len(kept), options


def test_refused_islands_are_all_that_there_is(fixtures: Path, tmp_path: Path) -> None:
    source, target = fixtures / "svdf.tflite", tmp_path / "out.tflite"
    words = ["quantize", str(source), str(target), "--float-islands"]
    assert main([*words, "refuse"]) == 3 and not target.exists()
    assert main([*words, "allow"]) == 0 and target.read_bytes() == source.read_bytes()


@pytest.mark.runtime
def test_mixed_widths_are_as_many_as_the_wish_needs(fixtures: Path, few: Path, tmp_path: Path) -> None:
    source, inputs = fixtures / "digits_cnn.tflite", Judging(inputs=(few,))
    files = {}
    for name, options in (
        ("int8", {"activations": "int8"}),
        ("int16", {"activations": "int16"}),
        ("none", {"activations": "mixed", "share": 0.0}),
        ("all", {"activations": "mixed", "share": 1.0}),
    ):
        made(source, tmp_path / name, replace(inputs, mode="off"), **options)
        files[name] = (tmp_path / name).read_bytes()
    assert files["none"] == files["int8"] and files["all"] == files["int16"]
    counts = []
    for wish in (20.0, 55.0):
        settings = replace(inputs, tolerance=Tolerance(min_snr=wish), resolver=("builtin",))
        report = made(source, tmp_path / f"{wish}", settings, activations="mixed")
        assert report.verdict is not None and report.verdict.passed
        counts.append(
            [change.activations for change in report.results[0].changes].count("int16")  # type: ignore[attr-defined]
        )
        assert any("scale groups have 16 bits" in note for note in report.results[0].notes)
    assert counts[0] == 0 < counts[1] < 7


@pytest.mark.runtime
def test_what_integers_ruin_stays_float_where_the_outputs_ask_for_it(tmp_path: Path) -> None:
    """Channels of very different sizes on one grid: the small ones are lost, and the outputs need them."""
    net, sizes = Net(), np.array([60.0] * 4 + [1.0] * 4, np.float32)
    hidden = net.dense(net.input("in", (1, 8)), net.weights("w", (8, 8)), "hidden")
    spread = net.add("MUL", [hidden, net.constant("sizes", sizes)], "spread", (1, 8))
    even = net.add("MUL", [spread, net.constant("back", 1 / sizes)], "even", (1, 8))
    net.output(net.dense(even, net.weights("v", (8, 8)), "out"))
    source, target, inputs = (tmp_path / name for name in ("in.tflite", "out.tflite", "in.npz"))
    save(net.model, source)
    np.savez(inputs, **{"in": np.random.default_rng(1).uniform(-1, 1, (24, 1, 8)).astype(np.float32)})
    judging = Judging(inputs=(inputs,), resolver=("builtin",))
    for options, settings in (({}, replace(judging, rescue=False)), ({"float_islands": "refuse"}, judging)):
        with pytest.raises(RewriteFailed):
            made(source, target, settings, **options)
    assert not target.exists()
    report = made(source, target, judging)
    (result,) = report.results
    assert report.verdict is not None and report.verdict.passed
    assert "1 of 7 scale groups stay float, since int8 alone was refused" in result.notes[0]
    floats = {skip.reason for skip in result.skips}
    assert floats == {"outputs lose too much with it in int8"} and 0 < len(result.changes) < 4
    kinds = {item.outputs[0].name: item.outputs[0].dtype_name for _, item in load(target).operators()}  # type: ignore[union-attr]
    assert kinds["spread"] == "FLOAT32"


@pytest.mark.runtime
@pytest.mark.parametrize("more", [True, False])
def test_what_stays_float_has_integer_weights(tmp_path: Path, more: bool) -> None:
    """The weights of a hybrid kernel became floats to be rounded anew; the file would grow by them.

    Those that were floats are read through DEQUANTIZE: it is their activations that have to be floats.
    Without more operators, two of three would be floats: that is no model in integers.
    """
    net, sizes = Net(), np.array([60.0] * 8 + [1.0] * 8, np.float32)
    weights = np.random.default_rng(0).normal(size=(16, 64)).astype(np.float32)
    given = net.constant("spreading", weights * sizes[:, None])
    pixels = net.input("in", (1, 64))
    hidden = net.dense(pixels, given, "hidden")
    even = net.add("MUL", [hidden, net.constant("back", 1 / sizes)], "even", (1, 16))
    net.output(net.dense(even, net.weights("v", (8, 16)), "out"))
    if more:
        aside = net.dense(pixels, net.weights("a", (16, 64)), "aside")
        net.output(net.dense(aside, net.weights("b", (8, 16)), "more"))
    source, hybrid, target, inputs = (tmp_path / name for name in ("in.tflite", "hybrid", "out", "in.npz"))
    save(net.model, source)
    np.savez(inputs, **{"in": np.random.default_rng(1).uniform(-1, 1, (24, 1, 64)).astype(np.float32)})
    rewrite(source, hybrid, [QuantizeWeights(min_elements=1)], judging=Judging(mode="off"))
    judging = Judging(inputs=(inputs,), resolver=("builtin",))
    if not more:
        with pytest.raises(RewriteFailed, match="give --activations mixed"):
            made(hybrid, target, judging)
        return
    report = made(hybrid, target, judging)
    assert report.verdict is not None and report.verdict.passed
    assert [change.activations for change in report.results[0].changes] == ["hybrid", *["int8"] * 3]
    kinds = {tensor.name: tensor.dtype_name for tensor in load(target).subgraphs[0].tensors}
    assert kinds["hidden"] == "FLOAT32" and kinds["spreading"] == "INT8", kinds
    report = made(source, tmp_path / "of floats", judging)
    assert report.verdict is not None and report.verdict.passed
    assert [change.activations for change in report.results[0].changes] == ["int8"] * 3
    readers = [
        (item.inputs[0].name, item.inputs[0].dtype_name)
        for _, item in load(tmp_path / "of floats").operators()
        if item.code.name == "DEQUANTIZE" and item.inputs[0] is not None and item.inputs[0].is_constant
    ]
    assert readers == [("spreading_int8", "INT8")]


@pytest.mark.runtime
def test_grids_hold_what_the_samples_show_that_judged_unless_the_user_kept_those(tmp_path: Path) -> None:
    source, target = one_layer(tmp_path / "in.tflite"), tmp_path / "out.tflite"
    drawn = np.random.default_rng(1).uniform(-1, 1, (8, 1, 8)).astype(np.float32)
    drawn[:, 0, :2], drawn[[3, 7], 0, 0] = (1, -1), 1.12
    files = {}
    for name, rows in (("all", [*range(8)]), ("fitted", [0, 1, 2, 4, 5, 6]), ("held", [3, 7])):
        files[name] = tmp_path / f"{name}.npz"
        np.savez(files[name], **{"in": drawn[rows]})

    def run_on(inputs: str, **settings: Any) -> tuple[Report, float, float | None]:
        judging = Judging(
            inputs=(files[inputs],), resolver=("builtin",), tolerance=Tolerance(min_agreement=0)
        )
        report = rewrite(source, target, [Quantize(**FAST)], judging=replace(judging, **settings), force=True)
        again = verify(source, target, replace(judging, inputs=(files["held"],)))
        scale = parameters(load(target).subgraphs[0].operators[0].outputs[0])[0]
        assert report.verdict is not None and report.verdict.sample_count == 2
        return report, scale, again.worst_snr()

    report, scale, snr = run_on("all")
    assert scale == pytest.approx(2.12 / 255) and snr is not None
    # What was said of it is what others show that its grids had not seen.
    assert report.verdict.worst_snr() < snr - 5  # type: ignore[union-attr, operator]
    assert report.notes[-1].startswith("verified with the ranges of other samples; the file has those of all")
    report, scale, other = run_on("fitted", holdout=(files["held"],))
    assert scale == pytest.approx(2 / 255) and not any("ranges" in note for note in report.notes)
    assert report.verdict.worst_snr() == pytest.approx(other)  # type: ignore[union-attr]


@pytest.mark.runtime
def test_a_sample_unlike_all_others_is_kept_and_told(tmp_path: Path) -> None:
    source, target = one_layer(tmp_path / "in.tflite"), tmp_path / "out.tflite"
    drawn = np.random.default_rng(1).uniform(-1, 1, (8, 1, 8)).astype(np.float32)
    drawn[7] *= 8
    np.savez(tmp_path / "all.npz", **{"in": drawn})
    judging = Judging(
        inputs=(tmp_path / "all.npz",), resolver=("builtin",), tolerance=Tolerance(min_agreement=0)
    )
    report = rewrite(source, target, [Quantize(**FAST)], judging=judging)
    assert report.verdict is not None and report.verdict.passed and not report.verdict.unfitted
    assert any(note.startswith("the samples that judge are unlike the others") for note in report.notes)
    for settings in ({"rescue": False}, {"holdout": judging.inputs, "inputs": some(tmp_path, drawn[:6])}):
        with pytest.raises(RewriteFailed):
            rewrite(source, target, [Quantize(**FAST)], judging=replace(judging, **settings), force=True)


@pytest.mark.runtime
@pytest.mark.parametrize("whole", [True, False])
def test_kernels_that_differ_on_few_samples_are_asked_on_all(
    whole: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, asked = one_layer(tmp_path / "in.tflite"), list[int]()
    inputs = some(tmp_path, np.random.default_rng(1).uniform(-1, 1, (8, 1, 8)).astype(np.float32))
    compare = FullPanel.compare

    def apart(self: FullPanel, after: Any, *, repeat: bool = True) -> Verdict:
        found = compare(self, after, repeat=repeat)
        asked.append(found.sample_count)
        differs = whole or found.sample_count == 2
        return replace(found, status="fail", cause="outputs", reasons=("apart",)) if differs else found

    monkeypatch.setattr(FullPanel, "compare", apart)
    judging = Judging(inputs=inputs, resolver=("default", "builtin"), tolerance=Tolerance(min_agreement=0))
    made = [Quantize(**FAST, float_islands="refuse")]
    if whole:
        with pytest.raises(RewriteFailed, match="apart"):
            rewrite(source, tmp_path / "out.tflite", made, judging=replace(judging, rescue=False))
    else:
        report = rewrite(source, tmp_path / "out.tflite", made, judging=judging)
        assert report.verdict is not None and report.verdict.passed and report.verdict.unfitted
    assert asked[:2] == [2, 8]


def one_layer(path: Path) -> Path:
    net = Net()
    net.output(net.dense(net.input("in", (1, 8)), net.weights("w", (8, 8)), "out"))
    save(net.model, path)
    return path


def some(folder: Path, drawn: Any) -> tuple[Path]:
    np.savez(folder / "some.npz", **{"in": drawn})
    return (folder / "some.npz",)


def test_stricter_passes_have_an_end() -> None:
    item: Quantize | None = Quantize()
    made = []
    while item is not None:
        item = item.stricter(4.0)
        made.append(item)
    assert [each and (each.islands, each.margin) for each in made] == [
        (4.0, 1.0),
        (4.0, 6.0),
        (4.0, 11.0),
        (4.0, 16.0),
        None,
    ]
    assert Quantize(float_islands="refuse").stricter(4.0) is None
    assert Quantize(activations="mixed", share=1.0).stricter(4.0) is None


def test_what_else_there_is_to_ask_for_depends_on_what_was() -> None:
    assert Quantize().milder.startswith("give --activations mixed, more samples")
    assert Quantize(activations="int16", io="float").milder.startswith("give more samples")
    strict = Quantize(float_islands="refuse", io_input="int8").milder
    assert strict.startswith("give --activations mixed, --float-islands allow, --io float, more samples")


@pytest.mark.runtime
def test_refused_islands_are_named(
    fixtures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = fixtures / "digits_cnn.tflite", tmp_path / "out.tflite"
    words = ["quantize", str(source), str(target), "--effort", "fast", "--float-islands", "refuse"]
    words += ["--inputs", str(fixtures / "inputs" / "digits_calib.npz")]
    assert main([*words, "--exclude", "SOFTMAX|FULLY_CONNECTED"]) == 3
    error = capsys.readouterr().err
    assert "would stay float" in error and "operators[" in error and "--float-islands" in error
    assert not target.exists()
    assert main([*words, "--verify", "off"]) == 0, "nothing has to stay float otherwise"


@pytest.mark.runtime
def test_a_report_says_what_was_done(
    fixtures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = fixtures / "digits_cnn.tflite", tmp_path / "out.tflite"
    words = ["quantize", str(source), str(target), "--effort", "fast", "--json"]
    assert main([*words, "--inputs", str(fixtures / "inputs" / "digits_calib.npz")]) == 0
    report = json.loads(capsys.readouterr().out)
    (done,) = report["passes"]
    assert done["pass"] == "quantize"
    assert {change["activations"] for change in done["changes"]} == {"int8"}
    assert len(report["verdicts"]) == 3
    assert any("conversion(s)" in note for note in done["notes"])


def test_a_damaged_file_is_refused(fixtures: Path, tmp_path: Path) -> None:
    source, target = tmp_path / "in.tflite", tmp_path / "out.tflite"
    data = (fixtures / "digits_cnn.tflite").read_bytes()
    source.write_bytes(data[: len(data) // 2])
    inputs = str(fixtures / "inputs" / "digits_calib.npz")
    assert main(["quantize", str(source), str(target), "--inputs", inputs]) == 5
    assert not target.exists()


@pytest.mark.runtime
def test_a_uint8_model_becomes_int8_without_inputs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target, again = (tmp_path / f"{name}.tflite" for name in ("in", "out", "again"))
    save(unsigned_layers().model, source)
    assert main(["quantize", str(source), str(target), "--min-snr", "15"]) == 0
    said = capsys.readouterr().out
    assert "5 of 5 operators compute in int8 now" in said and "1 of 8 channels of weights" in said
    graph = load(target).subgraphs[0]
    assert [item.dtype_name for item in (*graph.inputs, *graph.outputs)] == ["UINT8"] * 3
    assert types_of(target) == {dtypes.BY_NAME["INT8"].value, dtypes.BY_NAME["UINT8"].value}
    assert main(["quantize", str(target), str(again)]) == 0
    assert again.read_bytes() == target.read_bytes()


@pytest.mark.runtime
def test_a_uint8_model_takes_and_gives_int8_where_that_is_asked_for(tmp_path: Path) -> None:
    source, target = tmp_path / "in.tflite", tmp_path / "out.tflite"
    save(unsigned_layers().model, source)
    settings = Judging(tolerance=Tolerance(min_snr=15.0))
    report = rewrite(source, target, [Quantize(io="int8")], judging=settings)
    assert report.verdict is not None and report.verdict.passed
    assert types_of(target) == {dtypes.BY_NAME["INT8"].value}
    names = [name for name, _ in codes(load(target))]
    # What is advised after a refusal: the scales are those of the file, and no width helps.
    assert "--min-snr" in report.results[0].milder and "mixed" not in report.results[0].milder
    assert set(names[:2]) == {"CONV_2D", "DEPTHWISE_CONV_2D"} and names[-1] == "SOFTMAX"
    assert names.count("QUANTIZE") == 2, "for what is concatenated alone"


@pytest.mark.runtime
def test_what_xnnpack_refuses_in_uint8_is_judged_as_it_was_meant(tmp_path: Path) -> None:
    net = UnsignedNet()
    size = net.constant("size", np.array([4, 4], np.int32))
    inner = net.gives("RELU", [net.source((1, 2, 2, 2))], "inner", (0.25, 0))
    grown = net.gives("RESIZE_BILINEAR", [inner, size], "grown", (0.5, 3), shape=(1, 4, 4, 2))
    net.output(net.gives("RELU", [grown], "out", (0.5, 3)))
    save(net.model, tmp_path / "in.tflite")
    report = rewrite(tmp_path / "in.tflite", tmp_path / "out.tflite", [Quantize()])
    assert report.verdict is not None and report.verdict.passed and len(report.verdict.verdicts) == 3
    assert any("copy integers between unequal scales" in note for note in report.results[0].notes)


def test_floats_of_a_uint8_model_stay_without_inputs(tmp_path: Path) -> None:
    net = UnsignedNet()
    inner = net.gives("RELU", [net.source((1, 4))], "inner")
    floats = net.add("DEQUANTIZE", [inner], "floats", (1, 4))
    net.output(net.add("ABS", [floats], "out", (1, 4)))
    save(net.model, tmp_path / "in.tflite")
    report = rewrite(
        tmp_path / "in.tflite", tmp_path / "out.tflite", [Quantize()], judging=Judging(mode="off")
    )
    assert "without --inputs" in report.results[0].notes[-1]
    assert [name for name, _ in codes(load(tmp_path / "out.tflite"))] == [
        "QUANTIZE",
        "RELU",
        "DEQUANTIZE",
        "ABS",
    ]

    with pytest.raises(UnsupportedError, match=r"1 type\(s\) of operators would stay float: ABS"):
        rewrite(tmp_path / "in.tflite", tmp_path / "none.tflite", [Quantize(float_islands="refuse")])
    assert not (tmp_path / "none.tflite").exists()


def test_islands_are_refused_where_only_the_border_is_to_change(tmp_path: Path) -> None:
    net = Net()
    source = with_grid(net.input("in", (1, 4), np.int8), 0.5, 3)
    inner = with_grid(net.add("RELU", [source], "a", (1, 4), dtype=np.int8), 0.5, 3)
    floats = net.add("DEQUANTIZE", [inner], "floats", (1, 4))
    net.output(net.add("SIN", [floats], "out", (1, 4)))
    save(net.model, tmp_path / "in.tflite")
    for io in ({}, {"io_input": "uint8"}):
        with pytest.raises(UnsupportedError, match="would stay float: SIN"):
            asked = Quantize(float_islands="refuse", **io)
            rewrite(tmp_path / "in.tflite", tmp_path / "none.tflite", [asked])
    assert not (tmp_path / "none.tflite").exists()


@pytest.mark.runtime
def test_islands_of_an_integer_model_that_have_to_be_leave_nothing_to_do(tmp_path: Path) -> None:
    net = Net()
    source = with_grid(net.input("in", (1, 4), np.int8), 0.5, 3)
    inner = with_grid(net.add("RELU", [source], "a", (1, 4), dtype=np.int8), 0.5, 3)
    floats = net.add("DEQUANTIZE", [inner], "floats", (1, 4), version=2)
    # Its output may be 0, by which no integers divide.
    net.output(net.add("DIV", [floats, floats], "out", (1, 4)))
    save(net.model, tmp_path / "in.tflite")
    np.savez(tmp_path / "in.npz", **{"in": np.arange(32, dtype=np.int8).reshape(8, 1, 4)})
    inputs = Judging(inputs=(tmp_path / "in.npz",))
    report = made(tmp_path / "in.tflite", tmp_path / "out.tflite", inputs)
    assert report.outcome == "unchanged" and "none can compute in integers" in report.results[0].idle
    assert (tmp_path / "out.tflite").read_bytes() == (tmp_path / "in.tflite").read_bytes()
    with pytest.raises(UnsupportedError, match="would stay float"):
        made(tmp_path / "in.tflite", tmp_path / "none.tflite", inputs, float_islands="refuse")


def test_what_was_uint8_is_int8_whatever_is_asked_for_and_that_is_said(tmp_path: Path) -> None:
    save(unsigned_layers().model, tmp_path / "in.tflite")
    asked = Quantize(activations="int16", map=("MEAN=int16",))
    report = rewrite(tmp_path / "in.tflite", tmp_path / "o.tflite", [asked], judging=Judging(mode="off"))
    assert report.results[0].notes[0] == "int16 asked for: what was uint8 is int8 all the same"


@pytest.mark.runtime
def test_a_sample_that_is_no_number_is_to_be_left_out(fixtures: Path, tmp_path: Path) -> None:
    given = dict(np.load(fixtures / "inputs" / "digits_calib.npz"))
    held = {name: array[:2].copy() for name, array in given.items()}
    for array in held.values():
        array[0] = np.nan
    np.savez(tmp_path / "held.npz", **held)
    inputs = replace(judging(fixtures), holdout=(tmp_path / "held.npz",))
    with pytest.raises(RewriteFailed, match="leave out samples with NaN"):
        made(fixtures / "digits_cnn.tflite", tmp_path / "out.tflite", inputs)


@pytest.mark.runtime
def test_what_is_named_keeps_its_kind(fixtures: Path, tmp_path: Path) -> None:
    """A pool over the whole plane becomes a MEAN, but for one that somebody has named."""
    net = Net()
    net.output(
        net.add(
            "AVERAGE_POOL_2D",
            [net.add("RELU", [net.input("in", (1, 4, 4, 2))], "a", (1, 4, 4, 2))],
            "out",
            (1, 1, 1, 2),
            filter_width=4,
            filter_height=4,
            stride_w=1,
            stride_h=1,
            padding=1,
        )
    )
    save(net.model, tmp_path / "in.tflite")
    values = np.random.default_rng(0).normal(size=(8, 1, 4, 4, 2)).astype(np.float32)
    np.savez(tmp_path / "in.npz", **{"in": values})
    for number, (asked, kind) in enumerate((((), "MEAN"), (("AVERAGE_POOL",), "AVERAGE_POOL_2D"))):
        inputs = Judging(inputs=(tmp_path / "in.npz",), mode="off")
        made(tmp_path / "in.tflite", tmp_path / f"{number}.tflite", inputs, include=asked)
        assert kind in [name for name, _ in codes(load(tmp_path / f"{number}.tflite"))]


def test_what_is_excluded_stays_uint8(tmp_path: Path) -> None:
    source, target = tmp_path / "in.tflite", tmp_path / "out.tflite"
    save(unsigned_layers().model, source)
    report = rewrite(source, target, [Quantize(exclude=("MEAN",))], judging=Judging(mode="off"))
    assert [(skip.reason, skip.rule) for skip in report.results[0].skips] == [
        ("kept, as asked", "uint8-island")
    ]
    with pytest.raises(UsageError, match="matches no operator type"):
        rewrite(source, tmp_path / "none.tflite", [Quantize(map=("CONV_9=int8",))])
    assert not (tmp_path / "none.tflite").exists()
