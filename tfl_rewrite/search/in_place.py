"""Files that differ in the values of constants alone: one copy, in which they are put in place.

What DEQUANTIZE makes of integers is what a float operator computes with. So a file whose constants are stored
so computes what the original computes with those floats in the place of its own, but for the last bits where
other kernels read what is no constant any more. To look at what encodings cost, no file has to be made.
"""

from __future__ import annotations

import copy
import functools
import os
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from tfl_rewrite.editing.base import Change
from tfl_rewrite.interpreter.scratch import scratch_errors
from tfl_rewrite.kernels.operators import Reading
from tfl_rewrite.kernels.table import row_of
from tfl_rewrite.model import dtypes
from tfl_rewrite.model.blob import MappedBlob
from tfl_rewrite.model.ir import Model, schema
from tfl_rewrite.search.basis import Basis, Content, Contents, Float64, Site, written
from tfl_rewrite.search.units import Choice, encodings_of
from tfl_rewrite.weights.biases import Correction
from tfl_rewrite.weights.encoding import Encoding
from tfl_rewrite.weights.payloads import QuantizedPayload, WeightChange, WorkPayload

NBYTES = 128 << 20
LEAST_FILES = 4
"""Of files in which constants are replaced: each part of the inputs has its own, and opened ones."""


class Patched:
    """A file in which the bytes of buffers are replaced in place.

    Weights of hybrid kernels are replaced, too: the type of such a tensor and the length of the buffer are
    changed with the bytes. Scales of a tensor that holds floats mean nothing.

    Args:
        model: The file is written as it is; what it did not change of the file that it comes from can be
            replaced.
        path: The file.
        narrow: Buffers that hold floats in the model, while the type of their tensors is that of integers.
            The tensors of the file hold floats at first.
    """

    def __init__(self, model: Model, path: Path, narrow: Collection[int] = ()) -> None:
        made = written(model, path)
        self.path = path
        self.nbytes = made.nbytes
        moved = None if made.plan is None else {blob.identity: at for at, blob in made.plan.blobs()}
        mapped = {
            position: buffer.blob
            for position, buffer in enumerate(model.buffers)
            if isinstance(buffer.blob, MappedBlob)
        }
        # What several buffers hold together cannot be replaced in one of them.
        holders = Counter(blob.identity for blob in mapped.values())
        self._blobs = {place: blob for place, blob in mapped.items() if holders[blob.identity] == 1}
        self._offsets = {
            place: blob.offset if moved is None else moved[blob.identity]
            for place, blob in self._blobs.items()
        }
        self._held: dict[int, Hashable] = {}
        self._types: dict[int, list[tuple[int, int]]] = {}
        if narrow:
            self._types = _types_of(model, path, narrow)
            with scratch_errors(), open(path, "r+b") as file:
                for position in narrow:
                    self._put(file.fileno(), position, b"", narrow=False)

    def takes(self, contents: Contents) -> bool:
        """Whether these buffers can be replaced."""
        return contents.keys() <= self._blobs.keys() and all(
            position in self._types for position, content in contents.items() if content.narrow
        )

    def hold(self, contents: Contents) -> None:
        """Replaces these buffers, and puts back all others.

        Args:
            contents: Each has as many bytes as the buffer, unless it is narrow.
        """
        with scratch_errors(), open(self.path, "r+b") as file:
            for position in self._held.keys() - contents.keys():
                self._put(file.fileno(), position, self._blobs[position].view(), narrow=False)
            for position, content in contents.items():
                if self._held.get(position) != content.key:
                    data = content.make()
                    assert content.narrow or len(data) == self._blobs[position].nbytes
                    self._put(file.fileno(), position, data, narrow=content.narrow)
        self._held = {position: content.key for position, content in contents.items()}

    def _put(self, file: int, position: int, data: bytes | bytearray | memoryview, *, narrow: bool) -> None:
        offset = self._offsets[position]
        os.pwrite(file, data, offset)
        for place, value in self._types.get(position, ()):
            os.pwrite(file, bytes([value if narrow else dtypes.FLOAT32.value]), place)
        if position in self._types:
            nbytes = len(data) if narrow else self._blobs[position].nbytes
            os.pwrite(file, nbytes.to_bytes(4, "little"), offset - 4)


