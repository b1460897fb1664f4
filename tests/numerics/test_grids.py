"""The grids and their bounds against plain numpy: what is promised for any constant."""

from __future__ import annotations

import math
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from tfl_rewrite.numerics import grids
from tfl_rewrite.numerics.grids import KINDS, Rows, deflated, estimated

Array = np.ndarray[Any, Any]

layouts = st.one_of(
    st.builds(Rows, st.just(1), st.integers(1, 6), st.integers(1, 40), st.just(1), st.booleans()),
    st.builds(Rows, st.integers(1, 12), st.integers(1, 9), st.just(1), st.just(1), st.booleans()),
    st.builds(Rows, st.integers(2, 4), st.integers(1, 5), st.integers(2, 9)),
    st.builds(
        lambda channels, taps, depth: Rows(1, channels, taps * depth, taps, True),
        st.integers(1, 4),
        st.sampled_from([4, 9]),
        st.integers(1, 6),
    ),
)


@st.composite
def cases(draw: DrawFn) -> tuple[str, Array, Rows]:
    """A kind, finite values of it, and how they fall into rows."""
    rows = draw(layouts)
    name = draw(st.sampled_from(["FLOAT32", "FLOAT16"]))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    exponent = draw(st.integers(-30, 30) if name == "FLOAT32" else st.integers(-12, 12))
    values = random.standard_normal(rows.elements) * 2.0**exponent
    values[random.random(rows.elements) < draw(st.sampled_from([0.0, 0.3, 1.0]))] = 0
    numpy_type = KINDS[name].numpy
    return (
        name,
        np.clip(values, -60000, 60000).astype(numpy_type) if name == "FLOAT16" else values.astype(numpy_type),
        rows,
    )


def rounded(values: Array, steps: Array, rows: Rows, name: str, zero: float = 0.0) -> Array:
    """Rounds; every element must be emitted exactly once."""
    made = np.empty_like(values)
    seen = np.zeros(values.size, int)

    def emit(start: int, block: Array) -> None:
        assert block.dtype == values.dtype and block.flags.c_contiguous
        made[start : start + block.size] = block
        seen[start : start + block.size] += 1

    error = grids.round_values(values, steps, rows, KINDS[name], emit, zero)
    assert (seen == 1).all()
    exact = float(np.square(values.astype(float) - made.astype(float)).sum())
    assert error.noise == pytest.approx(exact, rel=1e-6, abs=1e-300)
    return made


def by_channel(values: Array, rows: Rows) -> Array:
    """Values as ``[channels, elements]``."""
    return values.reshape(rows.outer, rows.channels, rows.inner).transpose(1, 0, 2).reshape(rows.channels, -1)


@settings(max_examples=150, deadline=None)
@given(cases(), st.sampled_from([1, 2, 7, 64, 256, 1000]))
def test_steps_of_range_hold_their_promises(case: tuple[str, Array, Rows], steps: int) -> None:
    name, values, rows = case
    found = grids.profile(values, rows)
    width = grids.steps_of_range(found, steps, KINDS[name])
    made = rounded(values, width, rows, name)
    level = by_channel(made.astype(float), rows) / width[:, None]
    assert (level == np.rint(level)).all()
    assert (np.log2(width) == np.rint(np.log2(width))).all()
    # A balanced row may take the other neighbour, never a third level.
    error = np.abs(by_channel(values.astype(float) - made.astype(float), rows)) / width[:, None]
    assert (error <= (1.0 if rows.balanced else 0.5) + 1e-12).all()
    assert (made[values == 0] == 0).all()
    # A second run finds it done.
    assert grids.has_steps(grids.profile(made, rows), steps) or name == "FLOAT16"


@settings(max_examples=150, deadline=None)
@given(cases(), st.sampled_from([1.0, 1.25, 1.5, 1.75]), st.integers(-3, 14), st.sampled_from([0.0, 1.0]))
def test_common_steps_hold_their_promises(
    case: tuple[str, Array, Rows], mantissa: float, fineness: int, spread: float
) -> None:
    name, values, rows = case
    kind = KINDS[name]
    found = grids.profile(values, rows)
    step = max(mantissa * 2.0**-fineness * (float(found.largest.max()) or 1.0), grids.finest(found, kind))
    step = math.ldexp(mantissa, math.frexp(step)[1])
    steps = grids.spread_steps(found if spread else found.merged(), step, rows.each, spread, kind)
    made = rounded(values, steps, rows, name)
    again = grids.profile(made, rows)
    assert grids.is_rounded(again, kind.levels)
    # What is on the grid stays there, whatever balancing would like.
    assert rounded(made, steps, rows, name).tobytes() == made.tobytes()
    assert (made[values == 0] == 0).all() and np.isfinite(made).all()
    assert not np.signbit(made[made == 0]).any()


@settings(max_examples=80, deadline=None)
@given(cases())
def test_balanced_rows_sum_to_less_than_half_a_step(case: tuple[str, Array, Rows]) -> None:
    name, values, rows = case
    if not rows.balanced:
        return
    found = grids.profile(values, rows)
    steps = grids.steps_of_range(found, 64, KINDS[name])
    error = by_channel(values.astype(float) - rounded(values, steps, rows, name).astype(float), rows)
    assert (np.abs(error.sum(axis=1)) <= 0.5 * steps * (1 + 1e-9)).all()
    if rows.taps > 1:
        windows = error.reshape(rows.channels, rows.taps, -1).sum(axis=1)
        # One unit at most is moved on, to bring the row into balance.
        assert (np.abs(windows) <= 1.0 * steps[:, None] * (1 + 1e-9)).all()


