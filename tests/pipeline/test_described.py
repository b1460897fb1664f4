"""What a chain says of itself: descriptions of its inputs and outputs, and label files of both models."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tests.nets import Net
from tfl_rewrite import ChainOptions, Judging, UnsupportedError, chain, load, save
from tfl_rewrite.editing.descriptions import read_descriptions, record, write_descriptions
from tfl_rewrite.flatbuf.record import FLOAT32, Record, ScalarVector
from tfl_rewrite.reading.metadata import described_inputs

NOTHING = Judging(mode="off")


def labelled(path: Path, *, name: str, labels: str) -> Path:
    """A model with a normalized input, a labelled output and the labels behind it."""
    net = Net()
    given = net.input(name, (1, 4))
    net.output(net.add("NEG", [given], f"{name}_scores", (1, 4)))
    model = net.model
    floats = ScalarVector.of(FLOAT32, [127.5])
    options = record("NormalizationOptions", mean=floats, std=floats)
    unit = record("ProcessUnit", options_type=1, options=options)
    file = record("AssociatedFile", name="labels.txt", type=2)
    graph = record(
        "SubGraphMetadata",
        input_tensor_metadata=[record("TensorMetadata", name=name, process_units=[unit])],
        output_tensor_metadata=[record("TensorMetadata", name="scores", associated_files=[file])],
    )
    write_descriptions(model, record("ModelMetadata", name=f"model {name}", subgraph_metadata=[graph]))
    save(model, path)
    stream = io.BytesIO(path.read_bytes())
    stream.seek(0, io.SEEK_END)
    with zipfile.ZipFile(stream, "a") as archive:
        archive.writestr("labels.txt", labels)
    path.write_bytes(stream.getvalue())
    return path


def rows(path: Path) -> tuple[list[Record], list[Record]]:
    root = read_descriptions(load(path))
    assert root is not None
    (graph,) = root.get("subgraph_metadata")
    return list(graph.get("input_tensor_metadata")), list(graph.get("output_tensor_metadata"))


def test_labels_of_both_are_kept_apart(tmp_path: Path) -> None:
    one = labelled(tmp_path / "a.tflite", name="x", labels="dog\ncat\n")
    two = labelled(tmp_path / "b.tflite", name="y", labels="good\nbad\n")
    out = tmp_path / "out.tflite"
    report = chain([one, two], out, judging=NOTHING)
    assert "label file 'labels.txt' is 'b_labels.txt' now" in report.notes
    with zipfile.ZipFile(out) as archive:
        assert archive.read("labels.txt") == b"dog\ncat\n" and archive.read("b_labels.txt") == b"good\nbad\n"
        assert archive.testzip() is None
    inputs, outputs = rows(out)
    assert [row.get("name") for row in inputs] == ["x"] and inputs[0].get("process_units")
    assert [item.get("name") for item in outputs[0].get("associated_files")] == ["b_labels.txt"]
    # Equal files are one.
    again = chain(
        [one, labelled(tmp_path / "c.tflite", name="z", labels="dog\ncat\n")],
        tmp_path / "o2",
        judging=NOTHING,
    )
    assert not any("label file" in note for note in again.notes)


def test_a_label_file_that_cannot_be_read_is_refused_with_its_model(tmp_path: Path) -> None:
    one = labelled(tmp_path / "a.tflite", name="x", labels="dog\n")
    two = labelled(tmp_path / "b.tflite", name="y", labels="good\n")
    two.write_bytes(two.read_bytes().replace(b"good", b"evil"))
    with pytest.raises(UnsupportedError, match=r"b.tflite \(the appended ZIP\): its files cannot be read"):
        chain([one, two], tmp_path / "out.tflite", judging=NOTHING)
    assert not (tmp_path / "out.tflite").exists()


def test_what_a_stage_does_is_not_asked_of_callers(tmp_path: Path) -> None:
    one, out = labelled(tmp_path / "a.tflite", name="x", labels="dog\n"), tmp_path / "out.tflite"
    options = ChainOptions(prepend=["cast", "normalize:mean=127.5,std=127.5"], append=["top-k:2"])
    chain([one], out, options, judging=NOTHING)
    inputs, outputs = rows(out)
    assert not inputs[0].get("process_units")
    entry = load(out).metadata_named("TFLITE_METADATA")
    assert entry is not None and entry.buffer.blob is not None
    assert described_inputs(bytes(entry.buffer.blob.view()))[0].mean == ()
    assert [row.get("name") for row in outputs] == ["x_scores_values", "x_scores_indices"]
    assert outputs[0].get("associated_files") is None
    assert [(item.get("name"), item.get("type")) for item in outputs[1].get("associated_files")] == [
        ("labels.txt", 3)
    ]
    with zipfile.ZipFile(out) as archive:
        assert archive.read("labels.txt") == b"dog\n"
    # Of probabilities the labels are those of the scores.
    chain([one], tmp_path / "soft", ChainOptions(append=["softmax"]), judging=NOTHING)
    inputs, outputs = rows(tmp_path / "soft")
    assert inputs[0].get("process_units") and outputs[0].get("associated_files")


def test_damaged_descriptions_are_left_out_and_named(tmp_path: Path) -> None:
    net = Net()
    net.output(net.add("NEG", [net.input("x", (1, 4))], "y", (1, 4)))
    net.metadata("TFLITE_METADATA", np.arange(9, dtype=np.uint8).tobytes())
    net.metadata("mine", b"something")
    save(net.model, tmp_path / "a.tflite")
    options = ChainOptions(append=["softmax"])
    report = chain([tmp_path / "a.tflite"], tmp_path / "out.tflite", options, judging=NOTHING)
    assert any("TFLITE_METADATA not kept: it is damaged" in note for note in report.notes)
    assert "metadata of a.tflite not kept: mine" in report.notes
