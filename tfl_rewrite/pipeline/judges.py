"""The judges of what a rewrite makes: what each compares it with, and the runtimes that it was made for."""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tfl_rewrite.editing.base import Context, Effect, Pass, PassResult, effects_of, run_passes
from tfl_rewrite.files.source import Source, load, save
from tfl_rewrite.interpreter.process import RuntimeChoice
from tfl_rewrite.interpreter.scratch import Scratch
from tfl_rewrite.interpreter.worker import Failure
from tfl_rewrite.judge.agreement import AGREED_DB, APART_DB, with_cost_of
from tfl_rewrite.judge.counterparts import chained
from tfl_rewrite.judge.judge import Judge, run_model
from tfl_rewrite.judge.reference import PathLike, existing, judge_info
from tfl_rewrite.judge.repeats import Tallying
from tfl_rewrite.judge.settings import OLD_RUNTIME_PYTHON, SNR_BOUNDS, Judging, Tolerance
from tfl_rewrite.judge.verdict import OutputComparison, Verdict, with_entries
from tfl_rewrite.kernels.platforms import MICRO, Platform
from tfl_rewrite.pipeline.verify import FullPanel
from tfl_rewrite.reading.metadata import on_disk
from tfl_rewrite.weights.expansion import expand_constants
from tfl_rewrite.work import current


