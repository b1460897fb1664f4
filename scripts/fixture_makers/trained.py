"""Networks that TensorFlow trains and converts: their outputs mean something, so accuracy can be measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from . import recurrent, samples

Converter = Any


def deterministic_tensorflow() -> Any:
    """Imports TensorFlow with every seed set and its kernels made deterministic."""
    import tensorflow as tf

    tf.keras.backend.clear_session()  # layer names, hence tensor names, count from one again
    tf.keras.utils.set_random_seed(samples.SEED)
    tf.config.experimental.enable_op_determinism()
    return tf


def convert(model: Any, configure: Callable[[Converter], None] | None = None) -> bytes:
    """Converts a Keras model; `configure` may set the converter's options."""
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    if configure is not None:
        configure(converter)
    return bytes(converter.convert())


def input_names(path: Path) -> list[str]:
    """Names of the model's inputs as the interpreter gives them."""
    from ai_edge_litert.interpreter import Interpreter

    return [detail["name"] for detail in Interpreter(str(path)).get_input_details()]


def save_inputs(model: Path, *arrays: np.ndarray, name: str | None = None) -> None:
    """Stores inputs of `model` beside it, one array per input name in the interpreter's order."""
    names = input_names(model)
    if len(names) != len(arrays):
        raise ValueError(f"{model.name}: {len(names)} inputs, {len(arrays)} arrays")
    samples.save_npz(
        model.parent / "inputs" / f"{name or model.stem}.npz", **dict(zip(names, arrays, strict=True))
    )


def make_mtcnn_rnet(out: Path) -> None:
    """Trains MTCNN's refinement net on drawn faces and converts it."""
    tf = deterministic_tensorflow()
    layers = tf.keras.layers

    image = layers.Input((24, 24, 3), batch_size=None, name="image")
    x = layers.PReLU(shared_axes=[1, 2])(layers.Conv2D(28, 3)(image))
    x = layers.MaxPool2D(3, 2, padding="same")(x)
    x = layers.PReLU(shared_axes=[1, 2])(layers.Conv2D(48, 3)(x))
    x = layers.MaxPool2D(3, 2)(x)
    x = layers.PReLU(shared_axes=[1, 2])(layers.Conv2D(64, 2)(x))
    x = layers.PReLU()(layers.Dense(128)(layers.Flatten()(x)))
    face = layers.Dense(2, activation="softmax", name="face")(x)
    box = layers.Dense(4, name="box")(x)
    net = tf.keras.Model(image, [face, box])

    images, labels, boxes = samples.face_like(2000, seed=samples.SEED)
    net.compile("adam", loss=["sparse_categorical_crossentropy", "mse"], loss_weights=[1.0, 5.0])
    net.fit(images, [labels, boxes], batch_size=64, epochs=4, verbose=0)

    path = out / "mtcnn_rnet.tflite"
    path.write_bytes(convert(with_batch_of_one(net)))
    held_out, _, _ = samples.face_like(12, seed=samples.SEED + 1)
    save_inputs(path, held_out)


def with_batch_of_one(net: Any) -> Any:
    """Rebuilds a trained Keras model for inputs of exactly one sample, so that shapes are static."""
    import tensorflow as tf

    fixed = [
        tf.keras.layers.Input(tensor.shape[1:], batch_size=1, dtype=tensor.dtype, name=tensor.name)
        for tensor in net.inputs
    ]
    return tf.keras.Model(fixed, net(fixed[0] if len(fixed) == 1 else fixed))


def make_digits_cnn(out: Path) -> None:
    """Trains one depthwise-separable net on the digits and converts it four ways."""
    tf = deterministic_tensorflow()
    layers = tf.keras.layers
    x_train, y_train, x_test, y_test = samples.digits_split()

    net = tf.keras.Sequential(
        [
            layers.Input((8, 8, 1), name="image"),
            layers.Conv2D(32, 3, padding="same", use_bias=False),
            layers.BatchNormalization(momentum=0.9),
            layers.ReLU(6.0),
            layers.Conv2D(128, 1, use_bias=False),
            layers.BatchNormalization(momentum=0.9),
            layers.ReLU(6.0),
            layers.DepthwiseConv2D(3, 2, padding="same", use_bias=False),
            layers.BatchNormalization(momentum=0.9),
            layers.ReLU(6.0),
            layers.Conv2D(64, 1, use_bias=False),
            layers.BatchNormalization(momentum=0.9),
            layers.Flatten(),
            layers.Dense(10, activation="softmax"),
        ]
    )
    net.compile(tf.keras.optimizers.Adam(3e-3), "sparse_categorical_crossentropy")
    net.fit(x_train, y_train, batch_size=64, epochs=15, verbose=0)
    fixed = with_batch_of_one(net)

    calibration = x_train[:100]

    def calibration_samples() -> Iterator[list[np.ndarray]]:
        for sample in calibration:
            yield [sample[None]]

    def float16(converter: Converter) -> None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.target_spec.supported_types = [tf.float16]

    def dynamic_range(converter: Converter) -> None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]

    def full_int8(converter: Converter) -> None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = calibration_samples
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = tf.int8

    path = out / "digits_cnn.tflite"
    path.write_bytes(convert(fixed))
    for configure in (float16, dynamic_range, full_int8):
        (out / f"digits_cnn_{configure.__name__}.tflite").write_bytes(convert(fixed, configure))

    save_inputs(path, x_test, name="digits_eval")
    save_inputs(path, calibration, name="digits_calib")
    samples.save_npz(out / "labels" / "digits_eval.npz", labels=y_test)
    save_quantized_inputs(out / "digits_cnn_full_int8.tflite", x_test)


