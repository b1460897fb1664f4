"""Encodings, mixed precision and ``dequantize`` on the command line."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from .program import call


@pytest.fixture
def dense(fixtures: Path) -> str:
    return str(fixtures / "dense.tflite")


@pytest.mark.runtime
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--dtype", "int4"], ["are int4 now", "int4:channel hybrid"]),
        (["--dtype", "int4", "--granularity", "block:32"], [r"int4:block:\d+ dequantize"]),
        (["--dtype", "float16"], ["are float16 now", "float16 dequantize"]),
        (["--map", "weights=int4:channel:dequantize"], [r"int4:(channel|tensor) dequantize"]),
        (["--dtype", "int4", "--map", "FULLY_CONNECTED=int8"], ["are int8 now", r"x hybrid\)"]),
    ],
    ids=str,
)
def test_encodings(
    capsys: pytest.CaptureFixture[str], dense: str, tmp_path: Path, options: list[str], words: list[str]
) -> None:
    out, report = tmp_path / "out.tflite", tmp_path / "report.json"
    code, text, error = call(
        capsys,
        "quantize-weights",
        dense,
        out,
        *options,
        "--samples",
        "1",
        "--min-snr",
        "5",
        "--report",
        report,
    )
    assert (code, error) == (0, "")
    assert all(re.search(word, text) for word in words), text
    assert "verified: PASS" in text
    changes = json.loads(report.read_text())["passes"][0]["changes"]
    assert all(change["encoding"].split(":")[0] in text for change in changes)


def test_what_float16_lost_is_said(
    capsys: pytest.CaptureFixture[str], fixtures: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.tflite"
    source = fixtures / "mtcnn_rnet.tflite"
    code, text, _ = call(capsys, "quantize-weights", source, out, "--dtype", "float16", "--verify", "off")
    assert code == 0 and "float16: " in text and "lost bits" in text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--map", "no_such_tensor=int4"], ["matches no tensor", "near it are"]),
        (["--map", "weights"], ["is not REGEX=ENCODING"]),
        (["--map", "missing.toml"], ["missing.toml", "cannot read"]),
        (["--granularity", "block:5"], ["block:32"]),
        (["--dtype", "int4", "--min-runtime", "2.14"], ["needs runtime 2.18"]),
    ],
    ids=str,
)
def test_refusals(
    capsys: pytest.CaptureFixture[str], dense: str, tmp_path: Path, options: list[str], words: list[str]
) -> None:
    code, text, error = call(capsys, "quantize-weights", dense, tmp_path / "out.tflite", *options)
    assert code == 2 and text == "" and list(tmp_path.iterdir()) == []
    assert all(word in error for word in words) and error.count("\n") == 1


@pytest.mark.runtime
@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib is part of Python from 3.11 on")
def test_a_recipe_file(capsys: pytest.CaptureFixture[str], dense: str, tmp_path: Path) -> None:
    recipe, out = tmp_path / "recipe.toml", tmp_path / "out.tflite"
    recipe.write_text('version = 1\n[[rule]]\nmatch = "weights$"\nencoding = "int4:block:32"\n')
    code, text, _ = call(capsys, "quantize-weights", dense, out, "--map", recipe, "--min-snr", "5")
    assert code == 0 and re.search(r"int4:block:\d+ dequantize", text)


@pytest.mark.runtime
def test_dequantize(capsys: pytest.CaptureFixture[str], dense: str, tmp_path: Path) -> None:
    small, large, again = (tmp_path / f"{name}.tflite" for name in ("small", "large", "again"))
    assert call(capsys, "quantize-weights", dense, small, "--verify", "off")[0] == 0
    code, text, error = call(capsys, "dequantize", small, large, "--samples", "1")
    assert (code, error) == (0, "") and "int8 -> float32" in text and "verified: PASS" in text
    assert large.stat().st_size > small.stat().st_size
    assert call(capsys, "quantize-weights", large, again, "--verify", "off")[0] == 0
    assert abs(again.stat().st_size - small.stat().st_size) < 100
    code, text, _ = call(capsys, "dequantize", dense, tmp_path / "same.tflite")
    assert code == 0 and "nothing to do" in text
    assert (tmp_path / "same.tflite").read_bytes() == Path(dense).read_bytes()


@pytest.mark.runtime
def test_as_passes(capsys: pytest.CaptureFixture[str], dense: str, tmp_path: Path) -> None:
    out = tmp_path / "out.tflite"
    passes = ["--pass", "dequantize", "--pass", "quantize-weights:dtype=int4,granularity=block:32"]
    code, text, _ = call(capsys, "run", dense, out, *passes, "--samples", "1", "--min-snr", "5")
    assert code == 0 and "int4:block:" in text
    assert np.frombuffer(out.read_bytes(), np.uint8).size < Path(dense).stat().st_size
