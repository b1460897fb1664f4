"""Which names change, which follow, what is refused; and that the judge looks behind the new names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.nets import Net, run
from tfl_rewrite import Judging, RewriteFailed, UsageError, load, rewrite, save
from tfl_rewrite.editing.base import PassResult, run_passes
from tfl_rewrite.editing.descriptions import read_descriptions, record, write_descriptions
from tfl_rewrite.files.source import is_changed
from tfl_rewrite.model.ir import Model, new_record
from tfl_rewrite.passes import Rename
from tfl_rewrite.passes.remove_dead import RemoveDead
from tfl_rewrite.passes.rename import Renaming

TWO = np.full((1, 4), 2, np.float32)


def net(*, tensors: tuple[str, str, str] = ("x", "y", "z")) -> Net:
    """Two inputs and two outputs that differ, and a signature with the names of the tensors."""
    made = Net()
    one, other = made.input(tensors[0], (1, 4)), made.input("w", (1, 4))
    made.output(made.add("MUL", [one, made.constant("two", TWO)], tensors[1], (1, 4)))
    made.output(made.add("SUB", [one, other], tensors[2], (1, 4)))
    made.sign("serve")
    return made


def arguments(model: Model, number: int = 0) -> list[list[str]]:
    signature = model.signatures[number]
    return [[row.get("name") for row, _ in side] for side in (signature.inputs, signature.outputs)]


def border(model: Model) -> list[list[str]]:
    graph = model.subgraphs[0]
    return [[item.name for item in side] for side in (graph.inputs, graph.outputs)]


def renamed(model: Model, **pairs: str | list[str]) -> PassResult:
    given = {key: (value,) if isinstance(value, str) else tuple(value) for key, value in pairs.items()}
    return run_passes(model, [Rename(**given)])[0]


def test_an_argument_and_its_tensor_are_renamed_where_both_have_the_name() -> None:
    model = net().model
    result = renamed(model, input="x=image", output=["y=double", "z=rest"], signature="serve=predict")
    assert arguments(model) == border(model) == [["image", "w"], ["double", "rest"]]
    assert model.signatures[0].key == "predict"
    assert [(item.where, item.to_dict()["name"]) for item in result.changes][:2] == [
        ("x", "image"),
        ("y", "double"),
    ]


def test_an_argument_of_another_name_than_its_tensor_is_renamed_alone() -> None:
    model = net().model
    model.subgraphs[0].inputs[0].name = "serving_default_x:0"
    assert renamed(model, input="x=image").notes == ()
    assert (arguments(model)[0], border(model)[0]) == (["image", "w"], ["serving_default_x:0", "w"])
    told = renamed(model, input="serving_default_x:0=pixels").notes
    assert (arguments(model)[0], border(model)[0]) == (["image", "w"], ["pixels", "w"])
    assert told == ("signature 'serve' still calls 'pixels' 'image'",)


def test_a_tensor_or_an_argument_can_be_meant_alone() -> None:
    model = net().model
    renamed(model, tensor=["x=image", "two=factor"], argument="serve:y=double")
    assert border(model) == [["image", "w"], ["y", "z"]]
    assert arguments(model) == [["x", "w"], ["double", "z"]]
    assert model.subgraphs[0].tensor("factor").is_constant


def test_a_signature_alone_and_a_tensor_of_several_subgraphs() -> None:
    made = net()
    (change,) = renamed(made.model, signature="serve=predict").changes
    assert (change.where, made.model.signatures[0].key) == ("serve", "predict")
    for name in ("one", "other"):
        made.next_subgraph(name)
        made.output(made.input("inner", (1, 4)))
    with pytest.raises(UsageError, match=r"a tensor of subgraphs.1., subgraphs.2.; rename an input or"):
        renamed(made.model, tensor="inner=a")


def test_names_are_read_before_any_changes_so_that_two_can_be_swapped() -> None:
    model = net().model
    renamed(model, input=["x=w", "w=x"])
    assert arguments(model)[0] == border(model)[0] == ["w", "x"]


def test_tensors_of_no_or_the_same_name_go_by_their_number() -> None:
    model = net(tensors=("", "same", "same")).model
    model.signatures = []
    renamed(model, input="#0=image", output="#3=first")
    assert border(model) == [["image", "w"], ["first", "same"]]
    for pairs, told in (
        ({"output": "#0=a"}, "tensor #0 is no output of the main subgraph; they are #3, #4"),
        ({"input": "#9=a"}, "tensor #9 is no input of the main subgraph; they are #0, #1"),
        ({"tensor": "#9=a"}, "there is no tensor #9; the last is #4"),
    ):
        with pytest.raises(UsageError) as refused:
            renamed(model, **pairs)
        ((name, pair),) = pairs.items()
        assert str(refused.value) == f"--{name} {pair}: {told}"


def test_a_number_where_there_are_no_tensors() -> None:
    with pytest.raises(UsageError, match="there is no tensor #0; the subgraph has no tensors"):
        renamed(Net().model, tensor="#0=a")


def test_a_name_may_hold_the_sign_between_old_and_new() -> None:
    model = net(tensors=("a=b", "y", "z")).model
    renamed(model, input="a=b=c")
    assert border(model)[0] == ["c", "w"]
    renamed(model, input="c=a=b")
    assert border(model)[0] == ["a=b", "w"]


@pytest.mark.parametrize(
    ("pairs", "told"),
    [
        ({"input": "x=w"}, "another tensor of subgraphs[0] is named 'w'"),
        ({"argument": "serve:x=w"}, "another argument of signature 'serve' is named 'w'"),
        ({"output": "x=a"}, "no output is named 'x'"),
        ({"input": "x="}, "'' is no name for an input"),
        ({"input": "x=\0"}, "is no name for an input"),
        ({"input": "x=\udcff"}, "is no text"),
        ({"input": "x"}, "'x' names no new input"),
        ({"tensor": "nowhere=a"}, "no tensor is named 'nowhere'"),
        ({"argument": "serf:x=a"}, "the model has no signature 'serf'; did you mean 'serve'?"),
        ({"argument": "serve:q=a"}, "no argument of signature 'serve' is named 'q'"),
        ({"signature": "other=a"}, "the model has no signature 'other'"),
        ({"input": ["x=same", "w=same"]}, "another tensor of subgraphs[0] is named 'same'"),
    ],
    ids=str,
)
def test_what_cannot_be_named_so_is_refused_and_nothing_is_changed(
    pairs: dict[str, str | list[str]], told: str, tmp_path: Path
) -> None:
    save(net().model, tmp_path / "m.tflite")
    model = load(tmp_path / "m.tflite")
    with pytest.raises(UsageError) as refused:
        renamed(model, **pairs)
    assert told in str(refused.value)
    assert not is_changed(model)


def test_names_that_two_signatures_and_both_sides_share() -> None:
    made = net()
    second = made.model.signatures[0]
    made.sign("again")
    made.model.signatures[1].outputs[0] = (new_record("TensorMap").replace(name="x"), second.outputs[0][1])
    renamed(made.model, input="x=image")
    assert [arguments(made.model, number)[0][0] for number in (0, 1)] == ["image", "image"]
    renamed(made.model, argument="again:x=out")
    assert arguments(made.model, 1) == [["image", "w"], ["out", "z"]]
    made.model.signatures[1].outputs[0] = (new_record("TensorMap").replace(name="w"), second.outputs[0][1])
    with pytest.raises(UsageError, match="'w' is an input and an output of signature 'again'"):
        renamed(made.model, argument="again:w=a")
    with pytest.raises(UsageError, match="another signature is named 'again'"):
        renamed(made.model, signature="serve=again")


def test_names_in_the_metadata_follow_by_position(tmp_path: Path) -> None:
    made = net()
    tensors = [record("TensorMetadata", name=name) for name in ("x", "a picture")]
    group = record("TensorGroup", name="pair", tensor_names=["x", "a picture"])
    graph = record("SubGraphMetadata", input_tensor_metadata=tensors, input_tensor_groups=[group])
    write_descriptions(made.model, record("ModelMetadata", name="m", subgraph_metadata=[graph]))
    result = renamed(made.model, input=["x=image", "w=x"])
    root = read_descriptions(made.model)
    assert root is not None and result.notes == ("metadata TFLITE_METADATA: names in it follow",)
    (graph,) = root["subgraph_metadata"]
    assert [row["name"] for row in graph["input_tensor_metadata"]] == ["image", "a picture"]
    assert graph["input_tensor_groups"][0]["tensor_names"] == ["image", "a picture"]
    assert root["name"] == "m"


def test_damaged_metadata_stays_and_is_told() -> None:
    made = net()
    made.metadata("TFLITE_METADATA", b"\xff" * 40)
    (told,) = renamed(made.model, input="x=image").notes
    assert told.startswith("metadata TFLITE_METADATA left as it is, old names included: is damaged")


def test_a_second_run_changes_nothing(tmp_path: Path) -> None:
    model = net().model
    pairs = {"input": "x=image", "signature": "serve=predict", "argument": "serve:y=double"}
    renamed(model, **pairs)
    save(model, tmp_path / "m.tflite")
    again = load(tmp_path / "m.tflite")
    result = renamed(again, input="x=image", signature="serve=predict", argument="predict:y=double")
    assert not result.modified and len(result.skips) == 3 and not is_changed(again)
    assert renamed(again, input="image=image").idle == "it has these names already"
    with pytest.raises(UsageError, match="nothing is asked for; give --input"):
        renamed(again)


# -- The judge -----------------------------------------------------------------------------------------------


@pytest.mark.runtime
def test_outputs_are_compared_with_the_old_names_whatever_the_order_of_the_new_ones(tmp_path: Path) -> None:
    save(net().model, tmp_path / "m.tflite")
    # A runtime sorts arguments by name: all change their places.
    passes = [Rename(input=("x=b", "w=a"), output=("y=2", "z=1"), signature=("serve=s",))]
    report = rewrite(tmp_path / "m.tflite", tmp_path / "o.tflite", passes)
    assert report.verdict is not None and report.verdict.passed
    assert [(item.signature, item.name, item.rule) for item in report.verdict.outputs] == [
        ("s", "1", "exact"),
        ("s", "2", "exact"),
    ]
    ones = np.ones((1, 4), np.float32)
    given = run(tmp_path / "o.tflite", {"b": ones, "a": 3 * ones}, signature="s")
    assert given["2"].tolist() == [[2.0] * 4] and given["1"].tolist() == [[-2.0] * 4]


@pytest.mark.runtime
@pytest.mark.parametrize("signed", [True, False])
def test_a_pass_that_gives_the_names_to_others_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, signed: bool
) -> None:
    """Else equal outputs under equal names would prove nothing."""
    made = net()
    if not signed:
        made.model.signatures = []
    save(made.model, tmp_path / "m.tflite")
    honest = Renaming.apply

    def swapping(names: Renaming) -> list[object]:
        graph = names.model.subgraphs[0]
        changes = honest(names)
        for side in (graph.outputs, *(item.outputs for item in names.model.signatures)):
            side.reverse()  # type: ignore[attr-defined]
        if names.model.signatures:
            rows = names.model.signatures[0].outputs
            rows[:] = [(row, tensor) for (row, _), (_, tensor) in zip(rows, reversed(rows), strict=True)]
        return list(changes)

    monkeypatch.setattr(Renaming, "apply", swapping)
    with pytest.raises(RewriteFailed) as refused:
        rewrite(tmp_path / "m.tflite", tmp_path / "o.tflite", [Rename(output=("y=p", "z=q"))])
    assert "differs from the original" in str(refused.value) or "another order" in str(refused.value)
    assert not (tmp_path / "o.tflite").exists()


@pytest.mark.runtime
def test_it_goes_with_other_passes_behind_those_that_cut(tmp_path: Path) -> None:
    save(net().model, tmp_path / "m.tflite")
    inputs = tmp_path / "inputs.npz"
    np.savez(inputs, x=np.ones((3, 1, 4), np.float32), w=np.arange(12, dtype=np.float32).reshape(3, 1, 4))
    twice = [Rename(input=("x=a",), output=("z=b",)), Rename(input=("a=c",), signature=("serve=s",))]
    report = rewrite(
        tmp_path / "m.tflite",
        tmp_path / "o.tflite",
        [RemoveDead(outputs=("z",)), *twice],
        judging=Judging(inputs=(str(inputs),)),
    )
    assert report.verdict is not None and report.verdict.passed
    assert report.verdict.sample_source == "real", "under the old names, which the samples have"
    assert [item.label for item in report.verdict.outputs] == ["s/b"]
    with pytest.raises(UsageError, match="rename stands before cut; put rename last"):
        rewrite(tmp_path / "m.tflite", tmp_path / "p.tflite", [twice[0], RemoveDead(outputs=("b",))])


def test_a_signature_without_a_key_stays_so(fixtures: Path) -> None:
    model = load(fixtures / "malformed" / "signature_without_key.tflite")
    (result,) = run_passes(model, [Rename(tensor=("#0=renamed",))])
    assert result.modified and model.signatures[0].key is None
