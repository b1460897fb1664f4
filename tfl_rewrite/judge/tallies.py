"""Two runs of the same calls, output by output."""

from __future__ import annotations

from collections.abc import Mapping

from tfl_rewrite.interpreter.interface import quoted
from tfl_rewrite.interpreter.runner import Execution
from tfl_rewrite.judge.compare import Tolerance, compared
from tfl_rewrite.judge.reference import Reference
from tfl_rewrite.judge.tally import OutputTally
from tfl_rewrite.judge.verdict import Key

Tallies = dict[Key, OutputTally]

EXACT = Tolerance(exact=True)


class Tallying:
    """Sums up some calls of two runs, output by output, while the second one goes on.

    Args:
        reference: Tells which call is which.
        ours: A run of all calls; by default that of the reference.
        pairs: For each call of ``theirs`` the number of that call in ``ours``; by default the same number.

    Attributes:
        tallies: The sums, by output.
        notes: Which outputs could be read on neither side.
    """

    def __init__(
        self, reference: Reference, ours: Execution | None = None, pairs: Mapping[int, int] | None = None
    ) -> None:
        self._reference = reference
        self._ours = reference.execution if ours is None else ours
        self._pairs = pairs
        self.tallies: Tallies = {}
        self.notes: list[str] = []

    def take(self, theirs: Execution, place: int) -> None:
        """Takes in a call of the second run while its outputs are there.

        What did not end in both runs, or whose outputs were not kept of the first one, is left out.
        """
        ours = self._ours
        number = place if self._pairs is None else self._pairs.get(place, -1)
        if number not in ours.kept:
            return
        call, before, after = self._reference.calls[number], ours.ran[number], theirs.ran[place]
        entry = self._reference.entry(call)
        for position, facts in enumerate(entry.outputs):
            if position >= len(before) or position >= len(after):
                continue
            key = (call.signature, position)
            first, second = before[position], after[position]
            if first is not None and second is not None:
                note = f"output {position} ({quoted(facts.name)}) cannot be read from either file: {first}"
                self.notes += [] if note in self.notes else [note]
                continue
            if key not in self.tallies:
                self.tallies[key] = OutputTally(
                    facts, signature=call.signature, position=position, fixed=not entry.inputs
                )
            if first is not None or second is not None:
                self.tallies[key].unreadable(first, second)
            else:
                self.tallies[key].add(ours.output(number, position), theirs.output(place, position))


def tally_runs(reference: Reference, execution: Execution) -> tuple[Tallies, list[str]]:
    """Sums up two runs that ended, output by output, as far as outputs were kept."""
    tallying = Tallying(reference)
    for call in sorted(execution.kept):
        tallying.take(execution, call)
    return tallying.tallies, tallying.notes


def differing(tallies: Mapping[Key, OutputTally], tolerance: Tolerance = EXACT) -> set[Key]:
    """The outputs that are not equal enough; without a tolerance, not equal to the bit."""
    return {key for key, tally in tallies.items() if not compared(tally, tolerance).passed}
