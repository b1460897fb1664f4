"""Judges what a search found by inputs that it never saw."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from tfl_rewrite.pipeline.verification import Verification
from tfl_rewrite.search.figures import Figures, counts_hidden, figures_of, judged_inside
from tfl_rewrite.search.goals import Goal
from tfl_rewrite.search.trials import Metric, Trials


class Jury:
    """Judges by inputs that were held out; a context manager.

    Args:
        source: The original.
        trials: Knows the original as it is opened before a last SOFTMAX and the like.
        verification: What to judge with.
        goal: What is judged by.
        metric: The user's own figure on those inputs.
    """

    def __init__(
        self,
        source: str | os.PathLike[str],
        trials: Trials,
        verification: Verification,
        goal: Goal,
        metric: Metric | None = None,
    ) -> None:
        self._source = source
        self._trials = trials
        self._verification = verification
        self._goal = goal
        self._metric = metric

    def __enter__(self) -> Jury:
        trials, judge = self._trials, self._verification.judge
        with contextlib.ExitStack() as stack:
            self._judge = stack.enter_context(judge(self._source, exact=False))
            self._inside = None
            if trials.opened is not None and counts_hidden(self._goal, trials.decisions):
                self._inside = stack.enter_context(judge(trials.opened, exact=False))
            # Both are there: from now on they end together.
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def hear(self, path: Path) -> Figures:
        """Runs a file."""
        verdict = self._judge.compare(path, tolerance=self._goal.tolerance)
        inside = metric = None
        if verdict.measured:
            metric = self._metric([path]) if self._metric is not None else None
            inside = judged_inside(self._inside, path) if self._inside is not None else None
        return figures_of([verdict], [inside], self._goal, metric)
