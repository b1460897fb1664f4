"""metadata: what a model says of itself, and the files that belong to it.

Written are fields of ``TFLITE_METADATA`` (the schema of tflite-support) and files in the ZIP behind it;
what is not named stays, files of other names included. Where there is no description of inputs and outputs
yet, each gets one with the name of its tensor. ``labels`` belong to the output whose last axis has as many
elements as the file has lines, else to the first. ``mean`` and ``std`` belong to the first input with four
axes, else to the first; one with 3 channels or 1 is then said to be a picture, if nothing is said of it.

``reduced_precision`` writes the entry that allows XNNPACK to compute floats in half precision, on processors
that can: outputs are then judged by the tolerance, and elsewhere than on this machine they may differ from
what was judged. All else changes no output. A second run finds all as it is.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from tfl_rewrite.editing.base import Context, Edit, Effect, Pass, PassResult
from tfl_rewrite.editing.descriptions import SIDES, read_descriptions, record, write_descriptions
from tfl_rewrite.editing.metadata import drop, set_content
from tfl_rewrite.editing.names import nothing_asked
from tfl_rewrite.errors import FileAccessError, UsageError
from tfl_rewrite.files.layout import packed, read_members
from tfl_rewrite.files.source import origin_of
from tfl_rewrite.flatbuf.record import FLOAT32, Record, ScalarVector
from tfl_rewrite.model.ir import Metadata, Model, Tensor
from tfl_rewrite.options.option import PATH, Role, check_options, option

_PRECISION = "reduced_precision_support"
_PRECISIONS = {"fp16": b"fp16accfp16", "none": None}
"""What stands in that entry (``reduced_precision_support.h`` of TensorFlow Lite). XNNPACK takes no hint from
float16 with sums in float32 (``XNNPackDelegate``), so that is not offered."""
_LABELS, _NORMALIZATION, _IMAGE, _RGB, _GRAY = 2, 1, 2, 1, 2
_PARSER = "1.0.0"
"""The first version of the schema: it has all that is written here."""
_MOST_LABELS_NBYTES = 1 << 26
_LEAST = 1e-37
"""Of a standard deviation: less is 0 in float32."""
_TEXTS = {
    "name": "model_name",
    "description": "description",
    "version": "model_version",
    "author": "author",
    "license": "license",
}
"""Fields of ``ModelMetadata``, and the options that they are of."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SetMetadata(Pass):
    """Writes what a model says of itself, and the files that belong to it, such as labels.

    Writes TFLITE_METADATA and the appended ZIP; what is not named stays. Outputs stay equal to the bit,
    except with --reduced-precision on a processor that computes in half precision.

    Example:
        >>> from tfl_rewrite.passes import SetMetadata
        >>> described = SetMetadata(model_name="digits", mean="0", std="1")
        >>> report = tfl_rewrite.rewrite("model.tflite", "described.tflite", [described])
        >>> [change.where for change in report.results[0].changes]
        ['metadata TFLITE_METADATA']
    """

    name: ClassVar[str] = "metadata"
    effect: ClassVar[Effect] = Effect.TOLERANCE
    place: ClassVar[str] = "behind what changes inputs and outputs"

    labels: str | os.PathLike[str] | None = option(
        None,
        "a text file with a label a line, for the output with as many classes; goes into the ZIP",
        kind=PATH,
        metavar="FILE.txt",
        role=Role.READ,
    )
    mean: str | None = option(
        None,
        "what is subtracted from the pixels of the input: one number, or one for each channel",
        metavar="X,...",
    )
    std: str | None = option(None, "what they are divided by then", metavar="X,...")
    model_name: str | None = option(None, "name of the model", metavar="TEXT", flags=("--name",))
    description: str | None = option(None, "what the model does", metavar="TEXT")
    model_version: str | None = option(None, "its version", metavar="TEXT", flags=("--model-version",))
    author: str | None = option(None, "who made it", metavar="TEXT")
    license: str | None = option(None, "under which licence", metavar="TEXT")
    input_name: tuple[str, ...] = option(
        (), "how users call an input, in the order of the inputs; repeatable", metavar="TEXT"
    )
    output_name: tuple[str, ...] = option((), "likewise an output; repeatable", metavar="TEXT")
    reduced_precision: str | None = option(
        None,
        "fp16: XNNPACK may compute in half precision on processors that can, which are ARM with that "
        "extension and newer x86; outputs may differ there from what is judged here. none: it may not",
        choices=tuple(_PRECISIONS),
    )

    def __post_init__(self) -> None:
        """Refuses numbers that are none, and half of a normalization."""
        check_options(self)
        if (self.mean is None) != (self.std is None):
            raise UsageError(
                "mean and std belong together", remedy="give both, such as --mean 127.5 --std 127.5"
            )
        if self.mean is not None and self.std is not None:
            mean, std = _numbers(self.mean, "mean"), _numbers(self.std, "std")
            if min(map(abs, std)) < _LEAST or len({len(mean), len(std)} - {1}) > 1:
                raise UsageError(
                    f"mean {self.mean} and std {self.std}", remedy="give as many of each, and no std of 0"
                )
        for text in (*self._texts().values(), *self.input_name, *self.output_name):
            _check_text(text)

    def _texts(self) -> dict[str, str]:
        """Texts of the model that are given, by field."""
        given = {field: getattr(self, option) for field, option in _TEXTS.items()}
        return {field: text for field, text in given.items() if text is not None}

    def run(self, model: Model, context: Context) -> PassResult:
        """Writes it.

        Raises:
            FileAccessError: The labels cannot be read.
            UsageError: Nothing is asked for; labels are no text, or there are more names than inputs or
                outputs.
            FormatError, UnsupportedError: There is metadata or a ZIP that cannot be read.
        """
        if not self._asked:
            raise nothing_asked("what to write, such as --name TEXT")
        changes: list[Edit] = []
        notes: list[str] = []
        files = {} if self.labels is None else _labels(self.labels)
        if self._describes:
            old = read_descriptions(model)
            new = self._described(model, old, files, notes)
            if new != old:
                write_descriptions(model, new)
                changes.append(Edit("metadata TFLITE_METADATA", "written" if old is None else "changed"))
        changes += _attach(model, files)
        precise = self._precision(model)
        changes += precise
        if precise and self.reduced_precision == "fp16":
            notes.append(
                "judged on this machine: where the processor computes in half precision, XNNPACK does so "
                "with this file, and outputs may differ from what was judged; verify it there"
            )
        idle = "" if changes else "it says all of this already"
        exact = not any(item.data.get("precision") for item in changes)
        return PassResult(self.name, tuple(changes), (), tuple(notes), grows=True, exact=exact, idle=idle)

    @property
    def _describes(self) -> bool:
        return bool(self._texts() or self.mean or self.labels or self.input_name or self.output_name)

    @property
    def _asked(self) -> bool:
        return self._describes or self.reduced_precision is not None

    def _described(
        self, model: Model, old: Record | None, files: dict[str, bytes], notes: list[str]
    ) -> Record:
        """Returns the metadata with what is given in it."""
        root = record("ModelMetadata", min_parser_version=_PARSER) if old is None else old
        root = root.replace(**self._texts())
        if not (self.mean or files or self.input_name or self.output_name):
            return root
        graph, described = model.subgraphs[0], list(root.get("subgraph_metadata") or ())
        main = described[0] if described else record("SubGraphMetadata")
        sides: dict[str, list[Record]] = {}
        for side, names in (("inputs", self.input_name), ("outputs", self.output_name)):
            rows = list(main.get(SIDES[side]) or ())
            tensors: list[Tensor] = getattr(graph, side)
            if len(rows) != len(tensors):
                if rows:
                    notes.append(
                        f"there were descriptions of {len(rows)} {side} of {len(tensors)}: made anew"
                    )
                rows = [record("TensorMetadata", name=item.name or None) for item in tensors]
            if len(names) > len(rows):
                what = f"--{side[:-1]}-name: {len(names)} names for {len(rows)} {side}"
                raise UsageError(what, remedy="give one for each at most")
            for place, name in enumerate(names):
                rows[place] = rows[place].replace(name=name)
            sides[side] = rows
        if self.mean is not None:
            place = next((at for at, item in enumerate(graph.inputs) if len(item.shape or ()) == 4), 0)
            if not graph.inputs:
                raise UsageError("the model has no input to normalize")
            sides["inputs"][place] = self._normalized(sides["inputs"][place], graph.inputs[place])
        for name, data in files.items():
            labelled = _output_of(data, graph.outputs)
            if labelled is None:
                raise UsageError("the model has no output to label")
            _note_unfit(data, graph.outputs[labelled], notes)
            sides["outputs"][labelled] = _labelled(sides["outputs"][labelled], name)
        main = main.replace(**{SIDES[side]: rows or None for side, rows in sides.items()})
        return root.replace(subgraph_metadata=[main, *described[1:]])

    def _normalized(self, row: Record, tensor: Tensor) -> Record:
        """Returns a description of an input with its mean and standard deviation."""
        assert self.mean is not None and self.std is not None
        values = {"mean": _numbers(self.mean, "mean"), "std": _numbers(self.std, "std")}
        made = record(
            "NormalizationOptions", **{key: ScalarVector.of(FLOAT32, each) for key, each in values.items()}
        )
        unit = record("ProcessUnit", options_type=_NORMALIZATION, options=made)
        units = [
            item for item in row.get("process_units") or () if item.get("options_type") != _NORMALIZATION
        ]
        channels = (tensor.shape or (0,))[-1] if len(tensor.shape or ()) == 4 else 0
        if "content" not in row and channels in (1, 3):
            image = record("ImageProperties", color_space=_RGB if channels == 3 else _GRAY)
            row = row.replace(
                content=record("Content", content_properties_type=_IMAGE, content_properties=image)
            )
        return row.replace(process_units=[unit, *units])

    def _precision(self, model: Model) -> list[Edit]:
        """Writes or drops the entry that XNNPACK reads."""
        if self.reduced_precision is None:
            return []
        wanted, entry = _PRECISIONS[self.reduced_precision], model.metadata_named(_PRECISION)
        where, facts = f"metadata {_PRECISION}", {"precision": self.reduced_precision}
        if wanted is None:
            if entry is None:
                return []
            drop(model, entry)
            return [Edit(where, "dropped", 0, facts)]
        if entry is None:
            entry = Metadata(_PRECISION, model.add_buffer())
            model.metadata.append(entry)
        elif entry.buffer.blob is not None and bytes(entry.buffer.blob.view()) == wanted:
            return []
        set_content(model, entry, wanted)
        return [Edit(where, f"says {wanted.decode()}", 0, facts)]


