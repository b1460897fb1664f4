"""Makes files with some constants stored otherwise, and measures them."""

from __future__ import annotations

import enum
import functools
import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from tfl_rewrite.editing.base import Change, Context, Effect, Pass, PassResult, last_packing, run_passes
from tfl_rewrite.errors import FormatError, InvariantError, UnsupportedError
from tfl_rewrite.files.source import Source, layout, load, save
from tfl_rewrite.judge.compare import merged
from tfl_rewrite.judge.judge import Judge, verdicts
from tfl_rewrite.judge.settings import INSIDE, Judging, Tolerance
from tfl_rewrite.judge.verdict import Verdict
from tfl_rewrite.model.ir import Model
from tfl_rewrite.numerics.codecs import Codec
from tfl_rewrite.numerics.grids import deflated
from tfl_rewrite.options.frozen import frozen
from tfl_rewrite.options.json_data import shown
from tfl_rewrite.passes.prune import Prune, PrunedChange
from tfl_rewrite.passes.quantize_weights import QuantizeWeights, prepare
from tfl_rewrite.passes.round_weights import RoundWeights
from tfl_rewrite.pipeline.copies import open_outputs
from tfl_rewrite.search.basis import Basis, Content, Contents, sites_of, written
from tfl_rewrite.search.clock import TimeIsUp
from tfl_rewrite.search.goals import Goal, Objective
from tfl_rewrite.search.holdout_judge import (
    Figures,
    Metric,
    counts_hidden,
    figures_of,
    noise_of,
    opened_beside,
)
from tfl_rewrite.search.in_place import Expansions, PatchedFiles
from tfl_rewrite.search.units import (
    Choice,
    Float64,
    Form,
    assigned,
    encodings_of,
    grids_of,
    ratio,
    sparsities_of,
)
from tfl_rewrite.weights.codes import Code, Coded, Coding
from tfl_rewrite.weights.encoding import Encoding
from tfl_rewrite.weights.grids import Constant
from tfl_rewrite.weights.payloads import GridPayload, WeightChange
from tfl_rewrite.weights.rounders import Effort, Rounder


def codes_of(choice: Choice) -> dict[int, Code]:
    """Returns what is stored as integers for a download."""
    return {position: form for position, form in choice.items() if isinstance(form, Code)}


def _texts(choice: Choice) -> dict[str, str]:
    stored: dict[int, Encoding | Code] = {**encodings_of(choice), **codes_of(choice)}
    return {str(position): form.text for position, form in sorted(stored.items())}


class Rounding(str, enum.Enum):
    """How the integers of the weights of a file are made.

    ``plain``: the nearest, without a look at inputs. ``fitted``: each weight for what it meets while all
    others are floats, so that what was done for one file serves all others. ``in order``: each for what it
    meets behind those before it.
    """

    PLAIN = "plain"
    FITTED = "fitted"
    IN_ORDER = "in order"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured(Figures):
    """A whole file that was made and run, on the inputs of the search.

    Attributes:
        nbytes: Its size; ``deflated`` as a store compresses it, 0 if that was not asked for.
        cost: What the objective counts.
        rounding: How the integers of its weights were made.
        activations: What operators compute in, as was asked; empty for floats.
    """

    nbytes: int
    deflated: int = field(metadata=shown(made=lambda nbytes: nbytes or None))
    cost: float
    rounding: Rounding = Rounding.FITTED
    activations: str = field(default="", metadata=shown(optional=True))
    choice: Choice = field(metadata=shown("encodings", made=_texts))


UNMADE = (UnsupportedError, FormatError, InvariantError)
"""Why a file cannot be made; what is wrong with the call, or with the disk, concerns all files."""

PassMaker = Callable[[], QuantizeWeights]


@dataclass(frozen=True, slots=True)
class Chosen(Pass):
    """The weight pass with an encoding for each buffer, by position."""

    name: ClassVar[str] = QuantizeWeights.name
    effect: ClassVar[Effect] = Effect.TOLERANCE

    base: QuantizeWeights
    encodings: Mapping[int, Encoding]

    def run(self, model: Model, context: Context) -> PassResult:
        """Rewrites the model in place."""
        return assigned(self.base, self.encodings, model).run(model, context)


