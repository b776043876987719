"""Generation by Transformers in this process: `engine=transformers`, `rollout=transformers`.

Each prompt is computed once; its group shares the keys and values. The sampling loop is our own:
`generate` would return the logits of every step (steps x vocabulary per completion) to yield the
one log-probability per token that is needed here, and would keep computing completions that have
ended.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from ehrr1 import parallel
from ehrr1.engines.base import Completion, SamplingParams, TrainableEngine
from ehrr1.engines.prefill import answer_logprobs
from ehrr1.engines.streaming import Step, Watch, watched
from ehrr1.models.attention import check_reach
from ehrr1.models.prefix_cache import SharedTrunks
from ehrr1.prompts.trees import Tree

CPU_TOKENS = 4096
"""Tokens computed at a time on a CPU; more exceed its caches (python -m benchmarks.risk_speed)."""


class TransformersEngine(TrainableEngine):
    """Generation by Transformers in this process.

    At most `batch_size` completions are generated side by side, and at most `batch_tokens` prompt
    tokens, padding included, are computed at a time. `watch`, where it is set, receives the text of
    a single completion piece by piece.
    """

    watch: Watch | None = None

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        batch_size: int = 64,
        batch_tokens: int = 2**17,
    ):
        if not str(model.config._attn_implementation).startswith("forest_"):
            raise ValueError("the model's attention knows no shared prompts: use load_model")
        self.model, self.batch_size, self.batch_tokens = model, batch_size, batch_tokens
        self.tokenizer, self.end_id = tokenizer, tokenizer.eos_token_id
        self.divided = any(hasattr(weights, "ds_numel") for weights in model.parameters())

    def stream(
        self,
        prompts: Sequence[list[int]],
        sampling: SamplingParams,
        *,
        group_size: int = 1,
        seeds: Sequence[int] | None = None,
    ) -> Iterator[tuple[int, list[Completion]]]:
        """See `Engine`.

        Each prompt has a random generator of its own: its draws do not depend on what is generated
        beside it.
        """
        longest = max(map(len, prompts), default=0) + sampling.max_new_tokens
        check_reach(self.model.config, longest)
        chosen_seeds = range(len(prompts)) if seeds is None else seeds
        levels = [_levels(seed, group_size, sampling) for seed in chosen_seeds]
        size = max(1, self.batch_size // group_size)
        for chosen in batches(list(map(len, prompts)), self.batch_tokens, size):
            with evaluating(self.model):
                drawn = torch.cat([levels[i] for i in chosen]).to(self.model.device)
                groups = self._batch([prompts[i] for i in chosen], group_size, sampling, drawn)
            yield from zip(chosen, groups, strict=True)

    def answers(
        self, trees: Sequence[Tree], ids: Sequence[int]
    ) -> Iterator[tuple[int, NDArray[np.float64]]]:
        """See `Engine`. The questions on a record share one prefill."""
        on_cpu = self.model.device.type == "cpu"
        most = min(self.batch_tokens, CPU_TOKENS) if on_cpu else self.batch_tokens
        for chosen in batches(list(map(len, trees)), most):
            with evaluating(self.model):
                found = answer_logprobs(self.model, [trees[i] for i in chosen], ids)
            yield from zip(chosen, found, strict=True)

    def _batch(
        self,
        prompts: Sequence[list[int]],
        group_size: int,
        sampling: SamplingParams,
        levels: Tensor,
    ) -> list[list[Completion]]:
        rows = len(prompts) * group_size
        tokens: list[list[int]] = [[] for _ in range(rows)]
        logprobs: list[list[float]] = [[] for _ in range(rows)]
        truncated = [True] * rows
        steps = self._steps(prompts, group_size, sampling, levels)
        if self.watch is not None and rows == 1:
            steps = watched(steps, self.watch, self.tokenizer)
        for numbers, ids, chances in steps:
            for number, token, chance in zip(numbers, ids, chances, strict=True):
                tokens[number].append(token)
                logprobs[number].append(chance)
                if token == self.end_id:
                    truncated[number] = False
        done = [Completion(*parts) for parts in zip(tokens, logprobs, truncated, strict=True)]
        return [done[first : first + group_size] for first in range(0, rows, group_size)]

    def _steps(
        self,
        prompts: Sequence[list[int]],
        group_size: int,
        sampling: SamplingParams,
        levels: Tensor,
    ) -> Iterator[Step]:
        """Yield each step's unfinished rows, their tokens and the tokens' log-probabilities."""
        trunks, logits = self._read(prompts, group_size)
        device = logits.device
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
        places = lengths.repeat_interleave(group_size)
        cache = DynamicCache(config=self.model.config)  # of what is written
        alive = torch.arange(len(places), device=device)
        chosen = alive.new_zeros(len(alive))
        for step in range(sampling.max_new_tokens):
            if len(alive):
                chosen, chances = draw(logits, sampling, levels[alive, step])
                yield alive.tolist(), chosen.tolist(), chances.tolist()
            going = (chosen != self.end_id)[: len(alive)]
            if step + 1 == sampling.max_new_tokens or not self._anyone(going):
                return
            if not len(going) or not going.all():
                kept = going.nonzero().squeeze(1)
                alive = alive[kept]
                # one row goes on for nothing while other processes wait for its layers
                kept = kept if len(kept) else kept.new_zeros(1)
                if step:
                    cache.batch_select_indices(kept)
                places, chosen = places[kept], chosen[kept]
                trunks.keep(kept)
            output = self.model(
                input_ids=chosen[:, None],
                position_ids=places[:, None] + step,
                attention_mask=torch.empty(0, 0, 0, 0, device=device),  # so that no mask is made
                past_key_values=cache,
                forest=trunks,
            )
            logits = output.logits[:, -1]

    def _read(self, prompts: Sequence[list[int]], group_size: int) -> tuple[SharedTrunks, Tensor]:
        """Compute the prompts; return their keys and values, and each row's next-token logits."""
        ids, mask = self._padded(prompts)
        cache = DynamicCache(config=self.model.config)
        output = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp(min=0),
            past_key_values=cache,
            logits_to_keep=1,
        )
        trunks = SharedTrunks(cache, [len(prompt) for prompt in prompts], group_size)
        return trunks, output.logits[:, -1].repeat_interleave(group_size, 0)

    def _anyone(self, going: Tensor) -> bool:
        """Return whether any completion continues; under ZeRO-3, in any process."""
        own = bool(going.any())
        return parallel.totals([own])[0] > 0 if self.divided else own

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """See `TrainableEngine`; a no-op, as the model that generates is the one that trains."""

    def logprobs(self, tokens: list[int]) -> list[float]:
        """See `Engine`."""
        ids, mask = self._padded([tokens])
        with evaluating(self.model):
            logits = self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        every = logits[0, :-1].float().log_softmax(-1)
        return every.gather(1, ids[0, 1:, None]).squeeze(1).tolist()

    def close(self) -> None:
        """See `Engine`; a no-op, as no process was started."""

    def _padded(self, prompts: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
        """Prompts padded on the left: ids and mask [prompts, length]."""
        length = max(map(len, prompts))
        ids = torch.full((len(prompts), length), self.end_id)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, length - len(prompt) :] = torch.tensor(prompt)
            mask[row, length - len(prompt) :] = 1
        return ids.to(self.model.device), mask.to(self.model.device)


