"""Every option of every subcommand, as rows."""

from __future__ import annotations

import argparse
import re
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
    _value(
        "--input-range",
        help="what pixels 0 and 255 (or sound at full scale) become; default: as the metadata of the model "
        "says, else -1,1, and raw pixels for 8-bit inputs",
        type=_range,
        metavar="LO,HI",
        default=None,
    ),
    _value(
        "--input-layout",
        help="axes of an input that takes pictures or sound, such as NHWC, NCHW, HWC or NT (T: time); "
        "default: told from the sizes",
        type=str.upper,
        metavar="AXES",
        default=None,
    ),
    _value(
        "--sample-rate",
        help="resample sound to this rate in Hz; default: as the metadata of the model says, else as the "
        "files are",
        type=int,
        metavar="HZ",
        default=None,
    ),
)

BLAMING = (
    _flag(
        "--blame",
        help="after the verdict, run both files again with all tensors kept, and print where the error "
        "enters and grows, operator by operator",
    ),
    _value(
        "--blame-out",
        help="write that as node data for Model Explorer, over the graph of the rewritten file; implies "
        "--blame",
        metavar="FILE.json",
        default=None,
    ),
)

JUDGING = (
    _value(
        "--inputs",
        help="real inputs to run with: a .npz (one array per input name, first axis = samples), a picture, a "
        "sound file, or a folder of such; repeatable. Without it, seeded samples are made",
        metavar="PATH",
        action="append",
        default=[],
    ),
    *MEDIA,
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
        "another Python installation has (tflite-runtime, a vendor's build); repeatable: each one judges, "
        "and the worst verdict counts",
        action="append",
        default=[],
        metavar="NAME",
    ),
    _value(
        "--resolver",
        help="which of its kernels run both files: default (XNNPACK), builtin (optimized, no delegate) or "
        "reference (slow); repeatable: each runtime judges with each. Without it: default, or builtin if the "
        "original runs with nothing else",
        action="append",
        choices=("default", "builtin", "reference"),
        default=[],
    ),
    _flag(
        "--independent",
        help="run each sample in a new interpreter. Otherwise all samples are one sequence, in order: what a "
        "model keeps in variables carries over",
    ),
    _value("--timeout", help="seconds for each run of a file (default: 600)", type=float, default=600.0),
    _value(
        "--memory-limit",
        help="memory that the interpreters of both files may take together, such as 4GB; one that takes more "
        "is ended (default: 80 % of the machine's)",
        default=None,
        metavar="SIZE",
    ),
    *BLAMING,
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
        "--dtype",
        help="what weights become: int8 (default), int6 (an int4 and an int2 that add up), int4, int2, "
        "float16, or float32 to keep all but what --map names",
        choices=("int8", "int6", "int4", "int2", "float16", "float32"),
        default="int8",
    ),
    _value(
        "--map",
        help="mixed precision by hand: rules between commas, such as 'conv.*=int4:block:32,logits=float32', "
        "or a TOML file. A rule matches names and operator types; the first that matches decides, --dtype "
        "the rest",
        default=None,
        metavar="REGEX=ENCODING,...|FILE.toml",
    ),
    _value(
        "--scheme",
        help="hybrid: the runtime's dynamic-range kernels read the integers (smaller and faster). "
        "dequantize: integer constant, DEQUANTIZE, float kernel (smaller file, same memory as float; same "
        "speed with int8 and float16). auto (default): hybrid where a kernel takes it, dequantize elsewhere",
        choices=("auto", "hybrid", "dequantize"),
        default="auto",
    ),
    _value(
        "--granularity",
        help="one scale per channel where the kernel takes it (default), per tensor, or per block of so many "
        "elements: block:32, block:64, block:128",
        default="channel",
        metavar="channel|tensor|block:N",
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
        "--effort",
        help="fast: scales that cover the largest value, nearest integers. balanced (default): scales of "
        "least squared error; with --inputs, integers chosen for what the weights are multiplied with. best: "
        "with --inputs, weight by weight, each for what it meets behind those before it (runs parts of the "
        "model for every weight)",
        choices=("fast", "balanced", "best"),
        default="balanced",
    ),
    _flag(
        "--no-bias-correction",
        help="with --inputs: leave biases as they are, instead of letting them take back what rounding does "
        "to mean outputs",
    ),
    _value(
        "--min-runtime",
        help="oldest TensorFlow Lite release that must compute OUT, such as 2.14 (default: the newest)",
        default=None,
        metavar="VERSION",
    ),
)

