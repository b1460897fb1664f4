"""What a search has after so much time, on a model whose noise is a sum, with a clock that files turn."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tfl_rewrite.errors import FileAccessError, TflRewriteError, UnsupportedError, UsageError
from tfl_rewrite.kernels.operators import Granularity
from tfl_rewrite.model.ir import Model
from tfl_rewrite.search.anytime import Anytime
from tfl_rewrite.search.clock import Clock
from tfl_rewrite.search.goals import Goal, Objective
from tfl_rewrite.search.holdout_judge import Figures
from tfl_rewrite.search.search import Search, key_of
from tfl_rewrite.search.sensitivity import State
from tfl_rewrite.search.standing import Standing
from tfl_rewrite.search.trials import Measured, Rounded, Rounding, Stored
from tfl_rewrite.search.uniform import Uniform, uniform_files
from tfl_rewrite.search.units import (
    ENCODINGS,
    HYBRID,
    KEPT,
    Float64,
    Form,
    Option,
    Unit,
    base_pass,
    find_units,
)
from tfl_rewrite.weights.encoding import Encoding, Scheme

from ..nets import Net
from .helpers import judged, measured

SECONDS = {Rounding.PLAIN: 1.0, Rounding.FITTED: 4.0, Rounding.IN_ORDER: 9.0}
"""What a file takes on a quiet machine; one with weights that were fitted before, as long as a plain one."""

ORIGINAL = 110_000
UNIFORM: list[Uniform] = []


def net() -> Model:
    made = Net(3)
    given = made.input("x", (1, 64))
    for number, width in enumerate((96, 64, 128, 32)):
        given = made.dense(given, made.weights(f"w{number}", (width, (given.shape or ())[-1])), f"y{number}")
    made.output(given)
    return made.model


@functools.cache
def _units(texts: tuple[str, ...]) -> list[Unit]:
    return find_units(net, base_pass(Goal(min_snr=1.0).weights), texts, Objective.FILE)


def units(*texts: str) -> list[Unit]:
    """The constants of the model, each with options that a search may change."""
    return [replace(unit, options=[replace(option) for option in unit.options]) for unit in _units(texts)]


@pytest.fixture(autouse=True)
def found_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one encoding is for each constant does not depend on the test."""

    def uniform(opened: Any, search: Search, original: Measured) -> list[Uniform]:
        if not UNIFORM:
            UNIFORM.extend(uniform_files(opened, search, original))
        return [replace(item, made={}, missing={}, refused={}) for item in UNIFORM]

    monkeypatch.setattr("tfl_rewrite.search.anytime.uniform_files", uniform)


