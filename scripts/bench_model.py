"""Writes the model of the benchmarks: ResNet-50's layers with seeded weights, about 100 MB.

    python scripts/bench_model.py OUT [SEED]

A program of its own: the peak memory of a process counts that of its parent at the fork, so what times
others must be small.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tfl_rewrite.files.source import save
from tfl_rewrite.flatbuf.record import Record
from tfl_rewrite.model.blob import OwnedBlob
from tfl_rewrite.model.ir import (
    Buffer,
    Model,
    Operator,
    OperatorCode,
    Signature,
    SubGraph,
    Tensor,
    new_record,
    operator_number,
    schema,
)

# ResNet-50 (He et al. 2015, table 1): (blocks, width, out channels, stride) of each stage.
STAGES = ((3, 64, 256, 1), (4, 128, 512, 2), (6, 256, 1024, 2), (3, 512, 2048, 2))
FLOAT32 = 0
RELU = 1


class Net:
    """Builds a float model layer by layer with seeded weights."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.graph = SubGraph([], [], [], [], "main")
        self.model = Model([], [self.graph], [Buffer()])
        self.codes: dict[str, OperatorCode] = {}

    def tensor(self, name: str, shape: Sequence[int], data: bytes | None = None) -> Tensor:
        buffer = self.model.buffers[0]
        if data is not None:
            buffer = Buffer(OwnedBlob(data))
            self.model.buffers.append(buffer)
        made = Tensor(name, tuple(shape), FLOAT32, buffer)
        self.graph.tensors.append(made)
        return made

    def weights(self, name: str, shape: Sequence[int], spread: float) -> Tensor:
        values = self.random.standard_normal(tuple(shape), dtype=np.float32) * np.float32(spread)
        return self.tensor(name, shape, values.tobytes())

    def add(
        self, kind: str, table: str, options: dict[str, object], inputs: list[Tensor], output: Tensor
    ) -> Tensor:
        code = self.codes.get(kind)
        if code is None:
            code = self.codes[kind] = OperatorCode(operator_number(kind))
            self.model.operator_codes.append(code)
        number = schema().enums["BuiltinOptions"].values[table]
        rest = new_record("Operator").replace(builtin_options_type=number)
        record = Record(schema().tables[table], options)
        self.graph.operators.append(Operator(code, [*inputs], [output], [], record, rest=rest))
        return output

    def conv(
        self, name: str, source: Tensor, channels: int, kernel: int, stride: int, *, relu: bool
    ) -> Tensor:
        _, height, width, depth = source.shape or ()
        weight = self.weights(
            f"{name}/kernel", (channels, kernel, kernel, depth), (2 / (kernel**2 * depth)) ** 0.5
        )
        bias = self.weights(f"{name}/bias", (channels,), 0.01)
        output = self.tensor(name, (1, -(-height // stride), -(-width // stride), channels))
        options = {
            "stride_w": stride,
            "stride_h": stride,
            "fused_activation_function": RELU if relu else 0,
        }
        return self.add("CONV_2D", "Conv2DOptions", options, [source, weight, bias], output)


def resnet50(path: Path, seed: int) -> None:
    """Writes the model: input [1, 224, 224, 3], output [1, 1000]."""
    net = Net(seed)
    image = net.tensor("image", (1, 224, 224, 3))
    net.graph.inputs.append(image)
    current = net.conv("stem", image, 64, 7, 2, relu=True)
    pooled = net.tensor("stem/pool", (1, 56, 56, 64))
    options = {"stride_w": 2, "stride_h": 2, "filter_width": 3, "filter_height": 3}
    current = net.add("MAX_POOL_2D", "Pool2DOptions", options, [current], pooled)
    for stage, (blocks, width, channels, first_stride) in enumerate(STAGES):
        for block in range(blocks):
            name, stride = f"stage{stage}/block{block}", first_stride if block == 0 else 1
            shortcut = current
            if block == 0:
                shortcut = net.conv(f"{name}/shortcut", current, channels, 1, stride, relu=False)
            inner = net.conv(f"{name}/a", current, width, 1, stride, relu=True)
            inner = net.conv(f"{name}/b", inner, width, 3, 1, relu=True)
            inner = net.conv(f"{name}/c", inner, channels, 1, 1, relu=False)
            output = net.tensor(f"{name}/sum", inner.shape or ())
            options = {"fused_activation_function": RELU}
            current = net.add("ADD", "AddOptions", options, [inner, shortcut], output)
    axes = Tensor("axes", (2,), 2, Buffer(OwnedBlob(np.array([1, 2], "<i4").tobytes())))
    net.model.buffers.append(axes.buffer)
    net.graph.tensors.append(axes)
    mean = net.tensor("mean", (1, 2048))
    net.add("MEAN", "ReducerOptions", {}, [current, axes], mean)
    weight, bias = net.weights("logits/kernel", (1000, 2048), 0.02), net.weights("logits/bias", (1000,), 0.01)
    logits = net.add(
        "FULLY_CONNECTED", "FullyConnectedOptions", {}, [mean, weight, bias], net.tensor("logits", (1, 1000))
    )
    net.graph.outputs.append(logits)
    arguments = [(new_record("TensorMap").replace(name="image"), image)]
    results = [(new_record("TensorMap").replace(name="logits"), logits)]
    net.model.signatures.append(Signature("serving_default", net.graph, arguments, results))
    save(net.model, path, force=True)


if __name__ == "__main__":
    resnet50(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 50)
