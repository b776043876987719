"""Group relative policy optimisation (Shao et al., DeepSeekMath, arXiv 2402.03300).

A training step is a rollout: sample prompts, generate a group of completions for each, score them,
turn rewards into advantages, update, and bring the new weights to whoever generates.

Kept of the paper: groups, the clipped surrogate, the optional divergence from the weights that
training began with. Not kept: a critic; a reference that moves. Added: the losses that came after
it (`losses.py`), groups without signal replaced (DAPO), a correction for an engine whose
probabilities differ from the trainer's. Ours: a prompt is computed once for its group, as the trunk
of a tree (`groups.py`); every process knows all groups and computes its share of the rows.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
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
from ehrr1.training.losses import PolicySettings, Tokens, advantages, policy_loss
from ehrr1.training.module import Build, ForestModule
from ehrr1.training.prompts import Prompts
from ehrr1.training.rollouts import Clock, Collector
from ehrr1.training.strategies import frozen

PROBE_TOKENS = 64
"""How many random tokens trainer and engine are compared on after each sync."""

LONG_PROBE_TOKENS = 8
"""How many tokens they are compared on behind a prompt of the greatest length, before the first
rollout: positions that one of them turns otherwise agree where a text is short."""

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
"""Sums over learnt tokens, and the names under which their means are logged."""

SHOWN = 4
"""Completions a step in TensorBoard, for data that is open."""


class GRPOModule(ForestModule):
    """`plan` says which of `prompts` each rollout asks; `settings` is the section `rl`.

    `start` makes the engine that generates, from the model. `reference` makes the model from which
    the divergence is, None where it is the model itself with its adapters off. Writes
    completions/, before.json and after.json into `folder`; `shown`: completions may be seen in
    TensorBoard. `tolerance` bounds the difference of trainer and engine after a sync, in nats.
    """

    settings: RL

    def __init__(
        self,
        build: Build,
        tokenizer: PreTrainedTokenizerBase,
        settings: RL,
        *,
        plan: Sequence[Sequence[int]],
        prompts: Prompts,
        validation: Prompts,
        start: Callable[[PreTrainedModel], TrainableEngine],
        reference: Build | None,
        folder: Path,
        seed: int,
        shown: bool,
        tolerance: float,
    ):
        super().__init__(build, settings, len(plan) * settings.inner_epochs * settings.minibatches)
        self.tokenizer, self.plan, self.prompts = tokenizer, plan, prompts
        self.validation, self.start, self.build_reference = validation, start, reference
        self.folder, self.seed, self.shown, self.tolerance = folder, seed, shown, tolerance
        names = [field.name for field in fields(PolicySettings)]
        self.losses = PolicySettings(**{name: settings.of(name) for name in names})

    def on_train_start(self) -> None:
        """The engine gets the weights of now (after a resume, those resumed) before it writes."""
        self.engine = self.start(self.model)
        self.collector = Collector(
            self.model, self.tokenizer, self.engine, self.settings, self.seed
        )
        # a tuple hides the reference from state_dict: it is the earlier stage's, not ours to save
        self.reference: tuple[PreTrainedModel, ...] = ()
        if self.settings.beta > 0 and self.build_reference is not None:
            self.reference = (frozen(self, self.build_reference),)
        with self.trainer.precision_plugin.forward_context():
            self.sync()
            self.check_long_positions()
            self.validate("before")
            self.order_plan()

    def close(self) -> None:
        """End the engine, in whatever state the run is."""
        if "engine" in vars(self):
            self.engine.close()

    def training_step(self, number: int, index: int) -> None:
        clock = Clock()
        groups = self.ask(number, clock)
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
        self.watched = updated | group_metrics(groups) | learnt | clock.laps
        self.watched |= {
            "updates": self.settings.inner_epochs * parts,
            "tokens": tokens + sum(len(group.prompt.tokens) for group in groups),
            "samples": len(groups),
            "generated_tokens_per_second": tokens / clock.laps["timing/generate"],
        }

    def ask(self, number: int, clock: Clock) -> list[Group]:
        """The groups of one rollout. Those without signal are replaced in at most
        `dynamic_sampling` rounds (DAPO, arXiv 2503.14476, section 3.2); all are returned."""
        groups = self.collector.collect(self.prompts, self.plan[number], f"{number}/0", clock)
        left = set(range(len(self.prompts))) - set(self.plan[number])
        generator = np.random.default_rng([self.seed, number])
        for attempt in range(1, self.settings.dynamic_sampling + 1):
            flat = [group for group in groups if group.kept and group.flat]
            count = min(len(flat), len(left))
            if not count:
                break
            asked = generator.choice(sorted(left), count, replace=False).tolist()
            left -= set(asked)
            fresh = self.collector.collect(self.prompts, asked, f"{number}/{attempt}", clock)
            useful = iter([group for group in fresh if not group.flat])
            for group in fresh:
                group.attempt, group.kept = attempt, False
            for group, new in zip(flat, useful, strict=False):
                group.kept, new.kept = False, True
            groups += fresh
        return groups

    def rows(self, groups: Sequence[Group]) -> list[Microbatch]:
        """One optimizer step's rows of this process, with what must be known before it."""
        rows = lay_out(groups, self.settings, parallel.rank(), parallel.size())
        rows = [row.to(self.device) for row in rows]
        if self.settings.inner_epochs * self.settings.minibatches > 1:
            rows = [replace(row, old=self.logprobs(self.model, row.forest)) for row in rows]
        if self.settings.beta > 0:
            rows = [replace(row, reference=self.by_reference(row.forest)) for row in rows]
        return rows

    def by_reference(self, forest: Forest) -> Tensor:
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
        """Of a forest's learnt tokens [N], without dropout; temperature None: the sampling one."""
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
        """What was watched of the learnt tokens of all processes, by TRL's names where it has one;
        nothing where no completion was learnt from."""
        tokens, *totals = parallel.totals([sums["tokens"], *(sums[name] for name in WATCHED)])
        if not tokens:
            return {}
        return {name: total / tokens for name, total in zip(WATCHED.values(), totals, strict=True)}

    def check_ratio(self, learnt: dict[str, float]) -> None:
        """Raise OutOfSyncError where engine and trainer disagree on what was just sampled.

        Watched is the geometric mean of trainer's / engine's probabilities: e to the minus KL, at
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
        """Bring the weights to the engine and check on a probe that they have arrived."""
        self.engine.load_weights(whole_weights(self.model))
        generator = np.random.default_rng(0)
        probe = generator.integers(self.model.config.vocab_size, size=PROBE_TOKENS).tolist()
        forest = collate([Tree(probe[:1], [Branch("probe", [], probe[1:])])]).to(self.device)
        ours = self.logprobs(self.model, forest, temperature=1.0)
        check_sync(self.engine.logprobs(probe), ours.tolist(), self.tolerance)

    def check_long_positions(self) -> None:
        """Raise OutOfSyncError where what the engine says at the end of the longest text, random
        tokens and a greedy completion, has other log-probabilities to the trainer."""
        generator, most = np.random.default_rng(1), LONG_PROBE_TOKENS
        length = self.settings.max_prompt_tokens + self.settings.max_completion_tokens - most
        probe = generator.integers(self.model.config.vocab_size, size=max(length, 1)).tolist()
        [[said]] = self.engine.generate([probe], SamplingParams(most, temperature=0))
        tree = Tree(probe[:-1], [Branch("probe", probe[-1:], said.tokens)])
        ours = self.logprobs(self.model, collate([tree]).to(self.device), temperature=1.0)
        check_sync(said.logprobs, ours.tolist(), self.tolerance)

    def validation_step(self, number: int, index: int) -> None:
        self.validate("after")

    def validate(self, moment: str) -> None:
        """The rewards of the greedy completions to the validation prompts, in `moment`.json."""
        path = self.folder / f"{moment}.json"
        if not parallel.from_first(path.exists):
            every = range(len(self.validation))
            rewards = self.score_greedily(self.validation, every, f"validation {moment}")
            if parallel.rank() == 0:
                write_json(path, rewards)

    def score_greedily(
        self, asked: Prompts, indices: Sequence[int], name: str
    ) -> dict[str, list[float | None]]:
        """`total` and each reward of the likeliest completions, in the order of `indices`."""
        groups = self.collector.greedy(asked, indices, name)
        found: dict[str, list[float | None]] = {"total": [group.rewards[0] for group in groups]}
        for part in groups[0].parts:
            found[part] = [group.parts[part][0] for group in groups]
        return found

    def order_plan(self) -> None:
        """With `order: easy_first` a task's prompts come by the starting model's reward for its
        greedy completion, the highest first; which prompts are asked stays as it is."""
        if self.settings.order == "random":
            return
        used = sorted({index for step in self.plan for index in step})
        path = self.folder / "difficulty.json"
        if not parallel.from_first(path.exists):
            found = self.score_greedily(self.prompts, used, "difficulty")["total"]
            if parallel.rank() == 0:
                write_json(path, {str(n): reward for n, reward in zip(used, found, strict=True)})
        parallel.barrier()
        rewards = {int(n): reward for n, reward in read_json(path).items()}
        self.plan = easy_first(self.plan, self.prompts.tasks, rewards)

    def write(self, step: int, groups: Sequence[Group]) -> None:
        """All completions into the run folder; a few to TensorBoard, if the data is open."""
        if parallel.rank() > 0:
            return
        write_completions(self.folder / "completions", step, groups)
        if self.shown and isinstance(self.logger, TensorBoardLogger):
            for number, group in enumerate(groups[:SHOWN]):
                text = f"{group.prompt.task}, reward {group.rewards[0]:.3f}\n\n{group.texts[0]}"
                self.logger.experiment.add_text(f"completions/{number}", _verbatim(text), step)


def _verbatim(text: str) -> str:
    """Markdown that shows `text` as it is."""
    return "\n".join("    " + line for line in text.splitlines())


def easy_first(
    plan: Sequence[Sequence[int]], tasks: Sequence[str], rewards: Mapping[int, float]
) -> list[list[int]]:
    """`plan` with each task's prompts in order of falling reward, in the places that they had."""
    order = [index for step in plan for index in step]
    turns = {
        task: iter(sorted((i for i in order if tasks[i] == task), key=lambda i: -rewards[i]))
        for task in sorted({tasks[index] for index in order})
    }
    return [[next(turns[tasks[index]]) for index in step] for step in plan]
