"""Asking Claude: what is sent, how answers are read, and what becomes of those that are none."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from ehrr1.config.writers import AnthropicEngineConfig
from ehrr1.engines.anthropic import is_cacheable
from ehrr1.errors import UserError
from ehrr1.evaluation import chat
from ehrr1.evaluation.chat import ChatPredictor, check
from ehrr1.evaluation.predict import Writing
from ehrr1.evaluation.predictions import DIRECT, frame
from ehrr1.evaluation.prompt_mode import PromptMode
from ehrr1.evaluation.targets import Target
from ehrr1.files import write_json
from ehrr1.prompts.messages import CASES, SYSTEM
from ehrr1.records.openness import FILE, decide
from ehrr1.tasks.catalog import TASKS
from ehrr1.tasks.samples import Sample
from tests.messages_server import Body, Faults, MessagesServer, text_of
from tests.settings import changed, composed
from tests.test_graph import sample
from tests.test_predict import QUESTIONS, Records

DECISIONS = [sample(number, "emar", "Heparin", context=f"c{number}") for number in range(3)]
THINK = PromptMode("think")


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "test")


def settings(server: MessagesServer, **changes: Any) -> AnthropicEngineConfig:
    """The engine's own settings, in a hurry."""
    own: dict[str, Any] = {
        "model": "some-model",
        "base_url": server.url,
        "timeout_seconds": 2.0,
        "max_retries": 4,
    }
    own["thinking_tokens"] = 0
    made: AnthropicEngineConfig = changed(composed("engine=anthropic").engine, **own | changes)
    return made


def answers(
    server: MessagesServer,
    samples: Sequence[Sample],
    asked: PromptMode = DIRECT,
    draws: int = 1,
    **changes: Any,
) -> pl.DataFrame:
    """All rows, as a table of predictions, in the order of the samples."""
    predictor = ChatPredictor(settings(server, **changes), Records(), Writing(50, 20, draws))
    rows = [row for some in predictor.rows(samples, asked) for row in some]
    order = {one.sample_id: place for place, one in enumerate(samples)}
    rows.sort(key=lambda row: (order[row["sample_id"]], row["draw"]))
    return frame("claude:direct", rows)


def question(body: Body) -> str:
    return str(body["messages"][0]["content"][-1]["text"])


def test_words_are_no_probabilities() -> None:
    def word(body: Body) -> str:
        return "Yes." if "3 day" in question(body) else "perhaps" if "7" in question(body) else "no"

    with MessagesServer(answer=word) as server:
        table = answers(server, QUESTIONS)
        assert table["sample_id"].to_list() == [one.sample_id for one in QUESTIONS]
        assert table["probability"].null_count() == len(QUESTIONS)
        told = {row["task"]: (row["prediction"], row["problem"]) for row in table.to_dicts()}
        assert told["LengthOfStay_3day"] == ("yes", None)
        assert told["Inpatient_Mortality"] == ("no", None)
        assert told["LengthOfStay_7day"] == ("", "neither yes nor no")
        assert table.filter(task="LengthOfStay_7day")["completion"].to_list() == ["perhaps"] * 3
        assert set(table["mode"]) == {"direct"} and set(table["draw"]) == {0}


def test_several_draws_are_a_share() -> None:
    words = iter(["yes", "no", "hm", "yes"])
    with MessagesServer(answer=lambda body: next(words)) as server:
        table = answers(server, QUESTIONS[:1], draws=4)
        assert table["probability"].to_list() == [2 / 3] and table["prediction"].to_list() == [
            "yes"
        ]
        assert table["problem"].to_list() == [None] and "hm" in table["completion"][0]


def test_decisions_are_lines_and_each_draw_is_a_row() -> None:
    names = iter(["Heparin\n- Aspirin", "<think>\nclots\n</think>\n\nHeparin", "<think>open"])
    with MessagesServer(answer=lambda body: next(names)) as server:
        table = answers(server, DECISIONS[:1], THINK, draws=3)
        assert table["prediction"].to_list() == ["Heparin\nAspirin", "Heparin", ""]
        assert table["draw"].to_list() == [0, 1, 2]
        assert table["problem"].to_list() == [None, None, "think block is not closed"]
        assert [body["max_tokens"] for body in server.bodies] == [50] * 3


