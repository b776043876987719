"""GRPO: the step as the algorithm, learning from a toy reward, resume, and what goes wrong."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ehrr1.config.training import RL, Lora, TrainerSettings
from ehrr1.engines.base import Completion, SamplingParams
from ehrr1.engines.transformers import TransformersEngine
from ehrr1.engines.weight_sync import OutOfSyncError
from ehrr1.models.loading import Sharding, add_adapters
from ehrr1.models.logprobs import token_logprobs
from ehrr1.models.weights import whole_weights
from ehrr1.prompts.forest import collate
from ehrr1.prompts.trees import Branch, Tree
from ehrr1.scoring.risk import AnswerTokens
from ehrr1.training import grpo
from ehrr1.training.groups import Group, divided, lay_out
from ehrr1.training.grpo import EngineSpec, GRPOModule, Policy
from ehrr1.training.losses import PolicySettings, Tokens, policy_loss
from ehrr1.training.probabilities import yes_probabilities
from ehrr1.training.prompts import PromptData, RLPrompt, easy_first
from ehrr1.training.reward_runner import RewardError
from ehrr1.training.trainer import fit
from tests.settings import changed, composed
from tests.test_models import small

TRAINER = TrainerSettings(
    strategy="single",
    offload=False,
    accelerator="cpu",
    devices=1,
    nodes=1,
    precision="32-true",
    activation_checkpointing=False,
    save_top_k=0,
    monitor="eval/loss",
)

WORDS = ("yes", "no", "Potassium", "Sodium", "Heparin", "Insulin", "Urea", "Lactate")

Start = tuple[PreTrainedModel, PreTrainedTokenizerBase]


def says_urea(completions: list[str], **columns: list[Any]) -> list[float | None]:
    return [float(text == "Urea") for text in completions]


def says_yes(completions: list[str], **columns: list[Any]) -> list[float | None]:
    """No signal for most groups of eight."""
    return [float(text == "yes") for text in completions]


def fails(completions: list[str], **columns: list[Any]) -> list[float | None]:
    raise OSError("no judge there")


UREA, YES, FAILS = (f"tests.test_grpo.{name}" for name in ("says_urea", "says_yes", "fails"))


class Listed(list[RLPrompt]):
    """Prompts that are there already."""

    @property
    def tasks(self) -> list[str]:
        return [prompt.task for prompt in self]


def prompts(count: int = 4, kind: str = "decision") -> Listed:
    return Listed(
        RLPrompt(f"s{n}", n, "labevents", kind, "none", ("Potassium",), [5 + n, 6, 7, 8 + n])
        for n in range(count)
    )


def rl_settings(**changes: Any) -> RL:
    plainly = {"max_prompt_tokens": 20, "max_completion_tokens": 6}
    plainly |= {"temperature": 1.0, "top_p": 1.0, "top_k": 0}
    found: RL = changed(composed("experiment=released").rl, **plainly | changes)
    return found


def speaker(lora: Lora | None = None) -> Start:
    """A model that answers any prompt with one of eight words."""
    model, tokenizer = small()
    answers = [tokenizer(word)["input_ids"] + [tokenizer.eos_token_id] for word in WORDS]
    trees = [Tree(one.tokens, [Branch("", [], ids) for ids in answers]) for one in prompts(8)]
    forest = collate(trees)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        loss = -token_logprobs(model, forest).logprobs.mean()
        loss.backward()
        optimizer.step()
    if lora is not None:
        add_adapters(model, lora)
    return model, tokenizer


def run(
    folder: Path,
    steps: int,
    start: Start | None = None,
    asked: Listed | None = None,
    engine: Callable[[PreTrainedModel], Any] | None = None,
    callbacks: Any = None,
    **changes: Any,
) -> list[dict[str, Any]]:
    """The lines of train.jsonl of a run whose every rollout asks the first four prompts."""
    model, tokenizer = start or small()
    asked = prompts() if asked is None else asked
    first = {name: weights.clone() for name, weights in model.state_dict().items()}

    def reference(sharding: Sharding | None) -> PreTrainedModel:
        other, _ = small()
        other.load_state_dict(first)
        return other

    with_adapters = any("lora" in name for name in first)
    data = PromptData(asked, prompts(2), [[0, 1, 2, 3]] * steps)  # type: ignore[arg-type]
    module = GRPOModule(
        Policy(lambda sharding: model, tokenizer, None if with_adapters else reference),
        rl_settings(**changes),
        data,
        EngineSpec(engine or (lambda model: TransformersEngine(model, tokenizer)), 1e-4),
        folder,
        seed=0,
        shown=True,
    )
    given: dict[str, Any] = {"logger": composed().logger, "callbacks": callbacks}
    fit(module, data, folder, TRAINER, description="rl", seed=0, save_seconds=0, **given)
    return [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]


def group(rewards: list[float], lengths: list[int], cut: int = 0, name: str = "s0") -> Group:
    """Completions of those lengths, the last `cut` of them cut by the length limit."""
    count = len(rewards)
    completions = [
        Completion(list(range(10, 10 + length)), [-1.0] * length, number >= count - cut)
        for number, length in enumerate(lengths)
    ]
    prompt = RLPrompt(name, 0, "labevents", "decision", "none", ("Urea",), [5, 6, 7, 8])
    made = Group(prompt, completions, [""] * count, rewards, {}, [None] * count)
    made.advantages = rewards
    return made


def test_truncated_and_flat_completions_leave_the_update() -> None:
    groups = [group([1.0, 1.0, -2.0], [3, 3, 3], cut=1), group([0.0, 0.0, 0.0], [3, 3, 3])]
    rows = lay_out(groups, rl_settings())
    # numerator: two completions; denominator: the five that were not cut, three tokens each
    assert sum(row.forest.weights.sum().item() for row in rows) == pytest.approx(2 / 5)
    assert [one for row in rows for one in row.advantages.tolist()] == [1.0] * 6
    with_reference = lay_out(groups, rl_settings(beta=0.1))
    assert sum(row.forest.weights.sum().item() for row in with_reference) == pytest.approx(1)
    [nothing] = lay_out([group([1.0, 0.0], [3, 3], cut=2)], rl_settings())
    assert nothing.forest.tokens == 0 and nothing.forest.weights.sum() == 0
    kept = lay_out([group([1.0, -1.0], [3, 3], cut=2)], rl_settings(mask_truncated=False))
    assert sum(row.forest.weights.sum().item() for row in kept) == pytest.approx(1)


@pytest.mark.parametrize("loss", ["grpo", "dapo", "dr_grpo", "gspo"])
def test_a_group_in_one_row_or_in_several(loss: str) -> None:
    """The prompt is then computed again for each; the step's gradient stays what it is."""
    model, _ = small()
    groups = [group([1.0, -0.5, 0.3, -0.8], [5, 2, 4, 6]), group([0.5, -0.5], [3, 1], name="s1")]
    gradients = []
    for room in (1000, 12, 1):
        settings = rl_settings(loss=loss, max_batch_tokens=room)
        rows = [row for rank in range(2) for row in lay_out(groups, settings, rank, 2)]
        assert (len(rows) > 2) == (room < 1000)
        model.zero_grad()
        for row in rows:
            now = token_logprobs(model, row.forest).logprobs
            tokens = Tokens(
                now, now.detach(), row.advantages, row.forest.owners, row.forest.weights
            )
            chosen = PolicySettings(loss, "token", 0.2, 0.2, 0.0, "k3", "none", 2.0)
            policy_loss(tokens, chosen).loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    for other in gradients[1:]:
        assert (other - gradients[0]).norm() < 1e-5 * gradients[0].norm()


