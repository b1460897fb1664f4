"""Which runtime takes which version of an operator, and how runtimes are counted.

An operator version names the first TensorFlow release whose kernel accepts it (:func:`versions`).
LiteRT numbers its own releases anew from 1.0 on, but its table goes on counting in TensorFlow's numbers, so
each LiteRT release has a place in that count: see :data:`LITERT_RUNTIME`. ``Runtime`` always means that
count.
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tfl_rewrite.errors import UsageError, whole_number
from tfl_rewrite.options.frozen import frozen

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

LITERT = "ai-edge-litert"
"""The distribution whose releases :data:`LITERT_RUNTIME` lists."""


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


Terms = tuple[str, ...]
"""What must hold all at once, as in ``versions.json``."""


@functools.cache
def taken_from() -> tuple[tuple[str, str, Terms], ...]:
    """Returns what releases took late although they had the version: the operator, from when on, and what."""
    raw = json.loads(Path(__file__).with_name("versions.json").read_text(encoding="utf-8"))
    return tuple(
        (operator, raw["taken"][newest], tuple(rule.split("&")))
        for newest, operators in raw["refused"].items()
        if newest in raw["taken"]
        for operator, rules in operators.items()
        for rule in rules
    )


@functools.cache
def refusals(runtime: Runtime) -> Mapping[str, tuple[Terms, ...]]:
    """Returns what a runtime refuses, or dies of, although it has the version: by operator or custom one."""
    raw = json.loads(Path(__file__).with_name("versions.json").read_text(encoding="utf-8"))
    found: dict[str, tuple[Terms, ...]] = {}
    for newest, operators in raw["refused"].items():
        if runtime > runtime_of(newest):
            continue
        for operator, rules in operators.items():
            found[operator] = (*found.get(operator, ()), *(tuple(rule.split("&")) for rule in rules))
    return MappingProxyType(found)


@frozen
class MicroKernel:
    """What TFLite Micro computes of one operator.

    Attributes:
        method: Of ``MicroMutableOpResolver``: registers it.
        source: Its kernel.
        data: A term: the operand and the types that it computes with; empty for any.
        refuses: What it does not take, or silently gets wrong.
    """

    method: str
    source: str
    data: str
    refuses: tuple[Terms, ...]

    @property
    def copies(self) -> bool:
        """Whether input 0 must have the scale and the zero point of the output."""
        return any("unequal" in rule for rule in self.refuses)

    def takes(self, kind: str) -> bool:
        """Whether it computes with a type, by its name in ``TensorType``."""
        return not self.data or kind in self.data.partition(":")[2].split("|")


@functools.cache
def micro_kernels() -> Mapping[str, MicroKernel]:
    """Returns the operators that TFLite Micro has a kernel of (``micro.json``, which names its sources)."""
    return MappingProxyType(
        {
            operator: MicroKernel(method, source, data, tuple(tuple(rule.split("&")) for rule in rules))
            for operator, (method, source, data, *rules) in _micro()["operators"].items()
        }
    )


@functools.cache
def micro_customs() -> Mapping[str, str]:
    """Returns the custom operators that TFLite Micro has, each with the method that registers it."""
    return MappingProxyType(_micro()["customs"])


@functools.cache
def _micro() -> Any:
    return json.loads(Path(__file__).with_name("micro.json").read_text(encoding="utf-8"))


def version_text(operator: str, version: int) -> str | None:
    """Returns the first runtime of an operator version as text such as ``2.14.4``, or None if unlisted."""
    return versions().get(operator, {}).get(version, (None, ()))[0]


def version_key(text: str) -> tuple[int, ...]:
    """Returns a version for comparison; what is no number counts as 0."""
    return tuple(whole_number(part) or 0 for part in text.split(".")) if text else ()


def runtime_of(text: str) -> Runtime:
    """Returns major and minor number of a version as :func:`version_text` gives it."""
    major, minor, *_ = version_key(text)
    return major, minor


def runtime_text(runtime: Runtime) -> str:
    """Returns a runtime as users write it, such as ``2.14``."""
    return f"{runtime[0]}.{runtime[1]}"


def min_runtime_text(pairs: Iterable[tuple[str, int]], late: Iterable[str] = ()) -> str:
    """Returns what the ``min_runtime_version`` metadata of a file must say: three numbers with dots.

    Args:
        pairs: (operator name, version) of every operator code in use. Those that the table does not list,
            custom operators among them, do not count.
        late: Runtimes that their features need besides
            (:func:`tfl_rewrite.kernels.reads.late_releases`).

    Returns:
        The highest of their first runtimes; the empty string if none is listed.
    """
    listed = [*late, *(text for pair in pairs if (text := version_text(*pair)) is not None)]
    return max(listed, key=version_key, default="")


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
            if text is not None and runtime_of(text) <= runtime
        ),
        default=0,
    )


def unmeasured(distribution: str, version: str) -> str:
    """Says that a runtime is newer than the newest measured one; empty where it is not.

    Args:
        distribution: As Python packages are named.
        version: Of it; what stands behind three numbers does not count.
    """
    newest = {LITERT: max(LITERT_RUNTIME, key=version_key), "tensorflow": runtime_text(NEWEST_RUNTIME)}
    known = newest.get(distribution)
    if known is None or version_key(version)[: known.count(".") + 1] <= version_key(known):
        return ""
    return (
        f"{distribution} {version} is newer than {known}, the newest on which the rules for operators were "
        "measured: what it does in another way is not known here"
    )


def unmeasured_here() -> str:
    """Says so of the runtime that is installed beside this package, without loading it.

    By the name of its folder ``NAME-VERSION.dist-info``: to load what reads more of it takes longer than to
    check a model.
    """
    start = f"{LITERT.replace('-', '_')}-"
    for folder in sys.path:
        # What Python leaves out may not be readable.
        with contextlib.suppress(OSError):
            for found in Path(folder).glob(f"{start}*.dist-info"):
                return unmeasured(LITERT, found.name[len(start) :].removesuffix(".dist-info"))
    return ""


def taken_runtime(value: str | Runtime | None) -> Runtime:
    """Returns a runtime version that is text, or was read before; see :func:`parse_runtime`."""
    return value if isinstance(value, tuple) else parse_runtime(value)


def parse_runtime(text: str | None) -> Runtime:
    """Reads a runtime version: TensorFlow's count (``2.14``), or LiteRT's (``litert-2.3``).

    Raises:
        UsageError: It is neither, or newer than all that is known: a slip, such as 21.4 for 2.14, would
            otherwise make a file that nothing old reads.
    """
    if text is None:
        return NEWEST_RUNTIME
    if text.startswith("litert-"):
        return _litert(text)
    match = re.fullmatch(r"([0-9]{1,4})\.([0-9]{1,4})(\.[0-9]{1,4})?", text)
    if match is None:
        raise UsageError(
            f"min runtime {text!r} is not a version",
            remedy="give a TensorFlow version such as 2.14, or litert-2.3; TFLite Micro looks at none: "
            "'tfl-rewrite retarget --runtime tflm' says what runs there",
        )
    found = int(match[1]), int(match[2])
    if found > NEWEST_RUNTIME:
        raise _too_new(text, runtime_text(NEWEST_RUNTIME))
    return found


def _too_new(text: str, newest: str) -> UsageError:
    return UsageError(
        f"min runtime {text!r} is newer than {newest}, the newest that is known",
        remedy="give that or an older one, or leave it out",
    )


def _litert(text: str) -> Runtime:
    """Returns the place of a LiteRT release in TensorFlow's count: that of the newest listed one up to it."""
    match = re.fullmatch(r"litert-([0-9]{1,4})\.([0-9]{1,4})(?:\.([0-9]{1,4}))?", text)
    wanted = tuple(int(part or 999) for part in match.groups()) if match else (0, 0, 0)
    listed = [runtime for release, runtime in LITERT_RUNTIME.items() if version_key(release) <= wanted]
    if not listed:
        known = ", ".join(f"litert-{release}" for release in LITERT_RUNTIME)
        raise UsageError(f"min runtime {text!r} is not a known LiteRT release", remedy=f"such are {known}")
    newest = max(LITERT_RUNTIME, key=version_key)
    if wanted[:2] > version_key(newest)[:2]:
        raise _too_new(text, f"litert-{newest}")
    return max(listed)
