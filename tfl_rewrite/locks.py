"""Locks on files that a process holds for as long as it lives.

A lock is on a file, not on its name: whoever opens a file and then locks it may hold what another process has
removed meanwhile. So a lock counts only if, once it is taken, the name still leads to that very file.
"""

from __future__ import annotations

import errno
import fcntl
import os

_TAKEN = (errno.EWOULDBLOCK, errno.EACCES)


def lock(descriptor: int, *, without: bool = False) -> bool:
    """Locks an open file for this process alone, without waiting.

    Args:
        descriptor: The open file. The system lets go of it when the last copy of the descriptor is closed,
            however the process ends.
        without: What to return on a file system that has no locks.

    Returns:
        Whether it is locked; False if another process holds it.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return without and error.errno not in _TAKEN
    return True


def leads_to(name: str | os.PathLike[str], descriptor: int, *, folder: int | None = None) -> bool:
    """Whether a name is still that of an open file or folder, and no symbolic link.

    Args:
        name: A path, or a name in ``folder``.
        descriptor: The open file.
        folder: Descriptor of the folder that ``name`` counts from.
    """
    try:
        found = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except OSError:
        return False
    own = os.fstat(descriptor)
    return (found.st_dev, found.st_ino) == (own.st_dev, own.st_ino)


def opened_folder(path: str | os.PathLike[str], *, folder: int | None = None) -> int:
    """Opens a folder that is no symbolic link; the descriptor is the caller's to close.

    Args:
        path: A path, or a name in ``folder``.
        folder: Descriptor of the folder that ``path`` counts from.

    Raises:
        NotADirectoryError: It is something else.
        OSError: There is none, or it cannot be read.
    """
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path) from None
        raise
