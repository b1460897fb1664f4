"""Which stored weights must be floats first, and which stay in the form that their float operators read."""

from __future__ import annotations

from collections.abc import Callable

from tfl_rewrite.kernels.table import DEQUANTIZE, row_of
from tfl_rewrite.model.graph import Graph
from tfl_rewrite.model.ir import Model, Operator, Tensor


def read_by_integers(model: Model, wanted: Callable[[Operator], bool]) -> Callable[[Tensor], bool]:
    """Returns what tells of a constant whether an operator reads it that may compute in integers.

    Others, such as hybrid weights of a recurrent operator or float16 ones in the body of a loop, would only
    grow if they were made floats: their operators stay float.

    Args:
        model: With weights in any form.
        wanted: Whether an operator should compute in something else than floats.
    """
    graph = Graph.of(model)
    called = {id(inner) for _, operator in model.operators() for inner in operator.subgraphs()}

    def is_read(tensor: Tensor) -> bool:
        for use in graph.uses_of(tensor):
            row = row_of(use.operator)
            if row is DEQUANTIZE:
                if any(made is not None and is_read(made) for made in use.operator.outputs):
                    return True
            elif row.integer is not None and id(use.subgraph) not in called and wanted(use.operator):
                return True
        return False

    return is_read
