"""The weights and the bias of one layer: read as float64, scaled, and stored as constants of its own.

What an affine step before or behind a layer does to it, exactly in real numbers:

* behind, ``factor (W x + bias) + term`` by output channel: ``W' = factor W``, ``bias' = factor bias + term``;
* before, ``W (factor x + term) + bias`` by input channel: ``W' = W factor``, ``bias' = bias + W term``.

Weights are float32; float16 behind a DEQUANTIZE, which are scaled where each product is a float16 number; or
int8 for a hybrid kernel, whose scales are. Others stay as they are, and only the bias takes something.
Constants that others read are not touched: the layer gets new ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tfl_rewrite.editing.editor import Editor
from tfl_rewrite.kernels.operands import (
    constant_values,
    input_of,
    scales_of,
    stored_constant,
    zero_points_of,
)
from tfl_rewrite.kernels.operators import ProductKind
from tfl_rewrite.kernels.shapes import Shape
from tfl_rewrite.kernels.table import DEQUANTIZE, row_of
from tfl_rewrite.model import dtypes
from tfl_rewrite.model.graph import Graph
from tfl_rewrite.model.ir import Buffer, Operator, Quantization, SubGraph, Tensor

Float64 = npt.NDArray[np.float64]

FLOAT32 = dtypes.FLOAT32.value
_LEAST = float(np.finfo(np.float32).tiny)


class Refused(Exception):
    """A step cannot go into a layer.

    Attributes:
        rule: A short stable name of the reason.
        reason: In words.
    """

    def __init__(self, rule: str, reason: str) -> None:
        super().__init__(reason)
        self.rule = rule
        self.reason = reason


def float_values(tensor: Tensor | None, graph: Graph) -> Float64 | None:
    """Returns what a float constant holds, one of float16 behind a DEQUANTIZE too; None if it is none.

    Of the shape of the constant, in float64.
    """
    stored = None if tensor is None else stored_constant(tensor, graph)
    values = None if stored is None else constant_values(stored, "FLOAT32", "FLOAT16")
    if stored is None or values is None:
        return None
    return values.astype(np.float64).reshape(stored.shape or ())


@dataclass(frozen=True, slots=True)
class Step:
    """What an operator does with one constant: ``factor * x + term``, element by element.

    Attributes:
        operator: It.
        source: The ``x``.
        factor: Of the shape of the constant, or a scalar 1.
        term: Likewise, or a scalar 0.
        shape: Of the constant.
    """

    operator: Operator
    source: Tensor
    factor: Float64
    term: Float64
    shape: tuple[int, ...]

    @property
    def scales(self) -> bool:
        """Whether it multiplies by anything but 1."""
        return bool((self.factor != 1).any())

    @property
    def adds(self) -> bool:
        """Whether it adds anything but 0."""
        return bool((self.term != 0).any())


class LayerConstants:
    """What one layer multiplies by and adds, while steps are folded into it.

    Args:
        operator: One of which :func:`tfl_rewrite.kernels.operands.is_float_layer` is true.
        graph: Of its model.
        shape: Of its output; None where that is not known.
    """

    def __init__(self, operator: Operator, graph: Graph, shape: Shape | None = None) -> None:
        row = row_of(operator)
        self.operator = operator
        self._graph = graph
        self._made = shape
        assert isinstance(row.channel_axis, int)
        self._axis, self._kind, self._bias_position = row.channel_axis, row.product, row.biases[0]
        weight = operator.inputs[1]
        assert weight is not None
        self._weight = weight
        self._stored = stored_constant(weight, graph)
        self._scales: Float64 | None = None
        self._values = self._read()
        self._negated: npt.NDArray[np.bool_] | None = None
        self._bias_tensor = input_of(operator, self._bias_position)
        self._bias = None if self._bias_tensor is None else float_values(self._bias_tensor, graph)
        self._changed = {"weights": False, "bias": False}

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Of the weights; None where they are computed."""
        return None if self._stored is None else self._stored.shape

    @property
    def channels(self) -> int | None:
        """How many outputs it has; None where nothing in the file tells."""
        shape = self.shape
        if shape is not None and len(shape) > self._axis:
            return shape[self._axis]
        if self._made:
            return self._made[-1]
        return None if self._bias is None else self._bias.size

    @property
    def is_hybrid(self) -> bool:
        """Whether its kernel rounds what it reads."""
        return self._weight.dtype != FLOAT32

    def fold_behind(self, step: Step) -> None:
        """Takes in a step that reads the output.

        Raises:
            Refused: It cannot; nothing is changed then.
        """
        channels = self.channels
        if channels is None:
            raise Refused("unknown", "the number of its channels is not in the file")
        if len(step.shape) > self._least_rank or step.factor.size * step.term.size not in (1, channels):
            raise Refused("channels", f"the constant of shape {list(step.shape)} is not one number a channel")
        if max(step.shape[:-1], default=1) > 1:
            raise Refused("channels", f"the constant of shape {list(step.shape)} varies along other axes")
        factor, term = step.factor.reshape(-1), step.term.reshape(-1)
        bias = _float32(factor * self._old_bias(channels) + term, "bias")
        if step.scales:
            self._scale(np.broadcast_to(factor, (channels,)), outputs=True)
        self._set_bias(bias)

    def fold_before(self, step: Step, shape: Shape | None, *, whole: bool) -> None:
        """Takes in a step that makes the input.

        Args:
            step: It.
            shape: Of what the step reads; None where that is not known.
            whole: Whether each output is a sum over all of the weights: no padding stands in for the input.

        Raises:
            Refused: It cannot; nothing is changed then.
        """
        if self.is_hybrid:
            raise Refused("hybrid", "its kernel rounds what it reads, which would have other ranges")
        if step.adds and not (whole and self._kind is not ProductKind.TRANSPOSED):
            raise Refused("padding", "what is added before it is not added to the zeros of its padding")
        if self._values is None:
            raise Refused("weights", "its weights are computed, or stored in a form that is not scaled")
        channels = self.channels
        assert channels is not None
        factor, term = (self._along_inputs(values, step.shape, shape) for values in (step.factor, step.term))
        over = tuple(axis for axis in range(self._values.ndim) if axis != self._axis)
        bias = None
        if step.adds:
            bias = _float32(self._old_bias(channels) + (self._values * term).sum(axis=over), "bias")
        if step.scales:
            self._scale(factor, outputs=False)
        if bias is not None:
            self._set_bias(bias)

    def store(self, editor: Editor, subgraph: SubGraph) -> list[Tensor]:
        """Gives the layer its new constants; returns those that it had."""
        old = [self._weight, self._stored, self._bias_tensor]
        if self._changed["weights"]:
            self._store_weights(editor, subgraph)
        if self._changed["bias"]:
            assert self._bias is not None
            bias = self._bias_tensor
            name = f"{self._weight.name}_bias" if bias is None else self._name(bias)
            made = Tensor(name, self._bias.shape, FLOAT32, editor.add_buffer(_bytes(self._bias, "<f4")))
            inputs = self.operator.inputs
            inputs += [None] * (self._bias_position + 1 - len(inputs))
            inputs[self._bias_position] = editor.add_tensor(subgraph, made)
        return [tensor for tensor in old if tensor is not None and any(self._changed.values())]

    @property
    def _least_rank(self) -> int:
        """Axes that its output has at least: a constant of more would give it another rank."""
        if self._made is not None:
            return len(self._made)
        if self._kind is not ProductKind.DENSE:
            return 4
        return 1 if self.operator.option("keep_num_dims") else 2

    def _read(self) -> Float64 | None:
        """Returns the weights as they are multiplied; None where they stay as they are."""
        stored = self._stored
        if stored is None or stored.shape is None or len(stored.shape) <= self._axis:
            return None
        if stored is not self._weight or stored.dtype == FLOAT32:
            return float_values(self._weight, self._graph)
        scales, channels = np.array(scales_of(stored)), stored.shape[self._axis]
        details = stored.quantization
        values = constant_values(stored, "INT8")
        if values is None or details is None or details.scales_tensor or any(zero_points_of(stored)):
            return None
        if scales.size not in (1, channels) or (scales.size > 1 and details.dimension != self._axis):
            return None
        self._scales = scales
        made: Float64 = values.astype(np.float64).reshape(stored.shape) * self._spread(scales)
        return made

    def _spread(self, values: Float64) -> Float64:
        """Returns one number for each output, or for all, in a shape that fits the weights."""
        shape = self.shape or ()
        return values.reshape([-1 if axis == self._axis else 1 for axis in range(len(shape))])

    def _old_bias(self, channels: int) -> Float64:
        if self._bias_tensor is None:
            return np.zeros(channels) if self._bias is None else self._bias
        if self._bias is None or self._bias.size != channels:
            raise Refused("bias", "its bias is computed, or not one number a channel")
        return self._bias.reshape(-1)

    def _set_bias(self, bias: Float64) -> None:
        if self._bias_tensor is None and self._bias is None and not bias.any():
            return
        self._changed["bias"] = (
            self._changed["bias"] or self._bias is None or bool((bias != self._bias).any())
        )
        self._bias = bias

    def _scale(self, factor: Float64, *, outputs: bool) -> None:
        """Multiplies the weights.

        Args:
            factor: One number for each output, or of a shape that fits the weights.
            outputs: Which of both.
        """
        values = self._values
        if values is None:
            raise Refused("weights", "its weights are computed, or stored in a form that is not scaled")
        made = values * (self._spread(factor) if outputs else factor)
        if self._scales is not None:
            self._scale_hybrid(factor)
        elif self._stored is not self._weight:
            with np.errstate(over="ignore"):
                halves = made.astype(np.float16).astype(np.float64)
            if (halves != made).any():
                raise Refused("float16", "its float16 weights would have to be rounded again")
        else:
            self._check_range(values, _float32(made, "weights"))
        self._values, self._changed["weights"] = made, True

    def _check_range(self, before: Float64, after: Float64) -> None:
        over = tuple(axis for axis in range(before.ndim) if axis != self._axis)
        old, new = (np.abs(values).max(axis=over, initial=0) for values in (before, after))
        if ((old >= _LEAST) & (new > 0) & (new < _LEAST)).any():
            raise Refused("range", "its weights would be too small for float32")

    def _scale_hybrid(self, factor: Float64) -> None:
        """Multiplies the scales; a channel that changes its sign gets the opposite integers."""
        assert self._scales is not None and self._stored is not None
        if self._scales.size == 1:
            if (np.abs(factor) != abs(factor[0])).any():
                raise Refused("hybrid", "its weights have one scale for all channels")
            made = self._scales * abs(factor[0])
        else:
            made = self._scales * np.abs(factor)
        if (_float32(made, "scales") < _LEAST).any():
            raise Refused("hybrid", "scales would be too small for its kernel")
        if made.size > 1 and np.unique(made.astype(np.float32)).size == 1:
            raise Refused("hybrid", "scales would all be equal, which some kernels read as one")
        negative = factor < 0
        integers = constant_values(self._stored, "INT8")
        assert integers is not None
        if negative.any() and integers.min() == -128:
            raise Refused("hybrid", "integers of -128 have no opposite")
        self._scales = made
        self._negated = negative if self._negated is None else self._negated ^ negative

    def _along_inputs(self, values: Float64, constant: tuple[int, ...], shape: Shape | None) -> Float64:
        """Returns what belongs to each weight of what belongs to each element of the input."""
        if values.size == 1:
            # One number never changes a shape, unless by its rank.
            if len(constant) > (1 if shape is None else len(shape)):
                raise Refused("channels", f"the constant of shape {list(constant)} gives more axes")
            return values.reshape(())
        assert self._values is not None
        core = values.reshape(constant)
        leading = next((axis for axis, size in enumerate(constant) if size != 1), 0)
        core = core.reshape(constant[leading:])
        if shape is None or shape[-core.ndim :] != core.shape or len(shape) < len(constant):
            raise Refused(
                "channels", f"a constant of shape {list(constant)} beside an input of unknown shape"
            )
        weights = self._values.shape
        if self._kind is ProductKind.DENSE:
            if weights[-1] % core.size:
                raise Refused("channels", "its rows are not whole constants")
            return np.tile(core.reshape(-1), weights[-1] // core.size).reshape(1, -1)
        if core.ndim > 1:
            raise Refused("channels", f"the constant of shape {list(constant)} varies along other axes")
        if self._kind is ProductKind.CONVOLUTION:
            groups, rest = divmod(core.size, weights[-1])
            if rest or not groups or weights[0] % groups:
                raise Refused("channels", f"{core.size} numbers are not one for each input channel")
            rows = np.repeat(core.reshape(groups, -1), weights[0] // groups, axis=0)
            return rows.reshape(weights[0], 1, 1, weights[-1])
        each, rest = divmod(weights[-1], core.size)
        if rest or (each != 1 and self._kind is not ProductKind.DEPTHWISE):
            raise Refused("channels", f"{core.size} numbers are not one for each input channel")
        return np.repeat(core, each).reshape(1, 1, 1, -1)

    def _store_weights(self, editor: Editor, subgraph: SubGraph) -> None:
        stored, values = self._stored, self._values
        assert stored is not None and values is not None
        if self._scales is not None:
            buffer, details = stored.buffer, stored.quantization
            assert details is not None
            if self._negated is not None and self._negated.any():
                integers = constant_values(stored, "INT8")
                assert integers is not None
                turned = integers.reshape(values.shape) * self._spread(np.where(self._negated, -1.0, 1.0))
                buffer = editor.add_buffer(turned.astype(np.int8).tobytes())
            made = Quantization.symmetric(_bytes(self._scales, "<f4"), details.dimension)
            new = Tensor(self._name(stored), stored.shape, stored.dtype, buffer, made)
        elif stored is self._weight:
            buffer = editor.add_buffer(_bytes(values, "<f4"))
            new = Tensor(self._name(stored), stored.shape, FLOAT32, buffer)
        else:
            self._store_half(editor, subgraph, stored, editor.add_buffer(_bytes(values, "<f2")))
            return
        self.operator.inputs[1] = editor.add_tensor(subgraph, new)

    def _store_half(self, editor: Editor, subgraph: SubGraph, stored: Tensor, buffer: Buffer) -> None:
        maker = self._graph.maker_of(self._weight)
        assert maker is not None
        if self._is_own(stored) and self._is_own(self._weight):
            old, stored.buffer = stored.buffer, buffer
            editor.release(old)
            return
        half = Tensor(f"{stored.name}_folded", stored.shape, stored.dtype, buffer)
        floats = Tensor(f"{self._weight.name}_folded", stored.shape, FLOAT32, editor.sentinel())
        half, floats = editor.add_tensor(subgraph, half), editor.add_tensor(subgraph, floats)
        made = editor.plain(DEQUANTIZE, maker.code.version, [half], floats)
        made.options, made.rest = maker.options, maker.rest
        place = next(at for at, item in enumerate(subgraph.operators) if item is self.operator)
        subgraph.operators.insert(place, made)
        self.operator.inputs[1] = floats

    def _is_own(self, tensor: Tensor) -> bool:
        return len(self._graph.uses_of(tensor)) == 1 and id(tensor) not in self._graph.exposed

    def _name(self, tensor: Tensor) -> str:
        """Returns a name for what takes the place of a constant: its own, unless that stays."""
        return tensor.name if self._is_own(tensor) else f"{tensor.name}_folded"


def _bytes(values: Float64, kind: str) -> bytes:
    return values.astype(kind).tobytes()


def _float32(values: Float64, what: str) -> Float64:
    """Returns the values.

    Raises:
        Refused: Some are NaN, or infinite as float32.
    """
    with np.errstate(over="ignore"):
        if not np.isfinite(values.astype(np.float32)).all():
            raise Refused("range", f"its {what} would leave the range of float32")
    return values
