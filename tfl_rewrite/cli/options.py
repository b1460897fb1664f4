"""What the tables of commands are made of: rows of arguments, and the groups that several commands share."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class Role(Enum):
    """What a command does with the files that an argument names; :mod:`tfl_rewrite.cli.files` checks it."""

    READ = "reads them, or those of the folder"
    READ_MAP = "reads it, if it is a TOML file"
    READ_PASSES = "reads those that options of passes name"
    READ_RUNTIME = "starts it, if it is a path"
    WRITE = "writes it"
    OUT = "writes it, maybe in place of IN"
    KEEP = "reads it and writes it, if it is of its own making"
    FOLDER = "writes into it"


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument: its names, what argparse is to know of it, and what becomes of a file that it names."""

    names: tuple[str, ...]
    help: str
    extra: dict[str, Any] = field(default_factory=dict)
    role: Role | None = None


@dataclass(frozen=True, slots=True)
class Command:
    """One subcommand: its arguments, in groups."""

    name: str
    help: str
    description: str
    groups: tuple[tuple[str, tuple[Argument, ...]], ...]


def flag(*names: str, help: str) -> Argument:
    """Returns the row of an option that is given or not."""
    return Argument(names, help, {"action": "store_true"})


def value(*names: str, help: str, role: Role | None = None, **extra: Any) -> Argument:
    """Returns the row of an argument with a value; ``extra`` is what argparse is to know of it."""
    return Argument(names, help, extra, role)


IN_OUT = (
    value("source", help="the .tflite file to read; it is not changed", metavar="IN", role=Role.READ),
    value("target", help="the .tflite file to write", metavar="OUT", role=Role.OUT),
)

REPORT = value("--report", help="write the whole report as JSON", metavar="FILE.json", role=Role.WRITE)

WRITING = (
    flag("--dry-run", help="do everything but the write"),
    flag("--force", help="overwrite files that exist, whichever it writes (OUT may be IN then)"),
    REPORT,
    value(
        "--threads",
        help="threads for measuring, rounding and writing (default: one per processor)",
        type=int,
        default=0,
    ),
)


def _range(text: str) -> tuple[float, float]:
    low, _, high = text.partition(",")
    return float(low), float(high)


_range.__name__ = "LO,HI"

MEDIA = (
    value(
        "--input-range",
        help="what pixels 0 and 255 (or sound at full scale) become; default: as the metadata of the model "
        "says, else -1,1, and raw pixels for 8-bit inputs",
        type=_range,
        metavar="LO,HI",
        default=None,
    ),
    value(
        "--input-layout",
        help="axes of an input that takes pictures or sound, such as NHWC, NCHW, HWC or NT (T: time); "
        "default: told from the sizes",
        type=str.upper,
        metavar="AXES",
        default=None,
    ),
    value(
        "--sample-rate",
        help="resample sound to this rate in Hz; default: as the metadata of the model says, else as the "
        "files are",
        type=int,
        metavar="HZ",
        default=None,
    ),
)

BLAMING = (
    flag(
        "--blame",
        help="after the verdict, run both files again with all tensors kept, and print where the error "
        "enters and grows, operator by operator",
    ),
    value(
        "--blame-out",
        help="write that as node data for Model Explorer, over the graph of the rewritten file; implies "
        "--blame",
        metavar="FILE.json",
        default=None,
        role=Role.WRITE,
    ),
)

JUDGING = (
    value(
        "--inputs",
        help="real inputs to run with: a .npz (one array per input name, first axis = samples), a picture, a "
        "sound file, or a folder of such; repeatable. Without it, seeded samples are made",
        metavar="PATH",
        action="append",
        default=[],
        role=Role.READ,
    ),
    *MEDIA,
    value("--samples", help="how many samples are made (default: 4)", type=int, default=4, metavar="N"),
    value("--seed", help="seed of the made samples (default: 0)", type=int, default=0, metavar="S"),
    value(
        "--min-snr",
        help="least signal-to-noise ratio of every output, in dB (default: 20)",
        type=float,
        default=20.0,
        metavar="DB",
    ),
    value(
        "--min-agreement",
        help="least share of samples (in a segmentation, of positions) whose largest score stays the "
        "largest, where an output may be scores over classes; of fewer than 10 one may differ (default: 0.9)",
        type=float,
        default=0.9,
        metavar="SHARE",
    ),
    value(
        "--max-abs-error",
        help="largest error of any element of an output",
        type=float,
        metavar="X",
        default=None,
    ),
    value(
        "--runtime",
        help="which interpreter judges: litert (default), tensorflow, or python:PATH for the one that "
        "another Python installation has (tflite-runtime, a vendor's build): the first that runs the "
        "original, or the one named by python:PATH:litert, :tflite_runtime or :tensorflow; repeatable: each "
        "one judges, and the worst verdict counts",
        action="append",
        default=[],
        metavar="NAME",
        role=Role.READ_RUNTIME,
    ),
    value(
        "--resolver",
        help="which of its kernels run both files: default (XNNPACK), builtin (optimized, no delegate) or "
        "reference (slow); repeatable: each runtime judges with each. Without it: default, or builtin if the "
        "original runs with nothing else",
        action="append",
        choices=("default", "builtin", "reference"),
        default=[],
    ),
    flag(
        "--independent",
        help="run each sample in a new interpreter. Otherwise all samples are one sequence, in order: what a "
        "model keeps in variables carries over",
    ),
    value("--timeout", help="seconds for each run of a file (default: 600)", type=float, default=600.0),
    value(
        "--memory-limit",
        help="memory that the interpreters of both files may take together, such as 4GB; one that takes more "
        "is ended (default: 80 % of the machine's)",
        default=None,
        metavar="SIZE",
    ),
    *BLAMING,
)

VERIFYING = (
    value(
        "--verify",
        help="auto (default): run both files; if IN itself cannot run, say UNVERIFIED and still write a file "
        "that was checked structurally. require: refuse then. off: run nothing",
        choices=("auto", "require", "off"),
        default="auto",
    ),
    *JUDGING,
    flag(
        "--no-rescue",
        help="refuse a result that fails. Without this, the constants that did the damage are stored finer "
        "(int8 behind DEQUANTIZE, then float16, then as they were) until the outputs pass",
    ),
    value(
        "--blame-seconds",
        help="after a failure, how long to look for the constants that did it (default: 5)",
        type=float,
        default=5.0,
        metavar="S",
    ),
)

HOLDOUT = (
    value(
        "--holdout",
        help="real inputs that nothing is fitted to and that alone judge OUT; repeatable. Without it: a "
        "quarter of the samples of --inputs, two at least, where something is fitted to them, else all",
        metavar="PATH",
        action="append",
        default=[],
        role=Role.READ,
    ),
)

TALKING = (
    flag("-q", "--quiet", help="print errors only"),
    Argument(("-v", "--verbose"), "print more; twice: tracebacks too", {"action": "count", "default": 0}),
)
