"""A rewrite: open, run, write, judge, publish. The one place where the rooms meet.

What is asked for is a frozen :class:`Plan`; each of the five functions takes what the one before it made.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import is_dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfl_rewrite.editing.base import Context, Effect, Pass, PassResult, last_packing, run_passes, with_packing
from tfl_rewrite.errors import FormatError, UnsupportedError, UsageError, check_number
from tfl_rewrite.files.atomic import PLAIN, AtomicFile, access_of, atomic_write
from tfl_rewrite.files.claims import OUTPUT, Claim, check_claims, claims_of
from tfl_rewrite.files.container import Container
from tfl_rewrite.files.layout import Layout
from tfl_rewrite.files.source import Source, layout
from tfl_rewrite.flatbuf.writer import Packing
from tfl_rewrite.judge.settings import FOLDED, Judging
from tfl_rewrite.model.invariants import Problem, problems
from tfl_rewrite.model.ir import Model
from tfl_rewrite.options.frozen import frozen, slotted
from tfl_rewrite.options.option import Role, options_of
from tfl_rewrite.pipeline.report import Plan, Report, RewriteFailed, unverified, with_newer
from tfl_rewrite.work import current

# Verification is loaded when something is verified: it takes longer to import than a small file to rewrite.
if TYPE_CHECKING:
    from tfl_rewrite.pipeline.damage import Levels
    from tfl_rewrite.pipeline.judges import Judges, Missing

PathLike = str | os.PathLike[str]

IN_MEMORY = "<memory>"
"""What stands for the target where there is none."""

_UNSOUND = (
    "the runtime refuses such a file; 'tfl-rewrite doctor' lists all that is wrong with it, and "
    "'tfl-rewrite repair' corrects what it can"
)


def carry_out(plan: Plan) -> Report:
    """Does what a plan says, which leaves nothing to be searched for.

    Threads and progress are those of the work that goes on.

    Raises:
        RewriteFailed, UsageError, FileAccessError, FormatError, UnsupportedError: As for
            :func:`tfl_rewrite.rewrite`.
    """
    with contextlib.ExitStack() as stack:
        opened = _open(plan, stack)
        passes: Sequence[Pass] = plan.passes
        unsure: list[_Unsure] = []
        while len(unsure) < _MOST_UNSURE:
            try:
                return _attempt(opened, passes, is_last=False)
            except _Unsure as found:
                unsure.append(found)
                passes = found.stricter
            except RewriteFailed as error:
                failed, verdict = error, error.report.verdict
                if unsure or verdict is None or verdict.status != "fail" or not verdict.measured:
                    break
                stricter = _stricter(opened, passes, error.report, verdict.short_db())
                if not stricter:
                    break
                passes = stricter
            # What the samples that judge have refused says how much is asked for now.
            opened.unfitted = False
        if unsure:
            return _surest(opened, unsure)
        return _of_all(opened, plan.passes, failed) or _rescue(opened, failed)


_MOST_UNSURE = 2
"""So many files that pass by less than their samples tell are made, each stricter than the one before it."""
_SURER_DB = 1.0
"""By so much must a stricter file, which is larger or slower, be surer than the one before it."""


class _Unsure(Exception):
    """A file passes, but by less than the samples that judge are good for, and there is a stricter one."""

    def __init__(
        self, opened: _Opened, passes: Sequence[Pass], short: float, stricter: Sequence[Pass]
    ) -> None:
        super().__init__(short)
        self.passes = passes
        self.unfitted = opened.unfitted
        self.short = short
        self.stricter = stricter


def _surest(opened: _Opened, unsure: Sequence[_Unsure]) -> Report:
    """Makes the file again of which the samples tell most that others keep it, too."""
    best = unsure[0]
    for item in unsure:
        if item.short <= best.short - _SURER_DB:
            best = item
    opened.unfitted = best.unfitted
    return _attempt(opened, best.passes)


def _attempt(
    opened: _Opened,
    passes: Sequence[Pass],
    complete: Callable[[Report], Report] = lambda report: report,
    *,
    is_last: bool = True,
) -> Report:
    """Does all of it once.

    Args:
        passes: Those of the plan; some may store constants finer.
        complete: Adds to the report, before anything is published, what else is known.
        is_last: Whether a pass will do that few samples are not sure of.

    Raises:
        RewriteFailed: See :func:`carry_out`.
        _Unsure: The file passes, and a stricter one may be surer.
    """
    ran = _run(opened, passes)
    if opened.settings.mode != "off" and ran.layout.verbatim is None:
        from tfl_rewrite.interpreter.process import warm

        # It loads while the file is written and the judge is loaded.
        warm(opened.settings.runtime[0])
    with _write(opened, ran) as (output, report):
        made = _made_in(output)
        report = complete(_judge(opened, made, report, ran.flaws))
        if short := _unsure_db(opened, report):
            stricter = [] if is_last else _stricter(opened, passes, report, short)
            if stricter:
                raise _Unsure(opened, passes, short, stricter)
            report = replace(report, notes=(*report.notes, _NEAR))
        if report.verdict is not None and opened.plan.judge is None:
            verdict = opened.judges.with_hidden(report.results, made(), report.verdict)
            report = replace(report, verdict=verdict)
            _ensure_proven(report, opened.settings)
        return _widened(opened, passes, (output, report), complete) or _publish(opened, output, report)


_NEAR = "the samples that judged are too few to say that others keep as much: give more"


def _unsure_db(opened: _Opened, report: Report) -> float:
    """By how much the samples that judged are too few to say that others pass, in dB; or 0."""
    if opened.context.activations is None or report.verdict is None:
        return 0.0
    if opened.judges.strictness(report.results) is not Effect.TOLERANCE:
        return 0.0
    from tfl_rewrite.judge import agreement

    return agreement.unsure_db(report.verdict, opened.settings.tolerance.min_snr)


def _widened(
    opened: _Opened,
    passes: Sequence[Pass],
    first: tuple[AtomicFile, Report],
    complete: Callable[[Report], Report],
) -> Report | None:
    """Publishes the file that holds what the samples hold, too, that judged the first one.

    With few samples a quarter of them more may be much. What is said of it is what the first one keeps, whose
    ranges those samples had no part in; it must pass as well, and keep more of all samples: finer grids are
    often worth more. Measured on 12 models, with other samples to judge by: wider grids won up to 9.8 dB on
    eight and lost 0.8 to 2.9 on three, of which this rule takes none; of the eight it takes the one of 9.8.

    Args:
        opened: Whose samples were divided.
        passes: What made the first file.
        first: It, and what its judges say.
        complete: See :func:`_attempt`.

    Returns:
        Its report; None where there is no such file, or it does not pass.
    """
    wider, verdict = _holding_all(opened, passes), first[1].verdict
    if not (wider and verdict is not None and verdict.passed):
        return None
    try:
        ran = _run(opened, wider)
        with _write(opened, ran) as (output, report):
            kept, now = (
                opened.judges.kept_of_all(each.results, Source.open(file.path), verdict)
                for file, each in (first, (output, report))
            )
            if kept is None or now is None or now < kept + _SURER_DB:
                return None
            report = complete(_judge(opened, _made_in(output), report, ran.flaws))
            if report.verdict is None or not report.verdict.passed:
                return None
            told = "verified with the ranges of other samples; the file has those of all, which keep"
            note = f"{told} {now:.1f} dB of all, where those kept {kept:.1f}"
            return _publish(opened, output, replace(report, verdict=verdict, notes=(*report.notes, note)))
    except (RewriteFailed, UsageError, UnsupportedError):
        # Such as where those samples are beyond what an integer kernel takes.
        return None


def _of_all(opened: _Opened, passes: Sequence[Pass], failed: RewriteFailed) -> Report | None:
    """Publishes the file whose ranges hold all samples, where the others' do not do for those that judged.

    Of few samples one may lie far beyond all others (an eye that looks away, a patient among others), and
    every file that the others tell how to make loses it. With its range it is kept, as by whoever calibrates
    with all samples; but nothing has judged that the file did not see, which is said.

    Args:
        opened: Whose samples were divided.
        passes: Those of the plan.
        failed: What came of ranges without those samples.

    Returns:
        Its report; None where there is no such file, or it does not pass.
    """
    verdict = failed.report.verdict
    if verdict is None or verdict.cause != "outputs" or not opened.settings.rescue:
        return None
    wider = _holding_all(opened, passes)
    if not wider:
        return None
    opened.unfitted = False
    try:
        return _attempt(opened, wider, lambda report: replace(report, notes=(*report.notes, _UNLIKE)))
    except (RewriteFailed, UsageError, UnsupportedError):
        return None


_UNLIKE = (
    "the samples that judge are unlike the others, whose ranges do not do for them: the file has the ranges "
    "of all, and none has judged that it did not see; give more samples"
)


def _holding_all(opened: _Opened, passes: Sequence[Pass]) -> list[Pass]:
    """Returns the passes told to hold what the samples show that judge; none where the user kept those."""
    wider = [item.widened for item in passes]
    if opened.context.activations is None or opened.plan.settings.holdout or not any(wider):
        return []
    current().say("widening ranges to the samples that judge")
    return [new or old for new, old in zip(wider, passes, strict=True)]


@slotted
class _Opened:
    """A source, and all that is kept from one attempt to the next.

    Attributes:
        settings: How to verify, with what passes may be fitted to as its inputs.
        context: What passes may use.
        stack: Closes what the attempts share.
        unfitted: Whether passes might have been fitted to the samples that judge, and were not.
        fitted: Inputs of the user that passes are fitted to, before any were held out.
        notes: For the report.
    """

    plan: Plan
    source: Source
    settings: Judging
    context: Context
    stack: contextlib.ExitStack
    unfitted: bool
    fitted: tuple[PathLike, ...]
    notes: tuple[str, ...]
    _judges: Judges | None = None

    @property
    def judges(self) -> Judges:
        """The judges of all attempts."""
        if self._judges is None:
            from tfl_rewrite.pipeline.judges import Judges

            self._judges = Judges(self.source, self.plan.passes, self.settings, self.stack, self.fitted)
        return self._judges


@frozen
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


def source_of(plan: Plan, *writes: Claim) -> Source:
    """Checks which files a plan reads and writes, and opens the source.

    Args:
        plan: See :func:`carry_out`.
        writes: What is written besides.

    Raises:
        UsageError, FileAccessError, FormatError, UnsupportedError: See :func:`carry_out`.
    """
    check_number("threads", current().wanted_threads, (0, 1024))
    inputs, holdout = plan.settings.inputs, plan.settings.holdout
    read = claims_of(plan.source, inputs, holdout)
    written = [*([] if plan.target is None else [Claim(OUTPUT, os.fspath(plan.target))]), *writes]
    # What is calibrated is kept where there are inputs, and read otherwise.
    (written if inputs else read).extend(_kept_by(plan.passes))
    check_claims(read, written, force=plan.force)
    if real := (*inputs, *holdout):
        from tfl_rewrite.samples.inputs import expand_paths

        expand_paths(real)
    return Source.of(plan.source)


def _open(plan: Plan, stack: contextlib.ExitStack) -> _Opened:
    """Checks what was asked for, opens the source, and divides the user's inputs."""
    source, settings = source_of(plan), plan.settings
    real = (*settings.inputs, *settings.holdout)
    if real:
        from tfl_rewrite.reading.metadata import with_media

        settings = with_media(settings, source)
    kernels = dict.fromkeys(name for item in plan.passes for name in item.resolvers)
    settings = replace(settings, implied=tuple(kernels))
    if any(item.release for item in plan.passes):
        settings = settings.on_old_runtime
    if any(item.elsewhere for item in plan.passes):
        # The others run what is made, and need not run the original.
        settings = settings.here
    unfitted, fitted, notes = False, tuple[PathLike, ...](), tuple[str, ...]()
    context, given = Context(), settings.inputs
    if settings.inputs and any(item.is_fitted for item in plan.passes):
        from tfl_rewrite.calibration.holdout import set_aside
        from tfl_rewrite.interpreter.scratch import Scratch

        model = source.model()
        run_passes(model, [item for item in plan.passes if item.effect is Effect.INTERFACE])
        settings, parted = set_aside(model, settings, stack.enter_context(Scratch()).path)
        unfitted = parted.crossed and parted.held_out
        if not parted.crossed:
            notes = (f"weights are rounded without looking at inputs: {parted.reason}",)
        elif not unfitted:
            notes = ("--holdout has samples of --inputs: what is fitted to them judges itself",)
        context = Context(unfit=parted.reason)
    if settings.inputs and any(item.is_fitted for item in plan.passes):
        from tfl_rewrite.calibration.fitter import InputActivations

        activations, fitted = InputActivations(settings, current().progress), given
        context = Context(activations=activations)
    return _Opened(plan, source, settings, context, stack, unfitted, fitted, notes)


