"""Measures what fitting to inputs wins on inputs that were not seen, for two versions of the program.

    python scripts/bench_holdout.py [MODELS] [--inputs FOLDER] [--only WORD ...] [--base PYTHON]
                                    [--dtype TYPE ...] [--scheme NAME ...] [--draws N] [--work FOLDER]

MODELS (or the environment variable ``TFL_REWRITE_CORPUS``) holds ``NAME.tflite``; the folder of inputs
(``../inputs`` beside it) holds ``NAME.calib.npz``, which weights are fitted to, and ``NAME.eval.npz``, which
judges. With ``--draws 2`` the two also change places: eight samples tell no more than 1.5 dB.

Each file is made by a whole process, ``quantize-weights --effort fast`` (uncalibrated) and ``--effort
balanced --inputs``, with this program and with that of another environment (``--base``), and all files are
judged by this one. A figure is the lowest SNR over the outputs; behind a slash, where a model ends in a
SOFTMAX, LOGISTIC or TANH, the lowest before it, since outputs that are sure of themselves hide noise. What is
in the working folder already is not made again.
"""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bench_models import bench_parser, float_models, inputs_of
from bench_quality import Point, judged

from tfl_rewrite.judge.judge import Judge
from tfl_rewrite.judge.settings import Judging
from tfl_rewrite.pipeline.copies import open_outputs

EXACT = 100.0
"""Beyond this an output is as good as equal, and would decide all means."""
EFFORTS = ("fast", "balanced")
Draw = tuple[Path, Path]
"""The inputs to fit to, and those that judge."""


@dataclass(frozen=True)
class Row:
    """One file: who made it and how, its size, its figures in dB, and what the process took."""

    model: str
    form: str
    draw: int
    maker: str
    effort: str
    nbytes: int
    snr: float | None
    inside: float | None
    seconds: float
    error: str


class Maker:
    """One version of the program.

    Args:
        name: For tables and the working folder.
        python: Of its environment.
    """

    def __init__(self, name: str, python: str) -> None:
        self.name = name
        self._command = [python, "-P", "-m", "tfl_rewrite", "quantize-weights"]
        shown = subprocess.run([*self._command, "--help"], capture_output=True, text=True, check=True)
        self._holds_out = "--holdout" in shown.stdout

    def make(self, path: Path, made: Path, form: str, effort: str, draw: Draw) -> str:
        """Makes a file; returns why there is none, or nothing."""
        dtype, scheme = form.split(":")
        command = [*self._command, str(path), str(made), "--dtype", dtype, "--scheme", scheme]
        command += ["--effort", effort, "--verify", "off", "--force", "-q"]
        if effort != "fast":
            command += ["--inputs", str(draw[0])]
            # What judges lies in another file: all of these may be fitted to.
            command += ["--holdout", str(draw[1])] if self._holds_out else []
        done = subprocess.run(command, capture_output=True, text=True)
        return (done.stderr.strip().splitlines() or [""])[-1] if done.returncode else ""


class Judges:
    """Judges of the files made of one model: of its outputs, and before the last SOFTMAX and the like.

    Args:
        path: The model.
        inputs: Judge.
        work: For copies.
    """

    def __init__(self, path: Path, inputs: Path, work: Path) -> None:
        self._opened, self._trial = work / "opened.tflite", work / "opened-made.tflite"
        self._opened.unlink(missing_ok=True)
        has_inside = open_outputs(path, self._opened, centred=True) > 0
        self._judge = Judge(path, Judging(inputs=[inputs]))
        self._inside = Judge(self._opened, Judging(inputs=[inputs])) if has_inside else None

    def __enter__(self) -> Judges:
        return self

    def __exit__(self, *_: object) -> None:
        for judge in (self._judge, self._inside):
            if judge is not None:
                judge.close()

    def figures(self, made: Path) -> tuple[float | None, float | None, str]:
        """Returns both figures, and why there is none."""
        found = judged(self._judge, made, Point("", "", ""))
        inside = None
        if self._inside is not None:
            self._trial.unlink(missing_ok=True)
            if open_outputs(made, self._trial, centred=True):
                inside = judged(self._inside, self._trial, Point("", "", "")).snr
        return _bounded(found.snr), _bounded(inside), found.error or ""


def _bounded(snr: float | None) -> float | None:
    return None if snr is None or math.isnan(snr) else max(-EXACT, min(snr, EXACT))


def measured(
    path: Path, makers: Sequence[Maker], forms: Sequence[str], draws: Sequence[Draw], work: Path
) -> list[Row]:
    """Makes and judges the files of one model."""
    rows = []
    for number, draw in enumerate(draws):
        with Judges(path, draw[1], work) as judges:
            for form in forms:
                for maker in makers:
                    for effort in EFFORTS:
                        key = f"{path.stem}.{form.replace(':', '.')}.{number}.{maker.name}.{effort}.json"
                        kept = work / key
                        if not kept.exists():
                            row = _made(path, maker, form, effort, (number, draw), judges, work)
                            kept.write_text(json.dumps(asdict(row)))
                        rows.append(Row(**json.loads(kept.read_text())))
    return rows


