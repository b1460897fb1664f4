"""The single-operator models that are measured, each with the float model that says what is right."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from flatbuffers import flexbuffers

from .measure import Case
from .single_op import Graph, Scales, dequantized, quantize

_SAME = schema.Padding.SAME
_RELU = schema.ActivationFunctionType.RELU
_TANH = schema.ActivationFunctionType.TANH


def noise(*shape: int, seed: int = 0, offset: float = 0.0) -> np.ndarray:
    return (np.random.default_rng(seed + sum(shape)).standard_normal(shape) + offset).astype(np.float32)


@dataclass
class Weight:
    """A weight of a model in the making: int8 in place, int8 behind DEQUANTIZE, or the equal floats."""

    form: str
    axis: int | None
    dequantize_version: int = 0
    wrong_axis: int | None = None

    def add(self, graph: Graph, values: np.ndarray) -> int:
        """Adds the weight and returns the tensor that the operator should read."""
        quantized, scales = quantize(values, self.axis)
        if self.form == "float":
            return graph.const(dequantized(quantized, scales))
        if self.wrong_axis is not None:
            scales = Scales(scales.scale, self.wrong_axis)
        if self.form == "dequantize":
            return graph.dequantize(
                quantized, scales, self.dequantize_version or (2 if self.axis is None else 5)
            )
        return graph.const(quantized, scales)


Build = Callable[[Graph, Weight, int], list[np.ndarray]]
"""Adds one operator with the given weight and operator version; returns arrays for the inputs."""


def case(name: str, build: Build, weight: Weight, version: int) -> Case:
    """Returns the case of one builder: the quantized model and its float twin."""
    quantized, reference = Graph(), Graph()
    inputs = build(quantized, weight, version)
    build(reference, Weight("float", weight.axis), 1)
    return Case(name, quantized.pack(), inputs, reference.pack())


def _set(options: Any, **values: Any) -> Any:
    for key, value in values.items():
        if not hasattr(options, key):
            raise AttributeError(key)
        setattr(options, key, value)
    return options


def zero_some(values: np.ndarray, axis: int) -> np.ndarray:
    """Returns a copy whose first and third channel are zero."""
    values = values.copy()
    np.moveaxis(values, axis, 0)[[0, 2]] = 0
    return values


def conv(
    *,
    batch: int = 1,
    size: int = 9,
    channels: int = 8,
    out: int = 16,
    kernel: int = 3,
    groups: int = 1,
    bias: str = "float",
    zero: bool = False,
    dynamic: tuple[int, ...] = (),
    offset: float = 0.0,
    **options: Any,
) -> Build:
    def build(graph: Graph, weight: Weight, version: int) -> list[np.ndarray]:
        x = noise(batch, size, size, channels, offset=offset)
        w = noise(out, kernel, kernel, channels // groups, seed=1)
        inputs = [graph.input(x.shape, dynamic=dynamic), weight.add(graph, zero_some(w, 0) if zero else w)]
        if bias != "none":
            inputs.append(-1 if bias == "absent" else graph.const(noise(out, seed=2) * (bias == "float")))
        stride, dilation = options.get("strideW", 1), options.get("dilationWFactor", 1)
        done = -(-size // stride)
        assert not (stride > 1 and dilation > 1)
        y = graph.output(graph.tensor((batch, done, done, out), dynamic=dynamic))
        made = _set(
            schema.Conv2DOptionsT(),
            **{
                "padding": _SAME,
                "strideW": 1,
                "strideH": 1,
                "dilationWFactor": 1,
                "dilationHFactor": 1,
                **options,
            },
        )
        graph.op(
            "CONV_2D",
            inputs,
            [y],
            made,
            version=version if weight.form == "int8" else (6 if groups > 1 else 1),
        )
        return [x]

    return build


def depthwise(
    *,
    batch: int = 1,
    channels: int = 8,
    multiplier: int = 1,
    bias: str = "float",
    zero: bool = False,
    dynamic: tuple[int, ...] = (),
    offset: float = 0.0,
    **options: Any,
) -> Build:
    def build(graph: Graph, weight: Weight, version: int) -> list[np.ndarray]:
        x, w = noise(batch, 9, 9, channels, offset=offset), noise(1, 3, 3, channels * multiplier, seed=1)
        inputs = [graph.input(x.shape, dynamic=dynamic), weight.add(graph, zero_some(w, 3) if zero else w)]
        if bias != "none":
            inputs.append(-1 if bias == "absent" else graph.const(noise(channels * multiplier, seed=2)))
        done = -(-9 // options.get("strideW", 1))
        y = graph.output(graph.tensor((batch, done, done, channels * multiplier), dynamic=dynamic))
        made = _set(
            schema.DepthwiseConv2DOptionsT(),
            **{
                "padding": _SAME,
                "strideW": 1,
                "strideH": 1,
                "dilationWFactor": 1,
                "dilationHFactor": 1,
                "depthMultiplier": multiplier,
                **options,
            },
        )
        graph.op("DEPTHWISE_CONV_2D", inputs, [y], made, version=version if weight.form == "int8" else 2)
        return [x]

    return build


def fully_connected(
    *,
    shape: tuple[int, ...] = (3, 32),
    out: int = 16,
    bias: str = "float",
    asymmetric: bool = True,
    keep: bool = False,
    zero: bool = False,
    dynamic: tuple[int, ...] = (),
    offset: float = 0.0,
    **options: Any,
) -> Build:
    def build(graph: Graph, weight: Weight, version: int) -> list[np.ndarray]:
        x, w = noise(*shape, offset=offset), noise(out, shape[-1], seed=1)
        inputs = [graph.input(x.shape, dynamic=dynamic), weight.add(graph, zero_some(w, 0) if zero else w)]
        if bias != "none":
            inputs.append(-1 if bias == "absent" else graph.const(noise(out, seed=2)))
        done = (*shape[:-1], out) if keep else (int(np.prod(shape[:-1])), out)
        y = graph.output(graph.tensor(done, dynamic=dynamic))
        made = _set(
            schema.FullyConnectedOptionsT(),
            keepNumDims=keep,
            asymmetricQuantizeInputs=asymmetric and weight.form == "int8",
            **options,
        )
        graph.op("FULLY_CONNECTED", inputs, [y], made, version=version if weight.form == "int8" else 6)
        return [x]

    return build


def transpose_conv(*, bias: bool = False, zero: bool = False, stride: int = 2, **options: Any) -> Build:
    def build(graph: Graph, weight: Weight, version: int) -> list[np.ndarray]:
        x, w = noise(1, 5, 5, 8), noise(16, 3, 3, 8, seed=1)
        shape = graph.const(np.array([1, 5 * stride, 5 * stride, 16], np.int32))
        inputs = [shape, weight.add(graph, zero_some(w, 0) if zero else w), graph.input(x.shape)]
        if bias:
            inputs.append(graph.const(noise(16, seed=2)))
        y = graph.output(graph.tensor((1, 5 * stride, 5 * stride, 16)))
        made = _set(schema.TransposeConvOptionsT(), padding=_SAME, strideW=stride, strideH=stride, **options)
        graph.op("TRANSPOSE_CONV", inputs, [y], made, version=max(version, 3 if bias else 1))
        return [x]

    return build


def batch_matmul(
    *,
    left: tuple[int, ...] = (2, 5, 32),
    right: tuple[int, ...] = (32, 16),
    adj_y: bool = False,
    adj_x: bool = False,
    asymmetric: bool = True,
    zero: bool = False,
    offset: float = 0.0,
) -> Build:
    def build(graph: Graph, weight: Weight, version: int) -> list[np.ndarray]:
        x, w = noise(*left, offset=offset), noise(*right, seed=1)
        if adj_y:
            w = np.ascontiguousarray(np.swapaxes(w, -1, -2))
        inputs = [graph.input(x.shape), weight.add(graph, zero_some(w, -2 if adj_y else -1) if zero else w)]
        rows = left[-1] if adj_x else left[-2]
        y = graph.output(graph.tensor((*np.broadcast_shapes(left[:-2], right[:-2]), rows, right[-1])))
        made = _set(
            schema.BatchMatMulOptionsT(),
            adjX=adj_x,
            adjY=adj_y,
            asymmetricQuantizeInputs=asymmetric and weight.form == "int8",
        )
        graph.op("BATCH_MATMUL", inputs, [y], made, version=version)
        return [x]

    return build


def embedding_lookup(*, zero: bool = False, rank: int = 2) -> Build:
    def build(graph: Graph, weight: Weight, version: int) -> list[np.ndarray]:
        x, w = np.array([3, 0, 9, 3], np.int32), noise(*(10, 16, 2)[:rank], seed=1)
        inputs = [graph.input(x.shape, "int32"), weight.add(graph, zero_some(w, 0) if zero else w)]
        y = graph.output(graph.tensor((4, *w.shape[1:])))
        graph.op("EMBEDDING_LOOKUP", inputs, [y], version=version)
        return [x]

    return build


def _state(graph: Graph, *shape: int) -> int:
    return graph.tensor(shape, variable=True)


def _lstm_inputs(
    graph: Graph,
    weight: Weight,
    n_in: int,
    units: int,
    *,
    cifg: bool,
    peephole: bool,
    projection: int,
    projection_bias: bool,
) -> list[int]:
    """Returns inputs 1 to 17 of an LSTM."""
    out = projection or units
    scale = 0.4

    def matrix(position: int, *shape: int) -> int:
        return weight.add(graph, noise(*shape, seed=position) * scale)

    inputs = [matrix(i, units, n_in) if i > 1 or not cifg else -1 for i in range(1, 5)]
    inputs += [matrix(i, units, out) if i > 5 or not cifg else -1 for i in range(5, 9)]
    inputs += [matrix(i, units) if peephole and (i > 9 or not cifg) else -1 for i in range(9, 12)]
    inputs += [graph.const(noise(units, seed=i)) if i > 12 or not cifg else -1 for i in range(12, 16)]
    inputs.append(matrix(16, projection, units) if projection else -1)
    inputs.append(graph.const(noise(projection, seed=17)) if projection and projection_bias else -1)
    return inputs


def lstm(
    *,
    operator: str = "UNIDIRECTIONAL_SEQUENCE_LSTM",
    cifg: bool = False,
    peephole: bool = False,
    projection: int = 0,
    projection_bias: bool = False,
    layer_norm: bool = False,
    asymmetric: bool = True,
    time_major: bool = False,
    batch: int = 2,
) -> Build:
    n_in, units, steps = 12, 16, 4
    out = projection or units

    def build(graph: Graph, weight: Weight, version: int) -> list[np.ndarray]:
        hybrid = weight.form == "int8"
        x = (
            noise(batch, n_in)
            if operator == "LSTM"
            else noise(*((steps, batch) if time_major else (batch, steps)), n_in)
        )
        inputs = [graph.input(x.shape)]
        inputs += _lstm_inputs(
            graph,
            weight,
            n_in,
            units,
            cifg=cifg,
            peephole=peephole,
            projection=projection,
            projection_bias=projection_bias,
        )
        inputs += [_state(graph, batch, out), _state(graph, batch, units)]
        if layer_norm:
            inputs += [
                graph.const(noise(units, seed=i, offset=1)) if i > 20 or not cifg else -1
                for i in range(20, 24)
            ]
        y = graph.output(graph.tensor((*x.shape[:-1], out)))
        if operator == "LSTM":
            made = _set(
                schema.LSTMOptionsT(), fusedActivationFunction=_TANH, kernelType=schema.LSTMKernelType.FULL
            )
        else:
            made = _set(
                schema.UnidirectionalSequenceLSTMOptionsT(),
                fusedActivationFunction=_TANH,
                timeMajor=time_major,
            )
        made.asymmetricQuantizeInputs = hybrid and asymmetric
        graph.op(operator, inputs, [y], made, version=version if hybrid else 1)
        return [x]

    return build


def bidirectional_lstm(
    *,
    cifg: bool = False,
    peephole: bool = False,
    projection: int = 0,
    asymmetric: bool = True,
    merge: bool = True,
    aux: bool = False,
) -> Build:
    n_in, units, steps, batch = 12, 16, 4, 2
    out = projection or units

    def build(graph: Graph, weight: Weight, version: int) -> list[np.ndarray]:
        x = noise(steps, batch, n_in)
        inputs = [graph.input(x.shape)]
        for _ in range(2):
            inputs += _lstm_inputs(
                graph,
                weight,
                n_in,
                units,
                cifg=cifg,
                peephole=peephole,
                projection=projection,
                projection_bias=False,
            )
        for _ in range(2):
            inputs += [_state(graph, batch, out), _state(graph, batch, units)]
        arrays = [x]
        if aux:
            arrays.append(noise(steps, batch, n_in, seed=9))
            inputs.append(graph.input(arrays[1].shape))
            inputs += [
                weight.add(graph, noise(units, n_in, seed=i) * 0.4) if i not in (40, 44) or not cifg else -1
                for i in range(40, 48)
            ]
        else:
            inputs += [-1] * 9
        assert len(inputs) == 48
        outputs = [graph.output(graph.tensor((steps, batch, out * (2 if merge else 1))))]
        if not merge:
            outputs.append(graph.output(graph.tensor((steps, batch, out))))
        made = _set(
            schema.BidirectionalSequenceLSTMOptionsT(),
            fusedActivationFunction=_TANH,
            mergeOutputs=merge,
            timeMajor=True,
            asymmetricQuantizeInputs=asymmetric and weight.form == "int8",
        )
        graph.op(
            "BIDIRECTIONAL_SEQUENCE_LSTM",
            inputs,
            outputs,
            made,
            version=version if weight.form == "int8" else 1,
        )
        return arrays

    return build


def rnn(
    *,
    operator: str = "UNIDIRECTIONAL_SEQUENCE_RNN",
    asymmetric: bool = True,
    batch: int = 2,
    aux: bool = False,
) -> Build:
    n_in, units, steps = 12, 16, 4

    def build(graph: Graph, weight: Weight, version: int) -> list[np.ndarray]:
        x = noise(batch, n_in) if operator == "RNN" else noise(steps, batch, n_in)
        inputs = [graph.input(x.shape)]
        arrays = [x]
        both = operator.startswith("BI")
        for seed in (0, 10) if both else (0,):
            inputs += [
                weight.add(graph, noise(units, n_in, seed=seed + 1) * 0.3),
                weight.add(graph, noise(units, units, seed=seed + 2) * 0.3),
            ]
            inputs += [graph.const(noise(units, seed=seed + 3)), _state(graph, batch, units)]
        if both:
            if aux:
                arrays.append(noise(steps, batch, n_in, seed=9))
                inputs.append(graph.input(arrays[1].shape))
                inputs += [weight.add(graph, noise(units, n_in, seed=i) * 0.3) for i in (30, 31)]
            else:
                inputs += [-1] * 3
        y = graph.output(graph.tensor((*x.shape[:-1], units * (2 if both else 1))))
        made: Any
        if operator == "RNN":
            made = schema.RNNOptionsT()
        elif both:
            made = _set(schema.BidirectionalSequenceRNNOptionsT(), mergeOutputs=True, timeMajor=True)
        else:
            made = _set(schema.SequenceRNNOptionsT(), timeMajor=True)
        made.fusedActivationFunction = _TANH
        made.asymmetricQuantizeInputs = asymmetric and weight.form == "int8"
        graph.op(operator, inputs, [y], made, version=version if weight.form == "int8" else 1)
        return arrays

    return build


def svdf(*, rank: int = 2, asymmetric: bool = True, bias: bool = True, time: str = "same") -> Build:
    batch, n_in, units, memory = 2, 12, 8, 6

    def build(graph: Graph, weight: Weight, version: int) -> list[np.ndarray]:
        x = noise(batch, n_in)
        filters = units * rank
        wt = noise(filters, memory, seed=2)
        inputs = [graph.input(x.shape), weight.add(graph, noise(filters, n_in, seed=1))]
        inputs.append(weight.add(graph, wt) if time == "same" else graph.const(wt))
        inputs += [graph.const(noise(units, seed=3)) if bias else -1, _state(graph, batch, memory * filters)]
        y = graph.output(graph.tensor((batch, units)))
        made = _set(
            schema.SVDFOptionsT(), rank=rank, asymmetricQuantizeInputs=asymmetric and weight.form == "int8"
        )
        graph.op("SVDF", inputs, [y], made, version=version if weight.form == "int8" else 1)
        return [x]

    return build


def conv_3d(*, transpose: bool = False) -> Build:
    def build(graph: Graph, weight: Weight, version: int) -> list[np.ndarray]:
        x = noise(1, 4, 5, 5, 6)
        made = _set(
            schema.Conv3DOptionsT(),
            padding=_SAME,
            strideW=1,
            strideH=1,
            strideD=1,
            dilationWFactor=1,
            dilationHFactor=1,
            dilationDFactor=1,
        )
        y = graph.output(graph.tensor((1, 4, 5, 5, 8)))
        if transpose:
            shape = graph.const(np.array([1, 4, 5, 5, 8], np.int32))
            w = weight.add(graph, noise(3, 3, 3, 8, 6, seed=1))
            graph.op("CONV_3D_TRANSPOSE", [shape, w, graph.input(x.shape)], [y], made, version=version)
        else:
            w = weight.add(graph, noise(3, 3, 3, 6, 8, seed=1))
            graph.op(
                "CONV_3D",
                [graph.input(x.shape), w, graph.const(noise(8, seed=2))],
                [y],
                made,
                version=version,
            )
        return [x]

    return build


def table_cases() -> list[Case]:
    """Returns the cases of every form of a table that is looked up."""
    table, positions = noise(10, 16, seed=1), np.array([3, 0, 9, 3], np.int32)
    values, scales = quantize(table, None)
    nd = Graph()
    y = nd.output(nd.tensor((4, 16)))
    rows = nd.tensor((4, 16), "int8", scales=scales)
    found = nd.input((4, 1), "int32")
    nd.op("GATHER_ND", [nd.const(values, scales), found], [rows], schema.GatherNdOptionsT(), version=2)
    nd.op("DEQUANTIZE", [rows], [y], schema.DequantizeOptionsT(), version=2)
    nd_float = Graph()
    y = nd_float.output(nd_float.tensor((4, 16)))
    found = nd_float.input((4, 1), "int32")
    nd_float.op(
        "GATHER_ND", [nd_float.const(dequantized(values, scales)), found], [y], schema.GatherNdOptionsT()
    )

    values, scales = quantize(table, 0)
    by_row = Graph()
    found = by_row.input((4,), "int32")
    rows, floats, factors = by_row.tensor((4, 16), "int8"), by_row.tensor((4, 16)), by_row.tensor((4, 1))
    y = by_row.output(by_row.tensor((4, 16)))
    by_row.op("GATHER", [by_row.const(values), found], [rows], schema.GatherOptionsT(), version=2)
    cast = _set(
        schema.CastOptionsT(), inDataType=schema.TensorType.INT8, outDataType=schema.TensorType.FLOAT32
    )
    by_row.op("CAST", [rows], [floats], cast, version=3)
    by_row.op(
        "GATHER", [by_row.const(scales.scale.reshape(10, 1)), found], [factors], schema.GatherOptionsT()
    )
    by_row.op("MUL", [floats, factors], [y], schema.MulOptionsT())
    by_row_float = Graph()
    found = by_row_float.input((4,), "int32")
    y = by_row_float.output(by_row_float.tensor((4, 16)))
    by_row_float.op(
        "GATHER", [by_row_float.const(dequantized(values, scales)), found], [y], schema.GatherOptionsT()
    )
    return [
        gather(),
        gather(axis=1),
        Case("GATHER_ND", nd.pack(), [positions.reshape(4, 1)], nd_float.pack()),
        Case("GATHER_by_row", by_row.pack(), [positions], by_row_float.pack()),
    ]


def gather(*, axis: int = 0) -> Case:
    """Returns the case of a GATHER on an int8 table whose output is dequantized."""
    table = noise(10, 16, seed=1)
    values, scales = quantize(table, None)
    x = np.array([3, 0, 9, 3], np.int32)
    shape = (4, 16) if axis == 0 else (10, 4)

    def made(quantized: bool) -> Graph:
        graph = Graph()
        options = _set(schema.GatherOptionsT(), axis=axis)
        positions = graph.input(x.shape, "int32")
        y = graph.output(graph.tensor(shape))
        if quantized:
            rows = graph.tensor(shape, "int8", scales=scales)
            graph.op("GATHER", [graph.const(values, scales), positions], [rows], options, version=2)
            graph.op("DEQUANTIZE", [rows], [y], schema.DequantizeOptionsT(), version=2)
        else:
            graph.op("GATHER", [graph.const(dequantized(values, scales)), positions], [y], options)
        return graph

    return Case(f"GATHER_axis{axis}", made(True).pack(), [x], made(False).pack())


@dataclass(frozen=True)
class X:
    """An input of the model."""

    array: np.ndarray
    dynamic: tuple[int, ...] = ()


@dataclass(frozen=True)
class W:
    """The float constant under test."""

    array: np.ndarray


@dataclass(frozen=True)
class C:
    """Any other constant."""

    array: np.ndarray


def consumer(
    operator: str,
    inputs: Sequence[X | W | C | None],
    outputs: Sequence[tuple[int, ...]],
    options: Any = None,
    *,
    version: int = 1,
    custom: str | None = None,
    custom_options: bytes = b"",
    dtype: str = "float32",
    then: str | None = None,
) -> Build:
    """Returns the builder of any operator; ``then`` names an operator that joins its output and an input."""

    def build(graph: Graph, weight: Weight, _: int) -> list[np.ndarray]:
        positions, arrays = [], []
        for value in inputs:
            if value is None:
                positions.append(-1)
            elif isinstance(value, X):
                positions.append(
                    graph.input(value.array.shape, value.array.dtype.name, dynamic=value.dynamic)
                )
                arrays.append(value.array)
            elif isinstance(value, W):
                positions.append(weight.add(graph, value.array))
            else:
                positions.append(graph.const(value.array))
        made = [graph.tensor(shape, dtype) for shape in outputs]
        graph.op(
            operator, positions, made, options, version=version, custom=custom, custom_options=custom_options
        )
        if then is not None:
            # A constant operand alone would leave the model without an input.
            x = noise(*outputs[0], seed=7)
            arrays.append(x)
            y = graph.tensor(outputs[0])
            kind = {"ADD": schema.AddOptionsT, "MUL": schema.MulOptionsT}[then]
            graph.op(then, [made[0], graph.input(x.shape)], [y], kind())
            made = [y, *made[1:]]
        for tensor in made:
            graph.output(tensor)
        return arrays

    return build


def _ints(*values: int, dtype: type = np.int32) -> np.ndarray:
    return np.array(values, dtype)


def consumers() -> dict[str, Build]:
    """Returns one builder for every operator whose float constant may be fed by DEQUANTIZE."""
    s = schema
    x, t = noise(2, 5, 6, 8), noise(2, 5, 6, 8, seed=3)
    row, table = noise(8, seed=4), noise(10, 16, seed=1)
    same = [(2, 5, 6, 8)]
    far = (t + np.sign(t)).astype(np.float32)  # Divisors that do not quantize to zero.
    paddings = np.array([[0, 0], [1, 1], [1, 1], [0, 0]], np.int32)
    flat = noise(4, 16, seed=3)

    made: dict[str, Build] = {}
    for operator, options in {
        "ADD": s.AddOptionsT(),
        "MUL": s.MulOptionsT(),
        "SUB": s.SubOptionsT(),
        "DIV": s.DivOptionsT(),
        "MINIMUM": s.MaximumMinimumOptionsT(),
        "MAXIMUM": s.MaximumMinimumOptionsT(),
        "SQUARED_DIFFERENCE": s.SquaredDifferenceOptionsT(),
        "FLOOR_DIV": s.FloorDivOptionsT(),
    }.items():
        made[operator] = consumer(operator, [X(x), W(far)], same, options)
        made[f"{operator}_row"] = consumer(operator, [X(x), W(far[0, 0, 0])], same, options)
    made["SUB_left"] = consumer("SUB", [W(t), X(x)], same, s.SubOptionsT())
    made["POW"] = consumer("POW", [X(np.abs(x)), W(t)], same, s.PowOptionsT())
    made["ADD_N"] = consumer("ADD_N", [X(x), W(t), X(t)], same, s.AddNOptionsT())
    made["PRELU"] = consumer("PRELU", [X(x), W(noise(1, 1, 8, seed=4))], same)
    made["PRELU_full"] = consumer("PRELU", [X(x), W(noise(5, 6, 8, seed=4))], same)
    concatenation = s.ConcatenationOptionsT()
    concatenation.axis = 3
    made["CONCATENATION"] = consumer("CONCATENATION", [X(x), W(t)], [(2, 5, 6, 16)], concatenation)
    concatenation0 = s.ConcatenationOptionsT()
    made["CONCATENATION_axis0"] = consumer("CONCATENATION", [X(x), W(t)], [(4, 5, 6, 8)], concatenation0)
    made["CONCATENATION_consts"] = consumer(
        "CONCATENATION", [W(x), W(t)], [(4, 5, 6, 8)], concatenation0, then="ADD"
    )
    pack = s.PackOptionsT()
    pack.valuesCount, pack.axis = 2, 1
    made["PACK"] = consumer("PACK", [X(flat), W(noise(4, 16, seed=5))], [(4, 2, 16)], pack)
    condition = noise(2, 5, 6, 8, seed=8) > 0
    made["SELECT"] = consumer("SELECT", [X(condition), W(t), X(x)], same, s.SelectOptionsT())
    made["SELECT_V2"] = consumer(
        "SELECT_V2", [X(condition), X(x), W(noise(8, seed=5))], same, s.SelectV2OptionsT()
    )
    made["WHERE_float"] = consumer("GREATER", [X(x), W(t)], same, s.GreaterOptionsT(), dtype="bool")
    made["EQUAL"] = consumer("EQUAL", [X(x), W(t)], same, s.EqualOptionsT(), dtype="bool")
    made["PAD"] = consumer("PAD", [W(t), C(paddings)], [(2, 7, 8, 8)], s.PadOptionsT(), then="ADD")
    made["PADV2"] = consumer(
        "PADV2", [X(x), C(paddings), W(_ints(3).astype(np.float32))], [(2, 7, 8, 8)], s.PadV2OptionsT()
    )
    made["MIRROR_PAD"] = consumer(
        "MIRROR_PAD", [W(t), C(paddings)], [(2, 7, 8, 8)], s.MirrorPadOptionsT(), then="ADD"
    )
    lookup = _ints(3, 0, 9, 3)
    made["GATHER"] = consumer("GATHER", [W(table), X(lookup)], [(4, 16)], s.GatherOptionsT())
    made["GATHER_const"] = consumer(
        "GATHER", [W(table), C(lookup)], [(4, 16)], s.GatherOptionsT(), then="ADD"
    )
    made["GATHER_ND"] = consumer(
        "GATHER_ND", [W(table), X(lookup.reshape(4, 1))], [(4, 16)], s.GatherNdOptionsT()
    )
    made["EMBEDDING_LOOKUP"] = embedding_lookup()
    made["TRANSPOSE_CONV"] = transpose_conv(bias=True)
    made["CONV_2D"] = conv()
    made["CONV_2D_grouped"] = conv(groups=2)
    made["CONV_2D_dilated"] = conv(dilationWFactor=2, dilationHFactor=2)
    made["DEPTHWISE_CONV_2D"] = depthwise(multiplier=2)
    made["FULLY_CONNECTED"] = fully_connected()
    made["BATCH_MATMUL"] = batch_matmul()
    made["BATCH_MATMUL_adj_y"] = batch_matmul(adj_y=True)
    made["BATCH_MATMUL_rank4"] = batch_matmul(left=(2, 3, 5, 32), right=(2, 3, 32, 16))
    made["BATCH_MATMUL_left"] = consumer(
        "BATCH_MATMUL", [W(noise(5, 32)), X(noise(32, 16))], [(5, 16)], s.BatchMatMulOptionsT()
    )
    made["CONV_3D"] = conv_3d()
    made["CONV_3D_TRANSPOSE"] = conv_3d(transpose=True)
    made["LSTM"] = lstm(operator="LSTM", projection=10, peephole=True, layer_norm=True)
    made["UNIDIRECTIONAL_SEQUENCE_LSTM"] = lstm(projection=10, peephole=True, layer_norm=True)
    made["BIDIRECTIONAL_SEQUENCE_LSTM"] = bidirectional_lstm(aux=True)
    made["RNN"] = rnn(operator="RNN")
    made["UNIDIRECTIONAL_SEQUENCE_RNN"] = rnn()
    made["BIDIRECTIONAL_SEQUENCE_RNN"] = rnn(operator="BIDIRECTIONAL_SEQUENCE_RNN")
    made["SVDF"] = svdf()
    full = s.FullyConnectedOptionsT()
    made["FULLY_CONNECTED_bias"] = consumer(
        "FULLY_CONNECTED", [X(flat), C(noise(8, 16)), W(row)], [(4, 8)], full
    )
    made["FULLY_CONNECTED_left"] = consumer(
        "FULLY_CONNECTED", [W(flat), C(noise(8, 16)), C(row)], [(4, 8)], full, then="ADD"
    )
    c2 = _set(s.Conv2DOptionsT(), strideW=1, strideH=1, dilationWFactor=1, dilationHFactor=1)
    made["CONV_2D_bias"] = consumer("CONV_2D", [X(x), C(noise(8, 3, 3, 8)), W(row)], same, c2)
    d2 = _set(
        s.DepthwiseConv2DOptionsT(),
        strideW=1,
        strideH=1,
        dilationWFactor=1,
        dilationHFactor=1,
        depthMultiplier=1,
    )
    made["DEPTHWISE_CONV_2D_bias"] = consumer(
        "DEPTHWISE_CONV_2D", [X(x), C(noise(1, 3, 3, 8)), W(row)], same, d2
    )
    made["SLICE"] = consumer(
        "SLICE",
        [W(t), C(_ints(0, 1, 0, 0)), C(_ints(2, 2, 6, 8))],
        [(2, 2, 6, 8)],
        s.SliceOptionsT(),
        then="ADD",
    )
    made["STRIDED_SLICE"] = consumer(
        "STRIDED_SLICE",
        [W(t), C(_ints(0, 1, 0, 0)), C(_ints(2, 3, 6, 8)), C(_ints(1, 1, 1, 1))],
        [(2, 2, 6, 8)],
        s.StridedSliceOptionsT(),
        then="ADD",
    )
    made["RESHAPE"] = consumer(
        "RESHAPE", [W(t), C(_ints(2, 30, 8))], [(2, 30, 8)], s.ReshapeOptionsT(), then="ADD"
    )
    made["TRANSPOSE"] = consumer(
        "TRANSPOSE", [W(t), C(_ints(0, 2, 1, 3))], [(2, 6, 5, 8)], s.TransposeOptionsT(), then="ADD"
    )
    made["EXPAND_DIMS"] = consumer(
        "EXPAND_DIMS", [W(flat), C(_ints(0))], [(1, 4, 16)], s.ExpandDimsOptionsT(), then="ADD"
    )
    squeeze = s.SqueezeOptionsT()
    squeeze.squeezeDims = [0]
    made["SQUEEZE"] = consumer("SQUEEZE", [W(noise(1, 4, 16))], [(4, 16)], squeeze, then="ADD")
    made["FILL"] = consumer(
        "FILL", [C(_ints(2, 3)), W(np.array(2.5, np.float32))], [(2, 3)], s.FillOptionsT(), then="ADD"
    )
    scalar = [W(np.array(value, np.float32)) for value in (0, 5, 1)]
    made["RANGE"] = consumer("RANGE", scalar, [(5,)], s.RangeOptionsT(), then="ADD")
    made["ONE_HOT"] = consumer(
        "ONE_HOT",
        [X(lookup), C(np.array(10, np.int32)), W(np.array(2, np.float32)), W(np.array(-1, np.float32))],
        [(4, 10)],
        _set(s.OneHotOptionsT(), axis=-1),
    )
    made["BROADCAST_TO"] = consumer(
        "BROADCAST_TO",
        [W(noise(1, 16)), C(_ints(4, 16))],
        [(4, 16)],
        s.BroadcastToOptionsT(),
        version=2,
        then="ADD",
    )
    made["TILE"] = consumer("TILE", [W(flat), C(_ints(2, 1))], [(8, 16)], s.TileOptionsT(), then="ADD")
    made["DYNAMIC_UPDATE_SLICE"] = consumer(
        "DYNAMIC_UPDATE_SLICE",
        [W(table), X(noise(2, 16)), X(_ints(3, 0))],
        [(10, 16)],
        s.DynamicUpdateSliceOptionsT(),
    )
    made["DYNAMIC_UPDATE_SLICE_update"] = consumer(
        "DYNAMIC_UPDATE_SLICE",
        [X(table), W(noise(2, 16)), C(_ints(3, 0))],
        [(10, 16)],
        s.DynamicUpdateSliceOptionsT(),
    )
    made["SCATTER_ND"] = consumer(
        "SCATTER_ND",
        [X(_ints(1, 3, 5).reshape(3, 1)), W(noise(3, 16)), C(_ints(10, 16))],
        [(10, 16)],
        s.ScatterNdOptionsT(),
    )
    split = s.SplitOptionsT()
    split.numSplits = 2
    made["SPLIT"] = consumer(
        "SPLIT", [C(np.array(0, np.int32)), W(flat)], [(2, 16), (2, 16)], split, then="ADD"
    )
    made["SPLIT_V"] = consumer(
        "SPLIT_V",
        [W(flat), C(_ints(1, 3)), C(np.array(0, np.int32))],
        [(1, 16), (3, 16)],
        _set(s.SplitVOptionsT(), numSplits=2),
        then="ADD",
    )
    made["UNPACK"] = consumer(
        "UNPACK", [W(noise(2, 16))], [(16,), (16,)], _set(s.UnpackOptionsT(), num=2), then="ADD"
    )
    made["SUM"] = consumer("SUM", [W(flat), C(_ints(0))], [(16,)], s.ReducerOptionsT(), then="ADD")
    made["MEAN"] = consumer("MEAN", [W(flat), C(_ints(0))], [(16,)], s.ReducerOptionsT(), then="ADD")
    made["CUMSUM"] = consumer(
        "CUMSUM", [W(flat), C(np.array(0, np.int32))], [(4, 16)], s.CumsumOptionsT(), then="ADD"
    )
    made["MUL_consts"] = consumer(
        "MUL", [W(flat), W(noise(4, 16, seed=6))], [(4, 16)], s.MulOptionsT(), then="ADD"
    )
    made["TANH"] = consumer("TANH", [W(flat)], [(4, 16)], then="ADD")
    made["CAST"] = consumer(
        "CAST", [W(flat)], [(4, 16)], _set(s.CastOptionsT(), inDataType=0, outDataType=0), then="ADD"
    )
    made["SPARSE_TO_DENSE"] = consumer(
        "SPARSE_TO_DENSE",
        [X(_ints(1, 3)), C(_ints(8)), W(noise(2)), C(np.array(0, np.float32))],
        [(8,)],
        s.SparseToDenseOptionsT(),
    )
    made["L2_NORMALIZATION"] = consumer(
        "L2_NORMALIZATION", [W(flat)], [(4, 16)], s.L2NormOptionsT(), then="ADD"
    )
    made["MATRIX_SET_DIAG"] = consumer(
        "MATRIX_SET_DIAG", [X(noise(4, 4)), W(noise(4))], [(4, 4)], s.MatrixSetDiagOptionsT()
    )
    made["SEGMENT_SUM"] = consumer(
        "SEGMENT_SUM", [W(flat), C(_ints(0, 0, 1, 1))], [(2, 16)], s.SegmentSumOptionsT(), then="ADD"
    )
    made["RESIZE_BILINEAR"] = consumer(
        "RESIZE_BILINEAR", [W(t), C(_ints(10, 12))], [(2, 10, 12, 8)], s.ResizeBilinearOptionsT(), then="ADD"
    )
    made["REVERSE_V2"] = consumer(
        "REVERSE_V2", [W(flat), C(_ints(0))], [(4, 16)], s.ReverseV2OptionsT(), then="ADD"
    )
    return made


def variants(operator: str, *, asymmetric: bool) -> dict[str, Build]:
    """Returns the variants of a hybrid operator that its row says are right."""
    if operator == "CONV_2D":
        return {
            "plain": conv(),
            "batch": conv(batch=3),
            "dilated": conv(dilationWFactor=2, dilationHFactor=2),
            "strided": conv(strideW=2, strideH=2),
            "grouped": conv(groups=2),
            "zero_bias": conv(bias="zero"),
            "1x1": conv(kernel=1, batch=3),
            "relu": conv(fusedActivationFunction=_RELU),
            "dynamic_batch": conv(batch=2, dynamic=(0,)),
            "dynamic_size": conv(dynamic=(1, 2)),
            "zero_channels": conv(zero=True),
            "far_from_zero": conv(offset=3.0),
            "odd": conv(channels=7, out=5),
            "one_channel": conv(out=1),
        }
    if operator == "DEPTHWISE_CONV_2D":
        return {
            "plain": depthwise(),
            "batch": depthwise(batch=3),
            "dilated": depthwise(dilationWFactor=2, dilationHFactor=2),
            "strided": depthwise(strideW=2, strideH=2),
            "multiplier": depthwise(multiplier=2),
            "multiplier_of_one": depthwise(channels=1, multiplier=8),
            "one_channel": depthwise(channels=1),
            "dynamic_batch": depthwise(dynamic=(0,)),
            "zero_channels": depthwise(zero=True),
        }
    if operator == "FULLY_CONNECTED":
        made = {
            "plain": fully_connected(asymmetric=asymmetric),
            "one_row": fully_connected(shape=(1, 32), asymmetric=asymmetric),
            "keep_num_dims": fully_connected(shape=(2, 3, 32), keep=True, asymmetric=asymmetric),
            "rank3": fully_connected(shape=(2, 3, 32), asymmetric=asymmetric),
            "no_bias": fully_connected(bias="none", asymmetric=asymmetric),
            "absent_bias": fully_connected(bias="absent", asymmetric=asymmetric),
            "odd": fully_connected(shape=(3, 33), out=5, asymmetric=asymmetric),
            "one_channel": fully_connected(out=1, asymmetric=asymmetric),
            "zero_channels": fully_connected(zero=True, asymmetric=asymmetric),
            "dynamic_batch": fully_connected(dynamic=(0,), asymmetric=asymmetric),
            "far_from_zero": fully_connected(offset=3.0, asymmetric=asymmetric),
        }
        return made
    if operator == "BATCH_MATMUL":
        made = {}
        for adj_y in (False, True):
            kind = "transposed_" if adj_y else ""
            kinds_of_shape: dict[str, dict[str, Any]] = {
                "plain": {},
                "rank2": {"left": (5, 32)},
                "batched": {"right": (2, 32, 16)},
                "broadcast_left": {"left": (1, 3, 5, 32), "right": (3, 32, 16)},
                "rank4": {"left": (2, 1, 5, 32), "right": (2, 1, 32, 16)},
            }
            for name, shapes in kinds_of_shape.items():
                made[kind + name] = batch_matmul(adj_y=adj_y, asymmetric=asymmetric, **shapes)
            made[kind + "zero_channels"] = batch_matmul(adj_y=adj_y, asymmetric=asymmetric, zero=True)
            made[kind + "adj_x"] = batch_matmul(
                adj_y=adj_y, asymmetric=asymmetric, left=(2, 32, 5), adj_x=True
            )
        return made
    if operator == "TRANSPOSE_CONV":
        return {
            "plain": transpose_conv(),
            "bias": transpose_conv(bias=True),
            "stride1": transpose_conv(stride=1),
            "zero_channels": transpose_conv(zero=True),
        }
    if operator == "EMBEDDING_LOOKUP":
        return {
            "plain": embedding_lookup(),
            "rank3": embedding_lookup(rank=3),
            "zero": embedding_lookup(zero=True),
        }
    if operator in ("LSTM", "UNIDIRECTIONAL_SEQUENCE_LSTM"):
        kinds: dict[str, dict[str, Any]] = {
            "plain": {},
            "one": {"batch": 1},
            "cifg": {"cifg": True},
            "peephole": {"peephole": True},
            "projection": {"projection": 10},
            "layer_norm": {"layer_norm": True},
            "everything": {"projection": 10, "projection_bias": True, "peephole": True, "layer_norm": True},
            "cifg_everything": {"cifg": True, "projection": 10, "peephole": True, "layer_norm": True},
        }
        return {name: lstm(operator=operator, asymmetric=asymmetric, **kind) for name, kind in kinds.items()}
    if operator == "BIDIRECTIONAL_SEQUENCE_LSTM":
        kinds = {
            "plain": {},
            "cifg": {"cifg": True},
            "peephole": {"peephole": True},
            "projection": {"projection": 10},
            "separate": {"merge": False},
            "auxiliary": {"aux": True},
        }
        return {name: bidirectional_lstm(asymmetric=asymmetric, **kind) for name, kind in kinds.items()}
    if operator in ("RNN", "UNIDIRECTIONAL_SEQUENCE_RNN"):
        return {
            "plain": rnn(operator=operator, asymmetric=asymmetric),
            "one": rnn(operator=operator, asymmetric=asymmetric, batch=1),
        }
    if operator == "SVDF":
        return {
            "plain": svdf(asymmetric=asymmetric),
            "rank1": svdf(asymmetric=asymmetric, rank=1),
            "no_bias": svdf(asymmetric=asymmetric, bias=False),
        }
    raise KeyError(operator)


def with_scale(build: Build, axis: int | None, version: int, name: str, factor: float) -> Case:
    """Returns a case whose first scale is multiplied by ``factor``, in the float twin too."""

    class Scaled(Weight):
        def add(self, graph: Graph, values: np.ndarray) -> int:
            quantized, scales = quantize(values, self.axis)
            scale = scales.scale.copy()
            scale[0] *= np.float32(factor)
            scales = Scales(scale, scales.axis)
            if self.form == "float":
                return graph.const(dequantized(quantized, scales))
            return graph.const(quantized, scales)

    quantized, reference = Graph(), Graph()
    inputs = build(quantized, Scaled("int8", axis), version)
    build(reference, Scaled("float", axis), 1)
    return Case(name, quantized.pack(), inputs, reference.pack())


class EqualScales(Weight):
    """Per-channel scales that are all the same."""

    def add(self, graph: Graph, values: np.ndarray) -> int:
        assert self.axis is not None
        quantized, scales = quantize(values, None)
        repeated = Scales(np.repeat(scales.scale, values.shape[self.axis]), self.axis)
        return (
            graph.const(dequantized(quantized, scales))
            if self.form == "float"
            else graph.const(quantized, repeated)
        )


class FirstOnly(Weight):
    """Int8 for the first weight of the operator, floats for the others."""

    def add(self, graph: Graph, values: np.ndarray) -> int:
        form, self.form = self.form, "float"
        return Weight(form, self.axis).add(graph, values)


def fully_connected_without_shape() -> Build:
    """Returns a FULLY_CONNECTED whose input's shape the file does not say."""

    def build(graph: Graph, weight: Weight, version: int) -> list[np.ndarray]:
        x = noise(4, 32)
        unknown = graph.tensor(())
        axis = graph.const(np.array([0], np.int32))
        graph.op("REVERSE_V2", [graph.input(x.shape), axis], [unknown], schema.ReverseV2OptionsT())
        y = graph.output(graph.tensor((4, 16)))
        made = _set(schema.FullyConnectedOptionsT(), asymmetricQuantizeInputs=weight.form == "int8")
        inputs = [unknown, weight.add(graph, noise(16, 32, seed=1)), graph.const(noise(16, seed=2))]
        graph.op("FULLY_CONNECTED", inputs, [y], made, version=version if weight.form == "int8" else 1)
        return [x]

    return build


