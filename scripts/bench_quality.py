"""Measures size against error over a folder of float models, for ours and for litert-quantizer.

    python scripts/bench_quality.py [MODELS] [--inputs FOLDER] [--only WORD ...] [--peer-python PYTHON]
                                    [--work FOLDER] [--json FILE] [--plot FILE.svg]

MODELS (or the environment variable ``TFL_REWRITE_CORPUS``) holds ``NAME.tflite``; the folder of inputs
(``../inputs`` beside it) holds ``NAME.calib.npz``, which may be used to calibrate and to search, and
``NAME.eval.npz``, which alone counts below. The peer (extra ``[bench]``) runs every recipe that it offers, on
the file as it is and on a copy with repaired operator codes; what it makes counts if the interpreter runs it.
What is in the working folder already is not made again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import statistics
import subprocess
import sys
import time
import zlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from bench_models import bench_parser, float_models, inputs_of

from tfl_rewrite import Judging, load
from tfl_rewrite.calibration.rounder import Calibrated, Ordered
from tfl_rewrite.editing.base import run_passes
from tfl_rewrite.errors import TflRewriteError
from tfl_rewrite.files.source import save
from tfl_rewrite.judge.judge import Judge
from tfl_rewrite.judge.settings import Tolerance
from tfl_rewrite.passes.compact import Compact
from tfl_rewrite.passes.dedup import Dedup
from tfl_rewrite.passes.quantize_weights import QuantizeWeights
from tfl_rewrite.passes.remove_dead import RemoveDead, strips
from tfl_rewrite.search.anytime import Anytime
from tfl_rewrite.search.clock import TimeIsUp
from tfl_rewrite.search.goals import Goal
from tfl_rewrite.search.search import key_of, snr_of
from tfl_rewrite.search.session import Session, Wanted
from tfl_rewrite.search.shrink import opened_for
from tfl_rewrite.search.standing import Standing
from tfl_rewrite.search.trials import Frame, Measured, Rounding
from tfl_rewrite.search.units import base_pass
from tfl_rewrite.weights.rounders import Effort

THRESHOLDS = (20.0, 30.0, 40.0)
ABOVE = (4.0, -4.0)
"""Around each threshold, what is searched for too: inputs of the search and of the evaluation differ."""
NEAR = 2.0
"""Files of the search within so many dB of the best of their size are evaluated too."""
ORDERED = 3.0
"""What rounding weight by weight may win, in dB."""
FORMS = (
    ("int8", "channel", "hybrid"),
    ("int8", "channel", "dequantize"),
    ("int6", "channel", "dequantize"),
    ("int4", "channel", "hybrid"),
    ("int4", "channel", "dequantize"),
    ("int4", "block:32", "dequantize"),
)
UNIFORM = (
    ("fast", "float16", "channel", "dequantize"),
    *((effort, *form) for effort in ("fast", "balanced", "best") for form in FORMS),
)
"""What ``quantize-weights`` makes without a search."""
PACKED = (*strips(("names",)), Compact())
"""What ``shrink --strip names`` does last: nothing refers to the names of tensors inside."""
ALIKE = (
    ("dynamic_wi8_afp32", "int8:channel:hybrid"),
    ("weight_only_wi8_afp32", "int8:channel:dequantize"),
    ("dynamic_wi4_afp32", "int4:channel:hybrid"),
    ("weight_only_wi4_afp32", "int4:channel:dequantize"),
)
"""Recipes of the peer, and what stores the weights alike."""
SAME = (0.8, 1.06)
"""Share of the peer's size within which two files count as equally large."""
PEER = Path(__file__).with_name("bench_peer.py")


@dataclass
class Point:
    """One file.

    Attributes:
        maker: ``ours`` or ``peer``, and the recipe.
        nbytes: Its size; deflated beside it.
        snr: Lowest and median SNR over the outputs in dB; infinite where nothing differs, None where it
            does not run.
        agreement: Lowest argmax agreement over the outputs that have one.
        error: Why there is no file, or why it does not run.
        searched: SNR on the inputs of the search, and seconds that all of a model's files took.
    """

    model: str
    maker: str
    recipe: str
    nbytes: int = 0
    deflated: int = 0
    snr: float | None = None
    median_snr: float | None = None
    agreement: float | None = None
    error: str | None = None
    searched: float | None = None
    seconds: float | None = None


