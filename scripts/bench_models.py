"""The models that benches go through: a folder of ``NAME.tflite``, and inputs for them."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from tfl_rewrite import load
from tfl_rewrite.errors import TflRewriteError
from tfl_rewrite.integers.modes import could_compute


def bench_parser(text: str | None) -> argparse.ArgumentParser:
    """Returns a parser that takes the folder of models, the folder of inputs, and some of the names."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="?", default=os.environ.get("TFL_REWRITE_CORPUS"), type=Path)
    parser.add_argument("--inputs", type=Path, default=None, help="default: ../inputs beside MODELS")
    parser.add_argument("--only", nargs="*", default=[], help="models whose name holds one of these")
    return parser


def inputs_of(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> Path:
    """Returns the folder of inputs; ends the program where there is no folder of models."""
    if arguments.models is None:
        parser.error("give a folder of models, or set TFL_REWRITE_CORPUS")
    found: Path = arguments.inputs or arguments.models.parent / "inputs"
    return found


def float_models(
    arguments: argparse.Namespace, inputs: Path, wanted: Callable[[Path], bool] | None = None
) -> Iterator[Path]:
    """Yields the float models, or those that are wanted, that have inputs to judge by, small ones first."""
    for path in sorted(arguments.models.glob("*.tflite"), key=lambda path: path.stat().st_size):
        if arguments.only and not any(word in path.stem for word in arguments.only):
            continue
        if (inputs / f"{path.stem}.eval.npz").exists():
            try:
                if (wanted or is_float)(path):
                    yield path
            except TflRewriteError as error:
                print(f"{path.stem}: {error}")


def could_be_integer(path: Path) -> bool:
    """Whether an operator of a model computes in floats, of whatever weights, that has an integer kernel."""
    return any(could_compute(operator) for _, operator in load(path).operators())


def is_float(path: Path) -> bool:
    """Whether most constant bytes of a model are floats."""
    model = load(path)
    sizes = {True: 0, False: 0}
    seen = set()
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            if tensor.is_constant and id(tensor.buffer) not in seen:
                seen.add(id(tensor.buffer))
                sizes[tensor.dtype_name in ("FLOAT32", "FLOAT16")] += tensor.buffer.nbytes
    return sizes[True] > sizes[False]
