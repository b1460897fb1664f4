"""Turns integer and float16 weights back into float32 constants, for tools and delegates that want those.

Promise: a constant behind DEQUANTIZE becomes what DEQUANTIZE makes of it, to the bit, and so do blocks and
int6 (MUL, ADD and RESHAPE of such constants are computed too). A weight that a hybrid kernel reads becomes
the floats that it stands for, and the operator its float kernel; that one rounds no activations, so outputs
get closer to those of the model before it was quantized, and may differ from those of the input. Operators
that compute in integers stay. ``quantize-weights`` with the same encodings makes the same integers again; a
second run changes nothing. The file grows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from tfl_rewrite.editing.base import Context, Effect, Pass, PassResult
from tfl_rewrite.model.ir import Model, Tensor
from tfl_rewrite.weights.expansion import expand_constants
from tfl_rewrite.weights.state import nothing_to_expand


@dataclass(frozen=True, slots=True)
class Dequantize(Pass):
    """Turns integer and float16 weights back into float32; the file grows.

    Turns weights back into the float32 values that they stand for, for tools and delegates that want those.
    What stands behind DEQUANTIZE stays equal to the bit; an operator that read integers itself no longer
    rounds its activations, so outputs change a little. Operators that compute in integers stay.

    Attributes:
        only: If given, only constants that pass.

    Example:
        >>> report = tfl_rewrite.rewrite("new.tflite", "float.tflite", [tfl_rewrite.Dequantize()])
        >>> report.nbytes_after > report.nbytes_before
        True
    """

    name: ClassVar[str] = "dequantize"
    effect: ClassVar[Effect] = Effect.TOLERANCE
    place: ClassVar[str] = "before round-weights and quantize-weights, which take float weights"

    only: Callable[[Tensor], bool] | None = None

    def run(self, model: Model, context: Context) -> PassResult:
        """Rewrites the model in place. The floats are made when the file is written."""
        done = expand_constants(model, self.only)
        idle = "" if done.edits else nothing_to_expand(model)
        return PassResult(self.name, done.edits, done.skips, done.notes, grows=True, idle=idle)
