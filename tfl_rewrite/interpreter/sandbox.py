"""The walls around a process that runs a stranger's model, put up by that process itself.

A script, started by path with whatever Python holds the interpreter: ``sandbox.py WALLS SCRIPT ARGUMENT...``.
It imports nothing of its package and keeps to what Python 3.9 offers. It goes in two steps:

1. `enter`, before anything but the standard library is imported, while there is one thread: limits, no new
   privileges, no capabilities, and Landlock. From then on the process reads the Python installation and what
   it was told to, and writes to one folder. Nothing may be executed.
2. `Sandbox.seal`, called by the script once it has imported the runtime and before it opens a model: a
   seccomp filter for all threads. Importing may look for libraries by starting programs, which is why the
   filter does not come first; no byte of a model has been read by then.

What a kernel does not offer is left out, and `Sandbox.walls` names what is in force. Where there is no
Landlock, the filter lets nothing be opened for writing, made, renamed or removed.

There are packages for both (``landlock``, ``pyseccomp``), but a foreign Python does not have them, and the
second one needs a library of the system.

Sources: landlock(7), seccomp(2), bpf(4), capabilities(7); ``include/uapi/linux/landlock.h``, ``seccomp.h``,
``audit.h``; numbers of system calls: ``arch/x86/entry/syscalls/syscall_64.tbl`` and ``scripts/syscall.tbl``
(which is that of aarch64) of Linux 6.18.
"""

from __future__ import annotations

import ctypes
import errno
import importlib.util
import json
import os
import struct
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Optional

FILE_NBYTES = 64 << 20
"""Largest file that it may write: scratch, standard error, files in memory. Outputs are no files."""
OPEN_FILES = 1024
TASKS = 1 << 14
"""Threads and processes of this user, other programs' among them: a bound for bombs, not for runtimes."""
CPU_GRACE_SECONDS = 5
"""Between the signal that says that its time is over and the one that cannot be ignored."""

SYSTEM = (
    # Libraries, and the loader's list of them.
    *(
        "/lib",
        "/lib32",
        "/lib64",
        "/usr/lib",
        "/usr/lib32",
        "/usr/lib64",
        "/usr/local/lib",
        "/usr/local/lib64",
    ),
    *("/etc/ld.so.cache", "/etc/ld.so.preload", "/nix/store", "/gnu/store"),
    # Languages and time zones.
    *("/usr/share/locale", "/usr/share/zoneinfo", "/etc/localtime", "/etc/timezone"),
    # How many processors of which kind, and how memory is handed out.
    *("/sys/devices/system/cpu", "/sys/devices/system/node", "/sys/kernel/mm/transparent_hugepage"),
    *("/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/version", "/proc/filesystems", "/proc/self"),
    *("/proc/sys/vm/overcommit_memory", "/proc/sys/kernel/osrelease", "/proc/sys/kernel/version"),
    *("/dev/zero", "/dev/random", "/dev/urandom"),
)

# -- Landlock --------------------------------------------------------------------------------------------

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION, _PATH_BENEATH = 1, 1
_WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 1, 1 << 2, 1 << 3
_REMOVE_FILE, _MAKE_REG, _TRUNCATE = 1 << 5, 1 << 8, 1 << 14
_FS_BITS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
"""How many rights on files each version knows; since 5 there were no more."""
_NET_SINCE, _NET_BITS = 4, 0b11
"""Binding and connecting TCP sockets."""
_SCOPE_SINCE, _SCOPE_BITS = 6, 0b11
"""Abstract UNIX sockets and signals of processes outside."""
_READ = _READ_FILE | _READ_DIR
_SCRATCH = _READ | _WRITE_FILE | _TRUNCATE | _MAKE_REG | _REMOVE_FILE
"""Plain files in one folder: whoever clears it away meets no links, pipes or depths."""
_ON_FILES = 1 | _WRITE_FILE | _READ_FILE | _TRUNCATE | 1 << 15
_O_PATH = 0o10000000


class _Libc:
    """System calls by number; what fails is minus its error number."""

    def __init__(self) -> None:
        self._syscall = ctypes.CDLL(None, use_errno=True).syscall
        self._syscall.restype = ctypes.c_long

    def __call__(self, number: int, *arguments: Any) -> int:
        # Plain integers would be passed as 32 bits.
        wide = [ctypes.c_long(item) if isinstance(item, int) else item for item in arguments]
        result = self._syscall(ctypes.c_long(number), *wide)
        return int(result) if result != -1 else -ctypes.get_errno()


