"""The typed model: about ten classes that hold objects, not indices, and compare by identity.

Each class lifts the fields that passes work with. ``rest`` is the record that it came from: it carries
every other field, and tells which fields were present, so that what nobody touched is written as it was.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tfl_rewrite.errors import UnsupportedError, UsageError, near_names
from tfl_rewrite.flatbuf.record import FLOAT32, INT64, Record, ScalarVector, Schema, load_schema
from tfl_rewrite.model import dtypes
from tfl_rewrite.model.blob import Blob, OwnedBlob
from tfl_rewrite.options.frozen import frozen, slotted

if TYPE_CHECKING:
    import numpy.typing as npt


@lru_cache(maxsize=1)
def schema() -> Schema:
    """Returns the TFLite schema (through version 3d) that ships with the package."""
    return load_schema(Path(__file__).with_name("tflite.schema").read_text(encoding="ascii"))


def new_record(table: str) -> Record:
    """Returns an empty record of a table of the TFLite schema."""
    return Record(schema().tables[table])


@lru_cache(maxsize=1024)
def operator_name(code: int) -> str:
    """Returns the name of a builtin operator, or its number as text."""
    return schema().enums["BuiltinOperator"].name_of(code)


def operator_number(name: str) -> int:
    """Returns the number of a builtin operator."""
    return schema().enums["BuiltinOperator"].values[name]


@slotted(eq=False)
class Buffer:
    """Constant bytes that tensors and metadata refer to.

    Attributes:
        blob: The bytes; None where the buffer has none.
        outside: Whether the input holds them after the FlatBuffer, by file offset. Only a record of
            where they came from: the writer decides where they go.
        is_new: Whether a tensor was given it by :meth:`Tensor.set_values`; see :meth:`Model.adopt`.
    """

    blob: Blob | None = None
    outside: bool = False
    rest: Record = field(default_factory=lambda: new_record("Buffer"))
    is_new: bool = False

    def __repr__(self) -> str:
        return f"<Buffer {self.nbytes:,} bytes>"

    @property
    def nbytes(self) -> int:
        """Size in bytes, 0 where there are none."""
        return self.blob.nbytes if self.blob is not None else 0

    @property
    def is_nothing(self) -> bool:
        """Whether it says as little as the sentinel; a vector of bytes that is there but empty says more."""
        # What a pass has emptied still has its bytes in the record it was read as; it is written without.
        data = self.rest.get("data")
        return self.blob is None and (data is None or len(data) > 0)


@frozen(eq=False)
class Quantization:
    """Scales and zero points of a tensor. Several tensors may share one, so it is never changed.

    Attributes:
        scale: Float32 scales, one or one per channel; None where absent.
        zero_point: Int64 zero points, as many.
        dimension: The channel axis.
        scales_tensor: Blockwise or along several axes: the tensor that holds the scales.
        zero_points_tensor: Likewise: the tensor that holds the zero points.
    """

    scale: ScalarVector | None = None
    zero_point: ScalarVector | None = None
    dimension: int = 0
    scales_tensor: Tensor | None = None
    zero_points_tensor: Tensor | None = None
    rest: Record = field(default_factory=lambda: new_record("QuantizationParameters"))

    @classmethod
    def symmetric(cls, scales: bytes, dimension: int = 0) -> Quantization:
        """Makes one with zero point 0 from little-endian float32 scales."""
        count = len(scales) // 4
        return cls(ScalarVector(FLOAT32, scales), ScalarVector(INT64, bytes(8 * count)), dimension)

    @classmethod
    def single(cls, scale: float, zero_point: int) -> Quantization:
        """Makes one with the same scale and zero point for all elements."""
        return cls(ScalarVector.of(FLOAT32, [scale]), ScalarVector.of(INT64, [zero_point]))

    @property
    def is_quantized(self) -> bool:
        """Whether it gives a real meaning to integers (min and max alone do not)."""
        return bool(self.scale) or self.scales_tensor is not None


@slotted(eq=False)
class Tensor:
    """A value of a subgraph.

    Attributes:
        name: Text; undecodable bytes as surrogate escapes. May be empty or equal another's.
        shape: Dimensions; None where absent (a scalar, or unknown).
        dtype: Number of the tensor type (:mod:`tfl_rewrite.model.dtypes`).
        buffer: Its constant bytes; the model's first buffer is the empty sentinel.
        signature: ``shape_signature``: as shape, with -1 where the size is only known at run time.
        external: The record of the weight-file slice that holds its bytes.

    Example:
        >>> from tfl_rewrite.passes import QuantizeWeights
        >>> (output,) = tfl_rewrite.load("model.tflite").subgraphs[0].outputs
        >>> output.dtype_name, output.shape
        ('FLOAT32', (1, 10))
        >>> model = tfl_rewrite.load("model.tflite")
        >>> weights = model.subgraphs[0].tensor("functional_1_1/sequential_1/dense_1/MatMul")
        >>> weights.values.shape
        (10, 1024)
        >>> weights.set_values(weights.values * 2)
        >>> report = tfl_rewrite.rewrite(model, passes=[QuantizeWeights()])
    """

    name: str
    shape: tuple[int, ...] | None
    dtype: int
    buffer: Buffer
    quantization: Quantization | None = None
    is_variable: bool = False
    signature: tuple[int, ...] | None = None
    external: ExternalBuffer | None = None
    rest: Record = field(default_factory=lambda: new_record("Tensor"))

    def __repr__(self) -> str:
        shape = "" if self.shape is None else f" {list(self.shape)}"
        constant = f" constant, {self.buffer.nbytes:,} bytes" if self.is_constant else ""
        return f"<Tensor {self.name!r} {self.dtype_name}{shape}{constant}>"

    @property
    def dtype_name(self) -> str:
        """The type's name, or its number as text."""
        row = dtypes.BY_VALUE.get(self.dtype)
        return row.name if row else str(self.dtype)

    @property
    def elements(self) -> int:
        """Number of elements by the static shape."""
        count = 1
        for size in self.shape or ():
            count *= size
        return count

    @property
    def is_constant(self) -> bool:
        """Whether its bytes are in the file (or in a weight file beside it)."""
        return (self.buffer.nbytes > 0 or self.external is not None) and not self.is_variable

    @property
    def values(self) -> npt.NDArray[Any]:
        """What a constant stores, of its shape; read-only.

        Of a quantized tensor the stored integers: ``(values - zero_point) * scale`` are what they stand for.
        Integers of less than a byte come unpacked, as int8 or uint8; all else is a view of the file.

        Raises:
            UsageError: It is computed, not stored.
            UnsupportedError: It is sparse, lies in a file beside the model, or is of a type that numpy does
                not have, such as STRING and BFLOAT16.
        """
        from tfl_rewrite.model.values import array_of

        self._check_dense()
        blob = self.buffer.blob
        if blob is None or self.is_variable:
            raise UsageError("it is computed, not stored", where=f"tensor {self.name!r}")
        return array_of(blob.view(), self.dtype, self.shape or ())

    def set_values(self, values: npt.ArrayLike) -> None:
        """Stores other values in a constant, of the same shape and type.

        The tensor gets a buffer of its own: other tensors, and metadata, that shared its buffer keep what
        they had. Scales and zero points stay, so of a quantized tensor these are the integers to store.

        Args:
            values: An array of the type that :attr:`values` has, which is copied; or numbers, or lists of
                them, which are converted.

        Raises:
            UsageError: It is computed, not stored; or the values are of another shape or type, or do not fit.
            UnsupportedError: As for :attr:`values`.
        """
        from tfl_rewrite.model.values import bytes_of

        self._check_dense()
        if not self.is_constant:
            raise UsageError("it is computed, not stored", where=f"tensor {self.name!r}")
        data = bytes_of(values, self.dtype, self.shape or ())
        self.buffer = Buffer(OwnedBlob(data), is_new=True)

    def _check_dense(self) -> None:
        where = f"tensor {self.name!r}"
        if self.is_sparse:
            raise UnsupportedError("its values are stored in a sparse form", where=where)
        if self.external is not None:
            raise UnsupportedError("its values lie in a file beside the model", where=where)

    @property
    def is_sparse(self) -> bool:
        """Whether its bytes are in a compressed sparse form."""
        return "sparsity" in self.rest


