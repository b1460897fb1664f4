"""Which channels are balanced, and by what: two dense layers with RELU between, spoiled in one way each."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tfl_rewrite.editing.base import Context, run_passes
from tfl_rewrite.model import dtypes
from tfl_rewrite.model.blob import OwnedBlob
from tfl_rewrite.model.ir import Buffer, Metadata, OperatorCode, new_record, operator_number
from tfl_rewrite.passes.equalize import Equalize

from ..nets import Net, data_of, named

CHANNELS = 6


def layers(*, bias: bool = True, spread: float = 3.0) -> Net:
    """x -> first, with channels far apart -> RELU -> second, which reads them -> y."""
    net = Net(3)
    factor = np.exp2(net.random.integers(-spread, spread, CHANNELS, endpoint=True)).astype(np.float32)
    first = (net.random.standard_normal((CHANNELS, 8)).astype(np.float32).T * factor).T
    second = net.random.standard_normal((5, CHANNELS)).astype(np.float32) / factor
    given = net.constant("bias", net.random.standard_normal(CHANNELS).astype(np.float32) * factor)
    made = net.dense(net.input("x", (2, 8)), net.constant("first", first), "made", given if bias else None)
    between = net.add("RELU", [made], "between", (2, CHANNELS))
    net.output(net.dense(between, net.constant("second", second), "y"))
    return net


def balanced(net: Net) -> dict[str, object]:
    """What the one change says."""
    (result,) = run_passes(net.model, [Equalize()])
    (change,) = result.changes
    return change.to_dict()


def step_error(net: Net) -> float:
    """What rounding the second weight with a scale for each row costs, by the formula of the paper."""
    first, bias, second = (
        data_of(named(net.model, name)).astype(float) for name in ("first", "bias", "second")
    )
    power = (first**2).sum(axis=1) + bias**2
    return float((np.abs(second).max(axis=1) ** 2).sum() * power.sum())


@pytest.mark.parametrize("bias", [True, False])
def test_what_goes_out_of_one_goes_into_the_other(bias: bool) -> None:
    net = layers(bias=bias)
    names = ("first", "bias", "second")
    before = [data_of(named(net.model, name)).copy() for name in names]
    expected = step_error(net)
    told = balanced(net)
    after = [data_of(named(net.model, name)) for name in names]
    down, bias_down, up = (new / old for new, old in zip(after, before, strict=True))
    assert (down == down[:, :1]).all() and (up == up[:1]).all()
    assert (np.frexp(down[:, 0])[0] == 0.5).all(), "powers of two"
    assert (down[:, 0] * up[0] == 1).all()
    assert (bias_down == (down[:, 0] if bias else 1)).all()
    # It goes round several times; told is the most that one round moved.
    assert 3 <= told["channels"] <= np.count_nonzero(up[0] != 1)
    if bias:
        assert told["gain_db"] == pytest.approx(10 * np.log10(expected / step_error(net)), abs=0.01)


def test_channels_in_balance_stay() -> None:
    net = layers()
    for name in ("first", "bias", "second"):
        tensor = named(net.model, name)
        tensor.buffer.blob = OwnedBlob(np.sign(data_of(tensor)).tobytes())
    (result,) = run_passes(net.model, [Equalize()])
    assert result.changes == ()


def flatten(net: Net) -> None:
    """Each row of the second layer's input is several rows of channels."""
    named(net.model, "between").shape = (2, CHANNELS // 2, 2)


def half_as_bias(net: Net) -> None:
    short = named(net.model, "bias")
    short.shape, short.buffer.blob = (1,), OwnedBlob(data_of(short)[:1].tobytes())


def other_side(net: Net) -> None:
    """The channels are what the second layer multiplies with."""
    inputs = net.graph.operators[2].inputs
    inputs[0], inputs[1] = inputs[1], inputs[0]


def becomes_custom(net: Net) -> None:
    code = OperatorCode(operator_number("CUSTOM"), "Own")
    net.model.operator_codes.append(code)
    net.graph.operators[2].code = code


def spoil(name: str, value: float) -> Callable[[Net], None]:
    def change(net: Net) -> None:
        tensor = named(net.model, name)
        values = data_of(tensor).copy()
        values.flat[1] = value
        tensor.buffer.blob = OwnedBlob(values.tobytes())

    return change


def kept_by_metadata(name: str) -> Callable[[Net], None]:
    return lambda net: net.model.metadata.append(Metadata("m", named(net.model, name).buffer))


def sparse(name: str) -> Callable[[Net], None]:
    def change(net: Net) -> None:
        tensor = named(net.model, name)
        tensor.rest = tensor.rest.replace(sparsity=new_record("SparsityParameters"))

    return change


def of_type(name: str, dtype: str) -> Callable[[Net], None]:
    return lambda net: setattr(named(net.model, name), "dtype", dtypes.BY_NAME[dtype].value)


def empty(name: str) -> Callable[[Net], None]:
    return lambda net: setattr(named(net.model, name), "buffer", Buffer())


SPOILED: dict[str, Callable[[Net], object]] = {
    "flattened": flatten,
    "bias of another length": half_as_bias,
    "the channels are the weight": other_side,
    "custom": becomes_custom,
    "no weight": lambda net: net.graph.operators[0].inputs.__delitem__(slice(1, None)),
    "made is an output": lambda net: net.output(named(net.model, "made")),
    "between is an output": lambda net: net.output(named(net.model, "between")),
    "read twice": lambda net: net.output(net.add("RELU", [named(net.model, "between")], "z", (2, CHANNELS))),
    "weight is an output": lambda net: net.output(named(net.model, "second")),
    "weight read twice": lambda net: net.output(net.add("RELU", [named(net.model, "second")], "z", (5, 6))),
    "squashed between": lambda net: setattr(net.graph.operators[1], "code", net.code("TANH", 1)),
    "squashed by itself": lambda net: setattr(
        net.graph.operators[0],
        "options",
        new_record("FullyConnectedOptions").replace(fused_activation_function=3),
    ),
    "shuffled": lambda net: setattr(
        net.graph.operators[2], "options", new_record("FullyConnectedOptions").replace(weights_format=1)
    ),
    "no layer": lambda net: setattr(net.graph.operators[0], "code", net.code("MUL", 1)),
    **{f"{what} in {name}": spoil(name, value) for name in ("first", "bias", "second")
       for what, value in (("NaN", np.nan), ("infinity", np.inf))},
    **{f"metadata keeps {name}": kept_by_metadata(name) for name in ("first", "bias", "second")},
    **{f"sparse {name}": sparse(name) for name in ("first", "second")},
    **{f"integers in {name}": of_type(name, "INT32") for name in ("first", "bias", "second")},
    **{f"no bytes in {name}": empty(name) for name in ("first", "bias", "second")},
}  # fmt: skip


@pytest.mark.parametrize("name", SPOILED)
def test_what_is_left_alone(name: str) -> None:
    net = layers()
    SPOILED[name](net)
    before = {id(item): item.blob and bytes(item.blob.view()) for item in net.model.buffers}
    assert not Equalize().run(net.model, Context()).changes
    assert {id(item): item.blob and bytes(item.blob.view()) for item in net.model.buffers} == before
