"""Ranges of tensors that nobody measured, and files of ranges that lie: what ``quantize --ranges`` meets."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from random import Random
from typing import Any

from tfl_rewrite.editing.base import Pass
from tfl_rewrite.errors import FormatError, UnsupportedError, UsageError
from tfl_rewrite.integers.ranges import GivenModel, TensorRanges
from tfl_rewrite.model.ir import Model
from tfl_rewrite.passes.quantize import Quantize

SIZES = (1.0, 1.0, 1.0, 1.0, 6.0, 255.0, 0.0, 1e-44, 1e-30, 1e-6, 1e4, 1e30, 3.4e38, math.inf, math.nan)
VALUES: tuple[object, ...] = (
    0, 1, -1, 7, 1 << 31, 1 << 64, 10**400, 1.5, -1e39, 1e308, True, None, "nan", "inf", "-inf", "x", [], {},
    [[]], "\ud800", "\x1b[2J",
)  # fmt: skip


def made_ranges(model: Model, random: Random) -> TensorRanges:
    """Makes ranges of most float tensors, from tiny to infinite ones; most are such as real models have."""
    given, found = GivenModel.of(model), dict[int, tuple[float, float]]()
    odd = random.random() < 0.5
    for tensors in given.tensors:
        for tensor, _, _, floats in tensors:
            if floats and not tensor.is_constant and random.random() < 0.95:
                high = random.choice(SIZES) if odd else random.uniform(0.5, 8.0)
                low = random.choice((0.0, -high, -high / 3, high)) if not math.isnan(high) else high
                found[id(tensor)] = low, high
    return TensorRanges.of(given, found)


def mutated_ranges(text: bytes, random: Random) -> bytes:
    """Changes a file of ranges: its bytes, or values of its JSON."""
    if random.random() < 0.4:
        made = bytearray(text)
        for _ in range(random.randrange(1, 5)):
            made[random.randrange(len(made))] = random.choice(b'0123456789[]{}",:.-eN \x00\xff')
        return bytes(made[: random.randrange(len(made))] if random.random() < 0.2 else made)
    data = json.loads(text)
    for _ in range(random.randrange(1, 3)):
        holder: Any = data
        key: Any = random.choice(list(data))
        while isinstance(holder[key], list) and holder[key] and random.random() < 0.9:
            holder = holder[key]
            key = random.randrange(len(holder))
        action = random.random()
        if action < 0.6:
            holder[key] = random.choice(VALUES)
        elif action < 0.8:
            del holder[key]
        elif isinstance(holder, list):
            holder.insert(key, holder[key])
        if not data:
            break
    return json.dumps(data).encode("utf-8", "surrogatepass")


def integers(model: Model) -> Sequence[Pass]:
    """Returns a pass with ranges that were written and read again, one in three of them damaged between.

    Raises:
        FormatError, UnsupportedError: They were damaged.
    """
    random = Random(GivenModel.of(model).hash)
    text = made_ranges(model, random).dump()
    if random.random() < 0.3:
        text = mutated_ranges(text, random)
    try:
        ranges = TensorRanges.parse(text, "ranges.json")
        ranges.on(GivenModel.of(model), "ranges.json")
    except (FormatError, UnsupportedError, UsageError) as error:
        if not str(error).startswith("ranges.json"):
            raise AssertionError(f"an error that does not name its file: {error}") from error
        raise FormatError(error.what, file=error.file) from error
    return [
        Quantize(
            effort="fast",
            ranges=ranges,
            activations=random.choice(("int8", "int16")),
            map=random.choice(((), (), (".=hybrid",))),
        )
    ]
