"""What is said of a file that was written: six lines; with ``-v`` the tables, too.

Names from files are shown escaped, so that they cannot write to the terminal.
"""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tfl_rewrite.cli.render_judge import blame_lines, verdict_line, verdict_lines, verdict_rest
from tfl_rewrite.cli.render_tables import finer_table, pass_tables
from tfl_rewrite.cli.text import counted, decibels, escaped, safe, size, table
from tfl_rewrite.editing.base import Edit, PassResult
from tfl_rewrite.passes.quantize import OperatorChange
from tfl_rewrite.passes.round_weights import RoundedChange
from tfl_rewrite.pipeline.report import Report
from tfl_rewrite.weights.payloads import WeightChange

if TYPE_CHECKING:
    from tfl_rewrite.judge.verdict import Verdict
    from tfl_rewrite.shards.settings import ShardReport

_FILES = 10
_NOTICEABLE_DB = 20.0
_WORDS = {
    "new": "written",
    "kept": "there already",
    "fetched": "fetched",
    "read": "read",
}


def report_lines(report: Report, *, verbose: int) -> list[str]:
    """Says what a rewrite did: sizes, what was done, notes, the verdict, its gaps, the next step."""
    lines = [_headline(report)]
    if verbose:
        for result in report.results:
            lines += [line for line in (_done(result, report),) if line]
            lines += pass_tables(result)
            lines += _noted(result.notes, verbose)
        lines += _finer_lines(report, verbose)
    else:
        told = [*(_done(result, report) for result in report.results), *_finer_lines(report, verbose)]
        lines += ["; ".join(filter(None, told))] if any(told) else []
    lines += _noted(_notes(report, verbose), verbose)
    if report.verdict is not None:
        lines += verified_lines(report.verdict, verbose=verbose)
    elif report.unverified is not None and report.outcome != "failed":
        lines.append(f"UNVERIFIED: {safe(report.unverified, limit=400)}")
    lines += _damage_lines(report, verbose)
    if report.blame is not None:
        lines += blame_lines(report.blame, verbose=verbose > 0)
    return lines + _next(report)


def verified_lines(verdict: Verdict, *, verbose: int) -> list[str]:
    """Says the verdict of a file that was made in two lines, or with all that was measured."""
    head = "" if verdict.status == "unverified" else "verified: "
    if verbose:
        return [f"{head}{verdict_line(verdict)}", *verdict_lines(verdict)[1:]]
    return [f"{head}{verdict_line(verdict)}", verdict_rest(verdict)]


def _headline(report: Report) -> str:
    source, target = safe(report.source), safe(report.target)
    if report.outcome == "unchanged":
        done = "would be a verbatim copy" if report.dry_run else "is a verbatim copy"
        return f"nothing to do: {target} {done} of {source} ({size(report.nbytes_before)} bytes)"
    ratio = 100 * report.nbytes_after / report.nbytes_before
    verb = {"rewritten": "->", "failed": "-X->"}[report.outcome]
    tail = " (dry run, not written)" if report.dry_run else ""
    if report.deflated is not None:
        before, after = report.deflated
        how = ", estimated" if report.estimated else ""
        tail += (
            f"; deflated (zlib, level 9{how}): {size(before)} -> {size(after)} bytes "
            f"({100 * after / max(1, before):.1f} %)"
        )
    return (
        f"{source} {verb} {target}: {size(report.nbytes_before)} -> {size(report.nbytes_after)} bytes "
        f"({ratio:.1f} %){tail}"
    )


_TYPES = 3
"""Of operators that the line of a pass names."""


def _done(result: PassResult, report: Report) -> str:
    """Says in one line what a pass did, and what it left; nothing where that is nothing."""
    weights = [change for change in result.changes if isinstance(change, WeightChange)]
    rounded = [change for change in result.changes if isinstance(change, RoundedChange)]
    edits = [change for change in result.changes if isinstance(change, Edit)]
    operators = [change for change in result.changes if isinstance(change, OperatorChange)]
    parts = [*_edited(edits), *_stored(weights, result), *_fewer_values(rounded, result)]
    parts += _in_integers(operators, result)
    parts += _lost(weights) + _silenced([*weights, *rounded])
    stay = Counter(item.rule for item in result.skips)
    if stay:
        told = ", ".join(f"{number} x {safe(rule)}" for rule, number in stay.most_common())
        parts.append(f"{sum(stay.values())} stay{'s' if sum(stay.values()) == 1 else ''} ({told})")
    if report.outcome == "unchanged" and result.idle:
        parts.append(_named(result.idle, report))
    return f"{result.name}: {'; '.join(parts)}" if parts else ""