def _levels(seed: int, group_size: int, sampling: SamplingParams) -> Tensor:
    """Return the random numbers of a group's tokens, [group, tokens] in [0, 1)."""
    generator = torch.Generator().manual_seed(seed)
    shape = (group_size, sampling.max_new_tokens)
    return torch.rand(shape, generator=generator, dtype=torch.float64)


@contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Disable gradients and dropout; restore the model's training mode at the end."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def batches(lengths: Sequence[int], tokens: int, size: int | None = None) -> Iterator[list[int]]:
    """Yield indices in batches of similar length, longest first, so that little is padding.

    The number of items times the longest of a batch stays within `tokens`; a longer item forms a
    batch of its own. Longest first: what does not fit into memory fails at once.
    """
    order = sorted(range(len(lengths)), key=lambda number: (-lengths[number], number))
    start = 0
    while start < len(order):
        fitting = max(1, tokens // max(lengths[order[start]], 1))
        count = min(fitting, size or fitting)
        yield order[start : start + count]
        start += count


def draw(logits: Tensor, sampling: SamplingParams, levels: Tensor) -> tuple[Tensor, Tensor]:
    """Draw one token a row: logits [rows, vocabulary] -> ids [rows], log-probabilities [rows].

    `levels` [rows], from 0 to 1, are the draws: places in the cumulative distributions.
    """
    if sampling.temperature == 0:
        logprobs = logits.float().log_softmax(-1)
        best, chosen = logprobs.max(-1)
        return chosen, best
    logprobs = (logits.float() / sampling.temperature).log_softmax(-1)
    cumulative = kept(logprobs, sampling).double().exp().cumsum(-1)
    level = levels[:, None] * cumulative[:, -1:]
    chosen = torch.searchsorted(cumulative, level, right=True)
    return chosen.squeeze(1), logprobs.gather(1, chosen).squeeze(1)


def kept(logprobs: Tensor, sampling: SamplingParams) -> Tensor:
    """Tokens outside the `top_k` likeliest, then outside the nucleus `top_p`, get -inf.

    The nucleus (Holtzman et al., arXiv 1904.09751) is the smallest set of likeliest tokens whose
    probability, after top-k, reaches `top_p`.
    """
    if 0 < sampling.top_k < logprobs.shape[-1]:
        least = logprobs.topk(sampling.top_k).values[:, -1:]
        logprobs = logprobs.masked_fill(logprobs < least, -torch.inf)
    if sampling.top_p < 1:
        ordered, order = logprobs.softmax(-1).sort(descending=True)
        beyond = ordered.cumsum(-1) - ordered >= sampling.top_p
        logprobs = logprobs.masked_fill(beyond.scatter(1, order, beyond), -torch.inf)
    return logprobs
