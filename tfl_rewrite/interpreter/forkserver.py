"""A process that has loaded a runtime, and is copied for each model instead of loading it again.

A script that ``sandbox.py`` starts without walls, with a socket as its standard input. It imports the
modules, then answers the requests that come through the socket, one after the other, in lines of JSON. For
``walls`` it forks, and the copy enters the sandbox before it hears of a model, as a process does that was
started anew (``sandbox.py``). This process never sees a model: what it gets are descriptors, and what the
walls are. It ends, and all copies with it, once the other end of the socket is closed.

A request has one of

* ``walls``, with ``script``, ``arguments``, ``environment``, and ``descriptors``: under which numbers the
  copy finds those that came with the first byte of the request; the answer has ``pid``;
* ``reap``: a copy that has ended and is to be waited for; the answer has ``status``, as ``waitpid`` gives it;
* ``drop``: a copy to be ended, too; likewise.

An answer with none of these says that it could not be done.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import socket
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MOST_DESCRIPTORS = 250
"""The kernel passes no more than 253 at once."""
_CHUNK = 1 << 16


def _requests(control: socket.socket) -> Iterator[tuple[dict[str, Any], list[int]]]:
    """Yields requests, each with its descriptors."""
    data, held = b"", list[int]()
    while True:
        while b"\n" not in data:
            more, descriptors, _, _ = socket.recv_fds(control, _CHUNK, MOST_DESCRIPTORS)
            if not more:
                return
            data += more
            held += descriptors
        line, _, data = data.partition(b"\n")
        yield json.loads(line), held
        for descriptor in held:
            os.close(descriptor)
        held = []


def _become(request: dict[str, Any], descriptors: list[int], sandbox: Any, server: int) -> None:
    """Makes this copy what was asked for; does not return."""
    code = 1
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        # Out of the way of the numbers that they are to have.
        wanted = request["descriptors"]
        above = max(*wanted, *descriptors) + 1
        moved = [os.dup2(item, above + place) for place, item in enumerate(descriptors)]
        for item, number in zip(moved, wanted, strict=True):
            os.dup2(item, number)
        for number in [int(path.name) for path in Path("/proc/self/fd").iterdir()]:
            if number not in wanted:
                # The one of the list itself is closed by now.
                with contextlib.suppress(OSError):
                    os.close(number)
        os.environ.clear()
        os.environ.update(request["environment"])
        os.chdir(request["walls"]["scratch"])
        # The thread that forked it lives as long as the server.
        walls = sandbox.enter({**request["walls"], "dies": True})
        if os.getppid() == server:
            sandbox.load(request["script"]).main(walls, *request["arguments"])
            code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        os._exit(code)


def main(sandbox: Any, *modules: str) -> None:
    """Imports, and forks for whoever asks.

    Args:
        sandbox: The script of that name, which started this one outside of any walls.
        modules: What to import, by name; scripts, which copies run or import, by path.
    """
    control = socket.socket(fileno=os.dup(0))
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nothing, number)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Ignored, as some start programs, it would leave nobody to wait for.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for module in modules:
        (sandbox.load if module.endswith(".py") else importlib.import_module)(module)
    if len(list(Path("/proc/self/task").iterdir())) > 1:
        # The other threads would be missing in a copy.
        return
    own = os.getpid()
    for request, descriptors in _requests(control):
        answer = {}
        with contextlib.suppress(OSError):
            if "walls" in request:
                answer["pid"] = os.fork()
                if not answer["pid"]:
                    _become(request, descriptors, sandbox, own)
            else:
                if "drop" in request:
                    os.kill(request["drop"], signal.SIGKILL)
                answer["status"] = os.waitpid(request.get("drop") or request["reap"], 0)[1]
        control.sendall(json.dumps(answer).encode() + b"\n")
