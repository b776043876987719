"""Predictions of a model: probability of yes by one forward pass, decisions by greedy writing."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from ehrr1.evaluation.predictions import prediction_row, risk_row
from ehrr1.progress import track
from ehrr1.prompts.trees import Question, Tree, TreeMaker
from ehrr1.rollout.sampling import Sampling
from ehrr1.rollout.scoring import next_token_logprobs
from ehrr1.rollout.transformers import TransformersRollout
from ehrr1.scoring.answers import read_answer
from ehrr1.scoring.risk import answer_tokens, probability_of_yes
from ehrr1.tasks.context import preamble_length
from ehrr1.tasks.samples import Prepared, Sample
from ehrr1.tasks.selection import by_context

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Predictor:
    """One model with what it reads.

    `maker` has the model's tokenizer and bounds a record with its question; models that share a
    tokenizer may share it, as it remembers events. `batch_tokens` bounds the padded prompt tokens
    of one forward pass, `batch_size` the answers written side by side.
    """

    model: PreTrainedModel
    maker: TreeMaker
    prepared: Prepared
    batch_tokens: int
    batch_size: int = 128

    def risk(self, samples: Sequence[Sample], description: str = "risk") -> Rows:
        """The probability of yes for each sample, asked directly.

        The questions on one context are the branches of one tree: its trunk is computed once.
        """
        words = answer_tokens(self.maker.tokenizer)
        groups = list(by_context(samples).values())
        trees = [self._tree(group) for group in groups]
        rows: Rows = []
        # batch by batch: the log-probabilities of all trees over a large vocabulary would not fit
        for batch in track(list(batches(trees, self.batch_tokens)), description):
            some = [trees[index] for index in batch]
            found = next_token_logprobs(self.model, some, self.batch_tokens)
            for index, logprobs in zip(batch, found, strict=True):
                yes = probability_of_yes(logprobs.cpu().numpy(), words)
                rows += [risk_row(s, float(p)) for s, p in zip(groups[index], yes, strict=True)]
        return rows

    def decisions(
        self,
        samples: Sequence[Sample],
        *,
        think: bool,
        max_new_tokens: int,
        description: str = "decisions",
    ) -> Rows:
        """The greedy answer to each sample, after thinking or directly."""
        tokenizer = self.maker.tokenizer
        prompts = [self._prompt(sample, think) for sample in samples]
        rollout = TransformersRollout(self.model, tokenizer, self.batch_size)
        rows: Rows = []
        for batch in track(list(batches(prompts, self.batch_tokens, self.batch_size)), description):
            some = [prompts[index] for index in batch]
            groups = rollout.generate(some, Sampling(max_new_tokens, temperature=0.0))
            written = [group[0].tokens for group in groups]
            texts = tokenizer.batch_decode(written, skip_special_tokens=True)
            rows += [_decision_row(samples[i], t, think) for i, t in zip(batch, texts, strict=True)]
        return rows

    def _tree(self, group: Sequence[Sample]) -> Tree:
        context = self.prepared.context(group[0])
        questions = [_question(sample, think=False) for sample in group]
        return self.maker.tree(context, preamble_length(context), questions)

    def _prompt(self, sample: Sample, think: bool) -> list[int]:
        context = self.prepared.context(sample)
        question = _question(sample, think)
        return self.maker.prompt(context, preamble_length(context), question)


def _question(sample: Sample, think: bool) -> Question:
    return Question(sample.sample_id, sample.task, think, instruction=sample.instruction)


def batches(
    items: Sequence[Tree] | Sequence[list[int]], batch_tokens: int, batch_size: int | None = None
) -> Iterator[list[int]]:
    """Indices in batches of like length, longest first, so that little is padding.

    Items times the longest of a batch stay within `batch_tokens`; one that is longer goes alone.
    The longest first: what does not fit into memory fails at once.
    """
    order = sorted(range(len(items)), key=lambda index: (-len(items[index]), index))
    start = 0
    while start < len(order):
        fitting = max(1, batch_tokens // max(len(items[order[start]]), 1))
        size = min(fitting, batch_size or fitting)
        yield order[start : start + size]
        start += size


def _decision_row(sample: Sample, completion: str, think: bool) -> dict[str, Any]:
    answer = read_answer(completion, "decision")
    mode = "think" if think else "direct"
    return prediction_row(sample, mode=mode, items=answer.items, problem=answer.problem)
