"""A batch as a user meets it: failures, resumption, interrupts, and what is left on disk."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path

import numpy as np
import pytest

import tfl_rewrite
from tfl_rewrite.batch.config import plain_config, read_config
from tfl_rewrite.batch.plan import HOME, Job, plan
from tfl_rewrite.batch.run import Summary, run_batch, run_isolated
from tfl_rewrite.batch.state import open_state
from tfl_rewrite.cli import main
from tfl_rewrite.errors import UsageError

TOOL = str(Path(sys.executable).parent / "tfl-rewrite")


@pytest.fixture
def models(fixtures: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    (folder / "deep").mkdir(parents=True)
    shutil.copy(fixtures / "dense.tflite", folder / "dense.tflite")
    shutil.copy(fixtures / "batch_matmul.tflite", folder / "deep" / "matmul.tflite")
    shutil.copy(fixtures / "malformed" / "text.tflite", folder / "text.tflite")
    return folder


def call(*words: object) -> int:
    return main(["batch", *map(str, words)])


def outputs(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*.tflite"))}


def leftovers(out: Path) -> list[str]:
    """What a batch must not leave: work in progress and marks."""
    names = [str(path.relative_to(out)) for path in out.rglob("*")]
    return [name for name in names if ".tmp" in name or f"{HOME}/work" in name or f"{HOME}/stop" in name]


@pytest.mark.runtime
def test_failures_are_rows_and_the_rest_is_done(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = (models / "**/*.tflite", "--out", out, "--pass", "quantize-weights", "--samples", "1")
    assert call(*options, "-v") == 5
    said = capsys.readouterr().out
    assert "dense.tflite" in said and "3 files: 1 refused, 2 rewritten" in said
    assert "verified: 2 pass (made samples)" in said
    assert "text.tflite: exit 5:" in said
    # The same bytes as the single command makes.
    single = tmp_path / "single.tflite"
    quantize = ["quantize-weights", str(models / "dense.tflite"), str(single)]
    assert main([*quantize, "-q", "--verify", "off"]) == 0
    made = outputs(out)
    assert sorted(made) == ["deep/matmul.tflite", "dense.tflite"]
    assert made["dense.tflite"] == single.read_bytes()
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["schema"], summary["exit_code"]) == (1, 5)
    rows = {row["name"]: row for row in summary["files"]}
    assert rows["dense.tflite"]["verdict"] == "pass" and rows["dense.tflite"]["snr_db"] > 20
    assert rows["text.tflite"]["exit_code"] == 5 and "bytes of text" in rows["text.tflite"]["message"]
    with open(out / "summary.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["name"] for row in table] == ["deep/matmul.tflite", "dense.tflite", "text.tflite"]
    report = json.loads((out / HOME / "reports" / "dense.tflite.json").read_text())
    assert report["outcome"] == "rewritten" and report["target"] == str(out / "dense.tflite")
    assert not leftovers(out)

    # What is done is not done again; what changed is.
    (out / "dense.tflite").write_bytes(b"touched")
    assert call(*options) == 5
    said = capsys.readouterr().out
    assert "text.tflite: exit 5:" in said and "3 files: 2 refused, 1 rewritten (1 of them before" in said
    again = {row["name"]: row for row in json.loads((out / "summary.json").read_text())["files"]}
    assert again["deep/matmul.tflite"]["resumed"] is True and not again["text.tflite"]["resumed"]
    assert again["dense.tflite"]["exit_code"] == 2  # somebody else wrote there
    assert "exists already" in again["dense.tflite"]["message"]
    assert call(*options, "--force", "-q") == 5
    assert outputs(out) == made


@pytest.mark.runtime
def test_other_settings_replace_what_a_batch_made(fixtures: Path, tmp_path: Path) -> None:
    source, out = fixtures / "dense.tflite", tmp_path / "out"
    assert call(source, "--out", out, "--pass", "quantize-weights", "--verify", "off", "-q") == 0
    first = outputs(out)
    assert call(source, "--out", out, "--preset", "lossless", "--verify", "off", "-q") == 0
    assert outputs(out).keys() == first.keys() and outputs(out) != first


@pytest.mark.runtime
def test_a_failed_verification_is_exit_4(fixtures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = (fixtures / "dense.tflite", fixtures / "malformed" / "text.tflite")
    assert (
        call(*words, "--out", out, "--pass", "quantize-weights", "--min-snr", "200", "--no-rescue", "-q") == 4
    )
    assert outputs(out) == {}
    rows = json.loads((out / "summary.json").read_text())["files"]
    assert {row["status"] for row in rows} == {"failed", "refused"}


@pytest.mark.runtime
def test_a_search_for_each_file(fixtures: Path, tmp_path: Path) -> None:
    """The same bytes as the single command makes; a budget that no file keeps is a failed row."""
    out, model, single = tmp_path / "out", fixtures / "digits_cnn.tflite", tmp_path / "single.tflite"
    config = tmp_path / "batch.toml"
    config.write_text(
        f'[batch]\ninputs = ["{model}", "{fixtures / "dense.tflite"}"]\nout = "out"\n'
        'shrink = "min-snr=30,effort=fast,encodings=int8:channel,time-limit=400"\n[verify]\nsamples = 4\n'
        '[[file]]\nmatch = "dense*"\nshrink = "max-size=1KB,min-snr=300,effort=fast,encodings=int8:channel"\n'
    )
    assert call(config, "-q") == 4
    words = ["shrink", str(model), str(single), "--min-snr", "30", "--effort", "fast", "--samples", "4", "-q"]
    assert main([*words, "--encodings", "int8:channel"]) == 0
    assert outputs(out) == {"digits_cnn.tflite": single.read_bytes()}
    found, failed = sorted(
        json.loads((out / "summary.json").read_text())["files"], key=lambda row: row["exit_code"]
    )
    assert (found["status"], found["verdict"]) == ("rewritten", "pass") and found["snr_db"] >= 30
    assert found["nbytes_before"] == model.stat().st_size > found["nbytes_after"] == single.stat().st_size
    assert failed["status"] == "failed" and "no file was found within the budget" in failed["message"]
    report = json.loads((out / HOME / "reports" / "digits_cnn.tflite.json").read_text())
    assert report["promised_snr_db"] == 30 and report["target"] == str(out / "digits_cnn.tflite")


@pytest.mark.runtime
def test_a_job_that_dies_is_a_row(fixtures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel ends a process that takes more memory than it may."""
    (job,) = plan(
        plain_config([str(fixtures / "dense.tflite")], {"out": str(tmp_path), "passes": ("dedup",)}, {})
    )
    killer = tmp_path / "killer"
    (killer / "tfl_rewrite").mkdir(parents=True)
    shim = "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n"
    (killer / "sitecustomize.py").write_text(shim)
    monkeypatch.setenv("PYTHONPATH", str(killer))
    row = run_isolated(job.to_dict(), str(tmp_path / "stop"))
    assert (row["status"], row["exit_code"]) == ("crashed", 2) and "SIGKILL" in row["message"]


