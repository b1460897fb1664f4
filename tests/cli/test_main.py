"""The program as a user meets it: exit codes, what is printed where, what is left on disk."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tfl_rewrite import __version__, load, save
from tfl_rewrite.cli import main
from tfl_rewrite.cli.main import COMMANDS, parser
from tfl_rewrite.cli.render import decibels, report_lines, safe, size, table
from tfl_rewrite.editing.base import Edit, PassResult
from tfl_rewrite.model.blob import OwnedBlob
from tfl_rewrite.model.ir import (
    Buffer,
    Model,
    Operator,
    OperatorCode,
    SubGraph,
    Tensor,
    new_record,
    operator_number,
)
from tfl_rewrite.model.ir import schema as tflite
from tfl_rewrite.pipeline.report import Report

from ..helpers import ROOT

TOOL = str(Path(sys.executable).parent / "tfl-rewrite")
ESCAPES = "\x1b[2J\x1b]0;owned\x07 ü \u202e \udc80 名"


def run(*arguments: str | Path, **more: Any) -> subprocess.CompletedProcess[bytes]:
    """Runs the installed program; what it says of its progress on a busy machine is left out."""
    done = subprocess.run(
        [TOOL, *map(str, arguments)],
        capture_output="stdout" not in more,
        check=False,
        timeout=120,
        **{"stdin": subprocess.DEVNULL, **more},
    )
    if done.stderr is not None:
        done.stderr = re.sub(rb"(?m)^tfl-rewrite: [^:\n]+ \.\.\.\n", b"", done.stderr)
    return done


@pytest.fixture
def dense(fixtures: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(fixtures / "dense.tflite", tmp_path / "in.tflite"))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "out.tflite"


def left(out: Path) -> list[str]:
    return sorted(path.name for path in out.parent.iterdir())


def call(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    """Runs the program in this process: exit code, stdout, stderr."""
    try:
        code = main([*map(str, arguments)])
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    said = capsys.readouterr()
    assert "Traceback" not in said.out + said.err
    return code, said.out, said.err


# -- Help and usage -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_version() -> None:
    done = run("--version")
    assert (done.returncode, done.stdout.decode(), done.stderr) == (0, f"tfl-rewrite {__version__}\n", b"")


def test_help_of_the_program(capsys: pytest.CaptureFixture[str]) -> None:
    code, text, _ = call(capsys, "--help")
    assert code == 0 and "Exit codes" in text
    page = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8").replace("`", "")
    promise = " ".join(text.split())
    promise = promise[promise.index("Exit codes") :]
    assert promise in " ".join(page.split())
    assert all(command.name in text for command in COMMANDS)
    assert "(lossy)" in text


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_help_of_a_command(capsys: pytest.CaptureFixture[str], command: Any) -> None:
    code, text, _ = call(capsys, command.name, "--help")
    assert code == 0
    for _, arguments in command.groups:
        for argument in arguments:
            assert argument.names[-1] in text or argument.extra.get("metavar", "") in text
            assert argument.help
    if command.name == "quantize-weights":
        assert "LOSSY" in text


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["frobnicate"],
        ["quantize-weights"],
        ["quantize-weights", "a"],
        ["quantize-weights", "a", "b", "--nonsense"],
        ["quantize-weights", "a", "b", "--min-elements", "many"],
        ["verify", "a"],
        ["inspect"],
        ["check"],
    ],
)
def test_wrong_usage(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    code, text, error = call(capsys, *arguments)
    assert code == 2 and text == "" and error.count("\n") == 1 and "usage:" not in error
    assert error.startswith("tfl-rewrite: error: ") and "--help' lists what there is" in error


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["quantise-weights", "a", "b"],
            "command 'quantise-weights' is unknown; did you mean 'quantize-weights'?",
        ),
        (["dedup", "a", "b", "--froce"], "unrecognized arguments: --froce; did you mean --force?"),
        (["verify", "a", "b", "--min-snt=3"], "unrecognized arguments: --min-snt=3; did you mean --min-snr?"),
    ],
)
def test_what_is_near_is_named(capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
    code, text, error = call(capsys, *arguments)
    assert code == 2 and text == "" and said in error


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--scheme", "hybird", "scheme 'hybird' is unknown; did you mean 'hybrid'? use one of auto, hybrid"),
        ("--verify", "maybe", "mode 'maybe' is unknown; use one of auto, require, off"),
        ("--resolver", "builtins", "did you mean 'builtin'?"),
        ("--effort", "bets", "did you mean 'best'?"),
    ],
)
def test_values_that_do_not_exist(
    capsys: pytest.CaptureFixture[str], dense: Path, out: Path, option: str, value: str, said: str
) -> None:
    code, text, error = call(capsys, "quantize-weights", dense, out, option, value)
    assert code == 2 and text == "" and said in error and not out.exists()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--include", "("], "regular expression"),
        (["--min-elements", "0"], "1 or more"),
        (["--min-elements", "-5"], "1 or more"),
        (["--min-runtime", "soon"], "2.14"),
        (["--threads", "-1"], "threads"),
        (["--samples", "0"], "samples"),
        (["--seed", "-1"], "seed"),
        (["--timeout", "0"], "timeout"),
        (["--timeout", "nan"], "timeout"),
        (["--min-snr", "nan"], "min_snr"),
        (["--min-runtime", "99.9"], "newer than 2.23, the newest that is known"),
        (["--max-abs-error", "-1"], "max_abs_error"),
        (["--runtime", "abacus"], "litert"),
        (["--runtime", "python:/no/such/python"], "/no/such/python"),
        (["--inputs", "/no/such/inputs.npz"], "/no/such/inputs.npz"),
        (["--report", "/no/such/folder/report.json"], "/no/such/folder"),
        (["--report", "/"], "directory"),
    ],
)
def test_options_without_sense(
    capsys: pytest.CaptureFixture[str], dense: Path, out: Path, more: list[str], words: str
) -> None:
    """Exit 2 with a sentence, and nothing written, whatever was asked for."""
    code, _, error = call(capsys, "quantize-weights", dense, out, *more)
    assert code == 2 and error.startswith("tfl-rewrite: error: ") and words in error
    assert error.count("\n") == 1 and left(out) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["inspect", ""], "'': cannot read: "),
        (["check", "IN", ""], ""),
        (["compact", "IN", ""], "'': is a directory; "),
        (["compact", "", "OUT"], "'': cannot read: "),
        (["quantize-weights", "IN", "OUT", "--report", ""], "'': is a directory; "),
        (["inspect", "IN", "--largest", "-1"], "largest is -1; give 0 or more"),
    ],
)
def test_what_is_empty_or_negative_is_shown(
    capsys: pytest.CaptureFixture[str], dense: Path, out: Path, words: list[str], said: str
) -> None:
    code, text, error = call(capsys, *({"IN": str(dense), "OUT": str(out)}.get(w, w) for w in words))
    assert code == 2 and left(out) == []
    assert "\n'': NOT CHECKED\n" in text if words[0] == "check" else f"error: {said}" in error


# -- quantize-weights ---------------------------------------------------------------------------------------


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
    assert code == 0 and text.startswith("nothing to do: ") and "verbatim copy" in text
    assert out.read_bytes() == (fixtures / "already_int8.tflite").read_bytes()


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
    assert "10 float constants stay:" in full and full.count("a bias;") == 6


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


# -- verify, inspect, check ---------------------------------------------------------------------------------


def changed(source: Path, target: Path, factor: float) -> Path:
    model = load(source)
    weight = max((t for t in model.subgraphs[0].tensors if t.is_constant), key=lambda t: t.buffer.nbytes)
    assert weight.buffer.blob is not None
    values = np.frombuffer(weight.buffer.blob.view(), "<f4") * np.float32(factor)
    weight.buffer.blob = OwnedBlob(values.astype("<f4").tobytes())
    save(model, target)
    return target


@pytest.mark.runtime
def test_verify(capsys: pytest.CaptureFixture[str], fixtures: Path, dense: Path, tmp_path: Path) -> None:
    near = changed(dense, tmp_path / "near.tflite", 1.001)
    far = changed(dense, tmp_path / "far.tflite", 5.0)
    report = tmp_path / "report.json"
    code, text, _ = call(capsys, "verify", dense, near, "--samples", "1", "--report", report)
    assert code == 0 and text.startswith("PASS") and json.loads(report.read_text())["status"] == "pass"
    code, text, _ = call(capsys, "verify", dense, near, "--samples", "1", "--exact")
    assert code == 4 and text.startswith("FAIL")
    assert call(capsys, "verify", dense, dense, "--samples", "1", "--exact")[0] == 0
    code, text, _ = call(capsys, "verify", dense, far, "--samples", "1", "--report", report, "--force")
    assert code == 4 and json.loads(report.read_text())["schema"] == 1
    assert call(capsys, "verify", dense, far, "--samples", "1", "--min-snr", "-30")[0] == 0
    assert call(capsys, "verify", dense, near, "--samples", "1", "--max-abs-error", "1e-9")[0] == 4
    unrunnable = fixtures / "malformed" / "custom_unknown_op.tflite"
    code, text, _ = call(capsys, "verify", unrunnable, unrunnable)
    assert code == 0 and text.startswith("UNVERIFIED")
    code, text, _ = call(capsys, "verify", unrunnable, unrunnable, "--require")
    assert code in (3, 4) and text.startswith("UNVERIFIED")
    assert call(capsys, "verify", dense, unrunnable)[0] == 4
    assert call(capsys, "verify", dense, tmp_path / "missing.tflite")[0] == 2
    assert call(capsys, "verify", tmp_path / "missing.tflite", dense)[0] == 2


@pytest.mark.runtime
def test_real_inputs(capsys: pytest.CaptureFixture[str], fixtures: Path, out: Path) -> None:
    inputs = fixtures / "inputs" / "dense.npz"
    code, text, _ = call(capsys, "quantize-weights", fixtures / "dense.tflite", out, "--inputs", inputs)
    assert code == 0 and "real sample" in text
    np.savez(out.parent / "wrong.npz", nobody=np.zeros(3, np.float32))
    code, _, error = call(
        capsys,
        "quantize-weights",
        fixtures / "dense.tflite",
        out,
        "--force",
        "--inputs",
        out.parent / "wrong.npz",
    )
    assert code == 2 and "wrong.npz" in error


def test_inspect(capsys: pytest.CaptureFixture[str], sound: Path) -> None:
    code, text, error = call(capsys, "inspect", sound, "-v")
    assert code == 0 and error == "" and text.startswith(f"{sound}: {size(sound.stat().st_size)} bytes")
    for title in ("operators:", "inputs:", "outputs:", "constants by type:", "oldest runtime"):
        assert title in text
    code, text, _ = call(capsys, "inspect", sound, "--json", "--largest", "3")
    data = json.loads(text)
    assert code == 0 and data["schema"] == 1 and data["nbytes"] == sound.stat().st_size
    assert len(data["largest"]) <= 3
    assert sum(row["count"] for row in data["operators"]) == len(list(load(sound).operators()))
    assert data["constants"] + data["structure"] + data["zip_nbytes"] + data["dead"] >= data["nbytes"]


def test_inspect_malformed(capsys: pytest.CaptureFixture[str], malformed: Path) -> None:
    code, text, error = call(capsys, "inspect", malformed)
    assert code in (0, 3, 5) and bool(text) == (code == 0) and bool(error) == (code != 0)


def test_check(capsys: pytest.CaptureFixture[str], fixtures: Path, malformed: Path) -> None:
    good = [fixtures / "dense.tflite", fixtures / "metadata_label_zip.tflite"]
    assert call(capsys, "check", *good)[0] == 0
    code, text, _ = call(capsys, "check", good[0], malformed, good[1])
    assert text.count(": sound") in (2, 3) and text.index(str(good[0])) < text.index(str(malformed))
    if code:
        assert f"{malformed}: {({5: 'NOT SOUND', 3: 'NOT CHECKED'})[code]}" in text
    code_json, text, _ = call(capsys, "check", good[0], malformed, good[1], "--json")
    data = json.loads(text)
    assert code_json == code and data["schema"] == 1
    assert [row["file"] for row in data["files"]] == [str(good[0]), str(malformed), str(good[1])]
    assert [row["sound"] for row in data["files"]] == [True, {0: True, 3: None, 5: False}[code], True]
    assert all((row["sound"] is True) == (not row["problems"]) for row in data["files"])


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("buffer_smaller_than_shape", r"subgraphs\[0\]\.tensors\[\d+\]: buffer holds"),
        ("negative_shape", r"subgraphs\[0\]\.tensors\[\d+\]"),
        ("tensor_buffer_index_out_of_range", "999"),
        ("operator_input_index_out_of_range", "999"),
        ("truncated_middle", "offset"),
        ("wrong_identifier", "offset 4"),
    ],
)
def test_check_names_the_place(
    capsys: pytest.CaptureFixture[str], fixtures: Path, name: str, place: str
) -> None:
    code, text, _ = call(capsys, "check", fixtures / "malformed" / f"{name}.tflite")
    assert code == 5 and re.search(place, text)


def test_check_of_no_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, text, _ = call(capsys, "check", tmp_path / "missing.tflite", tmp_path)
    assert code == 2 and "No such file" in text and text.count("NOT CHECKED") == 2
    code, text, _ = call(capsys, "check", tmp_path / "missing.tflite", "--json")
    assert code == 2 and json.loads(text)["files"][0]["sound"] is None


# -- Text ---------------------------------------------------------------------------------------------------


def escaping(source: Path, target: Path) -> Path:
    """Writes a copy whose names hold terminal escapes, non-ASCII letters and broken bytes."""
    model = load(source)
    for graph in model.subgraphs:
        graph.name = ESCAPES
        for tensor in graph.tensors:
            tensor.name = ESCAPES + tensor.name
    for signature in model.signatures:
        signature.key = ESCAPES
    model.description = ESCAPES
    save(model, target)
    return target


@pytest.mark.runtime
def test_names_cannot_write_to_the_terminal(
    capsys: pytest.CaptureFixture[str], dense: Path, out: Path, tmp_path: Path
) -> None:
    source = escaping(dense, tmp_path / "esc\x1b[31mape.tflite")
    report = out.parent / "report.json"
    for arguments in (
        ["inspect", source],
        ["check", source],
        ["quantize-weights", source, out, "--verify", "off", "-v", "--report", report],
        ["quantize-weights", source, out, "--force", "--min-snr", "200", "--samples", "1"],
        ["quantize-weights", source, out],
        ["verify", source, source, "--samples", "1"],
    ):
        _, text, error = call(capsys, *arguments)
        assert not set(text + error) & set("\x1b\x07\u202e\udc80"), arguments
    assert "\\x1b" in text + error or arguments[0] == "verify"
    assert json.loads(report.read_text())["passes"][0]["changes"][0]["tensor"].startswith("\x1b")


@pytest.mark.runtime
@pytest.mark.parametrize("encoding", ["C", "C.UTF-8", "latin-1"])
def test_any_locale(dense: Path, out: Path, tmp_path: Path, encoding: str) -> None:
    environment = {**os.environ, "LC_ALL": encoding, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    if encoding == "latin-1":
        environment |= {"PYTHONIOENCODING": "latin-1", "LC_ALL": "C.UTF-8"}
    else:
        environment.pop("PYTHONIOENCODING", None)
    source = escaping(dense, tmp_path / "näme.tflite")
    for arguments in (
        ["quantize-weights", source, out, "--verify", "off", "--report", out.parent / "ü.json"],
        ["inspect", source],
        ["inspect", source, "--json"],
        ["check", source],
        ["check", tmp_path / "kein Müll.tflite"],
    ):
        done = run(*arguments, env=environment)
        assert done.returncode == (2 if "kein" in str(arguments[-1]) else 0), done.stderr
        assert b"Traceback" not in done.stdout + done.stderr and b"\x1b" not in done.stdout
    assert out.stat().st_size < 4000


def test_safe() -> None:
    assert safe("a/b;c ü 名") == "a/b;c ü 名"
    assert safe("\x1b[0m\n\t\x7f") == "\\x1b[0m\\n\\t\\x7f"
    assert safe("\u202e\u2028\udc80\ue000") == "\\u202e\\u2028\\udc80\\ue000"
    assert safe("x" * 300, limit=21) == "x" * 9 + "..." + "x" * 9
    assert size(1234567) == "1,234,567" and decibels(float("inf")) == "exact" and decibels(12.34) == "12.3"
    assert table(("a", "n"), [("long", "1"), ("b", "100")], right=(1,)) == [
        "  a       n",
        "  long    1",
        "  b     100",
    ]


# -- Streams ------------------------------------------------------------------------------------------------


@pytest.mark.runtime
@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["inspect", "IN"], 0),
        (["inspect", "IN", "--json"], 0),
        (["check", "IN"], 0),
        (["check", "BAD"], 5),
        (["check", "BAD", "--json"], 5),
        (["quantize-weights", "IN", "OUT", "--verify", "off", "--report", "REPORT"], 0),
        (["quantize-weights", "IN", "OUT", "--min-snr", "200", "--no-rescue", "--report", "REPORT"], 4),
        (["verify", "IN", "IN", "--samples", "1"], 0),
    ],
)
@pytest.mark.parametrize("how", ["early", "closed"])
def test_nobody_reads_stdout(
    fixtures: Path, dense: Path, out: Path, arguments: list[str], code: int, how: str
) -> None:
    """A reader that went away changes neither the work nor its exit code."""
    places = {
        "IN": dense,
        "OUT": out,
        "BAD": fixtures / "malformed" / "truncated_middle.tflite",
        "REPORT": out.parent / "report.json",
    }
    command = [TOOL, *(str(places.get(word, word)) for word in arguments)]
    if how == "closed":
        done = subprocess.run(
            ["sh", "-c", 'exec "$@" >&-', "sh", *command], stderr=subprocess.PIPE, check=False, timeout=120
        )
    else:
        read, write = os.pipe()
        os.close(read)
        try:
            done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, check=False, timeout=120)
        finally:
            os.close(write)
    assert done.returncode == code
    assert (
        b"Traceback" not in done.stderr and b"Exception" not in done.stderr and b"Broken" not in done.stderr
    )
    if "REPORT" in arguments:
        assert json.loads(places["REPORT"].read_text())["schema"] == 1
    assert out.exists() == ("OUT" in arguments and code == 0)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_stdout_is_full(dense: Path) -> None:
    with open("/dev/full", "wb") as full:
        done = run("inspect", dense, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 2 and b"standard output" in done.stderr and b"Traceback" not in done.stderr


FULL = pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")


@pytest.mark.runtime
@FULL
@pytest.mark.parametrize(
    ("command", "code"),
    [
        (["quantize-weights", "IN", "OUT", "--samples", "1"], 0),
        (["quantize-weights", "IN", "OUT", "--verify", "off"], 0),
        (["shard", "IN", "OUT"], 0),
        (["batch", "IN", "--out", "OUT", "--pass", "dedup", "--verify", "off"], 0),
        (["batch", "IN", "--out", "OUT", "--pass", "dedup", "--verify", "off", "--json"], 0),
        (["shrink", "IN", "OUT", "--min-snr", "30", "--time-limit", "5"], 0),
        (["quantize-weights", "IN", "OUT", "--min-snr", "90", "--no-rescue", "--samples", "1"], 4),
        # What they print is all that they make.
        (["quantize-weights", "IN", "OUT", "--verify", "off", "--dry-run"], 2),
        (["check", "IN"], 2),
        (["doctor", "IN"], 2),
        (["diff", "IN", "IN"], 2),
        (["verify", "IN", "IN", "--samples", "1"], 2),
    ],
)
def test_a_report_that_cannot_be_printed_does_not_undo_the_file(
    dense: Path, out: Path, command: list[str], code: int
) -> None:
    words = [{"IN": str(dense), "OUT": str(out)}.get(word, word) for word in command]
    with open("/dev/full", "wb") as full:
        done = run(*words, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == code, done.stderr
    # On a busy machine, lines about the progress stand before it.
    assert done.stderr.count(b"standard output: cannot write") == 1 and b"Traceback" not in done.stderr
    assert done.stderr.count(b": error: ") == (code != 0)
    assert out.exists() == (code == 0)


@pytest.mark.slow
@FULL
def test_stderr_is_full(dense: Path, out: Path) -> None:
    with open("/dev/full", "wb") as full:
        done = run("inspect", dense.parent / "no.tflite", stdout=subprocess.PIPE, stderr=full)
        assert done.returncode == 2
        done = run(
            "quantize-weights", dense, out, "-q", "--inputs", "no", stdout=subprocess.PIPE, stderr=full
        )
        assert done.returncode == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ["quantize-weights", "IN", "x" * 100_000],
        ["quantize-weights", "IN", "OUT", "--samples", "9" * 5000],
        ["quantize-weights", "IN", "OUT", "--samples=" + "9" * 5000],
        ["quantize-weights", "IN", "OUT", "--include", "( " * 4000],
        ["quantize-weights", "IN", "OUT", "--map", "a b " * 4000],
        ["quantize-weights", "IN", "OUT", "--resolver", "\x1b[2J" * 4000],
        ["run", "IN", "OUT", "--pass", "no such " * 4000],
        ["batch", "no/*" + "y" * 20_000, "--out", "OUT", "--pass", "dedup"],
        ["x y" * 5000],
    ],
)
def test_an_error_repeats_little_of_an_argument(
    capsys: pytest.CaptureFixture[str], dense: Path, out: Path, arguments: list[str], monkeypatch: Any
) -> None:
    words = [{"IN": str(dense), "OUT": str(out)}.get(word, word) for word in arguments]
    monkeypatch.setattr(sys, "argv", [TOOL, *words])
    code, _, said = call(capsys, *words)
    assert code == 2
    (line,) = [line for line in said.splitlines() if ": error: " in line]
    assert 60 < len(line) < 1000 and "\x1b" not in said


@pytest.mark.runtime
def test_no_stderr(dense: Path, out: Path) -> None:
    """What is opened instead must not become the place of messages."""
    normal = out.with_name("normal.tflite")
    assert run("quantize-weights", dense, normal, "--verify", "off").returncode == 0
    for arguments, code in (
        (["inspect", str(dense.parent / "no.tflite")], 2),
        (["quantize-weights", str(dense), str(out), "--samples", "1"], 0),
    ):
        done = subprocess.run(
            ["sh", "-c", 'exec "$@" 2>&-', "sh", TOOL, *arguments],
            stdout=subprocess.PIPE,
            check=False,
            timeout=120,
        )
        assert done.returncode == code and b"tfl-rewrite: error" not in done.stdout
    assert out.read_bytes() == normal.read_bytes()


@pytest.mark.runtime
def test_no_bar_without_a_terminal(fixtures: Path, out: Path) -> None:
    done = run("quantize-weights", fixtures / "mtcnn_rnet.tflite", out, "--verify", "off")
    assert done.returncode == 0 and done.stderr == b"" and b"\r" not in done.stdout


# -- Interruption -------------------------------------------------------------------------------------------


def slow(target: Path) -> Path:
    """Writes a small file that takes long to run: hundreds of dense layers over one weight."""
    width, rows, layers = 256, 2048, 2000
    graph = SubGraph([], [], [], [], "main")
    model = Model([OperatorCode(operator_number("FULLY_CONNECTED"))], [graph], [Buffer()])
    values = np.random.default_rng(0).standard_normal((width, width)).astype("<f4") / np.float32(width**0.5)
    model.buffers.append(Buffer(OwnedBlob(values.tobytes())))
    weight = Tensor("w", (width, width), 0, model.buffers[1])
    current = Tensor("x", (rows, width), 0, model.buffers[0])
    graph.tensors += [weight, current]
    graph.inputs.append(current)
    number = tflite().enums["BuiltinOptions"].values["FullyConnectedOptions"]
    for layer in range(layers):
        made = Tensor(f"y{layer}", (rows, width), 0, model.buffers[0])
        graph.tensors.append(made)
        options = new_record("FullyConnectedOptions")
        rest = new_record("Operator").replace(builtin_options_type=number)
        graph.operators.append(
            Operator(model.operator_codes[0], [current, weight, None], [made], [], options, rest=rest)
        )
        current = made
    graph.outputs.append(current)
    save(model, target)
    return target


def _wait(process: subprocess.Popen[bytes], scratch: Path) -> None:
    """Waits until the program runs the models: it has a temporary folder, and children."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if list(scratch.iterdir()) and (not children.exists() or children.read_text().strip()):
            time.sleep(0.5)
            return
        time.sleep(0.02)
    raise AssertionError(f"never began: {process.poll()}")


