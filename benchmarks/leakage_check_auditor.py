"""The auditor's side of `benchmarks.leakage_check`: runs in its environment, knows nothing of ours.

    python leakage_check_auditor.py FOLDER

FOLDER holds raw/<table>.parquet (rows of the table's file, every cell as text, and `row`),
given.parquet (`table, row, event_time, available_time` of tables that the auditor's registry does
not know), admissions.parquet (`hadm_id, dischtime`), columns.json (table -> shown columns) and
shown-*.parquet (`context, index_time, table, row, total`). Writes verdict.json.
"""

import json
import sys
from collections import Counter
from pathlib import Path

import pandas as pd
from icu_leakage_check import LeakageAudit, events_from_table, get_schema

KINDS = ("FUTURE_EVENT", "AVAILABILITY_LAG", "INTERVAL_CROSSING", "UNDATED_SOURCE")
TIMES = ["event_time", "available_time", "end_time"]
CODED = {"untimed", "date_only"}


def dated(folder):
    """Every row's times as the auditor's own registry reads them from the raw cells."""
    stays = pd.read_parquet(folder / "admissions.parquet")
    discharged = dict(zip(stays["hadm_id"], pd.to_datetime(stays["dischtime"]), strict=True))
    given = pd.read_parquet(folder / "given.parquet").assign(end_time=pd.NaT)
    parts = [given]
    registry = get_schema("mimic-iv")
    for path in sorted((folder / "raw").glob("*.parquet")):
        raw = pd.read_parquet(path)
        for name in registry.table(path.stem).time_columns():
            # Read by the form of its first cell, a column of mixed forms would lose times.
            raw[name] = pd.to_datetime(raw[name], format="ISO8601")
        events = events_from_table(
            raw,
            path.stem,
            "mimic-iv",
            value_columns=["row"],  # never missing, so that no row is dropped; it says which row
            encounter_end=discharged,
        )
        events = events.rename(columns={"value": "row"}).assign(table=path.stem)
        parts.append(events[["table", "row", *TIMES]])
    found = pd.concat(parts, ignore_index=True)
    for name in TIMES:
        found[name] = pd.to_datetime(found[name])
    # Codes have no time of their own, and `event_timing` passes over rows without one: they are
    # given the time at which they were available, so that it judges them too.
    found["event_time"] = found["event_time"].fillna(found["available_time"])
    return found.astype({"row": "int64"})


def events_of(shown, rows):
    """The provenance log of some contexts: one event for each row that each of them shows."""
    events = shown.merge(rows, on=["table", "row"], how="left", validate="many_to_one")
    if len(events) != len(shown):
        raise SystemExit("rows were lost or doubled on the way to the auditor")
    # Where the end of an interval and its total are hidden, what is shown is its start.
    events["end_time"] = events["end_time"].where(events["total"])
    return events.rename(columns={"context": "entity_id", "table": "feature"})


def timing(folder, rows):
    """Counts of the check `event_timing`, summed over the batches of contexts."""
    flagged, contexts, tables = Counter(), Counter(), {kind: Counter() for kind in KINDS}
    checked, prior = 0, {}
    for path in sorted(folder.glob("shown-*.parquet")):
        events = events_of(pd.read_parquet(path), rows)
        checked += len(events)
        later = (events["available_time"] > events["index_time"]) | events["available_time"].isna()
        for table, late in later.groupby(events["feature"]).any().items():
            prior[table] = prior.get(table, True) and not late
        units = events[["entity_id", "index_time"]].drop_duplicates()
        result = LeakageAudit(
            units.rename(columns={"entity_id": "context"}),
            dataset="mimic-iv",
            index_time="index_time",
            event_entity="context",
            events=events,
            feature_columns=[],
        ).run(checks=["event_timing"])
        for finding in result.findings:
            if finding.status == "skipped":
                raise SystemExit(f"{finding.check_id}: {finding.message}")
            if finding.status == "fail":
                kind = finding.leakage_type
                flagged[kind] += finding.evidence["events_flagged"]
                contexts[kind] += finding.evidence["entities_affected"]
                tables[kind].update(finding.evidence["events_by_source"])
    return checked, prior, {
        kind: {"rows": flagged[kind], "contexts": contexts[kind], "tables": dict(tables[kind])}
        for kind in KINDS
    }  # fmt: skip


def columns(folder, prior):
    """Findings of `hindsight_features` on the shown columns, each traced to its table.

    A table of codes counts as "prior" where each of its shown rows was final (its admission over,
    its day past) at the prediction time, by the auditor's own times.
    """
    sources = {}
    registry = get_schema("mimic-iv")
    for table, names in json.loads((folder / "columns.json").read_text()).items():
        if table in prior and registry.has_table(table):
            coded = registry.table(table).timing in CODED
            suffix = ".prior" if coded and prior[table] else ""
            sources |= {f"{table}__{name}": f"{table}.{name}{suffix}" for name in names}
    frame = pd.DataFrame({name: [0] for name in sources})
    result = LeakageAudit(frame, dataset="mimic-iv", feature_sources=sources).run(
        checks=["hindsight_features"]
    )
    return {
        "checked": len(sources),
        "fail": sorted({f for x in result.findings if x.status == "fail" for f in x.affected}),
        "warn": sorted({f for x in result.findings if x.status == "warn" for f in x.affected}),
    }


def main():
    folder = Path(sys.argv[1])
    checked, prior, found = timing(folder, dated(folder))
    verdict = {"checked": checked, "timing": found, "columns": columns(folder, prior)}
    (folder / "verdict.json").write_text(json.dumps(verdict, indent=1))


if __name__ == "__main__":
    main()