class World:
    """Trials, judge and clock of a search in which noises of constants add up.

    Args:
        goal: The bounds.
        limit: Of the time.
        load: How much longer everything takes than on a quiet machine.
        gain: What fitting wins, in dB.
        held: How much less held-out inputs show, in dB.
        shares: How much each constant's noise counts.
    """

    def __init__(
        self,
        goal: Goal,
        limit: float | None = None,
        *,
        load: float = 1.0,
        gain: float = 6.0,
        held: float = 0.5,
        shares: tuple[float, ...] = (1.0, 0.3, 0.05, 2.0),
    ) -> None:
        self.goal, self.load, self.gain, self.held, self.shares = goal, load, gain, held, shares
        self.day, self.files, self.path = 0.0, 0, Path("made.tflite")
        self.can_fit, self.can_order = gain > 0, False
        self.ran: list[tuple[float, Rounding]] = []
        self.kept_nbytes, self.growth = self.size({}), dict[Any, float]()
        self.fitted: set[tuple[int, str]] = set()
        self.clock = Clock(limit, now=lambda: self.day, work=lambda: self.day / load)
        every = units(*ENCODINGS, *HYBRID)
        self.nbytes = {
            (unit.position, option.form): option.nbytes - unit.nbytes
            for text in (*ENCODINGS, *HYBRID)
            for unit in units(text)
            for option in unit.options
        }
        self.share = {unit.position: share for unit, share in zip(every, shares, strict=True)}
        self.wanted = SimpleNamespace(goal=goal, base=base_pass(goal.weights))
        trials: Any = self
        self.search = Search(
            trials,
            units(*ENCODINGS),
            goal=goal,
            state=State(None, ""),
            clock=self.clock,
            progress=lambda *_: None,
        )
        self.opened: Any = SimpleNamespace(
            trials=self,
            wanted=self.wanted,
            clock=self.clock,
            progress=lambda *_: None,
            measure=lambda search: search.measure(1000),
        )

    def fresh(self) -> Model:
        return net()

    def noise_of(self, position: int, form: Any, rounding: Rounding) -> float:
        bits = form.form.bits if form.form.is_integer else 12
        worth = 6.0 * bits - 4.0 + 4.0 * (form.block is not None)
        if form.form.is_integer and rounding is not Rounding.PLAIN:
            worth += self.gain
        if form.form.is_integer and form.scheme is not Scheme.DEQUANTIZE:
            worth = min(worth, 34.0)
        return self.share[position] * 10.0 ** (-worth / 10.0)

    def snr(self, choice: Mapping[int, Any], rounding: Rounding) -> float:
        total = math.fsum(self.noise_of(position, form, rounding) for position, form in choice.items())
        return -10.0 * math.log10(total) if total else math.inf

    def size(self, choice: Mapping[int, Any]) -> int:
        return round(ORIGINAL + math.fsum(self.nbytes[position, form] for position, form in choice.items()))

    def measure(
        self, choice: Mapping[int, Any], cost: float | None = None, *, rounding: Rounding = Rounding.FITTED
    ) -> Measured:
        new = {(position, str(form)) for position, form in choice.items()} - self.fitted
        fits = rounding is Rounding.FITTED and self.can_fit and new
        self.day += self.load * SECONDS[rounding if fits else Rounding.PLAIN]
        if fits:
            self.fitted |= new
        self.files += 1
        self.ran.append((self.day, rounding))
        nbytes = self.size(choice)
        made = measured(self.snr(choice, rounding), nbytes, self.goal)
        cost = float(nbytes) if cost is None else cost
        return replace(made, choice=dict(choice), rounding=rounding, cost=cost)

    def finish(self, made: Measured) -> int:
        self.last = made
        return made.nbytes

    inputs = "held-out inputs"

    def evaluate(self, _path: Path) -> Figures:
        return judged(self.snr(self.last.choice, self.last.rounding) - self.held)

    def prepare(self, _choices: object) -> None:
        pass

    def rounded(self, choice: Mapping[int, Any], rounding: Rounding = Rounding.FITTED) -> Rounded:
        # Values alone do not tell how much a constant counts.
        stored = {
            position: Stored(self.noise_of(position, form, rounding) / self.share[position], 0)
            for position, form in choice.items()
        }
        self.rounded_last = choice
        return Rounded(stored, net())

    def laid_out(self, _model: Model) -> int:
        return self.size(self.rounded_last)

    def noise(self, choice: Mapping[int, Any]) -> Float64:
        self.day += self.load
        self.files += 1
        return np.array([10.0 ** (-self.snr(choice, Rounding.FITTED) / 10.0)])

    def run(self) -> Standing:
        stand_in: Any = self
        original = self.search.whole({}, Rounding.FITTED)
        self.standing = Standing(stand_in, self.goal, stand_in, self.clock, original)
        Anytime(self.opened, self.search, self.standing).run()
        return self.standing

    def uniform(self) -> list[tuple[Uniform, Rounding, int, float]]:
        """Every file of one encoding, with its size and what it keeps at least."""
        original = self.search.whole({}, Rounding.FITTED)
        return [
            (item, rounding, self.size(item.choice), self.snr(item.choice, rounding) - self.held)
            for item in UNIFORM or uniform_files(self.opened, self.search, original)
            for rounding in (Rounding.PLAIN, Rounding.FITTED)
        ]


def smallest(world: World, *roundings: Rounding) -> int:
    """Size of the smallest file of one encoding that keeps the bounds."""
    wanted = roundings or tuple(Rounding)
    assert world.goal.min_snr is not None
    least = world.goal.min_snr
    return min(nbytes for _, way, nbytes, kept in world.uniform() if kept >= least and way in wanted)


def nbytes_of(standing: Standing) -> int:
    assert standing.found.promised is not None
    return standing.found.promised.nbytes


@pytest.mark.parametrize("bound", [22.0, 30.0, 41.0])
@pytest.mark.parametrize("load", [1.0, 4.0])
def test_more_time_never_makes_a_larger_file(bound: float, load: float) -> None:
    """Nor is any larger than the smallest of one encoding that keeps the bound."""
    goal = Goal(min_snr=bound)
    least, sizes, fits = smallest(World(goal)), [], []
    for limit in (0.001, 5.0, 20.0, 60.0, 160.0, 320.0, None):
        world = World(goal, limit, load=load)
        standing = world.run()
        assert standing.found.proven is not None and standing.found.proven.missing(goal) <= 0
        assert standing.is_ended is (limit is not None and world.day > limit)
        sizes.append(nbytes_of(standing))
        fits.append([way for _, way in world.ran].count(Rounding.FITTED))
    assert max(sizes) <= least
    assert sizes == sorted(sizes, reverse=True) and fits == sorted(fits)
    assert sizes[-1] < least


