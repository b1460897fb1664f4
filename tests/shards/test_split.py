"""Models in parts that run: equal to the whole, with a manifest, and nothing else touched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.nets import Net
from tfl_rewrite import Chain, Judging, SplitOptions, UnsupportedError, UsageError, load, save, split
from tfl_rewrite.cli.main import main
from tfl_rewrite.errors import FileAccessError, FormatError

ONCE = Judging(samples=2)
NOTHING = Judging(mode="off")


def skipping(path: Path) -> Path:
    """Three layers, the first of which the last reads, too; two outputs of one name."""
    net = Net()
    given = net.input("x", (1, 8))
    first = net.dense(given, net.weights("w0", (8, 8)), "y")
    second = net.dense(first, net.weights("w1", (8, 8)), "z")
    third = net.add("ADD", [second, first], "y", (1, 8))
    net.output(third)
    net.output(first)
    net.sign("serving_default")
    model = net.model
    row, tensor = model.signatures[0].outputs[1]
    model.signatures[0].outputs[1] = (row.replace(name="a"), tensor)
    save(model, path)
    return path


@pytest.mark.runtime
def test_parts_are_the_whole(tmp_path: Path) -> None:
    source, place = skipping(tmp_path / "in.tflite"), tmp_path / "parts"
    place.mkdir()
    (place / "mine.txt").write_text("untouched")
    report = split(source, place, SplitOptions(parts=3), judging=ONCE)
    assert report.verdict is not None and report.verdict.passed and report.verdict.outputs[0].bit_exact
    data = json.loads((place / "chain.json").read_text())
    assert [part["inputs"] for part in data["parts"]][2] == [
        {"name": "z", "dtype": "float32", "shape": [1, 8], "from": [1, 0]},
        {"name": "y", "dtype": "float32", "shape": [1, 8], "from": [0, 0]},
    ]
    assert [row["name"] for row in data["outputs"]] == ["y", "y_2"]
    assert {path.name for path in place.iterdir()} == {
        "mine.txt",
        "chain.json",
        *(part["name"] for part in data["parts"]),
    }
    values = np.random.default_rng(0).standard_normal((1, 8)).astype(np.float32)
    with Chain.open(place / "chain.json") as apart, Chain.open(place / "chain.json", in_process=True) as own:
        found, again = apart.run({"x": values}), own.run([values])
        assert list(found) == list(again) == ["y", "y_2"]
        assert all(np.array_equal(found[name], again[name]) for name in found)
        for given, why in (
            ({"y": values}, "no input is named 'y'"),
            ({}, "no value for 'x'"),
            ([], "0 inputs"),
            ([values.astype(np.float64)], "'x' is float64"),
            ([values[0]], r"'x' has the shape \[8\]"),
            ([values[:, :4]], r"'x' has the shape \[1, 4\]"),
        ):
            with pytest.raises(UsageError, match=why):
                own.run(given)  # type: ignore[arg-type]
    for closed in (apart, own):
        closed.close()
        with pytest.raises(UsageError, match="is closed; open the chain again"):
            closed.run([values])
    # A second time: the same files, which stay.
    again_report = split(source, place, SplitOptions(parts=3), judging=NOTHING)
    assert {item.status for item in again_report.files} == {"kept"}


@pytest.mark.runtime
def test_a_state_stays_in_its_part_and_carries_over(tmp_path: Path) -> None:
    net = Net()
    given = net.input("x", (1, 4))
    handle = net.add("VAR_HANDLE", [], "handle", (), dtype=np.int32)
    net.graph.operators[-1].options = None
    read = net.add("READ_VARIABLE", [handle], "read", (1, 4))
    total = net.add("ADD", [read, given], "total", (1, 4))
    net.add("ASSIGN_VARIABLE", [handle, total], "none", (1,))
    net.graph.operators[-1].outputs = []
    net.graph.tensors = [item for item in net.graph.tensors if item.name != "none"]
    net.output(net.add("NEG", [total], "y", (1, 4)))
    save(net.model, tmp_path / "in.tflite")
    with pytest.raises(UnsupportedError, match=r"in\.tflite: .* can be cut at 1 place, not at 2: .*share it"):
        split(tmp_path / "in.tflite", tmp_path / "parts", SplitOptions(parts=3), judging=NOTHING)
    assert not (tmp_path / "parts").exists()


@pytest.mark.runtime
@pytest.mark.parametrize("in_process", [False, True])
def test_a_chain_runs_with_the_kernels_that_are_asked_for(tmp_path: Path, in_process: bool) -> None:
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    net = Net()
    given = net.input("x", (1, 512))
    first = net.dense(given, net.weights("w0", (64, 512)), "a")
    net.output(net.dense(first, net.weights("w1", (8, 64)), "b"))
    save(net.model, tmp_path / "in.tflite")
    split(tmp_path / "in.tflite", tmp_path / "parts", SplitOptions(parts=2), judging=NOTHING)
    values = np.random.default_rng(0).standard_normal((1, 512)).astype(np.float32)
    whole = Interpreter(
        str(tmp_path / "in.tflite"), experimental_op_resolver_type=OpResolverType.BUILTIN_REF, num_threads=1
    )
    whole.allocate_tensors()
    whole.set_tensor(whole.get_input_details()[0]["index"], values)
    whole.invoke()
    expected = whole.get_tensor(whole.get_output_details()[0]["index"])
    found = {}
    for resolver in ("reference", "default"):
        with Chain.open(tmp_path / "parts" / "chain.json", in_process=in_process, resolver=resolver) as model:
            found[resolver] = model.run([values])["b"]
    # Both sum in another order.
    assert np.array_equal(found["reference"], expected)
    assert not np.array_equal(found["default"], expected)
    with pytest.raises(UsageError, match="resolver 'xnnpack' is unknown"):
        Chain.open(tmp_path / "parts" / "chain.json", resolver="xnnpack")


@pytest.mark.runtime
def test_free_sizes_go_through(tmp_path: Path) -> None:
    net = Net()
    given = net.input("x", (1, 4))
    given.signature = (-1, 4)
    first = net.add("NEG", [given], "a", (1, 4))
    net.output(net.add("ABS", [first], "b", (1, 4)))
    save(net.model, tmp_path / "in.tflite")
    report = split(tmp_path / "in.tflite", tmp_path / "parts", SplitOptions(at=["a"]), judging=ONCE)
    # The last of them is a larger one.
    assert report.verdict is not None and report.verdict.passed and report.verdict.sample_count == 3
    with Chain.open(tmp_path / "parts" / "chain.json") as chain:
        assert chain.run([np.ones((5, 4), np.float32)])["b"].shape == (5, 4)


def test_where_to_cut_is_said_once(tmp_path: Path) -> None:
    source = skipping(tmp_path / "in.tflite")
    for given in ({}, {"parts": 2, "max_size": 2000}, {"parts": 1}, {"parts": 2, "manifest": "../x"}):
        with pytest.raises(UsageError):
            SplitOptions(**given)  # type: ignore[arg-type]
    for options, why in (
        (SplitOptions(at=["w0"]), r"in\.tflite: --at w0: no tensor is named 'w0'"),
        (SplitOptions(at=["y"]), "more than one tensor is named 'y'"),
    ):
        with pytest.raises(UsageError, match=why):
            split(source, tmp_path / "parts", options, judging=NOTHING)
    report = split(source, tmp_path / "parts", SplitOptions(at=["#2"], dry_run=True), judging=NOTHING)
    assert len(report.files) == 2 and report.dry_run and not (tmp_path / "parts").exists()


def test_sizes_are_kept(tmp_path: Path) -> None:
    net = Net()
    value = net.input("x", (1, 32))
    for number in range(6):
        value = net.dense(value, net.weights(f"w{number}", (32, 32)), f"y{number}")
    net.output(value)
    save(net.model, tmp_path / "in.tflite")
    report = split(tmp_path / "in.tflite", tmp_path / "parts", SplitOptions(max_size=10_000), judging=NOTHING)
    assert len(report.files) == 3 and max(item.nbytes for item in report.files) <= 10_000
    with pytest.raises(UnsupportedError, match="ask for larger parts"):
        split(tmp_path / "in.tflite", tmp_path / "two", SplitOptions(max_size=2_000), judging=NOTHING)
    with pytest.raises(UnsupportedError, match="which is one part"):
        split(tmp_path / "in.tflite", tmp_path / "two", SplitOptions(max_size="1MB"), judging=NOTHING)
    assert not (tmp_path / "two").exists()


def test_a_manifest_of_another_model_is_not_replaced_unasked(tmp_path: Path) -> None:
    one, place = skipping(tmp_path / "a.tflite"), tmp_path / "parts"
    other = load(one)
    other.description = "another"
    save(other, tmp_path / "b.tflite")
    split(one, place, SplitOptions(parts=2), judging=NOTHING)
    before = {path.name: path.read_bytes() for path in place.iterdir()}
    with pytest.raises(UsageError, match="exists already, with other content"):
        split(tmp_path / "b.tflite", place, SplitOptions(parts=2), judging=NOTHING)
    assert {path.name: path.read_bytes() for path in place.iterdir()} == before
    split(tmp_path / "b.tflite", place, SplitOptions(parts=2, force=True), judging=NOTHING)
    # Parts of the other one stay: nothing is removed.
    assert set(before) < {path.name for path in place.iterdir()}


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        (("parts", 0, "name"), "../x.tflite", "not a plain file name"),
        (("parts", 0, "sha256"), "0" * 64, "SHA-256 differs"),
        (("parts", 0, "sha256"), "x", "not a SHA-256"),
        (("parts", 1, "inputs", 0, "from"), [1, 0], "not an output of a part before it"),
        (("parts", 1, "inputs", 0, "from"), [0, True], r"is not \[part, output\]"),
        (("parts", 1, "inputs", 0, "shape"), [1e9], "not a list of sizes"),
        (("parts",), [], "not a list of parts"),
        (("outputs", 0, "from"), [2, 0], "not an output of a part before it"),
        (("outputs", 0, "name"), "y_2", "two have the same name"),
        (("format",), "other", "not a manifest of parts that run"),
        (("version",), 9, "newer than this program"),
    ],
)
def test_nothing_in_a_manifest_is_trusted(
    tmp_path: Path, key: tuple[Any, ...], value: object, why: str
) -> None:
    place = tmp_path / "parts"
    split(skipping(tmp_path / "in.tflite"), place, SplitOptions(parts=2), judging=NOTHING)
    data = json.loads((place / "chain.json").read_text())
    target: Any = data
    for name in key[:-1]:
        target = target[name]
    target[key[-1]] = value
    (place / "chain.json").write_text(json.dumps(data))
    with pytest.raises((FormatError, UnsupportedError), match=why):
        Chain.open(place / "chain.json")


def test_a_part_that_is_missing_or_changed_is_told(tmp_path: Path) -> None:
    place = tmp_path / "parts"
    report = split(skipping(tmp_path / "in.tflite"), place, SplitOptions(parts=2), judging=NOTHING)
    part = place / report.files[1].name
    part.write_bytes(part.read_bytes()[:-1] + b"x")
    with pytest.raises(FormatError, match="is not the part that the manifest names"):
        Chain.open(place / "chain.json")
    part.unlink()
    with pytest.raises(FileAccessError):
        Chain.open(place / "chain.json")


def test_signatures_of_other_subgraphs_are_refused(tmp_path: Path) -> None:
    net = Net()
    net.output(net.add("NEG", [net.add("NEG", [net.input("x", (1, 4))], "a", (1, 4))], "y", (1, 4)))
    net.next_subgraph("encode")
    net.output(net.add("NEG", [net.input("x", (1, 4))], "y", (1, 4)))
    net.sign("encode")
    save(net.model, tmp_path / "in.tflite")
    with pytest.raises(UnsupportedError, match="signature 'encode' runs another subgraph"):
        split(tmp_path / "in.tflite", tmp_path / "parts", SplitOptions(parts=2), judging=NOTHING)


def test_the_command_says_what_it_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, place = skipping(tmp_path / "in.tflite"), tmp_path / "parts"
    words = ["split", str(source), str(place), "--parts", "2", "--verify", "off"]
    assert main([*words, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert len(data["files"]) == 2 and len(data["crossing"]) == 1
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "2 parts that run" in said and "kept" in said and "UNVERIFIED: not run, as asked" in said
    assert main(["split", str(source), str(place), "--parts", "9"]) == 3
    assert "not at 8" in capsys.readouterr().err


def two_layers(argument: str = "y") -> Net:
    net = Net()
    inner = net.add("NEG", [net.input("x", (1, 4))], "a", (1, 4))
    net.output(net.add("ABS", [inner], "y", (1, 4)))
    net.sign("serve")
    signature = net.model.signatures[0]
    tensor = inner if argument == "inner" else net.graph.outputs[0]
    signature.outputs.append((signature.outputs[0][0].replace(name=argument), tensor))
    return net


def test_what_parts_cannot_give_is_refused(tmp_path: Path) -> None:
    inner, left, state = two_layers("inner"), two_layers("again"), two_layers()
    left.model.signatures[0].inputs.clear()
    state.graph.outputs[0].is_variable = True
    for net, why in (
        (inner, "signature 'serve' names 'a', which is none of the outputs"),
        (left, "signature 'serve' leaves out the input 'x'"),
        (state, "the output 'y' is a variable"),
    ):
        save(net.model, tmp_path / "in.tflite", force=True)
        with pytest.raises(UnsupportedError, match=why):
            split(tmp_path / "in.tflite", tmp_path / "parts", SplitOptions(parts=2), judging=NOTHING)
    assert not (tmp_path / "parts").exists()


def test_a_model_without_buffers_is_split(tmp_path: Path) -> None:
    model = two_layers().model
    model.buffers.clear()
    save(model, tmp_path / "in.tflite")
    report = split(tmp_path / "in.tflite", tmp_path / "parts", SplitOptions(parts=2), judging=NOTHING)
    assert [len(load(tmp_path / "parts" / item.name).buffers) for item in report.files] == [0, 0]


@pytest.mark.runtime
def test_a_tensor_with_two_names_is_compared_under_both(tmp_path: Path) -> None:
    for number, twice in enumerate((False, True)):
        net = two_layers("again")
        net.graph.outputs += net.graph.outputs if twice else []
        save(net.model, tmp_path / "in.tflite", force=True)
        place = tmp_path / f"parts{number}"
        report = split(tmp_path / "in.tflite", place, SplitOptions(parts=2), judging=ONCE)
        assert report.verdict is not None and report.verdict.passed
        assert {item.label for item in report.verdict.outputs} >= {"serve/y", "serve/again"}
