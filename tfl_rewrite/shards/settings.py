"""How a model is written as several files, and how it is made one again: the options of both."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tfl_rewrite.errors import UsageError
from tfl_rewrite.options.option import NBYTES, check_options, option

MODEL_NAME = "model.tflite"
"""What the model of a folder with external buffers is called."""
MANIFEST_NAME = "manifest.json"
DEFAULT_JOBS = 4
JOBS = (0, 64)
"""Least and most parts at once."""
LEAST_PART = 1 << 10
MAX_PART = 1 << 30
"""No part is larger, so that a manifest cannot ask for more at once."""

_JOBS_FLAGS = ("--jobs", "--threads")


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardOptions:
    """How :func:`tfl_rewrite.shard` writes a model.

    Attributes:
        format: ``parts`` (with a manifest; :func:`tfl_rewrite.join` restores the file byte for byte) or
            ``external`` (weights in files that LiteRT 2.1 and newer reads by itself).
        max_size: Of a file: bytes, or text such as ``4MB``.
        compress: ``none`` or ``gzip``, for parts; a part that gzip does not shrink is stored as it is.
        manifest: File name of the manifest of parts.
        force: Whether files with other content may be replaced.
        jobs: Threads; 0 for one per processor.
        dry_run: Do everything but the write.

    Raises:
        UsageError: A value is none of those that exist, or the name could lead out of the folder.

    Example:
        >>> tfl_rewrite.ShardOptions(max_size="512KiB", compress="gzip").max_nbytes
        524288
    """

    format: str = option("parts", "parts (default) or external", choices=("parts", "external"))
    max_size: int | str = option(
        "4MB",
        "largest file: bytes, or such as 4MB (decimal) or 512KiB (default: 4MB)",
        kind=NBYTES,
        metavar="SIZE",
        bounds=(LEAST_PART, MAX_PART),
    )
    compress: str = option(
        "none", "none (default), or gzip for parts that get smaller by it", choices=("none", "gzip")
    )
    manifest: str = option(
        MANIFEST_NAME,
        "file name of the manifest (default: manifest.json); another name puts a second version beside the "
        "first",
        metavar="NAME",
    )
    dry_run: bool = option(False, "do everything but the write")
    force: bool = option(False, "replace files that exist with other content, and an older report")
    jobs: int = option(0, "threads (default: one per processor)", metavar="N", bounds=JOBS, flags=_JOBS_FLAGS)

    def __post_init__(self) -> None:
        """Refuses what does not fit."""
        check_options(self)
        name = self.manifest
        if Path(name).name != name or not name.isprintable() or name[:1] in (".", ""):
            raise UsageError(f"{name!r} is not a plain file name", remedy="such as manifest-v2.json")
        if self.format == "external" and self.compress != "none":
            raise UsageError("external buffers are mapped as they are", remedy="leave --compress away")

    @property
    def max_nbytes(self) -> int:
        """The largest file, in bytes."""
        return int(self.max_size)

    @property
    def entry(self) -> str:
        """Name of the file to start from."""
        return MODEL_NAME if self.format == "external" else self.manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinOptions:
    """How :func:`tfl_rewrite.join` makes one file.

    Attributes:
        sha256: What the model of a manifest must be, if it is known from elsewhere.
        allow_private: Whether http may connect to private and loopback addresses.
        dry_run: Fetch and check everything, but keep nothing.
        force: Whether the target may exist.
        jobs: Parts at once; 0 for one per processor.

    Raises:
        UsageError: A value is of another kind or out of bounds.

    Example:
        >>> tfl_rewrite.JoinOptions(allow_private=True).jobs
        4
    """

    sha256: str | None = option(None, "refuse a manifest of any other model", metavar="HEX")
    allow_private: bool = option(False, "connect to private and loopback addresses too")
    dry_run: bool = option(False, "do everything but the write")
    force: bool = option(False, "overwrite an existing OUT or report")
    jobs: int = option(
        DEFAULT_JOBS, "parts at once (default: 4)", metavar="N", bounds=JOBS, flags=_JOBS_FLAGS
    )

    def __post_init__(self) -> None:
        """Refuses what does not fit."""
        check_options(self)
