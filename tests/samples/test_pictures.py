"""Pictures as inputs."""

from __future__ import annotations

import io
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tfl_rewrite.errors import FileAccessError, UsageError
from tfl_rewrite.interpreter.interface import TensorFacts
from tfl_rewrite.judge.judge import run_model
from tfl_rewrite.judge.settings import Judging
from tfl_rewrite.pipeline.verify import verify
from tfl_rewrite.samples import inputs
from tfl_rewrite.samples import media as media_module
from tfl_rewrite.samples.media import Declared, Media, Pictures, layout_of, read_picture, to_input

from .. import tiny_models


def facts(*signature: int, dtype: str = "float32", **more: Any) -> TensorFacts:
    shape = tuple(max(size, 1) for size in signature)
    return TensorFacts(name="x", tensor="x", dtype=dtype, shape=shape, shape_signature=signature, **more)


def picture(path: Path, pixels: Any, mode: str | None = None) -> Path:
    array = np.asarray(pixels)
    Image.fromarray(array if mode else array.astype(np.uint8)).save(path)
    return path


@pytest.fixture
def gradient(tmp_path: Path) -> Path:
    """6 wide, 5 high; red grows to the right, green downwards, blue is 51."""
    pixels = np.zeros((5, 6, 3))
    pixels[..., 0], pixels[..., 1] = np.arange(6) * 51, np.arange(5)[:, np.newaxis] * 51
    pixels[..., 2] = 51
    return picture(tmp_path / "gradient.png", pixels)


def read(path: Path, what: TensorFacts, **options: Any) -> np.ndarray:
    return Pictures(what, Media(path, **options), path).sample([path])


@pytest.mark.parametrize(
    ("signature", "given", "layout"),
    [
        ((1, 5, 6, 3), None, "NHWC"),
        ((1, 3, 4, 6), None, "NCHW"),
        ((-1, 5, 6, 1), None, "NHWC"),
        ((5, 6, 3), None, "HWC"),
        ((3, 4, 6), None, "CHW"),
        ((1, 28, 28), None, "CHW"),
        ((28, 28), "HW", "HW"),
        ((1, 3, 4, 3), "NCHW", "NCHW"),
        ((1, 6, 4, 3), "NWHC", "NWHC"),
    ],
)
def test_layouts(signature, given, layout):
    assert layout_of(facts(*signature), given) == layout


@pytest.mark.parametrize(
    ("signature", "given", "text"),
    [
        ((1, 3, 4, 3), None, "could be NHWC or NCHW"),
        ((1, 784), None, "not a picture"),
        ((1, 8, 6, 5), None, "not a picture"),
        ((1, 8, 6, -1), None, "number of channels is free"),
        ((1, 4, 6, 3), "HWC", "names 3 axes"),
        ((1, 4, 6, 3), "NTCH", "names 4 axes"),
    ],
)
def test_layouts_that_are_refused(signature, given, text):
    with pytest.raises(UsageError, match=text) as caught:
        layout_of(facts(*signature), given)
    assert caught.value.remedy and (
        "--input-layout" in caught.value.remedy or "each axis" in caught.value.remedy
    )


def test_the_layout_decides_where_pixels_go(gradient):
    wide = read(gradient, facts(1, 5, 6, 3), value_range=(0, 255))
    assert wide.shape == (1, 5, 6, 3) and wide.dtype == np.float32
    assert wide[0, 0, :, 0].tolist() == [0, 51, 102, 153, 204, 255]
    assert wide[0, :, 0, 1].tolist() == [0, 51, 102, 153, 204]
    for signature, layout, axes in [
        ((1, 3, 5, 6), None, (0, 3, 1, 2)),
        ((1, 6, 5, 3), "NWHC", (0, 2, 1, 3)),
    ]:
        other = read(gradient, facts(*signature), value_range=(0, 255), layout=layout)
        assert np.array_equal(other, wide.transpose(axes))
    assert np.array_equal(read(gradient, facts(5, 6, 3), value_range=(0, 255)), wide[0])
    grey = read(gradient, facts(5, 6), value_range=(0, 255), layout="HW")
    assert grey.shape == (5, 6) and grey[0, 0] == pytest.approx(51 * 0.114, abs=1)
    alpha = read(gradient, facts(1, 5, 6, 4), value_range=(0, 255))
    assert (alpha[..., 3] == 255).all() and np.array_equal(alpha[..., :3], wide)


