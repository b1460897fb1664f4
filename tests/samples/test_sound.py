"""Sound files as inputs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from tfl_rewrite.errors import UsageError
from tfl_rewrite.interpreter.interface import TensorFacts
from tfl_rewrite.judge.judge import run_model
from tfl_rewrite.judge.settings import Judging
from tfl_rewrite.samples.media import Declared, Media
from tfl_rewrite.samples.sound import Sounds, layout_of, read_sound, resample

from .. import tiny_models


def facts(*signature: int, dtype: str = "float32", **more: Any) -> TensorFacts:
    shape = tuple(max(size, 1) for size in signature)
    return TensorFacts(name="x", tensor="x", dtype=dtype, shape=shape, shape_signature=signature, **more)


def tone(hertz: float, rate: int, seconds: float = 0.5) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate)


@pytest.fixture
def ramp(tmp_path: Path) -> Path:
    """Stereo, 8 kHz: left 0, 0.25, 0.5, -0.5; right the same less 0.25."""
    left = np.array([0, 0.25, 0.5, -0.5])
    path = tmp_path / "ramp.wav"
    soundfile.write(path, np.stack([left, left - 0.25], axis=1), 8000)
    return path


def read(path: Path, what: TensorFacts, **options: Any) -> np.ndarray:
    return Sounds(what, Media(path, **options), path).sample([path])


@pytest.mark.parametrize(
    ("signature", "given", "layout"),
    [
        ((16000,), None, "T"),
        ((1, 16000), None, "NT"),
        ((16000, 1), None, "TN"),
        ((1, 16000, 1), None, "NTC"),
        ((-1, 16000), None, "NT"),
        ((-1, -1), None, "NT"),
        ((1, -1), None, "NT"),
        ((4, 16000), "NT", "NT"),
    ],
)
def test_layouts(signature, given, layout):
    assert layout_of(facts(*signature), given) == layout


@pytest.mark.parametrize(
    ("signature", "given", "text"),
    [
        ((1, 96, 64, 1), None, "not sound"),
        ((2, 16000), None, "not sound"),
        ((), None, "not sound"),
        ((1, 16000), "T", "names 1 axes"),
    ],
)
def test_layouts_that_are_refused(signature, given, text):
    with pytest.raises(UsageError, match=text):
        layout_of(facts(*signature), given)


def test_channels_length_and_range(ramp):
    mono = [-0.125, 0.125, 0.375, -0.625]
    assert read(ramp, facts(1, 4))[0].tolist() == pytest.approx(mono, abs=1e-4)
    assert read(ramp, facts(6))[4:].tolist() == [0, 0]
    assert read(ramp, facts(1, 2, 1)).shape == (1, 2, 1)
    ranged = read(ramp, facts(4), value_range=(0, 2))
    assert ranged.tolist() == pytest.approx([value + 1 for value in mono], abs=1e-4)
    whole = read(ramp, facts(4, dtype="int16"))
    assert whole.tolist() == [-4096, 4096, 12288, -20480]
    quantized = facts(4, dtype="int8", scales=(1 / 128,), zero_points=(3,))
    assert read(ramp, quantized).tolist() == [-13, 19, 51, -77]
    with pytest.raises(UsageError, match="--input-range"):
        read(ramp, facts(4, dtype="uint8"))
    assert read(ramp, facts(4, dtype="uint8"), value_range=(0, 255)).tolist() == [112, 143, 175, 48]


def test_rates(tmp_path):
    path = tmp_path / "tone.flac"
    soundfile.write(path, tone(500, 44100), 44100)
    plain = Sounds(facts(1, 16000), Media(path), path)
    plain.sample([path])
    assert "at 44100 Hz as the files are" in plain.note(1)
    for options in ({"sample_rate": 16000}, {"declared": {"x": Declared(sample_rate=16000)}}):
        reader = Sounds(facts(1, 16000), Media(path, **options), path)
        heard = reader.sample([path])[0]
        assert np.abs(heard[200:7800] - tone(500, 16000)[200:7800]).max() < 1e-3
        assert not heard[8100:].any()
        assert ("as its metadata says" in reader.note(1)) == ("declared" in options)
    free = Sounds(facts(1, -1), Media(path, sample_rate=16000), path)
    assert free.shape == (1, 8000) and "(free in the model)" in free.note(1)


@pytest.mark.parametrize(("rate", "target"), [(44100, 16000), (8000, 16000), (48000, 44100), (16000, 8000)])
def test_resampling_keeps_the_band_and_nothing_else(rate, target):
    inside = resample(tone(440, rate), rate, target)
    assert inside.size == len(tone(440, target))
    middle = slice(inside.size // 4, -inside.size // 4)
    assert np.abs(inside - tone(440, target))[middle].max() < 1e-3
    assert resample(np.ones(rate // 10), rate, target)[middle.start // 10 : -200].max() == pytest.approx(1)
    if target < rate:
        # Above half of the new rate: would come back as another tone.
        outside = resample(tone(0.5 * target * 1.25, rate), rate, target) if target * 1.3 < rate else None
        assert outside is None or np.abs(outside[middle]).max() < 1e-3


def test_only_what_is_needed_is_read(tmp_path, monkeypatch):
    path = tmp_path / "long.wav"
    soundfile.write(path, np.zeros(100_000), 8000)
    asked = []
    original = soundfile.read
    monkeypatch.setattr(soundfile, "read", lambda *a, **k: asked.append(k["frames"]) or original(*a, **k))
    read_sound(path, 1000, None)
    assert 1000 <= asked[0] <= 1100


@pytest.mark.parametrize("content", [b"", b"RIFF", b"not sound at all" * 100])
def test_damaged_sound_is_named(tmp_path, content):
    path = tmp_path / "damaged.wav"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="cannot be read as sound: ") as caught:
        read(path, facts(1, 100))
    assert caught.value.file == str(path) and "\n" not in str(caught.value)


def test_values_that_are_no_numbers(tmp_path):
    path = tmp_path / "nan.wav"
    soundfile.write(path, np.array([0.0, np.nan]), 8000, subtype="FLOAT")
    with pytest.raises(UsageError, match="NaN or infinite"):
        read(path, facts(1, 2))


@pytest.mark.runtime
def test_without_soundfile(monkeypatch, tmp_path, ramp):
    monkeypatch.setitem(sys.modules, "soundfile", None)
    model = tiny_models.add_constant(tmp_path / "m.tflite", [1.0], shape=(1, 4))
    with pytest.raises(UsageError) as caught:
        run_model(model, Judging(inputs=[ramp]))
    assert str(caught.value) == (
        "reading sound needs soundfile; install it with: pip install 'tfl-rewrite[media]'"
    )


@pytest.mark.runtime
def test_a_folder_of_sound_is_run(tmp_path):
    folder = tmp_path / "clips"
    folder.mkdir()
    for name, value in [("b.wav", 0.5), ("a.ogg", 0.0)]:
        soundfile.write(folder / name, np.full(64, value), 8000)
    model = tiny_models.add_constant(tmp_path / "m.tflite", [0.0], shape=(1, 4))
    result = run_model(model, Judging(inputs=[folder]))
    assert [float(call[0][0, 0]) for call in result.inputs] == pytest.approx([0.0, 0.5], abs=1e-3)
    assert result.notes[0].startswith("2 sound files, one channel, 4 values at 8000 Hz as the files are")


def peak_of(code: str, *arguments: object) -> tuple[str, int]:
    """Runs code in a process of its own; returns what it printed, and its peak memory in kilobytes."""
    # Not ru_maxrss, which begins with that of the process that started this one.
    peak = "open('/proc/self/status').read().split('VmHWM:')[1].split()[0]"
    text = f"{code}\nprint({peak})\n"
    command = [sys.executable, "-c", text, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    *said, number = done.stdout.splitlines()
    return "\n".join(said), int(number)


_READ = """
import sys
from pathlib import Path
from tfl_rewrite.samples.sound import read_sound
from tfl_rewrite.errors import UsageError
try:
    wave, rate = read_sound(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]) or None)
    print(wave.size, rate, float(abs(wave).max()))
