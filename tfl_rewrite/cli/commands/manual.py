"""``help`` and ``completion``: what is made of the rows of all commands."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from tfl_rewrite import __version__
from tfl_rewrite.cli.options import TALKING, Argument
from tfl_rewrite.cli.parser import BY_NAME, EXIT_CODES, commands, parser
from tfl_rewrite.cli.text import print_lines
from tfl_rewrite.options.option import Role


def show_help(arguments: argparse.Namespace) -> int:
    """``tfl-rewrite help [COMMAND]``."""
    if arguments.man:
        if arguments.json:
            print_json({"man": "\n".join(man_page())})
        else:
            print_lines(man_page())
        return 0
    words = ["--help"] if arguments.topic is None else [arguments.topic, "--help"]
    if arguments.json:
        found = _parsers(parser(__version__, words))
        made = parser(__version__, words) if arguments.topic is None else found.get(arguments.topic)
        if made is not None:
            print_json({"help": made.format_help()})
            return 0
    # It ends the program by itself.
    parser(__version__, words).parse_args(words)
    return 0


def print_json(data: dict[str, str]) -> None:
    """Prints texts as JSON."""
    import json

    print_lines([json.dumps({"schema": 1, **data}, indent=2)])


def show_completion(arguments: argparse.Namespace) -> int:
    """``tfl-rewrite completion SHELL``."""
    import shtab

    from tfl_rewrite.passes import catalog

    made = parser(__version__, (), whole=True)
    names = {"topic": list(BY_NAME), "preset": list(catalog.PRESETS), "passes": list(catalog.NAMES)}
    for command, part in _parsers(made).items():
        part.description = BY_NAME[command].help
        for action in part._actions:
            metavar = action.metavar if isinstance(action.metavar, str) else ""
            if metavar.startswith("{"):
                action.choices = metavar[1:-1].split(",")
            elif action.dest in names:
                action.choices = names[action.dest]
            elif getattr(action, "role", None) is not None:
                action.complete = shtab.DIRECTORY if action.role is Role.FOLDER else shtab.FILE  # type: ignore[attr-defined]
            if ":" in metavar:
                # What stands behind a colon zsh would run.
                action.metavar = metavar.replace(":", " ")
    text = shtab.complete(made, arguments.shell)
    if arguments.json:
        print_json({arguments.shell: text})
    else:
        print_lines(text.splitlines())
    return 0


def _parsers(made: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Returns the parsers of the commands."""
    for action in made._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def man_page() -> list[str]:
    """Returns the manual page in the language of man(7)."""
    lines = [
        f'.TH TFL-REWRITE 1 "" "tfl-rewrite {__version__}" "User Commands"',
        ".SH NAME",
        "tfl-rewrite \\- rewrites a .tflite file, verified by running it before and after",
        ".SH SYNOPSIS",
        ".B tfl-rewrite",
        "COMMAND [ARGUMENT...] [OPTION...]",
        ".SH COMMANDS",
    ]
    for command in commands():
        lines += [f".SS {_roff(command.name)}", _roff(command.text)]
        for title, rows in command.groups:
            if rows is not TALKING:
                lines += [".PP", f".I {_roff(title)}", *_entries(rows)]
        if command.examples:
            lines += [".PP", ".I examples", ".nf", *map(_roff, command.examples), ".fi"]
    lines += [".SH OPTIONS OF ALL COMMANDS", *_entries(TALKING)]
    return [*lines, ".SH EXIT STATUS", _roff(EXIT_CODES)]


def _entries(rows: Sequence[Argument]) -> list[str]:
    lines = []
    for row in rows:
        names = ", ".join(row.names) if row.names[0].startswith("-") else str(row.extra.get("metavar"))
        metavar = row.extra.get("metavar") if row.names[0].startswith("-") else None
        lines += [".TP", f".B {_roff(names)}{f' {_roff(str(metavar))}' if metavar else ''}", _roff(row.help)]
    return lines


def _roff(text: str) -> str:
    """Returns plain text so that it stays what it is there: no line begins with a command."""
    plain = text.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{plain}" if plain.startswith((".", "'")) else plain
