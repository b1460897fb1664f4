"""Weights in files beside the model: LiteRT's external buffers (schema version 3d), as a change of the model.

What the runtime takes there is a constant at input 1 of a few operators, of which the rows say so; the same
rule as ``litert/tools/externalize_tflite_flatbuffer.py``. Any other constant
becomes an input of a delegate's partition, or is looked at before the weights are there. Slices start at
multiples of 64 bytes (``LITERT_HOST_MEMORY_BUFFER_ALIGNMENT``), group 0 is a placeholder without a name, and
identifiers carry the most significant bit.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from tfl_rewrite.errors import FormatError, UnsupportedError
from tfl_rewrite.kernels.table import ROWS, row_of
from tfl_rewrite.model import dtypes, likeness
from tfl_rewrite.model.blob import Blob
from tfl_rewrite.model.graph import Graph
from tfl_rewrite.model.ir import Buffer, ExternalBuffer, ExternalGroup, Model, Tensor, new_record
from tfl_rewrite.shards.manifest import sha256_of

ALIGNMENT = 64
WEIGHT_INPUT = 1
LEAST_NBYTES = 1024
"""Smaller constants stay: they save nothing, and each slice costs a mapping when the model is loaded."""

_IDENTIFIER_BIT = 1 << 31
_UNPACKED = ("unpacked", "", None)
_NAME = re.compile(r"[^/\\\x00:]{1,255}")


@dataclass(slots=True)
class WeightFile:
    """One file of weights to be written.

    Attributes:
        slices: ``(offset, bytes)``, ascending; what lies between is zero.
    """

    slices: list[tuple[int, Blob]] = field(default_factory=list)
    nbytes: int = 0
    name: str = ""

    def room_for(self, blob: Blob, max_nbytes: int) -> bool:
        """Whether it may take more; an empty one takes anything."""
        return not self.slices or _aligned(self.nbytes) + blob.nbytes <= max_nbytes

    def add(self, blob: Blob) -> int:
        """Appends bytes; returns their offset."""
        offset = _aligned(self.nbytes)
        self.slices.append((offset, blob))
        self.nbytes = offset + blob.nbytes
        return offset

    def pieces(self) -> Iterable[bytes | memoryview]:
        """Yields all its bytes in order."""
        position = 0
        for offset, blob in self.slices:
            yield bytes(offset - position)
            yield from likeness.pieces(blob)
            position = offset + blob.nbytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """What became of the constants of a model.

    Attributes:
        files: With their names, in order.
        tensors: How many tensors have their bytes there now.
        notes: What a reader should know.
    """

    files: tuple[WeightFile, ...]
    tensors: int
    notes: tuple[str, ...]


def move_out(model: Model, *, max_nbytes: int) -> Moved:
    """Moves weights into files beside the model.

    A tensor keeps its buffer, which is empty then: :func:`move_in` puts the bytes back there.

    Args:
        model: Changed in place.
        max_nbytes: Of a file; a larger constant gets a file of its own, and a note says so.

    Raises:
        UnsupportedError: There is nothing to move, or the model has external buffers already.
    """
    if model.external_buffers:
        raise UnsupportedError(
            "its weights are in files beside it already", remedy="use 'tfl-rewrite join' first"
        )
    chosen = _movable(model)
    if not chosen:
        readers = ", ".join(sorted(name for name, row in ROWS.items() if row.external_weight))
        raise UnsupportedError(
            f"no weight of {LEAST_NBYTES} bytes or more is read only as a weight of {readers}; "
            "the runtime reads no other from files",
            remedy="use --format parts",
        )
    files: list[WeightFile] = []
    places: dict[int, tuple[WeightFile, int]] = {}
    known: dict[tuple[int, bytes], list[tuple[Blob, WeightFile, int]]] = {}
    notes = []
    for buffer, tensors in chosen:
        blob = buffer.blob
        assert blob is not None
        equal = known.setdefault((blob.nbytes, likeness.digest(blob)), [])
        place = next((item[1:] for item in equal if likeness.same_bytes(item[0], blob)), None)
        if place is None:
            if not files or not files[-1].room_for(blob, max_nbytes):
                files.append(WeightFile())
            if blob.nbytes > max_nbytes:
                notes.append(
                    f"{tensors[0].name!r} alone takes {blob.nbytes} bytes, more than {max_nbytes}: a tensor "
                    "cannot be divided"
                )
            place = (files[-1], files[-1].add(blob))
            equal.append((blob, *place))
        places[id(buffer)] = place
    groups = {id(file): ExternalGroup(_named(file)) for file in files}
    model.external_groups = [ExternalGroup(""), *groups.values()]
    for buffer, tensors in chosen:
        file, offset = places[id(buffer)]
        for tensor in tensors:
            identifier = _IDENTIFIER_BIT | len(model.external_buffers)
            rest = new_record("ExternalBuffer").replace(packing="unpacked")
            item = ExternalBuffer(identifier, groups[id(file)], offset, buffer.nbytes, rest)
            model.external_buffers.append(item)
            tensor.external = item
    for buffer, _ in chosen:
        buffer.blob = None
    return Moved(files=tuple(files), tensors=sum(len(tensors) for _, tensors in chosen), notes=tuple(notes))


def move_in(model: Model, open_slice: Callable[[str, int, int], Blob]) -> list[str]:
    """Moves weights from files beside the model into it.

    Args:
        model: Changed in place.
        open_slice: Returns bytes of a file beside the model: its plain name, offset, nbytes. Raises
            ``FormatError`` where the file ends before.

    Returns:
        What a reader should know.

    Raises:
        FormatError: A name leads out of the folder, or a slice is not of its tensor's size.
        UnsupportedError: Bytes are packed in a way that only an accelerator reads.
    """
    users = model.holders()
    named = model.pinned
    made: dict[tuple[str, int, int], Buffer] = {}
    used: set[int] = set()
    restored: set[int] = set()
    others = [tensor.rest for row in model.subgraphs for tensor in row.tensors if tensor.external is None]
    # A converter that writes defaults wrote this one everywhere.
    spelled_out = bool(others) and all("external_buffer" in rest for rest in others)
    for index, subgraph in enumerate(model.subgraphs):
        for position, tensor in enumerate(subgraph.tensors):
            external = tensor.external
            if external is None:
                continue
            where = f"subgraphs[{index}].tensors[{position}]"
            used.add(id(external))
            key = (_plain_name(external, where), external.offset, external.nbytes)
            _check_slice(tensor, external, where)
            own = tensor.buffer
            buffer = made.get(key)
            if own.nbytes and id(own) not in restored:
                raise FormatError("has bytes in the model and in a file beside it", where=where)
            keeps = own is not model.buffers[0] and id(own) not in named if model.buffers else False
            if keeps and all(item.external is None or _same_slice(item, key) for item in users[id(own)]):
                # The buffer was left for it; other tensors of this buffer name the same bytes.
                blob = open_slice(*key) if buffer is None else buffer.blob
                own.blob, buffer = blob, own
                restored.add(id(own))
            if buffer is None:
                buffer = Buffer(open_slice(*key))
                if not model.buffers:
                    model.buffers.append(Buffer())
                model.buffers.append(buffer)
            made.setdefault(key, buffer)
            tensor.buffer = buffer
            tensor.external = None
            if not spelled_out:
                tensor.rest = tensor.rest.replace(external_buffer=None)
    unused = sum(id(item) not in used for item in model.external_buffers)
    model.external_buffers, model.external_groups = [], []
    model.rest = model.rest.replace(external_buffers=None, external_buffer_groups=None)
    return [f"{unused} external buffers that no tensor refers to were dropped"] if unused else []


def _movable(model: Model) -> list[tuple[Buffer, list[Tensor]]]:
    """Returns the buffers that may move, each with its tensors, in order of the first use."""
    graph = Graph.of(model)
    listed: dict[int, list[Tensor]] = {}
    order: dict[int, Buffer] = {}
    pinned = model.pinned
    for subgraph in model.subgraphs:
        for tensor in subgraph.tensors:
            listed.setdefault(id(tensor.buffer), []).append(tensor)
            if not _is_weight(tensor, graph):
                pinned.add(id(tensor.buffer))
    for _, operator in model.operators():
        if not row_of(operator).external_weight or len(operator.inputs) <= WEIGHT_INPUT:
            continue
        weight = operator.inputs[WEIGHT_INPUT]
        if weight is not None and id(weight.buffer) not in pinned:
            order.setdefault(id(weight.buffer), weight.buffer)
    return [(buffer, listed[key]) for key, buffer in order.items()]


def _is_weight(tensor: Tensor, graph: Graph) -> bool:
    uses = graph.uses_of(tensor)
    return (
        tensor.is_constant
        and tensor.buffer.nbytes >= LEAST_NBYTES
        and not tensor.is_sparse
        and bool(uses)
        and id(tensor) not in graph.exposed | graph.given
        and graph.maker_of(tensor) is None
        and all(row_of(use.operator).external_weight and use.position == WEIGHT_INPUT for use in uses)
    )


def _named(file: WeightFile) -> str:
    """Names a file by its content, so that no other content ever has its name."""
    file.name = f"weights-{sha256_of(file.pieces())[:16]}.bin"
    return file.name


def _plain_name(external: ExternalBuffer, where: str) -> str:
    name = external.group.name or ""
    if not _NAME.fullmatch(name) or name in (".", "..") or not name.isprintable():
        raise FormatError(
            f"the weight file {name[:80]!r} is not a plain file name", where=f"{where}.external_buffer"
        )
    return name


def _check_slice(tensor: Tensor, external: ExternalBuffer, where: str) -> None:
    packing = external.rest.get("packing")
    if packing not in _UNPACKED:
        raise UnsupportedError(
            f"its bytes are packed as {str(packing)[:40]!r}, which only one accelerator reads",
            where=where,
        )
    row = dtypes.BY_VALUE.get(tensor.dtype)
    if row is not None and row.bits and not tensor.is_sparse:
        need = row.nbytes(tensor.elements)
        if external.nbytes != need:
            raise FormatError(
                f"{external.nbytes} bytes in a weight file, but {row.name} {list(tensor.shape or ())} "
                f"takes {need}",
                where=where,
            )


def _same_slice(tensor: Tensor, key: tuple[str, int, int]) -> bool:
    item = tensor.external
    return item is not None and (item.group.name, item.offset, item.nbytes) == key


def _aligned(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT
