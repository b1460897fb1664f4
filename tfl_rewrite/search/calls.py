"""The search from plain values; :mod:`tfl_rewrite` offers this as ``tfl_rewrite.shrink``."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence

from tfl_rewrite.errors import UsageError
from tfl_rewrite.files.source import ModelLike
from tfl_rewrite.judge.settings import Judging
from tfl_rewrite.options.option import made_with
from tfl_rewrite.passes.compact import Compact
from tfl_rewrite.passes.dedup import Dedup
from tfl_rewrite.passes.quantize_weights import QuantizeWeights
from tfl_rewrite.passes.remove_dead import RemoveDead
from tfl_rewrite.reading.on_disk import on_disk
from tfl_rewrite.search import shrink as work
from tfl_rewrite.search.goals import Goal, Objective
from tfl_rewrite.search.report import ShrinkReport
from tfl_rewrite.search.units import encodings_for
from tfl_rewrite.weights.encoding import Encoding


def shrink(
    source: ModelLike,
    target: str | os.PathLike[str],
    *,
    min_snr: float | None = None,
    max_error: float | None = None,
    min_agreement: float | None = None,
    metric: str | None = None,
    min_metric: float | None = None,
    max_nbytes: int | None = None,
    objective: str = "file",
    effort: str = "balanced",
    encodings: Sequence[str] | None = None,
    include: Iterable[str] = (),
    exclude: Iterable[str] = (),
    min_runtime: str | None = None,
    judging: Judging | None = None,
    time_limit: float | None = None,
    state: str | os.PathLike[str] | None = None,
    force: bool = False,
    dry_run: bool = False,
    threads: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
    ready: Callable[[ShrinkReport], None] | None = None,
) -> ShrinkReport:
    """Writes the smallest file that keeps a budget.

    Args:
        source: A path, bytes, an open file or a model; never changed, unless it is the target too.
        target: The file to make.
        min_snr: Least signal-to-noise ratio of every output, in dB.
        max_error: Largest error of any element of an output.
        min_agreement: Least share of samples with the same largest element, of every output of scores.
        metric: ``module:function``, called as ``function(outputs, reference)`` with dicts of arrays
            ``[samples, ...]`` in a process of its own; larger is better.
        min_metric: Its least value.
        max_nbytes: Largest file; with nothing else the error is made as small as it can be.
        objective: ``file``, ``download``, ``ram`` or ``latency``.
        effort: As for :class:`tfl_rewrite.QuantizeWeights`.
        encodings: What is tried for each constant, such as ``int4:block:32``.
        include: Patterns of names or of operator types; only what matches one is changed.
        exclude: The same; what matches stays.
        min_runtime: Oldest TensorFlow Lite release that must compute the file.
        judging: What to measure with; its tolerance is not used. Its ``holdout`` judges the end result only;
            without any, a quarter of the other inputs does.
        time_limit: Seconds after which the search ends with the best that it has.
        state: A file that measurements are kept in, so that a search can be continued. It is read and
            written.
        force: Whether the target may exist, and ``state`` hold the measurements of another search, which it
            loses then.
        dry_run: Do everything but the publishing.
        threads: For rounding and writing; 0 for one per processor.
        progress: Called with what is going on, and how many of how many steps are done.
        ready: Called with the report just before the file gets its name; what it raises keeps that from
            happening.

    Raises:
        ShrinkFailed: No file keeps the budget; its ``report`` has the trade-offs.
        UsageError, FileAccessError, FormatError, UnsupportedError: As for :func:`tfl_rewrite.rewrite`.

    Example:
        >>> report = tfl_rewrite.shrink(
        ...     "model.tflite",
        ...     "small.tflite",
        ...     min_snr=20,
        ...     effort="fast",
        ...     judging=tfl_rewrite.Judging(inputs=("inputs.npz",)),
        ... )
        >>> report.report.nbytes_after < report.nbytes_before
        True
    """
    if objective not in [known.value for known in Objective]:
        raise UsageError(f"objective {objective!r}", remedy="use file, download, ram or latency")
    wanted = tuple(encodings) if encodings is not None else encodings_for(Objective(objective))
    for text in wanted:
        Encoding.parse(text)
    if time_limit is not None and not time_limit > 0:
        raise UsageError(f"time_limit is {time_limit}", remedy="give seconds above zero")
    goal = Goal(
        min_snr=min_snr,
        max_error=max_error,
        min_agreement=min_agreement,
        min_metric=min_metric,
        max_nbytes=max_nbytes,
        objective=Objective(objective),
    )
    options = {"include": include, "exclude": exclude, "min_runtime": min_runtime, "effort": effort}
    with on_disk(source) as file:
        return work.shrink(
            file,
            target,
            goal,
            settings=made_with(QuantizeWeights, options),
            before=[RemoveDead(), Dedup()],
            after=[Compact()],
            judging=judging,
            metric=metric,
            encodings=wanted,
            time_limit=time_limit,
            state=state,
            force=force,
            dry_run=dry_run,
            threads=threads,
            progress=progress,
            ready=ready,
        )
