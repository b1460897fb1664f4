"""Archives of arrays that unpack to more than they should, or are not what they say."""

from __future__ import annotations

import io
import resource
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tfl_rewrite.calibration.holdout import split
from tfl_rewrite.cli import main
from tfl_rewrite.errors import UsageError
from tfl_rewrite.interpreter.interface import EntryPoint, Interface, TensorFacts
from tfl_rewrite.samples import npz
from tfl_rewrite.samples.inputs import expand_paths
from tfl_rewrite.samples.npz import read_npz, write_npz

from ..helpers import FIXTURES

DENSE = str(FIXTURES / "dense.tflite")


def header(shape: object, descr: str = "<f4", *, version: int = 1, length: int | None = None) -> bytes:
    text = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape!r}, }}".encode()
    text = text.ljust(length or 118) + b"\n"
    size = struct.pack("<H" if version == 1 else "<I", len(text))
    return b"\x93NUMPY" + bytes([version, 0]) + size + text


def archive(path: Path, *members: tuple[str, bytes], packing: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", packing) as file:
        for name, data in members:
            file.writestr(name, data)
    return path


def bomb(path: Path, nbytes: int, members: int = 1) -> Path:
    """Zeros; written in pieces."""
    piece = bytes(1 << 20)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        for number in range(members):
            with file.open(f"x{number}.npy", "w") as member:
                member.write(header((nbytes // 256, 64)))
                for _ in range(nbytes >> 20):
                    member.write(piece)
    return path


_READS = """
import sys
from tfl_rewrite.cli import main
code = main(["quantize-weights", sys.argv[1], sys.argv[3], "--inputs", sys.argv[2]])
# Not ru_maxrss, which begins with that of the process that started this one.
print(code, open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
"""


@pytest.mark.runtime
@pytest.mark.parametrize("members", [1, 4])
def test_what_unpacks_to_much_more_is_refused_at_once(tmp_path: Path, members: int) -> None:
    path = bomb(tmp_path / "in.npz", (320 << 20) // members, members)
    assert path.stat().st_size < 4 << 20
    done = subprocess.run(
        [sys.executable, "-c", _READS, DENSE, str(path), str(tmp_path / "out")],
        capture_output=True,
        text=True,
    )
    code, peak = map(int, done.stdout.split())
    assert code == 2 and peak < 200_000, (done.stderr, peak)
    assert "unpack to 336 MB, more than 268 MB" in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_what_does_not_pack_so_well_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(npz, "FREE_NBYTES", 1000)
    values = np.random.default_rng(0).integers(0, 4, (1000, 40)).astype(np.float32)
    np.savez_compressed(tmp_path / "a.npz", x=values)
    np.savez(tmp_path / "b.npz", x=np.zeros(40_000))
    assert (read_npz(tmp_path / "a.npz")["x"] == values).all()
    assert not read_npz(tmp_path / "b.npz")["x"].any()
    np.savez_compressed(tmp_path / "c.npz", x=np.zeros(40_000))
    with pytest.raises(UsageError, match="save it without compression"):
        read_npz(tmp_path / "c.npz")


def test_what_is_too_much_for_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "in.npz", x=np.zeros(1000))
    monkeypatch.setattr(npz, "default_limit", lambda: 10_000)
    with pytest.raises(UsageError, match="too much for the memory of this machine"):
        read_npz(tmp_path / "in.npz")


CASES = {
    "larger than it is": (header((1 << 40,)), "says that it takes 4398046511104 bytes, and holds 8"),
    "smaller than it is": (header((1,)), "says that it takes 4 bytes, and holds 8"),
    "negative": (header((-2,)), "negative size"),
    "large items": (header((), "<U400000000"), "says that it takes"),
    "objects": (header((1,), "|O"), "Python objects"),
    "void": (header((1,), "|V8"), "neither numbers nor texts"),
    "fields": (header((1,), "[('a', '<i8')]").replace(b'"', b" "), "numbers nor texts"),
    "dates": (header((1,), "<M8[s]"), "neither numbers nor texts"),
    "no shape": (header("x"), "damaged header"),
    "nested": (header("(" * 5000, length=9000), "damaged header"),
    "long": (header((2,), length=20_000), "header of 20001 bytes"),
    "very long": (b"\x93NUMPY\x02\0" + struct.pack("<I", 0xFFFFFFFF), "header of 4294967295 bytes"),
    "another version": (b"\x93NUMPY\x03\0" + struct.pack("<I", 118) + bytes(118), "another version"),
    "no magic": (b"whatever it is, it is long enough to be read", "cannot be read"),
    "empty": (b"", "cannot be read"),
}


@pytest.mark.runtime
@pytest.mark.parametrize("case", CASES)
def test_headers_that_lie(tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str]) -> None:
    head, says = CASES[case]
    data = head + (bytes(8) if head.startswith(b"\x93NUMPY") else b"")
    path = archive(tmp_path / "in.npz", ("x.npy", data))
    with pytest.raises(UsageError, match=says):
        read_npz(path)
    assert main(["verify", DENSE, DENSE, "--inputs", str(path)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "in.npz" in said and "Traceback" not in said


def test_one_of_nothing_has_axes_all_the_same(tmp_path: Path) -> None:
    path = archive(tmp_path / "in.npz", ("x.npy", header((1 << 40, 0))))
    with pytest.raises(UsageError, match="unpack to"):
        read_npz(path)
    path = archive(tmp_path / "two.npz", ("x.npy", header((1 << 40,), "<U0")))
    with pytest.raises(UsageError, match="unpack to"):
        read_npz(path)


def good(*shape: int) -> bytes:
    data = io.BytesIO()
    np.save(data, np.zeros(shape, np.float32))
    return data.getvalue()


def test_names(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate"):
        path = archive(tmp_path / "twice.npz", ("x.npy", good(1)), ("x.npy", good(2)))
    with pytest.raises(UsageError, match="two arrays are named 'x'"):
        read_npz(path)
    with pytest.raises(UsageError, match=r"member 'read\\x1b\.me' is no array"):
        read_npz(archive(tmp_path / "other.npz", ("x.npy", good(1)), ("read\x1b.me", b"hello")))
    assert list(read_npz(archive(tmp_path / "a.npz", ("../../x.npy", good(1))))) == ["../../x"]
    assert not (tmp_path.parent / "x.npy").exists()


@pytest.mark.parametrize("packing", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_packings(tmp_path: Path, packing: int) -> None:
    with pytest.raises(UsageError, match="unusual way"):
        read_npz(archive(tmp_path / "in.npz", ("x.npy", good(4)), packing=packing))


def test_more_members_than_anybody_has(tmp_path: Path) -> None:
    """The list alone would take a kilobyte of memory for each; whether it says so in 32 or in 64 bits."""
    path = archive(tmp_path / "in.npz", *((f"{number:0100}.npy", b"") for number in range(10_000)))
    with pytest.raises(UsageError, match="its list of members takes"):
        read_npz(path)
    data = bytearray(path.read_bytes())
    end = len(data) - 22
    size, offset = struct.unpack_from("<II", data, end + 12)
    struct.pack_into("<II", data, end + 12, 100, 0xFFFFFFFF)
    record = struct.pack("<4sQHHIIQQQQ", b"PK\x06\x06", 44, 45, 45, 0, 0, 10_000, 10_000, size, offset)
    locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, end, 1)
    path.write_bytes(bytes(data[:end]) + record + locator + bytes(data[end:]))
    assert len(zipfile.ZipFile(path).infolist()) == 10_000
    with pytest.raises(UsageError, match="its list of members takes"):
        read_npz(path)


@pytest.mark.parametrize("position", range(0, 500, 7))
def test_damaged_anywhere(tmp_path: Path, position: int) -> None:
    """An error of ours, or the same arrays, or others of a bounded size: nothing else."""
    np.savez_compressed(tmp_path / "in.npz", x=np.arange(400.0), y=np.ones((3, 2), np.int8))
    data = bytearray((tmp_path / "in.npz").read_bytes())
    if position >= len(data):
        pytest.skip("the file is shorter")
    data[position] ^= 0xFF
    (tmp_path / "in.npz").write_bytes(data)
    try:
        read_npz(tmp_path / "in.npz")
    except UsageError as error:
        assert "in.npz" in str(error)


def test_large_archives_of_64_bit_sizes(tmp_path: Path) -> None:
    with (
        zipfile.ZipFile(tmp_path / "in.npz", "w") as file,
        file.open("x.npy", "w", force_zip64=True) as member,
    ):
        member.write(good(3, 2))
    assert read_npz(tmp_path / "in.npz")["x"].shape == (3, 2)


def test_names_that_numpy_does_not_write(tmp_path: Path) -> None:
    """A search divides the samples of a file into files; an array may be called as an argument of numpy's."""
    arrays = {
        "file": np.ones((8, 2)),
        "args": np.zeros((8, 1)),
        "allow_pickle": np.arange(8),
        "a/b": np.eye(8),
    }
    write_npz(tmp_path / "in.npz", arrays)
    back = read_npz(tmp_path / "in.npz")
    assert back.keys() == arrays.keys() and all((back[name] == arrays[name]).all() for name in arrays)
    (tmp_path / "parts").mkdir()
    entry = EntryPoint(
        key=None,
        inputs=tuple(
            TensorFacts(
                name=name,
                tensor=name,
                dtype=array.dtype.name,
                shape=(1, *array.shape[1:]),
                shape_signature=(1, *array.shape[1:]),
            )
            for name, array in arrays.items()
        ),
        outputs=(),
    )
    parted = split(
        [tmp_path / "in.npz"],
        (),
        tmp_path / "parts",
        in_order=False,
        interface=Interface(primary=entry, signatures=()),
    )
    assert parted.crossed and len(parted.judge) == 1
    assert all(read_npz(Path(path)).keys() == arrays.keys() for path in (*parted.everything, *parted.judge))


@pytest.mark.runtime
def test_more_samples_than_anybody_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each is a call and a file of its own."""
    model = Path(DENSE)
    from tfl_rewrite import load

    (tensor,) = load(model).subgraphs[0].inputs
    np.savez(tmp_path / "in.npz", np.zeros((100_001, *(tensor.shape or ())[1:]), np.float32))
    started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert main(["verify", DENSE, DENSE, "--inputs", str(tmp_path / "in.npz")]) == 2
    assert "holds 100,001 samples, more than 100,000" in capsys.readouterr().err
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - started < 300_000


@pytest.mark.parametrize("kind", [">f4", ">i8", ">U3", "<f4"])
def test_numbers_of_another_byte_order(tmp_path: Path, kind: str) -> None:
    """What runs a model takes the bytes as they are."""
    values = np.array([[1, 2], [3, 4]]).astype(kind)
    np.savez(tmp_path / "x.npz", x=values)
    read = read_npz(tmp_path / "x.npz")["x"]
    assert read.dtype.isnative and (read == values).all()


def test_an_empty_name_is_not_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez("x.npz", x=np.zeros(3))
    with pytest.raises(UsageError, match=r"^'': no such file or folder"):
        expand_paths([""])
    assert expand_paths(["."]) == [Path("x.npz")]
