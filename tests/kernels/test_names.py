"""What is known of an operator stands in its row: no other file spells the name of one."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import tfl_rewrite
from tfl_rewrite import load
from tfl_rewrite.interpreter.interface import CARRIERS, KEEPERS
from tfl_rewrite.judge.layers import HANDLES
from tfl_rewrite.kernels import runtimes, table
from tfl_rewrite.kernels.operators import SideEffect
from tfl_rewrite.kernels.table import ROWS
from tfl_rewrite.model.ir import schema

HERE = Path(tfl_rewrite.__file__).parent
NAMES = frozenset(schema().enums["BuiltinOperator"].values)
TABLE = "kernels/table.py"
# The judge shares no code with what it judges, so its wing may not ask the rows. The tests below compare.
WING = {
    "interpreter/interface.py": "which inputs are indices is found beside the runtime, without the rows",
    "judge/layers.py": "what an operator output is matched by does not come from the rewriter",
}
# Words that are the name of an operator by chance.
CHANCE = {("batch/config.py", "WHERE"): "a metavar"}


def spelled(source: str) -> Iterator[tuple[int, str]]:
    """Yields each builtin operator's name that stands in a program as text, with its line."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and node.value in NAMES:
            yield node.lineno, node.value


def test_names_are_found() -> None:
    source = 'KINDS = {"CONV_2D": 1}\nif name == "ADD":\n    """CONV_2D"""\n    say("ADD it", f"{x}ABS")\n'
    assert list(spelled(source)) == [(1, "CONV_2D"), (2, "ADD"), (3, "CONV_2D"), (4, "ABS")]


def test_only_the_table_spells_an_operators_name() -> None:
    found = {
        module: list(spelled((HERE / module).read_text(encoding="utf-8")))
        for module in sorted(path.relative_to(HERE).as_posix() for path in HERE.rglob("*.py"))
    }
    assert {name for _, name in found.pop(TABLE)} >= set(ROWS)
    assert all(found.pop(module) for module in WING), "an exception is needed no more"
    told = {(module, name): line for module, rows in found.items() for line, name in rows}
    assert told.keys() == CHANCE.keys(), told


def test_an_operator_has_one_row() -> None:
    tree = ast.parse((HERE / TABLE).read_text(encoding="utf-8"))
    rows = [
        node.args[0].value
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "OperatorRow"
        if isinstance(node.args[0], ast.Constant) and node.args[0].value
    ]
    assert len(rows) == len(set(rows)) == len(ROWS)


def test_the_judge_knows_the_same_handles_and_lookups() -> None:
    assert {name for name, row in ROWS.items() if row.handle} == HANDLES
    lookups = {name for name, row in ROWS.items() if row.looks_up_rows or row.table is not None}
    child = {name for _, name in spelled((HERE / "interpreter/interface.py").read_text(encoding="utf-8"))}
    assert child - CARRIERS == lookups


def test_the_judge_knows_who_keeps_state() -> None:
    for name, row in ROWS.items():
        runs = bool(runtimes.versions().get(name))
        if runs and (row.effect is SideEffect.STATE or row.calls):
            assert KEEPERS.fullmatch(name), name
    assert not {name for name in CARRIERS if KEEPERS.fullmatch(name)}


def test_options_tables_are_those_that_files_hold(sound: Path) -> None:
    for _, operator in load(sound).operators():
        row = table.row_of(operator)
        if operator.options is not None and row.options is not None:
            assert operator.options.spec.name == row.options, row.name


def test_options_tables_are_members_of_the_union() -> None:
    members = schema().enums["BuiltinOptions"].values
    assert {row.options for row in ROWS.values() if row.options is not None} <= set(members)
