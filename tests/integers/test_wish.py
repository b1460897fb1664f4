"""The search for a mixture, with noises that are counted instead of run."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import pytest

from tests.nets import Net, nearest
from tfl_rewrite.integers.border import border_grids
from tfl_rewrite.integers.mixture import Choice, Computes, Mixture
from tfl_rewrite.integers.plan import IntegerPlan
from tfl_rewrite.integers.recipe import Recipe
from tfl_rewrite.integers.wish import Known, Search, Settled
from tfl_rewrite.numerics.knapsack import Float64
from tfl_rewrite.weights.rounders import Simulated

NOISES = {"in": 1e-3, "a": 3e-2, "b": 1e-4, "c": 2e-3, "out": 1e-4}
"""Of tensors with 8 bits."""
FLOOR = 1e-5


def net_of_four() -> Net:
    net = Net()
    made = net.dense(net.input("in", (1, 4)), net.weights("w", (4, 4)), "a")
    for name in ("b", "c", "out"):
        made = net.add("ABS", [made], name, (1, 4))
    net.output(made)
    return net


class Bench:
    """Counts the noises of tensors that a copy has in 8 bits.

    Attributes:
        ranges: Those that copies are measured on.
        copies: How many copies were looked at.
        excess: The noise of all of them together, over their sum.
    """

    def __init__(self, excess: float = 1.0) -> None:
        self.ranges: dict[int, tuple[float, float]] = {}
        self.copies = 0
        self.excess = excess

    def measure(self, changes: Sequence[Simulated], *, apart: bool = True) -> Float64:
        rows = []
        for change in changes:
            copy = net_of_four().model
            change(self.ranges)(copy)
            self.copies += 1
            narrow = {
                tensor.name.removesuffix("_int8").removesuffix("_float32").removesuffix("_float")
                for operator in copy.subgraphs[0].operators
                for tensor in operator.outputs
                if tensor is not None and tensor.dtype_name == "INT8"
            }
            noise = sum(NOISES[name] for name in narrow)
            rows.append([FLOOR + (noise if len(narrow) == 1 else self.excess * noise)])
        return np.array(rows)


def search(bench: Bench, known: Known | None = None, bits: int | None = 16) -> Search:
    model = net_of_four().model
    bench.ranges = ranges = {id(item): (-1.0, 1.0) for item in model.subgraphs[0].tensors}
    mixture = Mixture(model, Choice.parse(Computes.INT8, (), (), ()), ranges, wide=bits)
    rounded: list[IntegerPlan] = []

    def weights_of(plan: IntegerPlan):  # type: ignore[no-untyped-def]
        rounded.append(plan)
        return nearest

    return Search(mixture, weights_of, bench.measure, Known() if known is None else known)


def wide(found: Settled) -> set[str]:
    return {tensor.name for unit in found.wide for tensor, _ in unit.tensors.values()}


def test_nothing_is_wide_where_8_bits_do() -> None:
    found = search(Bench()).settle(10.0)
    assert not found.wide and found.snr == pytest.approx(found.narrowest)


def test_what_hurts_most_is_wide() -> None:
    found = search(Bench()).settle(23.0)
    assert "a" in wide(found) and "out" not in wide(found)
    assert found.snr > 24.0


def test_noises_that_do_not_just_add_up_are_met_by_running() -> None:
    few, more = (search(Bench(excess)).settle(26.0) for excess in (0.2, 4.0))
    assert min(few.snr, more.snr) > 27.0
    assert wide(few) < wide(more)


def test_each_mixture_is_judged_by_its_own_noise() -> None:
    for wish in (18.0, 20.0, 23.0, 26.0, 30.0, 35.0):
        for excess in (0.2, 0.5, 0.8, 1.3, 2.0, 4.0):
            bench = Bench(excess)
            one = search(bench)
            found = one.settle(wish)
            again = bench.measure([one._trial(found.wide)])
            assert found.snr == pytest.approx(-10 * np.log10(again[0, 0])), (wish, excess)


def test_all_is_wide_or_near_where_the_wish_is_out_of_reach() -> None:
    found = search(Bench()).settle(80.0)
    assert found.widest == pytest.approx(50.0) and found.snr > 49.0
    assert search(Bench()).settle(None).snr > 49.0


def test_the_share_is_kept() -> None:
    assert not search(Bench()).widest_share(0.0).wide
    assert len(search(Bench()).widest_share(1.0).wide) == len(NOISES)
    half = search(Bench()).widest_share(0.5)
    assert wide(half) and "out" not in wide(half)


def test_what_is_known_is_not_measured_again() -> None:
    bench, known = Bench(), Known()
    search(bench, known)
    before = bench.copies
    assert search(bench, known).settle(10.0).narrowest == pytest.approx(
        -10 * np.log10(sum(NOISES.values())), 1e-3
    )
    assert bench.copies == before


def test_what_was_refused_is_not_made_again() -> None:
    """A mixture keeps more than was asked for, so that a little more room alone gives the same."""
    known = Known()
    given = [wide(search(Bench(), known).settle(10.0, margin)) for margin in (1.0, 1.0, 1.5, 2.0)]
    assert given == [set(), set(), {"a"}, set(NOISES)]
    last = search(Bench(), known)
    assert last.is_widest(last.settle(10.0, 8.0))
    # Those were refused for another wish, and with more room than now.
    assert wide(last.settle(11.0, 1.5)) == set() == wide(last.settle(10.0, 1.0))


def test_what_was_refused_in_integers_has_floats_where_it_hurts() -> None:
    """The samples at hand promise 20 dB and more for integers alone, and others have refused them."""
    one = search(Bench(0.2), bits=None)
    assert one.settle(20.0, 1.0).wide == ()
    found = one.settle_refused(20.0, 2.0, 1.0)
    assert wide(found) == {"a"} and found.snr > 24.0
    more = one.settle_refused(20.0, 2.0, 4.0)
    assert wide(found) < wide(more), "what was refused is not made again"
    assert one._mixture.share(found.wide) == 0.5 and one._mixture.share(more.wide) == 1.0


def test_beside_floats_a_group_counts_the_weights_of_what_makes_it() -> None:
    """A float operator has its weights as they were, one with 16 bits has not."""
    seen: list[set[str]] = []

    def measure(changes: Sequence[Simulated], *, apart: bool = True) -> Float64:
        for change in () if apart else changes:
            copy = net_of_four().model
            change(bench.ranges)(copy)
            read = (tensor for item in copy.subgraphs[0].operators for tensor in item.inputs)
            seen.append({item.name for item in read if item is not None} & {"w", "rounded"})
        return np.ones((len(changes), 1))

    for bits in (16, None):
        seen.clear()
        one = search(bench := Bench(), Known(), bits)
        one._measure = measure
        one._made(one._mixture.units)
        one._made(())
        measure(one._alone(), apart=False)
        weighed = ["rounded" in names for names in seen]
        assert weighed == (
            [True, True, *[False] * 5] if bits else [False, True, False, True, False, False, False]
        )


def test_what_is_cut_off_whatever_the_widths_asks_for_none() -> None:
    """On ranges of others all lose as much; what narrow groups lose beyond that counts, and nothing else."""
    lost = {"all": 0.5, "narrow": 0.0}

    class Cut(Bench):
        def measure(self, changes: Sequence[Simulated], *, apart: bool = True) -> Float64:
            noise = super().measure(changes)
            return noise + apart * (lost["all"] + lost["narrow"] * (noise > 2 * FLOOR))

    one = search(Cut())
    assert one.widest[0] == pytest.approx(FLOOR)
    assert one.narrowest[0] == pytest.approx(FLOOR + sum(NOISES.values()))
    assert wide(one.settle(23.0)) == wide(search(Bench()).settle(23.0))
    lost["narrow"] = 0.2
    assert search(Cut()).narrowest[0] == pytest.approx(FLOOR + sum(NOISES.values()) + 0.2)
    assert wide(search(Cut()).settle(10.0)) == set(NOISES), "8 bits alone are cut off, wherever they are"
    assert search(Cut(), bits=None).narrowest[0] == pytest.approx(FLOOR + sum(NOISES.values()))


def test_what_is_rounded_at_the_border_is_measured_with_it() -> None:
    """16 bits inside do not bring back what 8 bits at the border took; 8 bits inside are those at it."""
    ends = {"in", "out"}
    for bits, kind, expected in ((16, "int8", ends), (None, "int8", ends), (16, "float", set())):
        one = search(bench := Bench(), bits=bits)
        model = one._mixture.model
        one._border = functools.partial(border_grids, model, kind, kind, Recipe())
        for units, rounded in ((one._mixture.units, expected), ((), set(NOISES))):
            copy = net_of_four().model
            one._trial(units)(bench.ranges)(copy)
            scales: dict[str, set[float]] = {}
            for _, item in copy.tensors():
                if item.dtype_name == "INT8" and item.shape == (1, 4) and item.quantization is not None:
                    scales.setdefault(item.name.split("_")[0], set()).update(item.quantization.scale or ())
            assert set(scales) == rounded
            assert all(len(found) == 1 for found in scales.values()), "twice on one grid is once"
    plan, sides = one._mixture.plan(()), (("int16", None), (None, "uint8"))
    given, gives = (border_grids(model, *side, Recipe(), plan, bench.ranges) for side in sides)
    assert [len(given), len(gives)] == [1, 0]
