"""The file that a search puts values into: that of the original, with room for all that may be tried."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tfl_rewrite.editing.editor import Editor
from tfl_rewrite.files.atomic import FileSink
from tfl_rewrite.files.layout import Layout
from tfl_rewrite.files.source import Source, layout
from tfl_rewrite.flatbuf.writer import Packing
from tfl_rewrite.interpreter.scratch import scratch_errors
from tfl_rewrite.kernels.table import row_of
from tfl_rewrite.model import dtypes
from tfl_rewrite.model.blob import Blob, ComputedBlob
from tfl_rewrite.model.graph import Graph
from tfl_rewrite.model.ir import Model, Tensor
from tfl_rewrite.options.frozen import frozen
from tfl_rewrite.weights.biases import BIAS, Uses, bias_of
from tfl_rewrite.weights.candidates import find_candidates
from tfl_rewrite.weights.expansion import expand_constants

Float64 = npt.NDArray[np.float64]


@frozen
class Content:
    """New bytes of a buffer.

    Attributes:
        key: Equal for equal bytes of the same buffer.
        make: Returns them.
        narrow: Whether they are integers, of which there are fewer bytes; see :class:`Patched`.
    """

    key: Hashable
    make: Callable[[], bytes | bytearray | memoryview]
    narrow: bool = False


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


Site = tuple[int, int]
"""Where an operator is: positions of the subgraph in the model, and in it."""


@frozen
class Basis:
    """A file that values are put into; it computes what the original does, with buffers where that has them.

    What DEQUANTIZE makes of float16 and DENSIFY of what is sparse is constant in it, as many bytes as floats
    take; and each layer has a bias of its own, so that those of others stay when one takes a mean error back.

    Attributes:
        source: The file.
        biases: Of layers of the original: the positions of the buffers of their biases.
        copies: The positions of further buffers that hold the same as one.
        halves: Positions of the buffers that held float16, or only what is not zero.
        blobs: The biases.
    """

    source: Source
    biases: Mapping[Site, int]
    copies: Mapping[int, Sequence[int]]
    halves: Collection[int]
    blobs: Mapping[int, Blob]

    @classmethod
    def of(cls, source: Source, path: Path) -> Basis | None:
        """Makes the file, where it is not the original; None where buffers would lie otherwise in it."""
        model = source.model()
        sites = sites_of(model)
        halves = _widened(model)
        positions = {id(buffer): place for place, buffer in enumerate(model.buffers)}
        biases: dict[Site, int] = {}
        copies: dict[int, list[int]] = {}
        uses, editor = Uses(model), Editor(model)
        for subgraph, operator in model.operators():
            bias = bias_of(operator) if row_of(operator).is_layer else None
            blob = None if bias is None or bias.dtype != dtypes.FLOAT32.value else bias.buffer.blob
            if bias is None or blob is None or not bias.is_constant:
                continue
            place = positions[id(bias.buffer)]
            if not uses.are_alone(bias, bias):
                copies.setdefault(place, []).append(len(model.buffers))
                place = len(model.buffers)
                # One that is computed is stored for itself.
                buffer = model.add_buffer(ComputedBlob(blob.nbytes, blob.write_to))
                own = Tensor(bias.name, bias.shape, bias.dtype, buffer)
                operator.inputs[BIAS] = editor.add_tensor(subgraph, own)
            biases[sites[id(operator)]] = place
        sizes = [buffer.nbytes for buffer in model.buffers]
        if copies or halves:
            editor.finish()
            written(model, path)
            source = Source.open(path)
        buffers = source.model().buffers
        if sizes != [buffer.nbytes for buffer in buffers]:
            return None
        blobs = {place: buffers[place].blob for place in biases.values()}
        return cls(source, biases, copies, halves, {at: blob for at, blob in blobs.items() if blob})

    @property
    def is_wide(self) -> bool:
        """Whether float16 was made float32."""
        return bool(self.halves)

    def origin(self, place: int) -> int:
        """Returns which buffer of the original holds a bias."""
        return next((origin for origin, copies in self.copies.items() if place in copies), place)

    def spread(self, contents: Contents) -> Contents:
        """Returns the new bytes of all buffers: what one holds goes for its copies, but for those named."""
        copies = {
            place: content
            for position, content in contents.items()
            for place in self.copies.get(position, ())
        }
        return {**copies, **contents}

    def corrected(self, place: int, change: Float64, *, half: bool, narrow: bool) -> memoryview:
        """Returns a bias that takes the mean error of its weight back.

        Args:
            place: Of its buffer.
            change: What is added.
            half: Whether it is stored as float16 now.
            narrow: Whether a hybrid kernel reads it: those get floats.
        """
        old = np.frombuffer(self.blobs[place].view(), "<f4")
        old = old.astype("<f2") if half else old
        # What others read as well is copied as floats.
        stays = (half or place in self.halves) and self.origin(place) == place and not narrow
        with np.errstate(over="ignore"):
            made = (old.astype(np.float64) + change.reshape(old.shape)).astype("<f2" if stays else "<f4")
        return memoryview((made if np.isfinite(made).all() else old).astype("<f4").tobytes())


def sites_of(model: Model) -> dict[int, Site]:
    """Returns where operators are, by id."""
    return {
        id(operator): (number, place)
        for number, subgraph in enumerate(model.subgraphs)
        for place, operator in enumerate(subgraph.operators)
    }


def _widened(model: Model) -> set[int]:
    """Makes float16 behind DEQUANTIZE, and what is sparse, float32 in the same buffers; returns where."""
    items, _ = find_candidates(model, Graph.of(model))
    items = [item for item in items if item.expand is not None or item.dense is not None]
    homes = {id(item.value): item.stored.buffer for item in items}
    if not homes:
        return set()
    before, editor = len(model.buffers), Editor(model)
    for item in items:
        if item.dense is not None:
            item.stored.buffer.blob = item.dense
            item.make_dense(editor)
    editor.finish()
    expand_constants(model, lambda tensor: tensor.dtype_name == "FLOAT16")
    for _, tensor in model.tensors():
        home = homes.get(id(tensor))
        if home is not None and tensor.is_constant and home.blob is None:
            home.blob, tensor.buffer = tensor.buffer.blob, home
    used = {*model.holders(), *model.pinned}
    model.buffers[before:] = [buffer for buffer in model.buffers[before:] if id(buffer) in used]
    kept = {id(buffer) for buffer in homes.values()}
    return {place for place, buffer in enumerate(model.buffers) if id(buffer) in kept}
