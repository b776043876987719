"""stage=prepare: raw tables become a store of trajectories and an index of samples.

hospital/       the synthetic hospital, where data.root is null
store/          every row, sorted, with the time at which it became known
index.parquet   a row a sample: its prediction time, window and answer
split.parquet   subject_id, split
reported.json   table -> reason -> rows that could not be used
"""

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import polars as pl
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Column
from rich.table import Table as RichTable

from ehrr1.errors import UserError
from ehrr1.files import replacing, write_json
from ehrr1.records import store
from ehrr1.records.codes import LOST_TASKS, ClassMaps
from ehrr1.records.reading import Folder
from ehrr1.records.rows import Counts, Source
from ehrr1.records.schema import TABLES
from ehrr1.runs import Run
from ehrr1.stages import prepare_benchmark
from ehrr1.tasks.catalog import SUITES, TASKS
from ehrr1.tasks.index import Index, build_index
from ehrr1.tasks.samples import INDEX, SPLIT, STORE
from ehrr1.tasks.splits import split_patients

console = Console(stderr=True)

SYNTHETIC_MAPS = {
    "atc": "d_atc_prescriptions",
    "ccs_diagnoses": "d_ccs_diagnoses",
    "ccs_procedures": "d_ccs_procedures",
}

Metrics = dict[str, float | int]


def run(cfg: DictConfig, run: Run) -> Metrics:
    """Read every table, build store, splits and index. Metrics: counts per table and task."""
    if cfg.data.name == "benchmark":
        return prepare_benchmark.run(cfg, run)
    tasks = chosen_tasks(cfg)
    check(cfg)
    metrics: Metrics = {}
    with timed(metrics, "hospital"):
        root, maps = hospital(cfg, run.folder)
    source = Source(Folder(root), ClassMaps(maps))
    with timed(metrics, "store"):
        missing = store.build(source, run.folder / STORE)
    with timed(metrics, "index"):
        subjects = source.parents["patients"]["subject_id"]
        shares = cfg.data.split
        splits = split_patients(
            subjects, validation=shares.validation, test=shares.test, seed=cfg.seed
        )
        window = timedelta(hours=cfg.data.window_hours)
        index = build_index(run.folder / STORE, source.parents, splits, window, tasks)
        write(splits, run.folder / SPLIT)
        write(index.frame, run.folder / INDEX)
    write_json(run.folder / "reported.json", {n: c.reported for n, c in source.counts.items()})
    metrics |= table_metrics(source.counts, missing, len(subjects))
    metrics |= sample_metrics(index)
    metrics |= {f"missing_maps/{kind}": 1 for kind in source.maps.missing}
    metrics["peak_memory_gib"] = round(
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3
    )
    show(source, missing, index)
    return metrics


def chosen_tasks(cfg: DictConfig) -> tuple[str, ...]:
    """The tasks of `data.suite`, or those of `data.tasks`; UserError for a name that is no task."""
    if cfg.data.suite is not None and cfg.data.suite not in SUITES:
        raise UserError(
            f"data.suite={cfg.data.suite}: choose one of {', '.join(SUITES)}, or null for all tasks"
        )
    if cfg.data.tasks is None:
        return SUITES[cfg.data.suite] if cfg.data.suite else tuple(TASKS)
    unknown = [task for task in cfg.data.tasks if task not in TASKS]
    if unknown:
        raise UserError(
            f"data.tasks: {', '.join(map(str, unknown))} is no task; the tasks are "
            f"{', '.join(TASKS)}"
        )
    return tuple(cfg.data.tasks)


