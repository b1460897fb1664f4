"""Models with one fault each, and how the runtime takes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tfl_rewrite.flatbuf.record import FLOAT32, INT32, INT64, ScalarVector
from tfl_rewrite.model import dtypes
from tfl_rewrite.model.blob import OwnedBlob
from tfl_rewrite.model.ir import Model, OperatorCode, Quantization, Tensor, new_record, operator_number

from .nets import Array, Net, stored_apart


def scaled(
    tensor: Tensor, scales: Sequence[float], *, axis: int = 0, points: Sequence[int] | None = None
) -> Tensor:
    """Gives a tensor quantization parameters, as wrong as they are given."""
    tensor.quantization = Quantization(
        ScalarVector(FLOAT32, np.array(scales, "<f4").tobytes()),
        ScalarVector.of(INT64, [0] * len(scales) if points is None else points),
        axis,
    )
    return tensor


def ints(net: Net, shape: Sequence[int], dtype: str = "int8") -> Array:
    low, high = (0, 255) if dtype == "uint8" else (-127, 127)
    return net.random.integers(low, high, tuple(shape), endpoint=True).astype(dtype)


def dense(
    *,
    scales: Sequence[float] | None = None,
    axis: int = 0,
    points: Sequence[int] | None = None,
    version: int = 12,
    values: Array | None = None,
) -> Model:
    """FULLY_CONNECTED over an int8 weight of 16 rows; sound unless told otherwise."""
    net = Net(1)
    source = net.input("x", (2, 8))
    made = net.constant("w", ints(net, (16, 8)) if values is None else values)
    scaled(made, np.linspace(0.01, 0.02, 16) if scales is None else scales, axis=axis, points=points)
    out = net.add(
        "FULLY_CONNECTED",
        [source, made, None],
        "y",
        (2, 16),
        version=version,
        asymmetric_quantize_inputs=True,
    )
    net.output(out)
    return net.model


def zero_scale() -> Model:
    """Row 3 has scale 0, and integers that are not 0."""
    scales = np.linspace(0.01, 0.02, 16)
    scales[3] = 0
    return dense(scales=scales)


def blockwise(*, zero: bool = True, version: int = 12, reader: str = "FULLY_CONNECTED") -> Model:
    """Int4 weights of 8 rows and 64 columns, float16 scales for blocks of 32."""
    net = Net(2)
    source = net.input("x", (2, 64))
    scales = np.full((8, 2), 0.01, np.float16)
    if zero:
        scales[2, 1] = 0
    holder = net.constant("scales", scales)
    values = net.random.integers(-7, 7, (8, 64), endpoint=True).astype(np.uint8) & 15
    flat = values.reshape(-1)
    packed = (flat[0::2] | (flat[1::2] << 4)).astype(np.uint8)
    weight = Tensor("w", (8, 64), dtypes.BY_NAME["INT4"].value, net.buffer(packed.tobytes()))
    weight.quantization = Quantization(scales_tensor=holder)
    details = new_record("BlockwiseQuantization").replace(block_size=32, zero_points=-1)
    record = new_record("QuantizationParameters").replace(details_type=2, details=details)
    weight.quantization = Quantization(scales_tensor=holder, rest=record)
    net.graph.tensors.append(weight)
    net.output(net.add(reader, [source, weight, None][: 3 if reader == "FULLY_CONNECTED" else 2], "y", (2, 8),
                       version=version))  # fmt: skip
    return net.model


def depthwise(*, scales: Sequence[float] = (0.01,), axis: int = 0) -> Model:
    """A hybrid DEPTHWISE_CONV_2D of 6 channels."""
    net = Net(3)
    source = net.input("x", (1, 5, 5, 6))
    weight = scaled(net.constant("w", ints(net, (1, 3, 3, 6))), scales, axis=axis)
    bias = net.constant("b", np.linspace(-1, 1, 6).astype(np.float32))
    out = net.add(
        "DEPTHWISE_CONV_2D",
        [source, weight, bias],
        "y",
        (1, 5, 5, 6),
        version=6,
        stride_w=1,
        stride_h=1,
        depth_multiplier=1,
    )
    net.output(out)
    return net.model


def convolution(*, bias: bool = True, equal: bool = False) -> Model:
    """A hybrid CONV_2D of 4 filters."""
    net = Net(4)
    source = net.input("x", (1, 5, 5, 3))
    scales = [0.01] * 4 if equal else [0.01, 0.02, 0.03, 0.04]
    weight = scaled(net.constant("w", ints(net, (4, 3, 3, 3))), scales)
    inputs = [source, weight, *([net.constant("b", np.ones(4, np.float32))] if bias else [])]
    net.output(net.add("CONV_2D", inputs, "y", (1, 5, 5, 4), version=5, stride_w=1, stride_h=1))
    return net.model


def said(text: str = "1.5.0") -> Model:
    """A sound model whose metadata promises an old runtime."""
    model = dense()
    net = Net()
    net.model = model
    net.metadata("min_runtime_version", text.encode().ljust(16, b"\0"))
    return model


def elementwise(kind: str, other: Array, dtype: int | None = None) -> Model:
    """An operator over a float input and a constant."""
    net = Net(5)
    source = net.input("x", (2, 8))
    constant = net.constant("c", other)
    if dtype is not None:
        constant.dtype = dtype
    net.output(net.add(kind, [source, constant], "y", (2, 8)))
    return net.model


def half_weight() -> Model:
    net = Net(6)
    source = net.input("x", (2, 8))
    weight = net.constant("w", net.random.standard_normal((16, 8)).astype(np.float16))
    net.output(net.dense(source, weight, "y"))
    return net.model


def resize(*, equal: bool = False) -> Model:
    net = Net(7)
    source = scaled(net.input("x", (1, 4, 4, 3), np.int8), [0.01])
    size = net.constant("size", np.array([8, 8], np.int32))
    out = net.add("RESIZE_BILINEAR", [source, size], "y", (1, 8, 8, 3), dtype=np.int8, version=2)
    scaled(out, [0.01 if equal else 0.03])
    net.output(out)
    return net.model


def batch_matmul() -> Model:
    """A right side with a scale for each column."""
    net = Net(8)
    source = net.input("x", (2, 8))
    weight = scaled(net.constant("w", ints(net, (8, 16))), np.linspace(0.01, 0.02, 16), axis=1)
    net.output(
        net.add("BATCH_MATMUL", [source, weight], "y", (2, 16), version=4, asymmetric_quantize_inputs=True)
    )
    return net.model


def mixed_rnn() -> Model:
    """UNIDIRECTIONAL_SEQUENCE_RNN with an int8 input weight and a float recurrent one."""
    net = Net(9)
    source = net.input("x", (1, 3, 8))
    weight = scaled(net.constant("w", ints(net, (4, 8))), [0.01])
    state = net.tensor("h", (1, 4))
    state.is_variable = True
    rest = [net.weights("r", (4, 4)), net.constant("b", np.zeros(4, np.float32)), state]
    net.output(net.add("UNIDIRECTIONAL_SEQUENCE_RNN", [source, weight, *rest], "y", (1, 3, 4), version=3))
    return net.model


def conv3d() -> Model:
    net = Net(10)
    source = net.input("x", (1, 3, 4, 4, 2))
    weight = scaled(net.constant("w", ints(net, (1, 1, 1, 2, 3))), [0.01])
    net.output(net.add("CONV_3D", [source, weight], "y", (1, 3, 4, 4, 3)))
    return net.model


def custom(name: str) -> Model:
    net = Net(11)
    source = net.input("x", (2, 8))
    out = net.add("ADD", [source, source], "y", (2, 8))
    code = OperatorCode(operator_number("CUSTOM"), name)
    net.model.operator_codes = [code]
    net.graph.operators[0].code = code
    net.graph.operators[0].options = None
    net.graph.operators[0].rest = new_record("Operator")
    net.output(out)
    return net.model


def constant_of(values: Array) -> Model:
    net = Net(12)
    source = net.input("x", values.shape)
    if values.dtype == np.float16:
        stored = net.constant("c", values)
        other = net.add("DEQUANTIZE", [stored], "f", values.shape, version=3)
    else:
        other = net.constant("c", values)
    net.output(net.add("ADD", [source, other], "y", values.shape))
    return net.model


def full_integer(*, bias_scale: float) -> Model:
    """An int8 FULLY_CONNECTED; the bias should have scale 0.02 x 0.01."""
    net = Net(13)
    source = scaled(net.input("x", (2, 8), np.int8), [0.02])
    weight = scaled(net.constant("w", ints(net, (16, 8))), [0.01])
    bias = scaled(net.constant("b", np.arange(16, dtype=np.int32)), [bias_scale])
    out = net.add("FULLY_CONNECTED", [source, weight, bias], "y", (2, 16), dtype=np.int8, version=4)
    net.output(scaled(out, [0.05]))
    return net.model


def full_integer_zero(*, channels: bool, bias_scale: float, shared: bool = False) -> Model:
    """An int8 FULLY_CONNECTED, or two that share it, with a bias of zeros."""
    net = Net(16)
    source = scaled(net.input("x", (2, 8), np.int8), [0.02])
    bias = scaled(net.constant("b", np.zeros(16, np.int32)), [bias_scale])
    for name, scale in (("y", 0.01), ("z", 0.03))[: 2 if shared else 1]:
        weight = net.constant(f"w{name}", ints(net, (16, 8)))
        scaled(weight, np.linspace(scale, 2 * scale, 16) if channels else [scale])
        out = net.add("FULLY_CONNECTED", [source, weight, bias], name, (2, 16), dtype=np.int8, version=4)
        net.output(scaled(out, [0.05]))
    return net.model


SIXTEEN = {"CONV_2D": 4, "DEPTHWISE_CONV_2D": 5, "FULLY_CONNECTED": 7, "TRANSPOSE_CONV": 3}
"""Versions with int16 activations."""


def sixteen(kind: str, *, bias: str = "int32", told: str | None = None, computed: bool = False) -> Model:
    """int16 activations and int8 weights of four channels, with a bias whose type the option may tell."""
    net = Net(17)
    shapes = {
        "FULLY_CONNECTED": ((2, 8), (4, 8), (2, 4)),
        "DEPTHWISE_CONV_2D": ((1, 5, 5, 4), (1, 3, 3, 4), None),
    }
    given, held, out = shapes.get(kind, ((1, 5, 5, 3), (4, 3, 3, 3), None))
    out = out or (1, 5, 5, 4)
    source = scaled(net.input("x", given, np.int16), [0.001])
    scales = np.linspace(0.01, 0.02, 4)
    weight = scaled(net.constant("w", ints(net, held)), scales, axis=3 if kind == "DEPTHWISE_CONV_2D" else 0)
    held_bias = net.constant("b", np.array([1000, -2000, 3000, 70000], bias))
    if computed:
        held_bias = net.add("ABS", [held_bias], "b_abs", (4,), dtype=np.dtype(bias).type, version=5)
    scaled(held_bias, 0.001 * scales)
    options: dict[str, object] = {} if kind == "FULLY_CONNECTED" else {"stride_w": 1, "stride_h": 1}
    if kind == "DEPTHWISE_CONV_2D":
        options["depth_multiplier"] = 1
    if told is not None:
        options["quantized_bias_type"] = dtypes.BY_NAME[told.upper()].value
    inputs = [source, weight, held_bias]
    if kind == "TRANSPOSE_CONV":
        inputs = [net.constant("shape", np.array(out, np.int32)), weight, source, held_bias]
    made = net.add(kind, inputs, "y", out, dtype=np.int16, version=SIXTEEN[kind], **options)
    net.output(scaled(made, [0.0005]))
    return net.model


def reshaped(
    *, shape: Sequence[int] | None = (4, 4), vector: Array | None = None, static: bool = True
) -> Model:
    """A RESHAPE of 16 elements that an option or a second input tells the shape, or nobody."""
    net = Net(18)
    source = net.input("x", (2, 8))
    inputs = [source, *([net.constant("shape", vector)] if vector is not None else [])]
    options: dict[str, object] = {}
    if shape is not None:
        options["new_shape"] = ScalarVector.of(INT32, shape)
    out = net.add("RESHAPE", inputs, "y", (4, 4), **options)
    if not static:
        source.signature, out.signature = (-1, 8), (-1, -1)
    net.output(out)
    return net.model


def too_high(*versions: int) -> Model:
    """ADD operators, each of some version."""
    net = Net(19)
    made = net.input("x", (2, 8))
    for number, version in enumerate(versions):
        made = net.add("ADD", [made, made], f"y{number}", (2, 8), version=version)
    net.output(made)
    return net.model


def one_operand() -> Model:
    net = Net(20)
    source = net.input("x", (2, 8))
    net.output(net.add("ADD", [source], "y", (2, 8)))
    return net.model


def unranked() -> Model:
    model = dense()
    model.subgraphs[0].tensors[0].shape = ()
    return model


def too_small() -> Model:
    model = constant_of(np.ones((2, 8), np.float32))
    model.subgraphs[0].tensors[1].buffer.blob = OwnedBlob(b"\0" * 60)
    return model


def dead_operator() -> Model:
    net = Net(14)
    source = net.input("x", (2, 8))
    net.output(net.add("ADD", [source, source], "y", (2, 8)))
    net.add("MUL", [source, net.weights("w", (2, 8))], "unread", (2, 8))
    return net.model


def twice() -> Model:
    net = Net(15)
    source = net.input("x", (2, 8))
    one = np.arange(16, dtype=np.float32).reshape(2, 8)
    half = net.add("ADD", [source, net.constant("a", one)], "m", (2, 8))
    other = net.constant("b", one)
    stored_apart(other)
    net.output(net.add("MUL", [half, other], "y", (2, 8)))
    return net.model


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        kind: The finding that it must give.
        model: Makes it.
        taken: What the newest runtime does: ``refused``, ``plain`` (runs without XNNPACK only), ``runs``.
    """

    kind: str
    model: Callable[[], Model]
    taken: str

    def __str__(self) -> str:
        return self.kind


