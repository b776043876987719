"""Finished evaluations side by side: what differs in their settings, and in their scores.

report.html       the page
metrics.json      as of a single evaluation, with paired differences between the runs
differences.csv   these, a row each, of means over tasks and of each task

A result of a run is called `<result>@<run>`; baselines are those of the first run. Runs that
differ in their seed only are also one result, `seeds/<result>@<runs>` (`evaluation.seeds`).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import combinations
from os.path import commonprefix
from pathlib import Path
from typing import Any

import polars as pl

from ehrr1.config.records import Concepts
from ehrr1.errors import UserError
from ehrr1.evaluation.about import about_finished
from ehrr1.evaluation.aggregate import BASELINES, Metrics, last_result, names, summarise
from ehrr1.evaluation.finished import require_finished
from ehrr1.evaluation.matching import with_matches
from ehrr1.evaluation.pages.html import page, table
from ehrr1.evaluation.pages.numbers import cell
from ehrr1.evaluation.pages.numbers import label as metric_label
from ehrr1.evaluation.pages.report import flat_settings, lead, report_data, rules
from ehrr1.evaluation.predictions import read_predictions
from ehrr1.evaluation.seeds import seed_metrics
from ehrr1.evaluation.tables import (
    MAIN,
    WIDTH,
    difference_table,
    seed_rows,
    seed_table,
    task_differences,
)
from ehrr1.evaluation.tolerance import with_tolerance
from ehrr1.files import read_yaml, replacing, write_json, write_text
from ehrr1.graph.same_names import check_dictionary
from ehrr1.runs.environment import version
from ehrr1.tasks.catalog import ALL_TASKS
from ehrr1.terminal import plain_console

NOT_TOLD = (
    *("output_root", "inputs", "rescore", "compare", "variant", "name", "stage", "overwrite"),
    "concepts.cache",
)
"""Settings and sections that say where a run is, not what it is."""

HOW_ASKED = (
    *("answer", "candidates", "wording", "data.name", "data.protocol", "eval.suite"),
    *("eval.max_prompt_tokens", "eval.shots", "eval.draws", "eval.matching", "eval.chains"),
)
"""Settings without which two scores are not of the same thing."""

BY_TASK = {
    "risk": ("auroc", "auprc", "brier"),
    "decision": ("f1", "f1_tolerant", "precision", "recall"),
}
"""Metrics whose differences the page shows for each task."""

ENDS = ("/low", "/high")
"""Last parts of the names of an interval's bounds."""

Pair = tuple[str, str]

Counts = dict[str, tuple[int, int]]
"""Samples and patients that two results share: of each task, and of all as "all"."""


@dataclass(frozen=True)
class Finished:
    """One evaluation: its label among those compared, its predictions, its settings."""

    label: str
    folder: Path
    predictions: pl.DataFrame
    settings: dict[str, str]

    @property
    def split(self) -> str:
        """The split that was evaluated."""
        return self.settings["eval.split"]

    @property
    def told(self) -> dict[str, str]:
        """The settings that say what the run is."""
        return {
            name: value
            for name, value in self.settings.items()
            if not {name, name.split(".")[0]} & set(NOT_TOLD)
        }


