"""Rules of mixed precision: text and TOML, first match, and what matches nothing."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tfl_rewrite import FileAccessError, UsageError, load, save
from tfl_rewrite.editing.base import run_passes
from tfl_rewrite.passes.quantize_weights import QuantizeWeights
from tfl_rewrite.weights.encoding import Encoding, Recipe

from ..nets import Net

needs_toml = pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib is part of Python from 3.11 on")


def texts(recipe: Recipe) -> list[tuple[str, str]]:
    return [(rule.match.pattern, rule.encoding.text) for rule in recipe.rules]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    net = Net()
    current = net.input("x", (2, 40))
    for name in ("encoder/first", "encoder/second", "decoder/last"):
        current = net.dense(current, net.weights(name, (40, 40)), f"{name}/out")
    net.output(current)
    save(net.model, tmp_path / "in.tflite")
    return tmp_path / "in.tflite"


@pytest.mark.parametrize(
    ("text", "rules"),
    [
        ("a=int8", [("a", "int8:channel")]),
        ("a=int4:block:32, b=float32", [("a", "int4:block:32"), ("b", "float32")]),
        # Commas and equals signs of an expression stay in it.
        ("a{1,3}=b=int8:tensor:dequantize,", [("a{1,3}=b", "int8:tensor:dequantize")]),
        ("^conv=1$=float16,.*=int2", [("^conv=1$", "float16"), (".*", "int2:channel")]),
    ],
)
def test_rules_as_text(text: str, rules: list[tuple[str, str]]) -> None:
    assert texts(Recipe.parse(text)) == rules


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no rule"),
        ("a", "REGEX=ENCODING"),
        ("a=int8,b", "'b'"),
        ("(=int8", "regular expression"),
        ("a=int4:block:5", "block:32"),
        ("=int8", "REGEX=ENCODING"),
    ],
)
def test_text_that_is_none(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=re.escape(words)):
        Recipe.parse(text)


def test_the_default_fills_in() -> None:
    base = Encoding.parse("int8:block:64")
    assert texts(Recipe.parse("a=int4,b=int4:channel", default=base)) == [
        ("a", "int4:block:64"),
        ("b", "int4:channel"),
    ]


@needs_toml
def test_toml_says_the_same(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(
        'version = 1\n[[rule]]\nmatch = "enc.*first"\nencoding = "int4:block:32"\n'
        "[[rule]]\nmatch = '.*'\nencoding = 'float16'\n"
    )
    assert Recipe.parse(str(path)) == Recipe.parse("enc.*first=int4:block:32,.*=float16")


@needs_toml
@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "version None"),
        ("version = 2", "version = 1"),
        ("version = 1", "no rule"),
        ("version = 1\nrules = []", "'rules' is no key"),
        ("version = 1\nrule = 3", "not of the form"),
        ("version = 1\n[[rule]]\nmatch = 'a'", "not of the form"),
        ("version = 1\n[[rule]]\nmatch = 'a'\nencoding = 8", "not of the form"),
        ("version = 1\n[[rule]]\nmatch = '('\nencoding = 'int8'", "regular expression"),
        ("version = ", "is not TOML"),
        ("version = " + "9" * 5000, "more than 64 bits"),
        ("version = 0x" + "f" * 5000, "more than 64 bits"),
    ],
)
def test_toml_that_is_none(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(content)
    with pytest.raises(UsageError, match=re.escape(words)):
        Recipe.parse(str(path))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(FileAccessError, match="cannot read"):
        Recipe.parse(str(tmp_path / "missing.toml"))
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="UTF-8"):
        Recipe.parse(str(tmp_path / "bytes.toml"))


def test_the_first_match_decides(source: Path) -> None:
    model = load(source)
    result = run_passes(
        model, [QuantizeWeights(map="first=float32,^encoder=int4,FULLY_CONNECTED=int8:tensor")]
    )[0]
    assert {change.where: change.encoding for change in result.changes} == {
        "encoder/second": "int4:channel",
        "decoder/last": "int8:tensor",
    }
    assert [(skip.where, skip.rule) for skip in result.skips] == [("encoder/first", "float32")]


def test_what_no_rule_matches_gets_the_default(source: Path) -> None:
    result = run_passes(load(source), [QuantizeWeights(map="last=float32", dtype="float16")])[0]
    assert {change.where: change.encoding for change in result.changes} == {
        "encoder/first": "float16",
        "encoder/second": "float16",
    }


def test_a_rule_that_matches_nothing_names_what_is_near(source: Path) -> None:
    with pytest.raises(UsageError, match=re.escape("'^encodr/secnd'")) as caught:
        run_passes(load(source), [QuantizeWeights(map="first=int8,^encodr/secnd=int4")])[0]
    assert "encoder/second" in str(caught.value)


def test_a_second_run_is_no_error(source: Path, tmp_path: Path) -> None:
    rules = "first=int4:block:32,second=int4:channel:dequantize,last=float16"
    model = load(source)
    assert len(run_passes(model, [QuantizeWeights(map=rules)])[0].changes) == 3
    save(model, tmp_path / "out.tflite")
    assert not run_passes(load(tmp_path / "out.tflite"), [QuantizeWeights(map=rules)])[0].modified
