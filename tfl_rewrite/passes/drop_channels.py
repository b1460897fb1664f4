"""drop-channels: channels that hold one number whatever the input go, with all weights on them.

Training with weight decay and RELU leaves filters whose weights are next to nothing (1e-20 and less), so that
what they give is their bias, cut by the activation. Goes: such a channel, where each operator that reads it
is a layer that can do without it: it is 0, or the layer pads nothing, so that the number times its weights
goes into the bias, or the layer's weights on it are next to nothing as well. With it go the channels of what
lies between (depthwise filters, activations, pools, sums), and its weights on both sides. Stays: what another
operator or a caller sees; the channels of weights that are shared, computed, sparse or integers; one channel
at least.

Outputs are the same in real numbers but for weights that are under 1e-10 of the largest of their layer. A
second run finds nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from tfl_rewrite.editing.base import Context, Edit, Effect, Pass, PassResult
from tfl_rewrite.editing.editor import Editor
from tfl_rewrite.editing.layer_constants import FLOAT32
from tfl_rewrite.flatbuf.record import INT32, ScalarVector
from tfl_rewrite.kernels.operands import (
    constant_values,
    fused_clamp,
    input_of,
    is_float_layer,
    stored_constant,
)
from tfl_rewrite.kernels.operators import ProductKind
from tfl_rewrite.kernels.products import SAME
from tfl_rewrite.kernels.table import (
    ADD,
    AVERAGE_POOL,
    LEAKY_RELU,
    MAX_POOL,
    PAD,
    PRELU,
    RESHAPE,
    row_of,
)
from tfl_rewrite.model import dtypes
from tfl_rewrite.model.blob import OwnedBlob
from tfl_rewrite.model.graph import Graph
from tfl_rewrite.model.ir import Model, Operator, SubGraph, Tensor

Float64 = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

_NOTHING = 1e-10
"""Of the largest weight of a layer: less counts as none."""

_KINDS = (ProductKind.DENSE, ProductKind.CONVOLUTION, ProductKind.DEPTHWISE)
_UNKNOWN = np.array(np.nan)


@dataclass(frozen=True, kw_only=True, slots=True)
class DropChannels(Pass):
    """Drops channels that hold one number whatever the input, with all weights on them.

    Example:
        >>> from tfl_rewrite.passes import DropChannels
        >>> tfl_rewrite.rewrite("model.tflite", passes=[DropChannels()]).outcome
        'unchanged'
    """

    name: ClassVar[str] = "drop-channels"
    effect: ClassVar[Effect] = Effect.FOLDING
    command: ClassVar[bool] = False
    place: ClassVar[str] = "before weights are rounded, so that none are rounded that nothing needs"

    def run(self, model: Model, context: Context) -> PassResult:
        """Rewrites the model in place."""
        graph, editor, edits = Graph.of(model), Editor(model), list[Edit]()
        held = model.holders()
        for subgraph in model.subgraphs:
            edits += _Channels(subgraph, graph, editor, held).dropped()
        if edits:
            editor.removed()
        editor.finish()
        idle = "" if edits else "no channel holds one number whatever the input"
        return PassResult(self.name, tuple(edits), notes=tuple(editor.notes), idle=idle)


def idle_channels(model: Model) -> int:
    """Returns how many channels the pass would drop."""
    graph, editor, held = Graph.of(model), Editor(model), model.holders()
    found = (_Channels(subgraph, graph, editor, held).found() for subgraph in model.subgraphs)
    return sum(int(np.count_nonzero(~kept)) for each in found for _, kept in each)


@dataclass(slots=True, eq=False)
class _Layer:
    """A layer whose constants are its own: weights ``[outputs, positions, inputs]``, depthwise
    ``[1, positions, channels]``."""

    operator: Operator
    depthwise: bool
    weight: Tensor
    bias: Tensor | None
    values: npt.NDArray[Any]
    offset: Float64
    shape: tuple[int, ...]
    pads: bool
    cut: tuple[float, float]
    folded: bool = False
    counts: Mask = field(init=False)
    """Where weights count."""

    def __post_init__(self) -> None:
        size = np.abs(self.values)
        self.counts = np.greater(size, _NOTHING * size.max(initial=0.0))

    def usable(self, known: Float64) -> Float64:
        """Returns the numbers of channels that it reads of which it makes others; NaN elsewhere."""
        return np.where(known == 0, 0.0, np.nan) if self.pads else known

    def made(self, known: Float64) -> Float64:
        """Returns what its channels hold, NaN where that depends on the input."""
        known = self.usable(known)
        open_ = np.isnan(known)
        numbers = np.where(open_, 0.0, known)
        found = self.offset
        # What is no number in the end is not known.
        with np.errstate(over="ignore", invalid="ignore"):
            if self.depthwise:
                free: Mask = open_ & self.counts.any(axis=(0, 1))
                found = found + self.values.sum(axis=(0, 1), dtype=np.float64) * numbers
            else:
                free = np.logical_or.reduce(self.counts[..., open_], axis=(1, 2))
                if numbers.any():
                    found = found + self.values.sum(axis=1, dtype=np.float64) @ numbers
        return np.where(free | ~np.isfinite(found), np.nan, np.clip(found, *self.cut))

    def needs(self, known: Float64) -> Mask:
        """Returns which channels it cannot do without."""
        return np.asarray(np.isnan(self.usable(known)) & self.counts.any(axis=(0, 1)))

    def keep_inputs(self, kept: Mask, known: Float64) -> None:
        """Does without channels; what they hold goes into the bias."""
        numbers = np.where(kept | np.isnan(known), 0.0, known)
        if numbers.any():
            self.offset = self.offset + self.values.sum(axis=1, dtype=np.float64) @ numbers
            self.folded = True
        self.values = self.values[:, :, kept]

    def keep_outputs(self, kept: Mask) -> None:
        """Makes some of its channels only."""
        self.values = self.values[:, :, kept] if self.depthwise else self.values[kept]
        self.offset = self.offset[kept]


@dataclass(slots=True, eq=False)
class _Channels:
    """The channels of one subgraph: groups of tensors whose last axes are one."""

    subgraph: SubGraph
    graph: Graph
    editor: Editor
    held: dict[int, Any]
    layers: dict[int, _Layer] = field(default_factory=dict)
    known: dict[int, Float64] = field(default_factory=dict)
    tensors: dict[int, Tensor] = field(default_factory=dict)
    roots: dict[int, int] = field(default_factory=dict)
    pinned: set[int] = field(default_factory=set)

    def dropped(self) -> Iterator[Edit]:
        """Drops what can be done without."""
        found = list(self.found())
        changed = {self._root(id(members[0])): kept for members, kept in found}
        for operator in self.subgraph.operators if changed else ():
            self._apply(operator, changed)
        for members, kept in found:
            yield Edit(members[0].name, f"{np.count_nonzero(~kept)} of {kept.size} channels dropped")
            for tensor in members:
                count = int(np.count_nonzero(kept))
                tensor.shape = (*(tensor.shape or ())[:-1], count)
                if tensor.signature is not None:
                    tensor.signature = (*tensor.signature[:-1], count)

    def found(self) -> Iterator[tuple[list[Tensor], Mask]]:
        """Yields tensors that have the same channels, and which of those stay, where some can go."""
        for operator in self.subgraph.operators:
            layer = self._layer(operator)
            if layer is not None:
                self.layers[id(operator)] = layer
            self._follow(operator, layer)
        groups: dict[int, list[Tensor]] = {}
        for key, tensor in self.tensors.items():
            groups.setdefault(self._root(key), []).append(tensor)
        for members in groups.values():
            kept = self._kept(members)
            if kept is not None and not kept.all():
                yield members, kept

    def _root(self, key: int) -> int:
        while self.roots.setdefault(key, key) != key:
            key = self.roots[key]
        return key

    def _join(self, *tensors: Tensor) -> None:
        """What some tensors hold has the same channels."""
        first = self._root(id(tensors[0]))
        for tensor in tensors:
            self.tensors[id(tensor)] = tensor
            self.roots[self._root(id(tensor))] = first

    def _known(self, tensor: Tensor) -> Float64:
        """What the channels of a tensor hold that a layer reads or makes: they are as many as weights."""
        return np.broadcast_to(self.known.get(id(tensor), _UNKNOWN), (tensor.shape or ())[-1:])

    def _layer(self, operator: Operator) -> _Layer | None:
        """Returns a layer whose channels can be dropped, of what it reads or of what it makes."""
        row = row_of(operator)
        if row.product not in _KINDS or operator.code.custom is not None or not is_float_layer(operator):
            return None
        (source, weight), output = operator.inputs[:2], operator.outputs[0]
        cut = fused_clamp(operator)
        values = None if weight is None or not self._is_alone(weight) else self._values(weight)
        if source is None or weight is None or output is None or values is None or cut is None:
            return None
        depthwise, bias = row.product is ProductKind.DEPTHWISE, input_of(operator, 2)
        shape, read = values.shape, (source.shape or (0,))[-1]
        if len(shape) != (2 if row.product is ProductKind.DENSE else 4) or shape[-1] != read:
            return None
        outputs = shape[-1] if depthwise else shape[0]
        offset = np.zeros(outputs) if bias is None else self._values(bias)
        made = (output.shape or (0,))[-1]
        if offset is None or offset.size != outputs or made != outputs or not np.isfinite(values).all():
            return None
        flat = values.reshape(1 if depthwise else outputs, -1, read)
        pads = row.product is not ProductKind.DENSE and operator.option("padding") == SAME
        # A window of one place lies on zeros nowhere.
        pads = pads and flat.shape[1] > 1
        offset = offset.reshape(-1).astype(np.float64)
        return _Layer(operator, depthwise, weight, bias, flat, offset, shape, pads, cut)

    def _values(self, tensor: Tensor) -> npt.NDArray[Any] | None:
        """Returns a float constant in its shape; None where it is none."""
        stored = stored_constant(tensor, self.graph)
        values = None if stored is None else constant_values(stored, "FLOAT32", "FLOAT16")
        return None if stored is None or values is None else values.reshape(stored.shape or ())

    def _is_alone(self, tensor: Tensor) -> bool:
        """Whether one operator reads a constant, and nobody else holds it."""
        stored = stored_constant(tensor, self.graph)
        if stored is None or len(self.held[id(stored.buffer)]) > 1:
            return False
        both = (tensor, stored)
        return not any(len(self.graph.uses_of(item)) > 1 or id(item) in self.graph.exposed for item in both)

    def _follow(self, operator: Operator, layer: _Layer | None) -> None:
        """Notes what the channels of an operator's output hold, and which tensors have the same."""
        # What a damaged model makes twice is never known.
        self.pinned.update(id(item) for item in operator.outputs if id(item) in self.known)
        if layer is not None:
            source, output = operator.inputs[0], operator.outputs[0]
            assert source is not None and output is not None
            self._join(source)
            self._join(output)
            if layer.depthwise:
                self._join(source, output)
            self.known[id(output)] = layer.made(self._known(source))
            return
        row, output = row_of(operator), operator.outputs[0] if len(operator.outputs) == 1 else None
        sources = [item for item in operator.inputs if item and stored_constant(item, self.graph) is None]
        through = self._through(operator, sources, output)
        everything = [item for item in (*operator.inputs, *operator.outputs) if item is not None]
        if through is None or output is None:
            self.pinned.update(map(id, everything))
            return
        cut = row.clamp or fused_clamp(operator)
        assert cut is not None
        self._join(*sources, output)
        self.known[id(output)] = np.clip(through, *cut)

    def _through(self, operator: Operator, sources: list[Tensor], output: Tensor | None) -> Float64 | None:
        """Returns what the channels hold where an operator leaves them apart; None where it may not."""
        row = row_of(operator)
        if output is None or not sources or operator.code.custom is not None:
            return None
        if fused_clamp(operator) is None:
            return None
        shapes = {(item.shape or (0,))[-1] for item in (*sources, output)}
        if len(shapes) > 1 or any(item.dtype != FLOAT32 for item in (*sources, output)):
            return None
        # One for all channels where nothing is known: what a shape says may be any number.
        (width,), known = shapes, self.known.get(id(sources[0]), _UNKNOWN)
        if row.clamp or row in (AVERAGE_POOL, MAX_POOL):
            return known if len(operator.inputs) == 1 else None
        if row in (LEAKY_RELU, PRELU):
            slope = self._slopes(operator)
            if slope is None or slope.size not in (1, width):
                return None
            return np.where(known < 0, known * slope.reshape(-1), known)
        if row is ADD and len(sources) == 2 and sources[0].shape == sources[1].shape:
            return known + self.known.get(id(sources[1]), _UNKNOWN)
        if row is PAD and len(sources) == 1:
            padding = input_of(operator, 1)
            pads = None if padding is None else constant_values(padding, "INT32")
            return None if pads is None or pads[-2:].any() else np.where(known == 0, 0.0, np.nan)
        if row is RESHAPE and len(sources) == 1 and len(operator.inputs) == 2:
            wanted = input_of(operator, 1)
            flat = set((sources[0].shape or (0,))[1:-1]) <= {1} and set((output.shape or (0,))[1:-1]) <= {1}
            named = None if wanted is None else constant_values(wanted, "INT32")
            return known if flat and named is not None and named.size and named[-1] in (-1, width) else None
        return None

    def _slopes(self, operator: Operator) -> npt.NDArray[Any] | None:
        """Returns by what numbers below 0 are multiplied, of each channel or of all; None if that varies."""
        if row_of(operator) is LEAKY_RELU:
            return np.array(operator.option("alpha") or 0.0)
        slopes = input_of(operator, 1)
        values = None if slopes is None else self._values(slopes)
        return values if values is not None and values.ndim and values.size == values.shape[-1] else None

    def _kept(self, members: list[Tensor]) -> Mask | None:
        """Returns which channels of a group stay; None where all have to."""
        ids = {id(item) for item in members}
        if ids & (self.pinned | self.graph.exposed | self.graph.given):
            return None
        if not any(id(self.graph.maker_of(item)) in self.layers for item in members):
            return None
        kept = np.zeros((members[0].shape or (0,))[-1], bool)
        for tensor in members:
            maker = self.graph.maker_of(tensor)
            uses = self.graph.uses_of(tensor)
            if maker is None or any(use.subgraph is not self.subgraph for use in uses):
                return None
            for use in uses:
                layer = self.layers.get(id(use.operator))
                if layer is not None and use.position != 0:
                    return None
                if layer is not None and not layer.depthwise:
                    kept |= layer.needs(self._known(tensor))
        if not kept.any():
            kept[:1] = True
        return kept

    def _apply(self, operator: Operator, changed: dict[int, Mask]) -> None:
        """Leaves out what was dropped of an operator's constants."""
        layer, source = self.layers.get(id(operator)), input_of(operator, 0)
        output = operator.outputs[0] if operator.outputs else None
        into = None if source is None else changed.get(self._root(id(source)))
        out = None if output is None else changed.get(self._root(id(output)))
        if layer is None:
            if row_of(operator) is RESHAPE and out is not None:
                self._reshape(operator, int(np.count_nonzero(out)))
            slopes = self._slopes(operator) if row_of(operator) is PRELU and out is not None else None
            if slopes is not None and slopes.size > 1:
                self._hold(operator, 1, slopes[..., out])
            return
        if into is not None and not layer.depthwise:
            assert source is not None
            layer.keep_inputs(into, self._known(source))
        if out is not None:
            layer.keep_outputs(out)
        if into is not None or out is not None:
            self._store(layer)

    def _reshape(self, operator: Operator, count: int) -> None:
        wanted = operator.inputs[1]
        assert wanted is not None
        named = constant_values(wanted, "INT32")
        assert named is not None
        shape = np.array([*named[:-1], named[-1] if named[-1] < 0 else count], "<i4")
        made = Tensor(wanted.name, wanted.shape, wanted.dtype, self.editor.constant(shape.tobytes()))
        operator.inputs[1] = self.editor.add_tensor(self.subgraph, made)
        if operator.options is not None and operator.option("new_shape"):
            self.editor.set_option(operator, "new_shape", ScalarVector.of(INT32, shape.tolist()))
        self._forget(wanted)

    def _store(self, layer: _Layer) -> None:
        """Gives a layer what is left of its constants."""
        outputs, _, inputs = layer.values.shape
        self._hold(layer.operator, 1, layer.values.reshape((outputs, *layer.shape[1:-1], inputs)))
        if layer.bias is not None or layer.folded:
            self._hold(layer.operator, 2, layer.offset, other=layer.folded)

    def _hold(self, operator: Operator, at: int, values: npt.NDArray[Any], *, other: bool = False) -> None:
        """Gives an operator a constant: its own in place, in its type, unless values are ``other`` ones."""
        tensor = input_of(operator, at)
        stored = None if tensor is None or other else stored_constant(tensor, self.graph)
        if tensor is not None and stored is not None and self._is_alone(tensor):
            kind = dtypes.BY_VALUE[stored.dtype].numpy
            stored.buffer.blob = OwnedBlob(np.ascontiguousarray(values, kind).tobytes())
            for item in (tensor, stored):
                item.shape, item.signature = values.shape, None
            return
        name = f"{operator.code.name.lower()}_bias" if tensor is None else tensor.name
        buffer = self.editor.add_buffer(np.ascontiguousarray(values, "<f4").tobytes())
        made = Tensor(name, values.shape, FLOAT32, buffer)
        operator.inputs[at : at + 1] = [self.editor.add_tensor(self.subgraph, made)]
        if tensor is not None:
            self._forget(tensor)

    def _forget(self, tensor: Tensor) -> None:
        """Removes a constant that nothing reads any more, and what expands it."""
        if any(item is tensor for each in self.subgraph.operators for item in each.inputs):
            return
        maker = self.graph.maker_of(tensor)
        if maker is not None and id(tensor) not in self.graph.exposed:
            self.editor.drop_operator(self.subgraph, maker)
        gone = [tensor, *(maker.inputs if maker is not None else [])]
        self.editor.drop_unused(self.subgraph, [item for item in gone if item], self.graph.exposed)
