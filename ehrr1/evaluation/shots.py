"""Few-shot examples, which precede a question and are also the baselines' training samples."""

from collections.abc import Sequence

import polars as pl

from ehrr1.config.schema import Config
from ehrr1.errors import UserError
from ehrr1.prompts.messages import answer_text
from ehrr1.prompts.trees import PromptBuilder, Question
from ehrr1.tasks.catalog import ALL_TASKS
from ehrr1.tasks.context import preamble_length
from ehrr1.tasks.external.benchmark import SHOTS
from ehrr1.tasks.samples import Prepared, Sample
from ehrr1.tasks.selection import rank, select

ROOM = 0.5
"""Maximum share of the prompt's tokens for all examples together."""


def chosen(cfg: Config, prepared: Prepared, tasks: Sequence[str]) -> list[Sample]:
    """Return the few-shot examples of `tasks`, from the training split.

    A risk task has `eval.shots` examples of each class, a decision task `eval.shots` in all. If the
    benchmark has example sets of that size, one of them is used instead. Tasks without samples in
    any split are skipped. Raises UserError if a task has too few samples.
    """
    found: list[Sample] = []
    asked = set(prepared.scan(None, tasks).select("task").unique().collect()["task"])
    for task in (task for task in tasks if task in asked):
        own = _named(cfg, prepared, task)
        index = _drawn(cfg, prepared, task) if own.is_empty() else own
        # mix the classes: an order that is independent of the classes and of the selection
        found += prepared.as_samples(index.sort(rank(cfg.seed + 1), "sample_id"))
    return found


def _named(cfg: Config, prepared: Prepared, task: str) -> pl.DataFrame:
    """Return the benchmark's set of `eval.shots` examples as rows of the index.

    The run's seed selects one of the set's replicates. Empty if the benchmark has no such set.
    """
    pool = prepared.scan("train", [task])
    if not (prepared.folder / SHOTS).exists():
        return pool.head(0).collect()
    sets = pl.scan_parquet(prepared.folder / SHOTS, glob=False).filter(
        pl.col("k") == cfg.eval.shots
    )
    ours = sets.join(pool.select("sample_id"), on="sample_id").collect()
    if ours.is_empty():
        return pool.head(0).collect()
    replicates = ours["replicate"].unique().sort()
    chosen = ours.filter(pl.col("replicate") == replicates[cfg.seed % len(replicates)])
    return pool.filter(pl.col("sample_id").is_in(chosen["sample_id"].implode())).collect()


def _drawn(cfg: Config, prepared: Prepared, task: str) -> pl.DataFrame:
    """Return randomly selected examples as rows of the index.

    They are drawn from each class of a risk task, or from all samples of a decision task. Raises
    UserError if there are too few.
    """
    pool, shots = prepared.scan("train", [task]), cfg.eval.shots
    if ALL_TASKS[task].kind == "risk":
        told = pool.collect_schema()["target"] == pl.List(pl.String)
        codes = ["no", "yes"] if told else [_code(prepared, word) for word in ("no", "yes")]
        answer = pl.col("target").list.first()
        parts = [select(pool.filter(answer == code), shots, cfg.seed) for code in codes]
    else:
        parts = [select(pool, shots, cfg.seed)]
    index, wanted = pl.concat(parts), shots * len(parts)
    if len(index) < wanted:
        raise UserError(
            f"eval.shots={shots}: task {task} has {len(index)} of {wanted} examples "
            "in the training split; lower it, or prepare more patients"
        )
    return index


def _code(prepared: Prepared, word: str) -> int:
    """Return the code of an answer; -1, which matches no sample, if no sample has the answer."""
    return prepared.names.index(word) if word in prepared.names else -1


def heads(
    cfg: Config, prepared: Prepared, prompt_builder: PromptBuilder, tasks: Sequence[str]
) -> dict[str, list[int]]:
    """Return the tokens of each task's examples, by task; empty without `eval.shots`.

    Raises UserError as `chosen` and `example_head` do.
    """
    if not cfg.eval.shots:
        return {}
    examples = chosen(cfg, prepared, tasks)
    return {
        task: example_head(prompt_builder, prepared, [one for one in examples if one.task == task])
        for task in dict.fromkeys(one.task for one in examples)
    }


def example_head(
    prompt_builder: PromptBuilder, prepared: Prepared, examples: Sequence[Sample]
) -> list[int]:
    """Return the tokens of examples as earlier turns of the chat, with the system's message.

    All examples together take at most `ROOM` of the prompt. Each example has an equal share of it;
    longer records lose their oldest events. Raises UserError if a question exceeds its share.
    """
    chat = prompt_builder.chat
    share = int(ROOM * prompt_builder.max_tokens / max(len(examples), 1))
    tokens = prompt_builder.tokens(chat.head)
    short = PromptBuilder(prompt_builder.tokenizer, share, prompt_builder.wording)
    for sample in examples:
        events = prepared.context(sample)
        question = Question(
            sample.sample_id,
            sample.task,
            think=False,
            answer=answer_text(sample.target),
            instruction=prompt_builder.wording.own(sample),
        )
        if len(short.branch(question)) > share:
            raise UserError(
                f"eval.shots: {len(examples)} examples of task {sample.task} do not fit into half "
                f"of {prompt_builder.max_tokens} tokens; lower it, or raise eval.max_prompt_tokens"
            )
        tree = short.tree(events, preamble_length(events), [question], head=[])
        branch = tree.branches[0]
        # the end-of-turn tokens are both in the completion and in `chat.next`
        answer = branch.completion[: len(branch.completion) - len(prompt_builder.tokens(chat.end))]
        tokens += tree.trunk + branch.prompt + answer + prompt_builder.tokens(chat.next)
    return tokens
