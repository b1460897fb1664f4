"""remove-dead: what no output needs goes.

Goes: operators whose outputs reach no output of a subgraph or signature and that have no effect of their own
(:mod:`tfl_rewrite.editing.effects`); then tensors, buffers, operator codes, subgraphs and slices of weight
files that nothing left refers to. Stays: every input and output, variable tensors, ``subgraphs[0]``,
``buffers[0]``, and subgraphs that tools find by name. Outputs are equal to the bit. Refuses when metadata
refers to what would move (:mod:`tfl_rewrite.editing.metadata`). A second run finds nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from tfl_rewrite.editing.base import Context, Edit, Effect, Pass, PassResult, Skip
from tfl_rewrite.editing.effects import PURE_CUSTOM, Effects, not_there
from tfl_rewrite.editing.metadata import COMPRESSION, drop, positions_moved
from tfl_rewrite.errors import UsageError
from tfl_rewrite.kernels.operators import SideEffect
from tfl_rewrite.model.ir import Buffer, Model, Operator, Quantization, SubGraph, Tensor
from tfl_rewrite.options.option import TEXTS, check_options, option
from tfl_rewrite.passes.cut import Cut

_METADATA = "metadata:"


STRIP = "drop more: names (of tensors inside), min-max (ranges that the converter noted), metadata:NAME"
"""Help of an option of several passes."""


_NAME_NBYTES = 7
"""Of a name beside its text: its length, the zero behind it, and what aligns the next."""


class Strip(Pass):
    """Drops what the runtime never reads, on request; outputs stay equal to the bit.

    A second run finds nothing.

    Args:
        words: ``names``: names of tensors, but of inputs, outputs, arguments of signatures and variables.
            ``min-max``: the ranges that the converter noted in ``QuantizationParameters``. ``metadata:NAME``:
            a metadata entry with its buffer. Several at once stand between commas.

    Raises:
        UsageError: A word is none of these, or names metadata without which the model is another.
    """

    name: ClassVar[str] = "strip"
    effect: ClassVar[Effect] = Effect.EXACT

    def __init__(self, words: Iterable[str]) -> None:
        self._words = [part for word in words for part in word.split(",")]
        self._metadata = {part[len(_METADATA) :] for part in self._words if part.startswith(_METADATA)}
        for part in self._words:
            if part in ("names", "min-max") or (part.startswith(_METADATA) and part != _METADATA):
                continue
            raise UsageError(f"cannot strip {part!r}", remedy="use names, min-max or metadata:NAME")
        if COMPRESSION in self._metadata:
            raise UsageError(
                f"metadata {COMPRESSION} says how constants are to be decoded", remedy="leave it in"
            )

    def run(self, model: Model, context: Context) -> PassResult:
        """Drops what is wanted."""
        changes: list[Edit] = []
        notes = []
        changes += _names(model) if "names" in self._words else []
        changes += _min_max(model) if "min-max" in self._words else []
        for name in sorted(self._metadata):
            entries = [entry for entry in model.metadata if entry.name == name]
            if not entries:
                known = ", ".join(entry.name or "(unnamed)" for entry in model.metadata) or "none"
                notes.append(f"there is no metadata {name}: the model has {known}")
            changes += [Edit(f"metadata {name}", "dropped", drop(model, entry)) for entry in entries]
        return PassResult(self.name, tuple(changes), (), tuple(notes))


def inner(model: Model) -> list[tuple[int, Tensor]]:
    """Returns the tensors whose names nothing refers to, each with the position of its subgraph."""
    kept = {id(tensor) for graph in model.subgraphs for tensor in [*graph.inputs, *graph.outputs]}
    kept |= {id(tensor) for item in model.signatures for _, tensor in [*item.inputs, *item.outputs]}
    return [
        (index, tensor)
        for index, subgraph in enumerate(model.subgraphs)
        for tensor in subgraph.tensors
        if id(tensor) not in kept and not tensor.is_variable and (tensor.name or "name" in tensor.rest)
    ]


def names_nbytes(model: Model) -> int:
    """Returns about how many bytes a compact file takes for the names of tensors inside, equal ones once."""
    return sum(_NAME_NBYTES + len(_raw(name)) for name in {tensor.name for _, tensor in inner(model)})


def _raw(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def _names(model: Model) -> list[Edit]:
    counts, nbytes = Counter[int](), Counter[int]()
    for index, tensor in inner(model):
        counts[index] += 1
        nbytes[index] += len(_raw(tensor.name))
        tensor.name = ""
        tensor.rest = tensor.rest.replace(name=None)
    return [
        Edit(f"subgraphs[{index}].tensors", f"{count} names dropped", nbytes[index], {"count": count})
        for index, count in counts.items()
    ]


def _min_max(model: Model) -> list[Edit]:
    changes = []
    # Shared records are replaced by shared ones.
    made: dict[int, Quantization] = {}
    for index, subgraph in enumerate(model.subgraphs):
        count = 0
        for tensor in subgraph.tensors:
            details = tensor.quantization
            if details is None or not ("min" in details.rest or "max" in details.rest):
                continue
            count += 1
            known = made.get(id(details))
            if known is None:
                known = made[id(details)] = replace(details, rest=details.rest.replace(min=None, max=None))
            tensor.quantization = known
        if count:
            where = f"subgraphs[{index}].tensors"
            changes.append(Edit(where, f"min and max of {count} dropped", 0, {"count": count}))
    return changes


def strips(words: Sequence[str]) -> Sequence[Strip]:
    """Returns the pass that drops what these words say; none without any."""
    return (Strip(words),) if words else ()


STRIPS = TEXTS.checked_by(strips)
"""The kind of that option."""


VALIDATION = "VALIDATION:"
"""What the names of subgraphs start with that the acceleration tools call by name
(``kValidationSubgraphNamePrefix`` of ``interpreter_builder.cc``)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RemoveDead(Pass):
    """Removes what no output needs, or cuts the model down to a part.

    Removes operators that reach no output and have no effect of their own, and tensors, buffers, operator
    codes and subgraphs that nothing refers to. With --outputs or --inputs, a subgraph is cut first to the
    part between them. Outputs stay equal to the bit.

    Example:
        >>> from tfl_rewrite.passes import RemoveDead
        >>> last = tfl_rewrite.load("model.tflite").subgraphs[0].operators[-1].inputs[0]
        >>> cut = RemoveDead(outputs=(last.name,))
        >>> report = tfl_rewrite.rewrite("model.tflite", "logits.tflite", [cut])
    """

    name: ClassVar[str] = "remove-dead"
    effect: ClassVar[Effect] = Effect.EXACT
    place: ClassVar[str] = "first: what is gone needs no work"

    outputs: tuple[str, ...] | None = option(
        None,
        "tensors that become the outputs: names, or #INDEX where names are missing or not unique; "
        "between commas, or repeated",
        metavar="NAME,...",
    )
    inputs: tuple[str, ...] | None = option(
        None,
        "tensors that become the inputs; what the outputs need must follow from them",
        metavar="NAME,...",
    )
    signature: str | None = option(
        None,
        "cut the subgraph of this signature (default: the main subgraph, or the only one that has "
        "all of the names)",
        metavar="KEY",
    )
    strip: tuple[str, ...] = option((), STRIP, kind=STRIPS, metavar="WHAT,...")
    pure_custom: tuple[str, ...] = option((), PURE_CUSTOM, metavar="NAME")

    def __post_init__(self) -> None:
        """Refuses what cannot be cut to or dropped."""
        check_options(self)
        if self.inputs is None and self.outputs is None and self.signature is not None:
            raise UsageError("a signature says where to cut", remedy="name inputs or outputs too")
        self.parts()

    def parts(self) -> Sequence[Pass]:
        """Returns what cuts and what drops more, where that is asked for, and this."""
        cuts: tuple[Pass, ...] = ()
        if self.inputs is not None or self.outputs is not None:
            cuts = (Cut(self.inputs, self.outputs, self.signature),)
        before = (*cuts, *strips(self.strip))
        return (*before, RemoveDead(pure_custom=self.pure_custom)) if before else (self,)

    def run(self, model: Model, context: Context) -> PassResult:
        """Removes what is dead.

        Raises:
            UnsupportedError: Metadata refers to what would move.
        """
        notes = not_there(model, self.pure_custom)
        live = _Live.of(model, Effects(self.pure_custom))
        changes = [*_remove_operators(model, live), *_remove_unreferenced(model, live)]
        notes += positions_moved(model) if changes else []
        idle = "" if changes else "all that is in it is needed; --outputs cuts it to a part"
        return PassResult(self.name, tuple(changes), tuple(live.skips), tuple(notes), idle=idle)


