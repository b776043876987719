"""stage=card: what a finished `prepare` holds, as Markdown: card.md.

Patients, rows of every table, what is missing and what that costs, samples and answers of every
task and split, lengths of prompts, what was left out and why. Counts are exact; lengths and answers
of decision tasks are taken from a seeded draw, whose size the card states. The cards of exports and
models have the same sections without lengths (`tasks.data_card`).
"""

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from ehrr1.config.schema import Config
from ehrr1.files import write_text
from ehrr1.prompts.lengths import measures, prompt_lengths
from ehrr1.runs import Run
from ehrr1.tasks.card_sections import number, own_tasks, sections, table
from ehrr1.tasks.catalog import TASKS
from ehrr1.tasks.samples import Prepared
from ehrr1.tasks.selection import select
from ehrr1.tasks.splits import SPLITS
from ehrr1.terminal import plain_console

console = plain_console(stderr=True)


def run(cfg: Config, run: Run) -> dict[str, float | int]:
    """Write card.md. Metrics: `samples`, and `measured`, the prompts whose length was taken."""
    settings = cfg.card
    units = measures(Path(settings.tokenizer) if settings.tokenizer else None)
    folder = run.input("prepare")
    prepared = Prepared(folder)
    drawn = drawn_samples(prepared, settings.samples_per_task, cfg.seed)
    lengths = prompt_lengths(prepared, drawn, units)
    cut = settings.max_tokens if settings.tokenizer else None
    told = lengths_section(lengths, list(units), cut, settings.samples_per_task)
    parts = ["# Data card", *sections(prepared, cfg.seed, told)]
    write_text(run.folder / "card.md", "\n\n".join(parts) + "\n")
    console.print(f"data card: {run.folder / 'card.md'}", soft_wrap=True)
    samples = prepared.scan().select(pl.len()).collect().item()
    return {"samples": samples, "measured": lengths.height}


def drawn_samples(prepared: Prepared, per_task: int, seed: int) -> pl.DataFrame:
    """At most `per_task` samples of each task and split, by the rank of `selection`."""
    return pl.concat(select(prepared.scan(split), per_task, seed) for split in SPLITS)


def lengths_section(
    lengths: pl.DataFrame, units: Sequence[str], max_tokens: int | None, per_task: int
) -> list[str]:
    """Median, 95th percentile and maximum of prompts; in tokens also the share that is cut."""
    heads = [
        f"{split}: {unit}" for split in SPLITS for unit in (*units, *(["cut"] * bool(max_tokens)))
    ]
    rows = []
    for task in (*TASKS, *own_tasks(lengths)):
        own = lengths.filter(pl.col("task") == task)
        if own.is_empty():
            continue
        cells = [task]
        for split in SPLITS:
            part = own.filter(pl.col("split") == split)
            cells += [_spread(part[unit]) for unit in units]
            if max_tokens:
                cells.append(_share_above(part["tokens"], max_tokens))
        rows.append(cells)
    note = (
        f"Record, question and system's sentence, of at most {per_task} samples a task and split, "
        "drawn with the run's seed: median / 95th percentile / longest."
    )
    if max_tokens:
        cut = _share_above(lengths["tokens"], max_tokens)
        note += f" *Cut*: prompts above {max_tokens:,} tokens, {cut} of all."
    else:
        note += " What a token limit cuts is told with a tokenizer: `card.tokenizer=FOLDER`."
    return ["## Lengths of prompts", note, table(["task", *heads], rows)]


def _spread(values: pl.Series) -> str:
    if values.is_empty():
        return ""
    return " / ".join(number(v) for v in (values.median(), values.quantile(0.95), values.max()))


def _share_above(values: pl.Series, limit: int) -> str:
    return f"{(values > limit).sum() / len(values):.0%}" if len(values) else ""
