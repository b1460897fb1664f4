"""verify, inspect and check as a user meets them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from tfl_rewrite import load, save
from tfl_rewrite.cli.render import size
from tfl_rewrite.model.blob import OwnedBlob

from ..nets import classifier
from .program import call


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
def test_verify_asks_for_samples_of_which_a_model_is_less_sure(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pair = classifier(tmp_path / "before.tflite", 1e4), classifier(tmp_path / "after.tflite", 1.2e4)
    code, text, _ = call(capsys, "verify", *pair)
    assert code == 0 and text.startswith("PASS (made samples, for samples as sure as these): ")
    why = "less sure samples (before its last operator y keeps 14.0 dB)"
    assert f"not judged: {why}" in text
    code, text, _ = call(capsys, "verify", *pair, "--require")
    assert code == 3 and f"not proven: made samples do not show {why}; give --inputs" in text
    code, text, _ = call(capsys, "verify", *pair, "--require", "--json")
    facts = json.loads(text)
    assert code == 3 and facts["not_judged"] == [why]
    assert facts["not_proven"] == f"made samples do not show {why}; give --inputs"
    # Its own are enough: the verdict says what it rests on.
    np.savez(tmp_path / "given.npz", x=np.eye(8, dtype=np.float32)[:, None])
    code, text, _ = call(capsys, "verify", *pair, "--require", "--inputs", tmp_path / "given.npz")
    assert code == 0 and text.startswith("PASS (for samples as sure as these): ")


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


def test_what_is_not_listed_is_counted_as_what_it_is(
    capsys: pytest.CaptureFixture[str], fixtures: Path
) -> None:
    _, text, _ = call(capsys, "inspect", fixtures / "mtcnn_rnet.tflite")
    assert "operators: 14: " in text and "2 x MAX_POOL_2D, and 2 more types\n" in text


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
