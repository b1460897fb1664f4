"""The pass of another package under examples/: installed, found by its name, and shown by its page."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import tfl_rewrite


def blocks(page: Path, kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)


def test_the_page_shows_the_package(root: Path) -> None:
    package, page = root / "examples" / "short_names", root / "docs" / "write-a-pass.md"
    assert blocks(page, "python")[0] == (package / "short_names.py").read_text("utf-8")
    assert blocks(page, "toml") == [(package / "pyproject.toml").read_text("utf-8")]


@pytest.fixture(scope="module")
def installed(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a process that has it; pip works on a copy, so that nothing is left here."""
    place = tmp_path_factory.mktemp("installed")
    copy = place / "source"
    copy.mkdir()
    for path in (root / "examples" / "short_names").glob("*.*"):
        (copy / path.name).write_bytes(path.read_bytes())
    options = ["--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--target", str(place / "site")]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(copy)], check=True, timeout=120)
    return {**os.environ, "PYTHONPATH": str(place / "site")}


def call(environment: dict[str, str], *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, arguments)], env=environment, capture_output=True, text=True, timeout=120
    )


@pytest.mark.slow
def test_the_command_line_finds_it(installed: dict[str, str], fixtures: Path, tmp_path: Path) -> None:
    source, target = fixtures / "digits_cnn.tflite", tmp_path / "out.tflite"
    done = call(installed, "-m", "tfl_rewrite", "passes")
    assert "short-names" in done.stdout and "tfl-short-names" in done.stdout
    asked = "short-names:prefix=x,least=200"
    done = call(installed, "-m", "tfl_rewrite", "run", source, target, "--pass", asked)
    assert done.returncode == 0, done.stderr
    pairs = [
        (old.name, new.name)
        for old, new in zip(
            *(tfl_rewrite.load(path).subgraphs[0].tensors for path in (source, target)), strict=True
        )
    ]
    assert {len(old) >= 200 for old, new in pairs if new != old} == {True}
    assert all(re.fullmatch(r"x\d+", new) for old, new in pairs if new != old)
    other = tmp_path / "other.tflite"
    done = call(installed, "-m", "tfl_rewrite", "run", source, other, "--pass", "short-names:prefx=x")
    assert done.returncode == 2 and "did you mean 'prefix'" in done.stderr


@pytest.mark.slow
def test_python_takes_it(installed: dict[str, str], root: Path, fixtures: Path, tmp_path: Path) -> None:
    (tmp_path / "model.tflite").write_bytes((fixtures / "digits_cnn.tflite").read_bytes())
    (program,) = blocks(root / "docs" / "write-a-pass.md", "python")[1:]
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=installed,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (0, "rewritten pass\n"), done.stderr
    assert tfl_rewrite.diff(tmp_path / "model.tflite", tmp_path / "renamed.tflite").nbytes_after < 102_424