except UsageError as error:
    print(error)
"""


@pytest.mark.slow
def test_silence_in_many_channels_is_read_block_by_block(tmp_path):
    """Half a million frames of 128 channels are half a gigabyte at once."""
    path = tmp_path / "wide.wav"
    with soundfile.SoundFile(path, "w", 8000, 128, subtype="PCM_U8") as file:
        for _ in range(16):
            file.write(np.full((32768, 128), 0.5))
    said, peak = peak_of(_READ, path, 1 << 19, 0)
    assert said == f"{1 << 19} 8000 0.5" and peak < 250_000


@pytest.mark.slow
def test_a_file_that_says_it_is_longer(tmp_path):
    soundfile.write(tmp_path / "a.flac", np.full(1000, 0.25), 8000)
    data = bytearray((tmp_path / "a.flac").read_bytes())
    # STREAMINFO: the last 36 bits before the checksum count the samples.
    at = 8 + 13
    data[at] |= 0x0F
    data[at + 1 : at + 5] = b"\xff\xff\xff\xff"
    (tmp_path / "a.flac").write_bytes(data)
    assert soundfile.info(tmp_path / "a.flac").frames == (1 << 36) - 1
    said, peak = peak_of(_READ, tmp_path / "a.flac", 1 << 20, 0)
    # The library does not find its end, or it is as long as it is.
    assert "cannot be read as sound" in said or said == f"{1 << 20} 8000 0.25"
    assert peak < 250_000


def test_lengths_and_rates_that_no_network_takes(tmp_path, ramp):
    with pytest.raises(UsageError, match="values a sample, more than"):
        Sounds(facts(1, 1 << 31), Media(ramp), ramp)
    with pytest.raises(UsageError, match="values a sample, more than"):
        Sounds(facts(1 << 20, 1 << 20), Media(ramp, layout="NT"), ramp)
    with pytest.raises(UsageError, match="values a sample, more than"):
        Sounds(facts(1, 1 << 31), Media(ramp), ramp)
    soundfile.write(tmp_path / "fast.wav", np.zeros(100), 768000)
    with pytest.raises(UsageError, match="takes too long; give another --sample-rate"):
        read_sound(tmp_path / "fast.wav", 1 << 24, 1000)
    with pytest.raises(UsageError, match="takes too long"):
        read_sound(tmp_path / "fast.wav", 1 << 20, 1000 + 1)
