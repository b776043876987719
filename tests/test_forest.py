"""Forests are exact, and events, trunk and branch can be tokenised apart."""

import random
from collections import Counter
from datetime import datetime
from pathlib import Path

import pytest
from transformers import (
    PreTrainedTokenizerBase,
)

from ehrr1.errors import UserError
from ehrr1.prompts.forest import collate, pack
from ehrr1.prompts.messages import EMPTY_THOUGHT, SYSTEM, completion
from ehrr1.prompts.tokenizer import END, END_THINK, THINK, load_tokenizer, train_tokenizer
from ehrr1.prompts.trees import Branch, PromptBuilder, Question, Tree
from ehrr1.prompts.wording import OURS
from ehrr1.records.events import Event
from ehrr1.records.markdown import event_markdown, record_markdown
from ehrr1.tasks.catalog import TASKS
from tests.conftest import shared_folder


def random_tree(generator: random.Random, trunk: int, branches: int, asked: bool = True) -> Tree:
    def ids(count: int) -> list[int]:
        return [generator.randrange(1, 99) for _ in range(count)]

    return Tree(
        ids(trunk),
        [
            Branch(
                str(n), ids(generator.randint(1, 5)) if asked else [], ids(generator.randint(1, 9))
            )
            for n in range(branches)
        ],
    )


def test_record_is_learnt_once_a_tree() -> None:
    tree = random_tree(random.Random(3), 20, 6)
    forest = collate([tree], record_weight=0.25)
    assert (forest.owners == -1).sum() == 19
    assert forest.weights[forest.owners == -1].eq(0.25).all()
    assert forest.targets[:19].tolist() == tree.trunk[1:]


def test_rows_stay_within_their_budget_and_lose_nothing() -> None:
    generator = random.Random(4)
    trees = [random_tree(generator, generator.randint(1, 60), 3) for _ in range(20)]
    [own] = pack([len(tree) for tree in trees], 200)
    forests = [collate([trees[index] for index in row]) for row in own]
    assert all(forest.input_ids.numel() == forest.tokens <= 200 for forest in forests)
    assert sum(forest.tokens for forest in forests) == sum(map(len, trees))
    assert sum(len(forest.sample_ids) for forest in forests) == 60


def event(table: str, hour: int, rows: list[tuple[str, ...]]) -> Event:
    time = datetime(2180, 7, 23, hour, 15)
    return Event(table, time, time, tuple(rows), tuple(row[0] for row in rows))


def record() -> list[Event]:
    demographics = Event("patients", None, None, (("67", "F"),), ("",))
    note = event(
        "discharge", 1, [("DS", "Chief Complaint:\nchest pain\n\nHe is 67, well.  \n- no")]
    )
    admission = event("admissions", 2, [("URGENT", "EMERGENCY ROOM", "")])
    window = [event("radiology", 3, [("RR", "CHEST (PORTABLE AP)", "No effusion.\n\nStable.")])]
    for hour in range(4, 20):
        window.append(
            event(
                "labevents",
                hour,
                [
                    ("Calcium, Total", "9.4", "mg/dL", "8.4", "10.3", "", ""),
                    ("Potassium", "5.9", "mEq/L", "3.3", "5.1", "abnormal", "HEMOLYZED; 2+ µg"),
                    ("Note", "", "", "", "", "", "see   text"),
                ][: 1 + hour % 3],
            )
        )
    return [demographics, note, admission, *window]


def trained(size: int = 700) -> PreTrainedTokenizerBase:
    texts = [event_markdown(one) + "\n\n" for one in record()] * 3
    fixed = [SYSTEM, "yes", "no", "Potassium\nCalcium, Total"]
    fixed += [OURS.asked(task, think=False) for task in TASKS]
    return train_tokenizer(Counter(texts + fixed * 5), size)


def tokenizers() -> list[PreTrainedTokenizerBase]:
    shared = shared_folder()
    real = [] if shared is None else [load_tokenizer(shared / "data" / "qwen3-tokenizer")]
    return [trained(), *real]


def exchange(think: bool) -> tuple[Question, list[dict[str, str]]]:
    """A question on `record()`, and its chat up to the answer."""
    chain = "## Extraction\nPotassium | Labotary Test Events | 06:15\n## Reasoning\nx | -> | y"
    question = Question("s", "labevents", think, "Potassium\nTroponin T", chain if think else None)
    return question, OURS.chat("labevents", record_markdown(record()), think=think)


@pytest.mark.parametrize("think", [True, False])
def test_parts_tokenised_apart_equal_the_whole_chat(think: bool) -> None:
    question, chat = exchange(think)
    for tokenizer in tokenizers():
        tree = PromptBuilder(tokenizer, 100_000).tree(record(), 3, [question])
        text = tokenizer.apply_chat_template(
            chat, tokenize=False, add_generation_prompt=True, enable_thinking=think
        )
        prompt = tree.trunk + tree.branches[0].prompt
        assert prompt == tokenizer(text)["input_ids"]
        whole = text + completion(question.answer, question.chain) + END
        assert prompt + tree.branches[0].completion == tokenizer(whole)["input_ids"]


