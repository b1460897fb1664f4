"""What ``shard`` and ``join`` report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from tfl_rewrite.errors import UnsupportedError, VerificationError
from tfl_rewrite.files.container import Container
from tfl_rewrite.options.json_data import JsonData
from tfl_rewrite.shards.manifest import Manifest, Part, sha256_of

if TYPE_CHECKING:
    from tfl_rewrite.judge.verdict import Verdict


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
        verdict: Of the runtime, for external buffers; parts are compared byte by byte instead.
        unverified: Why nothing could be run, or None.

    Example:
        >>> report = tfl_rewrite.shard("model.tflite", "parts")
        >>> report.entry
        'parts/manifest.json'
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
    verdict: Verdict | None = None
    unverified: str | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    def of_parts(cls, manifest: Manifest, status: Callable[[Part], str], **facts: Any) -> ShardReport:
        """Of a model in parts: what its manifest says, and what became of each part."""
        files = tuple(ShardFile.of_part(part, status(part)) for part in manifest.parts)
        return cls(format="parts", nbytes=manifest.nbytes, sha256=manifest.sha256, files=files, **facts)


class ShardFailed(VerificationError):
    """Verification refused the result; ``report`` has all figures.

    Example:
        >>> external = tfl_rewrite.ShardOptions(format="external")
        >>> try:
        ...     report = tfl_rewrite.shard("model.tflite", "weights", external)
        ... except tfl_rewrite.ShardFailed as error:
        ...     report = error.report
    """

    def __init__(self, what: str, report: ShardReport, remedy: str | None = None) -> None:
        super().__init__(what, file=report.source, remedy=remedy)
        self.report = report
        if report.verdict is None or report.verdict.status == "unverified":
            # Nothing differs; it is a model that cannot be judged here.
            self.exit_code = UnsupportedError.exit_code
