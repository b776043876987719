"""Rewards: what each pays, properness, and how those that fail are told."""

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch

from ehrr1.engines.base import Completion
from ehrr1.errors import UserError
from ehrr1.prompts.tokenizer import train_tokenizer
from ehrr1.reasoning.facts import Citable
from ehrr1.records.markdown import events_of
from ehrr1.scoring.proper import EDGE, WORST_BRIER, WORST_LOG, brier, log_score
from ehrr1.training.prompts import RLPrompt
from ehrr1.training.reward_runner import RewardError, Scores, resolve, score
from ehrr1.training.rewards import (
    REWARDS,
    accuracy_reward,
    brier_reward,
    faithfulness_reward,
    format_reward,
    log_reward,
    overlong_reward,
    set_f1_reward,
)
from ehrr1.training.rollouts import Collector
from tests.conftest import ROOT
from tests.settings import composed
from tests.test_graph import event

CHAIN = "<think>\n## Extraction\na\n## Reasoning\nb\n## Final Results\nx\n</think>\n\n"
BOTH = "<think>\n## Case for yes\nHe is old.\n## Case for no\nHe is well.\n</think>\n\n"


def columns(kind: str, target: tuple[str, ...], think: str, count: int = 1) -> dict[str, list]:
    return {
        "sample_id": [f"s{number}" for number in range(1, count + 1)],
        "task": ["the_task"] * count,
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
    assert accuracy_reward([text], **columns("risk", ("yes",), "none")) == [value]


def test_maybe_yes_is_not_a_no() -> None:
    assert accuracy_reward(["not sure, maybe yes"], **columns("risk", ("no",), "none")) == [0.0]


def test_decision_accuracy_is_set_f1() -> None:
    target = ("Potassium", "Sodium")
    texts = [CHAIN + "sodium\nPOTASSIUM", CHAIN + "Sodium", "Glucose", "<think>\nSodium"]
    assert accuracy_reward(texts, **columns("decision", target, "chain", 4)) == [
        1.0,
        pytest.approx(2 / 3),
        0.0,
        0.0,
    ]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (CHAIN + "Sodium", 1.0),
        (CHAIN.removeprefix("<think>\n") + "Sodium", 1.0),  # the prompt opened the block
        ("<think>\n\n</think>\n\nSodium", 1.0),  # closed, though nothing was thought
        ("Sodium", 0.0),
        ("<think>\nSodium", 0.0),
        (CHAIN.replace("</think>", "") + "Sodium", 0.0),
    ],
)
def test_an_answer_that_must_close_its_think_block(text: str, value: float) -> None:
    given = columns("decision", ("Sodium",), "chain")
    for reward in (accuracy_reward, set_f1_reward):
        assert reward([text], **given, must_close=[True]) == [value]
        assert reward([text, "Sodium"], **columns("decision", ("Sodium",), "chain", 2)) == [
            float(text == "Sodium" or value > 0),
            1.0,
        ]


def test_only_thinking_prompts_must_close_as_released() -> None:
    """Check what the collector passes to the rewards, under the paper's recipe and ours."""
    prompts = [RLPrompt(t, 1, t, "decision", t, ("a",), [1]) for t in ("none", "chain", "both")]  # type: ignore[arg-type]
    done = [Completion([1], [0.0], False)] * 3
    for experiment, closes in (("paper_8b", [False, True, True]), ("demo", [False] * 3)):
        collector = Collector.__new__(Collector)
        collector.settings = composed(f"experiment={experiment}").rl
        collector.weights = collector.settings.rewards
        collector.tokenizer = train_tokenizer({"a": 1}, 300)
        found = collector._columns(prompts, prompts, done)  # type: ignore[arg-type]
        assert found["must_close"] == closes


