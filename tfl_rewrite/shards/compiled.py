"""Judges external buffers: two files in LiteRT's CompiledModel, each in a process of its own, bit by bit.

The classic interpreter loads a model with external buffers and computes with zeros, so it never judges one.
It runs the whole file, though, and that is where the inputs come from: made or given, within the bounds that
the model's tables have, and known to run.
"""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from tfl_rewrite.errors import UsageError
from tfl_rewrite.files.store import load
from tfl_rewrite.interpreter.child import COMPILED
from tfl_rewrite.interpreter.interface import Interface
from tfl_rewrite.interpreter.memory import MemoryWatch, default_limit
from tfl_rewrite.interpreter.scratch import Scratch, TerminationGuard
from tfl_rewrite.interpreter.worker import Execution, RuntimeChoice, Worker
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


def judge_compiled(before: Path, after: Path, whole: Path, settings: Judging) -> Verdict:
    """Runs two files in CompiledModel on the same inputs.

    Args:
        before: What is taken for right.
        after: What is judged.
        whole: The one of the two that the classic interpreter runs.
        settings: Inputs, samples, seed and timeout.

    Returns:
        ``pass`` when every output is equal to the bit; ``unverified`` when ``before`` does not run or
        does not repeat itself.

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
    source = "real" if settings.inputs else "made"
    if reference.failure is not None or reference.interface is None:
        why = reference.failure.message if reference.failure else "it has no interface"
        return Verdict(
            status="unverified",
            reasons=(f"the model does not run: {why}",),
            judge=reference.judge,
            sample_source=source,
            seconds=time.monotonic() - started,
        )
    with TerminationGuard(), contextlib.closing(Scratch()) as scratch:
        given = scratch.folder()
        steps = _steps(reference, reference.interface, given)
        first, second = _run_all([before, after], steps, given, scratch, settings)
        verdict = _verdict(reference.interface, reference, first, second)
        if whole == after and verdict.status == "fail" and second.calls < first.calls:
            # The classic interpreter ran this very file.
            reason = f"the classic interpreter runs the whole file, CompiledModel does not: {second.failure}"
            verdict = replace(verdict, status="unverified", reasons=(reason,))
        elif not _computes(reference, reference.interface, first if whole == before else second):
            # Measured: it hands out memory that nobody wrote where a shape is only known at run time.
            reason = "CompiledModel does not compute the whole file as the classic interpreter does"
            if verdict.status == "fail":
                verdict = replace(verdict, status="unverified", reasons=(reason,))
            else:
                verdict = replace(verdict, notes=(*verdict.notes, reason))
        elif verdict.status == "fail" and second.calls >= first.calls:
            (again,) = _run_all([before], steps, given, scratch, settings)
            if _verdict(reference.interface, reference, first, again).status != "pass":
                reason = "the original does not repeat its own outputs in CompiledModel"
                verdict = replace(verdict, status="unverified", reasons=(reason,))
    return replace(verdict, sample_source=source, seconds=time.monotonic() - started)


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


def _run_all(models: list[Path], steps: Path, given: Path, scratch: Scratch, settings: Judging) -> list[_Run]:
    """Runs files at the same time, on inputs that lie in the folder ``given``."""
    limit = default_limit() if settings.memory_limit is None else settings.memory_limit
    watch = MemoryWatch(limit)
    choice = RuntimeChoice.parse("litert")
    workers = []
    try:
        for model in models:
            readable = [given, *_weights(model)]
            worker = Worker(
                choice,
                scratch.folder(),
                watch,
                timeout=settings.timeout,
                readable=readable,
                modules=(COMPILED,),
            )
            workers.append(worker)
            request = {"do": "compiled", "model": str(model.absolute()), "steps": str(steps)}
            worker.begin(request, scratch.folder(), keeps=SINGLE_NBYTES, keeps_all=True)
        return [_Run(worker.finish(settings.timeout), worker.walls) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()


def _weights(model: Path) -> list[Path]:
    """The weight files beside a model."""
    names = {group.name for group in load(model).external_groups if group.name}
    # A name that leads elsewhere was refused when the model was opened.
    return [model.absolute().parent / name for name in sorted(names) if Path(name).name == name]


def _verdict(interface: Interface, reference: RunResult, before: _Run, after: _Run) -> Verdict:
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
        signature = reference.outputs[call].signature
        entry = interface.find(signature)
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
    if before.calls < len(reference.outputs):
        total = len(reference.outputs)
        notes.append(f"CompiledModel runs {before.calls} of {total} calls of the original: {before.failure}")
    return Verdict(
        status="fail" if reasons else "pass" if outputs else "unverified",
        reasons=tuple(reasons or ([] if outputs else ["the model has no outputs to compare"])),
        judge=info,
        sample_count=min(before.calls, after.calls),
        outputs=tuple(outputs),
        notes=tuple(notes),
    )


def _computes(reference: RunResult, interface: Interface, run: _Run) -> bool:
    """Whether CompiledModel gives about what the classic interpreter gave, in the calls that ended."""
    for call in range(min(run.calls, len(reference.outputs))):
        outputs = reference.outputs[call]
        entry = interface.find(outputs.signature)
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