def test_measurements_find_what_mixtures_by_values_do_not() -> None:
    """A constant that counts for little takes what one that counts for much may not."""
    standing = World(Goal(min_snr=30.0)).run()
    best = {step.step: step.nbytes or 0 for step in standing.steps}
    assert list(best) == [
        "the original",
        "one encoding for all weights",
        "one encoding, fitted to inputs",
        "mixtures of two encodings",
        "two encodings, constants measured",
        "all encodings, constants measured",
        "weights rounded in order",
    ]
    sizes = list(best.values())
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) >= 4
    assert all(step.finished for step in standing.steps)
    assert [step.files for step in standing.steps] == sorted(step.files for step in standing.steps)


def test_the_same_without_a_limit() -> None:
    one, other = (World(Goal(min_snr=30.0)) for _ in range(2))
    first, second = one.run(), other.run()
    assert first.found.promised is not None and second.found.promised is not None
    assert first.found.promised.choice == second.found.promised.choice and one.files == other.files


def test_files_that_cannot_win_are_not_made() -> None:
    world = World(Goal(min_snr=30.0), 0.001)
    world.run()
    # Of eleven encodings, twice each.
    assert len(world.uniform()) >= 20 and len(world.ran) < 12


def test_what_lies_between_two_files_is_told_by_both() -> None:
    """What a bit is worth differs from model to model; the original says nothing of held-out inputs."""
    world = World(Goal(min_snr=30.0), gain=0.0)
    original = world.search.whole({}, Rounding.FITTED)
    standing: Any = Standing(world, world.goal, world, world.clock, original)  # type: ignore[arg-type]
    search = Anytime(world.opened, world.search, standing)
    search.uniforms = [item for item, way, *_ in world.uniform() if way is Rounding.FITTED]
    by_name = {item.encoding.text: replace(item, missing={}) for item in search.uniforms}
    search.uniforms = list(by_name.values())
    six, eight, ten = (by_name[f"int{bits}:channel:dequantize"] for bits in (6, 8, 10))
    assert standing.gap == 0.0
    six.missing[Rounding.FITTED] = 10.0
    assert search._expected(eight, Rounding.FITTED) == pytest.approx(10.0 - 2 * 6.02)
    ten.missing[Rounding.FITTED] = -30.0
    assert search._expected(eight, Rounding.FITTED) == pytest.approx(-10.0)
    assert search._expected(six, Rounding.FITTED) == pytest.approx(10.0)
    # Beyond all that is known the nearest tells alone.
    finer = by_name["int12:channel:dequantize"]
    assert search._expected(finer, Rounding.FITTED) == pytest.approx(-30.0 - 2 * 6.02)


class Coarse(World):
    """Less than eight bits lose all, so that files of few bits tell nothing of those of more."""

    def noise_of(self, position: int, form: Any, rounding: Rounding) -> float:
        if form.form.is_integer and form.form.bits < 8:
            return 4.0 * self.share[position]
        return super().noise_of(position, form, rounding)


def test_where_the_best_is_far_above_the_bounds_others_are_looked_for_again() -> None:
    goal = Goal(min_snr=30.0)
    steps = Coarse(goal, gain=1.0).run().steps
    fitted = next(step.nbytes for step in steps if step.step.endswith("fitted to inputs"))
    assert fitted is not None and fitted < 1.2 * smallest(Coarse(goal, gain=1.0))


def test_one_plain_file_is_enough_before_others_are_fitted() -> None:
    """Past the limit nothing is fitted that is far from the bounds, either."""
    goal, tried = Goal(min_snr=30.0), []
    for limit in (None, 0.001):
        world = World(goal, limit)
        standing = world.run()
        ways = [way for _, way in world.ran[1:]]
        fitted = next(step for step in standing.steps if step.step.endswith("fitted to inputs"))
        plain = next(step for step in standing.steps if step.step.endswith("for all weights"))
        assert plain.nbytes is not None and plain.nbytes < ORIGINAL
        fits = ways[plain.files - 1 : fitted.files - 1]
        assert fits[0] is Rounding.FITTED
        assert nbytes_of(standing) <= smallest(World(goal))
        tried.append(fits.count(Rounding.FITTED))
    assert tried[0] > tried[1] > 0


