"""The commands and their options: one row each."""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import Any

from tfl_rewrite.cli.options import (
    IN_OUT,
    REPORT,
    WRITING,
    Argument,
    Command,
    Groups,
    flag,
    judging,
    rows_of,
    value,
)
from tfl_rewrite.judge.settings import FOLDED
from tfl_rewrite.options.option import Role

PREFIX = "pass_"
"""Of the values of the options of a pass or a goal: some have the name of one of the judging."""

# Nothing to tolerate where outputs must be equal, to the bit or to rounding, and nothing is fitted to inputs.
_TOLERATED = ("min_snr", "max_abs_error")


def _changed(rows: Iterable[Argument], name: str, **changes: Any) -> tuple[Argument, ...]:
    """Returns rows with that of a name changed."""
    return tuple(replace(row, **changes) if name in row.names else row for row in rows)


def _pass(name: str) -> tuple[Argument, ...]:
    from tfl_rewrite.passes import catalog

    # The ratio that a search is to keep is that of the verification there.
    return rows_of(catalog.find(name), without=("min_snr",), prefix=PREFIX)


def _groups(name: str, judged: tuple[Argument, ...]) -> Groups:
    return (
        ("files", IN_OUT),
        ("what to do", _pass(name)),
        ("verification", judged),
        ("writing", WRITING),
    )


def _fitted(name: str) -> Groups:
    return _groups(name, judging())


def _searched(name: str, option: str, sought: str) -> Groups:
    # There, the ratio that the outputs must keep is what the option is searched for.
    text = (
        f"without {option}: search {sought} every output at this ratio or more, "
        f"in dB; the file is run some hundred times. With {option}: refuse the result below it (default: 10)"
    )
    return _groups(name, _changed(judging(), "--min-snr", help=text))


def _plain(name: str) -> Groups:
    return _groups(name, judging(without=("holdout",)))


def _exact(name: str) -> Groups:
    return _groups(name, judging(without=(*_TOLERATED, "holdout")))


def commands_of_passes(known: Collection[str]) -> list[Command]:
    """Returns a command for each pass of the catalogue that has no row."""
    from tfl_rewrite.editing.base import Effect
    from tfl_rewrite.passes import catalog

    makers = dict.fromkeys((Effect.EXACT, Effect.FOLDING, Effect.INTERFACE), _exact)
    return [
        Command(
            kind.name,
            # As the other rows say it: "remove", where the pass "removes".
            re.sub(r"^(\w+)s\b", r"\1", catalog.summary(kind)),
            catalog.description(kind),
            "rewrite:rewrite_with_pass",
            functools.partial(makers.get(kind.effect, _fitted), kind.name),
            (f"tfl-rewrite {kind.name} in.tflite out.tflite",),
        )
        for kind in catalog.every()
        if kind.command and kind.name not in known
    ]


def _cutting() -> Groups:
    # There, --inputs names tensors.
    rows = judging(without=(*_TOLERATED, "holdout"))
    return _groups("remove-dead", _changed(rows, "--inputs", names=("--verify-inputs",)))


def _retargeting() -> Groups:
    # There, --runtime is what is to run OUT.
    rows = judging(without=("holdout", "resolver"))
    text = (
        "an interpreter that runs OUT, such as python:PATH for a Python that has the runtime; repeatable. "
        "IN runs in the first that is named by no path, litert without any: both must give the same"
    )
    return _groups("retarget", _changed(rows, "--runtime", names=("--verify-runtime",), help=text))


def _describing() -> Groups:
    target = replace(IN_OUT[1], extra={**IN_OUT[1].extra, "nargs": "?"})
    export = value(
        "--export",
        help="instead of OUT: write the metadata as JSON, and the files in the ZIP, to this folder",
        metavar="DIR",
        default=None,
    )
    judged = judging(without=("holdout",))
    return (
        ("files", (IN_OUT[0], target, export)),
        ("what to write", _pass("metadata")),
        ("verification", judged),
        ("writing", WRITING),
    )