@dataclass(slots=True)
class _Live:
    """What is reached, by id."""

    subgraphs: dict[int, SubGraph] = field(default_factory=dict)
    operators: set[int] = field(default_factory=set)
    tensors: set[int] = field(default_factory=set)
    skips: list[Skip] = field(default_factory=list)

    @classmethod
    def of(cls, model: Model, effects: Effects) -> _Live:
        """Follows everything that is needed, from the entry points on."""
        live = cls()
        kept: dict[int, tuple[str, str, str]] = {}
        waiting = [model.subgraphs[0], *(signature.subgraph for signature in model.signatures)]
        waiting += [item for item in model.subgraphs if (item.name or "").startswith(VALIDATION)]
        while waiting:
            subgraph = waiting.pop()
            if id(subgraph) in live.subgraphs:
                continue
            live.subgraphs[id(subgraph)] = subgraph
            live._follow(model, subgraph, effects, kept)
            for operator in subgraph.operators:
                if id(operator) in live.operators:
                    waiting += operator.subgraphs()
        live.skips = [Skip(*row) for row in kept.values()]
        return live

    def _follow(
        self, model: Model, subgraph: SubGraph, effects: Effects, kept: dict[int, tuple[str, str, str]]
    ) -> None:
        makers: dict[int, list[Operator]] = {}
        for operator in subgraph.operators:
            for tensor in operator.outputs:
                makers.setdefault(id(tensor), []).append(operator)
        self._need([*subgraph.inputs, *subgraph.outputs], makers)
        for signature in model.signatures:
            if signature.subgraph is subgraph:
                self._need([tensor for _, tensor in [*signature.inputs, *signature.outputs]], makers)
        self._need([tensor for tensor in subgraph.tensors if tensor.is_variable], makers)
        # The last first: what feeds an operator that stays for what it does needs no reason of its own.
        for operator in reversed(subgraph.operators):
            if id(operator) in self.operators:
                continue
            effect, reason = effects.of(operator)
            if effect in (SideEffect.STATE, SideEffect.UNKNOWN):
                kept[id(operator)] = (_label(operator), reason, "side-effect")
                self.operators.add(id(operator))
                self._need(_operands(operator), makers)

    def _need(self, tensors: Sequence[Tensor], makers: dict[int, list[Operator]]) -> None:
        """Marks tensors, and everything that they are computed from."""
        waiting = list(tensors)
        while waiting:
            tensor = waiting.pop()
            if id(tensor) in self.tensors:
                continue
            self.tensors.add(id(tensor))
            details = tensor.quantization
            if details is not None:
                waiting += [item for item in (details.scales_tensor, details.zero_points_tensor) if item]
            for operator in makers.get(id(tensor), ()):
                if id(operator) not in self.operators:
                    self.operators.add(id(operator))
                    waiting += _operands(operator)


