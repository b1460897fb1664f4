"""The run of the original: which resolver takes it, on which inputs, and what came out."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import field, replace
from pathlib import Path

import numpy as np

from tfl_rewrite.errors import UsageError
from tfl_rewrite.interpreter.child import load_array
from tfl_rewrite.interpreter.interface import Array, EntryPoint, Interface
from tfl_rewrite.interpreter.memory import amount
from tfl_rewrite.interpreter.worker import RESOLVERS, Execution, Failure, Worker
from tfl_rewrite.judge.channels import Movement
from tfl_rewrite.judge.counterparts import seen, write_own_calls
from tfl_rewrite.judge.retyped import as_taken, on_steps, write_converted
from tfl_rewrite.judge.settings import Judging
from tfl_rewrite.judge.verdict import JudgeInfo
from tfl_rewrite.options.frozen import frozen
from tfl_rewrite.samples.inputs import RealInputs, real_inputs
from tfl_rewrite.samples.made import (
    LOUDER,
    VARIED,
    Recipe,
    Step,
    gentler_recipes,
    larger_step,
    louder_recipes,
    made_steps,
    write_steps,
)

PathLike = str | os.PathLike[str]

UNASKED = ("default", "builtin")
"""The resolvers that are tried where none was asked for."""
KEPT_NBYTES = 256 << 20
"""Outputs of the original that stay on disk, since every rewritten file is compared with them. Where they are
more, fewer samples are judged."""
SINGLE_NBYTES = 512 << 20
"""Instead, where it comes to a single sample of each entry point."""
STATE_CALLS, STATE_NBYTES = 16, 64 << 20
"""Of a model that carries something from call to call, each made sample stands for so many calls: what leaks
by a hundredth a call shows over many of them only. Fewer where the weights that they read come to more bytes;
not by time, since a verdict must not depend on how busy a machine is."""
ROUNDS = 4
"""How often the entry points of such a model are called in turn, after all calls of each: what one of them
leaves shows in what another gives, whichever comes first in the file."""
PATIENCE_SECONDS = 5.0
"""How long an original may fail before no gentler inputs and no other resolver are tried."""


def existing(path: PathLike) -> Path:
    """A file by its whole path.

    Raises:
        UsageError: There is none.
    """
    found = Path(path)
    if not found.is_file():
        raise UsageError("no such file", file=path, remedy="check the path")
    return found.absolute()


@frozen(kw_only=True)
class Reference:
    """A run of the original that ended: with it every rewritten file is compared.

    Attributes:
        calls: All that were asked for, without their values; the last, optional ones may not have been run.
        failed: Entry points that do not run; there are no calls of them.
        assumed: What was assumed of the model's inputs, as in `media.PLAUSIBLE`.
        retyped: Whether another file may have other types at its border.
        exact: Whether its outputs must be equal then.
        steps: The list of calls for the child process, beside the arrays of inputs.
        own: What the original says of itself, where it is called by the names of another file.
    """

    execution: Execution
    interface: Interface
    calls: tuple[Step, ...]
    steps: Path
    resolver: str
    judge: JudgeInfo
    notes: tuple[str, ...] = ()
    failed: Mapping[str | None, Failure] = field(default_factory=dict)
    assumed: tuple[str, ...] = ()
    retyped: bool = False
    exact: bool = False
    own: Interface | None = None

    @property
    def source(self) -> str:
        """``real``, ``made`` or ``mixed``."""
        kinds = {call.real for call in self.calls[: len(self.execution.ran)]}
        return "mixed" if len(kinds) == 2 else ("real" if True in kinds else "made")

    @property
    def is_uniform(self) -> bool:
        """Whether all samples of each entry point are equal."""
        known: dict[str | None, list[bytes]] = {}
        for signature, arrays in self._given():
            given = [repr(array.shape).encode() + array.tobytes() for array in arrays]
            if known.setdefault(signature, given) != given:
                return False
        return True

    @property
    def holds_nan(self) -> bool:
        """Whether every sample holds a NaN: what most models make of that is NaN."""
        return all(
            any(array.dtype.kind in "fc" and bool(np.isnan(array).any()) for array in arrays)
            for _, arrays in self._given()
        )

    def _given(self) -> Iterator[tuple[str | None, list[Array]]]:
        """Yields the signature and the inputs of each call."""
        # Where the arrays lie: an input that serves several calls is stored once.
        listed = json.loads(self.steps.read_text(encoding="utf-8"))
        for call, step in zip(self.calls, listed, strict=False):
            yield call.signature, [load_array(Path(stem)) for _, stem in step["inputs"]]

    @property
    def unseen(self) -> tuple[str, ...]:
        """What was not run although it was asked for, as a phrase."""
        left_out = self.execution.left_out
        if not left_out:
            return ()
        asked = left_out + sum(not call.optional for call in self.calls)
        each = amount(max(self.execution.nbytes))
        return (
            f"{left_out} of {asked} samples (outputs take {each} each, and {amount(KEPT_NBYTES)} are kept)",
        )

    def entry(self, call: Step) -> EntryPoint:
        """The entry point of a call."""
        found = self.interface.find(call.signature)
        assert found is not None
        return found


class Original:
    """Finds out how the original can be run, once.

    Unless a resolver was asked for, the default one comes first, because users run it; the one without
    delegates only where nothing else works. Made inputs that the model fails on are made gentler before it
    counts as unrunnable. Of outputs that are too large to be kept, fewer samples are run.

    Args:
        path: The original.
        workers: That of the original, and that of the rewritten files.
        given: The folder that inputs are written to, which the processes may read.

    Attributes:
        most: Of each entry point so many samples are run; None for all.
        inputs_of: The file that the user's samples are for, where this one takes the same in other types.
    """

    def __init__(self, path: Path, judging: Judging, workers: tuple[Worker, Worker], given: Path) -> None:
        self.path = path
        self.judging = judging
        self.workers = workers
        self.judge: JudgeInfo | None = None
        self.most: int | None = None
        self.inputs_of: Path | None = None
        self._given = given
        self._theirs: Interface | None = None
        self._named_as: Interface | None = None
        self._own: Interface | None = None
        self._converted: dict[Path, Path] = {}
        self._settled: Reference | Failure | None = None
        self._beside: Callable[[Reference], None] = lambda reference: None
        self._execution: Execution | None = None
        self._began = 0.0

    @property
    def settled(self) -> Reference | None:
        """The run of the original, once there is one that ended."""
        return self._settled if isinstance(self._settled, Reference) else None

    def discard(self) -> None:
        """Removes the inputs, and what the run left."""
        if self._execution is not None:
            self._execution.discard()
        shutil.rmtree(self._given, ignore_errors=True)

    @property
    def reference(self) -> Reference:
        """The same, of which it is known that there is one."""
        assert isinstance(self._settled, Reference)
        return self._settled

    def take_steps_of(self, theirs: Interface) -> None:
        """Puts the samples onto the steps of a file that takes other types, before anything is run.

        Those of the user only where outputs must be equal.
        """
        if self._settled is None:
            self._theirs = theirs

    def call_as(self, theirs: Interface | None) -> None:
        """Has the original called by the names of a file that has other ones, before anything is run."""
        if self._settled is None:
            self._named_as = theirs

    def convert_steps(self, reference: Reference, path: Path, theirs: Interface | None) -> Path:
        """The list of calls for another file; see `write_converted`. `steps_of` knows it from then on."""
        steps = reference.steps
        if theirs is not None:
            steps = self._converted[path] = write_converted(steps, reference.interface, theirs)
        return steps

    def steps_of(self, path: Path) -> Path:
        """The list of calls for a file: the original's own, unless other ones were written."""
        return self._converted.get(path, self.reference.steps)

    def request(self, verb: str, path: Path, resolver: str, steps: Path | None = None) -> dict[str, object]:
        """What a process is asked to do with a file."""
        asked: dict[str, object] = {
            "do": verb,
            "model": str(path),
            "resolver": resolver,
            "threads": self.judging.threads,
            "memory": self.judging.memory_limit,
            "independent": self.judging.independent,
        }
        return asked if steps is None else {**asked, "steps": str(steps)}

    def settle(self, beside: Callable[[Reference], None] | None = None) -> Reference | Failure:
        """The run that all comparisons use, or why there is none.

        Args:
            beside: Called whenever a run begins, to begin another on the same calls in the second worker.
                That one is looked at whenever a call of the original has ended, and killed where it fails.

        Raises:
            UsageError: The runtime cannot be started, or the user's inputs do not fit the model.
        """
        if self._settled is not None:
            return self._settled
        if beside is not None:
            self._beside = beside
        result = self._try_runtime()
        first, judge = result, self.judge
        # The next runtime of that Python may have operators that this one lacks, such as TensorFlow's (Flex).
        while isinstance(result, Failure) and _lacks_something(result) and self.workers[0].fall_back():
            result = self._try_runtime()
        if isinstance(first, Failure) and isinstance(result, Reference):
            assert judge is not None
            lacking = f"{judge.runtime} {judge.version} does not run the original ({first.message})"
            note = f"{lacking}: judged by the next runtime of that Python"
            result = replace(result, notes=(note, *result.notes))
        elif isinstance(first, Failure):
            # What the first of them says is what the user meets elsewhere.
            result, self.judge = first, judge
        self._settled = result
        return result

    def _try_runtime(self) -> Reference | Failure:
        """The run with the first resolver that takes it, in the runtime that the worker has."""
        failures: list[tuple[Failure, JudgeInfo | None]] = []
        self._began = time.monotonic()
        asked = self.judging.resolver[:1]
        for resolver in asked or UNASKED:
            result = self._try_resolver(resolver)
            if isinstance(result, Reference):
                return result
            failures.append((result, self.judge))
            if result.kind in ("timeout", "disk") or self._out_of_patience():
                break
        # The default resolver's reason is the one that the user meets elsewhere.
        failure, self.judge = failures[0]
        return failure

    def _try_resolver(self, resolver: str) -> Reference | Failure:
        interface = self._describe(resolver)
        if isinstance(interface, Failure):
            return interface
        real = self._real(interface) if self.judging.inputs else None
        made = [entry for entry in interface.entry_points if real is None or entry.key not in real.covered]
        # What is left to try for each entry point that samples are made for, the next one first.
        gentler = {entry.key: [VARIED, *gentler_recipes(entry)] for entry in made}
        louder = {entry.key: list(louder_recipes(entry)) for entry in made}
        first: dict[str | None, Failure] = {}
        failed: dict[str | None, Failure] = {}
        while True:
            chosen = {key: recipes[0] for key, recipes in gentler.items()}
            try:
                steps, notes = self._steps(interface, real, chosen, failed)
            except ValueError as error:
                return Failure(kind="error", stage="running", step=None, message=str(error))
            if not steps:
                return next(iter(failed.values()))
            tried = self._run(steps, interface, resolver)
            failure = tried.execution.failure
            if failure is None:
                notes += self._notes(tried, chosen)
                assumed = () if real is None else real.assumed
                reference = replace(tried, notes=tuple(notes), failed=failed, assumed=assumed)
                quiet = [key for key in _silent(reference) if louder.get(key)]
                if not quiet or self._out_of_patience():
                    return reference
                for key in quiet:
                    gentler[key] = [louder[key].pop(0)]
                self.workers[1].kill()
                continue
            self.workers[1].kill()
            step = None if failure.step is None else tried.calls[failure.step]
            if step is not None and step.real and step.shapes:
                raise UsageError(
                    f"the model does not run at the sizes of the samples, {step.shapes}: {failure.message}",
                    file=self.path,
                    remedy="give samples of the declared sizes",
                )
            if failure.stage != "running" or step is None:
                return failure
            key = step.signature
            first.setdefault(key, failure)
            hopeless = failure.kind in ("timeout", "disk") or self._out_of_patience()
            if len(gentler.get(key, ())) > 1 and not hopeless:
                gentler[key].pop(0)
            else:
                # The others may run without it.
                refused = step.real and failure.kind in ("error", "crash") and not hopeless
                if refused and self._runs_made(interface, key, resolver):
                    first[key] = replace(failure, refused=True)
                failed[key] = first[key]

    def _runs_made(self, interface: Interface, key: str | None, resolver: str) -> bool:
        """Whether an entry point runs with a made sample, where it did not with the user's."""
        entry = interface.find(key)
        assert entry is not None
        for recipe in (VARIED, *gentler_recipes(entry)):
            try:
                made = made_steps(entry, count=1, seed=self.judging.seed, recipe=recipe)
            except ValueError:
                return False
            steps = write_steps(made, self._given)
            if self._own is not None:
                steps = write_own_calls(steps, self._own, interface, self.judging.counterparts)
            self.workers[0].begin(self.request("run", self.path, resolver, steps))
            with self.workers[0].finish() as ran:
                if ran.failure is None:
                    return True
        return False

    def _out_of_patience(self) -> bool:
        """Whether failing took so long that other ways to run the model are not worth their time."""
        return time.monotonic() - self._began > PATIENCE_SECONDS

    def _describe(self, resolver: str) -> Interface | Failure:
        """What the model takes and gives, if it opens and allocates with this resolver."""
        described = self._opened(self.path, resolver)
        self.judge = judge_info(self.workers[0], resolver, self.judging.threads)
        if isinstance(described, Failure):
            return described
        if not self.judging.counterparts:
            return described
        self._own = described
        return seen(described, self.judging.counterparts, self._named_as)

    def _opened(self, path: Path, resolver: str) -> Interface | Failure:
        worker = self.workers[0]
        worker.begin(self.request("open", path, resolver))
        with worker.finish() as opened:
            if opened.failure is not None:
                return opened.failure
            if opened.interface is None:
                text = "the interpreter process does not describe the model"
                return Failure(kind="crash", stage="opening", step=None, message=text)
            return opened.interface

    def _real(self, interface: Interface) -> RealInputs:
        """The user's samples, in the types that the model takes.

        Raises:
            UsageError: They do not fit.
        """
        known = interface if self.inputs_of is None else self._opened(self.inputs_of, UNASKED[0])
        if isinstance(known, Failure):
            known = interface
        real = real_inputs(known, self.judging.inputs)
        return replace(real, steps=tuple(as_taken(real.steps, known, interface)))

    def _steps(
        self,
        interface: Interface,
        real: RealInputs | None,
        recipes: Mapping[str | None, Recipe],
        failed: Mapping[str | None, Failure],
    ) -> tuple[list[Step], list[str]]:
        """All calls but those of entry points that failed, the optional ones last, and notes on them.

        Raises:
            ValueError: No values can be made for an input.
        """
        entries = [entry for entry in interface.entry_points if entry.key not in failed]
        steps = [] if real is None else [step for step in real.steps if step.signature not in failed]
        notes = [] if real is None else list(real.notes)
        seed, count = self.judging.seed, self.judging.samples
        times = self._calls_for_state() if interface.carries_state else 1
        for entry in entries:
            if real is not None and entry.key in real.covered:
                continue
            if real is not None:
                notes.append(f"{entry.label} is not covered by the input files: made samples")
            made = made_steps(entry, count=count * times, seed=seed, recipe=recipes[entry.key])
            if entry.inputs and len(made) < count:
                notes.append(f"the inputs of {entry.label} are large: {len(made)} samples instead of {count}")
            steps += made
        if interface.carries_state and not self.judging.independent:
            steps += _in_turn(steps)
        notes += [
            f"samples of {entry.label} have other sizes than declared: {texts[0]}"
            for entry in entries
            if (texts := [s.shapes for s in steps if s.signature == entry.key and s.real and s.shapes])
        ]
        if real is None:
            extra = [larger_step(entry, seed=seed) for entry in entries]
            steps += [step for step in extra if step is not None]
        if self.most is not None:
            count = sum(not step.optional for step in steps)
            steps = _first_samples(steps, self.most)
            if (kept := sum(not step.optional for step in steps)) < count:
                notes.append(f"{kept} of {count} samples: these kernels take over a second for each")
        if self._theirs is not None:
            moved = on_steps(steps, interface, self._theirs)
            is_exact = self.judging.tolerance.exact
            steps = [old if old.real and not is_exact else new for old, new in zip(steps, moved, strict=True)]
        return steps, notes

    def _calls_for_state(self) -> int:
        """How many calls a made sample stands for, of a model that carries something from one to the next."""
        if self.judging.independent:
            return 1
        nbytes = self.judging.samples * self.path.stat().st_size
        return max(1, min(STATE_CALLS, STATE_NBYTES // max(1, nbytes)))

    def _run(self, steps: list[Step], interface: Interface, resolver: str) -> Reference:
        """Runs all calls, or of each entry point the first few whose outputs can be kept."""
        assert self.judge is not None
        asked = sum(not step.optional for step in steps)
        most = _affordable(interface, steps, [])
        while True:
            steps = _first_samples(steps, most)
            for path in self._given.iterdir():
                # Of inputs that the model did not take, or that were too many.
                path.unlink()
            unrun = Reference(
                execution=Execution(folder=self._given),
                interface=interface,
                calls=tuple(replace(step, values=()) for step in steps),
                steps=write_steps(steps, self._given),
                resolver=resolver,
                judge=self.judge,
                retyped=self.judging.retyped,
                exact=self.judging.tolerance.exact,
                own=self._own,
            )
            if self._own is not None:
                listed = write_own_calls(unrun.steps, self._own, interface, self.judging.counterparts)
                self._converted[self.path] = listed
            execution = self._run_all(unrun, SINGLE_NBYTES if most == 1 else KEPT_NBYTES)
            execution.left_out = asked - sum(not step.optional for step in steps)
            failure = execution.failure
            if failure is None or failure.kind != "disk" or failure.stage != "running" or most == 1:
                return replace(unrun, execution=execution)
            self.workers[1].kill()
            most = min(most - 1, _affordable(interface, steps, execution.nbytes))

    def _run_all(self, unrun: Reference, keeps: int) -> Execution:
        worker, other = self.workers
        steps = self._converted.get(self.path, unrun.steps)
        request = self.request("run", self.path, unrun.resolver, steps)

        def begin() -> Execution:
            # What an earlier try gave is not compared with.
            if self._execution is not None:
                self._execution.discard()
            self._execution = worker.begin(
                request, on_ran=lambda _, step: other.advance(step), keeps=keeps, keeps_all=True
            )
            return self._execution

        self._beside(replace(unrun, execution=begin()))
        execution = worker.finish()
        if execution.failure is not None and execution.failure.crowded:
            # Both files at once are too much: one after the other, then.
            other.kill()
            begin()
            execution = worker.finish()
        failure, calls = execution.failure, unrun.calls
        if failure is not None and failure.step is not None and failure.step >= len(calls):
            # Told by a process that is not itself any more.
            failure = execution.failure = replace(failure, step=None)
        if failure is not None and failure.step is not None and calls[failure.step].optional:
            # It took the whole process with it, but what was asked for is there.
            execution.dropped = (failure.step, failure.message)
            execution.failure = None
        return execution

    def _notes(self, reference: Reference, recipes: Mapping[str | None, Recipe]) -> list[str]:
        notes = []
        if reference.resolver != (self.judging.resolver or UNASKED)[0]:
            notes.append("the original runs only without the default delegates (XNNPACK): so were both files")
        for key, recipe in recipes.items():
            if recipe is VARIED or all(call.signature != key for call in reference.calls):
                continue
            entry = reference.interface.find(key)
            assert entry is not None
            why = "gives always the same on" if recipe in LOUDER else "fails on"
            notes.append(f"{entry.label} {why} varied made samples; used instead: {recipe.name}")
        for number, call in enumerate(reference.calls):
            if call.optional:
                ran = number < len(reference.execution.ran)
                what = "judged as well" if ran else "refused by the original, not judged"
                notes.append(f"a sample with larger free sizes ({call.shapes}): {what}")
        return notes


def judge_info(worker: Worker, resolver: str, threads: int) -> JudgeInfo:
    """Which interpreter runs, of a process that has begun something."""
    hello = worker.hello
    return JudgeInfo(
        runtime=hello["hello"],
        version=hello["version"],
        resolver=RESOLVERS[resolver] if hello.get("chooses", True) else "its own kernels",
        threads=threads,
        python=hello["python"],
        kernels=resolver,
        asked=worker.given,
        sandbox=worker.walls,
    )


def _lacks_something(failure: Failure) -> bool:
    """Whether a runtime did not get as far as running the model, for a reason of its own."""
    return failure.kind in ("error", "crash") and failure.stage in ("opening", "allocating")


def _silent(reference: Reference) -> list[str | None]:
    """Entry points with made samples, all of whose outputs are the same for all samples."""
    moved: dict[str | None, list[Movement]] = {}
    for number, ran in enumerate(reference.execution.ran):
        call = reference.calls[number]
        entry = reference.entry(call)
        if call.real or call.optional or not entry.inputs:
            continue
        found = moved.setdefault(call.signature, [Movement() for _ in ran])
        for position, unreadable in enumerate(ran):
            if unreadable is None:
                found[position].add(reference.execution.output(number, position))
    return [key for key, found in moved.items() if found and not any(one.span for one in found)]


def _in_turn(steps: Sequence[Step]) -> list[Step]:
    """The first calls of several entry points once more, one of each after another; none of a single one."""
    own: dict[str | None, list[Step]] = {}
    for step in steps:
        own.setdefault(step.signature, []).append(step)
    if len(own) < 2:
        return []
    return [each[number % len(each)] for number in range(ROUNDS) for each in own.values()]


def _first_samples(steps: Sequence[Step], most: int) -> list[Step]:
    """Of each entry point the first samples; the optional ones are no samples that were asked for."""
    chosen = []
    seen: dict[str | None, int] = {}
    for step in steps:
        seen[step.signature] = seen.get(step.signature, 0) + (not step.optional)
        if step.optional or seen[step.signature] <= most:
            chosen.append(step)
    return chosen


def _affordable(interface: Interface, steps: Sequence[Step], measured: Sequence[int]) -> int:
    """How many samples of each entry point give outputs that can be kept.

    Args:
        steps: All calls.
        measured: Bytes that the first of them gave; what was not run gives what its outputs declare.
    """
    each = {
        entry.key: sum(facts.itemsize * math.prod(facts.shape) for facts in entry.outputs)
        for entry in interface.entry_points
    }
    for step, nbytes in zip(steps, measured, strict=False):
        each[step.signature] = max(each.get(step.signature, 0), nbytes)
    return max(1, min(len(steps), KEPT_NBYTES // max(1, sum(each.values()))))
