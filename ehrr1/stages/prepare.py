"""stage=prepare: raw tables become a store of trajectories and an index of samples.

hospital/       the synthetic hospital, where data.root is null
store/          every row, sorted, with the time at which it became known, in shards of patients
index.parquet   a row a sample: its prediction time, window and answer
names.parquet   the names behind the index's answers
questions.json  task -> its question, where the user or the release's rows bring some
split.parquet   subject_id, split
reported.json   table -> reason -> rows that could not be used
"""

import resource
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl
from rich.table import Column
from rich.table import Table as RichTable

from ehrr1.config.names import BENCHMARKS
from ehrr1.config.schema import Config
from ehrr1.errors import UserError
from ehrr1.files import replacing, write_json
from ehrr1.records import openness
from ehrr1.records.codes import LOST_TASKS
from ehrr1.records.schema import MIMIC_TABLES, TABLES
from ehrr1.records.source import Source
from ehrr1.records.table_spec import Classes
from ehrr1.runs import Run, open_up
from ehrr1.stages import prepare_benchmark
from ehrr1.stages import prepare_inputs as inputs
from ehrr1.stages.prepare_inputs import AnySource
from ehrr1.tasks import build, questions
from ehrr1.tasks.catalog import OWN, SUITES, TASKS
from ehrr1.tasks.paper.index import RELEASED, WINDOW_HOURS
from ehrr1.tasks.samples import SPLIT
from ehrr1.tasks.sampling import BALANCED, Draw, read_limits
from ehrr1.tasks.selection import known_tasks
from ehrr1.terminal import plain_console

console = plain_console(stderr=True)

Metrics = dict[str, float | int]
Rows = dict[str, Counter[str]]
"""Table -> what became of its rows (`records.source.Counts`)."""

REPORTED = "reported/"


def run(cfg: Config, run: Run) -> Metrics:
    """Read every table, build the store and the index. Metrics: counts per table and task."""
    if cfg.data.name in BENCHMARKS:
        return prepare_benchmark.run(cfg, run)
    metrics: Metrics = {}
    with timed(metrics, "hospital"):
        source = opened_source(cfg, run.folder)
        asked = inputs.questions_of(cfg, source)
    with timed(metrics, "shards"):
        build_missing(cfg, run, source)
    with timed(metrics, "merge"):
        rows, samples = build.merge(run.folder, source.shards, draw_of(cfg), cfg.data.tell_time)
        write(inputs.splits_of(cfg, source), run.folder / SPLIT)
        metrics |= inputs.close(source, run.folder)
        if asked:
            questions.keep_questions(asked, run.folder)
    write_json(run.folder / "reported.json", reported(rows))
    decided = inputs.openness_of(cfg, source)
    write_json(run.folder / openness.FILE, decided)
    metrics |= unknown_subjects(cfg, source)
    metrics |= table_metrics(rows, source.tables, len(source.subjects))
    metrics |= {f"samples/{task}": samples[f"samples/{task}"] for task in TASKS}
    metrics |= {name: count for name, count in sorted(samples.items())}
    metrics |= {f"missing_maps/{kind}": 1 for kind in source.missing_maps}
    metrics["peak_memory_gib"] = round(
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3
    )
    show(rows, metrics, source.missing_maps)
    tasks_left_out(cfg, metrics)
    console.print(told(decided))
    return metrics


def told(decided: dict[str, Any]) -> str:
    """Return a sentence on whether the records may be shown, for the terminal."""
    if decided["open"]:
        return f"open records ({decided['why']}): reports and logs may show them"
    return (
        f"closed records ({decided['why']}): nothing of them is shown or sent elsewhere; "
        "data.open=true where you may"
    )


def run_share(cfg: Config, run: Run) -> int:
    """Build this process's share of the store, every `data.shards`-th shard from `data.shard` on.

    Returns how many shards are missing then. The shares together are the store that one process
    would build.
    """
    source = opened_source(cfg, run.folder)
    build_missing(cfg, run, source, share=cfg.data.shard)
    return len(build.missing_shards(run.folder, source))


def opened_source(cfg: Config, folder: Path) -> AnySource:
    """Open the input and read its patients, after all settings of `data` were checked.

    From here on it is known whose they are: the folder of open records is not kept to their user.
    """
    check(cfg)
    chosen_tasks(cfg)
    draw_of(cfg)
    source = inputs.opened(cfg, folder)
    if inputs.openness_of(cfg, source)["open"]:
        open_up(folder)
    return source