def _attach(model: Model, files: dict[str, bytes]) -> list[Edit]:
    """Puts files into the ZIP behind a model."""
    origin = origin_of(model)
    tail = model.tail if model.tail is not None else (origin.tail.data if origin and origin.tail else None)
    if not files:
        return []
    members = read_members(tail)
    known = {row.filename: data for row, data in members}
    if all(known.get(name) == data for name, data in files.items()):
        return []
    model.tail = packed(members, files)
    return [
        Edit(f"file {name}", "replaced in the ZIP" if name in known else "put into the ZIP")
        for name, data in files.items()
        if known.get(name) != data
    ]


def _labelled(row: Record, name: str) -> Record:
    """Returns a description of an output to which a file of labels belongs."""
    files = [
        item
        for item in row.get("associated_files") or ()
        if item.get("type") != _LABELS or item.get("name") == name
    ]
    if any(item.get("name") == name and item.get("type") == _LABELS for item in files):
        return row.replace(associated_files=files)
    return row.replace(associated_files=[record("AssociatedFile", name=name, type=_LABELS), *files])


_LABELS_REMEDY = "give a text file with a label a line"


def _labels(path: str | os.PathLike[str]) -> dict[str, bytes]:
    """Returns a file of labels by the name that it gets in the ZIP."""
    try:
        if not Path(path).is_file():
            # A device or a pipe may have no end.
            what = "is no plain file" if Path(path).exists() else "there is no such file"
            raise FileAccessError(what, file=os.fspath(path), remedy=_LABELS_REMEDY)
        with open(path, "rb") as file:
            data = file.read(_MOST_LABELS_NBYTES + 1)
    except (OSError, ValueError) as error:
        text = getattr(error, "strerror", None) or str(error)
        raise FileAccessError(f"cannot read: {text}", file=os.fspath(path)) from error
    if len(data) > _MOST_LABELS_NBYTES:
        raise UsageError(
            f"takes more than {_MOST_LABELS_NBYTES:,} bytes",
            file=path,
            remedy=_LABELS_REMEDY,
        )
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"is no text: {error}", file=path, remedy="write the labels in UTF-8") from None
    name = Path(path).name
    _check_text(name)
    return {name: data}


