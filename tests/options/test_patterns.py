"""Patterns that users give end in bounded time, whatever the names are, and find what they say."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tfl_rewrite
from tfl_rewrite.cli import main
from tfl_rewrite.errors import UsageError
from tfl_rewrite.options import patterns
from tfl_rewrite.options.patterns import Budget, Pattern, compile_all, exact
from tfl_rewrite.search.report import recipe_text
from tfl_rewrite.search.units import KEPT, Option, Unit
from tfl_rewrite.weights.encoding import Recipe


@pytest.fixture
def hostile(fixtures: Path, tmp_path: Path) -> Path:
    """A model whose names are made to take long."""
    model = tfl_rewrite.load(fixtures / "dense.tflite")
    for number, tensor in enumerate(model.subgraphs[0].tensors):
        tensor.rest = tensor.rest.replace(name="a" * 40 + "!" * number)
    tfl_rewrite.save(model, tmp_path / "in.tflite")
    return tmp_path / "in.tflite"


SLOW = (r"(.+)+[0-9]$", r"(a+)+$z", r"(a|aa)+z", r"(a*)*b", r"^(([a-z])+.)+[A-Z]([a-z])+$", r"(.*a){20}z")


@pytest.mark.runtime
@pytest.mark.parametrize("pattern", SLOW)
@pytest.mark.parametrize("way", ["map", "toml", "exclude", "include", "run", "shrink"])
def test_no_pattern_takes_long(hostile: Path, tmp_path: Path, pattern: str, way: str) -> None:
    out = str(tmp_path / "out.tflite")
    toml = f"version = 1\n[[rule]]\nmatch = '{pattern}'\nencoding = 'int8'\n"
    (tmp_path / "recipe.toml").write_text(toml + "[[rule]]\nmatch = ''\nencoding = 'int8'\n")
    words = {
        "map": ["quantize-weights", "--map", f"{pattern}=int8"],
        "toml": ["quantize-weights", "--map", str(tmp_path / "recipe.toml")],
        "exclude": ["quantize-weights", "--exclude", pattern],
        "include": ["quantize-weights", "--include", pattern],
        "run": ["run", "--pass", f"quantize-weights:exclude={pattern.replace('+', '++').replace(',', ',,')}"],
        "shrink": ["shrink", "--exclude", pattern, "--min-snr", "10", "--samples", "1", "--time-limit", "5"],
    }[way]
    if way != "shrink":
        words += ["--verify", "off"]
    started = time.process_time()
    assert main([*words, str(hostile), out, "-q"]) in (0, 2)
    assert time.process_time() - started < 20


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("(", "missing )"),
        ("a(?!b)", "lookahead and lookbehind are not known; name what stays with --exclude"),
        ("(?<=a)b", "lookahead and lookbehind are not known"),
        (r"(a)\1", "back-references are not known"),
        ("(?P<n>a)(?P=n)", "references to groups"),
        ("a++", "bad repetition"),
        (r"a\Z", "the end of a name is $"),
        (r"\pL{1000}\pN{1000}(?:\pL\pN){400}", "write a simpler one"),
        ("x" * 20_000, "20,000 characters"),
    ],
)
def test_what_is_none_says_why(
    pattern: str, says: str, fixtures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError, match=re.escape(says)):
        Pattern.compile(pattern)
    words = ["quantize-weights", str(fixtures / "dense.tflite"), str(tmp_path / "out"), "--exclude", pattern]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and says in said and "regular expression" in said


def test_names_of_a_megabyte_end_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large pattern in a long name would take minutes even without backtracking."""
    with pytest.raises(UsageError, match="too large to be searched in a name of 1,000,000 bytes"):
        Pattern.compile("(?:.?.?.?.?){1000}Q").search("a" * 1_000_000)
    monkeypatch.setattr(patterns, "GRACE_SECONDS", 0.2)
    slow, other = compile_all(["(?:.?){999}Q", "(?:.?){998}Q"])
    with pytest.raises(UsageError, match=r"the regular expressions take too long: \d+ s for \d+ names"):
        for _ in range(1000):
            slow.search("a" * 1000)
            other.search("b" * 1000)


def test_many_plain_searches_are_never_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterns, "GRACE_SECONDS", 0.05)
    budget = Budget()
    found = Pattern.compile("^layer_[0-9]+/kernel", budget)
    assert sum(found.search(f"layer_{number}/kernel/read") for number in range(20_000)) == 20_000
    assert budget.searches == 20_001


NAMES = st.text(st.characters(codec="utf-8") | st.sampled_from("\\^$.|?*+()[]{}-/_ \n\x1b"), max_size=20)


@given(NAMES, NAMES)
def test_the_exact_pattern_of_a_name(name: str, other: str) -> None:
    found = Pattern.compile(exact(name))
    assert found.search(name) and exact(name).isprintable()
    assert found.search(other) == (other == name)
    assert not found.search(f"{name}x") and not found.search(f"x{name}")


@given(
    st.text(st.sampled_from("ab^$\\./-_ [1"), max_size=6),
    st.text(st.sampled_from("ab^$\\./-_ [1"), max_size=8),
)
def test_plain_patterns_say_what_the_engine_says(pattern: str, name: str) -> None:
    try:
        found = Pattern.compile(pattern)
    except UsageError:
        return
    assert found.search(name) == (found._compiled.search(name.encode()) is not None)


@pytest.mark.parametrize("pattern", ["conv", "^conv", "kernel$", "^a$", r"a\.b", "", "^", "$", "^$"])
def test_what_is_plain(pattern: str) -> None:
    assert Pattern.compile(pattern)._plain is not None


def test_broken_bytes_in_names() -> None:
    name = b"caf\xe9/kernel".decode("utf-8", "surrogateescape")
    assert Pattern.compile("kernel$").search(name) and Pattern.compile("^caf.*/k").search("café/kernel")
    assert Pattern.compile("^caf[^/]*/kernel").search("café/kernel")
    assert Pattern.compile(name).search(name) and Pattern.compile(f"^{name[:4]}/[a-z]+$").search(name)


def test_a_recipe_of_a_search_can_be_read_again(tmp_path: Path) -> None:
    """Whatever the names are; those that no rule can say are left out."""
    names = ["plain/kernel", "a b.c[0]*(x)+?", "\x1b]0;\x07", "quote'\"\\", "größe", "\x7f\x00\n=x"]
    left_out = ["caf\udce9", "x" * 20_000, "", "twice", "twice"]
    units = [
        Unit(number, name, ("CONV_2D",), 100, 400, [Option(KEPT, 1.0, 1.0)])
        for number, name in enumerate([*names, *left_out])
    ]
    from tfl_rewrite.weights.encoding import Encoding

    text = recipe_text(units, {unit.position: Encoding.parse("int4:channel") for unit in units})
    (tmp_path / "r.toml").write_bytes(text.encode("utf-8"))
    rules = Recipe.parse(str(tmp_path / "r.toml")).rules
    assert len(rules) == len(names) + 1 and rules[-1].match.pattern == ""
    for name, rule in zip(names, rules, strict=False):
        assert rule.match.search(name) and not rule.match.search(f"{name}!")