def _types_of(model: Model, path: Path, positions: Collection[int]) -> dict[int, list[tuple[int, int]]]:
    """Returns where a file says the types of the tensors of some buffers, and what it says there."""
    data, wanted = path.read_bytes(), {id(model.buffers[position]): position for position in positions}
    found: dict[int, list[tuple[int, int]]] = {position: [] for position in positions}
    subgraphs = _tables(data, int.from_bytes(data[:4], "little"), "Model", "subgraphs")
    for subgraph, table in zip(model.subgraphs, subgraphs, strict=True):
        for tensor, at in zip(subgraph.tensors, _tables(data, table, "SubGraph", "tensors"), strict=True):
            position = wanted.get(id(tensor.buffer))
            if position is not None:
                place = _field(data, at, "Tensor", "type")
                assert place is not None and data[place] == tensor.dtype
                found[position].append((place, tensor.dtype))
    return found


def _field(data: bytes, table: int, kind: str, name: str) -> int | None:
    """Returns where a field of a table of a file lies that this process wrote; None where it is not there."""
    slot = next(field.slot for field in schema().tables[kind].fields if field.name == name)
    vtable = table - int.from_bytes(data[table : table + 4], "little", signed=True)
    entry = vtable + 4 + 2 * slot
    if entry >= vtable + int.from_bytes(data[vtable : vtable + 2], "little"):
        return None
    relative = int.from_bytes(data[entry : entry + 2], "little")
    return table + relative if relative else None


def _tables(data: bytes, table: int, kind: str, name: str) -> list[int]:
    """Returns where the tables of a vector lie."""
    place = _field(data, table, kind, name)
    if place is None:
        return []
    vector = place + int.from_bytes(data[place : place + 4], "little")
    count = int.from_bytes(data[vector : vector + 4], "little")
    entries = range(vector + 4, vector + 4 + 4 * count, 4)
    return [entry + int.from_bytes(data[entry : entry + 4], "little") for entry in entries]


