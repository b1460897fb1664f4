"""remove-noops: operators that give out what they are given go.

Goes:

* What copies all of an input in its order and shape: a whole SLICE or STRIDED_SLICE, PAD by nothing, TILE
  once, BROADCAST_TO, RESHAPE, TRANSPOSE, RESIZE, CAST, QUANTIZE to what is there already, SPLIT or
  CONCATENATION of one, MUL and DIV by 1, POW 1, ADD of -0.0, SUB of 0.0, ADD and SUB of an integer 0.
* What only reshapes (RESHAPE, SQUEEZE, EXPAND_DIMS, PACK and UNPACK of one) before what gives the numbers
  another shape, too: RESHAPE, and FULLY_CONNECTED, whose kernel flattens what it reads; what adds axes of one
  element before ADD, MUL and the like, which broadcast.
* Chains of TRANSPOSE and RESHAPE that leave the order as it was; two TRANSPOSE become one, and one that moves
  axes of one element becomes RESHAPE.
* UNPACK of a PACK along the same axis, PACK of an UNPACK, CONCATENATION of a SPLIT; QUANTIZE of what
  DEQUANTIZE has made of the same integers; RELU, RELU6 and the like of what is cut off there already.
* Then what only these have read.

Stays: whatever lets an exposed tensor keep its name, such as a copy of an input that is an output; what reads
or makes a state; QUANTIZE before DEQUANTIZE, which rounds; what changes nothing only by the shapes that a
file declares, which are not believed (:mod:`tfl_rewrite.editing.shapes`). Sizes of inputs are those that the
file states: a caller who gives an input another size than that may miss what was removed.

Outputs are equal to the bit, but for infinite numbers, which stay what they are: without a delegate, kernels
of ADD, SUB, MUL and DIV make the largest float of them, and RESIZE_BILINEAR to the same size makes NaN of
what stands beside one, and 0.0 of -0.0. Refuses when metadata refers to what would move
(:mod:`tfl_rewrite.editing.metadata`). A second run finds nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tfl_rewrite.editing.base import Context, Edit, Effect, Pass, PassResult, Skip
from tfl_rewrite.editing.metadata import positions_moved
from tfl_rewrite.editing.rewiring import Rewiring, alike, label
from tfl_rewrite.flatbuf.record import INT32, ScalarVector
from tfl_rewrite.kernels.copies import copy_of
from tfl_rewrite.kernels.shapes import Shape, UnknownShapeError, broadcast_shape, elements
from tfl_rewrite.kernels.table import (
    CONCATENATION,
    DEQUANTIZE,
    FULLY_CONNECTED,
    PACK,
    QUANTIZE,
    RESHAPE,
    SPLIT,
    TRANSPOSE,
    UNPACK,
    row_named,
    row_of,
)
from tfl_rewrite.model import dtypes
from tfl_rewrite.model.graph import Use
from tfl_rewrite.model.ir import Model, Operator, SubGraph, Tensor, schema

_LONGEST = 6
"""Operators of a chain whose order is followed."""
_MOST_ELEMENTS = 1 << 22
"""Of a tensor whose order is followed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RemoveNoops(Pass):
    """Removes operators that give out what they are given.

    Removes whole slices, reshapes that change nothing or stand before one that flattens, PACK and UNPACK that
    cancel, padding by nothing, and the like. Outputs stay equal to the bit.

    Example:
        >>> from tfl_rewrite.passes import RemoveNoops
        >>> model = tfl_rewrite.load("model.tflite")
        >>> (result,) = tfl_rewrite.run(model, [RemoveNoops()])
        >>> [change.what for change in result.changes]
        ['removed: FULLY_CONNECTED gives the numbers another shape, too']
    """

    name: ClassVar[str] = "remove-noops"
    effect: ClassVar[Effect] = Effect.EXACT
    place: ClassVar[str] = "after dedup, so that what copies the same thing twice is seen once"

    def run(self, model: Model, context: Context) -> PassResult:
        """Removes them.

        Raises:
            UnsupportedError: Metadata refers to what would move.
        """
        changes: list[Edit] = []
        notes: list[str] = []
        while True:
            # What is gone may have been all that kept a shape from being known.
            cleaner = _Cleaner(model)
            for subgraph in model.subgraphs:
                while cleaner.sweep(subgraph):
                    pass
            if not cleaner.changes:
                break
            cleaner.wires.finish()
            changes += cleaner.changes
            notes += cleaner.wires.editor.notes
        skips = tuple(cleaner.skips.values())
        if not changes:
            return PassResult(self.name, (), skips, idle="no operator gives out what it is given")
        notes += positions_moved(model)
        return PassResult(self.name, tuple(changes), skips, tuple(notes), grows=True)


