"""Who judges, as the command line asks for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tfl_rewrite.cli.main import main

from ..helpers import FIXTURES

DENSE = str(FIXTURES / "digits_cnn.tflite")


@pytest.mark.runtime
def test_every_judge_is_in_the_report(tmp_path, capsys):
    report = tmp_path / "report.json"
    asked = ["--resolver", "default", "--resolver", "reference", "--samples", "1"]
    assert main(["verify", DENSE, DENSE, *asked, "--report", str(report)]) == 0
    facts = json.loads(report.read_text())
    assert facts["schema"] == 1 and facts["status"] == "pass"
    assert [one["judge"]["kernels"] for one in facts["verdicts"]] == ["default", "reference"]
    assert {one["judge"]["asked"] for one in facts["verdicts"]} == {"litert"}
    assert facts["judge"] == facts["verdicts"][0]["judge"]
    assert "the worst of 2 judges (2 pass)" in capsys.readouterr().out


@pytest.mark.runtime
def test_rewrite_is_judged_by_all(tmp_path, capsys):
    target, report = tmp_path / "out.tflite", tmp_path / "report.json"
    command = ["quantize-weights", DENSE, str(target), "--report", str(report), "--samples", "1"]
    assert main([*command, "--resolver", "builtin", "--resolver", "default"]) == 0
    facts = json.loads(report.read_text())
    assert [one["judge"]["kernels"] for one in facts["verdicts"]] == ["builtin", "default"]
    assert facts["verdict"]["outputs"] == facts["verdicts"][0]["outputs"]
    assert main([*command, "--force"]) == 0
    assert len(json.loads(report.read_text())["verdicts"]) == 1
    # One of them refuses: nothing is written.
    target.unlink()
    report.unlink()
    both = ["--resolver", "builtin", "--resolver", "default"]
    assert main([*command, *both, "--min-snr", "90", "--no-rescue"]) == 4
    assert not target.exists()
    assert "FAIL (made samples): the worst of 2 judges" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--memory-limit", "1KB"], "argument --memory-limit: SIZE is 1000; give 67,108,864 or more"),
        (["--memory-limit", "lots"], "argument --memory-limit: 'lots' is not a number of bytes"),
        (["--runtime", "litert", "--runtime", "onnx"], "unknown runtime 'onnx'"),
    ],
)
def test_mistakes(tmp_path, capsys, options, text):
    assert main(["verify", DENSE, DENSE, *options]) == 2
    assert text in capsys.readouterr().err
    assert main(["compact", DENSE, str(tmp_path / "out"), *options]) == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_waiting_counts_on_a_terminal_and_is_silent_if_not_wanted(tmp_path):
    pty = pytest.importorskip("pty")
    code = (
        "import time; from tfl_rewrite.cli.progress import Bar\n"
        "with Bar(wanted=True) as bar:\n"
        "    bar('verifying'); time.sleep(1.3); bar('still'); time.sleep(0.7)\n"
    )
    ours, theirs = pty.openpty()
    subprocess.run([sys.executable, "-c", code], stderr=theirs, check=True, cwd=FIXTURES.parent)
    os.close(theirs)
    shown = os.read(ours, 10000).decode()
    os.close(ours)
    assert "verifying (1 s)" in shown and "still (" in shown
    assert shown.endswith("\r\x1b[K")
    done = subprocess.run(
        [sys.executable, "-c", code.replace("True", "False")], capture_output=True, check=True
    )
    assert done.stderr == b""


@pytest.mark.runtime
def test_a_file_of_other_types_is_compared_where_that_is_asked_for(capsys):
    whole = str(FIXTURES / "digits_cnn_full_int8.tflite")
    asked = ["verify", DENSE, whole, "--inputs", str(FIXTURES / "inputs" / "digits_eval.npz")]
    assert main(asked) == 4
    said = capsys.readouterr().out
    assert "is int8[1, 8, 8, 1] instead of float32" in said and "next: --retyped compares" in said
    assert main([*asked, "--retyped"]) == 0
    assert "PASS" in capsys.readouterr().out
    # Equal in all but types is not equal to the bit.
    assert main([*asked, "--retyped", "--exact"]) == 4
    # Nor does it forgive other shapes and numbers of inputs.
    assert main(["verify", DENSE, str(FIXTURES / "dense.tflite"), "--retyped"]) == 4
    assert "FAIL: interface" in capsys.readouterr().out
