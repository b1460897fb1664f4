"""The configuration of a batch: a TOML file, or what the command line says."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tfl_rewrite.batch.settings import Override, Settings
from tfl_rewrite.errors import UsageError, check_number
from tfl_rewrite.files.toml import read_toml

_BATCH = ("inputs", "out", "jobs", "executor", "passes", "preset")


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchConfig:
    """A batch, not yet looked for on disk.

    Attributes:
        patterns: Files and shell patterns (``**`` for any depth) of models; relative ones to ``base``.
        out: The folder to write to.
        settings: For every file, unless an override matches.
        overrides: In order; all that match apply, one after the other.
        jobs: How many files at once.
        executor: ``local``, or ``dask://HOST:PORT``.
        base: The folder that relative paths count from.
        file: Where it was read from, if from a file.
    """

    patterns: tuple[str, ...]
    out: Path
    settings: Settings
    overrides: tuple[Override, ...] = ()
    jobs: int = 0
    executor: str = "local"
    base: Path = Path()
    file: Path | None = None


def read_config(path: Path, given: Mapping[str, Any], judging: Mapping[str, Any]) -> BatchConfig:
    """Reads a TOML file; what the command line gives wins.

    Args:
        path: The file. Relative paths in it count from its folder.
        given: Values for ``[batch]``.
        judging: Values for ``[verify]``.

    Raises:
        FileAccessError: It cannot be read.
        FormatError: It is no TOML.
        UsageError: A name or a value is not one of those that exist, or would start a program.
    """
    data = read_toml(path)
    base = path.absolute().parent
    _known(data, ("batch", "verify", "file"), str(path))
    batch = dict(_table(data, "batch", path))
    _known(batch, _BATCH, f"{path} [batch]")
    if isinstance(batch.get("out"), str):
        batch["out"] = str(base / batch["out"])
    if batch.get("executor", "local") != "local":
        raise UsageError(
            "a configuration sends work nowhere: executor is for the command line",
            file=path,
            remedy="give --executor dask://HOST:PORT there",
        )
    batch |= given
    verify = dict(_table(data, "verify", path))
    _starts_nothing(verify, path)
    rows = data.get("file", [])
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UsageError("file is not a list of tables", file=path, remedy="write [[file]]")
    overrides = tuple(_override(row, f"{path} [[file]]") for row in rows)
    for item in overrides:
        _starts_nothing(item.values, path)
    settings = Settings().changed(verify, f"{path} [verify]").changed(judging, "the command line")
    return replace(_config(batch, settings, overrides, base, str(path)), file=path)


def plain_config(
    patterns: Sequence[str], given: Mapping[str, Any], judging: Mapping[str, Any]
) -> BatchConfig:
    """Makes the configuration of a call without a file.

    Raises:
        UsageError: See :func:`read_config`.
    """
    settings = Settings().changed(judging, "the command line")
    return _config({**given, "inputs": list(patterns)}, settings, (), Path.cwd(), "the command line")


def _config(
    batch: Mapping[str, Any], settings: Settings, overrides: tuple[Override, ...], base: Path, where: str
) -> BatchConfig:
    order = {name: batch[name] for name in ("passes", "preset") if batch.get(name)}
    settings = settings.changed(order, where)
    out, jobs = batch.get("out"), batch.get("jobs", 0)
    executor, patterns = batch.get("executor", "local"), batch.get("inputs")
    patterns = [patterns] if isinstance(patterns, str) else patterns
    if not isinstance(out, (str, os.PathLike)) or not os.fspath(out):
        raise UsageError("no folder to write to", remedy="give --out DIR, or out in [batch]")
    if not isinstance(patterns, list) or not patterns or not all(isinstance(item, str) for item in patterns):
        raise UsageError(f"{where}: no files", remedy="give inputs in [batch], a list of patterns")
    if not isinstance(jobs, int) or isinstance(jobs, bool):
        raise UsageError(f"jobs is {jobs!r}", remedy="give 1 or more, or 0 for one per processor")
    check_number("jobs", jobs)
    if not isinstance(executor, str) or not (executor == "local" or executor.startswith("dask://")):
        raise UsageError(f"executor {executor!r} is unknown", remedy="use local or dask://HOST:PORT")
    # A wrong name shows before the first file is touched.
    settings.checked()
    for item in overrides:
        settings.changed(item.values, where).checked()
    return BatchConfig(
        patterns=tuple(patterns),
        out=Path(os.path.abspath(out)),  # noqa: PTH100
        settings=settings,
        overrides=overrides,
        jobs=jobs,
        executor=executor,
        base=base,
    )


def _starts_nothing(values: Mapping[str, Any], path: Path) -> None:
    """Refuses a runtime of somebody else's choice: a configuration may come from anywhere.

    Raises:
        UsageError: One is not among those that this Python has.
    """
    given = values.get("runtime", ())
    for runtime in [given] if isinstance(given, str) else given if isinstance(given, list) else ():
        if runtime not in ("litert", "tensorflow"):
            raise UsageError(
                f"a configuration starts no programs: runtime {runtime!r}",
                file=path,
                remedy="give it on the command line, with --runtime",
            )


def _override(row: dict[str, Any], where: str) -> Override:
    values = dict(row)
    match, skip = values.pop("match", None), values.pop("skip", False)
    if not isinstance(match, str) or not isinstance(skip, bool):
        raise UsageError(f"{where}: match is missing, or skip is not true or false")
    verify = values.pop("verify", {})
    if not isinstance(verify, dict):
        raise UsageError(f"{where}: verify is not a table", remedy="write verify.min_snr = 20")
    return Override(match=match, skip=skip, values={**values, **verify})


def _table(data: Mapping[str, Any], name: str, path: Path) -> dict[str, Any]:
    found = data.get(name, {})
    if not isinstance(found, dict):
        raise UsageError(f"{name} is not a table", file=path, remedy=f"write [{name}]")
    return found


def _known(data: Mapping[str, Any], names: Sequence[str], where: str) -> None:
    for name in data:
        if name not in names:
            raise UsageError(f"{where}: {name!r} is unknown", remedy=f"use {', '.join(names)}")
