"""Which operators of a graph compute in integers, and why the others do not."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import field

import numpy as np

from tfl_rewrite.kernels.integer import (
    CELL_SCALES,
    OUTPUT,
    Caveat,
    IntegerKernel,
    Memory,
    Scales,
    Target,
)
from tfl_rewrite.kernels.operands import constant_values, input_of, uncomputed_memory, wrong_operands
from tfl_rewrite.kernels.operators import Squash
from tfl_rewrite.kernels.reads import micro_refuses
from tfl_rewrite.kernels.table import (
    CONVERSIONS,
    NORM_APPLICATION,
    NORM_DEVIATION,
    NORM_STATISTICS,
    RESIDUAL,
    SHAPE_READERS,
    row_of,
)
from tfl_rewrite.model import dtypes
from tfl_rewrite.model.graph import Graph
from tfl_rewrite.model.ir import Model, Operator, SubGraph, Tensor
from tfl_rewrite.options.frozen import slotted

Range = tuple[float, float]
"""Least and greatest value of a tensor."""

_FLOAT = dtypes.FLOAT32.value
_WIDE_RATIO = 1e3
_LARGEST = 2.0**100
"""Kernels multiply scales as float32: beyond this some end the process (measured at 2^128)."""

_LEAST_DIVISOR = 1 / 16
"""Of the largest one: then 8 bits have sixteen steps below the least that was seen."""


def kernel_of(operator: Operator) -> IntegerKernel:
    """Returns the integer kernel of an operator that has one."""
    kernel = row_of(operator).integer
    assert kernel is not None
    return kernel


def float_inputs(operator: Operator) -> Iterator[tuple[int, Tensor]]:
    """Yields the inputs that become integers as activations do: all floats but weights and biases."""
    row, kernel = row_of(operator), kernel_of(operator)
    weighted = kernel.scales is Scales.WEIGHTS
    for position, tensor in enumerate(operator.inputs):
        if tensor is None or tensor.dtype != _FLOAT:
            continue
        if kernel.memory is not None and position != row.activation:
            continue
        if not (weighted and (position in row.weights or position in row.biases)):
            yield position, tensor


def float_outputs(operator: Operator) -> Iterator[Tensor]:
    """Yields the outputs that become integers."""
    return (tensor for tensor in operator.outputs if tensor is not None and tensor.dtype == _FLOAT)


def could_compute(operator: Operator) -> bool:
    """Whether an operator has an integer kernel and computes in floats."""
    if row_of(operator).integer is None or uncomputed_memory(operator):
        return False
    return any(True for _ in float_inputs(operator))


def computes_in_floats(operator: Operator) -> bool:
    """Whether an operator reads or gives floats, and does more than to give their shape or another type."""
    floats = (
        tensor is not None and tensor.dtype == _FLOAT for tensor in (*operator.inputs, *operator.outputs)
    )
    return row_of(operator) not in (*SHAPE_READERS, *CONVERSIONS) and any(floats)


@slotted
class Modes:
    """The widths of operators.

    Attributes:
        widths: By id, 8 or 16; an operator that is not among them stays float.
        reasons: By id, why an operator stays float.
        target: What computes them.
    """

    widths: dict[int, int] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)
    target: Target = Target.LITERT

    def width(self, operator: Operator) -> int | None:
        """Returns the bits of an operator's activations; None where it stays float."""
        return self.widths.get(id(operator))

    def input_width(self, operator: Operator, position: int) -> int:
        """Returns the bits in which an operator reads an input."""
        width = self.widths[id(operator)]
        return 8 if position == 1 and Caveat.ALPHA_8_BITS in kernel_of(operator).caveats else width

    def copies(self, operator: Operator) -> bool:
        """Whether what an operator reads and gives must lie on one grid."""
        row = row_of(operator)
        if self.target is Target.MICRO and row.micro is not None and row.micro.copies:
            return True
        return row.integer is not None and row.integer.scales is Scales.SAME

    def keep_float(self, operator: Operator, reason: str) -> None:
        """Takes an operator out."""
        self.widths.pop(id(operator), None)
        self.reasons[id(operator)] = reason