class Judges:
    """The judges of what a rewrite makes, and the file whose outputs it must have; made when first asked for.

    Args:
        source: The original.
        passes: Of the rewrite.
        judging: How files are run and compared.
        stack: Closes them.
        fitted: Inputs of the user that something is fitted to, those that judge among them or not.
    """

    def __init__(
        self,
        source: Source,
        passes: Sequence[Pass],
        judging: Judging,
        stack: contextlib.ExitStack,
        fitted: Sequence[PathLike] = (),
    ) -> None:
        self._source = source
        self._passes = passes
        self._judging = judging
        self._stack = stack
        self._fitted = tuple(fitted)
        self._panels: dict[Effect, FullPanel] = {}
        self._with_fitted: dict[Effect, Judge] = {}
        self._refused_by: Judge | None = None
        self._expected: PathLike | None = None

    def expected(self, results: Sequence[PassResult]) -> PathLike:
        """The file whose outputs the result must have (:class:`Effect`).

        Args:
            results: Of the first attempt.
        """
        if self._expected is None:
            self._expected = self._made(results)
        return self._expected

    def named(self, results: Sequence[PassResult]) -> PathLike:
        """The same file with the names that the result has.

        Args:
            results: Of the first attempt.
        """
        renaming = [item for item, result in zip(self._passes, results, strict=True) if result.counterparts]
        if not renaming:
            return self.expected(results)
        model = load(self.expected(results))
        run_passes(model, renaming)
        path = self._stack.enter_context(Scratch()).path / "named.tflite"
        save(model, path)
        return path

    def compare(self, results: Sequence[PassResult], made: Source) -> Verdict:
        """Has all judges judge a file; where outputs differ, see :attr:`PassResult.otherwise`."""
        panel = self.panel(results)
        verdict = panel.compare(made)
        verdict = panel.with_unshown(made, verdict)
        told = [(item, result.otherwise) for item, result in zip(self._passes, results, strict=True)]
        readings = [text for _, text in told if text]
        if verdict.cause not in ("outputs", "kernels") or not readings:
            return verdict
        model = load(self.expected(results))
        for item, text in told:
            if text:
                item.define(model, Context())
        with Scratch() as scratch:
            path = scratch.path / "otherwise.tflite"
            save(model, path)
            with FullPanel(path, self._judging, progress=current().say) as panel:
                found = panel.compare(made)
        if not found.passed:
            return verdict
        note = f"compared with the original {' and '.join(readings)}; as it is: {'; '.join(verdict.reasons)}"
        return replace(found, notes=(note, *found.notes))

    def on_fitted(self, results: Sequence[PassResult], made: Source, verdict: Verdict) -> Verdict:
        """Has a file judged on all inputs of the user as well, which tell a verdict on few of them better.

        What a file was fitted to never makes it pass. But one that fails there is bad whatever the few say
        that were held out, and so would anybody find who verifies it with the same inputs.

        Args:
            results: What made it.
            made: The file.
            verdict: On the inputs that were held out.

        Returns:
            A refusal, or the verdict as it was, with what a call costs where it had too few of them.
        """
        self._refused_by = None
        if not self._fitted or not verdict.measured:
            return verdict
        if verdict.status == "fail":
            # Kernels alone disagree: nothing is fitted to how they round, so that all samples may tell.
            passed = verdict.verdicts and all(one.passed for one in verdict.verdicts)
            agree = passed and self._panel_of_all(results).compare(made).passed
            return replace(verdict, status="pass", cause="", reasons=()) if agree else verdict
        judge = self._judge_of_all(results, verdict)
        current().say("verifying with what it was fitted to")
        found = judge.compare(made)
        if found.status == "fail":
            # Whether the original itself is as unlike in other kernels is looked for only now.
            found = judge.compare(made, repeat=True)
        if found.status != "fail":
            return with_cost_of(verdict, found)
        self._refused_by = judge
        told = f"on all {found.sample_count} samples, those that it was fitted to among them"
        return replace(found, reasons=tuple(f"{told}: {reason}" for reason in found.reasons))

    def with_hidden(self, results: Sequence[PassResult], made: Source, verdict: Verdict) -> Verdict:
        """Says, where a ratio judged, what outputs that are sure of themselves hide of a file that passed."""
        if self.strictness(results) is not Effect.TOLERANCE:
            return verdict
        return self.panel(results).with_hidden(made, verdict)

    def kept_of_all(self, results: Sequence[PassResult], made: Source, verdict: Verdict) -> float | None:
        """Returns what a file keeps of the lowest output on all inputs of the user, in dB, if that is known.

        Args:
            results: What made it.
            made: The file.
            verdict: On inputs that were held out, of a file like it.
        """
        return self._judge_of_all(results, verdict).compare(made, repeat=False).worst_snr()

    def _judge_of_all(self, results: Sequence[PassResult], verdict: Verdict) -> Judge:
        by = self.strictness(results)
        if by not in self._with_fitted:
            # Once is enough: where kernels differ, the inputs that were held out tell.
            given = replace(self._judging, inputs=self._fitted, holdout=(), implied=())
            beside = self.panel(results).judge_of(verdict)
            judge = Judge(self.expected(results), self._settings(given, results), beside=beside)
            self._with_fitted[by] = self._stack.enter_context(judge)
        return self._with_fitted[by]

    def _panel_of_all(self, results: Sequence[PassResult]) -> FullPanel:
        given = replace(self._judging, inputs=self._fitted, holdout=())
        panel = FullPanel(self.expected(results), self._settings(given, results), progress=current().say)
        return self._stack.enter_context(panel)

    def judge_of(self, results: Sequence[PassResult], verdict: Verdict) -> Judge:
        """The judge of the worst verdict on what an attempt made, which was the last to be judged."""
        return self._refused_by or self.panel(results).judge_of(verdict)

    def panel(self, results: Sequence[PassResult]) -> FullPanel:
        """All judges of results as strict as those of an attempt."""
        by = self.strictness(results)
        if by not in self._panels:
            # Of all samples, what they were fitted to among them, channels are judged besides.
            tolerance = replace(self._judging.tolerance, few_channels=bool(self._fitted))
            settings = self._settings(replace(self._judging, tolerance=tolerance), results)
            panel = FullPanel(self.expected(results), settings, progress=current().say)
            self._panels[by] = self._stack.enter_context(panel)
        return self._panels[by]

    def _settings(self, own: Judging, results: Sequence[PassResult]) -> Judging:
        """How results are judged."""
        by = self.strictness(results)
        judging = own if by is Effect.TOLERANCE else own.folded if by is Effect.FOLDING else own.exactly
        retyped = any(result.retyped for result in results)
        named = chained(result.counterparts for result in results)
        return replace(judging, retyped=retyped, counterparts=named)

    def strictness(self, results: Sequence[PassResult]) -> Effect:
        """By what to judge: of what passes did, the effect that allows most."""
        done = effects_of(self._passes, results)
        if Effect.TOLERANCE in done or any(result.reading for result in results):
            return Effect.TOLERANCE
        return Effect.FOLDING if Effect.FOLDING in done else Effect.EXACT

    def _made(self, results: Sequence[PassResult]) -> PathLike:
        marked = [item for item in self._passes if item.effect is Effect.INTERFACE]
        undefined = [item for item, result in zip(self._passes, results, strict=True) if result.reading]
        if not marked and not undefined:
            return self._stack.enter_context(on_disk(self._source))
        model = self._source.model()
        for item in undefined:
            item.define(model, Context())
        run_passes(model, marked)
        path = self._stack.enter_context(Scratch()).path / "expected.tflite"
        save(model, path)
        return path


