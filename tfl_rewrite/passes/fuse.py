"""fuse: operators that are parts of one become that one.

Goes: operators that together compute what one operator computes (:mod:`tfl_rewrite.editing.fusions`), where
nobody else reads what lies between them; the constants that nothing reads then. Stays: names, types and
shapes of inputs, outputs and arguments of signatures; operators that keep state, draw random numbers, run
subgraphs or are custom, but for a FlexErf inside of a GELU; integers, but for padding. Sizes of inputs are
those that the file states: padding, means and products fit them, and a caller who gives an input another size
than that may get other numbers, or another shape. May differ, by the last bits: what an activation function,
a mean or a product gives that was spelled out. Refuses when metadata refers to what would move
(:mod:`tfl_rewrite.editing.metadata`). A second run finds nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from tfl_rewrite.editing.base import Change, Context, Edit, Effect, Pass, PassResult
from tfl_rewrite.editing.editor import Editor
from tfl_rewrite.editing.fusions import FUSIONS, KINDS
from tfl_rewrite.editing.metadata import positions_moved
from tfl_rewrite.editing.replacements import fuse
from tfl_rewrite.kernels.table import row_named
from tfl_rewrite.model.ir import Model
from tfl_rewrite.options.option import option

_KNOWN_TO_XNNPACK = (
    "{count} of {all} changes win no time where XNNPACK computes, which does the same when it loads a file; "
    "other delegates, TFLite Micro and the kernels without a delegate gain"
)
_UNKNOWN_TO_MICRO = "TFLite Micro has no {names}, but all of what became it; fuse --skip {kinds} leaves that"


def xnnpack_notes(changes: Sequence[Change]) -> list[str]:
    """Says how many of some changes win nothing where XNNPACK computes, and who gains; nothing for none."""
    known = sum(isinstance(item, Edit) and bool(item.data.get("known_to_xnnpack")) for item in changes)
    return [_KNOWN_TO_XNNPACK.format(count=known, all=len(changes))] if known else []


def micro_notes(changes: Sequence[Change]) -> list[str]:
    """Says which operators TFLite Micro lacks that were made of such as it has; nothing for none."""
    lost: dict[str, str] = {}
    for item in changes:
        data = item.data if isinstance(item, Edit) else {}
        if all(row_named(name).micro for name in data.get("before", ())):
            lost |= {name: data["kind"] for name in data.get("after", ()) if not row_named(name).micro}
    if not lost:
        return []
    kinds = " --skip ".join(dict.fromkeys(lost.values()))
    return [_UNKNOWN_TO_MICRO.format(names=" and no ".join(lost), kinds=kinds)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Fuse(Pass):
    """Makes one operator of several that compute what it computes.

    Activation functions that were spelled out become the operator (PRELU, SOFTMAX, GELU), and so do a mean
    and a product with a constant matrix. Activations and padding go into the layer beside them. What is only
    moved stays equal to the bit; what is computed in another order stays within 120 dB.

    Example:
        >>> report = tfl_rewrite.rewrite("model.tflite", "fused.tflite", [tfl_rewrite.Fuse()])
        >>> report.outcome
        'unchanged'
    """

    name: ClassVar[str] = "fuse"
    effect: ClassVar[Effect] = Effect.FOLDING
    place: ClassVar[str] = "before constants are merged and rounded, so that what is read by one is seen"

    only: tuple[str, ...] = option((), "fuse this kind alone; repeatable", metavar="KIND", choices=KINDS)
    skip: tuple[str, ...] = option((), "leave this kind; repeatable", metavar="KIND", choices=KINDS)

    def run(self, model: Model, context: Context) -> PassResult:
        """Fuses what can be fused.

        Raises:
            UnsupportedError: Metadata refers to what would move.
        """
        wanted = set(self.only or KINDS) - set(self.skip)
        editor = Editor(model)
        done = fuse(model, [item for item in FUSIONS if item.kind in wanted], editor)
        notes = positions_moved(model) if done.changes else []
        editor.finish()
        notes += editor.notes
        notes += [*xnnpack_notes(done.changes), *micro_notes(done.changes)]
        return PassResult(
            self.name,
            tuple(done.changes),
            tuple(done.skips),
            tuple(notes),
            grows=bool(done.changes),
            exact=done.exact,
            idle="" if done.changes else "no operators compute together what one can",
        )


__all__ = ["Fuse"]
