"""The sections of data cards: what a finished `prepare` holds, in tables of counts."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import polars as pl

from ehrr1.files import read_json, read_yaml
from ehrr1.records.codes import LOST_TASKS
from ehrr1.records.schema import MIMIC_TABLES, TABLES
from ehrr1.runs import NOT_COMPARED, metrics_of
from ehrr1.runs.paths import decision
from ehrr1.tasks.candidates import COUNTED
from ehrr1.tasks.catalog import ALL_TASKS, OWN, TASKS
from ehrr1.tasks.label_options import INDEX_STAYS
from ehrr1.tasks.labels import RULES
from ehrr1.tasks.samples import Prepared
from ehrr1.tasks.selection import select
from ehrr1.tasks.splits import SPLITS

Counts = Mapping[str, float | int]

FEWEST = 10
"""Minimum number of patients of which a shared card of closed records tells a number."""

HIDDEN = "-"
"""In place of a number of fewer patients."""

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


def sections(prepared: Prepared, seed: int, lengths: Sequence[str]) -> list[str]:
    """Return all sections of a card; `lengths` is that of the prompts, or empty."""
    index = prepared.scan().select("task", "n_context_rows").collect()
    *counted, heading, left_out = counted_sections(prepared, 1)
    return [
        *counted,
        *answers_section(prepared, seed, named=decision(prepared.folder)["open"]),
        *rows_section(index),
        *lengths,
        heading,
        left_out,
    ]


def counted_sections(prepared: Prepared, least: int) -> list[str]:
    """Return the sections that hold counts only, none of fewer than `least` patients."""
    folder, counts = prepared.folder, metrics_of(prepared.folder)
    decided, index = decision(folder), prepared.scan()
    data = read_yaml(folder / "config.yaml")["data"]
    data |= {"open": f"{decided['open']}: {decided['why']}"}
    return [
        *settings_section(data),
        *patients_section(prepared.splits, index, least),
        *tables_section(counts, read_json(folder / "reported.json"), least),
        *missing_section(counts),
        *samples_section(index, least),
        *left_out_section(counts, least),
    ]


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


def patients_section(splits: pl.DataFrame, index: pl.LazyFrame, least: int) -> list[str]:
    """Return the patients of each split, and how many of them are asked about.

    Their sum stands elsewhere: where one split has few, none is told.
    """
    subjects = index.select("subject_id").unique().collect(engine="streaming")["subject_id"]
    asked = splits.filter(pl.col("subject_id").is_in(subjects.implode()))
    columns = []
    for frame in (splits, asked):
        numbers = [frame.filter(pl.col("split") == split).height for split in SPLITS]
        fewest = min((n for n in numbers if n), default=0)
        columns.append(column(numbers, least, [fewest] * len(numbers))[:-1])
    rows = zip(SPLITS, *columns, strict=True)
    return ["## Patients", table(["split", "patients", "with samples"], rows)]


def tables_section(
    counts: Counts, reported: Mapping[str, Mapping[str, int]], least: int
) -> list[str]:
    """Rows of every table: read = kept + reported; times of knowledge that are assumed."""
    names = [name for name in TABLES if name in MIMIC_TABLES or counts.get(f"rows/{name}")]
    names.sort()

    def numbers(kind: str) -> list[int]:
        return [int(counts.get(f"{kind}/{name}", 0)) for name in names]

    read, left, assumed = map(numbers, ("rows", "rows_reported", "availability_assumed"))
    kept = numbers("rows_kept")
    telling = [n if 0 < n < least else k for n, k in zip(left, kept, strict=True)]
    columns = [column(n, least, of) for n, of in ((read, read), (kept, telling), (left, left))]
    reasons = [
        ", ".join(f"{why} {number(n)}" if least == 1 else why for why, n in sorted(found.items()))
        for found in (reported.get(name, {}) for name in names)
    ]
    rows = zip((*names, "**all**"), *columns, column(assumed, least), (*reasons, ""), strict=True)
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


def samples_section(index: pl.LazyFrame, least: int) -> list[str]:
    """Return the samples of each task and split, of risk tasks with the share of yes."""
    patients, yes = pl.col("subject_id"), pl.col("label")
    counted = index.group_by("task", "split").agg(
        pl.len(),
        yes.sum().alias("yes"),
        patients.n_unique().alias("patients"),
        patients.filter(yes).n_unique().alias("with_yes"),
        patients.filter(~yes).n_unique().alias("with_no"),
        pl.col("balanced").any(),
    )
    found = counted.collect(engine="streaming")
    tasks = (*TASKS, *own_tasks(found))
    columns = []
    for split in SPLITS:
        own = {row["task"]: row for row in found.filter(pl.col("split") == split).to_dicts()}
        sizes, of = ([own[t][key] if t in own else 0 for t in tasks] for key in ("len", "patients"))
        shares = [yes_share(own[task], least) if task in own else "" for task in tasks]
        columns += [column(sizes, least, of), [*shares, ""]]
    heads = [head for split in SPLITS for head in (split, "yes")]
    rows = zip((*tasks, "**all**"), *columns, strict=True)
    parts = ["## Samples", table(["task", *heads], rows)]
    if found["balanced"].any():
        parts.append("The training split is balanced: its shares are not those of the hospital.")
    return parts


def yes_share(row: Mapping[str, Any], least: int) -> str:
    """Return the share of yes among a risk task's samples; empty for other tasks."""
    if ALL_TASKS[row["task"]].kind != "risk":
        return ""
    few = any(0 < row[who] < least for who in ("with_yes", "with_no"))
    return HIDDEN if few else f"{row['yes'] / row['len']:.1%}"


