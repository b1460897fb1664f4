"""What a search weighs: options of units as the arrays of the knapsack, and the encodings that it tries."""

from __future__ import annotations

import numpy as np
import pytest

from tfl_rewrite import Goal
from tfl_rewrite.search.units import HYBRID, KEPT, Option, Unit, cheapest, encodings_for
from tfl_rewrite.weights.encoding import Encoding

ENCODING = Encoding.parse("int8")


def unit_of(*options: tuple[float, ...]) -> Unit:
    """A unit with options of given costs and noises, one of each output; the first is to keep it."""
    made = Unit(0, "unit", ("CONV_2D",), 1, 1)
    for number, (cost, *noises) in enumerate(options):
        made.options.append(Option(ENCODING if number else KEPT, cost, cost, np.array(noises)))
    return made


def test_units_may_have_unlike_numbers_of_options() -> None:
    units = [
        unit_of((9.0, 0.0, 0.0)),
        unit_of((9.0, 0.0, 0.0), (3.0, 1.0, 2.0), (2.0, 9.0, 0.0)),
        unit_of((9.0, 0.0, 0.0), (7.0, 1.0, 1.0)),
    ]
    assert cheapest(units, 10.0) == [0, 2, 1]
    assert cheapest(units, 3.0) == [0, 1, 1]
    assert cheapest(units, 0.5) == [0, 0, 0]
    assert cheapest([], 1.0) == []


@pytest.mark.parametrize("objective", ["file", "download", "ram", "latency"])
def test_what_is_put_together_at_each_call_is_tried_for_bytes_alone(objective: str) -> None:
    tried = encodings_for(Goal(min_snr=30, objective=objective))
    split = {text.split(":")[0] for text in tried} & {"int12", "int10", "int6"}
    blocks = [text for text in tried if "block" in text and "dequantize" in text]
    slow = objective in ("file", "download")
    assert bool(blocks) is slow and len(split) == (3 if slow else 0)
    assert "int8:channel" in tried and "float16" in tried
    assert set(HYBRID) <= set(tried) or objective in ("file", "download")


def test_encodings_that_are_asked_for_are_tried_all_the_same() -> None:
    asked = ("int6:channel:dequantize",)
    assert encodings_for(Goal(min_snr=30, objective="latency", encodings=asked)) == asked
