"""Turns the operators of a graph into their integer forms, with conversions where types or grids meet."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from tfl_rewrite.editing.editor import Editor
from tfl_rewrite.integers.groups import LEAST_SCALE, Grid, Groups, projection_clip
from tfl_rewrite.integers.modes import Modes, float_inputs, float_outputs, kernel_of
from tfl_rewrite.integers.recurrent import MemoryForm, form_of, narrow_weights
from tfl_rewrite.kernels.integer import TYPE_CHANGES, Scales
from tfl_rewrite.kernels.operands import constant_values, input_of
from tfl_rewrite.kernels.operators import ProductKind
from tfl_rewrite.kernels.table import DEQUANTIZE, QUANTIZE, SHAPE_READERS, row_of
from tfl_rewrite.model import dtypes
from tfl_rewrite.model.graph import Graph
from tfl_rewrite.model.ir import Operator, Quantization, SubGraph, Tensor
from tfl_rewrite.options.frozen import frozen

Float64 = npt.NDArray[np.float64]


@frozen
class IntegerWeight:
    """A weight of an operator as integers.

    Attributes:
        values: Int8, in the shape of the weight.
        scale: Float32 ``[channels]``.
        axis: Over which the channels lie; None for one scale.
        bias: What is to be added to the bias, ``[channels]``; None for nothing.
    """

    values: npt.NDArray[np.int8]
    scale: npt.NDArray[np.float32]
    axis: int | None
    bias: Float64 | None = None

    @property
    def floats(self) -> npt.NDArray[np.float32]:
        """What it stands for, in its shape."""
        shape = [1] * self.values.ndim
        if self.axis is not None:
            shape[self.axis] = -1
        return self.values * self.scale.reshape(shape)


_WITHOUT_BIAS = (ProductKind.DENSE, ProductKind.TRANSPOSED)
"""What needs no bias; the integer kernels of convolutions do."""

LEAST_STEP = 2.0**-100
"""Of the scale of a bias: XNNPACK refuses a file with one that is zero or subnormal."""

LEAST_MULTIPLIER = 2.0**-30
"""Of the scale of a bias over that of the output: the kernels take one below 2^-31 for 0, with the bias."""

LARGEST_BIAS = {8: 2.0**30, 16: 2.0**46}
"""Half of what int32 holds, and what a float64 still counts one by one beside int16."""

Site = tuple[int, int]
"""Id of an operator, and the position of a weight among its inputs."""

WeightOf = Callable[[Operator, int], IntegerWeight]
"""Gives out the weight at a position."""


class Conversion:
    """Converts one subgraph.

    Args:
        subgraph: Changed in place.
        graph: Of its model, as it was.
        modes: Which operators compute in integers.
        groups: On which grids.
        weight_of: Makes the integers of a weight. None where operators stay float and read what the integers
            stand for: nearly what the integer kernels compute, with weights as they were.
        editor: Makes the edits.
    """

    def __init__(
        self,
        subgraph: SubGraph,
        graph: Graph,
        modes: Modes,
        groups: Groups,
        weight_of: WeightOf | None,
        editor: Editor,
    ) -> None:
        self._subgraph = subgraph
        self._graph = graph
        self._modes = modes
        self._groups = groups
        self._weight_of = weight_of
        self._editor = editor
        self._forms: dict[int, dict[Grid | None, Tensor]] = {}
        self._native: dict[int, Grid | None] = {}
        self._operators: list[Operator] = []
        self._stored: dict[tuple[int, Grid], Tensor] = {}
        self._real: dict[int, Tensor] = {}
        self._weights: dict[tuple[int, bytes, bytes], Tensor] = {}
        self._replaced: set[int] = set()
        self._conversions = 0

    def run(self) -> int:
        """Rewrites the operators, in order; conversions stand before their first reader.

        Returns:
            How many conversions there are.
        """
        subgraph = self._subgraph
        plans = [(operator, self._planned(operator)) for operator in subgraph.operators]
        for operator, planned in plans:
            if planned is None:
                self._keep(operator)
            elif self._weight_of is None:
                self._simulate(operator, *planned)
            else:
                self._convert(operator, *planned, self._weight_of)
        for tensor in list(subgraph.tensors):
            if id(tensor) in self._graph.exposed:
                self._form(tensor, None)
        subgraph.operators[:] = self._operators
        gone = {key for key, _ in self._stored} | self._replaced
        constants = [item for item in subgraph.tensors if id(item) in gone]
        self._editor.drop_unused(subgraph, constants, self._graph.exposed)
        return self._conversions

    def _planned(self, operator: Operator) -> tuple[dict[int, Grid], dict[int, Grid]] | None:
        """Returns the grids of an operator's inputs, by position, and of its outputs, by id."""
        if self._modes.width(operator) is None:
            return None
        grids = {position: self._groups.given(operator, position) for position, _ in float_inputs(operator)}
        made = {id(tensor): self._groups.made(tensor) for tensor in float_outputs(operator)}
        return grids, {key: grid for key, grid in made.items() if grid is not None}

    def _keep(self, operator: Operator) -> None:
        any_type = row_of(operator) in SHAPE_READERS
        for position, tensor in enumerate(operator.inputs):
            native = None if tensor is None else self._native.get(id(tensor))
            if tensor is not None and native is not None:
                operator.inputs[position] = self._form(tensor, native if any_type else None)
        self._operators.append(operator)

    def _convert(
        self, operator: Operator, grids: Mapping[int, Grid], outputs: Mapping[int, Grid], weight_of: WeightOf
    ) -> None:
        kernel, width = kernel_of(operator), self._modes.width(operator)
        assert width
        if kernel.scales is Scales.WEIGHTS:
            weight = weight_of(operator, row_of(operator).weights[0])
            self._convert_weights(operator, grids, next(iter(outputs.values())), weight)
        if kernel.memory is not None:
            self._convert_memory(operator, form_of(operator, self._groups), weight_of)
        for position, source in self._read(operator, grids):
            operator.inputs[position] = self._form(source, grids[position])
        for position, tensor in enumerate(operator.outputs):
            if tensor is None or id(tensor) not in outputs:
                continue
            grid, made = outputs[id(tensor)], tensor
            if id(tensor) in self._graph.exposed:
                # What others know by its name and type stays, and is converted to.
                made = self._like(tensor, grid)
                operator.outputs[position] = made
            else:
                made.dtype, made.quantization = dtypes.BY_NAME[grid.dtype].value, grid.quantization
                if made.buffer.blob is not None:
                    # What a file has for a tensor that is computed is of another type now.
                    made.buffer = self._editor.sentinel()
            self._native[id(tensor)], self._forms[id(tensor)] = grid, {grid: made}
        if width == 16 and kernel.general16 and operator.options is not None:
            operator.options = operator.options.replace(**{kernel.general16: False})
        self._editor.stamp(operator, kernel.version(width))
        self._operators.append(operator)

    def _simulate(self, operator: Operator, grids: Mapping[int, Grid], outputs: Mapping[int, Grid]) -> None:
        for position, source in self._read(operator, grids):
            integers = self._form(source, grids[position])
            if id(integers) not in self._real:
                self._real[id(integers)] = self._converted(integers, self._like(integers, None))
            operator.inputs[position] = self._real[id(integers)]
        self._operators.append(operator)
        for position, tensor in enumerate(operator.outputs):
            if tensor is None or id(tensor) not in outputs:
                continue
            grid = outputs[id(tensor)]
            raw = self._like(tensor, None)
            operator.outputs[position] = raw
            made = self._converted(raw, self._like(tensor, grid))
            self._native[id(tensor)], self._forms[id(tensor)] = grid, {grid: made}

    def _read(self, operator: Operator, grids: Mapping[int, Grid]) -> list[tuple[int, Tensor]]:
        inputs = enumerate(operator.inputs)
        return [(at, tensor) for at, tensor in inputs if tensor is not None and at in grids]

    def _form(self, tensor: Tensor, grid: Grid | None) -> Tensor:
        """Returns a tensor on a grid, or as floats; converts it where it is not there yet."""
        if grid is not None and self._graph.is_constant(tensor):
            return self._constant(tensor, grid)
        forms = self._forms.setdefault(id(tensor), {None: tensor})
        if grid not in forms:
            source = forms[self._native.get(id(tensor))]
            # What others know by its name and type keeps them.
            mine = grid is None and id(tensor) in self._graph.exposed
            forms[grid] = self._converted(source, tensor if mine else self._like(tensor, grid))
        return forms[grid]

    def _converted(self, source: Tensor, made: Tensor) -> Tensor:
        """Makes a tensor what an operator of its type gives of another one."""
        if not self._modes.target.changes(source.dtype_name, made.dtype_name):
            source = self._converted(source, self._like(source, None))
        self._operators.append(type_change(self._editor, source, made))
        self._conversions += 1
        return made

    def _like(self, tensor: Tensor, grid: Grid | None) -> Tensor:
        if grid is None:
            return self._editor.add_like(self._subgraph, tensor, "FLOAT32", suffix="float")
        return self._editor.add_like(self._subgraph, tensor, grid.dtype, grid.quantization)

    def _constant(self, tensor: Tensor, grid: Grid) -> Tensor:
        known = self._stored.get((id(tensor), grid))
        if known is None:
            values = constant_values(tensor, "FLOAT32")
            assert values is not None
            half = 1 << (grid.width - 1)
            levels = np.rint(values.astype(np.float64) / grid.scale) + grid.zero_point
            data = np.clip(levels, -half, half - 1).astype(f"<i{grid.width // 8}").tobytes()
            known = self._store(tensor.name, tensor.shape, grid.dtype, data, grid.quantization)
            self._stored[(id(tensor), grid)] = known
        return known

    def _store(
        self, name: str, shape: tuple[int, ...] | None, kind: str, data: bytes, quantization: Quantization
    ) -> Tensor:
        buffer = self._editor.constant(data)
        made = Tensor(name, shape, dtypes.BY_NAME[kind].value, buffer, quantization)
        return self._editor.add_tensor(self._subgraph, made)

    def _convert_weights(
        self, operator: Operator, grids: Mapping[int, Grid], made: Grid, weight: IntegerWeight
    ) -> None:
        row, width = row_of(operator), made.width
        at, bias_at = row.weights[0], row.biases[0]
        tensor, bias = operator.inputs[at], input_of(operator, bias_at)
        assert tensor is not None and row.activation is not None
        grid = grids[row.activation]
        values = None if bias is None else constant_values(bias, "FLOAT32")
        shape = tensor.shape or ()
        axis = row.output_axis(at, len(shape))
        assert axis is not None
        floats = np.zeros(shape[axis]) if values is None else values.astype(np.float64)
        if weight.bias is not None:
            floats = floats + weight.bias
        smallest = max(LEAST_STEP, made.scale * LEAST_MULTIPLIER, LEAST_SCALE * grid.scale)
        least = np.maximum(np.abs(floats) / LARGEST_BIAS[width], smallest) / grid.scale
        if weight.axis is None:
            least = least.max(keepdims=True)
        integers, scale = _regridded(_finer(weight, made.scale / grid.scale), least)
        # The bias goes by the scale: the same integers on another scale are another weight.
        key = id(tensor), integers.tobytes(), scale.tobytes()
        if key not in self._weights:
            symmetric = Quantization.symmetric(scale.astype("<f4").tobytes(), weight.axis or 0)
            self._weights[key] = self._store(tensor.name, tensor.shape, "INT8", key[1], symmetric)
        operator.inputs[at] = self._weights[key]
        self._replaced.add(id(tensor))
        if bias is None and weight.bias is None and row.product in _WITHOUT_BIAS:
            return
        step = grid.scale * scale.astype(np.float64)
        kind = "INT32" if width == 8 else "INT64"
        data = np.rint(floats / step).astype(dtypes.BY_NAME[kind].numpy).tobytes()
        name = bias.name if bias is not None else f"{tensor.name}_bias"
        symmetric = Quantization.symmetric(step.astype("<f4").tobytes(), 0)
        if bias is not None:
            self._replaced.add(id(bias))
        while len(operator.inputs) <= bias_at:
            operator.inputs.append(None)
        operator.inputs[bias_at] = self._store(name, (len(floats),), kind, data, symmetric)

    def _convert_memory(self, operator: Operator, form: MemoryForm, weight_of: WeightOf) -> None:
        """Gives an operator that keeps a state its constants, its states and its intermediates."""
        kernel = kernel_of(operator)
        weights = {position: weight_of(operator, position) for position in narrow_weights(operator)}
        known = {position: (item.values, float(item.scale[0])) for position, item in weights.items()}
        for position, (dtype, integers, step) in form.constants(known).items():
            tensor = operator.inputs[position]
            assert tensor is not None
            scale = np.asarray([step], "<f4").tobytes()
            key = id(tensor), integers.tobytes(), scale
            if key not in self._weights:
                details = Quantization.symmetric(scale, 0)
                self._weights[key] = self._store(tensor.name, tensor.shape, dtype, key[1], details)
            operator.inputs[position] = self._weights[key]
            self._replaced.add(id(tensor))
        if kernel.memory is not None and projection_clip(operator, kernel.memory) and operator.options:
            operator.options = operator.options.replace(**{kernel.memory.clip: 0.0})
        for position, grid in form.states().items():
            state = operator.inputs[position]
            assert state is not None
            state.dtype, state.quantization = dtypes.BY_NAME[grid.dtype].value, grid.quantization
        self._replaced |= {id(tensor) for tensor in operator.intermediates if tensor is not None}
        name = next(tensor.name for tensor in operator.outputs if tensor is not None)
        operator.intermediates[:] = [
            self._editor.add_tensor(
                self._subgraph,
                Tensor(
                    f"{name}_intermediate{at}",
                    (0,),
                    dtypes.BY_NAME[grid.dtype].value,
                    self._editor.sentinel(),
                    grid.quantization,
                ),
            )
            for at, grid in enumerate(form.intermediates())
        ]


