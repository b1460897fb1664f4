"""How far the original is from itself when other kernels of the same runtime compute it.

A model may be so sensitive that two correct kernels give outputs further apart than the tolerance: a tie in
a top-k, a threshold, a step of rounding that is amplified. Such a difference between the original and the
rewritten file says nothing about the rewrite.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .cleanup import Scratch
from .compare import Tolerance
from .reference import Options, Reference
from .report import OutputComparison
from .runner import RESOLVERS, Worker
from .tallies import Tallies, tally_runs

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

    def excuse(
        self, reference: Reference, outputs: Sequence[OutputComparison], tolerance: Tolerance
    ) -> tuple[bool, list[str]]:
        """Whether every failed output is within what the original differs from itself; and what to say.

        An output is excused if other kernels put the original beyond the tolerance too, and at least as far
        as the rewrite did.
        """
        failed = [output for output in outputs if not output.passed]
        notes: list[str] = []
        excused = 0
        measured = self._measure(reference)
        for output in failed:
            for resolver, tallies in measured.items():
                tally = tallies.get((output.signature, output.position))
                noise = None if tally is None else tally.comparison(tolerance)
                if noise is None or noise.passed:
                    continue
                what = f"{output.label}: the original itself differs between kernels"
                notes.append(f"{what} ({reference.resolver} and {resolver}): {noise.reason}")
                if _no_worse(output, noise):
                    excused += 1
                    break
                notes[-1] += "; the rewritten file is further off"
        return bool(failed) and excused == len(failed), notes

    def _measure(self, reference: Reference) -> dict[str, Tallies]:
        if self._measured is None:
            self._measured = {}
            for resolver in self._others or OTHER[reference.resolver]:
                if resolver == reference.resolver:
                    continue
                request = self._options.request("run", self._path, resolver, reference.steps)
                self._worker.begin(request, self._scratch.folder())
                execution = self._worker.finish(self._options.timeout)
                self._measured[resolver] = tally_runs(reference, execution)[0]
                self._scratch.discard(execution.folder)
        return self._measured


def differences(first: Reference, second: Reference, tolerance: Tolerance) -> list[str]:
    """Says where two judges see different outputs of the original, if the difference is noticeable."""
    same = first.calls == second.calls and first.interface == second.interface
    if not same:
        return []
    noticeable = Tolerance(
        min_snr=tolerance.noticeable_snr, min_agreement=1.0, near_zero_abs=tolerance.near_zero_abs
    )
    tallies, _ = tally_runs(first, second.execution)
    found = [tally.comparison(noticeable) for tally in tallies.values()]
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
    if output.rule == "snr" and output.snr_db is not None and noise.snr_db is not None:
        return output.snr_db >= noise.snr_db
    if output.equal_share is not None and noise.equal_share is not None:
        return output.equal_share >= noise.equal_share
    if output.rule in ("near zero", "none", "snr"):
        return (output.max_abs_error or 0.0) <= (noise.max_abs_error or 0.0)
    # NaN where the original has none, or another shape: no kernel explains that.
    return False
