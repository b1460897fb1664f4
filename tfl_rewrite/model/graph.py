"""Who makes and who reads what in a model."""

from __future__ import annotations

from dataclasses import field

from tfl_rewrite.model.ir import Model, Operator, SubGraph, Tensor
from tfl_rewrite.options.frozen import frozen, slotted


@frozen
class Use:
    """One place where an operator reads a tensor."""

    subgraph: SubGraph
    operator: Operator
    position: int


@slotted
class Graph:
    """An index over a model as it was when the index was made.

    Attributes:
        uses: Tensor id to the places that read it, in order of execution.
        makers: Tensor id to the operator that makes it.
        exposed: Ids of tensors that a subgraph or a signature takes in or gives out, or that a blockwise
            quantization refers to: their type and content are part of an interface.

    Example:
        >>> from tfl_rewrite.model import Graph
        >>> model = tfl_rewrite.load("model.tflite")
        >>> graph = Graph.of(model)
        >>> [use.operator.code.name for use in graph.uses_of(model.subgraphs[0].inputs[0])]
        ['CONV_2D']
    """

    uses: dict[int, list[Use]] = field(default_factory=dict)
    makers: dict[int, Operator] = field(default_factory=dict)
    exposed: set[int] = field(default_factory=set)
    given: set[int] = field(default_factory=set)

    @classmethod
    def of(cls, model: Model) -> Graph:
        """Builds the index."""
        graph = cls()
        for subgraph in model.subgraphs:
            for operator in subgraph.operators:
                for position, tensor in enumerate(operator.inputs):
                    if tensor is not None:
                        graph.uses.setdefault(id(tensor), []).append(Use(subgraph, operator, position))
                for tensor in [*operator.outputs, *operator.intermediates]:
                    if tensor is not None:
                        graph.makers[id(tensor)] = operator
            graph.given.update(map(id, subgraph.inputs))
            graph.exposed.update(map(id, [*subgraph.inputs, *subgraph.outputs]))
            for tensor in subgraph.tensors:
                details = tensor.quantization
                if details is not None:
                    graph.given.update(
                        id(item) for item in (details.scales_tensor, details.zero_points_tensor) if item
                    )
        for signature in model.signatures:
            graph.given.update(id(tensor) for _, tensor in signature.inputs)
            graph.exposed.update(id(tensor) for _, tensor in [*signature.inputs, *signature.outputs])
        return graph

    def uses_of(self, tensor: Tensor) -> list[Use]:
        """Returns the places that read a tensor."""
        return self.uses.get(id(tensor), [])

    def is_constant(self, tensor: Tensor) -> bool:
        """Whether a tensor has its bytes in the file, and neither a caller nor an operator gives it any."""
        return tensor.is_constant and id(tensor) not in self.given and id(tensor) not in self.makers

    def maker_of(self, tensor: Tensor) -> Operator | None:
        """Returns the operator that makes a tensor, or None."""
        return self.makers.get(id(tensor))
