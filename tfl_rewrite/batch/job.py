"""One job in a process of its own: reads a job from standard input, writes its row to standard output.

The process ends itself when standard input is closed: then nobody waits for it any more. This file is started
by path, so that nothing is imported from the current folder.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    if not getattr(sys.flags, "safe_path", False):
        # The folder of this script, or the current one, would otherwise come first.
        del sys.path[0]
    if "tfl_rewrite" not in sys.modules:
        # This very package, wherever it lies; but not what lies beside it.
        import importlib.util
        from pathlib import Path

        _home = Path(__file__).parents[1]
        _spec = importlib.util.spec_from_file_location(
            "tfl_rewrite", _home / "__init__.py", submodule_search_locations=[str(_home)]
        )
        assert _spec is not None and _spec.loader is not None
        sys.modules["tfl_rewrite"] = importlib.util.module_from_spec(_spec)
        _spec.loader.exec_module(sys.modules["tfl_rewrite"])

import contextlib
import json
import os
import shutil
import signal
import stat
import threading
import time
import warnings
from pathlib import Path, PurePath
from types import FrameType
from typing import Any

from tfl_rewrite import __version__
from tfl_rewrite.batch.plan import ROWS, Job, sha256_of
from tfl_rewrite.batch.state import folder_below, write_below
from tfl_rewrite.errors import TflRewriteError, UsageError
from tfl_rewrite.files.atomic import PLAIN, access_of
from tfl_rewrite.passes import catalog
from tfl_rewrite.pipeline.report import Report, RewriteFailed
from tfl_rewrite.search.report import ShrinkFailed, ShrinkReport
from tfl_rewrite.search.rewrite import rewrite
from tfl_rewrite.search.shrink import shrink


def run_job(job: Job) -> dict[str, Any]:
    """Rewrites one file and says how that went; only interrupts leave this function.

    Returns:
        A row of the summary.
    """
    started = time.monotonic()
    report: Report | None = None
    row: dict[str, Any] = {"name": job.name, "key": job.key, "version": __version__}
    out, target = Path(job.home).parent, Path(job.target)
    made = job.work / target.name
    try:
        out.mkdir(parents=True, exist_ok=True)
        with (
            folder_below(out, job.work.relative_to(out)) as work,
            folder_below(out, target.parent.relative_to(out)) as place,
        ):
            _check_target(job, place)
            report = _rewritten(job, made)
            digest = sha256_of(made)
            _check_target(job, place)
            row |= {"status": report.outcome, "exit_code": 0, "message": "", "sha256": digest}
            # Told before it is done: who takes over from a batch that was killed must know its own output.
            _leave_row(job, {**row, **_figures(report)})
            os.replace(made.name, target.name, src_dir_fd=work, dst_dir_fd=place)
    except (RewriteFailed, ShrinkFailed) as error:
        report = error.report if isinstance(error, RewriteFailed) else None
        with contextlib.suppress(OSError):
            _write_report(job, error.report)
        row |= {"status": "failed", "exit_code": error.exit_code, "message": _line(error)}
    except TflRewriteError as error:
        row |= {"status": "refused", "exit_code": error.exit_code or 2, "message": _line(error)}
    except (RecursionError, MemoryError) as error:
        row |= {"status": "refused", "exit_code": 2, "message": f"{type(error).__name__}: {job.source}"}
    except OSError as error:
        row |= {"status": "refused", "exit_code": 2, "message": f"{error.filename}: {error.strerror}"}
    finally:
        shutil.rmtree(job.work, ignore_errors=True)
    row |= _figures(report)
    row["seconds"] = round(time.monotonic() - started, 3)
    return row


def _rewritten(job: Job, made: Path) -> Report:
    """Makes the file, and writes all that is known of it beside the batch."""
    settings, goal = job.settings, job.settings.goal
    if goal is not None:
        found = shrink(job.source, made, goal, judging=settings.judging, force=True, threads=1)
        _write_report(job, found)
        assert found.report is not None
        return found.report
    passes = catalog.preset(settings.preset) if settings.preset else catalog.passes_of(settings.passes)
    # Files run beside each other: one thread for each is enough.
    report = rewrite(job.source, made, passes, judging=settings.judging, force=True, threads=1)
    _write_report(job, report)
    return report


def _write_report(job: Job, report: Report | ShrinkReport) -> None:
    home = Path(job.home)
    text = json.dumps({**report.to_dict(), "target": job.target}, indent=2, allow_nan=False)
    place = PurePath(home.name, "reports", f"{job.name}.json")
    write_below(home.parent, place, f"{text}\n".encode("ascii"), access=access_of(job.source) & PLAIN)


def _leave_row(job: Job, row: dict[str, Any]) -> None:
    home = Path(job.home)
    place = PurePath(home.name, ROWS, f"{job.key}.json")
    write_below(home.parent, place, json.dumps(row).encode("ascii"), access=access_of(job.source) & PLAIN)


def _check_target(job: Job, place: int) -> None:
    """Refuses to replace a file that no batch made.

    Args:
        job: Whose target it is.
        place: Descriptor of the folder of the target.
    """
    try:
        mode = os.stat(Path(job.target).name, dir_fd=place, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return
    if stat.S_ISDIR(mode):
        raise UsageError("is a directory", file=job.target, remedy="remove it, or use another --out")
    if job.force or (job.replace and stat.S_ISREG(mode) and sha256_of(job.target) == job.replace):
        return
    raise UsageError("exists already", file=job.target, remedy="use --force to overwrite it")


def _figures(report: Report | None) -> dict[str, Any]:
    if report is None:
        return {}
    verdict = report.verdict
    worst = verdict.worst_snr() if verdict is not None else None
    return {
        "nbytes_before": report.nbytes_before,
        "nbytes_after": report.nbytes_after if report.outcome != "failed" else None,
        "verdict": verdict.status if verdict is not None else None,
        "snr_db": None if worst is None else "inf" if worst == float("inf") else round(worst, 3),
        "unverified": report.unverified,
        "assumed": ", ".join(verdict.assumed) if verdict is not None else None,
        "sample_source": verdict.sample_source if verdict is not None else None,
    }


def _line(error: TflRewriteError) -> str:
    return " ".join(str(error).split())


def main() -> None:
    """Runs the job that standard input names."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, stop)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    # What libraries print must not mix with the row.
    out = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)
    try:
        job = Job.from_dict(json.loads(sys.stdin.readline()))
        threading.Thread(target=_watch, daemon=True).start()
        row = run_job(job)
    except KeyboardInterrupt:
        sys.exit(130)
    with contextlib.suppress(BrokenPipeError):
        out.write(json.dumps(row) + "\n")
        out.flush()


def _watch() -> None:
    if not os.read(0, 1):
        os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
