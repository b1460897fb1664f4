"""What the tables of commands are made of: rows of arguments, and the groups that several commands share."""

from __future__ import annotations

import argparse
import functools
import importlib
from collections.abc import Callable, Collection
from dataclasses import field
from typing import TYPE_CHECKING, Any

from tfl_rewrite.options.frozen import frozen
from tfl_rewrite.options.option import NUMBER, RANGE, SWITCH, WHOLE, Option, Role, made_with, options_of

if TYPE_CHECKING:
    from tfl_rewrite.judge.settings import Judging


@frozen
class Argument:
    """One argument: its names, what argparse is to know of it, and what becomes of a file that it names."""

    names: tuple[str, ...]
    help: str
    extra: dict[str, Any] = field(default_factory=dict)
    role: Role | None = None


Groups = tuple[tuple[str, tuple[Argument, ...]], ...]
"""Titles, and the arguments below each."""


@frozen
class Command:
    """One subcommand.

    Attributes:
        description: What its help says first; of a command that is a pass, what the pass says.
        run: What carries it out: ``module:function`` of :mod:`tfl_rewrite.cli.commands`, loaded late.
        make: Makes its arguments, in groups: what they are made of may take long to import.
        examples: Calls of it, as a shell takes them.
    """

    name: str
    help: str
    description: str = ""
    run: str = "rewrite:rewrite_with_pass"
    make: Callable[[], Groups] = lambda: ()
    examples: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """What it does, in a few sentences."""
        if self.description:
            return self.description
        from tfl_rewrite.passes import catalog

        return catalog.description(catalog.find(self.name))

    @property
    def groups(self) -> Groups:
        """Its arguments, in groups."""
        return (*self.make(), ("talk", TALKING))

    @property
    def function(self) -> Callable[[argparse.Namespace], int]:
        """What carries it out."""
        module, _, name = self.run.partition(":")
        made: Callable[[argparse.Namespace], int] = getattr(
            importlib.import_module(f"tfl_rewrite.cli.commands.{module}"), name
        )
        return made


def flag(*names: str, help: str) -> Argument:
    """Returns the row of an option that is given or not."""
    return Argument(names, help, {"action": "store_true"})


def value(*names: str, help: str, role: Role | None = None, **extra: Any) -> Argument:
    """Returns the row of an argument with a value; ``extra`` is what argparse is to know of it."""
    return Argument(names, help, extra, role)


IN_OUT = (
    value("source", help="the .tflite file to read; it is not changed", metavar="IN", role=Role.READ),
    value("target", help="the .tflite file to write", metavar="OUT", role=Role.OUT),
)

REPORT = value("--report", help="write the whole report as JSON", metavar="FILE.json", role=Role.WRITE)

WRITING = (
    flag("--dry-run", help="do everything but the write"),
    flag("--force", help="overwrite files that exist, whichever it writes (OUT may be IN then)"),
    REPORT,
    value(
        "--threads",
        help="threads for measuring, rounding and writing (default: one per processor)",
        type=int,
        default=0,
    ),
)


def rows_of(
    made: Any, *, only: Collection[str] = (), without: Collection[str] = (), prefix: str = ""
) -> tuple[Argument, ...]:
    """Makes the rows of the options of a dataclass; what is not given has the value None.

    Args:
        made: The dataclass.
        only: Names of those that the command has; without any, all.
        without: Names of those that it has not.
        prefix: What the names of values begin with, where those of two dataclasses are the same.
    """
    return tuple(
        _row(item, prefix)
        for item in options_of(made)
        if (not only or item.name in only) and item.name not in without
    )


def _row(item: Option, prefix: str) -> Argument:
    extra: dict[str, Any] = {"dest": prefix + item.name, "default": None}
    if item.kind is SWITCH:
        extra["action"] = "store_false" if item.default else "store_true"
        return Argument(item.flags, item.help, extra, item.role)
    if item.kind.many:
        extra["action"] = "append"
    elif item.kind.read in (WHOLE.read, NUMBER.read, RANGE.read):
        extra["type"] = functools.partial(_read, item)
    # Values are checked where the object is made, so that all of them are refused in the same words.
    extra["metavar"] = item.metavar or (f"{{{','.join(item.choices)}}}" if item.choices else None)
    return Argument(item.flags, item.text, extra, item.role)


def _read(item: Option, text: str) -> Any:
    try:
        return item.kind.read(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} {error}") from None


def given(
    made: Any, arguments: argparse.Namespace, prefix: str = "", *, without: Collection[str] = ()
) -> dict[str, Any]:
    """Returns the options of a dataclass that were given, by name.

    Raises:
        UsageError: One of them has a value that it does not take.
    """
    values: dict[str, Any] = {}
    for item in options_of(made):
        value = getattr(arguments, prefix + item.name, None)
        if value is not None and item.name not in without:
            item.given(value)
            values[item.name] = value
    return values


def judging_of(arguments: argparse.Namespace) -> Judging:
    """Returns how a command is to judge, from its options."""
    from tfl_rewrite.judge.settings import Judging

    values = given(Judging, arguments)
    if getattr(arguments, "blame_out", None) is not None:
        values["blame"] = True
    return made_with(Judging, values)


BLAME_OUT = value(
    "--blame-out",
    help="write that as node data for Model Explorer, over the graph of the rewritten file; implies --blame",
    metavar="FILE.json",
    default=None,
    role=Role.WRITE,
)


def judging(
    *, only: Collection[str] = (), without: Collection[str] = (), two_files: bool = False
) -> tuple[Argument, ...]:
    """Makes the rows that say how files are judged; some are for two files that are there already."""
    from tfl_rewrite.judge.settings import OF_TWO_FILES, Judging

    rows = rows_of(Judging, only=only, without=without if two_files else (*without, *OF_TWO_FILES))
    return (*rows, BLAME_OUT) if any(row.extra["dest"] == "blame" for row in rows) else rows


TALKING = (
    flag("--json", help="print the whole report as JSON, and nothing else"),
    flag("-q", "--quiet", help="print errors only"),
    Argument(("-v", "--verbose"), "print more; twice: tracebacks too", {"action": "count", "default": 0}),
)