def test_a_job_ends_when_it_is_told_to(fixtures: Path, tmp_path: Path) -> None:
    (job,) = plan(
        plain_config([str(fixtures / "dense.tflite")], {"out": str(tmp_path), "passes": ("dedup",)}, {})
    )
    stop = tmp_path / "stop"
    stop.touch()
    assert run_isolated(job.to_dict(), str(stop))["exit_code"] == 130
    assert not (tmp_path / "dense.tflite").exists()


@pytest.mark.runtime
@pytest.mark.parametrize(
    ("number", "words"),
    [
        (signal.SIGINT, b"interrupted; "),
        (signal.SIGTERM, b"terminated; "),
        (signal.SIGHUP, b"hung up; "),
    ],
)
def test_an_interrupt_leaves_whole_files_and_the_rest_can_be_done(
    number: signal.Signals, words: bytes, fixtures: Path, tmp_path: Path
) -> None:
    models, out = tmp_path / "models", tmp_path / "out"
    models.mkdir()
    for index in range(6):
        shutil.copy(fixtures / "dense.tflite", models / f"{index}.tflite")
    call_of_it = [
        TOOL,
        "batch",
        f"{models}/*.tflite",
        "--out",
        str(out),
        "--pass",
        "quantize-weights",
        "--jobs",
        "1",
    ]
    call_of_it += ["--verify", "off"]
    process = subprocess.Popen(
        call_of_it, stderr=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    deadline = time.monotonic() + 60
    while not (out / "0.tflite").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number, said
    assert words in said and b" of 6 files are done; run it again" in said and b"Traceback" not in said
    made = outputs(out)
    assert 1 <= len(made) < 6 and not leftovers(out)
    summary = json.loads((out / "summary.json").read_text())
    assert summary["stopped"] and summary["exit_code"] == 128 + number
    for name in list(made):
        tfl_rewrite.load(out / name)
    for path in models.iterdir():
        if path.name not in made and path.name != "5.tflite":
            path.unlink()
    assert subprocess.run([*call_of_it, "-q"], timeout=120, check=False).returncode == 0
    rows = json.loads((out / "summary.json").read_text())["files"]
    assert sum(bool(row["resumed"]) for row in rows) >= len(made) and len(rows) > len(made)


@pytest.mark.parametrize("ended", [False, True])
def test_an_interrupt_tells_how_many_files_there_are(
    ended: bool,
    fixtures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Before the first one is done, and once all of them are."""

    def rows(_config: object, jobs: list[Job], _stop: Path) -> Generator[dict[str, object], None, None]:
        yield from (
            {"name": job.name, "key": job.key, "status": "x", "exit_code": 0} for job in jobs[: 2 * ended]
        )
        raise KeyboardInterrupt(signal.SIGTERM)

    monkeypatch.setattr("tfl_rewrite.batch.run._run", rows)
    models = [fixtures / "dense.tflite", fixtures / "lstm.tflite"]
    assert call(*models, "--out", tmp_path / "out", "--preset", "lossless") == 143
    said = capsys.readouterr().err
    assert f"terminated; {2 * ended} of 2 files are done; run it again to go on" in said
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["exit_code"] == 143


@pytest.mark.runtime
def test_a_batch_that_was_killed_knows_its_own_outputs(fixtures: Path, tmp_path: Path) -> None:
    config = plain_config(
        [str(fixtures / "dense.tflite")],
        {"out": str(tmp_path / "out"), "passes": ("dedup",)},
        {"mode": "off"},
    )
    (job,) = plan(config)
    # The job ends after whoever started it is gone.
    assert run_isolated(job.to_dict(), str(tmp_path / "stop"))["exit_code"] == 0
    work = job.work
    work.mkdir(parents=True)
    (work / "half.tflite").write_bytes(b"half")
    summary = run_batch(config)
    assert summary.exit_code == 0 and summary.rows[0]["resumed"] and not leftovers(tmp_path / "out")


@pytest.mark.runtime
def test_a_torn_state_is_no_harm(fixtures: Path, tmp_path: Path) -> None:
    config = plain_config(
        [str(fixtures / "dense.tflite")],
        {"out": str(tmp_path / "out"), "passes": ("dedup",)},
        {"mode": "off"},
    )
    assert run_batch(config).exit_code == 0
    state = tmp_path / "out" / HOME / "state.jsonl"
    text = state.read_text()
    state.write_text('[]\n{"key": 3}\n\n' + text + text[: len(text) // 2])
    assert run_batch(config).rows[0]["resumed"]


@pytest.mark.runtime
@pytest.mark.parametrize(
    "place",
    ["deep", "deep/er", HOME, f"{HOME}/rows", f"{HOME}/reports", f"{HOME}/work", f"{HOME}/state.jsonl"],
)
@pytest.mark.parametrize("force", [(), ("--force",)])
def test_nothing_is_written_through_links_below_the_output_folder(
    place: str, force: tuple[str, ...], fixtures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models, out, elsewhere = tmp_path / "models", tmp_path / "out", tmp_path / "elsewhere"
    (models / "deep" / "er").mkdir(parents=True)
    shutil.copy(fixtures / "dense.tflite", models / "deep" / "er" / "dense.tflite")
    (out / place).parent.mkdir(parents=True)
    elsewhere.mkdir()
    (elsewhere / "mine.json").write_text("{}")
    if place.endswith("jsonl"):
        (elsewhere / "mine.json").unlink()
        (elsewhere / "state").write_text("mine")
        (out / place).symlink_to(elsewhere / "state")
    else:
        (out / place).symlink_to(elsewhere)
    before = {path: path.read_bytes() for path in elsewhere.iterdir()}
    code = call(f"{models}/**/*.tflite", "--out", out, "--pass", "dedup", "--verify", "off", *force)
    said = capsys.readouterr()
    assert code == 2 and "is a link" in said.out + said.err
    assert {path: path.read_bytes() for path in elsewhere.rglob("*")} == before
    assert "Traceback" not in said.err


@pytest.mark.runtime
def test_an_output_that_is_a_link_is_not_followed(fixtures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "mine").write_text("mine")
    (out / "dense.tflite").symlink_to(tmp_path / "mine")
    words = (fixtures / "dense.tflite", "--out", out, "--pass", "dedup", "--verify", "off", "-q")
    assert call(*words) == 2
    assert call(*words, "--force") == 0 and not (out / "dense.tflite").is_symlink()
    assert (tmp_path / "mine").read_text() == "mine"


@pytest.mark.runtime
def test_the_output_folder_itself_may_be_a_link(fixtures: Path, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "out").symlink_to("real")
    words = (fixtures / "dense.tflite", "--out", tmp_path / "out", "--pass", "dedup", "--verify", "off", "-q")
    assert call(*words) == 0 and (tmp_path / "real" / "dense.tflite").exists()


@pytest.mark.runtime
@pytest.mark.parametrize("name", ["summary.json", "summary.csv"])
def test_a_summary_that_no_batch_wrote_stays(
    name: str, fixtures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text("mine")
    words = (fixtures / "dense.tflite", "--out", out, "--pass", "dedup", "--verify", "off", "-q")
    assert call(*words) == 2 and "no batch" not in capsys.readouterr().out
    assert (out / name).read_text() == "mine" and not (out / "dense.tflite").exists()
    assert call(*words, "--force") == 0 and (out / name).read_text() != "mine"
    # Its own it replaces unasked, until somebody else writes there.
    assert call(*words) == 0
    (out / name).write_text("mine")
    assert call(*words) == 2 and "is not as a batch wrote it" in capsys.readouterr().err


@pytest.mark.runtime
def test_no_output_is_another_name_of_an_input(
    fixtures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Hard links to a model, to real inputs and to the configuration."""
    models, out = tmp_path / "models", tmp_path / "out"
    models.mkdir()
    (out / HOME).mkdir(parents=True)
    shutil.copy(fixtures / "dense.tflite", models / "dense.tflite")
    shutil.copy(fixtures / "inputs" / "dense.npz", tmp_path / "dense.npz")
    config = tmp_path / "batch.toml"
    text = '[batch]\ninputs = ["models/*.tflite"]\nout = "out"\npasses = ["dedup"]\n'
    config.write_text(f'{text}[verify]\ninputs = ["dense.npz"]\nsamples = 1\n')
    for read in (models / "dense.tflite", tmp_path / "dense.npz", config):
        for name in ("dense.tflite", "summary.csv", f"{HOME}/state.jsonl"):
            (out / name).hardlink_to(read)
            before = read.read_bytes()
            assert call(config, "--force") == 2
            assert "is another name of" in capsys.readouterr().err
            assert read.read_bytes() == before and (out / name).samefile(read)
            (out / name).unlink()
    assert call(config, "-q") == 0


HOSTILE = (
    *('=HYPERLINK("http://x")', "+1+1", "-1+1", "@SUM(A1)", "\t=1+1", "\r=1+1", " =1+1", "＝1+1"),
    "a\x1b]0;x\x07",
)


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_in_a_summary_is_a_formula_or_moves_a_terminal(text: str) -> None:
    row = {"name": text, "status": "refused", "exit_code": 2, "message": text, "snr_db": -3.5, "seconds": 0.1}
    data = Summary((row,)).contents()["summary.csv"].decode()
    assert "\x1b" not in data and "\t" not in data and "\r" not in data and data.count("\n") == 2
    (read,) = csv.DictReader(data.splitlines())
    assert read["name"] == read["message"] and read["name"].lstrip(" ")[:1] not in "=+-@＝"
    # Numbers stay numbers, texts stand between quotes: a semicolon or a comma in one begins no other cell.
    assert (read["snr_db"], read["exit_code"]) == ("-3.5", "2") and ",-3.5," in data
    assert f'"{read["name"]}"'.replace('"', "") in data.replace('"', "")


def test_semicolons_begin_no_other_cell() -> None:
    row = {"name": "a;=1+1", "status": "refused", "exit_code": 2, "message": 'b";=1+1'}
    data = Summary((row,)).contents()["summary.csv"].decode()
    assert '"a;=1+1"' in data and '"b"";=1+1"' in data


@pytest.mark.runtime
def test_names_of_files_and_tensors_in_a_summary(fixtures: Path, tmp_path: Path) -> None:
    model = tfl_rewrite.load(fixtures / "dense.tflite")
    for tensor in model.subgraphs[0].tensors:
        tensor.rest = tensor.rest.replace(name=f'=HYPERLINK("x")\x1b[31m{tensor.name}')
    (tmp_path / "in").mkdir()
    for name in ("=1+1.tflite", "@x.tflite", "a\x1b[31m.tflite"):
        tfl_rewrite.save(model, tmp_path / "in" / name)
    # The rule matches nothing, so the message names what there is.
    rule = "quantize-weights:map=HYPERLINKS=int8"
    assert call(tmp_path / "in" / "*.tflite", "--out", tmp_path / "out", "--pass", rule, "-q") == 2
    data = (tmp_path / "out" / "summary.csv").read_bytes()
    assert b"\x1b" not in data and b"HYPERLINK" in data
    rows = list(csv.DictReader(data.decode().splitlines()))
    assert sorted(row["name"] for row in rows) == ["'=1+1.tflite", "'@x.tflite", "a\\x1b[31m.tflite"]
    # As data they are what they are.
    names = {row["name"] for row in json.loads((tmp_path / "out" / "summary.json").read_text())["files"]}
    assert names == {"=1+1.tflite", "@x.tflite", "a\x1b[31m.tflite"}


def test_one_batch_at_a_time(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with (
        open_state(out),
        pytest.raises(tfl_rewrite.UsageError, match="another batch"),
        open_state(out),
    ):
        pass


def test_an_output_folder_that_is_a_file(
    fixtures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.write_text("x")
    assert call(fixtures / "dense.tflite", "--out", out, "--pass", "dedup") == 2
    assert "Traceback" not in capsys.readouterr().err


def test_exit_codes_of_a_summary() -> None:
    def code(*codes: int) -> int:
        return Summary(tuple({"exit_code": item, "status": ""} for item in codes)).exit_code

    assert [code(0, 0), code(0, 3), code(3, 2, 0), code(2, 5), code(2, 4, 5, 3, 0)] == [0, 3, 2, 5, 4]


@pytest.mark.runtime
def test_a_job_that_nobody_waits_for_ends(fixtures: Path, tmp_path: Path) -> None:
    """Its standard input is closed when the process that started it is gone."""
    config = plain_config(
        [str(fixtures / "dense.tflite")], {"out": str(tmp_path), "preset": "small"}, {"samples": 900}
    )
    (job,) = plan(config)
    process = subprocess.Popen(
        [sys.executable, "-m", "tfl_rewrite.batch.job"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(job.to_dict()).encode() + b"\n")
    process.stdin.close()
    assert process.wait(60) == 130
    assert process.stdout is not None and process.stdout.read() == b""
    assert not (tmp_path / "dense.tflite").exists() and not job.work.exists()


@pytest.mark.runtime
def test_the_output_of_a_job_is_one_line(fixtures: Path, tmp_path: Path) -> None:
    (job,) = plan(
        plain_config([str(fixtures / "dense.tflite")], {"out": str(tmp_path), "passes": ("dedup",)}, {})
    )
    assert isinstance(job, Job) and Path(job.target).is_absolute()
    row = run_isolated(job.to_dict(), str(tmp_path / "stop"))
    assert row["key"] == job.key and row["version"] == tfl_rewrite.__version__


@pytest.mark.runtime
def test_pictures_as_inputs(fixtures: Path, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8), np.uint8)
        image.fromarray(pixels).save(tmp_path / f"{number}.png")
    out = tmp_path / "out"
    options = ["--out", out, "--pass", "quantize-weights", "--inputs", tmp_path, "-q"]
    assert call(fixtures / "digits_cnn.tflite", *options, "--input-range=0,1", "--input-layout", "nhwc") == 0
    report = json.loads((out / HOME / "reports" / "digits_cnn.tflite.json").read_text())
    verdict = report["verdict"]
    assert (verdict["sample_source"], verdict["sample_count"]) == ("real", 3)
    assert verdict["notes"] == ["3 pictures as grey 8x8 NHWC: 0..255 mapped to 0..1"]
    # In a file, values are checked.
    config = tmp_path / "batch.toml"
    for wrong in ("[0]", '["a", "b"]', "true"):
        config.write_text(f"[batch]\ninputs = ['{fixtures}/dense.tflite']\n[verify]\ninput_range = {wrong}\n")
        with pytest.raises(UsageError, match=r"input_range = .* is not a list of two numbers"):
            read_config(config, {}, {})


@pytest.mark.runtime
def test_what_is_said_is_no_more_open_than_the_models(fixtures: Path, tmp_path: Path) -> None:
    models, out = tmp_path / "models", tmp_path / "out"
    models.mkdir()
    told = [out / name for name in ("summary.json", "summary.csv", f"{HOME}/state.jsonl")]
    for name, mode in (("open", 0o644), ("closed", 0o600)):
        shutil.copy(fixtures / "dense.tflite", models / f"{name}.tflite").chmod(mode)
    config = plain_config([f"{models}/*.tflite"], {"out": str(out), "passes": ("dedup",)}, {"mode": "off"})
    only = plain_config([f"{models}/open.tflite"], {"out": str(out), "passes": ("dedup",)}, {"mode": "off"})
    before = os.umask(0o022)
    try:
        run_batch(only)
        assert [path.stat().st_mode & 0o777 for path in told] == [0o644] * 3
        run_batch(config)
        assert [path.stat().st_mode & 0o777 for path in told] == [0o600] * 3
        # It still tells of the closed one.
        run_batch(only)
        assert told[2].stat().st_mode & 0o777 == 0o600
    finally:
        os.umask(before)


def test_files_in_the_output_folder_are_said_to_lie_there(
    fixtures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.tflite", "b.tflite"):
        shutil.copy(fixtures / "dense.tflite", tmp_path / name)
    more = ("--out", tmp_path, "--pass", "dedup")
    assert call(tmp_path / "a.tflite", *more) == 2
    said = capsys.readouterr().err
    assert "the file that " in said and f"lies in the output folder {tmp_path}; use another --out" in said
    assert call(tmp_path / "*.tflite", *more) == 2
    assert "all 2 files that " in capsys.readouterr().err
    assert call(tmp_path / "*.onnx", *more) == 2
    assert "no file matches" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tflite", "b.tflite"]


@pytest.mark.runtime
def test_one_file_is_one(fixtures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(fixtures / "dense.tflite", "--out", tmp_path, "--pass", "dedup", "--verify", "off") == 0
    assert capsys.readouterr().out.startswith("1 file: 1 ")
