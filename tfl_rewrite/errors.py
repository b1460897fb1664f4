"""The error classes, their exit codes, and how a location prints.

Each class says whose fault it is, because the caller reacts differently to each: a damaged file, a file
that is fine but that we will not touch, a rewrite that changed too much, a place on disk that cannot be
used, and our own bug. An error prints as ``file (where, offset N): what; remedy``.
"""

from __future__ import annotations

import os


class TflRewriteError(Exception):
    """Base of every error that this package raises on purpose.

    Args:
        what: What is wrong, with the numbers.
        file: The file that it concerns, if any.
        where: A path inside the file in the words of the schema, such as ``subgraphs[0].tensors[3].shape``.
        offset: Byte position in the file.
        remedy: What the user can do about it.
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
    """The call cannot be carried out as asked: an option, a pattern, a missing or existing file."""

    exit_code = 2


class FormatError(TflRewriteError):
    """The bytes are not a valid file of their format. Malformed input raises this and nothing else."""

    exit_code = 2


class FileAccessError(TflRewriteError):
    """The operating system refused to read or write."""

    exit_code = 2


class UnsupportedError(TflRewriteError):
    """The file is valid, but rewriting it would lose something that we cannot carry over."""

    exit_code = 3


class VerificationError(TflRewriteError):
    """The rewritten model was run and its outputs differ beyond the tolerance; nothing was published."""

    exit_code = 4


class InvariantError(TflRewriteError):
    """A pass left a model that breaks a rule which every model must keep: our own bug."""

    exit_code = 1
