"""The contract for hostile bytes, and that the programs which look for breaches find them."""

from __future__ import annotations

import argparse
import importlib.util
import json
import struct
import time
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tfl_rewrite import inspect, load
from tfl_rewrite.errors import FormatError, UnsupportedError, UsageError
from tfl_rewrite.files.container import Container
from tfl_rewrite.files.source import Source
from tfl_rewrite.integers.ranges import GivenModel, TensorRanges
from tfl_rewrite.passes.dedup import Dedup

from ..helpers import run_script, script

fuzz, fuzz_atheris, contract = script("fuzz"), script("fuzz_atheris"), script("hostile.contract")
make, packed = script("hostile.models").make, script("hostile.models").packed
Manifests = script("hostile.manifests").Manifests
mutated_manifest = script("hostile.manifests").mutated_manifest
made_ranges = script("hostile.ranges").made_ranges
mutated_ranges = script("hostile.ranges").mutated_ranges
dishonest_zip = script("hostile.bytewise").dishonest_zip
mutated_fields = script("hostile.structured").mutated_fields

NAMES = ["dense_defaults_present", "while_loop", "resource_variables", "blockwise_int4", "metadata_label_zip"]
QUIET = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def seeds(fixtures: Path) -> list[fuzz.Seed]:
    return [fuzz.seed_of(fixtures / f"{name}.tflite") for name in NAMES]


# -- The contract --------------------------------------------------------------------------------------------


@QUIET
@given(seed=st.integers(0, 1 << 32), number=st.integers(0, 1 << 16))
def test_mutants_are_refused_or_models(seeds: list[fuzz.Seed], seed: int, number: int) -> None:
    _, data = fuzz.mutant(seeds, seed, number)
    with contract.bounded(data, seconds=60):
        contract.exercise(data, orders=1 << number % len(contract.ORDERS))


@QUIET
@given(data=st.binary(max_size=300))
def test_noise_is_refused_or_a_model(data: bytes) -> None:
    for start in (b"", struct.pack("<I", 8) + b"TFL3"):
        contract.exercise(start + data)


@QUIET
@given(seed=st.integers(0, 1 << 32))
def test_mutants_of_generated_models(seed: int) -> None:
    random = Random(seed)
    data = mutated_fields(packed(make(random, most_steps=4)), random)
    contract.exercise(data, orders=1 << random.randrange(len(contract.ORDERS)))


def test_every_committed_file_keeps_the_contract(malformed: Path, tmp_path: Path) -> None:
    """Each crasher that was ever found lies among them."""
    data = malformed.read_bytes()
    with contract.bounded(data, seconds=60):
        if data:
            contract.exercise(data, folder=tmp_path)


def test_manifests_touch_nothing_else(fixtures: Path, tmp_path: Path) -> None:
    manifests, outcomes = Manifests(fixtures / "lstm.tflite", tmp_path), set()
    for number in range(150):
        outcomes.add(manifests.try_one(Random(number)))
    assert {"joined", "refused: FormatError"} <= outcomes


@pytest.mark.parametrize("offset", ["start", "own"])
@pytest.mark.parametrize("seed", range(40))
def test_dishonest_zips(seed: int, offset: str, fixtures: Path) -> None:
    model = (fixtures / "dense_defaults_present.tflite").read_bytes()
    contract.exercise(model + dishonest_zip(Random(seed), len(model) if offset == "start" else 0), orders=1)


# -- The programs --------------------------------------------------------------------------------------------


def test_a_mutant_depends_on_its_number_alone(seeds: list[fuzz.Seed]) -> None:
    made = [fuzz.mutant(seeds, 1, number) for number in range(60)]
    assert made[30:] == [fuzz.mutant(seeds, 1, number) for number in range(30, 60)]
    changed = [data for source, data in made if data != source.data]
    assert len(changed) > 45 and len({data for _, data in made}) > 45
    assert made != [fuzz.mutant(seeds, 2, number) for number in range(60)]


def test_fields_are_changed_in_valid_flatbuffers(seeds: list[fuzz.Seed]) -> None:
    """Otherwise all that is tried is how the reader refuses."""
    read = 0
    for number in range(60):
        data = mutated_fields(seeds[0].data, Random(number))
        try:
            Source(Container.of_bytes(data)).model()
            read += data != seeds[0].data
        except (FormatError, UnsupportedError):
            pass
    assert read > 15


def test_manifests_are_changed(fixtures: Path, tmp_path: Path) -> None:
    Manifests(fixtures / "lstm.tflite", tmp_path)
    plain, progressive = (path.read_bytes() for path in sorted(tmp_path.rglob("*.json")))
    assert b'"base"' in progressive and b'"base"' not in plain
    for good in (plain, progressive):
        made = [mutated_manifest(good, Random(number)) for number in range(40)]
        assert made == [mutated_manifest(good, Random(number)) for number in range(40)]
        assert sum(item != good for item in made) > 35
        assert sum(is_json(item) for item in made) > 15


