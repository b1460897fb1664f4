"""Random models of many operator types through random lists of passes: equal, or within the tolerance.

``TFL_REWRITE_EXAMPLES`` is the number of examples; without it there are few.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tfl_rewrite import check, load, save
from tfl_rewrite.model.blob import OwnedBlob

from ..helpers import script

contract, rewritten = script("hostile.contract"), script("hostile.rewritten")
make, packed = script("hostile.models").make, script("hostile.models").packed

EXAMPLES = int(os.environ.get("TFL_REWRITE_EXAMPLES", "25"))


@pytest.fixture(scope="module")
def runner() -> Iterator[rewritten.Runner]:
    with rewritten.Runner() as found:
        yield found


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    # In memory where there is such a place: each example writes two files.
    place = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(prefix="tfl-rewrite-examples-", dir=place) as name:
        yield Path(name)


@pytest.mark.runtime
def test_rewrites_of_random_models(runner: rewritten.Runner, folder: Path) -> None:
    outcomes: Counter[str] = Counter()
    kinds: Counter[str] = Counter()

    @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(random=st.randoms(use_true_random=False))
    def run(random: Random) -> None:
        found = rewritten.try_example(random, runner, folder)
        outcomes[found.outcome] += 1
        kinds.update(found.kinds)

    run()
    print(f"\n{dict(outcomes)}\n{len(kinds)} operator types in {outcomes.total()} models")
    assert outcomes["equal"] + outcomes["within"] > 0
    # A loss beyond the tolerance is refused by the command, and rare.
    assert outcomes["refused"] <= 1 + outcomes.total() // 50
    assert outcomes["beyond on other samples"] <= 1 + outcomes.total() // 200


@pytest.mark.runtime
def test_the_generator_makes_what_it_says(runner: rewritten.Runner, folder: Path) -> None:
    """Many operator types, several subgraphs, variables, shared buffers; and all of it runs."""
    models = [make(Random(f"kinds/{number}")) for number in range(150)]
    kinds = {operator.code.name for model in models for _, operator in model.operators()}
    assert len(kinds) >= 70
    assert sum(len(model.subgraphs) > 1 for model in models) >= 10
    tensors = [[item for graph in model.subgraphs for item in graph.tensors] for model in models]
    assert sum(any(item.is_variable for item in rows) for rows in tensors) >= 10
    buffers = [[id(item.buffer) for item in rows if item.is_constant] for rows in tensors]
    assert sum(len(set(rows)) < len(rows) for rows in buffers) >= 10
    for model in models[:40]:
        (folder / "one.tflite").write_bytes(packed(model))
        assert check(folder / "one.tflite") == []
        outputs = runner.run(folder / "one.tflite", 0)
        wanted = [item.shape for item in model.subgraphs[0].outputs]
        assert [item.shape for item in outputs] == wanted * 4
        assert all(np.isfinite(item).all() for item in outputs)


def test_equal_sources_make_equal_examples() -> None:
    one, two = (packed(make(Random("again"))) for _ in range(2))
    assert one == two and one != packed(make(Random("other")))
    words = [[word for word, _ in rewritten.passes_at_random(Random(1), lossy=True)] for _ in range(2)]
    assert words[0] == words[1]


@pytest.mark.runtime
def test_a_changed_weight_is_noticed(
    runner: rewritten.Runner, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pass that damages a constant, and says nothing of it, does not get through."""
    from tfl_rewrite.editing.base import Edit, PassResult
    from tfl_rewrite.passes.dedup import Dedup

    def damaging(_: Dedup, model: object, _context: object) -> PassResult:
        for graph in model.subgraphs:  # type: ignore[attr-defined]
            for tensor in graph.tensors:
                if tensor.is_constant and tensor.dtype_name == "FLOAT32":
                    tensor.buffer.blob = OwnedBlob(bytes(tensor.buffer.nbytes))
        return PassResult("dedup", (Edit("a constant", "zero"),))

    monkeypatch.setattr(Dedup, "run", damaging)
    found = 0
    for number in range(12):
        try:
            rewritten.try_example(Random(f"noticed/{number}"), runner, folder)
        except contract.Breach as error:
            found += "outputs differ after lossless passes" in str(error)
    assert found


@pytest.mark.runtime
def test_a_model_that_cannot_run_is_a_breach(runner: rewritten.Runner, folder: Path, fixtures: Path) -> None:
    model = load(fixtures / "dense.tflite")
    model.operator_codes[0].version = 99
    save(model, folder / "wrong.tflite", force=True)
    with pytest.raises(contract.Breach, match="refuses"):
        runner.run(folder / "wrong.tflite", 0)
    assert runner.run(fixtures / "dense.tflite", 0), "and the next one runs"