def test_what_is_sent() -> None:
    with MessagesServer(answer=lambda body: "no") as server:
        answers(server, QUESTIONS[:3], concurrency=1)
        answers(server, DECISIONS[:1], THINK)
        answers(server, QUESTIONS[:1], PromptMode("both"))
        first, second, _, decision, both = server.bodies
        assert "temperature" not in first and first["model"] == "some-model"
        assert first["max_tokens"] == 20 and first["system"][0]["text"] == SYSTEM
        record, asked = first["messages"][0]["content"]
        assert "4.1" in record["text"]
        cacheable = is_cacheable("some-model", SYSTEM + record["text"])
        assert ("cache_control" in record) == cacheable
        assert (first["thinking"], first["output_config"]) == (
            {"type": "adaptive"},
            {"effort": "low"},
        )
        assert second["messages"][0]["content"][0] == record  # read from the cache
        assert asked["text"].startswith(TASKS["Inpatient_Mortality"].instruction)
        assert asked["text"].endswith("nothing but the answer.") and "<think>" not in asked["text"]
        assert "cache_control" not in asked
        assert "cache_control" not in decision["messages"][0]["content"][0]  # nobody reads it
        assert "<think>" in question(decision)
        assert all(heading in question(both) for heading in CASES)
        assert {header["authorization"] for header in server.headers} == {"Bearer test"}


def test_own_words_and_candidates_by_the_mode() -> None:
    told = replace(DECISIONS[0], instruction="What is given?", candidates=("Insulin", "Heparin"))
    engine = composed("engine=anthropic").engine
    assert isinstance(engine, AnthropicEngineConfig)
    asking = ChatPredictor(engine, Records(), Writing(9, 9), lambda sample: [])
    assert asking.question(told, DIRECT) == f"What is given? {chat.DIRECT}"
    ours = asking.question(told, PromptMode("direct", wording="ours"))
    assert ours.startswith(TASKS["emar"].instruction)
    assert "Insulin\nHeparin" in asking.question(told, PromptMode("direct", candidates="list"))


def test_a_long_record_loses_its_oldest_events() -> None:
    with MessagesServer(answer=lambda body: "no") as server:
        answers(server, QUESTIONS[-3:])
        whole = server.bodies[0]["messages"][0]["content"][0]["text"]
        server.bodies.clear()
        most = len(whole) // 2 + len(SYSTEM) + 200
        answers(server, QUESTIONS[-3:], max_prompt_chars=most)
        records = {body["messages"][0]["content"][0]["text"] for body in server.bodies}
        [record] = records  # cut alike for all questions, so that it is cached
        assert whole.endswith(record) and len(record) < len(whole)
        assert all(len(SYSTEM) + len(text_of(body)) <= most + 1 for body in server.bodies)


FAULTS = Faults(
    rate_limited=0.1, overloaded=0.1, broken=0.1, slow=0.02, cut=0.1, malformed=0.1, wrong=0.05,
    truncated=0.1, empty=0.1,
)  # fmt: skip


def test_faults_are_overcome_or_counted() -> None:
    """Two questions on each record, told apart by their numbers."""
    many = [
        replace(sample(n, "emar", "Heparin", context=f"{n // 2}c1"), instruction=f"What? ({n})")
        for n in range(100)
    ]
    with MessagesServer(FAULTS, answer=lambda body: question(body).split(")")[0]) as server:
        table = answers(server, many, timeout_seconds=0.5, concurrency=16)
        assert table["sample_id"].to_list() == [one.sample_id for one in many]
        problems = table["problem"].value_counts()
        counts = dict(zip(problems["problem"], problems["count"], strict=True))
        assert 0 < counts["refused by the model"] < 30
        assert 0 < counts["cut off at the longest answer"] < 30
        assert counts[None] > 50
        for row in table.filter(pl.col("problem").is_null()).iter_rows(named=True):
            assert row["prediction"] == f"What? ({row['sample_id'].split('/')[1]}"
        assert all(server.happened[name] for name in ("rate_limited", "cut", "malformed", "wrong"))


