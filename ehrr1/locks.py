"""Locks on files, held by a process until it closes the file or ends."""

import fcntl
import os
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from ehrr1.errors import NO_LOCKS, UserError


def flock(file: IO[Any], *, shared: bool = False, wait: bool = False) -> None:
    """Lock an open file, also against the processes of other machines.

    Without `wait`, BlockingIOError is raised where another process holds it. Raises UserError on a
    file system that has no locks: two processes could then work in one folder.
    """
    how = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    try:
        fcntl.flock(file, how)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        raise UserError(
            f"{file.name}: its file system has no locks ({error.strerror}): set output_root=DIR on "
            "another, or have it mounted with them (Lustre: -o flock)"
        ) from error


def open_locked(path: Path, *, shared: bool = False) -> IO[Any]:
    """Open and lock the file `path`, which other processes may `discard`; errors as of `flock`."""
    while True:
        file = path.open("w")
        try:
            flock(file, shared=shared)
        except BaseException:
            file.close()
            raise
        if _is_at(file, path):
            return file
        file.close()  # deleted between opening and locking


def discard(file: IO[Any], path: Path) -> None:
    """Delete a file that this process has locked, unless others share the lock."""
    with suppress(BlockingIOError):
        flock(file)
        if _is_at(file, path):
            path.unlink()


def _is_at(file: IO[Any], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
