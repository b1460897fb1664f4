"""Repairs of quantization parameters: axes, zero points, scales of 0, depthwise weights, and integer biases.

A value is ``scale * (q - zero_point)``. Nothing here changes the value of any element that a kernel which
reads the parameters correctly would see.

Beside int16 activations the kernels of LiteRT read a bias as int64 unless ``quantized_bias_type`` says int32:
an int32 bias is read past its end, so the outputs depend on what lies behind it in the file. TensorFlow Lite
2.14 went by the type of the tensor. Measured on 2.14 and 2.3 with every resolver: int64 is right in both.
"""

from __future__ import annotations

import enum
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from tfl_rewrite.editing.base import Edit, Skip
from tfl_rewrite.editing.editor import Editor
from tfl_rewrite.errors import UnsupportedError
from tfl_rewrite.flatbuf.record import ScalarVector
from tfl_rewrite.flatbuf.schema import FLOAT32, INT64
from tfl_rewrite.kernels.operands import input_of, is_blockwise, operators_of, scales_of, zero_points_of
from tfl_rewrite.kernels.operators import ProductKind
from tfl_rewrite.kernels.reads import WeightRead, first_version_with, weight_reads
from tfl_rewrite.kernels.table import DEQUANTIZE, row_of
from tfl_rewrite.model import dtypes
from tfl_rewrite.model.blob import OwnedBlob
from tfl_rewrite.model.graph import Graph
from tfl_rewrite.model.ir import Buffer, Model, Operator, Quantization, SubGraph, Tensor
from tfl_rewrite.numerics.packing import pack, unpack

Done = list[Edit | Skip]

_OPTION = "quantized_bias_type"
_UNTOLD = dtypes.FLOAT32.value
_WIDE = dtypes.BY_NAME["INT64"]
_INTEGERS = ("INT8", "UINT8", "INT16", "INT4", "INT2")

_ALLOWED = 0.02
"""Of an output step, by which a per-tensor kernel lets the scale of a bias be off (``kernel_util.cc``,
``GetQuantizedConvolutionMultipler``)."""
_RELATIVE = 0.01
"""Below it, the difference is what rounding a product of float32 scales several times leaves."""


class Reading(enum.Enum):
    """How kernels take a bias whose type is not the one that they expect; the value says it in words."""

    PAST_ITS_END = (
        "int32 bias, which the kernel reads as int64: past its end, unless quantized_bias_type tells"
    )
    REFUSED = "int32 bias, and the kernel takes int64 only"
    CONTRADICTED = "quantized_bias_type is not the type of the bias"


@dataclass(frozen=True, slots=True)
class BiasRead:
    """A bias beside int16 activations that is not of the type that its kernel takes."""

    subgraph: SubGraph
    operator: Operator
    bias: Tensor
    reading: Reading
    place: str


