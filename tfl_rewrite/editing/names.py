"""Names by which a user means tensors, arguments of signatures and signatures."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from tfl_rewrite.errors import UnsupportedError, UsageError, near_names, whole_number
from tfl_rewrite.flatbuf.record import Record
from tfl_rewrite.model.ir import Model, Signature, SubGraph, Tensor

_SHOWN = 20
AWAY = "'tfl-rewrite signatures --remove' takes the signature away"
"""What to do about a signature that a file cannot have."""


def index_of(name: str) -> int | None:
    """Returns the number of ``#NUMBER``; None for any other name."""
    return whole_number(name[1:]) if name.startswith("#") else None


def numbered(model: Model, subgraph: SubGraph) -> dict[int, Tensor]:
    """Returns the tensors of a subgraph by their positions in the file that was read."""
    if model.places is None:
        return dict(enumerate(subgraph.tensors))
    places = [model.place_of(tensor, "") for tensor in subgraph.tensors]
    return {
        int(place.rpartition("[")[2][:-1]): tensor
        for place, tensor in zip(places, subgraph.tensors, strict=True)
        if place
    }


def tensor_numbered(model: Model, subgraph: SubGraph, index: int) -> Tensor:
    """Returns the tensor of a subgraph that ``#INDEX`` means.

    Raises:
        UsageError: There is none.
    """
    numbers = numbered(model, subgraph)
    if index not in numbers:
        last = f"the last is #{max(numbers)}" if numbers else "the subgraph has no tensors"
        raise UsageError(f"there is no tensor #{index}", remedy=last)
    return numbers[index]


def split_pair(text: str, known: Collection[str], what: str) -> tuple[str, str]:
    """Parts ``OLD=NEW``, either of which may hold the sign; what is known decides where it is parted.

    Args:
        text: As it was given.
        known: Names that OLD may be, or NEW already is.
        what: What they are names of, for the message.

    Raises:
        UsageError: There is no sign, or it can be parted in several ways.
    """
    parts = text.split("=")
    pairs = [("=".join(parts[:place]), "=".join(parts[place:])) for place in range(1, len(parts))]
    if not pairs:
        raise UsageError(f"{text!r} names no new {what}", remedy="write OLD=NEW")
    found = [pair for pair in pairs if pair[0] in known or index_of(pair[0]) is not None]
    found = found or [pair for pair in pairs if pair[1] in known] or pairs[:1]
    if len(found) > 1:
        raise UsageError(
            f"{text!r} can be read in {len(found)} ways", remedy="call the tensor by its number: #INDEX=NEW"
        )
    return found[0]


def check_name(name: str, what: str) -> None:
    """Refuses a name that runtimes cannot be asked for.

    Raises:
        UsageError: It is empty, holds a zero byte, or is no text.
    """
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        raise UsageError(f"{name!a} is no text", remedy=f"name {what} in UTF-8") from None
    if not name or "\0" in name:
        raise UsageError(
            f"{name!r} is no name for {what}", remedy="give one character or more, none of them 0"
        )


def unknown_name(name: str, what: str, known: Iterable[str]) -> UsageError:
    """Returns the error of a name that nothing has: with the nearest ones, or some of those there are."""
    names = list(dict.fromkeys(item for item in known if item))
    near = [item for item in names if name and name.lower() in item.lower()][:5]
    near = list(dict.fromkeys([*near, *near_names(name, names, cutoff=0.4)]))[:5]
    if near:
        remedy = f"did you mean {', '.join(map(repr, near))}?"
    elif names:
        remedy = f"names are such as {', '.join(map(repr, names[:5]))}"
    else:
        remedy = "they have no names; give #INDEX of a tensor"
    return UsageError(f"no {what} is named {name!r}", remedy=remedy)


def nothing_asked(what: str) -> UsageError:
    """Returns the error of a pass that was not told what to do; ``what`` it takes."""
    return UsageError("nothing is asked for", remedy=f"give {what}")


def signature_named(model: Model, key: str) -> Signature:
    """Returns the signature of a key.

    Raises:
        UsageError: None has it.
    """
    found = [item for item in model.signatures if item.key == key]
    if found:
        return found[0]
    keys = [item.key for item in model.signatures if item.key]
    near = near_names(key, keys, count=1, cutoff=0.5)
    meant = f"did you mean {near[0]!r}? " if near else ""
    has = f"it has {', '.join(map(repr, keys[:_SHOWN]))}" if keys else "it has none"
    raise UsageError(f"the model has no signature {key!r}", remedy=f"{meant}{has}")


def arguments_of(signature: Signature, side: str) -> list[tuple[str, Tensor]]:
    """Returns the arguments of a signature with their names: its ``inputs`` or its ``outputs``."""
    rows: list[tuple[Record, Tensor]] = getattr(signature, side)
    return [(row.get("name") or "", tensor) for row, tensor in rows]


def places_named(signature: Signature, side: str) -> list[tuple[str, int]]:
    """Returns what a signature calls the ``inputs`` or ``outputs`` of its subgraph, each with its place.

    Of a tensor that stands at several places the names go to one after the other, and those over to the last.

    Raises:
        UnsupportedError: It names a tensor that is none of them.
    """
    ends: list[Tensor] = getattr(signature.subgraph, side)
    places: dict[int, list[int]] = {}
    for place, tensor in enumerate(ends):
        places.setdefault(id(tensor), []).append(place)
    made = []
    for name, tensor in arguments_of(signature, side):
        left = places.get(id(tensor))
        if left is None:
            told = f"{tensor.name!r}, which is none of the {side} of its subgraph"
            raise UnsupportedError(
                f"signature {signature.key!r} names {told}",
                remedy=AWAY,
            )
        made.append((name or tensor.name, left.pop(0) if len(left) > 1 else left[0]))
    return made


def ends_named(model: Model) -> dict[str | None, tuple[list[tuple[str, int]], list[tuple[str, int]]]]:
    """Returns for each signature of the main subgraph what :func:`places_named` says of both sides.

    Raises:
        UnsupportedError: One of them names a tensor that is neither an input nor an output.
    """
    return {
        item.key: (places_named(item, "inputs"), places_named(item, "outputs"))
        for item in model.signatures
        if item.subgraph is model.subgraphs[0]
    }
