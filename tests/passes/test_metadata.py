"""What is written, what stays, and who else can read it."""

from __future__ import annotations

import io
import json
import random
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers import ROOT, script
from tests.nets import Net
from tfl_rewrite import FileAccessError, TflRewriteError, UnsupportedError, UsageError, load, rewrite, save
from tfl_rewrite.editing.base import PassResult, run_passes
from tfl_rewrite.editing.descriptions import read_descriptions, record, write_descriptions
from tfl_rewrite.files.layout import packed, read_members
from tfl_rewrite.files.source import Source, is_changed
from tfl_rewrite.flatbuf.record import FLOAT32, ScalarVector
from tfl_rewrite.model.ir import Model
from tfl_rewrite.passes import SetMetadata
from tfl_rewrite.reading.metadata import described_inputs, export_metadata

LABELS = "cat\ndog\nbird\n"


def small() -> Net:
    made = Net()
    source = made.input("x", (1, 2, 2, 3))
    made.output(made.add("ADD", [source, made.constant("one", np.ones((1,), np.float32))], "y", (1, 4)))
    made.output(made.add("ADD", [source, source], "z", (1, 2, 2, 3)))
    return made


def written(model: Model, **options: Any) -> PassResult:
    return run_passes(model, [SetMetadata(**options)])[0]


def labels(folder: Path, text: str = LABELS, name: str = "labels.txt") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def saved(model: Model, path: Path) -> Model:
    save(model, path, force=True)
    return load(path)


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        return {row.filename: archive.read(row) for row in archive.infolist()}


def by_flatc(model: Model, folder: Path) -> Any:
    """The metadata as the schema's own compiler reads it."""
    entry = model.metadata_named("TFLITE_METADATA")
    assert entry is not None and entry.buffer.blob is not None
    path = folder / "metadata.bin"
    path.write_bytes(bytes(entry.buffer.blob.view()))
    flatc = script("compile_schema").find_flatc()
    command = [flatc, "--json", "--strict-json", "-o", folder, ROOT / "schema" / "metadata.fbs", "--", path]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
    return json.loads((folder / "metadata.json").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_another_reader_finds_what_was_written(tmp_path: Path) -> None:
    save(small().model, tmp_path / "m.tflite")
    model = load(tmp_path / "m.tflite")
    texts = {
        "model_name": "pets",
        "description": "tells them",
        "author": "A",
        "license": "MIT",
        "model_version": "v1",
    }
    written(model, labels=labels(tmp_path), mean="127.5", std="127.5,2,3", input_name="picture", **texts)
    with pytest.raises(UsageError, match="nothing is asked for; give what to write"):
        written(model)
    model = saved(model, tmp_path / "o.tflite")
    found = by_flatc(model, tmp_path)
    (graph,) = found.pop("subgraph_metadata")
    assert found == {
        "name": "pets",
        "description": "tells them",
        "version": "v1",
        "author": "A",
        "license": "MIT",
        "min_parser_version": "1.0.0",
    }
    (given,) = graph["input_tensor_metadata"]
    assert given["name"] == "picture" and given["content"]["content_properties"] == {"color_space": "RGB"}
    assert given["process_units"][0]["options"] == {"mean": [127.5], "std": [127.5, 2.0, 3.0]}
    assert [row["name"] for row in graph["output_tensor_metadata"]] == ["y", "z"]
    (file,) = graph["output_tensor_metadata"][1]["associated_files"]
    assert file == {"name": "labels.txt", "type": "TENSOR_AXIS_LABELS"}, "of the output with three elements"
    assert members(tmp_path / "o.tflite") == {"labels.txt": LABELS.encode()}
    entry = model.metadata_named("TFLITE_METADATA")
    assert entry is not None and entry.buffer.blob is not None
    assert described_inputs(bytes(entry.buffer.blob.view()))[0].std == (127.5, 2.0, 3.0)


def test_what_is_not_named_stays(tmp_path: Path) -> None:
    made = small()
    save(made.model, tmp_path / "plain.tflite")
    calibration = record("ScoreCalibrationOptions", default_score=0.5)
    unit = record("ProcessUnit", options_type=2, options=calibration)
    given = [record("TensorMetadata", name="old", process_units=[unit], description="a picture")]
    graph = record("SubGraphMetadata", name="main", input_tensor_metadata=given)
    write_descriptions(made.model, record("ModelMetadata", author="B", subgraph_metadata=[graph, graph]))
    with_zip = tmp_path / "zip.tflite"
    save(made.model, with_zip)
    with zipfile.ZipFile(with_zip, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("vocab.txt", "a\n" * 500)
        archive.writestr("labels.txt", "old")
    model = load(with_zip)
    written(model, labels=labels(tmp_path), mean="0", std="1", model_name="n")
    again = saved(model, tmp_path / "o.tflite")
    root = read_descriptions(again)
    assert root is not None and (root["author"], root["name"]) == ("B", "n")
    first, second = root["subgraph_metadata"]
    assert (first["name"], second) == ("main", graph)
    (row,) = first["input_tensor_metadata"]
    assert (row["name"], row["description"]) == ("old", "a picture")
    assert [item["options_type"] for item in row["process_units"]] == [1, 2]
    assert row["process_units"][1] == unit
    assert members(tmp_path / "o.tflite") == {"vocab.txt": b"a\n" * 500, "labels.txt": LABELS.encode()}
    assert not written(again, labels=labels(tmp_path), mean="0", std="1", model_name="n").modified
    assert not is_changed(again)


def test_the_same_files_give_the_same_bytes_and_a_plain_reader_of_the_zip_can_open_it(tmp_path: Path) -> None:
    save(small().model, tmp_path / "m.tflite")
    made = []
    for _ in range(2):
        model = load(tmp_path / "m.tflite")
        written(model, labels=labels(tmp_path))
        made.append(model.to_bytes())
    assert made[0] == made[1]
    source = Source.of(made[0])
    assert source.tail is not None and source.tail.absolute
    with zipfile.ZipFile(io.BytesIO(made[0])) as archive:
        assert archive.read("labels.txt") == LABELS.encode()


def test_the_zip_moves_with_the_model_when_other_passes_follow(tmp_path: Path) -> None:
    save(small().model, tmp_path / "m.tflite")
    model = load(tmp_path / "m.tflite")
    written(model, labels=labels(tmp_path))
    model.description = "x" * 1000
    again = saved(model, tmp_path / "o.tflite")
    assert members(tmp_path / "o.tflite")
    again.description = None
    saved(again, tmp_path / "p.tflite")
    assert members(tmp_path / "p.tflite") == {"labels.txt": LABELS.encode()}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"mean": "1"}, "mean and std belong together"),
        ({"mean": "1", "std": "0"}, "no std of 0"),
        ({"mean": "1,2", "std": "1,2,3"}, "as many of each"),
        ({"mean": "nan", "std": "1"}, "is not a list of numbers"),
        ({"mean": "", "std": "1"}, "is not a list of numbers"),
        ({"model_name": "a\0b"}, "holds a zero byte"),
        ({"author": "\udcff"}, "is no text"),
        ({"input_name": ("a", "b")}, "2 names for 1 inputs"),
        ({"labels": "nowhere/labels.txt"}, "there is no such file"),
        ({"reduced_precision": "fp8"}, "unknown"),
    ],
    ids=str,
)
def test_what_cannot_be_written_is_refused(options: dict[str, Any], told: str, tmp_path: Path) -> None:
    save(small().model, tmp_path / "m.tflite")
    model = load(tmp_path / "m.tflite")
    with pytest.raises(TflRewriteError) as refused:
        written(model, **options)
    assert told in str(refused.value) and not is_changed(model)


