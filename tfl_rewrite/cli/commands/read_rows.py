"""The options of the commands that show, check or compare and write no model."""

from __future__ import annotations

from dataclasses import replace

from tfl_rewrite.cli.options import REPORT, TALKING, Command, flag, judging, value
from tfl_rewrite.options.option import Role

READING = (
    Command(
        "passes",
        "list the passes, their options and the presets",
        "Lists the passes in the order of the presets, with the reason for it.",
        lambda: (("talk", TALKING),),
        (
            "tfl-rewrite passes",
            "tfl-rewrite passes --json",
        ),
    ),
    Command(
        "diff",
        "show what changed between two files",
        "Compares two files tensor by tensor and operator by operator, and says where the bytes went. "
        "Nothing is run. Exit 0 whether they differ or not.",
        lambda: (
            (
                "files",
                (
                    value("before", help="the first file", metavar="BEFORE", role=Role.READ),
                    value("after", help="the second file", metavar="AFTER", role=Role.READ),
                ),
            ),
            ("talk", TALKING),
        ),
        ("tfl-rewrite diff before.tflite after.tflite -v",),
    ),
    Command(
        "verify",
        "run two files on the same inputs and compare their outputs",
        "Runs both files in processes of their own, twice, on the same inputs and compares every output of "
        "every signature. Exit 0: within the tolerance; 4: not, or AFTER crashes, hangs, takes too much "
        "memory or does not repeat its outputs; 0 with UNVERIFIED when that is so of BEFORE.",
        lambda: (
            (
                "files",
                (
                    value("before", help="the original", metavar="BEFORE", role=Role.READ),
                    value("after", help="the rewritten file", metavar="AFTER", role=Role.READ),
                ),
            ),
            (
                "judgement",
                (
                    *judging(without=("mode", "holdout", "rescue", "blame_seconds")),
                    flag("--require", help="exit 3 when UNVERIFIED"),
                    replace(REPORT, help="write the verdict as JSON"),
                    flag("--force", help="overwrite files that exist, such as an older report"),
                ),
            ),
            ("talk", TALKING),
        ),
        ("tfl-rewrite verify before.tflite after.tflite --inputs samples.npz --min-snr 30",),
    ),
    Command(
        "inspect",
        "show what is in a file and where its bytes are",
        "Shows operators, constants by operator and type, the largest tensors, duplicates, dead bytes, "
        "metadata, the appended ZIP, signatures and the oldest runtime that knows the file's operators.",
        lambda: (
            ("file", (value("model", help="the .tflite file", metavar="MODEL", role=Role.READ),)),
            (
                "output",
                (value("--largest", help="how many tensors to list (default: 20)", type=int, default=20),),
            ),
            ("talk", TALKING),
        ),
        (
            "tfl-rewrite inspect model.tflite -v",
            "tfl-rewrite inspect model.tflite --json",
        ),
    ),
    Command(
        "check",
        "check that files are structurally sound",
        "Checks every offset, every index, and buffer sizes against shapes. Nothing is run. Exit 0: all "
        "sound; 5: at least one is not, with the place of the fault; 2: one cannot be read.",
        lambda: (
            ("files", (value("models", help=".tflite files", metavar="MODEL", nargs="+", role=Role.READ),)),
            ("talk", TALKING),
        ),
        (
            "tfl-rewrite check model.tflite",
            "tfl-rewrite check first.tflite second.tflite -q",
        ),
    ),
)

SHELLS = ("bash", "zsh", "fish")

MANUAL = (
    Command(
        "help",
        "explain a command, or print the manual page",
        "Prints what '--help' after a command prints.",
        lambda: (
            (
                "what to explain",
                (
                    value("topic", help="a command (default: all of them)", metavar="COMMAND", nargs="?"),
                    flag("--man", help="print the manual page of all commands, for man(1)"),
                ),
            ),
            ("talk", TALKING),
        ),
        ("tfl-rewrite help quantize-weights", "tfl-rewrite help --man >tfl-rewrite.1"),
    ),
    Command(
        "completion",
        "print what makes a shell complete commands and options",
        "Prints a script that completes commands, options, their values and file names.",
        lambda: (
            (
                "the shell",
                (value("shell", help="bash, zsh or fish", metavar="SHELL", choices=SHELLS),),
            ),
            ("talk", TALKING),
        ),
        (
            "tfl-rewrite completion bash >~/.local/share/bash-completion/completions/tfl-rewrite",
            "tfl-rewrite completion zsh >~/.zfunc/_tfl-rewrite",
            "tfl-rewrite completion fish >~/.config/fish/completions/tfl-rewrite.fish",
        ),
    ),
)
