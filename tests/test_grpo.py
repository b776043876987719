"""GRPO: the losses as in the papers, the step as the algorithm, and learning from a toy reward."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ehrr1.models.logprobs import token_logprobs
from ehrr1.prompts.forest import collate
from ehrr1.prompts.steps import StepData, Steps
from ehrr1.prompts.trees import Branch, Tree
from ehrr1.rollout.transformers import Completion
from ehrr1.training import rewards
from ehrr1.training.fitting import fit
from ehrr1.training.grpo import GRPOModule, Prompt
from ehrr1.training.losses import group_advantages, grpo_loss, kl_k3
from tests.conftest import ROOT
from tests.test_models import small

TRAINER = OmegaConf.create(
    {
        "strategy": "single",
        "offload": False,
        "accelerator": "cpu",
        "devices": 1,
        "nodes": 1,
        "precision": "32-true",
        "activation_checkpointing": False,
    }
)


def rl_settings(**changes: Any) -> DictConfig:
    settings = OmegaConf.load(ROOT / "conf" / "rl.yaml")
    assert isinstance(settings, DictConfig)
    settings.update({"max_completion_tokens": 6, "temperature": 1.0, "top_p": 1.0, "top_k": 0})
    settings.update(changes)
    return settings


def test_advantages_are_normalised_by_group() -> None:
    rewards = torch.tensor([[0.0, 1.0, 1.0, 0.0], [0.3, 0.3, 0.3, 0.3], [0.2, 0.4, 0.9, 0.1]])
    found = group_advantages(rewards)
    assert torch.allclose(found.mean(1), torch.zeros(3), atol=1e-6)
    assert torch.allclose(found[[0, 2]].std(1), torch.ones(2), atol=1e-4)
    assert found[1].eq(0).all()
    with pytest.raises(ValueError, match="finite"):
        group_advantages(torch.tensor([[0.0, math.nan]]))


def test_loss_by_hand() -> None:
    """Ratios 1.5 and 0.5, clipped to 0.8..1.2: with advantage +1 the first is bounded, with -1
    the second (arXiv 1707.06347, figure 1)."""
    logprobs = torch.tensor([1.5, 0.5, 1.5, 0.5]).log().requires_grad_()
    advantages = torch.tensor([1.0, 1.0, -1.0, -1.0])
    weights = torch.tensor([0.5, 0.25, 0.125, 1.0])
    found = grpo_loss(logprobs, torch.zeros(4), advantages, weights, epsilon=0.2)
    expected = -(0.5 * 1.2 + 0.25 * 0.5 + 0.125 * -1.5 + 1.0 * -0.8)
    assert found.loss.item() == pytest.approx(expected)
    assert found.clipped == 2
    [gradient] = torch.autograd.grad(found.loss, logprobs)
    assert gradient.tolist() == pytest.approx([0.0, -0.125, 0.1875, 0.0])


def test_divergence_is_k3_and_pulls_towards_the_reference() -> None:
    logprobs = torch.tensor([-1.0, -2.0], requires_grad=True)
    reference = torch.tensor([-1.5, -2.0])
    assert kl_k3(logprobs, reference).tolist() == pytest.approx([math.exp(-0.5) - 0.5, 0.0])
    found = grpo_loss(
        logprobs,
        logprobs.detach(),
        torch.zeros(2),
        torch.ones(2),
        epsilon=0.2,
        beta=0.1,
        reference=reference,
    )
    assert found.loss.item() == pytest.approx(0.1 * (math.exp(-0.5) - 0.5))
    [gradient] = torch.autograd.grad(found.loss, logprobs)
    assert gradient[0] > 0 and gradient[1] == 0


def prompts(count: int = 4) -> list[Prompt]:
    return [
        Prompt(f"s{n}", n, "labevents", "decision", False, ("Potassium",), [5 + n, 6, 7, 8 + n])
        for n in range(count)
    ]


Start = tuple[PreTrainedModel, PreTrainedTokenizerBase]


def module(
    seed: int = 0, updates: int = 10, start: Start | None = None, **changes: Any
) -> GRPOModule:
    model, tokenizer = start or small()
    return GRPOModule(model, tokenizer, rl_settings(**changes), updates, 64, seed)


def test_truncated_and_flat_completions_leave_the_update() -> None:
    one = module()
    done = Completion([10, 11, 2], [-1.0, -1.0, -1.0], truncated=False)
    cut = Completion([10, 11, 12], [-1.0, -1.0, -1.0], truncated=True)
    groups = [[done, cut, done], [done, done, done]]
    advantages = torch.tensor([[1.0, -2.0, 1.0], [0.0, 0.0, 0.0]])
    forests, scored = one.forests(prompts(2), groups, advantages)
    assert sorted(scored) == ["s0#0", "s0#2"]
    # numerator: two completions; denominator: the five that were not cut, three tokens each
    assert sum(forest.weights.sum().item() for forest in forests) == pytest.approx(2 / 5)
    assert one.forests(prompts(1), [[cut, cut]], torch.ones(1, 2)) == ([], {})


def test_the_sampling_policy_is_the_policy_itself() -> None:
    """On-policy the ratio is 1, so the loss is minus the mean advantage and nothing is clipped."""
    one = module(start=speaker(), temperature=0.8)
    groups = one.generate(prompts())
    advantages = torch.tensor([[1.0, -1.0] * 8] * 4)
    forests, scored = one.forests(prompts(), groups, advantages)
    sums = {name: 0.0 for name in ("learnt", "entropy", "clipped", "kl", "ratio")}
    loss = sum(one.loss(forest, scored, sums).item() for forest in forests)
    counted = [
        advantage
        for group, row in zip(groups, advantages.tolist(), strict=True)
        for completion, advantage in zip(group, row, strict=True)
        if not completion.truncated
    ]
    assert loss == pytest.approx(-sum(counted) / len(counted), abs=1e-4)
    assert sums["ratio"] / sums["learnt"] == pytest.approx(1, abs=1e-4)
    assert sums["clipped"] == 0


def run(
    folder: Path, steps: int, start: Start | None = None, seed: int = 0, **changes: Any
) -> list[dict[str, float]]:
    plan = [[0, 1, 2, 3]] * steps
    data = StepData(Steps(plan, lambda indices: [prompts()[index] for index in indices]))
    one = module(seed, steps, start, **changes)
    fit(one, data, folder, TRAINER, description="rl", seed=seed, save_seconds=0)
    return [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]


WORDS = ("yes", "no", "Potassium", "Sodium", "Heparin", "Insulin", "Urea", "Lactate")


def speaker() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model that answers any prompt with one of eight words."""
    model, tokenizer = small()
    answers = [tokenizer(word)["input_ids"] + [tokenizer.eos_token_id] for word in WORDS]
    trees = [Tree(one.tokens, [Branch("", [], ids) for ids in answers]) for one in prompts()]
    forest = collate(trees)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        loss = -token_logprobs(model, forest).logprobs.mean()
        loss.backward()
        optimizer.step()
    return model, tokenizer