def _kept_by(passes: Sequence[Pass]) -> Iterator[Claim]:
    """Yields the files in which passes keep what they are calibrated with."""
    # A pass of somebody else's without options need be no dataclass.
    for item in filter(is_dataclass, passes):
        made: Any = type(item)
        for row in options_of(made):
            value = getattr(item, row.name) if row.role is Role.CALIBRATED else None
            if isinstance(value, (str, os.PathLike)):
                yield Claim(row.name, os.fspath(value))


def _run(opened: _Opened, passes: Sequence[Pass]) -> _Ran:
    """Runs passes on a model of the source and plans the file; nothing is written."""
    source, notes = opened.source, list(opened.notes)
    model = source.model()
    with model.remembering():
        results = run_passes(model, passes, opened.context)
        _check_order(passes, results)
        # Of what is written: a pass may have corrected what was wrong.
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
    notes += [*made.notes, *_left_beside(source, opened.plan.target, model)]
    if any(result.retyped for result in results):
        from tfl_rewrite.reading.metadata import unfit_normalization

        notes += unfit_normalization(source, model)
    if any(item.effect is Effect.INTERFACE for item in passes) and made.verbatim is None:
        notes.append("outputs are compared with those of the original cut to the same inputs and outputs")
    if made.verbatim is None and packing is not None:
        results = with_packing(results, source.nbytes - made.nbytes)
    return _Ran(tuple(results), made, flaws, tuple(notes))


