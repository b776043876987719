"""Reading answers, set scores, the probability of yes."""

import numpy as np
import pytest

from ehrr1.errors import UserError
from ehrr1.scoring.answers import read_answer
from ehrr1.scoring.release import release_scores
from ehrr1.scoring.risk import AnswerTokens, answer_tokens, probability_of_yes
from ehrr1.scoring.sets import set_scores


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("yes", "yes"),
        ("\n\n No.\n", "no"),
        ("YES!", "yes"),
        ("<think>\na\n</think>\n\nyes", "yes"),
        ("<think>\n\n</think>\n\n\n\n- no", "no"),
        ("a chain</think>no", "no"),
    ],
)
def test_risk_answers_that_can_be_read(text: str, label: str) -> None:
    answer = read_answer(text, "risk")
    assert (answer.label, answer.problem) == (label, None)


@pytest.mark.parametrize(
    "text",
    [
        "not sure, maybe yes",
        "yes\nno",
        "",
        "<think>yes",
        "<think>a</think>",
        "yes <think>a</think> no",
        "<think>a</think><think>b</think>yes",
        "</think>yes<think>",
        "yesno",
        "none",
    ],
)
def test_risk_answers_that_cannot_be_read_are_neither_yes_nor_no(text: str) -> None:
    answer = read_answer(text, "risk")
    assert answer.label is None and answer.items == () and answer.problem


def test_decision_lines_lose_bullets_and_blanks_but_keep_repeats() -> None:
    answer = read_answer("<think>\nwhy\n</think>\n\n- Heparin\n\n* Aspirin \nHeparin\n", "decision")
    assert answer.think == "why"
    assert answer.items == ("Heparin", "Aspirin", "Heparin")
    assert answer.label is None and answer.problem is None


def test_answer_without_think_block() -> None:
    answer = read_answer("-5 degrees\nB", "decision")
    assert answer.think is None and answer.items == ("-5 degrees", "B")


def test_unclosed_block_is_a_problem_and_keeps_the_thought() -> None:
    answer = read_answer("<think>\nfar too long", "decision")
    assert answer.think == "far too long" and answer.items == () and answer.problem


def test_set_scores() -> None:
    assert set_scores(["A ", "b", "b"], ["a", "c", "d"]) == (0.5, 1 / 3, 0.4)
    assert set_scores([], ["a"]) == (0, 0, 0)
    assert set_scores(["a"], []) == (0, 0, 0)
    assert set_scores([" "], []) == (1, 1, 1)


class _Tokenizer:
    """Knows some whole words, spells the rest letter by letter."""

    def __init__(self, words: dict[str, int]) -> None:
        self.words = words

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        assert not add_special_tokens
        return [self.words[text]] if text in self.words else [100 + ord(letter) for letter in text]


def test_answer_tokens_are_the_whole_word_spellings() -> None:
    tokens = answer_tokens(_Tokenizer({"yes": 1, "Yes": 2, "no": 3}))
    assert tokens == ([1, 2], [3])
    assert answer_tokens(_Tokenizer({})) == ([100 + ord("y")], [100 + ord("n")])
    with pytest.raises(UserError, match="same token"):
        answer_tokens(_Tokenizer({"yes": 1, "no": 1}))


def test_probability_of_yes_sums_spellings_and_survives_tiny_values() -> None:
    probabilities = np.array([[0.1, 0.2, 0.3, 0.4], [0.5, 0.1, 0.2, 0.2]])
    tokens = AnswerTokens([0, 1], [2])
    expected = [0.5, 0.75]
    np.testing.assert_allclose(
        probability_of_yes(np.log(probabilities), tokens), expected, rtol=1e-12
    )
    shifted = np.log(probabilities) - 1000.0
    np.testing.assert_allclose(probability_of_yes(shifted, tokens), expected, rtol=1e-9)


@pytest.mark.parametrize(
    ("text", "released", "ours"),
    [
        ("heparin\nASPIRIN\nheparin", (1, 1, 1), 1),
        ("Heparin", (1, 1 / 2, 2 / 3), 2 / 3),
        ("", (0, 0, 0), 0),
        ("- Heparin\nAspirin", (1 / 2, 1 / 2, 1 / 2), 1),  # bullets stay
        ("Heparin\n\n\nAspirin\n\n", (2 / 3, 1, 4 / 5), 1),  # inner blank lines: a wrong item
        ("Heparin\\nAspirin", (1, 1, 1), 0),  # a literal \\n ends a line
        ("Heparin\\n\nAspirin", (1, 1, 1), 1 / 2),
        ("Heparin\\nAspirin\nSodium", (1 / 2, 1 / 2, 1 / 2), 0),  # and then nothing else does
        ("<think>\nwhy\n</think>\n\nHeparin\nAspirin", (1, 1, 1), 1),
        ("why</think>Heparin\nAspirin", (1, 1, 1), 1),
        ("<think>\nHeparin\nAspirin", (2 / 3, 1, 4 / 5), 0),  # not closed: all of it is read
        ("a</think>b</think>\nHeparin\nAspirin", (2 / 3, 1, 4 / 5), 0),
        ("<think>\nHeparin\nAspirin\n</think>", (0, 0, 0), 0),
    ],
)
def test_matching_as_released_beside_ours(
    text: str, released: tuple[float, ...], ours: float
) -> None:
    target = ["Heparin", "Aspirin"]
    assert release_scores("emar", text, "\n".join(target)) == pytest.approx(released)
    assert set_scores(read_answer(text, "decision").items, target).f1 == pytest.approx(ours)


@pytest.mark.parametrize(
    ("task", "target", "text", "right"),
    [
        ("cdm_disease", "pancreatitis", "Acute Pancreatitis, mild", True),
        ("cdm_disease", "pancreatitis", "appendicitis", False),
        ("cdm_disease", "pancreatitis", "<think>pancreatitis?</think>\nappendicitis", False),
        ("next_event", "labevents", "labevents, then emar", True),
        ("next_event", "labevents", "emar, then labevents", False),
        ("next_event", "labevents", "Labevents", False),
    ],
)
def test_what_the_release_does_not_compare_by_lines(
    task: str, target: str, text: str, right: bool
) -> None:
    assert release_scores(task, text, target) == (right, right, right)


def test_titles_of_a_cdm_stay_end_where_lines_end() -> None:
    text, target = "Sepsis\\nShock\nFever", "Fever\nCough"
    assert release_scores("cdm_icd", text, target) == (1 / 2, 1 / 2, 1 / 2)
