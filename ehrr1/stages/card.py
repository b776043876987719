"""stage=card: what a finished `prepare` holds, as Markdown: card.md.

`stage=export` writes the same, without lengths, beside what it exports: README.md (`export_card`).

Patients, rows of every table, what is missing and what that costs, samples and answers of every
task and split, lengths of prompts, what was left out and why. Counts are exact; lengths and answers
of decision tasks are taken from a seeded draw, whose size the card states.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import yaml
from rich.console import Console

from ehrr1 import __version__
from ehrr1.config.schema import Config
from ehrr1.files import read_json, read_yaml, write_text
from ehrr1.prompts.lengths import measures, prompt_lengths
from ehrr1.records import openness
from ehrr1.records.codes import LOST_TASKS
from ehrr1.records.schema import MIMIC_TABLES, TABLES
from ehrr1.runs import NOT_COMPARED, Run, metrics_of
from ehrr1.tasks.candidates import COUNTED
from ehrr1.tasks.catalog import ALL_TASKS, OWN, TASKS
from ehrr1.tasks.label_options import INDEX_STAYS
from ehrr1.tasks.labels import RULES
from ehrr1.tasks.samples import STORE, Prepared
from ehrr1.tasks.selection import select
from ehrr1.tasks.splits import SPLITS

console = Console(stderr=True)

COUNTED_COLUMNS = ("task", "split", "subject_id", "label", "n_context_rows", "balanced")

Counts = Mapping[str, float | int]
FILES = (
    "root",
    "own_labels",
    "subjects_file",
    "sampling",
    "maps",
    "validation_subjects",
    "test_subjects",
)
"""Settings that are shown as given or not: a card goes where paths mean nothing."""
CLOSED = "(closed)"
"""In place of a name that closed records hold."""
GROUPS = ("labels", "split", "maps")
"""Settings that hold settings."""

SHARED_OPEN = """The records are open ({why}): their licence says how they may be shared."""

SHARED_CLOSED = """The records are closed, and these files hold them: share them only with those who
may have the records, by the agreement under which you have them. Of datasets derived from MIMIC,
PhysioNet's guidelines of 24 April 2024 say that they should be treated as containing sensitive
information, and shared on PhysioNet under the agreement of the source data. This card holds counts
only; names of items are left out."""


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
    console.print(f"data card: {run.folder / 'card.md'}")
    samples = prepared.scan().select(pl.len()).collect().item()
    return {"samples": samples, "measured": lengths.height}


def export_card(prepared: Prepared, layout: str, seed: int) -> str:
    """Return the card of an export: what it holds, what may be shared, and what was prepared.

    Of a benchmark's own rows no tables are known.
    """
    decided = decided_on(prepared.folder)
    front = {
        **licence_of(decided),
        "language": ["en"],
        "tags": ["ehrr1", "electronic-health-records", "medical"],
    }
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---",
        "# Data card",
        f"Records exported by `stage=export export.layout={layout}` of ehrr1 {__version__}. "
        "Research only, not for clinical use. Do not try to identify anyone in them.",
        "## What may be shared",
        SHARED_OPEN.format(why=decided["why"]) if decided["open"] else SHARED_CLOSED,
        *(sections(prepared, seed, []) if (prepared.folder / STORE).exists() else []),
    ]
    return "\n\n".join(parts) + "\n"


def decided_on(folder: Path) -> dict[str, Any]:
    """Return whether the records of a finished `prepare` are open (`open`), and `why`."""
    path = folder / openness.FILE
    undecided = {"open": False, "why": "version 0.1 did not decide"}
    return dict(read_json(path)) if path.exists() else undecided


def licence_of(decided: Mapping[str, Any]) -> dict[str, str]:
    """Return the licence of records, as the Hub's front matter states it."""
    if decided["why"] == openness.OF_DEMO:
        return {"license": "odbl"}
    name = "to-be-decided" if decided["open"] else "as-the-records"
    return {"license": "other", "license_name": name}


def sections(prepared: Prepared, seed: int, lengths: Sequence[str]) -> list[str]:
    """Return the sections of a card; `lengths` is that of the prompts, or empty."""
    folder, counts = prepared.folder, metrics_of(prepared.folder)
    index = prepared.scan().select(COUNTED_COLUMNS).collect()
    decided = decided_on(folder)
    data = read_yaml(folder / "config.yaml")["data"]
    data |= {"open": f"{decided['open']}: {decided['why']}"}
    return [
        *settings_section(data),
        *patients_section(prepared.splits, index),
        *tables_section(counts, read_json(folder / "reported.json")),
        *missing_section(counts),
        *samples_section(index),
        *answers_section(prepared, seed, named=decided["open"]),
        *rows_section(index),
        *lengths,
        *left_out_section(counts),
    ]