def _left_beside(source: Source, target: PathLike | None, model: Model) -> Iterator[str]:
    """Says which weight files are read beside a target that is in another folder than they are."""
    if source.path is None or target is None or not model.external_buffers:
        return
    here, there = (Path(os.fspath(path)).absolute().parent for path in (source.path, target))
    if here.resolve() != there.resolve():
        names = ", ".join(sorted({repr(item.group.name or "") for item in model.external_buffers}))
        yield f"weights stay in files, which are looked for beside OUT: copy {names} there from {here}"


def _check_order(passes: Sequence[Pass], results: Sequence[PassResult]) -> None:
    """Refuses other inputs or outputs behind other names: the judge looks for those under the old ones."""
    named = ""
    for item, result in zip(passes, results, strict=True):
        if named and item.effect is Effect.INTERFACE and result.modified:
            raise UsageError(f"{named} stands before {item.name}", remedy=f"put {named} last")
        named = item.name if result.counterparts else named


@contextlib.contextmanager
def _write(opened: _Opened, ran: _Ran) -> Iterator[tuple[AtomicFile, Report]]:
    """Writes the planned file aside, and again the source where that deflates to less."""
    plan, source, results, notes = opened.plan, opened.source, ran.results, ran.notes
    nbytes, unchanged = ran.layout.nbytes, ran.layout.verbatim is not None
    sizes: tuple[int, int] | None = None
    with _place(plan, nbytes, access_of(source.path)) as output:
        ran.layout.write_to(output.sink, current())
        if not unchanged and any(item.for_download for item in plan.passes):
            sizes = _deflated(source, output, results)
            if nbytes == source.nbytes and sizes[1] >= sizes[0]:
                # Such as where a constant was equal to one that stays: it is not any more.
                note = f"deflated it would take {sizes[1]:,} bytes, not fewer; nothing was changed"
                results, notes = tuple(replace(result, changes=()) for result in results), (*notes, note)
                sizes, unchanged = None, True
                Layout.of(source).write_to(output.sink, current())
        report = Report(
            source=source.path,
            target=IN_MEMORY if plan.target is None else os.fspath(plan.target),
            outcome="unchanged" if unchanged else "rewritten",
            dry_run=plan.dry_run,
            nbytes_before=source.nbytes,
            nbytes_after=nbytes,
            results=results,
            deflated=sizes,
            estimated=sizes is not None and _is_estimated(max(source.nbytes, nbytes)),
            notes=notes,
        )
        yield output, report


