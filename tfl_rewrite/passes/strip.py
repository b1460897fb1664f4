"""strip: drops what the runtime never reads, on request.

``names``: names of tensors, but of inputs, outputs, arguments of signatures and variables. ``min-max``: the
ranges that the converter noted in ``QuantizationParameters``. ``metadata:NAME``: a metadata entry with its
buffer. Outputs are equal to the bit. A second run finds nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from tfl_rewrite.editing.base import Context, Edit, Effect, Pass, PassResult
from tfl_rewrite.editing.metadata import COMPRESSION, drop
from tfl_rewrite.errors import UsageError
from tfl_rewrite.model.ir import Model, Quantization

_METADATA = "metadata:"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be dropped.

    Attributes:
        metadata: Names of entries.
    """

    names: bool = False
    min_max: bool = False
    metadata: frozenset[str] = frozenset()

    @classmethod
    def parse(cls, words: Iterable[str]) -> Wanted:
        """Reads ``names``, ``min-max`` and ``metadata:NAME``, several at once between commas.

        Raises:
            UsageError: A word is none of these, or names metadata without which the model is another.
        """
        parts = [part for word in words for part in word.split(",")]
        metadata = []
        for part in parts:
            if part.startswith(_METADATA) and len(part) > len(_METADATA):
                metadata.append(part[len(_METADATA) :])
            elif part not in ("names", "min-max"):
                raise UsageError(f"cannot strip {part!r}", remedy="use names, min-max or metadata:NAME")
        if COMPRESSION in metadata:
            raise UsageError(
                f"metadata {COMPRESSION} says how constants are to be decoded", remedy="leave it in"
            )
        return cls("names" in parts, "min-max" in parts, frozenset(metadata))


STRIP = "drop more: names (of tensors inside), min-max (ranges that the converter noted), metadata:NAME"
"""Help of an option of several passes."""


class Strip(Pass):
    """The pass; see the module."""

    name: ClassVar[str] = "strip"
    effect: ClassVar[Effect] = Effect.EXACT

    def __init__(self, words: Iterable[str]) -> None:
        self.wanted = Wanted.parse(words)

    def run(self, model: Model, context: Context) -> PassResult:
        """Drops what is wanted."""
        changes: list[Edit] = []
        notes = []
        if self.wanted.names:
            changes += _names(model)
        if self.wanted.min_max:
            changes += _min_max(model)
        for name in sorted(self.wanted.metadata):
            entries = [entry for entry in model.metadata if entry.name == name]
            if not entries:
                known = ", ".join(entry.name or "(unnamed)" for entry in model.metadata) or "none"
                notes.append(f"there is no metadata {name}: the model has {known}")
            changes += [Edit(f"metadata {name}", "dropped", drop(model, entry)) for entry in entries]
        return PassResult(self.name, tuple(changes), (), tuple(notes))


def _names(model: Model) -> list[Edit]:
    kept = {
        id(tensor) for subgraph in model.subgraphs for tensor in [*subgraph.inputs, *subgraph.outputs]
    } | {
        id(tensor) for signature in model.signatures for _, tensor in [*signature.inputs, *signature.outputs]
    }
    changes = []
    for index, subgraph in enumerate(model.subgraphs):
        count = nbytes = 0
        for tensor in subgraph.tensors:
            if id(tensor) in kept or tensor.is_variable or not (tensor.name or "name" in tensor.rest):
                continue
            count += 1
            nbytes += len(tensor.name.encode("utf-8", "surrogateescape"))
            tensor.name = ""
            tensor.rest = tensor.rest.replace(name=None)
        if count:
            changes.append(
                Edit(f"subgraphs[{index}].tensors", f"{count} names dropped", nbytes, {"count": count})
            )
    return changes


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


__all__ = ["Strip", "Wanted"]


def strips(words: Sequence[str]) -> Sequence[Strip]:
    """Returns the pass that drops what these words say; none without any."""
    return (Strip(words),) if words else ()
