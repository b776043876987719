"""The entry of every command: Ctrl-C is one line and exit code 130, also while Python imports."""

import os
import signal
import sys
from importlib import import_module
from pathlib import Path
from types import FrameType

INTERRUPTED = 128 + signal.SIGINT


def run_command(module: str, after: str) -> None:
    """Import a command's module and call its `main`.

    On SIGINT the stack is unwound, so that what a run has saved stays whole, and one line says
    what happened and `after`, what follows from it. A second SIGINT ends the process at once.
    """
    own, pressed = os.getpid(), list[int]()

    def interrupt(number: int, frame: FrameType | None) -> None:
        if pressed or os.getpid() != own:  # a forked process has nothing to say
            os._exit(INTERRUPTED)
        pressed.append(number)
        raise KeyboardInterrupt

    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as `nohup` and `&` leave it
        signal.signal(signal.SIGINT, interrupt)
    try:
        import_module(module).main()
    except KeyboardInterrupt:
        name = Path(sys.argv[0]).name
        print(f"{name}: interrupted by Ctrl-C{after}", file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(INTERRUPTED)  # threads and atexit functions of libraries could print or wait
