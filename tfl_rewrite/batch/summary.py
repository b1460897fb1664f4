"""The summary of a batch: as a table, as JSON and as CSV."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tfl_rewrite import __version__
from tfl_rewrite.batch.plan import SUMMARIES

COLUMNS = (
    "name",
    "status",
    "exit_code",
    "nbytes_before",
    "nbytes_after",
    "verdict",
    "sample_source",
    "snr_db",
    "seconds",
    "resumed",
    "sha256",
    "message",
)
_FORMULAS = tuple("=+-@＝＋－＠")
"""What a formula begins with; also in full width, as some editions of spreadsheets take it."""
_WORST_FIRST = (4, 2, 3, 0)
"""Outputs differ; then what could not be read or died; then what was refused as unsupported."""


@dataclass(frozen=True, slots=True)
class Summary:
    """What became of every file.

    Attributes:
        rows: In order of names.
        stopped: Whether the batch was interrupted.
    """

    rows: tuple[dict[str, Any], ...]
    stopped: bool = False

    @property
    def exit_code(self) -> int:
        """130 if it was interrupted; 0 if every file is done; else the worst: 4, then 2, then 3."""
        if self.stopped:
            return 130
        codes = {row["exit_code"] for row in self.rows}
        return next((code for code in _WORST_FIRST if code in codes), 2)

    @property
    def counts(self) -> dict[str, int]:
        """How many files are of each status."""
        return dict(Counter(row["status"] for row in self.rows))

    def to_dict(self) -> dict[str, Any]:
        """Returns it as JSON data."""
        rows = [{name: row.get(name) for name in (*COLUMNS, "unverified", "key")} for row in self.rows]
        return {
            "schema": 1,
            "version": __version__,
            "exit_code": self.exit_code,
            "stopped": self.stopped,
            "counts": self.counts,
            "nbytes_before": sum(row.get("nbytes_before") or 0 for row in self.rows if _done(row)),
            "nbytes_after": sum(row.get("nbytes_after") or 0 for row in self.rows if _done(row)),
            "files": rows,
        }

    def contents(self) -> dict[str, bytes]:
        """Returns what ``summary.json`` and ``summary.csv`` are to hold."""
        text = io.StringIO()
        # All texts between quotes: some programs take a semicolon for the end of a cell.
        writer = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
        writer.writerow(COLUMNS)
        for row in self.rows:
            writer.writerow([_cell(row.get(name)) for name in COLUMNS])
        texts = (json.dumps(self.to_dict(), indent=2) + "\n", text.getvalue())
        return {
            name: text.encode("utf-8", "backslashreplace")
            for name, text in zip(SUMMARIES, texts, strict=True)
        }


def _done(row: dict[str, Any]) -> bool:
    return bool(row["exit_code"] == 0)


def _cell(value: object) -> object:
    """Returns what stands in a cell: nothing that a spreadsheet would compute, or a terminal would obey.

    Names come from files, and messages hold names. What begins like a formula gets an apostrophe before it
    (OWASP, CSV Injection), which spreadsheets do not show; control characters are escaped.
    """
    if value is None:
        return ""
    if not isinstance(value, str):
        return value
    text = "".join(
        char if char.isprintable() else char.encode("unicode_escape", "backslashreplace").decode("ascii")
        for char in value
    )
    return f"'{text}" if text.lstrip(" '\"")[:1] in _FORMULAS else text


def sorted_rows(rows: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], ...]:
    """Returns rows in order of names."""
    return tuple(sorted(rows, key=lambda row: str(row["name"])))
