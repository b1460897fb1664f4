"""What a search measured, kept in a file so that it can go on where it was stopped; and its clock."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tfl_rewrite.errors import FileAccessError, UsageError
from tfl_rewrite.files.atomic import PLAIN, write_whole
from tfl_rewrite.search.units import Float64, Option, Unit


class TimeIsUp(Exception):
    """The time limit was reached."""


@dataclass(slots=True)
class Clock:
    """Ends a search that takes too long.

    Attributes:
        limit: Seconds, or None.
    """

    limit: float | None = None
    started: float = field(default_factory=time.monotonic)

    def check(self, share: float = 1.0, *, spare: float = 0.0) -> None:
        """Raises :class:`TimeIsUp` when a share of the time, or all but ``spare`` seconds, is used up."""
        if self.is_past(share, spare=spare):
            raise TimeIsUp

    def is_past(self, share: float, *, spare: float = 0.0) -> bool:
        """Whether a share of the time, or all but ``spare`` seconds, is used up."""
        if self.limit is None:
            return False
        spent = time.monotonic() - self.started
        return spent > self.limit * share or spent + spare > self.limit


class State:
    """Measured noises in a file, which is read and written.

    Args:
        path: The file, or None to keep nothing.
        key: What the figures belong to.
        force: Whether figures that belong to something else may be replaced.
        access: Who may read the file, as for :func:`tfl_rewrite.files.atomic.write_aside`.

    Raises:
        FileAccessError: The file holds something else than the state of a search.
        UsageError: It holds that of another search, and ``force`` is off.
    """

    def __init__(self, path: Path | None, key: str, *, force: bool = False, access: int = PLAIN) -> None:
        self._path = path
        self._key = key
        self._access = access
        self._noises: dict[str, list[float] | None] = {}
        if path is None or not path.exists():
            return
        try:
            data = json.loads(path.read_text(encoding="ascii"))
            known, noises = data["key"], dict(data["noises"])
            found = {
                str(name): None if row is None else [float(x) for x in row] for name, row in noises.items()
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            raise FileAccessError(
                "holds no state of a search", file=path, remedy="name another file"
            ) from None
        if known == key:
            self._noises = found
        elif not force:
            raise UsageError(
                "holds what was measured for another model, other inputs or settings, or by another version",
                file=path,
                remedy="name another file, or use --force to replace it",
            )

    def knows(self, unit: Unit, option: Option) -> bool:
        """Whether this was measured before."""
        return _name(unit, option) in self._noises

    def get(self, unit: Unit, option: Option) -> Float64 | None:
        """Returns a noise that was measured before; None if the file did not run."""
        row = self._noises[_name(unit, option)]
        return None if row is None else np.array(row)

    def put(self, unit: Unit, option: Option, noise: Float64 | None) -> None:
        """Keeps a noise."""
        self._noises[_name(unit, option)] = None if noise is None else [float(x) for x in noise]
        if self._path is None:
            return
        data = json.dumps({"key": self._key, "noises": self._noises}).encode("ascii")
        write_whole(self._path, data, force=True, access=self._access)


def _name(unit: Unit, option: Option) -> str:
    return f"{unit.position}/{option.encoding}"
