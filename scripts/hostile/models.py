"""Small models that run: random graphs of many operator types, with loops, shared and variable parts."""

from __future__ import annotations

from pathlib import Path
from random import Random

from hostile import layers, moves
from hostile.net import Net, Step, on_image, on_matrix, on_vector, shape_of
from hostile.values import (
    branch,
    cast,
    compared,
    largest,
    loop,
    of_positive,
    plain,
    pooled,
    prelu,
    reduced,
    summed_up,
    top,
    with_constant,
    with_itself,
)
from tfl_rewrite.files.source import layout
from tfl_rewrite.model.blob import MemorySink, OwnedBlob
from tfl_rewrite.model.ir import (
    Buffer,
    Metadata,
    Model,
    Signature,
    Tensor,
    new_record,
)
from tfl_rewrite.work import Work

_MOST_ELEMENTS = 512

STEPS: tuple[Step, ...] = (
    *(plain(kind) for kind in ("TANH", "LOGISTIC", "RELU", "RELU6", "RELU_N1_TO_1", "ELU", "SIN", "COS")),
    plain("ABS", "AbsOptions"),
    plain("NEG", "NegOptions"),
    plain("HARD_SWISH", "HardSwishOptions"),
    plain("LEAKY_RELU", "LeakyReluOptions", alpha=0.2),
    plain("GELU", "GeluOptions"),
    plain("SOFTMAX", "SoftmaxOptions", beta=1.0),
    plain("LOG_SOFTMAX", "LogSoftmaxOptions"),
    of_positive("SQRT"),
    of_positive("RSQRT"),
    of_positive("LOG"),
    with_constant("ADD", "AddOptions"),
    with_constant("SUB", "SubOptions"),
    with_constant("MUL", "MulOptions"),
    with_constant("DIV", "DivOptions"),
    with_constant("SQUARED_DIFFERENCE", "SquaredDifferenceOptions"),
    with_itself("ADD", "AddOptions"),
    with_itself("SUB", "SubOptions"),
    with_itself("MAXIMUM", "MaximumMinimumOptions"),
    with_itself("MINIMUM", "MaximumMinimumOptions"),
    *(reduced(kind) for kind in ("MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN")),
    *(
        on_image(step)
        for step in (
            layers.conv,
            layers.conv,
            layers.depthwise,
            layers.transpose_conv,
            moves.blocks,
            moves.batches,
            moves.resized,
        )
    ),
    *(on_image(pooled(kind)) for kind in ("AVERAGE_POOL_2D", "MAX_POOL_2D", "L2_POOL_2D")),
    *(
        on_matrix(step)
        for step in (
            layers.dense,
            layers.dense,
            layers.dense,
            layers.matmul,
            layers.svdf,
            layers.rnn,
            layers.lstm,
        )
    ),
    layers.embedding,
    moves.looked_up,
    moves.transpose,
    *(moves.padded(kind) for kind in ("PAD", "PADV2", "MIRROR_PAD")),
    moves.strided,
    moves.split,
    moves.packed,
    moves.squeezed,
    moves.gathered,
    moves.filled,
    moves.broadcast,
    moves.reverse,
    summed_up,
    on_matrix(prelu),
    moves.selected,
    loop,
    branch,
    on_vector(plain("TANH")),
)
ROUGH: tuple[Step, ...] = (
    *(plain(kind) for kind in ("FLOOR", "CEIL", "ROUND")),
    plain("SIGN"),
    compared,
    cast,
    on_matrix(top),
    largest,
    with_constant("FLOOR_DIV", "FloorDivOptions"),
    with_constant("FLOOR_MOD", "FloorModOptions"),
)


def make(random: Random, *, smooth: bool = False, most_steps: int = 8) -> Model:
    """Makes a model that the interpreter runs.

    Some of it is dead, some is there twice, some is shared; it may have a signature, and metadata.

    Args:
        random: Decides everything: an equal one makes an equal model.
        smooth: See :class:`Net`.
        most_steps: How many layers it has at most.
    """
    net = Net(random, smooth=smooth)
    shapes = ((1, 4, 4, 4), (2, 16), (1, 6, 4, 2))
    values = []
    for name in ("x", "y")[: random.randrange(1, 3)]:
        values.append(net.tensor(random.choice(shapes)))
        values[-1].name = name
        net.graph.inputs.append(values[-1])
    made: list[Tensor] = []
    steps = STEPS if smooth else STEPS + ROUGH
    for _ in range(random.randrange(1, most_steps + 1)):
        step, source = random.choice(steps), random.choice(values[-3:])
        for _ in range(random.choice((1, 1, 1, 2))):
            found = step(net, source)
            if 0 < found.elements <= _MOST_ELEMENTS and len(shape_of(found)) <= 4:
                values.append(found)
                made.append(found)
    if not made:
        made.append(net.add("ABS", [values[0]], shape_of(values[0])))
    chosen = list({id(item): item for item in random.choices(made, k=random.randrange(1, 4))}.values())
    if made[-1] not in chosen:
        chosen.append(made[-1])
    for position, tensor in enumerate(chosen):
        tensor.name = f"out{position}"
        net.graph.outputs.append(tensor)
    _furnish(net)
    return net.model


def _furnish(net: Net) -> None:
    """Adds what is beside the graph: names, a signature, metadata, buffers that nobody uses."""
    model, random = net.model, net.random
    main = model.subgraphs[0]
    if random.random() < 0.4:
        rows = [
            [(new_record("TensorMap").replace(name=item.name), item) for item in tensors]
            for tensors in (main.inputs, main.outputs)
        ]
        model.signatures.append(Signature("serving_default", main, rows[0], rows[1]))
    if random.random() < 0.4:
        entry = Metadata("min_runtime_version", Buffer(OwnedBlob(b"1.5.0".ljust(16, b"\0"))))
        model.buffers.append(entry.buffer)
        model.metadata.append(entry)
    for _ in range(random.randrange(3)):
        model.buffers.append(Buffer(OwnedBlob(b"read by nobody" * random.randrange(1, 9))))
    if random.random() < 0.5:
        model.description = "made at random"


def packed(model: Model) -> bytes:
    """Returns the file of a model."""
    made = layout(model)
    sink = MemorySink(made.nbytes)
    made.write_to(sink, Work(wanted_threads=1))
    return bytes(sink.data)


def write_models(folder: Path, count: int, seed: int) -> list[Path]:
    """Writes generated models; returns their paths."""
    paths = []
    for number in range(count):
        paths.append(folder / f"generated{number}.tflite")
        paths[-1].write_bytes(packed(make(Random(f"{seed}/model/{number}"))))
    return paths
