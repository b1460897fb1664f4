"""remove-noops takes out what gives out what it is given, and leaves what does not, or must stay."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tfl_rewrite import load, rewrite, save
from tfl_rewrite.editing.base import run_passes
from tfl_rewrite.model.invariants import broken
from tfl_rewrite.model.ir import Model, Tensor
from tfl_rewrite.passes.remove_noops import RemoveNoops

from ..nets import Net, UnsignedNet, named, with_grid

SHAPE = (1, 4, 4, 2)
Make = Callable[[Net, Tensor], Tensor]


def ints(net: Net, *values: object) -> Tensor:
    return net.constant(f"c{len(net.graph.tensors)}", np.array(values, np.int32))


def floats(net: Net, values: object) -> Tensor:
    return net.constant(f"c{len(net.graph.tensors)}", np.array(values, np.float32))


def kinds(model: Model) -> list[str]:
    return [operator.code.name for _, operator in model.operators()]


def cleaned(net: Net) -> list[str]:
    """The operators that are left, and it is told where those are others; a second run finds nothing."""
    before = kinds(net.model)
    result = run_passes(net.model, [RemoveNoops()])[0]
    assert not broken(net.model)
    left = kinds(net.model)
    assert result.modified is (left != before)
    again = run_passes(net.model, [RemoveNoops()])[0]
    assert not again.modified and again.idle
    return left


def between(make: Make, *, shape: tuple[int, ...] = SHAPE, signature: tuple[int, ...] | None = None) -> Net:
    """A model that makes something between two operators that compute."""
    net = Net()
    source = net.input("in", shape)
    source.signature = signature
    first = net.add("ABS", [source], "first", shape)
    first.signature = signature
    made = make(net, first)
    # What this declares is not read by anybody.
    net.output(net.add("ABS", [made], "out", made.shape or ()))
    return net


def sliced(net: Net, source: Tensor, **options: int) -> Tensor:
    operands = [ints(net, 0, 0, 0, 0), ints(net, *SHAPE), ints(net, 1, 1, 1, 1)]
    return net.add("STRIDED_SLICE", [source, *operands], "made", SHAPE, **options)


GO: dict[str, Make] = {
    "whole STRIDED_SLICE": sliced,
    "whole SLICE": lambda net, x: net.add(
        "SLICE", [x, ints(net, 0, 0, 0, 0), ints(net, 1, -1, 4, 2)], "m", SHAPE
    ),
    "one SPLIT": lambda net, x: net.add("SPLIT", [ints(net, 3), x], "m", SHAPE, num_splits=1),
    "one SPLIT_V": lambda net, x: net.add(
        "SPLIT_V", [x, ints(net, 2), ints(net, 3)], "m", SHAPE, num_splits=1
    ),
    "one CONCATENATION": lambda net, x: net.add("CONCATENATION", [x], "m", SHAPE, axis=3),
    "RESHAPE": lambda net, x: net.add("RESHAPE", [x, ints(net, 1, -1, 4, 2)], "m", SHAPE),
    "TRANSPOSE": lambda net, x: net.add("TRANSPOSE", [x, ints(net, 0, 1, 2, -1)], "m", SHAPE),
    "RESIZE_BILINEAR": lambda net, x: net.add(
        "RESIZE_BILINEAR", [x, ints(net, 4, 4)], "m", SHAPE, align_corners=True
    ),
    "RESIZE_NEAREST_NEIGHBOR": lambda net, x: net.add(
        "RESIZE_NEAREST_NEIGHBOR", [x, ints(net, 4, 4)], "m", SHAPE, half_pixel_centers=True
    ),
    "CAST": lambda net, x: net.add("CAST", [x], "m", SHAPE),
    "PAD": lambda net, x: net.add("PAD", [x, ints(net, *[[0, 0]] * 4)], "m", SHAPE),
    "PADV2": lambda net, x: net.add("PADV2", [x, ints(net, *[[0, 0]] * 4), floats(net, 7)], "m", SHAPE),
    "MIRROR_PAD": lambda net, x: net.add("MIRROR_PAD", [x, ints(net, *[[0, 0]] * 4)], "m", SHAPE),
    "TILE": lambda net, x: net.add("TILE", [x, ints(net, 1, 1, 1, 1)], "m", SHAPE),
    "BROADCAST_TO": lambda net, x: net.add("BROADCAST_TO", [x, ints(net, *SHAPE)], "m", SHAPE, version=2),
    "MUL by 1": lambda net, x: net.add("MUL", [floats(net, [1, 1]), x], "m", SHAPE),
    "DIV by 1": lambda net, x: net.add("DIV", [x, floats(net, [[1], [1], [1], [1]])], "m", SHAPE),
    "ADD -0.0": lambda net, x: net.add("ADD", [x, floats(net, -0.0)], "m", SHAPE),
    "SUB 0": lambda net, x: net.add("SUB", [x, floats(net, [0, 0])], "m", SHAPE),
    "POW 1": lambda net, x: net.add("POW", [x, floats(net, 1)], "m", SHAPE),
    "RESHAPE of RESHAPE": lambda net, x: net.add(
        "RESHAPE", [net.add("RESHAPE", [x, ints(net, 8, 4)], "r", (8, 4)), ints(net, *SHAPE)], "m", SHAPE
    ),
    "SQUEEZE, EXPAND_DIMS": lambda net, x: net.add(
        "EXPAND_DIMS", [net.add("SQUEEZE", [x], "r", SHAPE[1:]), ints(net, 0)], "m", SHAPE
    ),
    "two TRANSPOSE": lambda net, x: net.add(
        "TRANSPOSE",
        [net.add("TRANSPOSE", [x, ints(net, 0, 3, 1, 2)], "r", (1, 2, 4, 4)), ints(net, 0, 2, 3, 1)],
        "m",
        SHAPE,
    ),
    "TRANSPOSE, RESHAPE, TRANSPOSE": lambda net, x: net.add(
        "TRANSPOSE",
        [
            net.add(
                "RESHAPE",
                [net.add("TRANSPOSE", [x, ints(net, 0, 3, 1, 2)], "r", (1, 2, 4, 4)), ints(net, 2, 1, 4, 4)],
                "s",
                (2, 1, 4, 4),
            ),
            ints(net, 1, 2, 3, 0),
        ],
        "m",
        SHAPE,
    ),
    "RELU of RELU6": lambda net, x: net.add("RELU", [net.add("RELU6", [x], "r", SHAPE)], "m", SHAPE),
    "RELU of a fused RELU": lambda net, x: net.add(
        "RELU", [net.add("ADD", [x, x], "r", SHAPE, fused_activation_function=1)], "m", SHAPE
    ),
}
LEFT = {"RELU of RELU6": ["RELU6"], "RELU of a fused RELU": ["ADD"]}

STAY: dict[str, Make] = {
    "a part": lambda net, x: net.add(
        "STRIDED_SLICE",
        [x, ints(net, 0, 0, 0, 0), ints(net, 1, 4, 4, 1), ints(net, 1, 1, 1, 1)],
        "m",
        (1, 4, 4, 1),
    ),
    "backwards": lambda net, x: net.add(
        "STRIDED_SLICE",
        [x, ints(net, 0, 0, 0, 0), ints(net, *SHAPE), ints(net, 1, 1, 1, -1)],
        "m",
        SHAPE,
        begin_mask=15,
        end_mask=15,
    ),
    "ADD 0.0": lambda net, x: net.add("ADD", [x, floats(net, 0.0)], "m", SHAPE),
    "SUB -0.0": lambda net, x: net.add("SUB", [x, floats(net, -0.0)], "m", SHAPE),
    "MUL by 1 that broadcasts": lambda net, x: net.add(
        "MUL", [x, floats(net, np.ones((3, 1, 1, 1)))], "m", (3, 4, 4, 2)
    ),
    "MUL by 1 with more axes": lambda net, x: net.add(
        "MUL", [x, floats(net, np.ones((1,) * 5))], "m", (1, *SHAPE)
    ),
    "MUL by 1 with an activation": lambda net, x: net.add(
        "MUL", [x, floats(net, 1)], "m", SHAPE, fused_activation_function=1
    ),
    "DIV of 1": lambda net, x: net.add("DIV", [floats(net, 1), x], "m", SHAPE),
    "nearly 1": lambda net, x: net.add("MUL", [x, floats(net, [1, 1.0000001])], "m", SHAPE),
    "RELU6 of RELU": lambda net, x: net.add("RELU6", [net.add("RELU", [x], "r", SHAPE)], "m", SHAPE),
    "TRANSPOSE": lambda net, x: net.add("TRANSPOSE", [x, ints(net, 0, 2, 1, 3)], "m", SHAPE),
    "RESIZE": lambda net, x: net.add("RESIZE_BILINEAR", [x, ints(net, 4, 5)], "m", (1, 4, 5, 2)),
    "PAD": lambda net, x: net.add("PAD", [x, ints(net, [0, 0], [0, 1], [0, 0], [0, 0])], "m", (1, 5, 4, 2)),
    "RESHAPE": lambda net, x: net.add("RESHAPE", [x, ints(net, 4, 8)], "m", (4, 8)),
}  # fmt: skip


@pytest.mark.parametrize("name", GO)
def test_what_changes_nothing_goes(name: str) -> None:
    net = between(GO[name])
    assert cleaned(net) == ["ABS", *LEFT.get(name, []), "ABS"]
    # With its constants.
    assert not [tensor for tensor in net.graph.tensors if tensor.is_constant and name not in LEFT]


@pytest.mark.parametrize("name", STAY)
def test_what_changes_something_stays(name: str) -> None:
    net = between(STAY[name])
    before = kinds(net.model)
    assert cleaned(net) == before


@pytest.mark.parametrize("name", GO)
def test_declared_shapes_are_not_believed(name: str) -> None:
    """Where only the file says so, nothing is known to be the same."""
    net = Net()
    source = net.input("in", SHAPE)
    unknown = net.add("UNSORTED_SEGMENT_SUM", [source, ints(net, 0), ints(net, 1)], "unknown", SHAPE)
    net.output(net.add("ABS", [GO[name](net, unknown)], "out", SHAPE))
    left = cleaned(net)
    by_itself = ("CONCATENATION", "SPLIT", "CAST", "PAD", "MIRROR", "TILE", "0", "two", "RELU", "DIV by 1")
    if not any(part in name for part in by_itself) and name not in ("TRANSPOSE", "POW 1", "MUL by 1"):
        assert len(left) > 2


def test_an_open_dimension_is_the_same_where_all_others_are() -> None:
    def make(net: Net, x: Tensor) -> Tensor:
        return net.add("RESHAPE", [x, ints(net, -1, 4, 4, 2)], "m", SHAPE)

    assert cleaned(between(make, signature=(-1, 4, 4, 2))) == ["ABS", "ABS"]
    assert cleaned(between(make, signature=(-1, -1, 4, 2))) == ["ABS", "RESHAPE", "ABS"]
    # What reshapes nothing needs no size.
    assert cleaned(between(GO["CAST"], signature=(-1, -1, 4, 2))) == ["ABS", "ABS"]


def dense(net: Net, x: Tensor, **options: object) -> Tensor:
    return net.add("FULLY_CONNECTED", [x, net.weights("w", (3, 32)), None], "m", (1, 3), **options)


def test_a_dense_layer_flattens_by_itself() -> None:
    net = between(lambda net, x: dense(net, net.add("RESHAPE", [x, ints(net, 1, 32)], "r", (1, 32))))
    assert cleaned(net) == ["ABS", "FULLY_CONNECTED", "ABS"]
    net = between(
        lambda net, x: dense(net, net.add("RESHAPE", [x, ints(net, 1, 32)], "r", (1, 32)), keep_num_dims=True)
    )
    assert cleaned(net) == ["ABS", "RESHAPE", "FULLY_CONNECTED", "ABS"]


def test_a_reshape_that_is_an_output_stays() -> None:
    net = between(lambda net, x: dense(net, net.add("RESHAPE", [x, ints(net, 1, 32)], "r", (1, 32))))
    net.graph.outputs += [tensor for tensor in net.graph.tensors if tensor.name == "r"]
    assert cleaned(net) == ["ABS", "RESHAPE", "FULLY_CONNECTED", "ABS"]


def test_transposes_of_a_state_are_not_joined() -> None:
    """The second would read it later than the first did."""
    net = Net()
    state = net.variable("state", (2, 3, 4))
    turned = net.add("TRANSPOSE", [state, ints(net, 1, 0, 2)], "once", (3, 2, 4))
    net.output(net.add("TRANSPOSE", [turned, ints(net, 0, 2, 1)], "twice", (3, 4, 2)))
    assert cleaned(net) == ["TRANSPOSE", "TRANSPOSE"]


def test_what_moves_a_state_stays_as_it_is() -> None:
    """What takes its place would be read at another time than the state was."""
    net = Net()
    state = net.variable("state", (1, 32))
    net.output(dense(net, net.add("RESHAPE", [state, ints(net, 2, 16)], "flat", (2, 16))))
    turned = net.add("TRANSPOSE", [net.variable("other", (1, 32)), ints(net, 1, 0)], "turned", (32, 1))
    net.output(net.add("ABS", [turned], "out", (32, 1)))
    assert cleaned(net) == ["RESHAPE", "FULLY_CONNECTED", "TRANSPOSE", "ABS"]


@pytest.mark.parametrize(
    ("kind", "shape", "left"),
    [
        ("EXPAND_DIMS", (1, 2, 16), ["RESHAPE"]),
        ("SQUEEZE", (2, 16), ["RESHAPE"]),
        ("SOFTMAX", (2, 16), ["RESHAPE", "SOFTMAX"]),
    ],
)
def test_only_what_reshapes_itself_takes_numbers_in_another_shape(
    kind: str, shape: tuple[int, ...], left: list[str]
) -> None:
    def make(net: Net, x: Tensor) -> Tensor:
        flat = net.add("RESHAPE", [x, ints(net, 2, 16)], "flat", (2, 16))
        return net.add(kind, [flat, *([ints(net, 0)] if kind == "EXPAND_DIMS" else [])], "m", shape)

    assert cleaned(between(make)) == ["ABS", *left, "ABS"]


def test_transposes_of_other_ranks_are_not_joined() -> None:
    """Of a damaged file: the runtime refuses the second."""
    net = between(
        lambda net, x: net.add(
            "TRANSPOSE",
            [net.add("TRANSPOSE", [x, ints(net, 0, 2, 1, 3)], "r", SHAPE), ints(net, 1, 2, 0)],
            "m",
            SHAPE,
        )
    )
    assert cleaned(net) == ["ABS", "TRANSPOSE", "TRANSPOSE", "ABS"]


def test_a_reshape_that_others_read_stays() -> None:
    def make(net: Net, x: Tensor) -> Tensor:
        flat = net.add("RESHAPE", [x, ints(net, 1, 32)], "r", (1, 32))
        net.output(net.add("EXP", [flat], "second", (1, 32)))
        return dense(net, flat)

    assert "RESHAPE" in cleaned(between(make))


def test_axes_of_one_element_need_not_be_added_before_what_broadcasts() -> None:
    def make(net: Net, x: Tensor) -> Tensor:
        longer = net.add("RESHAPE", [x, ints(net, 1, *SHAPE)], "r", (1, *SHAPE))
        return net.add("ADD", [longer, floats(net, np.ones((1, *SHAPE)))], "m", (1, *SHAPE))

    assert cleaned(between(make)) == ["ABS", "ADD", "ABS"]

    def twice(net: Net, x: Tensor) -> Tensor:
        longer = net.add("RESHAPE", [x, ints(net, 1, *SHAPE)], "r", (1, *SHAPE))
        return net.add("ADD", [longer, longer], "m", (1, *SHAPE))

    assert cleaned(between(twice)) == ["ABS", "RESHAPE", "ADD", "ABS"]
    # A damaged operator gives out nothing.
    damaged = between(make)
    next(item for _, item in damaged.model.operators() if item.code.name == "ADD").outputs.clear()
    assert cleaned(damaged) == ["ABS", "RESHAPE", "ADD", "ABS"]


def in_order(net: Net, x: Tensor) -> Tensor:
    """Numbers that are moved away and back, and laid out otherwise in the end."""
    away = net.add("TRANSPOSE", [x, ints(net, 0, 3, 1, 2)], "away", (1, 2, 4, 4))
    rows = net.add("RESHAPE", [away, ints(net, 2, 16)], "rows", (2, 16))
    return net.add("TRANSPOSE", [rows, ints(net, 1, 0)], "m", (16, 2))


@pytest.mark.parametrize("seen", ["", "away", "rows"])
def test_what_ends_in_the_same_order_is_a_reshape_where_nobody_looks_between(seen: str) -> None:
    net = between(in_order)
    net.graph.outputs += [tensor for tensor in net.graph.tensors if tensor.name == seen]
    moved = ["TRANSPOSE", "RESHAPE", "TRANSPOSE"] if seen else ["RESHAPE"]
    assert cleaned(net) == ["ABS", *moved, "ABS"]


def test_two_transposes_become_one() -> None:
    net = between(
        lambda net, x: net.add(
            "TRANSPOSE",
            [net.add("TRANSPOSE", [x, ints(net, 3, 0, 1, 2)], "r", (2, 1, 4, 4)), ints(net, 3, 2, 1, 0)],
            "m",
            (4, 4, 1, 2),
        )
    )
    assert cleaned(net) == ["ABS", "TRANSPOSE", "ABS"]
    order = net.graph.operators[1].inputs[1]
    assert order is not None and list(order.values) == [2, 1, 0, 3]


def test_moving_axes_of_one_element_is_a_reshape() -> None:
    net = between(lambda net, x: net.add("TRANSPOSE", [x, ints(net, 1, 2, 0, 3)], "m", (4, 4, 1, 2)))
    assert cleaned(net) == ["ABS", "RESHAPE", "ABS"]


def test_pack_and_unpack_cancel() -> None:
    net = Net()
    sources = [net.input(f"in{at}", (2, 3)) for at in range(2)]
    ready = [net.add("ABS", [item], f"a{at}", (2, 3)) for at, item in enumerate(sources)]
    packed = net.add("PACK", ready, "packed", (2, 2, 3), axis=0, values_count=2)
    first = net.add("UNPACK", [packed], "u0", (2, 3), axis=-3, num=2)
    second = net.tensor("u1", (2, 3))
    net.graph.operators[-1].outputs.append(second)
    net.output(net.add("SUB", [second, first], "out", (2, 3)))
    assert cleaned(net) == ["ABS", "ABS", "SUB"]
    last = net.graph.operators[-1]
    assert [item.name for item in last.inputs if item] == ["a1", "a0"]


def test_unpack_and_pack_cancel() -> None:
    net = between(lambda net, x: net.add("UNPACK", [x], "u0", (1, 4, 2), axis=1, num=4))
    unpack, last = net.graph.operators[-2:]
    unpack.outputs += [net.tensor(f"u{at}", (1, 4, 2)) for at in range(1, 4)]
    parts = list(unpack.outputs)
    net.graph.operators.remove(last)
    last.inputs[0] = net.add("PACK", parts, "packed", SHAPE, axis=-3, values_count=4)
    net.graph.operators.append(last)
    assert cleaned(net) == ["ABS", "ABS"]


def test_split_and_concatenation_cancel_along_one_axis() -> None:
    for axis, left in ((3, ["ABS", "ABS"]), (2, ["ABS", "SPLIT", "CONCATENATION", "ABS"])):

        def make(net: Net, x: Tensor, axis: int = axis) -> Tensor:
            part = net.add("SPLIT", [ints(net, 3), x], "p0", (1, 4, 4, 1), num_splits=2)
            other = net.tensor("p1", (1, 4, 4, 1))
            net.graph.operators[-1].outputs.append(other)
            return net.add("CONCATENATION", [part, other], "m", SHAPE, axis=axis)

        assert cleaned(between(make)) == left


def test_split_and_concatenation_stay_where_they_do_more() -> None:
    """With an activation, or an axis that is computed."""

    def make(net: Net, x: Tensor, axis: Tensor | None = None, **options: int) -> Tensor:
        net.add("SPLIT", [axis or ints(net, 3), x], "p0", (1, 4, 4, 1), num_splits=2)
        net.graph.operators[-1].outputs.append(net.tensor("p1", (1, 4, 4, 1)))
        return net.add("CONCATENATION", net.graph.operators[-1].outputs, "m", SHAPE, axis=3, **options)

    clamped = between(lambda net, x: make(net, x, fused_activation_function=1))
    assert cleaned(clamped) == ["ABS", "SPLIT", "CONCATENATION", "ABS"]
    computed = between(lambda net, x: make(net, x, net.input("axis", (), np.int32)))
    assert cleaned(computed) == ["ABS", "SPLIT", "CONCATENATION", "ABS"]


def test_joining_rescales_parts_of_another_scale() -> None:
    for zero, left in ((128, ["ABS", "ABS"]), (120, ["ABS", "SPLIT", "CONCATENATION", "ABS"])):
        net = UnsignedNet()
        whole = net.gives("ABS", [net.source((1, 4))], "whole")
        part = net.gives("SPLIT", [ints(net, 1), whole], "p0", shape=(1, 2), num_splits=2)
        other = with_grid(net.tensor("p1", (1, 2), np.uint8), 0.5, zero)
        net.graph.operators[-1].outputs.append(other)
        joined = net.gives("CONCATENATION", [part, other], "joined", shape=(1, 4), axis=1)
        net.output(net.gives("ABS", [joined], "out"))
        assert cleaned(net) == left


def quantized(*scales: float) -> Net:
    """QUANTIZE, then DEQUANTIZE and QUANTIZE again, from int8 to int8."""
    net = Net()
    source = with_grid(net.input("in", (2, 3), np.int8), scales[0], 3)
    floats_ = net.add("DEQUANTIZE", [source], "floats", (2, 3))
    again = with_grid(net.add("QUANTIZE", [floats_], "again", (2, 3), dtype=np.int8), scales[1], 3)
    out = with_grid(net.add("ABS", [again], "out", (2, 3), dtype=np.int8), scales[1], 3)
    net.output(out)
    return net


def test_integers_that_become_the_same_integers() -> None:
    assert cleaned(quantized(0.5, 0.5)) == ["ABS"]
    assert cleaned(quantized(0.5, 0.25)) == ["DEQUANTIZE", "QUANTIZE", "ABS"]


def test_fake_quantization_stays() -> None:
    net = Net()
    source = net.input("in", (2, 3))
    first = net.add("EXP", [source], "first", (2, 3))
    integers = with_grid(net.add("QUANTIZE", [first], "q", (2, 3), dtype=np.int8), 0.5, 3)
    net.output(net.add("ABS", [net.add("DEQUANTIZE", [integers], "d", (2, 3))], "out", (2, 3)))
    assert cleaned(net) == ["EXP", "QUANTIZE", "DEQUANTIZE", "ABS"]


def test_requantizing_stays_where_the_scales_differ() -> None:
    for scale, left in ((0.5, ["ABS", "ABS"]), (0.25, ["ABS", "QUANTIZE", "ABS"])):
        net = Net()
        source = with_grid(net.input("in", (2, 3), np.int8), 0.5, 3)
        first = with_grid(net.add("ABS", [source], "first", (2, 3), dtype=np.int8), 0.5, 3)
        made = with_grid(net.add("QUANTIZE", [first], "made", (2, 3), dtype=np.int8), scale, 3)
        net.output(with_grid(net.add("ABS", [made], "out", (2, 3), dtype=np.int8), scale, 3))
        assert cleaned(net) == left


# -- Exposed tensors -----------------------------------------------------------------------------------------


def test_an_output_keeps_its_name() -> None:
    net = Net()
    first = net.add("ABS", [net.input("in", SHAPE)], "first", SHAPE)
    net.output(sliced(net, first))
    net.sign("serve")
    assert cleaned(net) == ["ABS"]
    assert net.graph.outputs[0].name == "made"
    assert net.graph.operators[0].outputs == net.graph.outputs
    assert net.model.signatures[0].outputs[0][1] is net.graph.outputs[0]


def test_between_an_input_and_an_output_it_stays() -> None:
    net = Net()
    net.output(sliced(net, net.input("in", SHAPE)))
    (result,) = run_passes(net.model, [RemoveNoops()])
    assert kinds(net.model) == ["STRIDED_SLICE"]
    assert [skip.rule for skip in result.skips] == ["stays"]


def test_others_read_what_an_output_copied_from_there() -> None:
    net = Net()
    first = net.add("ABS", [net.input("in", SHAPE)], "first", SHAPE)
    net.output(sliced(net, first))
    net.output(net.add("EXP", [first], "second", SHAPE))
    assert cleaned(net) == ["ABS", "EXP"]
    assert net.graph.operators[1].inputs == net.graph.outputs[:1]


def test_two_outputs_of_the_same_stay_two() -> None:
    net = Net()
    first = net.add("ABS", [net.input("in", SHAPE)], "first", SHAPE)
    net.output(first)
    net.output(sliced(net, first))
    assert cleaned(net) == ["ABS", "STRIDED_SLICE"]


def test_an_operator_that_looks_at_a_declared_shape_keeps_its_output() -> None:
    for declared, left in ((SHAPE, ["SLICE"]), ((9, 9, 9, 9), ["SLICE", "CAST"])):
        net = Net()
        source = net.input("in", (2, 4, 4, 2))
        part = net.add("SLICE", [source, ints(net, 0, 0, 0, 0), ints(net, *SHAPE)], "part", SHAPE)
        net.output(net.add("CAST", [part], "out", declared))
        assert cleaned(net) == left


def test_weights_do_not_become_constant() -> None:
    net = Net()
    source = net.input("in", (2, 8))
    weight = net.add("CAST", [net.weights("w", (4, 8))], "cast", (4, 8))
    net.output(net.dense(source, weight, "out"))
    assert cleaned(net) == ["CAST", "FULLY_CONNECTED"]


def test_a_state_is_not_read_later_than_it_was() -> None:
    net = Net()
    source, state = net.input("in", SHAPE), net.variable("state", SHAPE)
    net.output(net.add("ADD", [source, sliced(net, state)], "out", SHAPE))
    assert cleaned(net) == ["STRIDED_SLICE", "ADD"]


def test_another_subgraph_is_cleaned_too() -> None:
    net = between(GO["CAST"])
    net.next_subgraph("second")
    first = net.add("ABS", [net.input("x", SHAPE)], "y", SHAPE)
    net.output(net.add("ABS", [sliced(net, first)], "z", SHAPE))
    assert cleaned(net) == ["ABS"] * 4


def test_what_computed_a_target_goes_with_it() -> None:
    def make(net: Net, x: Tensor) -> Tensor:
        target = net.add("SHAPE", [x], "target", (4,), dtype=np.int32)
        doubled = net.add(
            "CAST", [net.add("ABS", [target], "t", (4,), dtype=np.int32)], "u", (4,), dtype=np.int32
        )
        flat = net.add("RESHAPE", [x, doubled], "r", SHAPE)
        return dense(net, flat)

    assert cleaned(between(make)) == ["ABS", "FULLY_CONNECTED", "ABS"]


# -- On the runtime ------------------------------------------------------------------------------------------


@pytest.mark.runtime
def test_outputs_are_equal_to_the_bit(tmp_path: Path) -> None:
    """All in one model, so that one run tells."""
    net = Net()
    source = net.input("in", SHAPE)
    value = net.add("ABS", [source], "first", SHAPE)
    for name, make in GO.items():
        if name not in LEFT:
            value = net.add("ABS", [make(net, value)], name, SHAPE)
    net.output(value)
    path = tmp_path / "noops.tflite"
    save(net.model, path)
    report = rewrite(path, tmp_path / "clean.tflite", [RemoveNoops()])
    assert report.verdict is not None and report.verdict.passed
    assert set(kinds(load(tmp_path / "clean.tflite"))) == {"ABS"}


def test_the_last_reader_of_a_dense_layer_is_told(fixtures: Path) -> None:
    model = load(fixtures / "digits_cnn.tflite")
    (result,) = run_passes(model, [RemoveNoops()])
    assert result.modified and result.grows
    assert named(model, model.subgraphs[0].outputs[0].name) is model.subgraphs[0].outputs[0]
