"""Checks of operator versions against runtimes."""

from __future__ import annotations

from collections.abc import Iterator

from tfl_rewrite import kernels
from tfl_rewrite.diagnosis.kinds import Finding
from tfl_rewrite.kernels import Runtime
from tfl_rewrite.model.ir import Model
from tfl_rewrite.passes.repair import said_runtime, version_key
from tfl_rewrite.passes.weight_reads import weight_reads


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
    for (name, version), count in pairs.items():
        newest = kernels.max_version(name, kernels.NEWEST_RUNTIME)
        if newest and version > newest:
            detail = f"{count} x version {version}; the newest that is known is {newest}"
            yield Finding("operator-version", f"operator {name}", detail)
        text = kernels.version_text(name, version)
        if wanted is not None and text is not None and version_key(text)[:2] > wanted:
            detail = f"{count} x version {version}, first in {text}; asked for {_shown(wanted)}"
            yield Finding("too-new", f"operator {name}", detail)
    if wanted is None:
        return
    for read in weight_reads(model):
        forms = [form for form in read.row.forms if form.granularity is read.granularity]
        first = min((form.first_runtime for form in forms), default=(0, 0))
        if first > wanted and not read.blockwise:
            detail = f"per-{read.granularity.value} {read.weight.dtype_name.lower()} weight: right from "
            detail += f"{_shown(first)} on; asked for {_shown(wanted)}"
            yield Finding("too-new", f"{read.place} {read.name}", detail)


def _said(model: Model, pairs: list[tuple[str, int]]) -> Iterator[Finding]:
    said, needed = said_runtime(model), kernels.min_runtime_text(pairs)
    if said is None or not needed or version_key(needed) <= version_key(said):
        return
    owner = next(pair for pair in pairs if kernels.version_text(*pair) == needed)
    detail = f"it says {said or 'nothing'}; {owner[0]} version {owner[1]} needs {needed}"
    yield Finding("min-runtime", "metadata min_runtime_version", detail, repairable=True)


def _shown(runtime: Runtime) -> str:
    return ".".join(map(str, runtime))
