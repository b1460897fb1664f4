"""Repairs of quantization parameters: axes, zero points, scales of 0, and depthwise weights.

A value is ``scale * (q - zero_point)``. Nothing here changes the value of any element that a kernel which
reads the parameters correctly would see.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from tfl_rewrite.editing.base import Edit, Skip
from tfl_rewrite.editing.editor import Editor
from tfl_rewrite.errors import UnsupportedError, shell_path
from tfl_rewrite.flatbuf.record import FLOAT32, INT64, ScalarVector
from tfl_rewrite.kernels.operands import constant_values, is_blockwise, scales_of, zero_points_of
from tfl_rewrite.kernels.operators import ProductKind
from tfl_rewrite.kernels.reads import WeightRead, weight_reads
from tfl_rewrite.kernels.table import DEQUANTIZE, row_of
from tfl_rewrite.model import dtypes
from tfl_rewrite.model.blob import OwnedBlob
from tfl_rewrite.model.graph import Graph
from tfl_rewrite.model.ir import Model, Quantization, Tensor
from tfl_rewrite.model.values import pack, unpack
from tfl_rewrite.weights.biases import Done, Reading, wrong_types

Ints = npt.NDArray[np.int32]

_DEPTHWISE_AXIS = 3


def wrong_dimension(tensor: Tensor) -> str | None:
    """Returns what is wrong with ``quantized_dimension`` (``ParseQuantization``), or None."""
    details, shape = tensor.quantization, tensor.shape
    count = len(scales_of(tensor))
    if details is None or not count or not shape:
        return None
    if not 0 <= details.dimension < len(shape):
        return f"quantized_dimension is {details.dimension}, the shape is {list(shape)}"
    if count > 1 and shape[details.dimension] != count:
        return f"{count} scales for axis {details.dimension} of {list(shape)}"
    return None


def right_dimension(tensor: Tensor) -> int | None:
    """Returns the only axis that the scales can belong to, or None where there is none or a choice."""
    count, shape = len(scales_of(tensor)), tensor.shape or ()
    if count == 1:
        # One scale has no axis; 0 is what the schema's default says.
        return 0
    axes = [axis for axis, size in enumerate(shape) if size == count]
    return axes[0] if len(axes) == 1 else None


def point_dimensions(model: Model, _editor: Editor) -> Done:
    """Repairs ``quantized_dimension`` where only one axis can be meant."""
    done: Done = []
    # Tensors that shared a table of parameters go on sharing it.
    made: dict[tuple[int, int], Quantization] = {}
    for place, tensor in tensors_of(model):
        wrong = wrong_dimension(tensor)
        if wrong is None or tensor.quantization is None:
            continue
        axis = right_dimension(tensor)
        if axis is None:
            done.append(Skip(place, f"{wrong}, and which axis is meant cannot be told", "unknown-axis"))
            continue
        key = (id(tensor.quantization), axis)
        fixed = made.setdefault(key, replace(tensor.quantization, dimension=axis))
        old, tensor.quantization = tensor.quantization.dimension, fixed
        done.append(Edit(f"{place} {tensor.name}", f"quantized_dimension {old} -> {axis}"))
    return done


def count_zero_points(model: Model, _editor: Editor) -> Done:
    """Repairs zero points that are fewer or more than scales, where all are the same."""
    done: Done = []
    for place, tensor in tensors_of(model):
        details, count = tensor.quantization, len(scales_of(tensor))
        points = zero_points_of(tensor)
        if details is None or not count or len(points) == count:
            continue
        if len(set(points)) != 1:
            reason = f"{count} scales but {len(points)} zero points that differ or are none"
            done.append(Skip(place, reason, "unknown-zero-points"))
            continue
        fixed = ScalarVector.of(INT64, [points[0]] * count)
        tensor.quantization = replace(details, zero_point=fixed)
        done.append(Edit(f"{place} {tensor.name}", f"{len(points)} zero points -> {count}"))
    return done


def replace_zero_scales(model: Model, editor: Editor) -> Done:
    """Repairs scales of 0 of constants that are read as floats: scale 1, and elements that are 0."""
    done: Done = []
    graph = Graph.of(model)
    hybrid = {id(read.weight) for read in weight_reads(model)}
    for place, tensor in tensors_of(model):
        kind = zero_scales(tensor)
        if not kind or not tensor.is_constant:
            continue
        uses = graph.uses_of(tensor)
        expanded = bool(uses) and all(row_of(use.operator) is DEQUANTIZE for use in uses)
        where = f"{place} {tensor.name}"
        if id(tensor) not in hybrid and not expanded:
            reason = "its readers compute in integers, where a bias is scaled by it too"
            done.append(Skip(where, f"scale 0: {reason}", "integer-reader"))
            continue
        edit = _blockwise(tensor, editor, where) if kind == "blocks" else _channels(tensor, editor, where)
        done.append(edit or Skip(where, "scale 0: its bytes are of a form that is not unpacked", "packed"))
    return done


def zero_scales(tensor: Tensor) -> str:
    """Returns ``channels`` or ``blocks`` where a tensor has scales of 0, else nothing."""
    details = tensor.quantization
    if details is not None and details.scales_tensor is not None and is_blockwise(tensor):
        values = scale_values(details.scales_tensor)
        return "blocks" if values is not None and bool((values == 0).any()) else ""
    return "channels" if any(scale == 0 for scale in scales_of(tensor)) else ""


def scale_values(tensor: Tensor) -> npt.NDArray[np.float32] | None:
    """Returns the scales that a tensor holds, or None where they are not constant floats."""
    values = constant_values(tensor, "FLOAT16", "FLOAT32")
    return None if values is None else values.astype(np.float32)


def _channels(tensor: Tensor, editor: Editor, where: str) -> Edit | None:
    details, values = tensor.quantization, integers(tensor)
    if details is None or values is None:
        return None
    scales = np.array(scales_of(tensor), np.float32)
    points = np.array(zero_points_of(tensor) or [0], np.int32)
    dead = scales == 0
    if len(scales) > 1:
        if wrong_dimension(tensor) is not None or len(points) not in (1, len(scales)):
            return None
        axes = [1] * values.ndim
        axes[details.dimension] = len(scales)
        zeros = np.broadcast_to(points, scales.shape).reshape(axes)
        values = np.where(dead.reshape(axes), zeros, values)
    else:
        values = np.full_like(values, points[0])
    _store(tensor, editor, values)
    raw = np.where(dead, np.float32(1), scales).astype("<f4").tobytes()
    tensor.quantization = replace(details, scale=ScalarVector(FLOAT32, raw))
    return Edit(where, f"{int(dead.sum())} scales 0 -> 1, their elements are 0")


def _blockwise(tensor: Tensor, editor: Editor, where: str) -> Edit | None:
    details, values = tensor.quantization, integers(tensor)
    holder = details.scales_tensor if details is not None else None
    scales = scale_values(holder) if holder is not None else None
    if details is None or holder is None or scales is None or values is None or values.ndim != 2:
        return None
    rows, columns = values.shape
    if details.zero_points_tensor is not None or not scales.size or scales.size % rows:
        return None
    blocks = scales.size // rows
    if columns % blocks:
        return None
    dead = scales.reshape(rows, blocks) == 0
    kept = np.where(dead[:, :, None], 0, values.reshape(rows, blocks, columns // blocks))
    _store(tensor, editor, kept.reshape(rows, columns))
    kind = dtypes.BY_VALUE[holder.dtype].numpy
    fixed = np.where(dead.reshape(-1), np.float32(1), scales).astype(kind)
    _replace_bytes(holder, editor, fixed.tobytes())
    return Edit(where, f"{int(dead.sum())} of {scales.size} block scales 0 -> 1, their elements are 0")


def undefined_depthwise(model: Model) -> list[WeightRead]:
    """Returns hybrid depthwise weights whose scales do not lie on axis 3: the kernel reads past them."""
    found = []
    for read in weight_reads(model):
        details, shape = read.weight.quantization, read.weight.shape or ()
        if read.row.product is not ProductKind.DEPTHWISE or details is None or len(shape) != 4:
            continue
        scales = read.scales
        if scales and (len(scales) != shape[_DEPTHWISE_AXIS] or details.dimension != _DEPTHWISE_AXIS):
            found.append(read)
    return found


def spread_depthwise(model: Model, _editor: Editor) -> Done:
    """Writes one scale for each channel, on axis 3, where there was one scale, or another axis was named."""
    done: Done = []
    for read in undefined_depthwise(model):
        tensor, scales = read.weight, read.scales
        where = f"{read.place} {tensor.name}"
        channels = (tensor.shape or ())[_DEPTHWISE_AXIS]
        points = zero_points_of(tensor)
        if len(scales) not in (1, channels) or any(points):
            reason = f"{len(scales)} scales for {channels} channels, or zero points other than 0"
            done.append(Skip(where, reason, "unknown-scales"))
            continue
        raw = np.array(scales * channels if len(scales) == 1 else scales, "<f4").tobytes()
        tensor.quantization = Quantization.symmetric(raw, _DEPTHWISE_AXIS)
        done.append(Edit(where, f"{len(scales)} scales -> {channels} on axis {_DEPTHWISE_AXIS}"))
    return done


def expand_depthwise(model: Model) -> bool:
    """Turns the weights of :func:`undefined_depthwise` into float32; returns whether there were any."""
    found = undefined_depthwise(model)
    for read in found:
        tensor, scales = read.weight, read.scales
        values = integers(tensor)
        if values is None or len(scales) not in (1, values.shape[-1]):
            return False
        floats = values.astype(np.float32) * np.array(scales, np.float32)
        buffer = model.add_buffer(OwnedBlob(floats.astype("<f4").tobytes()))
        tensor.dtype, tensor.buffer, tensor.quantization = dtypes.FLOAT32.value, buffer, None
    return bool(found)


def integers(tensor: Tensor) -> Ints | None:
    """Returns the elements of an int8, uint8 or int4 constant in its shape, or None for other forms."""
    blob, flat = tensor.buffer.blob, constant_values(tensor, "INT8", "UINT8")
    if tensor.dtype_name == "INT4" and not tensor.is_sparse and blob is not None:
        whole = blob.nbytes == dtypes.BY_VALUE[tensor.dtype].nbytes(tensor.elements)
        flat = unpack(blob.view(), 4, tensor.elements) if whole else None
    return None if flat is None else flat.astype(np.int32).reshape(tensor.shape or ())


def _store(tensor: Tensor, editor: Editor, values: Ints) -> None:
    """Writes elements back, in the packing of the type; low nibble first."""
    old = integers(tensor)
    if old is not None and bool((old == values).all()):
        return
    flat = values.reshape(-1)
    if dtypes.BY_VALUE[tensor.dtype].name == "INT4":
        data = pack(flat.astype(np.int8), 4).tobytes()
    else:
        data = flat.astype(dtypes.BY_VALUE[tensor.dtype].numpy).tobytes()
    _replace_bytes(tensor, editor, data)


def _replace_bytes(tensor: Tensor, editor: Editor, data: bytes) -> None:
    """Gives a tensor other bytes; a buffer that others refer to stays theirs."""
    model, old = editor.model, tensor.buffer
    users = sum(item.buffer is old for _, item in model.tensors())
    users += sum(entry.buffer is old for entry in model.metadata)
    if users > 1:
        tensor.buffer = editor.add_buffer(data)
    else:
        old.blob = OwnedBlob(data)


def tensors_of(model: Model) -> list[tuple[str, Tensor]]:
    """Returns every tensor with its place."""
    return [
        (model.place_of(tensor, f"subgraphs[{index}].tensors[{position}]"), tensor)
        for index, subgraph in enumerate(model.subgraphs)
        for position, tensor in enumerate(subgraph.tensors)
    ]


def undefined_reads(model: Model) -> list[tuple[str, str]]:
    """Returns where kernels read past what the file gives them, each place with the reason.

    What such a model computes depends on what lies behind in the file, so no rewrite can be compared with it.
    """
    found = [
        (f"{read.place} {read.operator.code.name}", read.reading.value)
        for read in wrong_types(model)
        if read.reading is Reading.PAST_ITS_END
    ]
    return found + [
        (
            f"{read.place} {read.name}",
            "its weight has no scale for each channel, and the kernel reads past them",
        )
        for read in undefined_depthwise(model)
    ]


def refuse_undefined(model: Model, file: str) -> None:
    """Refuses to judge what is computed from bytes that no one meant (:func:`undefined_reads`).

    Args:
        file: What the model is called.

    Raises:
        UnsupportedError: There is such a place.
    """
    for where, why in undefined_reads(model):
        raise UnsupportedError(
            f"{why}; what the model computes depends on how its file is laid out, "
            "so no rewrite can be judged",
            file=file,
            where=where,
            remedy=f"repair it first: tfl-rewrite repair {shell_path(file)} OUT",
        )
