"""Sound as inputs: decoded by libsndfile, one channel, resampled, cut or padded to the model's length."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfl_rewrite.errors import UsageError
from tfl_rewrite.interpreter.interface import Array, TensorFacts, printable, quoted
from tfl_rewrite.samples.media import (
    INSTALL,
    MOST_VALUES,
    NPZ_REMEDY,
    SOUND_LEVEL,
    Media,
    check_numeric,
    check_size,
    to_input,
)

# Where a model takes any length: more than this is cut.
_LONGEST_SECONDS = 30.0
_RATES = (1000, 768000)
# Resampling: zero crossings on each side and shape of the window; 80 dB below the signal outside the band.
_CROSSINGS, _BETA = 16, 8.0
_CELLS = 1 << 20
_MOST_CELLS = 1 << 32
"""A minute or so; ten seconds at 48 kHz take a five-hundredth of it."""
_LAYOUT_REMEDY = "name its axes with --input-layout, such as NT (T is time)"


def layout_of(facts: TensorFacts, given: str | None) -> str:
    """The axes of an input by letter; every axis but ``T`` and ``N`` must have one element.

    Raises:
        UsageError: The given letters do not fit, or the sizes do not tell which axis is time.
    """
    sizes = facts.shape_signature
    what = f"input {quoted(facts.name)} takes {facts.declared}"
    if given is not None:
        if len(given) != len(sizes) or "T" not in given:
            raise UsageError(
                f"--input-layout {given} names {len(given)} axes; {what}",
                remedy="name each axis once: N batch, T time, C channels",
            )
        return given
    free = [axis for axis, size in enumerate(sizes) if size != 1]
    if len(free) == 2 and free[0] == 0 and sizes[0] == -1:
        free = free[1:]
    if len(free) > 1 or not sizes:
        raise UsageError(f"{what}, which is not sound", remedy=f"{NPZ_REMEDY}, or {_LAYOUT_REMEDY}")
    time = free[0] if free else len(sizes) - 1
    rest = iter("NC" + "_" * len(sizes))
    return "".join("T" if axis == time else next(rest) for axis in range(len(sizes)))


class Sounds:
    """Reads sound files for one input.

    Args:
        facts: The input.
        media: How to read them.
        first: The first of them: its length serves where the model takes any.

    Attributes:
        assumed: What was assumed of the model, as in `PLAUSIBLE`; None where the user or the type says it.

    Raises:
        UsageError: The input takes no sound, soundfile is missing, or ``first`` cannot be read.
    """

    def __init__(self, facts: TensorFacts, media: Media, first: Path) -> None:
        check_numeric(facts, "sound")
        self._facts = facts
        layout = layout_of(facts, media.layout)
        sizes = dict(zip(layout, facts.shape_signature, strict=True))
        if any(size not in (-1, 1) for letter, size in sizes.items() if letter not in "NT"):
            raise UsageError(
                f"input {quoted(facts.name)} takes {facts.declared}: more than one channel", remedy=NPZ_REMEDY
            )
        declared = media.declared.get(facts.tensor)
        said = declared.sample_rate if declared is not None else None
        self._rate = media.sample_rate or said
        self._rate_from_model = media.sample_rate is None and said is not None
        self._range = media.value_range
        real = np.dtype(facts.dtype).kind == "f"
        self._assume = media.assume if real else (-1.0, 1.0)
        self.assumed = SOUND_LEVEL if real and media.value_range is None else None
        self.batch = max(1, sizes.get("N", 1))
        self._free = sizes["T"] == -1
        self._length = _free_length(first, self._rate) if self._free else sizes["T"]
        self.shape = tuple({"N": self.batch, "T": self._length}.get(letter, 1) for letter in layout)
        check_size(facts, self.shape)
        self._batch_axis = layout.find("N")
        self._rates: set[int] = set()
        if np.dtype(facts.dtype).kind == "u" and not facts.is_quantized and media.value_range is None:
            raise UsageError(
                f"input {quoted(facts.name)} takes {facts.declared}: which values stand for silence and "
                "full scale is unknown",
                remedy="say so with --input-range LO,HI",
            )

    def sample(self, files: Sequence[Path]) -> Array:
        """One sample of a batch of files, in the shape and type of the input."""
        shape = tuple(1 if axis == self._batch_axis else size for axis, size in enumerate(self.shape))
        waves = [self._wave(path).reshape(shape) for path in files]
        stacked = waves[0] if self._batch_axis < 0 else np.concatenate(waves, axis=self._batch_axis)
        return to_input(stacked, self._facts)

    def _wave(self, path: Path) -> Array:
        wave, rate = read_sound(path, self._length, self._rate)
        self._rates.add(rate)
        low, high = self._bounds()
        return (wave + 1.0) * ((high - low) / 2.0) + low

    def _bounds(self) -> tuple[float, float]:
        if self._range is not None:
            return self._range
        dtype = np.dtype(self._facts.dtype)
        if dtype.kind == "i" and not self._facts.is_quantized:
            # Samples as 16-bit files hold them, also in wider integers.
            full = float(min(np.iinfo(dtype).max, 32767) + 1)
            return -full, full
        return self._assume

    def note(self, count: int) -> str:
        """What was done to the sound."""
        low, high = self._bounds()
        length = f"{self._length} values" + (" (free in the model)" if self._free else "")
        rates = ", ".join(map(str, sorted(self._rates)))
        if self._rate is None:
            how = f"at {rates} Hz as the files are (--sample-rate resamples)"
        else:
            how = f"at {self._rate} Hz" + (", as its metadata says" if self._rate_from_model else "")
        assumed = "" if self._range is not None else " (assumed; --input-range LO,HI changes that)"
        text = f"{count} sound file{'' if count == 1 else 's'}, one channel, {length} {how}"
        return f"{text}, cut or padded with silence; full scale is {low:g}..{high:g}{assumed}"


def check_soundfile() -> None:
    """Raises a UsageError where soundfile is missing."""
    _soundfile()


def read_sound(path: Path, length: int, rate: int | None) -> tuple[Array, int]:
    """The beginning of a file, mean of its channels, as float64 of ``length`` values in [-1, 1].

    Args:
        path: The file.
        length: It is cut there, or padded with zeros.
        rate: What it is resampled to, in Hz; None leaves it as it is.

    Returns:
        The values and the rate of the file.

    Raises:
        UsageError: soundfile is missing, or the file is damaged or no such sound.
    """
    own = _info(path)[0]
    target = rate or own
    # Some more than the length needs, because resampling looks to both sides.
    frames = math.ceil(length * own / target) + 2 * _CROSSINGS * math.ceil(max(1.0, own / target))
    if frames > MOST_VALUES or _cells(frames, own, target) > _MOST_CELLS:
        raise UsageError(
            f"{length:,} values at {target} Hz would be made of {frames:,} at {own} Hz, which takes too long",
            file=path,
            remedy="give another --sample-rate, or files of that rate",
        )
    wave = resample(_mean(path, frames), own, target)[:length]
    return np.pad(wave, (0, length - wave.size)), own


def _mean(path: Path, frames: int) -> Array:
    """The mean of the channels, block by block: a small file may hold much silence, in a thousand channels.

    Raises:
        UsageError: The file is damaged, or holds what is no number.
    """
    blocks: list[Array] = []
    _, most, channels = _info(path)
    rows, done = max(1, _CELLS // channels), 0
    while (wanted := min(frames, most) - done) > 0:
        asked = min(wanted, rows)
        try:
            block, _ = _soundfile().read(str(path), frames=asked, start=done, dtype="float64", always_2d=True)
        except Exception as error:
            raise _unreadable(path, error) from error
        blocks.append(block.mean(axis=1))
        done += asked
        if len(block) < asked:
            break  # It holds less than it says.
    wave = np.concatenate(blocks) if blocks else np.zeros(0)
    if not np.isfinite(wave).all():
        raise UsageError("holds values that are NaN or infinite", file=path, remedy="remove it")
    return wave


def _cells(frames: int, rate: int, target: int) -> int:
    """How many products it takes to resample so many frames; none where the rate stays."""
    if rate == target:
        return 0
    return math.ceil(frames * target / rate) * 2 * math.ceil(_CROSSINGS / min(1.0, target / rate))


def resample(wave: Array, rate: int, target: int) -> Array:
    """A wave at another rate, band-limited: a windowed sinc at the exact place of every new value."""
    if rate == target or wave.size == 0:
        return wave
    cutoff = min(1.0, target / rate)
    half = math.ceil(_CROSSINGS / cutoff)
    reach = np.arange(-half + 1, half + 1)
    padded = np.pad(wave, half)
    count = math.ceil(wave.size * target / rate)
    result = np.empty(count)
    rows = max(1, _CELLS // reach.size)
    for start in range(0, count, rows):
        # In integers first: the place of value n is n * rate / target.
        scaled = np.arange(start, min(start + rows, count), dtype=np.int64) * rate
        base, fraction = scaled // target, (scaled % target) / target
        away = fraction[:, np.newaxis] - reach
        window = np.i0(_BETA * np.sqrt(np.clip(1.0 - (away / half) ** 2, 0.0, None)))
        weights = np.sinc(cutoff * away) * window
        weights /= weights.sum(axis=1, keepdims=True)
        result[start : start + rows] = (padded[base[:, np.newaxis] + reach + half] * weights).sum(axis=1)
    return result


def _info(path: Path) -> tuple[int, int, int]:
    """Rate, number of frames and number of channels of a file, as it says."""
    try:
        info = _soundfile().info(str(path))
    except UsageError:
        raise
    except Exception as error:
        raise _unreadable(path, error) from error
    rate, frames = int(info.samplerate), int(info.frames)
    if not _RATES[0] <= rate <= _RATES[1]:
        raise UsageError(f"says that its sample rate is {rate} Hz", file=path, remedy="remove it")
    return rate, frames, max(1, int(info.channels))


def _free_length(first: Path, rate: int | None) -> int:
    own, frames, _ = _info(first)
    target = rate or own
    return max(1, min(math.ceil(frames * target / own), int(_LONGEST_SECONDS * target)))


def _unreadable(path: Path, error: Exception) -> UsageError:
    why = printable(str(error)).rpartition(": ")[2] or type(error).__name__
    return UsageError(f"cannot be read as sound: {why}", file=path, remedy="remove it, or save it again")


def _soundfile() -> Any:
    try:
        import soundfile
    except (ImportError, OSError) as error:
        # OSError: the package is there, the library that it wraps is not.
        raise UsageError("reading sound needs soundfile", remedy=INSTALL) from error
    return soundfile
