"""Damaged files: the doctor finds something or refuses in one line; repair never leaves anything else.

``TFL_REWRITE_DOCTOR_MUTATIONS`` sets how many damaged copies of each file are tried (default: 12).
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from tfl_rewrite import Judging, TflRewriteError, diagnose, load, rewrite
from tfl_rewrite.errors import InvariantError
from tfl_rewrite.passes.repair import Repair

COUNT = int(os.environ.get("TFL_REWRITE_DOCTOR_MUTATIONS", "12"))
FILES = ("already_int8", "blockwise_int4", "metadata_label_zip", "rnn", "two_signatures_shared_weights")
OFF = Judging(mode="off")


@pytest.mark.parametrize("name", FILES)
def test_damaged_files(fixtures: Path, name: str, tmp_path: Path) -> None:
    data = (fixtures / f"{name}.tflite").read_bytes()
    random = np.random.default_rng(len(data))
    path, out = tmp_path / "in.tflite", tmp_path / "out.tflite"
    for number in range(COUNT):
        damaged = bytearray(data)
        # Structure lies before and between the constants: small files are mostly structure.
        for _ in range(int(random.integers(1, 4))):
            damaged[int(random.integers(8, len(damaged)))] = int(random.choice([0, 1, 2, 127, 255]))
        path.write_bytes(damaged)
        try:
            found = diagnose(path)
            found.to_dict()
        except InvariantError:
            raise
        except TflRewriteError:
            continue
        try:
            rewrite(path, out, [Repair()], judging=OFF, force=True)
        except InvariantError:
            raise
        except TflRewriteError:
            continue
        load(out)
        assert number >= 0 and out.stat().st_size > 0
