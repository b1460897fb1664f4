"""Imports inside the package point upward in the list of layers only."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = "tfl_rewrite"
# From the top down: a layer may import from itself and from those above.
LAYERS = (
    ("errors", "limits", "locks", "patterns", "signals", "toml_files", "work"),
    ("flatbuf",),
    ("claims", "foreign", "container", "landing"),
    ("model",),
    ("kernels", "operator_facts", "packed_kernels"),
    ("quant",),
    ("passes",),
    ("verify", "verification"),
    ("positions",),
    ("storage",),
    ("calibration",),
    (
        "inspection",
        "judging",
        "api",
        "blaming",
        "bodies",
        "byte_accounts",
        "checking",
        "damage",
        "diffing",
        "media_metadata",
        "model_pairs",
        "opening",
        "value_changes",
    ),
    ("rewriting",),
    ("shards", "catalog", "rounding_search", "diagnosis"),
    ("shrinking",),
    ("batch",),
    ("cli",),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
# The judge shares no code with the accused.
JUDGE = ("verify", "verification")
# The public names stand at the top of the package and are loaded late.
FRONT = ("__init__", "__main__")
HERE = Path(__file__).resolve().parent.parent / PACKAGE
MODULES = sorted(path.relative_to(HERE) for path in HERE.rglob("*.py"))


def layer_of(module: Path) -> str:
    return module.parts[0] if len(module.parts) > 1 else module.stem


def imports(module: Path) -> Iterator[tuple[int, str]]:
    """Yields the line and the layer of each import from the package, wherever in the module it stands."""
    for node in ast.walk(ast.parse((HERE / module).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            # One dot is the module's own package, each further dot the one around it.
            package = (
                [PACKAGE, *module.parts[:-1]][: len(module.parts) + 1 - node.level] if node.level else []
            )
            base = ".".join([*package, *([node.module] if node.module else [])])
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            first, _, rest = name.partition(".")
            if first == PACKAGE:
                yield node.lineno, rest.partition(".")[0]


def test_every_module_has_a_layer() -> None:
    assert len(MODULES) > 20
    assert {layer_of(module) for module in MODULES} <= {*LEVEL, *FRONT}


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_imports_point_upward(module: Path) -> None:
    own = layer_of(module)
    if own in FRONT:
        return
    for line, target in imports(module):
        if target == "__version__":
            continue
        assert target in LEVEL, f"{module}:{line} imports {target}, which is in no layer"
        assert LEVEL[target] <= LEVEL[own], f"{module}:{line} imports {target}, which is below it"
        if own in JUDGE:
            allowed = {own, "errors", "limits", "locks", "signals"}
            assert target in allowed, f"{module}:{line}: the judge imports {target}"


def test_judge_is_there_to_be_tested() -> None:
    assert any(layer_of(module) in JUDGE for module in MODULES)


@pytest.mark.parametrize("layer", ["errors", "flatbuf", "foreign", "container", "storage", "model"])
def test_lower_half_needs_no_numbers_and_no_interpreter(layer: str) -> None:
    for module in MODULES:
        if layer_of(module) != layer:
            continue
        for node in ast.walk(ast.parse((HERE / module).read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {"numpy", "ai_edge_litert", "tensorflow"} & {name.partition(".")[0] for name in names}