_REFERENCE = ("reference",)
"""What TFLite Micro is compared with: the same code. XNNPACK rounds integers in another way."""


@dataclass(frozen=True, slots=True)
class Missing:
    """A runtime that a file was made for and that did not judge it.

    Attributes:
        name: As a sentence names it.
        remedy: How it could.
    """

    name: str
    remedy: str

    @property
    def unseen(self) -> str:
        """What was not judged."""
        return f"{self.name}, which it was made for"

    @property
    def note(self) -> str:
        """All of it, for a report."""
        return f"not run on {self.unseen}: {self.remedy}"


def without_release(passes: Sequence[Pass], verdict: Verdict | None) -> list[Missing]:
    """Returns the releases that a file was made for (:attr:`Pass.release`) and that did not judge it."""
    judges = [one.judge for one in (verdict.each if verdict is not None else ()) if one.judge is not None]
    remedy = (
        "give --runtime litert --runtime python:PATH with a Python that has it, or name that Python in "
        f"{OLD_RUNTIME_PYTHON}"
    )
    return [
        Missing(f"tflite-runtime {release}", remedy)
        for release in dict.fromkeys(item.release for item in passes if item.release)
        if not any(judge.version.startswith(f"{release}.") for judge in judges)
    ]


def judged_on_platforms(
    before: PathLike, made: Source, passes: Sequence[Pass], settings: Judging
) -> tuple[list[Verdict], list[Missing], list[str]]:
    """Runs a file in the runtimes that passes made it for, and here, and compares.

    Args:
        before: What its outputs must be those of.
        made: The file.
        passes: What made it.
        settings: How it is run; the runtimes that are named by a path are those to run it in.

    Returns:
        A verdict of each runtime; the runtimes that are not installed; and notes.
    """
    verdicts, missing, notes = list[Verdict](), list[Missing](), list[str]()
    for text in dict.fromkeys(item.elsewhere for item in passes if item.elsewhere):
        platform = Platform.parse(text)
        found = _runtimes(platform, settings)
        current().say(f"running it on {platform.spoken}")
        judges = [_judged(before, made, platform, settings.here, runtime) for runtime in found]
        verdicts += judges
        notes += [
            _alone(made, settings, runtime)
            for runtime, one in zip(found, judges, strict=True)
            if not one.judge
        ]
        release = text.removeprefix("litert-")
        versions = [one.judge.version for one in judges if one.judge is not None]
        known = any(f"{item}.".startswith(f"{release}.") for item in versions)
        if not platform.is_micro and not known and (versions or not judges):
            remedy = f"name a Python that has it, as python:PATH among the runtimes{_by_name(platform)}"
            missing.append(Missing(platform.spoken, remedy))
        elif platform.is_micro and not judges:
            missing.append(Missing(platform.spoken, "pip install tflite-micro (Linux on x86-64)"))
    return verdicts, missing, notes


def _alone(made: Source, settings: Judging, runtime: str) -> str:
    """Runs a file there that does not run here, so that it cannot be compared; says what came of it."""
    found = run_model(made, replace(settings, runtime=(runtime,), resolver=()))
    if found.failure is not None:
        return f"it does not run there either: {found.failure.message}"
    return f"it runs there ({found.judge}, {len(found.outputs)} samples), and nothing is compared"


def _by_name(platform: Platform) -> str:
    return f" or in {OLD_RUNTIME_PYTHON}" if platform.release else ""


