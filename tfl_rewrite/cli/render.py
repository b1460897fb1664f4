"""What is said of a file that was written: six lines; with ``-v`` the tables, too.

Names from files are shown escaped, so that they cannot write to the terminal.
"""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from tfl_rewrite.cli.render_judge import blame_lines, cost_lines, verdict_line, verdict_lines, verdict_rest
from tfl_rewrite.cli.text import (
    counted,
    decibels,
    escaped,
    name_limit,
    safe,
    shell,
    short_names,
    shown,
    size,
    table,
)
from tfl_rewrite.editing.base import Edit, PassResult, Skip
from tfl_rewrite.errors import shell_path
from tfl_rewrite.pipeline.report import Finer, Report

# A change is known by the name of its class: the modules of passes that did not run stay unloaded.
if TYPE_CHECKING:
    from tfl_rewrite.judge.verdict import Verdict
    from tfl_rewrite.passes.prune import PrunedChange
    from tfl_rewrite.passes.quantize import OperatorChange
    from tfl_rewrite.passes.round_weights import RoundedChange
    from tfl_rewrite.weights.payloads import WeightChange


_NOTICEABLE_DB = 20.0
_NAME = 60
T = TypeVar("T")


def report_lines(report: Report, *, verbose: int) -> list[str]:
    """Says what a rewrite did: sizes, what was done, notes, the verdict, its gaps, the next step."""
    lines = [_headline(report)]
    if verbose:
        for result in report.results:
            lines += [line for line in (_done(result, report),) if line]
            lines += _tables(result)
            lines += noted(result.notes, verbose)
        lines += _finer_lines(report, verbose)
    else:
        finer, *notes = _finer_lines(report, verbose) or [""]
        told = [*(_done(result, report) for result in report.results), finer]
        lines += ["; ".join(filter(None, told))] if any(told) else []
        lines += notes
    lines += noted(_notes(report, verbose), verbose)
    if report.verdict is not None:
        lines += verified_lines(report.verdict, verbose=verbose)
        lines += cost_lines(report.verdict, told_before=report.dry_run)
    elif report.unverified is not None and report.outcome != "failed":
        lines.append(f"UNVERIFIED: {safe(report.unverified, limit=400)}")
    lines += _damage_lines(report, verbose)
    if report.blame is not None:
        lines += blame_lines(report.blame, verbose=verbose > 0)
    return lines + next_lines(report, verbose=verbose)


def verified_lines(verdict: Verdict, *, verbose: int, asked: str = "") -> list[str]:
    """Says the verdict of a file that was made in two lines, or with all that was measured.

    Args:
        verdict: Of the file.
        verbose: Whether all is told.
        asked: As for :func:`verdict_line`.
    """
    head = "" if verdict.status == "unverified" else "verified: "
    rest = verdict_lines(verdict)[1:] if verbose else verdict_rest(verdict)
    return [f"{head}{verdict_line(verdict, asked=asked)}", *rest]


def _headline(report: Report) -> str:
    source, target = safe(report.source), safe(report.target)
    if report.outcome == "unchanged":
        done = "would be a verbatim copy" if report.dry_run else "is a verbatim copy"
        why = "nothing to do" if report.refused is None else "nothing could stay changed"
        unrun = "; equal bytes, so it was not run" if report.verdict is None else ""
        return f"{why}: {target} {done} of {source} ({size(report.nbytes_before)} bytes){unrun}"
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
    weights, rounded = _weight_changes(result), _rounded_changes(result)
    parts = [*_edited(_of("editing.base:Edit", result)), *_stored(weights, result)]
    if rounded:
        parts.append(f"{len(rounded)} of {len(rounded) + len(result.skips)} constants are rounded now")
    parts += _zeroed(_of("passes.prune:PrunedChange", result), result)
    parts += _in_integers(_of("passes.quantize:OperatorChange", result), result)
    parts += _lost(weights) + _silenced([*weights, *rounded])
    stay = Counter(item.rule for item in result.skips)
    if stay:
        told = ", ".join(f"{number} x {safe(rule)}" for rule, number in stay.most_common())
        parts.append(f"{sum(stay.values())} stay{'s' if sum(stay.values()) == 1 else ''} ({told})")
    if report.outcome == "unchanged" and result.idle:
        # With the file's name in the commands that the pass recommends.
        parts.append(safe(result.idle.replace(" IN OUT", f" {shell_path(report.source)} OUT"), limit=1000))
    return f"{result.name}: {'; '.join(parts)}" if parts else ""


def _of(kind: str, result: PassResult) -> list[Any]:
    """Returns the changes of a class of the package, ``module:class``."""
    return [
        change
        for change in result.changes
        if any(f"{each.__module__}:{each.__name__}" == f"tfl_rewrite.{kind}" for each in type(change).__mro__)
    ]


def _weight_changes(result: PassResult) -> list[WeightChange]:
    return _of("weights.payloads:WeightChange", result)


