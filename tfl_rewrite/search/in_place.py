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
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tfl_rewrite.editing.base import Change
from tfl_rewrite.files.atomic import FileSink
from tfl_rewrite.files.layout import Layout
from tfl_rewrite.files.source import layout
from tfl_rewrite.flatbuf.writer import Packing
from tfl_rewrite.interpreter.scratch import scratch_errors
from tfl_rewrite.kernels.operators import Reading
from tfl_rewrite.model.blob import Blob, MappedBlob
from tfl_rewrite.model.ir import Model
from tfl_rewrite.search.units import Choice, encodings_of
from tfl_rewrite.weights.biases import Correction, bias_of
from tfl_rewrite.weights.payloads import QuantizedPayload, WeightChange, WorkPayload

NBYTES = 128 << 20
LEAST_FILES = 4
"""Of files in which constants are replaced: each part of the inputs has its own, and opened ones."""


@dataclass(frozen=True, slots=True)
class Content:
    """New bytes of a buffer.

    Attributes:
        key: Equal for equal bytes of the same buffer.
        make: Returns them.
    """

    key: Hashable
    make: Callable[[], bytes | bytearray | memoryview]


Contents = Mapping[int, Content]
"""By position of the buffer."""


def written(model: Model, path: Path, packing: Packing | None = None) -> Layout:
    """Writes a file that nobody but this process and its children looks at; one of that name goes.

    Args:
        model: Not changed.
        path: In a temporary folder: nothing is done to have the file outlive the system.
        packing: As for :func:`layout`.
    """
    made = layout(model, packing=packing)
    path.unlink(missing_ok=True)
    with scratch_errors(), open(path, "xb", opener=_private) as file:
        made.write_to(FileSink(file.fileno()))
    return made


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


class Patched:
    """A file in which the bytes of buffers are replaced in place.

    Args:
        model: The file is written as it is; what it did not change of the file that it comes from can be
            replaced.
        path: The file.
    """

    def __init__(self, model: Model, path: Path) -> None:
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

    def takes(self, contents: Contents) -> bool:
        """Whether these buffers can be replaced."""
        return contents.keys() <= self._blobs.keys()

    def hold(self, contents: Contents) -> None:
        """Replaces these buffers, and puts back all others.

        Args:
            contents: Each has as many bytes as the buffer.
        """
        with scratch_errors(), open(self.path, "r+b") as file:
            for position in self._held.keys() - contents.keys():
                os.pwrite(file.fileno(), self._blobs[position].view(), self._offsets[position])
            for position, content in contents.items():
                if self._held.get(position) != content.key:
                    data = content.make()
                    assert len(data) == self._blobs[position].nbytes
                    os.pwrite(file.fileno(), data, self._offsets[position])
        self._held = {position: content.key for position, content in contents.items()}


class PatchedFiles:
    """Files in which constants are replaced, as many as take little room; the one used last stays longest.

    Args:
        folder: For them.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[Hashable, Patched] = {}
        self._made = 0

    def get(self, key: Hashable, model: Callable[[], Model]) -> Patched:
        """Returns the file of a key; makes it of a model if there is none any more."""
        found = self._files.pop(key, None)
        if found is None:
            self._made += 1
            found = Patched(model(), self._folder / f"patched{self._made}.tflite")
        self._files[key] = found
        while len(self._files) > LEAST_FILES and sum(each.nbytes for each in self._files.values()) > NBYTES:
            self._files.pop(next(iter(self._files))).path.unlink(missing_ok=True)
        return found


class Expansions:
    """What operators read of constants behind DEQUANTIZE, by position of the buffer and encoding."""

    def __init__(self) -> None:
        # None where more than values is different.
        self._known: dict[tuple[int, str], Contents | None] = {}

    def unknown(self, choice: Choice) -> Choice:
        """Returns what of a choice was not learned yet."""
        return {
            position: form
            for position, form in encodings_of(choice).items()
            if (position, form.text) not in self._known
        }

    def of(self, choice: Choice) -> dict[int, Content]:
        """Returns the new bytes of those buffers whose values alone are others."""
        found: dict[int, Content] = {}
        for position, form in encodings_of(choice).items():
            known = self._known.get((position, form.text)) or {}
            if known.keys() & found.keys():
                # The bias of one layer, stored otherwise itself: what that comes to is not known.
                return {}
            found.update(known)
        return found

    def learn(
        self,
        choice: Choice,
        model: Model,
        before: Sequence[Blob | None],
        changes: Sequence[Change],
        corrections: Sequence[Correction],
    ) -> None:
        """Takes in what a pass did to a model.

        Args:
            choice: What it was to do.
            model: As the pass left it.
            before: The bytes of its buffers before; others were added behind them.
            changes: What the pass did.
            corrections: What it added to biases.
        """
        positions = {id(buffer): position for position, buffer in enumerate(model.buffers[: len(before)])}
        groups: dict[int, list[WeightChange]] = {}
        for change in changes:
            if isinstance(change, WeightChange):
                groups.setdefault(change.buffer, []).append(change)
        for position, form in encodings_of(choice).items():
            key = (position, form.text)
            self._known[key] = None
            group = groups.get(position, [])
            payload = group[0].payload if group else None
            plain = all(
                change.scheme == Reading.DEQUANTIZE.value
                and change.dtype == "FLOAT32"
                and change.payload is payload
                for change in group
            )
            if not isinstance(payload, WorkPayload) or not plain:
                continue
            found = {position: Content(form.text, functools.partial(_bytes_of, _apart(payload)))}
            mine = _corrections_of(payload, corrections) if isinstance(payload, QuantizedPayload) else []
            for item in mine:
                bias = bias_of(item.operator)
                place = None if bias is None or not bias.is_constant else positions.get(id(bias.buffer))
                blob = None if place is None else model.buffers[place].blob
                if place is None or blob is None:
                    # It got another one, which the file does not have.
                    break
                found[place] = Content(key, blob.view)
            else:
                self._known[key] = found


def _apart(payload: WorkPayload) -> WorkPayload:
    """Returns the same without its readers, who would keep their model in memory."""
    made = copy.copy(payload)
    made.work = replace(payload.work, uses=())
    return made


def _bytes_of(payload: WorkPayload) -> memoryview:
    return payload.expanded().data.cast("B")


def _corrections_of(payload: QuantizedPayload, corrections: Sequence[Correction]) -> list[Correction]:
    readers = {id(use.operator) for use in payload.work.uses}
    return [item for item in corrections if id(item.operator) in readers]
