"""A runtime that is newer than the newest measured one is named wherever facts on runtimes are used."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from tfl_rewrite import Judging, diagnose, rewrite, verify
from tfl_rewrite.cli import main
from tfl_rewrite.cli.render import report_lines
from tfl_rewrite.kernels import runtimes
from tfl_rewrite.passes import QuantizeWeights

from .conftest import pytest_runtest_makereport


@pytest.fixture
def newer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """What is installed is the release after the newest measured one, by its name."""
    newest = max(runtimes.LITERT_RUNTIME, key=runtimes.version_key)
    major, minor = runtimes.runtime_of(newest)
    version = f"{major}.{minor + 1}.0"
    (tmp_path / f"{runtimes.LITERT.replace('-', '_')}-{version}.dist-info").mkdir()
    monkeypatch.setattr(runtimes, "sys", SimpleNamespace(path=[str(tmp_path)]))
    return f"{runtimes.LITERT} {version} is newer than {newest},"


@pytest.mark.parametrize(
    ("distribution", "version", "is_newer"),
    [
        ("ai-edge-litert", "2.3.0", False),
        ("ai-edge-litert", "2.3.0.dev20261001", False),
        ("ai-edge-litert", "2.1.6", False),
        ("ai-edge-litert", "2.3.1", True),
        ("ai-edge-litert", "2.10.0", True),
        ("ai-edge-litert", "unknown version", False),
        ("tensorflow", "2.23.4", False),
        ("tensorflow", "2.24.0rc1", True),
        ("tflite-runtime", "2.14.0", False),
        ("tflite_micro", "0.dev20991231000000", False),
    ],
)
def test_what_is_newer(distribution: str, version: str, is_newer: bool) -> None:
    assert bool(runtimes.unmeasured(distribution, version)) is is_newer


def test_the_installed_runtime_is_not() -> None:
    assert runtimes.unmeasured_here() == ""


def test_folders_that_cannot_be_read_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(Path, "glob", refuse)
    assert runtimes.unmeasured_here() == ""


def test_what_reads_files_says_so(newer: str, fixtures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(fixtures / "dense.tflite")
    assert diagnose(path).notes[0].startswith(newer)
    for command in ("doctor", "check"):
        assert main([command, path]) == 0
        assert f"note: {newer}" in capsys.readouterr().out
        assert main([command, path, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["notes"][0].startswith(newer)


def test_nothing_is_said_of_a_measured_one(fixtures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(fixtures / "dense.tflite")
    for command in ("doctor", "check"):
        assert main([command, path]) == 0
        assert "newer" not in capsys.readouterr().out


def test_a_failing_measurement_says_so(newer: str) -> None:
    for failed in (False, True):
        report = SimpleNamespace(failed=failed, sections=[])
        hook = pytest_runtest_makereport()
        next(hook)
        with pytest.raises(StopIteration):
            hook.send(SimpleNamespace(get_result=lambda report=report: report))
        assert any(newer in text for _, text in report.sections) is failed


@pytest.mark.runtime
def test_verdicts_say_so(monkeypatch: pytest.MonkeyPatch, fixtures: Path, tmp_path: Path) -> None:
    source, made = fixtures / "dense.tflite", tmp_path / "made.tflite"
    known = {version: at for version, at in runtimes.LITERT_RUNTIME.items() if version != "2.3.0"}
    monkeypatch.setattr(runtimes, "LITERT_RUNTIME", known)
    judging = Judging(samples=1)
    report = rewrite(source, made, [QuantizeWeights()], judging=judging)
    assert report.verdict is not None and report.verdict.judge is not None
    told = runtimes.unmeasured(report.verdict.judge.runtime, report.verdict.judge.version)
    assert told and json.dumps(told) in json.dumps(report.to_dict())
    assert any("newer than" in line for line in report_lines(report, verbose=0))
    assert verify(source, made, judging, repeat=False).notes.count(told) == 1
