"""Sends jobs to an existing Dask cluster. Workers read and write the same paths: a shared file system."""

from __future__ import annotations

import contextlib
import importlib
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

from tfl_rewrite import __version__
from tfl_rewrite.batch.isolated import run_isolated, worker_version
from tfl_rewrite.batch.plan import Job
from tfl_rewrite.errors import UsageError

CONNECT_SECONDS = 5
STOP_SECONDS = 30
_POLL_SECONDS = 0.1
_CHECK = "check that it runs, and the address (dask://HOST:PORT)"


def run_cluster(jobs: Sequence[Job], *, address: str, stop: Path) -> Generator[dict[str, Any], None, None]:
    """Yields the row of each job as it ends.

    Args:
        jobs: Sent in this order.
        address: ``dask://HOST:PORT`` of the scheduler.
        stop: As for :func:`tfl_rewrite.batch.local.run_local`; workers see it on the shared file system.

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
        return {
            "name": job.name,
            "key": job.key,
            "version": __version__,
            "status": "crashed",
            "exit_code": 2,
            "message": f"its worker failed: {_short(error)}",
        }


def _short(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:197]}..."
