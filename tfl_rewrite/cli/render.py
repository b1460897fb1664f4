"""Text for people. Names from files are shown escaped, so that they cannot write to the terminal."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tfl_rewrite.cli.render_judge import blame_lines, verdict_lines
from tfl_rewrite.cli.text import decibels as decibels
from tfl_rewrite.cli.text import escaped
from tfl_rewrite.cli.text import safe as safe
from tfl_rewrite.cli.text import size as size
from tfl_rewrite.cli.text import table as table
from tfl_rewrite.editing.base import Edit, PassResult, Skip
from tfl_rewrite.passes.round_weights import RoundedChange
from tfl_rewrite.pipeline.report import Report
from tfl_rewrite.weights.payloads import WeightChange

if TYPE_CHECKING:
    from tfl_rewrite.judge.verdict import Verdict
    from tfl_rewrite.shards.report import ShardReport

_ROWS = 20
_FILES = 10
_WORDS = {
    "new": "written",
    "kept": "there already",
    "fetched": "fetched",
    "read": "read",
}


def report_lines(report: Report, *, verbose: int) -> list[str]:
    """Says what a rewrite did."""
    lines = [_headline(report)]
    if report.deflated is not None:
        before, after = report.deflated
        share = 100 * after / max(1, before)
        how = ", estimated" if report.estimated else ""
        lines.append(f"deflated (zlib, level 9{how}): {size(before)} -> {size(after)} bytes ({share:.1f} %)")
    for result in report.results:
        lines += _pass_lines(result, verbose)
        if report.outcome == "unchanged" and result.idle:
            lines.append(f"{result.name}: {safe(_named(result.idle, report), limit=1000)}")
    lines += [f"note: {safe(note, limit=400)}" for note in report.notes]
    if report.verdict is not None:
        unsaid = report.verdict.status == "unverified"
        lines += verdict_lines(report.verdict) if unsaid else _verified(report.verdict)
        lines += _loss(report)
    elif report.unverified is not None and report.outcome != "failed":
        lines.append(f"UNVERIFIED: {safe(report.unverified, limit=400)}")
    lines += _finer_lines(report, verbose)
    lines += _damage_lines(report)
    if report.blame is not None:
        lines += blame_lines(report.blame, verbose=verbose > 0)
    return lines


def _named(advice: str, report: Report) -> str:
    """Puts the file's name into the commands that a pass recommends."""
    return advice.replace(" IN OUT", f" {shlex.quote(report.source)} OUT")


def _headline(report: Report) -> str:
    source, target = safe(report.source), safe(report.target)
    if report.outcome == "unchanged":
        done = "would be a verbatim copy" if report.dry_run else "is a verbatim copy"
        return f"nothing to do: {target} {done} of {source} ({size(report.nbytes_before)} bytes)"
    ratio = 100 * report.nbytes_after / report.nbytes_before
    verb = {"rewritten": "->", "failed": "-X->"}[report.outcome]
    tail = " (dry run, not written)" if report.dry_run else ""
    return (
        f"{source} {verb} {target}: {size(report.nbytes_before)} -> {size(report.nbytes_after)} bytes "
        f"({ratio:.1f} %){tail}"
    )


def _pass_lines(result: PassResult, verbose: int) -> list[str]:
    weights = [change for change in result.changes if isinstance(change, WeightChange)]
    lines = _edit_lines(result, verbose)
    if weights:
        saved = sum(change.saved for change in weights)
        kinds = sorted({change.stored for change in weights})
        now = " or ".join(kinds)
        won = f"{size(saved)} bytes saved" if saved >= 0 else f"{size(-saved)} bytes added"
        renewed = sum(change.renewed for change in weights)
        fresh = len(weights) - renewed
        done = [f"{fresh} of {fresh + len(result.skips)} float constants are {now} now"] if fresh else []
        if renewed:
            done.append(f"{renewed} integer constant{'' if renewed == 1 else 's'} stored anew as {now}")
        lines.append(f"{', '.join(done)}; {won}")
        lines += _lost_lines(weights)
        blocks = any(change.block for change in weights)
        ordered = sorted(weights, key=lambda change: -change.saved)
        shown = ordered if verbose else ordered[:_ROWS]
        lines += table(
            ("tensor", "read by", "form", "scales", "bytes", "saved", "SNR dB"),
            [
                (
                    safe(change.where, limit=60),
                    safe(",".join(change.readers), limit=40),
                    change.scheme
                    if kinds == ["int8"] and not blocks
                    else f"{change.encoding} {change.scheme}",
                    f"{change.channels}" if change.channels else "",
                    _bytes(change),
                    size(change.saved),
                    decibels(change.snr),
                )
                for change in shown
            ],
            right=(3, 4, 5, 6),
        )
        if len(shown) < len(ordered):
            lines.append(f"  ... and {len(ordered) - len(shown)} more (-v shows all)")
    lines += _rounded_lines(result, verbose)
    lines += _skip_lines([item for item in result.skips if "dtype" in item.data], verbose)
    lines += _kept_lines([item for item in result.skips if "dtype" not in item.data], verbose)
    lines += [f"note: {safe(note, limit=400)}" for note in result.notes]
    return lines


