"""The ranges of tensors as data, and the file that holds them. Reading one trusts nothing in it.

JSON, version 1; a row is an index in the subgraph, a name, a shape, the least and the greatest value::

    {"format": "tfl-rewrite-ranges", "version": 1, "model": "<64 hex digits>",
     "subgraphs": [[[0, "image", [1, 224, 224, 3], -1.0, 1.0], ...], ...]}

What a tensor of the float model held that is infinite is ``"inf"`` or ``"-inf"``, and ``"nan"`` on both sides
where it held one. Constants have no row: the model has their values.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from tfl_rewrite.editing.base import Context
from tfl_rewrite.errors import FileAccessError, FormatError, UnsupportedError, UsageError
from tfl_rewrite.files.atomic import PLAIN, write_whole
from tfl_rewrite.integers.modes import Range
from tfl_rewrite.kernels.operands import constant_values
from tfl_rewrite.model import dtypes
from tfl_rewrite.model.ir import Model, Tensor
from tfl_rewrite.model.likeness import fingerprint
from tfl_rewrite.options.frozen import frozen
from tfl_rewrite.options.json_data import JsonFormat
from tfl_rewrite.options.option import PATH, Kind
from tfl_rewrite.weights.rounders import Activations, activations_of

_JSON = JsonFormat(
    name="tfl-rewrite-ranges",
    version=1,
    what="a file of ranges",
    # Of about 150,000 tensors.
    most_nbytes=16 << 20,
    remedy="name one that 'tfl-rewrite quantize --inputs PATH --ranges FILE' wrote",
)
_GIVE = "give --inputs with a folder of pictures or sound, or a .npz; a few tens of samples; "
_LARGEST = float(np.finfo(np.float32).max)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_WORDS = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}

Row = tuple[int, str, tuple[int, ...] | None, float, float]
"""Index of a tensor in its subgraph, its name, its shape, its least and its greatest value."""


@frozen
class GivenModel:
    """A model as it was given, whatever a pass makes of it later.

    Attributes:
        hash: Of its graph and constants (:func:`tfl_rewrite.model.likeness.fingerprint`).
        tensors: By subgraph and place, each with its name, its shape and whether it held floats.
    """

    hash: str
    tensors: tuple[tuple[tuple[Tensor, str, tuple[int, ...] | None, bool], ...], ...]

    @classmethod
    def of(cls, model: Model) -> GivenModel:
        """Takes a model as it is now."""
        tensors = tuple(
            tuple(
                (item, item.name, item.shape, item.dtype == dtypes.FLOAT32.value) for item in subgraph.tensors
            )
            for subgraph in model.subgraphs
        )
        return cls(fingerprint(model), tensors)


@frozen
class TensorRanges:
    """What the float tensors of a model held on real inputs: the least and the greatest value of each.

    Attributes:
        model: Hash of the model, as of :class:`GivenModel`.
        subgraphs: By subgraph, the rows of the tensors that were seen, in order.
    """

    model: str
    subgraphs: tuple[tuple[Row, ...], ...]

    @classmethod
    def of(cls, given: GivenModel, ranges: Mapping[int, Range]) -> TensorRanges:
        """Takes the ranges of a model's tensors, by id; those of constants are left out."""
        lists = tuple(
            tuple(
                (at, name, shape, *ranges[id(tensor)])
                for at, (tensor, name, shape, floats) in enumerate(tensors)
                if floats and id(tensor) in ranges and ranges[id(tensor)] != constant_range(tensor)
            )
            for tensors in given.tensors
        )
        return cls(given.hash, lists)

    @property
    def count(self) -> int:
        """Of tensors."""
        return sum(map(len, self.subgraphs))

    def on(self, given: GivenModel, file: str | os.PathLike[str] | None = None) -> dict[int, Range]:
        """Returns the ranges of a model's tensors, by id; constants are not among them.

        Args:
            given: The model.
            file: Where the ranges came from, for errors.

        Raises:
            UsageError: They belong to another model.
            FormatError: A row does not fit its tensor.
        """
        if self.model != given.hash:
            raise UsageError(
                "holds the ranges of another model, or of this one behind other passes",
                file=file,
                remedy="give --inputs to calibrate anew, or the model that was calibrated",
            )
        if len(self.subgraphs) != len(given.tensors):
            raise FormatError(
                f"has {len(self.subgraphs)} lists for {len(given.tensors)} subgraphs",
                file=file,
                where="subgraphs",
                remedy=_JSON.remedy,
            )
        found: dict[int, Range] = {}
        for number, (tensors, rows) in enumerate(zip(given.tensors, self.subgraphs, strict=True)):
            for position, row in enumerate(rows):
                at = row[0]
                wrong = f"is of tensor {at}; there are {len(tensors)}"
                if at < len(tensors):
                    tensor, name, shape, floats = tensors[at]
                    wrong = "" if floats else f"is of tensor {at}, which holds no floats"
                    if (name, shape) != row[1:3]:
                        wrong = f"tells another name or shape than tensor {at} has"
                if wrong:
                    where = f"subgraphs[{number}][{position}]"
                    raise FormatError(wrong, file=file, where=where, remedy=_JSON.remedy)
                found[id(tensor)] = row[3], row[4]
        return found

    def dump(self) -> bytes:
        """Returns the JSON text; the same ranges give the same bytes."""
        lists = []
        for rows in self.subgraphs:
            lines = ",\n".join("   " + json.dumps([*row[:3], *map(_shown, row[3:])]) for row in rows)
            lists.append(f"  [\n{lines}\n  ]" if rows else "  []")
        head = f'{{\n "format": "{_JSON.name}",\n "version": {_JSON.version},\n "model": "{self.model}",\n'
        body = ",\n".join(lists)
        return f'{head} "subgraphs": [\n{body}\n ]\n}}\n'.encode("ascii")

    def save(self, path: str | os.PathLike[str], *, force: bool = False, access: int = PLAIN) -> None:
        """Writes them into a file, for ``Quantize(ranges=path)`` and ``quantize --ranges``.

        Args:
            path: The file; it appears at once and complete.
            force: Whether it may exist.
            access: As for :func:`tfl_rewrite.files.atomic.atomic_write`.

        Raises:
            UsageError: It exists, and ``force`` is off.
            FileAccessError: It cannot be written.
        """
        write_whole(path, self.dump(), force=force, access=access)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> TensorRanges:
        """Reads a file.

        Raises:
            FileAccessError: It cannot be read.
            FormatError: It is damaged, or no file of ranges.
            UnsupportedError: A newer version of the format.
        """
        try:
            with open(path, "rb") as file:
                data = file.read(_JSON.most_nbytes + 1)
        except FileNotFoundError:
            raise FileAccessError(
                "there is no such file", file=path, remedy="give --inputs, too, and it is written"
            ) from None
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            raise FileAccessError(f"cannot read: {why}", file=path) from error
        return cls.parse(data, path)

    @classmethod
    def parse(cls, data: bytes, file: str | os.PathLike[str]) -> TensorRanges:
        """Reads the bytes of a file.

        Args:
            data: All of them.
            file: Where they came from, for errors.

        Raises:
            FormatError, UnsupportedError: See :meth:`read`.
        """
        try:
            return cls(*_parsed(data))
        except (FormatError, UnsupportedError) as error:
            error.file = os.fspath(file)
            raise