def compare(
    folders: Sequence[Path],
    target: Path,
    replicates: int,
    seed: int,
    concepts: Concepts,
    atc_level: int,
) -> None:
    """Write `target`; print the differences, and why they may not be of the same thing.

    Intervals of differences are of the bootstrap by patient, paired, on the samples that both have
    answered. `concepts` and `atc_level` are those of the tolerant scores. Raises UserError where a
    folder is no finished evaluation, the splits differ, two runs have no sample in common, or the
    dictionary of `concepts` is missing.
    """
    check_dictionary(concepts)
    runs = [read(folder, label) for folder, label in zip(folders, labels(folders), strict=True)]
    if len({run.split for run in runs}) > 1:
        told = ", ".join(f"{run.label}: {run.split}" for run in runs)
        raise UserError(f"compare: the evaluations are of different splits ({told})")
    split, runs = runs[0].split, tolerant(runs, concepts, atc_level)
    parts = [named(run, runs[:place]) for place, run in enumerate(runs)]
    together = pl.concat(parts, how="diagonal")  # only those matched as released tell scores
    scored = together.filter(pl.col("split") == split)
    matched = {pair: matching(scored, *pair) for pair in compared(runs)}
    notes = {p: "{:,} samples of {:,} patients".format(*n["all"]) for p, n in matched.items()}
    tasks = [task for task in ALL_TASKS if (scored["task"] == task).any()]
    metrics = summarise(together, tasks, split, replicates, seed, list(matched))
    groups = seed_groups(runs)
    metrics |= seed_metrics(
        {label: [by_result(run) for run in members] for label, members in groups.items()},
        tasks,
        replicates,
        seed,
    )
    data = report_data(together, split, metrics, tasks, notes)
    asked_alike = unlike(runs, scored, list(matched))
    data |= {
        "about": [["compared by", version()], ["on", f"{datetime.now(UTC):%Y-%m-%d}"]],
        "about_runs": [[run.label, list(about_finished(run.folder).items())] for run in runs],
        "title": "Comparison: " + ", ".join(run.label for run in runs),
        "lead": [["runs", f"{len(runs)}"], *lead(scored, split)],
        "rules": rules({**_numbers(runs), "bootstrap": replicates}),
        "warnings": asked_alike + data["warnings"],
        "runs": [runs_table(runs)],
        "differing": differing(runs),
        "overview": data["overview"] + seed_pages(metrics, groups) + task_pages(metrics, matched),
    }
    with replacing(target / "report.html") as path:
        path.write_text(page(data), encoding="utf-8")
    write_json(target / "metrics.json", metrics)
    write_text(target / "differences.csv", rows(matched, metrics).write_csv())
    console = plain_console()
    console.width = max(console.width, WIDTH)
    console.print(difference_table(list(matched), metrics))
    for table_ in task_differences(main_pairs(runs), metrics, tasks):
        console.print(table_)
    if groups:
        console.print(seed_table(metrics))
    for line in [f"{a} and {b}: {note}" for (a, b), note in notes.items()] + asked_alike:
        console.print(line, soft_wrap=True)


def seed_groups(runs: Sequence[Finished]) -> dict[str, list[Finished]]:
    """Return the runs that differ in nothing but their seed, by a label; only groups of several.

    The label is what the labels of the runs begin with.
    """
    alike: dict[str, list[Finished]] = {}
    for run in runs:
        told = {name: value for name, value in run.told.items() if name != "seed"}
        alike.setdefault(json.dumps(told, sort_keys=True), []).append(run)
    groups: dict[str, list[Finished]] = {}
    for members in alike.values():
        if len({run.settings.get("seed") for run in members}) > 1:
            labels = [run.label for run in members]
            start = commonprefix(labels).rstrip("._=-")  # noqa: RUF071 (labels are no paths)
            groups[start if start and start not in groups else members[0].label] = members
    return groups


def by_result(run: Finished) -> dict[str, pl.DataFrame]:
    """Return the scored predictions of a run by result, baselines too."""
    scored = run.predictions.filter(pl.col("split") == run.split)
    return {name: scored.filter(pl.col("model") == name) for name in names(scored)}


def seed_pages(metrics: Metrics, groups: Mapping[str, Sequence[Finished]]) -> list[dict[str, Any]]:
    """Return the page's table of the results of several seeds; none without groups."""
    if not groups:
        return []
    head = ["result", *(f"{kind} {metric}" for kind, metric in MAIN.items())]
    rows = [[name, *cells] for name, cells in seed_rows(metrics)]
    told = ", ".join(f"{label}: {len(members)}" for label, members in groups.items())
    return [table(f"Mean over seeds, interval over seeds and patients ({told})", head, rows)]


