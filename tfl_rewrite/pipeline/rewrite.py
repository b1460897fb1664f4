"""Load, run passes, write aside, verify, publish: the one place where the layers meet."""

from __future__ import annotations

import contextlib
import mmap
import os
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from tfl_rewrite.editing.base import (
    Context,
    Edit,
    Effect,
    Pass,
    PassResult,
    last_packing,
    run_passes,
)
from tfl_rewrite.errors import (
    FileAccessError,
    FormatError,
    UnsupportedError,
    VerificationError,
    check_number,
)
from tfl_rewrite.files.atomic import AtomicFile, FileSink, access_of, atomic_write
from tfl_rewrite.files.claims import INPUT, OUTPUT, Claim, check_claims
from tfl_rewrite.files.source import origin_of
from tfl_rewrite.files.store import Layout, layout, load, save
from tfl_rewrite.flatbuf.writer import Packing
from tfl_rewrite.model.invariants import problems
from tfl_rewrite.model.ir import Model
from tfl_rewrite.numerics.deflate import EXACT_NBYTES, deflated, estimated
from tfl_rewrite.options.json_data import JsonData, computed, shown, spread
from tfl_rewrite.passes.repair import undefined_reads
from tfl_rewrite.work import Work, working

# Verification is loaded when something is verified: it takes longer to import than a small file to rewrite.
if TYPE_CHECKING:
    from tfl_rewrite.judge.layers import Blame
    from tfl_rewrite.judge.verdict import Verdict
    from tfl_rewrite.pipeline.damage import Damage, Finer, Place
    from tfl_rewrite.pipeline.verify import FullPanel
from tfl_rewrite.judge.settings import Judging

