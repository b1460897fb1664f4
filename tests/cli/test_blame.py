"""``--blame`` and media inputs as a user meets them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from .program import call


@pytest.fixture
def digits(fixtures: Path) -> Path:
    return fixtures / "digits_cnn.tflite"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(3):
        Image.fromarray(rng.integers(0, 255, (16, 16), np.uint8)).save(folder / f"{number}.png")
    return folder


@pytest.mark.runtime
def test_a_writing_command_blames_after_its_verdict(capsys, digits, photos, tmp_path):
    report, nodes, out = tmp_path / "r.json", tmp_path / "n.json", tmp_path / "out.tflite"
    given = ("--inputs", photos, "--input-range", "-0.5,1", "--min-elements", "64")
    written = ("--report", report, "--blame-out", nodes)
    code, said, _ = call(capsys, "quantize-weights", digits, out, *given, *written)
    assert code == 0 and out.exists()
    lines = said.splitlines()
    verdict = next(number for number, line in enumerate(lines) if line.startswith("verified: PASS"))
    table = next(number for number, line in enumerate(lines) if line.startswith("blame: 7 operator outputs"))
    assert verdict < table and "3 real samples" in lines[table]
    assert any("0..255 mapped to -0.5..1" in line for line in lines[:table])
    assert any("<- #1" in line for line in lines[table:])
    layers = json.loads(report.read_text())["blame"]["layers"]
    assert len(layers) == 7 and 1 in {row["rank"] for row in layers}
    results = next(iter(json.loads(nodes.read_text()).values()))["results"]
    assert {int(key) for key in results} == {row["after_index"] for row in layers}


@pytest.mark.runtime
def test_a_refused_rewrite_is_blamed_too(capsys, digits, tmp_path):
    out, nodes = tmp_path / "out.tflite", tmp_path / "n.json"
    arguments = (
        "--min-snr",
        "200",
        "--samples",
        "1",
        "--blame-seconds",
        "0",
        "--no-rescue",
        "--blame-out",
        nodes,
    )
    code, said, _ = call(capsys, "quantize-weights", digits, out, *arguments)
    assert code == 4 and not out.exists()
    assert "blame: 7 operator outputs" in said and nodes.exists()


@pytest.mark.runtime
def test_verify_blames(capsys, fixtures, digits, tmp_path):
    report = tmp_path / "r.json"
    other = fixtures / "digits_cnn_dynamic_range.tflite"
    code, said, _ = call(capsys, "verify", digits, other, "--blame", "--report", report, "--samples", "1")
    assert code == 0 and "the ratio falls most at: " in said
    assert json.loads(report.read_text())["blame"]["sample_count"] == 1
    code, said, _ = call(capsys, "verify", digits, other, "--samples", "1")
    assert code == 0 and "blame" not in said


def test_nothing_compared_nothing_to_blame(capsys, digits, tmp_path):
    out = tmp_path / "out.tflite"
    code, said, _ = call(capsys, "compact", digits, out, "--verify", "off", "--blame")
    assert code == 0 and "blame: not run, because nothing was compared" in said


def test_reports_may_not_replace_a_model_or_each_other(capsys, digits, tmp_path):
    code, _, said = call(capsys, "verify", digits, digits, "--blame-out", digits)
    assert code == 2 and "is read as BEFORE, and --blame-out would replace it" in said
    same = tmp_path / "r.json"
    code, _, said = call(capsys, "verify", digits, digits, "--blame-out", same, "--report", same)
    assert code == 2 and "--blame-out and --report are the same file" in said and not same.exists()


@pytest.mark.runtime
def test_a_damaged_picture_is_one_line(capsys, digits, photos, tmp_path):
    (photos / "1.png").write_bytes(b"\x89PNG\r\n\x1a\n damaged")
    out = tmp_path / "out.tflite"
    code, said, error = call(capsys, "quantize-weights", digits, out, "--inputs", photos)
    assert code == 2 and said == "" and not out.exists()
    assert error.count("\n") == 1 and "1.png: cannot be read as a picture" in error


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--input-range", "0"), "is not LO,HI"),
        (("--input-range", "0,1,2"), "is not LO,HI"),
        (("--input-layout", "NHX"), "each axis once"),
        # Seen once the inputs are looked at, while the runtime is loaded already.
        pytest.param(
            *(("--sample-rate", "16000"), "is for pictures and sound"),
            marks=pytest.mark.runtime,
        ),
    ],
)
def test_media_options_that_make_no_sense(capsys, digits, options, text):
    code, _, error = call(capsys, "verify", digits, digits, *options)
    assert code == 2 and text in error
