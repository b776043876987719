"""The ledger of a run that pays for its chains: every draft that was asked for, and what it cost.

`ledger.sqlite`, table `drafts`, a row a (sample_id, draft). Each answer is on the disk before the
next thing happens: whatever kills the process, the same command asks only for what is not there.

    open    not asked yet, or to be asked again
    sent    asked; the answer is not here (with a batch: the batch is worked on)
    done    answered; `text` may be empty, cut off or refused, as `stop_reason` says
    failed  asked ATTEMPTS times without an answer; `error` says why
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
"""How often a draft is asked for; each time the SDK retries by itself."""

FINISHED = frozenset({"end_turn", "stop_sequence"})
"""Stop reasons of a draft that was written to its end."""

Advance = Callable[[int], None]
"""Told how many more drafts are done, for a progress bar."""

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
    """What came back. `tokens_in` are all tokens of the prompt, those written to and read from the
    cache among them; `cost_usd` is what they cost together with `tokens_out`."""

    text: str
    stop_reason: str
    tokens_in: int
    tokens_out: int
    cache_write: int = 0
    cache_read: int = 0
    cost_usd: float = 0.0


class StoredDraft(NamedTuple):
    """A draft that is done."""

    draft: int
    text: str
    stop_reason: str
    tokens_in: int
    tokens_out: int


class Batch(NamedTuple):
    """A batch whose answers are not all here. `batch_id` is None where the process ended before
    it was told; `requests` counts the rows that wait."""

    key: str
    batch_id: str | None
    requests: int
    sent_at: datetime


class Ledger:
    """One process writes at a time: the lock of the run's folder sees to it."""

    def __init__(self, path: Path):
        self.connection = sqlite3.connect(path)
        # a write-ahead log without shared memory works on network disks too; FULL: what was paid
        # for survives a power cut
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
        """A row for each draft that is not in the ledger yet, in this order.

        What a process that was killed had sent by itself (not in a batch) is open again: nobody can
        tell whether it was answered.
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
        """The open drafts of each sample."""
        found: dict[str, list[int]] = {}
        rows = "SELECT sample_id, draft FROM drafts WHERE state = 'open' ORDER BY number"
        for sample_id, draft in self.connection.execute(rows):
            found.setdefault(sample_id, []).append(draft)
        return found

    def sent(self, sample_id: str, draft: int, prompt: Prompt) -> None:
        """The draft is asked for now. On the disk with the next answer: until then a killed run
        asks again in either case."""
        self.connection.execute(
            "UPDATE drafts SET state = 'sent', prompt = ?, prompt_hash = ?, cut_events = ?,"
            " sent_at = ? WHERE sample_id = ? AND draft = ?",
            (prompt.version, prompt.hash, prompt.cut, _now(), sample_id, draft),
        )

    def answered(self, answers: Sequence[tuple[str, int, DraftReply]]) -> None:
        """These (sample_id, draft, answer) are done, all in one transaction."""
        with self.connection:
            self.connection.executemany(
                "UPDATE drafts SET state = 'done', attempts = attempts + 1, error = NULL,"
                " text = ?, stop_reason = ?, tokens_in = ?, tokens_out = ?,"
                " cache_write = ?, cache_read = ?, cost_usd = ?"
                " WHERE sample_id = ? AND draft = ? AND state = 'sent'",
                [(*answer, sample_id, draft) for sample_id, draft, answer in answers],
            )

    def missed(self, drafts: Sequence[tuple[str, int, str]]) -> None:
        """These (sample_id, draft, reason) got no answer: they are asked again, or have failed."""
        with self.connection:
            self.connection.executemany(
                "UPDATE drafts SET attempts = attempts + 1, error = ?,"
                " batch_key = NULL, batch_id = NULL,"
                f" state = CASE WHEN attempts + 1 < {ATTEMPTS} THEN 'open' ELSE 'failed' END"
                " WHERE sample_id = ? AND draft = ? AND state = 'sent'",
                [(reason, sample_id, draft) for sample_id, draft, reason in drafts],
            )

    def put_in_batch(self, key: str, drafts: Sequence[tuple[str, int, Prompt]]) -> None:
        """These drafts are sent with the batch `key`, which is about to be created."""
        for draft in drafts:
            self.sent(*draft)
        with self.connection:
            self.connection.executemany(
                "UPDATE drafts SET batch_key = ? WHERE sample_id = ? AND draft = ?",
                [(key, sample_id, draft) for sample_id, draft, _ in drafts],
            )

    def batch_created(self, key: str, batch_id: str) -> None:
        with self.connection:
            self.connection.execute(
                "UPDATE drafts SET batch_id = ? WHERE batch_key = ?", (batch_id, key)
            )

    def batch_lost(self, key: str) -> None:
        """The batch was never created: its drafts are open again."""
        with self.connection:
            self.connection.execute(
                "UPDATE drafts SET state = 'open', batch_key = NULL"
                " WHERE batch_key = ? AND state = 'sent'",
                (key,),
            )

    def batches(self) -> list[Batch]:
        """Batches with drafts that wait for their answers, oldest first."""
        rows = (
            "SELECT batch_key, batch_id, count(*), min(sent_at) FROM drafts WHERE state = 'sent'"
            " AND batch_key IS NOT NULL GROUP BY batch_key ORDER BY min(number)"
        )
        return [
            Batch(key, batch_id, count, datetime.fromisoformat(at))
            for key, batch_id, count, at in self.connection.execute(rows)
        ]

    def batch_ids(self) -> set[str]:
        """Every batch that any draft came from or waits for."""
        rows = "SELECT DISTINCT batch_id FROM drafts WHERE batch_id IS NOT NULL"
        return {batch_id for (batch_id,) in self.connection.execute(rows)}

    def waiting(self, key: str) -> dict[int, tuple[str, int]]:
        """The drafts of a batch that are not answered, each by its number in the ledger."""
        rows = "SELECT number, sample_id, draft FROM drafts WHERE batch_key = ? AND state = 'sent'"
        return {number: (s, d) for number, s, d in self.connection.execute(rows, (key,))}

    def drafts(self, sample_id: str) -> list[StoredDraft]:
        """What is written for a sample, in the order of its drafts."""
        rows = (
            "SELECT draft, text, stop_reason, tokens_in, tokens_out FROM drafts"
            " WHERE sample_id = ? AND state = 'done' ORDER BY draft"
        )
        return [StoredDraft(*row) for row in self.connection.execute(rows, (sample_id,))]

    def prompts(self) -> dict[str, int]:
        """How many answered drafts were asked with each version of a prompt."""
        rows = "SELECT prompt, count(*) FROM drafts WHERE state = 'done' GROUP BY prompt"
        return dict(self.connection.execute(rows))

    def states(self) -> dict[str, int]:
        """How many drafts are in each state."""
        found = dict.fromkeys(("open", "sent", "done", "failed"), 0)
        return found | dict(
            self.connection.execute("SELECT state, count(*) FROM drafts GROUP BY state")
        )

    def spent(self) -> dict[str, float | int]:
        """Tokens and dollars of all answers."""
        names = ("tokens_in", "tokens_out", "cache_write", "cache_read", "cost_usd")
        sums = ", ".join(f"total({name})" for name in names)
        found = self.connection.execute(f"SELECT {sums} FROM drafts").fetchone()
        return {
            name: round(value, 6) if name == "cost_usd" else int(value)
            for name, value in zip(names, found, strict=True)
        }

    def cut(self) -> dict[str, int]:
        """How many samples' records were cut to fit, and by how many events altogether."""
        each = "SELECT max(cut_events) AS cut FROM drafts GROUP BY sample_id HAVING cut > 0"
        found = self.connection.execute(f"SELECT count(*), total(cut) FROM ({each})").fetchone()
        return {"cut_samples": found[0], "cut_events": int(found[1])}

    def errors(self) -> dict[str, int]:
        """How many failed drafts have each reason."""
        rows = "SELECT error, count(*) FROM drafts WHERE state = 'failed' GROUP BY error"
        return dict(self.connection.execute(rows))


