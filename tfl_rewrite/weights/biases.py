"""Biases: those that take back what rounding a weight does to the mean of its products, and broken ones.

Beside int16 activations the kernels of LiteRT read a bias as int64 unless ``quantized_bias_type`` says int32:
an int32 bias is read past its end, so the outputs depend on what lies behind it in the file. TensorFlow Lite
2.14 went by the type of the tensor. Measured on 2.14 and 2.3 with every resolver: int64 is right in both.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from tfl_rewrite.editing.base import Edit, Skip
from tfl_rewrite.editing.editor import Editor
from tfl_rewrite.flatbuf.record import FLOAT32, INT64, ScalarVector
from tfl_rewrite.kernels.operands import constant_values, input_of, operators_of, scales_of
from tfl_rewrite.kernels.operators import ProductKind
from tfl_rewrite.kernels.reads import first_version_with
from tfl_rewrite.kernels.table import DEQUANTIZE, row_of
from tfl_rewrite.model import dtypes
from tfl_rewrite.model.blob import OwnedBlob
from tfl_rewrite.model.graph import Graph
from tfl_rewrite.model.ir import Model, Operator, Quantization, SubGraph, Tensor
from tfl_rewrite.options.frozen import frozen

Done = list[Edit | Skip]
"""What a repair did, and what it looked at and left alone."""

BIAS = 2
"""At which input layers have it."""

ADDED_SHARE = 0.02
"""A bias is added where it takes no more than this share of the weight's new bytes."""

ADDED_NBYTES = 128
"""Of the tensor and the buffer of an added bias."""


_OPTION = "quantized_bias_type"
_UNTOLD = dtypes.FLOAT32.value
_WIDE = dtypes.BY_NAME["INT64"]
_INTEGERS = ("INT8", "UINT8", "INT16", "INT4", "INT2")

_ALLOWED = 0.02
"""Of an output step, by which a per-tensor kernel lets the scale of a bias be off (``kernel_util.cc``,
``GetQuantizedConvolutionMultipler``)."""
_RELATIVE = 0.01
"""Below it, the difference is what rounding a product of float32 scales several times leaves."""


@frozen
class Correction:
    """What is to be added to the bias of an operator: ``[outputs]``."""

    subgraph: SubGraph
    operator: Operator
    change: npt.NDArray[np.float64]


def bias_of(operator: Operator) -> Tensor | None:
    """Returns the bias of a layer."""
    return operator.inputs[BIAS] if len(operator.inputs) > BIAS else None


def takes_bias(subgraph: SubGraph, operator: Operator, *, weight_nbytes: int, outputs: int) -> bool:
    """Whether an operator has a constant float bias of its own, or may be given one.

    Args:
        subgraph: Where it lies.
        operator: It.
        weight_nbytes: What its weight takes when rounded.
        outputs: Length of the bias.
    """
    row = row_of(operator)
    if not row.is_layer:
        return False
    bias = bias_of(operator)
    if bias is None:
        if row.product is not ProductKind.DENSE:
            return False
        return 4 * outputs + ADDED_NBYTES <= ADDED_SHARE * weight_nbytes
    return bias.elements == outputs and _stored(subgraph, bias) is not None


def correct(editor: Editor, items: Sequence[Correction]) -> None:
    """Adds to biases; other operators that read the same constants keep the old ones."""
    uses = Uses(editor.model)
    for item in items:
        _correct(editor, item, uses)


class Uses:
    """Who uses the constants of a model, counted once for all biases."""

    def __init__(self, model: Model) -> None:
        self._shared = {key for key, holders in model.holders().items() if len(holders) > 1}
        self._pinned = model.pinned
        self._exposed = {id(item) for graph in model.subgraphs for item in (*graph.inputs, *graph.outputs)}
        self._readers = Counter(id(item) for _, operator in model.operators() for item in operator.inputs)

    def are_alone(self, stored: Tensor, bias: Tensor) -> bool:
        """Whether a constant serves as the bias of one operator and as nothing else."""
        key, tensors = id(stored.buffer), {id(stored), id(bias)}
        if key in self._shared or key in self._pinned or tensors & self._exposed:
            return False
        return sum(self._readers[tensor] for tensor in tensors) == len(tensors)

    def leave(self, bias: Tensor) -> None:
        """An operator reads another bias from now on."""
        self._readers[id(bias)] -= 1


def _correct(editor: Editor, item: Correction, uses: Uses) -> None:
    subgraph, operator = item.subgraph, item.operator
    bias = bias_of(operator)
    if bias is None:
        weight = operator.inputs[1]
        name = f"{weight.name if weight is not None else operator.code.name}_bias"
        data = item.change.astype("<f4").tobytes()
        shape = (len(item.change),)
        added = Tensor(name, shape, dtypes.FLOAT32.value, editor.add_buffer(data))
        operator.inputs[BIAS:] = [editor.add_tensor(subgraph, added)]
        return
    stored = _stored(subgraph, bias)
    old = constant_values(stored, "FLOAT32", "FLOAT16") if stored is not None else None
    assert stored is not None and old is not None
    new = old.astype(np.float64) + item.change.reshape(old.shape)
    if not np.isfinite(new.astype(old.dtype)).all():
        return
    if uses.are_alone(stored, bias):
        stored.buffer.blob = OwnedBlob(new.astype(old.dtype).tobytes())
        return
    data = new.astype("<f4").tobytes()
    copy = Tensor(f"{bias.name}_own", bias.shape, dtypes.FLOAT32.value, editor.add_buffer(data))
    operator.inputs[BIAS] = editor.add_tensor(subgraph, copy)
    uses.leave(bias)


def _stored(subgraph: SubGraph, bias: Tensor) -> Tensor | None:
    """Returns the float constant that a bias is, or is expanded from; None where it is neither."""
    found: Tensor | None = bias
    if not bias.is_constant:
        maker = next((item for item in subgraph.operators if any(o is bias for o in item.outputs)), None)
        expands = maker is not None and row_of(maker) is DEQUANTIZE and maker.inputs
        found = maker.inputs[0] if maker is not None and expands else None
    if found is None or not found.is_constant:
        return None
    return found if constant_values(found, "FLOAT32", "FLOAT16") is not None else None


class Reading(enum.Enum):
    """How kernels take a bias whose type is not the one that they expect; the value says it in words."""

    PAST_ITS_END = (
        "int32 bias, which the kernel reads as int64: past its end, unless quantized_bias_type tells"
    )
    REFUSED = "int32 bias, and the kernel takes int64 only"
    CONTRADICTED = "quantized_bias_type is not the type of the bias"


@frozen
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
        values = _integers(bias)
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


def _integers(bias: Tensor) -> npt.NDArray[np.int64] | None:
    """Returns the elements of a constant integer bias, or None where they are not in the file."""
    values = constant_values(bias, "INT32", "INT64") if bias.is_constant else None
    return None if values is None else values.astype(np.int64)


def _tell(read: BiasRead, editor: Editor, where: str) -> Edit | Skip:
    """Sets the option for a bias whose values are not in the file."""
    version = first_version_with(row_of(read.operator), _OPTION)
    if version is None:
        return Skip(where, "its int32 bias is computed, and no option tells the kernel", "computed-bias")
    editor.set_option(read.operator, _OPTION, read.bias.dtype)
    editor.stamp(read.operator, version)
    return Edit(where, f"{_OPTION} says int32; version {version}")


@frozen
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
        values = _integers(bias)
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
