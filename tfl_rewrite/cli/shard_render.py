"""Text for people about shards."""

from __future__ import annotations

from tfl_rewrite.cli.render import safe, size, table
from tfl_rewrite.shards.report import ShardReport

_ROWS = 10
_WORDS = {
    "new": "written",
    "kept": "there already",
    "fetched": "fetched",
    "read": "read",
}


def shard_lines(report: ShardReport, *, verbose: int) -> list[str]:
    """Says what ``shard`` or ``join`` did."""
    lines = [_headline(report)]
    counts = {status: [item for item in report.files if item.status == status] for status in _WORDS}
    lines += [
        f"  {len(items)} file{'' if len(items) == 1 else 's'} {_word(status, report)}, "
        f"{size(sum(item.stored_nbytes for item in items))} bytes"
        for status, items in counts.items()
        if items
    ]
    if verbose:
        shown = report.files if verbose > 1 else report.files[:_ROWS]
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
    lines += [f"note: {safe(note, limit=400)}" for note in report.notes]
    if report.outcome == "failed":
        return lines
    if report.unverified is not None:
        lines.append(f"UNVERIFIED: {safe(report.unverified, limit=400)}")
    elif report.verdict is not None:
        lines += ["verified: " + report.verdict.summary_lines()[0], *report.verdict.summary_lines()[1:]]
    elif report.command == "shard":
        lines.append(
            "verified: would be read back and compared" if report.dry_run else "verified: read back, equal"
        )
        lines.append(f"SHA-256 of the model: {report.sha256}")
    else:
        lines.append(f"verified: SHA-256 {report.sha256}")
    return lines


def _word(status: str, report: ShardReport) -> str:
    return "would be written" if report.dry_run and status == "new" else _WORDS[status]


def _headline(report: ShardReport) -> str:
    source = safe(report.source)
    target = safe(report.entry if report.command == "shard" else report.target)
    arrow = "-X->" if report.outcome == "failed" else "->"
    tail = " (dry run, not written)" if report.dry_run else ""
    return f"{source} {arrow} {target}: a model of {size(report.nbytes)} bytes{tail}"
