"""``tfl-rewrite shrink`` as a user meets it."""

from __future__ import annotations

import csv
import json
import math
import signal
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tfl_rewrite import Goal, Judging, load, save, shrink
from tfl_rewrite.calibration.holdout import Split
from tfl_rewrite.cli import main
from tfl_rewrite.cli.commands.shrink import goal_of, lines_of
from tfl_rewrite.cli.parser import parser
from tfl_rewrite.errors import UsageError
from tfl_rewrite.files.atomic import write_whole
from tfl_rewrite.options.option import nbytes_of
from tfl_rewrite.pipeline.report import Report
from tfl_rewrite.search.report import ShrinkFailed, ShrinkReport
from tfl_rewrite.search.standing import Step

from ..nets import Net
from ..search.helpers import measured, verdict
from .program import TOOL

BIG = np.full(64, 1e6, np.float32)
QUICK = ("--effort", "fast", "--encodings", "int8:channel:dequantize,int4:channel:dequantize")


def run(*arguments: str | Path, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [TOOL, "shrink", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        stdin=subprocess.DEVNULL,
        **more,
    )


@pytest.fixture
def inputs(fixtures: Path, tmp_path: Path) -> Path:
    with np.load(fixtures / "inputs" / "digits_calib.npz") as file:
        np.savez(tmp_path / "some.npz", **{key: file[key][:8] for key in file.files})
    return tmp_path / "some.npz"


@pytest.mark.runtime
def test_all_that_it_writes(fixtures: Path, inputs: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    target = tmp_path / "out.tflite"
    (tmp_path / "mine.py").write_text(
        "import numpy as np\n"
        "def same(outputs, reference):\n"
        "    (a,), (b,) = outputs.values(), reference.values()\n"
        "    assert a.shape[0] in (2, 6)\n"
        "    return float(np.mean(a.argmax(-1) == b.argmax(-1)))\n"
    )
    names = [tmp_path / name for name in ("recipe.toml", "curve.csv", "plot.svg", "report.json")]
    options = [
        word
        for pair in zip(("--recipe-out", "--curve", "--plot", "--report"), names, strict=True)
        for word in pair
    ]
    done = run(
        fixtures / "digits_cnn.tflite",
        target,
        *("--min-snr", "40", "--metric", "mine:same", "--min-metric", "1", "--inputs", inputs, "-v"),
        *QUICK,
        *options,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    told = "1 on held-out inputs, 1 on those of the search; at least 1 was asked for; the original has 1"
    assert f"\nmetric mine:same: {told}\n" in done.stdout
    assert "SNR promised: " in done.stdout and "<- this one" in done.stdout and "held out" in done.stdout
    assert (
        f"\nnext: what changed: tfl-rewrite diff {fixtures / 'digits_cnn.tflite'} {target}\n" in done.stdout
    )
    report = json.loads(names[3].read_text())
    assert report["schema"] == 1 and report["promised_snr_db"] >= 40.0 and report["promised"]["metric"] == 1.0
    assert target.stat().st_size == report["promised"]["nbytes"] == report["rewrite"]["nbytes_after"]
    rows = list(csv.DictReader(names[1].open()))
    assert [row["chosen"] for row in rows].count("True") <= 1 and len(rows) > 1
    assert names[2].read_bytes().startswith(b"<?xml")
    made = run_quantize(fixtures / "digits_cnn.tflite", tmp_path / "again.tflite", names[0], inputs)
    assert made.returncode == 0, made.stderr
    assert (tmp_path / "again.tflite").stat().st_size == pytest.approx(target.stat().st_size, rel=0.05)


def run_quantize(source: Path, target: Path, recipe: Path, inputs: Path) -> subprocess.CompletedProcess[str]:
    command = [TOOL, "quantize-weights", source, target, "--map", recipe, "--min-elements", "64"]
    command += ["--inputs", inputs, "--verify", "off"]
    return subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)


@pytest.mark.runtime
def test_impossible_is_four_with_the_table_and_no_file(fixtures: Path, inputs: Path, tmp_path: Path) -> None:
    target, curve = tmp_path / "out.tflite", tmp_path / "curve.json"
    done = run(
        fixtures / "digits_cnn.tflite",
        target,
        *("--min-snr", "60", "--max-size", "12KB", "--inputs", inputs, "--curve", curve),
        *QUICK,
    )
    assert done.returncode == 4 and not target.exists()
    assert "no file was found within the budget (SNR of 60 dB, at most 12,000 bytes)" in done.stderr
    assert "size against error" in done.stdout and "Traceback" not in done.stderr
    assert len(json.loads(curve.read_text())["points"]) > 1


@pytest.mark.runtime
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), "no budget"),
        (("--min-snr", "30", "--curve", "x.txt"), "--curve x.txt"),
        (("--min-snr", "30", "--plot", "x.gif"), "--plot x.gif"),
        (("--min-snr", "30", "--encodings", "int3"), "int3"),
        (("--metric", "missing_module:f", "--min-metric", "1"), "missing_module"),
    ],
)
def test_usage_is_two_in_one_line(
    fixtures: Path, tmp_path: Path, arguments: tuple[str, ...], expected: str
) -> None:
    done = run(fixtures / "dense.tflite", tmp_path / "out.tflite", *arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert expected in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 2
    assert not list(tmp_path.glob("*.tflite*"))


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["missing_module:f", "math:no_such_function", "math:pi"])
def test_a_metric_that_is_none_is_told_before_anything_is_run(
    fixtures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, metric: str
) -> None:
    def ran(*_: object, **__: object) -> None:
        raise AssertionError("the model was run")

    monkeypatch.setattr("tfl_rewrite.search.session.Trials", ran)
    with pytest.raises(UsageError, match=f"metric {metric}"):
        shrink(fixtures / "dense.tflite", tmp_path / "out.tflite", Goal(metric=metric, min_metric=1.0))


