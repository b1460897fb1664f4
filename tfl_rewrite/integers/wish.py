"""Finds the cheapest mixture of 8 and 16 bits, or of integers and floats, that is as exact as is wished.

Noises of single groups add up nearly, so a knapsack proposes; a copy of the model that rounds activations and
weights as the mixture does tells what it really does to the outputs, and the knapsack gets more room or less.
Beside floats, the noise of a group counts the weights of what makes it: they become floats with it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from typing import Protocol

import numpy as np

from tfl_rewrite.integers.convert import IntegerWeight, WeightOf
from tfl_rewrite.integers.groups import Grid
from tfl_rewrite.integers.mixture import Mixture, Unit
from tfl_rewrite.integers.modes import Range
from tfl_rewrite.integers.plan import IntegerPlan
from tfl_rewrite.integers.trials import bordered, rounding, weighing
from tfl_rewrite.numerics.knapsack import Float64
from tfl_rewrite.options.frozen import frozen, slotted
from tfl_rewrite.weights.rounders import Simulate, Simulated


class Measure(Protocol):
    """Runs copies."""

    def __call__(self, changes: Sequence[Simulated], *, apart: bool = True) -> Float64:
        """Returns noise over signal of each output, ``[changes, outputs]``.

        Args:
            changes: What makes the copies.
            apart: Whether samples are measured on ranges that they are not among, where there are enough.
        """


MARGIN_DB = 1.0
"""By so much more than was wished are outputs kept on the samples at hand: others lie a little beyond."""
MOST_MARGIN_DB = 8.0
"""Where so much is not enough either, all groups are wide, before the model is refused."""
NEAR_DB = 1.0
"""By so much may outputs be worse than where all is wide, where that does not reach the wish."""
MOST_PROMISED_DB = 3.0
"""What samples at hand promise beyond what others keep is believed to be lost again, up to so much."""

_TRIES = 8
_CLOSE = 0.9
"""Of the room: what uses so much of it is near enough."""


@frozen
class Settled:
    """What was found.

    Attributes:
        wide: The groups with 16 bits, or floats.
        snr: Of the lowest output on the samples at hand, in dB, with weights rounded as for 16 bits
            everywhere, or for integers.
        widest: The same where all groups are wide.
        narrowest: And where none is.
    """

    wide: tuple[Unit, ...]
    snr: float
    widest: float
    narrowest: float


def decibels(noise: Float64) -> float:
    """Returns the ratio of the lowest output."""
    worst = float(noise.max(initial=0.0))
    return math.inf if worst <= 0 else -10.0 * math.log10(worst) if math.isfinite(worst) else -math.inf


@slotted
class Known:
    """What does not change with the wish; kept from one search in a model to the next in an equal one.

    Attributes:
        weights: As they are rounded for 16 bits everywhere, or for integers, in order of execution.
        noises: ``[4 + units, outputs]``: with all groups wide, on ranges of all samples and on those of
            others; with none wide, likewise; and with each alone narrow, on ranges of all.
        tried: Of mixtures, by the numbers of the wide groups.
        given: By wish and mixture, the least margin that gave it.
    """

    weights: list[IntegerWeight] = field(default_factory=list)
    noises: Float64 | None = None
    tried: dict[tuple[int, ...], Float64] = field(default_factory=dict)
    given: dict[tuple[float | None, tuple[int, ...]], float] = field(default_factory=dict)


class Search:
    """Mixtures of one model.

    Args:
        mixture: Its scale groups.
        weights_of: Rounds the weights for a plan.
        measure: Runs copies.
        known: What an earlier search found; filled in where it found nothing.
        border: Of a plan and ranges, on which grids inputs and outputs are rounded besides, by id.
    """

    def __init__(
        self,
        mixture: Mixture,
        weights_of: Callable[[IntegerPlan], WeightOf],
        measure: Measure,
        known: Known,
        border: Callable[[IntegerPlan, Mapping[int, Range]], Mapping[int, Grid]] = lambda *_: {},
    ) -> None:
        self._border = border
        self._mixture = mixture
        self._measure = measure
        rounded = mixture.plan(() if mixture.wide is None else mixture.units)
        weighted = list(rounded.works())
        if known.noises is None:
            weight_of = weights_of(rounded)
            operators = {id(operator): operator for _, operator in mixture.model.operators()}
            known.weights = [weight_of(operators[key], position) for key, position in weighted]
        self._weights = dict(zip(weighted, known.weights, strict=True))
        if known.noises is None:
            # Of many changes of a large model fewer samples are looked at.
            alone = [measure(self._alone(), apart=False)] if mixture.units else []
            known.noises = np.concatenate([self._both([mixture.units, ()]), *alone])
        self._tried, self._given = known.tried, known.given
        self.widest, self._cut, narrowest, apart = known.noises[:4]
        self.narrowest = self._joined(narrowest, apart)
        self._noises = known.noises[4:]

    def settle(
        self, min_snr: float | None, margin: float = MARGIN_DB, most: float = MOST_MARGIN_DB
    ) -> Settled:
        """Returns the cheapest mixture found that keeps a ratio, or comes near what all groups wide keep.

        Args:
            min_snr: In dB; None for what is near.
            margin: In dB, what is kept beyond it. A mixture that a smaller one gave was refused: what comes
                next is wider or more exact, and at last all groups are wide.
            most: The largest margin to try before that.
        """
        room, found = margin, self._cheapest(min_snr, margin)
        while not self.is_widest(found) and self._refused(found, min_snr, margin):
            room += MARGIN_DB
            all_wide = self._settled(self._mixture.units, self.widest)
            found = self._cheapest(min_snr, room) if room <= most else all_wide
        return found

    def settle_refused(self, min_snr: float, short: float, margin: float) -> Settled:
        """Returns the cheapest mixture found that keeps a ratio, where none of the groups wide was refused.

        Args:
            min_snr: In dB.
            short: By how many dB that missed it.
            margin: See :meth:`settle`; more is kept where the samples at hand had promised more, too.
        """
        self._given[min_snr, ()] = -math.inf
        promised = decibels(self.narrowest) - (min_snr - min(short, MOST_MARGIN_DB))
        margin += min(max(promised, 0.0), MOST_PROMISED_DB)
        return self.settle(min_snr, margin, margin + MOST_MARGIN_DB)

    def is_widest(self, found: Settled) -> bool:
        """Whether nothing is left that could be wide."""
        return len(found.wide) == len(self._mixture.units)

    def _refused(self, found: Settled, min_snr: float | None, margin: float) -> bool:
        """Whether this mixture was given for a smaller margin, or one as wide that is as exact."""
        own = self._key(found.wide)
        given = self._given.setdefault((min_snr, own), margin)
        self._given[min_snr, own] = min(margin, given)
        share = self._mixture.share(found.wide)
        return any(
            first < margin and wish == min_snr and self._share(key) >= share and self._snr(key) >= found.snr
            for (wish, key), first in self._given.items()
        )

    def _share(self, key: tuple[int, ...]) -> float:
        return self._mixture.share([self._mixture.units[number] for number in key])

    def _snr(self, key: tuple[int, ...]) -> float:
        """Returns what the outputs keep with a mixture that was given."""
        return decibels(self._tried[key] if key else self.narrowest)

    def _cheapest(self, min_snr: float | None, margin: float) -> Settled:
        """Returns the cheapest mixture found that keeps so much."""
        near = self.widest * 10.0 ** (NEAR_DB / 10.0)
        asked = 0.0 if min_snr is None else 10.0 ** (-(min_snr + margin) / 10.0)
        target = np.maximum(near, asked)
        best, noise = list(self._mixture.units), self.widest
        if (self.narrowest <= target).all():
            return self._settled([], self.narrowest)
        room = np.maximum(target - self.widest, 1e-12)
        low, high, allowed = 0.0, math.inf, 1.0
        for _ in range(_TRIES):
            wide = self._mixture.cheapest(self._noises / room, allowed)
            made = self._made(wide)
            used = float(((made - self.widest) / room).max())
            if used <= 1.0:
                low = allowed
                if self._mixture.price(wide) < self._mixture.price(best):
                    best, noise = wide, made
                if used >= _CLOSE:
                    break
            else:
                high = allowed
            if high <= 1.05 * low:
                break
            if low and math.isfinite(high):
                allowed = math.sqrt(low * high)
            else:
                allowed *= min(4.0, max(0.1, 0.97 / max(used, 1e-3)))
        return self._settled(best, noise)

    def widest_share(self, share: float) -> Settled:
        """Returns the groups to be wide that hurt most where they are not, in so many operators at most.

        Args:
            share: Of the operators in integers.
        """
        wide: list[Unit] = []
        for number in np.argsort(-self._noises.max(axis=1, initial=0.0), kind="stable"):
            unit = self._mixture.units[int(number)]
            if self._mixture.share([*wide, unit]) <= share:
                wide.append(unit)
        return self._settled(wide, self._made(wide))

    def _made(self, wide: Sequence[Unit]) -> Float64:
        """Returns what a mixture does to the outputs; each is run once."""
        key = self._key(wide)
        if key not in self._tried:
            self._tried[key] = self._joined(*self._both([wide]))
        return self._tried[key]

    def _both(self, mixtures: Sequence[Sequence[Unit]]) -> Float64:
        """Returns what mixtures do, on ranges of all samples and of others than those that are measured.

        Returns:
            ``[2 * mixtures, outputs]``, both of each.
        """
        changes = [self._trial(wide) for wide in mixtures]
        whole = self._measure(changes, apart=False)
        # Floats are cut nowhere, so that a single sample beyond all others would ask for them everywhere: 879
        # kB instead of 486 for a noise filter, which kept 37 dB instead of 34, of 20 that were asked for.
        apart = whole if self._mixture.wide is None else self._measure(changes, apart=True)
        return np.stack([whole, apart], axis=1).reshape(2 * len(mixtures), -1)

    def _joined(self, whole: Float64, apart: Float64) -> Float64:
        """Returns the noise of a mixture, of what it does on ranges of all samples and on those of others.

        A sample far beyond all others is cut off on their ranges, whatever the widths: what all groups wide
        lose by that is no reason to choose one.
        """
        cut = np.isfinite(self._cut)
        more = np.subtract(apart, self._cut, out=np.full_like(apart, np.inf), where=cut)
        return np.asarray(np.maximum(whole, self.widest + np.maximum(more, 0.0)))

    def _key(self, wide: Sequence[Unit]) -> tuple[int, ...]:
        """Returns the numbers of groups, in order."""
        wanted = set(map(id, wide))
        return tuple(number for number, unit in enumerate(self._mixture.units) if id(unit) in wanted)

    def _trial(self, wide: Sequence[Unit]) -> Simulated:
        def simulated(ranges: Mapping[int, Range]) -> Simulate:
            plan = self._mixture.plan(wide, ranges)
            weights = {site: weight for site, weight in self._weights.items() if site[0] in plan.modes.widths}
            model, grids = self._mixture.model, self._border(plan, ranges)
            return weighing(model, weights, bordered(model, grids, plan.simulate))

        return simulated

    def _alone(self) -> list[Simulated]:
        """Makes each group narrow, and nothing else."""
        return [functools.partial(self._narrow, unit) for unit in self._mixture.units]

    def _narrow(self, unit: Unit, _: Mapping[int, Range]) -> Simulate:
        simulate = rounding(self._mixture.model, unit.grids, unit.operators)
        if self._mixture.wide is not None:
            return simulate
        makers = {
            key
            for key, operator in unit.operators.items()
            if any(id(tensor) in unit.tensors for tensor in operator.outputs)
        }
        weights = {site: weight for site, weight in self._weights.items() if site[0] in makers}
        return weighing(self._mixture.model, weights, simulate)

    def _settled(self, wide: Sequence[Unit], noise: Float64) -> Settled:
        return Settled(tuple(wide), *map(decibels, (noise, self.widest, self.narrowest)))
