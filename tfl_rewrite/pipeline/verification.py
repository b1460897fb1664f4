"""How a rewrite is verified, and the judges that follow from that."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

# Verification is loaded when something is verified: it takes longer to import than a small file to rewrite.
if TYPE_CHECKING:
    from tfl_rewrite.calibration.rounder import Settings
    from tfl_rewrite.judge.compare import Tolerance
    from tfl_rewrite.judge.judge import Judge
    from tfl_rewrite.judge.layers import Blame
    from tfl_rewrite.pipeline.verify import FullPanel

MODES = ("auto", "require", "off")


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """How a rewrite is verified.

    Attributes:
        mode: ``auto``: run both files; if the original itself cannot run, say so and publish a file that was
            checked structurally. ``require``: refuse then. ``off``: do not run anything.
        inputs: Real inputs: ``.npz`` files, pictures, sound, or folders of them; without any, they are made.
            Where a pass is fitted to them, a quarter of the samples is held out, two at least, and judges.
        holdout: Real inputs that nothing is fitted to; where there are some, they alone judge.
        samples: How many are made.
        seed: Of the made ones.
        tolerance: What a lossy pass may change; None for the defaults of ``Tolerance``. Passes that promise
            equal numbers are judged bit by bit.
        runtime: ``litert``, ``tensorflow``, ``python:PATH`` or ``python:PATH:RUNTIME``; or several of them.
        resolver: ``default``, ``builtin`` or ``reference`` kernels; or several. Each runtime judges with
            each; the worst verdict counts. None for the default ones, or the built-in ones if the original
            runs with no others.
        timeout: Seconds for each run of a file.
        memory_limit: Bytes that the interpreters of both files may take together; None for four fifths of
            the machine's.
        independent: Each sample meets a new interpreter. Otherwise all are one sequence in one interpreter,
            and what a model keeps in variables carries over.
        blame_seconds: How long to look for the constants that did the damage after a failure.
        rescue: Whether those are then stored finer, so that the file passes; otherwise it is refused.
        blame: Whether to run both files operator by operator as well, after the verdict.
    """

    mode: str = "auto"
    inputs: tuple[str | os.PathLike[str], ...] = ()
    holdout: tuple[str | os.PathLike[str], ...] = ()
    samples: int = 4
    seed: int = 0
    tolerance: Tolerance | None = None
    runtime: str | tuple[str, ...] = "litert"
    resolver: str | tuple[str, ...] | None = None
    timeout: float = 600.0
    memory_limit: int | None = None
    independent: bool = False
    blame_seconds: float = 5.0
    rescue: bool = True
    blame: bool = False

    @property
    def judging_inputs(self) -> tuple[str | os.PathLike[str], ...]:
        """The real inputs that files are judged with."""
        return self.holdout or self.inputs

    def judge(self, before: str | os.PathLike[str], *, exact: bool) -> Judge:
        """Makes one judge of files rewritten from ``before``, the first, for searches among many files."""
        from tfl_rewrite.judge.judge import Judge, several

        return Judge(
            before,
            runtime=several(self.runtime)[0],
            resolver=next(iter(several(self.resolver)), None),
            **self._options(exact),
        )

    def panel(
        self,
        before: str | os.PathLike[str],
        *,
        exact: bool,
        progress: Callable[[str], None] | None = None,
    ) -> FullPanel:
        """Makes all judges of files rewritten from ``before``."""
        from tfl_rewrite.judge.judge import Panel, several
        from tfl_rewrite.pipeline.verify import FullPanel

        def make(original: str | os.PathLike[str], inputs: Sequence[str | os.PathLike[str]]) -> Panel:
            return Panel(
                original,
                runtimes=several(self.runtime),
                resolvers=several(self.resolver),
                progress=progress,
                **{**self._options(exact), "inputs": inputs},
            )

        return FullPanel(before, self.judging_inputs, make)

    def calibration(self) -> Settings:
        """Returns how to look at what weights meet: with the inputs, in the first of the runtimes."""
        from tfl_rewrite.calibration.rounder import Settings
        from tfl_rewrite.judge.judge import several

        return Settings(
            inputs=self.inputs,
            runtime=several(self.runtime)[0],
            timeout=self.timeout,
            memory_limit=self.memory_limit,
        )

    def _options(self, exact: bool) -> dict[str, Any]:
        from tfl_rewrite.judge.compare import Tolerance

        return {
            "inputs": self.judging_inputs,
            "samples": self.samples,
            "seed": self.seed,
            "tolerance": Tolerance(exact=True) if exact else self.tolerance,
            "timeout": self.timeout,
            "memory_limit": self.memory_limit,
            "independent": self.independent,
        }

    def trace(self, before: str | os.PathLike[str], after: str | os.PathLike[str]) -> Blame | None:
        """Runs both operator by operator, where that is asked for."""
        if not self.blame:
            return None
        from tfl_rewrite.judge.judge import several
        from tfl_rewrite.reading.blame import blame

        return blame(
            before,
            after,
            inputs=self.judging_inputs,
            samples=self.samples,
            seed=self.seed,
            runtime=several(self.runtime)[0],
            timeout=self.timeout,
        )
