"""Rounds constants to levels that compress well.

Promise: types, shapes, operators and the size of the file stay; float32 and float16 constants (and int8 ones,
when asked) take values of coarser grids, so that the file becomes smaller when a store or a server deflates
it. Zeros stay zeros. Outputs may differ within the tolerance of verification. Variables, inputs, outputs,
constants that hold NaN or infinities, and what lies in other files are left alone. A constant that is on its
grid already is not changed, so a second run changes nothing.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from tfl_rewrite.flatbuf.record import Sink
from tfl_rewrite.model.blob import Blob, ComputedBlob, MemorySink
from tfl_rewrite.model.graph import Graph, Use
from tfl_rewrite.model.ir import Buffer, Model, Tensor
from tfl_rewrite.passes.base import PassResult, Skip
from tfl_rewrite.quant import rounding
from tfl_rewrite.quant.rounding import KINDS, Kind, Profile, Rows
from tfl_rewrite.quant.symmetric import Error

STEPS = 256
"""Steps of the range of a channel or tensor, where nothing else is asked for."""

LARGEST_STEPS = 1 << 14
"""Finer grids save next to nothing."""

LEAST_ELEMENTS = 16

# A step of its own is worth having for a channel of so many elements.
_LEAST_CHANNEL = 4

# Operators that sum products over all of a weight's axes but one: input positions, and that axis.
_SUMS: dict[str, tuple[tuple[int, ...], int]] = {
    "CONV_2D": ((1,), 0),
    "DEPTHWISE_CONV_2D": ((1,), 3),
    "TRANSPOSE_CONV": ((1,), 0),
    "CONV_3D": ((1,), 4),
    "FULLY_CONNECTED": ((1,), 0),
    "UNIDIRECTIONAL_SEQUENCE_LSTM": (tuple(range(1, 9)), 0),
    "LSTM": (tuple(range(1, 9)), 0),
    "UNIDIRECTIONAL_SEQUENCE_RNN": ((1, 2), 0),
    "RNN": ((1, 2), 0),
    "BIDIRECTIONAL_SEQUENCE_LSTM": ((*range(1, 9), *range(18, 26)), 0),
    "SVDF": ((1, 2), 0),
}
_WINDOWED = ("CONV_2D", "TRANSPOSE_CONV")


class Granularity(str, enum.Enum):
    """Which elements share a step."""

    AUTO = "auto"
    CHANNEL = "channel"
    TENSOR = "tensor"


@dataclass(frozen=True, slots=True)
class Choice:
    """A grid for one constant.

    Attributes:
        step: For a channel of mean size.
        spread: How far steps of channels follow their size; see :func:`rounding.spread_steps`.
    """

    step: float
    spread: float = 0.0


@dataclass(slots=True, eq=False)
class Constant:
    """A buffer that can be rounded.

    Attributes:
        position: Of its buffer in the model.
        tensors: Those that hold it.
        kind: Of its numbers.
        rows: How it falls into channels; one channel where nothing sums over it.
        zero: Zero point of integers.
        readers: Types of the operators that read it.
    """

    position: int
    buffer: Buffer
    tensors: list[Tensor]
    kind: Kind
    rows: Rows
    zero: float
    readers: tuple[str, ...]
    _profile: Profile | None = None

    @property
    def where(self) -> str:
        """The first tensor's name."""
        return self.tensors[0].name or "(unnamed)"

    @property
    def elements(self) -> int:
        """Number of elements."""
        return self.rows.elements

    @property
    def blob(self) -> Blob:
        """The bytes."""
        assert self.buffer.blob is not None
        return self.buffer.blob

    def values(self) -> np.ndarray[Any, Any]:
        """Returns the numbers, flat; not copied."""
        return np.frombuffer(self.blob.view(), self.kind.numpy)

    def profile(self) -> Profile:
        """Goes through the numbers, once."""
        if self._profile is None:
            self._profile = rounding.profile(self.values(), self.rows, self.zero)
            self.blob.release()
        return self._profile

    @property
    def is_rounded(self) -> bool:
        """Whether it is on a grid as this pass makes them, whatever its step."""
        if self.kind is KINDS["INT8"]:
            return bool((self.profile().grain > 0).all())
        return rounding.is_rounded(self.profile(), self.kind.levels)

    def steps(self, choice: Choice) -> rounding.Float64:
        """Returns the step of each channel."""
        found = self.profile()
        if not choice.spread:
            found = found.merged()
        return rounding.spread_steps(found, choice.step, self.rows.each, choice.spread, self.kind)


