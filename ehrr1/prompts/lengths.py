"""Lengths of prompts, in tokens of a given tokenizer or in words and characters.

A prompt is the input of a model: the system message, the record and the question. The record and
the rest are measured separately and added; the dozen markers of a chat template are not counted.
"""

from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

import polars as pl
from tokenizers import Tokenizer

from ehrr1.errors import UserError
from ehrr1.progress import track
from ehrr1.prompts.messages import SYSTEM
from ehrr1.prompts.wording import OURS
from ehrr1.records.markdown import record_markdown
from ehrr1.tasks.catalog import ALL_TASKS, telling_time
from ehrr1.tasks.samples import TIME_TOLD, Prepared

Measure = Callable[[Sequence[str]], list[int]]
BATCH = 64
"""Number of records that are held and measured at a time."""
SOME_TIME = datetime(2150, 1, 3, 14)


def measures(tokenizer: Path | None) -> dict[str, Measure]:
    """Return unit -> function that measures each text in it.

    `tokenizer` is a Hugging Face folder; neither torch nor transformers is needed. If it is None,
    the units are words and characters. Raises UserError if the folder has no readable
    tokenizer.json.
    """
    if tokenizer is None:
        return {
            "words": lambda texts: [len(text.split()) for text in texts],
            "characters": lambda texts: [len(text) for text in texts],
        }
    try:
        model = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    except Exception as error:  # the library raises no subclass
        raise UserError(
            f"card.tokenizer={tokenizer}: no tokenizer can be read there ({error}); give a folder "
            "that holds tokenizer.json, or null for words and characters"
        ) from error

    def tokens(texts: Sequence[str]) -> list[int]:
        return [len(found) for found in model.encode_batch_fast(texts, add_special_tokens=False)]

    return {"tokens": tokens}


def prompt_lengths(
    prepared: Prepared, index: pl.DataFrame, measures: dict[str, Measure]
) -> pl.DataFrame:
    """Return `split, task` and one column per unit: the length of each sample's prompt.

    Rows are in the index's order. A context is rendered and measured once for all its samples.
    """
    contexts = index.unique("context_id", keep="first", maintain_order=True)
    tasks = index.select("task").unique(maintain_order=True)
    told = TIME_TOLD in index.columns
    own = prepared.questions
    questions = [_around(task, told, own.get(task)) for task in tasks["task"]]
    found: dict[str, list[int]] = {f"record {unit}": [] for unit in measures}
    for first in track(range(0, contexts.height, BATCH), "lengths"):
        some = prepared.as_samples(contexts.slice(first, BATCH))
        records = [record_markdown(prepared.context(sample)) for sample in some]
        for unit, count in measures.items():
            found[f"record {unit}"] += count(records)
    lengths = pl.DataFrame(found, schema=dict.fromkeys(found, pl.Int64))
    asked = tasks.with_columns(
        pl.Series(unit, count(questions), dtype=pl.Int64) for unit, count in measures.items()
    )
    return (
        index.select("split", "task", "context_id")
        .join(contexts.select("context_id").hstack(lengths), on="context_id", maintain_order="left")
        .join(asked, on="task", maintain_order="left")
        .select("split", "task", *(pl.col(unit) + pl.col(f"record {unit}") for unit in measures))
    )


def _around(task: str, time_told: bool, own: str | None) -> str:
    """Return the text before and behind the record; all times have the same length.

    `own` is the folder's own question of the task.
    """
    think = ALL_TASKS[task].kind == "decision"
    if time_told:
        own = telling_time(own or ALL_TASKS[task].instruction, SOME_TIME)
    return f"{SYSTEM}\n\n{OURS.asked(task, think=think, own=own)}"
