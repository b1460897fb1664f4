"""One weight rounded for what it meets."""

from __future__ import annotations

import numpy as np
import pytest

from tfl_rewrite.quant.calibrated import Pains
from tfl_rewrite.quant.encoding import Levels
from tfl_rewrite.quant.layer_rounding import Plan, round_layer
from tfl_rewrite.quant.moments import Drift, Moments
from tfl_rewrite.quant.patches import Dense
from tfl_rewrite.quant.symmetric import Channels


@pytest.mark.parametrize("behind", [False, True])
def test_strength_comes_back_only_behind_other_weights(behind: bool) -> None:
    random = np.random.default_rng(2)
    weight = random.standard_normal((8, 24)).astype(np.float32)
    product = Dense(weight.shape)
    moments = Drift(product) if behind else Moments(product)
    for number in range(4):
        vectors = random.standard_normal((200, 24)).astype(np.float32)
        if isinstance(moments, Drift):
            moments.add_pair(vectors, vectors, [number])
        else:
            moments.add(vectors, np.random.default_rng(number))
    plan = Plan(weight.shape, Channels.along(weight.shape, 0), Levels.full(4), centred=False)
    layer = round_layer(weight, plan, moments, Pains())
    values = layer.integers * layer.scale[:, None]
    # Nothing drifted, so both get the same integers; the strength of the products differs.
    covariance = moments.covariance(centred=False)[0]
    seen = weight @ covariance
    strength = (seen * values).sum() / (seen * weight).sum()
    plain = round_layer(weight, plan, moments_of(product, moments), Pains())
    weak = (seen * (plain.integers * plain.scale[:, None])).sum() / (seen * weight).sum()
    np.testing.assert_array_equal(layer.integers, plain.integers)
    assert weak < 0.999
    assert np.log(strength) == pytest.approx(np.log(weak) / 2 if behind else np.log(weak), rel=0.02)


def moments_of(product: Dense, other: Moments) -> Moments:
    """The same moments, without what the float model meets."""
    made = Moments(product)
    made.square, made.total, made.count, made.samples = other.square, other.total, other.count, other.samples
    return made
