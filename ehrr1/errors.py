"""Errors that a user can cause (one line, exit code 2); the audit's verdict (exit code 1)."""

import signal


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