def task_pages(metrics: Metrics, matched: Mapping[Pair, Counts]) -> list[dict[str, Any]]:
    """Return the page's tables of differences by task: one per pair and kind of task."""
    found = []
    for (one, other), counted in matched.items():
        for kind, shown in BY_TASK.items():
            rows = [
                [task, *counted[task], *(cell(metrics, f"{one}-{other}/{task}/{m}") for m in shown)]
                for task, entry in ALL_TASKS.items()
                if entry.kind == kind and task in counted
            ]
            head = ["task", "samples", "patients", *map(metric_label, shown)]
            if rows:
                title = f"Differences by task, {kind}: {one} \N{MINUS SIGN} {other}"
                found.append(table(title, head, rows))
    return found


def tolerant(runs: Sequence[Finished], concepts: Concepts, atc_level: int) -> list[Finished]:
    """Return the runs, their predictions with tolerant scores; the dictionary is read once."""
    parts = [run.predictions.with_columns(run=pl.lit(run.label)) for run in runs]
    whole = with_tolerance(pl.concat(parts, how="diagonal"), concepts, atc_level)
    return [
        replace(run, predictions=whole.filter(pl.col("run") == run.label).drop("run"))
        for run in runs
    ]


def read(folder: Path, label: str) -> Finished:
    """Read a finished evaluation. Raises UserError for any other folder."""
    require_finished("compare", folder)
    settings = {name: value for name, value in flat_settings(read_yaml(folder / "config.yaml"))}
    predictions = read_predictions(folder / "predictions.parquet")
    predictions = with_matches(predictions, settings.get("eval.matching", "ours"))
    return Finished(label, folder, predictions, settings)


def labels(folders: Sequence[Path]) -> list[str]:
    """Return short labels of folders: their paths without the parts that all of them share."""
    parts = [folder.resolve().parts for folder in folders]
    if len(set(parts)) < max(2, len(parts)):
        raise UserError("compare: name two or more different evaluations, each once")
    while all(len(one) > 1 for one in parts) and len({one[-1] for one in parts}) == 1:
        parts = [one[:-1] for one in parts]
    while all(len(one) > 1 for one in parts) and len({one[0] for one in parts}) == 1:
        parts = [one[1:] for one in parts]
    return [".".join(one) for one in parts]  # a slash would end the name of a metric


def named(run: Finished, earlier: Sequence[Finished]) -> pl.DataFrame:
    """Return a run's predictions under names that tell the run; each baseline once."""
    baseline = pl.col("model").is_in(BASELINES)
    there = {name for other in earlier for name in other.predictions["model"].unique()}
    rows = run.predictions.filter(~(baseline & pl.col("model").is_in(there)))
    told = pl.format("{}@{}", "model", pl.lit(run.label))
    return rows.with_columns(model=pl.when(baseline).then("model").otherwise(told))


def compared(runs: Sequence[Finished]) -> list[Pair]:
    """Return pairs of results, the later run's first: the main ones, and those of one name."""
    found = main_pairs(runs)
    for one, other in combinations(runs, 2):
        ours, theirs = (
            [name for name in names(run.predictions) if name not in BASELINES]
            for run in (other, one)
        )
        found += [(f"{a}@{other.label}", f"{a}@{one.label}") for a in ours if a in theirs]
    return list(dict.fromkeys(found))


def main_pairs(runs: Sequence[Finished]) -> list[Pair]:
    """Return the pairs of the runs' main results, the later run's first."""
    mains = [(run.label, last_result(run.predictions)) for run in runs]
    return [
        (f"{name}@{label}", f"{earlier}@{before}")
        for (before, earlier), (label, name) in combinations(mains, 2)
        if earlier and name
    ]