def shared_by_two_axes() -> Build:
    """Returns one weight read by FULLY_CONNECTED (channels on axis 0) and then BATCH_MATMUL (on axis 1)."""

    def build(graph: Graph, weight: Weight, _: int) -> list[np.ndarray]:
        hybrid = weight.form == "int8"
        shared = weight.add(graph, noise(16, 32, seed=1))
        first, second = noise(4, 32), noise(4, 16, seed=5)
        y = graph.output(graph.tensor((4, 16)))
        full = _set(schema.FullyConnectedOptionsT(), asymmetricQuantizeInputs=hybrid)
        inputs = [graph.input(first.shape), shared, graph.const(noise(16, seed=2))]
        graph.op("FULLY_CONNECTED", inputs, [y], full, version=9 if hybrid else 1)
        y = graph.output(graph.tensor((4, 32)))
        matmul = _set(schema.BatchMatMulOptionsT(), asymmetricQuantizeInputs=hybrid)
        graph.op("BATCH_MATMUL", [graph.input(second.shape), shared], [y], matmul, version=4 if hybrid else 1)
        return [first, second]

    return build


def constant_output() -> Build:
    """Returns an ADD whose constant operand is an output of the subgraph too."""

    def build(graph: Graph, weight: Weight, _: int) -> list[np.ndarray]:
        x = noise(4, 16)
        constant = weight.add(graph, noise(4, 16, seed=3))
        y = graph.output(graph.tensor((4, 16)))
        graph.op("ADD", [graph.input(x.shape), constant], [y], schema.AddOptionsT())
        graph.output(constant)
        return [x]

    return build