@pytest.mark.parametrize(
    ("text", "expected"),
    [("500", 500), ("5MB", 5_000_000), ("4MiB", 4 << 20), ("1.5 kb", 1500), ("2K", 2000)],
)
def test_sizes(text: str, expected: int) -> None:
    assert nbytes_of(text) == expected


@pytest.mark.parametrize("text", ["", "MB", "-5MB", "5 parsecs", "1e6"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="number of bytes"):
        nbytes_of(text)


@pytest.mark.parametrize("limit", [0, -1.0, "soon", math.nan, True, "", math.inf])
def test_a_time_limit_is_a_time(limit: Any) -> None:
    with pytest.raises(UsageError, match="time_limit"):
        Goal(min_snr=30.0, time_limit=limit)


@pytest.mark.parametrize("measured", [False, True])
def test_an_interrupt_tells_what_stays(
    measured: bool,
    fixtures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    state = tmp_path / "state.json"

    def stopped(*_: object, **__: object) -> None:
        if measured:
            write_whole(state, b"{}", force=True)
        raise KeyboardInterrupt(signal.SIGTERM)

    monkeypatch.setattr("tfl_rewrite.cli.commands.shrink.search_and_publish", stopped)
    words = [fixtures / "dense.tflite", tmp_path / "out.tflite", "--min-snr", "30", "--state", state]
    assert main(["shrink", *map(str, words)]) == 143
    but = f" but {state}" if measured else ""
    assert capsys.readouterr().err == f"tfl-rewrite: error: terminated; nothing was written{but}\n"


@pytest.mark.parametrize(
    ("words", "limit"),
    [
        ((), 480),
        (("--time-limit", "none"), None),
        (("--time-limit", "1e12"), None),
        (("--time-limit", "1e-12"), 1e-12),
    ],
)
def test_no_time_limit_is_written_as_none(words: tuple[str, ...], limit: float | None) -> None:
    given = ["shrink", "IN", "OUT", "--min-snr", "30", *words]
    assert goal_of(parser("0", given).parse_args(given)).time_limit == limit


@pytest.mark.runtime
def test_nothing_to_choose_is_said_plainly(fixtures: Path, tmp_path: Path) -> None:
    done = run(fixtures / "already_int8.tflite", tmp_path / "out.tflite", "--min-snr", "30")
    assert done.returncode == 0
    assert "no constant can be stored otherwise" in done.stdout and "constants:" not in done.stdout
    assert "; 1 file was run" in done.stdout
    assert "SNR promised: exact (search exact, held-out inputs exact)" in done.stdout


@pytest.mark.runtime
def test_nothing_is_promised_where_no_output_says_anything(tmp_path: Path) -> None:
    net = Net()
    dense = net.dense(net.input("x", (1, 64)), net.weights("w", (64, 64)), "y")
    net.output(
        net.add("RELU", [net.add("SUB", [dense, net.constant("b", BIG)], "z", (1, 64))], "out", (1, 64))
    )
    save(net.model, tmp_path / "in.tflite")
    done = run(tmp_path / "in.tflite", tmp_path / "out.tflite", "--min-snr", "30", *QUICK)
    assert done.returncode == 0 and "UNVERIFIED" in done.stdout
    assert "SNR promised: none: no output says anything; give --inputs" in done.stdout
    proven = run(
        tmp_path / "in.tflite", tmp_path / "proven", "--min-snr", "30", "--verify", "require", *QUICK
    )
    assert proven.returncode == 4 and not (tmp_path / "proven").exists()
    assert "use --verify auto to write it" in proven.stderr and "was refused" not in proven.stdout


@pytest.mark.runtime
def test_integers_that_cannot_be_had_are_refused_first(tmp_path: Path) -> None:
    net = Net()
    made = net.dense(net.input("x", (1, 64)), net.weights("w", (64, 64)), "y")
    for name in ("ABS", "NEG", "SQRT"):
        made = net.add(name, [made], name.lower(), (1, 64))
    net.output(made)
    save(net.model, tmp_path / "in.tflite")
    given = (tmp_path / "in.tflite", tmp_path / "out.tflite", "--min-snr", "30", *QUICK)
    assert "weights stay as they are" in run(*given).stdout
    done = run(*given, "--force", "--activations", "int8")
    assert done.returncode == 2 and "integer activations need real inputs" in done.stderr


@pytest.mark.runtime
@pytest.mark.parametrize("objective", ["file", "download"])
def test_weights_stay_where_nothing_can_be_compared(objective: str, fixtures: Path, tmp_path: Path) -> None:
    """Not even with itself: any noise would keep any bound."""
    source = fixtures / "digits_cnn.tflite"
    shape = load(source).subgraphs[0].inputs[0].shape or ()
    name = load(source).subgraphs[0].inputs[0].name
    np.savez(tmp_path / "nan.npz", **{name: np.full((8, *shape[1:]), np.nan, np.float32)})
    given = ("--inputs", tmp_path / "nan.npz", "--objective", objective)
    done = run(source, tmp_path / "out.tflite", "--min-snr", "30", *given)
    assert done.returncode == 0 and "UNVERIFIED" in done.stdout
    assert "no output says anything, so weights stay as they are" in done.stdout
    assert "constants:" not in done.stdout and "can be stored otherwise" not in done.stdout
    assert (tmp_path / "out.tflite").stat().st_size > 0.9 * source.stat().st_size


@pytest.mark.runtime
@pytest.mark.parametrize("count", [8, 2])
def test_what_equal_or_few_samples_tell_is_called_what_it_is(
    count: int, fixtures: Path, tmp_path: Path
) -> None:
    source = fixtures / "digits_cnn.tflite"
    (given,) = load(source).subgraphs[0].inputs
    shape = (count, *(given.shape or ())[1:])
    values = np.random.default_rng(0).random(shape, np.float32)
    np.savez(tmp_path / "in.npz", **{given.name: values[:1].repeat(8, axis=0) if count == 8 else values})
    words = (
        "--min-snr",
        "30",
        "--effort",
        "fast",
        "--encodings",
        "int8",
        "--inputs",
        str(tmp_path / "in.npz"),
    )
    done = run(source, tmp_path / "out.tflite", *words)
    assert done.returncode == 0
    if count == 8:
        # They are all the same, and what the search saw of them says nothing of others.
        assert "UNVERIFIED" in done.stdout and "SNR promised: none" in done.stdout
    else:
        assert ", the file on the same inputs " in done.stdout and "held-out inputs" not in done.stdout


@pytest.mark.runtime
def test_a_pattern_that_matches_nothing_is_named(fixtures: Path, tmp_path: Path) -> None:
    source, target = fixtures / "dense.tflite", tmp_path / "out.tflite"
    report = shrink(source, target, Goal(max_nbytes=4000, exclude=("dense/weigts",), effort="fast"))
    assert any("exclude 'dense/weigts' matches no constant" in note for note in report.notes)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--time-limit", "0"), "argument --time-limit: '0' is no number of seconds above 0, and not none"),
        (
            ("--min-agreement", "0"),
            "argument --min-agreement: '0' is no share above 0, 1 at most, such as 0.99",
        ),
        (
            ("--min-agreement", "2"),
            "argument --min-agreement: '2' is no share above 0, 1 at most, such as 0.99",
        ),
        (
            ("--time-limit", "inf"),
            "argument --time-limit: 'inf' is no number of seconds above 0, and not none",
        ),
        (
            ("--codec", "zstd"),
            "--codec zstd has no use here: only downloads are compressed; give --objective",
        ),
        (("--min-snr", "5000"), "argument --min-snr: DB is 5000.0"),
        (("--max-size", "ten"), "argument --max-size: 'ten' is not a number of bytes"),
        (("--objective", "fil"), "argument --objective: 'fil' is unknown; did you mean 'file'?"),
        (("--encodings", "int9"), "argument --encodings: encoding 'int9': no type"),
        (("--encodings", ""), "argument --encodings: '' names no encoding"),
        (("--min-runtime", "x"), "argument --min-runtime: min runtime 'x' is not a version"),
    ],
)
def test_what_an_option_does_not_take(words: tuple[str, str], said: str) -> None:
    line = ["shrink", "in", "out", "--max-error", "1", *words]
    with pytest.raises(UsageError) as failure:
        goal_of(parser("", line).parse_args(line))
    assert str(failure.value).startswith(said)


