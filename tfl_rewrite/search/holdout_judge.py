"""What running a file showed, on the inputs of a search and on those that it never saw.

The user's own figure of merit is computed in a process of its own. That process is not shut into the sandbox
that models are run in: what it runs is the user's program, which may need whatever the user has, and what it
gets are numbers, read without pickle, not a model.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tfl_rewrite.errors import UsageError
from tfl_rewrite.interpreter.interface import Array
from tfl_rewrite.interpreter.process import death_of
from tfl_rewrite.judge.compare import merged
from tfl_rewrite.judge.judge import Judge, RunResult, run_model, verdicts
from tfl_rewrite.judge.settings import INSIDE, Judging, Tolerance
from tfl_rewrite.judge.tally import MANY_DECISIONS
from tfl_rewrite.judge.verdict import OutputComparison, Verdict
from tfl_rewrite.options.frozen import slotted
from tfl_rewrite.options.json_data import LEFT_OUT, JsonData, computed, finite, shown
from tfl_rewrite.pipeline.copies import open_outputs
from tfl_rewrite.search.goals import Goal
from tfl_rewrite.search.units import Float64, ratio

Metric = Callable[[Sequence[Path]], float]
"""The user's own figure of a file, or of one made for each part of the inputs."""
_SCRIPT = Path(__file__).with_name("metric_child.py")
QUIET = 1e-16
"""Noise that counts as none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures(JsonData):
    """A file that was run.

    Attributes:
        verdict: Against the original.
        metric: The user's own figure, if there is one.
        hidden: Lowest SNR over what goes into a last SOFTMAX, LOGISTIC or TANH, in dB; None where there is
            none. Behind those an output that is sure of itself hides noise, but not on other inputs.
        hidden_sure: The same, of which as many other samples are not likely to show less.
        strict: Whether so few samples tell no more than as many are known to; see :func:`_doubt`.
    """

    verdict: Verdict = field(metadata=LEFT_OUT)
    metric: float | None = None
    hidden: float | None = field(default=None, metadata=shown("hidden_snr_db", made=finite(3)))
    hidden_sure: float | None = field(default=None, metadata=LEFT_OUT)
    strict: bool = field(default=False, metadata=LEFT_OUT)

    @property
    def runs(self) -> bool:
        """Whether there are outputs to speak of."""
        return self.verdict.measured

    @property
    def sound(self) -> bool:
        """Whether every output has the shape of the original's and is finite where that is."""
        broken = any(item.nonfinite_mismatches or item.rule == "interface" for item in self.verdict.outputs)
        return self.runs and not broken

    @property
    @computed("snr_db", made=finite(3))
    def snr(self) -> float | None:
        """Lowest SNR over the outputs, and over what goes into a last SOFTMAX and the like, in dB."""
        found = [snr for snr in (self.verdict.worst_snr(), self.hidden) if snr is not None]
        return min(found, default=None)

    @property
    @computed("sure_snr_db", made=finite(3))
    def sure(self) -> float | None:
        """The same less what chance among so few samples may have added.

        Where few things are decided, what outputs show of a few samples is chance for the most part, and what
        goes into the SOFTMAX tells: chance is taken off that alone.
        """
        outputs = [item for item in self.verdict.outputs if item.snr_db is not None]
        found = [(item.snr_db or 0.0) - self._chance(item) for item in outputs]
        if self.hidden_sure is not None:
            found.append(self.hidden_sure)
        return min(found, default=None)

    def missing(self, goal: Goal) -> float:
        """Returns by how much as many other samples may miss the bounds; see :meth:`Goal.shortfall`."""
        own = goal.shortfall(self.verdict, self.metric, chance=self._chance)
        hidden = self.hidden_sure if goal.sure else self.hidden
        if goal.min_snr is None or hidden is None:
            return own
        return max(own, goal.min_snr - hidden)

    def _chance(self, item: OutputComparison) -> float:
        """What may be chance in an output; none where that is taken off what goes into its last operator."""
        return _doubt(item, strict=self.strict) if self.hidden_sure is None else 0.0


def figure(value: float | None) -> str:
    """Returns the user's own figure for people."""
    return "unknown" if value is None else "NaN" if math.isnan(value) else f"{value:g}"


