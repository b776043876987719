"""Finished evaluations side by side: what differs in their settings, and in their scores.

A result of a run is called `<result>@<run>`; baselines are those of the first run.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from os.path import commonpath, relpath
from pathlib import Path
from typing import Any

import polars as pl
from omegaconf import OmegaConf
from rich.console import Console

from ehrr1.errors import UserError
from ehrr1.evaluation.page import write
from ehrr1.evaluation.page.data import report_data
from ehrr1.evaluation.page.page import flat
from ehrr1.evaluation.report import difference_table
from ehrr1.evaluation.summary import BASELINES, last_result, summarise
from ehrr1.files import replacing, write_json
from ehrr1.tasks.catalog import ALL_TASKS

NOT_TOLD = ("output_root", "inputs", "rescore", "compare", "variant", "name", "stage", "overwrite")
"""Settings that say where a run is, not what it is."""


@dataclass(frozen=True)
class Finished:
    """One evaluation: its label among those compared, its predictions, its settings."""

    label: str
    predictions: pl.DataFrame
    settings: dict[str, str]

    @property
    def split(self) -> str:
        return self.settings["eval.split"]


def compare(folders: Sequence[Path], target: Path, replicates: int, seed: int) -> None:
    """Write `target`/report.html and metrics.json; print the differences.

    Raises UserError where a folder is no finished evaluation, the splits differ, or two runs have
    no sample in common.
    """
    runs = [read(folder, label) for folder, label in zip(folders, labels(folders), strict=True)]
    if len({run.split for run in runs}) > 1:
        told = ", ".join(f"{run.label}: {run.split}" for run in runs)
        raise UserError(f"compare: the evaluations are of different splits ({told})")
    together = pl.concat(named(run, first=run is runs[0]) for run in runs)
    pairs = compared(runs)
    warnings = [common(together, *pair) for pair in pairs] + differing_modes(together, pairs)
    asked = set(together["task"].unique())
    tasks = [task for task in ALL_TASKS if task in asked]
    split = runs[0].split
    metrics = summarise(together, tasks, split, replicates, seed, pairs)
    data = report_data(together, metrics, tasks, split, (), pairs)
    data["warnings"] = warnings + data["warnings"]
    title = "comparison: " + ", ".join(run.label for run in runs)
    data |= {"title": title, "settings": differing(runs), "split": split, "note": ""}
    data["runs"] = [run.label for run in runs]
    target.mkdir(parents=True, exist_ok=True)
    with replacing(target / "report.html") as path:
        write(path, title, data)
    write_json(target / "metrics.json", metrics)
    console = Console()
    console.print(difference_table(pairs, metrics))
    for line in warnings:
        console.print(line, soft_wrap=True)


def read(folder: Path, label: str) -> Finished:
    """A finished evaluation. Raises UserError for any other folder."""
    missing = [n for n in ("predictions.parquet", "config.yaml") if not (folder / n).exists()]
    if missing:
        raise UserError(
            f"compare={folder}: it has no {' and no '.join(missing)}; give folders of finished "
            "evaluations (outputs/NAME/eval)"
        )
    config: Any = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    settings = {name: value for name, value in flat(config)}
    return Finished(label, pl.read_parquet(folder / "predictions.parquet"), settings)


def labels(folders: Sequence[Path]) -> list[str]:
    """What tells the folders apart: their paths below the one that they share."""
    paths = [folder.resolve() for folder in folders]
    if len(set(paths)) < len(paths):
        raise UserError("compare: the same folder is given twice; name different evaluations")
    shared = commonpath(paths)
    return [relpath(path, shared).removesuffix("/eval") for path in paths]


def named(run: Finished, first: bool) -> pl.DataFrame:
    """Its predictions under names that tell the run; baselines once."""
    baseline = pl.col("model").is_in(BASELINES)
    rows = run.predictions if first else run.predictions.filter(~baseline)
    told = pl.format("{}@{}", "model", pl.lit(run.label))
    return rows.with_columns(model=pl.when(baseline).then("model").otherwise(told))


def compared(runs: Sequence[Finished]) -> list[tuple[str, str]]:
    """Pairs of results, the later run's first: those of one name, and the main ones."""
    found: list[tuple[str, str]] = []
    for one, other in combinations(runs, 2):
        names = [set(run.predictions["model"]) - set(BASELINES) for run in (one, other)]
        pairs = [(name, name) for name in sorted(names[0] & names[1])]
        pairs.append((str(last_result(other.predictions)), str(last_result(one.predictions))))
        found += [(f"{a}@{other.label}", f"{b}@{one.label}") for a, b in pairs]
    return list(dict.fromkeys(found))


def common(together: pl.DataFrame, first: str, second: str) -> str:
    """How many samples and patients two results share; UserError where they share none."""
    one, two = (together.filter(pl.col("model") == name) for name in (first, second))
    both = one.join(two, on=["task", "sample_id"], how="semi")
    if both.is_empty():
        raise UserError(
            f"compare: {first} and {second} have no sample in common; evaluate them on the same "
            "records (inputs.prepare=DIR) and with the same eval.samples_per_task"
        )
    samples, patients = both["sample_id"].n_unique(), both["subject_id"].n_unique()
    return f"{first} and {second}: compared on {samples:,} samples of {patients:,} patients."


def differing_modes(together: pl.DataFrame, pairs: Sequence[tuple[str, str]]) -> list[str]:
    """Pairs that were not asked in the same way."""
    found = []
    for pair in pairs:
        for column in ("mode", "candidates", "wording"):
            one, two = (
                sorted(set(together.filter(pl.col("model") == name)[column])) for name in pair
            )
            if one != two:
                told = f"{', '.join(one)} and {', '.join(two)}"
                found.append(f"{pair[0]} and {pair[1]} differ in {column}: {told}.")
    return found


def differing(runs: Sequence[Finished]) -> list[list[str]]:
    """Settings that the runs do not share: name, then each run's value."""
    names = dict.fromkeys(name for run in runs for name in run.settings)
    rows = [[name, *(run.settings.get(name, "-") for run in runs)] for name in names]
    told = [row for row in rows if row[0].split(".")[0] not in NOT_TOLD]
    return [row for row in told if len(set(row[1:])) > 1]