def chain() -> Build:
    """Returns a CONV_2D whose filter is stored in another shape: constant, (DEQUANTIZE,) RESHAPE, CONV_2D."""

    def build(graph: Graph, weight: Weight, _: int) -> list[np.ndarray]:
        x = noise(1, 9, 9, 8)
        stored = weight.add(graph, noise(64, 36, seed=3))
        shape = np.array([32, 3, 3, 8], np.int32)
        kernel = graph.tensor((32, 3, 3, 8))
        reshape = _set(schema.ReshapeOptionsT(), newShape=shape.tolist())
        graph.op("RESHAPE", [stored, graph.const(shape)], [kernel], reshape)
        y = graph.output(graph.tensor((1, 9, 9, 32)))
        made = _set(schema.Conv2DOptionsT(), strideW=1, strideH=1, dilationWFactor=1, dilationHFactor=1)
        graph.op("CONV_2D", [graph.input(x.shape), kernel, graph.const(noise(32, seed=2))], [y], made)
        return [x]

    return build


def two_readers() -> Build:
    """Returns one constant read by an operator that XNNPACK takes and by one that it does not."""

    def build(graph: Graph, weight: Weight, _: int) -> list[np.ndarray]:
        x = noise(4, 16)
        constant, given = weight.add(graph, noise(4, 16, seed=3)), graph.input(x.shape)
        y = graph.output(graph.tensor((4, 16)))
        graph.op("ADD", [given, constant], [y], schema.AddOptionsT())
        turned, y = graph.tensor((4, 16)), graph.output(graph.tensor((4, 16)))
        axis = graph.const(np.array([0], np.int32))
        graph.op("REVERSE_V2", [constant, axis], [turned], schema.ReverseV2OptionsT())
        graph.op("ADD", [given, turned], [y], schema.AddOptionsT())
        return [x]

    return build


