"""The shapes of what operators give out, from the shapes of what they are given: a rule an operator.

A rule is a column of the operator's row (:attr:`tfl_rewrite.kernels.operators.OperatorRow.shape`) and says
what ``Prepare`` of its kernel allocates (``tflite/kernels/NAME.cc``; padding as in ``padding.h``). A rule
never looks at the shapes that the file declares for what operators make: those may be anything, except where
a delegate takes them from there.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy.typing as npt

from tfl_rewrite.model.ir import Operator
from tfl_rewrite.options.frozen import frozen

Dim = int | None
"""A dimension; None where it is not known."""

Shape = tuple[Dim, ...]


class UnknownShapeError(Exception):
    """What a rule needs is not known, or operands do not fit: nothing is said of the outputs."""


@frozen
class Given:
    """What is known of the inputs of one operator.

    Attributes:
        operator: The operator.
        shapes: Of its inputs, in order; None where not even the rank is known, or the input is absent.
        constant: Returns the elements of the input at a position, of its shape; None where it is no constant.
    """

    operator: Operator
    shapes: Sequence[Shape | None]
    constant: Callable[[int], npt.NDArray[Any] | None]

    def shape(self, position: int = 0) -> Shape:
        """Returns the shape of an input.

        Raises:
            UnknownShapeError: It is not known.
        """
        found = self.shapes[position] if 0 <= position < len(self.shapes) else None
        if found is None:
            raise UnknownShapeError
        return found

    def integers(self, position: int) -> list[int]:
        """Returns the elements of a constant input, flat.

        Raises:
            UnknownShapeError: It is no constant of integers.
        """
        values = self.constant(position)
        if values is None or values.dtype.kind not in "iu":
            raise UnknownShapeError
        return [int(value) for value in values.reshape(-1)]

    def option(self, name: str) -> int:
        """Returns an option that is a number.

        Raises:
            UnknownShapeError: The operator has no such option.
        """
        value = self.operator.option(name)
        if value is None:
            raise UnknownShapeError
        return int(value)

    def truth(self, name: str) -> bool:
        """Whether an option is there and set."""
        return bool(self.operator.option(name))


ShapeRule = Callable[[Given], Sequence[Shape | None]]


class Calls(enum.Enum):
    """How an operator that runs subgraphs uses them; its last inputs are theirs."""

    ONCE = "it gives out what the one that it runs gives out"
    AGAIN = "what its body gives out is given to it again"


_FLEX_MAP, _FLEX_NUMBERS = 9, (1, 2)
"""Types of FlexBuffers (``flexbuffers.h``)."""


def outputs_of(rule: ShapeRule | None, given: Given) -> list[Shape | None]:
    """Returns the shapes of the outputs of an operator, as many as it has; None for those not known."""
    count = len(given.operator.outputs)
    if rule is None:
        return [None] * count
    try:
        found = list(rule(given))
    except (UnknownShapeError, IndexError, ValueError, ZeroDivisionError, OverflowError):
        return [None] * count
    if any(shape is not None and any(dim is not None and dim < 0 for dim in shape) for shape in found):
        return [None] * count
    return (found + [None] * count)[:count]


# -- Parts of rules ------------------------------------------------------------------------------------------


def elements(shape: Sequence[Dim]) -> int | None:
    """Returns how many elements a shape has; None where a dimension is not known."""
    known = [dim for dim in shape if dim is not None]
    return math.prod(known) if len(known) == len(shape) else None


def _axis(axis: int, rank: int) -> int:
    """Returns an axis counted from the front."""
    if not -rank <= axis < rank:
        raise UnknownShapeError
    return axis % rank


def _same_dim(dims: Sequence[Dim]) -> Dim:
    """Returns a dimension that must be the same everywhere."""
    known = {dim for dim in dims if dim is not None}
    if len(known) > 1:
        raise UnknownShapeError
    return known.pop() if known else None


def broadcast_shape(*shapes: Shape) -> Shape:
    """Returns the shape that shapes broadcast to.

    Raises:
        UnknownShapeError: They do not fit.
    """
    rank = max(map(len, shapes))
    made: list[Dim] = []
    for column in zip(*((1,) * (rank - len(shape)) + shape for shape in shapes), strict=True):
        long = {dim for dim in column if dim is not None and dim != 1}
        if len(long) > 1:
            raise UnknownShapeError
        made.append(long.pop() if long else None if None in column else 1)
    return tuple(made)


def _window(given: Given, dims: Sequence[Dim], sizes: Sequence[Dim], axes: str) -> list[Dim]:
    """Returns the dimensions that are left of some where a window goes over them (``ComputeOutSize``)."""
    padding = given.option("padding")
    made: list[Dim] = []
    for dim, size, axis in zip(dims, sizes, axes, strict=True):
        stride = given.option(f"stride_{axis}")
        dilation = given.operator.option(f"dilation_{axis}_factor")
        if stride < 1 or dilation == 0:
            raise UnknownShapeError
        if dim is None or (size is None and padding):
            made.append(None)
            continue
        reach = 1 if not padding else (int(size or 0) - 1) * (dilation or 1) + 1
        made.append((dim + stride - reach) // stride)
    return made


def met(first: Shape | None, second: Shape | None) -> Shape | None:
    """Returns what is true of a tensor that may have either shape."""
    if first is None or second is None or len(first) != len(second):
        return None
    return tuple(one if one == other else None for one, other in zip(first, second, strict=True))


# -- Rules ---------------------------------------------------------------------------------------------------


def same(given: Given) -> Sequence[Shape | None]:
    """Every output has the shape of input 0."""
    return [given.shape()] * len(given.operator.outputs)


def broadcast(given: Given) -> Sequence[Shape | None]:
    """All inputs broadcast."""
    return [broadcast_shape(*(given.shape(at) for at in range(len(given.operator.inputs))))]


def select(given: Given) -> Sequence[Shape | None]:
    """The condition is of the shape of both others, or as long as their first axis, or one element."""
    return [tuple(map(_same_dim, zip(given.shape(1), given.shape(2), strict=True)))]


def convolution(given: Given) -> Sequence[Shape | None]:
    """``[n, h, w, c]`` and a filter ``[outputs, h, w, c]``."""
    batch, *plane, _ = _of_rank(given.shape(), 4)
    channels, *window, _ = _of_rank(given.shape(1), 4)
    return [(batch, *_window(given, plane, window, "hw"), channels)]


def depthwise(given: Given) -> Sequence[Shape | None]:
    """``[n, h, w, c]`` and a filter ``[1, h, w, outputs]``."""
    batch, *plane, _ = _of_rank(given.shape(), 4)
    _, *window, channels = _of_rank(given.shape(1), 4)
    return [(batch, *_window(given, plane, window, "hw"), channels)]


def convolution_3d(given: Given) -> Sequence[Shape | None]:
    """``[n, d, h, w, c]`` and a filter ``[d, h, w, c, outputs]``."""
    batch, *volume, _ = _of_rank(given.shape(), 5)
    *window, _, channels = _of_rank(given.shape(1), 5)
    return [(batch, *_window(given, volume, window, "dhw"), channels)]


def pool(given: Given) -> Sequence[Shape | None]:
    """``[n, h, w, c]`` and a window that the options give."""
    batch, *plane, channels = _of_rank(given.shape(), 4)
    window = [given.option("filter_height"), given.option("filter_width")]
    return [(batch, *_window(given, plane, window, "hw"), channels)]


def delegated(given: Given) -> Sequence[Shape | None]:
    """The samples of input 0, each of the sizes that the file declares: a delegate takes them from there."""
    source, (batch, *plane) = given.operator.inputs[0], given.shape()
    if source is None or tuple(plane) != (source.shape or ())[1:]:
        raise UnknownShapeError
    return [
        None if output is None or not output.shape else (batch, *output.shape[1:])
        for output in given.operator.outputs
    ]


def detections(given: Given) -> Sequence[Shape | None]:
    """Boxes, classes, scores and a count; the options say how many (``detection_postprocess.cc``)."""
    options = given.operator.rest.get("custom_options")
    numbers = whole_numbers(b"" if options is None else bytes(options.raw))
    try:
        most = numbers["max_detections"] * numbers["max_classes_per_detection"]
    except KeyError:
        raise UnknownShapeError from None
    return [(1, most, 4), (1, most), (1, most), (1,)]


def whole_numbers(data: bytes) -> dict[str, int]:
    """Returns the whole numbers of a FlexBuffer that is a map, by their keys.

    Behind the elements of a map are their types, a byte each, and before them the place and the width of its
    keys and their count; a place is told by how far it lies before what tells it
    (https://flatbuffers.dev/internals, "FlexBuffers").

    Raises:
        ValueError: It is none.
    """

    def number(at: int, width: int, signed: bool = False) -> int:
        if at < 0 or width not in (1, 2, 4, 8) or at + width > len(data):
            raise ValueError("no FlexBuffer")
        return int.from_bytes(data[at : at + width], "little", signed=signed)

    kind, wide, end = number(len(data) - 2, 1), number(len(data) - 1, 1), len(data) - 2
    if kind >> 2 != _FLEX_MAP:
        raise ValueError("no map")
    width, start = 1 << (kind & 3), end - wide - number(end - wide, wide)
    count = number(start - width, width)
    keys, step = start - 3 * width - number(start - 3 * width, width), number(start - 2 * width, width)
    found: dict[str, int] = {}
    for at in range(min(count, len(data))):
        if number(start + count * width + at, 1) >> 2 in _FLEX_NUMBERS:
            place = keys + at * step
            key = place - number(place, step)
            number(key, 1)
            name = data[key : data.index(0, key)].decode(errors="replace")
            found[name] = number(start + at * width, width, signed=True)
    return found


def stated(position: int) -> ShapeRule:
    """The constant at a position is the shape of the output."""

    def rule(given: Given) -> Sequence[Shape | None]:
        values = given.constant(position)
        if values is None:
            # How many numbers there are is how many axes the output has.
            (rank,) = given.shape(position)
            return [None if rank is None else (None,) * rank]
        return [tuple(given.integers(position))]

    return rule


def fully_connected(given: Given) -> Sequence[Shape | None]:
    """``[..., inputs]``, flattened to rows of as many columns as the weights ``[outputs, inputs]`` have."""
    units, columns = _of_rank(given.shape(1), 2)
    if given.truth("keep_num_dims"):
        return [(*given.shape()[:-1], units)]
    return [(rows_of(given.shape(), columns), units)]


def rows_of(shape: Shape, columns: Dim) -> Dim:
    """Returns how many rows FULLY_CONNECTED makes of an input: all its elements, by the columns.

    Args:
        shape: Of the input.
        columns: Of the weights.

    Raises:
        UnknownShapeError: The columns do not divide the elements.
    """
    if columns is None:
        return None
    count = elements(shape)
    if count is None and len(shape) > 1 and shape[-1] == columns:
        return elements(shape[:-1])
    if count is None:
        return None
    if count % columns:
        raise UnknownShapeError
    return count // columns


def batch_matmul(given: Given) -> Sequence[Shape | None]:
    """Matrices in the last two axes; the axes before broadcast."""
    left, right = given.shape(0), given.shape(1)
    if min(len(left), len(right)) < 2:
        raise UnknownShapeError
    rows = left[-1 if given.truth("adj_x") else -2]
    columns = right[-2 if given.truth("adj_y") else -1]
    return [(*broadcast_shape(left[:-2], right[:-2]), rows, columns)]


def embedding_lookup(given: Given) -> Sequence[Shape | None]:
    """Rows of a table, as many as there are positions."""
    (count,) = _of_rank(given.shape(0), 1)
    return [(count, *given.shape(1)[1:])]


def svdf(given: Given) -> Sequence[Shape | None]:
    """``[n, inputs]``, filters by rank."""
    batch, _ = _of_rank(given.shape(), 2)
    filters, _ = _of_rank(given.shape(1), 2)
    return [(batch, None if filters is None else filters // given.option("rank"))]


def lstm(given: Given) -> Sequence[Shape | None]:
    """``[..., inputs]`` to ``[..., outputs]``: columns of the recurrent weights; not of the BASIC kernel."""
    if len(given.operator.inputs) < 20:
        raise UnknownShapeError
    _, outputs = _of_rank(given.shape(8), 2)
    return [(*given.shape()[:-1], outputs)]


def rnn(given: Given) -> Sequence[Shape | None]:
    """``[..., inputs]`` to ``[..., units]``: rows of the weights."""
    units, _ = _of_rank(given.shape(1), 2)
    return [(*given.shape()[:-1], units)]


def reshape(given: Given) -> Sequence[Shape | None]:
    """The second input where it is a vector of int32, else ``new_shape`` (``GetOutputShape``)."""
    source = given.shapes[0] if given.shapes else None
    target = reshape_target(given)
    if target is None:
        return stated(1)(given)
    if target.count(-1) > 1 or any(dim < -1 for dim in target):
        raise UnknownShapeError
    count = elements(source) if source is not None else None
    fixed = math.prod(dim for dim in target if dim != -1)
    if -1 not in target:
        if count is not None and fixed != count:
            raise UnknownShapeError
        return [tuple(target)]
    stretched = None
    if count is not None:
        if not fixed or count % fixed:
            raise UnknownShapeError
        stretched = count // fixed
    return [tuple(stretched if dim == -1 else dim for dim in target)]


def reshape_target(given: Given) -> list[int] | None:
    """Returns what a RESHAPE is told, with -1 as it stands there; None where it is computed.

    Raises:
        UnknownShapeError: It is told nothing.
    """
    second = given.operator.inputs[1] if len(given.operator.inputs) == 2 else None
    if second is not None and second.dtype_name == "INT32":
        known = given.shapes[1]
        if known is None:
            raise UnknownShapeError
        if len(known) == 1:
            return None if given.constant(1) is None else given.integers(1)
    target = given.operator.option("new_shape")
    if target is None:
        raise UnknownShapeError
    told = [int(dim) for dim in target]
    # What old converters wrote for a scalar.
    return [] if told == [0] else told


def squeeze(given: Given) -> Sequence[Shape | None]:
    """Without the axes that the options name, or without all of one element."""
    shape, named = given.shape(), given.operator.option("squeeze_dims")
    if named:
        axes = {_axis(int(axis), len(shape)) for axis in named}
        if any(shape[axis] not in (1, None) for axis in axes):
            raise UnknownShapeError
    elif None in shape:
        raise UnknownShapeError
    else:
        axes = {axis for axis, dim in enumerate(shape) if dim == 1}
    return [tuple(dim for axis, dim in enumerate(shape) if axis not in axes)]


def expand_dims(given: Given) -> Sequence[Shape | None]:
    """With one more axis, of one element."""
    shape, (axis,) = given.shape(), given.integers(1)
    axis = _axis(axis, len(shape) + 1)
    return [(*shape[:axis], 1, *shape[axis:])]


def shape_of(given: Given) -> Sequence[Shape | None]:
    """A number an axis."""
    return [(len(given.shape()),)]


def scalar(_given: Given) -> Sequence[Shape | None]:
    """One element, without axes."""
    return [()]


def concatenation(given: Given) -> Sequence[Shape | None]:
    """Side by side along an axis."""
    shapes = [given.shape(at) for at in range(len(given.operator.inputs))]
    axis = _axis(given.option("axis"), len(shapes[0]))
    columns = list(zip(*shapes, strict=True))
    dims = [None if at == axis else _same_dim(column) for at, column in enumerate(columns)]
    along = columns[axis]
    dims[axis] = None if None in along else sum(dim or 0 for dim in along)
    return [tuple(dims)]


def pack(given: Given) -> Sequence[Shape | None]:
    """Side by side along a new axis."""
    shapes = [given.shape(at) for at in range(len(given.operator.inputs))]
    dims = [_same_dim(column) for column in zip(*shapes, strict=True)]
    axis = _axis(given.option("axis"), len(dims) + 1)
    return [(*dims[:axis], len(shapes), *dims[axis:])]


def unpack(given: Given) -> Sequence[Shape | None]:
    """Each without the axis."""
    shape = given.shape()
    axis = _axis(given.option("axis"), len(shape))
    if shape[axis] not in (len(given.operator.outputs), None):
        raise UnknownShapeError
    return [(*shape[:axis], *shape[axis + 1 :])] * len(given.operator.outputs)


def split(given: Given) -> Sequence[Shape | None]:
    """Equal parts along the axis that input 0 names."""
    shape, (axis,), count = given.shape(1), given.integers(0), len(given.operator.outputs)
    axis = _axis(axis, len(shape))
    dim = shape[axis]
    if dim is not None and dim % count:
        raise UnknownShapeError
    part = None if dim is None else dim // count
    return [(*shape[:axis], part, *shape[axis + 1 :])] * count


def split_v(given: Given) -> Sequence[Shape | None]:
    """Parts of the sizes that input 1 names, one of which may be -1, along the axis that input 2 names."""
    shape, sizes, (axis,) = given.shape(), given.integers(1), given.integers(2)
    axis = _axis(axis, len(shape))
    dim, fixed = shape[axis], sum(size for size in sizes if size != -1)
    rest = None if dim is None else dim - fixed
    if sizes.count(-1) > 1 or (rest is not None and (rest < 0 or (rest and -1 not in sizes))):
        raise UnknownShapeError
    return [(*shape[:axis], rest if size == -1 else size, *shape[axis + 1 :]) for size in sizes]


def slice_(given: Given) -> Sequence[Shape | None]:
    """From ``begin``, so many as ``size`` says; -1 for all the rest."""
    shape = given.shape()
    dims: list[Dim] = []
    for dim, begin, size in zip(shape, given.integers(1), given.integers(2), strict=True):
        if size == -1:
            dims.append(None if dim is None else dim - begin)
        elif dim is not None and begin + size > dim:
            raise UnknownShapeError
        else:
            dims.append(size)
    return [tuple(dims)]


@frozen
class SliceStep:
    """What STRIDED_SLICE does with one axis of its input; ``None`` for a bound that a mask leaves open."""

    axis: int
    begin: int | None
    end: int | None
    stride: int
    shrinks: bool


def slice_steps(given: Given) -> list[SliceStep | None]:
    """Returns what STRIDED_SLICE does, axis by axis of the output before it shrinks; None for a new axis.

    As ``BuildStridedSliceParams`` of ``strided_slice.cc``.

    Raises:
        UnknownShapeError: What it is told is computed, or does not fit.
    """
    if given.truth("offset"):
        raise UnknownShapeError
    rank = len(given.shape())
    begins, ends, strides = (given.integers(at) for at in (1, 2, 3))
    masks = {name: given.option(f"{name}_mask") for name in ("begin", "end", "ellipsis", "new_axis")}
    shrink = given.option("shrink_axis_mask")
    new = sum(
        1 for at in range(len(begins)) if (masks["new_axis"] >> at) & 1 and not (masks["ellipsis"] >> at) & 1
    )
    steps: list[SliceStep | None] = []
    axis = 0
    for at, (begin, end, stride) in enumerate(zip(begins, ends, strides, strict=True)):
        if (masks["ellipsis"] >> at) & 1:
            covered = rank - (len(begins) - 1 - new)
            for _ in range(max(covered, 0)):
                steps.append(SliceStep(axis, None, None, 1, False))
                axis += 1
        elif (masks["new_axis"] >> at) & 1:
            steps.append(None)
        else:
            shrinks = bool((shrink >> at) & 1)
            first = None if (masks["begin"] >> at) & 1 and not shrinks else begin
            last = None if (masks["end"] >> at) & 1 and not shrinks else end
            steps.append(SliceStep(axis, first, last, stride, shrinks))
            axis += 1
    steps += [SliceStep(rest, None, None, 1, False) for rest in range(axis, rank)]
    if axis > rank:
        raise UnknownShapeError
    return steps


def strided_slice(given: Given) -> Sequence[Shape | None]:
    """From ``begin`` to ``end`` by ``stride``, as masks say."""
    shape = given.shape()
    dims: list[Dim] = []
    for step in slice_steps(given):
        if step is None:
            dims.append(1)
        elif not step.shrinks:
            dim = shape[step.axis]
            taken = slice(step.begin, step.end, step.stride)
            dims.append(None if dim is None else len(range(*taken.indices(dim))))
    return [tuple(dims)]


def pad(given: Given) -> Sequence[Shape | None]:
    """As many more on each side as input 1 says."""
    pads = given.integers(1)
    shape = given.shape()
    if len(pads) != 2 * len(shape):
        raise UnknownShapeError
    sides = zip(shape, pads[::2], pads[1::2], strict=True)
    return [tuple(None if dim is None else dim + before + after for dim, before, after in sides)]


def transpose(given: Given) -> Sequence[Shape | None]:
    """Axes in the order that input 1 names."""
    shape, order = given.shape(), given.integers(1)
    if len(order) != len(shape):
        raise UnknownShapeError
    return [tuple(shape[_axis(axis, len(shape))] for axis in order)]


def reduction(given: Given) -> Sequence[Shape | None]:
    """Without the axes that input 1 names, or with one element there."""
    shape = given.shape()
    axes = {_axis(axis, len(shape)) for axis in given.integers(1)}
    if given.truth("keep_dims"):
        return [tuple(1 if axis in axes else dim for axis, dim in enumerate(shape))]
    return [tuple(dim for axis, dim in enumerate(shape) if axis not in axes)]


def arg_reduction(given: Given) -> Sequence[Shape | None]:
    """Without the axis that input 1 names."""
    shape, (axis,) = given.shape(), given.integers(1)
    axis = _axis(axis, len(shape))
    return [(*shape[:axis], *shape[axis + 1 :])]


def gather(given: Given) -> Sequence[Shape | None]:
    """The axis gives way to the axes of the positions."""
    table, positions = given.shape(0), given.shape(1)
    axis = _axis(given.option("axis"), len(table))
    batch = given.operator.option("batch_dims") or 0
    batch = batch + len(positions) if batch < 0 else batch
    if not 0 <= batch <= min(axis, len(positions)):
        raise UnknownShapeError
    return [(*table[:axis], *positions[batch:], *table[axis + 1 :])]


def gather_nd(given: Given) -> Sequence[Shape | None]:
    """Each row of positions names one place in the first axes."""
    table, positions = given.shape(0), given.shape(1)
    depth = positions[-1]
    if depth is None or depth > len(table):
        raise UnknownShapeError
    return [(*positions[:-1], *table[depth:])]


def resize(given: Given) -> Sequence[Shape | None]:
    """``[n, h, w, c]`` to the height and width of input 1."""
    batch, _, _, channels = _of_rank(given.shape(), 4)
    if given.constant(1) is None:
        return [(batch, None, None, channels)]
    height, width = given.integers(1)
    return [(batch, height, width, channels)]


def space_to_depth(given: Given) -> Sequence[Shape | None]:
    """Blocks of the plane become channels."""
    batch, height, width, channels = _of_rank(given.shape(), 4)
    block = given.option("block_size")
    if any(dim is not None and dim % block for dim in (height, width)):
        raise UnknownShapeError
    return [(batch, _divided(height, block), _divided(width, block), _times(channels, block * block))]


def depth_to_space(given: Given) -> Sequence[Shape | None]:
    """Channels become blocks of the plane."""
    batch, height, width, channels = _of_rank(given.shape(), 4)
    block = given.option("block_size")
    if channels is not None and channels % (block * block):
        raise UnknownShapeError
    return [(batch, _times(height, block), _times(width, block), _divided(channels, block * block))]


def space_to_batch(given: Given) -> Sequence[Shape | None]:
    """Blocks of padded planes become batches."""
    shape, blocks, pads = given.shape(), given.integers(1), given.integers(2)
    plane: list[Dim] = []
    for dim, block, before, after in zip(shape[1:], blocks, pads[::2], pads[1::2], strict=False):
        padded = None if dim is None else dim + before + after
        if padded is not None and padded % block:
            raise UnknownShapeError
        plane.append(_divided(padded, block))
    return [(_times(shape[0], math.prod(blocks)), *plane, *shape[1 + len(blocks) :])]


def batch_to_space(given: Given) -> Sequence[Shape | None]:
    """Batches become blocks of planes, which are cropped."""
    shape, blocks, crops = given.shape(), given.integers(1), given.integers(2)
    plane: list[Dim] = []
    for dim, block, before, after in zip(shape[1:], blocks, crops[::2], crops[1::2], strict=False):
        plane.append(None if dim is None else dim * block - before - after)
    return [(_divided(shape[0], math.prod(blocks)), *plane, *shape[1 + len(blocks) :])]


def tile(given: Given) -> Sequence[Shape | None]:
    """So many times along each axis."""
    return [tuple(_times(dim, by) for dim, by in zip(given.shape(), given.integers(1), strict=True))]


def range_(given: Given) -> Sequence[Shape | None]:
    """One axis, as long as it takes."""
    try:
        start, stop, step = (given.integers(at)[0] for at in range(3))
    except UnknownShapeError:
        return [(None,)]
    return [(max(0, -(-(stop - start) // step)),)]


def one_hot(given: Given) -> Sequence[Shape | None]:
    """One more axis, as long as input 1 says."""
    shape, depth = given.shape(), given.integers(1)[0]
    axis = given.option("axis")
    axis = len(shape) if axis == -1 else axis
    if not 0 <= axis <= len(shape):
        raise UnknownShapeError
    return [(*shape[:axis], depth, *shape[axis:])]


def top_k(given: Given) -> Sequence[Shape | None]:
    """The last axis as long as input 1 says: values and where they are."""
    count = given.constant(1)
    last = None if count is None else given.integers(1)[0]
    return [(*given.shape()[:-1], last)] * 2


def where(given: Given) -> Sequence[Shape | None]:
    """A row for each that holds."""
    return [(None, len(given.shape()))]


def unique(given: Given) -> Sequence[Shape | None]:
    """Those that differ, and which of them each is."""
    return [(None,), given.shape()]


def broadcast_args(given: Given) -> Sequence[Shape | None]:
    """The longer of two shapes."""
    (left,), (right,) = _of_rank(given.shape(0), 1), _of_rank(given.shape(1), 1)
    return [(None if left is None or right is None else max(left, right),)]


def _of_rank(shape: Shape, rank: int) -> Shape:
    if len(shape) != rank:
        raise UnknownShapeError
    return shape


def _times(dim: Dim, by: int) -> Dim:
    return None if dim is None else dim * by


def _divided(dim: Dim, by: int) -> Dim:
    return None if dim is None else dim // by
