"""Which blobs hold the same bytes."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.nets import Net
from tfl_rewrite import load, save
from tfl_rewrite.files.container import Container
from tfl_rewrite.model import likeness
from tfl_rewrite.model.blob import Blob, ComputedBlob, MappedBlob, OwnedBlob
from tfl_rewrite.model.ir import Buffer, Model, SubGraph
from tfl_rewrite.model.likeness import (
    digest,
    equal_items,
    equal_pieces,
    fingerprint,
    same_bytes,
    subgraph_pairs,
    tensor_labels,
)


def of(data: bytes, folder: Path, kind: int) -> Blob:
    if kind == 0:
        return OwnedBlob(data)
    if kind == 1:
        return ComputedBlob(len(data), lambda sink, offset: sink.write_at(data, offset))
    path = folder / f"{random.randrange(1 << 62)}"
    path.write_bytes(b"head" + data + b"tail")
    return MappedBlob(Container.open(path), 4, len(data))


@pytest.mark.parametrize("seed", range(20))
def test_pairs_are_those_of_a_plain_comparison(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(likeness, "_PIECE", 97)
    monkeypatch.setattr(likeness, "_TASTE", 8)
    chance = random.Random(seed)
    base = chance.randbytes(500)
    contents: list[bytes] = []
    for _ in range(30):
        data = bytearray(base[: chance.choice((1, 23, 24, 25, 96, 97, 500))])
        if chance.random() < 0.6:
            # Mostly where the few bytes that are looked at first do not lie.
            data[chance.choice((0, len(data) // 3, len(data) // 2, len(data) - 1))] ^= chance.choice((0, 1))
        contents.append(bytes(data))
    blobs = [of(data, tmp_path, chance.randrange(3)) for data in contents]
    ticks: list[int] = []
    found = {
        again: first
        for first, again in equal_items(list(range(30)), lambda index: blobs[index], ticks.append)
    }
    expected = {
        index: contents.index(data) for index, data in enumerate(contents) if contents.index(data) < index
    }
    assert found == expected
    assert sum(ticks) == sum(map(len, contents))


def test_blobs_that_share_their_bytes_are_not_read(tmp_path: Path) -> None:
    def never(_sink: object, _offset: int) -> None:
        raise AssertionError("read")

    blob = ComputedBlob(100, never)
    assert same_bytes(blob, blob)
    assert not same_bytes(blob, ComputedBlob(101, never))


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 64, 1001])
def test_each_byte_counts(size: int) -> None:
    data = bytes(range(256)) * 4
    assert equal_pieces(memoryview(data)[3 : 3 + size], data[3 : 3 + size])
    for place in range(size):
        other = bytearray(data[3 : 3 + size])
        other[place] ^= 128
        assert not equal_pieces(data[3 : 3 + size], bytes(other)), place
    assert not equal_pieces(data[:size], data[: size + 1])


def test_digest_is_of_all_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = random.Random(1).randbytes(1000)
    whole = digest(OwnedBlob(data))
    monkeypatch.setattr(likeness, "_PIECE", 64)
    assert {digest(of(data, tmp_path, kind)) for kind in range(3)} == {whole}
    assert digest(OwnedBlob(data[:-1] + b"x")) != whole


def net() -> Model:
    made = Net()
    source = made.input("in", (1, 2))
    weight = made.constant("w", np.array([[1, 2], [3, 4]], np.float32))
    hidden = made.dense(source, weight, "hidden", made.constant("b", np.ones(2, np.float32)))
    made.output(made.add("SOFTMAX", [hidden], "out", (1, 2), beta=1.0))
    made.sign("serve")
    return made.model


def renamed_tensor(model: Model) -> None:
    model.subgraphs[0].tensors[0].name = "other"


def other_shape(model: Model) -> None:
    model.subgraphs[0].tensors[0].shape = (2, 1)


def other_constant(model: Model) -> None:
    model.subgraphs[0].tensor("w").set_values(np.array([[1, 2], [3, 5]], np.float32))


def other_option(model: Model) -> None:
    softmax = model.subgraphs[0].operators[-1]
    assert softmax.options is not None
    softmax.options = softmax.options.replace(beta=2.0)


def other_operand(model: Model) -> None:
    dense = model.subgraphs[0].operators[0]
    dense.inputs[2] = None


def other_output(model: Model) -> None:
    model.subgraphs[0].outputs = [model.subgraphs[0].tensor("hidden")]


def other_signature(model: Model) -> None:
    model.signatures[0].key = "another"


def variable(model: Model) -> None:
    model.subgraphs[0].tensor("hidden").is_variable = True


@pytest.mark.parametrize(
    "change",
    [
        renamed_tensor,
        other_shape,
        other_constant,
        other_option,
        other_operand,
        other_output,
        other_signature,
        variable,
    ],
)
def test_what_is_computed_counts(change: Callable[[Model], None]) -> None:
    model = net()
    change(model)
    assert fingerprint(model) != fingerprint(net())


def test_what_else_a_file_holds_does_not_count(tmp_path: Path) -> None:
    model = net()
    known = fingerprint(model)
    model.description = "a description"
    model.buffers[1:] = [Buffer(), *reversed(model.buffers[1:])]
    assert fingerprint(model) == known
    save(model, tmp_path / "net.tflite")
    assert fingerprint(load(tmp_path / "net.tflite")) == known


def test_every_committed_model_has_one_that_a_copy_shares(sound: Path) -> None:
    assert fingerprint(load(sound)) == fingerprint(load(sound.read_bytes()))


# -- What belongs together in two models ---------------------------------------------------------------------


def subgraphs(*names: str) -> Model:
    net = Net()
    for name in names:
        net.next_subgraph(name)
    return net.model


def test_subgraphs_are_paired_by_names_of_their_own_then_in_order() -> None:
    one = subgraphs("cond", "twin", "twin", "", "body")
    two = subgraphs("body", "twin", "cond")
    numbers = [{id(graph): at for at, graph in enumerate(model.subgraphs)} for model in (one, two)]
    pairs = [
        tuple(None if graph is None else table[id(graph)] for graph, table in zip(pair, numbers, strict=True))
        for pair in subgraph_pairs(one, two)
    ]
    assert pairs == [(0, 0), (1, 3), (5, 1), (2, 2), (3, None), (4, None)]
    one.subgraphs[0].name, two.subgraphs[1].name = "main", "main"
    assert next(subgraph_pairs(one, two)) == (one.subgraphs[0], two.subgraphs[0])


def labels(*sides: list[tuple[str, int]]) -> list[list[str]]:
    """The labels of tensors on both sides, each given by its name and its number of elements."""
    graphs: list[SubGraph] = []
    for side in sides:
        net = Net()
        for name, size in side:
            net.tensor(name, (size,))
        graphs.append(net.graph)
    tables = tensor_labels(graphs[0], graphs[1])
    return [[table[id(item)] for item in graph.tensors] for graph, table in zip(graphs, tables, strict=True)]


@pytest.mark.parametrize(
    ("one", "two", "expected"),
    [
        ([("a", 1), ("b", 1)], [("b", 1), ("a", 1)], [["a", "b"], ["b", "a"]]),
        # Names that repeat, or are empty, have their position; one's own name is never made by a position.
        ([("a", 1), ("a", 2), ("", 3)], [("a", 1), ("a", 2), ("", 3)], [["a[0]", "a[1]", "[2]"]] * 2),
        ([("a", 1), ("a", 1), ("a[0]", 1)], [("a[0]", 1)], [["a[0]'", "a[1]", "a[0]"], ["a[0]"]]),
        # What has no name is found again by its type and shape, wherever it stands.
        ([("", 1), ("", 2)], [("", 3), ("", 1), ("", 2)], [["[0]", "[1]"], ["[0] (new)", "[0]", "[1]"]]),
        ([("", 1)], [("named", 1)], [["[0]"], ["[0]"]]),
        ([("named", 1)], [("", 1)], [["named"], ["named"]]),
        # Two names of their own are two tensors.
        ([("p", 1)], [("q", 1)], [["p"], ["q"]]),
        ([("p", 1), ("p", 1)], [("p", 1)], [["p[0]", "p[1]"], ["p[0]"]]),
    ],
    ids=str,
)
def test_equal_labels_mean_the_same_tensor(
    one: list[tuple[str, int]], two: list[tuple[str, int]], expected: list[list[str]]
) -> None:
    assert labels(one, two) == expected
