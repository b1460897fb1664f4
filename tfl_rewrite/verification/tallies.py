"""Two runs of the same calls, output by output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .compare import Tolerance, compared
from .interface import quoted
from .reference import Reference
from .runner import Execution
from .tally import OutputTally
from .verdict import Key

Tallies = dict[Key, OutputTally]

EXACT = Tolerance(exact=True)


def tally_runs(reference: Reference, execution: Execution) -> tuple[Tallies, list[str]]:
    """Sums up what both sides ran, output by output; the notes tell which could be read on neither side."""
    return tally_calls(
        reference, reference.execution, execution, [(call, call) for call in range(len(execution.ran))]
    )


def tally_calls(
    reference: Reference, ours: Execution, theirs: Execution, pairs: Sequence[tuple[int, int]]
) -> tuple[Tallies, list[str]]:
    """Sums up some calls of two runs.

    Args:
        reference: Tells which call is which.
        ours: A run of all calls; ``theirs`` may have run some of them in another order.
        pairs: The number of each call, and which one it was in ``theirs``. What did not end is left out.
    """
    tallies: Tallies = {}
    notes: list[str] = []
    for number, place in pairs:
        if number >= len(ours.ran) or place >= len(theirs.ran):
            continue
        call, before, after = reference.calls[number], ours.ran[number], theirs.ran[place]
        entry = reference.entry(call)
        for position, facts in enumerate(entry.outputs):
            if position >= len(before) or position >= len(after):
                continue
            key = (call.signature, position)
            first, second = before[position], after[position]
            if first is not None and second is not None:
                note = f"output {position} ({quoted(facts.name)}) cannot be read from either file: {first}"
                notes += [] if note in notes else [note]
                continue
            if key not in tallies:
                tallies[key] = OutputTally(
                    facts, signature=call.signature, position=position, fixed=not entry.inputs
                )
            if first is not None or second is not None:
                tallies[key].unreadable(first, second)
            else:
                tallies[key].add(ours.output(number, position), theirs.output(place, position))
    return tallies, notes


def differing(tallies: Mapping[Key, OutputTally], tolerance: Tolerance = EXACT) -> set[Key]:
    """The outputs that are not equal enough; without a tolerance, not equal to the bit."""
    return {key for key, tally in tallies.items() if not compared(tally, tolerance).passed}
