"""The two subcommands about graphs: several made one, and one cut into several."""

from __future__ import annotations

import argparse

from tfl_rewrite.cli.commands.shard import carried_out
from tfl_rewrite.cli.options import given, judging_of
from tfl_rewrite.cli.progress import Bar
from tfl_rewrite.cli.render import noted, report_lines, shell, verified_lines
from tfl_rewrite.cli.text import safe, size, table
from tfl_rewrite.errors import TflRewriteError, UsageError
from tfl_rewrite.files.source import load
from tfl_rewrite.pipeline.chain import ChainOptions, chain
from tfl_rewrite.pipeline.report import Report
from tfl_rewrite.shards.split import SplitOptions, SplitReport, split
from tfl_rewrite.work import working


def chain_models(arguments: argparse.Namespace) -> int:
    """``tfl-rewrite chain A [B] OUT``."""
    options = ChainOptions(**given(ChainOptions, arguments))
    judging = judging_of(arguments)
    if len(arguments.models) == 1:
        _check_no_model_is_lost(arguments.models[0], arguments.target)

    def call(bar: Bar) -> Report:
        with working(progress=bar):
            return chain(arguments.models, arguments.target, options, judging=judging, progress=bar)

    return carried_out(arguments, call, chain_lines)


def _check_no_model_is_lost(first: str, target: str) -> None:
    """Refuses to replace what looks like a second model, behind which the file to make was not named.

    Raises:
        UsageError: It is a model whose inputs have other names than those of the first.
    """
    try:
        names = [{tensor.name for tensor in load(path).subgraphs[0].inputs} for path in (first, target)]
    except TflRewriteError:
        # Nothing, or no model: as with any other command.
        return
    if names[0] != names[1]:
        raise UsageError(
            "is a model with other inputs: if it is the second one, the file to make is missing",
            file=target,
            remedy="name OUT behind all models; to have this file replaced, remove it first",
        )


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

    def call(bar: Bar) -> SplitReport:
        with working(progress=bar):
            return split(arguments.source, arguments.target, options, judging=judging, progress=bar)

    return carried_out(arguments, call, split_lines)


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
