"""Which files a call reads and which it writes: refused before anything is opened, if two of them are one.

A file may have several names: hard links, symbolic links, and on some file systems names that differ in case
only. What a call writes may be none of what it reads and nothing else that it writes, whatever it is called;
an output may take the place of the input under the very same name, where that is asked for.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

from tfl_rewrite.errors import UsageError
from tfl_rewrite.files.atomic import check_target
from tfl_rewrite.files.source import Source
from tfl_rewrite.options.frozen import frozen
from tfl_rewrite.options.option import SAMPLES

INPUT, OUTPUT = "IN", "OUT"
"""What the model that is read, and the one that is written, are called."""


@frozen
class Claim:
    """A file that is read or written.

    Attributes:
        what: What the user calls it, such as ``OUT`` or ``--report``.
        path: Its name. Of a folder that is read, the files are that real inputs come in.
        mine: Of what is written: it may exist, because whoever writes it looks whether it is of its own
            making.
    """

    what: str
    path: str
    mine: bool = False


def claims_of(
    model: str | os.PathLike[str],
    inputs: Iterable[str | os.PathLike[str]],
    holdout: Iterable[str | os.PathLike[str]],
) -> list[Claim]:
    """Returns what a rewrite reads: the model, and what it is verified with."""
    # What is in memory only may be written to wherever one likes.
    in_memory = isinstance(model, Source) and model.file is None
    reads = [] if in_memory else [Claim(INPUT, os.fspath(model))]
    reads += [Claim("inputs", os.fspath(path)) for path in inputs]
    return reads + [Claim("holdout", os.fspath(path)) for path in holdout]


def check_claims(reads: Iterable[Claim], writes: Sequence[Claim], *, force: bool) -> None:
    """Checks what is read and written before anything is.

    Args:
        reads: What is not there, or no file, counts for nothing here.
        writes: Each is another file, and none of those that are read.
        force: Whether what is written may exist, and :data:`OUTPUT` be the same name as :data:`INPUT`.

    Raises:
        UsageError: Two are one file, or something cannot be written; see
            :func:`tfl_rewrite.files.atomic.check_target`.
        FileAccessError: The system refuses to look.
    """
    seen: dict[tuple[int, int, str], Claim] = {}
    for claim in writes:
        for key in (_file(claim.path), _name(claim.path)):
            other = seen.setdefault(key, claim) if key is not None else claim
            if other is not claim:
                raise UsageError(
                    f"{other.what} and {claim.what} are the same file",
                    file=claim.path,
                    remedy="name two" + (" that differ in more than case" if _differ(other, claim) else ""),
                )
    check_shared(reads, writes, force=force)
    for claim in writes:
        check_target(claim.path, force=force or claim.mine)


def check_shared(reads: Iterable[Claim], writes: Sequence[Claim], *, force: bool) -> None:
    """Checks that nothing that is read would be written; see :func:`check_claims`.

    Raises:
        UsageError: Something would.
    """
    present = {key: claim for claim in writes if (key := _file(claim.path)) is not None}
    for claim in reads if present else ():
        for path in _files(claim.path):
            found = present.get(_file(path) or (0, 0, ""))
            if found is not None:
                _refuse(Claim(claim.what, path), found, force=force)


def is_same(one: str | os.PathLike[str], other: str | os.PathLike[str]) -> bool:
    """Whether two names lead to one file that is there."""
    found = _file(os.fspath(one))
    return found is not None and found == _file(os.fspath(other))


def _refuse(read: Claim, write: Claim, *, force: bool) -> None:
    """Refuses to write over what is read, unless it is meant."""
    if (read.what, write.what) == (INPUT, OUTPUT) and _one_name(read.path, write.path):
        if not force:
            raise UsageError("is both input and output", file=read.path, remedy="use --force to replace it")
        return
    if _one_name(read.path, write.path):
        what = f"is read as {read.what}, and {write.what} would replace it"
    else:
        what = f"is another name of {read.path}, which is read as {read.what}; {write.what} would replace it"
    raise UsageError(what, file=write.path, remedy="name another file")


def _files(path: str) -> list[str]:
    """A file; or the files of a folder that may be inputs: what is written there is none, by its name."""
    try:
        with os.scandir(path) as entries:
            found = [entry.path for entry in entries if entry.is_file()]
            return [name for name in found if Path(name).suffix.lower() in SAMPLES]
    except (OSError, ValueError):
        return [path]


def _file(path: str) -> tuple[int, int, str] | None:
    """What tells a file from all others, whatever it is called; None if there is none."""
    try:
        found = os.stat(path)  # noqa: PTH116
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino, ""


def _name(path: str) -> tuple[int, int, str] | None:
    """What tells a name from all others, also on a file system to which upper and lower case are one."""
    try:
        real = Path(os.path.realpath(path))
        found = real.parent.stat()
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino, unicodedata.normalize("NFC", real.name).casefold()


def _spelled(path: str) -> Path:
    """A path as it is spelled, but for links on the way to the last name."""
    folder, name = os.path.split(os.path.abspath(path))  # noqa: PTH100
    return Path(os.path.realpath(folder), name)


def _one_name(one: str, other: str) -> bool:
    """Whether two paths are the very same: as they are written, and not only through a linked folder."""
    written = [os.path.abspath(path) for path in (one, other)]  # noqa: PTH100
    # Where ".." follows a link, what is written the same need not be the same.
    return written[0] == written[1] and _spelled(one) == _spelled(other)


def _differ(one: Claim, other: Claim) -> bool:
    """Whether two names are only one where case does not count."""
    return _spelled(one.path) != _spelled(other.path) and _name(one.path) == _name(other.path)