def _note_unfit(labels: bytes, output: Tensor, notes: list[str]) -> None:
    """Notes where an output has another number of classes than there are labels."""
    count, shape = len(labels.decode("utf-8").splitlines()), output.shape or ()
    if not shape or shape[-1] != count:
        notes.append(
            f"there are {count} labels, and no output has as many classes: they are written for "
            f"{output.name!r}, whose shape is {list(shape)}"
        )


def _output_of(labels: bytes, outputs: Sequence[Tensor]) -> int | None:
    """Returns which output has as many elements in its last axis as there are lines; else the first."""
    count = len(labels.decode("utf-8").splitlines())
    fitting = [place for place, item in enumerate(outputs) if item.shape and item.shape[-1] == count]
    return next(iter([*fitting, *range(len(outputs))]), None)


def _numbers(text: str, what: str) -> list[float]:
    """Reads numbers between commas.

    Raises:
        UsageError: They are none.
    """
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = [math.nan]
    if not all(math.isfinite(value) and abs(value) < 3e38 for value in found):
        raise UsageError(
            f"{what} = {text!r} is not a list of numbers", remedy="write such as 127.5 or 123,117,104"
        )
    return found


def _check_text(text: str) -> None:
    """Refuses what is no text in UTF-8, or holds a zero byte."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise UsageError(f"{text!a} is no text", remedy="write it in UTF-8") from None
    if "\0" in text:
        raise UsageError(f"{text!a} holds a zero byte", remedy="leave it out")


__all__ = ["SetMetadata"]
