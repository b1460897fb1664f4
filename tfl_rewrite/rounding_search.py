"""Finds the coarsest rounding that keeps the outputs at a given signal-to-noise ratio.

The noise that rounding one constant puts on an output grows with the square of its step, and the noises of
several constants add up, as long as they are small. So each constant is rounded alone once and the file is
run: that gives what a unit of its noise costs. Then each gets the grid that minimizes deflated bytes plus a
price times its cost (reverse water-filling, with measured sizes in place of the logarithm), and the price is
settled by running files with everything rounded. How many files are run depends on the model alone, not on
the clock, so the same input gives the same result.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from tfl_rewrite.errors import UnsupportedError
from tfl_rewrite.model.blob import MappedBlob
from tfl_rewrite.model.graph import Graph
from tfl_rewrite.model.ir import Tensor
from tfl_rewrite.passes.round_weights import (
    Choice,
    Constant,
    Granularity,
    Rounding,
    RoundWeights,
    find_constants,
)
from tfl_rewrite.quant import rounding
from tfl_rewrite.quant.rounding import KINDS, Float64, Rows
from tfl_rewrite.rewriting import Verification
from tfl_rewrite.storage import load, save
from tfl_rewrite.verification import Judge, Tolerance, Verdict

PROBES = 160
"""Constants that are measured alone; the smallest of a model with more are measured together."""

# Of each constant, what its sizes are estimated from: as far as deflate looks back.
_SAMPLE = 1 << 13
_ESTIMATE_LEVEL = 6
_SPREADS = (0.0, 1.0)
# How coarse a constant may be beyond its probe, and how fine: places in the list of steps, four an octave.
_STRIDE = 4
_COARSER, _FINER = 28, 20
_ROUNDS = 14
_QUIET = 1e-20
_SQUASHING = ("SOFTMAX", "LOGISTIC", "TANH")

_ANYTHING = Tolerance(min_snr=None)


@dataclass(frozen=True, slots=True)
class Found:
    """What a search came to.

    Attributes:
        settings: The pass that was found.
        snr: Lowest ratio over the outputs that was measured with it, in dB; None where none has one.
        files: How many files were run.
    """

    settings: RoundWeights
    snr: float | None
    files: int


@dataclass(slots=True, eq=False)
class _Option:
    """One grid for a group of constants.

    Attributes:
        choices: By position of the buffer.
        nbytes: Deflated size, as far as a part of each constant tells.
        noise: Squared error of the values.
        spread: Which of the group's costs applies.
    """

    choices: dict[int, Choice]
    nbytes: float
    noise: float
    spread: float


@dataclass(slots=True, eq=False)
class _Group:
    """Constants that are measured together; nearly always one.

    Attributes:
        options: Finest first, for each spread.
        costs: By spread: noise of each output, relative to its signal, per unit of noise of the values.
    """

    items: list[Constant]
    options: list[_Option] = field(default_factory=list)
    costs: dict[float, Float64] = field(default_factory=dict)


def search_rounding(
    source: str | os.PathLike[str],
    settings: RoundWeights,
    verification: Verification,
    *,
    min_snr: float,
    max_abs_error: float | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Found:
    """Searches; see the module.

    Args:
        source: The file.
        settings: Granularity and which constants; its steps are not used.
        verification: What to measure with; its tolerance is not used.
        min_snr: What every output must keep, in dB.
        max_abs_error: What no element of an output may be off by more than.
        progress: Called with what is going on, and how many of how many runs are done.

    Raises:
        UnsupportedError: The original cannot be run, so nothing can be measured.
    """
    with RoundingSearch(source, settings, verification, aim=min_snr, progress=progress) as search:
        return search.find(min_snr, max_abs_error=max_abs_error)


class _Trial:
    """A copy of a file in which constants are replaced in place, and its judge.

    Args:
        path: The copy; the original for the judge is another one beside it.
        judge: Of files rewritten from the original.
        offsets: Where the constants lie, by position of their buffers.
    """

    def __init__(self, path: Path, judge: Judge, offsets: Mapping[int, int]) -> None:
        self._path = path
        self._judge = judge
        self._offsets = offsets
        self._dirty: dict[int, tuple[Constant, Choice]] = {}
        self.files = 0

    @classmethod
    def of(
        cls, source: str | os.PathLike[str], name: str, folder: Path, verification: Verification
    ) -> _Trial:
        """Copies a file."""
        path = folder / f"{name}.tflite"
        shutil.copyfile(source, path)
        offsets = {
            position: buffer.blob.offset
            for position, buffer in enumerate(load(source).buffers)
            if isinstance(buffer.blob, MappedBlob)
        }
        return cls(path, verification.judge(source, exact=False), offsets)

    def close(self) -> None:
        """Ends the processes."""
        self._judge.close()

    def judge(self, chosen: Mapping[int, tuple[Constant, Choice]], tolerance: Tolerance) -> Verdict:
        """Judges the file with these constants rounded and all others as they were."""
        with open(self._path, "r+b") as file:
            for position, (item, _) in self._dirty.items():
                if position not in chosen:
                    self._write(file.fileno(), item, item.blob.view())
            for position, made in chosen.items():
                if self._dirty.get(position) != made:
                    self._write(file.fileno(), made[0], Rounding(made[0], made[0].steps(made[1])).data())
        self._dirty = dict(chosen)
        self.files += 1
        verdict = self._judge.compare(self._path, tolerance=tolerance)
        if verdict.status == "unverified":
            raise UnsupportedError(
                f"cannot search, since nothing can be measured: {'; '.join(verdict.reasons)}",
                remedy="use --steps instead of --min-snr",
            )
        return verdict

    def _write(self, descriptor: int, item: Constant, data: bytes | bytearray | memoryview) -> None:
        os.pwrite(descriptor, data, self._offsets[item.position])


class RoundingSearch:
    """Measures a file once and finds the rounding for any number of targets.

    Args:
        source: The file.
        settings: Granularity and which constants; its steps are not used.
        verification: What to measure with; its tolerance is not used.
        aim: Where about the targets are, in dB: constants are measured near it.
        progress: Called with what is going on, and how many of how many runs are done.

    Raises:
        UnsupportedError: The original cannot be run, so nothing can be measured.
    """

    def __init__(
        self,
        source: str | os.PathLike[str],
        settings: RoundWeights,
        verification: Verification,
        *,
        aim: float,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> None:
        self._settings = settings
        self._aim = min(max(aim, 0.0), 120.0)
        self._progress = progress or (lambda _what, _done, _total: None)
        items, _ = find_constants(load(source), settings)
        self._items = {item.position: item for item in _not_rounded(items)}
        self._groups = _grouped(list(self._items.values()), PROBES)
        self._folder = tempfile.TemporaryDirectory(prefix="tfl-rewrite-")
        folder = Path(self._folder.name)
        self._trial = self._probes = _Trial.of(source, "trial", folder, verification)
        opened = folder / "opened.tflite"
        if open_outputs(source, opened):
            self._probes = _Trial.of(opened, "probe", folder, verification)

    def __enter__(self) -> RoundingSearch:
        return self

    def __exit__(self, *_: object) -> None:
        self._trial.close()
        self._probes.close()
        self._folder.cleanup()

    @property
    def files(self) -> int:
        """How many files were run."""
        return self._trial.files + (self._probes.files if self._probes is not self._trial else 0)

    def measure(self) -> None:
        """Measures what the noise of each constant costs, unless that is done."""
        for number, group in enumerate(self._groups):
            self._progress("measuring constants", number, len(self._groups))
            if not group.costs:
                self._probe(group)

    def find(self, min_snr: float, *, max_abs_error: float | None = None) -> Found:
        """Returns the coarsest rounding that was found to keep every output at a ratio.

        Args:
            min_snr: In dB.
            max_abs_error: What no element of an output may be off by more than.
        """
        if not self._items:
            return Found(replace(self._settings, choices={}), None, self.files)
        self.measure()
        tolerance = Tolerance(min_snr=min_snr, max_abs_error=max_abs_error)
        best: tuple[float, dict[int, Choice], float | None] | None = None
        low, high = None, None
        aim = min_snr
        seen: set[tuple[tuple[int, Choice], ...]] = set()
        for number in range(_ROUNDS):
            self._progress("settling the steps", number, _ROUNDS)
            picked = self._solve(aim)
            choices = {key: made for option in picked for key, made in option.choices.items()}
            key = tuple(sorted(choices.items(), key=lambda pair: pair[0]))
            if key in seen:
                aim -= 0.25
                continue
            seen.add(key)
            verdict = self._judge(choices, tolerance, self._trial)
            worst = _worst(verdict)
            if verdict.passed:
                size = sum(option.nbytes for option in picked)
                if best is None or size < best[0]:
                    best = size, choices, verdict.worst_snr()
                high = aim if high is None else min(high, aim)
            else:
                low = aim if low is None else max(low, aim)
            if low is not None and high is not None:
                if high - low < 0.1:
                    # Rounding is a draw: a coarser grid may do as well by chance.
                    low, high = low - 0.4, low
                    aim = low
                    continue
                guess = aim + min_snr - worst + 0.02
                inside = low + 0.1 * (high - low) < guess < high - 0.1 * (high - low)
                aim = guess if inside else (low + high) / 2
            elif low is None:
                aim -= min(20.0, max(0.5, worst - min_snr))
            else:
                aim += min(20.0, max(0.5, min_snr - worst + 0.1))
        if best is None:
            choices = {
                position: Choice(rounding.finest(item.profile(), item.kind))
                for position, item in self._items.items()
            }
            best = 0, choices, self._judge(choices, tolerance, self._trial).worst_snr()
        return Found(replace(self._settings, choices=best[1]), best[2], self.files)

    def _judge(self, choices: Mapping[int, Choice], tolerance: Tolerance, trial: _Trial) -> Verdict:
        return trial.judge({key: (self._items[key], made) for key, made in choices.items()}, tolerance)

    def _probe(self, group: _Group) -> None:
        """Measures what the noise of a group costs, near the noise that it is going to have."""
        spreads = _SPREADS if self._may_spread(group) else (0.0,)
        for spread in spreads:
            ratio = self._aim + 8.0
            for _ in range(4):
                choices = {item.position: _choice_at(item, ratio, spread) for item in group.items}
                noise = _noise(self._judge(choices, _ANYTHING, self._probes))
                largest = float(noise.max(initial=0.0)) * 10.0 ** (self._aim / 10.0)
                if largest > 1.0:
                    ratio += min(40.0, 10.0 * math.log10(largest) + 6.0)
                elif largest < 1e-4 and ratio > -10.0:
                    ratio -= min(25.0, -10.0 * math.log10(max(largest, 1e-12)) - 20.0)
                else:
                    break
            made = sum(
                Rounding(item, item.steps(choices[item.position])).error().noise for item in group.items
            )
            group.costs[spread] = np.maximum(noise, _QUIET) / max(made, 1e-300)
            center = {item.position: choices[item.position].step for item in group.items}
            group.options += _options(group, center, spread)

    def _may_spread(self, group: _Group) -> bool:
        return self._settings.granularity is not Granularity.TENSOR and any(
            item.rows.channels > 1 and item.rows.each >= 4 and item.kind is not KINDS["INT8"]
            for item in group.items
        )

    def _solve(self, aim: float) -> list[_Option]:
        """Returns the cheapest grids whose expected ratio is ``aim`` dB."""
        allowed = 10.0 ** (-aim / 10.0)
        outputs = next(iter(self._groups[0].costs.values())).size
        weight = np.ones(outputs)
        picked: list[_Option] = []
        for _ in range(8 if outputs > 1 else 1):
            low, high = -40.0, 100.0
            for _ in range(30):
                middle = (low + high) / 2
                picked = [_cheapest(group, weight * math.exp(middle)) for group in self._groups]
                if self._expected(picked).max(initial=0.0) > allowed:
                    low = middle
                else:
                    high = middle
            picked = [_cheapest(group, weight * math.exp(high)) for group in self._groups]
            total = self._expected(picked)
            if total.max(initial=0.0) <= 0:
                break
            # What the worst output suffers counts more next time.
            weight *= np.maximum(total / total.max(), 1e-3) ** 0.5
        return picked

    def _expected(self, picked: Sequence[_Option]) -> Float64:
        total = np.zeros(next(iter(self._groups[0].costs.values())).size)
        for group, option in zip(self._groups, picked, strict=True):
            total += group.costs[option.spread] * option.noise
        return total


def open_outputs(source: str | os.PathLike[str], target: Path) -> bool:
    """Writes a copy that gives out what goes into its last SOFTMAX, LOGISTIC or TANH; False if it has none.

    Behind those, an output that is sure of itself hides nearly all noise, on the inputs at hand; on others
    it would not. What a constant costs is therefore measured before them.
    """
    model = load(source)
    graph = Graph.of(model)
    swaps: dict[int, Tensor] = {}
    for subgraph in [model.subgraphs[0], *(item.subgraph for item in model.signatures)]:
        for tensor in subgraph.outputs:
            maker = graph.maker_of(tensor)
            inside = maker.inputs[0] if maker is not None and maker.inputs else None
            if maker is None or maker.code.name not in _SQUASHING or inside is None:
                continue
            if graph.maker_of(inside) is not None and id(inside) not in graph.exposed:
                swaps[id(tensor)] = inside
    if not swaps:
        return False
    for subgraph in model.subgraphs:
        subgraph.outputs = [swaps.get(id(tensor), tensor) for tensor in subgraph.outputs]
    for signature in model.signatures:
        signature.outputs = [(rest, swaps.get(id(tensor), tensor)) for rest, tensor in signature.outputs]
    save(model, target)
    return True


def _not_rounded(items: Sequence[Constant]) -> list[Constant]:
    """Returns what is to be rounded: nothing, where this was done before."""
    sound = [item for item in items if item.profile().finite]
    floats = [item for item in sound if item.kind is not KINDS["INT8"]]
    integers = [item for item in sound if item.kind is KINDS["INT8"]]
    rest = [item for item in floats if not item.is_rounded]
    done = not rest if floats else any(item.is_rounded for item in integers)
    return [] if done else [*rest, *integers]


def _judged(verdict: Verdict) -> list[float | None]:
    """Returns the ratio of each output, None where it is not what the output is judged by."""
    return [
        None if output.passed and output.rule == "near zero" else output.snr_db for output in verdict.outputs
    ]


def _worst(verdict: Verdict) -> float:
    """Returns the lowest ratio, between -100 and 200 dB."""
    ratios = [ratio for ratio in _judged(verdict) if ratio is not None]
    return max(-100.0, min([200.0, *ratios]))


def _noise(verdict: Verdict) -> Float64:
    """Returns the noise of each output relative to its signal."""
    return np.array(
        [
            0.0 if ratio is None else 10.0 ** (-max(-100.0, min(ratio, 200.0)) / 10.0)
            for ratio in _judged(verdict)
        ]
    )


def _cheapest(group: _Group, price: Float64) -> _Option:
    rate = {spread: float(cost @ price) for spread, cost in group.costs.items()}
    return min(group.options, key=lambda option: option.nbytes + rate[option.spread] * option.noise)


def _grouped(free: Sequence[Constant], probes: int) -> list[_Group]:
    """Gives each of the largest a group; the rest share ten."""
    order = sorted(free, key=lambda item: (-item.elements, item.position))
    groups = [_Group([item]) for item in order[: max(1, probes - 10)]]
    rest = order[len(groups) :]
    size = -(-len(rest) // 10)
    groups += [_Group(rest[start : start + size]) for start in range(0, len(rest), max(1, size))]
    return groups


def _choice_at(item: Constant, ratio: float, spread: float) -> Choice:
    """Returns the grid whose noise is expected at so many dB below the constant itself."""
    found = item.profile()
    power = float(found.power.sum()) / max(1, item.elements)
    step = math.sqrt(12.0 * power * 10.0 ** (-ratio / 10.0)) if power else 1.0
    least = rounding.finest(found, item.kind)
    coarsest = 4.0 * float(found.largest.max(initial=0.0)) or 1.0
    return Choice(_near(min(max(step, least), coarsest)), spread)


def _near(step: float) -> float:
    """Returns the nearest of 1, 1.25, 1.5 and 1.75 times a power of two."""
    mantissa, exponent = math.frexp(step)
    return math.ldexp(round(mantissa * 8), exponent - 3)


def _moved(step: float, places: int) -> float:
    """Returns the step so many places up or down in the list of all; four of them double it."""
    mantissa, exponent = math.frexp(step)
    place = 4 * exponent + round(mantissa * 8) - 4 + places
    return math.ldexp(4 + place % 4, place // 4 - 3)


def _options(group: _Group, center: Mapping[int, float], spread: float) -> list[_Option]:
    """Returns the grids around a center; one in an octave is tried, the others lie between."""
    parts = {item.position: _part(item) for item in group.items}
    made: dict[tuple[float, ...], _Option] = {}
    before: _Option | None = None
    for places in range(-_FINER, _COARSER + 1, _STRIDE):
        option = _Option(_at(group, center, places, spread), 0.0, 0.0, spread)
        for item in group.items:
            size, error = _estimate(item, parts[item.position], option.choices[item.position])
            option.nbytes += size
            option.noise += error
        for number in range(1, _STRIDE) if before is not None else ():
            assert before is not None
            part = number / _STRIDE
            nbytes = (1 - part) * before.nbytes + part * option.nbytes
            noise = before.noise ** (1 - part) * option.noise**part
            choices = _at(group, center, places - _STRIDE + number, spread)
            made.setdefault(_key(choices), _Option(choices, nbytes, noise, spread))
        made.setdefault(_key(option.choices), option)
        before = option
    return list(made.values())


def _at(group: _Group, center: Mapping[int, float], places: int, spread: float) -> dict[int, Choice]:
    """Returns the grids so many places from a center, none finer than what counts as rounded."""
    return {
        item.position: Choice(
            max(_moved(center[item.position], places), rounding.finest(item.profile(), item.kind)), spread
        )
        for item in group.items
    }


def _key(choices: Mapping[int, Choice]) -> tuple[float, ...]:
    return tuple(choice.step for choice in choices.values())


def _part(item: Constant) -> tuple[int, int]:
    """Returns first channel and number of channels of what stands for the whole."""
    rows = item.rows
    if rows.elements <= _SAMPLE or rows.outer > 1 or rows.channels == 1:
        return 0, rows.channels
    count = max(1, _SAMPLE // rows.inner)
    return (rows.channels - count) // 2, min(count, rows.channels)


def _estimate(item: Constant, part: tuple[int, int], choice: Choice) -> tuple[float, float]:
    """Returns the deflated size and the squared error of a constant on a grid."""
    first, count = part
    rows = item.rows
    steps = item.steps(choice)
    values = item.values()
    if count < rows.channels:
        values = values[first * rows.inner : (first + count) * rows.inner]
        steps = steps if steps.size == 1 else steps[first : first + count]
        rows = Rows(1, count, rows.inner, rows.taps, rows.balanced)
    elif rows.channels == 1 and rows.elements > _SAMPLE:
        start = (rows.elements - _SAMPLE) // 2
        values = values[start : start + _SAMPLE]
        rows = Rows.flat(_SAMPLE)
    made = np.empty(values.size, values.dtype)

    def emit(start: int, block: rounding.Array) -> None:
        made[start : start + block.size] = block

    error = rounding.round_values(values, steps, rows, item.kind, emit, item.zero)
    scale = item.elements / max(1, values.size)
    return rounding.deflated(made.data, level=_ESTIMATE_LEVEL) * scale, error.noise * scale
