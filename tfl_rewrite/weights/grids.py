"""The constants of a model that can be rounded: how each falls into rows, and the grids it can take."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from tfl_rewrite.editing.base import Skip
from tfl_rewrite.kernels.operators import ProductKind
from tfl_rewrite.kernels.table import DEQUANTIZE, PRELU, row_named, row_of
from tfl_rewrite.model.blob import Blob
from tfl_rewrite.model.graph import Graph, Use
from tfl_rewrite.model.ir import Buffer, Model, Tensor
from tfl_rewrite.numerics import grids
from tfl_rewrite.numerics.grids import KINDS, Kind, Profile, Rows
from tfl_rewrite.options.frozen import frozen, slotted
from tfl_rewrite.weights.candidates import UNNAMED, stays

_WINDOWED = (ProductKind.CONVOLUTION, ProductKind.TRANSPOSED)

# How many of the first rows are the head of a table in which rows are looked up: one in so many.
_HEAD, _LEAST_HEAD = 256, 8


@frozen
class Choice:
    """A grid for one constant.

    Attributes:
        step: For a channel of mean size.
        spread: How far steps of channels follow their size; see :func:`grids.spread_steps`.
        bits: Significant bits that a float32 may keep.
        head: Octaves by which the first rows of a table are finer. Vocabularies begin with what stands in
            every text: padding, unknown words, then words by frequency.
    """

    step: float
    spread: float = 0.0
    bits: int = 24
    head: int = 0


@slotted(eq=False)
class Constant:
    """Bytes that can be rounded: a buffer, or several that are stored once.

    Attributes:
        position: Of its first buffer in the model.
        tensors: Those that hold it, in whatever buffer.
        kind: Of its numbers.
        rows: How it falls into channels; one channel where nothing sums over it.
        zero: Zero point of integers.
        readers: Types of the operators that read it.
        table: Number of rows if it is a table in which rows are looked up, else 0.
        uses: Where they read it, or what DEQUANTIZE expands it to.
    """

    position: int
    buffer: Buffer
    tensors: list[Tensor]
    kind: Kind
    rows: Rows
    zero: float
    readers: tuple[str, ...]
    table: int = 0
    uses: tuple[Use, ...] = ()
    _profile: Profile | None = None

    @property
    def where(self) -> str:
        """The first tensor's name."""
        return self.tensors[0].name or UNNAMED

    @property
    def elements(self) -> int:
        """Number of elements."""
        return self.rows.elements

    @property
    def blob(self) -> Blob:
        """The bytes."""
        assert self.buffer.blob is not None
        return self.buffer.blob

    @property
    def is_vector(self) -> bool:
        """Whether it is a vector that nothing sums over, such as a bias: few bytes, each added as it is.

        Slopes are none: their errors are in proportion to what they scale.
        """
        shape = self.tensors[0].shape or ()
        summed = PRELU.name in self.readers or (
            len(shape) > 1 and any(row_named(reader).summed for reader in self.readers)
        )
        return sum(size > 1 for size in shape) < 2 and not summed

    @property
    def head_rows(self) -> int:
        """How many of the first rows of a table may be finer."""
        return max(_LEAST_HEAD, self.table // _HEAD)

    def hold(self, blob: Blob) -> None:
        """Gives all that hold it other bytes."""
        for tensor in self.tensors:
            tensor.buffer.blob = blob

    def values(self) -> np.ndarray[Any, Any]:
        """Returns the numbers, flat; not copied."""
        return np.frombuffer(self.blob.view(), self.kind.numpy)

    def profile(self) -> Profile:
        """Goes through the numbers, once."""
        if self._profile is None:
            self._profile = grids.profile(self.values(), self.rows, self.zero)
            self.blob.release()
        return self._profile

    @property
    def is_rounded(self) -> bool:
        """Whether it is on a grid as this pass makes them, whatever its step."""
        if self.kind is KINDS["INT8"]:
            return bool((self.profile().grain > 0).all())
        return grids.is_rounded(self.profile(), self.kind.levels)

    def steps(self, choice: Choice) -> grids.Float64:
        """Returns the step of each channel, or of each row of a table whose first rows are finer."""
        found = self.profile()
        if choice.head and self.table:
            common = self.steps(replace(choice, head=0))
            made = np.full(self.table, float(common[0]))
            made[: self.head_rows] *= 2.0**-choice.head
            return np.asarray(np.maximum(made, grids.finest(found.merged(), self.kind)))
        if not choice.spread:
            found = found.merged()
        return grids.spread_steps(found, choice.step, self.rows.each, choice.spread, self.kind)


def find_constants(model: Model, *, int8: bool, min_elements: int) -> tuple[list[Constant], list[Skip]]:
    """Finds what can be rounded, in order of the buffers, and a reason for each other constant.

    Args:
        int8: Whether int8 constants can be rounded.
        min_elements: Of those that can.
    """
    graph = Graph.of(model)
    pinned = model.pinned
    holders = _holders(model)
    found: list[Constant] = []
    skips: list[Skip] = []
    external = [item for _, item in model.tensors() if item.external is not None]
    for tensor in external:
        if tensor.dtype_name in KINDS:
            skips.append(stays(tensor, tensor.name, (), "external", "its bytes are in another file"))
    for position, buffer in enumerate(model.buffers):
        tensors = holders.get(id(buffer), [])
        if not tensors or not buffer.nbytes or tensors[0].dtype_name not in KINDS:
            continue
        if tensors[0].dtype_name == "INT8" and not int8:
            continue
        uses = [use for tensor in tensors for use in _uses(tensor, graph)]
        readers = tuple(dict.fromkeys(use.operator.code.name for use in uses))
        reason = _fixed(tensors, graph, min_elements)
        if reason is None and not pinned.isdisjoint({id(buffer), *(id(tensor.buffer) for tensor in tensors)}):
            reason = "metadata", "metadata refers to its bytes"
        if reason is not None:
            skips.append(stays(tensors[0], tensors[0].name, readers, *reason))
            continue
        kind = KINDS[tensors[0].dtype_name]
        rows, zero = _rows(tensors[0], uses), _zero(tensors[0])
        table = tensors[0].shape if all(row_of(use.operator).looks_up_rows for use in uses) else None
        height = table[0] if table is not None and len(table) == 2 and table[0] > _LEAST_HEAD else 0
        if tensors[0].is_sparse or rows.channels > 1:
            height = 0
        found.append(Constant(position, buffer, tensors, kind, rows, zero, readers, height, tuple(uses)))
    return found, skips


def _holders(model: Model) -> dict[int, list[Tensor]]:
    """Returns the tensors of each buffer; of buffers that are stored once, all by the first of them."""
    named = model.holders()
    first: dict[object, int] = {}
    holders: dict[int, list[Tensor]] = {}
    for buffer in model.buffers:
        if buffer.blob is not None and id(buffer) in named:
            place = first.setdefault(buffer.blob.identity, id(buffer))
            holders.setdefault(place, []).extend(named[id(buffer)])
    return holders


def _uses(tensor: Tensor, graph: Graph) -> list[Use]:
    """Returns who reads a constant, seen through the DEQUANTIZE that expands it."""
    found = []
    for use in graph.uses_of(tensor):
        output = use.operator.outputs[0] if use.operator.outputs else None
        if row_of(use.operator) is DEQUANTIZE and output is not None:
            found += graph.uses_of(output)
        else:
            found.append(use)
    return found


def _fixed(tensors: list[Tensor], graph: Graph, least: int) -> tuple[str, str] | None:
    """Returns why a constant cannot be rounded, or None."""
    first = tensors[0]
    kind = KINDS[first.dtype_name]
    elements = first.buffer.nbytes // np.dtype(kind.numpy).itemsize
    if any(tensor.is_variable for tensor in tensors):
        return "variable", "it is a variable"
    if any(tensor.dtype != first.dtype for tensor in tensors):
        return "shared", "tensors of different types share its bytes"
    if any(id(tensor) in graph.given or id(tensor) in graph.exposed for tensor in tensors):
        return "interface", "it is an input or an output, or holds the scales of another tensor"
    if any(graph.maker_of(tensor) is not None for tensor in tensors):
        return "computed", "an operator writes to it"
    if not any(tensor.is_sparse for tensor in tensors) and any(
        tensor.elements != elements for tensor in tensors
    ):
        return "damaged", f"its buffer holds {first.buffer.nbytes} bytes, which its shape does not take"
    if first.buffer.nbytes % np.dtype(kind.numpy).itemsize:
        return "damaged", f"its buffer holds {first.buffer.nbytes} bytes, no whole number of elements"
    if elements < least:
        return "small", f"{elements} elements, fewer than {least}"
    if first.dtype_name == "INT8" and len({_zero(tensor) for tensor in tensors}) > 1:
        return "shared", "tensors of different zero points share its bytes"
    return None


def _rows(tensor: Tensor, uses: list[Use]) -> Rows:
    """Returns how a constant falls into the rows that its readers sum over."""
    shape = tensor.shape or ()
    elements = tensor.buffer.nbytes // np.dtype(KINDS[tensor.dtype_name].numpy).itemsize
    flat = Rows.flat(elements)
    if tensor.is_sparse:
        return flat
    found = {row_of(use.operator).output_axis(use.position, len(shape)) for use in uses}
    axis = found.pop() if len(found) == 1 else None
    if axis is None:
        return flat
    windowed = len(shape) == 4 and all(row_of(use.operator).product in _WINDOWED for use in uses)
    return Rows.along(shape, axis, taps=shape[1] * shape[2] if windowed else 1, balanced=True)


def _zero(tensor: Tensor) -> float:
    """Returns the zero point of an int8 tensor that has one."""
    details = tensor.quantization
    if details is None or not details.zero_point:
        return 0.0
    return float(details.zero_point[0])