def decide(
    model: Model,
    graph: Graph,
    subgraphs: list[SubGraph],
    wanted: Callable[[Operator], int | None],
    ranges: Mapping[int, Range],
    deviations: float,
    target: Target = Target.LITERT,
    *,
    parts: float = math.inf,
) -> Modes:
    """Decides which operators compute in integers.

    Args:
        model: All weights float.
        graph: Of it.
        subgraphs: Those that samples were run through.
        wanted: The bits that an operator should have; None for floats, as the user says.
        ranges: By id of the tensors that were seen.
        deviations: See :class:`tfl_rewrite.integers.recipe.Recipe`.
        target: Of the file.
        parts: See :class:`tfl_rewrite.integers.recipe.Recipe`.
    """
    modes = Modes(target=target)
    inside, unreached = set(map(id, subgraphs)), _unreached(model)
    for subgraph, operator in model.operators():
        if not computes_in_floats(operator):
            continue
        width = wanted(operator)
        if id(subgraph) not in inside:
            reason = unreached.get(id(subgraph), "no sample runs its subgraph")
        elif width is None:
            reason = "kept, as asked"
        else:
            reason = _obstacle(operator, graph, ranges, deviations) or _missing(operator, target)
        if reason or width is None:
            modes.reasons[id(operator)] = reason
            continue
        # What has no kernel of 16 bits is better off with one of 8 bits than with floats.
        widths = row_of(operator).widths(target)
        modes.widths[id(operator)] = width if width in widths else widths[0]
    for subgraph in subgraphs:
        _keep_patterns(subgraph, graph, modes, ranges, deviations)
        _keep_parts(subgraph, graph, modes, ranges, parts)
    return modes


def _missing(operator: Operator, target: Target) -> str:
    """Returns what kernel a runtime has not that an operator needs for integers; empty where it has it."""
    widths = row_of(operator).widths(target)
    if not widths:
        return f"{target.spoken} has no integer kernel of {operator.code.name}"
    if target is not Target.MICRO:
        return ""
    refused = [micro_refuses(operator, f"INT{width}") for width in widths]
    return refused[0] if all(refused) else ""


def _unreached(model: Model) -> dict[int, str]:
    """Returns by subgraph why no sample tells what its operators meet."""
    reasons = {
        id(inner): f"it is in a subgraph that {operator.code.name} calls"
        for _, operator in model.operators()
        for inner in operator.subgraphs()
    }
    for signature in model.signatures:
        reasons.setdefault(id(signature.subgraph), f"no sample runs signature {signature.key!r}")
    return reasons


def _keep_patterns(
    subgraph: SubGraph, graph: Graph, modes: Modes, ranges: Mapping[int, Range], deviations: float
) -> None:
    """Keeps float what stands around an operator that integers ruin, and would be ruined with it."""

    def keep(operators: list[Operator], reason: str) -> None:
        for near in operators:
            if modes.width(near):
                modes.keep_float(near, reason)

    for operator in subgraph.operators:
        if row_of(operator).integer is None or id(operator) not in modes.reasons:
            continue
        if row_of(operator) is NORM_DEVIATION and _is_wide(operator, ranges, deviations):
            told = "it is part of a norm whose deviations span orders of magnitude"
            keep(normed_by(graph, operator), told)
        if row_of(operator).squashes is Squash.ROWS:
            masks = masked_by(graph, operator, lambda tensor: _is_mask(tensor, ranges))
            keep(masks, "what it gives holds a mask that a softmax reads")


def _keep_parts(
    subgraph: SubGraph, graph: Graph, modes: Modes, ranges: Mapping[int, Range], parts: float
) -> None:
    """Keeps float what cuts inputs of the model into parts of unlike sizes, or joins its outputs of such."""

    def size(tensor: Tensor) -> float:
        return max(map(abs, ranges.get(id(tensor), (0.0, 0.0))))

    def copies(operator: Operator) -> bool:
        return bool(modes.width(operator)) and modes.copies(operator) and not kernel_of(operator).blends

    for operator in parted(subgraph, graph, copies, lambda whole, part: 0 < size(part) * parts < size(whole)):
        modes.keep_float(operator, "it cuts an input, or joins an output, of parts of unlike sizes")


