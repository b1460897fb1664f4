"""What must hold for any bytes: a model, or one of two errors; soon, and in little memory.

One call of :func:`exercise` does with a file what the commands do, short of running it: read, check, inspect,
show, rewrite by each pass, write, read back, compare.
"""

from __future__ import annotations

import json
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from hostile.ranges import integers
from tfl_rewrite.cli.commands.read import comparison_lines, inspection_lines
from tfl_rewrite.cli.render import report_lines, safe
from tfl_rewrite.editing.base import Pass, run_passes
from tfl_rewrite.errors import FormatError, UnsupportedError, UsageError
from tfl_rewrite.files.container import Container
from tfl_rewrite.files.source import Source, layout
from tfl_rewrite.judge.settings import Judging
from tfl_rewrite.model.blob import MemorySink
from tfl_rewrite.model.ir import Model
from tfl_rewrite.passes.compact import Compact
from tfl_rewrite.passes.dedup import Dedup
from tfl_rewrite.passes.dequantize import Dequantize
from tfl_rewrite.passes.equalize import Equalize
from tfl_rewrite.passes.fold_batch_norms import FoldBatchNorms
from tfl_rewrite.passes.fuse import Fuse
from tfl_rewrite.passes.metadata import SetMetadata
from tfl_rewrite.passes.prune import Prune
from tfl_rewrite.passes.quantize_weights import QuantizeWeights
from tfl_rewrite.passes.remove_dead import RemoveDead
from tfl_rewrite.passes.remove_noops import RemoveNoops
from tfl_rewrite.passes.rename import Rename
from tfl_rewrite.passes.repair import Repair
from tfl_rewrite.passes.retarget import FoldShapes, Retarget
from tfl_rewrite.passes.round_weights import RoundWeights
from tfl_rewrite.passes.signatures import Signatures
from tfl_rewrite.pipeline.chain import ChainOptions, chain
from tfl_rewrite.pipeline.report import Report
from tfl_rewrite.reading.check import examine_model
from tfl_rewrite.reading.diff import diff
from tfl_rewrite.reading.inspect import inspect_model
from tfl_rewrite.shards.split import SplitOptions, split
from tfl_rewrite.work import Work

REFUSED = (FormatError, UnsupportedError)
SECONDS = 10.0
"""What a file under 1 MB may take, of processor time: a machine with much to do breaks no promise."""
_MEMORY_FACTOR = 32
_MEMORY_BASE = 64 << 20
_REPORTED_NBYTES = 60_000


def allowed_memory(nbytes: int) -> int:
    """Bytes that work on a file of ``nbytes`` may take: a small multiple, and what Python itself needs."""
    return _MEMORY_FACTOR * nbytes + _MEMORY_BASE


class Breach(Exception):
    """The contract does not hold."""


Order = Sequence[Pass] | Callable[[Model], Sequence[Pass]]
"""Passes, or what makes them for a model."""


MICRO = Retarget(target="tflm", allow_missing=True)


def renamed(model: Model) -> Sequence[Pass]:
    """Returns a pass that gives the first tensor another name, where there is one."""
    return [Rename(tensor=("#0=renamed",))] if model.subgraphs[0].tensors else []


def signed(model: Model) -> Sequence[Pass]:
    """Returns passes that remove a signature, keep the subgraph of another, and add one."""
    keys = [item.key for item in model.signatures if item.key]
    extract = keys[-1] if len(set(keys)) > 1 else None
    return Signatures(remove=tuple(keys[:1]), extract=extract, add=("added",)).parts()


def described(model: Model) -> Sequence[Pass]:
    """Returns a pass that describes a model, and what normalizes its input, where it has one."""
    number = "1" if model.subgraphs[0].inputs else None
    return [SetMetadata(model_name="made", mean=number, std=number, reduced_precision="fp16")]


def _orders() -> list[tuple[str, Order]]:
    weights = QuantizeWeights(min_elements=16)
    return [
        ("lossless", [*[RemoveDead()], Dedup(), *[Compact()]]),
        ("strip", [RemoveDead(strip=["names", "min-max", "metadata:min_runtime_version"])]),
        ("int8", [weights]),
        ("expanded", [QuantizeWeights(scheme="dequantize", granularity="tensor", min_elements=1)]),
        ("packed", [Equalize(), QuantizeWeights(dtype="int4", granularity="block:32", min_elements=1)]),
        ("int2", [QuantizeWeights(dtype="int2", min_elements=1)]),
        ("int6", [QuantizeWeights(dtype="int6", min_elements=1)]),
        ("half", [QuantizeWeights(dtype="float16", min_elements=1)]),
        ("floats", [Dequantize()]),
        ("repaired", [Repair()]),
        ("rounded", [RoundWeights(steps=16, min_elements=16)]),
        ("integers", integers),
        ("simplified", [RemoveNoops(), Fuse(), FoldBatchNorms(), Dedup(), RemoveNoops(), RemoveDead()]),
        ("pruned", [Prune(min_elements=16), QuantizeWeights(dtype="int4", min_elements=1)]),
        ("sparse", [Prune(min_elements=16, sparsity=0.9, encode="sparse")]),
        ("older", [Retarget(target="2.14")]),
        # But for the step that computes constants: that starts an interpreter.
        ("micro", [each for each in MICRO.parts() if not isinstance(each, FoldShapes)]),
        ("renamed", renamed),
        ("signed", signed),
        ("described", described),
        ("all", [*[RemoveDead()], Dedup(), RoundWeights(), weights, *[Compact()]]),
    ]


ORDERS = _orders()