def save_quantized_inputs(path: Path, values: np.ndarray) -> None:
    """Stores `values` as the int8 input of a fully quantized model expects them."""
    from ai_edge_litert.interpreter import Interpreter

    (detail,) = Interpreter(str(path)).get_input_details()
    scale, zero_point = detail["quantization"]
    quantized = np.clip(np.round(values / scale) + zero_point, -128, 127).astype(np.int8)
    save_inputs(path, quantized)


def make_lstm(out: Path) -> None:
    """Trains an LSTM that reads a digit row by row, and hands its weights to the fused operator.

    Keras 3 converts an LSTM layer to a WHILE loop; the fused operator is therefore assembled here and
    compared with the layer it came from.
    """
    tf = deterministic_tensorflow()
    layers = tf.keras.layers
    x_train, y_train, x_test, y_test = samples.digits_split()
    units, features = 40, 32

    rows = layers.Input((8, 8), name="rows")
    lift, cell, head = layers.Dense(features, activation="relu"), layers.LSTM(units), layers.Dense(10)
    net = tf.keras.Model(rows, head(cell(lift(rows))))
    net.compile(
        tf.keras.optimizers.Adam(5e-3), tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    net.fit(x_train[..., 0], y_train, batch_size=64, epochs=12, verbose=0)

    path = out / "lstm.tflite"
    path.write_bytes(
        recurrent.lstm_classifier(
            lift=[array.numpy() for array in lift.weights],
            cell=[array.numpy() for array in cell.weights],
            head=[array.numpy() for array in head.weights],
        )
    )
    held_out = x_test[:48, :, :, 0]
    save_inputs(path, held_out)
    expected = net.predict(held_out, verbose=0)
    actual = np.concatenate([run(path, sample[None])[0] for sample in held_out])
    if not np.allclose(actual, expected, atol=1e-4):
        raise AssertionError("the fused LSTM does not compute what the trained layer computes")
    accuracy = float(np.mean(net.predict(x_test[..., 0], verbose=0).argmax(1) == y_test))
    if accuracy < 0.9:
        raise AssertionError(f"the LSTM learned too little: held-out accuracy {accuracy:.3f}")


def run(path: Path, *arrays: np.ndarray) -> list[np.ndarray]:
    """Runs the model once in a fresh interpreter; returns all outputs."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path))
    interpreter.allocate_tensors()
    for detail, array in zip(interpreter.get_input_details(), arrays, strict=True):
        interpreter.set_tensor(detail["index"], array)
    interpreter.invoke()
    return [interpreter.get_tensor(detail["index"]) for detail in interpreter.get_output_details()]


def make_text_embedding(out: Path) -> None:
    """Trains a topic classifier on made sentences: embedding, mean over words, two dense layers."""
    tf = deterministic_tensorflow()
    layers = tf.keras.layers
    words, topics = samples.sentences(2000, seed=samples.SEED)

    ids = layers.Input((samples.SENTENCE_LENGTH,), dtype="int32", name="ids")
    x = layers.Embedding(samples.VOCABULARY, 16)(ids)
    x = layers.GlobalAveragePooling1D()(x)
    x = layers.Dense(96, activation="relu")(x)
    net = tf.keras.Model(ids, layers.Dense(samples.TOPICS, activation="softmax")(x))
    net.compile(tf.keras.optimizers.Adam(1e-2), "sparse_categorical_crossentropy")
    net.fit(words, topics, batch_size=64, epochs=6, verbose=0)

    path = out / "text_embedding.tflite"
    path.write_bytes(convert(with_batch_of_one(net)))
    held_out, _ = samples.sentences(64, seed=samples.SEED + 1)
    save_inputs(path, held_out)
