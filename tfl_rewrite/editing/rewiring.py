"""One tensor in the place of another, and no operator that nothing reads any more.

A tensor stands for another of the same type, scale and shape. Where the other is exposed (an output of a
subgraph, an argument of a signature), it keeps its name, so the operator that makes the first one gives out
the other instead, and all that read the first one read that.
"""

from __future__ import annotations

from collections.abc import Sequence

from tfl_rewrite.editing.editor import Editor
from tfl_rewrite.editing.effects import Effects
from tfl_rewrite.editing.shapes import Shapes
from tfl_rewrite.kernels.operands import scales_of, zero_points_of
from tfl_rewrite.kernels.operators import SideEffect
from tfl_rewrite.kernels.table import row_of
from tfl_rewrite.model.graph import Use
from tfl_rewrite.model.ir import Model, Operator, SubGraph, Tensor


class Rewiring:
    """Rewires the operators of a model, and keeps the index of who reads what as it goes.

    Attributes:
        shapes: Of the tensors, as the model was; what is rewired has the shapes that it had.
        graph: The index, always as the model is.
        gone: The operators that were removed, by their ids.
    """

    def __init__(self, model: Model) -> None:
        self.editor = Editor(model)
        self.shapes = Shapes.of(model)
        self.graph = self.shapes.graph
        self.gone: dict[int, Operator] = {}
        self._effects = Effects()
        self._left: dict[int, tuple[SubGraph, list[Tensor]]] = {}

    def is_pure(self, operator: Operator) -> bool:
        """Whether an operator of the runtime does nothing but compute what it gives out."""
        if (
            operator.code.custom is not None
            or operator.intermediates
            or any(True for _ in operator.subgraphs())
        ):
            return False
        return self._effects.of(operator)[0] is SideEffect.NONE

    def is_value(self, tensor: Tensor | None) -> bool:
        """Whether a tensor is the same from when it is made to the end of the run."""
        return tensor is not None and not tensor.is_variable and self.shapes.is_settled(tensor)

    def refusal(self, old: Tensor, new: Tensor) -> str:
        """Returns why a tensor of the same numbers cannot stand for another one; empty where it can."""
        if not (self.is_value(old) and self.is_value(new)):
            return "one of them is a state, or is made twice"
        if not alike(old, new):
            return "they have different types or scales"
        rank = len(new.shape or ())
        if rank not in (len(old.shape or ()), len(self.shapes[new] or ())):
            # XNNPACK looks at recorded shapes before there are others.
            return "the file records another shape for what would take its place"
        if id(old) not in self.graph.exposed:
            host = self.weight_reader(old) if self.graph.is_constant(new) else None
            return f"with constant weights {host.code.name} may add in another order" if host else ""
        maker = self.graph.maker_of(new)
        if maker is None or id(new) in self.graph.given:
            return "it is an output, and what it copies is no operator's"
        if id(new) in self.graph.exposed:
            return "both are inputs or outputs"
        constant = all(item is None or self.graph.is_constant(item) for item in maker.inputs)
        if constant or not self.is_pure(maker):
            return "it is an output, and what makes the copied one cannot give it out"
        if row_of(maker).declared and old.shape != new.shape:
            return f"it is an output of another declared shape, at which {maker.code.name} looks"
        return ""

    def weight_reader(self, tensor: Tensor) -> Operator | None:
        """Returns an operator that multiplies by a tensor, or adds it as a bias; None where none does.

        Kernels prepare constant weights, and may add what they multiply in another order then.
        """
        for use in self.graph.uses_of(tensor):
            if row_of(use.operator).product is not None and use.position in (1, 2):
                return use.operator
        return None

    def substitute(
        self, subgraph: SubGraph, copier: Operator, pairs: Sequence[tuple[Tensor, Tensor]]
    ) -> None:
        """Puts tensors in the place of those that an operator gives out, and removes it.

        Args:
            subgraph: Of the operator.
            copier: The operator.
            pairs: What it gives out, and what takes the place of it; see :meth:`refusal`.
        """
        for old, new in pairs:
            if id(old) in self.graph.exposed:
                maker = self.graph.makers.pop(id(new))
                maker.outputs = [old if item is new else item for item in maker.outputs]
                self.graph.makers[id(old)] = maker
                old, new = new, old
            for use in self.graph.uses.pop(id(old), []):
                use.operator.inputs[use.position] = new
                self.graph.uses.setdefault(id(new), []).append(use)
            self._leave(subgraph, old)
        self.remove(subgraph, copier)

    def read(self, subgraph: SubGraph, operator: Operator, position: int, new: Tensor) -> None:
        """Makes an operator read another tensor; what made the old one goes if nothing else reads it."""
        old = operator.inputs[position]
        operator.inputs[position] = new
        self.graph.uses.setdefault(id(new), []).append(Use(subgraph, operator, position))
        if old is not None:
            self._forget(old, operator, position)
            self._drop_if_unread(subgraph, old)

    def replace(self, subgraph: SubGraph, old: Operator, new: Operator) -> None:
        """Puts an operator in the place of another one that gives out the same tensors."""
        place = next(at for at, item in enumerate(subgraph.operators) if item is old)
        subgraph.operators[place] = new
        self.gone[id(old)] = old
        for position, tensor in enumerate(new.inputs):
            if tensor is not None:
                self.graph.uses.setdefault(id(tensor), []).append(Use(subgraph, new, position))
        for tensor in new.outputs:
            if tensor is not None:
                self.graph.makers[id(tensor)] = new
        self._unread(subgraph, old)

    def remove(self, subgraph: SubGraph, operator: Operator) -> None:
        """Removes an operator, and what only it has read."""
        self.gone[id(operator)] = operator
        subgraph.operators = [item for item in subgraph.operators if item is not operator]
        for tensor in operator.outputs:
            if tensor is not None and self.graph.maker_of(tensor) is operator:
                del self.graph.makers[id(tensor)]
        self._unread(subgraph, operator)

    def finish(self) -> None:
        """Removes tensors that nothing refers to any more, with their bytes."""
        kept = self.graph.exposed | self.graph.given
        for subgraph, tensors in self._left.values():
            self.editor.drop_unused(subgraph, tensors, kept)
        self.editor.finish()

    def _unread(self, subgraph: SubGraph, operator: Operator) -> None:
        for position, tensor in enumerate(operator.inputs):
            if tensor is not None:
                self._forget(tensor, operator, position)
        for tensor in dict.fromkeys(item for item in operator.inputs if item is not None):
            self._drop_if_unread(subgraph, tensor)

    def _forget(self, tensor: Tensor, operator: Operator, position: int) -> None:
        uses = self.graph.uses_of(tensor)
        self.graph.uses[id(tensor)] = [
            use for use in uses if use.operator is not operator or use.position != position
        ]

    def _drop_if_unread(self, subgraph: SubGraph, tensor: Tensor) -> None:
        """Removes an operator none of whose outputs anybody needs any more, and so on towards the inputs."""
        if self.graph.uses_of(tensor) or not self.is_value(tensor):
            return
        self._leave(subgraph, tensor)
        maker = self.graph.maker_of(tensor)
        if maker is None or id(maker) in self.gone or not self.is_pure(maker):
            return
        outputs = [item for item in maker.outputs if item is not None]
        if any(self.graph.uses_of(item) or id(item) in self.graph.exposed for item in outputs):
            return
        for item in outputs:
            self._leave(subgraph, item)
        self.remove(subgraph, maker)

    def _leave(self, subgraph: SubGraph, tensor: Tensor) -> None:
        """Notes a tensor that may go in the end."""
        self._left.setdefault(id(subgraph), (subgraph, []))[1].append(tensor)


def alike(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors have one type, and integers stand for the same values with one scale at most."""
    if first.dtype != second.dtype:
        return False
    marked = [item.quantization is not None and item.quantization.is_quantized for item in (first, second)]
    if not any(marked):
        return True
    details = [item.quantization for item in (first, second)]
    if not all(marked) or any(item is not None and item.scales_tensor is not None for item in details):
        return False
    scales = [scales_of(item) for item in (first, second)]
    zeros = [zero_points_of(item) or [0] for item in (first, second)]
    return len(scales[0]) == 1 and scales[0] == scales[1] and zeros[0] == zeros[1]


def label(operator: Operator) -> str:
    """Returns how a report names an operator: by its kind and what it makes."""
    names = ", ".join(item.name or "(unnamed)" for item in operator.outputs if item is not None)
    return f"{operator.code.name} -> {names or 'nothing'}"
