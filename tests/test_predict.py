"""Asking a model: batches, one prefill for all questions on a record, answers that are rows."""

import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ehrr1.config.training import ModelSettings, Tokenizer
from ehrr1.config.types import AnswerMode
from ehrr1.engines.transformers import TransformersEngine
from ehrr1.evaluation.predict import (
    GENERATION,
    PREFILL,
    PROMPTS,
    TOO_LONG,
    Predictor,
    Rows,
    Thought,
    Writing,
    tell,
    thought,
)
from ehrr1.evaluation.predictions import DIRECT, SCHEMA, frame
from ehrr1.evaluation.prompt_mode import PromptMode
from ehrr1.evaluation.tree_memory import TreeMemory
from ehrr1.models.loading import load_model
from ehrr1.prompts.messages import CASES
from ehrr1.prompts.tokenizer import train_tokenizer
from ehrr1.prompts.trees import PromptBuilder
from ehrr1.records.events import Event
from ehrr1.scoring.risk import AnswerTokens, answer_tokens
from ehrr1.tasks.samples import Prepared, Sample
from tests.test_graph import event, sample

MODEL = ModelSettings(
    name="mini",
    path=None,
    attention="sdpa",
    lora=None,
    tokenizer=Tokenizer(train=True, vocab_size=None),
    config={
        "model_type": "qwen3",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
    },
)
QUESTIONS = [
    sample(number, task, "yes" if number else "no", context=f"c{number}")
    for number in (0, 1, 2)
    for task in ("Inpatient_Mortality", "LengthOfStay_3day", "LengthOfStay_7day")
]


class Records(Prepared):
    """Contexts of growing length, made on the spot."""

    def __init__(self) -> None:
        super().__init__(Path())

    def context(self, sample: Sample) -> list[Event]:
        hours = range(1, 3 + 2 * int(sample.context_id[-1]))
        return [event("labevents", hour, ["Potassium", "Sodium"], Valuenum="4.1") for hour in hours]


class Counting(Records):
    """The same contexts; counts how often one is read."""

    reads = 0

    def context(self, sample: Sample) -> list[Event]:
        self.reads += 1
        return super().context(sample)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer({"Potassium yes no\nSodium\n": 5, "## Labotary Test Events\n": 5}, 400)


