"""Pictures and sound files as samples: which files, for which input, and what was assumed about them.

Each file is a sample (where a model takes a batch, so many files are one). What the model wants is known only
once it has been opened; what a file declares of it in its metadata comes with the request, because a judge
looks into models through the runtime only.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import FileAccessError, UsageError
from .interface import EntryPoint, Interface, TensorFacts, quoted
from .samples import Array, Step

if TYPE_CHECKING:
    from .pictures import Pictures
    from .sound import Sounds

PICTURES = frozenset([".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif"])
SOUNDS = frozenset([".wav", ".flac", ".ogg"])
NPZ_REMEDY = "give a .npz with an array for each input"
INSTALL = "install it with: pip install 'tfl-rewrite[media]'"
MOST_VALUES = 1 << 26
"""Of a sample, or of the sound that it is made of: eight bytes each while it is made."""
MOST_FILES = 100_000
_IN_MEMORY_NBYTES = 64 << 20

PIXEL_RANGE, SOUND_LEVEL = "pixel range assumed", "sound level assumed"
PLAUSIBLE: Mapping[str, tuple[tuple[float, float], ...]] = {
    PIXEL_RANGE: ((-1.0, 1.0), (0.0, 1.0), (0.0, 255.0)),
    SOUND_LEVEL: ((-1.0, 1.0), (-32768.0, 32768.0)),
}
"""What pixels 0 and 255, or full scale, may mean to a model that does not say; the first is taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """What a model's own metadata says of an input.

    Attributes:
        mean: Subtracted from each pixel of 0..255, one for all channels or one for each; empty if unsaid.
        std: What the difference is divided by.
        sample_rate: Of sound, in Hz.
    """

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    sample_rate: int | None = None


@dataclass(frozen=True, slots=True)
class Media:
    """A picture, a sound file or a folder of them, and how it is to be read; goes wherever a path goes.

    Attributes:
        path: The file or folder.
        value_range: What pixels 0 and 255, or samples of -1 and 1, become. None: as the model's metadata
            says, else ``assume``; 8-bit inputs take the pixels as they are.
        layout: The axes of the input by letter: ``N`` batch, ``H``, ``W``, ``C`` channels, ``T`` time.
            None: told from the sizes.
        sample_rate: What sound is resampled to, in Hz. None: as the model's metadata says, else as it is.
        declared: By name of the input's tensor.
        assume: What is taken where neither the user nor the model says a range; see `PLAUSIBLE`.
    """

    path: Path
    value_range: tuple[float, float] | None = None
    layout: str | None = None
    sample_rate: int | None = None
    declared: Mapping[str, Declared] = field(default_factory=dict)
    assume: tuple[float, float] = (-1.0, 1.0)

    def __fspath__(self) -> str:
        return os.fspath(self.path)

    def files(self) -> list[Path]:
        """The media files, those of a folder in order of their names."""
        return media_files(self.path) if self.path.is_dir() else [self.path]


def is_media(path: Path) -> bool:
    """Whether a file's name says that it is a picture or sound."""
    return path.suffix.lower() in PICTURES | SOUNDS


def media_files(folder: Path) -> list[Path]:
    """The pictures and sound files in a folder, in order of their names."""
    return sorted(child for child in folder.iterdir() if is_media(child) and child.is_file())


def with_ranges(
    inputs: Sequence[str | os.PathLike[str]], assumed: Sequence[str]
) -> list[tuple[str | os.PathLike[str], ...]]:
    """The same inputs with each other range that is plausible where one was assumed.

    Args:
        inputs: Files and folders; the media among them as `Media`.
        assumed: What was assumed, as in `PLAUSIBLE`.
    """
    others = dict.fromkeys(bounds for what in assumed for bounds in PLAUSIBLE.get(what, ())[1:])
    return [
        tuple(replace(path, assume=bounds) if isinstance(path, Media) else path for path in inputs)
        for bounds in others
    ]


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
    from . import pictures as decoder
    from . import sound

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


def to_input(values: Array, facts: TensorFacts) -> Array:
    """Real values in the type of an input: quantized where it is, else rounded for integers."""
    dtype = np.dtype(facts.dtype)
    if dtype.kind == "f":
        return values.astype(dtype)
    if facts.is_quantized:
        zero = facts.zero_points[0] if facts.zero_points else 0
        values = values / facts.scales[0] + zero
    limits = np.iinfo(dtype)
    # The largest int64 is no float64: the next above it would wrap to the smallest.
    highest = float(limits.max)
    highest = highest if int(highest) <= limits.max else float(np.nextafter(highest, 0.0))
    return np.clip(np.rint(values.astype(np.float64)), float(limits.min), highest).astype(dtype)


def check_size(facts: TensorFacts, shape: Sequence[int]) -> None:
    """Refuses inputs that are larger than any picture or sound that a network takes: sizes come from files.

    Raises:
        UsageError: It is one.
    """
    values = math.prod(shape)
    if values > MOST_VALUES:
        raise UsageError(
            f"input {quoted(facts.name)} takes {facts.declared}: {values:,} values a sample, more than "
            f"{MOST_VALUES:,}",
            remedy=NPZ_REMEDY,
        )


def check_numeric(facts: TensorFacts, kind: str) -> None:
    """Refuses inputs of other types than numbers.

    Raises:
        UsageError: It is one.
    """
    if facts.dtype == "string" or np.dtype(facts.dtype).kind not in "fiu":
        raise UsageError(f"input {quoted(facts.name)} takes {facts.declared}, not {kind}", remedy=NPZ_REMEDY)
