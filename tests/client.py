"""A program that uses every public name, held by a strict type checker; it is read, not run."""

from __future__ import annotations

import io
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

import tfl_rewrite as tfl
from tfl_rewrite.editing import Context, Edit, Editor, Effect, Pass, PassResult, Shapes, Skip, option
from tfl_rewrite.errors import InvariantError
from tfl_rewrite.model import Graph, Operator, SubGraph, Tensor
from tfl_rewrite.passes import (
    Compact,
    Dedup,
    Dequantize,
    DropChannels,
    Equalize,
    FoldBatchNorms,
    FoldConstants,
    Fuse,
    Prune,
    Quantize,
    QuantizeWeights,
    RemoveDead,
    RemoveNoops,
    Rename,
    Repair,
    Retarget,
    RoundWeights,
    SetMetadata,
    Signatures,
    Simplify,
    passes_of,
    preset,
)
from tfl_rewrite.search.report import ShrinkFailed
from tfl_rewrite.shards.settings import ShardFailed
from tfl_rewrite.shards.split import SplitFailed


@dataclass(frozen=True, kw_only=True, slots=True)
class Halve(Pass):
    """Halves a constant."""

    name: ClassVar[str] = "halve"
    effect: ClassVar[Effect] = Effect.TOLERANCE

    tensor: str = option("", "the constant to halve", metavar="NAME")

    def run(self, model: tfl.Model, context: Context) -> PassResult:
        """Rewrites in place."""
        editor, graph = Editor(model), Graph.of(model)
        skips: list[Skip] = []
        subgraph: SubGraph = model.subgraphs[0]
        constant: Tensor = subgraph.tensor(self.tensor)
        readers: list[Operator] = [use.operator for use in graph.uses_of(constant)]
        if not readers:
            skips.append(Skip(constant.name, "nothing reads it", "unread"))
            return PassResult(self.name, (), tuple(skips))
        constant.set_values(constant.values / np.float32(2))
        editor.finish()
        return PassResult(self.name, (Edit(constant.name, "halved"),))


def passes() -> list[Pass]:
    """One of each."""
    made: list[Pass] = [
        Repair(),
        RemoveDead(outputs=("logits",)),
        Dedup(pure_custom=("Mine",)),
        Dequantize(),
        RoundWeights(steps=64, effort="fast", granularity="tensor"),
        Equalize(),
        Fuse(),
        RemoveNoops(),
        FoldConstants(weights=True),
        Prune(sparsity=0.7, block="1x4", encode="sparse"),
        Rename(input=("image=picture",)),
        Signatures(add=("serving_default",)),
        SetMetadata(labels="labels.txt"),
        Retarget(target="tflm"),
        FoldBatchNorms(before=False),
        DropChannels(),
        Simplify(fold=False, grow=False),
        Quantize(activations="int16", float_islands="refuse", ranges="ranges.json", effort="fast"),
        Quantize(target="2.14"),
        QuantizeWeights(dtype="int8", exclude=("^logits/",), min_runtime="2.14", effort="best"),
        Compact(align=4096),
        Halve(tensor="weights"),
    ]
    return made + passes_of(["dedup"]) + preset("lossless")


def rewrites(source: Path, target: Path) -> tfl.Report:
    """From a file to a file, and in memory."""
    tolerance = tfl.Tolerance(min_snr=30)
    judging = tfl.Judging(inputs=("inputs.npz",), tolerance=tolerance)
    try:
        report: tfl.Report = tfl.rewrite(source, target, passes(), judging=judging)
    except tfl.RewriteFailed as failed:
        return failed.report
    verdict: tfl.Verdict | None = report.verdict
    print(report.nbytes_after, verdict.headline if verdict is not None else "not run")
    made: tfl.Model | None = tfl.rewrite(source.read_bytes(), passes=[Dedup()]).model
    if made is not None:
        size: int = tfl.save(made, target, force=True)
        print(size, tfl.verify(io.BytesIO(made.to_bytes()), made).passed)
    model = tfl.load(source)
    known: tuple[int | None, ...] | None = Shapes.of(model)[model.subgraphs[0].outputs[0]]
    print(known)
    results: list[PassResult] = tfl.run(model, passes())
    print([result.modified for result in results])
    return report


