"""How wide grids are beside what samples showed, which norms stay float, and what else is tried on others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from types import MappingProxyType

from tfl_rewrite.options.frozen import frozen
from tfl_rewrite.weights.rounders import Effort

LEAST_GAIN_DB = 0.5
"""What something else must win on samples held out; less is as often lost on others."""


@frozen
class Recipe:
    """By what ranges are multiplied, and what stays float.

    Few samples do not show the extremes, and clipping them costs much.

    Attributes:
        softmax: Of what a softmax reads: its largest scores decide. Measured on eight samples: 2 is 0.5 to
            22 dB better than 1 on six of six models.
        outputs: Of the outputs of the model. Measured on eight samples, and on eight others: 1.5 is 4.5 dB
            better than 1 for boxes and landmarks of one model, equal for one, 5.4 dB worse for masks of one.
        pooled: Of means over positions: a sample shows one value of each channel, and others exceed them.
            Measured on eight samples, and on eight others, activations alone: 1.5 is 8.2, 7.2 and 1.6 dB
            better than 1 for three classifiers, 0.7 worse to 3.0 better for five others; chosen by that.
        narrow: Of all else in 8 bits.
        wide: Of all else in 16 bits: there are more than are needed. Measured on eight samples: 2 is 2.5 to
            45 dB better than 1 for four models, 0.4 to 1.7 dB worse for four.
        deviations: The largest over the least of what an RSQRT reads, from which it stays float, and the
            norm around it.
        parts: An input of the model over a part that is cut out of it, or an output over what it is joined
            of, from which that is done in floats, exactly; infinite where inputs or outputs are integers.
    """

    softmax: float = 2.0
    outputs: float = 1.5
    pooled: float = 1.5
    narrow: float = 1.0
    wide: float = 2.0
    deviations: float = 1e3
    parts: float = 8.0

    def notes(self) -> list[str]:
        """Returns what differs from the fixed recipe, and why."""
        fixed = Recipe()
        told = [
            f"{field.name} {getattr(self, field.name):g}"
            for field in fields(self)
            if field.name != "parts" and getattr(self, field.name) != getattr(fixed, field.name)
        ]
        return [f"as samples held out ask for: {', '.join(told)}"] if told else []

    def margin(self, width: int) -> float:
        """Returns that of tensors of so many bits, whatever they are for."""
        return self.narrow if width == 8 else self.wide


Steps = Sequence[tuple[str, Sequence[float]]]
"""Fields of a recipe, in the order in which they are looked at, and the values to try."""

STEPS: Mapping[Effort, Steps] = MappingProxyType(
    {
        Effort.FAST: (),
        Effort.BALANCED: (("deviations", (1.0,)), ("outputs", (1.0, 1.2))),
        Effort.BEST: (
            ("deviations", (1.0,)),
            ("outputs", (1.0, 1.2, 2.0)),
            ("softmax", (1.4, 3.0)),
            ("wide", (1.0, 4.0)),
        ),
    }
)
"""What each effort tries. Not ``narrow``: fewer samples show less, so that a few of eight ask for wide grids
which all eight do not need (2 to 5 dB worse on three of three models that chose so, measured). Nor ranges
that end where the squared error of what samples showed is least: where samples held out chose so, eight
others lost 4.4 dB (ResNet8) or won nothing (RNet, selfie segmenter), measured."""


def improved(first: Recipe, steps: Steps, score: Callable[[Recipe], float]) -> Recipe:
    """Returns the recipe that step by step scores best; the earlier one where it hardly matters.

    Args:
        first: Where to begin.
        steps: What to try.
        score: Of a recipe, in dB on samples that its ranges do not come from; the higher the better.
    """
    best, reached = first, score(first) if steps else 0.0
    for field, values in steps:
        found = [(score(made), made) for value in values if (made := replace(best, **{field: value})) != best]
        high, made = max(found, key=lambda item: item[0], default=(reached, best))
        if high >= reached + LEAST_GAIN_DB:
            best, reached = made, high
    return best