@pytest.mark.parametrize(
    ("text", "think", "value"),
    [
        (CHAIN + "Sodium", "chain", 1.0),
        (CHAIN + "Sodium\nSodium", "chain", 0.0),  # no answer line twice
        (CHAIN + "Sodium\nsodium", "chain", 1.0),  # records hold names in two letter cases
        ("Sodium", "chain", 0.0),  # thinking was asked for
        (CHAIN.replace("</think>", ""), "chain", 0.0),
        (CHAIN.replace("## Reasoning", "## Extraction") + "Sodium", "chain", 0.0),
        (CHAIN.replace("## Reasoning\n", "") + "Sodium", "chain", 0.0),
        ("Sodium\nPotassium", "none", 1.0),
        ("<think>\n\n</think>\n\nSodium", "none", 1.0),
        (CHAIN + "Sodium", "none", 0.0),  # it was not
    ],
)
def test_format(text: str, think: str, value: float) -> None:
    assert format_reward([text], **columns("decision", ("Sodium",), think)) == [value]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (BOTH + "yes", 1.0),
        (BOTH + "No.", 1.0),
        (BOTH.replace("<think>", "<think>\nLet me see.") + "yes", 1.0),
        (BOTH + "yes, I think", 0.0),
        (BOTH + "yes\nno", 0.0),
        (BOTH, 0.0),
        (BOTH.replace("</think>", "") + "yes", 0.0),
        (BOTH.replace("He is old.", "") + "yes", 0.0),
        (BOTH.replace("He is well.", " ") + "yes", 0.0),
        (BOTH.replace("for no", "for yes") + "yes", 0.0),
        (BOTH.replace("He is well.", "## Case for yes\nStill.") + "yes", 0.0),
        ("<think>\n## Case for no\nb\n## Case for yes\na\n</think>\nyes", 0.0),  # the wrong order
        (CHAIN + "yes", 0.0),
        ("yes", 0.0),
    ],
)
def test_format_with_the_case_for_each_outcome(text: str, value: float) -> None:
    assert format_reward([text], **columns("risk", ("yes",), "both")) == [value]


def risk(texts: list[str], label: str, p: float | None) -> dict[str, Any]:
    count = len(texts)
    return columns("risk", (label,), "none", count) | {"yes_probability": [p] * count}


def test_proper_rewards_by_hand() -> None:
    texts = ["yes", "no", "maybe"]
    right, wrong, unread = brier_reward(texts, **risk(texts, "yes", 0.8))
    assert (right, wrong, unread) == (pytest.approx(1 + 0.2**2), pytest.approx(0.8**2), 0.0)
    right, wrong, unread = log_reward(texts, **risk(texts, "yes", 0.8))
    assert right == pytest.approx(np.log(0.8) + 1 / 0.8 - 1)
    assert wrong == pytest.approx(np.log(0.8) - 1) and unread == WORST_LOG
    # certain and wrong is the worst; and nothing is infinite
    assert brier_reward(["no"], **risk(["no"], "yes", 0.0)) == [WORST_BRIER]
    assert log_reward(["no"], **risk(["no"], "yes", 0.0)) == [pytest.approx(WORST_LOG)]
    assert log_reward(["yes"], **risk(["yes"], "yes", 0.0)) == [pytest.approx(WORST_LOG + 1 / EDGE)]


@pytest.mark.parametrize("reward", [brier_reward, log_reward])
def test_proper_rewards_need_the_probability_of_what_was_read(reward: Callable) -> None:
    decision = columns("decision", ("Na",), "chain") | {"yes_probability": [None]}
    assert reward(["Na"], **decision) == [None]
    assert reward(["perhaps"], **risk(["perhaps"], "no", None))[0] < 0.1
    for p in (None, float("nan"), 1.5):
        with pytest.raises(ValueError, match="sample s1"):
            reward(["no"], **risk(["no"], "no", p))


def brier_score(label: int, p: torch.Tensor) -> torch.Tensor:
    return 1 - (label - p) ** 2


def logarithmic_score(label: int, p: torch.Tensor) -> torch.Tensor:
    inner = p.clamp(EDGE, 1 - EDGE)
    slope = (label - inner) / (inner * (1 - inner))
    return (inner if label else 1 - inner).log() + slope * (p - inner)