@pytest.fixture(scope="module")
def model(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    return load_model(MODEL, None, tokenizer, seed=3).eval()


def predictor(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_tokens: int = 100_000
) -> Predictor:
    engine = TransformersEngine(model, tokenizer, 4, batch_tokens)
    return Predictor(engine, PromptBuilder(tokenizer, 2000), Records(), Writing(think=6, direct=5))


def table_of(batches: Iterable[Rows]) -> pl.DataFrame:
    return frame("m", [row for rows in batches for row in rows]).sort("sample_id", "draw")


def test_risk_is_the_same_alone_and_with_others(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    together = table_of(predictor(model, tokenizer).risk(QUESTIONS, DIRECT))
    alone = predictor(model, tokenizer, 1)
    one_by_one = table_of(batch for q in QUESTIONS for batch in alone.risk([q], DIRECT))
    assert together["sample_id"].to_list() == one_by_one["sample_id"].to_list()
    np.testing.assert_allclose(together["probability"], one_by_one["probability"], atol=1e-5)
    assert together["probability"].is_between(0, 1, closed="none").all()
    assert together["probability"].n_unique() == len(QUESTIONS)


def test_log_probabilities_are_those_of_the_next_word(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    asking = predictor(model, tokenizer)
    [row] = table_of(asking.risk(QUESTIONS[:1], DIRECT)).to_dicts()
    tree = asking._tree(QUESTIONS[:1], DIRECT)
    with torch.no_grad():
        logits = model(torch.tensor([tree.trunk + tree.branches[0].prompt])).logits[0, -1]
    words, logprobs = answer_tokens(tokenizer), logits.float().log_softmax(-1)
    assert row["logprob_yes"] == pytest.approx(logprobs[words.yes].logsumexp(0).item(), abs=1e-5)
    assert row["logprob_no"] == pytest.approx(logprobs[words.no].logsumexp(0).item(), abs=1e-5)
    odds = np.exp(row["logprob_yes"] - row["logprob_no"])
    assert row["probability"] == pytest.approx(odds / (1 + odds))


@pytest.mark.parametrize(("room", "reads"), [(0, 10), (1, 9), (100, 5)])
def test_results_that_ask_the_same_read_each_context_once(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, room: int, reads: int
) -> None:
    """Whatever the memory has room for (in times the first tree), the rows are the same."""
    drugs = [sample(n, "emar", "Heparin", context="c1") for n in (7, 8)]
    plain = predictor(model, tokenizer)
    wanted = [table_of(plain.risk(QUESTIONS, DIRECT)), table_of(plain.decisions(drugs, DIRECT))]
    counting, memory = Counting(), TreeMemory(room * len(plain._tree(QUESTIONS[:3], DIRECT)))
    asking = replace(plain, prepared=counting, memory=memory)
    for _ in ("adapt", "rl"):
        found = [
            table_of(asking.risk(QUESTIONS, DIRECT)),
            table_of(asking.decisions(drugs, DIRECT)),
        ]
        assert all(one.equals(other) for one, other in zip(found, wanted, strict=True))
    assert counting.reads == reads


def test_the_seconds_of_asking_are_those_of_its_phases(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    asking = predictor(model, tokenizer)
    begin = time.monotonic()
    list(asking.risk(QUESTIONS, PromptMode("think")))
    seconds = time.monotonic() - begin
    assert set(asking.phases.seconds) == {PROMPTS, PREFILL, GENERATION}
    assert min(asking.phases.seconds.values()) > 0 < min(asking.phases.cpu_seconds.values())
    assert seconds / 2 < sum(asking.phases.seconds.values()) < seconds


@pytest.mark.parametrize("answer", ["think", "direct"])
def test_decisions_answer_every_sample_once_in_the_mode_asked(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, answer: AnswerMode
) -> None:
    samples = [sample(n, "emar", "Heparin", context=f"c{n % 3}") for n in range(7)]
    table = table_of(predictor(model, tokenizer).decisions(samples, PromptMode(answer)))
    assert table.schema == SCHEMA and set(table["sample_id"]) == {s.sample_id for s in samples}
    assert len(table) == 7 and set(table["mode"]) == {answer}
    assert table["probability"].null_count() == 7 and table["completion"].null_count() == 0


def test_several_draws_are_rows_of_their_own_and_repeat(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    asking = replace(predictor(model, tokenizer), writing=Writing(6, 5, draws=3))
    samples = [sample(n, "emar", "Heparin", context=f"c{n}") for n in range(2)]
    once = table_of(asking.decisions(samples, DIRECT, seed=1))
    assert once["draw"].to_list() == [0, 1, 2, 0, 1, 2] and once["completion"].n_unique() > 2
    assert once.equals(table_of(asking.decisions(samples[::-1], DIRECT, seed=1)))


@pytest.mark.parametrize("answer", ["think", "both"])
def test_risk_behind_a_chain_reads_the_answer_where_the_chain_ends(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, answer: AnswerMode
) -> None:
    asking = predictor(model, tokenizer)
    table = table_of(asking.risk(QUESTIONS, PromptMode(answer)))
    assert len(table) == len(QUESTIONS) and table["probability"].null_count() == 0
    for row in table.iter_rows(named=True):
        chain = row["completion"]
        assert chain.startswith("<think>\n") and chain.endswith("\n</think>\n\n")
        assert row["mode"] == answer
        if answer == "both":
            assert [line for line in chain.splitlines() if line in CASES] == list(CASES)
    first = next(q for q in QUESTIONS if q.sample_id == table["sample_id"][0])
    tree = asking._tree([first], PromptMode(answer))
    ids = (
        tree.trunk + tree.branches[0].prompt + asking.prompt_builder.tokens(table["completion"][0])
    )
    with torch.no_grad():
        logprobs = model(torch.tensor([ids])).logits[0, -1].float().log_softmax(-1)
    words = answer_tokens(tokenizer)
    assert table["logprob_yes"][0] == pytest.approx(
        logprobs[words.yes].logsumexp(0).item(), abs=1e-4
    )


def test_a_case_ends_where_the_model_writes_the_next_heading(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However it spells it: the second case has its own place, and stands there once."""
    writes = iter(["fever #1\n# Case for no\nyoung", "young\n</think>\n\nno"])
    asking = predictor(model, tokenizer)
    monkeypatch.setattr(Predictor, "_greedily", lambda self, prompts, *_: {"q": next(writes)})
    case_yes, case_no = CASES
    chain = f"<think>\n{case_yes}\nfever #1\n{case_no}\nyoung\n</think>\n\n"
    assert asking._cases({"q": []})["q"].text == chain


def test_a_chain_is_closed_where_the_model_did_not() -> None:
    assert thought("<think>\nfever\n</think>\n\nyes") == Thought("<think>\nfever\n</think>\n\n")
    assert thought("fever and").text == "<think>\nfever and\n</think>\n\n"
    assert thought("fever and").problem is not None


def test_what_is_not_told_is_no_probability() -> None:
    words = AnswerTokens([5, 6], [7])
    assert tell(np.array([-np.inf, -np.inf, -np.inf]), words) is None
    one = tell(np.array([-1.0, -2.0, -np.inf]), words)
    assert one is not None and one.probability == 1.0
    both = tell(np.array([-1.0, -2.0, -3.0]), words)
    assert both is not None
    assert both.probability == pytest.approx(
        (np.exp(-1) + np.exp(-2)) / (np.exp(-1) + np.exp(-2) + np.exp(-3))
    )


def test_a_question_that_leaves_no_room_is_counted_and_the_others_are_asked(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    asking = replace(predictor(model, tokenizer), prompt_builder=PromptBuilder(tokenizer, 600))
    long = replace(QUESTIONS[0], sample_id="long", instruction="Sodium " * 700)
    table = table_of(asking.risk([long, *QUESTIONS[:2]], DIRECT))
    assert len(table) == 3 and table["probability"].null_count() == 1
    [row] = table.filter(pl.col("sample_id") == "long").to_dicts()
    assert row["problem"] == TOO_LONG and row["probability"] is None
    decisions = table_of(asking.decisions([replace(long, task="emar"), sample(1)], DIRECT))
    assert decisions["problem"].to_list().count(TOO_LONG) == 1


def test_candidates_and_own_words_are_asked_for_by_the_mode(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    asking = replace(
        predictor(model, tokenizer), candidates=lambda sample: ["Aspirin", *sample.target]
    )
    told = replace(sample(0, "emar", "Heparin"), instruction="What is given?")

    def prompt(asked: PromptMode) -> str:
        return tokenizer.decode(asking._tree([told], asked).branches[0].prompt)

    assert "What is given?" in prompt(DIRECT) and "Aspirin" not in prompt(DIRECT)
    assert "What is given?" not in prompt(PromptMode("direct", wording="ours"))
    listed = prompt(PromptMode("direct", candidates="list"))
    assert "What is given?" in listed and "Aspirin\nHeparin" in listed
    given = replace(told, candidates=("Insulin", "Heparin"))
    branch = asking._tree([given], PromptMode("direct", candidates="list")).branches[0]
    assert "Insulin\nHeparin" in tokenizer.decode(branch.prompt)
