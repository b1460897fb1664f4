"""Runs jobs, each in a process of its own: several at once on this machine, or on workers of Dask.

Workers of a cluster read and write the same paths: a shared file system.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from tfl_rewrite import __version__
from tfl_rewrite.batch.plan import Job
from tfl_rewrite.errors import UsageError
from tfl_rewrite.interpreter.process import death_of

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
