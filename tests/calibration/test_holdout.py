"""How inputs are divided: no sample serves twice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tfl_rewrite.calibration.holdout import Split, split


def write(path: Path, count: int, start: int = 0) -> Path:
    values = np.arange(start, start + count, dtype=np.float32)
    np.savez(path, one=values[:, None], two=-values)
    return path


def held(paths: tuple[object, ...]) -> list[int]:
    found = []
    for path in paths:
        with np.load(str(path)) as file:
            assert np.array_equal(file["one"][:, 0], -file["two"])
            found += [int(value) for value in file["two"] * -1]
    return found


def divided(parted: Split) -> tuple[list[int], list[int], list[int]]:
    assert parted.crossed and parted.held_out
    return held(parted.folds[0]), held(parted.folds[1]), held(parted.judge)


@pytest.mark.parametrize("count", [4, 5, 8, 23])
@pytest.mark.parametrize("in_order", [False, True])
def test_every_sample_serves_once(tmp_path: Path, count: int, in_order: bool) -> None:
    parted = split([write(tmp_path / "all.npz", count)], [], tmp_path, in_order=in_order)
    first, second, rest = divided(parted)
    assert sorted(first + second + rest) == list(range(count))
    assert len(rest) == max(1, count // 4) and abs(len(first) - len(second)) <= 1
    assert sorted(held(parted.everything)) == sorted(first + second)
    assert held(parted.others(0)) == second and held(parted.others(1)) == first
    if in_order:
        assert first + second + rest == list(range(count))


def test_several_files_with_few_samples_each(tmp_path: Path) -> None:
    files = [write(tmp_path / "a.npz", 4), write(tmp_path / "b.npz", 8, start=100)]
    first, second, rest = divided(split(files, [], tmp_path, in_order=False))
    assert sorted(first + second + rest) == [*range(4), *range(100, 108)]
    assert {value >= 100 for value in rest} == {True, False}


def test_one_part_where_nothing_is_rounded_for_it(tmp_path: Path) -> None:
    path = write(tmp_path / "all.npz", 8)
    parted = split([path], [], tmp_path, in_order=False, halves=False)
    assert not parted.crossed and parted.held_out and len(parted.folds) == 1
    assert sorted(held(parted.folds[0]) + held(parted.judge)) == list(range(8))


def test_many_files_are_dealt_whole(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(8):
        write(tmp_path / "in" / f"{number}.npz", 2, start=10 * number)
    parted = split([tmp_path / "in"], [], tmp_path, in_order=False)
    first, second, rest = divided(parted)
    assert "files" in parted.text
    assert sorted(first + second + rest) == sorted(10 * n + i for n in range(8) for i in range(2))


def test_the_users_holdout_judges_alone(tmp_path: Path) -> None:
    other = write(tmp_path / "other.npz", 3, start=50)
    parted = split([write(tmp_path / "all.npz", 6)], [other], tmp_path, in_order=False)
    first, second, rest = divided(parted)
    assert sorted(first + second) == list(range(6)) and rest == [50, 51, 52]


def test_too_few_to_divide_are_not_rounded_for(tmp_path: Path) -> None:
    path = write(tmp_path / "all.npz", 3)
    parted = split([path], [], tmp_path, in_order=False)
    assert not parted.crossed and not parted.held_out
    assert parted.folds == ((path,),) and parted.judge == (path,)
    assert "none are held out" in parted.text


def test_a_batch_is_no_row_of_samples(tmp_path: Path) -> None:
    path = write(tmp_path / "all.npz", 8)
    assert not split([path], [], tmp_path, in_order=False, whole=frozenset({8})).crossed
    assert split([path], [], tmp_path, in_order=False, whole=frozenset({3})).crossed


def test_pictures_are_dealt_one_by_one(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(8):
        (tmp_path / "in" / f"{number}.png").write_bytes(b"")
    parted = split([tmp_path / "in"], [], tmp_path, in_order=False)
    assert parted.crossed
    names = [Path(path).name for part in (*parted.folds, parted.judge) for path in part]
    assert sorted(names) == [f"{number}.png" for number in range(8)] and len(parted.judge) == 2
