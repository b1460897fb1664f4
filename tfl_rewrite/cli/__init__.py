"""The command line: thin. Arguments are data, a subcommand is one small function, rendering is apart."""

from __future__ import annotations

from tfl_rewrite.cli.main import main

__all__ = ["main"]
