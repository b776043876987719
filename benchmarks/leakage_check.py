"""Does an independent auditor agree that contexts show only what was known?

    python -m benchmarks.leakage_check DIR [--protocols strict paper] [--per-task 300] [--seed 0]
                                       [--json FILE] [--env DIR]

The auditor is `icu-leakage-check` 0.1.0, which knows the timing of MIMIC-IV's hosp/ and icu/; it
runs in a virtual environment of its own (`--env`, made where it is missing). DIR holds the demo's
hosp/, icu/, ed/. Each protocol is prepared as `stage=prepare` does it; of each task a seeded draw
of samples (all where there are fewer; `--per-task 0`: all) gives the contexts. `strict` is fed a
second time with every prediction time 6 hours earlier: a control, in which it has to find rows.

What the auditor is given:
- Which rows each context shows: context number, prediction time, table, row of the file. The rows
  are found in the raw files by what they say (`benchmarks/shown.py`), without our availability.
- The raw files' own cells of these rows, as text, all columns. From them the auditor's
  `events_from_table` makes event, available and end time by its own registry: `charttime` or
  `starttime`, `storetime` (none: known at its event time), dates known at the end of their day,
  `diagnoses_icd` known at the admission's raw `dischtime`, which also stands for its missing event
  time (`event_timing` would pass over such rows).
- Tables that it does not know (ed/, note/) with their raw times: `intime` (edstays, triage),
  `charttime` and, where there is one, `storetime`; diagnosis: the ED stay's `outtime`.
- End times (`endtime`, `stoptime`, `outtime`) only where the context, as it is written, has a value
  in a column that is a total up to that end (inputevents and ingredientevents: amount;
  procedureevents: value). A row whose total is hidden is given as the start of its interval.
- The names of the shown columns (check `hindsight_features`).
Demographics (age, sex) are not fed: the auditor has no time for them.

Ours, beside its counts, from the store: `future`: event time after the prediction time; `lag`: the
event before, the row known after it; `crossing`: a total shown before its interval is over (or
before it was stored). Ends with 1 where the auditor finds a timing failure or a column known in
hindsight under `strict`, or nothing in the control.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any

import polars as pl

from benchmarks.measure import ROOT, environment, markdown
from benchmarks.shown import (
    Found,
    event_time_text,
    find_raw,
    read,
    shown,
    stored_rows,
    with_parents,
)
from ehrr1.records.reading import Folder
from ehrr1.records.schema import ORDER, TABLES
from ehrr1.records.table_spec import Table
from ehrr1.tasks.samples import Prepared

REQUIREMENTS = ("icu-leakage-check==0.1.0", "pyarrow")
KNOWN_MODULES = ("hosp", "icu")
BATCH = 2000
"""So many contexts are judged at a time: some two million rows."""
CONTROL = timedelta(hours=6)
KINDS = {
    "future": "FUTURE_EVENT",
    "lag": "AVAILABILITY_LAG",
    "crossing": "INTERVAL_CROSSING",
    "undated": "UNDATED_SOURCE",
}
"""Ours -> the auditor's."""
GIVEN = {
    "table": pl.String,
    "row": pl.Int64,
    "event_time": pl.String,
    "available_time": pl.String,
}
"""given.parquet; times are the files' own text."""


def prepare(data: Path, protocol: str, work: Path) -> Prepared:
    output = work / protocol
    command = [sys.executable, "run.py", "stage=prepare", "experiment=mimic_demo"]
    command += [f"data.root={data}", f"data.protocol={protocol}", f"output_root={output}"]
    subprocess.run(command, cwd=ROOT, check=True)
    (index,) = output.rglob("index.parquet")
    return Prepared(index.parent)


def draw(prepared: Prepared, per_task: int, seed: int) -> pl.DataFrame:
    """Rows of the index, one for each context of the drawn samples."""
    index = prepared.index()
    if per_task:
        order = pl.int_range(pl.len()).shuffle(seed=seed).over("task")
        index = index.filter(order < per_task)
    return index.unique(["context_id", "prediction_time"], keep="first", maintain_order=True)


