"""``doctor`` and ``repair`` as a user meets them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tfl_rewrite import load, save
from tfl_rewrite.files import source
from tfl_rewrite.flatbuf.reader import read

from .program import call


@pytest.fixture
def faulty(fixtures: Path, tmp_path: Path) -> Path:
    """FULLY_CONNECTED with a scale per channel, stamped with a version that old runtimes take."""
    model = load(fixtures / "already_int8.tflite")
    model.operator_codes[0].version = 9
    path = tmp_path / "in.tflite"
    save(model, path)
    return path


def test_findings_have_place_reason_and_command(capsys: pytest.CaptureFixture[str], faulty: Path) -> None:
    code, said, err = call(capsys, "doctor", faulty)
    assert code == 4 and not err and len(said.splitlines()) <= 6
    assert "1 error, 0 warnings" in said and f"tfl-rewrite repair {faulty} OUT" in said
    code, said, err = call(capsys, "doctor", faulty, "-v")
    assert code == 4 and not err
    assert "1 error, 0 warnings" in said
    assert "subgraphs[0].operators[0] FULLY_CONNECTED: version 9" in said
    assert "why: " in said and f"remedy: tfl-rewrite repair {faulty} OUT --only hybrid-version" in said


@pytest.mark.runtime
def test_the_command_it_names_settles_it(
    capsys: pytest.CaptureFixture[str], faulty: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.tflite"
    code, said, _ = call(capsys, "repair", faulty, out, "--only", "hybrid-version")
    assert code == 0 and "hybrid-version: version 9 -> 12" in said and "verified: PASS" in said
    code, said, _ = call(capsys, "doctor", out, "--fail-on", "warning")
    assert code == 0 and "0 errors, 0 warnings" in said


def test_exit_codes_of_fail_on(capsys: pytest.CaptureFixture[str], faulty: Path, fixtures: Path) -> None:
    assert call(capsys, "doctor", faulty, "--fail-on", "error", "-q") == (4, "", "")
    assert call(capsys, "doctor", faulty, "-q") == (4, "", "")
    assert call(capsys, "doctor", fixtures / "offset_buffers.tflite", "-q")[0] == 0
    assert call(capsys, "doctor", fixtures / "offset_buffers.tflite", "--fail-on", "error", "-q")[0] == 0
    assert call(capsys, "doctor", fixtures / "offset_buffers.tflite", "--fail-on", "warning", "-q")[0] == 4


def test_json(capsys: pytest.CaptureFixture[str], faulty: Path) -> None:
    _, said, _ = call(capsys, "doctor", faulty, "--json")
    data = json.loads(said)
    assert data["schema"] == 1 and data["findings"][0]["id"] == "hybrid-version"
    assert data["findings"][0]["repairable"] is True


def test_a_runtime_can_be_asked_for(capsys: pytest.CaptureFixture[str], fixtures: Path) -> None:
    code, said, _ = call(capsys, "doctor", fixtures / "already_int8.tflite", "--min-runtime", "2.14")
    assert code == 4 and "[too-new]" in said
    assert call(capsys, "doctor", fixtures / "already_int8.tflite", "--min-runtime", "soon")[0] == 2


@pytest.mark.parametrize("name", ["text", "truncated_middle", "empty"])
def test_what_cannot_be_read_is_one_line(
    capsys: pytest.CaptureFixture[str], fixtures: Path, name: str
) -> None:
    code, said, err = call(capsys, "doctor", fixtures / "malformed" / f"{name}.tflite")
    assert (code, said) == (5, "") and err.count("\n") == 1


def test_nothing_to_repair_is_a_copy(
    capsys: pytest.CaptureFixture[str], fixtures: Path, tmp_path: Path
) -> None:
    source, out = fixtures / "digits_cnn.tflite", tmp_path / "out.tflite"
    code, said, _ = call(capsys, "repair", source, out)
    assert code == 0 and "nothing to repair" in said and out.read_bytes() == source.read_bytes()


@pytest.mark.runtime
def test_what_does_not_run_is_said_to_be_unverified(
    capsys: pytest.CaptureFixture[str], fixtures: Path, tmp_path: Path
) -> None:
    source = Path(shutil.copy(fixtures / "malformed" / "quantized_dimension_out_of_range.tflite", tmp_path))
    out = tmp_path / "out.tflite"
    code, said, _ = call(capsys, "repair", source, out)
    assert code == 0 and "UNVERIFIED: the original does not run" in said
    assert "the repaired file runs: " in said
    out.unlink()
    code, _, err = call(capsys, "repair", source, out, "--verify", "require")
    assert code == 3 and not out.exists() and "could not be verified" in err


def test_unknown_repairs_are_refused(
    capsys: pytest.CaptureFixture[str], faulty: Path, tmp_path: Path
) -> None:
    code, _, err = call(capsys, "repair", faulty, tmp_path / "out.tflite", "--only", "everything")
    assert code == 2 and "hybrid-version" in err and not (tmp_path / "out.tflite").exists()


@pytest.mark.parametrize("command", ["check", "doctor", "inspect"])
@pytest.mark.parametrize("options", [[], ["--json"]], ids=["text", "json"])
def test_a_file_is_parsed_once(
    capsys: pytest.CaptureFixture[str],
    fixtures: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    options: list[str],
) -> None:
    parsed = []

    def counted(*arguments: Any, **words: Any) -> Any:
        parsed.append(arguments)
        return read(*arguments, **words)

    monkeypatch.setattr(source, "read", counted)
    assert call(capsys, command, fixtures / "mtcnn_rnet.tflite", *options)[0] == 0
    assert len(parsed) == 1
