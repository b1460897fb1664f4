"""A rewrite: open, run, write, judge, publish. The one place where the rooms meet.

What is asked for is a frozen :class:`Plan`; each of the five functions takes what the one before it made.
"""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tfl_rewrite.editing.base import (
    Context,
    Edit,
    Effect,
    Pass,
    PassResult,
    expanded,
    last_packing,
    run_passes,
)
from tfl_rewrite.errors import (
    FileAccessError,
    FormatError,
    UnsupportedError,
    check_number,
)
from tfl_rewrite.files.atomic import AtomicFile, FileSink, access_of, atomic_write
from tfl_rewrite.files.claims import INPUT, OUTPUT, Claim, check_claims
from tfl_rewrite.files.container import Container
from tfl_rewrite.files.source import Source
from tfl_rewrite.files.store import Layout, layout, save
from tfl_rewrite.flatbuf.writer import Packing
from tfl_rewrite.judge.settings import Judging
from tfl_rewrite.model.invariants import Problem, problems
from tfl_rewrite.numerics.deflate import EXACT_NBYTES, deflated, estimated
from tfl_rewrite.pipeline.report import Report, RewriteFailed
from tfl_rewrite.weights.repairs import undefined_reads
from tfl_rewrite.work import current, working

# Verification is loaded when something is verified: it takes longer to import than a small file to rewrite.
if TYPE_CHECKING:
    from tfl_rewrite.judge.verdict import Verdict
    from tfl_rewrite.pipeline.damage import Levels
    from tfl_rewrite.pipeline.verify import FullPanel

PathLike = str | os.PathLike[str]

