"""How a model is written as several files, and made one again: the options of both, and their reports."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from tfl_rewrite.errors import UnsupportedError, UsageError, VerificationError
from tfl_rewrite.files.container import Container
from tfl_rewrite.options.json_data import JsonData
from tfl_rewrite.options.option import NBYTES, Kind, check_options, option
from tfl_rewrite.shards.manifest import MAX_PART, Manifest, Part, digest_of, sha256_of

if TYPE_CHECKING:
    from tfl_rewrite.judge.verdict import Verdict


MODEL_NAME = "model.tflite"
"""What the model of a folder with external buffers is called."""
MANIFEST_NAME = "manifest.json"
DEFAULT_JOBS = 4
JOBS = (0, 64)
"""Least and most parts at once."""
LEAST_PART = 1 << 10

_JOBS_FLAGS = ("--jobs", "--threads")


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardOptions:
    """How :func:`tfl_rewrite.shard` writes a model.

    Attributes:
        format: ``parts`` (with a manifest; :func:`tfl_rewrite.join` restores the file byte for byte) or
            ``external`` (weights in files that LiteRT 2.1 and newer reads by itself).
        max_size: Of a file: bytes, or text such as ``4MB``.
        compress: ``none`` or ``gzip``, for parts; a part that gzip does not shrink is stored as it is.
        progressive: Whether parts make two models: a base of int8 weights, and with the rest the original.
            They are always compressed.
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
    progressive: bool = option(
        False,
        "parts of which the first, about a quarter, make a model of int8 weights ('join --base') that an app "
        "can run at once, and all of them the original; compressed with gzip",
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
            raise UsageError("external buffers are mapped as they are", remedy="leave out --compress")
        if self.format == "external" and self.progressive:
            raise UsageError("only parts can be progressive", remedy="leave out --format")

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
        base: Whether to make only the base of a model that was sharded progressively.
        sha256: What the model that is made of a manifest must be, if it is known from elsewhere.
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

    base: bool = option(False, "make the base alone, of a model from 'shard --progressive'")
    sha256: str | None = option(
        None, "refuse a manifest of any other model", kind=Kind(digest_of, digest_of), metavar="HEX"
    )
    allow_private: bool = option(False, "connect to private and loopback addresses too")
    dry_run: bool = option(False, "do everything but the write")
    force: bool = option(False, "overwrite an existing OUT or report")
    jobs: int = option(
        DEFAULT_JOBS, "parts at once (default: 4)", metavar="N", bounds=JOBS, flags=_JOBS_FLAGS
    )

    def __post_init__(self) -> None:
        """Refuses what does not fit."""
        check_options(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardFile:
    """One file of a folder of shards.

    Attributes:
        nbytes: Of the model's bytes in it.
        stored_nbytes: Of the file.
        status: ``new``, ``kept`` (it was there, byte for byte), ``fetched`` or ``read``.
    """

    name: str
    nbytes: int
    stored_nbytes: int
    sha256: str
    status: str

    @classmethod
    def of_part(cls, part: Part, status: str) -> ShardFile:
        """A part of a manifest."""
        return cls(
            name=part.name,
            nbytes=part.nbytes,
            stored_nbytes=part.stored_nbytes,
            sha256=part.stored_sha256,
            status=status,
        )

    @classmethod
    def of_file(cls, name: str, file: Container, status: str) -> ShardFile:
        """A model or a file of weights, which is hashed now."""
        size = file.nbytes
        return cls(name=name, nbytes=size, stored_nbytes=size, sha256=sha256_of(file.pieces()), status=status)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardReport(JsonData):
    """What ``shard`` or ``join`` did.

    Attributes:
        command: ``shard`` or ``join``.
        format: ``parts`` or ``external``.
        entry: The file to start from: the manifest, or the model that names its weight files.
        nbytes: Of the whole model.
        sha256: Of the whole model.
        base: The model that runs before all parts are there; None where there is none.
        verdict: Of the runtime, for external buffers and for a base; parts are compared byte by byte instead.
        unverified: Why nothing could be run, or None.
    """

    schema: ClassVar[int] = 1
    command: str
    format: str
    outcome: str = "done"
    source: str
    target: str
    entry: str
    dry_run: bool = False
    nbytes: int
    sha256: str
    files: tuple[ShardFile, ...]
    base: ShardFile | None = None
    verdict: Verdict | None = None
    unverified: str | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    def of_parts(cls, manifest: Manifest, status: Callable[[Part], str], **facts: Any) -> ShardReport:
        """Of a model in parts: what its manifest says, and what became of each part."""
        files = tuple(ShardFile.of_part(part, status(part)) for part in manifest.parts)
        base, sha256 = None, manifest.sha256
        if (first := manifest.base) is not None:
            stored, told = sum(part.stored_nbytes for part in first.parts), status(first.parts[0])
            base = ShardFile(
                name=manifest.name,
                nbytes=first.nbytes,
                stored_nbytes=stored,
                sha256=first.sha256,
                status=told,
            )
        return cls(format="parts", nbytes=manifest.nbytes, sha256=sha256, files=files, base=base, **facts)


class ShardFailed(VerificationError):
    """Verification refused the result; ``report`` has all figures.

    Example:
        >>> from tfl_rewrite.shards.settings import ShardFailed
        >>> external = tfl_rewrite.ShardOptions(format="external")
        >>> try:
        ...     report = tfl_rewrite.shard("model.tflite", "weights", external)
        ... except ShardFailed as error:
        ...     report = error.report
    """

    def __init__(self, what: str, report: ShardReport, remedy: str | None = None) -> None:
        super().__init__(what, file=report.source, remedy=remedy)
        self.report = report
        if report.verdict is None or report.verdict.status == "unverified":
            # Nothing differs; it is a model that cannot be judged here.
            self.exit_code = UnsupportedError.exit_code
