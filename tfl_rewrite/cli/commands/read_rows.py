"""The options of the commands that show, check or compare and write no model."""

from __future__ import annotations

from dataclasses import replace

from tfl_rewrite.cli.options import REPORT, Argument, Command, Groups, flag, judging, value
from tfl_rewrite.options.option import Role

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
        *judging(without=("mode", "holdout", "rescue", "blame_seconds")),
        flag("--require", help="exit 3 when UNVERIFIED"),
        replace(REPORT, help="write the verdict as JSON"),
        flag("--force", help="overwrite files that exist, such as an older report"),
    )
    return (_two_files("the original", "the rewritten file"), ("judgement", judged))


READING = (
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
)

DOCTORING = (
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
)

MANUAL = (
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