def test_what_is_never_answered_is_a_counted_problem_at_the_end() -> None:
    def broken(body: Body) -> str:
        if "3 day" in question(body):
            raise OSError  # the connection ends without a word
        return "no"

    with MessagesServer(answer=broken) as server:
        predictor = ChatPredictor(settings(server, max_retries=1), Records(), Writing(9, 9))
        came = [row for some in predictor.rows(QUESTIONS, DIRECT) for row in some]
        assert [row["problem"] for row in came[:6]] == [None] * 6
        assert {row["problem"] for row in came[6:]} == {"no answer (APIConnectionError)"}
        assert {row["task"] for row in came[6:]} == {"LengthOfStay_3day"} and len(came) == 9


def test_what_was_answered_comes_before_the_refusal() -> None:
    with MessagesServer(answer=lambda body: "no") as server:
        predictor = ChatPredictor(settings(server, concurrency=1), Records(), Writing(9, 9))
        rows = predictor.rows(QUESTIONS, DIRECT)
        first = next(rows)
        server.status = 404
        rest = []
        with pytest.raises(UserError, match=r"engine=anthropic.*status 404.*check engine\.model"):
            for some in rows:
                rest += some
        assert [row["sample_id"] for row in first + rest] == [q.sample_id for q in QUESTIONS[:3]]


def test_an_endpoint_that_is_gone() -> None:
    with MessagesServer() as server:
        pass
    with pytest.raises(UserError, match=r"engine=anthropic.*does not answer.*engine\.base_url"):
        answers(server, QUESTIONS, max_retries=0)
    with MessagesServer(Faults(overloaded=1)) as server:
        many = [sample(number, context=f"c{number % 3}") for number in range(100)]
        with pytest.raises(UserError, match="status 529"):
            answers(server, many, max_retries=0)
        assert server.asked.total() < 100


@pytest.mark.parametrize(
    ("status", "message", "overlong"),
    [
        (413, "", True),
        (400, "prompt is too long: 209351 tokens > 200000 maximum", True),
        (400, "input length and `max_tokens` exceed context limit: 199211 + 20000", True),
        (400, "temperature: not supported", False),
        (404, "too long", False),
    ],
)
def test_what_concerns_one_prompt(status: int, message: str, overlong: bool) -> None:
    assert chat.is_overlong(status, message) == overlong


def test_too_long_prompts_are_counted() -> None:
    with MessagesServer(status=413) as server:
        table = answers(server, QUESTIONS[:3])
        assert set(table["problem"]) == {chat.TOO_LONG}


def test_closed_records_and_a_missing_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with MessagesServer(answer=lambda body: "no") as server:
        cfg = composed("engine=anthropic", "data.open=true", engine=settings(server).plain())
        records = Records()
        records.folder = tmp_path
        result = Target("claude:direct", "claude", None, DIRECT, DIRECT)
        write_json(tmp_path / FILE, decide(False, None, pl.Series([1])))
        with pytest.raises(UserError, match=r"third party.*engine\.compliant_endpoint=true"):
            list(chat.predict(cfg, records, result, QUESTIONS))
        assert not server.headers
        write_json(tmp_path / FILE, decide(True, None, pl.Series([1])))
        rows = list(chat.predict(cfg, records, result, [*DECISIONS, *QUESTIONS]))
        assert len(rows) == len(DECISIONS) + len(QUESTIONS)
        json.dumps([row for some in rows for row in some], default=str)
        check(settings(server, compliant_endpoint=True), open_data=False)
        monkeypatch.delenv("ANTHROPIC_API_KEY")
        with pytest.raises(UserError, match="ANTHROPIC_API_KEY is not set: engine=anthropic"):
            check(settings(server), open_data=True)
