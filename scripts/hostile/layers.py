"""Layers with weights."""

from __future__ import annotations

import numpy as np

from hostile.net import SAME, Net, reshaped, shape_of
from tfl_rewrite.model.ir import Tensor

_TANH = 4


def conv(net: Net, x: Tensor) -> Tensor:
    _, high, wide, channels = shape_of(x)
    out = net.random.choice((4, 8))
    size = net.random.choice((1, 2))
    weights = net.weights(out, size, size, channels, fan=size * size * channels)
    bias = net.weights(out, fan=4) if net.random.random() < 0.9 else None
    bias = bias or net.constant(np.zeros(out, np.float32))
    return net.add(
        "CONV_2D",
        [x, weights, bias],
        (1, high, wide, out),
        table="Conv2DOptions",
        padding=SAME,
        stride_w=1,
        stride_h=1,
        fused_activation_function=net.random.choice((0, 1, 3)),
    )


def depthwise(net: Net, x: Tensor) -> Tensor:
    shape = shape_of(x)
    weights = net.weights(1, 2, 2, shape[3], fan=4)
    return net.add(
        "DEPTHWISE_CONV_2D",
        [x, weights, net.weights(shape[3], fan=4)],
        shape,
        table="DepthwiseConv2DOptions",
        padding=SAME,
        stride_w=1,
        stride_h=1,
        depth_multiplier=1,
    )


def transpose_conv(net: Net, x: Tensor) -> Tensor:
    _, high, wide, channels = shape_of(x)
    weights = net.weights(4, 2, 2, channels, fan=2 * channels)
    return net.add(
        "TRANSPOSE_CONV",
        [net.ints(1, high, wide, 4), weights, x],
        (1, high, wide, 4),
        table="TransposeConvOptions",
        padding=SAME,
        stride_w=1,
        stride_h=1,
    )


def dense(net: Net, x: Tensor) -> Tensor:
    rows, wide = shape_of(x)
    out = net.random.choice((8, 16, 24))
    bias = net.weights(out, fan=4) if net.random.random() < 0.7 else None
    return net.add(
        "FULLY_CONNECTED",
        [x, net.weights(out, wide, fan=wide), bias],
        (rows, out),
        table="FullyConnectedOptions",
        fused_activation_function=net.random.choice((0, 1)),
    )


def matmul(net: Net, x: Tensor) -> Tensor:
    rows, wide = shape_of(x)
    adjoint = net.random.random() < 0.5
    weights = net.weights(*((12, wide) if adjoint else (wide, 12)), fan=wide)
    return net.add("BATCH_MATMUL", [x, weights], (rows, 12), table="BatchMatMulOptions", adj_y=adjoint)


def svdf(net: Net, x: Tensor) -> Tensor:
    rows, wide = shape_of(x)
    units, memory = 8, 4
    state = net.tensor((rows, units * memory), variable=True)
    inputs = [x, net.weights(units, wide, fan=wide), net.weights(units, memory, fan=memory), None, state]
    return net.add("SVDF", inputs, (rows, units), table="SVDFOptions", rank=1)


def rnn(net: Net, x: Tensor) -> Tensor:
    rows, wide = shape_of(x)
    state = net.tensor((rows, 8), variable=True)
    inputs = [x, net.weights(8, wide, fan=wide), net.weights(8, 8, fan=8), net.weights(8, fan=8), state]
    return net.add("RNN", inputs, (rows, 8), table="RNNOptions", fused_activation_function=_TANH)


def lstm(net: Net, x: Tensor) -> Tensor:
    rows, wide = shape_of(x)
    sequence = reshaped(net, x, (1, rows, wide))
    gates = [net.weights(8, wide, fan=wide) for _ in range(4)]
    again = [net.weights(8, 8, fan=8) for _ in range(4)]
    biases = [net.weights(8, fan=8) for _ in range(4)]
    states = [net.tensor((1, 8), variable=True) for _ in range(2)]
    inputs: list[Tensor | None] = [sequence, *gates, *again, None, None, None, *biases, None, None, *states]
    inputs += [None] * 4
    return net.add(
        "UNIDIRECTIONAL_SEQUENCE_LSTM",
        inputs,
        (1, rows, 8),
        table="UnidirectionalSequenceLSTMOptions",
        fused_activation_function=_TANH,
    )


def embedding(net: Net, x: Tensor) -> Tensor:
    rows = net.ints(*[net.random.randrange(24) for _ in range(3)])
    found = net.add("EMBEDDING_LOOKUP", [rows, net.weights(24, 8, fan=4)], (3, 8))
    mean = net.add("SUM", [reshaped(net, x, (x.elements,)), net.ints(0)], (), table="ReducerOptions")
    return net.add("ADD", [found, net.add("TANH", [mean], ())], (3, 8), table="AddOptions")