def drawn_samples(prepared: Prepared, per_task: int, seed: int) -> pl.DataFrame:
    """At most `per_task` samples of each task and split, by the rank of `selection`."""
    return pl.concat(select(prepared.scan(split), per_task, seed) for split in SPLITS)


def settings_section(data: dict[str, Any]) -> list[str]:
    """Return the settings of `data` that `prepare` ran with; files as given or not."""
    rows = []
    for name, value in data.items():
        if f"data.{name}" in NOT_COMPARED:
            continue
        for key, one in (value or {"": None}).items() if name in GROUPS else [("", value)]:
            shown = "null" if one is None else "given" if {name, key} & set(FILES) else str(one)
            rows.append((f"{name}.{key}".rstrip("."), shown))
    return ["## Settings", table(["setting", "value"], rows)]


def patients_section(splits: pl.DataFrame, index: pl.DataFrame) -> list[str]:
    """Patients of each split, and how many of them are asked about."""
    asked = splits.filter(pl.col("subject_id").is_in(index["subject_id"].unique().implode()))
    rows = [
        (split, *(_n(frame.filter(pl.col("split") == split).height) for frame in (splits, asked)))
        for split in SPLITS
    ]
    return ["## Patients", table(["split", "patients", "with samples"], rows)]


def tables_section(counts: Counts, reported: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Rows of every table: read = kept + reported; times of knowledge that are assumed."""
    kinds = ("rows", "rows_kept", "rows_reported", "availability_assumed")
    rows = []
    names = [name for name in TABLES if name in MIMIC_TABLES or counts.get(f"rows/{name}")]
    for name in sorted(names):
        numbers = [int(counts.get(f"{kind}/{name}", 0)) for kind in kinds]
        reasons = sorted(reported.get(name, {}).items())
        rows.append((name, *map(_n, numbers), ", ".join(f"{why} {_n(n)}" for why, n in reasons)))
    totals = [sum(int(counts.get(f"{kind}/{name}", 0)) for name in TABLES) for kind in kinds]
    rows.append(("**all**", *map(_n, totals), ""))
    return [
        "## Tables",
        "Rows read are rows kept plus rows reported (with a reason). *Assumed*: rows without a "
        "store time of their own, whose fixed delay stands in.",
        table(["table", "read", "kept", "reported", "assumed", "reasons"], rows),
    ]


def missing_section(counts: Counts) -> list[str]:
    """Return what cannot be asked, and what contexts lack, without a table."""
    rows = [
        (name, lost_by_table(name)) for name in MIMIC_TABLES if f"missing_tables/{name}" in counts
    ]
    rows += [
        (f"data.maps.{kind}", f"no samples of {', '.join(tasks)}")
        for kind, tasks in LOST_TASKS.items()
        if f"missing_maps/{kind}" in counts
    ]
    return [
        "## What is missing",
        table(["what", "cost"], rows) if rows else "Nothing.",
    ]


def lost_by_table(name: str) -> str:
    """Return what cannot be asked, and what contexts lack, without a table."""
    tasks = [key for key, task in TASKS.items() if task.anchor_table == name]
    tasks += [key for key, rule in RULES.items() if name in rule.needs and key not in tasks]
    costs = [f"no samples of {', '.join(tasks)}"] if tasks else []
    if TABLES[name].context != "no":
        costs.append("its rows stand in no context")
    return "; ".join(costs) or "nothing: it is never shown"


def samples_section(index: pl.DataFrame) -> list[str]:
    """Return the samples of each task and split, of risk tasks with the share of yes."""
    counted = index.group_by("task", "split").agg(pl.len(), pl.col("label").sum().alias("yes"))
    found = {(task, split): (n, yes) for task, split, n, yes in counted.iter_rows()}
    rows = []
    for task in (*TASKS, *_own(index)):
        cells = [task]
        for split in SPLITS:
            n, yes = found.get((task, split), (0, 0))
            share = f"{yes / n:.1%}" if n and ALL_TASKS[task].kind == "risk" else ""
            cells += [_n(n), share]
        rows.append(cells)
    totals = [index.filter(pl.col("split") == split).height for split in SPLITS]
    rows.append(["**all**", *(cell for total in totals for cell in (_n(total), ""))])
    heads = [head for split in SPLITS for head in (split, "yes")]
    parts = ["## Samples", table(["task", *heads], rows)]
    if index["balanced"].any():
        parts.append("The training split is balanced: its shares are not those of the hospital.")
    return parts


def _own(frame: pl.DataFrame) -> list[str]:
    """Return the task of the user's own labels, if the frame has rows of it."""
    return [OWN] if OWN in frame["task"] else []


def answers_section(prepared: Prepared, seed: int, named: bool) -> list[str]:
    """Return what the answers of decision tasks hold, in the training split.

    Items are `named` where the records are open: a card is made to be shown.
    """
    rows = []
    for task, entry in TASKS.items():
        if entry.kind == "risk" or entry.target == "text":
            continue
        chosen = select(prepared.scan("train", [task]), COUNTED, seed)
        if chosen.is_empty():
            continue
        items = prepared.answers(chosen)["item"].value_counts().sort("count", "item")
        most, count = items.row(-1)
        size = chosen["target"].list.len()
        share = f"{count / chosen.height:.1%}"
        mean = f"{size.sum() / chosen.height:.1f}"
        rows.append(
            (task, _n(items.height), mean, _n(size.max()), share, most if named else CLOSED)
        )
    heads = ["task", "distinct items", "items an answer", "most", "share", "the most frequent item"]
    note = f"Decision tasks, training split, at most {COUNTED:,} samples each. *Share*: of answers "
    return ["## Answers", note + "that hold the most frequent item.", table(heads, rows)]


def rows_section(index: pl.DataFrame) -> list[str]:
    """Rows that became known in the window, over all samples."""
    number = pl.col("n_context_rows")
    found = index.group_by("task").agg(
        number.median().alias("median"), number.quantile(0.95).alias("95 %"), number.max()
    )
    by_task = {task: values for task, *values in found.iter_rows()}
    rows = [(task, *map(_n, by_task[task])) for task in (*TASKS, OWN) if task in by_task]
    heads = ["task", "median", "95 %", "most"]
    return ["## Rows in the window", "All samples of all splits.", table(heads, rows)]


def lengths_section(
    lengths: pl.DataFrame, units: Sequence[str], max_tokens: int | None, per_task: int
) -> list[str]:
    """Median, 95th percentile and maximum of prompts; in tokens also the share that is cut."""
    heads = [
        f"{split}: {unit}" for split in SPLITS for unit in (*units, *(["cut"] * bool(max_tokens)))
    ]
    rows = []
    for task in (*TASKS, *_own(lengths)):
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
    return " / ".join(_n(v) for v in (values.median(), values.quantile(0.95), values.max()))


def _share_above(values: pl.Series, limit: int) -> str:
    return f"{(values > limit).sum() / len(values):.0%}" if len(values) else ""


def left_out_section(counts: Counts) -> list[str]:
    """Candidates without a sample, with the reason; and those that other studies leave out."""
    kinds = {"excluded/": "", "sampled_out/": "not drawn"}
    kinds |= {"died_in_window/": "not left out: died in the window, counted as no"}
    kinds |= {"handed_off/": "not left out: admitted again within a day"}
    kinds |= {f"{kind}/": f"not left out: {kind.replace('_', ' ')}" for kind in INDEX_STAYS}
    rows = []
    for name, count in sorted(counts.items()):
        for kind, words in kinds.items():
            if name.startswith(kind) and count:
                task, _, reason = name.removeprefix(kind).partition("/")
                rows.append((task, reason.replace("_", " ") or words, _n(count)))
    shown = table(["task", "reason", "count"], sorted(rows)) if rows else "Nothing."
    return ["## Left out, with the reason", shown]


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; columns of numbers are aligned to the right."""
    cells = [[cell.replace("|", "/") for cell in row] for row in rows]
    # an empty cell is in every text
    numbers = [
        all(cell[:1] in "0123456789" for cell in column) for column in zip(*cells, strict=True)
    ]
    rules = ["--:" if number else "---" for number in numbers] or ["---"] * len(heads)
    return "\n".join(f"| {' | '.join(row)} |" for row in [list(heads), rules, *cells])


def _n(value: Any) -> str:
    """Return a whole number with thousands separated."""
    return f"{round(value):,}"
