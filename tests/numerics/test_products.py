"""Weights as matrices and activations as vectors: their products are those of the operators."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tfl_rewrite.numerics.products import BatchMatmul, Convolution, Dense, Depthwise, Product, Window

Array = np.ndarray[Any, Any]
ALL = 1 << 20


def outputs(product: Product, weight: Array, activation: Array, *, limit: int = ALL) -> Array:
    """``[groups, vectors, rows]``."""
    vectors = product.vectors(activation, limit, np.random.default_rng(0))
    return vectors @ product.matrix(weight).swapaxes(1, 2)


def convolve(activation: Array, weight: Array, window: Window, groups: int) -> Array:
    """Output by output, straight from the definition; ``weight`` is ``[out, h, w, in of a group]``."""
    batch, height, width, _ = activation.shape
    reach = [(k - 1) * d + 1 for k, d in zip(window.kernel, window.dilation, strict=True)]
    if window.same:
        sizes = [-(-n // s) for n, s in zip((height, width), window.stride, strict=True)]
        lacking = [
            max(0, (o - 1) * s + r - n)
            for o, s, r, n in zip(sizes, window.stride, reach, (height, width), strict=True)
        ]
    else:
        sizes = [(n - r) // s + 1 for n, s, r in zip((height, width), window.stride, reach, strict=True)]
        lacking = [0, 0]
    top, left = lacking[0] // 2, lacking[1] // 2
    count, per = weight.shape[0], weight.shape[3]
    result = np.zeros((batch, sizes[0], sizes[1], count))
    for b, y, x, o in np.ndindex(*result.shape):
        first = (o // (count // groups)) * per
        for i, j in np.ndindex(*window.kernel):
            row = y * window.stride[0] - top + i * window.dilation[0]
            column = x * window.stride[1] - left + j * window.dilation[1]
            if 0 <= row < height and 0 <= column < width:
                result[b, y, x, o] += activation[b, row, column, first : first + per] @ weight[o, i, j]
    return result


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize(("stride", "dilation"), [((1, 1), (1, 1)), ((2, 3), (1, 1)), ((1, 1), (2, 1))])
@pytest.mark.parametrize("groups", [1, 2])
def test_convolution(same: bool, stride: tuple[int, int], dilation: tuple[int, int], groups: int) -> None:
    random = np.random.default_rng(0)
    activation = random.standard_normal((2, 7, 6, 4)).astype(np.float32)
    weight = random.standard_normal((6, 3, 2, 4 // groups)).astype(np.float32)
    window = Window((3, 2), stride, dilation, same)
    found = outputs(Convolution(weight.shape, groups, window), weight, activation)
    wanted = convolve(activation, weight, window, groups)
    flat = wanted.reshape(-1, groups, 6 // groups).transpose(1, 0, 2)
    np.testing.assert_allclose(found, flat, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("multiplier", [1, 2])
def test_depthwise(multiplier: int) -> None:
    random = np.random.default_rng(1)
    activation = random.standard_normal((1, 6, 5, 3)).astype(np.float32)
    weight = random.standard_normal((1, 3, 3, 3 * multiplier)).astype(np.float32)
    window = Window((3, 3), (2, 1), (1, 1), True)
    found = outputs(Depthwise(weight.shape, multiplier, window), weight, activation)
    grouped = weight[0].transpose(2, 0, 1)[..., None]
    wanted = convolve(activation, grouped, window, 3)
    np.testing.assert_allclose(
        found, wanted.reshape(-1, 3, multiplier).transpose(1, 0, 2), rtol=1e-4, atol=1e-5
    )


def test_dense() -> None:
    random = np.random.default_rng(2)
    activation = random.standard_normal((2, 3, 5)).astype(np.float32)
    weight = random.standard_normal((4, 5)).astype(np.float32)
    found = outputs(Dense(weight.shape), weight, activation)
    np.testing.assert_allclose(found[0], activation.reshape(-1, 5) @ weight.T, rtol=1e-5)


@pytest.mark.parametrize("adj_x", [True, False])
@pytest.mark.parametrize("adj_y", [True, False])
@pytest.mark.parametrize(("left", "right"), [((2, 3), ()), ((2, 3), (2, 3)), ((2, 3), (3,)), ((3,), (2, 1))])
def test_batch_matmul(adj_x: bool, adj_y: bool, left: tuple[int, ...], right: tuple[int, ...]) -> None:
    random = np.random.default_rng(3)
    activation = random.standard_normal((*left, 4, 5)).astype(np.float32)
    weight = random.standard_normal((*right, 5, 6)).astype(np.float32)
    wanted = activation @ weight
    activation = activation.swapaxes(-1, -2).copy() if adj_x else activation
    weight = weight.swapaxes(-1, -2).copy() if adj_y else weight
    product = BatchMatmul(weight.shape, adj_x, adj_y)
    found = outputs(product, weight, activation)
    # In whatever order: every output is there.
    np.testing.assert_allclose(np.sort(found, axis=None), np.sort(wanted, axis=None), rtol=1e-4, atol=1e-5)
    for group, matrix in enumerate(weight.reshape(-1, *weight.shape[-2:])):
        own = product.vectors(activation, ALL, random)[group] @ (matrix.T if adj_y else matrix)
        np.testing.assert_allclose(found[group], own, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "product",
    [
        Dense((4, 6)),
        BatchMatmul((2, 3, 4), False, False),
        BatchMatmul((2, 3, 4), False, True),
        Convolution((4, 3, 2, 3), 2, Window((3, 2), (1, 1), (1, 1), True)),
        Depthwise((1, 3, 2, 6), 2, Window((3, 2), (1, 1), (1, 1), True)),
    ],
)
def test_a_matrix_turns_back_into_the_weight(product: Any) -> None:
    weight = np.arange(np.prod(product.shape)).reshape(product.shape)
    matrix = product.matrix(weight)
    assert matrix.shape[0] == product.groups and matrix.shape[2] == product.inner
    assert (product.weight(matrix) == weight).all()


def test_no_more_vectors_than_asked_for() -> None:
    activation = np.random.default_rng(4).standard_normal((1, 40, 40, 2)).astype(np.float32)
    product = Convolution((3, 1, 1, 2), 1, Window((1, 1), (1, 1), (1, 1), True))
    vectors = product.vectors(activation, 100, np.random.default_rng(0))
    assert vectors.shape == (1, 100, 2)
    rows = {tuple(row) for row in activation.reshape(-1, 2)}
    assert {tuple(row) for row in vectors[0]} <= rows


def test_an_activation_of_other_channels_is_refused() -> None:
    window = Window((1, 1), (1, 1), (1, 1), True)
    activation = np.zeros((1, 3, 3, 6), np.float32)
    for product in (Convolution((4, 1, 1, 5), 1, window), Depthwise((1, 1, 1, 8), 2, window)):
        with pytest.raises(ValueError, match="its activation has 6 channels"):
            product.vectors(activation, 100, np.random.default_rng(0))