def build_missing(cfg: Config, run: Run, source: AnySource, share: int | None = None) -> None:
    """Build the shards that are not there; of a share only those that are its own."""
    numbers = [
        number
        for number in build.missing_shards(run.folder, source)
        if share is None or number % cfg.data.shards == share
    ]
    splits = inputs.splits_of(cfg, source)
    index = inputs.index_of(cfg, source, splits, chosen_tasks(cfg))
    build.build_shards(source, numbers, run.folder, index)


def chosen_tasks(cfg: Config) -> tuple[str, ...]:
    """Return the tasks of `data.suite`, or those of `data.tasks`.

    Raises UserError for a name that is no task.
    """
    if cfg.data.suite is not None and cfg.data.suite not in SUITES:
        raise UserError(
            f"data.suite={cfg.data.suite}: choose one of {', '.join(SUITES)}, or null for all tasks"
        )
    own = (OWN,) if cfg.data.own_labels else ()
    named = known_tasks(cfg.data.tasks, (*TASKS, *own))
    if named is not None:
        return named
    return SUITES[cfg.data.suite] if cfg.data.suite else tuple(TASKS)


def check(cfg: Config) -> None:
    """Raise UserError for settings that only make sense together, all problems in one."""
    problems = []
    data = cfg.data
    if data.root is None and data.subjects is None:
        problems.append(f"data.subjects={data.subjects}: a whole number of at least 1 is needed")
    for kind, path in data.maps.plain().items():
        by_package = kind == "ccs_diagnoses" and path == inputs.CCSR
        if path is not None and not by_package and not Path(path).is_file():
            problems.append(f"data.maps.{kind}={path}: there is no such file")
    if data.protocol == "paper" and data.window_hours != WINDOW_HOURS:
        problems.append(
            f"data.window_hours={data.window_hours:g}: the release's window is {WINDOW_HOURS} "
            "hours; leave it out, or choose data.protocol=strict"
        )
    problems += paper_limits(cfg)
    if problems:
        raise UserError("; ".join(problems))


def paper_limits(cfg: Config) -> list[str]:
    """List what is wrong with the limits of `data.paper`."""
    own, asked = cfg.data.paper, cfg.data.protocol == "paper" and cfg.data.name != "release"
    problems = []
    if own.fewer_than - own.more_than < 2:
        problems.append(
            f"data.paper.more_than={own.more_than}, data.paper.fewer_than={own.fewer_than}: no "
            "context has more events than the first and fewer than the second"
        )
    for name, released in asdict(RELEASED).items():
        value = own.of(name)
        if value != released and not asked:
            problems.append(
                f"data.paper.{name}={'null' if value is None else value}: only "
                "data.protocol=paper on raw tables leaves anything out by it; leave it out"
            )
    return problems


def draw_of(cfg: Config) -> Draw:
    """Return the rule by which samples are drawn.

    Of the tasks that `data.sampling` names (without it: of every task) as many are kept as it says,
    or as `data.force_task_num` says: another number, or a share.
    """
    data, forced, share = cfg.data, cfg.data.force_task_num, None
    limits: dict[str, int | None] = dict.fromkeys(TASKS)
    if data.sampling:
        limits = read_limits(Path(data.sampling))
    limits[OWN] = None  # its labels were given to be used
    if isinstance(forced, float):
        share = forced
    elif forced is not None:
        limits = {task: 0 if limit == 0 else forced for task, limit in limits.items()}
    nothing_drawn = share is None and all(limits[task] is None for task in BALANCED)
    if data.balance == "weights" and nothing_drawn:
        raise UserError(
            "data.balance=weights: nothing is drawn where all samples are taken; give numbers by "
            "data.force_task_num=N or data.sampling=FILE.json"
        )
    return Draw(limits, data.balance, cfg.seed, share)


def unknown_subjects(cfg: Config, source: Source) -> Metrics:
    """Count the patients that files name and that are not among those that are read."""
    named = {} if source.chosen is None else {"data.subjects_file": ("", source.chosen)}
    for split, patients in inputs.named_splits(cfg).items():
        named[f"data.split.{split}_subjects"] = (f"/{split}", patients)
    metrics: Metrics = {}
    for setting, (suffix, patients) in named.items():
        unknown = int((~patients.is_in(source.subjects.implode())).sum())
        if unknown:
            told = f"{unknown:,} of {len(patients):,}"
            console.print(f"{setting}: {told} are not in the tables, or not read")
        metrics[f"unknown_subjects{suffix}"] = unknown
    return metrics