def _running() -> Groups:
    what = (
        value(
            "--pass",
            help="a pass, with options after a colon: "
            "quantize-weights:scheme=dequantize,exclude=^a+^b; repeatable, in order. A comma or "
            "a plus sign in a value is written twice",
            action="append",
            default=[],
            dest="passes",
            metavar="NAME[:OPTION=VALUE,...]",
            role=Role.READ_PASSES,
        ),
        value("--preset", help="lossless, simplify or small", metavar="NAME", default=None),
    )
    return (
        ("files", IN_OUT),
        ("what to do", what),
        ("verification", judging()),
        ("writing", WRITING),
    )


def _reshaping() -> Groups:
    from tfl_rewrite.pipeline.targets import Reshaping

    judged = judging(without=(*_TOLERATED, "min_agreement", "holdout", *_NEVER_FAILS))
    return (
        ("files", IN_OUT),
        ("the new shapes", rows_of(Reshaping, prefix=PREFIX)),
        ("verification", judged),
        ("writing", WRITING),
    )


SEARCH_SECONDS = 480.0
_BUDGET = ("min_snr", "max_error", "min_agreement", "metric", "min_metric", "max_nbytes", "objective")

_SHOWING = (
    value(
        "--recipe-out",
        help="write the encodings as a recipe for quantize-weights --map",
        metavar="FILE.toml",
        role=Role.WRITE,
    ),
    value("--curve", help="write size against error", metavar="FILE.json|FILE.csv", role=Role.WRITE),
    value(
        "--plot",
        help="draw size against error, and what became of each constant",
        metavar="FILE.svg|FILE.png",
        role=Role.WRITE,
    ),
)

_JUDGED_BY_THE_GOAL = ("min_snr", "min_agreement", "max_abs_error")
_NEVER_FAILS = ("rescue", "blame", "blame_seconds")


def _shrinking() -> Groups:
    from tfl_rewrite.search.goals import Goal

    limit = f" (default: {SEARCH_SECONDS:g}; none: no limit)"
    searching = tuple(
        replace(row, help=row.help + limit) if "--time-limit" in row.names else row
        for row in rows_of(Goal, without=_BUDGET, prefix=PREFIX)
    )
    return (
        ("files", IN_OUT),
        ("the budget", rows_of(Goal, only=_BUDGET, prefix=PREFIX)),
        ("the search", searching),
        ("what to show", _SHOWING),
        ("verification", judging(without=(*_JUDGED_BY_THE_GOAL, *_NEVER_FAILS))),
        ("writing", WRITING),
    )


_MODE = (
    "for external buffers{0}. auto (default): run both{1}; if the original cannot run, "
    "say UNVERIFIED and still write. require: refuse then. off: run nothing. Parts are always compared "
    "byte by byte"
)


COMPARING = ("mode", "inputs", "input_range", "input_layout", "sample_rate", "samples", "seed", "timeout")
"""What says how a model whose weights lie beside it is compared with the whole one."""


def _comparing() -> tuple[Argument, ...]:
    rows = judging(only=COMPARING)
    return _changed(rows, "--verify", help=_MODE.format("", " in CompiledModel"))


def _comparing_base() -> tuple[Argument, ...]:
    rows = judging(without=("blame", "blame_seconds"))
    return _changed(rows, "--verify", help=_MODE.format(" (in CompiledModel), and for a base", ""))


_WRITING = ("dry_run", "force", "jobs")


def _sharding() -> Groups:
    from tfl_rewrite.shards.settings import ShardOptions

    folder = value(
        "target", help="the folder to write to; made if missing", metavar="OUTDIR", role=Role.FOLDER
    )
    return (
        ("files", (IN_OUT[0], folder)),
        ("what to write", rows_of(ShardOptions, without=_WRITING)),
        ("verification", _comparing_base()),
        ("writing", (*rows_of(ShardOptions, only=_WRITING), REPORT)),
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
        ("verification", _comparing()),
        ("writing", (*rows_of(JoinOptions, only=_WRITING), REPORT)),
    )