def _taken(value: Any) -> Any:
    return value if isinstance(value, TensorRanges) else PATH.take(value)


RANGES = Kind(str, _taken)
"""Ranges that were recorded, or the file that they are kept in."""


class Calibration:
    """What a pass is calibrated with: what is seen on the inputs, or the ranges that were kept.

    Args:
        model: As the pass gets it.
        kept: Ranges that were recorded, which count whatever the inputs are; or the file that they are
            written to where there are inputs, and read from otherwise.
        context: Has the inputs.

    Attributes:
        activations: Tells what weights meet; None where there are no inputs.
        notes: For the user.
        files: To be written beside the model, once the ranges are known: paths and bytes.

    Raises:
        UsageError: There are neither inputs nor ranges, or they belong to another model.
        FileAccessError, FormatError, UnsupportedError: The file cannot be read, or does not fit.
    """

    def __init__(
        self, model: Model, kept: TensorRanges | str | os.PathLike[str] | None, context: Context
    ) -> None:
        self.activations: Activations | None = activations_of(context)
        self.notes: tuple[str, ...] = ()
        self.files: tuple[tuple[str | os.PathLike[str], bytes], ...] = ()
        self._number = context.number
        self._target: str | os.PathLike[str] | None = None
        self._known: dict[int, Range] | None = None
        self._given = None if kept is None else GivenModel.of(model)
        recorded = isinstance(kept, TensorRanges)
        # Inputs of which nothing can be told are no reason to read a file that they were to be kept in.
        if self.activations is None and not recorded and (self._given is None or context.unfit):
            raise UsageError(
                f"quantize needs real inputs: {context.unfit or 'the ranges of made ones mean nothing'}",
                remedy=("" if context.unfit else _GIVE)
                + "or give --ranges alone with what another run has kept",
            )
        if self._given is None:
            return
        if isinstance(kept, TensorRanges):
            self._known = kept.on(self._given)
            self.notes = (f"ranges of {kept.count} tensors as recorded",)
        elif self.activations is None:
            assert kept is not None
            read = TensorRanges.read(kept)
            self._known = read.on(self._given, kept)
            self.notes = (f"ranges of {read.count} tensors from {os.fspath(kept)}",)
        else:
            self._target = kept

    def ranges(self, model: Model, *, whole: bool = False) -> Mapping[int, Range]:
        """Returns the ranges of the float tensors that were seen, and of constants, by id.

        Args:
            model: With float weights.
            whole: Whether on the samples that judge as well.

        Raises:
            UsageError: An input is NaN or infinite in a sample.
            UnsupportedError: The model does not run.
        """
        if self._known is not None:
            # A constant holds what it holds, whatever a file says of it; nothing, where it cannot be read.
            constants = {id(item) for _, item in model.tensors() if item.is_constant}
            told = {key: held for key, held in self._known.items() if key not in constants}
            return constant_ranges(model) | told
        assert self.activations is not None
        found = self.activations.ranges(self._number, model, whole=whole)
        _check_inputs(model, found)
        if self._target is not None and self._given is not None:
            made = TensorRanges.of(self._given, found)
            self.files = ((self._target, made.dump()),)
            self.notes = (f"ranges of {made.count} tensors go with the file to {os.fspath(self._target)}",)
        return found


