"""Cuts a model into parts that run, and writes them with their manifest."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from tfl_rewrite.editing.metadata import MIN_RUNTIME, positions_moved
from tfl_rewrite.editing.names import AWAY, ends_named
from tfl_rewrite.errors import FormatError, UnsupportedError, UsageError, VerificationError
from tfl_rewrite.files.atomic import PLAIN, access_of
from tfl_rewrite.files.claims import Claim, check_claims, claims_of
from tfl_rewrite.files.container import Container
from tfl_rewrite.files.source import ModelLike, Source, save
from tfl_rewrite.interpreter.scratch import Scratch
from tfl_rewrite.judge.routes import OUTSIDE, Feed, wired
from tfl_rewrite.judge.settings import Judging
from tfl_rewrite.model import dtypes
from tfl_rewrite.model.invariants import broken
from tfl_rewrite.model.ir import Model, SubGraph, Tensor
from tfl_rewrite.options.json_data import JsonData
from tfl_rewrite.options.option import NBYTES, check_options, naming, option
from tfl_rewrite.pipeline.report import unverified, with_newer
from tfl_rewrite.pipeline.wiring import ends_of, find
from tfl_rewrite.reading.metadata import on_disk, with_media
from tfl_rewrite.shards.calls import folder_for, not_its_own
from tfl_rewrite.shards.graphs import EndRow, GraphManifest, GraphPart
from tfl_rewrite.shards.manifest import MAX_PART, sha256_of
from tfl_rewrite.shards.partition import Partition, Stretch
from tfl_rewrite.shards.parts import is_in_the_way, is_present, publish
from tfl_rewrite.work import Progress

if TYPE_CHECKING:
    from tfl_rewrite.judge.verdict import Verdict

CHAIN_NAME = "chain.json"
MOST_PARTS = 256
_LEAST_SIZE = 1 << 10
_UNSOUND = "'tfl-rewrite doctor' lists all that is wrong with it"
_TRIES = 4
"""Times that parts are cut anew because one came out larger than was estimated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitOptions:
    """How :func:`tfl_rewrite.split` cuts a model.

    Attributes:
        at: Tensors behind whose makers it is cut: their names, or ``#NUMBER``.
        parts: How many parts, of about the same size.
        max_size: Of a part: bytes, or text such as ``5MB``; as few parts as that takes.
        manifest: File name of the manifest.
        dry_run: Do everything but the write.
        force: Whether a manifest of another model may be replaced.

    Raises:
        UsageError: Not just one of the three is given, or a value does not fit.

    Example:
        >>> tfl_rewrite.SplitOptions(max_size="5MB").max_size
        5000000
    """

    at: tuple[str, ...] = option(
        (), "cut behind what makes this tensor (its name, or #NUMBER); repeatable", metavar="TENSOR"
    )
    parts: int | None = option(
        None, "cut into so many parts, of about the same size", metavar="N", bounds=(2, MOST_PARTS)
    )
    max_size: int | None = option(
        None,
        "cut into as few parts as it takes for none to be larger: bytes, or such as 5MB",
        kind=NBYTES,
        metavar="SIZE",
        bounds=(_LEAST_SIZE, MAX_PART),
    )
    manifest: str = option(CHAIN_NAME, "file name of the manifest", metavar="NAME")
    dry_run: bool = option(False, "do everything but the write")
    force: bool = option(False, "replace a manifest of another model, and an older report")

    def __post_init__(self) -> None:
        """Refuses what does not fit."""
        check_options(self)
        if sum((bool(self.at), self.parts is not None, self.max_size is not None)) != 1:
            raise UsageError(
                "it is not clear where to cut", remedy="give one of --at, --parts and --max-size"
            )
        if Path(self.manifest).name != self.manifest or self.manifest[:1] in (".", ""):
            raise UsageError(f"{self.manifest!r} is not a plain file name", remedy="such as chain-v2.json")

    @property
    def entry(self) -> str:
        """Name of the file to start from."""
        return self.manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitFile(JsonData):
    """One part.

    Attributes:
        operators: How many it has.
        taken: Bytes that it takes from parts before it; free sizes count as they are declared.
        status: ``new``, or ``kept`` (it was there, byte for byte).
    """

    name: str
    nbytes: int
    operators: int
    taken: int
    status: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitReport(JsonData):
    """What ``split`` did.

    Attributes:
        entry: The manifest.
        crossing: Bytes that cross each cut.
        verdict: Of the whole and its parts, one after the other; None where nothing was run.
        unverified: Why nothing could be run, or None.
    """

    schema: ClassVar[int] = 1
    source: str
    target: str
    entry: str
    dry_run: bool = False
    outcome: str = "done"
    nbytes: int
    sha256: str
    files: tuple[SplitFile, ...]
    crossing: tuple[int, ...]
    verdict: Verdict | None = None
    unverified: str | None = None
    notes: tuple[str, ...] = ()


