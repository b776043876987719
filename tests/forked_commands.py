"""Run commands in processes that have imported everything: `python -m tests.forked_commands`.

Each line on stdin is a JSON list: the folder to run in, and the arguments of run.py. A process is
forked for it, which goes through the entry of the real command and exits as Python does; it only
saves the seconds of the imports. The answer on stdout is a JSON list: exit code, stdout, stderr.
"""

import gc
import importlib
import json
import os
import pkgutil
import signal
import sys
import tempfile
from pathlib import Path

import ehrr1.cli
import ehrr1.stages
from ehrr1.__main__ import main

RUN_PY = Path(__file__).parent.parent / "run.py"
LONGEST_SECONDS = 900
"""A command that takes longer is ended by a signal."""


def become(folder: str, arguments: list[str]) -> None:
    """Be `python run.py ARGUMENTS`, called from `folder`."""
    os.chdir(folder)
    sys.argv = [str(RUN_PY), *arguments]
    # processes that it spawns import this file again
    own = sys.modules["__main__"]
    own.__file__, own.__spec__ = str(RUN_PY), None
    signal.alarm(LONGEST_SECONDS)
    main()


def import_stages() -> None:
    """Import what any command needs, so that forked processes share it."""
    for module in pkgutil.iter_modules(ehrr1.stages.__path__):
        if not module.ispkg:
            importlib.import_module(f"ehrr1.stages.{module.name}")
    gc.freeze()


def serve() -> None:
    """Answer each command; the forked processes return from here, and end."""
    import_stages()
    for line in sys.stdin:
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as said:
            child = os.fork()
            if child == 0:
                for number, file in enumerate((os.open(os.devnull, os.O_RDONLY), out, said)):
                    os.dup2(file if isinstance(file, int) else file.fileno(), number)
                become(*json.loads(line))
                return
            _, status = os.waitpid(child, 0)
            texts = []
            for file in (out, said):
                file.seek(0)
                texts.append(file.read().decode())
        print(json.dumps([os.waitstatus_to_exitcode(status), *texts]), flush=True)


if __name__ == "__main__":
    serve()
