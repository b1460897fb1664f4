"""Float16: what does not fit is clamped and counted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tfl_rewrite.weights.forms import float16 as half
from tfl_rewrite.weights.forms.float16 import Float16Error, to_half


def halved(values: list[float] | np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], Float16Error]:
    source = np.asarray(values, np.float32)
    made = np.empty(source.size, np.float16)

    def emit(start: int, block: np.ndarray[Any, Any]) -> None:
        made[start : start + block.size] = block

    return made, to_half(source, emit)


def test_counts() -> None:
    made, error = halved([1.0, 1e6, -1e30, 65504.0, 65519.9, 1e-9, -1e-30, 0.0, -0.0, 6.1e-5, 3e-6, 2.0**-24])
    assert made.tolist()[:5] == [1.0, 65504.0, -65504.0, 65504.0, 65504.0]
    assert np.isfinite(made).all()
    assert (error.clamped, error.flushed) == (3, 2)
    # 2^-24 is a subnormal that float16 holds exactly; 6.1e-5 and 3e-6 lose bits.
    assert error.subnormal == 2
    assert np.signbit(made[8]) and not np.signbit(made[7])


def test_error_is_that_of_the_values(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    monkeypatch.setattr(half, "BLOCK_ELEMENTS", 77)
    made, error = halved(values)
    assert np.array_equal(made, values.astype(np.float16))
    wide = values.astype(np.float64)
    assert error.signal == pytest.approx(float(np.square(wide).sum()))
    assert error.noise == pytest.approx(float(np.square(wide - made).sum()))
    assert 70 < error.snr < 80
    assert (error.clamped, error.flushed) == (0, 0)
