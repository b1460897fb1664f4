"""signatures: added, removed, or one of them kept as the model.

What is added calls a subgraph as it is: all of its inputs, and outputs that it has. What is removed takes no
operator with it; a note says where nothing calls a subgraph any more. ``extract`` makes the subgraph of one
signature the main one, whose outputs are then those that the signature names, and leaves to ``remove-dead``
what only others needed. It is refused where it reads variables that a part which goes changes. Descriptions
of its inputs and outputs in ``TFLITE_METADATA`` stay with it. Outputs are equal to the bit: those of a new
signature to those of the subgraph, or of another signature of it. A second run finds what was added, and
refuses to remove what is gone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from tfl_rewrite.editing.base import Context, Edit, Pass, PassResult, Skip
from tfl_rewrite.editing.names import (
    arguments_of,
    check_name,
    index_of,
    nothing_asked,
    numbered,
    signature_named,
    unknown_name,
)
from tfl_rewrite.errors import UsageError
from tfl_rewrite.judge.counterparts import Argument, Counterpart, Counterparts
from tfl_rewrite.model.ir import Model, Signature, SubGraph, Tensor, new_record
from tfl_rewrite.options.option import naming, option
from tfl_rewrite.passes.extract import Extract
from tfl_rewrite.passes.remove_dead import RemoveDead

_SIDES = ("inputs", "outputs")


@dataclass(frozen=True, kw_only=True, slots=True)
class Signatures(Pass):
    """Adds and removes signatures, or keeps the subgraph of one as the model.

    Signatures are removed first, then one is extracted, then others are added. Outputs stay equal to the
    bit: those of a new signature are compared with what the subgraph gives.

    Example:
        >>> from tfl_rewrite.passes import Signatures
        >>> signed = Signatures(add=("digits:outputs=scores=#14",), remove=("serving_default",))
        >>> signed.parts()[0].name
        'signatures'
    """

    name: ClassVar[str] = "signatures"
    place: ClassVar[str] = "as 'rename'"

    add: tuple[str, ...] = option(
        (),
        "a signature of the inputs and outputs of a subgraph: names of tensors or #INDEX, each with NAME= "
        "before it if the argument is to have another name; without inputs= or outputs=, all; repeatable",
        metavar="KEY[:inputs=A,...][,outputs=B,...]",
    )
    remove: tuple[str, ...] = option((), "a signature that goes; repeatable", metavar="KEY")
    extract: str | None = option(
        None, "keep the subgraph of this signature alone, and what it runs", metavar="KEY"
    )

    def __post_init__(self) -> None:
        """Refuses what contradicts itself."""
        if self.extract in self.remove:
            raise UsageError(
                f"signature {self.extract!r} is to be removed and extracted",
                remedy="leave out one of the two",
            )

    def parts(self) -> Sequence[Pass]:
        """Returns what removes, what extracts, what is dead then, and what adds; or this alone."""
        if self.extract is None:
            return (self,)
        first = (Signatures(remove=self.remove),) if self.remove else ()
        last = (Signatures(add=self.add),) if self.add else ()
        return (*first, Extract(self.extract), RemoveDead(), *last)

    def run(self, model: Model, context: Context) -> PassResult:
        """Removes and adds.

        Raises:
            UsageError: Nothing is asked for; a signature is unknown or there already, or its arguments are
                not those of a subgraph.
        """
        if not (self.add or self.remove):
            raise nothing_asked("--add, --remove or --extract KEY")
        work = _Work(model)
        added = []
        for text in self.add:
            with naming(f"--add {text}:"):
                added.append(_Added.read(model, text))
        for key in self.remove:
            with naming(f"--remove {key}:"):
                work.remove(key)
        for item in added:
            work.add(item)
        return PassResult(
            self.name,
            tuple(work.changes),
            tuple(work.skips),
            tuple(work.notes),
            grows=True,
            counterparts=work.counterparts() if work.changes else (),
        )


@dataclass(frozen=True, slots=True)
class _Added:
    """A signature that is asked for, its arguments found."""

    key: str
    subgraph: SubGraph
    inputs: list[tuple[str, Tensor]]
    outputs: list[tuple[str, Tensor]]

    @classmethod
    def read(cls, model: Model, text: str) -> _Added:
        """Reads ``KEY:inputs=A,outputs=B``.

        Raises:
            UsageError: A name is unknown, or arguments are not those of one subgraph.
        """
        key, given = _parted(text)
        check_name(key, "a signature")
        _check_plain(key, ":,=", text)
        wanted = [item for side in _SIDES for item in given.get(side) or ()]
        graphs = [
            graph
            for graph in model.subgraphs
            if all(_tensor_of(model, graph, item, _SIDES) is not None for item in wanted)
        ]
        graph = model.subgraphs[0] if not graphs or graphs[0] is model.subgraphs[0] else graphs[0]
        if len(graphs) > 1 and graph is not model.subgraphs[0]:
            places = ", ".join(model.place_of(item, item.name or "?") for item in graphs)
            raise UsageError(f"{places} have all of these tensors", remedy="name another of their tensors")
        sides = [_side(model, graph, side, given.get(side)) for side in _SIDES]
        left = [item for item in graph.inputs if not any(item is tensor for _, tensor in sides[0])]
        if left:
            raise UsageError(
                f"signature {key!r} leaves out the input {left[0].name!r}, which would hold nothing",
                remedy="name all inputs of the subgraph",
            )
        return cls(key, graph, *sides)


def _check_plain(name: str, signs: str, text: str) -> None:
    """Refuses a name that is more likely a typing error in what was to be behind it.

    Raises:
        UsageError: It holds such a sign, or begins or ends with a space.
    """
    if name != name.strip() or any(sign in name for sign in signs):
        raise UsageError(
            f"{name!r} would be a name in {text!r}", remedy="write KEY:inputs=NAME,...,outputs=NAME,..."
        )


def _parted(text: str) -> tuple[str, dict[str, list[str]]]:
    """Parts the key and the lists behind it; a list that is not there is all that the subgraph has."""
    starts = {side: text.find(f":{side}=") for side in _SIDES}
    first = min((place for place in starts.values() if place >= 0), default=-1)
    if first < 0:
        return text, {}
    key, rest = text[:first], f",{text[first + 1 :]}"
    found: dict[str, list[str]] = {}
    places = sorted((place, side) for side in _SIDES if (place := rest.find(f",{side}=")) >= 0)
    for number, (place, side) in enumerate(places):
        stop = places[number + 1][0] if number + 1 < len(places) else len(rest)
        found[side] = rest[place + len(side) + 2 : stop].split(",")
    return key, found


def _tensor_of(model: Model, graph: SubGraph, text: str, sides: Sequence[str]) -> tuple[str, Tensor] | None:
    """Returns the argument's name and the tensor that a text stands for; None if there is none.

    Raises:
        UsageError: Several have its name.
    """
    border = [tensor for side in sides for tensor in getattr(graph, side)]
    numbers = numbered(model, graph)
    pairs = [("", text)]
    pairs += [(text[:at], text[at + 1 :]) for at in range(len(text)) if text[at] == "="]
    for name, wanted in pairs:
        found = list({id(item): item for item in border if item.name == wanted}.values())
        index = index_of(wanted)
        if not found and index is not None:
            found = [
                item for place, item in numbers.items() if place == index and any(item is t for t in border)
            ]
        if len(found) > 1:
            places = [f"#{place}" for place, item in numbers.items() if any(item is one for one in found)]
            raise UsageError(
                f"{len(found)} tensors are named {wanted!r}", remedy=f"name one: {', '.join(places)}"
            )
        if found:
            return name, found[0]
    return None


def _side(model: Model, graph: SubGraph, side: str, wanted: list[str] | None) -> list[tuple[str, Tensor]]:
    """Returns the arguments of one side; those without a name get that of the tensor."""
    tensors: list[Tensor] = getattr(graph, side)
    found: list[tuple[str, Tensor]] = []
    if wanted is None:
        found = [("", tensor) for tensor in tensors]
    for text in wanted or ():
        one = _tensor_of(model, graph, text, (side,))
        if one is None:
            inside = any(item.name == text.rpartition("=")[2] for item in graph.tensors)
            error = unknown_name(text, side[:-1], [item.name for item in tensors])
            if inside:
                remedy = f"cut the model first, with 'remove-dead --{side}'"
                error = UsageError(f"{text!r} is no {side[:-1]} of the subgraph", remedy=remedy)
            raise error
        _check_plain(one[0], "=", text)
        found.append(one)
    taken = {name for name, _ in found if name}
    given = [name for name, _ in found if name]
    if len(taken) < len(given):
        raise UsageError(f"two {side} are named alike", remedy="give each a name of its own")
    made = []
    for place, (name, tensor) in enumerate(found):
        free = base = name or tensor.name or f"{side[:-1]}_{place}"
        number = 1
        while not name and free in taken:
            free, number = f"{base}_{number}", number + 1
        taken.add(free)
        check_name(free, f"an {side[:-1]}")
        made.append((free, tensor))
    return made


@dataclass(slots=True)
class _Work:
    """A model whose signatures change, and what computes the same as each did before."""

    model: Model
    changes: list[Edit] = field(default_factory=list)
    skips: list[Skip] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    same: dict[int, Counterpart] = field(default_factory=dict)
    primary: Counterpart = field(init=False)
    entries: list[Signature] = field(init=False)

    def __post_init__(self) -> None:
        self.entries = list(self.model.signatures)
        for item in self.entries:
            inputs, outputs = (
                tuple[Argument, ...]((name, name) for name in dict(arguments_of(item, side)))
                for side in _SIDES
            )
            self.same[id(item)] = Counterpart(key=item.key, original=item.key, inputs=inputs, outputs=outputs)
        main = self.model.subgraphs[0]
        inputs, outputs = (
            tuple[Argument, ...]((item.name, place) for place, item in enumerate(getattr(main, side)))
            for side in _SIDES
        )
        self.primary = Counterpart(key=None, original=None, inputs=inputs, outputs=outputs)

    def counterparts(self) -> Counterparts:
        """Of the signatures that there are now, and of the main subgraph."""
        return (*(self.same[id(item)] for item in self.model.signatures), self.primary)

    def remove(self, key: str) -> None:
        """Removes a signature.

        Raises:
            UsageError: There is none of this key.
        """
        signature = signature_named(self.model, key)
        self.model.signatures = [item for item in self.model.signatures if item is not signature]
        if not self.model.signatures:
            # An empty list is more than none.
            self.model.rest = self.model.rest.replace(signature_defs=None)
        self.changes.append(Edit(f"signature {key}", "removed"))
        graph = signature.subgraph
        others = any(item.subgraph is graph for item in self.model.signatures)
        if graph is not self.model.subgraphs[0] and not others and id(graph) not in self.model.called:
            where = self.model.place_of(graph, graph.name or "a subgraph")
            self.notes.append(f"nothing calls {where} any more; 'remove-dead' takes it out")

    def add(self, wanted: _Added) -> None:
        """Adds a signature.

        Raises:
            UsageError: There is another of its key, or nothing to compare it with.
        """
        known = [item for item in self.model.signatures if item.key == wanted.key]
        if known:
            same = known[0].subgraph is wanted.subgraph and all(
                sorted((name, id(tensor)) for name, tensor in arguments_of(known[0], side))
                == sorted((name, id(tensor)) for name, tensor in getattr(wanted, side))
                for side in _SIDES
            )
            if not same:
                raise UsageError(
                    f"there is another signature {wanted.key!r}", remedy=f"give --remove {wanted.key} as well"
                )
            self.skips.append(Skip(wanted.key, "there is this signature", "added"))
            return
        rows = [
            [(new_record("TensorMap").replace(name=name), tensor) for name, tensor in getattr(wanted, side)]
            for side in _SIDES
        ]
        made = Signature(wanted.key, wanted.subgraph, rows[0], rows[1])
        self.same[id(made)] = self._same_as(wanted)
        self.model.signatures = [*self.model.signatures, made]
        self.changes.append(Edit(f"signature {wanted.key}", f"added: {_text(wanted)}"))

    def _same_as(self, wanted: _Added) -> Counterpart:
        """Which entry point of the original computes what a new signature does."""
        sides = [getattr(wanted, side) for side in _SIDES]
        for known in self._known(wanted.subgraph):
            if all(
                id(tensor) in names for side, names in zip(sides, known[1], strict=True) for _, tensor in side
            ):
                inputs, outputs = (
                    tuple[Argument, ...]((name, names[id(tensor)]) for name, tensor in side)
                    for side, names in zip(sides, known[1], strict=True)
                )
                return Counterpart(key=wanted.key, original=known[0], inputs=inputs, outputs=outputs)
        raise UsageError(
            f"only operators call the subgraph of {wanted.key!r}: there is nothing to compare with",
            remedy="name inputs and outputs of the main subgraph, or of one that has a signature",
        )

    def _known(self, graph: SubGraph) -> Iterator[tuple[str | None, list[dict[int, str | int]]]]:
        """Entry points of the original that call a subgraph, with what they call its tensors."""
        if graph is self.model.subgraphs[0]:
            yield (
                None,
                [{id(item): place for place, item in enumerate(getattr(graph, side))} for side in _SIDES],
            )
        for signature in self.entries:
            if signature.subgraph is graph:
                yield (
                    signature.key,
                    [{id(tensor): name for name, tensor in arguments_of(signature, side)} for side in _SIDES],
                )


def _text(wanted: _Added) -> str:
    inputs, outputs = (", ".join(name for name, _ in getattr(wanted, side)) for side in _SIDES)
    return f"({inputs}) -> ({outputs})"


__all__ = ["Signatures"]
