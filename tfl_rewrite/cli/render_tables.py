"""The tables of a rewrite, which ``-v`` shows: constants by operator type and one by one, and what stays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from tfl_rewrite.cli.text import decibels, safe, short_names, size, table
from tfl_rewrite.editing.base import Edit, PassResult, Skip
from tfl_rewrite.passes.quantize import OperatorChange
from tfl_rewrite.passes.round_weights import RoundedChange
from tfl_rewrite.pipeline.report import Finer
from tfl_rewrite.weights.payloads import WeightChange

_NAME = 60
T = TypeVar("T")


def _named(
    head: Sequence[str],
    items: Sequence[T],
    name: Callable[[T], str],
    cells: Callable[[T], Sequence[str]],
    *,
    right: Iterable[int] = (),
) -> list[str]:
    """Lays out a table whose first column holds names, cut where they agree; nothing without any items."""
    names = short_names([name(item) for item in items], limit=_NAME)
    rows = [(shown, *cells(item)) for shown, item in zip(names, items, strict=True)]
    return table(head, rows, right=right) if rows else []


def pass_tables(result: PassResult) -> list[str]:
    """Returns all that a pass did and left, in tables."""
    weights = [change for change in result.changes if isinstance(change, WeightChange)]
    rounded = [change for change in result.changes if isinstance(change, RoundedChange)]
    edits = [change for change in result.changes if isinstance(change, Edit)]
    return [
        *_edits(edits),
        *_operators([change for change in result.changes if isinstance(change, OperatorChange)]),
        *_by_operator(weights),
        *_weights(weights),
        *_rounded(rounded),
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


def finer_table(rows: Sequence[Finer]) -> list[str]:
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
    return [f"{len(skips)} float constants stay:", *rows] if rows else []