@slotted(eq=False)
class OperatorCode:
    """Which kernel an operator uses; shared by all operators of a kind.

    Attributes:
        builtin: The larger of ``deprecated_builtin_code`` and ``builtin_code``.
        custom: Name of a custom operator, or None.
        version: Version of the kernel's contract.
    """

    builtin: int
    custom: str | None = None
    version: int = 1
    rest: Record = field(default_factory=lambda: new_record("OperatorCode"))

    @property
    def name(self) -> str:
        """The operator's type as people write it: the builtin's or the custom operator's name."""
        return self.custom if self.custom is not None else operator_name(self.builtin)


@slotted(eq=False)
class Operator:
    """A step of a subgraph.

    Attributes:
        inputs: Tensors; None is an optional input that is absent.
        options: The builtin options with subgraph indices as :class:`SubGraph` objects, or None.
        options2: The same for ``builtin_options_2``.
        large_custom: Custom options that lie after the FlatBuffer.

    Example:
        >>> operator = tfl_rewrite.load("model.tflite").subgraphs[0].operators[0]
        >>> operator.code.name, operator.option("stride_w")
        ('CONV_2D', 1)
    """

    code: OperatorCode
    inputs: list[Tensor | None]
    outputs: list[Tensor | None]
    intermediates: list[Tensor | None] = field(default_factory=list)
    options: Record | None = None
    options2: Record | None = None
    large_custom: Blob | None = None
    rest: Record = field(default_factory=lambda: new_record("Operator"))

    def __repr__(self) -> str:
        inputs, outputs = (
            ", ".join("none" if tensor is None else repr(tensor.name) for tensor in tensors)
            for tensors in (self.inputs, self.outputs)
        )
        return f"<Operator {self.code.name} ({inputs}) -> ({outputs})>"

    def option(self, name: str) -> Any:
        """Returns an option, its default where absent, or None where the options have no such field."""
        if self.options is None or name not in self.options.spec.by_name:
            return None
        return self.options.get(name)

    def subgraphs(self) -> Iterator[SubGraph]:
        """Yields the subgraphs that it runs."""
        for options in (self.options, self.options2):
            for value in options.values.values() if options is not None else ():
                for item in value if isinstance(value, list) else [value]:
                    if isinstance(item, SubGraph):
                        yield item


