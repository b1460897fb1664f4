"""Tests stand where what they test stands, and import from helpers, never from other tests."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from .helpers import ROOT

HERE = ROOT / "tests"
MODULES = sorted(path.relative_to(HERE) for path in HERE.rglob("*.py"))
# About the whole, or about what stands beside the package.
WHOLE = {
    "test_api",
    "test_client",
    "test_corpus",
    "test_examples",
    "test_fixtures",
    "test_fixtures_malformed",
    "test_large",
    "test_layers",
    "test_layout",
    "test_lazy_imports",
    "test_own_pass",
    "test_scripts",
    "test_sdist",
}
# What is done to the whole, from outside.
SUBJECTS = {"faults", "hostile"}


def modules_imported(path: Path) -> Iterator[str]:
    """The dotted names that a file imports from or might import as modules, wherever it does so."""
    for node in ast.walk(ast.parse((HERE / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def test_folders_are_rooms_of_the_package() -> None:
    folders = {path.parts[0] for path in MODULES if len(path.parts) > 1}
    rooms = {path.name for path in (ROOT / "tfl_rewrite").iterdir() if path.is_dir()}
    assert len(folders) > 10 and not folders - rooms - SUBJECTS


def test_folders_are_packages() -> None:
    assert all(path.parent / "__init__.py" in MODULES for path in MODULES)


def test_loose_modules_are_about_the_whole() -> None:
    loose = {path.stem for path in MODULES if len(path.parts) == 1 and path.stem.startswith("test_")}
    alone = {f"test_{path.stem}" for path in (ROOT / "tfl_rewrite").glob("*.py")}
    assert loose - alone == WHOLE


def test_no_module_imports_a_test() -> None:
    assert [
        f"{path} imports {name}"
        for path in MODULES
        for name in modules_imported(path)
        if any(part.startswith("test_") for part in name.split("."))
    ] == []


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "SECURITY.md"])
def test_pages_name_files_that_are_there(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    named = set(re.findall(r"\b(?:tfl_rewrite|tests|scripts|fixtures|docs)/[\w/.]*\w/?|\.ci/run", text))
    assert len(named) >= 3
    assert not [name for name in named if not (ROOT / name).exists()]


def test_nothing_is_put_on_the_path() -> None:
    """One place does it, for the programs under scripts/."""
    assert "pythonpath" not in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    changers = {
        str(path)
        for path in MODULES
        if path.name != "test_layout.py"
        and any(word in (HERE / path).read_text(encoding="utf-8") for word in ("sys.path", "syspath_prepend"))
    }
    assert changers == {"helpers.py"}