def check(cfg: DictConfig) -> None:
    """Settings that only make sense together; all problems in one UserError."""
    problems = []
    data = cfg.data
    if OmegaConf.is_missing(data, "root"):
        raise UserError("data.root is not set: give the folder that holds MIMIC-IV's hosp/")
    if data.protocol != "strict":
        problems.append(f"data.protocol={data.protocol}: only strict is there")
    if not data.window_hours > 0:
        problems.append(f"data.window_hours={data.window_hours}: it must be above 0")
    shares = data.split.validation, data.split.test
    if min(shares) < 0 or sum(shares) >= 1:
        problems.append(
            f"data.split={{validation: {shares[0]}, test: {shares[1]}}}: shares must be at least 0 "
            "and leave patients to train on"
        )
    if data.root is None and (not isinstance(data.subjects, int) or data.subjects < 1):
        problems.append(f"data.subjects={data.subjects}: a whole number of at least 1 is needed")
    for kind, path in data.maps.items():
        if path is not None and not Path(path).is_file():
            problems.append(f"data.maps.{kind}={path}: there is no such file")
    if problems:
        raise UserError("; ".join(problems))


def hospital(cfg: DictConfig, folder: Path) -> tuple[Path, dict[str, Path | None]]:
    """The folder with the tables and the class maps; writes the synthetic hospital if asked."""
    maps = {kind: Path(path) if path else None for kind, path in cfg.data.maps.items()}
    if cfg.data.root is not None:
        return Path(cfg.data.root), maps
    from ehrr1.records.synthetic import write_hospital

    root = folder / "hospital"
    if not root.exists():
        write_hospital(root, cfg.data.subjects, cfg.seed)
    own = {kind: root / "maps" / f"{name}.csv" for kind, name in SYNTHETIC_MAPS.items()}
    return root, {kind: maps[kind] or path for kind, path in own.items()}


def write(frame: pl.DataFrame, path: Path) -> None:
    with replacing(path) as temporary:
        frame.write_parquet(temporary, compression="lz4")


@contextmanager
def timed(metrics: Metrics, step: str) -> Iterator[None]:
    begin = time.monotonic()
    yield
    metrics[f"seconds/{step}"] = round(time.monotonic() - begin, 3)


def table_metrics(counts: dict[str, Counts], missing: list[str], subjects: int) -> Metrics:
    """rows read = rows kept + rows reported, for every table; missing tables read none."""
    metrics: Metrics = {"subjects": subjects}
    for name in TABLES:
        count = counts.get(name, Counts())
        metrics[f"rows/{name}"] = count.read
        metrics[f"rows_kept/{name}"] = count.kept
        metrics[f"rows_reported/{name}"] = sum(count.reported.values())
        if count.assumed:
            metrics[f"availability_assumed/{name}"] = count.assumed
    return metrics | {f"missing_tables/{name}": 1 for name in missing}


def sample_metrics(index: Index) -> Metrics:
    counts = dict(index.frame["task"].value_counts().iter_rows())
    return {
        **{f"samples/{task}": counts.get(task, 0) for task in TASKS},
        **{f"positives/{task}": count for task, count in index.positives.items()},
        **{f"excluded/{reason}": count for reason, count in index.excluded.items()},
        **{f"died_in_window/{task}": count for task, count in index.died_in_window.items()},
    }


def show(source: Source, missing: list[str], index: Index) -> None:
    """What was read and what it costs that something is not there."""
    table = RichTable("table", *(Column(name, justify="right") for name in ("rows", "kept")))
    table.add_column("reported")
    table.add_column("availability assumed", justify="right")
    for name, count in source.counts.items():
        lost = ", ".join(f"{reason} {n:,}" for reason, n in sorted(count.reported.items()))
        assumed = f"{count.assumed:,}" if count.assumed else ""
        table.add_row(name, f"{count.read:,}", f"{count.kept:,}", lost, assumed)
    console.print(table)
    if missing:
        console.print(f"not in the folder: {', '.join(missing)}; their tasks have no samples")
    for kind in source.maps.missing:
        lost = ", ".join(LOST_TASKS[kind])
        console.print(f"data.maps.{kind} is not given: no samples of the tasks {lost}")
    tasks = index.frame["task"].n_unique()
    console.print(f"{index.frame.height:,} samples of {tasks} tasks")
