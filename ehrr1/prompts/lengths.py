"""How long prompts are, in tokens of a given tokenizer or in words and characters.

A prompt is what a model is given: the system's sentence, the record and the question. The three are
measured apart and added; the dozen markers of a chat template are not counted.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import polars as pl
from tokenizers import Tokenizer

from ehrr1.errors import UserError
from ehrr1.progress import track
from ehrr1.prompts.messages import SYSTEM, instruction
from ehrr1.records.markdown import record_markdown
from ehrr1.tasks.catalog import TASKS
from ehrr1.tasks.samples import Prepared

Measure = Callable[[str], int]


def measures(tokenizer: Path | None) -> dict[str, Measure]:
    """Unit -> how many of them a text has. `tokenizer` is a Hugging Face folder; neither torch nor
    transformers is needed. Raises UserError where it holds no tokenizer.json that can be read."""
    if tokenizer is None:
        return {"words": lambda text: len(text.split()), "characters": len}
    try:
        model = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    except Exception as error:  # the library raises nothing more special
        raise UserError(
            f"card.tokenizer={tokenizer}: no tokenizer can be read there ({error}); give a folder "
            "that holds tokenizer.json, or null for words and characters"
        ) from error
    return {"tokens": lambda text: len(model.encode(text, add_special_tokens=False))}


def prompt_lengths(
    prepared: Prepared, index: pl.DataFrame, measures: dict[str, Measure]
) -> pl.DataFrame:
    """`split, task` and a column a unit: the length of each sample's prompt.

    A context is rendered once for all samples that follow each other with it.
    """

    @cache
    def asked(unit: str, task: str) -> int:
        think = TASKS[task].kind == "decision"
        return sum(map(measures[unit], (SYSTEM, f"\n\n{instruction(task, think=think)}")))

    rows = []
    last_id, own = "", dict.fromkeys(measures, 0)
    ordered = prepared.as_samples(index.sort("subject_id", "context_id", maintain_order=True))
    for sample in track(ordered, "lengths"):
        if sample.context_id != last_id:
            record = record_markdown(prepared.context(sample))
            last_id, own = sample.context_id, {u: count(record) for u, count in measures.items()}
        lengths = [own[unit] + asked(unit, sample.task) for unit in measures]
        rows.append((sample.split, sample.task, *lengths))
    schema = {"split": pl.String, "task": pl.String, **dict.fromkeys(measures, pl.Int64)}
    return pl.DataFrame(rows, schema=schema, orient="row")
