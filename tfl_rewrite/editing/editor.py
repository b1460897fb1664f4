"""The edits that passes make to a model: tensors, buffers and operators added, rewired and stamped."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import numpy as np

from tfl_rewrite.editing.metadata import is_shared, raise_min_runtime
from tfl_rewrite.errors import UnsupportedError
from tfl_rewrite.kernels.operators import Granularity, OperatorRow
from tfl_rewrite.kernels.table import CAST, DEQUANTIZE, MUL, dequantize_form, row_of
from tfl_rewrite.model import dtypes
from tfl_rewrite.model.blob import OwnedBlob
from tfl_rewrite.model.ir import (
    Buffer,
    Model,
    Operator,
    OperatorCode,
    Quantization,
    SubGraph,
    Tensor,
    new_record,
    operator_number,
    schema,
)


class Editor:
    """Edits one model; :meth:`finish` settles what several edits share.

    Attributes:
        notes: What the user should know beside the changes themselves.

    Example:
        >>> from tfl_rewrite.editing import Editor
        >>> model = tfl_rewrite.load("model.tflite")
        >>> editor = Editor(model)
        >>> subgraph = model.subgraphs[0]
        >>> place = editor.drop_operator(subgraph, subgraph.operators[-1])
        >>> subgraph.outputs = list(subgraph.operators[-1].outputs)
        >>> editor.removed()
        >>> editor.finish()
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.notes: list[str] = []
        self._stamps: dict[int, tuple[Operator, int]] = {}
        self._zero_biases: dict[int, Buffer] = {}
        self._constants: dict[bytes, Buffer] = {}
        self._added_tensors = False
        self._row_tables: dict[int, tuple[Tensor, Tensor]] = {}
        self._asked: set[tuple[str, int]] = set()
        self._removed = False
        self._used_codes = {id(operator.code) for _, operator in model.operators()}

    def add_buffer(self, data: bytes | None) -> Buffer:
        """Appends a buffer."""
        return self.model.add_buffer(OwnedBlob(data) if data else None)

    def constant(self, data: bytes) -> Buffer:
        """Returns a buffer with these bytes; equal ones that were asked for here are one."""
        known = self._constants.get(data)
        if known is None:
            known = self._constants[data] = self.add_buffer(data)
        return known

    def sentinel(self) -> Buffer:
        """Returns the buffer of tensors without constant bytes."""
        if self.model.buffers and self.model.buffers[0].blob is None:
            return self.model.buffers[0]
        return self.add_buffer(None)

    def add_tensor(self, subgraph: SubGraph, tensor: Tensor) -> Tensor:
        """Appends a tensor to a subgraph."""
        subgraph.tensors.append(tensor)
        self._added_tensors = True
        return tensor

    def add_like(
        self,
        subgraph: SubGraph,
        tensor: Tensor,
        kind: str,
        quantization: Quantization | None = None,
        suffix: str = "",
    ) -> Tensor:
        """Appends a tensor of the same shape in another type (a name in ``TensorType``), without bytes."""
        made = Tensor(
            f"{tensor.name}_{suffix or kind.lower()}",
            tensor.shape,
            dtypes.BY_NAME[kind].value,
            self.sentinel(),
            quantization,
            signature=tensor.signature,
        )
        return self.add_tensor(subgraph, made)

    def store(self, tensor: Tensor, kind: str, buffer: Buffer, quantization: Quantization | None) -> None:
        """Turns a constant into another type (a name in ``TensorType``) in place; its name stays."""
        tensor.dtype = dtypes.BY_NAME[kind].value
        tensor.buffer = buffer
        tensor.quantization = quantization

    def add_beside(
        self, subgraph: SubGraph, value: Tensor, kind: str, buffer: Buffer, quantization: Quantization | None
    ) -> Tensor:
        """Adds a constant of another type beside a float one, which is going to be computed from it."""
        number = dtypes.BY_NAME[kind].value
        name = f"{value.name}_{kind.lower()}"
        return self.add_tensor(
            subgraph, Tensor(name, value.shape, number, buffer, quantization, signature=None)
        )

    def expand(
        self,
        subgraph: SubGraph,
        integers: Tensor,
        value: Tensor,
        existing: Operator | None,
        version: int,
    ) -> None:
        """Makes a float tensor the output of a DEQUANTIZE; uses the existing one where there is one."""
        if existing is not None:
            self.stamp(existing, version, exact=True)
            return
        value.buffer = self.sentinel()
        operator = self.plain(DEQUANTIZE, version, [integers], value)
        subgraph.operators.insert(self.first_reader(subgraph, value), operator)

    def dequantize_output(self, subgraph: SubGraph, operator: Operator, quantization: Quantization) -> None:
        """Makes an operator give out int8 and a DEQUANTIZE after it give out the floats it gave before."""
        output = operator.outputs[0]
        assert output is not None
        operator.outputs[0] = integers = self.add_like(subgraph, output, "INT8", quantization)
        form = dequantize_form("INT8", Granularity.TENSOR)
        assert form is not None
        after = self.plain(DEQUANTIZE, form.version, [integers], output)
        subgraph.operators.insert(_position(subgraph, operator) + 1, after)

    def look_up_rows(
        self,
        subgraph: SubGraph,
        operator: Operator,
        position: int,
        integers: Tensor,
        quantization: Quantization,
    ) -> None:
        """Makes a lookup of int8 rows give out floats: the rows cast to float32, times their scales.

        See the form of ``GATHER`` by channel in :mod:`tfl_rewrite.kernels.table`. The rows that
        the lookup moves carry no quantization, since no single scale is theirs.
        """
        output = operator.outputs[0]
        assert output is not None and quantization.scale is not None
        table = self._row_tables.get(id(integers))
        if table is None:
            ones = (1,) * (len(integers.shape or ()) - 1)
            scales = Tensor(
                f"{integers.name}_scales",
                (len(quantization.scale), *ones),
                dtypes.FLOAT32.value,
                self.add_buffer(bytes(quantization.scale.raw)),
            )
            rows = Tensor(
                f"{integers.name}_rows", integers.shape, dtypes.INT8.value, integers.buffer, signature=None
            )
            table = self._row_tables[id(integers)] = (rows, scales)
            self.add_tensor(subgraph, rows)
            self.add_tensor(subgraph, scales)
        rows, scales = table
        inner = len(rows.shape or ()) - 1

        def beside(suffix: str, dtype: int, *, narrow: bool = False) -> Tensor:
            shape, signature = output.shape or (), output.signature
            if narrow:
                shape = (*shape[: len(shape) - inner], *(1,) * inner)
                signature = (*signature[: len(signature) - inner], *(1,) * inner) if signature else None
            name = f"{output.name}_{suffix}"
            return self.add_tensor(subgraph, Tensor(name, shape, dtype, self.sentinel(), signature=signature))

        found = beside("rows", dtypes.INT8.value)
        floats = beside("floats", dtypes.FLOAT32.value)
        scale = beside("scales", dtypes.FLOAT32.value, narrow=True)
        operator.inputs[position] = rows
        operator.outputs[0] = found
        second = Operator(
            operator.code, [scales, *operator.inputs[1:]], [scale], [], operator.options, rest=operator.rest
        )
        cast = self.builtin(CAST, 3, [found], floats, in_data_type=dtypes.INT8.value)
        product = self.builtin(MUL, 1, [floats, scale], output)
        at = _position(subgraph, operator) + 1
        subgraph.operators[at:at] = [cast, second, product]

    def drop_unread(self, subgraph: SubGraph, tensor: Tensor) -> None:
        """Removes a tensor that nothing in its subgraph refers to any more."""
        operands = (item for each in subgraph.operators for item in (*each.inputs, *each.outputs))
        if not any(item is tensor for item in (*operands, *subgraph.inputs, *subgraph.outputs)):
            subgraph.tensors = [item for item in subgraph.tensors if item is not tensor]

    def drop_unused(self, subgraph: SubGraph, tensors: Iterable[Tensor], kept: Collection[int]) -> None:
        """Removes those of some tensors that no operator refers to, and empties their buffers.

        Args:
            subgraph: Of the tensors.
            tensors: Those that others took the place of.
            kept: Ids of what stays in any case, such as :attr:`Graph.exposed`.
        """
        used = {id(item) for each in subgraph.operators for item in (*each.inputs, *each.outputs)}
        gone = {id(item): item for item in tensors if id(item) not in used and id(item) not in kept}
        subgraph.tensors = [item for item in subgraph.tensors if id(item) not in gone]
        self.release(*(item.buffer for item in gone.values()))
        self.removed()

    def builtin(
        self,
        row: OperatorRow,
        version: int,
        inputs: list[Tensor | None],
        output: Tensor,
        **options: object,
    ) -> Operator:
        """Makes an operator with one output, and with options; the caller puts it in its place."""
        operator = self.plain(row, version, inputs, output)
        table = _options_table(row)
        number = schema().enums["BuiltinOptions"].values[table]
        operator.rest = operator.rest.replace(builtin_options_type=number)
        operator.options = new_record(table).replace(**options)
        return operator

    def plain(
        self, row: OperatorRow, version: int, inputs: Sequence[Tensor | None], output: Tensor
    ) -> Operator:
        """Makes an operator with one output, and without options."""
        return Operator(self.code_of(row.name, version), list(inputs), [output])

    def code_of(self, name: str, version: int) -> OperatorCode:
        """Returns the code for an operator that is made, by its name in ``BuiltinOperator``."""
        self._asked.add((name, version))
        return self._code(name, version)

    def drop_operator(self, subgraph: SubGraph, operator: Operator) -> int:
        """Removes an operator whose output others are going to make; returns where it was."""
        place = _position(subgraph, operator)
        del subgraph.operators[place]
        return place

    def remove_operator(self, subgraph: SubGraph, operator: Operator, output: Tensor) -> None:
        """Removes an operator, and its output unless another one writes to that or reads it."""
        del subgraph.operators[_position(subgraph, operator)]
        self.drop_unread(subgraph, output)

    def ensure_bias(self, subgraph: SubGraph, operator: Operator, channels: int) -> None:
        """Gives a convolution a bias of zeros if it has none: hybrid kernels need one (conv.cc)."""
        if len(operator.inputs) > 2 and operator.inputs[2] is not None:
            return
        buffer = self._zero_biases.get(channels)
        if buffer is None:
            buffer = self._zero_biases[channels] = self.add_buffer(bytes(4 * channels))
        weight = operator.inputs[1]
        name = f"{weight.name if weight is not None else operator.code.name}_zero_bias"
        bias = self.add_tensor(subgraph, Tensor(name, (channels,), dtypes.FLOAT32.value, buffer))
        operator.inputs[2:] = [bias]

    def store_bias_as_float32(self, subgraph: SubGraph, operator: Operator) -> None:
        """Turns a bias behind a float16 DEQUANTIZE into the float32 constant that it expands to."""
        bias = operator.inputs[2] if len(operator.inputs) > 2 else None
        # A constant is nobody's output; looking for its maker would take long in a model of many layers.
        if bias is None or bias.is_constant:
            return
        maker = next((item for item in subgraph.operators if any(o is bias for o in item.outputs)), None)
        if maker is None or row_of(maker) is not DEQUANTIZE or not maker.inputs:
            return
        half = maker.inputs[0]
        blob = half.buffer.blob if half is not None else None
        if half is None or blob is None or half.dtype != dtypes.FLOAT16.value:
            return
        values = np.frombuffer(blob.view(), "<f2").astype("<f4")
        del subgraph.operators[_position(subgraph, maker)]
        self.drop_unread(subgraph, half)
        self.release(half.buffer)
        bias.buffer = self.add_buffer(values.tobytes())
        # What DEQUANTIZE gives has the shape of what it reads, whatever the file says.
        bias.shape, bias.signature = half.shape, None

    def release(self, *buffers: Buffer) -> None:
        """Empties buffers that nothing refers to any more; their places in the list stay."""
        used = {*self.model.holders(), *self.model.pinned}
        for buffer in buffers:
            if id(buffer) not in used:
                buffer.blob = None

    def set_option(self, operator: Operator, field: str, value: object) -> None:
        """Sets a field of the builtin options, which are made if there are none.

        Raises:
            UnsupportedError: The operator has the options of another one, which runtimes do not read.
        """
        table = _options_table(row_of(operator))
        if operator.options is not None and operator.options.spec.name != table:
            raise UnsupportedError(
                f"an operator {operator.code.name} has {operator.options.spec.name}, not {table}",
                offset=operator.rest.offset,
                remedy="the model is damaged; convert it again",
            )
        if operator.options is None:
            operator.options = new_record(table)
            number = schema().enums["BuiltinOptions"].values[table]
            operator.rest = operator.rest.replace(builtin_options_type=number)
        if operator.options.get(field) != value:
            operator.options = operator.options.replace(**{field: value})

    def stamp(self, operator: Operator, version: int, *, exact: bool = False) -> None:
        """Asks for at least this operator version, or for exactly this one."""
        self._asked.add((operator.code.name, version))
        known = self._stamps.get(id(operator), (operator, 0))[1]
        least = version if exact else max(version, operator.code.version)
        self._stamps[id(operator)] = (operator, max(known, least))

    def finish(self) -> None:
        """Stamps operator codes, drops those that lost their last operator, and updates metadata."""
        if not self._asked and not self._removed:
            return
        self._stamp_codes()
        self._drop_unused_codes()
        self._update_min_runtime()
        self._drop_stale_metadata()

    def removed(self) -> None:
        """Tells that operators and tensors were removed; :meth:`finish` drops what that made stale."""
        self._removed = True

    def _stamp_codes(self) -> None:
        """Writes the versions; a code is cloned when only some of its operators need the new one."""
        groups: dict[int, list[Operator]] = {}
        for _, operator in self.model.operators():
            groups.setdefault(id(operator.code), []).append(operator)
        for operators in groups.values():
            code = operators[0].code
            wanted = {id(item): self._stamps.get(id(item), (item, code.version))[1] for item in operators}
            versions = set(wanted.values())
            if versions == {code.version}:
                continue
            if len(versions) == 1:
                code.version = versions.pop()
                continue
            for operator in operators:
                version = wanted[id(operator)]
                if version != code.version:
                    operator.code = self._code(code.name, version)

    def _code(self, name: str, version: int) -> OperatorCode:
        """Returns the operator code of a builtin in a version; adds it if the model has none."""
        number = operator_number(name)
        for code in self.model.operator_codes:
            if code.custom is None and (code.builtin, code.version) == (number, version):
                return code
        code = OperatorCode(number, None, version)
        self.model.operator_codes.append(code)
        return code

    def _drop_unused_codes(self) -> None:
        """Removes codes that these edits left without an operator; those unused before stay."""
        used = {id(operator.code) for _, operator in self.model.operators()}
        self.model.operator_codes = [
            code
            for code in self.model.operator_codes
            if id(code) in used or (id(code) not in self._used_codes and code.rest.offset >= 0)
        ]

    def first_reader(self, subgraph: SubGraph, tensor: Tensor) -> int:
        """Returns the position of the first operator that reads a tensor."""
        for position, operator in enumerate(subgraph.operators):
            if any(item is tensor for item in operator.inputs):
                return position
        return len(subgraph.operators)

    def _update_min_runtime(self) -> None:
        """Raises the ``min_runtime_version`` metadata to what the stamped versions need."""
        # Only what these edits ask for: the entry answers for the rest already.
        raised = raise_min_runtime(self.model, self._asked)
        if raised is not None:
            self.notes.append(f"min_runtime_version raised from {raised[0]} to {raised[1]}")

    def _drop_stale_metadata(self) -> None:
        """Drops metadata that lists tensors by position once tensors were added.

        ``OfflineMemoryAllocation`` holds one arena offset per tensor (tflite-micro's
        ``memory_planner``); it is only a plan, and the interpreter makes its own without it.
        """
        if not self._added_tensors and not self._removed:
            return
        for entry in list(self.model.metadata):
            if entry.name == "OfflineMemoryAllocation":
                if not is_shared(self.model, entry):
                    entry.buffer.blob = None
                self.model.metadata.remove(entry)
                self.notes.append("metadata OfflineMemoryAllocation dropped: it lists tensors that moved")


def _options_table(row: OperatorRow) -> str:
    assert row.options is not None, f"the row of {row.name} names no options"
    return row.options


def _position(subgraph: SubGraph, operator: Operator) -> int:
    return next(index for index, item in enumerate(subgraph.operators) if item is operator)
