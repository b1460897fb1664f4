"""A model as a base of integers that runs at once, and the rest with which it becomes the original.

The base is what ``quantize-weights`` makes, judged as that is. The rest describes the original byte by byte:
bytes that the base has too, float weights as what is left of them (:mod:`tfl_rewrite.shards.residual`), and
all other bytes as they are.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tfl_rewrite.errors import UnsupportedError
from tfl_rewrite.files.container import Container
from tfl_rewrite.files.source import Source
from tfl_rewrite.interpreter.scratch import Scratch, scratch_errors
from tfl_rewrite.judge.settings import Judging
from tfl_rewrite.passes.quantize_weights import QuantizeWeights
from tfl_rewrite.pipeline.report import Plan, Report, RewriteFailed
from tfl_rewrite.pipeline.rewrite import carry_out
from tfl_rewrite.shards.cuts import cut
from tfl_rewrite.shards.manifest import Manifest, sha256_of
from tfl_rewrite.shards.parts import DEFAULT, Packing, numbered, part_writer
from tfl_rewrite.shards.rest import Rest, rest_of
from tfl_rewrite.shards.settings import ShardFailed, ShardOptions, ShardReport
from tfl_rewrite.work import Progress, Work, working

_PACKING = Packing(memory=6, strategy=1)
"""What made the least of the rest of two real models: codes for few symbols each, and no short matches
(``Z_FILTERED``). It saves 2 % of the floats' bytes against zlib's defaults."""


def shard_progressive(
    container: Container,
    place: Path,
    options: ShardOptions,
    *,
    settings: Judging,
    ends: tuple[str, str],
    progress: Progress | None,
) -> ShardReport:
    """Writes a model as parts of a base and of the rest.

    Args:
        container: The model.
        place: The folder to write to.
        options: How.
        settings: How to verify the base.
        ends: What the user calls the model and the folder.
        progress: Called with what is going on.

    Raises:
        ShardFailed: The base computes something else; nothing is written.
        UnsupportedError: Nothing in the model gets smaller as int8.
        UsageError, FileAccessError, FormatError: As for :func:`tfl_rewrite.shard`.
    """
    source = Source(container)
    facts: dict[str, Any] = {"command": "shard", "source": ends[0], "target": ends[1]}
    facts |= {"entry": os.fspath(Path(ends[1]) / options.entry), "dry_run": options.dry_run}
    with Scratch() as scratch:
        path = scratch.path / "base.tflite"
        try:
            with working(threads=options.jobs, progress=progress):
                report = carry_out(
                    Plan(source=source, target=path, passes=(QuantizeWeights(),), settings=settings)
                )
        except RewriteFailed as error:
            raise _failed(error, source, facts) from error
        if report.outcome == "unchanged":
            raise UnsupportedError(
                "no float weight gets smaller as int8, so there is no base",
                file=source.path,
                remedy="leave --progressive away",
            )
        base = Source.open(path)
        with scratch_errors():
            rest = rest_of(source, base, options.max_nbytes, scratch.path / "rest")
        manifest, reused, notes = _written(source, base, rest, place, options, Work(progress=progress))
    return ShardReport.of_parts(
        manifest,
        lambda part: "kept" if part.name in reused else "new",
        **facts,
        verdict=report.verdict,
        unverified=report.unverified,
        notes=(*report.notes, *notes, *_notes(report, manifest)),
    )


def _written(
    source: Source, base: Source, rest: Rest, place: Path, options: ShardOptions, work: Work
) -> tuple[Manifest, set[str], Sequence[str]]:
    """Writes all parts and the manifest; returns it, names of parts that were there before, and notes."""
    total = 2 * base.nbytes + rest.container.nbytes + source.nbytes
    tick = work.stage("sharding", total).tick
    with part_writer(source.container, place, options, tick) as writer:
        cuts, notes = cut(base.container, options.max_nbytes)
        first = numbered(cuts, writer.parts(base.container, cuts, DEFAULT))
        left = numbered(rest.cuts, writer.parts(rest.container, rest.cuts, _PACKING))
        whole, sha256 = writer.whole(), sha256_of(base.container.pieces())
        own = replace(whole, nbytes=base.nbytes, sha256=sha256, parts=first.parts, layout=first.layout)
        manifest = rest.manifest(whole, own, left)
        writer.publish(manifest, base.container)
        return manifest, writer.reused, notes


def _notes(report: Report, manifest: Manifest) -> Iterator[str]:
    """Says what makes both parts together larger than they could be."""
    total = sum(part.stored_nbytes for part in manifest.parts)
    if total >= manifest.nbytes:
        yield f"all parts together take {total:,} bytes, more than the model"
    if report.finer:
        names = ", ".join(item.tensor for item in report.finer[:3])
        count, more = len(report.finer), ", ..." if len(report.finer) > 3 else ""
        yield f"{count} constant(s) of the base are stored finer, so that it passes: {names}{more}"


def _failed(error: RewriteFailed, source: Source, facts: dict[str, Any]) -> ShardFailed:
    """Returns the error about a base that may not be published."""
    report = ShardReport(
        **facts,
        format="parts",
        outcome="failed",
        nbytes=source.nbytes,
        sha256=sha256_of(source.container.pieces()),
        files=(),
        verdict=error.report.verdict,
        unverified=error.report.unverified,
        notes=error.report.notes,
    )
    return ShardFailed(error.what, report, error.remedy)