def test_labels_that_no_output_has_as_many_classes_for_are_told(tmp_path: Path) -> None:
    assert not written(small().model, labels=labels(tmp_path)).notes
    (note,) = written(small().model, labels=labels(tmp_path, "one\ntwo\n")).notes
    assert "there are 2 labels" in note and "'y', whose shape is [1, 4]" in note


def test_labels_have_to_be_text_and_what_is_there_readable(tmp_path: Path) -> None:
    model = small().model
    (tmp_path / "labels.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="is no text"):
        written(model, labels=tmp_path / "labels.txt")
    for path, why in (("/dev/zero", "is no plain file"), (tmp_path / "none", "there is no such file")):
        with pytest.raises(FileAccessError, match=why):
            written(model, labels=path)
    made = small()
    made.metadata("TFLITE_METADATA", b"\0" * 40)
    with pytest.raises(TflRewriteError, match="metadata TFLITE_METADATA: is damaged"):
        written(made.model, model_name="n")


def test_half_precision_is_allowed_and_forbidden_again() -> None:
    made = small()
    result = written(made.model, reduced_precision="fp16")
    assert not result.exact and "verify it there" in result.notes[0]
    entry = made.model.metadata_named("reduced_precision_support")
    assert entry is not None and entry.buffer.blob is not None
    assert bytes(entry.buffer.blob.view()) == b"fp16accfp16"
    again = written(made.model, reduced_precision="fp16")
    assert not again.modified and again.exact and again.idle == "it says all of this already"
    assert written(made.model, reduced_precision="none").modified
    assert made.model.metadata_named("reduced_precision_support") is None
    assert not written(made.model, reduced_precision="none").modified


# -- Out of the model ----------------------------------------------------------------------------------------

HOSTILE = (
    *("../outside.txt", "/etc/passwd", "a/b.txt", "..", "C:\\x", "con.txt", "\x1b[2Jx", "x" * 300),
    *("metadata.json", "LABELS.txt", "labels.txt", "file-0", "-rf", ".hidden", "d\u00e9j\u00e0.txt"),
)


def test_files_are_exported_under_plain_names_alone(tmp_path: Path) -> None:
    made = small().model
    write_descriptions(made, record("ModelMetadata", name="m\udcff", author="A"))
    made.tail = packed([], {name: name.encode("utf-8") for name in HOSTILE})
    save(made, tmp_path / "m.tflite")
    facts = export_metadata(tmp_path / "m.tflite", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.tflite", "out"], (
        "nothing beside the folder"
    )
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {"metadata.json", *(row["file"] for row in facts["files"])}
    assert len(facts["files"]) == len(HOSTILE) == len({row["file"].casefold() for row in facts["files"]})
    for row in facts["files"]:
        assert (tmp_path / "out" / row["file"]).read_bytes() == row["name"].encode("utf-8")
        assert row["file"] == row["name"] or row["file"].startswith("file-")
    assert json.loads((tmp_path / "out" / "metadata.json").read_text())["metadata"]["author"] == "A"
    with pytest.raises(UsageError, match="exists already"):
        export_metadata(tmp_path / "m.tflite", tmp_path / "out")
    assert export_metadata(tmp_path / "m.tflite", tmp_path / "out", force=True) == facts
    (tmp_path / "out" / "metadata.json").unlink()
    (tmp_path / "out" / "metadata.json").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="is a symbolic link"):
        export_metadata(tmp_path / "m.tflite", tmp_path / "out", force=True)
    assert not (tmp_path / "elsewhere").exists()


