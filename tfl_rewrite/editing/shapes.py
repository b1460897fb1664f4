"""The shapes of a model's tensors, as the runtime is going to allocate them.

A file declares a shape for every tensor, and what it declares for those that operators make is often wrong,
or missing: runtimes never read it. So shapes are followed from what runtimes do read: the inputs of a
subgraph (``shape``; unknown where ``shape_signature`` has -1), variables and constants, operator by operator
in order of execution, by the rule in the operator's row (:mod:`tfl_rewrite.kernels.shapes`). A resource
variable has the shape of what is assigned to it.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tfl_rewrite.errors import UnsupportedError
from tfl_rewrite.kernels.shapes import Calls, Given, Shape, met, outputs_of
from tfl_rewrite.kernels.table import ASSIGN_VARIABLE, READ_VARIABLE, VAR_HANDLE, row_of
from tfl_rewrite.model import dtypes
from tfl_rewrite.model.graph import Graph
from tfl_rewrite.model.ir import Model, Operator, SubGraph, Tensor
from tfl_rewrite.model.values import array_of

_MOST_ELEMENTS = 1 << 16
"""Of a constant whose elements are looked at: shapes, axes and bounds have a handful."""
_MOST_CALLS = 1000
"""Times that subgraphs are followed; of those that would come later nothing is known."""
_MOST_ROUNDS = 4
"""Of a loop, until what its body is given has the shapes of what it gives out."""


_Handle = tuple[str, ...]
"""By which a resource goes."""


class Shapes:
    """What is known of the shapes in a model, as it was when this was made.

    A caller of the runtime may give an input another shape than the file states. What follows from the
    shapes here holds for the stated ones.

    Example:
        >>> from tfl_rewrite.editing import Shapes
        >>> model = tfl_rewrite.load("model.tflite")
        >>> shapes = Shapes.of(model)
        >>> shapes[model.subgraphs[0].outputs[0]]
        (1, 10)
    """

    def __init__(self, model: Model) -> None:
        self.graph = Graph.of(model)
        self._model = model
        """Tensors are known by their ids, so they must stay."""
        self._unsettled = _written_twice(model, self.graph)
        self._handles = {
            id(operator.outputs[0]): tuple(str(operator.option(name) or "") for name in VAR_HANDLE.handle)
            for _, operator in model.operators()
            if row_of(operator) is VAR_HANDLE and operator.outputs
        }
        self._held: dict[_Handle, Shape] = {}
        self._follow_all()
        # What is put into a resource has one shape if it has that whenever what was read before had it.
        guess = {
            key: shape
            for key, shapes in self._put.items()
            if (shape := _only(shapes, whole=False)) is not None
        }
        for _ in range(_MOST_ROUNDS):
            if not guess or self._lost:
                break
            self._held = guess
            self._follow_all()
            guess = {key: shape for key, shape in guess.items() if _only(self._put[key]) == shape}
            if guess == self._held:
                return
        if self._held:
            self._held = {}
            self._follow_all()

    def _follow_all(self) -> None:
        """Follows every subgraph, from those on that a caller enters."""
        self._known: dict[int, Shape] = {}
        self._followed: set[int] = set()
        self._left = _MOST_CALLS
        self._put: dict[_Handle, list[Shape | None]] = {key: [] for key in self._handles.values()}
        self._lost = False
        model = self._model
        called = model.called
        entries = {id(item.subgraph) for item in model.signatures} | {id(model.subgraphs[0])}
        for subgraph in model.subgraphs:
            if id(subgraph) in entries or id(subgraph) not in called:
                self._enter(subgraph, [_stated(tensor) for tensor in subgraph.inputs], ())
        for subgraph in model.subgraphs:
            if id(subgraph) not in self._followed:
                # Nobody knows how it is run.
                self._enter(subgraph, [None] * len(subgraph.inputs), ())

    @classmethod
    def of(cls, model: Model) -> Shapes:
        """Follows the shapes of a model."""
        return cls(model)

    def __getitem__(self, tensor: Tensor | None) -> Shape | None:
        """Returns the shape of a tensor, with None for a dimension that is not known.

        None where even the number of dimensions is not known, or there is no tensor.
        """
        return None if tensor is None else self._known.get(id(tensor))

    def full(self, tensor: Tensor | None) -> tuple[int, ...] | None:
        """Returns the shape of a tensor, or None where any of it is not known."""
        shape = self[tensor]
        return None if shape is None or None in shape else tuple(dim for dim in shape if dim is not None)

    def is_settled(self, tensor: Tensor) -> bool:
        """Whether a tensor is made once, by an operator or a caller."""
        return id(tensor) not in self._unsettled

    def given(self, operator: Operator) -> Given:
        """Returns what is known of the inputs of an operator."""
        return self._given(operator, self._known)

    def _given(self, operator: Operator, known: Mapping[int, Shape]) -> Given:
        shapes = [None if tensor is None else known.get(id(tensor)) for tensor in operator.inputs]
        return Given(operator, shapes, functools.partial(self._constant, operator.inputs))

    def constant(self, tensor: Tensor | None) -> npt.NDArray[Any] | None:
        """Returns the elements of a constant, of its shape; None where it is none, or is long."""
        if tensor is None or not self.graph.is_constant(tensor) or not _agrees(tensor):
            return None
        shape = tensor.shape or ()
        blob = tensor.buffer.blob
        if blob is None or tensor.is_sparse or int(np.prod(shape, dtype=object)) > _MOST_ELEMENTS:
            return None
        try:
            return array_of(blob.view(), tensor.dtype, shape)
        except UnsupportedError:
            return None

    def _constant(self, inputs: Sequence[Tensor | None], position: int) -> npt.NDArray[Any] | None:
        return self.constant(inputs[position]) if 0 <= position < len(inputs) else None

    def _stored(self, subgraph: SubGraph) -> dict[int, Shape]:
        """Returns the shapes of variables and constants of a subgraph."""
        known: dict[int, Shape] = {}
        for tensor in subgraph.tensors:
            shape: Shape | None = None
            if tensor.is_variable:
                shape = _stated(tensor)
            elif self.graph.is_constant(tensor) and _agrees(tensor):
                shape = tensor.shape or ()
            if shape is not None and id(tensor) not in self._unsettled:
                known[id(tensor)] = shape
        return known

    def _enter(
        self, subgraph: SubGraph, inputs: Sequence[Shape | None], callers: tuple[int, ...]
    ) -> list[Shape | None]:
        """Follows the shapes of a subgraph that is given inputs; returns those of its outputs."""
        found = self._stored(subgraph)
        self._left -= 1
        if self._left >= 0 and id(subgraph) not in callers:
            self._follow(subgraph, inputs, (*callers, id(subgraph)), found)
        else:
            self._lost = True
        outputs = [found.get(id(tensor)) for tensor in subgraph.outputs]
        if id(subgraph) not in self._followed:
            self._followed.add(id(subgraph))
            self._known.update(found)
            return outputs
        for tensor in subgraph.tensors:
            shape = met(self._known.pop(id(tensor), None), found.get(id(tensor)))
            if shape is not None:
                self._known[id(tensor)] = shape
        return outputs

    def _follow(
        self,
        subgraph: SubGraph,
        inputs: Sequence[Shape | None],
        callers: tuple[int, ...],
        found: dict[int, Shape],
    ) -> None:
        """Adds the shapes of what a subgraph is given, and of what its operators make."""

        def note(tensor: Tensor | None, shape: Shape | None) -> None:
            if tensor is not None and shape is not None and id(tensor) not in self._unsettled:
                found[id(tensor)] = shape

        for tensor, shape in zip(subgraph.inputs, inputs, strict=True):
            note(tensor, shape)
        for operator in subgraph.operators:
            rule, given = row_of(operator).shape, self._given(operator, found)
            if isinstance(rule, Calls):
                shapes = self._call(operator, rule, given.shapes, callers)
            elif self._handles and (held := self._held_by(operator, given)) is not None:
                shapes = [held]
            else:
                shapes = outputs_of(rule, given)
            for output, made in zip(operator.outputs, shapes, strict=False):
                note(output, made)

    def _held_by(self, operator: Operator, given: Given) -> Shape | None:
        """Returns the shape of what is read from a resource; notes that of what is put into one."""
        handle = operator.inputs[0] if operator.inputs else None
        key = self._handles.get(id(handle))
        if row_of(operator) is READ_VARIABLE and key is not None:
            return self._held.get(key)
        if row_of(operator) is ASSIGN_VARIABLE:
            if key is None:
                self._lost = True
            else:
                self._put[key].append(given.shapes[1] if len(given.shapes) > 1 else None)
        elif operator.code.custom is not None and any(id(item) in self._handles for item in operator.inputs):
            self._lost = True
        return None

    def _call(
        self, operator: Operator, how: Calls, given: Sequence[Shape | None], callers: tuple[int, ...]
    ) -> list[Shape | None]:
        """Returns the shapes of what an operator gives out that runs subgraphs."""
        subgraphs = list(operator.subgraphs())
        if how is Calls.ONCE:
            gives = [self._enter(item, _last(given, item), callers) for item in subgraphs]
            return [functools.reduce(met, shapes) for shapes in zip(*gives, strict=False)]
        body = operator.option("body_subgraph_index")
        if not isinstance(body, SubGraph):
            return []
        inputs = _last(given, body)
        for _ in range(_MOST_ROUNDS):
            made = self._enter(body, inputs, callers)
            wider = [met(*pair) for pair in zip(inputs, made, strict=False)]
            wider += [None] * (len(inputs) - len(wider))
            if wider == inputs:
                break
            inputs = wider
        else:
            inputs = [None] * len(inputs)
            self._enter(body, inputs, callers)
        for item in subgraphs:
            if item is not body:
                self._enter(item, _last(inputs, item), callers)
        return inputs


def _only(shapes: Sequence[Shape | None], *, whole: bool = True) -> Shape | None:
    """Returns the one shape that all have; None where they differ, or one is not known.

    Args:
        shapes: Of the same thing.
        whole: Whether one that is not known counts.
    """
    known = {shape for shape in shapes if shape is not None}
    return known.pop() if len(known) == 1 and not (whole and None in shapes) else None


def _last(shapes: Sequence[Shape | None], subgraph: SubGraph) -> list[Shape | None]:
    """Returns the last of some shapes, one for each input of a subgraph."""
    count = len(subgraph.inputs)
    if count > len(shapes):
        return [None] * count
    return list(shapes[len(shapes) - count :])


def _stated(tensor: Tensor) -> Shape | None:
    """Returns the shape that a file states for what a caller gives, or a variable."""
    shape, signature = tensor.shape, tensor.signature
    if not shape:
        # Also what old converters write where the rank is not known.
        return () if tensor.rest.get("has_rank") and not signature else None
    if signature and len(signature) != len(shape):
        return None
    pairs = zip(shape, signature or shape, strict=True)
    return tuple(size if size > 0 and stated == size else None for size, stated in pairs)


def _agrees(tensor: Tensor) -> bool:
    """Whether the bytes of a constant are as many as its shape says."""
    if any(size < 0 for size in tensor.shape or ()):
        return False
    if tensor.is_sparse or tensor.external is not None:
        # The runtime takes the shape as it is.
        return bool(tensor.shape)
    row, blob = dtypes.BY_VALUE.get(tensor.dtype), tensor.buffer.blob
    if row is None or blob is None:
        return False
    if not row.bits:
        # Strings: how many there are stands first.
        count = int.from_bytes(bytes(blob.view()[:4]), "little")
        return blob.nbytes >= 4 and count == tensor.elements
    return row.nbytes(tensor.elements) == blob.nbytes


def _written_twice(model: Model, graph: Graph) -> set[int]:
    """Returns the ids of the tensors that are no single value: of two operators, or of a caller and one."""
    seen = graph.given | {id(tensor) for _, tensor in model.tensors() if tensor.is_variable}
    twice = set()
    for _, operator in model.operators():
        for tensor in operator.outputs:
            if tensor is not None:
                if id(tensor) in seen:
                    twice.add(id(tensor))
                seen.add(id(tensor))
    return twice


__all__ = ["Shapes"]


def record_shapes(model: Model) -> list[Tensor]:
    """Gives tensors that operators make the shapes that they have at run time, where all of one is known.

    Other runtimes work them out; TFLite Micro takes what the file says. A shape that an input or output
    states stays.

    Returns:
        Those that had others.
    """
    shapes, changed = Shapes.of(model), []
    for _, operator in model.operators():
        for tensor in operator.outputs:
            full = shapes.full(tensor)
            if tensor is None or full is None or tensor.is_constant:
                continue
            if full != (tensor.shape or ()) and not (tensor.shape and id(tensor) in shapes.graph.exposed):
                tensor.shape, tensor.signature = full, None
                changed.append(tensor)
    return changed
