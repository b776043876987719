"""Errors that a user can cause (one line, exit code 2); the audit's verdict (exit code 1)."""

import errno
import signal
from importlib.util import find_spec

CANNOT_WRITE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES}


class UserError(Exception):
    """A setting, file or folder is wrong.

    The message is one line: the setting and its value, what is wrong, and what to do. `run.py`
    prints it without a traceback and exits with 2.
    """


class LeakError(AssertionError):
    """A context shows what was not known, where that must not be: a bug of this program.

    `stage=audit` writes its files and then raises it: a traceback, exit code 1.
    """


class StoppedError(Exception):
    """A signal told the process to stop, and it has saved its checkpoint."""

    def __init__(self, number: int, steps: int):
        super().__init__(f"stopped by {signal.Signals(number).name} after {steps} steps")
        self.exit_code = 128 + number


def need_extra(asked: str, package: str, extra: str) -> None:
    """Raise UserError where a package that what is `asked` needs is not installed."""
    if find_spec(package) is None:
        raise UserError(
            f"{asked}: {package} is not installed; pip install -c constraints.txt -e '.[{extra}]'"
        )


def cannot_write(error: OSError) -> str:
    """What is wrong with a disk, and what to do; other errors are raised again: they are bugs."""
    if error.errno not in CANNOT_WRITE:
        raise error
    return (
        f"{error.filename or 'the run folder'}: {error.strerror}: free space or rights are "
        "missing there; set output_root=DIR to write elsewhere. The same command resumes."
    )