_CUTTING = (
    _value(
        "--outputs",
        help="tensors that become the outputs: names, or #INDEX where names are missing or not unique; "
        "between commas, or repeated",
        action="append",
        default=None,
        metavar="NAME,...",
        dest="cut_outputs",
    ),
    _value(
        "--inputs",
        help="tensors that become the inputs; what the outputs need must follow from them",
        action="append",
        default=None,
        metavar="NAME,...",
        dest="cut_inputs",
    ),
)

_STRIPPING = (
    _value(
        "--strip",
        help="drop more: names (of tensors inside), min-max (ranges that the converter noted), metadata:NAME",
        action="append",
        default=[],
        metavar="WHAT,...",
    ),
)

_PURE_CUSTOM = (
    _value(
        "--pure-custom",
        help="a custom operator that only computes outputs from inputs, so that it may go; repeatable",
        action="append",
        default=[],
        metavar="NAME",
    ),
)

# Nothing to tolerate where outputs must be equal to the bit.
_EXACT = tuple(row for row in VERIFYING if not {"--min-snr", "--max-abs-error"} & set(row.names))

# There, --inputs names tensors.
_EXACT_OF_A_PART = tuple(
    Argument(("--verify-inputs",), row.help, {**row.extra, "dest": "inputs"})
    if "--inputs" in row.names
    else row
    for row in _EXACT
)

_ROUNDING = (
    _value(
        "--steps",
        help="at most N steps between the smallest and the largest value of a channel or tensor (default: "
        "256, unless --min-snr is given)",
        type=int,
        default=None,
        metavar="N",
    ),
    _value(
        "--granularity",
        help="which values share a step. auto (default): those of a channel of weights that are summed, else "
        "of the tensor; a search decides by measurement",
        choices=("auto", "channel", "tensor"),
        default="auto",
    ),
    _flag("--int8", help="round int8 constants too: fewer different values, same type"),
    _value(
        "--min-elements",
        help="keep smaller constants as they are (default: 16)",
        type=int,
        default=16,
        metavar="N",
    ),
)

# There, the ratio that the outputs must keep is what the steps are searched for.
_SEARCHING = tuple(
    Argument(
        row.names,
        "without --steps: search the coarsest rounding that keeps every output at this ratio or more, in dB; "
        "the file is run some hundred times. With --steps: refuse the result below it (default: 10)",
        {**row.extra, "default": None},
    )
    if "--min-snr" in row.names
    else row
    for row in VERIFYING
)

