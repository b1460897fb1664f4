"""Every pass that a user can name, in the order in which they make sense, with the reason at each step.

Nothing registers itself: what is not in this list does not exist on the command line.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tfl_rewrite.editing.base import Pass
from tfl_rewrite.errors import UsageError, near_names
from tfl_rewrite.passes import calls
from tfl_rewrite.passes.equalize import Equalize


@dataclass(frozen=True, slots=True)
class Entry:
    """One pass of the catalogue.

    Attributes:
        name: On the command line.
        summary: What it does.
        lossy: Whether outputs may change a little; if not, they stay equal to the bit.
        place: Why it stands where it stands in the order.
        options: Names of its options and how their text becomes a value; lists take ``+`` between items.
        make: Makes its passes from options.
    """

    name: str
    summary: str
    lossy: bool
    place: str
    options: Mapping[str, Callable[[str], Any]]
    make: Callable[..., Sequence[Pass]]


def _parts(text: str, sign: str) -> list[str]:
    """Splits at a sign; the sign twice is the sign itself."""
    parts = re.split(f"(?<!{re.escape(sign)}){re.escape(sign)}(?!{re.escape(sign)})", text)
    return [part.replace(2 * sign, sign) for part in parts]


def _words(text: str) -> list[str]:
    return _parts(text, "+")


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError("is no whole number") from None


def _switch(text: str) -> bool:
    if text not in ("yes", "no"):
        raise ValueError("is yes or no")
    return text == "yes"


CATALOG: tuple[Entry, ...] = (
    Entry(
        "repair",
        "puts right what keeps the file from being read right ('tfl-rewrite doctor' lists it)",
        False,
        "before all others: they read the model too",
        {"only": _words},
        lambda **options: [calls.repair_pass(**options)],
    ),
    Entry(
        "remove-dead",
        "removes what no output needs",
        False,
        "first: what is gone needs no work",
        {"strip": _words, "inputs": _words, "outputs": _words, "signature": str, "pure_custom": _words},
        calls.remove_dead_passes,
    ),
    Entry(
        "dedup",
        "stores equal constants once and computes equal operators once",
        False,
        "before quantization, so that one constant is rounded once",
        {"pure_custom": _words},
        lambda **options: [calls.dedup_pass(**options)],
    ),
    Entry(
        "dequantize",
        "turns integer and float16 weights back into float32; the file grows",
        True,
        "before round-weights and quantize-weights, which take float weights",
        {},
        lambda **options: [calls.dequantize_pass(**options)],
    ),
    Entry(
        "round-weights",
        "rounds float weights so that the file compresses well; same size, same speed",
        True,
        "instead of quantize-weights, or for what that leaves float",
        {"steps": _whole, "granularity": str, "min_elements": _whole, "int8": _switch, "effort": str},
        lambda **options: [calls.round_weights_pass(**options)],
    ),
    Entry(
        "equalize",
        "balances channels between operators by powers of two, so that rounding costs less",
        False,
        "before quantize-weights, which does it itself with effort=best",
        {},
        lambda **options: [Equalize(**options)],
    ),
    Entry(
        "quantize-weights",
        "stores float weights as int8, int6, int4, int2 or float16",
        True,
        "after the graph is clean, before it is packed",
        {
            "dtype": str,
            "scheme": str,
            "granularity": str,
            "map": str,
            "min_elements": _whole,
            "include": _words,
            "exclude": _words,
            "keep_first_last": _switch,
            "min_runtime": str,
            "effort": str,
            "bias_correction": _switch,
        },
        lambda **options: [calls.quantize_weights_pass(**options)],
    ),
    Entry(
        "compact",
        "stores the same content in fewer bytes",
        False,
        "last: it lays out what the others left",
        {"strip": _words, "align": _whole},
        calls.compact_passes,
    ),
)
BY_NAME = {entry.name: entry for entry in CATALOG}

PRESETS: Mapping[str, tuple[str, ...]] = {
    # Nothing that a program could measure changes.
    "lossless": ("remove-dead", "dedup", "compact"),
    # The smallest file that keeps every output within the tolerance.
    # What differed as floats may be equal as int8, so equal constants are looked for again.
    "small": ("remove-dead", "dedup", "quantize-weights", "dedup", "compact"),
}


def passes_of(texts: Sequence[str]) -> list[Pass]:
    """Makes passes from texts such as ``dedup`` or ``quantize-weights:scheme=dequantize,exclude=^logits/``.

    Args:
        texts: In order. Options stand after a colon, between commas, as ``name=value``; dashes in names may
            be underscores. Items of a list stand between plus signs. A comma or a plus sign in a value is
            written twice.

    Raises:
        UsageError: A pass or option is unknown, or a value does not fit.
    """
    made: list[Pass] = []
    for text in texts:
        name, _, rest = text.partition(":")
        entry = BY_NAME.get(name)
        if entry is None:
            raise UsageError(f"pass {name!r} is unknown", remedy=_near(name, BY_NAME))
        made += entry.make(**_options(entry, rest))
    return made


def files_of(text: str) -> list[str]:
    """Returns the files that the options of a pass, as for :func:`passes_of`, name.

    Raises:
        UsageError: See :func:`passes_of`.
    """
    name, _, rest = text.partition(":")
    entry = BY_NAME.get(name)
    rules = _options(entry, rest).get("map") if entry is not None else None
    return [rules] if rules is not None and rules.endswith(".toml") else []


def preset(name: str) -> list[Pass]:
    """Makes the passes of a preset with their defaults.

    Raises:
        UsageError: There is no such preset.
    """
    if name not in PRESETS:
        raise UsageError(f"preset {name!r} is unknown", remedy=_near(name, PRESETS))
    return passes_of(PRESETS[name])


def _options(entry: Entry, text: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for part in filter(None, _parts(text, ",")):
        name, sign, value = part.partition("=")
        key = name.strip().replace("-", "_")
        convert = entry.options.get(key)
        if convert is None:
            known = [option.replace("_", "-") for option in entry.options]
            remedy = _near(name.strip(), known) if known else "it has none"
            raise UsageError(f"{part!r} is no option of {entry.name}", remedy=remedy)
        if not sign:
            raise UsageError(f"{part!r} of {entry.name} has no value", remedy=f"write {name.strip()}=VALUE")
        try:
            found[key] = convert(value)
        except ValueError as error:
            raise UsageError(f"{entry.name}: {name} = {value!r} {error}") from None
    return found


def _near(name: str, known: Iterable[str]) -> str:
    names = list(known)
    near = near_names(name.lower().replace("_", "-"), names, count=1)
    meant = f"did you mean {near[0]!r}? " if near else ""
    return f"{meant}use one of {', '.join(names)}"