def matching(scored: pl.DataFrame, first: str, second: str) -> Counts:
    """Count the samples and patients that two results share; UserError where there are none."""
    one, two = (scored.filter(pl.col("model") == name) for name in (first, second))
    both = one.join(two, on=["task", "sample_id"], how="semi")
    if both.is_empty():
        raise UserError(
            f"compare: {first} and {second} have no sample in common; evaluate them on the same "
            "records (inputs.prepare=DIR) and with the same eval.samples_per_task"
        )
    counted = both.group_by("task").agg(pl.col("sample_id", "subject_id").n_unique())
    whole = both["sample_id"].n_unique(), both["subject_id"].n_unique()
    return {"all": whole} | {task: (n, m) for task, n, m in counted.iter_rows()}


def unlike(runs: Sequence[Finished], scored: pl.DataFrame, pairs: Sequence[Pair]) -> list[str]:
    """List why scores of these runs may not be of the same thing."""
    found = []
    for name in HOW_ASKED:
        values = [run.settings.get(name, "not set") for run in runs]
        if len(set(values)) > 1:
            told = ", ".join(f"{v} in {r.label}" for v, r in zip(values, runs, strict=True))
            found.append(f"Not asked alike: {name} is {told}.")
    for pair in pairs:
        one, two = (scored.filter(pl.col("model") == name) for name in pair)
        both = one.join(two, on=["task", "sample_id", "draw"], suffix="_then")
        for column in ("mode", "candidates", "wording"):
            others = both.filter(pl.col(column) != pl.col(f"{column}_then"))
            if len(others):
                told = f"{others[column][0]} and {others[f'{column}_then'][0]}"
                found.append(f"{pair[0]} and {pair[1]} were not asked alike: {column} is {told}.")
        others = both.filter(pl.col("target") != pl.col("target_then"))
        if len(others):
            found.append(
                f"{pair[0]} and {pair[1]}: {others['sample_id'].n_unique():,} samples have other "
                "right answers in the two runs: the data are not the same."
            )
    return found


def runs_table(runs: Sequence[Finished]) -> dict[str, Any]:
    """Return the table of the compared evaluations."""
    rows = [
        [
            run.label,
            run.predictions["sample_id"].n_unique(),
            run.predictions["subject_id"].n_unique(),
            ", ".join(names(run.predictions)),
            str(run.folder),
        ]
        for run in runs
    ]
    return table("Runs", ["run", "samples", "patients", "results", "folder"], rows)


def differing(runs: Sequence[Finished]) -> list[dict[str, Any]]:
    """Return a table of the settings that differ: name, then each run's value; none if none do."""
    found = dict.fromkeys(name for run in runs for name in run.told)
    rows = [[name, *(run.settings.get(name, "not set") for run in runs)] for name in found]
    head = ["setting", *(run.label for run in runs)]
    unequal = [row for row in rows if len(set(row[1:])) > 1]
    return [table("Settings that differ", head, unequal)] if unequal else []


def rows(matched: Mapping[Pair, Counts], metrics: Mapping[str, float]) -> pl.DataFrame:
    """Return a row a pair and score: the difference, its interval, samples and patients.

    The scores are the means over tasks, and those of each task.
    """
    found = []
    for (one, other), counted in matched.items():
        head = f"{one}-{other}/"
        for key in (k for k in metrics if k.startswith(head) and not k.endswith(ENDS)):
            name = key.removeprefix(head)
            samples, patients = counted.get(name.split("/")[0], counted["all"])
            low, high = (metrics.get(f"{key}{end}") for end in ENDS)
            found.append((one, other, name, metrics[key], low, high, samples, patients))
    columns = ("result", "minus", "metric", "difference", "low", "high", "samples", "patients")
    return pl.DataFrame(found, schema=columns, orient="row")


def _numbers(runs: Sequence[Finished]) -> dict[str, int]:
    """Return the largest token limit of the runs; differing settings have a table of their own."""
    limits = (int(run.settings["eval.max_prompt_tokens"]) for run in runs)
    return {"max_prompt_tokens": max(limits)}
