"""Options: one field of a dataclass, from which rows, text and checks are made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tfl_rewrite.errors import UsageError
from tfl_rewrite.options.option import (
    NBYTES,
    PATHS,
    check_options,
    made_with,
    nbytes_of,
    option,
    options_of,
    options_within,
    read_options,
    take_options,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Inner:
    min_snr: float | None = option(20.0, "least ratio", metavar="DB", bounds=(-1000, 1000))


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    scheme: str = option("auto", "which form", choices=("auto", "hybrid", "dequantize"))
    steps: int = option(256, "how many", bounds=(1, 65536))
    exclude: tuple[str, ...] = option((), "what stays", metavar="REGEX")
    correct: bool = option(True, "leave biases as they are")
    exact: bool = option(False, "equal to the bit")
    span: tuple[float, float] | None = option(None, "what 0 and 255 become", metavar="LO,HI")
    limit: int | None = option(None, "memory", kind=NBYTES, metavar="SIZE")
    inputs: tuple[str | Path, ...] = option((), "real inputs", kind=PATHS)
    inner: Inner = options_within(Inner)
    secret: int = 7

    def __post_init__(self) -> None:
        check_options(self)


ROWS = {row.name: row for row in options_of(Sample)}


def test_rows_are_those_of_the_fields_in_order() -> None:
    assert " ".join(ROWS) == "scheme steps exclude correct exact span limit inputs min_snr"
    assert ROWS["scheme"].flags == ("--scheme",)
    assert ROWS["min_snr"].flags == ("--min-snr",)
    assert ROWS["correct"].flags == ("--no-correct",)
    assert ROWS["exact"].flags == ("--exact",)
    assert (ROWS["span"].nullable, ROWS["steps"].nullable) == (True, False)


def test_the_help_tells_the_default_once() -> None:
    assert ROWS["steps"].text == "how many (default: 256)"
    assert ROWS["min_snr"].text == "least ratio (default: 20)"
    assert ROWS["exclude"].text == "what stays"
    assert ROWS["correct"].text == "leave biases as they are"


def test_text_of_a_pass_is_read() -> None:
    text = "scheme=hybrid,steps=16,exclude=^a,,b+c++d,correct=no,exact=yes,limit=4KiB,min-snr=30,span=-1,,1"
    assert read_options(text, options_of(Sample), "sample") == {
        "scheme": "hybrid",
        "steps": 16,
        "exclude": ("^a,b", "c+d"),
        "correct": False,
        "exact": True,
        "limit": 4096,
        "min_snr": 30.0,
        "span": (-1.0, 1.0),
    }


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("sceme=auto", "option 'sceme' is unknown; did you mean 'scheme'? use one of scheme, steps,"),
        ("min_snt=1", "did you mean 'min-snr'?"),
        ("scheme=hybird", "scheme 'hybird' is unknown; did you mean 'hybrid'? use one of auto, hybrid"),
        ("steps=many", "sample: steps = 'many' is no whole number"),
        ("steps=0", "steps is 0; give 1 or more, 65,536 at most"),
        ("steps=" + 5000 * "9", "is no whole number"),
        ("correct=true", "'true' is neither yes nor no"),
        ("limit=4 apples", "is not a number of bytes"),
        ("span=1", "is not LO,HI"),
        ("min-snr=nan", "min_snr is nan"),
        ("min-snr=", "is no number"),
        ("exact", "'exact' of sample has no value; write exact=VALUE"),
    ],
)
def test_text_that_does_not_fit_is_refused(text: str, what: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_options(text, options_of(Sample), "sample")
    assert what in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "made"),
    [
        ("exclude", "one", ("one",)),
        ("exclude", ["one", "two"], ("one", "two")),
        ("span", [0, 1], (0.0, 1.0)),
        ("span", None, None),
        ("limit", "1.5KB", 1500),
        ("limit", 2048, 2048),
        ("inputs", Path("a"), (Path("a"),)),
        ("inputs", [Path("a"), "b"], (Path("a"), "b")),
        ("exact", True, True),
    ],
)
def test_values_are_brought_into_form(name: str, value: Any, made: Any) -> None:
    assert getattr(Sample(**{name: value}), name) == made
    assert take_options({name: value}, options_of(Sample), "x.toml") == {name: made}


@pytest.mark.parametrize(
    ("name", "value", "what"),
    [
        ("steps", True, "is no whole number"),
        ("steps", 2.0, "is no whole number"),
        ("steps", None, "is no whole number"),
        ("exact", 1, "is neither true nor false"),
        ("exact", "yes", "is neither true nor false"),
        ("scheme", 3, "is no text"),
        ("exclude", 3, "is not a list of texts"),
        ("exclude", [3], "is no text"),
        ("inputs", [3], "is no text"),
        ("span", [1], "is not a list of two numbers"),
        ("span", [1, "2"], "is not a list of two numbers"),
        ("limit", True, "is not a number of bytes"),
        ("steps", 10**30, "steps is a number of more than 20 digits"),
        ("scheme", "Auto", "did you mean 'auto'?"),
    ],
)
def test_values_of_another_kind_are_refused(name: str, value: Any, what: str) -> None:
    for call in (lambda: Sample(**{name: value}), lambda: take_options({name: value}, ROWS.values(), "x")):
        with pytest.raises(UsageError) as caught:
            call()
        assert what in str(caught.value)


def test_an_unknown_key_names_the_near_one() -> None:
    with pytest.raises(UsageError, match=r"x\.toml: option 'stepz' is unknown; did you mean 'steps'"):
        take_options({"stepz": 1}, options_of(Sample), "x.toml")


def test_objects_are_made_of_the_values_that_are_theirs() -> None:
    made = made_with(Sample, {"steps": 3, "min_snr": 40.0, "secret": 1, "other": 2})
    assert made == Sample(steps=3, inner=Inner(min_snr=40.0))
    assert made.secret == 7


@pytest.mark.parametrize(
    ("text", "nbytes"), [("0", 0), ("12b", 12), ("4 MB", 4000000), ("1.5KiB", 1536), ("2T", 2 * 10**12)]
)
def test_amounts_of_bytes(text: str, nbytes: int) -> None:
    assert nbytes_of(text) == nbytes


@pytest.mark.parametrize("text", ["", "MB", "-1", "1e3", "4XB", "1.", "１"])
def test_what_is_no_amount_of_bytes(text: str) -> None:
    with pytest.raises(ValueError, match="is not a number of bytes"):
        nbytes_of(text)
