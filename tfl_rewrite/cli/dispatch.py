"""Which function carries out which subcommand; most modules are loaded when asked for."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from tfl_rewrite.cli.commands.rewrite import (
    compact,
    dedup,
    dequantize,
    diff_files,
    list_passes,
    quantize_weights,
    remove_dead,
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


def repair_file(arguments: argparse.Namespace) -> int:
    """``tfl-rewrite repair IN OUT``."""
    from tfl_rewrite.cli.commands import doctor

    return doctor.repair_file(arguments)


def batch_files(arguments: argparse.Namespace) -> int:
    """``tfl-rewrite batch CONFIG.toml|GLOB... --out DIR``."""
    from tfl_rewrite.cli.commands import batch

    return batch.batch_files(arguments)


def shrink_file(arguments: argparse.Namespace) -> int:
    """``tfl-rewrite shrink IN OUT``."""
    from tfl_rewrite.cli.commands import shrink

    return shrink.shrink_file(arguments)


BY_NAME: dict[str, Callable[[argparse.Namespace], int]] = {
    "quantize-weights": quantize_weights,
    "dequantize": dequantize,
    "round-weights": round_weights,
    "shrink": shrink_file,
    "remove-dead": remove_dead,
    "dedup": dedup,
    "compact": compact,
    "run": run_passes,
    "passes": list_passes,
    "diff": diff_files,
    "verify": verify_files,
    "shard": shard_model,
    "join": join_model,
    "repair": repair_file,
    "batch": batch_files,
}
