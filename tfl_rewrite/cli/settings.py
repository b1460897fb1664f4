"""What the options of a command say about inputs, judges and tolerances."""

from __future__ import annotations

import argparse
from typing import Any

from tfl_rewrite.judge.settings import Judging
from tfl_rewrite.options.option import made_with, options_of

_ALIASES = {"mode": "verify"}


def judging_of(arguments: argparse.Namespace) -> Judging:
    """Returns how a command is to judge, from its options."""
    given: dict[str, Any] = {}
    for row in options_of(Judging):
        value = getattr(arguments, _ALIASES.get(row.name, row.name), None)
        if value is not None and value != []:
            given[row.name] = value
    if "no_rescue" in arguments:
        given["rescue"] = not arguments.no_rescue
    if getattr(arguments, "blame_out", None) is not None:
        given["blame"] = True
    return made_with(Judging, given)
