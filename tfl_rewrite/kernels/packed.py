"""What the runtimes' kernels accept of int4, int2 and blockwise constants, as rows beside those of int8.

Measured like the rows of :mod:`tfl_rewrite.kernels.hybrid`, and on more runtimes: "1.0" in a source is
ai-edge-litert 1.0.1 (which registers what TensorFlow 2.18 does), "2.0" is 2.0.2 (2.20), "2.1" is 2.1.3 (2.21)
and 2.1.6 (2.22). Up to 2.0 the reference kernels have none of these versions and refuse the files.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from tfl_rewrite.kernels.hybrid import Granularity, Need
from tfl_rewrite.kernels.runtimes import Runtime


class Shape(enum.Enum):
    """A condition on the shape of a packed weight; the value is its description."""

    ANY = "any shape"
    WHOLE_BYTES = "its rows must fill whole bytes: the kernel goes from row to row in bytes"
    WHOLE_BLOCKS = "it must be a matrix whose rows are whole blocks, of 32, 64, ... elements"


@dataclass(frozen=True, slots=True)
class PackedForm:
    """One way in which a kernel takes packed integers beside float activations.

    Attributes:
        dtype: Name in ``TensorType``.
        granularity: As of :class:`tfl_rewrite.kernels.hybrid.Form`; BLOCK: float16 scales in a tensor of
            their own.
        version: The operator version to stamp, or the file's own if that is higher.
        first_runtime: The oldest runtime that computes this form correctly.
        by_default: Whether the form may be used without being asked for by name.
        source: Where this is known from.
        full_range: Whether the kernel reads the lowest integer (-8, -2) right, with every resolver.
        shape: What must hold of the weight's shape.
        asymmetric_inputs: As of :class:`tfl_rewrite.kernels.hybrid.Form`.
        needs: Conditions on top of those of the operator's row.
        note: What else is worth knowing before choosing it.
    """

    dtype: str
    granularity: Granularity
    version: int
    first_runtime: Runtime
    by_default: bool
    source: str
    full_range: bool = False
    shape: Shape = Shape.ANY
    asymmetric_inputs: bool | None = None
    needs: tuple[Need, ...] = ()
    note: str = ""


_TENSOR, _CHANNEL, _BLOCK = Granularity.TENSOR, Granularity.CHANNEL, Granularity.BLOCK

PACKED: Mapping[str, tuple[PackedForm, ...]] = MappingProxyType(
    {
        "FULLY_CONNECTED": (
            PackedForm(
                "INT4",
                _CHANNEL,
                12,
                (2, 18),
                True,
                "tflite/kernels/fully_connected.cc; measured on 1.0, 2.0 and 2.3; 2.14 refuses version 12",
                asymmetric_inputs=True,
                note="Stamped 10, 2.14 loads it and is wrong where rows are odd or not of 32 columns. With "
                "-8 the kernel without XNNPACK overflows (measured: 0 dB).",
            ),
            PackedForm(
                "INT4",
                _TENSOR,
                12,
                (2, 20),
                True,
                "measured on 2.0 and 2.3; XNNPACK of 1.0 refuses the whole file",
                asymmetric_inputs=True,
            ),
            PackedForm(
                "INT2",
                _CHANNEL,
                14,
                (2, 21),
                True,
                "tflite/kernels/fully_connected.cc; measured on 2.3",
                full_range=True,
                asymmetric_inputs=True,
            ),
            PackedForm(
                "INT2",
                _TENSOR,
                14,
                (2, 21),
                True,
                "tflite/kernels/fully_connected.cc; measured on 2.3",
                full_range=True,
                asymmetric_inputs=True,
                note="XNNPACK leaves it to the other kernel.",
            ),
            PackedForm(
                "INT4",
                _BLOCK,
                14,
                (2, 21),
                False,
                "tflite/kernels/fully_connected.cc (EvalBlockwise4Bit); measured on 2.1 and 2.3",
                shape=Shape.WHOLE_BLOCKS,
                asymmetric_inputs=True,
                note="Right with XNNPACK only: the reference kernel takes it for one scale and is wrong, and "
                "so is the other one below 4 outputs; 25 times slower there. With XNNPACK 13 times faster "
                "than float at batch 1. Known from version 13 on, but XNNPACK of 2.0 is wrong; version 14 "
                "keeps it away.",
            ),
        ),
        "CONV_2D": (
            PackedForm(
                "INT4",
                _CHANNEL,
                8,
                (2, 20),
                True,
                "tflite/kernels/conv.cc; measured on 2.0 and 2.3",
                needs=(Need.SCALES_DIFFER,),
                note="Known from version 7 on, but 2.14 returns NaN and 1.0 takes the process down; version "
                "8 keeps 2.14 away, and nothing keeps 1.0 away.",
            ),
            PackedForm(
                "INT4",
                _TENSOR,
                8,
                (2, 20),
                True,
                "tflite/kernels/conv.cc; measured on 2.0 and 2.3",
                needs=(Need.UNGROUPED,),
            ),
        ),
        "EMBEDDING_LOOKUP": (
            PackedForm(
                "INT4",
                _CHANNEL,
                4,
                (2, 18),
                True,
                "tflite/kernels/embedding_lookup.cc; measured on 1.0, 2.0 and 2.3: exact",
                full_range=True,
                shape=Shape.WHOLE_BYTES,
            ),
            PackedForm(
                "INT4",
                _TENSOR,
                4,
                (2, 18),
                True,
                "tflite/kernels/embedding_lookup.cc; measured on 1.0, 2.0 and 2.3: exact",
                full_range=True,
                shape=Shape.WHOLE_BYTES,
            ),
            PackedForm(
                "INT2",
                _CHANNEL,
                5,
                (2, 21),
                True,
                "tflite/kernels/embedding_lookup.cc; measured on 2.3: exact",
                full_range=True,
                shape=Shape.WHOLE_BYTES,
            ),
            PackedForm(
                "INT2",
                _TENSOR,
                5,
                (2, 21),
                True,
                "tflite/kernels/embedding_lookup.cc; measured on 2.3: exact",
                full_range=True,
                shape=Shape.WHOLE_BYTES,
            ),
            PackedForm(
                "INT4",
                _BLOCK,
                5,
                (2, 21),
                True,
                "tflite/kernels/embedding_lookup.cc (EvalBlockwise); measured on 2.3: exact",
                full_range=True,
                shape=Shape.WHOLE_BLOCKS,
                note="Known from version 4 on, but 1.0 returns zeros; version 5 keeps it away.",
            ),
            PackedForm(
                "INT2",
                _BLOCK,
                5,
                (2, 22),
                True,
                "tflite/kernels/embedding_lookup.cc (EvalBlockwise); measured on 2.1.6 and 2.3: exact",
                full_range=True,
                shape=Shape.WHOLE_BLOCKS,
                note="2.1.3 loads it and fails when it runs.",
            ),
        ),
    }
)
"""Operator -> forms, best first. The conditions of the operator's row hold for them too."""


BLOCKS_IN_CALLED_SUBGRAPHS: Runtime = (2, 20)
"""First runtime that computes expanded blocks (DEQUANTIZE, MUL, RESHAPE) in the body of an IF or the like.

Measured with if_branches: XNNPACK of 2.14 gives wrong values when a branch is run again after the other one,
that of 1.0 fails then; right on 2.0, 2.1 and 2.3, and without XNNPACK on all; in a main subgraph on all.
"""


def packed_forms(
    operator: str, dtype: str, runtime: Runtime, *, by_default: bool = True
) -> tuple[PackedForm, ...]:
    """Returns the forms in which a runtime's kernel takes weights of a packed type, best first.

    Args:
        operator: Name in ``BuiltinOperator``.
        dtype: Name in ``TensorType``.
        runtime: The oldest runtime that must load the file.
        by_default: Leave out the forms that must be asked for by name.
    """
    return tuple(
        form
        for form in PACKED.get(operator, ())
        if form.dtype == dtype and form.first_runtime <= runtime and (form.by_default or not by_default)
    )