def _named(advice: str, report: Report) -> str:
    """Puts the file's name into the commands that a pass recommends."""
    return safe(advice.replace(" IN OUT", f" {shlex.quote(report.source)} OUT"), limit=1000)


def _won(saved: int) -> str:
    # What the passes before counted as saved may be less once the file is laid out.
    return f"{size(saved)} bytes saved" if saved >= 0 else f"{size(-saved)} bytes added"


def _edited(edits: Sequence[Edit]) -> list[str]:
    if not edits:
        return []
    count = sum(edit.data.get("count", 1) for edit in edits)
    saved = sum(edit.saved for edit in edits)
    parts = [counted(count, "change") + (f", {_won(saved)}" if saved else "")]
    first = edits[0]
    more = f", and {len(edits) - 1} more (-v)" if len(edits) > 1 else ""
    return [*parts, f"{safe(first.where, limit=60)}: {safe(first.what, limit=120)}{more}"]


def _stored(weights: Sequence[WeightChange], result: PassResult) -> list[str]:
    if not weights:
        return []
    kinds = " or ".join(sorted({change.stored for change in weights}))
    renewed = sum(change.renewed for change in weights)
    fresh = len(weights) - renewed
    done = [f"{fresh} of {fresh + len(result.skips)} float constants are {kinds} now"] if fresh else []
    if renewed:
        done.append(f"{counted(renewed, 'integer constant')} stored anew as {kinds}")
    forms = Counter(
        change.scheme if kinds == "int8" else f"{change.encoding} {change.scheme}" for change in weights
    )
    told = ", ".join(f"{number} x {form}" for form, number in forms.most_common())
    return [f"{', '.join(done)} ({told})", _won(sum(change.saved for change in weights))]


def _fewer_values(rounded: Sequence[RoundedChange], result: PassResult) -> list[str]:
    if not rounded:
        return []
    return [f"{len(rounded)} of {len(rounded) + len(result.skips)} constants are rounded now"]


def _in_integers(operators: Sequence[OperatorChange], result: PassResult) -> list[str]:
    if not operators:
        return []
    kinds = " or ".join(sorted({change.activations for change in operators}))
    types = Counter(change.operator for change in operators).most_common()
    told = ", ".join(f"{number} x {name}" for name, number in types[:_TYPES])
    more = f", {len(types) - _TYPES} more types" if len(types) > _TYPES else ""
    total = len(operators) + len(result.skips)
    return [f"{len(operators)} of {total} operators compute in {kinds} now ({told}{more})"]


def _lost(weights: Sequence[WeightChange]) -> list[str]:
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
    return [f"float16: {', '.join(said)}"] if said else []


def _silenced(changes: Sequence[WeightChange | RoundedChange]) -> list[str]:
    """Names the weights of which whole channels became zero."""
    found = [change for change in changes if change.silenced]
    if not found:
        return []
    said = [
        f"{safe(change.where, limit=60)}: {size(len(change.silenced))} channels are all zero now, such as "
        f"{change.silenced[0]}"
        for change in found[:3]
    ]
    return said + ([f"{len(found) - 3} more such weights"] if len(found) > 3 else [])


def _notes(report: Report, verbose: int) -> list[str]:
    """Returns the notes that stand nowhere else, those that concern the inputs first."""
    judged = [] if verbose or report.verdict is None else list(report.verdict.notes)
    of_passes = [] if verbose else [note for result in report.results for note in result.notes]
    return list(dict.fromkeys([*judged, *report.notes, *of_passes]))


