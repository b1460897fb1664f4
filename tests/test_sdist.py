"""The source distribution holds what its tests need."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

# Built by a part of the repository that has no caches, and in this environment, not in a new one.
BUILD = "import sys; from setuptools import build_meta; print(build_meta.build_sdist(sys.argv[1]))"
NOT_SOURCES = shutil.ignore_patterns(
    ".git", "__pycache__", "*.egg-info", ".*_cache", ".venv", "build", "dist"
)


def run_in(folder: Path, *words: str) -> str:
    """Runs Python in a folder whose package is the one that is imported."""
    done = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_tests_run_from_the_unpacked_source_distribution(root: Path, tmp_path: Path) -> None:
    sources = shutil.copytree(root, tmp_path / "sources", ignore=NOT_SOURCES)
    name = run_in(sources, "-c", BUILD, str(tmp_path)).split()[-1]
    with tarfile.open(tmp_path / name) as archive:
        members = set(archive.getnames())
        archive.extractall(tmp_path / "unpacked")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    for folder in ("docs", "examples", "fixtures", "schema", "scripts", "tests", "tfl_rewrite"):
        held = [path.relative_to(sources) for path in (sources / folder).rglob("*") if path.is_file()]
        assert {f"{unpacked.name}/{path.as_posix()}" for path in held} <= members
    where = run_in(unpacked, "-c", "import tfl_rewrite; print(tfl_rewrite.__file__)")
    assert where.startswith(str(unpacked.resolve()))
    # Some that read the fixtures, and the schema.
    some = ("tests/flatbuf/test_schema.py", "tests/model/test_roundtrip.py")
    run_in(unpacked, "-m", "pytest", "-p", "no:cacheprovider", "-m", "not slow and not runtime", *some)
