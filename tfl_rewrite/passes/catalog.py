"""Every pass that a user can name, in the order in which they make sense; each says why it stands there.

Nothing registers itself: a pass is in this list, or it is of another package that offers it under the entry
points :data:`GROUP`, and is loaded when it is named.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from tfl_rewrite.editing.base import Pass
from tfl_rewrite.errors import UsageError
from tfl_rewrite.options.option import Role, options_of, read_options, unknown

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "tfl_rewrite.passes"
"""Entry points by which other packages offer passes."""

NAMES = (
    "repair",
    "remove-dead",
    "fold-constants",
    "fuse",
    "fold-batch-norms",
    "drop-channels",
    "dedup",
    "remove-noops",
    "simplify",
    "dequantize",
    "prune",
    "round-weights",
    "equalize",
    "quantize-weights",
    "quantize",
    "rename",
    "retarget",
    "signatures",
    "metadata",
    "compact",
)
"""In their order. Each is a class in the module of its name, which is loaded when it is asked for."""

PRESETS: Mapping[str, tuple[str, ...]] = {
    # Nothing that a program could measure changes.
    "lossless": ("remove-dead", "dedup", "compact"),
    # Fewer operators that compute the same; to the bit, or within 120 dB where something was folded.
    "simplify": ("simplify",),
    # The smallest file that keeps every output within the tolerance.
    # What differed as floats may be equal as int8, so equal constants are looked for again.
    "small": ("remove-dead", "dedup", "simplify:grow=no", "quantize-weights", "dedup", "compact"),
}


def every() -> tuple[type[Pass], ...]:
    """Returns all of them, in their order."""
    return tuple(map(_own, NAMES))


@functools.cache
def _own(name: str) -> type[Pass]:
    module = importlib.import_module(f"tfl_rewrite.passes.{name.replace('-', '_')}")
    # To Python 3.10 list[int] is an instance of type, too.
    classes = [item for item in vars(module).values() if issubclass(type(item), type)]
    kinds = [item for item in classes if isinstance(item, type) and issubclass(item, Pass)]
    return next(kind for kind in kinds if getattr(kind, "name", "") == name)


def offered() -> dict[str, EntryPoint]:
    """Returns the passes that other packages offer, by name, not loaded; ours win."""
    from importlib.metadata import entry_points

    return {point.name: point for point in entry_points(group=GROUP) if point.name not in NAMES}


def find(name: str) -> type[Pass]:
    """Returns the class of a pass.

    Raises:
        UsageError: There is none of that name, or it cannot be loaded.
    """
    if name in NAMES:
        return _own(name)
    others = offered()
    if name not in others:
        raise unknown("pass", name, [*NAMES, *others])
    try:
        loaded = others[name].load()
    except (ImportError, AttributeError) as error:
        raise UsageError(f"pass {name!r} of {origin(others[name])} cannot be loaded: {error}") from error
    if not (isinstance(loaded, type) and issubclass(loaded, Pass)):
        raise UsageError(
            f"pass {name!r} of {origin(others[name])} is no subclass of tfl_rewrite.editing.Pass"
        )
    return loaded


def origin(point: EntryPoint) -> str:
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
        >>> from tfl_rewrite.passes import passes_of
        >>> [item.name for item in passes_of(["dedup", "compact:align=4096"])]
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
    if name not in NAMES:
        return []
    options = options_of(_own(name))
    given = read_options(rest, options, name)
    return [(row.role, str(given[row.name])) for row in options if row.role and row.name in given]


def preset(name: str) -> list[Pass]:
    """Makes the passes of a preset with their defaults.

    Raises:
        UsageError: There is no such preset.

    Example:
        >>> from tfl_rewrite.passes import preset
        >>> [item.name for item in preset("lossless")]
        ['remove-dead', 'dedup', 'compact']
    """
    if name not in PRESETS:
        raise unknown("preset", name, PRESETS)
    return passes_of(PRESETS[name])
