"""Pictures and sound files as samples: which files, for which input, and what was assumed about them.

Each file is a sample (where a model takes a batch, so many files are one). What the model wants is known only
once it has been opened; what a file declares of it in its metadata comes with the request, because a judge
looks into models through the runtime only.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from pathlib import Path
from typing import Any

import numpy as np

from tfl_rewrite.errors import UsageError
from tfl_rewrite.interpreter.interface import Array, TensorFacts, printable, quoted
from tfl_rewrite.options.frozen import frozen
from tfl_rewrite.options.option import PICTURES, SOUNDS

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


@frozen(kw_only=True)
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


@frozen
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


# What is decoded, by content: a file may not choose another decoder by its content than these.
_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "GIF")
MOST_PIXELS = (1 << 30) // 4 // 3
"""Of a picture; Pillow's own limit, a quarter of a gigabyte of RGB."""
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_WORDS = {1: "grey", 3: "RGB", 4: "RGBA"}
# Where a model takes any height and width: networks with skip connections want multiples of a power of two.
_LONGEST, _MULTIPLE = 512, 32
_LAYOUT_REMEDY = "name its axes with --input-layout, such as NHWC or NCHW"


def layout_of(facts: TensorFacts, given: str | None) -> str:
    """The axes of an input by letter.

    Raises:
        UsageError: The given letters do not fit, or the sizes allow two readings, or none.
    """
    sizes = facts.shape_signature
    what = f"input {quoted(facts.name)} takes {facts.declared}"
    if given is not None:
        if len(given) != len(sizes) or not set("HW") <= set(given):
            raise UsageError(
                f"--input-layout {given} names {len(given)} axes; {what}",
                remedy="name each axis once: N batch, H, W, C channels",
            )
        return given
    if len(sizes) == 4:
        last, first = sizes[3] in _MODES, sizes[1] in _MODES
        choices = [name for name, fits in (("NHWC", last), ("NCHW", first)) if fits]
    elif len(sizes) == 3:
        last, first = sizes[2] in _MODES, sizes[0] in _MODES
        choices = [name for name, fits in (("HWC", last), ("CHW", first)) if fits]
    else:
        choices = []
    if len(choices) == 1:
        return choices[0]
    if choices:
        raise UsageError(f"{what}, which could be {' or '.join(choices)}", remedy=_LAYOUT_REMEDY)
    if len(sizes) == 4 and -1 in (sizes[1], sizes[3]):
        raise UsageError(f"{what}: the number of channels is free", remedy=_LAYOUT_REMEDY)
    raise UsageError(f"{what}, which is not a picture", remedy=f"{NPZ_REMEDY}, or {_LAYOUT_REMEDY}")


class Pictures:
    """Reads pictures for one input.

    Args:
        facts: The input.
        media: How to read them.
        first: The first of them: its size serves where the model takes any.

    Attributes:
        assumed: What was assumed of the model, as in `PLAUSIBLE`; None where the user or the model said it.

    Raises:
        UsageError: The input takes no pictures, Pillow is missing, or ``first`` cannot be read.
    """

    def __init__(self, facts: TensorFacts, media: Media, first: Path) -> None:
        check_numeric(facts, "pictures")
        self._facts = facts
        self.assumed: str | None = None
        self._layout = layout_of(facts, media.layout)
        sizes = dict(zip(self._layout, facts.shape_signature, strict=True))
        if "T" in sizes:
            raise UsageError(f"--input-layout {self._layout} is for sound", remedy=_LAYOUT_REMEDY)
        self.batch = max(1, sizes.get("N", 1))
        self._channels = 3 if sizes.get("C") == -1 else sizes.get("C", 1)
        if self._channels not in _MODES:
            raise UsageError(
                f"input {quoted(facts.name)} takes {self._channels} channels; pictures have 1, 3 or 4",
                remedy=f"{NPZ_REMEDY}, or {_LAYOUT_REMEDY}",
            )
        self._free = -1 in (sizes["H"], sizes["W"])
        height, width = _free_size(first) if self._free else (0, 0)
        self._height = height if sizes["H"] == -1 else sizes["H"]
        self._width = width if sizes["W"] == -1 else sizes["W"]
        whole = {"N": self.batch, "H": self._height, "W": self._width, "C": self._channels}
        self.shape = tuple(whole[letter] for letter in self._layout)
        check_size(facts, self.shape)
        self._scale, self._offset, self._told = self._mapping(media)

    def _mapping(self, media: Media) -> tuple[Array | None, Array, str]:
        """What pixels are multiplied with and what is added; None for pixels as they are."""
        dtype, none = self._facts.dtype, np.zeros(1)
        declared = media.declared.get(self._facts.tensor)
        if media.value_range is None and dtype in ("uint8", "int8"):
            # What a uint8 model takes; its int8 twin takes the same less 128.
            shifted = dtype == "int8"
            return None, np.full(1, -128.0 if shifted else 0.0), "raw pixels" + (" - 128" if shifted else "")
        if media.value_range is None and declared is not None and declared.mean:
            mean, std = np.array(declared.mean), np.array(declared.std)
            if mean.size in (1, self._channels) and std.size in (1, self._channels):
                told = f"(pixel - {_list(declared.mean)}) / {_list(declared.std)}, as its metadata says"
                return 1.0 / std, -mean / std, told
        if media.value_range is None and not dtype.startswith("float") and not self._facts.is_quantized:
            return None, none, "raw pixels"
        low, high = media.value_range or media.assume
        told = f"0..255 mapped to {low:g}..{high:g}"
        if media.value_range is None:
            self.assumed = PIXEL_RANGE
            told += " (assumed; --input-range LO,HI changes that)"
        return np.array([(high - low) / 255.0]), np.array([low]), told

    def sample(self, files: Sequence[Path]) -> Array:
        """One sample of a batch of files, in the shape and type of the input."""
        stacked = np.stack([self._picture(path) for path in files])
        axes = {"N": 0, "H": 1, "W": 2, "C": 3}
        # An axis that the layout lacks has one element: no batch, or grey without channels.
        lacking = tuple(axes[letter] for letter in "NC" if letter not in self._layout)
        kept = [letter for letter in "NHWC" if letter in self._layout]
        moved = np.squeeze(stacked, axis=lacking).transpose([kept.index(letter) for letter in self._layout])
        if self._scale is not None:
            return to_input(moved, self._facts)
        # Pixels as they are, in a type that holds them.
        return np.asarray(moved, dtype=np.dtype(self._facts.dtype))

    def _picture(self, path: Path) -> Array:
        """``[height, width, channels]``, mapped."""
        pixels = read_picture(path, self._channels, (self._height, self._width)).astype(np.float64)
        return pixels + self._offset if self._scale is None else pixels * self._scale + self._offset

    def note(self, count: int) -> str:
        """What was done to the pictures."""
        size = f"{self._width}x{self._height}" + (" (free in the model)" if self._free else "")
        text = f"{count} picture{'' if count == 1 else 's'} as {_WORDS[self._channels]} {size} {self._layout}"
        if self.batch > 1:
            text += f", {self.batch} a sample"
        return f"{text}: {self._told}"


