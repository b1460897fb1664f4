"""``batch``: what it does and how it is shown."""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tfl_rewrite.batch.config import ORDER, BatchConfig, Settings, plain_config, read_config
from tfl_rewrite.batch.run import Summary, run_batch
from tfl_rewrite.cli import options
from tfl_rewrite.cli.progress import AFTER_SECONDS
from tfl_rewrite.cli.text import decibels, safe, show, size, table, warn

_FAILURES = 10


def batch_files(arguments: argparse.Namespace) -> int:
    """``tfl-rewrite batch CONFIG.toml|GLOB... --out DIR``."""
    config = _config(arguments)
    progress = _Progress(arguments)
    try:
        summary = run_batch(config, force=arguments.force, progress=progress)
    finally:
        progress.close()
    show(
        arguments,
        summary.to_dict,
        lambda: summary_lines(summary, config.folder, verbose=arguments.verbose),
        product=False,
    )
    return summary.exit_code


def _config(arguments: argparse.Namespace) -> BatchConfig:
    values = options.given(Settings, arguments)
    order = {name: values.pop(name) for name in ORDER if name in values}
    # One replaces the others, also that of the file.
    given = {**dict.fromkeys(ORDER if order else ()), **order}
    given |= options.given(BatchConfig, arguments, without=("inputs",))
    inputs = arguments.what
    if len(inputs) == 1 and inputs[0].endswith(".toml"):
        return read_config(Path(inputs[0]), given, values)
    return plain_config(inputs, given, values)


def summary_lines(summary: Summary, out: Path, *, verbose: int) -> list[str]:
    """Shows a row for each file, and the sum."""
    lines = []
    if verbose:
        lines += table(
            ("file", "status", "before", "after", "", "verified", "SNR dB", "s"),
            [_cells(row) for row in summary.rows],
            right=(2, 3, 4, 6, 7),
        )
    failed = [
        f"{safe(row['name'])}: exit {row['exit_code']}: {safe(row['message'], limit=400)}"
        for row in summary.rows
        if row["exit_code"] and row["message"]
    ]
    lines += failed if verbose else failed[:_FAILURES]
    if not verbose and len(failed) > _FAILURES:
        lines.append(f"... and {len(failed) - _FAILURES} more failed (-v lists them)")
    data = summary.to_dict()
    counts = ", ".join(f"{count} {status}" for status, count in sorted(summary.counts.items()))
    count = len(summary.rows)
    resumed = sum(bool(row.get("resumed")) for row in summary.rows)
    earlier = f" ({resumed} of them before, and not again)" if resumed else ""
    lines.append(f"{count} file{'' if count == 1 else 's'}: {counts}{earlier}")
    before, after = data["nbytes_before"], data["nbytes_after"]
    if before:
        lines.append(f"done: {size(before)} -> {size(after)} bytes ({100 * after / before:.1f} %)")
    ratios = [row["snr_db"] for row in summary.rows if row.get("snr_db") is not None]
    verdicts = Counter(_verdict(row) or "unverified" for row in summary.rows if not row["exit_code"])
    if verdicts:
        told = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.most_common())
        least = min(map(float, ratios), default=None)
        worst = "all exact" if least == math.inf else f"lowest SNR {decibels(least or 0.0)} dB"
        lines.append(f"verified: {told}" + ("" if least is None else f"; {worst}"))
    lines.append(f"next: {safe(str(out / 'summary.json'))} and summary.csv have each file; so has -v")
    return lines


def _verdict(row: dict[str, Any]) -> str:
    """Returns the status and what it rests on; nothing where there is none."""
    assumed = row.get("assumed")
    return (row.get("verdict") or "") + (f" ({safe(assumed)})" if assumed else "")


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    before, after = row.get("nbytes_before"), row.get("nbytes_after")
    ratio = f"{100 * after / before:.1f} %" if before and after else ""
    snr = row.get("snr_db")
    return (
        safe(row["name"], limit=70),
        row["status"] + (" (before)" if row.get("resumed") else ""),
        size(before) if before else "",
        size(after) if after else "",
        ratio,
        _verdict(row) or ("unverified" if row.get("unverified") else ""),
        "" if snr is None else decibels(float(snr)),
        f"{row['seconds']:.1f}" if "seconds" in row else "",
    )


_LOG_EVERY_SECONDS = 10.0


class _Progress:
    """Counts files; on a terminal it shows how far it is, in a log it says so now and then."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._wanted = sys.stderr is not None and not arguments.quiet
        self._shown = self._wanted and sys.stderr.isatty()
        self._next = time.monotonic() + AFTER_SECONDS
        self._failed = 0

    def __call__(self, done: int, total: int, row: dict[str, Any]) -> None:
        self._failed += row["exit_code"] != 0
        files = "file" if total == 1 else "files"
        text = f"{done} of {total} {files}{f', {self._failed} failed' if self._failed else ''}"
        if self._shown:
            print(f"\r{text}\x1b[K", end="", file=sys.stderr, flush=True)
        elif self._wanted and time.monotonic() >= self._next:
            warn(f"tfl-rewrite: {text}")
            self._next = time.monotonic() + _LOG_EVERY_SECONDS

    def close(self) -> None:
        """Clears the line."""
        if self._shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
            self._shown = False
