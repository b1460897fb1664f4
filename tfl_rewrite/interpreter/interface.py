"""What a model takes and gives, as the runtime tells it, and where two models differ in that."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

STRING_NBYTES = 64


def printable(text: str, *, limit: int = 300) -> str:
    """Text from a file or a runtime, on one line: control characters escaped, cut at ``limit`` characters."""
    safe = "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text.strip()
    )
    return safe if len(safe) <= limit else safe[: limit - 3] + "..."


def quoted(name: str) -> str:
    """A name from a file between quotes, safe to print."""
    return f"'{printable(name)}'"


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorFacts:
    """One input or output.

    Attributes:
        name: In its signature, or the tensor's own where there is no signature.
        tensor: Name of the tensor.
        dtype: Name of the numpy dtype, or ``string``.
        shape: As declared; ``shape_signature`` has -1 where the size is free.
        scales: Empty when not quantized; one value, or one for each slice of ``quantized_dimension``.
        below: Its values end as indices of a table of this size.
        index: Number of the tensor in its subgraph.
        consumed: Of an output: operators of the model read it as well.
        aliases: Of an input of the primary subgraph: how signatures name the same tensor.
    """

    name: str
    tensor: str
    dtype: str
    shape: tuple[int, ...]
    shape_signature: tuple[int, ...]
    scales: tuple[float, ...] = ()
    zero_points: tuple[int, ...] = ()
    quantized_dimension: int = 0
    below: int | None = None
    index: int = -1
    consumed: bool = False
    aliases: tuple[str, ...] = ()

    @classmethod
    def from_dict(cls, facts: dict[str, Any]) -> TensorFacts:
        """From a message of the child process."""
        return cls(
            name=facts["name"],
            tensor=facts["tensor"],
            dtype=facts["dtype"],
            shape=tuple(facts["shape"]),
            shape_signature=tuple(facts["shape_signature"]),
            scales=tuple(facts["scales"]),
            zero_points=tuple(facts["zero_points"]),
            quantized_dimension=facts["quantized_dimension"],
            below=facts["below"],
            index=facts["index"],
            consumed=facts["consumed"],
        )

    @property
    def declared(self) -> str:
        """Dtype and shape with -1 for a free size, such as ``float32[-1, 10]``."""
        return f"{self.dtype}{list(self.shape_signature)}"

    @property
    def itemsize(self) -> int:
        """Bytes of an element in memory; of a short string what Python takes, 8 of an unknown type."""
        try:
            return STRING_NBYTES if self.dtype == "string" else np.dtype(self.dtype).itemsize
        except TypeError:
            return 8

    @property
    def is_quantized(self) -> bool:
        """Integers that stand for real values."""
        return bool(self.scales) and any(self.scales) and self.dtype.startswith(("int", "uint"))


@dataclass(frozen=True, slots=True, kw_only=True)
class EntryPoint:
    """One way to call a model: a signature, or the primary subgraph when ``key`` is None.

    Attributes:
        subgraph: Which subgraph it runs; -1 where the runtime does not tell.
        among: There are signatures as well.
    """

    key: str | None
    inputs: tuple[TensorFacts, ...]
    outputs: tuple[TensorFacts, ...]
    subgraph: int = 0
    among: bool = False

    @property
    def label(self) -> str:
        """As a report names it."""
        if self.key is not None:
            return f"signature {quoted(self.key)}"
        return "the primary subgraph" if self.among else "the model"

    def runs_all_of(self, primary: EntryPoint) -> bool:
        """Whether it is the primary subgraph with all of its outputs, called by another name."""
        if self.subgraph > 0:
            return False
        given, wanted = ({(item.index, item.tensor) for item in each.outputs} for each in (self, primary))
        return wanted <= given


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """The primary subgraph and all signatures of one model.

    Attributes:
        keeps_state: It may keep something from one call to the next; False where that can be ruled out.
        subgraphs: How many there are; -1 where the runtime does not tell.
    """

    primary: EntryPoint
    signatures: tuple[EntryPoint, ...]
    keeps_state: bool = True
    subgraphs: int = -1

    @classmethod
    def from_dict(cls, facts: dict[str, Any]) -> Interface:
        """From a message of the child process."""
        signatures = tuple(_entry_point(entry["key"], entry) for entry in facts["signatures"])
        primary = _entry_point(None, facts)
        names: dict[tuple[int, str], list[str]] = {}
        for item in (item for entry in signatures if entry.subgraph <= 0 for item in entry.inputs):
            names.setdefault((item.index, item.tensor), []).append(item.name)
        inputs = tuple(
            replace(item, aliases=tuple(names.get((item.index, item.tensor), ()))) for item in primary.inputs
        )
        return cls(
            primary=replace(primary, inputs=inputs, among=bool(signatures)),
            signatures=signatures,
            keeps_state=facts["keeps_state"],
            subgraphs=facts["subgraphs"],
        )

    @property
    def all_are_called(self) -> bool:
        """Whether each subgraph is the primary one or that of a signature: no operator runs another."""
        return self.subgraphs == len({0, *(entry.subgraph for entry in self.signatures)} - {-1})

    @property
    def entry_points(self) -> tuple[EntryPoint, ...]:
        """What is run: every signature, and the primary subgraph unless a signature runs all of it.

        ``Interpreter.invoke`` runs the primary subgraph, whatever signatures a file has.
        """
        if any(entry.runs_all_of(self.primary) for entry in self.signatures):
            return self.signatures
        return (*self.signatures, self.primary)

    def find(self, key: str | None) -> EntryPoint | None:
        """The entry point of that key."""
        return next((entry for entry in (*self.signatures, self.primary) if entry.key == key), None)


def _entry_point(key: str | None, facts: dict[str, Any]) -> EntryPoint:
    return EntryPoint(
        key=key,
        inputs=tuple(TensorFacts.from_dict(item) for item in facts["inputs"]),
        outputs=tuple(TensorFacts.from_dict(item) for item in facts["outputs"]),
        subgraph=facts["subgraph"],
    )


def interface_differences(before: Interface, after: Interface) -> tuple[list[str], list[str]]:
    """What a caller of the model would notice, and what only a reader of names would.

    A difference in number, order, dtype, shape, quantization or in the names of a signature breaks callers.
    Names of the tensors alone do not where callers go by position: those are noted.

    Returns:
        The breaking differences and the notes, each a sentence.
    """
    broken: list[str] = []
    notes: list[str] = []
    keys_before = [entry.key for entry in before.signatures]
    keys_after = [entry.key for entry in after.signatures]
    broken += [f"signature {quoted(key or '')} is missing" for key in keys_before if key not in keys_after]
    broken += [f"signature {quoted(key or '')} is new" for key in keys_after if key not in keys_before]
    for entry in (before.primary, *before.signatures):
        other = after.find(entry.key)
        if other is None:
            continue
        for role, ours, theirs in (
            ("input", entry.inputs, other.inputs),
            ("output", entry.outputs, other.outputs),
        ):
            _compare_tensors(entry, role, ours, theirs, broken, notes)
    return broken, notes


def _compare_tensors(
    entry: EntryPoint,
    role: str,
    before: tuple[TensorFacts, ...],
    after: tuple[TensorFacts, ...],
    broken: list[str],
    notes: list[str],
) -> None:
    if len(before) != len(after):
        broken.append(f"{entry.label} has {len(after)} {role}s instead of {len(before)}")
        return
    names, renamed = [facts.name for facts in before], [facts.name for facts in after]
    if names != renamed and sorted(names) == sorted(renamed) and len(set(names)) == len(names):
        # The interpreter itself knows them by position only.
        order = ", ".join(map(quoted, renamed))
        broken.append(f"the {role}s of {entry.label} stand in another order: {order}")
        return
    for position, (old, new) in enumerate(zip(before, after, strict=True)):
        what = f"{role} {position} ({quoted(old.name)}) of {entry.label}"
        if old.name != new.name:
            told = f"{what} is named {quoted(new.name)}"
            (notes if entry.key is None else broken).append(told)
        if old.declared != new.declared:
            broken.append(f"{what} is {new.declared} instead of {old.declared}")
        elif old.shape != new.shape:
            broken.append(f"{what} has the default shape {list(new.shape)} instead of {list(old.shape)}")
        if _quantization(old) != _quantization(new):
            broken.append(f"{what} is quantized with {_quantization(new)} instead of {_quantization(old)}")


def _quantization(facts: TensorFacts) -> str:
    if not facts.scales:
        return "nothing"
    return f"scale {list(facts.scales)} and zero point {list(facts.zero_points)}"