def _operands(operator: Operator) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Returns the activation, the weight and the bias of a product that has a bias."""
    row = row_of(operator)
    if not row.multiplies or row.product is ProductKind.MATMUL:
        return None, None, None
    return input_of(operator, row.activation), input_of(operator, 1), input_of(operator, row.biases[0])


def wrong_types(model: Model) -> Iterator[BiasRead]:
    """Yields biases beside int16 activations whose type kernels misread or refuse."""
    for subgraph, operator, place in operators_of(model):
        row, (activation, weight, bias) = row_of(operator), _operands(operator)
        if activation is None or weight is None or bias is None or activation.dtype_name != "INT16":
            continue
        if weight.dtype_name not in ("INT8", "INT4") or bias.dtype_name not in ("INT32", "INT64"):
            continue
        reads_option = first_version_with(row, _OPTION) is not None
        told = operator.option(_OPTION) if reads_option else _UNTOLD
        if told not in (None, _UNTOLD, bias.dtype):
            yield BiasRead(subgraph, operator, bias, Reading.CONTRADICTED, place)
        elif bias.dtype_name == "INT32" and told != bias.dtype:
            reading = Reading.PAST_ITS_END if reads_option else Reading.REFUSED
            yield BiasRead(subgraph, operator, bias, reading, place)


def widen_biases(model: Model, editor: Editor) -> Done:
    """Stores biases beside int16 activations as int64, or tells the type where they are computed."""
    done: Done = []
    found = list(wrong_types(model))
    graph = Graph.of(model)
    wide: dict[int, Tensor] = {}
    for read in found:
        operator, bias = read.operator, read.bias
        where = f"{read.place} {operator.code.name}"
        if bias.dtype == _WIDE.value:
            editor.set_option(operator, _OPTION, _UNTOLD)
            done.append(Edit(where, f"{_OPTION} taken away: the bias is int64"))
            continue
        values = _values(bias)
        if values is None:
            done.append(_tell(read, editor, where))
            continue
        if operator.option(_OPTION) not in (None, _UNTOLD):
            editor.set_option(operator, _OPTION, _UNTOLD)
        made = wide.get(id(bias))
        if made is None:
            own = {id(item.operator) for item in found if item.bias is bias}
            alone = (
                all(id(use.operator) in own for use in graph.uses_of(bias)) and id(bias) not in graph.exposed
            )
            buffer = editor.add_buffer(values.astype("<i8").tobytes())
            if alone:
                old, bias.buffer, bias.dtype = bias.buffer, buffer, _WIDE.value
                editor.release(old)
                made = bias
            else:
                made = editor.add_tensor(
                    read.subgraph,
                    Tensor(f"{bias.name}_int64", bias.shape, _WIDE.value, buffer, bias.quantization),
                )
            wide[id(bias)] = made
        operator.inputs[row_of(operator).biases[0]] = made
        done.append(Edit(where, "bias int32 -> int64"))
    return done


def tell_types(model: Model) -> bool:
    """Tells kernels that a bias beside int16 activations is int32, where they would read past it.

    Versions stay: 2.14 goes by the type, newer runtimes by the option.

    Returns:
        Whether there was any.
    """
    editor = Editor(model)
    found = [read for read in wrong_types(model) if read.reading is Reading.PAST_ITS_END]
    for read in found:
        editor.set_option(read.operator, _OPTION, read.bias.dtype)
    return bool(found)


def _tell(read: BiasRead, editor: Editor, where: str) -> Edit | Skip:
    """Sets the option for a bias whose values are not in the file."""
    version = first_version_with(row_of(read.operator), _OPTION)
    if version is None:
        return Skip(where, "its int32 bias is computed, and no option tells the kernel", "computed-bias")
    editor.set_option(read.operator, _OPTION, read.bias.dtype)
    editor.stamp(read.operator, version)
    return Edit(where, f"{_OPTION} says int32; version {version}")


def _values(tensor: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]] | None:
    """Returns the elements of an int32 or int64 constant, or None where they are not in the file."""
    row, blob = dtypes.BY_VALUE.get(tensor.dtype), tensor.buffer.blob
    if (
        row is None
        or blob is None
        or not tensor.is_constant
        or tensor.is_sparse
        or tensor.external is not None
    ):
        return None
    if row.name not in ("INT32", "INT64") or blob.nbytes != row.nbytes(tensor.elements):
        return None
    return np.frombuffer(blob.view(), row.numpy).astype(np.int64)


@dataclass(frozen=True, slots=True)
class BiasScale:
    """A bias whose scale is not that of its input times that of its weight.

    Attributes:
        products: What the scales are to be.
        detail: The numbers.
        refused: Whether per-tensor kernels refuse the file for it.
        zero: Whether all of its values are zero, so that any scale means the same.
    """

    subgraph: SubGraph
    operator: Operator
    bias: Tensor
    place: str
    products: tuple[float, ...]
    detail: str
    refused: bool
    zero: bool


def wrong_scales(model: Model) -> Iterator[BiasScale]:
    """Yields integer biases whose scale is off."""
    for subgraph, operator, place in operators_of(model):
        activation, weight, bias = _operands(operator)
        output = operator.outputs[0] if operator.outputs else None
        if activation is None or weight is None or bias is None or output is None:
            continue
        if bias.dtype_name not in ("INT32", "INT64") or activation.dtype_name not in _INTEGERS:
            continue
        inputs, weights, biases = scales_of(activation), scales_of(weight), scales_of(bias)
        if len(inputs) != 1 or not weights or not biases or len(biases) not in (1, len(weights)):
            continue
        products = [inputs[0] * scale for scale in weights]
        stated = biases if len(biases) == len(products) else biases * len(products)
        off = [
            (abs(one - other) / max(abs(one), abs(other)), one, other)
            for one, other in zip(products, stated, strict=True)
            if one != other
        ]
        worst = max(off, default=(0.0, 0.0, 0.0))
        if worst[0] <= _RELATIVE:
            continue
        detail = f"{operator.code.name}: the bias says {worst[2]:.4g}, input times weight is {worst[1]:.4g}"
        results, refused = scales_of(output), False
        if len(weights) == 1 and len(results) == 1 and results[0] > 0:
            steps = abs(worst[1] - worst[2]) / results[0]
            refused = steps > _ALLOWED
            detail += f" ({steps:.3g} output steps{'; more than 0.02: refused' if refused else ''})"
        else:
            wrong = sum(share > _RELATIVE for share, _, _ in off)
            detail += f" ({wrong} of {len(products)} channels)"
        values = _values(bias)
        zero = values is not None and not values.any()
        yield BiasScale(subgraph, operator, bias, place, tuple(products), detail, refused, zero)


def scale_zero_biases(model: Model, editor: Editor, *, refused: bool) -> Done:
    """Gives biases that are all zero the scale of their input times that of their weight.

    Args:
        model: Changed in place.
        editor: Of the model.
        refused: Those that per-tensor kernels refuse, or the others.
    """
    done: Done = []
    graph = Graph.of(model)
    for item in wrong_scales(model):
        if not item.zero or item.refused is not refused:
            continue
        raw = np.array(item.products, "<f4").tobytes()
        points = ScalarVector(INT64, bytes(8 * len(item.products)))
        old = item.bias.quantization or Quantization()
        made = replace(old, scale=ScalarVector(FLOAT32, raw), zero_point=points, dimension=0)
        tensor = item.bias
        if len(graph.uses_of(tensor)) > 1:
            name = f"{tensor.name}_of_{_name_of(item.operator)}"
            tensor = editor.add_tensor(
                item.subgraph, Tensor(name, tensor.shape, tensor.dtype, tensor.buffer, made)
            )
            item.operator.inputs[row_of(item.operator).biases[0]] = tensor
        else:
            tensor.quantization = made
        done.append(Edit(f"{item.place} {item.bias.name}".rstrip(), "the scale is input times weight now"))
    return done


def _name_of(operator: Operator) -> str:
    output = operator.outputs[0] if operator.outputs else None
    return output.name if output is not None else operator.code.name


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
    row = dtypes.BY_VALUE.get(tensor.dtype)
    blob = tensor.buffer.blob
    if row is None or row.name not in ("FLOAT16", "FLOAT32") or blob is None:
        return None
    if blob.nbytes != row.nbytes(tensor.elements):
        return None
    return np.frombuffer(blob.view(), row.numpy).astype(np.float32)


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
        buffer = Buffer(OwnedBlob(floats.astype("<f4").tobytes()))
        model.buffers.append(buffer)
        tensor.dtype, tensor.buffer, tensor.quantization = dtypes.FLOAT32.value, buffer, None
    return bool(found)


def integers(tensor: Tensor) -> Ints | None:
    """Returns the elements of an int8, uint8 or int4 constant in its shape, or None for other forms."""
    blob = tensor.buffer.blob
    row = dtypes.BY_VALUE.get(tensor.dtype)
    if blob is None or row is None or tensor.is_sparse or blob.nbytes != row.nbytes(tensor.elements):
        return None
    shape = tensor.shape or ()
    if row.name in ("INT8", "UINT8"):
        return np.frombuffer(blob.view(), row.numpy).astype(np.int32).reshape(shape)
    return (
        unpack(blob.view(), 4, tensor.elements).astype(np.int32).reshape(shape)
        if row.name == "INT4"
        else None
    )


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
    users = sum(item.buffer is old for subgraph in model.subgraphs for item in subgraph.tensors)
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
            remedy=f"repair it first: tfl-rewrite repair {shlex.quote(file)} OUT",
        )