@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize("sure", [0.0, 7.0])  # with 7, two probabilities are beyond EDGE
@pytest.mark.parametrize(
    ("rule", "worst", "objective"),
    [(brier, WORST_BRIER, brier_score), (log_score, WORST_LOG, logarithmic_score)],
)
def test_expected_policy_gradient_is_that_of_the_score(
    rule: Callable, worst: float, objective: Callable, label: int, sure: float
) -> None:
    """Three chains, and after each an answer: no, yes, or something that cannot be read."""
    torch.manual_seed(0)
    logits = torch.randn(3, 4, dtype=torch.float64)
    logits[:, 2] += sure * torch.tensor([1, 0, -1])
    logits.requires_grad_()
    chains = logits[:, 0].log_softmax(0)
    logprobs = chains[:, None] + logits[:, 1:].log_softmax(1)
    p = (logits[:, 2] - logits[:, 1]).sigmoid()
    assert ((p < EDGE) | (p > 1 - EDGE)).sum() == (2 if sure else 0)

    rewards = torch.tensor(
        [
            [rule(bool(label), answer, one) for answer in (False, True)] + [worst]
            for one in p.tolist()
        ],
        dtype=torch.float64,
    )
    surrogate = (logprobs.exp().detach() * rewards * logprobs).sum()
    (policy_gradient,) = torch.autograd.grad(surrogate, logits, retain_graph=True)

    read = 1 - logits[:, 1:].softmax(1)[:, 2]
    expected = (chains.exp() * (read * objective(label, p) + (1 - read) * worst)).sum()
    (gradient,) = torch.autograd.grad(expected, logits)
    assert torch.allclose(policy_gradient, gradient, rtol=1e-9, atol=1e-12)
    assert gradient.abs().max() > 1e-3


def learnt(name: str, scaled: bool = False, temperature: float = 1.0) -> float:
    """Return the probability of yes that policy gradient learns where 0.3 of the labels are yes."""
    generator = np.random.default_rng(0)
    logit, late = 1.0, []
    for step in range(1200):
        p = 1 / (1 + np.exp(-logit))
        # worth[label, answer]
        words = ["no", "yes"]
        worth = np.array([REWARDS[name](words, **risk(words, label, p)) for label in words])
        labels = (generator.random(64) < 0.3).astype(int)
        sampled = 1 / (1 + np.exp(-logit / temperature))
        answers = (generator.random((64, 8)) < sampled).astype(int)
        rewards = worth[labels[:, None], answers]
        advantages = rewards - rewards.mean(axis=1, keepdims=True)
        if scaled:
            advantages /= rewards.std(axis=1, keepdims=True) + 1e-6
        logit += 0.5 * (advantages * (answers - sampled)).mean() / temperature
        late += [p] * (step >= 900)
    return float(np.mean(late))


@pytest.mark.parametrize("name", ["brier", "log"])
def test_policy_learns_the_frequency_of_the_label(name: str) -> None:
    assert learnt(name) == pytest.approx(0.3, abs=0.03)
    assert learnt(name, temperature=0.7) == pytest.approx(0.3, abs=0.03)  # at temperature 1


def test_accuracy_and_scaled_groups_drive_the_probability_to_an_end() -> None:
    assert learnt("accuracy") < 0.02
    assert learnt("brier", scaled=True) < 0.02


@pytest.mark.parametrize(
    ("tokens", "value"), [(1, 0.0), (80, 0.0), (85, -0.25), (90, -0.5), (100, -1.0), (120, -1.0)]
)
def test_overlong(tokens: int, value: float) -> None:
    assert overlong_reward([""], tokens=[tokens], max_tokens=[100]) == [pytest.approx(value)]


NOW = datetime(2150, 3, 4, 20)
NOTHING = Citable([], NOW)
ALLOWED = Citable(
    [event("labevents", 9, ["Glucose", "Stool: culture"], Valuenum="140", Valueuom="mg/dL")], NOW
)


@pytest.mark.parametrize(
    ("cited", "value"),
    [
        ("Glucose | Labotary Test Events | 09:00", 0.5),
        ("Glucose: 140 | Labotary Test Events | 2150-03-04 09:00", 0.5),
        ("Stool: culture | Labotary Test Events | 09:00", 0.5),  # a colon within the name
        ("Stool: culture: 140 | Labotary Test Events | 09:00", 0.5),
        ("Glucose: 141 | Labotary Test Events | 09:00", 0.0),
        ("Glucose: mg/dL | Labotary Test Events | 09:00", 0.0),  # shown, but not its value
        ("Glucose: 140 | Labotary Test Events | 09:01", 0.0),
        ("Stool: 140 | Labotary Test Events | 09:00", 0.0),
        ("Sodium | Labotary Test Events | 09:00", 0.0),
        ("glucose was high", 0.0),
        ("Glucose | Labotary Test Events | 09:00\nSodium | Labotary Test Events | 09:00", 1 / 3),
    ],
)
def test_faithfulness(cited: str, value: float) -> None:
    text = CHAIN.replace("## Extraction\na", f"## Extraction\n{cited}") + "x"
    given = columns("decision", ("x",), "chain") | {"citable": [ALLOWED]}
    # the result "x" has no reason, which is one claim more that does not hold
    assert faithfulness_reward([text], **given) == [pytest.approx(value)]
    argued = text.replace("\nb\n", f"\n{cited.split(' | ')[0]} | -> | x\n")
    assert faithfulness_reward([argued], **given)[0] >= value


