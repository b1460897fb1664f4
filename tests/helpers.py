"""What tests of all rooms share: places, the larger collection of models, and the programs under scripts/."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent
FIXTURES = ROOT / "fixtures"
SCRIPTS = ROOT / "scripts"
CORPUS = os.environ.get("TFL_REWRITE_CORPUS")
NO_CORPUS = "TFL_REWRITE_CORPUS does not name a folder of models"


def script(name: str) -> ModuleType:
    """A program of scripts/, or a module that those programs share, imported as they import each other.

    The folder stays on the path, because processes that a program starts import it again by its name.
    """
    if str(SCRIPTS) not in sys.path:
        sys.path.append(str(SCRIPTS))
    return importlib.import_module(name)


def run_script(name: str, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """Runs a program of scripts/ as a user does."""
    return subprocess.run(
        [sys.executable, str(SCRIPTS / name), *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