class Budget:
    """What may still be spent. A request reserves what it can cost at most before it is sent."""

    def __init__(self, ledger: Ledger, tokens: int | None, usd: float | None = None):
        spent = ledger.spent()
        self.tokens, self.usd = tokens, usd
        self.used_tokens: float = spent["tokens_in"] + spent["tokens_out"]
        self.used_usd: float = spent["cost_usd"]

    def reserve(self, tokens: float, usd: float = 0.0) -> bool:
        """Set so much aside; False, and nothing is, where it goes over the budget."""
        if self.tokens is not None and self.used_tokens + tokens > self.tokens:
            return False
        if self.usd is not None and self.used_usd + usd > self.usd:
            return False
        self.used_tokens += tokens
        self.used_usd += usd
        return True

    def settle(self, tokens: float, usd: float, answer: DraftReply | None) -> None:
        """A request has ended: what it used takes the place of what was reserved for it."""
        self.used_tokens -= tokens
        self.used_usd -= usd
        if answer is not None:
            self.used_tokens += answer.tokens_in + answer.tokens_out
            self.used_usd += answer.cost_usd


def over_budget(ledger: Ledger, settings: ModelChains) -> UserError:
    """The budget is spent: what there is, what is left, and how to go on."""
    states, spent = ledger.states(), ledger.spent()
    budget = {
        n: v for n, v in settings.plain().items() if n.startswith("budget_") and v is not None
    }
    budgets = ", ".join(f"chains.{name}={value}" for name, value in budget.items())
    tokens = spent["tokens_in"] + spent["tokens_out"]
    return UserError(
        f"{budgets}: {states['done']} of {sum(states.values())} drafts are written, "
        f"{states['open'] + states['sent']} are left; {tokens} tokens and {spent['cost_usd']:.2f} "
        "dollars are spent, and the next request might go over it. All is saved: raise "
        f"{' or '.join(f'chains.{name}' for name in budget)}, and the same command goes on"
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
