"""One rule an operator: which of its constants fix sizes, and what they say for other ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np

from tfl_rewrite.editing.axes import Axis, Shape, changes, new_size, regrouped
from tfl_rewrite.editing.base import Edit
from tfl_rewrite.editing.sizes import Rule, Walk
from tfl_rewrite.flatbuf.record import INT32, ScalarVector
from tfl_rewrite.kernels import table
from tfl_rewrite.kernels.table import row_of
from tfl_rewrite.model.ir import Operator, SubGraph, Tensor
from tfl_rewrite.model.values import bytes_of


def _reshape(walk: Walk, operator: Operator) -> list[Edit]:
    data, output = operator.inputs[0], operator.outputs[0]
    if data is None or output is None:
        return []
    before = walk.was(output)
    axes = regrouped(walk.axes_of(data), before)
    target = _target(walk, operator)
    if walk.asked.batch is None and _says_free(walk, operator, target or (), output):
        return []
    if axes is None:
        size = list(walk.was(data)), list(walk.now(data)), list(before)
        raise walk.unfollowed(
            operator, f"made {size[2]} of {size[0]}: what it is to make of {size[1]} cannot be told"
        )
    axes = _lifted(walk, output, axes)
    wanted = tuple(map(new_size, axes))
    if target is None:
        edits = _computed_target(walk, operator, output, wanted)
    else:
        edits = _set_target(walk, operator, target, _said(walk, operator, target, axes))
    if not edits and not walk.stops_at(operator):
        if walk.now(output) != wanted:
            raise walk.unfollowed(operator, f"gives {list(walk.now(output))} where {list(wanted)} is right")
        walk.set_axes(output, axes)
    return edits


def _says_free(walk: Walk, operator: Operator, target: Sequence[int], output: Tensor) -> bool:
    """Whether the target itself says which axis other sizes go to, and that is not the first."""
    if target.count(-1) != 1 or walk.stops_at(operator):
        return False
    before, after = walk.was(output), walk.now(output)
    return len(before) == len(after) and before[:1] == after[:1]


def _lifted(walk: Walk, output: Tensor, axes: tuple[Axis, ...]) -> tuple[Axis, ...]:
    """An output without an axis for the batch, which was one sample, gets one; nothing else reads it."""
    batch = walk.asked.batch
    if batch is None or not walk.is_last(output) or not axes or axes[0][0] != batch:
        return axes
    rest = axes[0][1:]
    return ((axes[0][0],), rest, *axes[1:]) if math.prod(old for old, _ in rest) > 1 else axes


def _target(walk: Walk, operator: Operator) -> list[int] | None:
    """What a RESHAPE is told; None where that is computed."""
    if len(operator.inputs) > 1 and operator.inputs[1] is not None:
        return walk.numbers(operator, 1)
    told = operator.option("new_shape")
    return [int(size) for size in told] if told is not None else []


def _said(walk: Walk, operator: Operator, target: Sequence[int], axes: Sequence[Axis]) -> list[int]:
    """What a RESHAPE has to be told so that these axes come out."""
    if walk.asked.is_free:
        free = [changes(axis) for axis in axes]
        if sum(free) > 1:
            raise walk.unfollowed(operator, "would have to find out more than one size at run time")
        return [-1 if moving else new_size(axis) for moving, axis in zip(free, axes, strict=True)]
    if len(target) == len(axes):
        return [-1 if told == -1 else new_size(axis) for told, axis in zip(target, axes, strict=True)]
    return [new_size(axis) for axis in axes]


def _set_target(walk: Walk, operator: Operator, old: Sequence[int], new: Sequence[int]) -> list[Edit]:
    if list(old) == list(new):
        return []
    if operator.option("new_shape") is not None or len(operator.inputs) < 2:
        walk.editor.set_option(operator, "new_shape", ScalarVector.of(INT32, new))
    tensor = operator.inputs[1] if len(operator.inputs) > 1 else None
    if tensor is not None:
        data = bytes_of(np.array(new, tensor.values.dtype), tensor.dtype, (len(new),))
        walk.replace(operator, 1, data, (len(new),))
    return [walk.edit(operator, f"{list(old)} is now {list(new)}")]


def _computed_target(walk: Walk, operator: Operator, output: Tensor, wanted: Shape) -> list[Edit]:
    """Changes the constant sizes among those that a RESHAPE is told, where others are computed."""
    shape = operator.inputs[1]
    maker = walk.graph.maker_of(shape) if shape is not None else None
    after = walk.now(output)
    if walk.stops_at(operator):
        after = walk.was(output)
    if maker is None or row_of(maker) not in table.JOINING or len(maker.inputs) != len(wanted):
        return []
    edits = []
    for place, (have, want) in enumerate(zip(after, wanted, strict=False)):
        known = walk.numbers(maker, place)
        if have == want or known is None or known == [-1] or len(known) != 1:
            continue
        if walk.asked.is_free:
            raise walk.is_fixed(operator)
        edits += walk.put(maker, place, [want])
    return edits


def _slice(walk: Walk, operator: Operator) -> list[Edit]:
    data = operator.inputs[0]
    starts, sizes = walk.numbers(operator, 1), walk.numbers(operator, 2)
    if data is None or starts is None or sizes is None:
        return []
    made = list(sizes)
    for axis, (old, new, start, size) in enumerate(
        zip(walk.was(data), walk.now(data), starts, sizes, strict=False)
    ):
        if old == new or size == -1:
            continue
        if start + size == old:
            made[axis] = -1 if walk.asked.is_free else new - start
        elif walk.asked.batch is not None or start + size > new:
            raise walk.unfollowed(
                operator, f"takes {size} of {old} places of axis {axis}, which is now {new}"
            )
    edits = walk.put(operator, 2, made)
    # Its kernel holds what comes out against the declared shape, as far as that is not free (slice.cc).
    output, now = operator.outputs[0], walk.now(data)
    told = tuple(
        size if size != -1 else whole - start for size, start, whole in zip(made, starts, now, strict=False)
    )
    if output is None or output.shape is None:
        return edits
    if walk.asked.is_free:
        told = tuple(-1 if size == -1 else known for size, known in zip(made, told, strict=True))
    if told != (output.signature if walk.asked.is_free else output.shape):
        output.shape, output.signature = (output.shape, told) if walk.asked.is_free else (told, None)
        edits.append(walk.edit(operator, f"is declared as {list(told)}"))
    return edits


def _strided_slice(walk: Walk, operator: Operator) -> list[Edit]:
    data = operator.inputs[0]
    parts = [walk.numbers(operator, place) for place in (1, 2, 3)]
    if data is None or operator.option("ellipsis_mask") or operator.option("new_axis_mask"):
        return []
    if any(part is None for part in parts):
        return []
    starts, stops, steps = (part or [] for part in parts)
    made, masks = list(stops), {name: operator.option(name) or 0 for name in _MASKS}
    begun, ended = list(starts), masks["end_mask"]
    output = operator.outputs[0]
    for axis, (old, new) in enumerate(zip(walk.was(data), walk.now(data), strict=True)):
        if axis >= len(starts) or old == new:
            continue
        bit, is_batch = 1 << axis, axis == 0 and walk.asked.batch is not None
        if masks["shrink_axis_mask"] & bit:
            if is_batch and old == 1 and output is not None and walk.is_last(output):
                taken = {
                    name: (masks[name] & ~bit if name == "shrink_axis_mask" else masks[name] | bit)
                    for name in _MASKS
                }
                for name, mask in taken.items():
                    walk.editor.set_option(operator, name, mask)
                return [
                    walk.edit(operator, "takes all samples of the batch instead of the one that there was")
                ]
            if is_batch:
                raise walk.unfollowed(operator, f"takes sample {starts[axis]} of the batch alone")
            continue
        start = 0 if masks["begin_mask"] & bit else starts[axis]
        is_open = bool(masks["end_mask"] & bit)
        if is_batch and not (start in (0, -old) and (is_open or stops[axis] >= old) and steps[axis] == 1):
            raise walk.unfollowed(operator, "takes a part of the batch")
        if is_open or stops[axis] < 0:
            continue
        if steps[axis] > 0 and stops[axis] >= old:
            made[axis], ended = (old, ended | bit) if walk.asked.is_free else (new, ended)
        elif steps[axis] < 0 and start == old - 1:
            begun[axis] = new - 1
        elif stops[axis] > new:
            raise walk.unfollowed(
                operator, f"takes places to {stops[axis]} of axis {axis}, which is now {new}"
            )
    edits = [*walk.put(operator, 2, made), *walk.put(operator, 1, begun)]
    if ended != masks["end_mask"]:
        walk.editor.set_option(operator, "end_mask", ended)
        edits.append(walk.edit(operator, "takes all samples of the batch"))
    return edits


_MASKS = ("begin_mask", "end_mask", "shrink_axis_mask")


def _resize(walk: Walk, operator: Operator) -> list[Edit]:
    data = operator.inputs[0]
    sizes = walk.numbers(operator, 1)
    if data is None or sizes is None or len(sizes) != 2 or walk.asked.batch is not None:
        return []
    if any(data is item for item in walk.subgraph.inputs):
        return []
    made = list(sizes)
    before, after = walk.was(data), walk.now(data)
    for place, size in enumerate(sizes):
        old, new = before[1 + place], after[1 + place]
        twins = walk.twins(size)
        if old == new and not (old == 1 and len(twins) == 1):
            continue
        if len(twins) == 1:
            (made[place],) = twins
        elif size * new % old == 0:
            made[place] = size * new // old
        else:
            raise walk.unfollowed(
                operator, f"made {size} places of {old}: how many it is to make of {new} cannot be told"
            )
    return walk.put(operator, 1, made)


def _transpose_conv(walk: Walk, operator: Operator) -> list[Edit]:
    data, told = operator.inputs[2], walk.numbers(operator, 0)
    if data is None or told is None or len(told) != 4:
        return []
    before, after = walk.was(data), walk.now(data)
    if walk.asked.is_free and before[0] != after[0]:
        raise walk.is_fixed(operator)
    strides = (operator.option("stride_h") or 1, operator.option("stride_w") or 1)
    output = operator.outputs[0]
    old = walk.was(output) if output is not None else told
    spatial = (old[1 + place] + (after[1 + place] - before[1 + place]) * strides[place] for place in (0, 1))
    return walk.put(operator, 0, [after[0], *spatial, told[3]])


def _pool(walk: Walk, operator: Operator) -> list[Edit]:
    """A pool over the whole plane stays one."""
    data, output = operator.inputs[0], operator.outputs[0]
    if data is None or output is None or walk.asked.batch is not None:
        return []
    edits = []
    for axis, side in ((1, "height"), (2, "width")):
        old, new = walk.was(data)[axis], walk.now(data)[axis]
        name, stride = f"filter_{side}", f"stride_{side[0]}"
        if old == new or walk.was(output)[axis] != 1 or operator.option(name) not in (old, new):
            continue
        if operator.option(name) == new:
            continue
        if operator.option(stride) == old:
            walk.editor.set_option(operator, stride, new)
        walk.editor.set_option(operator, name, new)
        edits.append(walk.edit(operator, f"{name} {old} is now {new}"))
    return edits


def _join(walk: Walk, operator: Operator) -> list[Edit]:
    """Constants that stand beside what has more samples now are repeated."""
    moving = next((item for item in operator.inputs if item is not None and walk.moves(item)), None)
    if moving is None or walk.asked.batch is None:
        return []
    old, new = walk.asked.batch
    axes = [place for place, axis in enumerate(walk.axes_of(moving)) if axis == ((old, new),)]
    edits = list[Edit]()
    for position, tensor in enumerate(operator.inputs):
        if tensor is None or walk.moves(tensor) or len(axes) != 1:
            continue
        shape, axis = walk.now(tensor), axes[0]
        if len(shape) <= axis or shape[axis] != old or new % old:
            continue
        if walk.asked.is_free:
            raise walk.unfollowed(operator, f"joins {tensor.name!r}, made for a batch of {old}, to any")
        if walk.graph.is_constant(tensor):
            edits += _repeat(walk, walk.subgraph, operator, position, axis)
        else:
            edits += _repeat_made(walk, tensor, axis)
    return edits


def _repeat(walk: Walk, subgraph: SubGraph, operator: Operator, position: int, axis: int) -> list[Edit]:
    """Gives an operator a constant once for each sample."""
    tensor = operator.inputs[position]
    if tensor is None or walk.asked.batch is None:
        return []
    old, new = walk.asked.batch
    values = np.concatenate([tensor.values] * (new // old), axis)
    data = bytes_of(values, tensor.dtype, values.shape)
    walk.replace(operator, position, data, values.shape, subgraph)
    return [walk.edit(operator, f"the constant {tensor.name!r} is repeated {new // old} times")]


def _repeat_made(walk: Walk, tensor: Tensor, axis: int) -> list[Edit]:
    """Has what is expanded, filled or remembered made for all samples."""
    maker = walk.graph.maker_of(tensor)
    if maker is not None and row_of(maker) is table.READ_VARIABLE:
        return _repeat_remembered(walk, maker, tensor, axis)
    if maker is not None and row_of(maker) is table.DEQUANTIZE:
        stored, alone = maker.inputs[0], len(walk.graph.uses_of(tensor)) == 1
        is_stored = (
            stored is not None and walk.graph.is_constant(stored) and id(tensor) not in walk.graph.exposed
        )
        return _repeat(walk, walk.subgraph, maker, 0, axis) if alone and is_stored else []
    place = {table.FILL.name: 0, table.BROADCAST_TO.name: 1}.get(row_of(maker).name if maker else "")
    dims = walk.numbers(maker, place) if maker is not None and place is not None else None
    if maker is None or place is None or dims is None or walk.asked.batch is None:
        return []
    dims[axis] = dims[axis] * walk.asked.batch[1] // walk.asked.batch[0]
    return walk.put(maker, place, dims)


def _repeat_remembered(walk: Walk, reader: Operator, tensor: Tensor, axis: int) -> list[Edit]:
    """Has a resource variable begin with as many samples: what it is first set to is a constant."""
    wanted = _variable_of(walk, reader)
    edits = list[Edit]()
    for subgraph, operator in walk.editor.model.operators():
        if row_of(operator) is not table.ASSIGN_VARIABLE or len(operator.inputs) < 2:
            continue
        value = operator.inputs[1]
        if wanted is None or _variable_of(walk, operator) != wanted or value is None:
            continue
        if walk.graph.is_constant(value) and value.shape == tensor.shape:
            edits += _repeat(walk, subgraph, operator, 1, axis)
    if edits and walk.asked.batch is not None:
        old, new = walk.asked.batch
        shape = tuple(tensor.shape or ())
        # What it is declared as is what its reader gives until it is set.
        tensor.shape = (*shape[:axis], shape[axis] * new // old, *shape[axis + 1 :])
    return edits


def _assign(walk: Walk, operator: Operator) -> list[Edit]:
    """What is remembered of all samples is read as that in the next call; an addition would not tell."""
    value = operator.inputs[1] if len(operator.inputs) > 1 else None
    if value is None or walk.asked.batch is None or not walk.moves(value):
        return []
    axis = next((at for at, one in enumerate(walk.axes_of(value)) if one == (walk.asked.batch,)), None)
    wanted = _variable_of(walk, operator)
    edits = list[Edit]()
    for reader in walk.subgraph.operators:
        output = reader.outputs[0] if reader.outputs else None
        if row_of(reader) is not table.READ_VARIABLE or output is None or walk.now(output) == walk.now(value):
            continue
        if wanted is None or _variable_of(walk, reader) != wanted:
            continue
        if axis is None or walk.asked.is_free:
            raise walk.unfollowed(operator, "remembers something of each sample")
        edits += _repeat_remembered(walk, reader, output, axis)
    return edits


def _variable_of(walk: Walk, operator: Operator) -> tuple[object, ...] | None:
    """What tells a resource variable from others; None where that is not a handle of the same subgraph."""
    handle = operator.inputs[0] if operator.inputs else None
    maker = walk.graph.maker_of(handle) if handle is not None else None
    if maker is None or row_of(maker) is not table.VAR_HANDLE:
        return None
    return tuple(maker.option(name) for name in row_of(maker).handle)


def _loop(walk: Walk, operator: Operator) -> list[Edit]:
    """What a loop begins with is made for all samples: states, and the room for what it collects of them."""
    body, batch = operator.option("body_subgraph_index"), walk.asked.batch
    if not isinstance(body, SubGraph) or batch is None:
        return []
    edits, states = list[Edit](), list[list[int]]()
    for position, (tensor, inner) in enumerate(zip(operator.inputs, body.inputs, strict=False)):
        shape = walk.was(tensor) if tensor is not None else ()
        if tensor is None or len(shape) < 2 or shape[0] != batch[0]:
            continue
        if not walk.moves(tensor):
            if not walk.graph.is_constant(tensor) or (inner.signature or (0,))[0] != -1:
                continue
            if walk.asked.is_free:
                raise walk.unfollowed(
                    operator, f"begins with {tensor.name!r}, made for a batch of {batch[0]}"
                )
            edits += _repeat(walk, walk.subgraph, operator, position, 0)
        states.append(list(shape))
    for tensor in operator.inputs:
        edits += _make_room(walk, tensor, states, batch[1])
    return edits


def _make_room(walk: Walk, tensor: Tensor | None, states: Sequence[list[int]], count: int) -> list[Edit]:
    """What is filled to collect states in has their shapes, as a constant, behind the number of steps."""
    filled = walk.graph.maker_of(tensor) if tensor is not None else None
    shape = filled.inputs[0] if filled is not None and row_of(filled) is table.FILL else None
    maker = walk.graph.maker_of(shape) if shape is not None else None
    if filled is None or maker is None or row_of(maker) not in table.JOINING:
        return []
    edits = list[Edit]()
    for place in range(len(maker.inputs)):
        known = walk.numbers(maker, place)
        if known is None or known not in states:
            continue
        if walk.asked.is_free:
            raise walk.is_fixed(filled)
        edits += walk.put(maker, place, [count, *known[1:]])
    return edits


def _unpack(walk: Walk, operator: Operator) -> list[Edit]:
    """Takes away another axis of one place than that of the samples."""
    data, axis = operator.inputs[0], operator.option("axis") or 0
    if data is None or walk.asked.batch is None:
        return []
    axes = walk.axes_of(data)
    axis = axis + len(axes) if axis < 0 else axis
    if axis >= len(axes) or axes[axis] != (walk.asked.batch,) or walk.asked.batch[0] != 1:
        return []
    other = next((at for at in range(axis + 1, len(axes)) if axes[at] == ((1, 1),)), None)
    if other is None or any(walk.was(data)[at] != 1 for at in range(axis, other + 1)):
        raise walk.unfollowed(operator, "takes the samples of a batch apart")
    walk.editor.set_option(operator, "axis", other)
    return [
        walk.edit(operator, f"takes away axis {other} instead of {axis}, which is that of the samples now")
    ]


def _pack(walk: Walk, operator: Operator) -> list[Edit]:
    """Puts an axis of one place behind that of the samples, which stays in front."""
    data = operator.inputs[0]
    if data is None or walk.asked.batch is None or len(operator.inputs) != 1:
        return _join(walk, operator)
    axes = walk.axes_of(data)
    if (operator.option("axis") or 0) != 0 or not axes or axes[0] != (walk.asked.batch,):
        return []
    if walk.asked.batch[0] != 1:
        return []
    walk.editor.set_option(operator, "axis", 1)
    return [walk.edit(operator, "adds its axis behind that of the samples")]


def _delegated(walk: Walk, operator: Operator) -> list[Edit]:
    """Has the file declare as many samples of what a delegate alone computes: it takes them from there."""
    if walk.asked.batch is None or walk.asked.is_free:
        free = "any number of samples" if walk.asked.is_free else "other sizes"
        raise walk.unfollowed(operator, f"has the shape that the file declares, which is not that of {free}")
    edits = list[Edit]()
    for tensor in operator.outputs:
        if tensor is not None and tensor.shape != (shape := walk.now(tensor)):
            edits.append(walk.edit(operator, f"{list(tensor.shape or ())} is now {list(shape)}"))
            tensor.shape = shape
    return edits


RULES: Mapping[str, Rule] = MappingProxyType(
    {
        table.RESHAPE.name: Rule(_reshape, repeats=True),
        table.SLICE.name: Rule(_slice),
        table.STRIDED_SLICE.name: Rule(_strided_slice),
        table.TRANSPOSE_CONV.name: Rule(_transpose_conv),
        **dict.fromkeys((row.name for row in table.RESIZES), Rule(_resize, always=True)),
        **dict.fromkeys((row.name for row in table.POOLS), Rule(_pool)),
        table.CONCATENATION.name: Rule(_join),
        table.WHILE.name: Rule(_loop),
        table.ASSIGN_VARIABLE.name: Rule(_assign),
        table.PACK.name: Rule(_pack),
        table.UNPACK.name: Rule(_unpack),
        **dict.fromkeys(table.DELEGATED, Rule(_delegated)),
    }
)
"""By name of the operator."""
