"""What is done to one file, as plain data that can be hashed and sent to another process."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tfl_rewrite.errors import UsageError
from tfl_rewrite.judge.settings import Judging
from tfl_rewrite.options.option import check_options, made_with, option, options_of, take_options, values_of
from tfl_rewrite.passes import catalog

_PLACES = ("stem", "name", "folder")
_BRACES = re.compile(r"\{([^{}]*)\}")


def _judging() -> Judging:
    # Nobody waits for the report of one file among many.
    return Judging(blame_seconds=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Passes and judging of one file.

    In the paths of real inputs, ``{stem}``, ``{name}`` and ``{folder}`` stand for those of the model.

    Raises:
        UsageError: A value is of another kind or out of bounds.
    """

    passes: tuple[str, ...] = option(
        (), "as for 'run'; repeatable, in order", metavar="NAME[:OPTION=VALUE,...]", flags=("--pass",)
    )
    preset: str | None = option(None, "lossless or small", metavar="NAME")
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
        if bool(self.passes) == (self.preset is not None):
            raise UsageError("nothing to run, or two orders", remedy="give either passes or a preset")
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

    def paths_of(self, name: str, source: Path) -> tuple[str, ...]:
        """Returns ``inputs`` or ``holdout`` for a model, its names in place of the placeholders."""
        names = {"stem": source.stem, "name": source.name, "folder": str(source.parent)}
        # Nothing but these three words, in one go: a name may hold braces too.
        return tuple(
            _BRACES.sub(lambda found: names.get(found[1], found[0]), str(text))
            for text in getattr(self.judging, name)
        )

    def changed(self, values: Mapping[str, Any], where: str) -> Settings:
        """Returns settings with some values replaced; either of passes and preset replaces the other.

        Raises:
            UsageError: A name is unknown or a value is of the wrong type.
        """
        made = take_options(values, OPTIONS, where)
        if "passes" in made and "preset" not in made:
            made["preset"] = None
        if "preset" in made and "passes" not in made:
            made["passes"] = ()
        return made_with(Settings, {**values_of(self), **made})

    def to_dict(self) -> dict[str, Any]:
        """Returns it as JSON data, which :meth:`changed` takes."""
        values = values_of(self)
        return {row.name: values[row.name] for row in OPTIONS}


OPTIONS = tuple(row for row in options_of(Settings) if row.name not in ("blame", "exact"))
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
