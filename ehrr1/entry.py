"""The entry of every command: a signal to end is one line and an exit code, also during imports."""

import os
import select
import signal
import stat
import sys
from contextlib import suppress
from importlib import import_module
from multiprocessing import active_children
from pathlib import Path
from threading import Event, Timer
from types import FrameType
from typing import Any

ENDINGS = {
    signal.SIGINT: "Ctrl-C",
    signal.SIGTERM: "SIGTERM",
    signal.SIGHUP: "SIGHUP, as its terminal was closed",
    signal.SIGUSR1: "SIGUSR1",
}
"""The signals that ask a process to end, and what they are called; the exit code is 128 more."""

NO_MEMORY = "failed to map segment"
"""Words of an ImportError if the addresses of a process are limited."""

PATIENCE_SECONDS = 5
"""How long threads and exit functions of libraries may take, before the process is ended."""


_ending = Event()
"""Set when a signal has unwound the stack."""


class EndedError(KeyboardInterrupt):
    """One of `ENDINGS` was received."""

    def __init__(self, number: int):
        super().__init__()
        self.number = number


def run_command(module: str, after: str) -> None:
    """Import a command's module and call its `main`.

    On a signal of `ENDINGS` the stack is unwound, so that what a run has saved stays whole, and one
    line says what happened and `after`, what follows from it. A second signal ends the process at
    once.
    """
    answer_signals()
    try:
        import_module(module).main()
    except KeyboardInterrupt as error:
        _ending.set()
        number = error.number if isinstance(error, EndedError) else signal.SIGINT
        told = f"{Path(sys.argv[0]).name}: interrupted by {ENDINGS[signal.Signals(number)]}{after}"
        with suppress(OSError):
            print(told, file=sys.stderr, flush=True)
        for child in active_children():
            child.terminate()
        _later(PATIENCE_SECONDS, os._exit, 128 + number)
        sys.exit(128 + number)
    except ImportError as error:
        if NO_MEMORY not in str(error):
            raise
        told = (
            f"{Path(sys.argv[0]).name}: {error}: there is not enough memory to import the program"
        )
        print(f"{told}: raise the limit (ulimit -v)", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        if not _reader_has_gone():
            raise
    finally:
        _end_output()


def _reader_has_gone() -> bool:
    """Return whether stdout is a pipe whose reader has closed it, as in `| head`: no error."""
    poll = select.poll()
    poll.register(sys.stdout, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _end_output() -> None:
    """Flush stdout, and drop what is left of it if its reader has gone."""
    if sys.stdout is None:  # closed by the shell: `>&-`
        return
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # Python flushes again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def answer_signals() -> None:
    """Raise EndedError on a signal of `ENDINGS`, and again until it has unwound the stack.

    Python ignores exceptions in some places, and libraries do where they call back. A signal that
    is ignored, as `nohup` and `&` leave it, stays so.
    """
    own, received = os.getpid(), list[int]()
    unraisable = sys.unraisablehook

    def interrupt(number: int, frame: FrameType | None) -> None:
        if received or os.getpid() != own:  # a forked process has nothing to say
            os._exit(128 + number)
        received.append(number)
        leave_terminal(number)
        _later(PATIENCE_SECONDS, insist, number)
        raise EndedError(number)

    def insist(number: int) -> None:
        if not _ending.is_set():
            received.clear()
            os.kill(own, number)

    def ignored(error: Any) -> None:
        if issubclass(error.exc_type, KeyboardInterrupt):
            # raised in a `__del__`, where no exception goes on
            _later(0.01, insist, *received)
        elif not _ending.is_set():  # else it fails because the process ends
            unraisable(error)

    for number in ENDINGS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, interrupt)
    sys.unraisablehook = ignored


def leave_terminal(number: int) -> None:
    """Discard what would be printed from now on if a signal says that the terminal is gone."""
    if number != signal.SIGHUP:
        return
    nowhere = os.open(os.devnull, os.O_RDWR)
    for output in (1, 2):
        with suppress(OSError):  # closed by the shell
            # a terminal that is gone is none to `isatty`
            if stat.S_ISCHR(os.fstat(output).st_mode):
                os.dup2(nowhere, output)


def _later(seconds: float, function: Any, *arguments: Any) -> None:
    timer = Timer(seconds, function, arguments)
    timer.daemon = True
    timer.start()