def has_old_codes(path: Path) -> bool:
    """Whether an operator's number stands in the older field only."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.Model.GetRootAs(path.read_bytes(), 0)
    codes = [model.OperatorCodes(index) for index in range(model.OperatorCodesLength())]
    return any(code.BuiltinCode() < code.DeprecatedBuiltinCode() for code in codes)


def judged(judge: Judge, path: Path, point: Point, *, signs: bool = True) -> Point:
    """Measures a file that was made.

    Args:
        judge: Of files made from the original.
        path: The file.
        point: What is known of it.
        signs: Whether its signatures are the original's, and not added by who made it.
    """
    data = path.read_bytes()
    point.nbytes, point.deflated = len(data), len(zlib.compress(data, 9))
    if not signs:
        model = load(data)
        model.signatures.clear()
        save(model, path, force=True)
    verdict = judge.compare(path, tolerance=Tolerance(min_snr=None))
    broken = [reason for reason in verdict.reasons if "does not run" in reason or "interface" in reason]
    if broken or not verdict.outputs:
        point.error = broken[0] if broken else "no outputs"
        return point
    # An output that is zero in the original has no ratio.
    counted = [item for item in verdict.outputs if item.bit_exact or item.reference_peak]
    found = sorted(
        math.inf if item.bit_exact else -math.inf if item.snr_db is None else item.snr_db for item in counted
    )
    if not found:
        point.error = "its outputs are zero"
        return point
    point.snr, point.median_snr = found[0], statistics.median(found)
    agreement = [item.argmax_agreement for item in verdict.outputs if item.argmax_agreement is not None]
    point.agreement = min(agreement, default=None)
    return point


def peer_points(path: Path, inputs: Path, folder: Path, python: str, judge: Judge) -> list[Point]:
    """Runs every recipe of the peer on a model, and on its repaired copy if that makes a difference."""
    known = json.loads(subprocess.run([python, PEER, "list"], capture_output=True, check=True).stdout)
    # The same recipes under another name.
    known = [name for name in known if name not in ("dynamic_wi8c_afp32", "dynamic_wi4c_afp32")]
    points: list[Point] = []
    seen: dict[str, Point] = {}
    signed = bool(load(path).signatures)
    for repair in (False, True) if has_old_codes(path) else (False,):
        place = folder / ("repaired" if repair else "plain")
        place.mkdir(parents=True, exist_ok=True)
        static = [name for name in known if name.startswith("static")]
        for names in ([name for name in known if name not in static], *([name] for name in static)):
            command = [python, str(PEER), ",".join(names), str(path), str(place)]
            command += ["--calib", str(inputs / f"{path.stem}.calib.npz")] + ["--repair"] * repair
            done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
            told = {}
            for line in done.stdout.splitlines():
                if line.startswith("{"):
                    row = json.loads(line)
                    told[row["recipe"]] = row["error"]
            for name in names:
                error = told.get(name, f"the process ended with {done.returncode}")
                made = place / f"{name}.tflite"
                point = Point(path.stem, "peer", f"{name}{' (repaired)' if repair else ''}", error=error)
                if error is None and made.exists():
                    key = hashlib.sha256(made.read_bytes()).hexdigest()
                    if key in seen:
                        point = Point(**{**asdict(seen[key]), "recipe": point.recipe})
                    else:
                        point = seen[key] = judged(judge, made, point, signs=signed or not repair)
                made.unlink(missing_ok=True)
                points.append(point)
    return points


def uniform_points(path: Path, inputs: Path, judge: Judge, made: Path) -> list[Point]:
    """Stores all constants alike, rounded for the calibration inputs unless the effort is ``fast``."""
    points = []
    rounders = {
        effort: Calibrated(
            Judging(inputs=(inputs / f"{path.stem}.calib.npz",)),
            effort=effort,
            ordered=Ordered() if effort is Effort.BEST else None,
        )
        for effort in (Effort.BALANCED, Effort.BEST)
    }
    for effort, dtype, granularity, scheme in UNIFORM:
        began = time.monotonic()
        weights = QuantizeWeights(dtype=dtype, granularity=granularity, scheme=scheme, effort=effort)
        weights = replace(weights, rounder=rounders.get(Effort(effort), weights.rounder))
        model = load(path)
        point = Point(path.stem, "ours", f"{dtype}:{granularity}:{scheme} {effort}")
        points.append(point)
        try:
            run_passes(model, [*[RemoveDead()], Dedup(), weights])
            # With the strings and defaults stored once, as the search stores them.
            packing = [result.packing for result in run_passes(model, PACKED)]
            save(model, made, force=True, packing=next((item for item in packing[::-1] if item), None))
        except TflRewriteError as error:
            point.error = str(error)
            continue
        judged(judge, made, point)
        point.seconds = round(time.monotonic() - began, 1)
    made.unlink(missing_ok=True)
    return points


def our_points(path: Path, inputs: Path, judge: Judge, made: Path, limit: float | None) -> list[Point]:
    """Searches as ``shrink`` does with the calibration inputs, and measures what is found with the others."""
    calibration = (inputs / f"{path.stem}.calib.npz",)
    wanted = Wanted(
        goal=Goal(min_snr=THRESHOLDS[0], time_limit=limit, sure=False),
        base=base_pass(QuantizeWeights(effort="balanced")),
        frame=Frame(path, [RemoveDead(), Dedup()], PACKED),
        # All of the file serves for searching: what judges lies in another one, and never settles a step.
        judging=Judging(inputs=calibration, holdout=calibration),
    )
    points = []
    began = time.monotonic()
    with opened_for(wanted) as opened:
        found = nearest_first(searched(opened))
        # Files that were measured are made for all samples, however long the search took.
        opened.clock.limit = None
        searched_at = time.monotonic()
        for item in found:
            if time.monotonic() - searched_at > (limit or math.inf) * 0.5:
                break
            opened.trials.finish(item)
            made.write_bytes(opened.trials.path.read_bytes())
            counts = Counter(encoding.text for encoding in item.choice.values())
            recipe = ", ".join(f"{count} x {text}" for text, count in counts.most_common()) or "kept"
            recipe += " in order" * (item.rounding is Rounding.IN_ORDER)
            point = judged(judge, made, Point(path.stem, "ours", recipe))
            point.searched = snr_of(item)
            points.append(point)
        made.unlink(missing_ok=True)
    for point in points:
        point.seconds = round(time.monotonic() - began, 1)
    return points


def searched(opened: Session) -> list[Measured]:
    """Returns all files that searches for each threshold went through, none far off those of its size."""
    goal, curve, known = opened.wanted.goal, list[Measured](), set[object]()
    with opened.judge() as judge:
        for number, threshold in enumerate(THRESHOLDS, 1):
            opened.clock.share = number / len(THRESHOLDS)
            # Each by itself: a search drops the encodings that are of no use to its bound.
            search = opened.unmeasured()
            original = search.whole({}, Rounding.FITTED)
            standing = Standing(
                opened.trials, replace(goal, min_snr=threshold), judge, opened.clock, original
            )
            Anytime(opened, search, standing).run()
            if all(option.noise is not None for unit in search.units for option in unit.options):
                # What search and evaluation inputs say differs: steps around the threshold.
                with contextlib.suppress(TimeIsUp):
                    for step in ABOVE:
                        search.find(Goal(min_snr=threshold + step, sure=False))
            curve += search.curve
            known |= set(search.known)
    best, found = -math.inf, list[Measured]()
    for item in sorted(curve, key=lambda item: item.nbytes):
        # Neither smaller nor better than another, by far.
        if snr_of(item) <= best - NEAR:
            continue
        found.append(item)
        near = any(-ORDERED <= snr_of(item) - threshold <= 1.0 for threshold in THRESHOLDS)
        ordered = replace(item, rounding=Rounding.IN_ORDER)
        # Rounded weight by weight, too, where it is near a threshold.
        if snr_of(item) > best and near and (ordered.rounding, key_of(item.choice)) not in known:
            found.append(ordered)
        best = max(best, snr_of(item))
    return found


def nearest_first(found: Iterable[Measured]) -> list[Measured]:
    """Orders files by how near to a threshold they are, those that are just above it first."""

    def off(item: Measured) -> float:
        apart = (snr_of(item) - threshold for threshold in THRESHOLDS)
        return min(each if each >= 0 else -2 * each for each in apart)

    return sorted(found, key=off)


def table(rows: list[dict[str, object]]) -> list[str]:
    """The result as lines: sizes over the original's at each threshold, and ours over the peer's."""
    lines = ["| model | bytes | " + " | ".join(f"{t:g} dB: ours, peer, ratio" for t in THRESHOLDS) + " |"]
    lines.append("|" + "---|" * (2 + len(THRESHOLDS)))
    for row in rows:
        cells = []
        for entry in row["thresholds"]:  # type: ignore[attr-defined]
            ours, theirs, ratio = entry["ours"], entry["peer"], entry["ratio"]
            mark = " larger" if ratio is not None and ratio > 1 else ""
            told = [f"{value:.3f}" if value is not None else "none" for value in (ours, theirs, ratio)]
            cells.append(", ".join(told) + mark)
        lines.append(f"| {row['model']} | {row['nbytes']:,} | " + " | ".join(cells) + " |")
    for index, threshold in enumerate(THRESHOLDS):
        ratios = [row["thresholds"][index]["ratio"] for row in rows]  # type: ignore[index]
        known = [ratio for ratio in ratios if ratio is not None]
        if known:
            larger = sum(ratio > 1 for ratio in known)
            lines.append(
                f"{threshold:g} dB: geometric mean {statistics.geometric_mean(known):.3f} of the peer's"
                f" smallest, {len(known)} models, larger on {larger}"
            )
    return lines


def alike(points: list[Point]) -> list[str]:
    """The same encodings as lines: by how many dB our SNR is above the peer's, median and least."""
    lines = []
    for recipe, text in ALIKE:
        for effort in ("balanced", "best"):
            found, apart = {}, 0
            for name in dict.fromkeys(point.model for point in points):
                own = [point for point in points if point.model == name and point.snr is not None]
                theirs = [p for p in own if p.maker == "peer" and p.recipe.split(" (")[0] == recipe]
                ours = [p for p in own if p.maker == "ours" and p.recipe == f"{text} {effort}"]
                # The copy with repaired codes where it makes a difference; what is exact was not quantized.
                finite = [(p.snr, p.nbytes) for p in theirs if p.snr is not None and math.isfinite(p.snr)]
                if not finite or not ours or not math.isfinite(ours[0].snr or 0.0):
                    continue
                snr, nbytes = min(finite, key=lambda item: item[1])
                if SAME[0] <= ours[0].nbytes / nbytes <= SAME[1]:
                    found[name] = (ours[0].snr or 0.0) - snr
                else:
                    # One of the two quantizes what the other does not.
                    apart += 1
            if found:
                worst = min(found, key=lambda name: found[name])
                low = sum(gain < -0.3 for gain in found.values())
                lines.append(
                    f"{text} {effort} against {recipe}: median {statistics.median(found.values()):+.1f} dB,"
                    f" least {found[worst]:+.1f} dB ({worst}), below by over 0.3 dB on {low} of {len(found)};"
                    f" {apart} more are not of the same size"
                )
    return lines