def test_faithfulness_where_there_is_no_chain() -> None:
    chain = CHAIN.replace("\na\n", "\nGlucose | Labotary Test Events | 09:00\n")
    given = columns("decision", ("x",), "chain", 3) | {"citable": [ALLOWED] * 3}
    unread = [chain.replace("## Reasoning", ""), "x", chain.replace("</think>", "")]
    assert faithfulness_reward(unread, **given) == [0.0] * 3
    for think in ("none", "both"):
        given["think"] = [think] * 3
        assert faithfulness_reward([chain] * 3, **given) == [None] * 3
    given = columns("decision", ("x",), "chain") | {"citable": [NOTHING]}
    assert faithfulness_reward([chain], **given) == [None]


def test_an_event_that_came_as_text_supports_nothing() -> None:
    assert not Citable(events_of("## Strange heading [None]\n- Name: x"), NOW)


def scored(
    weights: dict[str, float], count: int = 3, seconds: float | None = None, **own: Callable
) -> Scores:
    """The scores by `weights` and, with weight 1, by rewards of one's `own`."""
    texts = ["yes", "no", "perhaps", "", "<think>", "yes"][:count]
    given = columns("risk", ("yes",), "none", count)
    with patch.dict(REWARDS, own):
        return score(texts, given, weights | dict.fromkeys(own, 1.0), seconds)


def test_total_is_the_weighted_sum_of_what_applies() -> None:
    found = scored({"accuracy": 1.0, "format": 0.5})
    assert found.total == [1.5, 0.5, 0.0]
    assert found.parts == {"accuracy": [1.0, 0.0, 0.0], "format": [1.0, 1.0, 0.0]}
    found = scored({"accuracy": 2.0}, mine=lambda completions, **columns: [None, 1, None])
    assert found.total == [2.0, 1.0, 0.0]
    assert scored({"accuracy": 0.0}).total == [0.0] * 3


def test_unreadable_is_told_from_wrong() -> None:
    assert scored({}, 5).problems == [
        None,
        None,
        "neither yes nor no",
        "empty answer",
        "think block is not closed",
    ]


async def slowly(completions: list[str], **columns: list[Any]) -> list[float]:
    await asyncio.sleep(0.4)
    return [1.0] * len(completions)


def test_async_rewards_run_together_and_on_one_loop() -> None:
    loops = []

    async def watching(completions: list[str], **columns: list[Any]) -> list[float]:
        loops.append(asyncio.get_running_loop())
        return await slowly(completions)

    begin = time.monotonic()
    found = scored({"accuracy": 1.0}, a=slowly, b=slowly, c=slowly, d=slowly, w=watching)
    assert time.monotonic() - begin < 1.2
    assert found.total == [6.0, 5.0, 5.0] and list(found.parts) == ["accuracy", *"abcdw"]
    scored({}, seconds=5, w=watching)
    assert loops[0] is loops[1]  # a client that stays open belongs to its loop


def raising(completions: list[str], **columns: list[Any]) -> list[float]:
    raise KeyError("the patient's text")


async def raising_later(completions: list[str], **columns: list[Any]) -> list[float]:
    raise KeyError("the patient's text")