def _doubt(item: OutputComparison, *, strict: bool) -> float:
    """How much of a ratio may be chance, in dB; strictly, no less than what so few samples are known to hide.

    Held-out samples are judged strictly where a file was chosen among many by others, which flatter it then.
    What is rounded for one half of those and measured with the other half makes up for some of that: it has
    more noise than the file that is fitted to both.
    """
    return item.unsure_db if strict else item.doubt_db


def counts_hidden(goal: Goal, decisions: int) -> bool:
    """Whether what goes into a last SOFTMAX and the like is to be judged.

    Where a ratio is asked for, or nothing else is; and where each call decides few things: among many some
    are not sure, and the outputs tell.

    Args:
        goal: The bounds.
        decisions: See :func:`open_outputs`.
    """
    return 0 < decisions < MANY_DECISIONS and (goal.min_snr is not None or not goal.bounds_error)


def opened_beside(path: Path) -> Path | None:
    """Makes a copy of a file that is opened before a last SOFTMAX and the like; None where there is none."""
    inside = path.with_suffix(".inside")
    inside.unlink(missing_ok=True)
    return inside if open_outputs(path, inside, centred=True) else None


def figures_of(
    verdicts: Sequence[Verdict],
    inside: Sequence[Verdict | None],
    goal: Goal,
    metric: float | None = None,
    *,
    strict: bool = False,
) -> Figures:
    """Returns what the verdicts on parts of the samples say together.

    Args:
        verdicts: On the outputs.
        inside: On what goes into a last SOFTMAX and the like; it counts if it is there for all parts.
        goal: What outputs were judged by.
        metric: The user's own figure.
        strict: See :func:`_doubt`.
    """
    hidden = hidden_sure = None
    found = [verdict for verdict in inside if verdict is not None]
    if found and len(found) == len(verdicts):
        together = merged(found, INSIDE)
        hidden = hidden_sure = math.inf
        for item, noise in zip(together.outputs, noise_of(together), strict=True):
            snr = -10.0 * math.log10(float(noise)) if noise > QUIET else math.inf
            hidden, hidden_sure = min(hidden, snr), min(hidden_sure, snr - _doubt(item, strict=strict))
    whole = merged(verdicts, goal.tolerance)
    return Figures(verdict=whole, metric=metric, hidden=hidden, hidden_sure=hidden_sure, strict=strict)


def noise_of(verdict: Verdict, tolerance: Tolerance = INSIDE) -> Float64:
    """Returns noise over signal of each output; outputs that are zero in the original count as quiet.

    Args:
        verdict: On them.
        tolerance: What is asked of them. Where a channel has to keep a ratio, too, and is nearer to its bound
            than the whole output is to its own, the noise is as much below that.
    """
    found = []
    bound, least = tolerance.min_snr, tolerance.min_channel_snr
    for item in verdict.outputs:
        if item.nonfinite_mismatches:
            found.append(np.inf)
        elif item.bit_exact or item.snr_db is None or not item.reference_peak:
            found.append(0.0)
        else:
            snr = item.snr_db
            if bound is not None and least is not None and item.channel is not None:
                snr = min(snr, item.channel.snr_db + bound - least)
            found.append(ratio(snr))
    return np.maximum(np.array(found, np.float64), QUIET)


@slotted(eq=False)
class HoldoutJudge:
    """Judges by inputs that were held out; a context manager.

    Attributes:
        source: The original.
        opened: The original as it is opened before a last SOFTMAX and the like, where that counts.
        judging: What to judge with.
        goal: What is judged by.
        beside: A judge whose processes are used; it is closed later.
        metric: The user's own figure on those inputs.
        inputs: What those are, in words: they may be those of the search.
    """

    source: str | os.PathLike[str]
    opened: str | os.PathLike[str] | None
    judging: Judging
    goal: Goal
    beside: Judge
    metric: Metric | None = None
    inputs: str = "held-out inputs"
    _judge: Judge = field(init=False)
    _inside: Judge | None = field(init=False, default=None)
    _stack: contextlib.ExitStack = field(init=False)

    def __enter__(self) -> HoldoutJudge:
        with contextlib.ExitStack() as stack:
            self._judge = stack.enter_context(Judge(self.source, self.judging, beside=self.beside))
            if self.opened is not None:
                self._inside = stack.enter_context(Judge(self.opened, self.judging, beside=self.beside))
            # Both are there: from now on they end together.
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def evaluate(self, path: Path, *, strict: bool = True) -> Figures:
        """Runs a file, and beside it what goes into its last SOFTMAX and the like.

        Args:
            path: The file.
            strict: Whether it was chosen among many; see :func:`_doubt`.
        """
        pending = [self._judge.begin(path, tolerance=self.goal.tolerance)]
        if self._inside is not None:
            opened = pending[0].meanwhile(lambda: opened_beside(path))
            pending += [] if opened is None else [self._inside.begin(opened, tolerance=INSIDE, first=True)]
        verdict, *within = verdicts(pending)
        inside = [each if each.measured else None for each in within if verdict.measured]
        metric = self.metric([path]) if self.metric is not None and verdict.measured else None
        return figures_of([verdict], inside, self.goal, metric, strict=strict)


