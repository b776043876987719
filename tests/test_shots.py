"""Examples before a question: which, and how they stand in the prompt."""

import json
from pathlib import Path

import polars as pl
import pytest

from ehrr1.config.schema import Config
from ehrr1.errors import UserError
from ehrr1.evaluation.shots import chosen, example_head, heads
from ehrr1.prompts.messages import answer_text
from ehrr1.prompts.tokenizer import load_tokenizer
from ehrr1.prompts.trees import PromptBuilder, Question
from ehrr1.prompts.wording import OURS
from ehrr1.records.markdown import record_markdown
from ehrr1.tasks.context import preamble_length
from ehrr1.tasks.samples import Prepared
from tests.settings import composed
from tests.test_cdm import flat
from tests.test_cdm import prepared as cdm
from tests.test_ehrshot import assets
from tests.test_ehrshot import prepared as ehrshot


def settings(shots: int, seed: int = 0) -> Config:
    return composed(eval={"shots": shots}, seed=seed)


def rows(answers: str, task: str = "guo_icu") -> pl.DataFrame:
    """An index of training samples, a context each, with these answers."""
    words = {"y": "yes", "n": "no"}
    return pl.DataFrame(
        {
            "sample_id": [f"{task}/{n}" for n in range(len(answers))],
            "task": task,
            "split": "train",
            "subject_id": list(range(len(answers))),
            "context_id": [f"text/{n}" for n in range(len(answers))],
            "target": [[words[answer]] for answer in answers],
            "candidates": pl.Series([[]] * len(answers), dtype=pl.List(pl.String)),
        }
    )


def test_as_many_of_each_class(tmp_path: Path) -> None:
    rows("y" * 5 + "n" * 40).write_parquet(tmp_path / "index.parquet")
    found = chosen(settings(4), Prepared(tmp_path), ["guo_icu"])
    assert sorted(sample.target for sample in found) == [("no",)] * 4 + [("yes",)] * 4
    assert [s.target for s in found] != sorted(s.target for s in found)  # not one after the other
    again = chosen(settings(4), Prepared(tmp_path), ["guo_los", "guo_icu"])  # the first: no samples
    assert again == found
    fewer = chosen(settings(2), Prepared(tmp_path), ["guo_icu"])
    assert {s.sample_id for s in fewer} < {s.sample_id for s in found}
    assert chosen(settings(4, seed=1), Prepared(tmp_path), ["guo_icu"]) != found
    with pytest.raises(UserError, match=r"eval.shots=6: task guo_icu has 11 of 12 examples"):
        chosen(settings(6), Prepared(tmp_path), ["guo_icu"])


def test_answers_that_are_codes_are_of_two_classes_too(tmp_path: Path) -> None:
    words = pl.Series(["no", "pH", "yes"])
    index = rows("ynnnny", "ICU_Mortality_7day").with_columns(
        pl.col("target").list.eval(words.search_sorted("yes") * (pl.element() == "yes")).cast(
            pl.List(pl.UInt32)
        ),
        target_row=pl.lit(None, pl.Int64),
    )  # fmt: skip
    index.write_parquet(tmp_path / "index.parquet")
    words.to_frame("name").write_parquet(tmp_path / "names.parquet")
    found = chosen(settings(2), Prepared(tmp_path), ["ICU_Mortality_7day"])
    assert sorted(sample.target for sample in found) == [("no",)] * 2 + [("yes",)] * 2


def test_the_benchmark_s_sets_come_first(tmp_path: Path) -> None:
    base = assets(tmp_path)
    sets = {
        str(k): {
            str(n): {
                "patient_ids_train_k": subjects,
                "label_times_train_k": ["2016-02-01T00:00:00"] * len(subjects),
            }
            for n, subjects in enumerate(replicates)
        }
        for k, replicates in {1: [[2, 3], [3]], -1: [[2, 3]]}.items()
    }
    path = base / "benchmark" / "guo_icu" / "all_shots_data.json"
    path.write_text(json.dumps({"guo_icu": sets}))
    world, _ = ehrshot(base, tmp_path / "prepare")
    for seed, subjects in ((0, {2, 3}), (1, {3}), (2, {2, 3})):
        found = chosen(settings(1, seed), world, ["guo_icu"])
        assert {sample.subject_id for sample in found} == subjects
    path.write_text('{"guo_icu": []}')
    with pytest.raises(UserError, match="remove it to have examples drawn"):
        ehrshot(base, tmp_path / "again")


@pytest.fixture
def world(tmp_path: Path) -> Prepared:
    """Forty admissions, all to train on but a few."""
    root = tmp_path / "flat"
    root.mkdir()
    given = {str(n): flat() | {"Radiology": [], "Patient History": f"Case {n}."} for n in range(40)}
    (root / "pancreatitis.json").write_text(json.dumps(given))
    prepared, _ = cdm(root, tmp_path / "prepare")
    index = prepared.index().with_columns(
        split=pl.when(pl.col("subject_id") < 30).then(pl.lit("train")).otherwise(pl.lit("test"))
    )
    index.write_parquet(tmp_path / "prepare" / "index.parquet")
    return prepared


def test_examples_are_earlier_turns_of_the_chat(world: Prepared, smollm2: Path) -> None:
    tokenizer = load_tokenizer(smollm2)
    prompt_builder = PromptBuilder(tokenizer, 4_000)
    examples = chosen(settings(2), world, ["cdm_disease"])
    assert len(examples) == 2 and all(sample.split == "train" for sample in examples)
    head = example_head(prompt_builder, world, examples)
    sample = world.samples("test", ["cdm_disease"])[0]
    events = world.context(sample)
    question = Question(sample.sample_id, sample.task, think=False)
    tree = prompt_builder.tree(events, preamble_length(events), [question], head=head)
    chat, asked = prompt_builder.chat, OURS.asked("cdm_disease", think=False)
    turns = "".join(
        f"{record_markdown(world.context(one))}\n\n{asked}{chat.direct}"
        f"{answer_text(one.target)}{chat.next}"
        for one in examples
    )
    whole = f"{chat.head}{turns}{record_markdown(events)}\n\n{asked}{chat.direct}"
    assert tokenizer.decode(tree.trunk + tree.branches[0].prompt) == whole
    assert tree.cut_events == 0 and tree.cut_tokens == 0


def test_long_examples_share_half_of_the_room(world: Prepared, smollm2: Path) -> None:
    prompt_builder = PromptBuilder(load_tokenizer(smollm2), 640)
    found = heads(settings(3), world, prompt_builder, ["cdm_disease", "cdm_icd"])
    assert set(found) == {"cdm_disease", "cdm_icd"}
    joints = 4 * len(prompt_builder.tokens(prompt_builder.chat.next)) + len(
        prompt_builder.tokens(prompt_builder.chat.head)
    )
    assert all(len(head) <= 320 + joints for head in found.values())
    assert heads(settings(0), world, prompt_builder, ["cdm_disease"]) == {}
    small = PromptBuilder(prompt_builder.tokenizer, 320)
    with pytest.raises(UserError, match=r"eval.shots: 20 examples of task cdm_disease do not fit"):
        heads(settings(20), world, small, ["cdm_disease"])
