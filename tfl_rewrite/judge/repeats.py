"""What a model gives when it is run again: by itself, and with other kernels of the same runtime.

Both files are run once more, each in another process. The first call of every entry point is repeated where
the process of the other file has done its work, with another content of the memory that nobody wrote (see
`POISON`). That costs a fraction of the first run. What looks different there is run again as a whole, in a
new process, before anything is said.

A model may be so sensitive that two correct kernels give outputs further apart than the tolerance: a tie in a
top-k, a threshold, a step of rounding that is amplified. Such a difference between the original and the
rewritten file says nothing about the rewrite.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from tfl_rewrite.interpreter.interface import Array, TensorFacts, quoted
from tfl_rewrite.interpreter.worker import RESOLVERS, Execution, Failure, OnRan
from tfl_rewrite.judge.compare import NOTICEABLE_DB, compared
from tfl_rewrite.judge.reference import Original, Reference
from tfl_rewrite.judge.retyped import between_steps, compared_as, converted
from tfl_rewrite.judge.settings import Tolerance
from tfl_rewrite.judge.tally import OutputTally
from tfl_rewrite.judge.verdict import Key, OutputComparison, Verdict

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
            sides = self._facts(ours, call.signature, position), self._facts(theirs, call.signature, position)
            other = next((side for side in sides if side != facts), facts)
            target = compared_as(facts, other, exact=self._reference.exact)
            if key not in self.tallies:
                self.tallies[key] = OutputTally(
                    target, signature=call.signature, position=position, fixed=not entry.inputs
                )
            if first is not None or second is not None:
                self.tallies[key].unreadable(first, second)
                continue
            values = ours.output(number, position), theirs.output(place, position)
            self._add(self.tallies[key], values, sides, target)

    def _facts(self, run: Execution, signature: str | None, position: int) -> TensorFacts:
        """What a run says of an output, where its types may be others than those of the original."""
        known = self._reference.interface
        says = self._reference.retyped and run.interface != self._reference.own
        said = run.interface if says and run.interface is not None else known
        for interface in (said, known):
            entry = interface.find(signature)
            if entry is not None and position < len(entry.outputs):
                return entry.outputs[position]
        raise AssertionError("the original has this output")

    def _add(
        self,
        tally: OutputTally,
        values: tuple[Array, Array],
        sides: tuple[TensorFacts, TensorFacts],
        target: TensorFacts,
    ) -> None:
        """Takes in what both runs gave, in the same type."""
        if self._reference.exact:
            for array, facts in zip(values, sides, strict=True):
                between = between_steps(array, facts, target)
                told = f"{between} values lie between the steps of {target.dtype}"
                tally.problems += [told] if between and told not in tally.problems else []
        before, after = (converted(array, facts, target) for array, facts in zip(values, sides, strict=True))
        tally.add(before, after)


def differing(tallies: Mapping[Key, OutputTally], tolerance: Tolerance = EXACT) -> set[Key]:
    """The outputs that are not equal enough; without a tolerance, not equal to the bit."""
    return {key for key, tally in tallies.items() if not compared(tally, tolerance).passed}


POISON = 0xA5
"""Memory comes out of malloc with its complement in every byte, and goes back with it: a kernel that reads
beyond a tensor, or before it wrote, computes something else than in fresh pages, which hold zeros."""
LAST_BITS_DB = 60.0
"""Sums in another order, as by the alignment of a buffer, are 120 dB apart in float32; garbage is not."""


# What is compared with when no other resolver was asked for: users meet one or the other of these. The
# reference kernels are too slow to run unasked.
OTHER = {"default": ("builtin",), "builtin": ("default",), "reference": ("builtin",)}


class Repeats:
    """Runs files again, and remembers what that showed of the original.

    Args:
        original: Which was run.
        others: Resolvers that it is compared with itself under; without any, see `OTHER`.
    """

    def __init__(self, original: Original, others: Sequence[str] = ()) -> None:
        self._original = original
        self._others = tuple(others)
        self._again: Tallies | Failure | None = None
        self._notes: tuple[str, ...] | None = None
        self._measured: dict[str, Tallies] | None = None

    def original_again(self) -> Tallies | Failure:
        """The original against itself, all calls, in a new process; run once."""
        if self._again is None:
            again, tallies = self._anew(self._original.path)
            self._again = again.failure or tallies
        return self._again

    def check(self, execution: Execution, after: Path, verdict: Verdict) -> Verdict:
        """Adds what running both files again shows.

        Args:
            execution: The first run of the rewritten file, which ended.
            after: The rewritten file.
            verdict: On that run.
        """
        reference, (first, second) = self._original.reference, self._original.workers
        calls = _first_calls(reference, execution)
        large = _too_large(reference, execution)
        if not calls:
            return replace(verdict, notes=(*verdict.notes, *large))
        ours = Tallying(reference, execution, dict(enumerate(calls)))
        first.begin({**self._request(after), "only": calls}, on_ran=ours.take, keeps=0)
        if self._notes is None:
            # Twice, one after the other: what differs then is carried over from call to call.
            stateful = reference.interface.keeps_state and not self._original.judging.independent
            times = 2 if stateful else 1
            asked = [call for call in calls for _ in range(times)]
            turns = [
                Tallying(reference, pairs={place: asked[place] for place in range(turn, len(asked), times)})
                for turn in range(times)
            ]
            second.begin(
                {**self._request(self._original.path), "only": asked},
                on_ran=lambda rerun, place: turns[place % times].take(rerun, place),
                keeps=0,
            )
        rerun = first.finish()
        rerun.discard()
        if self._notes is None:
            again = second.finish()
            again.discard()
            self._notes = tuple(self._judge_original(again.failure is not None, turns))
        reason: str | None = None
        found: list[str] = []
        if rerun.failure is not None or differing(ours.tallies):
            reason, found = self._judge_rewritten(execution, after)
        notes = (*verdict.notes, *self._notes, *large, *found)
        verdict = replace(verdict, repeated=len(calls), notes=notes)
        if reason is None:
            return verdict
        return replace(verdict, status="fail", cause="unrepeatable", reasons=(reason, *verdict.reasons))

    def _judge_original(self, failed: bool, turns: Sequence[Tallying]) -> list[str]:
        if failed or differing(turns[0].tallies):
            again = self.original_again()
            if isinstance(again, Failure):
                return [f"the original does not run a second time: {again.message}"]
            unstable = self._names(differing(again))
            text = "the original does not repeat its own outputs from one run to the next"
            return [f"{text}: {unstable}"] if unstable else []
        if any(differing(turn.tallies) for turn in turns[1:]):
            # The same call gives something else the second time.
            ran = len(self._original.reference.execution.ran)
            return [f"state carries over from call to call: the {ran} calls were run as one sequence"]
        return []

    def _judge_rewritten(self, execution: Execution, after: Path) -> tuple[str | None, list[str]]:
        """Runs the whole rewritten file again, since a part of it was not the same."""
        full, tallies = self._anew(after, execution)
        if full.failure is not None and len(full.ran) < len(execution.ran):
            return f"the rewritten file does not run a second time: {full.failure.message}", []
        changed = differing(tallies)
        if not changed:
            # State that an earlier call left explains it.
            return None, []
        again = self.original_again()
        blamed = changed if isinstance(again, Failure) else changed - differing(again)
        if not blamed or isinstance(again, Failure):
            return None, [f"nor does the rewritten file repeat its outputs: {self._names(changed)}"]
        names = self._names(blamed)
        worst = min(_likeness(tallies[key]) for key in blamed)
        if worst < LAST_BITS_DB:
            return (
                f"the rewritten file does not repeat its own outputs from one run to the next: {names}"
                f" ({worst:.1f} dB), while the original does",
                [],
            )
        return None, [f"the last bits of the rewritten file's outputs vary from run to run: {names}"]

    def _request(self, path: Path) -> dict[str, object]:
        reference = self._original.reference
        steps = self._original.steps_of(path)
        request = self._original.request("run", path, reference.resolver, steps)
        return {**request, "poison": POISON}

    def _anew(self, path: Path, ours: Execution | None = None) -> tuple[Execution, Tallies]:
        """Runs all calls in a process that has done nothing else, with no other that is busy beside it.

        It is started anew, not forked: what depends on the layout of memory is to show.
        """
        first, second = self._original.workers
        while True:
            first.kill(forks=False)
            tallying = Tallying(self._original.reference, ours)
            execution = self._run(self._request(path), tallying.take)
            if execution.failure is None or not execution.failure.crowded:
                return execution, tallying.tallies
            # What the other one holds is too much.
            second.kill()

    def _run(self, request: dict[str, object], on_ran: OnRan) -> Execution:
        worker = self._original.workers[0]
        worker.begin(request, on_ran=on_ran, keeps=0)
        with worker.finish() as execution:
            return execution

    def _names(self, keys: set[Key]) -> str:
        names = []
        for signature, position in sorted(keys, key=lambda key: (key[0] or "", key[1])):
            entry = self._original.reference.interface.find(signature)
            assert entry is not None
            label = quoted(entry.outputs[position].name)
            names.append(label if signature is None else f"{label} of {quoted(signature)}")
        return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")

    def noisiest(self, key: Key) -> OutputTally | None:
        """The original against itself, in the kernels that repeat this output least; None without any."""
        found = [tallies[key] for tallies in self._kernels().values() if key in tallies]
        return min(found, key=lambda tally: tally.snr_db, default=None)

    def excuse(self, output: OutputComparison, tolerance: Tolerance) -> tuple[bool, str | None]:
        """Whether a failed output is within what the original differs from itself; and what to say.

        An output is excused if other kernels put the original beyond the tolerance too, and at least as far
        as the rewrite did. Not if one of its channels is lost that other kernels repeat, whatever becomes of
        the others.
        """
        said: str | None = None
        lost = output.channel is not None and output.channel.reason is not None
        for resolver, tallies in self._kernels().items():
            tally = tallies.get((output.signature, output.position))
            noise = None if tally is None else compared(tally, tolerance)
            if noise is None or noise.passed:
                continue
            what = f"{output.label}: the original itself differs between kernels"
            said = f"{what} ({self._original.reference.resolver} and {resolver}): {noise.reason}"
            if not lost and _no_worse(output, noise):
                return True, said
            said += "; the rewritten file is further off"
        return False, said

    def _kernels(self) -> dict[str, Tallies]:
        """The original against itself in other kernels; run once."""
        if self._measured is None:
            self._measured = {}
            reference = self._original.reference
            for resolver in self._others or OTHER[reference.resolver]:
                if resolver == reference.resolver:
                    continue
                tallying = Tallying(reference)
                path = self._original.path
                request = self._original.request("run", path, resolver, self._original.steps_of(path))
                self._run(request, tallying.take)
                self._measured[resolver] = tallying.tallies
        return self._measured


def _likeness(tally: OutputTally) -> float:
    """In dB; no more than the last bits where that is infinite, none where it is no matter of degree."""
    return tally.snr_db if tally.has_distance and not tally.problems and not tally.nonfinite else -math.inf


def _first_calls(reference: Reference, execution: Execution) -> list[int]:
    """The first call of each entry point that both files carried out and whose outputs are still there."""
    found: dict[str | None, int] = {}
    for number in sorted(execution.kept & reference.execution.kept):
        if not reference.calls[number].optional:
            found.setdefault(reference.calls[number].signature, number)
    return list(found.values())


def _too_large(reference: Reference, execution: Execution) -> list[str]:
    """Says which entry points are not asked again, because nothing that they gave was kept."""
    calls = range(min(len(execution.ran), len(reference.execution.ran)))
    keys = {reference.calls[number].signature for number in calls}
    kept = {reference.calls[number].signature for number in calls if number in execution.kept}
    entries = [reference.interface.find(key) for key in sorted(keys - kept, key=lambda key: key or "")]
    return [
        f"the outputs of {entry.label} are too large to be kept: it was not asked for them a second time"
        for entry in entries
        if entry is not None
    ]


def between(first: Reference, second: Reference, tolerance: Tolerance) -> list[OutputComparison]:
    """Compares what two judges see of the original; nothing where they did not run it alike."""
    if first.calls != second.calls or first.interface != second.interface:
        return []
    least = NOTICEABLE_DB if tolerance.min_snr is None else max(tolerance.min_snr, NOTICEABLE_DB)
    noticeable = Tolerance(min_snr=least, min_agreement=tolerance.min_agreement)
    tallying = Tallying(first)
    for call in sorted(second.execution.kept):
        tallying.take(second.execution, call)
    return [compared(tally, noticeable) for tally in tallying.tallies.values()]


def differences(first: Reference, second: Reference, outputs: Sequence[OutputComparison]) -> list[str]:
    """Says where two judges see different outputs of the original (:func:`between`), if it is noticeable."""
    who = f"{_name(first)} and {_name(second)}"
    return [
        f"the original's own outputs differ between {who}: {one.label}: {one.reason}"
        for one in outputs
        if not one.passed
    ]


def _name(reference: Reference) -> str:
    judge = reference.judge
    return f"{judge.runtime} {judge.version} ({RESOLVERS[reference.resolver]})"


def _no_worse(output: OutputComparison, noise: OutputComparison) -> bool:
    if output.rule in ("finite", "interface"):
        # NaN where the original has none, or another shape: no kernel explains that.
        return False
    if output.equal_share is not None and noise.equal_share is not None:
        return output.equal_share >= noise.equal_share
    if output.rule == noise.rule == "classes":
        return (output.argmax_agreement or 0.0) >= (noise.argmax_agreement or 0.0)
    return output.rule == noise.rule and output.short_db <= noise.short_db
