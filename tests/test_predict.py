"""Asking a model: batches, one prefill for all questions on a record, answers that are rows."""

from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ehrr1.evaluation.predict import Predictor, batches
from ehrr1.evaluation.predictions import SCHEMA, frame
from ehrr1.models.loading import load_model
from ehrr1.prompts.tokenizer import train_tokenizer
from ehrr1.prompts.trees import TreeMaker
from ehrr1.records.events import Event
from ehrr1.tasks.samples import Prepared, Sample
from tests.test_graph import event, sample

MODEL = OmegaConf.create(
    {
        "name": "mini",
        "path": None,
        "attention": "sdpa",
        "config": {
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
    }
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


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer({"Potassium yes no\nSodium\n": 5, "## Labotary Test Events\n": 5}, 400)


@pytest.fixture(scope="module")
def model(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    return load_model(MODEL, None, tokenizer, seed=3).eval()


def predictor(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_tokens: int
) -> Predictor:
    return Predictor(model, TreeMaker(tokenizer, 2000), Records(), batch_tokens, batch_size=4)


def test_batches_take_every_item_once_longest_first_within_the_limits() -> None:
    items = [[0] * length for length in (5, 1, 9, 30, 9, 2)]
    found = list(batches(items, 20))
    assert found == [[3], [2, 4], [0, 5, 1]]
    assert list(batches(items, 1000, 4)) == [[3, 2, 4, 0], [5, 1]]
    assert list(batches([], 20)) == []


def test_risk_is_the_same_alone_and_with_others(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    together = frame("m", predictor(model, tokenizer, 100_000).risk(QUESTIONS)).sort("sample_id")
    alone = predictor(model, tokenizer, 1)
    rows = [row for question in QUESTIONS for row in alone.risk([question])]
    one_by_one = frame("m", rows).sort("sample_id")
    assert together["sample_id"].to_list() == one_by_one["sample_id"].to_list()
    np.testing.assert_allclose(together["probability"], one_by_one["probability"], atol=1e-5)
    assert together["probability"].is_between(0, 1, closed="none").all()
    assert together["probability"].n_unique() == len(QUESTIONS)


@pytest.mark.parametrize("think", [True, False])
def test_decisions_answer_every_sample_once_in_the_mode_asked(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, think: bool
) -> None:
    samples = [sample(n, "emar", "Heparin", context=f"c{n % 3}") for n in range(7)]
    rows = predictor(model, tokenizer, 100_000).decisions(samples, think=think, max_new_tokens=5)
    table = frame("m", rows)
    assert table.schema == SCHEMA and set(table["sample_id"]) == {s.sample_id for s in samples}
    assert len(table) == 7 and set(table["mode"]) == {"think" if think else "direct"}
    assert table["probability"].null_count() == 7
