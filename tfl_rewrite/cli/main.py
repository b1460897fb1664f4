"""Runs a subcommand and turns what happens into an exit code."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from types import FrameType

from tfl_rewrite import __version__
from tfl_rewrite.cli.arguments import parser
from tfl_rewrite.errors import TflRewriteError

INTERRUPTED = 130


class _Terminated(BaseException):
    """SIGTERM: unwinds like an interrupt, so that files and children are cleaned up."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program.

    Args:
        argv: Arguments without the program's name; by default those of the process.

    Returns:
        The exit code of DESIGN's contract: 0, 2, 3, 4, 130; 1 never on purpose.
    """
    arguments = parser(__version__).parse_args(argv)
    # Late, so that --version and --help stay quick.
    from tfl_rewrite.cli import commands

    run = commands.BY_NAME[arguments.command]
    previous = _on_terminate()
    try:
        return run(arguments)
    except TflRewriteError as error:
        if arguments.verbose > 1:
            raise
        _complain(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        _complain("interrupted; nothing was written")
        return INTERRUPTED
    except _Terminated:
        _complain("terminated; nothing was written")
        return 128 + signal.SIGTERM
    except RecursionError:
        _complain("the file nests too deep")
        return 2
    except MemoryError:
        _complain("out of memory")
        return 2
    finally:
        if previous is not None:
            signal.signal(signal.SIGTERM, previous)


def _complain(text: str) -> None:
    from tfl_rewrite.cli.render import safe

    if sys.stderr is not None:
        print(f"tfl-rewrite: error: {safe(text, limit=4000)}", file=sys.stderr)


def _on_terminate() -> signal._HANDLER | None:
    def stop(_number: int, _frame: FrameType | None) -> None:
        raise _Terminated

    try:
        return signal.signal(signal.SIGTERM, stop)
    except ValueError:
        # Not in the main thread: the caller's business.
        return None
