"""Writes a float model of any size, past 2 GiB too: towers of FULLY_CONNECTED and CONV_2D layers, summed.

    python scripts/large_model.py OUT GIB [--seed S] [--sparse]

About 2,300 tensors a GiB. Most weights have 1 MiB, some 2 or 5; the two heads at the end, equal to each other
in buffers of their own, take a thirty-second of the model each. Every other weight is a window of one pool of
seeded noise, at a place of its own; of each eight towers the last repeats the weights of the first, in
buffers of its own, and the one before differs from it in the last number of each weight. ``--sparse`` leaves
all but the first numbers of each weight zero, as holes of the file where the file system has them. Same
arguments, same bytes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from bench_model import FLOAT32, RELU, Net

from tfl_rewrite.files.source import save
from tfl_rewrite.flatbuf.record import Sink
from tfl_rewrite.model.blob import ComputedBlob
from tfl_rewrite.model.ir import Buffer, Signature, Tensor, new_record

WIDTH = 512
POOL_NBYTES = 64 << 20
_PIECE = 4 << 20
_HEAD = 16
"""Numbers at the start of a sparse weight that are not zero."""
_REPEATS = (1, 1, 1, 1, 5, 2, 1, 1)
"""MiB of the two inner layers of each tower; those that are repeated are alike."""
_HEAD_SHARE = 32


class Weights:
    """Makes the bytes of one weight: a window of the pool, with one number changed where it is a variant.

    Args:
        pool: Float32 noise, twice over, so that a window may start anywhere in the first half.
        start: First number of the window.
        elements: How many numbers.
        changed: Whether the last number is negated.
        sparse: Whether only the first numbers are written; the rest stay holes.
    """

    def __init__(
        self, pool: np.ndarray, start: int, elements: int, *, changed: bool = False, sparse: bool = False
    ) -> None:
        self.pool, self.start, self.elements = pool, start, elements
        self.changed, self.sparse = changed, sparse

    def write_to(self, sink: Sink, offset: int) -> None:
        half = self.pool.size // 2
        elements = min(self.elements, _HEAD) if self.sparse else self.elements
        done = 0
        while done < elements:
            first = (self.start + done) % half
            count = min(elements - done, _PIECE // 4)
            sink.write_at(self.pool[first : first + count].data.cast("B"), offset + 4 * done)
            done += count
        if self.changed:
            last = (self.start + elements - 1) % half
            sink.write_at((-self.pool[last : last + 1]).tobytes(), offset + 4 * (elements - 1))


class LargeNet(Net):
    """Builds the model; see the module."""

    def __init__(self, seed: int, *, sparse: bool) -> None:
        super().__init__(seed)
        noise = self.random.standard_normal(POOL_NBYTES // 4, dtype=np.float32)
        noise *= np.float32((1.5 / WIDTH) ** 0.5)
        self.pool = np.concatenate([noise, noise])
        self.sparse = sparse

    def window(self, name: str, shape: tuple[int, ...], start: int, *, changed: bool) -> Tensor:
        elements = int(np.prod(shape))
        weights = Weights(self.pool, start, elements, changed=changed, sparse=self.sparse)
        buffer = Buffer(ComputedBlob(4 * elements, weights.write_to))
        self.model.buffers.append(buffer)
        made = Tensor(name, shape, FLOAT32, buffer)
        self.graph.tensors.append(made)
        return made

    def layer(
        self, name: str, source: Tensor, width: int, start: int, *, conv: bool, changed: bool
    ) -> Tensor:
        depth = (source.shape or (0,))[-1]
        shape = (width, 1, 1, depth) if conv else (width, depth)
        kernel = self.window(f"{name}/kernel", shape, start, changed=changed)
        bias = self.weights(f"{name}/bias", (width,), 0.01)
        output = self.tensor(name, (1, 1, 1, width))
        options: dict[str, object] = {"fused_activation_function": RELU}
        if conv:
            options |= {"stride_w": 1, "stride_h": 1}
            return self.add("CONV_2D", "Conv2DOptions", options, [source, kernel, bias], output)
        options["keep_num_dims"] = True
        return self.add("FULLY_CONNECTED", "FullyConnectedOptions", options, [source, kernel, bias], output)

    def tower(self, number: int, source: Tensor) -> Tensor:
        """Adds four layers, from 512 numbers to 512."""
        period = len(_REPEATS)
        part = number % period
        same = part in (period - 1, period - 2)
        place = (number - part if same else number) * 104_729
        changed = part == period - 2
        wide = WIDTH * _REPEATS[part]
        current = source
        for step, (width, conv) in enumerate(((WIDTH, False), (wide, False), (WIDTH, True), (WIDTH, True))):
            start = (place + step * 15_485_863) % (self.pool.size // 2)
            name = f"tower{number}/layer{step}"
            current = self.layer(name, current, width, start, conv=conv, changed=changed)
        return current


def large_model(path: Path, nbytes: int, *, seed: int = 8, sparse: bool = False) -> None:
    """Writes a model of about ``nbytes``: input ``[1, 1, 1, 512]``, two equal outputs ``[1, 1, 1, N]``.

    Args:
        path: Replaced if it is there.
        nbytes: To be reached to within one tower, 12 MiB; at least that.
        seed: Of the noise.
        sparse: See the module.
    """
    net = LargeNet(seed, sparse=sparse)
    source = net.tensor("input", (1, 1, 1, WIDTH))
    net.graph.inputs.append(source)
    units = max(1, nbytes // _HEAD_SHARE // (4 * WIDTH))
    left = nbytes - 2 * units * 4 * WIDTH
    total, number = source, 0
    while left > 0:
        made = net.tower(number, source)
        output = net.tensor(f"sum{number}", (1, 1, 1, WIDTH))
        total = net.add("ADD", "AddOptions", {}, [total, made], output)
        left -= (2 + 2 * _REPEATS[number % len(_REPEATS)]) << 20
        number += 1
    heads = [net.layer(f"head{index}", total, units, 0, conv=False, changed=False) for index in range(2)]
    net.graph.outputs += heads
    arguments = [(new_record("TensorMap").replace(name="input"), source)]
    results = [
        (new_record("TensorMap").replace(name=f"output{index}"), head) for index, head in enumerate(heads)
    ]
    net.model.signatures.append(Signature("serving_default", net.graph, arguments, results))
    save(net.model, path, force=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("gib", type=float, help="size in GiB")
    parser.add_argument("--seed", type=int, default=8, help="seed of the noise (default: 8)")
    parser.add_argument("--sparse", action="store_true", help="nearly all numbers are zero, and holes")
    arguments = parser.parse_args()
    large_model(arguments.out, int(arguments.gib * (1 << 30)), seed=arguments.seed, sparse=arguments.sparse)


if __name__ == "__main__":
    main()