def test_a_tree_is_divided_within_its_room() -> None:
    branches = [Branch(str(length), [1], [2] * length) for length in (3, 9, 4, 1, 6)]
    parts = divided(Tree([0] * 10, branches), 22)
    assert sorted(b.sample_id for part in parts for b in part.branches) == sorted("39416")
    assert all(len(part) <= 22 for part in parts) and len(parts) < 5
    assert len(divided(Tree([0] * 10, branches), 5)) == 5


class Watched(TransformersEngine):
    """An engine that notes what the trainer asks of it, and when."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.calls: list[str] = []

    def stream(self, *given: Any, **named: Any) -> Any:
        self.calls.append("generate")
        return super().stream(*given, **named)

    def load_weights(self, weights: Any) -> None:
        self.calls.append("load")
        super().load_weights(weights)

    def sleep(self) -> None:
        self.calls.append("sleep")


def test_the_engine_sleeps_from_the_last_completion_to_the_new_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever needs the trainer's memory lies between: reference, old log-probabilities, updates.
    It sleeps once a rollout, also where groups are replaced in further rounds."""
    start = small()
    engine = Watched(*start)
    update = GRPOModule.update

    def watched(*given: Any) -> Any:
        engine.calls.append("update")
        return update(*given)

    monkeypatch.setattr(GRPOModule, "update", watched)
    more: dict[str, Any] = {"inner_epochs": 2, "dynamic_sampling": 1, "rewards": {YES: 1.0}}
    run(tmp_path, 2, start, prompts(8), lambda model: engine, beta=0.1, **more)
    told = " ".join(engine.calls)
    # the probe of long positions and the held-out prompts come before the first rollout
    assert re.fullmatch(
        r"load generate generate( (generate )+sleep update update load){2} generate", told
    )


