"""Measures how the package is built: files, lines, circles of imports, private imports, long functions.

Prints the figures, names what is beyond a limit, and ends with exit code 1 if such a thing is not among the
exceptions below. An exception that is none any more is a fault too, so that the list stays true.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

PACKAGE = "tfl_rewrite"
HERE = Path(__file__).resolve().parent.parent / PACKAGE
FRONT = ("__init__", "__main__")
LOOSE = ("errors", "work")

MOST_FILES = 265
"""No more than there are."""
AIMED_FILES = 165
"""What the design aimed at for 32,000 lines, 195 a file."""
MOST_FUNCTION_LINES = 60
MOST_LONG_FUNCTIONS = 5
MOST_PARAMETERS = 8
MOST_MODULE_LINES = 400

LONG_FUNCTIONS: dict[str, str] = {}
"""Functions of more lines, as ``file:name``, each with the reason why it stays whole."""
LONG_MODULES: dict[str, str] = {
    "batch/run.py": "a run of a batch and its executors share one state",
    "calibration/probe.py": "one copy of a model, with the process that runs its parts",
    "calibration/rounder.py": "one rounder, with each way to come to what it rounds for",
    "calibration/record.py": "one record of ranges: taken, kept and read back",
    "cli/commands/rows.py": "one row a command",
    "cli/render.py": "one report, in short and with its tables",
    "editing/editor.py": "one class with every edit that passes make",
    "editing/stages.py": "one class a stage, each with what numpy says of it",
    "files/atomic.py": "one promise: written aside, locked, renamed, and taken back on every way out",
    "files/source.py": "the way from a file to a model and back, with what bytes may be left out",
    "files/foreign.py": "one table of what files that are no models are, with how each is told",
    "integers/border.py": "one border: how its tensors hold values, and each change of that",
    "editing/size_rules.py": "one rule an operator, as one table",
    "integers/modes.py": "one decision, with each reason why an operator stays float",
    "interpreter/child.py": "one script that runs alone, without the package beside it",
    "interpreter/process.py": "one life of a process: started, spoken to, and how its death is named",
    "interpreter/sandbox.py": "one script that runs alone, with the table of system calls",
    "interpreter/worker.py": "one class with every request to the child",
    "judge/compare.py": "one comparison of an output, with each rule, of channels too",
    "judge/verdict.py": "what is said of files: of outputs, of ways to call them, of the whole",
    "judge/judge.py": "one verdict, from opening the original to naming what was not judged",
    "judge/layers.py": "one comparison, operator by operator, with how operators are matched",
    "judge/reference.py": "the outputs of the original, and what is known of their spread",
    "judge/routes.py": "one judgement, with how routes go on side by side",
    "judge/tally.py": "sums over samples of one output, and the rules over them",
    "kernels/integer.py": "the columns of integer kernels, each bound beside what it is for",
    "kernels/reads.py": "one language of terms: what versions need, and what TFLite Micro refuses",
    "kernels/table.py": "one row an operator",
    "model/ir.py": "the parts of a model, which name each other",
    "numerics/gptq.py": "one algorithm",
    "kernels/shapes.py": "a rule of some lines for each operator",
    "numerics/grids.py": "one algorithm with its bounds",
    "numerics/moments.py": "one statistic with the ways to split it",
    "numerics/symmetric.py": "one form of integers, both ways",
    "options/option.py": "what an option is, and each kind of value that one may have",
    "passes/drop_channels.py": "one analysis of channels, with each kind of operator that they pass",
    "passes/quantize.py": "one pass: its options, and the order of what it does",
    "editing/makers.py": "one function an operator",
    "passes/remove_noops.py": "one rule a kind, over one index of the model",
    "pipeline/judges.py": "who judges a rewrite, and what each compares it with",
    "pipeline/verify.py": "one verdict on whole files: ranges, last operators, bodies by themselves",
    "pipeline/rewrite.py": "five functions that each take what the one before made",
    "reading/diff.py": "one comparison of two files, with its own helpers",
    "reading/inspect.py": "one look into a file: its parts, its bytes, its values",
    "reading/findings.py": "one row a finding; nearly all of it is text",
    "passes/quantize_weights.py": "one pass: its options, and what carries its decisions out",
    "search/sensitivity.py": "one question, what an option costs at the outputs: measured, told, or hopeless",
    "search/shrink.py": "one search, from what was asked for to the file that the last verdict takes",
    "search/trials.py": "one store of what was tried",
    "shards/external.py": "one format, written and read",
    "shards/partition.py": "one line of operators, with each reason against a cut",
    "shards/split.py": "one way from a model to a folder of parts",
    "weights/candidates.py": "one question: which constants may change, with each reason why one stays",
    "weights/storage.py": "one notion: a form, what is decided of it, and when it is of no use",
    "weights/plan.py": "one decision, with each reason why a constant stays",
    "shards/rest.py": "one model in two: its base, and what the base lacks",
    "shards/web.py": "one client with every limit on what a server may do",
}
"""Modules of more lines, each with the reason why it stays one."""


class Import(NamedTuple):
    """One name that is imported: where, from which file, and the name in it (None for the file itself)."""

    line: int
    target: Path
    name: str | None


class Function(NamedTuple):
    """One function: its lines from ``def`` to the last one, and its parameters without ``self``."""

    place: str
    lines: int
    parameters: int


@dataclass
class Modules:
    """The files of the package, each parsed once."""

    here: Path = HERE
    trees: dict[Path, ast.Module] = field(init=False)
    lines: dict[Path, int] = field(init=False)
    _imports: dict[Path, list[Import]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        texts = {path.relative_to(self.here): path.read_text("utf-8") for path in self.here.rglob("*.py")}
        self.trees = {path: ast.parse(texts[path]) for path in sorted(texts)}
        self.lines = {path: texts[path].count("\n") for path in self.trees}

    def file_of(self, dotted: list[str]) -> Path | None:
        """The file of a module, by its name without that of the package."""
        place = Path(*dotted)
        for path in (place / "__init__.py", place.with_suffix(".py") if dotted else place):
            if path in self.trees:
                return path
        return None

    def imports(self, module: Path) -> list[Import]:
        """Returns each import from the package, wherever in the module it stands.

        Raises:
            LookupError: A module is imported that is not there.
        """
        if module not in self._imports:
            self._imports[module] = list(self._imports_in(module))
        return self._imports[module]

    def _imports_in(self, module: Path) -> Iterator[Import]:
        for node in ast.walk(self.trees[module]):
            if isinstance(node, ast.Import):
                names = [(alias.name.split("."), None) for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                # One dot is the module's own package, each further dot the one around it.
                parents = [PACKAGE, *module.parts[:-1]]
                package = parents[: len(module.parts) + 1 - node.level] if node.level else []
                base = [*package, *(node.module.split(".") if node.module else [])]
                names = [(base, alias.name) for alias in node.names]
            else:
                continue
            for base, name in names:
                if base[0] != PACKAGE:
                    continue
                whole = self.file_of([*base[1:], name]) if name is not None else None
                found = whole or self.file_of(base[1:])
                if found is None:
                    raise LookupError(f"{module}:{node.lineno} imports {'.'.join(base)}, which is not there")
                yield Import(node.lineno, found, None if whole else name)

    def private_imports(self, module: Path) -> list[str]:
        """Names with a leading underscore that a module imports from another."""
        found = []
        for line, target, name in self.imports(module):
            words = [name] if name is not None else [part.removesuffix(".py") for part in target.parts]
            for word in words:
                dunder = word.startswith("__") and word.endswith("__")
                if word.startswith("_") and not dunder:
                    found.append(f"{module}:{line} imports {word} of {target}")
        return found

    def circles(self) -> list[list[Path]]:
        """The groups of files of which each imports each other, directly or through others.

        What imports from the front is left out: the front imports everything, late.
        """
        inside = [module for module in self.trees if module.parts[0].removesuffix(".py") not in FRONT]
        front = Path("__init__.py")
        return circles(
            {module: {item.target for item in self.imports(module)} - {module, front} for module in inside}
        )

    def functions(self) -> Iterator[Function]:
        """Yields every function, those inside others too."""
        for module, tree in self.trees.items():
            yield from _functions(tree, f"{module}:", in_class=False)


def _functions(node: ast.AST, prefix: str, *, in_class: bool) -> Iterator[Function]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            place = prefix + child.name
            assert child.end_lineno is not None
            given = child.args
            count = len(given.posonlyargs) + len(given.args) + len(given.kwonlyargs)
            count += (given.vararg is not None) + (given.kwarg is not None)
            static = any(
                isinstance(item, ast.Name) and item.id == "staticmethod" for item in child.decorator_list
            )
            yield Function(place, child.end_lineno - child.lineno + 1, count - (in_class and not static))
            yield from _functions(child, place + ".", in_class=False)
        elif isinstance(child, ast.ClassDef):
            yield from _functions(child, prefix + child.name + ".", in_class=True)
        else:
            yield from _functions(child, prefix, in_class=in_class)


def circles(graph: dict[Path, set[Path]]) -> list[list[Path]]:
    """The groups of nodes of which each reaches each other (Tarjan's algorithm)."""
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


@dataclass(frozen=True)
class Row:
    """One figure: what is beyond its limit, by name, and what is wrong with that."""

    text: str
    named: list[str]
    faults: list[str]


def measured(modules: Modules) -> list[Row]:
    """Every figure that has a limit."""
    loose = [path.stem for path in modules.trees if len(path.parts) == 1 and path.stem not in FRONT]
    private = [text for module in modules.trees for text in modules.private_imports(module)]
    rings = [" -> ".join(map(str, ring)) for ring in modules.circles()]
    functions = sorted(modules.functions(), key=lambda item: (-item.lines, item.place))
    long = {item.place: item.lines for item in functions if item.lines > MOST_FUNCTION_LINES}
    wide = {item.place: item.parameters for item in functions if item.parameters > MOST_PARAMETERS}
    tall = {str(path): count for path, count in modules.lines.items() if count > MOST_MODULE_LINES}
    files, lines = len(modules.trees), sum(modules.lines.values())
    return [
        Row(
            f"{files:6} files, at most {MOST_FILES}; the aim is {AIMED_FILES}",
            [],
            [f"{files} files"] if files > MOST_FILES else [],
        ),
        Row(f"{lines:6} lines, {lines // files} a file", [], []),
        Row(
            f"{len(loose):6} loose modules: {', '.join(loose)}",
            [],
            [f"{name}.py stands in no room" for name in loose if name not in LOOSE],
        ),
        Row(f"{len(rings):6} circles of imports", rings, rings),
        Row(f"{len(private):6} private imports", private, private),
        _limited(f"functions over {MOST_FUNCTION_LINES} lines", long, LONG_FUNCTIONS, MOST_LONG_FUNCTIONS),
        _limited(f"functions with more than {MOST_PARAMETERS} parameters", wide, {}),
        _limited(f"modules over {MOST_MODULE_LINES} lines", tall, LONG_MODULES),
    ]


def _limited(text: str, found: dict[str, int], excepted: dict[str, str], most: int | None = None) -> Row:
    named = [
        f"{count:4} {name}" + (f": {excepted[name]}" if name in excepted else "")
        for name, count in sorted(found.items(), key=lambda item: -item[1])
    ]
    faults = [f"{name} is among the {text}, without a reason" for name in found if name not in excepted]
    faults += [
        f"{name} is excepted from the {text}, and is none of them" for name in excepted if name not in found
    ]
    if most is not None and len(found) > most:
        faults.append(f"{len(found)} {text}, at most {most}")
    return Row(f"{len(found):6} {text}", named, faults)


def main() -> int:
    """Prints the figures; 1 if one is beyond its limit."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--report", action="store_true", help="print only: exit code 0 whatever is found")
    options = parser.parse_args()
    rows = measured(Modules())
    for row in rows:
        print(row.text, *row.named, sep="\n        ")
    faults = [fault for row in rows for fault in row.faults]
    for fault in faults:
        print(f"house.py: {fault}", file=sys.stderr)
    return 1 if faults and not options.report else 0


if __name__ == "__main__":
    sys.exit(main())