def detection_post_process() -> Build:
    """Returns the custom operator with its anchors as the constant."""
    builder = flexbuffers.Builder()
    with builder.Map():
        for key, count in (("max_detections", 5), ("max_classes_per_detection", 1), ("num_classes", 3)):
            builder.Key(key)
            builder.Int(count)
        for key, value in (
            ("nms_score_threshold", 0.1),
            ("nms_iou_threshold", 0.6),
            ("y_scale", 10.0),
            ("x_scale", 10.0),
            ("h_scale", 5.0),
            ("w_scale", 5.0),
        ):
            builder.Key(key)
            builder.Float(value)
    boxes, scores, anchors = noise(1, 20, 4) * 0.1, np.abs(noise(1, 20, 4)), np.abs(noise(20, 4, seed=3))
    return consumer(
        "CUSTOM",
        [X(boxes), X(scores), W(anchors)],
        [(1, 5, 4), (1, 5), (1, 5), (1,)],
        custom="TFLite_Detection_PostProcess",
        custom_options=bytes(builder.Finish()),
    )


def control(kind: str, axis: int | None) -> Case:
    """Returns the case of a constant that control flow, a variable or a composite reads."""

    def made(form: str) -> bytes:
        weight = Weight(form, axis)
        graph, values = Graph(), noise(4, 16, seed=3)
        others: list[Graph] = []
        x = graph.input((4, 16))

        def body(operator: str, options: Any) -> Graph:
            inner = graph.sibling()
            operands = [inner.input((4, 16)), inner.input((4, 16))]
            inner.op(operator, operands, [inner.output(inner.tensor((4, 16)))], options)
            return inner

        if kind.startswith("WHILE"):
            inside = kind == "WHILE_body"
            operands = [graph.const(np.array(0, np.int32)), x]
            if not inside:
                operands.append(weight.add(graph, values))
            results = [graph.tensor((), "int32")] + [graph.tensor((4, 16)) for _ in operands[1:]]
            loop = _set(schema.WhileOptionsT(), condSubgraphIndex=1, bodySubgraphIndex=2)
            graph.op("WHILE", operands, results, loop)
            for result in results[1:]:
                graph.output(result)
            condition, step = graph.sibling(), graph.sibling()
            arguments = [condition.input((), "int32"), *(condition.input((4, 16)) for _ in operands[1:])]
            limit = condition.const(np.array(3, np.int32))
            go_on = condition.output(condition.tensor((), "bool"))
            condition.op("LESS", [arguments[0], limit], [go_on], schema.LessOptionsT())
            arguments = [step.input((), "int32"), *(step.input((4, 16)) for _ in operands[1:])]
            one, more = step.const(np.array(1, np.int32)), step.output(step.tensor((), "int32"))
            step.op("ADD", [arguments[0], one], [more], schema.AddOptionsT())
            right = weight.add(step, values) if inside else arguments[2]
            step.op("ADD", [arguments[1], right], [step.output(step.tensor((4, 16)))], schema.AddOptionsT())
            if not inside:
                step.output(arguments[2])
            others = [condition, step]
        elif kind == "IF":
            branches = _set(schema.IfOptionsT(), thenSubgraphIndex=1, elseSubgraphIndex=2)
            operands = [graph.const(np.array(True)), x, weight.add(graph, values)]
            graph.op("IF", operands, [graph.output(graph.tensor((4, 16)))], branches)
            others = [body("ADD", schema.AddOptionsT()), body("MUL", schema.MulOptionsT())]
        elif kind == "STABLEHLO_COMPOSITE":
            composite = _set(
                schema.StableHLOCompositeOptionsT(), name="own.add", decompositionSubgraphIndex=1
            )
            attributes = flexbuffers.Builder()
            with attributes.Map():
                pass
            composite.compositeAttributes = list(attributes.Finish())
            operands = [x, weight.add(graph, values)]
            graph.op(kind, operands, [graph.output(graph.tensor((4, 16)))], composite)
            others = [body("ADD", schema.AddOptionsT())]
        elif kind == "ASSIGN_VARIABLE":
            handle = graph.tensor((1,), "resource")
            options = _set(schema.VarHandleOptionsT(), container="c", sharedName="v")
            graph.op("VAR_HANDLE", [], [handle], options)
            graph.op(kind, [handle, weight.add(graph, values)], [], schema.AssignVariableOptionsT())
            value = graph.tensor((4, 16))
            graph.op("READ_VARIABLE", [handle], [value], schema.ReadVariableOptionsT())
            graph.op("ADD", [value, x], [graph.output(graph.tensor((4, 16)))], schema.AddOptionsT())
        return graph.pack(*others)

    return Case(
        f"{kind}-{'channel' if axis is not None else 'tensor'}",
        made("dequantize"),
        [noise(4, 16)],
        made("float"),
    )