def reported(goal: Goal, *, snr: float = 27.0, **more: Any) -> ShrinkReport:
    """What a search came to: a file of 500 of 1000 bytes that keeps so many dB."""
    made = measured(snr, 500, goal)
    split = Split(((),), (), "3 samples", False)
    proven = more.pop("proven", made.verdict)
    done = Report(source="in", target="out", outcome="rewritten", nbytes_before=1000, nbytes_after=500)
    found = {"promised": made, "proven": proven, "proven_snr": snr, "proven_sure": snr, "curve": (made,)}
    found["report"] = proven and replace(done, verdict=replace(proven, sample_source="real"))
    told = {"source": "in", "target": "out", "nbytes_before": 1000, "split": split, "files": 1, "units": ()}
    return ShrinkReport(goal=goal, **{**told, **found, **more})


def test_a_table_without_rows_is_none_and_nothing_is_to_be_chosen_of_it() -> None:
    ended = (Step("int8 activations", False, 4, 1.0, None, None),)
    none = {"promised": None, "proven": None}
    found = reported(Goal(max_nbytes=5, time_limit=1.0), curve=(), steps=ended, **none)
    told = "\n".join(lines_of(found, verbose=0))
    assert "size against error" not in told and "ended the search: int8 activations" in told
    assert found.remedy == "give more time with --time-limit, or another budget"
    assert replace(found, steps=()).remedy == "choose another budget"
    some = reported(Goal(max_nbytes=5), **none)
    assert some.remedy == "choose a point of the table, or another budget"
    assert any(line.startswith("size against error") for line in lines_of(some, verbose=0))