def test_what_pixels_become(gradient):
    shape = (1, 5, 6, 3)
    row = slice(None), 0, slice(None), 0
    assert read(gradient, facts(*shape))[row].tolist() == [
        pytest.approx([-1, -0.6, -0.2, 0.2, 0.6, 1], abs=1e-6)
    ]
    ranged = read(gradient, facts(*shape), value_range=(1, 0))
    assert ranged[row][0].tolist() == pytest.approx([1, 0.8, 0.6, 0.4, 0.2, 0], abs=1e-6)
    said = {"x": Declared(mean=(51.0, 0.0, 1.0), std=(51.0, 2.0, 1.0))}
    declared = read(gradient, facts(*shape), declared=said)
    assert declared[row][0].tolist() == pytest.approx([-1, 0, 1, 2, 3, 4])
    assert declared[0, :, 0, 1].tolist() == [0, 25.5, 51, 76.5, 102] and declared[0, 0, 0, 2] == 50
    # The option wins over what the model says.
    assert read(gradient, facts(*shape), declared=said, value_range=(0, 255))[row][0][1] == 51
    quantized = {"scales": (1 / 255,), "zero_points": (-128,)}
    assert read(gradient, facts(*shape, dtype="uint8"))[row][0].tolist() == [0, 51, 102, 153, 204, 255]
    assert read(gradient, facts(*shape, dtype="int8", **quantized))[row][0].tolist() == [
        -128, -77, -26, 25, 76, 127
    ]  # fmt: skip
    half = read(gradient, facts(*shape, dtype="int8", **quantized), value_range=(0, 0.5))
    assert half[row][0].tolist() == [-128, -102, -77, -52, -26, 0] and half.dtype == np.int8
    assert read(gradient, facts(*shape, dtype="int32"))[row][0].tolist() == [0, 51, 102, 153, 204, 255]
    assert read(gradient, facts(*shape, dtype="float16")).dtype == np.float16


def test_the_note_says_what_was_assumed(gradient):
    def note(what: TensorFacts, **options: Any) -> str:
        return Pictures(what, Media(gradient, **options), gradient).note(2)

    assert note(facts(1, 5, 6, 3)) == (
        "2 pictures as RGB 6x5 NHWC: 0..255 mapped to -1..1 (assumed; --input-range LO,HI changes that)"
    )
    assert note(facts(1, 5, 6, 1), value_range=(0, 1)).endswith("grey 6x5 NHWC: 0..255 mapped to 0..1")
    said = {"x": Declared(mean=(127.5,), std=(127.5,))}
    assert note(facts(1, 5, 6, 3), declared=said).endswith("(pixel - 127.5) / 127.5, as its metadata says")
    assert note(facts(1, 5, 6, 3, dtype="int8")).endswith("raw pixels - 128")
    assert "2 a sample" in note(facts(2, 5, 6, 3))


def test_resizing_is_bilinear_over_all_pixels(tmp_path):
    stripes = np.zeros((8, 8))
    stripes[:, ::2] = 200
    path = picture(tmp_path / "stripes.png", stripes)
    small = read_picture(path, 1, (2, 2))
    # Not the nearest pixel, which would be 0 or 200.
    assert small.shape == (2, 2, 1) and (abs(small.astype(int) - 100) <= 15).all()


def test_free_sizes_follow_the_first_picture(tmp_path):
    path = picture(tmp_path / "large.png", np.zeros((300, 1024, 3)))
    reader = Pictures(facts(-1, -1, -1, 3), Media(path, layout="NHWC"), path)
    assert reader.shape == (1, 128, 512, 3) and "(free in the model)" in reader.note(1)
    tiny = picture(tmp_path / "tiny.png", np.zeros((5, 7, 3)))
    assert Pictures(facts(1, -1, -1, 3), Media(tiny), tiny).shape == (1, 32, 32, 3)
    assert Pictures(facts(1, 3, -1, 40), Media(tiny), tiny).shape == (1, 3, 32, 40)