def _rounded_changes(result: PassResult) -> list[RoundedChange]:
    return _of("passes.round_weights:RoundedChange", result)


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
    floats = fresh + sum(skip.rule != "quantized" for skip in result.skips)
    done = [f"{fresh} of {floats} float constants are {kinds} now"] if fresh else []
    if renewed:
        done.append(f"{counted(renewed, 'integer constant')} stored anew as {kinds}")
    forms = Counter(change.scheme if kinds == "int8" else _form(change) for change in weights)
    told = ", ".join(f"{number} x {form}" for form, number in forms.most_common())
    return [f"{', '.join(done)} ({told})", _won(sum(change.saved for change in weights))]


def _zeroed(pruned: Sequence[PrunedChange], result: PassResult) -> list[str]:
    if not pruned:
        return []
    elements = sum(math.prod(change.shape) for change in pruned)
    share = sum(change.sparsity * math.prod(change.shape) for change in pruned) / max(1, elements)
    sparse = sum(change.encode == "sparse" for change in pruned)
    told = f"{len(pruned)} of {len(pruned) + len(result.skips)} constants are pruned now, {share:.0%} zeros"
    saved = sum(change.saved for change in pruned)
    return [told, *([f"{sparse} stored sparse, {_won(saved)}"] if sparse else [])]


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


def noted(notes: Sequence[str], verbose: int) -> list[str]:
    """Returns notes as lines; without ``verbose`` one, which counts the others."""
    if verbose or len(notes) < 2:
        return [f"note: {safe(note, limit=400)}" for note in notes]
    return [f"note: {safe(notes[0], limit=200)}; {counted(len(notes) - 1, 'more note')} with -v"]


def _finer_lines(report: Report, verbose: int) -> list[str]:
    """Names the constants that are stored finer than was asked for, and why."""
    if report.refused is None:
        return []
    told = "; ".join(report.refused.reasons)
    why = safe(told, limit=300)
    first, *rest = told.split("; ")
    if rest and not verbose:
        # The first is the ratio of an output; what it lost besides comes of the same.
        why = f"{safe(first, limit=120)} ({counted(len(rest), 'more reason')} with -v)"
    # Such as of inputs that are not finite, which may be the reason; a verdict on what was made has its own.
    notes = noted(report.refused.notes if report.verdict is None else (), verbose)
    if not report.finer:
        return [f"as asked for, it failed: {why}", *notes]
    forms = Counter(item.form for item in report.finer)
    lines = [
        f"{counted(len(report.finer), 'constant')} had to be stored finer than asked for, as "
        f"{', '.join(forms)} (--no-rescue refuses instead); without that it failed: {why}"
    ]
    return [*lines, *(_finer_table(report.finer) if verbose else []), *notes]


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


def next_lines(report: Report, *, verbose: int, less: str = "a higher --min-snr loses less") -> list[str]:
    """Says what to do with the file; after a failure, the error says it.

    Args:
        report: Of what was done.
        verbose: Whether each change was told.
        less: With what less is lost.
    """
    if report.outcome != "rewritten":
        return []
    files = f"{shell(report.source)} {shell(report.target)}"
    is_stream = any(shown(name) != name for name in (report.source, report.target))
    verdict = report.verdict
    worst = None if verdict is None or not verdict.passed else verdict.worst_snr()
    lossy = worst is not None and math.isfinite(worst)
    made = verdict is not None and verdict.sample_source == "made"
    # A command ends the line, so that it can be copied.
    shows = () if verbose else ("-v shows each change",)
    diff = "; ".join((*shows, *(() if is_stream else (f"what changed: tfl-rewrite diff {files}",))))
    judge = (
        "judge it on your own data, with --inputs"
        if is_stream
        else (f"judge it on your own data: tfl-rewrite verify {files} --inputs FILE.npz")
    )
    if report.dry_run:
        return ["next: the same without --dry-run writes it"]
    if worst is not None and worst < _NOTICEABLE_DB:
        how = judge if made else less
        return [f"next: the loss is noticeable: {worst:.1f} dB at the lowest; {how}"]
    if verdict is None or verdict.status == "unverified":
        return [f"next: {'; '.join(filter(None, ('try it where it is to run', diff)))}"]
    told = judge if made and lossy else diff
    return [f"next: {told}"] if told else []


def _quoted(name: str) -> str:
    """Returns a pattern for the shell that matches just this name; what terminals must not see, escaped."""
    from tfl_rewrite.options.patterns import exact

    return shlex.quote("".join(map(escaped, exact(name))))


def _named(
    head: Sequence[str],
    items: Sequence[T],
    name: Callable[[T], str],
    cells: Callable[[T], Sequence[str]],
    *,
    right: Iterable[int] = (),
) -> list[str]:
    """Lays out a table whose first column holds names, cut where they agree; nothing without any items."""
    others = [cells(item) for item in items]
    names = short_names([name(item) for item in items], limit=name_limit([head[1:], *others]))
    rows = [(shown, *rest) for shown, rest in zip(names, others, strict=True)]
    return table(head, rows, right=right) if rows else []


