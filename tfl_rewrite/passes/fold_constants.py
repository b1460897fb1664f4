"""fold-constants: what is the same in every run is computed once, now.

Goes: SHAPE of a tensor all of whose sizes are known (:mod:`tfl_rewrite.editing.shapes`), RANK, and every
operator whose inputs are constants then; the runtime itself computes them, in the sandboxed child, with all
its kernels, which have to agree to the bit. Then constants that only these have read.

Stays: what draws random numbers, keeps a state, runs subgraphs or is custom; what makes an output; DEQUANTIZE
and DENSIFY, which store weights small, unless asked for (``weights``); weights that an operator computes,
where a kernel may add in another order with constant ones; an operator whose results take over ``max_growth``
bytes more than the constants that it alone needed. That is asked of each by itself: of their sum a second run
would not know what the first one took. Sizes of inputs are those that the file states (``shape_signature`` -1
is any size).

Outputs are equal to the bit. Refuses when metadata refers to what would move
(:mod:`tfl_rewrite.editing.metadata`). A second run finds nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tfl_rewrite.editing.base import Context, Edit, Effect, Pass, PassResult, Skip
from tfl_rewrite.editing.constant_part import Array, NotComputedError, Part, computed
from tfl_rewrite.editing.metadata import positions_moved
from tfl_rewrite.editing.rewiring import Rewiring, label
from tfl_rewrite.kernels.table import DENSIFY, DEQUANTIZE, SHAPE_READERS, row_of
from tfl_rewrite.model import dtypes
from tfl_rewrite.model.ir import Model, Operator, SubGraph, Tensor
from tfl_rewrite.options.option import option

_MOST_ROUNDS = 50
"""Each finds what the one before has made constant; a model of some size takes two."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FoldConstants(Pass):
    """Computes once what is the same in every run.

    Folds SHAPE of tensors of known size, and operators all of whose inputs are constants; the runtime
    computes them. Outputs stay equal to the bit.

    Example:
        >>> from tfl_rewrite.passes import FoldConstants
        >>> report = tfl_rewrite.rewrite("model.tflite", "folded.tflite", [FoldConstants()])
        >>> report.outcome
        'unchanged'
    """

    name: ClassVar[str] = "fold-constants"
    effect: ClassVar[Effect] = Effect.EXACT
    place: ClassVar[str] = "before what asks for constants, such as shapes that RESHAPE is told"

    max_growth: int = option(
        1024,
        "fold an operator where its results take at most N bytes more than the constants that it alone "
        "needs; shapes and axes take a few",
        metavar="N",
        bounds=(0, 1 << 40),
    )
    weights: bool = option(
        False,
        "fold DEQUANTIZE and DENSIFY of constants, too, within --max-growth: weights are stored in full then",
    )

    def run(self, model: Model, context: Context) -> PassResult:
        """Folds them.

        Raises:
            UnsupportedError: Metadata refers to what would move.
        """
        changes: list[Edit] = []
        skips: dict[int, Skip] = {}
        notes: list[str] = []
        for _ in range(_MOST_ROUNDS):
            folder = _Folder(model, self.weights, self.max_growth, skips)
            done = [edit for subgraph in model.subgraphs for edit in folder.fold(subgraph)]
            if not done:
                break
            folder.wires.finish()
            notes += folder.wires.editor.notes
            changes += done
        if not changes:
            idle = "no operator gives the same in every run"
            return PassResult(self.name, (), tuple(skips.values()), idle=idle)
        notes += positions_moved(model)
        return PassResult(self.name, tuple(changes), tuple(skips.values()), tuple(notes), grows=True)


