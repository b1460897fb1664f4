"""Operators that may take the place of one, made aside: nothing is in the model until they are accepted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from tfl_rewrite.editing.editor import Editor
from tfl_rewrite.flatbuf.record import INT32, ScalarVector
from tfl_rewrite.kernels.operands import constant_values, input_of
from tfl_rewrite.kernels.operators import OperatorRow
from tfl_rewrite.kernels.reads import needed_version
from tfl_rewrite.kernels.shapes import Calls, Given, outputs_of
from tfl_rewrite.kernels.table import CAST, RESHAPE, row_of
from tfl_rewrite.model import dtypes
from tfl_rewrite.model.blob import OwnedBlob
from tfl_rewrite.model.ir import (
    Buffer,
    Operator,
    OperatorCode,
    SubGraph,
    Tensor,
    new_record,
    operator_number,
    schema,
)

Shape = tuple[int, ...]


@dataclass(slots=True)
class Draft:
    """What is to stand in the place of an operator: operators in order, the last of which gives its output.

    Attributes:
        operator: Of which it is the place.
        full: Tells the shape that a tensor has at run time; None where it is not known.
        steps: The operators.
        tensors: Those between them, and constants.
    """

    operator: Operator
    full: Callable[[Tensor | None], Shape | None]
    steps: list[Operator] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)

    def shape(self, tensor: Tensor | None) -> Shape | None:
        """The shape that a tensor has at run time; None where it is not known."""
        if not any(tensor is item for item in self.tensors):
            return self.full(tensor)
        maker = next((item for item in self.steps if tensor in item.outputs), None)
        if maker is None:
            # A constant.
            return tensor.shape if tensor is not None else None
        rule = row_of(maker).shape
        (found,) = [None] if isinstance(rule, Calls) else outputs_of(rule, self.given(maker))
        return None if found is None or None in found else tuple(dim for dim in found if dim is not None)

    def given(self, operator: Operator) -> Given:
        """What is known of the inputs of an operator, be it a step or the one that is replaced."""

        def constant(position: int) -> npt.NDArray[Any] | None:
            tensor = input_of(operator, position)
            values = None if tensor is None else constant_values(tensor, "FLOAT32", "INT32", "INT64")
            return None if values is None or tensor is None else values.reshape(tensor.shape or ())

        return Given(operator, [self.shape(item) for item in operator.inputs], constant)

    def input(self, position: int) -> Tensor | None:
        """An input of the operator; None where it is absent."""
        return input_of(self.operator, position)

    @property
    def output(self) -> Tensor:
        """The output of the operator.

        Raises:
            ValueError: It has none, or several.
        """
        (output,) = self.outputs
        return output

    @property
    def outputs(self) -> list[Tensor]:
        """The outputs of the operator, of which those that are absent are left out."""
        return [tensor for tensor in self.operator.outputs if tensor is not None]

    def integers(self, position: int) -> npt.NDArray[np.int64] | None:
        """The elements of a constant input of integers, flat; None where it is none."""
        tensor = self.input(position)
        values = None if tensor is None else constant_values(tensor, "INT32", "INT64")
        return None if values is None else values.astype(np.int64)

    def constant(self, values: npt.NDArray[Any], suffix: str) -> Tensor:
        """Adds a constant, float32 or int32 as the array is."""
        kinds = {"f4": "FLOAT32", "i4": "INT32"}
        kind = dtypes.BY_NAME[kinds[values.dtype.str[1:]]].value
        data = np.ascontiguousarray(values).tobytes()
        made = Tensor(f"{self.outputs[0].name}_{suffix}", values.shape, kind, Buffer(OwnedBlob(data)))
        self.tensors.append(made)
        return made

    def step(
        self,
        row: OperatorRow,
        inputs: Sequence[Tensor | None],
        shape: Shape | None,
        suffix: str,
        kind: str = "",
        **options: object,
    ) -> Tensor:
        """Adds an operator; returns what it gives, which has the type and the scales of the (first) output.

        Args:
            row: What it is.
            inputs: What it reads.
            shape: Of what it gives.
            suffix: Of the name of that.
            kind: Its type where it is another; it has no scales then.
            **options: Fields of its options.
        """
        like = self.outputs[0]
        number = dtypes.BY_NAME[kind].value if kind else like.dtype
        made = Tensor(f"{like.name}_{suffix}", shape, number, Buffer())
        made.quantization = None if kind else like.quantization
        self.tensors.append(made)
        self._add(row, inputs, made, options)
        return made

    def give(
        self, row: OperatorRow, inputs: Sequence[Tensor | None], to: Tensor | None = None, **options: object
    ) -> None:
        """Adds the operator that gives the output, or one of several."""
        self._add(row, inputs, to or self.output, options)

    def reshaped(self, tensor: Tensor, shape: Shape, suffix: str) -> Tensor:
        """Adds a RESHAPE of a tensor, in its type; returns what it gives."""
        target = self.constant(np.array(shape, np.int32), f"{suffix}_shape")
        made = self.step(
            RESHAPE, [tensor, target], shape, suffix, tensor.dtype_name, new_shape=_vector(shape)
        )
        made.quantization = tensor.quantization
        return made

    def give_reshaped(self, tensor: Tensor, shape: Shape) -> None:
        """Adds a RESHAPE as the last operator."""
        target = self.constant(np.array(shape, np.int32), "shape")
        self.give(RESHAPE, [tensor, target], new_shape=_vector(shape))

    def cast(self, tensor: Tensor, kind: str, suffix: str) -> Tensor:
        """Adds a CAST; returns what it gives."""
        number = dtypes.BY_NAME[kind].value
        options = {"in_data_type": tensor.dtype, "out_data_type": number}
        return self.step(CAST, [tensor], tensor.shape, suffix, kind, **options)

    def give_cast(self, tensor: Tensor) -> None:
        """Adds a CAST to the type of the output as the last operator."""
        self.give(CAST, [tensor], in_data_type=tensor.dtype, out_data_type=self.output.dtype)

    def _add(
        self, row: OperatorRow, inputs: Sequence[Tensor | None], output: Tensor, options: dict[str, object]
    ) -> None:
        made = Operator(OperatorCode(operator_number(row.name)), list(inputs), [output])
        if row.options is not None:
            number = schema().enums["BuiltinOptions"].values[row.options]
            made.rest = made.rest.replace(builtin_options_type=number)
            made.options = new_record(row.options).replace(**options)
        self.steps.append(made)

    def accept(self, editor: Editor, subgraph: SubGraph) -> list[Operator]:
        """Puts its tensors into a subgraph; returns the operators, which the caller puts there."""
        for tensor in self.tensors:
            blob = tensor.buffer.blob
            tensor.buffer = editor.sentinel() if blob is None else editor.constant(bytes(blob.view()))
            editor.add_tensor(subgraph, tensor)
        for item in (step for step in self.steps if step.code.custom is None):
            item.code = editor.code_of(item.code.name, needed_version(item) or item.code.version)
        return self.steps


def _vector(shape: Shape) -> ScalarVector:
    return ScalarVector.of(INT32, shape)
