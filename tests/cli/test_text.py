"""How lines get to standard output: with colour on a terminal that wants it, and as they are elsewhere."""

from __future__ import annotations

import io
import sys

import pytest

from tfl_rewrite.cli.text import print_lines, shell
from tfl_rewrite.errors import percent

LINES = ["verified: PASS: all of it", "  " + "a" * 100 + "  12"]


@pytest.mark.parametrize(
    ("terminal", "unwanted", "coloured"), [(True, "", True), (True, "1", False), (False, "", False)]
)
def test_colour_is_for_terminals_that_want_it(
    monkeypatch: pytest.MonkeyPatch, terminal: bool, unwanted: str, coloured: bool
) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: terminal, raising=False)
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", unwanted)
    monkeypatch.setenv("COLUMNS", "40")
    print_lines(LINES)
    said = stream.getvalue()
    assert ("\x1b[" in said) == coloured
    # A row that is wider than the terminal stays one line.
    assert said.count("\n") == len(LINES) and LINES[1] in said


def test_a_path_is_no_option_in_a_command_to_copy() -> None:
    assert [shell(path) for path in ("a.tflite", "-a.tflite", "my model", "--")] == [
        "a.tflite",
        "./-a.tflite",
        "'my model'",
        "./--",
    ]


@pytest.mark.parametrize(
    ("share", "told"),
    [
        (1.23, "120 %"),
        (1.0, "100 %"),
        (0.996, "100 %"),
        (0.1234, "12 %"),
        (0.0149, "1.5 %"),
        (1e-5, "0.001 %"),
        (9e-6, "less than 0.001 %"),
        (12.3, "1,200 %"),
        (1e30, "more than 1,000,000 %"),
    ],
)
def test_per_cent_has_no_exponent(share: float, told: str) -> None:
    assert percent(share) == told