def landlock_version() -> int:
    """Returns which version of Landlock the kernel has; 0 for none."""
    return max(0, _Libc()(_CREATE_RULESET, None, 0, _VERSION))


def _confine(readable: Sequence[str], scratch: str) -> bool:
    """Lets this thread, and those that it starts, read some places and write to one; whether it does."""
    version = landlock_version()
    if not version or len(list(Path("/proc/self/task").iterdir())) > 1:
        # A thread that is there already would not be restricted.
        return False
    libc = _Libc()
    handled = (1 << _FS_BITS.get(version, 16)) - 1
    fields = [handled]
    if version >= _NET_SINCE:
        fields.append(_NET_BITS)
    if version >= _SCOPE_SINCE:
        fields.append(_SCOPE_BITS)
    attributes = struct.pack(f"={len(fields)}Q", *fields)
    ruleset = libc(_CREATE_RULESET, attributes, len(attributes), 0)
    if ruleset < 0:
        return False
    try:
        places = [*((path, _READ) for path in readable), (scratch, _SCRATCH)]
        for path, rights in [*places, ("/dev/null", _READ_FILE | _WRITE_FILE)]:
            _allow(libc, ruleset, path, rights & handled)
        return libc(_RESTRICT_SELF, ruleset, 0) == 0
    finally:
        os.close(ruleset)


def _allow(libc: _Libc, ruleset: int, path: str, rights: int) -> None:
    try:
        descriptor = os.open(path, _O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not Path(path).is_dir():
            rights &= _ON_FILES
        libc(_ADD_RULE, ruleset, _PATH_BENEATH, struct.pack("=Qi", rights, descriptor), 0)
    finally:
        os.close(descriptor)


def installation(scratch: str, packages: Sequence[str]) -> list[str]:
    """Returns what must be read so that this Python can import what it has: files and folders.

    A folder of ``sys.path`` that holds the home folder, or the temporary ones, is left out: of it the
    packages alone are read.

    Args:
        scratch: The folder that may be written to.
        packages: Such as may lie where no folder of ``sys.path`` is, as those that are installed to be edited
            do.
    """
    kept = [Path(place).resolve() for place in (_home(), scratch)]
    found = list(SYSTEM)
    for entry in filter(None, sys.path):
        folder = Path(entry).resolve()
        if not any(folder in (place, *place.parents) for place in kept):
            found.append(entry)
    prefixes = {sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix}
    prefixes.add(str(Path(sys.executable).resolve().parent.parent))
    found += [f"{prefix}/{name}" for prefix in prefixes for name in ("lib", "lib64", "pyvenv.cfg")]
    found += filter(None, os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep))
    for name in packages:
        try:
            spec = importlib.util.find_spec(name)
        except (ImportError, ValueError):
            continue
        if spec is not None and spec.origin is not None and Path(spec.origin).is_file():
            found.append(str(Path(spec.origin).resolve().parent))
    return found


def _home() -> str:
    """The home folder of the user, which is not where HOME points; where that is, if there is none."""
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:
        return "~"


# -- seccomp ---------------------------------------------------------------------------------------------

Number = tuple[Optional[int], Optional[int]]  # noqa: UP045
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
"""The values of ``seccomp_data.arch``, in the order of the numbers in `CALLS`."""
_SECCOMP = {"x86_64": 317, "aarch64": 277}
LAST_CALL = 469
"""What the kernel learned later than this list is unknown to it: refused as not there."""

