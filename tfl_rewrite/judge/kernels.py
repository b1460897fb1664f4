"""How far the original is from itself when other kernels of the same runtime compute it.

A model may be so sensitive that two correct kernels give outputs further apart than the tolerance: a tie in
a top-k, a threshold, a step of rounding that is amplified. Such a difference between the original and the
rewritten file says nothing about the rewrite.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tfl_rewrite.interpreter.runner import RESOLVERS, Worker
from tfl_rewrite.interpreter.scratch import Scratch
from tfl_rewrite.judge.compare import NOTICEABLE_DB, Tolerance, compared
from tfl_rewrite.judge.reference import Options, Reference
from tfl_rewrite.judge.report import OutputComparison
from tfl_rewrite.judge.tallies import Tallies, Tallying, tally_runs
from tfl_rewrite.judge.tally import OutputTally
from tfl_rewrite.judge.verdict import Key

# What is compared with when no other resolver was asked for: users meet one or the other of these. The
# reference kernels are too slow to run unasked.
OTHER = {"default": ("builtin",), "builtin": ("default",), "reference": ("builtin",)}


class KernelNoise:
    """Runs the original with other kernels, when first asked.

    Args:
        path: The original.
        others: Resolvers to compare with; without any, see `OTHER`.
    """

    def __init__(
        self, path: Path, options: Options, worker: Worker, scratch: Scratch, others: Sequence[str]
    ) -> None:
        self._path = path
        self._options = options
        self._worker = worker
        self._scratch = scratch
        self._others = tuple(others)
        self._measured: dict[str, Tallies] | None = None

    def of(self, reference: Reference, key: Key) -> OutputTally | None:
        """The original against itself, in the kernels that repeat this output least; None without any."""
        found = [tallies[key] for tallies in self._measure(reference).values() if key in tallies]
        return min(found, key=lambda tally: tally.snr_db, default=None)

    def excuse(
        self, reference: Reference, output: OutputComparison, tolerance: Tolerance
    ) -> tuple[bool, str | None]:
        """Whether a failed output is within what the original differs from itself; and what to say.

        An output is excused if other kernels put the original beyond the tolerance too, and at least as far
        as the rewrite did. Not if one of its channels is lost that other kernels repeat, whatever becomes of
        the others.
        """
        said: str | None = None
        lost = output.channel is not None and output.channel.reason is not None
        for resolver, tallies in self._measure(reference).items():
            tally = tallies.get((output.signature, output.position))
            noise = None if tally is None else compared(tally, tolerance)
            if noise is None or noise.passed:
                continue
            what = f"{output.label}: the original itself differs between kernels"
            said = f"{what} ({reference.resolver} and {resolver}): {noise.reason}"
            if not lost and _no_worse(output, noise):
                return True, said
            said += "; the rewritten file is further off"
        return False, said

    def _measure(self, reference: Reference) -> dict[str, Tallies]:
        if self._measured is None:
            self._measured = {}
            for resolver in self._others or OTHER[reference.resolver]:
                if resolver == reference.resolver:
                    continue
                request = self._options.request("run", self._path, resolver, reference.steps)
                tallying = Tallying(reference)
                self._worker.begin(request, self._scratch.folder(), on_ran=tallying.take, keeps=0)
                execution = self._worker.finish(self._options.timeout)
                self._measured[resolver] = tallying.tallies
                self._scratch.discard(execution.folder)
        return self._measured


def differences(first: Reference, second: Reference, tolerance: Tolerance) -> list[str]:
    """Says where two judges see different outputs of the original, if the difference is noticeable."""
    same = first.calls == second.calls and first.interface == second.interface
    if not same:
        return []
    least = NOTICEABLE_DB if tolerance.min_snr is None else max(tolerance.min_snr, NOTICEABLE_DB)
    noticeable = Tolerance(min_snr=least, min_agreement=tolerance.min_agreement)
    tallies, _ = tally_runs(first, second.execution)
    found = [compared(tally, noticeable) for tally in tallies.values()]
    who = f"{_name(first)} and {_name(second)}"
    return [
        f"the original's own outputs differ between {who}: {one.label}: {one.reason}"
        for one in found
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
