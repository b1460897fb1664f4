"""What the tests share: where the committed models are, and where a larger collection may be.

``TFL_REWRITE_CORPUS`` names a folder of public models; the tests over it are skipped without it.
"""

from __future__ import annotations

import functools
import signal
import sys
from collections.abc import Callable, Generator
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import numpy.testing
import pytest
import threadpoolctl
from hypothesis import HealthCheck, settings

from .helpers import CORPUS, FIXTURES, NO_CORPUS, ROOT

# What a shell starts in the background ignores SIGINT, what nohup starts SIGHUP, and so would all that the
# tests send them to.
for number, heard in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, heard)


# How long an example takes to make tells how busy the machine is.
settings.register_profile("any load", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any load")

# Both run programs of the system when they are first used: now, before the tests are watched.
assert numpy.testing
threadpoolctl.threadpool_info()


def _models(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.tflite"))


def _corpus() -> list[object]:
    found: list[object] = list(_models(Path(CORPUS))) if CORPUS else []
    return found or [pytest.param(None, marks=pytest.mark.skip(reason=NO_CORPUS))]


# -- Two speeds ----------------------------------------------------------------------------------------------

STARTS = {"subprocess.Popen", "os.posix_spawn", "os.fork", "os.forkpty", "os.system", "os.exec"}
INTERPRETERS = {
    "ai_edge_litert.interpreter": "Interpreter",
    "ai_edge_litert.compiled_model": "CompiledModel",
}


class Watch:
    """What the test that runs has started, which only tests with a mark may.

    So the tests without a mark stay those that need no interpreter.
    """

    def __init__(self) -> None:
        self.started: list[str] = []
        self._patched: set[str] = set()
        sys.addaudithook(self._hear)
        # No event tells of these.
        BaseProcess.start = self._counting(BaseProcess.start, "a process of multiprocessing")

    def _hear(self, event: str, arguments: tuple[object, ...]) -> None:
        if event in STARTS:
            self.started.append(f"{event} {arguments[1:2]}"[:200])
        elif event == "import" and arguments[0] in INTERPRETERS:
            self.started.append(f"import of {arguments[0]}")

    def see_interpreters(self) -> None:
        """Notices interpreters in this process, too, from when their module is loaded."""
        for module in INTERPRETERS.keys() - self._patched:
            if module in sys.modules:
                self._patched.add(module)
                kind = getattr(sys.modules[module], INTERPRETERS[module])
                kind.__init__ = self._counting(kind.__init__, "an interpreter in this process")

    def _counting(self, build: Callable[..., None], what: str) -> Callable[..., None]:
        @functools.wraps(build)
        def counted(*arguments: object, **options: object) -> None:
            self.started.append(what)
            build(*arguments, **options)

        return counted


WATCH = Watch()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of every public model are slow, because there may be many.

    Those of the whole corpus come first: one of them takes longer than most modules, and at the end the other
    worker would wait for it.
    """
    for item in items:
        if "public" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: item.path.name != "test_corpus.py")


def pytest_runtest_setup() -> None:
    WATCH.see_interpreters()
    WATCH.started.clear()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Fails a test without a mark that needs one."""
    result = yield
    if item.get_closest_marker("runtime") or item.get_closest_marker("slow"):
        return result
    if WATCH.started:
        started = "; ".join(WATCH.started[:3])
        pytest.fail(
            f"runs something else: mark it runtime (an interpreter) or slow: {started}", pytrace=False
        )
    return result


# -- Fixtures ------------------------------------------------------------------------------------------------


def _stem(path: object) -> str:
    return path.stem if isinstance(path, Path) else "none"


@pytest.fixture(autouse=True)
def _quiet_however_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands that run in this process say nothing of their progress, which depends on the machine."""
    monkeypatch.setattr("tfl_rewrite.cli.progress.AFTER_SECONDS", 1e6)


@pytest.fixture(autouse=True)
def _none_is_loaded_early(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A runtime is loaded while others work, which tests that stop before it is used need not wait for."""
    if not (request.node.get_closest_marker("runtime") or request.node.get_closest_marker("slow")):
        monkeypatch.setattr("tfl_rewrite.interpreter.process.warm", lambda _runtime: None)


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