# fmt: off
CALLS: dict[str, Number] = {
    # Sockets of any kind.
    "socket": (41, 198), "socketpair": (53, 199), "connect": (42, 203), "bind": (49, 200),
    "listen": (50, 201), "accept": (43, 202), "accept4": (288, 242), "sendto": (44, 206),
    "sendmsg": (46, 211), "sendmmsg": (307, 269), "recvfrom": (45, 207), "recvmsg": (47, 212),
    "recvmmsg": (299, 243),
    # Other programs and processes.
    "execve": (59, 221), "execveat": (322, 281), "fork": (57, None), "vfork": (58, None),
    "setsid": (112, 157), "setpgid": (109, 154),
    # What reaches into other processes.
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "process_madvise": (440, 440), "process_mrelease": (448, 448), "kcmp": (312, 272),
    "pidfd_open": (434, 434), "pidfd_send_signal": (424, 424), "pidfd_getfd": (438, 438),
    "migrate_pages": (256, 238), "move_pages": (279, 239), "setpriority": (141, 140), "ioprio_set": (251, 30),
    "sched_setscheduler": (144, 119), "sched_setparam": (142, 118), "sched_setattr": (314, 274),
    "shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195),
    "semget": (64, 190), "semop": (65, 193), "semtimedop": (220, 192), "semctl": (66, 191),
    "msgget": (68, 186), "msgsnd": (69, 189), "msgrcv": (70, 188), "msgctl": (71, 187),
    "mq_open": (240, 180), "mq_unlink": (241, 181), "mq_notify": (244, 184),
    # Ways around a filter, and large pieces of the kernel that no runtime needs.
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "bpf": (321, 280), "userfaultfd": (323, 282), "perf_event_open": (298, 241),
    "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218),
    "fanotify_init": (300, 262), "fanotify_mark": (301, 263), "inotify_add_watch": (254, 27),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265), "lookup_dcookie": (212, 18),
    "personality": (135, 92), "modify_ldt": (154, None), "uselib": (134, None), "_sysctl": (156, None),
    # The machine.
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51),
    "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430), "fsconfig": (431, 431),
    "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442), "statmount": (457, 457),
    "listmount": (458, 458), "open_tree_attr": (467, 467), "setns": (308, 268), "unshare": (272, 97),
    "swapon": (167, 224), "swapoff": (168, 225), "reboot": (169, 142), "acct": (163, 89),
    "sethostname": (170, 161), "setdomainname": (171, 162), "quotactl": (179, 60), "quotactl_fd": (443, 443),
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106),
    "create_module": (174, None), "kexec_load": (246, 104), "kexec_file_load": (320, 294),
    "settimeofday": (164, 170), "clock_settime": (227, 112), "clock_adjtime": (305, 266),
    "adjtimex": (159, 171), "ioperm": (173, None), "iopl": (172, None), "syslog": (103, 116),
    "vhangup": (153, 58), "nfsservctl": (180, 42),
    # What Landlock does not know of: modes, owners, times, attributes; and on its first versions, sizes.
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452),
    "chown": (92, None), "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54),
    "utime": (132, None), "utimes": (235, None), "utimensat": (280, 88), "futimesat": (261, None),
    "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7), "setxattrat": (463, 463),
    "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16),
    "removexattrat": (466, 466), "file_setattr": (469, 469), "truncate": (76, 45),
    "symlink": (88, None), "symlinkat": (266, 36), "link": (86, None), "linkat": (265, 37),
    "mknod": (133, None), "mknodat": (259, 33),
}
WRITES: dict[str, Number] = {
    "creat": (85, None), "rename": (82, None), "renameat": (264, 38), "renameat2": (316, 276),
    "rmdir": (84, None), "mkdir": (83, None), "mkdirat": (258, 34), "unlink": (87, None),
    "unlinkat": (263, 35),
}
"""Refused as well where Landlock does not keep writing to one folder."""
ABSENT: dict[str, Number] = {"clone3": (435, 435), "openat2": (437, 437)}
"""A filter cannot see their arguments; libraries fall back where there is no such call."""
OWN: dict[str, Number] = {
    "kill": (62, 129), "tgkill": (234, 131), "tkill": (200, 130), "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
}
"""Signals: to the process itself only, as ``abort`` sends one."""
AFFINITY: Number = (203, 122)
CLONE: Number = (56, 220)
PRLIMIT: Number = (302, 261)
SETRLIMIT: Number = (160, 164)
PRCTL: Number = (157, 167)
FCNTL: Number = (72, 25)
IOCTL: Number = (16, 29)
OPEN: tuple[tuple[Number, int], ...] = (((2, None), 1), ((257, 56), 2))
"""``open`` and ``openat``, with the place of their flags."""
# fmt: on
_CLONE_THREAD = 0x10000
_RLIMIT_DATA = 2
_FORBIDDEN = {
    # prctl: the parent's death signal, layout of memory, who may trace.
    PRCTL: (0, (1, 35, 0x59616D61)),
    # fcntl and ioctl: whom the signals of a descriptor go to; typing into a terminal.
    FCNTL: (1, (8, 15)),
    IOCTL: (1, (0x8901, 0x8902, 0x5412, 0x541C)),
}
_O_ACCMODE, _O_CREAT, _O_TRUNC = 0o3, 0o100, 0o1000

