"""The ledger: states, transactions, and what survives the end of a process; the budget."""

import sqlite3
from pathlib import Path

import pytest

from ehrr1.reasoning.ledger import ATTEMPTS, Budget, DraftReply, Ledger
from ehrr1.reasoning.prompting import Prompt

PROMPT = Prompt("decision.v1", "guidelines", "record", "question")
ANSWER = DraftReply("text", "end_turn", 100, 20, 60, 30, 0.25)


def test_a_row_for_each_draft_in_order_and_each_once(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        ledger.begin(["b", "a"], 2)
        ledger.begin(["b", "a", "c"], 2)
        assert list(ledger.wanted().items()) == [("b", [0, 1]), ("a", [0, 1]), ("c", [0, 1])]
        assert ledger.states() == {"open": 6, "sent": 0, "done": 0, "failed": 0}


def test_what_is_answered_is_on_the_disk_and_what_was_only_sent_is_asked_again(
    tmp_path: Path,
) -> None:
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        ledger.begin(["a", "b", "c"], 1)
        ledger.sent("a", 0, PROMPT)
        ledger.sent("b", 0, PROMPT)
        ledger.answered([("a", 0, ANSWER)])
        ledger.sent("c", 0, PROMPT)  # the process ends here
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        assert ledger.states()["sent"] == 1
        ledger.begin(["a", "b", "c"], 1)
        assert ledger.wanted() == {"b": [0], "c": [0]}
        [draft] = ledger.drafts("a")
        assert draft == (0, "text", "end_turn", 100, 20)
        assert ledger.prompts() == {"decision.v1": 1}
    row = sqlite3.connect(tmp_path / "ledger.sqlite").execute(
        "SELECT prompt, prompt_hash, tokens_in, tokens_out, cache_write, cache_read, cost_usd,"
        " attempts FROM drafts WHERE sample_id = 'a'"
    )
    assert row.fetchone() == ("decision.v1", PROMPT.hash, 100, 20, 60, 30, 0.25, 1)


def test_a_draft_is_asked_for_a_few_times_and_then_failed_with_its_reason(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        ledger.begin(["a"], 1)
        for _ in range(ATTEMPTS):
            assert ledger.wanted() == {"a": [0]}
            ledger.sent("a", 0, PROMPT)
            ledger.missed([("a", 0, "status 529")])
        assert ledger.wanted() == {} and ledger.errors() == {"status 529": 1}
        ledger.answered([("a", 0, ANSWER)])  # too late: nothing waits for it
        assert ledger.states()["failed"] == 1 and ledger.drafts("a") == []


def test_a_batch_is_known_by_its_key_before_it_has_an_id(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        ledger.begin(["a", "b"], 1)
        ledger.put_in_batch("key", [("a", 0, PROMPT), ("b", 0, PROMPT)])
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        ledger.begin(["a", "b"], 1)
        assert ledger.wanted() == {}
        [batch] = ledger.batches()
        assert (batch.key, batch.batch_id, batch.requests) == ("key", None, 2)
        ledger.batch_created("key", "id")
        ledger.answered([("a", 0, ANSWER)])
        assert list(ledger.waiting("key").values()) == [("b", 0)]
        ledger.missed([("b", 0, "expired")])
        assert ledger.batches() == [] and ledger.wanted() == {"b": [0]}
        assert ledger.batch_ids() == {"id"}


def test_a_batch_that_was_never_created_is_open_again(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        ledger.begin(["a"], 2)
        ledger.put_in_batch("key", [("a", 1, PROMPT)])
        ledger.batch_lost("key")
        assert ledger.wanted() == {"a": [0, 1]}


@pytest.mark.parametrize(
    ("tokens", "usd", "fits"),
    [(None, None, 10), (450, None, 3), (None, 0.7, 2), (450, 0.1, 0), (129, None, 0)],
)
def test_the_budget_counts_what_is_spent_and_what_is_under_way(
    tmp_path: Path, tokens: int | None, usd: float | None, fits: int
) -> None:
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        ledger.begin(["a"], 1)
        budget = Budget(ledger, tokens, usd)
        assert sum(budget.reserve(130, 0.3) for _ in range(10)) == fits


def test_what_was_set_aside_is_replaced_by_what_was_used(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        ledger.begin(["a"], 1)
        budget = Budget(ledger, 300)
        assert budget.reserve(200) and not budget.reserve(200)
        budget.settle(200, 0.0, None)  # no answer: nothing was paid
        assert budget.reserve(200)
        budget.settle(200, 0.0, ANSWER)
        assert budget.reserve(180) and not budget.reserve(1)
        ledger.sent("a", 0, PROMPT)
        ledger.answered([("a", 0, ANSWER)])
        assert Budget(ledger, 121).reserve(1) and not Budget(ledger, 120).reserve(1)