def test_notes_that_are_not_shown_are_counted_with_those_of_the_verdict() -> None:
    proven = replace(verdict({}), notes=("in.npz: not an input: 'extra'",))
    found = reported(Goal(min_snr=20.0), proven=proven, notes=("names take 9 bytes", "they differ"))
    (line,) = (line for line in lines_of(found, verbose=0) if line.startswith("note: "))
    assert line == "note: in.npz: not an input: 'extra'; 2 more notes with -v"
    told = [line.strip() for line in lines_of(found, verbose=1)]
    notes = ["in.npz: not an input: 'extra'", "names take 9 bytes", "they differ"]
    assert [line for line in told if line.startswith("note: ")] == [f"note: {note}" for note in notes]


@pytest.mark.parametrize(
    ("goal", "told"),
    [
        (Goal(min_snr=5.0), "a higher --min-snr loses less"),
        (Goal(max_nbytes=600), "a larger --max-size loses less"),
        (Goal(min_agreement=0.5, max_nbytes=600), "--min-snr bounds it, too"),
    ],
)
def test_a_noticeable_loss_is_told_with_what_bounds_it(goal: Goal, told: str) -> None:
    (line,) = (
        line for line in lines_of(reported(goal, snr=14.0), verbose=0) if line.startswith("next: the loss")
    )
    assert line == f"next: the loss is noticeable: 14.0 dB at the lowest; {told}"


@pytest.mark.runtime
def test_notes_on_inputs_and_on_what_was_asked_for_come_first(fixtures: Path, tmp_path: Path) -> None:
    with np.load(fixtures / "inputs" / "mtcnn_rnet.npz") as file:
        values = {key: file[key].copy() for key in file.files}
    (name,) = values
    # The first sample is of the search, the last one is held out.
    values[name][0].reshape(-1)[0] = np.nan
    np.savez(tmp_path / "in.npz", extra=np.zeros((len(values[name]), 1), np.float32), **values)
    goal = Goal(min_agreement=0.5, exclude=("nothing_like_it",), effort="fast", encodings=("int8",))
    judging = Judging(inputs=(tmp_path / "in.npz",))
    report = shrink(fixtures / "mtcnn_rnet.tflite", tmp_path / "out.tflite", goal, judging=judging)
    assert "'extra'" in report.notes[0] + report.notes[1] and "1 NaN" in report.notes[0] + report.notes[1]
    assert "nothing_like_it" in report.notes[2] and report.notes[-1].startswith("names of tensors")