def searches(source: Path, target: Path) -> int:
    """The smallest file, and the fewest values."""
    rounded: tfl.Report = tfl.rewrite(source, passes=[RoundWeights(min_snr=30)])
    print(rounded.deflated)
    try:
        made = tfl.shrink(source, target, tfl.Goal(min_snr=30, objective="download", effort="fast"))
    except ShrinkFailed as failed:
        made = failed.report
    return made.nbytes_before


def recorded(source: Path) -> Quantize:
    """What a loop of one's own meets."""
    with tfl.record(source, judging=tfl.Judging(timeout=20)) as interpreter:
        interpreter.allocate_tensors()
        (taken,), (given,) = interpreter.get_input_details(), interpreter.get_output_details()
        interpreter.resize_tensor_input(taken["index"], [2, 8, 8, 1])
        interpreter.set_tensor(taken["index"], np.zeros((2, 8, 8, 1), np.float32))
        interpreter.invoke()
        print(interpreter.get_tensor(given["index"]).shape)
        runner = interpreter.get_signature_runner("serving_default")
        print({name: array.shape for name, array in runner(image=np.zeros((1, 8, 8, 1), np.float32)).items()})
    interpreter.ranges.save("ranges.json", force=True)
    return Quantize(ranges=interpreter.ranges)


def shards(source: Path, folder: Path, target: Path) -> bytes:
    """Apart and together."""
    try:
        report = tfl.shard(source, folder, tfl.ShardOptions(compress="gzip"))
    except ShardFailed as failed:
        report = failed.report
    tfl.join(report.entry, target, tfl.JoinOptions(force=True))
    options = tfl.ShardOptions(progressive=True, manifest="first.json")
    first = tfl.shard(source, folder, options, judging=tfl.Judging(mode="off"))
    with tfl.open_sharded(first.entry, base=True) as base:
        print(first.base is not None and first.base.nbytes == len(base.content))
    with tfl.open_sharded(report.entry) as sharded:
        sharded.interpreter(num_threads=4).allocate_tensors()
        return bytes(sharded.content)


def outside(source: Path, folder: Path, target: Path) -> list[str]:
    """Other shapes, two models as one, one in parts."""
    shaped: tfl.Report = tfl.reshape(source, target, tfl.Reshaping(batch=4))
    joined: tfl.Report = tfl.chain(
        [source, target], folder / "both.tflite", tfl.ChainOptions(append=("softmax",))
    )
    print(shaped.outcome, joined.outcome)
    try:
        report = tfl.split(source, folder, tfl.SplitOptions(parts=2))
    except SplitFailed as failed:
        report = failed.report
    with tfl.Chain.open(report.entry) as model:
        return list(model.run([np.zeros((1, 8, 8, 1), np.float32)]))


def reads(source: Path, other: Path) -> list[str]:
    """What is in files."""
    inspection = tfl.inspect(source)
    diagnosis = tfl.diagnose(source, min_runtime="2.14")
    comparison = tfl.diff(source, other)
    blamed = tfl.blame(source, other)
    print(inspection.nbytes, diagnosis.repairable, comparison.identical, blamed.marked())
    with open(source, "rb") as file:
        return tfl.check(file)


def main() -> int:
    """Tells errors apart."""
    print(tfl.__version__)
    try:
        rewrites(Path("in.tflite"), Path("out.tflite"))
    except (tfl.UsageError, tfl.FileAccessError, tfl.FormatError) as error:
        print(error.what, error.remedy)
    except (tfl.UnsupportedError, tfl.VerificationError, InvariantError) as error:
        print(error)
    except tfl.TflRewriteError as error:
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
