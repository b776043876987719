"""Rewards: in [0, 1], the release's defects mended."""

import math

import pytest

from ehrr1.training import rewards
from ehrr1.training.rewards import accuracy_reward, format_reward, score

CHAIN = "<think>\n## Extraction\na\n## Reasoning\nb\n## Final Results\nx\n</think>\n\n"


def columns(kind: str, target: tuple[str, ...], think: bool, count: int = 1) -> dict[str, list]:
    return {
        "sample_id": ["s1"] * count,
        "kind": [kind] * count,
        "target": [target] * count,
        "think": [think] * count,
    }


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("yes", 1.0),
        ("\n\nYes", 1.0),  # a blank line after </think> does no harm
        ("<think>\n\n</think>\n\nYES.", 1.0),
        ("no", 0.0),
        ("not sure, maybe yes", 0.0),
        ("", 0.0),
    ],
)
def test_risk_accuracy(text: str, value: float) -> None:
    assert accuracy_reward([text], **columns("risk", ("yes",), False)) == [value]


def test_maybe_yes_is_not_a_no() -> None:
    assert accuracy_reward(["not sure, maybe yes"], **columns("risk", ("no",), False)) == [0.0]


def test_decision_accuracy_is_set_f1() -> None:
    target = ("Potassium", "Sodium")
    texts = [CHAIN + "sodium\nPOTASSIUM", CHAIN + "Sodium", "Glucose", "<think>\nSodium"]
    assert accuracy_reward(texts, **columns("decision", target, True, 4)) == [
        1.0,
        pytest.approx(2 / 3),
        0.0,
        0.0,
    ]


@pytest.mark.parametrize(
    ("text", "think", "value"),
    [
        (CHAIN + "Sodium", True, 1.0),
        (CHAIN + "Sodium\nsodium", True, 0.0),  # no answer line twice
        ("Sodium", True, 0.0),  # thinking was asked for
        (CHAIN.replace("</think>", ""), True, 0.0),
        (CHAIN.replace("## Reasoning", "## Extraction") + "Sodium", True, 0.0),
        (CHAIN.replace("## Reasoning\n", "") + "Sodium", True, 0.0),
        ("Sodium\nPotassium", False, 1.0),
        ("<think>\n\n</think>\n\nSodium", False, 1.0),
        (CHAIN + "Sodium", False, 0.0),  # it was not
    ],
)
def test_format(text: str, think: bool, value: float) -> None:
    assert format_reward([text], **columns("decision", ("Sodium",), think)) == [value]


def test_score_weighs_what_applies_and_tells_unreadable_from_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    texts = ["yes", "no", "perhaps"]
    found = score(texts, columns("risk", ("yes",), False, 3), {"accuracy": 1.0, "format": 0.5})
    assert found.total == [1.0, pytest.approx(1 / 3), 0.0]
    assert found.unreadable == [False, False, True]
    monkeypatch.setitem(rewards.REWARDS, "format", lambda completions, **_: [None] * 3)
    found = score(texts, columns("risk", ("yes",), False, 3), {"accuracy": 1.0, "format": 0.5})
    assert found.total == [1.0, 0.0, 0.0]


def test_a_reward_that_is_not_finite_names_its_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(rewards.REWARDS, "accuracy", lambda completions, **_: [math.nan])
    with pytest.raises(ValueError, match="s1"):
        score(["yes"], columns("risk", ("yes",), False), {"accuracy": 1.0})