def test_the_sampling_policy_is_the_policy_itself(tmp_path: Path) -> None:
    """On-policy the ratio is 1 and nothing is clipped, whatever the temperature."""
    [line] = run(tmp_path, 1, speaker(), temperature=0.8, rewards={UREA: 1.0})
    assert line["ratio"] == 1
    assert line["sampling/importance_sampling_ratio/mean"] == pytest.approx(1, abs=1e-4)
    assert line["sampling/sampling_logp_difference/mean"] < 1e-4
    assert line["clip_ratio/low_mean"] == line["clip_ratio/high_mean"] == 0
    written = pl.read_parquet(tmp_path / "completions" / "*.parquet")
    counted = written.filter(~pl.col("truncated"))["advantage"]
    assert line["loss"] == pytest.approx(-counted.mean(), abs=1e-5) and line["grad_norm"] > 0


@pytest.mark.parametrize("loss", ["grpo", "dr_grpo", "dapo", "gspo", "cispo"])
@pytest.mark.slow
def test_learns_a_toy_reward(tmp_path: Path, loss: str) -> None:
    """A word that an eighth of the first completions are."""
    lines = run(tmp_path, 60, speaker(), lr=5e-3, loss=loss, rewards={UREA: 1.0}, beta=0.001)
    first = sum(line["reward"] for line in lines[:3]) / 3
    last = sum(line["reward"] for line in lines[-3:]) / 3
    assert first < 0.4 and last >= 0.95, (first, last)
    assert all(math.isfinite(line["loss"]) for line in lines)
    learnt = [line for line in lines if "kl" in line]
    assert learnt[-1]["kl"] > abs(learnt[0]["kl"])


def test_what_is_watched_and_written(tmp_path: Path) -> None:
    lines = run(tmp_path, 2, speaker(), lr=1e-3, rewards={UREA: 1.0, "format": 0.2})
    names = {
        "reward", "reward_std", "frac_reward_zero_std", f"rewards/{UREA}/mean",
        "rewards/format/std", "rewards/task/labevents/mean", "completions/mean_length",
        "completions/clipped_ratio", "parse_failures", "kl", "entropy", "clip_ratio/high_mean",
        "tokens", "generated_tokens_per_second", "loss", "grad_norm", "lr", "updates",
        *(f"timing/{phase}" for phase in ("generate", "score", "prepare", "update", "sync")),
    }  # fmt: skip
    assert names <= lines[0].keys()
    written = pl.read_parquet(tmp_path / "completions" / "*.parquet")
    assert written["step"].to_list() == [1] * 64 + [2] * 64
    sizes = written.group_by("step", "prompt_id").len()["len"]
    assert sizes.to_list() == [16] * 8
    one = written.filter(pl.col("step") == 1)
    assert one["reward"].mean() == pytest.approx(lines[0]["reward"], abs=1e-6)
    assert one["tokens"].mean() == pytest.approx(lines[0]["completions/mean_length"])
    assert one["advantage"].sum() == pytest.approx(0, abs=1e-4)
    total = one[f"reward/{UREA}"] + 0.2 * one["reward/format"]
    assert total.to_list() == pytest.approx(one["reward"].to_list())
    before, after = (json.loads((tmp_path / f"{n}.json").read_text()) for n in ("before", "after"))
    assert len(before["total"]) == len(after["format"]) == 2


def test_inner_epochs_and_minibatches(tmp_path: Path) -> None:
    """Four steps a rollout; all but the first are off the policy that sampled."""
    changes = {"inner_epochs": 2, "minibatches": 2, "lr": 2e-2, "warmup": 0.0}
    lines = run(tmp_path, 3, speaker(), rewards={UREA: 1.0}, **changes)
    assert [line["updates"] for line in lines] == [4, 4, 4]
    assert any(line["clip_ratio/high_mean"] + line["clip_ratio/low_mean"] > 0 for line in lines)
    assert all(line["ratio"] != 1 for line in lines)
    # the engine's are compared with the trainer's at the time of sampling, not after a step
    assert all(line["sampling/sampling_logp_difference/mean"] < 1e-4 for line in lines)


