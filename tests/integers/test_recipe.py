"""A recipe is searched step by step, and changed only for a gain that matters."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from tfl_rewrite.integers.recipe import LEAST_GAIN_DB, STEPS, Recipe, improved
from tfl_rewrite.weights.rounders import Effort


class Scores:
    """Scores recipes by their fields, and keeps what was asked for."""

    def __init__(self, **gains: Mapping[float, float]) -> None:
        self.gains = gains
        self.asked: list[Recipe] = []

    def __call__(self, tried: Recipe) -> float:
        self.asked.append(tried)
        return 20.0 + sum(known.get(getattr(tried, name), 0.0) for name, known in self.gains.items())


def test_the_best_of_each_step_is_kept() -> None:
    scores = Scores(outputs={1.0: 4.0, 1.2: 3.0}, softmax={3.0: 1.0})
    steps = (("outputs", (1.0, 1.2)), ("softmax", (1.4, 3.0)))
    assert improved(Recipe(), steps, scores) == Recipe(outputs=1.0, softmax=3.0)
    assert all(tried.outputs == 1.0 for tried in scores.asked[-2:]), "later steps build on earlier ones"
    assert len(set(scores.asked)) == len(scores.asked) == 5


def test_a_small_gain_changes_nothing() -> None:
    assert improved(Recipe(), (("outputs", (1.0,)),), Scores(outputs={1.0: 0.9 * LEAST_GAIN_DB})) == Recipe()
    assert improved(Recipe(), (("outputs", (1.0,)),), Scores(outputs={1.0: -9.0})) == Recipe()


def test_the_fast_effort_asks_nothing() -> None:
    scores = Scores()
    assert improved(Recipe(), STEPS[Effort.FAST], scores) == Recipe()
    assert scores.asked == []


@pytest.mark.parametrize("effort", list(Effort))
def test_steps_are_of_fields(effort: Effort) -> None:
    for name, values in STEPS[effort]:
        assert hasattr(Recipe(), name) and all(value >= 1 for value in values)


def test_what_was_chosen_is_told() -> None:
    assert Recipe().notes() == []
    (note,) = Recipe(outputs=1.0).notes()
    assert note == "as samples held out ask for: outputs 1"
    assert Recipe(narrow=1.25, wide=4.0).margin(8) == 1.25 and Recipe(wide=4.0).margin(16) == 4.0
