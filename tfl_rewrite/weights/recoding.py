"""Weights in forms that a runtime does not know, stored in others that mean the same, to the bit.

Packed integers become int8, the same numbers. Where the kernel reads no such scales either, the integers stay
as they are behind a DEQUANTIZE, and a float kernel computes with what they stand for; a lookup moves the
integers of its rows. What no DEQUANTIZE of the runtime reads becomes float32.
"""

from __future__ import annotations

from dataclasses import field, replace

import numpy as np

from tfl_rewrite.editing.base import Edit, Skip
from tfl_rewrite.editing.editor import Editor
from tfl_rewrite.flatbuf.record import FLOAT32, INT64, ScalarVector, Sink
from tfl_rewrite.kernels.operands import is_blockwise, scales_of, zero_points_of
from tfl_rewrite.kernels.operators import Granularity
from tfl_rewrite.kernels.platforms import Platform
from tfl_rewrite.kernels.reads import WeightRead, needed_version, reads_of, weight_reads
from tfl_rewrite.kernels.table import (
    BLOCKS_IN_CALLED_SUBGRAPHS,
    DEQUANTIZE,
    EMBEDDING_LOOKUP,
    GATHER,
    dequantize_form,
    row_of,
)
from tfl_rewrite.model import dtypes
from tfl_rewrite.model.blob import Blob, ComputedBlob
from tfl_rewrite.model.graph import Graph, Use
from tfl_rewrite.model.ir import Buffer, Model, Operator, Quantization, SubGraph, Tensor
from tfl_rewrite.model.values import unpack
from tfl_rewrite.options.frozen import slotted
from tfl_rewrite.weights.candidates import UNNAMED
from tfl_rewrite.weights.expansion import expand_with_partners
from tfl_rewrite.weights.forms.blocks import expand_stored_blocks
from tfl_rewrite.weights.repairs import wrong_dimension
from tfl_rewrite.weights.state import late_forms

_PACKED = ("INT4", "INT2")
_PIECE = 1 << 20


@slotted
class Recoded:
    """What became of the weights of a model.

    Attributes:
        edits: Those that are stored otherwise.
        skips: Those that stay, and why.
        notes: What else is to be said.
        exact: Whether each is read as the same numbers by a kernel that computes as the one before did.
        unrounded: Whether float kernels read some that hybrid ones read, which round activations.
    """

    edits: list[Edit] = field(default_factory=list)
    skips: list[Skip] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    exact: bool = True
    unrounded: bool = False


def recode(model: Model, platform: Platform, *, hybrid: bool = False) -> Recoded:
    """Stores the weights of a model as a platform reads them.

    Args:
        model: Changed in place.
        platform: What is to read them.
        hybrid: Whether weights that it reads with one scale alone are rounded to that; else they go behind a
            DEQUANTIZE.
    """
    done = Recoded()
    recoding = _Recoding(model, platform, hybrid, done)
    recoding.run()
    _expand(model, platform, done)
    return done


def _expand(model: Model, platform: Platform, done: Recoded) -> None:
    """Makes what the platform does not read even so float32."""
    graph = Graph.of(model)
    if platform.is_micro:
        wanted = {
            id(tensor)
            for _, tensor in model.tensors()
            if tensor.is_constant and any(platform.lacks(use.operator) for use in graph.uses_of(tensor))
        }
    else:
        wanted = {id(item.tensor) for item in late_forms(model, platform.runtime)}
    if not wanted:
        return
    kernels = {id(read.weight) for read in weight_reads(model)}
    made = expand_with_partners(model, wanted)
    done.edits += made.edits
    done.skips += [item for item in made.skips if item.rule != "integer"]
    done.notes += made.notes
    if made.edits and wanted & kernels:
        done.exact, done.unrounded = False, True


def read_as_floats(model: Model, platform: Platform) -> None:
    """Makes weights floats that hybrid kernels read and that such kernels of a platform do not.

    Args:
        model: Changed in place.
        platform: See :func:`recode`.
    """
    late = set() if platform.is_micro else {id(item.tensor) for item in late_forms(model, platform.runtime)}
    wanted = {
        id(read.weight)
        for read in weight_reads(model)
        if id(read.weight) in late or platform.lacks(read.operator)
    }
    expand_with_partners(model, wanted)


