"""Which output feeds which input: as it is said, or where it is clear by itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.nets import Net, with_grid
from tfl_rewrite.editing.stages import stage_of
from tfl_rewrite.errors import InvariantError, UnsupportedError, UsageError
from tfl_rewrite.model.ir import Tensor
from tfl_rewrite.pipeline.wiring import End, Wiring, check_kept, ends_of, find, fits, links_of, names_of


def end(name: str, *shape: int, argument: str = "", index: int = 0) -> End:
    arguments: list[tuple[str | None, str]] = [("serving_default", argument)] if argument else []
    return End(Net().tensor(name, shape), (0, index), arguments, index, {name, argument} - {""})


def test_only_ones_equal_names_and_the_only_order_are_clear() -> None:
    assert links_of([end("a", 1)], [end("b", 2)], ()) == {0: 0}
    outputs = [end("a", 1, 4), end("b", 1, 4)]
    assert links_of(outputs, [end("b", 1, 4)], ()) == {0: 1}
    assert links_of([end("a", 1, 4), end("b", 1, 5)], [end("x", 1, 5), end("y", 1, 4)], ()) == {0: 1, 1: 0}
    numbers = End(Net().tensor("n", (1, 4), np.int32), (0, 1), [], 1, {"n"})
    assert links_of([outputs[0], numbers], [end("x", 1, 4)], ()) == {0: 0}
    with pytest.raises(UsageError, match=r"not clear what is connected.*gives 'a', 'b'; the second takes"):
        links_of(outputs, [end("x", 1, 4)], ())


def test_what_is_said_is_done() -> None:
    outputs = [end("a", 1, 4, argument="embedding"), end("b=c", 1, 4, index=1)]
    inputs = [end("x", 1, 4, index=7), end("y", 1, 4, index=8)]
    assert links_of(outputs, inputs, ["embedding=y", "b=c=x"]) == {1: 0, 0: 1}
    assert links_of(outputs, inputs, ["#1=#7"]) == {0: 1}
    for text, why in (
        ("embeding=x", "no output of the first model is named 'embeding'.*did you mean 'embedding'"),
        ("a=z", "no input of the second model is named 'z'"),
        ("a", "write OUTPUT=INPUT"),
    ):
        with pytest.raises(UsageError, match=why):
            links_of(outputs, inputs, [text])
    with pytest.raises(UsageError, match="two outputs are connected with 'x'"):
        links_of(outputs, inputs, ["a=x", "b=c=x"])
    with pytest.raises(UsageError, match=r"more than one input is named 'x'.*#0, #3"):
        find([end("x", 1), end("x", 1, index=3)], "x", "input")
    unnamed = End(Net().tensor("", (1,)), (0, 0), [], 3, set())
    with pytest.raises(UsageError, match="there are 2 inputs; name one: 'x', #3"):
        find([inputs[0], unnamed], None, "input")


def test_an_input_of_the_first_feeds_the_second_where_no_output_has_its_name() -> None:
    outputs, taken = [end("a", 1), end("b", 1, index=1)], [end("x", 1, index=5), end("a", 1, index=6)]
    inputs = [end("y", 1, index=9)]
    assert links_of(outputs, inputs, ["x=y"], taken) == {0: 2}
    assert links_of(outputs, inputs, ["#6=#9"], taken) == {0: 3}
    assert links_of(outputs, inputs, ["a=y"], taken) == {0: 0}


def unshaped(_: End) -> Tensor:
    raise AssertionError("an output that declares its shape is not run")


def test_stages_behind_are_found_by_what_those_before_gave(tmp_path: Path) -> None:
    """The first of several takes the name of what went in; the others have names of their own."""
    wiring = Wiring(tmp_path)
    ends = [end("scores", 1, 8, argument="s", index=4), end("other", 1, 3, argument="o", index=5)]
    stages = [stage_of(text, before=False) for text in ("top-k:3,tensor=s", "softmax:tensor=scores")]
    given = wiring.behind(list(ends), stages, unshaped)
    assert [item.tensor.name for item in given] == ["scores_values_softmax", "scores_indices", "other"]
    assert [item.feed for item in given] == [(1, 0), (0, 1), ends[1].feed]
    assert [item.through for item in given] == [("top-k", "softmax"), ("top-k",), ()]
    assert [item.arguments for item in given] == [
        [("serving_default", "s_values")],
        [("serving_default", "s_indices")],
        [("serving_default", "o")],
    ]
    assert [item.index for item in given] == [4, -1, 5]
    assert [(edit.where, edit.what) for edit in wiring.edits] == [
        ("scores", "top-k behind it"),
        ("scores_values", "softmax behind it"),
    ]
    assert [part.path.name for part in wiring.parts] == ["0-top-k.tflite", "1-softmax.tflite"]
    with pytest.raises(
        UnsupportedError, match=r"^--append argmax:tensor=scores_indices: 'scores_indices' is"
    ):
        wiring.behind(given, [stage_of("argmax:tensor=scores_indices", before=False)], unshaped)


def test_what_an_output_without_a_shape_has_is_asked_once(tmp_path: Path) -> None:
    silent, asked = end("scores"), list[End]()

    def run(item: End) -> Tensor:
        asked.append(item)
        return Net().tensor("scores", (1, 8))

    stages = [stage_of(text, before=False) for text in ("softmax", "top-k:2")]
    given = Wiring(tmp_path).behind([silent], stages, run)
    assert asked == [silent] and [item.tensor.shape for item in given] == [(1, 2), (1, 2)]


def test_stages_before_end_in_the_type_that_the_model_takes(tmp_path: Path) -> None:
    wiring = Wiring(tmp_path)
    taken = end("q", 1, 4, 4, 3, argument="image")
    with_grid(taken.tensor, 0.5, 3).dtype = 9
    stages = [stage_of(text, before=True) for text in ("cast:uint8", "normalize:mean=1,std=2")]
    assert wiring.before(taken, []) == taken.feed
    assert wiring.before(taken, stages) == (2, 0)
    assert [part.piece.name for part in wiring.parts] == ["cast", "normalize", "quantize"]
    assert [part.piece.feeds for part in wiring.parts] == [(taken.feed,), ((0, 0),), ((1, 0),)]
    assert taken.through == ("cast", "normalize") and len(wiring.edits) == 3
    with pytest.raises(UsageError, match=r"^--prepend normalize: normalize gives.*uint8; give cast first"):
        wiring.before(taken, [stage_of(text, before=True) for text in ("normalize", "cast")])


def test_a_tensor_that_is_given_twice_is_found_by_each_of_its_names() -> None:
    net = Net()
    result = net.add("NEG", [net.input("x", (1, 4))], "r", (1, 4))
    net.output(result)
    net.output(result)
    net.sign("serve")
    rows = net.model.signatures[0].outputs
    rows[1] = (rows[1][0].replace(name="again"), result)
    ends = ends_of(net.model, [(0, 0), (0, 1)], outputs=True)
    assert [item.arguments for item in ends] == [[("serve", "r")], [("serve", "again")]]
    assert [find(ends, name, "output") for name in ("r", "#1", "again")] == [0, 0, 1]
    inner = net.tensor("inner", (1, 4))
    rows.append((rows[0][0].replace(name="inner"), inner))
    with pytest.raises(UnsupportedError, match="'serve' names 'inner', which is none of the outputs"):
        ends_of(net.model, [(0, 0), (0, 1)], outputs=True)


def test_shapes_fit_where_nothing_is_against_it() -> None:
    def shaped(*shape: int, signature: tuple[int, ...] | None = None) -> Tensor:
        made = Net().tensor("x", shape)
        made.signature = signature
        return made

    assert fits(shaped(1, 4), shaped(1, 4)) and fits(shaped(1, 4), shaped(1, 9, signature=(1, -1)))
    assert not fits(shaped(1, 4), shaped(1, 5)) and not fits(shaped(1, 4), shaped(4))
    assert fits(shaped(1, 1), shaped(1, 5), (1, 5))
    silent = shaped(1)
    silent.shape = None
    assert fits(silent, shaped(4)) and fits(shaped(4), silent) and not fits(silent, shaped(4), (5,))


def test_names_in_front_are_those_of_the_files() -> None:
    assert names_of(["/models/a.tflite", "b.tflite"]) == ["a", "b"]
    assert names_of(["a.tflite", "other/a.tflite"]) == ["a", "a_2"]


def test_a_signature_or_an_argument_that_is_lost_is_told() -> None:
    one = end("x", 1, 4, argument="image")
    model = {"serving_default": ([("image", 0)], [])}
    check_kept(model, [{}, model], [[one], []])
    with pytest.raises(InvariantError, match="lost signature 'serving_default'"):
        check_kept({}, [{}, model], [[one], []])
    with pytest.raises(InvariantError, match="lost 'image' of signature 'serving_default'"):
        check_kept({"serving_default": ([("x", 0)], [])}, [model], [[one], []])