def tasks_left_out(cfg: Config, metrics: Metrics) -> None:
    """Print which tasks a sampling file does not name, or names with 0."""
    if not cfg.data.sampling:
        return
    absent = [task for task, limit in read_limits(Path(cfg.data.sampling)).items() if limit == 0]
    lost = sum(metrics.get(f"sampled_out/{task}", 0) for task in absent)
    if absent:
        console.print(
            f"data.sampling names no samples of {len(absent)} tasks, {lost:,} samples are left "
            f"out: {', '.join(absent)}"
        )


def write(frame: pl.DataFrame, path: Path) -> None:
    """Write a table as Parquet, whole or not at all."""
    with replacing(path) as temporary:
        frame.write_parquet(temporary, compression="lz4")


@contextmanager
def timed(metrics: Metrics, step: str) -> Iterator[None]:
    """Add the seconds of a step to the metrics."""
    begin = time.monotonic()
    yield
    metrics[f"seconds/{step}"] = round(time.monotonic() - begin, 3)


def reported(rows: Rows) -> dict[str, dict[str, int]]:
    """Table -> reason -> rows that could not be used."""
    return {
        name: {
            outcome.removeprefix(REPORTED): count
            for outcome, count in sorted(rows[name].items())
            if outcome.startswith(REPORTED)
        }
        for name in TABLES
        if name in rows
    }


def table_metrics(rows: Rows, tables: list[str], subjects: int) -> Metrics:
    """Return rows read, kept and reported of every table; missing tables have read none.

    Of each table, rows read = rows kept + rows reported.
    """
    metrics: Metrics = {"subjects": subjects}
    lost = reported(rows)
    for name in (*MIMIC_TABLES, *(name for name in rows if name not in MIMIC_TABLES)):
        outcomes = rows.get(name, Counter())
        metrics[f"rows/{name}"] = outcomes["read"]
        metrics[f"rows_kept/{name}"] = outcomes["kept"]
        metrics[f"rows_reported/{name}"] = sum(lost.get(name, {}).values())
        if outcomes["assumed"]:
            metrics[f"availability_assumed/{name}"] = outcomes["assumed"]
        if outcomes["unnamed"]:
            metrics[f"rows_unnamed/{name}"] = outcomes["unnamed"]
    there = {"patients", *tables}
    return metrics | {f"missing_tables/{name}": 1 for name in MIMIC_TABLES if name not in there}


def show(rows: Rows, metrics: Metrics, missing_maps: Sequence[Classes]) -> None:
    """Print what was read, and which tasks are lost because something is missing."""
    table = RichTable("table", *(Column(name, justify="right") for name in ("rows", "kept")))
    table.add_column("reported")
    table.add_column("availability assumed", justify="right")
    table.add_column("unnamed codes", justify="right")
    for name, reasons in reported(rows).items():
        lost = ", ".join(f"{reason} {n:,}" for reason, n in reasons.items())
        read, kept, *some = (rows[name][o] for o in ("read", "kept", "assumed", "unnamed"))
        table.add_row(name, f"{read:,}", f"{kept:,}", lost, *(f"{n:,}" if n else "" for n in some))
    console.print(table)
    missing = [name.partition("/")[2] for name in metrics if name.startswith("missing_tables/")]
    if missing:
        console.print(f"not in the folder: {', '.join(missing)}; their tasks have no samples")
    for kind in missing_maps:
        lost = ", ".join(LOST_TASKS[kind])
        console.print(f"data.maps.{kind} is not given: no samples of the tasks {lost}")
    samples = [metrics.get(f"samples/{task}", 0) for task in (*TASKS, OWN)]
    out = sum(count for name, count in metrics.items() if name.startswith("sampled_out/"))
    not_drawn = f", {out:,} not drawn (data.sampling, data.balance)" if out else ""
    console.print(f"{sum(samples):,} samples of {sum(map(bool, samples))} tasks{not_drawn}")
    left_out: Counter[str] = Counter()
    for name, count in metrics.items():
        if name.startswith("excluded/"):
            left_out[name.rpartition("/")[2]] += int(count)
    if left_out:
        told = ", ".join(f"{reason} {count:,}" for reason, count in left_out.most_common())
        console.print(f"left out: {told} (metrics.json: excluded/<task>/<reason>)")
    given = {name.partition("/")[2]: n for name, n in metrics.items() if "given_chains/" in name}
    if given:
        told = ", ".join(f"{outcome} {count:,}" for outcome, count in given.items())
        console.print(f"chains that the records bring: {told}")
