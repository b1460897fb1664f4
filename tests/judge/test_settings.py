"""How files are judged, as one object: what it takes and what it refuses."""

from __future__ import annotations

import pytest

from tfl_rewrite.errors import UsageError
from tfl_rewrite.judge.settings import Judging, Tolerance


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("4GB", 4 * 10**9),
        ("512MiB", 512 << 20),
        ("1.5 gb", 1_500_000_000),
        ("100000000", 10**8),
        ("1TB", 10**12),
        (10**8, 10**8),
    ],
)
def test_amounts_of_memory(text, nbytes):
    assert Judging(memory_limit=text).memory_limit == nbytes


@pytest.mark.parametrize("text", ["", "much", "-1GB", "4XB", "1KB", "nan", "\x1b[31mGB"])
def test_no_amounts_of_memory(text):
    with pytest.raises(UsageError) as caught:
        Judging(memory_limit=text)
    assert str(caught.value).isprintable() and "memory_limit" in str(caught.value)


def test_one_word_and_several_are_taken():
    assert Judging(runtime="tensorflow", resolver="builtin").runtime == ("tensorflow",)
    assert Judging(resolver=["default", "reference"]).resolver == ("default", "reference")
    with pytest.raises(UsageError, match="no runtime to judge with"):
        Judging(runtime=())
    with pytest.raises(UsageError, match="did you mean 'reference'"):
        Judging(resolver="referense")


def test_a_mode_that_does_not_exist():
    with pytest.raises(UsageError, match="mode 'maybe' is unknown; use one of auto, require, off"):
        Judging(mode="maybe")


def test_inputs_that_judge():
    both = Judging(inputs=["a.npz"], holdout=["b.npz"])
    assert both.judging_inputs == ("b.npz",)
    assert both.for_judges == Judging(inputs=["b.npz"])
    assert Judging(inputs=["a.npz"]).for_judges == Judging(inputs=["a.npz"])
    assert Judging(samples=3).exactly == Judging(samples=3, tolerance=Tolerance(exact=True))