def _runtimes(platform: Platform, settings: Judging) -> tuple[str, ...]:
    """Returns the runtimes that stand for a platform on this machine."""
    if platform.is_micro:
        return (MICRO,) if importlib.util.find_spec("tflite_micro") else ()
    python = os.environ.get(OLD_RUNTIME_PYTHON) if platform.release else None
    return settings.elsewhere or ((f"python:{python}",) if python else ())


def _judged(before: PathLike, made: Source, platform: Platform, judging: Judging, runtime: str) -> Verdict:
    if not platform.is_micro:
        return _on_release(before, made, judging, runtime)
    model = made.model()
    kept = [item for item in model.signatures if item.subgraph is model.subgraphs[0]]
    if len(kept) == len(model.signatures):
        return _on_micro(before, made, judging, runtime)
    lost = ", ".join(repr(item.key) for item in model.signatures if item not in kept)
    model.signatures = kept
    with Scratch() as scratch:
        path = scratch.path / "main.tflite"
        save(model, path)
        verdict = _on_micro(before, path, judging, runtime)
    told = f"signatures {lost}: TFLite Micro runs the main subgraph alone"
    if verdict.status == "fail":
        # Some of its kernels end the process in subgraphs that the main one does not run.
        remedy = f"{told}, and 'tfl-rewrite signatures --extract KEY' makes a file of one"
        verdict = replace(verdict, reasons=(*verdict.reasons, remedy))
    return replace(verdict, unseen=(*verdict.unseen, told))


def _on_micro(before: PathLike, made: PathLike, judging: Judging, runtime: str) -> Verdict:
    verdict = judged_elsewhere(before, made, replace(judging, resolver=_REFERENCE), runtime, micro=True)
    if verdict.status == "unverified" and not judging.resolver:
        # The reference kernels lack some operators.
        return judged_elsewhere(before, made, judging, runtime, micro=True)
    return verdict


def _on_release(before: PathLike, made: Source, judging: Judging, runtime: str) -> Verdict:
    """Compares with what the file gives here; where kernels round too differently, in three other ways.

    With what the original gives there, if it runs there; with the same kernels, without XNNPACK, here and
    there; and with the same weights as floats. Integer kernels of two releases are known to differ by more
    than a rewrite may.
    """
    first = judged_elsewhere(before, made, judging, runtime)
    if first.status != "fail" or first.cause != "outputs":
        return first
    with Judge(before, replace(judging, runtime=(runtime,))) as judge:
        second = judge.compare(made)
    told = "compared with the original there"
    if not second.passed and not judging.resolver:
        second = judged_elsewhere(before, made, replace(judging, resolver=("builtin",)), runtime)
        told = "compared without XNNPACK here and there"
    if not second.passed:
        second, told = _beside_floats(before, made, judging, runtime) or (second, told)
    if not second.passed:
        return first
    why = "; ".join(first.reasons)
    return replace(second, notes=(*second.notes, f"{told}: kernels round otherwise there ({why})"))


_ANY = Tolerance(min_snr=SNR_BOUNDS[0], min_agreement=0.0)
_SIGN_DB = 20 * math.log10(2)
"""What kernels lose that round activations of one sign on a grid for both, as those of 2.14 do."""


def _beside_floats(
    before: PathLike, made: Source, judging: Judging, runtime: str
) -> tuple[Verdict, str] | None:
    """Compares how much hybrid kernels lose there, by rounding activations, with how much they lose here.

    Both are measured against the same weights as floats, which must compute the same here and there.

    Returns:
        A pass, and what it was compared with; None where nothing was hybrid, or they lose more there than
        rounding explains.
    """
    model = made.model()
    if not expand_constants(model, None).edits:
        return None
    with Scratch() as scratch:
        floats = scratch.path / "floats.tflite"
        save(model, floats)
        if not judged_elsewhere(before, floats, judging, runtime).passed:
            return None
        lost = []
        for where in (judging.runtime[0], runtime):
            limits = replace(judging, tolerance=_ANY, runtime=(where,))
            with Judge(floats, limits, inputs_of=before) as judge:
                lost.append(judge.compare(made))
    here, there = lost
    pairs = [
        (one, other)
        for one, other in zip(here.outputs, there.outputs, strict=False)
        if one.silence is None and other.silence is None
    ]
    figures = [
        (one.snr_db, other.snr_db, other.doubt_db)
        for one, other in pairs
        if one.snr_db is not None and other.snr_db is not None
    ]
    if not (here.passed and there.passed and figures) or len(figures) < len(pairs):
        return None
    if any(then < min(now, AGREED_DB) - _SIGN_DB - APART_DB - doubt for now, then, doubt in figures):
        return None
    now, then = (min(each) for each in list(zip(*figures, strict=True))[:2])
    told = f"beside the same weights as floats it keeps {now:.1f} dB here and {then:.1f} dB there"
    return there, f"{told}, where hybrid kernels round activations"


