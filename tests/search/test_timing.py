"""What an option costs where time is to be small."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from tfl_rewrite import UnsupportedError
from tfl_rewrite.search.clock import Clock, TimeIsUp
from tfl_rewrite.search.session import Stopwatch
from tfl_rewrite.search.trials import Trials
from tfl_rewrite.search.units import KEPT, Option, Unit, cheapest
from tfl_rewrite.weights.encoding import Encoding

FAST, SLOW, SAME = (Encoding.parse(text) for text in ("int8:channel", "int4:channel", "float16"))


class Writer:
    """Writes down what is in a file, instead of making it."""

    def write(self, choice: Mapping[int, Encoding], path: Path) -> None:
        path.write_text(" ".join(encoding.text for encoding in choice.values()))


class Told(Stopwatch):
    """Reads times off a list."""

    def seconds(self, paths: Sequence[Path], clock: Clock | None = None) -> list[float]:
        times = {"": 1.0, FAST.text: 0.6, SLOW.text: 1.5, SAME.text: 1.01}
        return [times[path.read_text()] for path in paths]


def test_the_fastest_is_chosen_and_jitter_is_no_difference(tmp_path: Path) -> None:
    noise = np.array([1e-6])
    options = [Option(KEPT, 400.0, 400.0, noise * 0)]
    options += [
        Option(each, size, size, noise) for each, size in ((FAST, 100.0), (SLOW, 50.0), (SAME, 200.0))
    ]
    unit = Unit(3, "w", ("CONV_2D",), 100, 400, options)
    watch = Told(cast(Trials, Writer()), tmp_path, "litert")
    days = iter([0.0, 1.0, 2.0, 3.0])
    with pytest.raises(TimeIsUp):
        # Two options of the three are timed, and none of these seconds stands beside bytes.
        watch.price([unit, unit], lambda *_: None, Clock(2.5, now=lambda: next(days)))
    assert [option.cost for option in unit.options] == [400.0, 100.0, 50.0, 200.0]
    watch.price([unit], lambda *_: None, Clock())
    kept, fast, slow, same = (option.cost for option in unit.options)
    assert fast < same < kept < slow
    assert cheapest([unit], 1e-3) == [1]
    assert cheapest([unit], 1e-9) == [0]


@pytest.mark.runtime
def test_real_files_take_time(fixtures: Path, tmp_path: Path) -> None:
    watch = Stopwatch(cast(Trials, Writer()), tmp_path, "litert")
    times = watch.seconds([fixtures / "dense.tflite", fixtures / "digits_cnn.tflite"])
    assert len(times) == 2 and min(times) > 0


@pytest.mark.runtime
def test_what_does_not_run_cannot_be_timed(fixtures: Path, tmp_path: Path) -> None:
    watch = Stopwatch(cast(Trials, Writer()), tmp_path, "litert")
    with pytest.raises(TimeIsUp):
        # Long calls of many files take long: they end with the search.
        watch.seconds([fixtures / "dense.tflite"] * 40, Clock(0.3))
    with pytest.raises(UnsupportedError, match="cannot be timed"):
        watch.seconds([fixtures / "malformed" / "custom_unknown_op.tflite"])