@slotted(eq=False)
class SubGraph:
    """Tensors and the operators over them, in the order of execution.

    Example:
        >>> subgraph = tfl_rewrite.load("model.tflite").subgraphs[0]
        >>> [tensor.shape for tensor in subgraph.inputs]
        [(1, 8, 8, 1)]
        >>> subgraph.tensor("arith.constant").values
        array([   1, 1024], dtype=int32)
    """

    tensors: list[Tensor]
    inputs: list[Tensor]
    outputs: list[Tensor]
    operators: list[Operator]
    name: str | None = None
    rest: Record = field(default_factory=lambda: new_record("SubGraph"))

    def tensor(self, name: str) -> Tensor:
        """Returns the tensor of a name.

        Raises:
            UsageError: None has it, or several have.
        """
        found = [tensor for tensor in self.tensors if tensor.name == name]
        if len(found) == 1:
            return found[0]
        if found:
            places = ", ".join(str(at) for at, tensor in enumerate(self.tensors) if tensor.name == name)
            raise UsageError(f"{len(found)} tensors are named {name!r}", remedy=f"take tensors[I]: {places}")
        near = near_names(name, [tensor.name for tensor in self.tensors])
        raise UsageError(
            f"no tensor is named {name!r}", remedy=f"did you mean {near[0]!r}?" if near else None
        )

    def __repr__(self) -> str:
        name = f" {self.name!r}" if self.name else ""
        return f"<SubGraph{name}: {len(self.tensors)} tensors, {len(self.operators)} operators>"


@slotted(eq=False)
class Signature:
    """A named entry point: which tensors of a subgraph its arguments and results are."""

    key: str | None
    subgraph: SubGraph
    inputs: list[tuple[Record, Tensor]]
    outputs: list[tuple[Record, Tensor]]
    rest: Record = field(default_factory=lambda: new_record("SignatureDef"))


@slotted(eq=False)
class Metadata:
    """A named buffer of the model."""

    name: str | None
    buffer: Buffer
    rest: Record = field(default_factory=lambda: new_record("Metadata"))


@slotted(eq=False)
class ExternalGroup:
    """A weight file beside the model."""

    name: str | None
    rest: Record = field(default_factory=lambda: new_record("ExternalBufferGroup"))


@slotted(eq=False)
class ExternalBuffer:
    """A slice of a weight file. ``identifier`` is the number that tensors refer to it by."""

    identifier: int
    group: ExternalGroup
    offset: int
    nbytes: int
    rest: Record = field(default_factory=lambda: new_record("ExternalBuffer"))


class Origin(Protocol):
    """What a model was loaded from; a :class:`tfl_rewrite.files.source.Source` is one."""

    def to_bytes(self, model: Model) -> bytes:
        """Returns the file of the model as it is now."""


