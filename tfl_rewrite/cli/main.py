"""Runs a subcommand and turns what happens into an exit code."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
import threading
import warnings

from tfl_rewrite import __version__
from tfl_rewrite.errors import FileAccessError, FormatError, TflRewriteError, UsageError

# All else is loaded where it is needed: it takes longer than Python itself, and --version needs none of it.
TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence
    from types import FrameType

_ALLOCATIONS = 100_000
"""After so many the collector looks for cycles. Classes, tables and records are many objects that stay: after
700 each, the default, it takes a tenth of the time of a small rewrite."""
VERSION = f"tfl-rewrite {__version__}"
_WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated", signal.SIGHUP: "hung up"}
"""Signals that end the program in order, and what is said of them.

Each unwinds as KeyboardInterrupt, so that files and children are cleaned up; its arguments are the signal,
and what it came to, where somebody on the way knows.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program.

    Args:
        argv: Arguments without the program's name; by default those of the process.

    Returns:
        The exit code of DESIGN's contract: 0, 2, 3, 4, 5, 129, 130, 143; 1 never on purpose.
    """
    if list(sys.argv[1:] if argv is None else argv) == ["--version"]:
        # What cannot be written goes the long way, where that is told.
        with contextlib.suppress(OSError, AttributeError):
            sys.stdout.write(f"{VERSION}\n")
            sys.stdout.flush()
            raise SystemExit(0)
    thresholds = gc.get_threshold()
    gc.set_threshold(_ALLOCATIONS)
    try:
        return _run(argv)
    finally:
        gc.set_threshold(*thresholds)
        if argv is None:
            # The process ends: a look for cycles in all that it loaded takes as long as to round a model.
            gc.freeze()


def _run(argv: Sequence[str] | None) -> int:
    from tfl_rewrite.work import blas_environment

    with blas_environment(), warnings.catch_warnings():
        # What libraries warn programmers of is none of a user's business; who wants it says so to Python.
        if not sys.warnoptions:
            warnings.simplefilter("ignore")
        return _main(argv)


def _main(argv: Sequence[str] | None) -> int:
    previous = _on_terminate()
    unraisable, sys.unraisablehook = sys.unraisablehook, _send_again
    arguments = None
    given = sys.argv[1:] if argv is None else argv
    try:
        from tfl_rewrite.cli import files, text
        from tfl_rewrite.cli.parser import BY_NAME, parser

        arguments = parser(VERSION, given).parse_args(given)
        command = BY_NAME[arguments.command]
        run = command.function
        with text.standard_streams(arguments):
            files.check(command, arguments)
            files.watch([path for name in text.READ for path in text.paths(arguments, name)])
            return run(arguments)
    except TflRewriteError as error:
        if arguments is not None and arguments.verbose > 1:
            raise
        return _failed(error, given, arguments)
    except KeyboardInterrupt as stop:
        return _stopped(stop, arguments)
    except OSError as error:
        # Such as of a name that is longer than any can be.
        if error.filename is None or (arguments is not None and arguments.verbose > 1):
            raise
        return _failed(FileAccessError(f"{error.strerror}", file=error.filename), given, arguments)
    except RecursionError:
        return _failed(FormatError("the file nests too deep"), given, arguments)
    except MemoryError:
        return _failed(UsageError("out of memory"), given, arguments)
    finally:
        sys.unraisablehook = unraisable
        for number, handler in previous.items():
            signal.signal(number, handler)


def _stopped(stop: KeyboardInterrupt, arguments: argparse.Namespace | None) -> int:
    """Says what a signal came to; one that comes after the output got its name is too late."""
    from pathlib import Path

    from tfl_rewrite.cli.text import complain
    from tfl_rewrite.files.atomic import published
    from tfl_rewrite.work import signal_of

    number = signal_of(stop)
    named = [] if arguments is None else [name for name in vars(arguments).values() if isinstance(name, str)]
    made = [name for name in named if Path(os.path.realpath(name)) in published]
    target = getattr(arguments, "target", None)
    if target in made:
        complain(f"{_WORDS[number]} after {target} was written")
        return 0
    came_to = "nothing was written" + (f" but {' and '.join(dict.fromkeys(made))}" if made else "")
    complain(f"{_WORDS[number]}; {stop.args[1] if len(stop.args) > 1 else came_to}")
    return 128 + number


def _failed(error: TflRewriteError, given: Sequence[str], arguments: argparse.Namespace | None) -> int:
    """Says what is wrong, as JSON too where that was asked for; returns the exit code.

    Args:
        error: What is wrong.
        given: The command line.
        arguments: What it says; None where that is what is wrong.
    """
    from tfl_rewrite.cli.text import complain, print_error

    complain(str(error), given)
    # What has a report has printed it, and what is a model takes standard output alone.
    whole = hasattr(error, "report") or getattr(arguments, "target", None) == "-"
    wanted = "--json" in given if arguments is None else getattr(arguments, "json", False)
    if wanted and not whole:
        print_error(error)
    return error.exit_code


def _send_again(lost: sys.UnraisableHookArgs) -> None:
    """Sends a signal again whose exception came up where none can be raised, such as in a finalizer."""
    if issubclass(lost.exc_type, KeyboardInterrupt):
        from tfl_rewrite.work import signal_of

        # There may be no value, only its type.
        number = signal_of(lost.exc_value)
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