COMMANDS = (
    Command(
        "quantize-weights",
        "store float weights as int8, int6, int4, int2 or float16 (lossy)",
        "Stores float weights smaller, with float activations: as int8 (default), or as --dtype and --map "
        "say. Runs the model before and after, and writes OUT only if every output keeps --min-snr. LOSSY: "
        "outputs change a little. Biases, small constants and what is quantized already stay as they are.",
        (
            ("files", IN_OUT),
            ("what to rewrite", _SELECTING),
            ("verification", VERIFYING),
            ("writing", WRITING),
            ("talk", TALKING),
        ),
    ),
    Command(
        "round-weights",
        "round constants so that the file compresses better (lossy)",
        "Rounds float constants to values that deflate well: the file keeps its size, its types and its "
        "speed, and the compressed download gets smaller. The model is run before and after. LOSSY: outputs "
        "change a little.",
        (
            ("files", IN_OUT),
            ("how to round", _ROUNDING),
            ("verification", _SEARCHING),
            ("writing", WRITING),
            ("talk", TALKING),
        ),
    ),
    Command(
        "dequantize",
        "turn integer and float16 weights back into float32",
        "Turns int8, uint8, int4, int2 and float16 weights into the float32 values that they stand for, for "
        "tools and delegates that want those; the file grows. What stands behind DEQUANTIZE stays equal to "
        "the bit; an operator that read integers itself no longer rounds its activations, so outputs change "
        "a little. Operators that compute in integers stay.",
        (
            ("files", IN_OUT),
            ("verification", VERIFYING),
            ("writing", WRITING),
            ("talk", TALKING),
        ),
    ),
    Command(
        "remove-dead",
        "remove what no output needs, or cut the model down to a part",
        "Removes operators that reach no output and have no effect of their own, and tensors, buffers, "
        "operator codes and subgraphs that nothing refers to. With --outputs or --inputs, the main subgraph "
        "is cut first to the part between them. Outputs stay equal to the bit.",
        (
            ("files", IN_OUT),
            ("what to keep", (*_CUTTING, *_STRIPPING, *_PURE_CUSTOM)),
            ("verification", _EXACT_OF_A_PART),
            ("writing", WRITING),
            ("talk", TALKING),
        ),
    ),
    Command(
        "dedup",
        "store equal constants once and compute equal operators once",
        "Merges equal constant buffers, constant tensors that differ in nothing but the name, and operators "
        "that compute the same from the same. Outputs stay equal to the bit.",
        (
            ("files", IN_OUT),
            ("what to merge", _PURE_CUSTOM),
            ("verification", _EXACT),
            ("writing", WRITING),
            ("talk", TALKING),
        ),
    ),
    Command(
        "compact",
        "store the same content in fewer bytes",
        "Lays the file out anew: equal vectors, strings, tables and constants once, defaults and empty "
        "fields left out, offset buffers taken in while the file is under 2 GiB. Outputs stay equal to the "
        "bit; a file that would not get smaller is copied.",
        (
            ("files", IN_OUT),
            (
                "how to store it",
                (
                    *_STRIPPING,
                    _value(
                        "--align",
                        help="constants of at least N bytes start on a multiple of N in the file, such as "
                        "4096 for pages that are mapped; the file may grow then (default: 16)",
                        type=int,
                        default=16,
                        metavar="N",
                    ),
                ),
            ),
            ("verification", _EXACT),
            ("writing", WRITING),
            ("talk", TALKING),
        ),
    ),
    Command(
        "run",
        "apply several passes with one read, one write and one verification",
        "Applies passes in the order given, or a preset. Outputs are judged once, for the whole: by "
        "--min-snr if a pass is lossy, else bit by bit. 'tfl-rewrite passes' lists passes, their options and "
        "the presets.",
        (
            ("files", IN_OUT),
            (
                "what to do",
                (
                    _value(
                        "--pass",
                        help="a pass, with options after a colon: "
                        "quantize-weights:scheme=dequantize,exclude=^a+^b; repeatable, in order",
                        action="append",
                        default=[],
                        dest="passes",
                        metavar="NAME[:OPTION=VALUE,...]",
                    ),
                    _value("--preset", help="lossless or small", metavar="NAME", default=None),
                ),
            ),
            ("verification", VERIFYING),
            ("writing", WRITING),
            ("talk", TALKING),
        ),
    ),
    Command(
        "passes",
        "list the passes, their options and the presets",
        "Lists the passes in the order of the presets, with the reason for it.",
        (("output", (_flag("--json", help="print JSON"),)), ("talk", TALKING)),
    ),
    Command(
        "diff",
        "show what changed between two files",
        "Compares two files tensor by tensor and operator by operator, and says where the bytes went. "
        "Nothing is run. Exit 0 whether they differ or not.",
        (
            (
                "files",
                (
                    _value("before", help="the first file", metavar="BEFORE"),
                    _value("after", help="the second file", metavar="AFTER"),
                ),
            ),
            ("output", (_flag("--json", help="print JSON"),)),
            ("talk", TALKING),
        ),
    ),
    Command(
        "verify",
        "run two files on the same inputs and compare their outputs",
        "Runs both files in processes of their own, twice, on the same inputs and compares every output of "
        "every signature. Exit 0: within the tolerance; 4: not, or AFTER crashes, hangs, takes too much "
        "memory or does not repeat its outputs; 0 with UNVERIFIED when that is so of BEFORE.",
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
                    _flag("--require", help="exit 3 when UNVERIFIED"),
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

_RUNNING = (
    _value(
        "--verify",
        help="for external buffers. auto (default): run both in CompiledModel; if the original cannot run, "
        "say UNVERIFIED and still write. require: refuse then. off: run nothing. Parts are always compared "
        "byte by byte",
        choices=("auto", "require", "off"),
        default="auto",
    ),
    *(row for row in JUDGING if row.names[0] in ("--inputs", "--samples", "--seed", "--timeout")),
)

_KEEPING = (
    _flag("--dry-run", help="do everything but the write"),
    _value("--report", help="write the whole report as JSON", metavar="FILE.json"),
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
                    _value("target", help="the folder to write to; made if missing", metavar="OUTDIR"),
                ),
            ),
            (
                "what to write",
                (
                    _value(
                        "--format",
                        help="parts (default) or external",
                        choices=("parts", "external"),
                        default="parts",
                    ),
                    _value(
                        "--max-size",
                        help="largest file: bytes, or such as 4MB (decimal) or 512KiB (default: 4MB)",
                        default="4MB",
                        metavar="SIZE",
                    ),
                    _value(
                        "--compress",
                        help="none (default), or gzip for parts that get smaller by it",
                        choices=("none", "gzip"),
                        default="none",
                    ),
                    _value(
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
                    _flag("--force", help="replace files of these names that have other content"),
                    _value(
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
        "Makes OUT of a manifest of parts (a path, an http or https URL, or any URL that fsspec reads), with "
        "every hash checked; a join that was stopped goes on where it was. Or of a model with external "
        "buffers, whose weights come back into one file.",
        (
            (
                "files",
                (
                    _value(
                        "source",
                        help="path or URL of a manifest, or a model whose weights lie beside it",
                        metavar="MANIFEST|URL|MODEL",
                    ),
                    IN_OUT[1],
                ),
            ),
            (
                "trust",
                (
                    _value(
                        "--sha256",
                        help="refuse a manifest of any other model",
                        metavar="HEX",
                        default=None,
                    ),
                    _flag(
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
                    _flag("--force", help="overwrite an existing OUT"),
                    _value("--jobs", "--threads", help="parts at once (default: 4)", type=int, default=4),
                ),
            ),
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
    # Late: their rows are made of those above.
    from tfl_rewrite.cli.batch_commands import BATCHING
    from tfl_rewrite.cli.doctor_commands import DOCTORING
    from tfl_rewrite.cli.shrink_commands import SHRINKING

    for command in (*COMMANDS, *SHRINKING, *SHARDING, *DOCTORING, *BATCHING):
        made = commands.add_parser(command.name, help=command.help, description=command.description)
        # A range may begin with a negative number, as in --input-range -1,1.
        made._negative_number_matcher = re.compile(r"^-\.?\d")
        for title, arguments in command.groups:
            _add(made.add_argument_group(title), arguments)
    return top


def _add(group: argparse._ArgumentGroup, arguments: Sequence[Argument]) -> None:
    for argument in arguments:
        group.add_argument(*argument.names, help=argument.help.replace("%", "%%"), **argument.extra)
