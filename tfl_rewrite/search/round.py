"""The coarsest rounding of constants that keeps the outputs at a given ratio: the search with grids only.

With real inputs levels are chosen for what weights meet, which fits the samples at hand: they come in two
halves, and each half measures weights that were rounded for the other. A quarter of the samples is held out;
while the file does not keep the ratio there, the search leaves more room. What goes into a last SOFTMAX that
decides few things has to keep the ratio as well: outputs that are sure of themselves hide noise that others
show. How many files are run depends on the model alone, not on the clock, so the same input gives the same
result.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from tfl_rewrite.editing.base import Pass
from tfl_rewrite.files.source import ModelLike
from tfl_rewrite.judge.settings import Judging
from tfl_rewrite.passes.round_weights import RoundWeights
from tfl_rewrite.reading.metadata import on_disk, with_media
from tfl_rewrite.search.goals import Goal, Objective
from tfl_rewrite.search.sensitivity import Progress
from tfl_rewrite.search.session import Session, Wanted, session
from tfl_rewrite.search.settle import settle
from tfl_rewrite.search.trials import Frame, Measured

_SAME = "the steps were searched with the samples that judge them: judge by others too"


@dataclass(frozen=True, slots=True)
class FoundRounding:
    """What a search came to.

    Attributes:
        settings: The pass that was found.
        snr: Lowest ratio over the outputs that was measured with it, in dB; None where none has one. Levels
            that are chosen for inputs were chosen for other ones than those measured with.
        files: How many files were run.
    """

    settings: RoundWeights
    snr: float | None
    files: int


def search_rounding(
    source: ModelLike,
    settings: RoundWeights,
    judging: Judging,
    *,
    min_snr: float,
    max_abs_error: float | None = None,
    before: Sequence[Pass] = (),
    progress: Progress | None = None,
) -> FoundRounding:
    """Searches; see the module.

    Args:
        source: A path, bytes, an open file or a model.
        settings: Granularity and which constants; its steps and ratio are not used.
        judging: What to measure with; its tolerance is not used.
        min_snr: What every output must keep, in dB.
        max_abs_error: What no element of an output may be off by more than.
        before: Passes that lose nothing, which run first.
        progress: Called with what is going on, and how many of how many runs are done.

    Raises:
        UnsupportedError: The original cannot be run, so nothing can be measured.
        UsageError: A bound is out of its range.
    """
    goal = Goal(
        min_snr=min_snr,
        max_error=max_abs_error,
        objective=Objective.DOWNLOAD,
        effort=settings.effort,
        sure=False,
    )
    with (
        on_disk(source) as file,
        rounding_session(file, settings, judging, goal, progress, before=before) as opened,
    ):
        search = opened.grids(min_snr)
        if not search.units:
            return FoundRounding(replace(settings, choices={}), None, opened.trials.files)
        with opened.judge() as judge:
            found = settle(search, opened.trials, goal, judge).promised
        if found is None:
            return FoundRounding(replace(settings, choices={}), None, opened.trials.files)
        (made,) = opened.trials.passes(found.choice)
        assert isinstance(made, RoundWeights)
        made = replace(made, notes=_notes(opened, found))
        return FoundRounding(made, found.verdict.worst_snr(), opened.trials.files)


@contextlib.contextmanager
def rounding_session(
    source: str | os.PathLike[str],
    settings: RoundWeights,
    judging: Judging,
    goal: Goal,
    progress: Progress | None = None,
    *,
    before: Sequence[Pass] = (),
) -> Iterator[Session]:
    """Opens a search among grids for any number of targets; see :meth:`Session.grids`."""
    wanted = Wanted(
        goal=goal,
        frame=Frame(source, before),
        judging=with_media(judging, source),
        grids=settings,
        others=False,
    )
    with session(wanted, progress or (lambda _what, _done, _total: None)) as opened:
        yield opened


def _notes(opened: Session, found: Measured) -> tuple[str, ...]:
    """Returns what was measured, where the verdict on the file does not show it."""
    split, snr, notes = opened.split, found.verdict.worst_snr(), []
    if snr is not None and (split.reason or not opened.wanted.judging.inputs):
        notes.append(f"{_SAME}; {split.reason}" if split.reason else _SAME)
    elif snr is not None:
        notes.append(f"the search measured {snr:.1f} dB on {split.dealt or split.text}")
    if found.hidden is not None:
        notes.append(f"what goes into the last SOFTMAX, LOGISTIC or TANH keeps {found.hidden:.1f} dB")
    return tuple(notes)
