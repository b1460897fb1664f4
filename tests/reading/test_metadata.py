"""What a model's metadata says of its inputs, and how pictures and sound are read by it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import flatbuffers
import pytest

from tfl_rewrite import Judging, load, save
from tfl_rewrite.errors import UsageError
from tfl_rewrite.integers.border import Form
from tfl_rewrite.model.blob import OwnedBlob
from tfl_rewrite.model.ir import Buffer, Metadata
from tfl_rewrite.reading.metadata import (
    declared_inputs,
    described_inputs,
    unfit_normalization,
    with_media,
)
from tfl_rewrite.samples.media import Declared, Media


def table(builder: flatbuffers.Builder, slots: dict[int, Callable[[int], None]]) -> int:
    builder.StartObject(9)
    for slot, add in slots.items():
        add(slot)
    return int(builder.EndObject())


def vector(builder: flatbuffers.Builder, offsets: list[int]) -> int:
    builder.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    return int(builder.EndVector())


def floats(builder: flatbuffers.Builder, values: list[float]) -> int:
    builder.StartVector(4, len(values), 4)
    for value in reversed(values):
        builder.PrependFloat32(value)
    return int(builder.EndVector())


def description(
    *, mean: list[float] | None = None, std: list[float] | None = None, rate: int | None = None
) -> bytes:
    """One input, described by the schema's slots and with the ordinary builder."""
    builder = flatbuffers.Builder(0)

    def at(offset: int) -> Callable[[int], None]:
        return lambda slot: builder.PrependUOffsetTRelativeSlot(slot, offset, 0)

    def byte(value: int) -> Callable[[int], None]:
        return lambda slot: builder.PrependUint8Slot(slot, value, 0)

    slots = {0: at(builder.CreateString("image"))}
    if mean is not None and std is not None:
        options = table(builder, {0: at(floats(builder, mean)), 1: at(floats(builder, std))})
        unit = table(builder, {0: byte(1), 1: at(options)})
        slots[4] = at(vector(builder, [unit]))
    if rate is not None:
        audio = table(builder, {0: lambda slot: builder.PrependUint32Slot(slot, rate, 0)})
        slots[3] = at(table(builder, {0: byte(4), 1: at(audio)}))
    tensor = table(builder, slots)
    subgraph = table(builder, {2: at(vector(builder, [tensor]))})
    builder.Finish(table(builder, {3: at(vector(builder, [subgraph]))}), b"M001")
    return bytes(builder.Output())


def with_metadata(source: Path, target: Path, data: bytes) -> Path:
    model = load(source)
    model.metadata = [item for item in model.metadata if item.name != "TFLITE_METADATA"]
    buffer = Buffer(blob=OwnedBlob(data))
    model.buffers.append(buffer)
    model.metadata.append(Metadata(name="TFLITE_METADATA", buffer=buffer))
    save(model, target)
    return target


@pytest.fixture
def digits(fixtures: Path) -> Path:
    return fixtures / "digits_cnn.tflite"


def only(path: Path) -> Declared | None:
    found = declared_inputs(path)
    assert len(found) <= 1
    return next(iter(found.values()), None)


def test_normalization_and_sample_rate(digits, tmp_path):
    target = tmp_path / "m.tflite"
    said = description(mean=[1.5, 2.5, 3.5], std=[4.0, 5.0, 6.0], rate=16000)
    assert only(with_metadata(digits, target, said)) == Declared(
        mean=(1.5, 2.5, 3.5), std=(4.0, 5.0, 6.0), sample_rate=16000
    )
    names = list(declared_inputs(target))
    assert names == [load(digits).subgraphs[0].inputs[0].name]


@pytest.mark.parametrize(
    "data",
    [
        description(),
        description(mean=[1.0], std=[0.0]),
        description(mean=[float("nan")], std=[1.0]),
        description(mean=[], std=[1.0]),
        description(rate=0),
        b"",
        b"\xff" * 64,
    ],
)
def test_what_cannot_be_used_says_nothing(digits, tmp_path, data):
    assert only(with_metadata(digits, tmp_path / "m.tflite", data)) is None


def test_every_damaged_byte_is_survived(digits, tmp_path):
    whole = description(mean=[127.5], std=[127.5], rate=8000)
    target = tmp_path / "m.tflite"
    good = Declared(mean=(127.5,), std=(127.5,), sample_rate=8000)
    assert only(with_metadata(digits, target, whole)) == good
    for position in range(len(whole)):
        for value in (0, 1, 0x7F, 0x80, 0xFF):
            data = bytearray(whole)
            data[position] = value
            with contextlib.suppress(ValueError):
                described_inputs(bytes(data))
    for length in range(len(whole)):
        with contextlib.suppress(ValueError):
            described_inputs(whole[:length])


def test_only_media_get_options(digits, tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "b.npz").write_bytes(b"")
    both = Judging(inputs=[tmp_path / "a.png", tmp_path / "b.npz"], input_layout="nhwc")
    given = with_media(both, digits).inputs
    assert isinstance(given[0], Media) and given[0].layout == "NHWC" and given[1] == tmp_path / "b.npz"
    assert with_media(with_media(both, digits), digits).inputs == given
    plain = Judging(inputs=[tmp_path / "b.npz"])
    assert with_media(plain, digits) == plain
    held = Judging(inputs=[tmp_path / "b.npz"], holdout=[tmp_path / "a.png"], sample_rate=16000)
    assert [type(path) for path in with_media(held, digits).holdout] == [Media]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"input_range": (0.0, 0.0)}, "two different numbers"),
        ({"input_range": (0.0, float("inf"))}, "two different numbers"),
        ({"input_layout": "NHWW"}, "each axis once"),
        ({"input_layout": "XYZ"}, "each axis once"),
        ({"sample_rate": 0}, "sample_rate is 0; give 1,000 or more"),
        ({"sample_rate": 16000}, "--sample-rate is for pictures and sound"),
    ],
)
def test_options_that_make_no_sense(digits, tmp_path, options, text):
    (tmp_path / "b.npz").write_bytes(b"")
    with pytest.raises(UsageError, match=text):
        with_media(Judging(inputs=[tmp_path / "b.npz"], **options), digits)


def test_a_damaged_model_says_nothing(tmp_path):
    path = tmp_path / "m.tflite"
    path.write_bytes(b"not a model")
    assert declared_inputs(path) == {}


@pytest.mark.parametrize(
    ("kind", "scale", "zero", "told"),
    [
        ("UINT8", 1 / 127.5, 128, ""),
        ("INT8", 1 / 127.5, 0, ""),
        ("UINT8", 1 / 255, 0, "up to 255 steps off; normalize"),
        ("INT8", 1 / 255, -128, "up to 255 steps off; normalize"),
        ("INT16", 1 / 32768, 0, ""),
    ],
)
def test_normalization_that_does_not_fit_integers_is_told(digits, tmp_path, kind, scale, zero, told):
    source = with_metadata(digits, tmp_path / "m.tflite", description(mean=[127.5], std=[127.5]))
    model = load(source)
    Form(kind, scale, zero).give(model.subgraphs[0].inputs[0])
    notes = unfit_normalization(source, model)
    assert bool(notes) is bool(told)
    assert told in "".join(notes)
    assert unfit_normalization(source, load(source)) == []
    save(model, tmp_path / "integers.tflite")
    again = unfit_normalization(tmp_path / "integers.tflite", load(source))
    assert bool(again) is bool(told)
    assert all("took them for" in note for note in again)
