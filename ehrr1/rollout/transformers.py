"""Generation with Transformers, in the process that trains.

Each prompt is computed once and its cache repeated for its group. The sampling loop is our own and
short, as `generate` would have to return the logits of every step (steps x vocabulary for each
completion) for the one log-probability a token that is needed here, and keeps computing
completions that have ended.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from ehrr1.progress import track


@dataclass(frozen=True, slots=True)
class Completion:
    """Sampled token ids (the end-of-turn token included), the log-probability of each under the
    sampling temperature and before top-p and top-k, and whether the length ran out."""

    tokens: list[int]
    logprobs: list[float]
    truncated: bool


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a token is drawn; `temperature` 0 takes the likeliest (its log-probability is then the
    plain one). `top_p` 1 and `top_k` 0 keep all tokens."""

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0


class TransformersRollout:
    """Generates groups of completions; `batch_size` of them side by side."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int = 64
    ):
        self.model, self.batch_size = model, batch_size
        self.end_id, self.pad_id = tokenizer.eos_token_id, tokenizer.pad_token_id

    def generate(
        self,
        prompts: Sequence[list[int]],
        *,
        group_size: int = 1,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int = 0,
        description: str | None = None,
    ) -> list[list[Completion]]:
        """`group_size` completions for each prompt, in the order of the prompts.

        The draws come from a generator of this call's own, seeded by `seed`. `description` names
        a progress bar over the batches; None shows none.
        """
        sampling = Sampling(max_new_tokens, temperature, top_p, top_k)
        generator = torch.Generator(self.model.device).manual_seed(seed)
        # prompts of like length share a batch: little padding
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        size = max(1, self.batch_size // group_size)
        some = [order[first : first + size] for first in range(0, len(order), size)]
        found: dict[int, list[Completion]] = {}
        training = self.model.training
        self.model.eval()
        with torch.inference_mode():
            for chosen in track(some, description) if description else some:
                groups = self._batch([prompts[i] for i in chosen], group_size, sampling, generator)
                found.update(zip(chosen, groups, strict=True))
        self.model.train(training)
        return [found[index] for index in range(len(prompts))]

    def _batch(
        self,
        prompts: Sequence[list[int]],
        group_size: int,
        sampling: Sampling,
        generator: torch.Generator,
    ) -> list[list[Completion]]:
        rows = len(prompts) * group_size
        tokens: list[list[int]] = [[] for _ in range(rows)]
        logprobs: list[list[float]] = [[] for _ in range(rows)]
        truncated = [True] * rows
        for numbers, ids, chances in self._steps(prompts, group_size, sampling, generator):
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
        sampling: Sampling,
        generator: torch.Generator,
    ) -> Iterator[tuple[list[int], list[int], list[float]]]:
        """Yield each step's unfinished rows, their tokens and the tokens' log-probabilities."""
        ids, mask = self._padded(prompts)
        cache = DynamicCache(config=self.model.config)
        output = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp(min=0),
            past_key_values=cache,
            logits_to_keep=1,
        )
        logits = output.logits[:, -1].repeat_interleave(group_size, 0)
        mask = mask.repeat_interleave(group_size, 0)
        cache.batch_repeat_interleave(group_size)
        alive = torch.arange(len(mask), device=mask.device)
        for step in range(sampling.max_new_tokens):
            chosen, chances = draw(logits, sampling, generator)
            yield alive.tolist(), chosen.tolist(), chances.tolist()
            going = chosen != self.end_id
            if step + 1 == sampling.max_new_tokens or not going.any():
                return
            if not going.all():
                kept = going.nonzero().squeeze(1)
                cache.batch_select_indices(kept)
                alive, mask, chosen = alive[kept], mask[kept], chosen[kept]
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            output = self.model(
                input_ids=chosen[:, None],
                attention_mask=mask,
                position_ids=mask.sum(1, keepdim=True) - 1,
                past_key_values=cache,
            )
            logits = output.logits[:, -1]

    def _padded(self, prompts: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
        """Prompts padded on the left: ids and mask [prompts, length]."""
        length = max(map(len, prompts))
        ids = torch.full((len(prompts), length), self.pad_id)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, length - len(prompt) :] = torch.tensor(prompt)
            mask[row, length - len(prompt) :] = 1
        return ids.to(self.model.device), mask.to(self.model.device)


def draw(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw one token a row: logits [rows, vocabulary] -> ids [rows], log-probabilities [rows]."""
    if sampling.temperature == 0:
        logprobs = logits.float().log_softmax(-1)
        best, chosen = logprobs.max(-1)
        return chosen, best
    logprobs = (logits.float() / sampling.temperature).log_softmax(-1)
    # the inverse of the cumulative distribution: one random number a row, not one a token
    cumulative = kept(logprobs, sampling).double().exp().cumsum(-1)
    level = torch.rand(
        (len(logits), 1), generator=generator, device=logits.device, dtype=torch.float64
    )
    chosen = torch.searchsorted(cumulative, level * cumulative[:, -1:], right=True)
    return chosen.squeeze(1), logprobs.gather(1, chosen).squeeze(1)


def kept(logprobs: Tensor, sampling: Sampling) -> Tensor:
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
