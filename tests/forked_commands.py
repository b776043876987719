"""Run commands in processes that have imported everything: `python -m tests.forked_commands`.

Each line on stdin is a JSON list of arguments of run.py; a process is forked for it, so that a
command takes a tenth of a second and not ten. The answer on stdout is a JSON object with `code`,
the exit code, and `said`, what stood on stderr.
"""

import json
import os
import sys
import tempfile
import traceback
from pathlib import Path

import ehrr1.stages  # noqa: F401
from ehrr1.cli import main

ROOT = Path(__file__).parent.parent


def run(arguments: list[str]) -> dict[str, object]:
    with tempfile.TemporaryFile("w+") as said:
        child = os.fork()
        if child == 0:
            os.dup2(said.fileno(), 2)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os._exit(code_of(arguments))
        _, status = os.waitpid(child, 0)
        said.seek(0)
        return {"code": os.waitstatus_to_exitcode(status), "said": said.read()}


def code_of(arguments: list[str]) -> int:
    """The exit code of the command, as Python would give it."""
    sys.argv = [str(ROOT / "run.py"), *arguments]
    try:
        main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stderr.flush()
    return 0


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)