def test_odd_files(tmp_path, gradient):
    turned = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # Turn by 90 degrees to show it upright.
    Image.fromarray(np.zeros((4, 8, 3), np.uint8)).save(turned, exif=exif)
    assert read_picture(turned, 3, None).shape == (8, 4, 3)
    deep = picture(tmp_path / "deep.png", np.full((2, 2), 0x8000, np.uint16), "I;16")
    assert read_picture(deep, 1, None).tolist() == [[[128], [128]]] * 2
    palette = tmp_path / "palette.gif"
    frames = [Image.new("P", (3, 2), color) for color in (1, 2)]
    frames[0].save(palette, save_all=True, append_images=frames[1:])
    assert read_picture(palette, 3, None).shape == (2, 3, 3)
    upper = gradient.rename(tmp_path / "GRADIENT.PNG")
    assert Media(tmp_path).files()[0] == upper


def png() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (png()[:4000], "truncated"),
        (b"", "none of PNG"),
        (b"not a picture", "none of PNG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n", "none of PNG"),
        (png()[:40] + b"\0" * 4000, ""),
    ],
)
def test_damaged_pictures_are_named(tmp_path, content, text):
    path = tmp_path / "damaged.png"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=f"cannot be read as a picture: .*{text}") as caught:
        read(path, facts(1, 5, 6, 3))
    assert caught.value.file == str(path) and "\n" not in str(caught.value)


@pytest.mark.parametrize("limit", [20, 10])
def test_decompression_bombs(monkeypatch, gradient, limit):
    # Pillow warns beyond its limit and refuses beyond twice of it; here both are refused.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(UsageError, match="million pixels; shrink"):
        read(gradient, facts(1, 5, 6, 3))


@pytest.mark.runtime
def test_without_pillow(monkeypatch, gradient):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(UsageError) as caught:
        run_model(gradient.parent / "any.tflite", Judging(inputs=[gradient]))
    assert "no such file" in str(caught.value)  # The model is looked at first.
    model = tiny_models.add_constant(gradient.parent / "m.tflite", [1.0], shape=(1, 5, 6, 3))
    with pytest.raises(UsageError) as caught:
        run_model(model, Judging(inputs=[gradient]))
    assert str(caught.value) == (
        "reading pictures needs Pillow; install it with: pip install 'tfl-rewrite[media]'"
    )


