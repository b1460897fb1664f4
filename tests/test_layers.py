"""Imports inside the package: only from the rooms above, never in a circle, and no private names."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest

from .helpers import script

house = script("house")

# From the top down: a room may import from itself and from those above.
ROOMS = (
    "errors",
    "work",
    "options",
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
    "integers",
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
WING_IMPORTS = {*WING, "errors", "work", "options"}
# The public names stand at the top of the package and are loaded late.
FRONT = house.FRONT


@pytest.fixture(scope="module")
def package() -> Any:
    """Every file of the package, parsed: by who runs these tests, not by all who collect them."""
    return house.Modules()


def room_of(module: Path) -> str:
    return module.parts[0] if len(module.parts) > 1 else module.stem


def test_every_module_has_a_room(package: Any) -> None:
    assert len(package.trees) > 100
    assert {room_of(module) for module in package.trees} == {*ROOMS, *FRONT}
    assert {module.stem for module in package.trees if len(module.parts) == 1} == {*FRONT, *house.LOOSE}
    for folder in {module.parent for module in package.trees}:
        assert folder / "__init__.py" in package.trees, f"{folder} is no package"


def test_imports_point_upward(package: Any) -> None:
    faults = []
    for module in package.trees:
        own = room_of(module)
        for line, target, name in () if own in FRONT else package.imports(module):
            room = room_of(target)
            if room == "__init__" and name in ("__version__", "late"):
                continue
            if room not in LEVEL:
                faults.append(f"{module}:{line} imports {target}, which is in no room")
            elif LEVEL[room] > LEVEL[own]:
                faults.append(f"{module}:{line} imports {target}, which is below it")
            elif own in WING and room not in WING_IMPORTS:
                faults.append(f"{module}:{line}: the judge imports {target}")
    assert faults == []


def test_no_file_imports_itself_through_others(package: Any) -> None:
    """Of the front only the version and ``late`` are imported, which the test above holds."""
    assert package.circles() == []


def test_circles_are_found() -> None:
    one, two, three, four = (Path(f"{number}.py") for number in range(4))
    graph = {one: {two}, two: {three}, three: {two, four}, four: set()}
    assert house.circles(graph) == [[two, three]]


def test_private_names_stay_at_home(package: Any) -> None:
    assert [text for module in package.trees for text in package.private_imports(module)] == []


def test_judge_is_there_to_be_tested(package: Any) -> None:
    assert {room_of(module) for module in package.trees} >= set(WING)


# Constants as arrays: loaded when somebody asks for one.
LATE = {Path("model/values.py")}


def without_types(tree: ast.Module) -> ast.Module:
    """The same without what only type checkers import."""
    kept = [
        node
        for node in tree.body
        if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test))
    ]
    return ast.Module(kept, [])


@pytest.mark.parametrize("room", ["errors", "work", "options", "flatbuf", "files", "model"])
def test_lower_half_needs_no_numbers_and_no_interpreter(package: Any, room: str) -> None:
    for module in package.trees:
        if room_of(module) != room or module in LATE:
            continue
        for node in ast.walk(without_types(package.trees[module])):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {"numpy", "ai_edge_litert", "tensorflow"} & {name.partition(".")[0] for name in names}
