"""Finds where two models part: both run with every tensor kept, compared operator by operator.

Bounded in memory and on disk: one sample at a time, and of its tensors one batch at a time lies in the
temporary folder; what remains of each is a row of sums. The two interpreters hold all tensors of one sample.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tfl_rewrite.interpreter.process import RuntimeChoice
from tfl_rewrite.interpreter.scratch import Scratch, TerminationGuard
from tfl_rewrite.interpreter.worker import ModelFailed, Worker
from tfl_rewrite.judge.layers import HANDLES, Blame, Match, Trace, layers_of, match_outputs
from tfl_rewrite.judge.reference import existing, judge_info
from tfl_rewrite.judge.retyped import converted, is_retyped, on_steps
from tfl_rewrite.judge.settings import Judging
from tfl_rewrite.judge.tally import TensorTally
from tfl_rewrite.judge.verdict import JudgeInfo
from tfl_rewrite.options.frozen import frozen
from tfl_rewrite.samples.inputs import real_inputs
from tfl_rewrite.samples.made import VARIED, Step, gentler_recipes, made_steps, write_steps

PathLike = str | os.PathLike[str]

Call = dict[str, Any]
"""An entry of the list that `write_steps` writes."""
SAMPLES = 4
"""How many samples tell enough: an operator output is a thousand values and more in each."""
BATCH_NBYTES = 256 << 20
"""Tensors of both models that lie on disk at once, unless a single one is larger."""


def blame(before: PathLike, after: PathLike, judging: Judging | None = None) -> Blame:
    """Runs both files with all tensors kept, and compares what their operators give.

    Neither runs with the default delegates: XNNPACK computes many operators as one, and so hides what lies
    between them. Its numbers may differ a little from those of a verdict for that reason.

    Args:
        before: The original.
        after: The rewritten file.
        judging: Inputs, samples, runtime (the first of several) and timeout, which counts for each sample and
            each opening of a file. At most :data:`SAMPLES` samples are run: of real ones as many, spread
            evenly.

    Raises:
        UsageError: The runtime is not installed, a file does not exist, or an input file does not fit.
            That a model does not run this way is a result, not an error.
    """
    started = time.monotonic()
    paths = [existing(path) for path in (before, after)]
    settings = judging or Judging()
    samples, timeout, threads = min(settings.samples, SAMPLES), settings.timeout, settings.threads
    choice = RuntimeChoice.parse(settings.runtime[0])
    with TerminationGuard(), contextlib.closing(Scratch()) as scratch:
        folder = scratch.folder()
        workers = [Worker(choice, scratch, timeout=timeout, readable=[path, folder]) for path in paths]
        traced = [_Traced(path, worker, threads) for path, worker in zip(paths, workers, strict=True)]
        try:
            work = _Blaming(traced[0], traced[1], scratch, folder)
            try:
                found = work.run(settings.judging_inputs, samples, settings.seed)
            except ModelFailed as failed:
                return Blame(judge=work.judge, failure=f"{work.whose}{failed}")
        finally:
            for worker in workers:
                worker.kill()
    return replace(found, seconds=time.monotonic() - started)


@frozen
class _Traced:
    """One of the models, which its process holds open with all tensors kept."""

    path: Path
    worker: Worker
    threads: int

    def open(self) -> Trace:
        """Loads it, again if it was loaded before."""
        return Trace.of(*self.worker.open("trace", self.path, "builtin", self.threads))

    def begin(self, step: int, call: Call) -> None:
        """Starts to run one sample; `Worker.ended` must follow."""
        self.worker.call(step, call["signature"], call["inputs"], sizes=True)


class _Blaming:
    """One run of `blame`."""

    def __init__(self, before: _Traced, after: _Traced, scratch: Scratch, inputs: Path) -> None:
        self._before = before
        self._after = after
        self._scratch = scratch
        self._inputs = inputs
        self.judge: JudgeInfo | None = None
        self.whose = "the original: "

    def run(self, inputs: tuple[PathLike, ...], samples: int, seed: int) -> Blame:
        self.whose = "the original: "
        first = self._before.open()
        self.judge = judge_info(self._before.worker, "builtin", self._before.threads)
        self.whose = "the rewritten file: "
        second = self._after.open()
        if not first.nodes or not second.nodes:
            what = "a model has no operators, or this runtime does not tell which"
            return Blame(judge=self.judge, failure=what)
        steps, notes = _real_steps(first, inputs, samples)
        try:
            first, made, calls, sizes = self._begin(first, second, steps, samples, seed, notes)
        except ValueError as error:
            return Blame(judge=self.judge, failure=str(error))
        matches = match_outputs(first, second)
        calls_after = _for_rewritten(first, second, made, calls, self._scratch.folder(self._inputs))
        tallies = self._measure(first, second, matches, list(zip(calls, calls_after, strict=True)), sizes)
        layers = layers_of(first, second, matches, tallies)
        return Blame(
            judge=self.judge,
            sample_source="real" if steps else "made",
            sample_count=len(calls),
            layers=tuple(layers),
            unmatched=tuple(_unmatched(first, matches, tallies)),
            inserted=_inserted(second, matches),
            notes=(*notes, *_unseen(first, second)),
        )

    def _begin(
        self, first: Trace, second: Trace, steps: list[Step], samples: int, seed: int, notes: list[str]
    ) -> tuple[Trace, list[Step], list[Call], dict[int, int]]:
        """Settles the samples: the real ones, or made ones that the original takes; it has run the first.

        Raises:
            ValueError: No values can be made for an input.
        """
        # The same samples as a verdict takes for that signature.
        entry = next(
            (entry for entry in first.interface.signatures if entry.key in first.interface.primary_keys),
            first.interface.primary,
        )
        recipes = (VARIED,) if steps else (VARIED, *gentler_recipes(entry))
        self.whose = "the original: "
        for recipe in recipes:
            drawn = [] if steps else made_steps(entry, count=samples, seed=seed, recipe=recipe)
            made = steps or on_steps(drawn, first.interface, second.interface)
            listed = write_steps(made, self._scratch.folder(self._inputs))
            calls = json.loads(listed.read_text(encoding="utf-8"))
            try:
                self._before.begin(0, calls[0])
                sizes = self._before.worker.ended()
            except ModelFailed as failed:
                # The same as for a verdict: made inputs that a model fails on are made gentler.
                if recipe is recipes[-1] or (failed.failure and failed.failure.kind == "timeout"):
                    raise
                first = self._before.open()
                continue
            if recipe is not VARIED:
                notes.append(f"the original fails on varied made samples; used instead: {recipe.name}")
            return first, made, calls, sizes
        raise AssertionError("there is a recipe")

    def _measure(
        self,
        first: Trace,
        second: Trace,
        matches: list[Match],
        calls: list[tuple[Call, Call]],
        sizes: dict[int, int],
    ) -> list[TensorTally]:
        tallies = [
            TensorTally(first.tensors[match.before_tensor], second.tensors[match.after_tensor])
            for match in matches
        ]
        for number, (call, call_after) in enumerate(calls):
            if number:
                self._before.begin(number, call)
            self._after.begin(number, call_after)
            self.whose = "the original: "
            if number:
                sizes = self._before.worker.ended()
            self.whose = "the rewritten file: "
            sizes_after = self._after.worker.ended()
            self.whose = "reading tensors: "
            need = [
                sizes.get(match.before_tensor, 0) + sizes_after.get(match.after_tensor, 0)
                for match in matches
            ]
            for batch in _batches(need):
                self._compare(number, [matches[at] for at in batch], [tallies[at] for at in batch])
        return tallies

    def _compare(self, step: int, matches: list[Match], tallies: list[TensorTally]) -> None:
        with (
            self._before.worker.get(step, [match.before_tensor for match in matches]) as ours,
            self._after.worker.get(step, [match.after_tensor for match in matches]) as theirs,
        ):
            for match, tally in zip(matches, tallies, strict=True):
                why = ours.unreadable.get(match.before_tensor) or theirs.unreadable.get(match.after_tensor)
                if why is not None:
                    tally.problem = f"cannot be read: {why}"
                else:
                    tally.add(ours.tensor(match.before_tensor), theirs.tensor(match.after_tensor))


def _for_rewritten(
    first: Trace, second: Trace, steps: Sequence[Step], calls: list[Call], folder: Path
) -> list[Call]:
    """The same samples in the types of the rewritten model's inputs, where those are quantized otherwise."""
    ours, theirs = first.interface.primary.inputs, second.interface.primary.inputs
    if len(ours) != len(theirs) or not any(map(is_retyped, ours, theirs)):
        return calls
    tensors = [facts.tensor for facts in ours]
    made = []
    for step in steps:
        entry = first.interface.find(step.signature)
        assert entry is not None
        given = {facts.tensor: value for facts, (_, value) in zip(entry.inputs, step.values, strict=True)}
        if set(given) != set(tensors):
            return calls
        values = [
            (other.tensor, converted(given[one.tensor], one, other))
            for one, other in zip(ours, theirs, strict=True)
        ]
        made.append(Step(signature=None, values=tuple(values)))
    listed = write_steps(made, folder)
    found: list[Call] = json.loads(listed.read_text(encoding="utf-8"))
    return found


