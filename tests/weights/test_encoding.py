"""Encodings as text, their sizes, and how long blocks are."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfl_rewrite import UsageError
from tfl_rewrite.kernels.operators import Granularity
from tfl_rewrite.numerics.blocks import FITTING, block_length, block_lengths
from tfl_rewrite.numerics.symmetric import Levels
from tfl_rewrite.weights.encoding import Encoding, Scheme
from tfl_rewrite.weights.storage import forms

TEXTS = [
    "int8:channel",
    "int8:tensor:dequantize",
    "int4:block:32",
    "int4:block:128:hybrid",
    "int4:block",
    "int6:block:dequantize",
    "int2:tensor",
    "int6:channel",
    "int6:tensor:dequantize",
    "float16",
    "float16:dequantize",
    "float32",
]


@pytest.mark.parametrize("text", TEXTS)
def test_text_comes_back(text: str) -> None:
    assert Encoding.parse(text).text == text == str(Encoding.parse(text))
    assert Encoding.parse(Encoding.parse(text).text) == Encoding.parse(text)


def test_what_is_left_out_comes_from_the_default() -> None:
    assert Encoding.parse("int4") == Encoding(forms()["int4"], Granularity.CHANNEL, None, Scheme.AUTO)
    base = Encoding.parse("int8:block:64:dequantize")
    assert Encoding.parse("int4", default=base).text == "int4:block:64:dequantize"
    assert Encoding.parse("int4:tensor:hybrid", default=base).text == "int4:tensor:hybrid"
    # Scales and kernels mean nothing to a float type.
    assert Encoding.parse("float16", default=Encoding.parse("int8:block:64:hybrid")).text == "float16"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("int5", "int8, int6, int4"),
        ("int6:block:32:hybrid", "no kernel reads int6"),
        ("int6:channel:hybrid", "no kernel reads int6"),
        ("", "int8"),
        ("int4:block:0", "block:32"),
        ("int4:block:33", "block, block:32, block:64, block:128, block:256"),
        ("int4:block:x", "block:32"),
        ("int4:channel:tensor", "no place"),
        ("int8:fast", "no place"),
        ("float16:channel", "no place"),
        ("float16:hybrid", "no kernel reads"),
    ],
)
def test_what_is_no_encoding(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=re.escape(words)):
        Encoding.parse(text)


def test_a_block_and_its_granularity_go_together() -> None:
    with pytest.raises(UsageError):
        Encoding(forms()["int4"], Granularity.BLOCK)
    with pytest.raises(UsageError):
        Encoding(forms()["int4"], Granularity.CHANNEL, 32)


@pytest.mark.parametrize(
    ("shape", "block", "length"),
    [
        ((8, 64), 32, 32),
        ((8, 48), 32, 24),
        ((16, 3, 3, 3), 32, 27),
        ((64, 2), 32, 32),  # rows of two: blocks hold several rows
        ((1000,), 32, 25),
        ((31, 37), 32, 31),
        ((37, 41), 32, None),
        ((1, 5), 32, None),
        ((1, 20), 64, 20),
        ((0, 4), 32, None),
        ((), 32, None),
    ],
)
def test_block_length(shape: tuple[int, ...], block: int, length: int | None) -> None:
    assert block_length(shape, block) == length


@given(st.lists(st.integers(1, 40), min_size=1, max_size=4), st.sampled_from([32, 64, 128]))
def test_blocks_are_whole_and_worth_it(shape: list[int], block: int) -> None:
    length = block_length(shape, block)
    if length is not None:
        assert math.prod(shape) % length == 0
        assert block / 4 <= length <= block


@pytest.mark.parametrize(
    ("shape", "lengths"),
    [
        ((8, 3, 3, 28), [28, 63, 126, 252]),
        ((48, 64), [16, 32, 64]),
        ((10, 1, 1, 1001), [91, 143, 1001]),
        ((10, 127), [127]),
        ((4096,), [16, 32, 64, 128, 256, 4096]),
        ((64, 2), []),
        ((0, 5), []),
    ],
)
def test_lengths_that_are_weighed_are_divisors_of_a_row(shape: tuple[int, ...], lengths: list[int]) -> None:
    assert block_lengths(shape, FITTING) == lengths


def test_levels() -> None:
    assert Levels.narrow(8) == (-127, 127) and Levels.full(4) == (-8, 7) and Levels.narrow(2) == (-1, 1)


def test_levels_of_a_sum() -> None:
    assert forms()["int6"].levels == (-34, 29)
    assert forms()["int4"].levels == Levels.full(4) == (-8, 7)
    assert forms()["int6"].bits == 4 + 2
    assert forms()["int10"].levels == (-509, 509) and forms()["int12"].levels == (-2039, 2039)
    assert [forms()[name].levels.dtype for name in ("int8", "int10")] == [np.int8, np.int16]
