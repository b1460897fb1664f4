"""Searches from end to end, on small models with few samples."""

from __future__ import annotations

import itertools
import json
import os
import zlib
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tfl_rewrite
from tfl_rewrite import (
    Goal,
    Judging,
    UnsupportedError,
    UsageError,
    load,
    save,
)
from tfl_rewrite.cli.commands.shrink import lines_of
from tfl_rewrite.cli.render_judge import verdict_lines
from tfl_rewrite.editing.base import Context
from tfl_rewrite.files.container import Container
from tfl_rewrite.files.source import Source
from tfl_rewrite.model import dtypes
from tfl_rewrite.model.blob import OwnedBlob
from tfl_rewrite.model.ir import Buffer, OperatorCode, Tensor, operator_number
from tfl_rewrite.passes.quantize_weights import QuantizeWeights
from tfl_rewrite.passes.remove_dead import names_nbytes
from tfl_rewrite.pipeline.report import Plan, Report, RewriteFailed
from tfl_rewrite.pipeline.rewrite import carry_out
from tfl_rewrite.search.clock import Clock
from tfl_rewrite.search.integers import Integers
from tfl_rewrite.search.report import ShrinkFailed, ShrinkReport
from tfl_rewrite.search.session import Wanted
from tfl_rewrite.search.shrink import opened_for
from tfl_rewrite.search.standing import Found, Standing, held
from tfl_rewrite.search.trials import Chosen, Frame, Rounding
from tfl_rewrite.search.units import grids_of
from tfl_rewrite.weights.payloads import WeightChange
from tfl_rewrite.weights.rounders import Effort

from ..nets import Net

FEW = ("int8:channel:dequantize", "int8:channel", "int4:channel:dequantize")
ORDERED_TRIES = "tfl_rewrite.search.anytime.ORDERED_TRIES"
BALANCED: dict[str, Any] = {"min_snr": 32.0, "effort": "balanced", "encodings": FEW[::2]}
SAMPLES = 8


@pytest.fixture(scope="module")
def digits(fixtures: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Judging, Path]:
    """The digits net, a few of its inputs, and others."""
    folder = tmp_path_factory.mktemp("digits")
    for name, rows in (("some", slice(0, SAMPLES)), ("others", slice(50, 60))):
        with np.load(fixtures / "inputs" / "digits_calib.npz") as file:
            np.savez(folder / f"{name}.npz", **{key: file[key][rows] for key in file.files})
    return fixtures / "digits_cnn.tflite", Judging(inputs=(folder / "some.npz",)), folder / "others.npz"


def search(digits: tuple[Path, Judging, Path], target: Path, **more: Any) -> ShrinkReport:
    settings: dict[str, Any] = {"effort": "fast", "encodings": FEW, **more}
    return tfl_rewrite.shrink(digits[0], target, Goal(**settings), judging=digits[1])