REPAIRABLE = (
    Fault("quantized-dimension", lambda: dense(axis=3), "refused"),
    Fault("zero-points", lambda: dense(points=[0]), "refused"),
    Fault("zero-scale", zero_scale, "plain"),
    Fault("zero-scale", blockwise, "plain"),
    Fault("depthwise-scales", depthwise, "runs"),
    Fault("missing-bias", lambda: convolution(bias=False), "refused"),
    Fault("hybrid-version", lambda: dense(version=9), "runs"),
    Fault("hybrid-version", lambda: blockwise(zero=False, version=6), "runs"),
    Fault("min-runtime", said, "runs"),
    Fault("int16-bias", lambda: sixteen("CONV_2D"), "runs"),
    Fault("int16-bias", lambda: sixteen("TRANSPOSE_CONV"), "runs"),
    Fault("int16-bias", lambda: sixteen("FULLY_CONNECTED"), "runs"),
    Fault("int16-bias", lambda: sixteen("DEPTHWISE_CONV_2D"), "refused"),
    Fault("int16-bias", lambda: sixteen("CONV_2D", told="int64"), "refused"),
    Fault("int16-bias", lambda: sixteen("CONV_2D", bias="int64", told="int32"), "refused"),
    Fault("int16-bias", lambda: sixteen("CONV_2D", computed=True), "runs"),
    Fault("bias-scale", lambda: full_integer_zero(channels=False, bias_scale=0.01), "runs"),
    Fault("zero-bias-scale", lambda: full_integer_zero(channels=True, bias_scale=0.01), "runs"),
    Fault("zero-bias-scale", lambda: full_integer_zero(channels=True, bias_scale=1e-5, shared=True), "runs"),
    Fault("operands", lambda: reshaped(shape=None), "refused"),
    Fault("operator-version", lambda: too_high(99, 99), "refused"),
    Fault("version-high", lambda: too_high(5), "runs"),
)
FAULTS = (
    *REPAIRABLE,
    Fault("odd-scale", lambda: dense(scales=[1e-40, *[0.01] * 14, 0.02]), "plain"),
    Fault("bias-scale", lambda: full_integer(bias_scale=0.0004), "runs"),
    Fault("bias-scale", lambda: full_integer(bias_scale=0.01), "runs"),
    Fault("hybrid-untold", batch_matmul, "runs"),
    Fault("equal-scales", lambda: convolution(equal=True), "runs"),
    Fault("hybrid-zero-point", lambda: dense(points=[5] * 16), "plain"),
    Fault("hybrid-mixed", mixed_rnn, "refused"),
    Fault("hybrid-input-rank", unranked, "plain"),
    Fault("hybrid-unsupported", conv3d, "refused"),
    Fault("mixed-types", lambda: elementwise("MUL", np.ones((2, 8), np.int32)), "refused"),
    Fault("float16-read", half_weight, "refused"),
    Fault("resize-scales", resize, "plain"),
    Fault("operator-version", lambda: blockwise(zero=False, version=99), "refused"),
    Fault("operands", one_operand, "refused"),
    Fault("operands", lambda: reshaped(shape=None, static=False), "refused"),
    # XNNPACK takes it, the kernels do not.
    Fault("operands", lambda: reshaped(shape=None, vector=np.array([[4, 4]], np.int32)), "runs"),
    Fault("operands", lambda: reshaped(shape=None, vector=np.array([4, 4], np.int64)), "refused"),
    Fault("custom-operator", lambda: custom("Nobody"), "refused"),
    Fault("custom-operator", lambda: custom("FlexNobody"), "refused"),
    Fault("nan", lambda: constant_of(np.array([[1, np.nan]], np.float32)), "runs"),
    Fault("infinity", lambda: constant_of(np.array([[1, -np.inf]], np.float32)), "runs"),
    Fault("float16-infinity", lambda: constant_of(np.array([[1, np.inf]], np.float16)), "runs"),
    Fault("structure", too_small, "refused"),
    Fault("dead-content", dead_operator, "runs"),
    Fault("duplicates", twice, "runs"),
)
SOUND = (
    dense,
    lambda: blockwise(zero=False),
    lambda: depthwise(scales=np.linspace(0.01, 0.02, 6), axis=3),
    convolution,
    lambda: said("2.17.0"),
    lambda: resize(equal=True),
    lambda: full_integer(bias_scale=0.0002),
    lambda: custom("TFLite_Detection_PostProcess"),
    lambda: sixteen("CONV_2D", bias="int64"),
    lambda: sixteen("CONV_2D", told="int32"),
    lambda: sixteen("DEPTHWISE_CONV_2D", bias="int64"),
    lambda: full_integer_zero(channels=False, bias_scale=0.0002),
    reshaped,
    lambda: reshaped(shape=None, vector=np.array([4, 4], np.int32)),
    lambda: too_high(1, 1),
)
