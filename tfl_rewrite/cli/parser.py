"""The parser of the command line, made from the rows of commands."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from tfl_rewrite.cli.commands.rows import COMMANDS, commands_of_passes
from tfl_rewrite.cli.options import Argument, Command
from tfl_rewrite.cli.text import print_lines
from tfl_rewrite.errors import UsageError, near_names

_EXAMPLES = "examples:"
BY_NAME = {command.name: command for command in COMMANDS}

EXIT_CODES = (
    "Exit codes: 0 done, or nothing to do; 2 usage, or a file cannot be read or written; 3 refused as "
    "unsupported, or UNVERIFIED or not proven where --verify require or verify --require asks for that; 4 a "
    "judgement failed: outputs differ beyond the tolerance, no file that keeps the budget is as small as was "
    "asked for, or doctor found an error; 5 the input is damaged or unsound; 130 interrupted (143 by "
    "SIGTERM, 129 by SIGHUP). No model is written unless it is 0; batch keeps the files that are done."
)
"""What each means; 1 is never meant."""


def parser(version: str, argv: Sequence[str], *, whole: bool = False) -> argparse.ArgumentParser:
    """Builds the parser from the rows.

    Args:
        version: What ``--version`` prints.
        argv: The arguments: only the command that they name gets its own.
        whole: Whether every command gets its own, whatever the arguments are.
    """
    top = _Parser(
        prog="tfl-rewrite",
        description="Rewrites somebody else's .tflite file: smaller, nothing lost, verified by running it "
        "before and after.",
        epilog=EXIT_CODES,
    )
    top.add_argument("--version", action="version", version=version)
    parts = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    asked = next((word for word in argv if not word.startswith("-")), "")
    if whole or (asked not in BY_NAME and "--version" not in argv):
        commands()
    # What comes first settles it: the others are neither met nor listed.
    first = BY_NAME.get(argv[0]) if argv and not whole else None
    for command in BY_NAME.values() if first is None else [first]:
        if command.name not in argv and not whole:
            parts.add_parser(command.name, help=command.help)
            continue
        groups = command.groups
        made = parts.add_parser(
            command.name,
            help=command.help,
            description=command.text,
            epilog=_EXAMPLES + "\n  ".join(["", *command.examples]) if command.examples else None,
            formatter_class=_Formatter,
        )
        # A range may begin with a negative number, as in --input-range -1,1.
        made._negative_number_matcher = re.compile(r"^-\.?\d")
        for title, arguments in groups:
            if arguments:
                _add(made.add_argument_group(title), arguments)
    return top


def commands() -> list[Command]:
    """Returns all of them, those that are a pass of the catalogue too: these before what runs several."""
    names = list(BY_NAME)
    last = {name: BY_NAME.pop(name) for name in names[names.index("run") :]}
    BY_NAME.update((command.name, command) for command in commands_of_passes([*BY_NAME, *last]))
    BY_NAME.update(last)
    return list(BY_NAME.values())


class _Formatter(argparse.HelpFormatter):
    """One that leaves the lines of examples as they are, and names no option twice."""

    def _format_usage(self, usage: Any, actions: Any, groups: Any, prefix: Any) -> str:
        plain = [action for action in actions if not action.option_strings]
        return f"{super()._format_usage(usage, plain, (), prefix).rstrip()} [OPTION...]\n\n"

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if text.startswith(_EXAMPLES) else super()._fill_text(text, width, indent)


class _Parser(argparse.ArgumentParser):
    """One whose errors are raised as all others are, and name what is near."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Reads the arguments; of an option that does not exist, the nearest one is named."""
        arguments, rest = self.parse_known_args(args, namespace)
        if rest:
            command = BY_NAME[arguments.command]
            known = [name for _, group in command.groups for row in group for name in row.names]
            near = near_names(rest[0].partition("=")[0], [name for name in known if name.startswith("--")])
            meant = f"; did you mean {near[0]}?" if near else ""
            self.prog = f"{self.prog} {command.name}"
            self.error(f"unrecognized arguments: {' '.join(rest)}{meant}")
        return arguments

    def _print_message(self, message: str, file: Any = None) -> None:
        """Prints a help text or the version; argparse itself would not say that it cannot.

        Raises:
            FileAccessError: Standard output is closed, or cannot be written.
        """
        if file is sys.stdout:
            print_lines(message.splitlines(), plain=True)
        else:
            super()._print_message(message, file)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.dest == "command" and value not in BY_NAME:
            near = near_names(str(value).lower().replace("_", "-"), BY_NAME, count=1)
            meant = f"; did you mean {near[0]!r}?" if near else ""
            raise argparse.ArgumentError(None, f"command {value!r:.80} is unknown{meant}")
        super()._check_value(action, value)

    def error(self, message: str) -> NoReturn:
        """Says what is wrong with the arguments.

        Raises:
            UsageError: Always.
        """
        remedy = f"'{self.prog} --help' lists what there is"
        raise (
            UsageError(f"{message} {remedy}") if message.endswith("?") else UsageError(message, remedy=remedy)
        )


class _Once(argparse.Action):
    """An option with one value; of two, one would be without effect."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: Any = None
    ) -> None:
        given: set[str] = vars(namespace).setdefault("_given", set())
        if self.dest in given:
            raise argparse.ArgumentError(self, "is given twice, and takes one value")
        given.add(self.dest)
        setattr(namespace, self.dest, values)


def _add(group: argparse._ArgumentGroup, arguments: Sequence[Argument]) -> None:
    for argument in arguments:
        extra = argument.extra
        if argument.names[0].startswith("-"):
            extra = {"action": _Once, **extra}
        made = group.add_argument(*argument.names, help=argument.help.replace("%", "%%"), **extra)
        # For the completion of file names.
        made.role = argument.role  # type: ignore[attr-defined]
