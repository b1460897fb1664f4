"""Models that compute in integers made to compute in floats again: float kernels, dequantized constants.

What an integer kernel computes is a float kernel on what its integers stand for, rounded, and cut off at the
ends of the output's range. Rounding goes. A range that ends at 0 or 6 often is all that is left of a RELU or
RELU6, so those come back. QUANTIZE and DEQUANTIZE go where both sides are floats then.
"""

from __future__ import annotations

from dataclasses import field

import numpy as np
import numpy.typing as npt

from tfl_rewrite.editing.editor import Editor
from tfl_rewrite.integers.reals import (
    FLOAT,
    computes_integers,
    float_obstacle,
    is_quantized,
    is_stored,
    real_values,
)
from tfl_rewrite.kernels.integer import Scales
from tfl_rewrite.kernels.operands import input_of, scales_of
from tfl_rewrite.kernels.operators import OperatorRow
from tfl_rewrite.kernels.reads import needed_version
from tfl_rewrite.kernels.table import (
    DEQUANTIZE,
    QUANTIZE,
    RELU,
    RELU6,
    SHAPE_READERS,
    row_of,
)
from tfl_rewrite.model import dtypes
from tfl_rewrite.model.graph import Graph
from tfl_rewrite.model.ir import Model, Operator, Quantization, SubGraph, Tensor, schema
from tfl_rewrite.options.frozen import slotted

_NEAR = 0.01
"""Share by which the end of a range may miss 6."""

Float64 = npt.NDArray[np.float64]


@slotted
class Floated:
    """What became of a model.

    Attributes:
        operators: Those that compute in floats now, in order.
        reasons: Why others go on computing in integers, by id.
        gone: QUANTIZE and DEQUANTIZE operators that are not needed any more.
        made: Those that were put in.
        clamps: Operators whose output is cut off at 0, or 0 and 6, as its range was.
        border: Inputs and outputs that are floats now.
    """

    operators: list[Operator] = field(default_factory=list)
    reasons: dict[int, str] = field(default_factory=dict)
    gone: int = 0
    made: int = 0
    clamps: int = 0
    border: list[Tensor] = field(default_factory=list)

    def notes(self) -> list[str]:
        """What to tell the user."""
        told = f"{self.gone} QUANTIZE and DEQUANTIZE operator(s) gone, {self.made} put in"
        clamps = f"{self.clamps} output(s) cut off by RELU or RELU6, as the ends of their ranges did"
        names = ", ".join(repr(tensor.name) for tensor in self.border[:5])
        more = f" and {len(self.border) - 5} more" if len(self.border) > 5 else ""
        border = f"float32 at the border: {names}{more}"
        return [told, *([clamps] if self.clamps else []), *([border] if self.border else [])]


def make_floats(model: Model, editor: Editor) -> Floated:
    """Makes the operators of a model that compute in integers compute in floats, and its border floats.

    Args:
        model: Changed in place.
        editor: Of the model; :meth:`Editor.finish` is left to the caller.
    """
    graph, done = Graph.of(model), Floated()
    called = model.called
    for subgraph in model.subgraphs:
        chosen: set[int] = set()
        for operator in subgraph.operators:
            if not computes_integers(operator, graph) or row_of(operator) in SHAPE_READERS:
                continue
            why = float_obstacle(operator, graph)
            if why:
                done.reasons[id(operator)] = why
            else:
                chosen.add(id(operator))
        if chosen:
            _Floating(subgraph, graph, chosen, editor, done, entered=id(subgraph) not in called).run()
    return done


