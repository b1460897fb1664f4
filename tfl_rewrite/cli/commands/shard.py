"""The subcommands that make several files of a model, and one of several."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

from tfl_rewrite.cli.commands.rows import COMPARING
from tfl_rewrite.cli.files import SideFiles
from tfl_rewrite.cli.options import given, judging_of
from tfl_rewrite.cli.progress import Bar
from tfl_rewrite.cli.render import noted, report_lines, verified_lines
from tfl_rewrite.cli.text import safe, shell, show, size, table, warn
from tfl_rewrite.errors import TflRewriteError, UsageError, VerificationError
from tfl_rewrite.files.source import load
from tfl_rewrite.judge.settings import Judging
from tfl_rewrite.options.option import options_of
from tfl_rewrite.pipeline.report import Report, RewriteFailed
from tfl_rewrite.shards.calls import is_model, join, shard
from tfl_rewrite.shards.settings import JoinOptions, ShardFailed, ShardOptions, ShardReport
from tfl_rewrite.shards.split import SplitFailed, SplitOptions, SplitReport, split
from tfl_rewrite.work import working


def shard_model(arguments: argparse.Namespace) -> int:
    """``tfl-rewrite shard IN OUTDIR``."""
    chosen = ShardOptions(**given(ShardOptions, arguments))
    if chosen.format == "external":
        _refuse_others(arguments, COMPARING, "CompiledModel has to compute the same from external buffers")
    elif not chosen.progressive:
        _refuse_others(arguments, ("mode",), _BY_BYTE, ", or add --progressive: its base is judged")
    judging = judging_of(arguments)
    return carried_out(
        arguments,
        lambda bar: shard(arguments.source, arguments.target, chosen, judging=judging, progress=bar),
        shard_lines,
    )


def join_model(arguments: argparse.Namespace) -> int:
    """``tfl-rewrite join MANIFEST OUT``."""
    chosen = JoinOptions(**given(JoinOptions, arguments))
    if not is_model(Path(arguments.source)):
        _refuse_others(arguments, ("mode",), _BY_BYTE)
    judging = judging_of(arguments)
    return carried_out(
        arguments,
        lambda bar: join(arguments.source, arguments.target, chosen, judging=judging, progress=bar),
        shard_lines,
    )


_BY_BYTE = "parts are compared byte by byte, and nothing is run"


def _refuse_others(arguments: argparse.Namespace, used: Collection[str], why: str, remedy: str = "") -> None:
    """Raises a UsageError where an option is given that says how to judge what is not judged so."""
    idle = given(Judging, arguments, without=used)
    flag = next((item.flags[0] for item in options_of(Judging) if item.name in idle), None)
    if flag is not None:
        raise UsageError(f"argument {flag}: has no use here: {why}", remedy=f"leave it out{remedy}")


class Told(Protocol):
    """A report of what is no plain rewrite."""

    @property
    def unverified(self) -> str | None:
        """Why nothing could be run, or None."""

    def to_dict(self) -> dict[str, Any]:
        """Returns it as JSON data."""


R = TypeVar("R", bound=Told)


def carried_out(
    arguments: argparse.Namespace, call: Callable[[Bar], R], lines: Callable[..., list[str]]
) -> int:
    """Carries a command out, shows its report, also that of a failure, and returns the exit code.

    Args:
        arguments: Of the command.
        call: Does the work; a :class:`VerificationError` of it has the report.
        lines: Says what was done, of the report and ``verbose``.

    Raises:
        VerificationError: What ``call`` raised, once its report is shown.
    """
    bar = Bar.of(arguments)
    failure: VerificationError | None = None
    report: R
    try:
        report = call(bar)
    except (RewriteFailed, ShardFailed, SplitFailed) as error:
        failure, report = error, cast(R, error.report)
    finally:
        bar.close()
    with SideFiles(arguments) as side:
        side.add_json(arguments.report, report.to_dict)
        side.publish()
    show(
        arguments,
        report.to_dict,
        lambda: lines(report, verbose=arguments.verbose),
        product=arguments.dry_run and failure is None,
    )
    if arguments.quiet and report.unverified is not None:
        warn(f"UNVERIFIED: {safe(report.unverified, limit=400)}")
    if failure is not None:
        raise failure
    return 0


_FILES = 10
_WORDS = {
    "new": "written",
    "kept": "there already",
    "fetched": "fetched",
    "read": "read",
}


def shard_lines(report: ShardReport, *, verbose: int) -> list[str]:
    """Says what ``shard`` or ``join`` did."""
    lines = [_shard_headline(report)]
    counts = {status: [item for item in report.files if item.status == status] for status in _WORDS}
    lines += [
        f"  {len(items)} file{'' if len(items) == 1 else 's'} {_word(status, report)}, "
        f"{size(sum(item.stored_nbytes for item in items))} bytes"
        for status, items in counts.items()
        if items
    ]
    lines += _base_lines(report)
    if verbose:
        shown = report.files if verbose > 1 else report.files[:_FILES]
        lines += table(
            ("file", "bytes", "stored", ""),
            [
                (safe(item.name), size(item.nbytes), size(item.stored_nbytes), _word(item.status, report))
                for item in shown
            ],
            right=(1, 2),
        )
        if len(shown) < len(report.files):
            lines.append(f"  ... and {len(report.files) - len(shown)} more (-vv shows all)")
    lines += _judged_lines(report, verbose)
    if report.outcome == "failed":
        return lines
    if report.format == "parts":
        lines += _hash_lines(report)
    if report.command == "shard" and not report.dry_run:
        entry, what = shell(report.entry), "joins it" if report.format == "parts" else "makes it one file"
        base = "" if report.base is None else ", and with --base only what runs first"
        lines.append(f"next: 'tfl-rewrite join {entry} OUT' {what} again{base}")
    return lines


def _judged_lines(report: ShardReport | SplitReport, verbose: int) -> list[str]:
    """Says what a reader should know, and whether what was made is right."""
    lines = noted(report.notes, 1)
    if report.outcome == "failed":
        return lines
    if report.unverified is not None:
        lines.append(f"UNVERIFIED: {safe(report.unverified, limit=400)}")
    elif report.verdict is not None:
        lines += verified_lines(report.verdict, verbose=verbose)
    return lines


def _hash_lines(report: ShardReport) -> list[str]:
    """Says how parts were verified, and what an app is to be told."""
    if report.command == "join":
        return [f"verified: SHA-256 {report.sha256}"]
    made = "would be read back and compared" if report.dry_run else "read back, equal"
    base = [] if report.base is None else [f"SHA-256 of the base: {report.base.sha256}"]
    return [f"verified: {made}", f"SHA-256 of the model: {report.sha256}", *base]


def _base_lines(report: ShardReport) -> list[str]:
    """Says what is fetched before the base runs, and then."""
    if report.base is None:
        return []
    first = report.base.stored_nbytes
    rest = sum(item.stored_nbytes for item in report.files) - first
    made, shares = size(report.base.nbytes), [100 * part / report.nbytes for part in (first, rest)]
    return [
        f"  base: a model of {made} bytes, {size(first)} to fetch ({shares[0]:.0f} %); "
        f"the rest {size(rest)} ({shares[1]:.0f} %)"
    ]


def _word(status: str, report: ShardReport) -> str:
    return "would be written" if report.dry_run and status == "new" else _WORDS[status]


def _shard_headline(report: ShardReport) -> str:
    source = safe(report.source)
    target = safe(report.entry if report.command == "shard" else report.target)
    arrow = "-X->" if report.outcome == "failed" else "->"
    tail = " (dry run, not written)" if report.dry_run else ""
    return f"{source} {arrow} {target}: a model of {size(report.nbytes)} bytes{tail}"


def chain_models(arguments: argparse.Namespace) -> int:
    """``tfl-rewrite chain A [B] OUT``."""
    from tfl_rewrite.pipeline.chain import ChainOptions, chain

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
    lines += _judged_lines(report, verbose)
    if report.outcome == "failed":
        return lines
    if not report.dry_run:
        lines.append(f"next: tfl_rewrite.Chain.open({report.entry!a}) runs them")
    return lines
