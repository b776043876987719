"""Record every draft that was requested from a language model, and its cost.

The ledger is `ledger.sqlite` with the table `drafts`, one row per (sample_id, draft). Each answer
is committed before the next step, so that after a crash the same command requests only the missing
drafts. States:

    open    not requested yet, or to be requested again
    sent    requested, no answer yet (in a batch: the batch is being processed)
    done    answered; `text` may be empty, cut off or refused, see `stop_reason`
    failed  requested ATTEMPTS times without an answer; see `error`
"""

import sqlite3
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from ehrr1.config.writers import ModelChains
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
    UNIQUE (sample_id, draft)
);
CREATE INDEX IF NOT EXISTS by_state ON drafts (state);
CREATE INDEX IF NOT EXISTS by_batch ON drafts (batch_key);
"""


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
        self.connection = sqlite3.connect(path)
        # A write-ahead log without shared memory also works on network file systems. FULL: answers
        # that were paid for survive a power failure.
        try:
            self.connection.execute("PRAGMA locking_mode = EXCLUSIVE")
            self.connection.execute("PRAGMA journal_mode = WAL")
            self.connection.execute("PRAGMA synchronous = FULL")
            self.connection.executescript(SCHEMA)
        except sqlite3.OperationalError as error:
            self.connection.close()
            raise UserError(
                f"{path}: {error}; close what has it open (a database viewer?), and run again"
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.connection.close()

    def begin(self, sample_ids: Iterable[str], drafts: int) -> None:
        """Insert a row for each draft that is not in the ledger yet, in this order.

        Drafts that a killed process had sent individually (not in a batch) are reopened, since it
        is unknown whether they were answered.
        """
        rows = ((sample_id, draft) for sample_id in sample_ids for draft in range(drafts))
        with self.connection:
            self.connection.executemany(
                "INSERT OR IGNORE INTO drafts (sample_id, draft) VALUES (?, ?)", rows
            )
            self.connection.execute(
                "UPDATE drafts SET state = 'open' WHERE state = 'sent' AND batch_key IS NULL"
            )

    def wanted(self) -> dict[str, list[int]]:
        """Return the open drafts of each sample."""
        found: dict[str, list[int]] = {}
        rows = "SELECT sample_id, draft FROM drafts WHERE state = 'open' ORDER BY number"
        for sample_id, draft in self.connection.execute(rows):
            found.setdefault(sample_id, []).append(draft)
        return found

    def sent(self, sample_id: str, draft: int, prompt: Prompt) -> None:
        """Mark a draft as sent.

        The change is committed with the next answer; a run that is killed before that requests the
        draft again in either case.
        """
        self.connection.execute(
            "UPDATE drafts SET state = 'sent', prompt = ?, prompt_hash = ?, cut_events = ?,"
            " sent_at = ? WHERE sample_id = ? AND draft = ?",
            (prompt.version, prompt.hash, prompt.cut, _now(), sample_id, draft),
        )

    def answered(self, answers: Sequence[tuple[str, int, DraftReply]]) -> None:
        """Store these (sample_id, draft, answer) as done, in one transaction."""
        with self.connection:
            self.connection.executemany(
                "UPDATE drafts SET state = 'done', attempts = attempts + 1, error = NULL,"
                " text = ?, stop_reason = ?, tokens_in = ?, tokens_out = ?,"
                " cache_write = ?, cache_read = ?, cost_usd = ?"
                " WHERE sample_id = ? AND draft = ? AND state = 'sent'",
                [(*answer, sample_id, draft) for sample_id, draft, answer in answers],
            )

    def missed(self, drafts: Sequence[tuple[str, int, str]]) -> None:
        """Record that these (sample_id, draft, reason) got no answer.

        A draft is reopened, or marked as failed after `ATTEMPTS` requests.
        """
        with self.connection:
            self.connection.executemany(
                "UPDATE drafts SET attempts = attempts + 1, error = ?,"
                " batch_key = NULL, batch_id = NULL,"
                f" state = CASE WHEN attempts + 1 < {ATTEMPTS} THEN 'open' ELSE 'failed' END"
                " WHERE sample_id = ? AND draft = ? AND state = 'sent'",
                [(reason, sample_id, draft) for sample_id, draft, reason in drafts],
            )

    def put_in_batch(self, key: str, drafts: Sequence[tuple[str, int, Prompt]]) -> None:
        """Mark these drafts as sent with the batch `key`, which is about to be created."""
        for draft in drafts:
            self.sent(*draft)
        with self.connection:
            self.connection.executemany(
                "UPDATE drafts SET batch_key = ? WHERE sample_id = ? AND draft = ?",
                [(key, sample_id, draft) for sample_id, draft, _ in drafts],
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
                "UPDATE drafts SET state = 'open', batch_key = NULL"
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
        """Return the sums of tokens and US dollars over all answers."""
        names = ("tokens_in", "tokens_out", "cache_write", "cache_read", "cost_usd")
        sums = ", ".join(f"total({name})" for name in names)
        found = self.connection.execute(f"SELECT {sums} FROM drafts").fetchone()
        return {
            name: round(value, 6) if name == "cost_usd" else int(value)
            for name, value in zip(names, found, strict=True)
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


class Budget:
    """The remaining budget, from which each request reserves its maximum cost before it is sent."""

    def __init__(self, ledger: Ledger, tokens: int | None, usd: float | None = None):
        spent = ledger.spent()
        self.tokens, self.usd = tokens, usd
        self.used_tokens: float = spent["tokens_in"] + spent["tokens_out"]
        self.used_usd: float = spent["cost_usd"]

    def reserve(self, tokens: float, usd: float = 0.0) -> bool:
        """Reserve tokens and US dollars, and return whether the budget allows it.

        If it does not, nothing is reserved.
        """
        if self.tokens is not None and self.used_tokens + tokens > self.tokens:
            return False
        if self.usd is not None and self.used_usd + usd > self.usd:
            return False
        self.used_tokens += tokens
        self.used_usd += usd
        return True

    def settle(self, tokens: float, usd: float, answer: DraftReply | None) -> None:
        """Replace the reservation of a finished request by its actual use."""
        self.used_tokens -= tokens
        self.used_usd -= usd
        if answer is not None:
            self.used_tokens += answer.tokens_in + answer.tokens_out
            self.used_usd += answer.cost_usd


def over_budget(ledger: Ledger, settings: ModelChains) -> UserError:
    """Return the error for a spent budget, with progress, spending and the remedy."""
    states, spent = ledger.states(), ledger.spent()
    budget = {
        n: v for n, v in settings.plain().items() if n.startswith("budget_") and v is not None
    }
    budgets = ", ".join(f"chains.{name}={value}" for name, value in budget.items())
    tokens = spent["tokens_in"] + spent["tokens_out"]
    return UserError(
        f"{budgets}: {states['done']} of {sum(states.values())} drafts are written, "
        f"{states['open'] + states['sent']} are left; {tokens} tokens and {spent['cost_usd']:.2f} "
        "dollars are spent, and the next request might exceed it. All drafts are saved: raise "
        f"{' or '.join(f'chains.{name}' for name in budget)}, and the same command continues"
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
