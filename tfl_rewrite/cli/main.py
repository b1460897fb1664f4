"""Runs a subcommand and turns what happens into an exit code."""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from tfl_rewrite import __version__
from tfl_rewrite.cli.commands.rows import COMMANDS, commands_of_passes
from tfl_rewrite.cli.options import Argument, Command
from tfl_rewrite.errors import FormatError, TflRewriteError, near_names
from tfl_rewrite.options.option import unknown
from tfl_rewrite.work import blas_environment

_EXAMPLES = "examples:"
BY_NAME = {command.name: command for command in COMMANDS}

EXIT_CODES = (
    "Exit codes: 0 done, or nothing to do; 2 usage, or a file cannot be read or written; 3 refused as "
    "unsupported; 4 a judgement failed: outputs differ beyond the tolerance, no file keeps the budget, or "
    "doctor found an error; 5 the input is damaged or unsound; 130 interrupted (143 by SIGTERM, 129 by "
    "SIGHUP). No model is written unless it is 0; batch keeps the files that are done."
)
"""What each means; 1 is never meant."""


def parser(version: str, argv: Sequence[str]) -> argparse.ArgumentParser:
    """Builds the parser from the rows.

    Args:
        version: Of the program.
        argv: The arguments: only the command that they name gets its own.
    """
    top = _Parser(
        prog="tfl-rewrite",
        description="Rewrites somebody else's .tflite file: smaller, nothing lost, verified by running it "
        "before and after.",
        epilog=EXIT_CODES,
    )
    top.add_argument("--version", action="version", version=f"tfl-rewrite {version}")
    parts = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    asked = next((word for word in argv if not word.startswith("-")), "")
    if asked not in BY_NAME and "--version" not in argv:
        commands()
    for command in BY_NAME.values():
        if command.name not in argv:
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
    """Returns all of them, those that are a pass of the catalogue too."""
    BY_NAME.update((command.name, command) for command in commands_of_passes(BY_NAME))
    return list(BY_NAME.values())


class _Formatter(argparse.HelpFormatter):
    """One that leaves the lines of examples as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if text.startswith(_EXAMPLES) else super()._fill_text(text, width, indent)


class _Parser(argparse.ArgumentParser):
    """One whose errors are printed as all others are, and name what is near."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Reads the arguments; of an option that does not exist, the nearest one is named."""
        arguments, rest = self.parse_known_args(args, namespace)
        if rest:
            command = BY_NAME[arguments.command]
            known = [name for _, group in command.groups for row in group for name in row.names]
            near = near_names(rest[0].partition("=")[0], [name for name in known if name.startswith("--")])
            meant = f"; did you mean {near[0]}?" if near else ""
            self.error(f"unrecognized arguments: {' '.join(rest)}{meant}")
        return arguments

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.dest == "command" and value not in BY_NAME:
            raise argparse.ArgumentError(None, str(unknown("command", value, BY_NAME)))
        super()._check_value(action, value)

    def error(self, message: str) -> NoReturn:
        """Says what is wrong with the arguments, and ends the program."""
        from tfl_rewrite.cli.text import complain

        end = "" if message.endswith("?") else ";"
        complain(f"{message}{end} '{self.prog} --help' lists what there is", sys.argv[1:])
        self.exit(2)


def _add(group: argparse._ArgumentGroup, arguments: Sequence[Argument]) -> None:
    for argument in arguments:
        made = group.add_argument(*argument.names, help=argument.help.replace("%", "%%"), **argument.extra)
        # For the completion of file names.
        made.role = argument.role  # type: ignore[attr-defined]


_WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated", signal.SIGHUP: "hung up"}
"""Signals that end the program in order, and what is said of them.

Each unwinds as KeyboardInterrupt, so that files and children are cleaned up; its argument is the signal.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program.

    Args:
        argv: Arguments without the program's name; by default those of the process.

    Returns:
        The exit code of DESIGN's contract: 0, 2, 3, 4, 5, 129, 130, 143; 1 never on purpose.
    """
    with blas_environment(), warnings.catch_warnings():
        # What libraries warn programmers of is none of a user's business; who wants it says so to Python.
        if not sys.warnoptions:
            warnings.simplefilter("ignore")
        return _main(argv)


def _main(argv: Sequence[str] | None) -> int:
    previous = _on_terminate()
    unraisable, sys.unraisablehook = sys.unraisablehook, _send_again
    arguments = None
    try:
        given = sys.argv[1:] if argv is None else argv
        arguments = parser(__version__, given).parse_args(given)
        # Late, so that --version and --help stay quick.
        from tfl_rewrite.cli import files, text

        command = BY_NAME[arguments.command]
        run = command.function
        with text.standard_streams(arguments):
            files.check(command, arguments)
            files.watch([path for name in text.READ for path in text.paths(arguments, name)])
            return run(arguments)
    except TflRewriteError as error:
        if arguments is not None and arguments.verbose > 1:
            raise
        _complain(str(error), argv)
        return error.exit_code
    except KeyboardInterrupt as stop:
        return _stopped(stop.args[0] if stop.args else signal.SIGINT, arguments)
    except RecursionError:
        _complain("the file nests too deep")
        return FormatError.exit_code
    except MemoryError:
        _complain("out of memory")
        return 2
    finally:
        sys.unraisablehook = unraisable
        for number, handler in previous.items():
            signal.signal(number, handler)


def _stopped(number: signal.Signals, arguments: argparse.Namespace | None) -> int:
    """Says what a signal came to; one that comes after the output got its name is too late."""
    from tfl_rewrite.files.atomic import published

    target = getattr(arguments, "target", None)
    if target is not None and Path(os.path.realpath(target)) in published:
        _complain(f"{_WORDS[number]} after {target} was written")
        return 0
    _complain(f"{_WORDS[number]}; nothing was written")
    return 128 + number


def _complain(text: str, argv: Sequence[str] | None = None) -> None:
    from tfl_rewrite.cli.text import complain

    complain(text, sys.argv[1:] if argv is None else argv)


def _send_again(lost: sys.UnraisableHookArgs) -> None:
    """Sends a signal again whose exception came up where none can be raised, such as in a finalizer."""
    if issubclass(lost.exc_type, KeyboardInterrupt):
        # There may be no value, only its type.
        number = next(iter(getattr(lost.exc_value, "args", ())), signal.SIGINT)
    elif lost.exc_type.__name__ == "Terminated":
        number = getattr(lost.exc_value, "number", signal.SIGTERM)
    else:
        sys.__unraisablehook__(lost)
        return
    # A little later: for now we are still in that place.
    timer = threading.Timer(0.01, os.kill, (os.getpid(), number))
    timer.daemon = True
    timer.start()


def _on_terminate() -> dict[signal.Signals, signal._HANDLER]:
    """Takes the signals that end programs; returns who had them."""

    def stop(number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt(signal.Signals(number))

    taken: dict[signal.Signals, signal._HANDLER] = {}
    # Not in the main thread they are the caller's business; and what is ignored, as by nohup, stays ignored.
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            if number is signal.SIGTERM or signal.getsignal(number) is not signal.SIG_IGN:
                taken[number] = signal.signal(number, stop)
    return taken