@pytest.mark.parametrize("reward", [raising, raising_later])
@pytest.mark.parametrize("seconds", [None, 5.0])
def test_a_reward_that_raises_is_named_and_its_line_is_shown(
    reward: Callable, seconds: float | None
) -> None:
    with pytest.raises(RewardError) as found:
        scored({}, 6, seconds, mine=reward)
    assert str(found.value) == "rl.rewards.mine raised KeyError, samples s1, s2, s3, ..."
    cause = found.value.__cause__
    assert isinstance(cause, KeyError) and cause.__traceback__ is not None
    last = cause.__traceback__
    while last.tb_next:
        last = last.tb_next
    assert last.tb_frame.f_code is reward.__code__


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([0.0, float("nan"), 0.0], "rl.rewards.mine is nan for sample s2 of task the_task"),
        ([0.0, 0.0, -float("inf")], "rl.rewards.mine is -inf for sample s3 of task the_task"),
        ([1.0], "returned 1 values for 3 completions"),
        (1.0, "returned float, not a list"),
        (None, "returned NoneType, not a list"),
        ([1.0, "0.5", 0.0], "returned str, not a number, for sample s2"),
        (torch.ones(3), "returned Tensor, not a list"),
    ],
)
def test_what_is_no_reward(returned: Any, message: str) -> None:
    with pytest.raises(RewardError, match=message):
        scored({}, mine=lambda completions, **columns: returned)


@pytest.mark.parametrize(
    ("define", "body"),
    [
        ("def", "time.sleep(99)"),
        ("def", "while True: pass"),
        ("async def", "await asyncio.sleep(99)"),
        ("async def", "time.sleep(99)"),  # blocks the loop
    ],
)
def test_a_reward_that_hangs_is_named_and_the_process_ends(define: str, body: str) -> None:
    program = (
        "import asyncio, time\n"
        "from ehrr1.training.rewards import REWARDS\n"
        "from ehrr1.training.reward_runner import score\n"
        f"{define} hangs(completions, **columns):\n    {body}\n"
        "columns = {'sample_id': ['s1'], 'task': ['t'], 'kind': ['risk']}\n"
        "REWARDS['mine'] = hangs\n"
        "score(['yes'], columns, {'mine': 1.0}, 0.3)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and "RewardError: rl.rewards.mine: not done after" in last
    assert "rl.reward_timeout_seconds=0.3" in last


def test_a_blocked_loop_does_not_take_later_rewards_along() -> None:
    async def blocks(completions: list[str], **columns: list[Any]) -> list[float]:
        time.sleep(2)
        return [0.0] * len(completions)

    with pytest.raises(RewardError, match=r"rl\.rewards\.mine: not done"):
        scored({}, seconds=0.2, mine=blocks)
    assert scored({}, seconds=1.5, mine=slowly).total == [1.0] * 3


OWN = "def length(completions, **columns):\n    return [float(len(c)) for c in completions]\n"


@pytest.fixture
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which a user types the command; it has a module of rewards."""
    (tmp_path / "own_rewards.py").write_text(OWN)
    (tmp_path / "broken_rewards.py").write_text("def length(:\n")
    (tmp_path / "poor_rewards.py").write_text("import no_such_package\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.delitem(sys.modules, "own_rewards", raising=False)
    return tmp_path


@pytest.mark.parametrize(
    "override",
    ["+rl.rewards={own_rewards.length: 0.5}", "+rl.rewards.own_rewards.length=0.5"],
)
def test_a_reward_of_the_users_own_from_the_command_line(own_folder: Path, override: str) -> None:
    weights = composed("experiment=smoke", override, "rl.rewards.format=0").rl.rewards
    assert weights == {"accuracy": 1.0, "format": 0, "own_rewards.length": 0.5}
    assert scored(weights).total == [1 + 1.5, 1.0, 3.5]


def test_rewards_that_cannot_be_found_are_told_together(own_folder: Path) -> None:
    names = {
        "acuracy": "no such reward; choose among accuracy, set_f1, format, brier, log",
        "..length": "no such reward",
        "no_module.length": f"(No module named 'no_module'); it is looked for in {own_folder}",
        "broken_rewards.length": "broken_rewards cannot be imported (invalid syntax",
        "poor_rewards.length": "(No module named 'no_such_package')",
        "own_rewards.width": "own_rewards has no function width",
        "own_rewards.__name__": "own_rewards has no function __name__",
    }
    with pytest.raises(UserError) as found:
        resolve(names)
    for name, problem in names.items():
        assert f"rl.rewards.{name}: " in str(found.value) and problem in str(found.value)


def test_set_f1_leaves_risk_tasks_alone() -> None:
    kinds = {"kind": ["decision", "risk"], "target": [("Urea",), ("yes",)]}
    assert set_f1_reward(["Urea\nSodium", "yes"], **kinds) == [pytest.approx(2 / 3), None]
