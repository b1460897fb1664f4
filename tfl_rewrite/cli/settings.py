"""What the options of a command say about inputs, judges and tolerances."""

from __future__ import annotations

import argparse

from tfl_rewrite.cli.options import given
from tfl_rewrite.judge.settings import Judging
from tfl_rewrite.options.option import made_with


def judging_of(arguments: argparse.Namespace) -> Judging:
    """Returns how a command is to judge, from its options."""
    values = given(Judging, arguments)
    if getattr(arguments, "blame_out", None) is not None:
        values["blame"] = True
    return made_with(Judging, values)
