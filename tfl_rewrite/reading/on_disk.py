"""A model that was given in memory, as a file for as long as something has to open it by a path."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from tfl_rewrite.files.source import ModelLike, Source
from tfl_rewrite.interpreter.scratch import Scratch, scratch_errors


@contextlib.contextmanager
def on_disk(model: ModelLike) -> Iterator[str | os.PathLike[str]]:
    """Gives a path as it is, and of anything else a source that interpreters can open.

    Written to a temporary folder is only what lies in no file, or in one that was replaced meanwhile.

    Raises:
        FileAccessError, FormatError, UnsupportedError, UsageError: See :meth:`Source.of`.
    """
    if isinstance(model, (str, os.PathLike)) and not isinstance(model, Source):
        yield model
        return
    source = Source.of(model)
    if source.file is not None and source.container.is_at(source.file):
        yield source
        return
    with Scratch() as scratch:
        path = scratch.path / "model.tflite"
        with scratch_errors():
            path.write_bytes(source.container.data)
        yield source.placed(path)
