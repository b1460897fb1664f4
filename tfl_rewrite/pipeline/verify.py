"""A verdict in full: what a judge sees of two files through the runtime, and what needs a look into them.

The judge runs what the files offer. Three things it cannot see: whether an output that says nothing hides
something before its last SOFTMAX, whether its samples entered the branches and loops that a rewrite changed,
and which range of pixels a model was made for. Here both files are opened for it, changed bodies are cut out
and judged by themselves, and each plausible range is run. Last, both are run operator by operator.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tfl_rewrite.editing.base import PassResult
from tfl_rewrite.errors import TflRewriteError
from tfl_rewrite.files.source import ModelLike, Source, load
from tfl_rewrite.interpreter.scratch import Scratch, TerminationGuard
from tfl_rewrite.judge import blame as tracing
from tfl_rewrite.judge.judge import Judge, Panel, run_model
from tfl_rewrite.judge.layers import Blame
from tfl_rewrite.judge.settings import FOLDED, INSIDE, Judging, Tolerance
from tfl_rewrite.judge.verdict import STATUSES, EntryVerdict, Verdict, combined, entry_verdict, with_entries
from tfl_rewrite.model.ir import Model
from tfl_rewrite.pipeline.report import with_newer
from tfl_rewrite.reading.metadata import on_disk, with_media
from tfl_rewrite.samples.media import PLAUSIBLE, with_ranges

# What looks into files is loaded where that is needed: most verdicts do without.
if TYPE_CHECKING:
    from tfl_rewrite.pipeline.copies import Body

PathLike = str | os.PathLike[str]

_SLOWER, _LEAST_SECONDS = 5.0, 10.0
"""How much longer than the original garbage may run before it counts as something else."""


class FullPanel:
    """Judges rewritten files in full; a context manager.

    Args:
        before: The original.
        judging: How files are run and compared; pictures and sound are read as the metadata of the original
            says.
        progress: Called with what is being done.
    """

    def __init__(
        self, before: PathLike, judging: Judging, *, progress: Callable[[str], None] | None = None
    ) -> None:
        self._before = _parsed(before) if judging.inputs or judging.holdout else before
        self._judging = with_media(judging, self._before).for_judges
        self._progress = progress
        self._guard = TerminationGuard()
        self._stack = contextlib.ExitStack()
        self._scratch: Scratch | None = None
        self._panels: dict[str, Panel] = {}

    def __enter__(self) -> FullPanel:
        self._guard.__enter__()
        self._scratch = self._stack.enter_context(Scratch())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        try:
            self._stack.close()
        finally:
            self._guard.__exit__(kind, error, trace)

    def compare(self, after: PathLike, *, repeat: bool = True) -> Verdict:
        """Has one rewritten file judged.

        Raises:
            UsageError: See :meth:`Panel.compare`.
        """
        verdict = self._in_all_ranges(after, repeat)
        if not verdict.measured:
            return verdict
        verdict = self._opened(after, verdict)
        settled = self.judge_of(verdict).settled
        if settled is not None and settled.interface.all_are_called:
            return verdict
        return self._with_bodies(after, verdict)

    def with_unshown(self, after: PathLike, verdict: Verdict) -> Verdict:
        """Names constants that became something else, which no output of the samples shows.

        Each is put into a copy of the original: it is shown if an output of that is off by more than
        rounding, which a SOFTMAX that is sure of itself does not let it be.
        """
        from tfl_rewrite.pipeline.copies import lost_constants, with_constant

        if verdict.status != "pass" or self._judging.counterparts:
            return verdict
        path, names = self._path("lost"), []
        limit = max(_LEAST_SECONDS, _SLOWER * verdict.seconds)
        try:
            found = lost_constants(load(self._before), load(after))
            for lost in itertools.islice(found, _MOST_LOST):
                with_constant(self._before, lost, path)
                made = self.judge_of(verdict).compare(path, tolerance=FOLDED, timeout=limit)
                if made.status == "pass":
                    names.append(lost.name)
        except TflRewriteError:
            # The interpreter takes files that we do not.
            return verdict
        if not names:
            return verdict
        listed = ", ".join(map(repr, names))
        entry = EntryVerdict(
            signature=None,
            label=f"constants {listed}",
            status="unverified",
            reasons=(f"became something else, and no sample shows it: {listed}",),
            cause="unreached",
        )
        return with_entries(verdict, [*verdict.entries, entry])

    def with_hidden(self, after: PathLike, verdict: Verdict) -> Verdict:
        """Says of a pass what few decisions hide that are sure; see :func:`agreement.with_hidden`."""
        from tfl_rewrite.judge.agreement import may_hide, with_hidden
        from tfl_rewrite.judge.tally import MANY_DECISIONS

        least = self._judging.tolerance.min_snr
        if verdict.status != "pass" or least is None or not may_hide(verdict, least):
            return verdict
        paths, decisions = self._open_both(after)
        if not 0 < decisions < MANY_DECISIONS:
            return verdict
        with Judge(paths[0], self._judging, beside=self.judge_of(verdict)) as judge:
            return with_hidden(verdict, judge.compare(paths[1], tolerance=INSIDE), least)

    def judge_of(self, verdict: Verdict) -> Judge:
        """The judge of the worst verdict that `compare` returned."""
        return self._panel("", self._before, self._judging.inputs).judge_of(verdict)

    def _panel(self, key: str, before: PathLike, inputs: Sequence[PathLike]) -> Panel:
        if key not in self._panels:
            judging = replace(self._judging, inputs=tuple(inputs))
            if key.startswith(_BODY):
                # What nobody calls by a name is the whole of a file there.
                judging = replace(judging, counterparts=())
            panel = Panel(before, judging, progress=self._progress)
            self._panels[key] = self._stack.enter_context(panel)
        return self._panels[key]

    def _in_all_ranges(self, after: PathLike, repeat: bool) -> Verdict:
        """The verdict; where a range was assumed, the worst over all that are plausible."""
        first = self._panel("", self._before, self._judging.inputs).compare(after, repeat=repeat)
        others = with_ranges(self._judging.inputs, first.assumed)
        if not others:
            return first
        verdicts = [first]
        for number, inputs in enumerate(others):
            panel = self._panel(f"range {number}", self._before, inputs)
            verdicts.append(panel.compare(after, repeat=repeat))
        # A range in which the original says nothing is not the one that it was made for.
        telling = [verdict for verdict in verdicts if verdict.cause != "nothing"] or verdicts
        worst = combined(telling)
        return replace(
            worst, assumed=first.assumed, verdicts=tuple(one for each in telling for one in each.each)
        )

    def _opened(self, after: PathLike, verdict: Verdict) -> Verdict:
        """Judges what goes into a last SOFTMAX, LOGISTIC or TANH whose output says nothing."""
        if all(item.silence is None for item in verdict.outputs):
            return verdict
        paths, decisions = self._open_both(after)
        if not decisions:
            return verdict
        found = self._panel("opened", paths[0], self._judging.inputs).compare(paths[1], repeat=False)
        made = _before_last(verdict, found)
        # Each judge is told by what it found there itself.
        by_judge = {one.judge: one for one in found.each}
        verdicts = tuple(
            one if one.judge not in by_judge else _before_last(one, by_judge[one.judge])
            for one in verdict.verdicts
        )
        worst = min((made, *verdicts), key=lambda one: STATUSES.index(one.status))
        told = {name: getattr(worst, name) for name in ("status", "cause", "reasons")}
        return replace(made, verdicts=verdicts, **told)

    def _with_bodies(self, after: PathLike, verdict: Verdict) -> Verdict:
        """Judges by themselves the bodies that changed and that no sample entered."""
        from tfl_rewrite.pipeline.copies import changed_bodies

        self._before, after = _parsed(self._before), _parsed(after)
        try:
            bodies = changed_bodies(load(self._before), load(after))
        except TflRewriteError:
            # The interpreter takes files that we do not.
            told = "branches, loops and composites (the file is not sound, so they cannot be told apart)"
            return replace(verdict, unseen=(*verdict.unseen, told))
        entries = list(verdict.entries)
        for body in bodies:
            if not self._is_reached(body, verdict):
                entries.append(self._by_itself(after, body))
        return verdict if len(entries) == len(verdict.entries) else with_entries(verdict, entries)

    def _is_reached(self, body: Body, verdict: Verdict) -> bool:
        """Whether anything that was compared depends on the constants that changed in a body."""
        from tfl_rewrite.pipeline.copies import poisoned

        if self._judging.counterparts:
            # A copy of the original has its names; run by itself, the body tells enough.
            return False
        path = self._path("poisoned")
        try:
            if not poisoned(self._before, body, path):
                return False
        except TflRewriteError:
            return False
        limit = max(_LEAST_SECONDS, _SLOWER * verdict.seconds)
        found = self.judge_of(verdict).compare(path, tolerance=Tolerance(exact=True), timeout=limit)
        return found.status == "fail"

    def _by_itself(self, after: PathLike, body: Body) -> EntryVerdict:
        """Judges a body as a model of its own, on made samples."""
        from tfl_rewrite.pipeline.copies import cut_out

        paths = self._path(f"body-{body.before}"), self._path("body-after")
        try:
            cut_out(self._before, body.before, paths[0])
            cut_out(after, body.after, paths[1])
        except TflRewriteError as error:
            status, why = "unverified", error.what
        else:
            found = self._panel(f"{_BODY}{body.before}", paths[0], ()).compare(paths[1])
            status, why = found.status, "; ".join(found.reasons)
        what = f"{body.label}, was entered by no sample"
        changed = ", ".join(repr(name) for name in body.constants[:_NAMED]) or "its operators"
        more = f" and {len(body.constants) - _NAMED} more" if len(body.constants) > _NAMED else ""
        told = {
            "fail": "run by itself, it fails",
            "unverified": f"it cannot be judged by itself; what changed in it: {changed}{more}",
        }.get(status, "")
        return EntryVerdict(
            signature=None,
            label=f"{body.label} (by itself)",
            status=status,
            reasons=(f"{what}; {told}: {why}",) if told else (),
            cause={"fail": "outputs", "unverified": "unreached"}.get(status, ""),
        )

    def _path(self, name: str) -> Path:
        assert self._scratch is not None
        return self._scratch.path / f"{name}.tflite"

    def _open_both(self, after: PathLike) -> tuple[tuple[Path, Path], int]:
        """Opens both files; returns where they are, and what each call decides, 0 if one was not opened."""
        from tfl_rewrite.pipeline.copies import open_outputs

        self._before = _parsed(self._before)
        paths = self._path("opened"), self._path("opened-after")
        # Differences from the mean are computed of floats alone, which both files need to give.
        centred = not self._judging.retyped
        try:
            files = zip((self._before, after), paths, strict=True)
            return paths, min(open_outputs(path, target, centred=centred) for path, target in files)
        except TflRewriteError:
            return paths, 0


_NAMED = 5
_BODY = "body "
_MOST_LOST = 5
"""So many constants are looked for in the outputs: each takes a run."""


def _parsed(path: PathLike) -> PathLike:
    """Returns the file, parsed once for all that look into it; as it was given where it cannot be parsed."""
    try:
        return Source.of(path)
    except TflRewriteError:
        return path


def _before_last(verdict: Verdict, found: Verdict) -> Verdict:
    """Returns a verdict that judges its silent outputs by what goes into their last operators.

    Args:
        verdict: On the whole files.
        found: Of the same judge, on both files without those operators.
    """
    inside = {(item.signature, item.position): item for item in found.outputs}
    outputs, opened = [], []
    for item in verdict.outputs:
        better = None if item.silence is None else inside.get((item.signature, item.position))
        if better is None or better.silence is not None or better.tally is None or item.tally is None:
            outputs.append(item)
            continue
        told = f"{item.silence}: judged before its last operator"
        outputs.append(replace(better, name=item.name, notes=(*better.notes, told)))
        opened.append(item.label)
    if all(item.silence is not None for item in outputs):
        return verdict
    if found.status == "fail" and all(item.passed for item in found.outputs):
        # Not for one output: kernels disagree on what goes into it, or the part does not run.
        verdict = replace(verdict, status="fail", cause=found.cause, reasons=found.reasons)
    entries = [
        entry_verdict(entry.signature, entry.label, own)
        if entry.cause == "nothing"
        and (own := [item for item in outputs if item.signature == entry.signature])
        else entry
        for entry in verdict.entries
    ]
    if opened:
        what = opened[0] if len(opened) == 1 else f"{len(opened)} outputs"
        told = f"{what} judged before the last operator"
        verdict = replace(verdict, assumed=(*verdict.assumed, told))
    return with_entries(replace(verdict, outputs=tuple(outputs)), entries)


def unproven(verdict: Verdict) -> str:
    """What a pass rests on that is no proof where one is required, and the remedy; empty for nothing."""
    from tfl_rewrite.judge.agreement import SURE

    if not verdict.passed:
        return ""
    if guessed := [text for text in verdict.assumed if text in PLAUSIBLE]:
        return f"{', '.join(guessed)}; give it with --input-range"
    if verdict.sample_source == "made" and SURE in verdict.assumed:
        # That made samples are sure says nothing of real ones.
        return f"made samples do not show {verdict.unseen[-1]}; give --inputs"
    return ""


def verify(
    before: ModelLike,
    after: ModelLike,
    judging: Judging | None = None,
    *,
    repeat: bool = True,
    progress: Callable[[str], None] | None = None,
) -> Verdict:
    """Runs both files in processes of their own on the same inputs and compares every output.

    All calls of a file are made in one interpreter, in the order of the samples, entry point by entry point:
    what a model keeps in variables carries over, unless the judging is ``independent``. With several
    runtimes or resolvers, each runtime judges with each resolver, and the result is the worst verdict, whose
    ``verdicts`` are those of all.

    Args:
        before: The original: a path, bytes, an open file or a model.
        after: The rewritten one.
        judging: How both are run and compared.
        repeat: Run both files again, to see that they repeat their outputs.
        progress: Called with what is being done.

    Raises:
        UsageError: The runtime is not installed, a file does not exist, or an input does not fit. That a file
            does not run is a verdict, not an error.

    Example:
        >>> judging = tfl_rewrite.Judging(inputs=("inputs.npz",))
        >>> verdict = tfl_rewrite.verify("model.tflite", "new.tflite", judging)
        >>> verdict.passed, verdict.worst_snr() > 20
        (True, True)
    """
    with (
        on_disk(before) as original,
        on_disk(after) as rewritten,
        FullPanel(original, judging or Judging(), progress=progress) as panel,
    ):
        verdict = panel.with_unshown(rewritten, panel.compare(rewritten, repeat=repeat))
        return with_newer(panel.with_hidden(rewritten, verdict))


def run_alone(made: Source, results: Sequence[PassResult], judging: Judging, verdict: Verdict) -> list[str]:
    """Runs a repaired file by itself where the original does not run, or only with plain kernels.

    Returns:
        Notes for the report.
    """
    notes = []
    plain = verdict.judge is not None and not verdict.judge.resolver.startswith("default")
    readings = [result.reading for result in results if result.reading]
    if readings:
        notes.append(f"compared with the original {' and '.join(readings)}: its own reading is undefined")
    elif verdict.status == "pass" and (judging.resolver or not plain):
        return notes
    if verdict.status == "fail":
        return notes
    alone = run_model(made, judging)
    if alone.failure is not None:
        return [*notes, f"the repaired file does not run either: {alone.failure.message}"]
    ran = f"the repaired file runs: {alone.judge}, {len(alone.outputs)} samples"
    if verdict.status == "unverified":
        return [*notes, f"{ran}; there is nothing to compare its outputs with"]
    return [*notes, f"{ran}; the original: {verdict.judge}"]


def blame(before: ModelLike, after: ModelLike, judging: Judging | None = None) -> Blame:
    """Says where the error of a rewritten file enters and grows, operator by operator.

    Args:
        before: The original: a path, bytes, an open file or a model.
        after: The rewritten one.
        judging: Inputs, samples, runtime and timeout; see :func:`tfl_rewrite.judge.blame.blame`.

    Raises:
        UsageError: The runtime is not installed, a file does not exist, or an input file does not fit.

    Example:
        >>> found = tfl_rewrite.blame("model.tflite", "new.tflite")
        >>> [layer.operator for layer in found.layers if layer.role == "enters"]
        ['CONV_2D']
    """
    with on_disk(before) as original, on_disk(after) as rewritten:
        found = tracing.blame(original, rewritten, with_media(judging or Judging(), original))
        try:
            graph = graph_name(load(rewritten))
        except TflRewriteError:
            # The interpreter takes files that we do not; what it found is worth showing all the same.
            graph = "main"
        return replace(found, graph=graph)


def graph_name(model: Model) -> str:
    """What Model Explorer calls the primary subgraph: by its name, else its signature, else ``main``."""
    primary = model.subgraphs[0]
    if primary.name:
        return primary.name
    keys = [item.key for item in model.signatures if item.subgraph is primary]
    return (keys[0] if keys else None) or "main"
