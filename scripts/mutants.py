"""Changes single expressions of the package, and counts the changes that its tests notice.

    python scripts/mutants.py --tests tests/judge/test_compare.py -- tfl_rewrite/judge/compare.py

The tests are collected once. Then each mutant is a process that was forked from there: the changed code takes
the place of the old one in the functions that are loaded already, and the tests that call one of them run
until one fails. So a mutant costs what its tests cost, without the imports. Code outside of functions is not
changed.

Linux and Python 3.11 or newer. Every choice follows from ``--seed``.
"""

from __future__ import annotations

import argparse
import ast
import copy
import functools
import gc
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import pytest

Place = tuple[str, str]
"""File and qualified name of a function."""

COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv, ast.LShift: ast.RShift, ast.RShift: ast.LShift, ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd, ast.BitXor: ast.BitAnd, ast.Pow: ast.Mult,
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """One change.

    Attributes:
        place: The outermost function that it is in.
        tree: The module as it is.
        way: From the module to the node that goes, as fields and indices.
        old: That node.
        new: What comes in its place.
    """

    place: Place
    tree: ast.Module
    way: list[tuple[str, int | None]]
    old: ast.AST
    new: ast.AST

    @property
    def line(self) -> int:
        """Where the change is."""
        return int(getattr(self.old, "lineno", 0))

    def __str__(self) -> str:
        """The place, and the first line of both expressions."""
        old, new = (ast.unparse(item).split("\n", 1)[0] for item in (self.old, self.new))
        return f"{os.path.relpath(self.place[0])}:{self.line} {self.place[1]}: {old}  ->  {new}"

    def code(self) -> CodeType:
        """The function with the change.

        Raises:
            LookupError: It is none of the module's functions.
        """
        changed: Any = copy.deepcopy(self.tree)
        parent = changed
        for field, index in self.way[:-1]:
            parent = getattr(parent, field) if index is None else getattr(parent, field)[index]
        field, index = self.way[-1]
        new = ast.copy_location(copy.deepcopy(self.new), self.old)
        if index is None:
            setattr(parent, field, new)
        else:
            getattr(parent, field)[index] = new
        whole = compile(ast.fix_missing_locations(changed), self.place[0], "exec", dont_inherit=True)
        return code_of(whole, self.place[1])


KILLED, SLOW, UNFIT, UNREACHED = "killed", "killed: too slow", "not possible", "no test reaches it"
OUTCOMES = {0: "survives", 1: KILLED, -1: SLOW, 4: UNFIT}

# -- Changes -------------------------------------------------------------------------------------------------


def variants(node: ast.AST) -> Iterator[ast.AST]:
    """Yields what may stand in the place of a node."""
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        yield ast.Compare(node.left, [COMPARISONS[type(node.ops[0])]()], node.comparators)
    elif isinstance(node, ast.Compare):
        for index, op in enumerate(node.ops):
            ops = [*node.ops[:index], COMPARISONS[type(op)](), *node.ops[index + 1 :]]
            yield ast.Compare(node.left, ops, node.comparators)
    elif isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC:
        yield ast.BinOp(node.left, ARITHMETIC[type(node.op)](), node.right)
    elif isinstance(node, ast.AugAssign) and type(node.op) in ARITHMETIC:
        yield ast.AugAssign(node.target, ARITHMETIC[type(node.op)](), node.value)
    elif isinstance(node, ast.BoolOp):
        # Each operand left out, which is what a forgotten condition looks like.
        for index in range(len(node.values)):
            rest = [*node.values[:index], *node.values[index + 1 :]]
            yield rest[0] if len(rest) == 1 else ast.BoolOp(node.op, rest)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub)):
        yield node.operand
    elif isinstance(node, ast.IfExp):
        yield ast.IfExp(node.test, node.orelse, node.body)
    elif isinstance(node, (ast.If, ast.While)) and not isinstance(node.test, (ast.Compare, ast.Constant)):
        yield type(node)(ast.UnaryOp(ast.Not(), node.test), node.body, node.orelse)
    elif isinstance(node, ast.Constant) and type(node.value) in (bool, int, float):
        yield ast.Constant(not node.value if isinstance(node.value, bool) else node.value + 1)
    elif isinstance(node, ast.Raise) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)):
        yield ast.Pass()
    elif isinstance(node, ast.Return) and node.value is not None:
        if not (isinstance(node.value, ast.Constant) and node.value.value is None):
            yield ast.Return(None)
    elif isinstance(node, ast.Continue):
        yield ast.Break()
    elif isinstance(node, ast.Break):
        yield ast.Continue()


