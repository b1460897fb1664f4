"""The catalogue of passes, their options as text, and the presets."""

from __future__ import annotations

import re

import numpy as np
import pytest

import tfl_rewrite
from tfl_rewrite.editing.base import Effect
from tfl_rewrite.judge.settings import Judging
from tfl_rewrite.options.patterns import Pattern
from tfl_rewrite.passes import catalog
from tfl_rewrite.passes.dedup import Dedup

from ..helpers import ROOT
from ..nets import Net

FIXTURES = ROOT / "fixtures"
OFF = Judging(mode="off")


def test_every_preset_names_passes_in_the_order_of_the_catalogue():
    order = [entry.name for entry in catalog.every()]
    for names in catalog.PRESETS.values():
        # A pass may come back after one that makes new work for it.
        first = list(dict.fromkeys(name.partition(":")[0] for name in names))
        assert first == sorted(first, key=order.index)


def test_a_preset_without_loss_has_no_lossy_pass():
    assert not any(item.effect is Effect.TOLERANCE for item in catalog.preset("lossless"))
    assert not any(item.effect is Effect.TOLERANCE for item in catalog.preset("simplify"))
    assert any(item.effect is Effect.TOLERANCE for item in catalog.preset("small"))


@pytest.mark.parametrize("kind", catalog.every(), ids=lambda kind: kind.name)
def test_passes_say_what_they_do_and_why_they_stand_there(kind):
    assert kind.place and catalog.summary(kind) and not catalog.summary(kind).endswith(".")
    parts = catalog.passes_of([kind.name])[0].parts()
    assert parts and all(part.name.startswith(kind.name) for part in parts)


class Point:
    """An entry point of a package that is not installed."""

    dist = None

    def __init__(self, name, value):
        self.name = name
        self.value = value

    def load(self):
        if isinstance(self.value, Exception):
            raise self.value
        return self.value


def test_passes_of_other_packages_are_found_and_loaded_when_named(monkeypatch):
    class Theirs(Dedup):
        """Does more."""

    points = [
        Point("theirs", Theirs),
        Point("dedup", Theirs),
        Point("broken", ImportError("no")),
        Point("odd", int),
    ]
    monkeypatch.setattr(catalog.importlib.metadata, "entry_points", lambda group: points)
    assert catalog.find("theirs") is Theirs and catalog.find("dedup") is Dedup
    assert catalog.passes_of(["theirs:pure-custom=A"])[0].pure_custom == ("A",)
    for name, said in (("broken", "cannot be loaded: no"), ("odd", "is no subclass"), ("their", "'theirs'")):
        with pytest.raises(tfl_rewrite.UsageError, match=said):
            catalog.find(name)


def test_options_reach_the_pass():
    (made,) = catalog.passes_of(
        [
            "quantize-weights:scheme=dequantize,exclude=^a/+^b,min-elements=7,keep-first-last=yes,min-runtime=2.14"
        ]
    )
    assert made.scheme.value == "dequantize"
    assert made.selection.exclude == (Pattern.compile("^a/"), Pattern.compile("^b"))
    assert made.selection.min_elements == 7
    assert made.selection.keep_first_last is True
    assert made.min_runtime == (2, 14)


@pytest.mark.parametrize(
    "text",
    [
        "unknown",
        "dedup:what=1",
        "quantize-weights:scheme",
        "quantize-weights:scheme=none",
        "quantize-weights:min-elements=many",
        "quantize-weights:keep-first-last=perhaps",
        "compact:align=3",
    ],
)
def test_what_does_not_fit_is_a_usage_error(text):
    with pytest.raises(tfl_rewrite.UsageError):
        catalog.passes_of([text])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("quantise-weights", "did you mean 'quantize-weights'"),
        ("Dedup", "did you mean 'dedup'"),
        ("remove_dead", "did you mean 'remove-dead'"),
        ("compact:alin=16", "did you mean 'align'"),
        ("equalize:foo=1", "there is none"),
        ("compact:align", "write align=VALUE"),
        ("compact:align=wide", "'wide' is no whole number"),
    ],
)
def test_what_is_near_is_named(text, said):
    with pytest.raises(tfl_rewrite.UsageError, match=re.escape(said)):
        catalog.passes_of([text])


def test_signs_between_items_may_stand_in_values_when_written_twice():
    (made,) = catalog.passes_of(["quantize-weights:exclude=a++b{1,,2}+c,map=^a/=int4,,DENSE=int8,"])
    assert made.selection.exclude == (Pattern.compile("a+b{1,2}"), Pattern.compile("c"))
    assert [rule.match.pattern for rule in made.assignment.rules] == ["^a/", "DENSE"]
    (made,) = catalog.passes_of(["remove-dead:outputs=a,,b,strip=names"])
    assert made.outputs == ("a,b",)
    assert [part.name for part in made.parts()] == ["cut", "strip", "remove-dead"]


def test_a_preset_that_does_not_exist_is_a_usage_error():
    with pytest.raises(tfl_rewrite.UsageError, match="lossless"):
        catalog.preset("best")


@pytest.mark.parametrize("name", sorted(catalog.PRESETS))
@pytest.mark.parametrize("path", sorted(FIXTURES.glob("*.tflite")), ids=lambda path: path.stem)
def test_presets_never_grow_a_file_and_settle_at_once(path, name, tmp_path):
    once, twice = tmp_path / "once.tflite", tmp_path / "twice.tflite"
    first = tfl_rewrite.rewrite(path, once, catalog.preset(name), judging=OFF)
    assert first.nbytes_after <= first.nbytes_before
    second = tfl_rewrite.rewrite(once, twice, catalog.preset(name), judging=OFF)
    assert second.outcome == "unchanged"
    assert once.read_bytes() == twice.read_bytes()


def test_weights_that_are_equal_only_as_int8_are_stored_once_and_for_all(tmp_path):
    net = Net()
    values = net.random.standard_normal((64, 64)).astype(np.float32)
    source = net.input("x", (1, 64))
    first = net.dense(source, net.constant("first", values), "a")
    net.output(net.dense(first, net.constant("second", values * np.float32(2)), "b"))
    tfl_rewrite.save(net.model, tmp_path / "in.tflite")
    once, twice = tmp_path / "once.tflite", tmp_path / "twice.tflite"
    tfl_rewrite.rewrite(tmp_path / "in.tflite", once, catalog.preset("small"), judging=OFF)
    assert once.stat().st_size < 2 * values.size
    second = tfl_rewrite.rewrite(once, twice, catalog.preset("small"), judging=OFF)
    assert second.outcome == "unchanged"


@pytest.mark.runtime
def test_several_passes_are_reported_one_by_one_and_verified_once(tmp_path):
    report = tfl_rewrite.rewrite(
        FIXTURES / "digits_cnn.tflite",
        tmp_path / "small.tflite",
        catalog.preset("small"),
        judging=Judging(inputs=(FIXTURES / "inputs" / "digits_calib.npz",)),
    )
    assert [result.name for result in report.results] == [
        name.partition(":")[0] for name in catalog.PRESETS["small"]
    ]
    assert report.verdict is not None and report.verdict.passed
    alone = tfl_rewrite.rewrite(
        FIXTURES / "digits_cnn.tflite",
        tmp_path / "int8.tflite",
        catalog.passes_of(["quantize-weights"]),
        judging=OFF,
    )
    assert report.nbytes_after <= alone.nbytes_after