_LOAD, _EQUAL, _AT_LEAST, _ANY_OF, _AND, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
_ALLOW = 0x7FFF0000
_REFUSE = 0x00050000 | errno.EPERM
_UNKNOWN = 0x00050000 | errno.ENOSYS

Instruction = tuple[int, int, int, int]
"""Code, jumps where a comparison holds and where not, operand."""


def program(machine: str, pid: int, *, writes: bool) -> list[Instruction]:
    """Returns the filter for one architecture.

    Args:
        machine: ``x86_64`` or ``aarch64``.
        pid: Of the process that is filtered.
        writes: Whether files may be opened for writing, made and removed.
    """
    column = list(ARCHITECTURES).index(machine)
    made: list[Instruction] = [
        (_LOAD, 0, 0, 4),
        (_EQUAL, 1, 0, ARCHITECTURES[machine]),
        (_RETURN, 0, 0, _REFUSE),
        (_LOAD, 0, 0, 0),
        # Numbers of the x32 interface among them.
        (_AT_LEAST, 0, 1, LAST_CALL + 1),
        (_RETURN, 0, 0, _UNKNOWN),
    ]

    for call, body in _rules(pid, writes=writes):
        # A body may lose the number of the call, so it must end in a decision.
        number = call[column]
        if number is not None:
            made.extend([(_EQUAL, 0, len(body), number), *body])
    made.append((_RETURN, 0, 0, _ALLOW))
    return made


def _rules(pid: int, *, writes: bool) -> Iterator[tuple[Number, list[Instruction]]]:
    """Yields what is not simply allowed: the number of a call, and what decides over it."""

    def low(argument: int) -> Instruction:
        return (_LOAD, 0, 0, 16 + 8 * argument)

    refuse, allow = (_RETURN, 0, 0, _REFUSE), (_RETURN, 0, 0, _ALLOW)
    for call in (*CALLS.values(), *(() if writes else WRITES.values())):
        yield call, [refuse]
    for call in ABSENT.values():
        yield call, [(_RETURN, 0, 0, _UNKNOWN)]
    for call in OWN.values():
        yield call, [low(0), (_EQUAL, 0, 1, pid), allow, refuse]
    yield AFFINITY, [low(0), (_EQUAL, 1, 0, 0), (_EQUAL, 0, 1, pid), allow, refuse]
    yield CLONE, [low(0), (_ANY_OF, 0, 1, _CLONE_THREAD), allow, refuse]
    # Reading limits, or setting that of memory, of this process.
    yield (
        PRLIMIT,
        [
            low(0),
            (_EQUAL, 1, 0, 0),
            (_EQUAL, 0, 7, pid),
            low(1),
            (_EQUAL, 4, 0, _RLIMIT_DATA),
            low(2),
            (_EQUAL, 0, 3, 0),
            (_LOAD, 0, 0, 16 + 8 * 2 + 4),
            (_EQUAL, 0, 1, 0),
            allow,
            refuse,
        ],
    )
    yield SETRLIMIT, [low(0), (_EQUAL, 0, 1, _RLIMIT_DATA), allow, refuse]
    for call, (argument, values) in _FORBIDDEN.items():
        tests = [(_EQUAL, len(values) - place, 0, value) for place, value in enumerate(values)]
        yield call, [low(argument), *tests, allow, refuse]
    for call, argument in OPEN:
        if writes:
            # The first versions of Landlock let what is opened for reading be cut to nothing.
            body = [(_AND, 0, 0, _O_ACCMODE | _O_TRUNC), (_EQUAL, 0, 1, _O_TRUNC), refuse, allow]
        else:
            body = [(_ANY_OF, 0, 1, _O_ACCMODE | _O_CREAT | _O_TRUNC), refuse, allow]
        yield call, [low(argument), *body]


