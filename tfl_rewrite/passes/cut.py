"""cut: the part of a subgraph between given tensors.

The named tensors become its inputs and outputs, in the order given, and signatures of the subgraph are
rebuilt: an argument that stays keeps its name, a new one gets the name of its tensor. It is the subgraph of
the signature that is named; without one the main subgraph, or the only one that has all of the names.
Operators that make a new input, or that need an input which is gone, are removed; if an output needs what
they make, the cut is refused and the error says what is missing; so it is if they read a variable that only
a removed operator changes, and for a subgraph that an operator runs. Descriptions in metadata follow
(:mod:`tfl_rewrite.editing.metadata`). What is dead then is left to ``remove-dead``. What the outputs give is
equal to the bit to what the tensors held in the original. A second run finds nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import ClassVar

from tfl_rewrite.editing.base import Context, Edit, Effect, Pass, PassResult
from tfl_rewrite.editing.effects import lost_change
from tfl_rewrite.editing.metadata import interface_changed, positions_moved
from tfl_rewrite.editing.names import index_of, numbered, signature_named, tensor_numbered
from tfl_rewrite.errors import UsageError, near_names
from tfl_rewrite.flatbuf.record import Record
from tfl_rewrite.model.ir import Model, Operator, SubGraph, Tensor, new_record
from tfl_rewrite.options.option import naming


class Cut(Pass):
    """The pass; see the module.

    Args:
        inputs: Names of tensors, or of arguments of a signature, or ``#N`` for the tensor of that index,
            several at once between commas; None to keep the inputs.
        outputs: The same; None to keep the outputs.
        signature: The key of a signature whose subgraph is cut; None for the one that has the names.
    """

    name: ClassVar[str] = "cut"
    effect: ClassVar[Effect] = Effect.INTERFACE

    def __init__(
        self,
        inputs: Sequence[str] | None = None,
        outputs: Sequence[str] | None = None,
        signature: str | None = None,
    ) -> None:
        for what, names in (("inputs", inputs), ("outputs", outputs)):
            if names is not None and not names:
                raise UsageError(f"there are no {what}", remedy="give names of tensors")
        if inputs is None and outputs is None:
            raise UsageError("there is nothing to cut to", remedy="name inputs or outputs")
        self.inputs = inputs
        self.outputs = outputs
        self.signature = signature

    def run(self, model: Model, context: Context) -> PassResult:
        """Cuts the subgraph.

        Raises:
            UsageError: A name is unknown or stands for several tensors, a constant or variable is to be an
                input, an output is made by nothing, or needs what is not computed any more; or an operator
                runs the subgraph.
            UnsupportedError: Metadata refers to what would move.
        """
        part = _Part(model, self._subgraph(model))
        main = part.subgraph
        before = (list(main.inputs), list(main.outputs))
        with naming("--outputs:"):
            outputs = before[1] if self.outputs is None else part.resolve(self.outputs, "output")
        with naming("--inputs:"):
            inputs = before[0] if self.inputs is None else part.resolve(self.inputs, "input")
            for tensor in inputs:
                if tensor.is_constant or tensor.is_variable:
                    kind = "variable" if tensor.is_variable else "constant"
                    raise UsageError(f"{tensor.name!r} is a {kind} and cannot become an input")
        after = (inputs, outputs)
        if all(_ids(old) == _ids(new) for old, new in zip(before, after, strict=True)):
            return PassResult(self.name, grows=True, idle="it has these inputs and outputs already")
        _refuse_called(model, main)
        removed = _cut_off(main, inputs, outputs)
        _refuse_lost_state(main, removed, outputs)
        changes = [
            Edit(f"{part.label}{what} {tensor.name or '(unnamed)'}", verb)
            for what, old, new in zip(("input", "output"), before, after, strict=True)
            for verb, tensors in (("dropped", _less(old, new)), ("added", _less(new, old)))
            for tensor in tensors
        ] or [Edit(f"{part.label}inputs and outputs", "reordered")]
        changes += [
            Edit(f"{item.code.name} -> {_names(item)}", "operator removed: the cut passes below it")
            for item in removed
        ]
        gone = set(map(id, removed))
        main.operators = [operator for operator in main.operators if id(operator) not in gone]
        main.inputs, main.outputs = list(inputs), list(outputs)
        for signature in model.signatures:
            if signature.subgraph is main:
                if _ids(before[0]) != _ids(inputs):
                    signature.inputs = _arguments(signature.inputs, inputs, "input")
                if _ids(before[1]) != _ids(outputs):
                    signature.outputs = _arguments(signature.outputs, outputs, "output")
        position = next(index for index, item in enumerate(model.subgraphs) if item is main)
        notes = [*positions_moved(model), *interface_changed(model, before, after, position)]
        notes += _unneeded(main)
        return PassResult(self.name, tuple(changes), (), tuple(notes), grows=True)

    def _subgraph(self, model: Model) -> SubGraph:
        """Returns the subgraph to cut."""
        if self.signature is not None:
            with naming("--signature:"):
                return signature_named(model, self.signature).subgraph
        names = [*(self.inputs or ()), *(self.outputs or ())]
        counts = [_Part(model, item).count(names) for item in model.subgraphs]
        # What is wrong with a name is said of the subgraph that has the others.
        able = [item for item, count in zip(model.subgraphs, counts, strict=True) if count == max(counts)]
        if able[0] is model.subgraphs[0]:
            return able[0]
        if len(able) > 1:
            entries = [item for item in model.signatures if any(item.subgraph is other for other in able)]
            raise UsageError(
                f"{len(able)} subgraphs have tensors named {', '.join(map(repr, names))}",
                remedy=f"name one: --signature {' or '.join(item.key or '' for item in entries)}",
            )
        return able[0]


class _Part:
    """One subgraph and the names of its tensors."""

    def __init__(self, model: Model, subgraph: SubGraph) -> None:
        self.model = model
        self.subgraph = subgraph
        self.arguments = [
            (row.get("name") or "", tensor)
            for signature in model.signatures
            if signature.subgraph is subgraph
            for row, tensor in [*signature.inputs, *signature.outputs]
        ]

    @property
    def label(self) -> str:
        """What stands before a name in the report: nothing for the main subgraph."""
        if self.subgraph is self.model.subgraphs[0]:
            return ""
        keys = [item.key for item in self.model.signatures if item.subgraph is self.subgraph]
        return f"{(keys[0] if keys else None) or self.subgraph.name or 'subgraph'}: "

    def split(self, names: Sequence[str]) -> list[str]:
        """Parts names at commas, unless a tensor is named so."""
        parts: list[str] = []
        for name in names:
            whole = any(tensor.name == name for tensor in self.subgraph.tensors)
            parts += [name] if whole else name.split(",")
        return parts

    def count(self, names: Sequence[str]) -> int:
        """Returns how many of the names are those of tensors or arguments of it."""
        known = {tensor.name for tensor in self.subgraph.tensors} | {name for name, _ in self.arguments}
        numbers = numbered(self.model, self.subgraph)
        return sum(name in known or index_of(name) in numbers for name in self.split(names))

    def resolve(self, names: Sequence[str], what: str) -> list[Tensor]:
        """Returns the tensors of names."""
        parts = self.split(names)
        if "" in parts:
            raise UsageError(f"an empty name among the {what}s", remedy="unnamed tensors are called #INDEX")
        found = [self._named(name, what) for name in parts]
        if len(set(map(id, found))) != len(found):
            raise UsageError(f"a tensor is named twice among the {what}s", remedy="name each once")
        return found

    def _named(self, name: str, what: str) -> Tensor:
        tensors = self.subgraph.tensors
        index = index_of(name)
        if index is not None:
            return tensor_numbered(self.model, self.subgraph, index)
        found = [tensor for tensor in tensors if tensor.name == name]
        if not found:
            found = list({id(tensor): tensor for known, tensor in self.arguments if known == name}.values())
        if len(found) == 1:
            return found[0]
        if found:
            numbers = numbered(self.model, self.subgraph).items()
            places = [f"#{index}" for index, item in numbers if any(item is t for t in found)]
            raise UsageError(
                f"{len(found)} tensors are named {name!r}", remedy=f"name one: {', '.join(places[:20])}"
            )
        for index, other in enumerate(self.model.subgraphs):
            if other is not self.subgraph and any(tensor.name == name for tensor in other.tensors):
                keys = [item.key for item in self.model.signatures if item.subgraph is other and item.key]
                remedy = f"cut one subgraph at a time{f': --signature {keys[0]}' if keys else ''}"
                own = next(
                    number for number, item in enumerate(self.model.subgraphs) if item is self.subgraph
                )
                raise UsageError(
                    f"{name!r} is a tensor of subgraphs[{index}], not of subgraphs[{own}]", remedy=remedy
                )
        raise UsageError(f"no tensor is named {name!r} for an {what}", remedy=self._near(name))

    def _near(self, name: str) -> str:
        tensors = [tensor.name for tensor in self.subgraph.tensors]
        known = dict.fromkeys([*tensors, *(known for known, _ in self.arguments)])
        names = [item for item in known if item]
        near = [item for item in names if name.lower() in item.lower()][:5]
        near = list(dict.fromkeys([*near, *near_names(name, names, cutoff=0.4)]))[:5]
        if not near and names:
            operators = self.subgraph.operators
            made = [item.name for operator in operators for item in operator.outputs if item and item.name]
            return f"names are such as {', '.join(map(repr, list(dict.fromkeys([*made, *names]))[:5]))}"
        if not near:
            return "its tensors have no names; say #INDEX"
        return f"did you mean {', '.join(map(repr, near))}?"


def _refuse_called(model: Model, subgraph: SubGraph) -> None:
    """Refuses to change what a subgraph takes and gives where an operator counts on it.

    Raises:
        UsageError: It names the operator.
    """
    for index, caller in enumerate(model.subgraphs):
        for position, operator in enumerate(caller.operators):
            if any(item is subgraph for item in operator.subgraphs()):
                place = model.place_of(operator, f"subgraphs[{index}].operators[{position}]")
                name = f"{place} {operator.code.name}"
                raise UsageError(
                    f"{name} runs this subgraph with its inputs and outputs as they are",
                    remedy="cut around the operator instead",
                )


def _cut_off(main: SubGraph, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> list[Operator]:
    """Returns the operators that cannot be computed from the inputs.

    Raises:
        UsageError: An output needs one of them.
    """
    given = set(map(id, inputs))
    made = {id(tensor) for item in main.operators for tensor in item.outputs if tensor is not None}
    known = made | given | set(map(id, [*main.inputs, *main.outputs]))
    for output in outputs:
        if id(output) not in known and not (output.is_constant or output.is_variable):
            raise UsageError(
                f"output {output.name or f'#{_place(main, output)}'!r} is made by no operator",
                remedy="name a tensor that one makes",
            )
    lost = (set(map(id, main.inputs)) | made) - given
    removed = []
    for operator in main.operators:
        own = [tensor for tensor in operator.outputs if tensor is not None]
        reads = [tensor for tensor in operator.inputs if tensor is not None and not tensor.is_variable]
        if any(id(tensor) in given for tensor in own) or any(id(tensor) in lost for tensor in reads):
            removed.append(operator)
        else:
            lost.difference_update(map(id, own))
    makers = {id(tensor): item for item in removed for tensor in item.outputs if tensor is not None}
    for output in outputs:
        missing = _missing(output, lost, makers, given)
        if missing:
            names = ", ".join(repr(item.name or f"#{_place(main, item)}") for item in missing)
            raise UsageError(
                f"output {output.name!r} also needs {names}",
                remedy="name every tensor that it needs as input",
            )
    return removed


def _refuse_lost_state(main: SubGraph, removed: Sequence[Operator], outputs: Sequence[Tensor]) -> None:
    found = lost_change(main, removed, outputs)
    if found is not None:
        changes, reads = (f"{item.code.name} -> {_names(item) or 'nothing'}" for item in found)
        raise UsageError(
            f"{reads} reads what {changes} changes, which the cut removes",
            remedy="cut where both stay or both go, or name the tensor that is read as input too",
        )


def _missing(
    output: Tensor, lost: Collection[int], makers: dict[int, Operator], given: Collection[int]
) -> list[Tensor]:
    """Returns the tensors nearest to the inputs whose lack keeps an output from being computed."""
    found: dict[int, Tensor] = {}
    seen: set[int] = set()
    waiting = [output]
    while waiting:
        tensor = waiting.pop()
        if id(tensor) in seen or id(tensor) not in lost:
            continue
        seen.add(id(tensor))
        maker = makers.get(id(tensor))
        if maker is None or any(id(item) in given for item in maker.outputs):
            found[id(tensor)] = tensor
        else:
            waiting += [item for item in maker.inputs if item is not None]
    return list(found.values())


def _arguments(
    rows: Sequence[tuple[Record, Tensor]], tensors: Sequence[Tensor], what: str
) -> list[tuple[Record, Tensor]]:
    """Returns the arguments of a signature for its new tensors."""
    known: dict[int, list[tuple[Record, Tensor]]] = {}
    for row, tensor in rows:
        known.setdefault(id(tensor), []).append((row, tensor))
    taken = {row.get("name") for tensor in tensors for row, _ in known.get(id(tensor), ())}
    made: list[tuple[Record, Tensor]] = []
    for index, tensor in enumerate(tensors):
        if id(tensor) in known:
            made += known[id(tensor)]
            continue
        base = tensor.name or f"{what}_{index}"
        name, number = base, 1
        while name in taken:
            name, number = f"{base}_{number}", number + 1
        taken.add(name)
        made.append((new_record("TensorMap").replace(name=name), tensor))
    return made


def _unneeded(main: SubGraph) -> list[str]:
    """Says which inputs the outputs do not need; they stay, since callers give them."""
    needed = set(map(id, main.outputs))
    for operator in reversed(main.operators):
        if any(id(tensor) in needed for tensor in operator.outputs):
            needed.update(map(id, operator.inputs))
    spare = [repr(tensor.name) for tensor in main.inputs if id(tensor) not in needed]
    return [
        f"no output needs the input {name}: leave it out by naming the others as inputs" for name in spare
    ]


def _ids(tensors: Sequence[Tensor]) -> list[int]:
    return list(map(id, tensors))


def _less(tensors: Sequence[Tensor], others: Sequence[Tensor]) -> list[Tensor]:
    known = set(map(id, others))
    return [tensor for tensor in tensors if id(tensor) not in known]


def _names(operator: Operator) -> str:
    return ", ".join(tensor.name or "(unnamed)" for tensor in operator.outputs if tensor is not None)


def _place(main: SubGraph, tensor: Tensor) -> int:
    return next(index for index, item in enumerate(main.tensors) if item is tensor)


__all__ = ["Cut"]
