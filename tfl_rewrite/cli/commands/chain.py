"""The two subcommands about graphs: several made one, and one cut into several."""

from __future__ import annotations

import argparse

from tfl_rewrite.cli.files import SideFiles
from tfl_rewrite.cli.options import given, judging_of
from tfl_rewrite.cli.progress import Bar
from tfl_rewrite.cli.render import report_lines
from tfl_rewrite.cli.text import safe, show, warn
from tfl_rewrite.pipeline.chain import ChainOptions, chain
from tfl_rewrite.pipeline.report import Report, RewriteFailed
from tfl_rewrite.work import working


def chain_models(arguments: argparse.Namespace) -> int:
    """``tfl-rewrite chain A [B] OUT``."""
    options = ChainOptions(**given(ChainOptions, arguments))
    judging = judging_of(arguments)
    bar = Bar.of(arguments, unit="B")
    failure: RewriteFailed | None = None
    try:
        with working(progress=bar):
            report: Report = chain(arguments.models, arguments.target, options, judging=judging, progress=bar)
    except RewriteFailed as error:
        failure, report = error, error.report
    finally:
        bar.close()
    with SideFiles(arguments) as side:
        side.add_json(arguments.report, report.to_dict())
        side.publish()
    show(
        arguments,
        report.to_dict,
        lambda: report_lines(report, verbose=arguments.verbose),
        product=arguments.dry_run and failure is None,
    )
    if arguments.quiet and report.unverified is not None:
        warn(f"UNVERIFIED: {safe(report.unverified, limit=400)}")
    if failure is not None:
        raise failure
    return 0
