"""Models whose weights are int4, int2 or in blocks, each with the float model that says what is right."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from .cases import Build, Weight, noise
from .measure import Case
from .single_op import Graph, Scales


@dataclass(frozen=True)
class Packed:
    """Integers within their bits, and their scales.

    Attributes:
        values: Of the weight's shape.
        bits: 4 or 2.
        scale: One; one for each index along ``axis``; or ``[rows, blocks]`` with a block length.
        axis: Of the scales.
        block: Elements of a block, or None.
    """

    values: np.ndarray
    bits: int
    scale: np.ndarray
    axis: int = 0
    block: int | None = None

    def floats(self) -> np.ndarray:
        """What they mean."""
        if self.block is not None:
            steps = np.repeat(self.scale.astype(np.float32), self.block, axis=1)
        else:
            shape = [1] * self.values.ndim
            shape[self.axis] = self.scale.size
            steps = self.scale.reshape(shape)
        return (self.values * steps).astype(np.float32)

    def add(self, graph: Graph) -> int:
        """Adds the constant."""
        each = 8 // self.bits
        flat = np.zeros(-(-self.values.size // each) * each, np.uint8)
        flat[: self.values.size] = self.values.reshape(-1).astype(np.uint8) & (2**self.bits - 1)
        data = np.zeros(flat.size // each, np.uint8)
        for place in range(each):
            data |= flat[place::each] << np.uint8(self.bits * place)
        kind = f"int{self.bits}"
        if self.block is None:
            return graph.tensor(self.values.shape, kind, data=data, scales=Scales(self.scale, self.axis))
        table = graph.const(self.scale.astype(np.float16))
        made = graph.tensor(self.values.shape, kind, data=data)
        details = schema.BlockwiseQuantizationT()
        details.scales, details.zeroPoints, details.blockSize = table, -1, self.block
        quantization = schema.QuantizationParametersT()
        quantization.detailsType = schema.QuantizationDetails.BlockwiseQuantization
        quantization.details = details
        graph.tensors[made].quantization = quantization
        return made


def packed(
    shape: tuple[int, ...],
    bits: int,
    granularity: str,
    *,
    axis: int = 0,
    block: int = 32,
    lowest: bool = False,
) -> Packed:
    """Returns seeded weights; ``lowest``: with the lowest integer, as no narrow range has it."""
    random = np.random.default_rng(sum(shape) + bits)
    high = 2 ** (bits - 1) - 1
    values = random.integers(-high - lowest, high + 1, shape)
    values.reshape(-1)[:2] = (-high - lowest, high)
    if granularity == "block":
        scale = random.uniform(0.01, 0.02, (shape[0], shape[1] // block)).astype(np.float16)
        return Packed(values, bits, scale, 0, block)
    count = shape[axis] if granularity == "channel" else 1
    return Packed(values, bits, random.uniform(0.01, 0.02, count).astype(np.float32), axis)


def dense_case(name: str, weight: Packed, version: int, *, batch: int = 3, bias: bool = True) -> Case:
    """FULLY_CONNECTED."""
    rows, columns = weight.values.shape
    x, b = noise(batch, columns), noise(rows, seed=2)

    def made(quantized: bool) -> bytes:
        graph = Graph()
        source = graph.input(x.shape)
        kernel = weight.add(graph) if quantized else graph.const(weight.floats())
        options = schema.FullyConnectedOptionsT()
        options.asymmetricQuantizeInputs = quantized
        y = graph.output(graph.tensor((batch, rows)))
        inputs = [source, kernel, graph.const(b) if bias else -1]
        graph.op("FULLY_CONNECTED", inputs, [y], options, version=version if quantized else 6)
        return graph.pack()

    return Case(name, made(True), [x], made(False))


def conv_case(name: str, weight: Packed, version: int, *, stride: int = 1) -> Case:
    """CONV_2D."""
    out, _, _, channels = weight.values.shape
    x, b = noise(1, 7, 7, channels), noise(out, seed=2)
    size = -(-7 // stride)

    def made(quantized: bool) -> bytes:
        graph = Graph()
        source = graph.input(x.shape)
        kernel = weight.add(graph) if quantized else graph.const(weight.floats())
        options = schema.Conv2DOptionsT()
        options.strideW = options.strideH = stride
        options.dilationWFactor = options.dilationHFactor = 1
        y = graph.output(graph.tensor((1, size, size, out)))
        graph.op(
            "CONV_2D", [source, kernel, graph.const(b)], [y], options, version=version if quantized else 1
        )
        return graph.pack()

    return Case(name, made(True), [x], made(False))


def embedding_case(name: str, weight: Packed, version: int) -> Case:
    """EMBEDDING_LOOKUP."""
    x = np.array([3, 0, weight.values.shape[0] - 1, 3], np.int32)

    def made(quantized: bool) -> bytes:
        graph = Graph()
        source = graph.input(x.shape, "int32")
        table = weight.add(graph) if quantized else graph.const(weight.floats())
        y = graph.output(graph.tensor((4, *weight.values.shape[1:])))
        graph.op("EMBEDDING_LOOKUP", [source, table], [y], version=version if quantized else 1)
        return graph.pack()

    return Case(name, made(True), [x], made(False))


def expanded_case(name: str, bits: int, *, block: int = 32) -> Case:
    """Blocks of integers and float16 scales: DEQUANTIZE both, MUL, RESHAPE, FULLY_CONNECTED."""
    rows, columns = 24, 96
    count = rows * columns // block
    random = np.random.default_rng(bits)
    top = 2 ** (bits - 1) - 1
    values = random.integers(-top - (bits < 8), top + 1, (count, block))
    scales = random.uniform(0.5, 1, (count, 1)).astype(np.float16)
    factor = np.array([2.0**-5], np.float32)
    weights = (values * factor * scales.astype(np.float32)).reshape(rows, columns).astype(np.float32)
    x = noise(2, columns)

    def made(quantized: bool) -> bytes:
        graph = Graph()
        source = graph.input(x.shape)
        if quantized:
            if bits == 8:
                stored = graph.const(values.astype(np.int8), Scales(factor))
            else:
                stored = Packed(values, bits, factor).add(graph)
            steps, factors = graph.tensor(values.shape), graph.tensor(scales.shape)
            flat, kernel = graph.tensor(values.shape), graph.tensor(weights.shape)
            version = {8: 2, 4: 6, 2: 7}[bits]
            graph.op("DEQUANTIZE", [stored], [steps], schema.DequantizeOptionsT(), version=version)
            table = graph.const(scales)
            graph.op("DEQUANTIZE", [table], [factors], schema.DequantizeOptionsT(), version=3)
            graph.op("MUL", [steps, factors], [flat], schema.MulOptionsT())
            options = schema.ReshapeOptionsT()
            options.newShape = list(weights.shape)
            shape = graph.const(np.array(weights.shape, np.int32))
            graph.op("RESHAPE", [flat, shape], [kernel], options)
        else:
            kernel = graph.const(weights)
        y = graph.output(graph.tensor((2, rows)))
        graph.op("FULLY_CONNECTED", [source, kernel, -1], [y], schema.FullyConnectedOptionsT(), version=6)
        return graph.pack()

    return Case(name, made(True), [x], made(False))


@dataclass
class PackedWeight(Weight):
    """The weight of a model in the making: packed integers in place, or the equal floats.

    Attributes:
        bits: Of an integer.
    """

    bits: int = 4

    def add(self, graph: Graph, values: np.ndarray) -> int:
        """Rounds to the bits, with scales along the axis, and adds the result."""
        high = 2 ** (self.bits - 1) - 1
        others = tuple(axis for axis in range(values.ndim) if axis != self.axis)
        peak = np.abs(values).max(axis=others if self.axis is not None else None)
        scale = np.atleast_1d(np.where(peak > 0, peak / high, 1)).astype(np.float32)
        shape = [1] * values.ndim
        shape[self.axis or 0] = scale.size
        rounded = np.clip(np.round(values / scale.reshape(shape)), -high, high).astype(np.int64)
        weight = Packed(rounded, self.bits, scale, self.axis or 0)
        return graph.const(weight.floats()) if self.form == "float" else weight.add(graph)


def variant_case(name: str, build: Build, bits: int, axis: int | None, version: int) -> Case:
    """Returns one of the variants of a hybrid operator with packed weights."""
    quantized, reference = Graph(), Graph()
    inputs = build(quantized, PackedWeight("int8", axis, bits=bits), version)
    build(reference, PackedWeight("float", axis, bits=bits), 1)
    return Case(name, quantized.pack(), inputs, reference.pack())