def compared(path: Path, ours: list[Point], theirs: list[Point]) -> dict[str, object]:
    """Our smallest file over the peer's smallest, at each threshold; the original counts as its worst."""
    size = path.stat().st_size
    found = []
    for threshold in THRESHOLDS:
        mine, other = smallest(ours, threshold), smallest(theirs, threshold)
        least, own = (min(item.nbytes, size) if item is not None else size for item in (other, mine))
        found.append(
            {
                "threshold": threshold,
                "ours": own / size,
                "peer": least / size,
                "ratio": own / least,
                "recipe": mine.recipe if mine is not None else None,
                "peer_recipe": other.recipe if other is not None else "the original",
            }
        )
    return {"model": path.stem, "nbytes": size, "thresholds": found}


def draw(points: list[Point], sizes: dict[str, int], target: Path) -> None:
    """Draws size against error, a field for each model."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(dict.fromkeys(point.model for point in points))
    columns = 3
    rows = -(-len(names) // columns)
    figure, axes = pyplot.subplots(rows, columns, figsize=(5 * columns, 3 * rows), squeeze=False)
    for place, name in zip(axes.flat, names, strict=False):
        for maker, sign in (("peer", "x"), ("ours", ".-")):
            own = [p for p in points if p.model == name and p.maker == maker and p.snr is not None]
            own = sorted((p for p in own if math.isfinite(p.snr or 0.0)), key=lambda p: p.nbytes)
            place.plot([p.nbytes / sizes[name] for p in own], [p.snr for p in own], sign, label=maker)
        place.set_title(name[-40:], fontsize=8)
        place.set_xlim(0, 1.05)
        place.set_ylim(0, 80)
        place.legend(fontsize=6)
    figure.supxlabel("size over the original's")
    figure.supylabel("lowest SNR of an output, dB")
    figure.tight_layout()
    figure.savefig(target)


def smallest(points: Iterable[Point], threshold: float) -> Point | None:
    """The smallest file that keeps a threshold."""
    good = [point for point in points if point.snr is not None and point.snr >= threshold]
    return min(good, key=lambda point: point.nbytes, default=None)


def main() -> None:
    parser = bench_parser(__doc__)
    parser.add_argument("--peer-python", default=sys.executable, help="Python that has litert-quantizer")
    parser.add_argument("--json", type=Path, default=None, help="write the table and all points")
    parser.add_argument("--plot", type=Path, default=None, help="draw size against error")
    parser.add_argument("--known", action="store_true", help="only what the working folder knows already")
    parser.add_argument("--time-limit", type=float, default=None, help="seconds for each model's search")
    parser.add_argument("--no-search", action="store_true", help="only one encoding for all constants")
    parser.add_argument("--work", type=Path, default=Path("bench-quality"), help="working folder")
    arguments = parser.parse_args()
    inputs = inputs_of(parser, arguments)
    arguments.work.mkdir(parents=True, exist_ok=True)
    rows, everything, sizes = [], [], {}
    for path in float_models(arguments, inputs):
        evaluation = inputs / f"{path.stem}.eval.npz"
        kept, own = (arguments.work / f"{path.stem}.{maker}.json" for maker in ("peer", "ours"))
        if arguments.known and not (kept.exists() and own.exists()):
            continue
        if not kept.exists():
            with Judge(path, Judging(inputs=[evaluation])) as judge:
                points = peer_points(path, inputs, arguments.work / path.stem, arguments.peer_python, judge)
            kept.write_text(json.dumps([asdict(point) for point in points], indent=1))
        if not own.exists():
            try:
                with Judge(path, Judging(inputs=[evaluation])) as judge:
                    made = arguments.work / f"{path.stem}.tflite"
                    points = uniform_points(path, inputs, judge, made)
                    if not arguments.no_search:
                        points += our_points(path, inputs, judge, made, arguments.time_limit)
            except TflRewriteError as error:
                print(f"{path.stem}: {error}", flush=True)
                points = []
            own.write_text(json.dumps([asdict(point) for point in points], indent=1))
        theirs, ours = ([Point(**row) for row in json.loads(file.read_text())] for file in (kept, own))
        rows.append(compared(path, ours, theirs))
        everything += [*theirs, *ours]
        sizes[path.stem] = path.stat().st_size
        print(table(rows[-1:])[2], flush=True)
    lines = [*table(rows), *alike(everything)]
    print("\n".join(lines))
    if arguments.json is not None:
        facts = {"models": rows, "summary": lines, "points": [asdict(point) for point in everything]}
        arguments.json.write_text(json.dumps(facts, indent=1))
    if arguments.plot is not None:
        draw(everything, sizes, arguments.plot)


if __name__ == "__main__":
    main()
