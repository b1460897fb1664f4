"""dedup: what is there twice becomes one.

Goes: the second of two equal constant buffers; the second of two constant tensors of a subgraph that differ
in nothing but the name; the second of two operators that compute the same from the same. Stays: names of
inputs, outputs and arguments of signatures; variables and their buffers; metadata; operators that draw random
numbers, keep state, run subgraphs or are custom. Hashes propose, bytes decide. Outputs are equal to the bit.
Refuses when metadata refers to what would move (:mod:`tfl_rewrite.editing.metadata`). A second run finds
nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from tfl_rewrite.editing.base import Context, Edit, Effect, Pass, PassResult
from tfl_rewrite.editing.effects import PURE_CUSTOM, Effects, not_there
from tfl_rewrite.editing.metadata import positions_moved
from tfl_rewrite.flatbuf.record import Record, ScalarVector
from tfl_rewrite.kernels.operators import SideEffect
from tfl_rewrite.model.blob import Blob
from tfl_rewrite.model.ir import Buffer, Model, Operator, Quantization, SubGraph, Tensor
from tfl_rewrite.model.likeness import equal_items
from tfl_rewrite.options.option import option
from tfl_rewrite.work import Work


@dataclass(frozen=True, kw_only=True, slots=True)
class Dedup(Pass):
    """Stores equal constants once and computes equal operators once.

    Merges equal constant buffers, constant tensors that differ in nothing but the name, and operators that
    compute the same from the same. Outputs stay equal to the bit.

    Example:
        >>> from tfl_rewrite.passes import Dedup
        >>> report = tfl_rewrite.rewrite("model.tflite", "once.tflite", [Dedup()])
        >>> report.outcome
        'unchanged'
    """

    name: ClassVar[str] = "dedup"
    effect: ClassVar[Effect] = Effect.EXACT
    place: ClassVar[str] = "before quantization, so that one constant is rounded once"

    pure_custom: tuple[str, ...] = option((), PURE_CUSTOM, metavar="NAME")

    def run(self, model: Model, context: Context) -> PassResult:
        """Merges what is equal.

        Raises:
            UnsupportedError: Metadata refers to what would move.
        """
        notes = not_there(model, self.pure_custom)
        changes = _merge_buffers(model, context.work)
        effects = Effects(self.pure_custom)
        for subgraph in model.subgraphs:
            merger = _Merger(model, subgraph, effects)
            # An operator whose inputs became one may now equal another.
            while merger.merge_constants() + merger.merge_operators():
                pass
            changes += merger.changes
        notes += positions_moved(model) if changes else []
        idle = "" if changes else "no constant and no operator is there twice"
        return PassResult(self.name, tuple(changes), (), tuple(notes), idle=idle)


def equal_blobs(buffers: list[Buffer], work: Work) -> Iterator[tuple[Buffer, Buffer]]:
    """Yields each buffer that holds the same bytes as an earlier one, with the first of those.

    Args:
        buffers: Those without bytes are passed over.
    """
    held = [buffer for buffer in buffers if buffer.blob is not None and buffer.nbytes]
    stage = work.stage("comparing", sum(buffer.nbytes for buffer in held))
    return equal_items(held, _blob, stage.tick)


def _blob(buffer: Buffer) -> Blob:
    assert buffer.blob is not None
    return buffer.blob


def constant_buffers(model: Model) -> list[Buffer]:
    """Returns the buffers, in order, that only constant tensors refer to; what callers may set is none."""
    tensors = [tensor for _, tensor in model.tensors()]
    used = {id(tensor.buffer) for tensor in tensors}
    fixed = {id(tensor.buffer) for tensor in tensors if tensor.is_variable}
    fixed |= {id(tensor.buffer) for subgraph in model.subgraphs for tensor in subgraph.inputs}
    fixed |= model.pinned
    return [item for item in model.buffers[1:] if id(item) in used and id(item) not in fixed]


def buffer_places(model: Model) -> dict[int, str]:
    """Returns the place of each buffer in the file that was read, by identity."""
    return {
        id(buffer): model.place_of(buffer, f"buffers[{index}]") for index, buffer in enumerate(model.buffers)
    }


def _merge_buffers(model: Model, work: Work) -> list[Edit]:
    places = buffer_places(model)
    merged: dict[int, Buffer] = {}
    changes = []
    for kept, buffer in equal_blobs(constant_buffers(model), work):
        merged[id(buffer)] = kept
        assert kept.blob is not None and buffer.blob is not None
        saved = 0 if kept.blob.identity == buffer.blob.identity else buffer.nbytes
        changes.append(Edit(places[id(buffer)], f"merged with the equal {places[id(kept)]}", saved))
    if merged:
        for _, tensor in model.tensors():
            tensor.buffer = merged.get(id(tensor.buffer), tensor.buffer)
        model.buffers = [buffer for buffer in model.buffers if id(buffer) not in merged]
    return changes


class _Merger:
    """Merges tensors and operators of one subgraph."""

    def __init__(self, model: Model, subgraph: SubGraph, effects: Effects) -> None:
        self.subgraph = subgraph
        self.effects = effects
        self.changes: list[Edit] = []
        self.given = set(map(id, subgraph.inputs))
        self.exposed = set(map(id, [*subgraph.inputs, *subgraph.outputs]))
        for signature in model.signatures:
            if signature.subgraph is subgraph:
                self.given |= {id(tensor) for _, tensor in signature.inputs}
                self.exposed |= {id(tensor) for _, tensor in [*signature.inputs, *signature.outputs]}

    def merge_constants(self) -> int:
        """Merges constant tensors; returns how many went."""
        known: dict[object, Tensor] = {}
        merged: dict[int, Tensor] = {}
        made = {id(item) for operator in self.subgraph.operators for item in operator.outputs}
        # What a caller may overwrite is no constant, though the file has bytes for it.
        made |= self.given
        for tensor in self.subgraph.tensors:
            if not tensor.is_constant or id(tensor) in made:
                continue
            key = (
                id(tensor.buffer) if tensor.external is None else None,
                id(tensor.external) if tensor.external is not None else None,
                _described(tensor),
            )
            first = known.setdefault(key, tensor)
            if first is tensor:
                continue
            if id(tensor) in self.exposed:
                if id(first) in self.exposed:
                    continue
                # The name that others know stays.
                known[key], first, tensor = tensor, tensor, first
            merged[id(tensor)] = first
            what = f"constant tensor merged with the equal {first.name!r}"
            self.changes.append(Edit(tensor.name or "(unnamed)", what))
        self._replace(merged)
        return len(merged)

    def merge_operators(self) -> int:
        """Merges operators in order of execution; returns how many went."""
        known: dict[object, Operator] = {}
        gone: set[int] = set()
        merged: dict[int, Tensor] = {}
        # Tensors that two operators write, or a caller and an operator, are no single value.
        writers = dict.fromkeys(self.given, 1)
        for operator in self.subgraph.operators:
            for tensor in operator.outputs:
                writers[id(tensor)] = writers.get(id(tensor), 0) + 1
        for operator in self.subgraph.operators:
            operator.inputs = [_final(item, merged) for item in operator.inputs]
            if not self._mergeable(operator, writers):
                continue
            key = _operator_key(operator)
            first = known.setdefault(key, operator)
            if first is operator:
                continue
            if self._is_exposed(operator):
                if self._is_exposed(first):
                    continue
                # It runs earlier, and gives out under the names that others know.
                pairs = list(zip(first.outputs, operator.outputs, strict=True))
                first.outputs = list(operator.outputs)
            else:
                pairs = list(zip(operator.outputs, first.outputs, strict=True))
            for old, new in pairs:
                if old is not None and new is not None and old is not new:
                    merged[id(old)] = new
            gone.add(id(operator))
            names = ", ".join(old.name or "(unnamed)" for old, _ in pairs if old is not None)
            self.changes.append(
                Edit(f"{operator.code.name} -> {names}", "operator merged with one that computes the same")
            )
        self.subgraph.operators = [item for item in self.subgraph.operators if id(item) not in gone]
        self._replace(merged)
        return len(gone)

    def _mergeable(self, operator: Operator, writers: dict[int, int]) -> bool:
        if self.effects.of(operator)[0] is not SideEffect.NONE or any(True for _ in operator.subgraphs()):
            return False
        if operator.intermediates or operator.large_custom is not None or not operator.outputs:
            return False
        operands = [tensor for tensor in [*operator.inputs, *operator.outputs] if tensor is not None]
        return all(writers.get(id(tensor), 0) <= 1 for tensor in operands)

    def _is_exposed(self, operator: Operator) -> bool:
        return any(id(tensor) in self.exposed for tensor in operator.outputs)

    def _replace(self, merged: dict[int, Tensor]) -> None:
        """Makes everything that refers to the merged tensors refer to those that stay."""
        if not merged:
            return

        for operator in self.subgraph.operators:
            operator.inputs = [_final(tensor, merged) for tensor in operator.inputs]
        self.subgraph.tensors = [item for item in self.subgraph.tensors if id(item) not in merged]
        made: dict[int, Quantization] = {}
        for tensor in self.subgraph.tensors:
            details = tensor.quantization
            if details is None:
                continue
            scales = _final(details.scales_tensor, merged)
            zero_points = _final(details.zero_points_tensor, merged)
            if scales is not details.scales_tensor or zero_points is not details.zero_points_tensor:
                tensor.quantization = made.setdefault(
                    id(details), replace(details, scales_tensor=scales, zero_points_tensor=zero_points)
                )


def _final(tensor: Tensor | None, merged: dict[int, Tensor]) -> Tensor | None:
    """Returns the tensor that stays for one that may have been merged, and what it was merged with, too."""
    while tensor is not None and id(tensor) in merged:
        tensor = merged[id(tensor)]
    return tensor


def _described(tensor: Tensor) -> object:
    """Returns a key that is equal for tensors that differ only in name and bytes."""
    rest = {name: value for name, value in tensor.rest.values.items() if name not in _LIFTED}
    return (
        tensor.shape,
        tensor.dtype,
        tensor.is_variable,
        tensor.signature,
        _quantization_key(tensor.quantization),
        _frozen(rest),
    )


_LIFTED = (
    "name",
    "shape",
    "type",
    "buffer",
    "quantization",
    "is_variable",
    "shape_signature",
    "external_buffer",
)


def _quantization_key(details: Quantization | None) -> object:
    if details is None:
        return None
    lifted = ("scale", "zero_point", "quantized_dimension", "details")
    rest = {name: value for name, value in details.rest.values.items() if name not in lifted}
    kind = details.rest.get("details")
    if kind is not None and kind.spec.name == "BlockwiseQuantization":
        kind = kind.replace(scales=None, zero_points=None)
    return (
        _frozen(details.scale),
        _frozen(details.zero_point),
        details.dimension,
        id(details.scales_tensor),
        id(details.zero_points_tensor),
        _frozen(kind),
        _frozen(rest),
    )


def _operator_key(operator: Operator) -> object:
    lifted = ("opcode_index", "inputs", "outputs", "intermediates", "builtin_options", "builtin_options_2")
    rest = {
        name: value
        for name, value in operator.rest.values.items()
        if name not in (*lifted, "debug_metadata_index")
    }
    code = operator.code
    return (
        (code.builtin, code.custom, code.version),
        tuple(id(tensor) if tensor is not None else None for tensor in operator.inputs),
        tuple((_storage(item), _described(item)) if item is not None else None for item in operator.outputs),
        _frozen(operator.options),
        _frozen(operator.options2),
        _frozen(rest),
    )


def _storage(tensor: Tensor) -> object:
    """Returns a key of where a computed tensor keeps its bytes: buffers without any are alike.

    Old converters give each tensor an empty buffer of its own.
    """
    return None if tensor.buffer.is_nothing else id(tensor.buffer)


def _frozen(value: Any) -> object:
    """Returns a hashable value that is equal for equal records."""
    if isinstance(value, Record):
        return (value.spec.name, _frozen(value.values))
    if isinstance(value, dict):
        return tuple(sorted((name, _frozen(item)) for name, item in value.items()))
    if isinstance(value, list):
        return tuple(map(_frozen, value))
    if isinstance(value, ScalarVector):
        return (value.scalar.code, bytes(value.raw))
    if isinstance(value, (bool, int, float, str, type(None))):
        # By its text, so that NaN equals itself, and -0.0 not 0.0.
        return repr(value)
    return id(value)


__all__ = ["Dedup", "constant_buffers", "equal_blobs"]
