"""Scales and rounding against plain numpy, and the bounds that they promise."""

from __future__ import annotations

import math
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from hypothesis.strategies import DrawFn

from tfl_rewrite.numerics import symmetric
from tfl_rewrite.numerics.symmetric import Channels, Error

TINY = float(np.finfo(np.float32).tiny)
HUGE = float(np.finfo(np.float32).max)

Array = np.ndarray[Any, Any]

layouts = st.builds(Channels, st.integers(1, 7), st.integers(1, 9), st.integers(1, 40))


@st.composite
def arrays(draw: DrawFn) -> tuple[Array, int | None]:
    """A finite float array of any rank, and a channel axis or None."""
    shape = draw(hnp.array_shapes(min_dims=1, max_dims=4, max_side=7))
    width = draw(st.sampled_from([32, 16]))
    kind = draw(st.sampled_from(["bits", "tame", "tiny"]))
    if kind == "bits":
        # Any bit pattern: subnormal numbers, both zeros, the largest.
        raw = draw(hnp.arrays(f"u{width // 8}", shape))
        values = raw.view(f"f{width // 8}")
        values = np.where(np.isfinite(values), values, values.dtype.type(0))
    else:
        random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        values = random.standard_normal(shape) * (
            1.0 if kind == "tame" else 10.0 ** (-39 if width == 32 else -6)
        )
        values[random.random(shape) < 0.3] = 0
        values = values.astype(f"f{width // 8}")
    axis = draw(st.sampled_from([None, *range(len(shape))]))
    return values, axis


@given(layouts, st.data())
def test_each_element_gets_what_is_of_its_channel(channels: Channels, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, channels.elements))
    stop = data.draw(st.integers(start, channels.elements))
    values = np.arange(channels.channels)
    wanted = np.arange(start, stop) // channels.inner % channels.channels
    assert channels.by_element(values, start, stop).tolist() == wanted.tolist()
    assert len(channels.by_element(values)) == channels.elements


def rounded(values: Array, axis: int | None) -> tuple[Array, Array, Error]:
    """Quantizes; returns integers and float64 scales in the shape of the values, and the error."""
    channels = Channels.along(values.shape, axis)
    flat = values.reshape(-1)
    scale = symmetric.scales(symmetric.absmax(flat, channels))
    made = np.full(values.size, -128, np.int8)

    def emit(start: int, block: Array) -> None:
        made[start : start + block.size] = block

    symmetric.quantize(flat, scale, channels, emit, error=(error := Error()))
    shape = [1] * values.ndim
    if axis is not None:
        shape[axis] = values.shape[axis]
    return made.reshape(values.shape), scale.reshape(shape).astype(np.float64), error


@given(arrays())
@settings(deadline=None, max_examples=300)
@example((np.array([HUGE, -HUGE, 1.0], np.float32), None))
@example((np.array([65504.0, -65504.0], np.float16), 0))
@example((np.array([[0.0, 0.0], [1e-45, -1e-45]], np.float32), 0))
def test_half_a_step(drawn: tuple[Array, int | None]) -> None:
    values, axis = drawn
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        integers, scale, error = rounded(values, axis)
    assert integers.min(initial=0) >= -127 and integers.max(initial=0) <= 127
    exact = values.astype(np.float64)
    ulp = np.spacing(np.minimum(np.abs(exact), HUGE / 2).astype(np.float32)).astype(np.float64) * 2
    assert (np.abs(exact - integers * scale) <= scale / 2 + ulp).all()
    # What a kernel computes with them stays a number, and scales are what XNNPACK takes.
    assert np.isfinite(integers.astype(np.float32) * scale.astype(np.float32)).all()
    assert (scale >= TINY).all()
    others = tuple(index for index in range(values.ndim) if index != axis) if axis is not None else None
    zero = (exact == 0).all(axis=others, keepdims=True) if axis is not None else np.array((exact == 0).all())
    assert (np.broadcast_to(scale, zero.shape if axis is not None else scale.shape)[zero] == 1).all()
    if (np.abs(exact) > 1e-30).any() and np.abs(exact).max() < 1e30:
        assert error.signal == pytest.approx(float(np.square(exact).sum()), rel=1e-4)


