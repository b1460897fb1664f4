"""The rewriting commands as a user meets them: exit codes, what is printed where, what is left on disk."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tfl_rewrite.cli.render import report_lines
from tfl_rewrite.editing.base import Edit, PassResult
from tfl_rewrite.pipeline.report import Report

from .program import call, left, run


@pytest.mark.runtime
def test_the_main_job(dense: Path, out: Path) -> None:
    done = run("quantize-weights", dense, out, "--samples", "1")
    assert done.returncode == 0 and done.stderr == b""
    text = done.stdout.decode()
    assert f"{dense} -> {out}: 5,936 -> " in text
    assert "quantize-weights: 1 of 2 float constants are int8 now (1 x hybrid)" in text
    assert "verified: PASS (made samples): the output agrees on 1 made sample; it is off by " in text
    lines = text.splitlines()
    assert len(lines) <= 6 and lines[-2].startswith("not judged: ") and lines[-1].startswith("next: ")
    text = run("quantize-weights", dense, out, "--samples", "1", "--force", "-v").stdout.decode()
    assert "dense/weights" in text and "FULLY_CONNECTED" in text and "verified: PASS" in text
    assert "XNNPACK" in text and "1 made sample" in text
    assert left(out) == ["out.tflite"] and out.stat().st_size < 3000


@pytest.mark.runtime
@pytest.mark.slow
def test_what_is_said_to_do_next_runs_as_it_is_printed(dense: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "it's odd.tflite", tmp_path / "out $1.tflite"
    source.write_bytes(dense.read_bytes())
    for options, what in ((["--samples", "1"], "own data: "), (["--verify", "off"], "changed: ")):
        last = run("quantize-weights", source, out, "--force", *options).stdout.decode().splitlines()[-1]
        name, *words = shlex.split(last[last.index(what) + len(what) :])
        assert name == "tfl-rewrite"
        if words[-1] == "FILE.npz":
            words = words[:-2]
        assert run(*words).returncode == 0
    with dense.open("rb") as stream:
        piped = run("quantize-weights", "-", "-", "--samples", "1", stdin=stream).stderr.decode()
    assert piped.splitlines()[-1] == "next: judge it on your own data, with --inputs"


@pytest.mark.runtime
@pytest.mark.parametrize("effort", ["fast", "balanced", "best"])
@pytest.mark.parametrize(
    ("value", "said"),
    [
        (1e38, "note: 1 weight(s) rounded without activations: its activation is too large for its squares"),
        (np.inf, "note: in.npz: 'x' holds 1 infinite of 160 values"),
        (np.nan, "note: in.npz: 'x' holds 1 NaN of 160 values"),
    ],
)
def test_inputs_that_overflow(dense: Path, out: Path, effort: str, value: float, said: str) -> None:
    """No warning of a library comes up, not even one that is hidden, and the report says why."""
    values = np.random.default_rng(0).standard_normal((4, 40)).astype(np.float32)
    if value == 1e38:
        values *= np.float32(2e37)
    else:
        # The last judges, where a part is held out.
        values[3, 7] = value
    inputs = dense.with_name("in.npz")
    np.savez(inputs, x=values)
    report = dense.with_name("report.json")
    words = ["quantize-weights", dense, out, "--inputs", inputs, "--report", report, "--effort", effort, "-v"]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tfl_rewrite", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr and "Traceback" not in done.stderr
    if effort == "fast" and value == 1e38:
        return
    if effort != "fast" and value != 1e38:
        said = said.replace("160 values", "80 values")
    assert said in done.stdout, done.stdout
    assert said.removeprefix("note: ") in json.dumps(json.loads(report.read_text()), ensure_ascii=False)


def test_nothing_to_do(capsys: pytest.CaptureFixture[str], fixtures: Path, out: Path) -> None:
    code, text, _ = call(capsys, "quantize-weights", fixtures / "already_int8.tflite", out)
    assert code == 0 and text.startswith("nothing to do: ")
    assert "is a verbatim copy" in text and "equal bytes, so it was not run\n" in text
    assert out.read_bytes() == (fixtures / "already_int8.tflite").read_bytes()


@pytest.mark.runtime
def test_what_had_to_be_taken_back_is_not_nothing_to_do(
    capsys: pytest.CaptureFixture[str], dense: Path, out: Path
) -> None:
    code, text, _ = call(capsys, "quantize-weights", dense, out, "--min-snr", "200", "--samples", "1")
    assert code == 0 and text.startswith("nothing could stay changed: ") and "; note: " not in text
    assert "without that it failed: " in text and out.read_bytes() == dense.read_bytes()


def test_dry_run(capsys: pytest.CaptureFixture[str], dense: Path, out: Path) -> None:
    code, text, _ = call(capsys, "quantize-weights", dense, out, "--dry-run", "--verify", "off")
    assert code == 0 and "(dry run, not written)" in text and "UNVERIFIED: not run, as asked" in text
    assert left(out) == []


@pytest.mark.runtime
def test_refusal(capsys: pytest.CaptureFixture[str], dense: Path, out: Path) -> None:
    arguments = ["--min-snr", "200", "--samples", "1", "--blame-seconds", "0", "--no-rescue"]
    report = out.parent / "report.json"
    code, text, error = call(capsys, "quantize-weights", dense, out, *arguments, "--report", report)
    assert code == 4 and "-X->" in text and "FAIL" in text and "nothing was written" in error
    assert left(out) == ["report.json"]
    assert json.loads(report.read_text())["outcome"] == "failed"
    arguments += ["--max-abs-error", "0.5"]
    code, _, error = call(capsys, "run", dense, out, "--preset", "small", *arguments)
    assert code == 4 and "'tfl-rewrite shrink --min-snr 200 --max-error 0.5' looks for" in error
    assert left(out) == ["report.json"]


def test_bytes_that_a_layout_adds_are_not_called_saved() -> None:
    result = PassResult("compact", (Edit("the file", "laid out anew", -12),))
    report = Report(
        source="a", target="b", outcome="rewritten", nbytes_before=100, nbytes_after=90, results=(result,)
    )
    assert "compact: 1 change, 12 bytes added" in report_lines(report, verbose=0)[1]


def test_unsupported(capsys: pytest.CaptureFixture[str], fixtures: Path, out: Path) -> None:
    source = fixtures / "malformed" / "unknown_field_newer_schema.tflite"
    code, text, error = call(capsys, "quantize-weights", source, out)
    assert code == 3 and text == "" and "newer" in error and str(source) in error and left(out) == []


@pytest.mark.runtime
def test_unverified(capsys: pytest.CaptureFixture[str], fixtures: Path, out: Path) -> None:
    source = fixtures / "conv_without_bias.tflite"
    code, text, _ = call(capsys, "quantize-weights", source, out, "--samples", "1")
    assert code == 0 and "UNVERIFIED: " in text
    out.unlink()
    code, text, error = call(capsys, "quantize-weights", source, out, "--verify", "require")
    assert code == 3 and "nothing was written" in error and left(out) == []
    code, text, error = call(capsys, "quantize-weights", source, out, "-q")
    assert code == 0 and text == "" and error.startswith("UNVERIFIED: ")


def test_existing_output(capsys: pytest.CaptureFixture[str], dense: Path, out: Path) -> None:
    out.write_bytes(b"precious")
    code, _, error = call(capsys, "quantize-weights", dense, out, "--verify", "off")
    assert code == 2 and "--force" in error and out.read_bytes() == b"precious"
    assert call(capsys, "quantize-weights", dense, out, "--verify", "off", "--force")[0] == 0
    code, _, error = call(capsys, "quantize-weights", dense, dense, "--verify", "off")
    assert code == 2 and "--force" in error
    assert call(capsys, "quantize-weights", dense, dense, "--verify", "off", "--force")[0] == 0
    assert dense.read_bytes() == out.read_bytes()


def test_bad_places(capsys: pytest.CaptureFixture[str], dense: Path, out: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty.tflite"
    empty.touch()
    for source, target, words in (
        (tmp_path / "missing.tflite", out, "No such file"),
        (tmp_path, out, "directory"),
        (empty, out, "empty"),
        (dense, tmp_path / "no" / "out.tflite", "create"),
        (dense, tmp_path, "directory"),
        ("", out, "No such file"),
    ):
        code, text, error = call(capsys, "quantize-weights", source, target)
        assert code == (5 if source == empty else 2) and words.lower() in error.lower() and text == ""
        assert left(out) == []


@pytest.mark.runtime
def test_quiet(capsys: pytest.CaptureFixture[str], dense: Path, out: Path) -> None:
    assert call(capsys, "quantize-weights", dense, out, "-q", "--samples", "1") == (0, "", "")
    code, text, error = call(
        capsys, "quantize-weights", dense, out, "-q", "--force", "--min-snr", "200", "--no-rescue"
    )
    assert code == 4 and text == "" and error.startswith("tfl-rewrite: error: ")
    assert call(capsys, "check", dense, "-q") == (0, "", "")
    assert call(capsys, "verify", dense, dense, "-q", "--samples", "1") == (0, "", "")


def test_verbose_lists_what_stays(capsys: pytest.CaptureFixture[str], fixtures: Path, out: Path) -> None:
    source = fixtures / "mtcnn_rnet.tflite"
    _, brief, _ = call(capsys, "quantize-weights", source, out, "--verify", "off")
    _, full, _ = call(capsys, "quantize-weights", source, out, "--verify", "off", "-v", "--force")
    assert "10 stay (6 x bias, 4 x small)" in brief and "a bias;" not in brief
    assert "10 constants stay:" in full and full.count("a bias;") == 6


@pytest.mark.runtime
def test_a_traceback_for_those_who_ask(dense: Path, out: Path) -> None:
    assert b"Traceback" in run("quantize-weights", dense.parent / "no.tflite", out, "-vv").stderr
    assert b"Traceback" not in run("quantize-weights", dense.parent / "no.tflite", out, "-v").stderr


@pytest.mark.runtime
def test_report(capsys: pytest.CaptureFixture[str], fixtures: Path, out: Path) -> None:
    source = fixtures / "shared_constant_two_ops.tflite"
    report = out.parent / "report.json"
    assert call(capsys, "quantize-weights", source, out, "--report", report, "--samples", "1")[0] == 0

    def refuse(text: str) -> None:
        raise AssertionError(text)

    data = json.loads(report.read_text(encoding="ascii"), parse_constant=refuse)
    assert (
        data["schema"] == 1 and data["outcome"] == "rewritten" and data["nbytes_after"] == out.stat().st_size
    )
    (change,) = data["passes"][0]["changes"]
    assert change["tensor"] == "shared" and change["scheme"] == "hybrid+dequantize" and change["saved"] > 0


@pytest.mark.parametrize("place", ["in", "out"])
def test_the_report_is_no_model(
    capsys: pytest.CaptureFixture[str], dense: Path, out: Path, place: str
) -> None:
    report = dense if place == "in" else out
    before = dense.read_bytes()
    code, _, error = call(capsys, "quantize-weights", dense, out, "--verify", "off", "--report", report)
    assert code == 2 and "report" in error and left(out) == [] and dense.read_bytes() == before


def test_an_unwritable_report_stops_before_the_work(
    capsys: pytest.CaptureFixture[str], dense: Path, out: Path
) -> None:
    for command in (["quantize-weights", dense, out], ["verify", dense, dense]):
        code, text, error = call(capsys, *command, "--report", out.parent / "no" / "report.json")
        assert code == 2 and text == "" and "create" in error and left(out) == []


@pytest.mark.parametrize(
    ("options", "scales"),
    [(["--scheme", "dequantize"], "32"), (["--scheme", "hybrid", "--granularity", "tensor"], "1")],
)
def test_options_arrive(
    capsys: pytest.CaptureFixture[str], dense: Path, out: Path, options: list[str], scales: str
) -> None:
    _, text, _ = call(capsys, "quantize-weights", dense, out, "--verify", "off", "-v", *options)
    row = next(line.split() for line in text.splitlines() if line.split()[:1] == ["dense/weights"])
    assert row[3] == options[1] and row[4] == scales


def test_all_options_of_selection_arrive(
    capsys: pytest.CaptureFixture[str], fixtures: Path, out: Path
) -> None:
    source = fixtures / "mtcnn_rnet.tflite"
    report = out.parent / "report.json"
    cases: list[tuple[list[str], int]] = [
        (["--include", "dense", "--include", "box"], 2),
        (["--exclude", "CONV", "--exclude", "dense"], 2),
        (["--keep-first-last"], 4),
        (["--min-elements", "1024"], 3),
    ]
    for options, count in cases:
        arguments = ["--verify", "off", "--force", "-q", "--report", str(report)]
        assert call(capsys, "quantize-weights", source, out, *arguments, *options)[0] == 0
        assert len(json.loads(report.read_text())["passes"][0]["changes"]) == count, options
