"""The typed model: objects instead of indices. Knows TFLite, not files."""

from __future__ import annotations

from tfl_rewrite import late

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tfl_rewrite.model.graph import Graph as Graph
    from tfl_rewrite.model.ir import Operator as Operator
    from tfl_rewrite.model.ir import SubGraph as SubGraph
    from tfl_rewrite.model.ir import Tensor as Tensor

__getattr__, __dir__, __all__ = late(
    __name__,
    {
        "model.graph": "Graph",
        "model.ir": "Operator SubGraph Tensor",
    },
)
