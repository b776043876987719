"""Errors that a user can cause: one line each, exit code 2."""


class UserError(Exception):
    """A setting, file or folder is wrong.

    The message is one line: the setting and its value, what is wrong, and what to do. `run.py`
    prints it without a traceback and exits with 2.
    """