def _is_wide(operator: Operator, ranges: Mapping[int, Range], most: float) -> bool:
    low, high = ranges.get(id(operator.inputs[0]), (1.0, 1.0))
    return low <= 0 or high / low > most


def _is_mask(tensor: Tensor, ranges: Mapping[int, Range]) -> bool:
    return ranges.get(id(tensor), (0.0, 0.0))[0] < -_WIDE_RATIO


def _obstacle(operator: Operator, graph: Graph, ranges: Mapping[int, Range], deviations: float) -> str:
    """Returns why an operator cannot compute in integers; empty where it can."""
    name, row = operator.code.name, row_of(operator)
    kernel = row.integer
    if kernel is None:
        return f"{name} has no integer kernel"
    if Caveat.NEGATES in kernel.caveats:
        return f"the integer kernel of {name} negates the lowest integer to itself"
    if Caveat.REFERENCE_WRONG in kernel.caveats:
        return f"the integer kernels of {name} disagree"
    if Caveat.REFERENCE_ABSENT in kernel.caveats:
        return f"the reference resolver has no integer kernel of {name}"
    if wrong := wrong_operands(operator):
        return f"{name} {wrong}"
    if kernel.memory is not None:
        why = uncomputed_memory(operator) or _memory_obstacle(operator, kernel.memory, graph, ranges)
        if why:
            return why
    elif any(tensor is not None and tensor.is_variable for tensor in (*operator.inputs, *operator.outputs)):
        return f"{name} keeps a state"
    if kernel.scales is Scales.WEIGHTS and (why := _weights_obstacle(operator, graph)):
        return f"{why} of {name}"
    inputs = list(float_inputs(operator))
    if not inputs:
        return f"{name} reads no floats"
    bounded = {at for limit in kernel.limits for at in (*limit.over, *limit.under)} - {OUTPUT}
    if missing := bounded - {position for position, _ in inputs}:
        return f"input {min(missing)} of {name} holds no floats"
    for tensor in (*(tensor for _, tensor in inputs), *float_outputs(operator)):
        seen = ranges.get(id(tensor))
        if seen is None:
            return f"no sample says what {tensor.name!r} holds"
        if not all(map(math.isfinite, seen)):
            return f"{tensor.name!r} is not finite"
        if max(map(abs, seen)) > _LARGEST:
            return f"{tensor.name!r} holds numbers above 2^100"
        if seen[0] == seen[1] and not graph.is_constant(tensor):
            # On any other value its integers would saturate, and no sample shows that.
            return f"{tensor.name!r} is {seen[0]:g} in all samples: what else it may hold is not known"
    if (
        row.squashes is Squash.ROWS
        and _is_mask(inputs[0][1], ranges)
        and least_score(operator, graph, ranges) is None
    ):
        return f"{name} reads a mask: its values span too many orders of magnitude"
    if Caveat.NARROW_RANGE in kernel.caveats and _is_wide(operator, ranges, deviations):
        return f"what {name} reads spans too many orders of magnitude"
    if Caveat.COPIES_ONE in kernel.caveats and inputs[0][1].elements == sum(
        made.elements for made in float_outputs(operator)
    ):
        return f"the integer kernels of {name} disagree where there is nothing to reduce"
    if Caveat.DIVIDES in kernel.caveats and _may_be_zero(inputs[-1][1], ranges):
        return f"a divisor of {name} may round to 0"
    return ""


def _may_be_zero(divisor: Tensor, ranges: Mapping[int, Range]) -> bool:
    values = constant_values(divisor, "FLOAT32") if divisor.is_constant else None
    sizes = np.abs(ranges[id(divisor)] if values is None else values)
    low, high = ranges[id(divisor)]
    crosses = values is None and low <= 0 <= high
    return crosses or float(sizes.min()) < _LEAST_DIVISOR * float(sizes.max())


