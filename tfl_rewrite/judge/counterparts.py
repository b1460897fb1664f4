"""Files that compute the same under other names: the original as callers of the rewritten file meet it.

A rewrite may be asked to give signatures, their arguments and tensors other names, to add a signature or to
take some away. Of each entry point of the rewritten file it then says which one of the original computes the
same, and how that calls what goes in and comes out. Here the original is described and called by that: it
runs through its own names, and what it gives is compared in the order of the rewritten file.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tfl_rewrite.options.frozen import frozen

# The descriptions are of arrays, and a rewrite that has no names to give needs none.
if TYPE_CHECKING:
    from tfl_rewrite.interpreter.interface import EntryPoint, Interface, TensorFacts

Argument = tuple[str, str | int]
"""Its name in the rewritten file; and in the original its name in the signature, or its position where that
is the primary subgraph."""


@frozen(kw_only=True)
class Counterpart:
    """An entry point of the rewritten file, and the one of the original that computes the same.

    Attributes:
        key: Of its signature; None for the primary subgraph, whose arguments stand in order.
        original: Of the signature of the original; None for its primary subgraph.
        inputs: Each with what the original calls it.
        outputs: Likewise.
    """

    key: str | None
    original: str | None
    inputs: tuple[Argument, ...]
    outputs: tuple[Argument, ...]

    def after(self, earlier: Counterpart) -> Counterpart:
        """Returns it with the names of a file before that, from which its original was made."""
        known = (
            {_reference(earlier.key, place, name): behind for place, (name, behind) in enumerate(arguments)}
            for arguments in (earlier.inputs, earlier.outputs)
        )
        inputs, outputs = (
            tuple((name, names[behind]) for name, behind in arguments if behind in names)
            for arguments, names in zip((self.inputs, self.outputs), known, strict=True)
        )
        return replace(self, original=earlier.original, inputs=inputs, outputs=outputs)


def _reference(key: str | None, place: int, name: str) -> str | int:
    return place if key is None else name


Counterparts = tuple[Counterpart, ...]


def chained(each: Iterable[Counterparts]) -> Counterparts:
    """Returns what several rewrites, each of the result of the one before, make of the first entry points."""
    made: Counterparts | None = None
    for found in each:
        if made is None or not found:
            made = found or made
            continue
        known = {item.key: item for item in made}
        made = tuple(item.after(known[item.original]) for item in found if item.original in known)
    return made or ()


def seen(own: Interface, counterparts: Counterparts, theirs: Interface | None) -> Interface:
    """The original as it is called by the names of the rewritten file.

    Args:
        own: As it describes itself.
        counterparts: Of the entry points of the rewritten file.
        theirs: As that describes itself, whose order of arguments counts; None where it does not open.
    """
    entries = []
    for item in counterparts:
        entry = own.find(item.original)
        if entry is not None:
            found = _arguments(entry, item, None if theirs is None else theirs.find(item.key))
            inputs, outputs = (tuple(facts for facts, _ in each) for each in found)
            entries.append(replace(entry, key=item.key, inputs=inputs, outputs=outputs))
    primary = next((entry for entry in entries if entry.key is None), own.primary)
    signatures = tuple(entry for entry in entries if entry.key is not None)
    return replace(own, primary=replace(primary, among=bool(signatures)), signatures=signatures)


_Found = list[tuple["TensorFacts", "str | int"]]


def _arguments(entry: EntryPoint, item: Counterpart, other: EntryPoint | None) -> tuple[_Found, _Found]:
    """What goes in and comes out, under the new names, and how the original calls it.

    In the order of the rewritten file: a runtime sorts the arguments of a signature by their names.
    """
    found = _named(entry.inputs, item.inputs), _named(entry.outputs, item.outputs)
    if item.key is not None and other is not None:
        for each, theirs in zip(found, (other.inputs, other.outputs), strict=True):
            places = {facts.name: place for place, facts in enumerate(theirs)}
            each.sort(key=lambda one: places.get(one[0].name, len(places)))
    return found


def _named(facts: Sequence[TensorFacts], arguments: Sequence[Argument]) -> _Found:
    """Samples may have the old names as well."""
    by_name = {item.name: item for item in facts}
    made = []
    for name, behind in arguments:
        item = (
            by_name.get(behind) if isinstance(behind, str) else next(iter(facts[behind : behind + 1]), None)
        )
        if item is not None:
            made.append((replace(item, name=name, aliases=(item.name, *item.aliases)), behind))
    return made


def write_own_calls(listed: Path, own: Interface, known: Interface, counterparts: Counterparts) -> Path:
    """Writes the calls of the rewritten file as the original is to be called; returns their list.

    Args:
        listed: The calls, as `write_steps` wrote them, of `known`.
        own: The original as it describes itself.
        known: What `seen` made of it.
        counterparts: As for `seen`.
    """
    calls = json.loads(listed.read_text(encoding="utf-8"))
    by_key = {item.key: item for item in counterparts}
    for call in calls:
        item = by_key.get(call["signature"])
        entry = None if item is None else own.find(item.original)
        if item is None or entry is None:
            continue
        inputs, outputs = _arguments(entry, item, known.find(item.key))
        given = [(behind, stem) for (_, behind), (_, stem) in zip(inputs, call["inputs"], strict=True)]
        if item.original is None:
            # Which go by their positions, whatever the list calls them.
            given.sort()
        call |= {
            "signature": item.original,
            "inputs": [(str(behind), stem) for behind, stem in given],
            "outputs": [behind for _, behind in outputs],
        }
    path = listed.with_name("own.json")
    path.write_text(json.dumps(calls), encoding="utf-8")
    return path