def _nodes(tree: ast.Module) -> Iterator[tuple[str, ast.AST, list[Any]]]:
    """Yields every node that may be changed: its function, itself, and the way to it from the module."""

    def inside(node: ast.AST, name: str, way: list[Any]) -> Iterator[tuple[str, ast.AST, list[Any]]]:
        for field, value in ast.iter_fields(node):
            if field in ("returns", "annotation", "decorator_list"):
                continue
            if field == "args" and not isinstance(node, ast.Call):
                continue  # Defaults are made outside of the function.
            if isinstance(node, ast.Raise) or isinstance(value, ast.JoinedStr):
                continue  # What an error says is for people.
            for index, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
                if isinstance(child, ast.AST):
                    here = [*way, (field, index)]
                    yield name, child, here
                    yield from inside(child, name, here)

    def outside(node: ast.AST, prefix: str, way: list[Any]) -> Iterator[tuple[str, ast.AST, list[Any]]]:
        for index, child in enumerate(getattr(node, "body", [])):
            here = [*way, ("body", index)]
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield from inside(child, prefix + child.name, here)
            elif isinstance(child, ast.ClassDef):
                yield from outside(child, f"{prefix}{child.name}.", here)

    yield from outside(tree, "", [])


def mutants(path: Path) -> list[Mutant]:
    """Every change of a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [
        Mutant((str(path), name), tree, way, node, new)
        for name, node, way in _nodes(tree)
        for new in variants(node)
    ]


# -- Code that takes the place of other code -----------------------------------------------------------------


def functions_of(paths: set[str]) -> dict[Place, list[FunctionType]]:
    """Every function that was made from files, however it is wrapped; not those inside of others."""
    found: dict[Place, list[FunctionType]] = {}
    for item in gc.get_objects():
        if isinstance(item, FunctionType) and "<locals>" not in item.__qualname__:
            path = item.__code__.co_filename
            if path in paths and item.__code__.co_qualname == item.__qualname__:
                found.setdefault((path, item.__qualname__), []).append(item)
    return found


def code_of(whole: CodeType, name: str) -> CodeType:
    """The code of a function of a module.

    Raises:
        LookupError: There is none of this name.
    """
    for item in whole.co_consts:
        if isinstance(item, CodeType):
            if item.co_qualname == name:
                return item
            if name.startswith(item.co_qualname + "."):
                return code_of(item, name)
    raise LookupError(name)


def forget_results() -> None:
    """Empties caches of results, so that changed code is asked again."""
    for item in gc.get_objects():
        if isinstance(item, functools._lru_cache_wrapper):
            item.cache_clear()


# -- Tests ---------------------------------------------------------------------------------------------------


class Session:
    """The plugin that has the tests, and runs them in forked processes.

    Args:
        work: What to do once the tests are collected.
    """

    def __init__(self, work: Callable[[Session, list[pytest.Item]], None]) -> None:
        self.work = work
        self.failed = False

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.failed = self.failed or report.failed

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        self.work(self, session.items)
        return True

    def run(self, items: list[pytest.Item]) -> bool:
        """Runs tests until one fails; whether all passed."""
        for item, after in zip(items, [*items[1:], None], strict=True):
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=after)
            if self.failed:
                return False
        return True


def forked(todo: Callable[[], int], seconds: float) -> int:
    """Runs a function in a process of its own, silently; its result, or -1 if that took too long."""
    process = os.fork()
    if not process:
        os.setsid()
        silent = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(silent, descriptor)
        status = 3
        try:
            status = todo()
        except BaseException:
            status = 1
        finally:
            os._exit(status)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else 1
        time.sleep(0.005)
    os.killpg(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return -1


def calls_of(plugin: Session, items: list[pytest.Item], paths: set[str]) -> dict[str, Any]:
    """Which test calls which functions, and how long it takes; found in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "calls.json"

        def todo() -> int:
            called: set[CodeType] = set()
            known: dict[CodeType, str] = {}
            rows = []

            def profile(frame: Any, event: str, _: object) -> None:
                if event == "call" and frame.f_code.co_filename in paths:
                    called.add(frame.f_code)

            forget_results()
            for item, after in zip(items, [*items[1:], None], strict=True):
                called.clear()
                before = time.process_time()
                sys.setprofile(profile)
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=after)
                sys.setprofile(None)
                forget_results()
                for code in called:
                    known.setdefault(code, code.co_qualname.split(".<locals>", 1)[0])
                names = sorted({(code.co_filename, known[code]) for code in called})
                rows.append([time.process_time() - before, plugin.failed, names])
                plugin.failed = False
            told.write_text(json.dumps(rows))
            return 0

        if forked(todo, 3600) != 0:
            sys.exit("the tests do not run as they are")
        return dict(zip([item.nodeid for item in items], json.loads(told.read_text()), strict=True))


