"""Presence of fields: what was written stays written, what was absent stays absent."""

from __future__ import annotations

import pytest

from tfl_rewrite.errors import FormatError
from tfl_rewrite.files.container import Container
from tfl_rewrite.files.source import Source, is_changed
from tfl_rewrite.flatbuf.record import INT32, UINT8, Record, ScalarVector
from tfl_rewrite.model.blob import OwnedBlob
from tfl_rewrite.model.ir import Model, schema
from tfl_rewrite.model.lower import lower

from .helpers import written


def make(table: str, /, **values: object) -> Record:
    return Record(schema().tables[table], dict(values))


def read_again(root: Record) -> Model:
    return Source(Container.of_bytes(written(root))).model()


def model_of_buffers(*buffers: Record) -> Model:
    graph = make("SubGraph", tensors=[], operators=[])
    return read_again(
        make("Model", version=3, operator_codes=[], subgraphs=[graph], buffers=[make("Buffer"), *buffers])
    )


def test_empty_bytes_of_a_buffer_are_not_no_bytes() -> None:
    empty = ScalarVector.of(UINT8, [])
    model = model_of_buffers(make("Buffer", data=empty), make("Buffer"))
    assert [item.blob for item in model.buffers] == [None, None, None]
    for found in (lower(model), lower(read_again(lower(model)))):
        assert ["data" in item for item in found.values["buffers"]] == [False, True, False]
        assert found.values["buffers"][1].values["data"] == empty
    assert not is_changed(model)


def test_an_empty_vector_is_no_second_place_of_bytes_that_lie_elsewhere() -> None:
    made = make("Buffer", data=ScalarVector.of(UINT8, []), offset=8, size=4)
    buffer = model_of_buffers(made).buffers[1]
    assert buffer.outside and buffer.nbytes == 4


def test_bytes_that_lie_elsewhere_end_with_the_file() -> None:
    def root(size: int) -> Record:
        buffers = [make("Buffer"), make("Buffer", offset=8, size=size)]
        return make("Model", version=3, subgraphs=[make("SubGraph")], buffers=buffers)

    left = len(written(root(4))) - 8
    assert read_again(root(left)).buffers[1].nbytes == left
    with pytest.raises(FormatError, match="reach past the end of the file"):
        read_again(root(left + 1))


def test_a_tensor_needs_the_buffer_that_it_names() -> None:
    def root(buffer: int) -> Record:
        graph = make("SubGraph", tensors=[make("Tensor", buffer=buffer)], operators=[])
        return make("Model", version=3, subgraphs=[graph])

    assert read_again(root(0)).subgraphs[0].tensors[0].buffer.blob is None
    with pytest.raises(FormatError, match="the model has no buffers"):
        read_again(root(1))


def test_bytes_that_are_taken_away_leave_no_vector() -> None:
    model = model_of_buffers(make("Buffer", data=ScalarVector.of(UINT8, [1, 2])))
    model.buffers[1].blob = None
    assert "data" not in lower(model).values["buffers"][1]


def test_bytes_that_are_given_fill_an_empty_vector() -> None:
    model = model_of_buffers(make("Buffer", data=ScalarVector.of(UINT8, [])))
    model.buffers[1].blob = OwnedBlob(b"abc")
    again = read_again(lower(model))
    assert again.buffers[1].blob is not None and bytes(again.buffers[1].blob.view()) == b"abc"


@pytest.mark.parametrize("present", [False, True])
def test_empty_lists_are_as_they_were(present: bool) -> None:
    lists = {"signature_defs": [], "metadata": [], "metadata_buffer": ScalarVector.of(INT32, [])}
    graph = make("SubGraph", tensors=[], operators=[])
    root = make("Model", version=3, subgraphs=[graph], **(lists if present else {}))
    found = lower(read_again(root))
    assert [name in found for name in lists] == [present] * 3


def test_empty_names_are_as_they_were() -> None:
    graph = make("SubGraph", tensors=[make("Tensor", name=""), make("Tensor")], operators=[])
    found = lower(read_again(make("Model", version=3, subgraphs=[graph]))).values["subgraphs"][0]
    assert [row.values.get("name") for row in found.values["tensors"]] == ["", None]


@pytest.mark.parametrize("index", [-1, 0, 1, 2])
def test_an_index_past_the_last_is_refused(index: int) -> None:
    graph = make("SubGraph", tensors=[], operators=[])
    signature = make("SignatureDef", subgraph_index=index & 0xFFFFFFFF)
    root = make("Model", version=3, subgraphs=[graph], signature_defs=[signature])
    if index == 0:
        assert read_again(root).signatures[0].subgraph is not None
        return
    with pytest.raises(FormatError, match=r"index \d+ is out of range; there are 1"):
        read_again(root)