def coded(base: QuantizeWeights, coder: Coding, codes: Mapping[int, Code]) -> Chosen:
    """Returns the weight pass that stores constants as integers for a download."""
    axes = {position: code.axis for position, code in codes.items() if code.axis is not None}
    settings = replace(base, rounder=Coded(coder, codes, Rounder()), scale_axes=axes)
    return Chosen(settings, {position: code.encoding for position, code in codes.items()})


@frozen
class Rounders:
    """What makes the constants of a file, looking at some inputs.

    Attributes:
        base: The weight pass, where encodings are chosen.
        plain: The same without a look at inputs.
        ordered: Makes the weight pass with a rounder that goes weight by weight, each for what it meets
            behind those before it. What it decides on one weight depends on all others, so each file
            takes a new one. None where nothing is rounded for inputs.
        grids: The pass that rounds values, where grids are chosen.
        pruning: The pass that makes values zero, where shares are chosen.
        coder: Makes integers for a download, where those are chosen.
    """

    base: QuantizeWeights | None = None
    plain: QuantizeWeights | None = None
    ordered: PassMaker | None = None
    grids: RoundWeights | None = None
    pruning: Prune | None = None
    coder: Coding | None = None

    def passes(self, choice: Choice, rounding: Rounding = Rounding.FITTED) -> list[Pass]:
        """Returns what gives constants the forms that were chosen."""
        encodings, grids = encodings_of(choice), grids_of(choice)
        made: list[Pass] = []
        base = self.base
        if rounding is Rounding.PLAIN and self.plain is not None:
            base = self.plain
        elif rounding is Rounding.IN_ORDER and self.ordered is not None:
            base = self.ordered()
        codes = codes_of(choice)
        if codes and base is not None and self.coder is not None:
            made.append(coded(base, self.coder, codes))
        if base is not None and (encodings or not (grids or codes)):
            made.append(Chosen(base, encodings))
        if self.grids is not None and (grids or not made):
            made.append(replace(self.grids, choices=grids))
        if self.pruning is not None:
            shares = {position: form.share for position, form in sparsities_of(choice).items()}
            made.append(replace(self.pruning, choices=shares))
        return made


@frozen
class Fold:
    """A part of the inputs.

    Attributes:
        judging: How files are run on this part.
        rounders: They do not look at this part.
    """

    judging: Judging
    rounders: Rounders


@frozen
class Frame:
    """What is done around the choice of forms.

    Attributes:
        source: The original.
        before: Passes that run first. They lose nothing but the last bits, unless ``activations`` says so.
        after: Passes that lose nothing, run last.
        activations: What the first passes make operators compute in; empty for floats, as in the original.
    """

    source: str | os.PathLike[str]
    before: Sequence[Pass] = ()
    after: Sequence[Pass] = ()
    activations: str = ""


@frozen
class Stored:
    """How one constant was stored.

    Attributes:
        noise: Squared error of its values over their energy.
        deflated: By how many bytes its integers can be compressed.
    """

    noise: float
    deflated: int


@frozen
class Rounded:
    """A model in which constants were stored otherwise.

    Attributes:
        stored: Each of them, by position of the buffer.
        model: What it is now.
    """

    stored: Mapping[int, Stored]
    model: Model


