"""Models of old converters, which compute in uint8, made to compute in int8: integers less 128.

A uint8 kernel and the int8 one of the same operator compute the same numbers from the same scales, so what
becomes signed stays what it was, but for two things. Weights of uint8 kernels have one scale and any zero
point; those of int8 kernels have zero point 0 and at most 127 in magnitude, so channels that reach further
get a coarser scale of their own and are rounded again. And int8 kernels want equal scales where uint8 ones
convert or copy: QUANTIZE operators stand there. No inputs are needed: the file has all scales.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import field, replace

import numpy as np
import numpy.typing as npt

from tfl_rewrite.editing.editor import Editor
from tfl_rewrite.flatbuf.record import INT64, ScalarVector
from tfl_rewrite.integers.convert import type_change
from tfl_rewrite.integers.groups import Grid
from tfl_rewrite.integers.unsigned import (
    SHIFT,
    UINT8,
    chosen_operators,
    copies_unequally,
    grid_of,
    grids_of,
    shared_grid,
)
from tfl_rewrite.kernels.integer import Scales, Target
from tfl_rewrite.kernels.operands import constant_values, input_of, scales_of, zero_points_of
from tfl_rewrite.kernels.operators import ProductKind
from tfl_rewrite.kernels.reads import needed_version
from tfl_rewrite.kernels.table import SHAPE_READERS, row_of
from tfl_rewrite.model import dtypes
from tfl_rewrite.model.graph import Graph
from tfl_rewrite.model.ir import Model, Operator, Quantization, SubGraph, Tensor
from tfl_rewrite.numerics.clipping import recentred
from tfl_rewrite.options.frozen import slotted

Float64 = npt.NDArray[np.float64]


@slotted
class Signed:
    """What became of a model.

    Attributes:
        operators: Those that compute in int8 now, in order.
        reasons: Why others go on computing in uint8, by id.
        conversions: How many QUANTIZE operators were put in.
        channels: Of all weights.
        rounded: Channels whose integers had to be rounded again.
        unequal: Whether kernels copied integers between unequal scales; they are converted now.
    """

    operators: list[Operator] = field(default_factory=list)
    reasons: dict[int, str] = field(default_factory=dict)
    conversions: int = 0
    channels: int = 0
    rounded: int = 0
    unequal: bool = False

    def notes(self) -> list[str]:
        """What to tell the user."""
        exact = "no weight had to be rounded again"
        told = f"{self.rounded} of {self.channels} channels of weights were rounded again"
        found = [
            f"{len(self.operators)} operator(s) from uint8 to int8: {told if self.rounded else exact}",
            f"{self.conversions} QUANTIZE operator(s) put in",
        ]
        return found + ([f"compared with the original {READING}"] if self.unequal else [])


READING = "with a QUANTIZE where its kernels copy integers between unequal scales"
"""How the original is read then: XNNPACK refuses such a file, other kernels give other values."""


def make_signed(
    model: Model, keeps: Callable[[Operator], bool], editor: Editor, target: Target = Target.LITERT
) -> Signed:
    """Makes the operators of a model that compute in uint8 compute in int8.

    Inputs and outputs of subgraphs and signatures stay what they are.

    Args:
        model: Changed in place.
        keeps: Whether an operator is to stay as it is.
        editor: Of the model; :meth:`Editor.finish` is left to the caller.
    """
    graph, done = Graph.of(model), Signed()
    for subgraph in model.subgraphs:
        chosen = chosen_operators(subgraph, graph, keeps, done.reasons, target)
        if chosen:
            _Signing(subgraph, graph, chosen, editor, done).run()
    return done


def convert_copies(model: Model, editor: Editor) -> None:
    """Puts a QUANTIZE behind what copies uint8 integers between unequal scales, as :data:`READING` says."""
    for subgraph in model.subgraphs:
        made: list[Operator] = []
        for operator in subgraph.operators:
            made.append(operator)
            if not copies_unequally(operator):
                continue
            common = shared_grid(operator)
            for position, grid in grids_of(operator.inputs).items():
                tensor = operator.inputs[position]
                if tensor is not None and grid != common:
                    operator.inputs[position] = twin = _twin(editor, subgraph, tensor, common)
                    made.insert(-1, type_change(editor, tensor, twin))
            for position, grid in grids_of(operator.outputs).items():
                tensor = operator.outputs[position]
                if tensor is not None and grid != common:
                    operator.outputs[position] = twin = _twin(editor, subgraph, tensor, common)
                    made.append(type_change(editor, twin, tensor))
        subgraph.operators[:] = made


class _Signing:
    """Makes operators of one subgraph signed.

    Args:
        subgraph: Changed in place.
        graph: Of its model, as it was.
        chosen: The operators, by id.
        editor: Makes the edits.
        done: Is told what became of the model.
    """

    def __init__(
        self,
        subgraph: SubGraph,
        graph: Graph,
        chosen: dict[int, Operator],
        editor: Editor,
        done: Signed,
    ) -> None:
        self._subgraph = subgraph
        self._graph = graph
        self._chosen = chosen
        self._editor = editor
        self._done = done
        # By id of a tensor: its forms, by grid, None being the uint8 one; and the grid of the one that is
        # computed, None where an operator gives uint8.
        self._forms: dict[int, dict[Grid | None, Tensor]] = {}
        self._native: dict[int, Grid] = {}
        self._was: dict[int, Quantization | None] = {}
        self._weights: dict[tuple[int, int], tuple[Tensor, Float64]] = {}
        self._replaced: dict[int, Tensor] = {}
        self._operators: list[Operator] = []

    def run(self) -> None:
        """Rewrites the operators, in order; conversions stand before their first reader."""
        # Before any tensor changes its type.
        plans = {key: self._planned(operator) for key, operator in self._chosen.items()}
        for operator in list(self._subgraph.operators):
            if id(operator) in plans:
                self._sign(operator, *plans[id(operator)])
            else:
                self._keep(operator)
        for tensor in list(self._subgraph.tensors):
            if id(tensor) in self._graph.exposed and id(tensor) in self._native:
                self._form(tensor, None)
        self._subgraph.operators[:] = self._operators
        self._editor.drop_unused(self._subgraph, self._replaced.values(), self._graph.exposed)

    def _keep(self, operator: Operator) -> None:
        any_type = row_of(operator) in SHAPE_READERS
        for position, tensor in enumerate(operator.inputs):
            if tensor is not None and id(tensor) in self._native:
                native = self._native[id(tensor)]
                operator.inputs[position] = self._form(tensor, native if any_type else None)
        self._operators.append(operator)

    def _sign(self, operator: Operator, inputs: dict[int, Grid], outputs: dict[int, Grid]) -> None:
        row, kernel = row_of(operator), row_of(operator).integer
        if kernel is not None and kernel.scales is Scales.WEIGHTS:
            assert row.activation is not None
            del inputs[row.weights[0]]
            self._sign_weights(operator, inputs[row.activation])
        for position, grid in inputs.items():
            tensor = operator.inputs[position]
            assert tensor is not None
            operator.inputs[position] = self._form(tensor, grid)
        for position, grid in outputs.items():
            tensor = operator.outputs[position]
            assert tensor is not None
            operator.outputs[position] = self._give(tensor, grid)
        version = max(kernel.version8 if kernel is not None else 1, needed_version(operator) or 1)
        self._editor.stamp(operator, version)
        self._operators.append(operator)
        self._done.operators.append(operator)

    def _planned(self, operator: Operator) -> tuple[dict[int, Grid], dict[int, Grid]]:
        """Returns the grids on which the int8 kernel reads and gives, by position."""
        inputs, outputs = grids_of(operator.inputs), grids_of(operator.outputs)
        kernel = row_of(operator).integer
        if kernel is not None and kernel.scales is Scales.FIXED:
            outputs = dict.fromkeys(outputs, Grid(8, *kernel.fixed[8]))
        if kernel is not None and kernel.scales is Scales.SAME and outputs:
            self._done.unequal |= copies_unequally(operator)
            common = shared_grid(operator)
            inputs, outputs = dict.fromkeys(inputs, common), dict.fromkeys(outputs, common)
        return inputs, outputs

    def _give(self, tensor: Tensor, grid: Grid) -> Tensor:
        """Makes a tensor one that an operator gives on a grid; returns what it gives."""
        own = grid_of(tensor)
        self._native[id(tensor)] = grid
        if grid == own and id(tensor) not in self._graph.exposed:
            self._was[id(tensor)] = tensor.quantization
            tensor.dtype, tensor.quantization = dtypes.INT8.value, _shifted(tensor.quantization, grid)
            made = tensor
        else:
            # What others know by its name and type stays, and is converted to.
            made = _twin(self._editor, self._subgraph, tensor, grid, "INT8")
            self._replaced[id(tensor)] = tensor
        self._forms[id(tensor)] = {grid: made}
        return made

    def _form(self, tensor: Tensor, grid: Grid | None) -> Tensor:
        """Returns a tensor in int8 on a grid, or in uint8; converts it where it is not there yet."""
        forms = self._forms.setdefault(id(tensor), {None: tensor})
        if grid in forms:
            return forms[grid]
        if grid is not None and self._graph.is_constant(tensor):
            forms[grid] = self._constant(tensor, grid)
            return forms[grid]
        source = forms[self._native.get(id(tensor))]
        if grid is not None:
            made = _twin(self._editor, self._subgraph, tensor, grid, "INT8")
        elif tensor.dtype == UINT8:
            made = tensor
        else:
            made = self._editor.add_like(self._subgraph, tensor, "UINT8", self._was[id(tensor)])
        forms[grid] = made
        self._operators.append(type_change(self._editor, source, made))
        self._done.conversions += 1
        return made

    def _constant(self, tensor: Tensor, grid: Grid) -> Tensor:
        values, own = constant_values(tensor, "UINT8"), grid_of(tensor)
        assert values is not None and own is not None
        levels = values.astype(np.int32) - SHIFT
        if grid != own:
            real = (levels - own.zero_point) * own.scale
            levels = np.clip(np.rint(real / grid.scale) + grid.zero_point, -128, 127).astype(np.int32)
        self._replaced[id(tensor)] = tensor
        made = self._editor.add_like(self._subgraph, tensor, "INT8", _shifted(tensor.quantization, grid))
        made.name, made.buffer = tensor.name, self._editor.constant(levels.astype(np.int8).tobytes())
        return made

    def _sign_weights(self, operator: Operator, source: Grid) -> None:
        row = row_of(operator)
        at, bias_at = row.weights[0], row.biases[0]
        tensor, bias = operator.inputs[at], input_of(operator, bias_at)
        assert tensor is not None
        axis = row.output_axis(at, len(tensor.shape or ()))
        assert axis is not None
        if (id(tensor), axis) not in self._weights:
            self._weights[id(tensor), axis] = self._weight(tensor, axis)
        weight, scales = self._weights[id(tensor), axis]
        operator.inputs[at], self._replaced[id(tensor)] = weight, tensor
        if len(scales) == 1 and bias is not None:
            return
        if bias is None and row.product in (ProductKind.DENSE, ProductKind.TRANSPOSED):
            return
        channels = (tensor.shape or ())[axis]
        values = np.zeros(channels) if bias is None else constant_values(bias, "INT32")
        assert values is not None
        made = Tensor(
            bias.name if bias is not None else f"{tensor.name}_bias",
            (channels,),
            dtypes.INT32.value,
            self._editor.constant(np.rint(values * (scales_of(tensor)[0] / scales)).astype("<i4").tobytes()),
            Quantization.symmetric((source.scale * scales).astype("<f4").tobytes()),
        )
        operator.inputs += [None] * (bias_at + 1 - len(operator.inputs))
        operator.inputs[bias_at] = self._editor.add_tensor(self._subgraph, made)
        if bias is not None:
            self._replaced[id(bias)] = bias

    def _weight(self, tensor: Tensor, axis: int) -> tuple[Tensor, Float64]:
        """Makes the int8 weight of a uint8 one; returns its scales, too: one, or one a channel."""
        values, zeros = constant_values(tensor, "UINT8"), zero_points_of(tensor) or [0]
        assert values is not None
        levels = values.astype(np.int32).reshape(tensor.shape or ()) - zeros[0]
        integers, factors = recentred(np.moveaxis(levels, axis, 0))
        self._done.channels += len(factors)
        self._done.rounded += int((factors != 1).sum())
        scales = (scales_of(tensor)[0] * factors).astype(np.float32)
        if (factors == 1).all():
            scales, axis_stored = scales[:1], 0
        else:
            axis_stored = axis
        made = Tensor(
            tensor.name,
            tensor.shape,
            dtypes.INT8.value,
            self._editor.constant(np.ascontiguousarray(np.moveaxis(integers, 0, axis)).tobytes()),
            Quantization.symmetric(scales.astype("<f4").tobytes(), axis_stored),
        )
        return self._editor.add_tensor(self._subgraph, made), scales.astype(np.float64)


def _shifted(details: Quantization | None, grid: Grid) -> Quantization:
    """Returns the parameters of the int8 twin; what else the file says of the tensor stays."""
    assert details is not None
    scale = ScalarVector.of(details.scale.scalar, [grid.scale]) if details.scale else None
    return replace(details, scale=scale, zero_point=ScalarVector.of(INT64, [grid.zero_point]))


def _twin(editor: Editor, subgraph: SubGraph, tensor: Tensor, grid: Grid, kind: str = "UINT8") -> Tensor:
    """Adds a tensor of the same shape on another grid, or in another type."""
    shift = 0 if kind == "INT8" else SHIFT
    moved = replace(grid, zero_point=grid.zero_point + shift)
    return editor.add_like(subgraph, tensor, kind, _shifted(tensor.quantization, moved))
