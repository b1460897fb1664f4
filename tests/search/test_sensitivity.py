"""What is told of encodings that were not measured."""

from __future__ import annotations

import numpy as np
import pytest

from tfl_rewrite.search.clock import Clock
from tfl_rewrite.search.goals import Goal
from tfl_rewrite.search.sensitivity import LEAST_GAIN, State, complete, measure
from tfl_rewrite.search.trials import Rounded
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


class Files:
    """Trials that only note which encodings are measured."""

    def __init__(self, goal: Goal | None = None) -> None:
        self.measured: list[str] = []
        self.goal = goal or Goal(max_nbytes=1)

    def prepare(self, _choices: object) -> None:
        pass

    def rounded(self, _choice: object) -> Rounded:
        return Rounded({}, None)  # type: ignore[arg-type]

    def noise(self, choice: dict[int, Encoding]) -> np.ndarray:
        self.measured += [form.text for form in choice.values()]
        return np.array([1e-4])


def test_more_than_eight_bits_are_told_from_fewer() -> None:
    texts = ["int12:channel:dequantize", "int8:channel:dequantize", "int4:channel:dequantize", "float16"]
    made, bias, short = (
        unit(*(option(text, 1e-5) for text in texts)),
        *(unit(option("float16", 1e-8)) for _ in range(2)),
    )
    bias.elements, short.elements = 256, 255
    files = Files()
    measure(
        [made, bias, short],
        files,  # type: ignore[arg-type]
        1000,
        state=State(None, ""),
        clock=Clock(None),
        progress=lambda _what, _done, _total: None,
    )
    # Of what has no other encoding something has to be known, unless there is next to nothing of it.
    assert files.measured == ["int4:channel:dequantize", "float16", "int8:channel:dequantize"]
    assert all(each.noise is not None for each in (*made.options, *short.options))


def of_bits(unit_bytes: float, *rows: tuple[str, float]) -> Unit:
    """A unit of so many bytes whose encodings take parts of them."""
    made = Unit(1, "w", ("CONV_2D",), 10, int(unit_bytes), [Option(KEPT, unit_bytes, unit_bytes)])
    made.options += [
        Option(Encoding.parse(text), unit_bytes * part, unit_bytes * part) for text, part in rows
    ]
    return made


WIDTHS = [(f"int{bits}:channel:dequantize", bits / 32) for bits in (12, 10, 8, 6, 4, 2)]


@pytest.mark.parametrize(
    ("goal", "noise", "kept"),
    [
        # What int4 alone makes is 12 dB above the bound: 6 bits are 0 dB, 8 bits 12 dB below it.
        (Goal(min_snr=30.0), 10**-1.8, {4, 6, 8}),
        # 24 dB below: two bits keep it still, and at a bound 12 dB tighter, too.
        (Goal(min_snr=30.0), 10**-5.4, {4, 2}),
        # Beyond what it tells of others.
        (Goal(min_snr=30.0), 0.3, {12, 10, 8, 6, 4, 2}),
        # What such a bound needs is not known.
        (Goal(min_snr=30.0, max_error=0.1), 10**-5.4, {12, 10, 8, 6, 4, 2}),
    ],
)
def test_what_no_bound_nearby_takes_is_not_rounded(goal: Goal, noise: float, kept: set[int]) -> None:
    class Told(Files):
        def noise(self, choice: dict[int, Encoding]) -> np.ndarray:
            (form,) = choice.values()
            return np.array([noise * 4.0 ** (4 - form.form.bits)])

        def rounded(self, choice: dict[int, Encoding]) -> Rounded:
            tried.extend(form.form.bits for form in choice.values())
            return Rounded({}, None)  # type: ignore[arg-type]

    tried: list[int] = []
    made = of_bits(40_000.0, *WIDTHS)
    measure(
        [made],
        Told(goal),  # type: ignore[arg-type]
        1000,
        state=State(None, ""),
        clock=Clock(None),
        progress=lambda _what, _done, _total: None,
        kept={
            (1, Encoding.parse("int12:channel:dequantize")),
            (2, Encoding.parse("int10:channel:dequantize")),
        },
    )
    # What whole files showed to do is not left out, whatever is expected of it.
    assert tried[0] == 4 and set(tried) == kept | {12}
    assert {option.form.form.bits for option in made.options[1:]} == kept | {12}  # type: ignore[union-attr]
