"""Models whose own outputs depend on the kernels: what is then said of a rewrite."""

from __future__ import annotations

import pytest

from tfl_rewrite.cli.render_judge import verdict_lines
from tfl_rewrite.errors import UsageError
from tfl_rewrite.judge.judge import Judge
from tfl_rewrite.judge.settings import Judging, Tolerance
from tfl_rewrite.pipeline.verify import verify

from ..interpreter import fake_runtime


@pytest.fixture
def runtime(tmp_path):
    return fake_runtime.install(tmp_path)


@pytest.fixture
def sensitive(tmp_path):
    """Gives something far off without default delegates."""
    return fake_runtime.model(tmp_path / "sensitive", by_kernels={"plain": -10.0})


@pytest.mark.slow
def test_the_model_is_not_blamed_on_the_rewrite(tmp_path, runtime, sensitive):
    after = fake_runtime.model(tmp_path / "b", factor=0.0)
    verdict = verify(sensitive, after, Judging(runtime=runtime))
    assert verdict.status == "unverified" and verdict.cause == "kernels"
    assert "differs from itself as much when other kernels compute it: y: SNR" in verdict.reasons[0]
    assert any("differs between kernels (default and builtin): SNR" in note for note in verdict.notes)


@pytest.mark.slow
def test_further_off_than_the_kernels_is_a_failure(tmp_path, runtime, sensitive):
    after = fake_runtime.model(tmp_path / "b", factor=50.0)
    verdict = verify(sensitive, after, Judging(runtime=runtime))
    assert verdict.status == "fail" and verdict.cause == "outputs"
    assert any("the rewritten file is further off" in note for note in verdict.notes)


@pytest.mark.slow
def test_what_must_be_equal_has_no_excuse(tmp_path, runtime, sensitive):
    after = fake_runtime.model(tmp_path / "b", factor=0.0)
    assert (
        verify(sensitive, after, Judging(runtime=runtime, tolerance=Tolerance(exact=True))).status == "fail"
    )


@pytest.mark.slow
def test_a_model_that_agrees_with_itself_excuses_nothing(tmp_path, runtime):
    before = fake_runtime.model(tmp_path / "a")
    verdict = verify(before, fake_runtime.model(tmp_path / "b", factor=0.0), Judging(runtime=runtime))
    assert verdict.status == "fail" and verdict.notes == ()
    # Nor does one that does not run elsewhere, or gives NaN there.
    alone = fake_runtime.model(tmp_path / "c", allocating=[{"resolver": "plain", "signal": 6}])
    verdict = verify(alone, fake_runtime.model(tmp_path / "d", factor=0.0), Judging(runtime=runtime))
    assert verdict.status == "fail"


@pytest.mark.slow
def test_asked_kernels_are_taken_and_no_others(tmp_path, runtime):
    picky = fake_runtime.model(tmp_path / "a", allocating=[{"resolver": "default", "error": "no delegate"}])
    assert verify(picky, picky, Judging(runtime=runtime)).judge.kernels == "builtin"
    verdict = verify(picky, picky, Judging(runtime=runtime, resolver="default"))
    assert verdict.status == "unverified" and "no delegate" in verdict.reasons[0]
    assert verdict.judge.kernels == "default"
    verdict = verify(picky, picky, Judging(runtime=runtime, resolver="reference"))
    assert verdict.status == "pass" and verdict.judge.resolver == "reference kernels"
    with pytest.raises(UsageError, match="resolver 'xnnpack' is unknown"):
        Judge(picky, Judging(runtime=runtime, resolver="xnnpack"))


@pytest.mark.runtime
def test_worst_of_several_judges(tmp_path, runtime):
    before = fake_runtime.model(tmp_path / "a")
    after = fake_runtime.model(tmp_path / "b", by_kernels={"reference": -1.0})
    every = ["default", "builtin", "reference"]
    verdict = verify(before, after, Judging(runtime=runtime, resolver=every))
    assert verdict.status == "fail" and verdict.judge.kernels == "reference"
    assert [one.status for one in verdict.verdicts] == ["pass", "pass", "fail"]
    judge = f"{verdict.judge.runtime} {verdict.judge.version}"
    assert verdict.reasons[0].startswith(f"{judge}, reference kernels: y: SNR")
    lines = verdict_lines(verdict)
    assert lines[0] == "FAIL (made samples): the worst of 3 judges (1 fail, 2 pass)"
    assert sum(f"judged by {judge}" in line for line in lines) == 3
    # One that cannot judge is worse than a pass, and better than a failure.
    dies = [{"resolver": "reference", "signal": 11}]
    picky = fake_runtime.model(tmp_path / "c", allocating=dies)
    verdict = verify(picky, before, Judging(runtime=runtime, resolver=every))
    assert verdict.status == "unverified" and verdict.cause == "crash"
    verdict = verify(
        picky, fake_runtime.model(tmp_path / "d", factor=-1.0), Judging(runtime=runtime, resolver=every)
    )
    assert verdict.status == "fail" and verdict.judge.kernels == "default"
    # The same judge twice is one judge.
    twice = verify(before, before, Judging(runtime=[runtime, runtime], resolver=["builtin", "builtin"]))
    assert twice.verdicts == () and twice.judge.asked == runtime


@pytest.mark.slow
def test_differences_of_the_original_between_judges_are_told(tmp_path, runtime, sensitive):
    verdict = verify(sensitive, sensitive, Judging(runtime=runtime, resolver=["default", "builtin"]))
    assert verdict.status == "pass"
    judge = f"{verdict.judge.runtime} {verdict.judge.version}"
    text = f"the original's own outputs differ between {judge} (default delegates (XNNPACK)) and {judge} ("
    assert [note.startswith(text) for note in verdict.notes] == [True]
    assert verdict_lines(verdict)[-1] == f"  note: {verdict.notes[0]}"
    steady = fake_runtime.model(tmp_path / "b")
    assert verify(steady, steady, Judging(runtime=runtime, resolver=["default", "builtin"])).notes == ()


def test_no_runtime_is_a_mistake(tmp_path):
    with pytest.raises(UsageError, match="no runtime"):
        verify(fake_runtime.model(tmp_path / "a"), tmp_path / "a", Judging(runtime=[]))
