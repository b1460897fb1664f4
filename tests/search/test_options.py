"""The grids that a search chooses from, on constants of known shape."""

from __future__ import annotations

import itertools
import math
import zlib
from typing import Any

import numpy as np
import pytest

from tfl_rewrite.model.blob import OwnedBlob
from tfl_rewrite.model.ir import Buffer
from tfl_rewrite.numerics import grids
from tfl_rewrite.numerics.grids import KINDS, Rows
from tfl_rewrite.search.sensitivity import GRID_PROBES, groups_of
from tfl_rewrite.search.units import Option, grid_at, grid_forms, grids_around
from tfl_rewrite.weights.grids import Choice, Constant
from tfl_rewrite.weights.payloads import GridPayload

Array = np.ndarray[Any, Any]


def constant(values: Array, kind: str = "FLOAT32", position: int = 1) -> Constant:
    rows = Rows(1, values.shape[0], values.shape[1], balanced=True)
    return Constant(position, Buffer(OwnedBlob(values.tobytes())), [], KINDS[kind], rows, 0.0, ())


def grid(option: Option) -> Choice:
    assert isinstance(option.form, Choice)
    return option.form


def normal(kind: str = "<f4", shape: tuple[int, int] = (32, 64)) -> Array:
    return np.random.default_rng(0).standard_normal(shape).astype(kind)


def values_of(item: Constant, choice: Choice) -> Array:
    return np.frombuffer(bytes(GridPayload.of(item, choice).data()), item.kind.numpy)


def test_between_powers_of_two_the_third_byte_stays_zero() -> None:
    item = constant(normal())
    options = grids_around(item, 2.0**-6, Choice(1.0))
    short = [option for option in options if grid(option).bits == 8]
    assert {math.frexp(grid(option).step)[0] * 2 for option in short} == {1.25, 1.5, 1.75}
    for option in short:
        made = values_of(item, grid(option)).view("<u4")
        assert not (made & 0xFFFF).any()
    # Without the limit it would not, so the limit is what does it.
    plain = [values_of(item, Choice(grid(option).step)).view("<u4") & 0xFFFF for option in short]
    assert any(low.any() for low in plain)


def test_eight_bits_deflate_better_at_the_same_noise() -> None:
    item = constant(normal(shape=(64, 256)))
    step = 1.25 * 2.0**-7
    full, short = (GridPayload.of(item, Choice(step, 0.0, bits)) for bits in (24, 8))
    sizes = [len(zlib.compress(bytes(made.data()), 9)) for made in (full, short)]
    lost = full.error().snr - short.error().snr
    # Six dB are about 1.3 bits of a value.
    worth = item.elements * lost * 1.3 / 6 / 8
    assert 0 < lost < 2 and sizes[1] + worth < 0.97 * sizes[0]


@pytest.mark.parametrize("kind", ["FLOAT32", "FLOAT16"])
def test_noise_and_size_of_every_option_are_about_right(kind: str) -> None:
    item = constant(normal(KINDS[kind].numpy), kind)
    options = grids_around(item, 2.0**-4, Choice(1.0))
    steps = [grid(option).step for option in options]
    assert len(set(steps)) == len(steps) >= 20
    for option in options:
        error = GridPayload.of(item, grid(option)).error()
        assert option.wnoise == pytest.approx(error.noise, rel=0.5)
    coarse_first = sorted(options, key=lambda option: -grid(option).step)
    sizes = [option.cost for option in coarse_first]
    assert sizes[0] < sizes[-1] and all(b >= 0.97 * a for a, b in itertools.pairwise(sizes))


def test_integers_have_powers_of_two_only() -> None:
    values = np.random.default_rng(0).integers(-127, 128, (16, 64)).astype(np.int8)
    options = grids_around(constant(values, "INT8"), 8.0, Choice(1.0))
    assert all(math.frexp(grid(option).step)[0] == 0.5 for option in options)


def test_a_probe_is_a_power_of_two_near_the_ratio() -> None:
    item = constant(normal())
    for ratio in (10.0, 30.0, 50.0):
        choice = grid_at(item, ratio, Choice(1.0))
        assert math.frexp(choice.step)[0] == 0.5
        assert abs(GridPayload.of(item, choice).error().snr - ratio) < 4


def test_the_largest_constants_are_measured_alone() -> None:
    count = GRID_PROBES + 30
    items = [constant(normal(shape=(1, 16 + number)), position=number) for number in range(count)]
    groups = groups_of(items)
    alone = GRID_PROBES - 10
    assert groups[:alone] == [[item] for item in reversed(items[-alone:])]
    assert sorted(item.position for group in groups for item in group) == list(range(count))
    assert len(groups) == GRID_PROBES
    assert groups_of(items[:3]) == [[item] for item in reversed(items[:3])]


def test_the_first_rows_of_a_table_can_be_finer() -> None:
    values = normal(shape=(2560, 4))
    item = constant(values)
    item.rows, item.table = Rows.flat(values.size), 2560
    made = values_of(item, Choice(0.25, head=6)).reshape(values.shape)
    assert (made[10:] / 0.25 == np.rint(made[10:] / 0.25)).all()
    error = np.abs(made - values)
    assert error[:10].max() <= 0.125 / 64 and error[10:].max() > 0.1
    assert grids.is_rounded(grids.profile(made.reshape(-1), item.rows), item.kind.levels)
    forms = grid_forms(item, by_channel=True)
    assert [form.head for form in forms] == [0, 6]
    assert [form.head for form in grid_forms(item, by_channel=False)] == [0]
