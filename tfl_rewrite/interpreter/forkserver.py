"""A process that has loaded a runtime, and is copied for each model instead of loading it again.

A script, started by path: ``forkserver.py MODULE...``, with a socket as its standard input. It imports the
modules, then forks for each request that comes through the socket; the copy enters the sandbox before it
hears of a model, as a process does that was started anew (``sandbox.py``). This process never sees a model:
what it gets are descriptors, and a description of the walls. It ends, and all copies with it, once the other
end of the socket is closed.

Requests and answers are lines of JSON; descriptors come with the first byte of a request. A request has
``number`` and either ``reap``, a process that has ended and is to be waited for, or what a copy needs:
``walls``, ``script``, ``arguments``, ``environment``, and ``descriptors``, under which numbers it finds those
that came with it. Answers have ``number`` and ``pid`` or ``status``, as ``waitpid`` gives it.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import signal
import socket
import sys
import traceback
from pathlib import Path
from typing import Any

MOST_DESCRIPTORS = 250
"""The kernel passes no more than 253 at once."""
_CHUNK = 1 << 16


class _Requests:
    """Lines from the socket, each with its descriptors."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._data = b""
        self._descriptors: list[int] = []

    def next(self) -> tuple[dict[str, Any], list[int]] | None:
        """Waits for a request; None once there are no more."""
        while b"\n" not in self._data:
            data, descriptors, _, _ = socket.recv_fds(self._control, _CHUNK, MOST_DESCRIPTORS)
            if not data:
                return None
            self._data += data
            self._descriptors += descriptors
        line, _, self._data = self._data.partition(b"\n")
        request = json.loads(line)
        count = len(request.get("descriptors", ()))
        mine, self._descriptors = self._descriptors[:count], self._descriptors[count:]
        return request, mine


def _load(name: str) -> Any:
    """Imports a neighbour by its path."""
    path = Path(__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(f"_tfl_rewrite_{name}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _become(request: dict[str, Any], descriptors: list[int], sandbox: Any) -> None:
    """Makes this copy what was asked for; does not return."""
    code = 1
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        # Out of the way of the numbers that they are to have.
        wanted = request["descriptors"]
        above = max(wanted) + 1
        moved = [os.dup2(item, above + place) for place, item in enumerate(descriptors)]
        for item, number in zip(moved, wanted, strict=False):
            os.dup2(item, number)
        kept = sorted({0, 1, 2, *wanted})
        for low, high in zip(kept, [*kept[1:], os.sysconf("SC_OPEN_MAX")], strict=False):
            os.closerange(low + 1, high)
        os.environ.clear()
        os.environ.update(request["environment"])
        os.chdir(request["walls"]["scratch"])
        walls = sandbox.enter(request["walls"])
        sandbox.load(request["script"]).main(walls, *request["arguments"])
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main(modules: list[str]) -> None:
    """Imports, and forks for whoever asks."""
    control = socket.socket(fileno=os.dup(0))
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nothing, number)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sandbox = _load("sandbox")
    for module in modules:
        importlib.import_module(module)
    threads = len(list(Path("/proc/self/task").iterdir()))
    requests = _Requests(control)
    while (found := requests.next()) is not None:
        request, descriptors = found
        answer: dict[str, Any] = {"number": request["number"]}
        if "reap" in request:
            answer["status"] = os.waitpid(request["reap"], 0)[1]
        elif threads == 1:
            # Others would be missing in a copy.
            answer["pid"] = os.fork()
            if not answer["pid"]:
                control.close()
                _become(request, descriptors, sandbox)
        for item in descriptors:
            os.close(item)
        control.sendall(json.dumps(answer).encode() + b"\n")


if __name__ == "__main__":
    # The folder of this script would otherwise come first, and its neighbours shadow foreign modules.
    if sys.path and Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
        del sys.path[0]
    main(sys.argv[1:])
