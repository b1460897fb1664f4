"""The process that computes the user's own figure; arguments: ``MODULE:FUNCTION OUTPUTS REFERENCE``.

With the first alone it only looks whether there is such a function.

This file is a script, started by path. The module that the user named may lie in the current folder;
everything else, such as what has the name of a module of Python's own there, is not looked for in it first.
"""

from __future__ import annotations

import sys

if __name__ == "__main__" and not getattr(sys.flags, "safe_path", False):
    # The folder of this script would otherwise come first, and its neighbours shadow foreign modules.
    del sys.path[0]

import importlib
import importlib.machinery
import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import numpy as np


def find(what: str) -> Any:
    """Returns ``MODULE:FUNCTION``; the module of the current folder, or else an installed one."""
    name, _, function = what.partition(":")
    here = os.fspath(Path.cwd())
    # What the user's own module imports of its neighbours comes after all that is installed.
    sys.path.append(here)
    first = name.partition(".")[0]
    found = importlib.machinery.PathFinder.find_spec(first, [here])
    if found is not None and found.loader is not None:
        module = importlib.util.module_from_spec(found)
        sys.modules[first] = module
        found.loader.exec_module(module)
    return getattr(importlib.import_module(name), function)


def outputs(path: str) -> dict[str, Any]:
    """Reads the outputs of a model: arrays by number, and their names beside them."""
    names = json.loads(Path(f"{path}.json").read_text(encoding="utf-8"))
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[f"arr_{number}"] for number, name in enumerate(names)}


def main(what: str, made: str = "", reference: str = "") -> None:
    """Prints the figure, or null if it is no number."""
    sys.dont_write_bytecode = True
    function = find(what)
    if not callable(function):
        raise TypeError(f"{what} is no function")
    value = float(function(outputs(made), outputs(reference))) if made else 0.0
    print("\n" + json.dumps({"value": value if np.isfinite(value) else None}))


if __name__ == "__main__":
    main(*sys.argv[1:])
