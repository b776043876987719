"""Chains by language models for `benchmarks.chaos`: endpoints with faults, and kills.

A server on this machine answers as OpenAI's or Anthropic's do (`tests.chat_server`,
`tests.messages_server`). A random share of the requests is rate-limited, answered with an error,
late, cut, no JSON, no message, truncated or refused; sometimes a first server refuses all. The
command is killed up to three times, then it runs to its end. WrongError says what is not as it
must be:

    lost      a draft has neither an answer nor as many attempts as it may have
    doubled   an answer that was there has been paid for again, or something is left behind
    unequal   an answer is another than that of an undisturbed server, or sums differ
    stuck     the same command does not go on
"""

import json
import os
import random
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import cache, partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import anthropic  # noqa: F401 (so that each fork has it)
import openai  # noqa: F401

from benchmarks.chaos_kills import KILLED, left_beside, one_line
from benchmarks.chaos_world import WrongError, arguments_of, at_step, die, forked
from ehrr1.reasoning.ledger import ATTEMPTS
from tests.chat_server import ChatServer
from tests.messages_server import NAMES, Faults, MessagesServer
from tests.test_writers import chain

WRITERS = {
    "OpenAI": (ChatServer, ("chains=openai",)),
    "Anthropic": (MessagesServer, ("chains=anthropic",)),
    "Anthropic, batches": (
        MessagesServer,
        ("chains=anthropic", "chains.batches=true", "chains.batch_size=10"),
    ),
}
"""Writers with the server that they ask and their settings."""

CONCURRENCY = 2
REFUSALS = (400, 401, 403, 404)
SUMS = ("tokens_in", "tokens_out", "cache_read", "cost_usd")
KEYS = {"OPENAI_API_KEY": "test", "ANTHROPIC_API_KEY": "test"}


def kill_writer(writer: str, root: Path, whole: Path) -> int:
    """Write chains while faults and kills happen; return the number of kills."""
    rates = {name: random.uniform(0, 0.08) for name in NAMES} | {"slow": random.uniform(0, 0.01)}
    if random.random() < 0.25:
        with server(writer, Faults(), status=random.choice(REFUSALS)) as (url, _):
            code, said = forked(words(writer, root, whole, url), keys)
            one_line(code, said)
    with server(writer, Faults(**rates), seed=random.randrange(10**6)) as (url, pipe):
        own, kills = words(writer, root, whole, url), 0
        for _ in range(random.randint(0, 3)):
            if random.random() < 0.5:
                code, _ = forked(own, keys, random.uniform(0.3, 6))
            else:
                code, _ = forked(own, partial(dies, random.randint(1, 150), root))
            kills += code == KILLED
            time.sleep(0.1)  # what was on its way has arrived
        code, said = forked(own, keys)
        if code:
            raise WrongError("stuck", f"exit code {code}: {said[-500:]}")
        pipe.send(None)
        judge(writer, root / "smoke" / "chains", whole, kills, pipe.recv())
    return kills


def judge(writer: str, folder: Path, whole: Path, kills: int, served: int) -> None:
    """Raise WrongError if the chains of a folder are not as they must be.

    served: number of answers that the server has sent whole.
    """
    found, expected = drafts(folder), undisturbed(writer, whole)
    done = [row for row in found if row["state"] == "done"]
    if len(found) != len(expected) or any(
        row["state"] != "done" and (row["state"], row["attempts"]) != ("failed", ATTEMPTS)
        for row in found
    ):
        raise WrongError("lost", f"{len(found)} drafts of {len(expected)}, {len(done)} done")
    if "batches" not in writer and not 0 <= served - len(done) <= CONCURRENCY * kills:
        raise WrongError("doubled", f"{served} answers for {len(done)} drafts and {kills} kills")
    if left := left_beside(folder):
        raise WrongError("doubled", f"left behind: {', '.join(left)}")
    for row in done:
        if row["stop_reason"] == "end_turn" and row["text"] != expected[row["number"]]:
            raise WrongError("unequal", f"draft {row['number']}")
    metrics = json.loads((folder / "metrics.json").read_text())
    for name in SUMS:
        if abs(metrics[name] - sum(row[name] for row in found)) > 1e-5:
            raise WrongError("unequal", f"the sum of {name}")


@cache
def undisturbed(writer: str, whole: Path) -> dict[int, str]:
    """Return the drafts that a server without faults writes."""
    root = whole.parent / "undisturbed" / writer.replace(", ", "-")
    shutil.rmtree(root, ignore_errors=True)
    with server(writer, Faults()) as (url, _):
        code, said = forked(words(writer, root, whole, url), keys)
    if code:
        raise SystemExit(f"{writer}: {said}")
    return {row["number"]: row["text"] for row in drafts(root / "smoke" / "chains")}


def drafts(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of a ledger."""
    with closing(sqlite3.connect(folder / "ledger.sqlite")) as connection:
        connection.row_factory = sqlite3.Row
        return [dict(row) for row in connection.execute("SELECT * FROM drafts")]


def words(writer: str, root: Path, whole: Path, url: str) -> list[str]:
    """Return the command that writes chains."""
    settings = ("model=some-model", f"base_url={url}", f"concurrency={CONCURRENCY}", "drafts=20")
    hurry = ("timeout_seconds=1", "max_retries=4", "max_tokens=500")
    if "batches" in writer:
        hurry += ("poll_seconds=0.05",)
    given = [f"chains.{setting}" for setting in settings + hurry]
    return [*arguments_of("chains", root, whole), *WRITERS[writer][1], *given]


def keys() -> None:
    """Give a command keys."""
    os.environ.update(KEYS)


def dies(number: int, root: Path) -> None:
    """Let a command with keys die before its `number`-th change of a file."""
    keys()
    at_step(number, root, die)


@contextmanager
def server(writer: str, faults: Faults, **settings: Any) -> Iterator[tuple[str, Connection]]:
    """Yield the address of a server, and a pipe that answers None with the number of its answers.

    It is a process of its own: threads would hold locks in processes that are forked from here.
    """
    ours, theirs = Pipe()
    process = os.fork()
    if process == 0:
        ours.close()
        serve(writer, faults, theirs, settings)
        os._exit(0)
    theirs.close()
    try:
        yield ours.recv(), ours
    finally:
        ours.close()
        os.waitpid(process, 0)


def serve(writer: str, faults: Faults, pipe: Connection, settings: dict[str, Any]) -> None:
    """Serve until the other end of the pipe is closed."""
    made = WRITERS[writer][0](faults, answer=chain, slow_seconds=1.5, **settings)
    with made as running:
        pipe.send(running.url)
        try:
            while pipe.recv() is None:
                pipe.send(running.served.total())
        except EOFError:
            return
