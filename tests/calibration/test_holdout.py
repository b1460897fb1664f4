"""How inputs are divided: no sample serves twice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tfl_rewrite import UsageError, load
from tfl_rewrite.calibration.holdout import Split, interface_of, split
from tfl_rewrite.interpreter.interface import EntryPoint, Interface, TensorFacts
from tfl_rewrite.samples.media import Media


def facts(name: str, shape: tuple[int, ...], free: bool = True) -> TensorFacts:
    signature = (-1, *shape[1:]) if free and shape else shape
    return TensorFacts(name=name, tensor=name, dtype="float32", shape=shape, shape_signature=signature)


def interface(*inputs: TensorFacts, key: str | None = None) -> Interface:
    entry = EntryPoint(key=key, inputs=inputs, outputs=())
    return Interface(primary=entry, signatures=() if key is None else (entry,))


TWO = interface(facts("one", (1, 1)), facts("two", (1,)))
ONE = interface(facts("x", (1, 8, 8, 3), free=False))


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
    parted = split([write(tmp_path / "all.npz", count)], [], tmp_path, in_order=in_order, interface=TWO)
    first, second, rest = divided(parted)
    assert sorted(first + second + rest) == list(range(count))
    assert len(rest) == max(2, count // 4) and abs(len(first) - len(second)) <= 1
    assert sorted(held(parted.everything)) == sorted(first + second)
    assert held(parted.others(0)) == second and held(parted.others(1)) == first
    if in_order:
        assert first + second + rest == list(range(count))


def test_several_files_with_few_samples_each(tmp_path: Path) -> None:
    files = [write(tmp_path / "a.npz", 4), write(tmp_path / "b.npz", 8, start=100)]
    first, second, rest = divided(split(files, [], tmp_path, in_order=False, interface=TWO))
    assert sorted(first + second + rest) == [*range(4), *range(100, 108)]
    assert {value >= 100 for value in rest} == {True, False}


def test_one_part_where_nothing_is_rounded_for_it(tmp_path: Path) -> None:
    path = write(tmp_path / "all.npz", 8)
    parted = split([path], [], tmp_path, in_order=False, interface=TWO, halves=False)
    assert not parted.crossed and parted.held_out and len(parted.folds) == 1
    assert sorted(held(parted.folds[0]) + held(parted.judge)) == list(range(8))


def test_many_files_are_dealt_whole(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(8):
        write(tmp_path / "in" / f"{number}.npz", 2, start=10 * number)
    parted = split([tmp_path / "in"], [], tmp_path, in_order=False, interface=TWO)
    first, second, rest = divided(parted)
    assert "files" in parted.text
    assert sorted(first + second + rest) == sorted(10 * n + i for n in range(8) for i in range(2))


def test_the_users_holdout_judges_alone(tmp_path: Path) -> None:
    other = write(tmp_path / "other.npz", 3, start=50)
    parted = split([write(tmp_path / "all.npz", 6)], [other], tmp_path, in_order=False, interface=TWO)
    first, second, rest = divided(parted)
    assert sorted(first + second) == list(range(6)) and rest == [50, 51, 52]


def test_too_few_to_divide_are_not_rounded_for(tmp_path: Path) -> None:
    path = write(tmp_path / "all.npz", 3)
    parted = split([path], [], tmp_path, in_order=False, interface=TWO)
    assert not parted.crossed and not parted.held_out
    assert parted.folds == ((path,),) and parted.judge == (path,)
    assert "none are held out" in parted.text


def test_what_an_array_holds_follows_from_the_input(tmp_path: Path) -> None:
    """An input that takes eight rows at a time: an array of eight rows is one sample, not eight."""
    rows = interface(facts("x", (8, 2), free=False))
    np.savez(tmp_path / "one.npz", x=np.zeros((8, 2), np.float32))
    np.savez(tmp_path / "eight.npz", x=np.zeros((8, 8, 2), np.float32))
    parted = split([tmp_path / "one.npz"], [], tmp_path, in_order=False, interface=rows)
    assert not parted.crossed and "1 sample is too few" in parted.reason
    assert split([tmp_path / "eight.npz"], [], tmp_path, in_order=False, interface=rows).crossed


def test_entry_points_are_divided_each(tmp_path: Path) -> None:
    """One has samples enough; the other is judged with all that it has."""
    entries = [
        EntryPoint(key="many", inputs=(facts("a", (1, 2)), facts("common", (3,))), outputs=()),
        EntryPoint(key="few", inputs=(facts("b", (1, 2)),), outputs=()),
    ]
    both = Interface(primary=entries[0], signatures=tuple(entries))
    many = np.arange(16, dtype=np.float32).reshape(8, 2)
    np.savez(tmp_path / "in.npz", a=many, common=np.zeros((1, 3), np.float32), b=many[:3], other=many[:5])
    parted = split([tmp_path / "in.npz"], [], tmp_path, in_order=False, interface=both)
    assert parted.crossed
    sizes = []
    for (path,) in (*parted.folds, parted.judge):
        with np.load(str(path)) as held:
            assert held["common"].shape == (1, 3)
            sizes.append((len(held["a"]), len(held["b"]) if "b" in held.files else 0))
    assert sizes == [(3, 0), (3, 0), (2, 3)]


@pytest.mark.runtime
@pytest.mark.parametrize(
    "name", ["mtcnn_rnet", "two_signatures_shared_weights", "dynamic_shapes", "string_input", "lstm"]
)
def test_a_model_takes_what_the_runtime_says_that_it_takes(fixtures: Path, name: str) -> None:
    from tfl_rewrite.judge.judge import run_model

    path = fixtures / f"{name}.tflite"
    ran = run_model(path)
    assert ran.interface is not None
    told = interface_of(load(path))

    def shown(found: Interface) -> list[object]:
        def told_of(item: TensorFacts) -> tuple[object, ...]:
            given = item.name, item.tensor, item.index, item.dtype, item.shape, item.shape_signature
            return *given, item.scales, item.zero_points, item.aliases

        return [
            (entry.key, entry.subgraph, entry in found.entry_points, [*map(told_of, rows)])
            for entry in (found.primary, *found.signatures)
            for rows in (entry.inputs, entry.outputs)
        ]

    assert shown(told) == shown(ran.interface)


@pytest.mark.parametrize("total", range(4, 40))
def test_shares(total: int) -> None:
    from tfl_rewrite.calibration.holdout import _shares

    for in_order in (False, True):
        first, second, rest = _shares(total, in_order, False)
        assert sorted(first + second + rest) == list(range(total))
        assert len(rest) == max(2, total // 4) and 0 <= len(first) - len(second) <= 1
        if in_order:
            # A sequence is torn nowhere but between the parts.
            assert first + second + rest == list(range(total))


def test_what_does_not_fit_is_said_at_once(tmp_path: Path) -> None:
    np.savez(tmp_path / "in.npz", other=np.zeros((8, 1), np.float32))
    # An input may have no name at all.
    with pytest.raises(UsageError, match=r"no array for every input.*arr_0, arr_1, \.\.\. in their order"):
        split([tmp_path / "in.npz"], [], tmp_path, in_order=False, interface=TWO)


def pictures(folder: Path, count: int) -> Path:
    folder.mkdir()
    for number in range(count):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"{number}.png")
    return folder


def test_pictures_are_dealt_one_by_one(tmp_path: Path) -> None:
    folder = Media(pictures(tmp_path / "in", 8), value_range=(0.0, 1.0))
    parted = split([folder], [], tmp_path, in_order=False, interface=ONE)
    assert parted.crossed
    names = [Path(path).name for part in (*parted.folds, parted.judge) for path in part]
    assert sorted(names) == [f"{number}.png" for number in range(8)] and len(parted.judge) == 2


def test_nothing_is_fitted_to_pictures_of_a_guessed_range(tmp_path: Path) -> None:
    parted = split([pictures(tmp_path / "in", 8)], [], tmp_path, in_order=False, interface=ONE)
    assert not parted.crossed and "pixel range assumed" in parted.reason


def test_a_picture_is_no_sample_of_two_inputs(tmp_path: Path) -> None:
    folder = Media(pictures(tmp_path / "in", 8), value_range=(0.0, 1.0))
    parted = split([folder], [], tmp_path, in_order=False, interface=TWO)
    assert not parted.crossed and "several inputs" in parted.reason
