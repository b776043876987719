"""Group relative policy optimisation (Shao et al., DeepSeekMath, arXiv 2402.03300).

A training step is a rollout: sample prompts, generate a group of completions for each, score them,
turn rewards into advantages, update, and bring the new weights to whoever generates.

Kept of the paper: groups, the clipped surrogate, the optional divergence from the weights that
training began with. Not kept: a reference that moves. Added: later losses (`losses.py`), groups
without signal replaced (DAPO), a correction for an engine whose probabilities differ from the
trainer's. Ours: a prompt is computed once for its group, as the trunk of a tree (`groups.py`);
every process knows all groups and computes its share of the rows.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from math import exp
from pathlib import Path

import numpy as np
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ehrr1 import parallel
from ehrr1.config.training import RL
from ehrr1.engines.base import SamplingParams, TrainableEngine
from ehrr1.engines.weight_sync import OutOfSyncError, check_sync
from ehrr1.files import read_json, write_json
from ehrr1.models.logprobs import token_logprobs
from ehrr1.models.weights import whole_weights, without_adapters
from ehrr1.prompts.forest import Forest, collate
from ehrr1.prompts.trees import Branch, Tree
from ehrr1.training.groups import Group, Microbatch, group_metrics, lay_out, write_completions
from ehrr1.training.losses import LOSSES, PolicySettings, Tokens, advantages, policy_loss
from ehrr1.training.module import Build, ForestModule
from ehrr1.training.prompts import PromptBatch, PromptData, RLPrompt
from ehrr1.training.rollouts import Clock, Collector
from ehrr1.training.strategies import frozen
from ehrr1.training.targets import find

PROBE_TOKENS = 64
"""Random tokens on which trainer and engine are compared after each sync."""

LONG_PROBE_TOKENS = 8
"""Tokens on which they are compared behind a prompt of the greatest length, before the first
rollout: rotary positions that one of them computes differently agree for short texts."""

WATCHED = {
    "entropy": "entropy",
    "kl": "kl",
    "ratio": "ratio",
    "clipped_low": "clip_ratio/low_mean",
    "clipped_high": "clip_ratio/high_mean",
    "mismatch": "sampling/sampling_logp_difference/mean",
    "mismatch_log": "sampling/sampling_logp_difference/signed_mean",
    "mismatch_ratio": "sampling/importance_sampling_ratio/mean",
    "correction": "sampling/correction/mean",
}
"""Sums over learnt tokens -> the names under which their means are logged."""

SHOWN = 4
"""Completions per step in TensorBoard, for open data."""


@dataclass(frozen=True)
class Policy:
    """The model that learns.

    `build` builds it, and `reference` the model that it is held close to (`rl.beta`): None if that
    is the model itself with its adapters off.
    """

    build: Build
    tokenizer: PreTrainedTokenizerBase
    reference: Build | None


@dataclass(frozen=True)
class EngineSpec:
    """The engine that generates.

    `start` returns it, from the model. After a sync its log-probabilities may differ from the
    trainer's by `tolerance` nats on average.
    """

    start: Callable[[PreTrainedModel], TrainableEngine]
    tolerance: float


class GRPOModule(ForestModule):
    """The policy that learns from its rewarded completions; a batch is a rollout's prompts.

    `settings` is the section `rl`. Writes completions/, before.json and after.json into `folder`;
    with `shown` a few completions also go to TensorBoard.
    """

    settings: RL

    def __init__(
        self,
        policy: Policy,
        settings: RL,
        data: PromptData,
        engine: EngineSpec,
        folder: Path,
        *,
        seed: int,
        shown: bool,
    ):
        self.updates_per_rollout = settings.inner_epochs * settings.minibatches
        super().__init__(policy.build, settings, len(data.plan) * self.updates_per_rollout)
        self.policy, self.data, self.spec = policy, data, engine
        self.folder, self.seed, self.shown = folder, seed, shown
        names = [field.name for field in fields(PolicySettings) if field.name != "gain"]
        own = None if settings.loss in LOSSES else find(f"rl.loss={settings.loss}", settings.loss)
        self.losses = PolicySettings(**{name: settings.of(name) for name in names}, gain=own)

    def on_train_start(self) -> None:
        """Start the engine, with the restored weights after a resume, and score prompts.

        The held-out prompts are scored before training, and the training prompts if their order
        depends on it.
        """
        self.engine = self.spec.start(self.model)
        self.collector = Collector(
            self.model,
            self.policy.tokenizer,
            self.engine,
            self.settings,
            self.seed,
            self.data.citable,
        )
        # a tuple hides the reference from state_dict: it is the earlier stage's, not ours to save
        self.reference: tuple[PreTrainedModel, ...] = ()
        if self.settings.beta > 0 and self.policy.reference is not None:
            self.reference = (frozen(self, self.policy.reference),)
        with self.trainer.precision_plugin.forward_context():
            self.sync()
            self.check_long_positions()
            self.validate(list(self.data.held_out), "before")
            self.order_plan()

    def close(self) -> None:
        """End the engine, if it has been started."""
        if "engine" in vars(self):
            self.engine.close()

    def training_step(self, batch: PromptBatch, index: int) -> None:
        """Generate and score completions for the prompts, learn from them, sync the engine."""
        number = self.trainer.global_step // self.updates_per_rollout
        clock = Clock()
        groups = self.ask(batch.prompts, number, clock)
        self.engine.sleep()  # until `sync`: the device is the update's
        kept = [group for group in groups if group.kept]
        rewards = torch.tensor([group.rewards for group in kept], dtype=torch.float64)
        for group, row in zip(kept, advantages(rewards, self.settings.scale).tolist(), strict=True):
            group.advantages = row
        self.write(number + 1, groups)
        parts = self.settings.minibatches
        minibatches = [self.rows(kept[part::parts]) for part in range(parts)]
        clock.lap("prepare")
        sums: dict[str, float] = defaultdict(float)
        for _ in range(self.settings.inner_epochs):
            for rows in minibatches:
                updated = self.learn(rows, sums)
        clock.lap("update")
        learnt = self.means(sums)
        self.check_ratio(learnt)
        self.sync()
        clock.lap("sync")
        tokens = sum(len(one.tokens) for group in groups for one in group.completions)
        counts = {
            "updates": self.updates_per_rollout,
            "tokens": tokens + sum(len(group.prompt.tokens) for group in groups),
            "samples": len(groups),
            "generated_tokens_per_second": tokens / clock.laps["timing/generate"],
        }
        self.watch(updated | group_metrics(groups) | learnt | clock.laps | counts)

    def ask(self, prompts: Sequence[RLPrompt], number: int, clock: Clock) -> list[Group]:
        """Return the groups of rollout `number`, those that were replaced included.

        Groups without signal are replaced in at most `dynamic_sampling` rounds (DAPO, arXiv
        2503.14476, section 3.2) by those of prompts that the rollout has not.
        """
        groups = self.collector.collect(prompts, f"{number}/0", clock)
        left = set(range(len(self.data.prompts))) - set(self.data.plan[number])
        generator = np.random.default_rng([self.seed, number])
        for attempt in range(1, self.settings.dynamic_sampling + 1):
            flat = [group for group in groups if group.kept and group.flat]
            count = min(len(flat), len(left))
            if not count:
                break
            chosen = generator.choice(sorted(left), count, replace=False).tolist()
            left -= set(chosen)
            others = [self.data.prompts[index] for index in chosen]
            fresh = self.collector.collect(others, f"{number}/{attempt}", clock)
            useful = iter([group for group in fresh if not group.flat])
            for group in fresh:
                group.attempt, group.kept = attempt, False
            for group, new in zip(flat, useful, strict=False):
                group.kept, new.kept = False, True
            groups += fresh
        return groups

    def rows(self, groups: Sequence[Group]) -> list[Microbatch]:
        """Return the rows of one optimizer step for this process.

        They hold the log-probabilities by the policy before the first update (`old`) and by the
        reference, where the loss needs them.
        """
        rows = lay_out(groups, self.settings, parallel.rank(), parallel.size())
        rows = [row.to(self.device) for row in rows]
        if self.settings.inner_epochs * self.settings.minibatches > 1:
            rows = [replace(row, old=self.logprobs(self.model, row.forest)) for row in rows]
        if self.settings.beta > 0:
            rows = [replace(row, reference=self.by_reference(row.forest)) for row in rows]
        return rows

    def by_reference(self, forest: Forest) -> Tensor:
        """Return log-probabilities [N] of a forest's learnt tokens by the reference."""
        if self.reference:
            return self.logprobs(self.reference[0], forest)
        without_adapters(self.model, off=True)
        try:
            return self.logprobs(self.model, forest)
        finally:
            without_adapters(self.model, off=False)

    @torch.no_grad()
    def logprobs(
        self, model: PreTrainedModel, forest: Forest, temperature: float | None = None
    ) -> Tensor:
        """Return log-probabilities [N] of a forest's learnt tokens by `model`, without dropout.

        With `temperature` None they are at the temperature of sampling.
        """
        training = model.training
        model.eval()
        chosen = self.settings.temperature if temperature is None else temperature
        found = token_logprobs(model, forest, chosen).logprobs
        model.train(training)
        return found

    def learn(self, rows: Sequence[Microbatch], sums: dict[str, float]) -> dict[str, float]:
        """One optimizer step; adds what is watched to `sums`."""
        by_forest = {id(row.forest): row for row in rows}

        def loss(forest: Forest) -> Tensor:
            row = by_forest[id(forest)]
            now = token_logprobs(self.model, forest, self.settings.temperature, entropy=True)
            tokens = Tokens(
                now.logprobs,
                # before the first update the policy of then is the policy of now
                now.logprobs.detach() if row.old is None else row.old,
                row.advantages,
                forest.owners,
                forest.weights,
                row.sampled,
                row.reference,
            )
            found = policy_loss(tokens, self.losses)
            sums["entropy"] += (now.entropy * (forest.weights > 0)).sum().item()
            for name, value in found.sums.items():
                sums[name] += value.item()
            return found.loss

        return self.update([row.forest for row in rows], loss)

    def means(self, sums: dict[str, float]) -> dict[str, float]:
        """Return means over the learnt tokens of all processes, by TRL's names where it has one.

        Empty if no completion was learnt from.
        """
        tokens, *totals = parallel.totals([sums["tokens"], *(sums[name] for name in WATCHED)])
        if not tokens:
            return {}
        return {name: total / tokens for name, total in zip(WATCHED.values(), totals, strict=True)}

    def check_ratio(self, learnt: dict[str, float]) -> None:
        """Raise OutOfSyncError if engine and trainer disagree on what was just sampled.

        The ratio is the geometric mean of trainer's / engine's probabilities: e to the minus KL, at
        most 1 on average. (The arithmetic mean is 1 on average whatever the engine samples from.)
        """
        low, high = self.settings.ratio_bounds
        ratio = exp(learnt.get("sampling/sampling_logp_difference/signed_mean", 0.0))
        if not low <= ratio <= high:
            raise OutOfSyncError(
                f"step {self.trainer.global_step}: a sampled token is {ratio:.3g} times as likely "
                f"to the trainer as to the engine that sampled it (geometric mean; rl.ratio_bounds="
                f"[{low}, {high}]): the engine has other weights, or computes otherwise"
            )

    def sync(self) -> None:
        """Load the weights into the engine and check on a probe that they have arrived.

        Raises OutOfSyncError.
        """
        self.engine.load_weights(whole_weights(self.model))
        generator = np.random.default_rng(0)
        probe = generator.integers(self.model.config.vocab_size, size=PROBE_TOKENS).tolist()
        forest = collate([Tree(probe[:1], [Branch("probe", [], probe[1:])])]).to(self.device)
        ours = self.logprobs(self.model, forest, temperature=1.0)
        check_sync(self.engine.logprobs(probe), ours.tolist(), self.spec.tolerance)

    def check_long_positions(self) -> None:
        """Raise OutOfSyncError if the trainer's log-probabilities differ at the longest length.

        The text is random tokens with a greedy completion of the engine at the end.
        """
        generator, most = np.random.default_rng(1), LONG_PROBE_TOKENS
        length = self.settings.max_prompt_tokens + self.settings.max_completion_tokens - most
        probe = generator.integers(self.model.config.vocab_size, size=max(length, 1)).tolist()
        [[completion]] = self.engine.generate([probe], SamplingParams(most, temperature=0))
        tree = Tree(probe[:-1], [Branch("probe", probe[-1:], completion.tokens)])
        ours = self.logprobs(self.model, collate([tree]).to(self.device), temperature=1.0)
        check_sync(completion.logprobs, ours.tolist(), self.spec.tolerance)

    def validation_step(self, batch: PromptBatch, index: int) -> None:
        """Score the held-out prompts after training."""
        self.validate(batch.prompts, "after")

    def validate(self, prompts: Sequence[RLPrompt], moment: str) -> None:
        """Write the rewards of greedy completions to held-out prompts to `moment`.json, once."""
        path = self.folder / f"{moment}.json"
        if not parallel.from_first(path.exists):
            rewards = self.score_greedily(prompts, f"validation {moment}")
            if parallel.rank() == 0:
                write_json(path, rewards)

    def score_greedily(
        self, prompts: Sequence[RLPrompt], name: str
    ) -> dict[str, list[float | None]]:
        """Return `total` and each reward of the greedy completions, in the order of `prompts`."""
        groups = self.collector.greedy(prompts, name)
        found: dict[str, list[float | None]] = {"total": [group.rewards[0] for group in groups]}
        for part in groups[0].parts:
            found[part] = [group.parts[part][0] for group in groups]
        return found

    def order_plan(self) -> None:
        """Sort each task's prompts by the starting model's reward (`order: easy_first`).

        The reward is that of the greedy completion, the highest first. The set of prompts stays.
        """
        if self.settings.order == "random":
            return
        used = sorted({index for step in self.data.plan for index in step})
        path = self.folder / "difficulty.json"
        if not parallel.from_first(path.exists):
            prompts = [self.data.prompts[index] for index in used]
            found = self.score_greedily(prompts, "difficulty")["total"]
            if parallel.rank() == 0:
                write_json(path, {str(n): reward for n, reward in zip(used, found, strict=True)})
        parallel.barrier()
        self.data.sort({int(n): reward for n, reward in read_json(path).items()})

    def write(self, step: int, groups: Sequence[Group]) -> None:
        """Write all completions to the run folder, and a few to TensorBoard if data is open."""
        if parallel.rank() > 0:
            return
        write_completions(self.folder / "completions", step, groups)
        boards = [one for one in self.loggers if isinstance(one, TensorBoardLogger)]
        for board in boards if self.shown else []:
            for number, group in enumerate(groups[:SHOWN]):
                text = f"{group.prompt.task}, reward {group.rewards[0]:.3f}\n\n{group.texts[0]}"
                board.experiment.add_text(f"completions/{number}", _verbatim(text), step)


def _verbatim(text: str) -> str:
    """Return Markdown that shows `text` unchanged."""
    return "\n".join("    " + line for line in text.splitlines())
