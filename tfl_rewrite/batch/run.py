"""Runs a batch: plan, leave out what is done, run the rest, sum up as a table, as JSON and as CSV."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import os
import shutil
import stat
from collections import Counter
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tfl_rewrite import __version__
from tfl_rewrite.batch.config import BatchConfig
from tfl_rewrite.batch.executors import run_cluster, run_local
from tfl_rewrite.batch.plan import SUMMARIES, Job, access_to, plan, sha256_of
from tfl_rewrite.batch.state import State, open_state, write_below
from tfl_rewrite.errors import FileAccessError, UsageError

Progress = Callable[[int, int, dict[str, Any]], None]
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
_WORST_FIRST = (4, 5, 2, 3, 0)
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
        """130 if it was interrupted; 0 if every file is done; else the worst: 4, then 5, 2 and 3."""
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


def run_batch(config: BatchConfig, *, force: bool = False, progress: Progress | None = None) -> Summary:
    """Applies a list of passes to many files.

    Each file is rewritten and verified in a process of its own; a failure is a row of the summary and ends
    nothing else. Outputs appear under their names whole or not at all. A second call does what the first
    left: files whose input, settings, real inputs and program version are the same, and whose output is
    still what was written, are not run again.

    Args:
        config: What to do.
        force: Whether outputs may replace files that no batch made.
        progress: Called with how many files are done, how many there are, and the last row.

    Raises:
        UsageError, FileAccessError: The batch cannot begin.
        KeyboardInterrupt: It was stopped; what is done is done, and the summary is written.
    """
    jobs = plan(config, force=force)
    access = access_to(jobs)
    with open_state(config.folder, access) as state:
        _check_summaries(config.folder, state, force=force)
        rows, waiting = _resumed(jobs, state)
        stop = state.home / f"stop-{os.getpid()}-{os.urandom(4).hex()}"
        say = progress or (lambda _done, _total, _row: None)
        for number, row in enumerate(rows):
            say(number + 1, len(jobs), row)
        try:
            # Closed before anything is put in order: until then, jobs run.
            with contextlib.closing(_run(config, waiting, stop)) as ended:
                for row in ended:
                    rows.append(row)
                    state.add(row)
                    say(len(rows), len(jobs), row)
        except BaseException:
            _finish(config.folder, state, rows, access, stopped=True)
            raise
        finally:
            stop.unlink(missing_ok=True)
            shutil.rmtree(state.home / "work", ignore_errors=True)
        return _finish(config.folder, state, rows, access, stopped=False)


def _run(config: BatchConfig, jobs: list[Job], stop: Path) -> Generator[dict[str, Any], None, None]:
    if config.executor == "local":
        return run_local(jobs, at_once=config.jobs, stop=stop)
    return run_cluster(jobs, address=config.executor, stop=stop)


def _check_summaries(out: Path, state: State, *, force: bool) -> None:
    """Refuses to replace a summary that no batch wrote."""
    for path in [out / name for name in SUMMARIES]:
        try:
            mode = path.lstat().st_mode
        except FileNotFoundError:
            continue
        if stat.S_ISDIR(mode):
            raise UsageError("is a directory", file=path, remedy="remove it, or use another --out")
        if not force and not (stat.S_ISREG(mode) and state.summarizes(sha256_of(path))):
            raise UsageError(
                "exists already, and is not as a batch wrote it",
                file=path,
                remedy="use --force to overwrite it, or another --out",
            )


def _finish(out: Path, state: State, rows: list[dict[str, Any]], access: int, *, stopped: bool) -> Summary:
    summary = Summary(tuple(sorted(rows, key=lambda row: str(row["name"]))), stopped)
    contents = summary.contents()
    for data in contents.values():
        state.add_summary(hashlib.sha256(data).hexdigest())
    for name, data in contents.items():
        write_below(out, name, data, access=access)
    return summary


def _resumed(jobs: list[Job], state: State) -> tuple[list[dict[str, Any]], list[Job]]:
    """Splits jobs into the rows of those that are done and those that wait."""
    rows, waiting = [], []
    for job in jobs:
        row = state.done(job.key)
        if row is not None and _hash(job.target) == row["sha256"]:
            rows.append({**row, "resumed": True})
        else:
            waiting.append(replace(job, replace=state.made(job.name)))
    return rows, waiting


def _hash(path: str) -> str:
    try:
        return sha256_of(path)
    except FileAccessError:
        return ""
