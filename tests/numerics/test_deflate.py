"""Deflated sizes: to the byte, and estimated from pieces."""

from __future__ import annotations

import zlib

import numpy as np
import pytest

from tfl_rewrite.numerics.deflate import deflated, estimated


def rounded(elements: int, step: float) -> bytes:
    values = np.random.default_rng(0).normal(0, 0.05, elements)
    return (np.rint(values / step) * step + 0.0).astype("<f4").tobytes()


@pytest.mark.slow
def test_deflated_is_what_zlib_says() -> None:
    data = rounded(700_000, 2.0**-5)
    assert abs(deflated(data) - len(zlib.compress(data, 9))) <= 16
    assert deflated(memoryview(data).cast("f")) == deflated(data)


@pytest.mark.slow
@pytest.mark.parametrize("step", [2.0**-4, 2.0**-7])
def test_an_estimate_is_close(step: float) -> None:
    data = rounded(400_000, step)
    assert estimated(data, 1 << 19) == pytest.approx(len(zlib.compress(data, 9)), rel=0.02)


def test_an_estimate_sees_all_parts_of_what_changes_on_the_way() -> None:
    noise = np.random.default_rng(1).bytes(1 << 21)
    data = bytes(1 << 21) + noise
    assert estimated(data, 1 << 20) == pytest.approx(1 << 21, rel=0.05)


def test_what_is_no_more_than_the_pieces_is_deflated_whole() -> None:
    data = rounded(10_000, 2.0**-5)
    assert estimated(data, 1 << 16) == deflated(data)
    assert estimated(b"", 1 << 16) == deflated(b"")
