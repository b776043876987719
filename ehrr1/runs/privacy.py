"""Closed records stay with their user: the modes of what is written, and what a traceback says."""

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from ehrr1.errors import LeakError, StoppedError, UserError, machine_fault

PRIVATE = 0o077
"""The umask of closed records: folders have the mode 0700, files 0600."""

TELLS_NOTHING = (UserError, StoppedError, LeakError)
"""Errors whose messages contain no text of a record, and no id of a patient."""


@dataclass
class _Keeping:
    """The umask to return to, and whether the records are closed."""

    umask: int
    closed: bool = True


_kept: list[_Keeping] = []
"""The umask and openness that `kept` keeps in this process, innermost last."""


def kept_beside(made: Path, closed: bool, process: str = "") -> AbstractContextManager[None]:
    """Return `kept` for what is made in the file or folder `made`; errors are written beside it.

    `process` tells the processes of a group apart.
    """
    return kept(closed, made.with_name(f"{made.name}{process}.error.txt"))


@contextmanager
def kept(closed: bool, errors: Path) -> Iterator[None]:
    """Keep what is made of closed records to their user.

    New folders have the mode 0700 and new files 0600, in child processes too. An unexpected error
    may quote a record: its whole traceback is written to the file `errors`, and what Python prints
    of it, which a scheduler may log, is without messages. Nothing of this applies to open records,
    and to records that `open_up` declares open meanwhile.
    """
    if not closed:
        yield
        return
    keeping = _Keeping(os.umask(PRIVATE))
    os.umask(PRIVATE | keeping.umask)
    _kept.append(keeping)
    try:
        yield
        errors.unlink(missing_ok=True)  # of an earlier attempt
    except TELLS_NOTHING:
        raise
    except BaseException as error:  # the panics of libraries in Rust are no `Exception`
        if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit):
            raise
        if keeping.closed and machine_fault(error) is None:
            _withhold(error, errors)
        raise
    finally:
        _kept.remove(keeping)
        os.umask(keeping.umask)


def open_up(folder: Path) -> None:
    """Give a run's folder, whose records turned out to be open, the modes of the user's umask."""
    if not _kept:
        return
    _kept[-1].closed = False
    os.umask(_kept[-1].umask)
    folder.chmod(0o777 & ~_kept[-1].umask)
    for path in filter(Path.is_file, folder.iterdir()):
        path.chmod(0o666 & ~_kept[-1].umask)


def _withhold(error: BaseException, errors: Path) -> None:
    """Write an error to the file `errors`, and have Python print it without messages."""
    with suppress(OSError):  # a full disk must not hide the error
        errors.parent.mkdir(parents=True, exist_ok=True)  # a question makes no folder of a run
        errors.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    usual = sys.excepthook

    def told(kind: type[BaseException], value: BaseException, place: TracebackType | None) -> None:
        if value is error:
            print(without_messages(error, errors), file=sys.stderr)
        else:
            usual(kind, value, place)

    sys.excepthook = told


def without_messages(error: BaseException, errors: Path) -> str:
    """Return the traceback of an error and of those that led to it, with no message of any."""
    chain: list[BaseException] = []
    at: BaseException | None = error
    while at is not None and at not in chain:
        chain.append(at)
        at = at.__cause__ or (None if at.__suppress_context__ else at.__context__)
    parts = [
        "".join(["Traceback (most recent call last):\n", *traceback.format_tb(one.__traceback__)])
        + f"{type(one).__module__}.{type(one).__qualname__}"
        for one in reversed(chain)
    ]
    return "\n\n".join(parts) + (
        f": the records are closed, and messages may quote them; they are in {errors}"
    )
