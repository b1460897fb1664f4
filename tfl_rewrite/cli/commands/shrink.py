"""``shrink``: what it does and how it is shown."""

from __future__ import annotations

import argparse
import csv
import functools
import io
import math
from collections import Counter
from pathlib import Path
from typing import Any

from tfl_rewrite.cli.commands.rows import PREFIX, SEARCH_SECONDS
from tfl_rewrite.cli.files import SideFiles
from tfl_rewrite.cli.options import given, judging_of
from tfl_rewrite.cli.progress import Bar
from tfl_rewrite.cli.render import next_lines, noted, verified_lines
from tfl_rewrite.cli.text import safe, show
from tfl_rewrite.errors import UsageError
from tfl_rewrite.options.option import made_with
from tfl_rewrite.pipeline.report import Plan
from tfl_rewrite.search.goals import FLOATS, Goal
from tfl_rewrite.search.holdout_judge import figure
from tfl_rewrite.search.report import ShrinkFailed, ShrinkReport
from tfl_rewrite.search.shrink import search_and_publish
from tfl_rewrite.work import working


def shrink_file(arguments: argparse.Namespace) -> int:
    """``tfl-rewrite shrink IN OUT``."""
    _check_ending(arguments.curve, "--curve", (".json", ".csv"))
    _check_ending(arguments.plot, "--plot", (".svg", ".png"))
    _check_ending(arguments.recipe_out, "--recipe-out", (".toml",))
    if arguments.plot is not None:
        _check_installed()
    side = SideFiles(arguments)
    bar = Bar.of(arguments)
    try:
        plan = Plan(
            source=arguments.source,
            target=arguments.target,
            passes=(),
            settings=judging_of(arguments),
            force=arguments.force,
            dry_run=arguments.dry_run,
        )
        with working(threads=arguments.threads):
            report = search_and_publish(
                plan,
                goal_of(arguments),
                ready=lambda report: _add_files(side, arguments, report),
                progress=bar,
            )
        side.publish()
    except ShrinkFailed as error:
        bar.close()
        _add_files(side, arguments, error.report)
        side.publish()
        failed = error.report
        show(arguments, failed.to_dict, lambda: lines_of(failed, verbose=arguments.verbose), product=False)
        raise
    finally:
        bar.close()
        side.close()
    text = functools.partial(lines_of, report, verbose=arguments.verbose)
    show(arguments, report.to_dict, text, product=arguments.dry_run)
    return 0


def goal_of(arguments: argparse.Namespace) -> Goal:
    """Returns what a search is to find, from the options of the command."""
    return made_with(Goal, {"time_limit": SEARCH_SECONDS, **given(Goal, arguments, PREFIX)})


def lines_of(report: ShrinkReport, *, verbose: int) -> list[str]:
    """Returns the report as text."""
    lines = []
    found, before = report.promised, report.nbytes_before
    if found is not None:
        share = found.nbytes / before if before else 1.0
        names = f"{safe(report.source)} -> {safe(report.target)}"
        lines.append(f"{names}: {before:,} -> {found.nbytes:,} bytes ({100 * share:.1f} %){_packed(report)}")
        told = report.proven is not None and report.proven.cause != "nothing"
        if told and not report.units and not found.activations and len(report.curve) < 2:
            lines.append("no constant can be stored otherwise: nothing to do but what loses nothing")
    ran = "1 file was run" if report.files == 1 else f"{report.files} files were run"
    lines.append(f"searched with {report.split.text}; {ran}")
    lines += _steps(report, verbose=verbose)
    lines += _activations(report)
    if found is not None and report.units:
        counts = Counter(report.stored(unit) or "kept as it is" for unit in report.units)
        lines.append("constants: " + ", ".join(f"{count} x {name}" for name, count in counts.most_common()))
        if verbose:
            for unit in sorted(report.units, key=lambda unit: -unit.nbytes):
                how = report.stored(unit) or "kept"
                lines.append(f"  {unit.nbytes:>12,}  {how:28s} {safe(unit.name, limit=80)}")
    if verbose or found is None:
        lines += _curve(report)
    if report.proven is not None:
        lines += verified_lines(report.proven, verbose=verbose, asked=_asked(report.goal))
    lines += _metric(report)
    if report.promised_snr is not None:
        lines.append(_promise(report))
    elif found and report.proven and report.proven.cause == "nothing":
        kept = "" if found.choice else ", so weights stay as they are"
        lines.append(f"SNR promised: none: no output says anything{kept}; give --inputs that show more")
    # With all that was measured, the verdict's own notes were told above.
    own = () if report.proven is None else report.proven.notes
    notes = [note for note in report.notes if note not in own] if verbose else [*own, *report.notes]
    lines += noted(list(dict.fromkeys(notes)), verbose)
    if report.report is not None:
        lines += next_lines(report.report, verbose=verbose, less=_less(report.goal))
    return lines


def _packed(report: ShrinkReport) -> str:
    """Tells the compressed sizes where those were to be small."""
    made, before = report.promised, report.compressed_before
    if made is None or not made.deflated or not before:
        return ""
    share = 100 * made.deflated / before
    return f"; compressed ({report.goal.codec.value}): {before:,} -> {made.deflated:,} bytes ({share:.1f} %)"


def _asked(goal: Goal) -> str:
    """Returns what was asked for, where that says nothing of how much outputs may differ."""
    return goal.text() if goal.min_snr is None and goal.max_error is None else ""


def _metric(report: ShrinkReport) -> list[str]:
    """Tells the user's own figure of the file, where there is one."""
    goal, found = report.goal, report.promised
    if goal.min_metric is None or found is None:
        return []
    told = f"{figure(report.proven_metric)} on {report.split.judges}"
    if report.split.held_out:
        told += f", {figure(found.metric)} on those of the search"
    asked = f"at least {goal.min_metric:g} was asked for"
    original = f"the original has {figure(report.original_metric)}"
    return [f"metric {safe(goal.metric or '')}: {told}; {asked}; {original}"]


