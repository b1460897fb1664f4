"""Turns integer and float16 weights back into float32 constants, for tools and delegates that want those.

Promise: a constant behind DEQUANTIZE becomes what DEQUANTIZE makes of it, to the bit, and so do blocks and
int6 (MUL, ADD and RESHAPE of such constants are computed too). A weight that a hybrid kernel reads becomes
the floats that it stands for, and the operator its float kernel; that one rounds no activations, so outputs
get closer to those of the model before it was quantized, and may differ from those of the input. Operators
that compute in integers stay, unless activations become floats too: then float kernels compute with the
dequantized constants, and inputs and outputs are floats. ``quantize-weights`` with the same encodings makes
the same integers again; a second run changes nothing. The file grows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

from tfl_rewrite.editing.base import Context, Edit, Effect, Pass, PassResult, Skip
from tfl_rewrite.editing.editor import Editor
from tfl_rewrite.integers.floats import make_floats
from tfl_rewrite.kernels.operands import operators_of
from tfl_rewrite.model.ir import Model, Tensor
from tfl_rewrite.options.option import option
from tfl_rewrite.weights.expansion import expand_constants
from tfl_rewrite.weights.state import nothing_to_expand


@dataclass(frozen=True, slots=True)
class Dequantize(Pass):
    """Turns integer and float16 weights back into float32; the file grows.

    Turns weights back into the float32 values that they stand for, for tools and delegates that want those.
    What stands behind DEQUANTIZE stays equal to the bit; an operator that read integers itself no longer
    rounds its activations, so outputs change a little. Operators that compute in integers stay, unless
    --activations makes floats of them.

    Attributes:
        only: If given, only constants that pass.

    Example:
        >>> from tfl_rewrite.passes import Dequantize
        >>> report = tfl_rewrite.rewrite("new.tflite", "float.tflite", [Dequantize()])
        >>> report.nbytes_after > report.nbytes_before
        True
    """

    name: ClassVar[str] = "dequantize"
    effect: ClassVar[Effect] = Effect.TOLERANCE
    place: ClassVar[str] = "before round-weights and quantize-weights, which take float weights"

    only: Callable[[Tensor], bool] | None = None
    activations: bool = option(
        False,
        "make what computes in integers compute in floats, too: a full-integer model becomes a float one, "
        "whose inputs and outputs are floats. What has no float kernel stays and is named",
    )

    @property
    def milder(self) -> str:
        """Nothing of it can be done by halves."""
        return "give more samples, or a lower --min-snr: floats are not rounded as the integers were"

    def run(self, model: Model, context: Context) -> PassResult:
        """Rewrites the model in place. The floats of weights are made when the file is written."""
        made = self._floats(model) if self.activations else PassResult(self.name)
        done = expand_constants(model, self.only)
        changes = (*made.changes, *done.edits)
        return replace(
            made,
            changes=changes,
            skips=(*made.skips, *done.skips),
            notes=(*made.notes, *done.notes),
            grows=True,
            idle="" if changes else nothing_to_expand(model),
        )

    def _floats(self, model: Model) -> PassResult:
        """Makes what computes in integers compute in floats."""
        places = {id(operator): place for _, operator, place in operators_of(model)}
        editor = Editor(model)
        done = make_floats(model, editor)
        editor.finish()
        return PassResult(
            self.name,
            tuple(
                Edit(f"{places[id(item)]} {item.code.name}", "computes in floats") for item in done.operators
            ),
            tuple(Skip(places[key], why, "integer-island") for key, why in done.reasons.items()),
            (*done.notes(), *editor.notes) if done.operators else (),
            retyped=bool(done.border),
        )