@slotted(eq=False)
class Model:
    """A whole model; ``subgraphs[0]`` is the main one, ``buffers[0]`` the empty sentinel.

    Example:
        >>> model = tfl_rewrite.load("model.tflite")
        >>> len(model.subgraphs), len(model.subgraphs[0].operators)
        (1, 7)
        >>> data = model.to_bytes()
        >>> tfl_rewrite.inspect(data).nbytes == len(data)
        True
    """

    operator_codes: list[OperatorCode]
    subgraphs: list[SubGraph]
    buffers: list[Buffer]
    metadata: list[Metadata] = field(default_factory=list)
    metadata_buffers: list[Buffer] = field(default_factory=list)
    signatures: list[Signature] = field(default_factory=list)
    external_groups: list[ExternalGroup] = field(default_factory=list)
    external_buffers: list[ExternalBuffer] = field(default_factory=list)
    version: int = 3
    description: str | None = None
    rest: Record = field(default_factory=lambda: new_record("Model"))
    origin: Origin | None = None
    """The file that it was loaded from."""
    tail: bytes | None = None
    """Where other files are to lie behind it than in that file: 16 zero bytes, and the ZIP of them, whose
    offsets count from the first of these (:mod:`tfl_rewrite.files.layout`)."""
    places: dict[int, tuple[object, str]] | None = None
    """Where things were before the first of some passes, by identity."""

    def __repr__(self) -> str:
        tensors = sum(len(item.tensors) for item in self.subgraphs)
        operators = sum(len(item.operators) for item in self.subgraphs)
        nbytes = sum(buffer.nbytes for buffer in self.buffers)
        return (
            f"<Model: {len(self.subgraphs)} subgraphs, {tensors} tensors, {operators} operators, "
            f"{nbytes:,} bytes of constants>"
        )

    def to_bytes(self) -> bytes:
        """Returns the bytes of its file, which :func:`tfl_rewrite.save` would write; it is not verified.

        Raises:
            UsageError: It was not loaded, but made in memory.
            UnsupportedError: It was changed, and its file holds something that cannot be carried over.
        """
        if self.origin is None:
            raise UsageError("this model was made in memory", remedy="write it with tfl_rewrite.save")
        return self.origin.to_bytes(self)

    def adopt(self) -> list[Buffer]:
        """Takes the buffers that tensors were given by :meth:`Tensor.set_values` among its own."""
        known = set(map(id, self.buffers))
        for _, tensor in self.tensors():
            if tensor.buffer.is_new and id(tensor.buffer) not in known:
                known.add(id(tensor.buffer))
                self.buffers.append(tensor.buffer)
        return self.buffers

    def add_buffer(self, blob: Blob | None = None) -> Buffer:
        """Appends a buffer, behind the empty one that tensors without bytes refer to."""
        if not self.buffers:
            # Tensors of a file without buffers refer to none.
            self.buffers.append(Buffer())
            for _, tensor in self.tensors():
                if tensor.buffer.blob is None:
                    tensor.buffer = self.buffers[0]
        self.buffers.append(Buffer(blob))
        return self.buffers[-1]

    @property
    def pinned(self) -> set[int]:
        """Ids of the buffers that metadata refers to."""
        return {id(entry.buffer) for entry in self.metadata} | set(map(id, self.metadata_buffers))

    @property
    def called(self) -> set[int]:
        """Ids of the subgraphs that operators run."""
        return {id(inner) for _, operator in self.operators() for inner in operator.subgraphs()}

    def holders(self) -> dict[int, list[Tensor]]:
        """Returns the tensors of each buffer, by its id."""
        found: dict[int, list[Tensor]] = {}
        for _, tensor in self.tensors():
            found.setdefault(id(tensor.buffer), []).append(tensor)
        return found

    @contextmanager
    def remembering(self) -> Iterator[None]:
        """Has `place_of` name things by where they are now, whatever passes do."""
        if self.places is not None:
            yield
            return
        self.places = {}
        for index, buffer in enumerate(self.buffers):
            self.places[id(buffer)] = (buffer, f"buffers[{index}]")
        for index, subgraph in enumerate(self.subgraphs):
            where = f"subgraphs[{index}]"
            self.places[id(subgraph)] = (subgraph, where)
            for position, tensor in enumerate(subgraph.tensors):
                self.places[id(tensor)] = (tensor, f"{where}.tensors[{position}]")
            for position, operator in enumerate(subgraph.operators):
                self.places[id(operator)] = (operator, f"{where}.operators[{position}]")
        try:
            yield
        finally:
            self.places = None

    def place_of(self, item: object, now: str) -> str:
        """Returns the place of a subgraph, a tensor, an operator or a buffer in the file that was read.

        Args:
            item: What to look for.
            now: Its place as the model is, for what a pass has made.
        """
        known, where = (self.places or {}).get(id(item), (None, now))
        return where if known is item else now

    def operators(self) -> Iterator[tuple[SubGraph, Operator]]:
        """Yields every operator with its subgraph."""
        for subgraph in self.subgraphs:
            for operator in subgraph.operators:
                yield subgraph, operator

    def tensors(self) -> Iterator[tuple[SubGraph, Tensor]]:
        """Yields every tensor with its subgraph."""
        for subgraph in self.subgraphs:
            for tensor in subgraph.tensors:
                yield subgraph, tensor

    def metadata_named(self, name: str) -> Metadata | None:
        """Returns the first metadata entry of that name."""
        return next((entry for entry in self.metadata if entry.name == name), None)
