"""Exceptions: errors that a user can cause (exit code 2), leaks, and stops by a signal."""

import errno
import signal
from importlib.util import find_spec

CANNOT_WRITE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES}
"""Error numbers of a disk that is full, over quota, read-only or without permission."""


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


def cannot_write(error: OSError) -> str:
    """Return a description of a disk error and its remedy.

    Other errors are raised again, since they are bugs.
    """
    if error.errno not in CANNOT_WRITE:
        raise error
    return (
        f"{error.filename or 'the run folder'}: {error.strerror}: free space or "
        "permissions are missing; set output_root=DIR to write elsewhere. The same command resumes."
    )
