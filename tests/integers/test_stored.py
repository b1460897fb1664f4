"""Which stored weights are made floats, to become integers beside integer activations."""

from __future__ import annotations

from pathlib import Path

from tfl_rewrite import load
from tfl_rewrite.editing.base import run_passes
from tfl_rewrite.integers.rewrites import read_by_integers
from tfl_rewrite.kernels.integer import Target
from tfl_rewrite.model.ir import Model, Operator
from tfl_rewrite.passes.quantize_weights import QuantizeWeights


def always(_: Operator) -> bool:
    return True


def never(_: Operator) -> bool:
    return False


def read(model: Model, kind: str, wanted: object = always, target: Target = Target.LITERT) -> dict[str, bool]:
    """By the type of an operator that reads it, whether a constant of a type is to be made floats."""
    is_read = read_by_integers(model, wanted, target)  # type: ignore[arg-type]
    return {
        operator.code.name: is_read(tensor)
        for _, operator in model.operators()
        for tensor in operator.inputs
        if tensor is not None and tensor.is_constant and tensor.dtype_name == kind
    }


def stored(path: Path, **options: str) -> Model:
    model = load(path)
    run_passes(model, [QuantizeWeights(min_elements=1, **options)])  # type: ignore[arg-type]
    return model


def test_weights_of_recurrent_operators_that_stay_float_stay(fixtures: Path) -> None:
    found = read(stored(fixtures / "rnn.tflite", scheme="auto"), "INT8")
    assert found == {"RNN": False, "UNIDIRECTIONAL_SEQUENCE_RNN": False}
    found = read(stored(fixtures / "lstm.tflite", scheme="auto"), "INT8")
    assert found["FULLY_CONNECTED"] and found["UNIDIRECTIONAL_SEQUENCE_LSTM"]
    # Its integer kernel knows RELU alone.
    assert read(stored(fixtures / "svdf.tflite", scheme="auto"), "INT8") == {"SVDF": False}


def test_weights_behind_dequantize_are_looked_through(fixtures: Path) -> None:
    assert read(load(fixtures / "digits_cnn_float16.tflite"), "FLOAT16") == {"DEQUANTIZE": True}
    assert read(load(fixtures / "digits_cnn_float16.tflite"), "FLOAT16", never) == {"DEQUANTIZE": False}


def test_what_nobody_wants_as_integers_stays(fixtures: Path) -> None:
    model = load(fixtures / "digits_cnn_dynamic_range.tflite")
    assert set(read(model, "INT8").values()) == {True}
    assert set(read(model, "INT8", never).values()) == {False}


def test_bodies_of_branches_stay(fixtures: Path) -> None:
    model = stored(fixtures / "if_branches.tflite", scheme="auto")
    assert set(read(model, "INT8").values()) == {False}


def test_micro_reads_few_of_the_forms(fixtures: Path) -> None:
    model = stored(fixtures / "lstm.tflite", scheme="auto")
    found = read(model, "INT8", never, Target.MICRO)
    assert found["FULLY_CONNECTED"] and found["UNIDIRECTIONAL_SEQUENCE_LSTM"]
    half = load(fixtures / "digits_cnn_float16.tflite")
    assert read(half, "FLOAT16", never, Target.MICRO) == {"DEQUANTIZE": True}