def test_numbers_that_json_has_no_word_for_are_exported_as_text(tmp_path: Path) -> None:
    made = small().model
    stats = record(
        "Stats", max=ScalarVector.of(FLOAT32, [np.nan, 1.5]), min=ScalarVector.of(FLOAT32, [-np.inf])
    )
    tensor = record("TensorMetadata", name="x", stats=stats)
    subgraph = record("SubGraphMetadata", input_tensor_metadata=[tensor])
    write_descriptions(made, record("ModelMetadata", name="m", subgraph_metadata=[subgraph]))
    save(made, tmp_path / "m.tflite")
    facts = export_metadata(tmp_path / "m.tflite", tmp_path / "out")
    text = (tmp_path / "out" / "metadata.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == facts
    told = facts["metadata"]["subgraph_metadata"][0]["input_tensor_metadata"][0]["stats"]
    assert told == {"max": ["nan", 1.5], "min": ["-inf"]}


def test_a_zip_that_says_less_than_it_holds_or_too_much_is_no_way_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = packed([], {"a.txt": b"x" * 100})[16:]
    assert read_members(whole)[0][1] == b"x" * 100
    monkeypatch.setattr("tfl_rewrite.files.layout.MOST_NBYTES", 99)
    with pytest.raises(UnsupportedError, match="its files take over 99 bytes unpacked"):
        read_members(whole)


def mutants(count: int, folder: Path) -> int:
    """Exports and rewrites what random bytes make of a model with a ZIP; returns how many were sound."""
    made = small().model
    write_descriptions(made, record("ModelMetadata", name="m", author="A"))
    written(made, labels=labels(folder), mean="1", std="2")
    save(made, folder / "m.tflite", force=True)
    data, draw, passed = (folder / "m.tflite").read_bytes(), random.Random(0), 0
    for number in range(count):
        changed = bytearray(data)
        for _ in range(draw.randint(1, 4)):
            place = draw.randrange(len(changed))
            changed[place] = draw.choice(
                (0, 255, changed[place] ^ (1 << draw.randrange(8)), draw.randrange(256))
            )
        if number % 5 == 0:
            del changed[draw.randrange(len(changed)) :]
        try:
            export_metadata(bytes(changed), folder / "out", force=True)
            model = load(bytes(changed))
            written(model, model_name="new", labels=folder / "labels.txt", mean="3", std="4")
            load(model.to_bytes())
            passed += 1
        except TflRewriteError:
            pass
    return passed


def test_damaged_files_are_refused_and_nothing_else(tmp_path: Path) -> None:
    assert mutants(150, tmp_path) > 10


@pytest.mark.runtime
def test_outputs_are_judged_to_the_bit(tmp_path: Path) -> None:
    save(net_that_runs(), tmp_path / "m.tflite")
    report = rewrite(
        tmp_path / "m.tflite", tmp_path / "o.tflite", [SetMetadata(model_name="n", labels=labels(tmp_path))]
    )
    assert report.verdict is not None and report.verdict.passed
    assert {item.rule for item in report.verdict.outputs} == {"exact"}
    assert members(tmp_path / "o.tflite") == {"labels.txt": LABELS.encode()}


def net_that_runs() -> Model:
    made = Net()
    source = made.input("x", (1, 3))
    made.output(made.add("MUL", [source, source], "y", (1, 3)))
    return made.model
