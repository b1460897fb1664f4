"""Judges a file against another way to compute the same: runs of other files, slices and sums of arrays.

A verdict of two files needs both to take the same inputs. A file that joins two models, one that takes a
larger batch, or one that is a part of another does not have such an original. What its outputs must be is
told by a route instead: a generator that gets one sample, asks for runs of other files, and returns the
outputs that it expects::

    def route(step):
        (inner,) = yield [Run(path=first, values=[value for _, value in step.values])]
        (outer,) = yield [Run(path=second, values=inner.values)]
        return outer.values

The routes of all samples go on side by side, so that each file is opened once for all of them. What a file
keeps in variables carries over from sample to sample, as in the file that is judged.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import field, replace
from pathlib import Path

import numpy as np

from tfl_rewrite.interpreter.interface import Array, EntryPoint
from tfl_rewrite.interpreter.memory import default_limit
from tfl_rewrite.interpreter.scratch import TerminationGuard, scratch_errors
from tfl_rewrite.interpreter.worker import Execution, Failure, ModelFailed
from tfl_rewrite.judge.compare import compared
from tfl_rewrite.judge.judge import CallOutputs, Judge, RunResult, run_model
from tfl_rewrite.judge.reference import UNASKED, PathLike, Reference, existing
from tfl_rewrite.judge.repeats import EXACT
from tfl_rewrite.judge.settings import Judging
from tfl_rewrite.judge.tally import OutputTally
from tfl_rewrite.judge.verdict import (
    EntryVerdict,
    Key,
    OutputComparison,
    Verdict,
    combined,
    entry_verdict,
    weighed,
)
from tfl_rewrite.options.frozen import frozen, slotted
from tfl_rewrite.samples.made import Step, write_steps

KEPT_NBYTES = 2 << 30
"""What the files of a route give for all samples, on disk, at one point of the way."""


Values = Sequence["Array | None"] | Mapping[str, "Array | None"]
"""Arrays in order of an entry point, or by name: runtimes sort the arguments of signatures by name."""


@frozen(kw_only=True)
class Run:
    """A run of another file that a route asks for.

    Attributes:
        path: The file.
        values: Its inputs, in order of the entry point or by name.
        signature: Key of the signature that is entered; None for the primary subgraph.
    """

    path: PathLike
    values: Values
    signature: str | None = None


Going = Generator[Sequence[Run], list[CallOutputs], Values]
"""A route on its way: gives the runs that it needs, is sent what came out, returns the outputs expected."""
Route = Callable[[Step], Going]
"""What is expected of a file for one sample, whose inputs are those of the file."""


def verify_route(
    after: PathLike,
    route: Route,
    judging: Judging | None = None,
    *,
    sources: Sequence[PathLike] = (),
    repeat: bool = True,
    original: bool = False,
    beside: Judge | None = None,
    progress: Callable[[str], None] | None = None,
) -> Verdict:
    """Runs a file, and the other way to compute the same on the same inputs, and compares every output.

    The samples are made from what the file declares, or they are the real inputs of ``judging``, which fit
    the file: for one that takes batches, group them first. Every runtime judges with every resolver, and the
    worst verdict counts.

    Args:
        after: The file.
        route: What its outputs must be.
        judging: How files are run and compared.
        sources: The files that the route runs. Where ``after`` does not run, they are run by themselves: if
            they do, it failed, and if not, nothing can be said.
        repeat: Run the file again, to see that it repeats its outputs.
        original: Whether ``after`` is the original, and the files of the route are what is judged: it is they
            that fail then.
        beside: A judge whose processes are used, so that none are started.
        progress: Called with what is being done.

    Raises:
        UsageError: See :class:`tfl_rewrite.judge.judge.Judge`.
    """
    settings = (judging or Judging()).for_judges
    kernels = tuple(dict.fromkeys(settings.resolver or settings.implied)) or ("",)
    verdicts = []
    for runtime in dict.fromkeys(settings.runtime):
        for resolver in kernels:
            if progress is not None:
                progress("verifying")
            chosen = (resolver,) if resolver else ()
            single = replace(settings, runtime=(runtime,), resolver=chosen, implied=(), retyped=False)
            with Judge(after, single, beside=beside) as judge:
                verdicts.append(
                    _Way(judge, single, route, sources, original).verdict(existing(after), repeat)
                )
    return combined(verdicts)


class _Way:
    """One judge on one route.

    Args:
        judge: Of the file, which it takes for an original.
        settings: Of one runtime.
        route: See `verify_route`.
        sources: Likewise.
        original: Likewise.
    """

    def __init__(
        self,
        judge: Judge,
        settings: Judging,
        route: Route,
        sources: Sequence[PathLike],
        original: bool,
    ) -> None:
        self._judge = judge
        self._settings = settings
        self._route = route
        self._sources = tuple(dict.fromkeys(os.fspath(path) for path in sources))
        self._original = original
        self._notes: list[str] = []
        self._excuses: dict[str | None, tuple[str, str]] = {}

    def verdict(self, after: Path, repeat: bool) -> Verdict:
        """What running both showed."""
        found = self._judge.reference()
        reference = self._judge.settled
        if found.failure is not None or reference is None:
            return self._lost(found)
        first = (self._settings.resolver or UNASKED)[0]
        if not self._original and reference.resolver != first and self._unable(first) is None:
            reason = f"the new file does not run with {first} kernels, with which the files it is made of run"
            return self._said("fail", "error", reason, found)
        if not self._original:
            excuses = {key: self._unable(reference.resolver, key) for key in reference.failed}
            self._excuses = {key: why for key, why in excuses.items() if why is not None}
        steps = [_step(reference, number, values) for number, values in enumerate(found.inputs)]
        try:
            with TerminationGuard(), scratch_errors(), contextlib.ExitStack() as stack:
                expected = self._expected(steps, reference, stack)
                verdict = self._compared(reference, found, expected)
        except ModelFailed as error:
            cause = "error" if error.failure is None else error.failure.kind
            if self._original:
                return self._said("fail", cause, f"a part does not run: {error}", found)
            reason = f"what to compare with cannot be made: {error}"
            return self._said("unverified", cause, reason, found)
        return self._repeated(after, verdict) if repeat and verdict.measured else verdict

    def _lost(self, found: RunResult) -> Verdict:
        """The file does not run: whether that is its own fault."""
        assert found.failure is not None
        if self._original:
            reason = f"the original {found.failure.told}"
            return self._said("unverified", found.failure.kind, reason, found)
        why = self._unable((self._settings.resolver or UNASKED)[0])
        if why is not None:
            return self._said("unverified", why[0], why[1], found)
        reason = f"the new file does not run: {found.failure.message}"
        return self._said("fail", found.failure.kind, reason, found)

    def _unable(self, resolver: str, *keys: str | None) -> tuple[str, str] | None:
        """Why a file that the route runs does not run by itself; None where all do.

        Args:
            resolver: To run them with.
            keys: Of the entry points that have to run, too; any that fails counts of a file that has none of
                them, for the route alone knows which it enters.
        """
        alone = replace(self._settings, inputs=(), resolver=(resolver,))
        for path in self._sources:
            ran = run_model(path, alone, beside=self._judge)
            if ran.failure is not None:
                return ran.failure.kind, f"{Path(path).name} does not run: {ran.failure.message}"
            entries = () if ran.interface is None else ran.interface.entry_points
            own = [entry for entry in entries if entry.key in keys] or (entries if keys else ())
            for entry in own:
                if (failure := ran.failed.get(entry.key)) is not None:
                    said = f"{entry.label} of {Path(path).name} does not run: {failure.message}"
                    return failure.kind, said
        return None

    def _said(self, status: str, cause: str, reason: str, found: RunResult) -> Verdict:
        return Verdict(
            status=status,
            reasons=(reason,),
            cause=cause,
            judge=found.judge,
            sample_source="real" if self._settings.inputs else "made",
            notes=tuple(self._notes),
        )

    def _expected(
        self, steps: Sequence[Step], reference: Reference, stack: contextlib.ExitStack
    ) -> list[Values | None]:
        """What the route gives for each sample; None for an optional one that a file on it refused.

        Raises:
            ModelFailed: A file on it does not run, or it does not fit the samples.
        """
        expected: list[Values | None] = [None] * len(steps)
        going = [_Going(number, step, self._route(step)) for number, step in enumerate(steps)]
        while going:
            for one in going:
                one.advance()
            for one in going:
                if one.result is not None:
                    expected[one.number] = one.result
            going = [one for one in going if one.result is None]
            asked = [_Asked(one, place, run) for one in going for place, run in enumerate(one.runs)]
            for path in dict.fromkeys(os.fspath(item.run.path) for item in asked):
                own = [item for item in asked if os.fspath(item.run.path) == path]
                self._run(path, own, reference, stack)
            going = [one for one in going if not one.is_refused]
        return expected

    def _run(
        self, path: str, asked: Sequence[_Asked], reference: Reference, stack: contextlib.ExitStack
    ) -> None:
        """Runs a file for all samples that ask for it; what came out lies on disk until the end."""
        worker, folder = self._judge.lend(0)
        steps = [
            Step(
                signature=item.run.signature,
                values=tuple((name, _given(value)) for name, value in _named(item.run.values)),
                optional=item.going.step.optional,
            )
            for item in asked
        ]
        limit = self._settings.memory_limit
        request = {
            "do": "run",
            "model": str(existing(path)),
            "resolver": reference.resolver,
            "threads": self._settings.threads,
            "memory": default_limit() if limit is None else limit,
            "independent": self._settings.independent,
            "steps": str(write_steps(steps, folder)),
        }
        worker.begin(request, keeps=KEPT_NBYTES, keeps_all=True)
        execution = stack.enter_context(worker.finish())
        if execution.failure is not None:
            raise ModelFailed(_of_file(path, execution.failure))
        if execution.dropped is not None:
            self._notes.append(f"{Path(path).name} refuses larger free sizes, which were not judged")
        for position, item in enumerate(asked):
            item.going.take(item.place, _outputs(execution, position, item.run.signature))

    def _compared(self, reference: Reference, found: RunResult, expected: Sequence[Values | None]) -> Verdict:
        """What the outputs of both come to."""
        tallies: dict[Key, OutputTally] = {}
        reasons: list[str] = []
        both = [pair for pair in zip(found.outputs, expected, strict=True) if pair[1] is not None]
        for made, wanted in both:
            entry = reference.interface.find(made.signature)
            assert entry is not None
            if wanted is None or len(wanted) == len(made.values):
                _add(tallies, entry, made, wanted or ())
                continue
            told = f"interface: {entry.label} has {len(made.values)} outputs instead of {len(wanted)}"
            reasons += [] if told in reasons else [told]
        outputs = tuple(compared(tally, self._settings.tolerance) for tally in tallies.values())
        entries = tuple(
            self._of_entry(reference, entry, [item for item in outputs if item.signature == entry.key])
            for entry in reference.interface.entry_points
        )
        status, cause, why = weighed(entries)
        if reasons:
            status, cause, why = "fail", "interface", (*reasons, *why)
        made_samples = {"made": ("made samples",), "mixed": ("made samples in part",)}
        notes = (note.replace("the original", self._called) for note in reference.notes)
        return Verdict(
            status=status,
            reasons=tuple(why),
            cause=cause,
            judge=reference.judge,
            sample_source=reference.source,
            sample_count=len(both),
            assumed=(*made_samples.get(reference.source, ()), *reference.assumed) if both else (),
            unseen=reference.unseen,
            outputs=outputs,
            entries=entries,
            notes=(*notes, *dict.fromkeys(self._notes)),
            seconds=found.seconds,
        )

    def _of_entry(
        self, reference: Reference, entry: EntryPoint, outputs: Sequence[OutputComparison]
    ) -> EntryVerdict:
        """What is said of one entry point; of a new file, one that does not run any more is a fault."""
        failure = reference.failed.get(entry.key)
        if failure is None:
            return entry_verdict(entry.key, entry.label, outputs)
        cause, said = self._excuses.get(
            entry.key, (failure.kind, f"{entry.label} of {self._called} does not run: {failure.message}")
        )
        status = "unverified" if self._original or entry.key in self._excuses else "fail"
        return EntryVerdict(
            signature=entry.key, label=entry.label, status=status, reasons=(said,), cause=cause
        )

    @property
    def _called(self) -> str:
        return "the original" if self._original else "the new file"

    def _repeated(self, after: Path, verdict: Verdict) -> Verdict:
        """Adds what running the file again shows: garbage that a kernel reads is another one then."""
        again = self._judge.compare(after, tolerance=EXACT, repeat=True)
        verdict = replace(verdict, repeated=again.repeated, seconds=verdict.seconds + again.seconds)
        repeats = again.cause in ("", "nothing") or all(item.passed for item in again.outputs)
        if again.status != "fail" and repeats:
            return verdict
        text = f"{self._called} does not repeat its own outputs from one run to the next"
        if verdict.status == "fail" and verdict.cause == "outputs":
            reasons = tuple(f"{text}: {reason}" for reason in verdict.reasons)
            return replace(verdict, status="unverified", cause="unrepeatable", reasons=reasons)
        return replace(verdict, notes=(*verdict.notes, text))


@slotted(eq=False)
class _Going:
    """The route of one sample, on its way.

    Attributes:
        runs: What it waits for; ``ran`` is what came out so far.
        result: What it returned.
        is_refused: A file refused an optional sample.
    """

    number: int
    step: Step
    route: Going
    runs: Sequence[Run] = ()
    ran: list[CallOutputs | None] = field(default_factory=list)
    result: Values | None = None
    is_refused: bool = False
    _started: bool = False

    def advance(self) -> None:
        """Goes on with what came out, to the next runs or to the end.

        Raises:
            ModelFailed: The route does not fit the sample.
        """
        try:
            if self._started:
                self.runs = self.route.send([item for item in self.ran if item is not None])
            else:
                self.runs, self._started = next(self.route), True
        except StopIteration as end:
            self.result = dict(end.value) if isinstance(end.value, Mapping) else tuple(end.value)
            self.runs = ()
        except (ValueError, LookupError, TypeError, ArithmeticError) as error:
            raise ModelFailed(f"sample {self.number + 1} does not fit: {error}") from error
        self.ran = [None] * len(self.runs)

    def take(self, place: int, outputs: CallOutputs | None) -> None:
        """Takes in what one of the runs gave; None where it was refused."""
        self.ran[place] = outputs
        self.is_refused = self.is_refused or outputs is None


@frozen
class _Asked:
    """One run, and who asked for it."""

    going: _Going
    place: int
    run: Run


def _of_file(path: str, failure: Failure) -> Failure:
    return replace(failure, message=f"{Path(path).name}: {failure.message}")


def _step(reference: Reference, number: int, values: Sequence[Array]) -> Step:
    """A call of the file with its inputs."""
    call = reference.calls[number]
    names = [facts.name for facts in reference.entry(call).inputs]
    return replace(call, values=tuple(zip(names, values, strict=True)))


def _named(values: Values) -> Iterable[tuple[str, Array | None]]:
    """Values with names; where they go by position with such that no signature has."""
    if isinstance(values, Mapping):
        return values.items()
    return [(f"\0{place}", value) for place, value in enumerate(values)]


def _given(value: Array | None) -> Array:
    if value is None:
        raise ModelFailed("an output that another file takes cannot be read")
    return value


def _outputs(execution: Execution, position: int, signature: str | None) -> CallOutputs | None:
    """What one call gave; None where it was refused."""
    if position >= len(execution.ran):
        return None
    entry = None if execution.interface is None else execution.interface.find(signature)
    unreadable = execution.ran[position]
    names = [facts.name for facts in entry.outputs] if entry is not None else []
    return CallOutputs(
        signature=signature,
        names=tuple(names),
        values=tuple(
            None if why is not None else execution.output(position, place)
            for place, why in enumerate(unreadable)
        ),
    )


def _add(tallies: dict[Key, OutputTally], entry: EntryPoint, made: CallOutputs, wanted: Values) -> None:
    """Takes in one sample."""
    if isinstance(wanted, Mapping):
        wanted = [wanted.get(facts.name) for facts in entry.outputs]
    for position, (facts, one, other) in enumerate(zip(entry.outputs, wanted, made.values, strict=True)):
        key = made.signature, position
        fixed = not entry.inputs
        tally = tallies.setdefault(
            key, OutputTally(facts, signature=made.signature, position=position, fixed=fixed)
        )
        if one is not None and other is not None:
            tally.add(np.asarray(one), np.asarray(other))
        elif one is not other:
            tally.unreadable(*("it has no value" if value is None else None for value in (one, other)))


Feed = tuple[int, int]
"""Where a value comes from: the number of a file, and of its output; or `OUTSIDE`, and of an input."""
OUTSIDE = -1
Named = Sequence[tuple[str, int]]
"""Arguments of a signature, each with its place in the primary subgraph."""


def wired(
    files: Sequence[tuple[PathLike, Sequence[Feed]]],
    outputs: Sequence[Feed],
    arguments: Mapping[str | None, tuple[Named, Named]],
    others: Mapping[str | None, tuple[PathLike, str | None]] | None = None,
) -> Route:
    """Makes the route of a file that is several others, one after the other.

    Args:
        files: Each with what its inputs are, in order of its primary subgraph.
        outputs: What the outputs of the whole are.
        arguments: For each signature of the whole that runs all of them what it calls the inputs and the
            outputs of the primary subgraph.
        others: For each other signature the file that has it, and what it is called there.
    """

    def route(step: Step) -> Going:
        if others is not None and step.signature in others:
            path, key = others[step.signature]
            (ran,) = yield [Run(path=path, values=dict(step.values), signature=key)]
            return dict(zip(ran.names, ran.values, strict=True))
        named = arguments.get(step.signature)
        # Of two arguments that are one input the last counts.
        places = None if named is None else dict(named[0])
        given = {
            at if places is None else places[name]: value for at, (name, value) in enumerate(step.values)
        }
        results: list[Sequence[Array | None]] = []

        def value_of(feed: Feed) -> Array | None:
            return given[feed[1]] if feed[0] == OUTSIDE else results[feed[0]][feed[1]]

        for path, feeds in files:
            (ran,) = yield [Run(path=path, values=[value_of(feed) for feed in feeds])]
            results.append(ran.values)
        found = [value_of(feed) for feed in outputs]
        return found if named is None else {name: found[place] for name, place in named[1]}

    return route
