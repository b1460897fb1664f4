"""The process that measures how long models take.

This file is a script, started by ``interpreter/sandbox.py``. It imports nothing of its package but that of
verification, whose protocol it speaks, by path.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

SECONDS = 0.15
"""For each model."""
RUNS = 5
"""Of each model at least."""


def seconds(interpreters: list[Any]) -> list[float]:
    """Returns the lower quartile of one call of each, with made inputs."""
    runs: list[tuple[Any, list[float]]] = []
    for work in interpreters:
        work.allocate_tensors()
        random = np.random.default_rng(0)
        for detail in work.get_input_details():
            if np.issubdtype(detail["dtype"], np.floating):
                work.set_tensor(detail["index"], random.random(detail["shape"]).astype(detail["dtype"]))
        work.invoke()
        runs.append((work, []))
    # In turn, so that whatever else goes on meets all of them.
    ends = time.perf_counter() + SECONDS * len(runs)
    while time.perf_counter() < ends or len(runs[0][1]) < RUNS:
        for work, times in runs:
            started = time.perf_counter()
            work.invoke()
            times.append(time.perf_counter() - started)
    return [sorted(times)[len(times) // 4] for _, times in runs]


class Service:
    """Answers the requests of one parent."""

    def __init__(self, runtime: Any, channel: Any) -> None:
        self._runtime = runtime
        self._send = channel.send

    def answer(self, request: dict[str, Any]) -> None:
        """Times some models; its last message has either ``done`` or ``error``."""
        where = {"stage": "running"}
        self._send(where)
        try:
            built = [self._runtime.build(path, "default", 1) for path in request["models"]]
            self._send({"done": True, "answer": {"seconds": seconds(built)}})
        except Exception as error:
            self._send({**where, "error": str(error) or type(error).__name__})


def main(sandbox: Any, wanted: str) -> None:
    """Answers the requests of one parent; see ``child.py``."""
    sandbox.script("interpreter/child.py").main(sandbox, wanted, Service)