class SplitFailed(VerificationError):
    """The parts compute something else than the whole; ``report`` has all figures.

    Example:
        >>> from tfl_rewrite.shards.split import SplitFailed
        >>> try:
        ...     report = tfl_rewrite.split("model.tflite", "parts", tfl_rewrite.SplitOptions(parts=2))
        ... except SplitFailed as error:
        ...     report = error.report
    """

    def __init__(self, what: str, report: SplitReport, remedy: str | None = None) -> None:
        super().__init__(what, file=report.source, remedy=remedy)
        self.report = report
        if report.verdict is None or report.verdict.status == "unverified":
            self.exit_code = UnsupportedError.exit_code


def split(
    source: ModelLike,
    folder: str | os.PathLike[str],
    options: SplitOptions,
    *,
    judging: Judging | None = None,
    progress: Progress | None = None,
) -> SplitReport:
    """Writes a model as parts that run one after the other; :class:`tfl_rewrite.Chain` runs them.

    Args:
        source: A path, bytes, an open file or a model; not changed.
        folder: Where the files go; made if it is missing. Nothing else in it is touched.
        options: Where to cut.
        judging: How files are run. The parts must equal the whole to the bit.
        progress: Called with what is going on.

    Raises:
        SplitFailed: The parts compute something else; nothing is written.
        UsageError: A tensor is unknown, or a file exists there.
        UnsupportedError: The model cannot be cut there, with the reason.
        FileAccessError, FormatError: As for :func:`tfl_rewrite.load`.

    Example:
        >>> report = tfl_rewrite.split("model.tflite", "parts", tfl_rewrite.SplitOptions(parts=3))
        >>> len(report.files), report.verdict.passed
        (3, True)
    """
    settings = judging or Judging()
    with on_disk(source) as file, folder_for(folder, dry_run=options.dry_run) as place, Scratch() as scratch:
        entry = place / options.entry
        not_its_own(entry, [Path(file)])
        if place.is_dir():
            reads = claims_of(file, settings.inputs, settings.holdout)
            check_claims(reads, [Claim("OUTDIR", os.fspath(entry), mine=True)], force=options.force)
        origin = Source.of(file)
        try:
            work = _Work(origin, options, settings, scratch.path, progress)
            return work.carried_out(place, os.fspath(folder))
        except (UnsupportedError, UsageError) as error:
            error.file = error.file or origin.path
            raise


