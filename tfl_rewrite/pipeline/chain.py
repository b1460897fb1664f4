"""Two models made one, or one with something small before its inputs and behind its outputs.

What is to be done is laid out as parts and feeds, each part a model of its own. The parts are merged, and the
whole is judged against running the parts one after the other; what the small ones compute is judged against
numpy.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tfl_rewrite.editing.base import PassResult
from tfl_rewrite.editing.descriptions import write_descriptions
from tfl_rewrite.editing.merge import merge
from tfl_rewrite.editing.metadata import DESCRIPTIONS, MIN_RUNTIME, said_runtime
from tfl_rewrite.editing.names import ends_named
from tfl_rewrite.editing.stages import Made, Stage, stage_of
from tfl_rewrite.errors import FormatError, InvariantError, UsageError
from tfl_rewrite.files.atomic import PLAIN, access_of, atomic_write
from tfl_rewrite.files.claims import OUTPUT, Claim, check_claims, claims_of
from tfl_rewrite.files.container import ZipTail
from tfl_rewrite.files.layout import planned
from tfl_rewrite.files.source import ModelLike, Source
from tfl_rewrite.interpreter.scratch import Scratch
from tfl_rewrite.judge.routes import OUTSIDE, Feed
from tfl_rewrite.judge.settings import Judging, Tolerance
from tfl_rewrite.kernels import runtimes
from tfl_rewrite.kernels.reads import late_releases, version_counts
from tfl_rewrite.model.blob import OwnedBlob
from tfl_rewrite.model.invariants import broken, problems
from tfl_rewrite.model.ir import Metadata, Model, Signature, Tensor
from tfl_rewrite.options.option import check_options, naming, option
from tfl_rewrite.passes.dedup import constant_buffers, equal_blobs
from tfl_rewrite.pipeline.described import described, joined_zip, lost
from tfl_rewrite.pipeline.report import Report, RewriteFailed, unverified
from tfl_rewrite.pipeline.wiring import (
    End,
    Wiring,
    check_kept,
    ends_of,
    find,
    fits,
    links_of,
    names_of,
    shapes_in_a_run,
    signatures_of,
)
from tfl_rewrite.reading.metadata import on_disk, with_media
from tfl_rewrite.work import Progress, Work, current

if TYPE_CHECKING:
    from tfl_rewrite.judge.judge import Judge
    from tfl_rewrite.judge.verdict import Verdict

PathLike = str | os.PathLike[str]
_UNSOUND = "'tfl-rewrite doctor' lists all that is wrong with the files that it is made of"


@dataclass(frozen=True, kw_only=True, slots=True)
class ChainOptions:
    """How :func:`tfl_rewrite.chain` makes one model.

    Attributes:
        connect: ``OUTPUT=INPUT``: an output (or input) of the first model, and the input of the second that
            takes it; by names of tensors or of signatures, or ``#NUMBER`` of the tensor.
        prepend: What stands before an input, in the order in which values go through it.
        append: What stands behind an output, in that order.
        keep_outputs: Whether outputs of the first model that nothing takes stay outputs.
        dry_run: Do everything but the write.
        force: Whether the target may exist.

    Raises:
        UsageError: A value is of another kind.

    Example:
        >>> tfl_rewrite.ChainOptions(prepend=["cast:uint8", "normalize:mean=127.5,std=127.5"]).append
        ()
    """

    connect: tuple[str, ...] = option(
        (),
        "an output of the first model, and the input of the second that takes it; repeatable. An input of "
        "the first may stand there: both take it then. Without it: the only ones, or those of equal names, "
        "or in their order where types and shapes leave one way",
        metavar="OUTPUT=INPUT",
    )
    prepend: tuple[str, ...] = option(
        (),
        "what values go through before an input, in this order; repeatable: normalize:mean=127.5,std=127.5 "
        "(X+Y+Z for one a channel), cast:uint8 (the input takes uint8), resize:224x224 (pictures of any "
        "size; with source=480x640 of that size). tensor=NAME says which input",
        metavar="STAGE[:OPTION=VALUE,...]",
    )
    append: tuple[str, ...] = option(
        (),
        "what values go through behind an output, in this order; repeatable: softmax, argmax (int32), "
        "top-k:5 (values and indices). tensor=NAME says which output",
        metavar="STAGE[:OPTION=VALUE,...]",
    )
    keep_outputs: bool = option(False, "keep outputs of the first model that the second does not take")
    dry_run: bool = option(False, "do everything but the write")
    force: bool = option(False, "overwrite files that exist, whichever it writes")

    def __post_init__(self) -> None:
        """Refuses what does not fit."""
        check_options(self)
        self.stages()

    def stages(self) -> tuple[list[Stage], list[Stage]]:
        """Returns what stands before inputs, and behind outputs."""
        return (
            [stage_of(text, before=True) for text in self.prepend],
            [stage_of(text, before=False) for text in self.append],
        )


def chain(
    models: Sequence[ModelLike],
    target: PathLike,
    options: ChainOptions | None = None,
    *,
    judging: Judging | None = None,
    progress: Progress | None = None,
) -> Report:
    """Makes one model of two that follow each other, or puts small stages around one.

    Args:
        models: One or two: paths, bytes, open files or models; not changed.
        target: The file to make.
        options: What is connected, and what stands before and behind.
        judging: How files are run. The whole must equal its parts to the bit; stages are compared with numpy.
        progress: Called with what is going on.

    Raises:
        RewriteFailed: The whole computes something else than its parts; nothing is written.
        UsageError: A name is unknown, shapes do not fit, or it is not clear what is connected.
        UnsupportedError: Types do not fit, or a model cannot be moved into another file.
        FileAccessError, FormatError: As for :func:`tfl_rewrite.load`.

    Example:
        >>> options = tfl_rewrite.ChainOptions(append=["argmax"])
        >>> report = tfl_rewrite.chain(["model.tflite"], "numbers.tflite", options)
        >>> report.verdict.passed
        True
    """
    options, settings = options or ChainOptions(), judging or Judging()
    if not 1 <= len(models) <= 2:
        raise UsageError(f"{len(models)} models", remedy="chain two at a time")
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(on_disk(model)) for model in models]
        reads = [claim for file in files for claim in claims_of(file, settings.inputs, settings.holdout)]
        # None of them may be replaced, since the other would not be found again.
        reads = [replace(claim, what="a model" if claim.what == "IN" else claim.what) for claim in reads]
        check_claims(reads, [Claim(OUTPUT, os.fspath(target))], force=options.force)
        sources = [Source.of(file) for file in files]
        scratch = stack.enter_context(Scratch())
        work = _Work(sources, options, settings, scratch.path, progress or current().progress)
        return work.carried_out(target)


@dataclass(slots=True)
class _Work:
    """One chain, from the models to the file.

    Attributes:
        outputs: Where what the whole gives comes from.
        ends: The inputs and the outputs of the whole.
        others: Signatures that came along, each with the file that has it, and its key there.
    """

    sources: list[Source]
    options: ChainOptions
    settings: Judging
    folder: Path
    progress: Progress | None
    notes: list[str] = field(default_factory=list)
    outputs: list[Feed] = field(default_factory=list)
    ends: tuple[list[End], list[End]] = ([], [])
    others: dict[str | None, tuple[PathLike, str | None]] = field(default_factory=dict)

    def carried_out(self, target: PathLike) -> Report:
        """Does all of it."""
        for source in self.sources:
            if source.refusals:
                raise source.refusals[0]
            if faults := broken(source.model()):
                raise FormatError(faults[0].what, file=source.path, where=faults[0].where, remedy=_UNSOUND)
        signatures_of(self.sources)
        wiring = self._wired()
        if not wiring.edits:
            raise UsageError("there is nothing to do", remedy="name a second model, --prepend or --append")
        others = _other_signatures(wiring)
        model, notes = merge([part.piece for part in wiring.parts], self.outputs)
        self.others = {item.key: (path, key) for item, path, key in others}
        self.notes += notes
        self._share(model)
        tail = self._describe(model)
        if faults := broken(model):
            raise InvariantError(f"merging broke a rule: {faults[0].what}", where=faults[0].where)
        flaws = problems(model)
        made = planned(model, None).followed_by(tail)
        access = PLAIN
        for source in self.sources:
            access &= access_of(source.path)
        place = self.folder / "unnamed.tflite" if self.options.dry_run else target
        with atomic_write(place, force=self.options.force, nbytes=made.nbytes, access=access) as output:
            made.write_to(output.sink, current())
            report = Report(
                source=" + ".join(source.path for source in self.sources),
                target=os.fspath(target),
                outcome="rewritten",
                dry_run=self.options.dry_run,
                nbytes_before=sum(source.nbytes for source in self.sources),
                nbytes_after=made.nbytes,
                results=(PassResult("chain", tuple(wiring.edits), grows=True),),
                notes=tuple(dict.fromkeys(self.notes)),
            )
            report = self._judged(output.path, wiring, report)
            if report.unverified is not None and flaws:
                raise FormatError(flaws[0].what, file=report.source, where=flaws[0].where, remedy=_UNSOUND)
            for source in self.sources:
                source.container.ensure_unchanged()
            if not self.options.dry_run:
                output.publish()
        return report

    def _wired(self) -> Wiring:
        """Lays out the parts and what feeds them."""
        before, behind = self.options.stages()
        wiring = Wiring(self.folder)
        models, names = [source.model() for source in self.sources], names_of(self.sources)
        takes = [[(OUTSIDE, at) for at in range(len(model.subgraphs[0].inputs))] for model in models]
        first = ends_of(models[0], takes[0], outputs=False)
        gives = [(OUTSIDE, at) for at in range(len(models[0].subgraphs[0].outputs))]
        links: dict[int, int] = {}
        second: list[End] = []
        if len(models) == 2:
            second = ends_of(models[1], takes[1], outputs=False, number=1)
            links = links_of(ends_of(models[0], gives, outputs=True), second, self.options.connect, first)
            if min(links.values()) >= len(gives) and not self.options.keep_outputs:
                raise UsageError("the second takes nothing that the first gives", remedy="--keep-outputs")
        elif self.options.connect:
            raise UsageError("--connect is for two models", remedy="name a second one")
        open_ends = [end for place, end in enumerate(second) if place not in links]
        for place, end in enumerate(open_ends):
            end.feed = (OUTSIDE, len(first) + place)
        stages: dict[int, list[Stage]] = {}
        for stage in before:
            with naming(stage.asked):
                place = find([*first, *open_ends], stage.tensor, "input")
            stages.setdefault(place, []).append(stage)
        feeds = [wiring.before(end, stages.get(place, ())) for place, end in enumerate([*first, *open_ends])]
        number = wiring.add(names[0], models[0], self.sources[0], feeds[: len(first)])
        ends = ends_of(models[0], [(number, at) for _, at in gives], outputs=True)
        if len(models) == 2:
            rest = iter(feeds[len(first) :])
            given = [*ends, *(replace(end, feed=feed) for end, feed in zip(first, feeds, strict=False))]
            into = [
                self._connected(wiring, given[links[place]], end) if place in links else next(rest)
                for place, end in enumerate(second)
            ]
            number = wiring.add(names[1], models[1], self.sources[1], into)
            own = [(number, at) for at in range(len(models[1].subgraphs[0].outputs))]
            unused = [end for at, end in enumerate(ends) if at not in links.values()]
            ends = ends_of(models[1], own, outputs=True, number=1)
            if self.options.keep_outputs:
                ends += unused
            elif unused:
                named = ", ".join(repr(end.tensor.name) for end in unused)
                self.notes.append(f"no outputs any more: {named} (--keep-outputs keeps them)")
        self.ends = [*first, *open_ends], wiring.behind(ends, behind, self._shaped)
        self.outputs = [end.feed for end in self.ends[1]]
        return wiring

    def _connected(self, wiring: Wiring, given: End, taken: End) -> Feed:
        """Connects an output and an input, if shapes fit."""
        if not fits(given.tensor, taken.tensor):
            actual = next(shapes_in_a_run(self.sources, given, self.settings), None)
            if not fits(given.tensor, taken.tensor, actual):
                one = actual if actual is not None else given.tensor.signature or given.tensor.shape or ()
                other = taken.tensor.signature or taken.tensor.shape or ()
                raise UsageError(
                    f"{given.tensor.name!r} gives {list(one)}, and {taken.tensor.name!r} takes {list(other)}",
                    remedy="connect others, or change a shape first",
                )
        return wiring.connected(given, taken)

    def _shaped(self, end: End) -> Tensor:
        """Returns an output that declares no shape with the one that it has when its model runs."""
        shapes = list(shapes_in_a_run(self.sources, end, self.settings))
        if not shapes or len({len(shape) for shape in shapes}) > 1:
            return end.tensor
        sizes = [{shape[axis] for shape in shapes} for axis in range(len(shapes[0]))]
        free = tuple(min(found) if len(found) == 1 else -1 for found in sizes)
        return replace(end.tensor, shape=shapes[0], signature=free if -1 in free else None)

    def _share(self, model: Model) -> None:
        """Stores equal constants once."""
        merged = {id(other): kept for kept, other in equal_blobs(constant_buffers(model), Work())}
        saved = sum(buffer.nbytes for buffer in model.buffers if id(buffer) in merged)
        for _, tensor in model.tensors():
            tensor.buffer = merged.get(id(tensor.buffer), tensor.buffer)
        model.buffers = [buffer for buffer in model.buffers if id(buffer) not in merged]
        if saved:
            self.notes.append(f"{saved:,} bytes of equal constants are stored once")

    def _describe(self, model: Model) -> ZipTail | None:
        """Has the whole say what its models said; returns the ZIP of label files, and notes what is lost."""
        models = [source.model() for source in self.sources]
        if any(said_runtime(item) is not None for item in models):
            needed = runtimes.min_runtime_text(version_counts(model), late_releases(model))
            said = OwnedBlob(needed.encode("ascii").ljust(16, b"\0"))
            model.metadata.append(Metadata(MIN_RUNTIME, model.add_buffer(said)))
        tail, renamed = joined_zip(self.sources, names_of(self.sources))
        for names in renamed:
            self.notes += [f"label file {old!r} is {new!r} now" for old, new in names.items()]
        root = described(models, *self.ends, renamed, self.notes)
        if root is not None:
            write_descriptions(model, root)
        self.notes += lost(models, self.sources, (MIN_RUNTIME, DESCRIPTIONS))
        return tail

    # -- the verdict ---------------------------------------------------------------------------------------

    def _judged(self, made: Path, wiring: Wiring, report: Report) -> Report:
        """Runs the whole and its parts; raises unless the file may be published."""
        signatures = ends_named(Source.open(made).model())
        check_kept(signatures, signatures_of(self.sources), self.ends)
        if self.settings.mode == "off":
            return replace(report, unverified="not run, as asked")
        from tfl_rewrite.judge.judge import Judge
        from tfl_rewrite.judge.routes import verify_route, wired

        files = [(part.path, part.piece.feeds) for part in wiring.parts]
        route = wired(files, self.outputs, signatures, self.others)
        settings = with_media(self.settings, self.sources[0]).exactly
        progress = self.progress
        say = None if progress is None else (lambda text: current().say(text))
        doubts: list[Verdict] = []
        # All files are run in the same processes.
        with Judge(made, settings) as judge:
            for part in wiring.parts:
                if part.made is not None:
                    stage = self._stage_judged(part.path, part.made, report, judge)
                    if stage.status == "unverified":
                        doubts.append(stage)
            verdict = verify_route(made, route, settings, sources=self.sources, beside=judge, progress=say)
        report = replace(report, notes=tuple(dict.fromkeys([*report.notes, *self.notes])))
        if doubts and verdict.passed:
            reasons = tuple(reason for stage in doubts for reason in stage.reasons)
            verdict = replace(verdict, status="unverified", cause=doubts[0].cause, reasons=reasons)
        report = replace(report, verdict=verdict)
        if verdict.status == "fail":
            why = "; ".join(verdict.reasons)
            failed = replace(report, outcome="failed")
            raise RewriteFailed(f"the whole differs from its parts, nothing was written: {why}", failed)
        if verdict.status == "unverified":
            return unverified(report, "; ".join(verdict.reasons), self.settings, RewriteFailed)
        return report

    def _stage_judged(self, path: PathLike, made: Made, report: Report, judge: Judge) -> Verdict:
        """Compares a stage with what numpy computes; the reasons say which stage it is."""
        from tfl_rewrite.judge.routes import Going, verify_route
        from tfl_rewrite.samples.made import Step

        def route(step: Step) -> Going:
            yield []
            return made.expected(step.values[0][1])

        # Numbers of classes are equal; of pixels it means nothing which channel is the largest.
        counts = any(item.dtype_name == "INT32" for item in made.model.subgraphs[0].outputs)
        tolerance = Tolerance(min_snr=made.min_snr, min_agreement=float(counts))
        settings = replace(self.settings, inputs=(), holdout=(), tolerance=tolerance)
        verdict = verify_route(path, route, settings, repeat=False, beside=judge)
        if verdict.status == "fail":
            failed = replace(report, verdict=verdict, outcome="failed")
            why = "; ".join(verdict.reasons)
            raise RewriteFailed(f"{made.name} computes something else, nothing was written: {why}", failed)
        worst = verdict.worst_snr()
        told = "equal" if worst is None or math.isinf(worst) else f"{worst:.0f} dB"
        said = f"{made.name}, compared with numpy: "
        if verdict.passed:
            self.notes.append(said + told)
        return replace(verdict, reasons=tuple(said + reason for reason in verdict.reasons))


def _other_signatures(wiring: Wiring) -> list[tuple[Signature, PathLike, str | None]]:
    """Returns the signatures of other subgraphs than the main ones, with their files and their keys now."""
    return [
        (item, part.path, item.key)
        for part in wiring.parts
        for item in part.piece.model.signatures
        if item.subgraph is not part.piece.model.subgraphs[0]
    ]
