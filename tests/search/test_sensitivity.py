"""What is told of encodings that were not measured."""

from __future__ import annotations

import numpy as np
import pytest

from tfl_rewrite.search.sensitivity import LEAST_GAIN, complete
from tfl_rewrite.search.units import KEPT, Option, Unit
from tfl_rewrite.weights.encoding import Encoding


def option(text: str, wnoise: float, noise: float | None = None, *, ran: bool = True) -> Option:
    found = Option(Encoding.parse(text), 1.0, 1.0, None if noise is None else np.array([noise]), wnoise)
    found.measured = noise is not None or not ran
    return found


def unit(*options: Option) -> Unit:
    return Unit(1, "w", ("CONV_2D",), 10, 40, [Option(KEPT, 40.0, 40.0), *options])


def test_told_from_the_nearest_of_the_same_unit() -> None:
    made = unit(
        option("int8:channel:dequantize", 1e-5, 1e-4),
        option("int4:channel:dequantize", 1e-2, 5e-1),
        option("float16", 1e-8),
    )
    complete([made])
    assert made.kept.noise is not None and float(made.kept.noise[0]) == 0.0
    assert made.options[3].noise == pytest.approx(np.array([1e-7]))


def test_told_from_other_units_by_the_median() -> None:
    others = [unit(option("int8:channel:dequantize", 1e-5, gain * 1e-5)) for gain in (1.0, 3.0, 100.0)]
    made = unit(option("int8:channel:dequantize", 2e-5))
    complete([*others, made])
    assert made.options[1].noise == pytest.approx(np.array([6e-5]))


def test_hybrid_kernels_are_measured_or_left_out() -> None:
    made = unit(option("int8:channel", 1e-5), option("int8:channel:dequantize", 1e-5, 1e-4))
    complete([made])
    assert [item.form.text for item in made.options[1:]] == ["int8:channel:dequantize"]


def test_what_did_not_run_is_left_out() -> None:
    made = unit(option("int4:channel:dequantize", 1e-2, ran=False), option("float16", 1e-8, 1e-7))
    complete([made])
    assert [item.form.text for item in made.options[1:]] == ["float16"]


def test_what_the_inputs_do_not_use_counts_a_little() -> None:
    """A branch that is not taken shows no noise at all; on other inputs it may be taken."""
    others = [unit(option("int4:channel:dequantize", 1e-2, 1e-2)) for _ in range(3)]
    idle = unit(option("int2:channel:dequantize", 0.3, 1e-16), option("int8:channel:dequantize", 1e-5))
    complete([*others, idle])
    assert idle.options[1].noise == pytest.approx(np.array([0.3 * LEAST_GAIN]))
    assert idle.options[2].noise == pytest.approx(np.array([1e-5 * LEAST_GAIN]))
    assert others[0].options[1].noise == pytest.approx(np.array([1e-2]))
