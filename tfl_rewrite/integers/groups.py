"""Scale groups: the tensors of a graph that must share scale and zero point, and what those are."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field, replace

import numpy as np

from tfl_rewrite.integers.modes import Modes, Range, float_inputs, float_outputs, kernel_of, least_score
from tfl_rewrite.kernels.integer import CELL_SCALES, Memory, Scales
from tfl_rewrite.kernels.operands import fused_activation, input_of
from tfl_rewrite.kernels.operators import Squash
from tfl_rewrite.kernels.table import ADD, SUB, row_of
from tfl_rewrite.model.graph import Graph
from tfl_rewrite.model.ir import Operator, Quantization, Tensor
from tfl_rewrite.options.frozen import frozen, slotted

LEAST_SCALE = float(np.finfo(np.float32).tiny)
"""XNNPACK refuses subnormal ones."""

LOWEST = -128
"""The zero point of int8 for what has no negative numbers."""

_UNEVEN = 2e-3
"""Of a logarithm to base two; 0.14 % of a step."""

_BELOW = {8: 10.0, 16: 16.0}
"""By so much below the largest of its row does a score count as masked: less than a hundredth of what the
output tells apart, so that hundreds of them change nothing."""

ALL: Range = (-math.inf, math.inf)

Margin = Callable[[Tensor, int], float]
"""By how much the range of a tensor is widened beside so many bits."""


@frozen
class Grid:
    """What the integers of a tensor mean: ``(integer - zero_point) * scale``.

    Attributes:
        width: 8 or 16 bits, signed.
    """

    width: int
    scale: float
    zero_point: int

    @classmethod
    def over(cls, low: float, high: float, width: int) -> Grid:
        """Returns the grid of a range, which is widened to hold 0; 16 bits are symmetric about it."""
        low, high = min(low, 0.0), max(high, 0.0)
        if high - low < LEAST_SCALE * 2**16:
            return cls(width, 1.0 / 256, 0)
        if width == 16:
            step = _uneven(max(-low, high) / ((1 << (width - 1)) - 1))
            return cls(width, float(np.float32(step)), 0)
        scale = float(np.float32((high - low) / 255))
        zero = round(min(127.0, max(-128.0, -128 - low / scale)))
        return cls(8, scale, zero)

    @property
    def range(self) -> Range:
        """What it holds."""
        half = 1 << (self.width - 1)
        return (-half - self.zero_point) * self.scale, (half - 1 - self.zero_point) * self.scale

    @property
    def dtype(self) -> str:
        """Name in ``TensorType``."""
        return f"INT{self.width}"

    @property
    def quantization(self) -> Quantization:
        """As a tensor has it."""
        return Quantization.single(self.scale, self.zero_point)


def _uneven(step: float) -> float:
    """Returns a step that is no power of two, as good as equal.

    Kernels of ADD and SUB take three such scales of 16 bits for the sign of an older form, which most of them
    are refused in (``tflite/kernels/add.cc``: within 0.001 of a whole logarithm).
    """
    power = math.log2(step)
    off = power - round(power)
    return step if abs(off) > _UNEVEN else step * 2.0 ** (_UNEVEN - off)


@slotted(eq=False)
class Member:
    """One integer form of a tensor: as its operator gives it, or as others read it.

    Attributes:
        fixed: The grid that its operator cannot but give.
        wish: The grid that costs no conversion.
    """

    tensor: Tensor
    width: int
    fixed: Grid | None = None
    wish: Grid | None = None
    parent: Member | None = None
    members: list[Member] = field(default_factory=list)

    def group(self) -> Member:
        """Returns the member that stands for its group."""
        root = self
        while root.parent is not None:
            root = root.parent
        return root


class Groups:
    """The scale groups of one subgraph.

    Args:
        operators: In order.
        modes: Which of them compute in integers.
        ranges: By id, of float tensors and constants.
        margin: By how much the range of a tensor is widened beside so many bits.
        needs: By id of a tensor, how far its values matter (:func:`needed_ranges`).
    """

    def __init__(
        self,
        operators: Sequence[Operator],
        modes: Modes,
        ranges: Mapping[int, Range],
        margin: Margin,
        needs: Mapping[int, Range],
    ) -> None:
        self._modes = modes
        self._ranges = ranges
        self._margin = margin
        self._needs = needs
        self._made: dict[int, Member] = {}
        self._read: dict[tuple[int, int, int], Member] = {}
        self._grids: dict[int, Grid] = {}
        mine = [operator for operator in operators if modes.width(operator)]
        for operator in mine:
            self._make(operator)
        for operator in mine:
            together = [self.read(operator, position) for position, _ in float_inputs(operator)]
            if modes.copies(operator):
                together += [self._made[id(tensor)] for tensor in float_outputs(operator)]
                for other in together[1:]:
                    _join(together[0], other)

    def made(self, tensor: Tensor) -> Grid | None:
        """Returns the grid on which an operator gives a tensor out; None where it gives floats."""
        member = self._made.get(id(tensor))
        return None if member is None else self._grid(member)

    def given(self, operator: Operator, position: int) -> Grid:
        """Returns the grid on which an operator reads an input."""
        return self._grid(self.read(operator, position))

    def held(self, operator: Operator) -> float:
        """Returns the largest size of what the state of an operator was seen to hold."""
        memory = kernel_of(operator).memory
        tensor = None if memory is None else operator.inputs[memory.state]
        assert tensor is not None
        return max(map(abs, self._ranges[id(tensor)]))

    def state(self, operator: Operator) -> Grid:
        """Returns the grid of the state that an operator computes in; a power of two for an LSTM."""
        memory = kernel_of(operator).memory
        tensor = None if memory is None else operator.inputs[memory.state]
        assert memory is not None and tensor is not None
        low, high = self._wide(tensor, 16)
        if not memory.gates:
            return Grid.over(low, high, 16)
        least, most = CELL_SCALES
        step = max(-low, high) / ((1 << 15) - 1)
        return Grid(16, min(2.0 ** math.ceil(math.log2(max(step, least))), most), 0)

    def read(self, operator: Operator, position: int) -> Member:
        """Returns the form in which an operator reads an input."""
        tensor = operator.inputs[position]
        assert tensor is not None
        width = self._modes.input_width(operator, position)
        made = self._made.get(id(tensor))
        if made is not None and made.width == width and made.fixed is None:
            return made
        same = self._modes.copies(operator)
        own = id(operator) if same and (made is not None or tensor.is_constant) else 0
        key = id(tensor), width, own
        if key not in self._read:
            wish = made.fixed if made is not None and made.width == width else None
            self._read[key] = _member(tensor, width, wish=wish)
        return self._read[key]

    def forms_of(self, operator: Operator) -> list[tuple[Member, Grid]]:
        """Returns the forms in which an operator reads its inputs and gives its outputs, with their grids."""
        forms = [self.read(operator, position) for position, _ in float_inputs(operator)]
        forms += [self._made[id(tensor)] for tensor in float_outputs(operator)]
        return [(form, self._grid(form)) for form in forms]

    def _make(self, operator: Operator) -> None:
        kernel, width = kernel_of(operator), self._modes.width(operator)
        assert width
        for tensor in float_outputs(operator):
            fixed = Grid(width, *kernel.fixed[width]) if kernel.scales is Scales.FIXED else None
            if kernel.memory is not None:
                fixed = self._cut(operator, kernel.memory, tensor, width)
            self._made[id(tensor)] = _member(tensor, width, fixed=fixed)

    def _cut(self, operator: Operator, memory: Memory, tensor: Tensor, width: int) -> Grid | None:
        """Returns the grid whose ends cut off an output in place of the kernel; None where it need not."""
        low, high = self._wide(tensor, width)
        if memory.leaves_cut:
            return replace(Grid.over(0.0, high, width), zero_point=LOWEST)
        bound = projection_clip(operator, memory)
        return Grid.over(max(low, -bound), min(high, bound), width) if bound else None

    def _grid(self, member: Member) -> Grid:
        if member.fixed is not None:
            return member.fixed
        root = member.group()
        if id(root) not in self._grids:
            self._grids[id(root)] = self._settled(root)
        return self._grids[id(root)]

    def _wide(self, tensor: Tensor, width: int) -> Range:
        """Returns the range of a tensor with its margin."""
        return self._range(tensor, self._margin(tensor, width))

    def _settled(self, root: Member) -> Grid:
        wishes = {item.wish for item in root.members}
        low, high = 0.0, 0.0
        for item in root.members:
            if item.wish is None:
                own = self._wide(item.tensor, root.width)
                low, high = min(low, own[0]), max(high, own[1])
        if len(wishes - {None}) == 1:
            wish = next(iter(wishes - {None}))
            assert wish is not None
            first, last = wish.range
            fits = first <= low and high <= last and high - low >= (last - first) / 2
            if None not in wishes or fits:
                return wish
        for item in root.members:
            own = self._range(item.tensor)
            low, high = min(low, own[0]), max(high, own[1])
        return Grid.over(low, high, root.width)

    def _range(self, tensor: Tensor, margin: float = 1.0) -> Range:
        """Returns what the grid of a tensor has to hold."""
        low, high = self._ranges[id(tensor)]
        return _clipped((low * margin, high * margin), self._needs.get(id(tensor), ALL))


def projection_clip(operator: Operator, memory: Memory) -> float:
    """Returns the bound of what an operator projects; 0 for none."""
    if input_of(operator, memory.projection) is None:
        return 0.0
    return float(operator.option(memory.clip) or 0.0)


def _member(tensor: Tensor, width: int, *, fixed: Grid | None = None, wish: Grid | None = None) -> Member:
    member = Member(tensor, width, fixed, wish)
    member.members.append(member)
    return member


def _join(first: Member, second: Member) -> None:
    one, other = first.group(), second.group()
    if one is not other:
        other.parent = one
        one.members += other.members


def needed_ranges(
    operators: Sequence[Operator], graph: Graph, modes: Modes, ranges: Mapping[int, Range], margin: Margin
) -> dict[int, Range]:
    """Returns how far the values of tensors matter, by id; all of one that is not there.

    Beyond, what their readers give is the same. A LOGISTIC of 8 bits gives the same for 7 and for 180: where
    it alone reads a tensor, the grid of that needs to hold no more than -7 to 7, whatever samples showed; and
    an operand of the ADD before it no more than what the other one can bring back there.

    Args:
        operators: Of a subgraph, in order.
        graph: Of the model.
        modes: Which of them compute in integers.
        ranges: By id, of float tensors and constants.
        margin: By how much grids are wider than those.
    """
    found: dict[int, Range] = {}

    def asked(operator: Operator, position: int) -> Range:
        """Returns how far an operator tells values of an input apart."""
        width = modes.width(operator)
        if not width:
            return ALL
        kernel, row = kernel_of(operator), row_of(operator)
        if row.squashes is Squash.ROWS:
            least = least_score(operator, graph, ranges)
            below = _BELOW[width] / (operator.option("beta") or 1.0)
            return ALL if least is None else (least - below, math.inf)
        if position == 0 and width in kernel.bends:
            return kernel.bends[width]
        if modes.copies(operator) and not kernel.blends:
            return _joined([found.get(id(tensor), ALL) for tensor in float_outputs(operator)])
        if row in (ADD, SUB):
            made, other = operator.outputs[0], operator.inputs[1 - position]
            assert made is not None and other is not None
            need = _before_fused(operator, width, found.get(id(made), ALL))
            (low, high), wider = ranges[id(other)], margin(other, width)
            return _summand(operator, position, need, (wider * min(low, 0.0), wider * max(high, 0.0)))
        return ALL

    def look(tensor: Tensor | None) -> None:
        if tensor is None or id(tensor) not in ranges or id(tensor) in graph.exposed:
            return
        wish = _joined([asked(use.operator, use.position) for use in graph.uses_of(tensor)])
        if wish != ALL:
            found[id(tensor)] = wish

    for operator in reversed(operators):
        kernel = row_of(operator).integer
        # An LSTM reads what it gives a step later, and all of it.
        if kernel is None or kernel.memory is None or kernel.memory.last is None:
            for tensor in operator.outputs:
                look(tensor)
    for tensor in (item for operator in operators for item in operator.inputs):
        look(tensor if tensor is not None and tensor.is_constant else None)
    return found


def _clipped(seen: Range, need: Range) -> Range:
    """Returns what is left of a range, at least one of its values."""
    low, high = seen
    return min(max(low, need[0]), high), max(min(high, need[1]), low)


def _joined(ranges: Sequence[Range]) -> Range:
    if not ranges:
        return ALL
    return min(low for low, _ in ranges), max(high for _, high in ranges)


def _before_fused(operator: Operator, width: int, need: Range) -> Range:
    """Returns how far sums matter, before an activation function cuts them off."""
    fused = fused_activation(operator)
    kernel = None if fused is None else fused.integer
    low, high = ALL if kernel is None else kernel.bends.get(width, ALL)
    return max(need[0], low), min(need[1], high)


def _summand(operator: Operator, position: int, need: Range, other: Range) -> Range:
    """Returns how far an operand of a sum or a difference matters: as far as the other one brings it back."""
    (low, high), (least, most) = need, other
    if row_of(operator) is SUB:
        if position == 1:
            # What is taken away is what it is taken from, less the difference.
            return least - high, most - low
        least, most = -most, -least
    return low - most, high - least
