"""The programs under scripts/ that need nothing but this package."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

from tfl_rewrite import check

from .helpers import run_script, script


@pytest.mark.slow
def test_mutants_keep_the_contract(fixtures: Path) -> None:
    models = [fixtures / "dense.tflite", fixtures / "two_signatures_shared_weights.tflite"]
    done = run_script("mutate.py", *models, "--count", "12", "--seed", "1", "--limit", "30")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 breach(es) of the contract in 12 mutants" in done.stdout
    assert (
        sum(int(line.split()[0]) for line in done.stdout.splitlines() if ", " in line or "  exit" in line)
        == 12
    )


def test_mutants_are_reproducible_and_differ(fixtures: Path) -> None:
    mutate = script("mutate")
    data = (fixtures / "dense.tflite").read_bytes()
    made = [mutate.mutate(data, random.Random(number)) for number in range(40)]
    assert made == [mutate.mutate(data, random.Random(number)) for number in range(40)]
    assert len(set(made)) > 35 and sum(item != data for item in made) > 35


@pytest.mark.slow
def test_a_breach_is_told(fixtures: Path) -> None:
    """No run ends within no time at all, so each is a breach."""
    done = run_script("mutate.py", fixtures / "dense.tflite", "--count", "1", "--limit", "0.0001")
    assert done.returncode == 1 and "breach" in done.stdout


def test_model_of_the_benchmarks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real one has 100 MB; its builder does the same with two narrow stages."""
    bench_model = script("bench_model")
    monkeypatch.setattr(bench_model, "STAGES", ((1, 8, 16, 1), (1, 8, 2048, 2)))
    for name in ("one", "two"):
        bench_model.resnet50(tmp_path / f"{name}.tflite", 7)
    assert (tmp_path / "one.tflite").read_bytes() == (tmp_path / "two.tflite").read_bytes()
    assert check(tmp_path / "one.tflite") == []


@pytest.mark.slow
@pytest.mark.skipif(sys.version_info < (3, 11), reason="needs qualified names of code objects")
def test_mutants_that_no_test_notices_are_named(tmp_path: Path) -> None:
    """One function is tested on both sides of its bound, one on one side, and one not at all."""
    (tmp_path / "ages.py").write_text(
        "def is_old(age):\n    return age >= 50\n\n\n"
        "def is_tall(height):\n    return height >= 2\n\n\n"
        "def is_new(age):\n    return age < 1\n"
    )
    (tmp_path / "test_ages.py").write_text(
        "from ages import is_old, is_tall\n"
        "def test_old():\n    assert is_old(50) is True and is_old(49) is False\n"
        "def test_tall():\n    assert is_tall(9)\n"
    )
    done = run_script("mutants.py", tmp_path / "ages.py", "--tests", tmp_path / "test_ages.py")
    assert done.returncode == 0, done.stdout + done.stderr
    told = [line.split(": ", 2) for line in done.stdout.splitlines()]
    assert [(row[0], row[1].split()[-1]) for row in told if len(row) == 3 and ".py" in row[1]] == [
        ("no test reaches it", "is_new"),
        ("no test reaches it", "is_new"),
        ("no test reaches it", "is_new"),
        ("survives", "is_tall"),
        ("survives", "is_tall"),
    ]
    assert "4 of 9 mutants are noticed (44.4%)" in done.stdout


def test_the_house_is_measured(tmp_path: Path) -> None:
    """A package that breaks every limit: each is named, and with it what is excepted without need."""
    house = script("house")
    (tmp_path / "__init__.py").write_text("")
    (tmp_path / "loose.py").write_text("from tfl_rewrite.room.one import _secret, f\n")
    (tmp_path / "room").mkdir()
    (tmp_path / "room" / "__init__.py").write_text("")
    body = "    pass\n" * house.MOST_FUNCTION_LINES
    names = ", ".join(f"p{number}" for number in range(house.MOST_PARAMETERS))
    one = f"from . import two\n_secret = 1\nclass C:\n    def f(self, {names}, *more): ...\ndef f():\n{body}"
    (tmp_path / "room" / "one.py").write_text(one)
    two = f"def late({names}):\n    from .one import f\n" + "x = 1\n" * house.MOST_MODULE_LINES
    (tmp_path / "room" / "two.py").write_text(two)
    found = [fault for row in house.measured(house.Modules(tmp_path)) for fault in row.faults]
    (loose, ring, secret, long, wide, tall) = [text for text in found if "excepted" not in text]
    assert loose == "loose.py stands in no room" and ring == "room/one.py -> room/two.py"
    assert secret == "loose.py:1 imports _secret of room/one.py"
    assert long.startswith("room/one.py:f ") and wide.startswith("room/one.py:C.f ")
    assert tall.startswith("room/two.py ")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["house.py", "bench.py", "mutate.py", "compile_schema.py"])
def test_help(name: str) -> None:
    done = run_script(name, "--help")
    assert done.returncode == 0 and "usage:" in done.stdout and done.stderr == ""
