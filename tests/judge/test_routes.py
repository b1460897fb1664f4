"""What a file must give, told by other files: passed, failed, and what says nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.nets import Net
from tfl_rewrite import Judging, Tolerance, save
from tfl_rewrite.judge.routes import OUTSIDE, Going, Route, Run, verify_route, wired
from tfl_rewrite.samples.made import Step

EXACT = Judging(tolerance=Tolerance(exact=True))


def written(net: Net, path: Path) -> Path:
    save(net.model, path)
    return path


def row(path: Path, *, rows: int = 1, factor: float = 2.0) -> Path:
    """A model that multiplies, and sums up over the last axis."""
    net = Net()
    given = net.input("x", (rows, 4))
    product = net.add("MUL", [given, net.constant("f", np.array([factor], np.float32))], "product", (rows, 4))
    net.output(net.add("SOFTMAX", [product], "y", (rows, 4), beta=1.0))
    return written(net, path)


def by_rows(path: Path, *, off: float = 0.0) -> Route:
    def route(step: Step) -> Going:
        ((_, batch),) = step.values
        made = yield [Run(path=path, values=[batch[place : place + 1]]) for place in range(len(batch))]
        return [np.concatenate([item["y"] for item in made if item["y"] is not None]) + np.float32(off)]

    return route


@pytest.mark.runtime
def test_rows_of_a_batch_are_those_of_the_file_for_one(tmp_path: Path) -> None:
    one, three = row(tmp_path / "one.tflite"), row(tmp_path / "three.tflite", rows=3)
    verdict = verify_route(three, by_rows(one), EXACT, sources=[one])
    assert verdict.headline == "PASS (made samples)" and verdict.sample_count == 4
    assert verdict.outputs[0].bit_exact and verdict.repeated > 0
    wrong = verify_route(row(tmp_path / "w.tflite", rows=3, factor=3.0), by_rows(one), EXACT, repeat=False)
    assert (wrong.status, wrong.cause) == ("fail", "outputs")
    near = Judging(tolerance=Tolerance(min_snr=40))
    verdict = verify_route(three, by_rows(one, off=1e-4), near, repeat=False)
    assert verdict.passed and 60 < (verdict.worst_snr() or 0) < 90
    assert not verify_route(three, by_rows(one, off=0.1), near, repeat=False).passed


@pytest.mark.runtime
def test_what_says_nothing_is_unverified(tmp_path: Path) -> None:
    one, three = row(tmp_path / "one.tflite"), row(tmp_path / "three.tflite", rows=3)
    net = Net()
    net.output(
        net.add("MUL", [net.input("x", (3, 4)), net.constant("f", np.zeros(1, np.float32))], "y", (3, 4))
    )
    constant = written(net, tmp_path / "constant.tflite")

    def zeros(step: Step) -> Going:
        yield []
        return [step.values[0][1] * np.float32(0)]

    verdict = verify_route(constant, zeros, EXACT)
    assert (verdict.status, verdict.cause) == ("unverified", "nothing")

    def short(step: Step) -> Going:
        made = yield [Run(path=one, values=[step.values[0][1], step.values[0][1]])]
        return made[0].values

    verdict = verify_route(three, short, EXACT, sources=[one])
    assert (verdict.status, verdict.cause) == ("unverified", "error")
    assert "one.tflite" in verdict.reasons[0]


@pytest.mark.runtime
def test_who_does_not_run_is_told_apart(tmp_path: Path) -> None:
    one, bad = row(tmp_path / "one.tflite"), tmp_path / "bad.tflite"
    net = Net()
    net.output(
        net.add("RESHAPE", [net.input("x", (3, 4)), net.constant("s", np.array([5], np.int32))], "y", (5,))
    )
    written(net, bad)
    verdict = verify_route(bad, by_rows(one), EXACT, sources=[one])
    assert verdict.status == "fail" and verdict.reasons[0].startswith("the new file does not run")
    verdict = verify_route(bad, by_rows(bad), EXACT, sources=[one, bad])
    assert verdict.status == "unverified" and verdict.reasons[0].startswith("bad.tflite does not run")


def halves(path: Path, *, broken: bool) -> Path:
    """Two signatures of which the second may name an output whose shape its operator refuses."""
    net = Net()
    net.output(net.add("SOFTMAX", [net.input("x", (1, 4))], "y", (1, 4), beta=1.0))
    net.sign("good")
    net.next_subgraph("other")
    shape = net.constant("s", np.array([5 if broken else 4], np.int32))
    net.output(net.add("RESHAPE", [net.input("x", (1, 4)), shape], "y", (4,)))
    net.sign("bad")
    return written(net, path)


@pytest.mark.runtime
def test_an_entry_point_that_never_ran_is_no_fault_of_the_new_file(tmp_path: Path) -> None:
    sound, broken = (halves(tmp_path / f"{broken}.tflite", broken=broken) for broken in (False, True))

    def itself(step: Step) -> Going:
        (made,) = yield [Run(path=sound, values=dict(step.values), signature=step.signature)]
        return made.values

    verdict = verify_route(broken, itself, EXACT, sources=[broken])
    assert {entry.signature: entry.status for entry in verdict.entries if entry.signature} == {
        "good": "pass",
        "bad": "unverified",
    }
    assert "signature 'bad' of True.tflite does not run" in verdict.reasons[0]
    assert not any("repeat" in note for note in verdict.notes)
    verdict = verify_route(broken, itself, EXACT, sources=[sound], repeat=False)
    assert verdict.status == "fail"
    # A file that calls it otherwise: which of its own the route enters is not known.
    verdict = verify_route(broken, itself, EXACT, sources=[row(tmp_path / "row.tflite")], repeat=False)
    assert verdict.status == "fail"


@pytest.mark.runtime
def test_routes_that_do_not_fit_are_told(tmp_path: Path) -> None:
    one = row(tmp_path / "one.tflite")

    def twice(step: Step) -> Going:
        made = yield [Run(path=one, values=[value for _, value in step.values])]
        return [*made[0].values, *made[0].values]

    verdict = verify_route(one, twice, EXACT, sources=[one])
    assert (verdict.status, verdict.cause) == ("fail", "interface")
    assert "has 1 outputs instead of 2" in verdict.reasons[0]

    def crooked(step: Step) -> Going:
        yield []
        return [np.concatenate([np.zeros((2, 2)), np.zeros((3, 3))])]

    verdict = verify_route(one, crooked, EXACT, sources=[one])
    assert verdict.status == "unverified" and "does not fit" in verdict.reasons[0]


@pytest.mark.runtime
def test_of_an_original_it_is_the_route_that_fails(tmp_path: Path) -> None:
    one, three = row(tmp_path / "one.tflite"), row(tmp_path / "three.tflite", rows=3)
    net = Net()
    shape = net.constant("s", np.array([5], np.int32))
    net.output(net.add("RESHAPE", [net.input("x", (1, 4)), shape], "y", (5,)))
    bad = written(net, tmp_path / "bad.tflite")
    verdict = verify_route(three, by_rows(bad), EXACT, sources=[bad], original=True)
    assert verdict.status == "fail" and verdict.reasons[0].startswith("a part does not run: bad.tflite")
    verdict = verify_route(bad, by_rows(one), EXACT, sources=[one], original=True)
    assert verdict.status == "unverified" and verdict.reasons[0].startswith("the original does not run")
    verdict = verify_route(three, by_rows(one, off=0.1), EXACT, sources=[one], original=True)
    assert (verdict.status, verdict.cause) == ("fail", "outputs")


@pytest.mark.runtime
def test_values_go_by_name_where_signatures_name_them(tmp_path: Path) -> None:
    net = Net()
    # Runtimes sort arguments: the primary subgraph has another order.
    second, first = net.input("b", (1, 2)), net.input("a", (1, 2))
    net.output(net.add("SUB", [second, first], "z", (1, 2)))
    net.output(net.add("SUB", [first, second], "y", (1, 2)))
    net.sign("serving_default")
    whole = written(net, tmp_path / "whole.tflite")
    feeds = [(OUTSIDE, 0), (OUTSIDE, 1)]
    names = {"serving_default": ([("a", 1), ("b", 0)], [("z", 0), ("y", 1)])}
    assert verify_route(whole, wired([(whole, feeds)], [(0, 0), (0, 1)], names), EXACT, repeat=False).passed
    crossed = verify_route(whole, wired([(whole, feeds)], [(0, 1), (0, 0)], names), EXACT, repeat=False)
    assert (crossed.status, crossed.cause) == ("fail", "outputs")
