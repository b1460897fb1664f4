"""The options of the commands that take a model apart into several files and join them."""

from __future__ import annotations

from dataclasses import replace

from tfl_rewrite.cli.options import IN_OUT, REPORT, TALKING, Argument, Command, flag, judging, value
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


_KEEPING = (
    flag("--dry-run", help="do everything but the write"),
    REPORT,
)

SHARDING = (
    Command(
        "shard",
        "write a model as several files",
        "Writes IN as files of at most --max-size. parts (default): pieces with names made of their content, "
        "and a manifest; any web server can serve them, 'join' restores the file byte for byte, and a second "
        "version in the same folder shares what did not change. external: a small model.tflite and weight "
        "files that LiteRT 2.1 and newer runs directly (CompiledModel, not the classic Interpreter).",
        lambda: (
            (
                "files",
                (
                    IN_OUT[0],
                    value(
                        "target",
                        help="the folder to write to; made if missing",
                        metavar="OUTDIR",
                        role=Role.FOLDER,
                    ),
                ),
            ),
            (
                "what to write",
                (
                    value(
                        "--format",
                        help="parts (default) or external",
                        choices=("parts", "external"),
                        default="parts",
                    ),
                    value(
                        "--max-size",
                        help="largest file: bytes, or such as 4MB (decimal) or 512KiB (default: 4MB)",
                        default="4MB",
                        metavar="SIZE",
                    ),
                    value(
                        "--compress",
                        help="none (default), or gzip for parts that get smaller by it",
                        choices=("none", "gzip"),
                        default="none",
                    ),
                    value(
                        "--manifest",
                        help="file name of the manifest (default: manifest.json); another name puts a second "
                        "version beside the first",
                        default="manifest.json",
                        metavar="NAME",
                    ),
                ),
            ),
            ("verification", _running()),
            (
                "writing",
                (
                    *_KEEPING,
                    flag("--force", help="replace files that exist with other content, and an older report"),
                    value(
                        "--jobs",
                        "--threads",
                        help="threads (default: one per processor)",
                        type=int,
                        default=0,
                    ),
                ),
            ),
            ("talk", TALKING),
        ),
    ),
    Command(
        "join",
        "make one file of a model in several",
        "Makes OUT of a manifest of parts (a path, an http or https URL, or a URL of a store that fsspec "
        "reads), with every hash checked; a join that was stopped goes on where it was. Or of a model with "
        "external buffers, whose weights come back into one file.",
        lambda: (
            (
                "files",
                (
                    value(
                        "source",
                        help="path or URL of a manifest, or a model whose weights lie beside it",
                        metavar="MANIFEST|URL|MODEL",
                        role=Role.READ,
                    ),
                    replace(IN_OUT[1], role=Role.WRITE),
                ),
            ),
            (
                "trust",
                (
                    value(
                        "--sha256",
                        help="refuse a manifest of any other model",
                        metavar="HEX",
                        default=None,
                    ),
                    flag(
                        "--allow-private",
                        help="connect to private and loopback addresses too",
                    ),
                ),
            ),
            ("verification", _running()),
            (
                "writing",
                (
                    *_KEEPING,
                    flag("--force", help="overwrite an existing OUT or report"),
                    value("--jobs", "--threads", help="parts at once (default: 4)", type=int, default=4),
                ),
            ),
            ("talk", TALKING),
        ),
    ),
)
