"""Prints the accuracy of the digits fixture before and after quantization, on its held-out images.

python scripts/digits_accuracy.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

import tfl_rewrite
from tfl_rewrite.editing.base import Pass
from tfl_rewrite.judge.settings import Judging
from tfl_rewrite.passes.quantize import Quantize
from tfl_rewrite.passes.quantize_weights import QuantizeWeights

FORMS: dict[str, Pass] = {
    "int8, auto": QuantizeWeights(dtype="int8", scheme="auto"),
    "int8, dequantize": QuantizeWeights(dtype="int8", scheme="dequantize"),
    "float16": QuantizeWeights(dtype="float16"),
    "int6, channel": QuantizeWeights(dtype="int6", granularity="channel"),
    "int4, channel": QuantizeWeights(dtype="int4", granularity="channel"),
    "int4, block:32": QuantizeWeights(dtype="int4", granularity="block:32"),
    "quantize, int8": Quantize(),
    "quantize, int16": Quantize(activations="int16"),
    "quantize, mixed": Quantize(activations="mixed", share=0.5),
}
FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"


def accuracy(model: Path) -> float:
    """Returns the share of held-out images whose largest output is their label."""
    from ai_edge_litert.interpreter import Interpreter

    with np.load(FIXTURES / "inputs" / "digits_eval.npz") as file:
        (images,) = file.values()
    with np.load(FIXTURES / "labels" / "digits_eval.npz") as file:
        labels = file["labels"]
    interpreter = Interpreter(str(model), num_threads=1)
    interpreter.allocate_tensors()
    source, result = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    right = 0
    for image, label in zip(images, labels, strict=True):
        interpreter.set_tensor(source["index"], image.reshape(source["shape"]))
        interpreter.invoke()
        right += int(interpreter.get_tensor(result["index"]).argmax() == label)
    return right / len(labels)


def main() -> None:
    model = FIXTURES / "digits_cnn.tflite"
    calibration = FIXTURES / "inputs" / "digits_calib.npz"
    print(f"{'float32':18s} {model.stat().st_size:8,} bytes  accuracy {accuracy(model):.4f}")
    with tempfile.TemporaryDirectory(prefix="tfl-rewrite-digits-") as folder:
        for number, (name, item) in enumerate(FORMS.items()):
            made = Path(folder) / f"{number}.tflite"
            settings = Judging(inputs=(calibration,), tolerance=tfl_rewrite.Tolerance(min_snr=0))
            tfl_rewrite.rewrite(model, made, [item], judging=settings)
            print(f"{name:18s} {made.stat().st_size:8,} bytes  accuracy {accuracy(made):.4f}")
        made = Path(folder) / "shrunk.tflite"
        goal = tfl_rewrite.Goal(min_agreement=0.99)
        report = tfl_rewrite.shrink(model, made, goal, judging=Judging(inputs=(calibration,)))
        print(f"{'shrink, 99 %':18s} {made.stat().st_size:8,} bytes  accuracy {accuracy(made):.4f}")
        for note in report.notes:
            print(f"  {note}")


if __name__ == "__main__":
    main()
