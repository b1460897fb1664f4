"""Real inputs from the user's files, matched with what a model takes."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfl_rewrite.errors import FileAccessError, UsageError
from tfl_rewrite.interpreter.interface import Array, EntryPoint, Interface, TensorFacts, quoted
from tfl_rewrite.options.frozen import frozen
from tfl_rewrite.options.option import PICTURES
from tfl_rewrite.samples.made import Step
from tfl_rewrite.samples.media import (
    NPZ_REMEDY,
    Media,
    Pictures,
    check_pillow,
    is_media,
    media_files,
)
from tfl_rewrite.samples.npz import REMEDY, read_npz
from tfl_rewrite.samples.sound import Sounds, check_soundfile

MOST_SAMPLES = 100_000
"""Of one array: each is a call, and a file of its own."""


@frozen(kw_only=True)
class RealInputs:
    """What the files hold for one model.

    Attributes:
        steps: The calls, for the entry points that the files cover.
        covered: Keys of those entry points.
        notes: What was left aside.
        assumed: What was assumed of the model, as in `media.PLAUSIBLE`.
    """

    steps: tuple[Step, ...]
    covered: frozenset[str | None]
    notes: tuple[str, ...]
    assumed: tuple[str, ...] = ()


def expand_paths(paths: Sequence[str | os.PathLike[str]]) -> list[Path | Media]:
    """The ``.npz`` files and the media of a list of files and folders, in order of their names.

    Raises:
        UsageError: A path does not exist, or a folder holds nothing of the kind, or both kinds.
    """
    found: list[Path | Media] = []
    for given in paths:
        path = Path(given)
        media = given if isinstance(given, Media) else Media(path)
        if not os.fspath(given):
            # Not the current folder: a variable of the shell that was never set.
            raise UsageError("no such file or folder", file="", remedy=REMEDY)
        if path.is_dir():
            inside = sorted(child for child in path.iterdir() if child.suffix == ".npz")
            others = media_files(path)
            if inside and others:
                raise UsageError(
                    f"the folder holds {len(inside)} .npz and {len(others)} pictures or sound files",
                    file=path,
                    remedy="put them in two folders",
                )
            if not inside and not others:
                raise UsageError(
                    "the folder holds no .npz file, picture or sound file", file=path, remedy=REMEDY
                )
            found += inside or [media]
        elif path.is_file():
            found.append(media if is_media(path) else path)
        else:
            raise UsageError("no such file or folder", file=path, remedy=REMEDY)
    return found


def real_inputs(interface: Interface, paths: Sequence[str | os.PathLike[str]]) -> RealInputs:
    """Reads the files and forms the calls of every entry point that they cover.

    An entry point is covered by a file that has an array for each of its inputs. The samples of several
    files follow each other.

    Raises:
        UsageError: A file covers no entry point, or an array does not fit its input.
    """
    steps: list[Step] = []
    notes: list[str] = []
    assumed: list[str] = []
    for path in expand_paths(paths):
        if isinstance(path, Media):
            made, more, guesses = media_steps(interface, path)
            steps += made
            notes += more
            assumed += guesses
            continue
        arrays = read_npz(path)
        used: set[str] = set()
        found: list[Step] = []
        missing: list[str] = []
        for entry in interface.entry_points:
            names = [_match(arrays, entry, position) for position in range(len(entry.inputs))]
            lacking = [facts for facts, name in zip(entry.inputs, names, strict=True) if name is None]
            if lacking or not entry.inputs:
                wanted = ", ".join(f"{quoted(facts.name)} {facts.declared}" for facts in lacking)
                missing.append(f"{entry.label} lacks {wanted or 'no input'}")
                continue
            matched = [name for name in names if name is not None]
            used.update(matched)
            found += _steps(path, entry, matched, [arrays[name] for name in matched])
            notes += [text for name in matched if (text := _not_finite(path, name, arrays[name]))]
        if not found:
            held = ", ".join(f"{quoted(name)} {_held(array)}" for name, array in arrays.items())
            raise UsageError(
                f"no array for every input: {'; '.join(missing)}; the file holds {held or 'nothing'}",
                file=path,
                remedy=REMEDY,
            )
        if ignored := sorted(set(arrays) - used):
            notes.append(f"{path.name}: not an input: {', '.join(quoted(name) for name in ignored)}")
        steps += found
    covered = frozenset(step.signature for step in steps)
    # Entry point by entry point, because variables carry over from one call to the next.
    order = [entry.key for entry in interface.entry_points]
    steps.sort(key=lambda step: order.index(step.signature))
    return RealInputs(
        steps=tuple(steps),
        covered=covered,
        notes=tuple(dict.fromkeys(notes)),
        assumed=tuple(dict.fromkeys(assumed)),
    )


def sample_counts(interface: Interface, path: Path, arrays: Mapping[str, Array]) -> dict[str, int]:
    """How many samples the arrays of a file hold for the entry points that they cover, by name of the array.

    An array that holds one for all samples of its entry point is not among them, nor is one that is no input,
    or that does not fit its input.
    """
    counts: dict[str, int] = {}
    for entry in interface.entry_points:
        names = [_match(arrays, entry, position) for position in range(len(entry.inputs))]
        try:
            found = {
                name: len(split_samples(path, name, facts, arrays[name]))
                for name, facts in zip(names, entry.inputs, strict=True)
                if name is not None
            }
        except UsageError:
            continue
        total = max(found.values(), default=0)
        if None not in names:
            counts.update({name: total for name, count in found.items() if count == total})
    return counts


def _match(arrays: Mapping[str, Array], entry: EntryPoint, position: int) -> str | None:
    """Name of the array for an input: the most specific name first, its position (``arr_0``) last."""
    facts = entry.inputs[position]
    names = [facts.name, facts.tensor, *facts.aliases, f"arr_{position}"]
    if entry.key is not None:
        names = [f"{entry.key}/{facts.name}", f"{entry.key}:{facts.name}", *names]
    return next((name for name in names if name and name in arrays), None)


def _held(array: Array) -> str:
    return f"{_dtype_name(array)}{list(array.shape)}"


def _not_finite(path: Path, name: str, array: Array) -> str:
    """Says how much of an array is no finite number: some models take that, such as masks, most do not."""
    if array.dtype.kind not in "fc":
        return ""
    nans, infinite = int(np.isnan(array).sum()), int(np.isinf(array).sum())
    what = [f"{count:,} {word}" for count, word in ((nans, "NaN"), (infinite, "infinite")) if count]
    share = f"of {array.size:,} values"
    return f"{path.name}: {quoted(name)} holds {' and '.join(what)} {share}" if what else ""


def _dtype_name(array: Array) -> str:
    return "string" if array.dtype.kind in "SU" else array.dtype.name


def _steps(path: Path, entry: EntryPoint, names: list[str], arrays: list[Array]) -> list[Step]:
    columns = [
        split_samples(path, name, facts, array)
        for name, facts, array in zip(names, entry.inputs, arrays, strict=True)
    ]
    for name, column in zip(names, columns, strict=True):
        if not column:
            raise UsageError(
                f"array {quoted(name)} holds no samples",
                file=path,
                remedy="its first axis counts them",
            )
    counts = {len(column) for column in columns}
    count = max(counts)
    if counts - {1, count}:
        held = ", ".join(f"{quoted(name)} {len(column)}" for name, column in zip(names, columns, strict=True))
        raise UsageError(f"the arrays differ in their number of samples: {held}", file=path, remedy=REMEDY)
    steps = []
    for number in range(count):
        # An input given once serves all samples.
        values = [column[number] if len(column) > 1 else column[0] for column in columns]
        steps.append(
            Step(
                signature=entry.key,
                values=tuple((facts.name, value) for facts, value in zip(entry.inputs, values, strict=True)),
                real=True,
                shapes=_unusual_shapes(entry.inputs, values),
            )
        )
    return steps


def _conversion(facts: TensorFacts) -> str:
    """What makes values of an input of real numbers, which a cast alone would not where it is quantized."""
    cast = f".astype({facts.dtype!r})"
    if len(facts.scales) != 1:
        return cast
    zero = facts.zero_points[0] if facts.zero_points else 0
    return f"np.rint(array / {facts.scales[0]:.9g} + {zero}){cast}"


def split_samples(path: Path, name: str, facts: TensorFacts, array: Array) -> list[Array]:
    """The samples in one array.

    Accepted are ``[N, *shape]``, ``[N, *shape without its leading 1]`` (a leading free size counts as 1), and
    one sample of exactly the declared shape. Sizes may differ from the declared ones, but not the rank, nor a
    size that is fixed beside a free one: there the model says which it takes.

    Raises:
        UsageError: The dtype or the number of axes is not that of the input, or a size that is fixed.
    """
    rank = len(facts.shape)
    remedies = [f"convert it with {_conversion(facts)}"] if _dtype_name(array) != facts.dtype else []
    if array.ndim not in (rank, rank + 1):
        remedies.append("give it these axes: a first axis more counts the samples")
    if remedies:
        what = f"array {quoted(name)} is {_held(array)}, {_wanted(facts)}"
        raise UsageError(what, file=path, remedy="; ".join(remedies))
    several = array.ndim == rank + 1 or (rank and (facts.shape[0] == 1 or facts.shape_signature[0] == -1))
    sizes = list(zip(array.shape[array.ndim - rank :], facts.shape_signature, strict=True))
    if any(declared == -1 for _, declared in sizes) and not _fit(sizes[array.ndim == rank and several :]):
        raise UsageError(
            f"array {quoted(name)} is {_held(array)}, {_wanted(facts)}; sizes that are not -1 are fixed",
            file=path,
            remedy="give samples of these sizes, or change the model first, with 'tfl-rewrite reshape'",
        )
    if several and array.shape[0] > MOST_SAMPLES:
        raise UsageError(
            f"array {quoted(name)} holds {array.shape[0]:,} samples, more than {MOST_SAMPLES:,}",
            file=path,
            remedy="give fewer",
        )
    if array.ndim == rank + 1:
        return list(_rows(array))
    if several:
        return [row[np.newaxis] for row in _rows(array)]
    if _fit(sizes):
        return [array]
    raise UsageError(
        f"array {quoted(name)} is {_held(array)}, input {quoted(facts.name)} takes {facts.declared}",
        file=path,
        remedy="add a first axis that counts the samples",
    )


def _fit(sizes: Iterable[tuple[int, int]]) -> bool:
    """Whether sizes are those that are declared beside them, -1 for any."""
    return all(declared in (-1, size) for size, declared in sizes)


def _wanted(facts: TensorFacts) -> str:
    return f"input {quoted(facts.name)} takes samples of {facts.declared}"


def _rows(array: Array) -> list[Array]:
    # Not by iterating: the rows of a vector would come out as numpy scalars.
    return [np.asarray(array[number]) for number in range(array.shape[0])]


def _unusual_shapes(inputs: Sequence[TensorFacts], values: Sequence[Array]) -> str | None:
    """The shapes that differ from the declared ones in a size that is not free."""
    texts = [
        f"{quoted(facts.name)} {list(value.shape)} instead of {list(facts.shape)}"
        for facts, value in zip(inputs, values, strict=True)
        if not _fit(zip(value.shape, facts.shape_signature, strict=True))
    ]
    return ", ".join(texts) or None


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
    (check_pillow if pictures else check_soundfile)()
    steps: list[Step] = []
    notes: list[str] = []
    assumed: list[str] = []
    refused: list[UsageError] = []
    reader = Pictures if pictures else Sounds
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
    entry: EntryPoint, media: Media, files: Sequence[Path], opened: type[Pictures | Sounds]
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
