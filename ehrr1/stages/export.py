"""stage=export: prepared records and samples for other tools.

layout=parquet            dataset/: every context once, and the questions on it (`export_dataset`)
layout=jsonl, jsonl.zst   samples.jsonl[.zst]: rows of the benchmark, one a line (`export_rows`)
layout=rows               samples.jsonl with the chat of each row as well
layout=meds               meds/: the whole cohort in the Medical Event Data Standard (`export_meds`)
layout=release            release/: the files of the EHR-R1 release (`export_release`)
layout=lm_eval            lm_eval/: tasks of lm-evaluation-harness (`export_harness`)
layout=inspect            inspect/: tasks of Inspect (`export_harness`)

Each export has a folder of its own below `export/` (`runs.paths.export_name`), with a data card:
README.md.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ehrr1.config.schema import Config
from ehrr1.files import write_text
from ehrr1.prompts.wording import style_of
from ehrr1.runs import Run
from ehrr1.stages import export_dataset, export_harness, export_meds, export_release, export_rows
from ehrr1.stages.export_parts import Source
from ehrr1.stages.export_rows import Questions
from ehrr1.tasks.candidates import Candidates
from ehrr1.tasks.catalog import ALL_TASKS
from ehrr1.tasks.data_card import export_card
from ehrr1.tasks.samples import SIMILAR, Prepared
from ehrr1.tasks.selection import known_tasks


def run(cfg: Config, run: Run) -> dict[str, float | int]:
    """Write the files of the layout, and the data card beside them.

    Metrics: `rows`, those of the layout, and `too_long/<task>`: answers that no list of candidates
    holds. Raises UserError where there is nothing to export or the layout cannot be written.
    """
    metrics = write(cfg, run)
    card = export_card(Prepared(run.input("prepare")), cfg.export.layout, cfg.seed)
    write_text(run.folder / "README.md", card)
    return metrics


def write(cfg: Config, run: Run) -> dict[str, float | int]:
    """Write the files of the layout; return its metrics."""
    own, prepared = cfg.export, Prepared(run.input("prepare"))
    tasks = known_tasks(cfg.data.tasks, ALL_TASKS)
    if own.layout == "meds":
        return export_meds.write(prepared, run.folder / "meds")
    style = style_of("release" if own.layout == "release" else cfg.wording, "eval")
    if own.layout in ("lm_eval", "inspect"):
        folder = run.folder / own.layout
        return export_harness.write(prepared, folder, style, own, tasks, cfg.seed)
    similar = similar_items(cfg, prepared)
    if own.layout == "parquet":
        source = Source(prepared.folder, cfg.wording, cfg.seed, similar, tasks, own.split)
        return export_dataset.write(source, own.limit, own.workers, run.folder / "dataset")
    candidates = Candidates(prepared, cfg.seed, similar)
    questions = Questions(prepared, style, candidates, tasks, own.limit)
    if own.layout == "release":
        whole = Questions(prepared, style, candidates)
        metrics = export_release.write(prepared, run.folder / "release", lambda: bench(whole))
    else:
        name = "samples.jsonl.zst" if own.layout == "jsonl.zst" else "samples.jsonl"
        found = questions.of(own.split)
        count = export_rows.write(found, style, run.folder / name, messages=own.layout == "rows")
        metrics = {"rows": count}
    too_long = {f"too_long/{task}": n for task, n in sorted(candidates.too_long.items())}
    return metrics | too_long


def similar_items(cfg: Config, prepared: Prepared) -> Path | None:
    """Return the folder of similar items: the user's, else the one that the input brought."""
    if cfg.export.similar_items:
        return Path(cfg.export.similar_items)
    brought = prepared.folder / SIMILAR
    return brought if brought.exists() else None


def bench(questions: Questions) -> Iterator[dict[str, Any]]:
    """Yield the rows of the release's benchmark: those of the test split, with their chats."""
    style = questions.style
    for question in questions.of("test"):
        yield export_rows.row(question, style) | export_rows.messages_of(question, style)