class _Work:
    """One split, from the model to the folder."""

    def __init__(
        self,
        source: Source,
        options: SplitOptions,
        settings: Judging,
        scratch: Path,
        progress: Progress | None,
    ) -> None:
        if source.refusals:
            raise source.refusals[0]
        self.source, self.options, self.settings = source, options, settings
        self.scratch, self.progress = scratch, progress
        self.model = source.model()
        if faults := broken(self.model):
            raise FormatError(faults[0].what, file=source.path, where=faults[0].where, remedy=_UNSOUND)
        _check_whole(self.model)
        self.partition = Partition(self.model)
        self.cuts: list[int] = []
        self.paths: list[Path] = []
        self.feeds: list[list[Feed]] = []
        self.outputs: list[Feed] = []

    def carried_out(self, place: Path, folder: str) -> SplitReport:
        """Does all of it."""
        manifest = self._made()
        text = manifest.dump()
        entry = place / self.options.entry
        if (
            entry.exists()
            and not self.options.force
            and not is_present(entry, len(text), lambda: iter([text]))
        ):
            raise is_in_the_way(entry)
        taken = [sum(map(self._nbytes, part.inputs)) for part in self.stretches]
        files = [
            SplitFile(name=part.name, nbytes=part.nbytes, operators=part.operators, taken=count, status="new")
            for part, count in zip(manifest.parts, taken, strict=True)
        ]
        report = SplitReport(
            source=self.source.path,
            target=folder,
            entry=os.fspath(Path(folder) / self.options.entry),
            dry_run=self.options.dry_run,
            nbytes=manifest.nbytes,
            sha256=manifest.sha256,
            files=tuple(files),
            crossing=tuple(map(self.partition.crossing, self.cuts)),
            notes=self._notes(),
        )
        report = self._judged(report)
        self.source.container.ensure_unchanged()
        return report if self.options.dry_run else self._published(place, manifest, text, report)

    def _nbytes(self, tensor: Tensor) -> int:
        given = any(tensor is item for item in self.model.subgraphs[0].inputs)
        return 0 if given else self.partition.nbytes_of(tensor)

    def _notes(self) -> tuple[str, ...]:
        lost = [entry.name or "(unnamed)" for entry in self.model.metadata if entry.name != MIN_RUNTIME]
        lost += ["the ZIP behind it"] if self.source.tail is not None else []
        return (f"not in the parts: {', '.join(lost)}",) if lost else ()

    # -- the parts -----------------------------------------------------------------------------------------

    def _made(self) -> GraphManifest:
        """Cuts the model and writes its parts aside."""
        options, most = self.options, self.options.max_size
        if most is None:
            self._cut(self._tensor_cuts() if options.at else self.partition.of_count(options.parts or 0))
            return self._manifest()
        limit = most
        for _ in range(_TRIES):
            cuts = self.partition.of_size(limit)
            if not cuts:
                raise UnsupportedError(
                    f"the model takes {self.source.nbytes:,} bytes, which is one part",
                    remedy="ask for smaller parts",
                )
            self._cut(cuts)
            largest = max(path.stat().st_size for path in self.paths)
            if largest <= most:
                return self._manifest()
            limit = int(limit * 0.98 * most / largest)
        raise UnsupportedError(f"a part takes {largest:,} bytes", remedy="ask for larger parts")

    def _tensor_cuts(self) -> list[int]:
        main = self.model.subgraphs[0]
        made = {id(item) for operator in main.operators for item in operator.outputs}
        whole = [item for item in main.tensors if id(item) in made]
        asked = SubGraph(main.tensors, [], whole, [])
        ends = ends_of(Model([], [asked], []), [(0, 0)] * len(whole), outputs=True)
        found = []
        for name in self.options.at:
            with naming(f"--at {name}:"):
                found.append(whole[find(ends, name, "tensor")])
        return self.partition.at(found)

    def _cut(self, cuts: Sequence[int]) -> None:
        self.cuts = list(cuts)
        self.stretches = self.partition.stretches(cuts)
        main = self.model.subgraphs[0]
        sources: dict[int, Feed] = {id(item): (OUTSIDE, at) for at, item in enumerate(main.inputs)}
        self.feeds, self.paths = [], []
        for number, part in enumerate(self.stretches):
            self.feeds.append([sources[id(item)] for item in part.inputs])
            for at, item in enumerate(part.outputs):
                sources.setdefault(id(item), (number, at))
            path = self.scratch / f"part{number + 1}.tflite"
            save(self._part_model(part), path, force=True)
            self.paths.append(path)
        self.outputs = [sources[id(item)] for item in main.outputs]

    def _part_model(self, part: Stretch) -> Model:
        """A model of some operators of the main subgraph, and of what they need."""
        model, main = self.source.model(), self.model.subgraphs[0]
        own = model.subgraphs[0]
        places = {id(tensor): number for number, tensor in enumerate(main.tensors)}
        own.operators = [own.operators[number] for number in part.operators]
        own.inputs = [own.tensors[places[id(item)]] for item in part.inputs]
        own.outputs = [own.tensors[places[id(item)]] for item in part.outputs]
        for mine, item in zip(own.inputs, part.inputs, strict=True):
            self._state_shape(mine, item)
        used = set(map(id, [*own.inputs, *own.outputs]))
        for operator in own.operators:
            used.update(map(id, [*operator.inputs, *operator.outputs, *operator.intermediates]))
        for item in own.tensors:
            details = item.quantization
            if id(item) in used and details is not None:
                used |= {id(details.scales_tensor), id(details.zero_points_tensor)}
        own.tensors = [item for item in own.tensors if id(item) in used]
        own.rest = own.rest.replace(debug_metadata_index=None)
        model.subgraphs = [own]
        for subgraph in model.subgraphs:
            for inner in (item for operator in subgraph.operators for item in operator.subgraphs()):
                if not any(inner is item for item in model.subgraphs):
                    model.subgraphs.append(inner)
        _strip(model)
        return model

    def _state_shape(self, mine: Tensor, item: Tensor) -> None:
        """Gives an input, whose shape runtimes read, the one that it is going to have."""
        if any(item is given for given in self.model.subgraphs[0].inputs):
            return
        known = self.partition.shapes[item]
        if known is None:
            return
        free = any(size is None for size in known)
        # It is allocated before it is given another size.
        declared = (
            mine.shape if mine.shape is not None and len(mine.shape) == len(known) else (1,) * len(known)
        )
        sizes = zip(known, declared, strict=True)
        mine.shape = tuple(max(1, other) if size is None else size for size, other in sizes)
        mine.signature = tuple(-1 if size is None else size for size in known) if free else None

    def _manifest(self) -> GraphManifest:
        main = self.model.subgraphs[0]
        parts: list[GraphPart] = []
        for path, part, feeds in zip(self.paths, self.stretches, self.feeds, strict=True):
            container = Container.open(path)
            sha256 = sha256_of(container.pieces())
            parts.append(
                GraphPart(
                    name=f"{len(parts) + 1}-{sha256[:16]}.tflite",
                    nbytes=container.nbytes,
                    sha256=sha256,
                    operators=len(part.operators),
                    inputs=tuple(self._row(*pair) for pair in zip(part.inputs, feeds, strict=True)),
                    outputs=tuple(map(self._row, part.outputs)),
                )
            )
        name = Path(self.source.path).name.encode("utf-8", "replace").decode("utf-8")
        return GraphManifest(
            name=name[:255],
            nbytes=self.source.nbytes,
            sha256=sha256_of(self.source.container.pieces()),
            inputs=_apart([self._row(item) for item in main.inputs]),
            outputs=_apart([self._row(*pair) for pair in zip(main.outputs, self.outputs, strict=True)]),
            parts=tuple(parts),
        )

    def _row(self, tensor: Tensor, feed: Feed | None = None) -> EndRow:
        kind = dtypes.BY_VALUE.get(tensor.dtype)
        declared = tensor.signature or tensor.shape or ()
        given = any(tensor is item for item in self.model.subgraphs[0].inputs)
        known = None if given else self.partition.shapes[tensor]
        shape = declared if known is None else tuple(-1 if size is None else size for size in known)
        name = tensor.name.encode("utf-8", "replace").decode("utf-8")
        dtype = "string" if kind is None or not kind.numpy else _numpy_name(kind.name)
        return EndRow(name, dtype, tuple(shape), feed)

    # -- the verdict, and the folder -----------------------------------------------------------------------

    def _judged(self, report: SplitReport) -> SplitReport:
        if self.settings.mode == "off":
            return replace(report, unverified="not run, as asked")
        from tfl_rewrite.judge.routes import verify_route

        parts = list(zip(self.paths, self.feeds, strict=True))
        route = wired(parts, self.outputs, ends_named(self.model))
        settings = with_media(self.settings, self.source).exactly
        say = None if self.progress is None else self._say
        verdict = verify_route(self.source, route, settings, sources=self.paths, original=True, progress=say)
        verdict = with_newer(verdict)
        report = replace(report, verdict=verdict)
        if verdict.status == "fail":
            failed = replace(report, outcome="failed")
            why = "; ".join(verdict.reasons)
            raise SplitFailed(f"the parts differ from the whole, nothing was written: {why}", failed)
        if verdict.status == "unverified":
            return unverified(report, "; ".join(verdict.reasons), settings, SplitFailed)
        return report

    def _say(self, text: str) -> None:
        if self.progress is not None:
            self.progress(text, 0, 0)

    def _published(
        self, place: Path, manifest: GraphManifest, text: bytes, report: SplitReport
    ) -> SplitReport:
        """Gives the parts their names, and the manifest its last."""
        access = access_of(self.source.path) & PLAIN
        created: list[Path] = []
        files = []
        try:
            for path, part, row in zip(self.paths, manifest.parts, report.files, strict=True):
                target, container = place / part.name, Container.open(path)
                there = target.exists()
                written = publish(
                    target, part.nbytes, _pieces(container), force=self.options.force, access=access
                )
                created += [target] if written and not there else []
                files.append(replace(row, status="new" if written else "kept"))
            publish(
                place / self.options.entry,
                len(text),
                lambda: iter([text]),
                force=self.options.force,
                access=access,
            )
        except BaseException:
            # Parts without a manifest are of use to nobody.
            for target in created:
                target.unlink(missing_ok=True)
            raise
        return replace(report, files=tuple(files))


