"""Exceptions: errors that a user can cause (exit code 2), leaks, and stops by a signal."""

import errno
import os
import re
import shutil
import signal
import sqlite3
from importlib.util import find_spec

RESUMES = "The same command resumes"
ELSEWHERE = "set output_root=DIR to write elsewhere"
NO_ROOM = f"free space or permissions are missing; {ELSEWHERE}"
NO_MEMORY = (
    "there is not enough memory: raise the limit (ulimit -v, the job's memory), or lower what is "
    "held at once (batch sizes, workers, data.patients_per_shard; `stage=plan` tells what a model "
    "needs)"
)

REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS), NO_ROOM),
    **dict.fromkeys((errno.EACCES, errno.EPERM), NO_ROOM),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "raise the limit of open files: ulimit -n 4096"),
    **dict.fromkeys((errno.EIO, errno.ESTALE), f"the disk or its server fails; {ELSEWHERE}"),
    errno.ENOMEM: NO_MEMORY,
    errno.EAGAIN: f"no more threads or processes may be started (ulimit -u, -v): {NO_MEMORY}",
}
"""Error numbers of what a machine lacks or refuses, and what helps."""

NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}
"""Error numbers of a file system without flock, such as Lustre mounted without `-o flock`."""

SHARED_MEMORY = "/dev/shm"
SHARED_MEMORY_BYTES = 1 << 20
"""With less free space than this, shared memory is full."""

OF_SQLITE = {
    "SQLITE_FULL": errno.ENOSPC,
    "SQLITE_READONLY": errno.EROFS,
    "SQLITE_CANTOPEN": errno.EACCES,
    "SQLITE_IOERR": errno.EIO,
    "SQLITE_NOMEM": errno.ENOMEM,
}
"""SQLite's names of errors, by their beginning, and the error numbers that they mean."""

OF_MEMORY = (
    *("can't allocate memory", "out of memory", "can't start new thread"),
    *("failed to map segment", "cannot allocate memory"),
)
"""Words of errors of PyTorch, of threads and of imports if memory is missing."""


class UserError(Exception):
    """A wrong setting, file or folder.

    The message is one line: the setting and its value, what is wrong, and the remedy. `run.py`
    prints it without a traceback and exits with 2.
    """


class LeakError(AssertionError):
    """A context shows information from after its prediction time: a bug of this program.

    `stage=audit` raises it after it has written its files; it ends with a traceback and exit code
    1.
    """


class StoppedError(Exception):
    """A signal requested the process to stop, and it has saved its checkpoint."""

    def __init__(self, number: int, steps: int):
        super().__init__(f"stopped by {signal.Signals(number).name} after {steps} steps")
        self.exit_code = 128 + number


def need_extra(setting: str, package: str, extra: str) -> None:
    """Raise UserError if a package that `setting` needs is not installed."""
    if find_spec(package) is None:
        raise UserError(
            f"{setting}: {package} is not installed; pip install -c constraints.txt -e '.[{extra}]'"
        )


def machine_fault(error: BaseException) -> str | None:
    """Return what the machine lacks or refuses, in one line with its remedy.

    A disk or a quota may be full, a folder read-only, memory or the number of open files limited.
    Returns None for every other error, which is a bug. Libraries report these faults as errors of
    many kinds.
    """
    if isinstance(error, MemoryError) or _says(error, OF_MEMORY):
        said = " ".join(str(error).split())[:200]
        return f"{said or 'out of memory'}: {NO_MEMORY}. {RESUMES}"
    number = _number(error)
    if number is None or number not in REMEDIES:
        return None
    named = error.filename if isinstance(error, OSError) else None
    remedy = REMEDIES[number]
    if named is None and number == errno.ENOSPC and _is_full(SHARED_MEMORY):
        named, remedy = SHARED_MEMORY, "shared memory is too small; in a container set --shm-size"
    return f"{named or 'the run folder'}: {os.strerror(number)}: {remedy}. {RESUMES}"


def _says(error: BaseException, words: tuple[str, ...]) -> bool:
    kinds = (RuntimeError, ImportError)
    return isinstance(error, kinds) and any(word in str(error).lower() for word in words)


def _number(error: BaseException) -> int | None:
    """Return the error number of an error of the system; None for other errors."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    if isinstance(error, sqlite3.Error):
        name = getattr(error, "sqlite_errorname", "")
        return next((number for begin, number in OF_SQLITE.items() if name.startswith(begin)), None)
    # libraries in Rust (Polars, tokenizers, safetensors) and C++ (Arrow, PyTorch)
    found = re.search(r"\(os error (\d+)\)|\[[Ee]rrno (\d+)\]|\((28)\)$", str(error))
    return int(next(filter(None, found.groups()))) if found else None


def _is_full(folder: str) -> bool:
    return os.path.isdir(folder) and shutil.disk_usage(folder).free < SHARED_MEMORY_BYTES