@pytest.mark.parametrize(("load", "fits"), [(3.0, True), (1000.0, False)])
def test_fitted_files_get_more_time_but_not_any_amount(load: float, fits: bool) -> None:
    goal = Goal(min_snr=30.0)
    world = World(goal, 1.0, load=load)
    standing = world.run()
    ways = {rounding for _, rounding in world.ran}
    assert (Rounding.FITTED in {way for _, way in world.ran[1:]}) is fits and Rounding.PLAIN in ways
    # Plain ones are tried whatever the time.
    wanted = () if fits else (Rounding.PLAIN,)
    assert nbytes_of(standing) <= smallest(World(goal), *wanted)
    assert [step.step for step in standing.steps if not step.finished][:1] == (
        ["mixtures of two encodings"] if fits else ["one encoding, fitted to inputs"]
    )
    assert world.clock.overrun > 0


class CoarseBlocks(World):
    """Blocks and one scale are worth much less than elsewhere."""

    def noise_of(self, position: int, form: Any, rounding: Rounding) -> float:
        worse = 30.0 if form.granularity is not Granularity.CHANNEL else 1.0
        return worse * super().noise_of(position, form, rounding)


class Branches(World):
    """Whatever is coarse by chance takes another branch, which leaves as much of the outputs as any other."""

    def snr(self, choice: Mapping[int, Any], rounding: Rounding) -> float:
        texts = {(form.text, rounding) for form in choice.values()}
        fitted = {(text, Rounding.FITTED) for text in ("int8:channel:dequantize", "int6:channel:dequantize")}
        plain = {("int6:block:dequantize", Rounding.PLAIN), ("int4:channel:dequantize", Rounding.PLAIN)}
        return 1.5 if texts & (fitted | plain) else super().snr(choice, rounding)


@pytest.mark.parametrize("limit", [0.001, 30.0])
@pytest.mark.parametrize("bound", [24.0, 27.0, 30.0, 36.0])
def test_files_that_keep_less_than_their_worth_hide_no_others(bound: float, limit: float) -> None:
    """Nor past the limit."""
    goal = Goal(min_snr=bound)
    for gain in (2.0, 6.0, 12.0):
        least = smallest(CoarseBlocks(goal, gain=gain))
        assert nbytes_of(CoarseBlocks(goal, limit, gain=gain).run()) <= least


@pytest.mark.parametrize("limit", [0.001, 30.0, None])
@pytest.mark.parametrize("bound", [24.0, 30.0, 36.0])
def test_what_is_decided_otherwise_tells_nothing_of_others(bound: float, limit: float | None) -> None:
    goal = Goal(min_snr=bound)
    steps = Branches(goal, limit).run().steps
    fitted = next(step.nbytes for step in steps if step.step.endswith("fitted to inputs"))
    assert fitted is not None and fitted <= smallest(Branches(goal))


def test_the_original_keeps_what_nothing_else_keeps() -> None:
    for limit in (0.001, None):
        standing = World(Goal(min_snr=90.0), limit).run()
        assert standing.found.promised is not None and standing.found.promised.choice == {}
        assert nbytes_of(standing) == ORIGINAL
    # Unless it is too large.
    assert World(Goal(min_snr=90.0, max_nbytes=80_000)).run().found.promised is None


def test_held_out_inputs_refuse() -> None:
    """What the search keeps by less than they show less is not taken."""
    goal = Goal(min_snr=30.0)
    for held in (0.0, 3.0, 12.0):
        standing = World(goal, 0.001, held=held).run()
        found = standing.found
        assert found.proven is not None and (found.proven.snr or 0.0) >= 30.0
        assert nbytes_of(standing) <= smallest(World(goal, held=held))


@pytest.mark.parametrize("limit", [0.001, 30.0, None])
def test_a_size_alone_gets_the_best_file_of_one_encoding_first(limit: float | None) -> None:
    goal = Goal(max_nbytes=25_000)
    standing = World(goal, limit).run()
    found = standing.found.promised
    assert found is not None and found.nbytes <= 25_000
    best = max(kept for _, _, nbytes, kept in World(goal).uniform() if nbytes <= 25_000)
    assert standing.found.proven is not None and (standing.found.proven.snr or 0.0) >= best
    assert World(Goal(max_nbytes=1000), limit).run().found.promised is None


