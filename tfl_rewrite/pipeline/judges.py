"""The judges of what a rewrite makes, and the file that each of its results is compared with."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import replace

from tfl_rewrite.editing.base import Context, Effect, Pass, PassResult, effects_of, run_passes
from tfl_rewrite.files.source import Source, load, save
from tfl_rewrite.interpreter.scratch import Scratch
from tfl_rewrite.judge.counterparts import chained
from tfl_rewrite.judge.settings import Judging
from tfl_rewrite.judge.verdict import Verdict
from tfl_rewrite.pipeline.verify import FullPanel
from tfl_rewrite.reading.metadata import on_disk
from tfl_rewrite.work import current

PathLike = str | os.PathLike[str]


class Judges:
    """The judges of what a rewrite makes, and the file whose outputs it must have; made when first asked for.

    Args:
        source: The original.
        passes: Of the rewrite.
        judging: How files are run and compared.
        stack: Closes them.
    """

    def __init__(
        self, source: Source, passes: Sequence[Pass], judging: Judging, stack: contextlib.ExitStack
    ) -> None:
        self._source = source
        self._passes = passes
        self._judging = judging
        self._stack = stack
        self._panels: dict[Effect, FullPanel] = {}
        self._expected: PathLike | None = None

    def expected(self, results: Sequence[PassResult]) -> PathLike:
        """The file whose outputs the result must have (:class:`Effect`).

        Args:
            results: Of the first attempt.
        """
        if self._expected is None:
            self._expected = self._made(results)
        return self._expected

    def named(self, results: Sequence[PassResult]) -> PathLike:
        """The same file with the names that the result has.

        Args:
            results: Of the first attempt.
        """
        renaming = [item for item, result in zip(self._passes, results, strict=True) if result.counterparts]
        if not renaming:
            return self.expected(results)
        model = load(self.expected(results))
        run_passes(model, renaming)
        path = self._stack.enter_context(Scratch()).path / "named.tflite"
        save(model, path)
        return path

    def compare(self, results: Sequence[PassResult], made: Source) -> Verdict:
        """Has all judges judge a file; where outputs differ, see :attr:`PassResult.otherwise`."""
        verdict = self.panel(results).compare(made)
        told = [(item, result.otherwise) for item, result in zip(self._passes, results, strict=True)]
        readings = [text for _, text in told if text]
        if verdict.cause not in ("outputs", "kernels") or not readings:
            return verdict
        model = load(self.expected(results))
        for item, text in told:
            if text:
                item.define(model, Context())
        with Scratch() as scratch:
            path = scratch.path / "otherwise.tflite"
            save(model, path)
            with FullPanel(path, self._judging, progress=current().say) as panel:
                found = panel.compare(made)
        if not found.passed:
            return verdict
        note = f"compared with the original {' and '.join(readings)}; as it is: {'; '.join(verdict.reasons)}"
        return replace(found, notes=(note, *found.notes))

    def panel(self, results: Sequence[PassResult]) -> FullPanel:
        """All judges of results as strict as those of an attempt."""
        by, own = self.strictness(results), self._judging
        if by not in self._panels:
            judging = own if by is Effect.TOLERANCE else own.folded if by is Effect.FOLDING else own.exactly
            retyped = any(result.retyped for result in results)
            named = chained(result.counterparts for result in results)
            judging = replace(judging, retyped=retyped, counterparts=named)
            panel = FullPanel(self.expected(results), judging, progress=current().say)
            self._panels[by] = self._stack.enter_context(panel)
        return self._panels[by]

    def strictness(self, results: Sequence[PassResult]) -> Effect:
        """By what to judge: of what passes did, the effect that allows most."""
        done = effects_of(self._passes, results)
        if Effect.TOLERANCE in done or any(result.reading for result in results):
            return Effect.TOLERANCE
        return Effect.FOLDING if Effect.FOLDING in done else Effect.EXACT

    def _made(self, results: Sequence[PassResult]) -> PathLike:
        marked = [item for item in self._passes if item.effect is Effect.INTERFACE]
        undefined = [item for item, result in zip(self._passes, results, strict=True) if result.reading]
        if not marked and not undefined:
            return self._stack.enter_context(on_disk(self._source))
        model = self._source.model()
        for item in undefined:
            item.define(model, Context())
        run_passes(model, marked)
        path = self._stack.enter_context(Scratch()).path / "expected.tflite"
        save(model, path)
        return path
