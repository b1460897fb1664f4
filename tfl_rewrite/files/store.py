"""Load and save: the way from a file to a model and back."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from tfl_rewrite.files.atomic import PLAIN, access_of, atomic_write
from tfl_rewrite.files.layout import Layout, differs, planned
from tfl_rewrite.files.source import ModelLike, Source, origin_of
from tfl_rewrite.model.ir import Model

# The writer is loaded when something is written: it takes longer to import than a small file to read.
if TYPE_CHECKING:
    from tfl_rewrite.flatbuf.writer import Packing


def load(source: ModelLike) -> Model:
    """Reads a ``.tflite`` file.

    A file that is given by its path is mapped, not copied: constants are read when they are used.

    Args:
        source: A path, bytes, a file open for reading, or a model, of which this makes another.

    Raises:
        FileAccessError: It cannot be read.
        FormatError: It is damaged; the error names the place.
        UnsupportedError: It is of a schema version other than 3.

    Example:
        >>> model = tfl_rewrite.load("model.tflite")
        >>> [operator.code.name for operator in model.subgraphs[0].operators][-2:]
        ['FULLY_CONNECTED', 'SOFTMAX']
    """
    return Source.of(source).model()


def is_changed(model: Model) -> bool:
    """Whether a model differs, in any field or byte, from the file that it was loaded from."""
    origin = origin_of(model)
    return origin is None or differs(model, origin)


def layout(model: Model, *, packing: Packing | None = None) -> Layout:
    """Plans the file of a model; nothing is written yet. See :func:`tfl_rewrite.files.layout.planned`."""
    return planned(model, origin_of(model), packing=packing)


def save(
    model: Model,
    target: str | os.PathLike[str],
    *,
    force: bool = False,
    packing: Packing | None = None,
) -> int:
    """Writes a model to a file, atomically; it is not verified (see :func:`tfl_rewrite.rewrite`).

    Args:
        model: An unchanged model is written byte for byte as it was loaded.
        target: The file to make.
        force: Whether it may exist; it may be the file that the model was loaded from. Who may read it is as
            for that file.
        packing: As for :func:`layout`; the ``packing`` of a pass's result.

    Returns:
        The size of the file in bytes.

    Raises:
        UsageError: The target is a directory, exists, or its folder does not.
        UnsupportedError: See :func:`layout`.
        FileAccessError: It cannot be written, or the file that the model came from was changed meanwhile.

    Example:
        >>> model = tfl_rewrite.load("model.tflite")
        >>> model.description = "digits"
        >>> tfl_rewrite.save(model, "described.tflite") > 0
        True
    """
    made = layout(model, packing=packing)
    origin = origin_of(model)
    access = PLAIN if origin is None else access_of(origin.container.path)
    with atomic_write(target, force=force, nbytes=made.nbytes, access=access) as output:
        made.write_to(output.sink)
        if origin is not None:
            origin.container.ensure_unchanged()
        output.publish()
    return made.nbytes