def test_balancing_lowers_the_noise_of_sums_over_inputs_with_a_mean() -> None:
    random = np.random.default_rng(3)
    weights = random.standard_normal((64, 256)).astype(np.float32)
    inputs = np.maximum(random.standard_normal((256, 500)), 0)
    step = np.array([0.125])
    noise = []
    for balanced in (False, True):
        rows = Rows.along(weights.shape, 0, balanced=balanced)
        made = rounded(weights.reshape(-1), step, rows, "FLOAT32").reshape(weights.shape)
        noise.append(float(np.square((weights - made) @ inputs).sum()))
    # Of the power of rectified normal inputs, 0.32 lies in their mean.
    assert noise[1] < 0.75 * noise[0]


@pytest.mark.parametrize("zero", [0.0, -5.0, 127.0])
def test_integers_keep_their_type_their_zero_and_their_range(zero: float) -> None:
    values = np.random.default_rng(1).integers(-128, 128, 4000).astype(np.int8)
    values[:50] = int(zero)
    made = rounded(values, np.array([6.0]), Rows.along((40, 100), 0, balanced=True), "INT8", zero)
    assert ((made.astype(int) - zero) % 6 == 0).all()
    assert (made[:50] == zero).all()
    assert len(np.unique(made)) <= 256 // 6 + 1


def test_values_at_the_end_of_the_range_do_not_overflow() -> None:
    for name in ("FLOAT32", "FLOAT16"):
        kind = KINDS[name]
        values = np.array([kind.largest, -kind.largest, kind.largest / 2, 1.0] * 8, kind.numpy)
        rows = Rows.flat(values.size)
        found = grids.profile(values, rows)
        made = rounded(values, grids.steps_of_range(found, 16, kind), rows, name)
        assert np.isfinite(made).all()


def test_smallest_numbers_and_constants_of_one_value() -> None:
    for fill in (1e-45, 1e-40, 0.1, -3.0, 0.0):
        values = np.full(32, fill, np.float32)
        rows = Rows.flat(32)
        found = grids.profile(values, rows)
        for steps in (
            grids.steps_of_range(found, 256, KINDS["FLOAT32"]),
            grids.spread_steps(found, grids.finest(found, KINDS["FLOAT32"]), 32, 1.0, KINDS["FLOAT32"]),
        ):
            assert np.isfinite(rounded(values, steps, rows, "FLOAT32")).all()


def test_what_is_not_finite_is_told() -> None:
    for bad in (np.nan, np.inf, -np.inf):
        values = np.array([1.0, bad, 2.0, 0.5], np.float32)
        assert not grids.profile(values, Rows.flat(4)).finite


def test_trained_constants_do_not_count_as_rounded() -> None:
    random = np.random.default_rng(0)
    for name in ("FLOAT32", "FLOAT16"):
        values = random.standard_normal(64).astype(KINDS[name].numpy)
        assert not grids.is_rounded(grids.profile(values, Rows.flat(64)), KINDS[name].levels)


def test_large_constants_are_cut_into_blocks_that_cover_them() -> None:
    for rows in (
        Rows(1, 3, 200_000, 1, False),
        Rows(1, 3, 200_000, 1, True),
        Rows(300, 5000, 1, 1, True),
        Rows(300, 5000, 1, 1, False),
        Rows(3, 7, 70_000),
    ):
        seen = np.zeros(rows.elements, np.int8)
        for block in grids.blocks(rows):
            for row in range(block.rows):
                start = block.start + row * block.stride
                seen[start : start + block.columns] += 1
        assert (seen == 1).all()


def on_a_grid(elements: int, step: float) -> bytes:
    values = np.random.default_rng(0).normal(0, 0.05, elements)
    return (np.rint(values / step) * step + 0.0).astype("<f4").tobytes()


@pytest.mark.slow
def test_deflated_is_what_zlib_says() -> None:
    # Over the end of a piece of 1 MiB, and of steps so fine that zlib has few matches to choose among.
    data = on_a_grid(265_000, 2.0**-12)
    assert abs(deflated(memoryview(data).cast("f")) - len(zlib.compress(data, 9))) <= 16
    data = on_a_grid(10_000, 2.0**-5)
    assert deflated(memoryview(data).cast("f")) == deflated(data) == len(zlib.compress(data, 9))


@pytest.mark.slow
@pytest.mark.parametrize("step", [2.0**-4, 2.0**-7])
def test_an_estimate_is_close(step: float) -> None:
    data = on_a_grid(200_000, step)
    assert estimated(data, 1 << 18) == pytest.approx(len(zlib.compress(data, 9)), rel=0.02)


def test_an_estimate_sees_all_parts_of_what_changes_on_the_way() -> None:
    noise = np.random.default_rng(1).bytes(1 << 21)
    data = bytes(1 << 21) + noise
    assert estimated(data, 1 << 20) == pytest.approx(1 << 21, rel=0.05)


def test_what_is_no_more_than_the_pieces_is_deflated_whole() -> None:
    data = on_a_grid(10_000, 2.0**-5)
    assert estimated(data, 1 << 16) == deflated(data)
    assert estimated(b"", 1 << 16) == deflated(b"")