def _batches(need: Sequence[int]) -> Iterator[list[int]]:
    batch: list[int] = []
    total = 0
    for at, nbytes in enumerate(need):
        if batch and total + nbytes > BATCH_NBYTES:
            yield batch
            batch, total = [], 0
        batch.append(at)
        total += nbytes
    if batch:
        yield batch


def _real_steps(trace: Trace, inputs: Sequence[PathLike], samples: int) -> tuple[list[Step], list[str]]:
    """Some of the user's samples for the primary subgraph."""
    if not inputs:
        return [], []
    found = real_inputs(trace.interface, inputs)
    own = [
        step
        for step in found.steps
        if step.signature is None or step.signature in trace.interface.primary_keys
    ]
    notes = list(found.notes)
    if not own:
        notes.append("no input file covers the primary subgraph: made samples")
    if len(own) > samples:
        notes.append(f"{samples} of {len(own)} samples, spread evenly")
        own = [own[(at * len(own)) // samples] for at in range(samples)]
    return own, notes


def _unseen(first: Trace, second: Trace) -> list[str]:
    """What the runtime does not let anybody look into."""
    notes = []
    count, other = first.interface.subgraphs, second.interface.subgraphs
    if count < 0:
        notes.append("only the primary subgraph is looked into")
    elif count > 1:
        notes.append(
            f"only the primary subgraph is looked into: {count - 1} more (bodies of WHILE, IF and "
            "calls, other signatures) are not seen"
        )
    if max(0, count) != max(0, other):
        notes.append(f"the rewritten file has {other} subgraphs instead of {count}")
    return notes


def _unmatched(trace: Trace, matches: list[Match], tallies: list[TensorTally]) -> list[str]:
    """Operator outputs of the original that were not compared, as ``index TYPE name`` or with the reason."""
    paired = {match.before_tensor for match in matches}
    texts = [
        f"{node.index} {node.operator} {trace.tensors[tensor].tensor!a}"
        for node in trace.nodes
        for tensor in node.outputs
        if tensor in trace.tensors and tensor not in paired and tensor not in trace.unpacked
        if node.operator not in HANDLES
    ]
    return texts + [
        f"{match.before.index} {match.before.operator} ({tally.problem})"
        for match, tally in zip(matches, tallies, strict=True)
        if tally.problem is not None
    ]


def _inserted(trace: Trace, matches: list[Match]) -> dict[str, int]:
    """Operators of the rewritten model that give something and are the counterpart of none, by type."""
    paired = {match.after.index for match in matches}
    lone = (
        node
        for node in trace.nodes
        if node.index not in paired and node.outputs and node.operator not in HANDLES
    )
    return dict(Counter(node.operator for node in lone))