def _made(
    path: Path, maker: Maker, form: str, effort: str, draw: tuple[int, Draw], judges: Judges, work: Path
) -> Row:
    made = work / "made.tflite"
    made.unlink(missing_ok=True)
    began = time.monotonic()
    error = maker.make(path, made, form, effort, draw[1])
    seconds = round(time.monotonic() - began, 2)
    snr = inside = None
    if not error:
        snr, inside, error = judges.figures(made)
    nbytes = made.stat().st_size if made.exists() else 0
    return Row(path.stem, form, draw[0], maker.name, effort, nbytes, snr, inside, seconds, error)


def table(rows: Sequence[Row], makers: Sequence[str]) -> list[str]:
    """Returns the tables, one for each form, with the gains below."""
    lines = []
    for form in dict.fromkeys(row.form for row in rows):
        own = [row for row in rows if row.form == form]
        columns = [(maker, effort) for effort in EFFORTS for maker in makers]
        heads = " | ".join(f"{maker}, {effort}" for maker, effort in columns)
        lines += ["", f"### {form}", "", f"| model | {heads} | bytes: {', '.join(makers)} |"]
        lines.append("|---|" + "---:|" * (len(columns) + 1))
        for name in dict.fromkeys(row.model for row in own):
            mine = [row for row in own if row.model == name]
            cells = [_cell([row for row in mine if (row.maker, row.effort) == column]) for column in columns]
            sizes = [next((row.nbytes for row in mine if row.maker == maker), 0) for maker in makers]
            told = ", ".join(f"{nbytes:,}" for nbytes in sizes)
            lines.append(f"| {name} | {' | '.join(cells)} | {told} |")
        lines += ["", *gains(own, makers)]
    return lines


def _cell(rows: Iterable[Row]) -> str:
    return ", ".join(
        _text(row.snr) + (f" / {_text(row.inside)}" if row.inside is not None else "") for row in rows
    )


def _text(snr: float | None) -> str:
    return "-" if snr is None else "exact" if snr >= EXACT else f"{snr:.1f}"


def gains(rows: Sequence[Row], makers: Sequence[str]) -> list[str]:
    """Returns what fitting wins over not fitting, and one version over the other."""
    pairs = [
        (f"{maker}, calibrated over uncalibrated", (maker, "balanced"), (maker, "fast")) for maker in makers
    ]
    if len(makers) > 1:
        pairs += [
            (f"{effort}, {makers[-1]} over {makers[0]}", (makers[-1], effort), (makers[0], effort))
            for effort in EFFORTS
        ]
    lines = []
    for what, one, other in pairs:
        for figure in ("snr", "inside"):
            found = {
                (row.maker, row.effort, row.model, row.draw): getattr(row, figure)
                for row in rows
                if getattr(row, figure) is not None
            }
            won = sorted(
                (value - found[(*other, *key[2:])], key[2])
                for key, value in found.items()
                if key[:2] == one and (*other, *key[2:]) in found
            )
            if won:
                where = "at the outputs" if figure == "snr" else "before a last SOFTMAX or the like"
                lines.append(
                    f"- {what}, {where}: mean {statistics.fmean(gain for gain, _ in won):+.2f} dB,"
                    f" least {won[0][0]:+.2f} dB ({won[0][1]}), {len(won)} figures"
                )
    for maker in makers:
        spent = sum(row.seconds for row in rows if row.maker == maker and row.effort == "balanced")
        lines.append(f"- {maker}, calibrated: {spent:.0f} s in all")
    return lines


def main() -> None:
    parser = bench_parser(__doc__)
    parser.add_argument("--base", default=None, help="Python of an environment with another version")
    parser.add_argument("--new", default=sys.executable, help="Python of this version's (default: this one)")
    parser.add_argument("--dtype", nargs="+", default=["int8"])
    parser.add_argument("--scheme", nargs="+", default=["hybrid", "dequantize"])
    parser.add_argument("--draws", type=int, default=1, choices=(1, 2))
    parser.add_argument("--work", type=Path, default=Path("bench-holdout"), help="working folder")
    arguments = parser.parse_args()
    inputs = inputs_of(parser, arguments)
    arguments.work.mkdir(parents=True, exist_ok=True)
    makers = [Maker("base", arguments.base)] if arguments.base else []
    makers.append(Maker("new", arguments.new))
    forms = [f"{dtype}:{scheme}" for dtype in arguments.dtype for scheme in arguments.scheme]
    rows = []
    for path in float_models(arguments, inputs):
        calib, evaluation = (inputs / f"{path.stem}.{part}.npz" for part in ("calib", "eval"))
        draws = [(calib, evaluation), (evaluation, calib)][: arguments.draws]
        rows += measured(path, makers, forms, draws, arguments.work)
        print(path.stem, file=sys.stderr, flush=True)
    print("\n".join(table(rows, [maker.name for maker in makers])))


if __name__ == "__main__":
    main()
