"""Runs jobs on this machine, several at once, each in a process of its own."""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from tfl_rewrite.batch.isolated import run_isolated
from tfl_rewrite.batch.plan import Job


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
