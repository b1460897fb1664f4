"""A command that has nothing to do says why, and what it recommends instead does something."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tfl_rewrite import load, save
from tfl_rewrite.cli import main
from tfl_rewrite.editing.base import run_passes
from tfl_rewrite.passes.dequantize import Dequantize
from tfl_rewrite.passes.quantize_weights import QuantizeWeights

CASES = {
    ("quantize-weights", "already_int4"): "quantized already: 1 per-channel int4 weight of FULLY_CONNECTED",
    ("quantize-weights", "already_int8"): "quantized already: 1 per-channel int8 weight of FULLY_CONNECTED",
    ("quantize-weights", "blockwise_int4"): "quantized already: 1 blockwise int4 weight of FULLY_CONNECTED",
    (
        "quantize-weights",
        "digits_cnn_full_int8",
    ): "activations too: 5 int8 weights in integer arithmetic (int8",
    ("quantize-weights --min-elements 1000000", "digits_cnn"): "none of 10 float constants is to be changed",
    ("round-weights", "digits_cnn_full_int8"): "it has integers and no float constants that are worth it",
    ("dequantize", "digits_cnn"): "it has float32 constants only (10)",
    ("dequantize", "digits_cnn_full_int8"): "--activations makes a float model of it",
    ("dedup", "dense"): "no constant and no operator is there twice",
    ("quantize", "svdf"): "1 x the integer kernel of SVDF computes another activation function than this one",
    ("quantize --activations int16", "digits_cnn_full_int8"): "what computes in int8 stays so",
    ("remove-dead", "dense"): "all that is in it is needed",
    ("compact", "svdf"): "the same content takes no fewer bytes",
    ("repair", "dense"): "nothing to repair",
}


def run(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    code = main(words)
    said = capsys.readouterr().out
    assert code == 0, said
    return said


def advised(said: str) -> list[str]:
    """The command in what was said, without the name of the program."""
    found = re.search(r": tfl-rewrite (.* OUT.*)", said)
    return shlex.split(found[1]) if found else []


@pytest.mark.parametrize("case", CASES, ids=lambda case: " ".join(case))
def test_the_reason_and_what_next(
    case: tuple[str, str], fixtures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command, stem = case
    source, target = fixtures / f"{stem}.tflite", tmp_path / "out.tflite"
    pass_, *options = command.split()
    said = run([pass_, str(source), str(target), "--verify", "off", *options], capsys)
    assert said.startswith("nothing to do: ") and f"\n{pass_}: " in said and CASES[case] in said
    words = advised(said)
    assert bool(words) == ("tfl-rewrite" in said and pass_ != "repair")
    if words:
        words[words.index("OUT")] = str(tmp_path / "other.tflite")
        assert words[1] == str(source)
        assert "nothing to do" not in run([*words, "--verify", "off"], capsys)


def test_constants_behind_dequantize_and_names_with_spaces(
    fixtures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = load(fixtures / "dense.tflite")
    run_passes(model, [QuantizeWeights(dtype="int2", scheme="dequantize", min_elements=1)])[0]
    source, target = tmp_path / "two bits.tflite", tmp_path / "out.tflite"
    save(model, source)
    said = run(["quantize-weights", str(source), str(target), "--verify", "off"], capsys)
    assert re.search(r"\d+ per-\w+ int2 constants? behind DEQUANTIZE", said)
    assert f"'{source}' OUT" in said
    assert run_passes(load(source), [Dequantize()])[0].idle == ""


def test_the_report_says_it_too(fixtures: Path, tmp_path: Path) -> None:
    result = run_passes(load(fixtures / "digits_cnn.tflite"), [Dequantize()])[0]
    assert result.idle == result.to_dict()["idle"] != ""