def _made_in(output: AtomicFile) -> Callable[[], Source]:
    """What opens the file that was made, and parses it the first time that somebody asks for it."""
    return cache(lambda: Source.open(output.path))


def _judge(opened: _Opened, opens: Callable[[], Source], report: Report, flaws: Sequence[Problem]) -> Report:
    """Verifies the file that was made; raises unless it may be published."""
    settings = opened.settings
    if report.outcome == "unchanged":
        return report if settings.mode == "off" else _judged_elsewhere(opened, opens(), report)
    made = opens()
    if settings.mode == "off":
        return _unverified(report, "not run, as asked", settings)
    report = _judged_elsewhere(opened, made, _judged(opened, made, report))
    if report.unverified is not None and flaws:
        # It does not run, and we can say why: not a foreign kernel, but damage.
        flaw = flaws[0]
        raise FormatError(flaw.what, file=report.source, where=flaw.where, remedy=_UNSOUND)
    from tfl_rewrite.pipeline.judges import without_release

    return _without(without_release(opened.plan.passes, report.verdict), report, settings)


def _judged(opened: _Opened, made: Source, report: Report) -> Report:
    """Runs the file that was made and compares; see :func:`_judge`."""
    settings, results = opened.settings, report.results
    model = made.model()
    if model.external_buffers:
        # Measured: the classic interpreter loads such a file and computes with zeros.
        reason = "weights lie in files beside the model, which this interpreter does not read"
        return _unverified(report, reason, settings)
    from tfl_rewrite.weights.repairs import refuse_undefined, undefined_reads

    if undefined_reads(model):
        # In the words of the input, whose tensors and operators may have had other places.
        refuse_undefined(opened.source.model(), report.source)
        refuse_undefined(model, report.source)
    from tfl_rewrite.pipeline.verify import run_alone

    if opened.plan.judge is not None:
        verdict = opened.plan.judge(opened.source, made, settings)
    else:
        verdict = opened.judges.compare(results, made)
    verdict = with_newer(verdict)
    if opened.unfitted:
        verdict = verdict.of_unfitted()
    verdict = opened.judges.on_fitted(results, made, verdict)
    calibrated = any(
        item.calibrated and not result.exact for item, result in zip(opened.plan.passes, results, strict=True)
    )
    if verdict.sample_source == "made" and calibrated:
        verdict = verdict.of_unlike("made samples are not what it was calibrated on (give --holdout)")
    if any(item.effect is Effect.REPAIR for item in opened.plan.passes):
        notes = (*report.notes, *run_alone(made, results, settings, verdict))
        report = replace(report, notes=notes)
    notes = report.notes
    if opened.judges.strictness(results) is Effect.FOLDING:
        notes = (*notes, f"judged at {FOLDED.min_snr:g} dB: what was folded is rounded in another order")
    report = replace(report, verdict=verdict, notes=notes)
    if verdict.status == "unverified":
        return _unverified(report, "; ".join(verdict.reasons), settings)
    _ensure_proven(report, settings)
    differs = f"the rewritten model differs too much, nothing was written: {'; '.join(verdict.reasons)}"
    if not verdict.passed and settings.rescue and any(item.finer for item in opened.plan.passes):
        # Single constants may be stored finer; what is blamed is what comes of that.
        raise RewriteFailed(differs, replace(report, outcome="failed"))
    if settings.blame:
        from tfl_rewrite.pipeline.verify import blame

        report = replace(report, blame=blame(opened.judges.named(results), made, settings))
    if not verdict.passed:
        told = (one.milder or item.milder for item, one in zip(opened.plan.passes, results, strict=True))
        milder = next(filter(None, told), None)
        if milder and any(item.nonfinite_mismatches for item in verdict.outputs):
            milder = (
                "leave out samples with NaN or infinite numbers, or the operators that make them (--exclude)"
            )
        raise RewriteFailed(differs, replace(report, outcome="failed"), milder)
    return report


