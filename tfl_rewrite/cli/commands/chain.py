"""The two subcommands about graphs: several made one, and one cut into several."""

from __future__ import annotations

import argparse

from tfl_rewrite.cli.files import SideFiles
from tfl_rewrite.cli.options import given, judging_of
from tfl_rewrite.cli.progress import Bar
from tfl_rewrite.cli.render import noted, report_lines, shell, verified_lines
from tfl_rewrite.cli.text import safe, show, size, table, warn
from tfl_rewrite.pipeline.chain import ChainOptions, chain
from tfl_rewrite.pipeline.report import Report, RewriteFailed
from tfl_rewrite.shards.split import SplitFailed, SplitOptions, SplitReport, split
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
        lambda: chain_lines(report, verbose=arguments.verbose),
        product=arguments.dry_run and failure is None,
    )
    if arguments.quiet and report.unverified is not None:
        warn(f"UNVERIFIED: {safe(report.unverified, limit=400)}")
    if failure is not None:
        raise failure
    return 0


def chain_lines(report: Report, *, verbose: int) -> list[str]:
    """Says what ``chain`` did."""
    lines = [line for line in report_lines(report, verbose=verbose) if not line.startswith("next: ")]
    if report.outcome != "failed" and not report.dry_run:
        lines.append(f"next: 'tfl-rewrite inspect {shell(report.target)} -v' shows what it takes and gives")
    return lines


def split_model(arguments: argparse.Namespace) -> int:
    """``tfl-rewrite split IN OUTDIR``."""
    options = SplitOptions(**given(SplitOptions, arguments))
    judging = judging_of(arguments)
    bar = Bar.of(arguments, unit="B")
    failure: SplitFailed | None = None
    try:
        with working(progress=bar):
            report = split(arguments.source, arguments.target, options, judging=judging, progress=bar)
    except SplitFailed as error:
        failure, report = error, error.report
    finally:
        bar.close()
    with SideFiles(arguments) as side:
        side.add_json(arguments.report, report.to_dict())
        side.publish()
    show(
        arguments,
        report.to_dict,
        lambda: split_lines(report, verbose=arguments.verbose),
        product=arguments.dry_run and failure is None,
    )
    if arguments.quiet and report.unverified is not None:
        warn(f"UNVERIFIED: {safe(report.unverified, limit=400)}")
    if failure is not None:
        raise failure
    return 0


_PARTS = 12


def split_lines(report: SplitReport, *, verbose: int) -> list[str]:
    """Says what ``split`` did."""
    arrow = "-X->" if report.outcome == "failed" else "->"
    tail = " (dry run, not written)" if report.dry_run else ""
    entry = safe(report.entry)
    lines = [f"{safe(report.source)} {arrow} {entry}: {len(report.files)} parts that run{tail}"]
    shown = report.files if verbose else report.files[:_PARTS]
    lines += table(
        ("part", "bytes", "operators", "takes", ""),
        [
            (safe(item.name), size(item.nbytes), str(item.operators), size(item.taken), item.status)
            for item in shown
        ],
        right=(1, 2, 3),
    )
    if len(shown) < len(report.files):
        lines.append(f"  ... and {len(report.files) - len(shown)} more (-v shows all)")
    lines += noted(report.notes, 1)
    if report.outcome == "failed":
        return lines
    if report.unverified is not None:
        lines.append(f"UNVERIFIED: {safe(report.unverified, limit=400)}")
    elif report.verdict is not None:
        lines += verified_lines(report.verdict, verbose=verbose)
    if not report.dry_run:
        lines.append(f"next: tfl_rewrite.Chain.open({report.entry!a}) runs them")
    return lines
