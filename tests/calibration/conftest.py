"""Inputs that several of the tests here calibrate with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest


@pytest.fixture
def few(fixtures: Path, tmp_path: Path) -> Path:
    """Twenty-four images to calibrate on; none of them is among those that results are judged by."""
    path = tmp_path / "few.npz"
    with np.load(fixtures / "inputs" / "digits_calib.npz") as held:
        np.savez(path, **{name: held[name][:24] for name in held.files})
    return path
