"""A few examples: shown to a language model before a question, and all that the baselines learn."""

from collections.abc import Sequence

from omegaconf import DictConfig

from ehrr1.errors import UserError
from ehrr1.prompts.messages import answer_text
from ehrr1.prompts.trees import Question, TreeMaker
from ehrr1.tasks.catalog import ALL_TASKS
from ehrr1.tasks.context import preamble_length
from ehrr1.tasks.samples import Prepared, Sample
from ehrr1.tasks.selection import select

ROOM = 0.5
"""Of the prompt's tokens, what examples may take together."""


def chosen(cfg: DictConfig, prepared: Prepared, tasks: Sequence[str]) -> list[Sample]:
    """`eval.shots` examples of each class of each risk task, and as many of each decision task, of
    the training split.

    Raises UserError where a task has too few.
    """
    found: list[Sample] = []
    for task in tasks:
        risk = ALL_TASKS[task].kind == "risk"
        wanted = cfg.eval.shots * (2 if risk else 1)
        index = select(prepared.index("train", [task]), wanted, cfg.seed, balance=risk)
        if len(index) < wanted:
            raise UserError(
                f"eval.shots={cfg.eval.shots}: task {task} has {len(index)} of {wanted} examples "
                "in the training split; lower it, or prepare more patients"
            )
        found += prepared.as_samples(index)
    return found


def heads(
    cfg: DictConfig, prepared: Prepared, maker: TreeMaker, tasks: Sequence[str]
) -> dict[str, list[int]]:
    """Task -> the tokens before a record that show its examples; empty without `eval.shots`."""
    if not cfg.eval.shots:
        return {}
    examples = chosen(cfg, prepared, tasks)
    return {
        task: example_head(maker, prepared, [one for one in examples if one.task == task])
        for task in tasks
    }


def example_head(maker: TreeMaker, prepared: Prepared, examples: Sequence[Sample]) -> list[int]:
    """The examples as earlier turns of the chat; each record has an equal share of the room and
    loses its oldest events."""
    chat = maker.chat
    share = int(ROOM * maker.max_tokens / max(len(examples), 1))
    tokens = maker.tokens(chat.head)
    short = TreeMaker(maker.tokenizer, share)
    for sample in examples:
        events = prepared.context(sample)
        question = Question(
            sample.sample_id,
            sample.task,
            think=False,
            answer=answer_text(sample.target),
            instruction=sample.instruction,
        )
        tree = short.tree(events, preamble_length(events), [question], head=[])
        branch = tree.branches[0]
        # the turn's end is part of the completion and of what leads to the next turn
        answer = branch.completion[: len(branch.completion) - len(maker.tokens(chat.end))]
        tokens += tree.trunk + branch.prompt + answer + maker.tokens(chat.next)
    return tokens