def test_groups_without_signal_are_replaced_in_bounds(tmp_path: Path) -> None:
    given: dict[str, Any] = {"group_size": 2, "rewards": {YES: 1.0}, "asked": prompts(8)}
    plain = run(tmp_path / "plain", 4, speaker(), **given)
    more = run(tmp_path / "more", 4, speaker(), dynamic_sampling=3, **given)
    flat = "frac_reward_zero_std"
    assert sum(line[flat] for line in more) < sum(line[flat] for line in plain)
    assert sum(line["replaced_groups"] for line in more) > 0
    written = pl.read_parquet(tmp_path / "more" / "completions" / "*.parquet")
    for step, line in enumerate(more, 1):
        rows = written.filter(pl.col("step") == step)
        assert rows["kept"].sum() == 4 * 2
        assert rows.filter(~pl.col("kept"))["prompt_id"].n_unique() == line["replaced_groups"]
        assert rows["attempt"].max() <= 3
        assert rows.group_by("prompt_id").len()["len"].to_list() == [2] * (len(rows) // 2)
        assert rows["sample_id"].n_unique() == len(rows) // 2  # no prompt is asked twice


def test_a_rollout_that_is_cut_everywhere_teaches_nothing(tmp_path: Path) -> None:
    model, tokenizer = speaker()
    before = {name: weights.clone() for name, weights in model.state_dict().items()}
    changes = {"max_completion_tokens": 1, "rewards": {"tests.test_grpo.says_urea": 1.0}}
    lines = run(tmp_path, 2, (model, tokenizer), lr=1e-2, **changes)
    assert all(line["completions/clipped_ratio"] == 1 for line in lines)
    assert all(line["loss"] == line["grad_norm"] == 0 for line in lines)
    assert "entropy" not in lines[0]  # of no token
    for name, weights in model.state_dict().items():
        assert torch.equal(weights, before[name]), name


def test_with_adapters_the_reference_is_the_model_without_them(tmp_path: Path) -> None:
    lora = Lora(r=4, alpha=8, dropout=0.0, targets=["q_proj", "v_proj"])
    start = speaker(lora)
    lines = run(tmp_path, 6, start, lr=2e-2, rewards={UREA: 1.0}, beta=0.01, warmup=0.0)
    assert lines[0]["kl"] == pytest.approx(0, abs=1e-7)
    assert lines[-1]["kl"] > 1e-4
    # what an engine would be given are the merged weights, under the names of a plain model
    merged = dict(whole_weights(start[0]))
    other, _ = small()
    left = other.load_state_dict(merged, strict=False)
    assert not left.unexpected_keys
    assert {name for name in left.missing_keys} <= {"lm_head.weight"}
    tokens = [5, 6, 7, 8, 9, 10]
    rollouts = (TransformersEngine(one, start[1]) for one in (other, start[0]))
    one, two = (rollout.logprobs(tokens) for rollout in rollouts)
    assert one == pytest.approx(two, abs=1e-5)


def test_easy_first_keeps_tasks_in_their_places() -> None:
    plan = [[0, 3], [1, 4], [2, 5]]
    tasks = ["a", "a", "a", "b", "b", "b"]
    rewards = {0: 0.1, 1: 0.9, 2: 0.5, 3: 0.0, 4: 1.0, 5: 1.0}
    assert easy_first(plan, tasks, rewards) == [[1, 4], [2, 5], [0, 3]]


def test_easy_first_asks_the_same_prompts(tmp_path: Path) -> None:
    run(tmp_path, 2, speaker(), order="easy_first", rewards={UREA: 1.0})
    written = pl.read_parquet(tmp_path / "completions" / "*.parquet")
    assert written["sample_id"].unique().sort().to_list() == ["s0", "s1", "s2", "s3"]
    assert len(json.loads((tmp_path / "difficulty.json").read_text())) == 4


def test_the_probability_of_yes_where_the_answer_stands() -> None:
    model, _ = small()
    words = AnswerTokens([20], [21])
    asked = prompts(2, kind="risk")
    groups = [
        [Completion([20, 2], [0.0] * 2, False), Completion([11, 12, 21, 2], [0.0] * 4, False)],
        [Completion([13, 2], [0.0] * 2, False), Completion([20, 11, 21, 2], [0.0] * 4, False)],
    ]
    found = yes_probabilities(model, list(zip(asked, groups, strict=True)), words, 1000)
    assert found[1][0] is None
    places = [(0, 0, 0), (0, 1, 2), (1, 1, 2)]
    for prompt, number, answer in places:
        tokens = asked[prompt].tokens + groups[prompt][number].tokens[:answer]
        with torch.no_grad():
            chances = model(torch.tensor([tokens])).logits[0, -1].softmax(-1)
        expected = (chances[20] / (chances[20] + chances[21])).item()
        assert found[prompt][number] == pytest.approx(expected, abs=1e-6)
    decisions = list(zip(prompts(2), groups, strict=True))
    assert yes_probabilities(model, decisions, words, 1000) == [[None, None], [None, None]]


class Stale(TransformersEngine):
    """An engine that says it has new weights, and has those it began with."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase):
        other, _ = small()
        other.load_state_dict(model.state_dict())
        super().__init__(other, tokenizer)


class Heated(TransformersEngine):
    """An engine that samples at another temperature than it was told to."""

    def generate(self, prompts: Any, sampling: SamplingParams, **others: Any) -> Any:
        hot = SamplingParams(sampling.max_new_tokens, 2.0) if sampling.temperature else sampling
        return super().generate(prompts, hot, **others)


class Turned(TransformersEngine):
    """An engine that says other things of long texts alone, as with other rotary frequencies."""

    def generate(self, prompts: Any, sampling: SamplingParams, **others: Any) -> Any:
        found = super().generate(prompts, sampling, **others)
        for prompt, group in zip(prompts, found, strict=True):
            for one in group if len(prompt) > 100 else []:
                one.logprobs[:] = [value - 0.01 for value in one.logprobs]
        return found


def test_an_engine_that_turns_long_positions_otherwise_stops_the_run(tmp_path: Path) -> None:
    start = speaker()
    given: dict[str, Any] = {"engine": lambda m: Turned(*start), "rewards": {UREA: 1.0}}
    run(tmp_path / "short", 1, start, max_prompt_tokens=20, **given)
    with pytest.raises(OutOfSyncError, match="nats"):
        run(tmp_path / "long", 1, start, max_prompt_tokens=200, **given)


def test_an_engine_with_old_weights_stops_the_run(tmp_path: Path) -> None:
    start = speaker()
    with pytest.raises(OutOfSyncError, match="nats"):
        run(tmp_path, 3, start, engine=lambda m: Stale(m, start[1]), rewards={UREA: 1}, lr=1e-2)
    assert not (tmp_path / "checkpoints").exists()  # of the step that could not be checked


def test_an_engine_that_samples_otherwise_stops_the_run(tmp_path: Path) -> None:
    start = speaker()
    with pytest.raises(OutOfSyncError, match=r"rl\.ratio_bounds"):
        run(tmp_path, 2, start, engine=lambda m: Heated(m, start[1]), rewards={UREA: 1.0})


def test_a_reward_that_raises_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(RewardError, match=r"rl\.rewards\.tests\.test_grpo\.fails"):
        run(tmp_path, 1, speaker(), rewards={FAILS: 1.0})


@pytest.mark.parametrize("phase", ["generate", "score", "update", "sync"])
@pytest.mark.slow
def test_resumed_run_repeats_the_uninterrupted_one(tmp_path: Path, phase: str) -> None:
    """Stopped within a rollout, in any of its phases: the checkpoint before it is gone on from."""
    changes: dict[str, Any] = {"lr": 1e-2, "rewards": {UREA: 1.0}, "beta": 0.01}
    whole = run(tmp_path / "whole", 4, speaker(), **changes)

    class StopError(Exception):
        pass

    calls = 0
    owner, name = {
        "generate": (TransformersEngine, "generate"),
        "score": (grpo, "advantages"),
        "update": (GRPOModule, "learn"),
        "sync": (GRPOModule, "sync"),
    }[phase]
    real = getattr(owner, name)

    def failing(*given: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3 + (phase == "generate"):
            raise StopError
        return real(*given, **named)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(StopError):
        patch.setattr(owner, name, failing)
        run(tmp_path / "broken", 4, speaker(), **changes)
    again = run(tmp_path / "broken", 4, speaker(), **changes)
    assert [line["step"] for line in again] == [1, 2, 3, 4]
    for name in ("loss", "reward", "grad_norm", "entropy", "lr", "kl"):
        assert [line[name] for line in again] == [line[name] for line in whole], name
    assert 0 < again[-1]["resumed_from"] < 4
    one, two = (
        pl.read_parquet(tmp_path / place / "completions" / "*.parquet")
        for place in ("whole", "broken")
    )
    assert one.equals(two)