MOST_STEPS = 3
"""By how many steps of its scale an integer may differ between two runtimes, whose kernels round differently.

Measured on 157 files in TFLite Micro beside the reference kernels of LiteRT: equal, but for 1 step of a
ResNet and 3 of an LSTM. Over more samples that ResNet, as it was, came to 5 steps behind its SOFTMAX.
"""
ALIKE_DB = 30.0
"""So much an output must keep that is further off in a few elements; that ResNet keeps 39.9 dB."""


def judged_elsewhere(
    before: PathLike, path: PathLike, judging: Judging, runtime: str, *, micro: bool = False
) -> Verdict:
    """Runs a file here and in another runtime on the same inputs, and compares what it gives.

    Args:
        before: What it was made of, and the inputs are for; it is not run.
        path: The file.
        judging: How it is run here, and what is tolerated.
        runtime: The other one, as in :attr:`Judging.runtime`.
        micro: Whether that is TFLite Micro: it takes the recorded sizes only, so that larger ones prove
            nothing, and its integers are those of the reference kernels, within :data:`MOST_STEPS`.

    Raises:
        UsageError: A runtime is not installed, or an input does not fit.
    """
    with Judge(path, judging, inputs_of=before) as judge:
        found = judge.reference()
        reference = judge.settled
        if found.failure is not None or reference is None:
            why = found.failure.message if found.failure is not None else "it does not run"
            return Verdict(
                status="unverified",
                reasons=(f"the new file does not run here: {why}",),
                cause=found.failure.kind if found.failure is not None else "error",
            )
        worker, _ = judge.lend(1)
        worker.runtime = RuntimeChoice.parse(runtime)
        tallying = Tallying(reference)
        request = judge.request(existing(path), reference)
        worker.begin(request, on_ran=tallying.take)
        with worker.finish() as execution:
            if micro:
                execution.dropped = None
            made = judge.judged(reference, execution, tallying, judging.tolerance)
            # The time of two runtimes says nothing of the file.
            made = replace(made, judge=judge_info(worker, reference.resolver, judging.threads), cost=None)
            failure = execution.failure
    if failure is not None:
        return _refused(made, failure)
    return _within_steps(made) if micro else made


def _refused(verdict: Verdict, failure: Failure) -> Verdict:
    reasons = (f"the new file does not run there: {failure.message}",)
    return replace(verdict, status="fail", cause=failure.kind, reasons=reasons)


def _within_steps(verdict: Verdict) -> Verdict:
    """Refuses integers that differ by more than rounding does."""

    def checked(item: OutputComparison) -> OutputComparison:
        off = item.max_abs_error or 0
        alike = item.snr_db is not None and item.snr_db >= ALIKE_DB
        if item.unit != "steps" or off <= MOST_STEPS or alike or not item.passed:
            return item
        return replace(item, passed=False, reason=f"{off:g} steps apart, more than {MOST_STEPS}")

    outputs = tuple(map(checked, verdict.outputs))
    if all(one is other for one, other in zip(outputs, verdict.outputs, strict=True)):
        return verdict
    entries = [
        replace(entry, status="fail", cause="outputs", reasons=told)
        if (told := _told(outputs, entry.signature))
        else entry
        for entry in verdict.entries
    ]
    return with_entries(replace(verdict, outputs=outputs), entries)


def _told(outputs: Sequence[OutputComparison], signature: str | None) -> tuple[str, ...]:
    failed = [item for item in outputs if item.signature == signature and not item.passed]
    return tuple(f"{item.label}: {item.reason}" for item in failed)
