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
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

from tfl_rewrite.errors import UsageError
from tfl_rewrite.interpreter.child import COMPILED
from tfl_rewrite.interpreter.interface import EntryPoint, Interface
from tfl_rewrite.interpreter.memory import MemoryWatch, default_limit
from tfl_rewrite.interpreter.process import RuntimeChoice
from tfl_rewrite.interpreter.scratch import Scratch, TerminationGuard
from tfl_rewrite.interpreter.worker import Execution, Worker
from tfl_rewrite.judge.compare import compared
from tfl_rewrite.judge.judge import CallOutputs, RunResult, run_model
from tfl_rewrite.judge.reference import SINGLE_NBYTES
from tfl_rewrite.judge.settings import Judging, Tolerance
from tfl_rewrite.judge.tally import OutputTally
from tfl_rewrite.judge.verdict import JudgeInfo, Key, Verdict
from tfl_rewrite.samples.made import Step, write_steps

_EXACT = Tolerance(exact=True)


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
            remedy="use --runtime litert, the default",
        )
    reference = run_model(whole, settings)
    if reference.failure is not None or reference.interface is None:
        why = reference.failure.message if reference.failure else "it has no interface"
        reason = f"the model does not run: {why}"
        verdict = Verdict(status="unverified", reasons=(reason,), judge=reference.judge)
    else:
        with TerminationGuard(), contextlib.closing(Scratch()) as scratch:
            bench = _Bench(reference, reference.interface, scratch, settings)
            verdict = bench.judge((before, beside[0]), (after, beside[1]), before_is_whole=whole == before)
    source = "real" if settings.inputs else "made"
    return replace(verdict, sample_source=source, seconds=time.monotonic() - started)


_Model = tuple[Path, Sequence[Path]]
"""A file, and the weight files that it reads."""


