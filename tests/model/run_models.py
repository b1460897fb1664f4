"""Runs models in the interpreter, apart from the tests: a broken file may take the process with it.

Reads JSON from standard input, ``[[model, inputs.npz], ...]``, and writes an ``.npz`` to the path in its
argument: ``"<number>.<sample>.<output>"``, or ``"<number>.error"`` with what the interpreter says.
"""

from __future__ import annotations

import json
import sys

import numpy as np

SAMPLES = 3


def outputs(model: str, inputs: str) -> dict[str, np.ndarray]:
    from ai_edge_litert.interpreter import Interpreter

    found = {}
    interpreter = Interpreter(model, num_threads=1)
    details = interpreter.get_input_details()
    with np.load(inputs) as arrays:
        feeds = {detail["index"]: arrays[detail["name"]][:SAMPLES] for detail in details}
    for sample in range(min(map(len, feeds.values()))):
        for index, values in feeds.items():
            if sample == 0:
                interpreter.resize_tensor_input(index, values[:1].shape)
        if sample == 0:
            interpreter.allocate_tensors()
        for index, values in feeds.items():
            interpreter.set_tensor(index, values[sample][None])
        interpreter.invoke()
        for number, detail in enumerate(interpreter.get_output_details()):
            found[f"{sample}.{number}"] = interpreter.get_tensor(detail["index"])
    return found


def main() -> None:
    results: dict[str, np.ndarray] = {}
    for number, (model, inputs) in enumerate(json.load(sys.stdin)):
        try:
            for name, value in outputs(model, inputs).items():
                results[f"{number}.{name}"] = (
                    np.array(repr(value.tolist())) if value.dtype == object else value
                )
        except (RuntimeError, ValueError, KeyError) as error:
            results[f"{number}.error"] = np.array(str(error))
    np.savez(sys.argv[1], **results)


if __name__ == "__main__":
    main()
