"""Operators that move, join, repeat or choose elements."""

from __future__ import annotations

import numpy as np

from hostile.net import Net, Step, shape_of
from tfl_rewrite.flatbuf.record import INT32, ScalarVector
from tfl_rewrite.model.ir import Tensor


def transpose(net: Net, x: Tensor) -> Tensor:
    shape = shape_of(x)
    order = list(range(len(shape)))
    net.random.shuffle(order)
    return net.add(
        "TRANSPOSE", [x, net.ints(*order)], [shape[axis] for axis in order], table="TransposeOptions"
    )


def padded(kind: str) -> Step:
    def step(net: Net, x: Tensor) -> Tensor:
        shape = shape_of(x)
        axis = net.random.randrange(len(shape))
        widths = np.zeros((len(shape), 2), np.int32)
        widths[axis] = (1, 0) if shape[axis] > 1 else (0, 0)
        inputs = [x, net.constant(widths)]
        inputs += [net.constant(np.full(1, 0.5, np.float32))] if kind == "PADV2" else []
        table = {"PAD": "PadOptions", "PADV2": "PadV2Options", "MIRROR_PAD": "MirrorPadOptions"}[kind]
        return net.add(
            kind, inputs, [n + int(row.sum()) for n, row in zip(shape, widths, strict=True)], table=table
        )

    return step


