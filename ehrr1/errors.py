"""Errors that a user can cause: one line each, exit code 2."""


class UserError(Exception):
    """A setting, file or folder is wrong.

    The message is one line: the setting and its value, what is wrong, and what to do. `run.py`
    prints it without a traceback and exits with 2.
    """


class MissingExtra(UserError):
    """A stage needs an optional package that is not installed."""

    def __init__(self, package: str, extra: str, purpose: str):
        super().__init__(
            f"{purpose} needs the package '{package}', which is not installed: "
            f"run `make setup` or `pip install -c constraints.txt '.[{extra}]'`"
        )
