"""Gives a model other input shapes, and proves the result sample by sample."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from tfl_rewrite.editing.axes import Shape, changes, new_size
from tfl_rewrite.editing.base import Context, Edit, Effect, Pass, PassResult
from tfl_rewrite.errors import UnsupportedError, UsageError
from tfl_rewrite.files.source import ModelLike, Source, origin_of, save
from tfl_rewrite.interpreter.scratch import Scratch
from tfl_rewrite.judge.judge import run_model
from tfl_rewrite.judge.routes import Going, Route, Run, verify_route
from tfl_rewrite.judge.settings import Judging, Tolerance
from tfl_rewrite.judge.verdict import Verdict, combined
from tfl_rewrite.model.ir import Model, Tensor
from tfl_rewrite.pipeline.input_shapes import Preparing, Reshaped, reshape_model
from tfl_rewrite.pipeline.report import Plan, Report
from tfl_rewrite.pipeline.rewrite import carry_out
from tfl_rewrite.pipeline.rows import Chosen, Rows
from tfl_rewrite.pipeline.targets import Reshaping
from tfl_rewrite.pipeline.verify import verify
from tfl_rewrite.reading.metadata import on_disk
from tfl_rewrite.samples.made import Step
from tfl_rewrite.samples.npz import write_npz
from tfl_rewrite.work import working


def reshape(
    source: ModelLike,
    target: str | os.PathLike[str] | None = None,
    wish: Reshaping | None = None,
    *,
    judging: Judging | None = None,
    force: bool = False,
    dry_run: bool = False,
    threads: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> Report:
    """Gives the inputs of a model other shapes, proves the result, and gives it its name.

    Args:
        source: A path, bytes, an open file or a model; never changed, unless it is the target too.
        target: The file to make; None for none: the report has the model then.
        wish: The shapes.
        judging: Which runtime tells what follows from them, and how to verify.
        force: Whether the target may exist.
        dry_run: Do everything but the publishing.
        threads: For writing; 0 for one per processor.
        progress: Called with what is going on.

    Raises:
        RewriteFailed: A sample of the batch is not what the original gives, or mode is ``require`` and
            nothing could be compared.
        UsageError: An input does not exist, or a shape does not fit it.
        UnsupportedError: An operator does not take the shapes.
        FileAccessError, FormatError: As for :func:`tfl_rewrite.rewrite`.

    Example:
        >>> report = tfl_rewrite.reshape("model.tflite", "batch.tflite", tfl_rewrite.Reshaping(batch=4))
        >>> report.verdict.status, tfl_rewrite.load("batch.tflite").subgraphs[0].inputs[0].shape
        ('pass', (4, 8, 8, 1))
    """
    settings = judging or Judging()
    item = Reshape(wish or Reshaping(), settings)
    plan = Plan(
        source=source if isinstance(source, (str, os.PathLike)) else Source.of(source),
        target=target,
        passes=(item,),
        settings=settings,
        force=force,
        dry_run=dry_run,
        judge=item.verify,
    )
    with working(threads=threads, progress=progress):
        return carry_out(plan)


class Reshape(Pass):
    """Gives inputs other shapes; constants that fix the old ones follow, or it refuses.

    A second run changes nothing.

    Args:
        wish: The shapes.
        judging: Which runtime tells what follows from them.

    Attributes:
        made: What the last run did.
    """

    name: ClassVar[str] = "reshape"
    effect: ClassVar[Effect] = Effect.EXACT

    def __init__(self, wish: Reshaping, judging: Judging) -> None:
        self._wish = wish
        self._judging = judging
        self.made: Reshaped | None = None

    def run(self, model: Model, context: Context) -> PassResult:
        """Reshapes the model."""
        said = _declared(model)
        try:
            made = self.made = reshape_model(model, self._wish, self._judging)
        except (UnsupportedError, UsageError) as error:
            origin = origin_of(model)
            error.file = error.file or (None if origin is None else origin.path)
            raise
        changes = [*made.edits]
        for subgraph in (target.subgraph for target in made.targets):
            changes += [
                Edit(tensor.name or "(unnamed)", f"{_text(said[id(tensor)])} is now {_text(now)}")
                for tensor in (*subgraph.inputs, *subgraph.outputs)
                if (now := _shape_said(tensor)) != said[id(tensor)]
            ]
        inside = sum(
            _shape_said(tensor) != said[id(tensor)] for _, tensor in model.tensors() if id(tensor) in said
        )
        if inside:
            changes.append(Edit("tensors", f"the shapes of {inside} are declared anew"))
        return PassResult(
            self.name, tuple(changes), grows=True, idle="" if changes else "it has these shapes already"
        )

    def verify(self, source: Source, made: Source, judging: Judging) -> Verdict:
        """Judges what was made by what the original gives for each sample, or for the new sizes."""
        assert self.made is not None
        return Proof(source, made, self._wish, self.made, judging).verdict()


def _shape_said(tensor: Tensor) -> Shape:
    return tensor.signature if tensor.signature is not None else tuple(tensor.shape or ())


def _declared(model: Model) -> dict[int, Shape]:
    return {id(tensor): _shape_said(tensor) for _, tensor in model.tensors()}


def _text(shape: Shape) -> str:
    return str(list(shape))


def _alike(path: Path) -> Route:
    """The route of a file whose outputs are to be those of another for the same inputs."""

    def route(step: Step) -> Going:
        values = [value for _, value in step.values]
        (ran,) = yield [Run(path=path, values=values, signature=step.signature)]
        return ran.values

    return route


_NAMED = 3
ROW_TOLERANCE = Tolerance(min_snr=60.0, min_agreement=1.0)
"""Of floats: kernels may sum in another order where there are more samples. Integers must be equal."""


@dataclass(slots=True)
class Proof:
    """What running both files shows of a model with other shapes.

    Args:
        source: The original.
        made: The file.
        wish: What was asked for.
        done: What was done.
        judging: How files are run.
    """

    source: Source
    made: Source
    wish: Reshaping
    done: Reshaped
    judging: Judging

    def verdict(self) -> Verdict:
        """Each sample of a batch against a run of the original; other sizes as far as that takes them."""
        with contextlib.ExitStack() as stack:
            original = Path(stack.enter_context(on_disk(self.source)))
            rewritten = Path(stack.enter_context(on_disk(self.made)))
            folder = stack.enter_context(Scratch()).path
            if self.wish.dynamic_batch:
                once, trial = folder / "once.tflite", folder / "trial.tflite"
                self._save_fixed(once, is_trial=False)
                self._save_fixed(trial, is_trial=True)
                alone = self._by_rows(original, once, folder, exactly=True)
                # Neither is the file that gets the name.
                batches = self._by_rows(original, trial, folder, free=rewritten)
                return combined([alone, *batches.each])
            if any(target.asked.batch is not None for target in self.done.targets):
                return self._by_rows(original, rewritten, folder)
            return self._other_sizes(original, rewritten, folder)

    @property
    def _exactly(self) -> Judging:
        return self.judging.exactly

    @property
    def _by_row(self) -> Judging:
        model = self.source.model()
        outputs = [tensor for subgraph in model.subgraphs[:1] for tensor in subgraph.outputs]
        if all(not tensor.dtype_name.startswith(("FLOAT", "BFLOAT")) for tensor in outputs):
            return self._exactly
        return replace(self.judging, tolerance=ROW_TOLERANCE)

    def _save_fixed(self, path: Path, *, is_trial: bool) -> None:
        """Writes the file with the samples of the trial declared, or of the original, and no other change."""
        model = self.made.model()
        whole = self.done.walks[0].editor.model
        for walk in self.done.walks:
            subgraph = model.subgraphs[whole.subgraphs.index(walk.subgraph)]
            for tensor, own in zip(subgraph.tensors, walk.subgraph.tensors, strict=True):
                axes, shape = walk.axes.get(id(own)), tensor.shape or ()
                if axes is None or len(axes) != len(shape) or walk.graph.is_constant(own):
                    continue
                moving = [changes(axis) for axis in axes]
                tensor.shape = tuple(map(new_size, axes)) if is_trial else shape
                free = tensor.signature or tensor.shape
                signature = tuple(
                    size if moves else kept
                    for moves, kept, size in zip(moving, free, tensor.shape, strict=True)
                )
                tensor.signature = signature if -1 in signature else None
        save(model, path)

    def _by_rows(
        self,
        original: Path,
        rewritten: Path,
        folder: Path,
        *,
        exactly: bool = False,
        free: Path | None = None,
    ) -> Verdict:
        """Judges a file by the rows that the original gives; then another, which is resized, by that one."""
        rows = Rows(self.source.model(), self.done, original, folder)
        judging = self._exactly if exactly else self._by_row
        judging = replace(judging, inputs=self._grouped(original, rows, folder, exactly=exactly), holdout=())
        verdict = verify_route(rewritten, rows.route, judging, sources=(original,))
        if free is None or verdict.status == "fail":
            return verdict
        resized = verify_route(rewritten, _alike(free), judging, repeat=False, original=True)
        reasons = tuple(f"resized to more samples: {reason}" for reason in resized.reasons)
        return combined([*verdict.each, *replace(resized, reasons=reasons).each])

    def _grouped(self, original: Path, rows: Rows, folder: Path, *, exactly: bool) -> tuple[Path, ...]:
        """Writes real inputs as batches, in order; the first ones again where the last is not full."""
        if not self.judging.inputs:
            return ()
        ran = run_model(original, self.judging)
        if ran.failure is not None or ran.interface is None:
            return ()
        paths = []
        for number, key in enumerate(dict.fromkeys(call.signature for call in ran.outputs)):
            calls = [
                given for given, call in zip(ran.inputs, ran.outputs, strict=True) if call.signature == key
            ]
            entry = ran.interface.find(key)
            names = [facts.name for facts in entry.inputs] if entry is not None else []
            if any(array.dtype.kind in "OSU" for given in calls for array in given) or not names:
                continue
            paths.append(folder / f"{'once' if exactly else 'batches'}{number}.npz")
            write_npz(
                paths[-1], dict(zip(names, rows.grouped(key, names, calls, alone=exactly), strict=True))
            )
        return tuple(paths)

    def _other_sizes(self, original: Path, rewritten: Path, folder: Path) -> Verdict:
        try:
            back = self._back(folder)
        except UnsupportedError as error:
            raise UnsupportedError(f"the model with other shapes is not sound: {error}") from error
        # Real inputs are of the new shape.
        again = verify(original, back, replace(self._exactly, inputs=()))
        if again.status == "fail":
            reasons = tuple(f"given the old shape again: {reason}" for reason in again.reasons)
            return replace(again, reasons=reasons)
        if not self.done.edits:
            return verify_route(rewritten, _alike(original), self._exactly, sources=(original,))
        alone = run_model(rewritten, self.judging)
        if alone.failure is not None:
            raise UnsupportedError(f"the reshaped model {alone.failure.told}")
        verdict = verify_route(rewritten, _alike(self._save_told(folder)), self._exactly, sources=(original,))
        if not verdict.passed:
            return verdict
        with Preparing(self.judging) as preparing:
            chosen = list(Chosen(self.source.model(), self.done, self.made.model(), preparing).operators())
        count = len(self.done.edits)
        if not chosen:
            note = (
                f"compared with the original, resized by the runtime, in which {count} constants are "
                "changed; for these sizes they can say nothing else"
            )
            return replace(verdict, notes=(*verdict.notes, note))
        names = ", ".join(
            f"{item.code.name} -> {item.outputs[0].name if item.outputs and item.outputs[0] else ''}"
            for item in chosen[:_NAMED]
        )
        more = f" and {len(chosen) - _NAMED} more" if len(chosen) > _NAMED else ""
        whole = ", and so does the whole, given the old shape again" if again.passed else ""
        text = (
            f"nothing in the model says that the sizes told to {names}{more} follow its inputs as they do; "
            f"all else equals the original to the bit{whole}"
        )
        return replace(verdict, status="unverified", cause="nothing", reasons=(text,), outputs=(), entries=())

    def _save_told(self, folder: Path) -> Path:
        """Writes the original with the new inputs and the constants that were changed, and nothing else."""
        model, path = self.made.model(), folder / "told.tflite"
        for subgraph, before in zip(model.subgraphs, self.source.model().subgraphs, strict=True):
            for tensor, was in zip(subgraph.tensors, before.tensors, strict=False):
                # It must be possible to prepare it as it is, so inputs are what they are to be.
                if not was.is_constant and not any(tensor is item for item in subgraph.inputs):
                    tensor.shape, tensor.signature = was.shape, was.signature
        save(model, path)
        return path

    def _back(self, folder: Path) -> Path:
        """Writes the file with the old shapes given again."""
        model, path = self.made.model(), folder / "back.tflite"
        old = self.source.model().subgraphs[0].inputs
        wish = Reshaping(
            input=tuple(
                f"{tensor.name}={','.join(map(str, tensor.shape or ()))}" for tensor in old if tensor.shape
            )
        )
        reshape_model(model, wish, self.judging)
        for subgraph, before in zip(model.subgraphs, self.source.model().subgraphs, strict=True):
            for tensor, was in zip(subgraph.tensors, before.tensors, strict=False):
                # Which sizes are free is declared, and changes no number.
                tensor.signature = was.signature
        save(model, path)
        return path
