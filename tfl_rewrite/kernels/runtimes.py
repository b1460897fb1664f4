"""Which runtime takes which version of an operator, and how runtimes are counted.

An operator version names the first TensorFlow release whose kernel accepts it (:func:`versions`).
LiteRT numbers its own releases anew from 1.0 on, but its table goes on counting in TensorFlow's numbers, so
each LiteRT release has a place in that count: see :data:`LITERT_RUNTIME`. ``Runtime`` always means that
count.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

Runtime = tuple[int, int]

LITERT_RUNTIME: Mapping[str, Runtime] = MappingProxyType(
    {
        "1.1.0": (2, 19),
        "2.0.2": (2, 20),
        "2.1.3": (2, 21),
        "2.1.6": (2, 22),
        "2.2.0": (2, 23),
        "2.3.0": (2, 23),
    }
)
"""First LiteRT release that registers everything the table lists up to a runtime; those between inherit.

Read from ``tflite/core/kernels/register.cc`` at each release tag; for 2.3.0 measured by offering the
interpreter every operator in every version. Two entries of the table stay behind in all of them:
STABLEHLO_CBRT is registered nowhere, and TRANSPOSE version 7, listed for 2.14.4, came with LiteRT 1.2.0.
"""

NEWEST_RUNTIME: Runtime = max(LITERT_RUNTIME.values())
"""The newest measured runtime."""

OLDEST_MEASURED_RUNTIME: Runtime = (2, 14)
"""The oldest runtime on which the rows were measured, tflite-runtime 2.14.0."""


Version = tuple[str | None, tuple[tuple[str, ...], ...]]
"""The first runtime whose kernels register a version, such as ``"2.14.4"``, and what asks for the version."""


@functools.cache
def versions() -> Mapping[str, Mapping[int, Version]]:
    """Returns what is known of each operator's versions (``versions.json``, which names its sources)."""
    raw = json.loads(Path(__file__).with_name("versions.json").read_text(encoding="utf-8"))
    return MappingProxyType(
        {
            operator: {
                int(number): (
                    None if first is None else first if first.count(".") == 2 else f"{first}.0",
                    tuple(tuple(rule.split("&")) for rule in rules),
                )
                for number, (first, *rules) in listed.items()
            }
            for operator, listed in raw["operators"].items()
        }
    )


def version_text(operator: str, version: int) -> str | None:
    """Returns the first runtime of an operator version as text such as ``2.14.4``, or None if unlisted."""
    return versions().get(operator, {}).get(version, (None, ()))[0]


def _parts(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))


def runtime_of(text: str) -> Runtime:
    """Returns major and minor number of a version as :func:`version_text` gives it."""
    major, minor, *_ = _parts(text)
    return major, minor


def min_runtime_text(pairs: Iterable[tuple[str, int]]) -> str:
    """Returns what the ``min_runtime_version`` metadata of a file must say: three numbers with dots.

    Args:
        pairs: (operator name, version) of every operator code in use. Those that the table does not list,
            custom operators among them, do not count.

    Returns:
        The highest of their first runtimes; the empty string if none is listed.
    """
    listed = [text for pair in pairs if (text := version_text(*pair)) is not None]
    return max(listed, key=_parts, default="")


def min_runtime(pairs: Iterable[tuple[str, int]]) -> Runtime:
    """Returns major and minor number of :func:`min_runtime_text`; ``(0, 0)`` if no pair is listed."""
    text = min_runtime_text(pairs)
    if not text:
        return (0, 0)
    major, minor, *_ = _parts(text)
    return (major, minor)


def max_version(operator: str, runtime: Runtime) -> int:
    """Returns the highest version of an operator that a runtime takes, 0 if it knows none.

    Args:
        operator: Name in ``BuiltinOperator``.
        runtime: For :data:`OLDEST_MEASURED_RUNTIME` the answer was compared with what its interpreter
            registers: equal for every operator but TRANSPOSE, whose version 7 it refuses.
    """
    return max(
        (
            version
            for version, (text, _) in versions().get(operator, {}).items()
            if text is not None and _parts(text)[:2] <= runtime
        ),
        default=0,
    )


def runtime_text(runtime: Runtime) -> str:
    """Returns a runtime as users write it, such as ``2.14``."""
    return f"{runtime[0]}.{runtime[1]}"
