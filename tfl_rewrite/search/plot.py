"""A picture of the search: size against error, and what became of each constant."""

from __future__ import annotations

import io
import math
from typing import Any

from tfl_rewrite.errors import UsageError
from tfl_rewrite.search.shrink import ShrinkReport

_LARGEST = 40
"""Constants with a bar of their own."""


def check_installed() -> None:
    """Raises a UsageError where the library that draws is missing."""
    _matplotlib()


def draw(report: ShrinkReport, kind: str) -> bytes:
    """Draws the picture.

    Args:
        report: Of the search.
        kind: ``svg`` or ``png``.

    Returns:
        The file's content.

    Raises:
        UsageError: The library that draws is not installed.
    """
    matplotlib = _matplotlib()
    matplotlib.use("Agg")
    # The same picture for the same figures.
    matplotlib.rcParams["svg.hashsalt"] = "tfl-rewrite"
    from matplotlib import pyplot

    units = sorted(report.units, key=lambda unit: -unit.nbytes)[:_LARGEST]
    figure, (above, below) = pyplot.subplots(
        2, 1, figsize=(8, 4 + 0.22 * max(4, len(units))), height_ratios=[4, max(1.0, 0.22 * len(units))]
    )
    points = [item for item in report.pareto() if item.snr is not None and math.isfinite(item.snr)]
    above.plot([item.nbytes for item in points], [item.snr for item in points], "o-", label="measured")
    above.axvline(report.nbytes_before, color="gray", linestyle=":", label="original")
    if report.promised is not None and report.promised.snr is not None:
        above.plot([report.promised.nbytes], [report.promised.snr], "r*", markersize=14, label="chosen")
    above.set_xlabel("bytes")
    above.set_ylabel("lowest SNR of an output, dB")
    above.legend()
    _bars(report, units, below)
    figure.tight_layout()
    data = io.BytesIO()
    figure.savefig(data, format=kind, metadata={"Date": None} if kind == "svg" else None)
    pyplot.close(figure)
    return data.getvalue()


def _matplotlib() -> Any:
    try:
        import matplotlib
    except ImportError:
        raise UsageError(
            "a picture needs matplotlib", remedy="install it: pip install 'tfl-rewrite[plot]'"
        ) from None
    return matplotlib


def _bars(report: ShrinkReport, units: Any, axes: Any) -> None:
    chosen = report.promised.choice if report.promised is not None else {}
    names, sizes, labels = [], [], []
    for unit in reversed(units):
        encoding = chosen.get(unit.position)
        option = next((item for item in unit.options if item.encoding == encoding), unit.kept)
        # What a font has no sign for, or what would be read as a formula, is not for a label.
        name = "".join(sign if sign.isprintable() and sign != "$" else "?" for sign in unit.name)
        names.append(name[-40:])
        sizes.append(option.nbytes)
        labels.append(str(encoding or "kept"))
    bars = axes.barh(range(len(names)), sizes)
    axes.set_yticks(range(len(names)), names, fontsize=6)
    axes.bar_label(bars, labels, fontsize=6, padding=2)
    axes.set_xlabel("bytes in the file")
    axes.margins(x=0.25)
