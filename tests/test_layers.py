"""Imports inside the package: only from the rooms above, never in a circle, and no private names."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = "tfl_rewrite"
# From the top down: a room may import from itself and from those above.
ROOMS = (
    "errors",
    "work",
    "flatbuf",
    "model",
    "files",
    "interpreter",
    "samples",
    "judge",
    "numerics",
    "kernels",
    "editing",
    "weights",
    "passes",
    "calibration",
    "reading",
    "pipeline",
    "search",
    "shards",
    "batch",
    "cli",
)
LEVEL = {name: level for level, name in enumerate(ROOMS)}
# The judge shares no code with the accused.
WING = ("interpreter", "samples", "judge")
WING_IMPORTS = {*WING, "errors", "work"}
LOOSE = {"__init__", "__main__", "errors", "work"}
# The public names stand at the top of the package and are loaded late.
FRONT = ("__init__", "__main__")
HERE = Path(__file__).resolve().parent.parent / PACKAGE
MODULES = sorted(path.relative_to(HERE) for path in HERE.rglob("*.py"))


class Import(NamedTuple):
    """One name that is imported: where, from which file, and the name in it (None for the file itself)."""

    line: int
    target: Path
    name: str | None


def room_of(module: Path) -> str:
    return module.parts[0] if len(module.parts) > 1 else module.stem


def file_of(dotted: list[str]) -> Path | None:
    """The file of a module of the package, by its name without that of the package."""
    place = Path(*dotted)
    for path in (place / "__init__.py", place.with_suffix(".py") if dotted else place):
        if path in FILES:
            return path
    return None


FILES = set(MODULES)


def imports(module: Path) -> Iterator[Import]:
    """Yields each import from the package, wherever in the module it stands."""
    for node in ast.walk(ast.parse((HERE / module).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [(alias.name.split("."), None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            # One dot is the module's own package, each further dot the one around it.
            package = (
                [PACKAGE, *module.parts[:-1]][: len(module.parts) + 1 - node.level] if node.level else []
            )
            base = [*package, *(node.module.split(".") if node.module else [])]
            names = [(base, alias.name) for alias in node.names]
        else:
            continue
        for base, name in names:
            if base[0] != PACKAGE:
                continue
            whole = file_of([*base[1:], name]) if name is not None else None
            found = whole or file_of(base[1:])
            assert found is not None, f"{module}:{node.lineno} imports {'.'.join(base)}, which is not there"
            yield Import(node.lineno, found, None if whole else name)


def circles(graph: dict[Path, set[Path]]) -> list[list[Path]]:
    """The groups of files of which each reaches each other (Tarjan's algorithm)."""
    index: dict[Path, int] = {}
    low: dict[Path, int] = {}
    stack: list[Path] = []
    found: list[list[Path]] = []

    def visit(node: Path) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(graph[node]):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            at = stack.index(node)
            if len(stack) - at > 1:
                found.append(sorted(stack[at:]))
            del stack[at:]

    for node in graph:
        if node not in index:
            visit(node)
    return found


def test_every_module_has_a_room() -> None:
    assert len(MODULES) > 100
    assert {room_of(module) for module in MODULES} == {*ROOMS, *FRONT}
    assert {module.stem for module in MODULES if len(module.parts) == 1} == LOOSE
    for folder in {module.parent for module in MODULES}:
        assert folder / "__init__.py" in FILES, f"{folder} is no package"


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_imports_point_upward(module: Path) -> None:
    own = room_of(module)
    if own in FRONT:
        return
    for line, target, name in imports(module):
        room = room_of(target)
        if room == "__init__" and name == "__version__":
            continue
        assert room in LEVEL, f"{module}:{line} imports {target}, which is in no room"
        assert LEVEL[room] <= LEVEL[own], f"{module}:{line} imports {target}, which is below it"
        if own in WING:
            assert room in WING_IMPORTS, f"{module}:{line}: the judge imports {target}"


def test_no_file_imports_itself_through_others() -> None:
    graph = {
        module: {item.target for item in imports(module) if item.target != module}
        for module in MODULES
        if room_of(module) not in FRONT
    }
    front = Path("__init__.py")
    # Of the front only the version is imported, which the test above holds.
    assert circles({module: targets - {front} for module, targets in graph.items()}) == []


def test_circles_are_found() -> None:
    one, two, three, four = (Path(f"{number}.py") for number in range(4))
    graph = {one: {two}, two: {three}, three: {two, four}, four: set()}
    assert circles(graph) == [[two, three]]


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_private_names_stay_at_home(module: Path) -> None:
    for line, target, name in imports(module):
        words = [name] if name is not None else [part.removesuffix(".py") for part in target.parts]
        for word in words:
            dunder = word.startswith("__") and word.endswith("__")
            assert dunder or not word.startswith("_"), f"{module}:{line} imports {word} of {target}"


def test_judge_is_there_to_be_tested() -> None:
    assert {room_of(module) for module in MODULES} >= set(WING)


@pytest.mark.parametrize("room", ["errors", "work", "flatbuf", "files", "model"])
def test_lower_half_needs_no_numbers_and_no_interpreter(room: str) -> None:
    for module in MODULES:
        if room_of(module) != room:
            continue
        for node in ast.walk(ast.parse((HERE / module).read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {"numpy", "ai_edge_litert", "tensorflow"} & {name.partition(".")[0] for name in names}
