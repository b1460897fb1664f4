"""``doctor`` and ``repair``: their options, what they do and how it is shown."""

from __future__ import annotations

import argparse

from tfl_rewrite.cli.options import TALKING, Argument, Command
from tfl_rewrite.options.option import Role

FOUND = 4
"""Exit code of ``--fail-on``: what was asked to hold does not."""


DOCTORING = (
    Command(
        "doctor",
        "say what will go wrong with a file, where and why",
        "Reads a file, whoever made it, and lists what runtimes will refuse, misread or miss, with the fact "
        "behind it and the command that repairs it. Nothing is run and nothing is written. Exit 4: an "
        "error was found (or what --fail-on says); 5: the file is too damaged to be read.",
        lambda: (
            ("file", (Argument(("model",), "the .tflite file", {"metavar": "MODEL"}, Role.READ),)),
            (
                "what to look for",
                (
                    Argument(
                        ("--min-runtime",),
                        "the oldest TensorFlow Lite release that is to run it, such as 2.14 or litert-2.1: "
                        "what is too new for it is an error",
                        {"metavar": "VERSION", "default": None},
                    ),
                    Argument(
                        ("--fail-on",),
                        "exit 4 if anything is as bad as that (default: error)",
                        {"choices": ("error", "warning", "note"), "default": "error"},
                    ),
                ),
            ),
            ("talk", TALKING),
        ),
        (
            "tfl-rewrite doctor model.tflite -v",
            "tfl-rewrite doctor model.tflite --min-runtime 2.14 --fail-on warning",
        ),
    ),
)


def doctor_file(arguments: argparse.Namespace) -> int:
    """``tfl-rewrite doctor MODEL``."""
    from tfl_rewrite.cli.render_reading import diagnosis_lines
    from tfl_rewrite.cli.show import show
    from tfl_rewrite.reading.doctor import diagnose
    from tfl_rewrite.reading.findings import Severity

    found = diagnose(arguments.model, min_runtime=arguments.min_runtime)
    show(arguments, found.to_dict, lambda: diagnosis_lines(found, verbose=arguments.verbose))
    if found.reaches(Severity(arguments.fail_on)):
        return FOUND
    return 0