class Rounding:
    """Makes the new values of one constant, and remembers how far they are off."""

    def __init__(self, item: Constant, steps: rounding.Float64) -> None:
        self._source = item.blob
        self._item = item
        self.steps = steps
        self._error: Error | None = None

    def pour(self, sink: Sink, offset: int) -> None:
        """Writes the values, block by block; needs no memory but a few blocks."""
        width = np.dtype(self._item.kind.numpy).itemsize

        def emit(start: int, block: np.ndarray[Any, Any]) -> None:
            sink.write_at(block.data, offset + start * width)

        self._run(emit)

    def error(self) -> Error:
        """Returns the squared signal and error; rounds now if nothing was written yet."""
        if self._error is None:
            self._run(lambda _start, _block: None)
        assert self._error is not None
        return self._error

    def data(self) -> bytearray:
        """Returns the values as bytes."""
        sink = MemorySink(self._source.nbytes)
        self.pour(sink, 0)
        return sink.data

    def blob(self) -> ComputedBlob:
        """Returns the values as bytes that are made while they are written."""
        return ComputedBlob(self._source.nbytes, self.pour)

    def original(self) -> int:
        """Returns the deflated size of the original."""
        try:
            return rounding.deflated(self._source.view())
        finally:
            self._source.release()

    def _run(self, emit: Callable[[int, np.ndarray[Any, Any]], None]) -> None:
        item = self._item
        values = np.frombuffer(self._source.view(), item.kind.numpy)
        self._error = rounding.round_values(values, self.steps, item.rows, item.kind, emit, item.zero)
        del values
        self._source.release()


@dataclass(eq=False)
class RoundedChange:
    """A constant whose values lie on a grid now.

    Attributes:
        where: Name of the tensor.
        buffer: Position in the model of its buffer.
        granularity: ``tensor`` or ``channel``.
    """

    where: str
    buffer: int
    dtype: str
    shape: tuple[int, ...]
    readers: tuple[str, ...]
    granularity: str
    nbytes: int
    rounding: Rounding

    @cached_property
    def deflated(self) -> tuple[int, int]:
        """Deflated size before and after, of this constant alone; computed when asked for."""
        return self.rounding.original(), rounding.deflated(self.rounding.data())

    @property
    def snr(self) -> float:
        """Signal-to-noise ratio of the constant itself in dB."""
        return self.rounding.error().snr

    @property
    def steps(self) -> tuple[float, float]:
        """Finest and coarsest step."""
        return float(self.rounding.steps.min()), float(self.rounding.steps.max())

    def to_dict(self) -> dict[str, Any]:
        """Returns it as JSON data."""
        before, after = self.deflated
        snr = self.snr
        return {
            "tensor": self.where,
            "outcome": "rounded",
            "dtype": self.dtype,
            "shape": list(self.shape),
            "readers": list(self.readers),
            "granularity": self.granularity,
            "step_min": self.steps[0],
            "step_max": self.steps[1],
            "nbytes": self.nbytes,
            "deflated_before": before,
            "deflated_after": after,
            "snr_db": round(snr, 2) if np.isfinite(snr) else None,
        }


@dataclass(frozen=True, slots=True)
class RoundWeights:
    """The pass; see the module.

    Attributes:
        steps: How many steps the range of a channel or tensor has at most.
        granularity: ``auto``: a step per channel for weights that a kernel sums over, if a channel has
            elements enough; one per tensor elsewhere.
        int8: Whether int8 constants are rounded too.
        min_elements: Smaller constants stay.
        choices: If given, the grids by position of the buffer; what is not in it stays. ``steps`` is not
            used then.
    """

    name: ClassVar[str] = "round-weights"
    lossy: ClassVar[bool] = True
    grows: ClassVar[bool] = False
    for_download: ClassVar[bool] = True
    """What gets smaller is the deflated file."""

    steps: int = STEPS
    granularity: Granularity = Granularity.AUTO
    int8: bool = False
    min_elements: int = LEAST_ELEMENTS
    choices: Mapping[int, Choice] | None = None

    def run(self, model: Model) -> PassResult:
        """Rewrites the model in place; the new values are made when the file is written."""
        items, skips = find_constants(model, self)
        changes = []
        for item in items:
            reason, steps = self._steps(item)
            if steps is None:
                skips.append(_skip(item.tensors[0], item.readers, *reason))
                continue
            made = Rounding(item, steps)
            first = item.tensors[0]
            changes.append(
                RoundedChange(
                    item.where,
                    item.position,
                    first.dtype_name,
                    first.shape or (),
                    item.readers,
                    "tensor" if steps.size == 1 else "channel",
                    item.blob.nbytes,
                    made,
                )
            )
            item.buffer.blob = made.blob()
        return PassResult(self.name, tuple(changes), tuple(skips))

    def _steps(self, item: Constant) -> tuple[tuple[str, str], rounding.Float64 | None]:
        """Returns the step of each channel, or why it stays."""
        found = item.profile()
        if not found.finite:
            return ("not-finite", "it holds NaN or infinite values"), None
        if self.choices is not None:
            choice = self.choices.get(item.position)
            if choice is None:
                return ("on-grid", "it is rounded already; to round further, start from the original"), None
            steps = item.steps(choice)
            if item.kind is KINDS["INT8"] and bool((steps <= 1).all()):
                return ("needed", "the outputs need all of its steps"), None
            return ("", ""), steps
        if not self._by_channel(item):
            found = found.merged()
        if rounding.has_steps(found, self.steps):
            return ("on-grid", f"it is already on a grid of {self.steps} steps or fewer"), None
        return ("", ""), rounding.steps_of_range(found, self.steps, item.kind)

    def _by_channel(self, item: Constant) -> bool:
        return (
            self.granularity is not Granularity.TENSOR
            and item.rows.channels > 1
            and (item.rows.each >= _LEAST_CHANNEL or self.granularity is Granularity.CHANNEL)
        )