def _check_whole(model: Model) -> None:
    """Refuses a model whose parts could not stand for it."""
    if model.external_buffers or model.external_groups:
        raise UnsupportedError(
            "its weights lie in files beside it", remedy="'tfl-rewrite join' makes one file of it"
        )
    positions_moved(model)
    main = model.subgraphs[0]
    others = [item.key or "" for item in model.signatures if item.subgraph is not main]
    if others:
        raise UnsupportedError(
            f"signature {others[0]!r} runs another subgraph than the main one, of which parts are made",
            remedy="'tfl-rewrite signatures --extract KEY' makes a file of one signature",
        )
    made = {id(item) for operator in main.operators for item in operator.outputs}
    states = [item.name for item in main.outputs if item.is_variable and id(item) in made]
    if states:
        raise UnsupportedError(
            f"the output {states[0]!r} is a variable that an operator writes, which no part gives",
            remedy="remove it first (remove-dead --outputs)",
        )
    for key, (inputs, _) in ends_named(model).items():
        given = {place for _, place in inputs}
        left = [tensor.name for place, tensor in enumerate(main.inputs) if place not in given]
        if left:
            raise UnsupportedError(
                f"signature {key!r} leaves out the input {left[0]!r}, which parts take", remedy=AWAY
            )
    if id(main) in model.called:
        raise UnsupportedError("an operator runs the main subgraph, of which parts are made")