def exercise(data: bytes, *, orders: int | None = None, folder: Path | None = None) -> str:
    """Does everything with a file, and says how far it got.

    Args:
        data: Any bytes.
        orders: Which orders of passes to run, as bits; all by default.
        folder: For files; without one, what needs files is left out.

    Returns:
        ``refused: CLASS``, ``flawed`` (read, with problems), or ``sound``.

    Raises:
        Breach: What was written is not what it should be.
        Exception: Anything but the two refusals is a breach, too.
    """
    try:
        model = Source(Container.of_bytes(data)).model()
    except REFUSED as error:
        _printable(safe(str(error), limit=4000))
        return f"refused: {type(error).__name__}"
    problems, notes = examine_model(model)
    _lines([safe(line) for line in [*problems, *notes]])
    found = inspect_model(model, "<bytes>")
    _lines(inspection_lines(found, verbose=1))
    json.dumps(found.to_dict(), allow_nan=False).encode("ascii")
    if _written(data, ()) != data:
        raise Breach("an unchanged model is not written byte for byte")
    for number, (name, passes) in enumerate(ORDERS):
        if orders is None or orders >> number & 1:
            _rewritten(data, name, passes, sound=not problems, folder=folder)
    if folder is not None:
        _composed(data, folder, sound=not problems)
    return "flawed" if problems else "sound"


def _composed(data: bytes, folder: Path, *, sound: bool) -> None:
    """Puts a stage behind a model, and cuts it into two parts."""
    unjudged = Judging(mode="off")
    with tempfile.TemporaryDirectory(dir=folder) as name:
        source, whole = Path(name) / "alone.tflite", Path(name) / "whole.tflite"
        source.write_bytes(data)
        with suppress(*REFUSED, UsageError):
            chain([source], whole, ChainOptions(append=("argmax",)), judging=unjudged)
            _check(whole.read_bytes(), "chain", sound=sound)
        with suppress(*REFUSED, UsageError):
            for part in split(source, name, SplitOptions(parts=2), judging=unjudged).files:
                _check((Path(name) / part.name).read_bytes(), "split", sound=sound)


def _check(made: bytes, name: str, *, sound: bool) -> None:
    """Sees that what was made can be read, and is sound where the original is."""
    try:
        again = Source(Container.of_bytes(made)).model()
    except REFUSED as error:
        raise Breach(f"what {name} wrote cannot be read: {error}") from error
    problems, _ = examine_model(again)
    if sound and problems:
        raise Breach(f"{name} made a flawed model of a sound one: {problems[0]}")


def _rewritten(data: bytes, name: str, passes: Order, *, sound: bool, folder: Path | None) -> None:
    # What is asked of a model that it does not fit, such as a signature of a tensor named "\0", is no damage.
    refused = (*REFUSED, UsageError) if callable(passes) else REFUSED
    try:
        made = _written(data, passes)
    except refused:
        return
    _check(made, name, sound=sound)
    if folder is not None:
        one, two = folder / "before.tflite", folder / "after.tflite"
        one.write_bytes(data)
        two.write_bytes(made)
        compared = diff(one, two)
        _lines(comparison_lines(compared, verbose=1))
        json.dumps(compared.to_dict(), allow_nan=False).encode("ascii")


def _written(data: bytes, passes: Order) -> bytes:
    """Loads, runs passes, and returns the file that they make."""
    model = Source(Container.of_bytes(data)).model()
    results = run_passes(model, passes(model) if callable(passes) else passes)
    packing = next((item.packing for item in reversed(results) if item.packing is not None), None)
    made = layout(model, packing=packing)
    sink = MemorySink(made.nbytes)
    made.write_to(sink, Work(wanted_threads=1))
    # The report on rounding deflates each constant, which takes long and reads nothing of the structure.
    if results and len(data) <= _REPORTED_NBYTES:
        report = Report(
            source="<bytes>",
            target="<made>",
            outcome="rewritten",
            nbytes_before=len(data),
            nbytes_after=made.nbytes,
            dry_run=False,
            results=tuple(results),
        )
        _lines(report_lines(report, verbose=1))
        json.dumps(report.to_dict(), allow_nan=False).encode("ascii")
    return bytes(sink.data)


def _lines(lines: Sequence[str]) -> None:
    for line in lines:
        _printable(line)


def _printable(line: str) -> None:
    if not line.isprintable():
        raise Breach(f"shows characters that a terminal obeys: {line!r}")


@contextmanager
def bounded(data: bytes, *, seconds: float = SECONDS) -> Iterator[None]:
    """Runs the body under the limits of the contract: processor time, and peak memory where Linux tells it.

    Args:
        data: The file that the body works on.
        seconds: For a file under 1 MB; larger ones have more in proportion.

    Raises:
        Breach: It took too much.
    """
    limit = seconds * max(1.0, len(data) / 1e6)
    with _watched(limit):
        before = _memory(reset=True)
        yield
        after = _memory(reset=False)
    if before is not None and after is not None:
        taken = after[1] - before[0]
        if taken > allowed_memory(len(data)):
            raise Breach(f"takes {taken} bytes of memory for a file of {len(data)} bytes")


@contextmanager
def _watched(limit: float) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "ITIMER_PROF"):
        yield
        return

    def late(_number: int, _frame: object) -> None:
        raise Breach(f"takes more than {limit:.0f} s of processor time")

    previous: Callable[..., object] | int | None = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, limit)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, previous)  # type: ignore[arg-type]


def _memory(*, reset: bool) -> tuple[int, int] | None:
    """Returns what the process holds and its peak since the last reset, in bytes; None if nobody tells."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        text = Path("/proc/self/status").read_text()
    except OSError:
        return None
    rows = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    return int(rows["VmRSS"].split()[0]) << 10, int(rows["VmHWM"].split()[0]) << 10
