"""Changes single expressions of the package, and counts the changes that its tests notice.

    python scripts/mutants.py --tests tests/judge/test_compare.py -- tfl_rewrite/judge/compare.py

The tests are collected once. Then each mutant is a process that was forked from there: the changed code takes
the place of the old one in the functions that are loaded already, and the tests that reach the changed lines
run until one fails, the quickest first. So a mutant costs what its tests cost, without the imports. Code
outside of functions is not changed. Tests that draw examples draw ``--examples`` of them at most, so that the
share of those noticed is a lower bound.

Linux and Python 3.11 or newer. Every choice follows from ``--seed``.
"""

from __future__ import annotations

import argparse
import ast
import functools
import gc
import importlib
import json
import math
import os
import random
import resource
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, is_hypothesis_test, settings

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
        lines: The first and last line of its statement, without what stands inside.
        old: That node.
        new: What comes in its place.
    """

    place: Place
    tree: ast.Module
    way: list[tuple[str, int | None]]
    lines: tuple[int, int]
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
        """The function with the change, which the tree has from then on.

        Raises:
            LookupError: It is none of the module's functions.
        """
        parent: Any = self.tree
        for field, index in self.way[:-1]:
            parent = getattr(parent, field) if index is None else getattr(parent, field)[index]
        field, index = self.way[-1]
        new = ast.copy_location(self.new, self.old)
        if index is None:
            setattr(parent, field, new)
        else:
            getattr(parent, field)[index] = new
        whole = compile(ast.fix_missing_locations(self.tree), self.place[0], "exec", dont_inherit=True)
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


def _head(node: ast.stmt) -> tuple[int, int]:
    """The lines that run when a statement does, whatever comes of it."""
    body = getattr(node, "body", None)
    if not body:
        return node.lineno, node.end_lineno or node.lineno
    # The head of an endless loop makes no code.
    return node.lineno, max(node.lineno, body[0].lineno - (not isinstance(node, ast.While)))


Found = tuple[str, ast.AST, list[Any], tuple[int, int]]


def _nodes(tree: ast.Module) -> Iterator[Found]:
    """Yields every node that may be changed: its function, itself, the way to it, its statement's lines."""

    def inside(node: ast.AST, name: str, way: list[Any], lines: tuple[int, int]) -> Iterator[Found]:
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
                    span = _head(child) if isinstance(child, ast.stmt) else lines
                    yield name, child, here, span
                    yield from inside(child, name, here, span)

    def outside(node: ast.AST, prefix: str, way: list[Any]) -> Iterator[Found]:
        for index, child in enumerate(getattr(node, "body", [])):
            here = [*way, ("body", index)]
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield from inside(child, prefix + child.name, here, _head(child))
            elif isinstance(child, ast.ClassDef):
                yield from outside(child, f"{prefix}{child.name}.", here)

    yield from outside(tree, "", [])


def mutants(path: Path) -> list[Mutant]:
    """Every change of a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [
        Mutant((str(path), name), tree, way, lines, node, new)
        for name, node, way, lines in _nodes(tree)
        for new in variants(node)
    ]


# -- Code that takes the place of other code -----------------------------------------------------------------


def load(path: Path) -> None:
    """Imports a file of the package, which tests may import as late as they run."""
    for folder in map(Path, sys.path):
        if path.is_relative_to(folder):
            importlib.import_module(".".join(path.relative_to(folder).with_suffix("").parts))
            return


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


_CACHES: set[functools._lru_cache_wrapper[Any]] = set()
_LOADED: set[str] = set()


def forget_results() -> None:
    """Empties caches of results, so that changed code is asked again."""
    if sys.modules.keys() != _LOADED:
        _LOADED.update(sys.modules)
        _CACHES.update(item for item in gc.get_objects() if isinstance(item, functools._lru_cache_wrapper))
    for item in _CACHES:
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


def hasten(items: list[pytest.Item], examples: int) -> None:
    """Lets tests that draw examples draw few and look for no smaller one; failures are told in few words."""
    for item in items:
        item.config.option.tbstyle = "native"
        test: Any = getattr(item, "obj", None)
        if is_hypothesis_test(test):
            before = test._hypothesis_internal_use_settings
            test._hypothesis_internal_use_settings = settings(
                before,
                max_examples=min(examples, before.max_examples),
                phases=(Phase.explicit, Phase.generate),
                suppress_health_check=list(HealthCheck),
                database=None,
                deadline=None,
            )


def forked(todo: Callable[[], int], seconds: int) -> int:
    """Runs a function in a process of its own, silently.

    Returns:
        Its result, or -1 if it took more than so many seconds of a processor, or ten times as many at all.
    """
    process = os.fork()
    if not process:
        os.setsid()
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
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
    until = time.monotonic() + 10 * seconds
    while time.monotonic() < until:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            code = os.waitstatus_to_exitcode(status)
            return -1 if code == -signal.SIGXCPU else code if code >= 0 else 1
        time.sleep(0.005)
    os.killpg(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return -1


def lines_of(plugin: Session, items: list[pytest.Item], paths: set[str]) -> dict[str, Any]:
    """How long each test takes, whether it fails, which lines it reaches; found in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "lines.json"

        def todo() -> int:
            reached: set[tuple[str, int]] = set()

            def line(frame: Any, _event: str, _: object) -> Any:
                reached.add((frame.f_code.co_filename, frame.f_lineno))
                return line

            def trace(frame: Any, event: str, _: object) -> Any:
                return line(frame, event, None) if frame.f_code.co_filename in paths else None

            rows = []
            for item in items:
                forget_results()
                reached.clear()
                before = time.process_time()
                threading.settrace(trace)
                sys.settrace(trace)
                # As if it were the last, so that what it shares with others is made for each.
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
                sys.settrace(None)
                rows.append([time.process_time() - before, plugin.failed, sorted(reached)])
                plugin.failed = False
            told.write_text(json.dumps(rows))
            return 0

        if forked(todo, 3600) != 0:
            sys.exit("the tests do not run as they are")
        return dict(zip([item.nodeid for item in items], json.loads(told.read_text()), strict=True))


