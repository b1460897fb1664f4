"""Runs a batch: plan, leave out what is done, run the rest, sum up."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

from tfl_rewrite.batch.config import BatchConfig
from tfl_rewrite.batch.local import run_local
from tfl_rewrite.batch.places import write_below
from tfl_rewrite.batch.plan import SUMMARIES, Job, access_to, plan, sha256_of
from tfl_rewrite.batch.state import State, open_state
from tfl_rewrite.batch.summary import Summary, sorted_rows
from tfl_rewrite.errors import FileAccessError, UsageError

Progress = Callable[[int, int, dict[str, Any]], None]


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
    with open_state(config.out, access) as state:
        _check_summaries(config.out, state, force=force)
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
            _finish(config.out, state, rows, access, stopped=True)
            raise
        finally:
            stop.unlink(missing_ok=True)
            shutil.rmtree(state.home / "work", ignore_errors=True)
        return _finish(config.out, state, rows, access, stopped=False)


def _run(config: BatchConfig, jobs: list[Job], stop: Path) -> Generator[dict[str, Any], None, None]:
    if config.executor == "local":
        return run_local(jobs, at_once=config.jobs, stop=stop)
    from tfl_rewrite.batch.cluster import run_cluster

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
    summary = Summary(sorted_rows(rows), stopped)
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