class _Folder:
    """Folds what is constant in a model as it is.

    Args:
        model: Changed in place.
        weights: Whether weights that are stored small are folded, too.
        growth: Bytes that what an operator gives may take more than what only it needed.
        skips: By the id of the operator; added to.
    """

    def __init__(self, model: Model, weights: bool, growth: int, skips: dict[int, Skip]) -> None:
        self.model, self.weights, self.growth, self.skips = model, weights, growth, skips
        self.wires = Rewiring(model)
        self.shapes, self.graph = self.wires.shapes, self.wires.graph
        self._shared = {key for key, tensors in model.holders().items() if len(tensors) > 1}

    def fold(self, subgraph: SubGraph) -> list[Edit]:
        """Folds what can be in a subgraph; what that makes constant is left for another time."""
        changes = []
        for operator in list(subgraph.operators):
            if (told := self._told(operator)) is not None and self._allowed(operator, [told.nbytes]):
                changes.append(self._store(subgraph, operator, [told]))
        candidates = self._candidates(subgraph)
        ends = [item for item in candidates.values() if self._is_end(item, candidates)]
        chosen = [item for item in ends if self._allowed_end(item, candidates)]
        if not chosen:
            return changes
        for operators, values in self._computed(chosen, candidates):
            for operator in operators:
                arrays = [values[id(tensor)] for tensor in operator.outputs if id(tensor) in values]
                if self._allowed(
                    operator, [item.nbytes for item in arrays], self._freed(operator, candidates)
                ):
                    changes.append(self._store(subgraph, operator, arrays))
        return changes

    # -- What can be folded ----------------------------------------------------------------------------------

    def _told(self, operator: Operator) -> Array | None:
        """Returns what reads the shape of a tensor alone gives out, where that is known."""
        row, output = row_of(operator), operator.outputs[0] if operator.outputs else None
        if row not in SHAPE_READERS or output is None or not operator.inputs or not self._may_go(operator):
            return None
        kind = dtypes.BY_VALUE.get(output.dtype)
        if kind is None or kind.name not in ("INT32", "INT64"):
            return None
        if row is SHAPE_READERS[0]:
            sizes = self.shapes.full(operator.inputs[0])
            return None if not sizes else np.array(sizes, kind.numpy)
        shape = self.shapes[operator.inputs[0]]
        return None if shape is None else np.array(len(shape), kind.numpy)

    def _candidates(self, subgraph: SubGraph) -> dict[int, Operator]:
        """Returns the operators that need nothing but constants, in order, by their ids."""
        found: dict[int, Operator] = {}
        known: set[int] = set()
        for operator in subgraph.operators:
            inputs = [item for item in operator.inputs if item is not None]
            if not inputs or not self._may_go(operator):
                continue
            if not all(id(item) in known or self._is_stored(item) for item in inputs):
                continue
            if not self.weights and row_of(operator) in (DEQUANTIZE, DENSIFY):
                continue
            found[id(operator)] = operator
            known.update(id(item) for item in operator.outputs if item is not None)
        return found

    def _may_go(self, operator: Operator) -> bool:
        """Whether an operator does nothing but compute what somebody inside reads, of a type with bytes."""
        outputs = [item for item in operator.outputs if item is not None]
        if id(operator) in self.wires.gone or not self.wires.is_pure(operator) or not outputs:
            return False
        return all(
            self.wires.is_value(item)
            and id(item) not in self.graph.exposed
            and id(item) not in self.graph.given
            and bool(dtypes.BY_VALUE[item.dtype].numpy if item.dtype in dtypes.BY_VALUE else "")
            for item in outputs
        )

    def _is_stored(self, tensor: Tensor) -> bool:
        if not self.graph.is_constant(tensor) or tensor.external is not None:
            return False
        return self.shapes[tensor] is not None and (self.weights or not tensor.is_sparse)

    def _is_end(self, operator: Operator, candidates: dict[int, Operator]) -> bool:
        """Whether others than candidates read what an operator makes."""
        uses = [use for item in operator.outputs if item is not None for use in self.graph.uses_of(item)]
        return any(id(use.operator) not in candidates for use in uses)

    def _allowed_end(self, operator: Operator, candidates: dict[int, Operator]) -> bool:
        """Whether what an operator makes may be a constant, as far as is known before it is computed."""
        sizes = [self._nbytes(item) for item in operator.outputs if item is not None]
        if row_of(operator) not in (DEQUANTIZE, DENSIFY):
            for item in operator.outputs:
                if item is not None and (host := self.wires.weight_reader(item)) is not None:
                    reason = f"with constant weights {host.code.name} may add in another order"
                    self.skips[id(operator)] = Skip(label(operator), reason, "weights")
                    return False
        known = [size for size in sizes if size is not None]
        return self._allowed(operator, known, self._freed(operator, candidates))

    def _nbytes(self, tensor: Tensor) -> int | None:
        shape = self.shapes.full(tensor)
        return (
            None if shape is None else dtypes.BY_VALUE[tensor.dtype].nbytes(int(np.prod(shape, dtype=object)))
        )

    def _allowed(self, operator: Operator, sizes: Iterable[int], freed: int = 0) -> bool:
        """Whether what an operator gives may be constants of such sizes; where it may not, says why."""
        growth = sum(sizes) - freed
        if growth > self.growth:
            reason = f"it would take {growth:,} bytes more; --max-growth allows {self.growth:,}"
            self.skips[id(operator)] = Skip(label(operator), reason, "growth")
            return False
        self.skips.pop(id(operator), None)
        return True

    def _freed(self, operator: Operator, candidates: dict[int, Operator]) -> int:
        """Returns the bytes of constants that nobody reads any more once an operator is folded."""
        cone = {id(operator)}
        freed: dict[int, int] = {}
        for item in reversed(list(candidates.values())):
            if id(item) not in cone:
                outputs = [tensor for tensor in item.outputs if tensor is not None]
                uses = [use for tensor in outputs for use in self.graph.uses_of(tensor)]
                if not uses or any(id(use.operator) not in cone for use in uses):
                    continue
                cone.add(id(item))
        for item in (candidates[key] for key in cone):
            for tensor in item.inputs:
                if tensor is None or not self.graph.is_constant(tensor):
                    continue
                inside = all(id(use.operator) in cone for use in self.graph.uses_of(tensor))
                if inside and id(tensor.buffer) not in self._shared and id(tensor) not in self.graph.exposed:
                    freed[id(tensor.buffer)] = tensor.buffer.nbytes
        return sum(freed.values())

    # -- Folding ---------------------------------------------------------------------------------------------

    def _computed(
        self, chosen: Sequence[Operator], candidates: dict[int, Operator]
    ) -> list[tuple[list[Operator], dict[int, Array]]]:
        """Returns what operators give out, by the ids of tensors; all at once, or in parts if need be."""
        try:
            return [(list(chosen), self._run(chosen, candidates))]
        except NotComputedError as error:
            if len(chosen) == 1:
                self.skips[id(chosen[0])] = Skip(
                    label(chosen[0]), f"it is not computed here: {error}", "runtime"
                )
                return []
        middle = len(chosen) // 2
        halves = (chosen[:middle], chosen[middle:])
        return [made for half in halves for made in self._computed(half, candidates)]

    def _run(self, chosen: Sequence[Operator], candidates: dict[int, Operator]) -> dict[int, Array]:
        needed, waiting = set(), list(chosen)
        while waiting:
            operator = waiting.pop()
            if id(operator) in needed:
                continue
            needed.add(id(operator))
            makers = [self.graph.maker_of(item) for item in operator.inputs if item is not None]
            waiting += [item for item in makers if item is not None]
        operators = [item for key, item in candidates.items() if key in needed]
        outputs = [tensor for item in chosen for tensor in item.outputs if tensor is not None]
        values = computed(self.model, Part(operators, outputs))
        made = dict(zip(map(id, outputs), values, strict=True))
        for tensor in outputs:
            if made[id(tensor)].dtype != np.dtype(dtypes.BY_VALUE[tensor.dtype].numpy):
                raise NotComputedError(f"{tensor.name!r} comes in another type")
            if not made[id(tensor)].nbytes:
                raise NotComputedError(f"{tensor.name!r} has no elements")
        return made

    def _store(self, subgraph: SubGraph, operator: Operator, values: Sequence[Array]) -> Edit:
        """Makes constants of what an operator gives out, and removes it."""
        named = label(operator)
        outputs = [item for item in operator.outputs if item is not None]
        for tensor, value in zip(outputs, values, strict=True):
            tensor.buffer = self.wires.editor.constant(np.ascontiguousarray(value).tobytes())
            tensor.shape, tensor.signature = value.shape, None
        self.wires.remove(subgraph, operator)
        sizes = ", ".join(str(list(value.shape)) for value in values)
        return Edit(named, f"computed once: a constant of shape {sizes}")


__all__ = ["FoldConstants"]