@pytest.fixture(scope="module")
def found(
    digits: tuple[Path, Judging, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[ShrinkReport, Path]:
    folder = tmp_path_factory.mktemp("found")
    target = folder / "out.tflite"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ORDERED_TRIES, dict.fromkeys(Effort, 0))
        return search(digits, target, **BALANCED, state=folder / "state.json"), target


@pytest.mark.runtime
def test_what_was_found_keeps_what_was_asked_for(
    found: tuple[ShrinkReport, Path], digits: tuple[Path, Judging, Path]
) -> None:
    report, target = found
    assert report.promised is not None and report.proven is not None and report.promised_snr is not None
    assert report.promised_snr >= 32.0 and report.proven.sample_count == 2
    assert target.stat().st_size == report.promised.nbytes < 0.35 * report.nbytes_before
    # Mixed: some constants take less than others.
    assert len({encoding.text for encoding in report.promised.choice.values()}) > 1
    # Inputs that nobody had: a promise from six samples is worth some dB.
    other = tfl_rewrite.verify(digits[0], target, tfl_rewrite.Judging(inputs=[digits[2]]))
    assert (other.worst_snr() or 0.0) > 30.0


@pytest.mark.runtime
def test_it_runs_with_other_kernels_too(
    found: tuple[ShrinkReport, Path], digits: tuple[Path, Judging, Path]
) -> None:
    verdict = tfl_rewrite.verify(
        digits[0],
        found[1],
        tfl_rewrite.Judging(
            inputs=[digits[2]],
            resolver=["default", "reference"],
            tolerance=tfl_rewrite.Tolerance(min_snr=30.0),
        ),
    )
    assert verdict.passed, verdict_lines(verdict)


@pytest.mark.runtime
def test_an_old_runtime_gets_what_it_runs(digits: tuple[Path, Judging, Path], tmp_path: Path) -> None:
    every = ("int8:channel:dequantize", "int6:channel:dequantize", "int4:channel:dequantize", "float16")
    target = tmp_path / "out.tflite"
    report = search(digits, target, min_snr=40.0, encodings=every, min_runtime="2.14")
    tried = {str(option.form) for unit in report.units for option in unit.options[1:]}
    assert tried == {"int8:channel:dequantize", "float16"}
    stamped = tfl_rewrite.inspect(target).to_dict()["min_runtime"]
    assert tuple(int(part) for part in stamped.split(".")[:2]) <= (2, 14)
    old = os.environ.get("TFL_REWRITE_OLD_RUNTIME_PYTHON")
    if old:
        bound = tfl_rewrite.Tolerance(min_snr=30.0)
        verdict = tfl_rewrite.verify(
            digits[0],
            target,
            tfl_rewrite.Judging(inputs=[digits[2]], runtime=f"python:{old}", tolerance=bound),
        )
        assert verdict.passed, verdict_lines(verdict)


@pytest.mark.runtime
def test_what_was_rounded_in_order_is_what_is_published(
    digits: tuple[Path, Judging, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Taken whether it wins anything or not: what is published is made anew, and must be the same bytes."""
    made: list[bytes] = []

    def replaced(self: Standing, found: Found) -> None:
        self.found = found

    def taken(search: Any, trials: Any, goal: Any, judge: Any, settled: Any, _tries: int) -> Any:
        for found in (settled.promised, search.in_order(settled.promised)):
            trials.finish(found)
            made.append(trials.path.read_bytes())
        assert found.rounding is Rounding.IN_ORDER
        return replace(settled, promised=found, proven=judge.evaluate(trials.path))

    monkeypatch.setattr("tfl_rewrite.search.anytime.in_order", taken)
    monkeypatch.setattr("tfl_rewrite.search.standing.Standing.take", replaced)
    target = tmp_path / "out.tflite"
    search(digits, target, min_snr=15.0, effort="balanced", encodings=FEW[2:])
    assert made[0] != made[1] == target.read_bytes()


@pytest.mark.runtime
def test_what_a_softmax_hides_counts(found: tuple[ShrinkReport, Path]) -> None:
    report = found[0]
    assert report.promised is not None and report.promised.hidden is not None
    # The outputs alone look far better than they are.
    visible = report.promised.verdict.worst_snr()
    assert visible is not None and visible > report.promised.hidden + 3.0
    assert report.promised.snr == report.promised.hidden >= 32.0
    # Held-out inputs are judged there, too, and what may be chance is taken off.
    assert report.proven is not None and report.proven_snr is not None and report.proven_sure is not None
    behind = report.proven.worst_snr()
    assert behind is not None and behind > report.proven_snr > report.proven_sure >= 32.0
    assert report.expected_snr == min(report.promised.sure or 0.0, report.proven_sure)
    # No more than was asked for is promised.
    assert report.promised_snr == 32.0 < report.expected_snr
    assert any("before the last SOFTMAX" in note for note in report.notes)


@pytest.mark.runtime
def test_an_opened_original_that_does_not_run_is_left_closed(
    digits: tuple[Path, Judging, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(source: Path, target: Path, *, centred: bool) -> int:
        model = tfl_rewrite.load(source)
        code = OperatorCode(operator_number("CUSTOM"), "Unknown", 1)
        model.operator_codes.append(code)
        model.subgraphs[0].operators[-1].code = code
        tfl_rewrite.save(model, target)
        return 1

    monkeypatch.setattr("tfl_rewrite.search.trials.open_outputs", opened)
    report = search(digits, tmp_path / "out.tflite", min_snr=25.0)
    assert report.promised is not None and report.promised.hidden is None
    assert (report.promised_snr or 0.0) >= 25.0


@pytest.mark.runtime
def test_a_model_that_is_sure_of_nothing_keeps_its_classes(tmp_path: Path) -> None:
    random = np.random.default_rng(4)
    net = Net(200)
    inside = net.input("x", (1, 64))
    for number, (rows, columns) in enumerate(((48, 64), (48, 48), (2, 48))):
        # Noise of such weights is next to nothing in outputs near a half, and turns them over.
        scale = 1.5 if number < 2 else 0.08
        weights = scale / np.sqrt(columns) * random.standard_normal((rows, columns))
        inside = net.dense(inside, net.constant(f"w{number}", weights.astype(np.float32)), f"d{number}")
        if number < 2:
            inside = net.add("RELU", [inside], f"r{number}", (1, rows))
    net.output(net.add("SOFTMAX", [inside], "y", (1, 2), beta=1.0))
    source, target = tmp_path / "faint.tflite", tmp_path / "small.tflite"
    save(net.model, source)
    for name, count in (("few", 8), ("many", 100)):
        np.savez(tmp_path / f"{name}.npz", x=random.standard_normal((count, 1, 64)).astype(np.float32))
    tfl_rewrite.shrink(source, target, Goal(min_snr=20), judging=Judging(inputs=(tmp_path / "few.npz",)))
    assert target.stat().st_size < source.stat().st_size
    assert tfl_rewrite.verify(source, target, Judging(inputs=(tmp_path / "many.npz",))).passed


@pytest.mark.runtime
def test_the_curve_has_only_what_is_smaller_or_better(found: tuple[ShrinkReport, Path]) -> None:
    points = found[0].pareto
    assert len(points) > 2
    assert all(a.nbytes < b.nbytes and (a.snr or 0) < (b.snr or 1e9) for a, b in itertools.pairwise(points))


@pytest.mark.runtime
def test_the_same_again_from_half_of_the_measurements(
    found: tuple[ShrinkReport, Path],
    digits: tuple[Path, Judging, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As after an interruption: what was measured is not measured again, and the bytes are the same."""
    monkeypatch.setattr(ORDERED_TRIES, dict.fromkeys(Effort, 0))
    data = json.loads((found[1].parent / "state.json").read_text())
    kept = dict(list(data["noises"].items())[: len(data["noises"]) // 2])
    (tmp_path / "state.json").write_text(json.dumps({**data, "noises": kept}))
    report = search(digits, tmp_path / "out.tflite", **BALANCED, state=tmp_path / "state.json")
    assert (tmp_path / "out.tflite").read_bytes() == found[1].read_bytes()
    assert report.files == found[0].files - 2 * len(kept)
    assert json.loads((tmp_path / "state.json").read_text())["noises"] == data["noises"]
    assert not any("state.json" in note for note in report.notes)


@pytest.mark.runtime
def test_a_state_of_something_else_is_named(digits: tuple[Path, Judging, Path], tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text('{"a": 1}')
    with pytest.raises(tfl_rewrite.FileAccessError, match="holds no state of a search"):
        search(digits, tmp_path / "out.tflite", min_snr=30.0, state=tmp_path / "state.json")
    assert not (tmp_path / "out.tflite").exists()


@pytest.mark.runtime
def test_the_recipe_gives_the_same_encodings(
    found: tuple[ShrinkReport, Path], digits: tuple[Path, Judging, Path], tmp_path: Path
) -> None:
    report = found[0]
    assert report.promised is not None
    (tmp_path / "map.toml").write_text(report.recipe())
    made = QuantizeWeights(map=str(tmp_path / "map.toml"), min_elements=64)
    model = tfl_rewrite.load(digits[0])
    result = made.run(model, Context())
    assert report.report is not None
    wanted = encodings_of([change for each in report.report.results for change in each.changes])
    assert encodings_of(result.changes) == wanted and len(wanted) > 2
    assert len(set(wanted.values())) > 1


def encodings_of(changes: Iterable[object]) -> dict[str, tuple[object, ...]]:
    return {
        change.where: (change.stored, change.block, change.channels, change.scheme)
        for change in changes
        if isinstance(change, WeightChange)
    }


@pytest.mark.runtime
def test_a_size_alone_gets_the_least_error(digits: tuple[Path, Judging, Path], tmp_path: Path) -> None:
    report = search(digits, tmp_path / "out.tflite", max_nbytes=30_000)
    assert report.promised is not None
    assert (tmp_path / "out.tflite").stat().st_size <= 30_000
    within = [item for item in report.curve if item.nbytes <= 30_000]
    assert len(within) > 1
    assert max(item.snr or 0.0 for item in within) == report.promised.snr


@pytest.mark.runtime
@pytest.mark.parametrize(
    "budget", [{"max_nbytes": 5_000}, {"min_snr": 60.0, "max_nbytes": 12_000}], ids=["size", "both"]
)
def test_what_cannot_be_is_told_with_the_trade_offs(
    digits: tuple[Path, Judging, Path], tmp_path: Path, budget: dict[str, Any]
) -> None:
    target = tmp_path / "out.tflite"
    with pytest.raises(ShrinkFailed, match="no file was found within the budget") as failure:
        search(digits, target, **budget)
    assert failure.value.exit_code == 4 and not target.exists()
    assert failure.value.report.promised is None and len(failure.value.report.pareto) > 1


@pytest.mark.runtime
def test_agreement_from_few_samples_is_doubted(digits: tuple[Path, Judging, Path], tmp_path: Path) -> None:
    report = search(digits, tmp_path / "out.tflite", min_agreement=0.99)
    assert report.proven is not None and report.proven.outputs[0].argmax_agreement == 1.0
    assert any("cannot be told from 2 samples: give at least 100" in note for note in report.notes)


@pytest.mark.runtime
def test_names_that_nothing_refers_to_are_left_out_on_request(
    digits: tuple[Path, Judging, Path], tmp_path: Path
) -> None:
    files, notes = [], []
    for number, strip in enumerate(((), ("names",))):
        files.append(tmp_path / f"{number}.tflite")
        report = search(digits, files[-1], min_snr=20.0, strip=strip)
        assert report.promised is not None and report.promised.nbytes == files[-1].stat().st_size
        notes.append([note for note in report.notes if "--strip names" in note])
    model, small = load(files[0]), load(files[1])
    nbytes, spared = names_nbytes(model), files[0].stat().st_size - files[1].stat().st_size
    assert abs(spared - nbytes) < 0.1 * nbytes and names_nbytes(small) == 0
    assert len(notes[0]) == 1 and f"{names_nbytes(load(digits[0])):,} bytes" in notes[0][0] and not notes[1]
    ends = [
        [item.name for item in (*each.subgraphs[0].inputs, *each.subgraphs[0].outputs)]
        for each in (model, small)
    ]
    assert ends[0] == ends[1] and all(ends[0])
    verdict = tfl_rewrite.verify(files[0], files[1], digits[1])
    assert verdict.passed and all(item.bit_exact for item in verdict.outputs)


@pytest.mark.runtime
def test_largest_error(digits: tuple[Path, Judging, Path], tmp_path: Path) -> None:
    report = search(digits, tmp_path / "out.tflite", max_error=0.01)
    assert report.promised is not None and report.proven is not None
    for verdict in (report.promised.verdict, report.proven):
        assert (verdict.outputs[0].max_abs_error or 0.0) <= 0.01


@pytest.mark.runtime
def test_memory_wants_kernels_that_read_integers(digits: tuple[Path, Judging, Path], tmp_path: Path) -> None:
    report = search(digits, tmp_path / "out.tflite", min_snr=20.0, objective="ram")
    assert report.promised is not None and report.promised.choice
    assert {encoding.text for encoding in report.promised.choice.values()} == {"int8:channel"}
    assert report.promised.cost < 0.5 * sum(4 * unit.elements for unit in report.units)


@pytest.mark.runtime
def test_downloads_take_what_deflates_to_less(digits: tuple[Path, Judging, Path], tmp_path: Path) -> None:
    report = search(digits, tmp_path / "out.tflite", min_snr=40.0, objective="download", encodings=None)
    assert report.promised is not None
    (note,) = [note for note in report.notes if "coded integers" in note]
    sizes = [int(word.replace(",", "")) for word in note.split() if word[0].isdigit()]
    assert len(sizes) == 3
    written = len(zlib.compress((tmp_path / "out.tflite").read_bytes(), 9))
    assert report.promised.deflated == written == min(sizes)
    assert report.promised.deflated < report.promised.nbytes
    chosen = [report.is_chosen(item) for item in report.table]
    assert chosen.count(True) == 1 and len(chosen) > 2 and all(item.deflated for item in report.table)


@pytest.mark.runtime
def test_downloads_are_found_where_the_first_passes_move_constants(tmp_path: Path) -> None:
    """Grids belong to positions of buffers, and a dead one in front of all others moves those."""
    source, net = tmp_path / "plain.tflite", Net()
    inner = net.dense(net.input("x", (1, 40)), net.weights("w", (64, 40)), "inner")
    net.output(net.dense(inner, net.weights("v", (24, 64)), "y"))
    save(net.model, source)
    model = load(source)
    model.buffers.insert(1, Buffer(OwnedBlob(np.arange(4096, dtype="<f4").tobytes())))
    dead = Tensor("dead", (4096,), dtypes.FLOAT32.value, model.buffers[1])
    model.subgraphs[0].tensors.append(dead)
    save(model, tmp_path / "moved.tflite")
    found = {}
    for name, path in (("plain", source), ("moved", tmp_path / "moved.tflite")):
        wish: dict[str, Any] = {"min_snr": 60.0, "objective": "download", "encodings": FEW[:1]}
        report = search((path, Judging(), path), tmp_path / f"{name}-out.tflite", **wish)
        assert report.promised is not None
        assert grids_of(report.promised.choice)
        found[name] = report.promised.deflated
    assert found["moved"] == pytest.approx(found["plain"], rel=0.01)


@pytest.mark.runtime
def test_made_inputs_are_said_to_be_made(fixtures: Path, tmp_path: Path) -> None:
    report = tfl_rewrite.shrink(
        fixtures / "dense.tflite", tmp_path / "out.tflite", Goal(min_snr=30.0, encodings=FEW)
    )
    assert report.proven is not None and report.proven.sample_source == "made"
    assert "made inputs" in report.split.text


@pytest.mark.runtime
def test_nothing_to_choose_is_a_copy(fixtures: Path, tmp_path: Path) -> None:
    goal = Goal(min_snr=30.0, state=tmp_path / "state.json")
    report = tfl_rewrite.shrink(fixtures / "already_int8.tflite", tmp_path / "out.tflite", goal)
    assert not report.units and report.report is not None
    assert any("state.json was not written: no constant" in note for note in report.notes)
    assert (tmp_path / "out.tflite").stat().st_size <= report.nbytes_before


@pytest.mark.runtime
def test_what_cannot_be_run_cannot_be_searched(fixtures: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="nothing can be measured"):
        tfl_rewrite.shrink(
            fixtures / "malformed" / "custom_unknown_op.tflite", tmp_path / "out.tflite", Goal(min_snr=30.0)
        )
    assert not (tmp_path / "out.tflite").exists()


@pytest.mark.runtime
def test_no_time_is_no_file_where_nothing_likely_fits(
    digits: tuple[Path, Judging, Path], tmp_path: Path
) -> None:
    with pytest.raises(ShrinkFailed) as failure:
        search(digits, tmp_path / "out.tflite", min_snr=140.0, max_nbytes=30_000, time_limit=1e-6)
    report = failure.value.report
    assert report.ended_in == "mixtures of two encodings" and report.overrun > 0
    assert [step.nbytes for step in report.steps] == [None] * 3
    assert not (tmp_path / "out.tflite").exists()


@pytest.mark.runtime
@pytest.mark.parametrize(("bound", "objective"), [(30.0, "file"), (140.0, "latency")])
def test_no_time_is_what_is_likely_to_do(
    digits: tuple[Path, Judging, Path], tmp_path: Path, bound: float, objective: str
) -> None:
    report = search(digits, tmp_path / "out.tflite", min_snr=bound, objective=objective, time_limit=1e-6)
    assert any("before encodings were timed" in note for note in report.notes) is (objective == "latency")
    assert report.promised is not None
    assert report.promised_snr is None or report.promised_snr >= bound
    assert bool(report.promised.choice) is (bound < 100)
    # What could not be done is told, and what was done if that is asked for.
    told = lines_of(report, verbose=0)
    assert any("the time limit of 1e-06 s ended the search, " in line for line in told)
    assert sum("files run" in line for line in lines_of(report, verbose=1)) == len(report.steps) == 3
    assert any("the original, but for what loses nothing" in note for note in report.notes) is (bound > 100)
    told_as_data = report.to_dict()
    assert (
        told_as_data["ended_in"] == told_as_data["steps"][-1]["step"] and told_as_data["overrun_seconds"] >= 0
    )


@pytest.mark.runtime
def test_little_time_is_a_file_all_the_same(
    digits: tuple[Path, Judging, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock here counts how often it is asked, so that the end comes at the same place on any machine."""
    asked = 0

    def is_past(_: Clock, *, spare: float = 0.0) -> bool:
        nonlocal asked
        asked += 1
        return asked > limit + spare

    monkeypatch.setattr(Clock, "is_past", is_past)
    sizes, ended = [], []
    for limit in (1, 12, 40):
        asked = 0
        report = search(digits, tmp_path / f"{limit}.tflite", min_snr=20.0, time_limit=1.0)
        assert report.promised is not None and (report.promised_snr or 0.0) >= 20.0
        sizes.append(report.promised.nbytes)
        ended.append(report.ended_in)
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] < sizes[0]
    assert None not in ended[:2] and len(set(ended)) == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({}, "no budget"),
        ({"min_snr": 30.0, "metric": "a:b"}, "go together"),
        ({"min_snr": 30.0, "objective": "beauty"}, "objective 'beauty'"),
        ({"min_snr": 30.0, "time_limit": 0.0}, "time_limit"),
        ({"metric": "nonsense", "min_metric": 1.0}, "metric 'nonsense'"),
        ({"metric": "no_such_module:f", "min_metric": 1.0}, "no_such_module"),
    ],
)
def test_usage(
    digits: tuple[Path, Judging, Path], tmp_path: Path, more: dict[str, Any], expected: str
) -> None:
    with pytest.raises(UsageError, match=expected):
        search(digits, tmp_path / "out.tflite", **more)
    assert not (tmp_path / "out.tflite").exists()


@pytest.mark.runtime
def test_the_model_is_simplified_where_outputs_allow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = Net(3)
    weights = net.random.standard_normal((96, 64)).astype(np.float32)
    weights[48:] *= np.float32(1e-20)
    made = net.dense(net.input("x", (1, 64)), net.constant("first", weights), "made", net.weights("b", (96,)))
    net.output(net.dense(net.add("RELU", [made], "cut", (1, 96)), net.weights("second", (32, 96)), "y"))
    path, goal, judging = tmp_path / "in.tflite", Goal(min_snr=20, effort="fast"), Judging(samples=2)
    save(net.model, path)
    report = tfl_rewrite.shrink(path, tmp_path / "out.tflite", goal, judging=judging)
    assert report.recipe().startswith("# tfl-rewrite simplify IN OUT\n")
    assert load(tmp_path / "out.tflite").subgraphs[0].tensor("cut").shape == (1, 48)
    monkeypatch.setattr("tfl_rewrite.passes.drop_channels._NOTHING", 0.9)
    clocks: list[Clock] = []
    started = Clock.__post_init__
    monkeypatch.setattr(Clock, "__post_init__", lambda self: clocks.append(self) or started(self))
    with opened_for(Wanted(goal=goal, frame=Frame(path), judging=judging)) as opened:
        assert opened.wanted.frame.before == (), "they were needed"
        assert clocks == [opened.clock], "the time of looking at the simplified model counts"


@pytest.mark.runtime
def test_a_search_parses_its_source_once(
    fixtures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense = fixtures / "dense.tflite"
    parsed: list[str] = []
    parse = Source.__init__

    def counted(self: Source, container: Container) -> None:
        parsed.append(container.path)
        parse(self, container)

    monkeypatch.setattr(Source, "__init__", counted)
    tfl_rewrite.shrink(dense, tmp_path / "out.tflite", Goal(min_snr=20), judging=Judging(samples=2))
    assert parsed.count(str(dense)) == 1


def refusing(monkeypatch: pytest.MonkeyPatch, refuses: Callable[[int, Plan], bool]) -> list[Plan]:
    """Has the last verdict refuse some files, which are told by how many were to be published before them."""
    plans: list[Plan] = []

    def published(plan: Plan) -> Report:
        plans.append(plan)
        if not refuses(len(plans) - 1, plan):
            return carry_out(plan)
        report = carry_out(replace(plan, dry_run=True, ready=lambda _report: None))
        assert report.verdict is not None
        first, *others = report.verdict.outputs
        outputs = (replace(first, passed=False, rule="snr", short_db=2.0), *others)
        failed = replace(report.verdict, status="fail", reasons=("a channel",), outputs=outputs)
        raise RewriteFailed("differs", replace(report, verdict=failed))

    monkeypatch.setattr("tfl_rewrite.search.shrink.carry_out", published)
    return plans


def is_stored_otherwise(plan: Plan) -> bool:
    return any(isinstance(item, Chosen) and item.encodings for item in plan.passes)


@pytest.mark.runtime
def test_what_the_last_verdict_refuses_is_not_the_end(
    digits: tuple[Path, Judging, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next file that keeps more is published, and what is said of it is its own."""
    plans = refusing(monkeypatch, lambda number, _: number == 0)
    target = tmp_path / "out.tflite"
    report = search(digits, target, min_snr=32.0)
    assert report.promised is not None and report.promised_snr is not None
    assert len(plans) == 2 and is_stored_otherwise(plans[1])
    (encodings,) = (item.encodings for item in plans[0].passes if isinstance(item, Chosen))
    first = min((item for item in report.curve if item.choice == encodings), key=lambda item: item.nbytes)
    assert target.stat().st_size == report.promised.nbytes
    assert first.nbytes < report.promised.nbytes < report.nbytes_before
    assert held(report.promised, report.goal) >= held(first, report.goal) + 2.0
    assert report.promised_snr >= 32.0 and any(report.is_chosen(item) for item in report.curve)
    (note,) = (note for note in report.notes if "refused" in note)
    assert note.endswith("bytes was refused by the last verdict: a channel")


@pytest.mark.runtime
def test_the_original_is_left_where_the_last_verdict_refuses_all_else(
    digits: tuple[Path, Judging, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After files of the curve and those of other activations."""

    def is_lossy(_: int, plan: Plan) -> bool:
        return is_stored_otherwise(plan) or any(isinstance(item, Integers) for item in plan.passes)

    plans = refusing(monkeypatch, is_lossy)
    target = tmp_path / "out.tflite"
    report = search(digits, target, min_snr=32.0, activations="any")
    assert report.promised is not None and not report.promised.choice and not report.promised.activations
    integers = [any(isinstance(item, Integers) for item in plan.passes) for plan in plans]
    assert set(integers) == {True, False} and 4 <= len(plans) <= 8 and not is_lossy(0, plans[-1])
    assert target.stat().st_size == report.promised.nbytes and report.promised_snr == float("inf")
    told = "\n".join(report.notes)
    assert told.count("was refused by the last verdict") == len(plans) - 1 and "the original, but for" in told
    assert [item.activations for item in report.tried if item.chosen] == ["float"]


@pytest.mark.runtime
@pytest.mark.parametrize("bounds", [{"min_snr": 20.0, "max_nbytes": 70_000}, {"max_nbytes": 70_000}])
def test_a_size_is_kept_where_the_last_verdict_refuses_all(
    digits: tuple[Path, Judging, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    bounds: dict[str, Any],
) -> None:
    plans = refusing(monkeypatch, lambda *_: True)
    with pytest.raises(ShrinkFailed, match="differs") as error:
        search(digits, tmp_path / "out.tflite", **bounds)
    assert error.value.exit_code == 4 and error.value.report.promised is None
    assert sum("was refused" in note for note in error.value.report.notes) == len(plans)
    assert all(map(is_stored_otherwise, plans)) and 2 <= len(plans) <= 4
    assert not list(tmp_path.iterdir())
