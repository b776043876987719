"""Predictions of a model behind an inference engine.

Risk questions are answered by the log-probabilities of yes and no after a prefill, decision
questions by generated text. Rows are yielded as they are finished, so that the caller can save
them.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ehrr1.engines.base import Completion, Engine, SamplingParams
from ehrr1.evaluation.phases import Phases
from ehrr1.evaluation.predictions import WrittenAnswer, YesProbability, prediction_row, risk_row
from ehrr1.evaluation.prompt_mode import Chooser, PromptMode
from ehrr1.evaluation.tree_memory import TreeMemory
from ehrr1.prompts.messages import CASES, CLOSED, OPENED, THINK_CLOSE, THINK_OPEN, broken
from ehrr1.prompts.trees import PromptBuilder, Question, Tree
from ehrr1.scoring.answers import read_answer
from ehrr1.scoring.risk import AnswerTokens, answer_tokens
from ehrr1.tasks.context import preamble_length
from ehrr1.tasks.samples import Prepared, Sample
from ehrr1.tasks.selection import by_context

Rows = list[dict[str, Any]]

RECORDS_AT_ONCE = 512
"""Number of records tokenised and held at a time; records of similar length share batches."""

CASE_END = re.compile(rf"^##? |{THINK_CLOSE}", re.MULTILINE)
"""End of a generated case: any next heading, or the closing think tag."""

PROMPTS, PREFILL, GENERATION = "prompts", "prefill", "generation"
"""Phases: contexts and their tokens; probabilities of yes and no; answers that are written."""

NOT_CLOSED = "think block is not closed"
NOT_TOLD = "no probability of yes or no"
REFUSED = "refused by the server"
TOO_LONG = "the question alone is too long for the prompt"
CHAIN_TOO_LONG = "the given chain is longer than eval.max_new_tokens.think leaves beside the answer"


@dataclass(frozen=True)
class Writing:
    """Length limits and sampling settings of generated answers.

    `think` and `direct` are the maximum numbers of new tokens with and without thinking. `draws` is
    the number of answers to a decision question; a single answer is decoded greedily, several are
    sampled with `temperature`, `top_p` and `top_k`.
    """

    think: int
    direct: int
    draws: int = 1
    temperature: float = 0.7
    top_p: float = 0.95
    top_k: int = 0

    def sampling(self, mode: PromptMode) -> SamplingParams:
        """Return the sampling parameters of decision answers in `mode`."""
        most = self.think if mode.thinks and mode.chains == "own" else self.direct
        if self.draws == 1:
            return SamplingParams(most, temperature=0.0)
        return SamplingParams(most, self.temperature, self.top_p, self.top_k)


@dataclass(frozen=True)
class Thought:
    """A closed think block before the answer to a yes/no question.

    `problem` is set if the model did not close the block itself.
    """

    text: str
    problem: str | None = None


@dataclass(frozen=True)
class Predictor:
    """One model with the records, candidates and chains that its prompts are built from.

    `prompt_builder` has the model's tokenizer and limits the length of record and question; models
    with the same tokenizer may share it, as it caches tokenised events. `heads` are the tokens of a
    task's examples, which precede the record (`evaluation.shots`). `candidates` returns the
    candidates of a sample, for questions that list some. `chains` are the given chains, by
    `sample_id`. `memory` has the trees that another result has asked with the same records,
    candidates and examples. `phases` takes the seconds that are spent on prompts, prefill and
    generation.
    """

    engine: Engine
    prompt_builder: PromptBuilder
    prepared: Prepared
    writing: Writing
    candidates: Chooser | None = None
    heads: Mapping[str, list[int]] = field(default_factory=dict)
    chains: Mapping[str, str] = field(default_factory=dict)
    memory: TreeMemory = field(default_factory=lambda: TreeMemory(0))
    phases: Phases = field(default_factory=Phases)

    def risk(self, samples: Iterable[Sample], mode: PromptMode) -> Iterator[Rows]:
        """Yield the rows of risk samples, with the probability of yes.

        It is read directly, or after a think block that is generated or given, as `mode` says. The
        questions on one context are the branches of one tree, so that the record is computed once.
        """
        words = answer_tokens(self.prompt_builder.tokenizer)
        fitting, others = self._fitting(samples, mode)
        yield from others
        for groups in chunks(self._groups(fitting), RECORDS_AT_ONCE):
            with self.phases.of(PROMPTS):
                trees = [self._tree(group, mode) for group in groups]
            thoughts: dict[str, Thought] = {}
            if mode.thinks:
                thoughts = self._thoughts(trees, mode)
                trees = [self._after(tree, thoughts) for tree in trees]
            answers = self.engine.answers(trees, [*words.yes, *words.no])
            for index, values in self.phases.while_made(PREFILL, answers):
                told = [tell(row, words) for row in values]
                yield [
                    _risk_row(sample, one, mode, thoughts.get(sample.sample_id))
                    for sample, one in zip(groups[index], told, strict=True)
                ]

    def decisions(
        self, samples: Iterable[Sample], mode: PromptMode, seed: int = 0
    ) -> Iterator[Rows]:
        """Yield the rows of decision samples, one per draw, with the generated answers.

        A sample's draws depend on `seed` and its `sample_id` only.
        """
        sampling = self.writing.sampling(mode)
        fitting, others = self._fitting(samples, mode)
        yield from others
        for some in chunks(fitting, RECORDS_AT_ONCE):
            given = [self._given(sample.sample_id, mode) for sample in some]
            with self.phases.of(PROMPTS):
                prompts = [
                    self._prompt(sample, mode) + self._begun(text)
                    for sample, text in zip(some, given, strict=True)
                ]
            seeds = [_seed(seed, sample) for sample in some]
            written = self.engine.stream(
                prompts, sampling, group_size=self.writing.draws, seeds=seeds
            )
            for index, group in self.phases.while_made(GENERATION, written):
                yield self._written(some[index], group, mode)

    def _fitting(
        self, samples: Iterable[Sample], mode: PromptMode
    ) -> tuple[list[Sample], list[Rows]]:
        """Return the samples whose prompts fit, and rows with the problem of the others.

        A question must leave room for a record, and a given chain for the answer.
        """
        fitting: list[Sample] = []
        others: list[Rows] = []
        for sample in samples:
            problem = None if self.prompt_builder.fits(self._question(sample, mode)) else TOO_LONG
            given = self._begun(self._given(sample.sample_id, mode))
            if given and len(given) + self.writing.direct > self.writing.think:
                problem = CHAIN_TOO_LONG
            if problem is None:
                fitting.append(sample)
            else:
                others.append([prediction_row(sample, mode, WrittenAnswer([], None, problem))])
        return fitting, others

    def _written(self, sample: Sample, group: Sequence[Completion], mode: PromptMode) -> Rows:
        """Return the rows of one sample; `group` is empty if a server refused the prompt."""
        if not group:
            return [prediction_row(sample, mode, WrittenAnswer([], None, REFUSED))]
        # a think block opened by the prompt is not part of the completion; parsing needs its start
        opened = self.prompt_builder.chat.opened if mode.thinks else ""
        opened = self._given(sample.sample_id, mode) or opened
        texts = [opened + text for text in self._texts(group)]
        return [_decision_row(sample, text, mode, n) for n, text in enumerate(texts)]

    def _groups(self, samples: Iterable[Sample]) -> list[list[Sample]]:
        """Group samples whose questions share a trunk: by context, and by task with examples.

        The trunk contains the examples of the task.
        """
        groups = by_context(samples).values()
        if not self.heads:
            return list(groups)
        return [
            [sample for sample in group if sample.task == task]
            for group in groups
            for task in dict.fromkeys(sample.task for sample in group)
        ]

    def _tree(self, group: Sequence[Sample], mode: PromptMode) -> Tree:
        """Return the tree of one context with the group's questions as branches."""
        key = (id(self.prompt_builder), mode, tuple(sample.sample_id for sample in group))
        return self.memory.tree(key, lambda: self._built(group, mode))

    def _built(self, group: Sequence[Sample], mode: PromptMode) -> Tree:
        """Read the context of a group and return its tree."""
        context = self.prepared.context(group[0])
        questions = [self._question(sample, mode) for sample in group]
        head = self.heads.get(group[0].task)
        return self.prompt_builder.tree(context, preamble_length(context), questions, head=head)

    def _prompt(self, sample: Sample, mode: PromptMode) -> list[int]:
        """Return the tokens of a sample's whole prompt."""
        tree = self._tree([sample], mode)
        return tree.trunk + tree.branches[0].prompt

    def _question(self, sample: Sample, mode: PromptMode) -> Question:
        """Return the question of a sample, worded as `mode` says."""
        words = mode.words(sample, self.candidates)
        return Question(sample.sample_id, sample.task, mode.thinks, instruction=words)

    def _thoughts(self, trees: Sequence[Tree], mode: PromptMode) -> dict[str, Thought]:
        """Return the think block before the answer to each question, by `sample_id`."""
        prompts = {b.sample_id: tree.trunk + b.prompt for tree in trees for b in tree.branches}
        if mode.chains == "given":
            return {name: Thought(self._given(name, mode)) for name in prompts}
        if mode.answer == "both":
            return self._cases(prompts)
        written = self._greedily(prompts, {}, self.writing.think)
        return {name: thought(text) for name, text in written.items()}

    def _cases(self, prompts: Mapping[str, list[int]]) -> dict[str, Thought]:
        """Generate a case for yes and a case for no as the think block of each prompt.

        The headings are inserted, so that every block has both cases, for any model.
        """
        texts = dict.fromkeys(prompts, f"{OPENED}{CASES[0]}\n")
        most = max(1, self.writing.think // 2)
        for heading in (CASES[1], THINK_CLOSE):
            written = self._greedily(prompts, texts, most)
            texts = {
                name: f"{text}{CASE_END.split(written[name], maxsplit=1)[0].strip()}\n{heading}\n"
                for name, text in texts.items()
            }
        return {name: Thought(text + "\n") for name, text in texts.items()}

    def _greedily(
        self, prompts: Mapping[str, list[int]], begun: Mapping[str, str], most: int
    ) -> dict[str, str]:
        """Return the greedy continuation of each prompt followed by its text in `begun`.

        At most `most` tokens are generated; a prompt that a server refuses gets an empty text.
        """
        names = list(prompts)
        whole = [prompts[name] + self._begun(begun.get(name, "")) for name in names]
        written = self.engine.stream(whole, SamplingParams(most, temperature=0.0))
        return {
            names[n]: (self._texts(group) or [""])[0]
            for n, group in self.phases.while_made(GENERATION, written)
        }

    def _after(self, tree: Tree, thoughts: Mapping[str, Thought]) -> Tree:
        """Return the tree with each branch's think block appended to its prompt."""
        branches = [
            replace(b, prompt=b.prompt + self._begun(thoughts[b.sample_id].text))
            for b in tree.branches
        ]
        return replace(tree, branches=branches)

    def _given(self, sample_id: str, mode: PromptMode) -> str:
        """Return the think block with a sample's given chain, or "" if the model thinks itself."""
        if mode.chains == "own":
            return ""
        return f"{OPENED}{broken(self.chains[sample_id])}{CLOSED}"

    def _begun(self, text: str) -> list[int]:
        """Return the tokens of the start of an answer, to be appended to the prompt.

        The opening of the think block is removed if the prompt already ends with it.
        """
        if not text:
            return []
        return self.prompt_builder.markers.written(
            text.removeprefix(self.prompt_builder.chat.opened)
        )

    def _texts(self, group: Sequence[Completion]) -> list[str]:
        """Return the decoded texts of a group of completions."""
        tokens = [completion.tokens for completion in group]
        return self.prompt_builder.markers.decode(tokens)


def thought(text: str) -> Thought:
    """Return the think block of a generated text: all before the closing tag.

    If the tag is missing, the whole text is taken, the tag is added, and `problem` is set.
    """
    chain = text.split(THINK_CLOSE)[0].strip().removeprefix(THINK_OPEN).strip()
    problem = None if THINK_CLOSE in text else NOT_CLOSED
    return Thought(f"{OPENED}{chain}\n{THINK_CLOSE}\n\n", problem)


def tell(logprobs: NDArray[np.float64], words: AnswerTokens) -> YesProbability | None:
    """Return the probability of yes from the log-probabilities of its tokens.

    `logprobs` [yes + no] are those of `words.yes`, then of `words.no`, -inf where the engine does
    not return one. None if all of them are -inf.
    """
    yes = float(np.logaddexp.reduce(logprobs[: len(words.yes)]))
    no = float(np.logaddexp.reduce(logprobs[len(words.yes) :]))
    if not np.isfinite(max(yes, no)):
        return None
    return YesProbability(float(1 / (1 + np.exp(np.clip(no - yes, -700, 700)))), yes, no)


def chunks(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Yield lists of `size` consecutive items; the last may be shorter."""
    iterator = iter(items)
    while some := list(islice(iterator, size)):
        yield some


def _seed(seed: int, sample: Sample) -> int:
    """Return the random seed of a sample's draws, which other samples do not affect."""
    return int(np.random.SeedSequence([seed, *sample.sample_id.encode()]).generate_state(1)[0] >> 1)


def _risk_row(
    sample: Sample, told: YesProbability | None, mode: PromptMode, before: Thought | None
) -> dict[str, Any]:
    """Return the row of a risk sample; `before` is the think block before the answer."""
    completion, problem = (before.text, before.problem) if before else (None, None)
    if told is None:
        return prediction_row(sample, mode, WrittenAnswer([], completion, NOT_TOLD))
    return risk_row(sample, told, mode, completion, problem)


def _decision_row(sample: Sample, completion: str, mode: PromptMode, draw: int) -> dict[str, Any]:
    """Return the row of one draw of a decision sample."""
    answer = read_answer(completion, "decision")
    written = WrittenAnswer(answer.items, completion, answer.problem)
    return prediction_row(sample, mode, written, draw=draw)
