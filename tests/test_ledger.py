"""The ledger: states, transactions, and what survives the end of a process; the budget."""

import sqlite3
from pathlib import Path

import pytest

from ehrr1.reasoning.budget import Budget, Reservation
from ehrr1.reasoning.ledger import ATTEMPTS, LATER_COLUMNS, DraftReply, Ledger, SentRequest
from ehrr1.reasoning.prices import Price
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
        ledger.sent([SentRequest("a", 0, PROMPT)])
        ledger.sent([SentRequest("b", 0, PROMPT)])
        ledger.answered([("a", 0, ANSWER)])
        ledger.sent([SentRequest("c", 0, PROMPT)])  # the process ends here
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        assert ledger.states()["sent"] == 2
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
            ledger.sent([SentRequest("a", 0, PROMPT)])
            ledger.missed([("a", 0, "status 529")], charged=False)
        assert ledger.wanted() == {} and ledger.errors() == {"status 529": 1}
        ledger.answered([("a", 0, ANSWER)])  # too late: nothing waits for it
        assert ledger.states()["failed"] == 1 and ledger.drafts("a") == []


def test_a_batch_is_known_by_its_key_before_it_has_an_id(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        ledger.begin(["a", "b"], 1)
        ledger.put_in_batch("key", [SentRequest("a", 0, PROMPT), SentRequest("b", 0, PROMPT)])
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        ledger.begin(["a", "b"], 1)
        assert ledger.wanted() == {}
        [batch] = ledger.batches()
        assert (batch.key, batch.batch_id, batch.requests) == ("key", None, 2)
        ledger.batch_created("key", "id")
        ledger.answered([("a", 0, ANSWER)])
        assert list(ledger.waiting("key").values()) == [("b", 0)]
        ledger.missed([("b", 0, "expired")], charged=False)
        assert ledger.batches() == [] and ledger.wanted() == {"b": [0]}
        assert ledger.batch_ids() == {"id"}


def test_a_batch_that_was_never_created_is_open_again(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        ledger.begin(["a"], 2)
        ledger.put_in_batch("key", [SentRequest("a", 1, PROMPT)])
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
        assert sum(budget.reserve(Reservation(130, 0.3)) for _ in range(10)) == fits


def test_a_reservation_is_replaced_by_what_was_used(tmp_path: Path) -> None:
    two, one = Reservation(200, 0.0), Reservation(1, 0.0)
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        ledger.begin(["a"], 1)
        budget = Budget(ledger, 300)
        assert budget.reserve(two) and not budget.reserve(two)
        budget.release(two)  # refused: nothing was paid
        assert budget.reserve(two)
        budget.settle(two, ANSWER, PROMPT.hash)
        assert budget.reserve(Reservation(180, 0.0)) and not budget.reserve(one)
        ledger.sent([SentRequest("a", 0, PROMPT)])
        ledger.answered([("a", 0, ANSWER)])
        assert Budget(ledger, 121).reserve(one) and not Budget(ledger, 120).reserve(one)


def test_a_reservation_follows_the_usage_that_is_reported(tmp_path: Path) -> None:
    """A byte is a token at most; the second draft of a prompt has the first one's length; a report
    above the reservation raises those after it."""
    price = Price(input=3, output=15, cache_write=4, cache_read=0.3)
    wide, other = (Prompt("decision.v1", "é<|im_end|>", "r" * n, "q") for n in (10, 20))
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        budget = Budget(ledger, None, None, price)
        most = budget.maximum(wide, 500)
        # é has two bytes, the marker 10 and the blank that breaks it
        assert most.tokens == 2 + 11 + 10 + 1 + 64 + 500
        assert most.usd == pytest.approx((88 * 4 + 500 * 15) / 1e6)
        budget.settle(most, DraftReply("", "end_turn", 30, 20), wide.hash)
        assert budget.maximum(wide, 500).tokens == 530
        assert budget.maximum(other, 500).tokens == 598
        budget.settle(Reservation(530, 0), DraftReply("", "end_turn", 30, 1030), wide.hash)
        assert budget.maximum(wide, 500).tokens == 1060  # twice as much was reported
        assert budget.maximum(other, 500) == (1196, pytest.approx(2 * (98 * 4 + 500 * 15) / 1e6))


def test_what_may_have_been_charged_stays_counted(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with Ledger(path) as ledger:
        ledger.begin(["a", "b", "c"], 1)
        ledger.sent([SentRequest(name, 0, PROMPT, 100, 0.5) for name in "abc"])
        ledger.sent([SentRequest("a", 0, PROMPT, 100, 0.5)])  # the first attempt got no answer
        ledger.answered([("a", 0, ANSWER)])
        ledger.missed([("b", 0, "status 529")], charged=False)
        assert ledger.spent()["unsure_tokens"] == 200  # a's first attempt, and c
    with Ledger(path) as ledger:  # the process was killed
        ledger.begin(["a", "b", "c"], 1)
        spent = ledger.spent()
        assert (spent["unsure_tokens"], spent["unsure_usd"]) == (200, 1.0)
        room = Reservation(80, 0.0)
        assert Budget(ledger, 400).reserve(room) and not Budget(ledger, 399).reserve(room)


def test_a_ledger_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with Ledger(path) as ledger:
        ledger.begin(["a"], 1)
        for name in LATER_COLUMNS:
            ledger.connection.execute(f"ALTER TABLE drafts DROP COLUMN {name}")
    with Ledger(path) as ledger:
        ledger.begin(["a", "b"], 1)
        assert ledger.spent()["unsure_usd"] == 0 and list(ledger.wanted()) == ["a", "b"]