class _Cleaner:
    """Goes over the operators of a model until none of them can go."""

    def __init__(self, model: Model) -> None:
        self.wires = Rewiring(model)
        self.shapes, self.graph = self.wires.shapes, self.wires.graph
        self.changes: list[Edit] = []
        self.skips: dict[int, Skip] = {}
        self._rules: tuple[Callable[[SubGraph, Operator], str], ...] = (
            self._drop_copy,
            self._drop_clamp,
            self._drop_requantized,
            self._unpack_packed,
            self._pack_unpacked,
            self._drop_round_trip,
            self._join_transposes,
            self._skip_reshape,
            self._reshape_instead,
        )

    def sweep(self, subgraph: SubGraph) -> bool:
        """Goes over a subgraph once; returns whether anything changed."""
        before = len(self.changes)
        for operator in list(subgraph.operators):
            if id(operator) in self.wires.gone or not self.wires.is_pure(operator):
                continue
            for rule in self._rules:
                named = label(operator)
                if what := rule(subgraph, operator):
                    self.changes.append(Edit(named, what))
                    break
        return len(self.changes) > before

    # -- Rules: what was done, in words; empty where nothing was --------------------------------------------

    def _drop_copy(self, subgraph: SubGraph, operator: Operator) -> str:
        """Drops what gives out an input in its shape."""
        source = self._copied(operator)
        output = operator.outputs[0] if operator.outputs else None
        if source is None or output is None or not self._same_shape(operator, source, output):
            return ""
        return self._put(subgraph, operator, output, source, "removed: it gives out what it is given")

    def _drop_clamp(self, subgraph: SubGraph, operator: Operator) -> str:
        """Drops what cuts off numbers that were cut off before."""
        bounds = row_of(operator).clamps
        source, output = _first(operator)
        maker = self.graph.maker_of(source) if source is not None else None
        if bounds is None or source is None or output is None or maker is None:
            return ""
        inner = _bounds(maker)
        if inner is None or inner[0] < bounds[0] or inner[1] > bounds[1]:
            return ""
        return self._put(subgraph, operator, output, source, f"removed: {maker.code.name} cuts off as much")

    def _drop_requantized(self, subgraph: SubGraph, operator: Operator) -> str:
        """Drops the QUANTIZE of integers that DEQUANTIZE made floats of."""
        floats, output = _first(operator)
        maker = self.graph.maker_of(floats) if floats is not None else None
        if row_of(operator) is not QUANTIZE or maker is None or row_of(maker) is not DEQUANTIZE:
            return ""
        source = _first(maker)[0]
        if source is None or output is None or self.graph.is_constant(source) or not alike(source, output):
            return ""
        return self._put(
            subgraph, operator, output, source, "removed: DEQUANTIZE had made floats of the same"
        )

    def _unpack_packed(self, subgraph: SubGraph, operator: Operator) -> str:
        """Drops an UNPACK of what a PACK put together."""
        packed = _first(operator)[0]
        maker = self.graph.maker_of(packed) if packed is not None else None
        if row_of(operator) is not UNPACK or maker is None or row_of(maker) is not PACK:
            return ""
        if len(maker.inputs) != len(operator.outputs) or not self._one_axis(maker, packed, operator, packed):
            return ""
        both = zip(operator.outputs, maker.inputs, strict=True)
        pairs = [(old, new) for old, new in both if old is not None and new is not None]
        if len(pairs) < len(operator.outputs) or any(self.wires.refusal(*pair) for pair in pairs):
            return ""
        if any(id(old) in self.graph.exposed for old, _ in pairs):
            return ""
        self.wires.substitute(subgraph, operator, pairs)
        return "removed: PACK had put the same together"

    def _pack_unpacked(self, subgraph: SubGraph, operator: Operator) -> str:
        """Drops a PACK or CONCATENATION of what an UNPACK or SPLIT has parted."""
        first, output = _first(operator)
        maker = self.graph.maker_of(first) if first is not None else None
        if maker is None or output is None or operator.option("fused_activation_function"):
            return ""
        kinds = (row_of(maker), row_of(operator))
        if kinds not in ((UNPACK, PACK), (SPLIT, CONCATENATION)):
            return ""
        if list(map(id, operator.inputs)) != list(map(id, maker.outputs)):
            return ""
        # A CONCATENATION of uint8 rescales parts of another scale.
        if not all(part is not None and alike(part, output) for part in operator.inputs):
            return ""
        whole = maker.inputs[0 if kinds[0] is UNPACK else 1]
        if whole is None or not self._one_axis(maker, whole, operator, output):
            return ""
        named = kinds[0].name
        return self._put(subgraph, operator, output, whole, f"removed: {named} had parted the same")

    def _drop_round_trip(self, subgraph: SubGraph, operator: Operator) -> str:
        """Drops the last of a chain that moves numbers back to where they were."""
        chain = self._chain(operator)
        output = operator.outputs[0] if operator.outputs else None
        for start in range(len(chain) - 1):
            part = chain[start:]
            source = _first(part[0])[0]
            if source is None or output is None or not self._in_order(part):
                continue
            if self.shapes.full(source) == self.shapes.full(output):
                what = f"removed: with {part[0].code.name} before it, it changes nothing"
                if done := self._put(subgraph, operator, output, source, what):
                    return done
            elif any(row_of(item) is TRANSPOSE for item in part) and self._lone(part):
                return self._as_reshape(subgraph, operator, source, output)
        return ""

    def _join_transposes(self, subgraph: SubGraph, operator: Operator) -> str:
        """Makes one TRANSPOSE of two."""
        source, output = _first(operator)
        maker = self.graph.maker_of(source) if source is not None else None
        if source is None or output is None or maker is None or not self._lone([maker, operator]):
            return ""
        orders = [self._order(item) for item in (maker, operator)]
        start = _first(maker)[0]
        if start is None or None in orders or not alike(start, output) or not self.wires.is_value(start):
            return ""
        first, second = (order or [] for order in orders)
        if len(first) != len(second):
            return ""
        order = operator.inputs[1]
        assert order is not None
        numbers = np.array([first[axis] for axis in second], "<i4")
        buffer = self.wires.editor.add_buffer(numbers.tobytes())
        made = Tensor(f"{order.name}_joined", (len(first),), dtypes.INT32.value, buffer)
        self.wires.editor.add_tensor(subgraph, made)
        self.wires.read(subgraph, operator, 1, made)
        self.wires.read(subgraph, operator, 0, start)
        return "does what the TRANSPOSE before it did, too"

    def _skip_reshape(self, subgraph: SubGraph, operator: Operator) -> str:
        """Drops what only reshapes, where all that read it give the numbers another shape themselves."""
        source = self._copied(operator)
        output = operator.outputs[0] if operator.outputs else None
        if source is None or output is None or id(output) in self.graph.exposed:
            return ""
        uses = list(self.graph.uses_of(output))
        if not uses or not (self.wires.is_value(source) and self.wires.is_value(output)):
            return ""
        # The runtime's kernels and delegates count axes; none takes none, and some take no more than these.
        if not alike(source, output) or not source.shape or not 0 < len(self.shapes[source] or ()) <= 4:
            return ""
        if not all(self._gives_shape(use, source) for use in uses):
            return ""
        readers = ", ".join(dict.fromkeys(use.operator.code.name for use in uses))
        for use in uses:
            if _flattens(use.operator) or row_of(use.operator).elementwise:
                self.wires.read(subgraph, use.operator, use.position, source)
                continue
            made = use.operator.outputs[0]
            assert made is not None
            self._as_reshape(subgraph, use.operator, source, made)
        return f"removed: {readers} gives the numbers another shape, too"

    def _reshape_instead(self, subgraph: SubGraph, operator: Operator) -> str:
        """Makes RESHAPE of a TRANSPOSE that moves axes of one element."""
        source, output = _first(operator)
        if row_of(operator) is not TRANSPOSE or source is None or output is None:
            return ""
        if self._copied(operator) is None:
            return ""
        return self._as_reshape(subgraph, operator, source, output)

    # -- What rules ask -------------------------------------------------------------------------------------

    def _put(self, subgraph: SubGraph, operator: Operator, old: Tensor, new: Tensor, what: str) -> str:
        """Puts a tensor in the place of what an operator gives out; returns what was done, if it was."""
        if refusal := self.wires.refusal(old, new):
            reason = f"it gives out what it is given, and stays: {refusal}"
            self.skips[id(operator)] = Skip(label(operator), reason, "stays")
            return ""
        self.skips.pop(id(operator), None)
        self.wires.substitute(subgraph, operator, [(old, new)])
        return what

    def _copied(self, operator: Operator) -> Tensor | None:
        """Returns the input that an operator gives out number by number, in any shape."""
        if row_of(operator).copies is None or len(operator.outputs) != 1:
            return None
        copy = copy_of(row_of(operator).copies, self.shapes.given(operator))
        output = operator.outputs[0]
        source = (
            operator.inputs[copy.position]
            if copy is not None and copy.position < len(operator.inputs)
            else None
        )
        return source if source is not None and output is not None and alike(source, output) else None

    def _same_shape(self, operator: Operator, source: Tensor, output: Tensor) -> bool:
        """Whether a copy has the shape of what is copied."""
        copy = copy_of(row_of(operator).copies, self.shapes.given(operator))
        if copy is not None and not copy.reshapes:
            return True
        return _equal(self.shapes[source], self.shapes[output])

    def _gives_shape(self, use: Use, source: Tensor) -> bool:
        """Whether an operator gives out the same if it reads the same numbers in the shape of a tensor."""
        operator = use.operator
        if row_of(operator).elementwise:
            return self._broadcasts(use, source)
        if use.position or _flattens(operator):
            return not use.position
        output = operator.outputs[0] if operator.outputs else None
        reshapes = self.wires.is_pure(operator) and self._copied(operator) is not None
        return reshapes and bool(self.shapes.full(output)) and not self._keeps_shape(operator)

    def _broadcasts(self, use: Use, source: Tensor) -> bool:
        """Whether an operand may lack axes of one element that another one has."""
        mine, (_, output) = self.shapes.full(source), _first(use.operator)
        if output is None or use.operator.inputs[0] is use.operator.inputs[-1]:
            return False
        operands = [self.shapes.full(item) for item in use.operator.inputs]
        if mine is None or None in operands:
            return False
        old = operands[use.position] or ()
        if old != (1,) * (len(old) - len(mine)) + mine:
            return False
        operands[use.position] = mine
        return broadcast_shape(*(item or () for item in operands)) == self.shapes.full(output)

    def _keeps_shape(self, operator: Operator) -> bool:
        copy = copy_of(row_of(operator).copies, self.shapes.given(operator))
        return copy is None or not copy.reshapes or copy.position != 0

    def _chain(self, operator: Operator) -> list[Operator]:
        """Returns the operators that move and reshape numbers one after the other, up to this one."""
        chain: list[Operator] = []
        current: Operator | None = operator
        while current is not None and len(chain) < _LONGEST:
            source, output = _first(current)
            if (
                source is None
                or output is None
                or not self.wires.is_pure(current)
                or not alike(source, output)
            ):
                break
            sizes = [self.shapes.full(source), self.shapes.full(output)]
            if None in sizes or any((elements(size or ()) or 0) > _MOST_ELEMENTS for size in sizes):
                break
            if self._order(current) is None and (self._copied(current) is None or self._keeps_shape(current)):
                break
            chain.insert(0, current)
            if not self.wires.is_value(source):
                break
            current = self.graph.maker_of(source)
        return chain

    def _order(self, operator: Operator) -> list[int] | None:
        """Returns the axes of a TRANSPOSE in their order; None where there is none, or it is computed."""
        if row_of(operator) is not TRANSPOSE:
            return None
        try:
            order = self.shapes.given(operator).integers(1)
        except UnknownShapeError:
            return None
        rank = len(order)
        positive = [axis + rank if axis < 0 else axis for axis in order]
        return positive if sorted(positive) == list(range(rank)) else None

    def _in_order(self, chain: list[Operator]) -> bool:
        """Whether the numbers come out of a chain in the order in which they went in."""
        start = self.shapes.full(_first(chain[0])[0]) or ()
        numbers = np.arange(elements(start) or 0, dtype=np.int32).reshape(start)
        for operator in chain:
            order, shape = self._order(operator), self.shapes.full(operator.outputs[0])
            assert shape is not None
            numbers = numbers.reshape(shape) if order is None else numbers.transpose(order)
        flat = numbers.reshape(-1)
        return bool((flat[1:] > flat[:-1]).all())

    def _lone(self, chain: list[Operator]) -> bool:
        """Whether nobody but the next of a chain reads what one of it makes."""
        inner = [item.outputs[0] for item in chain[:-1]]
        return all(
            item is not None and len(self.graph.uses_of(item)) == 1 and id(item) not in self.graph.exposed
            for item in inner
        )

    def _one_axis(
        self, first: Operator, parted: Tensor | None, second: Operator, whole: Tensor | None
    ) -> bool:
        """Whether two operators part and join along the same axis."""
        rank = len(self.shapes[parted] or self.shapes[whole] or ())
        axes: list[int] = []
        for operator in (first, second):
            axis = operator.option("axis")
            if row_of(operator) is SPLIT:
                try:
                    (axis,) = self.shapes.given(operator).integers(0)
                except (UnknownShapeError, ValueError):
                    return False
            if axis is None:
                return False
            axes.append(int(axis) + rank if axis < 0 else int(axis))
        return bool(rank) and axes[0] == axes[1]

    def _as_reshape(self, subgraph: SubGraph, operator: Operator, source: Tensor, output: Tensor) -> str:
        """Puts a RESHAPE of a tensor in the place of an operator that gives out the same."""
        shape = self.shapes.full(output)
        if not shape or not source.shape or not alike(source, output) or not self.wires.is_value(source):
            return ""
        editor = self.wires.editor
        target = Tensor(
            f"{output.name}_shape",
            (len(shape),),
            dtypes.INT32.value,
            editor.constant(np.array(shape, "<i4").tobytes()),
        )
        editor.add_tensor(subgraph, target)
        made = editor.builtin(RESHAPE, 1, [source, target], output, new_shape=ScalarVector.of(INT32, shape))
        self.wires.replace(subgraph, operator, made)
        return "became RESHAPE, which moves nothing"


