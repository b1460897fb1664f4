"""simplify: the passes that leave fewer operators, round after round until none of them finds anything.

In each round, in this order: ``remove-noops``, ``fuse``, ``fold-batch-norms``, ``drop-channels``,
``fold-constants``, ``dedup`` and ``remove-dead``; what one of them leaves is often what another looks for.
Each keeps its own promise, which says what goes, what stays and may differ. Outputs are equal to the bit
where nothing was folded into weights or computed in another order, and within 120 dB where something was;
``--no-fold`` leaves that. Refuses when metadata refers to what would move
(:mod:`tfl_rewrite.editing.metadata`). A second run finds nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

from tfl_rewrite.editing.base import Change, Context, Edit, Effect, Pass, PassResult, run_passes
from tfl_rewrite.editing.effects import PURE_CUSTOM
from tfl_rewrite.model.ir import Model
from tfl_rewrite.options.frozen import frozen
from tfl_rewrite.options.option import option

# The passes are loaded when it runs: others have it as an option, and most of their runs are without.

SIMPLIFY = "simplify the graph first, as 'tfl-rewrite simplify' does; OUT is judged as it is without this"
"""Help of an option of several passes."""
_MOST_ROUNDS = 50
"""Each leaves fewer operators, or constants of which one was made; a real model takes four."""


@frozen(kw_only=True)
class Simplify(Pass):
    """Leaves fewer operators that compute the same.

    Removes what gives out what it is given, makes one operator of several, folds arithmetic into weights and
    biases, and merges what is equal, until nothing is left to do. Outputs are equal to the bit, or within
    120 dB where something was folded.

    Example:
        >>> from tfl_rewrite.passes import Simplify
        >>> report = tfl_rewrite.rewrite("model.tflite", "simple.tflite", [Simplify()])
        >>> report.results[0].exact
        True
    """

    name: ClassVar[str] = "simplify"
    effect: ClassVar[Effect] = Effect.FOLDING
    place: ClassVar[str] = "before what rounds: a constant is rounded as what it is multiplied by"

    fold: bool = option(True, "do only what leaves outputs equal to the bit")
    grow: bool = option(True, "leave IN as it is where the result would take no fewer bytes")
    pure_custom: tuple[str, ...] = option((), PURE_CUSTOM, metavar="NAME")

    def run(self, model: Model, context: Context) -> PassResult:
        """Rewrites the model in place.

        Raises:
            UnsupportedError: Metadata refers to what would move.
        """
        from tfl_rewrite.passes.fuse import xnnpack_notes

        steps = self._steps()
        changes: list[Change] = []
        notes: dict[str, None] = {}
        counts: Counter[str] = Counter()
        exact = True
        for _ in range(_MOST_ROUNDS):
            results = run_passes(model, steps, context)
            for step, result in zip(steps, results, strict=True):
                counts[step.name] += len(result.changes)
                changes += [_named(change, step.name) for change in result.changes]
                # What is told of XNNPACK is told of all changes together.
                own = xnnpack_notes(result.changes)
                notes |= dict.fromkeys(note for note in result.notes if note not in own)
                exact &= not result.modified or result.exact or step.effect is Effect.EXACT
            if not any(result.modified for result in results):
                break
        told = ", ".join(f"{number} by {name}" for name, number in counts.items() if number)
        return PassResult(
            self.name,
            tuple(changes),
            tuple(skip for result in results for skip in result.skips),
            ((f"changes: {told}",) if told else ()) + (*xnnpack_notes(changes), *notes),
            grows=bool(changes) and self.grow,
            exact=exact,
            idle="" if changes else "no operator can go, nor can two be one",
        )

    def stricter(self, _short_db: float) -> Pass | None:
        """Returns the pass without what is computed in another order; None where it is."""
        return replace(self, fold=False) if self.fold else None

    def _steps(self) -> Sequence[Pass]:
        """Returns the passes of a round."""
        from tfl_rewrite.passes.dedup import Dedup
        from tfl_rewrite.passes.drop_channels import DropChannels
        from tfl_rewrite.passes.fold_batch_norms import FoldBatchNorms
        from tfl_rewrite.passes.fold_constants import FoldConstants
        from tfl_rewrite.passes.fuse import FUSIONS, KINDS, Fuse
        from tfl_rewrite.passes.remove_dead import RemoveDead
        from tfl_rewrite.passes.remove_noops import RemoveNoops

        inexact = {item.kind for item in FUSIONS if not item.exact}
        return (
            RemoveNoops(),
            Fuse() if self.fold else Fuse(only=tuple(kind for kind in KINDS if kind not in inexact)),
            *((FoldBatchNorms(), DropChannels()) if self.fold else ()),
            FoldConstants(),
            Dedup(pure_custom=self.pure_custom),
            RemoveDead(pure_custom=self.pure_custom),
        )


def after_simplify(item: Pass) -> Sequence[Pass]:
    """Returns the parts of a pass that has an option ``simplify``: this one first, where it is set."""
    kept: Any = item
    return (Simplify(), replace(kept, simplify=False)) if kept.simplify else (item,)


def _named(change: Change, name: str) -> Change:
    """Returns a change with the pass that made it."""
    return replace(change, data={**change.data, "by": name}) if isinstance(change, Edit) else change
