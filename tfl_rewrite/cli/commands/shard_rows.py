"""The options of the commands that take a model apart into several files and join them."""

from __future__ import annotations

from dataclasses import replace

from tfl_rewrite.cli.options import IN_OUT, JUDGING, MEDIA, REPORT, TALKING, Command, Role, flag, value

_RUNNING = (
    value(
        "--verify",
        help="for external buffers. auto (default): run both in CompiledModel; if the original cannot run, "
        "say UNVERIFIED and still write. require: refuse then. off: run nothing. Parts are always compared "
        "byte by byte",
        choices=("auto", "require", "off"),
        default="auto",
    ),
    *(
        row
        for row in JUDGING
        if row in MEDIA or row.names[0] in ("--inputs", "--samples", "--seed", "--timeout")
    ),
)

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
        (
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
            ("verification", _RUNNING),
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
        (
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
            ("verification", _RUNNING),
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
