"""After a refusal: the constant that did it is named, and what is proposed passes."""

from __future__ import annotations

import itertools
import json
import math
import shlex
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfl_rewrite import Judging, RewriteFailed, Tolerance, load, rewrite, save
from tfl_rewrite.cli.render import report_lines
from tfl_rewrite.model.blob import OwnedBlob
from tfl_rewrite.model.ir import Model, Tensor
from tfl_rewrite.passes.quantize_weights import QuantizeWeights
from tfl_rewrite.passes.remove_dead import RemoveDead
from tfl_rewrite.passes.round_weights import RoundWeights
from tfl_rewrite.pipeline.damage import MOST_MEASURED, most_costly, most_measured, rescue

pytestmark = pytest.mark.runtime

Array = np.ndarray[Any, Any]

DENSE = "functional_1_1/functional_1/dense_1/MatMul"
LAST_FILTER = "functional_1_1/functional_1/conv2d_2_1/convolution"
CHANNEL = 5  # of the last convolution's 64; the dense layer reads them as every 64th column


def _edit(tensor: Tensor, change: Callable[[Array], None]) -> None:
    assert tensor.buffer.blob is not None
    values = np.frombuffer(tensor.buffer.blob.view(), "<f4").reshape(tensor.shape or ()).copy()
    change(values)
    tensor.buffer.blob = OwnedBlob(values.tobytes())


def _constant(model: Model, name: str) -> Tensor:
    return next(t for t in model.subgraphs[0].tensors if t.name == name and t.is_constant)


def _bias_of(model: Model, weight: Tensor) -> Tensor:
    operator = next(o for _, o in model.operators() if any(t is weight for t in o.inputs))
    bias = operator.inputs[2]
    assert bias is not None
    return bias


def _set(index: Any, value: float, *, times: bool = False) -> Callable[[Array], None]:
    def change(values: Array) -> None:
        values[index] = values[index] * value if times else value

    return change


