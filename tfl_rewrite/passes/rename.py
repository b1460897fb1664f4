"""rename: other names for inputs, outputs, tensors, signatures and their arguments.

What callers use are the names of a signature's arguments, and the names of tensors where there is no
signature; converters often give both the same. So ``input`` and ``output`` look for a name among the
arguments first, in every signature: these get the new one, and so do their tensors where they had the same
name. A name that no argument has is that of a tensor. ``tensor`` and ``argument`` mean one of the two alone.
All names are read as they were before the pass, so two may be swapped.

Changed are names only, and those in the metadata ``TFLITE_METADATA`` that are equal to an old one. Refused
are empty names, names that nothing or several things have, and a new one that another tensor of the subgraph,
another argument on the same side of the signature, or another signature has. The outputs are equal to the
bit: each is compared with what the original gives under the old name. A second run finds the new names and
changes nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import ClassVar

from tfl_rewrite.editing.base import Context, Edit, Pass, PassResult, Skip
from tfl_rewrite.editing.descriptions import read_descriptions, with_names, write_descriptions
from tfl_rewrite.editing.names import (
    check_name,
    index_of,
    nothing_asked,
    numbered,
    signature_named,
    split_pair,
    tensor_numbered,
    unknown_name,
)
from tfl_rewrite.errors import TflRewriteError, UsageError
from tfl_rewrite.flatbuf.record import Record
from tfl_rewrite.judge.counterparts import Counterpart, Counterparts
from tfl_rewrite.model.ir import Model, Signature, SubGraph, Tensor
from tfl_rewrite.options.option import naming, option

_SIDES = {"input": "inputs", "output": "outputs"}
_Argument = tuple[int, str, int]
"""A signature by its id, a side, and the position among the arguments there."""


@dataclass(slots=True)
class Renaming:
    """What is to be named how; nothing is changed before :meth:`apply`."""

    model: Model
    tensors: dict[int, str] = field(default_factory=dict)
    arguments: dict[_Argument, str] = field(default_factory=dict)
    keys: dict[int, str] = field(default_factory=dict)
    skips: list[Skip] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.tensors or self.arguments or self.keys)

    def take(self, what: str, text: str) -> None:
        """Takes in an option, by its name without dashes."""
        if what in _SIDES:
            self.border(what, text)
        else:
            {"tensor": self.tensor, "argument": self.argument, "signature": self.signature}[what](text)

    def border(self, side: str, text: str) -> None:
        """Takes in ``--input`` or ``--output``."""
        arguments = list(self._arguments(_SIDES[side]))
        tensors = {id(item): item for _, item in self._exposed(_SIDES[side])}
        known = {name for _, _, name, _ in arguments} | {item.name for item in tensors.values()}
        old, new = split_pair(text, known, side)
        check_name(new, f"an {side}")
        index = index_of(old)
        if index is not None and old not in known:
            tensor = numbered(self.model, self.model.subgraphs[0]).get(index)
            if tensor is None or id(tensor) not in tensors:
                numbers = numbered(self.model, self.model.subgraphs[0]).items()
                places = ", ".join(f"#{place}" for place, item in numbers if id(item) in tensors)
                raise UsageError(
                    f"tensor {old} is no {side} of the main subgraph", remedy=f"they are {places}"
                )
            self._border_tensor(tensor, tensor.name, new, arguments)
            return
        named = [(key, item) for key, _, name, item in arguments if name == old]
        for key, item in named:
            self.arguments[key] = new
            if item.name == old:
                self.tensors[id(item)] = new
        meant = {id(item) for _, item in named}
        others = [item for item in tensors.values() if item.name == old and id(item) not in meant]
        if named and others:
            raise UsageError(
                f"{old!r} is an argument of a signature, and another {side} is a tensor of that name",
                remedy="name one with --argument KEY:OLD=NEW or --tensor OLD=NEW",
            )
        for subgraph in {id(item): item for item, _ in self._exposed(_SIDES[side])}.values():
            self._single(old, [item for item in others if any(item is t for t in subgraph.tensors)], subgraph)
        for item in others:
            self._border_tensor(item, old, new, arguments)
        if not named and not others:
            self._done(old, new, known, side)

    def _border_tensor(
        self,
        tensor: Tensor,
        old: str,
        new: str,
        arguments: Iterable[tuple[_Argument, Signature, str, Tensor]],
    ) -> None:
        """Names a tensor, and the arguments for it that had its name."""
        self.tensors[id(tensor)] = new
        for key, signature, name, item in arguments:
            if item is tensor and name == old:
                self.arguments[key] = new
            elif item is tensor and name != new:
                self.notes.append(f"signature {signature.key!r} still calls {new!r} {name!r}")

    def tensor(self, text: str) -> None:
        """Takes in ``--tensor``."""
        known = {item.name for _, item in self.model.tensors()}
        old, new = split_pair(text, known, "tensor")
        check_name(new, "a tensor")
        index = index_of(old)
        if index is not None and old not in known:
            self.tensors[id(tensor_numbered(self.model, self.model.subgraphs[0], index))] = new
            return
        having = [graph for graph in self.model.subgraphs if any(item.name == old for item in graph.tensors)]
        if having and having[0] is not self.model.subgraphs[0] and len(having) > 1:
            places = ", ".join(self.model.place_of(graph, graph.name or "?") for graph in having)
            raise UsageError(f"{old!r} is a tensor of {places}", remedy="rename an input or output of one")
        for graph in having[:1]:
            found = [item for item in graph.tensors if item.name == old]
            self._single(old, found, graph)
            self.tensors[id(found[0])] = new
        if not having:
            self._done(old, new, known, "tensor")

    def argument(self, text: str) -> None:
        """Takes in ``--argument``."""
        keys = [item.key for item in self.model.signatures if item.key and text.startswith(f"{item.key}:")]
        key = max(keys, key=len) if keys else text.partition(":")[0]
        signature = signature_named(self.model, key)
        mine = [item for side in _SIDES.values() for item in self._arguments(side) if item[1] is signature]
        known = {name for _, _, name, _ in mine}
        old, new = split_pair(text[len(key) + 1 :], known, "argument")
        check_name(new, "an argument")
        found = [place for place, _, name, _ in mine if name == old]
        if len({side for _, side, _ in found}) > 1:
            raise UsageError(
                f"{old!r} is an input and an output of signature {key!r}", remedy="use --input or --output"
            )
        for place in found:
            self.arguments[place] = new
        if not found:
            self._done(old, new, known, f"argument of signature {key!r}")

    def signature(self, text: str) -> None:
        """Takes in ``--signature``."""
        known = [item.key for item in self.model.signatures if item.key]
        old, new = split_pair(text, known, "signature")
        check_name(new, "a signature")
        if old not in known and new in known:
            self._done(old, new, known, "signature")
            return
        self.keys[id(signature_named(self.model, old))] = new

    def _done(self, old: str, new: str, known: Collection[str], what: str) -> None:
        """Takes a new name that is there for one that was given before."""
        if new not in known:
            raise unknown_name(old, what, known)
        self.skips.append(Skip(new, f"no {what} is named {old!r} any more, and one is named so", "named"))

    def _single(self, name: str, found: list[Tensor], subgraph: SubGraph) -> None:
        if len(found) > 1:
            numbers = numbered(self.model, subgraph)
            places = [f"#{index}" for index, item in numbers.items() if any(item is one for one in found)]
            raise UsageError(
                f"{len(found)} tensors are named {name!r}", remedy=f"name one: {', '.join(places[:20])}"
            )

    def _arguments(self, side: str) -> Iterator[tuple[_Argument, Signature, str, Tensor]]:
        for signature in self.model.signatures:
            for place, (row, tensor) in enumerate(getattr(signature, side)):
                yield (id(signature), side, place), signature, row.get("name") or "", tensor

    def _exposed(self, side: str) -> Iterator[tuple[SubGraph, Tensor]]:
        """Inputs or outputs of the main subgraph and of those of signatures."""
        graphs = [self.model.subgraphs[0], *(item.subgraph for item in self.model.signatures)]
        for graph in {id(item): item for item in graphs}.values():
            for tensor in getattr(graph, side):
                yield graph, tensor
            for signature in self.model.signatures:
                if signature.subgraph is graph:
                    yield from ((graph, tensor) for _, tensor in getattr(signature, side))

    def check(self) -> None:
        """Leaves out what has its name already, and refuses new names that are taken.

        Raises:
            UsageError: One is.
        """
        self.tensors = {
            id(item): self.tensors[id(item)]
            for _, item in self.model.tensors()
            if self.tensors.get(id(item), item.name) != item.name
        }
        for side in _SIDES.values():
            for place, _, name, _ in self._arguments(side):
                if self.arguments.get(place) == name:
                    del self.arguments[place]
        for signature in self.model.signatures:
            # One without a key is not renamed where nothing is said of it.
            if id(signature) in self.keys and self.keys[id(signature)] == signature.key:
                del self.keys[id(signature)]
        for graph in self.model.subgraphs:
            names = [(self.tensors.get(id(item)), self._tensor_name(item)) for item in graph.tensors]
            _refuse_taken(names, f"tensor of {self.model.place_of(graph, 'its subgraph')}")
        for signature in self.model.signatures:
            for side in _SIDES.values():
                rows = [item for item in self._arguments(side) if item[1] is signature]
                names = [(self.arguments.get(row[0]), self.arguments.get(row[0], row[2])) for row in rows]
                _refuse_taken(names, f"argument of signature {signature.key!r}")
        keys = [(self.keys.get(id(item)), self._key(item) or "") for item in self.model.signatures]
        _refuse_taken(keys, "signature")

    def _tensor_name(self, tensor: Tensor) -> str:
        return self.tensors.get(id(tensor), tensor.name)

    def _key(self, signature: Signature) -> str | None:
        return self.keys.get(id(signature), signature.key)

    def counterparts(self) -> Counterparts:
        """Says which name stands for which, as it was asked for; before anything is changed."""
        found = [
            Counterpart(
                key=self._key(signature),
                original=signature.key,
                inputs=self._pairs(signature, "inputs"),
                outputs=self._pairs(signature, "outputs"),
            )
            for signature in self.model.signatures
            if signature.key is not None
        ]
        main = self.model.subgraphs[0]
        inputs, outputs = (
            tuple((self._tensor_name(item), place) for place, item in enumerate(tensors))
            for tensors in (main.inputs, main.outputs)
        )
        return (*found, Counterpart(key=None, original=None, inputs=inputs, outputs=outputs))

    def _pairs(self, signature: Signature, side: str) -> tuple[tuple[str, str], ...]:
        """New and old names of arguments; of several of one name a runtime keeps one."""
        rows = [item for item in self._arguments(side) if item[1] is signature]
        return tuple({self.arguments.get(row[0], row[2]): row[2] for row in rows}.items())

    def described(self) -> list[str]:
        """Has the metadata follow; returns what could not."""
        try:
            old = root = read_descriptions(self.model)
        except TflRewriteError as error:
            return [f"{error.where} left as it is, old names included: {error.what}"]
        if root is None or old is None:
            return []
        for place, graph in enumerate(self.model.subgraphs):
            for side in _SIDES.values():
                names = [self._followed(side, item) for item in getattr(graph, side)]
                root = with_names(root, place, side, names)
        if root is not old:
            write_descriptions(self.model, root)
            return ["metadata TFLITE_METADATA: names in it follow"]
        return []

    def _followed(self, side: str, tensor: Tensor) -> dict[str, str]:
        """New names of an input or output by its old ones: that of the tensor, and those of arguments."""
        names = {
            name: self.arguments.get(place, name)
            for place, _, name, item in self._arguments(side)
            if item is tensor
        }
        return {**names, tensor.name: self._tensor_name(tensor)}

    def apply(self) -> list[Edit]:
        """Renames, and tells what."""
        changes = []
        for _, tensor in self.model.tensors():
            if id(tensor) in self.tensors:
                changes.append(_edit(tensor.name or "(unnamed)", "tensor", self.tensors[id(tensor)]))
                tensor.name = self.tensors[id(tensor)]
        for signature in self.model.signatures:
            for side in _SIDES.values():
                rows: list[tuple[Record, Tensor]] = list(getattr(signature, side))
                for place, (row, tensor) in enumerate(rows):
                    new = self.arguments.get((id(signature), side, place))
                    if new is not None:
                        what = f"{side[:-1]} of signature {signature.key!r}"
                        changes.append(_edit(row.get("name") or "(unnamed)", what, new))
                        rows[place] = (row.replace(name=new), tensor)
                setattr(signature, side, rows)
        for signature in self.model.signatures:
            if id(signature) in self.keys:
                changes.append(_edit(signature.key or "(unnamed)", "signature", self.keys[id(signature)]))
                signature.key = self.keys[id(signature)]
        return changes


def _edit(where: str, what: str, new: str) -> Edit:
    return Edit(where, f"{what} renamed to {new!r}", 0, {"kind": what.split()[0], "name": new})


def _refuse_taken(names: Iterable[tuple[str | None, str]], what: str) -> None:
    """Refuses a new name that several would have.

    Args:
        names: Of each the new name, or None, and the name that it will have.
        what: What they are names of.
    """
    pairs = list(names)
    given = [new for new, _ in pairs if new is not None]
    if not given:
        return
    counts: dict[str, int] = {}
    for _, name in pairs:
        counts[name] = counts.get(name, 0) + 1
    for new in given:
        if counts[new] > 1:
            raise UsageError(f"another {what} is named {new!r}", remedy="give a name that none has")


_PAIR = "OLD=NEW"
_OPTIONS = ("input", "output", "tensor", "argument", "signature")


@dataclass(frozen=True, kw_only=True, slots=True)
class Rename(Pass):
    """Gives inputs, outputs, tensors and signatures other names.

    An input or output is named by its argument of a signature, or by its tensor; both get the new name
    where both had the old one. Names in TFLITE_METADATA follow. Outputs stay equal to the bit.

    Example:
        >>> from tfl_rewrite.passes import passes_of
        >>> (tensor,) = tfl_rewrite.load("model.tflite").subgraphs[0].inputs
        >>> pairs = passes_of([f"rename:input={tensor.name}=image"])
        >>> report = tfl_rewrite.rewrite("model.tflite", "named.tflite", pairs)
        >>> tfl_rewrite.load("named.tflite").subgraphs[0].inputs[0].name
        'image'
    """

    name: ClassVar[str] = "rename"
    place: ClassVar[str] = "behind what goes by the names of the original, such as samples to calibrate with"

    input: tuple[str, ...] = option(
        (),
        "an input: the argument of that name in every signature, or the tensor, both where both are named "
        "so; #INDEX for the tensor of that number; repeatable",
        metavar=_PAIR,
    )
    output: tuple[str, ...] = option((), "an output, likewise; repeatable", metavar=_PAIR)
    tensor: tuple[str, ...] = option(
        (), "a tensor alone, of the main subgraph or of the only one that has it; repeatable", metavar=_PAIR
    )
    argument: tuple[str, ...] = option(
        (), "an input or output of one signature, without its tensor; repeatable", metavar=f"KEY:{_PAIR}"
    )
    signature: tuple[str, ...] = option((), "a signature; repeatable", metavar=_PAIR)

    def run(self, model: Model, context: Context) -> PassResult:
        """Renames.

        Raises:
            UsageError: Nothing is asked for; a name is unknown, stands for several things, cannot be one, or
                is taken.
        """
        if not any(getattr(self, name) for name in _OPTIONS):
            raise nothing_asked("--input, --output or --signature OLD=NEW")
        names = Renaming(model)
        for name in _OPTIONS:
            for text in getattr(self, name):
                with naming(f"--{name} {text}:"):
                    names.take(name, text)
        names.check()
        if not names:
            idle = "" if names.skips else "it has these names already"
            return PassResult(self.name, (), tuple(names.skips), grows=True, idle=idle)
        counterparts = names.counterparts()
        notes = names.described()
        changes = names.apply()
        return PassResult(
            self.name,
            tuple(changes),
            tuple(names.skips),
            (*notes, *names.notes),
            grows=True,
            counterparts=counterparts,
        )


__all__ = ["Rename"]
