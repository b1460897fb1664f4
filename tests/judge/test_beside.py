"""Judges that use the processes of another one: what happens in one spoils no verdict of the others."""

from __future__ import annotations

from pathlib import Path

import pytest

from tfl_rewrite.judge.judge import Judge, verdicts
from tfl_rewrite.judge.settings import Judging, Tolerance

from ..interpreter import fake_runtime

EXACT = Tolerance(exact=True)
BOTH = ("ai_edge_litert", "tflite_runtime")


@pytest.mark.slow
@pytest.mark.parametrize("deed", [{"signal": 6}, {"sleep": 60}, {"error": "no"}], ids=["dies", "hangs", "no"])
def test_a_file_that_does_not_run_in_one_judge_spoils_no_other(
    tmp_path: Path, deed: dict[str, object]
) -> None:
    settings = Judging(runtime=fake_runtime.install(tmp_path), timeout=3, tolerance=EXACT)
    before = fake_runtime.model(tmp_path / "a")
    same, bad = fake_runtime.model(tmp_path / "b"), fake_runtime.model(tmp_path / "c", running=[deed])
    drifts = fake_runtime.model(tmp_path / "d", drift=1.0)
    with Judge(before, settings) as first, Judge(before, settings, beside=first) as second:
        for judge, other in ((first, second), (second, first)):
            assert judge.compare(bad).status == "fail"
            assert other.compare(same, repeat=True).status == "pass"
            assert judge.compare(same).status == "pass"
        assert second.compare(drifts, repeat=True).status == "fail"


@pytest.mark.slow
def test_each_judge_keeps_to_the_runtime_of_its_original(tmp_path: Path) -> None:
    settings = Judging(runtime=fake_runtime.install(tmp_path, *BOTH), tolerance=EXACT)
    lacks = [{"package": "ai_edge_litert", "error": "not supported"}]
    before, other = fake_runtime.model(tmp_path / "a"), fake_runtime.model(tmp_path / "b", allocating=lacks)
    with Judge(before, settings) as first, Judge(other, settings, beside=first) as second:
        assert first.compare(before).status == "pass"
        verdict = second.compare(before)
        assert verdict.status == "pass" and verdict.judge is not None
        assert verdict.judge.runtime == "tflite-runtime"
        # It runs in the next runtime only, and the original of this judge in the first one.
        assert first.compare(other).status == "fail"
        assert second.compare(other).status == "pass"


@pytest.mark.slow
def test_what_is_closed_leaves_nothing_and_the_first_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    settings = Judging(runtime=fake_runtime.install(tmp_path))
    before = fake_runtime.model(tmp_path / "a")

    def arrays() -> int:
        return len(list(folder.rglob("*.npy"))) + len(list(folder.rglob("*.json")))

    with Judge(before, settings) as first:
        assert first.compare(before).status == "pass"
        held = arrays()
        with Judge(before, settings, beside=first) as second:
            assert second.compare(before).status == "pass"
            assert arrays() > held
        assert arrays() == held
        assert first.compare(before, repeat=True).status == "pass"
    assert list(folder.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("deed", [{"signal": 6}, {"error": "no"}, {}], ids=["dies", "no", "runs"])
def test_files_at_the_same_time_get_the_verdicts_that_they_get_alone(
    tmp_path: Path, deed: dict[str, object]
) -> None:
    settings = Judging(runtime=fake_runtime.install(tmp_path), tolerance=EXACT)
    before = fake_runtime.model(tmp_path / "a")
    more = {"running": [deed]} if deed else {"drift": 1.0}
    files = fake_runtime.model(tmp_path / "b"), fake_runtime.model(tmp_path / "c", **more)
    with Judge(before, settings) as first, Judge(before, settings, beside=first) as second:
        # The first time the original is run, so that they come one after the other.
        for _ in range(2):
            found = verdicts(
                [
                    judge.begin(file, first=judge is second)
                    for judge, file in zip((first, second), files, strict=True)
                ]
            )
            assert [verdict.status for verdict in found] == ["pass", "fail"]
            alone = second.compare(files[1])
            assert (found[1].cause, found[1].reasons) == (alone.cause, alone.reasons)


@pytest.mark.slow
def test_a_run_beside_which_something_fails_is_ended(tmp_path: Path) -> None:
    settings = Judging(runtime=fake_runtime.install(tmp_path), timeout=3, tolerance=EXACT)
    before = fake_runtime.model(tmp_path / "a")
    hangs = fake_runtime.model(tmp_path / "b", running=[{"sleep": 60}])
    with Judge(before, settings) as judge:
        assert judge.compare(before).status == "pass"
        pending = judge.begin(before)
        assert pending.meanwhile(lambda: 7) == 7 and pending.verdict().status == "pass"
        pending = judge.begin(hangs)
        with pytest.raises(KeyError):
            pending.meanwhile(lambda: {}["what is not there"])
        assert judge.compare(before).status == "pass"