def judge(options: argparse.Namespace, plugin: Session, items: list[pytest.Item]) -> None:
    """Tries the mutants and prints those that no test notices."""
    paths = [str(Path(path).resolve()) for path in options.paths]
    calls = calls_of(plugin, items, set(paths))
    for name, (_, failed, _) in calls.items():
        if failed:
            print(f"left out, because it fails as it is while calls are recorded: {name}")
    items = [item for item in items if not calls[item.nodeid][1]]
    every = [one for path in paths for one in mutants(Path(path))]
    chosen = every
    if options.count is not None and options.count < len(every):
        chosen = random.Random(options.seed).sample(every, options.count)
    functions = functions_of(set(paths))
    outcomes: Counter[str] = Counter()
    begin = time.monotonic()
    for mutant in sorted(chosen, key=lambda one: (one.place, one.line)):
        if options.minutes is not None and time.monotonic() - begin > 60 * options.minutes:
            print(f"out of time: {len(chosen) - outcomes.total()} are left")
            break
        useful = [item for item in items if list(mutant.place) in calls[item.nodeid][2]]
        useful.sort(key=lambda item: calls[item.nodeid][0])
        takes = sum(calls[item.nodeid][0] for item in useful)
        outcome = UNREACHED
        if useful:
            trial = functools.partial(_try, plugin, mutant, functions, useful)
            outcome = OUTCOMES[forked(trial, 20 + 20 * takes)]
        outcomes[outcome] += 1
        if outcome not in (KILLED, SLOW):
            print(f"{outcome}: {mutant}", flush=True)
    tried = outcomes.total() - outcomes[UNFIT]
    killed = outcomes[KILLED] + outcomes[SLOW]
    print(f"{killed} of {tried} mutants are noticed ({killed / max(tried, 1):.1%}):", dict(outcomes))
    print(f"{len(every)} are possible in {', '.join(map(os.path.relpath, paths))}; {len(items)} tests")


def _try(
    plugin: Session, mutant: Mutant, functions: dict[Place, list[FunctionType]], items: list[pytest.Item]
) -> int:
    try:
        code = mutant.code()
        for function in functions[mutant.place]:
            function.__code__ = code
    except (SyntaxError, LookupError, ValueError):
        return 4
    forget_results()
    return 0 if plugin.run(items) else 1


def main() -> int:
    """Prints the mutants that survive, and how many do not."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("paths", nargs="+", metavar="FILE", help="files of the package to change")
    parser.add_argument("--tests", action="append", required=True, metavar="PATH", help="tests that judge")
    parser.add_argument("--mark", default="not slow and not runtime", help="which of them (%(default)s)")
    parser.add_argument("--count", type=int, help="a sample of so many mutants; all by default")
    parser.add_argument("--seed", type=int, default=0, help="of the sample (%(default)s)")
    parser.add_argument("--minutes", type=float, help="stop after so many minutes")
    options = parser.parse_args()
    if sys.version_info < (3, 11) or sys.platform == "win32":
        print("mutants.py needs Python 3.11 or newer, and fork", file=sys.stderr)
        return 2
    plugin = Session(lambda session, items: judge(options, session, items))
    without = [word for name in ("cacheprovider", "xdist", "terminal") for word in ("-p", f"no:{name}")]
    command = [*without, "--hypothesis-seed=0", "-o", "addopts=", "-m", options.mark]
    return int(pytest.main([*command, *options.tests], plugins=[plugin]))


if __name__ == "__main__":
    sys.exit(main())