def _check_inputs(model: Model, ranges: Mapping[int, Range]) -> None:
    """Refuses what was calibrated with NaN or infinite numbers: all that comes of them is none, either."""
    for tensor in (item for subgraph in model.subgraphs for item in subgraph.inputs):
        if not all(map(math.isfinite, ranges.get(id(tensor), ()))):
            raise UsageError(
                f"input {tensor.name!r} is NaN or infinite in some sample that it is calibrated with",
                remedy="leave such samples out",
            )


def constant_range(tensor: Tensor) -> Range | None:
    """Returns the least and the greatest value of a float constant; None for anything else."""
    values = constant_values(tensor, "FLOAT32") if tensor.is_constant else None
    return None if values is None or not values.size else (float(values.min()), float(values.max()))


def constant_ranges(model: Model) -> dict[int, Range]:
    """Returns the least and the greatest value of all float constants, by id."""
    tensors = [item for _, item in model.tensors()]
    return {id(item): held for item in tensors if (held := constant_range(item)) is not None}


def _shown(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


def _parsed(data: bytes) -> tuple[str, tuple[tuple[Row, ...], ...]]:
    found = _JSON.parse(data)
    model, lists = found.get("model"), found.get("subgraphs")
    if not isinstance(model, str) or not _SHA256.fullmatch(model):
        raise FormatError("is no hash of 64 hex digits", where="model", remedy=_JSON.remedy)
    if not isinstance(lists, list):
        raise FormatError("is not a list", where="subgraphs", remedy=_JSON.remedy)
    return model, tuple(_rows(rows, f"subgraphs[{number}]") for number, rows in enumerate(lists))


def _rows(rows: Any, where: str) -> tuple[Row, ...]:
    if not isinstance(rows, list):
        raise FormatError("is not a list", where=where, remedy=_JSON.remedy)
    found = []
    last = -1
    for number, row in enumerate(rows):
        made = _row(row)
        if isinstance(made, str):
            raise FormatError(made, where=f"{where}[{number}]", remedy=_JSON.remedy)
        if made[0] <= last:
            text = f"tensor {made[0]} comes behind tensor {last}"
            raise FormatError(text, where=f"{where}[{number}]", remedy=_JSON.remedy)
        last = made[0]
        found.append(made)
    return tuple(found)


def _row(row: Any) -> Row | str:
    """Returns a row, or what is wrong with it."""
    if not isinstance(row, list) or len(row) != 5:
        return "is not a list of index, name, shape, least and greatest value"
    at, name, shape, *ends = row
    if not _is_count(at):
        return "its first item is no index of a tensor"
    if not isinstance(name, str):
        return "its second item is no name"
    if shape is not None and not (isinstance(shape, list) and all(map(_is_size, shape))):
        return "its third item is not a shape"
    low, high = (_number(item) for item in ends)
    if low is None or high is None:
        return "its last items are no two numbers of 32-bit floats"
    if low > high or math.isnan(low) != math.isnan(high):
        return f"its least value {low:g} is above its greatest {high:g}"
    return at, name, None if shape is None else tuple(shape), low, high


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 31


def _is_size(value: Any) -> bool:
    # What a file says of a dimension may be negative.
    return type(value) is int and -(1 << 31) <= value < 1 << 31


def _number(value: Any) -> float | None:
    """Returns a number that a tensor may hold; None for anything else, and for what is not JSON."""
    if isinstance(value, str):
        return _WORDS.get(value)
    if type(value) not in (int, float) or not -_LARGEST <= value <= _LARGEST:
        return None
    return float(value)
