"""The programs under scripts/ that need nothing but this package."""

from __future__ import annotations

import argparse
import math
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tfl_rewrite import check
from tfl_rewrite.options.option import options_of
from tfl_rewrite.passes import catalog

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
@pytest.mark.parametrize(
    "name", ["house.py", "bench.py", "bench_integer.py", "bench_mixed.py", "mutate.py", "compile_schema.py"]
)
def test_help(name: str) -> None:
    done = run_script(name, "--help")
    assert done.returncode == 0 and "usage:" in done.stdout and done.stderr == ""


def integer_rows(bench: Any, tool: str, snrs: list[float | str | None], **given: Any) -> list[Any]:
    """Rows of models a, b, ...: an SNR on all kernels, why there is none, or no file at all."""
    rows = []
    for model, snr in zip("abcdef", snrs, strict=False):
        row = bench.Row(model, tool, "int8", "raised" if snr is None else "written", **given)
        if snr is not None:
            row.nbytes, row.figures = 100, dict.fromkeys(bench.RESOLVERS, snr)
        rows.append(row)
    return rows


def test_tables_of_full_integers() -> None:
    """Differences are of models that both have, and failures are counted."""
    bench = script("bench_integer")
    ours = integer_rows(bench, "ours", [30.0, 20.0, 25.0, math.inf])
    ours[0].outcome, ours[1].nbytes = "starred", 101
    cal = integer_rows(bench, "cal", [20.0, 22.0, None, 40.0])
    peer = integer_rows(bench, "LQ", [f"{bench.FAILS}: refused", "no ratio; ", None, None])
    assert bench.line("a", 200, [ours[0], cal[0], peer[0]]) == (
        "| a | 200 | 0.500: 30.0 / 30.0 / 30.0 * | 0.500: 20.0 / 20.0 / 20.0"
        " | 0.500: fails / fails / fails | 0 | 0 |"
    )
    assert bench.line("c", 200, [ours[2], cal[2], peer[1]]).endswith(
        "| raised | 0.500: n.d. / n.d. / n.d. | 0 | 0 |"
    )
    assert bench.summary([*ours, *cal, *peer]) == [
        "- int8, ours over cal: median +10.0 dB on 3 models, more than 1 dB below on 1 (b -2.0), larger on 1",
        "- int8, ours, of 4 models: 1 x written only with --verify off",
        "- int8, cal, of 4 models: 1 x raised",
        "- int8, LQ, of 4 models: 2 x raised, 1 x does not run on XNNPACK, built-in, reference",
    ]
    assert bench.why(peer)[0] == "- a, LQ int8, written: " + "; ".join(
        f"{name}: {bench.FAILS}: refused" for name in bench.RESOLVERS.values()
    )


@pytest.mark.slow
def test_how_a_process_of_a_peer_ends() -> None:
    bench = script("bench_integer")

    def ended(program: str, limit: float = 60.0) -> tuple[str, str]:
        outcome, told, _ = bench.ran([sys.executable, "-c", program], limit)
        return outcome, told

    assert ended("import sys; sys.stderr.write('noise')") == ("written", "")
    assert ended("raise ValueError('no range')") == ("raised", "ValueError: no range")
    assert ended("import os; os.abort()") == ("aborted", "signal 6")
    sleeper = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(99)'])"
    assert ended(sleeper, 2.0) == ("stopped", "after 2 s")


@pytest.mark.runtime
def test_ours_is_made_and_judged(fixtures: Path, tmp_path: Path) -> None:
    """One file that keeps the tolerance; a figure for each of the kernels."""
    bench = script("bench_integer")
    row = bench.Row("digits", "ours", "int8")
    target = tmp_path / "out.tflite"
    calib, evaluation = (fixtures / "inputs" / f"digits_{part}.npz" for part in ("calib", "eval"))
    arguments = argparse.Namespace(effort="fast", limit=120.0, all_samples=False)
    bench.made(row, fixtures / "digits_cnn.tflite", target, calib, arguments)
    assert (row.outcome, row.told) == ("written", "")
    bench.measured(row, fixtures / "digits_cnn.tflite", target, evaluation, 60.0)
    assert row.floats == 0 and row.nbytes == target.stat().st_size
    assert all(value > 25 for value in row.figures.values()) and row.snr > 25
    assert bench.float_operators(fixtures / "digits_cnn.tflite") > 5
    target.write_bytes((fixtures / "dense.tflite").read_bytes())
    bench.measured(row, fixtures / "digits_cnn.tflite", target, evaluation, 60.0)
    assert row.snr is None and all("interface" in str(told) for told in row.figures.values())


def test_the_docs_list_every_option_as_its_row_says() -> None:
    """What is not so is written by ``python scripts/option_tables.py``."""
    tables = script("option_tables")
    listed = []
    for path in sorted(tables.DOCS.glob("*.md")):
        page = path.read_text(encoding="utf-8")
        assert tables.written(page) == page, f"{path.name}: run scripts/option_tables.py"
        listed += tables.names(page)
    own = [kind.name for kind in catalog.every() if options_of(kind)]
    assert sorted(listed) == sorted([*own, *tables.OTHERS])


def test_a_table_of_options_says_what_its_rows_say() -> None:
    tables = script("option_tables")
    page = "a\n<!-- options of dedup -->\nold\n<!-- end of options -->\nb <!-- options of none"
    made = tables.written(page)
    assert "old" not in made and made.startswith("a\n<!--") and made.endswith("none")
    assert "| `--pure-custom NAME` | a custom operator" in made
    assert tables.written(made) == made
    with pytest.raises(KeyError):
        tables.written(page.replace("dedup", "nothing"))
    assert "`--granularity auto\\|channel\\|tensor`" in tables.table(catalog.find("round-weights"))
    assert "| `--int8` | round int8" in tables.table(catalog.find("round-weights"))


def test_the_limit_of_equal_columns_is_half_a_logarithm() -> None:
    rate_limit = script("bench_download").rate_limit
    power, strength = np.full(10, 4.0), np.full(10, 0.5)
    assert rate_limit(power, strength, 10 * 0.125) == pytest.approx(10 * 0.5 * math.log2(16))
    assert rate_limit(power, strength, 20.0) == 0.0
    assert rate_limit(np.zeros(3), np.ones(3), 0.0) == 0.0


def test_the_limit_leaves_out_what_drowns() -> None:
    rate_limit = script("bench_download").rate_limit
    random = np.random.default_rng(3)
    whole = random.exponential(size=50)
    for noise in (0.5, 5.0, 20.0, 40.0):
        low, high = 0.0, float(whole.max())
        for _ in range(80):
            level = (low + high) / 2
            low, high = (level, high) if np.minimum(whole, level).sum() < noise else (low, level)
        wanted = float(0.5 * np.log2(np.maximum(whole / high, 1)).sum()) if noise < whole.sum() else 0.0
        assert rate_limit(whole, np.ones(50), noise) == pytest.approx(wanted, abs=1e-6)
