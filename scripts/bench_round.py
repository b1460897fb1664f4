"""Compares ``round-weights`` with the rounding of graph_transforms on a folder of float models.

    python scripts/bench_round.py [MODELS] [--inputs FOLDER] [--only WORD ...] [--json FILE]

MODELS (or the environment variable ``TFL_REWRITE_CORPUS``) holds ``NAME.tflite``; the folder of inputs
(``../inputs`` beside it) holds ``NAME.calib.npz``, which the search measures with, and ``NAME.eval.npz``,
which alone counts below. The reference is ``round_weights(num_steps=256)``: per tensor, linear buckets from
the smallest to the largest value, the value becomes the centre of its bucket, tensors of fewer than 16
elements stay. Ours must have the lowest SNR over the outputs that the reference has. Where the reference
breaks the model (cosine under 0.9) ours must have 30 dB in the table, and a line below says what it takes at
the SNR of the reference.

Ours is the smaller file of ``--steps N`` and of what a search proposes. Both files are compared at the same
SNR on ``eval``, so what the search aims at is moved until its proposal just holds there. From one proposal
to the next the SNR on a few samples scatters, by some dB behind a SOFTMAX; where it does, up to 60 proposals
a little under that aim are tried as well, the smallest first, and the smallest that holds counts. The column
"how" says which it was: ``--steps N``, or the aim in dB; "tries" counts the proposals judged on ``eval``.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from bench_models import bench_parser, inputs_of

from tfl_rewrite import load, save
from tfl_rewrite.calibration.fitter import Fitter
from tfl_rewrite.editing.base import Context
from tfl_rewrite.errors import TflRewriteError
from tfl_rewrite.judge.judge import Judge
from tfl_rewrite.judge.settings import Judging, Tolerance
from tfl_rewrite.judge.verdict import Verdict
from tfl_rewrite.model.blob import OwnedBlob
from tfl_rewrite.passes.round_weights import RoundWeights
from tfl_rewrite.search.goals import Goal
from tfl_rewrite.search.session import Session
from tfl_rewrite.search.shrink import choices_session

STEPS = 256
LEAST_ELEMENTS = 16
BROKEN_COSINE = 0.9
BROKEN_TARGET = 30.0
GOAL = 0.85
# Beyond this an output is as good as equal, and no ratio is worth raising a target for.
EXACT = 100.0
ATTEMPTS = 12
Propose = Callable[[float], tuple[RoundWeights, float]]
# Proposals under the aim that holds: how far apart at least, what is close by, how far down at most (in dB),
# and how many.
GAP, NEAR, REACH, DRAWS = 0.15, 6.0, 16.0, 60


@dataclass
class Row:
    """One model: deflated sizes, and lowest SNR over the outputs on ``eval``."""

    name: str
    nbytes: int
    plain: int
    reference: int
    reference_snr: float
    cosine: float
    ours: int = 1 << 62
    ours_snr: float = -math.inf
    how: str = ""
    seconds: float = 0.0
    files: int = 0
    tries: int = 0
    loose: int = 0
    """Ours at the SNR of a reference that breaks the model; 0 elsewhere."""

    @property
    def ratio(self) -> float:
        return self.ours / self.reference

    @property
    def broken(self) -> bool:
        return self.cosine < BROKEN_COSINE

    @property
    def target(self) -> float:
        return BROKEN_TARGET if self.broken else self.reference_snr

    @property
    def held(self) -> bool:
        return self.ours_snr >= min(self.target, EXACT)


def round_linear(values: np.ndarray, steps: int) -> np.ndarray:
    """Replaces each value by the centre of its bucket."""
    low, high = float(values.min()), float(values.max())
    if high <= low:
        return values
    width = (high - low) / steps
    bucket = np.clip(np.floor((values.astype(np.float64) - low) / width), 0, steps - 1)
    return (low + (bucket + 0.5) * width).astype(values.dtype)


def write_reference(source: Path, target: Path) -> bool:
    """Writes the file that graph_transforms would; returns whether most constant bytes are floats."""
    model = load(source)
    done: set[int] = set()
    floats = 0
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            blob = tensor.buffer.blob
            numpy_type = {"FLOAT32": "<f4", "FLOAT16": "<f2"}.get(tensor.dtype_name)
            if blob is None or numpy_type is None or not tensor.is_constant or id(tensor.buffer) in done:
                continue
            values = np.frombuffer(blob.view(), numpy_type)
            if values.size >= LEAST_ELEMENTS and np.isfinite(values).all():
                tensor.buffer.blob = OwnedBlob(round_linear(values, STEPS).tobytes())
                done.add(id(tensor.buffer))
                floats += values.nbytes
    save(model, target, force=True)
    return floats > sum(buffer.nbytes for buffer in model.buffers) / 2


def deflated(path: Path) -> int:
    return len(zlib.compress(path.read_bytes(), 9))


def lowest(verdict: Verdict) -> float:
    found = verdict.worst_snr()
    return math.inf if found is None else found


@dataclass
class Contest:
    """Ours against the reference, on one model."""

    path: Path
    ours: Path
    judge: Judge
    row: Row

    @property
    def wanted(self) -> float:
        return min(self.row.target, EXACT)

    def snr_of(self, settings: RoundWeights) -> float:
        """Writes ours and returns its lowest SNR."""
        model = load(self.path)
        settings.run(model, Context())
        save(model, self.ours, force=True)
        self.row.tries += 1
        return lowest(self.judge.compare(self.ours))

    def enter(self, snr: float, how: str) -> None:
        """Lets the file that was written last stand for ours if it is the best so far."""
        row, holds = self.row, snr >= self.wanted
        if row.held > holds or (not holds and snr <= row.ours_snr):
            return
        size = deflated(self.ours)
        if (holds, -size if holds else snr) > (row.held, -row.ours if row.held else row.ours_snr):
            row.ours, row.ours_snr, row.how = size, snr, how

    def by_steps(self, judging: Judging) -> None:
        """Tries plain numbers of steps, finest first."""
        tried, plain = [], replace(RoundWeights(), fitting=Fitter(judging))
        for steps in (512, 256, 128, 64, 32):
            tried.append((steps, self.snr_of(replace(plain, steps=steps))))
            if tried[-1][1] < self.wanted:
                break
        steps, snr = max((item for item in tried if item[1] >= self.wanted), default=tried[0], key=_coarsest)
        self.snr_of(replace(plain, steps=steps))
        self.enter(snr, f"--steps {steps}")

    def by_search(self, propose: Propose) -> None:
        """Moves the aim until ours just holds; then tries a little under it."""
        aim, low, high = self.wanted, -math.inf, math.inf
        surplus: dict[float, float] = {}
        holding: tuple[float, RoundWeights] | None = None
        for _ in range(ATTEMPTS):
            made = propose(aim)[0]
            if not made.choices:
                return
            snr = min(self.snr_of(made), 200.0)
            surplus[aim] = snr - aim
            if snr >= self.wanted:
                high, holding = min(high, aim), (aim, made) if aim <= high else holding
                aim -= min(20.0, max(0.5, snr - self.wanted))
            else:
                self.enter(snr, f"{aim:.1f} dB")
                low = max(low, aim)
                aim += min(20.0, max(0.5, self.wanted - snr + 0.1))
            if not low < aim < high and math.isfinite(low + high):
                aim = (low + high) / 2
            if high - low < GAP:
                break
        if holding is None:
            return
        self.enter(self.snr_of(holding[1]), f"{holding[0]:.1f} dB")
        # Far from the aim the surplus changes for good reasons; what counts is how it scatters close to it.
        near = [value for aim, value in surplus.items() if abs(aim - holding[0]) < NEAR]
        scatter = max(near) - min(near)
        self.by_draws(propose, holding[0], min(REACH, 2 * scatter))

    def by_draws(self, propose: Propose, aim: float, reach: float) -> None:
        """Tries proposals a little under an aim that holds, smallest first, and goes on from what holds."""
        seen: set[float] = set()
        count = min(2 * DRAWS // 3, int(reach / GAP))
        while len(seen) < DRAWS:
            # Closer together near the aim, where more of them hold.
            aims = [aim - reach * ((number + 1) / count) ** 1.5 for number in range(count)]
            draws = [(propose(lower), lower) for lower in aims if round(lower, 2) not in seen]
            for (made, _), lower in sorted(draws, key=lambda draw: draw[0][1])[: DRAWS - len(seen)]:
                seen.add(round(lower, 2))
                snr = self.snr_of(made)
                if snr >= self.wanted:
                    self.enter(snr, f"{lower:.1f} dB")
                    aim = lower
                    break
            else:
                return


def proposals_of(opened: Session, aim: float) -> Propose:
    """Measures constants near a ratio; returns what proposes a rounding for one, with its expected size."""
    search = opened.grids(aim)

    def propose(aim: float) -> tuple[RoundWeights, float]:
        choice, nbytes = search.propose(aim)
        (made,) = opened.trials.passes(choice)
        assert isinstance(made, RoundWeights)
        return made, nbytes

    return propose


def _coarsest(tried: tuple[int, float]) -> int:
    return -tried[0]


def measure(path: Path, inputs: Path, folder: Path) -> Row | None:
    """Makes both files of a model and judges them; None where there is nothing to compare."""
    reference, ours = folder / "reference.tflite", folder / "ours.tflite"
    calib, evaluation = inputs / f"{path.stem}.calib.npz", inputs / f"{path.stem}.eval.npz"
    if not write_reference(path, reference) or not calib.exists() or not evaluation.exists():
        return None
    started = time.monotonic()
    with Judge(path, Judging(inputs=[evaluation], tolerance=Tolerance(min_snr=None))) as judge:
        verdict = judge.compare(reference)
        if verdict.status == "unverified":
            return None
        row = Row(
            name=path.stem,
            nbytes=path.stat().st_size,
            plain=deflated(path),
            reference=deflated(reference),
            reference_snr=lowest(verdict),
            cosine=min((item.cosine for item in verdict.outputs if item.cosine is not None), default=1.0),
        )
        contest = Contest(path, ours, judge, row)
        settings = Judging(inputs=(calib,))
        contest.by_steps(settings)
        goal = Goal(min_snr=contest.wanted)
        with choices_session(path, RoundWeights(), settings, goal) as opened:
            propose = proposals_of(opened, contest.wanted)
            contest.by_search(propose)
            if row.broken:
                # Not broken by its own measure: what is wanted is no more than the reference has.
                loose = replace(row, cosine=1.0, ours=1 << 62, ours_snr=-math.inf)
                Contest(path, ours, judge, loose).by_search(propose)
                row.loose = loose.ours
            row.files = opened.trials.files
    row.seconds = time.monotonic() - started
    return row


def line(row: Row) -> str:
    marks = ("" if row.held else " SNR LOWER") + (" LARGER" if row.ratio > 1 else "")
    return (
        f"{row.name[-52:]:52s} {row.nbytes:9,d} {row.plain:9,d} {row.reference:9,d} {row.reference_snr:6.1f} "
        f"{row.cosine:5.3f} {row.ours:9,d} {row.ours_snr:6.1f} {row.how:>11s} {row.ratio:6.3f} "
        f"{row.files:5d} {row.tries:5d} {row.seconds:6.1f}{marks}"
    )


def main() -> None:
    parser = bench_parser(__doc__)
    parser.add_argument("--json", type=Path, default=None, help="write the rows")
    arguments = parser.parse_args()
    inputs = inputs_of(parser, arguments)
    print(
        f"{'model':52s} {'bytes':>9s} {'deflated':>9s} {'ref':>9s} {'SNR':>6s} {'cos':>5s} {'ours':>9s} "
        f"{'SNR':>6s} {'how':>11s} {'ratio':>6s} {'files':>5s} {'tries':>5s} {'s':>6s}",
        flush=True,
    )
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="tfl-rewrite-bench-") as folder:
        for path in sorted(arguments.models.glob("*.tflite")):
            if arguments.only and not any(word in path.stem for word in arguments.only):
                continue
            try:
                row = measure(path, inputs, Path(folder))
            except TflRewriteError as error:
                print(f"not compared: {error}", flush=True)
                continue
            if row is not None:
                rows.append(row)
                print(line(row), flush=True)
                if arguments.json is not None:
                    arguments.json.write_text(json.dumps([vars(item) for item in rows], indent=1))
    if not rows:
        print("no model with float constants and inputs")
        return
    print(
        f"{len(rows)} models; geometric mean of ours / reference {mean(rows):.3f} (goal {GOAL}); larger on "
        f"{sum(row.ratio > 1 for row in rows)}; SNR lower on {sum(not row.held for row in rows)}"
    )
    noisy = [row for row in rows if math.isfinite(row.reference_snr)]
    print(f"of these, {len(noisy)} whose outputs the reference changes: {mean(noisy):.3f}")
    broken = [row for row in rows if row.broken]
    if broken:
        lowest_of_ours = min(row.ours_snr for row in broken)
        print(
            f"of these, {len(broken)} that the reference breaks: {mean(broken):.3f}, and ours has at least "
            f"{lowest_of_ours:.1f} dB there"
        )
        for row in broken:
            share = f"{row.loose:,} bytes, {row.loose / row.reference:.3f}"
            print(f"{row.name[-52:]}: at the {row.reference_snr:.1f} dB of the reference {share}")


def mean(rows: Sequence[Row]) -> float:
    """Returns the geometric mean of the ratios."""
    return math.exp(sum(math.log(row.ratio) for row in rows) / max(1, len(rows)))


if __name__ == "__main__":
    main()
