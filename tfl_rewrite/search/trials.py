"""Makes files with some constants stored otherwise, and measures them."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tfl_rewrite.editing.base import Context, Pass, last_packing, run_passes
from tfl_rewrite.errors import TflRewriteError, UnsupportedError
from tfl_rewrite.files.store import load, save
from tfl_rewrite.judge.compare import merged
from tfl_rewrite.judge.judge import Judge
from tfl_rewrite.judge.settings import Tolerance
from tfl_rewrite.judge.verdict import Verdict
from tfl_rewrite.model.ir import Model
from tfl_rewrite.options.json_data import shown
from tfl_rewrite.passes.quantize_weights import QuantizeWeights, prepare
from tfl_rewrite.pipeline.opened import open_outputs
from tfl_rewrite.search.goals import Goal, Objective
from tfl_rewrite.search.holdout_judge import (
    INSIDE,
    Figures,
    Metric,
    counts_hidden,
    figures_of,
    judged_inside,
    noise_of,
)
from tfl_rewrite.search.units import Choice, Float64, assigned, ratio
from tfl_rewrite.weights.payloads import WeightChange
from tfl_rewrite.weights.rounders import Calibrating


def _texts(choice: Choice) -> dict[str, str]:
    return {str(position): encoding.text for position, encoding in sorted(choice.items())}


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured(Figures):
    """A whole file that was made and run, on the inputs of the search.

    Attributes:
        nbytes: Its size; ``deflated`` as a store compresses it, 0 if that was not asked for.
        cost: What the objective counts.
        ordered: Whether weights were rounded one after the other, each behind those before it.
    """

    nbytes: int
    deflated: int = field(metadata=shown(made=lambda nbytes: nbytes or None))
    cost: float
    ordered: bool = field(default=False, metadata=shown("in_order"))
    choice: Choice = field(metadata=shown("encodings", made=_texts))


JudgeMaker = Callable[[str | os.PathLike[str]], Judge]
PassMaker = Callable[[], QuantizeWeights]


@dataclass(frozen=True, slots=True)
class Fold:
    """A part of the inputs.

    Attributes:
        base: The weight pass, with a rounder that does not look at this part.
        judge: Makes the judge of files rewritten from another one, on this part.
        ordered: Makes the weight pass with a rounder that goes weight by weight, each for what it meets
            behind those before it. What it decides on one weight depends on all others, so each file
            takes a new one. None where nothing is rounded for inputs.
    """

    base: QuantizeWeights
    judge: JudgeMaker
    ordered: PassMaker | None = None


@dataclass(frozen=True, slots=True)
class Stored:
    """How one constant was stored.

    Attributes:
        noise: Squared error of its values over their energy.
        deflated: By how many bytes its integers can be compressed.
    """

    noise: float
    deflated: int


class Trials:
    """Files made from one original, one at a time in the same place; a context manager.

    Args:
        source: The original.
        before: Passes that lose nothing, run before constants are stored otherwise.
        folds: The inputs of the search.
        final: The weight pass whose rounder may look at all of them.
        ordered: The same with a rounder that goes weight by weight; see :class:`Fold`.
        after: Passes that lose nothing, run last.
        folder: For the files.
        goal: What figures are judged by.
        metric: The user's own figure.

    Attributes:
        path: Where :meth:`finish` puts its file.
        files: How many files were run.
        prepared: The original as the first passes leave it; None where constants lie otherwise in a file.
        opened: The original as it is opened before a last SOFTMAX and the like; None where there is none.
        decisions: How many things each call decides there, at least.
    """

    def __init__(
        self,
        source: str | os.PathLike[str],
        *,
        before: Sequence[Pass],
        folds: Sequence[Fold],
        final: QuantizeWeights,
        after: Sequence[Pass],
        folder: Path,
        goal: Goal,
        metric: Metric | None = None,
        ordered: PassMaker | None = None,
    ) -> None:
        self._source = source
        self._ordered = ordered
        self._before = before
        self._folds = folds
        self._final = final
        self._after = after
        self._goal = goal
        self._metric = metric
        self._paths = [folder / f"trial{number}.tflite" for number in range(len(folds))]
        self.path = folder / "final.tflite"
        self.files = 0
        self.prepared = self._prepare(folder / "prepared.tflite")
        self.decisions = 0
        self.opened = self._open(folder / "opened.tflite")
        self._judges: dict[tuple[int, bool], Judge] = {}

    def __enter__(self) -> Trials:
        return self

    def __exit__(self, *_: object) -> None:
        for judge in self._judges.values():
            judge.close()

    def _prepare(self, path: Path) -> Path | None:
        """Writes what the first passes make, so that they need not be run each time."""
        model = load(self._source)
        run_passes(model, self._before)
        try:
            save(model, path)
        except TflRewriteError:
            return None
        # Constants are told apart by the positions of their buffers.
        return path if _sizes(load(path)) == _sizes(model) else None

    def _open(self, path: Path) -> Path | None:
        """Writes a copy that is open before a last SOFTMAX and the like; None where there is none."""
        if self.prepared is None:
            return None
        self.decisions = open_outputs(self.prepared, path, centred=True)
        if not self.decisions:
            return None
        # Constants may have been added, but none moved.
        sizes = _sizes(load(self.prepared))
        return path if _sizes(load(path))[: len(sizes)] == sizes else None

    def fresh(self) -> Model:
        """Loads the original as the first passes leave it."""
        if self.prepared is not None:
            return load(self.prepared)
        model = load(self._source)
        run_passes(model, self._before)
        return model

    def rest(self) -> None:
        """Ends the processes that measure single constants."""
        for (_, opened), judge in self._judges.items():
            if opened:
                judge.rest()

    def prepare(self, choices: Sequence[Choice]) -> None:
        """Lets the rounders look at the model once for all encodings."""
        for fold in self._folds:
            if isinstance(fold.base.rounder, Calibrating):
                model = self.fresh()
                prepare(model, [assigned(fold.base, choice, model) for choice in choices], fold.base.rounder)

    def rounded(self, choice: Choice) -> dict[int, Stored]:
        """Stores constants otherwise, without writing a file; by the positions of their buffers."""
        model = self.fresh()
        result = assigned(self._folds[0].base, choice, model).run(model, Context())
        found = {}
        for change in result.changes:
            if isinstance(change, WeightChange):
                blob = model.buffers[change.buffer].blob
                spared = 0
                if self._goal.objective is Objective.DOWNLOAD and blob is not None:
                    spared = blob.nbytes - len(zlib.compress(blob.view(), 6))
                found[change.buffer] = Stored(ratio(change.snr), spared)
        return found

    def noise(self, choice: Choice) -> Float64 | None:
        """Returns the noise over signal of each output with some constants stored otherwise.

        Outputs are taken before a last SOFTMAX, LOGISTIC or TANH, which hide noise where they are sure.
        None where such a file cannot be made or does not run.
        """
        verdicts = []
        for number, fold in enumerate(self._folds):
            model = load(self.opened) if self.opened is not None else self.fresh()
            try:
                assigned(fold.base, choice, model).run(model, Context())
                save(model, self._paths[number], force=True)
            except TflRewriteError:
                return None
            try:
                verdicts.append(self._judged(number, opened=self.opened is not None))
            except UnsupportedError:
                if self.opened is None:
                    raise
                # Opened, even the original does not run; closed, it may.
                self.opened = None
                return self.noise(choice)
        verdict = merged(verdicts, self._tolerance(opened=self.opened is not None))
        noise = noise_of(verdict)
        return noise if verdict.measured and np.isfinite(noise).all() else None

    def write(self, choice: Choice, path: Path) -> None:
        """Makes a file, without running it."""
        model = self.fresh()
        assigned(self._folds[0].base, choice, model).run(model, Context())
        save(model, path, force=True)

    @property
    def can_order(self) -> bool:
        """Whether weights can be rounded one after the other."""
        return self._ordered is not None and all(fold.ordered is not None for fold in self._folds)

    def measure(self, choice: Choice, cost: float | None = None, *, ordered: bool = False) -> Measured:
        """Makes the whole file, for each part of the inputs, and runs it on that part.

        Args:
            choice: How constants are stored.
            cost: What the objective counts; None for the bytes.
            ordered: Whether weights are rounded one after the other.
        """
        sizes, deflated = [], []
        verdicts: list[Verdict] = []
        inside: list[Verdict | None] = []
        for number, fold in enumerate(self._folds):
            base = fold.ordered() if ordered and fold.ordered is not None else fold.base
            sizes.append(self._make(base, choice, self._paths[number]))
            if self._goal.objective is Objective.DOWNLOAD:
                deflated.append(deflated_nbytes(self._paths[number]))
            verdicts.append(self._judged(number))
            inside.append(self._inside(number) if verdicts[-1].measured else None)
        found = figures_of(verdicts, inside, self._goal)
        metric = self._metric(self._paths) if self._metric is not None and found.runs else None
        nbytes, packed = max(sizes), max(deflated, default=0)
        return Measured(
            verdict=found.verdict,
            metric=metric,
            hidden=found.hidden,
            hidden_sure=found.hidden_sure,
            choice=dict(choice),
            nbytes=nbytes,
            deflated=packed,
            cost=float(packed or nbytes) if cost is None else cost,
            ordered=ordered,
        )

    @property
    def inside(self) -> Path | None:
        """The original as it is opened before a last SOFTMAX and the like, where that counts."""
        return self.opened if counts_hidden(self._goal, self.decisions) else None

    def _inside(self, number: int) -> Verdict | None:
        """Judges what goes into a last SOFTMAX and the like in the file at hand, where that counts."""
        if self.inside is None:
            return None
        self.files += 1
        return judged_inside(self._judge(number, opened=True), self._paths[number])

    def final(self, *, ordered: bool = False) -> QuantizeWeights:
        """Returns the weight pass that makes what is to be published."""
        return self._ordered() if ordered and self._ordered is not None else self._final

    def finish(self, found: Measured) -> int:
        """Makes the file that is to be published, at :attr:`path`; returns its size."""
        return self._make(self.final(ordered=found.ordered), found.choice, self.path)

    def _make(self, base: QuantizeWeights, choice: Choice, path: Path) -> int:
        model = self.fresh()
        assigned(base, choice, model).run(model, Context())
        packing = last_packing(run_passes(model, self._after))
        return save(model, path, force=True, packing=packing)

    def _judge(self, number: int, *, opened: bool) -> Judge:
        judge = self._judges.get((number, opened))
        if judge is None:
            source = self.opened if opened and self.opened is not None else self._source
            judge = self._judges[number, opened] = self._folds[number].judge(source)
        return judge

    def _tolerance(self, *, opened: bool) -> Tolerance:
        """What a verdict on the outputs is given by; before a last SOFTMAX only the noise counts."""
        return INSIDE if opened else self._goal.tolerance

    def _judged(self, number: int, *, opened: bool = False) -> Verdict:
        self.files += 1
        tolerance = self._tolerance(opened=opened)
        verdict = self._judge(number, opened=opened).compare(self._paths[number], tolerance=tolerance)
        if not verdict.measured and verdict.status == "unverified":
            raise UnsupportedError(
                f"cannot search, since nothing can be measured: {'; '.join(verdict.reasons)}",
                file=self._source,
                remedy="use quantize-weights with --dtype or --map instead",
            )
        return verdict


def deflated_nbytes(path: Path) -> int:
    """Returns the size of a file as a store compresses it."""
    return len(zlib.compress(path.read_bytes(), 9))


def _sizes(model: Model) -> list[int]:
    return [buffer.nbytes for buffer in model.buffers]
