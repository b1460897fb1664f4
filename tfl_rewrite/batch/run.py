"""Runs a batch: plan, leave out what is done, run the rest, sum up as a table, as JSON and as CSV.

Each job runs in a process of its own: several at once on this machine, or on workers of Dask. Workers of a
cluster read and write the same paths: a shared file system.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import importlib
import io
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tfl_rewrite import __version__
from tfl_rewrite.batch.config import BatchConfig
from tfl_rewrite.batch.plan import SUMMARIES, Job, access_to, plan, sha256_of
from tfl_rewrite.batch.state import State, open_state, write_below
from tfl_rewrite.errors import FileAccessError, UsageError
from tfl_rewrite.interpreter.process import death_of
from tfl_rewrite.work import signal_of

Progress = Callable[[int, int, dict[str, Any]], None]
COLUMNS = (
    "name",
    "status",
    "exit_code",
    "nbytes_before",
    "nbytes_after",
    "verdict",
    "assumed",
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
        stopped: What interrupted the batch, if anything did.
    """

    rows: tuple[dict[str, Any], ...]
    stopped: signal.Signals | None = None

    @property
    def exit_code(self) -> int:
        """Above 128 if a signal ended it; 0 if every file is done; else the worst: 4, then 5, 2 and 3."""
        if self.stopped is not None:
            return 128 + self.stopped
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
            "stopped": self.stopped is not None,
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
        KeyboardInterrupt: It was stopped; what is done is done, and the summary is written. Its arguments are
            the signal, and how far the batch is.
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
            return _finish(config.folder, state, rows, access)
        except BaseException as error:
            number = signal_of(error) if isinstance(error, KeyboardInterrupt) else signal.SIGINT
            _finish(config.folder, state, rows, access, stopped=number)
            if isinstance(error, KeyboardInterrupt):
                files = "file is" if len(jobs) == 1 else "files are"
                error.args = (number, f"{len(rows)} of {len(jobs)} {files} done; run it again to go on")
            raise
        finally:
            stop.unlink(missing_ok=True)
            shutil.rmtree(state.home / "work", ignore_errors=True)


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


def _finish(
    out: Path,
    state: State,
    rows: list[dict[str, Any]],
    access: int,
    *,
    stopped: signal.Signals | None = None,
) -> Summary:
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


STOPPED = 130
_POLL_SECONDS = 0.2
_GRACE_SECONDS = 10.0
_TAIL = 600
_SCRIPT = Path(__file__).with_name("job.py")


