"""Models that a kinds.stranger might send leave nothing behind, and who looks for it would see it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from ..helpers import script

strangers, kinds = script("strangers"), script("hostile.strangers")

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")


@pytest.mark.slow
def test_some_strangers(tmp_path: Path) -> None:
    outcomes, breaches, most = strangers.run(16, first=0, seed=7, jobs=1, limit=60.0, place=tmp_path)
    assert breaches == [] and sum(outcomes.values()) == 16
    assert 0 < most < strangers.MOST_MEMORY


def test_all_kinds_are_made_and_the_same_again() -> None:
    made = [kinds.stranger(Random(f"x/{number}")) for number in range(60)]
    assert made == [kinds.stranger(Random(f"x/{number}")) for number in range(60)]
    assert len(set(made)) == 60
    for kernel in kinds.KERNELS:
        assert b"TFL3" in kernel(Random(0))[:8]
    assert len(set(kinds.SPOILERS)) == 10


@pytest.mark.slow
def test_a_breach_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    play = strangers.Playground(tmp_path)
    deeds = """
import os, subprocess, sys, tempfile
from pathlib import Path
(Path.home() / ".bashrc").chmod(0o600)
tempfile.mkdtemp()
nowhere = subprocess.DEVNULL
subprocess.Popen(["sleep", "5"], start_new_session=True, stdout=nowhere, stderr=nowhere)
held = b"x" * (400 << 20)
Path(sys.argv[1]).write_text(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
print("Traceback", flush=True)
os._exit(1)
"""
    monkeypatch.setattr(strangers, "_MAIN", deeds)
    _, wrong, memory = play.run(b"", 30.0)
    told = " ".join(wrong)
    for text in (
        "exit code 1",
        "a traceback",
        "files were touched",
        "processes were left",
        "temporary files",
    ):
        assert text in told
    assert memory > strangers.MOST_MEMORY and "MB of memory" in told
    for pid in strangers.left_over(play.temporary):
        os.kill(pid, 9)


@pytest.mark.runtime
def test_models_are_written(tmp_path: Path) -> None:
    script = Path(strangers.__file__)
    command = [sys.executable, str(script), "--count", "3", "--first", "5", "--save", str(tmp_path / "made")]
    subprocess.run(command, check=True)
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == [
        f"0-{number}.tflite" for number in (5, 6, 7)
    ]
