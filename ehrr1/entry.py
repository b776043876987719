"""The entry of every command: Ctrl-C is one line and exit code 130, also while Python imports."""

import os
import select
import signal
import sys
from importlib import import_module
from multiprocessing import active_children
from pathlib import Path
from threading import Timer
from types import FrameType
from typing import Any

INTERRUPTED = 128 + signal.SIGINT

PATIENCE_SECONDS = 5
"""How long threads and exit functions of libraries may take, before the process is ended."""


def run_command(module: str, after: str) -> None:
    """Import a command's module and call its `main`.

    On SIGINT the stack is unwound, so that what a run has saved stays whole, and one line says
    what happened and `after`, what follows from it. A second SIGINT ends the process at once.
    """
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as `nohup` and `&` leave it
        answer_interrupts()
    try:
        import_module(module).main()
    except KeyboardInterrupt:
        name = Path(sys.argv[0]).name
        print(f"{name}: interrupted by Ctrl-C{after}", file=sys.stderr, flush=True)
        for child in active_children():
            child.terminate()
        _later(PATIENCE_SECONDS, os._exit, INTERRUPTED)
        sys.exit(INTERRUPTED)
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


def answer_interrupts() -> None:
    """Raise KeyboardInterrupt on SIGINT, once, and again where Python has ignored it."""
    own, pressed = os.getpid(), list[int]()
    unraisable = sys.unraisablehook

    def interrupt(number: int, frame: FrameType | None) -> None:
        if pressed or os.getpid() != own:  # a forked process has nothing to say
            os._exit(INTERRUPTED)
        pressed.append(number)
        raise KeyboardInterrupt

    def ignored(error: Any) -> None:
        if error.exc_type is not KeyboardInterrupt:
            unraisable(error)
        else:  # raised in a `__del__`, where no exception goes on
            pressed.clear()
            _later(0.01, os.kill, own, signal.SIGINT)

    signal.signal(signal.SIGINT, interrupt)
    sys.unraisablehook = ignored


def _later(seconds: float, function: Any, *arguments: Any) -> None:
    timer = Timer(seconds, function, arguments)
    timer.daemon = True
    timer.start()
