"""Means and second moments of what a weight is multiplied with, from few samples.

They are kept for two halves of the samples apart. What both halves agree on is the model's; what they do not
is chance, and :class:`Covariances` takes so much of it back as the disagreement tells. What was fitted to one
half can be judged by the other: see :meth:`Moments.error`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from tfl_rewrite.numerics.products import Product
from tfl_rewrite.numerics.symmetric import Float32
from tfl_rewrite.options.frozen import slotted

Array = npt.NDArray[Any]
Float64 = npt.NDArray[np.float64]
Float = npt.NDArray[np.floating]

LARGEST_BLOCK = 2304
"""Longer vectors are cut: 256 channels under a 3 by 3 window still fit, two halves take 42 MB."""

LARGEST_NBYTES = 128 << 20
"""Of the moments of one weight; vectors of those that would take more are cut shorter. A few copies of them,
partly of twice the size, are held while it is rounded."""

_FLOPS = 2e9
_LEAST_VECTORS, _MOST_VECTORS = 512, 16384
_LARGEST_SUM = 1e33
"""Of products in one sample; sums over 100,000 samples and their means still fit in float32."""
_AGREED_ROWS = 256
"""Of moments, on which halves are compared."""
_LEAST_DIAGONAL = 1e-4
"""Of the mean diagonal, added to every element: what never varied in the samples may vary elsewhere."""


def parts_of(inner: int, largest: int = LARGEST_BLOCK) -> int:
    """Returns into how many equal parts vectors are cut so that a part is no longer than ``largest``."""
    return next(count for count in range(max(1, -(-inner // largest)), inner + 1) if inner % count == 0)


def parts_for(product: Product) -> int:
    """Returns into how many parts the vectors of a product are cut."""
    parts = parts_of(product.inner)
    each = 8 * product.groups * product.inner
    if each * (product.inner // parts) > LARGEST_NBYTES:
        parts = parts_of(product.inner, max(1, LARGEST_NBYTES // each))
    return parts


def split(array: npt.NDArray[Any], parts: int) -> npt.NDArray[Any]:
    """Cuts ``[groups, rows, inner]`` into ``[groups * parts, rows, inner / parts]``."""
    if parts == 1:
        return array
    groups, rows, inner = array.shape
    cut = array.reshape(groups, rows, parts, inner // parts).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(cut).reshape(groups * parts, rows, -1)


def joined(array: npt.NDArray[Any], parts: int) -> npt.NDArray[Any]:
    """Undoes :func:`split`."""
    if parts == 1:
        return array
    _, rows, length = array.shape
    whole = array.reshape(-1, parts, rows, length).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(whole).reshape(-1, rows, parts * length)


@slotted
class Moments:
    """Sums over the vectors that one weight meets.

    Vectors longer than :data:`LARGEST_BLOCK` are cut into equal parts, whose cross moments are not kept; each
    part then counts as a group of its own (``[groups * parts, ...]``).

    Attributes:
        product: How the weight is multiplied.
        parts: Into how many parts each vector is cut.
        square: Sums of the outer products, ``[2, groups * parts, length, length]``.
        total: Sums of the vectors, ``[2, groups * parts, length]``.
        count: Numbers of vectors, ``[2]``.
        samples: How many samples were seen.
    """

    product: Product
    parts: int = field(init=False)
    square: Float32 = field(init=False)
    total: Float64 = field(init=False)
    count: Float64 = field(init=False)
    samples: int = 0

    def __post_init__(self) -> None:
        """Starts with nothing seen."""
        self.parts = parts_for(self.product)
        groups, length = self.product.groups * self.parts, self.product.inner // self.parts
        self.square = np.zeros((2, groups, length, length), np.float32)
        self.total = np.zeros((2, groups, length))
        self.count = np.zeros(2)

    @property
    def nbytes(self) -> int:
        """Memory that they take."""
        return self.square.nbytes + self.total.nbytes

    @staticmethod
    def nbytes_of(product: Product) -> int:
        """Returns the memory that the moments of a product take."""
        return 8 * product.groups * product.inner * (product.inner // parts_for(product))

    def add(self, activation: Array, stream: np.random.Generator, half: int | None = None) -> None:
        """Takes in the activation of one sample.

        Of large activations a part is drawn: as many vectors as are worth their time.

        Args:
            activation: In the shape that the operator reads.
            stream: To draw with.
            half: That it counts for; without it, samples alternate.

        Raises:
            ValueError: The activation is not float32, holds NaN or infinite values, or is too large to be
                squared.
        """
        self._add(self._vectors(activation, stream), half)

    def _vectors(self, activation: Array, stream: np.random.Generator) -> Float32:
        if activation.dtype != np.float32:
            raise ValueError(f"its activation is {activation.dtype}")
        limit = int(np.clip(_FLOPS / self.product.inner**2, _LEAST_VECTORS, _MOST_VECTORS))
        vectors = self.product.vectors(activation, limit, stream)
        if not np.isfinite(vectors).all():
            raise ValueError("its activation holds NaN or infinite values")
        # Bounds all sums of products, whatever they are summed over.
        if vectors.size and float(np.abs(vectors).max()) ** 2 * (vectors.size + 1.0) > _LARGEST_SUM:
            raise ValueError("its activation is too large for its squares to be summed")
        return self.split(vectors)

    def _add(self, cut: npt.NDArray[np.float32], half: int | None) -> None:
        half = self.samples % 2 if half is None else half
        self.square[half] += cut.swapaxes(1, 2) @ cut
        self.total[half] += cut.sum(axis=1, dtype=np.float64)
        self.count[half] += cut.shape[1]
        self.samples += 1

    def take(self, other: Moments) -> None:
        """Takes in what the same weight meets elsewhere."""
        self.square += other.square
        self.total += other.total
        self.count += other.count
        self.samples += other.samples

    def split(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Cuts ``[groups, rows, inner]`` into ``[groups * parts, rows, length]``."""
        return split(array, self.parts)

    def joined(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Undoes :meth:`split`."""
        return joined(array, self.parts)

    @property
    def halved(self) -> bool:
        """Whether both halves have seen something, so that one can judge what the other led to."""
        return bool(self.count.all())

    def mean(self, half: int | None = None) -> Float64:
        """Returns the mean vector of all samples or of a half, ``[groups * parts, length]``."""
        return _mean(self.total, self.count, half)

    @property
    def powers(self) -> Float64:
        """The mean squares of all samples, ``[groups * parts, length]``."""
        sums = np.einsum("hgii->gi", self.square, dtype=np.float64)
        return np.asarray(sums / max(1.0, float(self.count.sum())))

    def covariance(self, *, centred: bool) -> Float32:
        """Returns the shrunk second moments of all samples; see :meth:`Covariances.of`."""
        return Covariances(self).of(centred=centred)

    def error(self, weight: Float, rounded: Float, bias: Float64 | None, half: int) -> float:
        """Returns the mean squared error of the products of some rows on one half of the samples, summed.

        Of vectors that were cut, parts are taken to err independently but for their means.

        Args:
            weight: Float weights, ``[groups * parts, rows, length]``.
            rounded: What they were rounded to, likewise.
            bias: Added to the products of the rounded ones, ``[groups, rows]``; None for nothing.
            half: The half.
        """
        off = weight - rounded
        each = self._seen(off, self.square, off, half)
        means = np.einsum("grk,gk->gr", off, self.mean(half))
        return self._error(each - means**2, means, bias)

    def _seen(self, first: Float, sums: Float32, second: Float, half: int) -> Float64:
        """Returns ``f S s'`` of each row, with ``S`` the mean of the outer products of a half."""
        found = np.einsum("grk,grk->gr", first @ sums[half], second)
        return np.asarray(found, np.float64) / max(1.0, float(self.count[half]))

    def _error(self, spread: Float64, means: Float64, bias: Float64 | None) -> float:
        """Sums errors up, given their variances and means in each part."""
        whole = means.reshape(-1, self.parts, means.shape[1]).sum(axis=1)
        if bias is not None:
            whole = whole - bias
        return float(spread.sum()) + float(np.square(whole).sum())


def _mean(total: Float64, count: Float64, half: int | None) -> Float64:
    if half is not None:
        total, count = total[half : half + 1], count[half : half + 1]
    found: Float64 = total.sum(axis=0) / max(1.0, float(count.sum()))
    return found


class Covariances:
    """Second moments as estimates of what other samples would show.

    What lies off the diagonal is multiplied by ``s / (s + v)``, with ``s`` the product of both halves' and
    ``v`` how much more the product of one with itself is (half of that for the mean of both): the factor of
    the least expected squared error, as in Ledoit and Wolf (2004) and Schäfer and Strimmer (2005), but with
    the variance taken from halves that share no sample, because the vectors of one sample are far from
    independent.

    Args:
        moments: The sums.
    """

    def __init__(self, moments: Moments) -> None:
        self._moments = moments
        powers = self._powers(0), self._powers(1)
        self._off = self._agreement(*powers)
        self._on = self._diagonal_agreement(*powers)

    def _powers(self, half: int) -> Float64:
        """Returns the variances in a half, ``[groups * parts, length]``."""
        moments = self._moments
        return _variances(moments.square[half], moments.mean(half), float(moments.count[half]))

    def of(self, *, centred: bool, half: int | None = None) -> Float32:
        """Returns them, ``[groups * parts, length, length]``, positive definite.

        Args:
            centred: About the mean: for operators whose bias can take a mean error back.
            half: Of one half of the samples; of all without it.
        """
        moments = self._moments
        mean = moments.mean(half)
        whole: Float32 = np.add(*moments.square) if half is None else moments.square[half].copy()
        count = float(moments.count.sum() if half is None else moments.count[half])
        diagonal = np.maximum(_variances(whole, mean, count), 0.0)
        believed = np.clip(_believed(*self._off, half), 0.0, 0.999)
        whole *= (believed / max(1.0, count)).astype(np.float32)[:, None, None]
        # What is believed about the mean; where it counts as well, all of that.
        weight = believed if centred else believed - 1.0
        whole -= (weight[:, None] * mean).astype(np.float32)[:, :, None] * mean.astype(np.float32)[:, None, :]
        middle = diagonal.mean(axis=1, keepdims=True)
        # Raised only: with less on the diagonal than there is, it might not be positive definite.
        diagonal = np.maximum(diagonal, middle + _believed(*self._on, half) * (diagonal - middle))
        diagonal += _LEAST_DIAGONAL * np.where(middle > 0, middle, 1.0)
        index = np.arange(whole.shape[1])
        whole[:, index, index] = diagonal if centred else diagonal + mean**2
        return whole

    def _diagonal_agreement(self, first: Float64, second: Float64) -> tuple[Float64, Float64]:
        """Returns how far halves agree on how elements differ in their powers, and how far they do not.

        An element that rested in all of a few samples may be strong in the next; it gets a share of the mean.
        """
        if not self._moments.halved:
            return np.ones(()), np.full((), 2.0)
        middle = 0.5 * (first + second).mean(axis=1, keepdims=True)
        middle = np.where(middle > 0, middle, 1.0)
        common, chance = _agreed(first / middle - 1.0, second / middle - 1.0)
        return np.asarray(common), np.asarray(chance)

    def _agreement(self, first: Float64, second: Float64) -> tuple[Float64, Float64]:
        """Returns the same for what lies off the diagonal, one for each group."""
        groups, length = first.shape
        if length == 1:
            return np.ones(groups), np.zeros(groups)
        if not self._moments.halved:
            return np.ones(groups), np.full(groups, 2.0)
        scale = np.sqrt(np.maximum(0.5 * (first + second), 0.0))
        scale[scale == 0] = np.inf
        # Some of many rows tell as much.
        rows = np.arange(0, length, max(1, length // _AGREED_ROWS))
        one, two = (self._correlations(half, rows, 1.0 / scale) for half in (0, 1))
        pairs = (one, two), (one, one), (two, two)
        sums = np.stack([np.einsum("grk,grk->g", *pair, dtype=np.float64) for pair in pairs], axis=1)
        # Small groups tell little each; they are alike, so all are taken together.
        if length < 32:
            sums = np.broadcast_to(sums.sum(axis=0), sums.shape)
        common = np.maximum(sums[:, 0], 0.0)
        return common, np.maximum(0.5 * (sums[:, 1] + sums[:, 2]) - common, 0.0)

    def _correlations(self, half: int, rows: npt.NDArray[np.int64], factor: Float64) -> Float32:
        """Returns some rows of the second moments of a half about its mean, times a factor in both axes.

        The diagonal is left out, ``[groups * parts, rows, length]``.
        """
        moments = self._moments
        mean = (moments.mean(half) * factor).astype(np.float32)
        small = factor.astype(np.float32)
        found: Float32 = moments.square[half][:, rows] / np.float32(max(1.0, float(moments.count[half])))
        found *= small[:, rows, None]
        found *= small[:, None, :]
        found -= mean[:, rows, None] * mean[:, None, :]
        found[:, np.arange(len(rows)), rows] = 0.0
        return found


def _variances(square: Float32, mean: Float64, count: float) -> Float64:
    """Returns the diagonal of mean second moments about the mean, ``[groups, length]``."""
    found: Float64 = np.einsum("gii->gi", square) / max(1.0, count) - mean**2
    return found


def _believed(common: Float64, chance: Float64, half: int | None) -> Float64:
    """Returns the factor of the least expected squared error; in the mean of halves chance counts half."""
    with np.errstate(invalid="ignore"):
        found: Float64 = np.nan_to_num(common / (common + (0.5 if half is None else 1.0) * chance))
    return found


def _agreed(first: npt.NDArray[np.floating], second: npt.NDArray[np.floating]) -> tuple[float, float]:
    """Returns how much two independent estimates have in common, and how much is chance in one of them."""
    one, two = first.reshape(-1), second.reshape(-1)
    common = max(float(np.dot(one, two)), 0.0)
    return common, max(0.5 * float(np.dot(one, one) + np.dot(two, two)) - common, 0.0)


@dataclass(slots=True)
class Drift(Moments):
    """Moments of the activation that a weight meets in a partly rounded model, and how far that has drifted.

    Attributes:
        cross: Sums of the outer products of the vectors met with what they lack to the float model's, ``[2,
            groups * parts, length, length]``.
        lack: Sums of the outer products of what they lack, likewise.
        trust: Share of what the samples ask for that is followed.
        wanted: Sums of the float model's vectors, ``[2, groups * parts, length]``.
    """

    trust: float = 1.0
    cross: Float32 = field(init=False)
    lack: Float32 = field(init=False)
    wanted: Float64 = field(init=False)

    def __post_init__(self) -> None:
        """Starts with nothing seen."""
        # Not super(): slots make the class anew, which the compiler's cell does not follow.
        Moments.__post_init__(self)
        self.cross = np.zeros_like(self.square)
        self.lack = np.zeros_like(self.square)
        self.wanted = np.zeros_like(self.total)

    def add_pair(self, met: Array, wanted: Array, key: Sequence[int], half: int | None = None) -> None:
        """Takes in one sample: what the rounded model gives, and what the float model gives in its place.

        Args:
            met: Activation of the partly rounded model.
            wanted: That of the float model.
            key: Seeds the drawing, the same from both.
            half: That it counts for; without it, samples alternate.

        Raises:
            ValueError: See :meth:`add`.
        """
        cut = self._vectors(met, np.random.default_rng(key))
        other = self._vectors(wanted, np.random.default_rng(key))
        half = self.samples % 2 if half is None else half
        lacking = other - cut
        self.cross[half] += cut.swapaxes(1, 2) @ lacking
        self.lack[half] += lacking.swapaxes(1, 2) @ lacking
        self.wanted[half] += other.sum(axis=1, dtype=np.float64)
        self._add(cut, half)

    def wanted_mean(self, half: int | None = None) -> Float64:
        """Returns the mean vector of the float model, ``[groups * parts, length]``."""
        return _mean(self.wanted, self.count, half)

    def mean_change(self, weight: npt.NDArray[np.float32], half: int | None = None) -> Float64:
        """Returns by how much the products of the float weights come out too small, ``[groups, rows]``.

        Only as much of it as both halves of the samples agree on: what is left would be noise for others.

        Args:
            weight: ``[groups * parts, rows, length]``.
            half: As one half of the samples shows it; as all do without it.
        """
        count = np.maximum(self.count, 1.0)[:, None, None]
        rows = np.einsum("grk,hgk->hgr", np.asarray(weight, np.float64), (self.wanted - self.total) / count)
        whole = rows.reshape(2, -1, self.parts, weight.shape[1]).sum(axis=2)
        share = self.count / max(1.0, float(self.count.sum()))
        found: Float64 = whole[half] if half is not None else np.einsum("h,hgr->gr", share, whole)
        return found * _belief(whole[0], whole[1], half)

    def target(
        self, weight: npt.NDArray[np.float32], moments: Float32, *, centred: bool, half: int | None = None
    ) -> Float64:
        """Returns the float weights whose products come nearest to the float model's, given what is met.

        They are ``w + w D' H^-1`` with ``D`` the cross moments. Of ``D`` as much is believed as both halves
        of the samples agree on (see :class:`Covariances`).

        Args:
            weight: ``[groups * parts, rows, length]``.
            moments: ``H``: what :meth:`covariance` returned.
            centred: As it was made.
            half: Likewise.
        """
        halves = [self._lacking(0, centred=centred), self._lacking(1, centred=centred)]
        belief = self.trust * _belief(halves[0], halves[1], half)
        if half is not None:
            whole = halves[half]
        else:
            # They are large, and not needed any more.
            halves.clear()
            whole = self.cross.sum(axis=0) / max(1.0, float(self.count.sum()))
            if centred:
                mean = self.mean()
                whole = whole - mean[:, :, None] * (self.wanted_mean() - mean)[:, None, :]
        change = np.linalg.solve(
            moments.astype(np.float64), whole @ np.asarray(weight, np.float64).swapaxes(1, 2)
        )
        found: Float64 = weight + belief * change.swapaxes(1, 2)
        return found

    def _lacking(self, half: int, *, centred: bool) -> Float64:
        """Returns the mean cross moments of a half with what its vectors lack; about their means if asked."""
        count = max(1.0, float(self.count[half]))
        found: Float64 = np.divide(self.cross[half], count, dtype=np.float64)
        if centred:
            total = self.total[half]
            found -= (total / count)[:, :, None] * ((self.wanted[half] - total) / count)[:, None, :]
        return found

    def error(self, weight: Float, rounded: Float, bias: Float64 | None, half: int) -> float:
        """Returns the same, against the products of the float model."""
        off = weight - rounded
        mean = self.mean(half)
        means = np.einsum("grk,gk->gr", off, mean)
        means += np.einsum("grk,gk->gr", weight, self.wanted_mean(half) - mean)
        each = self._seen(off, self.square, off, half)
        each += 2.0 * self._seen(off, self.cross, weight, half)
        each += self._seen(weight, self.lack, weight, half)
        return self._error(each - means**2, means, bias)


def _belief(
    first: npt.NDArray[np.floating], second: npt.NDArray[np.floating], half: int | None = None
) -> float:
    """Returns the factor by which one of two independent estimates, or their mean, comes nearest to truth."""
    common, chance = _agreed(first, second)
    return float(_believed(np.asarray(common), np.asarray(chance), half)) if common > 0 else 0.0


def memory_rounds(products: Sequence[Product], limit: int) -> list[list[int]]:
    """Splits products into runs in order whose moments take at most ``limit`` bytes, or are alone.

    Returns:
        Positions, in order.
    """
    rounds: list[list[int]] = []
    used = 0
    for position, product in enumerate(products):
        nbytes = Moments.nbytes_of(product)
        if not rounds or used + nbytes > limit:
            rounds.append([])
            used = 0
        rounds[-1].append(position)
        used += nbytes
    return rounds