METRIC: dict[str, Any] = {"metric": "mine:same", "min_metric": 0.5}


@pytest.mark.parametrize(
    ("goal", "kept"),
    [
        (Goal(**METRIC), "metric mine:same of at least 0.5"),
        (Goal(min_agreement=0.9), "argmax agreement of 90.00%"),
        (Goal(max_nbytes=600), "at most 600 bytes"),
        (Goal(min_snr=-5.0, **METRIC), ""),
        (Goal(max_error=5.0), ""),
    ],
)
@pytest.mark.parametrize("verbose", [0, 1])
def test_outputs_of_which_nothing_was_asked_are_not_said_to_agree(
    goal: Goal, kept: str, verbose: int
) -> None:
    found = reported(goal, snr=-1.6)
    (line,) = (line for line in lines_of(found, verbose=verbose) if line.startswith("verified: "))
    # Never 1.2e+02.
    assert line.endswith("is off by 120 % of its size (SNR -1.6 dB)")
    if kept:
        assert line.startswith(f"verified: PASS: the file keeps what was asked for ({kept}) on ")
    else:
        assert line.startswith("verified: PASS: the output agrees on ")


@pytest.mark.parametrize("verbose", [0, 1])
@pytest.mark.parametrize("held_out", [False, True])
def test_the_users_own_figure_is_told(held_out: bool, verbose: int) -> None:
    goal = Goal(**METRIC)
    made = replace(measured(27.0, 500, goal), metric=0.75)
    figures = {"proven_metric": 0.5, "original_metric": math.nan}
    found = reported(
        goal, promised=made, curve=(made,), split=Split((), (), "", held_out=held_out), **figures
    )
    told = "0.5 on held-out inputs, 0.75 on those of the search" if held_out else "0.5 on the same inputs"
    lines = lines_of(found, verbose=verbose)
    assert f"metric mine:same: {told}; at least 0.5 was asked for; the original has NaN" in lines
    assert any(line.endswith("metric 0.75  <- this one") for line in lines) is bool(verbose)
    assert not any(
        line.startswith("metric") for line in lines_of(reported(Goal(min_snr=5.0)), verbose=verbose)
    )


@pytest.mark.runtime
def test_a_bound_that_the_original_misses_is_told(fixtures: Path, tmp_path: Path) -> None:
    # Both arguments are never one and the same object: 0.
    goal = Goal(metric="operator:is_", min_metric=0.5, effort="fast", encodings=("int8:tensor:dequantize",))
    with pytest.raises(ShrinkFailed) as failure:
        shrink(fixtures / "dense.tflite", tmp_path / "out.tflite", goal)
    told = "the original itself has 0 by metric operator:is_, not 0.5 or more; nothing was written"
    assert failure.value.what == told and failure.value.remedy is not None
    assert failure.value.remedy.startswith("lower --min-metric") and "table" not in failure.value.remedy
    assert failure.value.report.to_dict()["original_metric"] == 0.0


def test_a_download_is_told_by_what_its_codec_makes_of_it() -> None:
    goal = Goal(min_snr=20.0, objective="download", codec="zstd")
    made = replace(measured(27.0, 500, goal), deflated=300)
    other = replace(measured(15.0, 400, goal), deflated=250)
    # It was better where the search looked, and not where it was judged; one was not laid out.
    refused = replace(measured(29.0, 510, goal), deflated=290)
    floats = measured(90.0, 1000, goal)
    figures = {"promised": made, "curve": (floats, refused, made, other), "compressed_before": 600}
    found = reported(goal, **figures)
    lines = lines_of(found, verbose=1)
    head = "in -> out: 1,000 -> 500 bytes (50.0 %); compressed (zstd): 600 -> 300 bytes (50.0 %)"
    assert lines[0] == lines_of(found, verbose=0)[0] == head
    start = lines.index("size against error, on the inputs of the search:") + 1
    assert [" ".join(line.split()) for line in lines[start : start + 3]] == [
        "400 bytes (250 with zstd) 15.0 dB",
        "510 bytes (290 with zstd) 29.0 dB",
        "500 bytes (300 with zstd) 27.0 dB <- this one",
    ]
    assert not any("deflate" in line or "1,000 bytes (" in line for line in lines)
    assert found.pareto == [other, refused]
