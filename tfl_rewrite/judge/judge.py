"""Runs the original once and any number of rewritten files against it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import field, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from tfl_rewrite.interpreter.child import load_array
from tfl_rewrite.interpreter.interface import Array, EntryPoint, Interface, TensorFacts, quoted
from tfl_rewrite.interpreter.memory import MemoryWatch, default_limit
from tfl_rewrite.interpreter.process import RuntimeChoice
from tfl_rewrite.interpreter.scratch import Scratch, TerminationGuard, scratch_errors
from tfl_rewrite.interpreter.worker import Execution, Failure, Worker
from tfl_rewrite.judge.agreement import FEW_SAMPLES, agreed, cost_of, growth_of, is_slow
from tfl_rewrite.judge.compare import compared
from tfl_rewrite.judge.reference import UNASKED, Original, PathLike, Reference, existing
from tfl_rewrite.judge.repeats import Repeats, Tallying, between, differences, differing
from tfl_rewrite.judge.retyped import as_type_of, beyond
from tfl_rewrite.judge.settings import Judging, Tolerance
from tfl_rewrite.judge.tally import OutputTally
from tfl_rewrite.judge.verdict import (
    EntryVerdict,
    JudgeInfo,
    Key,
    OutputComparison,
    Verdict,
    combined,
    entry_verdict,
    weighed,
)
from tfl_rewrite.options.frozen import frozen
from tfl_rewrite.samples.inputs import expand_paths

T = TypeVar("T")


@frozen(kw_only=True)
class CallOutputs:
    """Outputs of one call in memory: by name and, because names may repeat, in order."""

    signature: str | None
    names: tuple[str, ...]
    values: tuple[Array | None, ...]

    def __getitem__(self, name: str) -> Array | None:
        return self.values[self.names.index(name)]


@frozen(kw_only=True)
class RunResult:
    """One file run on its own.

    Attributes:
        failure: Why there are no outputs, or None.
        inputs: For each call the inputs that it got, in order of the entry point.
        outputs: For each call what came out; None in place of an output that could not be read.
        failed: Why there are none of some entry points, by key.
    """

    judge: JudgeInfo | None
    interface: Interface | None
    failure: Failure | None
    inputs: tuple[tuple[Array, ...], ...] = ()
    outputs: tuple[CallOutputs, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    failed: Mapping[str | None, Failure] = field(default_factory=dict)


class Judge:
    """Holds the outputs of the original and judges rewritten files against them.

    The original is run when first needed. The process that runs the rewritten files is kept from one
    `compare` to the next, so that judging many small files costs little more than running them. Use it as
    a context manager, or call `close`: it holds two processes and a temporary folder.

    Args:
        before: The original.
        judging: How files are run. Of several runtimes and resolvers, the first ones; its inputs for fitting
            are left out where it has others for judging.
        kernels: Resolvers that the original is compared with itself under when outputs differ; without any,
            the built-in kernels or the default ones, whichever do not judge.
        beside: A judge whose processes and folder this one uses as well, one after the other; it is closed
            later, and both run files with the same runtime and limits.
        inputs_of: The file that the inputs are for, where ``before`` takes the same values in other types.

    Raises:
        UsageError: An option makes no sense, or a path does not exist.
    """

    def __init__(
        self,
        before: PathLike,
        judging: Judging | None = None,
        *,
        kernels: Sequence[str] = (),
        beside: Judge | None = None,
        inputs_of: PathLike | None = None,
    ) -> None:
        path = existing(before)
        settings = judging or Judging()
        limit = default_limit() if settings.memory_limit is None else settings.memory_limit
        self._judging = replace(settings.for_judges, memory_limit=limit)
        self._choice = RuntimeChoice.parse(settings.runtime[0])
        expand_paths(self._judging.inputs)
        self._guard = TerminationGuard()
        self._owns = beside is None
        if beside is None:
            self._scratch = Scratch()
            self._inputs, watch = self._scratch.folder(), MemoryWatch(limit)
            self._workers = (
                Worker(self._choice, self._scratch, watch, timeout=settings.timeout, readable=[self._inputs]),
                Worker(self._choice, self._scratch, watch, timeout=settings.timeout, readable=[self._inputs]),
            )
        else:
            self._scratch, self._inputs, self._workers = beside._scratch, beside._inputs, beside._workers
        given = self._scratch.folder(self._inputs)
        self._original = Original(path, self._judging, self._workers, given)
        self._original.inputs_of = existing(inputs_of) if inputs_of is not None else None
        self._repeats = Repeats(self._original, kernels)
        self._take_turn()

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
        """Ends the processes and removes the temporary folder; of another judge, only what it put there."""
        if self._owns:
            self.rest()
            self._scratch.close()
        else:
            self._original.discard()

    def follow(self, faster: Judge) -> None:
        """Runs few samples, where the kernels of another judge tell that the reference ones are too slow."""
        known, (resolver, *_) = faster.settled, (*self._judging.resolver, "")
        if resolver == "reference" and known is not None and is_slow(known.execution.cpu):
            self._original.most = FEW_SAMPLES

    def rest(self) -> None:
        """Ends the processes; they are started again when they are needed."""
        for worker in self._workers:
            worker.kill()

    def lend(self, number: int) -> tuple[Worker, Path]:
        """One of the two processes for something else, until this judge is asked again; and a new folder.

        The process may read what lies in the folder, which goes when the judge is closed, or before.
        """
        return self._workers[number], self._scratch.folder(self._inputs)

    def compare(
        self,
        after: PathLike,
        *,
        tolerance: Tolerance | None = None,
        repeat: bool = False,
        timeout: float | None = None,
    ) -> Verdict:
        """Judges one rewritten file.

        Args:
            after: The file.
            tolerance: Instead of the judge's own.
            repeat: Run both files again, to see that they repeat their outputs, and, if outputs differ too
                much, the original with other kernels. For a verdict that somebody relies on; a search
                among many files does without.
            timeout: Seconds for the run of the rewritten file, instead of the judge's own.

        Raises:
            UsageError: The runtime is not installed, an input file does not fit the model, or ``after`` does
                not exist.
        """
        path = existing(after)
        with TerminationGuard(), scratch_errors():
            try:
                return self._compare(path, tolerance or self._judging.tolerance, repeat, timeout)
            except BaseException:
                # Nobody is going to wait for what they are doing now.
                self.rest()
                raise

    def begin(self, after: PathLike, *, tolerance: Tolerance | None = None, first: bool = False) -> Pending:
        """Starts to judge one of several rewritten files, as :meth:`compare` does without repeating.

        Args:
            after: The file.
            tolerance: Instead of the judge's own.
            first: Whether the process of the original runs it, which has nothing to do once that was run.
        """
        found = Pending(self, existing(after), tolerance or self._judging.tolerance)
        reference = self._original.settled
        worker = self._workers[0 if first else 1]
        called = self._judging.retyped or self._judging.counterparts
        if reference is not None and not called and not worker.busy:
            try:
                with scratch_errors():
                    self._take_turn(found.path)
                    found.start(
                        self._original.request("run", found.path, reference.resolver, reference.steps),
                        worker,
                        reference,
                    )
            except BaseException:
                # Nor is anybody going to wait for those that were begun before.
                self.rest()
                raise
        return found

    def request(self, path: Path, reference: Reference) -> dict[str, object]:
        """What a process that was lent is asked, to run a file on the calls of the original."""
        return self._original.request("run", path, reference.resolver, reference.steps)

    @property
    def runtime(self) -> str:
        """What runs the files, as it was asked for."""
        return self._judging.runtime[0]

    @property
    def settled(self) -> Reference | None:
        """The run of the original, if there was one and it ended."""
        return self._original.settled

    def reference(self) -> RunResult:
        """What the original gives, in memory; runs it if that has not happened yet.

        Raises:
            UsageError: The runtime is not installed, or an input file does not fit the model.
        """
        with TerminationGuard(), scratch_errors():
            try:
                self._take_turn()
                reference = self._original.settle()
            except BaseException:
                self.rest()
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
            failed=reference.failed,
        )

    def _take_turn(self, *files: Path) -> None:
        """Lets the processes read the original and some files, and run them in the runtime of this judge.

        Another judge of the same processes may have gone on to the next runtime, or not; what both files are
        run in has to be one.
        """
        for worker in self._workers:
            # Each of them runs both files, one time or another.
            worker.runtime = self._choice
            worker.admit(self._original.path, *files)

    def _compare(self, after: Path, tolerance: Tolerance, repeat: bool, timeout: float | None) -> Verdict:
        started = time.monotonic()
        rewritten = self._workers[1]
        self._take_turn(after)
        if self._original.settled is None:
            for worker in self._workers:
                worker.warm()
        theirs = self._taken_by(after) if self._judging.retyped or self._judging.counterparts else None
        self._original.call_as(theirs)
        theirs = theirs if self._judging.retyped else None
        if theirs is not None:
            self._original.take_steps_of(theirs)
        tallying: Tallying
        execution: Execution | None = None

        def begin(reference: Reference) -> None:
            nonlocal tallying, execution
            if execution is not None:
                execution.discard()
            tallying = Tallying(reference)
            steps = self._original.convert_steps(reference, after, theirs)
            request = self._original.request("run", after, reference.resolver, steps)
            execution = rewritten.begin(request, on_ran=tallying.take)

        reference = self._original.settle(begin)
        if isinstance(reference, Failure):
            return Verdict(
                status="unverified",
                reasons=(f"the original {reference.told}",),
                cause=reference.kind,
                judge=self._original.judge,
                sample_source="real" if self._judging.inputs else "made",
                seconds=time.monotonic() - started,
            )
        if not rewritten.busy:
            begin(reference)
        execution = rewritten.finish(timeout)
        if execution.failure is not None and execution.failure.crowded:
            self.rest()
            begin(reference)
            execution = rewritten.finish(timeout)
        verdict = self.judged(reference, execution, tallying, tolerance)
        if theirs is not None:
            clipped = beyond(reference.steps, reference.interface, theirs)
            # What the values of the inputs were is told before all else.
            verdict = replace(verdict, notes=(*clipped, *verdict.notes))
        if repeat and verdict.cause in ("", "outputs", "nothing") and execution.failure is None:
            verdict = self._repeats.check(execution, after, verdict)
        if verdict.cause == "outputs":
            verdict = self._excused(reference, verdict, tolerance, repeat)
        execution.discard()
        return self._whole(reference, verdict, tolerance, started)

    def _taken_by(self, after: Path) -> Interface | None:
        """What a rewritten file takes and gives; None where it does not even open, which its run tells."""
        worker = self._workers[1]
        resolver = (self._judging.resolver or UNASKED)[0]
        worker.begin(self._original.request("open", after, resolver))
        with worker.finish() as opened:
            return opened.interface

    def told(
        self, reference: Reference, execution: Execution, tallying: Tallying, tolerance: Tolerance
    ) -> Verdict:
        """Returns the verdict on a run that ended; runs nothing again but the original."""
        started = time.monotonic() - execution.seconds
        with TerminationGuard(), scratch_errors():
            try:
                verdict = self.judged(reference, execution, tallying, tolerance)
                if verdict.cause == "outputs":
                    verdict = self._excused(reference, verdict, tolerance, repeat=False)
            except BaseException:
                self.rest()
                raise
        return self._whole(reference, verdict, tolerance, started)

    def judged(
        self, reference: Reference, execution: Execution, tallying: Tallying, tolerance: Tolerance
    ) -> Verdict:
        """Returns what a run of both says: the calls of the original, and those of another file."""
        reasons: list[str] = []
        notes: list[str] = []
        cause = ""
        if execution.interface is not None:
            broken, renamed = interface_differences(
                reference.interface, execution.interface, retyped=reference.retyped
            )
            reasons += [f"interface: {text}" for text in broken]
            notes += renamed
            cause = "interface" if broken else ""
        expected = len(reference.execution.ran)
        if execution.failure is not None and (execution.failure.step or 0) < expected:
            reasons.append(f"the rewritten file does not run: {execution.failure.message}")
            cause = cause or execution.failure.kind
        elif execution.dropped is not None and execution.dropped[0] < expected:
            reasons.append(
                f"the rewritten file refuses larger sizes that the original takes: {execution.dropped[1]}"
            )
            cause = cause or "error"
        tallies, unread = tallying.tallies, tallying.notes
        outputs = tuple(
            compared(tally, tolerance, partial(self._repeats.noisiest, key)) for key, tally in tallies.items()
        )
        entries = tuple(_of_entry(reference, entry, outputs) for entry in reference.interface.entry_points)
        status, why, differences = weighed(entries)
        if why == "nothing":
            remedy = _remedy(reference, tallies.values())
            differences = tuple(f"{text}{remedy}" for text in differences)
        if reasons:
            status = "fail"
            differences = differences if why == "outputs" else ()
        # Of several threads one is counted; calls of something else cost what they cost.
        is_timed = self._judging.threads == 1 and cause != "interface"
        return Verdict(
            status=status,
            reasons=(*reasons, *differences),
            cause=cause or why,
            judge=reference.judge,
            sample_source=reference.source,
            sample_count=min(len(execution.ran), expected),
            outputs=outputs,
            entries=entries,
            notes=(*notes, *unread),
            cost=cost_of(reference.execution.cpu, execution.cpu) if is_timed else None,
        )

    def _whole(self, reference: Reference, verdict: Verdict, tolerance: Tolerance, started: float) -> Verdict:
        """Adds what is said of the run of the original, and of calls that follow those that were made."""
        grown: list[str] = []
        assumed = _assumed(reference) if verdict.sample_count else ()
        if verdict.passed and reference.interface.carries_state and not self._judging.independent:
            grown = [told for item in verdict.outputs if (told := growth_of(item, tolerance.min_snr))]
        if grown:
            calls = max(len(item.energies) for item in verdict.outputs)
            assumed = (*assumed, f"for {calls} calls in a row")
        return replace(
            verdict,
            assumed=assumed,
            unseen=(*reference.unseen, *verdict.unseen, *(f"longer sequences ({told})" for told in grown)),
            notes=(*reference.notes, *verdict.notes),
            seconds=time.monotonic() - started,
        )

    def _excused(self, reference: Reference, verdict: Verdict, tolerance: Tolerance, repeat: bool) -> Verdict:
        """A difference proves nothing where the original differs from itself: runs it once more."""
        again = self._repeats.original_again()
        failed = {(output.signature, output.position) for output in verdict.outputs if not output.passed}
        differences = "; ".join(verdict.reasons)
        if isinstance(again, Failure):
            text = f"the original does not run a second time: {again.message}; {differences}"
            return replace(verdict, status="unverified", cause=again.kind, reasons=(text,))
        excuses = dict.fromkeys(failed & differing(again, tolerance), _UNREPEATABLE)
        notes: list[str] = []
        # The same kernels computed both files: what must be equal to the bit can be.
        for output in verdict.outputs if repeat and not tolerance.exact else ():
            key = output.signature, output.position
            if output.passed or key in excuses:
                continue
            excused, said = self._repeats.excuse(output, tolerance)
            notes += [] if said is None else [said]
            if excused:
                excuses[key] = _KERNELS
        found = reference.interface.entry_points
        entries = tuple(_of_entry(reference, entry, verdict.outputs, excuses) for entry in found)
        status, cause, reasons = weighed(entries)
        return replace(
            verdict,
            status=status,
            cause=cause,
            reasons=reasons,
            entries=entries,
            notes=(*verdict.notes, *notes),
        )


class Pending:
    """A file that is being judged, or is going to be once the verdict is asked for.

    Args:
        judge: That judges.
        path: The file.
        tolerance: What it is judged by.
    """

    def __init__(self, judge: Judge, path: Path, tolerance: Tolerance) -> None:
        self.path = path
        self._judge = judge
        self._tolerance = tolerance
        self._run: tuple[Worker, Reference, Tallying] | None = None
        self._ended: Execution | None = None

    def start(self, request: dict[str, object], worker: Worker, reference: Reference) -> None:
        """Begins the run."""
        tallying = Tallying(reference)
        worker.begin(request, on_ran=tallying.take)
        self._run = worker, reference, tallying

    def meanwhile(self, work: Callable[[], T]) -> T:
        """Returns what some other work comes to, which is done while the file is run.

        No judge is asked in it. The processes are ended where it fails: nobody is going to wait for them.
        """
        try:
            return work()
        except BaseException:
            self._judge.rest()
            raise

    def wait(self) -> None:
        """Waits for the run. It must have ended before a verdict is asked for on another file."""
        if self._run is not None and self._ended is None:
            with TerminationGuard(), scratch_errors():
                try:
                    self._ended = self._run[0].finish()
                except BaseException:
                    self._judge.rest()
                    raise

    def verdict(self) -> Verdict:
        """Returns the verdict, as :meth:`Judge.compare` does.

        Raises:
            UsageError: See there.
        """
        self.wait()
        if self._run is None or self._ended is None:
            return self._judge.compare(self.path, tolerance=self._tolerance)
        with self._ended as execution:
            if execution.failure is None or not execution.failure.crowded:
                _, reference, tallying = self._run
                return self._judge.told(reference, execution, tallying, self._tolerance)
        self._judge.rest()
        return self._judge.compare(self.path, tolerance=self._tolerance)


def verdicts(pending: Sequence[Pending]) -> list[Verdict]:
    """Returns the verdicts on files that are run at the same time."""
    for each in pending:
        each.wait()
    return [each.verdict() for each in pending]


def _assumed(reference: Reference) -> tuple[str, ...]:
    if reference.source == "real":
        return reference.assumed
    made = "made samples" if reference.source == "made" else "made samples in part"
    return (made, *reference.assumed)


_UNREPEATABLE = "unrepeatable", "the original does not repeat its own outputs from one run to the next"
_KERNELS = "kernels", "the original differs from itself as much when other kernels compute it"


def _remedy(reference: Reference, tallies: Iterable[OutputTally]) -> str:
    """Returns what is to be said of samples with which no output says anything, behind a colon."""
    if any(tally.elements and tally.all_nan == tally.samples for tally in tallies) and reference.holds_nan:
        return ": the samples hold NaN, give some that do not"
    if len(reference.calls) > 1 and reference.is_uniform:
        return ": the samples are all equal, give some that differ"
    return ""


def _of_entry(
    reference: Reference,
    entry: EntryPoint,
    outputs: Sequence[OutputComparison],
    excuses: Mapping[Key, tuple[str, str]] | None = None,
) -> EntryVerdict:
    """What is said of one entry point.

    Args:
        outputs: Of all entry points.
        excuses: Outputs whose differences prove nothing, with the cause and what to say.
    """
    failure = reference.failed.get(entry.key)
    if failure is not None:
        what = "the original" if entry.key is None else f"{entry.label} of the original"
        said = (f"{what} {failure.told}",)
        return EntryVerdict(
            signature=entry.key, label=entry.label, status="unverified", reasons=said, cause=failure.kind
        )
    own = [output for output in outputs if output.signature == entry.key]
    return entry_verdict(entry.key, entry.label, own, excuses)


def run_model(path: PathLike, judging: Judging | None = None, *, beside: Judge | None = None) -> RunResult:
    """Runs one file and returns its inputs and outputs in memory. For the arguments see `Judge`.

    Raises:
        UsageError: See `Judge`.
    """
    with Judge(path, judging, beside=beside) as judge:
        return judge.reference()


def interface_differences(
    before: Interface, after: Interface, *, retyped: bool = False
) -> tuple[list[str], list[str]]:
    """What a caller of the model would notice, and what only a reader of names would.

    A difference in number, order, dtype, shape, quantization or in the names of a signature breaks callers.
    Names of the tensors alone do not where callers go by position: those are noted. With ``retyped``, real
    values may come in another type: that was asked for.

    Returns:
        The breaking differences and the notes, each a sentence.
    """
    broken: list[str] = []
    notes: list[str] = []
    keys_before = [entry.key for entry in before.signatures]
    keys_after = [entry.key for entry in after.signatures]
    broken += [f"signature {quoted(key or '')} is missing" for key in keys_before if key not in keys_after]
    broken += [f"signature {quoted(key or '')} is new" for key in keys_after if key not in keys_before]
    for entry in (before.primary, *before.signatures):
        other = after.find(entry.key)
        if other is None:
            continue
        for role, ours, theirs in (
            ("input", entry.inputs, other.inputs),
            ("output", entry.outputs, other.outputs),
        ):
            _compare_tensors(entry, role, ours, theirs, broken, notes, retyped=retyped)
    return broken, notes


def _compare_tensors(
    entry: EntryPoint,
    role: str,
    before: tuple[TensorFacts, ...],
    after: tuple[TensorFacts, ...],
    broken: list[str],
    notes: list[str],
    *,
    retyped: bool,
) -> None:
    if len(before) != len(after):
        broken.append(f"{entry.label} has {len(after)} {role}s instead of {len(before)}")
        return
    names, renamed = [facts.name for facts in before], [facts.name for facts in after]
    if names != renamed and sorted(names) == sorted(renamed) and len(set(names)) == len(names):
        # The interpreter itself knows them by position only.
        order = ", ".join(map(quoted, renamed))
        broken.append(f"the {role}s of {entry.label} stand in another order: {order}")
        return
    for position, (old, new) in enumerate(zip(before, after, strict=True)):
        what = f"{role} {position} ({quoted(old.name)}) of {entry.label}"
        if old.name != new.name:
            told = f"{what} is named {quoted(new.name)}"
            (notes if entry.key is None else broken).append(told)
        # What is left of that differs in more than what was asked for.
        held = as_type_of(old, new) if retyped else new
        if old.declared != held.declared:
            # What an output is when it is made is compared for itself.
            unsaid = role == "output" and old.dtype == new.dtype and not old.shape_signature
            told = f"{what} is {new.declared} instead of {old.declared}"
            (notes if unsaid else broken).append(told)
        elif old.shape != new.shape:
            broken.append(f"{what} has the default shape {list(new.shape)} instead of {list(old.shape)}")
        if _quantization(old) != _quantization(held):
            broken.append(f"{what} is quantized with {_quantization(new)} instead of {_quantization(old)}")


def _quantization(facts: TensorFacts) -> str:
    if not facts.scales:
        return "nothing"
    return f"scale {list(facts.scales)} and zero point {list(facts.zero_points)}"


class Panel:
    """Judges that work one after another, each with processes of its own.

    Use it as a context manager, or call `close`.

    Args:
        before: The original.
        judging: How files are run; each of its runtimes judges with each of its resolvers, and what is named
            twice judges once. Of those that are implied, one with which the original does not run leaves,
            unless all do.
        progress: Called with what is being done.

    Raises:
        UsageError: See `Judge`.
    """

    def __init__(
        self,
        before: PathLike,
        judging: Judging | None = None,
        *,
        progress: Callable[[str], None] | None = None,
    ) -> None:
        settings = judging or Judging()
        self._implied = bool(settings.implied) and not settings.resolver
        self._are_compared, self._must_agree = bool(settings.implied), settings.agreeing
        self._left: list[str] = []
        self._unseen: list[str] = []
        self._tolerance = settings.tolerance
        self._progress = progress
        kernels = tuple(dict.fromkeys(settings.resolver or settings.implied))
        self._judges: list[tuple[str, Judge]] = []
        try:
            for runtime in dict.fromkeys(settings.runtime):
                for resolver in kernels or ("",):
                    chosen = (resolver,) if resolver else ()
                    single = replace(settings, runtime=(runtime,), resolver=chosen)
                    judge = Judge(before, single, kernels=kernels if len(kernels) > 1 else ())
                    name = f"{runtime}, {resolver} kernels" if resolver else runtime
                    self._judges.append((name, judge))
        except BaseException:
            self.close()
            raise
        self._first = self._judges[0][1]

    def __enter__(self) -> Panel:
        self._first.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        try:
            self.close()
        finally:
            self._first.__exit__(kind, error, trace)

    def close(self) -> None:
        """Ends all processes and removes the temporary folders."""
        for _, judge in self._judges:
            judge.close()

    def compare(self, after: PathLike, *, tolerance: Tolerance | None = None, repeat: bool = True) -> Verdict:
        """Has every judge judge one rewritten file (see `Judge.compare`).

        Returns:
            The worst verdict, with those of all judges in it: a failure that one of them sees is a failure,
            and a file that one of them cannot judge is unverified, unless it failed.

        Raises:
            UsageError: See `Judge.compare`.
        """
        verdicts = []
        for number, (name, judge) in enumerate(self._judges, 1):
            if self._progress is not None:
                which = "" if len(self._judges) == 1 else f" {number} of {len(self._judges)}, {name}"
                self._progress(f"verifying{which}")
            if self._implied and number > 1:
                judge.follow(self._judges[number - 2][1])
            verdicts.append(judge.compare(after, tolerance=tolerance, repeat=repeat))
            if len(self._judges) > 1:
                # Their memory is the next one's.
                judge.rest()
        if self._implied:
            verdicts = self._able(verdicts)
        notes, own = self._differences(tolerance or self._tolerance)
        verdict = combined(verdicts, [*self._left, *notes])
        verdict = replace(verdict, unseen=(*verdict.unseen, *self._unseen))
        together = agreed(verdict, own) if self._are_compared else verdict
        if together is verdict or self._must_agree:
            return together
        return replace(verdict, notes=(*verdict.notes, *together.reasons))

    def _able(self, verdicts: Sequence[Verdict]) -> list[Verdict]:
        """Dismisses the judges with which the original does not run; returns the verdicts of the others."""
        judges = list(zip(self._judges, verdicts, strict=True))
        settled = {judge.runtime for _, judge in self._judges if judge.settled is not None}
        # A runtime judges with what it has; one that cannot at all was asked for, and so was its word.
        unable = [
            number
            for number, ((_, judge), verdict) in enumerate(judges)
            if judge.settled is None and judge.runtime in settled and verdict.cause == "error"
        ]
        if not unable:
            return list(verdicts)
        for number in unable:
            (name, judge), verdict = judges[number]
            judge.close()
            self._unseen.append(f"{name}: the original does not run with them")
            self._left.append(f"not judged with {name}: {'; '.join(verdict.reasons)}")
        kept = [item for number, item in enumerate(judges) if number not in unable]
        self._judges = [item for item, _ in kept]
        return [verdict for _, verdict in kept]

    def judge_of(self, verdict: Verdict) -> Judge:
        """The judge of the worst verdict that `compare` returned."""
        for (_, judge), one in zip(self._judges, verdict.each, strict=False):
            if one.judge == verdict.judge and one.status == verdict.status:
                return judge
        return self._judges[0][1]

    def _differences(self, tolerance: Tolerance) -> tuple[list[str], list[dict[int, float]]]:
        """Where the original differs from itself between the judges.

        Returns:
            Notes; and of each judge, by the position of an output, its ratio to the first judge's, in dB.
        """
        settled = [judge.settled for _, judge in self._judges]
        first = next((reference for reference in settled if reference is not None), None)
        notes: list[str] = []
        own: list[dict[int, float]] = []
        for other in settled:
            own.append({})
            if first is None or other is None or other is first:
                continue
            outputs = between(first, other, tolerance)
            notes += differences(first, other, outputs)
            own[-1] = {at: one.snr_db for at, one in enumerate(outputs) if one.snr_db is not None}
        return notes, own