def _weights_obstacle(operator: Operator, graph: Graph) -> str:
    """Returns what is in the way of the weights of an operator, to be followed by its name."""
    row = row_of(operator)
    activation, weight = input_of(operator, row.activation), input_of(operator, row.weights[0])
    bias = input_of(operator, row.biases[0])
    if activation is None or activation.dtype != _FLOAT:
        return "there is no float32 input"
    if not any(True for _ in float_outputs(operator)):
        return "there is no float32 output"
    if operator.option("weights_format"):
        return "there is a shuffled format in the weights"
    if weight is None or not weight.elements or not _is_plain(weight, graph):
        return "there is no float32 constant for the weight"
    shape = weight.shape or ()
    axis = row.output_axis(row.weights[0], len(shape))
    if axis is None:
        return "there are too few axes in the weight"
    if bias is not None and (not _is_plain(bias, graph) or bias.elements != shape[axis]):
        return "there is no float32 constant of one value a channel for the bias"
    for tensor in (weight, bias):
        values = None if tensor is None else constant_values(tensor, "FLOAT32")
        if values is not None and not np.isfinite(values).all():
            return "there is a number that is not finite in the weights"
    return ""


def _memory_obstacle(operator: Operator, memory: Memory, graph: Graph, ranges: Mapping[int, Range]) -> str:
    """Returns what is in the way of the state of an operator, and of what it is computed with."""
    name = operator.code.name
    for position in (*memory.weights, *memory.sums, *(gate.norm for gate in memory.gates)):
        tensor = input_of(operator, position)
        if tensor is None:
            continue
        if not tensor.elements or not _is_plain(tensor, graph):
            return f"input {position} of {name} is no float32 constant"
        values = constant_values(tensor, "FLOAT32")
        if values is not None and not np.isfinite(values).all():
            return f"there is a number that is not finite in input {position} of {name}"
    for place in (memory.state, memory.last):
        state = input_of(operator, place)
        if state is None:
            continue
        if not state.is_variable or state.buffer.nbytes or state.dtype != _FLOAT:
            return f"input {place} of {name} is no plain variable"
        if len(graph.uses_of(state)) != 1 or id(state) in graph.exposed:
            return f"others read the state of {name}, too"
    held = operator.inputs[memory.state]
    assert held is not None
    if id(held) not in ranges:
        return f"no sample says what {held.name!r} holds"
    largest = max(map(abs, ranges[id(held)]))
    if not largest <= (CELL_SCALES[1] * 2**15 if memory.gates else _LARGEST):
        return f"the integer kernel of {name} has no room for a state of {largest:g}"
    return ""


def least_score(operator: Operator, graph: Graph, ranges: Mapping[int, Range]) -> float | None:
    """Returns what the largest number of each row that a softmax reads is at least, beside its mask.

    That is the least of the scores, where a constant was added to them that leaves one of each row as it is:
    what is far below gives 0 whatever it is. None where nothing tells.

    Args:
        operator: The softmax.
        graph: Of its model.
        ranges: By id, of float tensors.
    """
    read = operator.inputs[0]
    maker = None if read is None else graph.maker_of(read)
    for _ in range(_STEPS):
        if read is None or maker is None or not row_of(maker).reshapes:
            break
        before = input_of(maker, 0)
        if before is None or (before.shape or ())[-1:] != (read.shape or ())[-1:]:
            return None
        read, maker = before, graph.maker_of(before)
    if maker is None or row_of(maker) is not RESIDUAL or maker.option("fused_activation_function"):
        return None
    for mask, scores in itertools.permutations(maker.inputs[:2]):
        if mask is None or scores is None or id(scores) not in ranges or not _is_plain(mask, graph):
            continue
        values = constant_values(mask, "FLOAT32")
        if values is not None and values.size:
            rows = values.reshape(mask.shape or (1,))
            return min(ranges[id(scores)][0], 0.0) + float(rows.max(axis=-1).min())
    return None


def _is_plain(tensor: Tensor, graph: Graph) -> bool:
    """Whether a tensor is a float32 constant whose bytes are all there, as they are."""
    return graph.is_constant(tensor) and constant_values(tensor, "FLOAT32") is not None


_STEPS = 5
"""How far a norm reaches from its deviation, each way, a RESHAPE between its operators counted; and how many
of those may stand before a softmax."""