def _judged_elsewhere(opened: _Opened, made: Source, report: Report) -> Report:
    """Has a file judged in the runtimes that passes made it for; raises where it is not right there."""
    if not any(item.elsewhere for item in opened.plan.passes):
        return report
    from tfl_rewrite.judge.verdict import combined
    from tfl_rewrite.pipeline.judges import judged_on_platforms

    settings = replace(opened.settings, runtime=opened.plan.settings.runtime)
    before = made if report.outcome == "unchanged" else opened.judges.expected(report.results)
    verdicts, missing, notes = judged_on_platforms(before, made, opened.plan.passes, settings)
    here = report.verdict.each if report.verdict is not None else ()
    report = replace(report, notes=(*report.notes, *notes))
    if verdicts:
        verdict = with_newer(combined([*here, *verdicts]))
        report, told = replace(report, verdict=verdict), "; ".join(verdict.reasons)
        if verdict.status == "fail":
            failed = replace(report, outcome="failed")
            raise RewriteFailed(f"the file is not right in the runtime that it is for: {told}", failed)
        if verdict.status == "unverified" and report.unverified is None:
            report = _unverified(report, told, settings)
    return _without(missing, report, settings)


def _without(missing: Sequence[Missing], report: Report, settings: Judging) -> Report:
    """Tells which runtimes a file was made for and did not run in; raises where they are required."""
    if not missing:
        return report
    notes = tuple(item.note for item in missing)
    if report.verdict is None and report.unverified is None:
        return _unverified(report, "; ".join(notes), settings)
    report = replace(report, notes=(*report.notes, *notes))
    if report.verdict is not None:
        unseen = (*report.verdict.unseen, *(item.unseen for item in missing))
        report = replace(report, verdict=replace(report.verdict, unseen=unseen))
    return _unverified(report, "; ".join(notes), settings) if settings.mode == "require" else report