def _lost_lines(weights: Sequence[WeightChange]) -> list[str]:
    """Says what did not fit in float16."""
    lost: Counter[str] = Counter()
    for change in weights:
        if not change.shared:
            lost.update(change.lost)
    words = {
        "clamped": "clamped to 65504",
        "flushed": "below the smallest and zero now",
        "subnormal": "so small that they lost bits",
    }
    said = [f"{size(lost[key])} {text}" for key, text in words.items() if lost[key]]
    lines = [f"float16: {', '.join(said)}"] if said else []
    return lines + _silenced_lines(weights)


def _silenced_lines(changes: Sequence[WeightChange | RoundedChange]) -> list[str]:
    """Names the weights of which whole channels became zero."""
    lines = [
        f"{safe(change.where, limit=60)}: {size(len(change.silenced))} channels are all zero now, such as "
        f"{change.silenced[0]}"
        for change in changes
        if change.silenced
    ]
    return (
        lines if len(lines) <= _ROWS else [*lines[:_ROWS], f"... and {len(lines) - _ROWS} more such weights"]
    )


def _edit_lines(result: PassResult, verbose: int) -> list[str]:
    """Shows the changes that a few words tell; those that say the same in a row, once."""
    edits = [change for change in result.changes if isinstance(change, Edit)]
    if not edits:
        return []
    count = sum(edit.data.get("count", 1) for edit in edits)
    saved = sum(edit.saved for edit in edits)
    # What the passes before counted as saved may be less once the file is laid out.
    won = f"{size(saved)} bytes saved" if saved >= 0 else f"{size(-saved)} bytes added"
    lines = [f"{result.name}: {count} change{'' if count == 1 else 's'}, {won}"]
    shown = edits if verbose else edits[:_ROWS]
    lines += table(
        ("where", "what", "saved"),
        [
            (safe(edit.where, limit=60), safe(edit.what, limit=90), size(edit.saved) if edit.saved else "")
            for edit in shown
        ],
        right=(2,),
    )
    if len(shown) < len(edits):
        lines.append(f"  ... and {len(edits) - len(shown)} more (-v shows all)")
    return lines


def _rounded_lines(result: PassResult, verbose: int) -> list[str]:
    rounded = [change for change in result.changes if isinstance(change, RoundedChange)]
    if not rounded:
        return []
    total = len(rounded) + len(result.skips)
    lines = [f"{len(rounded)} of {total} constants are rounded now", *_silenced_lines(rounded)]
    ordered = sorted(rounded, key=lambda change: -change.nbytes)
    shown = ordered if verbose else ordered[:_ROWS]
    lines += table(
        ("tensor", "read by", "step", "of each", "bytes", "deflated", "SNR dB"),
        [
            (
                safe(change.where, limit=60),
                safe(",".join(change.readers), limit=40),
                _step(change),
                change.granularity,
                size(change.nbytes),
                f"{size(change.deflated[0])} -> {size(change.deflated[1])}",
                decibels(change.snr),
            )
            for change in shown
        ],
        right=(4, 5, 6),
    )
    if len(shown) < len(ordered):
        lines.append(f"  ... and {len(ordered) - len(shown)} more (-v shows all)")
    return lines


def _step(change: RoundedChange) -> str:
    finest, coarsest = change.steps
    return f"{finest:.3g}" if finest == coarsest else f"{finest:.3g} to {coarsest:.3g}"


def _kept_lines(skips: Sequence[Skip], verbose: int) -> list[str]:
    lines = [f"kept: {safe(item.where, limit=60)} ({safe(item.reason, limit=160)})" for item in skips]
    if len(lines) > _ROWS and not verbose:
        lines[_ROWS:] = [f"  ... and {len(lines) - _ROWS} more kept (-v shows all)"]
    return lines


def _bytes(change: WeightChange) -> str:
    if change.shared:
        return "shared"
    return f"{size(change.nbytes_before)} -> {size(change.nbytes_after)}"


