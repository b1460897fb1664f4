"""What the tests share: where the committed models are, and where a larger collection may be.

``TFL_REWRITE_CORPUS`` names a folder of public models; the tests over it are skipped without it.
"""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest

from .helpers import CORPUS, FIXTURES, NO_CORPUS, ROOT

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # What a shell starts in the background ignores SIGINT, and so would all that the tests send it to.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _models(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.tflite"))


def _corpus() -> list[object]:
    found: list[object] = list(_models(Path(CORPUS))) if CORPUS else []
    return found or [pytest.param(None, marks=pytest.mark.skip(reason=NO_CORPUS))]


def _stem(path: object) -> str:
    return path.stem if isinstance(path, Path) else "none"


@pytest.fixture(autouse=True)
def _quiet_however_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands that run in this process say nothing of their progress, which depends on the machine."""
    monkeypatch.setattr("tfl_rewrite.cli.waiting.AFTER_SECONDS", 1e6)


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def fixtures() -> Path:
    """The folder of committed models."""
    return FIXTURES


@pytest.fixture(
    scope="session", params=[*_models(FIXTURES), FIXTURES / "external_buffers" / "model.tflite"], ids=_stem
)
def sound(request: pytest.FixtureRequest) -> Path:
    """Each committed model that is as it should be."""
    path: Path = request.param
    return path


@pytest.fixture(scope="session", params=_models(FIXTURES / "malformed"), ids=_stem)
def malformed(request: pytest.FixtureRequest) -> Path:
    """Each committed file that is not."""
    path: Path = request.param
    return path


@pytest.fixture(scope="session", params=_corpus(), ids=_stem)
def public(request: pytest.FixtureRequest) -> Path:
    """Each model of the larger collection."""
    path: Path = request.param
    return path


@pytest.fixture
def few(fixtures: Path, tmp_path: Path) -> Path:
    """Twenty-four images to calibrate on; none of them is among those that results are judged by."""
    path = tmp_path / "few.npz"
    with np.load(fixtures / "inputs" / "digits_calib.npz") as held:
        np.savez(path, **{name: held[name][:24] for name in held.files})
    return path