class _Bench:
    """What all runs share: the inputs, and what the classic interpreter gave of the whole file for them."""

    def __init__(
        self, reference: RunResult, interface: Interface, scratch: Scratch, settings: Judging
    ) -> None:
        self._reference = reference
        self._interface = interface
        self._scratch = scratch
        self._settings = settings
        self._given = scratch.folder()
        self._steps = self._written_steps()
        self._walls: tuple[str, ...] = ()

    def _written_steps(self) -> Path:
        """Writes the calls with the names of their outputs; returns where."""
        steps = []
        for inputs, outputs in zip(self._reference.inputs, self._reference.outputs, strict=True):
            names = [facts.name for facts in self._entry(outputs).inputs]
            steps.append(Step(signature=outputs.signature, values=tuple(zip(names, inputs, strict=True))))
        path = write_steps(steps, self._given)
        listed: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        for row, outputs in zip(listed, self._reference.outputs, strict=True):
            row["outputs"] = list(outputs.names)
        path.write_text(json.dumps(listed), encoding="utf-8")
        return path

    def _entry(self, outputs: CallOutputs) -> EntryPoint:
        entry = self._interface.find(outputs.signature)
        assert entry is not None
        return entry

    def judge(self, before: _Model, after: _Model, *, before_is_whole: bool) -> Verdict:
        """Runs both, and again what does not look like the fault of the second."""
        first, second = self._run(before, after)
        verdict = self._verdict(first, second)
        reason = ""
        if not before_is_whole and verdict.status == "fail" and len(second.ran) < len(first.ran):
            # The classic interpreter ran this very file.
            why = _why(second)
            reason = f"the classic interpreter runs the whole file, CompiledModel does not: {why}"
        elif not self._computes(first if before_is_whole else second):
            # Measured: it hands out memory that nobody wrote where a shape is only known at run time.
            reason = "CompiledModel does not compute the whole file as the classic interpreter does"
        elif verdict.status == "fail":
            # Also where the second was ended for the memory that it took: of two that take too much, the
            # first may have ended before anyone looked.
            (again,) = self._run(before)
            repeated = self._verdict(first, again)
            if again.failure is not None and len(again.ran) < len(first.ran):
                reason = f"the original does not run in CompiledModel: {_why(again)}"
            elif repeated.status != "pass":
                reason = "the original does not repeat its own outputs in CompiledModel"
        return replace(verdict, status="unverified", reasons=(reason,)) if reason else verdict

    def _run(self, *models: _Model) -> list[Execution]:
        """Runs files at the same time; alone what there was no memory for beside the others."""
        ran = self._run_together(*models)
        return [
            self._run_together(model)[0] if run.failure is not None and run.failure.crowded else run
            for model, run in zip(models, ran, strict=True)
        ]

    def _run_together(self, *models: _Model) -> list[Execution]:
        settings = self._settings
        watch = MemoryWatch(default_limit() if settings.memory_limit is None else settings.memory_limit)
        workers = []
        try:
            for path, beside in models:
                worker = Worker(
                    RuntimeChoice.parse("litert"),
                    self._scratch,
                    watch,
                    timeout=settings.timeout,
                    readable=[self._given, *beside],
                    modules=(COMPILED,),
                )
                workers.append(worker)
                request = {"do": "compiled", "model": str(path.absolute()), "steps": str(self._steps)}
                worker.begin(request, keeps=SINGLE_NBYTES, keeps_all=True)
            self._walls = self._walls or workers[0].walls
            return [worker.finish() for worker in workers]
        finally:
            for worker in workers:
                worker.kill()

    def _verdict(self, before: Execution, after: Execution) -> Verdict:
        """Compares what two files gave."""
        info = JudgeInfo(
            runtime="ai-edge-litert CompiledModel",
            version=metadata.version("ai-edge-litert"),
            resolver="CPU",
            threads=1,
            sandbox=self._walls,
        )
        ran, total = len(before.ran), len(self._reference.outputs)
        if not ran:
            reason = f"the original does not run in CompiledModel: {_why(before) or 'it has no calls'}"
            return Verdict(status="unverified", reasons=(reason,), judge=info)
        tallies: dict[Key, OutputTally] = {}
        for call in range(min(ran, len(after.ran))):
            signature = self._reference.outputs[call].signature
            for position, facts in enumerate(self._entry(self._reference.outputs[call]).outputs):
                if position >= len(before.ran[call]):
                    continue
                tally = tallies.setdefault(
                    (signature, position), OutputTally(facts, signature=signature, position=position)
                )
                if position >= len(after.ran[call]):
                    tally.unreadable(None, "was not given")
                else:
                    tally.add(before.output(call, position), after.output(call, position))
        outputs = tuple(compared(tally, _EXACT) for tally in tallies.values())
        reasons = [f"{output.label}: {output.reason}" for output in outputs if not output.passed]
        if len(after.ran) < ran:
            reasons.insert(0, f"the result does not run: {_why(after)}")
        told = f"CompiledModel runs {ran} of {total} calls of the original: {_why(before)}"
        return Verdict(
            status="fail" if reasons else "pass" if outputs else "unverified",
            reasons=tuple(reasons or ([] if outputs else ["the model has no outputs to compare"])),
            judge=info,
            sample_count=min(ran, len(after.ran)),
            outputs=outputs,
            notes=(told,) if ran < total else (),
        )

    def _computes(self, run: Execution) -> bool:
        """Whether CompiledModel gives about what the classic interpreter gave, in the calls that ended."""
        for call, (outputs, ran) in enumerate(zip(self._reference.outputs, run.ran, strict=False)):
            found = zip(self._entry(outputs).outputs, outputs.values, strict=True)
            for position, (facts, expected) in enumerate(found):
                if expected is None or position >= len(ran):
                    continue
                tally = OutputTally(facts, signature=outputs.signature, position=position)
                tally.add(expected, run.output(call, position))
                if not compared(tally, Tolerance()).passed:
                    return False
        return True


def _why(run: Execution) -> str | None:
    return None if run.failure is None else run.failure.message
