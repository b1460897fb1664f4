"""The tables of a rewrite, which ``-v`` shows: constants by operator type and one by one, and what stays."""

from __future__ import annotations

from collections.abc import Sequence

from tfl_rewrite.cli.text import decibels, safe, short_names, size, table
from tfl_rewrite.editing.base import Edit, PassResult, Skip
from tfl_rewrite.passes.round_weights import RoundedChange
from tfl_rewrite.pipeline.report import Finer
from tfl_rewrite.weights.payloads import WeightChange

_NAME = 60


def pass_tables(result: PassResult) -> list[str]:
    """Returns all that a pass did and left, in tables."""
    weights = [change for change in result.changes if isinstance(change, WeightChange)]
    rounded = [change for change in result.changes if isinstance(change, RoundedChange)]
    edits = [change for change in result.changes if isinstance(change, Edit)]
    return [
        *_edits(edits),
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


def finer_table(rows: Sequence[Finer]) -> list[str]:
    """Returns the constants that are stored finer than was asked for."""
    ordered = sorted(rows, key=lambda item: -item.added)
    names = short_names([item.tensor for item in ordered], limit=_NAME)
    return table(
        ("tensor", "stored as", "bytes more", "dB as asked, alone"),
        [
            (name, item.form, f"{item.added:+,}", "" if item.snr is None else decibels(item.snr))
            for name, item in zip(names, ordered, strict=True)
        ],
        right=(2, 3),
    )


def _edits(edits: Sequence[Edit]) -> list[str]:
    if not edits:
        return []
    names = short_names([edit.where for edit in edits], limit=_NAME)
    return table(
        ("where", "what", "saved"),
        [
            (name, safe(edit.what, limit=90), size(edit.saved) if edit.saved else "")
            for name, edit in zip(names, edits, strict=True)
        ],
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
    if not weights:
        return []
    ordered = sorted(weights, key=lambda change: -change.saved)
    names = short_names([change.where for change in ordered], limit=_NAME)
    return table(
        ("tensor", "read by", "form", "scales", "bytes", "saved", "SNR dB"),
        [
            (
                name,
                safe(",".join(change.readers), limit=40),
                _form(change),
                f"{change.channels}" if change.channels else "",
                "shared" if change.shared else f"{size(change.nbytes_before)} -> {size(change.nbytes_after)}",
                size(change.saved),
                decibels(change.snr),
            )
            for name, change in zip(names, ordered, strict=True)
        ],
        right=(3, 4, 5, 6),
    )


def _rounded(rounded: Sequence[RoundedChange]) -> list[str]:
    if not rounded:
        return []
    ordered = sorted(rounded, key=lambda change: -change.nbytes)
    names = short_names([change.where for change in ordered], limit=_NAME)
    return table(
        ("tensor", "read by", "step", "of each", "bytes", "deflated", "SNR dB"),
        [
            (
                name,
                safe(",".join(change.readers), limit=40),
                _step(change),
                change.granularity,
                size(change.nbytes),
                f"{size(change.deflated[0])} -> {size(change.deflated[1])}",
                decibels(change.snr),
            )
            for name, change in zip(names, ordered, strict=True)
        ],
        right=(4, 5, 6),
    )


def _step(change: RoundedChange) -> str:
    finest, coarsest = change.steps
    return f"{finest:.3g}" if finest == coarsest else f"{finest:.3g} to {coarsest:.3g}"


def _skips(skips: Sequence[Skip]) -> list[str]:
    if not skips:
        return []
    ordered = sorted(skips, key=lambda item: -item.data.get("nbytes", 0))
    names = short_names([item.where for item in ordered], limit=_NAME)
    return [
        f"{len(skips)} float constants stay:",
        *table(
            ("tensor", "bytes", "why"),
            [
                (name, size(item.data.get("nbytes", 0)), safe(item.reason, limit=200))
                for name, item in zip(names, ordered, strict=True)
            ],
            right=(1,),
        ),
    ]