@pytest.mark.parametrize("think", [True, False])
def test_smollm2_has_our_chat_markers_and_its_prompts_are_the_whole_chat(
    think: bool, smollm2: Path
) -> None:
    """Its template knows no thinking: the empty thought ends our prompt, as tokens of their own."""
    tokenizer = load_tokenizer(smollm2)
    assert tokenizer.eos_token == END
    question, chat = exchange(think)
    tree = PromptBuilder(tokenizer, 100_000).tree(record(), 3, [question])
    prompt, answer = tree.trunk + tree.branches[0].prompt, tree.branches[0].completion
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert prompt == tokenizer(text + EMPTY_THOUGHT * (not think))["input_ids"]
    assert answer == tokenizer(completion(question.answer, question.chain) + END)["input_ids"]
    assert answer[-1] == tokenizer.eos_token_id


def test_tokenizer_is_lossless_and_short(tmp_path: Path) -> None:
    tokenizer = trained()
    for text in (
        "Ärzte | 5.05 mg\n\n\n  x",
        record_markdown(record()),
        "- a: b\n- c:\n",
        "~½ 12345",
    ):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert len(tokenizer("Potassium")["input_ids"]) == 1
    rows = sum(len(one.rows) for one in record())
    assert len(tokenizer(record_markdown(record()))["input_ids"]) / rows < 11
    tokenizer.save_pretrained(tmp_path)
    again = load_tokenizer(tmp_path)
    assert again("Potassium | 5.9")["input_ids"] == tokenizer("Potassium | 5.9")["input_ids"]
    assert again.decode(again(f"{THINK}a{END_THINK}{END}")["input_ids"], skip_special_tokens=True)
    assert again.eos_token == END


def test_same_texts_give_the_same_tokenizer() -> None:
    assert trained().get_vocab() == trained().get_vocab()


def test_long_records_lose_oldest_events_first() -> None:
    tokenizer, events = trained(), record()
    question = Question("s", "labevents", False, "Potassium")
    whole = PromptBuilder(tokenizer, 100_000).tree(events, 3, [question])
    assert (whole.cut_events, whole.cut_tokens) == (0, 0)
    limit = len(whole) - 60
    cut = PromptBuilder(tokenizer, limit).tree(events, 3, [question])
    assert len(cut) <= limit and cut.cut_events > 0 and cut.cut_tokens == 0
    text = tokenizer.decode(cut.trunk)
    kept = [*events[:3], *events[3 + cut.cut_events :]]
    assert text.endswith(record_markdown(kept) + "\n\n")
    assert cut.branches == whole.branches


def test_a_long_preamble_loses_the_end_of_its_longest_text() -> None:
    tokenizer, events = trained(), record()
    question = Question("s", "labevents", False, "Potassium")
    whole = PromptBuilder(tokenizer, 100_000).tree(events[:3], 3, [question])
    room = len(whole.trunk) - len(PromptBuilder(tokenizer, 100_000).tree([], 0, [question]).trunk)
    limit = len(whole) - room + 3 * (room - 5)
    cut = PromptBuilder(tokenizer, limit).tree(events, 3, [question])
    text = tokenizer.decode(cut.trunk)
    assert cut.cut_tokens == 5
    assert "## Patient Demographics" in text and "EMERGENCY ROOM" in text
    assert "chest pain" in text and "- no" not in text
    assert text.endswith(event_markdown(events[-1]) + "\n\n")


def test_questions_that_leave_no_room_are_a_user_error() -> None:
    question = Question("s", "labevents", False, "Potassium\n" * 50)
    prompt_builder = PromptBuilder(trained(), 60)
    assert not prompt_builder.fits(question)
    with pytest.raises(UserError, match="max_tokens=60"):
        prompt_builder.tree(record(), 3, [question])


def test_a_question_is_one_token_with_and_without_thinking() -> None:
    texts = [OURS.asked(task, think=think) for task in TASKS for think in (True, False)] * 5
    tokenizer = train_tokenizer(Counter(texts), 600)
    for task in TASKS:
        think, direct = (tokenizer(OURS.asked(task, think=t))["input_ids"] for t in (True, False))
        assert think[0] == direct[0] and think[1] != direct[1]
        assert len(think) == len(direct) == 2


def test_the_heading_of_a_citation_is_one_token() -> None:
    heading = " | Diagnoses on International Classification of Diseases | "
    tokenizer = train_tokenizer({"Sodium": 5, heading + "0": 5}, 400)
    tokens = tokenizer.tokenize(f"Sodium{heading}2138-05-11 15:09")
    assert tokens[1].replace("Ġ", " ") == heading
