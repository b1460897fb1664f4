"""Files that tests of the program start from."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def dense(fixtures: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(fixtures / "dense.tflite", tmp_path / "in.tflite"))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "out.tflite"