def test_both_bounds() -> None:
    found = World(Goal(min_snr=30.0, max_nbytes=40_000), 0.001).run().found.promised
    assert found is not None and found.nbytes <= 40_000 and (found.snr or 0.0) >= 30.0
    assert World(Goal(min_snr=60.0, max_nbytes=20_000)).run().found.promised is None


def test_where_a_file_is_exact_smaller_ones_are_tried() -> None:
    world = World(Goal(min_snr=30.0), 0.001, shares=(0.0,) * 4)
    assert nbytes_of(world.run()) == smallest(world)


def test_without_real_inputs_nothing_is_fitted() -> None:
    world = World(Goal(min_snr=30.0), gain=0.0)
    standing = world.run()
    assert "one encoding, fitted to inputs" not in {step.step for step in standing.steps}
    assert nbytes_of(standing) <= smallest(World(Goal(min_snr=30.0), gain=0.0))


@pytest.mark.parametrize("error", [UnsupportedError, UsageError, FileAccessError])
def test_files_that_cannot_be_made_are_passed_over(
    monkeypatch: pytest.MonkeyPatch, error: type[TflRewriteError]
) -> None:
    """But not what is wrong with all files."""
    made = World.measure

    def measure(self: World, choice: Mapping[int, Any], *rest: Any, **more: Any) -> Measured:
        if any(form.form.name == "int6" for form in choice.values()):
            raise error("no int6 here")
        return made(self, choice, *rest, **more)

    monkeypatch.setattr(World, "measure", measure)
    if error is not UnsupportedError:
        with pytest.raises(error):
            World(Goal(min_snr=30.0), 0.001).run()
        return
    standing = World(Goal(min_snr=30.0), 0.001).run()
    assert standing.found.promised is not None and standing.found.promised.choice


def test_one_encoding_is_that_of_quantize_weights() -> None:
    """As far as each constant can have it, and what it has instead."""
    world = World(Goal(min_snr=30.0))
    original = world.search.whole({}, Rounding.FITTED)
    found = {item.encoding.text: item for item in uniform_files(world.opened, world.search, original)}
    assert set(found) >= {"int8:channel", "int8:channel:dequantize", "int4:channel", "float16"}
    assert all(len(item.choice) == 4 for item in found.values())
    assert len({key_of(item.choice) for item in found.values()}) >= 9
    worth = [found[text].nominal for text in ("int2:channel:dequantize", "int4:channel", "float16")]
    assert worth == sorted(worth)
    assert found["int8:channel"].encoding == Encoding.parse("int8:channel")
    for item in found.values():
        assert item.expected == pytest.approx(world.size(item.choice), rel=1e-3)


class OneChannel:
    """Trials where one constant decides: files keep the bound only if it has eight bits."""

    def __init__(self, goal: Goal, deciding: int) -> None:
        self.goal, self.deciding = goal, deciding

    def measure(self, choice: Mapping[int, Form], cost: float | None, **_: object) -> Measured:
        nbytes = sum(_bits(choice.get(position)) for position in range(4))
        coarse = _bits(choice.get(self.deciding)) < 8
        made = measured(29.0 if coarse else 31.0 + 0.01 * nbytes, 100 * nbytes, self.goal)
        return replace(made, choice=dict(choice))


def _bits(form: Form | None) -> int:
    return 32 if not isinstance(form, Encoding) else form.form.bits


@pytest.mark.parametrize("deciding", [0, 3])
def test_a_file_that_misses_the_bound_by_little_is_repaired(deciding: int) -> None:
    """What is measured of constants alone says that all are alike: that one decides, only files show."""
    goal = Goal(min_snr=30.0)
    units = []
    for position in range(4):
        unit = Unit(position, "w", ("CONV_2D",), 100, 3200, [Option(KEPT, 3200, 3200.0, np.zeros(1))])
        for bits in (8, 6, 4):
            noise = np.array([2e-4 * 4.0 ** (4 - bits)])
            form = Encoding.parse(f"int{bits}:channel:dequantize")
            unit.options.append(Option(form, 100 * bits, 100.0 * bits, noise))
        units.append(unit)
    trials: Any = OneChannel(goal, deciding)
    search = Search(
        trials, units, goal=goal, state=State(None, ""), clock=Clock(None), progress=lambda *_: None
    )
    found = search.find(goal)
    assert found is not None
    assert {position: _bits(form) for position, form in found.choice.items()} == {
        position: 8 if position == deciding else 4 for position in range(4)
    }
