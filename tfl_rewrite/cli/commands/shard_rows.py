"""The options of the commands that take a model apart into several files and join them."""

from __future__ import annotations

from dataclasses import replace

from tfl_rewrite.cli.options import (
    IN_OUT,
    REPORT,
    TALKING,
    Argument,
    Command,
    Groups,
    judging,
    rows_of,
    value,
)
from tfl_rewrite.options.option import Role

_MODE = (
    "for external buffers. auto (default): run both in CompiledModel; if the original cannot run, "
    "say UNVERIFIED and still write. require: refuse then. off: run nothing. Parts are always compared "
    "byte by byte"
)


def _running() -> tuple[Argument, ...]:
    media = ("input_range", "input_layout", "sample_rate")
    rows = judging(only=("mode", "inputs", *media, "samples", "seed", "timeout"))
    return tuple(replace(row, help=_MODE) if "--verify" in row.names else row for row in rows)


_WRITING = ("dry_run", "force", "jobs")


def _sharding() -> Groups:
    from tfl_rewrite.shards.settings import ShardOptions

    folder = value(
        "target", help="the folder to write to; made if missing", metavar="OUTDIR", role=Role.FOLDER
    )
    return (
        ("files", (IN_OUT[0], folder)),
        ("what to write", rows_of(ShardOptions, without=_WRITING)),
        ("verification", _running()),
        ("writing", (*rows_of(ShardOptions, only=_WRITING), REPORT)),
        ("talk", TALKING),
    )


def _joining() -> Groups:
    from tfl_rewrite.shards.settings import JoinOptions

    source = value(
        "source",
        help="path or URL of a manifest, or a model whose weights lie beside it",
        metavar="MANIFEST|URL|MODEL",
        role=Role.READ,
    )
    return (
        ("files", (source, replace(IN_OUT[1], role=Role.WRITE))),
        ("trust", rows_of(JoinOptions, without=_WRITING)),
        ("verification", _running()),
        ("writing", (*rows_of(JoinOptions, only=_WRITING), REPORT)),
        ("talk", TALKING),
    )


SHARDING = (
    Command(
        "shard",
        "write a model as several files",
        "Writes IN as files of at most --max-size. parts (default): pieces with names made of their content, "
        "and a manifest; any web server can serve them, 'join' restores the file byte for byte, and a second "
        "version in the same folder shares what did not change. external: a small model.tflite and weight "
        "files that LiteRT 2.1 and newer runs directly (CompiledModel, not the classic Interpreter).",
        _sharding,
        (
            "tfl-rewrite shard in.tflite parts --max-size 4MB",
            "tfl-rewrite shard in.tflite folder --format external",
        ),
    ),
    Command(
        "join",
        "make one file of a model in several",
        "Makes OUT of a manifest of parts (a path, an http or https URL, or a URL of a store that fsspec "
        "reads), with every hash checked; a join that was stopped goes on where it was. Or of a model with "
        "external buffers, whose weights come back into one file.",
        _joining,
        ("tfl-rewrite join parts/manifest.json out.tflite",),
    ),
)