def _noted(notes: Sequence[str], verbose: int) -> list[str]:
    if verbose or len(notes) < 2:
        return [f"note: {safe(note, limit=400)}" for note in notes]
    return [f"note: {safe(notes[0], limit=200)}; {counted(len(notes) - 1, 'more note')} with -v"]


def _finer_lines(report: Report, verbose: int) -> list[str]:
    """Names the constants that are stored finer than was asked for, and why."""
    if report.refused is None:
        return []
    why = safe("; ".join(report.refused.reasons), limit=300)
    # Such as of inputs that are not finite, which may be the reason; a verdict on what was made has its own.
    told = report.refused.notes if report.verdict is None else ()
    notes = _noted(told, 1)
    if not report.finer:
        return [f"as asked for, it failed: {why}", *notes]
    forms = Counter(item.form for item in report.finer)
    lines = [
        f"{counted(len(report.finer), 'constant')} had to be stored finer than asked for, as "
        f"{', '.join(forms)} (--no-rescue refuses instead); without that it failed: {why}"
    ]
    return [*lines, *(finer_table(report.finer) if verbose else []), *notes]


def _damage_lines(report: Report, verbose: int) -> list[str]:
    damage = report.damage
    if damage is None:
        return []
    lines = []
    if damage.culprits:
        shown = damage.culprits[:10] if verbose else damage.culprits[:1]
        lines.append("what each constant costs when it alone is rewritten, worst first:")
        lines += table(
            ("tensor", "lowest SNR dB"),
            [
                (safe(item.tensor, limit=90), "does not run" if item.snr is None else decibels(item.snr))
                for item in shown
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


def _next(report: Report) -> list[str]:
    """Says what to do with the file; after a failure, the error says it."""
    if report.outcome != "rewritten":
        return []
    source, target = _shell(report.source), _shell(report.target)
    verdict = report.verdict
    worst = None if verdict is None or not verdict.passed else verdict.worst_snr()
    lossy = worst is not None and math.isfinite(worst)
    made = verdict is not None and verdict.sample_source == "made"
    if report.dry_run:
        return ["next: the same without --dry-run writes it"]
    if worst is not None and worst < _NOTICEABLE_DB:
        how = "judge it on your own data (--inputs)" if made else "--min-snr asks for less"
        return [f"next: the loss is noticeable: {worst:.1f} dB at the lowest; {how}"]
    if verdict is None or verdict.status == "unverified":
        return [f"next: try it where it is to run; 'tfl-rewrite diff {source} {target}' shows what changed"]
    if made and lossy:
        return ["next: judge it on your own data: --inputs FILE.npz, or a folder of pictures or sound"]
    return [f"next: 'tfl-rewrite diff {source} {target}' shows what changed; -v shows each constant"]


def _shell(path: str) -> str:
    return shlex.quote(safe(path))


def _quoted(name: str) -> str:
    """Returns a pattern for the shell that matches just this name; what terminals must not see, escaped."""
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
    lines += _noted(report.notes, 1)
    if report.outcome == "failed":
        return lines
    if report.unverified is not None:
        lines.append(f"UNVERIFIED: {safe(report.unverified, limit=400)}")
    elif report.verdict is not None:
        lines += verified_lines(report.verdict, verbose=verbose)
    elif report.command == "shard":
        lines.append(
            "verified: would be read back and compared" if report.dry_run else "verified: read back, equal"
        )
        lines.append(f"SHA-256 of the model: {report.sha256}")
    else:
        lines.append(f"verified: SHA-256 {report.sha256}")
    if report.command == "shard" and not report.dry_run:
        entry, what = _shell(report.entry), "joins it" if report.format == "parts" else "makes it one file"
        lines.append(f"next: 'tfl-rewrite join {entry} OUT' {what} again")
    return lines


def _word(status: str, report: ShardReport) -> str:
    return "would be written" if report.dry_run and status == "new" else _WORDS[status]


def _shard_headline(report: ShardReport) -> str:
    source = safe(report.source)
    target = safe(report.entry if report.command == "shard" else report.target)
    arrow = "-X->" if report.outcome == "failed" else "->"
    tail = " (dry run, not written)" if report.dry_run else ""
    return f"{source} {arrow} {target}: a model of {size(report.nbytes)} bytes{tail}"
