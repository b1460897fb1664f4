"""Pictures and sound files as samples: which files, for which input, and what was assumed about them.

Each file is a sample (where a model takes a batch, so many files are one). What the model wants is known only
once it has been opened; what a file declares of it in its metadata comes with the request, because a judge
looks into models through the runtime only.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from tfl_rewrite.errors import UsageError
from tfl_rewrite.interpreter.interface import Array, TensorFacts, quoted

PICTURES = frozenset([".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif"])
SOUNDS = frozenset([".wav", ".flac", ".ogg"])
NPZ_REMEDY = "give a .npz with an array for each input"
INSTALL = "install it with: pip install 'tfl-rewrite[media]'"
MOST_VALUES = 1 << 26
"""Of a sample, or of the sound that it is made of: eight bytes each while it is made."""

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
