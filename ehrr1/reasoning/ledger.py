"""Record every draft that was requested from a language model, and its cost.

The ledger is `ledger.sqlite` with the table `drafts`, one row per (sample_id, draft). Each answer
is committed before the next step, so that after a crash the same command requests only the missing
drafts. States:

    open    not requested yet, or to be requested again
    sent    requested, no answer yet (in a batch: the batch is being processed)
    done    answered; `text` may be empty, cut off or refused, see `stop_reason`
    failed  requested ATTEMPTS times without an answer; see `error`

`pending_tokens` and `pending_usd` are the maximum cost of the request that is in progress,
`unsure_tokens` and `unsure_usd` that of earlier requests of which it is unknown whether they were
charged.
"""

import sqlite3
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from ehrr1.damage import DamagedError, damaged
from ehrr1.errors import UserError
from ehrr1.reasoning.prompting import Prompt

ATTEMPTS = 3
"""Maximum number of requests per draft; the SDK's retries within one request do not count."""

FINISHED = frozenset({"end_turn", "stop_sequence"})
"""Stop reasons of complete drafts."""

Advance = Callable[[int], None]
"""A callback that takes the number of newly finished drafts, for a progress bar."""

SCHEMA = """
CREATE TABLE IF NOT EXISTS drafts (
    number INTEGER PRIMARY KEY,
    sample_id TEXT NOT NULL,
    draft INTEGER NOT NULL,
    state TEXT NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'sent', 'done', 'failed')),
    prompt TEXT,
    prompt_hash TEXT,
    cut_events INTEGER NOT NULL DEFAULT 0,
    batch_key TEXT,
    batch_id TEXT,
    sent_at TEXT,
    text TEXT,
    stop_reason TEXT,
    tokens_in INTEGER NOT NULL DEFAULT 0,
    tokens_out INTEGER NOT NULL DEFAULT 0,
    cache_write INTEGER NOT NULL DEFAULT 0,
    cache_read INTEGER NOT NULL DEFAULT 0,
    cost_usd REAL NOT NULL DEFAULT 0,
    attempts INTEGER NOT NULL DEFAULT 0,
    error TEXT,
    pending_tokens INTEGER NOT NULL DEFAULT 0,
    pending_usd REAL NOT NULL DEFAULT 0,
    unsure_tokens INTEGER NOT NULL DEFAULT 0,
    unsure_usd REAL NOT NULL DEFAULT 0,
    UNIQUE (sample_id, draft)
);
CREATE INDEX IF NOT EXISTS by_state ON drafts (state);
CREATE INDEX IF NOT EXISTS by_batch ON drafts (batch_key);
"""


SUMS = {name: name for name in ("tokens_in", "tokens_out", "cache_write", "cache_read", "cost_usd")}
SUMS |= {
    "unsure_tokens": "unsure_tokens + pending_tokens",
    "unsure_usd": "unsure_usd + pending_usd",
}
"""The sums that `Ledger.spent` returns, with their columns."""

LATER_COLUMNS = {
    "pending_tokens": "INTEGER",
    "pending_usd": "REAL",
    "unsure_tokens": "INTEGER",
    "unsure_usd": "REAL",
}
"""Columns that ledgers of version 0.1 lack, with their types."""

SETTLED = "pending_tokens = 0, pending_usd = 0"
UNSURE = (
    "unsure_tokens = unsure_tokens + pending_tokens, unsure_usd = unsure_usd + pending_usd, "
    + SETTLED
)
"""SQL for a request whose outcome is known, and for one that may have been charged."""


class DraftReply(NamedTuple):
    """The answer to a request.

    tokens_in: all tokens of the prompt, including those written to and read from the cache.
    cost_usd: US dollars for `tokens_in` and `tokens_out` together.
    """

    text: str
    stop_reason: str
    tokens_in: int
    tokens_out: int
    cache_write: int = 0
    cache_read: int = 0
    cost_usd: float = 0.0


class SentRequest(NamedTuple):
    """A request for a draft that is about to be sent.

    max_tokens, max_usd: the maximum cost, in tokens (prompt and answer) and US dollars.
    """

    sample_id: str
    draft: int
    prompt: Prompt
    max_tokens: int = 0
    max_usd: float = 0.0


class StoredDraft(NamedTuple):
    """A finished draft."""

    draft: int
    text: str
    stop_reason: str
    tokens_in: int
    tokens_out: int


class Batch(NamedTuple):
    """A batch with missing answers.

    batch_id: None if the process ended before the id was known. requests: number of drafts that are
    waiting.
    """

    key: str
    batch_id: str | None
    requests: int
    sent_at: datetime


