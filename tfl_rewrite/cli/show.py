"""What a command found or did, on standard output: text for people, or JSON and nothing else."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from typing import Any

from tfl_rewrite.cli.text import print_lines, print_report


def show(
    arguments: argparse.Namespace,
    data: Callable[[], dict[str, Any]],
    lines: Callable[[], Sequence[str]],
    *,
    product: bool = True,
) -> None:
    """Prints one of them, as the options of the command say; with ``--quiet`` only JSON.

    Args:
        arguments: Of the command.
        data: Makes the JSON data.
        lines: Makes the text.
        product: Whether it is all that was asked for; where it is not, a report that cannot be printed undoes
            nothing.

    Raises:
        FileAccessError: It cannot be printed, and is all that was asked for.
    """
    if arguments.json:
        made: Sequence[str] = [json.dumps(data(), indent=2)]
    elif arguments.quiet:
        return
    else:
        made = lines()
    if product:
        print_lines(made)
    else:
        print_report(made)
