"""Every option of every subcommand, as rows."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument: its names and what argparse is to know of it."""

    names: tuple[str, ...]
    help: str
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Command:
    """One subcommand: its arguments, in groups."""

    name: str
    help: str
    description: str
    groups: tuple[tuple[str, tuple[Argument, ...]], ...]


def _flag(*names: str, help: str) -> Argument:
    return Argument(names, help, {"action": "store_true"})


def _value(*names: str, help: str, **extra: Any) -> Argument:
    return Argument(names, help, extra)


IN_OUT = (
    _value("source", help="the .tflite file to read; it is not changed", metavar="IN"),
    _value("target", help="the .tflite file to write", metavar="OUT"),
)

WRITING = (
    _flag("--dry-run", help="do everything but the write"),
    _flag("--force", help="overwrite an existing OUT (IN and OUT may be the same file)"),
    _value("--report", help="write the whole report as JSON", metavar="FILE.json"),
    _value(
        "--threads", help="threads for rounding and writing (default: one per processor)", type=int, default=0
    ),
)

JUDGING = (
    _value(
        "--inputs",
        help="real inputs to run with: a .npz (one array per input name, first axis = samples) or a folder "
        "of them; repeatable. Without it, seeded samples are made",
        metavar="PATH",
        action="append",
        default=[],
    ),
    _value("--samples", help="how many samples are made (default: 4)", type=int, default=4, metavar="N"),
    _value("--seed", help="seed of the made samples (default: 0)", type=int, default=0, metavar="S"),
    _value(
        "--min-snr",
        help="least signal-to-noise ratio of every output, in dB (default: 10)",
        type=float,
        default=10.0,
        metavar="DB",
    ),
    _value(
        "--max-abs-error",
        help="largest error of any element of an output",
        type=float,
        metavar="X",
        default=None,
    ),
    _value(
        "--runtime",
        help="which interpreter judges: litert (default), tensorflow, or python:PATH for the one that "
        "another Python installation has",
        default="litert",
        metavar="NAME",
    ),
    _value("--timeout", help="seconds for each run of a file (default: 600)", type=float, default=600.0),
)

VERIFYING = (
    _value(
        "--verify",
        help="auto (default): run both files; if IN itself cannot run, say UNVERIFIED and still write a file "
        "that was checked structurally. require: refuse then. off: run nothing",
        choices=("auto", "require", "off"),
        default="auto",
    ),
    *JUDGING,
    _value(
        "--blame-seconds",
        help="after a failure, how long to look for the constants that did it (default: 5)",
        type=float,
        default=5.0,
        metavar="S",
    ),
)

TALKING = (
    _flag("-q", "--quiet", help="print errors only"),
    Argument(("-v", "--verbose"), "print more; twice: tracebacks too", {"action": "count", "default": 0}),
)

_SELECTING = (
    _value(
        "--scheme",
        help="hybrid: the runtime's dynamic-range kernels read int8 (smaller and faster). dequantize: int8 "
        "constant, DEQUANTIZE, float kernel (smaller file, same speed and memory as float). auto (default): "
        "hybrid where a kernel takes it, dequantize elsewhere",
        choices=("auto", "hybrid", "dequantize"),
        default="auto",
    ),
    _value(
        "--granularity",
        help="one scale per channel where the kernel takes it (default), or one per tensor",
        choices=("channel", "tensor"),
        default="channel",
    ),
    _value(
        "--min-elements",
        help="keep smaller constants as they are (default: 1024; in a small model fewer for weights of "
        "hybrid kernels: a 400th of all constant elements, at least 64)",
        type=int,
        default=None,
        metavar="N",
    ),
    _value(
        "--include",
        help="rewrite only constants whose name, or the type of an operator that reads them, matches; "
        "repeatable",
        action="append",
        default=[],
        metavar="REGEX",
    ),
    _value(
        "--exclude",
        help="keep constants whose name or reader's type matches; wins over --include; repeatable",
        action="append",
        default=[],
        metavar="REGEX",
    ),
    _flag("--keep-first-last", help="keep the weights of the first and the last weighted operator"),
    _value(
        "--min-runtime",
        help="oldest TensorFlow Lite release that must compute OUT, such as 2.14 (default: the newest)",
        default=None,
        metavar="VERSION",
    ),
)

COMMANDS = (
    Command(
        "quantize-weights",
        "store float weights as int8 (lossy)",
        "Stores float weights as int8 with float activations, runs the model before and after, and writes "
        "OUT only if every output keeps --min-snr. LOSSY: outputs change a little. Biases, small constants "
        "and what is quantized already stay as they are.",
        (
            ("files", IN_OUT),
            ("what to rewrite", _SELECTING),
            ("verification", VERIFYING),
            ("writing", WRITING),
            ("talk", TALKING),
        ),
    ),
    Command(
        "verify",
        "run two files on the same inputs and compare their outputs",
        "Runs both files in processes of their own on the same inputs and compares every output of every "
        "signature. Exit 0: within the tolerance; 4: not; 0 with UNVERIFIED when BEFORE cannot run.",
        (
            (
                "files",
                (
                    _value("before", help="the original", metavar="BEFORE"),
                    _value("after", help="the rewritten file", metavar="AFTER"),
                ),
            ),
            (
                "judgement",
                (
                    *JUDGING,
                    _flag("--exact", help="outputs must be equal to the bit"),
                    _flag("--require", help="exit 3 when BEFORE cannot run"),
                    _value("--report", help="write the verdict as JSON", metavar="FILE.json"),
                ),
            ),
            ("talk", TALKING),
        ),
    ),
    Command(
        "inspect",
        "show what is in a file and where its bytes are",
        "Shows operators, constants by operator and type, the largest tensors, duplicates, dead bytes, "
        "metadata, the appended ZIP, signatures and the oldest runtime that knows the file's operators.",
        (
            ("file", (_value("model", help="the .tflite file", metavar="MODEL"),)),
            (
                "output",
                (
                    _flag("--json", help="print JSON"),
                    _value("--largest", help="how many tensors to list (default: 20)", type=int, default=20),
                ),
            ),
            ("talk", TALKING),
        ),
    ),
    Command(
        "check",
        "check that files are structurally sound",
        "Checks every offset, every index, and buffer sizes against shapes. Nothing is run. Exit 0: all "
        "sound; 2: at least one is not, with the place of the fault.",
        (
            ("files", (_value("models", help=".tflite files", metavar="MODEL", nargs="+"),)),
            ("output", (_flag("--json", help="print JSON"),)),
            ("talk", TALKING),
        ),
    ),
)


def parser(version: str) -> argparse.ArgumentParser:
    """Builds the parser from the rows."""
    top = argparse.ArgumentParser(
        prog="tfl-rewrite",
        description="Rewrites somebody else's .tflite file: smaller, nothing lost, verified by running it "
        "before and after.",
        epilog="Exit codes: 0 done, or nothing to do; 2 usage or input error; 3 refused as unsupported; "
        "4 outputs differ beyond the tolerance; 130 interrupted. Nothing is written unless 0.",
    )
    top.add_argument("--version", action="version", version=f"tfl-rewrite {version}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in COMMANDS:
        made = commands.add_parser(command.name, help=command.help, description=command.description)
        for title, arguments in command.groups:
            _add(made.add_argument_group(title), arguments)
    return top


def _add(group: argparse._ArgumentGroup, arguments: Sequence[Argument]) -> None:
    for argument in arguments:
        group.add_argument(*argument.names, help=argument.help.replace("%", "%%"), **argument.extra)