def _tables(result: PassResult) -> list[str]:
    """Returns all that a pass did and left, in tables."""
    weights = _weight_changes(result)
    return [
        *_edits(_of("editing.base:Edit", result)),
        *_operators(_of("passes.quantize:OperatorChange", result)),
        *_by_operator(weights),
        *_weights(weights),
        *_rounded(_rounded_changes(result)),
        *_pruned(_of("passes.prune:PrunedChange", result)),
        *_skips([item for item in result.skips if "dtype" in item.data]),
        *[
            f"kept: {safe(item.where, limit=_NAME)} ({safe(item.reason, limit=160)})"
            for item in result.skips
            if "dtype" not in item.data
        ],
    ]


def _operators(changes: Sequence[OperatorChange]) -> list[str]:
    if not changes:
        return []
    counts = Counter((change.operator, change.activations) for change in changes)
    rows = [(name, kind, str(number)) for (name, kind), number in counts.most_common()]
    return table(("operator", "computes in", "number"), rows, right=(2,))


def _finer_table(rows: Sequence[Finer]) -> list[str]:
    """Returns the constants that are stored finer than was asked for."""
    return _named(
        ("tensor", "stored as", "bytes more", "dB as asked, alone"),
        sorted(rows, key=lambda item: -item.added),
        lambda item: item.tensor,
        lambda item: (item.form, f"{item.added:+,}", "" if item.snr is None else decibels(item.snr)),
        right=(2, 3),
    )


def _edits(edits: Sequence[Edit]) -> list[str]:
    return _named(
        ("where", "what", "saved"),
        edits,
        lambda edit: edit.where,
        lambda edit: (safe(edit.what, limit=90), size(edit.saved) if edit.saved else ""),
        right=(2,),
    )


def _by_operator(weights: Sequence[WeightChange]) -> list[str]:
    """Sums the constants by the type of the operator that reads them and by their form."""
    if not weights:
        return []
    groups: dict[tuple[str, str], list[WeightChange]] = {}
    for change in weights:
        groups.setdefault((",".join(change.readers), _form(change)), []).append(change)
    rows = [(who, how, group) for (who, how), group in groups.items()]
    rows.sort(key=lambda row: -sum(change.saved for change in row[2]))
    cells = [(safe(who, limit=40), how, *_sums(group)) for who, how, group in rows]
    return table(
        ("read by", "form", "constants", "bytes", "saved", "lowest SNR dB"),
        [*cells, ("all", "", *_sums(weights))],
        right=(2, 3, 4, 5),
    )


def _sums(weights: Sequence[WeightChange]) -> tuple[str, str, str, str]:
    own = [change for change in weights if not change.shared]
    before, after = (sum(getattr(change, f"nbytes_{when}") for change in own) for when in ("before", "after"))
    return (
        size(len(weights)),
        f"{size(before)} -> {size(after)}",
        size(sum(change.saved for change in weights)),
        decibels(min(change.snr for change in weights)),
    )


def _form(change: WeightChange) -> str:
    return f"{change.encoding} {change.scheme}"


def _weights(weights: Sequence[WeightChange]) -> list[str]:
    return _named(
        ("tensor", "read by", "form", "scales", "bytes", "saved", "SNR dB"),
        sorted(weights, key=lambda change: -change.saved),
        lambda change: change.where,
        lambda change: (
            safe(",".join(change.readers), limit=40),
            _form(change),
            f"{change.channels}" if change.channels else "",
            "shared" if change.shared else f"{size(change.nbytes_before)} -> {size(change.nbytes_after)}",
            size(change.saved),
            decibels(change.snr),
        ),
        right=(3, 4, 5, 6),
    )


def _rounded(rounded: Sequence[RoundedChange]) -> list[str]:
    return _named(
        ("tensor", "read by", "step", "of each", "bytes", "deflated", "SNR dB"),
        sorted(rounded, key=lambda change: -change.nbytes),
        lambda change: change.where,
        lambda change: (
            safe(",".join(change.readers), limit=40),
            _step(change),
            change.granularity,
            size(change.nbytes),
            f"{size(change.deflated[0])} -> {size(change.deflated[1])}",
            decibels(change.snr),
        ),
        right=(4, 5, 6),
    )


def _pruned(pruned: Sequence[PrunedChange]) -> list[str]:
    return _named(
        ("tensor", "read by", "zeros", "stored", "bytes", "deflated", "SNR dB"),
        sorted(pruned, key=lambda change: -change.nbytes),
        lambda change: change.where,
        lambda change: (
            safe(",".join(change.readers), limit=40),
            f"{change.sparsity:.0%}",
            change.encode,
            size(change.nbytes),
            f"{size(change.deflated[0])} -> {size(change.deflated[1])}",
            decibels(change.snr),
        ),
        right=(2, 4, 5, 6),
    )


def _step(change: RoundedChange) -> str:
    finest, coarsest = change.steps
    return f"{finest:.3g}" if finest == coarsest else f"{finest:.3g} to {coarsest:.3g}"


def _skips(skips: Sequence[Skip]) -> list[str]:
    rows = _named(
        ("tensor", "bytes", "why"),
        sorted(skips, key=lambda item: -item.data.get("nbytes", 0)),
        lambda item: item.where,
        lambda item: (size(item.data.get("nbytes", 0)), safe(item.reason, limit=200)),
        right=(1,),
    )
    return [f"{len(skips)} constants stay:", *rows] if rows else []