def _filter(*, writes: bool) -> bool:
    """Puts the filter on every thread; whether it is in force."""
    machine = os.uname().machine
    if machine not in ARCHITECTURES or ctypes.sizeof(ctypes.c_void_p) != 8 or sys.byteorder != "little":
        return False
    packed = b"".join(struct.pack("=HBBI", *item) for item in program(machine, os.getpid(), writes=writes))
    buffer = ctypes.create_string_buffer(packed, len(packed))
    header = struct.pack("@HP", len(packed) // 8, ctypes.addressof(buffer))
    # All threads; and no mitigations that would slow the runtime and only keep it from its own memory.
    for flags in (1 | 4, 1):
        result = _Libc()(_SECCOMP[machine], 1, flags, header)
        if result != -errno.EINVAL:
            break
    return result == 0


# -- the whole -------------------------------------------------------------------------------------------

_NO_NEW_PRIVS, _DEATH_SIGNAL, _SIGKILL = 38, 1, 9
_CAPABILITIES_3, _READ_SEARCH = 0x20080522, 1 << 2


class Sandbox:
    """What this process has shut itself into; `seal` must follow before a model is opened."""

    def __init__(self, landlock: bool) -> None:
        self._landlock = landlock
        self._seccomp = False
        self._version = landlock_version() if landlock else 0

    def seal(self) -> None:
        """Puts the filter of system calls in force."""
        self._seccomp = _filter(writes=self._landlock)

    def script(self, name: str) -> Any:
        """Imports another script of this package, by its place in it."""
        return load(str(Path(__file__).parents[1] / name))

    @property
    def walls(self) -> list[str]:
        """What is in force, in words."""
        found = ["landlock"] * self._landlock + ["seccomp"] * self._seccomp
        if self._seccomp:
            return [*found, "no network"]
        return [*found, "no TCP"] if self._version >= _NET_SINCE else found


def enter(walls: dict[str, Any]) -> Sandbox:
    """Shuts this process in.

    Args:
        walls: ``read``: paths of files and folders; ``packages``: of Python, to be read as well;
            ``scratch``: the folder that it may write to; ``cpu``: seconds of processor time; ``dies``:
            whether the end of the thread that started it, which is that of its process, is its own too.
    """
    readable = [*installation(walls["scratch"], walls["packages"]), *walls["read"]]
    _limit(walls["cpu"])
    try:
        prctl = ctypes.CDLL(None, use_errno=True).prctl
        if walls["dies"]:
            prctl(_DEATH_SIGNAL, ctypes.c_ulong(_SIGKILL), 0, 0, 0)
        prctl(_NO_NEW_PRIVS, ctypes.c_ulong(1), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0))
        _drop_capabilities()
        return Sandbox(_confine(readable, walls["scratch"]))
    except (OSError, AttributeError):
        # Not Linux.
        return Sandbox(False)


def _limit(cpu: int) -> None:
    try:
        import resource
    except ImportError:
        return
    bounds = {
        "CORE": (0, 0),
        "FSIZE": (FILE_NBYTES, FILE_NBYTES),
        "CPU": (cpu, cpu + CPU_GRACE_SECONDS),
        "NOFILE": (OPEN_FILES, OPEN_FILES),
        "NPROC": (TASKS, TASKS),
    }
    for name, wanted in bounds.items():
        number = getattr(resource, f"RLIMIT_{name}", None)
        if number is None:
            continue
        _, hard = resource.getrlimit(number)
        soft, most = (item if hard == resource.RLIM_INFINITY else min(item, hard) for item in wanted)
        try:
            resource.setrlimit(number, (soft, most))
        except (OSError, ValueError):
            pass


def _drop_capabilities() -> None:
    """Gives up what root may do, save reading what it is let read."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = struct.pack("=Ii", _CAPABILITIES_3, 0)
    data = ctypes.create_string_buffer(24)
    if libc.capget(header, data) != 0:
        return
    permitted = struct.unpack("=6I", data.raw)[1]
    kept = permitted & _READ_SEARCH
    libc.capset(header, struct.pack("=6I", kept, kept, 0, 0, 0, 0))


def main(arguments: Sequence[str]) -> None:
    """Enters the sandbox and calls ``main(sandbox, *arguments)`` of a script.

    Without walls nothing is entered: ``forkserver.py`` sees no model, and its copies enter by themselves.
    """
    walls, script, *rest = arguments
    sandbox = enter(json.loads(walls)) if walls else sys.modules[__name__]
    load(script).main(sandbox, *rest)


def load(path: str) -> Any:
    """Imports a script by its path, once."""
    name = f"_tfl_rewrite_{Path(path).stem}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Annotations of dataclasses are looked up there.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    # The folder of this script would otherwise come first, and its neighbours shadow foreign modules.
    if sys.path and Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
        del sys.path[0]
    main(sys.argv[1:])
