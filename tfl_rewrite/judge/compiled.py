"""Judges external buffers: two files in LiteRT's CompiledModel, each in a process of its own, bit by bit.

The classic interpreter loads a model with external buffers and computes with zeros, so it never judges one.
It runs the whole file, though, and that is where the inputs come from: made or given, within the bounds that
the model's tables have, and known to run.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from tfl_rewrite.errors import UsageError
from tfl_rewrite.interpreter.child import COMPILED
from tfl_rewrite.interpreter.interface import Interface
from tfl_rewrite.interpreter.memory import MemoryWatch, default_limit
from tfl_rewrite.interpreter.process import RuntimeChoice
from tfl_rewrite.interpreter.scratch import Scratch, TerminationGuard
from tfl_rewrite.interpreter.worker import Execution, Worker
from tfl_rewrite.judge.compare import compared
from tfl_rewrite.judge.judge import RunResult, run_model
from tfl_rewrite.judge.reference import SINGLE_NBYTES
from tfl_rewrite.judge.settings import Judging, Tolerance
from tfl_rewrite.judge.tally import OutputTally
from tfl_rewrite.judge.verdict import JudgeInfo, Verdict
from tfl_rewrite.samples.made import Step, write_steps

_EXACT = Tolerance(exact=True)


@dataclass(frozen=True, slots=True)
class _Run:
    """What one file gave: how many calls ended, and why no more did."""

    execution: Execution
    sandbox: tuple[str, ...]

    @property
    def calls(self) -> int:
        return len(self.execution.ran)

    @property
    def failure(self) -> str | None:
        return None if self.execution.failure is None else self.execution.failure.message

    def output(self, call: int, position: int) -> Any:
        there = position < len(self.execution.ran[call])
        return self.execution.output(call, position) if there else None


def judge_compiled(
    before: Path, after: Path, whole: Path, settings: Judging, *, beside: Sequence[Sequence[Path]]
) -> Verdict:
    """Runs two files in CompiledModel on the same inputs.

    Args:
        before: What is taken for right.
        after: What is judged.
        whole: The one of the two that the classic interpreter runs.
        settings: Inputs, samples, seed and timeout.
        beside: The weight files that ``before`` and ``after`` read.

    Returns:
        ``pass`` when every output is equal to the bit; ``unverified`` when ``before`` does not run, does not
        repeat itself, or is computed in another way than by the classic interpreter.

    Raises:
        UsageError: An input file does not fit the model, or the runtime is not installed.
    """
    started = time.monotonic()
    if settings.runtime != ("litert",):
        raise UsageError(
            f"{', '.join(settings.runtime)} does not read external buffers",
            remedy="leave --runtime at litert",
        )
    reference = run_model(whole, settings)
    if reference.failure is not None or reference.interface is None:
        why = reference.failure.message if reference.failure else "it has no interface"
        reason = f"the model does not run: {why}"
        verdict = Verdict(status="unverified", reasons=(reason,), judge=reference.judge)
    else:
        with TerminationGuard(), contextlib.closing(Scratch()) as scratch:
            given = scratch.folder()
            steps = _steps(reference, reference.interface, given)
            bench = _Bench(reference, reference.interface, steps, given, scratch, settings)
            models = [_Model(before, beside[0]), _Model(after, beside[1])]
            verdict = bench.judge(*models, before_is_whole=whole == before)
    source = "real" if settings.inputs else "made"
    return replace(verdict, sample_source=source, seconds=time.monotonic() - started)


class _Model(NamedTuple):
    path: Path
    beside: Sequence[Path]


@dataclass(frozen=True, slots=True)
class _Bench:
    """What all runs share: the inputs, and what the classic interpreter gave of the whole file for them."""

    reference: RunResult
    interface: Interface
    steps: Path
    given: Path
    scratch: Scratch
    settings: Judging

    def judge(self, before: _Model, after: _Model, *, before_is_whole: bool) -> Verdict:
        """Runs both, and again what does not look like the fault of the second."""
        first, second = self.run(before, after)
        verdict = self.verdict(first, second)
        if not before_is_whole and verdict.status == "fail" and second.calls < first.calls:
            # The classic interpreter ran this very file.
            reason = f"the classic interpreter runs the whole file, CompiledModel does not: {second.failure}"
            return replace(verdict, status="unverified", reasons=(reason,))
        if not self.computes(first if before_is_whole else second):
            # Measured: it hands out memory that nobody wrote where a shape is only known at run time.
            reason = "CompiledModel does not compute the whole file as the classic interpreter does"
            return replace(verdict, status="unverified", reasons=(reason,))
        if verdict.status == "fail" and second.calls >= first.calls:
            (again,) = self.run(before)
            if self.verdict(first, again).status != "pass":
                reason = "the original does not repeat its own outputs in CompiledModel"
                return replace(verdict, status="unverified", reasons=(reason,))
        return verdict

    def run(self, *models: _Model) -> list[_Run]:
        """Runs files at the same time."""
        settings = self.settings
        watch = MemoryWatch(default_limit() if settings.memory_limit is None else settings.memory_limit)
        choice = RuntimeChoice.parse("litert")
        workers = []
        try:
            for model in models:
                worker = Worker(
                    choice,
                    self.scratch,
                    watch,
                    timeout=settings.timeout,
                    readable=[self.given, *model.beside],
                    modules=(COMPILED,),
                )
                workers.append(worker)
                request = {"do": "compiled", "model": str(model.path.absolute()), "steps": str(self.steps)}
                worker.begin(request, keeps=SINGLE_NBYTES, keeps_all=True)
            return [_Run(worker.finish(), worker.walls) for worker in workers]
        finally:
            for worker in workers:
                worker.kill()

    def verdict(self, before: _Run, after: _Run) -> Verdict:
        """Compares what two files gave."""
        info = JudgeInfo(
            runtime="ai-edge-litert CompiledModel",
            version=metadata.version("ai-edge-litert"),
            resolver="CPU",
            threads=1,
            sandbox=before.sandbox,
        )
        if not before.calls:
            reason = f"the original does not run in CompiledModel: {before.failure or 'it has no calls'}"
            return Verdict(status="unverified", reasons=(reason,), judge=info)
        tallies: dict[tuple[str | None, int], OutputTally] = {}
        for call in range(min(before.calls, after.calls)):
            signature = self.reference.outputs[call].signature
            entry = self.interface.find(signature)
            assert entry is not None
            for position, facts in enumerate(entry.outputs):
                ours, theirs = before.output(call, position), after.output(call, position)
                if ours is None:
                    continue
                tally = tallies.setdefault(
                    (signature, position), OutputTally(facts, signature=signature, position=position)
                )
                if theirs is None:
                    tally.unreadable(None, "was not given")
                else:
                    tally.add(ours, theirs)
        outputs = [compared(tally, _EXACT) for tally in tallies.values()]
        reasons = [f"{output.label}: {output.reason}" for output in outputs if not output.passed]
        if after.calls < before.calls:
            reasons.insert(0, f"the result does not run: {after.failure}")
        notes = []
        if before.calls < len(self.reference.outputs):
            total = len(self.reference.outputs)
            notes.append(
                f"CompiledModel runs {before.calls} of {total} calls of the original: {before.failure}"
            )
        return Verdict(
            status="fail" if reasons else "pass" if outputs else "unverified",
            reasons=tuple(reasons or ([] if outputs else ["the model has no outputs to compare"])),
            judge=info,
            sample_count=min(before.calls, after.calls),
            outputs=tuple(outputs),
            notes=tuple(notes),
        )

    def computes(self, run: _Run) -> bool:
        """Whether CompiledModel gives about what the classic interpreter gave, in the calls that ended."""
        for call in range(min(run.calls, len(self.reference.outputs))):
            outputs = self.reference.outputs[call]
            entry = self.interface.find(outputs.signature)
            assert entry is not None
            for position, (facts, expected) in enumerate(zip(entry.outputs, outputs.values, strict=True)):
                given = run.output(call, position)
                if expected is None or given is None:
                    continue
                tally = OutputTally(facts, signature=outputs.signature, position=position)
                tally.add(expected, given)
                if not compared(tally, Tolerance()).passed:
                    return False
        return True


def _steps(reference: RunResult, interface: Interface, folder: Path) -> Path:
    """Writes the calls with the names of their outputs; returns where."""
    steps = []
    for inputs, outputs in zip(reference.inputs, reference.outputs, strict=True):
        entry = interface.find(outputs.signature)
        assert entry is not None
        names = [facts.name for facts in entry.inputs]
        steps.append(Step(signature=outputs.signature, values=tuple(zip(names, inputs, strict=True))))
    path = write_steps(steps, folder)
    listed: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    for row, outputs in zip(listed, reference.outputs, strict=True):
        row["outputs"] = list(outputs.names)
    path.write_text(json.dumps(listed), encoding="utf-8")
    return path