def _less(goal: Goal) -> str:
    """Says with what budget less is lost."""
    if goal.min_snr is not None:
        return "a higher --min-snr loses less"
    return "--min-snr bounds it, too" if goal.bounds_error else "a larger --max-size loses less"


def _steps(report: ShrinkReport, *, verbose: int) -> list[str]:
    """Shows how far the search got where the time limit ended it; or all of its steps."""
    lines = []
    if report.ended_in is not None:
        over = f", {report.overrun:.1f} s beyond it" if report.overrun >= 0.05 else ""
        lines.append(
            f"the time limit of {report.goal.time_limit:g} s ended the search{over}: {report.ended_in}"
        )
    elif report.overrun >= 0.05:
        lines.append(
            f"the search took {report.overrun:.1f} s beyond its time limit of {report.goal.time_limit:g} s"
        )
    for step in report.steps if verbose else ():
        best = "no file yet" if step.nbytes is None else f"{step.nbytes:,} bytes, {_snr(step.snr)}"
        left = "" if step.finished else " (not finished)"
        lines.append(f"  {step.seconds:>7.1f} s  {step.files:>5} files run  {best:30s} {step.step}{left}")
    return lines


def _activations(report: ShrinkReport) -> list[str]:
    """Shows what operators compute in, and why not in anything else."""
    lines = []
    for item in report.tried:
        if not item.chosen:
            lines.append(f"  not {item.activations}: {safe(item.reason, limit=300)}")
            continue
        counts = Counter(width for each in item.passes for width in getattr(each, "widths", {}).values())
        told = ", ".join(f"{count} operators in {name}" for name, count in counts.most_common())
        lines.insert(0, f"activations: {item.activations}{f' ({told})' if told else ''}")
    return lines


def _curve(report: ShrinkReport) -> list[str]:
    """Shows what else there is to choose; nothing where no file was measured."""
    if not report.table:
        return []
    lines = ["size against error, on the inputs of the search:"]
    for item in report.table:
        mark = "  <- this one" if report.is_chosen(item) else ""
        size = f"{item.nbytes:>12,} bytes"
        if item.deflated:
            size += f" ({item.deflated:,} with {report.goal.codec.value})"
        kind = f"  {item.activations}" if item.activations else ""
        kind += f"  metric {figure(item.metric)}" if item.metric is not None else ""
        lines.append(f"  {size}  {_snr(item.snr):>9s}{kind}{mark}")
    return lines


def _promise(report: ShrinkReport) -> str:
    assert report.promised is not None
    found = _less_chance(report.promised.snr, report.promised.sure)
    proven = _less_chance(report.proven_snr, report.proven_sure)
    likely = ""
    if report.expected_snr != report.promised_snr:
        likely = f"likely {_snr(report.expected_snr)}: "
    others = report.split.judges if report.split.held_out else f"the file on {report.split.judges}"
    return f"SNR promised: {_snr(report.promised_snr)} ({likely}search {found}, {others} {proven})"


def _less_chance(snr: float | None, sure: float | None) -> str:
    chance = 0.0 if snr is None or sure is None or not math.isfinite(snr) else snr - sure
    return _snr(snr) + (f" less {chance:.1f} dB that may be chance" if chance >= 0.05 else "")


def _snr(snr: float | None) -> str:
    return "exact" if snr is None or not math.isfinite(snr) else f"{snr:.1f} dB"


def _add_files(side: SideFiles, arguments: argparse.Namespace, report: ShrinkReport) -> None:
    side.add_json(arguments.report, report.to_dict)
    if arguments.recipe_out is not None and report.report is not None:
        side.add(arguments.recipe_out, report.recipe().encode("utf-8"))
    if arguments.curve is not None:
        rows = [
            {
                "nbytes": item.nbytes,
                "deflated": item.deflated or None,
                "snr_db": item.snr if item.snr is not None and math.isfinite(item.snr) else None,
                "metric": item.metric if item.metric is not None and math.isfinite(item.metric) else None,
                "activations": item.activations or FLOATS,
                "chosen": report.is_chosen(item),
            }
            for item in report.table
        ]
        if arguments.curve.endswith(".csv"):
            text = io.StringIO()
            writer = csv.DictWriter(text, ["nbytes", "deflated", "snr_db", "metric", "activations", "chosen"])
            writer.writeheader()
            writer.writerows(rows)
            side.add(arguments.curve, text.getvalue().encode("ascii"))
        else:
            curve = {"schema": 1, "source": report.source, "points": rows}
            side.add_json(arguments.curve, lambda: curve)
    if arguments.plot is not None:
        side.add(arguments.plot, _draw(report, Path(arguments.plot).suffix[1:]))


def _check_ending(path: str | None, option: str, endings: tuple[str, ...]) -> None:
    if path is not None and not path.endswith(endings):
        raise UsageError(f"{option} {path}", remedy=f"name a file that ends in {' or '.join(endings)}")


_LARGEST = 40
"""Constants with a bar of their own."""


def _check_installed() -> None:
    """Raises a UsageError where the library that draws is missing."""
    _matplotlib()


def _draw(report: ShrinkReport, kind: str) -> bytes:
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
    points = [item for item in report.pareto if item.snr is not None and math.isfinite(item.snr)]
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
    chosen = report.encodings
    names, sizes, labels = [], [], []
    for unit in reversed(units):
        encoding = chosen.get(unit.position)
        option = next((item for item in unit.options if item.form == encoding), unit.kept)
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