class _Floating:
    """Makes operators of one subgraph compute in floats.

    Args:
        subgraph: Changed in place.
        graph: Of its model, as it was.
        chosen: The operators, by id.
        editor: Makes the edits.
        done: Is told what became of the model.
        entered: Whether callers alone run the subgraph: its inputs and outputs become floats then.
    """

    def __init__(
        self,
        subgraph: SubGraph,
        graph: Graph,
        chosen: set[int],
        editor: Editor,
        done: Floated,
        *,
        entered: bool,
    ) -> None:
        self._subgraph = subgraph
        self._graph = graph
        self._chosen = chosen
        self._editor = editor
        self._done = done
        self._entered = entered
        # By id of a tensor that stood for real values: what it was, and what holds it as floats, as integers.
        self._was: dict[int, tuple[str, Quantization | None]] = {}
        self._floats: dict[int, Tensor] = {}
        self._integers: dict[int, Tensor] = {}
        self._constants: dict[tuple[int, bytes], Tensor] = {}
        # By id of a tensor: the one that takes its place.
        self._renamed: dict[int, Tensor] = {}
        self._replaced: dict[int, Tensor] = {}
        self._operators: list[Operator] = []

    def run(self) -> None:
        """Rewrites the operators, in order."""
        subgraph = self._subgraph
        states = {
            id(tensor)
            for operator in subgraph.operators
            for tensor in operator.inputs
            if id(operator) in self._chosen and tensor is not None and tensor.is_variable
        }
        for tensor in subgraph.tensors:
            if is_quantized(tensor, self._graph):
                self._was[id(tensor)] = tensor.dtype_name, tensor.quantization
        given = set(map(id, subgraph.inputs)) if self._entered else set()
        for tensor in subgraph.tensors:
            if id(tensor) in self._was and id(tensor) in given | states:
                self._give(tensor)
        for operator in list(subgraph.operators):
            if id(operator) not in self._chosen:
                self._keep(operator)
            elif row_of(operator) in (QUANTIZE, DEQUANTIZE):
                self._drop(operator)
            else:
                self._float(operator)
        subgraph.operators[:] = self._operators
        self._rename()

    def _give(self, tensor: Tensor) -> Tensor:
        """Makes a tensor floats in place; returns it."""
        tensor.dtype, tensor.quantization = FLOAT, None
        self._floats[id(tensor)] = tensor
        if id(tensor) in self._graph.exposed:
            self._done.border.append(tensor)
        return tensor

    def _float(self, operator: Operator) -> None:
        clamp = self._clamp(operator)
        steps = self._bias_steps(operator)
        for position, tensor in enumerate(operator.inputs):
            if tensor is None:
                continue
            if id(tensor) in self._was:
                operator.inputs[position] = self._float_form(tensor)
            elif self._graph.is_constant(tensor) and (
                position in steps or is_stored(tensor, wide=position in row_of(operator).biases)
            ):
                operator.inputs[position] = self._constant(tensor, steps.get(position))
        if clamp is not None:
            number = schema().enums["ActivationFunctionType"].values[clamp.name]
            self._editor.set_option(operator, "fused_activation_function", number)
            self._done.clamps += 1
        # Float kernels name no tensors for what lies between.
        self._replaced.update((id(item), item) for item in operator.intermediates if item is not None)
        operator.intermediates.clear()
        if operator.option("quantized_bias_type"):
            self._editor.set_option(operator, "quantized_bias_type", 0)
        self._operators.append(operator)
        for position, tensor in enumerate(operator.outputs):
            if tensor is not None and id(tensor) in self._was:
                operator.outputs[position] = self._output(tensor)
        version = needed_version(operator)
        if version is not None:
            self._editor.stamp(operator, version, exact=True)
        self._done.operators.append(operator)

    def _output(self, tensor: Tensor) -> Tensor:
        """Returns what an operator gives in place of integers; what others read as such is made of it."""
        if self._entered or id(tensor) not in self._graph.exposed:
            return self._give(tensor)
        made = self._floats[id(tensor)] = self._like(tensor, "float", "FLOAT32", None)
        self._integers[id(tensor)] = tensor
        self._convert(QUANTIZE, made, tensor)
        return made

    def _keep(self, operator: Operator) -> None:
        """Lets an operator read and give integers."""
        for position, tensor in enumerate(operator.inputs):
            converted = tensor is not None and id(tensor) in self._was and id(tensor) in self._floats
            if tensor is not None and converted and row_of(operator) not in SHAPE_READERS:
                operator.inputs[position] = self._integer_form(tensor)
        self._operators.append(operator)
        for position, tensor in enumerate(operator.outputs):
            if tensor is None or id(tensor) not in self._was:
                continue
            self._integers[id(tensor)] = tensor
            if self._entered and id(tensor) in self._graph.exposed:
                made = self._like(tensor, "integers", *self._was[id(tensor)])
                self._integers[id(tensor)] = operator.outputs[position] = made
                self._convert(DEQUANTIZE, made, self._give(tensor))

    def _drop(self, operator: Operator) -> None:
        """Takes a QUANTIZE or DEQUANTIZE away, or puts what the range cut off in its place."""
        clamp = self._clamp(operator)
        source, output = operator.inputs[0], operator.outputs[0]
        assert source is not None and output is not None
        floats = self._float_form(source) if id(source) in self._was else source
        self._done.gone += 1
        self._editor.removed()
        if clamp is not None:
            made = self._output(output) if id(output) in self._was else output
            self._operators.insert(
                len(self._operators) - (made is not output), self._editor.plain(clamp, 1, [floats], made)
            )
            self._done.clamps += 1
            return
        if id(output) not in self._graph.exposed:
            self._floats[id(output)], self._renamed[id(output)] = floats, floats
            self._replaced[id(output)] = output
            return
        if id(output) in self._was and not self._entered:
            self._integers[id(output)], self._floats[id(output)] = output, floats
            self._convert(QUANTIZE, floats, output)
            return
        known = self._was.get(id(output)) or self._was[id(source)]
        if id(output) in self._was:
            self._give(output)
        if id(self._final(floats)) in self._graph.exposed:
            # From an input, or another output: that stays a copy.
            made = self._like(output, "integers", *known)
            self._convert(QUANTIZE, floats, made)
            self._convert(DEQUANTIZE, made, output)
            return
        # What callers know by its name is what the operator before gives then.
        self._renamed[id(floats)], self._replaced[id(floats)] = output, floats

    def _clamp(self, operator: Operator) -> OperatorRow | None:
        """Returns what cuts off an output as the lower end of its range did, and the upper one where it is 6.

        Only where the operator has an activation function that does nothing, or a QUANTIZE that reads what
        reaches further.
        """
        output, row = operator.outputs[0], row_of(operator)
        if output is None or id(output) not in self._was:
            return None
        low, high = self._range(output)
        if low != 0:
            return None
        if row is QUANTIZE:
            source = operator.inputs[0]
            assert source is not None
            if id(source) in self._was:
                reaches = self._range(source)[0] < 0
            else:
                reaches = self._graph.maker_of(source) is not None
        else:
            copies = row.integer is not None and row.integer.scales is Scales.SAME
            reaches = operator.option("fused_activation_function") == 0 and not copies
        return (RELU6 if abs(high - 6) < 6 * _NEAR else RELU) if reaches else None

    def _range(self, tensor: Tensor) -> tuple[float, float]:
        """Returns the ends of the range of what a tensor was."""
        kind, details = self._was[id(tensor)]
        assert details is not None and details.scale is not None
        bounds = np.iinfo(dtypes.BY_NAME[kind].numpy)
        scale, zero = float(details.scale.tolist()[0]), next(iter(details.zero_point or ()), 0)
        return (bounds.min - zero) * scale, (bounds.max - zero) * scale

    def _bias_steps(self, operator: Operator) -> dict[int, Float64]:
        """Returns a step of each bias as the kernel has it: that of the input times that of the weight."""
        row = row_of(operator)
        if row.integer is None or row.integer.scales is not Scales.WEIGHTS:
            return {}
        source, weight = input_of(operator, row.activation), input_of(operator, row.weights[0])
        if source is None or weight is None or id(source) not in self._was:
            return {}
        _, details = self._was[id(source)]
        assert details is not None and details.scale is not None
        return {row.biases[0]: float(details.scale.tolist()[0]) * np.array(scales_of(weight))}

    def _constant(self, tensor: Tensor, steps: Float64 | None) -> Tensor:
        key = id(tensor), b"" if steps is None else steps.tobytes()
        if key not in self._constants:
            values = real_values(tensor) if steps is None else (tensor.values * steps).astype(np.float32)
            assert values is not None
            buffer = self._editor.constant(np.ascontiguousarray(values, "<f4").tobytes())
            made = Tensor(tensor.name, tensor.shape, FLOAT, buffer)
            self._constants[key] = self._editor.add_tensor(self._subgraph, made)
            self._replaced[id(tensor)] = tensor
        return self._constants[key]

    def _float_form(self, tensor: Tensor) -> Tensor:
        """Returns a tensor as floats; what an operator that stays gives is converted."""
        if id(tensor) not in self._floats:
            made = self._floats[id(tensor)] = self._like(tensor, "float", "FLOAT32", None)
            self._convert(DEQUANTIZE, tensor, made)
        return self._floats[id(tensor)]

    def _integer_form(self, tensor: Tensor) -> Tensor:
        """Returns a tensor as the integers that it was."""
        if id(tensor) not in self._integers:
            made = self._integers[id(tensor)] = self._like(tensor, "integers", *self._was[id(tensor)])
            self._convert(QUANTIZE, self._floats[id(tensor)], made)
        return self._integers[id(tensor)]

    def _convert(self, row: OperatorRow, source: Tensor, made: Tensor) -> None:
        version = needed_version(self._editor.plain(row, 1, [source], made)) or 1
        self._operators.append(self._editor.plain(row, version, [source], made))
        self._done.made += 1

    def _like(self, tensor: Tensor, suffix: str, kind: str, details: Quantization | None) -> Tensor:
        return self._editor.add_like(self._subgraph, tensor, kind, details, suffix)

    def _rename(self) -> None:
        """Lets tensors take the place of others, and removes what nothing refers to any more."""
        subgraph = self._subgraph
        for operator in subgraph.operators:
            for items in (operator.inputs, operator.outputs):
                items[:] = [None if item is None else self._final(item) for item in items]
        self._editor.drop_unused(subgraph, self._replaced.values(), self._graph.exposed)

    def _final(self, tensor: Tensor) -> Tensor:
        while id(tensor) in self._renamed:
            tensor = self._renamed[id(tensor)]
        return tensor