def _publish(opened: _Opened, output: AtomicFile, report: Report) -> Report:
    """Gives the file its name, unless its source was changed meanwhile; reads it where it gets none."""
    opened.source.container.ensure_unchanged()
    if opened.plan.target is None:
        made = Container.of_bytes(Path(output.path).read_bytes(), IN_MEMORY)
        report = replace(report, model=Source(made).model())
    with contextlib.ExitStack() as stack:
        beside = [] if opened.plan.dry_run else [*_beside(opened, report, stack)]
        opened.plan.ready(report)
        # The model comes last: what a run leaves that fails here is never a model.
        for file in beside:
            file.publish()
        if not opened.plan.dry_run and opened.plan.target is not None:
            output.publish()
    return report


def _beside(opened: _Opened, report: Report, stack: contextlib.ExitStack) -> Iterator[AtomicFile]:
    """Writes what passes made beside the model, not yet named so."""
    access = access_of(opened.source.path) & PLAIN
    for path, data in (file for result in report.results for file in result.files):
        writing = atomic_write(path, force=opened.plan.force, nbytes=len(data), access=access)
        output = stack.enter_context(writing)
        output.sink.write_at(data, 0)
        yield output


def _stricter(opened: _Opened, passes: Sequence[Pass], report: Report, short_db: float) -> list[Pass]:
    """Returns the passes told to lose less, as the judges found; none where no pass knows how.

    Args:
        passes: What they made is not enough.
        report: Of that.
        short_db: By how much it is not.
    """
    if not opened.settings.rescue:
        return []
    judged = opened.judges.strictness(report.results)
    made = [
        item.stricter(short_db) if item.effect is judged and not one.strictest else None
        for item, one in zip(passes, report.results, strict=True)
    ]
    if not any(made):
        return []
    current().say("trying again with more room for the samples that judge")
    return [new or old for new, old in zip(made, passes, strict=True)]


