"""A rewrite whose passes may say only what they must keep: how they do it is searched for first."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeGuard

from tfl_rewrite.editing.base import Effect, Pass, expanded
from tfl_rewrite.errors import UsageError
from tfl_rewrite.files.source import ModelLike, Source
from tfl_rewrite.judge.settings import Judging
from tfl_rewrite.pipeline import rewrite as pipeline
from tfl_rewrite.pipeline.report import Plan, Report
from tfl_rewrite.work import current, working

if TYPE_CHECKING:
    from tfl_rewrite.passes.prune import Prune
    from tfl_rewrite.passes.round_weights import RoundWeights


def rewrite(
    source: ModelLike,
    target: str | os.PathLike[str] | None = None,
    passes: Sequence[Pass] = (),
    *,
    judging: Judging | None = None,
    force: bool = False,
    dry_run: bool = False,
    threads: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> Report:
    """Rewrites a file by some passes, proves the result, and gives it its name.

    Args:
        source: A path, bytes, an open file or a model; never changed, unless it is the target too.
        target: The file to make; None for none: the report has the model then.
        passes: In order. What one of them leaves to be searched for (:attr:`RoundWeights.min_snr`) is found
            by running files first; only passes that lose nothing may stand before it.
        judging: How to verify; by default in mode ``auto``.
        force: Whether the target may exist.
        dry_run: Do everything but the publishing.
        threads: For rounding and writing; 0 for one per processor.
        progress: Called with what is going on, and how many of how many bytes are done, or of how many runs
            of a search; 0 of 0 for what is not counted.

    Raises:
        RewriteFailed: Outputs differ beyond the tolerance, or mode is ``require`` and nothing could be run.
        UsageError, FileAccessError, FormatError, UnsupportedError: As for
            :func:`tfl_rewrite.files.source.load` and :func:`tfl_rewrite.files.source.save`.

    Example:
        >>> from tfl_rewrite.passes import QuantizeWeights
        >>> report = tfl_rewrite.rewrite("model.tflite", "int8.tflite", [QuantizeWeights()])
        >>> report.outcome, report.nbytes_after < report.nbytes_before / 2
        ('rewritten', True)
    """
    plan = Plan(
        source=source if isinstance(source, (str, os.PathLike)) else Source.of(source),
        target=target,
        passes=tuple(expanded(passes)),
        settings=judging or Judging(),
        force=force,
        dry_run=dry_run,
    )
    with working(threads=threads, progress=progress):
        return carry_out(plan)


def carry_out(plan: Plan) -> Report:
    """Does what a plan says; see :func:`rewrite`. Threads and progress are those of the work that goes on."""
    for number, item in enumerate(plan.passes):
        if is_searched(item):
            before = plan.passes[:number]
            _check_before(item, before)
            source = pipeline.source_of(plan)
            found = _found(item, source, before, plan.settings)
            plan = replace(plan, source=source, passes=(*before, found, *plan.passes[number + 1 :]))
    return pipeline.carry_out(plan)


def is_searched(item: Pass) -> TypeGuard[RoundWeights | Prune]:
    """Whether a search is still to find what a pass does."""
    return item.is_searched


def _check_before(searched: Pass, passes: Sequence[Pass]) -> None:
    """Refuses what would lose something before a search, which allows for no other loss than its own.

    What is computed in another order loses far less than any ratio that is searched for.
    """
    for item in passes:
        if item.effect not in (Effect.EXACT, Effect.FOLDING):
            raise UsageError(
                f"{searched.name} with min-snr cannot follow {item.name}, which may change outputs",
                remedy="put it first, or say by how much instead of min-snr",
            )


def _found(item: RoundWeights | Prune, source: Source, before: Sequence[Pass], judging: Judging) -> Pass:
    from tfl_rewrite.search.shrink import search_choices

    assert item.min_snr is not None
    return search_choices(
        source,
        item,
        judging,
        min_snr=item.min_snr,
        max_abs_error=judging.tolerance.max_abs_error,
        before=before,
        progress=current().progress,
    ).settings
