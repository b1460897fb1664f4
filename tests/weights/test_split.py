"""Integers in two parts: six bits as four and two, ten and twelve as eight and the rest."""

from __future__ import annotations

import numpy as np
import pytest

from tfl_rewrite.model import dtypes
from tfl_rewrite.numerics.symmetric import Levels
from tfl_rewrite.weights.forms.integers import SplitInteger
from tfl_rewrite.weights.storage import forms

INT6 = forms()["int6"]
STEP = 4


@pytest.mark.parametrize("name", ["int6", "int10", "int12"])
def test_every_integer_is_the_sum_of_its_parts(name: str) -> None:
    form = forms()[name]
    assert isinstance(form, SplitInteger)
    low, high = form.levels
    every = np.arange(low, high + 1, dtype=form.levels.dtype)
    coarse, fine = form.coarse(every), form.fine(every)
    np.testing.assert_array_equal(form.divided()[0].step * coarse.astype(int) + fine, every)
    for part, kind in ((coarse, form.parts[0]), (fine, form.parts[1])):
        full = Levels.full(dtypes.BY_NAME[kind].bits)
        assert part.dtype == np.int8 and full.low <= part.min() and part.max() == full.high


def test_what_a_part_counts_is_a_power_of_two() -> None:
    assert [(part.kind, part.step) for part in INT6.divided()] == [("INT4", STEP), ("INT2", 1)]
    assert [(part.kind, part.step, part.take) for part in forms()["int8"].divided()] == [("INT8", 1, None)]
