"""The two subcommands about models in several files."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from tfl_rewrite.cli.files import SideFiles
from tfl_rewrite.cli.options import given, judging_of
from tfl_rewrite.cli.progress import Bar
from tfl_rewrite.cli.render import shard_lines
from tfl_rewrite.cli.text import safe, show, warn
from tfl_rewrite.judge.settings import Judging
from tfl_rewrite.shards.calls import is_model, join, shard
from tfl_rewrite.shards.settings import JoinOptions, ShardFailed, ShardOptions, ShardReport


def shard_model(arguments: argparse.Namespace) -> int:
    """``tfl-rewrite shard IN OUTDIR``."""
    chosen = ShardOptions(**given(ShardOptions, arguments))
    return _run_shards(
        arguments,
        lambda judging, bar: shard(arguments.source, arguments.target, chosen, judging=judging, progress=bar),
    )


def join_model(arguments: argparse.Namespace) -> int:
    """``tfl-rewrite join MANIFEST OUT``."""
    chosen = JoinOptions(**given(JoinOptions, arguments))
    return _run_shards(
        arguments,
        lambda judging, bar: join(arguments.source, arguments.target, chosen, judging=judging, progress=bar),
    )


def _run_shards(arguments: argparse.Namespace, call: Callable[[Judging, Bar], ShardReport]) -> int:
    # Of a manifest nothing is run: parts are compared byte by byte.
    judging = judging_of(arguments)
    if not is_model(Path(arguments.source)):
        judging = replace(judging, inputs=())
    bar = Bar.of(arguments)
    failure: ShardFailed | None = None
    try:
        report = call(judging, bar)
    except ShardFailed as error:
        failure, report = error, error.report
    finally:
        bar.close()
    with SideFiles(arguments) as side:
        side.add_json(arguments.report, report.to_dict())
        side.publish()
    show(
        arguments,
        report.to_dict,
        lambda: shard_lines(report, verbose=arguments.verbose),
        product=arguments.dry_run and failure is None,
    )
    if arguments.quiet and report.unverified is not None:
        warn(f"UNVERIFIED: {safe(report.unverified, limit=400)}")
    if failure is not None:
        raise failure
    return 0