class Ledger:
    """The SQLite ledger of a run.

    Only one process writes at a time, which the lock of the run's folder ensures.
    """

    def __init__(self, path: Path):
        self.path = path
        self.connection = sqlite3.connect(path)
        # A write-ahead log without shared memory also works on network file systems. FULL: answers
        # that were paid for survive a power failure.
        try:
            self.connection.execute("PRAGMA locking_mode = EXCLUSIVE")
            self.connection.execute("PRAGMA journal_mode = WAL")
            self.connection.execute("PRAGMA synchronous = FULL")
            self.connection.executescript(SCHEMA)
            self._add_columns()
            self._check()
        except sqlite3.OperationalError as error:
            self.connection.close()
            raise UserError(
                f"{path}: {error}; close what has it open (a database viewer?), and run again"
            ) from error
        except sqlite3.DatabaseError as error:
            raise self._damaged() from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.connection.close()

    def _add_columns(self) -> None:
        present = {row[1] for row in self.connection.execute("PRAGMA table_info(drafts)")}
        with self.connection:
            for name, kind in LATER_COLUMNS.items():
                if name not in present:
                    self.connection.execute(
                        f"ALTER TABLE drafts ADD COLUMN {name} {kind} NOT NULL DEFAULT 0"
                    )

    def _check(self) -> None:
        """Raise DamagedError for a database whose pages or texts are not all whole."""
        if self.connection.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
            raise self._damaged()
        try:
            for _ in self.connection.execute("SELECT * FROM drafts"):
                pass
        except sqlite3.OperationalError as error:  # a text that is not UTF-8
            raise self._damaged() from error

    def _damaged(self) -> DamagedError:
        self.connection.close()
        return damaged(
            self.path,
            "is no whole database",
            "restore a copy of it; if it is deleted, every draft is asked and paid again",
        )

    def begin(self, sample_ids: Iterable[str], drafts: int) -> None:
        """Insert a row for each draft that is not in the ledger yet, in this order.

        Drafts that a killed process had sent individually (not in a batch) are reopened, since it
        is unknown whether they were answered; their maximum cost stays counted.
        """
        rows = ((sample_id, draft) for sample_id in sample_ids for draft in range(drafts))
        with self.connection:
            self.connection.executemany(
                "INSERT OR IGNORE INTO drafts (sample_id, draft) VALUES (?, ?)", rows
            )
            self.connection.execute(
                f"UPDATE drafts SET state = 'open', {UNSURE}"
                " WHERE state = 'sent' AND batch_key IS NULL"
            )

    def wanted(self) -> dict[str, list[int]]:
        """Return the open drafts of each sample."""
        found: dict[str, list[int]] = {}
        rows = "SELECT sample_id, draft FROM drafts WHERE state = 'open' ORDER BY number"
        for sample_id, draft in self.connection.execute(rows):
            found.setdefault(sample_id, []).append(draft)
        return found

    def sent(self, requests: Sequence[SentRequest]) -> None:
        """Mark drafts as sent, in one transaction, before they are sent.

        If a draft has a request in progress already, it is unknown whether that one was charged.
        """
        with self.connection:
            self._mark_sent(requests)

    def _mark_sent(self, requests: Sequence[SentRequest]) -> None:
        self.connection.executemany(
            f"UPDATE drafts SET state = 'sent', prompt = ?, prompt_hash = ?, cut_events = ?,"
            f" sent_at = ?, {UNSURE} WHERE sample_id = ? AND draft = ?",
            [
                (one.prompt.version, one.prompt.hash, one.prompt.cut, _now(), *one[:2])
                for one in requests
            ],
        )
        self.connection.executemany(
            "UPDATE drafts SET pending_tokens = ?, pending_usd = ?"
            " WHERE sample_id = ? AND draft = ?",
            [(one.max_tokens, one.max_usd, *one[:2]) for one in requests],
        )

    def answered(self, answers: Sequence[tuple[str, int, DraftReply]]) -> None:
        """Store these (sample_id, draft, answer) as done, in one transaction."""
        with self.connection:
            self.connection.executemany(
                "UPDATE drafts SET state = 'done', attempts = attempts + 1, error = NULL,"
                " text = ?, stop_reason = ?, tokens_in = ?, tokens_out = ?,"
                f" cache_write = ?, cache_read = ?, cost_usd = ?, {SETTLED}"
                " WHERE sample_id = ? AND draft = ? AND state = 'sent'",
                [(*answer, sample_id, draft) for sample_id, draft, answer in answers],
            )

    def missed(self, drafts: Sequence[tuple[str, int, str]], *, charged: bool) -> None:
        """Record that these (sample_id, draft, reason) got no answer.

        A draft is reopened, or marked as failed after `ATTEMPTS` requests. `charged`: the requests
        may have been charged.
        """
        with self.connection:
            self.connection.executemany(
                "UPDATE drafts SET attempts = attempts + 1, error = ?,"
                f" batch_key = NULL, batch_id = NULL, {UNSURE if charged else SETTLED},"
                f" state = CASE WHEN attempts + 1 < {ATTEMPTS} THEN 'open' ELSE 'failed' END"
                " WHERE sample_id = ? AND draft = ? AND state = 'sent'",
                [(reason, sample_id, draft) for sample_id, draft, reason in drafts],
            )

    def reopen(self, sample_id: str, draft: int, *, charged: bool) -> None:
        """Reopen a draft whose request ended with the run; `charged` as in `missed`."""
        with self.connection:
            self.connection.execute(
                f"UPDATE drafts SET state = 'open', {UNSURE if charged else SETTLED}"
                " WHERE sample_id = ? AND draft = ?",
                (sample_id, draft),
            )

    def put_in_batch(self, key: str, requests: Sequence[SentRequest]) -> None:
        """Mark these drafts as sent with the batch `key`, which is about to be created."""
        with self.connection:
            self._mark_sent(requests)
            self.connection.executemany(
                "UPDATE drafts SET batch_key = ? WHERE sample_id = ? AND draft = ?",
                [(key, *one[:2]) for one in requests],
            )

    def batch_created(self, key: str, batch_id: str) -> None:
        """Store the id of a batch."""
        with self.connection:
            self.connection.execute(
                "UPDATE drafts SET batch_id = ? WHERE batch_key = ?", (batch_id, key)
            )

    def batch_lost(self, key: str) -> None:
        """Reopen the drafts of a batch that was never created."""
        with self.connection:
            self.connection.execute(
                f"UPDATE drafts SET state = 'open', batch_key = NULL, {SETTLED}"
                " WHERE batch_key = ? AND state = 'sent'",
                (key,),
            )

    def batches(self) -> list[Batch]:
        """Return the batches with drafts that are waiting for answers, oldest first."""
        rows = (
            "SELECT batch_key, batch_id, count(*), min(sent_at) FROM drafts WHERE state = 'sent'"
            " AND batch_key IS NOT NULL GROUP BY batch_key ORDER BY min(number)"
        )
        return [
            Batch(key, batch_id, count, datetime.fromisoformat(at))
            for key, batch_id, count, at in self.connection.execute(rows)
        ]

    def batch_ids(self) -> set[str]:
        """Return the ids of all batches in the ledger."""
        rows = "SELECT DISTINCT batch_id FROM drafts WHERE batch_id IS NOT NULL"
        return {batch_id for (batch_id,) in self.connection.execute(rows)}

    def waiting(self, key: str) -> dict[int, tuple[str, int]]:
        """Return the unanswered drafts of a batch, keyed by their number in the ledger."""
        rows = "SELECT number, sample_id, draft FROM drafts WHERE batch_key = ? AND state = 'sent'"
        return {number: (s, d) for number, s, d in self.connection.execute(rows, (key,))}

    def pending(self, sample_id: str, draft: int) -> tuple[str, int, float]:
        """Return prompt hash, maximum tokens and maximum US dollars of a request in progress."""
        rows = (
            "SELECT prompt_hash, pending_tokens, pending_usd FROM drafts"
            " WHERE sample_id = ? AND draft = ?"
        )
        prompt_hash, tokens, usd = self.connection.execute(rows, (sample_id, draft)).fetchone()
        return prompt_hash, tokens, usd

    def drafts(self, sample_id: str) -> list[StoredDraft]:
        """Return the finished drafts of a sample in order."""
        rows = (
            "SELECT draft, text, stop_reason, tokens_in, tokens_out FROM drafts"
            " WHERE sample_id = ? AND state = 'done' ORDER BY draft"
        )
        return [StoredDraft(*row) for row in self.connection.execute(rows, (sample_id,))]

    def prompts(self) -> dict[str, int]:
        """Return the number of answered drafts for each version of the prompt."""
        rows = "SELECT prompt, count(*) FROM drafts WHERE state = 'done' GROUP BY prompt"
        return dict(self.connection.execute(rows))

    def states(self) -> dict[str, int]:
        """Return the number of drafts in each state."""
        found = dict.fromkeys(("open", "sent", "done", "failed"), 0)
        return found | dict(
            self.connection.execute("SELECT state, count(*) FROM drafts GROUP BY state")
        )

    def spent(self) -> dict[str, float | int]:
        """Return the sums of tokens and US dollars over all answers.

        `unsure_tokens` and `unsure_usd` are the maximum for requests without an answer that may
        have been charged, including those that are in progress.
        """
        sums = ", ".join(f"total({column})" for column in SUMS.values())
        found = self.connection.execute(f"SELECT {sums} FROM drafts").fetchone()
        return {
            name: round(value, 6) if name.endswith("_usd") else int(value)
            for name, value in zip(SUMS, found, strict=True)
        }

    def cut(self) -> dict[str, int]:
        """Return the number of samples whose records were cut to fit, and of the events removed."""
        each = "SELECT max(cut_events) AS cut FROM drafts GROUP BY sample_id HAVING cut > 0"
        found = self.connection.execute(f"SELECT count(*), total(cut) FROM ({each})").fetchone()
        return {"cut_samples": found[0], "cut_events": int(found[1])}

    def errors(self) -> dict[str, int]:
        """Return the number of failed drafts for each reason."""
        rows = "SELECT error, count(*) FROM drafts WHERE state = 'failed' GROUP BY error"
        return dict(self.connection.execute(rows))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