@pytest.fixture(scope="module")
def outlier(fixtures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Large weights for an activation that is always zero: the float model does not mind, int8 does."""
    model = load(fixtures / "mtcnn_rnet.tflite")
    last = _constant(model, LAST_FILTER)
    _edit(_bias_of(model, last), _set(CHANNEL, 0.0))
    _edit(last, _set(CHANNEL, 0.0))
    _edit(_constant(model, DENSE), _set(np.s_[:, CHANNEL::64], 2000.0))
    target = tmp_path_factory.mktemp("outlier") / "model.tflite"
    save(model, target)
    return target


@pytest.fixture(scope="module")
def loud(fixtures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A loud activation that the next layer ignores: rounding activations loses the rest, weights do not."""
    model = load(fixtures / "mtcnn_rnet.tflite")
    last = _constant(model, LAST_FILTER)
    _edit(_bias_of(model, last), _set(CHANNEL, 30000.0))
    _edit(_constant(model, DENSE), _set(np.s_[:, CHANNEL::64], 0.0))
    target = tmp_path_factory.mktemp("loud") / "model.tflite"
    save(model, target)
    return target


def judging(seconds: float, *, rescue: bool = False) -> Judging:
    tolerance = Tolerance(min_snr=15)
    return Judging(samples=2, tolerance=tolerance, blame_seconds=seconds, rescue=rescue)


def refused(source: Path, target: Path, seconds: float = 60, **options: Any) -> RewriteFailed:
    with pytest.raises(RewriteFailed) as caught:
        rewrite(source, target, [QuantizeWeights(**options)], judging=judging(seconds))
    assert not target.exists()
    return caught.value


def proposed(error: RewriteFailed) -> dict[str, Any]:
    """The options that the text for people proposes, read as a shell would."""
    lines = report_lines(error.report, verbose=0)
    words = [word for line in lines if line.startswith("  --") for word in shlex.split(line)]
    options: dict[str, Any] = {}
    for name, value in zip(words[::2], words[1::2], strict=True):
        if name == "--exclude":
            options.setdefault("exclude", []).append(value)
        else:
            options[name[2:]] = value
    return options


def test_the_culprit_is_named(outlier: Path, tmp_path: Path) -> None:
    error = refused(outlier, tmp_path / "out.tflite")
    damage = error.report.damage
    assert damage is not None and damage.unmeasured == 0
    assert damage.culprits[0].tensor == DENSE
    ratios = [item.snr for item in damage.culprits if item.snr is not None]
    assert ratios == sorted(ratios) and ratios[0] < 15 < ratios[1]
    assert damage.spare == (DENSE,) and damage.expanded is None
    text = "\n".join(report_lines(error.report, verbose=0))
    assert DENSE in text and "--exclude" in str(error)
    json.dumps(error.report.to_dict(), allow_nan=False)


def test_what_is_proposed_passes(outlier: Path, tmp_path: Path) -> None:
    error = refused(outlier, tmp_path / "out.tflite")
    damage, options = error.report.damage, proposed(error)
    assert damage is not None and list(options) == ["exclude"]
    report = rewrite(outlier, tmp_path / "out.tflite", [QuantizeWeights(**options)], judging=judging(0))
    assert report.verdict is not None and report.verdict.passed
    assert report.nbytes_after == damage.nbytes and report.verdict.worst_snr() == damage.snr


def test_another_scheme_is_proposed_where_it_passes(loud: Path, tmp_path: Path) -> None:
    error = refused(loud, tmp_path / "out.tflite")
    damage = error.report.damage
    assert damage is not None and damage.expanded is not None
    assert "--scheme dequantize" in str(error)
    options = proposed(error)
    assert options["scheme"] == "dequantize"
    made = QuantizeWeights(scheme="dequantize")
    report = rewrite(loud, tmp_path / "out.tflite", [made], judging=judging(0))
    assert report.verdict is not None and report.verdict.passed
    assert (report.verdict.worst_snr(), report.nbytes_after) == damage.expanded


def test_other_settings_are_kept(outlier: Path, tmp_path: Path) -> None:
    """What the user chose holds for the trials too: which constants, and no other scheme."""
    error = refused(outlier, tmp_path / "out.tflite", scheme="hybrid", exclude=["CONV_2D"])
    damage = error.report.damage
    assert damage is not None and damage.expanded is None
    assert {item.tensor for item in damage.culprits} == {
        change.where for change in error.report.results[0].changes
    }
    assert damage.spare == (DENSE,)


def test_no_time(outlier: Path, tmp_path: Path) -> None:
    started = time.monotonic()
    error = refused(outlier, tmp_path / "out.tflite", seconds=0)
    damage = error.report.damage
    assert damage is not None and damage.culprits == () and damage.unmeasured > 0
    assert proposed(error) == {} and "--exclude" in str(error)
    assert time.monotonic() - started < 20


def test_names_in_proposals_are_safe_and_still_match(outlier: Path, tmp_path: Path) -> None:
    """A name with quotes, pattern characters and terminal escapes comes back as a working option."""
    name = "a (very) *bad*\n'name' \x1b[31m$(x) \u202e;\\"
    model = load(outlier)
    _constant(model, DENSE).name = name
    save(model, tmp_path / "named.tflite")
    error = refused(tmp_path / "named.tflite", tmp_path / "out.tflite")
    text = "\n".join(report_lines(error.report, verbose=1)) + str(error)
    assert not {"\x1b", "\u202e"} & set(text)
    options = proposed(error)
    report = rewrite(
        tmp_path / "named.tflite",
        tmp_path / "out.tflite",
        [QuantizeWeights(**options)],
        judging=judging(0),
    )
    assert report.outcome == "rewritten"
    assert {change.where for change in report.results[0].changes}.isdisjoint({name})
    assert len(report.results[0].changes) >= 5


def test_constants_of_all_passes_are_looked_at(outlier: Path, tmp_path: Path) -> None:
    passes = [QuantizeWeights(exclude=["CONV"]), QuantizeWeights()]
    with pytest.raises(RewriteFailed) as caught:
        rewrite(outlier, tmp_path / "out.tflite", passes, judging=judging(60))
    damage = caught.value.report.damage
    assert damage is not None and damage.culprits[0].tensor == DENSE
    assert {item.place[0] for item in damage.culprits} == {0, 1}


def test_the_culprit_is_stored_finer(outlier: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.tflite"
    checked = judging(60, rescue=True)
    report = rewrite(outlier, target, [QuantizeWeights()], judging=checked)
    assert report.outcome == "rewritten" and report.verdict is not None and report.verdict.passed
    assert report.refused is not None and report.refused.status == "fail"
    assert [item.tensor for item in report.finer] == [DENSE] and report.finer[0].added > 0
    assert report.finer[0].snr is not None and report.finer[0].snr < 15
    others = [change for change in report.results[0].changes if change.where != DENSE]
    assert len(others) >= 5
    text = "\n".join(report_lines(report, verbose=0))
    assert "1 constant had to be stored finer than asked for" in text and report.finer[0].form in text
    # Of why it failed, the first thing does; the rest is told by -v.
    lengthy = replace(report, refused=replace(report.refused, reasons=("y: one; two", "z: three")))
    lines = [next(line for line in report_lines(lengthy, verbose=v) if "failed: y" in line) for v in (0, 1)]
    assert lines[0].endswith("without that it failed: y: one (2 more reasons with -v)")
    assert lines[1].endswith("without that it failed: y: one; two; z: three")
    data = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert data["finer"][0]["tensor"] == DENSE and data["refused"]["status"] == "fail"
    # The same in a longer chain of passes, and without time to look for the culprit.
    chain = [*[RemoveDead()], QuantizeWeights()]
    other = rewrite(outlier, tmp_path / "chain.tflite", chain, judging=judging(0, rescue=True), force=True)
    assert other.outcome == "rewritten" and DENSE in {item.tensor for item in other.finer}


def test_what_is_written_does_not_depend_on_the_time_there_is(
    fixtures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine on which each look at the clock takes a minute makes the same file."""

    def made(name: str, seconds: float) -> tuple[bytes, list[str]]:
        target = tmp_path / name
        passes = [QuantizeWeights(dtype="int4", granularity="block:32")]
        report = rewrite(
            fixtures / "lstm.tflite", target, passes, judging=Judging(samples=2, blame_seconds=seconds)
        )
        assert report.refused is not None and report.finer
        return target.read_bytes(), [item.tensor for item in report.finer]

    usual = made("usual.tflite", 600)
    now = itertools.count(0, 60)
    clock = SimpleNamespace(monotonic=lambda: float(next(now)))
    monkeypatch.setattr("tfl_rewrite.pipeline.damage.time", clock)
    assert made("slow.tflite", 5) == usual
    assert made("none.tflite", 0) == usual


class Noisy:
    """Stands for trials of constants whose noises add up."""

    nbytes_before = 1 << 20

    def __init__(self, noises: list[float], failing: int = -1) -> None:
        self.names = {(0, position): str(position) for position in range(len(noises))}
        self.noises, self.failing, self.files = noises, failing, 0

    def at(self, level: int, places: Any) -> dict[tuple[int, int], int]:
        return dict.fromkeys(places, level)

    def judge(self, levels: Mapping[Any, int]) -> Any:
        self.files += 1
        mine = [position for (_, position) in self.names.keys() - levels.keys()]
        return self.verdict(mine)

    def verdict(self, mine: Any) -> Any:
        snr = -10 * math.log10(sum(self.noises[position] for position in mine) or 1e-30)
        short = 3.0 if self.failing in mine else max(0.0, 20.0 - snr)
        return SimpleNamespace(worst_snr=lambda: snr, short_db=lambda: short)

    def costly(self) -> list[str]:
        refused = self.verdict(range(len(self.noises)))
        return [item.tensor for item in most_costly(self, refused)]  # type: ignore[arg-type]


@pytest.mark.parametrize("loud", [0, 41, 79])
def test_a_loud_constant_among_many_is_found_with_few_files(loud: int) -> None:
    trials = Noisy([1e-5] * 80)
    trials.noises[loud] = 0.012
    assert trials.costly()[0] == str(loud)
    assert trials.files <= 2 * math.ceil(math.log2(80)) < MOST_MEASURED / 4


def test_the_loudest_come_first_until_the_others_are_not_too_loud_together() -> None:
    trials = Noisy([1e-5] * 30 + [0.004, 0.009, 0.006, 0.002])
    found = trials.costly()
    assert found[:3] == ["31", "32", "30"]
    rest = sum(trials.noises) - sum(trials.noises[int(name)] for name in found)
    assert rest <= 0.005 and trials.files < 20


def test_a_constant_that_fails_at_something_else_is_found() -> None:
    trials = Noisy([1e-5] * 50, failing=33)
    assert trials.costly()[0] == "33"


def test_as_many_files_are_made_as_may_be_where_all_are_alike() -> None:
    trials = Noisy([0.001] * 200)
    assert len(trials.costly()) > 1 or trials.files == MOST_MEASURED
    assert trials.files <= MOST_MEASURED + 1
    assert Noisy([0.02]).costly() == ["0"]


@pytest.mark.parametrize(("nbytes", "count"), [(0, 64), (8 << 20, 64), (100 << 20, 5), (1 << 40, 0)])
def test_how_many_are_measured_follows_from_the_size_of_the_file(nbytes: int, count: int) -> None:
    assert most_measured(nbytes) == count


def test_where_nothing_passes_the_file_stays_as_it_was(fixtures: Path, tmp_path: Path) -> None:
    """No weight of this one can be rounded without a trace in the outputs."""
    checked = Judging(samples=1, tolerance=Tolerance(min_snr=300))
    source = fixtures / "digits_cnn.tflite"
    report = rewrite(source, tmp_path / "out.tflite", [QuantizeWeights()], judging=checked)
    assert report.outcome == "unchanged" and report.refused is not None
    assert (tmp_path / "out.tflite").read_bytes() == source.read_bytes()
    assert "as asked for" in "\n".join(report_lines(report, verbose=0)) or report.finer


def test_rounding_is_rescued_too(outlier: Path, tmp_path: Path) -> None:
    checked = Judging(samples=2, tolerance=Tolerance(min_snr=60), blame_seconds=20)
    target = tmp_path / "out.tflite"
    report = rewrite(outlier, target, [RoundWeights(steps=64)], judging=checked)
    assert report.outcome == "rewritten" and report.refused is not None
    assert {item.form for item in report.finer} <= {"16 times as many steps", "as it is"} and report.finer


@given(
    costs=st.lists(st.integers(0, 3), min_size=1, max_size=12),
    top=st.integers(1, 4),
)
def test_no_more_is_stored_finer_than_a_monotone_judge_asks_for(costs: list[int], top: int) -> None:
    """Each constant needs a level of its own; sorted as they are, the worst first."""
    needs = sorted((min(cost, top) for cost in costs), reverse=True)
    order = list(range(len(needs)))
    tried = 0

    def passes(levels: Mapping[int, int]) -> bool:
        nonlocal tried
        tried += 1
        return all(levels.get(place, 0) >= need for place, need in enumerate(needs))

    found = rescue(order, top, passes)
    assert passes(found) or needs[0] == 0
    assert len(found) <= max(1, sum(need > 0 for need in needs))
    assert tried <= top + 2 * math.ceil(math.log2(len(order) + 1)) + 2


def test_nothing_is_left_behind(outlier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    refused(outlier, tmp_path / "out.tflite", seconds=3)
    assert list(scratch.iterdir()) == []
    assert [path.name for path in tmp_path.iterdir()] == ["scratch"]
