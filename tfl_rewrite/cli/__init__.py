"""The command line: thin. Arguments are data, a subcommand is a function and what it prints."""

from __future__ import annotations

from tfl_rewrite.cli.main import main

__all__ = ["main"]