def test_learns_a_toy_reward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A word that an eighth of the first completions are; the reference keeps its weights."""

    def says_urea(texts: list[str], **columns: list[Any]) -> list[float | None]:
        return [float(text == "Urea") for text in texts]

    monkeypatch.setitem(rewards.REWARDS, "accuracy", says_urea)
    lines = run(tmp_path, 60, speaker(), lr=5e-3, rewards={"accuracy": 1.0}, beta=0.001)
    first = sum(line["reward"] for line in lines[:3]) / 3
    last = sum(line["reward"] for line in lines[-3:]) / 3
    assert first < 0.4 and last > 0.95, (first, last)
    assert all(math.isfinite(line["loss"]) for line in lines)
    assert lines[-1]["kl"] > abs(lines[0]["kl"])
    names = "reward/accuracy entropy clipped length truncated parse_failures tokens seconds"
    assert set(names.split()) <= lines[0].keys()
    assert {"timing/generate", "timing/score", "timing/update"} <= lines[0].keys()


def test_resumed_run_repeats_the_uninterrupted_one(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", 4, lr=1e-2)

    class StopError(Exception):
        pass

    calls = 0
    generate = GRPOModule.generate

    def failing(self: GRPOModule, some: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise StopError
        return generate(self, some)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(StopError):
        patch.setattr(GRPOModule, "generate", failing)
        run(tmp_path / "broken", 4, lr=1e-2)
    again = run(tmp_path / "broken", 4, lr=1e-2)
    assert [line["step"] for line in again] == [1, 2, 3, 4]
    for name in ("loss", "reward", "grad_norm", "entropy", "lr"):
        assert [line[name] for line in again] == [line[name] for line in whole], name
    assert again[-1]["resumed_from"] == 2