@given(layouts, st.integers(1, 64))
@settings(deadline=None, max_examples=300)
def test_blocks_cover_everything_once(channels: Channels, block_elements: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(symmetric, "BLOCK_ELEMENTS", block_elements)
        position = 0
        for start, rows, first, columns in symmetric.blocks(channels):
            assert start == position
            assert rows > 0 and columns > 0
            position += rows * columns
            if channels.inner == 1:
                assert (first, columns) == (0, channels.channels)
            else:
                # Every row is of one channel, from the first on.
                ends = range(start, start + rows * columns, columns)
                assert [at // channels.inner % channels.channels for at in ends] == list(
                    range(first, first + rows)
                )
                assert columns == channels.inner or rows == 1
        assert position == channels.elements


@given(st.sampled_from([(0, 3, 2), (2, 0, 2), (2, 3, 0), (0, 0, 0), (0, 5, 1)]))
def test_nothing_has_no_blocks(sizes: tuple[int, int, int]) -> None:
    assert list(symmetric.blocks(Channels(*sizes))) == []


@given(layouts, st.integers(1, 64), st.integers(0, 2**32 - 1), st.sampled_from([np.float32, np.float16]))
@settings(deadline=None, max_examples=200)
def test_as_plain_numpy(channels: Channels, block_elements: int, seed: int, dtype: Any) -> None:
    random = np.random.default_rng(seed)
    values = random.standard_normal(channels.elements).astype(dtype)
    cube = values.reshape(channels.outer, channels.channels, channels.inner).astype(np.float32)
    largest = np.abs(cube).max(axis=(0, 2))
    scale = np.where(largest == 0, np.float32(1), largest / np.float32(127)).astype(np.float32)
    expected = np.clip(np.rint(cube / scale[None, :, None]), -127, 127).astype(np.int8)
    made = np.zeros(channels.elements, np.int8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(symmetric, "BLOCK_ELEMENTS", block_elements)
        energy = np.zeros(channels.channels)
        assert np.array_equal(symmetric.absmax(values, channels, energy=energy), largest)
        assert energy == pytest.approx(np.square(cube.astype(np.float64)).sum(axis=(0, 2)), rel=1e-3)
        assert np.array_equal(symmetric.scales(largest), scale)

        def emit(start: int, block: Array) -> None:
            made[start : start + block.size] = block

        symmetric.quantize(values, scale, channels, emit, error=(error := Error()))
    assert np.array_equal(made, expected.reshape(-1))
    noise = np.square(cube.astype(np.float64) - expected * scale[None, :, None].astype(np.float64)).sum()
    assert error.noise == pytest.approx(noise, rel=1e-2, abs=1e-12)


@given(layouts, st.integers(0, 2**32 - 1), st.integers(1, 64))
@settings(deadline=None, max_examples=100)
def test_absmax_lets_nan_and_infinity_through(channels: Channels, seed: int, block_elements: int) -> None:
    random = np.random.default_rng(seed)
    values = random.standard_normal(channels.elements).astype(np.float32)
    values[random.integers(0, channels.elements, 3)] = random.choice([np.nan, np.inf, -np.inf, 1.0], 3)
    cube = np.abs(values.reshape(channels.outer, channels.channels, channels.inner))
    expected = cube.max(axis=(0, 2))
    with pytest.MonkeyPatch.context() as patch, np.errstate(invalid="ignore"):
        patch.setattr(symmetric, "BLOCK_ELEMENTS", block_elements)
        assert np.array_equal(symmetric.absmax(values, channels), expected, equal_nan=True)


@pytest.mark.parametrize("magnitude", [1e-44, 1e-25, 1.0, 1e25, 3e38])
def test_energy_of_any_magnitude(magnitude: float) -> None:
    values = (np.random.default_rng(1).uniform(-1, 1, 5000) * magnitude).astype(np.float32)
    channels = Channels(1, 1, values.size)
    scale = symmetric.scales(symmetric.absmax(values, channels))
    symmetric.quantize(values, scale, channels, lambda _start, _block: None, error=(error := Error()))
    signal = float(np.square(values.astype(np.float64)).sum())
    assert error.signal == pytest.approx(signal, rel=1e-4)
    if magnitude > 1e-30:
        # Uniform values over 127 steps: 10 log10((1 / 3) / (1 / (12 * 127**2))).
        assert error.snr == pytest.approx(48.1, abs=0.5)
    assert math.isfinite(error.noise)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize(
    ("shape", "axis"), [((64, 900), 0), ((900, 64), 1), ((5, 70, 90), 1), ((70000,), None)]
)
def test_same_integers_whatever_the_blocks_and_threads(
    dtype: Any, shape: tuple[int, ...], axis: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = np.random.default_rng(2).standard_normal(shape).astype(dtype)
    expected, scale, _ = rounded(values, axis)
    for block_elements in (7, 1000, 1 << 13, 1 << 20):
        monkeypatch.setattr(symmetric, "BLOCK_ELEMENTS", block_elements)
        integers, other, _ = rounded(values, axis)
        assert np.array_equal(integers, expected) and np.array_equal(other, scale)
    for threads in (1, 2, 5):
        with ThreadPoolExecutor(threads) as pool:
            for integers, _, _ in pool.map(lambda _: rounded(values, axis), range(6)):
                assert np.array_equal(integers, expected)


def test_ratios() -> None:
    assert Error(1.0, 0.0).snr == math.inf
    assert Error(0.0, 1.0).snr == -math.inf
    assert Error(100.0, 1.0).snr == 20.0


@given(hnp.array_shapes(min_dims=1, max_dims=5, max_side=5), st.data())
@settings(deadline=None)
def test_along_an_axis(shape: tuple[int, ...], data: st.DataObject) -> None:
    axis = data.draw(st.sampled_from([None, *range(len(shape))]))
    channels = Channels.along(shape, axis)
    assert channels.elements == math.prod(shape)
    if axis is not None:
        index = np.indices(shape)[axis].reshape(channels.outer, channels.channels, channels.inner)
        assert (index == np.arange(shape[axis])[None, :, None]).all()


@given(layouts, st.integers(0, 2**32 - 1), st.integers(1, 64), st.floats(0.3, 1.2))
@settings(deadline=None, max_examples=60)
def test_what_is_known_of_the_largest_changes_no_integer(
    channels: Channels, seed: int, block_elements: int, cut: float
) -> None:
    values = np.random.default_rng(seed).standard_normal(channels.elements).astype(np.float32)
    largest = symmetric.absmax(values, channels)
    # Some channels are cut off, and some are not.
    scale = symmetric.scales(largest)
    scale[::2] *= np.float32(cut)
    found: list[list[bytes]] = [[], []]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(symmetric, "BLOCK_ELEMENTS", block_elements)
        for known, blocks in zip((None, largest), found, strict=True):
            symmetric.quantize(
                values,
                scale,
                channels,
                lambda _start, block, to=blocks: to.append(block.tobytes()),
                largest=known,
            )
    assert found[0] == found[1]


def test_numpy_is_left_as_it_was() -> None:
    seen: list[int] = []

    def fail(_start: int, _block: Array) -> None:
        seen.append(np.getbufsize())
        raise RuntimeError

    before = np.getbufsize()
    with pytest.raises(RuntimeError):
        symmetric.quantize(np.ones(9, np.float32), np.ones(1, np.float32), Channels(1, 1, 9), fail)
    assert np.getbufsize() == before not in seen and seen