_UNSOUND = (
    "the runtime refuses such a file; 'tfl-rewrite doctor' lists all that is wrong with it, and "
    "'tfl-rewrite repair' puts right what it can"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All that a rewrite is told before anything is opened.

    Attributes:
        source: The file to read, or one that was opened already.
        target: The file to make.
        passes: In order, those that consist of others in parts.
        settings: How to verify.
        force: Whether the target may exist.
        dry_run: Do everything but the publishing.
        ready: Called with the report just before the file gets its name; what it raises keeps that from
            happening.
    """

    source: PathLike
    target: PathLike
    passes: tuple[Pass, ...]
    settings: Judging
    force: bool = False
    dry_run: bool = False
    ready: Callable[[Report], None] = lambda _report: None

    def __post_init__(self) -> None:
        """Takes passes apart that consist of others."""
        object.__setattr__(self, "passes", tuple(expanded(self.passes)))


def rewrite(
    source: PathLike,
    target: PathLike,
    passes: Sequence[Pass],
    *,
    judging: Judging | None = None,
    force: bool = False,
    dry_run: bool = False,
    threads: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> Report:
    """Rewrites a file by some passes, proves the result, and gives it its name.

    Args:
        source: The file to read; never changed, unless it is the target too.
        target: The file to make.
        passes: In order.
        judging: How to verify; by default in mode ``auto``.
        force: Whether the target may exist.
        dry_run: Do everything but the publishing.
        threads: For rounding and writing; 0 for one per processor.
        progress: Called with what is going on, and how many of how many bytes are done; 0 of 0 for what is
            not counted in bytes.

    Raises:
        RewriteFailed: Outputs differ beyond the tolerance, or mode is ``require`` and nothing could be run.
        UsageError, FileAccessError, FormatError, UnsupportedError: As for
            :func:`tfl_rewrite.files.store.load` and :func:`tfl_rewrite.files.store.save`.

    Example:
        >>> report = tfl_rewrite.rewrite("model.tflite", "int8.tflite", [tfl_rewrite.QuantizeWeights()])
        >>> report.outcome, report.nbytes_after < report.nbytes_before / 2
        ('rewritten', True)
    """
    plan = Plan(
        source=source,
        target=target,
        passes=tuple(passes),
        settings=judging or Judging(),
        force=force,
        dry_run=dry_run,
    )
    with working(threads=threads, progress=progress):
        return carry_out(plan)


def carry_out(plan: Plan) -> Report:
    """Does what a plan says; see :func:`rewrite`. Threads and progress are those of the work that goes on."""
    with contextlib.ExitStack() as stack:
        opened = _open(plan, stack)
        try:
            return _attempt(opened, plan.passes)
        except RewriteFailed as error:
            failed = error
        return _rescue(opened, failed)


def _attempt(
    opened: _Opened,
    passes: Sequence[Pass],
    complete: Callable[[Report], Report] = lambda report: report,
) -> Report:
    """Does all of it once.

    Args:
        passes: Those of the plan; some may store constants finer.
        complete: Adds to the report, before anything is published, what else is known.

    Raises:
        RewriteFailed: See :func:`rewrite`.
    """
    ran = _run(opened, passes)
    with _write(opened, ran) as written:
        report = complete(_judge(opened, written))
        _publish(opened, written, report)
    return report


@dataclass(frozen=True, slots=True)
class _Opened:
    """A source, and all that is kept from one attempt to the next.

    Attributes:
        settings: How to verify, with what passes may be fitted to as its inputs.
        unfitted: Whether passes might have been fitted to the samples that judge, and were not.
        notes: For the report.
    """

    plan: Plan
    source: Source
    settings: Judging
    context: Context
    judges: _Judges
    unfitted: bool
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Ran:
    """What passes made of a model.

    Attributes:
        layout: The planned file.
        flaws: What is wrong with the model all the same.
        notes: For the report.
    """

    results: tuple[PassResult, ...]
    layout: Layout
    flaws: Sequence[Problem]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Written:
    """A file that has no name yet.

    Attributes:
        report: What is known of it so far.
        flaws: See :class:`_Ran`.
    """

    output: AtomicFile
    report: Report
    flaws: Sequence[Problem]


class _Judges:
    """The judges of what is made, and the file whose outputs it must have; made when first asked for.

    Args:
        stack: Closes them.
    """

    def __init__(
        self, source: Source, passes: Sequence[Pass], settings: Judging, stack: contextlib.ExitStack
    ) -> None:
        self._source = source
        self._passes = passes
        self._settings = settings
        self._stack = stack
        self._panel: FullPanel | None = None
        self._expected: PathLike | None = None

    def expected(self, results: Sequence[PassResult]) -> PathLike:
        """The file whose outputs the result must have (:class:`Effect`).

        Args:
            results: Of the first attempt.
        """
        if self._expected is None:
            self._expected = self._stack.enter_context(_expected(self._source, self._passes, results))
        return self._expected

    def panel(self, results: Sequence[PassResult]) -> FullPanel:
        """All judges.

        Args:
            results: Of the first attempt.
        """
        if self._panel is None:
            lossy = any(item.effect is Effect.TOLERANCE for item in self._passes)
            exact = not lossy and not any(result.reading for result in results)
            from tfl_rewrite.pipeline.verify import FullPanel

            settings = self._settings.exactly if exact else self._settings
            panel = FullPanel(self.expected(results), settings, progress=_say)
            self._panel = self._stack.enter_context(panel)
        return self._panel


def _say(what: str) -> None:
    progress = current().progress
    if progress is not None:
        progress(what, 0, 0)


def _open(plan: Plan, stack: contextlib.ExitStack) -> _Opened:
    """Checks what was asked for, opens the source, and divides the user's inputs."""
    settings = plan.settings
    check_number("threads", current().wanted_threads)
    check_claims(claims_of(plan.source, settings), [Claim(OUTPUT, os.fspath(plan.target))], force=plan.force)
    check_present(*settings.inputs, *settings.holdout)
    source = Source.of(plan.source)
    if settings.inputs or settings.holdout:
        from tfl_rewrite.reading.metadata import with_media

        settings = with_media(settings, source)
    unfitted, notes = False, tuple[str, ...]()
    context = Context()
    if settings.inputs and any(item.is_fitted for item in plan.passes):
        settings, unfitted, notes = _divided(source, plan.passes, settings, stack)
    if settings.inputs and any(item.is_fitted for item in plan.passes):
        from tfl_rewrite.calibration.fitter import InputActivations
        from tfl_rewrite.calibration.rounder import Settings

        activations = InputActivations(Settings.of(settings), current().progress)
        context = Context(activations=activations)
    judges = _Judges(source, plan.passes, settings, stack)
    return _Opened(plan, source, settings, context, judges, unfitted, notes)


def _divided(
    source: Source, passes: Sequence[Pass], settings: Judging, stack: contextlib.ExitStack
) -> tuple[Judging, bool, tuple[str, ...]]:
    """Sets samples aside that judge, where a pass is fitted to the user's inputs.

    Returns:
        How to verify, with what may be fitted to as its inputs; whether a pass might be fitted to the samples
        that judge; and notes for the report.
    """
    from tfl_rewrite.calibration.holdout import divide
    from tfl_rewrite.interpreter.scratch import Scratch

    model = source.model()
    run_passes(model, [item for item in passes if item.effect is Effect.INTERFACE])
    parted = divide(model, settings.inputs, settings.holdout, stack.enter_context(Scratch()).path)
    if parted.crossed:
        return replace(settings, inputs=parted.everything, holdout=parted.judge), True, ()
    note = f"weights are rounded without looking at inputs: {parted.reason}"
    return replace(settings, inputs=(), holdout=parted.judge), False, (note,)


def _run(opened: _Opened, passes: Sequence[Pass]) -> _Ran:
    """Runs passes on a model of the source and plans the file; nothing is written."""
    source, notes = opened.source, list(opened.notes)
    model = source.model()
    with model.remembering():
        results = run_passes(model, passes, opened.context)
        # Of what is written: a pass may have put right what was wrong.
        flaws = problems(model)
        packing = last_packing(results)
        made = layout(model, packing=packing)
    grows = any(result.grows for result in results)
    grows = grows or (packing is not None and packing.page > Packing().page)
    # What is patched in place keeps its size; its gain shows when the file is compressed.
    if made.verbatim is None and made.base is None and made.nbytes >= source.nbytes and not grows:
        if any(result.modified for result in results) or made.nbytes > source.nbytes:
            notes.append(f"the result would take {made.nbytes:,} bytes, not fewer; nothing was changed")
        results = [replace(result, changes=()) for result in results]
        packing, made = None, Layout.of(source)
    notes += made.notes
    if any(item.effect is Effect.INTERFACE for item in passes) and made.verbatim is None:
        notes.append("outputs are compared with those of the original cut to the same inputs and outputs")
    if made.verbatim is None and packing is not None:
        results = _with_packing(results, source.nbytes - made.nbytes)
    return _Ran(tuple(results), made, flaws, tuple(notes))


@contextlib.contextmanager
def _write(opened: _Opened, ran: _Ran) -> Iterator[_Written]:
    """Writes the planned file aside, and again the source where that deflates to less."""
    plan, source, results, notes = opened.plan, opened.source, ran.results, ran.notes
    nbytes, unchanged = ran.layout.nbytes, ran.layout.verbatim is not None
    sizes: tuple[int, int] | None = None
    with _place(plan, nbytes, access_of(source)) as output:
        _write_to(ran.layout, output)
        if not unchanged and any(item.for_download for item in plan.passes):
            sizes = _deflated(source, output, results)
            if nbytes == source.nbytes and sizes[1] >= sizes[0]:
                # Such as where a constant was equal to one that stays: it is not any more.
                note = f"deflated it would take {sizes[1]:,} bytes, not fewer; nothing was changed"
                results, notes = tuple(replace(result, changes=()) for result in results), (*notes, note)
                sizes, unchanged = None, True
                _write_to(Layout.of(source), output)
        report = Report(
            source=source.path,
            target=os.fspath(plan.target),
            outcome="unchanged" if unchanged else "rewritten",
            dry_run=plan.dry_run,
            nbytes_before=source.nbytes,
            nbytes_after=nbytes,
            results=results,
            deflated=sizes,
            estimated=sizes is not None and max(source.nbytes, nbytes) > EXACT_NBYTES,
            notes=notes,
        )
        yield _Written(output, report, ran.flaws)


def _judge(opened: _Opened, written: _Written) -> Report:
    """Verifies the file that was made; raises unless it may be published."""
    settings, report = opened.settings, written.report
    if report.outcome == "unchanged":
        return report
    made = Source.open(written.output.path)
    if settings.mode == "off":
        return _unverified(report, "not run, as asked", settings)
    report = _judged(opened, made, report)
    if report.unverified is not None and written.flaws:
        # It does not run, and we can say why: not a foreign kernel, but damage.
        flaw = written.flaws[0]
        raise FormatError(flaw.what, file=report.source, where=flaw.where, remedy=_UNSOUND)
    return report


def _judged(opened: _Opened, made: Source, report: Report) -> Report:
    """Runs the file that was made and compares; see :func:`_judge`."""
    settings, results = opened.settings, report.results
    model = made.model()
    if model.external_buffers:
        # Measured: the classic interpreter loads such a file and computes with zeros.
        reason = "weights lie in files beside the model, which this interpreter does not read"
        return _unverified(report, reason, settings)
    if found := undefined_reads(model):
        # In the words of the input, whose tensors and operators may have had other places.
        _refuse_undefined(undefined_reads(opened.source.model()) or found, report.source)
    verdict = opened.judges.panel(results).compare(made)
    if opened.unfitted:
        verdict = verdict.of_unfitted()
    if any(item.effect is Effect.REPAIR for item in opened.plan.passes):
        notes = (*report.notes, *_run_alone(made, results, settings, verdict))
        report = replace(report, notes=notes)
    report = replace(report, verdict=verdict)
    if verdict.status == "unverified":
        return _unverified(report, "; ".join(verdict.reasons), settings)
    from tfl_rewrite.pipeline.verify import guessed

    if verdict.passed and settings.mode == "require" and (guesses := guessed(verdict)):
        return _unverified(report, f"{guesses}; say it with --input-range", settings)
    differs = f"the rewritten model differs too much, nothing was written: {'; '.join(verdict.reasons)}"
    if not verdict.passed and settings.rescue and any(item.finer for item in opened.plan.passes):
        # Single constants may be stored finer; what is blamed is what comes of that.
        raise RewriteFailed(differs, replace(report, outcome="failed"))
    if settings.blame:
        from tfl_rewrite.reading.blame import blame

        report = replace(report, blame=blame(opened.judges.expected(results), made, settings))
    if not verdict.passed:
        raise RewriteFailed(differs, replace(report, outcome="failed"))
    return report


def _publish(opened: _Opened, written: _Written, report: Report) -> None:
    """Gives the file its name, unless its source was changed meanwhile."""
    opened.source.container.ensure_unchanged()
    opened.plan.ready(report)
    if not opened.plan.dry_run:
        written.output.publish()


def _rescue(opened: _Opened, failed: RewriteFailed) -> Report:
    """Stores the constants that did the damage finer, until the outputs pass.

    Raises:
        RewriteFailed: That is not possible, or not wanted.
    """
    verdict, report, passes = failed.report.verdict, failed.report, opened.plan.passes
    if verdict is None or verdict.status != "fail" or not verdict.measured:
        raise failed
    from tfl_rewrite.interpreter.scratch import Scratch
    from tfl_rewrite.pipeline.damage import Trials, find_rescue, measure_damage, most_costly, refined

    with Scratch() as scratch:
        judge = opened.judges.panel(report.results).judge_of(verdict)
        path = scratch.path / "trial.tflite"
        trials = Trials(opened.source, passes, report.results, judge, path, opened.context)
        if not trials.names:
            raise failed
        _say("looking for the constants that lose most")
        if not opened.settings.rescue:
            damage = measure_damage(trials, seconds=opened.settings.blame_seconds)
            failed.report = replace(report, damage=damage)
            if len(passes) == 1 and passes[0].excluding:
                failed.remedy = damage.remedy(passes[0])
            raise failed
        culprits = most_costly(trials)
        _say("storing constants finer until the outputs pass")
        levels = find_rescue(trials, culprits)
    while True:

        def complete(made: Report, levels: Levels = levels) -> Report:
            finer = trials.finer(levels, culprits, made.results)
            return replace(made, finer=finer, refused=verdict)

        try:
            return _attempt(opened, refined(passes, levels), complete)
        except RewriteFailed:
            # The search saw one judge only, and each file once.
            if all(levels.get(place, 0) >= trials.top(place) for place in trials.names):
                raise
            levels = {place: min(levels.get(place, 0) + 1, trials.top(place)) for place in trials.names}


def check_present(*paths: PathLike) -> None:
    """Looks whether real inputs are there, before any work is done.

    Raises:
        UsageError: See :func:`tfl_rewrite.samples.inputs.expand_paths`.
    """
    if paths:
        from tfl_rewrite.samples.inputs import expand_paths

        expand_paths(paths)


def claims_of(source: PathLike, judging: Judging) -> list[Claim]:
    """Returns what a rewrite reads: the model, and what it is verified with."""
    reads = [Claim(INPUT, os.fspath(source))]
    reads += [Claim("inputs", os.fspath(path)) for path in judging.inputs]
    return reads + [Claim("holdout", os.fspath(path)) for path in judging.holdout]


def _with_packing(results: Sequence[PassResult], saved: int) -> list[PassResult]:
    """Adds what the new layout did to the result of the pass that asked for it."""
    known = sum(getattr(change, "saved", 0) for result in results for change in result.changes)
    index = max(index for index, result in enumerate(results) if result.packing is not None)
    what = "what is equal is stored once" if saved >= known else "constants start where --align says"
    edit = Edit("the file", f"laid out anew: {what}", saved - known)
    changed = list(results)
    changed[index] = replace(results[index], changes=(*results[index].changes, edit))
    return changed


@contextlib.contextmanager
def _expected(source: Source, passes: Sequence[Pass], results: Sequence[PassResult]) -> Iterator[PathLike]:
    """Gives the file whose outputs the result must have."""
    marked = [item for item in passes if item.effect is Effect.INTERFACE]
    undefined = [item for item, result in zip(passes, results, strict=True) if result.reading]
    if not marked and not undefined:
        yield source
        return
    from tfl_rewrite.interpreter.scratch import Scratch

    model = source.model()
    for item in undefined:
        item.define(model, Context())
    run_passes(model, marked)
    with Scratch() as scratch:
        expected = scratch.path / "expected.tflite"
        save(model, expected)
        yield expected


def _refuse_undefined(found: Sequence[tuple[str, str]], source: str) -> None:
    """Refuses to judge what is computed from bytes that no one meant.

    Args:
        found: Where kernels read past what the file gives them, and why.

    Raises:
        UnsupportedError: Always.
    """
    where, why = found[0]
    raise UnsupportedError(
        f"{why}; what the model computes depends on how its file is laid out, so no rewrite can be judged",
        file=source,
        where=where,
        remedy=f"repair it first: tfl-rewrite repair {shlex.quote(source)} OUT",
    )


def _run_alone(made: Source, results: Sequence[PassResult], settings: Judging, verdict: Verdict) -> list[str]:
    """Runs a repaired file by itself where the original does not run, or only with plain kernels."""
    from tfl_rewrite.judge.judge import run_model

    notes = []
    plain = verdict.judge is not None and not verdict.judge.resolver.startswith("default")
    readings = [result.reading for result in results if result.reading]
    if readings:
        notes.append(f"compared with the original {' and '.join(readings)}: its own reading is undefined")
    elif verdict.status == "pass" and (settings.resolver or not plain):
        return notes
    if verdict.status == "fail":
        return notes
    alone = run_model(made, settings)
    if alone.failure is not None:
        return [*notes, f"the repaired file does not run either: {alone.failure.message}"]
    ran = f"the repaired file runs: {alone.judge}, {len(alone.outputs)} samples"
    if verdict.status == "unverified":
        return [*notes, f"{ran}; there is nothing to compare its outputs with"]
    return [*notes, f"{ran}; the original: {verdict.judge}"]


def _unverified(report: Report, reason: str, settings: Judging) -> Report:
    report = replace(report, unverified=reason)
    if settings.mode == "require":
        error = RewriteFailed(
            f"could not be verified, nothing was written: {reason}",
            replace(report, outcome="failed"),
            "use --verify auto to write it",
        )
        # Nothing differs; the file is one that cannot be judged here.
        error.exit_code = UnsupportedError.exit_code
        raise error
    return report


@contextlib.contextmanager
def _place(plan: Plan, nbytes: int, access: int) -> Iterator[AtomicFile]:
    """Opens the file to write to: beside the target, or, for a dry run, in a temporary folder."""
    if not plan.dry_run:
        with atomic_write(plan.target, force=plan.force, nbytes=nbytes, access=access) as output:
            yield output
        return
    from tfl_rewrite.interpreter.scratch import Scratch

    with Scratch() as scratch:
        target = scratch.path / "dry-run.tflite"
        with atomic_write(target, force=False, nbytes=nbytes) as output:
            yield output


def _write_to(made: Layout, output: AtomicFile) -> None:
    work = current()
    stage = work.stage("writing", made.nbytes)
    try:
        made.write_to(FileSink(output.sink.descriptor), threads=work.threads, tick=stage.tick)
    except OSError as error:
        raise FileAccessError(f"cannot write: {error.strerror or error}", file=output.target) from error


def _deflated(source: Source, output: AtomicFile, results: Sequence[PassResult]) -> tuple[int, int]:
    """Returns deflated sizes of both files, and lets changes find out theirs: all at once, for it is slow."""
    with ThreadPoolExecutor(current().threads) as pool:
        containers = (Container.open(output.path), source.container)
        sizes = [pool.submit(_deflated_nbytes, container.data) for container in containers]
        for result in results:
            pool.map(lambda change: getattr(change, "deflated", None), result.changes)
        made, old = (size.result() for size in sizes)
    return old, made


def _deflated_nbytes(data: memoryview) -> int:
    return deflated(data) if len(data) <= EXACT_NBYTES else estimated(data)
