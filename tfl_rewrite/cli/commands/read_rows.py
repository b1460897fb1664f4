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
        lambda: (("output", (flag("--json", help="print JSON"),)), ("talk", TALKING)),
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
            ("output", (flag("--json", help="print JSON"),)),
            ("talk", TALKING),
        ),
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
                (
                    flag("--json", help="print JSON"),
                    value("--largest", help="how many tensors to list (default: 20)", type=int, default=20),
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
        lambda: (
            ("files", (value("models", help=".tflite files", metavar="MODEL", nargs="+", role=Role.READ),)),
            ("output", (flag("--json", help="print JSON"),)),
            ("talk", TALKING),
        ),
    ),
)