@dataclass(eq=False)
class Trials:
    """Files made from one original, one at a time in the same place; a context manager.

    Attributes:
        frame: The original, and what is done around.
        folds: The inputs of the search.
        final: What may look at all of them.
        judge: Of whole files, on the first part of the inputs; all other judges use its processes.
        folder: For the files.
        goal: What figures are judged by.
        metric: The user's own figure.
        beside: Trials of the same original in floats, where the first passes change what it computes in: what
            those lose counts in whole files, and not where one constant is measured.
        path: Where :meth:`finish` puts its file.
        files: How many files were run.
        prepared: The original as the first passes leave it; None where constants lie otherwise in a file.
        opened: The original as it is opened before a last SOFTMAX and the like; None where there is none.
        decisions: How many things each call decides there, at least.
        constants: What can be rounded to grids, by position of the buffer; filled by :meth:`prepare_grids`.
        growth: By how many bytes a file grows, less than 0 mostly, by position of the buffer and encoding.
    """

    frame: Frame
    folds: Sequence[Fold]
    final: Rounders
    _: KW_ONLY
    judge: Judge
    folder: Path
    goal: Goal
    metric: Metric | None = None
    beside: Trials | None = None

    def __post_init__(self) -> None:
        folder = self.folder
        self._paths = [folder / f"trial{number}.tflite" for number in range(len(self.folds))]
        self.path = folder / "final.tflite"
        self.files = 0
        self.prepared = self._prepare(folder / "prepared.tflite")
        self.opened, self.decisions = _opened(self.prepared, folder / "opened.tflite")
        self.constants: dict[int, Constant] = {}
        self.growth: dict[tuple[int, str], float] = {}
        self._basis = None if self.prepared is None else Basis.of(self.prepared, folder / "basis.tflite")
        self._patched = PatchedFiles(folder)
        self._expansions: dict[tuple[int, Rounding], Expansions] = {}
        self._judges: dict[tuple[int, str], Judge] = {}
        self._final: dict[Hashable, list[Pass]] = {}

    def __enter__(self) -> Trials:
        return self

    def __exit__(self, *_: object) -> None:
        for judge in self._judges.values():
            judge.close()

    def _prepare(self, path: Path) -> Source | None:
        """Writes what the first passes make, so that they need not be run each time."""
        model = load(self.frame.source)
        run_passes(model, self.frame.before)
        try:
            save(model, path)
        except UNMADE:
            return None
        # Constants are told apart by the positions of their buffers.
        made = Source.open(path)
        return made if _sizes(made.model()) == _sizes(model) else None

    def fresh(self) -> Model:
        """Loads the original as the first passes leave it."""
        if self.prepared is not None:
            return self.prepared.model()
        model = load(self.frame.source)
        run_passes(model, self.frame.before)
        return model

    def prepare(self, choices: Sequence[Choice]) -> None:
        """Lets the rounders look at the model once for all encodings."""
        for fold in self.folds:
            base = fold.rounders.base
            if base is not None and base.rounder is not None:
                model = self.fresh()
                passes = [assigned(base, encodings_of(choice), model) for choice in choices]
                prepare(model, passes, base.rounder)

    def prepare_sparsities(self) -> list[Constant]:
        """Finds what can be pruned, and lets those who choose weights look at the model."""
        model = self.fresh()
        settings = self.final.pruning
        assert settings is not None
        found, _ = settings.constants(model)
        for rounders in (self.final, *(fold.rounders for fold in self.folds)):
            if found and rounders.pruning is not None and rounders.pruning.fitting is not None:
                rounders.pruning.fitting.prepare(model, found)
        return found

    def prepare_grids(self) -> list[Constant]:
        """Finds what can be rounded to grids, and lets those who choose levels look at the model."""
        model = self.fresh()
        settings = self.final.grids
        assert settings is not None
        self.constants = {item.position: item for item in settings.unrounded(model)}
        found = list(self.constants.values())
        for rounders in (self.final, *(fold.rounders for fold in self.folds)):
            if found and rounders.grids is not None and rounders.grids.fitting is not None:
                rounders.grids.fitting.prepare(model, found)
        return found

    def prepare_codes(self, model: Model, items: Sequence[Constant]) -> None:
        """Lets those who choose integers and levels look at constants of the model; those may change then.

        Args:
            model: See :meth:`fresh`.
            items: Of it.
        """
        self.constants = {item.position: item for item in items}
        for rounders in (self.final, *(fold.rounders for fold in self.folds)):
            if rounders.coder is not None:
                rounders.coder.prepare(model, items)

    def rounded(self, choice: Choice, rounding: Rounding = Rounding.FITTED) -> Rounded:
        """Stores constants otherwise, without writing a file."""
        model = self.fresh()
        changes = self._learn(0, choice, model, rounding)
        found = {}
        for change in changes:
            if isinstance(change, (WeightChange, PrunedChange)):
                blob = model.buffers[change.buffer].blob
                spared = 0
                # What zeros spare is in the cost of their option already.
                stored = isinstance(change, WeightChange)
                if stored and self.goal.objective is Objective.DOWNLOAD and blob is not None:
                    spared = blob.nbytes - deflated(blob.view(), level=6)
                found[change.buffer] = Stored(ratio(change.snr), spared)
        for number in range(1, len(self.folds) if rounding is Rounding.FITTED else 1):
            self._learn(number, choice, self.fresh(), rounding)
        return Rounded(found, model)

    @functools.cached_property
    def kept_nbytes(self) -> int:
        """Size of a file in which every constant stays as it is."""
        return self.laid_out(self.fresh())

    def laid_out(self, model: Model) -> int:
        """Runs the last passes on a model; returns the size of its file, which is not written."""
        packing = last_packing(run_passes(model, self.frame.after)) if self.frame.after else None
        return layout(model, packing=packing).nbytes

    def _learn(self, number: int, choice: Choice, model: Model, rounding: Rounding) -> Sequence[Change]:
        """Stores constants of a model otherwise, and takes in what operators read of them then."""
        rounders = self.folds[number].rounders
        sites = sites_of(model)
        (made,) = rounders.passes(choice, rounding)
        changes = made.run(model, Context()).changes
        _check_fitted([made])
        fitted = rounders.base.rounder if rounders.base is not None and rounding is Rounding.FITTED else None
        corrections = () if fitted is None else fitted.corrections()
        self._expanded(number, rounding).learn(choice, sites, changes, corrections)
        return changes

    def _expanded(self, number: int, rounding: Rounding) -> Expansions:
        """Returns what operators read of constants that are stored otherwise; plain ones once."""
        key = (0 if rounding is Rounding.PLAIN else number, rounding)
        return self._expansions.setdefault(key, Expansions(self._basis))

    def noise(self, choice: Choice) -> Float64 | None:
        """Returns the noise over signal of each output with some constants stored otherwise.

        Outputs are taken before a last SOFTMAX, LOGISTIC or TANH, which hide noise where they are sure.
        None where such a file cannot be made or does not run.
        """
        try:
            paths = [self._single(number, choice) for number in range(len(self.folds))]
        except UNMADE:
            return None
        try:
            judged = self._judged(paths, alone=True)
        except UnsupportedError:
            if self.opened is None:
                raise
            # Opened, even the original does not run; closed, it may.
            self.opened = None
            return self.noise(choice)
        tolerance = self._tolerance(opened=self.opened is not None)
        verdict = merged(judged, tolerance)
        noise = noise_of(verdict, tolerance)
        return noise if verdict.measured and np.isfinite(noise).all() else None

    def _single(self, number: int, choice: Choice) -> Path:
        """Makes a file with some constants in other forms and nothing else done, opened where it can be."""
        patched = self.in_place(number, choice, opened=self.opened is not None)
        if patched is not None:
            return patched
        model = self.opened.model() if self.opened is not None else self.fresh()
        self._write(model, self.folds[number].rounders.passes(choice), self._paths[number])
        return self._paths[number]

    def in_place(
        self, number: int, choice: Choice, rounding: Rounding = Rounding.FITTED, *, opened: bool
    ) -> Path | None:
        """Puts values into a file; returns its path, or None where a file has to be made.

        What is no matter of values, such as weights of hybrid kernels, is in that file from the start.

        Args:
            number: Of the part of the inputs.
            choice: How constants are stored.
            rounding: How weights are rounded.
            opened: Whether the file is opened before a last SOFTMAX and the like.
        """
        if self.prepared is None or rounding is Rounding.IN_ORDER:
            return None
        contents, rest = self._split(number, choice, rounding)
        own, basis = bool(grids_of(choice) or codes_of(choice)), self._basis
        source = self.opened if opened else self.prepared
        if not own and basis is not None:
            source = self._opened_basis if opened else basis.source
            # What is no matter of values is decided by how constants are stored, and by what else holds them.
            odd = bool(rest) if basis.is_wide else bool(rest.keys() & basis.copies.keys())
            contents = {} if odd else basis.spread(contents)
        elif basis is not None and encodings_of(choice):
            # Values on grids are of the types of the original, where several may read one bias.
            contents = {} if basis.is_wide or contents.keys() & basis.copies.keys() else contents
        if source is None or not contents:
            return None
        part = 0 if rounding is Rounding.PLAIN else number
        known = self._expanded(number, rounding)
        hybrids = {place: form for place, form in known.hybrids(choice).items() if place not in rest}
        if own and basis is not None and basis.copies:
            hybrids = {}
        switched = known.of(hybrids)
        stored: dict[int, Form] = {**rest, **(hybrids if switched else {})}

        def model() -> Model:
            made = source.model()
            before = [buffer.blob for buffer in made.buffers]
            for item in self.folds[number].rounders.passes(stored, rounding) if stored else []:
                item.run(made, Context())
            # Their tensors and operators are as kernels of integers want them, and hold floats.
            for position in switched:
                made.buffers[position].blob = before[position]
            return made

        key = (
            part,
            rounding,
            opened,
            own,
            tuple(sorted((position, str(form)) for position, form in stored.items())),
        )
        patched = self._patched.get(key, model, hybrids if switched else ())
        if not patched.takes(contents):
            return None
        patched.hold(contents)
        return patched.path

    @functools.cached_property
    def _opened_basis(self) -> Source | None:
        """What values are put into, opened as :attr:`opened` is."""
        basis = self._basis
        if basis is None or self.opened is None or basis.source is self.prepared:
            return self.opened
        return _opened(basis.source, self.folder / "opened_basis.tflite")[0]

    def _split(self, number: int, choice: Choice, rounding: Rounding) -> tuple[Contents, Choice]:
        """Returns new bytes of constants whose values alone are others, and what else was chosen."""
        rounders = self.folds[number].rounders
        fitting = None if rounders.grids is None else rounders.grids.fitting
        contents = {
            position: Content(grid, GridPayload.of(self.constants[position], grid, fitting).data)
            for position, grid in grids_of(choice).items()
        }
        coder = rounders.coder
        for position, code in codes_of(choice).items():
            if coder is not None and coder.takes(position):
                contents[position] = Content(code, functools.partial(coder.floats, position, code))
        encodings = encodings_of(choice)
        # With more effort weights are balanced first, all of those that are chosen together.
        if encodings and rounders.base is not None and rounders.base.effort is not Effort.BEST:
            known = self._expanded(number, rounding)
            missing = known.unknown(encodings)
            if missing:
                self._learn(number, missing, self.fresh(), rounding)
            contents |= known.of(known.one_file(encodings))
        return contents, {position: form for position, form in choice.items() if position not in contents}

    def _expected(self, choice: Choice) -> float | None:
        """Returns the size of a file; None where some of its constants were not looked at."""
        found = [self.growth.get((position, form.text)) for position, form in encodings_of(choice).items()]
        known = [each for each in found if each is not None]
        return self.kept_nbytes + sum(known) if len(known) == len(found) else None

    def write(self, choice: Choice, path: Path) -> None:
        """Makes a file, without running it."""
        self._write(self.fresh(), self.folds[0].rounders.passes(choice), path)

    @property
    def can_fit(self) -> bool:
        """Whether weights can be fitted to the inputs that they meet."""
        bases = [each.base for each in (self.final, *(fold.rounders for fold in self.folds))]
        return all(base is not None and base.rounder is not None for base in bases)

    @property
    def can_order(self) -> bool:
        """Whether weights can be rounded one after the other."""
        return all(each.ordered is not None for each in (self.final, *(fold.rounders for fold in self.folds)))

    @functools.cached_property
    def _unchanged(self) -> Measured:
        """The file in which every constant stays; it is what the original is, for whoever asks."""
        return self._whole({}, None, Rounding.FITTED)

    def measure(
        self, choice: Choice, cost: float | None = None, *, rounding: Rounding = Rounding.FITTED
    ) -> Measured:
        """Makes the whole file, for each part of the inputs, and runs it on that part.

        Args:
            choice: How constants are stored.
            cost: What the objective counts; None for the bytes.
            rounding: How weights are rounded; plainly, the file is the same for all parts.

        Raises:
            TimeIsUp: There was none for some of its weights.
        """
        if choice:
            return self._whole(choice, cost, rounding)
        kept = replace(self._unchanged, rounding=rounding)
        return kept if cost is None else replace(kept, cost=cost)

    def _whole(self, choice: Choice, cost: float | None, rounding: Rounding) -> Measured:
        expected = None if self._deflates(cost) else self._expected(choice)
        sizes, deflated = [], []
        paths: list[Path] = []
        opened: list[Path | None] = []
        for number, fold in enumerate(self.folds):
            path = None if expected is None else self.in_place(number, choice, rounding, opened=False)
            counts = path is not None and self.inside is not None
            opened.append(self.in_place(number, choice, rounding, opened=True) if counts else None)
            if path is not None and expected is not None:
                sizes.append(round(expected))
            elif number and rounding is Rounding.PLAIN:
                path = paths[0]
            else:
                path = self._paths[number]
                sizes.append(self._make(fold.rounders.passes(choice, rounding), path))
            paths.append(path)
            if self._deflates(cost):
                deflated.append(packed_nbytes(path, self.goal.codec))
        judged = self._judged(paths, meanwhile=lambda: self._open(paths, opened))
        inside = self._inside(opened) if all(verdict.measured for verdict in judged) else []
        found = figures_of(judged, inside, self.goal)
        metric = self.metric(paths) if self.metric is not None and found.runs else None
        nbytes, packed = max(sizes), max(deflated, default=0)
        return Measured(
            verdict=found.verdict,
            metric=metric,
            hidden=found.hidden,
            hidden_sure=found.hidden_sure,
            choice=dict(choice),
            nbytes=nbytes,
            deflated=packed,
            cost=float(packed or nbytes) if cost is None else cost,
            rounding=rounding,
            activations=self.frame.activations,
        )

    def _deflates(self, cost: float | None) -> bool:
        """Whether files are made to be compressed."""
        return self.goal.objective is Objective.DOWNLOAD and cost is None

    @property
    def inside(self) -> Source | None:
        """The original as it is opened before a last SOFTMAX and the like, where that counts."""
        original = self.beside or self
        return original.opened if counts_hidden(self.goal, original.decisions) else None

    def _open(self, paths: Sequence[Path], opened: list[Path | None]) -> None:
        """Opens files before a last SOFTMAX and the like, where that counts and nobody did it yet."""
        if self.inside is not None and None in opened:
            made = {path: opened_beside(path) for path in paths}
            opened[:] = [found or made[path] for found, path in zip(opened, paths, strict=True)]

    def _inside(self, opened: Sequence[Path | None]) -> list[Verdict | None]:
        """Judges what goes into a last SOFTMAX and the like of files, where that counts.

        Args:
            opened: The files, opened there, one for each part of the inputs; None where that cannot be.
        """
        original = self.inside
        if original is None:
            return []
        self.files += len(opened)
        files = [path for path in opened if path is not None]
        if len(files) < len(opened):
            return []
        judged = verdicts(
            [
                self._judge(number, original).begin(path, tolerance=INSIDE, first=number > 0)
                for number, path in enumerate(files)
            ]
        )
        return [verdict if verdict.measured else None for verdict in judged]

    def passes(self, choice: Choice, rounding: Rounding = Rounding.FITTED) -> list[Pass]:
        """Returns the passes that make what is to be published, but those around.

        The same again for the same choice: what was decided in order is not decided anew.
        """
        key = rounding, tuple(sorted((position, str(form)) for position, form in choice.items()))
        if key not in self._final:
            self._final[key] = self.final.passes(choice, rounding)
        return self._final[key]

    def finish(self, found: Measured) -> int:
        """Makes the file that is to be published, at :attr:`path`; returns its size.

        Raises:
            TimeIsUp: There was none for some of its weights: it would not be the one that was measured.
        """
        return self._make(self.passes(found.choice, found.rounding), self.path)

    def _make(self, passes: Sequence[Pass], path: Path) -> int:
        nbytes = self._write(self.fresh(), passes, path, self.frame.after)
        _check_fitted(passes)
        return nbytes

    def _write(self, model: Model, passes: Sequence[Pass], path: Path, after: Sequence[Pass] = ()) -> int:
        for item in passes:
            item.run(model, Context())
        packing = last_packing(run_passes(model, after)) if after else None
        return written(model, path, packing).nbytes

    def _judge(self, number: int, original: str | os.PathLike[str]) -> Judge:
        """Returns what judges by a part of the inputs, against an original."""
        if number == 0 and original is self.frame.source:
            return self.judge
        if self.beside is not None and (original is self.frame.source or original is self.beside.opened):
            return self.beside._judge(number, original)
        key = (number, os.fspath(original))
        if key not in self._judges:
            self._judges[key] = Judge(original, self.folds[number].judging, beside=self.judge)
        return self._judges[key]

    @property
    def _without(self) -> str:
        """What does without a search."""
        if self.final.pruning is not None:
            return "prune with --sparsity"
        grids = self.final.base is None
        return "round-weights with --steps" if grids else "quantize-weights with --dtype or --map"

    def _tolerance(self, *, opened: bool) -> Tolerance:
        """What a verdict on the outputs is given by; before a last SOFTMAX only the noise counts."""
        return INSIDE if opened else self.goal.tolerance

    def _judged(
        self, paths: Sequence[Path], *, alone: bool = False, meanwhile: Callable[[], None] = lambda: None
    ) -> list[Verdict]:
        """Judges a file for each part of the inputs, at the same time.

        Args:
            paths: They may be one.
            alone: Whether a constant is stored otherwise and nothing else done; it is judged against what it
                was.
            meanwhile: What is done while they are run.
        """
        self.files += len(paths)
        original: str | os.PathLike[str] = self.frame.source
        if alone and self.opened is not None:
            original = self.opened
        elif alone and self.beside is not None and self.prepared is not None:
            original = self.prepared
        tolerance = self._tolerance(opened=original is self.opened)
        pending = [
            self._judge(number, original).begin(path, tolerance=tolerance, first=number > 0)
            for number, path in enumerate(paths)
        ]
        pending[0].meanwhile(meanwhile)
        judged = verdicts(pending)
        for verdict in judged:
            if not verdict.measured and verdict.status == "unverified":
                raise UnsupportedError(
                    f"cannot search, since nothing can be measured: {'; '.join(verdict.reasons)}",
                    file=self.frame.source,
                    remedy=f"use {self._without} instead",
                )
        return judged


def _opened(source: Source | None, path: Path) -> tuple[Source | None, int]:
    """Writes a copy that is open before a last SOFTMAX and the like; None where there is none.

    Returns:
        The copy, and how many things each call decides there, at least.
    """
    decisions = 0 if source is None else open_outputs(source, path, centred=True)
    if source is None or not decisions:
        return None, decisions
    # Constants may have been added, but none moved.
    sizes, made = _sizes(source.model()), Source.open(path)
    return made if _sizes(made.model())[: len(sizes)] == sizes else None, decisions


def _check_fitted(passes: Sequence[Pass]) -> None:
    """Raises :class:`TimeIsUp` where weights are not fitted that were to be."""
    bases = [item.base for item in passes if isinstance(item, Chosen)]
    if any(base.rounder is not None and base.rounder.ran_out_of_time for base in bases):
        raise TimeIsUp


def packed_nbytes(path: Path, codec: Codec) -> int:
    """Returns the size of a file as a store compresses it."""
    return codec.sized()(path.read_bytes())


def _sizes(model: Model) -> list[int]:
    return [buffer.nbytes for buffer in model.buffers]
