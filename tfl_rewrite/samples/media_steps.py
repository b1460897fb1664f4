"""Calls made of pictures and sound files: which entry point takes them, and as what."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tfl_rewrite.errors import FileAccessError, UsageError
from tfl_rewrite.interpreter.interface import Array, EntryPoint, Interface, quoted
from tfl_rewrite.samples.made import Step

if TYPE_CHECKING:
    from tfl_rewrite.samples.pictures import Pictures
    from tfl_rewrite.samples.sound import Sounds
from tfl_rewrite.samples.media import NPZ_REMEDY, PICTURES, Media

MOST_FILES = 100_000
_IN_MEMORY_NBYTES = 64 << 20


def media_steps(interface: Interface, media: Media) -> tuple[list[Step], list[str], list[str]]:
    """One call for each file (or batch of files) of every entry point that takes such a thing.

    Returns:
        The calls, notes on how they were made, and what was assumed, as in `PLAUSIBLE`.

    Raises:
        UsageError: No entry point has exactly one input that fits, a file cannot be read, or what reads
            such files is not installed.
    """
    files = media.files()
    if len(files) > MOST_FILES:
        raise UsageError(
            f"holds {len(files):,} files, more than {MOST_FILES:,}", file=media.path, remedy="give fewer"
        )
    pictures = [path for path in files if path.suffix.lower() in PICTURES]
    if pictures and len(pictures) < len(files):
        raise UsageError(
            f"holds {len(pictures)} pictures and {len(files) - len(pictures)} sound files",
            file=media.path,
            remedy="put them in two folders",
        )
    from tfl_rewrite.samples import pictures as decoder
    from tfl_rewrite.samples import sound

    (decoder if pictures else sound).check_installed()
    steps: list[Step] = []
    notes: list[str] = []
    assumed: list[str] = []
    refused: list[UsageError] = []
    reader = decoder.Pictures if pictures else sound.Sounds
    for entry in interface.entry_points:
        try:
            own, note, guess = _entry_steps(entry, media, files, reader)
        except _DoesNotFit as reason:
            refused.append(reason)
            continue
        steps += own
        notes += [] if note in notes else [note]
        assumed += [] if guess is None or guess in assumed else [guess]
    if not steps:
        reasons = "; ".join(dict.fromkeys(reason.what for reason in refused))
        raise UsageError(reasons, file=media.path, remedy=refused[0].remedy)
    return steps, notes, assumed


class _DoesNotFit(UsageError):
    """An entry point takes no such file; another may."""


def _entry_steps(
    entry: EntryPoint, media: Media, files: Sequence[Path], opened: Callable[..., Pictures | Sounds]
) -> tuple[list[Step], str, str | None]:
    if len(entry.inputs) != 1:
        listed = ", ".join(f"{quoted(facts.name)} {facts.declared}" for facts in entry.inputs)
        raise _DoesNotFit(
            f"pictures and sound serve models with one input; {entry.label} takes {listed or 'none'}",
            remedy=NPZ_REMEDY,
        )
    facts = entry.inputs[0]
    try:
        reader = opened(facts, media, files[0])
    except UsageError as error:
        if error.file is not None:
            raise  # A file is at fault, not the model.
        raise _DoesNotFit(error.what, remedy=error.remedy) from error
    batch = reader.batch
    count = -(-len(files) // batch)
    block = _block((count, *reader.shape), np.dtype(facts.dtype))
    for number in range(count):
        # The last batch is filled up with the first files.
        chosen = [files[(number * batch + place) % len(files)] for place in range(batch)]
        block[number] = reader.sample(chosen)
    values = [np.asarray(block[number]) for number in range(count)]
    steps = [
        Step(signature=entry.key, values=((facts.name, value),), real=True, shapes=None) for value in values
    ]
    return steps, reader.note(len(files)), reader.assumed


def _block(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Room for all samples: in memory, or, when large, in a file that is gone when they are.

    Raises:
        FileAccessError: There is no room for the file.
    """
    nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if nbytes <= _IN_MEMORY_NBYTES:
        return np.empty(shape, dtype=dtype)
    with tempfile.TemporaryFile(prefix="tfl-rewrite-media-") as file:
        try:
            # Now, because a mapped file that runs out of room later ends the process.
            os.posix_fallocate(file.fileno(), 0, nbytes)
        except OSError as error:
            raise FileAccessError(
                f"no room for the samples, {nbytes} bytes: {error.strerror or error}",
                file=tempfile.gettempdir(),
                remedy="name another folder with TMPDIR, or give fewer files",
            ) from error
        return np.memmap(file, dtype=dtype, mode="r+", shape=shape)