def _chaining() -> Groups:
    from tfl_rewrite.pipeline.chain import ChainOptions

    models = value(
        "models", help="one or two .tflite files, in their order", metavar="MODEL", nargs="+", role=Role.READ
    )
    writing = ("dry_run", "force")
    return (
        ("files", (models, replace(IN_OUT[1], role=Role.WRITE))),
        ("what to do", rows_of(ChainOptions, without=writing)),
        ("verification", judging(without=(*_TOLERATED, *_NEVER_FAILS, "min_agreement", "holdout"))),
        ("writing", (*rows_of(ChainOptions, only=writing), REPORT)),
    )


def _splitting() -> Groups:
    from tfl_rewrite.shards.split import SplitOptions

    folder = value(
        "target", help="the folder to write to; made if missing", metavar="OUTDIR", role=Role.FOLDER
    )
    writing = ("dry_run", "force")
    return (
        ("files", (IN_OUT[0], folder)),
        ("where to cut", rows_of(SplitOptions, without=writing)),
        ("verification", judging(without=(*_TOLERATED, *_NEVER_FAILS, "min_agreement", "holdout"))),
        ("writing", (*rows_of(SplitOptions, only=writing), REPORT)),
    )


_MODELS = value(
    "what",
    help="a TOML file that says everything, or .tflite files and patterns (** for any depth); "
    "folders below the start of a pattern are kept in DIR",
    metavar="CONFIG.toml|GLOB",
    nargs="+",
)


def _batching() -> Groups:
    """Makes its arguments; what is not given is left to the file."""
    from tfl_rewrite.batch.config import OPTIONS, ORDER, BatchConfig, Settings

    return (
        ("files", (_MODELS, *rows_of(BatchConfig, only=("out",)))),
        ("what to do", rows_of(Settings, only=ORDER)),
        ("verification", rows_of(Settings, only=[row.name for row in OPTIONS if row.name not in ORDER])),
        (
            "how to run",
            (
                *rows_of(BatchConfig, only=("jobs", "executor")),
                flag("--force", help="overwrite files that no batch made"),
            ),
        ),
    )


_MODEL = ("file", (value("model", help="the .tflite file", metavar="MODEL", role=Role.READ),))


def _two_files(before: str, after: str) -> tuple[str, tuple[Argument, ...]]:
    return (
        "files",
        (
            value("before", help=before, metavar="BEFORE", role=Role.READ),
            value("after", help=after, metavar="AFTER", role=Role.READ),
        ),
    )


def _verifying() -> Groups:
    judged = (
        *judging(without=("mode", "holdout", "rescue", "blame_seconds"), two_files=True),
        flag("--require", help="exit 3 when UNVERIFIED, or where a PASS rests on a guess"),
        replace(REPORT, help="write the verdict as JSON"),
        flag("--force", help="overwrite files that exist, such as an older report"),
    )
    return (_two_files("the original", "the rewritten file"), ("judgement", judged))