def judge(options: argparse.Namespace, plugin: Session, items: list[pytest.Item]) -> None:
    """Tries the mutants and prints those that no test notices."""
    paths = [str(Path(path).resolve()) for path in options.paths]
    hasten(items, options.examples)
    for path in paths:
        load(Path(path))
    rows = lines_of(plugin, items, set(paths))
    for name, (_, failed, _) in rows.items():
        if failed:
            print(f"left out, because it fails as it is while lines are recorded: {name}")
    items = [item for item in items if not rows[item.nodeid][1]]
    items.sort(key=lambda item: rows[item.nodeid][0])
    reaches: dict[tuple[str, int], set[str]] = {}
    for name, (_, _, reached) in rows.items():
        for path, line in reached:
            reaches.setdefault((path, line), set()).add(name)
    every = [one for path in paths for one in mutants(Path(path))]
    chosen = every
    if options.count is not None and options.count < len(every):
        chosen = random.Random(options.seed).sample(every, options.count)
    if options.again is not None:
        told = options.again.read_text()
        chosen = [mutant for mutant in every if str(mutant).split(" ", 1)[1] in told]
    functions = functions_of(set(paths))
    forget_results()
    gc.freeze()
    outcomes: Counter[str] = Counter()
    begin = time.monotonic()
    for mutant in sorted(chosen, key=lambda one: (one.place, one.line)):
        if options.minutes is not None and time.monotonic() - begin > 60 * options.minutes:
            print(f"out of time: {len(chosen) - outcomes.total()} are left")
            break
        first, last = mutant.lines
        names = set().union(*(reaches.get((mutant.place[0], at), ()) for at in range(first, last + 1)))
        useful = [item for item in items if item.nodeid in names]
        takes = sum(rows[item.nodeid][0] for item in useful)
        outcome = UNREACHED
        if useful:
            trial = functools.partial(_try, plugin, mutant, functions, useful)
            outcome = OUTCOMES[forked(trial, math.ceil(3 + 3 * takes))]
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
    parser.add_argument("--again", type=Path, metavar="FILE", help="only those that an earlier run printed")
    parser.add_argument("--examples", type=int, default=20, help="most that a test draws (%(default)s)")
    parser.add_argument("--minutes", type=float, help="stop after so many minutes")
    options = parser.parse_args()
    if sys.version_info < (3, 11) or sys.platform == "win32":
        print("mutants.py needs Python 3.11 or newer, and fork", file=sys.stderr)
        return 2
    plugin = Session(lambda session, items: judge(options, session, items))
    without = [word for name in ("cacheprovider", "xdist", "terminal") for word in ("-p", f"no:{name}")]
    command = [
        *without,
        "--assert=plain",
        "--hypothesis-seed=0",
        "-o",
        "addopts=",
        "-m",
        options.mark,
    ]
    return int(pytest.main([*command, *options.tests], plugins=[plugin]))


if __name__ == "__main__":
    sys.exit(main())