class PatchedFiles:
    """Files in which constants are replaced, as many as take little room; the one used last stays longest.

    Args:
        folder: For them.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[Hashable, Patched] = {}
        self._made = 0

    def get(self, key: Hashable, model: Callable[[], Model], narrow: Collection[int] = ()) -> Patched:
        """Returns the file of a key; makes it of a model if there is none any more; see :class:`Patched`."""
        found = self._files.pop(key, None)
        if found is None:
            self._made += 1
            found = Patched(model(), self._folder / f"patched{self._made}.tflite", narrow)
        self._files[key] = found
        while len(self._files) > LEAST_FILES and sum(each.nbytes for each in self._files.values()) > NBYTES:
            self._files.pop(next(iter(self._files))).path.unlink(missing_ok=True)
        return found


class Expansions:
    """What operators read of constants behind DEQUANTIZE, by position of the buffer and encoding.

    Args:
        basis: What values are put into; None where nothing can be.
    """

    def __init__(self, basis: Basis | None) -> None:
        self._basis = basis
        # None where more than values is different.
        self._known: dict[tuple[int, str], Content | None] = {}
        # What is added to biases then, by where they are.
        self._corrected: dict[tuple[int, str], dict[int, Float64]] = {}
        # Weights of layers whose hybrid kernels read integers, by the encoding of those.
        self._hybrids: dict[str, dict[int, Encoding]] = {}

    def unknown(self, choice: Choice) -> Choice:
        """Returns what of a choice was not learned yet."""
        return {
            position: form
            for position, form in encodings_of(choice).items()
            if (position, form.text) not in self._known
        }

    def hybrids(self, choice: Choice) -> dict[int, Encoding]:
        """Returns the weights that a hybrid kernel may read in the file for a choice, all in one encoding."""
        chosen = encodings_of(choice).items()
        texts = Counter(
            form.text for position, form in chosen if position in self._hybrids.get(form.text, ())
        )
        first = [*texts.most_common(1), *((text, 0) for text in self._hybrids)]
        return dict(self._hybrids[first[0][0]]) if first else {}

    def one_file(self, choice: Choice) -> dict[int, Encoding]:
        """Returns what of a choice can be put into one file: kernels read integers of one encoding."""
        hybrids = self.hybrids(choice)
        return {
            position: form
            for position, form in encodings_of(choice).items()
            if position not in self._hybrids.get(form.text, ()) or hybrids.get(position) == form
        }

    def of(self, choice: Choice) -> dict[int, Content]:
        """Returns the new bytes of those buffers whose values alone are others."""
        chosen = encodings_of(choice)
        own = {position: self._known.get((position, form.text)) for position, form in chosen.items()}
        found = {position: content for position, content in own.items() if content is not None}
        corrected: dict[int, Content] = {}
        for position in list(found):
            key = (position, chosen[position].text)
            for place, change in self._corrected[key].items():
                assert self._basis is not None
                origin = self._basis.origin(place)
                half = chosen.get(origin)
                if place in corrected or (half is not None and (half.form.is_integer or origin not in found)):
                    # The bias of several weights, or more than its values is different: it is not known.
                    return {}
                make = functools.partial(
                    self._basis.corrected,
                    place,
                    change,
                    half=half is not None,
                    narrow=found[position].narrow,
                )
                corrected[place] = Content((key, half), make)
        return {**found, **corrected}

    def learn(
        self,
        choice: Choice,
        sites: Mapping[int, Site],
        changes: Sequence[Change],
        corrections: Sequence[Correction],
    ) -> None:
        """Takes in what a pass did to a model.

        Args:
            choice: What it was to do.
            sites: Where operators were before.
            changes: What the pass did.
            corrections: What it added to biases.
        """
        kinds = ("FLOAT32",) if self._basis is None or not self._basis.is_wide else ("FLOAT32", "FLOAT16")
        groups: dict[int, list[WeightChange]] = {}
        for change in changes:
            if isinstance(change, WeightChange):
                groups.setdefault(change.buffer, []).append(change)
        for position, form in encodings_of(choice).items():
            key = (position, form.text)
            self._known[key] = None
            group = groups.get(position, [])
            payload = group[0].payload if group else None
            schemes = {change.scheme for change in group}
            same = all(change.dtype in kinds and change.payload is payload for change in group)
            if not isinstance(payload, WorkPayload) or not same:
                continue
            narrow = schemes == {Reading.HYBRID.value} and _is_switched(payload)
            if schemes != {Reading.DEQUANTIZE.value} and not narrow:
                continue
            make = functools.partial(_bytes_of, _apart(payload), narrow)
            corrected: dict[int, Float64] = {}
            mine = _corrections_of(payload, corrections) if isinstance(payload, QuantizedPayload) else []
            for item in mine:
                site = sites.get(id(item.operator))
                place = None if self._basis is None or site is None else self._basis.biases.get(site)
                if place is None:
                    # It got one, which the file does not have.
                    break
                corrected[place] = item.change
            else:
                self._known[key], self._corrected[key] = Content(form.text, make, narrow), corrected
                if narrow:
                    self._hybrids.setdefault(form.text, {})[position] = form


def _apart(payload: WorkPayload) -> WorkPayload:
    """Returns the same without its readers, who would keep their model in memory."""
    made = copy.copy(payload)
    made.work = replace(payload.work, uses=())
    return made


def _is_switched(payload: WorkPayload) -> bool:
    """Whether each reader takes floats or integers, whatever others read."""
    return isinstance(payload, QuantizedPayload) and all(
        row_of(use.operator).is_layer for use in payload.work.uses
    )


def _bytes_of(payload: WorkPayload, narrow: bool) -> memoryview:
    if narrow and isinstance(payload, QuantizedPayload):
        return payload.blob(payload.work.bits).view()
    return payload.expanded().data.cast("B")


def _corrections_of(payload: QuantizedPayload, corrections: Sequence[Correction]) -> list[Correction]:
    readers = {id(use.operator) for use in payload.work.uses}
    return [item for item in corrections if id(item.operator) in readers]
