"""What a stranger's model might do once it has taken over the process that runs it.

A script for ``sandbox.py``, and a module of the stand-in for the runtime; imports what Python has, no more.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import mmap
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

LIBC = ctypes.CDLL(None, use_errno=True)
CALLS = {"x86_64": 0, "aarch64": 1}[os.uname().machine]
KEYCTL, PERF, URING, FAULTS = (250, 219)[CALLS], (298, 241)[CALLS], 425, (323, 282)[CALLS]
SIGNAL_THREAD, SHARE, CONTROL = (234, 131)[CALLS], (29, 194)[CALLS], (31, 195)[CALLS]


def call(number: int, *arguments: Any) -> int:
    result = int(LIBC.syscall(ctypes.c_long(number), *(ctypes.c_long(item) for item in arguments)))
    if result < 0:
        raise OSError(ctypes.get_errno(), "refused")
    return result


def write(path: str | Path, flags: int = os.O_WRONLY | os.O_CREAT) -> None:
    os.close(os.open(path, flags, 0o600))


def fork() -> None:
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)


def connect(family: int, kind: int, where: Any) -> None:
    with socket.socket(family, kind) as made:
        made.connect(where)


def bind() -> None:
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))


def trace(pid: int) -> None:
    # Seizes: unlike an attachment it does not stop the other one.
    if LIBC.ptrace(0x4206, pid, None, None) != 0:
        raise OSError(ctypes.get_errno(), "refused")
    LIBC.ptrace(17, pid, None, None)


def signals_of_a_pipe_to(pid: int) -> None:
    ends = os.pipe()
    try:
        fcntl.fcntl(ends[0], fcntl.F_SETOWN, pid)
    finally:
        os.close(ends[0])
        os.close(ends[1])


def perf() -> None:
    # Software, the clock of this process.
    attributes = ctypes.create_string_buffer(struct.pack("=IIQ", 1, 64, 0) + bytes(48))
    os.close(call(PERF, ctypes.addressof(attributes), 0, -1, -1, 0))


def ring() -> None:
    parameters = ctypes.create_string_buffer(120)
    os.close(call(URING, 2, ctypes.addressof(parameters)))


def memory_of(pid: int) -> None:
    local = ctypes.create_string_buffer(8)
    remote = (ctypes.c_size_t * 2)(ctypes.addressof(local), 8)
    if LIBC.process_vm_readv(pid, remote, 1, remote, 1, 0) < 0 and ctypes.get_errno() != errno.EFAULT:
        raise OSError(ctypes.get_errno(), "refused")


def deeds(places: dict[str, Any]) -> dict[str, Callable[[], Any]]:
    """By name what each deed does; none of them does harm if nothing keeps it."""
    model, scratch, parent = places["model"], places["scratch"], places["parent"]
    return {
        "read a key": lambda: Path(places["key"]).read_bytes(),
        "list a folder": lambda: os.listdir(places["folder"]),
        "read the other side": lambda: Path(places["other"]).read_bytes(),
        "write to the other side": lambda: write(places["other"], os.O_WRONLY),
        "write beside the model": lambda: write(f"{model}.new"),
        "write to the model": lambda: write(model, os.O_WRONLY | os.O_APPEND),
        "cut the model by name": lambda: os.truncate(model, os.stat(model).st_size),
        "cut a file that is only read": lambda: write(places["cut"], os.O_RDONLY | os.O_TRUNC),
        "rename the model": lambda: [os.rename(model, f"{model}.old"), os.rename(f"{model}.old", model)],
        "remove a file": lambda: os.unlink(places["removable"]),
        "make a folder": lambda: os.mkdir(places["folder"] + "/made"),
        "change a mode": lambda: os.chmod(model, 0o640),
        "change times": lambda: os.utime(model),
        "change an attribute": lambda: os.setxattr(model, "user.deed", b"1"),
        "write to shared memory": lambda: write(f"/dev/shm/tfl-rewrite-deed-{os.getpid()}"),
        "link in scratch": lambda: os.symlink("/etc/hostname", f"{scratch}/link"),
        "hard link in scratch": lambda: os.link(model, f"{scratch}/hard"),
        "pipe in scratch": lambda: os.mkfifo(f"{scratch}/pipe"),
        "folder in scratch": lambda: os.mkdir(f"{scratch}/folder"),
        "connect TCP": lambda: connect(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", places["port"])),
        "bind TCP": bind,
        "connect UDP": lambda: connect(socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 9)),
        "connect UNIX": lambda: connect(socket.AF_UNIX, socket.SOCK_STREAM, places["socket"]),
        "connect abstract": lambda: connect(socket.AF_UNIX, socket.SOCK_STREAM, "\0" + places["abstract"]),
        "make a pair of sockets": lambda: [end.close() for end in socket.socketpair()],
        "execute": lambda: subprocess.run(["/bin/true"], check=True),
        "fork": fork,
        "start a session": os.setsid,
        "signal the parent": lambda: os.kill(parent, signal.SIGWINCH),
        "signal a thread of the parent": lambda: call(SIGNAL_THREAD, parent, parent, signal.SIGWINCH),
        "let a pipe signal the parent": lambda: signals_of_a_pipe_to(parent),
        "open the parent for signals": lambda: os.close(os.pidfd_open(parent)),
        "trace the parent": lambda: trace(parent),
        "read the parent's memory": lambda: memory_of(parent),
        "open the parent's memory": lambda: os.close(os.open(f"/proc/{parent}/mem", os.O_RDONLY)),
        "read the parent's environment": lambda: Path(f"/proc/{parent}/environ").read_bytes(),
        "limit the parent": lambda: resource.prlimit(parent, resource.RLIMIT_CORE, (0, 0)),
        "lift its own limit": lambda: resource.setrlimit(
            resource.RLIMIT_FSIZE, resource.getrlimit(resource.RLIMIT_FSIZE)
        ),
        "outlive the parent": lambda: check(LIBC.prctl(1, 0, 0, 0, 0)),
        "use io_uring": ring,
        "use userfaultfd": lambda: os.close(call(FAULTS, 1)),
        "use perf events": perf,
        "use a keyring": lambda: call(KEYCTL, 0, -4, 0),
        "shared memory of System V": lambda: call(
            (31, 195)[CALLS], call((29, 194)[CALLS], 0, 4096, 0o1600), 0, 0
        ),
    }


def check(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), "refused")


def attempt(places: dict[str, Any], names: list[str] | None = None) -> dict[str, str]:
    """Tries deeds, by default all; what became of each: ``done`` or the name of an error number."""
    outcomes = {}
    known = deeds(places)
    for name, deed in known.items() if names is None else [(name, known[name]) for name in names]:
        try:
            deed()
            outcomes[name] = "done"
        except ValueError:
            # What Python makes of a limit that may not be set.
            outcomes[name] = "EPERM"
        except OSError as error:
            outcomes[name] = errno.errorcode.get(error.errno or 0, str(error))
    return outcomes


def ordinary(scratch: str) -> None:
    """What runtimes do and must go on doing; raises what keeps them from it."""
    ran = []
    threads = [threading.Thread(target=lambda: ran.append(os.sched_getaffinity(0))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ran) == 4
    with open(os.memfd_create("weights"), "wb") as file:
        file.write(bytes(1 << 20))
    with mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC) as code:
        code.write(b"\xc3")
    assert Path("/proc/cpuinfo").read_text() and Path("/proc/self/maps").read_text()
    assert Path("/sys/devices/system/cpu/possible").read_text()
    assert os.getcwd() == os.environ["TMPDIR"] == os.environ["HOME"] == scratch
    Path("made").write_bytes(b"x")
    assert Path(scratch, "made").read_bytes() == b"x"
    os.rename("made", "renamed")
    os.unlink("renamed")
    with open("/dev/null", "wb") as nothing:
        nothing.write(b"x")
    os.kill(os.getpid(), 0)
    memory = resource.RLIMIT_DATA
    resource.setrlimit(memory, resource.getrlimit(memory))


def main(sandbox: Any, places: str) -> None:
    given = json.loads(places)
    # As importing a runtime may start one.
    sealed, found = threading.Event(), dict[str, str]()

    def early() -> None:
        sealed.wait()
        found.update(attempt(given, ["make a pair of sockets", "read a key"]))

    thread = threading.Thread(target=early)
    thread.start()
    sandbox.seal()
    sealed.set()
    thread.join()
    told: dict[str, Any] = {"walls": sandbox.walls, "early": found, "deeds": attempt(given), "ordinary": ""}
    try:
        ordinary(given["scratch"])
    except Exception as error:
        told["ordinary"] = repr(error)
    json.dump(told, sys.stdout)