def normed_by(graph: Graph, root: Operator) -> list[Operator]:
    """Returns the operators of the decomposed norm whose reciprocal deviation an operator computes.

    In ``x * r - mean * r + beta`` two large products cancel where ``r`` is large, so that rounding any of
    them ruins the sum: 4 to 7.5 dB on a conformer with one of these operators in 16 bits (measured).
    """

    def before(operator: Operator) -> Iterator[Operator]:
        for maker in _makers(graph, operator):
            row = row_of(maker)
            if row.reshapes or (row in NORM_STATISTICS and not _adds_activations(graph, maker)):
                yield maker

    def after(operator: Operator) -> Iterator[Operator]:
        for tensor in operator.outputs:
            for use in graph.uses_of(tensor) if tensor is not None else ():
                row = row_of(use.operator)
                if row.reshapes or row in NORM_APPLICATION:
                    yield use.operator

    return [*_reached(root, before, _STEPS), *_reached(root, after, _STEPS)]


def masked_by(graph: Graph, root: Operator, is_mask: Callable[[Tensor], bool]) -> list[Operator]:
    """Returns the operators whose outputs hold a mask on their way to an operator."""

    def before(operator: Operator) -> Iterator[Operator]:
        return _makers(graph, operator, is_mask)

    return _reached(root, before)


def parted(
    subgraph: SubGraph,
    graph: Graph,
    copies: Callable[[Operator], bool],
    unlike: Callable[[Tensor, Tensor], bool],
) -> list[Operator]:
    """Returns the operators that cut inputs of a subgraph into unlike parts, or join such to its outputs.

    One scale is too coarse for the small ones; as floats they are cut and joined exactly. So are memories of
    recurrent nets: what a unit gave, below 1, beside what it keeps, up to 200 (a noise filter, measured).

    Args:
        subgraph: That callers run.
        graph: Of its model.
        copies: Whether an operator gives numbers that it reads, and nothing else.
        unlike: Whether the second tensor is much smaller than the first.
    """
    found: dict[int, Operator] = {}
    outside = set(map(id, subgraph.inputs))
    for operator in subgraph.operators:
        read = [tensor for tensor in operator.inputs if tensor is not None and not graph.is_constant(tensor)]
        if not (copies(operator) and read and all(id(tensor) in outside for tensor in read)):
            continue
        near = [use.operator for tensor in read for use in graph.uses_of(tensor) if copies(use.operator)]
        if any(unlike(tensor, made) for item in near for tensor in read for made in item.outputs if made):
            found[id(operator)] = operator
            outside.update(id(tensor) for tensor in operator.outputs if tensor is not None)
    outside = set(map(id, subgraph.outputs))
    for operator in reversed(subgraph.operators):
        uses = [use for tensor in operator.outputs if tensor is not None for use in graph.uses_of(tensor)]
        joins = any(id(tensor) in outside for tensor in operator.outputs) or bool(uses)
        if not (copies(operator) and joins and all(id(use.operator) in found for use in uses)):
            continue
        if any(unlike(made, part) for made in operator.outputs if made for part in operator.inputs if part):
            found[id(operator)] = operator
    return list(found.values())


def _makers(
    graph: Graph, operator: Operator, passes: Callable[[Tensor], bool] = lambda _: True
) -> Iterator[Operator]:
    for tensor in operator.inputs:
        maker = graph.maker_of(tensor) if tensor is not None and passes(tensor) else None
        if maker is not None:
            yield maker


def _adds_activations(graph: Graph, operator: Operator) -> bool:
    """Whether an operator adds two activations, as a residual connection does; a norm adds a constant."""
    constants = [tensor for tensor in operator.inputs if tensor is not None and graph.is_constant(tensor)]
    return row_of(operator) is RESIDUAL and not constants


def _reached(
    root: Operator, near: Callable[[Operator], Iterable[Operator]], steps: int | None = None
) -> list[Operator]:
    """Returns what is reached from an operator, within a number of steps if one is given; not itself."""
    found: dict[int, Operator] = {}
    edge = {id(root): root}
    while edge and steps != 0:
        edge = {id(item): item for operator in edge.values() for item in near(operator)}
        edge = {key: item for key, item in edge.items() if key not in found}
        found.update(edge)
        steps = None if steps is None else steps - 1
    return list(found.values())