@pytest.mark.runtime
def test_a_folder_is_run_in_order_of_names(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, grey in [("b.png", 255), ("a.jpg", 0), ("c.bmp", 51)]:
        picture(folder / name, np.full((4, 4, 3), grey))
    (folder / "notes.txt").write_text("not a picture")
    model = tiny_models.add_constant(tmp_path / "m.tflite", [0.0], shape=(1, 2, 2, 3))
    result = run_model(model, Judging(inputs=[folder]))
    assert [float(call[0][0, 0, 0, 0]) for call in result.inputs] == pytest.approx([-1, 1, -0.6])
    assert len(result.notes) == 1 and result.notes[0].startswith("3 pictures as RGB 2x2 NHWC")
    verdict = verify(model, model, Judging(inputs=[Media(folder, value_range=(0, 1))]))
    assert (verdict.sample_source, verdict.sample_count, verdict.passed) == ("real", 3, True)


@pytest.mark.runtime
def test_batches_are_filled_up_with_the_first_pictures(tmp_path, monkeypatch):
    # Also where the samples are kept in a file instead of memory.
    monkeypatch.setattr(inputs, "_IN_MEMORY_NBYTES", 1)
    for number in range(3):
        picture(tmp_path / f"{number}.png", np.full((2, 2), number * 51))
    model = tiny_models.add_constant(tmp_path / "m.tflite", [0.0], shape=(2, 2, 2, 1))
    result = run_model(model, Judging(inputs=[Media(tmp_path, value_range=(0, 5))]))
    given = [call[0][:, 0, 0, 0].tolist() for call in result.inputs]
    assert given == [pytest.approx([0, 1]), pytest.approx([2, 0])]


@pytest.mark.runtime
def test_no_room_for_the_samples(monkeypatch, tmp_path, gradient):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(inputs, "_IN_MEMORY_NBYTES", 1)
    monkeypatch.setattr(media_module.os, "posix_fallocate", full)
    model = tiny_models.add_constant(tmp_path / "m.tflite", [0.0], shape=(1, 5, 6, 3))
    with pytest.raises(FileAccessError, match=r"no room for the samples, 360 bytes: No space left.*TMPDIR"):
        run_model(model, Judging(inputs=[gradient]))


@pytest.mark.runtime
def test_models_that_take_something_else(tmp_path, gradient, fixtures):
    model = tiny_models.add_constant(tmp_path / "m.tflite", [[1, 2, 3, 4]])
    with pytest.raises(UsageError, match=r"input 'x' takes float32\[1, 4\], which is not a picture.*npz"):
        run_model(model, Judging(inputs=[gradient]))
    with pytest.raises(
        UsageError, match=r"with one input; .* takes 'words' string\[1, 4\], 'x' float32.*npz"
    ):
        run_model(fixtures / "string_input.tflite", Judging(inputs=[gradient]))
    with pytest.raises(UsageError, match=r"takes bool\[1, 5, 6, 3\], not pictures"):
        Pictures(facts(1, 5, 6, 3, dtype="bool"), Media(gradient), gradient)


@pytest.mark.runtime
def test_folders_of_two_kinds(tmp_path, gradient):
    np.savez(tmp_path / "in.npz", x=np.ones(3))
    model = tiny_models.add_constant(tmp_path.parent / "m.tflite", [1.0], shape=(1, 5, 6, 3))
    with pytest.raises(UsageError, match=r"1 \.npz and 1 pictures or sound files"):
        verify(model, model, Judging(inputs=[tmp_path]))
    (tmp_path / "in.npz").unlink()
    (tmp_path / "sound.wav").write_bytes(b"RIFF")
    with pytest.raises(UsageError, match="1 pictures and 1 sound files"):
        verify(model, model, Judging(inputs=[tmp_path]))


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "int32", "int64", "uint64"])
def test_values_beyond_a_type_stop_at_its_ends(dtype):
    limits = np.iinfo(dtype)
    ends = to_input(np.array([-1e30, 1e30]), facts(2, dtype=dtype))
    assert ends[0] == limits.min and limits.max - int(ends[1]) <= limits.max // 2**52


def huge(path: Path, width: int, height: int) -> Path:
    """A PNG of a few kilobytes whose header promises many pixels; all of them are there, and black."""
    rows = zlib.compressobj(9)
    row = bytes(1 + (width + 7) // 8)
    data = b"".join(rows.compress(row) for _ in range(height)) + rows.flush()

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    chunks = chunk(b"IHDR", head), chunk(b"IDAT", data), chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    return path


@pytest.mark.parametrize("limit", [None, 10**12])
def test_the_limit_holds_whatever_pillow_was_told(monkeypatch, tmp_path, limit):
    """Another part of the program may have taken it away."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    path = huge(tmp_path / "a.png", 12_000, 8_000)
    assert path.stat().st_size < 20_000
    loaded = []
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", lambda *_: loaded.append(1))
    with pytest.raises(UsageError, match="has more than 89 million pixels; shrink"):
        read_picture(path, 3, (8, 8))
    assert not loaded


def test_inputs_that_are_larger_than_any_picture(gradient):
    with pytest.raises(UsageError, match="values a sample, more than"):
        Pictures(facts(1, 100_000, 100_000, 3), Media(gradient), gradient)
    with pytest.raises(UsageError, match="values a sample, more than"):
        Pictures(facts(1 << 30, 8, 8, 3), Media(gradient), gradient)