def _strip(model: Model) -> None:
    """Removes what the subgraphs of a part do not need."""
    model.origin = None
    model.signatures = []
    model.metadata = [item for item in model.metadata if item.name == MIN_RUNTIME]
    model.metadata_buffers = []
    codes = {id(operator.code) for _, operator in model.operators()}
    model.operator_codes = [item for item in model.operator_codes if id(item) in codes]
    for _, operator in model.operators():
        operator.rest = operator.rest.replace(debug_metadata_index=None)
    used = {id(tensor.buffer) for _, tensor in model.tensors()} | {id(item.buffer) for item in model.metadata}
    model.buffers = [*model.buffers[:1], *(item for item in model.buffers[1:] if id(item) in used)]


def _apart(rows: Sequence[EndRow]) -> tuple[EndRow, ...]:
    """The rows, each with a name of its own."""
    made: list[EndRow] = []
    taken: set[str] = set()
    for row in rows:
        name, number = row.name or f"{len(made)}", 1
        while name in taken:
            number += 1
            name = f"{row.name}_{number}"
        taken.add(name)
        made.append(replace(row, name=name))
    return tuple(made)


def _numpy_name(kind: str) -> str:
    return {"BOOL": "bool"}.get(kind, kind.lower())


def _pieces(container: Container) -> Callable[[], Iterator[bytes | memoryview]]:
    return lambda: iter(container.pieces())