class _Recoding:
    """Carries it out, constant by constant."""

    def __init__(self, model: Model, platform: Platform, hybrid: bool, done: Recoded) -> None:
        self._model = model
        self._platform = platform
        self._hybrid = hybrid
        self._done = done
        self._editor = Editor(model)
        self._graph = Graph.of(model)
        self._called = model.called
        self._unpacked: dict[object, Buffer] = {}

    def run(self) -> None:
        """Goes through the model."""
        late = self._late()
        for subgraph in self._model.subgraphs:
            for tensor in list(subgraph.tensors):
                if id(tensor) in late:
                    self._recode(subgraph, tensor)
        self._editor.finish()
        self._done.notes += self._editor.notes

    def _late(self) -> set[int]:
        """Returns the constants whose form the platform does not read, by id."""
        found: set[int] = set()
        if not self._platform.is_micro:
            found = {id(item.tensor) for item in late_forms(self._model, self._platform.runtime)}
        for subgraph, operator in self._model.operators():
            packed = [
                tensor
                for tensor in operator.inputs
                if tensor is not None and tensor.dtype_name in _PACKED and tensor.is_constant
            ]
            expands = row_of(operator) is DEQUANTIZE or any(True for _ in reads_of(subgraph, operator))
            # Floats are all that TFLite Micro reads beside floats.
            left = self._platform.is_micro and expands
            if packed and not left and self._platform.lacks(operator):
                found.update(map(id, packed))
        return found

    def _recode(self, subgraph: SubGraph, tensor: Tensor) -> None:
        uses = self._graph.uses_of(tensor)
        why = self._obstacle(tensor, uses)
        if why:
            self._done.skips.append(Skip(tensor.name or UNNAMED, why, "weight"))
            return
        before, kind = tensor.buffer.nbytes, tensor.dtype_name.lower()
        if is_blockwise(tensor):
            made = self._blocks(subgraph, tensor, uses)
        else:
            made = self._plain(subgraph, tensor, uses)
        if made:
            saved = before - tensor.buffer.nbytes
            readers = list(dict.fromkeys(use.operator.code.name for use in uses))
            what = f"{kind} -> {made}"
            self._done.edits.append(Edit(tensor.name or UNNAMED, what, saved, {"readers": readers}))

    def _obstacle(self, tensor: Tensor, uses: list[Use]) -> str:
        if id(tensor) in self._graph.exposed:
            return "it is an input or output"
        if tensor.external is not None or tensor.is_sparse:
            return "its bytes are in a file beside the model, or sparse"
        if tensor.buffer.nbytes != dtypes.BY_VALUE[tensor.dtype].nbytes(tensor.elements):
            return "its buffer is not of the size that its shape takes"
        return "" if uses else "no operator reads it"

    def _plain(self, subgraph: SubGraph, tensor: Tensor, uses: list[Use]) -> str:
        """Stores one scale, or one for each channel; returns what was done in words."""
        told = []
        if tensor.dtype_name in _PACKED:
            self._unpack(tensor)
            told.append("int8")
        if self._platform.is_micro:
            return told[0] if told else ""
        self._join_scales(tensor, uses)
        through: list[Use] = []
        for use in uses:
            if self._reads(subgraph, use, tensor):
                self._restamp(use.operator)
                self._done.exact = self._done.exact and row_of(use.operator) is DEQUANTIZE
            elif row_of(use.operator) is DEQUANTIZE:
                # Left to what makes floats of it.
                continue
            else:
                through.append(use)
        if through and self._hybrid and self._round(tensor, through):
            self._done.exact = False
            return "int8 with one scale, rounded anew"
        lookups = [use for use in through if row_of(use.operator) is EMBEDDING_LOOKUP]
        others = [use for use in through if use not in lookups]
        scales = Granularity.CHANNEL if len(scales_of(tensor)) > 1 else Granularity.TENSOR
        form = dequantize_form("INT8", scales, self._platform.runtime)
        if lookups and self._look_up(subgraph, tensor, lookups):
            told.append("rows looked up as int8")
        elif lookups:
            others = through
        if others and form is not None:
            self._done.exact = False
            self._read_floats(subgraph, tensor, others, form.version)
            told.append("behind DEQUANTIZE")
        return ", ".join(told)

    def _reads(self, subgraph: SubGraph, use: Use, tensor: Tensor) -> bool:
        """Whether an operator of the platform reads a constant as it is stored now."""
        row = row_of(use.operator)
        if row is DEQUANTIZE:
            scales = Granularity.CHANNEL if len(scales_of(tensor)) > 1 else Granularity.TENSOR
            return dequantize_form(tensor.dtype_name, scales, self._platform.runtime) is not None
        read = self._hybrid_read(subgraph, use)
        if read is None:
            return not self._platform.lacks(use.operator)
        return read.first_runtime() <= self._platform.runtime and not self._platform.lacks(use.operator)

    def _hybrid_read(self, subgraph: SubGraph, use: Use) -> WeightRead | None:
        reads = reads_of(subgraph, use.operator)
        return next((read for read in reads if read.position == use.position), None)

    def _unpack(self, tensor: Tensor) -> None:
        """Makes packed integers int8."""
        blob, bits = tensor.buffer.blob, dtypes.BY_VALUE[tensor.dtype].bits
        assert blob is not None
        key = (blob.identity, bits, tensor.elements)
        buffer = self._unpacked.get(key)
        if buffer is None:
            buffer = self._unpacked[key] = self._editor.add_buffer(None)
            buffer.blob = _unpacked(blob, bits, tensor.elements)
        old, tensor.buffer, tensor.dtype = tensor.buffer, buffer, dtypes.INT8.value
        self._editor.release(old)

    def _join_scales(self, tensor: Tensor, uses: list[Use]) -> None:
        """Writes scales that are all equal once, where a kernel of the platform wants one."""
        scales, points = scales_of(tensor), zero_points_of(tensor)
        rows = {row_of(use.operator) for use in uses}
        one = all(row.form("INT8", Granularity.TENSOR, self._platform.runtime) is not None for row in rows)
        if len(scales) < 2 or len(set(scales)) > 1 or len(set(points)) > 1 or not one:
            return
        assert tensor.quantization is not None
        tensor.quantization = replace(
            tensor.quantization,
            scale=ScalarVector.of(FLOAT32, scales[:1]),
            zero_point=ScalarVector.of(INT64, points[:1] or [0]),
            dimension=0,
        )

    def _restamp(self, operator: Operator) -> None:
        version = needed_version(operator)
        if version is not None and version < operator.code.version:
            self._editor.stamp(operator, version, exact=True)

    def _read_floats(self, subgraph: SubGraph, tensor: Tensor, uses: list[Use], version: int) -> None:
        """Lets operators read what DEQUANTIZE makes of a constant."""
        known = (
            use.operator.outputs[0]
            for use in self._graph.uses_of(tensor)
            if row_of(use.operator) is DEQUANTIZE
        )
        floats = next((item for item in known if item is not None), None)
        if floats is None:
            floats = self._editor.add_like(subgraph, tensor, "FLOAT32")
            made = self._editor.plain(DEQUANTIZE, version, [tensor], floats)
            subgraph.operators.insert(self._editor.first_reader(subgraph, tensor), made)
        self._float(uses, floats)

    def _float(self, uses: list[Use], floats: Tensor) -> None:
        """Makes operators read floats, and their kernels the float ones."""
        for use in uses:
            use.operator.inputs[use.position] = floats
            self._done.unrounded = True
            if use.operator.option("asymmetric_quantize_inputs"):
                self._editor.set_option(use.operator, "asymmetric_quantize_inputs", False)
            self._restamp(use.operator)

    def _round(self, tensor: Tensor, uses: list[Use]) -> bool:
        """Rounds a constant to one scale; returns False where an operator does not read that either."""
        runtime = self._platform.runtime
        forms = [row_of(use.operator).form("INT8", Granularity.TENSOR, runtime) for use in uses]
        if None in forms or len(self._graph.uses_of(tensor)) > len(uses) or any(zero_points_of(tensor)):
            return False
        details = tensor.quantization
        assert details is not None
        scales = np.array(scales_of(tensor), np.float32)
        if wrong_dimension(tensor) or not np.isfinite(scales).all():
            return False
        axes = [1] * len(tensor.shape or ())
        axes[details.dimension if scales.size > 1 else 0] = scales.size
        values = tensor.values.astype(np.float32) * scales.reshape(axes)
        scale = np.float32(max(float(np.abs(values).max(initial=0.0)), 1e-30) / 127)
        old, tensor.buffer = (
            tensor.buffer,
            self._editor.constant(np.rint(values / scale).astype(np.int8).tobytes()),
        )
        self._editor.release(old)
        tensor.quantization = Quantization.symmetric(scale.tobytes())
        for use, form in zip(uses, forms, strict=True):
            assert form is not None
            self._editor.stamp(use.operator, max(form.version, needed_version(use.operator) or 1), exact=True)
        return True

    def _look_up(self, subgraph: SubGraph, tensor: Tensor, uses: list[Use]) -> bool:
        """Makes lookups move int8 rows, and floats of what they found; exact."""
        form = GATHER.form("INT8", Granularity.CHANNEL, self._platform.runtime)
        details = tensor.quantization
        per_row = details is not None and details.dimension == 0 and len(scales_of(tensor)) > 1
        if form is None or not per_row or any(zero_points_of(tensor)):
            return False
        outputs = [use.operator.outputs[0] for use in uses]
        if any(item is None or not item.shape for item in outputs):
            return False
        for use in uses:
            position = next(i for i, item in enumerate(subgraph.operators) if item is use.operator)
            output = use.operator.outputs[0]
            assert output is not None and details is not None
            gather = self._editor.plain(GATHER, form.version, [tensor, use.operator.inputs[0]], output)
            subgraph.operators[position] = gather
            self._editor.look_up_rows(subgraph, gather, 0, tensor, details)
        self._editor.drop_unread(subgraph, tensor)
        self._editor.removed()
        return True

    def _blocks(self, subgraph: SubGraph, tensor: Tensor, uses: list[Use]) -> str:
        """Expands blocks before the operators that read them; float32 where that is not computed right."""
        details = tensor.quantization
        assert details is not None
        late = id(subgraph) in self._called and self._platform.runtime < BLOCKS_IN_CALLED_SUBGRAPHS
        half = dequantize_form("FLOAT16", None, self._platform.runtime)
        table, record = details.scales_tensor, details.rest.get("details")
        block = record.get("block_size") if record is not None and "block_size" in record.spec.by_name else 0
        known = table is not None and table.dtype_name == "FLOAT16" and details.zero_points_tensor is None
        if known and table is not None and block > 0:
            known = table.buffer.nbytes == 2 * (tensor.elements // block)
        if late or half is None or not known or block < 1 or tensor.elements % block:
            return ""
        if any(row_of(use.operator) is DEQUANTIZE for use in uses):
            return ""
        if tensor.dtype_name in _PACKED:
            self._unpack(tensor)
        floats = self._editor.add_like(subgraph, tensor, "FLOAT32")
        expand_stored_blocks(self._editor, subgraph, floats, tensor, block)
        self._float(uses, floats)
        self._done.exact = False
        return "int8 in blocks behind DEQUANTIZE"


def _unpacked(blob: Blob, bits: int, elements: int) -> ComputedBlob:
    """Returns packed integers as int8, made while they are written."""

    def write_to(sink: Sink, offset: int) -> None:
        view = blob.view()
        for start in range(0, elements, _PIECE):
            count = min(_PIECE, elements - start)
            first = start * bits // 8
            made = unpack(view[first : first + -(-count * bits // 8)], bits, count)
            sink.write_at(made.tobytes(), offset + start)

    return ComputedBlob(elements, write_to)
