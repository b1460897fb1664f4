"""Turns the operators of a graph into their integer forms, with conversions where types or grids meet."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tfl_rewrite.editing.editor import Editor
from tfl_rewrite.flatbuf.record import ScalarVector
from tfl_rewrite.flatbuf.schema import FLOAT32, INT64
from tfl_rewrite.integers.groups import Grid, Groups
from tfl_rewrite.integers.modes import Modes, float_inputs, float_outputs
from tfl_rewrite.kernels.integer import Scales
from tfl_rewrite.kernels.operands import constant_values, input_of
from tfl_rewrite.kernels.operators import ProductKind
from tfl_rewrite.kernels.table import DEQUANTIZE, QUANTIZE, SHAPE_READERS, row_of
from tfl_rewrite.model import dtypes
from tfl_rewrite.model.ir import Operator, Quantization, SubGraph, Tensor

_FLOAT = dtypes.FLOAT32.value
Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class IntegerWeight:
    """A weight of an operator as integers.

    Attributes:
        values: Int8, in the shape of the weight.
        scale: Float32 ``[channels]``.
        axis: Over which the channels lie.
        bias: What is to be added to the bias, ``[channels]``; None for nothing.
    """

    values: npt.NDArray[np.int8]
    scale: npt.NDArray[np.float32]
    axis: int
    bias: Float64 | None = None


_WITHOUT_BIAS = (ProductKind.DENSE, ProductKind.TRANSPOSED)
"""What needs no bias; the integer kernels of convolutions do."""

_LEAST_STEP = 2.0**-100

WeightOf = Callable[[Operator], IntegerWeight]


class Conversion:
    """Converts one subgraph.

    Args:
        subgraph: Changed in place.
        modes: Which operators compute in integers.
        groups: On which grids.
        weight_of: Makes the integers of a weight; not needed where that is simulated.
        editor: Makes the edits.
        simulated: Whether operators stay float and read what the integers stand for: nearly what the integer
            kernels compute, with weights as they were.
    """

    def __init__(
        self,
        subgraph: SubGraph,
        modes: Modes,
        groups: Groups,
        weight_of: WeightOf | None,
        editor: Editor,
        *,
        simulated: bool = False,
    ) -> None:
        self._subgraph = subgraph
        self._modes = modes
        self._groups = groups
        self._weight_of = weight_of
        self._editor = editor
        self._simulated = simulated
        self._real: dict[int, Tensor] = {}
        self._forms: dict[int, dict[Grid | None, Tensor]] = {}
        self._native: dict[int, Grid | None] = {}
        self._operators: list[Operator] = []
        self._stored: dict[tuple[int, Grid], Tensor] = {}
        self._weights: dict[tuple[int, bytes], Tensor] = {}
        self._replaced: set[int] = set()
        self._conversions = 0

    def run(self) -> int:
        """Rewrites the operators, in order; conversions stand before their first reader.

        Returns:
            How many conversions there are.
        """
        subgraph = self._subgraph
        exposed = set(map(id, subgraph.outputs))
        plans = [(operator, self._planned(operator)) for operator in subgraph.operators]
        for tensor in subgraph.inputs:
            self._native[id(tensor)] = None
            self._forms[id(tensor)] = {None: tensor}
        for operator, planned in plans:
            if planned is None:
                self._keep(operator)
                continue
            grids, outputs = planned
            self._convert(operator, grids, outputs, exposed)
        for tensor in subgraph.outputs:
            if id(tensor) in self._native:
                self._form(tensor, None)
        subgraph.operators[:] = self._operators
        self._drop_replaced()
        return self._conversions

    def _drop_replaced(self) -> None:
        """Removes the float constants that nothing reads any more."""
        subgraph, gone = self._subgraph, {key for key, _ in self._stored} | self._replaced
        read = {id(item) for operator in subgraph.operators for item in (*operator.inputs, *operator.outputs)}
        read |= set(map(id, (*subgraph.inputs, *subgraph.outputs)))
        dropped = [item for item in subgraph.tensors if id(item) in gone and id(item) not in read]
        subgraph.tensors = [item for item in subgraph.tensors if id(item) not in gone or id(item) in read]
        self._editor.release(*(item.buffer for item in dropped))
        self._editor.removed()

    def _planned(self, operator: Operator) -> tuple[dict[int, Grid], dict[int, Grid]] | None:
        if self._modes.width(operator) is None:
            return None
        grids = {position: self._groups.given(operator, position) for position, _ in float_inputs(operator)}
        outputs = {}
        for tensor in float_outputs(operator):
            grid = self._groups.made(tensor)
            assert grid is not None
            outputs[id(tensor)] = grid
        return grids, outputs

    def _keep(self, operator: Operator) -> None:
        typeless = row_of(operator) in SHAPE_READERS
        for position, tensor in enumerate(operator.inputs):
            native = None if tensor is None else self._native.get(id(tensor))
            if tensor is not None and native is not None:
                operator.inputs[position] = self._form(tensor, native if typeless else None)
        self._operators.append(operator)

    def _convert(
        self, operator: Operator, grids: Mapping[int, Grid], outputs: Mapping[int, Grid], exposed: set[int]
    ) -> None:
        if self._simulated:
            self._simulate(operator, grids, outputs)
            return
        kernel, width = self._modes.kernel(operator), self._modes.width(operator)
        assert width
        if kernel.scales is Scales.WEIGHTS:
            self._convert_weights(operator, grids)
        for position, grid in grids.items():
            tensor = operator.inputs[position]
            assert tensor is not None
            operator.inputs[position] = self._form(tensor, grid)
        for position, tensor in enumerate(operator.outputs):
            if tensor is None or id(tensor) not in outputs:
                continue
            grid = outputs[id(tensor)]
            self._native[id(tensor)] = grid
            if id(tensor) in exposed:
                made = self._like(tensor, grid)
                operator.outputs[position] = made
            else:
                made = tensor
                made.dtype, made.quantization = dtypes.BY_NAME[grid.dtype].value, quantization_of(grid)
            self._forms[id(tensor)] = {grid: made}
        self._editor.stamp(operator, kernel.version(width))
        self._operators.append(operator)

    def _simulate(self, operator: Operator, grids: Mapping[int, Grid], outputs: Mapping[int, Grid]) -> None:
        for position, grid in grids.items():
            tensor = operator.inputs[position]
            assert tensor is not None
            operator.inputs[position] = self._dequantized(self._form(tensor, grid), grid)
        self._operators.append(operator)
        for position, tensor in enumerate(operator.outputs):
            if tensor is None or id(tensor) not in outputs:
                continue
            grid = outputs[id(tensor)]
            raw = operator.outputs[position] = self._like(tensor, None)
            made = self._like(tensor, grid)
            version = 1 if grid.width == 8 else 2
            self._operators.append(self._editor.plain(QUANTIZE, version, [raw], made))
            self._native[id(tensor)], self._forms[id(tensor)] = grid, {grid: made}

    def _dequantized(self, integers: Tensor, grid: Grid) -> Tensor:
        known = self._real.get(id(integers))
        if known is None:
            known = self._real[id(integers)] = self._like(integers, None)
            version = 2 if grid.width == 8 else 3
            self._operators.append(self._editor.plain(DEQUANTIZE, version, [integers], known))
        return known

    def _form(self, tensor: Tensor, grid: Grid | None) -> Tensor:
        """Returns a tensor on a grid, or as floats; converts it where it is not there yet."""
        if tensor.is_constant and tensor.dtype == _FLOAT:
            assert grid is not None
            return self._constant(tensor, grid)
        forms = self._forms.setdefault(id(tensor), {None: tensor})
        if grid in forms:
            return forms[grid]
        native = self._native.get(id(tensor))
        source = forms[native]
        if grid is None:
            # What the subgraph gives out keeps its name.
            mine = any(item is tensor for item in self._subgraph.outputs)
            made = tensor if mine and source is not tensor else self._like(tensor, None)
            row, version = DEQUANTIZE, 2 if native is not None and native.width == 8 else 3
        else:
            made = self._like(tensor, grid)
            row, version = QUANTIZE, 1 if grid.width == 8 and native is None else 2
        self._operators.append(self._editor.plain(row, version, [source], made))
        self._conversions += 1
        forms[grid] = made
        return made

    def _like(self, tensor: Tensor, grid: Grid | None) -> Tensor:
        kind = "FLOAT32" if grid is None else grid.dtype
        made = Tensor(
            f"{tensor.name}_{'float' if grid is None else kind.lower()}",
            tensor.shape,
            dtypes.BY_NAME[kind].value,
            self._editor.sentinel(),
            None if grid is None else quantization_of(grid),
            signature=tensor.signature,
        )
        return self._editor.add_tensor(self._subgraph, made)

    def _constant(self, tensor: Tensor, grid: Grid) -> Tensor:
        known = self._stored.get((id(tensor), grid))
        if known is None:
            values = constant_values(tensor, "FLOAT32")
            assert values is not None
            half = 1 << (grid.width - 1)
            levels = np.clip(
                np.rint(values.astype(np.float64) / grid.scale) + grid.zero_point, -half, half - 1
            )
            data = levels.astype(f"<i{grid.width // 8}").tobytes()
            known = Tensor(
                tensor.name,
                tensor.shape,
                dtypes.BY_NAME[grid.dtype].value,
                self._editor.constant(data),
                quantization_of(grid),
            )
            self._stored[(id(tensor), grid)] = self._editor.add_tensor(self._subgraph, known)
        return known

    def _convert_weights(self, operator: Operator, grids: Mapping[int, Grid]) -> None:
        row, width = row_of(operator), self._modes.width(operator)
        (grid,) = grids.values()
        at = row.weights[0]
        tensor = operator.inputs[at]
        assert tensor is not None
        assert self._weight_of is not None
        weight = self._weight_of(operator)
        bias_at = row.biases[0]
        bias = input_of(operator, bias_at)
        values = None if bias is None else constant_values(bias, "FLOAT32")
        floats = np.zeros(len(weight.scale)) if values is None else values.astype(np.float64)
        if weight.bias is not None:
            floats = floats + weight.bias
        integers, scale = weight.values, weight.scale
        step = grid.scale * scale.astype(np.float64)
        limit = 2.0**30 if width == 8 else 2.0**46
        # A bias has to fit, and its scale to be a normal number: XNNPACK refuses the whole file otherwise.
        least = np.maximum(np.abs(floats) / limit, _LEAST_STEP) / grid.scale
        raised = np.maximum(scale.astype(np.float64), least)
        if (raised > scale.astype(np.float64) * (1 + 1e-6)).any():
            integers, scale = _regridded(integers, scale, raised, weight.axis)
            step = grid.scale * scale.astype(np.float64)
        key = (id(tensor), integers.tobytes())
        if key not in self._weights:
            made = Tensor(
                tensor.name,
                tensor.shape,
                dtypes.BY_NAME["INT8"].value,
                self._editor.constant(integers.tobytes()),
                Quantization.symmetric(scale.astype("<f4").tobytes(), weight.axis),
            )
            self._weights[key] = self._editor.add_tensor(self._subgraph, made)
        operator.inputs[at] = self._weights[key]
        self._replaced.add(id(tensor))
        if bias is None and weight.bias is None and row.product in _WITHOUT_BIAS:
            return
        kind = "INT32" if width == 8 else "INT64"
        data = np.rint(floats / step).astype("<i4" if width == 8 else "<i8").tobytes()
        quantization = Quantization.symmetric(step.astype("<f4").tobytes(), 0)
        name = bias.name if bias is not None else f"{tensor.name}_bias"
        added = Tensor(
            name, (len(scale),), dtypes.BY_NAME[kind].value, self._editor.constant(data), quantization
        )
        if bias is not None:
            self._replaced.add(id(bias))
        while len(operator.inputs) <= bias_at:
            operator.inputs.append(None)
        operator.inputs[bias_at] = self._editor.add_tensor(self._subgraph, added)


def _regridded(
    integers: npt.NDArray[np.int8], scale: npt.NDArray[np.float32], raised: Float64, axis: int
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Puts channels whose bias would not fit on coarser grids."""
    wide = raised.astype(np.float32)
    shape = [1] * integers.ndim
    shape[axis] = -1
    ratio = (scale.astype(np.float64) / wide).reshape(shape)
    return np.rint(integers * ratio).astype(np.int8), wide


def quantization_of(grid: Grid) -> Quantization:
    """Returns the quantization of an activation."""
    scale = np.asarray([grid.scale], "<f4").tobytes()
    zero = np.asarray([grid.zero_point], "<i8").tobytes()
    return Quantization(ScalarVector(FLOAT32, scale), ScalarVector(INT64, zero), 0)
