"""Channels that lose all their numbers are found, however the blocks fall."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfl_rewrite.numerics.grids import Rows
from tfl_rewrite.numerics.symmetric import Silenced


@pytest.mark.parametrize("inner", [1, 3, 64, 100])
@given(
    outer=st.integers(1, 3),
    channels=st.integers(1, 7),
    size=st.integers(1, 500),
    seed=st.integers(0, 1 << 30),
)
def test_as_a_plain_count(inner: int, outer: int, channels: int, size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    before = rng.integers(-1, 2, (outer, channels, inner))
    after = before * (rng.random((1, channels, 1)) < 0.5) * (rng.random(before.shape) < 0.5)
    watched = Silenced(Rows(outer, channels, inner))
    handed: list[np.ndarray] = []
    emit = watched.beside(lambda _start, block: handed.append(block))
    for start in range(0, after.size, size):
        emit(start, after.reshape(-1)[start : start + size])
    assert np.array_equal(np.concatenate(handed), after.reshape(-1))
    expected = [c for c in range(channels) if before[:, c].any() and not after[:, c].any()]
    assert list(watched.among(before.reshape(-1))) == expected


def test_zero_is_what_stands_for_it() -> None:
    watched = Silenced(Rows(1, 2, 3), zero=5)
    watched.watch(0, np.array([5, 5, 5, 5, 0, 5], np.int8))
    assert watched.among(np.array([4, 5, 5, 5, 4, 5], np.int8)) == (0,)
