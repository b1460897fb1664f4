"""Starts a job in a process of its own and waits for it; the same on this machine and on a Dask worker."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from tfl_rewrite import __version__
from tfl_rewrite.batch.plan import Job

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
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        hint = "; the system may have run out of memory" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{hint}"
    last = " ".join(stderr.decode("utf-8", "replace").split())[-_TAIL:]
    return f"its process ended with code {code}: {last}"


def _row(job: Job, status: str, exit_code: int, message: str) -> dict[str, Any]:
    return {
        "name": job.name,
        "key": job.key,
        "version": __version__,
        "status": status,
        "exit_code": exit_code,
        "message": message,
    }
