"""Shard manifests that lie, and what joining them may touch: nothing outside of the folder of the output."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from random import Random
from typing import Any

from hostile.contract import Breach
from tfl_rewrite.errors import TflRewriteError
from tfl_rewrite.judge.settings import Judging
from tfl_rewrite.shards.calls import join, shard
from tfl_rewrite.shards.settings import JoinOptions, ShardOptions

TEXTS = (
    "../outside.part",
    "/tmp/outside.part",
    "..",
    ".",
    "",
    "a/b",
    "a\\b",
    "C:evil",
    "con",
    "nul.part",
    "\x1b[31mred",
    "\u202e",
    "\ud800",
    "model.tflite",
    "parts.json",
    ".hidden",
    "x" * 200,
    "http://127.0.0.1/x",
    "outer.part\n",
    "none",
    "gzip",
    "0" * 64,
)
NUMBERS: tuple[object, ...] = (
    0,
    1,
    -1,
    2,
    1 << 31,
    1 << 40,
    1 << 62,
    1 << 200,
    1.5,
    True,
    None,
    1e308,
    [],
    {},
    "1",
)


class Manifests:
    """A model in parts, made once, whose manifests, one of them with a base, are mutated again and again.

    Args:
        model: The model that is cut.
        folder: Empty; everything happens in it.
    """

    def __init__(self, model: Path, folder: Path) -> None:
        self._home = folder / "watched"
        self._parts = self._home / "parts"
        self._home.mkdir()
        (self._home / "outside.part").write_bytes(b"not to be read")
        for progressive, name in ((False, "manifest.json"), (True, "progressive.json")):
            options = ShardOptions(max_size=20_000, progressive=progressive, manifest=name)
            shard(model, self._parts, options, judging=Judging(mode="off"))
        self._good = {path: path.read_bytes() for path in sorted(self._parts.glob("*.json"))}
        self._digest = hashlib.sha256(model.read_bytes()).hexdigest()
        self._before = self._state()

    def try_one(self, random: Random) -> str:
        """Joins by a mutated manifest.

        Raises:
            Breach: A file was changed or made that is not the output, or the output is another model.
        """
        manifest = random.choice([*self._good])
        text = mutated_manifest(self._good[manifest], random)
        made = self._home / "made"
        made.mkdir()
        manifest.write_bytes(text)
        try:
            join(manifest, made / "out.tflite", JoinOptions(jobs=1), judging=Judging(mode="off"))
            outcome = "joined"
            digest = hashlib.sha256((made / "out.tflite").read_bytes()).hexdigest()
            if digest != self._digest and _says(text) != digest:
                raise Breach("a manifest made a file that it does not describe")
        except TflRewriteError as error:
            outcome = f"refused: {type(error).__name__}"
            if (made / "out.tflite").exists():
                raise Breach("a refused join left its output") from error
        left = {path.name for path in made.iterdir()} - {"out.tflite"}
        shutil.rmtree(made)
        manifest.write_bytes(self._good[manifest])
        if left or self._state() != self._before:
            raise Breach(f"joining touched other files: {sorted(left)}")
        return outcome

    def _state(self) -> dict[str, str]:
        return {
            str(path.relative_to(self._home)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(self._home.rglob("*"))
            if path.is_file()
        }


def _says(text: bytes) -> object:
    return json.loads(text).get("sha256")


def mutated_manifest(text: bytes, random: Random) -> bytes:
    """Returns a manifest with something wrong: in its bytes, or in its values."""
    if random.random() < 0.25:
        made = bytearray(text)
        for _ in range(random.randrange(1, 5)):
            made[random.randrange(len(made))] = random.choice(
                b'{}[]",:0129.eE-\\/ntu\x00\xff' + random.randbytes(2)
            )
        return bytes(made)
    data = json.loads(text)
    for _ in range(random.choice((1, 1, 2, 4))):
        _spoil(data, random)
    return json.dumps(data).encode("ascii")


def _spoil(data: Any, random: Random) -> None:
    """Changes one value somewhere below."""
    while True:
        keys: list[Any] = list(data) if isinstance(data, dict) else list(range(len(data)))
        if not keys:
            return
        key = random.choice(keys)
        value = data[key]
        if isinstance(value, (dict, list)) and value and random.random() < 0.85:
            data = value
            continue
        kind = random.random()
        if kind < 0.1:
            del data[key]
        elif kind < 0.2 and isinstance(data, list):
            data.append(value)
        elif isinstance(value, int) and kind < 0.5:
            data[key] = value + random.choice((-1, 1, -8, 1000))
        elif isinstance(value, str) and kind < 0.8:
            data[key] = random.choice(TEXTS)
        else:
            data[key] = random.choice((*NUMBERS, *TEXTS))
        return
