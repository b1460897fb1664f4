"""Untrained networks that TensorFlow converts: control flow, state, several signatures, dynamic shapes."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import samples
from .builder import weights
from .trained import Converter, deterministic_tensorflow, save_inputs

WIDTH = 40


def convert_module(
    module: Any, signatures: dict[str, Any], configure: Callable[[Converter], None] | None = None
) -> bytes:
    """Saves a module with the given signatures and converts it."""
    import tensorflow as tf

    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(module, folder, signatures=signatures)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=list(signatures))
        if configure is not None:
            configure(converter)
        return bytes(converter.convert())


def convert_function(
    function: Callable[..., Any], *specs: Any, configure: Callable[[Converter], None] | None = None
) -> bytes:
    """Converts one Python function of tensors, constants captured."""
    import tensorflow as tf

    module = tf.Module()
    module.call = tf.function(function, input_signature=specs)
    return convert_module(module, {"serving_default": module.call}, configure)


def make_two_signatures_shared_weights(out: Path) -> None:
    """`encode` and `score` start with the same matrix multiplication; its weights are stored once."""
    tf = deterministic_tensorflow()
    rng = samples.seeded()

    class Shared(tf.Module):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.shared = tf.Variable(weights(rng, WIDTH, WIDTH), name="shared")
            self.head = tf.Variable(weights(rng, WIDTH, 5), name="head")

        @tf.function(input_signature=[tf.TensorSpec((1, WIDTH), tf.float32, name="x")])
        def encode(self, x: Any) -> dict[str, Any]:
            return {"code": tf.nn.relu(tf.matmul(x, self.shared))}

        @tf.function(input_signature=[tf.TensorSpec((1, WIDTH), tf.float32, name="x")])
        def score(self, x: Any) -> dict[str, Any]:
            return {"scores": tf.nn.softmax(tf.matmul(tf.nn.relu(tf.matmul(x, self.shared)), self.head))}

    module = Shared()
    path = out / "two_signatures_shared_weights.tflite"
    path.write_bytes(convert_module(module, {"encode": module.encode, "score": module.score}))
    inputs = samples.vectors(8, WIDTH)
    samples.save_npz(out / "inputs" / f"{path.stem}.npz", **{"encode_x:0": inputs, "score_x:0": inputs})


def make_while_loop(out: Path) -> None:
    """A WHILE whose body multiplies by a weight of 1,600 elements."""
    tf = deterministic_tensorflow()
    kernel = tf.constant(weights(samples.seeded(), WIDTH, WIDTH))

    def loop(x: Any) -> dict[str, Any]:
        _, y = tf.while_loop(
            lambda step, _: step < 3,
            lambda step, y: (step + 1, tf.tanh(tf.matmul(y, kernel))),
            (tf.constant(0), x),
        )
        return {"y": y}

    path = out / "while_loop.tflite"
    path.write_bytes(convert_function(loop, tf.TensorSpec((1, WIDTH), tf.float32, name="x")))
    save_inputs(path, samples.vectors(8, WIDTH))


def make_resource_variables(out: Path) -> None:
    """A running mean in a resource variable: CALL_ONCE initializes it, each run assigns it."""
    tf = deterministic_tensorflow()
    rng = samples.seeded()

    class Running(tf.Module):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.state = tf.Variable(weights(rng, 1, WIDTH), name="state")
            self.kernel = tf.constant(weights(rng, WIDTH, WIDTH))

        @tf.function(input_signature=[tf.TensorSpec((1, WIDTH), tf.float32, name="x")])
        def step(self, x: Any) -> dict[str, Any]:
            self.state.assign(0.5 * self.state + 0.5 * tf.tanh(tf.matmul(x, self.kernel)))
            return {"mean": self.state.read_value()}

    def resource_variables(converter: Converter) -> None:
        converter.experimental_enable_resource_variables = True

    module = Running()
    path = out / "resource_variables.tflite"
    path.write_bytes(convert_module(module, {"serving_default": module.step}, resource_variables))
    save_inputs(path, samples.vectors(8, WIDTH))


def make_batch_matmul(out: Path) -> None:
    """BATCH_MATMUL of an input with a constant stack of matrices."""
    tf = deterministic_tensorflow()
    kernel = tf.constant(weights(samples.seeded(), 2, WIDTH, 32))
    path = out / "batch_matmul.tflite"
    path.write_bytes(
        convert_function(
            lambda x: {"y": tf.matmul(tf.reshape(x, (2, 4, WIDTH)), kernel)},
            tf.TensorSpec((1, 2, 4, WIDTH), tf.float32, name="x"),
        )
    )
    save_inputs(path, samples.vectors(8, 2, 4, WIDTH))


def make_transpose_conv(out: Path) -> None:
    """TRANSPOSE_CONV that doubles height and width."""
    tf = deterministic_tensorflow()
    kernel = tf.constant(weights(samples.seeded(), 3, 3, 8, 16))  # [h, w, out, in]
    path = out / "transpose_conv.tflite"
    path.write_bytes(
        convert_function(
            lambda x: {"y": tf.nn.conv2d_transpose(x, kernel, (1, 12, 12, 8), 2)},
            tf.TensorSpec((1, 6, 6, 16), tf.float32, name="x"),
        )
    )
    save_inputs(path, samples.vectors(4, 6, 6, 16))


def make_dynamic_shapes(out: Path) -> None:
    """Batch and length are unknown: `shape_signature` holds -1 for both."""
    tf = deterministic_tensorflow()
    kernel = tf.constant(weights(samples.seeded(), WIDTH, 32))
    path = out / "dynamic_shapes.tflite"
    path.write_bytes(
        convert_function(
            lambda x: {"y": tf.nn.relu(tf.einsum("blw,wo->blo", x, kernel))},
            tf.TensorSpec((None, None, WIDTH), tf.float32, name="x"),
        )
    )
    save_inputs(path, samples.vectors(8, 5, WIDTH))
