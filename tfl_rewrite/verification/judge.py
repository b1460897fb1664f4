"""Runs the original once and any number of rewritten files against it."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import UsageError
from .child import load_array
from .cleanup import Scratch, TerminationGuard
from .compare import OutputTally, Tolerance
from .inputs import expand_paths
from .interface import Interface, interface_differences, quoted
from .reference import Options, Original, PathLike, Reference
from .report import JudgeInfo, OutputComparison, Verdict
from .runner import Execution, Failure, RuntimeChoice, Worker
from .samples import Array


@dataclass(frozen=True, slots=True, kw_only=True)
class CallOutputs:
    """Outputs of one call in memory: by name and, because names may repeat, in order."""

    signature: str | None
    names: tuple[str, ...]
    values: tuple[Array | None, ...]

    def __getitem__(self, name: str) -> Array | None:
        return self.values[self.names.index(name)]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """One file run on its own.

    Attributes:
        failure: Why there are no outputs, or None.
        inputs: For each call the inputs that it got, in order of the entry point.
        outputs: For each call what came out; None in place of an output that could not be read.
    """

    judge: JudgeInfo | None
    interface: Interface | None
    failure: Failure | None
    inputs: tuple[tuple[Array, ...], ...] = ()
    outputs: tuple[CallOutputs, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: float = 0.0


class Judge:
    """Holds the outputs of the original and judges rewritten files against them.

    The original is run when first needed. The process that runs the rewritten files is kept from one
    `compare` to the next, so that judging many small files costs little more than running them. Use it as
    a context manager, or call `close`: it holds two processes and a temporary folder.

    Args:
        before: The original.
        inputs: ``.npz`` files or folders of them; without any, samples are made.
        samples: How many are made for each entry point.
        seed: Of the made samples.
        tolerance: Default of `compare`.
        runtime: ``litert``, ``tensorflow`` or ``python:PATH``.
        timeout: Seconds for each run of a file: opening, allocating and all samples.
        threads: Of each interpreter.

    Raises:
        UsageError: An option makes no sense, or a path does not exist.
    """

    def __init__(
        self,
        before: PathLike,
        *,
        inputs: Sequence[PathLike] = (),
        samples: int = 4,
        seed: int = 0,
        tolerance: Tolerance | None = None,
        runtime: str = "litert",
        timeout: float = 600.0,
        threads: int = 1,
    ) -> None:
        self._before = _existing(before)
        self._options = Options(
            inputs=tuple(inputs), samples=samples, seed=seed, timeout=timeout, threads=threads
        )
        self._tolerance = tolerance or Tolerance()
        choice = RuntimeChoice.parse(runtime)
        expand_paths(inputs)
        self._guard = TerminationGuard()
        self._scratch = Scratch()
        self._workers = [Worker(choice, self._scratch.folder()) for _ in range(2)]
        self._rewritten = self._workers[1]
        self._original = Original(self._before, self._options, self._workers[0], self._scratch)
        self._repeated: dict[tuple[str | None, int], OutputTally] | None = None

    def __enter__(self) -> Judge:
        self._guard.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        try:
            self.close()
        except BaseException as late:
            # Interrupted while cleaning up: finish that first.
            self.close()
            self._guard.__exit__(type(late), late, None)
            raise
        self._guard.__exit__(kind, error, trace)

    def close(self) -> None:
        """Ends the processes and removes the temporary folder."""
        self._stop()
        self._scratch.close()

    def _stop(self) -> None:
        for worker in self._workers:
            worker.kill()

    def compare(self, after: PathLike, *, tolerance: Tolerance | None = None) -> Verdict:
        """Judges one rewritten file.

        Raises:
            UsageError: The runtime is not installed, an input file does not fit the model, or ``after`` does
                not exist.
        """
        path = _existing(after)
        with TerminationGuard():
            try:
                return self._compare(path, tolerance or self._tolerance)
            except BaseException:
                # Nobody is going to wait for what they are doing now.
                self._stop()
                raise

    def reference(self) -> RunResult:
        """What the original gives, in memory; runs it if that has not happened yet.

        Raises:
            UsageError: The runtime is not installed, or an input file does not fit the model.
        """
        with TerminationGuard():
            try:
                reference = self._original.settle()
            except BaseException:
                self._stop()
                raise
        if isinstance(reference, Failure):
            return RunResult(judge=self._original.judge, interface=None, failure=reference)
        execution = reference.execution
        # Where the arrays lie: an input that serves several calls is stored once.
        listed = json.loads(reference.steps.read_text(encoding="utf-8"))
        inputs, outputs = [], []
        for number, (call, unreadable) in enumerate(zip(reference.calls, execution.ran, strict=False)):
            entry = reference.entry(call)
            values = [
                None if why is not None else execution.output(number, position).copy()
                for position, why in enumerate(unreadable)
            ]
            names = tuple(facts.name for facts in entry.outputs)
            outputs.append(CallOutputs(signature=call.signature, names=names, values=tuple(values)))
            inputs.append(tuple(load_array(Path(stem)).copy() for _, stem in listed[number]["inputs"]))
        return RunResult(
            judge=reference.judge,
            interface=reference.interface,
            failure=None,
            inputs=tuple(inputs),
            outputs=tuple(outputs),
            notes=reference.notes,
            seconds=execution.seconds,
        )

    def _compare(self, after: Path, tolerance: Tolerance) -> Verdict:
        started = time.monotonic()

        def begin(resolver: str, steps: Path) -> None:
            request = self._options.request("run", after, resolver, steps)
            self._rewritten.begin(request, self._scratch.folder())

        reference = self._original.settle(beside=begin, abandon=self._rewritten.kill)
        if isinstance(reference, Failure):
            return Verdict(
                status="unverified",
                reasons=(f"the original does not run: {reference.message}",),
                judge=self._original.judge,
                sample_source="real" if self._options.inputs else "made",
                seconds=time.monotonic() - started,
            )
        if not self._rewritten.busy:
            begin(reference.resolver, reference.steps)
        execution = self._rewritten.finish(self._options.timeout)
        reasons, notes, outputs = self._judged(reference, execution, tolerance)
        self._scratch.discard(execution.folder)
        status = "fail" if reasons else "pass"
        if not reasons and not outputs:
            status, reasons = "unverified", ["the model has no outputs to compare; both files run"]
        elif reasons and len(reasons) == sum(not output.passed for output in outputs):
            status, reasons, notes = self._excuse_unstable(reference, outputs, reasons, notes, tolerance)
        return Verdict(
            status=status,
            reasons=tuple(reasons),
            judge=reference.judge,
            sample_source=reference.source,
            sample_count=min(len(execution.ran), len(reference.execution.ran)),
            outputs=tuple(outputs),
            notes=(*reference.notes, *notes),
            seconds=time.monotonic() - started,
        )

    def _judged(
        self, reference: Reference, execution: Execution, tolerance: Tolerance
    ) -> tuple[list[str], list[str], list[OutputComparison]]:
        """Reasons to fail, notes, and the comparison of each output."""
        reasons: list[str] = []
        notes: list[str] = []
        if execution.interface is not None:
            broken, renamed = interface_differences(reference.interface, execution.interface)
            reasons += [f"interface: {text}" for text in broken]
            notes += renamed
        expected = len(reference.execution.ran)
        if execution.failure is not None and (execution.failure.step or 0) < expected:
            reasons.append(f"the rewritten file does not run: {execution.failure.message}")
        elif execution.dropped is not None and execution.dropped[0] < expected:
            reasons.append(
                f"the rewritten file refuses larger sizes that the original takes: {execution.dropped[1]}"
            )
        tallies, unread = tally_runs(reference, execution)
        outputs = [tally.comparison(tolerance) for tally in tallies.values()]
        reasons += [f"{output.label}: {output.reason}" for output in outputs if not output.passed]
        return reasons, notes + unread, outputs

    def _excuse_unstable(
        self,
        reference: Reference,
        outputs: list[OutputComparison],
        reasons: list[str],
        notes: list[str],
        tolerance: Tolerance,
    ) -> tuple[str, list[str], list[str]]:
        """A difference proves nothing where the original does not repeat itself: runs it once more."""
        if self._repeated is None:
            request = self._options.request("run", self._before, reference.resolver, reference.steps)
            self._rewritten.begin(request, self._scratch.folder())
            again = self._rewritten.finish(self._options.timeout)
            self._repeated, _ = tally_runs(reference, again)
            self._scratch.discard(again.folder)
        failed = {(output.signature, output.position) for output in outputs if not output.passed}
        unstable = {
            key
            for key in failed & self._repeated.keys()
            if not self._repeated[key].comparison(tolerance).passed
        }
        if unstable == failed:
            text = "the original does not repeat its own outputs from one run to the next"
            return "unverified", [f"{text}: {'; '.join(reasons)}"], notes
        if unstable:
            notes = [*notes, f"{len(unstable)} of the outputs differ between two runs of the original itself"]
        return "fail", reasons, notes


def tally_runs(
    reference: Reference, execution: Execution
) -> tuple[dict[tuple[str | None, int], OutputTally], list[str]]:
    """Sums up what both sides ran, output by output; the notes tell which could be read on neither side."""
    tallies: dict[tuple[str | None, int], OutputTally] = {}
    notes: list[str] = []
    pairs = zip(reference.calls, reference.execution.ran, execution.ran, strict=False)
    for number, (call, before, after) in enumerate(pairs):
        for position, facts in enumerate(reference.entry(call).outputs):
            if position >= len(after):
                continue
            key = (call.signature, position)
            first, second = before[position], after[position]
            if first is not None and second is not None:
                note = f"output {position} ({quoted(facts.name)}) cannot be read from either file: {first}"
                notes += [] if note in notes else [note]
                continue
            if key not in tallies:
                tallies[key] = OutputTally(facts, signature=call.signature, position=position)
            if first is not None or second is not None:
                tallies[key].unreadable(first, second)
            else:
                ours, theirs = (run.output(number, position) for run in (reference.execution, execution))
                tallies[key].add(ours, theirs)
    return tallies, notes


def _existing(path: PathLike) -> Path:
    found = Path(path)
    if not found.is_file():
        raise UsageError("no such file", file=path, remedy="check the path")
    return found.absolute()


def verify(
    before: PathLike,
    after: PathLike,
    *,
    inputs: Sequence[PathLike] = (),
    samples: int = 4,
    seed: int = 0,
    tolerance: Tolerance | None = None,
    runtime: str = "litert",
    timeout: float = 600.0,
    threads: int = 1,
) -> Verdict:
    """Runs both files in processes of their own on the same inputs and compares every output.

    Variable tensors are reset before each sample; resource variables carry over from one sample to the
    next, in the order of the samples, in one interpreter. For the arguments see `Judge`.

    Raises:
        UsageError: See `Judge` and `Judge.compare`. That a file does not run is a verdict, not an error.
    """
    with Judge(
        before,
        inputs=inputs,
        samples=samples,
        seed=seed,
        tolerance=tolerance,
        runtime=runtime,
        timeout=timeout,
        threads=threads,
    ) as judge:
        return judge.compare(after)


def run_model(
    path: PathLike,
    *,
    inputs: Sequence[PathLike] = (),
    samples: int = 4,
    seed: int = 0,
    runtime: str = "litert",
    timeout: float = 600.0,
    threads: int = 1,
) -> RunResult:
    """Runs one file and returns its inputs and outputs in memory. For the arguments see `Judge`.

    Raises:
        UsageError: See `Judge`.
    """
    with Judge(
        path, inputs=inputs, samples=samples, seed=seed, runtime=runtime, timeout=timeout, threads=threads
    ) as judge:
        return judge.reference()
