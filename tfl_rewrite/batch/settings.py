"""What is done to one file, as plain data that can be hashed and sent to another process."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from tfl_rewrite.errors import UsageError, check_number
from tfl_rewrite.passes import catalog
from tfl_rewrite.pipeline.verification import MODES

_PLACES = ("stem", "name", "folder")
_BRACES = re.compile(r"\{([^{}]*)\}")
_BOUNDED = ("samples", "seed", "min_snr", "min_agreement", "max_abs_error", "timeout", "blame_seconds")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Passes and verification of one file; the names are those of the command line.

    Attributes:
        passes: As for ``tfl-rewrite run --pass``.
        preset: Instead of passes.
        inputs: Paths of real inputs. ``{stem}``, ``{name}`` and ``{folder}`` stand for those of the model.
        holdout: Likewise, of those that nothing is fitted to and that alone judge.
        missing_inputs: ``made``: where a path names no file, inputs are made. ``fail``: the file fails then.
    """

    passes: tuple[str, ...] = ()
    preset: str | None = None
    verify: str = "auto"
    inputs: tuple[str, ...] = ()
    holdout: tuple[str, ...] = ()
    missing_inputs: str = "made"
    input_range: tuple[float, float] | None = None
    input_layout: str | None = None
    sample_rate: int | None = None
    samples: int = 4
    seed: int = 0
    min_snr: float = 20.0
    min_agreement: float = 0.9
    max_abs_error: float | None = None
    runtime: tuple[str, ...] = ("litert",)
    resolver: tuple[str, ...] = ()
    independent: bool = False
    timeout: float = 600.0
    memory_limit: str | None = None
    no_rescue: bool = False
    blame_seconds: float = 0.0

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
        _one_of("verify", self.verify, MODES)
        _one_of("missing_inputs", self.missing_inputs, ("made", "fail"))
        if not self.runtime:
            raise UsageError("no runtime to judge with", remedy="name one, such as litert")
        if self.memory_limit is not None:
            from tfl_rewrite.interpreter.memory import parse_memory

            parse_memory(self.memory_limit)
        for name in _BOUNDED:
            value = getattr(self, name)
            if value is not None:
                check_number(name, value)
        for what, text in [("inputs", text) for text in self.inputs] + [
            ("holdout", text) for text in self.holdout
        ]:
            if any(found[1] not in _PLACES for found in _BRACES.finditer(text)):
                places = ", ".join(f"{{{name}}}" for name in _PLACES)
                raise UsageError(f"{what} {text[:80]!r} has an unknown placeholder", remedy=f"use {places}")
        return self

    def paths_of(self, name: str, source: Path) -> tuple[str, ...]:
        """Returns ``inputs`` or ``holdout`` for a model, its names in place of the placeholders."""
        texts: tuple[str, ...] = getattr(self, name)
        names = {"stem": source.stem, "name": source.name, "folder": str(source.parent)}
        # Nothing but these three words, in one go: a name may hold braces too.
        return tuple(_BRACES.sub(lambda found: names.get(found[1], found[0]), text) for text in texts)

    def changed(self, values: Mapping[str, Any], where: str) -> Settings:
        """Returns settings with some values replaced; either of passes and preset replaces the other.

        Raises:
            UsageError: A name is unknown or a value is of the wrong type.
        """
        known = {item.name: item for item in fields(Settings)}
        made: dict[str, Any] = {}
        for name, value in values.items():
            if name not in known:
                raise UsageError(f"{where}: {name!r} is unknown", remedy=f"use {', '.join(known)}")
            made[name] = _typed(name, value, where)
        if "passes" in made and "preset" not in made:
            made["preset"] = None
        if "preset" in made and "passes" not in made:
            made["passes"] = ()
        return replace(self, **made)

    def to_dict(self) -> dict[str, Any]:
        """Returns it as JSON data."""
        return asdict(self)


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


_LISTS = ("passes", "inputs", "holdout", "runtime", "resolver")
_FLAGS = ("independent", "no_rescue")
_WHOLE = ("samples", "seed", "sample_rate")
_OPTIONAL = ("input_range", "input_layout", "sample_rate", "max_abs_error")
_REAL = ("min_snr", "min_agreement", "max_abs_error", "timeout", "blame_seconds")


def _typed(name: str, value: Any, where: str) -> Any:
    if name in _LISTS:
        items = [value] if isinstance(value, str) else value
        if not isinstance(items, (list, tuple)) or not all(isinstance(item, str) for item in items):
            raise UsageError(f"{where}: {name} is not a list of texts")
        return tuple(items)
    if value is None and name in _OPTIONAL:
        return None
    if name == "input_range":
        bounds = list(value) if isinstance(value, (list, tuple)) else []
        if len(bounds) != 2 or not all(type(bound) in (int, float) for bound in bounds):
            raise UsageError(f"{where}: input_range is not a list of two numbers")
        return (float(bounds[0]), float(bounds[1]))
    if name in _WHOLE and (not isinstance(value, int) or isinstance(value, bool)):
        raise UsageError(f"{where}: {name} is not a whole number")
    if name in _REAL and (not isinstance(value, (int, float)) or isinstance(value, bool)):
        raise UsageError(f"{where}: {name} is not a number")
    if name in _REAL:
        return float(value)
    if name in _FLAGS:
        if not isinstance(value, bool):
            raise UsageError(f"{where}: {name} is neither true nor false")
        return value
    if name not in _WHOLE and not isinstance(value, str):
        raise UsageError(f"{where}: {name} is not a text")
    return value


def _one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UsageError(f"{name} {value!r} is unknown", remedy=f"use one of {', '.join(choices)}")
