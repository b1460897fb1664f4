"""Bounds of the numbers that a user, or a configuration from somebody else, may give."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from itertools import islice

from .errors import UsageError

BOUNDS: Mapping[str, tuple[float, float]] = {
    "samples": (1, 10_000),
    "seed": (0, (1 << 63) - 1),
    "threads": (0, 1024),
    "jobs": (0, 1024),
    "timeout": (0.001, 1e6),
    "time_limit": (0, 1e6),
    "blame_seconds": (0, 1e6),
    "min_snr": (-1000, 1000),
    "max_abs_error": (0, 1e300),
    "max_error": (0, 1e300),
    "min_metric": (-1e300, 1e300),
    "largest": (0, 1 << 40),
    "min_agreement": (0, 1),
    "min_elements": (1, 1 << 40),
}
"""Least and largest value, by the name of the setting."""

_MOST_DIGITS = 20
_MOST_COMPARED, _LONGEST_COMPARED = 2000, 200


def check_number(name: str, value: float) -> None:
    """Refuses a number that is out of its bounds, or none.

    Args:
        name: Of the setting, one of :data:`BOUNDS`.
        value: The number.

    Raises:
        UsageError: It is.
    """
    least, most = BOUNDS[name]
    # Also what is no number: it is neither above nor below.
    if not least <= value <= most:
        raise UsageError(
            f"{name} is {number_text(value)}", remedy=f"give {least:,} or more, {most:,} at most"
        )


def near_names(name: str, known: Iterable[str], *, count: int = 5, cutoff: float = 0.6) -> list[str]:
    """Returns the names that are spelled most alike; of those that are long, or very many, none.

    Args:
        name: What somebody wrote.
        known: Names to choose from. Comparing them takes time that grows with the square of their length.
        count: At most so many.
        cutoff: How much alike, from 0 to 1.
    """
    short = [item for item in islice(known, _MOST_COMPARED) if len(item) <= _LONGEST_COMPARED]
    return get_close_matches(name, short, n=count, cutoff=cutoff) if len(name) <= _LONGEST_COMPARED else []


def whole_number(text: str) -> int | None:
    """Reads a number of a few digits; None for any other text.

    Such as ``str.isdigit`` takes: digits of other scripts, and more of them than Python reads.
    """
    if 0 < len(text) <= _MOST_DIGITS and text.isascii() and text.isdigit():
        return int(text)
    return None


def number_text(value: float) -> str:
    """A number as text; of a very long one, which Python does not even print, how long it is."""
    if isinstance(value, int) and abs(value) >= 10**_MOST_DIGITS:
        return f"a number of more than {_MOST_DIGITS} digits"
    return str(value)
