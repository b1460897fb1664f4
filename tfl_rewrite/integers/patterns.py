"""Groups of operators that integers ruin as a whole: decomposed norms, and masks before a softmax."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from tfl_rewrite.kernels.table import NORM_APPLICATION, NORM_STATISTICS, RESIDUAL, row_of
from tfl_rewrite.model.graph import Graph
from tfl_rewrite.model.ir import Operator, Tensor

_STEPS = 5
"""How far a norm reaches from its deviation, each way, a RESHAPE between its operators counted."""


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
