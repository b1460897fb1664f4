"""The two subcommands: exit codes, reports, and what is said."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tfl_rewrite import FormatError, UsageError, open_sharded
from tfl_rewrite.cli.main import main
from tfl_rewrite.shards import external, parts


def run(*arguments: object) -> int:
    return main([str(item) for item in arguments])


@pytest.fixture
def model(fixtures: Path) -> Path:
    return fixtures / "digits_cnn.tflite"


def test_there_and_back(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "r.json"
    assert run("shard", model, tmp_path / "s", "--max-size", "16KiB", "-v", "--report", report) == 0
    assert "verified: read back, equal" in capsys.readouterr().out
    data = json.loads(report.read_text())
    assert (data["schema"], data["command"], data["format"]) == (1, "shard", "parts")
    assert {item["status"] for item in data["files"]} == {"new"}
    report.unlink()
    assert run("join", tmp_path / "s" / "manifest.json", tmp_path / "out", "--report", report) == 0
    assert (tmp_path / "out").read_bytes() == model.read_bytes()
    assert data["sha256"] == json.loads(report.read_text())["sha256"]
    assert data["sha256"] in capsys.readouterr().out
    assert run("join", tmp_path / "s" / "manifest.json", tmp_path / "two", "-q") == 0
    assert capsys.readouterr() == ("", "")
    assert run("shard", model, tmp_path / "d", "--dry-run") == 0
    assert run("join", tmp_path / "s" / "manifest.json", tmp_path / "d", "--dry-run") == 0
    assert capsys.readouterr().out.count("dry run, not written") == 2 and not (tmp_path / "d").exists()


def test_a_dry_run_says_what_it_would_do(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("shard", model, tmp_path / "s", "--dry-run") == 0
    said = capsys.readouterr().out
    assert "would be written" in said and "files written" not in said


def test_the_model_of_shard_is_the_one_that_an_app_is_told(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("shard", model, tmp_path / "s") == 0
    sha256 = hashlib.sha256(model.read_bytes()).hexdigest()
    assert f"SHA-256 of the model: {sha256}" in capsys.readouterr().out


@pytest.mark.parametrize("what", ["manifest.json", "part"])
def test_join_never_replaces_what_it_reads(model: Path, tmp_path: Path, what: str) -> None:
    assert run("shard", model, tmp_path / "s", "-q") == 0
    own = next((tmp_path / "s").glob("*.part")) if what == "part" else tmp_path / "s" / what
    before = own.read_bytes()
    (tmp_path / "link").symlink_to(own)
    for target in (own, tmp_path / "link"):
        assert run("join", tmp_path / "s" / "manifest.json", target, "--force", "-q") == 2
        assert own.read_bytes() == before


def test_the_model_is_not_replaced_by_its_shards(model: Path, tmp_path: Path) -> None:
    own = tmp_path / "model.tflite"
    own.write_bytes(model.read_bytes())
    assert run("shard", own, tmp_path, "--format", "external", "--force", "-q") == 2
    assert run("shard", own, tmp_path, "--manifest", "model.tflite", "--force", "-q") == 2
    assert own.read_bytes() == model.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["model.tflite"]


def test_weights_beside_a_model_are_not_replaced_by_it(model: Path, tmp_path: Path) -> None:
    arguments = ("--format", "external", "--verify", "off", "-q")
    assert run("shard", model, tmp_path / "s", *arguments) == 0
    (weights,) = (tmp_path / "s").glob("*.bin")
    before = weights.read_bytes()
    assert run("join", tmp_path / "s" / "model.tflite", weights, "--force", "--verify", "off") == 2
    assert weights.read_bytes() == before


@pytest.mark.parametrize(("format", "entry"), [("parts", "manifest.json"), ("external", "model.tflite")])
def test_a_folder_is_told_what_to_name(
    model: Path, tmp_path: Path, format: str, entry: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("shard", model, tmp_path / "s", "--format", format, "--verify", "off", "-q") == 0
    assert run("join", tmp_path / "s", tmp_path / "out") == 2
    assert f"such as {tmp_path / 's' / entry}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("shard", "--min-snr", 30), "argument --min-snr: has no use here: parts"),
        (("shard", "--inputs", "no.npz"), "leave it out, or add --progressive"),
        (
            ("shard", "--format", "external", "--min-snr", 30),
            "argument --min-snr: has no use here: CompiledModel",
        ),
        (("join", "--samples", 2), "argument --samples: has no use here: parts"),
        (("join", "--sha256", "zz"), "argument --sha256: 'zz' is no SHA-256 of 64 hex digits"),
    ],
)
def test_how_to_judge_what_is_not_judged(
    model: Path, tmp_path: Path, words: tuple[object, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = model if words[0] == "shard" else tmp_path / "manifest.json", tmp_path / "out"
    assert run(words[0], source, target, *words[1:]) == 2
    assert said in capsys.readouterr().err and not target.exists()


def test_opening_takes_as_many_jobs_as_joining(model: Path, tmp_path: Path) -> None:
    assert run("shard", model, tmp_path / "s", "-q") == 0
    for jobs in (-1, 65):
        with pytest.raises(UsageError, match=f"jobs is {jobs}"):
            open_sharded(tmp_path / "s" / "manifest.json", jobs=jobs)


def test_an_error_of_a_part_names_the_manifest(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("shard", model, tmp_path / "s", "-q") == 0
    manifest = tmp_path / "s" / "manifest.json"
    part = next((tmp_path / "s").glob("*.part"))
    part.write_bytes(b"damaged!" + part.read_bytes()[8:])
    with pytest.raises(FormatError, match=f"{manifest}.*{part.name}"):
        open_sharded(manifest)
    assert run("join", manifest, tmp_path / "out") == 5
    said = capsys.readouterr().err
    assert str(manifest) in said and part.name in said


@pytest.mark.runtime
def test_external(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "r.json"
    arguments = ("--format", "external", "--verify", "require", "--samples", 1, "--report", report, "-v")
    assert run("shard", model, tmp_path / "e", *arguments) == 0
    assert "CompiledModel" in capsys.readouterr().out
    assert json.loads(report.read_text())["verdict"]["status"] == "pass"
    assert run("join", tmp_path / "e" / "model.tflite", tmp_path / "out", "-q", "--verify", "off") == 0
    assert "UNVERIFIED" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "what"),
    [
        (("shard", "{fixtures}/dense.tflite", "{tmp}/s", "--max-size", "big"), 2, "is not a number of bytes"),
        (("shard", "{tmp}/none.tflite", "{tmp}/s"), 2, "cannot read"),
        (("shard", "{fixtures}/dense.tflite", "{tmp}/no/s"), 2, "its folder does not exist"),
        (("shard", "{fixtures}/dense.tflite", "{fixtures}/dense.tflite"), 2, "is not a folder"),
        (("shard", "{fixtures}/svdf.tflite", "{tmp}/s", "--format", "external"), 3, "--format parts"),
        (
            ("shard", "{fixtures}/malformed/text.tflite", "{tmp}/s", "--format", "external"),
            5,
            "bytes of text",
        ),
        (("join", "{fixtures}/README.md", "{tmp}/o"), 5, "not a manifest"),
        (("join", "{tmp}/none.json", "{tmp}/o"), 2, "is missing"),
        (("join", "http://127.0.0.1:9/m.json", "{tmp}/o"), 2, "--allow-private"),
        (("join", "{fixtures}/dense.tflite", "{tmp}/o"), 2, "whole model already"),
        (("join", "{fixtures}/dense.tflite", "{tmp}/o", "--report", "{tmp}"), 2, "is a directory"),
    ],
)
def test_refusals(
    arguments: tuple[str, ...],
    code: int,
    what: str,
    fixtures: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    filled = [item.format(fixtures=fixtures, tmp=tmp_path) for item in arguments]
    assert run(*filled) == code
    shown = capsys.readouterr()
    assert what in shown.err and "Traceback" not in shown.err and not shown.out
    assert not list(tmp_path.iterdir())


@pytest.mark.runtime
def test_interrupted_and_different(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(parts.PartWriter, "_check", interrupted)
        assert run("shard", model, tmp_path / "s") == 130
    write = external._write

    def broken(file: Any, path: Path) -> None:
        write(file, path)
        path.write_bytes(bytes(path.stat().st_size))

    with monkeypatch.context() as patch:
        patch.setattr(external, "_write", broken)
        assert run("shard", model, tmp_path / "s", "--format", "external", "--samples", 1) == 4
    assert "FAIL" not in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.runtime
def test_pictures_judge_what_is_run(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 255, (8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    words = ("--inputs", folder, "--input-range", "0,1", "--verify", "require")
    assert run("shard", model, tmp_path / "e", "--format", "external", *words) == 0
    assert "on 2 real samples" in capsys.readouterr().out
    assert run("join", tmp_path / "e" / "model.tflite", tmp_path / "one", *words) == 0
    assert "on 2 real samples" in capsys.readouterr().out
    # Parts are compared byte by byte: nothing is run, so pictures have no use.
    assert run("shard", model, tmp_path / "p", "--manifest", "second", *words) == 2
    assert "argument --inputs: has no use here" in capsys.readouterr().err