def own_tasks(frame: pl.DataFrame) -> list[str]:
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
            (task, number(items.height), mean, number(size.max()), share, most if named else CLOSED)
        )
    heads = ["task", "distinct items", "items an answer", "most", "share", "the most frequent item"]
    note = f"Decision tasks, training split, at most {COUNTED:,} samples each. *Share*: of answers "
    return ["## Answers", note + "that hold the most frequent item.", table(heads, rows)]


def rows_section(index: pl.DataFrame) -> list[str]:
    """Rows that became known in the window, over all samples."""
    size = pl.col("n_context_rows")
    found = index.group_by("task").agg(
        size.median().alias("median"), size.quantile(0.95).alias("95 %"), size.max()
    )
    by_task = {task: values for task, *values in found.iter_rows()}
    rows = [(task, *map(number, by_task[task])) for task in (*TASKS, OWN) if task in by_task]
    heads = ["task", "median", "95 %", "most"]
    return ["## Rows in the window", "All samples of all splits.", table(heads, rows)]


def left_out_section(counts: Counts, least: int) -> list[str]:
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
                told = column([int(count)], least)[0]
                rows.append((task, reason.replace("_", " ") or words, told))
    shown = table(["task", "reason", "count"], sorted(rows)) if rows else "Nothing."
    return ["## Left out, with the reason", shown]


def column(numbers: Sequence[int], least: int, of: Sequence[int] | None = None) -> list[str]:
    """Return the cells of a column and, last, of its sum.

    A cell of fewer than `least` patients is hidden, and the sum with it, which would tell it.
    `of` are the patients of each cell; None: the numbers themselves.
    """
    hidden = [0 < patients < least for patients in (of or numbers)]
    cells = [HIDDEN if few else number(n) for n, few in zip(numbers, hidden, strict=True)]
    return [*cells, HIDDEN if any(hidden) else number(sum(numbers))]


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; columns of numbers are aligned to the right."""
    cells = [[cell.replace("|", "/") for cell in row] for row in rows]
    # an empty cell is in every text
    digits = "0123456789" + HIDDEN
    numbers = [all(cell[:1] in digits for cell in one) for one in zip(*cells, strict=True)]
    rules = ["--:" if number else "---" for number in numbers] or ["---"] * len(heads)
    return "\n".join(f"| {' | '.join(row)} |" for row in [list(heads), rules, *cells])


def number(value: Any) -> str:
    """Return a whole number with thousands separated."""
    return f"{round(value):,}"
