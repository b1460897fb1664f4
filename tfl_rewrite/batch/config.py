"""The configuration of a batch: a TOML file, or what the command line says, and what is done to one file."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tfl_rewrite.errors import UsageError
from tfl_rewrite.judge.settings import OF_TWO_FILES, Judging
from tfl_rewrite.options.json_data import read_toml
from tfl_rewrite.options.option import (
    check_options,
    made_with,
    option,
    options_of,
    read_options,
    take_options,
    unknown,
    values_of,
)
from tfl_rewrite.passes import catalog
from tfl_rewrite.search.goals import Goal

_PLACES = ("stem", "name", "folder")
_BRACES = re.compile(r"\{([^{}]*)\}")


def _judging() -> Judging:
    # Nobody waits for the report of one file among many.
    return Judging(blame_seconds=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Passes and judging of one file, as plain data that can be hashed and sent to another process.

    In the paths of real inputs, ``{stem}``, ``{name}`` and ``{folder}`` stand for those of the model.

    Raises:
        UsageError: A value is of another kind or out of bounds.
    """

    passes: tuple[str, ...] = option(
        (), "as for 'run'; repeatable, in order", metavar="NAME[:OPTION=VALUE,...]", flags=("--pass",)
    )
    preset: str | None = option(None, "lossless, simplify or small", metavar="NAME")
    shrink: str | None = option(
        None,
        "search the smallest file instead, as 'shrink' does: its options, such as "
        "min-snr=30,objective=download. A comma in a value is written twice; no time limit unless given",
        metavar="OPTION=VALUE,...",
    )
    missing_inputs: str = option(
        "made",
        "where a path of --inputs or --holdout (which may hold {stem}, {name} or {folder}) "
        "names no file: made (default): make inputs. fail: the file fails",
        choices=("made", "fail"),
    )
    judging: Judging = field(default_factory=_judging, metadata={"options": Judging})

    def __post_init__(self) -> None:
        """Refuses what does not fit."""
        check_options(self)

    def checked(self) -> Settings:
        """Returns itself.

        Raises:
            UsageError: A pass, preset or value is not one of those that exist.
        """
        if [bool(self.passes), self.preset is not None, self.shrink is not None].count(True) != 1:
            raise UsageError(
                "it is not clear what to run",
                remedy="give one of --pass, --preset and --shrink; in a TOML file, passes, preset or shrink",
            )
        _ = self.goal
        if self.preset is not None:
            catalog.preset(self.preset)
        catalog.passes_of(self.passes)
        for what in ("inputs", "holdout"):
            for text in map(str, getattr(self.judging, what)):
                if any(found[1] not in _PLACES for found in _BRACES.finditer(text)):
                    places = ", ".join(f"{{{name}}}" for name in _PLACES)
                    raise UsageError(
                        f"{what} {text[:80]!r} has an unknown placeholder", remedy=f"use {places}"
                    )
        return self

    @property
    def goal(self) -> Goal | None:
        """What to search for, if that is what is to be done.

        Raises:
            UsageError: An option is unknown, a value does not fit, or there is no budget.
        """
        if self.shrink is None:
            return None
        return Goal(**read_options(self.shrink, _GOAL, "shrink"))

    def paths_of(self, name: str, source: Path) -> tuple[str, ...]:
        """Returns ``inputs`` or ``holdout`` for a model, its names in place of the placeholders."""
        names = {"stem": source.stem, "name": source.name, "folder": str(source.parent)}
        # Nothing but these three words, in one go: a name may hold braces too.
        return tuple(
            _BRACES.sub(lambda found: names.get(found[1], found[0]), str(text))
            for text in getattr(self.judging, name)
        )

    def changed(self, values: Mapping[str, Any], where: str) -> Settings:
        """Returns settings with some values replaced; of what says what to do, one replaces the others.

        Raises:
            UsageError: A name is unknown or a value is of the wrong type.
        """
        made = take_options(values, OPTIONS, where)
        values = values_of(self)
        if any(name in made for name in ORDER):
            values |= {row.name: row.default for row in OPTIONS if row.name in ORDER}
        return made_with(Settings, {**values, **made})

    def to_dict(self) -> dict[str, Any]:
        """Returns it as JSON data, which :meth:`changed` takes."""
        values = values_of(self)
        return {row.name: values[row.name] for row in OPTIONS}


# A configuration may come from anywhere: it calls nothing; and measurements are of one file.
_GOAL = tuple(row for row in options_of(Goal) if row.name not in ("metric", "min_metric", "state"))

