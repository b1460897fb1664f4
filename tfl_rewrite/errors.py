"""The error classes, their exit codes, and how a location prints.

Each class says whose fault it is, because the caller reacts differently to each: a damaged file, a file
that is fine but that we will not touch, a rewrite that changed too much, a place on disk that cannot be
used, and our own bug. An error prints as ``file (where, offset N): what; remedy``.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from itertools import islice


class TflRewriteError(Exception):
    """Base of every error that this package raises on purpose.

    Args:
        what: What is wrong, with the numbers.
        file: The file that it concerns, if any.
        where: A path inside the file in the words of the schema, such as ``subgraphs[0].tensors[3].shape``.
        offset: Byte position in the file.
        remedy: What the user can do about it.

    Example:
        >>> try:
        ...     tfl_rewrite.load("missing.tflite")
        ... except tfl_rewrite.TflRewriteError as error:
        ...     print(error.exit_code, error.file)
        2 missing.tflite
    """

    exit_code: int = 1

    def __init__(
        self,
        what: str,
        *,
        file: str | os.PathLike[str] | None = None,
        where: str | None = None,
        offset: int | None = None,
        remedy: str | None = None,
    ) -> None:
        super().__init__(what)
        self.what = what
        self.file = None if file is None else os.fspath(file)
        self.where = where
        self.offset = offset
        self.remedy = remedy

    def __str__(self) -> str:
        place = ", ".join(
            part for part in (self.where, None if self.offset is None else f"offset {self.offset}") if part
        )
        # An empty name, such as of a variable that a shell does not know, is to be seen.
        head = "" if self.file is None else self.file or "''"
        if place:
            head = f"{head} ({place})" if head else place
        text = f"{head}: {self.what}" if head else self.what
        return f"{text}; {self.remedy}" if self.remedy else text


class UsageError(TflRewriteError):
    """The call cannot be carried out as asked: an option, a pattern, a missing or existing file.

    Example:
        >>> from tfl_rewrite.passes import Dedup
        >>> Dedup(pure_custom=7)
        Traceback (most recent call last):
        tfl_rewrite.errors.UsageError: ...
    """

    exit_code = 2


class FormatError(TflRewriteError):
    """The bytes are not a valid file of their format. Malformed input raises this and nothing else.

    Example:
        >>> tfl_rewrite.load("labels.txt")
        Traceback (most recent call last):
        tfl_rewrite.errors.FormatError: ...
    """

    exit_code = 5


class FileAccessError(TflRewriteError):
    """The operating system refused to read or write.

    Example:
        >>> tfl_rewrite.load("missing.tflite")
        Traceback (most recent call last):
        tfl_rewrite.errors.FileAccessError: missing.tflite: cannot read: No such file or directory
    """

    exit_code = 2

    @classmethod
    def of_writing(cls, error: OSError, file: str | os.PathLike[str] | None) -> FileAccessError:
        """Returns what to say of a file that could not be written."""
        if error.errno == errno.EFAULT:
            # Of a mapped file that got shorter the kernel has no bytes to copy from.
            what, remedy = "what it is made of was truncated while it was being read", "run it again"
            return cls(what, file=file, remedy=remedy)
        return cls(f"cannot write: {error.strerror or error}", file=file)


class UnsupportedError(TflRewriteError):
    """The file is valid, but rewriting it would lose something that we cannot carry over.

    Example:
        >>> from pathlib import Path
        >>> extra = Path("model.tflite").read_bytes() + b"TFL3, another model"
        >>> size = Path("extra.tflite").write_bytes(extra)
        >>> model = tfl_rewrite.load("extra.tflite")
        >>> model.description = "digits"
        >>> try:
        ...     tfl_rewrite.save(model, "out.tflite")
        ... except tfl_rewrite.UnsupportedError as error:
        ...     print(error.remedy)
        if they are not needed, keep only the first 102424 bytes of the file
    """

    exit_code = 3


class VerificationError(TflRewriteError):
    """The rewritten model was run and its outputs differ beyond the tolerance; nothing was published.

    Example:
        >>> issubclass(tfl_rewrite.RewriteFailed, tfl_rewrite.VerificationError)
        True
    """

    exit_code = 4


class InvariantError(TflRewriteError):
    """A pass left a model that breaks a rule which every model must keep: our own bug.

    Example:
        >>> model = tfl_rewrite.load("model.tflite")
        >>> model.subgraphs[0].tensors.pop()
        <Tensor 'StatefulPartitionedCall_1:0' FLOAT32 [1, 10]>
        >>> tfl_rewrite.save(model, "broken.tflite")
        Traceback (most recent call last):
        tfl_rewrite.errors.InvariantError: ...
    """

    exit_code = 1


_MOST_DIGITS = 20
_MOST_COMPARED, _LONGEST_COMPARED = 2000, 200


def check_number(name: str, value: float, bounds: tuple[float, float]) -> None:
    """Refuses a number that is out of its bounds, or none.

    Args:
        name: Of the setting.
        value: The number.
        bounds: Its least and its largest value.

    Raises:
        UsageError: It is.
    """
    least, most = bounds
    # Also what is no number: it is neither above nor below.
    if not least <= value <= most:
        raise UsageError(
            f"{name} is {number_text(value)}", remedy=f"give {least:,} or more, {most:,} at most"
        )


def near_names(name: str, known: Iterable[str], *, count: int = 5, cutoff: float = 0.6) -> list[str]:
    """Returns the names that are spelled most alike; of those that are long, or very many, none.

    Args:
        name: What somebody wrote.
        known: Names to choose from. Comparing them takes time that grows with the square of their length.
        count: At most so many.
        cutoff: How much alike, from 0 to 1.
    """
    from difflib import get_close_matches

    short = [item for item in islice(known, _MOST_COMPARED) if len(item) <= _LONGEST_COMPARED]
    return get_close_matches(name, short, n=count, cutoff=cutoff) if len(name) <= _LONGEST_COMPARED else []


def whole_number(text: str) -> int | None:
    """Reads a number of a few digits; None for any other text.

    Such as ``str.isdigit`` takes: digits of other scripts, and more of them than Python reads.
    """
    if 0 < len(text) <= _MOST_DIGITS and text.isascii() and text.isdigit():
        return int(text)
    return None


def number_text(value: float) -> str:
    """A number as text; of a very long one, which Python does not even print, how long it is."""
    if isinstance(value, int) and abs(value) >= 10**_MOST_DIGITS:
        return f"a number of more than {_MOST_DIGITS} digits"
    return str(value)


def shell_path(path: str) -> str:
    """Returns a path as a word of a command that a user may copy, where none is taken for an option.

    A stream (``-``) is as it is.
    """
    # Only messages need it.
    import shlex

    return shlex.quote(f"./{path}" if path.startswith("-") and path != "-" else path)


def percent(share: float) -> str:
    """Returns a share of 1 as per cent, with two digits that count and never an exponent."""
    found = 100 * share
    if found < 0.001:
        return "less than 0.001 %"
    if found >= 1e6:
        return "more than 1,000,000 %"
    return f"{float(f'{found:.2g}'):,.0f} %" if found >= 10 else f"{found:.2g} %"