def write_rows(prepared: Prepared, contexts: pl.DataFrame, data: Path, to: Path) -> dict[str, Any]:
    """Write the raw rows for the auditor and `rows.parquet`: the store's rows with their `row`."""
    folder = Folder(data)
    stored = stored_rows(prepared, contexts["subject_id"].unique().sort().to_list())
    (to / "raw").mkdir(parents=True)
    found: dict[str, Found] = {}
    given = [pl.DataFrame(schema=GIVEN)]
    for number in stored["table"].unique().sort():
        table = TABLES[ORDER[number]]
        found[table.name] = match = find_raw(stored, table, folder)
        raw = match.raw.join(match.rows, on="row", how="semi")
        if table.module in KNOWN_MODULES:
            raw.write_parquet(to / "raw" / f"{table.name}.parquet")
        else:
            given.append(given_times(raw, table, folder))
    pl.concat(given).write_parquet(to / "given.parquet")
    stays = read(folder, "hosp", "admissions").select("hadm_id", "dischtime")
    stays.write_parquet(to / "admissions.parquet")
    columns = {name: shown_columns(TABLES[name]) for name in found}
    (to / "columns.json").write_text(json.dumps(columns))
    numbered = [
        match.rows.with_columns(table=pl.lit(ORDER.index(name), pl.UInt8))
        for name, match in found.items()
    ]
    rows = stored.join(pl.concat(numbered), on=["subject_id", "place", "table"], how="left")
    if rows["row"].null_count():
        raise SystemExit("rows of the store were not found in the files")
    rows.drop("values", "item", "time").write_parquet(to / "rows.parquet")
    return {
        "rows": rows.height,
        "found by values": sum(match.by_values for match in found.values()),
        "found without values": sum(match.without_values for match in found.values()),
        "alike, stored at other times": sum(match.alike for match in found.values()),
    }


def given_times(raw: pl.DataFrame, table: Table, folder: Folder) -> pl.DataFrame:
    """The raw times of a table that the auditor does not know, as `GIVEN`."""
    raw = with_parents(raw, table, folder)
    event = event_time_text(table)
    known = pl.coalesce("storetime", event) if "storetime" in raw.columns else event
    return raw.select(
        pl.lit(table.name).alias("table"), "row", event_time=event, available_time=known
    )


def shown_columns(table: Table) -> list[str]:
    """The columns of the files that a reader of the record sees; classes are in no file."""
    return sorted({column for columns in table.keys.values() for column in columns} - {"class"})


def write_shown(prepared: Prepared, contexts: pl.DataFrame, to: Path) -> None:
    """Write shown-*.parquet: `context, index_time, subject_id, place, total`, a batch a file."""
    for begin in range(0, contexts.height, BATCH):
        parts = []
        samples = prepared.as_samples(contexts.slice(begin, BATCH))
        for number, sample in enumerate(samples, begin):
            places, total = shown(prepared, sample)
            parts.append(
                pl.DataFrame(
                    {"place": places, "total": total},
                    schema_overrides={"place": pl.Int64, "total": pl.Boolean},
                ).with_columns(
                    context=pl.lit(number),
                    index_time=pl.lit(sample.prediction_time).cast(pl.Datetime("us")),
                    subject_id=pl.lit(sample.subject_id, pl.Int64),
                )
            )
        pl.concat(parts).write_parquet(to / f"places-{begin:07d}.parquet")
        print(f"{begin + len(samples):,} of {contexts.height:,} contexts", file=sys.stderr)


def judge(to: Path, python: Path, earlier: timedelta) -> dict[str, Any]:
    """Our counts and the auditor's, by kind; prediction times moved back by `earlier`."""
    rows = pl.read_parquet(to / "rows.parquet")
    name = pl.col("table").replace_strict(dict(enumerate(ORDER)), return_dtype=pl.String)
    ours: dict[str, Counter] = {kind: Counter() for kind in KINDS}
    leaking: Counter = Counter()
    contexts = 0
    for path in sorted(to.glob("places-*.parquet")):
        batch = pl.read_parquet(path).with_columns(pl.col("index_time") - earlier)
        batch = batch.join(rows, on=["subject_id", "place"], how="left")
        contexts += batch["context"].n_unique()
        now = pl.col("index_time").cast(pl.Int64)
        before = pl.col("event_time") <= now
        kinds = {
            "future": ~before,
            "lag": before & (pl.col("available_time") > now),
            "crossing": before & pl.col("total") & (pl.col("late_time") > now),
        }
        for kind, flagged in kinds.items():
            late = batch.filter(flagged)
            ours[kind].update(dict(late.group_by(name.alias("name")).len().iter_rows()))
            leaking[kind] += late["context"].n_unique()
        batch.select("context", "index_time", name, "row", "total").write_parquet(
            to / path.name.replace("places", "shown")
        )
    subprocess.run([python, ROOT / "benchmarks" / "leakage_check_auditor.py", to], check=True)
    verdict = json.loads((to / "verdict.json").read_text())
    return {"contexts": contexts, "ours": ours, "our_contexts": leaking, **verdict}


