"""Files that do not give the same twice: whose fault it is, and whether it is seen at all."""

from __future__ import annotations

import pytest

from tfl_rewrite.judge.judge import Judge
from tfl_rewrite.judge.settings import Judging, Tolerance
from tfl_rewrite.pipeline.verify import verify

from .. import tiny_models
from ..interpreter import fake_runtime


@pytest.fixture
def runtime(tmp_path):
    return fake_runtime.install(tmp_path)


@pytest.mark.runtime
def test_kernel_that_reads_beyond_its_scales(tmp_path):
    sound = tiny_models.depthwise(tmp_path / "a.tflite")
    broken = tiny_models.depthwise(tmp_path / "b.tflite", per_tensor=True)
    verdict = verify(sound, sound, Judging(tolerance=Tolerance(exact=True)))
    assert verdict.status == "pass" and verdict.repeated == 1 and verdict.notes == ()
    # What lies behind the scales is up to chance: it may be the same twice, or so large that what varies
    # are its last bits. Then the outputs are only wrong. That a file which varies is named so is tested
    # below, without chance.
    verdict = verify(sound, broken)
    assert verdict.status == "fail"
    if verdict.cause == "unrepeatable":
        assert "does not repeat its own outputs" in verdict.reasons[0] and "'y'" in verdict.reasons[0]
    # As the original, it is nothing to judge by: never a pass.
    verdict = verify(broken, sound)
    assert verdict.status == ("unverified" if verdict.cause in ("unrepeatable", "kernels") else "fail")


@pytest.mark.slow
def test_rewritten_that_drifts_fails_though_its_first_run_was_right(tmp_path, runtime):
    before = fake_runtime.model(tmp_path / "a")
    after = fake_runtime.model(tmp_path / "b", drift=1.0)
    verdict = verify(before, after, Judging(runtime=runtime))
    assert verdict.status == "fail" and verdict.cause == "unrepeatable"
    assert len(verdict.reasons) == 1 and "while the original does" in verdict.reasons[0]
    assert verdict.outputs[0].bit_exact


@pytest.mark.slow
def test_without_repeating_it_is_not_seen(tmp_path, runtime):
    before = fake_runtime.model(tmp_path / "a")
    after = fake_runtime.model(tmp_path / "b", drift=1.0)
    with Judge(before, Judging(runtime=runtime)) as judge:
        verdict = judge.compare(after)
        assert verdict.status == "pass" and verdict.repeated == 0
        assert judge.compare(fake_runtime.model(tmp_path / "c"), repeat=True).repeated == 1


@pytest.mark.slow
def test_last_bits_are_a_note(tmp_path, runtime):
    before = fake_runtime.model(tmp_path / "a")
    after = fake_runtime.model(tmp_path / "b", drift=1e-6)
    verdict = verify(before, after, Judging(runtime=runtime))
    assert verdict.status == "pass"
    assert any("last bits of the rewritten file's outputs vary" in note for note in verdict.notes)


@pytest.mark.slow
def test_original_that_drifts_is_told_and_not_held_against_the_rewritten(tmp_path, runtime):
    before = fake_runtime.model(tmp_path / "a", drift=1.0, home=1)
    verdict = verify(before, fake_runtime.model(tmp_path / "b"), Judging(runtime=runtime))
    assert verdict.status == "pass"
    assert any("the original does not repeat its own outputs" in note for note in verdict.notes)
    before = fake_runtime.model(tmp_path / "c", drift=1.0, home=1)
    verdict = verify(before, _drifting(tmp_path), Judging(runtime=runtime))
    assert verdict.status == "pass"
    assert any("nor does the rewritten file" in note for note in verdict.notes)


def _drifting(folder):
    return fake_runtime.model(folder / "d", drift=1.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("deed", "text"),
    [({"signal": 6}, "died of SIGABRT"), ({"error": "no more"}, "no more"), ({"sleep": 60}, "stopped after")],
)
def test_second_run_that_ends_early(tmp_path, runtime, deed, text):
    before = fake_runtime.model(tmp_path / "a")
    after = fake_runtime.model(tmp_path / "b", running=[{"from_build": 2, **deed}])
    verdict = verify(before, after, Judging(runtime=runtime, timeout=1.5))
    assert verdict.status == "fail" and verdict.cause == "unrepeatable"
    assert "does not run a second time" in verdict.reasons[0] and text in verdict.reasons[0]


@pytest.mark.slow
def test_original_whose_second_run_ends_early(tmp_path, runtime):
    running = [{"from_build": 2, "signal": 6}]
    before = fake_runtime.model(tmp_path / "a", running=running, home=1)
    verdict = verify(before, fake_runtime.model(tmp_path / "b"), Judging(runtime=runtime))
    assert verdict.status == "pass"
    assert any("the original does not run a second time" in note for note in verdict.notes)
    before = fake_runtime.model(tmp_path / "c", running=running, home=1)
    verdict = verify(before, fake_runtime.model(tmp_path / "d", factor=-1.0), Judging(runtime=runtime))
    assert verdict.status == "unverified" and verdict.cause == "crash"


@pytest.mark.slow
def test_one_accident_is_not_a_finding(tmp_path, runtime):
    # Only the quick repetition fails: the whole run in a new process, which decides, is in order.
    before = fake_runtime.model(tmp_path / "a")
    running = [{"from_build": 2, "only_build": 2, "signal": 6}]
    verdict = verify(before, fake_runtime.model(tmp_path / "b", running=running), Judging(runtime=runtime))
    assert verdict.status == "pass" and verdict.notes == ()