def check_pillow() -> None:
    """Raises a UsageError where Pillow is missing."""
    _image()


def read_picture(path: Path, channels: int, size: tuple[int, int] | None) -> Array:
    """The first frame of a picture, upright, as uint8 ``[height, width, channels]``.

    Args:
        path: The file.
        channels: 1 (grey), 3 (RGB) or 4 (RGBA).
        size: Height and width that it is resized to, bilinear over all pixels that fall together; None
            leaves it as it is.

    Raises:
        UsageError: Pillow is missing, or the file is damaged, too large, or no such picture.
    """
    module = _image()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = _open(path)
            if image.mode.startswith("I"):
                # 16 bits a pixel, which conversion would clip to white.
                high = (np.asarray(image) >> 8).clip(0, 255)
                image = module.fromarray(high.astype(np.uint8))
            image = image.convert(_MODES[channels])
            if size is not None and image.size != (size[1], size[0]):
                image = image.resize((size[1], size[0]), module.Resampling.BILINEAR)
            return np.asarray(image, dtype=np.uint8).reshape(image.size[1], image.size[0], channels)
    except UsageError:
        raise
    except Exception as error:
        raise _unreadable(path, error) from error


def _open(path: Path) -> Any:
    module = _image()
    from PIL import ImageOps

    try:
        with warnings.catch_warnings():
            # What Pillow only warns of below its limit is far beyond any model's input.
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", module.DecompressionBombWarning)
            with module.open(path, formats=_FORMATS) as image:
                # Before a pixel is decoded, and whatever limit Pillow was told.
                if image.width * image.height > MOST_PIXELS:
                    raise module.DecompressionBombError
                image.load()
                return ImageOps.exif_transpose(image)
    except Exception as error:
        # A decoder raises whatever it likes on a damaged file.
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> UsageError:
    if type(error).__name__.startswith("DecompressionBomb"):
        limit = f"{MOST_PIXELS / 1e6:.0f}"
        return UsageError(f"has more than {limit} million pixels", file=path, remedy="shrink the picture")
    if type(error).__name__ == "UnidentifiedImageError":
        why = f"its content is none of {', '.join(_FORMATS)}"
    else:
        why = printable(str(error)) or type(error).__name__
    return UsageError(f"cannot be read as a picture: {why}", file=path, remedy="remove it, or save it again")


def _image() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise UsageError("reading pictures needs Pillow", remedy=INSTALL) from error
    return Image


def _free_size(first: Path) -> tuple[int, int]:
    """Height and width of a picture, shrunk and rounded to what networks take."""
    width, height = _open(first).size
    shrink = min(1.0, _LONGEST / max(width, height))
    rounded = [max(_MULTIPLE, int(size * shrink) // _MULTIPLE * _MULTIPLE) for size in (height, width)]
    return rounded[0], rounded[1]


def _list(values: Sequence[float]) -> str:
    texts = [f"{value:g}" for value in values]
    return texts[0] if len(set(texts)) == 1 else f"[{', '.join(texts)}]"
