"""Which operators of a graph compute in integers, and why the others do not."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from tfl_rewrite.integers.patterns import masked_by, normed_by
from tfl_rewrite.kernels.integer import Caveat, IntegerKernel, Scales
from tfl_rewrite.kernels.operands import input_of
from tfl_rewrite.kernels.operators import Squash
from tfl_rewrite.kernels.table import SHAPE_READERS, row_of
from tfl_rewrite.model import dtypes
from tfl_rewrite.model.ir import Model, Operator, SubGraph, Tensor

_FLOAT = dtypes.FLOAT32.value
_WIDE_RATIO = 1e3


def float_inputs(operator: Operator) -> Iterator[tuple[int, Tensor]]:
    """Yields the inputs that become integers as activations do: all floats but weights and biases."""
    weighted = _kernel(operator).scales is Scales.WEIGHTS
    row = row_of(operator)
    for position, tensor in enumerate(operator.inputs):
        if tensor is None or tensor.dtype != _FLOAT:
            continue
        if not (weighted and (position in row.weights or position in row.biases)):
            yield position, tensor


def float_outputs(operator: Operator) -> Iterator[Tensor]:
    """Yields the outputs that become integers."""
    return (tensor for tensor in operator.outputs if tensor is not None and tensor.dtype == _FLOAT)


def _kernel(operator: Operator) -> IntegerKernel:
    kernel = row_of(operator).integer
    assert kernel is not None
    return kernel


@dataclass(slots=True)
class Modes:
    """The widths of operators.

    Attributes:
        widths: By id, 8 or 16; an operator that is not among them stays float.
        reasons: By id, why an operator stays float.
    """

    widths: dict[int, int] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)

    def width(self, operator: Operator) -> int | None:
        """Returns the bits of an operator's activations; None where it stays float."""
        return self.widths.get(id(operator))

    def kernel(self, operator: Operator) -> IntegerKernel:
        """Returns the integer kernel of an operator that has one."""
        return _kernel(operator)

    def input_width(self, operator: Operator, position: int) -> int:
        """Returns the bits in which an operator reads an input."""
        width = self.widths[id(operator)]
        return 8 if position == 1 and Caveat.ALPHA_8_BITS in _kernel(operator).caveats else width

    def keep_float(self, operator: Operator, reason: str) -> None:
        """Takes an operator out."""
        self.widths.pop(id(operator), None)
        self.reasons[id(operator)] = reason


def decide(
    model: Model,
    subgraphs: list[SubGraph],
    wanted: Callable[[Operator], int | None],
    ranges: Mapping[int, tuple[float, float]],
) -> Modes:
    """Decides which operators compute in integers.

    Args:
        model: All weights float.
        subgraphs: Those that samples were run through.
        wanted: The bits that an operator should have; None for floats, as the user says.
        ranges: By id of the tensors that were seen.
    """
    modes = Modes()
    inside = set(map(id, subgraphs))
    for subgraph, operator in model.operators():
        if not _has_floats(operator) or row_of(operator) in SHAPE_READERS:
            continue
        if id(subgraph) not in inside:
            modes.reasons[id(operator)] = "no sample runs its subgraph as an entry point"
            continue
        width = wanted(operator)
        if width is None:
            modes.reasons[id(operator)] = "kept, as asked"
            continue
        reason = _obstacle(operator, ranges)
        if reason is not None:
            modes.reasons[id(operator)] = reason
            continue
        # What has no kernel of 16 bits is better off with one of 8 bits than with floats.
        modes.widths[id(operator)] = width if _kernel(operator).version(width) else 8
    for subgraph in subgraphs:
        _keep_patterns(subgraph, modes, ranges)
    return modes


def _keep_patterns(subgraph: SubGraph, modes: Modes, ranges: Mapping[int, tuple[float, float]]) -> None:
    """Keeps float what stands around an operator that integers ruin, and would be ruined with it."""
    for operator in list(subgraph.operators):
        if row_of(operator).integer is None or id(operator) not in modes.reasons:
            continue
        if Caveat.NARROW_RANGE in _kernel(operator).caveats and _is_wide(operator, ranges):
            for near in normed_by(subgraph, operator):
                if modes.width(near):
                    modes.keep_float(near, "it is part of a norm whose deviations span orders of magnitude")
        if row_of(operator).squashes is Squash.ROWS:
            for near in masked_by(subgraph, operator, ranges, -_WIDE_RATIO):
                if modes.width(near):
                    modes.keep_float(near, "what it gives holds a mask that a softmax reads")


def _is_wide(operator: Operator, ranges: Mapping[int, tuple[float, float]]) -> bool:
    low, high = ranges.get(id(operator.inputs[0]), (1.0, 1.0))
    return low <= 0 or high / low > _WIDE_RATIO


def could_compute(operator: Operator) -> bool:
    """Whether an operator has an integer kernel and computes in floats."""
    if row_of(operator).integer is None:
        return False
    return any(
        tensor is not None and tensor.dtype == _FLOAT for tensor in operator.inputs[:3]
    ) and _has_floats(operator)


def _has_floats(operator: Operator) -> bool:
    return any(
        tensor is not None and tensor.dtype == _FLOAT for tensor in (*operator.inputs, *operator.outputs)
    )


def _obstacle(operator: Operator, ranges: Mapping[int, tuple[float, float]]) -> str | None:
    """Returns why an operator cannot compute in integers, or None."""
    name = operator.code.name
    if row_of(operator).integer is None:
        return f"{name} has no integer kernel"
    kernel, row = _kernel(operator), row_of(operator)
    if Caveat.REFERENCE_WRONG in kernel.caveats:
        return f"the integer kernels of {name} disagree"
    if Caveat.REFERENCE_ABSENT in kernel.caveats:
        return f"the reference resolver has no integer kernel of {name}"
    tensors = [tensor for tensor in (*operator.inputs, *operator.outputs) if tensor is not None]
    if any(tensor.is_variable for tensor in tensors):
        return f"{name} keeps a state"
    if kernel.scales is Scales.WEIGHTS:
        weight = input_of(operator, row.weights[0])
        if weight is None or not _plain_constant(weight):
            return f"the weight of {name} is no float32 constant"
        if any(
            (bias := input_of(operator, at)) is not None and not _plain_constant(bias) for at in row.biases
        ):
            return f"the bias of {name} is no float32 constant"
        if operator.option("weights_format"):
            return f"{name} holds its weights in a shuffled format"
    inputs, outputs = list(float_inputs(operator)), list(float_outputs(operator))
    if not inputs:
        return f"{name} reads no floats"
    for tensor in (*(tensor for _, tensor in inputs), *outputs):
        seen = ranges.get(id(tensor))
        if seen is None:
            return f"no sample says what {tensor.name!r} holds"
        if not all(map(math.isfinite, seen)):
            return f"{tensor.name!r} is not finite"
    if row.squashes is Squash.ROWS and ranges[id(inputs[0][1])][0] < -_WIDE_RATIO:
        return f"{name} reads a mask: its values span too many orders of magnitude"
    if Caveat.NARROW_RANGE in kernel.caveats and _is_wide(operator, ranges):
        return f"what {name} reads spans too many orders of magnitude"
    return None


def _plain_constant(tensor: Tensor) -> bool:
    return tensor.dtype == _FLOAT and tensor.is_constant and not tensor.is_sparse and tensor.external is None