OPTIONS = tuple(row for row in options_of(Settings) if row.name not in ("blame", *OF_TWO_FILES))
"""Of a report for each operator nobody would see anything here; how exact a pass is, it says itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Override:
    """Settings for the files that match.

    Attributes:
        match: A shell pattern for the path below the folder of inputs, or for the file's name.
        skip: Leave these files out.
        values: As for :meth:`Settings.changed`.
    """

    match: str
    skip: bool = False
    values: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchConfig:
    """A batch, not yet looked for on disk.

    Attributes:
        inputs: Relative ones count from ``base``.
        settings: For every file, unless an override matches.
        overrides: In order; all that match apply, one after the other.
        base: The folder that relative paths count from.
        file: Where it was read from, if from a file.

    Raises:
        UsageError: A value, a pass or a preset is not one of those that exist, or something is missing.
    """

    inputs: tuple[str, ...] = option((), "files and shell patterns (** for any depth) of models")
    out: str = option("", "the folder to write to; made if missing", metavar="DIR")
    jobs: int = option(0, "files at once (default: one per processor)", metavar="N", bounds=(0, 1024))
    executor: str = option(
        "local",
        "local (default), or dask://HOST:PORT for the workers of a Dask scheduler, which "
        "read and write the same paths",
        metavar="WHERE",
    )
    settings: Settings = field(default_factory=Settings)
    overrides: tuple[Override, ...] = ()
    base: Path = Path()
    file: Path | None = None

    def __post_init__(self) -> None:
        """Refuses what does not fit; a wrong name shows before the first file is touched."""
        check_options(self)
        if not self.out:
            raise UsageError(
                "no folder to write to", remedy="give --out DIR, or in a TOML file out = DIR below [batch]"
            )
        if not self.inputs:
            raise UsageError("no files", file=self.file, remedy="give inputs in [batch], a list of patterns")
        if self.executor != "local" and not self.executor.startswith("dask://"):
            raise UsageError(f"executor {self.executor!r} is unknown", remedy="use local or dask://HOST:PORT")
        self.settings.checked()
        for item in self.overrides:
            self.settings.changed(item.values, f"settings for {item.match!r}").checked()

    @property
    def folder(self) -> Path:
        """The folder to write to, as an absolute path."""
        return Path(os.path.abspath(self.out))  # noqa: PTH100


ORDER = ("passes", "preset", "shrink")
"""Settings that say what to do: one of them. They stand in the table ``[batch]``."""

_BATCH = (*options_of(BatchConfig), *(row for row in OPTIONS if row.name in ORDER))


def read_config(path: Path, given: Mapping[str, Any], judging: Mapping[str, Any]) -> BatchConfig:
    """Reads a TOML file; what the command line gives wins.

    Args:
        path: The file. Relative paths in it count from its folder.
        given: Values for ``[batch]``.
        judging: Values for ``[verify]``.

    Raises:
        FileAccessError: It cannot be read.
        UsageError: It is not TOML; a name or a value does not exist, or would start a program.
    """
    data = read_toml(path)
    base = path.absolute().parent
    for name in data:
        if name not in ("batch", "verify", "file"):
            raise unknown(f"{path}: table", name, ("batch", "verify", "file"))
    batch = take_options(_table(data, "batch", path), _BATCH, f"{path} [batch]")
    if batch.get("out"):
        batch["out"] = str(base / batch["out"])
    if batch.get("executor", "local") != "local":
        raise UsageError(
            "a configuration sends work nowhere: executor is for the command line",
            file=path,
            remedy="give --executor dask://HOST:PORT there",
        )
    verify = _table(data, "verify", path)
    _starts_nothing(verify, path)
    rows = data.get("file", [])
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UsageError("file is not a list of tables", file=path, remedy="write [[file]]")
    overrides = tuple(_override(row, f"{path} [[file]]") for row in rows)
    for item in overrides:
        _starts_nothing(item.values, path)
    settings = Settings().changed(verify, f"{path} [verify]").changed(judging, "the command line")
    return _config({**batch, **given}, settings, overrides=overrides, base=base, file=path)


def plain_config(inputs: Sequence[str], given: Mapping[str, Any], judging: Mapping[str, Any]) -> BatchConfig:
    """Makes the configuration of a call without a file.

    Raises:
        UsageError: See :func:`read_config`.
    """
    settings = Settings().changed(judging, "the command line")
    return _config({**given, "inputs": list(inputs)}, settings, base=Path.cwd())


def _config(batch: Mapping[str, Any], settings: Settings, **more: Any) -> BatchConfig:
    values = dict(batch)
    order = {name: value for name in ORDER if (value := values.pop(name, None))}
    return BatchConfig(**values, settings=settings.changed(order, "[batch]"), **more)


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
