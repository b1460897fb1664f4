"""Six bits as four and two."""

from __future__ import annotations

import numpy as np

from tfl_rewrite.numerics.symmetric import Levels
from tfl_rewrite.weights.forms.integers import SplitInteger
from tfl_rewrite.weights.storage import forms

INT6 = forms()["int6"]
STEP = 4


def test_every_integer_is_the_sum_of_its_parts() -> None:
    assert isinstance(INT6, SplitInteger)
    low, high = INT6.levels
    every = np.arange(low, high + 1, dtype=np.int8)
    coarse, fine = INT6.coarse(every), INT6.fine(every)
    np.testing.assert_array_equal(STEP * coarse.astype(int) + fine, every)
    for part, bits in ((coarse, 4), (fine, 2)):
        assert part.dtype == np.int8
        assert (part.min(), part.max()) == Levels.full(bits)


def test_what_a_part_counts_is_a_power_of_two() -> None:
    assert [(part.kind, part.step) for part in INT6.divided()] == [("INT4", STEP), ("INT2", 1)]
    assert [(part.kind, part.step, part.take) for part in forms()["int8"].divided()] == [("INT8", 1, None)]
