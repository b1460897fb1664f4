"""Runs recipes of ai-edge-quantizer on one file; a process of its own, started by ``bench_quality.py``.

    python scripts/bench_peer.py list
    python scripts/bench_peer.py RECIPE,... IN.tflite OUTDIR [--repair] [--calib FILE.npz]

Each recipe writes ``OUTDIR/RECIPE.tflite``; a line of JSON tells how it went.

Needs ``ai-edge-quantizer`` and nothing of ours. ``--repair`` first writes each operator's number into both of
its fields: files from before TensorFlow 2.4 have it in the older one only, which this tool does not read.
"""

from __future__ import annotations

import argparse
import inspect
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_quantizer import algorithm_manager, quantizer, recipe, recipe_manager

ALGORITHMS = algorithm_manager.AlgorithmName
OPERATIONS = recipe.TFLOperationName


def float16() -> Any:
    """Float16 weights behind DEQUANTIZE."""
    made = recipe_manager.RecipeManager()
    made.add_weight_only_config(
        regex=".*",
        operation_name=OPERATIONS.ALL_SUPPORTED,
        num_bits=16,
        algorithm_key=ALGORITHMS.FLOAT_CASTING,
    )
    return made.get_quantization_recipe()


def recipes() -> dict[str, Callable[[], Any]]:
    """All recipes that the module offers, those that take one also with clipping (OCTAV), and float16."""
    found: dict[str, Callable[[], Any]] = {"float16": float16}
    for name, make in inspect.getmembers(recipe, inspect.isfunction):
        if name.startswith("_"):
            continue
        found[name] = make
        if "algorithm_key" in inspect.signature(make).parameters:
            found[f"{name}+octav"] = lambda make=make: make(algorithm_key=ALGORITHMS.OCTAV)
    return found


def repaired(source: Path, target: Path) -> Path:
    model = schema.ModelT.InitFromPackedBuf(source.read_bytes(), 0)
    for code in model.operatorCodes:
        code.builtinCode = max(code.builtinCode, code.deprecatedBuiltinCode)
    import flatbuffers

    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), b"TFL3")
    target.write_bytes(builder.Output())
    return target


def calibration(path: Path, model: Path) -> dict[str, list[dict[str, Any]]]:
    """The samples of a file for each signature whose inputs it names."""
    from ai_edge_litert.interpreter import Interpreter

    arrays = dict(np.load(path))
    interpreter = Interpreter(str(model))
    names = {detail["index"]: detail["name"] for detail in interpreter.get_input_details()}
    found = {}
    for key in interpreter.get_signature_list():
        details = interpreter.get_signature_runner(key).get_input_details()
        if not all(names.get(detail["index"]) in arrays for detail in details.values()):
            continue
        wanted = {name: (arrays[names[d["index"]]], tuple(d["shape"])) for name, d in details.items()}
        count = min(len(values) for values, _ in wanted.values())
        found[key] = [
            {name: values[index].reshape(shape) for name, (values, shape) in wanted.items()}
            for index in range(count)
        ]
    return found


def main() -> int:
    if sys.argv[1:] == ["list"]:
        print(json.dumps(sorted(recipes())))
        return 0
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipes")
    parser.add_argument("source", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--repair", action="store_true")
    parser.add_argument("--calib", type=Path)
    arguments = parser.parse_args()
    source = arguments.source
    if arguments.repair:
        source = repaired(source, arguments.folder / "repaired.model")
    known = recipes()
    for name in arguments.recipes.split(","):
        error = None
        try:
            quantize(source, arguments.folder / f"{name}.tflite", known[name](), arguments.calib)
        except Exception as problem:
            error = f"{type(problem).__name__}: {str(problem)[:300]}"
        print(json.dumps({"recipe": name, "error": error}), flush=True)
    return 0


def quantize(source: Path, target: Path, wanted: Any, calib: Path | None) -> None:
    work = quantizer.Quantizer(str(source))
    work.load_quantization_recipe(wanted)
    result = None
    if work.need_calibration:
        if calib is None:
            raise ValueError("needs calibration")
        samples = calibration(calib, source)
        if not samples:
            raise ValueError("needs a signature")
        result = work.calibrate(samples)
    work.quantize(result).export_model(str(target), overwrite=True)


if __name__ == "__main__":
    sys.exit(main())
