"""What is written to terminals, pipes and full disks, in any locale; and what an interruption leaves."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tfl_rewrite import load, save
from tfl_rewrite.cli import main
from tfl_rewrite.cli.render import decibels, safe, size, table
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

from .program import ESCAPES, TOOL, call, left, run


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
    """A reader that went away changes neither the work nor its exit code; what is closed takes no product."""
    if how == "closed" and "OUT" not in arguments:
        code = 2
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
    assert (b"standard output: cannot write: it is closed" in done.stderr) == (how == "closed")
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


class Full(io.StringIO):
    """A standard output that takes nothing."""

    spare: int

    def flush(self) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fileno(self) -> int:
        return self.spare


@pytest.mark.parametrize("words", [["--help"], ["shrink", "--help"], ["help", "shrink"], ["--version"]])
def test_a_help_that_cannot_be_printed_is_no_help(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    full = Full()
    with open(tmp_path / "spare", "wb") as file:
        full.spare = file.fileno()
        monkeypatch.setattr(sys, "stdout", full)
        assert main(words) == 2
    assert capsys.readouterr().err == (
        "tfl-rewrite: error: standard output: cannot write: No space left on device\n"
    )


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
        # Longer than the name of a file can be.
        ["batch", "y" * 300, "--out", "OUT", "--pass", "dedup"],
        ["verify", "IN", "IN", "--inputs", "y" * 300],
        ["shard", "IN", "y" * 300],
        ["split", "IN", "y" * 300],
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


def slow(target: Path) -> Path:
    """Writes a small file that takes long to run: hundreds of dense layers over one weight."""
    width, rows, layers = 512, 4096, 200
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
        stdout, stderr = process.communicate(timeout=120)
    finally:
        if process.poll() is None:
            process.kill()
    assert process.returncode == code
    assert words in stderr and b"Traceback" not in stderr and stdout == b""
    assert left(out) == [] and list(scratch.iterdir()) == []
    deadline = time.monotonic() + 60
    while _descendants(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _descendants(process.pid)