def _descendants(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.runtime
@pytest.mark.parametrize(
    ("number", "whole_group", "code", "words"),
    [
        (signal.SIGINT, False, 130, b"interrupted; nothing was written"),
        (signal.SIGINT, True, 130, b"interrupted; nothing was written"),
        (signal.SIGTERM, False, 143, b"terminated; nothing was written"),
        (signal.SIGHUP, False, 129, b"hung up; nothing was written"),
    ],
)
def test_interrupted_while_verifying(
    out: Path, tmp_path: Path, number: signal.Signals, whole_group: bool, code: int, words: bytes
) -> None:
    source = slow(tmp_path / "slow.tflite")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    process = subprocess.Popen(
        [TOOL, "quantize-weights", str(source), str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        env={**os.environ, "TMPDIR": str(scratch)},
    )
    try:
        _wait(process, scratch)
        (os.killpg if whole_group else os.kill)(process.pid, number)
        stdout, stderr = process.communicate(timeout=30)
    finally:
        if process.poll() is None:
            process.kill()
    assert process.returncode == code
    assert words in stderr and b"Traceback" not in stderr and stdout == b""
    assert left(out) == [] and list(scratch.iterdir()) == []
    deadline = time.monotonic() + 5
    while _descendants(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _descendants(process.pid)


# -- The rows -----------------------------------------------------------------------------------------------


# Where the work itself gives an option another sense, its help says so.
OWN_SENSE = {
    *(("quantize", option) for option in ("--effort", "--include", "--exclude", "--map")),
    ("quantize", "--no-bias-correction"),
    ("dequantize", "--activations"),
    ("round-weights", "--granularity"),
    ("round-weights", "--min-elements"),
    ("round-weights", "--min-snr"),
    ("round-weights", "--effort"),
    ("remove-dead", "--inputs"),
    ("shrink", "--min-snr"),
    ("shrink", "--min-agreement"),
    *(("shrink", option) for option in ("--effort", "--include", "--exclude", "--min-runtime")),
    *(("shard", option) for option in ("--max-size", "--verify", "--force", "--threads")),
    *(("join", option) for option in ("--verify", "--force", "--threads")),
    ("doctor", "--min-runtime"),
    ("batch", "--pass"),
    ("batch", "--force"),
    ("verify", "--force"),
}


def test_an_option_means_the_same_everywhere() -> None:
    """Options of one name have one help text and one default in every command, but for a known few."""
    seen: dict[str, tuple[str, object]] = {}
    for command in COMMANDS:
        for _, arguments in command.groups:
            for argument in arguments:
                if argument.names[-1] in ("--report", "--json") or not argument.names[-1].startswith("-"):
                    continue
                if (command.name, argument.names[-1]) in OWN_SENSE:
                    continue
                # What is not given to batch is left to its file.
                by_file = command.name == "batch"
                default = None if by_file else argument.extra.get("default")
                facts = (argument.help, default)
                if by_file and argument.names[-1] in seen:
                    assert seen[argument.names[-1]][0] == argument.help
                    continue
                assert seen.setdefault(argument.names[-1], facts) == facts


def test_parser_takes_every_row() -> None:
    given = ["quantize-weights", "a", "b", "--exclude", "x", "--no-rescue"]
    parsed = parser("0", given).parse_args(given)
    assert parsed.source == "a" and parsed.pass_exclude == ["x"]
    # What is not given is left to the object that has the option.
    assert parsed.mode is None and parsed.pass_dtype is None and parsed.rescue is False


def test_commands_do_not_share_state(capsys: pytest.CaptureFixture[str], dense: Path, out: Path) -> None:
    """Repeatable options start anew in each call."""
    before = signal.getsignal(signal.SIGTERM)
    call(capsys, "quantize-weights", dense, out, "--verify", "off", "--exclude", "FULLY")
    first = out.read_bytes()
    call(capsys, "quantize-weights", dense, out, "--verify", "off", "--force")
    assert first == dense.read_bytes() != out.read_bytes()
    assert signal.getsignal(signal.SIGTERM) is before


def test_what_is_ignored_stays_ignored(dense: Path, out: Path) -> None:
    """As by nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert main(["quantize-weights", str(dense), str(out), "--verify", "off", "-q"]) == 0
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
