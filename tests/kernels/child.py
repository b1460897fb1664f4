"""Runs models in whatever interpreter this Python has; meant to be a child process.

Usage: ``python child.py FOLDER RESOLVER NAME...``. It runs every ``NAME.tflite`` twice on the arrays of
``NAME.npz`` and prints one JSON line; outputs go to ``NAME.RESOLVER.out.npz``. A line is printed before each
model too, so that the parent knows which one took the process down. ``MICRO`` is no resolver, but TFLite
Micro in the place of TensorFlow Lite.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import sys
from pathlib import Path

import numpy as np

try:
    from ai_edge_litert import interpreter as runtime
except ImportError:
    try:
        from tflite_runtime import interpreter as runtime
    except ImportError:
        from tensorflow.lite.python import interpreter as runtime


ARENA = 64 << 20


def run_micro(folder: Path, name: str) -> None:
    from tflite_micro.python.tflite_micro.runtime import Interpreter

    interpreter = Interpreter.from_bytes((folder / f"{name}.tflite").read_bytes(), arena_size=ARENA)
    given = np.load(folder / f"{name}.npz")
    outputs = {}
    for turn in range(2):
        for position, key in enumerate(sorted(given.files)):
            interpreter.set_input(given[key], position)
        interpreter.invoke()
        # Nothing tells how many there are.
        with contextlib.suppress(IndexError):
            for position in itertools.count():
                outputs[f"turn{turn}_{position}"] = interpreter.get_output(position).copy()
    np.savez(folder / f"{name}.MICRO.out.npz", **outputs)


def run(folder: Path, resolver: str, name: str) -> None:
    if resolver == "MICRO":
        run_micro(folder, name)
        return
    kind = getattr(runtime.OpResolverType, resolver)
    interpreter = runtime.Interpreter(
        model_path=str(folder / f"{name}.tflite"), experimental_op_resolver_type=kind, num_threads=1
    )
    given = np.load(folder / f"{name}.npz")
    arrays = [given[key] for key in sorted(given.files)]
    for details, array in zip(interpreter.get_input_details(), arrays, strict=True):
        if list(details["shape"]) != list(array.shape):
            interpreter.resize_tensor_input(details["index"], array.shape)
    interpreter.allocate_tensors()
    outputs = {}
    for turn in range(2):
        for details, array in zip(interpreter.get_input_details(), arrays, strict=True):
            interpreter.set_tensor(details["index"], array)
        interpreter.invoke()
        for i, details in enumerate(interpreter.get_output_details()):
            outputs[f"turn{turn}_{i}"] = interpreter.get_tensor(details["index"])
    np.savez(folder / f"{name}.{resolver}.out.npz", **outputs)


def main(folder: Path, resolver: str, names: list[str]) -> None:
    for name in names:
        print(json.dumps({"start": name}), flush=True)
        try:
            run(folder, resolver, name)
            print(json.dumps({"done": name}), flush=True)
        except (RuntimeError, ValueError) as error:
            print(json.dumps({"done": name, "error": str(error)}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