def find_constants(model: Model, settings: RoundWeights) -> tuple[list[Constant], list[Skip]]:
    """Finds what can be rounded, in order of the buffers, and a reason for each other constant."""
    graph = Graph.of(model)
    kept = {id(entry.buffer) for entry in model.metadata} | set(map(id, model.metadata_buffers))
    holders: dict[int, list[Tensor]] = {}
    for subgraph in model.subgraphs:
        for tensor in subgraph.tensors:
            holders.setdefault(id(tensor.buffer), []).append(tensor)
    found: list[Constant] = []
    skips: list[Skip] = []
    external = [item for graph_ in model.subgraphs for item in graph_.tensors if item.external is not None]
    for tensor in external:
        if tensor.dtype_name in KINDS:
            skips.append(_skip(tensor, (), "external", "its bytes are in another file"))
    for position, buffer in enumerate(model.buffers):
        tensors = holders.get(id(buffer), [])
        if not tensors or not buffer.nbytes or tensors[0].dtype_name not in KINDS:
            continue
        if tensors[0].dtype_name == "INT8" and not settings.int8:
            continue
        uses = [use for tensor in tensors for use in _uses(tensor, graph)]
        readers = tuple(dict.fromkeys(use.operator.code.name for use in uses))
        reason = _fixed(tensors, graph, settings.min_elements)
        if reason is None and id(buffer) in kept:
            reason = "metadata", "metadata refers to its bytes"
        if reason is not None:
            skips.append(_skip(tensors[0], readers, *reason))
            continue
        kind = KINDS[tensors[0].dtype_name]
        rows, zero = _rows(tensors[0], uses, settings), _zero(tensors[0])
        found.append(Constant(position, buffer, tensors, kind, rows, zero, readers))
    return found, skips


def _uses(tensor: Tensor, graph: Graph) -> list[Use]:
    """Returns who reads a constant, seen through the DEQUANTIZE that expands it."""
    found = []
    for use in graph.uses_of(tensor):
        output = use.operator.outputs[0] if use.operator.outputs else None
        if use.operator.code.name == "DEQUANTIZE" and output is not None:
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


def _rows(tensor: Tensor, uses: list[Use], settings: RoundWeights) -> Rows:
    """Returns how a constant falls into the rows that its readers sum over."""
    shape = tensor.shape or ()
    elements = tensor.buffer.nbytes // np.dtype(KINDS[tensor.dtype_name].numpy).itemsize
    flat = Rows.flat(elements)
    if tensor.is_sparse:
        return flat
    found = {_sum_axis(use, len(shape)) for use in uses}
    axis = found.pop() if len(found) == 1 else None
    if axis is None:
        return flat
    windowed = len(shape) == 4 and all(use.operator.code.name in _WINDOWED for use in uses)
    return Rows.along(shape, axis, taps=shape[1] * shape[2] if windowed else 1, balanced=True)


def _sum_axis(use: Use, rank: int) -> int | None:
    row = _SUMS.get(use.operator.code.name)
    if row is None or use.position not in row[0] or not row[1] < rank or rank < 2:
        return None
    return row[1]


def _zero(tensor: Tensor) -> float:
    """Returns the zero point of an int8 tensor that has one."""
    details = tensor.quantization
    if details is None or not details.zero_point:
        return 0.0
    return float(details.zero_point[0])


def _skip(tensor: Tensor, readers: tuple[str, ...], rule: str, reason: str) -> Skip:
    return Skip(
        tensor.name or "(unnamed)",
        reason,
        rule,
        {
            "dtype": tensor.dtype_name,
            "shape": list(tensor.shape or ()),
            "nbytes": tensor.buffer.nbytes,
            "readers": list(readers),
        },
    )
