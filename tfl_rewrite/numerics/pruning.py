"""Which weights become zero, and what the others take over.

What counts is the error of the products, ``e H e'`` for each row, with ``e`` the change of its weights and
``H`` the second moments of the vectors that it meets. To lose weight ``w_j`` alone, with all others free to
make up for it, costs ``w_j^2 / (H^-1)_jj`` (optimal brain surgeon, Hassibi and Stork 1993; SparseGPT, Frantar
and Alistarh 2023, arXiv:2301.00774, in one go over the columns). Weights go in a few steps, the cheapest
first; after each step those that stay are set to what comes nearest to the products of the original: a least
squares problem for each row, solved by conjugate gradients, which never make ``e H e'`` larger.

Of a few vectors, such as a layer at the end meets, the others seem to make up for nearly everything. What
that is worth on other inputs is seen by fitting to one half of the samples and measuring on the other
(:func:`tried`).

Arrays: weights ``[groups, rows, length]``, moments ``[groups, length, length]``, float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt

from tfl_rewrite.numerics.moments import Covariances, Moments
from tfl_rewrite.options.frozen import frozen

Float64 = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

Strongest = Callable[[Float64, float], Mask]
"""Tells of what it costs to lose each weight, and of the share that is to go, which weights stay."""

STEPS = 4
"""In which weights go. One step kept 1.4 to 2.8 dB less of the products, eight kept 0.2 to 0.5 dB more (three
weights of MTCNN's RNet with made moments, half and four fifths of them zero)."""

ITERATIONS = 24
"""Of conjugate gradients in each step, at most."""

DAMPING = 0.01
"""Of the mean of the diagonal, added to it: few samples leave directions that none of them shows."""

MOST = 0.98
"""Of the weights of one constant, that go where shares are divided."""

_CLASSES = (-160.0, 40.0)
_EDGES = np.linspace(*_CLASSES, 3201)
"""Classes of costs: a sixteenth of an octave each."""

_DONE = 1e-9
"""Of the residual at the start."""

_TRIED_ROWS = 256
"""Of a weight, at least, that tell what fitting is worth on samples that were not fitted to."""


@frozen
class Trial:
    """What is lost of products on each half of the samples, summed.

    Attributes:
        by_size: Where the smallest weights go and the others stay as they are.
        fitted: Where they go and the others take over for the other half.
        expected: What the half that was fitted to says of the latter.
    """

    by_size: float
    fitted: float
    expected: float

    @property
    def pays(self) -> bool:
        """Whether fitting loses less than going by size, on samples that were not fitted to."""
        return self.fitted <= self.by_size

    @property
    def doubt(self) -> float:
        """By how much more is lost on other samples than those that are fitted to say; never less than 1."""
        least = min(self.fitted, self.by_size)
        return max(1.0, least / self.expected) if self.expected > 0 else 1.0


def damped(moments: npt.NDArray[np.floating]) -> Float64:
    """Returns moments that are positive definite; a copy."""
    made: Float64 = np.array(moments, np.float64)
    index = np.arange(made.shape[1])
    mean = np.abs(np.einsum("gii->gi", made)).mean(axis=1, keepdims=True)
    made[:, index, index] += DAMPING * np.where(mean > 0, mean, 1.0)
    return made


def prune(weight: Float64, moments: Float64, share: float, strongest: Strongest) -> Float64:
    """Makes weights zero and lets the others take over their part.

    Args:
        weight: Finite; not changed.
        moments: Positive definite; see :func:`damped`.
        share: Of the weights that are to be zero, from 0 to 1.
        strongest: See there.

    Returns:
        The weights, those that went exactly zero.
    """
    spread = _spread(moments)
    made: Float64 = weight.copy()
    for step in range(1, STEPS + 1):
        part = share * (1.0 - (1.0 - step / STEPS) ** 3)
        stays = strongest(np.square(made) * spread, part)
        made = refit(weight, np.where(stays, made, 0.0), stays, moments)
    return made


def tried(weight: Float64, moments: Moments, share: float) -> Trial:
    """Prunes some rows of a weight for each half of the samples, and measures on the other.

    Args:
        weight: Finite; not changed.
        moments: Of both halves (:attr:`Moments.halved`).
        share: Of the weights that are to be zero.
    """
    rows = weight[:, :: max(1, weight.shape[1] // _TRIED_ROWS)]
    smallest, known = rows * kept(np.square(rows), share), Covariances(moments)
    by_size = fitted = expected = 0.0
    for half in (0, 1):
        shown = damped(known.of(centred=False, half=half))
        made = prune(rows, shown, share, kept)
        by_size += moments.error(rows, smallest, None, half)
        fitted += moments.error(rows, made, None, 1 - half)
        expected += lost(rows, made, shown)[1]
    return Trial(by_size, fitted, expected)


def costs(weight: Float64, moments: Float64) -> Float64:
    """Returns what losing each weight alone costs, as a share of the energy of all products."""
    whole, _ = lost(weight, weight, moments)
    return np.square(weight) * _spread(moments) / (whole or 1.0)


def _spread(moments: Float64) -> Float64:
    found: Float64 = 1.0 / np.einsum("gii->gi", np.linalg.inv(moments))[:, None, :]
    return np.maximum(found, 0.0)


def divided(each: Iterable[npt.NDArray[np.floating]], share: float) -> list[float]:
    """Divides a share of all weights over several constants, so that what is lost in all is least.

    Args:
        each: Of each constant: what losing each of its weights costs, as a share of what it gives.
        share: Of all weights, that is to be zero.

    Returns:
        The share of each constant: of its weights that cost less than one limit for all.
    """
    counts = np.array([_counted(found) for found in each])
    below = np.cumsum(counts, axis=1)
    enough = np.flatnonzero(below.sum(axis=0) >= share * counts.sum())
    at = int(enough[0]) if len(enough) else counts.shape[1] - 1
    total, before = below[:, at].sum(), below[:, at - 1].sum() if at else 0
    # Within the class of the limit, all alike.
    part = (share * counts.sum() - before) / max(1, total - before)
    least = below[:, at - 1] if at else np.zeros(len(counts))
    found = (least + part * (below[:, at] - least)) / np.maximum(counts.sum(axis=1), 1)
    return [float(min(value, MOST)) for value in found]


def _counted(found: npt.NDArray[np.floating]) -> npt.NDArray[np.int64]:
    """Returns how many costs there are of each class; zeros are of the first."""
    with np.errstate(divide="ignore"):
        logs = np.log2(found, dtype=np.float64)
    return np.histogram(np.clip(logs, *_CLASSES), _EDGES)[0]


def refit(target: Float64, start: Float64, stays: Mask, moments: Float64) -> Float64:
    """Returns weights whose products come nearest to a target's, where only some may differ from zero.

    Args:
        target: The original weights.
        start: To start from; zero where it must stay so.
        stays: What may differ from zero.
        moments: Positive definite.
    """
    made: Float64 = start.copy()
    scale = 1.0 / np.maximum(np.einsum("gii->gi", moments), np.finfo(np.float64).tiny)[:, None, :]
    residual = ((target - made) @ moments) * stays
    scaled = residual * scale
    direction = scaled.copy()
    strength = np.einsum("grk,grk->gr", residual, scaled)
    enough = _DONE * strength
    for _ in range(ITERATIONS):
        going = strength > enough
        if not going.any():
            break
        pull = (direction @ moments) * stays
        curve = np.einsum("grk,grk->gr", direction, pull)
        going &= curve > 0
        length = np.where(going, strength / np.where(going, curve, 1.0), 0.0)[:, :, None]
        made += length * direction
        residual -= length * pull
        scaled = residual * scale
        after = np.einsum("grk,grk->gr", residual, scaled)
        turn = np.where(going, after / np.where(strength > 0, strength, 1.0), 0.0)[:, :, None]
        direction = scaled + turn * direction
        strength = np.where(going, after, 0.0)
    return made


def kept(costs: Float64, share: float, block: int = 1) -> Mask:
    """Returns which weights stay where the cheapest of all go.

    Args:
        costs: Of losing each, in the shape of the weight.
        share: Of the weights that are to go, to the nearest number of whole blocks.
        block: So many neighbours along the last axis go or stay together; a rest at the end of a row is a
            block of its own.
    """
    length = costs.shape[-1]
    starts = np.arange(0, length, block)
    rows = costs.reshape(-1, length)
    sums = rows if block == 1 else np.add.reduceat(rows, starts, axis=1)
    count = round(share * sums.size)
    stays = np.ones(sums.size, np.bool_)
    if count:
        stays[np.argpartition(sums.reshape(-1), count - 1)[:count]] = False
    wide = stays.reshape(sums.shape)
    if block > 1:
        wide = np.repeat(wide, np.diff(np.append(starts, length)), axis=1)
    return wide.reshape(costs.shape)


def lost(target: Float64, made: Float64, moments: Float64) -> tuple[float, float]:
    """Returns the energy of the products, and that of their error."""
    off = target - made
    whole = np.einsum("grk,grk->", target @ moments, target)
    return float(whole), float(np.einsum("grk,grk->", off @ moments, off))
