"""Several models made one: each takes what others give, or what the caller gives to the whole.

The main subgraphs follow each other in one. What operators run beside them (branches, loops, signatures of
other subgraphs) comes along. Names stay; where two models use one, it is kept by what the whole takes or
gives, or by the model that comes first, and the other one gets its model's name in front. So do keys of
signatures, and the names by which resources are known, or both models would share a variable.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass

from tfl_rewrite.editing.metadata import positions_moved
from tfl_rewrite.editing.names import ends_named, places_named
from tfl_rewrite.errors import UnsupportedError
from tfl_rewrite.flatbuf.record import Record
from tfl_rewrite.judge.routes import OUTSIDE, Feed
from tfl_rewrite.kernels.table import row_of
from tfl_rewrite.model.ir import (
    Buffer,
    Model,
    OperatorCode,
    Signature,
    SubGraph,
    Tensor,
    new_record,
)


@dataclass(frozen=True, slots=True)
class Piece:
    """A model that becomes a part of another.

    Attributes:
        name: In front of names that are taken.
        model: Used up.
        feeds: For each input of its main subgraph where it comes from: models before it.
        is_stage: Whether its signatures only say what the whole calls its inputs and outputs.
    """

    name: str
    model: Model
    feeds: tuple[Feed, ...]
    is_stage: bool = False


def merge(pieces: Sequence[Piece], outputs: Sequence[Feed]) -> tuple[Model, list[str]]:
    """Makes one model of several.

    Args:
        pieces: In the order in which they run. Types and shapes of what is connected agree.
        outputs: What the whole gives.

    Returns:
        The model, without descriptions and label files, and notes for the user.

    Raises:
        UnsupportedError: A model cannot be moved into another file.
    """
    for piece in pieces:
        _check_movable(piece)
    return _Merger(pieces, outputs).merged()


def _check_movable(piece: Piece) -> None:
    if piece.model.external_buffers or piece.model.external_groups:
        raise UnsupportedError(
            f"weights of {piece.name} lie in files beside the model",
            remedy="'tfl-rewrite join' makes one file of it",
        )
    positions_moved(piece.model)
    ends_named(piece.model)
    main = piece.model.subgraphs[0]
    given = set(map(id, main.inputs))
    for details in (tensor.quantization for tensor in main.tensors):
        if details is not None and {id(details.scales_tensor), id(details.zero_points_tensor)} & given:
            raise UnsupportedError(f"an input of {piece.name} holds scales of a tensor, so it stays an input")
    if id(main) in piece.model.called:
        raise UnsupportedError(f"an operator of {piece.name} runs the main subgraph, which becomes a part")


class _Merger:
    """One merge.

    Attributes:
        results: For each model that was taken in what it gives.
        owner: The number of the model of each tensor, by identity.
        outside: For each input of the whole the number of the model that takes it first, and the place there.
    """

    def __init__(self, pieces: Sequence[Piece], outputs: Sequence[Feed]) -> None:
        self.pieces = pieces
        self.feeds = outputs
        name = next((item.model.subgraphs[0].name for item in pieces if item.model.subgraphs[0].name), None)
        self.main = SubGraph([], [], [], [], name)
        self.model = Model([], [self.main], [Buffer()])
        self.notes: list[str] = []
        self.results: list[list[Tensor]] = []
        self.owner: dict[int, int] = {}
        self.outside: dict[int, Feed] = {}

    def merged(self) -> tuple[Model, list[str]]:
        """Does it."""
        for number, piece in enumerate(self.pieces):
            own = piece.model.subgraphs[0]
            swaps: dict[int, Tensor] = {}
            for position, (tensor, (source, place)) in enumerate(zip(own.inputs, piece.feeds, strict=True)):
                if source == OUTSIDE:
                    swaps[id(tensor)] = self._given(self.outside.setdefault(place, (number, position)))
                else:
                    swaps[id(tensor)] = self.results[source][place]
            self._take(number, piece, swaps)
            self.results.append([swaps.get(id(tensor), tensor) for tensor in own.outputs])
        self.main.inputs = [self._given(feed) for _, feed in sorted(self.outside.items())]
        self.main.outputs = [self.results[source][place] for source, place in self.feeds]
        self._name_apart()
        self._sign()
        self._name_resources()
        descriptions = [item.model.description for item in self.pieces if item.model.description]
        self.model.description = "; ".join(dict.fromkeys(descriptions)) or None
        return self.model, self.notes

    def _given(self, feed: Feed) -> Tensor:
        """Returns an input of the whole."""
        number, position = feed
        return self._main(number).inputs[position]

    def _main(self, number: int) -> SubGraph:
        return self.pieces[number].model.subgraphs[0]

    def _take(self, number: int, piece: Piece, swaps: dict[int, Tensor]) -> None:
        """Moves the parts of a model over."""
        model, own = piece.model, piece.model.subgraphs[0]
        self._take_buffers(model)
        codes = {id(code): self._code(code) for code in model.operator_codes}
        for _, operator in model.operators():
            operator.code = codes[id(operator.code)]
            operator.rest = operator.rest.replace(debug_metadata_index=None)
        for operator in own.operators:
            for operands in (operator.inputs, operator.outputs, operator.intermediates):
                operands[:] = [tensor and swaps.get(id(tensor), tensor) for tensor in operands]
        taken = [item for item in own.tensors if swaps.get(id(item), item) is item]
        self.owner.update(dict.fromkeys(map(id, taken), number))
        self.main.tensors += taken
        self.main.operators += own.operators
        for subgraph in model.subgraphs[1:]:
            subgraph.rest = subgraph.rest.replace(debug_metadata_index=None)
        self.model.subgraphs += model.subgraphs[1:]

    def _take_buffers(self, model: Model) -> None:
        """Moves the buffers of tensors over; those that say nothing are the first one."""
        nothing = model.buffers[0] if model.buffers and model.buffers[0].is_nothing else None
        known = {id(buffer) for buffer in model.adopt()}
        used = set()
        for _, tensor in model.tensors():
            if tensor.buffer is nothing or id(tensor.buffer) not in known:
                tensor.buffer = self.model.buffers[0]
            used.add(id(tensor.buffer))
        self.model.buffers += [buffer for buffer in model.buffers if id(buffer) in used]

    def _code(self, code: OperatorCode) -> OperatorCode:
        for known in self.model.operator_codes:
            if (known.builtin, known.custom, known.version) == (code.builtin, code.custom, code.version):
                return known
        self.model.operator_codes.append(code)
        return code

    def _name_apart(self) -> None:
        """Gives tensors of different models different names."""
        exposed = [*self.main.inputs, *self.main.outputs]
        shown = set(map(id, exposed))
        owners: dict[str, int] = {}
        for tensor in [*exposed, *(item for item in self.main.tensors if id(item) not in shown)]:
            number = self.owner[id(tensor)]
            if not tensor.name or owners.setdefault(tensor.name, number) == number:
                continue
            old = tensor.name
            tensor.name = _free(f"{self.pieces[number].name}/{old}", owners)
            owners[tensor.name] = number
            if id(tensor) in shown:
                self.notes.append(f"{old!r} of {self.pieces[number].name} is {tensor.name!r} now")
        names: set[str] = set()
        for piece in self.pieces:
            for subgraph in piece.model.subgraphs[1:]:
                if subgraph.name and subgraph.name in names:
                    subgraph.name = _free(f"{piece.name}/{subgraph.name}", names)
                names.add(subgraph.name or "")

    def _sign(self) -> None:
        """Builds the signatures of the whole, and takes over those of other subgraphs."""
        own = [
            [item for item in piece.model.signatures if item.subgraph is piece.model.subgraphs[0]]
            for piece in self.pieces
        ]
        signed = [number for number, piece in enumerate(self.pieces) if own[number] and not piece.is_stage]
        for item in own[signed[0]] if signed else ():
            given = [feed for _, feed in sorted(self.outside.items())]
            rows = (
                self._rows(item.key, "inputs", given, own),
                self._rows(item.key, "outputs", self.feeds, own),
            )
            self.model.signatures.append(Signature(item.key, self.main, *rows, item.rest))
        keys = {item.key for item in self.model.signatures}
        self.notes += [
            f"no signature {item.key!r} of {self.pieces[number].name} any more: "
            f"the whole has those of {self.pieces[signed[0]].name}"
            for number in signed[1:]
            for item in own[number]
            if item.key not in keys
        ]
        for piece in self.pieces:
            for item in piece.model.signatures:
                if item.subgraph is piece.model.subgraphs[0]:
                    continue
                if item.key in keys:
                    item.key, old = _free(f"{piece.name}_{item.key}", keys), item.key
                    self.notes.append(f"signature {old!r} of {piece.name} is {item.key!r} now")
                keys.add(item.key)
                self.model.signatures.append(item)

    def _rows(
        self, key: str | None, side: str, feeds: Sequence[Feed], own: Sequence[Sequence[Signature]]
    ) -> list[tuple[Record, Tensor]]:
        """Arguments of a signature of the whole: as its models call them, each under a name of its own.

        Args:
            key: Of the signature; a model that has none of it is asked for its first.
            side: Of the whole: ``inputs`` or ``outputs``.
            feeds: For each of them the number of the model that it is of, and the place there.
            own: The signatures of each model.
        """
        made: list[tuple[Record, Tensor]] = []
        taken: set[str] = set()
        for tensor, (number, place) in zip(getattr(self.main, side), feeds, strict=True):
            keys = [item.key for item in own[number]]
            asked = [item for item in own[number] if item.key == (key if key in keys else keys[0])]
            names = [name for item in asked for name, at in places_named(item, side) if at == place]
            if asked and not names:
                self.notes.append(f"signature {key!r} has {tensor.name!r} among its {side} now")
            for name in names or [tensor.name]:
                chosen = _free(name, taken)
                if chosen != name:
                    told = f"{chosen!r} in signature {key!r} now"
                    self.notes.append(f"{name!r} of {self.pieces[number].name} is {told}")
                taken.add(chosen)
                made.append((new_record("TensorMap").replace(name=chosen), tensor))
        return made

    def _name_resources(self) -> None:
        """Keeps variables and tables of different models apart."""
        owners: dict[tuple[object, ...], int] = {}
        found = [
            (number, operator, (operator.code.builtin, *(operator.option(name) or "" for name in names)))
            for number, piece in enumerate(self.pieces)
            for subgraph in piece.model.subgraphs
            for operator in subgraph.operators
            if operator.code.custom is None and (names := row_of(operator).handle)
        ]
        renamed: dict[tuple[object, ...], object] = {}
        # What no model has, nor gets.
        used = {item for _, _, key in found for item in key[1:]}
        for number, operator, key in found:
            if owners.setdefault(key, number) == number:
                continue
            piece, names = self.pieces[number], row_of(operator).handle
            if operator.options is None:
                raise UnsupportedError(
                    f"a resource of {piece.name} has no name, as one of another model",
                    remedy="what both keep would be one",
                )
            field = next((name for name in names if isinstance(operator.option(name), int)), names[-1])
            if (number, key) not in renamed:
                other = renamed[(number, key)] = _other(operator.option(field), piece.name, used)
                used.add(other)
                self.notes.append(f"a resource of {piece.name} has another name: {other}")
            operator.options = operator.options.replace(**{field: renamed[(number, key)]})


def _other(value: object, prefix: str, used: set[object]) -> object:
    if isinstance(value, int):
        return 1 + max((item for item in used if isinstance(item, int)), default=0)
    return _free(f"{prefix}/{value or ''}", [str(item) for item in used])


def _free(name: str, taken: Container[str | None]) -> str:
    """Returns the name, with a number behind it where it is taken."""
    made, number = name, 1
    while made in taken:
        number += 1
        made = f"{name}_{number}"
    return made
