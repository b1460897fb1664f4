"""How tests call the program: in their process, or as a user does."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tfl_rewrite.cli import main

TOOL = str(Path(sys.executable).parent / "tfl-rewrite")
# A name that tries to write to the terminal.
ESCAPES = "\x1b[2J\x1b]0;owned\x07 ü \u202e \udc80 名"


def run(*arguments: str | Path, **more: Any) -> subprocess.CompletedProcess[bytes]:
    """Runs the installed program; what it says of its progress on a busy machine is left out."""
    done = subprocess.run(
        [TOOL, *map(str, arguments)],
        capture_output="stdout" not in more,
        check=False,
        timeout=120,
        **{"stdin": subprocess.DEVNULL, **more},
    )
    if done.stderr is not None:
        done.stderr = re.sub(rb"(?m)^tfl-rewrite: [^:\n]+ \.\.\.\n", b"", done.stderr)
    return done


def left(out: Path) -> list[str]:
    return sorted(path.name for path in out.parent.iterdir())


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Runs the program in this process: exit code, stdout, stderr."""
    try:
        code = main([*map(str, arguments)])
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    said = capsys.readouterr()
    assert "Traceback" not in said.out + said.err
    return code, said.out, said.err