_UNSOUND = (
    "the runtime refuses such a file; 'tfl-rewrite doctor' lists all that is wrong with it, and "
    "'tfl-rewrite repair' puts right what it can"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report(JsonData):
    """What a rewrite did.

    Attributes:
        outcome: ``rewritten``; ``unchanged`` (a verbatim copy); ``failed`` (nothing was published).
        verdict: Of the interpreter, or the worst of several (``verdict.verdicts`` has all); None where
            nothing was run.
        unverified: Why nothing could be run, or None.
        damage: After a failure, which constants did it.
        finer: Constants that are stored finer than was asked for, so that the outputs pass.
        refused: What was said of the file without that.
        blame: Where the error enters and grows; None where that was not asked for, or nothing was run.
        deflated: Size before and after as a store or a server compresses the file (zlib, level 9); only where
            a pass is about that.
        estimated: Whether those are estimated from pieces of the file.
    """

    schema: ClassVar[int] = 1
    source: str
    target: str
    outcome: str
    dry_run: bool = False
    nbytes_before: int
    nbytes_after: int
    results: tuple[PassResult, ...] = field(default=(), metadata=shown("passes"))
    verdict: Verdict | None = None
    unverified: str | None = None
    damage: Damage | None = None
    finer: tuple[Finer, ...] = ()
    refused: Verdict | None = None
    blame: Blame | None = None
    deflated: tuple[int, int] | None = field(
        default=None, metadata=shown(merged=True, made=spread("deflated_before", "deflated_after"))
    )
    estimated: bool = field(default=False, metadata=shown("deflated_is_estimated"))
    notes: tuple[str, ...] = ()

    @property
    @computed(after="verdict")
    def verdicts(self) -> tuple[Verdict, ...]:
        """Of all judges; empty where nothing was run."""
        return self.verdict.each if self.verdict is not None else ()


class RewriteFailed(VerificationError):
    """Verification refused the result; ``report`` has all figures."""

    def __init__(self, what: str, report: Report, remedy: str | None = None) -> None:
        super().__init__(what, file=report.source, remedy=remedy)
        self.report = report


def rewrite(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    passes: Sequence[Pass],
    *,
    judging: Judging | None = None,
    force: bool = False,
    dry_run: bool = False,
    threads: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
    ready: Callable[[Report], None] | None = None,
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
        ready: Called with the report just before the file gets its name; what it raises keeps that from
            happening.

    Raises:
        RewriteFailed: Outputs differ beyond the tolerance, or mode is ``require`` and nothing could be run.
        UsageError, FileAccessError, FormatError, UnsupportedError: As for
            :func:`tfl_rewrite.files.store.load` and :func:`tfl_rewrite.files.store.save`.
    """
    settings = judging or Judging()
    check_number("threads", threads)
    check_claims(claims_of(source, settings), [Claim(OUTPUT, os.fspath(target))], force=force)
    check_present(*settings.inputs, *settings.holdout)
    if settings.inputs or settings.holdout:
        from tfl_rewrite.reading.metadata import with_media

        settings = with_media(settings, source)
    report_progress = progress or (lambda _what, _done, _total: None)
    with working(threads=threads, progress=progress), contextlib.ExitStack() as stack:
        settings, dealt = _divided(source, passes, settings, stack)
        context = _context(passes, settings, report_progress)
        job = _Job(source, target, settings, force, dry_run, threads, report_progress, ready, dealt, context)
        bench = _Bench(job, passes, stack)
        try:
            return _attempt(job, passes, bench)
        except RewriteFailed as error:
            failed = error
        return _rescued(job, passes, bench, failed)


@dataclass(frozen=True, slots=True)
class _Job:
    """What was asked for, beside the passes; see :func:`rewrite`."""

    source: str | os.PathLike[str]
    target: str | os.PathLike[str]
    settings: Judging
    force: bool
    dry_run: bool
    threads: int
    progress: Callable[[str, int, int], None]
    ready: Callable[[Report], None] | None
    dealt: _Dealt
    context: Context


@dataclass(frozen=True, slots=True)
class _Dealt:
    """What was done with the user's inputs.

    Attributes:
        unfitted: Whether passes might have been fitted to the samples that judge, and were not.
        notes: For the report.
    """

    unfitted: bool = False
    notes: tuple[str, ...] = ()


class _Bench:
    """The judges of what is made, which are kept from one attempt to the next.

    Args:
        stack: Closes them.
    """

    def __init__(self, job: _Job, passes: Sequence[Pass], stack: contextlib.ExitStack) -> None:
        self._job = job
        self._passes = passes
        self._stack = stack
        self._panel: FullPanel | None = None
        self._expected: str | os.PathLike[str] | None = None
        self.results: Sequence[PassResult] = ()

    @property
    def exact(self) -> bool:
        """Whether outputs must be equal to the bit."""
        lossy = any(item.effect is Effect.TOLERANCE for item in self._passes)
        return not lossy and not any(result.reading for result in self.results)

    @property
    def expected(self) -> str | os.PathLike[str]:
        """The file whose outputs the result must have."""
        if self._expected is None:
            self._expected = self._stack.enter_context(_expected(self._job, self._passes, self.results))
        return self._expected

    @property
    def panel(self) -> FullPanel:
        """The judges."""
        if self._panel is None:
            progress = self._job.progress
            from tfl_rewrite.pipeline.verify import FullPanel

            settings = self._job.settings.exactly if self.exact else self._job.settings
            made = FullPanel(self.expected, settings, progress=lambda what: progress(what, 0, 0))
            self._panel = self._stack.enter_context(made)
        return self._panel


def _attempt(
    job: _Job,
    passes: Sequence[Pass],
    bench: _Bench,
    complete: Callable[[Report], Report] = lambda report: report,
) -> Report:
    """Does all of it once.

    Args:
        complete: Adds to the report, before anything is published, what else is known.

    Raises:
        RewriteFailed: See :func:`rewrite`.
    """
    source, target, progress = job.source, job.target, job.progress
    model = load(source)
    before = _nbytes(model)
    notes = list(job.dealt.notes)
    with model.remembering():
        results = run_passes(model, passes, job.context)
        # Of what is written: a pass may have put right what was wrong.
        flaws = problems(model)
        packing = last_packing(results)
        made = layout(model, packing=packing)
    bench.results = results
    grows = any(result.grows for result in results) or (packing is not None and packing.page > Packing().page)
    # What is patched in place keeps its size; its gain shows when the file is compressed.
    if made.verbatim is None and made.base is None and made.nbytes >= before and not grows:
        if any(result.modified for result in results) or made.nbytes > before:
            notes.append(f"the result would take {made.nbytes:,} bytes, not fewer; nothing was changed")
        results = [replace(result, changes=()) for result in results]
        model, packing = load(source), None
        made = layout(model)
    unchanged = made.verbatim is not None
    notes += made.notes
    if any(item.effect is Effect.INTERFACE for item in passes) and not unchanged:
        notes.append("outputs are compared with those of the original cut to the same inputs and outputs")
    if not unchanged and packing is not None:
        results = _with_packing(results, before - made.nbytes)
    common: dict[str, Any] = {
        "source": os.fspath(source),
        "target": os.fspath(target),
        "nbytes_before": before,
        "nbytes_after": made.nbytes,
        "dry_run": job.dry_run,
    }
    place = _place(target, force=job.force, nbytes=made.nbytes, dry_run=job.dry_run, access=access_of(source))
    with place as output:
        _write_to(made, output, Work(job.threads, progress))
        if not unchanged and any(item.for_download for item in passes):
            deflated = _deflated(source, output.path, results, job.threads)
            common |= {"deflated": deflated, "estimated": max(before, made.nbytes) > EXACT_NBYTES}
            if made.nbytes == before and deflated[1] >= deflated[0]:
                # Such as where a constant was equal to one that stays: it is not any more.
                notes.append(f"deflated it would take {deflated[1]:,} bytes, not fewer; nothing was changed")
                results = [replace(result, changes=()) for result in results]
                del common["deflated"]
                unchanged = True
                _write_to(layout(load(source)), output, Work(job.threads, progress))
        common |= {"results": tuple(results), "notes": tuple(notes)}
        if unchanged:
            report = Report(outcome="unchanged", **common)
        else:
            report = _judge(passes, output.path, job, common, bench)
            if report.unverified is not None and flaws and job.settings.mode != "off":
                # It does not run, and we can say why: not a foreign kernel, but damage.
                raise FormatError(flaws[0].what, file=source, where=flaws[0].where, remedy=_UNSOUND)
        origin = origin_of(model)
        assert origin is not None
        origin.container.ensure_unchanged()
        report = complete(report)
        if job.ready is not None:
            job.ready(report)
        if not job.dry_run:
            output.publish()
    return report


def check_present(*paths: str | os.PathLike[str]) -> None:
    """Looks whether real inputs are there, before any work is done.

    Raises:
        UsageError: See :func:`tfl_rewrite.samples.inputs.expand_paths`.
    """
    if paths:
        from tfl_rewrite.samples.inputs import expand_paths

        expand_paths(paths)


def claims_of(source: str | os.PathLike[str], judging: Judging) -> list[Claim]:
    """Returns what a rewrite reads: the model, and what it is verified with."""
    reads = [Claim(INPUT, os.fspath(source))]
    reads += [Claim("inputs", os.fspath(path)) for path in judging.inputs]
    return reads + [Claim("holdout", os.fspath(path)) for path in judging.holdout]


def _rescued(job: _Job, passes: Sequence[Pass], bench: _Bench, failed: RewriteFailed) -> Report:
    """Stores the constants that did the damage finer, until the outputs pass.

    Raises:
        RewriteFailed: That is not possible, or not wanted.
    """
    verdict, report = failed.report.verdict, failed.report
    if verdict is None or verdict.status != "fail" or not verdict.measured:
        raise failed
    from tfl_rewrite.interpreter.scratch import Scratch
    from tfl_rewrite.pipeline.damage import Finer, Trials, find_rescue, measure_damage, refined

    with Scratch() as scratch:
        judge = bench.panel.judge_of(verdict)
        trials = Trials(job.source, passes, report.results, judge, scratch.path / "trial.tflite", job.context)
        if not trials.names:
            raise failed
        job.progress("looking for the constants that lose most", 0, 0)
        damage = measure_damage(trials, seconds=job.settings.blame_seconds)
        if not job.settings.rescue:
            failed.report = replace(report, damage=damage)
            if len(passes) == 1 and passes[0].excluding:
                failed.remedy = damage.remedy(passes[0])
            raise failed
        job.progress("storing constants finer until the outputs pass", 0, 0)
        levels = find_rescue(trials, damage)
    costs = {item.place: item.snr for item in damage.culprits}

    def complete(made: Report) -> Report:
        stored = [_nbytes_stored(item.results, trials.names) for item in (report, made)]
        finer = tuple(
            Finer(
                trials.names[place],
                trials.form(place, level),
                stored[1].get(place, 0) - stored[0].get(place, 0),
                costs.get(place),
            )
            for place, level in levels.items()
            if level
        )
        return replace(made, finer=finer, refused=verdict)

    while True:
        try:
            return _attempt(job, refined(passes, levels), bench, complete)
        except RewriteFailed:
            # The search saw one judge only, and each file once.
            if all(levels.get(place, 0) >= trials.top(place) for place in trials.names):
                raise
            levels = {place: min(levels.get(place, 0) + 1, trials.top(place)) for place in trials.names}


def _nbytes_stored(results: Sequence[PassResult], places: Iterable[Place]) -> dict[Place, int]:
    """Returns how many bytes constants saved less."""
    found = dict.fromkeys(places, 0)
    for number, result in enumerate(results):
        for change in result.changes:
            place = number, getattr(change, "buffer", -1)
            if place in found:
                found[place] -= getattr(change, "saved", 0)
    return found


def _divided(
    source: str | os.PathLike[str],
    passes: Sequence[Pass],
    settings: Judging,
    stack: contextlib.ExitStack,
) -> tuple[Judging, _Dealt]:
    """Sets samples aside that judge, where a pass is fitted to the user's inputs.

    Returns:
        How to verify, with what may be fitted to as its inputs; and what was done.
    """
    if not settings.inputs or not any(item.is_fitted for item in passes):
        return settings, _Dealt()
    from tfl_rewrite.calibration.holdout import divide
    from tfl_rewrite.interpreter.scratch import Scratch

    model = load(source)
    run_passes(model, [item for item in passes if item.effect is Effect.INTERFACE])
    parted = divide(model, settings.inputs, settings.holdout, stack.enter_context(Scratch()).path)
    if parted.crossed:
        return replace(settings, inputs=parted.everything, holdout=parted.judge), _Dealt(unfitted=True)
    note = f"weights are rounded without looking at inputs: {parted.reason}"
    return replace(settings, inputs=(), holdout=parted.judge), _Dealt(notes=(note,))


def _context(passes: Sequence[Pass], settings: Judging, progress: Callable[[str, int, int], None]) -> Context:
    """Lets passes look at the user's inputs, where there are some and a pass asks for them."""
    if not settings.inputs or not any(item.is_fitted for item in passes):
        return Context()
    from tfl_rewrite.calibration.fitter import InputActivations
    from tfl_rewrite.calibration.rounder import Settings

    return Context(activations=InputActivations(Settings.of(settings), progress))


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
def _expected(
    job: _Job, passes: Sequence[Pass], results: Sequence[PassResult]
) -> Iterator[str | os.PathLike[str]]:
    """Gives the file whose outputs the result must have (:class:`Effect`)."""
    marked = [item for item in passes if item.effect is Effect.INTERFACE]
    undefined = [item for item, result in zip(passes, results, strict=True) if result.reading]
    if not marked and not undefined:
        yield job.source
        return
    from tfl_rewrite.interpreter.scratch import Scratch

    model = load(job.source)
    for item in undefined:
        item.define(model, job.context)
    run_passes(model, marked, job.context)
    with Scratch() as scratch:
        expected = scratch.path / "expected.tflite"
        save(model, expected)
        yield expected


def _judge(passes: Sequence[Pass], made: Path, job: _Job, common: dict[str, Any], bench: _Bench) -> Report:
    """Verifies the file that was made; raises unless it may be published."""
    settings = job.settings
    written = load(made)
    done = Report(outcome="rewritten", **common)
    if settings.mode == "off":
        return _unverified(done, common, "not run, as asked", settings)
    if written.external_buffers:
        # Measured: the classic interpreter loads such a file and computes with zeros.
        reason = "weights lie in files beside the model, which this interpreter does not read"
        return _unverified(done, common, reason, settings)
    _refuse_undefined(written, common["source"])
    verdict = bench.panel.compare(made)
    if job.dealt.unfitted:
        verdict = verdict.of_unfitted()
    if any(item.effect is Effect.REPAIR for item in passes):
        common["notes"] = (*common["notes"], *_healed(made, common["results"], settings, verdict))
    if verdict.status == "unverified":
        return _unverified(done, common, "; ".join(verdict.reasons), settings, verdict)
    from tfl_rewrite.pipeline.verify import guessed

    if verdict.passed and settings.mode == "require" and (guesses := guessed(verdict)):
        return _unverified(done, common, f"{guesses}; say it with --input-range", settings, verdict)
    if not verdict.passed and settings.rescue and any(item.finer for item in passes):
        # Whoever called may store single constants finer; what is blamed is what comes of that.
        report = Report(outcome="failed", verdict=verdict, **common)
        raise RewriteFailed(_differs(verdict), report)
    blame = None
    if settings.blame:
        from tfl_rewrite.reading.blame import blame as traced

        blame = traced(bench.expected, made, settings)
    if verdict.passed:
        return Report(outcome="rewritten", verdict=verdict, blame=blame, **common)
    raise RewriteFailed(_differs(verdict), Report(outcome="failed", verdict=verdict, blame=blame, **common))


def _differs(verdict: Verdict) -> str:
    return f"the rewritten model differs too much, nothing was written: {'; '.join(verdict.reasons)}"


def _refuse_undefined(written: Model, source: str) -> None:
    """Refuses to judge what is computed from bytes that no one meant.

    Raises:
        UnsupportedError: Kernels read past what the file gives them.
    """
    if not undefined_reads(written):
        return
    # In the words of the input, whose tensors and operators may have had other places.
    where, why = (undefined_reads(load(source)) or undefined_reads(written))[0]
    raise UnsupportedError(
        f"{why}; what the model computes depends on how its file is laid out, so no rewrite can be judged",
        file=source,
        where=where,
        remedy=f"repair it first: tfl-rewrite repair {shlex.quote(source)} OUT",
    )


def _healed(made: Path, results: Sequence[PassResult], settings: Judging, verdict: Verdict) -> list[str]:
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


def _unverified(
    done: Report, common: dict[str, Any], reason: str, settings: Judging, verdict: Verdict | None = None
) -> Report:
    if settings.mode == "require":
        report = Report(outcome="failed", verdict=verdict, unverified=reason, **common)
        error = RewriteFailed(
            f"could not be verified, nothing was written: {reason}", report, "use --verify auto to write it"
        )
        # Nothing differs; the file is one that cannot be judged here.
        error.exit_code = UnsupportedError.exit_code
        raise error
    return Report(outcome=done.outcome, verdict=verdict, unverified=reason, **common)


@contextlib.contextmanager
def _place(
    target: str | os.PathLike[str], *, force: bool, nbytes: int, dry_run: bool, access: int
) -> Iterator[AtomicFile]:
    """Opens the file to write to: beside the target, or, for a dry run, in a temporary folder."""
    if not dry_run:
        with atomic_write(target, force=force, nbytes=nbytes, access=access) as output:
            yield output
        return
    from tfl_rewrite.interpreter.scratch import Scratch

    with (
        Scratch() as scratch,
        atomic_write(scratch.path / "dry-run.tflite", force=False, nbytes=nbytes) as output,
    ):
        yield output


def _write_to(made: Layout, output: AtomicFile, work: Work) -> None:
    stage = work.stage("writing", made.nbytes)
    try:
        made.write_to(FileSink(output.sink.descriptor), threads=work.threads, tick=stage.tick)
    except OSError as error:
        raise FileAccessError(f"cannot write: {error.strerror or error}", file=output.target) from error


def _deflated(
    before: str | os.PathLike[str],
    after: str | os.PathLike[str],
    results: Sequence[PassResult],
    threads: int | None,
) -> tuple[int, int]:
    """Returns deflated sizes of both files, and lets changes find out theirs: all at once, for it is slow."""
    with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        sizes = [pool.submit(_deflated_file, path) for path in (after, before)]
        for result in results:
            pool.map(lambda change: getattr(change, "deflated", None), result.changes)
        made, old = (size.result() for size in sizes)
    return old, made


def _deflated_file(path: str | os.PathLike[str]) -> int:
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        view = memoryview(mapped)
        try:
            return deflated(view) if len(view) <= EXACT_NBYTES else estimated(view)
        finally:
            view.release()


def _nbytes(model: Model) -> int:
    origin = origin_of(model)
    assert origin is not None
    return origin.container.nbytes
