"""Checks of operator versions against runtimes."""

from __future__ import annotations

from collections.abc import Iterator

from tfl_rewrite.kernels import runtimes
from tfl_rewrite.kernels.reads import too_high
from tfl_rewrite.kernels.runtimes import Runtime
from tfl_rewrite.model.ir import Model
from tfl_rewrite.passes.repair import said_runtime, version_key
from tfl_rewrite.reading.doctor.kinds import Finding
from tfl_rewrite.weights.state import LateForm, late_forms


def check(model: Model, wanted: Runtime | None) -> Iterator[Finding]:
    """Yields operators that are newer than the file says, than any runtime, or than one that is asked for.

    Args:
        model: The model.
        wanted: The oldest runtime that is to run it, or None for no particular one.
    """
    pairs: dict[tuple[str, int], int] = {}
    for _, operator in model.operators():
        if operator.code.custom is None:
            key = (operator.code.name, operator.code.version)
            pairs[key] = pairs.get(key, 0) + 1
    yield from _said(model, list(pairs))
    high = _high(model)
    for pair, count in pairs.items():
        yield from _version(pair, count, high.get(pair))
    if wanted is not None:
        late = list(late_forms(model, wanted))
        for pair, count in pairs.items():
            yield from _too_new(pair, count, wanted, high.get(pair), late)
        for item in late:
            detail = f"{item.form}: right from {_shown(item.first)} on; asked for {_shown(wanted)}"
            yield Finding("too-new", f"{item.place} {item.operator}", detail, advice=_requantize(wanted))


def _high(model: Model) -> dict[tuple[str, int], int]:
    """Returns what operator versions that are too high could be, where that is so of all that have them."""
    found: dict[tuple[str, int], int] = {}
    codes: dict[tuple[str, int], int] = {}
    for item in too_high(model):
        pair = (item.code.name, item.code.version)
        found[pair] = max(found.get(pair, 1), item.needed)
        codes[pair] = codes.get(pair, 0) + 1
    used = {id(operator.code): operator.code for _, operator in model.operators()}
    for code in used.values():
        pair = (code.name, code.version)
        codes[pair] = codes.get(pair, 0) - 1
    return {pair: needed for pair, needed in found.items() if codes[pair] == 0}


def _version(pair: tuple[str, int], count: int, needed: int | None) -> Iterator[Finding]:
    name, version = pair
    newest = runtimes.max_version(name, runtimes.NEWEST_RUNTIME)
    uses = ""
    if needed is not None:
        uses = f"; what they use needs {needed}, first in {runtimes.version_text(name, needed)}"
    if newest and version > newest:
        detail = f"{count} x version {version}; the newest that is known is {newest}{uses}"
        yield Finding("operator-version", f"operator {name}", detail, repairable=needed is not None)
    elif needed is not None:
        text = runtimes.version_text(name, version)
        detail = f"{count} x version {version}, first in {text}{uses}"
        yield Finding("version-high", f"operator {name}", detail, repairable=True)


def _too_new(
    pair: tuple[str, int], count: int, wanted: Runtime, needed: int | None, late: list[LateForm]
) -> Iterator[Finding]:
    name, version = pair
    text = runtimes.version_text(name, version)
    if text is None or runtimes.runtime_of(text) <= wanted:
        return
    first = _shown(runtimes.runtime_of(text))
    advice = f"use a runtime of {first} or newer: no older form of it is known"
    lower = runtimes.version_text(name, needed) if needed is not None else None
    if lower is not None and runtimes.runtime_of(lower) <= wanted:
        advice = "tfl-rewrite repair IN OUT --only version-high"
    elif any(item.operator == name for item in late):
        advice = _requantize(wanted)
    detail = f"{count} x version {version}, first in {text}; asked for {_shown(wanted)}"
    yield Finding("too-new", f"operator {name}", detail, advice=advice)


def _requantize(wanted: Runtime) -> str:
    return f"tfl-rewrite quantize-weights IN OUT --min-runtime {_shown(wanted)}"


def _said(model: Model, pairs: list[tuple[str, int]]) -> Iterator[Finding]:
    said, needed = said_runtime(model), runtimes.min_runtime_text(pairs)
    if said is None or not needed or version_key(needed) <= version_key(said):
        return
    owner = next(pair for pair in pairs if runtimes.version_text(*pair) == needed)
    detail = f"it says {said or 'nothing'}; {owner[0]} version {owner[1]} needs {needed}"
    yield Finding("min-runtime", "metadata min_runtime_version", detail, repairable=True)


def _shown(runtime: Runtime) -> str:
    return ".".join(map(str, runtime))