COMMANDS = (
    Command(
        "quantize-weights",
        "store float weights as integers of 12 to 2 bits or float16 (lossy)",
        make=lambda: _fitted("quantize-weights"),
        examples=(
            "tfl-rewrite quantize-weights in.tflite out.tflite --inputs samples.npz",
            "tfl-rewrite quantize-weights in.tflite out.tflite --dtype int4 --exclude '^logits'",
        ),
    ),
    Command(
        "quantize",
        "compute in integers: int8 or int16 activations, int8 weights (lossy)",
        make=lambda: _fitted("quantize"),
        examples=(
            "tfl-rewrite quantize in.tflite out.tflite --inputs samples.npz",
            "tfl-rewrite quantize in.tflite out.tflite --inputs photos/ --activations int16",
        ),
    ),
    Command(
        "shrink",
        "find the smallest file within a budget (lossy)",
        "Measures what each encoding of each constant costs at the outputs, chooses the smallest file that "
        "keeps the budget, and proves it on inputs that the search never saw. LOSSY: outputs change within "
        "the budget. Exit 4, with the trade-offs that were found, if a file that keeps it is "
        "larger than was asked for.",
        "shrink:shrink_file",
        _shrinking,
        (
            "tfl-rewrite shrink in.tflite out.tflite --min-snr 30 --inputs samples.npz",
            "tfl-rewrite shrink in.tflite out.tflite --max-size 5MB",
        ),
    ),
    Command(
        "round-weights",
        "round constants so that the file compresses better (lossy)",
        run="rewrite:round_weights",
        make=functools.partial(_searched, "round-weights", "--steps", "the coarsest rounding that keeps"),
        examples=("tfl-rewrite round-weights in.tflite out.tflite --min-snr 30 --inputs samples.npz",),
    ),
    Command(
        "prune",
        "make the weights zero that matter least, for downloads and sparse files (lossy)",
        run="rewrite:prune",
        make=functools.partial(_searched, "prune", "--sparsity", "the most zeros that keep"),
        examples=(
            "tfl-rewrite prune in.tflite out.tflite --min-snr 20 --inputs samples.npz",
            "tfl-rewrite prune in.tflite out.tflite --sparsity 0.7 --encode sparse --inputs samples.npz",
        ),
    ),
    Command(
        "dequantize",
        "turn integer and float16 weights back into float32",
        make=lambda: _plain("dequantize"),
        examples=("tfl-rewrite dequantize in.tflite out.tflite",),
    ),
    Command(
        "remove-dead",
        "remove what no output needs, or cut the model down to a part",
        make=_cutting,
        examples=(
            "tfl-rewrite remove-dead in.tflite out.tflite",
            "tfl-rewrite remove-dead in.tflite part.tflite --outputs embedding",
        ),
    ),
    Command(
        "reshape",
        "give inputs other shapes: a batch, a free batch, another resolution",
        "Resizes inputs; the runtime says what shapes follow from that, and constants that fix the old ones "
        "(targets of RESHAPE, sizes of slices, states) are changed where they follow. Each sample of a batch "
        "is compared with a run of IN. Exit 3, with the operator, where one does not follow.",
        "rewrite:reshape_file",
        _reshaping,
        (
            "tfl-rewrite reshape in.tflite out.tflite --batch 8",
            "tfl-rewrite reshape in.tflite out.tflite --input image=1,320,320,3",
        ),
    ),
    Command(
        "dedup",
        "store equal constants once and compute equal operators once",
        make=lambda: _exact("dedup"),
        examples=("tfl-rewrite dedup in.tflite out.tflite",),
    ),
    Command(
        "compact",
        "store the same content in fewer bytes",
        make=lambda: _exact("compact"),
        examples=("tfl-rewrite compact in.tflite out.tflite --strip min-max",),
    ),
    Command(
        "run",
        "apply several passes with one read, one write and one verification",
        "Applies passes in the order given, or a preset. Outputs are judged once, for the whole: by"
        f" --min-snr if a pass is lossy, at {FOLDED.min_snr:g} dB if one folds, else bit by bit. "
        "'tfl-rewrite passes' lists passes, their options and the presets.",
        "rewrite:run_passes",
        _running,
        (
            "tfl-rewrite run in.tflite out.tflite --preset lossless",
            "tfl-rewrite run in.tflite out.tflite --pass dedup --pass quantize-weights:dtype=float16",
        ),
    ),
    Command(
        "repair",
        "correct what keeps a file from being read as it is meant",
        make=lambda: _plain("repair"),
        examples=(
            "tfl-rewrite repair in.tflite out.tflite",
            "tfl-rewrite repair in.tflite out.tflite --only unaligned",
        ),
    ),
    Command(
        "rename",
        "give inputs, outputs, tensors and signatures other names",
        make=lambda: _exact("rename"),
        examples=(
            "tfl-rewrite rename in.tflite out.tflite --input x=image --output Identity=scores",
            "tfl-rewrite rename in.tflite out.tflite --signature serving_default=predict",
        ),
    ),
    Command(
        "retarget",
        "make a file load and compute right on an older or smaller runtime",
        make=_retargeting,
        examples=(
            "tfl-rewrite retarget in.tflite out.tflite --runtime 2.14",
            "tfl-rewrite retarget in.tflite out.tflite --runtime tflm --inputs samples.npz",
        ),
    ),
    Command(
        "signatures",
        "add and remove signatures, or keep one as the model",
        make=lambda: _exact("signatures"),
        examples=(
            "tfl-rewrite signatures in.tflite out.tflite --add predict:inputs=image=x,outputs=scores=y",
            "tfl-rewrite signatures in.tflite out.tflite --extract encode",
        ),
    ),
    Command(
        "metadata",
        "write what a model says of itself and its label files, or export them",
        run="rewrite:write_metadata",
        make=_describing,
        examples=(
            "tfl-rewrite metadata in.tflite out.tflite --labels labels.txt --mean 127.5 --std 127.5",
            "tfl-rewrite metadata in.tflite --export folder",
        ),
    ),
    Command(
        "passes",
        "list the passes, their options and the presets",
        "Lists the passes in the order of the presets, with the reason for it.",
        "rewrite:list_passes",
        lambda: (),
        ("tfl-rewrite passes", "tfl-rewrite passes --json"),
    ),
    Command(
        "diff",
        "show what changed between two files",
        "Compares two files tensor by tensor and operator by operator, and says where the bytes went. "
        "Nothing is run. Exit 0 whether they differ or not.",
        "read:diff_files",
        lambda: (_two_files("the first file", "the second file"),),
        ("tfl-rewrite diff before.tflite after.tflite -v",),
    ),
    Command(
        "verify",
        "run two files on the same inputs and compare their outputs",
        "Runs both files in processes of their own, twice, on the same inputs and compares every output of "
        "every signature. Exit 0: within the tolerance; 4: not, or AFTER crashes, hangs, takes too much "
        "memory or does not repeat its outputs; 0 with UNVERIFIED when that is so of BEFORE.",
        "rewrite:verify_files",
        _verifying,
        ("tfl-rewrite verify before.tflite after.tflite --inputs samples.npz --min-snr 30",),
    ),
    Command(
        "inspect",
        "show what is in a file and where its bytes are",
        "Shows operators, constants by operator and type, the largest tensors, duplicates, dead bytes, "
        "metadata, the appended ZIP, signatures and the oldest runtime that knows the file's operators.",
        "read:inspect_file",
        lambda: (
            _MODEL,
            (
                "output",
                (value("--largest", help="how many tensors to list (default: 20)", type=int, default=20),),
            ),
        ),
        ("tfl-rewrite inspect model.tflite -v", "tfl-rewrite inspect model.tflite --json"),
    ),
    Command(
        "doctor",
        "say what will go wrong with a file, where and why",
        "Reads a file, whoever made it, and lists what runtimes will refuse, misread or miss, with the fact "
        "behind it and the command that repairs it. Nothing is run and nothing is written. Exit 4: an "
        "error was found (or what --fail-on says); 5: the file is too damaged to be read.",
        "read:doctor_file",
        lambda: (
            _MODEL,
            (
                "what to look for",
                (
                    value(
                        "--min-runtime",
                        help="the oldest TensorFlow Lite release that is to run it, such as 2.14 or "
                        "litert-2.1: what is too new for it is an error",
                        metavar="VERSION",
                    ),
                    value(
                        "--fail-on",
                        help="exit 4 if anything is as bad as that (default: error)",
                        choices=("error", "warning", "note"),
                        default="error",
                    ),
                ),
            ),
        ),
        (
            "tfl-rewrite doctor model.tflite -v",
            "tfl-rewrite doctor model.tflite --min-runtime 2.14 --fail-on warning",
        ),
    ),
    Command(
        "check",
        "check that files are structurally sound",
        "Checks every offset, every index, and buffer sizes against shapes. Nothing is run. Exit 0: all "
        "sound; 5: at least one is not, with the place of the fault; 2: one cannot be read.",
        "read:check_files",
        lambda: (
            ("files", (value("models", help=".tflite files", metavar="MODEL", nargs="+", role=Role.READ),)),
        ),
        ("tfl-rewrite check model.tflite", "tfl-rewrite check first.tflite second.tflite -q"),
    ),
    Command(
        "shard",
        "write a model as several files",
        "Writes IN as files of at most --max-size. parts (default): pieces with names made of their content, "
        "and a manifest; any web server can serve them, 'join' restores the file byte for byte, and a second "
        "version in the same folder shares what did not change. With --progressive the first of them make a "
        "model of int8 weights that runs before the rest is there. external: a small model.tflite and weight "
        "files that LiteRT 2.1 and newer runs directly (CompiledModel, not the classic Interpreter). Parts "
        "are compared byte by byte; options of the verification are for --progressive, and some of them for "
        "external.",
        "shard:shard_model",
        _sharding,
        (
            "tfl-rewrite shard in.tflite parts --max-size 4MB",
            "tfl-rewrite shard in.tflite parts --progressive --inputs samples.npz",
            "tfl-rewrite shard in.tflite folder --format external",
        ),
    ),
    Command(
        "join",
        "make one file of a model in several",
        "Makes OUT of a manifest of parts (a path, an http or https URL, or a URL of a store that fsspec "
        "reads), with every hash checked; a join that was stopped goes on where it was. Or of a model with "
        "external buffers, whose weights come back into one file.",
        "shard:join_model",
        _joining,
        (
            "tfl-rewrite join parts/manifest.json out.tflite",
            "tfl-rewrite join --base parts/manifest.json int8.tflite",
        ),
    ),
    Command(
        "chain",
        "make one model of two that follow each other, with pre- and post-processing",
        "Makes OUT of one or two models: the second takes what the first gives (--connect), --prepend puts "
        "normalization, a cast or a resize before an input, --append a softmax, argmax or top-k behind an "
        "output. The whole is compared to the bit with running its parts one after the other, and what is "
        "put around them with numpy. Options stand behind the files.",
        "shard:chain_models",
        _chaining,
        (
            "tfl-rewrite chain encoder.tflite head.tflite out.tflite --connect embedding=x",
            "tfl-rewrite chain in.tflite out.tflite --prepend cast:uint8 --prepend "
            "normalize:mean=127.5,std=127.5 --append top-k:5",
        ),
    ),
    Command(
        "split",
        "cut a model into parts that run one after the other",
        "Writes IN as models that take what those before them gave, and a manifest of who feeds whom; "
        "tfl_rewrite.Chain runs them. It is cut where few bytes cross, and never where a state would be "
        "torn. The parts are compared to the bit with the whole. For files that are only fetched in pieces "
        "there is shard.",
        "shard:split_model",
        _splitting,
        (
            "tfl-rewrite split in.tflite parts --parts 3",
            "tfl-rewrite split in.tflite parts --max-size 5MB",
        ),
    ),
    Command(
        "batch",
        "apply passes to many files, several at once",
        "Applies the same passes to many files, each in a process of its own, goes on past failures, and "
        "writes OUT/summary.json and OUT/summary.csv. Run again, it does what is left: files whose input, "
        "settings and output are as they were are not run twice. Exit 0: every file is done; else the worst "
        "of them: 4 an output differs too much, 5 a file is damaged, 2 it cannot be read or its process "
        "died, 3 unsupported.",
        "batch:batch_files",
        _batching,
        (
            "tfl-rewrite batch 'models/**/*.tflite' --out small --preset small",
            "tfl-rewrite batch batch.toml --json",
        ),
    ),
    Command(
        "help",
        "explain a command, or print the manual page",
        "Prints what '--help' after a command prints.",
        "manual:show_help",
        lambda: (
            (
                "what to explain",
                (
                    value("topic", help="a command (default: all of them)", metavar="COMMAND", nargs="?"),
                    flag("--man", help="print the manual page of all commands, for man(1)"),
                ),
            ),
        ),
        ("tfl-rewrite help quantize-weights", "tfl-rewrite help --man >tfl-rewrite.1"),
    ),
    Command(
        "completion",
        "print what makes a shell complete commands and options",
        "Prints a script that completes commands, options, their values and file names.",
        "manual:show_completion",
        lambda: (
            (
                "the shell",
                (
                    value(
                        "shell",
                        help="bash, zsh or fish",
                        metavar="SHELL",
                        choices=("bash", "zsh", "fish"),
                    ),
                ),
            ),
        ),
        (
            "tfl-rewrite completion bash >~/.local/share/bash-completion/completions/tfl-rewrite",
            "tfl-rewrite completion zsh >~/.zfunc/_tfl-rewrite",
            "tfl-rewrite completion fish >~/.config/fish/completions/tfl-rewrite.fish",
        ),
    ),
)
"""In the order of the help; a pass of the catalogue that has no row gets one."""
