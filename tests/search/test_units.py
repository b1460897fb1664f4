"""The knapsack against trying everything."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from tfl_rewrite import Goal
from tfl_rewrite.search.units import HYBRID, KEPT, Option, Unit, cheapest, encodings_for
from tfl_rewrite.weights.encoding import Encoding

ENCODING = Encoding.parse("int8")


def instance(seed: int, outputs: int) -> list[Unit]:
    """Six units with four options, of which smaller ones are mostly noisier, as in life."""
    random = np.random.default_rng(seed)
    units = []
    for position in range(6):
        nbytes = float(random.integers(100, 10_000))
        unit = Unit(position, f"unit{position}", ("CONV_2D",), 1, int(nbytes))
        unit.options.append(Option(KEPT, nbytes, nbytes, np.zeros(outputs)))
        gain = 10.0 ** random.uniform(-3, 1, outputs)
        for share, noise in ((0.5, 1e-6), (0.25, 1e-4), (0.13, 1e-2)):
            own = gain * noise * 10.0 ** random.uniform(-0.5, 0.5, outputs)
            unit.options.append(Option(ENCODING, nbytes * share, nbytes * share, own))
        units.append(unit)
    return units


def expected(units: list[Unit], picked: list[int]) -> np.ndarray:
    noises = [unit.options[index].noise for unit, index in zip(units, picked, strict=True)]
    return sum((noise for noise in noises if noise is not None), np.zeros(1))


def cost_of(units: list[Unit], picked: tuple[int, ...] | list[int]) -> float:
    return sum(unit.options[index].cost for unit, index in zip(units, picked, strict=True))


def best_cost(units: list[Unit], allowed: float) -> float:
    every = np.array(list(itertools.product(range(4), repeat=len(units))))
    costs = sum(
        np.array([option.cost for option in unit.options])[every[:, i]] for i, unit in enumerate(units)
    )
    noises = sum(
        np.stack([option.noise for option in unit.options if option.noise is not None])[every[:, i]]
        for i, unit in enumerate(units)
    )
    return float(np.min(np.asarray(costs)[np.asarray(noises).max(axis=1) <= allowed]))


@pytest.mark.parametrize("outputs", [1, 2])
def test_nearly_as_good_as_trying_everything(outputs: int) -> None:
    ratios = []
    for seed in range(8):
        units = instance(seed, outputs)
        for allowed in (1e-5, 1e-3, 1e-2):
            picked = cheapest(units, allowed)
            assert expected(units, picked).max() <= allowed
            ratios.append(cost_of(units, picked) / best_cost(units, allowed))
    assert min(ratios) >= 1.0 - 1e-12
    assert float(np.mean(ratios)) < 1.03 and max(ratios) < 1.25


def unit_of(*options: tuple[float, ...]) -> Unit:
    """A unit with options of given costs and noises, one of each output; the first is to keep it."""
    made = Unit(0, "unit", ("CONV_2D",), 1, 1)
    for number, (cost, *noises) in enumerate(options):
        made.options.append(Option(ENCODING if number else KEPT, cost, cost, np.array(noises)))
    return made


def test_room_that_one_price_leaves_is_used() -> None:
    """Equal units change sides together at one price; what fits besides is taken one by one."""
    units = [unit_of((100.0, 0.0), (50.0, 1.0)) for _ in range(6)]
    assert sorted(cheapest(units, 4.5)) == [0, 0, 1, 1, 1, 1]
    # No price makes the middle option the cheapest (its cost lies above the line of the others).
    assert cheapest([unit_of((100.0, 0.0), (60.0, 1.0), (10.0, 2.0))], 1.5) == [1]


def test_room_goes_to_what_saves_most_for_it() -> None:
    """Both fit alone and not together; the larger saving costs less noise for each byte."""
    units = [unit_of((100.0, 0.0), (40.0, 3.0), (0.0, 10.0)), unit_of((100.0, 0.0), (70.0, 3.0), (0.0, 10.0))]
    assert cheapest(units, 4.0) == [1, 0]
    assert cheapest(units[::-1], 4.0) == [0, 1]


def test_a_price_finds_what_single_steps_do_not() -> None:
    """The third one saves most for the output that it fills most, and is in the way of both others."""
    units = [
        unit_of((0.10, 0.0, 0.0), (0.0, 1.0, 0.0)),
        unit_of((0.10, 0.0, 0.0), (0.0, 0.0, 1.0)),
        unit_of((0.09, 0.0, 0.0), (0.0, 0.6, 0.6)),
    ]
    # They fill both outputs to the brim.
    assert cheapest(units, 1.0) == [1, 1, 0]


@pytest.mark.parametrize(("seed", "allowed"), [(16, 3e-5), (46, 1e-3)])
def test_the_output_that_suffers_most_counts_more(seed: int, allowed: float) -> None:
    """With one price for both outputs, what is found costs 22 and 10 % more."""
    units = instance(seed, 2)
    found = cost_of(units, cheapest(units, allowed))
    assert found == pytest.approx(best_cost(units, allowed), rel=1e-9)


def test_an_option_that_takes_the_place_of_another_needs_the_difference() -> None:
    """The third one lies above the line from the second to the last: no price picks it; it fits exactly."""
    one = unit_of((100.0, 0.0), (60.0, 1.0), (59.5, 1.5), (10.0, 3.5))
    assert cheapest([one], 1.5) == [2]
    assert cheapest([one], 1.4) == [1]


def test_what_an_option_adds_counts_and_not_what_it_has() -> None:
    """One unit is at 5.0 already: from there to 6.0 costs less noise than from none to 2.0."""
    first = unit_of((100.0, 0.0), (50.0, 5.0), (49.0, 6.0), (1.0, 10.0))
    second = unit_of((100.0, 0.0), (99.0, 2.0), (0.0, 20.0))
    assert cheapest([first, second], 7.5) == [2, 0]
    assert cheapest([first, second], 8.0) == [2, 1]


def test_nothing_is_allowed() -> None:
    for outputs in (1, 2):
        # Nor is anything divided by what nobody suffers.
        with np.errstate(all="raise"):
            assert cheapest(instance(0, outputs), 0.0) == [0] * 6
        # What cannot be kept even by keeping all is left to whoever asked.
        assert cheapest(instance(0, outputs), -1.0) == [0] * 6


def test_everything_is_allowed() -> None:
    units = instance(0, 2)
    assert cheapest(units, 1e9) == [3] * 6


def test_no_units() -> None:
    assert cheapest([], 1.0) == []


@pytest.mark.parametrize("objective", ["file", "download", "ram", "latency"])
def test_what_is_put_together_at_each_call_is_tried_for_bytes_alone(objective: str) -> None:
    tried = encodings_for(Goal(min_snr=30, objective=objective))
    slow = [text for text in tried if ("block" in text or "int6" in text) and "dequantize" in text]
    assert bool(slow) is (objective in ("file", "download"))
    assert "int8:channel" in tried and "float16" in tried
    assert set(HYBRID) <= set(tried) or objective in ("file", "download")


def test_encodings_that_are_asked_for_are_tried_all_the_same() -> None:
    asked = ("int6:channel:dequantize",)
    assert encodings_for(Goal(min_snr=30, objective="latency", encodings=asked)) == asked