def _operands(operator: Operator) -> list[Tensor]:
    operands = [*operator.inputs, *operator.outputs, *operator.intermediates]
    return [tensor for tensor in operands if tensor is not None]


def _remove_operators(model: Model, live: _Live) -> list[Edit]:
    changes = []
    for subgraph in model.subgraphs:
        if id(subgraph) not in live.subgraphs:
            continue
        dead = [operator for operator in subgraph.operators if id(operator) not in live.operators]
        if dead:
            changes += [Edit(_label(operator), "operator removed: no output needs it") for operator in dead]
            gone = set(map(id, dead))
            subgraph.operators = [item for item in subgraph.operators if id(item) not in gone]
    return changes


def _remove_unreferenced(model: Model, live: _Live) -> list[Edit]:
    changes = []
    for index, subgraph in enumerate(model.subgraphs):
        if id(subgraph) not in live.subgraphs:
            where = model.place_of(subgraph, f"subgraphs[{index}]")
            where = f"{where} {subgraph.name or ''}".rstrip()
            changes.append(Edit(where, "subgraph removed: nothing runs it"))
    model.subgraphs = [item for item in model.subgraphs if id(item) in live.subgraphs]
    for subgraph in model.subgraphs:
        dead = [tensor for tensor in subgraph.tensors if id(tensor) not in live.tensors]
        changes += [
            Edit(tensor.name or "(unnamed)", "tensor removed: nothing refers to it") for tensor in dead
        ]
        if dead:
            subgraph.tensors = [tensor for tensor in subgraph.tensors if id(tensor) in live.tensors]
    changes += _remove_buffers(model)
    used = {id(operator.code) for _, operator in model.operators()}
    for code in model.operator_codes:
        if id(code) not in used:
            changes.append(
                Edit(f"{code.name} version {code.version}", "operator code removed: nothing uses it")
            )
    model.operator_codes = [code for code in model.operator_codes if id(code) in used]
    return changes


def _remove_buffers(model: Model) -> list[Edit]:
    changes = []
    used = {*model.holders(), *model.pinned, *map(id, model.buffers[:1])}
    kept: list[Buffer] = [buffer for buffer in model.buffers if id(buffer) in used]
    stored = {buffer.blob.identity for buffer in kept if buffer.blob is not None}
    for index, buffer in enumerate(model.buffers):
        if id(buffer) in used:
            continue
        saved = 0
        if buffer.blob is not None and buffer.blob.identity not in stored:
            stored.add(buffer.blob.identity)
            saved = buffer.nbytes
        where = model.place_of(buffer, f"buffers[{index}]")
        changes.append(Edit(where, "buffer removed: nothing refers to it", saved))
    model.buffers = kept
    tensors = [tensor for _, tensor in model.tensors()]
    slices = {id(tensor.external) for tensor in tensors if tensor.external is not None}
    for row in model.external_buffers:
        if id(row) not in slices:
            where = f"external buffer {row.identifier:#x} of {row.group.name or '(unnamed)'}"
            changes.append(Edit(where, "reference removed: no tensor refers to it"))
    model.external_buffers = [row for row in model.external_buffers if id(row) in slices]
    return changes


def _label(operator: Operator) -> str:
    outputs = [tensor.name or "(unnamed)" for tensor in operator.outputs if tensor is not None]
    return f"{operator.code.name} -> {', '.join(outputs) or 'nothing'}"


__all__ = ["RemoveDead"]
