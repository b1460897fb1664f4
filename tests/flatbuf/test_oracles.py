"""A rewritten file as others read it: FlatBuffers' compiler, and the runtime's generated classes."""

from __future__ import annotations

import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as generated
from hypothesis import HealthCheck, given, settings

from tfl_rewrite import load
from tfl_rewrite.flatbuf.record import Record
from tfl_rewrite.flatbuf.writer import plan
from tfl_rewrite.model.blob import MemorySink
from tfl_rewrite.model.ir import schema
from tfl_rewrite.model.lower import lower

from ..strategies import records


def rewritten(path: Path) -> bytes:
    """The FlatBuffer of a file, written anew; buffers outside of it come inline."""
    return written(lower(load(path)))


def written(root: Record) -> bytes:
    made = plan(root, schema())
    sink = MemorySink(made.nbytes)
    made.write_to(sink)
    return bytes(sink.data)


# -- flatc ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def flatc() -> Path:
    """The compiler of the PyPI package, else one on the PATH."""
    try:
        files = metadata.distribution("flatc").files or ()
    except metadata.PackageNotFoundError:
        files = ()
    for file in files:
        path = Path(str(file.locate()))
        if path.name == "flatc" and path.is_file():
            return path
    found = shutil.which("flatc")
    if found is None:
        pytest.skip("no flatc is installed")
    return Path(found)


def json_of(flatc: Path, root: Path, data: bytes, folder: Path) -> str:
    folder.mkdir()
    (folder / "model.tflite").write_bytes(data)
    # Defaults are printed where present only, so a lost or an added field shows.
    command = [flatc, "--json", "--raw-binary", "--strict-json", "-o", folder]
    subprocess.run(
        [*command, root / "schema" / "tflite.fbs", "--", folder / "model.tflite"],
        check=True,
        capture_output=True,
        timeout=60,
    )
    return (folder / "model.json").read_text(encoding="utf-8", errors="surrogateescape")


@pytest.mark.slow
def test_flatc_prints_the_rewritten_file_alike(flatc: Path, root: Path, sound: Path, tmp_path: Path) -> None:
    if sound.stem == "offset_buffers":
        pytest.skip("its buffers move into the FlatBuffer, which is another text")
    before = json_of(flatc, root, sound.read_bytes(), tmp_path / "before")
    after = json_of(flatc, root, rewritten(sound), tmp_path / "after")
    assert len(before) > 200
    assert after == before


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["dense", "dense_defaults_present", "while_loop", "blockwise_int4", "sparse", "string_input"]
)
def test_flatc_explains_every_byte_of_the_rewritten_file(
    flatc: Path, root: Path, fixtures: Path, tmp_path: Path, name: str
) -> None:
    file = tmp_path / "model.tflite"
    file.write_bytes(rewritten(fixtures / f"{name}.tflite"))
    subprocess.run(
        [flatc, "--annotate", root / "schema" / "tflite.fbs", "--", file],
        check=True,
        capture_output=True,
        cwd=tmp_path,
        timeout=60,
    )
    (text,) = (path.read_text(errors="replace") for path in tmp_path.glob("*.afb"))
    assert "ERROR" not in text
    # Bytes that nothing refers to are listed as an unknown section.
    assert "unknown" not in text.lower()


# -- Generated classes ---------------------------------------------------------------------------------------


def plain(value: Any) -> Any:
    """An object of the generated classes as data that compares by bits."""
    if isinstance(value, np.ndarray):
        return (value.dtype.str, value.tobytes())
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return np.float64(value).tobytes()
    if hasattr(value, "__dict__"):
        return (type(value).__name__, {key: plain(item) for key, item in vars(value).items()})
    return value


def test_generated_classes_read_the_rewritten_file_alike(sound: Path) -> None:
    before = generated.ModelT.InitFromPackedBuf(sound.read_bytes(), 0)
    after = generated.ModelT.InitFromPackedBuf(rewritten(sound), 0)
    if sound.stem == "offset_buffers":
        file = sound.read_bytes()
        for buffer in before.buffers:
            if buffer.offset > 1:
                buffer.data = np.frombuffer(file, np.uint8, buffer.size, buffer.offset)
                buffer.offset = buffer.size = 0
    assert plain(after) == plain(before)


def _names(items: Any) -> list[bytes | None]:
    return [item.name for item in items or ()]


@settings(
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
)
@given(records(schema().tables["Model"]))
def test_generated_classes_read_any_model_record(record: Record) -> None:
    model = generated.ModelT.InitFromPackedBuf(written(record), 0)

    def raw(text: str | None) -> bytes | None:
        return None if text is None else text.encode("utf-8", "surrogateescape")

    assert model.version == record.get("version")
    assert model.description == raw(record.get("description"))
    for row, item in zip(record.get("buffers") or (), model.buffers or (), strict=True):
        data = row.get("data")
        assert (item.offset, item.size) == (row.get("offset"), row.get("size"))
        # The classes read an empty vector as a number, the runtime's habit of long ago.
        assert not data or bytes(np.asarray(item.data)) == bytes(data.raw)
    for row, item in zip(record.get("operator_codes") or (), model.operatorCodes or (), strict=True):
        assert item.builtinCode == row.get("builtin_code")
        assert item.customCode == raw(row.get("custom_code"))
    for row, item in zip(record.get("subgraphs") or (), model.subgraphs or (), strict=True):
        assert item.name == raw(row.get("name"))
        assert list(item.inputs if item.inputs is not None else ()) == list(row.get("inputs") or ())
        tensors = row.get("tensors") or ()
        assert _names(item.tensors) == [raw(tensor.get("name")) for tensor in tensors]
        for tensor, other in zip(tensors, item.tensors or (), strict=True):
            assert (other.type, other.buffer) == (tensor.get("type"), tensor.get("buffer"))
            assert other.isVariable == tensor.get("is_variable")