def test_files_of_ranges_are_changed_and_refused_or_taken(fixtures: Path) -> None:
    model = load(fixtures / "digits_cnn.tflite")
    good = made_ranges(model, Random(0)).dump()
    outcomes = set()
    for number in range(300):
        text = mutated_ranges(good, Random(number))
        assert text == mutated_ranges(good, Random(number))
        try:
            TensorRanges.parse(text, "r.json").on(GivenModel.of(model), "r.json")
            outcomes.add("taken")
        except (FormatError, UnsupportedError, UsageError) as error:
            assert str(error).startswith("r.json") and str(error).isprintable()
            outcomes.add(type(error).__name__)
    assert outcomes == {"taken", "FormatError", "UsageError", "UnsupportedError"}


def is_json(data: bytes) -> bool:
    try:
        json.loads(data)
    except ValueError:
        return False
    return True


def test_breaches_are_noticed(
    seeds: list[fuzz.Seed], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    data = seeds[0].data

    def slow(_: object, model: object, _context: object) -> object:
        until = time.process_time() + 1
        while time.process_time() < until:
            pass
        return model

    with monkeypatch.context() as patch, pytest.raises(contract.Breach, match="processor time"):
        patch.setattr(Dedup, "run", slow)
        with contract.bounded(data, seconds=0.2):
            contract.exercise(data, orders=1)
    with pytest.raises(contract.Breach, match="bytes of memory"), contract.bounded(data):
        held = bytearray(contract.allowed_memory(len(data)) + (32 << 20))
        held[:: 1 << 12] = b"\1" * len(held[:: 1 << 12])
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(Dedup, "run", lambda *_: 1 // 0)
        contract.exercise(data, orders=1)
    model = load(tmp_path_of(data, tmp_path))
    assert model.description
    with monkeypatch.context() as patch, pytest.raises(contract.Breach, match="terminal obeys"):
        patch.setattr("hostile.contract.inspection_lines", lambda *_, **__: ["\x1b[2J"])
        contract.exercise(data, orders=0)


def tmp_path_of(data: bytes, folder: Path) -> Path:
    (folder / "model.tflite").write_bytes(data)
    assert inspect(folder / "model.tflite").tensors
    return folder / "model.tflite"


@pytest.mark.runtime
def test_fuzz_runs(fixtures: Path) -> None:
    done = run_script(
        "fuzz.py", fixtures / "dense.tflite", "--count", "60", "--jobs", "2", "--generated", "2"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 breach(es) of the contract in 60 mutants of 3 models" in done.stdout


@pytest.mark.slow
def test_fuzz_outlives_what_kills_it(
    root: Path, fixtures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that dies is a breach with its numbers, and the rest goes on."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\n"
        "if 'spawn_main' in ' '.join(sys.orig_argv):\n"
        "    import fuzz\n"
        "    run = fuzz.Trial.run\n"
        "    fuzz.Trial.run = lambda self, number: os._exit(9) if number == 25 else run(self, number)\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{root / 'scripts'}")
    options = argparse.Namespace(minutes=None, first=0, count=60, jobs=1, seed=0, progress=False)
    total = fuzz.run([fixtures / "dense.tflite"], options)
    assert total.outcomes.total() == 60 and total.outcomes["DIED"] == 20
    ((number, what),) = total.breaches
    assert number == 20 and "exit code 9" in what


@pytest.mark.runtime
def test_atheris_target(fixtures: Path, tmp_path: Path) -> None:
    fuzz_atheris.one_input((fixtures / "dense.tflite").read_bytes())
    if importlib.util.find_spec("atheris") is None:
        done = run_script("fuzz_atheris.py")
        assert done.returncode == 2 and "atheris is not installed" in done.stderr
    else:
        (tmp_path / "one").write_bytes((fixtures / "malformed" / "zero_subgraphs.tflite").read_bytes())
        done = run_script("fuzz_atheris.py", tmp_path, "-runs=5", "-seed=1")
        assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fuzz.py", "fuzz_atheris.py", "agreement.py"])
def test_help(name: str) -> None:
    done = run_script(name, "--help")
    assert done.returncode == 0 and "usage" in done.stdout


@pytest.mark.slow
def test_agreement_runs(fixtures: Path) -> None:
    done = run_script(
        "agreement.py", fixtures / "dense.tflite", fixtures / "while_loop.tflite", "--count", "40"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "refused by its verifier, and not sound for us" in done.stdout