def _skip_lines(skips: Sequence[Skip], verbose: int) -> list[str]:
    if not skips:
        return []
    if verbose:
        lines = [f"{len(skips)} float constants stay:"]
        rows = sorted(skips, key=lambda item: -item.data.get("nbytes", 0))
        return lines + table(
            ("tensor", "bytes", "why"),
            [
                (safe(item.where, limit=60), size(item.data.get("nbytes", 0)), safe(item.reason, limit=200))
                for item in rows
            ],
            right=(1,),
        )
    count = Counter(item.rule for item in skips)
    nbytes: Counter[str] = Counter()
    example = {item.rule: item for item in reversed(skips)}
    for item in skips:
        nbytes[item.rule] += item.data.get("nbytes", 0)
    parts = []
    for rule, number in count.most_common():
        text = example[rule].reason if number == 1 else f"such as: {example[rule].reason}"
        parts.append(f"  {number} x {rule}, {size(nbytes[rule])} bytes ({safe(text, limit=160)})")
    return [f"{len(skips)} float constant(s) stay (-v lists them):", *parts]


def _loss(report: Report) -> list[str]:
    """Says it when the loss is within the tolerance and still large."""
    verdict = report.verdict
    worst = verdict.worst_snr() if verdict is not None else None
    if verdict is None or not verdict.passed or worst is None or worst >= 20:
        return []
    return [f"the loss is noticeable: {worst:.1f} dB at the lowest; judge it on your own data (--inputs)"]


def _finer_lines(report: Report, verbose: int) -> list[str]:
    """Names the constants that are stored finer than was asked for, and why."""
    if report.refused is None:
        return []
    why = safe("; ".join(report.refused.reasons), limit=300)
    # Such as of inputs that are not finite, which may be the reason; a verdict on what was made has its own.
    told = report.refused.notes if report.verdict is None else ()
    notes = [f"note: {safe(note, limit=400)}" for note in told]
    if not report.finer:
        return [f"as asked for, it failed: {why}", *notes]
    count = len(report.finer)
    plural = "" if count == 1 else "s"
    lines = [
        f"{count} constant{plural} had to be stored finer than asked for (--no-rescue refuses instead);"
        f" without that it failed: {why}"
    ]
    rows = sorted(report.finer, key=lambda item: -item.added)
    shown = rows if verbose else rows[:_ROWS]
    lines += table(
        ("tensor", "stored as", "bytes more", "dB as asked, alone"),
        [
            (
                safe(item.tensor, limit=60),
                item.form,
                f"{item.added:+,}",
                "" if item.snr is None else decibels(item.snr),
            )
            for item in shown
        ],
        right=(2, 3),
    )
    more = [f"  ... and {len(rows) - len(shown)} more (-v lists them)"] if len(shown) < len(rows) else []
    return [*lines, *more, *notes]


def _damage_lines(report: Report) -> list[str]:
    damage = report.damage
    if damage is None:
        return []
    lines = []
    if damage.culprits:
        lines.append("what each constant costs when it alone is rewritten, worst first:")
        lines += table(
            ("tensor", "lowest SNR dB"),
            [
                (safe(item.tensor, limit=90), "does not run" if item.snr is None else decibels(item.snr))
                for item in damage.culprits[:10]
            ],
            right=(1,),
        )
        if damage.unmeasured:
            lines.append(f"  {damage.unmeasured} more were not measured in the time given (--blame-seconds)")
    if damage.expanded is not None:
        ratio = "" if damage.expanded[0] is None else f" with {decibels(damage.expanded[0])} dB"
        lines.append(f"measured: it passes{ratio} at {size(damage.expanded[1])} bytes with")
        lines.append("  --scheme dequantize")
    if damage.spare:
        ratio = "" if damage.snr is None else f" with {damage.snr:.1f} dB"
        lines.append(f"measured: it passes{ratio} at {size(damage.nbytes)} bytes with")
        lines.append("  " + " ".join(f"--exclude {_quoted(name)}" for name in damage.spare))
    return lines


def _quoted(name: str) -> str:
    """Returns a pattern for the shell that matches just this name; what terminals must not see, escaped."""
    import shlex

    from tfl_rewrite.options.patterns import exact

    return shlex.quote("".join(map(escaped, exact(name))))


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
    lines += [f"note: {safe(note, limit=400)}" for note in report.notes]
    if report.outcome == "failed":
        return lines
    if report.unverified is not None:
        lines.append(f"UNVERIFIED: {safe(report.unverified, limit=400)}")
    elif report.verdict is not None:
        lines += _verified(report.verdict)
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


def _shard_headline(report: ShardReport) -> str:
    source = safe(report.source)
    target = safe(report.entry if report.command == "shard" else report.target)
    arrow = "-X->" if report.outcome == "failed" else "->"
    tail = " (dry run, not written)" if report.dry_run else ""
    return f"{source} {arrow} {target}: a model of {size(report.nbytes)} bytes{tail}"


def _verified(verdict: Verdict) -> list[str]:
    first, *rest = verdict_lines(verdict)
    return [f"verified: {first}", *rest]
