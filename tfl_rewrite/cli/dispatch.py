"""Which function carries out which subcommand; most modules are loaded when asked for."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from tfl_rewrite.cli.commands.rewrite import (
    diff_files,
    list_passes,
    rewrite_with_pass,
    round_weights,
    run_passes,
    verify_files,
)


def shard_model(arguments: argparse.Namespace) -> int:
    """``tfl-rewrite shard IN OUTDIR``."""
    from tfl_rewrite.cli.commands import shard

    return shard.shard_model(arguments)


def join_model(arguments: argparse.Namespace) -> int:
    """``tfl-rewrite join MANIFEST OUT``."""
    from tfl_rewrite.cli.commands import shard

    return shard.join_model(arguments)


def batch_files(arguments: argparse.Namespace) -> int:
    """``tfl-rewrite batch CONFIG.toml|GLOB... --out DIR``."""
    from tfl_rewrite.cli.commands import batch

    return batch.batch_files(arguments)


def shrink_file(arguments: argparse.Namespace) -> int:
    """``tfl-rewrite shrink IN OUT``."""
    from tfl_rewrite.cli.commands import shrink

    return shrink.shrink_file(arguments)


def show_help(arguments: argparse.Namespace) -> int:
    """``tfl-rewrite help [COMMAND]``."""
    from tfl_rewrite.cli.commands import manual

    return manual.show_help(arguments)


def show_completion(arguments: argparse.Namespace) -> int:
    """``tfl-rewrite completion SHELL``."""
    from tfl_rewrite.cli.commands import manual

    return manual.show_completion(arguments)


BY_NAME: dict[str, Callable[[argparse.Namespace], int]] = {
    "round-weights": round_weights,
    "shrink": shrink_file,
    "run": run_passes,
    "passes": list_passes,
    "diff": diff_files,
    "verify": verify_files,
    "shard": shard_model,
    "join": join_model,
    "batch": batch_files,
    "help": show_help,
    "completion": show_completion,
}


def function_of(name: str) -> Callable[[argparse.Namespace], int]:
    """Returns what carries out a command; those without a row here are a pass."""
    return BY_NAME.get(name, rewrite_with_pass)