def run_isolated(data: dict[str, Any], stop: str) -> dict[str, Any]:
    """Runs a job; whatever becomes of its process, there is a row.

    Args:
        data: :meth:`tfl_rewrite.batch.plan.Job.to_dict`.
        stop: A path; once something is there, the job is ended.

    Returns:
        A row of the summary; ``exit_code`` 130 if it was stopped.
    """
    job = Job.from_dict(data)
    if Path(stop).exists():
        return _row(job, "stopped", STOPPED, "stopped before it began")
    process = subprocess.Popen(
        [sys.executable, str(_SCRIPT)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    said: dict[str, bytes] = {}
    readers = [_reader(process, name, said) for name in ("stdout", "stderr")]
    assert process.stdin is not None
    try:
        process.stdin.write(json.dumps(data).encode("ascii") + b"\n")
        process.stdin.flush()
    except BrokenPipeError:
        pass  # It died; that shows below.
    stopped = _wait(process, Path(stop))
    for reader in readers:
        reader.join()
    process.stdin.close()
    shutil.rmtree(job.work, ignore_errors=True)
    if process.returncode == 0:
        try:
            row: dict[str, Any] = json.loads(said["stdout"])
            return row
        except ValueError:
            pass
    if stopped or process.returncode == STOPPED:
        return _row(job, "stopped", STOPPED, "stopped")
    return _row(job, "crashed", 2, _death(process.returncode, said["stderr"]))


def worker_version() -> str:
    """Returns the version of this package where it is called."""
    return __version__


def _reader(process: subprocess.Popen[bytes], name: str, said: dict[str, bytes]) -> threading.Thread:
    stream = getattr(process, name)

    def read() -> None:
        said[name] = stream.read()

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    return thread


def _wait(process: subprocess.Popen[bytes], stop: Path) -> bool:
    """Waits for the end; returns whether it was brought about."""
    while True:
        try:
            process.wait(_POLL_SECONDS)
            return False
        except subprocess.TimeoutExpired:
            if not stop.exists():
                continue
        process.terminate()
        try:
            process.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        return True


def _death(code: int, stderr: bytes) -> str:
    last = " ".join(stderr.decode("utf-8", "replace").split())[-_TAIL:] if code >= 0 else ""
    return f"its process {death_of(code)}{last and f': {last}'}"


def _row(job: Job, status: str, exit_code: int, message: str) -> dict[str, Any]:
    return {
        "name": job.name,
        "key": job.key,
        "version": __version__,
        "status": status,
        "exit_code": exit_code,
        "message": message,
    }


def run_local(jobs: Sequence[Job], *, at_once: int, stop: Path) -> Generator[dict[str, Any], None, None]:
    """Yields the row of each job as it ends.

    Args:
        jobs: Started in this order.
        at_once: How many; 0 for one per processor.
        stop: Ends what is running, once something is there; it is made when the caller stops listening.
    """
    pool = ThreadPoolExecutor(at_once or os.cpu_count() or 1)
    futures = [pool.submit(run_isolated, job.to_dict(), str(stop)) for job in jobs]
    try:
        for future in as_completed(futures):
            yield future.result()
    except BaseException:
        stop.touch()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


CONNECT_SECONDS = 5
STOP_SECONDS = 30
_CHECK = "check that it runs, and the address (dask://HOST:PORT)"


def run_cluster(jobs: Sequence[Job], *, address: str, stop: Path) -> Generator[dict[str, Any], None, None]:
    """Yields the row of each job as it ends.

    Args:
        jobs: Sent in this order.
        address: ``dask://HOST:PORT`` of the scheduler.
        stop: As for :func:`run_local`; workers see it on the shared file system.

    Raises:
        UsageError: Dask is not installed, no scheduler answers, it has no workers, or they have another
            version of this package.
    """
    try:
        # As a module: it is installed or not, and typed or not.
        distributed = importlib.import_module("distributed")
    except ImportError:
        raise UsageError("dask is not installed", remedy="pip install 'tfl-rewrite[dask]'") from None
    where = f"tcp://{address.removeprefix('dask://')}"
    try:
        client = distributed.Client(where, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, TimeoutError, ValueError, TypeError) as error:
        reason = f"no scheduler answers at {address} within {CONNECT_SECONDS} s"
        raise UsageError(f"{reason} ({_short(error)})", remedy=_CHECK) from None
    with client:
        _check_workers(client, address)
        futures = {
            client.submit(
                run_isolated, job.to_dict(), str(stop), key=f"tfl-rewrite-{job.key}", pure=False
            ): job
            for job in jobs
        }
        try:
            for future in distributed.as_completed(list(futures), loop=client.loop):
                yield _result(future, futures[future])
        except BaseException:
            # What has begun sees the file and ends; what has not, ends at once when it begins.
            with contextlib.suppress(OSError):
                stop.touch()
            deadline = time.monotonic() + STOP_SECONDS
            while any(item.status == "pending" for item in futures) and time.monotonic() < deadline:
                time.sleep(_POLL_SECONDS)
            raise


def _check_workers(client: Any, address: str) -> None:
    try:
        versions = client.run(worker_version)
    except Exception as error:
        raise UsageError(
            f"the workers of {address} cannot run this program: {_short(error)}",
            remedy=f"install tfl-rewrite {__version__} there",
        ) from None
    if not versions:
        raise UsageError(f"the scheduler at {address} has no workers", remedy="start some: dask worker")
    others = sorted({version for version in versions.values() if version != __version__})
    if others:
        raise UsageError(
            f"workers have tfl-rewrite {', '.join(map(str, others))}, this is {__version__}",
            remedy="install the same version everywhere",
        )


def _result(future: Any, job: Job) -> dict[str, Any]:
    try:
        row: dict[str, Any] = future.result()
        return row
    except Exception as error:
        # The worker died, or the cluster gave up on the job.
        return _row(job, "crashed", 2, f"its worker failed: {_short(error)}")


def _short(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:197]}..."