def _finer(weight: IntegerWeight, most: float) -> IntegerWeight:
    """Puts channels of zeros on finer grids than the coarsest one that is given: theirs may be any."""
    over = tuple(at for at in range(weight.values.ndim) if at != weight.axis)
    coarse = ~weight.values.any(axis=over) & (weight.scale.astype(np.float64) > most)
    if not coarse.any():
        return weight
    return replace(weight, scale=np.where(coarse, np.float32(max(most, LEAST_SCALE)), weight.scale))


def _regridded(weight: IntegerWeight, least: Float64) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Puts channels on coarser grids whose scale is below the least one that is given."""
    old = weight.scale.astype(np.float64)
    raised = np.maximum(old, least)
    if not (raised > old * (1 + 1e-6)).any():
        return weight.values, weight.scale
    wide = raised.astype(np.float32)
    shape = [1] * weight.values.ndim
    if weight.axis is not None:
        shape[weight.axis] = -1
    return np.rint(weight.values * (old / wide).reshape(shape)).astype(np.int8), wide


def type_change(editor: Editor, source: Tensor, made: Tensor) -> Operator:
    """Returns an operator that turns a tensor into another type, or onto another grid."""
    row = DEQUANTIZE if made.dtype == dtypes.FLOAT32.value else QUANTIZE
    version = TYPE_CHANGES[source.dtype_name, made.dtype_name].version
    return editor.plain(row, version, [source], made)
