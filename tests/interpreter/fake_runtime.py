"""A stand-in for the runtime, to make it misbehave on order. Its models are JSON files.

Installed as ``ai_edge_litert.interpreter`` for one foreign Python (see `install`), so it runs in the child
process and exercises the same protocol as the real one.
"""

from __future__ import annotations

import json
import stat
import sys
from pathlib import Path
from typing import Any

INTERPRETER = """
import enum, json, os, signal, sys, time
import numpy as np

class OpResolverType(enum.Enum):
    BUILTIN_REF = 2
    BUILTIN_WITHOUT_DEFAULT_DELEGATES = 3

KERNELS = {None: "default", OpResolverType.BUILTIN_REF: "reference"}

class Interpreter:
    def __init__(self, model_path, num_threads, experimental_op_resolver_type=None):
        self.model = json.load(open(model_path))
        self.kernels = KERNELS.get(experimental_op_resolver_type, "plain")
        self.shapes = [list(item["shape"]) for item in self.model["inputs"]]
        self.values = [None] * len(self.shapes)
        self.calls = self.variable = 0
        # In how many processes of this judge the file has been opened, this one among them: the original
        # comes first in the first one, a rewritten file in the second one.
        process, home = int(os.environ["FAKE_PROCESS"]), self.model.get("home", 2)
        self.builds = 1 if process == home else max(process, 2)
        self.misbehave("opening")

    def misbehave(self, stage):
        for deed in self.model.get(stage, []):
            if deed.get("resolver", "any") not in ("any", self.kernels):
                continue
            if deed.get("package", __name__.split(".")[0]) != __name__.split(".")[0]:
                continue
            if not deed.get("from_build", 0) <= self.builds <= deed.get("only_build", 99):
                continue
            if "from_call" in deed and self.calls < deed["from_call"]:
                continue
            if "unless_value" in deed and all((v == deed["unless_value"]).all() for v in self.values):
                continue
            if "if_rows" in deed and self.shapes[0][0] != deed["if_rows"]:
                continue
            os.write(1, b"chatter without an end of line")
            print(file=sys.stderr)
            print(deed.get("says", ""), file=sys.stderr, flush=True)
            if "exit" in deed:
                os._exit(deed["exit"])
            if "signal" in deed:
                os.kill(os.getpid(), deed["signal"])
            held = b"x" * deed.get("eat", 0)
            if "sleep" in deed:
                time.sleep(deed["sleep"])
            if "error" in deed:
                raise RuntimeError(deed["error"])

    def detail(self, item, index, shape):
        return {
            "name": item["name"], "index": index, "shape": np.array(shape, dtype=np.int32),
            "shape_signature": np.array(item.get("signature", item["shape"]), dtype=np.int32),
            "dtype": np.dtype(item["dtype"]).type,
        }

    def get_input_details(self):
        return [self.detail(x, i, self.shapes[i]) for i, x in enumerate(self.model["inputs"])]

    def get_output_details(self):
        names = self.model.get("outputs", ["y"])
        first = self.model["inputs"][0]
        return [self.detail({**first, "name": n, "dtype": "float32"}, 100 + i, first["shape"])
                for i, n in enumerate(names)]

    def get_tensor_details(self):
        return self.get_input_details()

    def get_signature_list(self):
        return {}

    def allocate_tensors(self):
        self.misbehave("allocating")

    def resize_tensor_input(self, index, shape):
        self.shapes[index] = list(shape)

    def reset_all_variables(self):
        self.variable = 0

    def set_tensor(self, index, value):
        self.values[index] = np.array(value)

    def invoke(self):
        self.calls += 1
        self.variable += 1
        self.misbehave("running")

    def get_tensor(self, index):
        if index - 100 in self.model.get("unreadable", []):
            raise ValueError("cannot be read")
        x = self.values[0].astype(np.float32)
        mode = self.model.get("mode", "scale")
        if mode == "count calls":
            return x * 0 + self.calls
        if mode == "count since reset":
            return x * 0 + self.variable
        if mode == "random":
            return np.random.default_rng().standard_normal(x.shape).astype(np.float32)
        drift = self.model.get("drift", 0.0) if self.builds >= self.model.get("drifts_from_build", 2) else 0
        factor = self.model.get("by_kernels", {}).get(self.kernels, self.model.get("factor", 1.0))
        return x * np.float32(factor) + np.float32(1 + drift)
"""


def install(folder: Path, *packages: str) -> str:
    """Puts the stand-in into ``folder`` under some names; returns the runtime to name."""
    for name in packages or ("ai_edge_litert",):
        package = folder / name
        package.mkdir()
        (package / "__init__.py").write_text("__version__ = 'fake'\n")
        (package / "interpreter.py").write_text(INTERPRETER)
    program = folder / "python"
    # It is outside of the sandbox that the next one is shut into, and may count.
    # The first two may start at the same time, that of the original in a folder of a lower number.
    program.write_text(
        '#!/bin/sh\nstarts="$TMPDIR/../../starts"\necho >> "$starts"\nFAKE_PROCESS=$(wc -l < "$starts")\n'
        'case "$TMPDIR" in */2/scratch1) FAKE_PROCESS=1;; */3/scratch1) FAKE_PROCESS=2;; esac\n'
        f'FAKE_PROCESS=$FAKE_PROCESS PYTHONPATH="{folder}" exec "{sys.executable}" "$@"\n'
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return f"python:{program}"


def model(path: Path, **more: Any) -> Path:
    """A model with one input ``x`` (float32[1, 4] unless told) that gives ``x * factor + 1``."""
    more.setdefault("inputs", [{"name": "x", "dtype": "float32", "shape": [1, 4]}])
    path.write_text(json.dumps(more))
    return path
