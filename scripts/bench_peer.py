"""Runs recipes of litert-quantizer on one file; a process of its own, started by other benches.

    python scripts/bench_peer.py list
    python scripts/bench_peer.py RECIPE,... IN.tflite OUTDIR [--repair] [--float-io] [--calib FILE.npz]

Each recipe writes ``OUTDIR/RECIPE.tflite``; a line of JSON tells how it went.

Needs ``litert-quantizer`` (``ai-edge-quantizer`` until 0.10) and nothing of ours. ``--repair`` first writes
each operator's number into both of its fields: this tool does not read the older one, which alone holds it in
files from before TensorFlow 2.4. It also writes a signature where there is none: this tool calibrates through
signatures alone. ``--float-io`` leaves inputs and outputs float, which static recipes make integers.
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
from litert_quantizer import algorithm_manager, quantizer, recipe, recipe_manager

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
    if not model.signatureDefs:
        model.signatureDefs = [signature(model.subgraphs[0])]
    import flatbuffers

    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), b"TFL3")
    target.write_bytes(builder.Output())
    return target


def signature(graph: Any) -> Any:
    """A signature of a graph, which names its inputs and outputs by their places."""

    def maps(kind: str, tensors: Any) -> list[Any]:
        found = []
        for place, tensor in enumerate(tensors):
            one = schema.TensorMapT()
            one.name, one.tensorIndex = f"{kind}_{place}", int(tensor)
            found.append(one)
        return found

    made = schema.SignatureDefT()
    made.signatureKey, made.subgraphIndex = "serving_default", 0
    made.inputs, made.outputs = maps("in", graph.inputs), maps("out", graph.outputs)
    return made


def calibration(path: Path, model: Path) -> dict[str, list[dict[str, Any]]]:
    """The samples of a file for each signature whose inputs it names."""
    from ai_edge_litert.interpreter import Interpreter

    arrays = dict(np.load(path))
    interpreter = Interpreter(str(model))
    found = {}
    for key in interpreter.get_signature_list():
        details = interpreter.get_signature_runner(key).get_input_details()
        if not all(detail["name"] in arrays for detail in details.values()):
            continue
        wanted = {name: (arrays[detail["name"]], tuple(detail["shape"])) for name, detail in details.items()}
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
    parser.add_argument("--float-io", action="store_true")
    parser.add_argument("--calib", type=Path)
    arguments = parser.parse_args()
    source = arguments.source
    if arguments.repair:
        source = repaired(source, arguments.folder / "repaired.model")
    known, failed = recipes(), False
    for name in arguments.recipes.split(","):
        error = None
        try:
            wanted = with_float_io(known[name]()) if arguments.float_io else known[name]()
            quantize(source, arguments.folder / f"{name}.tflite", wanted, arguments.calib)
        except Exception as problem:
            error = f"{type(problem).__name__}: {str(problem)[:300]}"
            failed = True
            print(" ".join(error.split()), file=sys.stderr)
        print(json.dumps({"recipe": name, "error": error}), flush=True)
    return int(failed)


def with_float_io(wanted: Any) -> Any:
    made = recipe_manager.RecipeManager()
    made.load_quantization_recipe(wanted)
    for name in (OPERATIONS.INPUT, OPERATIONS.OUTPUT):
        made.add_quantization_config(".*", name, algorithm_key=ALGORITHMS.NO_QUANTIZE)
    return made.get_quantization_recipe()


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
