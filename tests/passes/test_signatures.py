"""What a new signature calls, what a removed one leaves, and what is left where one is extracted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.nets import Net, run
from tfl_rewrite import RewriteFailed, UsageError, load, rewrite, save
from tfl_rewrite.editing.base import PassResult, run_passes
from tfl_rewrite.editing.descriptions import read_descriptions, record, write_descriptions
from tfl_rewrite.files.source import is_changed
from tfl_rewrite.flatbuf.record import Record
from tfl_rewrite.model.ir import Model, Tensor
from tfl_rewrite.passes import Signatures
from tfl_rewrite.passes.extract import Extract

Arguments = list[tuple[Record, Tensor]]
ONES = np.ones((1, 4), np.float32)


def net() -> Net:
    """Two subgraphs, of which the second alone has a signature."""
    made = Net()
    one, other = made.input("x", (1, 4)), made.input("w", (1, 4))
    made.output(made.add("MUL", [one, made.constant("two", 2 * ONES)], "y", (1, 4)))
    made.output(made.add("SUB", [one, other], "z", (1, 4)))
    made.next_subgraph("second")
    given = made.input("x", (1, 4))
    made.output(made.add("ADD", [given, made.constant("three", 3 * ONES)], "s", (1, 4)))
    made.output(made.add("MUL", [given, given], "q", (1, 4)))
    made.sign("second")
    return made


def changed(model: Model, **options: object) -> PassResult:
    return run_passes(model, [Signatures(**options)])[-1]


def signatures(model: Model) -> dict[str | None, list[list[str]]]:
    def told(side: Arguments) -> list[str]:
        return [f"{row.get('name')}={tensor.name}" for row, tensor in side]

    return {item.key: [told(item.inputs), told(item.outputs)] for item in model.signatures}


def test_a_signature_names_its_arguments_by_the_tensors_unless_told() -> None:
    model = net().model
    changed(model, add=("serve", "part:inputs=a=x,w,outputs=#4"))
    assert signatures(model) == {
        "second": [["x=x"], ["s=s", "q=q"]],
        "serve": [["x=x", "w=w"], ["y=y", "z=z"]],
        "part": [["a=x", "w=w"], ["z=z"]],
    }
    changed(model, add=("square:inputs=x,outputs=square=q",))
    assert signatures(model)["square"] == [["x=x"], ["square=q"]], "of the subgraph that has q"


def test_tensors_without_a_name_or_of_one_name_get_arguments_of_their_own() -> None:
    model = net().model
    for tensor, name in zip(model.subgraphs[0].outputs, ("", "x"), strict=True):
        tensor.name = name
    model.subgraphs[0].inputs[1].name = "x"
    changed(model, add=("serve",))
    assert signatures(model)["serve"] == [["x=x", "x_1=x"], ["output_0=", "x=x"]]
    with pytest.raises(UsageError, match="3 tensors are named 'x'; name one: #0, #1, #4"):
        changed(model, add=("other:inputs=x",))


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        ("serve:inputs=x", "signature 'serve' leaves out the input 'w', which would hold nothing"),
        ("serve:outputs=two", "'two' is no output of the subgraph; cut the model first"),
        ("serve:outputs=nothing", "no output is named 'nothing'"),
        ("serve:outputs=a=y,a=z", "two outputs are named alike"),
        ("second:outputs=y", "there is another signature 'second'; give --remove second as well"),
        ("", "'' is no name for a signature"),
    ],
)
def test_what_cannot_be_called_is_refused(wanted: str, told: str, tmp_path: Path) -> None:
    save(net().model, tmp_path / "m.tflite")
    model = load(tmp_path / "m.tflite")
    with pytest.raises(UsageError) as refused:
        changed(model, add=(wanted,))
    assert told in str(refused.value) and not is_changed(model)


def test_a_subgraph_that_only_operators_run_has_nothing_to_compare_with() -> None:
    model = net().model
    model.signatures = []
    with pytest.raises(UsageError, match="only operators call the subgraph of 'late'"):
        changed(model, add=("late:outputs=q",))


@pytest.mark.parametrize("others", [True, False])
def test_one_added_and_removed_again_leaves_the_bytes_of_a_plain_save(tmp_path: Path, others: bool) -> None:
    made = net().model
    made.signatures = made.signatures if others else []
    save(made, tmp_path / "m.tflite")
    model = load(tmp_path / "m.tflite")
    result = changed(model, add=("serve",))
    assert not changed(model, add=("serve",)).modified
    save(model, tmp_path / "a.tflite")
    again = load(tmp_path / "a.tflite")
    assert changed(again, remove=("serve",)).modified and result.modified
    assert again.to_bytes() == (tmp_path / "m.tflite").read_bytes()
    with pytest.raises(UsageError, match="'second' is to be removed and extracted"):
        Signatures(remove=("second",), extract="second")
    with pytest.raises(UsageError, match="nothing is asked for; give --add"):
        changed(again)


@pytest.mark.parametrize(
    "text",
    [
        "serve:input=x",
        "serve,inputs=x",
        "serve=x",
        " serve:inputs=x,w",
        "serve:outputs=a==y",
        "serve:outputs= a=y",
    ],
)
def test_a_typing_error_makes_no_name(text: str) -> None:
    model = net().model
    with pytest.raises(UsageError):
        changed(model, add=(text,))
    assert [item.key for item in model.signatures] == ["second"]


def test_what_is_not_there_cannot_be_removed() -> None:
    with pytest.raises(UsageError, match=r"no signature 'secnd'; did you mean 'second'\? it has 'second'"):
        changed(net().model, remove=("secnd",))


def test_a_removed_signature_may_leave_a_subgraph_that_nothing_calls() -> None:
    result = changed(net().model, remove=("second",))
    assert result.notes == ("nothing calls subgraphs[1] any more; 'remove-dead' takes it out",)
    replaced = net().model
    changed(replaced, remove=("second",), add=("second:inputs=x,w",))
    assert signatures(replaced) == {"second": [["x=x", "w=w"], ["y=y", "z=z"]]}


def test_what_is_extracted_is_the_main_subgraph_with_its_descriptions() -> None:
    made = net()
    descriptions = [record("SubGraphMetadata", name=name) for name in ("first", "other")]
    write_descriptions(made.model, record("ModelMetadata", subgraph_metadata=descriptions))
    made.model.signatures[0].outputs.pop()
    results = run_passes(made.model, [Signatures(extract="second")])
    assert [item.name for item in results] == ["extract", "remove-dead"]
    (graph,) = made.model.subgraphs
    assert (graph.name, [item.name for item in graph.outputs]) == ("second", ["s"])
    assert [operator.code.name for operator in graph.operators] == ["ADD"]
    root = read_descriptions(made.model)
    assert root is not None and [item["name"] for item in root["subgraph_metadata"]] == ["other"]
    again = run_passes(made.model, [Extract("second")])[0]
    assert not again.modified and again.idle == "'second' is the only signature, of the main subgraph"


def test_an_extracted_signature_needs_all_inputs_and_its_own_state() -> None:
    made = net()
    made.model.signatures[0].inputs.clear()
    with pytest.raises(UsageError, match="signature 'second' leaves out the input 'x'"):
        changed(made.model, extract="second")
    with pytest.raises(UsageError, match="the model has no signature 'seconds'; did you mean 'second'"):
        changed(made.model, extract="seconds")


@pytest.mark.runtime
def test_each_new_entry_point_is_compared_with_what_its_subgraph_gives(tmp_path: Path) -> None:
    save(net().model, tmp_path / "m.tflite")
    added = Signatures(add=("serve:inputs=b=x,a=w,outputs=n=z,m=y", "square:inputs=x,outputs=s=q"))
    report = rewrite(tmp_path / "m.tflite", tmp_path / "o.tflite", [added])
    assert report.verdict is not None and report.verdict.passed
    labels = {item.label for item in report.verdict.outputs}
    assert labels >= {"second/s", "second/q", "serve/m", "serve/n", "square/s"}
    given = run(tmp_path / "o.tflite", {"b": ONES, "a": 3 * ONES}, signature="serve")
    assert given["m"].tolist() == [[2.0] * 4] and given["n"].tolist() == [[-2.0] * 4]
    report = rewrite(tmp_path / "o.tflite", tmp_path / "e.tflite", [Signatures(extract="square")])
    assert report.verdict is not None and report.verdict.passed
    assert run(tmp_path / "e.tflite", {"x": 3 * ONES})["q"].tolist() == [[9.0] * 4]
    report = rewrite(tmp_path / "o.tflite", tmp_path / "r.tflite", [Signatures(remove=("serve", "second"))])
    assert report.verdict is not None and report.verdict.passed
    assert {item.label for item in report.verdict.outputs} == {"square/s", "y", "z"}


@pytest.mark.runtime
def test_a_signature_of_other_tensors_than_asked_for_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    save(net().model, tmp_path / "m.tflite")
    honest = Signatures.run

    def swapping(self: Signatures, model: Model, context: object) -> PassResult:
        result = honest(self, model, context)  # type: ignore[arg-type]
        rows = model.signatures[-1].outputs
        rows[:] = [(row, tensor) for (row, _), (_, tensor) in zip(rows, reversed(rows), strict=True)]
        return result

    monkeypatch.setattr(Signatures, "run", swapping)
    with pytest.raises(RewriteFailed, match="serve/y: differs from the original"):
        rewrite(tmp_path / "m.tflite", tmp_path / "o.tflite", [Signatures(add=("serve",))])


@pytest.mark.runtime
def test_what_is_extracted_gives_what_its_signature_gives(tmp_path: Path) -> None:
    made = Net()
    inner = made.add("TANH", [made.input("x", (1, 4))], "r", (1, 4))
    made.output(made.add("NEG", [inner], "y", (1, 4)))
    made.sign("serve")
    made.sign("feat")
    outputs = made.model.signatures[1].outputs
    outputs[0] = (outputs[0][0].replace(name="inner"), inner)
    save(made.model, tmp_path / "m.tflite")
    report = rewrite(tmp_path / "m.tflite", tmp_path / "e.tflite", [Signatures(extract="feat")])
    assert report.verdict is not None and report.verdict.passed
    assert {item.label for item in report.verdict.outputs} == {"feat/inner"}
    (graph,) = load(tmp_path / "e.tflite").subgraphs
    assert [item.name for item in graph.outputs] == ["r"] and len(graph.operators) == 1


def test_a_signature_of_no_outputs_or_of_other_inputs_is_not_extracted() -> None:
    made = net()
    signature = made.model.signatures[0]
    row, _ = signature.inputs[0]
    signature.inputs.append((row.replace(name="inner"), made.graph.tensors[1]))
    with pytest.raises(UsageError, match="signature 'second' takes 'three', which is no input"):
        changed(made.model, extract="second")
    signature.inputs.pop()
    signature.outputs.clear()
    with pytest.raises(UsageError, match="signature 'second' gives nothing"):
        changed(made.model, extract="second")