def _rescue(opened: _Opened, failed: RewriteFailed) -> Report:
    """Stores the constants that did the damage finer, until the outputs pass.

    Raises:
        RewriteFailed: That is not possible, or not wanted.
    """
    verdict, report, passes = failed.report.verdict, failed.report, opened.plan.passes
    if verdict is None or verdict.status != "fail" or not verdict.measured:
        raise failed
    from tfl_rewrite.interpreter.scratch import Scratch
    from tfl_rewrite.pipeline.damage import Trials, most_costly, refined, rescues, with_damage

    with Scratch() as scratch:
        judge = opened.judges.judge_of(report.results, verdict)
        path = scratch.path / "trial.tflite"
        trials = Trials(opened.source, passes, report.results, judge, path, opened.context)
        if not trials.names:
            raise failed
        current().say("looking for the constants that lose most")
        if not opened.settings.rescue:
            raise with_damage(failed, trials, seconds=opened.settings.blame_seconds)
        culprits = most_costly(trials, verdict)
        current().say("storing constants finer until the outputs pass")
        for levels in rescues(trials, culprits):

            def complete(made: Report, levels: Levels = levels) -> Report:
                finer = trials.finer(levels, culprits, made.results)
                return replace(made, finer=finer, refused=verdict)

            try:
                return _attempt(opened, refined(passes, levels), complete)
            except RewriteFailed as error:
                failed = error
            if failed.report.unverified is not None:
                # It is refused for what nobody can tell, and storing more of it finer tells no more.
                break
    raise failed


def _ensure_proven(report: Report, settings: Judging) -> None:
    """Raises where a proof is required and a pass rests on a guess."""
    if settings.mode == "require" and report.verdict is not None:
        from tfl_rewrite.pipeline.verify import unproven

        if why := unproven(report.verdict):
            _unverified(report, why, settings)


def _unverified(report: Report, reason: str, settings: Judging) -> Report:
    return unverified(report, reason, settings, RewriteFailed)


@contextlib.contextmanager
def _place(plan: Plan, nbytes: int, access: int) -> Iterator[AtomicFile]:
    """Opens the file to write to: beside the target; in a temporary folder where it gets no name."""
    if plan.target is not None and not plan.dry_run:
        with atomic_write(plan.target, force=plan.force, nbytes=nbytes, access=access) as output:
            yield output
        return
    from tfl_rewrite.interpreter.scratch import Scratch

    with Scratch() as scratch:
        target = scratch.path / "unnamed.tflite"
        with atomic_write(target, force=False, nbytes=nbytes) as output:
            yield output


def _is_estimated(nbytes: int) -> bool:
    from tfl_rewrite.numerics.grids import EXACT_NBYTES

    return nbytes > EXACT_NBYTES


def _deflated(source: Source, output: AtomicFile, results: Sequence[PassResult]) -> tuple[int, int]:
    """Returns deflated sizes of both files, and lets changes find out theirs: all at once, for it is slow."""
    from concurrent.futures import ThreadPoolExecutor

    from tfl_rewrite.numerics.grids import deflated_or_estimated

    with ThreadPoolExecutor(current().threads) as pool:
        old, made = (
            pool.submit(deflated_or_estimated, container.data)
            for container in (source.container, Container.open(output.path))
        )
        for result in results:
            pool.map(lambda change: getattr(change, "deflated", None), result.changes)
        return old.result(), made.result()
