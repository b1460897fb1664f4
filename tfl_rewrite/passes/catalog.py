"""Every pass that a user can name, in the order in which they make sense; each says why it stands there.

Nothing registers itself: a pass is in this list, or it is of another package that offers it under the entry
points :data:`GROUP`, and is loaded when it is named.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping, Sequence

from tfl_rewrite.editing.base import Pass
from tfl_rewrite.errors import UsageError
from tfl_rewrite.options.option import Role, options_of, read_options, unknown
from tfl_rewrite.passes.compact import Compact
from tfl_rewrite.passes.dedup import Dedup
from tfl_rewrite.passes.dequantize import Dequantize
from tfl_rewrite.passes.equalize import Equalize
from tfl_rewrite.passes.fold_batch_norms import FoldBatchNorms
from tfl_rewrite.passes.fold_constants import FoldConstants
from tfl_rewrite.passes.fuse import Fuse
from tfl_rewrite.passes.metadata import SetMetadata
from tfl_rewrite.passes.prune import Prune
from tfl_rewrite.passes.quantize import Quantize
from tfl_rewrite.passes.quantize_weights import QuantizeWeights
from tfl_rewrite.passes.remove_dead import RemoveDead
from tfl_rewrite.passes.remove_noops import RemoveNoops
from tfl_rewrite.passes.rename import Rename
from tfl_rewrite.passes.repair import Repair
from tfl_rewrite.passes.retarget import Retarget
from tfl_rewrite.passes.round_weights import RoundWeights
from tfl_rewrite.passes.signatures import Signatures
from tfl_rewrite.passes.simplify import Simplify

GROUP = "tfl_rewrite.passes"
"""Entry points by which other packages offer passes."""

CATALOG: tuple[type[Pass], ...] = (
    Repair,
    RemoveDead,
    FoldConstants,
    Fuse,
    FoldBatchNorms,
    Dedup,
    RemoveNoops,
    Simplify,
    Dequantize,
    Prune,
    RoundWeights,
    Equalize,
    QuantizeWeights,
    Quantize,
    Rename,
    Retarget,
    Signatures,
    SetMetadata,
    Compact,
)
BY_NAME = {item.name: item for item in CATALOG}

PRESETS: Mapping[str, tuple[str, ...]] = {
    # Nothing that a program could measure changes.
    "lossless": ("remove-dead", "dedup", "compact"),
    # Fewer operators that compute the same; to the bit, or within 120 dB where something was folded.
    "simplify": ("simplify",),
    # The smallest file that keeps every output within the tolerance.
    # What differed as floats may be equal as int8, so equal constants are looked for again.
    "small": ("remove-dead", "dedup", "simplify:grow=no", "quantize-weights", "dedup", "compact"),
}


def offered() -> dict[str, importlib.metadata.EntryPoint]:
    """Returns the passes that other packages offer, by name, not loaded; ours win."""
    points = importlib.metadata.entry_points(group=GROUP)
    return {point.name: point for point in points if point.name not in BY_NAME}


def find(name: str) -> type[Pass]:
    """Returns the class of a pass.

    Raises:
        UsageError: There is none of that name, or it cannot be loaded.
    """
    if name in BY_NAME:
        return BY_NAME[name]
    others = offered()
    if name not in others:
        raise unknown("pass", name, [*BY_NAME, *others])
    try:
        loaded = others[name].load()
    except (ImportError, AttributeError) as error:
        raise UsageError(f"pass {name!r} of {origin(others[name])} cannot be loaded: {error}") from error
    if not (isinstance(loaded, type) and issubclass(loaded, Pass)):
        raise UsageError(f"pass {name!r} of {origin(others[name])} is no subclass of tfl_rewrite.Pass")
    return loaded


def origin(point: importlib.metadata.EntryPoint) -> str:
    """Returns the package that offers a pass."""
    return point.dist.name if point.dist is not None else point.value


def summary(kind: type[Pass]) -> str:
    """Returns what a pass does, in one line."""
    text = (kind.__doc__ or "").strip().partition("\n")[0].rstrip(".")
    return text[:1].lower() + text[1:]


def description(kind: type[Pass]) -> str:
    """Returns what a pass does in a few sentences, for the help of its command."""
    head, _, rest = (kind.__doc__ or "").partition("\n\n")
    text = " ".join(rest.partition("\n\n")[0].split())
    return text or head.strip()


def passes_of(texts: Sequence[str]) -> list[Pass]:
    """Makes passes from texts such as ``dedup`` or ``quantize-weights:scheme=dequantize,exclude=^logits/``.

    Args:
        texts: In order; options stand after a colon, as for
            :func:`tfl_rewrite.options.option.read_options`.

    Raises:
        UsageError: A pass or option is unknown, or a value does not fit.

    Example:
        >>> [item.name for item in tfl_rewrite.passes_of(["dedup", "compact:align=4096"])]
        ['dedup', 'compact']
    """
    made = []
    for text in texts:
        name, _, rest = text.partition(":")
        kind = find(name)
        made.append(kind(**read_options(rest, options_of(kind), name)))
    return made


def files_of(text: str) -> list[tuple[Role, str]]:
    """Returns the files that the options of a pass, as for :func:`passes_of`, name, each with its role.

    Raises:
        UsageError: See :func:`passes_of`.
    """
    name, _, rest = text.partition(":")
    if name not in BY_NAME:
        return []
    options = options_of(BY_NAME[name])
    given = read_options(rest, options, name)
    return [(row.role, str(given[row.name])) for row in options if row.role and row.name in given]


def preset(name: str) -> list[Pass]:
    """Makes the passes of a preset with their defaults.

    Raises:
        UsageError: There is no such preset.

    Example:
        >>> [item.name for item in tfl_rewrite.preset("lossless")]
        ['remove-dead', 'dedup', 'compact']
    """
    if name not in PRESETS:
        raise unknown("preset", name, PRESETS)
    return passes_of(PRESETS[name])