def table_of(verdicts: dict[str, dict[str, Any]]) -> str:
    lines = []
    for name, verdict in verdicts.items():
        for kind, theirs in KINDS.items():  # ours counts no undated rows: it keeps none
            mine, its = verdict["ours"][kind], verdict["timing"][theirs]
            most = sorted(set(mine) | set(its["tables"]), key=lambda t: -its["tables"].get(t, 0))
            by_table = ", ".join(
                f"{t} {mine.get(t, 0):,} / {its['tables'].get(t, 0):,}" for t in most
            )
            lines.append(
                [
                    name,
                    f"{verdict['contexts']:,}",
                    f"{verdict['checked']:,}",
                    kind,
                    f"{sum(mine.values()):,} / {its['rows']:,}",
                    f"{verdict['our_contexts'][kind]:,} / {its['contexts']:,}",
                    by_table,
                ]
            )
    columns = ["fed", "contexts", "rows shown", "kind", "rows: ours / its", "contexts: ours / its"]
    return markdown([*columns, "tables: ours / its"], lines)


def arguments() -> argparse.Namespace:
    found = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument("data", type=Path, metavar="DIR")
    found.add_argument("--protocols", nargs="+", default=["strict", "paper"])
    found.add_argument("--per-task", type=int, default=300)
    found.add_argument("--seed", type=int, default=0)
    found.add_argument("--json", type=Path, metavar="FILE")
    found.add_argument(
        "--env", type=Path, default=ROOT / "outputs/benchmarks/leakage-env", metavar="DIR"
    )
    return found.parse_args()


def main() -> None:
    given = arguments()
    python = environment(given.env, REQUIREMENTS) / "python"
    verdicts: dict[str, dict[str, Any]] = {}
    matches: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as work:
        for protocol in given.protocols:
            prepared = prepare(given.data.resolve(), protocol, Path(work))
            to = Path(work) / f"{protocol}-fed"
            contexts = draw(prepared, given.per_task, given.seed)
            matches[protocol] = write_rows(prepared, contexts, given.data, to)
            write_shown(prepared, contexts, to)
            verdicts[protocol] = judge(to, python, timedelta(0))
            if protocol == "strict":
                verdicts["strict, control"] = judge(to, python, CONTROL)
    print(table_of(verdicts))
    for protocol, match in matches.items():
        print(f"\n{protocol}: " + ", ".join(f"{what} {count:,}" for what, count in match.items()))
    for fed, verdict in verdicts.items():
        columns = verdict["columns"]
        fail, warn = (", ".join(columns[status]) or "none" for status in ("fail", "warn"))
        print(f"\n{fed}: of {columns['checked']} shown columns fail: {fail}; warn: {warn}")
    if given.json:
        given.json.write_text(json.dumps({"verdicts": verdicts, "found": matches}, indent=1) + "\n")
    sys.exit(failed(verdicts))


def failed(verdicts: dict[str, dict[str, Any]]) -> bool:
    """Return whether the auditor contradicts `strict`, or misses leaks that are there."""
    if "strict" not in verdicts:
        return False
    strict = verdicts["strict"]
    wrong = any(found["rows"] for found in strict["timing"].values()) or strict["columns"]["fail"]
    control = verdicts["strict, control"]["timing"]
    blind = not (control["FUTURE_EVENT"]["rows"] and control["AVAILABILITY_LAG"]["rows"])
    return bool(wrong or blind)


if __name__ == "__main__":
    main()