CONTROLS = ("WHILE", "WHILE_body", "IF", "STABLEHLO_COMPOSITE", "ASSIGN_VARIABLE")


def packed(bits: int, axis: int | None, version: int) -> Case:
    """Returns the case of an int4 or int2 filter behind DEQUANTIZE."""
    values = noise(16, 3, 3, 8, seed=1)
    top = 2 ** (bits - 1) - 1
    peak = np.abs(values).max(axis=None if axis is None else (1, 2, 3))
    scales = Scales(np.atleast_1d(peak / top).astype(np.float32))
    shape = (-1, 1, 1, 1) if axis is not None else (1, 1, 1, 1)
    small = np.clip(np.round(values / scales.scale.reshape(shape)), -top, top).astype(np.int8)
    parts = (small.reshape(-1, 8 // bits).view(np.uint8) & (2**bits - 1)).astype(np.uint8)
    data = np.bitwise_or.reduce(parts << (bits * np.arange(8 // bits)).astype(np.uint8), axis=1).astype(
        np.uint8
    )

    def made(quantized: bool) -> bytes:
        graph = Graph()
        if quantized:
            stored = graph.tensor(values.shape, f"int{bits}", data=data, scales=scales)
            kernel = graph.tensor(values.shape)
            graph.op("DEQUANTIZE", [stored], [kernel], schema.DequantizeOptionsT(), version=version)
        else:
            kernel = graph.const(dequantized(small, scales))
        y = graph.output(graph.tensor((1, 9, 9, 16)))
        options = _set(schema.Conv2DOptionsT(), strideW=1, strideH=1, dilationWFactor=1, dilationHFactor=1)
        inputs = [graph.input((1, 9, 9, 8)), kernel, graph.const(noise(16, seed=2))]
        graph.op("CONV_2D", inputs, [y], options)
        return graph.pack()

    name = f"INT{bits}-{'channel' if axis is not None else 'tensor'}"
    return Case(name, made(True), [noise(1, 9, 9, 8)], made(False))


def probe(operator: str, version: int) -> Case:
    """Returns a model that names an operator version without using it: it loads where that is registered."""
    graph = Graph()
    graph.output(graph.input((1,)))
    graph.codes.append((getattr(schema.BuiltinOperator, operator), version, None))
    return Case(f"{operator}@{version}", graph.pack(), [noise(1)])
