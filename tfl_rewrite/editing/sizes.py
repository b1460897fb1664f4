"""Constants that fix the shapes of what operators give, and how they follow when inputs get other shapes.

The runtime says what shapes come out (``Prepare`` of its kernels); here is found which constant an operator
takes a size from, and what it has to say instead. One walk over a subgraph changes what can be told from the
shapes so far; behind a change the shapes have to be asked for again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from tfl_rewrite.editing.axes import Axis, Shape, axes_between, changes
from tfl_rewrite.editing.base import Edit
from tfl_rewrite.editing.editor import Editor
from tfl_rewrite.errors import UnsupportedError
from tfl_rewrite.kernels import table
from tfl_rewrite.kernels.operators import ProductKind
from tfl_rewrite.kernels.table import row_of
from tfl_rewrite.model.blob import OwnedBlob
from tfl_rewrite.model.graph import Graph
from tfl_rewrite.model.ir import Buffer, Operator, SubGraph, Tensor
from tfl_rewrite.model.values import bytes_of

Shapes = Mapping[int, Shape]
"""Of tensors, by id."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked of a subgraph.

    Attributes:
        batch: The number of samples before and after, where that alone changes.
        is_free: Whether the batch is to be free at run time; ``batch`` is a trial then.
    """

    batch: tuple[int, int] | None = None
    is_free: bool = False


@dataclass(frozen=True, slots=True)
class Refusal:
    """What the runtime says of the new shapes.

    Attributes:
        positions: Of the operator that refuses them; behind it, in the subgraphs that it runs. Empty where no
            operator is named.
        text: Its words.
    """

    positions: tuple[int, ...]
    text: str

    @property
    def position(self) -> int | None:
        """Of the operator of the subgraph itself."""
        return self.positions[0] if self.positions else None


@dataclass(frozen=True, slots=True)
class Rule:
    """How an operator with constants follows.

    Attributes:
        follow: Changes them, and returns what it changed.
        repeats: Whether it has to be asked again behind a change of its own.
        always: Whether it has something to say where nothing changes that the operator takes.
    """

    follow: Callable[[Walk, Operator], list[Edit]]
    repeats: bool = False
    always: bool = False


_DEEPEST = 32
"""Subgraphs that run each other."""


@dataclass(slots=True)
class Walk:
    """One walk over a subgraph.

    Attributes:
        editor: Of the model.
        subgraph: Is changed.
        before: Shapes with the old inputs.
        after: Shapes with the new ones, as the runtime tells; behind a refusal they are not known.
        asked: See there.
        rules: By name of the operator.
        refusal: Where the runtime refused the shapes.
        axes: What axes of the tensors consist of, where they change.
        edits: What was changed.
        stale: Ids of tensors whose new shape is not known yet.
        done: Ids of operators whose constants were changed, in this walk or one before.
        depth: How many operators ran the subgraph.
        told: Ids of operators, each with what was changed of it; names of tensors may be missing, or equal.
    """

    editor: Editor
    subgraph: SubGraph
    before: Shapes
    after: Shapes
    asked: Asked
    rules: Mapping[str, Rule]
    refusal: Refusal | None = None
    axes: dict[int, tuple[Axis, ...]] = field(default_factory=dict)
    edits: list[Edit] = field(default_factory=list)
    stale: set[int] = field(default_factory=set)
    done: set[int] = field(default_factory=set)
    graph: Graph = field(default_factory=Graph)
    depth: int = 0
    told: set[tuple[int, str]] = field(default_factory=set)

    def run(self) -> list[Edit]:
        """Changes the constants that follow; none where all shapes are right.

        Raises:
            UnsupportedError: One does not follow, or an operator refuses the shapes for another reason.
        """
        self.graph = Graph.of(self.editor.model)
        for tensor in self.subgraph.inputs:
            self.set_axes(tensor, axes_between(self.was(tensor), self.now(tensor)))
        stop = None if self.refusal is None else self.refusal.position
        for position, operator in enumerate(self.subgraph.operators):
            inputs = [tensor for tensor in operator.inputs if tensor is not None]
            if any(id(tensor) in self.stale for tensor in inputs):
                self._leave(operator)
                if position == stop:
                    break
                continue
            edits = self._follow(operator, any(self.moves(tensor) for tensor in inputs))
            self.edits += edits
            if position == stop:
                break
            if edits:
                self._leave(operator)
        if self.refusal is not None and not self.edits:
            raise self._refused(self.refusal)
        return self.edits

    def _follow(self, operator: Operator, moved: bool) -> list[Edit]:
        rule = self.rules.get(row_of(operator).name)
        found = list[Edit]()
        if rule is not None and (moved or rule.always):
            if rule.repeats or id(operator) not in self.done:
                found = rule.follow(self, operator)
            if found:
                self.done.add(id(operator))
        elif moved:
            found = _states(self, operator)
        if not found and row_of(operator).calls:
            found = self._enter(operator)
        outputs = [tensor for tensor in operator.outputs if tensor is not None]
        moved = moved or any(self.now(tensor) != self.was(tensor) for tensor in outputs)
        if moved and not found and not self.stops_at(operator):
            self._settle(operator)
        return found

    def _enter(self, operator: Operator) -> list[Edit]:
        """Follows sizes into the subgraphs that an operator runs."""
        found = list[Edit]()
        for inner in operator.subgraphs():
            refusal = self.refusal if self.stops_at(operator) else None
            if refusal is not None:
                deeper = refusal.positions[1:]
                is_here = bool(deeper) and deeper[0] < len(inner.operators)
                refusal = Refusal(deeper, refusal.text) if is_here else None
            if self.depth < _DEEPEST and inner is not self.subgraph:
                found += replace(
                    self,
                    subgraph=inner,
                    refusal=refusal,
                    axes={},
                    edits=[],
                    stale=set(),
                    depth=self.depth + 1,
                ).run()
        return found

    def stops_at(self, operator: Operator) -> bool:
        """Whether the runtime refused the shapes at this operator."""
        at = None if self.refusal is None else self.refusal.position
        return at is not None and self.subgraph.operators[at : at + 1] == [operator]

    def _leave(self, operator: Operator) -> None:
        self.stale.update(id(tensor) for tensor in operator.outputs if tensor is not None)

    def is_last(self, tensor: Tensor) -> bool:
        """Whether an output had no axis for its sample, of which there was one, and nothing else reads it.

        It may get one then.
        """
        is_output = any(item is tensor for item in self.subgraph.outputs)
        alone = self.asked.batch is not None and self.asked.batch[0] == 1
        return is_output and alone and not self.graph.uses_of(tensor)

    def was(self, tensor: Tensor) -> Shape:
        """Returns the shape of a tensor with the old inputs."""
        return self.before.get(id(tensor), tuple(tensor.shape or ()))

    def now(self, tensor: Tensor) -> Shape:
        """Returns the shape of a tensor with the new inputs, as far as the constants fit so far."""
        return self.after.get(id(tensor), tuple(tensor.shape or ()))

    def moves(self, tensor: Tensor) -> bool:
        """Whether a tensor has another shape than before."""
        return id(tensor) in self.axes

    def axes_of(self, tensor: Tensor) -> tuple[Axis, ...]:
        """Returns what the axes of a tensor consist of."""
        known = self.axes.get(id(tensor))
        return known if known is not None else tuple(((size, size),) for size in self.was(tensor))

    def set_axes(self, tensor: Tensor, axes: tuple[Axis, ...]) -> None:
        """Notes the axes of a tensor, if they change."""
        if any(map(changes, axes)):
            self.axes[id(tensor)] = axes

    def _settle(self, operator: Operator) -> None:
        """Notes what the outputs of an operator are like that takes its inputs as they are."""
        known = [axis for tensor in operator.inputs if tensor is not None for axis in self.axes_of(tensor)]
        _check_rows(self, operator)
        self._check_custom(operator)
        for tensor in operator.outputs:
            if tensor is None or id(tensor) in self.axes:
                continue
            before, after = self.was(tensor), self.now(tensor)
            if (
                self.asked.batch is not None
                and self.is_last(tensor)
                and after == (self.asked.batch[1], *before)
            ):
                self.set_axes(tensor, ((self.asked.batch,), *axes_between(before, before)))
                continue
            if len(before) != len(after):
                raise self.unfollowed(
                    operator, f"gives {list(after)}, which has other axes than {list(before)} had"
                )
            self.set_axes(tensor, axes_between(before, after, known))
            self._check_batch(operator, before, after)

    def _check_batch(self, operator: Operator, before: Shape, after: Shape) -> None:
        """Refuses what does not give so many times as much for so many times as many samples."""
        row = row_of(operator)
        if self.asked.batch is None or row in table.SHAPE_READERS or row.calls:
            return
        old, new = self.asked.batch
        if math.prod(after) * old != math.prod(before) * new:
            raise self.unfollowed(
                operator,
                f"does not keep the samples of a batch apart: it gives {list(before)} for {old} and "
                f"{list(after)} for {new}",
            )

    def _check_custom(self, operator: Operator) -> None:
        """Refuses a constant of a custom operator with a row for each place that there was, as anchors."""
        if operator.code.custom is None or self.asked.batch is not None:
            return
        inputs = [tensor for tensor in operator.inputs if tensor is not None]
        gone = {
            old
            for tensor in inputs
            for axis in self.axes.get(id(tensor), ())
            for old, new in axis
            if old != new
        }
        for tensor in inputs:
            sizes = gone & {size for size in self.was(tensor) if size > 1}
            if self.graph.is_constant(tensor) and sizes:
                raise self.unfollowed(
                    operator,
                    f"reads the constant {tensor.name!r}, which has {max(sizes)} rows, as many as before",
                )

    def unfollowed(self, operator: Operator, why: str) -> UnsupportedError:
        """What to raise where an operator cannot follow."""
        place = self.subgraph.operators.index(operator)
        number = self.editor.model.subgraphs.index(self.subgraph)
        where = self.editor.model.place_of(operator, f"subgraphs[{number}].operators[{place}]")
        outputs = ", ".join(repr(tensor.name) for tensor in operator.outputs if tensor is not None)
        return UnsupportedError(
            f"{operator.code.name} that gives {outputs or 'nothing'} {why}",
            where=where,
            remedy="cut the model before it (remove-dead --outputs), or convert the model for this shape",
        )

    def _refused(self, refusal: Refusal) -> UnsupportedError:
        text = f"refuses the new shapes: {refusal.text}"
        if refusal.position is None or refusal.position >= len(self.subgraph.operators):
            return UnsupportedError(f"the runtime {text}", remedy="choose other sizes")
        operator = self.subgraph.operators[refusal.position]
        shapes = ", ".join(
            f"{tensor.name!r} {list(self.now(tensor))}"
            + (" (a constant)" if self.graph.is_constant(tensor) else "")
            for tensor in operator.inputs
            if tensor is not None
        )
        return self.unfollowed(operator, f"{text}; it takes {shapes}")

    def numbers(self, operator: Operator, position: int) -> list[int] | None:
        """Returns the integers of a constant operand; None where it is absent or computed."""
        tensor = operator.inputs[position] if position < len(operator.inputs) else None
        if tensor is None or not self.graph.is_constant(tensor) or tensor.is_sparse or tensor.external:
            return None
        values = tensor.values
        return [int(value) for value in values.reshape(-1)] if values.dtype.kind in "iu" else None

    def put(self, operator: Operator, position: int, numbers: Sequence[int]) -> list[Edit]:
        """Gives an operator other integers; others that read the same constant keep it."""
        tensor, old = operator.inputs[position], self.numbers(operator, position)
        assert tensor is not None and old is not None
        if list(numbers) == old:
            return []
        array = np.array(numbers, tensor.values.dtype).reshape(tensor.shape or ())
        data = bytes_of(array, tensor.dtype, tensor.shape or ())
        self.replace(operator, position, data, tensor.shape)
        return [self.edit(operator, f"{old} is now {list(numbers)}")]

    def replace(
        self,
        operator: Operator,
        position: int,
        data: bytes,
        shape: Shape | None,
        subgraph: SubGraph | None = None,
    ) -> None:
        """Gives an operator, of this subgraph or another one, a constant of the same type in place of one."""
        tensor = operator.inputs[position]
        assert tensor is not None
        buffer = Buffer(OwnedBlob(data), is_new=True)
        if len(self.graph.uses_of(tensor)) == 1 and id(tensor) not in self.graph.exposed:
            tensor.buffer, tensor.shape = buffer, shape
            return
        rest = tensor.rest
        made = Tensor(tensor.name, shape, tensor.dtype, buffer, tensor.quantization, rest=rest)
        operator.inputs[position] = self.editor.add_tensor(subgraph or self.subgraph, made)

    def edit(self, operator: Operator, what: str) -> Edit:
        """What is told of a change."""
        self.told.add((id(operator), what))
        named = [tensor for tensor in operator.outputs or operator.inputs[:1] if tensor is not None]
        names = ", ".join(tensor.name or "(unnamed)" for tensor in named)
        return Edit(f"{operator.code.name} {'->' if operator.outputs else 'of'} {names}", what)

    def is_fixed(self, operator: Operator) -> UnsupportedError:
        """What to raise where a constant would have to say a number that is free."""
        return self.unfollowed(operator, "takes the number of samples from a constant, which cannot say -1")

    def twins(self, size: int) -> Collection[int]:
        """Returns the sizes that axes of tensors have now that had a size, other than the first axis."""
        found = (factor for axes in self.axes.values() for axis in axes[1:] for factor in axis)
        return {new for old, new in found if old == size and old != new}


def _states(walk: Walk, operator: Operator) -> list[Edit]:
    """What an operator remembers of each sample, in variable tensors of as many rows."""
    edits = list[Edit]()
    for tensor in operator.inputs:
        if tensor is None or not tensor.is_variable or walk.asked.batch is None:
            continue
        old, new = walk.asked.batch
        if not tensor.shape or tensor.shape[0] != old or old == new:
            continue
        if new > 1 and (wrong := row_of(operator).one_sample):
            raise walk.unfollowed(operator, wrong)
        if walk.asked.is_free:
            raise walk.unfollowed(operator, f"remembers as many samples as {tensor.name!r} has rows")
        tensor.shape = (new, *tensor.shape[1:])
        edits.append(walk.edit(operator, f"the state {tensor.name!r} has {new} rows"))
    return edits


def _check_rows(walk: Walk, operator: Operator) -> None:
    """FULLY_CONNECTED cuts what it is given into rows of as many elements as its weights take."""
    row = row_of(operator)
    if row.product is not ProductKind.DENSE or len(operator.inputs) < 2 or walk.asked.batch is not None:
        return
    data, weight = operator.inputs[:2]
    taken = weight.shape[-1] if weight is not None and weight.shape else 0
    if data is None or not taken:
        return
    before, after = walk.was(data), walk.now(data)
    at = next((at for at in range(len(before), -1, -1) if math.prod(before[at:]) == taken), None)
    if at is not None and math.prod(after[at:]) != taken:
        raise walk.unfollowed(
            operator,
            f"has weights for {taken} elements a row, and a row has {math.prod(after[at:])} now "
            f"({list(before)} became {list(after)})",
        )
