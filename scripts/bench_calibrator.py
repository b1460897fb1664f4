"""Runs the calibrator inside TensorFlow on one file; a process of its own, started by ``bench_integer.py``.

    python scripts/bench_calibrator.py {8,16} IN.tflite OUT.tflite CALIB.npz

Full integer with float inputs and outputs, and float operators where there is no integer kernel. The class is
private to TensorFlow; its own converter uses it. Needs ``tensorflow`` and nothing of ours.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.lite.python.optimize.calibrator import Calibrator


def samples(model: bytes, path: Path) -> Iterator[Any]:
    """The samples of a file in order of the inputs; with the signature's name where there are several."""
    arrays = dict(np.load(path))
    interpreter = tf.lite.Interpreter(model_content=model)
    details = interpreter.get_input_details()
    entries: dict[str | None, dict[str, Any]] = {None: {detail["name"]: detail for detail in details}}
    if len(keys := interpreter.get_signature_list()) > 1:
        entries = {key: interpreter.get_signature_runner(key).get_input_details() for key in keys}
    for key, inputs in entries.items():
        wanted = {name: (arrays.get(d["name"]), d["shape"]) for name, d in inputs.items()}
        if any(values is None for values, _ in wanted.values()):
            continue
        for index in range(min(len(values) for values, _ in wanted.values())):
            given = {
                name: values[index].reshape(
                    shape if values[index].size == np.prod(shape) else (1, *values.shape[1:])
                )
                for name, (values, shape) in wanted.items()
            }
            yield list(given.values()) if key is None else (key, given)


def main() -> None:
    width, source, target, calib = sys.argv[1:]
    model = Path(source).read_bytes()
    activations, biases = {"8": (tf.int8, tf.int32), "16": (tf.int16, tf.int64)}[width]
    made = Calibrator(model).calibrate_and_quantize(
        lambda: samples(model, Path(calib)),
        tf.float32,
        tf.float32,
        True,
        activations_type=activations,
        bias_type=biases,
    )
    Path(target).write_bytes(made)


if __name__ == "__main__":
    main()