def strided(net: Net, x: Tensor) -> Tensor:
    shape = shape_of(x)
    steps = [net.random.choice((1, 2)) for _ in shape]
    made = [-(-size // step) for size, step in zip(shape, steps, strict=True)]
    inputs = [x, net.ints(*[0] * len(shape)), net.ints(*shape), net.ints(*steps)]
    return net.add("STRIDED_SLICE", inputs, made, table="StridedSliceOptions")


def split(net: Net, x: Tensor) -> Tensor:
    shape = shape_of(x)
    axis = next((axis for axis, size in enumerate(shape) if size % 2 == 0), None)
    if axis is None:
        return net.add("ABS", [x], shape)
    half = (*shape[:axis], shape[axis] // 2, *shape[axis + 1 :])
    if net.random.random() < 0.5:
        inputs = [net.constant(np.asarray(axis, np.int32)), x]
        made = net.many("SPLIT", inputs, [half, half], table="SplitOptions", num_splits=2)
    else:
        inputs = [x, net.ints(half[axis], half[axis]), net.constant(np.asarray(axis, np.int32))]
        made = net.many("SPLIT_V", inputs, [half, half], table="SplitVOptions", num_splits=2)
    if net.random.random() < 0.5:
        return net.random.choice(made)
    made.reverse()
    return net.add("CONCATENATION", made, shape, table="ConcatenationOptions", axis=axis)


def packed(net: Net, x: Tensor) -> Tensor:
    shape = shape_of(x)
    other = net.add("NEG", [x], shape, table="NegOptions")
    made = net.add("PACK", [x, other], (2, *shape), table="PackOptions", values_count=2, axis=0)
    if len(shape) >= 4 or net.random.random() < 0.5:
        return net.many("UNPACK", [made], [shape, shape], table="UnpackOptions", num=2, axis=0)[1]
    return made


def squeezed(net: Net, x: Tensor) -> Tensor:
    shape = shape_of(x)
    axis = net.constant(np.asarray(0, np.int32))
    longer = net.add("EXPAND_DIMS", [x, axis], (1, *shape), table="ExpandDimsOptions")
    dims = ScalarVector.of(INT32, [0])
    return net.add("SQUEEZE", [longer], shape, table="SqueezeOptions", squeeze_dims=dims)


def gathered(net: Net, x: Tensor) -> Tensor:
    shape = shape_of(x)
    rows = [net.random.randrange(shape[0]) for _ in range(2)]
    if net.random.random() < 0.3:
        where = net.constant(np.asarray([[row] for row in rows], np.int32))
        return net.add("GATHER_ND", [x, where], (2, *shape[1:]), table="GatherNdOptions")
    return net.add("GATHER", [x, net.ints(*rows)], (2, *shape[1:]), table="GatherOptions", axis=0)


def looked_up(net: Net, x: Tensor) -> Tensor:
    """Rows of a constant table, at positions that the shape of the value gives."""
    table = net.weights(20, len(shape_of(x)) + 3)
    sizes = net.add("SHAPE", [x], (len(shape_of(x)),), dtype=np.int32, table="ShapeOptions", out_type=2)
    rows = net.add("MINIMUM", [sizes, net.ints(19)], (len(shape_of(x)),), dtype=np.int32)
    return net.add(
        "GATHER", [table, rows], (len(shape_of(x)), shape_of(table)[1]), table="GatherOptions", axis=0
    )


def blocks(net: Net, x: Tensor) -> Tensor:
    _, high, wide, channels = shape_of(x)
    if high % 2 or wide % 2:
        return net.add("ABS", [x], shape_of(x))
    deep = (1, high // 2, wide // 2, channels * 4)
    made = net.add("SPACE_TO_DEPTH", [x], deep, table="SpaceToDepthOptions", block_size=2)
    return net.add("DEPTH_TO_SPACE", [made], shape_of(x), table="DepthToSpaceOptions", block_size=2)


def batches(net: Net, x: Tensor) -> Tensor:
    _, high, wide, channels = shape_of(x)
    if high % 2 or wide % 2:
        return net.add("ABS", [x], shape_of(x))
    none = net.constant(np.zeros((2, 2), np.int32))
    small = (4, high // 2, wide // 2, channels)
    made = net.add("SPACE_TO_BATCH_ND", [x, net.ints(2, 2), none], small)
    return net.add("BATCH_TO_SPACE_ND", [made, net.ints(2, 2), none], shape_of(x))


def resized(net: Net, x: Tensor) -> Tensor:
    channels = shape_of(x)[3]
    kind, table = net.random.choice(
        (
            ("RESIZE_BILINEAR", "ResizeBilinearOptions"),
            ("RESIZE_NEAREST_NEIGHBOR", "ResizeNearestNeighborOptions"),
        )
    )
    return net.add(kind, [x, net.ints(4, 4)], (1, 4, 4, channels), table=table)


def filled(net: Net, x: Tensor) -> Tensor:
    shape = shape_of(x)
    sizes = net.add("SHAPE", [x], (len(shape),), dtype=np.int32, table="ShapeOptions", out_type=2)
    number = net.constant(np.asarray(0.25, np.float32))
    made = net.add("FILL", [sizes, number], shape, table="FillOptions")
    zeros = net.add("ZEROS_LIKE", [x], shape, table="ZerosLikeOptions")
    both = net.add("ADD", [made, zeros], shape, table="AddOptions")
    return net.add("ADD", [x, both], shape, table="AddOptions")


def broadcast(net: Net, x: Tensor) -> Tensor:
    small = net.weights(shape_of(x)[-1], fan=4)
    made = net.add(
        "BROADCAST_TO", [small, net.ints(*shape_of(x))], shape_of(x), table="BroadcastToOptions", version=2
    )
    return net.add("MUL", [x, made], shape_of(x), table="MulOptions")


def reverse(net: Net, x: Tensor) -> Tensor:
    axis = net.random.randrange(len(shape_of(x)))
    return net.add("REVERSE_V2", [x, net.ints(axis)], shape_of(x), table="ReverseV2Options")


def selected(net: Net, x: Tensor) -> Tensor:
    chosen = net.constant(net.numbers.integers(0, 2, shape_of(x)).astype(bool))
    flipped = net.add("LOGICAL_NOT", [chosen], shape_of(x), dtype=bool, table="LogicalNotOptions")
    return net.add(
        "SELECT_V2", [flipped, x, net.add("NEG", [x], shape_of(x))], shape_of(x), table="SelectV2Options"
    )
