"""Run commands in processes that have imported everything: `python -m tests.forked_commands`.

Each line on stdin is a JSON object: `script` (run.py or sweep.py), `arguments`, `folder` to run in,
and `environment`, more variables. A process is forked for it, which goes through the entry of the
real command and exits as Python does; it only saves the seconds of the imports. The answer on
stdout is a JSON list: exit code, stdout, stderr.

With `log`, the path of a file for stderr, the answer comes at once: the process's id. A line with
only this id is answered by its exit code, or null while it runs.

The processes of a group that the command starts (`parallel.start`) are forked as well.
"""

import gc
import importlib
import json
import os
import pkgutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_only

import ehrr1.cli
import ehrr1.stages
from ehrr1 import parallel
from ehrr1.__main__ import main, sweep

ROOT = Path(__file__).parent.parent
ENTRIES = {"run.py": main, "sweep.py": sweep}
LONGEST_SECONDS = 900
"""A command that takes longer is ended by a signal."""


def become(folder: str, arguments: list[str], script: str = "run.py") -> None:
    """Be `python run.py ARGUMENTS`, called from `folder`."""
    os.chdir(folder)
    sys.argv = [str(ROOT / script), *arguments]
    # processes that it spawns import this file again
    own = sys.modules["__main__"]
    own.__file__, own.__spec__ = sys.argv[0], None
    signal.alarm(LONGEST_SECONDS)
    Rank.fork_by(server_of_ranks())
    ENTRIES[script]()


def server_of_ranks() -> socket.socket:
    """Start a process that forks others while it has no threads yet; return the way to ask it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.fork() == 0:
        ours.close()
        serve_ranks(theirs)
    theirs.close()
    return ours


def serve_ranks(asked: socket.socket) -> None:
    """Fork a process for each environment, and tell how a process ended; ends with who asks."""
    while message := socket.recv_fds(asked, 1 << 20, 3):
        text, files, _, _ = message
        if not text:
            os._exit(0)
        wanted = json.loads(text)
        if isinstance(wanted, int):
            process, status = os.waitpid(wanted, os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if process else None
        elif (answer := os.fork()) == 0:
            asked.close()
            be_rank(wanted, *files)
        for file in files:
            os.close(file)
        asked.send(json.dumps(answer).encode())


def be_rank(wanted: dict[str, Any], alive: int, out: int, said: int) -> None:
    """Be one process of a group, from its command line to its exit."""
    os.setsid()
    os.dup2(out, 1)
    os.dup2(said, 2)
    os.environ.clear()
    os.environ.update(wanted["environment"] | {parallel.PARENT: str(alive)})
    rank_zero_only.rank = int(os.environ["RANK"])  # noted when Lightning was imported
    sys.argv = wanted["command"][1:]
    code = 0
    try:
        main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    threading._shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class Rank:
    """A forked process with what `parallel.start` asks of a `subprocess.Popen`."""

    server: socket.socket

    @classmethod
    def fork_by(cls, server: socket.socket) -> None:
        cls.server = server
        setattr(parallel, "subprocess", SimpleNamespace(Popen=cls))  # noqa: B010

    def __init__(
        self,
        command: Sequence[str],
        env: dict[str, str],
        pass_fds: Sequence[int],
        stdout: Any,
        stderr: Any,
        start_new_session: bool,
    ) -> None:
        wanted = json.dumps({"command": command, "environment": env}).encode()
        files = (stdout.fileno(), stderr.fileno()) if stdout else (1, 2)
        socket.send_fds(self.server, [wanted], [*pass_fds, *files])
        self.process = json.loads(self.server.recv(100))
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.server.send(json.dumps(self.process).encode())
            self.returncode = json.loads(self.server.recv(100))
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.process, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def import_stages() -> None:
    """Import what any command needs, so that forked processes share it."""
    importlib.import_module("ehrr1.sweep_cli")
    for module in pkgutil.iter_modules(ehrr1.stages.__path__):
        if not module.ispkg:
            importlib.import_module(f"ehrr1.stages.{module.name}")
    gc.freeze()


def serve() -> None:
    """Answer each command; the forked processes return from here, and end."""
    import_stages()
    for line in sys.stdin:
        wanted = json.loads(line)
        if isinstance(wanted, int):
            process, status = os.waitpid(wanted, os.WNOHANG)
            print(json.dumps(os.waitstatus_to_exitcode(status) if process else None), flush=True)
            continue
        log = wanted["log"]
        to_keep = open(log, "wb") if log else tempfile.TemporaryFile()  # noqa: SIM115
        with tempfile.TemporaryFile() as out, to_keep as said:
            child = os.fork()
            if child == 0:
                for number, file in enumerate((os.open(os.devnull, os.O_RDONLY), out, said)):
                    os.dup2(file if isinstance(file, int) else file.fileno(), number)
                if log:
                    os.setsid()
                    # as by a terminal, also where the tests run in the background
                    signal.signal(signal.SIGINT, signal.default_int_handler)
                os.environ.update(wanted["environment"])
                become(wanted["folder"], wanted["arguments"], wanted["script"])
                return
            if log:
                print(child, flush=True)
                continue
            _, status = os.waitpid(child, 0)
            texts = []
            for file in (out, said):
                file.seek(0)
                texts.append(file.read().decode())
        print(json.dumps([os.waitstatus_to_exitcode(status), *texts]), flush=True)


if __name__ == "__main__":
    serve()