def _first(operator: Operator) -> tuple[Tensor | None, Tensor | None]:
    """Returns the first input and the first output."""
    ends = (operator.inputs, operator.outputs)
    first, last = (items[0] if items else None for items in ends)
    return first, last


def _flattens(operator: Operator) -> bool:
    """Whether an operator takes the numbers of input 0 in any shape."""
    row = row_of(operator)
    return row is RESHAPE or (row is FULLY_CONNECTED and not operator.option("keep_num_dims"))


def _bounds(operator: Operator) -> tuple[float, float] | None:
    """Returns between which bounds an operator cuts off what it gives out; None where it does not."""
    row = row_of(operator)
    if row.clamps is not None:
        return row.clamps
    fused = operator.option("fused_activation_function")
    if not fused or not (row.is_layer or row.elementwise):
        return None
    return row_named(schema().enums["ActivationFunctionType"].name_of(fused)).clamps


def _equal(first: Shape | None, second: Shape | None) -> bool:
    """Whether two shapes of as many elements are one; one unknown dimension follows from the others."""
    if first is None or second is None or len(first) != len(second):
        return False
    pairs = [(one, other) for one, other in zip(first, second, strict=True)]
    unknown = [pair for pair in pairs if None in pair]
    known = [pair for pair in pairs if None not in pair]
    return len(unknown) <= 1 and all(one == other and (one or not unknown) for one, other in known)


__all__ = ["RemoveNoops"]