class MetricProcess:
    """Calls ``function(outputs, reference)`` for a file.

    Both arguments are dicts of arrays ``[samples, ...]`` by output name (``signature/name`` for signatures);
    larger results are better.

    Args:
        what: ``module:function``, importable from the folder that the program is run in.
        source: The original.
        parts: Which inputs, and the runtime; of several parts, the samples follow each other.
        folder: For the outputs.

    Raises:
        UsageError: It is not of that form.
    """

    def __init__(
        self, what: str, source: str | os.PathLike[str], parts: Sequence[Judging], folder: Path
    ) -> None:
        module, _, name = what.partition(":")
        if not module or not name.isidentifier():
            raise UsageError(f"metric {what!r}", remedy="write module:function")
        self._what = what
        self._source = source
        self._parts = tuple(parts)
        self._folder = folder
        self._reference: Path | None = None

    def check(self) -> None:
        """Looks whether there is such a function; before anything is run, which may take long.

        Raises:
            UsageError: It cannot be imported.
        """
        self._value()

    def __call__(self, paths: Sequence[Path]) -> float:
        """Returns the figure of a file.

        Args:
            paths: The file, or one for each part of the inputs.

        Raises:
            UsageError: The function cannot be imported, or fails.
        """
        if self._reference is None:
            self._reference = self._outputs([Path(self._source)] * len(self._parts), "reference")
        made = self._outputs(paths, "made")
        return self._value(made, self._reference)

    def _value(self, *files: Path) -> float:
        """Runs the process."""
        seconds = self._parts[0].timeout
        try:
            done = subprocess.run(
                [sys.executable, str(_SCRIPT), self._what, *map(str, files)],
                capture_output=True,
                text=True,
                timeout=seconds,
            )
        except subprocess.TimeoutExpired:
            raise UsageError(
                f"metric {self._what}: was stopped after {seconds:g} s", remedy="give more with --timeout"
            ) from None
        try:
            value = json.loads(done.stdout.strip().splitlines()[-1])["value"]
        except (IndexError, ValueError, KeyError, TypeError):
            last = (done.stderr.strip().splitlines() or [f"its process {death_of(done.returncode)}"])[-1]
            raise UsageError(
                f"metric {self._what}: {last}", remedy="call it as function(outputs, reference)"
            ) from None
        return float("nan") if value is None else float(value)

    def _outputs(self, paths: Sequence[Path], name: str) -> Path:
        results = [run_model(path, settings) for path, settings in zip(paths, self._parts, strict=True)]
        target = self._folder / f"{name}.npz"
        arrays = _by_name(results)
        # By number: a name comes from the model, and may be none that a file of arrays can hold.
        np.savez(target, *arrays.values())
        Path(f"{target}.json").write_text(json.dumps(list(arrays)), encoding="utf-8")
        return target


def _by_name(results: Sequence[RunResult]) -> dict[str, Array]:
    collected: dict[str, list[Array]] = {}
    for result in results:
        for call in result.outputs:
            for name, value in zip(call.names, call.values, strict=True):
                if value is not None and value.dtype != object:
                    key = name if call.signature is None else f"{call.signature}/{name}"
                    collected.setdefault(key, []).append(value)
    return {
        key: np.stack(values)
        if len({value.shape for value in values}) == 1
        else np.concatenate([value.reshape(-1) for value in values])
        for key, values in collected.items()
    }
